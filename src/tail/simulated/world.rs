//! The simulated folder with its writer and rotation, the state folder, and the brokers: what outlives a run of the agent.

use super::{Delivery, Op};
use crate::backoff::Rng;
use crate::fuzz::Dice;
use crate::producer::Partitioner;
use crate::producer::sim::Now;
use crate::producer::sim::broker::{Brokers, Script};
use crate::record::{Point, StreamId};
use crate::report::Board;
use crate::state::{self, Damaged, StateOptions, Sync, Work};
use crate::streams::SavedStream;
use crate::streams::mailbox::Publisher;
use crate::tail::identity::{BIRTHLESS, MEANWHILE, look, look_at};
use flate2::{Compression, write::GzEncoder};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

pub struct World {
    pub dice: Dice,
    pub dir: tempfile::TempDir,
    pub log: File,
    pub half: Option<Vec<u8>>,
    pub written: Vec<Vec<u8>>,
    /// Lines, by their numbers, in the order in which the tail read them.
    pub read: Vec<u64>,
    /// The stream of each line, by the run that read it and the line's number.
    pub streams: HashMap<(u64, u64), StreamId>,
    /// Lines that the intent log brought back, by run and number.
    pub resumed: HashSet<(u64, u64)>,
    pub state: tempfile::TempDir,
    pub brokers: Brokers,
    pub partitioner: Partitioner,
    pub delivery: Delivery,
    /// Lines that may be stored more than once, as the last run reports them.
    pub doubled_at_most: u64,
    pub lost: u64,
    /// Runs that ended before everything was acknowledged.
    pub crashes: u64,
    /// Files were moved in the middle of a step.
    pub meddled: bool,
    pub late: bool,
    pub dates: u64,
    pub now: Instant,
    pub started: Instant,
    pub began: SystemTime,
    /// By how much the clock was set since, in ms.
    pub clock: i64,
    pub ticks: u64,
    pub did: Vec<Op>,
}

