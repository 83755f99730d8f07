//! Tests when a batch group is sent, how large it is, which partitions get it, and how trouble is reported.

use super::*;
use crate::clock::EARLIEST_MS;
use crate::producer::driver::{Pace, Verdict};
use crate::producer::partition::Action;
use crate::producer::testing::{STAMP, chunk, origin, plain};

const NUMBERED: SendRules = SendRules::Idempotent { in_flight: 3, id: Some((7, 0)), once: false };

struct Bench {
    queue: TopicQueue,
    now: Now,
    rules: SendRules,
    closing: bool,
    rng: Rng,
    no: u64,
    in_flight: Vec<Batch>,
}

impl Bench {
    fn new(options: &ProducerOptions, rules: SendRules, partitions: &[i32]) -> Self {
        let mut queue = TopicQueue::new("t".into(), options);
        let now = Now { at: Instant::now(), wall_ms: STAMP };
        queue.see(view(partitions, partitions), now);
        Bench { queue, now, rules, closing: false, rng: Rng::new(3), no: 0, in_flight: vec![] }
    }

    /// The timestamp of the next group.
    fn stamp(&mut self) -> i64 {
        self.arrive();
        let batch = self.in_flight.pop().expect("a batch");
        let stamp = batch.stamp_ms();
        let (mut actions, rng) = (Vec::new(), &mut self.rng);
        let partition = self.queue.partition(batch.partition).expect("its partition");
        partition.done(batch, Verdict::Stored { offset: None }, self.now, rng, &mut actions);
        stamp
    }

    fn sticky(batch: usize, rules: SendRules, partitions: &[i32]) -> Self {
        Bench::new(&ProducerOptions { batch, ..ProducerOptions::default() }, rules, partitions)
    }

    /// Adds one chunk of 100 bytes; returns what is sent because of it.
    fn arrive(&mut self) -> usize {
        self.queue.push(chunk(&plain(1), 0, &[&[b'x'; 99]]), self.now);
        self.go()
    }

    fn go(&mut self) -> usize {
        let mut formed = 0;
        loop {
            let mut actions = Vec::new();
            self.queue.partitions().iter_mut().for_each(|p| p.launch(self.now, self.rules, &mut actions));
            self.in_flight.extend(
                actions.into_iter().filter_map(|a| if let Action::Send(b) = a { Some(b) } else { None }),
            );
            self.no += 1;
            if self
                .queue
                .form(BatchGroupNo(self.no), self.now, self.rules, self.closing, &mut self.rng)
                .is_none()
            {
                return formed;
            }
            formed += 1;
        }
    }

    fn pass(&mut self, ms: u64) -> usize {
        self.now.at += Duration::from_millis(ms);
        self.go()
    }

    fn back(&mut self, i: usize, verdict: Verdict) -> usize {
        let (b, mut actions) = (self.in_flight.remove(i), Vec::new());
        let p = self.queue.partition(b.partition).unwrap();
        p.done(b, verdict, self.now, &mut self.rng, &mut actions);
        self.go()
    }

    fn stored(&mut self, i: usize) -> usize {
        self.back(i, Verdict::Stored { offset: None })
    }

    fn trouble(&mut self, i: usize) -> usize {
        self.back(i, Verdict::Retry { maybe_stored: false, pace: Pace::Backoff, why: "down".into() })
    }
}

fn view(partitions: &[i32], available: &[i32]) -> TopicView {
    let (partitions, available) = (partitions.to_vec(), available.to_vec());
    TopicView { topic: "t".into(), id: [0; 16], partitions, available }
}

/// Fails when an idle queue waits, a busy one sends small groups, or a full batch waits although there is room.
#[test]
fn gathers_while_something_is_in_flight() {
    let mut b = Bench::sticky(400, NUMBERED, &[0]);
    assert_eq!(b.arrive(), 1, "idle: at once");
    assert_eq!([b.arrive(), b.arrive(), b.arrive()], [0; 3], "busy: arriving chunks are gathered");
    assert_eq!(b.arrive(), 1, "a full batch is sent");
    assert_eq!(b.arrive(), 0);
    b.stored(0);
    assert_eq!(b.stored(0), 1, "nothing in flight: the rest is sent");
    let sizes: Vec<usize> = b.in_flight.iter().map(|b| b.bytes).collect();
    assert_eq!(sizes, [99]);
    assert!(b.queue.waiting.is_empty() && b.queue.waiting_bytes == 0);
}

