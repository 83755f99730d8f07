//! What the producer and a driver say to each other. The producer's loop drives a [`Driver`] by calls and waits for its
//! sockets; nothing in a driver blocks. A client that does block (the `kafka` crate, standard output) runs in a
//! [`Worker`]'s thread.
//!
//! Invariant: every batch that was submitted comes back exactly once, in one [`Event::Done`]. A driver never retries a
//! batch by itself: it reports, the core decides and submits again.
//!
//! Each driver says [`Event::Ready`] first; after every `Ready` the core orders its topics ([`Order::Topic`]) again, for
//! the driver before may have taken those orders with it.

use super::batch::Batch;
use super::outage;
use super::worker::{Outbox, Worker};
use crate::record::Topic;
use crate::report::Board;
use crate::waker::Waker;
use crossbeam_channel::Receiver;
use rustix::event::{PollFd, PollFlags};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a helper thread's stack. Code that is not optimised builds miniz's state of some 300 KB there before it boxes
/// it.
pub const STACK: usize = if cfg!(debug_assertions) { 2 << 20 } else { 256 << 10 };

/// Carries batches to where they are stored.
pub trait Driver {
    /// Carries out an order as far as can be done without waiting; the rest in later turns.
    fn order(&mut self, order: Order, now: Instant);

    /// Does what can be done now. `ready`: what `poll(2)` found at each of [`Driver::sockets`], in that order; empty when
    /// it was not asked.
    fn turn(&mut self, ready: &[PollFlags], now: Instant, events: &mut Vec<Event>);

    /// What to wait for. A turn must follow before any order.
    fn sockets<'a>(&'a self, add: &mut Vec<PollFd<'a>>);

    /// When the next turn is due although nothing happens.
    fn wake(&self) -> Option<Instant>;

    /// Ends: no more orders come. Every batch comes back in the turns that follow.
    fn close(&mut self);

    /// Whether it has ended, and why. Every batch has come back by then.
    fn left(&self) -> Option<Leave>;
}

/// Why a driver ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leave {
    /// It was closed, or said [`Event::Dead`].
    Closed,
    /// The broker is one for another driver. Only under `auto`; a fixed driver waits.
    Incompatible { why: String },
}

/// What a driver is built with.
#[derive(Clone, Debug)]
pub struct Context {
    pub board: Arc<Board>,
    /// Wakes the thread that drives it.
    pub waker: Waker,
}

/// Builds a driver, as often as it is needed.
#[derive(Clone)]
pub struct Drive(Arc<Build>);

type Build = dyn Fn(&Context) -> Box<dyn Driver> + Send + Sync;

impl Drive {
    pub fn new(build: impl Fn(&Context) -> Box<dyn Driver> + Send + Sync + 'static) -> Self {
        Drive(Arc::new(build))
    }

    /// A client that blocks, in a thread of its own. `limit`: how long a batch may be with it without any news before it
    /// counts as stuck; `None`: as long as it takes.
    pub fn worker(
        limit: Option<Duration>,
        run: impl Fn(&Receiver<Order>, &Outbox, &Arc<Board>) -> Leave + Send + Sync + 'static,
    ) -> Self {
        let run = Arc::new(run);
        Drive::new(move |context| Box::new(Worker::start(context, limit, run.clone())))
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

/// The driver at work, and the one that follows it.
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

    /// A turn of the driver, after it of the one that follows it. `false`: there is none any more.
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

    pub fn driver(&self) -> &dyn Driver {
        self.driver.as_ref()
    }
}

/// What a broker must have done before it says "stored".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Acks {
    /// Nothing: stored means written to the socket, and losses are silent.
    Zero,
    /// The leader has written it; it goes when the leader dies before a follower has it.
    One,
    /// All replicas in sync have it.
    #[default]
    All,
}

#[derive(Debug)]
pub enum Order {
    /// Take this topic up: an [`Event::Topic`] as soon as its partitions are known, and again at each change.
    Topic(Topic),
    /// A new producer id, for a driver with [`Capabilities::numbered`].
    ProducerId,
    /// What the partition's leader knows of a producer (DescribeProducers, brokers from 2.8). Always answered by an
    /// [`Event::Knows`], at the latest after 30 s.
    Ask { topic: Topic, partition: i32, pid: i64 },
    /// Send these, each to the leader of its partition; batches of one partition in this order. Records, keys and
    /// headers come from [`super::record_encoder::RecordEncoder::each`], the timestamp from [`Batch::stamp_ms`].
    Send(Vec<Batch>),
    /// Leave, and let this driver go on. The driver holds no batch when it comes.
    Change(Drive),
}

#[derive(Debug)]
pub enum Event {
    /// What this driver can do: before anything else, and again when `auto` has changed the driver. All batches have
    /// come back by then.
    Ready(Capabilities),
    Topic(TopicView),
    ProducerId {
        pid: i64,
        epoch: i16,
    },
    /// The brokers are of another cluster now: the producer id was given by the one before, and may be another's in this.
    OtherCluster,
    /// `last`: epoch and last sequence, `None` when the leader does not know the producer; `Err` when it could not be asked.
    Knows {
        topic: Topic,
        partition: i32,
        pid: i64,
        last: Result<Option<(i16, i32)>, String>,
    },
    Done {
        batch: Batch,
        verdict: Verdict,
    },
    /// This driver can never work here (standard output is closed, a fixed driver meets a broker it cannot speak to is
    /// *not* such a case: that is waited for). The core ends with this reason.
    Dead {
        why: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// "classic", "modern" or "stdout".
    pub name: &'static str,
    /// Batches carry a producer id, an epoch and sequences: retries neither double nor reorder.
    pub numbered: bool,
    /// Batches of one partition that may be in flight at once; above 1 only if `numbered`.
    pub in_flight: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicView {
    pub topic: Topic,
    /// All zeros where the broker has no topic ids.
    pub id: [u8; 16],
    /// All partitions, in order. Usually `0..n`, but ids may have gaps.
    pub partitions: Vec<i32>,
    /// Those with a leader that can be reached, as far as known.
    pub available: Vec<i32>,
}

/// What became of a batch.
#[derive(Debug)]
pub enum Verdict {
    /// Stored as the acks asked for; the first record's offset, unknown with `acks = 0`.
    Stored { offset: Option<i64> },
    /// Not acknowledged, to be sent again. `maybe_stored`: the broker may have it all the same (a time-out, a lost
    /// connection), so only the same numbers may carry the same bytes. When a connection is lost, what waits for it comes
    /// back unsent as well, also what the core orders before it can have heard: a broker that has forgotten the producer
    /// would take a later batch for its first, and an earlier one could no longer be proved missing.
    Retry { maybe_stored: bool, pace: Pace, why: String },
    /// Not stored, and the same batch never will be.
    Refused { what: Refusal, why: String },
    /// Only when numbered: the leader knows another sequence or epoch, and has not stored the batch. `new_id`: no epoch
    /// of this producer id helps.
    SequenceError { new_id: bool, why: String },
}

/// How soon a batch is worth another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Nothing is wrong with broker or batch (the leader has moved and is known already, the driver changed).
    Now,
    /// Backoff up to 5 s.
    Backoff,
    /// Somebody must give a right or a topic first: each minute.
    Blocked,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Too large for broker or topic: split; a single record is a dead letter.
    TooLarge,
    /// These records (index in the batch) are bad, the others are not.
    Records(Vec<u32>),
    /// Something in it is bad: split to find it.
    Something,
    /// The timestamp: stamp anew.
    Timestamp,
}
