//! Builds each record's key, value and headers, for all drivers. Framing and compression belong to the drivers.
//!
//! No allocation per line: a raw value is a slice of the chunk, everything else is written into the
//! [`RecordEncoder`]'s reused buffers. A record depends only on shape, path, line, offset and the group's timestamp,
//! so encoding a batch again gives the same records.
//!
//! ```text
//! encoder.each(&batch, |record| {
//!     encoder.record(record.index, record.key.as_deref(), &record.value, record.headers);
//! });
//! ```

use super::batch::{Batch, Pick, Records};
use super::json;
use crate::chunk::{Chunk, Origin};
use crate::record::{Format, Key, Line, RecordHead};
use regex::bytes::{CaptureLocations, Regex};
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;

/// Reused buffers, one per worker. Cheap when new; grows to its longest record.
#[derive(Debug, Default)]
pub struct RecordEncoder {
    key: Vec<u8>,
    value: Vec<u8>,
    /// The part of a JSON value between message and offset, the same for all lines of a chunk.
    head: Vec<u8>,
    /// The part after the offset.
    tail: Vec<u8>,
}

/// Bytes of a record. Those of the group live as long as the batch (`'l`), those of the encoder until the closure
/// returns (`'p`). [`Deref`] yields either. Only a driver that must hold all records of a batch at once (the `kafka`
/// crate) needs to distinguish them, and copies the encoder's.
#[derive(Clone, Copy, Debug)]
pub enum Piece<'l, 'p> {
    Lasting(&'l [u8]),
    Passing(&'p [u8]),
}

impl Deref for Piece<'_, '_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Piece::Lasting(b) | Piece::Passing(b) => b,
        }
    }
}

/// One record as sent to the broker. An empty value stays empty and never becomes null, which is a tombstone.
#[derive(Clone, Copy, Debug)]
pub struct Record<'l, 'p> {
    /// Index in the batch, from 0: the offset delta, and what `Refusal::Records` refers to.
    pub index: u32,
    pub key: Option<Piece<'l, 'p>>,
    pub value: Piece<'l, 'p>,
    /// In config order, the same for all records of a chunk.
    pub headers: &'l [(String, Vec<u8>)],
    /// Its own time in ms since 1970, if the source knows one; otherwise the batch's applies.
    pub stamp_ms: Option<i64>,
}

impl RecordEncoder {
    /// Passes every record of the batch to `put`, in order.
    pub fn each<'l>(&mut self, batch: &'l Batch, mut put: impl for<'p> FnMut(Record<'l, 'p>)) {
        let mut index = 0;
        let mut next = |encoder: &mut RecordEncoder, context: &mut ChunkContext<'l>, line: Line| {
            put(encoder.record(context, line, index));
            index += 1;
        };
        match &batch.records {
            Records::All => {
                for chunk in &batch.group.chunks {
                    let mut context = self.context(chunk, batch.group.stamp_ms);
                    for line in &chunk.lines {
                        next(self, &mut context, *line);
                    }
                }
            }
            Records::Picked(picks) => {
                for run in picks.chunk_by(|a, b| a.chunk == b.chunk) {
                    let Some(Pick { chunk, .. }) = run.first() else { continue };
                    let chunk = &batch.group.chunks[usize::from(*chunk)];
                    let mut context = self.context(chunk, batch.group.stamp_ms);
                    for pick in run {
                        next(self, &mut context, chunk.lines[usize::from(pick.line)]);
                    }
                }
            }
        }
    }

    /// Prepares what all lines of a chunk share.
    fn context<'l>(&mut self, chunk: &'l Chunk, stamp_ms: i64) -> ChunkContext<'l> {
        let origin = &*chunk.origin;
        let json = matches!(origin.shape.format, Format::Json { .. });
        let headed = matches!(origin.shape.format, Format::Headed);
        if let Format::Json { host, fields } = &origin.shape.format {
            self.frame(origin, host, fields, stamp_ms);
        }
        ChunkContext { chunk, keys: Keys::of(origin), json, headed, flagged: self.tail.ends_with(FLAGGED) }
    }

    /// Writes the parts of a JSON value around message and offset.
    fn frame(&mut self, origin: &Origin, host: &str, fields: &[(String, String)], stamp_ms: i64) {
        let (head, tail) = (&mut self.head, &mut self.tail);
        head.clear();
        head.extend_from_slice(b"\",\"host\":\"");
        json::text(head, host.as_bytes());
        head.extend_from_slice(b"\",\"path\":\"");
        let valid = json::text(head, origin.path.as_os_str().as_bytes());
        head.extend_from_slice(b"\",\"offset\":");
        tail.clear();
        tail.extend_from_slice(b",\"time\":\"");
        json::time(tail, stamp_ms);
        tail.push(b'"');
        for (name, value) in fields {
            tail.extend_from_slice(b",\"");
            json::text(tail, name.as_bytes());
            tail.extend_from_slice(b"\":\"");
            json::text(tail, value.as_bytes());
            tail.push(b'"');
        }
        if !valid {
            tail.extend_from_slice(FLAGGED);
        }
    }

    // Inlined and kept small: most records are a line without a key.
    #[inline(always)]
    fn record<'l, 'p>(
        &'p mut self,
        context: &mut ChunkContext<'l>,
        line: Line,
        index: u32,
    ) -> Record<'l, 'p> {
        let bytes = &context.chunk.bytes[line.at as usize..][..line.len as usize];
        let headers = &context.chunk.origin.shape.headers;
        if context.json {
            self.json(context, line, bytes);
        }
        let head = if context.headed { RecordHead::of(&context.chunk.bytes, line) } else { None };
        let key = context.keys.key(head, bytes, &mut self.key);
        let value = if context.json { Piece::Passing(&self.value) } else { Piece::Lasting(bytes) };
        Record { index, key, value, headers, stamp_ms: head.map(|head| head.stamp_ms) }
    }

    /// Writes the JSON value of one line.
    fn json(&mut self, context: &ChunkContext<'_>, line: Line, bytes: &[u8]) {
        let out = &mut self.value;
        out.clear();
        out.extend_from_slice(b"{\"message\":\"");
        let valid = json::text(out, bytes);
        out.extend_from_slice(&self.head);
        json::number(out, context.chunk.offset_of(line));
        out.extend_from_slice(&self.tail);
        if !valid && !context.flagged {
            out.extend_from_slice(FLAGGED);
        }
        out.push(b'}');
    }
}