/// Fails when a queue exceeds the in-flight limit.
#[test]
fn the_in_flight_limit_holds() {
    let mut b = Bench::sticky(100, NUMBERED, &[0]);
    b.arrive();
    b.stored(0);
    let formed: usize = (0..9).map(|_| b.arrive()).sum();
    assert_eq!((formed, b.in_flight.len()), (3, 3));
    assert_eq!(b.stored(0), 1);
}

/// Fails when a plain driver gets a second group of a topic, except while the first one is not answered.
#[test]
fn plain_drivers_have_one_group_of_a_topic_in_flight() {
    let mut b = Bench::sticky(100, SendRules::Plain, &[0, 1]);
    b.arrive();
    assert_eq!((0..5).map(|_| b.arrive()).sum::<usize>(), 0);
    let hung = b.in_flight[0].partition;
    assert_eq!(b.pass(PLAIN_PATIENCE.as_millis() as u64), 1);
    assert_ne!(b.in_flight[1].partition, hung);
}

/// Fails when lines wait for a broker that is slow to fail although another partition is available.
#[test]
fn a_silent_partition_delays_lines_only_briefly() {
    let mut b = Bench::sticky(1000, NUMBERED, &[0, 1]);
    b.arrive();
    assert_eq!(b.arrive(), 0);
    assert_eq!(b.queue.ready(b.now, NUMBERED, false), Ready::At(b.now.at + PATIENCE));
    assert_eq!(b.pass(100), 1);
    assert_ne!(b.in_flight[0].partition, b.in_flight[1].partition);
}

/// Fails when linger does not wait, waits for a full batch, or outlasts the end.
#[test]
fn linger() {
    let options =
        ProducerOptions { batch: 300, linger: Duration::from_millis(50), ..ProducerOptions::default() };
    let mut b = Bench::new(&options, NUMBERED, &[0, 1, 2]);
    assert_eq!((b.arrive(), b.pass(49), b.pass(1)), (0, 0, 1));
    b.stored(0);
    assert_eq!([b.arrive(), b.arrive(), b.arrive()], [0, 0, 1], "full");
    b.stored(0);
    assert_eq!(b.arrive(), 0);
    b.closing = true;
    assert_eq!(b.go(), 1, "nothing more will come");
}

/// Fails when keyless lines go to partitions in trouble or without a leader, or when equals do not take turns.
#[test]
fn keyless_lines_go_to_available_partitions() {
    let mut b = Bench::sticky(100, NUMBERED, &[0, 1, 2, 3]);
    b.queue.see(view(&[0, 1, 2, 3], &[0, 1, 3]), b.now);
    b.arrive();
    let bad = b.in_flight[0].partition;
    b.trouble(0);
    let mut to: Vec<i32> = (0..6)
        .map(|_| {
            b.arrive();
            let p = b.in_flight[0].partition;
            b.stored(0);
            p
        })
        .collect();
    to.sort_unstable();
    let good: Vec<i32> = [0, 1, 3].into_iter().filter(|p| *p != bad).collect();
    assert_eq!(to, [[good[0]; 3], [good[1]; 3]].concat());
}

/// Fails when a queue keeps forming groups although no partition can take them, or never tries any again.
#[test]
fn all_in_trouble_stops_the_queue() {
    let mut b = Bench::sticky(100, NUMBERED, &[0, 1]);
    b.queue.see(view(&[0, 1], &[]), b.now);
    b.arrive();
    b.trouble(0);
    assert_eq!(b.arrive(), 1, "reported as unavailable, but not tried yet");
    b.trouble(0);
    assert_eq!((0..20).map(|_| b.arrive()).sum::<usize>(), 0);
    b.pass(200);
    assert_eq!(b.in_flight.len(), 2, "each is tried again");
    assert!(b.stored(0) > 0);
}

