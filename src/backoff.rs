//! The backoff used for all retries, and the small random number generator for its jitter.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators"): good enough for jitter and
/// for the `random` partitioner, never for secrets.
#[derive(Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        // The state must not be zero, and neighbouring seeds should diverge.
        Rng(seed.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1)
    }

    /// With a different seed for every process and call.
    pub fn random() -> Self {
        Rng::new(RandomState::new().build_hasher().finish())
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

/// For conditions that need an operator (permissions, a missing topic, disk space): once a minute.
pub const BLOCKED: Duration = Duration::from_secs(60);

/// How waits between attempts grow: doubling from `first` to `most`.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub first: Duration,
    pub most: Duration,
}

impl Backoff {
    /// For failures that may clear up immediately.
    pub const QUICK: Backoff = Backoff { first: Duration::from_millis(100), most: Duration::from_secs(5) };

    /// The wait after the `attempt`-th failure in a row, counted from 1, with ±20 % of jitter so that a fleet does
    /// not retry in step. Never more than `most`.
    pub fn pause(self, attempt: u32, rng: &mut Rng) -> Duration {
        let nominal = self.first.saturating_mul(1 << attempt.saturating_sub(1).min(20));
        let longest = (nominal * 6 / 5).min(self.most);
        // 2/3 of 120 % are 80 %.
        let third_us = longest.as_micros() as usize / 3;
        Duration::from_micros((2 * third_us + rng.below(third_us + 1)) as u64)
    }

    /// As [`Backoff::pause`], but evenly distributed between half of `first` and the whole doubled wait, so that the
    /// attempts of a fleet are spread out.
    pub fn spread(self, attempt: u32, rng: &mut Rng) -> Duration {
        let whole = self.first.saturating_mul(1 << attempt.saturating_sub(1).min(20)).min(self.most);
        let least = self.first / 2;
        least + Duration::from_micros(rng.below((whole - least).as_micros() as usize + 1) as u64)
    }
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
                let ms = Backoff::QUICK.pause(attempt, &mut rng).as_millis() as u64;
                assert!((low..=high).contains(&ms), "attempt {attempt}: {ms} ms");
            }
        }
    }

    /// Fails when the waits of a fleet come in step, do not reach a minute, or are so short that they lock an account.
    #[test]
    fn a_fleet_is_spread_over_the_whole_wait() {
        let backoff = Backoff { first: Duration::from_secs(10), most: Duration::from_secs(60) };
        let mut rng = Rng::new(9);
        for (attempt, most) in [(1, 10), (3, 40), (4, 60), (u32::MAX, 60)] {
            let mut fifths = [0; 5];
            for _ in 0..1000 {
                let wait = backoff.spread(attempt, &mut rng);
                assert!(wait >= Duration::from_secs(5) && wait <= Duration::from_secs(most), "{wait:?}");
                fifths[(wait.as_millis() as usize * 5 / (most as usize * 1000)).min(4)] += 1;
            }
            let least = if attempt == 1 { 0 } else { 40 };
            assert!(fifths.iter().all(|n| *n >= least), "attempt {attempt}: {fifths:?}");
        }
    }

    /// Fails when some value is never drawn.
    #[test]
    fn below_reaches_every_value() {
        let mut rng = Rng::new(0);
        let mut seen = [0u32; 7];
        (0..7000).for_each(|_| seen[rng.below(7)] += 1);
        assert!(seen.iter().all(|n| (800..1200).contains(n)), "{seen:?}");
    }
}
