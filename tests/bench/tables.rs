//! Markdown tables of the measurements: medians of the rounds, with the lines lost or doubled in any of them.

use crate::{
    plots,
    results::{About, OTHERS, Results},
    svg::short,
    systems::{self, System},
    work::takes,
};
use std::{fmt::Write as _, path::Path};

/// One column: its heading, the workload, case and figure it shows, and how.
struct Column {
    head: &'static str,
    /// A workload other than the table's.
    work: Option<char>,
    case: &'static str,
    figure: &'static str,
    show: fn(f64) -> String,
}

const fn column(
    head: &'static str,
    case: &'static str,
    figure: &'static str,
    show: fn(f64) -> String,
) -> Column {
    Column { head, work: None, case, figure, show }
}

const fn of(work: char, column: Column) -> Column {
    Column { work: Some(work), ..column }
}

/// 1234567 as 1,234,567.
pub fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
fn thousands(value: f64) -> String {
    grouped(three_digits(value))
}
/// More digits would be noise.
fn three_digits(value: f64) -> f64 {
    if value < 1000.0 {
        return value;
    }
    let unit = 10f64.powf(value.log10().floor() - 2.0);
    (value / unit).round() * unit
}
fn plain(value: f64) -> String {
    short(value)
}
fn micros(value: f64) -> String {
    format!("{value:.2}")
}
fn megabytes(kib: f64) -> String {
    format!("{:.1}", kib * 1024.0 / 1e6)
}
fn megabytes_of_bytes(bytes: f64) -> String {
    format!("{:.1}", bytes / 1e6)
}
fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}
fn milliseconds(value: f64) -> String {
    match value {
        v if v >= 99.5 => format!("{v:.0}"),
        v => format!("{v:.1}"),
    }
}
fn yes_or_no(value: f64) -> String {
    if value > 0.0 { "yes" } else { "**exits**" }.into()
}
fn fine(value: f64) -> String {
    format!("{value:.3}")
}
/// Microseconds per line at 100 lines a second, as a share of one core.
fn share_of_a_core(micros: f64) -> String {
    format!("{:.1} %", micros * 100.0 / 1e6 * 100.0)
}

/// The title of a workload and its columns.
struct Table {
    work: char,
    title: &'static str,
    columns: &'static [Column],
}

/// The table that README also shows.
const SUMMARY: Table = Table {
    work: 'a',
    title: "Summary",
    columns: &[
        column("lines/s", "none", "lines_per_s", thousands),
        column("CPU µs/line", "none", "cpu_us_per_line", micros),
        column("peak MB", "none", "peak_kib", megabytes),
        of('b', column("100 lines/s: CPU", "100 lines/s", "cpu_us_per_line", share_of_a_core)),
        of('b', column("p99 ms", "100 lines/s", "p99_ms", milliseconds)),
        of('d', column("idle: wake-ups/s", "1 files", "switches_per_s", plain)),
        of('d', column("MB", "1 files", "resident_kib", megabytes)),
        of('g', column("installed MB", "one line", "installed_bytes", megabytes_of_bytes)),
    ],
};

