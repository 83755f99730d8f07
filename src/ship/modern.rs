//! The driver for Kafka 0.11 to 4.x: our own record batches over our own sockets. Decides nothing about retries,
//! partitions or sequences (ship does), and never sends a batch twice by itself.
//!
//! ```text
//! ship ─Order─▶ run (leaders, routes) ─Job─▶ one thread per broker ─▶ socket
//!   ▲              │ ▲                          │
//!   │              ▼ └────── News ──────────────┤
//!   │            scout (metadata, producer ids) │
//!   └──────────────── Event ────────────────────┘
//! ```
//!
//! Files in reading order: `wire` (primitive types), `messages` (requests, answers), `errors` (what each code means),
//! `codec`, `records` (the encoder), `cluster` (who leads what), `connection`, `inbox`, `session` (requests in the air),
//! `fence` (no overtaking), `broker` (one broker's thread), `scout`, `health` (board and log).
//!
//! Invariant: a batch is held by exactly one of: an inbox, a session, an event. A worker that connects holds none.

mod broker;
mod cluster;
pub mod codec;
mod connection;
mod errors;
mod fence;
mod health;
mod inbox;
mod messages;
mod records;
mod scout;
mod session;
mod wire;

#[cfg(test)]
mod scripted;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trial;

use super::driver::{Abilities, Acks, Ends, Event, Leave, Order, Pace, TopicView, Verdict};
use super::flight::Batch;
use crate::chunk::Topic;
use crate::report::Board;
use broker::Broker;
use cluster::Cluster;
use codec::Codec;
use crossbeam_channel::{Receiver, Sender, bounded, never, select, unbounded};
use fence::Fences;
use inbox::{Job, Post};
use messages::Node;
use scout::{Question, Scout};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Stack of each thread, in bytes; compression and name resolution fit into it. Code that is not optimised builds
/// miniz's state of some 300 KB on the stack before it boxes it.
const STACK: usize = if cfg!(debug_assertions) { 2 << 20 } else { 256 << 10 };
/// Requests in the air per connection with numbers (KIP-98: the broker remembers five batches per producer).
const IN_FLIGHT: usize = 5;

#[derive(Debug, Clone)]
pub struct Options {
    /// `host:port` or `[IPv6]:port`, at least one.
    pub brokers: Vec<String>,
    pub client_id: String,
    /// With `All` batches are numbered (idempotent) and up to five requests are in the air, else one.
    pub acks: Acks,
    pub compression: Codec,
    /// Whether a question about a topic lets the broker create it.
    pub create_topics: bool,
    /// How long a broker may wait for its replicas; it counts as hung 5 s later.
    pub request_timeout: Duration,
    /// For connecting to one address, and for the answer to the first question.
    pub connect_timeout: Duration,
    /// Most bytes in one request; a batch that is larger goes alone. The encoding buffer of each broker's thread grows to
    /// this (twice with compression), and is given back after 10 s without work.
    pub request_max: usize,
    /// A connection without work is closed after this: before a NAT in between forgets it (5 min and up).
    pub idle: Duration,
    /// How long metadata is believed where nothing is wrong.
    pub metadata_age: Duration,
    /// [`Leave::Unfit`] at a broker without Produce 3, instead of waiting for it to change.
    pub auto: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            brokers: Vec::new(),
            client_id: env!("CARGO_PKG_NAME").into(),
            acks: Acks::All,
            compression: Codec::None,
            create_topics: true,
            request_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            request_max: 1 << 20,
            idle: Duration::from_secs(180),
            metadata_age: Duration::from_secs(300),
            auto: false,
        }
    }
}

/// What workers tell the coordinator.
#[derive(Debug)]
enum News {
    Up {
        node: i32,
        serial: u64,
    },
    Down {
        node: i32,
        serial: u64,
    },
    /// A worker's thread is over.
    Ended,
    /// Someone else leads now; ask who.
    Stale(Topic),
    /// Someone else leads now: this one.
    Leader {
        topic: Topic,
        partition: i32,
        leader: i32,
        epoch: i32,
        nodes: Arc<[Node]>,
    },
    Metadata {
        answer: messages::Metadata,
        topics: Vec<Topic>,
    },
    Unfit(String),
}

