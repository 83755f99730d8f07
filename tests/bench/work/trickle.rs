//! (t) A trickle: what an edge box does all day. CPU, wake-ups, bytes on the wire and latency at steady rates, with and
//! without TLS, with the defaults of each program and with up to a second of batching. Bytes count from the program's
//! start to its last line, in both directions and with all headers, from the counters of a veth interface: each program
//! runs in a network namespace. CPU and wake-ups begin a second after the start.

use super::{
    Bench, PARTITIONS, Work, checked,
    latency::{Consumer, latencies, share_of, write_steadily},
};
use crate::{
    corpus::{Check, Corpus},
    harness::{Broker, NetNs, Version, pause, secs},
    plan::Plan,
    systems::{AGENT, CLASSIC, How, LINE_BY_LINE, System},
};
use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
};

pub const WORK: Work = Work { letter: 't', settings, takes, round };

pub fn takes(system: &System) -> bool {
    system.follows() && ![CLASSIC, LINE_BY_LINE].contains(system)
}

/// One setting of the work.
#[derive(Clone, Copy)]
pub struct Cell {
    pub rate: u64,
    pub width: usize,
    pub tls: bool,
    pub linger: bool,
    pub compression: &'static str,
    pub seconds: u64,
    /// Only the agent, to keep a round short.
    pub alone: bool,
}

/// Approximate extra time to start and stop a program, its topic and its consumer.
const OVERHEAD_S: u64 = 6;
/// Lines of the first seconds do not count in the latency.
const WARM_S: u64 = 2;

impl Cell {
    fn name(&self) -> String {
        let tls = if self.tls { ", TLS" } else { "" };
        let linger = if self.linger { ", 1 s" } else { "" };
        let compression = if self.compression == "none" { "" } else { ", zstd" };
        format!("{} lines/s{tls}{linger}{compression}", self.rate)
    }
}

fn cells(plan: &Plan) -> Vec<Cell> {
    let mut all = Vec::new();
    for (rate, seconds) in [(1, 30), (10, 20), (100, 15), (1000, 8), (5000, 8)] {
        let seconds = plan.size(seconds, 4);
        for (tls, linger) in [(false, false), (true, false), (false, true), (true, true)] {
            let alone = match rate {
                100 => false,
                1 | 5000 => tls != linger,
                _ => true,
            };
            all.push(Cell { rate, width: 200, tls, linger, compression: "none", seconds, alone });
        }
    }
    let seconds = plan.size(60, 6);
    all.push(Cell {
        rate: 100,
        width: 200,
        tls: true,
        linger: true,
        compression: "zstd",
        seconds,
        alone: false,
    });
    all.retain(|cell| plan.rates.as_ref().is_none_or(|rates| rates.contains(&cell.rate)));
    all
}

fn settings(plan: &Plan) -> String {
    let longest = cells(plan).iter().map(|cell| cell.seconds).max().unwrap_or(0);
    format!(
        "lines of 200 bytes, a write per line up to 1,000 lines/s and per 5 lines at 5,000, for up to {longest} s per cell; \
         \"1 s\": gathered for a second; no compression but in the last"
    )
}

/// A network namespace, if this user may have one, and a broker that can be reached from there.
pub fn network(bench: &mut Bench<'_>) -> Option<NetNs> {
    let netns = NetNs::is_possible().then(NetNs::new);
    if netns.is_none() {
        eprintln!("no network namespaces for this user: bytes on the wire are not measured");
    }
    let host = netns.as_ref().map_or("127.0.0.1", |ns| ns.host.as_str());
    bench.reachable = Some(Broker::secure_at(Version::V41, host));
    netns
}

fn round(bench: &mut Bench<'_>, round: u32) {
    let netns = network(bench);
    let order = bench.order(&WORK, round);
    let all = cells(bench.plan);
    let takes = |system: &System, cell: &Cell| *system == AGENT || !cell.alone;
    let duration: u64 = order
        .iter()
        .flat_map(|system| all.iter().filter(move |cell| takes(system, cell)))
        .map(|cell| cell.seconds + OVERHEAD_S)
        .sum();
    eprintln!("a trickle: this round takes about {} min", duration.div_ceil(60));
    for cell in &all {
        for system in order.iter().filter(|system| takes(system, cell)) {
            let (figures, note) = once(bench, system, cell, netns.as_ref());
            bench.add(&WORK, &cell.name(), round, system.name, &figures, &note);
        }
    }
    bench.reachable = None;
}

pub fn once(
    bench: &mut Bench<'_>,
    system: &System,
    cell: &Cell,
    netns: Option<&NetNs>,
) -> (Vec<(&'static str, f64)>, String) {
    let corpus = Corpus { files: 1, lines: cell.rate * (WARM_S + cell.seconds), width: cell.width };
    let data = bench.folder.mkdir("trickle");
    let path = Corpus::path(&data, 0);
    fs::write(&path, "").unwrap();
    let broker = bench.reachable.as_ref().expect("it was started");
    let topic = broker.topic(PARTITIONS);
    let ca = cell.tls.then(|| broker.key("ca.crt"));
    let address = if cell.tls { broker.listener("tls") } else { topic.address.clone() };
    let how = How { compression: cell.compression, linger: cell.linger, ca: ca.as_deref(), netns };
    let wire = netns.map(NetNs::bytes);
    let mut at_work = bench.begin_at(system, &data, corpus, how, topic, &address);
    let consumer = Consumer::of(&at_work.topic, corpus.lines);
    pause(secs(1));
    let (cpu, switches) = (at_work.running.cpu(), at_work.running.switches());
    let written = write_steadily(&path, cell.rate, &corpus, consumer.base);
    consumer.wait(corpus.lines - system.holds_back().min(corpus.lines), secs(20));
    let running = &mut at_work.running;
    let (cpu, switches) = (running.cpu() - cpu, running.switches().saturating_sub(switches));
    let wire = netns.zip(wire).map(|(ns, before)| ns.bytes().since(before));
    let peak = running.peak();
    running.stop(secs(15));
    consumer.wait(corpus.lines, secs(5));
    let (times, doubled) = consumer.finish();
    let delays = latencies(&times, &written, cell.rate * WARM_S..corpus.lines - system.holds_back());
    let missing = times.iter().filter(|t: &&AtomicU64| t.load(Ordering::Relaxed) == 0).count() as u64;
    if missing > 0 {
        at_work.remark(&format!("{missing} lines did not arrive"));
    }
    let (_, note) = at_work.end();
    fs::remove_file(&path).unwrap();
    let lines = corpus.lines as f64;
    let mut figures = vec![
        ("cpu_us_per_line", cpu.as_secs_f64() * 1e6 / lines),
        ("wakeups_per_line", switches as f64 / lines),
        ("peak_kib", peak as f64),
    ];
    figures.extend(wire.map(|wire| ("wire_bytes_per_line", wire.both() as f64 / lines)));
    figures.extend(share_of(&delays, 0.5).map(|ms| ("p50_ms", ms)));
    figures.extend(share_of(&delays, 0.99).map(|ms| ("p99_ms", ms)));
    figures.extend(checked(&Check { missing, doubled, ..Check::default() }));
    (figures, note)
}
