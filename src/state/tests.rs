//! Tests registry and saver on a real folder.

use super::*;
use crate::chunk::Origin;
use crate::clock;
use crate::record::{Ack, Closed, Ending, Identity, Mark, Point, Shape, Then};
use crate::state::saver::LAST_RETRY;
use crate::streams::Progress;
use crossbeam_channel::bounded;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Instant;

fn options(folder: &Path) -> StateOptions {
    StateOptions {
        state_dir: Some(folder.into()),
        sync: Sync::Every(Duration::from_secs(30)),
        damaged: Damaged::Refuse,
        exactly_once: None,
    }
}

fn point(offset: u64) -> Point {
    Point { offset, mark: Mark { len: 3, hash: offset }, then: Then::Line }
}

/// One run of the agent, reduced to its use of the state folder.
struct Bench {
    board: Arc<Board>,
    registry: Arc<Registry>,
    saver: Saver,
    saved: Saved,
}

impl Bench {
    fn start(options: StateOptions) -> Bench {
        let board = Arc::new(Board::default());
        let (folder, saved) = open(options, &board).unwrap();
        let registry = folder.registry(&board);
        let saver = Saver::start(folder, registry.clone(), &board).unwrap();
        Bench { board, registry, saver, saved }
    }

    fn open(&self, stream: u64, at: u64, size: u64) -> Arc<Progress> {
        let progress = self.board.progress(StreamId(stream), at, size, size);
        let origin = Origin {
            stream: StreamId(stream),
            topic: "t".into(),
            path: "/var/log/a".into(),
            shape: Arc::new(Shape::default()),
            progress: progress.clone(),
        };
        let at = if at == 0 { Point::default() } else { point(at) };
        let identity = Identity { dev: 1, ino: stream, born: None };
        self.registry.open(origin.opened(identity, at));
        progress
    }

    /// A chunk is framed and sent.
    fn send(progress: &Progress, start: u64, end: u64) {
        progress.frame(end);
        progress.send(&(start..end), end - start);
    }

    /// Ten bytes are a line here.
    fn ack(&self, stream: u64, start: u64, end: u64) {
        let lines = end - start;
        self.registry.acknowledge([Ack {
            stream: StreamId(stream),
            range: start..end,
            end: point(end),
            lines,
        }]);
    }

    fn flush(&self) {
        let (answer, saved) = bounded(0);
        self.saver.first_scan_done(answer);
        assert!(
            saved.recv_timeout(Duration::from_secs(10)).is_err_and(|e| e.is_disconnected()),
            "not answered"
        );
    }

    fn stop(self) -> Result<(), Error> {
        self.saver.finish()
    }
}

fn on_disk(folder: &Path) -> Saved {
    match store::look(folder).unwrap() {
        store::FoundPositions::Good(saved) => *saved,
        other => panic!("{other:?}"),
    }
}

fn names_and_times(folder: &Path) -> Vec<(String, std::time::SystemTime)> {
    let entry = |e: io::Result<fs::DirEntry>| {
        let e = e.unwrap();
        (e.file_name().into_string().unwrap(), e.metadata().unwrap().modified().unwrap())
    };
    let mut all: Vec<_> =
        fs::read_dir(folder).unwrap().map(entry).filter(|(name, _)| name != "lock").collect();
    all.sort();
    all
}

/// Fails when a flush is answered before the save or waits for more changes, or when the save lacks the pattern.
#[test]
fn first_scan_is_saved_when_the_flush_is_answered() {
    // On a file system with a fast fsync(2), to time only the waits around it.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let bench = Bench::start(options(dir.path()));
    bench.open(1, 500, 500);
    bench.registry.pattern_known(b"/var/log/*".to_vec());
    let before = Instant::now();
    bench.flush();
    assert!(before.elapsed() < Duration::from_millis(500), "the agent becomes ready only after this");
    let saved = on_disk(dir.path());
    assert_eq!((saved.streams.len(), saved.streams[0].at, saved.next_stream), (1, point(500), 2));
    assert_eq!(saved.sources, [b"/var/log/*".to_vec()]);
    bench.flush(); // nothing to save: answered nevertheless
    bench.stop().unwrap();
}

/// Fails when acks wait for more than a second, or when `saved` passes `acked`.
#[test]
fn an_ack_is_saved_within_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::start(options(dir.path()));
    let progress = bench.open(1, 0, 100);
    bench.flush();
    Bench::send(&progress, 0, 50);
    let before = Instant::now();
    bench.ack(1, 0, 50);
    let tick = crossbeam_channel::tick(Duration::from_millis(5));
    while progress.saved.load(Relaxed) < 50 {
        tick.recv().unwrap();
        assert!(before.elapsed() < Duration::from_millis(1500), "not saved");
    }
    assert_eq!(on_disk(dir.path()).streams[0].at, point(50));
    assert_eq!(on_disk(dir.path()).totals.acked_lines, 50);
    bench.stop().unwrap();
}

