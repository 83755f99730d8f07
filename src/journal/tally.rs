//! Counts lost entries by gaps in the sequence numbers. All files of one journald share one counter, so once every file
//! is read to its end, a missing number is an entry that was removed before it was read.

use crate::streams::NumberGap;

/// Entries from one moment on.
#[derive(Clone, Copy, Debug)]
pub struct SeqnumTally {
    /// See [`SeqnumTally::base`].
    base: u64,
    newest: u64,
    read: u64,
    /// The number of missing entries at the last look: a rotation in progress may briefly hide a file.
    suspected: Option<u64>,
}

impl SeqnumTally {
    pub fn begin(base: u64) -> SeqnumTally {
        SeqnumTally { base, newest: base, read: 0, suspected: None }
    }

    /// An earlier run counted these as lost.
    pub fn counted_before(&mut self, gap: NumberGap) {
        self.newest = self.newest.max(gap.upto);
        self.read += gap.entries;
    }

    /// Numbers up to here are ignored.
    pub fn base(&self) -> u64 {
        self.base
    }

    pub fn read(&mut self, seqnum: u64) {
        if self.newest == 0 {
            *self = SeqnumTally::begin(seqnum.saturating_sub(1)); // empty so far: the counter may start anywhere
        }
        if seqnum > self.base {
            self.newest = self.newest.max(seqnum);
            self.read += 1;
        }
    }

    /// Records entries that cannot be read; they are counted as damaged instead.
    pub fn missed(&mut self, entries: u64) {
        self.read += entries;
    }

    /// Every file is read to its end. `Some`: so many entries are gone. A gap counts when it is still there at the next look;
    /// until then [`SeqnumTally::is_suspicious`].
    pub fn all_read(&mut self) -> Option<NumberGap> {
        let missing = (self.newest - self.base).saturating_sub(self.read);
        if missing > 0 && self.suspected != Some(missing) {
            self.suspected = Some(missing);
            return None;
        }
        *self = SeqnumTally::begin(self.newest);
        (missing > 0).then_some(NumberGap { entries: missing, upto: self.base })
    }

    pub fn is_suspicious(&self) -> bool {
        self.suspected.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when a gap is counted twice, or before it was seen twice, or an old entry fills a new gap.
    #[test]
    fn gaps() {
        let mut tally = SeqnumTally::begin(100);
        [101, 90, 103, 102].into_iter().for_each(|n| tally.read(n));
        assert_eq!((tally.all_read(), tally.is_suspicious()), (None, false));
        [110, 104].into_iter().for_each(|n| tally.read(n));
        assert_eq!((tally.all_read(), tally.is_suspicious()), (None, true));
        tally.read(105);
        assert_eq!(tally.all_read(), None, "another gap than before");
        assert_eq!(tally.all_read(), Some(NumberGap { entries: 4, upto: 110 }));
        assert_eq!((tally.all_read(), tally.is_suspicious()), (None, false));
    }

    /// Fails when all numbers before the first entry of an initially empty journal count as lost.
    #[test]
    fn a_counter_may_start_anywhere() {
        let mut tally = SeqnumTally::begin(0);
        [4711, 4712].into_iter().for_each(|n| tally.read(n));
        assert_eq!((tally.all_read(), tally.is_suspicious()), (None, false));
    }

    /// Fails when a loss is counted again after a restart, or a later one is not counted.
    #[test]
    fn gaps_of_an_earlier_run() {
        let restart = |at: u64| {
            let mut tally = SeqnumTally::begin(at);
            tally.counted_before(NumberGap { entries: 30, upto: 150 });
            (151..=160).for_each(|n| tally.read(n));
            tally
        };
        let mut tally = restart(120);
        assert_eq!((tally.all_read(), tally.is_suspicious()), (None, false));
        let mut tally = restart(118);
        assert_eq!((tally.all_read(), tally.all_read()), (None, Some(NumberGap { entries: 2, upto: 160 })));
    }
}
