//! Which lines are in doubt after a kill, a clean end and a power loss.

use super::*;
use crate::streams::air::{HEAD, SLOT, head, word};
use std::path::Path;

fn open(path: &Path, boot: &str) -> (Arc<SentMarks>, FoundMarks) {
    let options = || File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    let (marks, found) = SentMarks::open(options(), boot, false).unwrap();
    (Arc::new(marks), found)
}

/// A run on a fresh file.
fn first(path: &Path) -> Arc<SentMarks> {
    let (marks, found) = open(path, "boot-1");
    assert!(found.stale && !found.trusted);
    marks.begin(0, std::iter::empty());
    marks
}

const S: StreamId = StreamId(7);

/// The rule. Fails when a limit is written after the fact, when lines beyond it are counted, or when a second kill does
/// not count a second copy.
#[test]
fn a_kill_leaves_in_doubt_what_was_framed_and_not_saved() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("air");
    let marks = first(&path);
    let slot = marks.take(S, 0, 1000);
    slot.raise(0, 100, 10);
    slot.raise(100, 200, 10);
    assert_eq!(marks.again(), 0);
    // Killed; saved up to 100.
    let (marks, found) = open(&path, "boot-1");
    assert!(found.trusted && !found.stale);
    assert_eq!(found.limits[&S], 200);
    let slot = marks.take(S, 100, 1000);
    slot.raise(100, 200, 10);
    slot.raise(200, 300, 10);
    assert_eq!(marks.again(), 10);
    // Killed before anything was saved: 100..200 may be stored three times.
    let header = Header::of(&std::fs::read(&path).unwrap());
    assert_eq!((header.resent, header.again), (0, 10));
    let (marks, _) = open(&path, "boot-1");
    let slot = marks.take(S, 100, 1000);
    slot.raise(100, 200, 10);
    assert_eq!(marks.again(), 20);
    // Everything in doubt was saved, and then more was sent: killed again.
    slot.raise(200, 400, 20);
    assert_eq!(marks.again(), 40, "200..300 was sent by the second run");
    let (marks, _) = open(&path, "boot-1");
    let slot = marks.take(S, 300, 1000);
    slot.raise(300, 400, 3);
    slot.raise(400, 500, 3);
    assert_eq!(marks.again(), 43);
}

/// Fails when anything is in doubt after a clean end with everything acknowledged, also across a boot.
#[test]
fn a_drained_end_leaves_nothing_in_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("air");
    let marks = first(&path);
    marks.take(S, 0, 100).raise(0, 100, 10);
    marks.end();
    for (boot, at) in [("boot-1", 100), ("boot-2", 500), ("boot-2", 900)] {
        let (marks, found) = open(&path, boot);
        assert!(found.trusted, "{boot}");
        if found.stale {
            marks.begin(0, found.limits.into_iter());
        }
        marks.take(S, at, 5000).raise(at, at + 400, 9);
        assert_eq!(marks.again(), 0, "{boot}");
        marks.end();
    }
}

/// A stop whose drain ran out: what was sent and not acknowledged is in doubt. Fails when a clean end clears limits.
#[test]
fn an_end_with_unacknowledged_lines_leaves_them_in_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("air");
    let marks = first(&path);
    marks.take(S, 0, 100).raise(0, 100, 10);
    marks.end();
    let (marks, found) = open(&path, "boot-2");
    marks.begin(0, found.limits.into_iter());
    marks.take(S, 40, 100).raise(40, 100, 6);
    assert_eq!(marks.again(), 6);
}

/// Power loss: the file of a run in another boot says nothing. Fails when the word that marks a run in progress is
/// ignored.
#[test]
fn a_power_loss_puts_everything_in_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("air");
    let marks = first(&path);
    marks.take(S, 0, 100).raise(0, 100, 10);
    let (marks, found) = open(&path, "boot-2");
    assert!(found.stale && !found.trusted && found.limits.is_empty());
    marks.begin(0, [(S, u64::MAX)].into_iter());
    let slot = marks.take(S, 10, 100);
    slot.raise(10, 100, 9);
    slot.raise(100, 200, 10);
    assert_eq!(marks.again(), 9, "what was appended since is not in doubt");
}

