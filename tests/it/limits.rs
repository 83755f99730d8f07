//! Exhausted system limits: no inotify, no descriptors, no space, a full queue. Limits are set for the agent only: by
//! prlimit, or in user and mount namespaces of its own.

use crate::harness::*;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// An agent started by a script in its own namespaces, as root there; its output goes to files, and dropping this
/// ends all of it.
pub struct Jail {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Jail {
    /// `$A` is the agent.
    pub fn start(folder: &Folder, script: &str) -> Jail {
        let (out, err) = (folder.path("stdout"), folder.path("stderr"));
        let child = Command::new("unshare")
            .args([
                "--user",
                "--map-root-user",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "sh",
                "-ec",
                script,
            ])
            .current_dir(folder.root())
            .env("A", binary())
            .stdin(Stdio::null())
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap())
            .spawn()
            .unwrap();
        Jail { child, out, err }
    }
    pub fn lines(&self) -> Vec<Vec<u8>> {
        let bytes = std::fs::read(&self.out).unwrap();
        bytes.split_inclusive(|b| *b == b'\n').map(|l| l.strip_suffix(b"\n").unwrap_or(l).to_vec()).collect()
    }
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.err).unwrap()
    }
    #[track_caller]
    pub fn wait_lines(&self, n: usize) -> Vec<Vec<u8>> {
        let enough = || self.lines().len() >= n;
        let end = std::time::Instant::now() + SOON;
        while !enough() {
            assert!(
                std::time::Instant::now() < end,
                "{} of {n} lines; its log:\n{}",
                self.lines().len(),
                self.log()
            );
            pause(millis(20));
        }
        pause(millis(50));
        self.lines()
    }
    /// The id of a process in the agent's namespaces.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Jail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub const RUN: &str = "exec \"$A\" run --output stdout --from beginning --state-dir state";

/// Fails when the agent exits, does not fall back to polling, or logs this for each file.
#[test]
fn no_inotify_instance_and_no_watch_left() {
    for limit in ["max_inotify_instances", "max_inotify_watches"] {
        let folder = Folder::new();
        let mut want = Vec::new();
        for i in 0..5 {
            let lines = Lines::new(&format!("f{i}"), 0..20);
            folder.append(&format!("{i}.log"), Lines { range: 0..10, ..lines.clone() }.bytes());
            want.push(lines);
        }
        // A user namespace has its own limits.
        let few = if limit.ends_with("watches") { 1 } else { 0 };
        let agent = Jail::start(&folder, &format!("echo {few} >/proc/sys/user/{limit}\n{RUN} '*.log'"));
        agent.wait_lines(50);
        for (i, lines) in want.iter().enumerate() {
            folder.append(&format!("{i}.log"), Lines { range: 10..20, ..lines.clone() }.bytes());
        }
        folder.append("new.log", Lines::new("new", 0..10).bytes());
        want.push(Lines::new("new", 0..10));
        Delivered::of(agent.wait_lines(110)).assert_exactly_once(&want.iter().collect::<Vec<_>>());
        let said = agent.log();
        assert_eq!(said.matches("sysctl").count(), 1, "{said}");
        assert!(said.contains("fs.inotify."), "{said}");
    }
}

/// Fails when a queue overflow does not trigger a full scan.
#[test]
fn the_event_queue_overflows() {
    let folder = Folder::new();
    let names = ["a", "b"];
    for name in names {
        folder.write(&format!("{name}.log"), b"");
    }
    let agent = folder.agent_line("run --output stdout --from beginning").arg("*.log").start();
    agent.pause();
    let limit: u64 =
        std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    // The kernel merges equal consecutive events, so they alternate.
    let files: Vec<File> =
        (0..2).map(|i| File::create(folder.path(format!("other{i}.txt"))).unwrap()).collect();
    for i in 0..limit + 1000 {
        files[i as usize % 2].set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }
    for name in names {
        folder.append(&format!("{name}.log"), Lines::new(name, 0..100).bytes());
    }
    folder.append("c.log", Lines::new("c", 0..100).bytes());
    agent.resume();
    let begun = std::time::Instant::now();
    let seen = agent.wait_lines(300);
    assert!(begun.elapsed() < secs(10), "{:?}", begun.elapsed());
    Delivered::of(seen).assert_exactly_once(&[
        &Lines::new("a", 0..100),
        &Lines::new("b", 0..100),
        &Lines::new("c", 0..100),
    ]);
}

/// The agent holds 32 descriptors back, and has 40. Fails when no file is read then, or the limit is not named.
#[test]
fn fewer_descriptors_than_are_held_back() {
    need("prlimit");
    let folder = Folder::new();
    for i in 0..60 {
        folder.write(&format!("{i:02}.log"), "line\n");
    }
    let agent =
        Jail::start(&folder, &format!("exec prlimit --nofile=40:40 sh -ec '{RUN} \"$@\"' sh '*.log'"));
    assert_eq!(agent.wait_lines(1)[0], b"line");
    wait_until(SOON, "the advice", || agent.log().contains("(os error 24); raise the limit of descriptors"));
}

/// Fails when the agent uses up all descriptors, gives up on a file, or logs every attempt.
#[test]
fn more_files_than_descriptors() {
    need("prlimit");
    let folder = Folder::new();
    let names: Vec<String> = (0..200).map(|i| format!("{i:03}.log")).collect();
    for name in &names {
        folder.write(name, Lines::new(name, 0..5).bytes());
    }
    let agent =
        Jail::start(&folder, &format!("exec prlimit --nofile=100:100 sh -ec '{RUN} \"$@\"' sh '*.log'"));
    // Removed files that are open are closed, which makes room for others.
    let mut seen = 0;
    wait_until(secs(60), "every file is read", || {
        let lines = agent.lines();
        if lines.len() > seen {
            seen = lines.len();
            for name in &names {
                let prefix = format!("{name} ").into_bytes();
                if lines.iter().filter(|l| l.starts_with(&prefix)).count() == 5 {
                    let _ = std::fs::remove_file(folder.path(name));
                }
            }
        }
        lines.len() >= 1000
    });
    let want: Vec<Lines> = names.iter().map(|n| Lines::new(n, 0..5)).collect();
    Delivered::of(agent.lines()).assert_exactly_once(&want.iter().collect::<Vec<_>>());
    assert!(folder.path("state/offsets").exists());
}

