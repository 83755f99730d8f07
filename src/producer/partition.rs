//! One partition of a topic: which of its batches may leave, and what a verdict means for them. Pure: time, chance and
//! the producer id come in, [`Action`]s go out; it sends nothing, writes no file and knows no other partition.
//!
//! ```text
//!            trouble, or a refusal         the last one is back        until is reached
//!   Up ─────────────────────▶ Draining ─────────────────▶ Waiting ─────────────────▶ Probing
//!    ▲                           ▲  └─ state lost? ─▶ Asking ─▶ Waiting                 │ │
//!    └───────── stored ──────────┼──────────────────────────────────────────────────────┘ │
//!                                └────────────────────── anything else ───────────────────┘
//! ```
//!
//! What a refusal, wrong numbers and a leader's answer mean is in `partition/judge.rs`.
//!
//! Invariant: nothing leaves while Draining, so what comes back is sent again in its order; the first one flies alone, and
//! so does each whose outcome is unknown.

mod on_refused;
pub mod producer_recovery;

use super::batch::{Batch, Place};
use super::driver::{Pace, Verdict};
use super::sequence::{Fit, ProducerState};
use crate::backoff::{BLOCKED, Backoff, Rng};
use producer_recovery::PastProducer;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A moment, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub at: Instant,
    /// Milliseconds since 1970, as the machine has it.
    pub wall_ms: i64,
}

/// What the driver allows, and the producer id if it needs one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    Plain,
    /// With the id and its first epoch, `None` until the driver has got one.
    Numbered {
        in_flight: usize,
        id: Option<(i64, i16)>,
        /// Exactly-once: of each partition, one batch is in the air at most.
        once: bool,
    },
}

/// What the partition wants done.
#[derive(Debug)]
pub enum Action {
    /// To be handed to the driver, in this order.
    Send(Batch),
    Stored {
        batch: Batch,
        offset: Option<i64>,
    },
    /// These records can never be taken: write them to the dead letters, or give them back by [`Partition::hold`].
    DeadLetter {
        batch: Batch,
        why: String,
    },
    /// The driver shall ask what the leader knows; the answer goes to [`Partition::knows`].
    Ask {
        pid: i64,
    },
    /// This producer id can be used no longer.
    NewId {
        pid: i64,
    },
    /// This many lines are sent again although an earlier attempt, under other numbers, may have been stored.
    Uncertain(u32),
    /// The same without numbers: they stand twice if it had been.
    Doubled(u32),
    /// The broker takes no batch of so many bytes of lines.
    TooLarge(usize),
    /// A batch of an earlier run goes again with its numbers. `found`: the leader says that it has it.
    Retry {
        found: bool,
    },
}

#[derive(Debug)]
pub struct Partition {
    pub id: i32,
    /// What the driver has, in the order it left.
    air: Vec<Place>,
    /// What has not left, or has come back, in order of place.
    pending: VecDeque<Batch>,
    health: Health,
    /// Failures in a row.
    attempts: u32,
    why: String,
    numbering: Option<ProducerState>,
    /// Questions to the leader in a row that could not be asked.
    unasked: u32,
    /// When something was last stored.
    stored_at: Option<Instant>,
    /// Exactly-once: what the leader is to be asked before anything leaves, in this order.
    pasts: VecDeque<PastProducer>,
}

#[derive(Debug)]
enum Health {
    Up,
    /// Until all in the air have come back.
    Draining(Then),
    Waiting {
        until: Instant,
    },
    /// The first batch is on its way alone.
    Probing,
    /// The leader is asked about the first batch.
    Asking {
        until: Instant,
    },
}

/// What comes after draining; of several reasons the greatest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Then {
    /// Nothing is wrong with the broker: batches were refused and taken apart, or came back because of an earlier one.
    Resume,
    Now,
    Backoff,
    Blocked,
    Ask,
}

/// An unanswered question is as good as a refused one (drivers answer within 30 s).
const PATIENCE: Duration = Duration::from_secs(60);

/// After so long without a batch the broker may have forgotten us (`producer.id.expiration.ms`, 24 h by default, may be set
/// lower).
const IDLE: Duration = Duration::from_secs(600);

/// Failures at "now" in a row before they wait like others: a leader that moves to and fro must not make a busy loop.
const AT_ONCE: u32 = 3;

impl Partition {
    pub fn new(id: i32) -> Self {
        Partition {
            id,
            air: Vec::new(),
            pending: VecDeque::new(),
            health: Health::Up,
            attempts: 0,
            why: String::new(),
            numbering: None,
            unasked: 0,
            stored_at: None,
            pasts: VecDeque::new(),
        }
    }