/// Added when the value contained invalid UTF-8, which was replaced by U+FFFD.
const FLAGGED: &[u8] = b",\"invalid_utf8\":true";

/// What the lines of one chunk share.
struct ChunkContext<'l> {
    chunk: &'l Chunk,
    keys: Keys<'l>,
    json: bool,
    /// Each line has a [`RecordHead`].
    headed: bool,
    /// The path already carries the flag.
    flagged: bool,
}

/// Computes the keys of one origin's lines, for the encoder and for the `hash` partitioner.
#[derive(Debug)]
pub enum Keys<'l> {
    None,
    Same(&'l [u8]),
    /// With capture locations; `None` if the expression has no group.
    Regex(&'l Regex, Option<CaptureLocations>),
    Field(&'l [String]),
    Head,
}

impl<'l> Keys<'l> {
    pub fn of(origin: &'l Origin) -> Self {
        match &origin.shape.key {
            Key::None => Keys::None,
            Key::Constant(bytes) => Keys::Same(bytes),
            Key::Path => Keys::Same(origin.path.as_os_str().as_bytes()),
            Key::Regex(r) => Keys::Regex(r, (r.captures_len() > 1).then(|| r.capture_locations())),
            Key::Field(path) => Keys::Field(path),
            Key::Head => Keys::Head,
        }
    }

    /// The key of one line. A key that is not a slice is written into `scratch`, which is cleared first.
    #[inline(always)]
    pub fn key<'p>(
        &mut self,
        head: Option<RecordHead<'l>>,
        line: &'l [u8],
        scratch: &'p mut Vec<u8>,
    ) -> Option<Piece<'l, 'p>> {
        match self {
            Keys::None => None,
            Keys::Head => head?.key.map(Piece::Lasting),
            Keys::Same(bytes) => Some(Piece::Lasting(bytes)),
            _ => self.found(line, scratch),
        }
    }

    /// A key extracted from the line.
    fn found<'p>(&mut self, line: &'l [u8], scratch: &'p mut Vec<u8>) -> Option<Piece<'l, 'p>> {
        match self {
            Keys::None | Keys::Same(_) | Keys::Head => None,
            Keys::Regex(r, None) => r.find(line).map(|m| Piece::Lasting(m.as_bytes())),
            Keys::Regex(r, Some(groups)) => {
                r.captures_read(groups, line)?;
                groups.get(1).map(|(from, to)| Piece::Lasting(&line[from..to]))
            }
            Keys::Field(path) => {
                scratch.clear();
                json::field(scratch, line, path).then_some(Piece::Passing(scratch))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::producer::testing::{batch, chunk, origin, plain};
    use crate::record::Shape;
    use std::ffi::OsStr;
    use std::sync::Arc;

    type Plain = (u32, Option<Vec<u8>>, Vec<u8>);

    fn all(batch: &Batch) -> Vec<Plain> {
        let mut seen = Vec::new();
        let mut put = |r: Record<'_, '_>| {
            seen.push((r.index, r.key.as_deref().map(<[u8]>::to_vec), r.value.to_vec()));
        };
        RecordEncoder::default().each(batch, &mut put);
        seen
    }

    /// Fails when a line is skipped, or a value is copied instead of borrowed.
    #[test]
    fn a_raw_value_is_the_chunks_own_bytes() {
        let b = batch(1, vec![chunk(&plain(1), 0, &[b"one", b""]), chunk(&plain(2), 9, &[b"\xffthree"])]);
        let values: Vec<Vec<u8>> = all(&b).into_iter().map(|r| r.2).collect();
        assert_eq!(values, [&b"one"[..], b"", b"\xffthree"]);
        RecordEncoder::default()
            .each(&b, |r| assert!(matches!(r.value, Piece::Lasting(_)) && r.key.is_none()));
    }

    /// Fails when picks are taken from the wrong chunk, or the index is not the batch's own.
    #[test]
    fn picked_records_keep_their_order_and_get_indices_of_their_own() {
        let mut b = batch(1, vec![chunk(&plain(1), 0, &[b"a", b"b"]), chunk(&plain(2), 0, &[b"c", b"d"])]);
        let picks = [(0, 1), (1, 0), (1, 1)].map(|(chunk, line)| Pick { chunk, line });
        b.records = Records::Picked(Arc::new(picks));
        let want = [(0, None, b"b".to_vec()), (1, None, b"c".to_vec()), (2, None, b"d".to_vec())];
        assert_eq!(all(&b), want);
    }

    /// Fails when any member changes its name, position, or escaping.
    #[test]
    fn json_value() {
        let fields = vec![("env".to_owned(), "a\"b".to_owned())];
        let format = Format::Json { host: "box".into(), fields };
        let o = origin(1, "t", "/var/log/a b", Shape { format, ..Shape::default() });
        let b = batch(1, vec![chunk(&o, 1000, &[b"say \"x\"", b"\xff"])]);
        let tail = r#""time":"2023-11-14T22:13:20.123Z","env":"a\"b""#;
        let first =
            format!(r#"{{"message":"say \"x\"","host":"box","path":"/var/log/a b","offset":1000,{tail}}}"#);
        let second = format!(
            "{{\"message\":\"\u{fffd}\",\"host\":\"box\",\"path\":\"/var/log/a b\",\"offset\":1008,{tail},\"invalid_utf8\":true}}"
        );
        assert_eq!(all(&b), [(0, None, first.into_bytes()), (1, None, second.into_bytes())]);
    }

    /// Fails when the flag is missing or appears twice.
    #[test]
    fn a_path_that_is_not_utf8_is_flagged_once() {
        let format = Format::Json { host: String::new(), fields: vec![] };
        let path = OsStr::from_bytes(b"/\xfe");
        let o = origin(1, "t", path, Shape { format, ..Shape::default() });
        for (_, _, value) in all(&batch(1, vec![chunk(&o, 0, &[b"fine", b"\xff"])])) {
            let value = String::from_utf8(value).unwrap();
            assert_eq!(value.matches("\"invalid_utf8\":true").count(), 1, "{value}");
            assert!(serde_json::from_str::<serde_json::Value>(&value).unwrap()["path"] == "/\u{fffd}");
        }
    }

    /// Fails when one key source is mistaken for another, or no match becomes an empty key.
    #[test]
    fn keys() {
        let lines: [&[u8]; 2] = [b"id=42 {", b"{\"id\":\"k\"}"];
        let regex = |r| Key::Regex(Regex::new(r).unwrap().into());
        let cases = [
            (Key::None, [None, None]),
            (Key::Constant(b"c".to_vec()), [Some(&b"c"[..]), Some(b"c")]),
            (Key::Path, [Some(b"/p\xff"), Some(b"/p\xff")]),
            (regex(r"id=(\d+)"), [Some(b"42"), None]),
            (regex(r"id"), [Some(b"id"), Some(b"id")]),
            (regex(r"id(=)?"), [Some(b"="), None]),
            (Key::Field(vec!["id".into()]), [None, Some(b"k")]),
        ];
        for (key, want) in cases {
            let what = format!("{key:?}");
            let o = origin(1, "t", OsStr::from_bytes(b"/p\xff"), Shape { key, ..Shape::default() });
            let got: Vec<_> = all(&batch(1, vec![chunk(&o, 0, &lines)])).into_iter().map(|r| r.1).collect();
            assert_eq!(got, want.map(|k| k.map(<[u8]>::to_vec)), "{what}");
        }
    }
}
