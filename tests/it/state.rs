//! The state folder across restarts, kills and damage, and what `status` reports about it. Without a broker: output
//! goes to standard output. Crash images of single saves are unit tests of `state/store.rs`.

use crate::harness::*;
use rustix::process::Signal;
use std::fs;
use std::path::Path;
use std::time::{Instant, SystemTime};

const LIVE: &str = "run --output stdout --from beginning --state-dir state";

fn agent(folder: &Folder) -> Setup {
    folder.agent_line(LIVE).arg("f.log")
}

fn state(folder: &Folder) -> serde_json::Value {
    status_json(folder, &folder.path("state"))
}

/// `logagent status --shipped FILE`: its exit code and output.
fn shipped(folder: &Folder, file: &str) -> (Option<i32>, String) {
    let done = folder.agent_line("status --state-dir state --shipped").arg(file).run();
    (done.code(), done.stderr.clone())
}

/// Names, times and lengths; not of `lock`, whose process id changes at each start.
fn snapshot(folder: &Path) -> Vec<(String, SystemTime, u64)> {
    let mut all: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let about = entry.metadata().unwrap();
            (entry.file_name().into_string().unwrap(), about.modified().unwrap(), about.len())
        })
        .filter(|(name, ..)| name != "lock" && name != "status")
        .collect();
    all.sort();
    all
}

/// Fails when a file that grows becomes another stream.
#[test]
fn a_growing_file_keeps_its_one_entry() {
    let folder = Folder::new();
    let mut seen = Vec::new();
    for (from, to) in [(0, 1), (1, 2), (2, 1000), (1000, 2000)] {
        folder.append("f.log", Lines::new("f", from..to).bytes());
        let mut agent = agent(&folder).start();
        seen.extend(agent.wait_lines((to - from) as usize));
        agent.stop().expect_code(0);
        assert_eq!(state(&folder)["files"][0]["streams"].as_array().unwrap().len(), 1);
    }
    Delivered::of(seen).assert_exactly_once(&[&Lines::new("f", 0..2000)]);
    let text = fs::read_to_string(folder.path("state/offsets")).unwrap();
    assert_eq!(text.matches("\nstream ").count(), 1, "{text}");
}

/// Fails when a kill loses a line, when a clean stop doubles one, or when `doubled_at_most` is too low: also while no
/// agent runs, after several kills in a row.
#[test]
fn kills_lose_nothing_and_what_they_double_is_bounded() {
    let folder = Folder::new();
    let writer = Writer::steady(folder.path("f.log"), "f", 5000);
    let mut seen = Vec::new();
    for round in 0..8u64 {
        let mut agent = agent(&folder).start();
        pause(millis(100 + 250 * (round % 4)));
        let done = if round % 4 != 3 { agent.kill() } else { agent.stop() };
        seen.extend(done.whole_lines());
        let different: std::collections::HashSet<_> = seen.iter().collect();
        let (doubled, at_most) =
            (seen.len() - different.len(), state(&folder)["totals"]["doubled_at_most"].as_u64().unwrap());
        assert!(doubled as u64 <= at_most, "round {round}: {doubled} doubled, {at_most} at most");
    }
    let written = writer.finish();
    let mut last = agent(&folder).start();
    wait_until(SOON, "all is acknowledged", || shipped(&folder, "f.log").0 == Some(0));
    let at_most = state(&folder)["totals"]["doubled_at_most"].as_u64().unwrap();
    seen.extend(last.stop().expect_code(0).lines());
    let doubled = Delivered::of(seen).assert_at_least_once(&[&written]) as u64;
    assert!(doubled <= at_most, "{doubled} doubled, {at_most} at most");
    let after = &state(&folder)["totals"];
    assert_eq!(after["doubled_at_most"].as_u64(), Some(at_most), "kept over the end");
    assert_eq!(after["acked"].as_u64(), Some(written.count() as u64));
}

