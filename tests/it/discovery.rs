//! Which files are found: globs, new folders, permissions, odd names, two patterns.

use crate::harness::*;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

const LIVE: &str = "run --output stdout --from beginning";

/// A config with these `[[files]]` settings; `DIR` is the folder.
fn config(folder: &Folder, text: &str) {
    folder.write("c.toml", text.replace("DIR", &folder.root().display().to_string()));
}

fn sorted(mut lines: Vec<Vec<u8>>) -> Vec<String> {
    lines.sort();
    lines.iter().map(|l| String::from_utf8_lossy(l).into_owned()).collect()
}

/// A pattern covers the state folder and the metrics. Fails when the agent sends what it writes there itself, which never
/// ends.
#[test]
fn the_agents_own_files_are_left_out() {
    let folder = Folder::new();
    config(
        &folder,
        "[agent]\nstate_dir = \"DIR/all/state\"\n[kafka]\nbrokers = [\"127.0.0.1:1\"]\ntopic = \"t\"\n[metrics]\ntextfile = \"DIR/all/m.prom\"\n\
         [[files]]\npaths = [\"DIR/all/**\"]\nstart = \"beginning\"\n",
    );
    folder.write("all/a.log", "first\n");
    let agent = folder.agent_line("run -c c.toml --output stdout").start();
    agent.wait_lines(1);
    wait_until(PATIENT, "the metrics are written", || folder.path("all/m.prom").exists());
    // Positions are saved once a second, and each save replaces the file.
    for n in 0..4 {
        pause(millis(1100));
        folder.append("all/a.log", format!("{n}\n"));
    }
    let all = sorted(agent.wait_lines(5));
    assert_eq!(all, ["0", "1", "2", "3", "first"]);
    let checked = folder.agent_line("check -c c.toml").run();
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(said.contains("all/a.log") && !said.contains("state/offsets"), "{said}");
}

/// Fails when `**` does not descend into new folders, or `exclude` matches whole paths only.
#[test]
fn folders_below_folders() {
    let folder = Folder::new();
    config(
        &folder,
        "[[files]]\npaths = [\"DIR/top/**/*.log\"]\nexclude = [\"no*.log\", \"*.gz\"]\nstart = \"beginning\"\n",
    );
    folder.write("top/a.log", "top\n");
    folder.write("top/x/y/b.log", "deep\n");
    folder.write("top/x/no.log", "no\n");
    folder.write("top/x/b.txt", "no\n");
    let agent = folder.agent_line("run -c c.toml --output stdout --state-dir state").start();
    agent.wait_lines(2);
    folder.write("top/new/z/c.log", "new\n");
    agent.wait_lines(3);
    std::fs::remove_dir_all(folder.path("top/new")).unwrap();
    folder.write("top/new/z/c.log", "again\n");
    assert_eq!(sorted(agent.wait_lines(4)), ["again", "deep", "new", "top"]);
}

/// Fails when a file matched by two sources is read by both.
#[test]
fn two_sources_match_one_file() {
    let folder = Folder::new();
    config(
        &folder,
        "[[files]]\npaths = [\"DIR/*.log\"]\nstart = \"beginning\"\n[[files]]\npaths = [\"DIR/a.*\", \"DIR/./a.log\"]\nstart = \"beginning\"\n",
    );
    folder.write("a.log", Lines::new("f", 0..100).bytes());
    let agent = folder.agent_line("run -c c.toml --output stdout --state-dir state").start();
    agent.wait_lines(100);
    folder.append("a.log", Lines::new("f", 100..200).bytes());
    agent.wait_lines(200);
    pause(millis(300));
    Delivered::of(agent.lines()).assert_exactly_once(&[&Lines::new("f", 0..200)]);
}

/// Fails when a name goes through a `String`.
#[test]
fn names_that_are_not_utf8() {
    let folder = Folder::new();
    let name = OsStr::from_bytes(b"a\xff\nb.log");
    std::fs::write(folder.path(name), "odd\n").unwrap();
    let mut agent = folder.agent_line(LIVE).arg("*.log").arg("--state-dir=state").start();
    agent.wait_lines(1);
    agent.stop().expect_code(0);
    let again = folder.agent_line(LIVE).arg(name).arg("--state-dir=state").arg("--once").run().expect_code(0);
    assert!(again.lines().is_empty(), "its position is known");
    assert!(again.stderr.lines().all(|l| !l.contains('\u{fffd}') || l.contains("log")), "{}", again.stderr);
}

