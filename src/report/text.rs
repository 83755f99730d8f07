//! Formats a snapshot as text for a terminal.

use super::snapshot::{DataBudgetStatus, File, PeerStatus, Snapshot};
use crate::error::Escaped;
use std::cmp::Reverse;
use std::fmt::{self, Display, Write as _};
use std::time::Duration;

/// Human-readable bytes: `999 B`, `1.5 KiB`, `20 MiB`.
pub struct HumanBytes(pub u64);

impl Display for HumanBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return f.pad(&format!("{} B", self.0));
        }
        let (mut n, mut unit) = (self.0 as f64 / 1024.0, 0);
        while n >= 1023.5 && unit + 1 < UNITS.len() {
            (n, unit) = (n / 1024.0, unit + 1);
        }
        let digits = usize::from(n < 9.95);
        f.pad(&format!("{n:.digits$} {}", UNITS[unit]))
    }
}

/// Human-readable seconds: `0.4 s`, `41 s`, `3 min`, `7 h`, `2 d`.
pub struct Age(pub f64);

impl Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            s if s < 9.95 => format!("{s:.1} s"),
            s if s < 119.5 => format!("{s:.0} s"),
            s if s < 7200.0 => format!("{:.0} min", s / 60.0),
            s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
            s => format!("{:.0} d", s / 86_400.0),
        };
        f.pad(&text)
    }
}

impl Snapshot {
    /// Logs the status line and the files that are waiting, longest first.
    pub fn log(&self) {
        log::info!("status: {}", self.line());
        let mut waiting: Vec<&File> = self.files.iter().filter(|f| f.lag_bytes > 0).collect();
        waiting.sort_unstable_by_key(|f| Reverse((f.oldest_unsent.unwrap_or(0.0) * 1e3) as u64));
        for f in waiting.iter().take(Self::LOGGED) {
            let why =
                f.stuck_because.as_ref().map(|why| format!(", stuck because {why}")).unwrap_or_default();
            log::info!("status: {}: {} unsent, {}{why}", f.path, unsent(f), f.state);
        }
        for p in self.brokers.iter().chain(&self.topics).filter(|p| p.attempts > 0) {
            let why = p.last_error.as_deref().unwrap_or_default();
            log::info!("status: {} {} after {} attempts: {why}", p.name, p.state, p.attempts);
        }
    }

    /// Maximum number of files logged.
    const LOGGED: usize = 20;

    /// One line, for systemd and the log.
    pub fn line(&self) -> String {
        let up = self.brokers.iter().filter(|b| b.attempts == 0).count();
        let stuck = self.files.iter().filter(|f| f.stuck_because.is_some()).count();
        let mut line = format!(
            "{} file(s), {} unsent, {} lines acknowledged, brokers {up} of {} up",
            self.files.len(),
            HumanBytes(self.lag_bytes()),
            self.totals.acked,
            self.brokers.len(),
        );
        if stuck > 0 {
            line += &format!(", {stuck} file(s) stuck");
        }
        if self.budget.as_ref().is_some_and(|budget| budget.used_up) {
            line += ", the budget is used up";
        }
        if self.state.degraded.is_some() {
            line += ", the state folder cannot be written";
        }
        line
    }
}

/// The whole status.
pub fn status(s: &Snapshot) -> String {
    let mut out = String::new();
    head(&mut out, s);
    files(&mut out, &s.files);
    peers(&mut out, "BROKER", &s.brokers);
    peers(&mut out, "TOPIC", &s.topics);
    network(&mut out, s);
    let t = &s.totals;
    line(
        &mut out,
        format_args!(
            "lines: {} read, {} acknowledged, {} dead-lettered, {} doubled at most, {} uncertain, {} cut",
            t.read, t.acked, t.dead_lettered, t.doubled_at_most, t.uncertain, t.cut
        ),
    );
    if let Some(o) = &s.exactly_once {
        let id = o.producer_id.map_or_else(|| "none yet".into(), |id| id.to_string());
        line(
            &mut out,
            format_args!(
                "exactly once: producer id {id}, {} open intents, {} batches of earlier runs resent, {} of them found stored{}",
                o.open_intents,
                o.resent,
                o.found_stored,
                if o.unlisted { "; cannot be proved: the broker does not list this producer" } else { "" }
            ),
        );
    }
    if (t.lost_entries, t.damaged_entries) != (0, 0) {
        let (lost, damaged) = (t.lost_entries, t.damaged_entries);
        line(
            &mut out,
            format_args!("journal: {lost} entries removed before they were read, {damaged} damaged"),
        );
    }
    line(&mut out, format_args!("lost: {} bytes; batches sent again: {}", t.lost_bytes, t.retries));
    out
}

