//! Decides when a queue of events is read. Pure: time is an argument.
//!
//! The first event after a pause is read at once, or after the delay that `linger` allows. While events keep coming,
//! the queue is read at intervals, and events wake no thread: 5,000 lines per second cost some 150 wake-ups of a tail
//! instead of 5,000, and the kernel merges equal events in the queue. A wake-up costs more than a line.

use std::time::{Duration, Instant};

/// Pause between two reads of a queue, per tail that the previous read woke, within limits.
const PER_WAKE: Duration = Duration::from_millis(1);
const LEAST: Duration = Duration::from_millis(6);
const MOST: Duration = Duration::from_millis(200);
/// The pause after events for no followed path: a parent folder may be a busy one, such as `/tmp`.
pub const BESIDE: Duration = Duration::from_millis(50);

/// Reading waits for most of `linger`, so that a single line wakes neither `watch` nor a tail. The rest is left for the
/// tails, which should all have read by the time the producer sends. A second is enough to save wake-ups; lines that a
/// writer truncates within it are not read.
pub fn delay(linger: Duration) -> Duration {
    linger.saturating_sub((linger / 10).min(Duration::from_millis(20))).min(Duration::from_secs(1))
}

/// The pause after a read that woke this many tails.
pub fn pause(woken: u32) -> Duration {
    (PER_WAKE * woken).clamp(LEAST, MOST)
}

#[derive(Debug)]
pub struct ReadPace {
    read: Instant,
    pause: Duration,
    /// When to read. `None`: when an event comes.
    due: Option<Instant>,
    /// The oldest event in the queue came at this time or later.
    noticed: Instant,
    /// Events come faster than the queue is read.
    busy: bool,
}

impl ReadPace {
    pub fn new(now: Instant) -> ReadPace {
        ReadPace { read: now, pause: Duration::ZERO, due: None, noticed: now, busy: false }
    }

    /// When to read the queue; `None`: when an event comes.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// An event has come.
    pub fn readable(&mut self, now: Instant, delay: Duration) {
        let rested = self.read + self.pause;
        self.busy = now < rested;
        self.noticed = now;
        self.due = Some(rested.max(now + delay));
    }

    /// Returns whether the queue should be read now. If so, call [`ReadPace::was_read`].
    pub fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// Makes the queue due now.
    pub fn hurry(&mut self, now: Instant) {
        self.due = Some(now);
    }

    /// No event in the queue is older than this.
    pub fn noticed(&self) -> Instant {
        self.noticed
    }

    /// Call after reading the queue. `pause`: the time until the next read.
    pub fn was_read(&mut self, now: Instant, had_events: bool, pause: Duration, delay: Duration) {
        let by_the_clock = had_events && (self.busy || !delay.is_zero());
        (self.read, self.pause) = (now, if had_events { pause } else { Duration::ZERO });
        (self.noticed, self.busy) = (now, by_the_clock);
        self.due = by_the_clock.then(|| now + pause.max(delay));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// Runs events at the given times (ms) for 1 s; returns when the queue was read with events, and all wake-ups.
    fn run(events: impl Fn(u64) -> bool, delay: Duration) -> (Vec<u64>, usize) {
        let start = Instant::now();
        let (mut pace, mut queued, mut reads, mut wakes) = (ReadPace::new(start), false, vec![], 0);
        for ms in 1..=1000 {
            let now = start + MS(ms);
            queued |= events(ms);
            if pace.due().is_none() && queued {
                pace.readable(now, delay);
                wakes += 1;
            } else if pace.is_due(now) {
                wakes += 1;
            }
            if pace.is_due(now) {
                pace.was_read(now, queued, pause(1), delay);
                if std::mem::take(&mut queued) {
                    reads.push(ms);
                }
            }
        }
        (reads, wakes)
    }

    /// Fails when a single event waits, when slow events cost two wake-ups each, or when fast ones are not gathered.
    #[test]
    fn reads_at_once_or_by_the_clock() {
        assert_eq!(run(|ms| ms == 500, Duration::ZERO), (vec![500], 1));
        let (reads, wakes) = run(|ms| ms % 10 == 0, Duration::ZERO);
        assert_eq!((reads.len(), wakes), (100, 100));
        // After a burst, too.
        let (reads, wakes) = run(|ms| ms < 100 || ms % 10 == 3, Duration::ZERO);
        assert!(wakes <= reads.len() + 2 && reads.len() <= 110, "{reads:?} {wakes}");
        let (reads, wakes) = run(|_| true, Duration::ZERO);
        assert!((160..170).contains(&reads.len()) && wakes <= reads.len() + 2, "{reads:?} {wakes}");
    }

    /// Fails when `linger` does not reach the reading, or delays a line longer than itself.
    #[test]
    fn linger() {
        let linger = MS(200);
        assert_eq!(run(|ms| ms == 500, delay(linger)).0, [680]);
        let (reads, wakes) = run(|ms| ms % 10 == 0, delay(linger));
        assert_eq!((reads, wakes), (vec![190, 370, 550, 730, 910], 6));
        assert_eq!(delay(Duration::ZERO), Duration::ZERO);
        assert_eq!(delay(Duration::from_secs(60)), Duration::from_secs(1));
    }
}
