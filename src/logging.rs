//! Formats `log` records on standard error, one line each. Under systemd with a priority and without a time, because
//! the journal adds its own.

use crate::clock;
use crate::error::{Error, Escaping};
use log::{Level, LevelFilter, Record};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The line format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Style {
    /// `2026-11-22T18:15:17Z INFO  message`
    Timed,
    /// `<6>message`, as sd-daemon(3) has it.
    Journal,
}

/// Starts logging at level info, or as `RUST_LOG` says.
pub fn init() {
    let style = style();
    let mut builder = env_logger::Builder::new();
    builder.filter_level(LevelFilter::Info);
    if let Ok(filters) = std::env::var("RUST_LOG") {
        builder.parse_filters(&filters);
    }
    builder.format(move |out, record| writeln!(out, "{}", line(style, record, SystemTime::now())));
    let _ = builder.try_init(); // only a second call can fail
}

/// Prints why the process exits. Ignores a closed standard error.
pub fn fatal(error: &Error) {
    let priority = if style() == Style::Journal { "<3>" } else { "" };
    let text: String = error.to_string().lines().map(|l| format!("{priority}{l}\n")).collect();
    let _ = io::stderr().write_all(text.as_bytes());
}

fn line(style: Style, record: &Record<'_>, now: SystemTime) -> String {
    let mut out = match style {
        Style::Journal => format!("<{}>", priority(record.level())),
        Style::Timed => format!("{} {:<5} ", utc(now), record.level()),
    };
    // Lines of other crates name the crate.
    if !record.target().starts_with(env!("CARGO_CRATE_NAME")) {
        out += record.target();
        out += ": ";
    }
    let mut escaping = Escaping(&mut out);
    let _ = write!(escaping, "{}", record.args()); // a String takes everything
    out
}

/// Priorities of sd-daemon(3); 5 (notice) has no `log` level.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Journal style only if standard error itself is the journal's socket: a shell started by a unit inherits
/// `$JOURNAL_STREAM`, but its `2>file` is not the journal (systemd.exec(5)).
fn style() -> Style {
    let named = std::env::var("JOURNAL_STREAM").ok();
    let own = rustix::fs::fstat(io::stderr()).map(|s| (s.st_dev, s.st_ino)).ok();
    match named.and_then(|n| device_and_inode(&n)) {
        Some(journal) if Some(journal) == own => Style::Journal,
        _ => Style::Timed,
    }
}

fn device_and_inode(s: &str) -> Option<(u64, u64)> {
    let (device, inode) = s.split_once(':')?;
    Some((device.parse().ok()?, inode.parse().ok()?))
}

/// `2026-11-22T18:15:17Z`; before 1970 it is 1970.
pub fn utc(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (year, month, day) = clock::civil(since / 86_400);
    let (h, m, s) = (since / 3600 % 24, since / 60 % 60, since % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_795_371_317, "2026-11-22T18:15:17Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
        assert_eq!(utc(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00Z");
    }

    fn shown(style: Style, level: Level, target: &str, message: &str) -> String {
        let args = format_args!("{message}").to_string();
        line(
            style,
            &Record::builder().level(level).target(target).args(format_args!("{args}")).build(),
            UNIX_EPOCH,
        )
    }

    #[test]
    fn both_styles() {
        assert_eq!(
            shown(Style::Timed, Level::Info, "logagent::tail", "ready"),
            "1970-01-01T00:00:00Z INFO  ready"
        );
        for (level, start) in
            [(Level::Error, "<3>"), (Level::Warn, "<4>"), (Level::Info, "<6>"), (Level::Trace, "<7>")]
        {
            assert_eq!(shown(Style::Journal, level, "logagent", "x"), format!("{start}x"));
        }
        assert_eq!(shown(Style::Journal, Level::Warn, "kafka::client", "x"), "<4>kafka::client: x");
    }

    /// Fails when the message is not escaped: a log line quoted in an error could then forge a priority, or a line of
    /// our log.
    #[test]
    fn a_message_is_always_one_line() {
        let said = shown(Style::Journal, Level::Info, "logagent", "bad line \"a\n<0>panic\x1b[2J\"");
        assert_eq!(said, "<6>bad line \"a\\n<0>panic\\x1b[2J\"");
    }

    #[test]
    fn journal_stream() {
        assert_eq!(device_and_inode("8:1234"), Some((8, 1234)));
        for wrong in ["", "8", "8:", "a:b", "8:1:2"] {
            assert_eq!(device_and_inode(wrong), None, "{wrong}");
        }
    }
}
