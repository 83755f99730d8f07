//! A seeded simulator: runs the core between tails that feed it and a model of Kafka's brokers with every known
//! failure. Checks contents: every line is stored, how often, in which order, and each ack only after its lines.
//!
//! The brokers are in `sim/broker.rs`.

pub mod broker;
mod once;

pub use super::core::Core;
use super::driver::Leave;
pub use super::partition::Now;
use super::testing::{chunk_of, origin};
use super::worker::Worker;
use super::{Change, Partitioner, ProducerOptions};
use crate::backoff::Rng;
use crate::budget::{Budget, Share};
use crate::chunk::Origin;
use crate::record::{Key, Shape, StreamId};
use crate::report::Board;
use broker::{Brokers, Script};
use regex::bytes::Regex;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// The key of a line; those of `k8` and `k9` have none.
static KEY: LazyLock<Regex> = LazyLock::new(|| Regex::new("k[0-7]").unwrap());

/// What may happen in one run.
#[derive(Clone, Copy, Debug, Default)]
struct Scenario {
    script: Script,
    /// Reloads the config: changes the driver and the batch size.
    reloads: bool,
    partitioner: Option<Partitioner>,
}

impl Scenario {
    fn of(script: Script) -> Scenario {
        Scenario { script, ..Scenario::default() }
    }
}

struct World<'b> {
    brokers: Brokers,
    reloads: bool,
    core: Core<'b>,
    board: &'b Board,
    now: Now,
    share: Share,
    partitioner: Partitioner,
    origins: Vec<Arc<Origin>>,
    offsets: Vec<u64>,
    /// Next line of each stream; a line is `stream * 1_000_000 + n`.
    next: Vec<u64>,
    left: u64,
    acked: BTreeMap<u64, Vec<std::ops::Range<u64>>>,
    /// The lines of each chunk, by stream and start.
    chunks: BTreeMap<(u64, u64), Vec<u64>>,
}

impl<'b> World<'b> {
    fn new(seed: u64, scenario: Scenario, board: &'b Board, budget: &Budget) -> Self {
        let mut rng = Rng::new(seed);
        let all = [Partitioner::Sticky, Partitioner::Hash, Partitioner::RoundRobin, Partitioner::Random];
        let partitioner = scenario.partitioner.unwrap_or(all[rng.below(4)]);
        let batch = [64, 400, 4000][rng.below(3)];
        let linger = Duration::from_millis([0, 0, 30][rng.below(3)]);
        let options = ProducerOptions { partitioner, batch, linger, seed, ..ProducerOptions::default() };
        let now = Now { at: Instant::now(), wall_ms: 1_700_000_000_000 };
        let key = || match partitioner {
            Partitioner::Hash => Key::Regex(KEY.clone().into()),
            _ => Key::None,
        };
        let streams = 1 + rng.below(3) as u64;
        let origins: Vec<_> =
            (0..streams).map(|s| origin(s, "t", "/log", Shape { key: key(), ..Shape::default() })).collect();
        let partitions = 1 + rng.below(4) as i32;
        let left = 40 + rng.below(200) as u64;
        let script = Script { fixed: scenario.partitioner.is_some(), ..scenario.script };
        World {
            core: Core::new(options, board, now),
            share: budget.share(),
            partitioner,
            offsets: vec![0; origins.len()],
            next: vec![0; origins.len()],
            left,
            brokers: Brokers::new(rng, script, partitions),
            reloads: scenario.reloads,
            board,
            now,
            origins,
            acked: BTreeMap::new(),
            chunks: BTreeMap::new(),
        }
    }

    fn rng(&mut self) -> &mut Rng {
        &mut self.brokers.rng
    }

