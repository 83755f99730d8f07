//! Patterns and arguments that match a log's own rotated, copied and compressed files: every line is sent exactly once,
//! within seconds. Runs without a broker. Long random sequences of the same events are in `soak.rs`.

use crate::blind::beside;
use crate::harness::*;
use crate::limits::Jail;
use crate::rotation::chain;
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::process::Command;
use std::thread;
use std::time::SystemTime;

/// All files are checked every 30 s anyway; finding something only then is too late.
const FEW_SECONDS: std::time::Duration = secs(10);

/// One log with its rotated files, and everything the agent sent from them over all its runs.
struct Case {
    folder: Folder,
    follow: Vec<String>,
    start: &'static str,
    next: u64,
    seen: Vec<Vec<u8>>,
}

impl Case {
    fn new<S: AsRef<str>>(follow: impl IntoIterator<Item = S>) -> Case {
        let folder = Folder::new();
        folder.mkdir("logs");
        let follow = follow.into_iter().map(|f| f.as_ref().to_owned()).collect();
        Case { folder, follow, start: "beginning", next: 0, seen: Vec::new() }
    }

    /// Appends the next 20 lines to a file.
    fn write(&mut self, name: &str) {
        let lines = Lines::new("f", self.next..self.next + 20);
        self.next = lines.range.end;
        self.folder.append(name, lines.bytes());
    }

    fn agent(&self) -> Setup {
        self.agent_to("stdout")
    }

    fn agent_to(&self, output: &str) -> Setup {
        let run = format!("run --output {output} --from {} --state-dir state", self.start);
        self.folder.agent(run.split(' ').chain(self.follow.iter().map(String::as_str)))
    }

    /// Sends everything present with `--once`.
    #[track_caller]
    fn once(&mut self) {
        let done = self.agent().arg("--once").run().expect_code(0);
        self.seen.extend(done.lines());
    }

    /// Runs an agent until everything written so far is sent.
    #[track_caller]
    fn until_sent(&mut self) {
        let mut agent = self.agent().start();
        self.wait_sent(&agent);
        self.stop(&mut agent);
    }

    /// Counts distinct lines, so that a duplicate does not stand in for a line that is still missing.
    #[track_caller]
    fn wait_sent(&self, agent: &Agent) {
        let before: HashSet<&Vec<u8>> = self.seen.iter().collect();
        wait_until(FEW_SECONDS, "all lines are sent", || {
            let now = agent.lines();
            let new: HashSet<&Vec<u8>> =
                now.iter().filter(|l| l.starts_with(b"f ") && !before.contains(l)).collect();
            before.len() + new.len() >= self.next as usize
        });
    }

    #[track_caller]
    fn stop(&mut self, agent: &mut Agent) {
        self.seen.extend(agent.stop().expect_code(0).lines());
    }

    /// Every line was sent once, and another start finds nothing to send.
    #[track_caller]
    fn finish(&self) {
        Delivered::of(&self.seen).assert_exactly_once(&[&Lines::new("f", 0..self.next)]);
        let again = self.agent().arg("--once").run().expect_code(0);
        assert_eq!(again.lines().len(), 0, "lines sent by a further start: {}", again.stderr);
        let lost = status_json(&self.folder, &self.folder.path("state"))["totals"]["lost_bytes"].as_u64();
        assert_eq!(lost, Some(0), "{}", again.stderr);
    }

    /// Ends a run that has sent everything; no duplicate may appear afterwards either.
    #[track_caller]
    fn finish_running(mut self, mut agent: Agent) {
        self.wait_sent(&agent);
        pause(secs(2)); // rotated files are checked again after a second
        self.stop(&mut agent);
        self.finish();
    }

    fn set_modified(&self, name: &str, time: SystemTime) {
        File::open(self.folder.path(name)).unwrap().set_modified(time).unwrap();
    }

    /// Does what copytruncate does, without writes in between.
    fn copy_and_truncate(&self, from: &str, to: &str) {
        std::fs::copy(self.folder.path(from), self.folder.path(to)).unwrap();
        self.truncate(from);
    }

    fn truncate(&self, name: &str) {
        OpenOptions::new().write(true).open(self.folder.path(name)).unwrap().set_len(0).unwrap();
    }

    #[track_caller]
    fn pack(&self, tool: &str, name: &str) {
        need(tool);
        let status = Command::new(tool).arg(self.folder.path(name)).status().unwrap();
        assert!(status.success(), "{tool} {name}");
    }
}

/// Runs `test` with all parameters in parallel.
fn each<T: Send + Sync + std::fmt::Debug>(parameters: impl IntoIterator<Item = T>, test: impl Fn(&T) + Sync) {
    let parameters: Vec<T> = parameters.into_iter().collect();
    thread::scope(|scope| {
        let runs: Vec<_> = parameters.iter().map(|p| (p, scope.spawn(|| test(p)))).collect();
        let failed: Vec<_> =
            runs.into_iter().filter_map(|(p, run)| run.join().is_err().then_some(p)).collect();
        assert!(failed.is_empty(), "{} of {} failed: {failed:?}", failed.len(), parameters.len());
    });
}

