//! Table tests of `assign`: each row gives the known streams, the files found, and the expected verdicts.

use super::*;

/// A stream in a row, with the current contents of its own file.
#[derive(Clone)]
struct Known {
    stream: KnownStream,
    own: Option<Vec<u8>>,
}

#[derive(Clone)]
struct Listed {
    found: FolderFile,
    content: Option<Vec<u8>>,
    length: Option<Length>,
}

/// Lines `from..to` of a log.
fn lines(log: &str, from: usize, to: usize) -> Vec<u8> {
    (from..to).flat_map(|n| format!("{log} {n:06} and some more\n").into_bytes()).collect()
}

fn identity(ino: u64) -> Identity {
    Identity { dev: 1, ino, born: Some((ino as i64, 0)) }
}

/// A stream in the file `id`, of which `read` was read, while the file holds `own` now. A tail reads it.
fn stream(id: u64, read: &[u8], own: Option<&[u8]>) -> Known {
    let stream = KnownStream {
        id: StreamId(id),
        identity: identity(id),
        read: Point { offset: read.len() as u64, mark: Mark::of(read), ..Point::default() },
        size: read.len() as u64,
        modified: 0,
        finished: false,
        is_read: true,
        kin: true,
        head: read[..read.len().min(Mark::SPAN)].to_vec(),
        at_path: None,
    };
    Known { stream, own: own.map(<[u8]>::to_vec) }
}

impl Known {
    /// Known from an earlier run, so its first bytes are unknown.
    fn saved(mut self) -> Known {
        (self.stream.is_read, self.stream.head) = (false, Vec::new());
        self
    }
    fn finished(mut self) -> Known {
        (self.stream.is_read, self.stream.finished) = (false, true);
        self
    }
    fn of_another_log(mut self) -> Known {
        self.stream.kin = false;
        self
    }
    fn replaced_by(mut self, file: usize) -> Known {
        self.stream.at_path = Some(file);
        self
    }
    fn with_size(mut self, size: usize) -> Known {
        self.stream.size = size as u64;
        self
    }
    fn is_there(&self) -> bool {
        let least = if self.stream.read.offset == 0 { self.stream.size } else { self.stream.read.offset };
        let has_bytes = |own: &Vec<u8>| {
            own.len() as u64 >= least
                && Mark::of(&own[..self.stream.read.offset as usize]) == self.stream.read.mark
        };
        self.own.as_ref().is_some_and(has_bytes)
    }
}

fn file(ino: u64, content: &[u8]) -> Listed {
    let found = FolderFile {
        identity: identity(ino),
        packed: Packed::Plain,
        modified: 0,
        rewritten: false,
        beside_original: false,
        may_be_untouched: true,
        old: false,
    };
    Listed { found, content: Some(content.to_vec()), length: None }
}

fn gz(ino: u64, content: &[u8]) -> Listed {
    let mut gz = file(ino, content);
    gz.found.packed = Packed::Gzip;
    gz
}

impl Listed {
    fn incomplete(mut self) -> Listed {
        self.length = Some(Length::Incomplete);
        self
    }
    fn beside_original(mut self) -> Listed {
        self.found.beside_original = true;
        self
    }
    fn rewritten(mut self) -> Listed {
        self.found.rewritten = true;
        self
    }
    fn old(mut self) -> Listed {
        (self.found.old, self.found.may_be_untouched) = (true, false);
        self
    }
    fn written_in(mut self, seconds: i64) -> Listed {
        self.found.modified = seconds * 1_000_000_000;
        self
    }
    fn born(mut self, seconds: i64) -> Listed {
        self.found.identity.born = Some((seconds, 0));
        self
    }
}

struct Table<'a>(&'a [Known], &'a [Listed]);

fn mark(content: &[u8], offset: u64) -> Option<Mark> {
    content.get(..offset as usize).map(Mark::of)
}