    /// A tail sends a chunk, occasionally one without lines.
    fn feed(&mut self) {
        let streams = self.origins.len();
        let s = self.rng().below(streams);
        let n = if self.brokers.chance(5) { 0 } else { (1 + self.rng().below(12) as u64).min(self.left) };
        let mut texts = Vec::new();
        let mut ids = Vec::new();
        for _ in 0..n {
            let id = s as u64 * 1_000_000 + self.next[s];
            self.next[s] += 1;
            if self.brokers.script.refusals && self.brokers.chance(3) {
                self.brokers.bad.insert(id);
            }
            let pad = self.rng().below(30);
            texts.push(format!("{id} k{} {}", self.rng().below(10), "x".repeat(pad)).into_bytes());
            ids.push(id);
        }
        self.left -= n;
        let lines: Vec<&[u8]> = texts.iter().map(Vec::as_slice).collect();
        let mut chunk = chunk_of(&self.origins[s], &self.share, self.offsets[s], &lines);
        if n == 0 {
            chunk.range.end += 7;
            chunk.end.offset = chunk.range.end;
            self.origins[s].progress.framed.fetch_max(chunk.range.end, Relaxed);
        }
        self.offsets[s] = chunk.range.end;
        self.chunks.insert((s as u64, chunk.range.start), ids);
        self.core.chunk(chunk, self.now);
    }

    /// Collects the core's orders and acks.
    fn collect(&mut self) -> Option<Instant> {
        let wake = self.core.tick(self.now);
        for order in self.core.orders() {
            self.brokers.order(order, |_, _| {});
        }
        for ack in std::mem::take(&mut self.core.acks) {
            self.check_ack(ack.stream, ack.range);
        }
        wake
    }

    fn check_ack(&mut self, stream: StreamId, range: std::ops::Range<u64>) {
        let lines = self.chunks.remove(&(stream.0, range.start)).expect("one ack for each chunk");
        for id in lines {
            let stored = self.brokers.has_stored(id);
            assert!(stored != self.brokers.bad.contains(&id), "line {id} was acked, stored: {stored}");
        }
        self.acked.entry(stream.0).or_default().push(range);
    }

    fn reload(&mut self) {
        let batch = [64, 400, 4000][self.rng().below(3)];
        let linger = Duration::from_millis([0, 0, 30][self.rng().below(3)]);
        let options =
            ProducerOptions { partitioner: self.partitioner, batch, linger, ..ProducerOptions::default() };
        let drive = self.brokers.chance(70).then(|| Worker::drive(None, |_, _, _| Leave::Closed));
        self.core.change(Change { options, drive, elsewhere: false }, self.now);
    }

    fn step(&mut self) {
        match self.rng().below(10) {
            0..=1 if self.left > 0 => self.feed(),
            2..=4 => {
                if let Some(event) = self.brokers.event() {
                    self.core.event(event, self.now).unwrap();
                }
            }
            5..=7 => self.brokers.serve(),
            8 if self.brokers.faults && self.brokers.chance(20) => match self.rng().below(8) {
                7 if self.reloads => self.reload(),
                which => self.brokers.fault(which),
            },
            9 => {
                let ms = self.rng().next() % 40;
                self.pass(Duration::from_millis(ms));
            }
            _ => {}
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = Now { at: self.now.at + time, wall_ms: self.now.wall_ms + time.as_millis() as i64 };
    }

    /// Feeds everything under faults, then everything must complete without any.
    fn run(&mut self) {
        self.brokers.connect();
        for steps in 0.. {
            assert!(steps < 200_000, "it never finishes");
            let faults = steps < 600;
            self.brokers.faults = faults;
            if !faults {
                self.brokers.largest = usize::MAX;
            }
            if self.left == 0 && !faults {
                self.core.close();
            }
            let wake = self.collect();
            if self.core.is_empty() && self.left == 0 && !faults {
                return;
            }
            if self.brokers.is_quiet() && self.left == 0 && !faults {
                // Nothing will happen before the next deadline.
                let wake = wake.expect("work is left, and no event or deadline is pending");
                self.pass(wake.saturating_duration_since(self.now.at));
            } else {
                self.step();
            }
        }
    }

    /// The final conditions.
    fn verify(&self, budget: &Budget) {
        assert_eq!(budget.used(), 0, "a permit was leaked");
        assert!(self.chunks.is_empty(), "never acked: {:?}", self.chunks);
        let mut stored: HashMap<u64, u32> = HashMap::new();
        self.brokers.logs.values().flat_map(|l| &l.lines).for_each(|id| *stored.entry(*id).or_default() += 1);
        let mut doubled = 0;
        for (s, n) in self.next.iter().enumerate() {
            for id in (0..*n).map(|i| s as u64 * 1_000_000 + i) {
                let times = stored.get(&id).copied().unwrap_or(0);
                assert_eq!(times > 0, !self.brokers.bad.contains(&id), "line {id} is stored {times} times");
                doubled += u64::from(times.saturating_sub(1));
            }
        }
        let totals = &self.board.totals;
        assert_eq!(totals.dead_lettered.load(Relaxed), self.brokers.bad.len() as u64);
        let (uncertain, at_most) = (totals.uncertain.load(Relaxed), totals.resent.load(Relaxed));
        if !self.brokers.script.amnesia {
            assert!(doubled <= uncertain + at_most, "{doubled} doubled, {uncertain} + {at_most} reported");
            self.brokers.verify_order(|line| line / 1_000_000);
        }
        if self.brokers.script.idempotent && !self.brokers.script.changes {
            assert_eq!(at_most, 0);
            if !(self.brokers.script.amnesia || self.brokers.script.mute || self.brokers.script.refusals) {
                assert_eq!((doubled, uncertain), (0, 0), "doubled, uncertain");
            }
        }
    }
}

/// The seeds to run: `default` many, `SEEDS=n` of them, or only `SEED=n`.
pub fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    number("SEED").map_or(0..number("SEEDS").unwrap_or(default), |seed| seed..seed + 1)
}

