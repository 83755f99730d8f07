//! Renders an entry as a record: its message, or all its fields as `journalctl -o json` prints them (with `__SEQNUM`,
//! as since systemd 254). The same entry always gives the same bytes: exactly-once reads entries again and compares
//! checksums.

use super::file::{EntryField, JournalEntry};
use super::header::Id128;
use std::io::Write;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryFormat {
    /// The `MESSAGE` field unchanged; empty if there is none.
    Message,
    /// `long`: also fields of [`LONG`] bytes and more, which are null otherwise.
    Json { long: bool },
}

/// The limit of `journalctl` without `--all`.
pub const LONG: usize = 4096;

/// Appends the record of `e`. True: parts were cut or dropped to keep it within `most` bytes.
pub fn render(
    format: EntryFormat,
    seqnum_id: &Id128,
    e: &JournalEntry,
    most: usize,
    out: &mut Vec<u8>,
) -> bool {
    let start = out.len();
    match format {
        EntryFormat::Message => {
            let Some(field) = e.fields.iter().find(|f| e.name(f) == b"MESSAGE") else {
                return e.left_out > 0; // it may be among them
            };
            let message = e.value(field);
            out.extend_from_slice(&message[..message.len().min(most)]);
            field.cut || message.len() > most
        }
        EntryFormat::Json { long } => {
            let mut longest = if long { usize::MAX } else { LONG };
            json(out, seqnum_id, e, longest);
            let fits = out.len() - start <= most;
            // The longest fields are dropped first.
            while out.len() - start > most && longest > 1 {
                longest = longest.min(most.max(2)) / 2;
                out.truncate(start);
                json(out, seqnum_id, e, longest);
            }
            if out.len() - start > most {
                out.truncate(start);
            }
            !fits || e.left_out > 0 || e.fields.iter().any(|f| f.cut)
        }
    }
}

pub fn hex(id: &Id128) -> String {
    id.iter().map(|b| format!("{b:02x}")).collect()
}

fn json(out: &mut Vec<u8>, seqnum_id: &Id128, e: &JournalEntry, longest: usize) {
    let (s, b) = (hex(seqnum_id), hex(&e.boot_id));
    let JournalEntry { seqnum: i, realtime: t, monotonic: m, xor_hash: x, .. } = e;
    // Writing to memory cannot fail.
    let _ = write!(
        out,
        "{{\"__CURSOR\":\"s={s};i={i:x};b={b};m={m:x};t={t:x};x={x:x}\",\"__REALTIME_TIMESTAMP\":\"{t}\",\
         \"__MONOTONIC_TIMESTAMP\":\"{m}\",\"__SEQNUM\":\"{i}\",\"__SEQNUM_ID\":\"{s}\",\"_BOOT_ID\":\"{b}\""
    );
    for (i, f) in e.fields.iter().enumerate() {
        let name = e.name(f);
        if name == b"_BOOT_ID" || e.fields[..i].iter().any(|g| e.name(g) == name) {
            continue;
        }
        out.push(b',');
        string(out, name);
        out.push(b':');
        let is_repeated = e.fields[i + 1..].iter().any(|g| e.name(g) == name);
        if !is_repeated {
            value(out, e, f, longest);
            continue;
        }
        out.push(b'[');
        for (n, g) in e.fields[i..].iter().filter(|g| e.name(g) == name).enumerate() {
            if n > 0 {
                out.push(b',');
            }
            value(out, e, g, longest);
        }
        out.push(b']');
    }
    out.push(b'}');
}

fn value(out: &mut Vec<u8>, e: &JournalEntry, f: &EntryField, longest: usize) {
    let v = e.value(f);
    if f.cut || e.name(f).len() + 1 + v.len() >= longest {
        out.extend_from_slice(b"null");
    } else if is_printable(v) {
        string(out, v);
    } else {
        for (k, b) in v.iter().enumerate() {
            let _ = write!(out, "{}{b}", if k == 0 { '[' } else { ',' });
        }
        out.push(b']');
    }
}

fn is_printable(v: &[u8]) -> bool {
    // systemd takes noncharacters for invalid.
    let plain = |c: char| {
        !matches!(c, '\0'..='\x08' | '\x0b'..='\x1f' | '\x7f'..='\u{9f}' | '\u{fdd0}'..='\u{fdef}')
            && u32::from(c) & 0xfffe != 0xfffe
    };
    v.iter().all(|b| matches!(b, 0x20..0x7f)) || std::str::from_utf8(v).is_ok_and(|s| s.chars().all(plain))
}

fn string(out: &mut Vec<u8>, v: &[u8]) {
    out.push(b'"');
    let mut from = 0;
    for (i, b) in v.iter().enumerate() {
        let escaped: &[u8] = match b {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\t' => b"\\t",
            _ => continue,
        };
        out.extend_from_slice(&v[from..i]);
        out.extend_from_slice(escaped);
        from = i + 1;
    }
    out.extend_from_slice(&v[from..]);
    out.push(b'"');
}
