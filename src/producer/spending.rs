//! The network budget: bytes per period, spent evenly by a token bucket. It delays lines and never drops any.
//!
//! All bytes that pass the sockets in either direction count ([`crate::traffic`]), including handshakes,
//! metadata and failed requests. Lines in flight are reserved in full until they are acknowledged, since their bytes
//! reach the sockets only afterwards. No new batch is formed while the balance minus the reservations is used up, and
//! nothing is resent while the balance itself is.
//!
//! The bucket holds 1/48 of the amount (half an hour of a day), and is filled with 46/48 of the amount per period. In
//! any period, that leaves 1/48 for the last request, which may exceed the balance: it uses at most half of the bucket
//! (see [`DataBudget::request`]).
//!
//! The balance is kept in the file `budget` of the state folder, one line of text padded with blanks:
//!
//! ```text
//! logagent-budget 1 left=BYTES wall=MS uptime=MS boot=ID
//! ```
//!
//! `left` is the balance minus the reservations, negative for a debt. `wall` is the wall clock in ms since 1970,
//! `uptime` the time since `boot` (`CLOCK_BOOTTIME`). The file is overwritten in place before anything is sent that it
//! does not cover. It is not synced: a kill does not lose the page cache, and a power loss forgets at most the last
//! half minute of spending. Within one boot the elapsed time comes from the uptime, otherwise from the wall clock; a
//! clock that was set back adds nothing, and one that was set ahead at most fills the bucket.

use crate::clock;
use crate::private_file;
use crate::report::text::{Age, HumanBytes};
use crate::traffic::DataBudgetState;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes per period.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataBudget {
    pub bytes: u64,
    pub period: Duration,
}

/// Periods by name. A month has 30 days.
pub const PERIODS: [(&str, u64); 5] =
    [("min", 60), ("hour", 3600), ("day", 86_400), ("week", 604_800), ("month", 2_592_000)];

impl DataBudget {
    /// Capacity of the bucket, in bytes.
    pub fn burst(&self) -> u64 {
        self.bytes / 48
    }

    /// Maximum bytes of lines in one request.
    pub fn request(&self) -> usize {
        usize::try_from(self.burst() / 2).unwrap_or(usize::MAX).max(4096)
    }

    /// Bytes gained in this time; `carry` keeps the fraction of a byte.
    fn gain(&self, time: Duration, carry: &mut i128) -> i128 {
        let (per_period, period) =
            (i128::from(self.bytes - 2 * self.burst()), self.period.as_nanos().max(1) as i128);
        let parts = time.as_nanos() as i128 * per_period + *carry;
        *carry = parts % period;
        parts / period
    }

    /// The time in which this many bytes are gained.
    fn time_for(&self, bytes: i128) -> Duration {
        let ms = (bytes as f64 * 1e3 / self.per_second()).ceil() + 1.0;
        Duration::from_millis(ms.clamp(1.0, 31_536_000_000.0) as u64)
    }

    pub fn per_second(&self) -> f64 {
        (self.bytes - 2 * self.burst()) as f64 / self.period.as_secs_f64()
    }
}

impl fmt::Display for DataBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name =
            PERIODS.iter().find(|(_, s)| *s == self.period.as_secs()).map_or("period", |(name, _)| name);
        write!(f, "{} per {name}", HumanBytes(self.bytes))
    }
}

/// The clock readings saved with a balance.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Clocks {
    wall_ms: i64,
    uptime_ms: i64,
    boot: String,
}

impl Clocks {
    fn now() -> Clocks {
        let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let uptime_ms = uptime.tv_sec * 1000 + uptime.tv_nsec / 1_000_000;
        Clocks { wall_ms: clock::now_ms(), uptime_ms, boot: clock::boot_id() }
    }

    /// Time since `before`, as far as it is known.
    fn since(&self, before: &Clocks) -> Duration {
        let ms = if self.boot == before.boot && !self.boot.is_empty() {
            self.uptime_ms - before.uptime_ms
        } else {
            self.wall_ms - before.wall_ms
        };
        Duration::from_millis(ms.max(0) as u64)
    }
}