    /// With an id that an earlier run has used.
    pub fn remembering(id: i32, pasts: VecDeque<PastProducer>) -> Self {
        Partition { pasts, ..Partition::new(id) }
    }

    /// Fit for new lines that may as well go elsewhere.
    pub fn is_up(&self) -> bool {
        matches!(self.health, Health::Up) && self.pasts.is_empty()
    }

    /// Batches that are not done, wherever they are.
    pub fn open(&self) -> usize {
        self.air.len() + self.pending.len()
    }

    /// Failures in a row and the last one's reason; `None` when all is well.
    pub fn trouble(&self) -> Option<(u32, &str)> {
        (self.attempts > 0).then_some((self.attempts, self.why.as_str()))
    }

    /// When [`Partition::launch`] has something to do next, whatever comes in.
    pub fn wake(&self) -> Option<Instant> {
        match self.health {
            Health::Waiting { until } | Health::Asking { until } => Some(until),
            Health::Up | Health::Draining(_) | Health::Probing => None,
        }
    }

    /// One more batch of this partition.
    pub fn push(&mut self, batch: Batch) {
        let place = batch.place();
        // Exactly-once: an open intent is the partition's only one, so the batch goes before all others, and so do the parts
        // of one that was refused: their intent is void only when they have their own.
        let rank = |b: &Batch| (b.noted.is_none(), b.intent == 0);
        let at = self.pending.partition_point(|p| (rank(p), p.place()) < (rank(&batch), place));
        self.pending.insert(at, batch);
    }

    /// The broker may know none of our numbers: it has forgotten them, or its log is another one (a re-created topic).
    pub fn unproven(&mut self) {
        if let Some(n) = &mut self.numbering {
            n.proven = false;
        }
    }

    /// All that waits, for another partition: this one exists no more.
    pub fn leave(&mut self) -> VecDeque<Batch> {
        std::mem::take(&mut self.pending)
    }

    /// What has not left.
    pub fn pending(&self) -> impl Iterator<Item = &Batch> {
        self.pending.iter()
    }

    pub fn in_air(&self) -> usize {
        self.air.len()
    }

    /// Something failed, nothing is in the air, and nothing that waits may be stored already.
    pub fn is_stuck(&self) -> bool {
        self.attempts > 0 && self.air.is_empty() && !self.pending.iter().any(|b| b.maybe_stored)
    }

    /// Sends what may leave now.
    pub fn launch(&mut self, now: Now, rules: Rules, actions: &mut Vec<Action>) {
        if !self.pasts.is_empty() {
            return self.ask_about_past(now, actions);
        }
        match self.health {
            Health::Asking { until } if now.at >= until => {
                self.learned(Err("no answer".into()), now, actions);
                self.launch(now, rules, actions);
            }
            Health::Waiting { until } if now.at >= until => {
                if self.pending.is_empty() {
                    self.recover();
                } else if self.send_first(rules, actions) {
                    self.health = Health::Probing;
                }
            }
            Health::Up => {
                if self.air.is_empty() && self.stored_at.is_some_and(|at| now.at - at > IDLE) {
                    self.unproven();
                }
                self.fill(rules, actions);
            }
            Health::Asking { .. } | Health::Waiting { .. } | Health::Draining(_) | Health::Probing => {}
        }
    }

    /// As many as may be in the air at once. One of unknown outcome flies alone: if the broker has forgotten it, the next
    /// would be taken for the first, and what the leader knows would prove nothing any more.
    fn fill(&mut self, rules: Rules, actions: &mut Vec<Action>) {
        loop {
            let Some(doubtful) = self.pending.front().map(|b| b.maybe_stored) else { return };
            let most = match rules {
                Rules::Numbered { once: true, .. } => 1,
                Rules::Numbered { in_flight, .. } if self.is_proven(rules) && !doubtful => in_flight,
                Rules::Numbered { .. } | Rules::Plain => 1,
            };
            if self.air.len() >= most.max(1) || !self.send_first(rules, actions) {
                return;
            }
            if doubtful && rules != Rules::Plain {
                self.health = Health::Probing;
                return;
            }
        }
    }

    fn is_proven(&self, rules: Rules) -> bool {
        rules == Rules::Plain || self.numbering.as_ref().is_some_and(|n| n.proven)
    }

