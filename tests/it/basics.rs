//! Reading one file without a broker; the result is standard output. No rotation.

use crate::harness::*;
use std::time::Instant;

const LIVE: &str = "run --output stdout --from beginning";
const ONCE: &str = "run --once --output stdout";
const MAX_LINE: usize = 1_000_000;

/// The output of `--once` for a file with these bytes.
#[track_caller]
fn once(bytes: impl AsRef<[u8]>) -> Vec<Vec<u8>> {
    let folder = Folder::new();
    folder.write("f.log", bytes);
    folder.agent_line(ONCE).arg("f.log").run().expect_code(0).lines()
}

fn text(lines: &[&str]) -> Vec<Vec<u8>> {
    lines.iter().map(|line| line.as_bytes().to_vec()).collect()
}

/// Fails when a new file is found by polling only, or is read from its end.
#[test]
fn a_file_created_later_is_read_from_its_beginning_at_once() {
    let folder = Folder::new();
    let agent = folder.agent_line("run --output stdout").arg("f.log").start();
    let lines = Lines::new("f", 0..3);
    let start = Instant::now();
    folder.append("f.log", lines.bytes());
    let seen = agent.wait_lines(3);
    assert!(start.elapsed() < secs(5), "{:?}: inotify, not the 30 s of a lost event", start.elapsed());
    assert_eq!(seen, lines.iter().collect::<Vec<_>>());
}

/// Files of no byte, of one and of a few, each read immediately and not again after a restart: no file is too small
/// to be identified. Seen to fail with `self.end() > self.searched.max(255)` in `Open::unread`.
#[test]
fn no_file_is_too_small() {
    let folder = Folder::new();
    let args = "run --output stdout --from beginning --state-dir state";
    let mut agent = folder.agent_line(args).arg("*.log").start();
    let sizes = [0, 1, 2, 255, 256, 257, 1023, 1024, 1025];
    for (seen, size) in sizes.into_iter().enumerate() {
        let line = "x".repeat(size.max(1) - 1) + "\n";
        folder.write(&format!("{size}.log"), if size == 0 { "" } else { &line });
        let begun = Instant::now();
        assert_eq!(agent.wait_lines(seen).len(), seen, "{size} bytes");
        assert!(begun.elapsed() < secs(5), "{size} bytes: {:?}", begun.elapsed());
    }
    agent.stop().expect_code(0);
    folder.append("0.log", "y\n");
    let agent = folder.agent_line(args).arg("*.log").start();
    assert_eq!(agent.wait_lines(1), text(&["y"]));
    pause(millis(500));
    assert_eq!(agent.lines().len(), 1);
}

/// Fails when `--from` is ignored, or overrides a saved position.
#[test]
fn from_applies_only_to_files_without_a_position() {
    let folder = Folder::new();
    let lines = Lines::new("f", 0..100);
    folder.write("f.log", lines.bytes());
    let mut agent = folder.agent_line(LIVE).arg("f.log").start();
    assert_eq!(agent.wait_lines(100), lines.iter().collect::<Vec<_>>());
    agent.stop().expect_code(0);

    let end = folder.agent_line("run --output stdout --from end --state-dir state").arg("f.log");
    let mut agent = end.start();
    let more = Lines::new("f", 100..105);
    folder.append("f.log", more.bytes());
    assert_eq!(agent.wait_lines(5), more.iter().collect::<Vec<_>>());
    agent.stop().expect_code(0);

    let last = Lines::new("f", 105..110);
    folder.append("f.log", last.bytes());
    let mut agent =
        folder.agent_line("run --output stdout --from beginning --state-dir state").arg("f.log").start();
    assert_eq!(agent.wait_lines(5), last.iter().collect::<Vec<_>>());
    agent.stop().expect_code(0);
}

/// Fails when the saved position counts lines, is not at the end of a line, or is not saved at all.
#[test]
fn a_restart_continues_where_it_stopped() {
    for from in ["beginning", "end"] {
        for width in [20, 2000] {
            let folder = Folder::new();
            let lines = |range| Lines::new("f", range).width(width);
            folder.write("f.log", b"");
            let args = format!("run --output stdout --state-dir state --from {from} f.log");
            let mut agent = folder.agent_line(&args).start();
            folder.append("f.log", lines(0..50).bytes());
            agent.wait_lines(50);
            let first = agent.stop().expect_code(0);
            folder.append("f.log", lines(50..100).bytes());
            let mut agent = folder.agent_line(&args).start();
            agent.wait_lines(50);
            let second = agent.stop().expect_code(0);
            Delivered::of([first.lines(), second.lines()].concat()).assert_exactly_once(&[&lines(0..100)]);
        }
    }
}