/// Killed repeatedly before it has run for a second. Fails when a short run leaves no progress behind: each run then
/// sends all lines again.
#[test]
fn short_runs_make_progress() {
    let folder = Folder::new();
    let writer = Writer::steady(folder.path("f.log"), "f", 5000);
    wait_until(SOON, "the first lines", || writer.written() > 0);
    let (mut seen, mut saved) = (Vec::new(), vec![0]);
    for _ in 0..8 {
        let mut agent = agent(&folder).start();
        wait_until(SOON, "its first line", || agent.count_lines() > 0);
        pause(millis(300));
        seen.extend(agent.kill().whole_lines());
        saved.push(state(&folder)["files"][0]["acknowledged"].as_u64().unwrap_or_default());
    }
    let written = writer.finish();
    let mut last = agent(&folder).start();
    wait_until(SOON, "all is acknowledged", || shipped(&folder, "f.log").0 == Some(0));
    seen.extend(last.stop().expect_code(0).lines());
    let doubled = Delivered::of(seen).assert_at_least_once(&[&written]);
    let lives_with_progress = saved.windows(2).filter(|w| w[1] > w[0]).count();
    assert!(lives_with_progress >= 6, "saved after each run: {saved:?}");
    assert!(doubled < written.count() * 2, "{doubled} doubled of {}", written.count());
}

