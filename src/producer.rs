//! The producer thread: takes chunks, sends their lines to Kafka and acknowledges them. It owns topics, partitions,
//! broker connections and, with exactly-once, the intent log.
//!
//! # Why it is built this way
//!
//! **No delivery timeout.** Other producers drop a record that could not be delivered in two to five minutes. Here the log
//! file is the buffer: the tails stop reading, and the batch is retried for as long as it takes. An error is one of three
//! kinds: *retry* (also each unknown code), *held* (missing rights, an unknown topic: someone may fix it), and *refused* (a
//! record that no retry can deliver: it goes to the dead-letter file, and the others of its batch are sent).
//!
//! **Batching without waiting.** What arrives while a request is in flight goes with the next one, so a lone line is
//! sent at once and a busy file fills its batches; `linger` only adds a wait on links where requests are expensive.
//!
//! **Answers may be read late.** An answer wakes the thread only if a line waits for it. At 100 lines per second the next
//! line wakes it soon anyway, and one wake-up per line instead of two saves a tenth of the agent's CPU time
//! ([`driver::ANSWERS_MAY_WAIT`]).
//!
//! **Always numbered.** With `acks = "all"` every run has a producer id, because without numbers a retry after a timeout doubles
//! or reorders lines. A broker compares numbers and not contents: numbers that may have been stored, given to other
//! records, would silently lose them ([`sequence`]).
//!
//! **A record's time is the time of reading.** Times parsed from lines were rejected: a broker forgets producer ids by
//! record time, so old stamps would end the protection against doubling, Kafka 4.1 refuses stamps that are two hours
//! ahead, and retention deletes segments by them.

pub mod batch;
mod core;
pub mod dead_letter;
pub mod driver;
pub mod json;
pub mod outage;
mod partition;
mod partitioner;
mod rate;
pub mod record_encoder;
pub mod recovered;
pub mod sequence;
#[cfg(test)]
pub mod sim;
pub mod spending;
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
use crate::waker::{Waker, Waking, poll_for};
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use driver::{Context, Current, Drive, Event, Order};

use batch::Batch;
use core::Core;
use partition::Now;
use rustix::event::{PollFd, PollFlags};
use spending::DataBudget;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How a record's partition is chosen. A partition is available while its leader is reachable and its batches do not
/// fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Partitioner {
    /// Always this partition, even while it is unavailable.
    Fixed(i32),
    /// The key's murmur2 hash over all partitions, as in Kafka's Java client. Records without a key use `Sticky`.
    Hash,
    /// The next available partition for each record.
    RoundRobin,
    /// A random available partition for each record.
    Random,
    /// One available partition per batch group: the cheapest.
    Sticky,
}

/// Settings of the core.
#[derive(Debug)]
pub struct ProducerOptions {
    pub partitioner: Partitioner,
    /// Maximum bytes of lines in one batch. A single larger chunk is sent alone.
    pub batch: usize,
    /// How long to wait for more lines when nothing is in flight. Zero sends at once.
    pub linger: Duration,
    /// Bytes of lines per second over all topics. Throttles, never drops.
    pub rate: Option<u64>,
    /// Bytes on the network. Delays, never drops.
    pub budget: Option<DataBudget>,
    /// The state folder's `budget` file.
    pub budget_file: Option<PathBuf>,
    /// The state folder's `dead-letter` file. Without one, dead letters are only logged and counted.
    pub dead_letter: Option<PathBuf>,
    /// Maximum size of that file. Once it is full, the topic is blocked.
    pub dead_letter_limit: u64,
    /// Wall clock at an earlier run's last save, in ms since 1970. See [`clock::stamp`].
    pub saved_ms: i64,
    /// Seeds `random`, the retry jitter, and the partition where `sticky` begins.
    pub seed: u64,
    /// For `send`: receives a receipt for each stored batch.
    pub receipts: Option<Sender<Receipt>>,
    /// Exactly-once: state recovered from an earlier run.
    pub once: Option<recovered::RecoveredState>,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        ProducerOptions {
            partitioner: Partitioner::Sticky,
            batch: 512 << 10,
            linger: Duration::ZERO,
            rate: None,
            budget: None,
            budget_file: None,
            dead_letter: None,
            dead_letter_limit: 64 << 20,
            saved_ms: 0,
            seed: 0,
            receipts: None,
            once: None,
        }
    }
}

