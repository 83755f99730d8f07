//! The ledger against a naive model, and its bounds.

use super::*;
use crate::chunk::{Closed, Mark, Origin, Range, Shape, Then};
use proptest::collection::vec;
use proptest::prelude::*;

/// A point that can be told from every other at the same offset.
fn point(offset: u64) -> Point {
    let then = if offset.is_multiple_of(3) { Then::SkipToNewline } else { Then::Line };
    Point { offset, mark: Mark { len: 9, hash: offset.wrapping_mul(31) }, then }
}

fn origin(stream: u64, path: &str, gauge: &Arc<Gauge>) -> Arc<Origin> {
    Arc::new(Origin {
        stream: StreamId(stream),
        topic: "t".into(),
        path: path.into(),
        shape: Arc::new(Shape::default()),
        gauge: gauge.clone(),
    })
}

fn opened(stream: u64, path: &str) -> (Opened, Arc<Gauge>) {
    let gauge = Arc::new(Gauge::new(0, 0, None));
    let origin = origin(stream, path, &gauge);
    let identity = Identity { dev: 1, ino: stream, born: None };
    (Opened { origin, identity, at: Point::default() }, gauge)
}

fn ack(stream: u64, range: Range) -> Ack {
    let end = point(range.end);
    Ack { stream: StreamId(stream), range, end, lines: 1 }
}

fn fly(gauge: &Gauge, end: u64) {
    gauge.framed.store(end, Relaxed);
    gauge.flown.store(end, Relaxed);
}

/// Cuts `0..` into chunks of these lengths, and says the order in which they are acknowledged.
fn chunks() -> impl Strategy<Value = (Vec<Range>, Vec<usize>)> {
    vec(1..5u64, 1..40).prop_flat_map(|lens| {
        let mut from = 0;
        let cut = |len: &u64| {
            from += len;
            from - len..from
        };
        let ranges: Vec<Range> = lens.iter().map(cut).collect();
        let order = Just((0..ranges.len()).collect::<Vec<_>>()).prop_shuffle();
        (Just(ranges), order)
    })
}

proptest! {
    /// Fails when neighbours are not merged, when a closed gap does not take up the range behind it, or when a merged
    /// range loses the point of its end (mutate `further` to return `a`).
    #[test]
    fn as_a_set_of_bytes((ranges, order) in chunks(), upto in any::<prop::sample::Index>()) {
        let mut reached = Reached::default();
        let mut acked = vec![false; ranges.last().unwrap().end as usize];
        for i in &order[..=upto.index(order.len())] {
            let r = ranges[*i].clone();
            reached.ack(r.start, point(r.end));
            acked[r.start as usize..r.end as usize].fill(true);
            let gap = acked.iter().position(|a| !a).unwrap_or(acked.len()) as u64;
            prop_assert_eq!(reached.at, if gap == 0 { Point::default() } else { point(gap) });
            let mut expected = BTreeMap::new();
            let mut at = gap as usize;
            while let Some(start) = (at..acked.len()).find(|i| acked[*i]) {
                at = (start..acked.len()).find(|i| !acked[*i]).unwrap_or(acked.len());
                expected.insert(start as u64, point(at as u64));
            }
            prop_assert_eq!(&reached.beyond, &expected);
        }
    }

    /// Fails when a restart forgets what was acknowledged beyond the gap, or saves it under another stream.
    #[test]
    fn a_restart_in_between_changes_nothing((ranges, order) in chunks(), at in any::<prop::sample::Index>()) {
        let (o, gauge) = opened(5, "/a");
        fly(&gauge, u64::MAX);
        let mut ledger = Ledger::default();
        ledger.open(o.clone(), 0);
        let at = at.index(order.len());
        let take = |ledger: &mut Ledger, part: &[usize]| {
            part.iter().for_each(|i| { ledger.ack(&ack(5, ranges[*i].clone())); });
        };
        take(&mut ledger, &order[..at]);
        let saved: Vec<_> = ledger.write_down(7).collect();
        let next = ledger.next_stream();
        let mut again = Ledger::new(saved.clone(), next);
        prop_assert_eq!(again.write_down(7).collect::<Vec<_>>(), saved.clone());
        again.open(Opened { at: saved[0].at, ..o }, 7);
        take(&mut ledger, &order[at..]);
        take(&mut again, &order[at..]);
        prop_assert_eq!(ledger.write_down(7).collect::<Vec<_>>(), again.write_down(7).collect::<Vec<_>>());
        prop_assert_eq!(gauge.acked.load(Relaxed), ranges.last().unwrap().end);
    }
}

/// Fails when a stream counts as finished while a chunk of it is still in the air.
#[test]
fn finished_is_when_all_that_was_framed_is_acknowledged() {
    let mut ledger = Ledger::default();
    let (o, gauge) = opened(1, "/a");
    assert!(ledger.open(o, 0), "a new stream is to be saved");
    fly(&gauge, 30);
    ledger.ack(&ack(1, 0..10));
    let closed = Closed { stream: StreamId(1), why: Ending::Truncated { lost: 70 } };
    assert!(!ledger.close(closed.stream, &closed.why));
    ledger.ack(&ack(1, 20..30));
    let finished = |l: &mut Ledger| l.write_down(0).next().unwrap().finished;
    assert!(!finished(&mut ledger));
    assert_eq!(ledger.lost_bytes(), 0, "the next run would count it anew");
    ledger.ack(&ack(1, 10..20));
    assert!(finished(&mut ledger));
    assert_eq!(ledger.lost_bytes(), 70);
    let mut told = Vec::new();
    ledger.saved(|s| told.push(s));
    assert_eq!((told, gauge.saved.load(Relaxed)), (vec![StreamId(1)], 30));
}

