//! Rotation by renaming: chains in both directions, late writers, moves, many at once. Without a broker; the real
//! logrotate and compression are in `logrotate.rs`.

use crate::harness::*;
use std::fs::{File, OpenOptions};
use std::io::Write;

const LIVE: &str = "run --output stdout --from beginning --state-dir state";

fn log(folder: &Folder, name: &str) -> File {
    OpenOptions::new().create(true).append(true).open(folder.path(name)).unwrap()
}

/// `f.log.1` becomes `.2` and so on, `f.log` becomes `.1`.
pub fn chain(folder: &Folder, name: &str) {
    for i in (1..100).rev().filter(|i| folder.path(format!("{name}.{i}")).exists()) {
        folder.rename(&format!("{name}.{i}"), &format!("{name}.{}", i + 1));
    }
    folder.rename(name, &format!("{name}.1"));
}

#[track_caller]
fn all_once_in_order(lines: Vec<Vec<u8>>, written: &[&Lines]) {
    let delivered = Delivered::of(lines);
    delivered.assert_exactly_once(written);
    delivered.assert_ordered();
}

/// Fails when the old file is closed immediately, when siblings are read in the order of their numbers, or when a
/// pattern that matches rotated files too reads them twice.
#[test]
fn three_files_three_rotations() {
    let folder = Folder::new();
    folder.mkdir("logs");
    let agent = folder.agent_line(LIVE).arg("logs/*").start();
    let all = [Lines::new("a", 0..1200), Lines::new("b", 0..1200), Lines::new("c", 0..1200)];
    for round in 0..4 {
        for lines in &all {
            let name = format!("logs/{}.log", lines.file);
            if round > 0 {
                chain(&folder, &name);
            }
            let part = Lines { range: round * 300..(round + 1) * 300, ..lines.clone() };
            folder.append(&name, part.bytes());
        }
    }
    // A rotated file's name matches this pattern too, so it may be read under that name: the order does not matter.
    Delivered::of(agent.wait_lines(3600)).assert_exactly_once(&[&all[0], &all[1], &all[2]]);
}

/// Fails when the renamed file is closed before `rotate_grace`, or starves the new one.
#[test]
fn a_writer_that_keeps_the_renamed_file_open() {
    let folder = Folder::new();
    let mut old = log(&folder, "f.log");
    let agent = folder.agent_line(LIVE).arg("f.log").start();
    let (first, late, new) = (Lines::new("f", 0..100), Lines::new("late", 0..10), Lines::new("new", 0..10));
    old.write_all(&first.bytes()).unwrap();
    agent.wait_lines(100);
    chain(&folder, "f.log");
    folder.append("f.log", b"");
    for (a, b) in late.iter().zip(new.iter()) {
        old.write_all(&[a, vec![b'\n']].concat()).unwrap();
        folder.append("f.log", [b, vec![b'\n']].concat());
        pause(millis(100));
    }
    Delivered::of(agent.wait_lines(120)).assert_exactly_once(&[&first, &late, &new]);
}

/// In each round ten lines are written and `rotate` is called, while the agent runs or is stopped by SIGSTOP.
fn in_rounds(rounds: u64, rotate: impl Fn(&Folder, u64, bool, &[u8])) {
    for paused in [false, true] {
        let folder = Folder::new();
        folder.append("f.log", b"");
        let agent = folder.agent_line(LIVE).arg("f.log").start();
        if paused {
            agent.pause();
        }
        for round in 0..rounds {
            rotate(&folder, round, paused, &Lines::new("f", round * 10..(round + 1) * 10).bytes());
            pause(millis(15)); // so that the times of two files differ
        }
        agent.resume();
        let lines = Lines::new("f", 0..rounds * 10);
        all_once_in_order(agent.wait_lines(lines.count()), &[&lines]);
    }
}

/// Fails when only the newest sibling is searched for.
#[test]
fn five_rotations_within_a_moment() {
    in_rounds(6, |folder, round, _, lines| {
        if round > 0 {
            chain(folder, "f.log");
        }
        folder.append("f.log", lines);
    });
}

/// The other direction: names that count up, and dates. Fails when the order is taken from the numbers.
#[test]
fn names_that_count_up() {
    in_rounds(12, |folder, round, dated, lines| {
        folder.append("f.log", lines);
        let nth = round + 1;
        folder.rename("f.log", &if dated { format!("f.log-202611{nth:02}") } else { format!("f.log.{nth}") });
        folder.append("f.log", b"");
    });
}

