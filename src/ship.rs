//! STAGE 2: chunks in, acks out. The synchronous producer thread, its flights, and the drivers that carry them.

pub mod auto;
pub mod classic;
pub mod deadletter;
pub mod driver;
pub mod flight;
pub mod journal;
mod json;
mod lane;
pub mod modern;
mod numbers;
pub mod outage;
mod partition;
pub mod probe;
pub mod render;
pub mod resume;
mod retry;
mod shipper;
#[cfg(test)]
mod sim;
mod spread;
pub mod stdout;
#[cfg(test)]
pub mod testing;

use crate::chunk::Chunk;
use crate::pulse::Beat;
use crate::report::Board;
use crate::stop::Stop;
use crate::streams::Registry;
use crate::sys::heap;
use crate::wall;
use crossbeam_channel::{Receiver, Sender, TryRecvError, never, select};
use partition::Now;
use shipper::Shipper;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a record's partition is chosen. "Living" are partitions with a reachable leader that are not in trouble.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Partitioner {
    /// This partition, also when it must be waited for.
    Fixed(i32),
    /// By the key's murmur2 over all partitions, as Kafka's Java client; records without a key go `Sticky`.
    Hash,
    /// The next living one for each record.
    RoundRobin,
    /// Any living one for each record.
    Random,
    /// One living partition per flight: the cheapest.
    Sticky,
}

/// What ship needs to know.
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
    /// What the wall clock showed at the last save of an earlier run, in ms since 1970: see [`wall::stamp`].
    pub saved_ms: i64,
    /// For `random` and the jitter of retries.
    pub seed: u64,
    /// For `send`: what became of each batch, as it is stored.
    pub receipts: Option<Sender<Receipt>>,
    /// How long the driver may leave orders untaken before it counts as stuck; `None`: as long as it takes.
    pub untaken: Option<Duration>,
    /// Exactly-once: what an earlier run left. The driver's ends then are the journal's.
    pub once: Option<resume::Once>,
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
            untaken: None,
            once: None,
        }
    }
}

/// What a running ship is to do otherwise from now on.
#[derive(Debug)]
pub struct Change {
    /// `partitioner`, `batch`, `linger` and `rate` of these are taken up.
    pub options: Options,
    /// Another driver. It begins when all batches have come back from the one before; until then none is sent.
    pub drive: Option<driver::Drive>,
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

/// No driver carries this ship's lines any more, and none ever will.
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

/// Chunks and events taken at a time before what they make possible is sent.
const AT_A_TIME: usize = 256;

/// The thread. It takes whatever comes, from either side, and waits nowhere but in its select; so a topic that does not
/// move holds only its own share of the byte budget.
///
/// Ends when the inbox is closed (the tails have ended) and nothing is left, or as [`Halts`] says; dropping `ends`
/// then ends the worker.
pub fn run(
    options: Options,
    mut inbox: Receiver<Chunk>,
    mut changes: Receiver<Change>,
    ends: driver::Ends,
    registry: &Registry,
    board: &Board,
    halts: Halts,
) -> Result<(), Dead> {
    let mut halt = halts.stuck.as_ref().map_or_else(never, |stop| stop.on().clone());
    let (mut halted, mut stuck): (Option<Instant>, Option<Instant>) = (None, None);
    let mut carrier =
        Carrier { limit: options.untaken, beat: board.pulse.beat("driver"), waiting: 0, moved: false };
    let mut ship = Shipper::new(options, board, now());
    let mut open = true;
    loop {
        ship.beat.within(Beat::TURN);
        if open && take(&inbox, |chunk| ship.chunk(chunk, now())) {
            // A closed channel is always ready: in the select it would be a busy loop.
            (open, inbox) = (false, never());
            ship.close();
        }
        let mut result = Ok(());
        let gone = take(&ends.events, |event| {
            carrier.moved();
            if result.is_ok() {
                result = ship.event(event, now());
            }
        });
        // Behind the inbox: what a tail sent after the change is not for the driver before it.
        changes.try_iter().for_each(|change| ship.change(change, now()));
        let wake = ship.tick(now());
        for order in ship.orders() {
            // Unbounded, so this never waits; a worker that is gone shows at its events.
            let _ = ends.orders.send(order);
        }
        carrier.look(ends.orders.len());
        registry.acknowledge(ship.acks.drain(..));
        if std::mem::take(&mut ship.save_soon) {
            registry.save_soon();
        }
        result?;
        ship.prepare();
        if gone {
            return Err(Dead { why: "its worker has ended".into() });
        }
        let empty = ship.is_empty();
        if !open && empty {
            return Ok(());
        }
        let here = Instant::now();
        stuck = if ship.is_stuck() { stuck.or(Some(here)) } else { None };
        let patience = halted.zip(stuck).map(|(halted, stuck)| halted.min(stuck) + RETURN);
        if !open && patience.is_some_and(|until| here >= until) {
            log::warn!("no broker takes what is left: not waiting for it");
            return Ok(());
        }
        let wake = wake.into_iter().chain(patience.filter(|until| *until > here)).min();
        let more = !inbox.is_empty() || !ends.events.is_empty();
        if !more && empty {
            heap::trim();
        }
        let wait = if more { Duration::ZERO } else { until(wake).min(board.pulse.longest()) };
        ship.beat.within(wait);
        select! {
            recv(inbox) -> chunk => if let Ok(chunk) = chunk { ship.chunk(chunk, now()) },
            recv(ends.events) -> event => if let Ok(event) = event {
                carrier.moved();
                ship.event(event, now())?;
            },
            recv(changes) -> change => match change {
                Ok(change) => ship.change(change, now()),
                Err(_) => changes = never(), // there will be no more
            },
            recv(halt) -> _ => (halt, halted) = (never(), Some(Instant::now())),
            recv(halts.now.on()) -> _ => return Ok(()),
            default(wait) => {}
        }
    }
}

/// Whether the driver's worker takes its orders, seen from here: it promises nothing itself while it has none, and an
/// outage is no reason to leave them (they come back).
struct Carrier {
    limit: Option<Duration>,
    beat: Arc<Beat>,
    /// Orders not yet taken at the last look.
    waiting: usize,
    /// Something has come from it since.
    moved: bool,
}

impl Carrier {
    fn moved(&mut self) {
        self.moved = true;
    }

    fn look(&mut self, waiting: usize) {
        let before = std::mem::replace(&mut self.waiting, waiting);
        let moved = std::mem::take(&mut self.moved) || waiting < before || before == 0;
        match self.limit {
            Some(limit) if waiting > 0 && moved => self.beat.within(limit),
            Some(_) if waiting > 0 => {}
            _ => self.beat.rests(),
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

/// Nothing happens by itself within an hour: then it is looked at all the same.
fn until(wake: Option<Instant>) -> Duration {
    wake.map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(Instant::now()))
}

fn now() -> Now {
    Now { at: Instant::now(), wall_ms: wall::now_ms() }
}

#[cfg(test)]
mod tests;
