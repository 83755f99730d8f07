//! SIGHUP: a running agent applies another config. What did not change keeps running with its descriptors; nothing is
//! lost or doubled.

use crate::harness::*;
use rustix::process::Signal;
use std::time::Instant;

/// The config `c.toml`: `files` before `[kafka]`, `kafka` in it, `rest` after it. State is in `state`, logs are in
/// the folder.
fn config(folder: &Folder, brokers: &str, kafka: &str, rest: &str) {
    let here = folder.root().display();
    let rest = rest.replace("paths = [\"", &format!("paths = [\"{here}/"));
    let text = format!(
        "[agent]\nstate_dir = \"{here}/state\"\ndrain_timeout = \"1s\"\n[kafka]\nbrokers = [\"{brokers}\"]\n{kafka}\n{rest}"
    );
    folder.write("c.toml", text);
}

/// A config that prints to standard output.
fn files(folder: &Folder, files: &str) {
    config(folder, "unused:9092", "", files);
}

const PRINTS: &str = "run -c c.toml --output stdout";

const F: &str = "[[files]]\npaths = [\"f.log\"]\nstart = \"beginning\"\n";

/// Sources are added and removed while another one has unread lines in a deleted file. Fails when a reload restarts
/// the tails: those bytes exist nowhere else.
#[test]
fn an_unchanged_source_keeps_its_thread_and_its_deleted_files() {
    let folder = Folder::new();
    let slow = format!("{F}rate_limit = \"16KiB/s\"\n");
    files(&folder, &slow);
    let lines = Lines::new("f", 0..400);
    folder.write("f.log", lines.bytes());
    let mut agent = folder.agent_line(PRINTS).start();
    folder.remove("f.log");
    let thread = agent.thread("tail f.log");
    folder.write("g.log", "old\n");
    files(&folder, &format!("{slow}[[files]]\npaths = [\"g.log\"]\n"));
    agent.reload();
    folder.append("g.log", "new\n");
    wait_until(SOON, "the other source", || agent.lines().contains(&b"new".to_vec()));
    files(&folder, &slow);
    agent.reload();
    agent.wait_closed(&folder.path("g.log"), SOON);
    assert_eq!(agent.thread("tail f.log"), thread, "another thread");
    assert!(agent.lines().len() < 400, "it should still be unread");
    let seen = agent.wait_lines(401);
    Delivered::of(seen.iter().filter(|l| *l != b"new")).assert_exactly_once(&[&lines]);
    assert!(agent.log().contains("applied: 1 [[files]] added"), "{}", agent.log());
    assert!(agent.log().contains("applied: 1 [[files]] removed"), "{}", agent.log());
}

/// Fails when a running tail keeps its old options, or loses its descriptors when they change.
#[test]
fn a_changed_source_keeps_its_position() {
    let folder = Folder::new();
    files(&folder, &format!("{F}rate_limit = \"8KiB/s\"\n"));
    let lines = Lines::new("f", 0..2000);
    folder.write("f.log", lines.bytes());
    let mut agent = folder.agent_line(PRINTS).start();
    folder.remove("f.log");
    wait_until(SOON, "something is read", || !agent.lines().is_empty());
    // 400 KB at 8 KiB/s would take 49 s.
    files(&folder, &format!("{F}drop = ['tick']\n"));
    agent.reload();
    folder.append("f.log", "tick\nlast\n");
    wait_until(SOON, "the rest", || agent.lines().contains(&b"last".to_vec()));
    let seen = agent.lines();
    assert!(!seen.contains(&b"tick".to_vec()));
    Delivered::of(seen.iter().filter(|l| *l != b"last")).assert_exactly_once(&[&lines]);
}

/// `start` applies to what exists when the paths are first known, and is saved before READY=1. Fails when a new
/// source is read from its beginning, when later lines are not read, or when a kill after the reload makes its old
/// lines new.
#[test]
fn start_applies_to_a_new_source() {
    let folder = Folder::new();
    files(&folder, F);
    folder.write("f.log", b"");
    folder.write("new/old.log", "old\n");
    let mut agent = folder.agent_line(PRINTS).start();
    files(&folder, &format!("{F}[[files]]\npaths = [\"new/*.log\"]\n"));
    agent.reload();
    agent.kill();
    folder.append("new/old.log", "a\n");
    folder.write("new/later.log", "b\n");
    let mut agent = folder.agent_line(PRINTS).start();
    let mut seen = agent.wait_lines(2);
    seen.sort();
    assert_eq!(seen, [b"a", b"b"]);
    // Known by now: another start logs nothing about it.
    folder.write("new/third.log", "c\n");
    files(&folder, &format!("{F}[[files]]\npaths = [\"new/*.log\"]\nstart = \"beginning\"\n"));
    agent.reload();
    agent.wait_lines(3);
    folder.append("new/old.log", "d\n");
    assert_eq!(agent.wait_lines(4).last().unwrap(), b"d");
    assert_eq!(agent.stop().expect_code(0).lines().len(), 4);
}

