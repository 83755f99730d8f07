//! Files that are deleted and recreated: inode reuse, equal heads, two names, slow growth.

use crate::harness::*;
use std::os::unix::fs::MetadataExt;

const LIVE: &str = "run --output stdout --from beginning --state-dir state";

/// Fails when a deleted file is held forever without a further event, or closed before its last ack.
#[test]
fn deleted_file_is_closed() {
    let folder = Folder::new();
    let lines = Lines::new("f", 0..1000);
    folder.write("f.log", lines.bytes());
    let agent = folder.agent_line(LIVE).arg("f.log").start();
    agent.wait_lines(1000);
    folder.remove("f.log");
    agent.wait_closed(&folder.path("f.log"), secs(20));
    let threads = agent.threads();
    folder.write("f.log", "again\n");
    agent.wait_lines(1001);
    assert!(agent.threads() <= threads + 1);
}

/// Deleted before its lines are acknowledged. Fails when its tail polls for that, or is not woken by it.
#[test]
fn no_polling_for_acknowledgements_of_a_deleted_file() {
    let broker = Scripted::start(1);
    broker.topic("t", &[0]);
    broker.script(|r| if r.api == Api::Produce { Reply::Swallow } else { Reply::Default });
    let folder = Folder::new();
    folder.write("f.log", Lines::new("f", 0..10).bytes());
    let config = format!(
        "[kafka]\nbrokers = [{:?}]\ntopic = \"t\"\n[[files]]\npaths = [{:?}]\nstart = \"beginning\"\nrotate_grace = \"1s\"\n",
        broker.address(),
        folder.path("f.log")
    );
    folder.write("c.toml", config);
    let agent = folder.agent_line("run -c c.toml --driver modern --state-dir state").start();
    wait_until(SOON, "they are sent", || broker.count(Api::Produce) > 0);
    folder.remove("f.log");
    pause(secs(2));
    let tail = agent.find_thread("tail f.log").unwrap();
    let woken = || {
        let text = std::fs::read_to_string(format!("/proc/{}/task/{tail}/status", agent.id())).unwrap();
        let switches = text.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        switches.trim().parse::<u64>().unwrap()
    };
    let before = woken();
    pause(secs(7));
    assert_eq!(woken() - before, 0, "in 7 s");
    broker.script(|_| Reply::Default);
    broker.drop_connections();
    agent.wait_closed(&folder.path("f.log"), secs(5));
    assert_eq!(broker.stored("t").len(), 10);
}

/// Deleted while unread. Fails when it is closed with its name.
#[test]
fn deleted_file_is_read_to_its_end() {
    let folder = Folder::new();
    let lines = Lines::new("f", 0..200_000).width(60);
    lines.append_to(&folder.path("f.log"));
    let agent = folder.agent_line(LIVE).arg("f.log").start();
    folder.remove("f.log");
    Delivered::of(agent.wait_lines(200_000)).assert_exactly_once(&[&lines]);
}

/// `deleted_hold`: whatever exceeds it is given up, with the exact byte count. Fails when it is held without a limit,
/// or not counted.
#[test]
fn deleted_hold_is_enforced() {
    let folder = Folder::new();
    let config = "[[files]]\npaths = [\"f.log\"]\nstart = \"beginning\"\nrate_limit = \"1KiB/s\"\n\
        deleted_hold = { bytes = \"64KiB\", time = \"1h\" }\n";
    folder.write("c.toml", config.replace("f.log", &folder.path("f.log").display().to_string()));
    let lines = Lines::new("f", 0..2000);
    folder.write("f.log", lines.bytes());
    let mut agent = folder.agent_line("run -c c.toml --output stdout --state-dir state").start();
    wait_until(SOON, "some lines are read", || !agent.lines().is_empty());
    folder.remove("f.log");
    let said = agent.wait_log("deleted_hold", SOON);
    agent.wait_closed(&folder.path("f.log"), secs(5));
    let read = agent.lines().len() as u64;
    agent.stop().expect_code(0);
    let lost = status_json(&folder, &folder.path("state"))["totals"]["lost_bytes"].as_u64().unwrap();
    assert_eq!(lost, 2000 * 201 - read * 201, "{said}");
}

