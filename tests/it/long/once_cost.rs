//! The cost of exactly-once: its speed compared with at-least-once on the same broker, and what it writes and syncs
//! in the state folder. `tests/run --long once_cost`.

use super::{Figures, LONG, MAX_KIB, micros_a_line};
use crate::harness::*;
use rustix::process::Signal;
use std::process::{Command, Stdio};
use std::time::Duration;

const SPEED_LINES: u64 = 3_000_000;
const ROUNDS: usize = 5;

/// A config of one file; `agent` adds to `[agent]`.
fn config(folder: &Folder, topic: &Topic, agent: &str) {
    let text = format!(
        "[agent]\nstate_dir = {:?}\n{agent}\n[kafka]\nbrokers = [{:?}]\ntopic = {:?}\ndriver = \"modern\"\n[[files]]\n\
         paths = [{:?}]\nstart = \"beginning\"\n",
        folder.path(format!("state-{}", topic.name)),
        topic.address,
        topic.name,
        folder.path("f.log"),
    );
    folder.write("c.toml", text);
}

const AT_LEAST: &str = "delivery = \"at-least-once\"";
const EXACTLY: &str = "delivery = \"exactly-once\"";
const ALWAYS: &str = "delivery = \"exactly-once\"\nsync = \"always\"";

/// The two modes alternate, so that load from elsewhere affects both; medians count.
fn beside_at_least_once(version: Version, partitions: u32) {
    let mut figures = Figures::of(format!(
        "{SPEED_LINES} lines into {version:?}, {partitions} partition(s), exactly-once compared with at-least-once"
    ));
    let broker = Broker::own(version);
    let folder = Folder::new();
    Lines::new("f", 0..SPEED_LINES).append_to(&folder.path("f.log"));
    let mut done: [Vec<Done>; 2] = Default::default();
    for round in 0..=ROUNDS {
        for which in [round % 2, 1 - round % 2] {
            let topic = broker.topic(partitions);
            config(&folder, &topic, [AT_LEAST, EXACTLY][which]);
            let one = folder.agent_line("run --once -c c.toml").run_for(LONG).expect_code(0);
            assert_eq!(topic.end_offsets(), SPEED_LINES);
            topic.delete();
            if round > 0 {
                done[which].push(one); // the first of each finds the broker cold
            }
        }
    }
    done.iter_mut().for_each(|all| all.sort_by_key(|d| d.took));
    let [least, exactly] = done.each_ref().map(|all| &all[all.len() / 2]);
    let ratio = least.took.as_secs_f64() / exactly.took.as_secs_f64();
    let rate = |d: &Done| per_second(SPEED_LINES as usize, d.took);
    let measured = format!("{} / {} = {ratio:.2}", rate(exactly), rate(least));
    figures.row("lines a second, compared with at-least-once", measured, "≥ 0.85", ratio >= 0.85);
    figures.at_most("VmHWM", exactly.vm_hwm, MAX_KIB, "KiB");
    let cpu = |d: &Done| micros_a_line(d.cpu, SPEED_LINES);
    figures.note("CPU", format!("{}, at least once {}", cpu(exactly), cpu(least)));
    figures.judge();
}

#[test]
#[ignore = "long form: tests/run --long"]
fn speed_on_4_1() {
    beside_at_least_once(Version::V41, 1);
    beside_at_least_once(Version::V41, 3);
}
#[test]
#[ignore = "long form: tests/run --long"]
fn speed_on_3_9() {
    beside_at_least_once(Version::V39, 1);
    beside_at_least_once(Version::V39, 3);
}

/// The cost of one case, measured before the agent exits.
struct Cost {
    took: Duration,
    /// Bytes passed to write(2) and its variants, not to sockets: the state folder.
    written: u64,
    syncs: u64,
}

/// Counts system calls that wait for the disk, with strace.
struct Syncs {
    strace: std::process::Child,
    out: std::path::PathBuf,
}

