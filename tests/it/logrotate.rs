//! The real logrotate in its modes, while the agent runs and while it is stopped.

use crate::harness::*;
use std::io::Write;
use std::process::Command;

const LIVE: &str = "run --output stdout --from beginning --state-dir state f.log";

#[track_caller]
pub fn logrotate(folder: &Folder, settings: &str) {
    need("logrotate");
    let path = folder.path("f.log");
    let text = format!("{} {{\n su root root\n rotate 20\n missingok\n{settings}\n}}\n", path.display());
    let text = if rustix::process::geteuid().is_root() { text } else { text.replace(" su root root\n", "") };
    let config = folder.write("rotate.conf", text);
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut command = Command::new("logrotate");
    command.args(["--force", "--state"]).arg(folder.path("rotate.state")).arg(&config);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Rounds of lines and a rotation; the agent keeps running, or is stopped and restarted around every second rotation.
#[track_caller]
fn rotations(settings: &str, stops: bool) {
    let folder = Folder::new();
    folder.write("f.log", b"");
    let mut agent = Some(folder.agent_line(LIVE).start());
    let (mut before, rounds, per) = (Vec::new(), 5u64, 200u64);
    for round in 0..rounds {
        folder.append("f.log", Lines::new("f", round * per..(round + 1) * per).bytes());
        match &mut agent {
            // What copytruncate copies while it is being written is inherently lost, so it is read first.
            Some(agent) if settings.contains("copytruncate") => {
                let here = (round + 1) * per - before.len() as u64;
                agent.wait_lines(here as usize);
            }
            _ => {}
        }
        if stops && round % 2 == 1 {
            before.extend(agent.take().unwrap().stop().expect_code(0).lines());
        }
        // Names with a timestamp in seconds must differ.
        pause(millis(if settings.contains("dateformat") { 1050 } else { 20 }));
        logrotate(&folder, settings);
        if agent.is_none() {
            agent = Some(folder.agent_line(LIVE).start());
        }
    }
    folder.append("f.log", Lines::new("f", rounds * per..rounds * per + 1).bytes());
    let written = Lines::new("f", 0..rounds * per + 1);
    let agent = agent.unwrap();
    wait_until(SOON, "all lines", || before.len() + agent.lines().len() >= written.count());
    pause(secs(2)); // siblings are checked once more
    let delivered = Delivered::of([before, agent.lines()].concat());
    delivered.assert_exactly_once(&[&written]);
    delivered.assert_ordered();
    assert!(!agent.log().contains("lost"), "{}", agent.log());
}

/// Fails when the old file is closed with its name.
#[test]
fn create() {
    rotations(" create 0600\n nocompress", false);
    rotations(" create 0600\n nocompress", true);
}

/// Fails when the copy is read as new lines.
#[test]
fn copytruncate() {
    rotations(" copytruncate\n nocompress", false);
    rotations(" copytruncate\n nocompress", true);
    rotations(" copytruncate\n compress", false);
    rotations(" copytruncate\n compress", true);
}

/// Fails when siblings are recognized by a number only.
#[test]
fn dateext() {
    rotations(" create 0600\n nocompress\n dateext\n dateformat -%Y%m%d-%s", true);
    rotations(" create 0600\n compress\n dateext\n dateformat -%Y%m%d-%s", true);
}

/// Fails when the unread part of a `.gz` is not read, or its read part is read again.
#[test]
fn compress() {
    rotations(" create 0600\n compress", false);
    rotations(" create 0600\n compress", true);
    rotations(" create 0600\n compress\n delaycompress", false);
    rotations(" create 0600\n compress\n delaycompress", true);
}

/// Rotated and compressed three times while stopped, in the middle of a file.
#[test]
fn compressed_while_stopped() {
    let folder = Folder::new();
    folder.write("f.log", Lines::new("f", 0..100).bytes());
    let mut agent = folder.agent_line(LIVE).start();
    let mut seen = agent.wait_lines(100);
    agent.stop().expect_code(0);
    for round in 0..3 {
        folder.append("f.log", Lines::new("f", 100 + round * 1000..100 + (round + 1) * 1000).bytes());
        logrotate(&folder, " create 0600\n compress");
    }
    folder.append("f.log", Lines::new("f", 3100..3200).bytes());
    let mut agent = folder.agent_line(LIVE).start();
    seen.extend(agent.wait_lines(3100));
    let delivered = Delivered::of(seen);
    delivered.assert_exactly_once(&[&Lines::new("f", 0..3200)]);
    delivered.assert_ordered();
    agent.stop().expect_code(0);
    assert_eq!(status_json(&folder, &folder.path("state"))["totals"]["lost_bytes"].as_u64(), Some(0));
}

/// A writer that has not reopened its log yet appends to the deleted file after gzip(1) has read it (`compress` without
/// `delaycompress`). The agent is killed, and the log is rotated once more before it starts again. Fails when the `.gz`, which is
/// shorter than what was read, is sent again.
#[test]
fn written_to_after_it_was_compressed() {
    let folder = Folder::new();
    let (first, late, second) =
        (Lines::new("f", 0..300), Lines::new("f", 300..310), Lines::new("f", 310..600));
    folder.write("f.log", first.bytes());
    let mut agent = folder.agent_line(LIVE).start();
    agent.wait_lines(300);
    let mut writer = std::fs::OpenOptions::new().append(true).open(folder.path("f.log")).unwrap();
    logrotate(&folder, " create 0600\n compress");
    writer.write_all(&late.bytes()).unwrap();
    drop(writer);
    folder.append("f.log", second.bytes());
    let mut seen = agent.wait_lines(600);
    pause(secs(2)); // saved
    seen.extend(agent.lines().split_off(seen.len()));
    agent.kill();
    logrotate(&folder, " create 0600\n compress");
    folder.append("f.log", Lines::new("f", 600..700).bytes());
    let agent = folder.agent_line(LIVE).start();
    agent.wait_lines(100);
    pause(secs(2)); // siblings are checked once more
    seen.extend(agent.lines());
    Delivered::of(seen).assert_exactly_once(&[&Lines::new("f", 0..700)]);
}

/// logrotate overwrites what it has compressed with random bytes, in whole blocks. Fails when those are sent as lines, or their
/// truncation counts as a loss.
#[test]
fn shred() {
    let folder = Folder::new();
    let mut agent = folder.agent_line(LIVE).start();
    for round in 0..3 {
        let lines = Lines::new("f", round * 100..(round + 1) * 100);
        folder.append("f.log", lines.bytes());
        agent.wait_lines((round as usize + 1) * 100);
        logrotate(&folder, " create 0600\n compress\n shred\n postrotate\n  sleep 0.5\n endscript");
    }
    folder.append("f.log", "last\n");
    agent.wait_lines(301);
    agent.stop().expect_code(0);
    assert_eq!(agent.stdout(), [Lines::new("f", 0..300).bytes(), b"last\n".to_vec()].concat());
    assert_eq!(status_json(&folder, &folder.path("state"))["totals"]["lost_bytes"].as_u64(), Some(0));
}
