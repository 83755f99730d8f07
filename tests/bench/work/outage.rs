//! (c) The broker is down, and 500 MB wait: the cost of waiting, whether a stop is obeyed meanwhile, and whether
//! everything arrives once the broker is back. All systems at the same time, each with its own topic, on the same
//! file.

use super::{AtWork, Bench, PARTITIONS, Work, checked};
use crate::{
    corpus::Corpus,
    harness::{Topic, millis, pause, secs},
    plan::Plan,
    systems::{CLASSIC, How, LINE_BY_LINE, System},
};
use std::{fs, path::Path};

pub const WORK: Work = Work { letter: 'c', settings, takes: |s| s.follows() && *s != CLASSIC, round };

/// Delivered before the broker stops.
const BEFORE: u64 = 1000;

fn settings(plan: &Plan) -> String {
    format!(
        "1,000 lines are delivered, then the broker stops and {} MB are appended; for {} s; then it is back. A stop is \
         asked of a second instance, 5 s after its start without a broker. All systems at once",
        waiting(plan).bytes() / 1_000_000,
        plan.size(60, 10)
    )
}

fn waiting(plan: &Plan) -> Corpus {
    Corpus::one(plan.size(2_500_000, 100_000))
}

fn round(bench: &mut Bench<'_>, round: u32) {
    let corpus = waiting(bench.plan);
    let data = bench.folder.mkdir("outage");
    corpus.append(&data, 0, 0..BEFORE);
    let order = bench.order(&WORK, round);
    let mut all: Vec<AtWork> =
        order.iter().map(|system| bench.begin(system, &data, corpus, "none")).collect();
    let others: Vec<Topic> = order.iter().map(|_| bench.broker.topic(PARTITIONS)).collect();
    for one in &mut all {
        let enough = BEFORE - one.system.holds_back();
        one.offsets.wait(enough, millis(50), secs(20), || false);
    }
    bench.broker.stop();
    corpus.append(&data, 0, BEFORE..corpus.lines);
    let before: Vec<_> = all.iter_mut().map(|one| one.running.cpu()).collect();
    pause(secs(bench.plan.size(60, 10)));
    let spent: Vec<_> = all
        .iter_mut()
        .zip(before)
        .map(|(one, before)| (one.running.cpu() - before, one.running.peak()))
        .collect();
    let ended: Vec<bool> = all.iter_mut().map(|one| one.running.ended()).collect();
    let stops = stop_times(bench, &order, others, &data, corpus);
    bench.broker.restart();
    for one in &mut all {
        // A program that sends a few thousand lines a second would take ten minutes; what it skipped shows sooner.
        let limit = if one.system == LINE_BY_LINE { secs(10) } else { secs(100) };
        if one.wait(millis(100), limit).is_none() {
            one.remark("not all lines arrived after the broker's return");
        }
    }
    for (((one, (cpu, peak)), ended), stop) in all.into_iter().zip(spent).zip(ended).zip(stops) {
        let name = one.system.name;
        let mut figures = vec![("continues", f64::from(u8::from(!ended)))];
        if !ended {
            figures.extend([("cpu_s", cpu.as_secs_f64()), ("peak_kib", peak as f64)]);
        }
        figures.extend(stop.map(|ms| ("stop_ms", ms)));
        let stopped_early = one.system == LINE_BY_LINE;
        let (mut check, note) = one.end();
        if stopped_early {
            check.missing -= check.unsent;
        }
        figures.extend(checked(&check));
        bench.add(&WORK, "broker down", round, name, &figures, &note);
    }
    fs::remove_dir_all(data).unwrap();
}

/// How long each takes to exit after SIGTERM, in milliseconds, with lines waiting and no broker; absent if it exited
/// before, or not within 15 s.
fn stop_times(
    bench: &Bench<'_>,
    order: &[System],
    topics: Vec<Topic>,
    data: &Path,
    corpus: Corpus,
) -> Vec<Option<f64>> {
    let start = |(system, topic): (&System, Topic)| {
        let address = topic.address.clone();
        bench.begin_at(system, data, corpus, How::compressed("none"), topic, &address)
    };
    let others: Vec<AtWork> = order.iter().zip(topics).map(start).collect();
    pause(secs(5));
    let stop = |mut one: AtWork| {
        let runs = !one.running.ended();
        runs.then(|| one.running.stop(secs(15))).flatten().map(|time| time.as_secs_f64() * 1e3)
    };
    others.into_iter().map(stop).collect()
}