/// Fails when the file is closed with its name.
#[test]
fn moved_out_of_the_folder_while_being_read() {
    let folder = Folder::new();
    folder.mkdir("away");
    let lines = Lines::new("f", 0..400_000).width(60);
    lines.append_to(&folder.path("f.log"));
    let agent = folder.agent_line(LIVE).arg("f.log").start();
    folder.rename("f.log", "away/elsewhere");
    all_once_in_order(agent.wait_lines(400_000), &[&lines]);
}

/// Fails when an unterminated last line waits forever, or is joined with the first line of the new file.
#[test]
fn an_unterminated_last_line_is_a_line_of_its_own() {
    let folder = Folder::new();
    let agent = folder.agent_line(LIVE).arg("f.log").start();
    folder.append("f.log", "whole\nhalf");
    agent.wait_lines(1);
    chain(&folder, "f.log");
    folder.append("f.log", "new\n");
    let mut seen = agent.wait_lines(3);
    seen.sort();
    assert_eq!(seen, [&b"half"[..], b"new", b"whole"]);
}

/// Fails when a file that atomically replaces another is taken for the old one grown.
#[test]
fn replaced_atomically_is_a_new_file() {
    let folder = Folder::new();
    folder.write("f.log", "one\ntwo\n");
    let agent = folder.agent_line(LIVE).arg("f.log").start();
    agent.wait_lines(2);
    folder.write("tmp", "one\ntwo\nthree\n");
    folder.rename("tmp", "f.log");
    assert_eq!(agent.wait_lines(5).concat(), b"onetwoonetwothree");
}

/// The limit on open files. Fails when rotated files are held without a limit, or those beyond it are not found
/// again.
#[test]
fn thirty_rotated_files_are_not_all_open() {
    let folder = Folder::new();
    folder.append("f.log", b"");
    let agent = folder.agent_line(LIVE).arg("f.log").start();
    let lines = Lines::new("f", 0..3000);
    agent.pause();
    for round in 0..30 {
        if round > 0 {
            chain(&folder, "f.log");
        }
        folder.append("f.log", Lines { range: round * 100..(round + 1) * 100, ..lines.clone() }.bytes());
        pause(millis(8));
    }
    agent.resume();
    all_once_in_order(agent.wait_lines(3000), &[&lines]);
    wait_until(SOON, "at most 8 rotated files and the live one are open", || {
        let is_log = |p: &&std::path::PathBuf| {
            p.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"f.log"))
        };
        agent.open_files().iter().filter(is_log).count() <= 9
    });
}

/// No broker is up, and two dozen rotated files wait. Fails when those that are not open are missing from the lag.
#[test]
fn closed_rotated_files_count_as_unsent() {
    let (folder, broker) = (Folder::new(), Scripted::away());
    folder.append("f.log", b"");
    let args =
        format!("run --driver modern --topic t --brokers {} --state-dir state f.log", broker.address());
    let mut agent = folder.agent_line(&args).start();
    let lines = Lines::new("f", 0..125_000);
    for round in 0..25 {
        if round > 0 {
            chain(&folder, "f.log");
        }
        folder.append("f.log", Lines { range: round * 5000..(round + 1) * 5000, ..lines.clone() }.bytes());
        pause(millis(200));
    }
    let written = lines.bytes().len();
    wait_status(&folder, &folder.path("state"), "all is unsent", |s| s["files"][0]["lag_bytes"] == written);
    broker.up(1);
    wait_until(PATIENT, "all lines arrive", || broker.stored("t").len() >= lines.count());
    wait_status(&folder, &folder.path("state"), "nothing is unsent", |s| s["files"][0]["lag_bytes"] == 0);
    Delivered::of(broker.stored("t")).assert_exactly_once(&[&lines]);
    agent.stop().expect_code(0);
}

/// The short form: a rotation twice a second, at most five rotated files kept. Fails when a rotated file is not held
/// open.
#[test]
fn a_fast_writer_and_fast_rotation() {
    let folder = Folder::new();
    let mut file = log(&folder, "f.log");
    let agent = folder.agent_line(LIVE).arg("f.log").start();
    let mut next = 0;
    for _ in 0..20 {
        for _ in 0..10 {
            file.write_all(&Lines::new("f", next..next + 1000).bytes()).unwrap();
            next += 1000;
            pause(millis(40));
        }
        chain(&folder, "f.log");
        file = log(&folder, "f.log");
        let _ = std::fs::remove_file(folder.path("f.log.6"));
    }
    all_once_in_order(agent.wait_lines(next as usize), &[&Lines::new("f", 0..next)]);
}
