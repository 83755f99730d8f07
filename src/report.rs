//! The status board: counters and states that `status`, the metrics and the log show. No decision depends on it.
//!
//! Every counter has one writer. The board's lock is taken when a file or a broker appears, disappears or changes
//! state, and when a snapshot is taken, but never per chunk.
//!
//! The board holds state rather than events, so a slow reader costs delivery nothing and cannot miss anything.

mod from_json;
pub mod hung;
pub mod live;
pub mod log_throttle;
pub mod metrics;
pub mod snapshot;
pub mod text;

pub use crate::streams::{Progress, Totals};

use crate::lock::lock;
use crate::traffic::Traffic;
use hung::HungReports;

use crate::budget::Budget;
use crate::heartbeat::Heartbeats;
use crate::quota::Quota;
use crate::record::StreamId;
use crate::streams::sent_marks::SentMarks;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

/// The status of one followed path.
#[derive(Debug, Default)]
pub struct FileState {
    /// The stream being read, and those of rotated files still open.
    pub progress: Vec<Arc<Progress>>,
    /// Streams of files that were read to the end and left before all their lines were acknowledged.
    pub left: Vec<Arc<Progress>>,
    /// Its tail has ended: it is shown only until the lines of `left` are acknowledged.
    pub ended: bool,
    /// It is a journal's file, whose bytes say little: it has large tables, and free space between its objects.
    pub is_journal: bool,
    /// "following", "waiting for the file", "unreadable", "catching up", "finished" …
    pub state: String,
    pub last_error: Option<String>,
    pub topic: String,
    /// Why reading is paused, unless it waits for the broker: "the rate limit", "waits for memory" …
    pub stuck: Option<String>,
}

impl FileState {
    pub fn is_over(&self) -> bool {
        self.ended && self.left.iter().all(|g| g.is_done())
    }
}

/// The status of one broker, or of the bootstrap list as a whole.
#[derive(Debug, Clone)]
pub struct BrokerState {
    /// "up" when it answers, otherwise the step in progress.
    pub state: String,
    pub since: Instant,
    pub attempts: u64,
    pub last_error: Option<String>,
}

/// The status of the state folder.
#[derive(Debug, Clone, Default)]
pub struct StateFolderTrouble {
    /// `None`: nothing is saved.
    pub path: Option<PathBuf>,
    /// Why positions cannot be saved now. Writer: the saver.
    pub degraded: Option<String>,
    /// Exactly-once: batches wait for the folder. Writer: the intent log.
    pub blocked: Option<Blocked>,
    /// Exactly-once: when the current write of `flights` began. Writer: the intent log.
    pub writing: Option<Instant>,
    /// When the current save began. Writer: the saver.
    pub saving: Option<Instant>,
}

/// Delivery that waits for the state folder.
#[derive(Debug, Clone)]
pub struct Blocked {
    pub why: String,
    pub since: Instant,
    pub attempts: u64,
    pub topics: BTreeSet<String>,
}

/// Counters of exactly-once, over all restarts except `unsettled` and `bytes`.
#[derive(Debug, Default)]
pub struct ExactlyOnceCounts {
    /// Writer: `run`.
    pub active: AtomicBool,
    /// `None`: no producer id yet, or at-least-once. Writer: the producer.
    pub producer: Mutex<Option<(i64, i16)>>,
    /// Intents that the saved positions do not cover. Writer: the intent log.
    pub unsettled: AtomicU64,
    /// Batches of an earlier run sent again with their original numbers. Writer: the producer.
    pub resent: AtomicU64,
    /// How many of those the broker already had. Writer: the producer.
    pub found: AtomicU64,
    /// The brokers do not list our producer, so a crash leaves lines uncertain. Writer: the producer.
    pub unlisted: AtomicBool,
    /// Written to `flights` in this run. Writer: the intent log.
    pub bytes: AtomicU64,
}