const TABLES: [Table; 9] = [
    Table {
        work: 's',
        title: "(s) 10 MB/s",
        columns: &[
            column("CPU, of a core", "10 MB/s", "cpu_share", percent),
            column("peak MB", "10 MB/s", "peak_kib", megabytes),
            column("wire bytes/line", "10 MB/s", "wire_bytes_per_line", plain),
            column("p50 ms", "10 MB/s", "p50_ms", milliseconds),
            column("p99 ms", "10 MB/s", "p99_ms", milliseconds),
        ],
    },
    Table {
        work: 'q',
        title: "(q) An idle hour over TLS",
        columns: &[
            column("bytes", "an idle hour", "wire_bytes", thousands),
            column("wake-ups", "an idle hour", "wakeups", thousands),
            column("CPU s", "an idle hour", "cpu_s", fine),
            column("MB", "an idle hour", "resident_kib", megabytes),
        ],
    },
    Table {
        work: 'a',
        title: "(a) An existing file",
        columns: &[
            column("lines/s", "none", "lines_per_s", thousands),
            column("CPU µs/line", "none", "cpu_us_per_line", micros),
            column("peak MB", "none", "peak_kib", megabytes),
            column("wire", "none", "wire_share", percent),
            column("lz4: lines/s", "lz4", "lines_per_s", thousands),
            column("CPU µs/line", "lz4", "cpu_us_per_line", micros),
            column("peak MB", "lz4", "peak_kib", megabytes),
            column("wire", "lz4", "wire_share", percent),
        ],
    },
    Table {
        work: 'b',
        title: "(b) From write to consumer, in ms",
        columns: &[
            column("100 lines/s: p50", "100 lines/s", "p50_ms", milliseconds),
            column("p99", "100 lines/s", "p99_ms", milliseconds),
            column("max", "100 lines/s", "max_ms", milliseconds),
            column("CPU µs/line", "100 lines/s", "cpu_us_per_line", plain),
            column("5,000 lines/s: p50", "5000 lines/s", "p50_ms", milliseconds),
            column("p99", "5000 lines/s", "p99_ms", milliseconds),
            column("max", "5000 lines/s", "max_ms", milliseconds),
            column("CPU µs/line", "5000 lines/s", "cpu_us_per_line", plain),
        ],
    },
    Table {
        work: 'c',
        title: "(c) The broker is down",
        columns: &[
            column("continues", "broker down", "continues", yes_or_no),
            column("CPU s", "broker down", "cpu_s", micros),
            column("peak MB", "broker down", "peak_kib", megabytes),
            column("exits after SIGTERM, ms", "broker down", "stop_ms", milliseconds),
        ],
    },
    Table {
        work: 'd',
        title: "(d) Idle, on 1, 100 and 1,000 files",
        columns: &[
            column("1: CPU s/min", "1 files", "cpu_s_per_minute", fine),
            column("wake-ups/s", "1 files", "switches_per_s", plain),
            column("MB", "1 files", "resident_kib", megabytes),
            column("100: CPU s/min", "100 files", "cpu_s_per_minute", fine),
            column("wake-ups/s", "100 files", "switches_per_s", plain),
            column("MB", "100 files", "resident_kib", megabytes),
            column("1,000: CPU s/min", "1000 files", "cpu_s_per_minute", fine),
            column("wake-ups/s", "1000 files", "switches_per_s", plain),
            column("MB", "1000 files", "resident_kib", megabytes),
        ],
    },
    Table {
        work: 'e',
        title: "(e) 200 files, 50 lines/s each",
        columns: &[
            column("CPU µs/line", "200 files", "cpu_us_per_line", micros),
            column("peak MB", "200 files", "peak_kib", megabytes),
            column("last line after, ms", "200 files", "last_line_after_ms", milliseconds),
        ],
    },
    Table {
        work: 'f',
        title: "(f) A slow uplink",
        columns: &[
            column("20 ms: lines/s", "20 ms, none", "lines_per_s", thousands),
            column("of the link", "20 ms, none", "link_share", percent),
            column("lz4: lines/s", "20 ms, lz4", "lines_per_s", thousands),
            column("of the link", "20 ms, lz4", "link_share", percent),
            column("bytes/line", "20 ms, lz4", "wire_bytes_per_line", plain),
            column("200 ms: lines/s", "200 ms, none", "lines_per_s", thousands),
            column("of the link", "200 ms, none", "link_share", percent),
            column("lz4: lines/s", "200 ms, lz4", "lines_per_s", thousands),
            column("of the link", "200 ms, lz4", "link_share", percent),
            column("bytes/line", "200 ms, lz4", "wire_bytes_per_line", plain),
        ],
    },
    Table {
        work: 'g',
        title: "(g, h) Start-up and installed size",
        columns: &[
            column("first line after, ms", "one line", "first_line_ms", milliseconds),
            column("installed, MB", "one line", "installed_bytes", megabytes_of_bytes),
        ],
    },
];

