//! Servers that are not Apache Kafka: `tests/run --long foreign` builds and runs them. Each gets the main job with each
//! codec, and exactly-once.

use crate::harness::*;

const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
const LINES: u64 = 100_000;
const AT_LEAST_ONCE: &str = "at-least-once";
const EXACTLY_ONCE: &str = "exactly-once";

/// Writes `c.toml` for `f.log`. `job`: driver, delivery and compression.
fn config(folder: &Folder, server: &Foreign, topic: &str, job: [&str; 3]) {
    let [driver, delivery, codec] = job;
    let (state, log) = (folder.path("state"), folder.path("f.log"));
    let brokers: Vec<&str> = server.address().split(',').collect();
    let text = format!(
        "[agent]\nstate_dir = {state:?}\ndelivery = {delivery:?}\n[kafka]\nbrokers = {brokers:?}\ntopic = {topic:?}\n\
         driver = {driver:?}\ncompression = {codec:?}\n[[files]]\npaths = [{log:?}]\nstart = \"beginning\"\n"
    );
    folder.write("c.toml", text);
}

/// 100,000 lines with a rotation between them; returns the agent's log.
#[track_caller]
fn main_job(server: &Foreign, topic: &str, job: [&str; 3]) -> String {
    let (folder, lines) = (Folder::new(), Lines::new("f", 0..LINES));
    config(&folder, server, topic, job);
    folder.write("f.log", "");
    let mut agent = folder.agent_line("run -c c.toml").start();
    Lines { range: 0..LINES / 2, ..lines.clone() }.append_to(&folder.path("f.log"));
    crate::rotation::chain(&folder, "f.log");
    Lines { range: LINES / 2..LINES, ..lines.clone() }.append_to(&folder.path("f.log"));
    let all = |status: &serde_json::Value| status["totals"]["acked"] == LINES;
    let status = wait_for(PATIENT, "all lines acknowledged", || {
        Some(status_json(&folder, &folder.path("state"))).filter(all)
    });
    let said = agent.stop().expect_code(0).stderr;
    let delivered = Delivered::in_topic(&server.topic(topic));
    let driver = status["driver"].as_str().unwrap_or("?");
    println!("{job:?}, driver {driver}: {}", delivered.against(&[&lines]));
    delivered.assert_exactly_once(&[&lines]);
    said
}

#[track_caller]
fn each_codec(server: &Foreign) {
    for codec in CODECS {
        main_job(server, codec, ["auto", AT_LEAST_ONCE, codec]);
    }
}

/// Exactly-once is refused with this reason, and no line is sent.
#[track_caller]
fn refuses_exactly_once(server: &Foreign, topic: &str, reason: &str) {
    let folder = Folder::new();
    config(&folder, server, topic, ["auto", EXACTLY_ONCE, "none"]);
    folder.write("f.log", "line\n");
    let agent = folder.agent_line("run -c c.toml").start();
    println!("{}", agent.wait_log(reason, SOON));
    pause(secs(2));
    assert_eq!(server.topic(CODECS[0]).values().len() as u64, LINES, "this server can be read");
    assert_eq!(server.topic(topic).values().len(), 0, "{}", agent.log());
}

/// franz-go's kfake. It lists transactional producers only. Fails when a line is lost or doubled, or when exactly-once
/// does not say that it cannot be proved there.
#[test]
#[ignore = "long form: tests/run --long"]
fn foreign_kfake() {
    let server = Foreign::start("kfake", &[&CODECS[..], &[EXACTLY_ONCE]].concat());
    each_codec(&server);
    let said = main_job(&server, EXACTLY_ONCE, ["auto", EXACTLY_ONCE, "lz4"]);
    assert!(said.contains("cannot be proved on this cluster"), "{said}");
}

/// librdkafka's mock cluster. It has no DescribeProducers. Fails when a line is lost or doubled, or when exactly-once
/// sends anything.
#[test]
#[ignore = "long form: tests/run --long"]
fn foreign_librdkafka_mock() {
    let server = Foreign::start("librdkafka-mock", &[&CODECS[..], &[EXACTLY_ONCE]].concat());
    each_codec(&server);
    refuses_exactly_once(&server, EXACTLY_ONCE, "DescribeProducers");
}

/// Prints what `check --connect` says, and returns it.
#[track_caller]
fn checked(server: &Foreign, topic: &str, job: [&str; 3], code: i32) -> String {
    let folder = Folder::new();
    config(&folder, server, topic, job);
    let done = folder.agent_line("check --connect -c c.toml").run_for(PATIENT).expect_code(code);
    let said = String::from_utf8(done.stdout).unwrap();
    println!("{job:?}:\n{said}");
    said
}

/// The classic driver, whose message sets the server refuses although it announces them. Nothing is stored, the log says
/// what to do, and after a change to the modern driver every line is stored once.
#[track_caller]
fn refuses_classic(server: &Foreign, topic: &str) {
    let (folder, lines) = (Folder::new(), Lines::new("f", 0..LINES));
    lines.append_to(&folder.path("f.log"));
    config(&folder, server, topic, ["classic", AT_LEAST_ONCE, "gzip"]);
    let mut agent = folder.agent_line("run -c c.toml").start();
    println!("{}", agent.wait_log("UNKNOWN_PRODUCER_ID (59); set driver = \"auto\" or \"modern\"", SOON));
    pause(secs(2));
    assert_eq!(server.topic(topic).values().len(), 0, "{}", agent.log());
    agent.stop();
    assert_eq!(status_json(&folder, &folder.path("state"))["totals"]["doubled_at_most"].as_u64(), Some(0));
    config(&folder, server, topic, ["modern", AT_LEAST_ONCE, "gzip"]);
    folder.agent_line("run -c c.toml --once").run_for(PATIENT).expect_code(0);
    Delivered::in_topic(&server.topic(topic)).assert_exactly_once(&[&lines]);
}

/// Tansu. It has no DescribeProducers, and stores record batches only. Fails when a line is lost or doubled, when
/// exactly-once or the classic driver stores anything, or when `check --connect` does not say what this server cannot do.
#[test]
#[ignore = "long form: tests/run --long"]
fn foreign_tansu() {
    let server = Foreign::start("tansu", &[&CODECS[..], &["modern", "classic", EXACTLY_ONCE]].concat());
    let said = checked(&server, "modern", ["auto", AT_LEAST_ONCE, "none"], 0);
    assert!(said.contains("exactly-once    no: ") && said.contains("idempotence     yes: "), "{said}");
    each_codec(&server);
    main_job(&server, "modern", ["modern", AT_LEAST_ONCE, "lz4"]);
    let said = checked(&server, "classic", ["classic", AT_LEAST_ONCE, "gzip"], 1);
    assert!(said.contains("announces Produce 0 but closes the connection on it"), "{said}");
    refuses_classic(&server, "classic");
    let said = checked(&server, EXACTLY_ONCE, ["auto", EXACTLY_ONCE, "none"], 78);
    assert!(said.contains("failed   DescribeProducers"), "{said}");
    refuses_exactly_once(&server, EXACTLY_ONCE, "DescribeProducers");
}
