//! How long to wait before another try, and the small generator its jitter comes from. Waits for nothing itself.

use std::time::Duration;

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators"): seeded once, good enough for
/// jitter and for `random`; never for secrets.
#[derive(Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        // The state must not be zero, and neighbouring seeds should not begin alike.
        Rng(seed.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`, which is not 0. The high half is scaled (Lemire): no division per record.
    pub fn below(&mut self, n: usize) -> usize {
        (((self.next() >> 32) * n as u64) >> 32) as usize
    }
}

/// Where a right, a topic or room must be given first: once a minute.
pub const BLOCKED: Duration = Duration::from_secs(60);

const FIRST_MS: u64 = 100;
const LONGEST_MS: u64 = 5000;

/// The wait after the `attempt`-th failure in a row, counted from 1: 100 ms doubling, ±20 %, never over 5 s.
pub fn backoff(attempt: u32, rng: &mut Rng) -> Duration {
    let nominal = FIRST_MS << attempt.saturating_sub(1).min(6);
    let longest_ms = (nominal * 6 / 5).min(LONGEST_MS);
    // 2/3 of 120 % are 80 %.
    let third_us = longest_ms * 1000 / 3;
    Duration::from_micros(2 * third_us + rng.below(third_us as usize + 1) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when the wait does not grow, leaves ±20 %, passes 5 s, or overflows after weeks of failures.
    #[test]
    fn backoff_doubles_up_to_5_s() {
        let mut rng = Rng::new(7);
        for (attempt, low, high) in [
            (1, 80, 120),
            (2, 160, 240),
            (4, 640, 960),
            (6, 2560, 3840),
            (7, 3333, 5000),
            (u32::MAX, 3333, 5000),
        ] {
            for _ in 0..1000 {
                let ms = backoff(attempt, &mut rng).as_millis() as u64;
                assert!((low..=high).contains(&ms), "attempt {attempt}: {ms} ms");
            }
        }
    }

    /// Fails when some value never comes up.
    #[test]
    fn below_reaches_every_value() {
        let mut rng = Rng::new(0);
        let mut seen = [0u32; 7];
        (0..7000).for_each(|_| seen[rng.below(7)] += 1);
        assert!(seen.iter().all(|n| (800..1200).contains(n)), "{seen:?}");
    }
}
