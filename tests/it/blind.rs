//! A file system treated as one without events: FUSE (bindfs). It has no birth times either, and gets another device
//! number when remounted; NFS and SMB behave like this.

use crate::harness::*;
use crate::limits::{Jail, RUN};
use std::io::Write;
use std::process::{Command, Stdio};

/// The agent sees the folder `real` as `seen` while it runs. Creating the file `die` kills the mount's server;
/// creating `back` starts another one.
fn start(folder: &Folder, from: &str) -> Jail {
    need("bindfs");
    assert!(std::path::Path::new("/dev/fuse").exists(), "this test needs /dev/fuse (modprobe fuse)");
    folder.mkdir("real");
    folder.mkdir("seen");
    let run = RUN.replace("--from beginning", &format!("--from {from}"));
    let script = "bindfs -f real seen & server=$!
        while ! stat -f seen | grep -q fuse; do sleep 0.05; done
        wait_for() { while ! [ -e $1 ]; do sleep 0.05; done; }
        (wait_for die; kill -9 $server; wait_for back; umount -l seen; bindfs real seen) &";
    Jail::start(folder, &format!("{script}\n{run} 'seen/*.log'"))
}

/// Runs a shell in the agent's namespaces; `input` is its standard input.
pub fn beside(agent: &Jail, script: &str, input: &[u8]) {
    need("nsenter");
    let mut shell = Command::new("nsenter")
        .args(["--preserve-credentials", "-U", "-m", "-t", &agent.id().to_string(), "sh", "-ec", script])
        .current_dir("/")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    shell.stdin.take().unwrap().write_all(input).unwrap();
    assert!(shell.wait().unwrap().success(), "{script}");
}

fn append(folder: &Folder, agent: &Jail, name: &str, lines: &Lines) {
    beside(agent, &format!("cat >>{}/seen/{name}", folder.root().display()), &lines.bytes());
}

/// Appends, new files, a rotation: each line once, within seconds. Fails when the agent waits for events (30 s).
#[test]
fn polled_for_changes() {
    let folder = Folder::new();
    folder.write("real/a.log", Lines::new("a", 0..10).bytes());
    let agent = start(&folder, "beginning");
    agent.wait_lines(10);
    for round in 1..6u64 {
        let begun = std::time::Instant::now();
        append(&folder, &agent, "a.log", &Lines::new("a", round * 10..round * 10 + 10));
        append(&folder, &agent, "new.log", &Lines::new("new", round * 10..round * 10 + 10));
        agent.wait_lines(10 + round as usize * 20);
        assert!(begun.elapsed() < secs(8), "{:?}", begun.elapsed());
        let script = format!("cd {}/seen; mv a.log a.log.{round}; : >a.log", folder.root().display());
        beside(&agent, &script, b"");
    }
    let seen = agent.wait_lines(110);
    Delivered::of(seen).assert_exactly_once(&[&Lines::new("a", 0..60), &Lines::new("new", 10..60)]);
}

/// Killed, remounted, started: what was rotated meanwhile is read to its end, and nothing twice. Fails when the
/// device number is part of a file's identity, or when old rotated files count as new because they have no birth
/// time.
#[test]
fn remounted() {
    let folder = Folder::new();
    let hours_ago = std::time::SystemTime::now() - secs(7200);
    for i in 1..=20 {
        let old = folder.write(&format!("real/a.log.{i}"), Lines::new(&format!("old{i}"), 0..10).bytes());
        std::fs::File::open(old).unwrap().set_modified(hours_ago).unwrap();
    }
    folder.write("real/a.log", Lines::new("a", 0..10).bytes());
    let mut arrived = Vec::new();
    for round in 0..3u64 {
        let agent = start(&folder, "end");
        wait_until(SOON, "it has looked", || agent.log().contains("following 1 file"));
        let before = if round == 0 { 0 } else { 10 };
        agent.wait_lines(before);
        append(&folder, &agent, "a.log", &Lines::new("a", round * 20 + 10..round * 20 + 20));
        agent.wait_lines(before + 10);
        pause(secs(2)); // positions are saved within a second
        arrived.extend(agent.lines());
        drop(agent);
        // Killed from outside its namespace, it may live a moment longer and hold the lock of the state folder.
        wait_until(SOON, "it is gone", || {
            Command::new("flock")
                .arg("-n")
                .arg(folder.path("state/lock"))
                .arg("true")
                .status()
                .unwrap()
                .success()
        });
        folder.append("real/a.log", Lines::new("a", round * 20 + 20..round * 20 + 30).bytes());
        crate::rotation::chain(&folder, "real/a.log");
        folder.append("real/a.log", b"");
    }
    Delivered::of(arrived).assert_exactly_once(&[&Lines::new("a", 10..60)]);
}

/// The mount's server dies and returns, as an NFS server does: what was written meanwhile is read, and nothing twice.
/// Fails when a stale handle is retried forever, or an inaccessible file counts as deleted.
#[test]
fn mount_gone_for_a_while() {
    let folder = Folder::new();
    folder.write("real/a.log", Lines::new("a", 0..10).bytes());
    let agent = start(&folder, "beginning");
    agent.wait_lines(10);
    folder.write("die", b"");
    wait_until(SOON, "it is logged", || agent.log().contains("cannot be read now"));
    folder.append("real/a.log", Lines::new("a", 10..20).bytes());
    pause(secs(4));
    folder.write("back", b"");
    agent.wait_lines(20);
    append(&folder, &agent, "a.log", &Lines::new("a", 20..30));
    Delivered::of(agent.wait_lines(30)).assert_exactly_once(&[&Lines::new("a", 0..30)]);
    assert!(!agent.log().contains("lost"), "{}", agent.log());
}
