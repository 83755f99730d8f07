//! Wakes one tail and records why. `watch`, other tails and the supervisor add reasons; the tail takes them all at
//! once.
//!
//! A channel per reason and a `select!` were rejected: registering with four channels and unregistering costs more than
//! reading a line, and waker and sleeper contend for the channel's lock.

use crate::lock::lock;
use crate::waker::Waker;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shared by a tail and everything that may wake it.
#[derive(Debug)]
pub struct WakeSlot {
    pending: Mutex<SlotState>,
    changed: Condvar,
    /// Whether inotify reports changes for this path. If not, the tail polls.
    pub hints: AtomicBool,
    /// Number of looks begun plus looks ended; odd while a look is in progress.
    pub looks: AtomicU64,
}

#[derive(Debug, Default)]
struct SlotState {
    reasons: WakeReasons,
    /// The tail waits and must be notified.
    waiting: bool,
    events: Events,
    /// Wakes the tail while it waits for events of its own.
    waker: Option<Waker>,
}

/// Who reads the events for writes to a tail's files.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Events {
    /// `watch`, for all tails.
    #[default]
    Shared,
    /// The tail, but `watch` still asks for them too.
    Claimed,
    /// The tail alone.
    Own,
    /// The tail until `watch` asks for them again, which it does at its next walk.
    Returned,
}

/// Why a tail was woken. Nothing set: the wait timed out.
#[derive(Debug, Default, Clone, Copy)]
pub struct WakeReasons {
    /// Its file was written to; when that was first noticed.
    pub modified: Option<Instant>,
    /// Names may have changed: look at everything.
    pub look: bool,
    /// Another tail asks this one to look.
    pub nudged: bool,
    /// It should end, or there are new options.
    interrupted: bool,
}

impl WakeReasons {
    pub fn any(&self) -> bool {
        self.modified.is_some() || self.look || self.nudged || self.interrupted
    }

    /// Something other than bytes appended to the file.
    pub fn more_than_modified(&self) -> bool {
        self.modified.is_none() || self.look || self.nudged || self.interrupted
    }
}

impl WakeSlot {
    pub fn new(hints: bool) -> WakeSlot {
        WakeSlot {
            pending: Mutex::default(),
            changed: Condvar::new(),
            hints: AtomicBool::new(hints),
            looks: AtomicU64::new(0),
        }
    }

    /// Returns whether the tail had to be woken for this.
    fn wake(&self, add: impl FnOnce(&mut WakeReasons)) -> bool {
        let mut pending = lock(&self.pending);
        let first = !pending.reasons.any();
        add(&mut pending.reasons);
        let waiting = std::mem::take(&mut pending.waiting);
        if first && let Some(waker) = &pending.waker {
            waker.wake();
        }
        drop(pending);
        if waiting {
            self.changed.notify_one();
        }
        first
    }

    pub fn events(&self) -> Events {
        lock(&self.pending).events
    }

    /// The tail reads the events itself, and waits with this waker. Call after it watches its files.
    pub fn claim_events(&self, waker: &Waker) {
        let mut pending = lock(&self.pending);
        (pending.events, pending.waker) = (Events::Claimed, Some(waker.clone()));
    }

    /// The tail wants `watch` to read the events again. If it does so already, the tail must not wait for that: nothing would
    /// wake it.
    pub fn return_events(&self) {
        let mut pending = lock(&self.pending);
        if pending.events != Events::Shared {
            pending.events = Events::Returned;
        }
    }

    /// `watch` has done what these called for, unless the tail has changed them meanwhile.
    pub fn settle(&self, events: Events) {
        let mut pending = lock(&self.pending);
        match events {
            _ if pending.events != events => {}
            Events::Claimed => pending.events = Events::Own,
            Events::Returned => {
                (pending.events, pending.reasons.look) = (Events::Shared, true);
                if let Some(waker) = pending.waker.take() {
                    waker.wake();
                }
            }
            Events::Shared | Events::Own => {}
        }
    }

    /// The file was written to, as noticed at `since`. Returns whether nothing was pending before.
    pub fn modified(&self, since: Instant) -> bool {
        self.wake(|r| r.modified = Some(r.modified.map_or(since, |before| before.min(since))))
    }

    /// Names may have changed. Returns whether nothing was pending before.
    pub fn look(&self) -> bool {
        self.wake(|r| r.look = true)
    }

    pub fn nudge(&self) {
        self.wake(|r| r.nudged = true);
    }

    /// Call after the stop signal or the new options are visible to the tail.
    pub fn interrupt(&self) {
        self.wake(|r| r.interrupted = true);
    }

    /// Takes all reasons.
    pub fn take(&self) -> WakeReasons {
        std::mem::take(&mut lock(&self.pending).reasons)
    }

    /// Waits for a reason, at most `limit`, and takes all.
    pub fn wait(&self, limit: Duration) -> WakeReasons {
        let mut pending = lock(&self.pending);
        if !pending.reasons.any() {
            pending.waiting = true;
            let waited = self.changed.wait_timeout_while(pending, limit, |p| !p.reasons.any());
            pending = waited.unwrap_or_else(PoisonError::into_inner).0;
            pending.waiting = false;
        }
        std::mem::take(&mut pending.reasons)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    /// Fails when a reason is lost before or during a wait, or stays after it was taken.
    #[test]
    fn each_reason_is_taken_once() {
        let slot = Arc::new(WakeSlot::new(true));
        let first = Instant::now();
        assert!(slot.modified(first) && !slot.modified(first + Duration::from_secs(1)) && !slot.look());
        let taken = slot.wait(Duration::from_secs(60));
        assert_eq!((taken.modified, taken.look, taken.nudged), (Some(first), true, false));
        assert!(!slot.wait(Duration::ZERO).any());
        let other = slot.clone();
        let thread = thread::spawn(move || other.wait(Duration::from_secs(60)));
        // It usually waits by now; either way the reason must arrive.
        thread::yield_now();
        slot.nudge();
        assert!(thread.join().unwrap().nudged);
    }
}
