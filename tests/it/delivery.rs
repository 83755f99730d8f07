//! From a log file to a real Kafka topic: the short forms. The long ones are in `long.rs`.

use crate::harness::*;
use rustix::process::Signal;
use std::collections::HashSet;
use std::time::Instant;

const LINES: u64 = 200_000;

/// A file into a topic of three partitions by `run --once`.
#[track_caller]
fn a_file_arrives_once(version: Version, driver: &str) {
    let broker = Broker::shared(version);
    let topic = broker.topic(3);
    let folder = Folder::new();
    let lines = Lines::new("f", 0..LINES);
    lines.append_to(&folder.path("f.log"));
    let args =
        format!("run --once --brokers {} --topic {} --driver {driver} f.log", broker.address, topic.name);
    let done = folder.agent_line(&args).run_for(PATIENT).expect_code(0);
    let delivered = Delivered::in_topic(&topic);
    delivered.assert_exactly_once(&[&lines]);
    delivered.assert_ordered();
    assert!(done.vm_hwm < 24_000, "{} KiB resident", done.vm_hwm);
}

/// Each fails when a line is dropped, sent twice or changed anywhere between file and broker, when a batch is
/// acknowledged before it is answered, or when memory grows with the file.
#[test]
fn once_into_kafka_3_9() {
    a_file_arrives_once(Version::V39, "auto");
}
#[test]
fn once_into_kafka_3_9_with_zookeeper() {
    a_file_arrives_once(Version::V39Zk, "auto");
}
#[test]
fn once_into_kafka_4_1() {
    a_file_arrives_once(Version::V41, "auto");
}
#[test]
fn once_by_the_classic_driver() {
    a_file_arrives_once(Version::V39, "classic");
}
#[test]
fn once_by_the_modern_driver() {
    a_file_arrives_once(Version::V39, "modern");
}

/// The broker is killed three times while the file goes over a link of 8 MB/s. Fails when a refused or unanswered
/// batch counts as delivered (drop the resend), or when the client is not rebuilt after an error.
#[test]
fn the_broker_is_killed_three_times() {
    let broker = Broker::own(Version::V39);
    let topic = broker.topic(3);
    let proxy = Proxy::to(&broker.address);
    proxy.mode(Mode::Bandwidth(8_000_000));
    let folder = Folder::new();
    let lines = Lines::new("f", 0..LINES);
    lines.append_to(&folder.path("f.log"));
    let args =
        format!("run --once --brokers {} --topic {} --state-dir state f.log", proxy.address, topic.name);
    let mut agent = folder.agent_line(&args).spawn();
    for share in 1..=3 {
        let goal = proxy.sent() + 5_000_000;
        wait_until(PATIENT, "the agent keeps sending", || proxy.sent() > goal || agent.ended().is_some());
        assert!(agent.ended().is_none(), "it must still be sending at kill {share}");
        broker.kill();
        broker.restart();
    }
    proxy.mode(Mode::Pass);
    let done = agent.wait_exit(PATIENT).expect_code(0);
    let doubled = Delivered::in_topic(&topic).assert_at_least_once(&[&lines]);
    let status = status_json(&folder, &folder.path("state"));
    let stated = status["totals"]["doubled_at_most"].as_u64().expect("status gives totals.doubled_at_most");
    assert!(doubled as u64 <= stated, "{doubled} lines doubled where status says {stated} at most");
    assert!(done.vm_hwm < 24_000, "{} KiB resident", done.vm_hwm);
}

/// Ends and restarts an agent at 5,000 lines a second, each time after `wait` for the round from 1; what arrived, what was
/// written, and the highest resident memory in KiB.
pub fn restarted(
    broker: &Broker,
    signal: Signal,
    times: u64,
    wait: impl Fn(&Topic, u64),
) -> (Delivered, Lines, u64) {
    let topic = broker.topic(3);
    let folder = Folder::new();
    folder.write("f.log", b"");
    let follows = || folder.follows(&broker.address, &topic, "auto");
    let mut agent = follows().start();
    let writer = Writer::steady(folder.path("f.log"), "f", 5000);
    let mut hwm = 0;
    for round in 1..=times {
        wait(&topic, round);
        agent.signal(signal);
        let done = agent.wait_exit(SOON);
        assert!(signal == Signal::KILL || done.code() == Some(0), "{:?}\n{}", done.status, done.stderr);
        hwm = hwm.max(done.vm_hwm);
        agent = follows().start();
    }
    let lines = writer.finish();
    agent.stop().expect_code(0);
    // To the end of the file: a record count would not do, since duplicates count too.
    follows().arg("--once").run_for(PATIENT).expect_code(0);
    (Delivered::in_topic(&topic), lines, hwm)
}

