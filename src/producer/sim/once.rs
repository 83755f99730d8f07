//! Exactly-once under the simulator: the agent and the brokers crash at every step. Every line must be stored exactly
//! once, with nothing counted as uncertain. The core, the intent log with its file, its recovery at startup and the saved
//! positions (as a value) are real; tails, the disk's clock and the brokers are models.
//!
//! A request of a killed agent may still arrive at any time. A leader may fail before its followers have copied a
//! batch: the batch and the producer state are lost, although a question may already have been answered from them.

use super::broker::{Brokers, Script};
use super::{broker, seeds};
use crate::backoff::Rng;
use crate::budget::{Budget, Share};
use crate::chunk::{Chunk, Origin};
use crate::exactly_once::IntentLog;
use crate::exactly_once::analyze::load;
use crate::exactly_once::file::{Binding, IntentFile};
use crate::exactly_once::intent::IntentRecord;
use crate::private_file::open_or_create;
use crate::producer::batch::{Batch, BatchGroup, Pick};
use crate::producer::core::Core;
use crate::producer::driver::Order;
use crate::producer::partition::Now;
use crate::producer::recovered::{RecoveredState, Resumed};
use crate::producer::testing::{chunk_of, origin};
use crate::producer::{BeforeSend, Partitioner, ProducerOptions};
use crate::record::{Identity, Key, Point, Shape};
use crate::report::Board;
use crate::streams::{Saved, SavedPositions, SavedStream, mailbox};
use crate::waker::Waker;
use regex::bytes::Regex;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

const SCRIPT: Script = Script {
    idempotent: true,
    failover: true,
    fixed: true,
    quick: true,
    refusals: false,
    amnesia: false,
    changes: false,
    mute: false,
};
/// Bytes of a line with its newline.
const LINE: u64 = 8;

/// One run of the agent.
struct Agent<'b> {
    core: Core<'b>,
    intents: IntentLog,
    /// Positions in the registry.
    acked: Saved,
    /// Each stream's read position, and the ranges to skip.
    tails: Saved,
}

struct World<'b> {
    brokers: Brokers,
    board: &'b Board,
    path: PathBuf,
    share: Share,
    origins: Vec<Arc<Origin>>,
    /// Lines of each stream.
    lines: u64,
    partitioner: Partitioner,
    /// Saved positions, as on disk.
    disk: Saved,
    now: Now,
    crashes: u32,
    /// A partition whose leader takes nothing, except at the beginning and at the end.
    down: Option<i32>,
}

fn id(stream: u64, n: u64) -> u64 {
    stream * 100_000 + n
}

fn text(id: u64) -> String {
    format!("{id:07}")
}

impl<'b> World<'b> {
    fn new(seed: u64, lines: u64, partitions: i32, board: &'b Board, budget: &Budget, path: PathBuf) -> Self {
        let mut rng = Rng::new(seed);
        let all = [Partitioner::Sticky, Partitioner::RoundRobin, Partitioner::Random];
        let streams = 1..=2u64;
        let log = std::path::Path::new("/log");
        let stream = |s| SavedStream::acked(s, log, Identity::default(), Point::default(), 0);
        World {
            partitioner: all[rng.below(3)],
            brokers: Brokers::new(rng, SCRIPT, partitions),
            board,
            path,
            share: budget.share(),
            origins: streams.clone().map(|s| origin(s, "t", "/log", Shape::default())).collect(),
            lines,
            disk: Saved { streams: streams.map(stream).collect(), ..Saved::default() },
            now: Now { at: Instant::now(), wall_ms: 1_800_000_000_000 },
            crashes: 0,
            down: None,
        }
    }

    fn rng(&mut self) -> &mut Rng {
        &mut self.brokers.rng
    }

