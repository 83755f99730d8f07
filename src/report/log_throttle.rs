//! Decides when a recurring event is worth a log line. Pure.

use std::time::{Duration, Instant};

/// Counts occurrences and reports the first one and every doubling of the count.
#[derive(Debug, Default)]
pub struct LogThrottle {
    count: u64,
    reported: u64,
    last: Option<Instant>,
}

impl LogThrottle {
    /// After this long without an occurrence the count restarts.
    pub const QUIET: Duration = Duration::from_secs(600);

    /// Records `n` occurrences. `Some(count)` if a line should be logged.
    pub fn more(&mut self, n: u64, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.duration_since(last) >= Self::QUIET) {
            (self.count, self.reported) = (0, 0);
        }
        self.last = Some(now);
        self.count += n;
        let is_due = self.reported == 0 || self.count >= self.reported * 2;
        is_due.then(|| {
            self.reported = self.count;
            self.count
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when equal errors flood the log, when their number is not reported, or when one an hour later is
    /// suppressed.
    #[test]
    fn a_million_events_are_a_handful_of_lines() {
        let (mut r, start) = (LogThrottle::default(), Instant::now());
        let reported: Vec<u64> =
            (0..1_000_000).filter_map(|i| r.more(1, start + Duration::from_millis(i))).collect();
        assert_eq!((reported.len(), &reported[..4], reported[19]), (20, &[1, 2, 4, 8][..], 524_288));
        assert_eq!(r.more(3, start + Duration::from_secs(3600)), Some(3));
        assert_eq!(r.more(2, start + Duration::from_secs(3601)), None);
    }
}