pub fn all(results: &Results) -> String {
    let mut text = summary(results);
    text += &TABLES.iter().map(|table| one(results, table)).collect::<String>();
    text += &trickle(results);
    text += &growth(results);
    text += &versions(results);
    text
}

fn summary(results: &Results) -> String {
    let Some(about) = results.about(SUMMARY.work) else { return String::new() };
    let caption = format!("{}; medians of {} rounds", measured(about), rounds(results, SUMMARY.work));
    format!("**{}.** {caption}.\n\n{}\n", SUMMARY.title, cells(results, &SUMMARY))
}

fn one(results: &Results, table: &Table) -> String {
    let Some(about) = results.about(table.work) else { return String::new() };
    let mut text = format!(
        "**{}.** {}. Medians of {} rounds, {}; {}.\n\n",
        table.title,
        about.settings,
        rounds(results, table.work),
        about.date,
        others(results, table.work)
    );
    text += &cells(results, table);
    for system in systems::ALL {
        let noted = results
            .cases(table.work)
            .into_iter()
            .find_map(|case| results.note(table.work, case, system.name));
        if let Some(note) = noted {
            let _ = writeln!(text, "\n{}: {note}.", system.name);
        }
    }
    text + "\n"
}

fn rounds(results: &Results, work: char) -> u32 {
    results.samples().filter(|s| s.work == work).map(|s| s.round).max().unwrap_or(0)
}

/// Date, commit and machine.
fn measured(about: &About) -> String {
    let machine = about.machine.split(';').next().unwrap_or_default();
    format!("Measured {} at commit {} on {machine}", about.date, about.commit)
}

/// Heading and rows.
fn cells(results: &Results, table: &Table) -> String {
    let heads = table.columns.iter().map(|column| format!(" | {}", column.head)).collect::<String>();
    let rule = "|---".repeat(table.columns.len() + 2);
    let mut text = format!("|{heads} | lost | doubled |\n|---{rule}|\n");
    for system in systems::ALL.iter().filter(|system| takes(table.work, system)) {
        text += &row(results, table, system);
    }
    text
}

/// How quiet the machine was.
fn others(results: &Results, work: char) -> String {
    match results.worst(work, "", OTHERS, "cores") {
        Some(most) => format!("other programs on the machine used at most {most:.2} cores"),
        None => "the load by other programs is not known".into(),
    }
}

fn row(results: &Results, table: &Table, system: &System) -> String {
    let mut text = format!("| {} |", system.name.replace('|', "\\|"));
    let is_there = results.about(table.work).is_some_and(|about| about.versions.contains_key(system.name));
    for column in table.columns {
        let value =
            results.median(column.work.unwrap_or(table.work), column.case, system.name, column.figure);
        let cell = match value {
            Some(value) => (column.show)(value),
            None if is_there => "–".into(),
            None => "not run".into(),
        };
        write!(text, " {cell} |").unwrap();
    }
    let mut cases: Vec<(char, &str)> =
        table.columns.iter().map(|column| (column.work.unwrap_or(table.work), column.case)).collect();
    cases.dedup();
    for figures in [["missing", "strange"], ["doubled", "doubled"]] {
        let worst = |figure: &str| {
            cases
                .iter()
                .filter_map(|(work, case)| results.worst(*work, case, system.name, figure))
                .max_by(f64::total_cmp)
        };
        let cell = worst(figures[0]).map(|a| a.max(worst(figures[1]).unwrap_or(0.0)));
        write!(text, " {} |", cell.map_or("–".into(), thousands)).unwrap();
    }
    text + "\n"
}

