//! Stops and kills without a broker: positions may be saved only for lines written to standard output.

use crate::harness::*;
use rustix::process::Signal;

const LIVE: &str = "run --output stdout --from beginning --state-dir state f.log";

fn once(folder: &Folder) -> Vec<Vec<u8>> {
    folder.agent_line(&format!("{LIVE} --once")).run().expect_code(0).lines()
}

/// Ten runs while a writer appends steadily, each ended by `end`, and a last one that reads to the end of the file.
fn restart_ten_times(end: impl Fn(u64, &mut Agent) -> Vec<Vec<u8>>) -> (Delivered, Lines) {
    let folder = Folder::new();
    folder.write("f.log", b"");
    let writer = Writer::steady(folder.path("f.log"), "f", 2000);
    let mut seen = Vec::new();
    for round in 0..10 {
        let mut agent = folder.agent_line(LIVE).start();
        seen.extend(end(round, &mut agent));
    }
    let lines = writer.finish();
    seen.extend(once(&folder));
    (Delivered::of(seen), lines)
}

/// Fails when a position is saved before its lines were written out, or not saved at exit.
#[test]
fn ten_stops_while_a_log_grows() {
    let (delivered, lines) = restart_ten_times(|round, agent| {
        pause(millis(100 + round * 37));
        agent.stop().expect_code(0).lines()
    });
    delivered.assert_exactly_once(&[&lines]);
    delivered.assert_ordered();
}

/// Fails when a position is saved before its acknowledgement.
#[test]
fn ten_kills_while_a_log_grows() {
    let (delivered, lines) = restart_ten_times(|round, agent| {
        pause(millis(150 + round * 97));
        agent.kill().whole_lines()
    });
    delivered.assert_at_least_once(&[&lines]);
}

/// Fails when siblings are not searched for at start, or are read in the wrong order.
#[test]
fn rotated_while_stopped() {
    for rotations in 1..=3u64 {
        let folder = Folder::new();
        folder.write("f.log", Lines::new("f", 0..100).bytes());
        let mut agent = folder.agent_line(LIVE).start();
        let mut seen = agent.wait_lines(100);
        agent.stop().expect_code(0);
        for round in 1..=rotations {
            folder.append("f.log", Lines::new("f", round * 1000..round * 1000 + 500).bytes());
            crate::rotation::chain(&folder, "f.log");
            pause(millis(15));
        }
        folder.append("f.log", Lines::new("f", 9000..9010).bytes());
        seen.extend(once(&folder));
        let mut want = vec![Lines::new("f", 0..100), Lines::new("f", 9000..9010)];
        want.extend((1..=rotations).map(|r| Lines::new("f", r * 1000..r * 1000 + 500)));
        let delivered = Delivered::of(seen);
        delivered.assert_exactly_once(&want.iter().collect::<Vec<_>>());
        delivered.assert_ordered();
    }
}

/// Rotated and removed while stopped. Fails when the loss is silent, or when a failed look-up counts as proof.
#[test]
fn removed_while_stopped_is_counted_as_lost() {
    let folder = Folder::new();
    let config = format!(
        "[[files]]\npaths = [\"{}\"]\nstart = \"beginning\"\nrate_limit = \"2KiB/s\"\n",
        folder.path("f.log").display()
    );
    folder.write("c.toml", config);
    folder.write("f.log", Lines::new("f", 0..1000).bytes());
    let slow = "run -c c.toml --output stdout --state-dir state";
    let mut agent = folder.agent_line(slow).start();
    wait_until(SOON, "a part is read", || !agent.lines().is_empty());
    let read = agent.stop().expect_code(0).lines().len() as u64;
    folder.remove("f.log");
    folder.write("f.log", "new\n");
    let mut agent = folder.agent_line(LIVE).start();
    let said = agent.wait_log("are lost", SOON);
    agent.wait_lines(1);
    agent.stop().expect_code(0);
    assert!(said.contains(&format!(" {} bytes", (1000 - read) * 201)), "{said} after {read} lines");
    let status = status_json(&folder, &folder.path("state"));
    assert_eq!(status["totals"]["lost_bytes"].as_u64(), Some((1000 - read) * 201));
}

/// Fails when a partial line is dropped, or sent, at a restart.
#[test]
fn partial_line_across_a_restart() {
    let folder = Folder::new();
    folder.write("f.log", "ab");
    folder.agent_line(LIVE).start().stop().expect_code(0);
    folder.append("f.log", "cd\n");
    assert_eq!(once(&folder), [b"abcd".to_vec()]);
}