/// Fails when each chunk of a busy stream is written, when a limit stays ahead after a save or a clean end, or when a
/// kill also counts lines that the file did not hold yet at the next start.
#[test]
fn the_limit_of_a_busy_stream_runs_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("air");
    let marks = first(&path);
    let slot = marks.take(S, 0, 0);
    let in_file = || word(&std::fs::read(&path).unwrap(), HEAD + 8);
    let send = |line: u64| slot.raise(line * 100, line * 100 + 100, 1);
    (0..10).for_each(send);
    assert_eq!(in_file(), 1000, "the first chunks of a run are exact");
    marks.settle();
    let before = marks.written();
    (10..20).for_each(send);
    assert_eq!((in_file(), marks.written() - before), (2100, 8));
    marks.settle();
    assert_eq!(in_file(), 2000);
    (20..22).for_each(send);
    assert_eq!(in_file(), 3100);
    marks.settle(); // two chunks: it is not busy any more
    (22..24).for_each(send);
    assert_eq!(in_file(), 2400);
    marks.settle();
    (24..30).for_each(send);
    marks.settle();
    (30..31).for_each(send);
    assert_eq!(in_file(), 3700);
    let killed = dir.path().join("killed");
    std::fs::copy(&path, &killed).unwrap();
    marks.end();
    assert_eq!(in_file(), 3100);
    let (marks, _) = open(&killed, "boot-1");
    let slot = marks.take(S, 3000, 3200);
    (30..50).for_each(|line| slot.raise(line * 100, line * 100 + 100, 1));
    assert_eq!(marks.again(), 2, "what came after the start is not in doubt");
}

/// Fails when a stream that is opened a second time in a run forgets how far it was sent.
#[test]
fn a_stream_opened_again_keeps_its_mark() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("air");
    let marks = first(&path);
    marks.take(S, 0, 0).raise(0, 500, 5);
    marks.take(S, 100, 500).raise(100, 200, 1);
    assert_eq!(open(&path, "boot-1").1.limits[&S], 500);
}

/// Fails when a freed slot's old limit is taken for the new stream's, or slots are never reused.
#[test]
fn slots_are_reused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("air");
    let marks = first(&path);
    for stream in 1..5000 {
        let slot = marks.take(StreamId(stream), 0, 0);
        slot.raise(0, 100, 1);
        marks.release(StreamId(stream));
    }
    assert_eq!(std::fs::metadata(&path).unwrap().len(), HEAD + SLOT);
    let (marks, _) = open(&path, "boot-1");
    marks.retain(0, |_| false);
    marks.take(StreamId(5000), 50, 60).raise(50, 60, 1);
    assert_eq!(marks.again(), 0);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), HEAD + SLOT);
}

/// A rotated file that was read to its end is written again. Fails when its old slot, which is free by then, still says how far
/// it was sent before.
#[test]
fn a_finished_stream_that_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("air");
    let marks = first(&path);
    let other = StreamId(8);
    marks.take(other, 0, 0).raise(0, 100, 1);
    marks.take(S, 0, 0).raise(0, 100, 1);
    marks.release(S);
    marks.release(other);
    marks.take(S, 100, 100).raise(100, 500, 4);
    assert_eq!(open(&path, "boot-1").1.limits, HashMap::from([(S, 500)]));
}

/// The same while the save that says "finished" is still running. Fails when the stream writes to a slot that is free, or
/// another's by then.
#[test]
fn a_stream_that_is_opened_again_before_its_end_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("air");
    let marks = first(&path);
    let read = marks.take(S, 0, 0);
    read.raise(0, 100, 1);
    let again = marks.take(S, 100, 500);
    marks.release(S);
    marks.take(StreamId(8), 0, 0).raise(0, 50, 1);
    again.raise(100, 500, 4);
    assert_eq!(open(&path, "boot-1").1.limits, HashMap::from([(S, 500), (StreamId(8), 50)]));
    drop(read);
    marks.release(S);
    assert_eq!(open(&path, "boot-1").1.limits, HashMap::from([(StreamId(8), 50)]));
}

