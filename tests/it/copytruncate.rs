//! Truncated files: noticed at once, noticed late, or regrown past the read position.

use crate::harness::*;
use std::fs::{File, OpenOptions};
use std::io::Write;

const LIVE: &str = "run --output stdout --from beginning --state-dir state f.log";

fn truncate(folder: &Folder, len: u64) {
    OpenOptions::new().write(true).open(folder.path("f.log")).unwrap().set_len(len).unwrap();
}

fn part(range: std::ops::Range<u64>) -> Lines {
    Lines::new("f", range)
}

fn lost(folder: &Folder) -> u64 {
    let status = status_json(folder, &folder.path("state"));
    status["totals"]["lost_bytes"].as_u64().unwrap_or_else(|| panic!("{status}"))
}

/// Fails when a file that shrank is read on from the old offset, or the copy is read as new lines.
#[test]
fn fifty_times() {
    let folder = Folder::new();
    folder.write("f.log", b"");
    let mut agent = folder.agent_line(LIVE).start();
    for round in 0..50 {
        folder.append("f.log", part(round * 20..(round + 1) * 20 - round % 7).bytes());
        agent.wait_lines((0..=round).map(|r| 20 - (r % 7) as usize).sum());
        std::fs::copy(folder.path("f.log"), folder.path(format!("f.log.{}", round + 1))).unwrap();
        truncate(&folder, 0);
    }
    let want: Vec<Lines> = (0..50).map(|r| part(r * 20..(r + 1) * 20 - r % 7)).collect();
    Delivered::of(agent.lines()).assert_exactly_once(&want.iter().collect::<Vec<_>>());
    agent.stop().expect_code(0);
    assert_eq!(lost(&folder), 0);
    // The next run must not treat the copies as new either.
    folder.append("f.log", "last\n");
    let agent = folder.agent_line(LIVE).start();
    assert_eq!(agent.wait_lines(1), [b"last".to_vec()]);
}

/// Regrown to less, the same or more, while the agent was stopped or suspended. Fails when only the size decides.
#[test]
fn rewritten_between_checks() {
    for stopped in [false, true] {
        for lines in [5, 10, 30] {
            let folder = Folder::new();
            folder.write("f.log", b"");
            let mut agent = folder.agent_line(LIVE).start();
            folder.append("f.log", part(0..10).bytes());
            let mut seen = agent.wait_lines(10);
            if stopped {
                agent.stop().expect_code(0);
            } else {
                agent.pause();
            }
            truncate(&folder, 0);
            folder.append("f.log", part(100..100 + lines).bytes());
            if stopped {
                agent = folder.agent_line(LIVE).start();
                seen.extend(agent.wait_lines(lines as usize));
            } else {
                agent.resume();
                seen = agent.wait_lines(10 + lines as usize);
            }
            Delivered::of(seen).assert_exactly_once(&[&part(0..10), &part(100..100 + lines)]);
        }
    }
}

/// Fails when the count of lost bytes does not reach the last byte seen, or the loss is silent.
#[test]
fn unread_truncated_bytes_are_counted() {
    let folder = Folder::new();
    folder.write("f.log", part(0..10).bytes());
    let mut agent = folder.agent_line(LIVE).start();
    agent.wait_lines(10);
    folder.append("f.log", "half a line");
    wait_status(&folder, &folder.path("state"), "it is seen but cannot be sent", |s| {
        s["files"][0]["lag_bytes"] == 11
    });
    truncate(&folder, 0);
    folder.append("f.log", "new\n");
    agent.wait_lines(11);
    let done = agent.stop().expect_code(0);
    assert_eq!(done.stderr.matches("11 bytes were not read and are lost").count(), 1, "{}", done.stderr);
    assert_eq!(lost(&folder), 11);
}

