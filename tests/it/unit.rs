//! The systemd unit as systemd reads it: its keys, its sandbox, and the numbers that it shares with the program. Starts nothing: that
//! is `tests/service`.

use crate::harness::*;
use std::process::Command;

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/logagent.service");

/// Exit code and everything that was said.
fn analyze(args: &[&str]) -> (Option<i32>, String) {
    need("systemd-analyze");
    let done = Command::new("systemd-analyze").env("SYSTEMD_LOG_LEVEL", "info").args(args).output().unwrap();
    let said = [done.stdout, done.stderr].concat();
    (done.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// The unit with the program of these tests, which is there.
fn unit(folder: &Folder) -> String {
    let text = std::fs::read_to_string(UNIT).unwrap();
    assert!(text.contains("ExecStart=/usr/bin/logagent "));
    let program = binary().display().to_string();
    folder.write("logagent.service", text.replace("/usr/bin/logagent", &program)).display().to_string()
}

/// Fails when a key is misspelt, has a value that systemd does not take, or is newer than the oldest systemd that the unit is for.
#[test]
fn systemd_has_nothing_to_say_about_it() {
    let folder = Folder::new();
    let (code, said) = analyze(&["verify", "--man=no", &unit(&folder)]);
    // It loads what the unit is wanted by, too, and speaks of that.
    assert!(!said.contains("logagent"), "{said}");
    assert!(code == Some(0) || !said.is_empty(), "{code:?}");
}

/// Fails when a part of the sandbox is taken away.
#[test]
fn exposure_is_one_and_a_half_at_most() {
    let folder = Folder::new();
    let (code, said) =
        analyze(&["security", "--offline=true", "--threshold=15", "--no-pager", &unit(&folder)]);
    let last = said.lines().last().unwrap_or_default();
    println!("{last}");
    assert_eq!(code, Some(0), "(systemd 250 or newer is needed) {said}");
    assert!(last.contains("Overall exposure level"), "{said}");
}

/// Fails when the unit kills an agent that is still draining, or has room for other than what the program reckons with.
#[test]
fn numbers_that_the_program_shares() {
    let text = std::fs::read_to_string(UNIT).unwrap();
    let value = |key: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("{key}")).trim_end_matches('s').to_owned()
    };
    let number = |key: &str| value(key).parse::<u64>().unwrap();
    assert!(number("TimeoutStopSec") > 10 + 10, "drain_timeout, and the last save");
    assert!(number("WatchdogSec") >= 60, "the agent wakes each 30 s");
    let program = include_str!("../../src/fdstore.rs");
    assert!(program.contains(&format!("const ROOM: usize = {};", number("FileDescriptorStoreMax"))));
    assert_eq!(value("RestartPreventExitStatus"), "64 78");
}