/// The disk is read-only for a while. Fails when the file, which could not be emptied, is trusted after a kill although it
/// lacks what was sent meanwhile; or when it is given up for the rest of the run, so that after a clean end every line
/// that the next run reads counts.
#[test]
fn a_file_that_cannot_be_written_for_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("air");
    let mut marks = first(&path);
    marks.take(S, 0, 0).raise(0, 100, 1);
    let read_only = File::open(&path).unwrap();
    let writable = Arc::get_mut(&mut marks).unwrap().file.file.replace(read_only);
    marks.take(S, 0, 0).raise(100, 500, 4);
    marks.take(StreamId(8), 0, 0).raise(0, 70, 1);
    marks.resent(3);
    marks.settle();
    assert!(marks.file.is_broken());
    Arc::get_mut(&mut marks).unwrap().file.file = writable;
    marks.settle();
    assert!(!marks.file.is_broken());
    marks.take(S, 0, 0).raise(500, 600, 1);
    let (_, found) = open(&path, "boot-1");
    assert!(found.trusted);
    assert_eq!(found.limits, HashMap::from([(S, 600), (StreamId(8), 70)]));
    assert_eq!(found.resent, 3);
    assert!(!open(&path, "boot-2").1.trusted, "it has not ended");
    marks.end();
    assert!(open(&path, "boot-2").1.trusted);
}

/// Fails when a damaged file is trusted.
#[test]
fn damage_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("air");
    for bytes in [&b""[..], b"logagent air 1 boot-1\n", &[0; 200], &b"logagent air 2 boot-1\n"[..]] {
        std::fs::write(&path, bytes).unwrap();
        assert!(!open(&path, "boot-1").1.trusted, "{bytes:?}");
    }
}

/// Fails when the producer's counts are lost by a kill.
#[test]
fn resent_lines_outlive_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("air");
    first(&path).resent(17);
    assert_eq!(open(&path, "boot-1").1.resent, 17);
}

/// With exactly-once the broker deduplicates what is sent again.
#[test]
fn recognized_lines_are_not_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("air");
    first(&path).take(S, 0, 9).raise(0, 9, 9);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let marks = Arc::new(SentMarks::open(file, "boot-1", true).unwrap().0);
    marks.take(S, 0, 9).raise(0, 9, 9);
    assert_eq!(marks.again(), 0);
}

/// A stream that started after the last save gets another id in the next run. Fails when its lines are sent again
/// without being counted, also after a second kill, before or after that save; or when anything stays in doubt after
/// the first scan.
#[test]
fn sent_lines_of_a_stream_that_was_never_saved() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("air");
    let (saved, again) = (StreamId(1), |marks: &SentMarks| marks.again());
    let marks = first(&path);
    marks.take(saved, 0, 5000).raise(0, 5000, 1);
    marks.take(S, 0, 1000).raise(0, 100, 10);
    marks.take(StreamId(8), 0, 1000).raise(0, 60, 1);
    // Killed; only the first is saved.
    let restart = |next| {
        let (marks, found) = open(&path, "boot-1");
        let unsaved = found.unsaved(next, &HashSet::new());
        marks.retain(unsaved, |stream| stream == saved);
        (marks, unsaved)
    };
    let (_, unsaved) = restart(2);
    assert_eq!(unsaved, 100);
    // Killed before anything was opened.
    let (marks, unsaved) = restart(2);
    assert_eq!(unsaved, 100);
    let slot = marks.take(StreamId(2), 0, 1000);
    slot.raise(0, 50, 5);
    assert_eq!(again(&marks), 5);
    marks.take(StreamId(3), 0, 30).raise(0, 30, 3);
    assert_eq!(again(&marks), 8, "it may be this one");
    marks.first_scan_done();
    marks.take(StreamId(4), 0, 1000).raise(0, 1000, 100);
    assert_eq!(again(&marks), 8, "it is new");
    // Killed after the opening was saved: the broker has had 50..100 since the first run.
    let (marks, found) = open(&path, "boot-1");
    assert_eq!(found.unsaved(5, &HashSet::new()), 0);
    assert_eq!([2, 3, 4].map(|s| found.limits[&StreamId(s)]), [100, 30, 1000]);
    marks.retain(0, |stream| stream.0 <= 3);
    let slot = marks.take(StreamId(2), 50, 1000);
    slot.raise(50, 100, 5);
    slot.raise(100, 1000, 90);
    marks.take(StreamId(3), 30, 1000).raise(30, 1000, 97);
    assert_eq!(again(&marks), 13);
    // Freed slots apply to no stream, whatever ids the next streams have.
    let (_, found) = open(&path, "boot-1");
    assert!(found.limits.keys().all(|stream| stream.0 <= 3), "{found:?}");
}

