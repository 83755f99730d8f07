//! Long forms of exactly-once: lines by the million through many kills. `tests/run --long exactly_once`.

use crate::exactly_once::{Chaos, cluster, survive};
use crate::harness::Version;

/// About 3,000,000 lines, 150 kills of the agent, 10 of the broker.
const LONG: Chaos = Chaos {
    version: None,
    agent_kills: 150,
    broker_kills: 10,
    rate: 20_000,
    rotate: 0,
    packed: false,
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
#[test]
#[ignore = "long form: tests/run --long"]
fn many_kills_with_rotations_into_gz() {
    survive(&Chaos { rotate: 60, packed: true, seed: 15, ..LONG });
}
#[test]
#[ignore = "long form: tests/run --long"]
fn leaders_killed_in_a_cluster() {
    cluster::leaders_killed(30, 31);
}
