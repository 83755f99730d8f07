//! The acknowledged bytes of one stream: a gapless prefix, and ranges beyond it. Pure.

use crate::record::Point;
use std::collections::BTreeMap;

/// A gapless prefix and the ranges acknowledged beyond it.
///
/// Invariant: the ranges are disjoint, do not touch each other, and all start after `at`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AckedRanges {
    pub at: Point,
    /// Keyed by start. The value is the full end point, because its mark is needed when the gap before the range
    /// closes.
    pub beyond: BTreeMap<u64, Point>,
}

impl AckedRanges {
    /// Adds an acknowledged range. Adding it again changes nothing.
    pub fn ack(&mut self, start: u64, end: Point) {
        debug_assert!(start >= self.at.offset, "acknowledged {start} again, before {}", self.at.offset);
        debug_assert!(start <= end.offset);
        if start > self.at.offset {
            return self.beyond(start, end);
        }
        if end.offset >= self.at.offset {
            self.at = end;
        }
        while let Some(first) = self.beyond.first_entry() {
            if *first.key() > self.at.offset {
                break;
            }
            let end = first.remove();
            if end.offset >= self.at.offset {
                self.at = end;
            }
        }
    }

    fn beyond(&mut self, mut start: u64, mut end: Point) {
        if let Some((&before, &upto)) = self.beyond.range(..=start).next_back()
            && upto.offset >= start
        {
            debug_assert!(
                upto.offset == start,
                "acknowledged {start} again, within {before}..{}",
                upto.offset
            );
            start = before;
            end = further(upto, end);
        }
        while let Some((&next, &upto)) = self.beyond.range(start..).next()
            && next <= end.offset
        {
            debug_assert!(next == end.offset || next == start, "acknowledged {next}..{} again", upto.offset);
            self.beyond.remove(&next);
            end = further(end, upto);
        }
        self.beyond.insert(start, end);
    }
}

/// The further end; of two equal ones, the second.
fn further(a: Point, b: Point) -> Point {
    if b.offset >= a.offset { b } else { a }
}
