//! Odd but real: clocks that are set back, repeated entries, a folder that is not there yet, no inotify, a refused record.

use super::loss::{lost, numbered_file};
use super::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

/// Writes into a file of the journal folder.
pub fn patch(folder: &Folder, name: &str, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(folder.path("journal").join(name)).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

/// The clock is set back between two files and within one. Fails when the order of a chain follows the clock, or an entry is
/// missing or sent again.
#[test]
fn a_clock_that_is_set_back() {
    let folder = with_journal("");
    numbered_file(&folder, "system@1.journal", "a", &[1, 2, 3]);
    numbered_file(&folder, "system@2.journal", "b", &[4, 5, 6]);
    for (name, head_realtime) in [("system@1.journal", 2_000_000_000_000_000u64), ("system@2.journal", 1)] {
        patch(&folder, name, 72, &[7; 16]); // the ID of their numbers
        patch(&folder, name, 184, &head_realtime.to_le_bytes());
    }
    let back = |i: u64| export(100 - i, &[("MESSAGE", format!("c {i}").as_bytes())]);
    write_journal(&folder.path("journal/system.journal"), true, &(0..5).flat_map(back).collect::<Vec<_>>());
    assert_eq!(once(&folder), [numbered("a", 0..3), numbered("b", 0..3), numbered("c", 0..5)].concat());
    assert_eq!(once(&folder), [""; 0]);
}

/// Before systemd 248, a rotation may repeat the last entry of a file (systemd#18005). Fails when it is sent twice, or when an
/// entry that only looks alike is left out.
#[test]
fn the_last_entry_of_a_file_again() {
    let folder = with_journal("");
    append(&folder, "system@1.journal", "a", 3);
    let again =
        |n: u64| export(n, &[("MESSAGE", format!("a {n}").as_bytes()), ("_SYSTEMD_UNIT", b"a.service")]);
    let entries = [again(2), export(3, &[("MESSAGE", b"b")]), again(2)].concat();
    write_journal(&folder.path("journal/system.journal"), true, &entries);
    assert_eq!(once(&folder), ["a 0", "a 1", "a 2", "b", "a 2"]);
    assert_eq!(once(&folder), [""; 0]);
    append(&folder, "user-1000.journal", "a", 1);
    assert_eq!(once(&folder), ["a 0"], "another chain");
}

/// Fails when the first entry of a new boot is left out or sent twice (systemd#38912), where a file holds two boots.
#[test]
fn the_first_entry_of_a_boot() {
    let folder = with_journal("format = \"json\"");
    let second = String::from_utf8(messages("b", 2)).unwrap().replace("0123456789abcdef", "fedcba9876543210");
    let entries = [messages("a", 2), second.into_bytes()].concat();
    write_journal(&folder.path("journal/system.journal"), true, &entries);
    let lines: Vec<serde_json::Value> =
        once(&folder).iter().map(|l| serde_json::from_str(l).unwrap()).collect();
    let found: Vec<_> = lines.iter().map(|e| (e["MESSAGE"].as_str(), e["_BOOT_ID"].as_str())).collect();
    let boots = ["0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"].map(Some);
    let want = [("a 0", boots[0]), ("a 1", boots[0]), ("b 0", boots[1]), ("b 1", boots[1])];
    assert_eq!(found, want.map(|(message, boot)| (Some(message), boot)));
    assert_eq!(once(&folder), [""; 0]);
}

/// Fails when a journal folder that appears later, as that of a new namespace does, is only read after a restart.
#[test]
fn a_folder_that_appears_later() {
    let folder = with_journal("");
    std::fs::remove_dir(folder.path("journal")).unwrap();
    let mut agent = folder.agent_line(LIVE).start();
    let state = folder.path("state");
    wait_status(&folder, &state, "it waits", |s| s["files"][0]["state"] == "waiting for the journal");
    folder.mkdir("journal");
    append(&folder, "system.journal", "a", 3);
    agent.wait_lines(3);
    append(&folder, "system.journal", "b", 2);
    let lines = agent.wait_lines(5);
    assert_eq!(lines[3..], [b"b 0", b"b 1"]);
    agent.stop().expect_code(0);
    assert_eq!(lost(&folder), 0);
}

/// Fails when a folder that is removed or renamed, and created again, is not watched: its entries then come with the next walk,
/// up to 30 s later.
#[test]
fn a_folder_that_is_created_again() {
    let folder = with_journal("");
    append(&folder, "system.journal", "a", 2);
    let mut agent = folder.agent_line(LIVE).start();
    agent.wait_lines(2);
    let mut n = 2;
    for round in 0..4 {
        match round % 2 {
            0 => std::fs::remove_dir_all(folder.path("journal")).unwrap(),
            _ => folder.rename("journal", "journal.old"),
        }
        if round < 2 {
            pause(secs(2)); // it notices that there is none
        }
        folder.mkdir("journal");
        append(&folder, "system.journal", "b", 1);
        agent.wait_lines(n + 1);
        for _ in 0..3 {
            let from = Instant::now();
            append(&folder, "system.journal", "c", 1);
            n += 1;
            agent.wait_lines(n + 1);
            assert!(from.elapsed() < secs(5), "{round}: {:?}", from.elapsed());
        }
        n += 1;
        let _ = std::fs::remove_dir_all(folder.path("journal.old"));
    }
    agent.stop().expect_code(0);
}

/// Someone removes the file that is being written; its writer continues in it. Fails when what is written then is lost, or when the
/// file is still held once there is another.
#[test]
fn the_live_file_is_removed() {
    let folder = with_journal("");
    let mut writer = JournalWriter::start(&folder.path("journal/system.journal"), true);
    writer.write(&messages("a", 2));
    let mut agent = folder.agent_line(LIVE).start();
    agent.wait_lines(2);
    folder.remove("journal/system.journal");
    pause(secs(1)); // it is noticed
    writer.write(&messages("b", 2));
    assert_eq!(agent.wait_lines(4)[2..], [b"b 0", b"b 1"]);
    writer.write(&messages("c", 2));
    drop(writer);
    append(&folder, "system.journal", "d", 2);
    let mut lines = agent.wait_lines(8);
    lines.sort();
    assert_eq!(lines[4..], [b"c 0", b"c 1", b"d 0", b"d 1"]);
    let held = || agent.open_files().iter().any(|f| f.to_string_lossy().ends_with("(deleted)"));
    wait_until(SOON, "the removed file is closed", || !held());
    agent.stop().expect_code(0);
}

/// A box that loses power often: each time, journald begins another series of numbers, and keeps up to 100 files. Fails when the
/// oldest are forgotten, and sent again.
#[test]
fn many_series_of_numbers() {
    let folder = with_journal("");
    for n in 0..90 {
        append(&folder, &format!("system@{n}.journal"), &format!("file {n}"), 1);
    }
    assert_eq!(once(&folder).len(), 90);
    assert_eq!(once(&folder), [""; 0]);
}

/// A copy or another name of the live file, as a backup leaves it. Fails when the live file is not read any more, now or after a
/// restart, or an entry is sent twice.
#[test]
fn a_copy_of_the_live_file() {
    for (name, is_link) in
        [("system@1.journal", false), ("backup.journal", false), ("system@1.journal", true)]
    {
        let folder = with_journal("");
        let path = |name: &str| folder.path("journal").join(name);
        append(&folder, "system.journal", "a", 2);
        let mut agent = folder.agent_line(LIVE).start();
        agent.wait_lines(2);
        match is_link {
            true => std::fs::hard_link(path("system.journal"), path(name)).unwrap(),
            false => drop(std::fs::copy(path("system.journal"), path(name)).unwrap()),
        }
        pause(secs(1)); // it is listed
        append(&folder, "system.journal", "b", 2);
        assert_eq!(agent.wait_lines(4)[2..], [b"b 0", b"b 1"], "{name}");
        agent.stop().expect_code(0);
        append(&folder, "system.journal", "c", 2);
        assert_eq!(once(&folder), ["c 0", "c 1"], "{name}");
        append(&folder, "system.journal", "d", 2);
        assert_eq!(once(&folder), ["d 0", "d 1"], "{name}");
    }
}

/// Fails when the journal is not polled if no inotify instance is left.
#[test]
fn without_inotify() {
    let folder = with_journal("");
    append(&folder, "system.journal", "a", 2);
    let script = "echo 0 >/proc/sys/user/max_inotify_instances; exec \"$@\"";
    let unshare = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"];
    let mut agent = folder.started_by(unshare, LIVE).start();
    agent.wait_lines(2);
    append(&folder, "system.journal", "b", 2);
    agent.wait_lines(4);
    folder.rename("journal/system.journal", "journal/system@1.journal");
    append(&folder, "system.journal", "c", 1);
    assert_eq!(agent.wait_lines(5)[4], b"c 0");
    agent.stop().expect_code(0);
}

/// One record of 60 KB among 500, where the topic accepts 20 KB. Fails when it stops the journal, when other records
/// are rejected with it, or when it is not a dead letter.
#[test]
fn a_record_that_the_broker_refuses() {
    let broker = Broker::shared(Version::V44);
    let topic = broker.topic_with(1, &["max.message.bytes=20000"]);
    let folder = to_kafka(&topic, "");
    append(&folder, "system.journal", "a", 250);
    let path = folder.path("journal/system.journal");
    write_journal(&path, true, &export(300, &[("MESSAGE", &[b'L'; 60_000])]));
    append(&folder, "system.journal", "b", 250);
    let mut agent = folder.agent_line("run -c c.toml").start();
    topic.wait_count(500);
    append(&folder, "system.journal", "c", 5);
    topic.wait_count(505);
    agent.stop().expect_code(0);
    let values: Vec<_> = topic.values().into_iter().map(|v| String::from_utf8(v).unwrap()).collect();
    assert_eq!(values, [numbered("a", 0..250), numbered("b", 0..250), numbered("c", 0..5)].concat());
    let letters = std::fs::read_to_string(folder.path("state/dead-letter")).unwrap();
    assert_eq!(letters.lines().count(), 1);
    assert!(letters.contains("system.journal") && letters.contains("LLLL"), "{letters:.300}");
}