#[derive(Debug)]
pub struct Board {
    files: Mutex<BTreeMap<PathBuf, FileState>>,
    brokers: Mutex<BTreeMap<String, BrokerState>>,
    driver: Mutex<String>,
    state: Mutex<StateFolderTrouble>,
    topics: Mutex<BTreeMap<String, BrokerState>>,
    pub totals: Arc<Totals>,
    pub traffic: Traffic,
    pub once: ExactlyOnceCounts,
    /// Set once, at start-up.
    pub budget: OnceLock<Arc<Budget>>,
    /// Set once, when the state folder is opened.
    pub sent_marks: OnceLock<Arc<SentMarks>>,
    hung_reports: HungReports,
    /// Set once by `run`, if there is a dead-letter file.
    pub quota: OnceLock<Quota>,
    /// Set once by the status thread: writing a byte makes it write the metrics immediately.
    alarm: OnceLock<UnixStream>,
    pub heartbeats: Heartbeats,
    pub started: Instant,
}

impl Default for Board {
    fn default() -> Self {
        Board {
            files: Mutex::default(),
            brokers: Mutex::default(),
            driver: Mutex::default(),
            topics: Mutex::default(),
            state: Mutex::default(),
            totals: Arc::default(),
            traffic: Traffic::default(),
            once: ExactlyOnceCounts::default(),
            budget: OnceLock::new(),
            sent_marks: OnceLock::new(),
            hung_reports: HungReports::default(),
            quota: OnceLock::new(),
            alarm: OnceLock::new(),
            heartbeats: Heartbeats::default(),
            started: Instant::now(),
        }
    }
}

impl Board {
    pub fn files(&self) -> MutexGuard<'_, BTreeMap<PathBuf, FileState>> {
        lock(&self.files)
    }

    /// A tail starts at `path`: replaces the state shown while the file waited for a thread.
    pub fn tail_started(&self, path: &Path, topic: &str) {
        let mut files = self.files();
        let mut left = files.remove(path).unwrap_or_default().left;
        left.retain(|g| !g.is_done());
        files.insert(path.into(), FileState { topic: topic.into(), left, ..FileState::default() });
    }

    /// The tail of `path` has ended: what it read still counts as unsent until it is acknowledged.
    pub fn tail_ended(&self, path: &Path) {
        let mut files = self.files();
        if let Some(file) = files.get_mut(path) {
            file.left.append(&mut file.progress);
            (file.state, file.ended) = ("finished".into(), true);
            (file.last_error, file.stuck) = (None, None);
        }
        files.retain(|_, file| !file.is_over());
    }

    pub fn brokers(&self) -> MutexGuard<'_, BTreeMap<String, BrokerState>> {
        lock(&self.brokers)
    }

    /// The active driver, and why it was chosen: "classic: the broker takes Fetch v0 …". Empty before the choice.
    pub fn driver(&self) -> MutexGuard<'_, String> {
        lock(&self.driver)
    }

    pub fn state(&self) -> MutexGuard<'_, StateFolderTrouble> {
        lock(&self.state)
    }

    /// The state folder started or stopped blocking delivery: update the metrics immediately.
    pub fn alarm(&self) {
        if let Some(mut alarm) = self.alarm.get() {
            let _ = alarm.write(&[0]); // full: the thread is awake
        }
    }

    /// The progress of a stream opened at offset `at`, of `size` bytes as far as is known, and `most` at most. What was sent
    /// of the stream is persisted in its sent mark.
    pub fn progress(&self, stream: StreamId, at: u64, size: u64, most: u64) -> Arc<Progress> {
        Arc::new(Progress::new(at, size, self.sent_marks.get().map(|marks| marks.take(stream, at, most))))
    }

    /// `lines` are about to be sent again although their last attempt may have been stored, without a producer id to
    /// deduplicate them.
    pub fn resent(&self, lines: u64) {
        if let Some(marks) = self.sent_marks.get() {
            marks.resent(lines);
        }
        self.totals.resent.fetch_add(lines, Relaxed);
    }

    /// `lines` are about to be sent again with different sequence numbers, although an earlier attempt may have been
    /// stored.
    pub fn uncertain(&self, lines: u64) {
        if let Some(marks) = self.sent_marks.get() {
            marks.uncertain(lines);
        }
        self.totals.uncertain.fetch_add(lines, Relaxed);
    }

    /// Upper bound of lines stored more than once, over all restarts, excluding uncertain ones.
    pub fn doubled_at_most(&self) -> u64 {
        let again = self.sent_marks.get().map_or(0, |marks| marks.again());
        again.saturating_add(self.totals.resent.load(Relaxed))
    }

    /// Topics that have had problems, by name. Writer: the producer.
    pub fn topics(&self) -> MutexGuard<'_, BTreeMap<String, BrokerState>> {
        lock(&self.topics)
    }
}
