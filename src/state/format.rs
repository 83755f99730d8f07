//! The text format of `offsets`: writes and parses [`Saved`].
//!
//! ASCII, one fact per line, fields in this order. A reader rejects any line it does not understand:
//!
//! ```text
//! logagent offsets 1
//! clock 86400                                      running time in seconds of all agents on this folder
//! wall 1795371317000                               wall clock at this save, in ms since 1970, as far as it is plausible
//! next 18                                          the lowest stream id not yet assigned
//! totals read=9 acked=9 dead_lettered=0 again=0 resent=0 uncertain=0 lost_bytes=0 cut=0 retries=0 state_bytes=0
//! flights resent=1 found=1                         exactly-once, if there were any: batches sent again, and found stored
//! journal lost=1 damaged=1                         if there were any: journal entries removed unread, and unreadable
//! gap 1 4711 /var/log/journal/0123456789abcdef     if there were any: journal entries most recently counted as lost,
//! and up to which number start beginning                                  only after damage, until the first scan is
//! saved source /var/log/nginx/*.log                      a pattern whose first scan is over stream 17
//! at=1234:256:cbf29ce484222325:line dev=64769 ino=131 born=1700000000.123456789 size=2000 seen=86399
//!     open path=/var/log/nginx/access.log          (one line; or `finished`)
//! beyond 1300 1400:256:84222325cbf29ce4:line       acknowledged beyond `at` of the stream above: start, end point
//! crc32c 9a71bb4c
//! ```
//!
//! A point is the offset, length and hash of the mark (FNV-1a of the ≤ 256 bytes before the offset), and how reading
//! continues there: `line`, or `skip` (to the next newline). `born` is the birth time, `-` if the file system keeps
//! none. Offsets and sizes are in bytes. In patterns and paths every byte outside `!`..`~`, and `\`, is written as
//! `\xHH`. The last line is the CRC-32C of all bytes before it; nothing follows it.

use crate::record::{Identity, Mark, Point, StreamId, Then};
use crate::streams::{NumberGap, Saved, SavedStream, SavedTotals};
use std::ffi::OsString;
use std::fmt::{self, Display, Write as _};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// The version this program writes, and the newest it reads.
pub const VERSION: u32 = 1;

const MAGIC: &str = "logagent offsets ";
const CHECK: &str = "crc32c ";

/// Why a text is rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Whole, but written by a newer program.
    Newer(u32),
    /// Any other damage, with a description.
    Damaged(String),
    /// The disk does not return it, perhaps only now.
    NotRead(String),
}

impl Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bad::Newer(v) => {
                write!(
                    f,
                    "written by a newer logagent in version {v}; this one reads up to version {VERSION}"
                )
            }
            Bad::Damaged(what) => write!(f, "damaged, {what}"),
            Bad::NotRead(why) => write!(f, "not readable, {why}"),
        }
    }
}

/// Writes `saved` over what `out` held.
pub fn write(out: &mut Vec<u8>, saved: &Saved) {
    out.clear();
    let mut text = Text(out);
    text.line(format_args!("{MAGIC}{VERSION}"));
    text.line(format_args!("clock {}", saved.clock));
    if saved.wall_ms > 0 {
        text.line(format_args!("wall {}", saved.wall_ms));
    }
    text.line(format_args!("next {}", saved.next_stream));
    text.line(format_args!("{}", saved.totals));
    let t = &saved.totals;
    if t.flights_resent > 0 {
        text.line(format_args!("flights resent={} found={}", t.flights_resent, t.flights_found));
    }
    if (t.lost_entries, t.damaged_entries) != (0, 0) {
        text.line(format_args!("journal lost={} damaged={}", t.lost_entries, t.damaged_entries));
    }
    for (folder, gap) in &saved.losses {
        let path = EscapedBytes(folder.as_os_str().as_bytes());
        text.line(format_args!("gap {} {} {path}", gap.entries, gap.upto));
    }
    if saved.from_beginning {
        text.line(format_args!("start beginning"));
    }
    for pattern in &saved.sources {
        text.line(format_args!("source {}", EscapedBytes(pattern)));
    }
    for s in &saved.streams {
        text.line(format_args!("{s}"));
        for (range, end) in &s.beyond {
            text.line(format_args!("beyond {} {}", range.start, Shown(end)));
        }
    }
    let check = crc32c::crc32c(out);
    Text(out).line(format_args!("{CHECK}{check:08x}"));
}