    /// `false`: there is none, or it may not leave yet.
    fn send_first(&mut self, rules: Rules, actions: &mut Vec<Action>) -> bool {
        let Some(mut batch) = self.pending.pop_front() else { return false };
        let goes = match rules {
            Rules::Plain => {
                batch.numbers = None;
                if std::mem::take(&mut batch.maybe_stored) {
                    actions.push(Action::Doubled(batch.count));
                }
                true
            }
            Rules::Numbered { id, once, .. } => self.number(&mut batch, id, once, actions),
        };
        if !goes {
            self.pending.push_front(batch);
            return false;
        }
        self.air.push(batch.place());
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
        let alone = self.air.is_empty();
        let numbering = match &mut self.numbering {
            Some(n) if n.pid == pid && n.epoch >= epoch => n,
            Some(n) if once && n.holds(batch) => n,
            // Another id: only once nothing of the old one is under way.
            Some(_) if !alone => return false,
            other => other.insert(ProducerState::new(pid, epoch)),
        };
        match numbering.fit(batch, alone, &self.pending) {
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

    /// A batch has come back.
    pub fn done(
        &mut self,
        mut batch: Batch,
        verdict: Verdict,
        now: Now,
        rng: &mut Rng,
        actions: &mut Vec<Action>,
    ) {
        let place = batch.place();
        let Some(i) = self.air.iter().position(|p| *p == place) else {
            debug_assert!(false, "a batch came back twice: {place:?}");
            return;
        };
        self.air.remove(i);
        // Broken lines behind an earlier one that is not stored are that one's fault.
        let behind =
            self.air.iter().any(|p| *p < place) || self.pending.front().is_some_and(|p| p.place() < place);
        match verdict {
            Verdict::Stored { offset } => {
                self.stored_at = Some(now.at);
                self.stored(batch, offset, actions);
            }
            Verdict::Retry { maybe_stored, pace, why } => {
                batch.maybe_stored |= maybe_stored;
                let then = match pace {
                    Pace::Now => Then::Now,
                    Pace::Backoff => Then::Backoff,
                    Pace::Blocked => Then::Blocked,
                };
                self.give_back(batch);
                self.drain(then, why);
            }
            Verdict::Refused { what, why } => self.refused(batch, &what, why, now, actions),
            Verdict::SequenceError { new_id, why } => self.misnumbered(batch, new_id, why, behind, actions),
        }
        self.settle(now, rng, actions);
    }

    /// These records were to be buried and could not be: the topic waits until they can.
    pub fn hold(&mut self, batch: Batch, why: String, now: Now, rng: &mut Rng, actions: &mut Vec<Action>) {
        self.give_back(batch);
        self.drain(Then::Blocked, why);
        self.settle(now, rng, actions);
    }

    fn stored(&mut self, batch: Batch, offset: Option<i64>, actions: &mut Vec<Action>) {
        if let Some(n) = &mut self.numbering {
            n.stored(&batch);
        }
        if matches!(self.health, Health::Probing) {
            self.recover();
        }
        actions.push(Action::Stored { batch, offset });
    }

    fn recover(&mut self) {
        self.health = Health::Up;
        self.attempts = 0;
        self.why.clear();
    }

    fn give_back(&mut self, mut batch: Batch) {
        batch.attempts = batch.attempts.saturating_add(1);
        self.push(batch);
    }

    fn drain(&mut self, then: Then, why: String) {
        let before = if let Health::Draining(before) = self.health { before } else { Then::Resume };
        if then > Then::Resume && (then >= before || self.why.is_empty()) {
            self.why = why;
        }
        self.health = Health::Draining(then.max(before));
    }

    /// Leaves Draining when all have come back.
    fn settle(&mut self, now: Now, rng: &mut Rng, actions: &mut Vec<Action>) {
        let Health::Draining(then) = self.health else { return };
        if !self.air.is_empty() {
            return;
        }
        if then > Then::Resume {
            self.attempts = self.attempts.saturating_add(1);
        }
        let wait = match then {
            Then::Resume => Duration::ZERO,
            Then::Now | Then::Ask if self.attempts <= AT_ONCE => Duration::ZERO,
            Then::Now | Then::Ask | Then::Backoff => Backoff::QUICK.pause(self.attempts, rng),
            Then::Blocked => BLOCKED,
        };
        self.health = match (then, &self.numbering) {
            (Then::Ask, Some(n)) => {
                actions.push(Action::Ask { pid: n.pid });
                Health::Asking { until: now.at + PATIENCE }
            }
            _ => Health::Waiting { until: now.at + wait },
        };
    }
}

#[cfg(test)]
mod tests;
