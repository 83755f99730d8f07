//! STAGE 2: chunks in, acks out. The producer thread, which owns topics, partitions, broker connections and, with
//! exactly-once, the journal.

pub mod batch;
mod core;
pub mod dead_letter;
pub mod driver;
mod json;
pub mod outage;
mod partition;
mod partitioner;
pub mod record_encoder;
pub mod recovered;
pub mod sequence;
#[cfg(test)]
mod sim;
#[cfg(test)]
pub mod testing;
mod topic_queue;
pub mod worker;

pub use worker::Outbox;

use crate::chunk::Chunk;
use crate::clock;
use crate::heartbeat::Heartbeat;
use crate::stop::Stop;
use crate::streams::Registry;
use crate::sys::heap;
use crate::waker::{Waker, Waking};
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use driver::{Context, Current, Drive, Event, Order};

use batch::Batch;
use core::Core;
use partition::Now;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How a record's partition is chosen. "Living" are partitions with a reachable leader that are not in trouble.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Partitioner {
    /// This partition, also when it must be waited for.
    Fixed(i32),
    /// By the key's murmur2 over all partitions, as Kafka's Java client; records without a key go `Sticky`.
    Hash,
    /// The next available one for each record.
    RoundRobin,
    /// Any available one for each record.
    Random,
    /// One available partition per flight: the cheapest.
    Sticky,
}

/// What the core needs to know.
#[derive(Debug)]
pub struct Options {
    pub partitioner: Partitioner,
    /// Most bytes of lines in one batch (one chunk that is larger goes alone).
    pub batch: usize,
    /// Wait for more lines although nothing is in flight; zero sends at once.
    pub linger: Duration,
    /// Bytes of lines per second over all topics; slows down, never drops.
    pub rate: Option<u64>,
    /// The state folder's `dead-letter` file; without one, dead letters are logged and counted only.
    pub dead_letter: Option<PathBuf>,
    /// Most bytes in that file; a full one holds the topic.
    pub dead_letter_limit: u64,
    /// What the wall clock showed at the last save of an earlier run, in ms since 1970: see [`clock::stamp`].
    pub saved_ms: i64,
    /// For `random` and the jitter of retries.
    pub seed: u64,
    /// For `send`: what became of each batch, as it is stored.
    pub receipts: Option<Sender<Receipt>>,
    /// Exactly-once: what an earlier run left.
    pub once: Option<recovered::RecoveredState>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            partitioner: Partitioner::Sticky,
            batch: 512 << 10,
            linger: Duration::ZERO,
            rate: None,
            dead_letter: None,
            dead_letter_limit: 64 << 20,
            saved_ms: 0,
            seed: 1,
            receipts: None,
            once: None,
        }
    }
}

/// What a running producer is to do otherwise from now on.
#[derive(Debug)]
pub struct Change {
    /// `partitioner`, `batch`, `linger` and `rate` of these are taken up.
    pub options: Options,
    /// Another driver. It begins when all batches have come back from the one before; until then none is sent.
    pub drive: Option<Drive>,
    /// With brokers that may be another cluster: there our producer id may be somebody else's.
    pub elsewhere: bool,
}

/// `count` records stand in `partition`, the first at `offset` (unknown with `acks = 0`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Receipt {
    pub partition: i32,
    pub offset: Option<i64>,
    pub count: u32,
}

/// No driver carries this producer's lines any more, and none ever will.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dead {
    pub why: String,
}

/// When the thread is to end although something is left.
#[derive(Debug)]
pub struct Halts {
    /// As soon as nothing moves: what is left is refused, or goes nowhere because no broker can be reached. `None`: never.
    pub stuck: Option<Stop>,
    /// At once.
    pub now: Stop,
}

/// How long a broker that cannot be reached may take to come back before a stop waits for it no longer: from the stop on,
/// or from when nothing moved any more, if that was earlier.
const RETURN: Duration = Duration::from_secs(1);

/// RecoveredTopic is given back after so long without lines.
const TRIM_AFTER: Duration = Duration::from_secs(1);

/// Chunks taken at a time before what they make possible is sent.
const AT_A_TIME: usize = 256;

/// Tells a running producer to do otherwise.
#[derive(Debug)]
pub struct Changes(Waking<Sender<Change>>);