/// Fails when a path that is no longer followed keeps its descriptor, or when it is reread, or read from its end,
/// once its source is added again.
#[test]
fn a_source_is_removed_and_added_again() {
    let folder = Folder::new();
    let both = format!("{F}[[files]]\npaths = [\"g.log\"]\nstart = \"beginning\"\n");
    let lines = Lines::new("g", 0..3000);
    folder.write("f.log", b"");
    let mut agent = None;
    for part in lines.bytes().chunks(1000 * 201) {
        files(&folder, &both);
        folder.append("g.log", part);
        let agent = agent.get_or_insert_with(|| folder.agent_line(PRINTS).start());
        agent.reload();
        let so_far = std::fs::metadata(folder.path("g.log")).unwrap().len() as usize / 201;
        agent.wait_lines(so_far);
        files(&folder, F);
        agent.reload();
        agent.wait_closed(&folder.path("g.log"), SOON);
        assert_eq!(agent.find_thread("tail g.log"), None);
    }
    let done = agent.unwrap().stop().expect_code(0);
    Delivered::of(done.lines()).assert_exactly_once(&[&lines]);
}

/// `follow = false`. Fails when such a file is checked repeatedly, or is left alone although its source has changed.
#[test]
fn a_file_read_once_is_left_alone() {
    let folder = Folder::quiet();
    files(&folder, &format!("{F}follow = false\n"));
    folder.write("f.log", "one\n");
    let mut agent = folder.agent_line(PRINTS).start();
    agent.wait_lines(1);
    wait_until(SOON, "its tail has ended", || agent.find_thread("tail f.log").is_none());
    pause(secs(1));
    let before = agent.switches();
    folder.append("f.log", "two\n");
    pause(secs(2));
    let woken = agent.switches() - before;
    assert!(agent.lines().len() == 1 && woken < 20, "{:?}, woken {woken} times in 2 s", agent.lines());
    files(&folder, F);
    agent.reload();
    assert_eq!(agent.wait_lines(2), [b"one", b"two"]);
    agent.stop().expect_code(0);
}

/// Fails when an invalid config ends the agent, is partly applied, or leaves systemd waiting; when a pipe does (its
/// writer is awaited); or when only one problem is reported.
#[test]
fn a_config_with_problems_changes_nothing() {
    let folder = Folder::new();
    files(&folder, F);
    folder.write("f.log", b"");
    folder.write("g.log", b"");
    let mut agent = folder.agent_line(PRINTS).start();
    let wrong = "[[files]]\npaths = [\"g.log\"]\nstart = \"beginning\"\nmax_line = 0\nno_such = 1\n";
    files(&folder, wrong);
    agent.reload();
    folder.append("f.log", "f\n");
    folder.append("g.log", "g\n");
    assert_eq!(agent.wait_lines(1), [b"f"]);
    let log = agent.log();
    let problems: Vec<&str> = log.lines().filter(|l| l.contains("the config is unchanged")).collect();
    assert_eq!(problems.len(), 2, "{log}");
    assert!(problems[0].contains("c.toml:") && problems[0].contains("max_line"), "{log}");
    std::fs::remove_file(folder.path("c.toml")).unwrap();
    agent.reload();
    folder.append("f.log", "h\n");
    agent.wait_lines(2);
    let pipe = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, folder.path("c.toml"), pipe, 0o600.into(), 0).unwrap();
    agent.reload();
    folder.append("f.log", "i\n");
    agent.wait_lines(3);
    agent.stop().expect_code(0);
}

/// Fails when a key that needs a restart is applied, or silently ignored.
#[test]
fn keys_that_need_a_restart_are_reported() {
    let folder = Folder::new();
    files(&folder, F);
    folder.write("f.log", b"");
    let mut agent = folder.agent_line(PRINTS).start();
    let text = std::fs::read_to_string(folder.path("c.toml")).unwrap();
    let other = text.replace("/state\"", "/other\"\nsync = \"always\"").replace("\"1s\"", "\"2s\"");
    folder.write("c.toml", other);
    for _ in 0..2 {
        agent.reload();
    }
    let said = "applied: [agent] drain_timeout; needs a restart: [agent] state_dir, [agent] sync";
    assert!(agent.log().contains(said), "{}", agent.log());
    let again = "nothing to apply; needs a restart: [agent] state_dir, [agent] sync";
    assert!(agent.log().contains(again), "{}", agent.log());
    assert!(!folder.path("other").exists());
    agent.stop().expect_code(0);
}

