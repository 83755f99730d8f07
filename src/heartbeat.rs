//! Who makes progress. Each thread that the whole depends on promises when it will be back; the main thread pings systemd's
//! watchdog while all promises are kept. Restarts nothing and wakes nobody.
//!
//! A thread promises before it waits, for as long as its wait has a deadline, and when it begins a turn of work. So an idle
//! one is alive at no cost, and so is one that waits for a broker: an outage breaks no promise. What may take long by
//! right (name resolution, a slow flash) is promised [`Heartbeat::SLOW`]; what may take for ever without a restart being of any use
//! (a dead NFS mount) promises nothing.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// All threads that promise something.
#[derive(Debug)]
pub struct Heartbeats {
    since: Instant,
    longest: OnceLock<Duration>,
    heartbeats: Mutex<Vec<Weak<Heartbeat>>>,
}

/// One thread's promise.
#[derive(Debug)]
pub struct Heartbeat {
    name: String,
    since: Instant,
    /// Milliseconds after `since`.
    due: AtomicU64,
}

/// No promise.
const NEVER: u64 = u64::MAX;

/// What a thread may be late, on a machine that is busy.
const GRACE: Duration = Duration::from_secs(5);

impl Default for Heartbeats {
    fn default() -> Self {
        Heartbeats { since: Instant::now(), longest: OnceLock::new(), heartbeats: Mutex::default() }
    }
}

impl Heartbeats {
    /// For a thread that begins, or one that is told what to do by another. It is forgotten when the last owner drops it.
    pub fn register(&self, name: impl Into<String>) -> Arc<Heartbeat> {
        let heartbeat =
            Arc::new(Heartbeat { name: name.into(), since: self.since, due: AtomicU64::new(NEVER) });
        let mut all = self.heartbeats.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|b| b.strong_count() > 0);
        all.push(Arc::downgrade(&heartbeat));
        heartbeat
    }

    /// Somebody looks each `every`: from now on no wait should be longer. Before any thread begins.
    pub fn check_every(&self, every: Duration) {
        let _ = self.longest.set(every); // said once
    }

    /// Longest wait of a thread that has nothing to do; as good as for ever where nobody looks.
    pub fn max_wait(&self) -> Duration {
        self.longest.get().copied().unwrap_or(Duration::from_secs(3600))
    }

    /// The thread that is most overdue, and for how long.
    pub fn overdue(&self, now: Instant) -> Option<(String, Duration)> {
        let grace = GRACE.min(self.max_wait());
        let all = self.heartbeats.lock().unwrap_or_else(PoisonError::into_inner);
        let late = all.iter().filter_map(Weak::upgrade).filter_map(|b| Some((b.overdue(now)?, b)));
        let (by, heartbeat) = late.filter(|(by, _)| *by > grace).max_by_key(|(by, _)| *by)?;
        Some((heartbeat.name.clone(), by))
    }
}

impl Heartbeat {
    /// One turn of a stage, which waits for nothing but its neighbours' queues.
    pub const TURN: Duration = Duration::from_secs(60);
    /// Name resolution, a write to a slow flash, a call of the `kafka` crate.
    pub const SLOW: Duration = Duration::from_secs(600);

    /// Back within `time`, or something is wrong.
    pub fn within(&self, time: Duration) {
        let due = self.since.elapsed().saturating_add(time).as_millis();
        self.due.store(due.min(u128::from(NEVER - 1)) as u64, Relaxed);
    }

    /// It may take as long as it takes.
    pub fn suspend(&self) {
        self.due.store(NEVER, Relaxed);
    }

    fn overdue(&self, now: Instant) -> Option<Duration> {
        let due = self.due.load(Relaxed);
        let now = now.saturating_duration_since(self.since);
        if due == NEVER { None } else { now.checked_sub(Duration::from_millis(due)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when an idle thread counts as stuck, a stuck one as idle, or one that ended as either.
    #[test]
    fn promises() {
        let heartbeats = Heartbeats::default();
        let (a, b) = (heartbeats.register("a"), heartbeats.register("b"));
        let after = |s| heartbeats.since + Duration::from_secs(s);
        assert_eq!(heartbeats.overdue(after(1 << 20)), None, "nothing is promised");
        a.within(Duration::from_secs(30));
        b.within(Heartbeat::SLOW);
        assert_eq!(heartbeats.overdue(after(34)), None, "the deadline, and what a busy machine takes");
        assert_eq!(heartbeats.overdue(after(40)).unwrap().0, "a");
        assert_eq!(heartbeats.overdue(after(1000)).unwrap().0, "a", "the most overdue");
        a.within(Duration::from_secs(1000));
        assert_eq!(heartbeats.overdue(after(1000)).unwrap().0, "b");
        b.suspend();
        assert_eq!(heartbeats.overdue(after(1000)), None);
        drop(a);
        assert_eq!(heartbeats.overdue(after(1 << 20)), None, "it has ended");
    }

    /// Fails when waits are as long as before although somebody looks more often.
    #[test]
    fn waits_are_as_long_as_nobody_looks() {
        let heartbeats = Heartbeats::default();
        assert_eq!(heartbeats.max_wait(), Duration::from_secs(3600));
        heartbeats.check_every(Duration::from_secs(30));
        assert_eq!(heartbeats.max_wait(), Duration::from_secs(30));
        let a = heartbeats.register("a");
        a.within(Duration::MAX);
        assert_eq!(heartbeats.overdue(Instant::now() + Duration::from_secs(1 << 40)), None);
    }
}
