//! What exactly-once needs of a broker: Kafka from 2.8, and the right to read. `check --connect` says what is missing, and a
//! running agent sends nothing before it has it.

use super::{Chaos, SHORT, announced, survive, totals, write_config};
use crate::harness::*;

/// `check --connect` by this config: its code, and the steps that failed.
#[track_caller]
fn check(folder: &Folder, code: i32) -> Vec<String> {
    let done = folder.agent_line("check --connect -c c.toml").run().expect_code(code);
    let text = String::from_utf8(done.stdout).unwrap();
    text.lines().filter(|l| l.starts_with("failed ")).map(str::to_owned).collect()
}

/// Fails when the right to read is not asked for, when lines are sent that could not be proved stored after a crash, or when
/// the right that is given later is not noticed.
#[test]
fn nothing_is_sent_without_the_right_to_read() {
    let broker = Broker::secure(Version::V41);
    let (folder, topic) = (Folder::new(), broker.topic(1));
    broker.allow("alice", &topic);
    let password = folder.write("password", "alice-secret\n");
    let sasl = format!(
        "[kafka.sasl]\nmechanism = \"SCRAM-SHA-256\"\nusername = \"alice\"\npassword_file = {password:?}\n"
    );
    write_config(&folder, &topic.name, &broker.listener("saslplain"), "", &sasl);
    let failed = check(&folder, 78);
    assert!(failed.len() == 1 && failed[0].contains("allow READ on the topic"), "{failed:?}");
    let lines = Lines::new("a", 0..1000);
    lines.append_to(&folder.path("a.log"));
    let mut agent = folder.agent_line("run -c c.toml").start(); // ready all the same
    let said = agent.wait_log("does not tell what it has of us", SOON);
    assert!(said.contains("READ on the topic") && said.contains("TOPIC_AUTHORIZATION_FAILED"), "{said}");
    pause(secs(1));
    assert_eq!(topic.end_offsets(), 0);
    broker.allow_reading("alice", &topic);
    topic.wait_count(1000);
    agent.stop().expect_code(0);
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
    assert_eq!(announced(&totals(&folder)), 0);
    assert!(check(&folder, 0).is_empty());
}

/// Fails when a broker from before 2.8 passes, or gets lines whose fate it could not tell.
#[test]
fn nothing_is_sent_to_a_broker_that_cannot_tell() {
    let kafka = Scripted::start(1);
    kafka.topic("t", &[0]);
    kafka.versions(&[(0, 0, 8), (1, 0, 12), (3, 0, 9), (18, 0, 3), (22, 0, 3)]); // as 2.7
    let folder = Folder::new();
    write_config(&folder, "t", &kafka.address(), "", "");
    let failed = check(&folder, 78);
    assert!(failed.len() == 1 && failed[0].contains("before Kafka 2.8"), "{failed:?}");
    Lines::new("a", 0..10).append_to(&folder.path("a.log"));
    let mut agent = folder.agent_line("run -c c.toml").start();
    let said = agent.wait_log("does not tell what it has of us", SOON);
    assert!(said.contains("Kafka from 2.8"), "{said}");
    assert!(kafka.produced().is_empty());
    agent.stop().expect_code(0);
}

/// The oldest Kafka that can tell. Fails as the kills on 4.1 do.
#[test]
fn kills_on_2_8() {
    survive(&Chaos { version: Some(Version::V28), agent_kills: 8, broker_kills: 1, seed: 5, ..SHORT });
}