impl Peek for Table<'_> {
    fn length(&mut self, i: usize) -> io::Result<Length> {
        let content = self.1[i].content.as_ref().map_or(0, Vec::len) as u64;
        Ok(self.1[i].length.unwrap_or(Length::Bytes(content)))
    }
    fn mark(&mut self, i: usize, offset: u64) -> io::Result<Option<Mark>> {
        Ok(self.1[i].content.as_ref().and_then(|c| mark(c, offset)))
    }
    fn head(&mut self, i: usize) -> io::Result<Vec<u8>> {
        let content = self.1[i].content.clone().unwrap_or_default();
        Ok(content[..content.len().min(Mark::SPAN)].to_vec())
    }
    fn is_own(&mut self, i: usize, j: usize) -> io::Result<bool> {
        let s = &self.0[j].stream;
        let content = self.1[i].content.as_ref();
        Ok(s.is_read || content.and_then(|c| mark(c, s.read.offset)) == Some(s.read.mark))
    }
    fn is_there(&mut self, j: usize) -> io::Result<bool> {
        Ok(self.0[j].is_there())
    }
    fn is_still_there(&mut self, j: usize) -> io::Result<bool> {
        self.is_there(j)
    }
    fn own_mark(&mut self, j: usize, offset: u64) -> io::Result<Option<Mark>> {
        Ok(self.0[j].own.as_ref().and_then(|own| mark(own, offset)))
    }
}

const OWN: fn(u64) -> FileVerdict = |s| FileVerdict::Own(StreamId(s));
const CONTINUES: fn(u64) -> FileVerdict = |s| FileVerdict::Continues(StreamId(s));
const READ: fn(u64) -> FileVerdict = |s| FileVerdict::Read(StreamId(s));
const COPY: fn(u64) -> FileVerdict = |s| FileVerdict::Wait(Wait::Copy(StreamId(s)));
const UNSEEN: fn(u64) -> FileVerdict = |s| FileVerdict::Wait(Wait::Unseen(StreamId(s)));
const INCOMPLETE: FileVerdict = FileVerdict::Wait(Wait::Incomplete);
const ORIGINAL: FileVerdict = FileVerdict::Wait(Wait::Original);
const EMPTY: FileVerdict = FileVerdict::Wait(Wait::Empty);
use FileVerdict::{New, Old};

