//! The table against a naive model, and its bounds.

use super::*;
use crate::chunk::Origin;
use crate::record::{Closed, Mark, Point, Range, Shape, Then};
use proptest::collection::vec;
use proptest::prelude::*;

/// A point distinguishable from every other at the same offset.
fn point(offset: u64) -> Point {
    let then = if offset.is_multiple_of(3) { Then::SkipToNewline } else { Then::Line };
    Point { offset, mark: Mark { len: 9, hash: offset.wrapping_mul(31) }, then }
}

fn origin(stream: u64, path: &str, progress: &Arc<Progress>) -> Arc<Origin> {
    Arc::new(Origin {
        stream: StreamId(stream),
        topic: "t".into(),
        path: path.into(),
        shape: Arc::new(Shape::default()),
        progress: progress.clone(),
    })
}

fn opened(stream: u64, path: &str) -> (Opened, Arc<Progress>) {
    let progress = Arc::new(Progress::new(0, 0, None));
    let origin = origin(stream, path, &progress);
    let identity = Identity { dev: 1, ino: stream, born: None };
    (origin.opened(identity, Point::default()), progress)
}

fn ack(stream: u64, range: Range) -> Ack {
    let end = point(range.end);
    Ack { stream: StreamId(stream), range, end, lines: 1 }
}

fn send(progress: &Progress, end: u64) {
    progress.framed.store(end, Relaxed);
    progress.sent.store(end, Relaxed);
}

/// Cuts `0..` into chunks of these lengths, in the order in which they are acknowledged.
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
    /// Fails when neighbors are not merged, when closing a gap does not absorb the range behind it, or when a merged
    /// range loses its end point (mutate `further` to return `a`).
    #[test]
    fn as_a_set_of_bytes((ranges, order) in chunks(), upto in any::<prop::sample::Index>()) {
        let mut acked_ranges = AckedRanges::default();
        let mut acked = vec![false; ranges.last().unwrap().end as usize];
        for i in &order[..=upto.index(order.len())] {
            let r = ranges[*i].clone();
            acked_ranges.ack(r.start, point(r.end));
            acked[r.start as usize..r.end as usize].fill(true);
            let gap = acked.iter().position(|a| !a).unwrap_or(acked.len()) as u64;
            prop_assert_eq!(acked_ranges.at, if gap == 0 { Point::default() } else { point(gap) });
            let mut expected = Vec::new();
            let mut at = gap as usize;
            while let Some(start) = (at..acked.len()).find(|i| acked[*i]) {
                at = (start..acked.len()).find(|i| !acked[*i]).unwrap_or(acked.len());
                expected.push((start as u64..at as u64, point(at as u64)));
            }
            prop_assert_eq!(&acked_ranges.beyond, &expected);
        }
    }

    /// Fails when a restart forgets what was acknowledged beyond the gap, or saves it under another stream.
    #[test]
    fn a_restart_changes_nothing((ranges, order) in chunks(), at in any::<prop::sample::Index>()) {
        let (o, progress) = opened(5, "/a");
        send(&progress, u64::MAX);
        let mut table = Table::default();
        table.open(o.clone(), 0);
        let at = at.index(order.len());
        let take = |table: &mut Table, part: &[usize]| {
            part.iter().for_each(|i| { table.ack(&ack(5, ranges[*i].clone())); });
        };
        take(&mut table, &order[..at]);
        let saved: Vec<_> = table.write_down(7).collect();
        let next = table.next_stream();
        let mut again = Table::new(&saved, next);
        prop_assert_eq!(again.write_down(7).collect::<Vec<_>>(), saved.clone());
        again.open(Opened { at: saved[0].at, ..o }, 7);
        take(&mut table, &order[at..]);
        take(&mut again, &order[at..]);
        prop_assert_eq!(table.write_down(7).collect::<Vec<_>>(), again.write_down(7).collect::<Vec<_>>());
        prop_assert_eq!(progress.acked.load(Relaxed), ranges.last().unwrap().end);
    }
}

/// Fails when a stream counts as finished while one of its chunks is unacknowledged.
#[test]
fn a_stream_is_finished_when_everything_framed_is_acknowledged() {
    let mut table = Table::default();
    let (o, progress) = opened(1, "/a");
    assert!(table.open(o, 0), "a new stream is to be saved");
    send(&progress, 30);
    table.ack(&ack(1, 0..10));
    let closed = Closed { stream: StreamId(1), why: Ending::Truncated { lost: 70 } };
    assert!(!table.close(closed.stream, &closed.why));
    table.ack(&ack(1, 20..30));
    let finished = |l: &mut Table| l.write_down(0).next().unwrap().finished;
    assert!(!finished(&mut table));
    assert_eq!(table.lost_bytes(), 0, "the next run would count it again");
    table.ack(&ack(1, 10..20));
    assert!(finished(&mut table));
    assert_eq!(table.lost_bytes(), 70);
    let mut reported = Vec::new();
    table.saved(|s| reported.push(s));
    assert_eq!((reported, progress.saved.load(Relaxed)), (vec![StreamId(1)], 30));
}

