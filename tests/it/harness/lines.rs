//! The oracle: numbered lines, and the check of what arrived. A payload is stored as a 64-bit hash, so three million
//! lines take about 100 MB and a second to check.

use super::{Topic, millis, pause};
use std::{
    collections::HashMap,
    fs,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    io::{BufWriter, Write},
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

fn hash(payload: &[u8]) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(payload)
}

/// Lines `<file> <seq> <filler>`, all distinct, and always the same for the same file and number.
#[derive(Clone, Debug)]
pub struct Lines {
    pub file: String,
    pub range: Range<u64>,
    pub width: usize,
}

impl Lines {
    /// About 200 bytes a line, typical of logs.
    pub fn new(file: &str, range: Range<u64>) -> Lines {
        Lines { file: file.into(), range, width: 200 }
    }
    pub fn width(self, width: usize) -> Lines {
        Lines { width, ..self }
    }

    /// One line without its end.
    pub fn line(&self, seq: u64) -> Vec<u8> {
        let mut line = format!("{} {seq:09} ", self.file).into_bytes();
        let mut x = (seq + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        while line.len() < self.width {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let word = ["GET ", "INFO ", "status=200 ", "user=", "took ", "/api/v1/", "Mozilla/5.0 ", "ms "]
                [x as usize % 8];
            line.extend_from_slice(word.as_bytes());
            line.extend_from_slice(format!("{:x} ", x & 0xffff).as_bytes());
        }
        line.truncate(self.width.max(self.file.len() + 11));
        line
    }
    pub fn iter(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        self.range.clone().map(|seq| self.line(seq))
    }
    pub fn count(&self) -> usize {
        (self.range.end - self.range.start) as usize
    }
    /// All lines with their ends, as in the file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.count() * (self.width + 1));
        for line in self.iter() {
            bytes.extend_from_slice(&line);
            bytes.push(b'\n');
        }
        bytes
    }
    pub fn append_to(&self, path: &Path) {
        let file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        let mut file = BufWriter::with_capacity(1 << 16, file);
        for mut line in self.iter() {
            line.push(b'\n');
            file.write_all(&line).unwrap();
        }
        file.flush().unwrap();
    }
}

/// Appends lines to a log at a steady rate until stopped.
pub struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<()>>,
    file: String,
}

impl Writer {
    /// `rate` lines a second, in one write every 10 ms, starting with number 0.
    pub fn steady(path: PathBuf, file: &str, rate: u64) -> Writer {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ending, count, lines) = (stop.clone(), written.clone(), Lines::new(file, 0..0));
        let thread = thread::spawn(move || {
            let mut log = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
            let (start, mut next) = (Instant::now(), 0);
            while !ending.load(Ordering::Relaxed) {
                let due = start.elapsed().as_micros() as u64 * rate / 1_000_000;
                if due > next {
                    log.write_all(&Lines { range: next..due, ..lines.clone() }.bytes()).unwrap();
                    next = due;
                    count.store(next, Ordering::Release);
                }
                pause(millis(10));
            }
        });
        Writer { stop, written, thread: Some(thread), file: file.into() }
    }
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }
    /// Stops the writer; returns everything it wrote.
    pub fn finish(mut self) -> Lines {
        self.join();
        Lines::new(&self.file, 0..self.written())
    }
    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let failed = thread.join().is_err();
            assert!(!failed || thread::panicking(), "the writer of the log failed");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.join();
    }
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    hash: u64,
    /// Hash of the word before the number, and the number.
    file: u64,
    seq: u64,
    partition: i32,
    offset: i64,
}

/// Everything that arrived, in order of partition and offset.
#[derive(Default)]
pub struct Delivered {
    seen: Vec<Seen>,
    from: String,
    /// The first few payloads, to show when something is wrong.
    first: Vec<Vec<u8>>,
}

impl Delivered {
    /// From the lines of standard output, or payloads from elsewhere.
    pub fn of<B: AsRef<[u8]>>(payloads: impl IntoIterator<Item = B>) -> Delivered {
        let mut delivered = Delivered { from: "the output".into(), ..Delivered::default() };
        for (at, payload) in payloads.into_iter().enumerate() {
            delivered.push(0, at as i64, payload.as_ref());
        }
        delivered
    }
    /// All partitions of a topic from the beginning to their current end.
    #[track_caller]
    pub fn in_topic(topic: &Topic) -> Delivered {
        let mut delivered = Delivered { from: format!("topic {}", topic.name), ..Delivered::default() };
        topic.each(|record| {
            delivered.push(record.partition, record.offset, record.value.unwrap_or(b"<null>"));
        });
        delivered.seen.sort_unstable_by_key(|seen| (seen.partition, seen.offset));
        delivered
    }
    fn push(&mut self, partition: i32, offset: i64, payload: &[u8]) {
        let mut words = payload.splitn(3, |b| *b == b' ');
        let file = hash(words.next().unwrap_or(b""));
        let seq = words.next().and_then(|w| std::str::from_utf8(w).ok()).and_then(|w| w.parse().ok());
        let seq = seq.unwrap_or(u64::MAX);
        self.seen.push(Seen { hash: hash(payload), file, seq, partition, offset });
        if self.first.len() < 5 {
            self.first.push(payload.to_vec());
        }
    }