/// Fails when a missing parent folder ends the agent or is not watched for.
#[test]
fn a_file_whose_folder_does_not_exist_yet() {
    let folder = Folder::new();
    let agent = folder.agent_line(LIVE).arg("a/b/f.log").start();
    let lines = Lines::new("f", 0..10);
    folder.mkdir("a/b");
    folder.append("a/b/f.log", lines.bytes());
    assert_eq!(agent.wait_lines(10), lines.iter().collect::<Vec<_>>());
}

/// Fails when the watch is not re-established for a recreated folder.
#[test]
fn a_folder_that_is_deleted_and_recreated() {
    let folder = Folder::new();
    folder.mkdir("logs");
    let agent = folder.agent_line(LIVE).arg("logs/*.log").start();
    folder.append("logs/f.log", "before\n");
    agent.wait_lines(1);
    std::fs::remove_dir_all(folder.path("logs")).unwrap();
    folder.mkdir("logs");
    let lines = Lines::new("f", 0..5);
    folder.append("logs/f.log", lines.bytes());
    assert_eq!(agent.wait_lines(6)[1..], lines.iter().collect::<Vec<_>>());
}

/// Fails when empty lines are dropped, or one is added at the end.
#[test]
fn empty_lines_are_kept() {
    assert_eq!(once("a\n\nb\n\n"), text(&["a", "", "b", ""]));
    assert_eq!(once("\n"), text(&[""]));
    assert_eq!(once("\n\na\n"), text(&["", "", "a"]));
    assert_eq!(once(""), text(&[]));
}

/// Fails when `\r` is removed only at the edge of a read, or anywhere but before `\n`.
#[test]
fn a_carriage_return_before_the_newline_is_removed() {
    assert_eq!(once("a\r\nb\r\n"), text(&["a", "b"]));
    assert_eq!(once("a\rb\n\r\n\r\r\n"), text(&["a\rb", "", "\r"]));
    for edge in [4096, 8192, 16384, 32768, 65536, 131_072, 262_144] {
        for at in [edge - 1, edge, edge + 1] {
            let mut bytes = vec![b'x'; at];
            bytes.extend_from_slice(b"\r\nnext\r\n");
            assert_eq!(once(&bytes), [vec![b'x'; at], b"next".to_vec()], "\\r at byte {at}");
        }
    }
}

/// `\r` is seen before its `\n`, while the line is being written. Fails when the part read so far is taken for a
/// line.
#[test]
fn a_line_written_in_two_parts_is_one() {
    let folder = Folder::new();
    let agent = folder.agent_line(LIVE).arg("f.log").start();
    folder.append("f.log", "hel");
    pause(millis(300));
    folder.append("f.log", "lo\nwith\r");
    agent.wait_lines(1);
    pause(millis(300));
    folder.append("f.log", "\nend\n");
    assert_eq!(agent.wait_lines(3), text(&["hello", "with", "end"]));
}

/// Fails when an unfinished line is sent before its end, or its beginning is lost across a restart.
#[test]
fn an_unfinished_line_is_not_sent() {
    let folder = Folder::new();
    let args = "run --output stdout --from beginning --state-dir state f.log";
    folder.write("f.log", "whole\nabc");
    let mut agent = folder.agent_line(args).start();
    agent.wait_lines(1);
    pause(millis(1500));
    assert_eq!(agent.stdout(), b"whole\n");
    folder.append("f.log", "def\nab");
    assert_eq!(agent.wait_lines(2), text(&["whole", "abcdef"]));
    agent.stop().expect_code(0);
    folder.append("f.log", "cd\n");
    let agent = folder.agent_line(args).start();
    assert_eq!(agent.wait_lines(1), text(&["abcd"]));
}