/// A pattern and the names that it matches, rotated files oldest first, the live file last.
const NAMES: [(&str, &[&str]); 5] = [
    (
        "logs/app.log*",
        &[
            "logs/app.log.8",
            "logs/app.log.7",
            "logs/app.log.6",
            "logs/app.log.5",
            "logs/app.log.4",
            "logs/app.log.3",
            "logs/app.log.2",
            "logs/app.log.1",
            "logs/app.log",
        ],
    ),
    (
        "logs/app.log*",
        &["logs/app.log-20260101", "logs/app.log-20260102", "logs/app.log-20260103", "logs/app.log"],
    ),
    ("logs/app*.log", &["logs/app-20260101.log", "logs/app-20260102.log", "logs/app.log"]),
    ("logs/a*.log", &["logs/a.3.log", "logs/a.2.log", "logs/a.1.log", "logs/a.log"]),
    ("logs/**/*", &["logs/app.log.3", "logs/app.log.2", "logs/app.log.1", "logs/app.log"]),
];

fn by_number_and_by_date() -> [(&'static str, &'static [&'static str]); 4] {
    [NAMES[0], NAMES[1], NAMES[2], NAMES[3]]
}

/// Files that are a second old, with the arguments in every order. Fails when the first look at one file marks its rotated
/// neighbors as read although they are followed too: of 180 lines 90 to 140 were missing.
#[test]
fn the_first_start_sends_rotated_files_too() {
    let mut cases = Vec::new();
    for (pattern, names) in NAMES {
        let reversed: Vec<&str> = names.iter().rev().copied().collect();
        let mixed: Vec<&str> =
            names.iter().step_by(2).chain(names.iter().skip(1).step_by(2)).copied().collect();
        for follow in [vec![pattern], names.to_vec(), reversed, mixed] {
            let mut case = Case::new(follow);
            for name in names {
                case.write(name);
            }
            cases.push(case);
        }
    }
    pause(millis(1100));
    for (at, mut case) in cases.into_iter().enumerate() {
        if at % 3 == 0 {
            case.until_sent();
        } else {
            case.once();
        }
        case.finish();
    }
}

/// Several logs in one folder, whose rotated files have times from before 1990 to next year, all equal, or in reverse.
#[test]
fn the_first_start_does_not_depend_on_times() {
    let mut cases = Vec::new();
    for times in 0..3u64 {
        let mut case = Case::new(["logs/*"]);
        for (log, n) in ["a.log", "b.log"].iter().flat_map(|l| (0..6u64).map(move |n| (l, n))) {
            let name = if n == 0 { format!("logs/{log}") } else { format!("logs/{log}.{n}") };
            case.write(&name);
            let age = [n * 50_000_000, 3600, (6 - n) * 86_400][times as usize];
            case.set_modified(&name, SystemTime::now() - secs(age));
        }
        cases.push(case);
    }
    pause(millis(1100));
    for mut case in cases {
        case.once();
        case.finish();
    }
}

/// `start = "end"`: files that exist at the first start are old, whatever their names. Fails when a fix for `beginning`
/// sends them.
#[test]
fn the_first_start_at_the_end_sends_nothing_old() {
    for (pattern, names) in NAMES {
        let mut case = Case { start: "end", ..Case::new([pattern]) };
        for name in names {
            case.folder.append(name, Lines::new("old", 0..20).bytes());
        }
        pause(millis(300));
        let agent = case.agent().start();
        for name in names {
            case.write(name);
        }
        case.finish_running(agent);
    }
}

/// The example of logagent(1), `/var/log/**`. Fails when a pattern with this ending matches no file at all.
#[test]
fn two_stars_at_the_end_match_files_at_any_depth() {
    let mut case = Case::new(["logs/**"]);
    case.folder.mkdir("logs/deep/deeper");
    for name in ["logs/a.log", "logs/a.log.1", "logs/deep/b.log", "logs/deep/deeper/c.log"] {
        case.write(name);
    }
    let agent = case.agent().start();
    case.wait_sent(&agent);
    case.folder.mkdir("logs/new");
    case.write("logs/new/d.log");
    case.finish_running(agent);
}

/// Only some rotated files are followed. Fails when another one is sent, or one of these is left out.
#[test]
fn the_first_start_sends_only_followed_files() {
    for follow in [["logs/app.log", "logs/app.log.2"], ["logs/app.log.2", "logs/app.log"]] {
        let mut case = Case::new(follow);
        case.folder.append("logs/app.log.3", Lines::new("old", 0..20).bytes());
        case.write("logs/app.log.2");
        case.folder.append("logs/app.log.1", Lines::new("old", 20..40).bytes());
        case.write("logs/app.log");
        pause(millis(1100));
        case.once();
        case.finish();
    }
}

/// A file was renamed to another name that the pattern matches, and a new file has its old name. Fails when its unread lines
/// wait for the next periodic check, or `--once` ends without them.
#[test]
fn renamed_while_down_and_replaced() {
    let renamed = |once: bool, known: bool| {
        let mut case = Case::new(["logs/x*"]);
        case.write("logs/x");
        if known {
            case.write("logs/x9"); // a name that sorts after it
        }
        case.once();
        case.write("logs/x");
        case.folder.rename("logs/x", "logs/x2");
        case.write("logs/x");
        if once {
            case.once();
            case.finish();
        } else {
            let agent = case.agent().start();
            case.finish_running(agent);
        }
    };
    // A race between two threads: the outcome varies on a busy machine.
    (0..6).for_each(|n| renamed(true, n % 2 == 0));
    each([false, false, true, true], |known| renamed(false, *known));
}

/// Fails when the entry of a renamed file is left to a tail that does not continue it.
#[test]
fn names_swapped_while_down() {
    each((0..6).map(|n| (n % 2 == 0, n / 2)), |&(once, files)| {
        let names: Vec<String> = (0..files + 2).map(|n| format!("logs/x{n}")).collect();
        let mut case = Case::new(["logs/x*"]);
        names.iter().for_each(|name| case.write(name));
        case.until_sent();
        names.iter().for_each(|name| case.write(name));
        case.folder.rename(&names[0], "logs/.aside");
        names.windows(2).for_each(|pair| case.folder.rename(&pair[1], &pair[0]));
        case.folder.rename("logs/.aside", names.last().unwrap());
        if once {
            case.once();
            case.finish();
        } else {
            let agent = case.agent().start();
            case.wait_sent(&agent);
            names.iter().for_each(|name| case.write(name));
            case.finish_running(agent);
        }
    });
}

/// Each file of the chain has unread lines. Fails when one of them waits, or two of them swap positions.
#[test]
fn rotated_while_down() {
    let each_name = by_number_and_by_date().into_iter().flat_map(|n| [(n, true), (n, false)]);
    each(each_name, |&((pattern, names), once)| {
        let mut case = Case::new([pattern]);
        let (live, rotated) = names.split_last().unwrap();
        case.write(live);
        case.until_sent();
        // Numbers in names count down towards the newest file, dates count up.
        let count_down = rotated.len() > 1 && rotated[0] > rotated[1];
        for round in 0..rotated.len() {
            case.write(live);
            if count_down {
                for pair in rotated[rotated.len() - 1 - round..].windows(2) {
                    case.folder.rename(pair[1], pair[0]);
                }
                case.folder.rename(live, rotated.last().unwrap());
            } else {
                case.folder.rename(live, rotated[round]);
            }
            case.write(live);
        }
        if once {
            case.once();
            case.finish();
        } else {
            let agent = case.agent().start();
            case.finish_running(agent);
        }
    });
}

/// After the start, a writer appends to the renamed file. Fails when the lines are missed, or found only by the 30 s check.
#[test]
fn a_late_write_to_a_file_renamed_while_down() {
    each(by_number_and_by_date(), |&(pattern, names)| {
        let (live, rotated) = (names[names.len() - 1], names[names.len() - 2]);
        let mut case = Case::new([pattern]);
        case.write(live);
        case.until_sent();
        case.folder.rename(live, rotated);
        case.write(live);
        let agent = case.agent().start();
        case.wait_sent(&agent);
        for _ in 0..3 {
            case.write(rotated);
            case.wait_sent(&agent);
            case.write(live);
            case.wait_sent(&agent);
        }
        case.finish_running(agent);
    });
}

/// The renamed file is deleted or compressed soon after the start. Fails when its lines are lost because it is checked too
/// late.
#[test]
fn renamed_while_down_and_gone_soon() {
    each([None, Some("gzip"), Some("bzip2")], |tool| {
        if let Some(tool) = tool {
            need(tool);
        }
        let mut case = Case::new(["logs/x", "logs/x2"]);
        case.write("logs/x");
        case.until_sent();
        case.write("logs/x");
        case.folder.rename("logs/x", "logs/x2");
        case.write("logs/x");
        let agent = case.agent().start();
        pause(secs(3));
        match tool {
            None => case.folder.remove("logs/x2"),
            Some(tool) => case.pack(tool, "logs/x2"),
        }
        case.finish_running(agent);
    });
}

/// The same events between two looks of a running agent.
#[test]
fn renamed_swapped_and_rotated_between_two_looks() {
    each(0..4, |round| {
        let mut case = Case::new(["logs/x*"]);
        for name in ["logs/x", "logs/x5", "logs/x.1"] {
            case.write(name);
        }
        let agent = case.agent().start();
        case.wait_sent(&agent);
        agent.pause();
        for name in ["logs/x", "logs/x5", "logs/x.1"] {
            case.write(name);
        }
        if round % 2 == 0 {
            case.folder.rename("logs/x", "logs/x2");
            case.write("logs/x");
        }
        case.folder.rename("logs/x5", "logs/.aside");
        case.folder.rename("logs/x", "logs/x5");
        case.folder.rename("logs/.aside", "logs/x");
        if round / 2 == 0 {
            chain(&case.folder, "logs/x");
            case.write("logs/x.1");
            case.write("logs/x");
        }
        agent.resume();
        case.finish_running(agent);
    });
}

/// Modification times from a clock that is behind.
fn behind() -> [(&'static str, SystemTime); 3] {
    let now = SystemTime::now();
    [
        ("an hour", now - secs(3600)),
        ("1970", SystemTime::UNIX_EPOCH + secs(40)),
        ("a day", now - secs(86_400)),
    ]
}

/// Two rotations while the agent is down; then the clock is behind, or the times were restored. Fails when modification
/// times decide whether a rotated file was read: a.log.1 was never sent, with `lost_bytes` 0.
#[test]
fn rotated_twice_while_the_clock_is_behind() {
    let pairs = behind().into_iter().flat_map(|b| [(b.0, b.1, "logs/a.log"), (b.0, b.1, "logs/a.log*")]);
    each(pairs, |&(_, time, follow)| {
        let mut case = Case::new([follow]);
        case.write("logs/a.log");
        case.until_sent();
        case.write("logs/a.log");
        case.set_modified("logs/a.log", time);
        for round in 1..4u64 {
            chain(&case.folder, "logs/a.log");
            case.write("logs/a.log");
            case.set_modified("logs/a.log", time + secs(round));
        }
        case.once();
        case.finish();
    });
}

/// The same with compression, and between two looks of a running agent.
#[test]
fn rotated_twice_while_the_clock_is_behind_and_compressed_or_paused() {
    let all = behind().into_iter().flat_map(|b| (0..4).map(move |n| (b.0, b.1, n % 2 == 0, n / 2 == 0)));
    each(all, |&(_, time, compressed, paused)| {
        let mut case = Case::new(["logs/a.log"]);
        case.write("logs/a.log");
        let mut agent = case.agent().start();
        case.wait_sent(&agent);
        if paused {
            agent.pause();
        } else {
            case.stop(&mut agent);
        }
        for round in 0..3u64 {
            chain(&case.folder, "logs/a.log");
            case.write("logs/a.log");
            case.set_modified("logs/a.log", time + secs(round));
        }
        if compressed {
            case.pack("gzip", "logs/a.log.2");
        }
        if paused {
            agent.resume();
        } else {
            agent = case.agent().start();
        }
        case.finish_running(agent);
    });
}

/// Sent rotated files get older or newer times, as from rsync, tar and `touch`. Fails when they are sent again.
#[test]
fn changed_times_of_sent_files() {
    each(["logs/a.log", "logs/a.log*"], |follow| {
        let mut case = Case::new([follow]);
        case.write("logs/a.log");
        for _ in 0..3 {
            case.until_sent();
            chain(&case.folder, "logs/a.log");
            case.write("logs/a.log");
        }
        case.once();
        let year = secs(365 * 86_400);
        for (name, time) in [
            ("logs/a.log", SystemTime::now() - year),
            ("logs/a.log.1", SystemTime::now() + year),
            ("logs/a.log.2", SystemTime::UNIX_EPOCH),
            ("logs/a.log.3", SystemTime::now()),
        ] {
            case.set_modified(name, time);
            case.once();
        }
        case.write("logs/a.log");
        case.once();
        case.finish();
    });
}

/// bzip2 keeps whole seconds, so the compressed file seems older than the last line read. Fails when unread lines in an
/// unsupported format are skipped silently, or when a file that was read is reported.
#[test]
fn packed_by_bzip2_in_the_second_of_the_last_line_read() {
    let second = SystemTime::UNIX_EPOCH
        + secs(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs());
    for unread in [true, false] {
        let mut case = Case::new(["logs/a.log"]);
        case.write("logs/a.log");
        case.set_modified("logs/a.log", second + millis(500));
        case.until_sent();
        if unread {
            chain(&case.folder, "logs/a.log");
            case.folder.write("logs/a.log", Lines::new("unread", 0..20).bytes());
            case.set_modified("logs/a.log", second + millis(800));
        }
        chain(&case.folder, "logs/a.log");
        case.pack("bzip2", "logs/a.log.1");
        case.write("logs/a.log");
        let done = case.agent().arg("--once").run().expect_code(0);
        let reports = done.stderr.matches("compression format is not supported").count();
        assert_eq!(reports, usize::from(unread), "unread {unread}: {}", done.stderr);
        case.seen.extend(done.lines());
        case.finish();
    }
}

/// The names of a log and of its copies, newest last, with a pattern that matches all of them.
const COPIES: [(&str, &str, [&str; 3]); 5] = [
    ("logs/app.log*", "logs/app.log", ["logs/app.log.3", "logs/app.log.2", "logs/app.log.1"]),
    ("logs/a*.log", "logs/a.log", ["logs/a.1.log", "logs/a.2.log", "logs/a.3.log"]),
    (
        "logs/app.log*",
        "logs/app.log",
        ["logs/app.log-20260101", "logs/app.log-20260102", "logs/app.log-20260103"],
    ),
    (
        "logs/app*.log",
        "logs/app.log",
        ["logs/app-20260101.log", "logs/app-20260102.log", "logs/app-20260103.log"],
    ),
    ("logs/**/*", "logs/app.log", ["logs/app.log.old", "logs/app.bak", "logs/0"]),
];

/// Copied and truncated while the agent runs, with everything read before, or none of the last lines. Fails when the copy is
/// sent as a separate file, or lines that only the copy has are lost.
#[test]
fn copytruncate_to_names_that_the_pattern_matches() {
    let all = COPIES.into_iter().flat_map(|c| [(c, false), (c, true)]);
    each(all, |&((pattern, live, copies), paused)| {
        let mut case = Case::new([pattern]);
        case.write(live);
        let agent = case.agent().start();
        for copy in copies {
            case.wait_sent(&agent);
            if paused {
                agent.pause();
            }
            case.write(live);
            if !paused {
                case.wait_sent(&agent);
            }
            case.copy_and_truncate(live, copy);
            case.write(live);
            agent.resume();
        }
        case.finish_running(agent);
    });
}

/// Copied and truncated while no agent runs.
#[test]
fn copytruncate_while_down_to_names_that_the_pattern_matches() {
    let all = COPIES.into_iter().flat_map(|c| [(c, false), (c, true)]);
    each(all, |&((pattern, live, copies), unread)| {
        let mut case = Case::new([pattern]);
        case.write(live);
        for copy in copies {
            case.once();
            if unread {
                case.write(live);
            }
            case.copy_and_truncate(live, copy);
            case.write(live);
        }
        case.once();
        case.finish();
    });
}

/// Copied and truncated while no agent runs, and then copy and original swap their names. Fails when the file at the
/// log's name is taken for a replaced log, which is read from the beginning, although the log itself still exists,
/// truncated.
#[test]
fn copytruncate_while_down_and_names_swapped() {
    let all = COPIES.into_iter().flat_map(|c| [(c, false), (c, true)]);
    each(all, |&((pattern, live, copies), empty)| {
        let mut case = Case::new([pattern]);
        case.write(live);
        case.once();
        case.write(live);
        case.copy_and_truncate(live, copies[0]);
        if !empty {
            case.write(live);
        }
        case.folder.rename(live, "logs/.aside");
        case.folder.rename(copies[0], live);
        case.folder.rename("logs/.aside", copies[0]);
        case.write(live);
        case.once();
        case.finish();
    });
}

/// The copy takes time, and the truncation comes later still. Fails when a copy is recognized by its first bytes only, or by
/// its current end while it grows.
#[test]
fn a_slow_copy_that_the_pattern_matches() {
    each(COPIES, |&(pattern, live, copies)| {
        let mut case = Case::new([pattern]);
        case.write(live);
        case.write(live);
        let agent = case.agent().start();
        case.wait_sent(&agent);
        let bytes = std::fs::read(case.folder.path(live)).unwrap();
        // Up to the middle of a line, up to the end of one, and the rest.
        for part in [&bytes[..700], &bytes[700..201 * 10], &bytes[201 * 10..]] {
            case.folder.append(copies[0], part);
            pause(millis(700));
        }
        pause(secs(1));
        case.truncate(live);
        case.write(live);
        case.finish_running(agent);
    });
}

/// The agent has read lines written between the copy and the truncation. Fails when the shorter copy is sent again.
#[test]
fn a_matched_copy_that_is_shorter_than_what_was_read() {
    each(COPIES, |&(pattern, live, copies)| {
        let mut case = Case::new([pattern]);
        case.write(live);
        let agent = case.agent().start();
        for copy in copies {
            case.wait_sent(&agent);
            std::fs::copy(case.folder.path(live), case.folder.path(copy)).unwrap();
            case.write(live);
            case.wait_sent(&agent);
            case.truncate(live);
            case.write(live);
        }
        case.finish_running(agent);
    });
}

/// `cp app.log app.log.1` over a file that is itself followed, then the truncation: the same name and inode each time. Fails
/// when different bytes in a file that was read count as new lines.
#[test]
fn copied_over_a_file_that_is_followed() {
    each(["while running", "while paused", "while down"], |&when| {
        let mut case = Case::new(["logs/app.log*"]);
        case.write("logs/app.log.1");
        case.write("logs/app.log");
        let mut agent = case.agent().start();
        for _ in 0..3 {
            case.wait_sent(&agent);
            match when {
                "while running" => {}
                "while paused" => agent.pause(),
                _ => case.stop(&mut agent),
            }
            case.copy_and_truncate("logs/app.log", "logs/app.log.1");
            case.write("logs/app.log");
            match when {
                "while running" => {}
                "while paused" => agent.resume(),
                _ => agent = case.agent().start(),
            }
        }
        case.finish_running(agent);
    });
}

/// Killed between the copy and the next step. Fails when a line is lost, or duplicates exceed the reported count.
#[test]
fn killed_around_a_matched_copy() {
    each(COPIES, |&(pattern, live, copies)| {
        let mut case = Case::new([pattern]);
        case.write(live);
        for copy in copies {
            let mut agent = case.agent().start();
            case.write(live);
            case.copy_and_truncate(live, copy);
            case.write(live);
            pause(millis(200));
            case.seen.extend(agent.kill().whole_lines());
        }
        case.once();
        let doubled =
            Delivered::of(&case.seen).assert_at_least_once(&[&Lines::new("f", 0..case.next)]) as u64;
        let totals = status_json(&case.folder, &case.folder.path("state"))["totals"].clone();
        assert!(doubled <= totals["doubled_at_most"].as_u64().unwrap(), "{doubled} doubled: {totals}");
    });
}

/// Killed before anything was acknowledged, then rotated, compressed, and followed by a longer log: nothing was read, so only
/// lengths tell where the file is. Fails when the new log is taken for it: its lines then count as lost, although they are sent
/// from the `.gz`.
#[test]
fn killed_before_the_first_acknowledgement_and_compressed() {
    // Tails start in the order of names.
    let names = ["logs/f.1.log", "logs/f.log.1", "logs/f-20260101.log", "logs/f.log-20260101"];
    each(names, |&rotated| {
        let (mut case, live) = (Case::new(["logs/f*"]), "logs/f.log");
        case.write(live);
        let nowhere = ["--brokers", "127.0.0.1:1", "--topic", "t"];
        let mut agent = nowhere.iter().fold(case.agent_to("kafka"), Setup::arg).start();
        wait_until(FEW_SECONDS, "the opening is saved", || {
            let saved = std::fs::read_to_string(case.folder.path("state/offsets"));
            saved.is_ok_and(|text| text.contains("stream 1 at=0:"))
        });
        agent.kill();
        case.write(live);
        case.folder.rename(live, rotated);
        case.pack("gzip", rotated);
        (0..3).for_each(|_| case.write(live));
        case.once();
        case.finish();
    });
}

/// Logs that begin with the same banner are different logs. Fails when a common beginning makes one count as a copy of the
/// other.
#[test]
fn a_file_with_the_same_beginning_is_not_a_copy() {
    let banner = Lines::new("banner", 0..30).bytes();
    let mut case = Case::new(["logs/*"]);
    case.folder.append("logs/a.log", &banner);
    case.write("logs/a.log");
    let agent = case.agent().start();
    wait_until(FEW_SECONDS, "the first file", || agent.count_lines() == 50);
    case.folder.append("logs/a.log.1", &banner);
    case.write("logs/a.log.1");
    case.folder.append("logs/b.log", &banner);
    case.write("logs/b.log");
    wait_until(FEW_SECONDS, "the others' own lines", || {
        agent.lines().iter().filter(|l| l.starts_with(b"f ")).count() as u64 >= case.next
    });
    let own = agent.lines().into_iter().filter(|l| l.starts_with(b"f "));
    Delivered::of(own).assert_exactly_once(&[&Lines::new("f", 0..case.next)]);
}

fn gz(lines: &[u8]) -> Vec<u8> {
    need("gzip");
    let folder = Folder::new();
    let path = folder.write("f", lines);
    let output = Command::new("gzip").arg("-c").arg(path).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

impl Case {
    /// A complete `.gz` of the next 20 lines.
    fn write_gz(&mut self, name: &str) {
        let lines = Lines::new("f", self.next..self.next + 20);
        self.next = lines.range.end;
        let packed = gz(&lines.bytes());
        self.folder.write(name, packed);
    }
}

/// A `.gz` without a known original, matched by a pattern or given as an argument. Fails when compressed bytes are sent.
#[test]
fn a_matched_gz_is_unpacked() {
    let follows: [&[&str]; 5] = [
        &["logs/*"],
        &["logs/**/*"],
        &["logs/a.gz", "logs/old/app.log.2.gz", "logs/app-20260101.log.gz"],
        &["logs/app-20260101.log.gz", "logs/a.gz", "logs/old/app.log.2.gz"],
        &["logs/*.gz", "logs/*/*.gz"],
    ];
    for once in [true, false] {
        each(follows, |follow| {
            let mut case = Case::new(follow.iter());
            case.folder.mkdir("logs/old");
            case.write_gz("logs/a.gz");
            if follow[0] != "logs/*" {
                case.write_gz("logs/old/app.log.2.gz");
            }
            case.write_gz("logs/app-20260101.log.gz");
            pause(millis(1100));
            if once {
                case.once();
                case.finish();
            } else {
                let agent = case.agent().start();
                case.finish_running(agent);
            }
        });
    }
}

/// A `.gz` appears while the agent runs: at once, by rename, or slowly. Fails when it is sent incompletely or twice.
#[test]
fn a_gz_that_appears_while_the_agent_runs() {
    let mut case = Case::new(["logs/*"]);
    case.write("logs/other.log");
    let agent = case.agent().start();
    case.wait_sent(&agent);
    case.write_gz("logs/at-once.gz");
    case.wait_sent(&agent);
    let lines = Lines::new("f", case.next..case.next + 400);
    case.next = lines.range.end;
    let packed = gz(&lines.bytes());
    case.folder.write("aside", &packed);
    case.folder.rename("aside", "logs/renamed.log.gz");
    case.wait_sent(&agent);
    let lines = Lines::new("f", case.next..case.next + 400);
    let packed = gz(&lines.bytes());
    for part in packed.chunks(packed.len() / 3 + 1) {
        pause(millis(700));
        case.folder.append("logs/slow.log.gz", part);
    }
    case.next = lines.range.end;
    case.finish_running(agent);
}

/// Compressed after it was read completely, in part, or not at all; the pattern matches the `.gz` as well. Fails when sent
/// lines are sent again from the `.gz`, or unsent ones are lost.
#[test]
fn compressed_under_the_pattern_while_down() {
    let names = ["logs/x", "logs/app.log.1", "logs/app-20260101.log", "logs/app.log"];
    each(names.into_iter().flat_map(|n| (0..3).map(move |read| (n, read))), |&(name, read)| {
        let mut case = Case::new(["logs/*"]);
        case.write("logs/other");
        if read > 0 {
            case.write(name);
        }
        case.once();
        if read < 2 {
            case.write(name);
        }
        case.pack("gzip", name);
        case.write("logs/other");
        case.once();
        case.write("logs/other");
        case.once();
        case.finish();
    });
}

/// The same while the agent runs.
#[test]
fn compressed_under_the_pattern_while_running() {
    each(["logs/x", "logs/app.log.1", "logs/app-20260101.log", "logs/app.log"], |name| {
        let mut case = Case::new(["logs/*"]);
        case.write(name);
        let agent = case.agent().start();
        case.wait_sent(&agent);
        case.pack("gzip", name);
        case.write("logs/other");
        case.wait_sent(&agent);
        pause(secs(1));
        agent.pause();
        case.write("logs/second");
        case.pack("gzip", "logs/second");
        agent.resume();
        case.finish_running(agent);
    });
}

/// `gzip -k`, and a copy that is compressed: original and `.gz` exist at the same time. Fails when both are sent.
#[test]
fn a_gz_beside_its_original() {
    each(["first start", "while down", "while running"], |&when| {
        let mut case = Case::new(["logs/*"]);
        case.write("logs/app.log.1");
        case.write("logs/app.log");
        let keep = |case: &Case| {
            let packed = gz(&std::fs::read(case.folder.path("logs/app.log.1")).unwrap());
            case.folder.write("logs/app.log.1.gz", packed);
        };
        if when == "while down" {
            case.once();
        }
        if when != "while running" {
            keep(&case);
        }
        let agent = case.agent().start();
        case.wait_sent(&agent);
        if when == "while running" {
            keep(&case);
        }
        case.write("logs/app.log");
        case.finish_running(agent);
    });
}

/// Rotation with compression like logrotate's, a pattern that matches everything, and several agent runs.
#[test]
fn a_chain_with_gz_under_the_pattern() {
    let variants = (0..8).map(|n| (n % 2 == 0, n / 2 % 2 == 0, n / 4 == 0));
    each(variants, |&(delayed, stops, by_copy)| {
        let mut case = Case::new(["logs/app.log*"]);
        case.write("logs/app.log");
        let mut agent = Some(case.agent().start());
        for round in 0..4 {
            case.write("logs/app.log");
            if let Some(agent) = &agent {
                case.wait_sent(agent);
            }
            if stops && round % 2 == 1 {
                let mut stopped = agent.take().unwrap();
                case.stop(&mut stopped);
            }
            let path = |n: u32, gz: &str| format!("logs/app.log.{n}{gz}");
            for n in (1..8).rev() {
                for gz in ["", ".gz"] {
                    if case.folder.path(path(n, gz)).exists() {
                        case.folder.rename(&path(n, gz), &path(n + 1, gz));
                    }
                }
            }
            if by_copy {
                case.copy_and_truncate("logs/app.log", "logs/app.log.1");
            } else {
                case.folder.rename("logs/app.log", "logs/app.log.1");
            }
            case.write("logs/app.log");
            let due = path(if delayed { 2 } else { 1 }, "");
            if case.folder.path(&due).exists() {
                case.pack("gzip", &due);
            }
            if agent.is_none() {
                agent = Some(case.agent().start());
            }
        }
        let agent = agent.unwrap();
        case.finish_running(agent);
    });
}

/// `start = "end"`: a `.gz` that exists at the first start is old, a later one is new.
#[test]
fn a_gz_at_the_end() {
    let mut case = Case { start: "end", ..Case::new(["logs/*"]) };
    case.folder.write("logs/old.gz", gz(&Lines::new("old", 0..20).bytes()));
    case.folder.write("logs/old.log", Lines::new("old", 20..40).bytes());
    pause(millis(300));
    let agent = case.agent().start();
    wait_until(SOON, "it has looked", || agent.log().contains("following"));
    case.pack("gzip", "logs/old.log");
    case.write_gz("logs/new.gz");
    case.write("logs/new.log");
    case.finish_running(agent);
}

/// Several members, none, and damage. Fails when only the first member is sent, or complete lines before the damage are not.
#[test]
fn matched_gz_of_all_kinds() {
    let mut case = Case::new(["logs/*"]);
    let parts: Vec<Vec<u8>> = (0..3).map(|n| gz(&Lines::new("f", n * 20..n * 20 + 20).bytes())).collect();
    case.next = 60;
    case.folder.write("logs/members.gz", parts.concat());
    case.folder.write("logs/empty.gz", gz(b""));
    pause(millis(1100));
    case.once();
    case.finish();

    let case = Case::new(["logs/*"]);
    let whole = gz(&Lines::new("f", 0..5000).bytes());
    case.folder.write("logs/damaged.gz", &whole[..whole.len() / 2]);
    case.set_modified("logs/damaged.gz", SystemTime::now() - secs(3600));
    let done = case.agent().arg("--once").run().expect_code(0);
    let lines = done.lines();
    assert!(lines.len() > 500, "{} lines: {}", lines.len(), done.stderr);
    assert!(done.stderr.contains("damaged"), "{}", done.stderr);
    Delivered::of(&lines).assert_exactly_once(&[&Lines::new("f", 0..lines.len() as u64)]);
}

/// Fails when `check` does not say how a `.gz` that a pattern matches is treated.
#[test]
fn check_reports_how_a_matched_gz_is_treated() {
    let mut case = Case::new(["logs/*"]);
    case.write("logs/a.log");
    case.write_gz("logs/b.gz");
    let config = format!(
        "[agent]\nstate_dir = {:?}\n[kafka]\nbrokers = [\"127.0.0.1:1\"]\ntopic = \"t\"\n[[files]]\npaths = [{:?}]\n",
        case.folder.path("state"),
        case.folder.path("logs/*"),
    );
    case.folder.write("c.toml", config);
    let done = case.folder.agent_line("check -c c.toml").run().expect_code(0);
    let said = String::from_utf8(done.stdout).unwrap() + &done.stderr;
    let of_gz: Vec<&str> = said.lines().filter(|l| l.contains(".gz")).collect();
    assert!(of_gz.iter().any(|l| l.contains("pack") || l.contains("compress")), "{said}");
}

/// An overlay file system over `lower`, mounted at `seen` in its own namespace; then runs the lines of `script`.
fn overlay(folder: &Folder, script: &str) -> Jail {
    for name in ["lower", "upper", "work", "seen"] {
        folder.mkdir(name);
    }
    let mount = "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work seen
        until_there() { while ! [ -e $1 ]; do sleep 0.02; done; }
        life() { \"$A\" run --output stdout --from $2 --state-dir state $3 & pid=$!; until_there $1; kill $pid; wait $pid || :; }";
    Jail::start(folder, &format!("{mount}\n{script}"))
}

fn append_seen(folder: &Folder, agent: &Jail, name: &str, lines: &Lines) {
    beside(agent, &format!("cat >>{}/seen/{name}", folder.root().display()), &lines.bytes());
}

/// A log file in an image layer: the first append copies it up, so the visible file has another birth time and is not the
/// open one. Fails when the old lines are sent again, or new ones twice.
#[test]
fn the_first_append_to_a_file_of_an_image_layer() {
    each(["a.log", "*", "a.log*"], |follow| {
        let folder = Folder::new();
        folder.write("lower/a.log", Lines::new("a", 0..50).bytes());
        pause(millis(50));
        let agent = overlay(&folder, &format!("life stop beginning 'seen/{follow}'"));
        agent.wait_lines(50);
        for round in 0..5u64 {
            append_seen(&folder, &agent, "a.log", &Lines::new("a", 50 + round * 10..60 + round * 10));
            agent.wait_lines(60 + round as usize * 10);
        }
        pause(secs(2));
        // A rotation works there too.
        let script = format!("cd {}/seen; mv a.log a.log.1; : >a.log", folder.root().display());
        beside(&agent, &script, b"");
        append_seen(&folder, &agent, "a.log", &Lines::new("a", 100..110));
        agent.wait_lines(110);
        pause(secs(2));
        Delivered::of(agent.lines()).assert_exactly_once(&[&Lines::new("a", 0..110)]);
        assert!(!agent.log().contains("lost"), "{}", agent.log());
    });
}

/// As before, with `start = "end"`: copied up while no agent runs, while it runs, and across a restart of both (a restarted
/// container has another device number).
#[test]
fn copied_up_over_restarts() {
    each([false, true], |&copied_while_down| {
        let folder = Folder::new();
        folder.write("lower/a.log", Lines::new("old", 0..50).bytes());
        pause(millis(50));
        let lives = "life stop1 end 'seen/*'; until_there start2; life stop2 end 'seen/*'; until_there never";
        let agent = overlay(&folder, lives);
        wait_until(SOON, "it has looked", || agent.log().contains("following 1 file"));
        if !copied_while_down {
            append_seen(&folder, &agent, "a.log", &Lines::new("a", 0..10));
            agent.wait_lines(10);
            pause(secs(1));
        }
        let before = if copied_while_down { 0 } else { 10 };
        folder.write("stop1", b"");
        wait_until(SOON, "it has ended", || is_free(&folder));
        append_seen(&folder, &agent, "a.log", &Lines::new("a", before..20));
        folder.write("start2", b"");
        agent.wait_lines(20);
        append_seen(&folder, &agent, "a.log", &Lines::new("a", 20..30));
        agent.wait_lines(30);
        folder.write("stop2", b"");
        wait_until(SOON, "it has ended", || is_free(&folder));
        pause(millis(100));
        let mut seen = agent.lines();
        drop(agent);
        std::fs::remove_dir_all(folder.path("work")).unwrap();
        // The container restarts.
        let agent = overlay(&folder, "life stop3 end 'seen/*'");
        wait_until(SOON, "it has looked", || agent.log().contains("following 1 file"));
        append_seen(&folder, &agent, "a.log", &Lines::new("a", 30..40));
        agent.wait_lines(10);
        pause(secs(2));
        seen.extend(agent.lines());
        Delivered::of(seen).assert_exactly_once(&[&Lines::new("a", 0..40)]);
        assert!(!agent.log().contains("lost"), "{}", agent.log());
    });
}

/// Whether no agent holds the lock of the state folder.
fn is_free(folder: &Folder) -> bool {
    let lock = Command::new("flock").arg("-n").arg(folder.path("state/lock")).arg("true").status();
    folder.path("state/lock").exists() && lock.unwrap().success()
}