/// Fails when finished streams, descriptors, watches or threads accumulate.
#[test]
fn rotated_and_removed_files_are_cleaned_up() {
    let folder = Folder::new();
    folder.write("f.log", b"");
    let mut agent = folder.agent_line(LIVE).start();
    let threads = agent.threads();
    for round in 0..300 {
        folder.append("f.log", Lines::new("f", round..round + 1).bytes());
        // The next rename removes the last rotated file, so read it first.
        wait_until(SOON, "the line", || agent.lines().len() as u64 > round);
        folder.rename("f.log", "f.log.1");
        folder.append("f.log", b"");
    }
    agent.wait_lines(300);
    Delivered::of(agent.lines()).assert_exactly_once(&[&Lines::new("f", 0..300)]);
    wait_until(secs(30), "few descriptors", || agent.open_files().len() < 40);
    assert!(agent.threads() <= threads + 1);
    agent.stop().expect_code(0);
    let size = std::fs::metadata(folder.path("state/offsets")).unwrap().len();
    assert!(size < 40_000, "{size} bytes of state");
}

/// Fails when an idle agent takes until a timeout to stop, or ignores a second signal.
#[test]
fn an_idle_agent_stops_at_once() {
    let folder = Folder::new();
    folder.write("f.log", b"");
    let mut agent = folder.agent_line(LIVE).start();
    let begun = std::time::Instant::now();
    agent.signal(Signal::TERM);
    agent.wait_exit(SOON).expect_code(0);
    assert!(begun.elapsed() < secs(5), "{:?}, and drain_timeout is 10 s", begun.elapsed());
}

/// A file appears under a known pattern and is rotated while the agent is down, also twice and compressed: all of it
/// is new. Fails when `start` of the pattern applies to it.
#[test]
fn created_and_rotated_while_stopped() {
    let folder = Folder::new();
    folder.write("logs/known.log", "known\n");
    let run = "run --output stdout --state-dir state logs/*.log";
    folder.agent_line(run).start().stop().expect_code(0);
    pause(secs(1));
    let lines = Lines::new("new", 0..30);
    for round in 0..3 {
        let name = "logs/new.log";
        folder.append(name, Lines { range: round * 10..round * 10 + 10, ..lines.clone() }.bytes());
        if round < 2 {
            crate::rotation::chain(&folder, name);
        }
        if round == 0 {
            let gzip = std::process::Command::new("gzip").arg(folder.path("logs/new.log.1")).status();
            assert!(gzip.unwrap().success());
            folder.rename("logs/new.log.1.gz", "logs/new.log.3.gz");
        }
        pause(millis(20));
    }
    let delivered = Delivered::of(folder.agent_line(run).start().wait_lines(30));
    delivered.assert_exactly_once(&[&lines]);
    delivered.assert_ordered();
}

/// A file is removed from the config and added again later. Fails when its position is forgotten with its source.
#[test]
fn file_removed_from_the_config_and_added_again() {
    let folder = Folder::new();
    let source = |name: &str| format!("[[files]]\npaths = [{:?}]\nstart = \"end\"\n", folder.path(name));
    let run = "run -c c.toml --output stdout --state-dir state";
    let both = source("a.log") + &source("b.log");
    for name in ["a", "b"] {
        folder.write(&format!("{name}.log"), "old\n");
    }
    let mut seen = Vec::new();
    for (round, config) in [&both, &source("a.log"), &both].into_iter().enumerate() {
        folder.write("c.toml", config);
        let mut agent = folder.agent_line(run).start();
        let from = round as u64 * 10;
        for name in ["a", "b"] {
            folder.append(&format!("{name}.log"), Lines::new(name, from..from + 10).bytes());
        }
        seen.extend(agent.wait_lines([20, 10, 30][round]));
        agent.stop().expect_code(0);
    }
    Delivered::of(seen).assert_exactly_once(&[&Lines::new("a", 0..30), &Lines::new("b", 0..30)]);
}

/// READY=1 means that the size of every file is saved, so everything written later is new even if the agent is
/// killed. This needs no broker. Fails when READY=1 is sent before the save.
#[test]
fn killed_right_after_ready() {
    let folder = Folder::new();
    let names: Vec<String> = (0..50).map(|i| format!("{i:02}")).collect();
    for name in &names {
        folder.write(&format!("{name}.log"), "old\n");
    }
    let run = |to: &str| folder.agent_line(&format!("run {to} --from end --state-dir state *.log"));
    run("--brokers 127.0.0.1:1 --topic t").start().kill();
    for name in &names {
        folder.append(&format!("{name}.log"), Lines::new(name, 0..2).bytes());
    }
    let want: Vec<Lines> = names.iter().map(|n| Lines::new(n, 0..2)).collect();
    let agent = run("--output stdout").start();
    Delivered::of(agent.wait_lines(100)).assert_exactly_once(&want.iter().collect::<Vec<_>>());
}