/// What all threads of this driver share.
#[derive(Debug)]
struct Shared {
    options: Options,
    board: Arc<Board>,
    events: Sender<Event>,
    news: Sender<News>,
    /// Batches handed to workers and not yet back.
    held: AtomicUsize,
    fences: Fences,
    /// Questions to leaders that are not answered yet, and until when they must be.
    asks: Mutex<Vec<(Producer, Instant)>>,
}

/// Which producer of which partition a leader is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Producer {
    topic: Topic,
    partition: i32,
    pid: i64,
}

/// After this a question about a producer counts as unanswered. (Ship is promised an answer within 30 s.)
const ASK_PATIENCE: Duration = Duration::from_secs(25);

impl Shared {
    fn numbered(&self) -> bool {
        self.options.acks == Acks::All
    }

    /// Fails only when ship has ended; then the orders are closed too, and that ends all.
    fn event(&self, event: Event) {
        let _ = self.events.send(event);
    }

    fn news(&self, news: News) {
        let _ = self.news.send(news);
    }

    /// A batch that a worker held comes back.
    fn done(&self, batch: Batch, verdict: Verdict) {
        if !matches!(verdict, Verdict::Stored { .. }) {
            self.fences.raise(&batch);
        }
        self.event(Event::Done { batch, verdict });
        self.held.fetch_sub(1, SeqCst);
    }

    fn asks(&self) -> MutexGuard<'_, Vec<(Producer, Instant)>> {
        self.asks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a leader knows of a producer. An answer that comes after its time was told already.
    fn knows(&self, asked: &Producer, last: Result<Option<(i16, i32)>, String>) {
        let mut asks = self.asks();
        let Some(at) = asks.iter().position(|(a, _)| a == asked) else { return };
        asks.swap_remove(at);
        drop(asks);
        let Producer { topic, partition, pid } = asked.clone();
        self.event(Event::Knows { topic, partition, pid, last });
    }
}

/// Starts a worker of its own, detached: it ends when `orders` is dropped.
pub fn start(options: Options, board: Arc<Board>) -> std::io::Result<Ends> {
    #[allow(clippy::disallowed_methods, reason = "both bounded by the batches that ship has in flight")]
    let ((orders, inbox), (outbox, events)) = (unbounded(), unbounded());
    let name = "modern".to_owned();
    thread::Builder::new()
        .name(name)
        .stack_size(STACK)
        .spawn(move || run(&options, &inbox, &outbox, &board))?;
    Ok(Ends { orders, events })
}

/// Carries out orders until they end, or until the broker turns out to be one for another driver.
pub fn run(options: &Options, orders: &Receiver<Order>, events: &Sender<Event>, board: &Arc<Board>) -> Leave {
    #[allow(clippy::disallowed_methods, reason = "a few per batch in flight, and per broker")]
    let (news, told) = unbounded();
    let shared = Arc::new(Shared {
        options: options.clone(),
        board: board.clone(),
        events: events.clone(),
        news,
        held: AtomicUsize::new(0),
        fences: Fences::default(),
        asks: Mutex::default(),
    });
    let numbered = shared.numbered();
    let in_flight = if numbered { IN_FLIGHT } else { 1 };
    shared.event(Event::Ready(Abilities { name: "modern", numbered, in_flight }));
    let (questions, asked) = bounded(16);
    let scout = Scout::new(shared.clone());
    let scout =
        thread::Builder::new().name("modern-scout".into()).stack_size(STACK).spawn(|| scout.run(asked));
    if let Err(e) = scout {
        shared.event(Event::Dead { why: format!("cannot start a thread: {e}") });
        return Leave::Closed;
    }
    let cluster = Cluster::new(options.metadata_age);
    let mut c = Coordinator {
        shared,
        cluster,
        brokers: HashMap::new(),
        questions,
        asking: false,
        serial: 0,
        unfit: None,
    };
    let leave = c.run(orders, &told);
    c.end(&leave, &told);
    leave
}