/// Fails when a restart in which nothing happens writes anything but its process id.
#[test]
fn a_restart_without_changes_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::start(options(dir.path()));
    let progress = bench.open(1, 0, 100);
    Bench::send(&progress, 0, 100);
    bench.ack(1, 0, 100);
    bench.stop().unwrap();
    let before = names_and_times(dir.path());
    let bench = Bench::start(options(dir.path()));
    assert_eq!(bench.saved.streams[0].at, point(100));
    bench.open(1, 100, 100);
    bench.registry.pattern_known(b"x".to_vec());
    bench.stop().unwrap();
    assert_ne!(names_and_times(dir.path()), before, "a new pattern is a change");
    let before = names_and_times(dir.path());
    let bench = Bench::start(options(dir.path()));
    bench.open(1, 100, 100);
    bench.flush();
    bench.stop().unwrap();
    assert_eq!(names_and_times(dir.path()), before);
}

/// A copy of the folder taken while the saver runs simulates the state after a kill. Fails when duplicated lines are
/// not counted, are counted twice over a later clean restart, or a total goes back.
#[test]
fn doubled_lines_are_counted_over_a_kill_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let bench = Bench::start(options(dir.path()));
    let progress = bench.open(1, 0, 100);
    Bench::send(&progress, 0, 30);
    bench.ack(1, 0, 30);
    bench.flush();
    Bench::send(&progress, 30, 80);
    for name in ["offsets", "air"] {
        fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
    }
    bench.stop().unwrap();

    let bench = Bench::start(options(copy.path()));
    assert_eq!(bench.saved.streams[0].at, point(30));
    let progress = bench.open(1, 30, 100);
    Bench::send(&progress, 30, 80);
    assert_eq!(bench.board.doubled_at_most(), 50, "counted before it is sent");
    Bench::send(&progress, 80, 100);
    bench.ack(1, 80, 100);
    bench.ack(1, 30, 80);
    bench.stop().unwrap();
    assert_eq!(on_disk(copy.path()).totals.again, 50);

    let bench = Bench::start(options(copy.path()));
    let progress = bench.open(1, 100, 200);
    Bench::send(&progress, 100, 200);
    assert_eq!(bench.board.doubled_at_most(), 50);
    assert_eq!(bench.board.totals.acked_lines.load(Relaxed), 100);
    bench.ack(1, 100, 200);
    bench.stop().unwrap();
}

/// A kill before a stream's opening is saved, so that the next run assigns another stream; also before the very first
/// save, and with the positions lost. Fails when its duplicated lines are not counted, or when lines are counted at a
/// first start or after the first scan.
#[test]
fn doubled_lines_of_a_stream_that_was_not_saved_are_counted() {
    for (kept, damaged, doubled) in
        [(&["offsets", "air"][..], false, 80), (&["air"], false, 80), (&["air"], true, 100)]
    {
        let dir = tempfile::tempdir().unwrap();
        let copy = tempfile::tempdir().unwrap();
        let bench = Bench::start(options(dir.path()));
        bench.open(1, 0, 0);
        bench.flush();
        let progress = bench.open(2, 0, 100);
        Bench::send(&progress, 0, 80);
        assert_eq!(bench.board.doubled_at_most(), 0, "the first start");
        for name in kept {
            fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
        }
        bench.ack(2, 0, 80);
        bench.stop().unwrap();
        if damaged {
            fs::write(copy.path().join("offsets"), b"\0").unwrap();
        }
        let bench = Bench::start(StateOptions { damaged: Damaged::Beginning, ..options(copy.path()) });
        let progress = bench.open(5, 0, 100);
        Bench::send(&progress, 0, 80);
        Bench::send(&progress, 80, 100);
        assert_eq!(bench.board.doubled_at_most(), doubled, "{kept:?}");
        bench.ack(5, 0, 100);
        bench.flush();
        let progress = bench.open(6, 0, 100);
        Bench::send(&progress, 0, 100);
        bench.ack(6, 0, 100);
        assert_eq!(bench.board.doubled_at_most(), doubled, "{kept:?}");
        bench.stop().unwrap();
    }
}

/// A kill after a stream's opening was saved, but none of its acknowledgements. The next run finds other bytes in the file, and
/// those that were sent in a copy, which it cannot recognize. Fails when they are not counted as sent again, or all new files
/// are doubted although the saved position identifies the bytes.
#[test]
fn doubled_lines_of_a_stream_saved_at_its_beginning_are_counted() {
    for (acked, doubled) in [(0, 80), (30, 0)] {
        let dir = tempfile::tempdir().unwrap();
        let copy = tempfile::tempdir().unwrap();
        let bench = Bench::start(options(dir.path()));
        let progress = bench.open(1, 0, 100);
        Bench::send(&progress, 0, 80);
        if acked > 0 {
            bench.ack(1, 0, acked);
        }
        bench.flush();
        for name in ["offsets", "air"] {
            fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
        }
        bench.stop().unwrap();
        let bench = Bench::start(options(copy.path()));
        assert_eq!(bench.saved.streams[0].at.offset, acked);
        let progress = bench.open(2, 0, 100);
        Bench::send(&progress, 0, 80);
        assert_eq!(bench.board.doubled_at_most(), doubled, "saved at {acked}");
        bench.ack(2, 0, 80);
        bench.stop().unwrap();
    }
}

