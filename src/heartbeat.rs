//! Liveness tracking. Every critical thread registers a deadline for its next check-in; the main thread pings
//! systemd's watchdog while no deadline is missed.
//!
//! A thread sets its deadline before it waits, to the end of that wait, and again when it starts a round of work. An
//! idle thread therefore stays alive at no cost, and so does one that waits for a broker: an outage misses no
//! deadline. Operations that may legitimately take long (name resolution, a slow flash) get [`Heartbeat::SLOW`].
//! Operations that may hang forever without a restart being any help (a dead NFS mount) suspend the deadline.

use crate::lock::lock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

/// The deadlines of all registered threads.
#[derive(Debug)]
pub struct Heartbeats {
    since: Instant,
    longest: OnceLock<Duration>,
    heartbeats: Mutex<Vec<Weak<Heartbeat>>>,
}

/// One thread's deadline.
#[derive(Debug)]
pub struct Heartbeat {
    name: String,
    since: Instant,
    /// Milliseconds after `since`.
    due: AtomicU64,
}

/// No deadline.
const NEVER: u64 = u64::MAX;

/// How late a thread may be on a busy machine.
const GRACE: Duration = Duration::from_secs(5);

impl Default for Heartbeats {
    fn default() -> Self {
        Heartbeats { since: Instant::now(), longest: OnceLock::new(), heartbeats: Mutex::default() }
    }
}

impl Heartbeats {
    /// Registers a thread. The entry is removed when the last owner drops it.
    pub fn register(&self, name: impl Into<String>) -> Arc<Heartbeat> {
        let heartbeat =
            Arc::new(Heartbeat { name: name.into(), since: self.since, due: AtomicU64::new(NEVER) });
        let mut all = lock(&self.heartbeats);
        all.retain(|b| b.strong_count() > 0);
        all.push(Arc::downgrade(&heartbeat));
        heartbeat
    }

    /// Deadlines are checked this often, so no wait should be longer. Call before any thread starts.
    pub fn check_every(&self, every: Duration) {
        let _ = self.longest.set(every); // set only once
    }

    /// The longest wait of an idle thread; effectively unlimited if there is no watchdog.
    pub fn max_wait(&self) -> Duration {
        self.longest.get().copied().unwrap_or(Duration::from_secs(3600))
    }

    /// The thread that is most overdue, and for how long.
    pub fn overdue(&self, now: Instant) -> Option<(String, Duration)> {
        let grace = GRACE.min(self.max_wait());
        let all = lock(&self.heartbeats);
        let late = all.iter().filter_map(Weak::upgrade).filter_map(|b| Some((b.overdue(now)?, b)));
        let (by, heartbeat) = late.filter(|(by, _)| *by > grace).max_by_key(|(by, _)| *by)?;
        Some((heartbeat.name.clone(), by))
    }
}

impl Heartbeat {
    /// One round of work, which waits only for neighbouring queues.
    pub const TURN: Duration = Duration::from_secs(60);
    /// Name resolution, a write to a slow flash, a call of the `kafka` crate.
    pub const SLOW: Duration = Duration::from_secs(600);

    /// The thread will check in again within `time`.
    pub fn within(&self, time: Duration) {
        let due = self.since.elapsed().saturating_add(time).as_millis();
        self.due.store(due.min(u128::from(NEVER - 1)) as u64, Relaxed);
    }

    /// No deadline until the next [`Heartbeat::within`].
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

    /// Fails when an idle thread counts as stuck, a stuck one as idle, or an ended one as either.
    #[test]
    fn deadlines() {
        let heartbeats = Heartbeats::default();
        let (a, b) = (heartbeats.register("a"), heartbeats.register("b"));
        let after = |s| heartbeats.since + Duration::from_secs(s);
        assert_eq!(heartbeats.overdue(after(1 << 20)), None, "no deadline is set");
        a.within(Duration::from_secs(30));
        b.within(Heartbeat::SLOW);
        assert_eq!(heartbeats.overdue(after(34)), None, "the deadline, plus the grace period");
        assert_eq!(heartbeats.overdue(after(40)).unwrap().0, "a");
        assert_eq!(heartbeats.overdue(after(1000)).unwrap().0, "a", "the most overdue");
        a.within(Duration::from_secs(1000));
        assert_eq!(heartbeats.overdue(after(1000)).unwrap().0, "b");
        b.suspend();
        assert_eq!(heartbeats.overdue(after(1000)), None);
        drop(a);
        assert_eq!(heartbeats.overdue(after(1 << 20)), None, "it has ended");
    }

    /// Fails when the maximum wait ignores the watchdog's interval.
    #[test]
    fn the_watchdog_limits_waits() {
        let heartbeats = Heartbeats::default();
        assert_eq!(heartbeats.max_wait(), Duration::from_secs(3600));
        heartbeats.check_every(Duration::from_secs(30));
        assert_eq!(heartbeats.max_wait(), Duration::from_secs(30));
        let a = heartbeats.register("a");
        a.within(Duration::MAX);
        assert_eq!(heartbeats.overdue(Instant::now() + Duration::from_secs(1 << 40)), None);
    }
}
