//! The producer's core: the topic queues, everything unacknowledged, and pending orders for the driver and acks for the
//! registry. Does no I/O: [`Core::chunk`], [`Core::event`] and [`Core::tick`] take the time as an argument and queue
//! orders and acks for the caller: `producer::run` or the simulator.

use super::batch::{Batch, PendingAcks};
use super::dead_letter::DeadLetters;
use super::driver::{Capabilities, Drive, Event, Order};
use super::partition::{Action, Now, SendRules};
use super::rate::Rate;
use super::recovered::RecoveredTopic;
use super::spending::Spending;
use super::topic_queue::{QueueChange, Ready, TopicQueue};
use super::{Change as Changed, Dead, ProducerOptions, Receipt};
use crate::backoff::Rng;
use crate::chunk::Chunk;
use crate::heartbeat::Heartbeat;
use crate::lock::lock;
use crate::record::{Ack, BatchGroupNo, Topic};
use crate::report::{Board, BrokerState};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

pub struct Core<'b> {
    options: ProducerOptions,
    /// Exactly-once.
    once: bool,
    board: &'b Board,
    pub heartbeat: Arc<Heartbeat>,
    letters: DeadLetters,
    rng: Rng,
    rate: Option<Rate>,
    spending: Option<Spending>,
    /// `None` until the driver has reported its capabilities. Nothing is sent before that.
    capabilities: Option<Capabilities>,
    id: Id,
    /// The next driver, while the old one still holds batches.
    next: Option<Drive>,
    queues: Vec<TopicQueue>,
    /// Acknowledged bytes of each of `queues`.
    payload: Vec<Arc<AtomicU64>>,
    by_topic: HashMap<Topic, usize>,
    pending_acks: HashMap<BatchGroupNo, PendingAcks>,
    /// The last group number assigned.
    last_group: BatchGroupNo,
    /// No more input.
    closing: bool,
    sends: Vec<Batch>,
    /// Empty between calls; its memory is reused.
    actions: Vec<Action>,
    orders: Vec<Order>,
    pub acks: Vec<Ack>,
    listing: ProducerListing,
    /// Save soon: this may be the last change before a quiet period.
    pub save_soon: bool,
}

/// State of the producer id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Id {
    None,
    Asked,
    Have(i64, i16),
}

/// Exactly-once: whether the brokers list idempotent producers (DescribeProducers; some list only transactional ones).
/// Asked once, right after a batch was stored.
#[derive(Clone, PartialEq, Eq, Debug)]
enum ProducerListing {
    Unasked,
    Asked(Topic, i32, i64),
    Known,
}

impl<'b> Core<'b> {
    pub fn new(options: ProducerOptions, board: &'b Board, now: Now) -> Self {
        let mut core = Core {
            once: options.once.is_some(),
            letters: DeadLetters::new(options.dead_letter.clone(), options.dead_letter_limit),
            rng: Rng::new(options.seed),
            rate: options.rate.map(|per_second| Rate::new(per_second, now.at)),
            spending: options.budget.map(|budget| {
                Spending::open(budget, options.budget_file.as_deref(), board.traffic.total(), now.at)
            }),
            options,
            heartbeat: board.heartbeats.register("producer"),
            board,
            capabilities: None,
            id: Id::None,
            next: None,
            queues: Vec::new(),
            payload: Vec::new(),
            by_topic: HashMap::new(),
            pending_acks: HashMap::new(),
            last_group: BatchGroupNo(0),
            closing: false,
            sends: Vec::new(),
            actions: Vec::new(),
            orders: Vec::new(),
            acks: Vec::new(),
            listing: ProducerListing::Unasked,
            save_soon: false,
        };
        core.resume();
        core
    }

    /// Restores the state of an earlier run.
    fn resume(&mut self) {
        let Some(once) = &mut self.options.once else { return };
        self.last_group = once.group_no;
        if let Some((pid, epoch)) = once.id {
            self.id = Id::Have(pid, epoch);
        }
        let mut topics: Vec<Topic> = Vec::new();
        for f in &once.groups {
            self.pending_acks.insert(f.group_no, f.pending());
            if !topics.contains(&f.group.topic) {
                topics.push(f.group.topic.clone());
            }
        }
        topics.into_iter().for_each(|topic| {
            self.queue(&topic);
        });
        self.show_id();
    }