/// Memory is full of other files' lines, so nothing of this file has been read when it is truncated: with a copy,
/// without one, and while the agent is killed. Fails when truncation of a file that was never read goes unnoticed.
#[test]
fn truncated_before_anything_was_read() {
    for (copied, killed) in [(false, false), (true, false), (false, true), (true, true)] {
        let (folder, broker) = (Folder::new(), Scripted::away());
        let others = ["a", "b", "c", "d"].map(|name| Lines::new(name, 0..50_000));
        for (lines, name) in others.iter().zip(["a.log", "b.log", "c.log", "d.log"]) {
            lines.append_to(&folder.path(name));
        }
        let state = folder.path("state");
        let setup = || {
            folder.agent_line(&format!(
                "run --from beginning --driver modern --topic t --brokers {} --state-dir state a.log b.log c.log d.log f.log",
                broker.address()
            ))
        };
        let mut agent = setup().start();
        wait_status(&folder, &state, "memory is full", |s| s["memory"]["used"].as_u64() > Some(6 << 20));
        let (unread, new) = (part(0..5000), part(5000..5010));
        folder.write("f.log", unread.bytes());
        let size = unread.bytes().len() as u64;
        let wait_file = |what: &str, condition: &dyn Fn(&serde_json::Value) -> bool| {
            let is_it = |f: &&serde_json::Value| f["path"].as_str().unwrap().ends_with("/f.log");
            wait_status(&folder, &state, what, |s| {
                s["files"].as_array().unwrap().iter().find(is_it).is_some_and(condition)
            });
        };
        wait_file("it is seen", &|f| (&f["size"], &f["framed"]) == (&size.into(), &0.into()));
        if killed {
            pause(secs(2)); // saved
            agent.kill();
        }
        if copied {
            std::fs::copy(folder.path("f.log"), folder.path("f.log.1")).unwrap();
        }
        truncate(&folder, 0);
        folder.append("f.log", new.bytes());
        if killed {
            agent = setup().start();
        }
        wait_file("it is seen to be shorter", &|f| f["size"] == new.bytes().len());
        broker.up(1);
        let mut want: Vec<&Lines> = others.iter().chain([&new]).collect();
        want.extend(copied.then_some(&unread));
        let count: usize = want.iter().map(|l| l.count()).sum();
        wait_until(PATIENT, "all lines arrive", || broker.stored("t").len() >= count);
        Delivered::of(broker.stored("t")).assert_exactly_once(&want);
        wait_until(SOON, "it is counted", || {
            agent.log().matches("bytes were not read and are lost").count() == usize::from(!copied)
        });
        agent.stop().expect_code(0);
        assert_eq!(lost(&folder), if copied { 0 } else { size }, "copied {copied}, killed {killed}");
    }
}

/// The same, but the file is written again, to less and to more than before, before anyone looks. Fails when the new bytes
/// count as the rest of those that were there: the copy would be counted as lost, or never be read.
#[test]
fn truncated_and_regrown_before_anything_was_read() {
    for new in [part(5000..5010), part(5000..11_000)] {
        let (folder, broker) = (Folder::new(), Scripted::away());
        let others = ["a", "b", "c", "d"].map(|name| Lines::new(name, 0..50_000));
        for (lines, name) in others.iter().zip(["a.log", "b.log", "c.log", "d.log"]) {
            lines.append_to(&folder.path(name));
        }
        let state = folder.path("state");
        let address = broker.address();
        let mut agent = folder
            .agent_line(&format!(
                "run --from beginning --driver modern --topic t --brokers {address} --state-dir state a.log b.log c.log d.log f.log"
            ))
            .start();
        wait_status(&folder, &state, "memory is full", |s| s["memory"]["used"].as_u64() > Some(6 << 20));
        let unread = part(0..5000);
        folder.write("f.log", unread.bytes());
        wait_status(&folder, &state, "it is seen", |s| {
            let all = s["files"].as_array().unwrap();
            all.iter()
                .any(|f| f["path"].as_str().unwrap().ends_with("/f.log") && f["size"] == unread.bytes().len())
        });
        agent.pause();
        std::fs::copy(folder.path("f.log"), folder.path("f.log.1")).unwrap();
        truncate(&folder, 0);
        folder.append("f.log", new.bytes());
        broker.up(1);
        agent.resume();
        let want: Vec<&Lines> = others.iter().chain([&unread, &new]).collect();
        let count: usize = want.iter().map(|l| l.count()).sum();
        wait_until(PATIENT, "all lines arrive", || broker.stored("t").len() >= count);
        agent.stop().expect_code(0);
        Delivered::of(broker.stored("t")).assert_exactly_once(&want);
        assert_eq!(lost(&folder), 0);
    }
}

