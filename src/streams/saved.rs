//! The content of the state folder's `offsets`, as values.

use super::ranges::AckedRanges;
use crate::record::{Ack, Identity, Point, Range, StreamId};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The whole content of `offsets`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// By id, ascending.
    pub streams: Vec<SavedStream>,
    /// The lowest stream id not yet assigned.
    pub next_stream: u64,
    /// Patterns seen so far, as written in the config. `start` applies only to files that exist when their pattern is
    /// first seen. A pattern removed from the config stays listed.
    pub sources: Vec<Vec<u8>>,
    /// Per journal folder, the entries that were counted as lost last, so that a restart does not count them again: the
    /// gap in the numbers is still there while no position beyond it is saved.
    pub losses: Vec<(PathBuf, NumberGap)>,
    /// Running time in seconds of all agents on this folder, over all restarts. Not wall clock time: a box may boot
    /// in 1970.
    pub clock: u64,
    /// Wall clock at the last save, in ms since 1970; 0 if unknown. Used for record timestamps; see `clock.rs`.
    pub wall_ms: i64,
    pub totals: SavedTotals,
    /// When it was written, in seconds and nanoseconds since 1970 by the file system's clock; `None` if never. Not
    /// part of the text.
    pub written: Option<(i64, u32)>,
    /// Both copies of `offsets` were damaged and `damaged_state = "beginning"`: until the first scan is saved,
    /// `start` does not apply and every file is read from its beginning.
    pub from_beginning: bool,
}

impl Saved {
    /// Adds a range that is known to be stored although the run that sent it could not save that. Returns `false` if
    /// the range is already included or the stream is unknown.
    pub fn acknowledge(&mut self, ack: &Ack) -> bool {
        let Some(s) = self.streams.iter_mut().find(|s| s.stream == ack.stream) else { return false };
        let inside = s.beyond.iter().any(|(r, _)| r.start < ack.range.end && ack.range.start < r.end);
        if ack.range.start < s.at.offset || inside {
            return false;
        }
        let mut acked = AckedRanges { at: s.at, beyond: std::mem::take(&mut s.beyond) };
        acked.ack(ack.range.start, ack.end);
        (s.at, s.beyond) = (acked.at, acked.beyond);
        s.size = s.size.max(ack.range.end);
        true
    }
}

/// This many journal entries with numbers up to `upto` are gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NumberGap {
    pub entries: u64,
    pub upto: u64,
}

/// One stream as saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedStream {
    pub stream: StreamId,
    /// The followed path.
    pub path: Arc<Path>,
    pub identity: Identity,
    /// Acknowledged without a gap up to here.
    pub at: Point,
    /// Acknowledged ranges beyond `at`, ascending, each with its end (`end.offset == range.end`).
    pub beyond: Vec<(Range, Point)>,
    /// Bytes, when last seen.
    pub size: u64,
    /// Read to its end and fully acknowledged: no byte of it is ever sent again.
    pub finished: bool,
    /// [`Saved::clock`] when its file was last known to exist.
    pub seen: u64,
}

#[cfg(test)]
impl SavedStream {
    /// Acknowledged up to `at`, and nothing beyond.
    pub fn acked(stream: u64, path: &Path, identity: Identity, at: Point, size: u64) -> SavedStream {
        let (stream, path, beyond) = (StreamId(stream), path.into(), Vec::new());
        SavedStream { stream, path, identity, at, beyond, size, finished: false, seen: 0 }
    }
}

/// Counters over all restarts. Saved together with the positions, so a line sent again after a crash is counted once
/// per saved acknowledgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SavedTotals {
    pub read_lines: u64,
    pub acked_lines: u64,
    pub dead_lettered: u64,
    /// Lines sent again after a crash; see `sent_marks`.
    pub again: u64,
    /// Lines sent again without a crash, though the first attempt may have been stored.
    pub resent: u64,
    pub uncertain: u64,
    pub lost_bytes: u64,
    pub cut_lines: u64,
    pub retries: u64,
    /// Bytes written to the state folder.
    pub state_bytes: u64,
    /// Exactly-once: batches of an earlier run that were sent again, and how many of them were found stored. On a
    /// separate line of the file, which older files lack.
    pub flights_resent: u64,
    pub flights_found: u64,
    /// Journal entries that were removed unread, and that could not be read. On a separate line too.
    pub lost_entries: u64,
    pub damaged_entries: u64,
}

/// Acknowledged positions per stream, as saved: a gapless prefix and ranges beyond it. With `sync = "always"` they
/// have been synced.
#[derive(Clone, Debug, Default)]
pub struct SavedPositions(pub HashMap<StreamId, (u64, Vec<Range>)>);

impl SavedPositions {
    pub fn of(saved: &Saved) -> SavedPositions {
        let ranges = |s: &SavedStream| s.beyond.iter().map(|(range, _)| range.clone()).collect();
        SavedPositions(saved.streams.iter().map(|s| (s.stream, (s.at.offset, ranges(s)))).collect())
    }

    pub fn knows(&self, stream: StreamId) -> bool {
        self.0.contains_key(&stream)
    }

    /// Whether the whole range is acknowledged. An unknown stream was finished and has been forgotten.
    pub fn holds(&self, stream: StreamId, range: &Range) -> bool {
        let Some((at, beyond)) = self.0.get(&stream) else { return true };
        range.end <= *at || beyond.iter().any(|b| b.start <= range.start && range.end <= b.end)
    }
}
