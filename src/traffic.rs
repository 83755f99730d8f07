//! Traffic by broker, counted at the sockets, and delivered payload by topic; both since the start of the process.

use crate::lock::lock;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Bytes that passed the sockets to one broker, including TLS records, handshakes, metadata and failed attempts, but
/// not TCP and IP headers or TCP retransmissions. Writers: the producer and the threads that connect for it.
#[derive(Debug, Default)]
pub struct SocketBytes {
    pub sent: AtomicU64,
    pub received: AtomicU64,
    /// Which of the name's addresses the next connection tries first; an index that wraps around.
    pub first_address: AtomicUsize,
}

impl SocketBytes {
    /// A connection that tried the address at `first` first has failed: the next one starts with the address after it.
    /// Failures of simultaneous attempts count once.
    pub fn failed_at(&self, first: usize) {
        let _ = self.first_address.compare_exchange(first, first.wrapping_add(1), Relaxed, Relaxed);
    }

    fn both(&self) -> u64 {
        self.sent.load(Relaxed) + self.received.load(Relaxed)
    }
}

#[derive(Debug, Default)]
pub struct Traffic {
    brokers: Mutex<BTreeMap<String, Arc<SocketBytes>>>,
    payload: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    /// Writer: the producer.
    budget: Mutex<Option<DataBudgetState>>,
}

/// The network budget as of `seen`.
#[derive(Clone, Debug)]
pub struct DataBudgetState {
    pub bytes: u64,
    pub period: Duration,
    /// "200 MiB per day".
    pub text: String,
    /// Bytes that may be sent at once; negative for a debt.
    pub left: f64,
    pub seen: Instant,
    /// Bytes gained per second, up to `burst`.
    pub per_second: f64,
    pub burst: u64,
    /// Bytes spent per second lately.
    pub pace: f64,
    /// Lines wait for it.
    pub is_used_up: bool,
}

impl DataBudgetState {
    pub fn left_at(&self, now: Instant) -> f64 {
        let gained = now.saturating_duration_since(self.seen).as_secs_f64() * self.per_second;
        (self.left + gained).min(self.burst as f64)
    }

    /// Seconds until it is used up, at this pace.
    pub fn used_up_in(&self) -> Option<f64> {
        (self.pace > self.per_second).then(|| self.left.max(0.0) / (self.pace - self.per_second))
    }
}

/// Maximum number of brokers counted individually. Further ones, of a cluster whose addresses keep changing, are
/// counted together.
const MOST: usize = 256;
const OTHERS: &str = "others";

impl Traffic {
    /// The counters of the broker at this `host:port`.
    pub fn broker(&self, address: &str) -> Arc<SocketBytes> {
        let mut brokers = lock(&self.brokers);
        let name = if brokers.len() < MOST || brokers.contains_key(address) { address } else { OTHERS };
        brokers.entry(name.to_owned()).or_default().clone()
    }

    /// The bytes of this topic's acknowledged lines, before compression. Writer: the producer.
    pub fn payload(&self, topic: &str) -> Arc<AtomicU64> {
        lock(&self.payload).entry(topic.to_owned()).or_default().clone()
    }

    /// Sent and received bytes by broker.
    pub fn brokers(&self) -> Vec<(String, u64, u64)> {
        let brokers = lock(&self.brokers);
        brokers
            .iter()
            .map(|(name, b)| (name.clone(), b.sent.load(Relaxed), b.received.load(Relaxed)))
            .collect()
    }

    pub fn topics(&self) -> Vec<(String, u64)> {
        lock(&self.payload).iter().map(|(name, bytes)| (name.clone(), bytes.load(Relaxed))).collect()
    }

    pub fn budget(&self) -> Option<DataBudgetState> {
        lock(&self.budget).clone()
    }

    pub fn set_budget(&self, state: DataBudgetState) {
        *lock(&self.budget) = Some(state);
    }

    /// All bytes in both directions.
    pub fn total(&self) -> u64 {
        lock(&self.brokers).values().map(|bytes| bytes.both()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when a cluster whose addresses keep changing fills the memory, or when bytes of brokers beyond the limit
    /// are lost.
    #[test]
    fn many_brokers() {
        let traffic = Traffic::default();
        for n in 0..2 * MOST {
            traffic.broker(&format!("b{n}:9092")).sent.fetch_add(1, Relaxed);
            traffic.broker("b0:9092").received.fetch_add(1, Relaxed);
        }
        assert_eq!((traffic.brokers().len(), traffic.total()), (MOST + 1, 4 * MOST as u64));
    }
}
