//! The wall clock, which is not trusted: a box without a battery boots in 1970, and its clock is set later. Only
//! records and dead letters carry a time of day. Retention, retries and ordering use running time and sequence
//! numbers.

use std::time::{SystemTime, UNIX_EPOCH};

/// 2026-11-22, when this version was made. A clock that shows an earlier time is not set. In ms since 1970.
pub const EARLIEST_MS: i64 = 1_795_305_600_000;

/// The machine's clock, in ms since 1970; 0 if it is earlier.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}

/// The kernel's name for this boot; empty if it is not known.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The timestamp to record for `now_ms`: the clock's time, or while the clock is not set the latest time known to
/// have passed, which is that of the last save or [`EARLIEST_MS`].
///
/// Trust a set clock even if it is behind the last save; otherwise one bogus future timestamp would stick forever.
pub fn stamp(now_ms: i64, saved_ms: i64) -> i64 {
    if now_ms >= EARLIEST_MS { now_ms } else { saved_ms.max(EARLIEST_MS) }
}

/// Year, month and day of a day counted from 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `civil_from_days`): eras of 400 years, years that begin in March.
pub fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when an unset clock is trusted, when the last save is ignored, or when one wrong time sticks.
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
