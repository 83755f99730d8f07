//! Entries that journald removed before they were read: none of them may go uncounted, and none may count twice.

use super::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

pub fn lost(folder: &Folder) -> u64 {
    status_json(folder, &folder.path("state"))["totals"]["lost_entries"].as_u64().unwrap()
}

/// Puts a file of these entries into the journal, with these numbers: all files of one journald share a counter.
pub fn numbered_file(folder: &Folder, name: &str, word: &str, numbers: &[u64]) {
    let path = folder.path("being-made.journal");
    write_journal(&path, true, &messages(word, numbers.len() as u64));
    let bytes = std::fs::read(&path).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    let put = |n: u64, at: usize| file.write_all_at(&n.to_le_bytes(), at as u64).unwrap();
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    put(*numbers.last().unwrap(), 160);
    put(numbers[0], 168);
    let (mut at, mut numbers) = (u64_at(88) as usize, numbers.iter());
    while at <= u64_at(136) as usize {
        if bytes[at] == 3 {
            put(*numbers.next().unwrap(), at + 16);
        }
        at += (u64_at(at + 8) as usize).next_multiple_of(8);
    }
    assert!(numbers.next().is_none());
    folder.rename("being-made.journal", &format!("journal/{name}"));
}

/// How the contents of a file vanish while a reader has it open.
#[derive(Clone, Copy, Debug)]
enum Vacuum {
    Punched,
    Truncated,
}

impl Vacuum {
    fn remove(self, path: &Path) {
        let file = File::options().write(true).open(path).unwrap();
        match self {
            Vacuum::Truncated => file.set_len(0).unwrap(),
            Vacuum::Punched => {
                need("fallocate");
                let len = file.metadata().unwrap().len().to_string();
                let done = Command::new("fallocate").args(["-p", "-o", "0", "-l", &len]).arg(path).status();
                assert!(done.unwrap().success());
            }
        }
        std::fs::remove_file(path).unwrap();
    }
}

/// Fails when vacuuming an open file, by a hole or by truncation, ends the agent, sends garbage, or is not counted, or when
/// later files are not read.
#[test]
fn vacuumed_while_it_is_open() {
    for vacuum in [Vacuum::Punched, Vacuum::Truncated] {
        let folder = with_journal("");
        append(&folder, "system.journal", "a", 5);
        let mut agent = folder.agent_line(LIVE).start();
        agent.wait_lines(5);
        agent.pause();
        append(&folder, "system.journal", "b", 4);
        folder.rename("journal/system.journal", "journal/system@1.journal");
        vacuum.remove(&folder.path("journal/system@1.journal"));
        numbered_file(&folder, "system.journal", "n", &[10, 11]);
        agent.resume();
        let lines = agent.wait_lines(7);
        assert_eq!(lines[5..], [b"n 0", b"n 1"], "{vacuum:?}");
        let state = folder.path("state");
        wait_status(&folder, &state, "the loss", |s| s["totals"]["lost_entries"] == 4);
        agent.stop().expect_code(0);
        assert_eq!(lost(&folder), 4, "{vacuum:?}");
    }
}

/// Fails when the loss of a file that is removed while no agent runs is not counted, or counted twice.
#[test]
fn while_no_agent_runs() {
    let folder = with_journal("");
    append(&folder, "system.journal", "a", 10);
    assert_eq!(once(&folder).len(), 10);
    append(&folder, "system.journal", "b", 7);
    folder.remove("journal/system.journal");
    numbered_file(&folder, "system.journal", "n", &[18, 19, 20]);
    assert_eq!(once(&folder), numbered("n", 0..3));
    assert_eq!(lost(&folder), 7);
    assert_eq!(once(&folder), [""; 0]);
    assert_eq!(lost(&folder), 7);
}

/// The journals of system and users share a counter. Fails when a gap is not counted because another file has smaller
/// numbers, or a number that the other file has counts as lost.
#[test]
fn between_the_entries_of_another_file() {
    let folder = with_journal("");
    numbered_file(&folder, "system@1.journal", "a", &[1, 2, 4, 5]);
    numbered_file(&folder, "user-1000.journal", "u", &[3, 6]);
    assert_eq!(once(&folder).len(), 6);
    assert_eq!(lost(&folder), 0);
    // Meanwhile a file of the user with 8, 10 and 11 came and went.
    numbered_file(&folder, "system.journal", "b", &[7, 9, 12]);
    folder.rename("journal/user-1000.journal", "journal/user-1000@1.journal");
    numbered_file(&folder, "user-1000.journal", "v", &[13]);
    assert_eq!(once(&folder), [numbered("b", 0..3), numbered("v", 0..1)].concat());
    assert_eq!(lost(&folder), 3);
    assert_eq!(once(&folder), [""; 0]);
    assert_eq!(lost(&folder), 3);
}