    pub fn count(&self) -> usize {
        self.seen.len()
    }

    /// Counts missing, doubled (excess copies) and strange payloads compared with what was written.
    pub fn against(&self, written: &[&Lines]) -> Verdict {
        let mut seen: Vec<u64> = self.seen.iter().map(|s| s.hash).collect();
        seen.sort_unstable();
        let mut wanted: Vec<u64> = written.iter().flat_map(|lines| lines.iter().map(|l| hash(&l))).collect();
        wanted.sort_unstable();
        let (mut missing, mut doubled, mut strange) = (Vec::new(), 0, Vec::new());
        let (mut at, mut last) = (0, None);
        for want in &wanted {
            assert!(last != Some(*want), "a test's lines must all differ");
            last = Some(*want);
            while at < seen.len() && seen[at] < *want {
                strange.push(seen[at]);
                at += 1;
            }
            let copies = seen[at..].iter().take_while(|s| *s == want).count();
            at += copies;
            match copies {
                0 => missing.push(*want),
                n => doubled += n - 1,
            }
        }
        strange.extend_from_slice(&seen[at..]);
        Verdict { written: wanted.len(), arrived: seen.len(), missing, doubled, strange }
    }

    /// Every line of `written` once, and nothing else.
    #[track_caller]
    pub fn assert_exactly_once(&self, written: &[&Lines]) {
        let verdict = self.against(written);
        assert!(
            verdict.missing.is_empty() && verdict.doubled == 0 && verdict.strange.is_empty(),
            "{}",
            self.explain(&verdict, written)
        );
    }
    /// Every line of `written` at least once, and nothing else. Returns the number of excess copies.
    #[track_caller]
    pub fn assert_at_least_once(&self, written: &[&Lines]) -> usize {
        let verdict = self.against(written);
        assert!(
            verdict.missing.is_empty() && verdict.strange.is_empty(),
            "{}",
            self.explain(&verdict, written)
        );
        verdict.doubled
    }
    /// Within each partition a file's lines are in order. Repeats of earlier lines (a resend) are allowed.
    #[track_caller]
    pub fn assert_ordered(&self) {
        let mut next: HashMap<(i32, u64), u64> = HashMap::new();
        let mut again: HashMap<(i32, u64), std::collections::HashSet<u64>> = HashMap::new();
        for seen in &self.seen {
            let key = (seen.partition, seen.file);
            let known = again.entry(key).or_default();
            if !known.insert(seen.seq) {
                continue;
            }
            let next = next.entry(key).or_insert(0);
            assert!(
                seen.seq >= *next,
                "out of order in {}: number {} at partition {} offset {} after number {}",
                self.from,
                seen.seq,
                seen.partition,
                seen.offset,
                next.wrapping_sub(1)
            );
            *next = seen.seq.saturating_add(1);
        }
    }

    fn explain(&self, verdict: &Verdict, written: &[&Lines]) -> String {
        use std::fmt::Write as _;
        let mut text = format!("{}: {verdict}", self.from);
        let missing: std::collections::HashSet<u64> = verdict.missing.iter().copied().collect();
        let gone = written.iter().flat_map(|lines| {
            let missing = &missing;
            lines
                .range
                .clone()
                .filter(move |seq| missing.contains(&hash(&lines.line(*seq))))
                .map(move |seq| (&lines.file, seq))
        });
        for (file, seq) in gone.take(5) {
            let _ = write!(text, "\n  missing: {file} {seq}");
        }
        let strange: std::collections::HashSet<u64> = verdict.strange.iter().copied().collect();
        for seen in self.seen.iter().filter(|s| strange.contains(&s.hash)).take(5) {
            let _ = write!(
                text,
                "\n  strange: number {} at partition {} offset {}",
                seen.seq as i64, seen.partition, seen.offset
            );
        }
        for payload in &self.first {
            let _ =
                write!(text, "\n  begins: {}", String::from_utf8_lossy(&payload[..payload.len().min(80)]));
        }
        text
    }
}

/// The difference between what arrived and what was written.
#[derive(Debug)]
pub struct Verdict {
    pub written: usize,
    pub arrived: usize,
    pub missing: Vec<u64>,
    pub doubled: usize,
    pub strange: Vec<u64>,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Verdict { written, arrived, missing, doubled, strange } = self;
        let (missing, strange) = (missing.len(), strange.len());
        write!(
            f,
            "{written} lines written, {arrived} arrived: {missing} missing, {doubled} doubled, {strange} strange"
        )
    }
}

/// Lines a second, for the tables.
pub fn per_second(lines: usize, took: Duration) -> u64 {
    (lines as f64 / took.as_secs_f64().max(0.001)) as u64
}