impl Syncs {
    fn of(agent: &Agent, folder: &Folder) -> Syncs {
        need("strace");
        let out = folder.path("strace");
        let strace = Command::new("strace")
            .args(["-f", "-qq", "-e", "trace=fsync,fdatasync", "-o"])
            .arg(&out)
            .args(["-p", &agent.id().to_string()])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let traced = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", agent.id())).unwrap();
            !status.contains("TracerPid:\t0")
        };
        wait_until(SOON, "strace is there", traced);
        Syncs { strace, out }
    }
    fn count(mut self) -> u64 {
        let pid = rustix::process::Pid::from_child(&self.strace);
        let _ = rustix::process::kill_process(pid, Signal::INT);
        let _ = self.strace.wait();
        let text = std::fs::read_to_string(&self.out).unwrap_or_default();
        text.lines().filter(|l| l.contains("sync(")).count() as u64
    }
}

/// Runs until everything written is acknowledged and saved.
fn cost(broker: &Broker, agent: &str, traced: bool, write: impl FnOnce(&Folder)) -> Cost {
    let (folder, topic) = (Folder::new(), broker.topic(1));
    folder.write("f.log", Lines::new("f", 0..1).bytes());
    config(&folder, &topic, agent);
    let mut running = folder.agent_line("run -c c.toml").start();
    topic.wait_count(1);
    let state = folder.path(format!("state-{}", topic.name));
    let saved = |s: &serde_json::Value| {
        let size = std::fs::metadata(folder.path("f.log")).unwrap().len();
        s["files"].as_array().unwrap().iter().all(|f| f["saved"].as_u64() == Some(size))
    };
    wait_status(&folder, &state, "the first line is saved", saved);
    let written = || {
        let io = std::fs::read_to_string(format!("/proc/{}/io", running.id())).unwrap();
        io.lines().find_map(|l| l.strip_prefix("wchar: ")?.parse::<u64>().ok()).unwrap()
    };
    let before = written();
    let syncs = traced.then(|| Syncs::of(&running, &folder));
    let begun = std::time::Instant::now();
    write(&folder);
    wait_status(&folder, &state, "all is saved", saved);
    let took = begun.elapsed();
    let (written, syncs) = (written() - before, syncs.map_or(0, Syncs::count));
    running.stop().expect_code(0);
    Cost { took, written, syncs }
}

/// No limits, except that exactly-once with the default sync waits for the disk no more often than at-least-once
/// does.
#[test]
#[ignore = "long form: tests/run --long"]
fn state_folder() {
    const BULK: u64 = 1_000_000;
    let mut figures = Figures::of("writes to the state folder, Kafka 4.1, one partition, lines of 200 bytes");
    let broker = Broker::own(Version::V41);
    let mut steady_syncs = Vec::new();
    for (name, agent) in [("at-least-once", AT_LEAST), ("exactly-once", EXACTLY), ("… sync always", ALWAYS)]
    {
        let bulk = |f: &Folder| Lines::new("f", 1..BULK + 1).append_to(&f.path("f.log"));
        let (fast, traced) = (cost(&broker, agent, false, bulk), cost(&broker, agent, true, bulk));
        figures.note(
            &format!("{name}: {BULK} lines at once"),
            format!(
                "{} KB written, {} syncs, in {:.1} s",
                fast.written / 1000,
                traced.syncs,
                fast.took.as_secs_f64()
            ),
        );
        let steady = cost(&broker, agent, true, |f| {
            for step in 0..1000 {
                Lines::new("f", 1 + step * 20..21 + step * 20).append_to(&f.path("f.log"));
                pause(millis(20));
            }
        });
        let seconds = steady.took.as_secs_f64();
        figures.note(
            &format!("{name}: 1,000 lines a second"),
            format!(
                "{:.1} syncs a second, {:.1} KB a second",
                steady.syncs as f64 / seconds,
                steady.written as f64 / seconds / 1000.0
            ),
        );
        steady_syncs.push(steady.syncs);
    }
    let limit = steady_syncs[0] + 2;
    figures.at_most("syncs in 20 s, exactly-once with the default sync", steady_syncs[1], limit, "");
    figures.judge();
}
