//! The command line as a person or a script sees it: exit codes, messages, help. No delivery.

use crate::harness::*;
use rustix::process::Signal;
use std::{ffi::OsStr, os::unix::ffi::OsStrExt, process::Command, time::Instant};

/// Fails when a wrong command line exits with another code than 64, or without a message.
#[test]
fn a_wrong_command_line_exits_64() {
    let folder = Folder::new();
    for args in [
        "",
        "no-such-command",
        "run --no-such-option f.log",
        "run --from middle f.log",
        "run --driver fast f.log",
        "run --output file f.log",
        "tail",
        "tail --from",
        "send --topic t value",
        "send --brokers 127.0.0.1:1 value",
        "send --brokers 127.0.0.1:1 --topic t --acks 2 value",
        "send --brokers 127.0.0.1:1 --topic t --partition x value",
        "check --connect=perhaps",
    ] {
        let done = folder.agent_line(args).run();
        assert_eq!(done.code(), Some(64), "logagent {args}: {}", done.stderr);
        assert!(done.stdout.is_empty(), "logagent {args}: errors go to standard error");
        assert!(done.stderr.starts_with("logagent: "), "logagent {args}: {:?}", done.stderr);
    }
}

/// Fails when help or version go to standard error, help omits a command, or `help run` follows a file of that name.
#[test]
fn help_and_version_exit_0() {
    let folder = Folder::new();
    let help = folder.agent(["--help"]).run().expect_code(0);
    let text = String::from_utf8(help.stdout).unwrap();
    for word in ["run", "tail", "send", "check", "status"] {
        assert!(text.contains(word), "--help names `{word}`:\n{text}");
        let done = folder.agent([word, "--help"]).run().expect_code(0);
        assert!(!done.stdout.is_empty() && done.stderr.is_empty(), "{word} --help");
        assert_eq!(folder.agent(["help", word]).run().expect_code(0).stdout, done.stdout, "help {word}");
    }
    let version = folder.agent(["--version"]).run().expect_code(0);
    assert_eq!(
        String::from_utf8(version.stdout).unwrap().trim(),
        concat!("logagent ", env!("CARGO_PKG_VERSION"))
    );
}

/// `--opt value` and `--opt=value`; a path that is not UTF-8. Fails when one form is not accepted, or the path is
/// altered.
#[test]
fn options_in_both_forms_and_paths_of_any_bytes() {
    let folder = Folder::new();
    let name = OsStr::from_bytes(b"caf\xe9 =.log");
    std::fs::write(folder.path(name), "x\n").unwrap();
    for args in [["--output", "stdout"].as_slice(), &["--output=stdout"]] {
        let done = folder.agent(["run", "--once"]).arg(args[0]);
        let done = args.iter().skip(1).fold(done, |setup, arg| setup.arg(arg)).arg(name).run().expect_code(0);
        assert_eq!(done.stdout, b"x\n");
    }
}

