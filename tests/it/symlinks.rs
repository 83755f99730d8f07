//! Symlinks: swapped, swapped above the file, dangling.

use crate::harness::*;
use std::os::unix::fs::symlink;

const LIVE: &str = "run --output stdout --from beginning --state-dir state";

/// Fails when a link is resolved only once, or only changes of its target wake the tail.
#[test]
fn thirty_swaps() {
    let folder = Folder::new();
    folder.mkdir("to");
    folder.write("to/0", b"");
    symlink("to/0", folder.path("f.log")).unwrap();
    let agent = folder.agent_line(LIVE).arg("f.log").start();
    let lines = Lines::new("f", 0..3000);
    for round in 0..30u64 {
        if round > 0 {
            folder.write(&format!("to/{round}"), b"");
            symlink(format!("to/{round}"), folder.path("next")).unwrap();
            folder.rename("next", "f.log");
        }
        folder.append("f.log", Lines { range: round * 100..(round + 1) * 100, ..lines.clone() }.bytes());
        agent.wait_lines((round as usize + 1) * 100);
    }
    let delivered = Delivered::of(agent.lines());
    delivered.assert_exactly_once(&[&lines]);
    delivered.assert_ordered();
}

/// Fails when only the last component of a path is checked for a link.
#[test]
fn a_folder_above_is_swapped() {
    let folder = Folder::new();
    folder.write("pod/v1/f.log", Lines::new("f", 0..100).bytes());
    symlink("v1", folder.path("pod/..data")).unwrap();
    symlink("..data/f.log", folder.path("pod/f.log")).unwrap();
    let agent = folder.agent_line(LIVE).arg("pod/f.log").start();
    agent.wait_lines(100);
    folder.write("pod/v2/f.log", Lines::new("f", 100..200).bytes());
    symlink("v2", folder.path("pod/..tmp")).unwrap();
    folder.rename("pod/..tmp", "pod/..data");
    Delivered::of(agent.wait_lines(200)).assert_exactly_once(&[&Lines::new("f", 0..200)]);
}

/// Fails when a dangling link ends a tail for good, or is checked in a busy loop.
#[test]
fn dangling_link() {
    let folder = Folder::new();
    symlink("later", folder.path("f.log")).unwrap();
    let agent = folder.agent_line(LIVE).arg("f.log").start();
    pause(millis(1500));
    assert!(agent.cpu() < millis(300), "{:?}", agent.cpu());
    assert!(agent.log().lines().count() < 8, "{}", agent.log());
    folder.write("later", Lines::new("f", 0..10).bytes());
    agent.wait_lines(10);
    folder.remove("later");
    let before = agent.cpu();
    pause(secs(2));
    assert!(agent.cpu() - before < millis(200), "{:?}", agent.cpu() - before);
    folder.write("later", Lines::new("f", 10..20).bytes());
    Delivered::of(agent.wait_lines(20)).assert_exactly_once(&[&Lines::new("f", 0..20)]);
}

/// A user that is neither root nor the agent's.
const OTHER: u32 = 65534;

/// Only root can give a link to another user; other users cannot create such links in a test.
fn can_change_owners() -> bool {
    rustix::process::geteuid().is_root()
}

/// A link owned by this user.
fn link_of(user: u32, folder: &Folder, target: &str, link: &str) {
    // Under its name only with its owner: the agent may look in between.
    let new = format!("{link}.new");
    symlink(target, folder.path(&new)).unwrap();
    std::os::unix::fs::lchown(folder.path(&new), Some(user), Some(user)).unwrap();
    folder.rename(&new, link);
}

/// Links owned by other users in the followed folder: to a file, to a folder, through another link, in place of a
/// followed file. Fails when one of them has another user's file sent, when a link owned by root or by the target's
/// owner is not followed, or when the log, `status` and `check` do not say why.
#[test]
fn a_link_of_another_user_is_not_followed() {
    if !can_change_owners() {
        return;
    }
    let folder = Folder::new();
    for name in
        ["secret/s.log", "secret/t.log", "theirs/f.log", "pod/v1/f.log", "logs/real.log", "logs/swap.log"]
    {
        folder.write(name, format!("{name}\n"));
    }
    for theirs in ["theirs", "theirs/f.log"] {
        std::os::unix::fs::chown(folder.path(theirs), Some(OTHER), Some(OTHER)).unwrap();
    }
    link_of(OTHER, &folder, "../secret/s.log", "logs/file.log");
    link_of(OTHER, &folder, "../secret", "logs/folder");
    link_of(0, &folder, "secret/t.log", "trusted");
    link_of(OTHER, &folder, "../trusted", "logs/over.log");
    link_of(OTHER, &folder, "../theirs/f.log", "logs/own.log");
    link_of(0, &folder, "../pod", "logs/pod");
    link_of(0, &folder, "v1", "pod/..data");
    link_of(0, &folder, "..data/f.log", "pod/f.log");
    let logs = folder.path("logs");
    folder.write(
        "c.toml",
        format!(
            "[kafka]\nbrokers = [\"127.0.0.1:1\"]\ntopic = \"t\"\n[[files]]\npaths = [\"{0}/*.log\", \"{0}/*/*.log\"]\nstart = \"beginning\"\n",
            logs.display()
        ),
    );
    let agent = folder.agent_line("run -c c.toml --output stdout --state-dir state").start();
    let texts = |lines: Vec<Vec<u8>>| {
        let mut texts: Vec<String> = lines.iter().map(|l| String::from_utf8_lossy(l).into_owned()).collect();
        texts.sort();
        texts
    };
    let followed = ["logs/real.log", "logs/swap.log", "pod/v1/f.log", "theirs/f.log"];
    assert_eq!(texts(agent.wait_lines(4)), followed);
    wait_status(&folder, &folder.path("state"), "the links are reported", |s| {
        let refused = |f: &&serde_json::Value| {
            f["state"] == "unreadable"
                && f["last_error"].as_str().is_some_and(|e| e.contains("chown -h root"))
        };
        s["files"].as_array().unwrap().iter().filter(refused).count() == 2
    });
    agent.wait_log("logs/folder belongs to user 65534", SOON);
    // In place of an open file; it is followed again when root owns the link.
    folder.remove("logs/swap.log");
    link_of(OTHER, &folder, "../secret/t.log", "logs/swap.log");
    agent.wait_log("logs/swap.log belongs to user 65534", SOON);
    assert_eq!(agent.lines().len(), 4, "{:?}", texts(agent.lines()));
    std::os::unix::fs::lchown(folder.path("logs/file.log"), Some(0), Some(0)).unwrap();
    assert!(texts(agent.wait_lines(5)).contains(&"secret/s.log".to_owned()));
    let check = folder.agent_line("check -c c.toml").run().expect_code(0);
    let said = [String::from_utf8_lossy(&check.stdout).as_ref(), check.stderr.as_str()].concat();
    for name in ["logs/folder", "logs/over.log", "logs/swap.log"] {
        assert!(said.lines().any(|l| l.contains(name) && l.contains("chown -h root")), "{name}: {said}");
    }
}

