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
//! Files in reading order: `wire` (primitive types, request header), `messages`, `passes` and `limits` (requests, answers; those of SASL; of topics' limits), `errors`
//! (what each code means), `codec`, `records` (the encoder), `cluster` (who leads what), `coordinator`, `secret` (files),
//! `tls`, `stream` (a socket, bare or in TLS), `input` (frames), `scram`, `sasl`, `connection`, `inbox`, `pick` (what makes
//! a request), `session` (requests in the air), `fence` (no overtaking), `broker` (one broker's thread), `scout`, `health`
//! (board and log), `visit` (for `check --connect`).
//!
//! Invariant: a batch is held by exactly one of: an inbox, a session, an event. A worker that connects holds none.

mod broker;
mod cluster;
pub mod codec;
mod connection;
mod coordinator;
mod errors;
mod fence;
mod health;
mod inbox;
mod input;
mod limits;
mod lz4;
mod messages;
mod passes;
mod pick;
mod producers;
mod records;
pub mod sasl;
mod scout;
mod scram;
mod secret;
mod session;
mod stream;
pub mod tls;
pub mod visit;
mod wire;

#[cfg(test)]
mod mutated;
#[cfg(test)]
mod scripted;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trial;
#[cfg(test)]
mod trial_epochs;

use super::driver::{Abilities, Acks, Event, Leave, Order, STACK, Verdict};
use super::flight::Batch;
use crate::chunk::Topic;
use crate::report::Board;
use codec::Codec;
use coordinator::Coordinator;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use fence::Fences;
use messages::Node;
use scout::Scout;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

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
    /// `Some` turns TLS on.
    pub tls: Option<tls::Options>,
    pub sasl: Option<sasl::Options>,
    pub unfit: Unfit,
}

/// When to leave the broker to another driver ([`Leave::Unfit`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// Never: the config asks for this driver.
    Wait,
    /// Where the broker says that it has no Produce 3.
    TooOld,
    /// Also where it claims to have it, and then refuses our requests or hangs up on them: another driver may do better.
    Refused,
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
            tls: None,
            sasl: None,
            unfit: Unfit::Wait,
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
    Stale {
        topic: Topic,
        partition: i32,
    },
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
    ProducerId {
        pid: i64,
        epoch: i16,
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
    /// How often a broker hung up on a Produce request while none has ever been answered. `None`: one was.
    hang_ups: Mutex<Option<u32>>,
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

/// So many Produce requests that a broker hangs up on show that it does not take ours, where none was ever answered.
const HANG_UPS: u32 = 5;

/// After this a question about a producer counts as unanswered. (Ship is promised an answer within 30 s.)
const ASK_PATIENCE: Duration = Duration::from_secs(25);

impl Shared {
    fn new(options: Options, board: Arc<Board>, events: Sender<Event>, news: Sender<News>) -> Self {
        Shared {
            options,
            board,
            events,
            news,
            held: AtomicUsize::new(0),
            fences: Fences::default(),
            hang_ups: Mutex::new(Some(0)),
            asks: Mutex::default(),
        }
    }

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

    /// A broker answered a Produce request.
    fn takes_ours(&self) {
        *self.hang_ups.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A broker closed the connection on a Produce request.
    fn hung_up(&self, why: &str) {
        let mut hang_ups = self.hang_ups.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(so_far) = hang_ups.as_mut() else { return };
        *so_far += 1;
        if *so_far >= HANG_UPS && self.options.unfit == Unfit::Refused {
            self.news(News::Unfit(format!("{why} on each of {so_far} Produce requests")));
        }
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

/// A worker of this driver alone.
#[cfg(test)]
fn start(options: Options, board: Arc<Board>) -> std::io::Result<super::driver::Ends> {
    super::driver::Drive::new(move |orders, events, board| run(&options, orders, events, board)).start(&board)
}

/// Carries out orders until they end or change to another driver, or until the broker turns out to be one for another.
pub fn run(options: &Options, orders: &Receiver<Order>, events: &Sender<Event>, board: &Arc<Board>) -> Leave {
    #[allow(clippy::disallowed_methods, reason = "a few per batch in flight, and per broker")]
    let (news, told) = unbounded();
    let shared = Arc::new(Shared::new(options.clone(), board.clone(), events.clone(), news));
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
    Coordinator::new(shared, questions).run(orders, &told)
}
