//! A file system that is taken for one without events: FUSE (bindfs). It has no birth times either, and mounted again it has
//! another device number; NFS and SMB are like this.

use crate::harness::*;
use crate::limits::{Jail, RUN};
use std::io::Write;
use std::process::{Command, Stdio};

/// The folder `real` is seen by the agent as `seen`, for as long as it runs. When there is a file `die`, the mount's server
/// dies; when there is one `back`, another takes its place.
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

/// A shell beside the agent, which sees what it sees; `input` is its standard input.
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

/// Appends, new files, a rotation: all lines once, each soon. Fails when events are waited for (30 s).
#[test]
fn looked_at_again_and_again() {
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

/// Killed, mounted again, started: what was rotated meanwhile is read to its end, and nothing again. Fails when a device
/// number is a part of who a file is, or when rotated files that were there before are new for want of a birth time.
#[test]
fn mounted_again() {
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
        // Killed from outside of its namespace, it may live a moment longer and hold the state folder.
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

/// The server of the mounted folder dies, as one of NFS does, and comes back: what was written meanwhile is read, and nothing
/// again. Fails when a stale handle is tried for ever, or what cannot be seen is taken for gone.
#[test]
fn a_mount_that_goes_away_for_a_while() {
    let folder = Folder::new();
    folder.write("real/a.log", Lines::new("a", 0..10).bytes());
    let agent = start(&folder, "beginning");
    agent.wait_lines(10);
    folder.write("die", b"");
    wait_until(SOON, "it is said", || agent.log().contains("cannot be read now"));
    folder.append("real/a.log", Lines::new("a", 10..20).bytes());
    pause(secs(4));
    folder.write("back", b"");
    agent.wait_lines(20);
    append(&folder, &agent, "a.log", &Lines::new("a", 20..30));
    Delivered::of(agent.wait_lines(30)).assert_exactly_once(&[&Lines::new("a", 0..30)]);
    assert!(!agent.log().contains("lost"), "{}", agent.log());
}