/// Fails when the first metrics do not include the file, or when a file that is no longer followed keeps its last
/// numbers.
#[test]
fn metrics_are_written_when_ready() {
    let folder = Folder::new();
    let to = |name: &str| {
        let path = folder.path(name);
        files(&folder, &format!("{F}[metrics]\ntextfile = \"{}\"\n", path.display()));
        path
    };
    let follows = |path: &std::path::Path| {
        std::fs::read_to_string(path).is_ok_and(|text| text.contains("\nlogagent_files 1\n"))
    };
    folder.write("f.log", b"");
    let a = to("a.prom");
    let mut agent = folder.agent_line(PRINTS).start();
    wait_until(secs(5), "metrics of one file", || a.exists());
    assert!(follows(&a), "{}", std::fs::read_to_string(&a).unwrap());
    let b = to("b.prom");
    agent.reload();
    wait_until(secs(5), "metrics in another file", || follows(&b) && !a.exists());
    agent.stop().expect_code(0);
}

/// Repeated reloads while 5,000 lines a second go to a real broker through either driver. Fails when no driver
/// replaces the old one, or when the producer does not use it. (That no driver shuts down with unfinished
/// batches is tested in `producer/tests.rs` and by the simulator: here the window would be too short.)
#[test]
fn reloads_under_load_neither_lose_nor_double() {
    let broker = Broker::shared(Version::V39);
    let topic = broker.topic(3);
    let folder = Folder::new();
    let kafka = |line: &str| {
        let kafka = format!("topic = \"{}\"\n{line}", topic.name);
        config(&folder, &broker.address, &kafka, "[[files]]\npaths = [\"f.log\"]\nstart = \"beginning\"\n");
    };
    kafka("");
    folder.write("f.log", b"");
    let mut agent = folder.agent_line("run -c c.toml").start();
    let writer = Writer::steady(folder.path("f.log"), "f", 5000);
    let lines = [
        "compression = \"gzip\"",
        "driver = \"modern\"",
        "driver = \"modern\"\ncompression = \"lz4\"\nlinger = \"50ms\"",
        "driver = \"modern\"\nacks = 1",
        "driver = \"classic\"\nbatch = \"16KiB\"\npartition = \"random\"",
        "driver = \"modern\"\nkey = \"path\"",
        "driver = \"modern\"\nclient_id = \"other\"\nrate = \"10MiB/s\"",
    ];
    for line in lines {
        let goal = topic.end_offsets() + 1500;
        wait_until(PATIENT, "lines arrive", || topic.end_offsets() >= goal);
        kafka(line);
        agent.reload();
    }
    let goal = topic.end_offsets() + 1500;
    wait_until(PATIENT, "lines arrive at the end", || topic.end_offsets() >= goal);
    let written = writer.finish();
    topic.wait_count(written.count() as u64);
    Delivered::in_topic(&topic).assert_exactly_once(&[&written]);
    let totals = status_json(&folder, &folder.path("state"))["totals"].clone();
    assert_eq!((totals["doubled_at_most"].as_u64(), totals["uncertain"].as_u64()), (Some(0), Some(0)));
    agent.stop().expect_code(0);
}

/// From a broker that is down, with memory full of lines, to one that is up; then to another cluster. Fails when the
/// agent keeps the old list, waits for it forever, or uses the producer id of another cluster.
#[test]
fn other_brokers() {
    let folder = Folder::new();
    let lines = Lines::new("f", 0..60_000);
    lines.append_to(&folder.path("f.log"));
    let (black_hole, _held, _listener) = full_backlog();
    let kafka = Scripted::start(1);
    kafka.topic("t", &[0, 1]);
    for dead in ["127.0.0.1:1".to_owned(), black_hole.to_string()] {
        let _ = std::fs::remove_dir_all(folder.path("state"));
        let stored = kafka.stored("t").len();
        config(&folder, &dead, "topic = \"t\"", F);
        let mut agent = folder.agent_line("run -c c.toml").start();
        agent.wait_log("down", SOON);
        config(&folder, &kafka.address(), "topic = \"t\"", F);
        agent.reload();
        wait_until(PATIENT, "all lines", || kafka.stored("t").len() >= stored + 60_000);
        Delivered::of(&kafka.stored("t")[stored..]).assert_exactly_once(&[&lines]);
        let brokers = status_json(&folder, &folder.path("state"))["brokers"].to_string();
        assert!(!brokers.contains(&dead), "{brokers}");
        agent.stop().expect_code(0);
    }
    let other = Scripted::start(1);
    other.topic("t", &[0, 1]);
    config(&folder, &kafka.address(), "topic = \"t\"\ndriver = \"modern\"", F);
    let mut agent = folder.agent_line("run -c c.toml").start();
    folder.append("f.log", "one\n");
    wait_until(SOON, "a line in the first cluster", || kafka.stored("t").contains(&b"one".to_vec()));
    config(&folder, &other.address(), "topic = \"t\"\ndriver = \"modern\"", F);
    agent.reload();
    folder.append("f.log", "two\n");
    wait_until(SOON, "a line in the other", || !other.stored("t").is_empty());
    assert_eq!(other.stored("t"), [b"two"]);
    assert_eq!(other.count(Api::InitProducerId), 1, "an id of its own");
    agent.stop().expect_code(0);
}