/// The end of a file is cut off after it was seen but before it was read. Fails when the rest is read again, or the
/// bytes cut off are not counted.
#[test]
fn cut_off_end_is_counted() {
    let folder = Folder::new();
    folder.write("f.log", part(0..10).bytes());
    let mut agent = folder.agent_line(LIVE).start();
    agent.wait_lines(10);
    let whole = part(0..10).bytes().len() as u64;
    folder.append("f.log", "half a line");
    wait_status(&folder, &folder.path("state"), "it is seen", |s| s["files"][0]["lag_bytes"] == 11);
    truncate(&folder, whole + 4);
    wait_status(&folder, &folder.path("state"), "it is seen to be shorter", |s| {
        s["files"][0]["lag_bytes"] == 4
    });
    folder.append("f.log", " a line\n");
    agent.wait_lines(11);
    let lines = agent.lines();
    assert_eq!(lines[10], b"half a line");
    agent.stop().expect_code(0);
    assert_eq!(lost(&folder), 7);
}

/// A copy exists, so its rest is read. Fails when only the truncated file is checked.
#[test]
fn the_rest_is_read_from_the_copy() {
    let folder = Folder::new();
    folder.write("f.log", b"");
    let mut agent = folder.agent_line(LIVE).start();
    folder.append("f.log", part(0..10).bytes());
    agent.wait_lines(10);
    agent.pause();
    folder.append("f.log", part(10..500).bytes());
    std::fs::copy(folder.path("f.log"), folder.path("f.log.1")).unwrap();
    truncate(&folder, 0);
    folder.append("f.log", part(500..510).bytes());
    agent.resume();
    Delivered::of(agent.wait_lines(510)).assert_exactly_once(&[&part(0..510)]);
    agent.stop().expect_code(0);
    assert_eq!(lost(&folder), 0);
}

/// Fails when a file cut in half is read on from the middle.
#[test]
fn cut_to_half_is_read_from_its_beginning() {
    let folder = Folder::new();
    folder.write("f.log", part(0..10).bytes());
    let agent = folder.agent_line(LIVE).start();
    agent.wait_lines(10);
    truncate(&folder, 5 * 201);
    folder.append("f.log", part(20..21).bytes());
    let seen = agent.wait_lines(16);
    assert_eq!(seen[10..], part(0..5).iter().chain(part(20..21).iter()).collect::<Vec<_>>());
}

/// Fails when a NUL of the hole is delivered, or the line after it is lost.
#[test]
fn a_writer_without_append_leaves_a_hole() {
    let folder = Folder::new();
    let mut writer = File::create(folder.path("f.log")).unwrap();
    let agent = folder.agent_line(LIVE).start();
    writer.write_all(&part(0..1000).bytes()).unwrap();
    agent.wait_lines(1000);
    truncate(&folder, 0);
    writer.write_all(&part(1000..1100).bytes()).unwrap();
    Delivered::of(agent.wait_lines(1100)).assert_exactly_once(&[&part(0..1100)]);
    assert!(!agent.stdout().contains(&0));
}