/// A configuration change for a running producer.
#[derive(Debug)]
pub struct Change {
    /// Only `partitioner`, `batch`, `linger` and `rate` are applied.
    pub options: ProducerOptions,
    /// A replacement driver. It starts once the old driver has returned all batches; until then nothing is sent.
    pub drive: Option<Drive>,
    /// The brokers may belong to another cluster, where our producer id may belong to another producer.
    pub elsewhere: bool,
}

/// `count` records are stored in `partition`, the first at `offset` (unknown with `acks = 0`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Receipt {
    pub partition: i32,
    pub offset: Option<i64>,
    pub count: u32,
}

/// The driver has ended for good and nothing replaces it, so no more lines can be delivered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dead {
    pub why: String,
}

/// When the thread ends although work is left.
#[derive(Debug)]
pub struct Halts {
    /// Stop as soon as there is no progress because the rest is refused or no broker can be reached. `None`: never.
    pub stuck: Option<Stop>,
    /// Stop at once.
    pub now: Stop,
}

/// How long a stop waits for an unreachable broker to return, counted from the stop, or from when progress ended if
/// that was earlier.
const RETURN: Duration = Duration::from_secs(1);

/// Idle time without lines after which free heap memory is returned to the system.
const TRIM_AFTER: Duration = Duration::from_secs(1);

/// Maximum chunks taken from the inbox before the next send.
const AT_A_TIME: usize = 256;

/// Sends configuration changes to a running producer.
#[derive(Debug)]
pub struct Changes(Waking<Sender<Change>>);

impl Changes {
    /// The channel holds one pending change.
    pub fn new(waker: &Waker) -> (Changes, Receiver<Change>) {
        let (to, from) = crossbeam_channel::bounded(1);
        (Changes(Waking::new(to, waker)), from)
    }

    /// Blocks until the previous change has been taken. Does nothing when the producer has ended.
    pub fn send(&self, change: Change) {
        let _ = self.0.get().send(change);
        self.0.wake();
    }
}

/// Exactly-once: records a batch in the intent log before it reaches the driver.
pub trait BeforeSend: Send {
    /// Queues batches for recording.
    fn hold(&mut self, batches: Vec<Batch>);

    /// Records all queued batches that may be sent, as one group, and returns them.
    fn record(&mut self, now: Instant) -> Vec<Batch>;

    /// When to call `record` again if nothing happens before.
    fn wake(&self, now: Instant) -> Option<Instant>;
}

/// Everything the producer thread starts with. Every sender of these channels wakes `context.waker`.
pub struct Producer<'a> {
    pub options: ProducerOptions,
    pub inbox: Receiver<Chunk>,
    pub changes: Receiver<Change>,
    pub drive: Drive,
    pub context: Context,
    /// Exactly-once.
    pub intents: Option<Box<dyn BeforeSend>>,
    pub registry: &'a Registry,
    pub halts: Halts,
}

/// The thread's loop. It blocks only in `poll(2)`, so a blocked topic holds nothing but its own share of the byte
/// budget.
///
/// Ends when the inbox is closed (all tails have ended) and nothing is left, or as [`Halts`] says.
pub fn run(producer: Producer<'_>) -> Result<(), Dead> {
    let Producer { options, inbox, changes, drive, context, intents, registry, halts } = producer;
    let board = context.board.clone();
    let core = Core::new(options, &board, now());
    let current = Current::new(context.clone(), &drive);
    let (ready, events) = (Vec::new(), Vec::new());
    let (waker, polled, idle) = (context.waker, Vec::new(), Idle::No);
    Loop { core, current, intents, waker, ready, polled, events, registry, idle }
        .run(&inbox, &changes, &halts)
}