/// A mistyped topic that is never created: its lines fill their part of memory, and the tail waits for room. Fails
/// when the waiting tail does not learn of the change, or when lines are lost or doubled when the others follow after
/// a restart.
#[test]
fn another_topic_for_a_waiting_tail() {
    let folder = Folder::new();
    let lines = Lines::new("f", 0..100_000);
    lines.append_to(&folder.path("f.log"));
    let kafka = Scripted::start(1);
    kafka.topic("right", &[0]);
    let topic = |name: &str| {
        let kafka_table = format!("topic = \"{name}\"\ncreate_topics = false\ndriver = \"modern\"");
        config(&folder, &kafka.address(), &kafka_table, F);
    };
    topic("wrong");
    let mut agent = folder.agent_line("run -c c.toml").start();
    let state = folder.path("state");
    wait_status(&folder, &state, "memory is full", |s| {
        s["memory"]["used"].as_u64() > s["memory"]["limit"].as_u64().map(|n| n / 2)
    });
    topic("right");
    agent.reload();
    wait_until(SOON, "lines of the right topic", || kafka.stored("right").len() > 40_000);
    wait_status(&folder, &state, "read to the end", |s| s["files"][0]["framed"] == s["files"][0]["size"]);
    agent.stop().expect_code(0);
    let mut agent = folder.agent_line("run -c c.toml").start();
    wait_until(SOON, "all lines", || kafka.stored("right").len() >= 100_000);
    Delivered::of(kafka.stored("right")).assert_exactly_once(&[&lines]);
    agent.stop().expect_code(0);
}

/// With exactly-once the driver may change, brokers may not. Fails when sequence numbers are lost in a change.
#[test]
fn exactly_once_over_reloads() {
    let broker = Broker::shared(Version::V41);
    let topic = broker.topic(2);
    let folder = Folder::new();
    let kafka = |brokers: &str, line: &str| {
        config(&folder, brokers, &format!("topic = \"{}\"\n{line}", topic.name), F);
        let text = std::fs::read_to_string(folder.path("c.toml")).unwrap();
        folder.write("c.toml", text.replace("[agent]", "[agent]\ndelivery = \"exactly-once\""));
    };
    kafka(&broker.address, "");
    folder.write("f.log", b"");
    let mut agent = folder.agent_line("run -c c.toml").start();
    let writer = Writer::steady(folder.path("f.log"), "f", 2000);
    for (brokers, line) in [
        (broker.address.as_str(), "compression = \"zstd\""),
        ("127.0.0.1:1", "client_id = \"other\""),
        (&broker.address, "linger = \"20ms\""),
    ] {
        let goal = topic.end_offsets() + 1000;
        wait_until(PATIENT, "lines arrive", || topic.end_offsets() >= goal);
        kafka(brokers, line);
        agent.reload();
    }
    assert!(agent.log().contains("needs a restart: [kafka] brokers"), "{}", agent.log());
    agent.kill();
    let agent = folder.agent_line("run -c c.toml").start();
    let written = writer.finish();
    topic.wait_count(written.count() as u64);
    Delivered::in_topic(&topic).assert_exactly_once(&[&written]);
    drop(agent);
}

/// Fails when a reload that waits for a dead broker delays shutdown, when one of the two signals is lost, or when a
/// reload requested during another one is forgotten.
#[test]
fn sigterm_during_a_reload() {
    let (black_hole, _held, _listener) = full_backlog();
    for again in [false, true] {
        let folder = Folder::new();
        folder.write("f.log", Lines::new("f", 0..1000).bytes());
        config(&folder, &black_hole.to_string(), "topic = \"t\"", F);
        let mut agent = folder.agent_line("run -c c.toml").start();
        for i in 0..10 {
            config(&folder, &black_hole.to_string(), &format!("topic = \"t\"\nclient_id = \"c{i}\""), F);
            agent.signal(Signal::HUP);
        }
        if again {
            // A reload begins with this line, so the next signal arrives during it.
            let begun = || agent.log().matches("SIGHUP: ").count();
            wait_until(SOON, "a reload begins", || begun() >= 1);
            let before = begun();
            agent.signal(Signal::HUP);
            wait_until(SOON, "another begins", || begun() > before);
        }
        let start = Instant::now();
        agent.signal(Signal::TERM);
        agent.wait_notify("STOPPING=1");
        agent.wait_exit(SOON).expect_code(0);
        assert!(start.elapsed() < secs(4), "{:?} with drain_timeout = 1 s", start.elapsed());
    }
}
