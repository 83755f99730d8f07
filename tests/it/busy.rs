//! Files that are written to often: their tails read the events themselves, and nothing is noticed later for that.

use crate::harness::*;
use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
    process::Command,
    time::Duration,
};

const LIVE: &str = "run --output stdout --from beginning --state-dir state";
/// Shorter than the interval of the regular looks.
const AT_ONCE: Duration = secs(10);

fn instances(agent: &Agent) -> usize {
    agent.open_files().iter().filter(|open| *open == Path::new("anon_inode:inotify")).count()
}

/// One write per line, 100 a second.
fn write_slowly(folder: &Folder, lines: &Lines) {
    let path = folder.path(format!("{}.log", lines.file));
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    for line in lines.iter() {
        file.write_all(&[line, vec![b'\n']].concat()).unwrap();
        pause(millis(10));
    }
}

/// An agent and a file to which lines were written until its tail had an instance of its own, and their number.
fn busy() -> (Folder, Agent, u64) {
    let folder = Folder::new();
    folder.append("f.log", b"");
    let agent = folder.agent_line(LIVE).arg("f.log").start();
    let mut written = 0;
    wait_until(PATIENT, "the tail has an instance of its own", || {
        write_slowly(&folder, &Lines::new("f", written..written + 20));
        written += 20;
        instances(&agent) == 3
    });
    (folder, agent, written)
}

#[track_caller]
fn arrive(agent: &Agent, n: usize) {
    wait_until(AT_ONCE, &format!("{n} lines arrive"), || agent.lines().len() >= n);
}

/// How often one thread has waited so far.
fn wake_ups(agent: &Agent, thread: &str) -> u64 {
    let status = format!("/proc/{}/task/{}/status", agent.id(), agent.thread(thread));
    let text = fs::read_to_string(status).unwrap();
    text.lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

/// Fails when a busy tail has no instance of its own, or when `watch` is woken for each line nevertheless.
#[test]
fn watch_sleeps_while_a_file_is_busy() {
    let (folder, agent, written) = busy();
    let before = wake_ups(&agent, "watch");
    let all = written + 200;
    write_slowly(&folder, &Lines::new("f", written..all));
    let woken = wake_ups(&agent, "watch") - before;
    Delivered::of(agent.wait_lines(all as usize)).assert_exactly_once(&[&Lines::new("f", 0..all)]);
    assert!(woken <= 40, "watch was woken {woken} times for 200 lines");
}

/// Fails when a file that a busy path led to, or leads to from now on, is not watched: its lines then come with the next
/// regular look.
#[test]
fn a_busy_file_is_rotated_and_truncated() {
    let (folder, agent, n) = busy();
    let n = n as usize;
    arrive(&agent, n);
    let mut old = OpenOptions::new().append(true).open(folder.path("f.log")).unwrap();
    folder.rename("f.log", "f.log.1");
    folder.append("f.log", b"new 1\n");
    arrive(&agent, n + 1);
    pause(secs(1));
    old.write_all(b"late 1\n").unwrap();
    arrive(&agent, n + 2);
    folder.append("f.log", b"new 2\n");
    arrive(&agent, n + 3);
    pause(secs(1));
    old.write_all(b"late 2\n").unwrap();
    folder.append("f.log", b"new 3\n");
    arrive(&agent, n + 5);
    fs::copy(folder.path("f.log"), folder.path("f.log.0")).unwrap();
    fs::write(folder.path("f.log"), b"").unwrap();
    folder.append("f.log", b"truncated\n");
    arrive(&agent, n + 6);
    fs::remove_file(folder.path("f.log")).unwrap();
    pause(millis(500));
    folder.append("f.log", b"created\n");
    arrive(&agent, n + 7);
    write_slowly(&folder, &Lines::new("f", 0..60));
    arrive(&agent, n + 67);
    assert_eq!(agent.lines().len(), n + 67);
    assert_eq!(instances(&agent), 3);
}

/// Fails when the number of instances has no limit, or when the tails beyond it are not woken.
#[test]
fn more_busy_files_than_instances() {
    let folder = Folder::new();
    let all: Vec<Lines> = (0..7).map(|i| Lines::new(&format!("f{i}"), 0..150)).collect();
    all.iter().for_each(|lines| folder.append(&format!("{}.log", lines.file), b""));
    let agent = folder.agent_line(LIVE).arg("*.log").start();
    std::thread::scope(|scope| {
        all.iter().for_each(|lines| {
            scope.spawn(|| write_slowly(&folder, lines));
        });
    });
    let lines = agent.wait_lines(7 * 150);
    assert!(instances(&agent) <= 6, "{} instances", instances(&agent));
    Delivered::of(lines).assert_exactly_once(&all.iter().collect::<Vec<_>>());
}

/// Fails when the agent cannot do without an instance.
#[test]
fn no_instance_is_free() {
    need("prlimit");
    let folder = Folder::new();
    folder.append("f.log", b"first\n");
    let agent = folder.agent_line(LIVE).arg("f.log").start();
    arrive(&agent, 1);
    wait_until(AT_ONCE, "watch has its instances", || instances(&agent) == 2);
    let limit = format!("--nofile={}:", agent.open_files().len());
    let done = Command::new("prlimit").args(["--pid", &agent.id().to_string(), &limit]).status();
    assert!(done.unwrap().success());
    write_slowly(&folder, &Lines::new("f", 0..100));
    arrive(&agent, 101);
    assert_eq!(instances(&agent), 2);
}

/// Fails when a tail keeps its instance, or when `watch` does not ask for the writes again: two minutes.
#[test]
#[ignore = "long form: tests/run --long"]
fn a_file_that_is_busy_no_more() {
    let (folder, agent, n) = busy();
    let n = n as usize;
    arrive(&agent, n);
    pause(secs(70));
    folder.append("f.log", b"while the instance is returned\n");
    arrive(&agent, n + 1);
    wait_until(secs(120), "the instance is returned", || instances(&agent) == 2);
    pause(secs(1));
    folder.append("f.log", b"shared again\n");
    arrive(&agent, n + 2);
}
