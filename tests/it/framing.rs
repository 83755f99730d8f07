//! What counts as a line, beyond `basics.rs`: very long ones, holes, multi-line records, filters, JSON, rates.

use crate::harness::*;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Instant;

/// A config with these settings for `f.log`.
fn config(folder: &Folder, settings: &str) {
    let path = folder.path("f.log");
    folder.write(
        "c.toml",
        format!("[[files]]\npaths = [\"{}\"]\nstart = \"beginning\"\n{settings}\n", path.display()),
    );
}

const ONCE: &str = "run -c c.toml --once --output stdout --state-dir state";
const LIVE: &str = "run -c c.toml --output stdout --state-dir state";

fn once(settings: &str, bytes: impl AsRef<[u8]>) -> Vec<String> {
    let folder = Folder::new();
    config(&folder, settings);
    folder.write("f.log", bytes);
    let done = folder.agent_line(ONCE).run().expect_code(0);
    done.lines().iter().map(|l| String::from_utf8_lossy(l).into_owned()).collect()
}

/// Fails when the line is buffered, searched again from its start at each append, or its rest becomes a line.
#[test]
fn a_gibibyte_without_a_newline() {
    let folder = Folder::new();
    config(&folder, "");
    folder.write("f.log", "before\n");
    let mut agent = folder.agent_line(LIVE).start();
    let mut file = OpenOptions::new().append(true).open(folder.path("f.log")).unwrap();
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..1024 {
        file.write_all(&piece).unwrap();
    }
    file.write_all(b"\nafter\n").unwrap();
    wait_until(secs(60), "three lines", || agent.lines().len() == 3);
    let seen: Vec<usize> = agent.lines().iter().map(Vec::len).collect();
    assert_eq!(seen, [6, 1_000_000, 5]);
    let done = agent.stop().expect_code(0);
    assert!(done.vm_hwm < 24_000, "{} KiB", done.vm_hwm);
    assert!(folder.agent_line(ONCE).run().expect_code(0).lines().is_empty(), "the position is behind it");
}

/// Written in pieces, each of which is read separately: lines that reach or exceed the limit before their end is
/// written. Seen to fail with `max_line + 1` in `Open::longer`: the `\n` behind the longest line and its `\r` is out
/// of reach, and the line is never sent.
#[test]
fn lines_that_grow_to_the_limit() {
    let folder = Folder::new();
    config(&folder, "max_line = 1000");
    folder.write("f.log", "before\n");
    let agent = folder.agent_line(LIVE).start();
    agent.wait_lines(1);
    let part = |n: usize, end: &str| "x".repeat(n) + end;
    for line in [
        vec![part(999, ""), part(1, "\r"), part(0, "\n")],
        vec![part(999, ""), part(1, ""), part(1, "\r"), part(0, "\n")],
        vec![part(600, ""), part(600, ""), part(600, ""), part(0, "\nafter\n")],
    ] {
        for piece in line {
            folder.append("f.log", piece);
            pause(millis(150));
        }
    }
    let seen: Vec<usize> = agent.wait_lines(5).iter().map(Vec::len).collect();
    assert_eq!(seen, [6, 1000, 1000, 1000, 5]);
    assert_eq!(status_json(&folder, &folder.path("state"))["totals"]["cut"], 2);
}

/// A restart while the rest of a cut line is being skipped. Fails when "skip to the newline" is not saved.
#[test]
fn a_restart_inside_a_cut_line() {
    let folder = Folder::new();
    config(&folder, "");
    folder.write("f.log", vec![b'x'; 3_000_000]);
    let mut agent = folder.agent_line(LIVE).start();
    wait_until(SOON, "the cut line", || agent.stdout().len() == 1_000_001);
    agent.stop().expect_code(0);
    folder.append("f.log", "rest of it\nafter\n");
    assert_eq!(folder.agent_line(ONCE).run().expect_code(0).lines(), [b"after".to_vec()]);
}