/// Fails when keyed lines go elsewhere because their partition is in trouble, or delay those of other partitions.
#[test]
fn keyed_lines_wait_for_their_partition() {
    let key = Key::Regex(regex::bytes::Regex::new("k.").unwrap().into());
    let o = origin(1, "t", "/log", crate::record::Shape { key, ..Default::default() });
    let options = ProducerOptions { partitioner: Partitioner::Hash, ..ProducerOptions::default() };
    let mut b = Bench::new(&options, NUMBERED, &[0, 1, 2]);
    let mut offset = 0;
    let mut both = |b: &mut Bench| {
        // Partitions 0, 1 and 2 by murmur2.
        let lines: [&[u8]; 3] = [b"k0", b"k1", b"k4"];
        b.queue.push(chunk(&o, offset, &lines), b.now);
        offset += 9;
        b.go()
    };
    assert_eq!(both(&mut b), 1);
    let all: Vec<i32> = b.in_flight.iter().map(|b| b.partition).collect();
    assert!(all.len() > 1, "{all:?}");
    b.trouble(0);
    while !b.in_flight.is_empty() {
        b.stored(0);
    }
    assert_eq!(both(&mut b), 1, "the others are still sent");
    let now: Vec<i32> = b.in_flight.iter().map(|b| b.partition).collect();
    assert_eq!(now, all[1..]);
    assert_eq!(b.queue.partition(all[0]).unwrap().open(), 2);
}

/// Fails when a batch still waits for its own backoff after its leader can be reached again.
#[test]
fn a_returned_leader_gets_what_waits_for_it() {
    let mut b = Bench::sticky(100, NUMBERED, &[0]);
    b.arrive();
    for _ in 0..6 {
        b.pass(5000);
        b.trouble(0);
    }
    b.queue.see(view(&[0], &[]), b.now);
    b.go();
    assert!(b.in_flight.is_empty());
    b.queue.see(view(&[0], &[0]), b.now);
    b.go();
    assert_eq!(b.in_flight.len(), 1);
    b.trouble(0);
    b.queue.see(view(&[0], &[0]), b.now);
    b.go();
    assert!(b.in_flight.is_empty(), "it was there all the time");
}

/// Fails when batches of a removed partition wait indefinitely, or keep their sequence numbers.
#[test]
fn batches_of_a_removed_partition_find_another() {
    let mut b = Bench::sticky(100, NUMBERED, &[0, 1]);
    b.arrive();
    let (gone, left) = (b.in_flight[0].partition, 1 - b.in_flight[0].partition);
    b.queue.see(view(&[left], &[left]), b.now);
    b.trouble(0);
    b.queue.leave_removed_partitions();
    b.pass(1000);
    assert_eq!((b.in_flight[0].partition, b.queue.partitions().len()), (left, 1));
    assert!(b.queue.partition(gone).is_none());
}

/// Fails when oversized batches are sent at the same size again, or one outlier makes all batches small for good.
#[test]
fn the_batch_limit_falls_and_rises() {
    let mut cap = Cap::new(512 << 10);
    cap.lower(400 << 10);
    assert_eq!(cap.now, 200 << 10);
    cap.lower(600 << 10);
    assert_eq!(cap.now, 200 << 10, "refusing a larger one changes nothing");
    cap.lower(10);
    assert_eq!(cap.now, Cap::LEAST);
    (0..Cap::GOOD * 20).for_each(|_| cap.stored(300 << 10));
    assert_eq!(cap.now, 512 << 10);
}