/// Size of the file in bytes.
const RECORD: usize = 128;

fn line(left: i128, at: &Clocks) -> String {
    let Clocks { wall_ms, uptime_ms, boot } = at;
    let line = format!("logagent-budget 1 left={left} wall={wall_ms} uptime={uptime_ms} boot={boot}");
    format!("{line:width$}\n", width = RECORD - 1)
}

fn parse(text: &str) -> Option<(i128, Clocks)> {
    let mut words = text.strip_prefix("logagent-budget 1 ")?.split_whitespace();
    let mut next = |name| words.next()?.strip_prefix(name);
    let (left, wall_ms, uptime_ms) = (next("left=")?, next("wall=")?, next("uptime=")?);
    let boot = next("boot=")?.to_owned();
    let clocks = Clocks { wall_ms: wall_ms.parse().ok()?, uptime_ms: uptime_ms.parse().ok()?, boot };
    Some((left.parse::<i64>().ok()?.into(), clocks))
}

/// The balance to begin with, given what was found in the file; `None`: there was no file.
fn opening(budget: DataBudget, found: Option<&str>, now: &Clocks) -> i128 {
    let burst = i128::from(budget.burst());
    let Some(text) = found else { return burst };
    let Some((left, at)) = parse(text) else {
        log::warn!("the file `budget` is damaged: beginning with nothing left");
        return 0;
    };
    // Any debt is paid within one period, whatever the file says.
    (left.max(-i128::from(budget.bytes)) + budget.gain(now.since(&at), &mut 0)).min(burst)
}

/// How far it is used up, for the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Ample,
    /// A warning that it will be used up was logged.
    Low,
    UsedUp,
}

/// The balance of a running producer.
#[derive(Debug)]
pub struct Spending {
    budget: DataBudget,
    /// Negative after a request larger than what was left.
    left: i128,
    /// Fraction of a byte, see [`DataBudget::gain`].
    carry: i128,
    seen: Instant,
    /// All bytes of the sockets, as of `seen`.
    total: u64,
    /// Bytes of lines in unacknowledged batches.
    reserved: u64,
    stage: Stage,
    /// Recent bytes per second, and the start and initial total of the next measurement.
    pace: f64,
    pace_from: (Instant, u64),
    file: Option<File>,
    /// The file could not be written last time.
    failing: bool,
    /// The balance in the file, and when it was written.
    recorded: Option<(i128, Instant)>,
}

/// The pace is measured over this time.
const PACE: Duration = Duration::from_secs(10);

impl Spending {
    /// `path`: the file that keeps the balance; `None`: it is not kept. `total`: see [`Spending::look`].
    pub fn open(budget: DataBudget, path: Option<&Path>, total: u64, now: Instant) -> Spending {
        let opened = path.map(|path| open(path).map_err(|e| (path, e))).transpose();
        let (file, found) = match opened {
            Ok(opened) => opened.map_or((None, None), |(file, found)| (Some(file), found)),
            Err((path, e)) => {
                log::error!("open {}: {e}; the budget is not kept over restarts", path.display());
                (None, None)
            }
        };
        Spending {
            left: opening(budget, found.as_deref(), &Clocks::now()),
            budget,
            carry: 0,
            seen: now,
            total,
            reserved: 0,
            stage: Stage::Ample,
            pace: 0.0,
            pace_from: (now, total),
            file,
            failing: false,
            recorded: None,
        }
    }