/// Fails when a hole is read byte by byte, or delivered.
#[test]
fn a_sparse_file_of_100_gib() {
    let folder = Folder::new();
    config(&folder, "");
    folder.write("f.log", "first\n");
    OpenOptions::new().write(true).open(folder.path("f.log")).unwrap().set_len(100 << 30).unwrap();
    folder.append("f.log", "x\n");
    let begun = Instant::now();
    let done = folder.agent_line(ONCE).run().expect_code(0);
    assert_eq!(done.lines(), [b"first".to_vec(), b"x".to_vec()]);
    assert!(begun.elapsed() < secs(5) && done.vm_hwm < 24_000, "{:?} {} KiB", begun.elapsed(), done.vm_hwm);
}

/// NULs and a byte order mark that were written to the log. Fails when a byte of a line is dropped.
#[test]
fn every_written_byte_is_delivered() {
    let nuls = "\0".repeat(10_000);
    let lines = ["\u{feff}\0a".into(), "\0\0b".into(), format!("{nuls}c"), "\0".into(), "d\0".into()];
    assert_eq!(once("", lines.join("\n")), lines);
    assert_eq!(once("", "\u{feff}"), ["\u{feff}"]);
}

/// A logger that extends its file first, fills the space line by line, and cuts the file to its lines when it closes it (as
/// Log4j's MemoryMappedFile appender does), and one that starts in such a file. The agent is killed in between. Fails when the
/// space is passed over as a hole: the lines that are then written into it are lost. Or when it counts as unsent.
#[test]
fn lines_are_written_into_preallocated_space() {
    const SPACE: u64 = 300_000;
    for start in ["beginning", "end"] {
        let folder = Folder::new();
        config(&folder, "");
        let text = std::fs::read_to_string(folder.path("c.toml")).unwrap();
        folder.write("c.toml", text.replace("beginning", start));
        folder.write("f.log", "old\n");
        let file = OpenOptions::new().write(true).open(folder.path("f.log")).unwrap();
        file.set_len(SPACE).unwrap();
        let (mut agent, mut size, mut expected) = (folder.agent_line(LIVE).start(), 4, Vec::new());
        if start == "beginning" {
            expected.push("old".to_owned());
        }
        let mut earlier = Vec::new();
        for n in 0..4000 {
            let line = format!("line {n} {}", "x".repeat(n % 200));
            file.write_all_at(format!("{line}\n").as_bytes(), size).unwrap();
            size += line.len() as u64 + 1;
            expected.push(line);
            if size + 1000 > file.metadata().unwrap().len() {
                file.set_len(size + SPACE).unwrap();
            }
            if n % 2000 == 500 {
                wait_until(SOON, "all lines so far", || {
                    earlier.len() + agent.lines().len() == expected.len()
                });
                pause(millis(1200)); // saved
                earlier.extend(agent.lines());
                agent.kill();
                let status = status_json(&folder, &folder.path("state"));
                assert_eq!(status["files"][0]["lag_bytes"], 0, "{start}, no agent runs");
                agent = folder.agent_line(LIVE).start();
            }
        }
        file.set_len(size).unwrap();
        folder.append("f.log", "last\n");
        expected.push("last".into());
        wait_until(SOON, "the last line", || agent.lines().last().is_some_and(|l| l == b"last"));
        earlier.extend(agent.lines());
        let seen: Vec<_> = earlier.iter().map(|l| String::from_utf8_lossy(l)).collect();
        assert_eq!(seen, expected, "{start}");
        let status = status_json(&folder, &folder.path("state"));
        assert_eq!(status["files"][0]["lag_bytes"], 0, "{start}");
    }
}

/// A file that is written through mmap(2) in steps of a page, and read by `--once` in between. Fails when the NULs that follow
/// the last line in its page are sent: they are written over, and all lines are sent again as those of a truncated file.
#[test]
fn once_leaves_the_space_in_the_page_of_the_last_line() {
    let folder = Folder::new();
    config(&folder, "");
    let file = File::create(folder.path("f.log")).unwrap();
    let mut size = 0;
    for n in 0..4 {
        let line = format!("line {n} {}", "x".repeat(1500));
        file.write_all_at(format!("{line}\n").as_bytes(), size).unwrap();
        size += line.len() as u64 + 1;
        file.set_len(size.next_multiple_of(4096)).unwrap();
        assert_eq!(folder.agent_line(ONCE).run().expect_code(0).lines(), [line.into_bytes()]);
    }
}

