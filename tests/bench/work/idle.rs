//! (d) Idle files: processor time, wake-ups, memory. All systems at the same time, each with each number of files,
//! since they do nothing; each has delivered the one line of each file and had time to settle (the agent syncs its
//! positions 30 s after the last line).

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
    format!(
        "files of one line each; for {} s after {} s to settle; all at once",
        plan.size(60, 5),
        settle(plan)
    )
}

fn settle(plan: &Plan) -> u64 {
    plan.size(40, 8)
}

fn round(bench: &mut Bench<'_>, round: u32) {
    let mut all: Vec<AtWork> = Vec::new();
    for files in FILES {
        let corpus = Corpus { files, lines: 1, width: 200 };
        let data = bench.data(&format!("idle-{files}"), corpus);
        for system in bench.order(&WORK, round) {
            all.push(bench.begin(&system, &data, corpus, "none"));
        }
    }
    for one in &mut all {
        if one.wait(millis(50), secs(30)).is_none() {
            one.remark("not all lines arrived");
        }
    }
    pause(secs(settle(bench.plan)));
    let begun = Instant::now();
    let before: Vec<_> = all.iter_mut().map(|one| (one.running.cpu(), one.running.switches())).collect();
    pause(secs(bench.plan.size(60, 5)));
    let time = begun.elapsed().as_secs_f64();
    let after: Vec<_> = all
        .iter_mut()
        .map(|one| (one.running.cpu(), one.running.switches(), one.running.resident()))
        .collect();
    for ((one, before), (cpu, switches, resident)) in all.into_iter().zip(before).zip(after) {
        let mut figures = vec![
            ("cpu_s_per_minute", (cpu.saturating_sub(before.0)).as_secs_f64() * 60.0 / time),
            ("switches_per_s", switches.saturating_sub(before.1) as f64 / time),
            ("resident_kib", resident as f64),
        ];
        let (name, files) = (one.system.name, one.corpus.files);
        let (check, note) = one.end();
        figures.extend(checked(&check));
        bench.add(&WORK, &format!("{files} files"), round, name, &figures, &note);
    }
}