/// Fails when trouble is reported at each retry, or its end is not reported.
#[test]
fn trouble_is_reported_when_it_changes() {
    let mut b = Bench::sticky(100, NUMBERED, &[0]);
    b.arrive();
    let mut reported = Vec::new();
    for _ in 0..20 {
        b.trouble(0);
        if let Some(QueueChange::Trouble { attempts, partitions, why }) = b.queue.change(b.now) {
            assert_eq!((partitions, why), (vec![0], "down".into()));
            reported.push(attempts);
        }
        b.pass(5000);
        assert_eq!(b.queue.change(b.now), None);
    }
    assert_eq!(reported, [1, 2, 4, 8, 16]);
    b.stored(0);
    assert_eq!(
        b.queue.change(b.now),
        Some(QueueChange::Well { after: Duration::from_secs(100), attempts: 20 })
    );
    assert_eq!(b.queue.change(b.now), None);
}

/// Fails when lines for a fixed partition that the topic lacks wait silently, go to another partition, hold up the end,
/// or stay where a reload says otherwise.
#[test]
fn a_fixed_partition_that_is_missing() {
    let mut options =
        ProducerOptions { batch: 150, partitioner: Partitioner::Fixed(3), ..ProducerOptions::default() };
    let mut b = Bench::new(&options, NUMBERED, &[0, 1]);
    b.queue.push(chunk(&plain(1), 0, &[&[b'x'; 99], &[b'y'; 99]]), b.now); // two batches
    b.go();
    assert!(!b.in_flight.is_empty() && b.in_flight.iter().all(|b| b.partition == 3));
    while !b.in_flight.is_empty() {
        b.trouble(0);
    }
    assert!(matches!(
        b.queue.change(b.now),
        Some(QueueChange::Trouble { attempts: 1, partitions, .. }) if partitions == [3]
    ));
    b.arrive();
    assert!(b.queue.is_stuck());
    b.queue.see(view(&[0, 1, 2, 3], &[0, 1, 2, 3]), b.now);
    b.pass(60_000);
    b.stored(0);
    assert!(b.in_flight.iter().all(|b| b.partition == 3));
    options.partitioner = Partitioner::Fixed(7);
    b.queue.tune(&options);
    b.pass(60_000);
    while !b.in_flight.is_empty() {
        b.stored(0);
    }
    b.arrive();
    assert_eq!(b.in_flight[0].partition, 7);
}

/// Fails when a group takes more chunks than picks can address, or less than one.
#[test]
fn a_batch_group_is_bounded() {
    let mut b = Bench::sticky(usize::MAX / 8, NUMBERED, &[0]);
    for _ in 0..BatchGroup::MAX_CHUNKS + 5 {
        b.queue.push(chunk(&plain(1), 0, &[b""]), b.now);
    }
    b.go();
    assert_eq!((b.in_flight[0].group.chunks.len(), b.queue.waiting.len()), (BatchGroup::MAX_CHUNKS, 5));
    let mut b = Bench::sticky(1, NUMBERED, &[0]);
    b.arrive();
    assert_eq!(b.in_flight[0].count, 1, "one that is too large goes alone");
}

/// A machine boots in 1970 and its clock is set while it delivers. Fails when an unset clock is trusted, the time of
/// the last save is ignored, or a jump of the clock changes anything else.
#[test]
fn timestamps_of_a_machine_that_boots_in_1970() {
    let saved_ms = EARLIEST_MS + 1000;
    let mut b =
        Bench::new(&ProducerOptions { saved_ms, ..ProducerOptions::default() }, SendRules::Plain, &[0]);
    for (wall_ms, stamp) in [(5, saved_ms), (70_000, saved_ms), (saved_ms + 9, saved_ms + 9), (5, saved_ms)] {
        b.now.wall_ms = wall_ms;
        assert_eq!(b.stamp(), stamp, "at {wall_ms}");
    }
}

/// Fails when every process begins with the same partition: single lines of a whole fleet (`send`, `run --once`) would
/// all go there.
#[test]
fn the_seed_chooses_the_first_partition() {
    let first = |seed| {
        let mut b = Bench::new(&ProducerOptions { seed, ..ProducerOptions::default() }, NUMBERED, &[0, 1, 2]);
        b.arrive();
        b.in_flight[0].partition
    };
    assert_eq!([0, 1, 2].map(first), [1, 2, 0]);
}
