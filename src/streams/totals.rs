//! Counters of the whole process, over restarts where they are saved.

use std::sync::atomic::AtomicU64;

/// Every counter has one writer.
#[derive(Debug, Default)]
pub struct Totals {
    /// Writer: tails.
    pub read_lines: AtomicU64,
    /// Lines of acknowledged chunks, including dead letters. Writer: the registry.
    pub acked_lines: AtomicU64,
    /// Writer: the producer.
    pub dead_lettered: AtomicU64,
    /// Lines sent again although the first attempt may have been stored. Writer: the producer, through
    /// `Board::resent`.
    pub resent: AtomicU64,
    /// Writer: the producer.
    pub uncertain: AtomicU64,
    /// Bytes reported lost by closed streams. Writer: the registry.
    pub lost_bytes: AtomicU64,
    pub cut_lines: AtomicU64,
    pub retries: AtomicU64,
    /// Bytes written to the state folder. Writer: the saver.
    pub state_bytes: AtomicU64,
}
