//! One partition of a topic: which of its batches may be sent, and what each verdict means for them. No I/O: time,
//! randomness and the producer id are arguments, [`Action`]s are the result.
//!
//! ```text
//!            trouble, or a refusal         the last one is back        until is reached
//!   Up ─────────────────────▶ Draining ─────────────────▶ Waiting ─────────────────▶ Probing
//!    ▲                           ▲  └─ state lost? ─▶ Asking ─▶ Waiting                 │ │
//!    └───────── stored ──────────┼──────────────────────────────────────────────────────┘ │
//!                                └────────────────────── anything else ───────────────────┘
//! ```
//!
//! What refusals, sequence errors and a leader's answers mean is in `partition/on_refused.rs`.
//!
//! Invariant: nothing is sent while Draining, so returned batches are sent again in order. The first of them is sent
//! alone, and so is each batch whose outcome is unknown.

mod on_refused;
pub mod producer_recovery;

use super::batch::{Batch, Place};
use super::driver::{Pace, Verdict};
use super::sequence::{Fit, ProducerState};
use crate::backoff::{BLOCKED, Backoff, Rng};
use producer_recovery::PastProducer;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A point in time, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub at: Instant,
    /// Wall clock in milliseconds since 1970.
    pub wall_ms: i64,
}

/// What the driver allows, and the producer id if it needs one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendRules {
    Plain,
    /// With the producer id and its first epoch; `None` until the driver has one.
    Idempotent {
        in_flight: usize,
        id: Option<(i64, i16)>,
        /// Exactly-once: at most one batch of each partition is in flight.
        once: bool,
    },
}

/// What the core must do for the partition.
#[derive(Debug)]
pub enum Action {
    /// Hand these to the driver, in this order.
    Send(Batch),
    Stored {
        batch: Batch,
        offset: Option<i64>,
    },
    /// These records will never be accepted: write them as dead letters, or return them with [`Partition::hold`].
    DeadLetter {
        batch: Batch,
        why: String,
    },
    /// Ask the leader what it knows; the answer goes to [`Partition::described`].
    Ask {
        pid: i64,
    },
    /// This producer id can no longer be used.
    NewId {
        pid: i64,
    },
    /// This many lines are sent again although an earlier attempt under other numbers may have been stored.
    Uncertain(u32),
    /// The same without sequence numbers: if it was stored, the lines are duplicated.
    Doubled(u32),
    /// The broker does not accept a batch with this many bytes of lines.
    TooLarge(usize),
    /// An earlier run's batch is sent again with its sequence numbers. `found`: the leader says it has the batch.
    Retry {
        found: bool,
    },
}

#[derive(Debug)]
pub struct Partition {
    pub id: i32,
    /// Batches the driver holds, in the order they were sent.
    in_flight: Vec<Place>,
    /// Batches not yet sent, or returned, in order of place.
    pending: VecDeque<Batch>,
    health: PartitionHealth,
    /// Consecutive failures.
    attempts: u32,
    why: String,
    producer: Option<ProducerState>,
    /// Consecutive failures to ask the leader.
    unasked: u32,
    /// When a batch was last stored.
    stored_at: Option<Instant>,
    /// Exactly-once: questions for the leader before anything is sent, in this order.
    pasts: VecDeque<PastProducer>,
}

#[derive(Debug)]
enum PartitionHealth {
    Up,
    /// Waiting for all batches in flight to return.
    Draining(AfterDraining),
    Waiting {
        until: Instant,
    },
    /// The first batch is in flight alone.
    Probing,
    /// Waiting for the leader's answer about the first batch.
    Asking {
        until: Instant,
    },
}

/// What follows draining; of several reasons the greatest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum AfterDraining {
    /// The broker is fine: batches were refused and split, or returned because of an earlier one.
    Resume,
    Now,
    Backoff,
    Blocked,
    Ask,
}

/// Drivers answer within 30 s. A question still open after this counts as refused.
const PATIENCE: Duration = Duration::from_secs(60);

/// After this long without a batch the broker may have forgotten the producer (`producer.id.expiration.ms`, 24 h by
/// default, may be lower).
const IDLE: Duration = Duration::from_secs(600);

/// Maximum consecutive immediate retries before backing off: a leader that keeps moving must not cause a busy loop.
const AT_ONCE: u32 = 3;

impl Partition {
    pub fn new(id: i32) -> Self {
        Partition {
            id,
            in_flight: Vec::new(),
            pending: VecDeque::new(),
            health: PartitionHealth::Up,
            attempts: 0,
            why: String::new(),
            producer: None,
            unasked: 0,
            stored_at: None,
            pasts: VecDeque::new(),
        }
    }

    /// With producer ids used by an earlier run.
    pub fn with_recovered(id: i32, pasts: VecDeque<PastProducer>) -> Self {
        Partition { pasts, ..Partition::new(id) }
    }

    /// Whether it takes new lines that could also go to another partition.
    pub fn is_up(&self) -> bool {
        matches!(self.health, PartitionHealth::Up) && self.pasts.is_empty()
    }

