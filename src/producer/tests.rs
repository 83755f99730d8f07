//! The producer thread between its channels; a test plays both sides.

use super::batch::Batch;
use super::driver::{Capabilities, Leave, Pace, Refusal, TopicView, Verdict};
use super::testing::{chunk, plain, wait_until};
use super::worker::Worker;
use super::*;
use crate::chunk::{Chunk, Origin};
use crate::handover::{self, Chunks};
use crate::record::{Identity, Point};
use crate::report::Board;
use crate::stop::{Handle, pair};
use crossbeam_channel::{bounded, select};
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{JoinHandle, spawn};

/// The core in a thread, and all its channels.
struct Bench {
    inbox: Option<Chunks>,
    origin: Arc<Origin>,
    orders: Receiver<Order>,
    events: Option<Sender<Event>>,
    changes: Changes,
    halt: Option<Waking<Handle>>,
    stop: Option<Waking<Handle>>,
    relay: Drive,
    /// With the CPU time the thread used.
    core: JoinHandle<(Result<(), Dead>, Duration, u64)>,
}

fn pause(time: Duration) {
    let _ = crossbeam_channel::after(time).recv();
}

const LIMIT: Duration = Duration::from_secs(20);

impl Bench {
    fn new(options: ProducerOptions) -> Self {
        let waker = Waker::new().unwrap();
        let (chunks, inbox) = handover::chunks(64, &waker);
        let (registry, origin) = (Registry::default(), plain(1));
        registry.open(origin.opened(Identity::default(), Point::default()));
        let (relay, orders, events) = relay();
        let (stop, give_up) = pair();
        let (halt, stuck) = pair();
        let (stop, halt) = (Waking::new(stop, &waker), Waking::new(halt, &waker));
        let (changes, changed) = Changes::new(&waker);
        let drive = relay.clone();
        let core = spawn(move || {
            let board = Arc::new(Board::default());
            let halts = Halts { stuck: Some(stuck), now: give_up };
            let context = Context { board: board.clone(), waker };
            let (changes, intents, registry) = (changed, None, &registry);
            let result = run(Producer { options, inbox, changes, drive, context, intents, registry, halts });
            let cpu = clock_gettime(ClockId::ThreadCPUTime);
            let cpu = Duration::new(cpu.tv_sec as u64, cpu.tv_nsec as u32);
            (result, cpu, board.totals.dead_lettered.load(Relaxed))
        });
        let (inbox, events, halt, stop) = (Some(chunks), Some(events), Some(halt), Some(stop));
        Bench { inbox, origin, changes, orders, events, halt, stop, relay, core }
    }

    fn ready(self) -> Self {
        self.say(Event::Ready(Capabilities { name: "test", idempotent: false, in_flight: 1 }));
        self
    }

    fn say(&self, event: Event) {
        self.events.as_ref().unwrap().send(event).unwrap();
    }

    fn give(&self, start: u64, lines: &[&[u8]]) {
        self.give_chunk(chunk(&self.origin, start, lines));
    }

    fn give_chunk(&self, chunk: Chunk) {
        let inbox = self.inbox.as_ref().unwrap();
        inbox.get().send(chunk).unwrap();
        inbox.wake();
    }

    fn line(&self, start: u64) {
        self.give(start, &[b"line"]);
    }

