//! Long forms of exactly-once: lines by the million through many kills. `tests/run --long exactly_once`.

use crate::exactly_once::{Chaos, Dice, announced, config, survive, totals, write_some};
use crate::harness::*;

/// About 3,000,000 lines, 150 kills of the agent, 10 of the broker.
const LONG: Chaos = Chaos {
    version: None,
    agent_kills: 150,
    broker_kills: 10,
    rate: 20_000,
    rotate: 0,
    kafka: "",
    agent: "",
    seed: 11,
    apart: 1000,
};

#[test]
#[ignore = "long form: tests/run --long"]
fn many_kills_on_3_9() {
    survive(&Chaos { version: Some(Version::V39), ..LONG });
}
#[test]
#[ignore = "long form: tests/run --long"]
fn many_kills_on_4_1() {
    survive(&LONG);
}
#[test]
#[ignore = "long form: tests/run --long"]
fn many_kills_with_rotations() {
    survive(&Chaos { rotate: 40, seed: 12, ..LONG });
}
#[test]
#[ignore = "long form: tests/run --long"]
fn many_kills_with_keys() {
    survive(&Chaos { kafka: "key = \"path\"", seed: 13, ..LONG });
}
#[test]
#[ignore = "long form: tests/run --long"]
fn many_kills_with_rotations_on_3_9_and_lines_spread() {
    let kafka = "partition = \"round-robin\"\nbatch = \"64KiB\"";
    survive(&Chaos { version: Some(Version::V39), rotate: 40, kafka, seed: 14, ..LONG });
}

/// Three brokers; leaders are killed under load and while an agent that was killed proves its open batches.
#[test]
#[ignore = "long form: tests/run --long"]
fn leaders_killed_in_a_cluster() {
    let cluster = Cluster::start(Version::V41, &[]);
    let topic = cluster.topic(3);
    let folder = Folder::new();
    config(&folder, &topic, &LONG);
    let (mut dice, mut next) = (Dice::new(31), 0);
    let mut down = None;
    for round in 0..30 {
        let mut agent = folder.agent_line("run -c c.toml").spawn();
        let steps = 5 + dice.below(60);
        let kill_at = dice.below(steps);
        for step in 0..steps {
            write_some(&folder, &mut next, 100, &["a.log", "b.log"]);
            if round % 3 == 0 && step == kill_at && down.is_none() {
                let node = 1 + dice.below(3) as usize;
                cluster.kill(node);
                down = Some(node);
            }
            pause(millis(30));
        }
        agent.kill();
        if round % 3 == 2
            && let Some(node) = down.take()
        {
            cluster.restart(node);
        }
    }
    if let Some(node) = down {
        cluster.restart(node);
    }
    let mut agent = folder.agent_line("run -c c.toml").start();
    topic.wait_count_for(2 * next, PATIENT);
    let log = agent.stop().expect_code(0).stderr;
    let written = [Lines::new("a", 0..next), Lines::new("b", 0..next)];
    let verdict = Delivered::in_topic(&topic).against(&[&written[0], &written[1]]);
    eprintln!("{verdict}; {}", totals(&folder)["exactly_once"]);
    assert!(verdict.missing.is_empty() && verdict.doubled == 0, "{verdict}\n{log}");
    assert_eq!(announced(&totals(&folder)), 0, "{log}");
}