/// The rates between two snapshots, taken `apart`.
pub fn rates(before: &Snapshot, now: &Snapshot, apart: Duration) -> String {
    let per_second =
        |before: u64, now: u64| now.saturating_sub(before) as f64 / apart.as_secs_f64().max(0.001);
    let sent = |s: &Snapshot| -> u64 { s.files.iter().map(|f| f.acknowledged).sum() };
    let mut out = String::new();
    line(
        &mut out,
        format_args!(
            "per second: {:.0} lines read, {:.0} acknowledged, {} acknowledged",
            per_second(before.totals.read, now.totals.read),
            per_second(before.totals.acked, now.totals.acked),
            HumanBytes(per_second(sent(before), sent(now)) as u64),
        ),
    );
    out
}

fn head(out: &mut String, s: &Snapshot) {
    if s.live {
        let pid = s.pid.map(|pid| pid.to_string()).unwrap_or_default();
        line(out, format_args!("logagent {}, process {pid}, up {}", s.version, Age(s.uptime.unwrap_or(0.0))));
        if !s.driver.is_empty() {
            line(out, format_args!("driver {}", s.driver));
        }
        line(out, format_args!("memory {} of {}", HumanBytes(s.memory.used), HumanBytes(s.memory.limit)));
    } else {
        line(out, format_args!("logagent is not running here: this is the last saved state"));
    }
    let written = HumanBytes(s.state.bytes_written);
    match (&s.state.path, &s.state.degraded) {
        (None, _) => line(out, format_args!("positions are not saved (no state folder)")),
        (Some(path), None) => line(out, format_args!("state {path}, {written} written")),
        (Some(path), Some(why)) => line(out, format_args!("state {path}: CANNOT BE WRITTEN: {why}")),
    }
    out.push('\n');
}

fn files(out: &mut String, files: &[File]) {
    let width =
        files.iter().map(|f| Escaped(&f.path).to_string().chars().count()).max().unwrap_or(0).clamp(4, 60);
    line(
        out,
        format_args!(
            "{:width$}  {:>10}  {:>10}  {:>10}  {:>7}  STATE",
            "FILE", "SIZE", "ACKED", "UNSENT", "OLDEST"
        ),
    );
    for f in files {
        let oldest = f.oldest_unsent.map_or("-".into(), |s| Age(s).to_string());
        let more = match f.streams.len() {
            0 | 1 => String::new(),
            n => format!(", {} rotated", n - 1),
        };
        line(
            out,
            format_args!(
                "{:width$}  {:>10}  {:>10}  {:>10}  {oldest:>7}  {}{more}",
                Escaped(&f.path).to_string(),
                HumanBytes(f.size),
                HumanBytes(f.acknowledged),
                unsent(f),
                f.state,
            ),
        );
        if let Some(why) = &f.stuck_because {
            line(out, format_args!("    stuck because {why}"));
        } else if let Some(e) = &f.last_error {
            line(out, format_args!("    last error: {e}"));
        }
    }
    out.push('\n');
}

fn unsent(f: &File) -> String {
    f.unsent_entries.map_or_else(|| HumanBytes(f.lag_bytes).to_string(), |n| format!("{n} entries"))
}

fn peers(out: &mut String, what: &str, peers: &[PeerStatus]) {
    if peers.is_empty() {
        return;
    }
    let width = peers.iter().map(|p| p.name.chars().count()).max().unwrap_or(0).clamp(what.len(), 60);
    line(out, format_args!("{what:width$}  {:>7}  STATE", "SINCE"));
    for p in peers {
        let tried = if p.attempts > 0 { format!(", {} attempts", p.attempts) } else { String::new() };
        let error = p.last_error.as_ref().map(|e| format!(": {e}")).unwrap_or_default();
        let error = if p.attempts > 0 { error } else { String::new() };
        let age = Age(p.since).to_string();
        line(out, format_args!("{:width$}  {age:>7}  {}{tried}{error}", p.name, p.state));
    }
    out.push('\n');
}