/// Space that was written as NULs, as on a file system without `fallocate(2)`; the kernel reports preallocated space in the same
/// way once anyone has read it. The file is rotated with the rest of its space. Fails when more than 1 MiB of NULs are taken
/// for lines.
#[test]
fn much_space_is_preallocated_as_nuls() {
    for start in ["beginning", "end"] {
        let folder = Folder::new();
        config(&folder, "");
        let text = std::fs::read_to_string(folder.path("c.toml")).unwrap();
        folder.write("c.toml", text.replace("beginning", start));
        folder.write("f.log", vec![0; 5_000_000]);
        let file = OpenOptions::new().write(true).open(folder.path("f.log")).unwrap();
        let agent = folder.agent_line(LIVE).start();
        let expected: String = (0..300).map(|n| format!("line {n}\n")).collect();
        let (first, second) = expected.split_at(1000);
        file.write_all_at(first.as_bytes(), 0).unwrap();
        let lines = first.matches('\n').count();
        wait_until(SOON, "the first lines", || agent.lines().len() == lines);
        file.write_all_at(second.as_bytes(), 1000).unwrap();
        folder.rename("f.log", "f.log.1");
        folder.write("f.log", "new\n");
        wait_until(SOON, "all lines", || agent.lines().len() == 301);
        assert_eq!(String::from_utf8_lossy(&agent.stdout()), expected + "new\n", "{start}");
    }
}

/// The kernel reports 4096 bytes for each file in sysfs. Fails when the rest of them is waited for, with all of a processor.
#[test]
fn a_file_that_is_shorter_than_its_size() {
    let done = Folder::new().agent_line("run --once --from beginning /sys/kernel/uevent_seqnum").run();
    assert_eq!(done.expect_code(0).lines().len(), 1);
}

/// Holes end within a block, where the file system fills in NULs, and the agent is stopped inside them. Fails when
/// one of those NULs is delivered, or when removing a hole also removes NULs of another line.
#[test]
fn holes_are_skipped_across_restarts() {
    let folder = Folder::new();
    config(&folder, "");
    folder.write("f.log", "first\n");
    let file = OpenOptions::new().write(true).open(folder.path("f.log")).unwrap();
    let mut seen = Vec::new();
    for (grown, text) in [(10_000u64, "second\n\0third\n"), (100_000, ""), (200_001, "fourth\n")] {
        file.set_len(grown).unwrap();
        seen.extend(folder.agent_line(ONCE).run().expect_code(0).lines());
        file.write_all_at(text.as_bytes(), grown).unwrap();
    }
    seen.extend(folder.agent_line(ONCE).run().expect_code(0).lines());
    let seen: Vec<_> = seen.iter().map(|l| String::from_utf8_lossy(l)).collect();
    assert_eq!(seen, ["first", "second", "\0third", "fourth"]);
}