    /// Updates the balance by the elapsed time and `total`, all bytes that have passed the sockets so far.
    pub fn look(&mut self, total: u64, now: Instant) {
        self.left -= i128::from(total.saturating_sub(self.total));
        self.total = total;
        let gained = self.budget.gain(now - self.seen, &mut self.carry);
        self.left = (self.left + gained).min(i128::from(self.budget.burst()));
        self.seen = now;
        let took = now - self.pace_from.0;
        if took >= PACE {
            let latest = total.saturating_sub(self.pace_from.1) as f64 / took.as_secs_f64();
            self.pace = if took > 6 * PACE { latest } else { (self.pace + latest) / 2.0 };
            self.pace_from = (now, total);
        }
        self.log();
    }

    /// Until when nothing may be sent or resent.
    pub fn used_up(&self) -> Option<Instant> {
        (self.left <= 0).then(|| self.seen + self.budget.time_for(1 - self.left))
    }

    /// Until when no new lines may be sent.
    pub fn wait(&self) -> Option<Instant> {
        let free = self.left - i128::from(self.reserved);
        (free <= 0).then(|| self.seen + self.budget.time_for(1 - free))
    }

    /// Lines wait because it is used up.
    pub fn say_used_up(&mut self) {
        if self.stage != Stage::UsedUp {
            self.stage = Stage::UsedUp;
            let rate = HumanBytes(self.budget.per_second() as u64);
            log::warn!("the budget of {} is used up: lines wait, and are sent at {rate}/s", self.budget);
        }
    }

    /// Reserves the bytes of lines that are about to be sent.
    pub fn reserve(&mut self, bytes: usize) {
        self.reserved += bytes as u64;
    }

    /// Releases the bytes of acknowledged lines.
    pub fn release(&mut self, bytes: usize) {
        self.reserved = self.reserved.saturating_sub(bytes as u64);
    }

    /// Writes the balance to the file, unless the file already covers it.
    pub fn record(&mut self) {
        /// Tolerance for rounding errors, in bytes.
        const ABOUT: i128 = 64;
        let left = self.left - i128::from(self.reserved);
        if let Some((recorded, at)) = self.recorded {
            let gained = self.budget.gain(self.seen - at, &mut 0);
            let more = left - (recorded + gained).min(i128::from(self.budget.burst()));
            if more >= -ABOUT && (more <= ABOUT || self.reserved > 0) {
                return;
            }
        }
        if let Some(file) = &self.file {
            let done = file.write_all_at(line(left, &Clocks::now()).as_bytes(), 0);
            if let (Err(e), false) = (&done, self.failing) {
                log::error!("write the file `budget`: {e}; until that works, a restart may allow more");
            }
            self.failing = done.is_err();
        }
        self.recorded = Some((left, self.seen));
    }

    fn log(&mut self) {
        let burst = i128::from(self.budget.burst());
        if self.stage != Stage::Ample && self.left >= burst * 3 / 4 {
            if self.stage == Stage::UsedUp {
                log::info!("the budget of {}: lines no longer wait for it", self.budget);
            }
            self.stage = Stage::Ample;
        }
        if self.stage == Stage::Ample
            && self.left < burst / 2
            && let Some(seconds) = self.state().used_up_in()
        {
            self.stage = Stage::Low;
            let (pace, in_time) = (HumanBytes(self.pace as u64), Age(seconds));
            log::info!("the budget of {}: at {pace}/s it is used up in {in_time}", self.budget);
        }
    }

    /// For the status.
    pub fn state(&self) -> DataBudgetState {
        DataBudgetState {
            bytes: self.budget.bytes,
            period: self.budget.period,
            text: self.budget.to_string(),
            left: self.left as f64,
            seen: self.seen,
            per_second: self.budget.per_second(),
            burst: self.budget.burst(),
            pace: self.pace,
            is_used_up: self.stage == Stage::UsedUp,
        }
    }
}

