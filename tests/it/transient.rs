//! System calls that fail now and then, as on a tired disk or a far file system: strace makes them fail.

use crate::harness::*;
use std::thread;

/// An agent of whose calls of this kind each third of a thread fails, up to the thirtieth: a look that takes many gets
/// through then.
fn agent(folder: &Folder, call: &str, error: &str) -> Setup {
    // From the sixth on: the first are the loader's.
    let inject = format!("inject={call}:error={error}:when=6..30+3");
    // -D: the agent itself, and not strace, is our child.
    let strace = ["strace", "-D", "-f", "-qqq", "-o", "/dev/null", "-e", &inject].map(str::to_owned);
    folder.agent_line("run --output stdout --from beginning --state-dir state f.log").within(strace)
}

/// Appends, rotations and a restart meanwhile: each line comes once, in order.
fn each_line_once(call: &str, error: &str) {
    let folder = Folder::new();
    let mut seen = Vec::new();
    for life in 0..2u64 {
        let mut agent = agent(&folder, call, error).spawn();
        for round in 0..8 {
            let from = life * 80 + round * 10;
            folder.append("f.log", Lines::new("f", from..from + 10).bytes());
            wait_until(PATIENT, "the round's lines", || agent.count_lines() as u64 >= (round + 1) * 10);
            if round % 3 == 2 {
                crate::rotation::chain(&folder, "f.log");
            }
        }
        seen.extend(agent.stop().expect_code(0).lines());
    }
    let delivered = Delivered::of(seen);
    delivered.assert_exactly_once(&[&Lines::new("f", 0..160)]);
    delivered.assert_ordered();
}

/// Seen to fail with a read that fails taken for other bytes (`is_ok_and` in `Open::unchanged`): the file is read again.
#[test]
fn looks_and_reads_that_fail_change_nothing() {
    need("strace");
    let cases = [("pread64", "EIO"), ("statx", "EIO"), ("statx", "EACCES"), ("pread64", "ESTALE")];
    thread::scope(|scope| {
        for (call, error) in cases {
            scope.spawn(move || each_line_once(call, error));
        }
    });
}