impl World {
    pub fn new(seed: u64, delivery: Delivery) -> World {
        MEANWHILE.take(); // set by a seed that failed
        REMOVED.take();
        let dir = tempfile::tempdir().unwrap();
        let log = OpenOptions::new().create(true).append(true).open(dir.path().join("app.log")).unwrap();
        let mut rng = Rng::new(seed);
        let all = [Partitioner::Sticky, Partitioner::RoundRobin, Partitioner::Random, Partitioner::Hash];
        let partitioner = all[rng.below(4)];
        let partitions = 1 + rng.below(3) as i32;
        let idempotent = delivery != Delivery::Plain;
        let script = Script { idempotent, failover: true, fixed: partitions == 1, ..Script::default() };
        let now = Instant::now();
        let mut world = World {
            dice: Dice(seed),
            dir,
            log,
            half: None,
            written: Vec::new(),
            read: Vec::new(),
            streams: HashMap::new(),
            resumed: HashSet::new(),
            state: tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap(), // it is synced often
            brokers: Brokers::new(rng, script, partitions),
            partitioner,
            delivery,
            doubled_at_most: 0,
            lost: 0,
            crashes: 0,
            meddled: false,
            late: false,
            dates: 0,
            now,
            started: now,
            began: SystemTime::now(),
            clock: 0,
            ticks: 0,
            did: Vec::new(),
        };
        world.touch();
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The time as the producer sees it.
    pub fn now(&self) -> Now {
        let began = self.began.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        // After two minutes, a broker may have forgotten a producer of which it has nothing; then nothing proves that.
        let passed = (self.now - self.started) / if self.is_once() { 100 } else { 1 };
        Now { at: self.now, wall_ms: (began + passed).as_millis() as i64 + self.clock }
    }

    pub fn is_once(&self) -> bool {
        self.delivery == Delivery::ExactlyOnce
    }

    /// The number of a line, which must be one that was written.
    pub fn number(&self, line: &[u8]) -> u64 {
        let number = line.get(..6).and_then(|n| std::str::from_utf8(n).ok()?.parse::<usize>().ok());
        let written = number.and_then(|n| self.written.get(n));
        let shown = String::from_utf8_lossy(line);
        assert!(written.is_some_and(|w| w == line), "never written: {shown:?} after {:?}", self.did);
        number.unwrap_or_default() as u64
    }

    pub fn line(&mut self) -> Vec<u8> {
        let width = self.dice.of(&[0, 0, 10, 100, 300, 3000]);
        let n = self.written.len();
        // The number is at the end too: 256 equal bytes at the same offset are indistinguishable, which is a documented
        // limit.
        let line = format!("{n:06} {}{n:06}", "x".repeat(width)).into_bytes();
        self.written.push(line.clone());
        line
    }

    pub fn append(&mut self) {
        let mut bytes = self.half.take().unwrap_or_default();
        bytes.extend(self.lines());
        self.write(&bytes);
    }

    pub fn lines(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..1 + self.dice.below(6) {
            bytes.extend(self.line());
            bytes.push(b'\n');
        }
        bytes
    }

    /// Sets distinct modification times; the kernel's clock is too coarse for the speed of this test.
    pub fn write(&mut self, bytes: &[u8]) {
        self.log.write_all(bytes).unwrap();
        self.touch();
    }

    pub fn tick(&mut self) -> SystemTime {
        self.ticks += 1;
        let time = self.began + Duration::from_millis(100 * self.ticks);
        // Without birth times, a file is new if it was written since the last save, which has the real time.
        let set = Duration::from_millis(if BIRTHLESS.get() { 0 } else { self.clock.unsigned_abs() });
        if self.clock < 0 { time - set } else { time + set }
    }

    pub fn touch(&mut self) {
        let time = self.tick();
        self.log.set_modified(time).unwrap();
    }

    pub fn half(&mut self) {
        self.append();
        let mut line = self.line();
        line.push(b'\n');
        let cut = self.dice.below(line.len() as u64) as usize;
        self.write(&line[..cut]);
        self.half = Some(line.split_off(cut));
    }

    pub fn rotate(&mut self, late: bool) {
        rotate(self.dir.path());
        self.reopen(late);
    }

    pub fn rotate_by_date(&mut self) {
        self.dates += 1;
        rename(self.dir.path(), "app.log", &format!("app.log-2026{:04}", self.dates));
        self.reopen(false);
    }

    pub fn reopen(&mut self, late: bool) {
        if let Some(rest) = self.half.take() {
            self.write(&rest);
        }
        if late {
            self.late = true;
            self.append();
        }
        self.log = OpenOptions::new().create(true).append(true).open(self.path("app.log")).unwrap();
        self.touch();
    }

    pub fn state_options(&self, exactly_once: Option<Publisher>) -> StateOptions {
        let state_dir = Some(self.state.path().into());
        let sync = Sync::Every(Duration::from_secs(30));
        StateOptions { state_dir, sync, damaged: Damaged::Refuse, exactly_once }
    }

    /// Saves a new stream for the log: nothing of it was read, and it had only `size` bytes.
    pub fn save_unread(&mut self, size: u64) {
        let path = self.path("app.log");
        let identity = look_at(&path).unwrap().unwrap().identity;
        let board = Arc::new(Board::default());
        let (mut folder, mut saved) = state::open(self.state_options(None), &board).unwrap();
        let stream = saved.streams.len() as u64 + 1;
        saved.streams.push(SavedStream::acked(stream, &path, identity, Point::default(), size));
        folder.take_over(&saved, HashMap::new());
        let registry = folder.registry(&board);
        Work::new(folder, registry, board).expect("a state folder").save(false);
    }

    /// The first half of logrotate's copytruncate.
    pub fn copy(&mut self) {
        self.dates += 1;
        let to = self.path(&format!("app.log-2025{:04}", self.dates));
        fs::copy(self.path("app.log"), &to).unwrap();
        let time = self.tick();
        File::open(to).unwrap().set_modified(time).unwrap();
    }

    /// A rotated file with lines of its own that no tail has seen.
    pub fn unseen(&mut self) {
        let (path, bytes, time) = (self.path("app.log-20250001"), self.lines(), self.tick());
        fs::write(&path, bytes).unwrap();
        File::open(path).unwrap().set_modified(time).unwrap();
    }

    pub fn truncate(&mut self) {
        self.log.set_len(0).unwrap();
        self.touch();
    }

    pub fn rotated(&self) -> Vec<PathBuf> {
        let all = fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().path());
        let mut found: Vec<PathBuf> =
            all.filter(|p| p.file_name().unwrap() != "app.log" && p.extension().unwrap() != "gz").collect();
        found.sort();
        found
    }

