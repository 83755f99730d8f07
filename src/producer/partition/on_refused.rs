//! What a refusal, a sequence error, or a leader's answer means for one partition.

use super::{Action, AfterDraining, Now, Partition, PartitionHealth};
use crate::producer::batch::Batch;
use crate::producer::driver::Refusal;
use std::time::Duration;

/// After this many consecutive failed questions, the leader counts as unable to answer (before 2.8, or no right to
/// read).
pub(super) const ASK_TIMES: u32 = 3;
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// As in [`Event::Described`](crate::producer::driver::Event::Described).
type LastKnown = Result<Option<(i16, i32)>, String>;

impl Partition {
    pub(super) fn refused(
        &mut self,
        mut batch: Batch,
        what: &Refusal,
        why: String,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        match what {
            Refusal::Timestamp => match batch.restamped {
                // The broker judges by its own clock. Sending no timestamp is the last resort.
                Some(-1) => {
                    self.return_waiting(batch);
                    self.drain(AfterDraining::Blocked, why);
                    return;
                }
                Some(_) => batch.restamped = Some(-1),
                None => batch.restamped = Some(now.wall_ms),
            },
            Refusal::Records(bad) => {
                let mut bad: Vec<u32> = bad.iter().copied().filter(|i| *i < batch.count).collect();
                bad.sort_unstable();
                if !bad.is_empty() {
                    self.drop_numbers(&batch);
                    let (good, bad) = batch.sift(&bad);
                    if let Some(good) = good {
                        self.push(good);
                    }
                    actions.push(Action::DeadLetter { batch: bad, why });
                } else {
                    self.split_refused(batch, why, actions);
                }
                self.drain(AfterDraining::Resume, String::new());
                return;
            }
            Refusal::TooLarge | Refusal::Something => {
                if *what == Refusal::TooLarge && batch.count > 1 {
                    actions.push(Action::TooLarge(batch.bytes));
                }
                self.split_refused(batch, why, actions);
                self.drain(AfterDraining::Resume, String::new());
                return;
            }
        }
        self.return_waiting(batch);
        self.drain(AfterDraining::Resume, String::new());
    }

    /// Drops the batch's sequence numbers before it gets new ones. If an attempt may have been stored under the old
    /// ones, only a new epoch keeps the broker from confusing the two.
    fn drop_numbers(&mut self, batch: &Batch) {
        if let Some(n) = self.producer.as_mut().filter(|_| batch.maybe_stored) {
            n.bump = true;
        }
    }

    fn split_refused(&mut self, batch: Batch, why: String, actions: &mut Vec<Action>) {
        if batch.count == 1 {
            actions.push(Action::DeadLetter { batch, why });
        } else {
            self.drop_numbers(&batch);
            let (front, back) = batch.halve();
            self.push(back);
            self.push(front);
        }
    }

    pub(super) fn sequence_error(
        &mut self,
        batch: Batch,
        new_id: bool,
        why: String,
        behind: bool,
        actions: &mut Vec<Action>,
    ) {
        let ours = batch.numbers;
        let maybe_stored = batch.maybe_stored;
        self.return_waiting(batch);
        match (&mut self.producer, ours) {
            (Some(n), Some(ours)) if new_id => {
                if n.pid == ours.pid {
                    actions.push(Action::NewId { pid: n.pid });
                    n.bump = true;
                }
                self.drain(AfterDraining::Now, why);
            }
            _ if behind || matches!(self.health, PartitionHealth::Draining(_)) => {
                self.drain(AfterDraining::Resume, String::new())
            }
            (Some(_), Some(_)) if maybe_stored => self.drain(AfterDraining::Ask, why),
            (Some(n), _) => {
                n.bump = true;
                self.drain(AfterDraining::Now, why);
            }
            // A driver without sequence numbers cannot report this; retry in any case.
            (None, _) => self.drain(AfterDraining::Backoff, why),
        }
    }

    /// Handles the leader's answer about our producer id, for the first batch.
    pub fn described(&mut self, pid: i64, last: LastKnown, now: Now, actions: &mut Vec<Action>) {
        if let Some(past) = self.pasts.front() {
            if past.pid == pid && matches!(self.health, PartitionHealth::Asking { .. }) {
                self.check_past(last, now, actions);
            }
            return;
        }
        let ours = self.producer.as_ref().is_some_and(|n| n.pid == pid);
        if ours && matches!(self.health, PartitionHealth::Asking { .. }) {
            self.learned(last, now, actions);
        }
    }

    pub(super) fn learned(&mut self, last: LastKnown, now: Now, actions: &mut Vec<Action>) {
        if last.is_err() && self.unasked < ASK_TIMES {
            // The leader may be moving or starting. The question is asked again when the batch is sent again.
            self.unasked += 1;
            self.health = PartitionHealth::Waiting { until: now.at + ASK_AGAIN };
            return;
        }
        self.health = PartitionHealth::Waiting { until: now.at };
        self.unasked = 0;
        let (Some(n), Some(first)) = (&mut self.producer, self.pending.front_mut()) else { return };
        match last.ok().flatten().and_then(|last| n.has(last, first)) {
            Some(true) => {
                n.stored(first);
                if let Some(batch) = self.pending.pop_front() {
                    actions.push(Action::Stored { batch, offset: None });
                }
            }
            Some(false) => {
                first.maybe_stored = false;
                n.bump = true;
            }
            None => n.bump = true,
        }
    }
}