/// Fails when opening one of them blocks or ends the agent.
#[test]
fn only_regular_files_are_read() {
    let folder = Folder::new();
    let fifo = folder.path("fifo.log");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(folder.path("socket.log")).unwrap();
    folder.mkdir("folder.log");
    std::os::unix::fs::symlink("/dev/null", folder.path("device.log")).unwrap();
    folder.write("f.log", "line\n");
    let mut agent = folder.agent_line(LIVE).arg("*.log").start();
    assert_eq!(agent.wait_lines(1), [b"line".to_vec()]);
    let log = agent.stop().expect_code(0).stderr;
    for name in ["fifo.log", "socket.log", "device.log"] {
        assert_eq!(log.matches(name).count(), 1, "{log}");
    }
    std::fs::remove_file(&fifo).unwrap();
}

/// Fails when a FIFO in place of a file with unread bytes is called a regular file.
#[test]
fn a_fifo_in_place_of_a_file() {
    let folder = Folder::new();
    let once = "run --output stdout --once --state-dir state f.log";
    folder.write("f.log", "line\n");
    folder.agent_line(once).run().expect_code(0);
    folder.remove("f.log");
    let fifo = folder.path("f.log");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let done = folder.agent_line(once).run().expect_code(1);
    let (refused, regular) = ("is a FIFO, not a regular file; it is not followed", "is a regular file now");
    assert!(done.stderr.contains(refused) && !done.stderr.contains(regular), "{}", done.stderr);
}