/// Fails when `saved` follows acknowledgements that came after the save had begun.
#[test]
fn saved_positions_are_those_of_the_save() {
    let mut table = Table::default();
    let (o, progress) = opened(1, "/a");
    table.open(o, 0);
    send(&progress, 20);
    table.ack(&ack(1, 0..10));
    assert_eq!(table.write_down(0).count(), 1);
    table.ack(&ack(1, 10..20));
    table.saved(|_| {});
    assert_eq!((progress.saved.load(Relaxed), progress.acked.load(Relaxed)), (10, 20));
}

fn rotate(table: &mut Table, stream: u64, path: &str) {
    table.open(opened(stream, path).0, 0);
    table.close(StreamId(stream), &Ending::Finished);
}

/// Fails when finished streams are kept forever, when the newest are forgotten instead of the oldest, or when a live
/// one is forgotten.
#[test]
fn ten_thousand_rotations_leave_a_bounded_state() {
    let mut table = Table::default();
    table.open(opened(1, "/a").0, 0);
    for stream in 2..10_002 {
        rotate(&mut table, stream, "/a");
    }
    let kept: Vec<u64> = table.write_down(0).map(|s| s.stream.0).collect();
    assert_eq!(kept.len(), Table::FINISHED_PER_PATH + 1);
    assert_eq!((kept[0], kept[1], *kept.last().unwrap()), (1, 10_001 - 63, 10_001));
    assert_eq!(table.next_stream(), 10_002);
    // A state saved with higher limits is reduced as well.
    let many = Table::new(&table.write_down(0).collect::<Vec<_>>(), 0).write_down(0).count();
    assert_eq!(many, kept.len());
}

/// Fails when 1,000 files with 64 finished streams each make a state of 64,000 lines.
#[test]
fn many_files_share_the_limit() {
    let mut table = Table::default();
    for stream in 1..=20_000 {
        rotate(&mut table, stream, &format!("/{}", stream % 1000));
    }
    let per_path = table.finished.values().map(BTreeSet::len);
    assert_eq!(per_path.clone().min(), Some(Table::FINISHED_AT_LEAST));
    assert!(table.finished_total <= 1000 * Table::FINISHED_AT_LEAST);
    assert_eq!(table.finished_total, per_path.sum::<usize>());
}

/// Fails when a finished stream that was reopened (late writer) can be forgotten while it is open.
#[test]
fn a_finished_stream_can_be_reopened() {
    let mut table = Table::default();
    rotate(&mut table, 1, "/a");
    table.open(opened(1, "/a").0, 0);
    assert_eq!(table.finished_total, 0);
    for stream in 2..200 {
        rotate(&mut table, stream, "/a");
    }
    assert!(table.forget_absent(StreamId(1), 1 << 40, 0).is_none());
    assert!(table.write_down(0).any(|s| s.stream.0 == 1 && !s.finished));
}

/// Fails when an acknowledgement of the same range twice goes unseen.
#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "acknowledged 0 again")]
fn a_repeated_acknowledgement_panics() {
    let mut acked_ranges = AckedRanges::default();
    acked_ranges.ack(0, point(10));
    acked_ranges.ack(0, point(10));
}

/// Fails when the size of a file that is not being read is saved only with the next acknowledgement.
#[test]
fn a_grown_file_is_worth_saving() {
    let mut table = Table::default();
    let (o, progress) = opened(1, "/a");
    table.open(o, 0);
    assert!(!table.sizes().0);
    progress.size.store(1000, Relaxed);
    assert!(table.sizes().0);
    assert_eq!(table.write_down(0).next().unwrap().size, 1000);
    assert!(!table.sizes().0);
}

/// A tail that continues in a copy of a truncated file reopens the stream beyond its acknowledged position. Fails
/// when unacknowledged chunks then count as acknowledged.
#[test]
fn reopened_while_chunks_are_in_flight() {
    let mut table = Table::default();
    let (o, progress) = opened(1, "/a");
    table.open(o, 0);
    send(&progress, 50);
    table.ack(&ack(1, 0..20));
    let (mut again, _) = opened(1, "/a");
    let progress = Arc::new(Progress::new(50, 90, None));
    again.progress = progress.clone();
    again.at = point(50);
    table.open(again, 0);
    assert_eq!((progress.acked.load(Relaxed), table.write_down(0).next().unwrap().at), (20, point(20)));
    send(&progress, 90);
    table.ack(&ack(1, 50..90));
    table.ack(&ack(1, 20..50));
    assert_eq!(progress.acked.load(Relaxed), 90);
}

/// A lost file of which an earlier run had acknowledged later lines. Fails when the stream waits for the gap: its
/// loss would never be counted, and would be reported at every start.
#[test]
fn a_lost_gap_before_an_acknowledged_range_ends_the_stream() {
    let mut table = Table::new(&[], 1);
    let (open, progress) = opened(1, "/a");
    table.open(open, 0);
    send(&progress, 110);
    table.ack(&ack(1, 0..11));
    table.ack(&ack(1, 22..110));
    let saved: Vec<SavedStream> = table.write_down(0).collect();
    let mut table = Table::new(&saved, 2);
    let (open, progress) = opened(1, "/a");
    table.open(Opened { at: point(11), ..open }, 0);
    send(&progress, 11);
    assert!(table.close(StreamId(1), &Ending::Truncated { lost: 11 }));
    assert_eq!(table.lost_bytes(), 11);
}
