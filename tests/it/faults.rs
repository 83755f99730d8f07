//! Refusals by real brokers, and their effect on other topics and files: a missing topic, an oversized record, a
//! partition without enough replicas. Lost answers are in `delivery.rs`, hostile ones in `hostile.rs`.

use crate::harness::*;

/// Two topics, one of which does not exist yet: its file waits while the other's lines flow; then it is created.
/// Fails when an unknown topic blocks the driver, ends anything, or drops its lines.
#[test]
fn a_late_topic_delays_no_other() {
    for (version, driver) in [(Version::V39, "classic"), (Version::V41, "modern")] {
        let broker = Broker::own_with(version, &["auto.create.topics.enable=false"]);
        let (there, late) = (broker.topic(1), broker.missing_topic(2));
        let folder = Folder::new();
        let (a, b) = (Lines::new("a", 0..2000), Lines::new("b", 0..2000));
        a.append_to(&folder.path("a.log"));
        b.append_to(&folder.path("b.log"));
        let source = |file: &str, topic: &Topic| {
            format!(
                "[[files]]\npaths = [{:?}]\nstart = \"beginning\"\ntopic = {:?}\n",
                folder.path(file),
                topic.name
            )
        };
        folder.write(
            "c.toml",
            format!(
                "[agent]\nstate_dir = {:?}\n[kafka]\nbrokers = [{:?}]\ntopic = \"none\"\ndriver = {driver:?}\n{}{}",
                folder.path("state"),
                broker.address,
                source("a.log", &there),
                source("b.log", &late)
            ),
        );
        let mut agent = folder.agent_line("run -c c.toml").start();
        there.wait_count(2000);
        agent.wait_log(&late.name, PATIENT);
        late.create(&[]);
        late.wait_count(2000);
        agent.stop().expect_code(0);
        Delivered::in_topic(&there).assert_exactly_once(&[&a]);
        Delivered::in_topic(&late).assert_exactly_once(&[&b]);
    }
}

/// `fixed` names a partition that the topic does not have: `check --connect`, the log and the status say so, a stop does
/// not wait for it, and once the partition is added the lines are in it. Fails when the agent waits silently, or
/// writes to another partition.
#[test]
fn a_fixed_partition_that_the_topic_lacks() {
    let broker = Broker::shared(Version::V41);
    let (folder, mut topic) = (Folder::new(), broker.topic(2));
    let lines = Lines::new("a", 0..20_000); // more than one batch
    lines.append_to(&folder.path("a.log"));
    let (state, log) = (folder.path("state"), folder.path("a.log"));
    let text = format!(
        "[agent]\nstate_dir = {state:?}\n[kafka]\nbrokers = [{:?}]\ntopic = {:?}\npartition = {{ fixed = 3 }}\n\
         batch = \"16KiB\"\n[[files]]\npaths = [{log:?}]\nstart = \"beginning\"\n",
        broker.address, topic.name
    );
    folder.write("c.toml", text);
    let said = "the topic has 2 partition(s) and not this one";
    let check = folder.agent_line("check --connect -c c.toml").run().expect_code(1);
    assert!(
        String::from_utf8_lossy(&check.stdout).contains(said),
        "{}",
        String::from_utf8_lossy(&check.stdout)
    );
    let mut agent = folder.agent_line("run -c c.toml").start();
    agent.wait_log(&format!("partition 3: {said}"), PATIENT);
    wait_status(&folder, &state, "stuck", |s| {
        s["files"][0]["stuck_because"].as_str().is_some_and(|why| why.contains(said))
    });
    let began = std::time::Instant::now();
    agent.stop().expect_code(0);
    assert!(began.elapsed() < secs(8), "{:?}", began.elapsed());
    let mut agent = folder.agent_line("run -c c.toml").start();
    agent.wait_log(said, PATIENT);
    topic.grow(Version::V41, 4);
    topic.wait_count(20_000);
    agent.stop().expect_code(0);
    topic.each(|record| assert_eq!(record.partition, 3));
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
}

/// Fails when the status and the metrics say nothing about a topic that does not exist, or keep saying it afterwards.
#[test]
fn a_missing_topic_is_in_the_status() {
    let broker = Broker::own_with(Version::V41, &["auto.create.topics.enable=false"]);
    let (folder, topic) = (Folder::new(), broker.missing_topic(1));
    folder.write("a.log", "x\n");
    let (state, log, page) = (folder.path("state"), folder.path("a.log"), folder.path("m.prom"));
    let text = format!(
        "[agent]\nstate_dir = {state:?}\n[kafka]\nbrokers = [{:?}]\ntopic = {:?}\n[metrics]\ntextfile = {page:?}\n\
         [[files]]\npaths = [{log:?}]\nstart = \"beginning\"\n",
        broker.address, topic.name
    );
    folder.write("c.toml", text);
    let mut agent = folder.agent_line("run -c c.toml").start();
    wait_status(&folder, &state, "stuck", |s| {
        s["files"][0]["stuck_because"].as_str().is_some_and(|why| why.contains("UNKNOWN_TOPIC"))
    });
    let down = format!("logagent_topic_up{{topic={:?}}} 0", topic.name);
    let shown = || std::fs::read_to_string(&page).is_ok_and(|text| text.contains(&down));
    wait_until(PATIENT, "the metric", shown);
    topic.create(&[]);
    topic.wait_count(1);
    wait_status(&folder, &state, "no trouble", |s| {
        s["files"][0]["stuck_because"].is_null() && s["topics"].as_array().is_some_and(Vec::is_empty)
    });
    agent.stop().expect_code(0);
}

