//! One topic's queue: holds arriving chunks, forms batch groups from them and passes the batches to the topic's
//! partitions. Time and randomness are arguments.

use super::batch::{Batch, BatchGroup, PendingAcks};
use super::driver::TopicView;
use super::partition::{Now, Partition, SendRules};
use super::partitioner::{BatchPart, Distribution, Limit, wire};
use super::recovered::RecoveredTopic;
use super::{Partitioner, ProducerOptions};
use crate::backoff::Rng;
use crate::chunk::Chunk;
use crate::clock;
use crate::record::{BatchGroupNo, Key, Topic};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct TopicQueue {
    pub topic: Topic,
    partitioner: Partitioner,
    linger: Duration,
    batch: Cap,
    /// `None` until the driver knows the topic's partitions. Both lists are in order.
    view: Option<TopicView>,
    /// The view's partitions, in order, and removed ones that still have batches in flight.
    partitions: Vec<Partition>,
    /// In order of arrival.
    waiting: VecDeque<(Instant, Chunk)>,
    /// Invariant: the total bytes of the chunks in `waiting`.
    waiting_bytes: usize,
    /// Round-robin position among equally busy partitions.
    turn: usize,
    trouble: Option<TopicTrouble>,
    /// Exactly-once: state of an earlier run. Its groups wait until the partitions are known.
    memory: RecoveredTopic,
    seed: u64,
    /// See [`ProducerOptions::saved_ms`].
    saved_ms: i64,
    /// Memory of [`TopicQueue::form`], empty in between.
    spare: (Vec<i32>, Vec<BatchPart>),
}

/// When the next batch group may be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ready {
    Now,
    /// At this time, if nothing changes before.
    At(Instant),
    /// Something else must happen first: lines, the partitions, or a completion.
    No,
}

/// Reports a change of the queue's state.
#[derive(PartialEq, Eq, Debug)]
pub enum QueueChange {
    Trouble { attempts: u32, partitions: Vec<i32>, why: String },
    Well { after: Duration, attempts: u32 },
}

#[derive(Debug)]
struct TopicTrouble {
    since: Instant,
    attempts: u32,
}

/// How long lines wait for a batch in flight when another partition, or room for one more batch, is available. A
/// broker that does not answer is only known as down after its time-out, and must not delay other partitions' lines
/// until then.
const PATIENCE: Duration = Duration::from_millis(100);
/// The same for drivers without sequence numbers, which keep one batch group of a topic in flight.
const PLAIN_PATIENCE: Duration = Duration::from_secs(1);
/// A group that is distributed over partitions holds up to this many batches' worth of lines, but at most one per
/// partition.
const SPREAD: usize = 4;

/// Maximum batches of one partition in flight.
fn most_open(rules: SendRules) -> usize {
    match rules {
        SendRules::Plain => 1,
        SendRules::Idempotent { in_flight, .. } => in_flight.max(1),
    }
}

impl TopicQueue {
    pub fn new(topic: Topic, options: &ProducerOptions) -> Self {
        TopicQueue {
            memory: RecoveredTopic::default(),
            seed: options.seed,
            saved_ms: options.saved_ms,
            topic,
            partitioner: options.partitioner,
            linger: options.linger,
            batch: Cap::new(options.batch),
            view: None,
            partitions: Vec::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            turn: options.seed as usize,
            trouble: None,
            spare: Default::default(),
        }
    }

    /// With the state of an earlier run.
    pub fn with_recovered(self, memory: RecoveredTopic) -> Self {
        TopicQueue { memory, ..self }
    }

    /// Applies new options from the next group on.
    pub fn tune(&mut self, options: &ProducerOptions) {
        (self.partitioner, self.linger) = (options.partitioner, options.linger);
        if let Some(view) = self.view.take() {
            self.add_partitions(&view);
            self.view = Some(view);
        }
        if self.batch.most != options.batch.max(1) {
            self.batch = Cap::new(options.batch);
        }
    }

    /// The topic now belongs to another cluster: its id cannot be compared with the previous one.
    pub fn elsewhere(&mut self) {
        if let Some(view) = &mut self.view {
            view.id = [0; 16];
        }
    }

    /// Batches the driver holds.
    pub fn in_flight(&self) -> usize {
        self.partitions.iter().map(Partition::in_flight).sum()
    }

