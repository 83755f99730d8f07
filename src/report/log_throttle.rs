//! When something that happens again and again is worth a line in the log. Pure; writes none.

use std::time::{Duration, Instant};

/// How often it has happened since it began: told at the first time, and whenever that number has doubled.
#[derive(Debug, Default)]
pub struct LogThrottle {
    count: u64,
    told: u64,
    last: Option<Instant>,
}

impl LogThrottle {
    /// After so long without it, it begins anew.
    pub const QUIET: Duration = Duration::from_secs(600);

    /// `n` more. `Some`: to be told, with the number so far.
    pub fn more(&mut self, n: u64, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.duration_since(last) >= Self::QUIET) {
            (self.count, self.told) = (0, 0);
        }
        self.last = Some(now);
        self.count += n;
        let tell = self.told == 0 || self.count >= self.told * 2;
        tell.then(|| {
            self.told = self.count;
            self.count
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when equal errors flood the log, when their number is not told, or when one an hour later is passed over.
    #[test]
    fn a_million_are_a_handful() {
        let (mut r, start) = (LogThrottle::default(), Instant::now());
        let told: Vec<u64> =
            (0..1_000_000).filter_map(|i| r.more(1, start + Duration::from_millis(i))).collect();
        assert_eq!((told.len(), &told[..4], told[19]), (20, &[1, 2, 4, 8][..], 524_288));
        assert_eq!(r.more(3, start + Duration::from_secs(3600)), Some(3));
        assert_eq!(r.more(2, start + Duration::from_secs(3601)), None);
    }
}
