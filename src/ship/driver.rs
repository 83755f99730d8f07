//! What ship and a driver say to each other. A driver is two channel ends and threads of its own; there is no trait.
//!
//! Invariant: every batch that was submitted comes back exactly once, in one [`Event::Done`]. A driver never retries a
//! batch by itself: it reports, ship decides and submits again.
//!
//! Drivers have one shape, [`Drive`], so that one can follow another on the same channel ends: `auto` changes them by what
//! the broker takes, ship by [`Order::Change`]. Each says [`Event::Ready`] first; after every `Ready` ship says its topics
//! ([`Order::Topic`]) anew, for the driver before may have taken those orders with it.

use super::flight::Batch;
use super::outage;
use crate::chunk::Topic;
use crate::report::Board;
use crate::sys;
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread;

/// Ship's side. The worker's thread is detached: it may hang in name resolution while all else has ended. Dropping
/// `orders` ends the worker.
///
/// Both channels are unbounded: what is in them is bounded by the byte budget, and neither side may ever wait for the
/// other (ship waits nowhere but in its select, a worker nowhere but on its sockets).
pub struct Ends {
    pub orders: Sender<Order>,
    pub events: Receiver<Event>,
}

impl Ends {
    /// Ship's ends and the worker's.
    #[allow(clippy::disallowed_methods)] // both are bounded by the flights in the air, which ship bounds
    pub fn pair() -> (Ends, Receiver<Order>, Sender<Event>) {
        let (orders, inbox) = unbounded();
        let (out, events) = unbounded();
        (Ends { orders, events }, inbox, out)
    }
}

/// Bytes of a worker's stack. Code that is not optimised builds miniz's state of some 300 KB there before it boxes it.
pub const STACK: usize = if cfg!(debug_assertions) { 2 << 20 } else { 256 << 10 };

/// A driver's `run` with its options bound.
#[derive(Clone)]
pub struct Drive(Arc<Run>);

type Run = dyn Fn(&Receiver<Order>, &Sender<Event>, &Arc<Board>) -> Leave + Send + Sync;

impl Drive {
    pub fn new(
        run: impl Fn(&Receiver<Order>, &Sender<Event>, &Arc<Board>) -> Leave + Send + Sync + 'static,
    ) -> Self {
        Drive(Arc::new(run))
    }

    /// Carries out orders until it leaves.
    pub fn run(&self, orders: &Receiver<Order>, events: &Sender<Event>, board: &Arc<Board>) -> Leave {
        (self.0)(orders, events, board)
    }

    /// Starts the worker: this driver, and after it those that ship changes to. Its thread is never joined: see [`Ends`].
    pub fn start(self, board: &Arc<Board>) -> io::Result<Ends> {
        let (ends, orders, events) = Ends::pair();
        let board = board.clone();
        let body = move || {
            // A signal in mid-write would cut a frame short; the drivers' own threads inherit this.
            if let Err(e) = sys::block_signals() {
                let _ = events.send(Event::Dead { why: format!("cannot block signals: {e}") });
                return;
            }
            let mut drive = self;
            while let Leave::Changed(next) = drive.run(&orders, &events, &board) {
                outage::forget(&board);
                drive = next;
            }
        };
        thread::Builder::new().name("driver".into()).stack_size(STACK).spawn(body)?;
        Ok(ends)
    }
}

impl fmt::Debug for Drive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Drive")
    }
}

/// Why a driver ended. By then every batch it held has come back.
#[derive(Debug, Clone)]
pub enum Leave {
    /// Ship dropped its orders (or its events): the end.
    Closed,
    /// The broker is one for another driver. Only `auto` lets a driver say so; a fixed one waits.
    Unfit { why: String },
    /// Ship changes to this one.
    Changed(Drive),
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
    /// A new producer id, for a driver with [`Abilities::numbered`].
    ProducerId,
    /// What the partition's leader knows of a producer (DescribeProducers, brokers from 2.8). Always answered by an
    /// [`Event::Knows`], at the latest after 30 s.
    Ask { topic: Topic, partition: i32, pid: i64 },
    /// Send these, each to the leader of its partition; batches of one partition in this order. Records, keys and
    /// headers come from [`super::render::Pen::each`], the timestamp from [`Batch::stamp_ms`].
    Send(Vec<Batch>),
    /// Leave, and let this driver go on. The driver holds no batch when it comes.
    Change(Drive),
}

#[derive(Debug)]
pub enum Event {
    /// What this driver can do: before anything else, and again when `auto` has changed the driver. All batches have
    /// come back by then.
    Ready(Abilities),
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
    /// *not* such a case: that is waited for). Ship ends with this reason.
    Dead {
        why: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abilities {
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
    pub living: Vec<i32>,
}

/// What became of a batch.
#[derive(Debug)]
pub enum Verdict {
    /// Stored as the acks asked for; the first record's offset, unknown with `acks = 0`.
    Stored { offset: Option<i64> },
    /// Not acknowledged, to be sent again. `maybe_stored`: the broker may have it all the same (a time-out, a lost
    /// connection), so only the same numbers may carry the same bytes. When a connection is lost, what waits for it comes
    /// back unsent as well, also what ship orders before it can have heard: a broker that has forgotten the producer
    /// would take a later batch for its first, and an earlier one could no longer be proved missing.
    Again { maybe_stored: bool, pace: Pace, why: String },
    /// Not stored, and the same batch never will be.
    Refused { what: Refusal, why: String },
    /// Only when numbered: 45 OUT_OF_ORDER_SEQUENCE_NUMBER, 59 UNKNOWN_PRODUCER_ID, 47 INVALID_PRODUCER_EPOCH.
    Misnumbered { code: i16, why: String },
}

/// How soon a batch is worth another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Nothing is wrong with broker or batch (the leader has moved and is known already, the driver changed).
    Now,
    /// Backoff up to 5 s.
    Backoff,
    /// Somebody must give a right or a topic first: each minute.
    Held,
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
