//! Folders that are replaced while the agent runs: removed and recreated, renamed, mounted over.

use crate::harness::*;
use std::fs;
use std::time::{Duration, Instant};

const LIVE: &str = "run --output stdout --from beginning --state-dir state";

#[derive(Clone, Copy, Debug)]
enum How {
    Removed,
    Renamed,
}

fn replace(folder: &Folder, name: &str, how: How, round: usize) {
    match how {
        How::Removed => fs::remove_dir_all(folder.path(name)).unwrap(),
        How::Renamed => folder.rename(name, &format!("{name}.{round}")),
    }
}

/// The folder of the logs, its parent, and one three levels up are replaced repeatedly, for a path and for a glob.
/// Fails when the removal of a folder is missed because the agent holds a file in it open, when only the folder
/// itself is watched, or when the tail of a path that now has another file is not woken.
#[test]
fn replaced_folders_are_seen_within_a_second() {
    const LEVELS: [&str; 3] = ["a/b/c/logs", "a/b/c", "a"];
    let folder = Folder::new();
    let mut count = 0;
    let mut both = |text: &str| {
        for name in ["f.log", "g1.log"] {
            folder.write(&format!("a/b/c/logs/{name}"), format!("{name} {text}\n"));
        }
        count += 2;
        count
    };
    let first = both("first");
    let agent = folder.agent_line(LIVE).arg("a/b/c/logs/f.log").arg("a/b/c/logs/g*.log").start();
    agent.wait_lines(first);
    let mut took: Vec<(Duration, &str, How)> = Vec::new();
    for round in 0..3 {
        for level in LEVELS {
            for how in [How::Removed, How::Renamed] {
                replace(&folder, level, how, round);
                let wanted = both(&format!("{level} {how:?} {round}"));
                let begun = Instant::now();
                agent.wait_lines(wanted);
                took.push((begun.elapsed(), level, how));
            }
        }
    }
    // The median of each kind: one slow round on a busy machine is no failure.
    for level in LEVELS {
        for wanted in ["Removed", "Renamed"] {
            let mut of: Vec<Duration> = took
                .iter()
                .filter(|(_, l, how)| *l == level && format!("{how:?}") == wanted)
                .map(|(time, ..)| *time)
                .collect();
            of.sort();
            assert!(of[of.len() / 2] < secs(1), "{level} {wanted}: {of:?}");
        }
    }
    let lines = agent.lines();
    let mut different = lines.clone();
    different.sort();
    different.dedup();
    assert_eq!(lines.len(), different.len(), "each line once");
}

/// Fails when only the regular walk finds out that a file system was mounted over a followed folder, or unmounted
/// from it.
#[test]
fn mounts_over_a_folder_are_noticed() {
    need("unshare");
    let folder = Folder::new();
    folder.write("logs/f.log", "below\n");
    const SHELL: &str = "wait_for() { until [ -e \"$1\" ]; do sleep 0.02; done; }\n\
        (wait_for mount; mount -t tmpfs none logs; echo above >logs/f.log; wait_for unmount; umount -l logs) >&2 &\n\
        exec \"$@\"";
    let namespaces = ["unshare", "--map-root-user", "--mount", "sh", "-c", SHELL, "sh"];
    let agent = folder.agent_line(LIVE).arg("logs/*.log").wrapped_in(namespaces).start();
    agent.wait_lines(1);
    for (deed, line) in [("mount", "above"), ("unmount", "not hidden any more")] {
        if deed == "unmount" {
            folder.write("logs/g.log", "not hidden any more\n"); // still hidden from the agent
        }
        folder.write(deed, "");
        let begun = Instant::now();
        wait_until(SOON, deed, || agent.lines().iter().any(|l| l == line.as_bytes()));
        assert!(begun.elapsed() < secs(5), "{deed}: {:?}", begun.elapsed());
    }
    assert_eq!(agent.lines().len(), 3, "{:?}", agent.lines());
}