/// A row for each setting and system: more settings than fit side by side.
fn trickle(results: &Results) -> String {
    const COLUMNS: [Column; 6] = [
        column("CPU µs/line", "", "cpu_us_per_line", plain),
        column("wake-ups/line", "", "wakeups_per_line", fine),
        column("wire bytes/line", "", "wire_bytes_per_line", plain),
        column("p50 ms", "", "p50_ms", milliseconds),
        column("p99 ms", "", "p99_ms", milliseconds),
        column("peak MB", "", "peak_kib", megabytes),
    ];
    let Some(about) = results.about('t') else { return String::new() };
    let mut text = format!(
        "**(t) A trickle.** {}. Medians of {} rounds, {}; {}.\n\n",
        about.settings,
        rounds(results, 't'),
        about.date,
        others(results, 't')
    );
    let heads: String = COLUMNS.iter().map(|column| format!(" {} |", column.head)).collect();
    let _ = writeln!(text, "| | |{heads} lost | doubled |\n|{}", "---|".repeat(COLUMNS.len() + 4));
    for case in results.cases('t') {
        for system in systems::ALL {
            if results.median('t', case, system.name, "missing").is_none() {
                continue;
            }
            let _ = write!(text, "| {case} | {} |", system.name.replace('|', "\\|"));
            for column in &COLUMNS {
                let value = results.median('t', case, system.name, column.figure);
                let _ = write!(text, " {} |", value.map_or("–".into(), column.show));
            }
            let worst = |figure: &str| results.worst('t', case, system.name, figure).unwrap_or(f64::NAN);
            let _ = writeln!(text, " {} | {} |", worst("missing"), worst("doubled"));
        }
    }
    text + "\n"
}

fn growth(results: &Results) -> String {
    let Some(about) = results.about('i') else { return String::new() };
    let mut text =
        format!("**(i) Growth.** {}. {}; {}.\n\n", about.settings, about.date, others(results, 'i'));
    text += "| | lines/s | CPU µs/line | peak MB | lost | doubled |\n|---|---|---|---|---|---|\n";
    for case in results.cases('i') {
        let median =
            |figure: &str| results.median('i', case, systems::AGENT.name, figure).unwrap_or(f64::NAN);
        let worst = |figure: &str| results.worst('i', case, systems::AGENT.name, figure).unwrap_or(f64::NAN);
        let (kind, number) = case.split_once(' ').unwrap();
        let what = match kind {
            "bytes" => format!("lines of {} bytes", thousands(number.parse().unwrap())),
            _ => format!("{} {kind}", thousands(number.parse().unwrap())),
        };
        let (rate, cpu, peak) = (median("lines_per_s"), median("cpu_us_per_line"), median("peak_kib"));
        let (missing, doubled) = (worst("missing").max(worst("strange")), worst("doubled"));
        let _ = writeln!(
            text,
            "| {what} | {} | {} | {} | {missing} | {doubled} |",
            thousands(rate),
            plain(cpu),
            megabytes(peak)
        );
    }
    text + "\n"
}

fn versions(results: &Results) -> String {
    let Some(about) = TABLES.iter().filter_map(|table| results.about(table.work)).next() else {
        return String::new();
    };
    let list: Vec<String> = systems::ALL
        .iter()
        .map(|s| format!("{}: {}", s.name, about.versions.get(s.name).map_or("not run", String::as_str)))
        .collect();
    format!("{}. Kafka 4.1.0 on the same machine. {}.\n", about.machine, list.join("; "))
}

/// The folder of the plots that the documents show.
const SHOWN: &str = "tests/bench/results";

/// Writes tables and plots between the marks in tests/bench/README.md, and the summary with one plot into README.
pub fn into_documents(results: &Results) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let plots: String = plots::NAMES
        .into_iter()
        .filter(|name| root.join(SHOWN).join(name).exists())
        .map(|name| format!("![{}](results/{name})\n\n", name.trim_end_matches(".svg")))
        .collect();
    replace_figures(&root.join("tests/bench/README.md"), &format!("{plots}{}", all(results)));
    let plot = format!("![Lines per second]({SHOWN}/speed.svg)\n\n");
    replace_figures(&root.join("README.md"), &format!("{plot}{}", summary(results)));
}

fn replace_figures(document: &Path, figures: &str) {
    const BEGIN: &str = "<!-- figures: written by tests/bench/run --readme -->\n";
    const END: &str = "<!-- end of figures -->\n";
    let text = std::fs::read_to_string(document).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the document has the mark");
    let (_, after) = rest.split_once(END).expect("the document has the mark of the end");
    std::fs::write(document, format!("{before}{BEGIN}\n{figures}{END}{after}")).unwrap();
}