type Row = (&'static str, Vec<Known>, Vec<Listed>, Vec<FileVerdict>);

#[track_caller]
fn decide(rows: Vec<Row>) {
    for (name, known, listed, want) in rows {
        let streams: Vec<KnownStream> = known.iter().map(|k| k.stream.clone()).collect();
        let files: Vec<FolderFile> = listed.iter().map(|l| l.found.clone()).collect();
        let got = assign(&streams, &files, &mut Table(&known, &listed)).unwrap();
        assert_eq!(got, want, "{name}");
    }
}

/// S21 to S31, S52, S53, and faults 1 to 3 of "Faults found". Fails when a file is not recognized by its identity regardless
/// of its name and times, or an unread file counts as old.
#[test]
fn renamed() {
    let (a, b, c) = (lines("a", 0, 30), lines("b", 0, 30), lines("c", 0, 30));
    let half = &a[..600];
    decide(vec![
        (
            "first start over a log and its rotated files",
            vec![],
            vec![file(3, &a), file(2, &b), file(1, &c)],
            vec![New; 3],
        ),
        (
            "rotated: the old file has another name, the new one is new",
            vec![stream(1, half, Some(&a))],
            vec![file(1, &a), file(2, &b)],
            vec![OWN(1), New],
        ),
        (
            "rotated twice while down",
            vec![stream(1, half, Some(&a)).saved()],
            vec![file(1, &a), file(2, &b), file(3, &c)],
            vec![OWN(1), New, New],
        ),
        (
            "the same while the clock is behind",
            vec![stream(1, half, Some(&a)).saved()],
            vec![file(1, &a).written_in(5), file(2, &b).written_in(3), file(3, &c).written_in(0)],
            vec![OWN(1), New, New],
        ),
        (
            "two names swapped",
            vec![stream(1, half, Some(&a)).saved(), stream(2, &b, Some(&b)).saved()],
            vec![file(2, &b), file(1, &a)],
            vec![OWN(2), OWN(1)],
        ),
        (
            "a late write to a closed file",
            vec![stream(1, half, Some(&a)).finished()],
            vec![file(1, &a)],
            vec![OWN(1)],
        ),
        (
            "deleted and recreated with the same inode: a different birth time",
            vec![stream(1, half, None).finished()],
            vec![file(1, &b).born(99)],
            vec![New],
        ),
        (
            "without a birth time, different bytes show that it is another file",
            vec![stream(1, half, Some(&b)).saved()],
            vec![file(1, &b)],
            vec![New],
        ),
        (
            "moved out of the folder while being read",
            vec![stream(1, half, Some(&a))],
            vec![file(2, &b)],
            vec![New],
        ),
        (
            "old files are not read",
            vec![stream(1, half, Some(&a))],
            vec![file(1, &a), file(2, &b).old()],
            vec![OWN(1), Old],
        ),
        (
            "but missing streams are looked for in them",
            vec![stream(1, half, None).saved()],
            vec![file(2, &b).old(), file(3, &a).old()],
            vec![Old, CONTINUES(1)],
        ),
    ]);
}

/// S32 to S40, and fault 13. Fails when a copy counts as a new file, a stream continues in two files, or a file counts
/// as the copy of a log because both begin with the same bytes (S44).
#[test]
fn copied_and_truncated() {
    let (a, b) = (lines("a", 0, 40), lines("b", 0, 40));
    let (read, half) = (&a[..], &a[..600]);
    let banner = lines("banner", 0, 20);
    let (one, other) =
        ([&banner[..], &lines("one", 0, 20)].concat(), [&banner[..], &lines("two", 0, 10)].concat());
    let now = lines("a", 40, 44);
    decide(vec![
        (
            "the copy grows, the log is intact",
            vec![stream(1, read, Some(&a))],
            vec![file(2, half)],
            vec![COPY(1)],
        ),
        (
            "the copy is complete, the log is intact",
            vec![stream(1, half, Some(&a))],
            vec![file(2, &a)],
            vec![COPY(1)],
        ),
        (
            "truncated: the unread rest is in the copy",
            vec![stream(1, half, Some(b""))],
            vec![file(2, &a)],
            vec![CONTINUES(1)],
        ),
        (
            "truncated and written again",
            vec![stream(1, half, Some(&now))],
            vec![file(2, &a)],
            vec![CONTINUES(1)],
        ),
        (
            "the same at a start: its first bytes are unknown",
            vec![stream(1, half, Some(&now)).saved()],
            vec![file(2, &a), file(1, &now)],
            vec![CONTINUES(1), New],
        ),
        (
            "two copies: one of them is read",
            vec![stream(1, half, Some(b""))],
            vec![file(2, &a), file(3, &a)],
            vec![COPY(1), CONTINUES(1)],
        ),
        (
            "a copy that is shorter than what was read",
            vec![stream(1, read, Some(b""))],
            vec![file(2, half)],
            vec![READ(1)],
        ),
        (
            "a copy of a closed file",
            vec![stream(1, read, None).finished().saved()],
            vec![file(2, &a)],
            vec![READ(1)],
        ),
        (
            "the second copy before the first truncation was seen",
            vec![stream(1, half, Some(&now))],
            vec![file(2, &a), file(3, &now)],
            vec![CONTINUES(1), UNSEEN(1)],
        ),
        ("an empty file may become a copy", vec![stream(1, half, Some(&a))], vec![file(2, b"")], vec![EMPTY]),
        ("if nothing is read, it is new", vec![], vec![file(2, b"")], vec![New]),
        (
            "cp over a followed file: different bytes in the same inode",
            vec![stream(1, read, Some(&a)), stream(2, &b, Some(&a[..900])).finished()],
            vec![file(1, &a), file(2, &a[..900]).rewritten()],
            vec![OWN(1), COPY(1)],
        ),
        (
            "two logs with the same banner",
            vec![stream(1, &one, Some(&one))],
            vec![file(2, &other)],
            vec![New],
        ),
        (
            "a copy of another log, by its contents",
            vec![stream(1, read, Some(&a)).of_another_log()],
            vec![file(2, half)],
            vec![COPY(1)],
        ),
        (
            "a few equal bytes prove nothing across logs",
            vec![stream(1, &a[..50], Some(&a[..50])).of_another_log()],
            vec![file(2, &a[..50])],
            vec![New],
        ),
        (
            "copied up by overlayfs (fault 15): same inode and bytes, different birth time",
            vec![stream(1, half, None).saved()],
            vec![file(1, &a).born(99)],
            vec![CONTINUES(1)],
        ),
    ]);
}

/// S27, S54, and fault 14. Fails when a compressed file is read in addition to its original, or before it is complete.
#[test]
fn compressed() {
    let (a, b) = (lines("a", 0, 40), lines("b", 0, 40));
    let half = &a[..600];
    decide(vec![
        ("its original is unknown", vec![], vec![gz(2, &a)], vec![New]),
        ("being written", vec![stream(1, half, Some(&a))], vec![gz(2, b"").incomplete()], vec![INCOMPLETE]),
        ("its original is held open", vec![stream(1, half, Some(&a))], vec![gz(2, &a)], vec![COPY(1)]),
        ("its original is gone", vec![stream(1, half, None).saved()], vec![gz(2, &a)], vec![CONTINUES(1)]),
        (
            "its original was read",
            vec![stream(1, &a, None).finished().saved()],
            vec![gz(2, &a)],
            vec![READ(1)],
        ),
        (
            "its original was read and is still there",
            vec![stream(1, &a, Some(&a)).finished()],
            vec![file(1, &a), gz(2, &a).beside_original()],
            vec![OWN(1), COPY(1)],
        ),
        (
            "another file has its plain name",
            vec![stream(1, &b, Some(&b))],
            vec![file(1, &b), gz(2, &a).beside_original()],
            vec![OWN(1), ORIGINAL],
        ),
        (
            "a copy and its compressed form: the plain one is read",
            vec![stream(1, half, Some(b""))],
            vec![gz(3, &a), file(2, &a)],
            vec![COPY(1), CONTINUES(1)],
        ),
        ("the same for an unknown log", vec![], vec![gz(3, &a), file(2, &a)], vec![ORIGINAL, New]),
        (
            "in an unsupported format",
            vec![],
            vec![Listed { length: Some(Length::Unknown), ..gz(2, b"") }],
            vec![New],
        ),
    ]);
}

/// Streams of which nothing was read have no bytes to recognize a copy by. Fails when such a copy counts as a new file
/// beside its stream, or a new file as such a copy before the stream's tail has looked.
#[test]
fn untouched() {
    let (a, b) = (lines("a", 0, 40), lines("b", 0, 60));
    let missing = |id, size| stream(id, b"", None).saved().with_size(size);
    decide(vec![
        ("same length", vec![missing(1, a.len())], vec![file(2, &b), file(3, &a)], vec![New, CONTINUES(1)]),
        ("longer", vec![missing(1, a.len())], vec![file(2, &b)], vec![CONTINUES(1)]),
        ("shorter", vec![missing(1, b.len())], vec![file(2, &a)], vec![New]),
        (
            "same length, old by its times",
            vec![missing(1, a.len())],
            vec![file(2, &a).old()],
            vec![CONTINUES(1)],
        ),
        (
            "two of them",
            vec![missing(1, 100), missing(2, a.len())],
            vec![file(3, &b), gz(4, &a)],
            vec![CONTINUES(1), CONTINUES(2)],
        ),
        (
            "compressed after a copy",
            vec![missing(1, a.len())],
            vec![gz(3, &a), file(2, &a)],
            vec![COPY(1), CONTINUES(1)],
        ),
        (
            "compressed, and replaced by an even longer log",
            vec![missing(1, 100).replaced_by(0)],
            vec![file(2, &b), gz(3, &a)],
            vec![New, CONTINUES(1)],
        ),
        (
            "two of the same length: the older one is in the older file",
            vec![missing(1, a.len()), missing(2, a.len())],
            vec![gz(3, &lines("c", 0, 40)), gz(4, &a)],
            vec![CONTINUES(1), CONTINUES(2)],
        ),
        (
            "the file of the other one was compressed after it was opened",
            vec![missing(1, 10), stream(2, b"", Some(&b)).with_size(20)],
            vec![gz(3, &b), gz(4, &a)],
            vec![COPY(2), CONTINUES(1)],
        ),
        ("the log is intact", vec![stream(1, b"", Some(&a))], vec![file(2, &a)], vec![COPY(1)]),
        (
            "truncated, and its tail has not looked",
            vec![stream(1, b"", Some(b""))],
            vec![file(2, &a)],
            vec![UNSEEN(1)],
        ),
    ]);
}