/// Fails when a record ends at the wrong line, its limits are not enforced, or the last one waits forever.
#[test]
fn several_lines_in_one_record() {
    let start = "multiline = { start = \"^\\\\d\" }";
    assert_eq!(
        once(start, "1 a\n  b\n  c\n2 d\n"),
        ["1 a\n  b\n  c", "2 d"].join("\n").split('\n').collect::<Vec<_>>()
    );
    let folder = Folder::new();
    config(&folder, "multiline = { start = \"^\\\\d\", timeout = \"500ms\" }\nformat = \"json\"");
    folder.write("f.log", "1 a\n  b\n");
    let agent = folder.agent_line(LIVE).start();
    let message = |line: &[u8]| -> String {
        serde_json::from_slice::<serde_json::Value>(line).unwrap()["message"].as_str().unwrap().into()
    };
    assert_eq!(message(&agent.wait_lines(1)[0]), "1 a\n  b", "after the timeout");
    folder.append("f.log", "2 c\n  d\n3 e\n");
    let seen = agent.wait_lines(3);
    assert_eq!((message(&seen[1]), message(&seen[2])), ("2 c\n  d".into(), "3 e".into()));
    let json = |settings: &str, text: &str| -> Vec<String> {
        once(&format!("{settings}\nformat = \"json\""), text).iter().map(|l| message(l.as_bytes())).collect()
    };
    let continued = "multiline = { continue = \"^ \" }";
    assert_eq!(json(continued, "a\n b\n c\nd\n e\n"), ["a\n b\n c", "d\n e"]);
    assert_eq!(
        json("multiline = { start = \"^1\", max_lines = 2 }", "1\n2\n3\n4\n5\n"),
        ["1\n2", "3\n4", "5"]
    );
    assert_eq!(json(continued, "a\n b\n c"), ["a\n b\n c"], "the last line needs no line end with --once");
    assert_eq!(json(continued, "a\n b\nc"), ["a\n b", "c"]);
}

/// The timeout of multiline while a line is being written. Fails when it sends the first part of that line.
#[test]
fn the_timeout_of_a_record_does_not_split_a_line() {
    let folder = Folder::new();
    config(&folder, "multiline = { start = \"^\\\\d\", timeout = \"300ms\" }");
    folder.write("f.log", "1 a\n  b\n  begi");
    let agent = folder.agent_line(LIVE).start();
    wait_until(SOON, "the complete lines", || agent.stdout() == b"1 a\n  b\n");
    folder.append("f.log", "nning\n");
    wait_until(SOON, "the line", || agent.stdout() == b"1 a\n  b\n  beginning\n");
}

/// `partial_after`. Fails when the partial line waits for its end, or is sent twice.
#[test]
fn a_partial_line_is_sent_after_a_timeout() {
    let folder = Folder::new();
    config(&folder, "partial_after = \"500ms\"");
    folder.write("f.log", "prompt> ");
    let agent = folder.agent_line(LIVE).start();
    wait_until(SOON, "the rest", || agent.stdout() == b"prompt> \n");
    folder.append("f.log", "yes\n");
    wait_until(SOON, "what came after", || agent.stdout() == b"prompt> \nyes\n");
}

/// A line end that comes after the rest of its line was sent: by `partial_after`, by `--once`, or skipped by
/// `start = "end"`. Each again with the agent restarted in between. Fails when it becomes an empty record, or when the
/// empty line after it is missing.
#[test]
fn the_end_of_a_sent_line_is_no_record() {
    for end in ["\n", "\r\n"] {
        for restart in [false, true] {
            let folder = Folder::new();
            config(&folder, "partial_after = \"100ms\"");
            folder.write("f.log", "first\nprompt> ");
            let mut agent = folder.agent_line(LIVE).start();
            wait_until(SOON, "the rest", || agent.stdout() == b"first\nprompt> \n");
            let mut want = "first\nprompt> \n";
            if restart {
                agent.stop().expect_code(0);
                agent = folder.agent_line(LIVE).start();
                want = "";
            }
            folder.append("f.log", end);
            let read = if end == "\n" { 15 } else { 16 };
            wait_status(&folder, &folder.path("state"), "the line end is read", |s| {
                s["files"][0]["streams"][0]["acknowledged"].as_u64() == Some(read)
            });
            folder.append("f.log", format!("{end}next{end}"));
            let want = format!("{want}\nnext\n").into_bytes();
            wait_until(SOON, "an empty line and the next", || agent.stdout().ends_with(b"next\n"));
            assert_eq!(agent.stdout(), want, "{end:?} {restart}");
        }
        let folder = Folder::new();
        config(&folder, "");
        folder.write("f.log", "whole\nhalf");
        assert_eq!(folder.agent_line(ONCE).run().expect_code(0).lines(), [b"whole", &b"half"[..]]);
        folder.append("f.log", end);
        assert!(folder.agent_line(ONCE).run().expect_code(0).lines().is_empty(), "{end:?}");
        folder.append("f.log", end);
        assert_eq!(folder.agent_line(ONCE).run().expect_code(0).lines(), [b""]);

        let folder = Folder::new();
        let path = folder.path("f.log");
        folder.write("c.toml", format!("[[files]]\npaths = [\"{}\"]\nstart = \"end\"\n", path.display()));
        folder.write("f.log", "old\nhalf");
        let mut agent = folder.agent_line(LIVE).start();
        wait_status(&folder, &folder.path("state"), "the file is open", |s| {
            s["files"][0]["streams"][0]["acknowledged"].as_u64() == Some(8)
        });
        agent.stop().expect_code(0);
        folder.append("f.log", format!("{end}new{end}"));
        assert_eq!(folder.agent_line(ONCE).run().expect_code(0).lines(), [b"new"]);
    }
}

