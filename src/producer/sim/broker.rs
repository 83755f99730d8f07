//! The simulator's brokers, and failures on the driver's side.
//!
//! Producer state follows Kafka's `ProducerStateManager`: it keeps the last five batches, one after a restart. An
//! exact repeat is answered with its first offset, an unknown id may start anywhere, and a new epoch starts at 0.

use super::World;
use crate::producer::batch::{Batch, Numbers};
use crate::producer::driver::{Event, Pace, Refusal, Verdict};
use crate::producer::sequence::after;
use std::collections::{HashMap, VecDeque};

/// One partition on its broker, with the requests on their way to it.
#[derive(Default)]
pub(super) struct Log {
    pub lines: Vec<u64>,
    pub producers: HashMap<i64, Producer>,
    pub wire: VecDeque<Batch>,
    /// Batches of unknown outcome not yet reported to the core. Until they are, the driver sends no others.
    pub unreported: usize,
}

#[derive(Clone, Default)]
pub(super) struct Producer {
    pub epoch: i16,
    /// First and last sequence, first offset.
    pub last: VecDeque<(i32, i32, i64)>,
}

impl Log {
    /// Kafka's append: refusals first, then duplicates, then sequences.
    pub fn append(&mut self, numbers: Option<Numbers>, ids: &[u64]) -> Result<i64, i16> {
        if let Some(Numbers { pid, epoch, base }) = numbers {
            let end = after(base, ids.len() as u32 - 1);
            if let Some(p) = self.producers.get(&pid) {
                let repeat = p.last.iter().find(|l| p.epoch == epoch && (l.0, l.1) == (base, end));
                if let Some((_, _, offset)) = repeat {
                    return Ok(*offset);
                }
                if epoch < p.epoch {
                    return Err(47);
                }
                let expected = if epoch > p.epoch { Some(0) } else { p.last.back().map(|l| after(l.1, 1)) };
                if expected.is_some_and(|e| e != base) {
                    return Err(45);
                }
            }
            let p = self.producers.entry(pid).or_default();
            if p.epoch != epoch {
                *p = Producer { epoch, last: VecDeque::new() };
            }
            p.last.push_back((base, end, self.lines.len() as i64));
            if p.last.len() > 5 {
                p.last.pop_front();
            }
        }
        let offset = self.lines.len() as i64;
        self.lines.extend_from_slice(ids);
        Ok(offset)
    }

    /// A snapshot keeps one batch of each producer.
    pub fn restart(&mut self) {
        for p in self.producers.values_mut() {
            p.last.drain(..p.last.len().saturating_sub(1));
        }
    }
}

impl World<'_> {
    pub(super) fn again(&mut self, batch: Batch, maybe_stored: bool) {
        let pace = [Pace::Now, Pace::Backoff, Pace::Backoff, Pace::Blocked][self.rng.below(4)];
        self.logs.get_mut(&batch.partition).unwrap().unreported += usize::from(maybe_stored);
        self.done(batch, Verdict::Retry { maybe_stored, pace, why: "fault".into() });
    }

    pub(super) fn done(&mut self, batch: Batch, verdict: Verdict) {
        self.back.push_back(Event::Done { batch, verdict });
    }

    /// The broker handles a partition's next request.
    pub(super) fn serve(&mut self, id: i32) {
        let Some(batch) = self.logs.get_mut(&id).and_then(|l| l.wire.pop_front()) else { return };
        let ids = self.ids(&batch);
        if self.faults && self.chance(8) {
            return self.again(batch, false);
        }
        if let Some(what) = self.refuse(&batch, &ids) {
            return self.done(batch, Verdict::Refused { what, why: "refused".into() });
        }
        let result = self.logs.get_mut(&id).unwrap().append(batch.numbers, &ids);
        match result {
            // Appended, but the replicas were late, or the connection and the answer were lost.
            Ok(_) if self.faults && self.chance(8) => self.again(batch, true),
            Ok(_) if self.faults && self.chance(8) => {
                self.again(batch, true);
                self.cut(id);
            }
            Ok(offset) => self.done(batch, Verdict::Stored { offset: Some(offset) }),
            Err(code) => {
                self.done(batch, Verdict::SequenceError { new_id: code == 47, why: "numbers".into() })
            }
        }
    }

    fn refuse(&mut self, batch: &Batch, ids: &[u64]) -> Option<Refusal> {
        if !self.script.refusals {
            return None;
        }
        if batch.bytes > self.largest && batch.count > 1 {
            return Some(Refusal::TooLarge);
        }
        if self.faults && batch.restamped != Some(-1) && self.chance(3) {
            return Some(Refusal::Timestamp);
        }
        let bad: Vec<u32> = (0..).zip(ids).filter(|(_, id)| self.bad.contains(id)).map(|(i, _)| i).collect();
        if bad.is_empty() {
            return None;
        }
        let whats = [Refusal::TooLarge, Refusal::Something, Refusal::Records(bad), Refusal::Records(vec![])];
        whats.into_iter().nth(self.rng.below(4))
    }

    /// Loses the connection: some requests under way still arrive, the rest do not, and the core cannot tell which.
    pub(super) fn cut(&mut self, id: i32) {
        let wire: Vec<Batch> = self.logs.get_mut(&id).unwrap().wire.drain(..).collect();
        let arrive = self.rng.below(wire.len() + 1);
        let mut lost = Vec::new();
        for (i, batch) in wire.into_iter().enumerate() {
            let ids = self.ids(&batch);
            let bad = ids.iter().any(|id| self.bad.contains(id));
            if i < arrive && !bad && batch.bytes <= self.largest {
                let _ = self.logs.get_mut(&id).unwrap().append(batch.numbers, &ids);
            }
            lost.push(batch);
        }
        // A driver returns them in any order.
        while !lost.is_empty() {
            let batch = lost.swap_remove(self.rng.below(lost.len()));
            self.again(batch, true);
        }
    }

    pub(super) fn fault(&mut self) {
        let ids: Vec<i32> = self.logs.keys().copied().collect();
        let id = ids[self.rng.below(ids.len())];
        match self.rng.below(8) {
            0..=2 => self.cut(id),
            3 => ids.into_iter().for_each(|id| {
                self.cut(id);
                self.logs.get_mut(&id).unwrap().restart();
            }),
            4 => self.view(),
            5 if self.logs.len() < 6 && self.script.partitioner.is_none() => {
                self.logs.insert(ids.len() as i32, Log::default());
                self.view();
            }
            6 if self.script.refusals => self.largest = [40, 200, 5000][self.rng.below(3)],
            7 if self.script.amnesia => {
                let log = self.logs.get_mut(&id).unwrap();
                match self.rng.below(2) {
                    0 => log.producers.clear(),
                    _ => log.producers.values_mut().for_each(|p| {
                        *p = Producer { epoch: p.epoch + 1, last: VecDeque::from([(1 << 20, 1 << 20, 0)]) };
                    }),
                }
            }
            7 if self.script.reloads => self.reload(),
            7 if self.script.changes => {
                ids.into_iter().for_each(|id| self.cut(id));
                self.ready();
            }
            _ => {}
        }
    }
}
