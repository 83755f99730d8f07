//! (b) The latency from writing to the log until a consumer has the line, at a steady rate. The consumer is the same
//! for all (`kcat -C`, its pipe read here). The first two seconds do not count, nor do the last ten lines, which some
//! programs hold back.

use super::{Bench, Work, checked};
use crate::{
    corpus::{Check, Corpus, number_of, push_line},
    harness::{Topic, micros, millis, pause, secs},
    plan::Plan,
    systems::{CLASSIC, System},
};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

pub const WORK: Work = Work { letter: 'b', settings, takes: |s| s.follows() && *s != CLASSIC, round };

pub const RATES: [u64; 2] = [100, 5000];
const WARM: u64 = 2;
const LAST: u64 = 10;

fn settings(plan: &Plan) -> String {
    format!(
        "lines of 200 bytes for {} s after {WARM} s that do not count; 100 lines/s in writes of 1, 5,000 lines/s in writes of 5; \
         no compression",
        plan.size(8, 3)
    )
}

fn round(bench: &mut Bench<'_>, round: u32) {
    for rate in RATES {
        let lines = rate * (WARM + bench.plan.size(8, 3));
        for system in bench.order(&WORK, round) {
            let (figures, note) = once(bench, &system, rate, lines);
            bench.add(&WORK, &format!("{rate} lines/s"), round, system.name, &figures, &note);
        }
    }
}

fn once(bench: &mut Bench<'_>, system: &System, rate: u64, lines: u64) -> (Vec<(&'static str, f64)>, String) {
    let corpus = Corpus::one(lines);
    let data = bench.folder.mkdir("latency");
    let path = Corpus::path(&data, 0);
    fs::write(&path, "").unwrap();
    let mut at_work = bench.begin(system, &data, corpus, "none");
    let consumer = Consumer::of(&at_work.topic, lines);
    pause(millis(1000));
    let cpu = at_work.running.cpu();
    let written = write_steadily(&path, rate, &corpus, consumer.base);
    let running = &mut at_work.running;
    consumer.wait(lines - system.holds_back(), secs(20));
    let (cpu, peak) = (running.cpu() - cpu, running.peak());
    running.stop(secs(15));
    consumer.wait(lines, secs(5));
    let (times, doubled) = consumer.finish();
    let delays = latencies(&times, &written, rate * WARM..lines - LAST);
    let missing = times.iter().filter(|t| t.load(Ordering::Relaxed) == 0).count() as u64;
    if missing > 0 {
        at_work.remark(&format!("{missing} lines did not arrive"));
    }
    let (_, note) = at_work.end();
    fs::remove_file(&path).unwrap();
    let mut figures =
        vec![("cpu_us_per_line", cpu.as_secs_f64() * 1e6 / lines as f64), ("peak_kib", peak as f64)];
    figures.extend(share_of(&delays, 0.5).map(|ms| ("p50_ms", ms)));
    figures.extend(share_of(&delays, 0.99).map(|ms| ("p99_ms", ms)));
    figures.extend(delays.last().map(|ms| ("max_ms", *ms)));
    figures.extend(checked(&Check { missing, doubled, ..Check::default() }));
    (figures, note)
}

/// Latencies of the lines in `range` that arrived, in milliseconds, sorted.
pub fn latencies(times: &[AtomicU64], written: &[u64], range: std::ops::Range<u64>) -> Vec<f64> {
    let mut delays: Vec<f64> = range
        .map(|n| (times[n as usize].load(Ordering::Relaxed), written[n as usize]))
        .filter(|(arrived, _)| *arrived > 0)
        .map(|(arrived, written)| arrived.saturating_sub(written) as f64 / 1e6)
        .collect();
    delays.sort_by(f64::total_cmp);
    delays
}

/// This quantile of sorted values.
pub fn share_of(sorted: &[f64], share: f64) -> Option<f64> {
    sorted.get((sorted.len() as f64 * share) as usize).or(sorted.last()).copied()
}

/// When each line was written, in nanoseconds since `base`.
pub fn write_steadily(path: &Path, rate: u64, corpus: &Corpus, base: Instant) -> Vec<u64> {
    let lines = corpus.lines;
    let mut log = fs::OpenOptions::new().append(true).open(path).unwrap();
    let each = (rate / 1000).max(1);
    let step = Duration::from_secs(1) * each as u32 / rate as u32;
    let (mut written, mut text) = (Vec::new(), String::new());
    let begun = Instant::now();
    for n in 0..lines.div_ceil(each) {
        text.clear();
        for seq in n * each..((n + 1) * each).min(lines) {
            push_line(&mut text, 0, seq, corpus.width);
            text.push('\n');
        }
        pause((step * n as u32).saturating_sub(begun.elapsed()).max(micros(1)));
        let now = base.elapsed().as_nanos() as u64;
        log.write_all(text.as_bytes()).unwrap();
        written.resize((((n + 1) * each).min(lines)) as usize, now);
    }
    written
}

pub struct Consumer {
    pub base: Instant,
    kcat: Child,
    /// By line: its arrival in nanoseconds since `base`; 0 before.
    times: Arc<Vec<AtomicU64>>,
    arrived: Arc<AtomicU64>,
    reader: thread::JoinHandle<u64>,
}

impl Consumer {
    pub fn of(topic: &Topic, lines: u64) -> Consumer {
        let mut kcat = Command::new("kcat")
            .args(["-C", "-u", "-q", "-o", "beginning", "-b", &topic.address, "-t", &topic.name])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let times: Arc<Vec<AtomicU64>> = Arc::new((0..lines).map(|_| AtomicU64::new(0)).collect());
        let arrived = Arc::new(AtomicU64::new(0));
        let base = Instant::now();
        let mut out = BufReader::new(kcat.stdout.take().unwrap());
        let (into, count) = (times.clone(), arrived.clone());
        let reader = thread::spawn(move || {
            let (mut line, mut doubled) = (Vec::new(), 0);
            while out.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let now = base.elapsed().as_nanos() as u64;
                if let Some(place) = number_of(&line).and_then(|(_, seq)| into.get(seq as usize)) {
                    match place.swap(now, Ordering::Relaxed) {
                        0 => drop(count.fetch_add(1, Ordering::Release)),
                        _ => doubled += 1,
                    }
                }
                line.clear();
            }
            doubled
        });
        Consumer { base, kcat, times, arrived, reader }
    }
    pub fn wait(&self, lines: u64, limit: Duration) {
        let end = Instant::now() + limit;
        while self.arrived.load(Ordering::Acquire) < lines && Instant::now() < end {
            pause(millis(10));
        }
    }
    /// The arrivals, and how many lines arrived more than once.
    pub fn finish(mut self) -> (Arc<Vec<AtomicU64>>, u64) {
        let _ = self.kcat.kill();
        let _ = self.kcat.wait();
        (self.times.clone(), self.reader.join().unwrap())
    }
}
