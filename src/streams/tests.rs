//! Tests what wakes the saver, and the order of the offsets.

use super::*;
use crate::chunk::Origin;
use crate::record::{Identity, Mark, Point, Range, Shape, Then};
use crate::wake_slot::WakeSlot;
use crossbeam_channel::bounded;
use std::time::Duration;

const SOON: Duration = Duration::from_millis(50);

fn at(offset: u64) -> Point {
    Point { offset, mark: Mark { len: 1, hash: offset }, then: Then::Line }
}

fn open(registry: &Registry) -> Arc<Progress> {
    let progress = Arc::new(Progress::default());
    let origin = Origin {
        stream: StreamId(1),
        topic: "t".into(),
        path: "/var/log/a".into(),
        shape: Arc::new(Shape::default()),
        progress: progress.clone(),
    };
    registry.open(origin.opened(Identity::default(), Point::default()));
    progress
}

fn ack(range: Range) -> [Ack; 1] {
    [Ack { stream: StreamId(1), end: at(range.end), range, lines: 1 }]
}

/// Whether a wait for changes of this urgency ends before its time, and what it takes.
fn wakes(registry: &Registry, urgency: Urgency) -> (bool, Pending) {
    let begun = Instant::now();
    let pending = registry.wait(urgency, begun + SOON, false);
    (begun.elapsed() < SOON, pending)
}

/// Fails when acknowledgements wake a saver that already has a save scheduled, or when an idle saver misses the first
/// one.
#[test]
fn acknowledgements_wake_an_idle_saver_only() {
    let registry = Registry::default();
    let progress = open(&registry);
    assert!(wakes(&registry, Urgency::Change).0, "a stream was opened");
    assert!(!wakes(&registry, Urgency::Change).0, "nothing has changed since");
    progress.frame(30);
    progress.send(&(0..30), 3);
    registry.acknowledge(ack(0..10));
    assert!(!wakes(&registry, Urgency::Now).0);
    registry.acknowledge(ack(10..20));
    let (woken, pending) = wakes(&registry, Urgency::Ack);
    assert!(woken && pending.acked.is_some() && pending.changed.is_some());
    let waker = std::thread::scope(|s| {
        let waiting = s.spawn(|| {
            let begun = Instant::now();
            registry.wait(Urgency::Ack, begun + 100 * SOON, false);
            begun.elapsed()
        });
        let _ = crossbeam_channel::after(SOON).recv();
        registry.acknowledge(ack(20..30));
        waiting.join().unwrap()
    });
    assert!(waker < 50 * SOON, "slept for {waker:?}");
}

/// Fails when the tail that waits for the last acknowledgement, or for its save, is not woken, is woken by an earlier one, or
/// without having asked.
#[test]
fn the_last_acknowledgement_and_its_save_wake_the_tail() {
    let (registry, slot) = (Registry::default(), Arc::new(WakeSlot::new(true)));
    let progress = open(&registry);
    progress.frame(20);
    progress.send(&(0..20), 2);
    let save = || {
        registry.snapshot(&mut Saved::default(), 0);
        registry.saved(|_| {});
    };
    let woken = || slot.take().look;
    progress.awaited_by(slot.clone());
    registry.acknowledge(ack(0..10));
    save();
    assert!(!woken(), "the second half is missing");
    registry.acknowledge(ack(10..20));
    assert!(woken());
    save();
    assert!(!woken(), "it has not asked again");
    progress.awaited_by(slot.clone());
    save();
    assert!(woken());
}

/// Fails when a waiter for a save, or the end, does not wake the saver immediately; or when the end is forgotten.
#[test]
fn urgent_changes_wake_in_any_case() {
    let registry = Registry::default();
    let (done, _saved) = bounded(0);
    registry.first_scan_done(done);
    let (woken, pending) = wakes(&registry, Urgency::Now);
    assert!(woken && pending.waiting.len() == 1);
    registry.save_soon();
    assert!(wakes(&registry, Urgency::Now).0);
    registry.end();
    assert!(wakes(&registry, Urgency::Now).1.ending);
    assert!(wakes(&registry, Urgency::Now).1.ending, "the end is permanent");
}

/// Fails when bytes that were never sent can be acknowledged: in a release build as well.
#[test]
#[should_panic(expected = "of which only 10 bytes were sent")]
fn nothing_is_acknowledged_before_it_is_sent() {
    let registry = Registry::default();
    let progress = open(&registry);
    progress.frame(20);
    progress.send(&(0..10), 1);
    registry.acknowledge(ack(0..20));
}

/// Fails when bytes that were never framed can be sent: in a release build as well.
#[test]
#[should_panic(expected = "is sent before it is framed")]
fn nothing_is_sent_before_it_is_framed() {
    let progress = open(&Registry::default());
    progress.send(&(0..10), 1);
}