/// A config with six different mistakes: a value, a key, a type, another value, a pattern, a position. Fails when one
/// hides another (an early return in the walk), or when the position is missing.
#[test]
fn six_mistakes_are_named_at_once() {
    let folder = Folder::new();
    let config = "\
[agent]
state_dir = \"/var/lib/logagent\"
memory = \"lots\"
[kafka]
brokers = [\"127.0.0.1:9092\"]
topic = \"web_log\"
akcs = \"all\"
client_id = 7
compression = \"zip\"
[[files]]
paths = [\"/var/log/*.log\"]
start = \"begining\"
multiline = { start = \"(\" }
";
    folder.write("c.toml", config);
    for command in ["run", "check"] {
        let done = folder.agent([command, "-c", "c.toml"]).run().expect_code(78);
        for (line, word) in
            [(3, "lots"), (7, "akcs"), (8, "client_id"), (9, "zip"), (12, "begining"), (13, "(")]
        {
            let place = format!("c.toml:{line}");
            let found = done
                .stderr
                .lines()
                .any(|l| l.starts_with("logagent: ") && l.contains(&place) && l.contains(word));
            assert!(found, "{command}: no line with {place} and {word:?} in:\n{}", done.stderr);
        }
        for word in ["acks", "beginning"] {
            assert!(
                done.stderr.contains(word),
                "{command} says what to write instead: {word}\n{}",
                done.stderr
            );
        }
        assert!(done.stdout.is_empty());
    }
}

/// Fails when a default replaces an incomplete or unreadable config.
#[test]
fn an_incomplete_or_unreadable_config_exits_78() {
    let folder = Folder::new();
    let file = folder.write("f.log", "x\n");
    let config = |kafka: &str| {
        let state = folder.path("state");
        format!("[agent]\nstate_dir = {state:?}\n[kafka]\n{kafka}\n[[files]]\npaths = [{file:?}]\n")
    };
    folder.write("no-brokers.toml", config("topic = \"t\""));
    folder.write("no-topic.toml", config("brokers = [\"127.0.0.1:1\"]"));
    folder.write("not-toml.toml", "[agent\n");
    for (name, word) in [
        ("no-brokers.toml", "brokers"),
        ("no-topic.toml", "topic"),
        ("not-toml.toml", "not-toml.toml:1"),
        ("none.toml", "none.toml"),
    ] {
        let done = folder.agent(["run", "-c", name]).run().expect_code(78);
        assert!(done.stderr.contains(word), "{name}: {}", done.stderr);
    }
    let args = "run -c no-brokers.toml --output stdout --once --from beginning";
    assert_eq!(folder.agent_line(args).run().expect_code(0).stdout, b"x\n");
}

/// Fails when `check` rejects a good config, or connects to a broker without being asked to.
#[test]
fn check_of_a_good_config_exits_0() {
    let folder = Folder::new();
    folder.write("logs/f.log", "x\n");
    folder.mkdir("state");
    let (state, logs) = (folder.path("state"), folder.path("logs"));
    let config = format!(
        "[agent]\nstate_dir = {state:?}\n[kafka]\nbrokers = [\"127.0.0.1:1\"]\ntopic = \"t\"\n[[files]]\npaths = [\"{}/*.log\"]\n",
        logs.display()
    );
    folder.write("c.toml", config);
    let done = folder.agent(["check", "-c", "c.toml"]).run().expect_code(0);
    assert!(String::from_utf8_lossy(&done.stdout).contains("f.log"), "check names the files it follows");
    let start = Instant::now();
    folder.agent(["check", "-c", "c.toml", "--connect"]).run_for(secs(60)).expect_code(1);
    assert!(start.elapsed() < secs(35), "a dead broker is reported within 30 s");
}

/// Fails when SIGTERM or SIGINT is not an orderly exit, or is slow when there is nothing to do.
#[test]
fn a_signal_exits_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let folder = Folder::new();
        let mut agent = folder.agent_line("run --output stdout --state-dir state f.log").start();
        let start = Instant::now();
        agent.signal(signal);
        agent.wait_exit(SOON).expect_code(0);
        assert!(start.elapsed() < secs(3), "{:?} to end when idle", start.elapsed());
    }
}

/// Fails when a second signal waits for the drain like the first, or when the first does not wait.
#[test]
fn a_second_signal_exits_1_at_once() {
    let folder = Folder::new();
    folder.write("f.log", "x\n");
    // Nothing listens on port 1: the line waits forever, and so does the drain, since no position is saved.
    let args = "run --brokers 127.0.0.1:1 --topic t --from beginning f.log";
    let mut agent = folder.agent_line(args).start();
    pause(millis(500));
    agent.signal(Signal::TERM);
    pause(millis(700));
    assert!(agent.ended().is_none(), "the first signal drains, for 10 s at most: {}", agent.log());
    let start = Instant::now();
    agent.signal(Signal::TERM);
    agent.wait_exit(SOON).expect_code(1);
    assert!(start.elapsed() < secs(2), "{:?}", start.elapsed());
}

/// Fails when `must_exist` is ignored.
#[test]
fn a_file_that_must_exist() {
    let folder = Folder::new();
    let (file, state) = (folder.path("f.log"), folder.path("state"));
    let config =
        format!("[agent]\nstate_dir = {state:?}\n[[files]]\npaths = [{file:?}]\nmust_exist = true\n");
    folder.write("c.toml", config);
    let done = folder.agent(["run", "-c", "c.toml", "--output", "stdout"]).run().expect_code(1);
    assert!(done.stderr.contains("f.log"), "{}", done.stderr);
}

/// Fails when a closed pipe causes a panic, is retried forever, or counts as success.
#[test]
fn a_closed_pipe_exits_1() {
    let folder = Folder::new();
    Lines::new("f", 0..50_000).append_to(&folder.path("f.log"));
    let script = "\"$0\" run --output stdout --from beginning f.log 2>err | head -n 1 >/dev/null; exit ${PIPESTATUS[0]}";
    let bin = binary();
    let mut shell = Command::new("bash");
    let mut shell = shell.args(["-c", script]).arg(bin).current_dir(folder.root()).spawn().unwrap();
    let status = wait_for(SOON, "logagent | head ends", || shell.try_wait().unwrap());
    let said = std::fs::read_to_string(folder.path("err")).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

/// Fails when `tail` starts anywhere but at the end, prints anything but appended lines, or needs a config or a
/// broker.
#[test]
fn tail_prints_lines_as_they_arrive() {
    let folder = Folder::new();
    folder.write("f.log", "old\n");
    let mut agent = folder.agent_line("tail f.log").spawn();
    // It cannot report readiness, so lines are appended until one is printed.
    let mut n = 0;
    wait_until(SOON, "tail prints", || {
        folder.append("f.log", format!("line {n}\n"));
        n += 1;
        pause(millis(20));
        !agent.lines().is_empty()
    });
    wait_until(SOON, "the last line is printed", || {
        agent.lines().last().is_some_and(|l| *l == format!("line {}", n - 1).as_bytes())
    });
    let lines = agent.lines();
    let expected: Vec<Vec<u8>> = (n - lines.len()..n).map(|n| format!("line {n}").into_bytes()).collect();
    assert_eq!(lines, expected);
    agent.stop().expect_code(0);

    let mut agent = folder.agent_line("tail --from beginning f.log").spawn();
    assert_eq!(agent.wait_lines(n + 1)[0], b"old");
    agent.stop().expect_code(0);
}

/// std opens /dev/null in place of a closed standard output. Fails when lines count as delivered there.
#[test]
fn a_closed_standard_output_takes_no_line() {
    let folder = Folder::new();
    folder.write("f.log", "one\n");
    let closed = ["sh", "-c", "exec \"$@\" >&-", "sh"];
    for args in ["run --once --from beginning --output stdout --state-dir state f.log", "tail f.log"] {
        let done = folder.started_by(closed, args).run().expect_code(1);
        assert!(done.stderr.contains("standard output: Bad file descriptor"), "{args}: {}", done.stderr);
    }
    let once = "run --once --from beginning --output stdout --state-dir state f.log";
    assert_eq!(folder.agent_line(once).run().expect_code(0).stdout, b"one\n");
}

/// `/` has no parent folder; a file of /proc has a size of 0. Fails when they are passed over in silence.
#[test]
fn the_root_folder_and_a_file_of_the_kernel() {
    let folder = Folder::new();
    for (path, said) in [
        ("/", "/: it is a folder, so nothing in it is read"),
        (
            "/proc/cpuinfo",
            "/proc/cpuinfo: is made by the kernel while it is read, and has no size; it is not followed",
        ),
    ] {
        let done = folder.agent_line("run --once --from beginning").arg(path).run().expect_code(0);
        assert!(done.stderr.contains(said) && done.stdout.is_empty(), "{path}: {}", done.stderr);
    }
}

/// Fails when a file in place of the state folder is reported as the lock file that "exists".
#[test]
fn a_file_as_the_state_folder() {
    let folder = Folder::new();
    folder.write("f.log", "x\n");
    let done = folder.agent_line("run --once --state-dir f.log f.log").run().expect_code(78);
    assert!(
        done.stderr.contains("f.log: it is not a folder; move it away, or name another"),
        "{}",
        done.stderr
    );
    assert!(done.stdout.is_empty());
}