    /// The next batches the core sends; its topics are known at once.
    fn sent(&self) -> Vec<Batch> {
        loop {
            match self.orders.recv_timeout(LIMIT).expect("an order") {
                Order::Send(batches) => return batches,
                Order::Topic(topic) => {
                    let (partitions, available) = (vec![0, 1], vec![0, 1]);
                    self.say(Event::Topic(TopicView { topic, id: [0; 16], partitions, available }));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn stored(&self, batch: Batch, offset: i64) {
        self.say(Event::Done { batch, verdict: Verdict::Stored { offset: Some(offset) } });
    }

    fn acked(&self) -> u64 {
        self.origin.progress.acked.load(Relaxed)
    }

    fn is_acked(&self, end: u64) {
        let (begun, tick) = (Instant::now(), crossbeam_channel::tick(Duration::from_millis(2)));
        while self.acked() != end {
            assert!(begun.elapsed() < LIMIT, "acknowledged {} of {end}", self.acked());
            tick.recv().unwrap();
        }
    }

    fn end(self) -> (Result<(), Dead>, Duration, u64) {
        self.core.join().unwrap()
    }
}

/// A driver that relays orders and events to the test.
fn relay() -> (Drive, Receiver<Order>, Sender<Event>) {
    let ((to, orders), (events, from)) = (bounded(64), bounded(64));
    let run = move |inbox: &Receiver<Order>, outbox: &Outbox, _: &Arc<Board>| {
        loop {
            select! {
                recv(inbox) -> order => match order {
                    Ok(order) => drop(to.send(order)),
                    Err(_) => return Leave::Closed,
                },
                recv(from) -> event => match event {
                    Ok(event) => drop(outbox.send(event)),
                    Err(_) => return Leave::Closed,
                },
            }
        }
    };
    (Worker::drive(None, run), orders, events)
}

/// Fails when a chunk without lines waits for the broker, or unstored lines are acknowledged.
#[test]
fn acknowledged_when_stored() {
    let b = Bench::new(ProducerOptions::default()).ready();
    let mut skipped = chunk(&b.origin, 0, &[b"123456"]);
    (skipped.lines, skipped.bytes) = (vec![], vec![]);
    b.give_chunk(skipped);
    b.is_acked(7);
    b.line(7);
    let mut batches = b.sent();
    assert_eq!(b.acked(), 7);
    b.stored(batches.pop().unwrap(), 0);
    b.is_acked(12);
}

/// Fails when the core ends with batches in flight, spins on its closed inbox, or does not end when everything is
/// acked.
#[test]
fn a_closed_inbox_drains() {
    let mut b = Bench::new(ProducerOptions::default()).ready();
    b.line(0);
    let mut batches = b.sent();
    b.line(5);
    b.inbox = None;
    assert!(b.orders.recv_timeout(Duration::from_millis(300)).is_err());
    b.stored(batches.pop().unwrap(), 0);
    b.is_acked(5);
    b.stored(b.sent().pop().unwrap(), 1);
    b.is_acked(10);
    assert!(b.orders.recv_timeout(LIMIT).is_err(), "the worker ends with the core");
    let (result, cpu, _) = b.end();
    assert_eq!(result, Ok(()));
    assert!(cpu < Duration::from_millis(100), "{cpu:?} of CPU for two lines");
}

/// After a change to other brokers the producer id may belong to another cluster. Fails when the next driver starts
/// while the old one holds a batch, anything is sent in between, topics or the id are not requested again, or an id
/// from the old driver is used.
#[test]
fn a_driver_is_replaced_once_it_has_returned_all_batches() {
    let b = Bench::new(ProducerOptions::default());
    let ready = || b.say(Event::Ready(Capabilities { name: "test", idempotent: true, in_flight: 5 }));
    let producer_id = |pid| b.say(Event::ProducerId { pid, epoch: 0 });
    let asked = || assert!(matches!(b.orders.recv_timeout(LIMIT), Ok(Order::ProducerId)));
    ready();
    asked();
    producer_id(1);
    b.line(0);
    let mut first = b.sent();
    assert_eq!(first[0].numbers.map(|n| n.pid), Some(1));
    let begun = Arc::new(AtomicBool::new(false));
    let drive = {
        let (begun, relay) = (begun.clone(), b.relay.clone());
        Some(Drive::new(move |context| {
            begun.store(true, Relaxed);
            relay.build(context)
        }))
    };
    b.changes.send(Change { options: ProducerOptions::default(), drive, elsewhere: true });
    b.line(5);
    let soon = Duration::from_millis(300);
    assert!(b.orders.recv_timeout(soon).is_err(), "an order while a batch is in flight");
    assert!(!begun.load(Relaxed), "the next driver while a batch is in flight");
    b.stored(first.pop().unwrap(), 0);
    wait_until("the next driver", || begun.load(Relaxed));
    producer_id(1);
    assert!(b.orders.recv_timeout(soon).is_err(), "an order to a driver that is not ready");
    ready();
    assert!(matches!(b.orders.recv_timeout(LIMIT), Ok(Order::Topic(_))));
    asked();
    assert!(b.orders.recv_timeout(soon).is_err(), "sent under the old id");
    producer_id(2);
    assert_eq!(b.sent()[0].numbers.map(|n| n.pid), Some(2));
}

/// Fails when the core keeps waiting for the broker after it was stopped.
#[test]
fn a_stop_ends_at_once() {
    let mut b = Bench::new(ProducerOptions::default()).ready();
    b.line(0);
    let _batches = b.sent();
    b.stop = None;
    let start = Instant::now();
    assert_eq!(b.end().0, Ok(()));
    assert!(start.elapsed() < LIMIT / 4);
}

/// Fails when the core keeps running without a driver.
#[test]
fn a_dead_driver_ends_the_producer() {
    let b = Bench::new(ProducerOptions::default()).ready();
    b.say(Event::Dead { why: "closed".into() });
    assert_eq!(b.end().0, Err(Dead { why: "closed".into() }));
    let mut b = Bench::new(ProducerOptions::default()).ready();
    b.line(0);
    b.events = None;
    assert!(b.end().0.is_err());
}

/// Fails when a receipt is missing, or comes for unstored lines.
#[test]
fn receipts() {
    let (to, receipts) = bounded(9);
    let b = Bench::new(ProducerOptions {
        partitioner: Partitioner::Fixed(1),
        receipts: Some(to),
        ..ProducerOptions::default()
    })
    .ready();
    b.give(0, &[b"a", b"b"]);
    b.stored(b.sent().pop().unwrap(), 41);
    assert_eq!(receipts.recv_timeout(LIMIT).unwrap(), Receipt { partition: 1, offset: Some(41), count: 2 });
}

/// Fails when a bad record takes its neighbors along, or is acknowledged before it is in the file.
#[test]
fn a_dead_letter_is_written_before_the_ack() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dead-letter");
    let mut b =
        Bench::new(ProducerOptions { dead_letter: Some(path.clone()), ..ProducerOptions::default() }).ready();
    b.give(0, &[b"good", b"bad", b"fine"]);
    let batch = b.sent().pop().unwrap();
    b.say(Event::Done {
        batch,
        verdict: Verdict::Refused { what: Refusal::Records(vec![1]), why: "87".into() },
    });
    let rest = b.sent().pop().unwrap();
    assert_eq!(rest.count, 2);
    assert_eq!(b.acked(), 0);
    b.stored(rest, 0);
    b.is_acked(14);
    assert!(std::fs::read_to_string(&path).unwrap().contains("\"value\":\"bad\""));
    b.inbox = None;
    assert_eq!(b.end().2, 1);
}

/// Fails when a stop waits for an unreachable broker, or does not wait for a batch that is in flight or may be stored:
/// the next run would duplicate it.
#[test]
fn a_stop_waits_only_for_batches_that_may_complete() {
    let mut b = Bench::new(ProducerOptions::default()).ready();
    b.line(0);
    let batch = b.sent().remove(0);
    (b.inbox, b.halt) = (None, None);
    pause(RETURN + Duration::from_millis(300));
    assert!(!b.core.is_finished(), "the answer may still come");
    let back = |batch, maybe_stored| {
        let verdict = Verdict::Retry { maybe_stored, pace: Pace::Backoff, why: "lost".into() };
        b.say(Event::Done { batch, verdict });
    };
    back(batch, true);
    let batch = b.sent().remove(0);
    assert!(!b.core.is_finished(), "it may be stored");
    back(batch, false);
    let end = Instant::now() + LIMIT;
    while !b.core.is_finished() && Instant::now() < end {
        b.orders.try_iter().for_each(drop);
        pause(Duration::from_millis(5));
    }
    assert!(b.core.is_finished());
    assert_eq!(b.end().0, Ok(()));
}

/// Fails when a stop waits for partitions of a topic that no broker reports, or gives up before a first answer can
/// arrive.
#[test]
fn a_stop_does_not_wait_for_a_cluster_never_reached() {
    for (stands, wait) in
        [(Duration::ZERO, RETURN - RETURN / 4..LIMIT / 2), (RETURN, Duration::ZERO..RETURN / 2)]
    {
        let mut b = Bench::new(ProducerOptions::default());
        b.line(0);
        pause(stands);
        (b.inbox, b.halt) = (None, None);
        let begun = Instant::now();
        assert_eq!(b.end().0, Ok(()));
        assert!(wait.contains(&begun.elapsed()), "{:?} after {stands:?}", begun.elapsed());
    }
}

/// Fails when the memory of what was polled is not kept: a turn of the loop would allocate it again.
#[test]
fn the_memory_of_descriptors_is_kept() {
    let fds = Vec::with_capacity(8);
    let memory = fds.as_ptr();
    let kept = emptied(fds);
    assert_eq!((kept.as_ptr(), kept.capacity()), (memory, 8));
}
