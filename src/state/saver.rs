//! The saver thread: takes snapshots of the registry, writes them to the state folder, and wakes everyone waiting for
//! a save.
//!
//! Delivery never waits for it. The thread is detached, because a thread blocked in a slow or dead flash cannot be
//! joined.

use super::existence::{self, Existence, RestingFile};
use super::schedule::{SaverAction, Schedule};
use super::store::PositionsFile;
use super::{StateFolder, format};
use crate::clock;
use crate::error::Error;
use crate::heartbeat::Heartbeat;
use crate::report::Board;
use crate::streams::mailbox::Publisher;
use crate::streams::sent_marks::SentMarks;
use crate::streams::{Registry, Saved, SavedPositions};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, after, bounded};
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

/// Running time, in seconds, after which a stream whose file is absent is forgotten.
const FORGET_AFTER: u64 = 30 * 24 * 3600;

/// Limit for the last save; a slower disk is considered hung.
const LAST_SAVE: Duration = Duration::from_secs(10);
/// How often the last save is attempted, and the pause between attempts: a full disk or descriptor table may be
/// temporary.
const LAST_TRIES: usize = 4;
pub(super) const LAST_RETRY: Duration = Duration::from_millis(250);

/// Held by the main thread.
#[derive(Debug)]
pub struct Saver {
    registry: Arc<Registry>,
    marks: Arc<SentMarks>,
    /// The thread's result. `None`: there is no state folder, so nothing is saved.
    ended: Option<Receiver<Result<(), Error>>>,
}

impl Saver {
    pub fn start(folder: StateFolder, registry: Arc<Registry>, board: &Arc<Board>) -> Result<Saver, Error> {
        let marks = folder.marks.clone();
        let ended = match Work::new(folder, registry.clone(), board.clone()) {
            None => None,
            Some(work) => {
                let (tell, ended) = bounded(1);
                let body = move || _ = tell.try_send(work.run());
                let thread = thread::Builder::new().name("saver".into()).stack_size(128 << 10);
                thread.spawn(body).map_err(|e| Error::no_thread("saver", e))?;
                Some(ended)
            }
        };
        Ok(Saver { registry, marks, ended })
    }

    /// The first scan of all patterns is over. `done` is dropped when the files it found are saved, or the save has
    /// failed.
    pub fn first_scan_done(&self, done: Sender<Infallible>) {
        self.marks.first_scan_done();
        if self.ended.is_some() {
            self.registry.first_scan_done(done);
        }
    }

    /// Call when no more changes will come. Waits for the last save, which is synced.
    pub fn finish(self) -> Result<(), Error> {
        self.registry.end();
        let Some(ended) = self.ended else { return Ok(()) };
        match ended.recv_timeout(LAST_SAVE) {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) => Err(failed(&"the saver thread has ended")),
            Err(RecvTimeoutError::Timeout) => {
                let fix = "check the disk of the state folder; lines delivered since the last save are sent again at the next start";
                Err(Error::failed("save positions", "the disk does not answer", fix))
            }
        }
    }
}

fn failed(why: &dyn std::fmt::Display) -> Error {
    let fix = "check that the state folder exists, and free or repair its disk; lines delivered since the last save are sent again at the next start";
    Error::failed("save positions", why, fix)
}

/// The thread's state.
pub struct Work {
    store: PositionsFile,
    marks: Arc<SentMarks>,
    registry: Arc<Registry>,
    board: Arc<Board>,
    heartbeat: Arc<Heartbeat>,
    schedule: Schedule,
    publisher: Option<Publisher>,
    /// The last snapshot.
    saved: Saved,
    /// `saved.clock` and `saved.totals.lost_bytes` when this run began.
    clock_before: u64,
    lost_before: u64,
    started: Instant,
    /// Waiting for the next save.
    waiting: Vec<Sender<Infallible>>,
    /// The text of `offsets`; its memory is reused.
    text: Vec<u8>,
    trouble: Option<String>,
}

/// Runs disk I/O, and shows meanwhile since when.
fn shown<T>(board: &Board, io: impl FnOnce() -> T) -> T {
    board.state().saving = Some(Instant::now());
    let done = io();
    board.state().saving = None;
    done
}

impl Work {
    pub fn new(folder: StateFolder, registry: Arc<Registry>, board: Arc<Board>) -> Option<Work> {
        let StateFolder { store, marks, saved, sync, publisher, changed, .. } = folder;
        let started = Instant::now();
        let mut schedule = Schedule::new(sync, started);
        if changed {
            schedule.change(started);
        }
        Some(Work {
            store: store?,
            marks,
            registry,
            heartbeat: board.heartbeats.register("saver"),
            board,
            schedule,
            publisher,
            clock_before: saved.clock,
            lost_before: saved.totals.lost_bytes,
            saved,
            started,
            waiting: Vec::new(),
            text: Vec::new(),
            trouble: None,
        })
    }