fn four_restarts(signal: Signal) -> (Delivered, Lines) {
    let wait = |topic: &Topic, round| topic.wait_count(round * 2000);
    let (delivered, lines, _) = restarted(Broker::shared(Version::V39), signal, 4, wait);
    (delivered, lines)
}

/// Fails when the drain ends before the acks, or the last position is not saved at exit.
#[test]
fn sigterm_and_restart_neither_lose_nor_double() {
    let (delivered, lines) = four_restarts(Signal::TERM);
    delivered.assert_exactly_once(&[&lines]);
    delivered.assert_ordered();
}

/// Fails when a position is saved for what was read or sent, instead of what was acknowledged.
#[test]
fn sigkill_and_restart_lose_nothing() {
    let (delivered, lines) = four_restarts(Signal::KILL);
    delivered.assert_at_least_once(&[&lines]);
}

/// A file with this many lines whose broker is down.
pub struct Waiting {
    pub broker: Broker,
    pub topic: Topic,
    pub folder: Folder,
    pub lines: Lines,
}

impl Waiting {
    pub fn of(lines: u64) -> Waiting {
        let broker = Broker::own(Version::V39);
        let topic = broker.topic(3);
        broker.stop();
        let (folder, lines) = (Folder::new(), Lines::new("f", 0..lines));
        lines.append_to(&folder.path("f.log"));
        Waiting { broker, topic, folder, lines }
    }
}

/// No broker at the start, 20 MB waiting. Fails when the start waits for Kafka, when lines are read into memory,
/// retried in a busy loop or logged each time, or when it does not recover.
#[test]
fn a_broker_that_starts_late() {
    let Waiting { broker, topic, folder, lines } = Waiting::of(100_000);
    let mut agent = folder.follows(&broker.address, &topic, "auto").start();
    pause(secs(6));
    assert!(agent.cpu() < millis(900), "{:?} of CPU in 6 s of waiting", agent.cpu());
    let said = agent.log().lines().count();
    assert!(said <= 15, "{said} log lines in 6 s of waiting:\n{}", agent.log());
    broker.restart();
    topic.wait_count(100_000);
    let done = agent.stop().expect_code(0);
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
    assert!(done.vm_hwm < 24_000, "{} KiB resident", done.vm_hwm);
}

/// SIGTERM while the broker is down. Fails when the drain has no limit, waits for a broker that refuses every
/// connection, or joins a thread that waits for the broker.
#[test]
fn sigterm_without_a_broker_ends_within_the_drain() {
    let (black_hole, _held, _listener) = full_backlog();
    for (address, most) in [("127.0.0.1:1".to_owned(), secs(6)), (black_hole.to_string(), secs(13))] {
        let folder = Folder::new();
        folder.write("f.log", Lines::new("f", 0..1000).bytes());
        let args = format!("run --brokers {address} --topic t --from beginning --state-dir state f.log");
        let mut agent = folder.agent_line(&args).start();
        pause(secs(1));
        let start = Instant::now();
        agent.signal(Signal::TERM);
        agent.wait_exit(SOON).expect_code(0);
        assert!(start.elapsed() < most, "{:?} with the broker at {address}", start.elapsed());
    }
}

/// Lost answers. Fails when a batch whose answer was lost is not sent again.
#[test]
fn lost_answers() {
    for driver in ["classic", "modern"] {
        let broker = Broker::shared(Version::V39);
        let topic = broker.topic(2);
        let proxy = Proxy::to(&broker.address);
        let folder = Folder::new();
        let lines = Lines::new("f", 0..20_000);
        lines.append_to(&folder.path("f.log"));
        for _ in 0..3 {
            proxy.drop_next_response(Api::Produce);
        }
        proxy.cut_next_request(Api::Produce, 1000);
        let args =
            format!("run --once --brokers {} --topic {} --driver {driver} f.log", proxy.address, topic.name);
        folder.agent_line(&args).run_for(PATIENT).expect_code(0);
        assert_eq!(proxy.pending(), 0, "{driver}: all faults have happened");
        let doubled = Delivered::in_topic(&topic).assert_at_least_once(&[&lines]);
        assert!(
            driver == "classic" || doubled == 0,
            "a producer id makes a resend harmless: {doubled} doubled"
        );
    }
}