/// Rotated files next to a link's target, outside the followed folder. Fails when those are read, or those inside it
/// are not.
#[test]
fn rotated_files_elsewhere_are_not_looked_for() {
    let folder = Folder::new();
    for kind in ["elsewhere", "logs/within"] {
        folder.write(&format!("{kind}/f.log"), format!("{kind} 1\n"));
        let target = if kind == "elsewhere" { "../elsewhere/f.log" } else { "within/f.log" };
        folder.mkdir("logs");
        symlink(target, folder.path(format!("logs/{}.log", &kind[kind.len() - 4..]))).unwrap();
    }
    let mut agent = folder.agent_line(LIVE).arg("logs/*.log").start();
    agent.wait_lines(2);
    agent.stop().expect_code(0);
    for kind in ["elsewhere", "logs/within"] {
        folder.rename(&format!("{kind}/f.log"), &format!("{kind}/f.log.1"));
        folder.append(&format!("{kind}/f.log.1"), format!("{kind} 2\n"));
        folder.write(&format!("{kind}/f.log"), format!("{kind} 3\n"));
    }
    let agent = folder.agent_line(LIVE).arg("logs/*.log").start();
    let mut seen = agent.wait_lines(3);
    seen.sort();
    assert_eq!(seen, [&b"elsewhere 3"[..], b"logs/within 2", b"logs/within 3"]);
}

/// While the agent is down, a file gets its last lines and the link leads to the next one, whose name has another number.
/// Fails when only names that begin with the link's are searched.
#[test]
fn a_link_that_moves_on_while_stopped() {
    let folder = Folder::new();
    folder.write("log.0", "");
    symlink("log.0", folder.path("f")).unwrap();
    let lines = |n: u64| Lines::new("f", n * 10..(n + 1) * 10);
    let mut delivered = Vec::new();
    for round in 0..4 {
        let done = folder.agent_line(LIVE).arg("--once").arg("f").run().expect_code(0);
        delivered.extend(done.lines());
        folder.append(&format!("log.{round}"), lines(2 * round).bytes());
        folder.write(&format!("log.{}", round + 1), lines(2 * round + 1).bytes());
        folder.remove("f");
        symlink(format!("log.{}", round + 1), folder.path("f")).unwrap();
    }
    delivered.extend(folder.agent_line(LIVE).arg("--once").arg("f").run().expect_code(0).lines());
    let delivered = Delivered::of(delivered);
    delivered.assert_exactly_once(&[&Lines::new("f", 0..80)]);
    delivered.assert_ordered();
}

/// A pattern matches the logs and links to them, as `/var/log/**` does in Kubernetes. The log is rotated while no agent runs. Fails
/// when the link is followed: what was rotated is not next to it, and its lines are missing, though not counted as lost.
#[test]
fn a_link_to_a_followed_file_is_left_to_that_file() {
    for _ in 0..4 {
        let folder = Folder::new();
        folder.write("pods/a/0.log", Lines::new("f", 0..10).bytes());
        folder.mkdir("containers");
        symlink("../pods/a/0.log", folder.path("containers/a.log")).unwrap();
        let once = format!("{LIVE} --once");
        let run = || folder.agent_line(&once).arg("**/*.log").run().expect_code(0).lines();
        let mut lines = run();
        folder.append("pods/a/0.log", Lines::new("f", 10..20).bytes());
        folder.rename("pods/a/0.log", "pods/a/0.log.20261201-000000");
        folder.write("pods/a/0.log", Lines::new("f", 20..30).bytes());
        lines.extend(run());
        Delivered::of(lines).assert_exactly_once(&[&Lines::new("f", 0..30)]);
    }
}
