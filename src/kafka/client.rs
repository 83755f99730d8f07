//! The driver as seen by the producer's loop: routes orders to the brokers and gives each part its turn.

use super::{ASK_PATIENCE, AskedProducer, KafkaOptions, RELEASE, Shared};
use crate::kafka::broker::Broker;
use crate::kafka::fetcher::Fetcher;
use crate::kafka::net::connection::is_readable;
use crate::producer::batch::Batch;
use crate::producer::driver::{Context, Driver, Event, Leave, Order};
use crate::sys::heap;
use rustix::event::{PollFd, PollFlags};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

pub struct Client {
    shared: Shared,
    brokers: BTreeMap<i32, Broker>,
    fetcher: Fetcher,
    left: Option<Leave>,
}

impl Client {
    pub fn new(options: Arc<KafkaOptions>, context: Context) -> Self {
        let fetcher = Fetcher::new(context.board.clone());
        let mut shared = Shared::new(options, context);
        shared.ready();
        Client { shared, brokers: BTreeMap::new(), fetcher, left: None }
    }

    /// The broker of a node, at its current address.
    fn broker(&mut self, node: i32) -> &mut Broker {
        let address = self.shared.cluster.address(node);
        if self.brokers.get(&node).is_some_and(|b| Some(&*b.peer.address) != address) {
            self.retire(node);
        }
        let shared = &self.shared;
        let address = || shared.cluster.address(node).unwrap_or_default().to_owned();
        self.brokers.entry(node).or_insert_with(|| Broker::new(node, address(), shared))
    }

    fn retire(&mut self, node: i32) {
        if let Some(broker) = self.brokers.remove(&node) {
            broker.close(&mut self.shared, "the broker has another address");
        }
    }

    fn send(&mut self, batch: Batch, now: Instant) {
        match self.shared.cluster.route(&batch.group.topic, batch.partition) {
            Ok(node) => self.broker(node).peer.waiting.push_back(batch),
            Err((pace, why)) => {
                self.shared.cluster.stale(&batch.group.topic, now);
                self.shared.events.push(Event::retry(batch, false, pace, &why));
            }
        }
    }

    fn ask(&mut self, asked: AskedProducer, now: Instant) {
        self.shared.asks.push((asked.clone(), now + ASK_PATIENCE));
        match self.shared.cluster.route(&asked.topic, asked.partition) {
            Ok(node) => self.broker(node).peer.asks.push_back(asked),
            Err((_, why)) => self.shared.producer_described(&asked, Err(why)),
        }
    }

    /// Reports questions that leaders did not answer in time.
    fn overdue(&mut self, now: Instant) {
        while let Some((late, _)) = self.shared.asks.iter().find(|(_, due)| *due <= now).cloned() {
            self.shared.producer_described(&late, Err("the leader does not answer".into()));
        }
    }

    /// Retires brokers that are no longer in the metadata, or have another address.
    fn retire_gone(&mut self) {
        let cluster = &self.shared.cluster;
        let gone =
            |(node, b): (&i32, &Broker)| (cluster.address(*node) != Some(&b.peer.address)).then_some(*node);
        let gone: Vec<i32> = self.brokers.iter().filter_map(gone).collect();
        gone.into_iter().for_each(|node| self.retire(node));
    }

    fn is_busy(&self) -> bool {
        self.brokers.values().any(Broker::is_busy)
    }

    /// Frees the encoder's buffers after a time without work.
    fn release(&mut self, now: Instant) {
        let s = &mut self.shared;
        if s.spare.is_some() && now >= s.used + RELEASE && !self.brokers.values().any(Broker::is_busy) {
            s.spare = None;
            s.encoder.release();
            heap::trim();
        }
    }
}

impl Driver for Client {
    fn order(&mut self, order: Order, now: Instant) {
        match order {
            Order::Change(_) => {} // handled by `Current`
            Order::Topic(topic) => {
                let view = self.shared.cluster.want(topic, now);
                self.shared.tell(view.into_iter().collect());
            }
            Order::ProducerId => self.fetcher.want_producer_id(now),
            Order::Ask { topic, partition, pid } => self.ask(AskedProducer { topic, partition, pid }, now),
            Order::Send(batches) => batches.into_iter().for_each(|b| self.send(b, now)),
        }
    }

    fn turn(&mut self, ready: &[PollFlags], now: Instant, events: &mut Vec<Event>) {
        if self.left.is_none() {
            let mut found = ready.iter().copied();
            let mut next = |has_socket: bool| {
                let one = if has_socket { found.next() } else { None };
                one.is_some_and(is_readable)
            };
            for broker in self.brokers.values_mut() {
                let readable = next(broker.has_socket());
                broker.turn(&mut self.shared, readable, now);
            }
            let readable = next(self.fetcher.has_socket());
            if self.fetcher.turn(&mut self.shared, readable, now) {
                self.retire_gone();
            }
            self.overdue(now);
            self.release(now);
            if let Some(why) = self.shared.incompatible.take() {
                self.close();
                self.left = Some(Leave::Incompatible { why });
            }
        }
        events.append(&mut self.shared.events);
    }

    fn defer_answers(&mut self, defer: bool, now: Instant) {
        self.brokers.values_mut().for_each(|broker| broker.defer_answers(defer, now));
    }

    fn sockets<'a>(&'a self, add: &mut Vec<PollFd<'a>>) {
        add.extend(self.brokers.values().filter_map(Broker::socket));
        add.extend(self.fetcher.socket());
    }

    fn wake(&self) -> Option<Instant> {
        let shared = &self.shared;
        let release = (shared.spare.is_some() && !self.is_busy()).then_some(shared.used + RELEASE);
        let asks = shared.asks.iter().map(|(_, due)| *due).min();
        let brokers = self.brokers.values().filter_map(Broker::wake).min();
        [release, asks, brokers, self.fetcher.wake(shared)].into_iter().flatten().min()
    }

    fn close(&mut self) {
        for (_, broker) in std::mem::take(&mut self.brokers) {
            broker.close(&mut self.shared, "the driver ends");
        }
        self.fetcher.close();
        self.shared.context.board.brokers().remove("bootstrap");
        self.left.get_or_insert(Leave::Closed);
    }

    fn left(&self) -> Option<Leave> {
        self.left.clone()
    }
}
