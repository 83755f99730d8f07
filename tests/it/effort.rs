//! Allocator and kernel calls per million lines: counts of work, which are the same on a busy machine, unlike a
//! measured time. Each count is the difference of two runs, which excludes the cost of starting. Timings are the
//! benchmark's (`tests/bench/run`).

use crate::harness::*;
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

const FEW: u64 = 20_000;
const MANY: u64 = 220_000;
/// One per 40 lines; when this was written it was one per 70 to 100 lines, a few per chunk and request.
const LIMIT: u64 = 25_000;

/// Runs the agent on a file with this many lines, started through `by`, and returns what `count` reads afterwards.
fn measure(by: &[OsString], agent: &Path, lines: u64, to_kafka: bool, count: &dyn Fn(&Folder) -> u64) -> u64 {
    let folder = Folder::new();
    Lines::new("f", 0..lines).append_to(&folder.path("f.log"));
    let mut args = vec!["run".to_owned(), "--once".into(), "--state-dir".into(), "state".into()];
    let topic = to_kafka.then(|| Broker::shared(Version::V41).topic(3));
    match &topic {
        Some(topic) => args.extend(["--brokers", &topic.address, "--topic", &topic.name].map(str::to_owned)),
        None => args.extend(["--output", "stdout"].map(str::to_owned)),
    }
    let output = Command::new("timeout")
        .arg("120")
        .args(by)
        .arg(agent)
        .args(args)
        .arg("f.log")
        .current_dir(folder.root())
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{by:?}: {}: {said}", output.status);
    let arrived =
        topic.map_or_else(|| memchr::memchr_iter(b'\n', &output.stdout).count() as u64, |t| t.end_offsets());
    assert_eq!(arrived, lines, "all lines were sent: {said}");
    count(&folder)
}

/// The difference of two runs, per million lines.
fn per_million(by: &[OsString], agent: &Path, to_kafka: bool, count: &dyn Fn(&Folder) -> u64) -> u64 {
    let few = measure(by, agent, FEW, to_kafka, count);
    assert!(few > 0, "the counter works");
    let many = measure(by, agent, MANY, to_kafka, count);
    many.saturating_sub(few) * 1_000_000 / (MANY - FEW)
}

/// Always cargo's test build: the library cannot be loaded into a static binary.
fn allocations(to_kafka: bool) -> u64 {
    static LIBRARY: OnceLock<(Folder, PathBuf)> = OnceLock::new();
    let (_, library) = LIBRARY.get_or_init(|| {
        let folder = Folder::new();
        let library = folder.path("counter.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/effort/counter.rs");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let mut build = Command::new(rustc);
        build.args(["--edition", "2024", "--crate-type", "cdylib", "-O", source, "-o"]).arg(&library);
        let output = build.output().expect("rustc starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (folder, library)
    });
    let mut preload = OsString::from("LD_PRELOAD=");
    preload.push(library);
    let by = ["env".into(), preload, "COUNT_INTO=allocations".into()];
    let count = |folder: &Folder| fs::read_to_string(folder.path("allocations")).unwrap().parse().unwrap();
    per_million(&by, Path::new(env!("CARGO_BIN_EXE_logagent")), to_kafka, &count)
}

/// System calls of all threads.
fn system_calls(to_kafka: bool) -> u64 {
    need("strace");
    let by = ["strace", "-f", "-qq", "-c", "-o", "calls"].map(OsString::from);
    per_million(&by, &binary(), to_kafka, &|folder| {
        let table = fs::read_to_string(folder.path("calls")).unwrap();
        let total = table.lines().find(|line| line.ends_with(" total")).expect("strace's total");
        total.split_whitespace().nth(3).and_then(|n| n.parse().ok()).expect("strace's number of calls")
    })
}

#[track_caller]
fn assert_at_most(what: &str, measured: u64, limit: u64) {
    println!("{what} for a million lines: {measured}, at most {limit}");
    assert!(measured <= limit, "{measured} {what} for a million lines; there should be at most {limit}");
}

/// Fails when each line costs an allocation: a `vec![0u8; 16]` in `Framer::push` makes a million more.
#[test]
fn allocations_to_standard_output() {
    assert_at_most("allocations", allocations(false), LIMIT);
}

/// Fails like the one above, and when each record costs an allocation on its way to the broker.
#[test]
fn allocations_to_kafka() {
    assert_at_most("allocations", allocations(true), LIMIT);
}

/// Fails when reads or writes become small: `Chunk::MAX_LINES` of 100 makes 93,000.
#[test]
fn system_calls_to_standard_output() {
    assert_at_most("system calls", system_calls(false), LIMIT);
}

/// Fails like the one above (76,000), and when requests become small.
#[test]
fn system_calls_to_kafka() {
    assert_at_most("system calls", system_calls(true), LIMIT);
}
