//! The words that all stages share: streams, ranges, chunks, acks. No I/O, no threads, no config.

use crate::budget::Permit;
use crate::streams::Progress;
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes `start..end` of a stream.
pub type Range = std::ops::Range<u64>;

/// A topic's name, shared by everything that belongs to it.
pub type Topic = Arc<str>;

/// One unbroken run of bytes: a file between two truncations. Serial, saved, never reused, whatever the file is called
/// and whichever inode (or `.gz`) holds the bytes now.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StreamId(pub u64);

/// Serial number of a flight; saved with exactly-once, else counted from 1 at each start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct BatchGroupNo(pub u64);

/// Which file holds a stream's bytes. Inode numbers are reused at once, so they never stand alone: the birth time
/// (`statx(2)`) tells two users of one inode apart, and where the file system has none, the head does.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Identity {
    pub dev: u64,
    pub ino: u64,
    /// Seconds and nanoseconds of `stx_btime`; `None` where the file system keeps none.
    pub born: Option<(i64, u32)>,
}

/// Length and hash of the ≤ 256 bytes before an offset: what lies there must be what was read.
/// Limit: 256 equal bytes at the same offset cannot be told apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Mark {
    pub len: u16,
    pub hash: u64,
}

impl Mark {
    /// Longest piece of the file that a mark covers, in bytes.
    pub const SPAN: usize = 256;

    /// The mark of an offset whose preceding bytes end `before`.
    pub fn of(before: &[u8]) -> Mark {
        let tail = &before[before.len().saturating_sub(Self::SPAN)..];
        if tail.is_empty() {
            return Mark::default(); // nothing before offset 0: agrees with every file
        }
        Mark { len: tail.len() as u16, hash: fnv1a(tail) }
    }
}

/// FNV-1a, 64 bits: saved in `offsets`, so it must stay as it is.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// What reading does at a point.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Then {
    /// A line starts here.
    #[default]
    Line,
    /// The rest of a line that was cut is left out up to its newline.
    SkipToNewline,
}

/// Where reading may go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Point {
    pub offset: u64,
    pub mark: Mark,
    pub then: Then,
}

/// Why the last record of a chunk ended; a rebuild ends it at the same place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Break {
    Newline,
    /// `max_line` was reached.
    Cut,
    /// Rotation, `--once`, `partial_after` or a multiline limit.
    Forced,
}

/// Where a record's key comes from.
#[derive(Clone, Debug, Default)]
pub enum Key {
    #[default]
    None,
    /// The same bytes for every record: a constant, or the host's name.
    Constant(Vec<u8>),
    /// The followed path.
    Path,
    /// The first group of the expression, or the whole match; no match gives no key.
    Regex(regex::bytes::Regex),
    /// A field of a line that is a JSON object, by its path; no such field gives no key.
    Field(Vec<String>),
}

/// What a record's value is made of.
#[derive(Clone, Debug, Default)]
pub enum Format {
    /// The line's bytes as they are.
    #[default]
    Raw,
    /// An object with `message`, `host`, `path`, `offset`, `time` and the source's own fields.
    Json { host: String, fields: Vec<(String, String)> },
}

/// What makes a record out of a line, the same for all files of a source.
#[derive(Debug, Default)]
pub struct Shape {
    pub key: Key,
    pub format: Format,
    pub headers: Vec<(String, Vec<u8>)>,
}

/// One per open stream, shared by its chunks: whose bytes these are.
#[derive(Debug)]
pub struct Origin {
    pub stream: StreamId,
    pub topic: Topic,
    /// The *followed* path, also when the bytes are read from a rotated file.
    pub path: PathBuf,
    pub shape: Arc<Shape>,
    pub progress: Arc<Progress>,
}

/// One record: `len` bytes at `at` of its chunk, so its place in the file is `range.start + at`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line {
    pub at: u32,
    pub len: u32,
}

/// A piece of a stream with the lines found in it.
///
/// Invariant: `bytes[0]` is the byte at `range.start`, and the lines stand in `bytes` in order and without overlap. What is
/// left out (rest of a cut line, a hole, filtered lines) belongs to a chunk's range without belonging to a line. A
/// chunk that carries no records has no bytes either; it moves the position like any other.
#[derive(Debug)]
pub struct Chunk {
    pub origin: Arc<Origin>,
    pub range: Range,
    /// `end.offset == range.end`.
    pub end: Point,
    pub last: Break,
    pub lines: Vec<Line>,
    pub bytes: Vec<u8>,
    /// Bytes and line table; goes back to the budget when the last owner lets the chunk go.
    #[allow(dead_code, reason = "held, not read")]
    pub permit: Permit,
}

impl Chunk {
    /// Most lines in one chunk, so that a record is addressed by two `u16`.
    pub const MAX_LINES: usize = 16 * 1024;

    pub fn line(&self, i: usize) -> &[u8] {
        let l = self.lines[i];
        &self.bytes[l.at as usize..(l.at + l.len) as usize]
    }

    pub fn ack(&self) -> Ack {
        Ack {
            stream: self.origin.stream,
            range: self.range.clone(),
            end: self.end,
            lines: self.lines.len() as u64,
        }
    }
}

/// All records of `range` are stored, or are left out for good.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ack {
    pub stream: StreamId,
    pub range: Range,
    pub end: Point,
    pub lines: u64,
}

/// A stream as a tail takes it up: at first sight, or again after a start. Acknowledged up to `at`.
#[derive(Clone, Debug)]
pub struct Opened {
    pub origin: Arc<Origin>,
    pub identity: Identity,
    pub at: Point,
}

/// What a tail hands over.
#[derive(Debug)]
pub enum TailOutput {
    Opened(Opened),
    Chunk(Chunk),
    /// Nothing more comes of this stream: it was left after rotation, deleted, or truncated.
    Closed(Closed),
}

#[derive(Clone, Debug)]
pub struct Closed {
    pub stream: StreamId,
    pub why: Ending,
}

/// Why a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Read to its end and left behind by rotation or removal: once all is acknowledged it is finished.
    Finished,
    /// Cut short: `lost` bytes had not been read and are gone.
    Truncated { lost: u64 },
    /// The file is gone with `lost` bytes unread.
    Gone { lost: u64 },
    /// The agent goes on with it at the next start.
    Parked,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_covers_the_last_256_bytes() {
        let long: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
        assert_eq!(Mark::of(&long), Mark::of(&long[744..]));
        assert_ne!(Mark::of(&long[..999]), Mark::of(&long));
        assert_eq!(Mark::of(b""), Mark::default());
    }

    /// Saved in `offsets`: a change of the hash would make every position of an older agent look truncated.
    #[test]
    fn hash_is_fnv1a() {
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
