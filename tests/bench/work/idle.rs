//! (d) Files to which nothing is written: processor time, wake-ups, memory. All systems at once, since they do nothing; each
//! has delivered the line that each file holds, and has had some seconds to settle.

use super::{AtWork, Bench, Work, checked};
use crate::{
    corpus::Corpus,
    harness::{millis, pause, secs},
    plan::Plan,
    systems::CLASSIC,
};
use std::time::Instant;

pub const WORK: Work = Work { letter: 'd', settings, takes: |s| s.follows() && *s != CLASSIC, round };

pub const FILES: [u32; 3] = [1, 100, 1000];

fn settings(plan: &Plan) -> String {
    format!("files of one line each; for {} s after 8 s to settle; all systems at once", plan.size(60, 5))
}

fn round(bench: &mut Bench<'_>, round: u32) {
    for files in FILES {
        let corpus = Corpus { files, lines: 1, width: 200 };
        let data = bench.data(&format!("idle-{files}"), corpus);
        let mut all: Vec<AtWork> = Vec::new();
        for system in bench.order(&WORK, round) {
            all.push(bench.begin(&system, &data, corpus, "none"));
        }
        for one in &mut all {
            if one.wait(millis(50), secs(30)).is_none() {
                one.remark("not all lines arrived");
            }
        }
        pause(secs(8));
        let begun = Instant::now();
        let before: Vec<_> = all.iter_mut().map(|one| (one.running.cpu(), one.running.switches())).collect();
        pause(secs(bench.plan.size(60, 5)));
        let time = begun.elapsed().as_secs_f64();
        for (mut one, (cpu, switches)) in all.into_iter().zip(before) {
            let (cpu, switches) = (one.running.cpu() - cpu, one.running.switches().saturating_sub(switches));
            let mut figures = vec![
                ("cpu_s_per_minute", cpu.as_secs_f64() * 60.0 / time),
                ("switches_per_s", switches as f64 / time),
                ("resident_kib", one.running.resident() as f64),
            ];
            let name = one.system.name;
            let (check, note) = one.end();
            figures.extend(checked(&check));
            bench.add(&WORK, &format!("{files} files"), round, name, &figures, &note);
        }
    }
}
