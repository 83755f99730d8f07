//! Sequence numbers of one partition: which numbers a batch gets, and when they must never be reused.
//!
//! Broker rules (KIP-98): sequences count records per partition. A batch that repeats producer id, epoch and range of
//! one of the last five is answered with its first offset, even if its content differs. So numbers that may have been
//! stored must never be given to other records.

use super::batch::{Batch, Numbers};
use std::cmp::Ordering;

/// The sequence after `count` records from `base`. Wraps to 0 after 2147483647.
pub fn after(base: i32, count: u32) -> i32 {
    ((base as u32).wrapping_add(count) & SPAN) as i32
}

/// How far `a` is ahead of `b`; negative if behind. Correct as long as they are within 2^30.
pub fn ahead(a: i32, b: i32) -> i32 {
    let d = ((a as u32).wrapping_sub(b as u32)) & SPAN;
    if d > SPAN / 2 { d as i32 - i32::MAX - 1 } else { d as i32 }
}

const SPAN: u32 = i32::MAX as u32;

/// The state of one producer id in a partition.
#[derive(Debug)]
pub struct ProducerState {
    pub pid: i64,
    pub epoch: i16,
    /// The sequence after the last record known to be stored.
    settled: i32,
    /// The sequence after the last record sent.
    next: i32,
    /// The highest value `next` ever had.
    sent: i32,
    /// The broker has acknowledged something under this id and epoch. Until then it accepts *any* sequence as the
    /// first, so only one batch may be in flight.
    pub proven: bool,
    /// The broker's state does not match ours: the next batch starts a new epoch.
    pub bump: bool,
}

/// What must happen before the next batch is sent with its sequence numbers.
#[derive(PartialEq, Eq, Debug)]
pub enum Fit {
    /// Send it.
    Go,
    /// Send it, but an earlier attempt with this many lines may have been stored under other numbers.
    Uncertain(u32),
    /// Wait until nothing is in flight.
    Wait,
    /// The producer id has no epochs left.
    Spent,
}

impl ProducerState {
    pub fn new(pid: i64, epoch: i16) -> Self {
        ProducerState { pid, epoch, settled: 0, next: 0, sent: 0, proven: false, bump: false }
    }

    /// State of an earlier run in which this batch may be stored and nothing after it.
    pub fn resumed(open: Numbers, count: u32) -> Self {
        let Numbers { pid, epoch, base } = open;
        let sent = after(base, count);
        ProducerState { pid, epoch, settled: base, next: base, sent, proven: false, bump: false }
    }

    /// The batch may be stored under these numbers and keeps them when sent again.
    pub fn holds(&self, batch: &Batch) -> bool {
        let ours = |n: Numbers| (n.pid, n.epoch) == (self.pid, self.epoch);
        !self.bump && batch.maybe_stored && batch.numbers.is_some_and(ours)
    }