/// Fails when a failed save ends the thread, is not shown, or is not retried.
#[test]
fn a_failing_disk_is_reported_and_retried() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::start(options(dir.path()));
    let progress = bench.open(1, 0, 100);
    bench.flush();
    let blocked = dir.path().join("offsets.tmp");
    fs::create_dir(&blocked).unwrap();
    Bench::send(&progress, 0, 10);
    bench.ack(1, 0, 10);
    bench.flush(); // answered though it failed: the agent must become ready
    assert!(bench.board.state().degraded.is_some());
    assert_eq!(progress.acked.load(Relaxed), 10);
    assert_eq!(progress.saved.load(Relaxed), 0);
    fs::remove_dir(&blocked).unwrap();
    let tick = crossbeam_channel::tick(Duration::from_millis(5));
    let before = Instant::now();
    while progress.saved.load(Relaxed) < 10 {
        tick.recv().unwrap();
        assert!(before.elapsed() < Duration::from_secs(5), "not tried again");
    }
    assert_eq!(bench.board.state().degraded, None);
    bench.stop().unwrap();
}

/// Fails when the last save is skipped or not retried, or when its error is not reported.
#[test]
fn the_end_saves_or_reports_why_not() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::start(options(dir.path()));
    let progress = bench.open(1, 0, 100);
    Bench::send(&progress, 0, 100);
    bench.ack(1, 0, 100);
    bench.registry.close(&Closed { stream: StreamId(1), why: Ending::Gone { lost: 9 } });
    bench.stop().unwrap();
    let saved = on_disk(dir.path());
    assert!(saved.streams[0].finished);
    assert_eq!(saved.totals.lost_bytes, 9);

    let blocked = dir.path().join("offsets.tmp");
    let bench = Bench::start(options(dir.path()));
    bench.open(2, 0, 100);
    fs::create_dir(&blocked).unwrap();
    let freed = thread::spawn({
        let (blocked, soon) = (blocked.clone(), crossbeam_channel::after(LAST_RETRY / 2));
        move || soon.recv().map(|_| fs::remove_dir(blocked))
    });
    bench.stop().unwrap();
    freed.join().unwrap().unwrap().unwrap();
    assert_eq!(on_disk(dir.path()).streams.len(), 2);

    let bench = Bench::start(options(dir.path()));
    bench.open(3, 0, 100);
    fs::create_dir(&blocked).unwrap();
    assert!(bench.stop().unwrap_err().to_string().contains("save positions"));
}

/// Fails when a run without a state folder waits for a save, or does not advance its progress.
#[test]
fn nothing_is_saved_without_a_folder() {
    let bench = Bench::start(StateOptions { state_dir: None, ..options(Path::new("/nowhere")) });
    let progress = bench.open(1, 0, 100);
    Bench::send(&progress, 0, 100);
    bench.ack(1, 0, 100);
    bench.flush();
    assert_eq!((progress.acked.load(Relaxed), progress.saved.load(Relaxed)), (100, 0));
    bench.stop().unwrap();
}

/// For timestamps after a boot in 1970. Fails when the wall clock is not saved, or an unset one is.
#[test]
fn the_wall_clock_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let before = clock::now_ms();
    let bench = Bench::start(options(dir.path()));
    bench.open(1, 0, 100);
    bench.stop().unwrap();
    assert!((before..=clock::now_ms()).contains(&on_disk(dir.path()).wall_ms));
}

/// Fails when `start` applies to old files after `damaged_state = "beginning"` and a crash before the first scan was
/// over.
#[test]
fn the_beginning_holds_until_the_first_scan_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("offsets"), b"\0").unwrap();
    let bench = Bench::start(StateOptions { damaged: Damaged::Beginning, ..options(dir.path()) });
    assert!(bench.saved.from_beginning);
    bench.open(1, 0, 100);
    bench.stop().unwrap();
    let bench = Bench::start(options(dir.path()));
    assert!(bench.saved.from_beginning);
    bench.flush();
    bench.stop().unwrap();
    assert!(!on_disk(dir.path()).from_beginning);
}

/// A box that boots in 1970, or whose clock is set to another century. Fails when forgetting depends on the wall clock.
#[test]
fn positions_are_forgotten_by_running_time_alone() {
    const DAY: u64 = 24 * 3600;
    let registry = Registry::default();
    let origin = Origin {
        stream: StreamId(1),
        topic: "t".into(),
        path: "/var/log/a".into(),
        shape: Arc::new(Shape::default()),
        progress: Arc::default(),
    };
    registry.open(origin.opened(Identity::default(), Point::default()));
    registry.snapshot(&mut Saved::default(), 1000);
    assert!(registry.absent(StreamId(1), 1000 + 100 * DAY, 30 * DAY).is_none(), "a tail has it");
    registry.close(&Closed { stream: StreamId(1), why: Ending::Parked });
    assert!(registry.absent(StreamId(1), 1000 + 29 * DAY, 30 * DAY).is_none());
    assert!(registry.absent(StreamId(1), 1000 + 31 * DAY, 30 * DAY).is_some());
    assert!(registry.resting().is_empty());
}