/// One broker's thread, seen from outside.
struct Worker {
    post: Post,
    serial: u64,
    address: String,
    down: bool,
}

struct Coordinator {
    shared: Arc<Shared>,
    cluster: Cluster,
    brokers: HashMap<i32, Worker>,
    questions: Sender<Question>,
    /// A question about metadata is open.
    asking: bool,
    serial: u64,
    unfit: Option<String>,
}

impl Coordinator {
    fn run(&mut self, orders: &Receiver<Order>, told: &Receiver<News>) -> Leave {
        loop {
            let now = Instant::now();
            self.ask(now);
            if let Some(why) = self.unfit.take() {
                return Leave::Unfit { why };
            }
            let metadata = if self.asking { None } else { self.cluster.next_due() };
            let due = metadata.into_iter().chain(self.overdue(now)).min();
            let due = due.map_or_else(never, crossbeam_channel::at);
            select! {
                recv(orders) -> order => match order {
                    Ok(order) => {
                        // What a worker told before it gave a batch back must be known before the batch goes out again.
                        told.try_iter().for_each(|n| self.news(n));
                        self.order(order);
                    }
                    Err(_) => return Leave::Closed,
                },
                recv(told) -> news => news.into_iter().for_each(|n| self.news(n)),
                recv(due) -> _ => {}
            }
        }
    }

    /// Answers for leaders that were asked and say nothing; tells when the next of them is due.
    fn overdue(&self, now: Instant) -> Option<Instant> {
        let late: Vec<Producer> =
            self.shared.asks().iter().filter(|(_, due)| *due <= now).map(|(a, _)| a.clone()).collect();
        late.iter().for_each(|a| self.shared.knows(a, Err("the leader does not answer".into())));
        self.shared.asks().iter().map(|(_, due)| *due).min()
    }