/// The file is shorter than a block, so the file system fills the hole with NULs. Fails when those are delivered.
#[test]
fn a_writer_without_append_leaves_less_than_a_block() {
    let folder = Folder::new();
    let mut writer = File::create(folder.path("f.log")).unwrap();
    let agent = folder.agent_line(LIVE).start();
    for round in 0..3 {
        writer.write_all(&part(round * 5..round * 5 + 5).bytes()).unwrap();
        agent.wait_lines(round as usize * 5 + 5);
        truncate(&folder, 0);
    }
    Delivered::of(agent.wait_lines(15)).assert_exactly_once(&[&part(0..15)]);
    assert!(!agent.stdout().contains(&0));
}

/// A multi-line record is still open when the file is truncated: the only one or after others, followed by a partial
/// line, with a copy that continues it. Fails when its lines are dropped or delivered twice, or the partial line is
/// not counted.
#[test]
fn open_record_survives_truncation() {
    for before in ["", "0 before\n"] {
        for half in ["", " half"] {
            for copied in [false, true] {
                let folder = Folder::new();
                let path = folder.path("f.log");
                folder.write(
                    "c.toml",
                    format!(
                        "[[files]]\npaths = [{path:?}]\nstart = \"beginning\"\nformat = \"json\"\n\
                         multiline = {{ start = '^\\d', timeout = \"1h\" }}\n"
                    ),
                );
                folder.write("f.log", format!("{before}1 a\n b\n{half}"));
                let size = std::fs::metadata(&path).unwrap().len();
                let mut agent = folder.agent_line("run -c c.toml --output stdout --state-dir state").start();
                wait_status(&folder, &folder.path("state"), "it is read", |s| {
                    let waits = size - before.len() as u64;
                    let read = (&s["files"][0]["size"], &s["files"][0]["lag_bytes"]);
                    // While it is read, more memory is in use than for the lines of an open record.
                    let record = s["memory"]["used"].as_u64().is_some_and(|used| (1..100).contains(&used));
                    record && read == (&size.into(), &waits.into())
                });
                if copied {
                    agent.pause();
                    folder.append("f.log", "\n c\n");
                    std::fs::copy(&path, folder.path("f.log.1")).unwrap();
                }
                truncate(&folder, 0);
                agent.resume();
                folder.append("f.log", "2\n3\n");
                let end = if copied { format!("\n{half}\n c") } else { String::new() };
                let mut want = vec![format!("1 a\n b{end}"), "2".into()];
                want.splice(0..0, (!before.is_empty()).then(|| "0 before".into()));
                let message = |line: &Vec<u8>| -> String {
                    serde_json::from_slice::<serde_json::Value>(line).unwrap()["message"]
                        .as_str()
                        .unwrap()
                        .into()
                };
                let mut seen: Vec<String> = agent.wait_lines(want.len()).iter().map(message).collect();
                seen.sort(); // a copy that is read late may arrive after the new lines
                want.sort();
                assert_eq!(seen, want, "before {before:?}, half {half:?}, copied {copied}");
                agent.stop().expect_code(0);
                assert_eq!(lost(&folder), if copied { 0 } else { half.len() as u64 });
            }
        }
    }
}

/// The writer keeps writing during the copy, and the agent has read those lines before the truncation: the copy ends
/// before the read position. Fails when the copy, plain or compressed, is read again after a restart.
#[test]
fn copy_shorter_than_the_read_position() {
    for packed in [false, true] {
        let folder = Folder::new();
        folder.write("f.log", part(0..100).bytes());
        let mut agent = folder.agent_line(LIVE).start();
        agent.wait_lines(100);
        std::fs::copy(folder.path("f.log"), folder.path("f.log.1")).unwrap();
        folder.append("f.log", part(100..110).bytes());
        agent.wait_lines(110);
        truncate(&folder, 0);
        folder.append("f.log", part(110..120).bytes());
        agent.wait_lines(120);
        agent.stop().expect_code(0);
        if packed {
            let gzip = std::process::Command::new("gzip").arg(folder.path("f.log.1")).status().unwrap();
            assert!(gzip.success());
        }
        folder.append("f.log", part(120..130).bytes());
        let mut again = folder.agent_line(LIVE).start();
        let seen = [agent.lines(), again.wait_lines(10)].concat();
        Delivered::of(seen).assert_exactly_once(&[&part(0..130)]);
        again.stop().expect_code(0);
        assert_eq!(lost(&folder), 0);
    }
}

