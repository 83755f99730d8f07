//! What the drivers have in common, and how Kafka's own tools read their records. Faults are elsewhere.

use crate::harness::*;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs a class of Kafka in a JVM of its own.
#[track_caller]
fn java(version: &str, args: &[&str], input: &[u8]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kafka/broker");
    let mut child = Command::new(script)
        .args(["tool", version])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A config for one file `f.log` of the folder.
fn config(folder: &Folder, topic: &Topic, more: &str) {
    let text = format!(
        "[agent]\nstate_dir = {:?}\n[kafka]\nbrokers = [{:?}]\ntopic = {:?}\n{more}\n[[files]]\npaths = [{:?}]\n",
        folder.path("state"),
        topic.address,
        topic.name,
        folder.path("f.log")
    );
    folder.write("c.toml", text);
    folder.agent_line("run -c c.toml --once").run_for(PATIENT).expect_code(0);
}

/// 10,000 keys of many lengths and alphabets, partitioned by Kafka's Java producer and by us. Fails with another seed
/// of murmur2, a signed shift, a missing `& 0x7fffffff`, or bytes above 127 treated as characters.
#[test]
fn keys_map_to_the_same_partitions_as_in_java() {
    let broker = Broker::shared(Version::V41);
    let (ours, theirs) = (broker.topic(11), broker.topic(11));
    let mut dice = Dice(7);
    let mut keys = BTreeMap::new();
    while keys.len() < 10_000 {
        let alphabet: Vec<char> =
            if dice.below(3) == 0 { "äöüßéλж漢".chars().collect() } else { ('0'..='z').collect() };
        let len = 1 + dice.below(40);
        let key: String = (0..len).map(|_| dice.of(&alphabet)).collect();
        keys.insert(key, ());
    }
    let text: String = keys.keys().map(|k| format!("{k}\tx\n")).collect();
    let folder = Folder::new();
    folder.write("f.log", &text);
    config(&folder, &ours, "key = { regex = \"^([^\\t]+)\" }");
    let class = "org.apache.kafka.tools.ConsoleProducer";
    let arguments =
        ["--bootstrap-server", &theirs.address, "--topic", &theirs.name, "--property", "parse.key=true"];
    java("4.1", &[&[class][..], &arguments[..]].concat(), text.as_bytes());
    let places = |topic: &Topic| {
        let mut places = BTreeMap::new();
        topic.each(|r| {
            places.insert(r.key.unwrap_or(b"").to_vec(), r.partition);
        });
        places
    };
    let (ours, theirs) = (places(&ours), places(&theirs));
    assert_eq!(ours.len(), 10_000);
    assert_eq!(ours, theirs);
}

/// Fails when a codec writes a frame that only our own decoder reads: linked lz4 blocks, snappy without its header.
#[test]
fn every_codec_is_read_back_by_kcat_and_by_java() {
    let broker = Broker::shared(Version::V41);
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let topic = broker.topic(2);
        let folder = Folder::new();
        let lines = Lines::new("f", 0..5000);
        lines.append_to(&folder.path("f.log"));
        config(&folder, &topic, &format!("driver = \"modern\"\ncompression = {codec:?}"));
        Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
        let class = "org.apache.kafka.tools.consumer.ConsoleConsumer";
        let arguments = ["--bootstrap-server", &topic.address, "--topic", &topic.name, "--from-beginning"];
        let until = ["--max-messages", "5000", "--timeout-ms", "30000"];
        let output = java("4.1", &[&[class][..], &arguments[..], &until[..]].concat(), b"");
        let read = output.stdout.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(<[u8]>::to_vec);
        Delivered::of(read).assert_exactly_once(&[&lines]);
    }
}

/// The same file through both drivers: key, value and partition of every record. Fails when one of them turns an empty
/// line into a tombstone, renders a key differently, or splits a long line.
#[test]
fn both_drivers_give_the_same_records() {
    let broker = Broker::shared(Version::V39);
    let folder = Folder::new();
    let mut text = Vec::new();
    for n in 0..3000u32 {
        text.extend_from_slice(format!("id={} ", n % 371).as_bytes());
        text.extend(std::iter::repeat_n(b'a' + (n % 26) as u8, (n % 997) as usize));
        text.extend_from_slice(if n % 5 == 0 { b"\r\n\n" } else { b"\n" });
    }
    text.extend_from_slice(b"\xff\xfe\0 not text\n");
    folder.write("f.log", &text);
    let mut seen = Vec::new();
    for driver in ["classic", "modern"] {
        let topic = broker.topic(5);
        let _ = std::fs::remove_dir_all(folder.path("state"));
        config(&folder, &topic, &format!("driver = {driver:?}\nkey = {{ regex = \"id=(\\\\d+)\" }}"));
        let mut keyed: Vec<(i32, Vec<u8>, Vec<u8>)> = Vec::new();
        let mut keyless = Vec::new();
        topic.each(|r| {
            let value = r.value.expect("no line is a null").to_vec();
            match r.key {
                Some(key) => keyed.push((r.partition, key.to_vec(), value)),
                None => keyless.push(value),
            }
        });
        keyed.sort();
        keyless.sort();
        assert_eq!(keyed.len() + keyless.len(), 3000 + 600 + 1);
        seen.push((keyed, keyless));
    }
    assert_eq!(seen[0], seen[1]);
}
