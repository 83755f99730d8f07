//! The long forms of the delivery tests, with figures: `tests/run --long [NAME]`, on the release build. Not part of
//! the daily run: they take about ten minutes, and the figures need a quiet machine.

mod drivers;
mod exactly_once;
mod once_cost;
mod versions;

use crate::delivery::{Waiting, restarted};
use crate::harness::*;
use rustix::process::Signal;
use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const LINES: u64 = 2_000_000;
const MAX_KIB: u64 = 24_000;
const LONG: Duration = secs(600);

/// The measurements of one case with their limits; printed as a table when the case ends, even when it fails.
struct Figures {
    case: String,
    rows: Vec<(String, String, String, bool)>,
}

impl Figures {
    fn of(case: impl Into<String>) -> Figures {
        if cfg!(debug_assertions) {
            eprintln!("this is not a release build, so the figures are meaningless; use tests/run --long");
        }
        Figures { case: case.into(), rows: Vec::new() }
    }
    fn row(&mut self, what: &str, measured: impl ToString, limit: impl ToString, pass: bool) {
        self.rows.push((what.into(), measured.to_string(), limit.to_string(), pass));
    }
    fn at_most(&mut self, what: &str, measured: u64, limit: u64, unit: &str) {
        self.row(what, format!("{measured} {unit}"), format!("≤ {limit} {unit}"), measured <= limit);
    }
    /// A figure without a limit.
    fn note(&mut self, what: &str, measured: impl ToString) {
        self.row(what, measured, "", true);
    }
    fn exactly_once(&mut self, verdict: &Verdict) {
        let pass = verdict.missing.is_empty() && verdict.strange.is_empty() && verdict.doubled == 0;
        self.row("every line exactly once", verdict, "0 / 0 / 0", pass);
    }
    fn nothing_lost(&mut self, verdict: &Verdict) {
        let pass = verdict.missing.is_empty() && verdict.strange.is_empty();
        self.row("nothing lost", verdict, "0 missing", pass);
    }
    #[track_caller]
    fn judge(self) {
        let failed = self.rows.iter().filter(|row| !row.3).count();
        println!("\n{}", self.case);
        for (what, measured, limit, pass) in &self.rows {
            let word = match (limit.is_empty(), pass) {
                (true, _) => "    ",
                (_, true) => "PASS",
                (_, false) => "FAIL",
            };
            println!("  {word}  {what:<42}  {measured}   {limit}");
        }
        assert_eq!(failed, 0, "{}: {failed} figures over their limits", self.case);
    }
}

/// Runs `kcat -P -l` on the file; returns its run time and processor time.
fn kcat_produces(topic: &Topic, path: &std::path::Path) -> (Duration, Duration) {
    need("kcat");
    let begun = Instant::now();
    // bash's `times` prints the children's CPU time, user and system, on the last line.
    let script = "kcat -P -l -b \"$1\" -t \"$2\" \"$3\" && times";
    let output = Command::new("bash")
        .args(["-c", script, "bash", &topic.address, &topic.name])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let took = begun.elapsed();
    assert!(output.status.success(), "kcat: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let cpu = text.lines().last().unwrap_or("").split_whitespace().filter_map(|time| {
        let (minutes, rest) = time.split_once('m')?;
        Some(minutes.parse::<f64>().ok()? * 60.0 + rest.trim_end_matches('s').parse::<f64>().ok()?)
    });
    (took, Duration::from_secs_f64(cpu.sum()))
}

fn micros_a_line(cpu: Duration, lines: u64) -> String {
    format!("{:.2} µs a line", cpu.as_secs_f64() * 1e6 / lines as f64)
}

/// A whole file into one broker with one driver, compared with `kcat -P -l` in the same run.
fn two_million_lines(version: Version, driver: &str) {
    let mut figures = Figures::of(format!("2,000,000 lines into {version:?}, driver {driver}"));
    let broker = Broker::own(version);
    let folder = Folder::new();
    let lines = Lines::new("f", 0..LINES);
    let path = folder.path("f.log");
    lines.append_to(&path);
    // The first of the two would find the broker cold: a short run warms it up for both.
    let warm = folder.write("warm.log", Lines::new("w", 0..300_000).bytes());
    kcat_produces(&broker.topic(3), &warm);
    let (kcat, kcat_cpu) = kcat_produces(&broker.topic(3), &path);
    let topic = broker.topic(3);
    let args =
        format!("run --once --brokers {} --topic {} --driver {driver} f.log", broker.address, topic.name);
    let done = folder.agent_line(&args).run_for(LONG).expect_code(0);
    let delivered = Delivered::in_topic(&topic);
    figures.exactly_once(&delivered.against(&[&lines]));
    let (ours, theirs) = (done.took.as_secs_f64(), kcat.as_secs_f64());
    let ratio = ours / theirs;
    figures.row(
        "wall time / kcat -P -l",
        format!("{ours:.1} s / {theirs:.1} s = {ratio:.2}"),
        "≤ 5",
        ratio <= 5.0,
    );
    figures.at_most("VmHWM", done.vm_hwm, MAX_KIB, "KiB");
    figures.note(
        "lines a second",
        format!("{}, kcat {}", per_second(LINES as usize, done.took), per_second(LINES as usize, kcat)),
    );
    figures
        .note("CPU", format!("{}, kcat {}", micros_a_line(done.cpu, LINES), micros_a_line(kcat_cpu, LINES)));
    figures.judge();
}