/// Fails when dropped lines do not move the position.
#[test]
fn dropped_lines_are_not_read_again() {
    assert_eq!(once("include = [\"^k\"]\ndrop = [\"x$\"]", "keep\nno\nkx\nk2\n"), ["keep", "k2"]);
    assert_eq!(once("skip_empty = true", "\na\n\nb\n"), ["a", "b"]);
    let folder = Folder::new();
    config(&folder, "drop = [\".\"]");
    folder.write("f.log", Lines::new("f", 0..5000).bytes());
    let mut agent = folder.agent_line(LIVE).start();
    wait_status(&folder, &folder.path("state"), "the position is at the end", |s| {
        s["files"][0]["streams"][0]["acknowledged"].as_u64() == Some(5000 * 201)
    });
    agent.stop().expect_code(0);
    config(&folder, "");
    assert!(folder.agent_line(ONCE).run().expect_code(0).lines().is_empty());
}

/// Fails when a field is missing, or invalid UTF-8 ends the agent.
#[test]
fn records_in_json() {
    let lines = once("format = \"json\"\nfields = { env = \"test\" }", b"a\"b\n\xff\xfe\n");
    let first: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    let second: serde_json::Value = serde_json::from_str(&lines[1]).unwrap();
    assert_eq!((first["message"].as_str(), first["env"].as_str()), (Some("a\"b"), Some("test")));
    assert_eq!((first["offset"].as_u64(), second["offset"].as_u64()), (Some(0), Some(4)));
    assert!(first["host"].is_string() && first["path"].is_string() && first["time"].is_string(), "{first}");
    assert_ne!(second["message"], first["message"]);
}

/// `rate_limit` delays but skips nothing, also across a rotation. Fails when bytes over the rate are skipped.
#[test]
fn a_rate_limit_delays_but_never_skips() {
    let folder = Folder::new();
    config(&folder, "rate_limit = \"200KiB/s\"");
    folder.write("f.log", b"");
    let agent = folder.agent_line(LIVE).start();
    let begun = Instant::now();
    for round in 0..4 {
        folder.append("f.log", Lines::new("f", round * 1000..(round + 1) * 1000).bytes());
        if round < 3 {
            crate::rotation::chain(&folder, "f.log");
        }
    }
    Delivered::of(agent.wait_lines(4000)).assert_exactly_once(&[&Lines::new("f", 0..4000)]);
    assert!(begun.elapsed() > millis(1500), "{:?} for 785 KiB", begun.elapsed());
}

/// With multiline, the last record of a rotated file comes before those of the new file. Fails when the new file is read
/// while that record still waits for more lines.
#[test]
fn the_last_record_of_a_rotated_file_is_sent_first() {
    let folder = Folder::new();
    config(&folder, "multiline = { start = \"^S\", timeout = \"1s\" }");
    folder.write("f.log", "");
    let agent = folder.agent_line(LIVE).start();
    folder.append("f.log", "S1\n a\nS2\n b\n");
    wait_until(SOON, "the first record", || agent.stdout() == b"S1\n a\n");
    folder.rename("f.log", "f.log.1");
    folder.write("f.log", "S3\n c\nS4\n");
    wait_until(SOON, "the other records", || agent.stdout() == b"S1\n a\nS2\n b\nS3\n c\nS4\n");
}
