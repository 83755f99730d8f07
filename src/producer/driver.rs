//! The interface between the producer and a driver. The producer's loop calls a [`Driver`] and polls its sockets, so a
//! driver must not block. A blocking client (the `kafka` crate, standard output) runs in a [`super::worker::Worker`]'s thread.
//!
//! Invariant: every submitted batch is returned exactly once, in one [`Event::Done`]. A driver never retries on its
//! own: it reports the outcome, and the core decides whether to submit again.
//!
//! Each driver sends [`Event::Ready`] first. After every `Ready` the core orders its topics ([`Order::Topic`]) again,
//! since the previous driver may have lost those orders.

use super::batch::Batch;
use super::outage;
use crate::record::Topic;
use crate::report::Board;
use crate::waker::Waker;
use rustix::event::{PollFd, PollFlags};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Stack size of a helper thread in bytes. Unoptimized code builds miniz's state of some 300 KB on the stack before
/// boxing it.
pub const STACK: usize = if cfg!(debug_assertions) { 2 << 20 } else { 256 << 10 };

/// How late an answer may be read. At a trickle a wake-up costs more than all else a line needs, and the next line wakes
/// the producer anyway. Far below a second, after which positions are saved.
pub const ANSWERS_MAY_WAIT: Duration = Duration::from_millis(50);

/// Delivers batches to their destination.
pub trait Driver {
    /// Executes an order as far as possible without blocking; later turns do the rest.
    fn order(&mut self, order: Order, now: Instant);

    /// Does what can be done now. `ready`: what `poll(2)` reported for each of [`Driver::sockets`], in that order;
    /// empty if they were not polled.
    fn turn(&mut self, ready: &[PollFlags], now: Instant, events: &mut Vec<Event>);

    /// Whether answers may be read late, because no line waits for one: up to [`ANSWERS_MAY_WAIT`], and with the next
    /// turn at the latest. Call before [`Driver::wake`] and [`Driver::sockets`]; holds until the next turn.
    fn defer_answers(&mut self, _defer: bool, _now: Instant) {}

    /// The sockets to poll. A turn must follow before any order.
    fn sockets<'a>(&'a self, add: &mut Vec<PollFd<'a>>);

    /// When the next turn is due even if nothing happens.
    fn wake(&self) -> Option<Instant>;

    /// Shuts down: no more orders follow. The next turns return every batch.
    fn close(&mut self);

    /// Whether and why it has ended. By then it has returned every batch.
    fn left(&self) -> Option<Leave>;
}

/// Why a driver ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leave {
    /// It was closed, or sent [`Event::Dead`].
    Closed,
    /// The broker needs another driver. Only under `auto`; a fixed driver waits.
    Incompatible { why: String },
}

/// What a driver is built from.
#[derive(Clone, Debug)]
pub struct Context {
    pub board: Arc<Board>,
    /// Wakes the thread that drives it.
    pub waker: Waker,
}

/// Builds a driver, any number of times.
#[derive(Clone)]
pub struct Drive(Arc<Build>);

type Build = dyn Fn(&Context) -> Box<dyn Driver> + Send + Sync;

impl Drive {
    pub fn new(build: impl Fn(&Context) -> Box<dyn Driver> + Send + Sync + 'static) -> Self {
        Drive(Arc::new(build))
    }

    pub fn build(&self, context: &Context) -> Box<dyn Driver> {
        (self.0)(context)
    }
}

impl fmt::Debug for Drive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Drive")
    }
}

/// The current driver and its replacement.
pub struct Current {
    context: Context,
    driver: Box<dyn Driver>,
    next: Option<Drive>,
}

impl Current {
    pub fn new(context: Context, first: &Drive) -> Self {
        Current { driver: first.build(&context), context, next: None }
    }

    pub fn order(&mut self, order: Order, now: Instant) {
        match order {
            Order::Change(next) => {
                self.driver.close();
                self.next = Some(next);
            }
            order => self.driver.order(order, now),
        }
    }

    /// Runs a turn of the driver; if it ends, its replacement takes over. `false`: there is no replacement.
    #[must_use]
    pub fn turn(&mut self, ready: &[PollFlags], now: Instant, events: &mut Vec<Event>) -> bool {
        self.driver.turn(ready, now, events);
        if self.driver.left().is_none() {
            return true;
        }
        let Some(next) = self.next.take() else { return false };
        outage::forget(&self.context.board);
        self.driver = next.build(&self.context);
        self.driver.turn(&[], now, events);
        true
    }

    /// Ends the driver without a replacement.
    #[cfg(test)]
    pub fn close(&mut self) {
        self.driver.close();
    }

    pub fn driver(&self) -> &dyn Driver {
        self.driver.as_ref()
    }

