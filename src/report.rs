//! One board of counters and states; `status`, metrics and the log are views of it. Decides nothing.
//!
//! Every counter has one writer. The board's lock is taken when a file or a broker comes, goes or changes its state and when
//! somebody looks, never per chunk.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Offsets of one open stream, in bytes. Invariant: `saved ≤ acked ≤ flown ≤ framed ≤ size` (but for truncation).
#[derive(Debug, Default)]
pub struct Gauge {
    pub size: AtomicU64,
    pub framed: AtomicU64,
    pub flown: AtomicU64,
    pub acked: AtomicU64,
    pub saved: AtomicU64,
}

/// What there is to say about one followed path.
#[derive(Debug, Default)]
pub struct FileState {
    /// The stream that is read now, and those of rotated files still open.
    pub gauges: Vec<Arc<Gauge>>,
    /// "following", "waiting for the file", "unreadable", "catching up" …
    pub state: String,
    pub last_error: Option<String>,
}

/// What there is to say about one broker, or about the bootstrap list as a whole.
#[derive(Debug, Clone)]
pub struct BrokerState {
    pub state: String,
    pub since: Instant,
    pub attempts: u64,
    pub last_error: Option<String>,
}

/// Counters of the whole process since its start, or over restarts where they are saved.
#[derive(Debug, Default)]
pub struct Totals {
    pub read_lines: AtomicU64,
    pub acked_lines: AtomicU64,
    pub dead_lettered: AtomicU64,
    pub uncertain: AtomicU64,
    pub lost_bytes: AtomicU64,
    pub cut_lines: AtomicU64,
    pub retries: AtomicU64,
}

#[derive(Debug, Default)]
pub struct Board {
    files: Mutex<BTreeMap<PathBuf, FileState>>,
    brokers: Mutex<BTreeMap<String, BrokerState>>,
    driver: Mutex<String>,
    pub totals: Totals,
}

impl Board {
    pub fn files(&self) -> MutexGuard<'_, BTreeMap<PathBuf, FileState>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn brokers(&self) -> MutexGuard<'_, BTreeMap<String, BrokerState>> {
        self.brokers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which driver carries the lines, and why that one: "classic: the broker takes Fetch v0 …". Empty before the choice.
    pub fn driver(&self) -> MutexGuard<'_, String> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