fn open(path: &Path) -> io::Result<(File, Option<String>)> {
    let is_new = !path.exists();
    let file = private_file::open_or_create(path)?;
    let mut found = Vec::new();
    (&file).take(RECORD as u64).read_to_end(&mut found)?;
    let found = String::from_utf8_lossy(&found).into_owned();
    Ok((file, (!is_new).then_some(found)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const BUDGET: DataBudget = DataBudget { bytes: 48_000_000, period: DAY };

    fn clocks(wall_s: i64, uptime_s: i64, boot: &str) -> Clocks {
        Clocks { wall_ms: wall_s * 1000, uptime_ms: uptime_s * 1000, boot: boot.into() }
    }

    /// Fails when more than the budget passes in any period, when it is not spent evenly, or when much is left unspent.
    #[test]
    fn spent_evenly() {
        let begin = Instant::now();
        let mut s = Spending::open(BUDGET, None, 0, begin);
        let (mut now, mut total) = (begin, 0);
        let mut by_hour = [0; 48];
        while now < begin + 2 * DAY {
            s.look(total, now);
            match s.wait() {
                Some(until) => now = until.max(now + Duration::from_millis(1)),
                None => {
                    let request = BUDGET.request() as u64;
                    total += request;
                    let hour = (now - begin).as_secs() as usize / 3600;
                    by_hour[hour] += request;
                }
            }
        }
        for day in by_hour.windows(24) {
            let spent = day.iter().sum::<u64>();
            assert!((44_000_000..=48_000_000).contains(&spent), "{spent}");
        }
        assert!(by_hour[1..].iter().all(|hour| (1_400_000..=2_500_000).contains(hour)), "{by_hour:?}");
    }

    /// Fails when lines in flight may exceed the balance, or when they are charged twice after their acknowledgement.
    #[test]
    fn lines_in_flight_are_reserved() {
        let now = Instant::now();
        let mut s = Spending::open(BUDGET, None, 100, now);
        s.reserve(1_000_000);
        assert!(s.wait().is_some() && s.used_up().is_none());
        s.look(600_100, now);
        s.release(1_000_000);
        assert!(s.wait().is_none());
        assert_eq!(s.left, 400_000);
        s.look(1_100_100, now);
        assert!(s.wait().is_some() && s.used_up().is_some());
    }

    /// Fails when a restart fills the bucket, or when a changed clock or a damaged file makes the budget free or stops
    /// it for longer than a period.
    #[test]
    fn over_a_restart() {
        let before = clocks(1_000_000, 500, "a");
        let text = |left| line(left, &before);
        let (hour, burst) = (1_916_666, 1_000_000);
        for (left, now, want) in [
            (-500_000, clocks(1_000_000, 500, "a"), -500_000),
            (-2_000_000, clocks(9_999_999, 500 + 3600, "a"), hour - 2_000_000), // the wall clock was set
            (-2_000_000, clocks(0, 500 + 3600, "a"), hour - 2_000_000),
            (-2_000_000, clocks(1_003_600, 3, "b"), hour - 2_000_000),
            (-2_000_000, clocks(5, 3, "b"), -2_000_000), // a box without a battery
            (300, clocks(i64::MAX / 2000, 3, "b"), burst),
            (i128::from(i64::MIN), clocks(1_000_000, 500, "a"), -48_000_000),
        ] {
            assert_eq!(opening(BUDGET, Some(&text(left)), &now), want, "{left} at {now:?}");
        }
        assert_eq!(opening(BUDGET, None, &before), burst);
        for damaged in ["", "logagent-budget 1 left=x", "logagent-budget 2 left=1 wall=1 uptime=1 boot=a"] {
            assert_eq!(opening(BUDGET, Some(damaged), &before), 0, "{damaged}");
        }
    }

    /// Fails when what is in flight at a kill is not charged, or when the file grows.
    #[test]
    fn a_kill_does_not_reset_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("budget");
        let now = Instant::now();
        let mut s = Spending::open(BUDGET, Some(&path), 0, now);
        s.reserve(400_000);
        s.record();
        s.look(250_000, now);
        s.record();
        drop(s);
        let s = Spending::open(BUDGET, Some(&path), 0, Instant::now());
        assert!((350_000..360_000).contains(&s.left), "{}", s.left);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), RECORD as u64);
    }
}
