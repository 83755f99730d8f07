//! Journal files for tests, made by systemd-journal-remote. Also a module of the reader's own tests.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// One entry in the export format, of this second and with these fields.
pub fn export(second: u64, fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = format!(
        "__REALTIME_TIMESTAMP={}\n__MONOTONIC_TIMESTAMP={}\n_BOOT_ID=0123456789abcdef0123456789abcdef\n",
        1_700_000_000_000_000 + second * 1_000_000,
        second * 1_000_000,
    )
    .into_bytes();
    for (name, value) in fields {
        out.extend_from_slice(name.as_bytes());
        if value.iter().any(|b| *b < b' ') {
            out.push(b'\n');
            out.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            out.push(b'=');
        }
        out.extend_from_slice(value);
        out.push(b'\n');
    }
    out.push(b'\n');
    out
}

/// `n` entries with messages "`word` 0" and so on.
pub fn messages(word: &str, n: u64) -> Vec<u8> {
    let entry =
        |i| export(i, &[("MESSAGE", format!("{word} {i}").as_bytes()), ("_SYSTEMD_UNIT", b"a.service")]);
    (0..n).flat_map(entry).collect()
}

/// A program that appends entries to a journal file, which may be a new one. It ends when dropped.
pub struct JournalWriter(Child);

impl JournalWriter {
    pub fn start(path: &Path, compact: bool) -> JournalWriter {
        let programs = ["/lib/systemd/systemd-journal-remote", "/usr/lib/systemd/systemd-journal-remote"];
        let program = programs.iter().find(|p| Path::new(p).exists());
        let program = program.expect("these tests need the package systemd-journal-remote");
        let flag = if compact { "1" } else { "0" };
        let child = Command::new(program)
            .args(["--split-mode=none", "-o"])
            .arg(path)
            .arg("-")
            .envs([("SYSTEMD_JOURNAL_COMPACT", flag), ("SYSTEMD_JOURNAL_KEYED_HASH", flag)])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        JournalWriter(child)
    }

    pub fn write(&mut self, entries: &[u8]) {
        self.0.stdin.as_mut().unwrap().write_all(entries).unwrap();
    }
}

impl Drop for JournalWriter {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let ended = self.0.wait();
        assert!(std::thread::panicking() || ended.unwrap().success());
    }
}

/// Appends entries to a journal file, which may be a new one.
pub fn write_journal(path: &Path, compact: bool, entries: &[u8]) {
    JournalWriter::start(path, compact).write(entries);
}