    fn show_id(&self) {
        if self.once {
            let id = if let Id::Have(pid, epoch) = self.id { Some((pid, epoch)) } else { None };
            *lock(&self.board.once.producer) = id;
        }
    }

    /// Applies a configuration change.
    pub fn change(&mut self, change: Changed, now: Now) {
        let ProducerOptions { partitioner, batch, linger, rate, .. } = change.options;
        if rate != self.options.rate {
            self.rate = rate.map(|per_second| Rate::new(per_second, now.at));
        }
        self.options =
            ProducerOptions { partitioner, batch, linger, rate, ..std::mem::take(&mut self.options) };
        self.queues.iter_mut().for_each(|queue| queue.tune(&self.options));
        self.next = change.drive.or(self.next.take());
        if change.elsewhere {
            self.queues.iter_mut().for_each(TopicQueue::elsewhere);
            self.id = Id::None;
        }
    }

    /// Switches to the next driver once the old one holds no batch.
    fn change_driver(&mut self) {
        let is_busy = |queue: &TopicQueue| queue.in_flight() > 0;
        if let Some(next) = self.next.take_if(|_| !self.queues.iter().any(is_busy)) {
            self.orders.push(Order::Change(next));
            self.capabilities = None;
        }
    }

    /// Accepts a chunk from a tail.
    pub fn chunk(&mut self, chunk: Chunk, now: Now) {
        if chunk.lines.is_empty() {
            chunk.origin.progress.send(&chunk.range, chunk.lines.len() as u64);
            return self.acks.push(chunk.ack());
        }
        let at = self.queue(&chunk.origin.topic.clone());
        self.queues[at].push(chunk, now);
    }

    /// The index of the topic's queue.
    fn queue(&mut self, topic: &Topic) -> usize {
        if let Some(at) = self.by_topic.get(topic) {
            return *at;
        }
        if self.capabilities.is_some() {
            self.orders.push(Order::Topic(topic.clone())); // otherwise `ready` orders it
        }
        self.by_topic.insert(topic.clone(), self.queues.len());
        self.payload.push(self.board.traffic.payload(topic));
        let memory =
            self.options.once.as_mut().map(|once| RecoveredTopic::of(once, topic)).unwrap_or_default();
        self.queues.push(TopicQueue::new(topic.clone(), &self.options).with_recovered(memory));
        self.queues.len() - 1
    }

    /// All tails have ended: send what is left without lingering.
    pub fn close(&mut self) {
        self.closing = true;
    }

