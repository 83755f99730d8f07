//! The vocabulary that all stages share: streams, offsets, marks and what makes a record of a line. No I/O, no threads.

use std::sync::Arc;

/// Bytes `start..end` of a stream.
pub type Range = std::ops::Range<u64>;

/// A topic's name, shared by everything that belongs to it.
pub type Topic = Arc<str>;

/// One contiguous byte stream: a file between two truncations. A serial number that is saved and never reused,
/// whatever the file is called and whichever inode (or `.gz`) holds the bytes now.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StreamId(pub u64);

/// Serial number of a batch group; saved with exactly-once, otherwise counted from 1 at each start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct BatchGroupNo(pub u64);

/// Identifies the file that holds a stream's bytes. Inode numbers are reused immediately, so the birth time
/// (`statx(2)`) distinguishes two files with the same inode, or the file's first bytes where the file system has no
/// birth time.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Identity {
    pub dev: u64,
    pub ino: u64,
    /// Seconds and nanoseconds of `stx_btime`; `None` where the file system keeps none.
    pub born: Option<(i64, u32)>,
}

/// Length and hash of the ≤ 256 bytes before an offset, to verify that the file still contains what was read. Limit:
/// 256 equal bytes at the same offset cannot be distinguished.
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

/// FNV-1a, 64 bits. Saved in `offsets`, so it must not change.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// How reading continues at a point.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Then {
    /// A line starts here.
    #[default]
    Line,
    /// Skip the rest of a cut line, up to its newline.
    SkipToNewline,
}

/// A position at which reading can continue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Point {
    pub offset: u64,
    pub mark: Mark,
    pub then: Then,
}

/// Why the last record of a chunk ended. A rebuilt chunk ends at the same place.
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
    /// A field of a line that is a JSON object, by its path; a missing field gives no key.
    Field(Vec<String>),
}

/// The format of a record's value.
#[derive(Clone, Debug, Default)]
pub enum Format {
    /// The line's bytes, unchanged.
    #[default]
    Raw,
    /// An object with `message`, `host`, `path`, `offset`, `time` and the source's own fields.
    Json { host: String, fields: Vec<(String, String)> },
}

/// How a line becomes a record; shared by all files of a source.
#[derive(Debug, Default)]
pub struct Shape {
    pub key: Key,
    pub format: Format,
    pub headers: Vec<(String, Vec<u8>)>,
}

/// One record: `len` bytes at `at` of its chunk, so its place in the file is `range.start + at`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line {
    pub at: u32,
    pub len: u32,
}

/// All records of `range` are stored, or dropped for good.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ack {
    pub stream: StreamId,
    pub range: Range,
    pub end: Point,
    pub lines: u64,
}

#[derive(Clone, Debug)]
pub struct Closed {
    pub stream: StreamId,
    pub why: Ending,
}

/// Why a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Read to its end and left behind by rotation or removal. Finished once everything is acknowledged.
    Finished,
    /// Cut short: `lost` bytes had not been read and are gone.
    Truncated { lost: u64 },
    /// The file is gone with `lost` bytes unread.
    Gone { lost: u64 },
    /// Continued at the next start.
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

    /// Saved in `offsets`: with a different hash, every position saved by an older agent would look truncated.
    #[test]
    fn hash_is_fnv1a() {
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