/// Runs as a user who is subject to file permissions. Fails when an unreadable file is retried forever, keeps another
/// from being delivered, or is not reflected in the exit code.
#[test]
fn once_skips_an_unreadable_file() {
    need("setpriv");
    let folder = Folder::new();
    let bin = folder.path("logagent");
    std::fs::copy(binary(), &bin).unwrap();
    folder.write("no.log", "secret\n");
    folder.write("yes.log", Lines::new("y", 0..100).bytes());
    for (name, mode) in [("no.log", 0), ("yes.log", 0o644), ("logagent", 0o755), (".", 0o755)] {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(folder.path(name), mode).unwrap();
    }
    let root = rustix::process::geteuid().is_root();
    let mut command = std::process::Command::new(if root { "setpriv" } else { "env" });
    if root {
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    }
    let done = command
        .arg(&bin)
        .args(["run", "--once", "--output", "stdout"])
        .args([folder.path("no.log"), folder.path("yes.log")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(done.stdout == Lines::new("y", 0..100).bytes(), "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(last.contains("no.log") && last.contains("could not be read"), "{said}");
}

/// Runs as a user who may not list one folder and not search another. Fails when the patterns in them "match nothing", or
/// the literal path "does not exist".
#[test]
fn folders_that_cannot_be_listed_or_searched() {
    need("setpriv");
    let folder = Folder::new();
    let bin = folder.path("logagent");
    std::fs::copy(binary(), &bin).unwrap();
    folder.write("list/f.log", "x\n");
    folder.write("search/f.log", "x\n");
    let paths = ["list/*.log", "search/*.log", "search/f.log"].map(|p| folder.path(p).display().to_string());
    let config =
        format!("[kafka]\nbrokers = [\"127.0.0.1:1\"]\ntopic = \"t\"\n[[files]]\npaths = {paths:?}\n");
    folder.write("c.toml", config);
    for (name, mode) in
        [("list", 0o711), ("search", 0o744), ("logagent", 0o755), (".", 0o755), ("c.toml", 0o644)]
    {
        std::fs::set_permissions(folder.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let root = rustix::process::geteuid().is_root();
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(if root { "setpriv" } else { "env" });
        if root {
            command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        }
        let done = command.arg(&bin).args(args).current_dir(folder.root()).output().unwrap();
        String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned()
    };
    let checked = run(&["check", "-c", "c.toml"]);
    let ran = run(&["run", "--once", "--output", "stdout", &paths[0], &paths[1], &paths[2]]);
    for name in ["list", "search"] {
        let at = folder.path(name).display().to_string();
        let warned =
            format!("nothing in {at} is read: this user may not list or search it (add the agent's user");
        assert_eq!(checked.matches(&warned).count(), 1, "{checked}");
        assert_eq!(ran.matches(&format!("{at}: this user may not list or search it")).count(), 1, "{ran}");
    }
    assert!(!ran.contains("there is no such file"), "{ran}");
}

/// Runs as a user who is subject to file permissions. Fails when each attempt is logged, or the file is not retried.
#[test]
fn an_unreadable_file_is_read_once_it_is_readable() {
    need("setpriv");
    let folder = Folder::new();
    folder.write("f.log", Lines::new("f", 0..100).bytes());
    let mode =
        |mode| std::fs::set_permissions(folder.path("f.log"), std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0);
    let bin = folder.path("logagent");
    std::fs::copy(binary(), &bin).unwrap();
    for path in [folder.root(), &bin] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let log = std::fs::File::create(folder.path("err")).unwrap();
    let out = std::fs::File::create(folder.path("out")).unwrap();
    let root = rustix::process::geteuid().is_root();
    let mut command = std::process::Command::new(if root { "setpriv" } else { "env" });
    if root {
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    }
    let mut child = command
        .arg(&bin)
        .args(["run", "--output", "stdout", "--from", "beginning"])
        .arg(folder.path("f.log"))
        .stdout(out)
        .stderr(log)
        .spawn()
        .unwrap();
    let said = || std::fs::read_to_string(folder.path("err")).unwrap();
    wait_until(SOON, "one line", || said().contains("cannot be read now"));
    pause(secs(3));
    assert_eq!(said().matches("cannot be read now").count(), 1, "{}", said());
    mode(0o644);
    wait_until(SOON, "all is read", || {
        std::fs::read(folder.path("out")).unwrap() == Lines::new("f", 0..100).bytes()
    });
    wait_until(SOON, "it is logged", || said().contains("readable again"));
    let _ = child.kill();
    let _ = child.wait();
}

/// Fails when the agent reads its own output.
#[test]
fn its_own_log_is_not_followed() {
    let folder = Folder::new();
    folder.write("f.log", "line\n");
    let err = std::fs::File::create(folder.path("agent.log")).unwrap();
    let out = std::fs::File::create(folder.path("out.log")).unwrap();
    let mut child = std::process::Command::new(binary())
        .current_dir(folder.root())
        .args(["run", "--output", "stdout", "--from", "beginning", "*.log"])
        .env("RUST_LOG", "debug")
        .stdout(out)
        .stderr(err)
        .spawn()
        .unwrap();
    let read = || std::fs::read(folder.path("out.log")).unwrap();
    wait_until(SOON, "the line", || read() == b"line\n");
    pause(secs(2));
    let log = std::fs::read_to_string(folder.path("agent.log")).unwrap();
    let grown = read();
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!(grown, b"line\n");
    assert!(log.lines().count() < 30, "{log}");
}

/// `must_exist`, `reopen = false`. Fails when one of them is ignored. `follow = false` is in `reload.rs`.
#[test]
fn must_exist_and_reopen() {
    let folder = Folder::new();
    config(&folder, "[[files]]\npaths = [\"DIR/no.log\"]\nmust_exist = true\n");
    folder.agent_line("run -c c.toml --output stdout --state-dir s1").run().expect_code(1);
    config(&folder, "[[files]]\npaths = [\"DIR/f.log\"]\nreopen = false\nstart = \"beginning\"\n");
    folder.write("f.log", "one\n");
    let agent = folder.agent_line("run -c c.toml --output stdout --state-dir s2").start();
    agent.wait_lines(1);
    folder.rename("f.log", "away");
    folder.write("f.log", "other\n");
    folder.append("away", "two\n");
    assert_eq!(agent.wait_lines(2), [b"one".to_vec(), b"two".to_vec()]);
    pause(secs(1));
    assert_eq!(agent.lines().len(), 2);
}

/// A folder is in the way of the new file while lines still arrive in the renamed one, and across a restart. Fails
/// when a new file that cannot be opened holds up the old one, or is reported as readable in between.
#[test]
fn the_rotated_file_is_read_while_the_path_cannot_be_opened() {
    let folder = Folder::new();
    folder.write("f.log", Lines::new("f", 0..10).bytes());
    let args = "run --output stdout --from beginning --state-dir state f.log";
    let mut agent = folder.agent_line(args).start();
    agent.wait_lines(10);
    folder.rename("f.log", "f.log.1");
    folder.mkdir("f.log");
    agent.wait_log("cannot be read now", SOON);
    for round in 1..4 {
        folder.append("f.log.1", Lines::new("f", round * 10..round * 10 + 10).bytes());
        agent.wait_lines(round as usize * 10 + 10);
        pause(millis(700));
    }
    assert!(!agent.log().contains("readable again"), "{}", agent.log());
    let mut seen = agent.stop().expect_code(0).lines();
    folder.append("f.log.1", Lines::new("f", 40..50).bytes());
    let mut agent = folder.agent_line(args).start();
    agent.wait_lines(10);
    assert_eq!(agent.log().matches("cannot be read now").count(), 1, "{}", agent.log());
    std::fs::remove_dir(folder.path("f.log")).unwrap();
    folder.write("f.log", Lines::new("f", 50..60).bytes());
    agent.wait_lines(20);
    agent.wait_log("readable again", SOON);
    seen.extend(agent.stop().expect_code(0).lines());
    Delivered::of(seen).assert_exactly_once(&[&Lines::new("f", 0..60)]);
    assert_eq!(status_json(&folder, &folder.path("state"))["totals"]["lost_bytes"], 0);
}
