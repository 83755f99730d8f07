//! Watchdog pings to the service manager are sent while all critical threads make progress, and stop when one does not.

use crate::harness::*;
use std::time::{Duration, Instant};

/// `WatchdogSec=2s`: one ping per second.
const WATCHDOG: &str = "2000000";

#[track_caller]
fn pings_come(agent: &Agent) {
    agent.notices();
    wait_until(secs(10), "a ping", || agent.notices().iter().any(|n| n == "WATCHDOG=1"));
}

/// As systemd would see it: no ping for longer than `WatchdogSec`.
#[track_caller]
fn pings_end(agent: &Agent, why: &str) {
    let mut last = Instant::now();
    wait_until(secs(20), why, || {
        if agent.notices().iter().any(|n| n == "WATCHDOG=1") {
            last = Instant::now();
        }
        last.elapsed() > Duration::from_secs(4)
    });
}

/// Stops each thread in turn, idle and under load. Fails when the main thread pings whatever the others do: a thread
/// without a heartbeat, or one whose deadline is longer than the watchdog's.
#[test]
fn one_stopped_thread_ends_the_pings() {
    let broker = Scripted::start(1);
    broker.topic("t", &[0]);
    let folder = Folder::new();
    folder.write("f.log", "one\n");
    let args = format!(
        "run --from beginning --driver modern --topic t --brokers {} --state-dir state f.log",
        broker.address()
    );
    let agent = folder.agent_line(&args).env("WATCHDOG_USEC", WATCHDOG).start();
    wait_until(SOON, "the line is there", || broker.stored("t").len() == 1);
    for name in ["watch", "producer", "saver"] {
        pings_come(&agent);
        let halted = Halted::waiting(agent.id(), agent.thread(name));
        pings_end(&agent, &format!("{name} is stopped, and the pings continue"));
        agent.wait_log(&format!("thread {name} is stuck"), SOON);
        drop(halted);
        agent.wait_log(&format!("thread {name} has recovered"), SOON);
    }
    pings_come(&agent);
}

/// Fails when an outage, which blocks everything behind the producer, counts as a stuck thread.
#[test]
fn an_outage_does_not_stop_the_pings() {
    let folder = Folder::new();
    let lines = Lines::new("f", 0..100_000);
    folder.write("f.log", lines.bytes());
    // A host that does not answer, one that refuses connections, and one that no name server knows.
    let args = "run --from beginning --topic t --brokers 192.0.2.1:9092,127.0.0.1:1,nowhere.invalid:9092 --state-dir state f.log";
    let agent = folder.agent_line(args).env("WATCHDOG_USEC", WATCHDOG).start();
    let mut last = Instant::now();
    let end = Instant::now() + secs(12);
    while Instant::now() < end {
        if agent.notices().iter().any(|n| n == "WATCHDOG=1") {
            last = Instant::now();
        }
        assert!(last.elapsed() < Duration::from_secs(2), "systemd would have killed it:\n{}", agent.log());
    }
}
