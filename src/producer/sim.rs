//! A seeded simulator: runs the core between tails that feed it and a model of Kafka's brokers with every known
//! failure. Checks contents: every line is stored, how often, in which order, and each ack only after its lines.
//!
//! The brokers are in `sim/broker.rs`.

mod broker;
mod once;

use super::batch::Batch;
use super::core::Core;
use super::driver::{Capabilities, Drive, Event, Leave, Order, TopicView, Verdict};
use super::partition::Now;
use super::record_encoder::RecordEncoder;
use super::testing::{chunk_of, origin};
use super::{Change, Partitioner, ProducerOptions};
use crate::backoff::Rng;
use crate::budget::{Budget, Share};
use crate::chunk::Origin;
use crate::record::{Key, Shape, StreamId};
use crate::report::Board;
use broker::Log;
use regex::bytes::Regex;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// The key of a line; those of `k8` and `k9` have none.
static KEY: LazyLock<Regex> = LazyLock::new(|| Regex::new("k[0-7]").unwrap());

/// What may happen in one run.
#[derive(Clone, Copy, Debug, Default)]
struct Script {
    idempotent: bool,
    /// Lines that no broker accepts, and limits that change.
    refusals: bool,
    /// Producer state is lost entirely, or another producer fences ours: then sequence numbers prove nothing.
    amnesia: bool,
    /// `auto` changes the driver.
    changes: bool,
    /// Reloads the config: changes the driver and the batch size.
    reloads: bool,
    /// The leader cannot be asked (before 2.8, or no right to read).
    mute: bool,
    partitioner: Option<Partitioner>,
}

struct World<'b> {
    rng: Rng,
    script: Script,
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
    logs: BTreeMap<i32, Log>,
    capabilities: Option<Capabilities>,
    pids: i64,
    /// Events on their way back, in any order between partitions.
    back: VecDeque<Event>,
    /// Lines that no broker accepts.
    bad: BTreeSet<u64>,
    largest: usize,
    faults: bool,
    acked: BTreeMap<u64, Vec<std::ops::Range<u64>>>,
    /// The lines of each chunk, by stream and start.
    chunks: BTreeMap<(u64, u64), Vec<u64>>,
    pen: RecordEncoder,
}

impl<'b> World<'b> {
    fn new(seed: u64, script: Script, board: &'b Board, budget: &Budget) -> Self {
        let mut rng = Rng::new(seed);
        let all = [Partitioner::Sticky, Partitioner::Hash, Partitioner::RoundRobin, Partitioner::Random];
        let partitioner = script.partitioner.unwrap_or(all[rng.below(4)]);
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
        let logs = (0..1 + rng.below(4) as i32).map(|id| (id, Log::default())).collect();
        World {
            core: Core::new(options, board, now),
            share: budget.share(),
            partitioner,
            offsets: vec![0; origins.len()],
            next: vec![0; origins.len()],
            left: 40 + rng.below(200) as u64,
            largest: 5000,
            faults: true,
            rng,
            script,
            board,
            now,
            origins,
            logs,
            capabilities: None,
            pids: 1000,
            back: VecDeque::new(),
            bad: BTreeSet::new(),
            acked: BTreeMap::new(),
            chunks: BTreeMap::new(),
            pen: RecordEncoder::default(),
        }
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.rng.below(100) < percent
    }