/// Formats into bytes, which cannot fail.
struct Text<'a>(&'a mut Vec<u8>);

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.0.extend_from_slice(s.as_bytes());
        Ok(())
    }
}

impl Text<'_> {
    fn line(&mut self, what: fmt::Arguments<'_>) {
        let _ = self.write_fmt(what);
        self.0.push(b'\n');
    }
}

struct EscapedBytes<'a>(&'a [u8]);

impl Display for EscapedBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &b in self.0 {
            match b {
                b'!'..=b'~' if b != b'\\' => f.write_char(b.into())?,
                _ => write!(f, "\\x{b:02x}")?,
            }
        }
        Ok(())
    }
}

struct Shown<'a>(&'a Point);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Point { offset, mark, then } = self.0;
        let then = match then {
            Then::Line => "line",
            Then::SkipToNewline => "skip",
        };
        write!(f, "{offset}:{}:{:016x}:{then}", mark.len, mark.hash)
    }
}

impl Display for SavedTotals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("totals")?;
        self.named().iter().try_for_each(|(name, n)| write!(f, " {name}={n}"))
    }
}

impl Display for SavedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { dev, ino, born } = self.identity;
        write!(f, "stream {} at={} dev={dev} ino={ino} born=", self.stream.0, Shown(&self.at))?;
        match born {
            Some((seconds, nanoseconds)) => write!(f, "{seconds}.{nanoseconds:09}")?,
            None => f.write_char('-')?,
        }
        let phase = if self.finished { "finished" } else { "open" };
        write!(
            f,
            " size={} seen={} {phase} path={}",
            self.size,
            self.seen,
            EscapedBytes(self.path.as_os_str().as_bytes())
        )
    }
}

impl SavedTotals {
    fn named(&self) -> [(&'static str, u64); 10] {
        [
            ("read", self.read_lines),
            ("acked", self.acked_lines),
            ("dead_lettered", self.dead_lettered),
            ("again", self.again),
            ("resent", self.resent),
            ("uncertain", self.uncertain),
            ("lost_bytes", self.lost_bytes),
            ("cut", self.cut_lines),
            ("retries", self.retries),
            ("state_bytes", self.state_bytes),
        ]
    }
}

/// Reads what [`fn@write`] wrote.
pub fn read(bytes: &[u8]) -> Result<Saved, Bad> {
    let text = checked(bytes)?;
    let mut lines = text.lines().enumerate();
    let version = lines.next().and_then(|(_, l)| l.strip_prefix(MAGIC)).and_then(|v| v.parse::<u32>().ok());
    match version {
        Some(VERSION) => {}
        Some(v) if v > VERSION => return Err(Bad::Newer(v)),
        _ => return Err(Bad::Damaged("it does not have the first line of `offsets`".into())),
    }
    let mut saved = Saved::default();
    for (i, line) in lines {
        take_line(&mut saved, line)
            .ok_or_else(|| Bad::Damaged(format!("line {} is not understood", i + 1)))?;
    }
    Ok(saved)
}

/// The text before the last line, if the checksum there matches.
fn checked(bytes: &[u8]) -> Result<&str, Bad> {
    let damaged = |what: &str| Err(Bad::Damaged(what.into()));
    if bytes.is_empty() {
        return damaged("it is empty");
    }
    let Some((b'\n', all)) = bytes.split_last() else { return damaged("its end is missing") };
    let start = memchr::memrchr(b'\n', all).map_or(0, |at| at + 1);
    let Some(check) = std::str::from_utf8(&all[start..]).ok().and_then(|l| l.strip_prefix(CHECK)) else {
        return damaged("its last line is not the checksum");
    };
    let text = &bytes[..start];
    if check != format!("{:08x}", crc32c::crc32c(text)) {
        return damaged("the checksum does not match");
    }
    std::str::from_utf8(text).or_else(|_| damaged("it is not text"))
}

fn take_line(saved: &mut Saved, line: &str) -> Option<()> {
    let (kind, rest) = line.split_once(' ')?;
    match kind {
        "clock" => saved.clock = rest.parse().ok()?,
        "wall" => saved.wall_ms = rest.parse().ok()?,
        "next" => saved.next_stream = rest.parse().ok()?,
        "totals" => saved.totals = totals(rest)?,
        "flights" => {
            let (resent, found) = rest.strip_prefix("resent=")?.split_once(" found=")?;
            saved.totals.flights_resent = resent.parse().ok()?;
            saved.totals.flights_found = found.parse().ok()?;
        }
        "journal" => {
            let (lost, damaged) = rest.strip_prefix("lost=")?.split_once(" damaged=")?;
            saved.totals.lost_entries = lost.parse().ok()?;
            saved.totals.damaged_entries = damaged.parse().ok()?;
        }
        "gap" => {
            let mut words = rest.split(' ');
            let mut number = || words.next()?.parse().ok();
            let gap = NumberGap { entries: number()?, upto: number()? };
            saved.losses.push((OsString::from_vec(unescaped(words.next()?)?).into(), gap));
        }
        "start" => saved.from_beginning = (rest == "beginning").then_some(true)?,
        "source" => saved.sources.push(unescaped(rest)?),
        "stream" => saved.streams.push(stream(rest)?),
        "beyond" => {
            let (start, end) = rest.split_once(' ')?;
            let (start, end): (u64, Point) = (start.parse().ok()?, point(end)?);
            let of = saved.streams.last_mut()?;
            let after = of.beyond.last().map_or(of.at.offset, |(range, _)| range.end);
            if start <= after || end.offset <= start {
                return None;
            }
            of.beyond.push((start..end.offset, end));
        }
        _ => return None,
    }
    Some(())
}

/// The next word, which must start with `name`, without that prefix.
fn field<'a>(words: &mut std::str::Split<'a, char>, name: &str) -> Option<&'a str> {
    words.next()?.strip_prefix(name)
}

