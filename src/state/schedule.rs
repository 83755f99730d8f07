//! Decides when to save positions, to sync them and to check for deleted files. Pure: time is an argument.

use super::Sync;
use crate::streams::Urgency;
use std::time::{Duration, Instant};

/// From the first change to its save, and between saves while something changes: with the write, a change is saved
/// within 1 s.
const GATHER: Duration = Duration::from_millis(800);
/// From the first acknowledgement of a run to its save. With the write this takes less than 100 ms, so an agent that
/// is killed every half second still makes progress.
const FIRST: Duration = Duration::from_millis(40);
/// How often file sizes are compared with the saved ones while lines are read. Saved sizes tell how much was lost if an unread file
/// disappears.
const SIZES: Duration = Duration::from_secs(30);
/// The first check for deleted files, and the interval after that.
const LOOK_FIRST: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_secs(6 * 3600);
/// A failed save is retried after this, doubled each time up to [`RETRY_MOST`].
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(5);

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaverAction {
    Save {
        sync: bool,
    },
    Sync,
    CompareSizes,
    LookForFiles,
    /// Wait until then, or for a change of this urgency.
    Wait(Instant, Urgency),
}

/// The saver's history, as far as the schedule depends on it.
#[derive(Debug)]
pub struct Schedule {
    policy: Sync,
    /// The first change that no save includes, not even one in progress.
    changed: Option<Instant>,
    /// The first acknowledgement of this run, until a save that includes it is in progress.
    first_ack: First,
    /// Someone waits for the next save.
    urgent: bool,
    /// The last save.
    saved_at: Option<Instant>,
    /// The first unsynced save.
    unsynced: Option<Instant>,
    /// Number of failures in a row, and the earliest time of the next attempt.
    failed: Option<(u32, Instant)>,
    /// `None`: no lines were read since the last comparison.
    sizes_at: Option<Instant>,
    look_at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Awaited,
    Came(Instant),
    Saved,
}

impl Schedule {
    pub fn new(policy: Sync, now: Instant) -> Schedule {
        Schedule {
            policy,
            changed: None,
            first_ack: First::Awaited,
            urgent: false,
            saved_at: None,
            unsynced: None,
            failed: None,
            sizes_at: Some(now + SIZES),
            look_at: now + LOOK_FIRST,
        }
    }

    pub fn change(&mut self, at: Instant) {
        self.changed.get_or_insert(at);
        self.grown(at);
    }

    /// Lines were read.
    pub fn grown(&mut self, at: Instant) {
        self.sizes_at.get_or_insert(at + SIZES);
    }

    /// Only a change or newly read lines require action.
    pub fn is_quiet(&self) -> bool {
        self.sizes_at.is_none()
    }

    /// Lines are acknowledged.
    pub fn ack(&mut self, now: Instant) {
        if self.first_ack == First::Awaited {
            self.first_ack = First::Came(now);
        }
        self.change(now);
    }

    /// There are changes that no save includes yet.
    pub fn is_changed(&self) -> bool {
        self.changed.is_some()
    }

    pub fn is_unsynced(&self) -> bool {
        self.unsynced.is_some()
    }

    /// Someone waits for the next save.
    pub fn hurry(&mut self) {
        self.urgent = true;
    }

    /// A save with all changes so far has begun.
    pub fn begun(&mut self) {
        self.changed = None;
        self.urgent = false;
        if matches!(self.first_ack, First::Came(_)) {
            self.first_ack = First::Saved;
        }
    }

    pub fn saved(&mut self, sync: bool, now: Instant) {
        (self.failed, self.saved_at) = (None, Some(now));
        if sync {
            self.unsynced = None;
        } else {
            self.unsynced.get_or_insert(now);
        }
    }

    pub fn synced(&mut self) {
        self.failed = None;
        self.unsynced = None;
    }

    /// A save or sync failed, so its content must be saved again. Returns the number of failures in a row.
    pub fn failed(&mut self, now: Instant) -> u32 {
        let times = self.failed.map_or(1, |(times, _)| times.saturating_add(1));
        let pause = RETRY.saturating_mul(1 << (times - 1).min(10)).min(RETRY_MOST);
        self.failed = Some((times, now + pause));
        self.changed.get_or_insert(now);
        times
    }

    /// `moved`: some size differed. `waiting`: some file has unacknowledged bytes; in an outage its size moves without any
    /// other change.
    pub fn compared(&mut self, moved: bool, waiting: bool, now: Instant) {
        self.sizes_at = waiting.then_some(now + SIZES);
        if moved {
            self.change(now);
        }
    }

    pub fn looked(&mut self, now: Instant) {
        self.look_at = now + LOOK;
    }

