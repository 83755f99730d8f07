//! Counts lost entries by gaps in the sequence numbers. All files of one journald share one counter, so once every file
//! is read to its end, a missing number is an entry that was removed before it was read.

/// Counts the entries after a starting point.
#[derive(Clone, Copy, Debug, Default)]
pub struct SeqnumTally {
    /// Numbers up to this one are not counted.
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

    pub fn read(&mut self, seqnum: u64) {
        if seqnum > self.base {
            self.newest = self.newest.max(seqnum);
            self.read += 1;
        }
    }

    /// Records entries that cannot be read; they are counted as damaged instead.
    pub fn missed(&mut self, entries: u64) {
        self.read += entries;
    }

    /// Every file is read to its end. `Some`: the number of lost entries. A gap counts only if it persists until the
    /// next look; until then [`SeqnumTally::is_suspicious`] is true.
    pub fn all_read(&mut self) -> Option<u64> {
        let missing = (self.newest - self.base).saturating_sub(self.read);
        if missing > 0 && self.suspected != Some(missing) {
            self.suspected = Some(missing);
            return None;
        }
        *self = SeqnumTally::begin(self.newest);
        (missing > 0).then_some(missing)
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
        assert_eq!(tally.all_read(), None, "a different gap than before");
        assert_eq!(tally.all_read(), Some(4));
        assert_eq!((tally.all_read(), tally.is_suspicious()), (None, false));
    }
}
