//! (f) A slow uplink: each system has a link of its own (`link.rs`), and all run at the same time, since the links
//! are the bottleneck. Lines and bytes a second from a program's first byte, including its connections and requests,
//! to its last line.

use super::{AtWork, Bench, PARTITIONS, Work, checked, ship::COMPRESSIONS};
use crate::{
    corpus::Corpus,
    harness::{millis, pause, secs},
    link::Link,
    plan::Plan,
    systems::{CLASSIC, How, LINE_BY_LINE, PERF_TEST},
    tables::grouped,
};
use std::time::Instant;

pub const WORK: Work = Work { letter: 'f', settings, takes: |s| ![CLASSIC, PERF_TEST].contains(s), round };

pub const BITS_PER_S: u64 = 10_000_000;
pub const ROUND_TRIPS_MS: [u64; 2] = [20, 200];

fn amounts(plan: &Plan) -> [u64; 2] {
    [plan.size(120_000, 20_000), plan.size(480_000, 60_000)]
}

fn settings(plan: &Plan) -> String {
    let [plain, compressed] = amounts(plan).map(|n| grouped(n as f64));
    format!(
        "{plain} lines of 200 bytes, {compressed} with lz4 (hpcloud/tail + sarama: 200), through 10 Mbit/s; delay of the \
         application's bytes, half of it each way; all systems at once, each through a link of its own"
    )
}

fn round(bench: &mut Bench<'_>, round: u32) {
    for round_trip in ROUND_TRIPS_MS {
        for (compression, lines) in COMPRESSIONS.into_iter().zip(amounts(bench.plan)) {
            let case = format!("{round_trip} ms, {compression}");
            together(bench, round, &case, round_trip, compression, lines);
        }
    }
}

/// One system behind its link, and the growth of its topic.
struct Behind {
    link: Link,
    at_work: AtWork,
    last: Option<Mark>,
}

#[derive(Clone, Copy)]
struct Mark {
    at: Instant,
    lines: u64,
    bytes: u64,
}

impl Behind {
    /// Takes one sample; returns whether nothing more will arrive.
    fn look(&mut self) -> bool {
        let Some(lines) = self.at_work.offsets.now() else { return false };
        let mark = Mark { at: Instant::now(), lines, bytes: self.link.sent() };
        if lines > self.last.map_or(0, |last| last.lines) {
            self.last = Some(mark);
        }
        lines + self.at_work.system.holds_back() >= self.at_work.corpus.total()
            || self.at_work.running.ended()
    }
}

fn together(bench: &mut Bench<'_>, round: u32, case: &str, round_trip: u64, compression: &str, lines: u64) {
    let (corpus, few) = (Corpus::one(lines), Corpus::one(200));
    let (data, little) = (bench.data(&format!("uplink-{lines}"), corpus), bench.data("uplink-few", few));
    let mut all: Vec<Behind> = Vec::new();
    for system in bench.order(&WORK, round) {
        let (data, corpus) = if system == LINE_BY_LINE { (&little, few) } else { (&data, corpus) };
        let topic = bench.broker.topic(PARTITIONS);
        let link = Link::to(&topic.address, BITS_PER_S, millis(round_trip));
        let address = link.address.clone();
        let at_work = bench.begin_at(&system, data, corpus, How::compressed(compression), topic, &address);
        all.push(Behind { link, at_work, last: None });
    }
    let end = Instant::now() + secs(90);
    loop {
        // All of them, even if the first has not got far.
        let waiting = all.iter_mut().map(Behind::look).filter(|done| !done).count();
        if waiting == 0 || Instant::now() > end {
            break;
        }
        pause(millis(20));
    }
    for mut one in all {
        let mut figures = Vec::new();
        if let (Some(first), Some(last)) = (one.link.first(), one.last) {
            let (time, bytes) = ((last.at - first).as_secs_f64(), last.bytes as f64);
            figures.push(("lines_per_s", last.lines as f64 / time));
            figures.push(("link_share", bytes / time / (BITS_PER_S as f64 / 8.0)));
            figures.push(("wire_bytes_per_line", bytes / last.lines as f64));
        }
        if one
            .last
            .is_none_or(|last| last.lines + one.at_work.system.holds_back() < one.at_work.corpus.total())
        {
            one.at_work.remark("not all lines arrived");
        }
        let name = one.at_work.system.name;
        let (check, note) = one.at_work.end();
        figures.extend(checked(&check));
        bench.add(&WORK, case, round, name, &figures, &note);
    }
}