/// Fails when `send` does not wait for the answer to each record, or its output changes.
#[test]
fn send_prints_partition_and_offset() {
    for version in [Version::V39, Version::V41] {
        let broker = Broker::shared(version);
        let topic = broker.topic(3);
        let send = format!("send --brokers {} --topic {} --partition 2", broker.address, topic.name);
        let done =
            Folder::new().agent_line(&send).arg("one value").arg("two").run_for(PATIENT).expect_code(0);
        assert_eq!(String::from_utf8(done.stdout).unwrap(), "pid:2 offset:0\npid:2 offset:1\n");
        let done =
            Folder::new().agent_line(&send).arg("--key=k").input("three\n\n").run_for(PATIENT).expect_code(0);
        assert_eq!(String::from_utf8(done.stdout).unwrap(), "pid:2 offset:2\npid:2 offset:3\n");
        let mut seen = Vec::new();
        topic.each(|r| seen.push((r.offset, r.key.map(<[u8]>::to_vec), r.value.map(<[u8]>::to_vec))));
        let value = |v: &str| Some(v.as_bytes().to_vec());
        let wanted = [
            (0, None, value("one value")),
            (1, None, value("two")),
            (2, value("k"), value("three")),
            (3, value("k"), value("")),
        ];
        assert_eq!(seen, wanted, "an empty line is an empty record, not a null");
    }
}

/// Fails when each `send` begins with the same partition.
#[test]
fn send_spreads_single_values() {
    let broker = Broker::shared(Version::V41);
    let topic = broker.topic(4);
    let send = format!("send --brokers {} --topic {} x", broker.address, topic.name);
    let one = |_| Folder::new().agent_line(&send).run_for(PATIENT).expect_code(0).stdout[..5].to_vec();
    // By chance, 20 values go to the same partition once in 10^11 runs.
    let used: HashSet<Vec<u8>> = (0..20).map(one).collect();
    assert!(used.len() > 1, "all went to one partition");
}

/// Fails when an interrupted `send` waits for brokers that cannot be reached.
#[test]
fn an_interrupted_send_ends() {
    let mut send = Folder::new().agent_line("send --brokers 127.0.0.1:1 --topic t x").spawn();
    send.wait_log("down", SOON);
    pause(secs(1));
    let begun = Instant::now();
    send.signal(Signal::TERM);
    let done = send.wait_exit(SOON).expect_code(1);
    assert!(begun.elapsed() < secs(3), "{:?}", begun.elapsed());
    assert!(done.stderr.contains("1 of 1 records were not acknowledged"), "{}", done.stderr);
}

/// Fails when the crate's end-of-file error on Kafka 4 is retried without explaining what it means.
#[test]
fn the_classic_driver_reports_that_kafka_4_is_too_new() {
    let broker = Broker::shared(Version::V41);
    let topic = broker.topic(1);
    let folder = Folder::new();
    folder.write("f.log", "x\n");
    let args = format!(
        "run --driver classic --brokers {} --topic {} --from beginning f.log",
        broker.address, topic.name
    );
    let agent = folder.agent_line(&args).start();
    let line = agent.wait_log("modern", SOON);
    assert!(line.contains(&broker.address), "it names the broker: {line}");
}

/// A 3.9 broker is replaced by 4.1 on the same port under a running agent. Fails when the driver is chosen only once.
#[test]
fn a_cluster_that_is_upgraded() {
    let mut broker = Broker::own(Version::V39);
    let topic = broker.topic(3);
    let folder = Folder::new();
    let address = broker.address.clone();
    let follows = || folder.follows(&address, &topic, "auto");
    folder.write("f.log", b"");
    let mut agent = follows().start();
    let writer = Writer::steady(folder.path("f.log"), "f", 2000);
    topic.wait_count(4000);
    broker.replace_by(Version::V41);
    let (back, before) = (Instant::now(), topic.end_offsets());
    topic.wait_count(before + 2000);
    assert!(back.elapsed() < secs(20), "{:?} until lines flowed again", back.elapsed());
    let lines = writer.finish();
    agent.stop().expect_code(0);
    // To the end of the file: a record count would not do, since duplicates count too.
    follows().arg("--once").run_for(PATIENT).expect_code(0);
    Delivered::in_topic(&topic).assert_at_least_once(&[&lines]);
}

/// `rate` is 8 KiB/s and there is a backlog. Fails when batches of 512 KiB, each sent at once, make bursts of it.
#[test]
fn a_low_rate_comes_in_small_batches() {
    let folder = Folder::new();
    let kafka = Scripted::start(1);
    kafka.topic("t", &[0]);
    folder.write_config(&kafka.address(), "t", "driver = \"modern\"\nrate = \"8KiB/s\"\n");
    let lines = Lines::new("f", 0..200);
    lines.append_to(&folder.path("f.log"));
    let began = Instant::now();
    let mut agent = folder.agent_line("run -c c.toml").start();
    wait_until(PATIENT, "all lines", || kafka.stored("t").len() == 200);
    agent.stop().expect_code(0);
    let most = kafka.produced().iter().map(|p| p.batch.records.len()).max();
    assert!(most.is_some_and(|most| most * 201 <= 8 << 10), "{most:?} lines in one batch");
    assert!(began.elapsed() > secs(2), "{:?}", began.elapsed()); // 39 KiB, of which 8 at once
    Delivered::of(kafka.stored("t")).assert_exactly_once(&[&lines]);
}
