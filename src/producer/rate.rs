//! `rate`: limits the bytes per second over all topics.

use std::time::{Duration, Instant};

/// A token bucket of one second.
#[derive(Debug)]
pub struct Rate {
    per_second: u64,
    /// Negative after a group larger than the tokens left; nothing is sent until it is positive again.
    left: i128,
    seen: Instant,
}

impl Rate {
    pub fn new(per_second: u64, now: Instant) -> Self {
        let per_second = per_second.max(1);
        Rate { per_second, left: i128::from(per_second), seen: now }
    }

    /// Until when nothing may be sent; `None`: send now.
    pub fn wait(&mut self, now: Instant) -> Option<Instant> {
        let gained = (now - self.seen).as_nanos() as i128 * i128::from(self.per_second) / 1_000_000_000;
        // Too little time for one byte yet: keep it for the next call.
        if gained > 0 {
            self.left = (self.left + gained).min(i128::from(self.per_second));
            self.seen = now;
        }
        let missing = 1 - self.left;
        let ms = (missing * 1000 / i128::from(self.per_second)).max(1) as u64;
        (missing > 0).then(|| now + Duration::from_millis(ms))
    }

    pub fn spend(&mut self, bytes: usize) {
        self.left -= bytes as i128;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when the rate drifts by more than one batch group, or a long-idle bucket allows a burst.
    #[test]
    fn rate_over_time() {
        let start = Instant::now();
        let mut rate = Rate::new(1000, start);
        let (mut now, mut sent) = (start, 0);
        while now < start + Duration::from_secs(20) {
            match rate.wait(now) {
                Some(until) => now = until,
                None => {
                    rate.spend(300);
                    sent += 300;
                }
            }
        }
        assert!((20_700..=21_300).contains(&sent), "{sent} bytes in 20 s, with a burst of 1 s");
    }
}