    /// Asks for metadata where it is due.
    fn ask(&mut self, now: Instant) {
        if self.asking {
            return;
        }
        let topics = self.cluster.due(now);
        if !topics.is_empty() {
            let known = self.cluster.nodes().map(Node::address).collect();
            self.asking = self.questions.try_send(Question::Metadata { topics, known }).is_ok();
        }
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Topic(topic) => {
                let view = self.cluster.want(topic, Instant::now());
                self.tell(view);
            }
            Order::ProducerId => {
                let asked = self.questions.send(Question::ProducerId);
                debug_assert!(asked.is_ok(), "the scout lives as long as the questions do");
            }
            Order::Ask { topic, partition, pid } => {
                let route = self.cluster.route(&topic, partition);
                let asked = Producer { topic, partition, pid };
                self.shared.asks().push((asked.clone(), Instant::now() + ASK_PATIENCE));
                self.hand(Job::Ask(asked), route).into_iter().for_each(|node| self.ring(node));
            }
            Order::Send(batches) => {
                let mut rung: Vec<i32> = Vec::new();
                for batch in batches {
                    let route = self.cluster.route(&batch.load.topic, batch.partition);
                    self.shared.held.fetch_add(1, SeqCst);
                    rung.extend(self.hand(Job::Send(batch), route).filter(|node| !rung.contains(node)));
                }
                rung.into_iter().for_each(|node| self.ring(node));
            }
        }
    }

    fn ring(&self, node: i32) {
        if let Some(worker) = self.brokers.get(&node) {
            worker.post.ring();
        }
    }

    /// Lays a job into the inbox of its broker; `None`: it went back.
    fn hand(&mut self, job: Job, route: Result<i32, (Pace, String)>) -> Option<i32> {
        let node = match route.and_then(|node| self.worker(node).map(|()| node)) {
            Ok(node) => node,
            Err((pace, why)) => {
                if let Job::Send(batch) = &job {
                    self.cluster.stale(&batch.load.topic, Instant::now());
                }
                self.shared.give_back(job, pace, &why);
                return None;
            }
        };
        self.brokers.get(&node)?.post.put(job);
        Some(node)
    }

    /// Makes sure that a broker has its thread.
    fn worker(&mut self, node: i32) -> Result<(), (Pace, String)> {
        let address = self.cluster.node(node).map(Node::address).unwrap_or_default();
        match self.brokers.get(&node) {
            Some(worker) if worker.address == address => return Ok(()),
            Some(_) => self.retire(node),
            None => {}
        }
        self.serial += 1;
        let serial = self.serial;
        let (post, inbox) = inbox::pair().map_err(|e| (Pace::Backoff, format!("eventfd: {e}")))?;
        let broker = Broker::new(node, serial, address.clone(), self.shared.clone(), inbox);
        thread::Builder::new()
            .name(format!("broker-{node}"))
            .stack_size(STACK)
            .spawn(move || broker.run())
            .map_err(|e| (Pace::Backoff, format!("cannot start a thread: {e}")))?;
        self.brokers.insert(node, Worker { post, serial, address, down: false });
        Ok(())
    }

    /// Ends a broker's thread. What it has not taken comes back at once, also while it hangs in connecting.
    fn retire(&mut self, node: i32) {
        if let Some(worker) = self.brokers.remove(&node) {
            for job in worker.post.take_back() {
                self.shared.give_back(job, Pace::Now, "the broker has another address");
            }
            self.shared.board.brokers().remove(&worker.address);
        }
    }

    fn tell(&self, views: impl IntoIterator<Item = TopicView>) {
        views.into_iter().for_each(|view| self.shared.event(Event::Topic(view)));
    }

    fn news(&mut self, news: News) {
        let now = Instant::now();
        match news {
            News::Up { node, serial } => self.reachable(node, serial, true),
            News::Down { node, serial } => self.reachable(node, serial, false),
            News::Ended => {}
            News::Stale(topic) => self.cluster.stale(&topic, now),
            News::Leader { topic, partition, leader, epoch, nodes } => {
                let views = self.cluster.hint(&topic, partition, leader, epoch, &nodes);
                self.tell(views);
                if self.cluster.node(leader).is_none() {
                    self.cluster.stale(&topic, now);
                }
            }
            News::Metadata { answer, topics } => {
                self.asking = false;
                let views = self.cluster.learn(answer, &topics, now);
                let gone = |(node, w): (&i32, &Worker)| {
                    (self.cluster.node(*node).map(Node::address).as_ref() != Some(&w.address))
                        .then_some(*node)
                };
                let gone: Vec<i32> = self.brokers.iter().filter_map(gone).collect();
                gone.into_iter().for_each(|node| self.retire(node));
                self.tell(views);
            }
            News::Unfit(why) => self.unfit = Some(why),
        }
    }

    fn reachable(&mut self, node: i32, serial: u64, yes: bool) {
        if let Some(worker) = self.brokers.get_mut(&node).filter(|w| w.serial == serial) {
            worker.down = !yes;
            let views = self.cluster.reachable(node, yes, Instant::now());
            self.tell(views);
        }
    }

    /// Ends the workers. Before another driver takes over, every batch must be back; a worker with batches never blocks
    /// for long, so the limit is for the case that this is wrong.
    fn end(&mut self, leave: &Leave, told: &Receiver<News>) {
        let nodes: Vec<i32> = self.brokers.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.retire(node));
        self.shared.board.brokers().remove("bootstrap");
        let limit = Instant::now() + Duration::from_secs(10);
        while matches!(leave, Leave::Unfit { .. }) && self.shared.held.load(SeqCst) > 0 {
            if told.recv_deadline(limit).is_err() {
                log::error!("{} batches did not come back", self.shared.held.load(SeqCst));
                return;
            }
        }
    }
}