/// The same after a power loss, when nothing is known, and across a boot before the first scan was over.
#[test]
fn after_a_power_loss_a_new_file_is_in_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("air");
    let (marks, _) = open(&path, "boot-1");
    marks.begin(u64::MAX, std::iter::empty());
    let (marks, found) = open(&path, "boot-2");
    assert!(found.trusted && found.stale);
    marks.begin(found.unsaved(1, &HashSet::new()), std::iter::empty());
    let slot = marks.take(S, 0, 100);
    slot.raise(0, 100, 10);
    slot.raise(100, 200, 10);
    marks.take(StreamId(8), 70, 70).raise(70, 100, 3);
    assert_eq!(marks.again(), 10, "what came since is not in doubt");
    marks.first_scan_done();
    assert_eq!(open(&path, "boot-2").1.unsaved(9, &HashSet::new()), 0);
}

/// Consecutive power losses, after which only synced data remains: every run sends the same 10 lines, and no save is
/// ever synced. Fails when an interrupted run's count is only in the page cache, or when much more is counted.
#[test]
fn duplicates_of_consecutive_power_losses_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("air");
    let mut marks = first(&path);
    let mut sent = 0;
    for life in 2..=5 {
        let slot = marks.take(S, 0, 1000);
        for part in 0..10 {
            slot.raise(part * 100, part * 100 + 100, 1);
        }
        marks.uncertain(3);
        sent += 13;
        let on_disk = marks.file.synced.lock().unwrap().clone();
        std::fs::write(&path, on_disk).unwrap();
        let boot = format!("boot-{life}");
        let (next, found) = open(&path, &boot);
        assert!(found.stale && !found.trusted);
        next.count_from(found.counts(RepeatCounts::default()));
        next.begin(u64::MAX, [(S, u64::MAX)].into_iter());
        marks = next;
        // The first copy of each line is not a duplicate.
        let doubled = sent - 10;
        let counted = marks.again();
        assert!(counted >= doubled, "life {life}: {doubled} doubled, {counted} counted");
        assert!(counted <= 2 * doubled, "life {life}: {doubled} doubled, {counted} counted");
    }
}

/// Fails when every chunk in doubt waits for the disk.
#[test]
fn a_start_in_doubt_syncs_a_few_times() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("air");
    first(&path).take(S, 0, 1000).raise(0, 1_000_000, 1);
    let (marks, _) = open(&path, "boot-1");
    let slot = marks.take(S, 0, 1_000_000);
    let mut images = std::collections::HashSet::new();
    for at in 0..10_000 {
        slot.raise(at * 100, at * 100 + 100, 1);
        images.insert(marks.file.synced.lock().unwrap().clone());
    }
    assert_eq!(marks.again(), 10_000);
    assert!(images.len() < 20, "{} syncs", images.len());
}

/// Fails when the file's content is trusted blindly: a number that overflows a count, or slots beyond its end.
#[test]
fn fuzz_sent_marks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("air");
    let word = |n: u64| n.to_le_bytes();
    let head = |running: u64| {
        [&head("b")[..], &[word(9), word(4), word(running), word(5), word(6)].concat()].concat()
    };
    let slots = [word(1), word(100), word(0), word(0), word(3), word(u64::MAX)].concat();
    let samples = [head(1), [head(1), slots.clone()].concat(), [head(0), slots].concat()];
    crate::fuzz::damaged(&samples, <[u8]>::len, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let (marks, found) = SentMarks::open(file, "b", false).unwrap();
        let marks = Arc::new(marks);
        marks.begin(found.unsaved(4, &HashSet::new()), found.limits.iter().map(|(s, l)| (*s, *l)));
        marks.take(StreamId(1), 50, 200).raise(50, 70, 3);
        marks.resent(2);
        marks.end();
        let _ = Header::of(bytes);
        found.limits.len()
    });
}