/// While no broker accepts anything, part of a deleted file is read and the rest given up. Fails when the lag includes what
/// is lost.
#[test]
fn what_deleted_hold_gives_up_does_not_lag() {
    let folder = Folder::new();
    let kafka = Scripted::away();
    let (state, log) = (folder.path("state"), folder.path("f.log"));
    let config = format!(
        "[agent]\nstate_dir = {state:?}\nmemory = \"192KiB\"\n[kafka]\nbrokers = [{:?}]\ntopic = \"t\"\n\
         driver = \"modern\"\nbatch = \"16KiB\"\n[[files]]\npaths = [{log:?}]\nmax_line = 4096\n\
         start = \"beginning\"\ndeleted_hold = {{ bytes = \"1KiB\", time = \"1h\" }}\n",
        kafka.address()
    );
    folder.write("c.toml", config);
    Lines::new("f", 0..3000).append_to(&log);
    let mut agent = folder.agent_line("run -c c.toml").start();
    folder.remove("f.log");
    agent.wait_log("deleted_hold", SOON);
    wait_status(&folder, &state, "what is read lags, and the rest is lost", |s| {
        let all = [&s["files"][0]["lag_bytes"], &s["totals"]["lost_bytes"]].map(|n| n.as_u64().unwrap_or(0));
        all[0] > 0 && all[1] > 0 && all[0] + all[1] == 3000 * 201
    });
    agent.stop().expect_code(0);
}

/// While no broker accepts anything, a file is read to its end and closed. Fails when its lines no longer count as unsent
/// once no thread reads the path, or when the path is still shown after their acknowledgement.
#[test]
fn a_closed_file_counts_as_unsent_until_it_is_acknowledged() {
    let folder = Folder::new();
    let kafka = Scripted::away();
    let (state, log) = (folder.path("state"), folder.path("f.log"));
    let config = format!(
        "[agent]\nstate_dir = {state:?}\n[kafka]\nbrokers = [{:?}]\ntopic = \"t\"\ndriver = \"modern\"\n\
         [[files]]\npaths = [{log:?}]\nstart = \"beginning\"\nfollow = false\n",
        kafka.address()
    );
    folder.write("c.toml", config);
    Lines::new("f", 0..100).append_to(&log);
    let mut agent = folder.agent_line("run -c c.toml").start();
    wait_status(&folder, &state, "it is closed", |s| {
        s["files"][0]["state"] == "finished" && s["files"][0]["lag_bytes"] == 100 * 201
    });
    kafka.up(1);
    wait_status(&folder, &state, "nothing is shown", |s| s["files"].as_array().is_some_and(Vec::is_empty));
    agent.stop().expect_code(0);
    Delivered::of(kafka.stored("t")).assert_exactly_once(&[&Lines::new("f", 0..100)]);
}

/// While no broker accepts anything and memory is full: three files in turn at the path, the second of which is
/// rotated and deleted before a line of it could be read. Fails when a tail waiting for memory does not check its
/// file: the second one would go unnoticed.
#[test]
fn rotated_and_removed_while_nothing_can_be_sent() {
    let folder = Folder::new();
    let kafka = Scripted::away();
    let (state, log) = (folder.path("state"), folder.path("f.log"));
    let config = format!(
        "[agent]\nstate_dir = {state:?}\nmemory = \"192KiB\"\n[kafka]\nbrokers = [{:?}]\ntopic = \"t\"\n\
         driver = \"modern\"\nbatch = \"16KiB\"\n[[files]]\npaths = [{log:?}]\nmax_line = 4096\nstart = \"beginning\"\n",
        kafka.address()
    );
    folder.write("c.toml", config);
    let lines = [Lines::new("a", 0..3000), Lines::new("b", 0..500), Lines::new("c", 0..500)];
    lines[0].append_to(&log);
    let mut agent = folder.agent_line("run -c c.toml").start();
    let wait_field = |what: &str, name: &'static str, wanted: u64| {
        wait_status(&folder, &state, what, |s| s["files"][0][name] == wanted);
    };
    pause(secs(3)); // the memory is full
    folder.rename("f.log", "f.log.1");
    lines[1].append_to(&log);
    wait_field("the second file is seen", "lag_bytes", 3500 * 201);
    folder.remove("f.log.1");
    folder.rename("f.log", "f.log.1");
    lines[2].append_to(&log);
    wait_field("the third file is seen", "lag_bytes", 4000 * 201);
    folder.remove("f.log.1");
    kafka.up(1);
    wait_until(PATIENT, "all is delivered", || kafka.stored("t").len() >= 4000);
    wait_field("nothing waits", "lag_bytes", 0);
    agent.stop().expect_code(0);
    Delivered::of(kafka.stored("t")).assert_exactly_once(&lines.iter().collect::<Vec<_>>());
    assert_eq!(status_json(&folder, &state)["totals"]["lost_bytes"], 0);
}

