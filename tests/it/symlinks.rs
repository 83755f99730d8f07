//! Names that are links: swapped, swapped above the file, dangling.

use crate::harness::*;
use std::os::unix::fs::symlink;

const LIVE: &str = "run --output stdout --from beginning --state-dir state";

/// Fails when a link is resolved once, or only its target's changes make a wake.
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

/// Fails when only the last part of a path is looked at for a link.
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

/// Fails when a link to nothing ends a tail for good, or is looked at in a loop.
#[test]
fn a_link_to_nothing() {
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
