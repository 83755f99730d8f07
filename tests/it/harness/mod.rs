//! Shared by the tests of the whole program: the agent as a child process, real brokers, a scripted one, a proxy
//! between the two, numbered lines and the check of their delivery. Every wait has a condition and a limit. A missing
//! tool fails the test with an explanation; it never skips it.

mod agent;
mod broker;
mod dice;
mod foreign;
pub mod journal_files;
mod lines;
mod listener;
mod manager;
mod netns;
pub mod page;
mod proxy;
mod ptrace;
mod records;
mod scripted;
mod self_check;
pub mod wire;

pub use agent::{Agent, Done, Folder, Setup, binary, optimized, status_json, wait_status};
pub use broker::{Broker, Cluster, Record, Topic, Version};
pub use dice::Dice;
pub use foreign::Foreign;
pub use lines::{Delivered, Lines, Verdict, Writer, per_second};
pub use listener::{accept_while, forward, full_backlog, ignore, listen};
pub use netns::{NetNs, Traffic};
pub use proxy::{Mode, Proxy, rewrite};
pub use ptrace::Halted;
pub use scripted::{Api, Produced, Reply, Request, Scripted};

use std::{
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, Once},
    thread,
    time::{Duration, Instant},
};

pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
pub const fn micros(n: u64) -> Duration {
    Duration::from_micros(n)
}
pub const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// The limit for anything that takes a moment; generous, since the machine may be busy. Not a measurement.
pub const SOON: Duration = secs(20);
/// The limit for anything that involves a broker.
pub const PATIENT: Duration = secs(90);

/// The only place that sleeps: between two checks of a condition, or where a test is about time passing.
#[allow(clippy::disallowed_methods)]
pub fn pause(time: Duration) {
    thread::sleep(time);
}

/// A lock that a failed test may have held.
fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(|e| e.into_inner())
}

/// Waits for `condition` and fails the test with `what` if it does not hold within `limit`.
#[track_caller]
pub fn wait_until(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(limit, what, || condition().then_some(()));
}

/// Like [`wait_until`], with a value.
#[track_caller]
pub fn wait_for<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    limit_the_suite();
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        pause(millis(10));
    }
}

/// Fails, saying what to do, unless `tool` can be started.
#[track_caller]
pub fn need(tool: &str) {
    let found = Command::new("sh")
        .args(["-c", "command -v \"$1\"", "sh", tool])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|s| s.success());
    assert!(found, "this test needs `{tool}`, which is not installed; `tests/run` installs it");
}

/// Ends the process when the whole suite exceeds `LOGAGENT_TEST_LIMIT` seconds. Each wait has its own limit; this
/// catches a test that hangs without waiting.
pub fn limit_the_suite() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let limit = std::env::var("LOGAGENT_TEST_LIMIT").ok().and_then(|s| s.parse().ok()).unwrap_or(1500);
        thread::spawn(move || {
            pause(secs(limit));
            eprintln!("the tests have run for {limit} s, which is too long: giving up");
            agent::kill_all();
            std::process::abort();
        });
    });
}
