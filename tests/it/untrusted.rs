//! Untrusted file names and log contents, and the permissions of the state folder. Hostile peers are in `hostile.rs`,
//! symlinks in `symlinks.rs`.

use crate::harness::*;
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Forges a log line and clears the screen unless it is escaped.
const NAME: &str = "a\n2026-01-01T00:00:00Z ERROR forged\x1b[2J.log";
const LINE: &str = "\x1b]0;owned\x07\x1b[2J\u{9b}31m\u{202e}a line\n";

#[track_caller]
fn is_clean(what: &str, text: &str) {
    let active = |c: char| c.is_control() && c != '\n' || "\u{9b}\u{202e}".contains(c);
    assert!(!text.contains(active) && !text.contains("\n2026-01-01"), "{what}: {text:?}");
    assert!(!text.contains("owned"), "{what} shows the contents of a line: {text}");
}

/// Fails when a newline or escape sequence in a path, or any part of a line, reaches a terminal through the log,
/// `status` or `check`.
#[test]
fn names_are_escaped_and_lines_are_not_shown() {
    let folder = Folder::new();
    let kafka = Scripted::start(1);
    kafka.topic("t", &[0]);
    kafka.script(|r| if r.api == Api::Produce { Reply::Code(10) } else { Reply::Default });
    let long = format!("{LINE}\x1b[1m{}\n", "x".repeat(5000));
    fs::write(folder.path(NAME), format!("{LINE}{long}")).unwrap();
    fs::create_dir(folder.path("dir\n\x1b[31m.log")).unwrap();
    let (state, logs) = (folder.path("state"), folder.path("*.log"));
    let config = format!(
        "[agent]\nstate_dir = {state:?}\n[kafka]\nbrokers = [{:?}]\ntopic = \"t\"\n[[files]]\npaths = [{logs:?}]\n\
         start = \"beginning\"\nmax_line = 4096\nformat = \"json\"\n",
        kafka.address()
    );
    folder.write("c.toml", config);
    let mut agent = folder.agent_line("run -c c.toml").env("RUST_LOG", "trace").start();
    wait_status(&folder, &state, "three lines are refused", |s| s["totals"]["dead_lettered"] == 3);
    agent.signal(Signal::USR1);
    agent.wait_log("status: ", SOON);
    for args in
        ["status -c c.toml", "status --json -c c.toml", "check -c c.toml", "check --connect -c c.toml"]
    {
        let done = folder.agent_line(args).run().expect_code(0);
        is_clean(args, &String::from_utf8(done.stdout).unwrap());
        is_clean(args, &done.stderr);
    }
    // Root can read everything, so the path must become something other than a file.
    folder.remove(NAME);
    fs::create_dir(folder.path(NAME)).unwrap();
    pause(secs(1));
    let done = agent.stop().expect_code(0);
    is_clean("the log", &done.stderr);
    let status = folder.agent_line("status -c c.toml").run().expect_code(0);
    is_clean("status post mortem", &String::from_utf8(status.stdout).unwrap());
    // Kept for inspection, and safe to print.
    let kept = fs::read_to_string(state.join("dead-letter")).unwrap();
    assert!(kept.contains("owned") && !kept.contains(['\x1b', '\x07']), "{kept}");
}

/// Whatever the umask is (the unit's removes all access for others). Fails when node_exporter, which runs as another
/// user, may not read the file.
#[test]
fn metrics_are_world_readable() {
    let folder = Folder::new();
    let (textfile, log) = (folder.path("m.prom"), folder.write("f.log", "x\n"));
    let config = format!("[metrics]\ntextfile = {textfile:?}\n[[files]]\npaths = [{log:?}]\n");
    folder.write("c.toml", config);
    let starter = ["sh", "-c", r#"umask 077; exec "$0" "$@""#];
    let mut agent = folder.started_by(starter, "run --output stdout --state-dir state -c c.toml").spawn();
    wait_until(PATIENT, "the metrics are written", || textfile.exists());
    let mode = fs::metadata(&textfile).unwrap().permissions().mode();
    agent.kill();
    assert_eq!(mode & 0o777, 0o644);
}

/// Even with an empty umask. Fails when a file gets whatever mode the umask leaves.
#[test]
fn state_is_private() {
    let folder = Folder::new();
    let kafka = Scripted::start(1);
    kafka.topic("t", &[0]);
    kafka.script(|r| if r.api == Api::Produce && r.nth == 1 { Reply::Code(10) } else { Reply::Default });
    let (state, log) = (folder.path("deep/state"), folder.write("f.log", "x\n"));
    let config = format!(
        "[agent]\nstate_dir = {state:?}\ndelivery = \"exactly-once\"\n[kafka]\nbrokers = [{:?}]\ntopic = \"t\"\n\
         [[files]]\npaths = [{log:?}]\nstart = \"beginning\"\n",
        kafka.address()
    );
    folder.write("c.toml", config);
    for line in ["", "y\n", "z\n"] {
        folder.append("f.log", line);
        let starter = ["sh", "-c", r#"umask 0; exec "$0" "$@""#];
        folder.started_by(starter, "run --once -c c.toml").run().expect_code(0);
    }
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&state), 0o700);
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(&state).unwrap() {
        let entry = entry.unwrap();
        names.push(entry.file_name().into_string().unwrap());
        assert_eq!(mode(&entry.path()), 0o600, "{names:?}");
    }
    names.sort();
    assert_eq!(names, ["air", "dead-letter", "flights", "lock", "offsets", "offsets.previous"]);
}

/// A name in the state folder is a symlink to somewhere else. Fails when a save writes through it.
#[test]
fn a_save_replaces_a_symlink() {
    let folder = Folder::new();
    folder.write("f.log", "x\n");
    let other = folder.write("other", "mine\n");
    for round in 0..3 {
        let done =
            folder.agent_line("run --once --output stdout --from beginning --state-dir state f.log").run();
        done.expect_code(0);
        folder.append("f.log", "y\n");
        for name in ["offsets.tmp", "offsets.previous"] {
            let _ = fs::remove_file(folder.path("state").join(name));
            std::os::unix::fs::symlink(&other, folder.path("state").join(name)).unwrap();
        }
        assert_eq!(fs::read_to_string(&other).unwrap(), "mine\n", "round {round}");
    }
    assert_eq!(fs::metadata(&other).unwrap().nlink(), 1);
}
