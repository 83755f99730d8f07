//! The wall clock, which is not trusted: a box without a battery boots in 1970, and somebody sets the clock later. Only
//! records and dead letters say a time of day; how long a position is kept, when to try again and what is older than what
//! is told by running time and by numbers.

use std::time::{SystemTime, UNIX_EPOCH};

/// 2026-11-22, when this version was made: a clock that shows an earlier time is not set. In ms since 1970.
pub const EARLIEST_MS: i64 = 1_795_305_600_000;

/// What the machine's clock shows, in ms since 1970; before 1970 it is 1970.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}

/// The time to write down for `now_ms`: what the clock shows, or while it is not set the latest time that has certainly
/// been, which is that of the last save or of [`EARLIEST_MS`].
///
/// A clock that is set is believed also where it is behind the last save: one that was wrong once, and far ahead, would
/// else be right for ever.
pub fn stamp(now_ms: i64, saved_ms: i64) -> i64 {
    if now_ms >= EARLIEST_MS { now_ms } else { saved_ms.max(EARLIEST_MS) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when a clock that is not set is believed, when the last save counts for nothing, or when one wrong time stays.
    #[test]
    fn stamps() {
        const DAY: i64 = 86_400_000;
        let (today, boot) = (EARLIEST_MS + 100 * DAY, 5_000);
        for (now, saved, stamped) in [
            (today, 0, today),
            (today, today - DAY, today),
            (today, today + 9000 * DAY, today),
            (boot, 0, EARLIEST_MS),
            (boot, boot, EARLIEST_MS),
            (boot, today, today),
        ] {
            assert_eq!(stamp(now, saved), stamped, "{now} after {saved}");
        }
        assert!(now_ms() > EARLIEST_MS, "this machine's clock, or EARLIEST_MS, is wrong");
    }
}
