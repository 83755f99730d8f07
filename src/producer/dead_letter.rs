//! The dead-letter file: a size-limited record of lines that no broker will accept, with their origin.
//!
//! `dead-letter` in the state folder holds one JSON object per line:
//!
//! ```text
//! {"time":…,"reason":…,"topic":…,"partition":…,"path":…,"stream":…,"offset":…,"length":…,"value":…}
//! ```
//!
//! `offset` and `length` are in bytes of the source file. `value` is the line, or `value_base64` if it is not UTF-8
//! (RFC 4648, padded); likewise `path_base64`. The file is opened for each letter, so it may be moved away at any
//! time.
//!
//! A letter is written before its record counts as done. After a crash the record may therefore be read and refused
//! again. Positions are saved within 2 s, so the repeat is recognized by its letter at the end of the file or within
//! the last 8 MiB, and not written twice.
//!
//! Each followed path has a share of the file ([`crate::quota`]), counted by the letters' `path`. A path that has used
//! up its share is not read any further. If the file as a whole is full anyway, the topic waits.

use super::batch::{Batch, Pick};
use super::json;
use super::partition::Now;
use crate::base64;
use crate::private_file;
use crate::quota::{self, Quota};
use crate::report::log_throttle::LogThrottle;
use memchr::memmem;
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub struct DeadLetters {
    /// `None`: no state folder, so letters are only logged.
    path: Option<PathBuf>,
    /// In bytes.
    limit: u64,
    scratch: Vec<u8>,
    /// Letters of an earlier run, by [`what`]. `None` until this run's first letter.
    before: Option<HashSet<u64>>,
    repeats: LogThrottle,
}

/// How much of the file's end may hold letters that an earlier run wrote for records it had not yet acknowledged.
const RECALLED: u64 = 8 << 20;

impl DeadLetters {
    pub fn new(path: Option<PathBuf>, limit: u64) -> Self {
        DeadLetters { path, limit, scratch: Vec::new(), before: None, repeats: LogThrottle::default() }
    }

    /// Writes all records of the batch or none: after an error the file is truncated to its previous length. The data
    /// is in the page cache when this returns, not necessarily on disk; positions are not durable any earlier.
    pub fn write(&mut self, batch: &Batch, why: &str, now: Now, quota: Option<&Quota>) -> Result<(), String> {
        let Some(path) = self.path.as_deref() else {
            log_each(batch, why);
            return Ok(());
        };
        let before = match &mut self.before {
            Some(before) => before,
            none => none.insert(recall(path).map_err(|e| cannot(path, &e))?),
        };
        self.scratch.clear();
        let mut sources: Vec<(&Path, u64)> = Vec::new();
        for pick in batch.picks() {
            let at = self.scratch.len();
            letter(&mut self.scratch, batch, pick, why, now.wall_ms);
            if !before.is_empty() && before.contains(&what(&self.scratch[at..])) {
                self.scratch.truncate(at);
                continue;
            }
            let (source, bytes) =
                (&*batch.group.chunks[usize::from(pick.chunk)].origin.path, self.scratch.len() - at);
            match sources.last_mut().filter(|(last, _)| *last == source) {
                Some((_, sum)) => *sum += bytes as u64,
                None => sources.push((source, bytes as u64)),
            }
        }
        append(path, &self.scratch, self.limit)?;
        self.scratch.shrink_to(64 << 10);
        if let Some(quota) = quota {
            sources.into_iter().for_each(|(source, bytes)| quota.wrote(source, bytes));
        }
        if let Some(all) = self.repeats.more(batch.count.into(), now.at) {
            let (n, topic, path) = (batch.count, &batch.group.topic, path.display());
            log::error!(
                "{n} record(s) of topic {topic} cannot be delivered: {why}; kept in {path} ({all} recently)"
            );
        }
        Ok(())
    }
}

/// The shares already used in the file an earlier run left.
pub fn quota(path: &Path, limit: u64) -> io::Result<Quota> {
    let file = match private_file::open_read(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Ok(Quota::new(path.into(), limit, std::iter::empty()));
        }
        Err(e) => return Err(e),
    };
    let mut letters = HashMap::new();
    let (mut rest, mut line) = (BufReader::new(file), Vec::new());
    while rest.read_until(b'\n', &mut line)? > 0 {
        if let Some(source) = source(&line) {
            *letters.entry(source).or_default() += line.len() as u64;
        }
        line.clear();
    }
    Ok(Quota::new(path.into(), limit, letters.into_iter()))
}

/// The followed path that a letter names.
fn source(letter: &[u8]) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Letter {
        path: Option<String>,
        path_base64: Option<String>,
    }
    let letter: Letter = serde_json::from_slice(letter).ok()?;
    match (letter.path, letter.path_base64) {
        (Some(path), _) => Some(path.into()),
        (None, text) => Some(OsString::from_vec(base64::decode(&text?)?).into()),
    }
}

