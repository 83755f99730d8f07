//! Real brokers' answers, mutated in a loop: no reader may panic, loop, or keep more than it should. Answers in every
//! version, written by `kafka-protocol`, are in `messages_tests.rs`.

use super::{limits, messages, producers, sasl};
use crate::kafka::protocol::wire::Read;

struct Answer {
    api: u8,
    version: i16,
    bytes: Vec<u8>,
}

fn real() -> Vec<Answer> {
    let lines = include_str!("answers.txt").lines().filter(|l| !l.starts_with('#'));
    lines
        .map(|line| {
            let [_, api, version, hex] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let bytes = (0..hex.len()).step_by(2).map(byte).collect();
            Answer { api: api.parse().unwrap(), version: version.parse().unwrap(), bytes }
        })
        .collect()
}

/// Reads an answer as its kind; returns how many items were kept.
fn kept(a: &Answer, bytes: &[u8]) -> Read<usize> {
    match a.api {
        0 => {
            let mut parts = 0;
            let each = |_: &[u8], p: messages::Produced| {
                parts += 1 + p.bad.len();
                Ok(())
            };
            messages::produced(bytes, a.version, each).map(|(_, nodes)| nodes.len()).map(|n| n + parts)
        }
        3 => messages::metadata(bytes, a.version, &["t"])
            .map(|m| m.nodes.len() + m.topics.iter().map(|t| 1 + t.partitions.len()).sum::<usize>()),
        17 => sasl::mechanisms(bytes).map(|(_, all)| all.len()),
        18 => messages::versions(bytes, a.version).map(|_| 1),
        22 => messages::producer_id(bytes, a.version).map(|_| 1),
        32 => limits::value(bytes, a.version, limits::Setting::LargestBatch("t"))
            .map(|n| usize::from(n.is_some())),
        36 => sasl::authenticated(bytes, a.version).map(|a| a.bytes.len() + a.message.chars().count()),
        61 => {
            let mut answer = producers::Producers::new("t", 0, 1);
            answer.read(bytes, 0).and_then(|_| answer.known()).map(|_| 1)
        }
        other => panic!("api {other}"),
    }
}

/// Fails when one of our readers does not understand a real broker.
#[test]
fn real_answers_are_read() {
    let all = real();
    assert_eq!(all.len(), 18);
    for a in all {
        assert!(kept(&a, &a.bytes).is_ok_and(|n| n > 0), "api {} version {}", a.api, a.version);
    }
}

/// Fails when a length or count is trusted, or an answer takes long to read.
#[test]
fn fuzz_answers() {
    let all = real();
    let samples: Vec<Vec<u8>> =
        all.iter().map(|a| [&[a.api, a.version as u8], &a.bytes[..]].concat()).collect();
    crate::fuzz::damaged(&samples, <[u8]>::len, |bytes| {
        let Some(([api, version], bytes)) = bytes.split_first_chunk() else { return 0 };
        let is = |a: &&Answer| a.api == *api && a.version as u8 == *version;
        all.iter().find(is).and_then(|a| kept(a, bytes).ok()).unwrap_or(0)
    });
}

/// Fails when what we keep of a maximum-size answer is not bounded by what was requested.
#[test]
fn a_large_answer_fills_no_memory() {
    let one_topic = [&[0, 0, 0, 1][..], b"u\0\0\0\0\0"].concat(); // error, name "u", internal, no partitions
    let many = 200_000i32;
    let mut topics = [0; 8].to_vec(); // no brokers, the controller
    topics.extend(many.to_be_bytes());
    (0..many).for_each(|_| topics.extend(&one_topic));
    let found = messages::metadata(&topics, 1, &["t"]).unwrap();
    assert_eq!(found.topics.len(), 0);
    let same: Vec<u8> = topics.iter().map(|b| if *b == b'u' { b't' } else { *b }).collect();
    assert_eq!(messages::metadata(&same, 1, &["t"]).unwrap().topics.len(), 1);
    let mut brokers = many.to_be_bytes().to_vec();
    brokers.resize(brokers.len() + many as usize * 12, 0);
    assert!(messages::metadata(&brokers, 1, &["t"]).is_err());
}