    /// Startup: what `commands/recover.rs` does, on models.
    fn start(&mut self) -> Agent<'b> {
        let (store, found) = IntentFile::open(open_or_create(&self.path).unwrap()).unwrap();
        let records = found.records.iter().map(|p| IntentRecord::read(p).unwrap()).collect();
        let saved = SavedPositions::of(&self.disk);
        let loaded = load(records, &saved);
        let mut acked = self.disk.clone();
        for ack in &loaded.settled {
            self.check(ack.stream.0, &ack.range);
            assert!(acked.acknowledge(ack));
        }
        let mut tails = acked.clone();
        let mut groups = Vec::new();
        for f in &loaded.groups {
            let (mut chunks, mut stored) = (Vec::new(), Vec::new());
            for (i, wanted) in f.chunks.iter().enumerate() {
                let (stream, range) = wanted.piece.spans();
                let chunk = self.chunk(stream.0, range.start / LINE, range.end / LINE);
                assert_eq!(wanted.piece.lines_in(&chunk.bytes).as_ref(), Some(&chunk.lines));
                assert!(tails.acknowledge(&chunk.ack()), "no line is read by two streams");
                stored.extend(wanted.stored.iter().map(|l| Pick { chunk: i as u16, line: *l }));
                chunks.push(chunk);
            }
            let group = BatchGroup::new("t".into(), broker::TOPIC, f.stamp_ms, chunks);
            groups.push(Resumed { group_no: f.group_no, group, open: f.open.clone(), stored });
        }
        let binding = Binding { synced: false, ..Binding::default() };
        let mailbox = mailbox::pair(&Waker::new().unwrap()).1;
        let intents = IntentLog::begin(store, binding, &loaded, saved, mailbox, Arc::default()).unwrap();
        let id = loaded.id.map(|(pid, epoch)| (pid, epoch + 1));
        let once = RecoveredState { id, lasts: Arc::new(loaded.lasts), groups, group_no: loaded.group_no };
        let options = ProducerOptions {
            partitioner: self.partitioner,
            batch: [40, 200][self.rng().below(2)],
            seed: self.rng().next(),
            once: Some(once),
            ..ProducerOptions::default()
        };
        let core = Core::new(options, self.board, self.now);
        self.brokers.connect();
        Agent { core, intents, acked, tails }
    }

    fn chunk(&self, stream: u64, from: u64, to: u64) -> Chunk {
        let texts: Vec<String> = (from..to).map(|n| text(id(stream, n))).collect();
        let lines: Vec<&[u8]> = texts.iter().map(String::as_bytes).collect();
        let origin = &self.origins[stream as usize - 1];
        chunk_of(origin, &self.share, from * LINE, &lines)
    }

    /// Acknowledged, so each of its lines must be stored and replicated.
    fn check(&self, stream: u64, range: &std::ops::Range<u64>) {
        for n in range.start / LINE..range.end / LINE {
            let stored = self.brokers.has_stored(id(stream, n));
            assert!(stored, "line {n} of {stream} was acknowledged but is not stored");
        }
    }

    /// A tail reads another chunk.
    fn feed(&mut self, a: &mut Agent<'_>) {
        let s = self.rng().below(2);
        let t = &a.tails.streams[s];
        let end = t.beyond.first().map_or(self.lines, |(r, _)| r.start / LINE);
        let from = t.at.offset / LINE;
        let to = end.min(from + 1 + self.rng().below(6) as u64);
        if from < to {
            let chunk = self.chunk(s as u64 + 1, from, to);
            assert!(a.tails.acknowledge(&chunk.ack()));
            a.core.chunk(chunk, self.now);
        }
    }

    fn collect(&mut self, a: &mut Agent<'_>) -> Option<Instant> {
        let wake = a.core.tick(self.now);
        for order in a.core.orders() {
            match order {
                Order::Send(batches) => a.intents.hold(batches),
                order => self.brokers.order(order, |_, _| {}),
            }
        }
        for ack in std::mem::take(&mut a.core.acks) {
            self.check(ack.stream.0, &ack.range);
            assert!(a.acked.acknowledge(&ack), "acknowledged twice: {ack:?}");
        }
        wake
    }

    /// The intent log records and passes on: two steps, since a crash may come between them.
    fn intents(&mut self, a: &mut Agent<'_>, ready: &mut Vec<Batch>) {
        if ready.is_empty() {
            *ready = a.intents.record(self.now.at);
        } else {
            self.brokers.order(Order::Send(std::mem::take(ready)), |_, _| {});
        }
    }

    /// SIGKILL: only the disk and the requests on their way survive.
    fn crash(&mut self, a: Agent<'_>) {
        self.crashes += 1;
        drop(a);
        self.brokers.disconnect();
    }

    /// `crash_at(step)`; no more failures after `calm` steps.
    fn run(&mut self, calm: u32, mut crash_at: impl FnMut(u32, &mut Rng) -> bool) {
        let mut a = self.start();
        let mut ready = Vec::new();
        for step in 0.. {
            assert!(step < 100_000, "it never finishes");
            let faults = step < calm;
            self.brokers.faults = faults;
            self.brokers.down = self.down.filter(|_| step > 1000);
            if faults && crash_at(step, self.rng()) {
                ready.clear();
                self.crash(a);
                a = self.start();
            }
            let wake = self.collect(&mut a);
            let done = a.tails.streams.iter().all(|s| s.at.offset == self.lines * LINE);
            if done && a.core.is_empty() && !faults {
                break;
            }
            match self.rng().below(12) {
                0..=1 => self.feed(&mut a),
                2..=4 => {
                    if let Some(event) = self.brokers.event() {
                        a.core.event(event, self.now).unwrap();
                    }
                }
                5..=6 => self.intents(&mut a, &mut ready),
                7..=8 => self.brokers.serve(),
                9 if self.brokers.chance(30) => {
                    self.disk = a.acked.clone();
                    a.intents.covered(SavedPositions::of(&self.disk));
                }
                10 if faults && self.brokers.chance(15) => {
                    let which = self.rng().below(8);
                    self.brokers.fault(which);
                }
                11 => {
                    // Not so long that a broker could have forgotten a producer by then.
                    let next = wake.map_or(Duration::ZERO, |w| w.saturating_duration_since(self.now.at));
                    let next = next.min(Duration::from_secs(1));
                    let ms = self.rng().next() % 30
                        + if self.brokers.chance(20) { next.as_millis() as u64 } else { 0 };
                    self.now.at += Duration::from_millis(ms);
                    self.now.wall_ms += ms as i64;
                }
                _ => {}
            }
        }
        let mut stored: Vec<u64> = self.brokers.logs.values().flat_map(|l| l.lines.clone()).collect();
        stored.sort_unstable();
        let want: Vec<u64> = (1..=2).flat_map(|s| (0..self.lines).map(move |n| id(s, n))).collect();
        let uncertain = self.board.totals.uncertain.load(Relaxed);
        if self.brokers.largest < usize::MAX {
            // A refused batch that may be stored gets other sequence numbers: then nothing proves it.
            let all = stored.len();
            stored.dedup();
            assert_eq!(stored, want, "none lost");
            assert!((all - stored.len()) as u64 <= uncertain, "doubled, and not counted");
            return;
        }
        assert!(stored == want, "each line once");
        assert_eq!(uncertain, 0, "uncertain");
    }
}