fn totals(rest: &str) -> Option<SavedTotals> {
    let mut words = rest.split(' ');
    let mut next = |name| field(&mut words, name)?.parse().ok();
    let totals = SavedTotals {
        read_lines: next("read=")?,
        acked_lines: next("acked=")?,
        dead_lettered: next("dead_lettered=")?,
        again: next("again=")?,
        resent: next("resent=")?,
        uncertain: next("uncertain=")?,
        lost_bytes: next("lost_bytes=")?,
        cut_lines: next("cut=")?,
        retries: next("retries=")?,
        state_bytes: next("state_bytes=")?,
        ..SavedTotals::default()
    };
    words.next().is_none().then_some(totals)
}

fn stream(rest: &str) -> Option<SavedStream> {
    let mut words = rest.split(' ');
    let w = &mut words;
    let stream = SavedStream {
        stream: StreamId(field(w, "")?.parse().ok()?),
        at: point(field(w, "at=")?)?,
        beyond: Vec::new(),
        identity: Identity {
            dev: field(w, "dev=")?.parse().ok()?,
            ino: field(w, "ino=")?.parse().ok()?,
            born: born(field(w, "born=")?)?,
        },
        size: field(w, "size=")?.parse().ok()?,
        seen: field(w, "seen=")?.parse().ok()?,
        finished: match field(w, "")? {
            "open" => false,
            "finished" => true,
            _ => return None,
        },
        path: PathBuf::from(OsString::from_vec(unescaped(field(w, "path=")?)?)).into(),
    };
    words.next().is_none().then_some(stream)
}

fn born(word: &str) -> Option<Option<(i64, u32)>> {
    if word == "-" {
        return Some(None);
    }
    let (seconds, nanoseconds) = word.split_once('.')?;
    Some(Some((seconds.parse().ok()?, nanoseconds.parse().ok()?)))
}

fn point(word: &str) -> Option<Point> {
    let mut parts = word.split(':');
    let offset = parts.next()?.parse().ok()?;
    let len = parts.next()?.parse().ok()?;
    let hash = u64::from_str_radix(parts.next()?, 16).ok()?;
    let then = match parts.next()? {
        "line" => Then::Line,
        "skip" => Then::SkipToNewline,
        _ => return None,
    };
    parts.next().is_none().then_some(Point { offset, mark: Mark { len, hash }, then })
}

fn unescaped(word: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let Some((&b, after)) = rest.split_first() {
        rest = after;
        if b != b'\\' {
            out.push(b);
            continue;
        }
        let hex = rest.get(..3)?.strip_prefix(b"x")?;
        out.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
        rest = &rest[3..];
    }
    Some(out)
}

#[cfg(test)]
mod tests;