/// Fails when a damaged file counts as an empty state, or when damage to both files does not stop the start.
#[test]
fn damage_falls_back_to_the_previous_state_or_refuses() {
    let folder = Folder::new();
    let lines = Lines::new("f", 0..100);
    folder.write("f.log", lines.bytes());
    for more in [0..100, 100..200] {
        folder.write("f.log", Lines::new("f", 0..more.end).bytes());
        let mut agent = agent(&folder).start();
        agent.wait_lines(100);
        agent.stop().expect_code(0);
    }
    let good = fs::read(folder.path("state/offsets")).unwrap();
    let random: Vec<u8> = (0..500u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let damages = [
        Vec::new(),
        vec![0; good.len()],
        random,
        good[..good.len() / 2].to_vec(),
        [&good[..], b"tail"].concat(),
    ];
    for bytes in &damages {
        folder.write("state/offsets", bytes);
        let mut agent = agent(&folder).start();
        agent.wait_log("continuing from offsets.previous", SOON);
        agent.stop().expect_code(0);
        assert_eq!(state(&folder)["files"][0]["acknowledged"], state(&folder)["files"][0]["size"]);
        folder.write("state/offsets", &good);
    }
    for bytes in &damages {
        folder.write("state/offsets", bytes);
        folder.write("state/offsets.previous", bytes);
        let said = agent(&folder).run().expect_code(78).stderr;
        assert!(said.contains("damaged_state") && said.trim_end().lines().count() == 1, "{said}");
    }
    folder.write("logagent.toml", format!(
        "[agent]\nstate_dir = {:?}\ndamaged_state = \"beginning\"\n[[files]]\npaths = [{:?}]\nstart = \"end\"\n",
        folder.path("state"), folder.path("f.log")
    ));
    let mut agent = folder.agent_line("run -c logagent.toml --output stdout").start();
    Delivered::of(agent.wait_lines(200)).assert_exactly_once(&[&Lines::new("f", 0..200)]);
    agent.stop().expect_code(0);
}

/// The disk returns errors. Fails when delivery stops, when status does not show it, or when it does not recover.
#[test]
fn positions_that_cannot_be_saved_do_not_stop_delivery() {
    let folder = Folder::new();
    folder.append("f.log", Lines::new("f", 0..10).bytes());
    let mut agent = agent(&folder).start();
    agent.wait_lines(10);
    wait_until(SOON, "the first save", || {
        state(&folder)["files"][0]["saved"] == state(&folder)["files"][0]["size"]
    });
    fs::create_dir(folder.path("state/offsets.tmp")).unwrap(); // refuses root as well
    folder.append("f.log", Lines::new("f", 10..20).bytes());
    agent.wait_lines(20);
    let is_degraded = |s: &serde_json::Value| s["state"]["degraded"].is_string();
    wait_status(&folder, &folder.path("state"), "shown as degraded", is_degraded);
    fs::remove_dir(folder.path("state/offsets.tmp")).unwrap();
    wait_status(&folder, &folder.path("state"), "saved again", |s| !is_degraded(s));
    let log = agent.stop().expect_code(0).stderr;
    assert_eq!(log.matches("ERROR").count(), 1, "{log}");
}

/// Fails when every rotated file leaves an entry behind forever. The short form; the registry's unit test has 10,000.
#[test]
fn rotations_leave_a_bounded_state() {
    let folder = Folder::new();
    folder.append("f.log", Lines::new("f", 0..1).bytes());
    let config = format!(
        "[agent]\nstate_dir = {:?}\n[[files]]\npaths = [{:?}]\nrotate_grace = \"1ms\"\n",
        folder.path("state"),
        folder.path("f.log")
    );
    folder.write("logagent.toml", config);
    let mut agent = folder.agent_line("run -c logagent.toml --output stdout --from beginning").start();
    agent.wait_lines(1);
    let rounds = 150;
    for round in 1..=rounds {
        folder.rename("f.log", "f.log.1");
        folder.append("f.log", Lines::new("f", round..round + 1).bytes());
        agent.wait_lines(round as usize + 1);
    }
    let done = agent.stop().expect_code(0);
    Delivered::of(done.lines()).assert_exactly_once(&[&Lines::new("f", 0..rounds + 1)]);
    let text = fs::read_to_string(folder.path("state/offsets")).unwrap();
    let kept = text.matches("\nstream ").count();
    assert!(kept <= 80, "{kept} streams after {rounds} rotations");
}

/// Fails when an idle agent, or a restart without changes, writes to the state folder.
#[test]
fn nothing_is_written_while_nothing_changes() {
    let folder = Folder::new();
    folder.append("f.log", Lines::new("f", 0..10).bytes());
    let mut first = agent(&folder).start();
    first.wait_lines(10);
    wait_until(SOON, "the first save", || {
        state(&folder)["files"][0]["saved"] == state(&folder)["files"][0]["size"]
    });
    let before = snapshot(&folder.path("state"));
    pause(secs(3));
    assert_eq!(snapshot(&folder.path("state")), before);
    first.stop().expect_code(0);
    let before = snapshot(&folder.path("state"));
    agent(&folder).start().stop().expect_code(0);
    assert_eq!(snapshot(&folder.path("state")), before);
}

/// Fails without the lock, when the message does not name the other process, or when a kill leaves the folder locked.
#[test]
fn two_agents_on_one_folder() {
    let folder = Folder::new();
    folder.append("f.log", "a\n");
    let mut first = agent(&folder).start();
    let said = agent(&folder).run().expect_code(1).stderr;
    assert!(said.contains(&format!("process {}", first.id())), "{said}");
    first.kill();
    agent(&folder).start().stop().expect_code(0);
}

/// Fails when a rotated file is matched by its name, when an unread line counts as shipped, or the rest of one as
/// unread.
#[test]
fn shipped_is_exact() {
    let folder = Folder::new();
    folder.append("f.log", "one\ntwo\nrest");
    assert_eq!(shipped(&folder, "f.log").0, Some(1), "nothing was ever read");
    let mut live = agent(&folder).start();
    live.wait_lines(2);
    wait_until(SOON, "shipped", || shipped(&folder, "f.log").0 == Some(0));
    live.pause();
    folder.append("f.log", " is here\n");
    live.resume();
    wait_until(SOON, "shipped again", || shipped(&folder, "f.log").0 == Some(0));
    live.stop().expect_code(0);
    assert_eq!(shipped(&folder, "f.log").0, Some(0), "post mortem");
    folder.append("f.log", "not read\n");
    let (code, said) = shipped(&folder, "f.log");
    assert_eq!(code, Some(1));
    assert!(said.contains("9 of 30 bytes") && said.trim_end().lines().count() == 1, "{said}");
    folder.rename("f.log", "f.log.1");
    folder.append("f.log", "new\n");
    assert!(shipped(&folder, "f.log.1").1.contains("9 of 30 bytes"));
    assert!(shipped(&folder, "f.log").1.contains("has read this file"));
    fs::copy(folder.path("f.log.1"), folder.path("copy")).unwrap();
    assert_eq!(shipped(&folder, "copy").0, Some(1));
    assert_eq!(shipped(&folder, "no such file").0, Some(1));
    agent(&folder).arg("--once").run().expect_code(0);
    assert_eq!(shipped(&folder, "f.log.1").0, Some(0), "rotated, and read since");
}

/// Fails when status needs a terminal, does not notice that its reader is gone, or reports a killed agent as running.
#[test]
fn status_while_running_and_after() {
    let folder = Folder::new();
    folder.append("f.log", Lines::new("f", 0..10).bytes());
    assert!(
        folder.agent_line("status --state-dir state").run().expect_code(1).stderr.contains("--state-dir")
    );
    let mut agent = agent(&folder).start();
    agent.wait_lines(10);
    let live = state(&folder);
    assert_eq!((live["live"].as_bool(), live["pid"].as_u64()), (Some(true), Some(u64::from(agent.id()))));
    assert_eq!(live["totals"]["read"], 10);
    let mut watching = folder.agent_line("status --state-dir state --watch").spawn();
    wait_until(SOON, "three looks", || {
        String::from_utf8_lossy(&watching.stdout()).matches("per second").count() >= 2
    });
    watching.signal(Signal::TERM);
    assert_eq!(watching.wait_exit(SOON).code(), Some(0));
    agent.signal(Signal::USR1);
    agent.wait_log("status: 1 file(s)", SOON);
    agent.kill();
    let after = state(&folder);
    assert_eq!(
        (after["live"].as_bool(), after["files"][0]["state"].as_str()),
        (Some(false), Some("not running"))
    );
    let text = folder.agent_line("status --state-dir state").run().expect_code(0);
    assert!(String::from_utf8_lossy(&text.stdout).starts_with("logagent is not running here"));
}

/// Fails when `status --watch` ends because the agent does not answer for some seconds, or does not say so.
#[test]
fn status_of_a_suspended_agent() {
    let folder = Folder::new();
    folder.append("f.log", Lines::new("f", 0..10).bytes());
    let mut agent = agent(&folder).start();
    agent.wait_lines(10);
    let mut watching = folder.agent_line("status --state-dir state --watch").spawn();
    let looks = |watching: &Agent| String::from_utf8_lossy(&watching.stdout()).matches("per second").count();
    wait_until(SOON, "a look", || looks(&watching) > 0);
    agent.pause();
    watching.wait_log("no answer within 5 s; the agent is suspended", SOON);
    agent.resume();
    let before = looks(&watching);
    wait_until(SOON, "further looks", || looks(&watching) > before + 1);
    watching.signal(Signal::TERM);
    assert_eq!(watching.wait_exit(SOON).code(), Some(0));
    agent.stop().expect_code(0);
}

/// After rotations, a truncation and a restart. Fails when a counter covers only one file or one run, or counts lines
/// that were only read.
#[test]
fn status_and_metrics_are_exact() {
    let folder = Folder::new();
    folder.append("f.log", b"");
    let config = format!(
        "[agent]\nstate_dir = {:?}\n[metrics]\ntextfile = {:?}\n[[files]]\npaths = [{:?}]\nrotate_grace = \"1s\"\n",
        folder.path("state"),
        folder.path("logagent.prom"),
        folder.path("f.log")
    );
    folder.write("logagent.toml", config);
    let run = "run -c logagent.toml --output stdout --from beginning";
    let mut agent = folder.agent_line(run).start();
    for round in 0..3 {
        folder.append("f.log", Lines::new("f", round * 1000..(round + 1) * 1000).bytes());
        crate::rotation::chain(&folder, "f.log");
        folder.append("f.log", b"");
    }
    agent.wait_lines(3000);
    agent.stop().expect_code(0);
    let mut agent = folder.agent_line(run).start();
    folder.append("f.log", Lines::new("f", 3000..3001).bytes());
    folder.append("f.log", "half a line");
    wait_status(&folder, &folder.path("state"), "the half line is seen", |s| {
        (s["files"][0]["lag_bytes"].as_u64(), s["files"][0]["size"].as_u64()) == (Some(11), Some(212))
    });
    fs::OpenOptions::new().write(true).open(folder.path("f.log")).unwrap().set_len(0).unwrap();
    folder.append("f.log", Lines::new("f", 3001..3011).bytes());
    agent.wait_lines(11);
    let truth = wait_status(&folder, &folder.path("state"), "all is acknowledged and saved", |s| {
        let file = &s["files"][0];
        file["size"] == 2010 && file["acknowledged"] == 2010 && file["saved"] == 2010
    });
    let totals = &truth["totals"];
    assert_eq!((totals["read"].as_u64(), totals["acked"].as_u64()), (Some(3011), Some(3011)), "{truth}");
    assert_eq!(totals["lost_bytes"].as_u64(), Some(11), "{truth}");
    assert_eq!(truth["files"][0]["lag_bytes"].as_u64(), Some(0), "{truth}");
    let metric = |name: &str| {
        let text = fs::read_to_string(folder.path("logagent.prom")).unwrap_or_default();
        text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.parse::<f64>().ok())
    };
    for (name, want) in [
        ("logagent_files", 1.0),
        ("logagent_lines_read_total", 3011.0),
        ("logagent_lines_acknowledged_total", 3011.0),
        ("logagent_lost_bytes_total", 11.0),
        ("logagent_lag_bytes", 0.0),
    ] {
        wait_until(secs(40), name, || metric(name) == Some(want));
    }
    agent.stop().expect_code(0);
}