    pub fn next(&self, now: Instant) -> SaverAction {
        let not_before = self.failed.map_or(now, |(_, at)| at);
        let pause_ends = self.saved_at.map(|saved| saved + GATHER);
        let save_at = self.changed.map(|at| match self.first_ack {
            _ if self.urgent => at,
            First::Came(ack) => (ack + FIRST).min(at + GATHER).max(not_before),
            First::Awaited | First::Saved => {
                pause_ends.filter(|end| at < *end).unwrap_or(at + GATHER).max(not_before)
            }
        });
        let sync_at = match self.policy {
            Sync::Every(every) => self.unsynced.map(|at| (at + every).max(not_before)),
            Sync::Always => self.unsynced.map(|_| not_before),
        };
        let sync_due = sync_at.is_some_and(|at| at <= now);
        if save_at.is_some_and(|at| at <= now) {
            return SaverAction::Save { sync: sync_due || self.policy == Sync::Always };
        }
        if sync_due {
            // Include a pending change: one write and one sync instead of two.
            return if self.changed.is_some() { SaverAction::Save { sync: true } } else { SaverAction::Sync };
        }
        if self.sizes_at.is_some_and(|at| at <= now) {
            return SaverAction::CompareSizes;
        }
        if self.look_at <= now {
            return SaverAction::LookForFiles;
        }
        let mut until = self.look_at;
        for at in [save_at, sync_at, self.sizes_at].into_iter().flatten() {
            until = until.min(at);
        }
        // Between two saves, only the first acknowledgement is worth a wake-up.
        let pause_ends = pause_ends.filter(|end| now < *end);
        let wakes = match self.first_ack {
            First::Awaited if self.changed.is_some() || pause_ends.is_some() => Urgency::Ack,
            _ if self.changed.is_some() || pause_ends.is_some() => Urgency::Now,
            _ => Urgency::Change,
        };
        let until = if self.changed.is_none() { until.min(pause_ends.unwrap_or(until)) } else { until };
        SaverAction::Wait(until, wakes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: f64) -> impl Fn(Instant) -> Instant {
        move |t| t + Duration::from_secs_f64(seconds)
    }

    /// Fails when an idle saver writes, or wakes more often than the comparison of sizes requires.
    #[test]
    fn idle_writes_nothing() {
        let t = Instant::now();
        let mut r = Schedule::new(Sync::Every(Duration::from_secs(30)), t);
        assert_eq!(r.next(t), SaverAction::Wait(t + SIZES, Urgency::Change));
        r.compared(false, true, t);
        assert_eq!(r.next(t), SaverAction::Wait(t + SIZES, Urgency::Change), "bytes wait");
        r.compared(false, false, t);
        assert_eq!(r.next(t), SaverAction::Wait(t + LOOK_FIRST, Urgency::Change));
        r.grown(t);
        assert_eq!(r.next(t), SaverAction::Wait(t + SIZES, Urgency::Change), "lines were read");
        let mut now = t;
        for _ in 0..1000 {
            match r.next(now) {
                SaverAction::Wait(at, _) => now = at,
                SaverAction::CompareSizes => r.compared(false, false, now),
                SaverAction::LookForFiles => r.looked(now),
                other => panic!("{other:?} while nothing changes"),
            }
        }
    }

    /// Fails when each change postpones the save, or when the first change is saved later than after 1 s.
    #[test]
    fn a_busy_file_is_saved_once_a_second() {
        let t = Instant::now();
        let mut r = Schedule::new(Sync::Every(Duration::from_secs(3600)), t);
        let mut saves = Vec::new();
        for ms in 0..10_000 {
            let now = t + Duration::from_millis(ms);
            r.change(now);
            if let SaverAction::Save { sync } = r.next(now) {
                assert!(!sync);
                saves.push(ms);
                r.begun();
                r.saved(false, now);
            }
        }
        assert!(saves[0] <= 1000 && saves.windows(2).all(|w| w[1] - w[0] <= 1000), "{saves:?}");
        assert!(saves.len() <= 13, "{saves:?}");
    }

    /// Fails when a run that is killed within a second saves nothing, or when every acknowledgement is saved that
    /// early.
    #[test]
    fn the_first_acknowledgement_is_saved_at_once() {
        let t = Instant::now();
        let at = |ms| t + Duration::from_millis(ms);
        let mut r = Schedule::new(Sync::Every(Duration::from_secs(3600)), t);
        r.change(t); // a file is opened
        assert_eq!(r.next(at(200)), SaverAction::Wait(t + GATHER, Urgency::Ack));
        let mut saves = Vec::new();
        for ms in 200..3000 {
            r.ack(at(ms));
            if let SaverAction::Save { .. } = r.next(at(ms)) {
                saves.push(ms);
                r.begun();
                r.saved(false, at(ms));
            }
        }
        assert!(saves[0] < 300, "{saves:?}");
        assert!(saves.windows(2).all(|w| (800..=1000).contains(&(w[1] - w[0]))), "{saves:?}");
    }

    /// Fails when the sync interval starts at the last save instead of the first unsynced one.
    #[test]
    fn saves_are_synced_in_time() {
        let t = Instant::now();
        let every = Duration::from_secs(30);
        let mut r = Schedule::new(Sync::Every(every), t);
        r.saved(false, t);
        r.saved(false, after(20.0)(t));
        assert_eq!(r.next(after(29.0)(t)), SaverAction::Wait(t + every, Urgency::Change));
        assert_eq!(r.next(t + every), SaverAction::Sync);
        r.change(after(29.9)(t));
        assert_eq!(r.next(t + every), SaverAction::Save { sync: true });
        r.begun();
        r.saved(true, t + every);
        assert!(matches!(r.next(t + every), SaverAction::CompareSizes));
        let mut always = Schedule::new(Sync::Always, t);
        always.change(t);
        assert_eq!(always.next(t + GATHER), SaverAction::Save { sync: true });
    }

    /// Fails when a save to a full disk is retried immediately, or never.
    #[test]
    fn a_failure_is_retried_at_growing_intervals() {
        let t = Instant::now();
        let mut r = Schedule::new(Sync::Every(Duration::from_secs(3600)), t);
        r.change(t);
        let (mut now, mut tries) = (t, 0);
        while now < after(120.0)(t) {
            match r.next(now) {
                SaverAction::Save { .. } => {
                    tries += 1;
                    r.begun();
                    assert_eq!(r.failed(now), tries);
                }
                SaverAction::CompareSizes => r.compared(false, false, now),
                SaverAction::Wait(at, _) => now = at,
                other => panic!("{other:?}"),
            }
        }
        assert!((20..=30).contains(&tries), "{tries}");
        r.hurry();
        assert!(matches!(r.next(now), SaverAction::Save { .. }), "a flush is tried at once");
    }
}
