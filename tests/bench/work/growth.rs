//! (i) The agent alone: how its cost grows with the number of lines, the number of files, and the length of lines.

use super::{Bench, Work, ship};
use crate::{corpus::Corpus, plan::Plan, systems::AGENT, tables::grouped};

pub const WORK: Work = Work { letter: 'i', settings, takes: |system| *system == AGENT, round };

fn settings(plan: &Plan) -> String {
    let all = plan.size(2_000_000, 100_000);
    let [most, all] = [all * 10, all].map(|n| grouped(n as f64));
    let bytes = plan.size(400, 10);
    format!(
        "logagent alone: up to {most} lines of 200 bytes in one file; {all} lines in 1 to 1,000 files; \
         {bytes} MB of lines of 20 bytes to 20 KB"
    )
}

fn round(bench: &mut Bench<'_>, round: u32) {
    let all = bench.plan.size(2_000_000, 100_000);
    let mut cases = Vec::new();
    for lines in [all / 10, all, all * 10] {
        cases.push((format!("lines {lines}"), Corpus::one(lines)));
    }
    for files in [1, 10, 100, 1000] {
        cases.push((format!("files {files}"), Corpus { files, lines: all / u64::from(files), width: 200 }));
    }
    for width in [20, 200, 2000, 20_000] {
        let lines = (bench.plan.size(400, 10) * 1_000_000 / (width as u64 + 1)).min(all * 2);
        cases.push((format!("bytes {width}"), Corpus { files: 1, lines, width }));
    }
    for (case, corpus) in cases {
        let data = bench.data("growth", corpus);
        let (figures, note) = ship::once(bench, &AGENT, &data, corpus, "none");
        bench.add(&WORK, &case, round, AGENT.name, &figures, &note);
        let _ = std::fs::remove_dir_all(data);
    }
}