impl Changes {
    /// One change may wait.
    pub fn new(waker: &Waker) -> (Changes, Receiver<Change>) {
        let (to, from) = crossbeam_channel::bounded(1);
        (Changes(Waking::new(to, waker)), from)
    }

    /// Waits until the one before has been taken. Without a producer it is of no concern.
    pub fn send(&self, change: Change) {
        let _ = self.0.get().send(change);
        self.0.wake();
    }
}

/// What exactly-once does before a batch reaches the driver: it is written down.
pub trait BeforeSend: Send {
    /// Takes batches that are to be sent.
    fn hold(&mut self, batches: Vec<Batch>);

    /// Writes down what may be sent, as one group, and gives those batches.
    fn record(&mut self, now: Instant) -> Vec<Batch>;

    /// When to record again although nothing happened.
    fn wake(&self, now: Instant) -> Option<Instant>;
}

/// What the producer's thread is started with. Every sender of these wakes `context.waker`.
pub struct Producer<'a> {
    pub options: Options,
    pub inbox: Receiver<Chunk>,
    pub changes: Receiver<Change>,
    pub drive: Drive,
    pub context: Context,
    /// Exactly-once.
    pub journal: Option<Box<dyn BeforeSend>>,
    pub registry: &'a Registry,
    pub halts: Halts,
}

/// The thread's loop. It takes whatever comes, from either side, and waits nowhere but in its `poll(2)`; so a topic that
/// does not move holds only its own share of the byte budget.
///
/// Ends when the inbox is closed (the tails have ended) and nothing is left, or as [`Halts`] says.
pub fn run(producer: Producer<'_>) -> Result<(), Dead> {
    let Producer { options, inbox, changes, drive, context, journal, registry, halts } = producer;
    let board = context.board.clone();
    let core = Core::new(options, &board, now());
    let current = Current::new(context.clone(), &drive);
    let (ready, events) = (Vec::new(), Vec::new());
    Loop { core, current, journal, waker: context.waker, ready, events, registry, idle: Idle::No }
        .run(&inbox, &changes, &halts)
}

struct Loop<'b> {
    core: Core<'b>,
    current: Current,
    journal: Option<Box<dyn BeforeSend>>,
    waker: Waker,
    /// What `poll(2)` has found at the driver's sockets.
    ready: Vec<PollFlags>,
    events: Vec<Event>,
    registry: &'b Registry,
    idle: Idle,
}

/// Since when there is nothing to send and nothing unacknowledged.
#[derive(Clone, Copy)]
enum Idle {
    No,
    TrimAt(Instant),
    Trimmed,
}

