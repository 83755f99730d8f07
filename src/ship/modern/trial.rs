//! The driver on a real broker, measured; nothing here runs by itself.
//!
//! `LOGAGENT_TRIAL=127.0.0.1:9092 cargo test --release trial::trial -- --ignored --nocapture`, with `LOGAGENT_TRIAL_TOPIC`,
//! `_LINES`, `_BATCH` (bytes), `_CODEC`, `_ACKS` (0, 1, all) as needed.

use super::*;
use crate::chunk::Chunk;
use crate::ship::driver::{Ends, Pace, TopicView};
use crate::ship::flight::Numbers;
use crate::ship::testing::{batch, chunk, plain};
use std::collections::{HashMap, VecDeque};
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
            Event::Knows { .. } | Event::OtherCluster => {}
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
    if let (Acks::All, Some((pid, epoch))) = (acks, f.pid) {
        for (at, partition) in partitions.iter().enumerate().filter(|(at, _)| next[*at] > 0) {
            f.ends.orders.send(Order::Ask { topic: f.topic.clone(), partition: *partition, pid }).unwrap();
            let last = f.ends.events.iter().find_map(|e| match e {
                Event::Knows { last, .. } => Some(last),
                _ => None,
            });
            match last.unwrap() {
                Ok(last) => assert_eq!(last, Some((epoch, next[at] - 1)), "what the leader knows of us"),
                Err(why) => println!("the leader does not tell what it knows of us: {why}"),
            }
        }
    }
}

/// Unique lines at a steady rate over all living partitions, for `LOGAGENT_TRIAL_SECONDS`, while somebody kills brokers.
/// What came back is sent again in order; each line must then be in the topic once (a consumer counts).
#[test]
#[ignore = "needs a cluster; a trial"]
fn steady() {
    let Ok(brokers) = var("LOGAGENT_TRIAL") else { return };
    let topic = var("LOGAGENT_TRIAL_TOPIC").unwrap_or("steady".into());
    let seconds: u64 = number("LOGAGENT_TRIAL_SECONDS", 60);
    let brokers = brokers.split(',').map(str::to_owned).collect();
    let mut f = Feeder::start(Options { brokers, ..Options::default() }, &topic);
    let (pid, epoch) = f.pid.unwrap();
    let all = f.view.clone().unwrap().partitions;
    let mut next = vec![0i32; all.len()];
    let mut air = vec![0usize; all.len()];
    let mut last = vec![Instant::now(); all.len()];
    let mut stall = vec![Duration::ZERO; all.len()];
    let mut back: Vec<VecDeque<(Instant, Batch)>> = all.iter().map(|_| VecDeque::new()).collect();
    let (start, mut sent, mut stored, mut kinds) =
        (Instant::now(), 0u64, 0u64, HashMap::<String, u64>::new());
    let end = start + Duration::from_secs(seconds);
    loop {
        let now = Instant::now();
        let due = if now < end { (now - start).as_millis() as u64 / 5 } else { sent / 100 };
        let living = f.view.as_ref().map(|v| v.living.clone()).unwrap_or_default();
        let free = (0..all.len()).find(|p| {
            living.contains(&all[*p])
                && air[*p] < 5
                && back[*p].is_empty()
                && *p as u64 == (sent / 100) % all.len() as u64
        });
        let free = free.or_else(|| {
            (0..all.len()).find(|p| living.contains(&all[*p]) && air[*p] < 5 && back[*p].is_empty())
        });
        if let (true, Some(p)) = (sent / 100 < due, free) {
            let lines: Vec<String> =
                (0..100).map(|i| format!("{:012} {}", sent + i, "x".repeat(180))).collect();
            let lines: Vec<&[u8]> = lines.iter().map(String::as_bytes).collect();
            let mut b = batch(sent, vec![chunk(&plain(1), 0, &lines)]);
            Arc::get_mut(&mut b.load).unwrap().topic = f.topic.clone();
            Arc::get_mut(&mut b.load).unwrap().stamp_ms =
                std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
            b.partition = all[p];
            b.numbers = Some(Numbers { pid, epoch, base: next[p] });
            next[p] += 100;
            air[p] += 1;
            sent += 100;
            f.send(b);
            continue;
        }
        for p in 0..all.len() {
            // Only when all have come back, so that they go out in order.
            let ready = back[p].front().is_some_and(|(t, _)| *t <= now) && back[p].len() == air[p];
            if ready {
                back[p].make_contiguous().sort_by_key(|(_, b)| b.numbers.map(|n| n.base));
                let batches = back[p].drain(..).map(|(_, b)| b).collect();
                f.ends.orders.send(Order::Send(batches)).unwrap();
            }
        }
        if now >= end && air.iter().all(|a| *a == 0) {
            break;
        }
        assert!(now < end + Duration::from_secs(60), "not all come back as stored: {air:?} {kinds:?}");
        let Ok(event) = f.ends.events.recv_timeout(Duration::from_millis(2)) else { continue };
        match event {
            Event::Topic(v) => {
                println!("{:6.2} living {:?}", start.elapsed().as_secs_f32(), v.living);
                f.view = Some(v);
            }
            Event::Done { mut batch, verdict } => {
                let p = all.iter().position(|p| *p == batch.partition).unwrap();
                match verdict {
                    Verdict::Stored { .. } => {
                        stall[p] = stall[p].max(last[p].elapsed());
                        last[p] = Instant::now();
                        air[p] -= 1;
                        stored += 100;
                    }
                    Verdict::Again { why, pace, .. } => {
                        *kinds.entry(why).or_default() += 1;
                        let pause = if pace == Pace::Now { 0 } else { 100 };
                        batch.attempts += 1;
                        back[p].push_back((now + Duration::from_millis(pause), batch));
                    }
                    Verdict::Misnumbered { code, .. } => {
                        *kinds.entry(code.to_string()).or_default() += 1;
                        back[p].push_back((now + Duration::from_millis(100), batch));
                    }
                    Verdict::Refused { why, .. } => panic!("{why}"),
                }
            }
            _ => {}
        }
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    println!("sent {sent}, stored {stored}; longest pause per partition {stall:.1?}; {kinds:#?}");
}