/// Kills within the second before a newly found file is saved. Fails when its lines are delivered again but not
/// counted: 1,000 were doubled with `doubled_at_most` 0.
#[test]
fn doubled_lines_of_a_file_that_was_just_found_are_counted() {
    let folder = Folder::new();
    let all = || folder.agent_line(LIVE).arg("*.log");
    let (mut doubled, mut files) = (0, Vec::new());
    for life in 0..5 {
        let mut killed = all().start();
        let name = format!("f{life}");
        let lines = Lines::new(&name, 0..1000);
        folder.append(&format!("{name}.log"), lines.bytes());
        // About 40 ms after the first acknowledgement comes a save.
        let end = Instant::now() + SOON;
        while killed.count_lines() == 0 && Instant::now() < end {
            pause(millis(1));
        }
        let first = killed.kill().whole_lines().len();
        let mut agent = all().start();
        wait_status(&folder, &folder.path("state"), "all is acknowledged", |s| {
            let of = |f: &&serde_json::Value| f["path"].as_str().unwrap().ends_with(&format!("{name}.log"));
            let file = s["files"].as_array().unwrap().iter().find(of).cloned();
            file.is_some_and(|f| f["acknowledged"] == f["size"] && f["saved"] == f["size"])
        });
        let all_of_it = first + agent.stop().expect_code(0).lines().len();
        assert!(all_of_it >= 1000, "{all_of_it} of 1000 lines");
        doubled += all_of_it - 1000;
        files.push(lines);
        let at_most = state(&folder)["totals"]["doubled_at_most"].as_u64().unwrap();
        assert!(doubled as u64 <= at_most, "{doubled} doubled, {at_most} at most");
        assert!(at_most <= 1000 * (life + 1), "{doubled} doubled, {at_most} at most");
    }
    assert!(doubled > 0, "no kill came before the save");
}

