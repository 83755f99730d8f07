//! (a) An existing file: speed, cost, and bytes on the wire. Timed from the program's start until the topic holds the
//! last line; processor time until 0.2 s later, when the acknowledgements have arrived.

use super::{Bench, Work, checked};
use crate::{
    corpus::Corpus,
    harness::{millis, pause, secs},
    plan::Plan,
    systems::{CLASSIC, LINE_BY_LINE, System},
    tables::grouped,
};
use std::path::Path;

pub const WORK: Work = Work { letter: 'a', settings, takes: |_| true, round };

pub const COMPRESSIONS: [&str; 2] = ["none", "lz4"];

fn settings(plan: &Plan) -> String {
    let lines = plan.size(2_000_000, 100_000);
    let [lines, few] = [lines, lines / 10].map(|n| grouped(n as f64));
    format!("{lines} lines of 200 bytes (hpcloud/tail + sarama: {few}), 3 partitions, acks=all")
}

fn round(bench: &mut Bench<'_>, round: u32) {
    let lines = bench.plan.size(2_000_000, 100_000);
    let (corpus, few) = (Corpus::one(lines), Corpus::one(lines / 10));
    let (data, little) = (bench.data("ship", corpus), bench.data("ship-few", few));
    if round == 1 || bench.old.is_none() {
        warm(bench);
    }
    for compression in COMPRESSIONS {
        for system in bench.order(&WORK, round) {
            if system == CLASSIC && compression == "lz4" {
                continue; // the `kafka` crate does not know it
            }
            let (data, corpus) = if system == LINE_BY_LINE { (&little, few) } else { (&data, corpus) };
            let (figures, note) = once(bench, &system, data, corpus, compression);
            bench.add(&WORK, compression, round, system.name, &figures, &note);
        }
    }
}

/// A first run on each broker, so that no measured run meets a cold one.
fn warm(bench: &mut Bench<'_>) {
    let corpus = Corpus::one(300_000);
    let data = bench.data("warm", corpus);
    for system in [crate::systems::AGENT, CLASSIC] {
        once(bench, &system, &data, corpus, "none");
    }
}

/// The figures of one run, and its problems.
pub fn once(
    bench: &mut Bench<'_>,
    system: &System,
    data: &Path,
    corpus: Corpus,
    compression: &str,
) -> (Vec<(&'static str, f64)>, String) {
    let mut at_work = bench.begin(system, data, corpus, compression);
    let begun = at_work.running.started;
    let done = at_work.wait(millis(5), secs(150));
    pause(millis(200));
    let (cpu, peak) = (at_work.running.cpu(), at_work.running.peak());
    let bytes = at_work.topic.bytes_on_disk();
    if done.is_none() {
        at_work.remark("not all lines arrived");
    }
    let (check, note) = at_work.end();
    let lines = corpus.total() as f64;
    let mut figures = vec![
        ("cpu_us_per_line", cpu.as_secs_f64() * 1e6 / lines),
        ("peak_kib", peak as f64),
        ("wire_share", bytes as f64 / corpus.bytes() as f64),
    ];
    figures.extend(done.map(|at| ("lines_per_s", lines / (at - begun).as_secs_f64())));
    figures.extend(checked(&check));
    (figures, note)
}
