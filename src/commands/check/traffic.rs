//! Estimates the network traffic per day from the recent growth of the followed files and a sample of their lines,
//! compressed as configured.

use crate::config::{Codec, Kafka};
use crate::kafka::protocol::codec::Compressor;
use crate::packed::Packed;
use crate::report::text::{Age, HumanBytes};
use crate::tail::{identity, siblings};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const DAY: f64 = 86_400.0;
/// Growth is measured over at least this time, or as far back as rotated files go.
const WINDOW: f64 = DAY;
/// A shorter time, in seconds, says too little about a day.
const LEAST: f64 = 60.0;
/// Size of the sample of the newest lines, in bytes.
const SAMPLE: usize = 256 << 10;
/// Bytes of a record besides its line (lengths and offsets), without compression.
const RECORD: f64 = 9.0;
/// Bytes of a Produce request and its answer besides the records (measured with Kafka 4.1), and of the TLS records
/// around them.
const REQUEST: f64 = 250.0;
const TLS: f64 = 44.0;
/// Lines that arrive within this time go together even without `linger`, in seconds.
const TOGETHER: f64 = 0.002;

/// One file of a log: bytes, and when it began and ended; seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq)]
struct LogSpan {
    bytes: u64,
    begin: Option<f64>,
    end: f64,
}

/// Total bytes and seconds of the newest spans. `spans`: oldest first. `None`: their age is unknown.
fn growth(spans: &[LogSpan], now: f64) -> Option<(f64, f64)> {
    let mut found = None;
    let mut bytes = 0.0;
    for (i, span) in spans.iter().enumerate().rev() {
        let before = i.checked_sub(1).map(|i| spans[i].end);
        // A copy is made after its last line was written.
        let Some(begin) = before.or(span.begin).filter(|begin| *begin <= span.end) else { break };
        bytes += span.bytes as f64;
        if now - begin >= LEAST {
            found = Some((bytes, now - begin));
        }
        if now - begin >= WINDOW {
            break;
        }
    }
    found
}

/// The files of the log at `path`, oldest first, back to the newest compressed one.
fn spans(path: &Path) -> Option<Vec<LogSpan>> {
    let seconds = |ns: i64| ns as f64 / 1e9;
    let span = |look: &identity::Look| LogSpan {
        bytes: look.size,
        begin: look.identity.born.map(|born| seconds(identity::nanos(born))),
        end: seconds(look.modified),
    };
    let live = identity::look_at(path).ok()??;
    let mut all = Vec::new();
    for sibling in siblings::list(path).unwrap_or_default() {
        if sibling.packed == Packed::Plain {
            all.push(span(&sibling.look));
        } else {
            all = vec![LogSpan { bytes: 0, begin: None, end: seconds(sibling.look.modified) }];
        }
    }
    all.push(span(&live));
    Some(all)
}

/// What the estimate is based on.
#[derive(Debug, Default)]
pub struct Estimate {
    files: usize,
    /// Files whose age is unknown.
    unknown: usize,
    /// Bytes of lines per day.
    lines: f64,
    /// The longest time measured, in seconds.
    time: f64,
    sample: Vec<u8>,
}

impl Estimate {
    /// `files`: all followed files.
    pub fn of(files: &[PathBuf], now: f64) -> Estimate {
        let mut e = Estimate::default();
        let mut largest = 0.0;
        let name = |path: &Path| path.file_name().unwrap_or_default().to_owned();
        let is_rotated =
            |path: &Path| files.iter().any(|f| f != path && siblings::base_of(&name(path)) == name(f));
        for path in files.iter().filter(|path| !is_rotated(path)) {
            match spans(path).and_then(|spans| growth(&spans, now)) {
                Some((bytes, time)) => {
                    e.files += 1;
                    e.lines += bytes / time * DAY;
                    e.time = e.time.max(time);
                    if bytes > largest {
                        (largest, e.sample) = (bytes, sample(path).unwrap_or_default());
                    }
                }
                None => e.unknown += 1,
            }
        }
        e
    }