    /// Number of batches not yet done.
    pub fn open(&self) -> usize {
        self.in_flight.len() + self.pending.len()
    }

    /// Consecutive failures and the last reason; `None` when healthy.
    pub fn trouble(&self) -> Option<(u32, &str)> {
        (self.attempts > 0).then_some((self.attempts, self.why.as_str()))
    }

    /// When [`Partition::launch`] next has work even if nothing happens.
    pub fn wake(&self) -> Option<Instant> {
        match self.health {
            PartitionHealth::Waiting { until } | PartitionHealth::Asking { until } => Some(until),
            PartitionHealth::Up | PartitionHealth::Draining(_) | PartitionHealth::Probing => None,
        }
    }

    /// Adds a batch.
    pub fn push(&mut self, batch: Batch) {
        let place = batch.place();
        // Exactly-once: a partition has only one open intent, so its batch precedes all others. So do the parts of a
        // refused batch, because its intent is void only once they have their own.
        let rank = |b: &Batch| (b.noted.is_none(), b.intent == 0);
        let at = self.pending.partition_point(|p| (rank(p), p.place()) < (rank(&batch), place));
        self.pending.insert(at, batch);
    }

    /// The broker may not know our sequence numbers: it has forgotten them, or the topic was re-created and its log is
    /// new.
    pub fn unproven(&mut self) {
        if let Some(n) = &mut self.producer {
            n.proven = false;
        }
    }

    /// Removes all pending batches, which move to another partition because this one no longer exists.
    pub fn leave(&mut self) -> VecDeque<Batch> {
        std::mem::take(&mut self.pending)
    }