    fn run(mut self) -> Result<(), Error> {
        loop {
            let now = Instant::now();
            match self.schedule.next(now) {
                SaverAction::Save { sync } => self.save(sync),
                SaverAction::Sync => self.sync(),
                SaverAction::CompareSizes => self.compare_sizes(now),
                SaverAction::LookForFiles => self.look_for_files(now),
                SaverAction::Wait(until, wakes) => {
                    self.waiting.clear(); // everything is saved, or has just failed
                    let until = until.min(now + self.board.heartbeats.max_wait());
                    self.heartbeat.within(until.saturating_duration_since(now));
                    let pending = self.registry.wait(wakes, until, self.schedule.is_quiet());
                    self.heartbeat.within(Heartbeat::SLOW); // a disk
                    if let Some(at) = pending.changed {
                        self.schedule.change(at);
                    }
                    if pending.grown {
                        self.schedule.grown(now);
                    }
                    if let Some(at) = pending.acked {
                        self.schedule.ack(at);
                    }
                    self.waiting = pending.waiting;
                    if pending.urgent || !self.waiting.is_empty() && self.schedule.is_changed() {
                        self.schedule.hurry();
                    }
                    if pending.ending {
                        return self.finish();
                    }
                }
            }
        }
    }

    /// Seconds that agents have run on this folder.
    fn clock(&self, now: Instant) -> u64 {
        self.clock_before + now.duration_since(self.started).as_secs()
    }

    pub fn save(&mut self, sync: bool) {
        let waiting = std::mem::take(&mut self.waiting); // dropped after the board shows the result
        self.saved.totals.take_from(&self.board);
        let clock = self.clock(Instant::now());
        self.registry.snapshot(&mut self.saved, clock);
        self.saved.totals.lost_bytes += self.lost_before;
        self.saved.wall_ms = clock::stamp(clock::now_ms(), self.saved.wall_ms);
        self.schedule.begun();
        format::write(&mut self.text, &self.saved);
        match shown(&self.board, || self.store.save(&self.text, sync)) {
            Ok(written) => {
                self.schedule.saved(sync, Instant::now());
                self.board.totals.state_bytes.fetch_add(written, Relaxed);
                let marks = &self.marks;
                self.registry.saved(|stream| marks.release(stream));
                marks.settle();
                if let Some(publisher) = &self.publisher {
                    publisher.publish(SavedPositions::of(&self.saved));
                }
                self.recovered();
            }
            Err(e) => self.failed(&e),
        }
        drop(waiting);
    }

    fn sync(&mut self) {
        match shown(&self.board, || self.store.sync()) {
            Ok(()) => {
                self.schedule.synced();
                self.recovered();
            }
            Err(e) => self.failed(&e),
        }
    }

    fn failed(&mut self, e: &io::Error) {
        let times = self.schedule.failed(Instant::now());
        let why = e.to_string();
        if self.trouble.as_ref() != Some(&why) {
            let effect = self.board.effect_of_unsaved();
            let folder = self.store.folder().display().to_string();
            let fix = match e.kind() {
                io::ErrorKind::NotFound => {
                    self.schedule.change(Instant::now()); // what was saved is gone
                    format!(
                        "{folder} was deleted or moved: create it again (mkdir -m 700), then restart the agent"
                    )
                }
                _ => format!("make {folder} writable, free or repair its disk"),
            };
            log::error!("save positions: {why}; {effect}; {fix}");
            self.board.state().degraded = Some(why.clone());
            self.board.alarm();
            self.trouble = Some(why);
        } else if times.is_power_of_two() {
            log::warn!("save positions: {why} ({times} times)");
        }
    }

    fn recovered(&mut self) {
        if self.trouble.take().is_some() {
            log::info!("positions are saved again");
            self.board.state().degraded = None;
            self.board.alarm();
        }
    }

    fn compare_sizes(&mut self, now: Instant) {
        let (moved, waiting) = self.registry.sizes();
        self.schedule.compared(moved, waiting, now);
    }

    fn look_for_files(&mut self, now: Instant) {
        self.schedule.looked(now);
        let asked: Vec<RestingFile> = self
            .registry
            .resting()
            .into_iter()
            .map(|(stream, path, ino)| RestingFile { stream, path: path.to_path_buf(), ino })
            .collect();
        let clock = self.clock(now);
        for (stream, existence) in existence::look(&asked) {
            match existence {
                Existence::Present => self.registry.exists(stream, clock),
                Existence::Absent => {
                    if let Some(path) = self.registry.absent(stream, clock, FORGET_AFTER) {
                        log::info!("{}: absent for 30 days of running time, forgotten", path.display());
                    }
                }
                Existence::Unknown => {}
            }
        }
    }

    /// The last save, synced. Skipped if nothing has changed.
    fn finish(mut self) -> Result<(), Error> {
        self.compare_sizes(Instant::now());
        for again in 0..LAST_TRIES {
            if again > 0 {
                let _ = after(LAST_RETRY).recv();
            }
            if self.schedule.is_changed() {
                self.save(true);
            } else if self.schedule.is_unsynced() {
                self.sync();
            }
            if self.trouble.is_none() {
                break;
            }
        }
        self.waiting.clear();
        if let Some(why) = &self.trouble {
            return Err(failed(why));
        }
        self.marks.end();
        Ok(()) // dropping the store frees its lock
    }
}