/// Fails when neither birth time nor the bytes before the position distinguish two files with the same inode.
#[test]
fn recreated_twenty_times() {
    let folder = Folder::new();
    folder.write("f.log", b"");
    let agent = folder.agent_line(LIVE).arg("f.log").start();
    let mut want = Vec::new();
    for round in 0..20u64 {
        let lines = Lines::new("f", round * 100..round * 100 + [5, 50][round as usize % 2]);
        folder.append("f.log", lines.bytes());
        want.push(lines);
        agent.wait_lines(want.iter().map(Lines::count).sum());
        folder.remove("f.log");
    }
    Delivered::of(agent.lines()).assert_exactly_once(&want.iter().collect::<Vec<_>>());
}

/// Fails when the inode alone is the identity: the bytes before the position are the same in the new file.
#[test]
fn recreated_with_the_same_bytes_and_more() {
    let folder = Folder::new();
    let args = format!("{LIVE} f.log");
    folder.write("f.log", Lines::new("f", 0..100).bytes());
    let mut agent = folder.agent_line(&args).start();
    agent.wait_lines(100);
    agent.stop().expect_code(0);
    let inode = |name: &str| std::fs::metadata(folder.path(name)).unwrap().ino();
    let old = inode("f.log");
    folder.remove("f.log");
    // Free inodes with lower numbers are assigned first: dummy files use them up.
    let found = (0..2000).find(|i| {
        folder.write(&format!("in-the-way-{i}"), b"");
        inode(&format!("in-the-way-{i}")) == old
    });
    if let Some(i) = found {
        folder.rename(&format!("in-the-way-{i}"), "f.log");
    } // otherwise the file system does not reuse inodes, and the case is easier
    folder.write("f.log", Lines::new("f", 0..200).bytes());
    let agent = folder.agent_line(&args).start();
    Delivered::of(agent.wait_lines(200)).assert_exactly_once(&[&Lines::new("f", 0..200)]);
}

/// Fails when the first bytes are the identity.
#[test]
fn recreated_with_the_same_head_while_stopped() {
    let folder = Folder::new();
    let head = vec![b'#'; 2047];
    let head = [&head[..], b"\n"].concat();
    let args = format!("{LIVE} f.log");
    for longer in [3, 300] {
        folder.write("f.log", [&head[..], b"one\ntwo\nthree\nfour\n"].concat());
        let mut agent = folder.agent_line(&args).start();
        agent.wait_lines(5);
        agent.stop().expect_code(0);
        folder.remove("f.log");
        let lines = Lines::new("f", 0..longer);
        folder.write("f.log", [&head[..], &lines.bytes()].concat());
        let mut agent = folder.agent_line(&args).start();
        let seen = agent.wait_lines(longer as usize + 1);
        Delivered::of(&seen[1..]).assert_exactly_once(&[&lines]);
        agent.stop().expect_code(0);
        folder.remove("f.log");
        let _ = std::fs::remove_dir_all(folder.path("state"));
    }
}

/// Fails when files are identified by their first bytes.
#[test]
fn two_files_with_the_same_first_4_kib() {
    let folder = Folder::new();
    let head = format!("{}\n", "x".repeat(4095));
    let (a, b) = (Lines::new("a", 0..10), Lines::new("b", 0..10));
    folder.write("a.log", [head.as_bytes(), &a.bytes()].concat());
    folder.write("b.log", [head.as_bytes(), &b.bytes()].concat());
    let agent = folder.agent_line(LIVE).arg("*.log").start();
    let seen = agent.wait_lines(22);
    assert_eq!(seen.iter().filter(|l| l.len() == 4095).count(), 2);
    let rest: Vec<_> = seen.into_iter().filter(|l| l.len() != 4095).collect();
    Delivered::of(rest).assert_exactly_once(&[&a, &b]);
}

