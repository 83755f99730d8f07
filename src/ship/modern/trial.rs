//! The driver on a real broker, measured; nothing here runs by itself.
//!
//! `LOGAGENT_TRIAL=127.0.0.1:9092 cargo test --release trial -- --ignored --nocapture`, with `LOGAGENT_TRIAL_TOPIC`,
//! `_LINES`, `_BATCH` (bytes), `_CODEC`, `_ACKS` (0, 1, all) as needed.

use super::*;
use crate::chunk::Chunk;
use crate::ship::flight::Numbers;
use crate::ship::testing::{batch, chunk, plain};
use std::collections::VecDeque;
use std::env::var;

/// A stand-in for ship that numbers, retries in order and keeps a few batches of each partition in the air.
pub struct Feeder {
    pub ends: Ends,
    pub topic: Topic,
    pub abilities: Option<Abilities>,
    pub view: Option<TopicView>,
    pub pid: Option<(i64, i16)>,
}

impl Feeder {
    pub fn start(options: Options, topic: &str) -> Self {
        let ends = start(options, Arc::default()).unwrap();
        let mut f = Feeder { ends, topic: topic.into(), abilities: None, view: None, pid: None };
        f.ends.orders.send(Order::Topic(f.topic.clone())).unwrap();
        f.ends.orders.send(Order::ProducerId).unwrap();
        while f.view.as_ref().is_none_or(|v| v.living.is_empty()) || f.pid.is_none() {
            f.take();
        }
        f
    }

    /// The next batch that is done; takes note of everything else.
    pub fn take(&mut self) -> Option<(Batch, Verdict)> {
        match self
            .ends
            .events
            .recv_timeout(Duration::from_secs(60))
            .expect("the driver says nothing for a minute")
        {
            Event::Ready(a) => self.abilities = Some(a),
            Event::Topic(v) => self.view = Some(v),
            Event::ProducerId { pid, epoch } => self.pid = Some((pid, epoch)),
            Event::Done { batch, verdict } => return Some((batch, verdict)),
            Event::Knows { .. } => {}
            Event::Dead { why } => panic!("{why}"),
        }
        None
    }

    pub fn send(&self, batch: Batch) {
        self.ends.orders.send(Order::Send(vec![batch])).unwrap();
    }
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> T {
    var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// User and system time of this process so far.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let ticks: u64 = stat
        .rsplit(") ")
        .next()
        .unwrap()
        .split(' ')
        .skip(11)
        .take(2)
        .map(|t| t.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 10)
}

fn chunks_of(batch_bytes: usize, nth: u64) -> Vec<Chunk> {
    let lines: Vec<Vec<u8>> = (0..(batch_bytes / 200).max(1))
        .map(|i| {
            let id = nth.wrapping_mul(1_000_003).wrapping_add(i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut l = format!("10.0.{}.{} - - [22/Nov/2025:18:22:{:02} +0000] \"GET /api/v1/items/{}?session={id:016x} HTTP/1.1\" 200 {} \"-\" \"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36\"", id % 256, i % 256, i % 60, i % 997, id % 50_000);
            l.truncate(200);
            while l.len() < 200 {
                l.push('.');
            }
            l.into_bytes()
        })
        .collect();
    lines
        .chunks(1300)
        .map(|c| chunk(&plain(nth), 0, &c.iter().map(Vec::as_slice).collect::<Vec<_>>()))
        .collect()
}

#[test]
#[ignore = "needs a broker; a measurement"]
fn trial() {
    let Ok(brokers) = var("LOGAGENT_TRIAL") else { return };
    let topic = var("LOGAGENT_TRIAL_TOPIC").unwrap_or("trial".into());
    let lines: usize = number("LOGAGENT_TRIAL_LINES", 2_000_000);
    let size: usize = number("LOGAGENT_TRIAL_BATCH", 512 << 10);
    let acks = match var("LOGAGENT_TRIAL_ACKS").as_deref() {
        Ok("0") => Acks::Zero,
        Ok("1") => Acks::One,
        _ => Acks::All,
    };
    let codec = match var("LOGAGENT_TRIAL_CODEC").as_deref() {
        Ok("gzip") => Codec::Gzip,
        Ok("snappy") => Codec::Snappy,
        Ok("lz4") => Codec::Lz4,
        Ok("zstd") => Codec::Zstd,
        _ => Codec::None,
    };
    let options = Options {
        brokers: brokers.split(',').map(str::to_owned).collect(),
        acks,
        compression: codec,
        ..Options::default()
    };
    let mut f = Feeder::start(options, &topic);
    let loads: Vec<Batch> = (0..16)
        .map(|i| {
            let mut b = batch(i, chunks_of(size, i));
            Arc::get_mut(&mut b.load).unwrap().topic = f.topic.clone();
            b
        })
        .collect();
    let per = loads[0].count as usize;
    let partitions = f.view.clone().unwrap().living;
    let window = f.abilities.clone().unwrap().in_flight;
    let mut next: Vec<i32> = vec![0; partitions.len()];
    let (mut sent, mut stored, mut air, mut again) = (0usize, 0usize, 0usize, 0usize);
    let mut bad: VecDeque<String> = VecDeque::new();
    let (start, cpu_before) = (Instant::now(), cpu());
    while stored < lines {
        while sent < lines && air < window * partitions.len() {
            let at = (sent / per) % partitions.len();
            let like = &loads[(sent / per) % loads.len()];
            let numbers = (acks == Acks::All).then(|| {
                let (pid, epoch) = f.pid.unwrap();
                Numbers { pid, epoch, base: next[at] }
            });
            next[at] += like.count as i32;
            let b = Batch {
                flight: like.flight,
                partition: partitions[at],
                load: like.load.clone(),
                records: like.records.clone(),
                numbers,
                ..*like
            };
            f.send(b);
            sent += per;
            air += 1;
        }
        let Some((b, verdict)) = f.take() else { continue };
        match verdict {
            Verdict::Stored { .. } => {
                air -= 1;
                stored += per;
            }
            other => {
                again += 1;
                bad.push_back(format!("{other:?}"));
                bad.truncate(5);
                f.send(b);
            }
        }
    }
    let (took, used) = (start.elapsed().as_secs_f64(), (cpu() - cpu_before).as_secs_f64());
    println!(
        "{stored} lines of 200 bytes in {took:.2} s: {:.2} million lines/s, {:.3} us CPU per line; again {again} {bad:?}",
        stored as f64 / took / 1e6,
        used / stored as f64 * 1e6
    );
}