    /// Bytes per day at the sockets.
    fn wire(&self, kafka: &Kafka) -> Wire {
        let lines = memchr::memchr_iter(b'\n', &self.sample).count().max(1) as f64;
        let width = (self.sample.len() as f64 / lines).max(1.0);
        let a_day = self.lines / width;
        let gathered = a_day / DAY * kafka.linger.as_secs_f64().max(TOGETHER);
        let together = gathered.max(1.0).min((kafka.batch as f64 / width).max(1.0));
        let requests = a_day / together;
        let one = ((together * width) as usize).clamp(1, self.sample.len().max(1));
        let ratio = ratio(kafka.compression, &self.sample[self.sample.len().saturating_sub(one)..]);
        let record = if kafka.compression == Codec::None { RECORD } else { RECORD * ratio };
        let overhead = REQUEST + if kafka.tls.is_some() { TLS } else { 0.0 };
        Wire { bytes: self.lines * ratio + a_day * record + requests * overhead, ratio, requests, overhead }
    }

    /// The text of the report, and the bytes per day.
    pub fn text(&self, kafka: &Kafka) -> Option<(String, f64)> {
        if self.files == 0 {
            return None;
        }
        let human = |bytes: f64| HumanBytes(bytes as u64).to_string();
        let Wire { bytes, ratio, requests, overhead } = self.wire(kafka);
        let files = if self.files == 1 { "a file".into() } else { format!("{} files", self.files) };
        let mut text = format!(
            "about {} a day on the network: {} of lines, from the growth of {files} in the last {}",
            human(bytes),
            human(self.lines),
            Age(self.time)
        );
        if kafka.compression != Codec::None {
            text += &format!("; compression leaves {:.0} % of a sample", ratio * 100.0);
        }
        text += &format!("; plus {requests:.0} requests of {overhead:.0} bytes each, depending on linger");
        match self.unknown {
            0 => {}
            n => text += &format!("; {n} left out because their age is unknown"),
        }
        Some((text, bytes))
    }
}

/// Bytes per day, and what they consist of.
struct Wire {
    bytes: f64,
    ratio: f64,
    requests: f64,
    /// Bytes of a request besides its lines.
    overhead: f64,
}

/// The end of the file.
fn sample(path: &Path) -> std::io::Result<Vec<u8>> {
    let (file, look) = identity::open(path)?;
    let mut end = vec![0; SAMPLE.min(usize::try_from(look.size).unwrap_or(SAMPLE))];
    let at = look.size - end.len() as u64;
    file.read_exact_at(&mut end, at)?;
    Ok(end)
}

/// Compression ratio: compressed size over plain size.
fn ratio(codec: Codec, plain: &[u8]) -> f64 {
    let mut to = vec![0; Compressor::bound(codec, plain.len())];
    let pressed = Compressor::default().compress(codec, plain, &mut to).ok().filter(|_| !plain.is_empty());
    pressed.map_or(1.0, |n| (n as f64 / plain.len() as f64).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when rotated files are counted in full over too short a time, or when a file of unknown age or one that
    /// has just begun is counted.
    #[test]
    fn growth_over_rotations() {
        let span = |bytes, begin, end| LogSpan { bytes, begin, end };
        let now = 10.0 * DAY;
        for (spans, want) in [
            (vec![span(500, Some(now - 100.0), now)], Some((500.0, 100.0))),
            (vec![span(500, Some(now - 10.0), now)], None),
            (vec![span(500, None, now)], None),
            (vec![span(900, Some(now), now - 70.0), span(50, None, now)], Some((50.0, 70.0))),
            // It is unknown when the oldest one began: only the time since its end counts.
            (vec![span(999, None, now - 1000.0), span(50, None, now)], Some((50.0, 1000.0))),
            (
                vec![
                    span(7, Some(0.0), now - 3.0 * DAY),
                    span(100, None, now - 2.0 * DAY),
                    span(200, None, now - 0.5 * DAY),
                    span(10, None, now),
                ],
                Some((210.0, 2.0 * DAY)),
            ),
        ] {
            assert_eq!(growth(&spans, now), want, "{spans:?}");
        }
    }
}