fn world(
    (seed, largest): (u64, usize),
    lines: u64,
    partitions: i32,
    calm: u32,
    crash_at: impl FnMut(u32, &mut Rng) -> bool,
) -> u32 {
    let dir = tempfile::tempdir().unwrap();
    let (board, budget) = (Board::default(), Budget::new(1 << 30));
    let mut world = World::new(seed, lines, partitions, &board, &budget, dir.path().join("flights"));
    world.brokers.largest = largest;
    let run = || {
        world.run(calm, crash_at);
        world.crashes
    };
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        eprintln!("SEED={seed}, {lines} lines, {partitions} partitions");
        std::panic::resume_unwind(panic)
    })
}

/// Long histories with random crashes. `SEEDS=n` for a longer run, `SEED=n` for one world.
#[test]
fn random_crashes_leave_every_line_once() {
    let mut crashes = 0;
    for seed in seeds(150) {
        let (lines, partitions) = (20 + seed % 60, 1 + (seed % 3) as i32);
        crashes += world((seed, usize::MAX), lines, partitions, 800, by_chance(seed));
    }
    eprintln!("{crashes} crashes");
}

fn by_chance(seed: u64) -> impl FnMut(u32, &mut Rng) -> bool {
    move |_, rng| rng.below(100) < 1 + (seed % 3) as usize
}

/// Fails when the rest of a split batch counts as stored because the whole had an intent.
#[test]
fn split_batches_and_crashes() {
    for seed in seeds(300) {
        world(
            (seed, LINE as usize * (1 + seed as usize % 4)),
            20 + seed % 30,
            1 + (seed % 2) as i32,
            800,
            by_chance(seed),
        );
    }
}

/// A short history with a crash at each step, then with each pair of crashes close together.
#[test]
fn a_crash_at_every_step() {
    for first in 0..150 {
        for (partitions, second) in [(1, 0), (1, 3), (2, 7), (1, 20)] {
            world((9, usize::MAX), 6, partitions, 200, |step, _| {
                step == first || (second > 0 && step == first + second)
            });
        }
    }
}

/// The lines of a partition that is down keep other lines of their chunks from being acknowledged, so the intents of the other
/// partitions fill the log. Fails when there is no room left for the intents that everything waits for, or when an intent
/// is not copied to the other half of the file.
#[test]
fn a_partition_that_is_down_for_long() {
    let last_digit = Regex::new("[0-9]$").unwrap();
    for seed in seeds(20) {
        let dir = tempfile::tempdir().unwrap();
        let (board, budget) = (Board::default(), Budget::new(1 << 30));
        let partitions = 2 + (seed / 2 % 3) as i32;
        let mut world = World::new(seed, 600, partitions, &board, &budget, dir.path().join("flights"));
        let shape = || Shape { key: Key::Regex(last_digit.clone().into()), ..Shape::default() };
        world.origins = (1..=2).map(|s| origin(s, "t", "/log", shape())).collect();
        world.partitioner = Partitioner::Hash;
        world.down = Some(1);
        eprintln!("SEED={seed}");
        world.run(15_000, |_, rng| seed % 2 == 1 && rng.below(500) == 0);
    }
}