/// After a power loss the saved positions are those of 30 s ago, and the sent marks say nothing; meanwhile the file was copied and
/// truncated, or compressed. Fails when the size that was saved limits how many lines of it are counted as sent again: 300
/// were doubled, and 100 counted.
#[test]
fn doubled_lines_of_a_rotated_file_are_counted_after_a_power_loss() {
    for packed in [false, true] {
        let folder = Folder::new();
        folder.append("f.log", Lines::new("f", 0..100).bytes());
        let mut first = agent(&folder).start();
        let mut seen = first.wait_lines(100);
        first.stop().expect_code(0);
        folder.append("f.log", Lines::new("f", 100..200).bytes());
        let mut cut = agent(&folder).arg("--once").run().expect_code(0).lines();
        fs::copy(folder.path("state/offsets"), folder.path("kept")).unwrap();
        seen.append(&mut cut);
        folder.append("f.log", Lines::new("f", 200..500).bytes());
        seen.extend(agent(&folder).arg("--once").run().expect_code(0).lines());
        folder.rename("kept", "state/offsets");
        fs::write(folder.path("state/air"), b"").unwrap();
        if packed {
            folder.rename("f.log", "f.log.1");
            let done = std::process::Command::new("gzip").arg(folder.path("f.log.1")).status().unwrap();
            assert!(done.success(), "gzip: {done}");
        } else {
            fs::copy(folder.path("f.log"), folder.path("f.log.1")).unwrap();
        }
        folder.write("f.log", Lines::new("g", 0..10).bytes());
        let mut last = agent(&folder).start();
        seen.extend(last.wait_lines(310));
        last.stop().expect_code(0);
        let written = [&Lines::new("f", 0..500), &Lines::new("g", 0..10)];
        let doubled = Delivered::of(seen).assert_at_least_once(&written) as u64;
        let at_most = state(&folder)["totals"]["doubled_at_most"].as_u64().unwrap();
        assert_eq!(doubled, 300);
        assert!((300..=320).contains(&at_most), "{at_most} counted; packed: {packed}");
    }
}

