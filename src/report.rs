//! One board of counters and states; `status`, metrics and the log are views of it. Decides nothing.
//!
//! Every counter has one writer. The board's lock is taken when a file or a broker comes, goes or changes its state and when
//! somebody looks, never per chunk.

pub mod live;
pub mod log_throttle;
pub mod metrics;
pub mod snapshot;
pub mod text;

pub use crate::streams::{Progress, Totals};

use crate::budget::Budget;
use crate::chunk::StreamId;
use crate::heartbeat::Heartbeats;
use crate::quota::Quota;
use crate::streams::sent_marks::SentMarks;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

/// What there is to say about one followed path.
#[derive(Debug, Default)]
pub struct FileState {
    /// The stream that is read now, and those of rotated files still open.
    pub progress: Vec<Arc<Progress>>,
    /// Of files that were read to their end and left, and whose lines were not all acknowledged then.
    pub left: Vec<Arc<Progress>>,
    /// "following", "waiting for the file", "unreadable", "catching up" …
    pub state: String,
    pub last_error: Option<String>,
    pub topic: String,
    /// Why reading does not go on, when it is not for the broker: "the rate limit", "waits for memory" …
    pub stuck: Option<String>,
}

/// What there is to say about one broker, or about the bootstrap list as a whole.
#[derive(Debug, Clone)]
pub struct BrokerState {
    /// "up" when it answers; else what is tried.
    pub state: String,
    pub since: Instant,
    pub attempts: u64,
    pub last_error: Option<String>,
}

/// What there is to say about the state folder.
#[derive(Debug, Clone, Default)]
pub struct StateFolderTrouble {
    /// `None`: nothing is saved.
    pub path: Option<PathBuf>,
    /// Why positions cannot be saved now. Writer: the saver.
    pub degraded: Option<String>,
    /// Exactly-once: batches wait for the folder. Writer: the journal.
    pub blocked: Option<Blocked>,
    /// Exactly-once: a write of `flights` has been under way since then. Writer: the journal.
    pub writing: Option<Instant>,
}

/// Delivery that waits for the state folder.
#[derive(Debug, Clone)]
pub struct Blocked {
    pub why: String,
    pub since: Instant,
    pub attempts: u64,
    pub topics: BTreeSet<String>,
}

/// Exactly-once: what the journal and ship say of it. Over all restarts, but for `unsettled` and `bytes`.
#[derive(Debug, Default)]
pub struct ExactlyOnceCounts {
    /// Writer: `run`.
    pub active: AtomicBool,
    /// `None`: no producer id yet, or at-least-once. Writer: ship.
    pub producer: Mutex<Option<(i64, i16)>>,
    /// Intents that the saved positions do not cover. Writer: the journal.
    pub unsettled: AtomicU64,
    /// Batches of an earlier run that were sent again with their numbers. Writer: ship.
    pub resent: AtomicU64,
    /// Those of them that the broker had. Writer: ship.
    pub found: AtomicU64,
    /// The brokers do not list our producer, so a crash leaves lines uncertain. Writer: ship.
    pub unlisted: AtomicBool,
    /// Written to `flights` in this run. Writer: the journal.
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
    pub once: ExactlyOnceCounts,
    /// Set once, by whoever makes the budget.
    pub budget: OnceLock<Arc<Budget>>,
    /// Set once, when the state folder is opened.
    pub sent_marks: OnceLock<Arc<SentMarks>>,
    /// Set once, by `run`; without a dead-letter file it is not.
    pub quota: OnceLock<Quota>,
    /// Set once, by the status thread: a byte makes it write the metrics now.
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
            once: ExactlyOnceCounts::default(),
            budget: OnceLock::new(),
            sent_marks: OnceLock::new(),
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

    pub fn brokers(&self) -> MutexGuard<'_, BTreeMap<String, BrokerState>> {
        lock(&self.brokers)
    }

    /// Which driver carries the lines, and why that one: "classic: the broker takes Fetch v0 …". Empty before the choice.
    pub fn driver(&self) -> MutexGuard<'_, String> {
        lock(&self.driver)
    }

    pub fn state(&self) -> MutexGuard<'_, StateFolderTrouble> {
        lock(&self.state)
    }

    /// The state folder began to block delivery, or ended it: the metrics say so at once, not with their next turn.
    pub fn alarm(&self) {
        if let Some(mut alarm) = self.alarm.get() {
            let _ = alarm.write(&[0]); // full: it is awake
        }
    }

    /// The progress of a stream that is opened at offset `at` while its file holds `size` bytes. It remembers on disk how
    /// far the stream was sent.
    pub fn progress(&self, stream: StreamId, at: u64, size: u64) -> Arc<Progress> {
        Arc::new(Progress::new(at, size, self.sent_marks.get().map(|marks| marks.take(stream, at, size))))
    }

    /// `lines` are about to be sent once more though their last attempt may have been stored (no producer id guards them).
    pub fn resent(&self, lines: u64) {
        if let Some(marks) = self.sent_marks.get() {
            marks.resent(lines);
        }
        self.totals.resent.fetch_add(lines, Relaxed);
    }

    /// `lines` are about to be sent again, with other numbers, though an earlier attempt may have been stored.
    pub fn uncertain(&self, lines: u64) {
        if let Some(marks) = self.sent_marks.get() {
            marks.uncertain(lines);
        }
        self.totals.uncertain.fetch_add(lines, Relaxed);
    }

    /// Lines that may be stored more than once, over all restarts; beside those that are uncertain.
    pub fn doubled_at_most(&self) -> u64 {
        let again = self.sent_marks.get().map_or(0, |marks| marks.again());
        again.saturating_add(self.totals.resent.load(Relaxed))
    }

    /// Topics that have been in trouble, by name; ship writes them.
    pub fn topics(&self) -> MutexGuard<'_, BTreeMap<String, BrokerState>> {
        lock(&self.topics)
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}