/// Fails when a momentary lack of descriptors disables status for good, or makes its thread spin.
#[test]
fn no_descriptor_for_the_status_socket() {
    need("prlimit");
    let folder = Folder::new();
    folder.write("f.log", b"");
    let agent = folder.agent_line("run --output stdout --from beginning --state-dir state f.log").start();
    let state = folder.path("state");
    let live = || status_json(&folder, &state)["live"] == true;
    assert!(live());
    let limit = |soft: &str| {
        let pid = agent.id().to_string();
        let done = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={soft}:")]).status();
        assert!(done.unwrap().success());
    };
    limit("3");
    let cpu = agent.cpu();
    let client = std::os::unix::net::UnixStream::connect(state.join("status")).unwrap();
    agent.wait_log("status socket: ", SOON);
    pause(secs(3));
    assert!(agent.cpu() - cpu < millis(200), "{:?} in 3 s", agent.cpu() - cpu);
    assert_eq!(agent.log().matches("status socket: ").count(), 1, "{}", agent.log());
    limit("1000");
    wait_until(SOON, "status answers again", live);
    agent.wait_log("status socket: answers again", SOON);
    drop(client);
}

/// Fails when a full disk stops delivery, or every failed save is logged.
#[test]
fn the_state_folder_is_full() {
    let folder = Folder::new();
    folder.mkdir("state");
    folder.write("f.log", b"");
    let script = format!(
        "mount -t tmpfs -o size=64k,mode=700 none state\n{RUN} f.log & pid=$!\n\
         while ! [ -e go ]; do sleep 0.05; done\n(dd if=/dev/zero of=state/filler bs=1k 2>/dev/null || true)\n\
         touch full\nwhile ! [ -e room ]; do sleep 0.05; done\nrm state/filler\nwhile ! [ -e end ]; do sleep 0.05; done\n\
         cat state/offsets >saved; kill $pid; wait $pid"
    )
    .replace("exec ", "");
    let agent = Jail::start(&folder, &script);
    folder.append("f.log", Lines::new("f", 0..10).bytes());
    agent.wait_lines(10);
    pause(secs(2));
    folder.write("go", b"");
    wait_until(SOON, "the disk is full", || folder.path("full").exists());
    for i in 1..6 {
        folder.append("f.log", Lines::new("f", i * 10..i * 10 + 10).bytes());
        agent.wait_lines(10 + i as usize * 10);
        pause(millis(700));
    }
    wait_until(SOON, "it is logged", || agent.log().contains("save positions"));
    assert_eq!(agent.log().matches("ERROR").count(), 1, "{}", agent.log());
    folder.write("room", b"");
    folder.append("f.log", Lines::new("f", 60..70).bytes());
    wait_until(SOON, "it is over", || agent.log().contains("saved again"));
    folder.write("end", b"");
    Delivered::of(agent.wait_lines(70)).assert_exactly_once(&[&Lines::new("f", 0..70)]);
}

/// Fails when a polled source needs an event.
#[test]
fn polled() {
    let folder = Folder::new();
    folder.write(
        "c.toml",
        format!(
            "[[files]]\npaths = [\"{}/*.log\"]\npoll = \"200ms\"\nstart = \"beginning\"\n",
            folder.root().display()
        ),
    );
    folder.write("a.log", Lines::new("a", 0..10).bytes());
    let agent = folder.agent_line("run -c c.toml --output stdout --state-dir state").start();
    agent.wait_lines(10);
    for round in 1..10 {
        let begun = std::time::Instant::now();
        folder.append("a.log", Lines::new("a", round * 10..round * 10 + 10).bytes());
        agent.wait_lines(10 + round as usize * 10);
        assert!(begun.elapsed() < secs(2), "{:?}", begun.elapsed());
    }
    crate::rotation::chain(&folder, "a.log");
    folder.append("a.log", Lines::new("a", 100..110).bytes());
    Delivered::of(agent.wait_lines(110)).assert_exactly_once(&[&Lines::new("a", 0..110)]);
}

/// A folder that temporarily cannot be searched. Fails when inaccessible counts as deleted.
#[test]
fn a_folder_that_temporarily_cannot_be_searched() {
    need("setpriv");
    let folder = Folder::new();
    folder.write("logs/f.log", Lines::new("f", 0..10).bytes());
    std::fs::copy(binary(), folder.path("logagent")).unwrap();
    let script = "chmod 755 . logagent; mkdir -p state\n\
         exec setpriv --bounding-set -all --inh-caps -all \
         ./logagent run --output stdout --from beginning --state-dir state logs/f.log";
    let mode = |mode| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(folder.path("logs"), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let agent = Jail::start(&folder, script);
    agent.wait_lines(10);
    mode(0);
    pause(secs(3));
    mode(0o755);
    folder.append("logs/f.log", Lines::new("f", 10..20).bytes());
    crate::rotation::chain(&folder, "logs/f.log");
    folder.append("logs/f.log", Lines::new("f", 20..30).bytes());
    Delivered::of(agent.wait_lines(30)).assert_exactly_once(&[&Lines::new("f", 0..30)]);
    assert!(agent.log().lines().count() < 10, "{}", agent.log());
}