struct Loop<'b> {
    core: Core<'b>,
    current: Current,
    intents: Option<Box<dyn BeforeSend>>,
    waker: Waker,
    /// What `poll(2)` reported for the driver's sockets.
    ready: Vec<PollFlags>,
    /// Memory for what is polled, empty in between.
    polled: Vec<PollFd<'static>>,
    events: Vec<Event>,
    registry: &'b Registry,
    idle: Idle,
}

/// How long there has been nothing to send and nothing unacknowledged.
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
            // Process completions before sending anything.
            self.turn()?;
            if open && take(inbox, |chunk| self.core.chunk(chunk, now())) {
                open = false;
                self.core.close();
            }
            // After the inbox: chunks sent after the change must not go to the old driver.
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
                log::warn!("the remaining lines cannot be delivered now: not waiting for them");
                return Ok(());
            }
            if !self.events.is_empty() {
                continue; // handle their results first
            }
            let trim = self.trim(empty && inbox.is_empty(), here);
            let patience = patience.filter(|until| *until > here);
            let wake = [wake, patience, trim].into_iter().flatten().min();
            let more = !inbox.is_empty();
            self.wait(wake, more, here);
        }
    }

    /// Returns free memory to the system after a second without lines. Not sooner: with a trickle of lines, each one
    /// would fault the pages in again. Returns when the trim is due.
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

    /// Runs one turn of the driver and feeds its events to the core.
    fn turn(&mut self) -> Result<(), Dead> {
        let now = now();
        let alive = self.current.turn(&self.ready, now.at, &mut self.events);
        self.ready.clear();
        let core = &mut self.core;
        self.events.drain(..).try_for_each(|event| core.event(event, now))?;
        if alive { Ok(()) } else { Err(Dead { why: "its worker has ended".into() }) }
    }

    /// Sends what may be sent now. Returns when to call it again if nothing happens before.
    fn send(&mut self) -> Result<Option<Instant>, Dead> {
        let now = now();
        let wake = self.core.tick(now);
        let mut ordered = false;
        for order in self.core.orders() {
            match (order, &mut self.intents) {
                (Order::Send(batches), Some(intents)) => intents.hold(batches),
                (order, _) => {
                    self.current.order(order, now.at);
                    ordered = true;
                }
            }
        }
        if let Some(intents) = &mut self.intents {
            self.core.heartbeat.within(Heartbeat::SLOW); // disk I/O
            let recorded = intents.record(now.at);
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
        self.current.defer_answers(self.core.waits_for_no_answer(), now.at);
        let intents = self.intents.as_ref().and_then(|j| j.wake(now.at));
        Ok([wake, intents, self.current.driver().wake()].into_iter().flatten().min())
    }

    /// Waits for events, for the sockets, and at most until `wake`. With `more` it polls without blocking.
    fn wait(&mut self, wake: Option<Instant>, more: bool, now: Instant) {
        let longest = self.core.longest_wait();
        let wait = wake.map_or(longest, |at| at.saturating_duration_since(now).min(longest));
        let wait = if more || !self.waker.may_sleep() { Duration::ZERO } else { wait };
        self.core.heartbeat.within(wait);
        let mut fds: Vec<PollFd<'_>> = std::mem::take(&mut self.polled);
        fds.push(self.waker.poll_fd());
        self.current.driver().sockets(&mut fds);
        if let Err(e) = poll_for(&mut fds, Some(wait)) {
            log::error!("poll: {e}");
        }
        let woken = !fds[0].revents().is_empty();
        self.ready.extend(fds[1..].iter().map(PollFd::revents));
        self.polled = emptied(fds);
        if woken {
            self.waker.clear();
        }
    }
}

/// The memory of `fds`, for descriptors of any lifetime: an empty vector is collected in place.
fn emptied(mut fds: Vec<PollFd<'_>>) -> Vec<PollFd<'static>> {
    fds.clear();
    fds.into_iter().map_while(|_| None).collect()
}

/// Drains the channel. `true`: the channel is closed.
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