/// Runs `seeds` worlds; a failure names the seed.
fn worlds(seeds: u64, scenario: Scenario) {
    for seed in self::seeds(seeds) {
        let run = || {
            let board = Board::default();
            let budget = Budget::new(1 << 30);
            let mut world = World::new(seed, scenario, &board, &budget);
            world.run();
            world.verify(&budget);
        };
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            eprintln!("SEED={seed} with {scenario:?}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// A few seconds in all; `SEEDS=20000` for a long run, `SEED=n` for one.
const SEEDS: u64 = 300;

/// Fails when a resend changes its numbers, a later batch overtakes a failed one, or a batch with a lost answer is
/// duplicated.
#[test]
fn an_idempotent_producer_stores_each_line_once() {
    worlds(SEEDS, Scenario::of(Script { idempotent: true, ..Script::default() }));
}

/// Fails when a refused batch leaves a gap, drops a neighbor, or its records are reordered.
#[test]
fn refusals_cost_only_the_bad_records() {
    for idempotent in [false, true] {
        worlds(SEEDS, Scenario::of(Script { idempotent, refusals: true, ..Script::default() }));
    }
}

/// Fails when a line is lost or acknowledged too early, or there are more duplicates than reported.
#[test]
fn a_plain_producer_stores_each_line_at_least_once() {
    worlds(SEEDS, Scenario::default());
}

/// Fails when an unprovable batch is dropped, retried endlessly, or not counted as uncertain.
#[test]
fn brokers_that_forget_producers_or_cannot_be_asked_lose_nothing() {
    for refusals in [false, true] {
        worlds(
            SEEDS,
            Scenario::of(Script { idempotent: true, amnesia: true, refusals, ..Script::default() }),
        );
        worlds(SEEDS, Scenario::of(Script { idempotent: true, mute: true, refusals, ..Script::default() }));
    }
}

/// Fails when one driver's sequence numbers are carried over to the other, or a batch is lost between them.
#[test]
fn the_driver_may_change_at_any_time() {
    for refusals in [false, true] {
        worlds(
            SEEDS,
            Scenario::of(Script { idempotent: true, changes: true, refusals, ..Script::default() }),
        );
    }
}

/// A reload with healthy and with failing brokers: nothing is lost, and with sequence numbers nothing is duplicated.
/// Fails when a driver is replaced while it holds batches, sequence numbers do not survive it, or waiting lines are
/// lost.
#[test]
fn a_reload_loses_and_doubles_nothing() {
    for idempotent in [false, true] {
        worlds(
            SEEDS,
            Scenario {
                script: Script { idempotent, ..Script::default() },
                reloads: true,
                ..Scenario::default()
            },
        );
    }
}

/// Fails when a fixed partition's lines go elsewhere, or wait for another's trouble.
#[test]
fn a_fixed_partition() {
    for idempotent in [false, true] {
        worlds(
            SEEDS,
            Scenario {
                script: Script { idempotent, ..Script::default() },
                partitioner: Some(Partitioner::Fixed(0)),
                ..Scenario::default()
            },
        );
    }
}
