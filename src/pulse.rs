//! Who makes progress. Each thread that the whole depends on promises when it will be back; the main thread pings systemd's
//! watchdog while all promises are kept. Restarts nothing and wakes nobody.
//!
//! A thread promises before it waits, for as long as its wait has a deadline, and when it begins a turn of work. So an idle
//! one is alive at no cost, and so is one that waits for a broker: an outage breaks no promise. What may take long by
//! right (name resolution, a slow flash) is promised [`Beat::SLOW`]; what may take for ever without a restart being of any use
//! (a dead NFS mount) promises nothing.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// All threads that promise something.
#[derive(Debug)]
pub struct Pulse {
    since: Instant,
    longest: OnceLock<Duration>,
    beats: Mutex<Vec<Weak<Beat>>>,
}

/// One thread's promise.
#[derive(Debug)]
pub struct Beat {
    name: String,
    since: Instant,
    /// Milliseconds after `since`.
    due: AtomicU64,
}

/// No promise.
const NEVER: u64 = u64::MAX;

/// What a thread may be late, on a machine that is busy.
const GRACE: Duration = Duration::from_secs(5);

impl Default for Pulse {
    fn default() -> Self {
        Pulse { since: Instant::now(), longest: OnceLock::new(), beats: Mutex::default() }
    }
}

impl Pulse {
    /// For a thread that begins, or one that is told what to do by another. It is forgotten when the last owner drops it.
    pub fn beat(&self, name: impl Into<String>) -> Arc<Beat> {
        let beat = Arc::new(Beat { name: name.into(), since: self.since, due: AtomicU64::new(NEVER) });
        let mut all = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|b| b.strong_count() > 0);
        all.push(Arc::downgrade(&beat));
        beat
    }

    /// Somebody looks each `every`: from now on no wait should be longer. Before any thread begins.
    pub fn watched(&self, every: Duration) {
        let _ = self.longest.set(every); // said once
    }

    /// Longest wait of a thread that has nothing to do; as good as for ever where nobody looks.
    pub fn longest(&self) -> Duration {
        self.longest.get().copied().unwrap_or(Duration::from_secs(3600))
    }

    /// The thread that is most overdue, and for how long.
    pub fn late(&self, now: Instant) -> Option<(String, Duration)> {
        let grace = GRACE.min(self.longest());
        let all = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        let late = all.iter().filter_map(Weak::upgrade).filter_map(|b| Some((b.overdue(now)?, b)));
        let (by, beat) = late.filter(|(by, _)| *by > grace).max_by_key(|(by, _)| *by)?;
        Some((beat.name.clone(), by))
    }
}

impl Beat {
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
    pub fn rests(&self) {
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
        let pulse = Pulse::default();
        let (a, b) = (pulse.beat("a"), pulse.beat("b"));
        let after = |s| pulse.since + Duration::from_secs(s);
        assert_eq!(pulse.late(after(1 << 20)), None, "nothing is promised");
        a.within(Duration::from_secs(30));
        b.within(Beat::SLOW);
        assert_eq!(pulse.late(after(34)), None, "the deadline, and what a busy machine takes");
        assert_eq!(pulse.late(after(40)).unwrap().0, "a");
        assert_eq!(pulse.late(after(1000)).unwrap().0, "a", "the most overdue");
        a.within(Duration::from_secs(1000));
        assert_eq!(pulse.late(after(1000)).unwrap().0, "b");
        b.rests();
        assert_eq!(pulse.late(after(1000)), None);
        drop(a);
        assert_eq!(pulse.late(after(1 << 20)), None, "it has ended");
    }

    /// Fails when waits are as long as before although somebody looks more often.
    #[test]
    fn waits_are_as_long_as_nobody_looks() {
        let pulse = Pulse::default();
        assert_eq!(pulse.longest(), Duration::from_secs(3600));
        pulse.watched(Duration::from_secs(30));
        assert_eq!(pulse.longest(), Duration::from_secs(30));
        let a = pulse.beat("a");
        a.within(Duration::MAX);
        assert_eq!(pulse.late(Instant::now() + Duration::from_secs(1 << 40)), None);
    }
}