    /// Nothing is queued and nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.pending_acks.is_empty() && self.queues.iter().all(TopicQueue::is_empty)
    }

    /// Every line is in flight, and more may come.
    pub fn waits_for_no_answer(&self) -> bool {
        !self.closing && self.next.is_none() && self.queues.iter().all(TopicQueue::is_in_flight)
    }

    /// Something is left, but nothing is in flight.
    pub fn is_stuck(&self) -> bool {
        let waits = self.is_used_up() && self.queues.iter().all(|queue| queue.in_flight() == 0);
        !self.is_empty() && (waits || self.queues.iter().all(|queue| queue.is_empty() || queue.is_stuck()))
    }

    /// Nothing may be sent before the budget has gained more.
    fn is_used_up(&self) -> bool {
        self.spending.as_ref().is_some_and(|spending| spending.used_up().is_some())
    }

    /// Handles a driver event.
    pub fn event(&mut self, event: Event, now: Now) -> Result<(), Dead> {
        match event {
            Event::Ready(capabilities) => self.ready(capabilities),
            Event::Topic(view) => {
                if let Some(at) = self.by_topic.get(&view.topic) {
                    self.queues[*at].see(view, now);
                }
            }
            // An answer for the previous driver, or a second answer because both drivers were asked.
            Event::ProducerId { .. } if self.id != Id::Asked || self.rules().is_none() => {}
            Event::ProducerId { pid, epoch } => {
                self.id = Id::Have(pid, epoch);
                self.show_id();
            }
            Event::OtherCluster => {
                if let Id::Have(pid, _) = self.id {
                    log::warn!("producer id {pid} belongs to the previous cluster; requesting a new one");
                    self.id = Id::Asked;
                    self.orders.push(Order::ProducerId);
                }
            }
            Event::Described { topic, partition, pid, last } => {
                self.learn_listing(&topic, partition, pid, &last);
                let mut actions = std::mem::take(&mut self.actions);
                if let Some(at) = self.by_topic.get(&topic).copied() {
                    if let Some(p) = self.queues[at].partition(partition) {
                        p.described(pid, last, now, &mut actions);
                    }
                    self.act(at, partition, actions, now);
                }
            }
            Event::Done { batch, verdict } => {
                let Some(at) = self.by_topic.get(&batch.group.topic).copied() else { return Ok(()) };
                let (id, mut actions) = (batch.partition, std::mem::take(&mut self.actions));
                if let Some(p) = self.queues[at].partition(id) {
                    p.done(batch, verdict, now, &mut self.rng, &mut actions);
                }
                self.act(at, id, actions, now);
                self.queues[at].leave_removed_partitions();
            }
            Event::Dead { why } => return Err(Dead { why }),
        }
        Ok(())
    }

    fn ready(&mut self, capabilities: Capabilities) {
        // A new or restarted driver does not know our topics yet.
        self.orders.extend(self.queues.iter().map(|l| Order::Topic(l.topic.clone())));
        if !capabilities.idempotent {
            self.id = Id::None;
        } else if !matches!(self.id, Id::Have(..)) {
            // Ask again even if already asked: the order was lost with the previous driver.
            self.id = Id::Asked;
            self.orders.push(Order::ProducerId);
        }
        self.capabilities = Some(capabilities);
    }

    /// `None`: nothing may be sent now.
    fn rules(&self) -> Option<SendRules> {
        let capabilities = self.capabilities.as_ref().filter(|_| self.next.is_none())?;
        let id = if let Id::Have(pid, epoch) = self.id { Some((pid, epoch)) } else { None };
        Some(match capabilities.idempotent {
            true => SendRules::Idempotent { in_flight: capabilities.in_flight, id, once: self.once },
            false => SendRules::Plain,
        })
    }

    /// Executes a partition's actions.
    fn act(&mut self, queue: usize, partition: i32, mut actions: Vec<Action>, now: Now) {
        let mut more = Vec::new();
        while !actions.is_empty() {
            for action in actions.drain(..) {
                match action {
                    Action::Send(batch) => {
                        self.board.totals.retries.fetch_add(u64::from(batch.attempts > 0), Relaxed);
                        self.sends.push(batch);
                    }
                    Action::Stored { batch, offset } => {
                        if let Some(receipts) = &self.options.receipts {
                            // Fails only when `send` has ended and the receipts have no reader.
                            let _ = receipts.send(Receipt { partition, offset, count: batch.count });
                        }
                        self.queues[queue].stored(batch.bytes);
                        self.payload[queue].fetch_add(batch.bytes as u64, Relaxed);
                        if offset.is_some() {
                            self.ask_listing(&batch);
                        }
                        self.finish(&batch);
                    }
                    Action::DeadLetter { batch, why } => {
                        self.heartbeat.within(Heartbeat::SLOW); // disk I/O
                        match self.letters.write(&batch, &why, now, self.board.quota.get()) {
                            Ok(()) => {
                                self.board.totals.dead_lettered.fetch_add(u64::from(batch.count), Relaxed);
                                self.finish(&batch);
                            }
                            Err(why) => {
                                if let Some(p) = self.queues[queue].partition(partition) {
                                    p.hold(batch, why, now, &mut self.rng, &mut more);
                                }
                            }
                        }
                    }
                    Action::Ask { pid } => {
                        let topic = self.queues[queue].topic.clone();
                        self.orders.push(Order::Ask { topic, partition, pid });
                    }
                    Action::NewId { pid } => {
                        if matches!(self.id, Id::Have(now, _) if now == pid) {
                            log::warn!("producer id {pid} can no longer be used; requesting a new one");
                            self.id = Id::Asked;
                            self.orders.push(Order::ProducerId);
                        }
                    }
                    Action::Uncertain(lines) => {
                        self.heartbeat.within(Heartbeat::SLOW); // disk I/O
                        self.board.uncertain(u64::from(lines));
                        if self.once {
                            self.save_soon = true;
                        }
                    }
                    Action::Doubled(lines) => {
                        self.heartbeat.within(Heartbeat::SLOW);
                        self.board.resent(u64::from(lines));
                    }
                    Action::Retry { found } => {
                        self.board.once.resent.fetch_add(1, Relaxed);
                        self.board.once.found.fetch_add(u64::from(found), Relaxed);
                    }
                    Action::TooLarge(bytes) => self.queues[queue].too_large(bytes),
                }
            }
            actions.append(&mut more);
        }
        self.actions = actions;
    }

    /// The leader has just stored one of our batches, so it must know our producer id.
    fn ask_listing(&mut self, stored: &Batch) {
        let Some(pid) = stored.numbers.map(|n| n.pid) else { return };
        if self.once && self.listing == ProducerListing::Unasked {
            let (topic, partition) = (stored.group.topic.clone(), stored.partition);
            self.listing = ProducerListing::Asked(topic.clone(), partition, pid);
            self.orders.push(Order::Ask { topic, partition, pid });
        }
    }

    fn learn_listing(
        &mut self,
        topic: &Topic,
        partition: i32,
        pid: i64,
        last: &Result<Option<(i16, i32)>, String>,
    ) {
        if self.listing != ProducerListing::Asked(topic.clone(), partition, pid) {
            return;
        }
        let Ok(known) = last else {
            self.listing = ProducerListing::Unasked; // the leader may be moving
            return;
        };
        self.listing = ProducerListing::Known;
        self.board.once.unlisted.store(known.is_none(), Relaxed);
        if known.is_none() {
            log::error!(
                "exactly-once cannot be proved on this cluster: the leader of {topic}/{partition} does not list producer {pid} (DescribeProducers) although it has just stored one of its batches; after a crash the lines in flight are sent again and counted as uncertain; repeats within a run are still recognized"
            );
        }
    }

    /// Completes these records.
    fn finish(&mut self, batch: &Batch) {
        if let Some(spending) = &mut self.spending {
            spending.release(batch.bytes);
        }
        let Some(pending) = self.pending_acks.get_mut(&batch.group_no) else {
            debug_assert!(false, "{:?} has already completed", batch.group_no);
            return;
        };
        let acks = &mut self.acks;
        pending.done(batch, |ack| acks.push(ack.clone()));
        if pending.is_over() {
            self.pending_acks.remove(&batch.group_no);
        }
    }

    /// Sends everything that may be sent now. Returns when to call it again if nothing happens before.
    pub fn tick(&mut self, now: Now) -> Option<Instant> {
        self.change_driver();
        if let Some(spending) = &mut self.spending {
            spending.look(self.board.traffic.total(), now.at);
        }
        let rules = self.rules();
        let mut wake: Option<Instant> = None;
        for at in 0..self.queues.len() {
            if let Some(rules) = rules {
                let next = self.drive(at, rules, now);
                wake = wake.into_iter().chain(next).min();
            }
            if let Some(change) = self.queues[at].change(now) {
                self.report_changes(at, change, now);
            }
        }
        if let Some(spending) = &mut self.spending {
            self.heartbeat.within(Heartbeat::SLOW); // disk I/O
            spending.record();
            self.board.traffic.set_budget(spending.state());
        }
        if !self.sends.is_empty() {
            self.orders.push(Order::Send(std::mem::take(&mut self.sends)));
        }
        wake
    }

    fn drive(&mut self, at: usize, rules: SendRules, now: Now) -> Option<Instant> {
        if let Some(spending) = &mut self.spending
            && let Some(until) = spending.used_up()
        {
            if self.queues[at].is_empty() {
                return None;
            }
            spending.say_used_up();
            return Some(until);
        }
        self.launch(at, rules, now);
        let ready = loop {
            let ready = self.queues[at].ready(now, rules, self.closing);
            if ready != Ready::Now {
                break ready;
            }
            if let Some(until) = self.rate.as_mut().and_then(|r| r.wait(now.at)) {
                break Ready::At(until);
            }
            if let Some(until) = self.spending.as_ref().and_then(Spending::wait) {
                break Ready::At(until);
            }
            let no = BatchGroupNo(self.last_group.0 + 1);
            let formed = self.queues[at].form(no, now, rules, self.closing, &mut self.rng);
            let Some((bytes, pending)) = formed else { break Ready::No };
            self.last_group = no;
            self.pending_acks.insert(no, pending);
            if let Some(rate) = &mut self.rate {
                rate.spend(bytes);
            }
            if let Some(spending) = &mut self.spending {
                spending.reserve(bytes);
            }
            self.launch(at, rules, now);
        };
        let partitions = self.queues[at].partitions().iter().filter_map(|p| p.wake()).min();
        let ready = if let Ready::At(until) = ready { Some(until) } else { None };
        partitions.into_iter().chain(ready).min()
    }

    fn launch(&mut self, at: usize, rules: SendRules, now: Now) {
        for i in 0..self.queues[at].partitions().len() {
            let mut actions = std::mem::take(&mut self.actions);
            let p = &mut self.queues[at].partitions()[i];
            let id = p.id;
            p.launch(now, rules, &mut actions);
            self.act(at, id, actions, now);
        }
    }

    /// Updates log and status, on state changes only.
    fn report_changes(&self, at: usize, change: QueueChange, now: Now) {
        let topic = &self.queues[at].topic;
        let mut states = self.board.topics();
        let state = states.entry(topic.to_string()).or_insert_with(|| BrokerState {
            state: String::new(),
            since: now.at,
            attempts: 0,
            last_error: None,
        });
        let before = std::mem::take(&mut state.state);
        state.state = match &change {
            QueueChange::Trouble { .. } => "retrying".into(),
            QueueChange::Well { .. } => "delivering".into(),
        };
        if before != state.state {
            state.since = now.at;
        }
        match change {
            QueueChange::Trouble { attempts, partitions, why } => {
                let of = listed(&partitions);
                log::warn!("topic {topic}: {of}: {why}; retrying (attempt {attempts})");
                state.attempts = u64::from(attempts);
                state.last_error = Some(why);
            }
            QueueChange::Well { after, attempts } => {
                log::info!("topic {topic}: delivering again after {after:.1?}, {attempts} attempt(s)");
                state.attempts = 0;
            }
        }
    }

    /// Computes ahead, after the orders are out: with exactly-once the next batch is sent only after the previous one
    /// is stored, so its checksums for the intent are computed while waiting.
    pub fn prepare(&mut self) {
        if self.once {
            let partitions = self.queues.iter_mut().flat_map(|queue| queue.partitions());
            partitions.flat_map(|p| p.pending()).for_each(|batch| _ = batch.group.seals());
        }
    }

    /// Maximum wait of a thread under heartbeat supervision.
    pub fn longest_wait(&self) -> Duration {
        self.board.heartbeats.max_wait()
    }

    pub fn orders(&mut self) -> std::vec::Drain<'_, Order> {
        self.orders.drain(..)
    }
}

/// "partition 3", "partitions 0, 1, 2 and 7 more".
fn listed(ids: &[i32]) -> String {
    let some: Vec<String> = ids.iter().take(5).map(i32::to_string).collect();
    let word = if ids.len() == 1 { "partition" } else { "partitions" };
    let more = if ids.len() > 5 { format!(" and {} more", ids.len() - 5) } else { String::new() };
    format!("{word} {}{more}", some.join(", "))
}