    /// Assigns sequence numbers to the next batch to send, or keeps the ones it has. `alone`: nothing is in flight;
    /// `rest`: the batches waiting behind it.
    pub fn fit<'b>(
        &mut self,
        batch: &mut Batch,
        alone: bool,
        rest: impl IntoIterator<Item = &'b Batch>,
    ) -> Fit {
        if alone {
            self.next = self.settled;
        }
        let ours = batch.numbers.filter(|n| n.pid == self.pid && n.epoch == self.epoch);
        if let Some(n) = ours.filter(|_| !self.bump) {
            if n.base == self.next {
                self.advance(batch.count);
                return Fit::Go;
            }
            // A later batch is stored, so this one is too. The broker will answer with its offset.
            if batch.maybe_stored && ahead(self.next, n.base) > 0 {
                return Fit::Go;
            }
        }
        let end = after(self.next, batch.count);
        // Other records may be stored under these numbers: the broker would drop this batch as a duplicate.
        let clash = |b: &Batch| {
            let ours = b.numbers.filter(|n| b.maybe_stored && n.pid == self.pid && n.epoch == self.epoch);
            ours.is_some_and(|n| ahead(end, n.base) > 0 && ahead(after(n.base, b.count), self.next) > 0)
        };
        if self.bump || (ours.is_some() && batch.maybe_stored) || rest.into_iter().any(clash) {
            if !alone {
                return Fit::Wait;
            }
            if self.epoch == i16::MAX {
                return Fit::Spent;
            }
            *self = ProducerState::new(self.pid, self.epoch + 1);
        }
        batch.numbers = Some(Numbers { pid: self.pid, epoch: self.epoch, base: self.next });
        self.advance(batch.count);
        if std::mem::take(&mut batch.maybe_stored) { Fit::Uncertain(batch.count) } else { Fit::Go }
    }

    fn advance(&mut self, count: u32) {
        self.next = after(self.next, count);
        if ahead(self.next, self.sent) > 0 {
            self.sent = self.next;
        }
    }

    /// The broker has stored this batch.
    pub fn stored(&mut self, batch: &Batch) {
        let Some(n) = batch.numbers.filter(|n| n.pid == self.pid && n.epoch == self.epoch) else { return };
        let end = after(n.base, batch.count);
        if ahead(end, self.settled) > 0 {
            self.settled = end;
        }
        self.proven = true;
    }

    /// Whether the leader has the batch, given the producer's `last` epoch and sequence there; `None`: unknown.
    pub fn has(&self, last: (i16, i32), batch: &Batch) -> Option<bool> {
        let n = batch.numbers.filter(|n| n.epoch == self.epoch)?;
        let end = after(last.1, 1);
        match last.0.cmp(&n.epoch) {
            Ordering::Less => Some(false),
            // Beyond anything we sent: another producer is using our id.
            Ordering::Equal if ahead(end, self.sent) > 0 => None,
            Ordering::Equal if ahead(end, after(n.base, batch.count)) >= 0 => Some(true),
            Ordering::Equal if ahead(n.base, last.1) > 0 => Some(false),
            Ordering::Equal | Ordering::Greater => None,
        }
    }

    #[cfg(test)]
    pub fn starting_at(mut self, next: i32) -> Self {
        (self.settled, self.next, self.sent) = (next, next, next);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::producer::testing::{batch, chunk, plain};

    fn lines(group_no: u64, n: usize) -> Batch {
        batch(group_no, vec![chunk(&plain(1), 0, &vec![&b"x"[..]; n])])
    }

    fn base(b: &Batch) -> (i16, i32) {
        b.numbers.map_or((-1, -1), |n| (n.epoch, n.base))
    }

    /// Fails when the wrap is off by one (0 follows 2147483647).
    #[test]
    fn sequences_wrap() {
        for (from, count, to) in [
            (0, 0, 0),
            (0, 5, 5),
            (i32::MAX, 1, 0),
            (i32::MAX - 1, 3, 1),
            (i32::MAX, u32::from(u16::MAX), 65534),
        ] {
            assert_eq!(after(from, count), to);
            assert_eq!(ahead(to, from), count as i32);
            assert_eq!(ahead(from, to), -(count as i32));
        }
    }

    /// Fails when sequences are not contiguous, including across the wrap.
    #[test]
    fn sequences_are_contiguous() {
        let mut n = ProducerState::new(9, 3).starting_at(i32::MAX - 1);
        let (mut a, mut b) = (lines(1, 3), lines(2, 1));
        assert_eq!((n.fit(&mut a, true, []), n.fit(&mut b, false, [])), (Fit::Go, Fit::Go));
        assert_eq!((base(&a), base(&b)), ((3, i32::MAX - 1), (3, 1)));
    }

    /// Fails when a resend changes the numbers of a batch that may be stored, or of one that a later batch proves
    /// stored.
    #[test]
    fn a_batch_that_may_be_stored_keeps_its_numbers() {
        let mut n = ProducerState::new(9, 0);
        let (mut a, mut b) = (lines(1, 2), lines(2, 2));
        n.fit(&mut a, true, []);
        n.fit(&mut b, false, []);
        a.maybe_stored = true;
        n.stored(&b);
        assert_eq!((n.fit(&mut a, true, []), base(&a)), (Fit::Go, (0, 0)));
        n.stored(&a);
        let mut c = lines(3, 1);
        assert_eq!((n.fit(&mut c, true, []), base(&c)), (Fit::Go, (0, 4)));
    }

    /// Fails when a freed number leaves a gap, or when a batch that may be stored is renumbered within its epoch.
    #[test]
    fn after_a_refusal_later_batches_close_the_gap() {
        for maybe_stored in [false, true] {
            let mut n = ProducerState::new(9, 0);
            let (mut a, mut b, mut c) = (lines(1, 2), lines(2, 2), lines(3, 2));
            for (i, x) in [&mut a, &mut b, &mut c].into_iter().enumerate() {
                n.fit(x, i == 0, []);
            }
            n.stored(&a);
            // b is a dead letter; c was answered with 45.
            c.maybe_stored = maybe_stored;
            let want = if maybe_stored { (Fit::Uncertain(2), (1, 0)) } else { (Fit::Go, (0, 2)) };
            assert_eq!((n.fit(&mut c, true, []), base(&c)), want);
            assert_eq!(n.proven, !maybe_stored, "the broker has acknowledged nothing in the new epoch");
        }
    }

    /// Fails when a batch gets numbers under which another may be stored: the broker would drop it as a duplicate.
    #[test]
    fn numbers_that_may_be_stored_are_never_reused() {
        let mut n = ProducerState::new(9, 0);
        let (mut a, mut b, mut late) = (lines(1, 2), lines(2, 2), lines(0, 1));
        n.fit(&mut a, true, []);
        n.fit(&mut b, false, []);
        n.stored(&a);
        b.maybe_stored = true;
        // It comes from a partition that no longer exists, and is older than the waiting batches.
        assert_eq!((n.fit(&mut late, true, [&b]), base(&late)), (Fit::Go, (1, 0)));
        assert_eq!((n.fit(&mut b, false, []), base(&b)), (Fit::Uncertain(2), (1, 1)));
    }

    /// Fails when a new epoch starts while batches of the old one are in flight, or twice for one loss.
    #[test]
    fn a_new_epoch_waits_and_renumbers_all_once() {
        let mut n = ProducerState::new(9, 0);
        let (mut a, mut b) = (lines(1, 2), lines(2, 2));
        n.fit(&mut a, true, []);
        n.fit(&mut b, false, []);
        (a.maybe_stored, b.maybe_stored, n.bump) = (true, true, true);
        assert_eq!(n.fit(&mut a, false, []), Fit::Wait);
        assert_eq!((n.fit(&mut a, true, []), base(&a)), (Fit::Uncertain(2), (1, 0)));
        n.stored(&a);
        assert_eq!((n.fit(&mut b, true, []), base(&b)), (Fit::Uncertain(2), (1, 2)));
        n.epoch = i16::MAX;
        n.bump = true;
        assert_eq!(n.fit(&mut b, true, []), Fit::Spent);
    }

    /// Fails when a last sequence within a batch, of another epoch, or beyond everything sent, counts as proof.
    #[test]
    fn what_a_leaders_last_sequence_proves() {
        let mut n = ProducerState::new(9, 5).starting_at(10);
        let (mut b, mut c) = (lines(1, 3), lines(2, 7));
        n.fit(&mut b, true, []);
        n.fit(&mut c, false, []);
        for (last, want) in [
            ((5, 12), Some(true)),
            ((5, 19), Some(true)),
            ((5, 20), None),
            ((5, 11), None),
            ((5, 9), Some(false)),
            ((4, 12), Some(false)),
            ((6, 0), None),
        ] {
            assert_eq!(n.has(last, &b), want, "{last:?}");
        }
    }
}