#[test]
#[ignore = "long form: tests/run --long"]
fn into_kafka_3_9() {
    two_million_lines(Version::V39, "classic");
}
#[test]
#[ignore = "long form: tests/run --long"]
fn into_kafka_3_9_with_zookeeper() {
    two_million_lines(Version::V39Zk, "classic");
}
#[test]
#[ignore = "long form: tests/run --long"]
fn into_kafka_3_9_modern() {
    two_million_lines(Version::V39, "modern");
}
#[test]
#[ignore = "long form: tests/run --long"]
fn into_kafka_4_1() {
    two_million_lines(Version::V41, "auto");
}

/// Nothing is lost, and no more is doubled than `status` says.
#[test]
#[ignore = "long form: tests/run --long"]
fn three_kills_of_the_broker() {
    let mut figures = Figures::of("2,000,000 lines, the broker killed and restarted three times");
    let broker = Broker::own(Version::V39);
    let topic = broker.topic(3);
    let folder = Folder::new();
    let lines = Lines::new("f", 0..LINES);
    lines.append_to(&folder.path("f.log"));
    let args =
        format!("run --once --brokers {} --topic {} --state-dir state f.log", broker.address, topic.name);
    let mut agent = folder.agent_line(&args).spawn();
    let mut kills = 0;
    for share in 1..=3 {
        wait_until(LONG, "a quarter more has arrived", || {
            topic.end_offsets() >= LINES * share / 5 || agent.ended().is_some()
        });
        kills += u64::from(agent.ended().is_none());
        broker.kill();
        broker.restart();
    }
    let done = agent.wait_exit(LONG).expect_code(0);
    let verdict = Delivered::in_topic(&topic).against(&[&lines]);
    let status = status_json(&folder, &folder.path("state"));
    let stated = status["totals"]["doubled_at_most"].as_u64().unwrap_or(0);
    figures.row("kills while it was sending", kills, "3", kills == 3);
    figures.nothing_lost(&verdict);
    figures.at_most("doubled, against status' doubled_at_most", verdict.doubled as u64, stated, "lines");
    figures.at_most("VmHWM", done.vm_hwm, MAX_KIB, "KiB");
    figures.judge();
}

fn ten_restarts(signal: Signal) -> (Delivered, Lines, u64) {
    // Odd waits, so that the stop hits a different point of a batch each time.
    restarted(&Broker::own(Version::V39), signal, 10, |_, round| pause(millis(1500 + round * 137)))
}

/// A clean stop neither loses nor doubles.
#[test]
#[ignore = "long form: tests/run --long"]
fn ten_sigterms() {
    let mut figures = Figures::of("SIGTERM and restart ten times during 5,000 lines/s");
    let (delivered, lines, hwm) = ten_restarts(Signal::TERM);
    figures.exactly_once(&delivered.against(&[&lines]));
    figures.at_most("VmHWM", hwm, MAX_KIB, "KiB");
    figures.judge();
}

/// A kill loses nothing.
#[test]
#[ignore = "long form: tests/run --long"]
fn ten_sigkills() {
    let mut figures = Figures::of("SIGKILL and restart ten times during 5,000 lines/s");
    let (delivered, lines, hwm) = ten_restarts(Signal::KILL);
    figures.nothing_lost(&delivered.against(&[&lines]));
    figures.at_most("VmHWM", hwm, MAX_KIB, "KiB");
    figures.judge();
}

/// Waiting costs next to nothing, and ends when the broker returns.
#[test]
#[ignore = "long form: tests/run --long"]
fn a_minute_without_a_broker() {
    let mut figures = Figures::of("the broker down at the start and for 60 s, 500 MB waiting");
    let Waiting { broker, topic, folder, lines } = Waiting::of(2_500_000);
    let follows = || folder.follows(&broker.address, &topic, "auto");

    let mut agent = follows().start();
    pause(secs(20));
    let stopping = Instant::now();
    agent.signal(Signal::TERM);
    agent.wait_exit(SOON).expect_code(0);
    figures.at_most("SIGTERM meanwhile: ends within", stopping.elapsed().as_millis() as u64, 13_000, "ms");

    let mut agent = follows().start();
    pause(secs(60));
    let said = agent.log();
    figures.at_most("CPU in the 60 s", agent.cpu().as_millis() as u64, 1000, "ms");
    figures.at_most("log lines in the 60 s", said.lines().count() as u64, 15, "lines");
    figures.at_most("VmHWM while waiting", agent.vm_hwm(), MAX_KIB, "KiB");
    figures.note("context switches in the 60 s", agent.switches());
    broker.restart();
    let back = Instant::now();
    topic.wait_count_for(1, LONG);
    figures.at_most("first line after the broker's return", back.elapsed().as_millis() as u64, 15_000, "ms");
    topic.wait_count_for(2_500_000, LONG);
    let done = agent.stop().expect_code(0);
    figures.exactly_once(&Delivered::in_topic(&topic).against(&[&lines]));
    figures.at_most("VmHWM", done.vm_hwm, MAX_KIB, "KiB");
    figures.judge();
}