impl Loop<'_> {
    fn run(mut self, inbox: &Receiver<Chunk>, changes: &Receiver<Change>, halts: &Halts) -> Result<(), Dead> {
        let (mut halted, mut stuck): (Option<Instant>, Option<Instant>) = (None, None);
        let mut open = true;
        loop {
            self.core.heartbeat.within(Heartbeat::TURN);
            self.waker.begin_round();
            // What came back is known before anything is sent.
            self.turn()?;
            if open && take(inbox, |chunk| self.core.chunk(chunk, now())) {
                open = false;
                self.core.close();
            }
            // Behind the inbox: what a tail sent after the change is not for the driver before it.
            changes.try_iter().for_each(|change| self.core.change(change, now()));
            let wake = self.send()?;
            let empty = self.core.is_empty();
            if !open && empty {
                return Ok(());
            }
            if halts.now.is_on() {
                return Ok(());
            }
            let here = Instant::now();
            if halts.stuck.as_ref().is_some_and(Stop::is_on) {
                halted.get_or_insert(here);
            }
            stuck = if self.core.is_stuck() { stuck.or(Some(here)) } else { None };
            let patience = halted.zip(stuck).map(|(halted, stuck)| halted.min(stuck) + RETURN);
            if !open && patience.is_some_and(|until| here >= until) {
                log::warn!("no broker takes what is left: not waiting for it");
                return Ok(());
            }
            if !self.events.is_empty() {
                continue; // what they make possible comes first
            }
            let trim = self.trim(empty && inbox.is_empty(), here);
            let patience = patience.filter(|until| *until > here);
            let wake = [wake, patience, trim].into_iter().flatten().min();
            let more = !inbox.is_empty();
            self.wait(wake, more, here);
        }
    }

    /// Gives free buffers back to the system after a second without lines; not between two lines of a trickle, each of
    /// which would map and fault them in again. When that is due.
    fn trim(&mut self, idle: bool, now: Instant) -> Option<Instant> {
        if !idle {
            self.idle = Idle::No;
        }
        match self.idle {
            Idle::No if idle => self.idle = Idle::TrimAt(now + TRIM_AFTER),
            Idle::TrimAt(at) if now >= at => {
                heap::trim();
                self.idle = Idle::Trimmed;
            }
            _ => {}
        }
        if let Idle::TrimAt(at) = self.idle { Some(at) } else { None }
    }

    /// A turn of the driver; the core learns what came of it.
    fn turn(&mut self) -> Result<(), Dead> {
        let now = now();
        let alive = self.current.turn(&self.ready, now.at, &mut self.events);
        self.ready.clear();
        let core = &mut self.core;
        self.events.drain(..).try_for_each(|event| core.event(event, now))?;
        if alive { Ok(()) } else { Err(Dead { why: "its worker has ended".into() }) }
    }

    /// Sends what may leave now. When to come again, if nothing happens before.
    fn send(&mut self) -> Result<Option<Instant>, Dead> {
        let now = now();
        let wake = self.core.tick(now);
        let mut ordered = false;
        for order in self.core.orders() {
            match (order, &mut self.journal) {
                (Order::Send(batches), Some(journal)) => journal.hold(batches),
                (order, _) => {
                    self.current.order(order, now.at);
                    ordered = true;
                }
            }
        }
        if let Some(journal) = &mut self.journal {
            self.core.heartbeat.within(Heartbeat::SLOW); // a disk
            let recorded = journal.record(now.at);
            self.core.heartbeat.within(Heartbeat::TURN);
            if !recorded.is_empty() {
                self.current.order(Order::Send(recorded), now.at);
                ordered = true;
            }
        }
        let mut alive = true;
        if ordered {
            alive = self.current.turn(&[], now.at, &mut self.events);
        }
        self.registry.acknowledge(self.core.acks.drain(..));
        if std::mem::take(&mut self.core.save_soon) {
            self.registry.save_soon();
        }
        self.core.prepare();
        if !alive && self.events.is_empty() {
            return Err(Dead { why: "its worker has ended".into() });
        }
        let journal = self.journal.as_ref().and_then(|j| j.wake(now.at));
        Ok([wake, journal, self.current.driver().wake()].into_iter().flatten().min())
    }

    /// Waits for news, for the sockets, and at most until `wake`. With `more` it only looks.
    fn wait(&mut self, wake: Option<Instant>, more: bool, now: Instant) {
        let longest = self.core.longest_wait();
        let wait = wake.map_or(longest, |at| at.saturating_duration_since(now).min(longest));
        let wait = if more || !self.waker.may_sleep() { Duration::ZERO } else { wait };
        self.core.heartbeat.within(wait);
        let mut fds: Vec<PollFd<'_>> = vec![self.waker.poll_fd()];
        self.current.driver().sockets(&mut fds);
        let limit =
            Timespec { tv_sec: wait.as_secs().min(1 << 30) as _, tv_nsec: wait.subsec_nanos().into() };
        if let Err(e) = poll(&mut fds, Some(&limit)) {
            if e != rustix::io::Errno::INTR {
                log::error!("poll: {e}");
            }
            fds.iter_mut().for_each(PollFd::clear_revents);
        }
        let woken = !fds[0].revents().is_empty();
        self.ready.extend(fds[1..].iter().map(PollFd::revents));
        if woken {
            self.waker.clear();
        }
    }
}

/// Takes what is there; `true`: the channel is closed.
fn take<T>(from: &Receiver<T>, mut with: impl FnMut(T)) -> bool {
    for _ in 0..AT_A_TIME {
        match from.try_recv() {
            Ok(t) => with(t),
            Err(e) => return e == TryRecvError::Disconnected,
        }
    }
    false
}

fn now() -> Now {
    Now { at: Instant::now(), wall_ms: clock::now_ms() }
}

#[cfg(test)]
mod tests;