    /// Returns the action that completes it.
    pub fn compress(&mut self) -> Option<Packing> {
        let rotated = self.rotated();
        if rotated.is_empty() {
            return None;
        }
        let plain = rotated[self.dice.below(rotated.len() as u64) as usize].clone();
        Some(Packing::begin(plain, self.dice.below(100)))
    }

    /// What a writer and its rotation do, whether or not the agent runs.
    pub fn act(&mut self, op: Op) {
        match op {
            Op::Append => self.append(),
            Op::Half if self.half.is_none() => self.half(),
            Op::Rotate => self.rotate(false),
            Op::RotateLate => self.rotate(true),
            Op::RotateTwice => {
                self.rotate(false);
                self.append();
                self.rotate(false);
            }
            Op::RotateByDate => self.rotate_by_date(),
            Op::Time => {
                self.now += Duration::from_millis(self.dice.of(&[10, 300, 1100, 4000, 20_000, 61_000]))
            }
            // Not by whole ticks: no two files get the same time.
            Op::Clock => {
                let set = self.dice.of(&[-86_400_007, -3_600_011, -7_013, 3_600_017, 864_000_019]);
                self.clock += set;
                self.late |= set < 0; // files are ordered by time
            }
            Op::Fault => {
                let which = self.dice.below(8) as usize;
                self.brokers.fault(which);
                self.brokers.down = self.dice.of(&[None, None, Some(0), Some(1)]);
            }
            _ => {}
        }
    }
}

#[allow(clippy::disallowed_methods)]
fn rename(dir: &Path, from: &str, to: &str) {
    fs::rename(dir.join(from), dir.join(to)).unwrap();
}

/// `app.log.1` becomes `.2` and so on, and `app.log` becomes `.1`.
pub fn rotate(dir: &Path) {
    for suffix in ["", ".gz"] {
        for i in (1..60).rev().filter(|i| dir.join(format!("app.log.{i}{suffix}")).exists()) {
            rename(dir, &format!("app.log.{i}{suffix}"), &format!("app.log.{}{suffix}", i + 1));
        }
    }
    rename(dir, "app.log", "app.log.1");
}

/// A gzip(1) run in progress.
pub struct Packing {
    plain: PathBuf,
    packed: PathBuf,
    rest: Vec<u8>,
}

impl Packing {
    /// Writes this percentage of the compressed file.
    pub fn begin(plain: PathBuf, percent: u64) -> Packing {
        let packed = PathBuf::from(format!("{}.gz", plain.display()));
        let mut e = GzEncoder::new(Vec::new(), Compression::fast());
        e.write_all(&fs::read(&plain).unwrap()).unwrap();
        let mut bytes = e.finish().unwrap();
        let rest = bytes.split_off(bytes.len() * percent as usize / 100);
        fs::write(&packed, &bytes).unwrap();
        Packing { plain, packed, rest }
    }

    pub fn complete(self) {
        let mut file = OpenOptions::new().append(true).open(&self.packed).unwrap();
        file.write_all(&self.rest).unwrap();
        file.set_modified(fs::metadata(&self.plain).unwrap().modified().unwrap()).unwrap();
        remove(&self.plain);
    }
}

thread_local! {
    static REMOVED: RefCell<Vec<File>> = const { RefCell::new(Vec::new()) };
}

/// Where birth times may be equal, the inode is not reused in this seed: no real writer is as fast as this one.
pub fn remove(path: &Path) {
    if !BIRTHLESS.get() && *COARSE {
        REMOVED.with_borrow_mut(|r| r.push(File::open(path).unwrap()));
    }
    fs::remove_file(path).unwrap();
}

/// Files created in quick succession may have the same birth time: up to Linux 6.12 it is the clock's last tick.
static COARSE: LazyLock<bool> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let births = (0..10).map(|i| {
        let file = File::create(dir.path().join(i.to_string())).unwrap();
        look(&file).unwrap().identity.born // not `look_at`, which runs the actions of other processes
    });
    let births: Vec<_> = births.collect();
    births.windows(2).any(|two| two[0] == two[1])
});