/// Random histories of a log file, from seeds.
#[test]
#[ignore = "long form: tests/run --long"]
fn a_hundred_soaks() {
    crate::soak::a_hundred();
}

/// The same with patterns that match their own rotated files: `create` and `copytruncate`, compression, restarts,
/// clock steps, renames while down. `SEED=n` runs a single seed.
#[test]
#[ignore = "long form: tests/run --long"]
fn a_hundred_soaks_with_matched_rotations() {
    crate::soak::a_hundred_with_rotated_files_that_match_too();
}

#[test]
#[ignore = "long form: tests/run --long"]
fn ten_idle_minutes() {
    let mut figures = Figures::of("ten files, all delivered, for ten minutes");
    let (cpu, written, saved) = crate::scale::ten_idle_files(secs(600));
    figures.at_most("CPU", cpu.as_millis() as u64, 100, "ms");
    figures.at_most("state written", saved, 0, "bytes");
    figures.note("bytes written anywhere", format!("{written} bytes"));
    figures.judge();
}

/// Checks the metrics file with promtool. Debian's package `prometheus` contains promtool, but also a service that
/// has no place on a test machine, so `tests/run` does not install it.
#[test]
#[ignore = "long form: tests/run --long"]
fn promtool_accepts_the_metrics() {
    need("promtool");
    let kafka = Scripted::start(1);
    kafka.topic("t", &[0]);
    let folder = Folder::new();
    folder.write("we\"ird\\n\n.log", "a\n");
    let (textfile, logs) = (folder.path("m.prom"), folder.path("*.log"));
    let config = format!(
        "[agent]\nstate_dir = {:?}\n[kafka]\nbrokers = [{:?}]\ntopic = \"t\"\n[metrics]\ntextfile = {textfile:?}\n\
         [[files]]\npaths = [{logs:?}]\nstart = \"beginning\"\n",
        folder.path("state"),
        kafka.address(),
    );
    folder.write("c.toml", config);
    let mut agent = folder.agent_line("run -c c.toml").start();
    let delivered = || std::fs::read_to_string(&textfile).is_ok_and(|t| t.contains("acknowledged_total 1\n"));
    wait_until(PATIENT, "the metrics count the line", delivered);
    agent.stop().expect_code(0);
    let checked = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::fs::File::open(&textfile).unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
    assert!(checked.status.success() && said.is_empty(), "{said}");
}

/// `status` against the truth, in ten random runs of one minute each.
#[test]
#[ignore = "long form: tests/run --long"]
fn status_is_exact() {
    crate::oracle::many_days();
}

/// One writer at 20 MB/s, a rotation every second for a minute, at most five rotated files kept.
#[test]
#[ignore = "long form: tests/run --long"]
fn a_rotation_each_second() {
    use std::io::Write;
    let mut figures = Figures::of("20 MB/s, a rotation each second for 60 s, five rotated files kept");
    let folder = Folder::new();
    let open = || std::fs::OpenOptions::new().create(true).append(true).open(folder.path("f.log")).unwrap();
    let mut file = open();
    let mut agent = folder.agent_line("run --output stdout --from beginning --state-dir state f.log").start();
    let (begun, mut next, mut rotations) = (Instant::now(), 0u64, 0);
    while begun.elapsed() < secs(60) {
        let lines = Lines::new("f", next..next + 1000);
        file.write_all(&lines.bytes()).unwrap();
        next += 1000;
        if begun.elapsed().as_secs() > rotations {
            rotations += 1;
            crate::rotation::chain(&folder, "f.log");
            file = open();
            let _ = std::fs::remove_file(folder.path("f.log.6"));
        }
        let due = std::time::Duration::from_micros(next * 201 / 20);
        pause(due.saturating_sub(begun.elapsed()));
    }
    wait_until(LONG, "all lines", || agent.count_lines() as u64 >= next);
    let done = agent.stop().expect_code(0);
    let lines = done.stdout.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    figures.exactly_once(&Delivered::of(lines).against(&[&Lines::new("f", 0..next)]));
    figures.at_most("VmHWM", done.vm_hwm, MAX_KIB, "KiB");
    figures.note("MB written", next * 201 / 1_000_000);
    figures.judge();
}