    pub fn push(&mut self, chunk: Chunk, now: Now) {
        self.waiting_bytes += chunk.bytes.len();
        self.waiting.push_back((chunk.noticed.min(now.at), chunk));
    }

    /// Nothing waits and nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.is_in_flight() && self.in_flight() == 0
    }

    /// Nothing waits to be sent.
    pub fn is_in_flight(&self) -> bool {
        self.waiting.is_empty()
            && self.memory.groups.is_empty()
            && self.partitions.iter().all(|p| p.open() == p.in_flight())
    }

    /// Nothing is in flight, and the rest cannot be sent: the topic's partitions are unknown, or every partition that
    /// holds batches or could take the waiting lines has failed. Batches that may be stored are worth waiting for: this
    /// run can resend them without duplicates, the next one cannot.
    pub fn is_stuck(&self) -> bool {
        let elsewhere = |p: &Partition| self.fixed().is_some_and(|n| n != p.id);
        let unneeded = |p: &Partition| p.open() == 0 && (self.waiting.is_empty() || elsewhere(p));
        self.partitions.iter().all(|p| p.is_stuck() || unneeded(p))
    }

    /// The partition that all lines go to. It is kept even if the topic does not have it: its batches then fail and are
    /// reported, and are sent once it is added.
    fn fixed(&self) -> Option<i32> {
        if let Partitioner::Fixed(n) = self.partitioner { Some(n) } else { None }
    }

    fn add_partitions(&mut self, view: &TopicView) {
        let fixed = self.fixed().filter(|_| !view.partitions.is_empty());
        for id in view.partitions.iter().copied().chain(fixed) {
            if let Err(at) = self.partitions.binary_search_by_key(&id, |p| p.id) {
                self.partitions.insert(at, self.memory.partition(view, id));
            }
        }
    }

    pub fn partitions(&mut self) -> &mut [Partition] {
        &mut self.partitions
    }

    pub fn partition(&mut self, id: i32) -> Option<&mut Partition> {
        let at = self.partitions.binary_search_by_key(&id, |p| p.id).ok()?;
        Some(&mut self.partitions[at])
    }

    /// Updates the topic's partitions.
    pub fn see(&mut self, view: TopicView, now: Now) {
        self.add_partitions(&view);
        // All zeros: the classic driver and brokers before 2.8 do not know the id.
        let known = |id: &[u8; 16]| *id != [0; 16];
        if self.view.as_ref().is_some_and(|old| old.id != view.id && known(&old.id) && known(&view.id)) {
            log::warn!("topic {}: was deleted and recreated", self.topic);
            self.partitions.iter_mut().for_each(Partition::unproven);
        }
        if let Some(old) = &self.view {
            let returned =
                |id| view.available.binary_search(&id).is_ok() && old.available.binary_search(&id).is_err();
            self.partitions.iter_mut().filter(|p| returned(p.id)).for_each(|p| p.leader_returned(now));
        }
        self.view = Some(view);
        self.resume();
        self.leave_removed_partitions();
    }

    /// Passes an earlier run's groups to their partitions before any new group is formed.
    fn resume(&mut self) {
        let Some(view) = self.view.as_ref().filter(|v| !v.partitions.is_empty()) else { return };
        for resumed in std::mem::take(&mut self.memory.groups) {
            for mut batch in resumed.batches(view, self.partitioner, self.batch.now, self.seed) {
                if view.partitions.binary_search(&batch.partition).is_err() {
                    let n = batch.partition.unsigned_abs() as usize % view.partitions.len();
                    (batch.partition, batch.numbers, batch.noted) = (view.partitions[n], None, None);
                }
                if let Ok(at) = self.partitions.binary_search_by_key(&batch.partition, |p| p.id) {
                    self.partitions[at].push(batch);
                }
            }
        }
    }

    /// Moves batches of removed partitions to others, unless the topic has no partition at all. Called again after
    /// each completion.
    pub fn leave_removed_partitions(&mut self) {
        let Some(view) = self.view.as_ref().filter(|v| !v.partitions.is_empty()) else { return };
        if self.partitions.len() == view.partitions.len() {
            return;
        }
        let fixed = self.fixed();
        let gone = |p: &Partition| view.partitions.binary_search(&p.id).is_err() && fixed != Some(p.id);
        let homeless: Vec<Batch> =
            self.partitions.iter_mut().filter(|p| gone(p)).flat_map(Partition::leave).collect();
        self.partitions.retain(|p| !gone(p) || p.in_flight() > 0);
        for mut batch in homeless {
            batch.partition =
                view.partitions[batch.partition.unsigned_abs() as usize % view.partitions.len()];
            // Sequence numbers belong to the old partition. If the batch may be stored there, it is counted as
            // uncertain.
            (batch.numbers, batch.noted) = (None, None);
            if let Some(p) = self.partitions.iter_mut().find(|p| p.id == batch.partition) {
                p.push(batch);
            }
        }
    }

    /// Partitions that may take new lines: available as far as known, and not in trouble. If the driver reports none
    /// as available, all are tried, since only an attempt may tell it otherwise.
    fn up(&self) -> impl Iterator<Item = &Partition> {
        let fits = |p: &&Partition| {
            self.view.as_ref().is_some_and(|view| {
                let available = if view.available.is_empty() { &view.partitions } else { &view.available };
                let is_in = |ids: &[i32]| ids.binary_search(&p.id).is_ok();
                match self.partitioner {
                    Partitioner::Fixed(n) => p.id == n,
                    _ => is_in(available) && is_in(&view.partitions),
                }
            })
        };
        self.partitions.iter().filter(fits).filter(|p| p.is_up())
    }

    /// The maximum group size, in batches.
    fn spread(&self) -> usize {
        let keyed = |(_, c): &(Instant, Chunk)| !matches!(c.origin.shape.key, Key::None);
        let over = match self.partitioner {
            Partitioner::Fixed(_) | Partitioner::Sticky => 1,
            // The key is a setting of the whole agent, so it is the same for all sources.
            Partitioner::Hash if !self.waiting.front().is_some_and(keyed) => 1,
            _ => self.view.as_ref().map_or(1, |v| v.partitions.len()),
        };
        over.clamp(1, SPREAD)
    }

    /// When [`TopicQueue::form`] forms a group.
    pub fn ready(&self, now: Now, rules: SendRules, closing: bool) -> Ready {
        let Some((since, _)) = self.waiting.front() else { return Ready::No };
        let (mut up, mut open, mut idle) = (0, 0, true);
        for p in self.up() {
            up += 1;
            open += usize::from(p.open() < most_open(rules));
            idle &= p.open() == 0;
        }
        // Keyed lines cannot go elsewhere: one full partition delays the group.
        if open == 0 || (self.partitioner == Partitioner::Hash && open < up) {
            return Ready::No;
        }
        let patience = if rules == SendRules::Plain { PLAIN_PATIENCE } else { PATIENCE };
        let full = self.waiting_bytes >= self.batch.now * self.spread();
        let mut due = if idle || (full && rules != SendRules::Plain) { now.at } else { *since + patience };
        if !full && !closing {
            due = due.max(*since + self.linger);
        }
        if due <= now.at { Ready::Now } else { Ready::At(due) }
    }

    /// Forms the next group if it may be sent, and passes its batches to the partitions, which send them when they
    /// can. Returns its bytes and its pending acks.
    pub fn form(
        &mut self,
        no: BatchGroupNo,
        now: Now,
        rules: SendRules,
        closing: bool,
        rng: &mut Rng,
    ) -> Option<(usize, PendingAcks)> {
        if self.ready(now, rules, closing) != Ready::Now {
            return None;
        }
        let (mut open, mut parts) = std::mem::take(&mut self.spare);
        open.extend(self.up().filter(|p| p.open() < most_open(rules)).map(|p| p.id));
        let sticky = self.least_busy(&open);
        let group = Arc::new(self.take(now));
        let pending = PendingAcks::of(&group);
        let fixed = self.fixed();
        let all = fixed.as_ref().map_or(&self.view.as_ref()?.partitions[..], std::slice::from_ref);
        let (partitioner, limit) = (self.partitioner, Limit::of(self.batch.now));
        let dealt = Distribution { partitioner, all, open: &open, sticky, seed: rng.next(), limit };
        dealt.out(&group, &mut parts);
        let mut bytes = 0;
        for part in parts.drain(..) {
            bytes += part.bytes;
            if let Some(p) = self.partition(part.partition) {
                p.push(part.into_batch(no, group.clone()));
            }
        }
        open.clear();
        self.spare = (open, parts);
        Some((bytes, pending))
    }

    /// The least busy partition of `open`, round-robin among equals.
    fn least_busy(&mut self, open: &[i32]) -> i32 {
        self.turn = self.turn.wrapping_add(1);
        let busy = |id: i32| self.partitions.iter().find(|p| p.id == id).map_or(usize::MAX, Partition::open);
        let (before, from) = open.split_at(self.turn % open.len());
        // `min_by_key` takes the first of equals.
        from.iter().chain(before).copied().min_by_key(|id| busy(*id)).unwrap_or(open[0])
    }

    /// Takes the oldest chunks that fit, at least one.
    fn take(&mut self, now: Now) -> BatchGroup {
        let spread = self.spread();
        let limit = Limit::of(self.batch.now);
        let (mut bytes, mut on_wire, mut records) = (0, 0, 0);
        let mut chunks = Vec::with_capacity(self.waiting.len().min(BatchGroup::MAX_CHUNKS));
        while let Some((_, next)) = self.waiting.front() {
            bytes += next.bytes.len();
            on_wire += wire(next);
            records += next.lines.len();
            let fits = bytes <= limit.bytes * spread
                && on_wire <= limit.wire * spread
                && records <= limit.records * spread;
            if !chunks.is_empty() && (!fits || chunks.len() == BatchGroup::MAX_CHUNKS) {
                break;
            }
            let Some((_, chunk)) = self.waiting.pop_front() else { break };
            self.waiting_bytes -= chunk.bytes.len();
            chunk.origin.progress.send(&chunk.range, chunk.lines.len() as u64);
            chunks.push(chunk);
        }
        let topic_id = self.view.as_ref().map_or([0; 16], |v| v.id);
        let stamp_ms = clock::stamp(now.wall_ms, self.saved_ms);
        BatchGroup::new(self.topic.clone(), topic_id, stamp_ms, chunks)
    }

    /// The broker refused a batch of this size: make the next ones smaller.
    pub fn too_large(&mut self, bytes: usize) {
        self.batch.lower(bytes);
    }

    pub fn stored(&mut self, bytes: usize) {
        self.batch.stored(bytes);
    }

    /// The change since the last call: trouble at attempts 1, 2, 4, 8 …, and its end.
    pub fn change(&mut self, now: Now) -> Option<QueueChange> {
        let bad: Vec<(i32, u32, &str)> =
            self.partitions.iter().filter_map(|p| p.trouble().map(|(n, why)| (p.id, n, why))).collect();
        let Some((_, attempts, why)) = bad.iter().max_by_key(|(_, n, _)| *n) else {
            let t = self.trouble.take()?;
            return Some(QueueChange::Well { after: now.at - t.since, attempts: t.attempts });
        };
        let trouble = self.trouble.get_or_insert(TopicTrouble { since: now.at, attempts: 0 });
        // One partition may recover while another stays down; do not repeat a report.
        if *attempts <= trouble.attempts {
            return None;
        }
        trouble.attempts = *attempts;
        attempts.is_power_of_two().then(|| QueueChange::Trouble {
            attempts: *attempts,
            partitions: bad.iter().map(|(id, _, _)| *id).collect(),
            why: (*why).to_owned(),
        })
    }
}

/// The batch size: halved when the broker refuses a batch, and slowly raised again in case a single record was the
/// cause.
#[derive(Debug)]
struct Cap {
    now: usize,
    most: usize,
    /// Batches over half of `now` stored since it last changed.
    good: u32,
}

impl Cap {
    /// A batch smaller than this is refused for its records, not for their number.
    const LEAST: usize = 16 << 10;
    /// Successful batches before the size is doubled: a wrong guess costs one refusal in this many.
    const GOOD: u32 = 64;

    fn new(most: usize) -> Self {
        Cap { now: most.max(1), most: most.max(1), good: 0 }
    }

    fn lower(&mut self, refused: usize) {
        self.now = self.now.min((refused / 2).max(Self::LEAST)).min(self.most);
        self.good = 0;
    }

    fn stored(&mut self, bytes: usize) {
        if self.now < self.most && bytes > self.now / 2 {
            self.good += 1;
            if self.good == Self::GOOD {
                *self = Cap { now: (self.now * 2).min(self.most), most: self.most, good: 0 };
            }
        }
    }
}

#[cfg(test)]
mod tests;