/// Fails when `saved` follows acknowledgements that came after the save had begun.
#[test]
fn saved_is_what_the_save_said() {
    let mut ledger = Ledger::default();
    let (o, gauge) = opened(1, "/a");
    ledger.open(o, 0);
    fly(&gauge, 20);
    ledger.ack(&ack(1, 0..10));
    assert_eq!(ledger.write_down(0).count(), 1);
    ledger.ack(&ack(1, 10..20));
    ledger.saved(|_| {});
    assert_eq!((gauge.saved.load(Relaxed), gauge.acked.load(Relaxed)), (10, 20));
}

fn rotate(ledger: &mut Ledger, stream: u64, path: &str) {
    ledger.open(opened(stream, path).0, 0);
    ledger.close(StreamId(stream), &Ending::Finished);
}

/// Fails when finished streams are kept for ever, when the newest are forgotten instead of the oldest, or when a live one is.
#[test]
fn ten_thousand_rotations_leave_a_bounded_state() {
    let mut ledger = Ledger::default();
    ledger.open(opened(1, "/a").0, 0);
    for stream in 2..10_002 {
        rotate(&mut ledger, stream, "/a");
    }
    let kept: Vec<u64> = ledger.write_down(0).map(|s| s.stream.0).collect();
    assert_eq!(kept.len(), Ledger::FINISHED_PER_PATH + 1);
    assert_eq!((kept[0], kept[1], *kept.last().unwrap()), (1, 10_001 - 63, 10_001));
    assert_eq!(ledger.next_stream(), 10_002);
    // A saved state from a time with higher limits comes down as well.
    let many = Ledger::new(ledger.write_down(0).collect(), 0).write_down(0).count();
    assert_eq!(many, kept.len());
}

/// Fails when 1,000 files with 64 finished streams each make a state of 64,000 lines.
#[test]
fn many_files_share_the_room() {
    let mut ledger = Ledger::default();
    for stream in 1..=20_000 {
        rotate(&mut ledger, stream, &format!("/{}", stream % 1000));
    }
    let per_path = ledger.finished.values().map(BTreeSet::len);
    assert_eq!(per_path.clone().min(), Some(Ledger::FINISHED_AT_LEAST));
    assert!(ledger.finished_total <= 1000 * Ledger::FINISHED_AT_LEAST);
    assert_eq!(ledger.finished_total, per_path.sum::<usize>());
}

/// Fails when a finished stream that is read on (a late writer) can be forgotten while it is open.
#[test]
fn a_finished_stream_can_be_taken_up_again() {
    let mut ledger = Ledger::default();
    rotate(&mut ledger, 1, "/a");
    ledger.open(opened(1, "/a").0, 0);
    assert_eq!(ledger.finished_total, 0);
    for stream in 2..200 {
        rotate(&mut ledger, stream, "/a");
    }
    assert!(!ledger.forget_if_resting(StreamId(1)));
    assert!(ledger.write_down(0).any(|s| s.stream.0 == 1 && !s.finished));
}

/// Fails when an acknowledgement of the same range twice goes unseen.
#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "acknowledged 0 again")]
fn backwards_is_a_defect() {
    let mut reached = Reached::default();
    reached.ack(0, point(10));
    reached.ack(0, point(10));
}

/// Fails when the size of a file that is not read on is saved only with the next acknowledgement.
#[test]
fn a_grown_file_is_worth_saving() {
    let mut ledger = Ledger::default();
    let (o, gauge) = opened(1, "/a");
    ledger.open(o, 0);
    assert!(!ledger.sizes_moved());
    gauge.size.store(1000, Relaxed);
    assert!(ledger.sizes_moved());
    assert_eq!(ledger.write_down(0).next().unwrap().size, 1000);
    assert!(!ledger.sizes_moved());
}

/// A tail that goes on in a copy of a truncated file opens the stream again, further than it is acknowledged. Fails when
/// what is in the air then counts as acknowledged.
#[test]
fn opened_again_while_chunks_are_in_the_air() {
    let mut ledger = Ledger::default();
    let (o, gauge) = opened(1, "/a");
    ledger.open(o, 0);
    fly(&gauge, 50);
    ledger.ack(&ack(1, 0..20));
    let (mut again, _) = opened(1, "/a");
    let gauge = Arc::new(Gauge::new(50, 90, None));
    again.origin = origin(1, "/a", &gauge);
    again.at = point(50);
    ledger.open(again, 0);
    assert_eq!((gauge.acked.load(Relaxed), ledger.write_down(0).next().unwrap().at), (20, point(20)));
    fly(&gauge, 90);
    ledger.ack(&ack(1, 50..90));
    ledger.ack(&ack(1, 20..50));
    assert_eq!(gauge.acked.load(Relaxed), 90);
}

/// A file is lost of which later lines were acknowledged in an earlier life. Fails when the stream waits for what lies between:
/// its loss would never be counted, and be said again at each start.
#[test]
fn a_loss_before_what_was_acknowledged_beyond_ends_the_stream() {
    let mut ledger = Ledger::new(Vec::new(), 1);
    let (open, gauge) = opened(1, "/a");
    ledger.open(open, 0);
    fly(&gauge, 110);
    ledger.ack(&ack(1, 0..11));
    ledger.ack(&ack(1, 22..110));
    let saved: Vec<SavedStream> = ledger.write_down(0).collect();
    let mut ledger = Ledger::new(saved, 2);
    let (open, gauge) = opened(1, "/a");
    ledger.open(Opened { at: point(11), ..open }, 0);
    fly(&gauge, 11);
    assert!(ledger.close(StreamId(1), &Ending::Truncated { lost: 11 }));
    assert_eq!(ledger.lost_bytes(), 11);
}