    /// Batches not yet sent.
    pub fn pending(&self) -> impl Iterator<Item = &Batch> {
        self.pending.iter()
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Something failed, nothing is in flight, and no pending batch may already be stored.
    pub fn is_stuck(&self) -> bool {
        self.attempts > 0 && self.in_flight.is_empty() && !self.pending.iter().any(|b| b.maybe_stored)
    }

    /// The leader can be reached again, so the wait for that is over. Otherwise its backoff and this one would add up.
    pub fn leader_returned(&mut self, now: Now) {
        if let PartitionHealth::Waiting { until } = &mut self.health
            && *until <= now.at + Backoff::QUICK.most
        {
            *until = now.at;
        }
    }

    /// Sends what may be sent now.
    pub fn launch(&mut self, now: Now, rules: SendRules, actions: &mut Vec<Action>) {
        if !self.pasts.is_empty() {
            return self.ask_about_past(now, actions);
        }
        match self.health {
            PartitionHealth::Asking { until } if now.at >= until => {
                self.learned(Err("no answer".into()), now, actions);
                self.launch(now, rules, actions);
            }
            PartitionHealth::Waiting { until } if now.at >= until => {
                if self.pending.is_empty() {
                    self.recover();
                } else if self.send_first(rules, actions) {
                    self.health = PartitionHealth::Probing;
                }
            }
            PartitionHealth::Up => {
                if self.in_flight.is_empty() && self.stored_at.is_some_and(|at| now.at - at > IDLE) {
                    self.unproven();
                }
                self.fill(rules, actions);
            }
            PartitionHealth::Asking { .. }
            | PartitionHealth::Waiting { .. }
            | PartitionHealth::Draining(_)
            | PartitionHealth::Probing => {}
        }
    }

    /// Sends up to the in-flight limit. A batch of unknown outcome is sent alone: if the broker has forgotten the
    /// producer, it would take the next batch for the first one, and the leader's state would no longer prove
    /// anything.
    fn fill(&mut self, rules: SendRules, actions: &mut Vec<Action>) {
        loop {
            let Some(doubtful) = self.pending.front().map(|b| b.maybe_stored) else { return };
            let most = match rules {
                SendRules::Idempotent { once: true, .. } => 1,
                SendRules::Idempotent { in_flight, .. } if self.is_proven(rules) && !doubtful => in_flight,
                SendRules::Idempotent { .. } | SendRules::Plain => 1,
            };
            if self.in_flight.len() >= most.max(1) || !self.send_first(rules, actions) {
                return;
            }
            if doubtful && rules != SendRules::Plain {
                self.health = PartitionHealth::Probing;
                return;
            }
        }
    }

    fn is_proven(&self, rules: SendRules) -> bool {
        rules == SendRules::Plain || self.producer.as_ref().is_some_and(|n| n.proven)
    }

    /// `false`: there is none, or it may not be sent yet.
    fn send_first(&mut self, rules: SendRules, actions: &mut Vec<Action>) -> bool {
        let Some(mut batch) = self.pending.pop_front() else { return false };
        let goes = match rules {
            SendRules::Plain => {
                batch.numbers = None;
                if std::mem::take(&mut batch.maybe_stored) {
                    actions.push(Action::Doubled(batch.count));
                }
                true
            }
            SendRules::Idempotent { id, once, .. } => self.number(&mut batch, id, once, actions),
        };
        if !goes {
            self.pending.push_front(batch);
            return false;
        }
        self.in_flight.push(batch.place());
        actions.push(Action::Send(batch));
        true
    }

    fn number(
        &mut self,
        batch: &mut Batch,
        id: Option<(i64, i16)>,
        once: bool,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some((pid, epoch)) = id else { return false };
        let alone = self.in_flight.is_empty();
        let producer = match &mut self.producer {
            Some(n) if n.pid == pid && n.epoch >= epoch => n,
            Some(n) if once && n.holds(batch) => n,
            // A new producer id is used only once nothing sent under the old one is in flight.
            Some(_) if !alone => return false,
            other => other.insert(ProducerState::new(pid, epoch)),
        };
        match producer.fit(batch, alone, &self.pending) {
            Fit::Go => true,
            Fit::Uncertain(lines) => {
                actions.push(Action::Uncertain(lines));
                true
            }
            Fit::Wait => false,
            Fit::Spent => {
                actions.push(Action::NewId { pid });
                false
            }
        }
    }

    /// Handles a batch that the driver returned.
    pub fn done(
        &mut self,
        mut batch: Batch,
        verdict: Verdict,
        now: Now,
        rng: &mut Rng,
        actions: &mut Vec<Action>,
    ) {
        let place = batch.place();
        let Some(i) = self.in_flight.iter().position(|p| *p == place) else {
            debug_assert!(false, "a batch was returned twice: {place:?}");
            return;
        };
        self.in_flight.remove(i);
        // A sequence error behind an earlier batch that is not stored is caused by that batch.
        let behind = self.in_flight.iter().any(|p| *p < place)
            || self.pending.front().is_some_and(|p| p.place() < place);
        match verdict {
            Verdict::Stored { offset } => {
                self.stored_at = Some(now.at);
                self.stored(batch, offset, actions);
            }
            Verdict::Retry { maybe_stored, pace, why } => {
                batch.maybe_stored |= maybe_stored;
                let follows = behind || matches!(self.health, PartitionHealth::Draining(_));
                let then = match pace {
                    // An earlier batch decides what follows. If that one was refused and split, all is well.
                    Pace::Now if follows => AfterDraining::Resume,
                    Pace::Now => AfterDraining::Now,
                    Pace::Backoff => AfterDraining::Backoff,
                    Pace::Blocked => AfterDraining::Blocked,
                };
                self.return_waiting(batch);
                self.drain(then, why);
            }
            Verdict::Refused { what, why } => self.refused(batch, &what, why, now, actions),
            Verdict::SequenceError { new_id, why } => {
                self.sequence_error(batch, new_id, why, behind, actions)
            }
        }
        self.settle(now, rng, actions);
    }

    /// These dead letters could not be written: the topic waits until they can.
    pub fn hold(&mut self, batch: Batch, why: String, now: Now, rng: &mut Rng, actions: &mut Vec<Action>) {
        self.return_waiting(batch);
        self.drain(AfterDraining::Blocked, why);
        self.settle(now, rng, actions);
    }

    fn stored(&mut self, batch: Batch, offset: Option<i64>, actions: &mut Vec<Action>) {
        if let Some(n) = &mut self.producer {
            n.stored(&batch);
        }
        if matches!(self.health, PartitionHealth::Probing) {
            self.recover();
        }
        actions.push(Action::Stored { batch, offset });
    }

    fn recover(&mut self) {
        self.health = PartitionHealth::Up;
        self.attempts = 0;
        self.why.clear();
    }

    fn return_waiting(&mut self, mut batch: Batch) {
        batch.attempts = batch.attempts.saturating_add(1);
        self.push(batch);
    }

    fn drain(&mut self, then: AfterDraining, why: String) {
        let before =
            if let PartitionHealth::Draining(before) = self.health { before } else { AfterDraining::Resume };
        if then > AfterDraining::Resume && (then >= before || self.why.is_empty()) {
            self.why = why;
        }
        self.health = PartitionHealth::Draining(then.max(before));
    }

    /// Leaves Draining once all batches have been returned.
    fn settle(&mut self, now: Now, rng: &mut Rng, actions: &mut Vec<Action>) {
        let PartitionHealth::Draining(then) = self.health else { return };
        if !self.in_flight.is_empty() {
            return;
        }
        if then > AfterDraining::Resume {
            self.attempts = self.attempts.saturating_add(1);
        }
        let wait = match then {
            AfterDraining::Resume => Duration::ZERO,
            AfterDraining::Now | AfterDraining::Ask if self.attempts <= AT_ONCE => Duration::ZERO,
            AfterDraining::Now | AfterDraining::Ask | AfterDraining::Backoff => {
                Backoff::QUICK.pause(self.attempts, rng)
            }
            AfterDraining::Blocked => BLOCKED,
        };
        self.health = match (then, &self.producer) {
            (AfterDraining::Ask, Some(n)) => {
                actions.push(Action::Ask { pid: n.pid });
                PartitionHealth::Asking { until: now.at + PATIENCE }
            }
            _ => PartitionHealth::Waiting { until: now.at + wait },
        };
    }
}

#[cfg(test)]
mod tests;