/// An unfinished line at the end of `--once` is sent. Fails when it is dropped.
#[test]
fn once_sends_the_unfinished_last_line() {
    assert_eq!(once("a\nrest"), text(&["a", "rest"]));
    assert_eq!(once("rest"), text(&["rest"]));
}

/// Fails when each byte costs a search of the whole line, or part of a line is sent.
#[test]
fn a_writer_of_single_bytes() {
    let folder = Folder::new();
    let agent = folder.agent_line(LIVE).arg("f.log").start();
    let line = Lines::new("f", 0..1).width(100).bytes();
    for byte in &line {
        folder.append("f.log", [*byte]);
        pause(millis(1));
    }
    assert_eq!(agent.wait_lines(1), [line[..line.len() - 1].to_vec()]);
    assert!(agent.cpu() < millis(700), "{:?} of CPU for 100 bytes", agent.cpu());
}

/// Fails when bytes go through a `String`, or a NUL ends something.
#[test]
fn bytes_are_passed_on_as_they_are() {
    let lines = [
        &b"\xff\xfe\xfd"[..],
        b"a\0b",
        b"\xc3\x28 broken",
        b"tab\tesc\x1b[0m",
        "grüße 🦀".as_bytes(),
        b"\x80",
    ];
    let mut bytes = Vec::new();
    for line in lines {
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
    }
    assert_eq!(once(&bytes), lines.map(<[u8]>::to_vec));
}

/// Fails when the limit is off by one, counts the `\r`, or the rest of a cut line becomes a line.
#[test]
fn the_longest_line_is_exact() {
    let line = |n: usize| vec![b'x'; n];
    for (written, end, arrives) in [
        (MAX_LINE - 1, "\n", MAX_LINE - 1),
        (MAX_LINE, "\n", MAX_LINE),
        (MAX_LINE + 1, "\n", MAX_LINE),
        (MAX_LINE - 1, "\r\n", MAX_LINE - 1),
        (MAX_LINE, "\r\n", MAX_LINE),
        (MAX_LINE + 1, "\r\n", MAX_LINE),
    ] {
        let bytes = [b"before\n", &line(written)[..], end.as_bytes(), b"after\n"].concat();
        let seen: Vec<usize> = once(&bytes).iter().map(Vec::len).collect();
        assert_eq!(seen, [6, arrives, 5], "a line of {written} bytes and {end:?}");
    }
}

/// Fails when a line is buffered as a whole before it is cut, or when it delays another file.
#[test]
fn a_line_of_ten_megabytes_costs_no_memory() {
    let folder = Folder::new();
    let bytes = [b"a\n", &vec![b'x'; 10 << 20][..], b"\nb\n"].concat();
    folder.write("f.log", &bytes);
    let done = folder.agent_line(ONCE).arg("f.log").run().expect_code(0);
    let lines = done.lines();
    assert_eq!((&lines[0][..], lines[1].len(), &lines[2][..]), (&b"a"[..], MAX_LINE, &b"b"[..]));
    assert_eq!(lines.len(), 3);
    assert!(done.vm_hwm < 24_000, "{} KiB resident", done.vm_hwm);
}

/// Fails when a glob misses a file, or the order of lines within a file is lost.
#[test]
fn several_files_by_glob_and_by_name() {
    let folder = Folder::new();
    let (a, b, c) = (Lines::new("a", 0..500), Lines::new("b", 0..500), Lines::new("c", 0..500));
    folder.write("logs/a.log", a.bytes());
    folder.write("logs/b.log", b.bytes());
    folder.write("other/[c].log", c.bytes());
    folder.write("logs/no.txt", "no\n");
    let done = folder.agent_line(ONCE).arg("logs/*.log").arg("other/[c].log").run().expect_code(0);
    let delivered = Delivered::of(done.lines());
    delivered.assert_exactly_once(&[&a, &b, &c]);
    delivered.assert_ordered();
}

/// Fails when anything but lines goes to standard output.
#[test]
fn standard_output_carries_data_only() {
    let folder = Folder::new();
    let lines = Lines::new("f", 0..20_000);
    folder.write("f.log", lines.bytes());
    let done = folder.agent_line(ONCE).env("RUST_LOG", "debug").arg("f.log").run().expect_code(0);
    assert_eq!(done.stdout, lines.bytes());
}