/// Truncated and regrown beyond its old size between two checks. Fails when the new bytes count as lost.
#[test]
fn lines_after_the_truncation_are_not_lost() {
    let folder = Folder::new();
    folder.write("f.log", part(0..10).bytes());
    let mut agent = folder.agent_line(LIVE).start();
    agent.wait_lines(10);
    agent.pause();
    truncate(&folder, 0);
    folder.append("f.log", part(10..40).bytes());
    agent.resume();
    Delivered::of(agent.wait_lines(40)).assert_exactly_once(&[&part(0..40)]);
    agent.stop().expect_code(0);
    assert_eq!(lost(&folder), 0);
}

/// Truncated, rewritten to the same length and rotated, all between two checks. Fails when the rotation hides the
/// truncation.
#[test]
fn truncated_and_rotated_between_checks() {
    for lines in [5, 10, 20] {
        let folder = Folder::new();
        folder.write("f.log", part(0..10).bytes());
        let agent = folder.agent_line(LIVE).start();
        agent.wait_lines(10);
        agent.pause();
        truncate(&folder, 0);
        folder.append("f.log", part(100..100 + lines).bytes());
        crate::rotation::chain(&folder, "f.log");
        folder.append("f.log", part(200..201).bytes());
        agent.resume();
        let seen = agent.wait_lines(11 + lines as usize);
        Delivered::of(seen).assert_exactly_once(&[&part(0..10), &part(100..100 + lines), &part(200..201)]);
    }
}

/// The same while the agent is down. Fails when the rotated file is mistaken for an already read one.
#[test]
fn truncated_and_rotated_while_stopped() {
    for lines in [5, 10, 20] {
        let folder = Folder::new();
        folder.write("f.log", part(0..10).bytes());
        let mut agent = folder.agent_line(LIVE).start();
        agent.wait_lines(10);
        agent.stop().expect_code(0);
        truncate(&folder, 0);
        folder.append("f.log", part(100..100 + lines).bytes());
        crate::rotation::chain(&folder, "f.log");
        folder.append("f.log", part(200..201).bytes());
        let agent = folder.agent_line(LIVE).start();
        let seen = agent.wait_lines(1 + lines as usize);
        Delivered::of(seen).assert_exactly_once(&[&part(100..100 + lines), &part(200..201)]);
    }
}

/// Copied and truncated two or more times between two looks, also while the file was empty at both. Fails when only
/// the copy of the last lines read is looked for.
#[test]
fn copies_of_lines_never_seen_are_read() {
    for read in [0, 10] {
        let folder = Folder::new();
        folder.write("f.log", part(0..read).bytes());
        let mut agent = folder.agent_line(LIVE).start();
        agent.wait_lines(read as usize);
        pause(secs(1));
        agent.pause();
        for round in 1..4 {
            folder.append("f.log", part(round * 100..round * 100 + 5).bytes());
            std::fs::copy(folder.path("f.log"), folder.path(format!("f.log.{round}"))).unwrap();
            truncate(&folder, 0);
        }
        agent.resume();
        let seen = agent.wait_lines(read as usize + 15);
        let rounds = [1, 2, 3].map(|round| part(round * 100..round * 100 + 5));
        let all: Vec<Lines> = [part(0..read)].into_iter().chain(rounds).collect();
        Delivered::of(seen).assert_exactly_once(&all.iter().collect::<Vec<_>>());
        folder.append("f.log", "last\n");
        agent.wait_lines(read as usize + 16);
        agent.stop().expect_code(0);
        assert_eq!(lost(&folder), 0);
    }
}