/// Fails when a folder that other users can write to, or that belongs to another user, is accepted.
#[test]
fn folder_of_other_users_is_refused() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let folder = Folder::new();
    folder.append("f.log", "a\n");
    folder.mkdir("state");
    let mode = |mode| fs::set_permissions(folder.path("state"), fs::Permissions::from_mode(mode)).unwrap();
    for open in [0o775, 0o757, 0o1777] {
        mode(open);
        let said = agent(&folder).run().expect_code(78).stderr;
        assert!(said.contains("other users may write there") && said.contains("chmod"), "{said}");
    }
    mode(0o755);
    chown(folder.path("state"), Some(12345), None).unwrap();
    let said = agent(&folder).run().expect_code(78).stderr;
    assert!(said.contains("belongs to user 12345") && said.contains("chown"), "{said}");
    assert_eq!(fs::read_dir(folder.path("state")).unwrap().count(), 0, "nothing is made there");
    chown(folder.path("state"), Some(0), None).unwrap();
    agent(&folder).arg("--once").run().expect_code(0);
}

/// Fails when a file of the state folder is opened through a symlink: overwritten, or quoted in a message.
#[test]
fn nothing_in_the_folder_is_opened_through_a_symlink() {
    let folder = Folder::new();
    folder.append("f.log", Lines::new("f", 0..10).bytes());
    for name in ["lock", "offsets", "offsets.previous", "air", "dead-letter"] {
        let _ = fs::remove_dir_all(folder.path("state"));
        folder.mkdir("state");
        folder.write("victim", "as it was\n");
        std::os::unix::fs::symlink(folder.path("victim"), folder.path("state").join(name)).unwrap();
        let done = agent(&folder).arg("--once").run();
        assert_eq!(fs::read_to_string(folder.path("victim")).unwrap(), "as it was\n", "{name}");
        assert!(!done.stderr.contains("as it was"), "{}", done.stderr);
        if name != "dead-letter" {
            assert!(done.stderr.contains("symbolic link"), "{name}: {}", done.stderr);
            assert!(done.stderr.contains(&format!("state/{name}: ")), "{name}: {}", done.stderr);
            assert!(done.stderr.contains("replace the link by the file"), "{name}: {}", done.stderr);
        }
    }
}

/// The state folder is removed under a running agent. Fails when the log does not say what to do, or when positions are not
/// saved again in the folder that the operator creates.
#[test]
fn a_state_folder_that_is_deleted_while_it_is_used() {
    let folder = Folder::new();
    folder.append("f.log", "1\n2\n");
    let mut running = agent(&folder).start();
    running.wait_lines(2);
    wait_until(SOON, "it is saved", || folder.path("state/offsets").exists());
    fs::remove_dir_all(folder.path("state")).unwrap();
    folder.append("f.log", "3\n");
    wait_until(SOON, "it is logged", || {
        running.log().contains("state was deleted or moved: create it again")
    });
    folder.mkdir("state");
    wait_until(SOON, "it is over", || running.log().contains("positions are saved again"));
    running.wait_lines(3);
    running.stop().expect_code(0);
    folder.append("f.log", "4\n");
    assert_eq!(agent(&folder).arg("--once").run().expect_code(0).lines(), [b"4"]);
}

/// After a downgrade to this version, with the older copy still present. Fails when that copy is used and the newer
/// program's state overwritten.
#[test]
fn state_of_a_newer_version_is_kept() {
    let folder = Folder::new();
    for end in [10, 20] {
        folder.write("f.log", Lines::new("f", 0..end).bytes());
        agent(&folder).arg("--once").run().expect_code(0);
    }
    let text = fs::read_to_string(folder.path("state/offsets")).unwrap();
    let body = text.replace("logagent offsets 1\n", "logagent offsets 99\n");
    let body = &body[..body.rfind("crc32c ").unwrap()];
    let newer = format!("{body}crc32c {:08x}\n", crc32c::crc32c(body.as_bytes()));
    for name in ["offsets", "offsets.tmp"] {
        let _ = fs::remove_file(folder.path("state/offsets"));
        folder.write(&format!("state/{name}"), &newer);
        assert!(folder.path("state/offsets.previous").exists());
        let said = agent(&folder).run().expect_code(78).stderr;
        assert!(said.contains("version 99") && said.contains("install that version"), "{said}");
        assert_eq!(fs::read_to_string(folder.path("state").join(name)).unwrap(), newer, "{name}");
        folder.remove(&format!("state/{name}"));
    }
}