/// The traffic by broker, and below it the lines that were delivered.
fn network(out: &mut String, s: &Snapshot) {
    let names = s.network.iter().map(|n| &n.broker).chain(s.payload.iter().map(|p| &p.topic));
    if let Some(b) = &s.budget {
        budget(out, b, s.lag_bytes());
    }
    let Some(width) = names.map(|name| name.chars().count()).max() else { return };
    let width = width.clamp(7, 60);
    line(out, format_args!("{:width$}  {:>10}  {:>10}  {:>10}", "NETWORK", "SENT", "RECEIVED", "PAYLOAD"));
    for n in &s.network {
        let (sent, received) = (HumanBytes(n.bytes_sent), HumanBytes(n.bytes_received));
        line(out, format_args!("{:width$}  {sent:>10}  {received:>10}", n.broker));
    }
    for p in &s.payload {
        line(out, format_args!("{:width$}  {:>10}  {:>10}  {:>10}", p.topic, "", "", HumanBytes(p.bytes)));
    }
    out.push('\n');
}

fn budget(out: &mut String, b: &DataBudgetStatus, waiting: u64) {
    let (left, rate) = (HumanBytes(b.left.max(0) as u64), HumanBytes(b.per_second as u64));
    let mut text = format!("budget {}: {left} left now, and {rate} a second", b.text);
    if let Some(seconds) = b.used_up_in {
        text += &format!("; at {}/s it is used up in {}", HumanBytes(b.pace as u64), Age(seconds));
    }
    if let Some(seconds) = b.resumes_in {
        text += &format!("; USED UP: {} wait, the next are sent in {}", HumanBytes(waiting), Age(seconds));
    }
    line(out, format_args!("{text}"));
}

/// Writes one line, with control characters escaped.
fn line(out: &mut String, what: fmt::Arguments<'_>) {
    let _ = writeln!(out, "{}", Escaped(&what.to_string())); // a String takes everything
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::snapshot::{DataBudgetStatus, NetworkStatus, PayloadStatus};

    #[test]
    fn sizes_and_ages() {
        let bytes = |n| HumanBytes(n).to_string();
        assert_eq!(
            [0, 1023, 1024, 10 << 10, (1 << 20) - 1, 3 << 29, u64::MAX].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "10 KiB", "1.0 MiB", "1.5 GiB", "16 EiB"]
        );
        let age = |s| Age(s).to_string();
        assert_eq!(
            [0.04, 9.96, 119.0, 130.0, 7300.0, 200_000.0].map(age),
            ["0.0 s", "10 s", "119 s", "2 min", "2 h", "2 d"]
        );
        assert_eq!(format!("{:>8}|{:<6}|", HumanBytes(5), Age(5.0)), "     5 B|5.0 s |");
    }

    /// Fails when a path or an error forges lines or moves the cursor.
    #[test]
    fn control_characters_are_escaped() {
        let file =
            File { path: "/a\nb\x1b[2J".into(), stuck_because: Some("x\ny".into()), ..File::default() };
        let text = status(&Snapshot { files: vec![file], ..Snapshot::default() });
        assert!(text.contains("/a\\nb\\x1b[2J") && text.contains("x\\ny"), "{text}");
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn the_layout() {
        let file = File {
            path: "/var/log/a".into(),
            state: "following".into(),
            size: 2048,
            acknowledged: 1024,
            lag_bytes: 1024,
            oldest_unsent: Some(3.0),
            ..File::default()
        };
        let peer = PeerStatus {
            name: "k:9092".into(),
            state: "down".into(),
            since: 90.0,
            attempts: 4,
            last_error: Some("refused".into()),
        };
        let s = Snapshot {
            live: true,
            pid: Some(7),
            files: vec![file],
            brokers: vec![peer],
            network: vec![NetworkStatus { broker: "k:9092".into(), bytes_sent: 2048, bytes_received: 10 }],
            payload: vec![PayloadStatus { topic: "web".into(), bytes: 4096 }],
            budget: Some(DataBudgetStatus {
                text: "2.0 MiB per day".into(),
                left: -5,
                per_second: 20.0,
                resumes_in: Some(0.3),
                ..DataBudgetStatus::default()
            }),
            ..Snapshot::default()
        };
        let text = status(&s);
        let budget = "budget 2.0 MiB per day: 0 B left now, and 20 B a second; USED UP: 1.0 KiB wait, the next are sent in 0.3 s\n";
        assert!(text.contains(budget), "{text}");
        assert!(text.contains("k:9092      2.0 KiB        10 B\n"), "{text}");
        assert!(text.contains("web                                 4.0 KiB\n"), "{text}");
        let find =
            |part: &str| text.lines().find(|l| l.contains(part)).unwrap_or_else(|| panic!("{part}: {text}"));
        assert_eq!(find("/var/log/a"), "/var/log/a     2.0 KiB     1.0 KiB     1.0 KiB    3.0 s  following");
        assert_eq!(find("k:9092"), "k:9092     90 s  down, 4 attempts: refused");
        assert!(status(&Snapshot::default()).starts_with("logagent is not running here"));
    }
}
