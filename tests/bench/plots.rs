//! Which charts are drawn from the measurements. Skips those without data.

use crate::{
    results::Results,
    svg::{self, Look, Panel, Row, short},
    systems::{self, Kind, System},
    work::takes,
};
use std::{fs, path::Path};

/// In the order shown.
pub const NAMES: [&str; 9] = [
    "speed.svg",
    "speed-lz4.svg",
    "cpu.svg",
    "memory.svg",
    "latency.svg",
    "uplink-20ms.svg",
    "uplink-200ms.svg",
    "growth-cpu.svg",
    "growth-memory.svg",
];

pub fn draw(results: &Results, folder: &Path) {
    let chart = |name: &str, rows: &[Row], text: String| {
        if !rows.is_empty() {
            fs::write(folder.join(name), text).unwrap();
        }
    };
    for (name, case) in [("speed.svg", "none"), ("speed-lz4.svg", "lz4")] {
        let title = format!("Lines per second, compression {case}");
        let rows = rows(results, 'a', case, &["lines_per_s"], true, |v| short(v[0]));
        chart(name, &rows, svg::bars(&title, &settings(results, 'a'), &rows));
    }
    let rows_of =
        |figure: &'static str, text: fn(&[f64]) -> String| rows(results, 'a', "none", &[figure], false, text);
    let cost = rows_of("cpu_us_per_line", |v| format!("{} µs", short(v[0])));
    chart(
        "cpu.svg",
        &cost,
        svg::dots("Processor time per line, logarithmic", &settings(results, 'a'), &cost),
    );
    let memory = rows_of("peak_kib", |v| format!("{} MB", short(v[0] * 1024.0 / 1e6)));
    let in_mb: Vec<Row> = memory
        .into_iter()
        .map(|row| Row { values: row.values.iter().map(|kib| kib * 1024.0 / 1e6).collect(), ..row })
        .collect();
    chart("memory.svg", &in_mb, svg::bars("Peak memory in MB", &settings(results, 'a'), &in_mb));
    let text = |v: &[f64]| format!("{} / {} ms", short(v[0]), short(v[1]));
    let late = rows(results, 'b', "100 lines/s", &["p50_ms", "p99_ms", "max_ms"], false, text);
    let note = "dot: half of the lines within; end of the span: 99 %; ring: the last";
    chart(
        "latency.svg",
        &late,
        svg::dots("From write to consumer in ms at 100 lines/s, logarithmic", note, &late),
    );
    for round_trip in [20, 200] {
        let case = format!("{round_trip} ms, lz4");
        let link = rows(results, 'f', &case, &["lines_per_s"], true, |v| short(v[0]));
        let title = format!("Lines per second through 10 Mbit/s, {round_trip} ms round trip, lz4");
        let note = "delay of the application's bytes, not of TCP's packets";
        chart(&format!("uplink-{round_trip}ms.svg"), &link, svg::bars(&title, note, &link));
    }
    growth(results, folder);
}

fn settings(results: &Results, work: char) -> String {
    results.about(work).map(|about| about.settings.clone()).unwrap_or_default()
}

fn look(system: &System) -> Look {
    match system.kind {
        Kind::Agent { .. } => Look::Ours,
        Kind::Shipper { .. } => Look::Peer,
        Kind::Limit { .. } => Look::Limit,
    }
}

/// One row for each system that has all these figures, the best first.
fn rows(
    results: &Results,
    work: char,
    case: &str,
    figures: &[&str],
    most_is_best: bool,
    text: impl Fn(&[f64]) -> String,
) -> Vec<Row> {
    let of = |system: &System| {
        let median = |figure: &&str| results.median(work, case, system.name, figure);
        let values = figures.iter().map(median).collect::<Option<Vec<f64>>>()?;
        Some(Row { label: system.name.into(), look: look(system), text: text(&values), values })
    };
    let mut rows: Vec<Row> = systems::ALL.iter().filter(|s| takes(work, s)).filter_map(of).collect();
    rows.sort_by(|a, b| a.values[0].total_cmp(&b.values[0]));
    if most_is_best {
        rows.reverse();
    }
    rows
}

fn growth(results: &Results, folder: &Path) {
    let panel = |kind: &str, title: &str, figure: &str, times: &dyn Fn(f64) -> f64| {
        let points = results.cases('i').into_iter().filter_map(|case| {
            let x = case.strip_prefix(kind)?.trim().parse::<f64>().ok()?;
            Some((x, times(x) * results.median('i', case, systems::AGENT.name, figure)?))
        });
        Panel { title: title.into(), points: points.collect() }
    };
    let panels = [
        panel("lines", "CPU, µs per line, by lines", "cpu_us_per_line", &|_| 1.0),
        panel("files", "CPU, µs per line, by files", "cpu_us_per_line", &|_| 1.0),
        panel("bytes", "CPU, ms per MB, by bytes per line", "cpu_us_per_line", &|width| 1e3 / (width + 1.0)),
    ];
    let memory = [
        panel("lines", "peak MB, by lines", "peak_kib", &|_| 1024.0 / 1e6),
        panel("files", "peak MB, by files", "peak_kib", &|_| 1024.0 / 1e6),
        panel("bytes", "peak MB, by bytes per line", "peak_kib", &|_| 1024.0 / 1e6),
    ];
    if panels.iter().all(|panel| !panel.points.is_empty()) {
        let note = "logagent alone; logarithmic to the right";
        let cpu = svg::curves("How the agent's processor time grows", note, &panels);
        fs::write(folder.join("growth-cpu.svg"), cpu).unwrap();
        let memory = svg::curves("How the agent's memory grows", note, &memory);
        fs::write(folder.join("growth-memory.svg"), memory).unwrap();
    }
}