/// Vacuumed while no broker answers, with restarts before and after the agent sees it. Fails when a restart counts the loss
/// again or forgets it, when the agent crashes, or when existing entries do not arrive exactly once.
#[test]
fn while_the_broker_is_down() {
    let broker = Broker::own(Version::V44);
    let topic = broker.topic(1);
    let folder = to_kafka(&topic, "delivery = \"exactly-once\"");
    let run = "run -c c.toml";
    let state = folder.path("state");
    append(&folder, "system.journal", "a", 5);
    folder.agent_line(&format!("{run} --once")).run_for(PATIENT).expect_code(0);
    broker.stop();
    let mut agent = folder.agent_line(run).start();
    append(&folder, "system.journal", "b", 4);
    wait_status(&folder, &state, "it is read", |s| s["totals"]["read"] == 9);
    agent.pause();
    append(&folder, "system.journal", "c", 6);
    folder.rename("journal/system.journal", "journal/system@1.journal");
    Vacuum::Punched.remove(&folder.path("journal/system@1.journal"));
    numbered_file(&folder, "system.journal", "n", &[16, 17]);
    agent.resume();
    wait_status(&folder, &state, "the loss", |s| s["totals"]["lost_entries"] == 6);
    agent.stop();
    // The 4 that were read but not sent are gone as well.
    let mut agent = folder.agent_line(run).start();
    wait_status(&folder, &state, "what is left is read", |s| s["totals"]["lost_entries"] == 10);
    agent.stop();
    broker.restart();
    folder.agent_line(&format!("{run} --once")).run_for(PATIENT).expect_code(0);
    let values: Vec<_> = topic.values().into_iter().map(|v| String::from_utf8(v).unwrap()).collect();
    assert_eq!(values, [numbered("a", 0..5), numbered("n", 0..2)].concat());
    assert_eq!(lost(&folder), 10);
}

/// Fails when files of a journal in memory, which a reboot empties, are waited for, count as lost, keep the new ones from being
/// read, or when losses are no longer counted because the numbers restart.
#[test]
fn a_journal_in_memory_after_a_reboot() {
    let folder = with_journal("");
    append(&folder, "system.journal", "a", 10);
    assert_eq!(once(&folder).len(), 10);
    folder.remove("journal/system.journal");
    std::fs::remove_dir(folder.path("journal")).unwrap();
    folder.mkdir("journal");
    append(&folder, "system.journal", "b", 3);
    assert_eq!(once(&folder), numbered("b", 0..3));
    assert_eq!(lost(&folder), 0);
    assert_eq!(once(&folder), [""; 0]);
    let kept = std::fs::read_to_string(folder.path("state/offsets")).unwrap();
    assert_eq!(kept.matches(" open path=").count(), 1, "the position of the old file is given up: {kept}");
    folder.remove("journal/system.journal");
    numbered_file(&folder, "system.journal", "c", &[7, 8]);
    assert_eq!(once(&folder), numbered("c", 0..2));
    assert_eq!(lost(&folder), 3);
}

/// Fails when entries of a file that may not be read count as lost, or when nothing says that it may not be read.
#[test]
fn a_file_that_may_not_be_read() {
    let folder = with_journal("");
    std::fs::set_permissions(folder.root(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let set_mode = |name: &str, mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(folder.path(name), mode).unwrap();
    };
    numbered_file(&folder, "system@1.journal", "a", &[1, 2, 5]);
    numbered_file(&folder, "user-1000.journal", "u", &[3, 4, 6, 7]);
    set_mode("journal/user-1000.journal", 0o600);
    set_mode("journal/system@1.journal", 0o644);
    let user: PathBuf = folder.path("journal/user-1000.journal");
    let setpriv = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups"];
    let mut agent = folder.started_by(setpriv, LIVE).spawn();
    agent.wait_lines(3);
    let state = folder.path("state");
    let path = user.to_str().unwrap().to_owned();
    let denied = move |s: &serde_json::Value| {
        let file = s["files"].as_array().unwrap().iter().find(|f| f["path"] == path);
        file.is_some_and(|f| f["last_error"].as_str().is_some_and(|e| e.contains("systemd-journal")))
    };
    wait_status(&folder, &state, "the file is reported", denied);
    numbered_file(&folder, "being-moved", "b", &[8]);
    set_mode("journal/being-moved", 0o644);
    folder.rename("journal/being-moved", "journal/system.journal");
    agent.wait_lines(4);
    pause(millis(700)); // longer than the confirmation of a gap takes
    assert_eq!(lost(&folder), 0);
    agent.stop().expect_code(0);
}

/// Fails when a rotated file that could not be read is taken for one that was read and forgotten, once the agent has restarted:
/// its entries would be missing, and not be counted.
#[test]
fn a_rotated_file_that_becomes_readable() {
    let folder = with_journal("");
    std::fs::set_permissions(folder.root(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let set_mode = |name: &str, mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(folder.path(name), mode).unwrap();
    };
    for (name, word, numbers, mode) in
        [("system@1.journal", "a", [1, 2], 0o600), ("system.journal", "b", [3, 4], 0o644)]
    {
        numbered_file(&folder, name, word, &numbers);
        oddities::patch(&folder, name, 72, &[7; 16]); // the ID of their numbers
        set_mode(&format!("journal/{name}"), mode);
    }
    let setpriv = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups"];
    let mut agent = folder.started_by(setpriv, LIVE).spawn();
    agent.wait_lines(2);
    agent.stop().expect_code(0);
    set_mode("journal/system@1.journal", 0o644);
    let mut agent = folder.started_by(setpriv, LIVE).spawn();
    assert_eq!(agent.wait_lines(2), [b"a 0", b"a 1"]);
    agent.stop().expect_code(0);
}
