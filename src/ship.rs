//! STAGE 2: chunks in, acks out. The synchronous producer thread, its flights, and the drivers that carry them.

pub mod driver;
pub mod flight;
mod json;
pub mod modern;
pub mod render;
#[cfg(test)]
pub mod testing;

use crossbeam_channel::Sender;
use std::path::PathBuf;
use std::time::Duration;

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

/// What ship needs to know; nothing of it changes while it runs.
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
    /// For `random` and the jitter of retries.
    pub seed: u64,
    /// For `send`: what became of each batch, as it is stored.
    pub receipts: Option<Sender<Receipt>>,
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
            seed: 1,
            receipts: None,
        }
    }
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