    pub fn defer_answers(&mut self, defer: bool, now: Instant) {
        self.driver.defer_answers(defer, now);
    }
}

/// When a broker acknowledges a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Acks {
    /// Never: a batch counts as stored once it is written to the socket, and losses go unnoticed.
    Zero,
    /// After the leader has written it. It is lost if the leader fails before a follower has a copy.
    One,
    /// After all in-sync replicas have it.
    #[default]
    All,
}

#[derive(Debug)]
pub enum Order {
    /// Subscribe to this topic: an [`Event::Topic`] as soon as its partitions are known, and again at each change.
    Topic(Topic),
    /// A new producer id, for a driver with [`Capabilities::idempotent`].
    ProducerId,
    /// Ask what the partition's leader knows of a producer (DescribeProducers, brokers from 2.8). Always answered by
    /// an [`Event::Described`], within 30 s.
    Ask { topic: Topic, partition: i32, pid: i64 },
    /// Send these, each to its partition's leader, keeping the order within a partition. Records, keys and headers
    /// come from [`super::record_encoder::RecordEncoder::each`], the timestamp from [`Batch::stamp_ms`].
    Send(Vec<Batch>),
    /// End, and let this driver take over. Sent only when the current driver holds no batch.
    Change(Drive),
}

#[derive(Debug)]
pub enum Event {
    /// What this driver can do. Sent before anything else, and again when `auto` has changed the driver; by then all
    /// batches have been returned.
    Ready(Capabilities),
    Topic(TopicView),
    ProducerId {
        pid: i64,
        epoch: i16,
    },
    /// The brokers belong to another cluster now. Our producer id came from the previous one and may be another
    /// producer's here.
    OtherCluster,
    /// `last`: epoch and last sequence, `None` if the leader does not know the producer; `Err` if it could not be
    /// asked.
    Described {
        topic: Topic,
        partition: i32,
        pid: i64,
        last: Result<Option<(i16, i32)>, String>,
    },
    Done {
        batch: Batch,
        verdict: Verdict,
    },
    /// This driver can never work again, for example because standard output is closed. The core ends with this
    /// reason. A fixed driver that meets a broker it cannot speak to is *not* such a case: it waits.
    Dead {
        why: String,
    },
}

impl Event {
    /// A batch that is not known to be stored.
    pub fn retry(batch: Batch, maybe_stored: bool, pace: Pace, why: &str) -> Event {
        Event::Done { batch, verdict: Verdict::Retry { maybe_stored, pace, why: why.to_owned() } }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// "classic", "modern" or "stdout".
    pub name: &'static str,
    /// Batches carry a producer id, an epoch and sequences, so retries neither duplicate nor reorder.
    pub idempotent: bool,
    /// Maximum batches of one partition in flight; above 1 only if `idempotent`.
    pub in_flight: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicView {
    pub topic: Topic,
    /// All zeros if the broker has no topic ids.
    pub id: [u8; 16],
    /// All partitions, in order. Usually `0..n`, but ids may have gaps.
    pub partitions: Vec<i32>,
    /// Partitions whose leader can be reached, as far as known, in order.
    pub available: Vec<i32>,
}

/// The outcome of a batch.
#[derive(Debug)]
pub enum Verdict {
    /// Stored with the requested acks. `offset` is the first record's, unknown with `acks = 0`.
    Stored { offset: Option<i64> },
    /// Not acknowledged; send it again. `maybe_stored`: the broker may have it anyway (a time-out, a lost connection),
    /// so the same numbers must carry the same bytes. When a connection is lost, its waiting batches are returned
    /// unsent as well, including those the core orders before it can have learned of the loss: a broker that has
    /// forgotten the producer would take a later batch for the first one, and we could no longer prove that an earlier
    /// one is missing.
    Retry { maybe_stored: bool, pace: Pace, why: String },
    /// Not stored, and this batch never will be.
    Refused { what: Refusal, why: String },
    /// Only when idempotent: the leader expects another sequence or epoch and has not stored the batch. `new_id`: no
    /// epoch of this producer id helps.
    SequenceError { new_id: bool, why: String },
}

/// How soon to retry a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Nothing is wrong with broker or batch (the leader moved and is already known, or the driver changed).
    Now,
    /// Exponential backoff up to 5 s.
    Backoff,
    /// An operator must grant a right or create a topic first: retry every minute.
    Blocked,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Too large for broker or topic: split it. A single record becomes a dead letter.
    TooLarge,
    /// These records (by index in the batch, in any order) are bad, the others are not.
    Records(Vec<u32>),
    /// An unknown record is bad: split to find it.
    Something,
    /// The timestamp is refused: send with a new one.
    Timestamp,
}
