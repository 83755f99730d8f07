//! The types that all stages share: streams, offsets, marks, and how a line becomes a record. No I/O, no threads.

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
            return Mark::default(); // nothing before offset 0: matches every file
        }
        Mark { len: tail.len() as u16, hash: fnv1a(tail) }
    }

    /// The flag in `len` that marks a journal entry.
    const ENTRY: u16 = 1 << 15;
    /// Bits of `hash` for the sequence number: enough for 10,000 entries/s over three years.
    const SEQNUM_BITS: u32 = 40;

    /// The mark of the end of a journal entry: its sequence number, and 39 bits of a hash of what it has in common with
    /// its copies. 0 before the first entry, with a hash of the file's ID.
    pub fn of_entry(hash: u64, seqnum: u64) -> Mark {
        let seqnum = seqnum & ((1 << Self::SEQNUM_BITS) - 1);
        Mark { len: Self::ENTRY | hash as u16, hash: hash >> 16 << Self::SEQNUM_BITS | seqnum }
    }

    /// The sequence number of the last entry; `None`: this is a mark of a log file's bytes.
    pub fn seqnum(&self) -> Option<u64> {
        (self.len & Self::ENTRY != 0).then_some(self.hash & ((1 << Self::SEQNUM_BITS) - 1))
    }

    /// Whether the two entries are the same, or copies with different sequence numbers.
    pub fn is_copy_of(&self, other: &Mark) -> bool {
        self.len == other.len && self.hash >> Self::SEQNUM_BITS == other.hash >> Self::SEQNUM_BITS
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

/// A regular expression for lines. Two are equal if their texts are.
#[derive(Clone, Debug)]
pub struct LineRegex(regex::bytes::Regex);

impl From<regex::bytes::Regex> for LineRegex {
    fn from(compiled: regex::bytes::Regex) -> Self {
        LineRegex(compiled)
    }
}

impl std::ops::Deref for LineRegex {
    type Target = regex::bytes::Regex;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl PartialEq for LineRegex {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

/// Where a record's key comes from.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Key {
    #[default]
    None,
    /// The same bytes for every record: a constant, or the host's name.
    Constant(Vec<u8>),
    /// The followed path.
    Path,
    /// The first group of the expression, or the whole match; no match gives no key.
    Regex(LineRegex),
    /// A field of a line that is a JSON object, by its path; a missing field gives no key.
    Field(Vec<String>),
    /// What the source put into the line's [`RecordHead`].
    Head,
}

/// The format of a record's value.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// The line's bytes, unchanged.
    #[default]
    Raw,
    /// An object with `message`, `host`, `path`, `offset`, `time` and the source's own fields.
    Json { host: String, fields: Vec<(String, String)> },
    /// The line's bytes, unchanged. A [`RecordHead`] precedes each line.
    Headed,
}

/// What a source knows about a record besides its line: its own time in ms since 1970, and a key. It precedes the line
/// in the chunk's bytes: the key's bytes, their number (`u32`), the time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHead<'c> {
    pub key: Option<&'c [u8]>,
    pub stamp_ms: i64,
}

impl<'c> RecordHead<'c> {
    const NO_KEY: u32 = u32::MAX;

    pub fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.key.unwrap_or_default());
        let len = self.key.map_or(Self::NO_KEY, |key| key.len() as u32);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&self.stamp_ms.to_le_bytes());
    }

    /// The head of a line in the bytes of its chunk; `None`: there is none.
    pub fn of(bytes: &'c [u8], line: Line) -> Option<RecordHead<'c>> {
        let before = bytes.get(..line.at as usize)?;
        let (before, stamp) = before.split_last_chunk::<8>()?;
        let (before, len) = before.split_last_chunk::<4>()?;
        let key = match u32::from_le_bytes(*len) {
            Self::NO_KEY => None,
            len => Some(&before[before.len().checked_sub(len as usize)?..]),
        };
        Some(RecordHead { key, stamp_ms: i64::from_le_bytes(*stamp) })
    }
}

/// How a line becomes a record; shared by all files of a source.
#[derive(Debug, Default)]
pub struct Shape {
    pub key: Key,
    pub format: Format,
    pub headers: Vec<(String, Vec<u8>)>,
}

/// One record: `len` bytes at `at` of its chunk.
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

    /// Fails when a head does not round-trip, or reading goes beyond the start of the chunk's bytes.
    #[test]
    fn heads_of_records() {
        for key in [None, Some(&b""[..]), Some(b"unit")] {
            let head = RecordHead { key, stamp_ms: 1_700_000_000_123 };
            let mut bytes = b"the line before".to_vec();
            head.put(&mut bytes);
            let line = Line { at: bytes.len() as u32, len: 0 };
            assert_eq!(RecordHead::of(&bytes, line), Some(head));
            assert_eq!(RecordHead::of(&bytes[4..], Line { at: 3, len: 0 }), None);
        }
        assert_eq!(RecordHead::of(&[9; 12], Line { at: 12, len: 0 }), None, "a key longer than the chunk");
    }

    /// Fails when a position in a journal is taken for one in a log file.
    #[test]
    fn marks_of_entries_are_recognized() {
        let hash = fnv1a(b"an entry");
        assert_eq!(Mark::of_entry(hash, 42).seqnum(), Some(42));
        assert_eq!(Mark::of(&[1; 300]).seqnum(), None);
        let copy = Mark::of_entry(hash, 43);
        assert!(copy != Mark::of_entry(hash, 42) && copy.is_copy_of(&Mark::of_entry(hash, 42)));
        for bit in [1, 1 << 14, 1 << 16, 1 << 39] {
            assert!(!copy.is_copy_of(&Mark::of_entry(hash ^ bit, 43)), "{bit:x}");
        }
    }

    /// Saved in `offsets`: with a different hash, every position saved by an older agent would look truncated.
    #[test]
    fn hash_is_fnv1a() {
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