fn cannot(path: &Path, e: &io::Error) -> String {
    format!("cannot write the dead letter to {}: {e}", path.display())
}

/// The letters an earlier run may have written last. A torn one, left by a killed run, is cut off.
fn recall(path: &Path) -> io::Result<HashSet<u64>> {
    let file = match private_file::open_existing(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(HashSet::new()),
        Err(e) => return Err(e),
    };
    let mut at = file.metadata()?.len().saturating_sub(RECALLED);
    let mut rest = BufReader::new(&file);
    rest.seek(SeekFrom::Start(at))?;
    let (mut before, mut line) = (HashSet::new(), Vec::new());
    while rest.read_until(b'\n', &mut line)? > 0 {
        if !line.ends_with(b"\n") {
            file.set_len(at)?;
            break;
        }
        at += line.len() as u64;
        before.insert(what(&line));
        line.clear();
    }
    Ok(before)
}

/// Hashes a letter's identity: everything except time, reason and partition. Quotes inside values are escaped, so a
/// quoted name can only match a member name.
fn what(letter: &[u8]) -> u64 {
    let at = |name: &str| memmem::find(letter, name.as_bytes()).unwrap_or(letter.len());
    let (topic, partition, path) = (at(",\"topic"), at(",\"partition"), at(",\"path"));
    let mut hash = DefaultHasher::new();
    letter.get(topic..partition).hash(&mut hash);
    letter[path..].hash(&mut hash);
    hash.finish()
}

fn append(path: &Path, text: &[u8], limit: u64) -> Result<(), String> {
    let named = |e: io::Error| cannot(path, &e);
    let mut file = private_file::append(path).map_err(named)?;
    let before = file.metadata().map_err(named)?.len();
    // An empty file always takes one letter.
    if before > 0 && before + text.len() as u64 > limit {
        return Err(format!("{} is full ({limit} bytes): move it away", path.display()));
    }
    file.write_all(text).map_err(|e| {
        // A torn letter would be parsed as a letter. If truncating fails too, the next letter continues on its line.
        let _ = file.set_len(before);
        named(e)
    })
}

/// Without a state folder the record is not kept anywhere, so log where to find each one.
fn log_each(batch: &Batch, why: &str) {
    for pick in batch.picks() {
        let chunk = &batch.group.chunks[usize::from(pick.chunk)];
        let line = chunk.lines[usize::from(pick.line)];
        log::error!(
            "{}: {} bytes at offset {} cannot be delivered to topic {} and are dropped: {why}",
            chunk.origin.path.display(),
            line.len,
            chunk.offset_of(line),
            batch.group.topic,
        );
    }
}

fn letter(out: &mut Vec<u8>, batch: &Batch, pick: Pick, why: &str, wall_ms: i64) {
    let chunk = &batch.group.chunks[usize::from(pick.chunk)];
    let line = chunk.lines[usize::from(pick.line)];
    out.extend_from_slice(b"{\"time\":\"");
    json::time(out, wall_ms);
    out.push(b'"');
    let cut =
        why.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= quota::REASON).last();
    member(out, "reason", &why.as_bytes()[..cut.unwrap_or(0)]);
    member(out, "topic", batch.group.topic.as_bytes());
    count(out, "partition", u64::from(batch.partition.unsigned_abs()));
    member(out, "path", chunk.origin.path.as_os_str().as_bytes());
    count(out, "stream", chunk.origin.stream.0);
    count(out, "offset", chunk.offset_of(line));
    count(out, "length", u64::from(line.len));
    member(out, "value", chunk.line(usize::from(pick.line)));
    out.extend_from_slice(b"}\n");
}

fn member(out: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    if std::str::from_utf8(bytes).is_ok() {
        out.extend_from_slice(b"\":\"");
        json::text(out, bytes);
    } else {
        out.extend_from_slice(b"_base64\":\"");
        out.extend_from_slice(base64::encode(bytes).as_bytes());
    }
    out.push(b'"');
}

