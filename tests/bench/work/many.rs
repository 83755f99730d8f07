//! (e) Many files with a few lines each, as on a machine with many services.

use super::{Bench, Work, checked};
use crate::{
    corpus::{Corpus, push_line},
    harness::{millis, pause, secs},
    plan::Plan,
    systems::{CLASSIC, System},
};
use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

pub const WORK: Work = Work { letter: 'e', settings, takes: |s| s.follows() && *s != CLASSIC, round };

const FILES: u32 = 200;
const RATE: u64 = 50;

fn settings(plan: &Plan) -> String {
    format!(
        "{FILES} files, {RATE} lines/s of 200 bytes into each, a write per line, for {} s",
        plan.size(10, 3)
    )
}

fn round(bench: &mut Bench<'_>, round: u32) {
    let corpus = Corpus { files: FILES, lines: RATE * bench.plan.size(10, 3), width: 200 };
    for system in bench.order(&WORK, round) {
        let data = bench.folder.mkdir("many");
        let mut logs: Vec<File> = (0..FILES)
            .map(|file| OpenOptions::new().create(true).append(true).open(Corpus::path(&data, file)).unwrap())
            .collect();
        let (figures, note) = once(bench, &system, &data, corpus, &mut logs);
        bench.add(&WORK, "200 files", round, system.name, &figures, &note);
        fs::remove_dir_all(data).unwrap();
    }
}

fn once(
    bench: &mut Bench<'_>,
    system: &System,
    data: &Path,
    corpus: Corpus,
    logs: &mut [File],
) -> (Vec<(&'static str, f64)>, String) {
    let mut at_work = bench.begin(system, data, corpus, "none");
    pause(secs(2));
    let before = at_work.running.cpu();
    write_steadily(logs, corpus.lines);
    let written = Instant::now();
    let done = at_work.wait(millis(5), secs(30));
    pause(millis(200));
    let (cpu, peak) = (at_work.running.cpu() - before, at_work.running.peak());
    if done.is_none() {
        at_work.remark("not all lines arrived within 30 s");
    }
    let (check, note) = at_work.end();
    let mut figures =
        vec![("cpu_us_per_line", cpu.as_secs_f64() * 1e6 / corpus.total() as f64), ("peak_kib", peak as f64)];
    figures.extend(
        done.map(|at| ("last_line_after_ms", at.saturating_duration_since(written).as_secs_f64() * 1e3)),
    );
    figures.extend(checked(&check));
    (figures, note)
}

/// The writes to the files are spread over the interval between two lines of one file.
fn write_steadily(logs: &mut [File], lines: u64) {
    let (begun, mut line) = (Instant::now(), String::new());
    let step = Duration::from_secs(1) / (RATE as u32 * FILES);
    for seq in 0..lines {
        for (file, log) in logs.iter_mut().enumerate() {
            line.clear();
            push_line(&mut line, file as u32, seq, 200);
            line.push('\n');
            let due = step * (seq as u32 * FILES + file as u32);
            // Not for each line: the writer should cost little compared with what is measured.
            if due > begun.elapsed() + millis(2) {
                pause(due - begun.elapsed());
            }
            log.write_all(line.as_bytes()).unwrap();
        }
    }
}
