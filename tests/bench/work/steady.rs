//! (s) 10 MB/s of lines of 512 bytes for a minute, into Kafka without TLS: the load for which LoongCollector publishes
//! its CPU and memory use.

use super::{
    Bench, Work,
    trickle::{Cell, network, once, takes},
};
use crate::plan::Plan;

pub const WORK: Work = Work { letter: 's', settings, takes, round };

const WIDTH: usize = 512;
/// Lines per second, of 513 bytes with the line feed.
const RATE: u64 = 19_493;

fn seconds(plan: &Plan) -> u64 {
    plan.size(60, 5)
}

fn settings(plan: &Plan) -> String {
    format!("{RATE} lines/s of {WIDTH} bytes in writes of 19, for {} s after 2 s", seconds(plan))
}

fn round(bench: &mut Bench<'_>, round: u32) {
    let netns = network(bench);
    let seconds = seconds(bench.plan);
    let cell = Cell {
        rate: RATE,
        width: WIDTH,
        tls: false,
        linger: false,
        compression: "none",
        seconds,
        alone: false,
    };
    for system in bench.order(&WORK, round) {
        let (mut figures, note) = once(bench, &system, &cell, netns.as_ref());
        let micros = figures.iter().find(|(name, _)| *name == "cpu_us_per_line").map_or(f64::NAN, |f| f.1);
        figures.push(("cpu_share", micros * RATE as f64 / 1e6));
        bench.add(&WORK, "10 MB/s", round, system.name, &figures, &note);
    }
    bench.reachable = None;
}