    /// A tail sends a chunk, occasionally one without lines.
    fn feed(&mut self) {
        let s = self.rng.below(self.origins.len());
        let n = if self.chance(5) { 0 } else { (1 + self.rng.below(12) as u64).min(self.left) };
        let mut texts = Vec::new();
        let mut ids = Vec::new();
        for _ in 0..n {
            let id = s as u64 * 1_000_000 + self.next[s];
            self.next[s] += 1;
            if self.script.refusals && self.chance(3) {
                self.bad.insert(id);
            }
            let pad = self.rng.below(30);
            texts.push(format!("{id} k{} {}", self.rng.below(10), "x".repeat(pad)).into_bytes());
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

    fn ids(&mut self, batch: &Batch) -> Vec<u64> {
        let mut ids = Vec::new();
        self.pen.each(batch, |r| {
            let text = std::str::from_utf8(&r.value).unwrap();
            ids.push(text.split(' ').next().unwrap().parse().unwrap());
        });
        assert_eq!(ids.len(), batch.count as usize);
        ids
    }

    /// Collects the core's orders and acks.
    fn collect(&mut self) -> Option<Instant> {
        let wake = self.core.tick(self.now);
        let orders: Vec<Order> = self.core.orders().collect();
        for order in orders {
            match order {
                Order::Topic(_) => self.view(),
                Order::ProducerId => {
                    self.pids += 1;
                    self.back
                        .push_back(Event::ProducerId { pid: self.pids, epoch: self.rng.below(2) as i16 });
                }
                Order::Ask { topic, partition, pid } => {
                    let known = self.logs[&partition].producers.get(&pid);
                    let last = known.and_then(|p| p.last.back().map(|l| (p.epoch, l.1)));
                    let last = if self.script.mute { Err("not authorized".into()) } else { Ok(last) };
                    self.back.push_back(Event::Described { topic, partition, pid, last });
                }
                Order::Send(batches) => batches.into_iter().for_each(|b| self.depart(b)),
                Order::Change(_) => {
                    assert!(self.logs.values().all(|l| l.wire.is_empty()), "the driver still has batches");
                    self.capabilities = None;
                    self.ready();
                }
            }
        }
        for ack in std::mem::take(&mut self.core.acks) {
            self.check_ack(ack.stream, ack.range);
        }
        wake
    }

    fn depart(&mut self, batch: Batch) {
        let capabilities = self.capabilities.as_ref().expect("nothing is sent before Ready");
        assert_eq!(batch.numbers.is_some(), capabilities.idempotent);
        let log = self.logs.get_mut(&batch.partition).expect("a partition that exists");
        if log.unreported > 0 {
            return self.again(batch, false);
        }
        log.wire.push_back(batch);
        assert!(log.wire.len() <= capabilities.in_flight, "too many in flight");
        // A broker that does not know the id accepts any sequence, so such a batch must be in flight alone.
        if let Some(n) = log.wire.front().and_then(|b| b.numbers) {
            let known = log.producers.get(&n.pid).is_some_and(|p| p.epoch == n.epoch);
            assert!(
                known || self.script.amnesia || log.wire.len() == 1,
                "the first batch of an id is not alone in flight"
            );
        }
    }

    fn check_ack(&mut self, stream: StreamId, range: std::ops::Range<u64>) {
        let lines = self.chunks.remove(&(stream.0, range.start)).expect("one ack for each chunk");
        for id in lines {
            let stored = self.logs.values().any(|l| l.lines.contains(&id));
            assert!(stored != self.bad.contains(&id), "line {id} was acked, stored: {stored}");
        }
        self.acked.entry(stream.0).or_default().push(range);
    }

    fn view(&mut self) {
        let partitions: Vec<i32> = self.logs.keys().copied().collect();
        let dead = if self.faults { self.rng.below(3) } else { 0 };
        let available = partitions.iter().copied().filter(|_| dead == 0 || self.rng.below(3) > 0).collect();
        self.back.push_back(Event::Topic(TopicView {
            topic: "t".into(),
            id: [0; 16],
            partitions,
            available,
        }));
    }

    fn ready(&mut self) {
        let idempotent = if self.script.changes { self.chance(50) } else { self.script.idempotent };
        let in_flight = if idempotent { 1 + self.rng.below(5) } else { 1 };
        self.back.push_back(Event::Ready(Capabilities { name: "model", idempotent, in_flight }));
    }

    fn reload(&mut self) {
        let batch = [64, 400, 4000][self.rng.below(3)];
        let linger = Duration::from_millis([0, 0, 30][self.rng.below(3)]);
        let options =
            ProducerOptions { partitioner: self.partitioner, batch, linger, ..ProducerOptions::default() };
        let drive = self.chance(70).then(|| Drive::worker(None, |_, _, _| Leave::Closed));
        self.core.change(Change { options, drive, elsewhere: false }, self.now);
    }

    fn step(&mut self) -> bool {
        let busy: Vec<i32> =
            self.logs.iter().filter(|(_, l)| !l.wire.is_empty()).map(|(id, _)| *id).collect();
        match self.rng.below(10) {
            0..=1 if self.left > 0 => self.feed(),
            2..=4 if !self.back.is_empty() => {
                let event = self.back.pop_front().unwrap();
                self.tell(event);
            }
            5..=7 if !busy.is_empty() => {
                let id = busy[self.rng.below(busy.len())];
                self.serve(id);
            }
            8 if self.faults && self.chance(20) => self.fault(),
            9 => {
                let ms = self.rng.next() % 40;
                self.pass(Duration::from_millis(ms));
            }
            _ => return false,
        }
        true
    }

    fn tell(&mut self, event: Event) {
        if let Event::Done { batch, verdict: Verdict::Retry { maybe_stored: true, .. } } = &event {
            self.logs.get_mut(&batch.partition).unwrap().unreported -= 1;
        }
        if let Event::Ready(capabilities) = &event {
            // All batches must have been returned, including those sent in the meantime.
            if self.logs.values().any(|l| !l.wire.is_empty()) {
                self.logs.keys().copied().collect::<Vec<_>>().into_iter().for_each(|id| self.cut(id));
                return self.back.push_back(event);
            }
            self.capabilities = Some(capabilities.clone());
        }
        self.core.event(event, self.now).unwrap();
    }

    fn pass(&mut self, time: Duration) {
        self.now = Now { at: self.now.at + time, wall_ms: self.now.wall_ms + time.as_millis() as i64 };
    }

    /// Feeds everything under faults, then everything must complete without any.
    fn run(&mut self) {
        self.ready();
        for steps in 0.. {
            assert!(steps < 200_000, "it never finishes");
            self.faults = steps < 600;
            if !self.faults {
                self.largest = 5000;
            }
            if self.left == 0 && !self.faults {
                self.core.close();
            }
            let wake = self.collect();
            if self.core.is_empty() && self.left == 0 && !self.faults {
                return;
            }
            let quiet = self.back.is_empty() && self.logs.values().all(|l| l.wire.is_empty());
            if quiet && self.left == 0 && !self.faults {
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
        self.logs.values().flat_map(|l| &l.lines).for_each(|id| *stored.entry(*id).or_default() += 1);
        let mut doubled = 0;
        for (s, n) in self.next.iter().enumerate() {
            for id in (0..*n).map(|i| s as u64 * 1_000_000 + i) {
                let times = stored.get(&id).copied().unwrap_or(0);
                assert_eq!(times > 0, !self.bad.contains(&id), "line {id} is stored {times} times");
                doubled += u64::from(times.saturating_sub(1));
            }
        }
        let totals = &self.board.totals;
        assert_eq!(totals.dead_lettered.load(Relaxed), self.bad.len() as u64);
        let (uncertain, at_most) = (totals.uncertain.load(Relaxed), totals.resent.load(Relaxed));
        if !self.script.amnesia {
            assert!(doubled <= uncertain + at_most, "{doubled} doubled, {uncertain} + {at_most} reported");
            self.verify_order();
        }
        if self.script.idempotent && !self.script.changes {
            assert_eq!(at_most, 0);
            if !(self.script.amnesia || self.script.mute || self.script.refusals) {
                assert_eq!((doubled, uncertain), (0, 0), "doubled, uncertain");
            }
        }
    }

    /// Lines of a stream are in order within each partition, ignoring repeats.
    fn verify_order(&self) {
        for (id, log) in &self.logs {
            let mut seen = BTreeSet::new();
            let mut last: HashMap<u64, u64> = HashMap::new();
            for line in log.lines.iter().filter(|l| seen.insert(**l)) {
                let before = last.insert(*line / 1_000_000, *line);
                assert!(before < Some(*line), "partition {id}: {line} after {before:?}");
            }
        }
    }
}

/// The seeds to run: `default` many, `SEEDS=n` of them, or only `SEED=n`.
fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    number("SEED").map_or(0..number("SEEDS").unwrap_or(default), |seed| seed..seed + 1)
}

/// Runs `seeds` worlds; a failure names the seed.
fn worlds(seeds: u64, script: Script) {
    for seed in self::seeds(seeds) {
        let run = || {
            let board = Board::default();
            let budget = Budget::new(1 << 30);
            let mut world = World::new(seed, script, &board, &budget);
            world.run();
            world.verify(&budget);
        };
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            eprintln!("SEED={seed} with {script:?}");
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
    worlds(SEEDS, Script { idempotent: true, ..Script::default() });
}

/// Fails when a refused batch leaves a gap, drops a neighbor, or its records are reordered.
#[test]
fn refusals_cost_only_the_bad_records() {
    for idempotent in [false, true] {
        worlds(SEEDS, Script { idempotent, refusals: true, ..Script::default() });
    }
}

/// Fails when a line is lost or acknowledged too early, or there are more duplicates than reported.
#[test]
fn a_plain_producer_stores_each_line_at_least_once() {
    worlds(SEEDS, Script::default());
}

/// Fails when an unprovable batch is dropped, retried endlessly, or not counted as uncertain.
#[test]
fn brokers_that_forget_producers_or_cannot_be_asked_lose_nothing() {
    for refusals in [false, true] {
        worlds(SEEDS, Script { idempotent: true, amnesia: true, refusals, ..Script::default() });
        worlds(SEEDS, Script { idempotent: true, mute: true, refusals, ..Script::default() });
    }
}

/// Fails when one driver's sequence numbers are carried over to the other, or a batch is lost between them.
#[test]
fn the_driver_may_change_at_any_time() {
    for refusals in [false, true] {
        worlds(SEEDS, Script { idempotent: true, changes: true, refusals, ..Script::default() });
    }
}

/// A reload with healthy and with failing brokers: nothing is lost, and with sequence numbers nothing is duplicated.
/// Fails when a driver is replaced while it holds batches, sequence numbers do not survive it, or waiting lines are
/// lost.
#[test]
fn a_reload_loses_and_doubles_nothing() {
    for idempotent in [false, true] {
        worlds(SEEDS, Script { idempotent, reloads: true, ..Script::default() });
    }
}

/// Fails when a fixed partition's lines go elsewhere, or wait for another's trouble.
#[test]
fn a_fixed_partition() {
    for idempotent in [false, true] {
        worlds(SEEDS, Script { idempotent, partitioner: Some(Partitioner::Fixed(0)), ..Script::default() });
    }
}
