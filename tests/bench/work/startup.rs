//! (g) and (h): the time from the program's start to its first line in the topic, and its installed size: the program
//! and every library and module it has mapped by then.

use super::{Bench, Work, checked};
use crate::{
    corpus::Corpus,
    harness::{millis, pause, secs},
    plan::Plan,
    systems::CLASSIC,
};

pub const WORK: Work = Work { letter: 'g', settings, takes: |s| s.follows() && *s != CLASSIC, round };

fn settings(plan: &Plan) -> String {
    format!("a file of one line; {} starts a round", plan.size(3, 1))
}

fn round(bench: &mut Bench<'_>, round: u32) {
    let corpus = Corpus::one(1);
    let data = bench.data("startup", corpus);
    for _ in 0..bench.plan.size(3, 1) {
        for system in bench.order(&WORK, round) {
            let mut at_work = bench.begin(&system, &data, corpus, "none");
            let begun = at_work.running.started;
            // A program that holds the line back sends it when stopped; that is not its start-up time.
            let patience = if system.holds_back() > 0 { millis(500) } else { secs(20) };
            let running = &mut at_work.running;
            let done = at_work.offsets.wait(1, millis(1), patience, || running.ended());
            pause(millis(100));
            let mut figures =
                vec![("installed_bytes", running.installed() as f64), ("peak_kib", running.peak() as f64)];
            match done {
                Some(at) => figures.push(("first_line_ms", (at - begun).as_secs_f64() * 1e3)),
                None => at_work.remark("the line did not arrive before it was stopped"),
            }
            let (check, note) = at_work.end();
            figures.extend(checked(&check));
            bench.add(&WORK, "one line", round, system.name, &figures, &note);
        }
    }
}