/// One record of 60 KB among 500, where the topic accepts 20 KB: 499 arrive, one becomes a dead letter with its
/// position. Fails when a refused batch is dropped as a whole, or retried forever.
#[test]
fn an_oversized_record_among_500() {
    for (version, driver) in [(Version::V39, "classic"), (Version::V41, "modern")] {
        let broker = Broker::shared(version);
        let topic = broker.topic_with(1, &["max.message.bytes=20000"]);
        let folder = Folder::new();
        let lines = Lines::new("f", 0..499);
        let mut text = lines.bytes();
        let middle = text.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(249).unwrap().0 + 1;
        let large = [vec![b'L'; 60_000], b"\n".to_vec()].concat();
        text.splice(middle..middle, large);
        folder.write("f.log", text);
        let args = format!(
            "run --once --brokers {} --topic {} --driver {driver} --state-dir state f.log",
            topic.address, topic.name
        );
        let done = folder.agent_line(&args).run_for(PATIENT).expect_code(0);
        Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
        let letters = std::fs::read_to_string(folder.path("state/dead-letter")).unwrap();
        assert_eq!(letters.lines().count(), 1, "{driver}: {}", done.stderr);
        assert!(letters.contains("f.log") && letters.contains("LLLL"), "{driver}: {:.300}", letters);
        let status = status_json(&folder, &folder.path("state"));
        assert_eq!(status["totals"]["dead_lettered"].as_u64(), Some(1), "{status}");
    }
}

/// Two of three replicas are down for a while, and two are required: lines wait and then arrive once. Fails when
/// NOT_ENOUGH_REPLICAS counts as a refusal.
#[test]
fn too_few_replicas_for_a_while() {
    let cluster = Cluster::start(Version::V41, &["min.insync.replicas=3", "default.replication.factor=3"]);
    let topic = cluster.topic(2);
    let folder = Folder::new();
    folder.write("f.log", b"");
    let follows = || folder.follows(&cluster.bootstrap(), &topic, "modern");
    let mut agent = follows().start();
    let writer = Writer::steady(folder.path("f.log"), "f", 500);
    topic.wait_count(500);
    cluster.kill(3);
    agent.wait_log("NOT_ENOUGH_REPLICAS", PATIENT);
    pause(secs(5));
    cluster.restart(3);
    let before = topic.end_offsets();
    topic.wait_count(before + 500);
    let lines = writer.finish();
    agent.stop().expect_code(0);
    follows().arg("--once").run_for(PATIENT).expect_code(0);
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
}

/// `dead-letter` is nearly full of one file's records, as an earlier version may have left it, and more of its lines
/// are refused. Fails when the topic's other file waits too, when the refused lines are dropped, or when the file
/// does not resume once `dead-letter` is moved away.
#[test]
fn one_refused_log_does_not_stop_its_topic() {
    let broker = Broker::shared(Version::V41);
    let topic = broker.topic_with(1, &["max.message.bytes=20000"]);
    let folder = Folder::new();
    let bad = folder.path("bad.log");
    let letter = format!(
        "{{\"time\":\"2026-01-01T00:00:00.000Z\",\"reason\":\"r\",\"topic\":\"t\",\"partition\":0,\"path\":{bad:?},\"stream\":99,\"offset\":0,\
         \"length\":100000,\"value\":\"{}\"}}\n",
        "x".repeat(100_000)
    );
    folder.write("state/dead-letter", letter.repeat(62 * (1 << 20) / letter.len()));
    let large = |n: usize| [vec![b'L'; 60_000 + n], b"\n".to_vec()].concat();
    folder.write("bad.log", (0..60).flat_map(large).collect::<Vec<_>>());
    folder.write(
        "c.toml",
        format!(
            "[agent]\nstate_dir = {:?}\n[kafka]\nbrokers = [{:?}]\ntopic = {:?}\n[[files]]\npaths = [{:?}]\nstart = \"beginning\"\n",
            folder.path("state"),
            topic.address,
            topic.name,
            folder.path("*.log")
        ),
    );
    let mut agent = folder.agent_line("run -c c.toml").start();
    let state = folder.path("state");
    let of = file_status;
    wait_status(&folder, &state, "the refused file is stuck", |s| {
        of(s, "bad.log")["stuck_because"].is_string()
    });
    let lines = Lines::new("good", 0..1000);
    folder.append("good.log", lines.bytes());
    topic.wait_count(1000);
    let said = wait_status(&folder, &state, "the other is acknowledged", |s| {
        of(s, "good.log")["acknowledged"].as_u64() == Some(lines.bytes().len() as u64)
    });
    let why = of(&said, "bad.log")["stuck_because"].to_string();
    assert!(why.contains("move that file away"), "{said}");
    assert!(of(&said, "good.log")["stuck_because"].is_null(), "{said}");
    folder.rename("state/dead-letter", "letters");
    wait_status(&folder, &state, "the rest is kept", |s| {
        let bad = of(s, "bad.log");
        bad["acknowledged"] == bad["size"] && bad["stuck_because"].is_null()
    });
    agent.stop().expect_code(0);
    let new = std::fs::read_to_string(folder.path("state/dead-letter")).unwrap();
    let old = std::fs::read_to_string(folder.path("letters")).unwrap();
    let kept = new.lines().chain(old.lines()).filter(|l| l.contains("LLLL")).count();
    assert_eq!(kept, 60);
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
}