/// Fails when a file is identified by its name.
#[test]
fn one_file_under_three_names() {
    let folder = Folder::new();
    let lines = Lines::new("f", 0..100);
    folder.write("a.log", lines.bytes());
    std::fs::hard_link(folder.path("a.log"), folder.path("b.log")).unwrap();
    std::os::unix::fs::symlink("a.log", folder.path("c.log")).unwrap();
    let agent = folder.agent_line(LIVE).arg("*.log").start();
    agent.wait_lines(100);
    folder.append("b.log", Lines::new("f", 100..200).bytes());
    agent.wait_lines(200);
    pause(millis(500));
    Delivered::of(agent.lines()).assert_exactly_once(&[&Lines::new("f", 0..200)]);
}

/// Fails when a short file waits for more bytes, or each size makes another state entry.
#[test]
fn a_file_that_grows_over_restarts() {
    let folder = Folder::new();
    folder.write("f.log", b"");
    let (mut seen, mut from) = (Vec::new(), 0);
    for to in [0, 1, 2, 1000, 2000] {
        let lines = Lines::new("f", from..to).width(20);
        folder.append("f.log", lines.bytes());
        let mut agent = folder.agent_line(LIVE).arg("f.log").start();
        seen.extend(agent.wait_lines(lines.count()));
        agent.stop().expect_code(0);
        from = to;
    }
    Delivered::of(seen).assert_exactly_once(&[&Lines::new("f", 0..2000).width(20)]);
    let status = status_json(&folder, &folder.path("state"));
    let files = status["files"].as_array().unwrap();
    assert_eq!(files.len(), 1, "{status}");
}

/// More data waits than memory holds, since the broker is suspended; then one file is deleted, one moved out of the
/// pattern, one rotated and compressed by gzip(1). Everything is sent from the open files when the broker resumes,
/// the `.gz` is not read, and the deleted file is closed soon after its last line without a further event. Fails when
/// a file is closed with its name, or the `.gz` of a file being read counts as new.
#[test]
fn removed_while_the_broker_is_suspended() {
    let broker = Broker::own(Version::V39);
    let topic = broker.topic(1);
    let folder = Folder::new();
    folder.mkdir("away");
    let names = ["removed", "moved", "packed"];
    let lines: Vec<Lines> = names.iter().map(|n| Lines::new(n, 0..60_000)).collect();
    for name in names {
        folder.write(&format!("{name}.log"), b"");
    }
    let args = format!("run --brokers {} --topic {} --state-dir state", broker.address, topic.name);
    let mut agent = folder.agent_line(&args).arg("*.log").start();
    for (name, lines) in names.iter().zip(&lines) {
        folder.append(&format!("{name}.log"), Lines { range: 0..10, ..lines.clone() }.bytes());
    }
    topic.wait_count(30);
    broker.pause();
    for (name, lines) in names.iter().zip(&lines) {
        folder.append(&format!("{name}.log"), Lines { range: 10..60_000, ..lines.clone() }.bytes());
    }
    pause(secs(2));
    folder.remove("removed.log");
    folder.rename("moved.log", "away/elsewhere");
    folder.rename("packed.log", "packed.log.1");
    folder.append("packed.log", "new\n");
    let gzip = std::process::Command::new("gzip").arg(folder.path("packed.log.1")).status().unwrap();
    assert!(gzip.success());
    pause(secs(2));
    broker.resume();
    topic.wait_count(180_001);
    agent.wait_closed(&folder.path("removed.log"), secs(20));
    agent.stop().expect_code(0);
    let delivered = topic.values();
    let (new, old): (Vec<_>, Vec<_>) = delivered.into_iter().partition(|l| l == b"new");
    assert_eq!(new.len(), 1);
    // The classic driver may repeat what was in flight when the broker was suspended.
    Delivered::of(old).assert_at_least_once(&lines.iter().collect::<Vec<_>>());
    assert_eq!(status_json(&folder, &folder.path("state"))["totals"]["lost_bytes"].as_u64(), Some(0));
}
