//! The acknowledged bytes of one stream: a gapless prefix, and ranges beyond it. Pure.

use crate::record::{Point, Range};

/// A gapless prefix and the ranges acknowledged beyond it.
///
/// Invariant: the ranges are in order, do not touch each other, and all start after `at`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AckedRanges {
    pub at: Point,
    /// Each with its end point (`end.offset == range.end`), whose mark is needed when the gap before the range closes.
    pub beyond: Vec<(Range, Point)>,
}

impl AckedRanges {
    /// Adds an acknowledged range. Adding it again changes nothing.
    pub fn ack(&mut self, mut start: u64, mut end: Point) {
        debug_assert!(start >= self.at.offset, "acknowledged {start} again, before {}", self.at.offset);
        debug_assert!(start <= end.offset);
        let first = self.beyond.partition_point(|(range, _)| range.end < start);
        let touching = self.beyond[first..].partition_point(|(range, _)| range.start <= end.offset);
        for (range, upto) in self.beyond.drain(first..first + touching) {
            debug_assert!(range.end == start || range.start == end.offset, "acknowledged {range:?} again");
            start = start.min(range.start);
            end = further(upto, end);
        }
        if start > self.at.offset {
            self.beyond.insert(first, (start..end.offset, end));
        } else {
            self.at = further(self.at, end);
        }
    }
}

/// The further end; of two equal ones, the second.
fn further(a: Point, b: Point) -> Point {
    if b.offset >= a.offset { b } else { a }
}
