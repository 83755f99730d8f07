//! System calls that sometimes fail, as on a failing disk or a network file system: strace injects the errors.

use crate::harness::*;
use std::thread;

/// An agent in which every third call of this kind fails in each thread, up to the thirtieth, so that a check which
/// needs many calls succeeds after that.
fn agent(folder: &Folder, call: &str, error: &str) -> Setup {
    // From the sixth on: the first five are the loader's.
    let inject = format!("inject={call}:error={error}:when=6..30+3");
    // -D: the agent itself, and not strace, is our child.
    let strace = ["strace", "-D", "-f", "-qqq", "-o", "/dev/null", "-e", &inject].map(str::to_owned);
    folder.agent_line("run --output stdout --from beginning --state-dir state f.log").wrapped_in(strace)
}

/// Appends, rotations and a restart meanwhile: each line once, in order.
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

/// Seen to fail when a failed read counts as changed bytes (`is_ok_and` in `Open::unchanged`): the file is then read
/// again.
#[test]
fn failed_checks_and_reads_change_nothing() {
    need("strace");
    let cases = [("pread64", "EIO"), ("statx", "EIO"), ("statx", "EACCES"), ("pread64", "ESTALE")];
    thread::scope(|scope| {
        for (call, error) in cases {
            scope.spawn(move || each_line_once(call, error));
        }
    });
}

/// One read of a rotated `.gz` fails, at another position each time. Fails when what was decompressed before it is
/// lost, or two half lines are joined: of 30,000 lines 21,255 arrived, and none counted as lost.
#[test]
fn a_gz_with_a_transient_read_error_is_read_to_its_end() {
    need("strace");
    need("gzip");
    let one = |nth: u32| {
        let folder = Folder::new();
        let args = "run --once --output stdout --from beginning --state-dir state f.log";
        folder.append("f.log", Lines::new("f", 0..100).bytes());
        let mut seen = folder.agent_line(args).run().expect_code(0).lines();
        folder.append("f.log", Lines::new("f", 100..20_000).bytes());
        folder.rename("f.log", "f.log.1");
        let done = std::process::Command::new("gzip").arg(folder.path("f.log.1")).status();
        assert!(done.unwrap().success());
        folder.append("f.log", Lines::new("f", 20_000..20_010).bytes());
        let (path, inject) = (folder.path("f.log.1.gz"), format!("inject=read:error=EIO:when={nth}"));
        let strace = ["strace", "-D", "-f", "-qqq", "-o", "/dev/null", "-e", &inject, "-P"];
        let strace = strace.map(str::to_owned).into_iter().chain([path.display().to_string()]);
        let done = folder.agent_line(args).wrapped_in(strace).run().expect_code(0);
        seen.extend(done.lines());
        let delivered = Delivered::of(seen);
        delivered.assert_exactly_once(&[&Lines::new("f", 0..20_010)]);
        delivered.assert_ordered();
        done.stderr.contains("cannot be read now")
    };
    thread::scope(|scope| {
        let runs: Vec<_> = (1..120).step_by(13).map(|nth| scope.spawn(move || one(nth))).collect();
        let failed = runs.into_iter().map(|r| r.join().unwrap()).filter(|f| *f).count();
        assert!(failed >= 2, "{failed} runs met the error while they read lines");
    });
}

/// The config, a file beside it or their folder cannot be read once, at a start. Fails when the exit code is 78, after
/// which systemd does not start the agent again.
#[test]
fn an_unreadable_disk_does_not_end_the_service() {
    need("strace");
    let folder = Folder::new();
    folder.append("f.log", Lines::new("f", 0..10).bytes());
    folder.write("c.toml", "[agent]\nstate_dir = \"state\"\n[[files]]\npaths = [\"f.log\"]\n");
    folder.mkdir("c.d");
    folder.write("c.d/m.toml", "[metrics]\n");
    let cases = [
        ("c.toml", "?open,openat:error=ENFILE"),
        ("c.toml", "read:error=EIO"),
        ("c.d", "getdents64:error=EIO"),
    ];
    for (at, inject) in cases.into_iter().chain([("c.d/m.toml", "?open,openat:error=ENOMEM")]) {
        let (path, inject) = (folder.path(at).display().to_string(), format!("inject={inject}"));
        let strace = ["strace", "-D", "-f", "-qqq", "-o", "/dev/null", "-e", &inject, "-P", &path];
        let config = folder.path("c.toml").display().to_string();
        let run = folder.agent(["run", "--once", "--output", "stdout", "-c", &config]);
        let done = run.wrapped_in(strace.map(str::to_owned)).run().expect_code(1);
        assert!(done.stderr.contains(&path), "{}", done.stderr);
    }
}

/// Neither copy of the saved positions can be read, at one start. Fails when the exit code is 78, or when the next start
/// loses or doubles a line.
#[test]
fn an_unreadable_state_does_not_end_the_service() {
    need("strace");
    let folder = Folder::new();
    let run = || folder.agent_line("run --once --output stdout --from beginning --state-dir state f.log");
    let mut seen = Vec::new();
    for life in 0..3 {
        folder.append("f.log", Lines::new("f", life * 10..life * 10 + 10).bytes());
        seen.extend(run().run().expect_code(0).lines());
    }
    folder.append("f.log", Lines::new("f", 30..40).bytes());
    let paths =
        ["offsets", "offsets.previous"].map(|name| folder.path("state").join(name).display().to_string());
    let strace =
        ["strace", "-D", "-f", "-qqq", "-o", "/dev/null", "-e", "inject=read:error=EIO", "-P", &paths[0]];
    let strace = strace.into_iter().chain(["-P", &paths[1]]).map(str::to_owned);
    let done = run().wrapped_in(strace).run().expect_code(1);
    assert!(done.stderr.contains("check the disk"), "{}", done.stderr);
    seen.extend(run().run().expect_code(0).lines());
    Delivered::of(seen).assert_exactly_once(&[&Lines::new("f", 0..40)]);
}