fn count(out: &mut Vec<u8>, name: &str, n: u64) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    json::number(out, n);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::producer::testing::{STAMP, batch, chunk, origin, plain};
    use crate::quota::Room;
    use crate::record::Shape;
    use serde_json::Value;

    fn now() -> Now {
        Now { at: std::time::Instant::now(), wall_ms: STAMP }
    }

    fn written(path: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// Fails when a letter loses bytes, its file position, or its own line.
    #[test]
    fn a_letter_has_the_line_and_its_origin() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dead-letter");
        let b = batch(1, vec![chunk(&plain(7), 100, &[b"a \"b\"\n\tc", b"\xff\x00x", b""])]);
        let mut letters = DeadLetters::new(Some(path.clone()), 1 << 20);
        letters.write(&b, "10 MESSAGE_TOO_LARGE", now(), None).unwrap();
        let all = written(&path);
        assert_eq!(all.len(), 3);
        assert_eq!(all[0]["value"], "a \"b\"\n\tc");
        assert_eq!(
            (&all[0]["offset"], &all[0]["length"], &all[0]["stream"]),
            (&100.into(), &8.into(), &7.into())
        );
        assert_eq!((&all[1]["value_base64"], &all[1]["offset"]), (&"/wB4".into(), &109.into()));
        assert_eq!((&all[2]["value"], &all[2]["reason"]), (&"".into(), &"10 MESSAGE_TOO_LARGE".into()));
    }

    /// Fails when a record read again after a crash is written twice, when a different but similar record is dropped,
    /// or when a torn letter is left in the file.
    #[test]
    fn a_repeat_after_a_crash_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dead-letter");
        let of = |start| batch(1, vec![chunk(&plain(7), start, &[b"a,\"path", b"b"])]);
        DeadLetters::new(Some(path.clone()), 1 << 20).write(&of(0), "first, \"path\"", now(), None).unwrap();
        let torn = [std::fs::read(&path).unwrap(), b"{\"time\":\"20".to_vec()].concat();
        std::fs::write(&path, torn).unwrap();
        let mut after = DeadLetters::new(Some(path.clone()), 1 << 20);
        for start in [0, 100, 0] {
            after.write(&of(start), "second", now(), None).unwrap();
        }
        let reported: Vec<_> =
            written(&path).iter().map(|l| (l["reason"].clone(), l["offset"].clone())).collect();
        let (first, second) = ("first, \"path\"", "second");
        let want = [(first, 0), (first, 8), (second, 100), (second, 108)];
        assert_eq!(reported, want.map(|(r, o)| (r.into(), o.into())));
    }

    /// Fails when an earlier run's letters do not count toward the path they name, including a path that is not UTF-8.
    #[test]
    fn existing_letters_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dead-letter");
        let odd = PathBuf::from(OsString::from_vec(b"/var/\xff.log".to_vec()));
        for of in [Path::new("/var/\"a\".log"), &odd] {
            let origin = origin(7, "t", of, Shape::default());
            let b = batch(1, vec![chunk(&origin, 0, &[&[b'x'; 300][..]])]);
            DeadLetters::new(Some(path.clone()), 1 << 20).write(&b, "r", now(), None).unwrap();
        }
        let used = quota(&path, 2000).unwrap();
        let at = std::time::Instant::now();
        assert_eq!(used.room(&used.share(&odd, "t"), 0, at), Room::Full, "{used:?}");
        assert_eq!(used.room(&used.share(Path::new("/var/\"a\".log"), "t"), 0, at), Room::Full, "{used:?}");
        assert_eq!(used.room(&used.share(Path::new("/var/b.log"), "t"), 0, at), Room::Enough);
    }

    /// Fails when a letter can use more than its reservation, or a common one uses less than half of it.
    #[test]
    fn a_letter_fits_its_reservation() {
        let path = PathBuf::from(OsString::from_vec(b"/var/log/\"\x01\xff.log".to_vec()));
        let origin = origin(u64::MAX, "t", &path, Shape::default());
        let quota = quota::Quota::new(path.clone(), 1, std::iter::empty());
        let mut dice = crate::fuzz::Dice(7);
        for of in [&b"abc"[..], b"\"\\ab", b"\x00\x1f\x7f\n", b"\xff\x80ab", "\u{fc}\u{20ac}".as_bytes()] {
            for len in [0, 1, 7, 8, 9, 100, 1000] {
                let lines: Vec<Vec<u8>> = (0..20).map(|_| (0..len).map(|_| dice.of(of)).collect()).collect();
                let lines: Vec<&[u8]> = lines.iter().map(|l| &l[..]).collect();
                let mut batch = batch(1, vec![chunk(&origin, 1 << 60, &lines)]);
                batch.partition = i32::MAX;
                let mut out = Vec::new();
                for pick in batch.picks() {
                    letter(&mut out, &batch, pick, &"\u{20ac}".repeat(200), STAMP);
                }
                let room = quota.share(&path, "t").letters(20, batch.group.chunks[0].bytes.len()) as usize;
                let most = if of.contains(&0) { 3 * room } else { room }; // control characters
                assert!(out.len() <= most, "{of:?} {len}: {} of {room}", out.len());
                assert!(of != b"abc" || out.len() * 2 > room, "{len}: {} of {room}", out.len());
            }
        }
    }

    /// Fails when a letter is dropped, the file grows past its limit, or writing does not resume after it is moved
    /// away.
    #[test]
    fn a_full_file_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dead-letter");
        let b = batch(1, vec![chunk(&plain(7), 0, &[&[b'x'; 300][..]])]);
        let mut letters = DeadLetters::new(Some(path.clone()), 1000);
        let taken = (0..5).take_while(|_| letters.write(&b, "r", now(), None).is_ok()).count();
        assert_eq!((taken, written(&path).len()), (2, 2));
        #[allow(clippy::disallowed_methods)] // what the operator does
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        letters.write(&b, "r", now(), None).unwrap();
        assert_eq!(written(&path).len(), 1);
    }
}
