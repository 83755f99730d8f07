//! What a broker keeps of a producer id whose epochs differ from partition to partition, and over `kill -9`: what
//! exactly-once stands on. Nothing here runs by itself.
//!
//! `LOGAGENT_TRIAL=HOST:PORT LOGAGENT_TRIAL_DIR=D cargo test epochs_and_restarts -- --ignored --nocapture`, with both as
//! `tests/kafka/broker start VERSION` prints them; the topic `epochs` must have three partitions.

use super::trial::Feeder;
use super::*;
use crate::ship::flight::Numbers;
use crate::ship::testing::{batch, chunk, plain};
use std::env::var;
use std::process::Command;

/// "stored at 5", or the code.
fn send(f: &mut Feeder, partition: i32, epoch: i16, base: i32, lines: usize) -> String {
    let mut b = batch(1, vec![chunk(&plain(1), 0, &vec![&b"x"[..]; lines])]);
    let load = Arc::get_mut(&mut b.load).unwrap();
    // A broker that starts drops producers whose last stamp is older than a day: with the tests' stamp all are gone.
    load.stamp_ms = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
    load.topic = f.topic.clone();
    let pid = f.pid.unwrap().0;
    let mut b = Batch { partition, numbers: Some(Numbers { pid, epoch, base }), ..b };
    loop {
        f.send(b);
        let (back, verdict) = loop {
            if let Some(done) = f.take() {
                break done;
            }
        };
        match verdict {
            Verdict::Stored { offset } => return format!("stored at {}", offset.unwrap_or(-1)),
            Verdict::Misnumbered { code, .. } => return code.to_string(),
            Verdict::Refused { why, .. } => return why,
            Verdict::Again { .. } => b = back,
        }
    }
}

fn ask(f: &mut Feeder, partition: i32) -> Option<(i16, i32)> {
    loop {
        let pid = f.pid.unwrap().0;
        f.ends.orders.send(Order::Ask { topic: f.topic.clone(), partition, pid }).unwrap();
        let known = f.ends.events.iter().find_map(|e| match e {
            Event::Knows { last, .. } => Some(last),
            _ => None,
        });
        if let Some(Ok(last)) = known {
            return last;
        }
    }
}

#[test]
#[ignore = "needs a broker; a measurement"]
fn epochs_and_restarts() {
    let (Ok(address), Ok(dir)) = (var("LOGAGENT_TRIAL"), var("LOGAGENT_TRIAL_DIR")) else { return };
    let options = Options { brokers: vec![address], ..Options::default() };
    let mut f = Feeder::start(options.clone(), "epochs");
    let f = &mut f;
    assert_eq!(ask(f, 0), None, "nothing was written yet");
    let first = send(f, 0, 0, 0, 5);
    assert!(first.starts_with("stored"), "{first}");
    assert!(send(f, 1, 0, 0, 5).starts_with("stored"));
    assert_eq!((ask(f, 0), ask(f, 1), ask(f, 2)), (Some((0, 4)), Some((0, 4)), None));
    // A higher epoch in one partition.
    assert!(send(f, 0, 1, 0, 3).starts_with("stored"));
    assert_eq!((ask(f, 0), ask(f, 1)), (Some((1, 2)), Some((0, 4))), "of each partition its own");
    let second = send(f, 1, 0, 5, 5);
    assert!(second.starts_with("stored"), "the other partition goes on: {second}");
    assert_eq!(send(f, 0, 0, 5, 5), "47", "an older epoch is fenced");
    // A jump over epochs, at 0 only.
    assert_eq!(send(f, 0, 6, 7, 2), "45");
    let jumped = send(f, 0, 6, 0, 2);
    assert!(jumped.starts_with("stored"), "{jumped}");
    // A partition that never saw the id, in a high epoch.
    assert!(send(f, 2, 9, 0, 1).starts_with("stored"));
    assert_eq!(send(f, 1, 0, 5, 5), second, "an exact repeat has the first offset");
    assert_eq!(send(f, 0, 6, 0, 2), jumped);
    // Killed. Only the last batch of each partition is remembered.
    for what in ["kill", "restart"] {
        let done = Command::new("tests/kafka/broker").args([what, &dir]).status().unwrap();
        assert!(done.success());
    }
    assert_eq!((ask(f, 0), ask(f, 1), ask(f, 2)), (Some((6, 1)), Some((0, 9)), Some((9, 0))));
    assert_eq!(send(f, 1, 0, 5, 5), second);
    assert_eq!(send(f, 0, 6, 0, 2), jumped);
    assert_eq!(send(f, 1, 0, 0, 5), "45", "the one before the last is forgotten");
    assert!(send(f, 0, 7, 0, 2).starts_with("stored"));
    // Another process with the same id.
    let mut g = Feeder::start(options, "epochs");
    g.pid = f.pid;
    assert_eq!(send(&mut g, 1, 0, 5, 5), second);
    assert!(send(&mut g, 1, 1, 0, 5).starts_with("stored"));
    assert_eq!(send(f, 1, 0, 10, 5), "47", "the first one is fenced in that partition");
    assert!(send(f, 2, 9, 1, 1).starts_with("stored"), "and in no other");
}