fn file_status(status: &serde_json::Value, name: &str) -> serde_json::Value {
    let files = status["files"].as_array().unwrap();
    files.iter().find(|f| f["path"].as_str().unwrap().ends_with(name)).cloned().unwrap_or_default()
}

/// 90 MB of refused lines in one log. Fails when that log may fill `dead-letter`, so that the topic's other file
/// waits too.
#[test]
fn a_log_of_refused_lines_stops_at_its_share() {
    let broker = Broker::shared(Version::V41);
    let topic = broker.topic_with(1, &["max.message.bytes=20000"]);
    let folder = Folder::new();
    let line = [vec![b'L'; 300_000], b"\n".to_vec()].concat();
    folder.write("bad.log", line.repeat(300));
    folder.write("good.log", b"");
    let args = format!(
        "run --brokers {} --topic {} --from beginning --state-dir state bad.log good.log",
        topic.address, topic.name
    );
    let mut agent = folder.agent_line(&args).start();
    wait_for(PATIENT, "the log of refused lines is stuck", || {
        let status = status_json(&folder, &folder.path("state"));
        file_status(&status, "bad.log")["stuck_because"]
            .as_str()?
            .contains("move that file away")
            .then_some(())
    });
    let lines = Lines::new("good", 0..1000);
    folder.append("good.log", lines.bytes());
    topic.wait_count(1000);
    let log = agent.stop().expect_code(0).stderr;
    assert!(log.contains("fill its share of"), "{log}");
    let letters = std::fs::metadata(folder.path("state/dead-letter")).unwrap().len();
    assert!((12 << 20..=16 << 20).contains(&letters), "{letters}");
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
}

/// A million one-byte lines that the broker refuses (records without a key, for a compacted topic) in one log: each
/// takes two hundred times its length in `dead-letter`. Fails when a log's share does not count lines in flight at
/// their size in `dead-letter`: the lines in memory then fill the file, and the topic's other log waits.
#[test]
fn short_refused_lines_stop_at_their_share_too() {
    let broker = Broker::shared(Version::V41);
    let topic = broker.topic_with(1, &["cleanup.policy=compact"]);
    let folder = Folder::new();
    folder.write("bad.log", "x\n".repeat(1_000_000));
    folder.write("good.log", b"");
    folder.write(
        "c.toml",
        format!(
            "[agent]\nstate_dir = {:?}\n[kafka]\nbrokers = [{:?}]\ntopic = {:?}\nkey = {{ regex = \"^good.*\" }}\n\
             [[files]]\npaths = [{:?}]\nstart = \"beginning\"\n",
            folder.path("state"),
            topic.address,
            topic.name,
            folder.path("*.log")
        ),
    );
    let mut agent = folder.agent_line("run -c c.toml").start();
    wait_for(PATIENT, "the log of refused lines is stuck", || {
        let status = status_json(&folder, &folder.path("state"));
        let why = file_status(&status, "bad.log")["stuck_because"].as_str()?.to_owned();
        why.contains("move that file away").then_some(())
    });
    let lines = Lines::new("good", 0..1000);
    folder.append("good.log", lines.bytes());
    topic.wait_count(1000);
    let log = agent.stop().expect_code(0).stderr;
    let letters = std::fs::metadata(folder.path("state/dead-letter")).unwrap().len();
    assert!((8 << 20..=16 << 20).contains(&letters), "{letters}: {log}");
    assert!(log.contains("fill its share of") && !log.contains("is full"), "{log}");
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
}
