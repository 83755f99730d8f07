//! STAGE 3: acks in, saved positions out. Reads no log file and knows no broker.
//!
//! `checkpoint` (this thread) keeps the [`ledger`] and never waits for the disk; `saver` does that with bytes that are
//! ready. Invariant: `saved ≤ acked`: a gauge's `saved` moves only when the save that says so is on its way to survive a
//! kill, that is, renamed into place.
//!
//! In reading order: [`saved`] (what is kept), [`mod@format`] (as text), [`store`] (as files), [`ledger`], [`rhythm`] (when).

pub mod format;
pub mod ledger;
mod presence;
mod rhythm;
pub mod saved;
mod saver;
pub mod store;

pub use saved::{Saved, SavedStream};

use crate::air::{Air, Counts};
use crate::chunk::{Ending, Note, StreamId};
use crate::cover::{Cover, Giver};
use crate::error::Error;
use crate::files;
use crate::pulse::Beat;
use crate::report::Board;
use crate::wall;
use crossbeam_channel::{Receiver, RecvTimeoutError, Select, Sender, TryRecvError, after, never};
use ledger::Ledger;
use presence::{Asked, Presence};
use rhythm::{Next, Rhythm};
use saver::{Order, Report, Saver};
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use store::Store;

/// Where and how positions are kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// `None`: nothing is saved, positions live as long as the process.
    pub state_dir: Option<PathBuf>,
    pub sync: Sync,
    pub damaged: Damaged,
    /// Exactly-once: lines that are sent again are recognized by the broker, so they are not counted as doubled; and what
    /// is saved is told here.
    pub exactly_once: Option<Giver>,
}

/// When saved state is forced to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// This long after the first save that is not yet on the disk, and at exit.
    Every(Duration),
    /// At every save.
    Always,
}

/// What to do when neither `offsets` nor `offsets.previous` can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damaged {
    /// End with exit code 78.
    Refuse,
    /// Send everything again.
    Beginning,
}

/// An open state folder, locked.
#[derive(Debug)]
pub struct Job {
    store: Option<Store>,
    air: Arc<Air>,
    saved: Saved,
    sync: Sync,
    cover: Option<Giver>,
    /// Per stream: bytes up to here may be acknowledged though no tail of this run reads them.
    rebuilt: HashMap<StreamId, u64>,
    /// There is something to be saved before anything happens.
    changed: bool,
    pub found: Footing,
}

/// How far what was found can be relied on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footing {
    /// The last run ended cleanly, or in this boot: what it wrote without syncing is there.
    pub whole: bool,
    /// The positions are those of `offsets.previous`, or none although there were some.
    pub fell_back: bool,
}

impl Job {
    /// Exactly-once: lines that an earlier run sent are acknowledged now, or will be. `saved` is what was opened, with the
    /// former taken in.
    pub fn take_over(&mut self, saved: &Saved, rebuilt: HashMap<StreamId, u64>) {
        (self.saved, self.rebuilt, self.changed) = (saved.clone(), rebuilt, true);
    }

    /// Nothing proves what is stored: lines that are sent again count as doubled at most. Before any tail runs.
    pub fn distrust(&self) {
        self.air.doubt_all();
    }
}

/// Absent for this long, in seconds of running time, a file's stream is forgotten.
const FORGET_AFTER: u64 = 30 * 24 * 3600;

/// The last save may take this long; a disk that is slower than that hangs.
const LAST_SAVE: Duration = Duration::from_secs(10);
/// How often it is tried, and the time between: a disk or a table of descriptors may be full for a moment.
const LAST_TRIES: usize = 4;
const LAST_AGAIN: Duration = Duration::from_millis(250);

/// Notes taken in before the disk and the clock are looked at again.
const BURST: usize = 1024;
/// Acks are gathered for this long: nobody waits for them, and a wake-up for each is one of eight that a slow writer's line costs.
const TOGETHER: Duration = Duration::from_millis(40);
/// With this many at once there is work enough, and ship must not wait for room in the inbox.
const FEW: usize = 128;

/// Opens the state folder and puts its totals on the board; before any stage runs.
pub fn open(options: Options, board: &Board) -> Result<(Job, Saved), Error> {
    let (store, saved, air, found) = match &options.state_dir {
        None => (None, Saved::default(), Arc::new(Air::nowhere()), Footing::default()),
        Some(folder) => {
            let (store, mut saved, fell_back) = Store::open(folder, options.damaged)?;
            let (air, whole) = open_air(&store, &mut saved, fell_back, options.exactly_once.is_some());
            (Some(store), saved, Arc::new(air), Footing { whole, fell_back })
        }
    };
    board.state().path = options.state_dir;
    saved.totals.put_on(board);
    let _ = board.air.set(air.clone());
    let (sync, cover) = (options.sync, options.exactly_once);
    let rebuilt = HashMap::new();
    Ok((Job { store, air, saved: saved.clone(), sync, cover, rebuilt, changed: false, found }, saved))
}

/// Takes up what the last run wrote of how far it sent; see `air.rs`. The flag: it is whole.
fn open_air(store: &Store, saved: &mut Saved, fell_back: bool, recognized: bool) -> (Air, bool) {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let path = store.folder().join("air");
    let first = !path.exists() && saved.next_stream == 0 && !fell_back;
    let opened = files::private(&path).and_then(|file| Air::open(file, boot.trim(), recognized));
    let (air, found) = match opened {
        Ok(opened) => opened,
        Err(e) => {
            log::error!("open {}: {e}; doubled_at_most will not count over a crash", path.display());
            return (Air::nowhere(), false);
        }
    };
    let whole = found.trusted;
    let totals = &mut saved.totals;
    let (again, resent, uncertain) = (totals.again, totals.resent, totals.uncertain);
    let counts = found.counts(Counts::of(again, resent, uncertain));
    (totals.again, totals.resent) = (counts.again, counts.resent);
    air.count_from(counts);
    let unfinished = || saved.streams.iter().filter(|s| !s.finished);
    let ids: HashSet<StreamId> = unfinished().map(|s| s.stream).collect();
    let unsaved = found.unsaved(saved.next_stream);
    if found.stale || fell_back {
        let unknown = if found.trusted && !fell_back { None } else { Some(u64::MAX) };
        let unsaved = if first { 0 } else { unknown.unwrap_or(unsaved) };
        let limit = |s: &SavedStream| found.limits.get(&s.stream).copied().or(unknown).unwrap_or(s.at.offset);
        air.begin(boot.trim(), unsaved, unfinished().map(|s| (s.stream, limit(s))));
    } else {
        air.retain(unsaved, |stream| ids.contains(&stream));
    }
    (air, whole)
}

/// The thread: drains notes, acknowledges, saves; ends after a last synced save when the inbox closes.
pub fn run(job: Job, inbox: Receiver<Note>, board: &Board) -> Result<(), Error> {
    let mut keeper = Keeper::start(job, board)?;
    loop {
        let now = Instant::now();
        let until = keeper.turn(now).min(now + board.pulse.longest());
        let reports = keeper.saver.as_ref().map_or_else(never, |s| s.reports.clone());
        let mut select = Select::new();
        let gather = std::mem::take(&mut keeper.gathers) && inbox.len() < FEW;
        let until = if gather {
            until.min(now + TOGETHER)
        } else {
            select.recv(&inbox);
            until
        };
        select.recv(&reports);
        keeper.beat.within(until.saturating_duration_since(Instant::now()));
        let _ = select.ready_deadline(until);
        keeper.beat.within(Beat::TURN);
        match reports.try_recv() {
            Ok(report) => keeper.take_report(report, Instant::now()),
            Err(TryRecvError::Disconnected) => keeper.lose_saver(),
            Err(TryRecvError::Empty) => {}
        }
        if !keeper.drain(&inbox) {
            return keeper.finish();
        }
    }
}

struct Keeper<'a> {
    board: &'a Board,
    beat: Arc<Beat>,
    /// The saver's: it is told what to do here, and one that has nothing to do needs no wake-up.
    savers_beat: Arc<Beat>,
    ledger: Ledger,
    air: Arc<Air>,
    rhythm: Rhythm,
    saver: Option<Saver>,
    cover: Option<Giver>,
    /// What the save under way says, for `cover`.
    covering: Cover,
    /// An order is under way.
    busy: bool,
    /// What came last was acks, and few.
    gathers: bool,
    /// Everything of `offsets` but its streams.
    head: Saved,
    /// `head.clock` when this run began.
    clock_before: u64,
    /// `head.totals.lost_bytes` when this run began.
    lost_before: u64,
    started: Instant,
    /// Who waits for a save that has not begun.
    waiting: Vec<Sender<()>>,
    /// Who waits for the save that is under way.
    served: Vec<Sender<()>>,
    /// The text of `offsets`, between saves.
    bytes: Vec<u8>,
    trouble: Option<String>,
}

impl<'a> Keeper<'a> {
    fn start(job: Job, board: &'a Board) -> Result<Self, Error> {
        let Job { store, air, mut saved, sync, cover, rebuilt, changed, found: _ } = job;
        let started = Instant::now();
        let saver = match store {
            None => None,
            Some(store) => Some(saver::start(store, air.clone()).map_err(|e| {
                Error::failed(
                    "start the thread that saves",
                    e,
                    "raise the limit of threads (TasksMax, ulimit -u)",
                )
            })?),
        };
        let mut rhythm = Rhythm::new(sync, started);
        if changed {
            rhythm.change(started);
        }
        Ok(Keeper {
            board,
            beat: board.pulse.beat("checkpoint"),
            savers_beat: board.pulse.beat("saver"),
            ledger: Ledger::new(std::mem::take(&mut saved.streams), saved.next_stream).rebuilding(&rebuilt),
            cover,
            covering: Cover::default(),
            air,
            rhythm,
            saver,
            busy: false,
            gathers: false,
            clock_before: saved.clock,
            lost_before: saved.totals.lost_bytes,
            head: saved,
            started,
            waiting: Vec::new(),
            served: Vec::new(),
            bytes: Vec::new(),
            trouble: None,
        })
    }

    /// Seconds that agents have run on this folder.
    fn clock(&self, now: Instant) -> u64 {
        self.clock_before + now.duration_since(self.started).as_secs()
    }

    /// Takes in what has come. False: nothing comes any more.
    fn drain(&mut self, inbox: &Receiver<Note>) -> bool {
        let now = Instant::now();
        let mut acks = 0;
        for taken in 0..BURST {
            match inbox.try_recv() {
                Ok(note) => {
                    acks += usize::from(matches!(note, Note::Ack(_)));
                    self.take(note, now);
                }
                Err(e) => {
                    self.gathers = (1..FEW).contains(&taken) && taken == acks;
                    return e.is_empty();
                }
            }
        }
        true
    }

    fn take(&mut self, note: Note, now: Instant) {
        let changed = match note {
            Note::Opened(opened) => self.ledger.open(opened, self.clock(now)),
            Note::Ack(ack) => {
                self.ledger.ack(&ack);
                self.board.totals.acked_lines.fetch_add(ack.lines, Relaxed);
                return self.rhythm.ack(now);
            }
            Note::Closed(closed) => {
                if let Ending::Truncated { lost } | Ending::Gone { lost } = closed.why {
                    self.board.totals.lost_bytes.fetch_add(lost, Relaxed);
                }
                self.ledger.close(closed.stream, &closed.why)
            }
            Note::Source(pattern) => {
                let new = !self.head.sources.contains(&pattern);
                if new {
                    self.head.sources.push(pattern);
                }
                new
            }
            Note::Flush(answer) => return self.flush(answer, now),
            Note::Hurry => {
                self.rhythm.hurry();
                true
            }
        };
        if changed {
            self.rhythm.change(now);
        }
    }

    fn flush(&mut self, answer: Sender<()>, now: Instant) {
        self.air.first_sight_is_over();
        // From here on every pattern is known.
        if std::mem::take(&mut self.head.from_beginning) {
            self.rhythm.change(now);
        }
        if self.saver.is_none() {
            return;
        }
        if self.rhythm.is_changed() {
            self.waiting.push(answer);
            self.rhythm.hurry();
        } else if self.busy {
            self.served.push(answer);
        }
    }

    /// Does what is due, if the saver is free. Until when to wait.
    fn turn(&mut self, now: Instant) -> Instant {
        let far = now + Duration::from_secs(3600);
        while !self.busy && self.saver.is_some() {
            match self.rhythm.next(now) {
                Next::Wait(until) => return until,
                Next::Save { sync } => self.save(sync, now),
                Next::Sync => self.order(Order::Sync),
                Next::CompareSizes => {
                    self.rhythm.compared(now);
                    if self.ledger.sizes_moved() {
                        self.rhythm.change(now);
                    }
                }
                Next::LookForFiles => {
                    self.rhythm.looked(now);
                    let asked = |(stream, a): (StreamId, &ledger::Account)| Asked {
                        stream,
                        path: a.path().into(),
                        ino: a.identity().ino,
                    };
                    let asked = self.ledger.resting().map(asked).collect();
                    self.order(Order::Look(asked));
                }
            }
        }
        far
    }

    fn save(&mut self, sync: bool, now: Instant) {
        let mut bytes = std::mem::take(&mut self.bytes);
        self.head.clock = self.clock(now);
        self.head.wall_ms = wall::stamp(wall::now_ms(), self.head.wall_ms);
        self.head.next_stream = self.ledger.next_stream();
        self.head.totals.take_from(self.board);
        self.head.totals.lost_bytes = self.lost_before + self.ledger.lost_bytes();
        let covering = &mut self.covering.0;
        covering.clear();
        let wanted = self.cover.is_some();
        let streams = self.ledger.write_down(self.head.clock).inspect(|s| {
            if wanted {
                let beyond = s.beyond.iter().map(|(range, _)| range.clone()).collect();
                covering.insert(s.stream, (s.at.offset, beyond));
            }
        });
        format::write(&mut bytes, &self.head, streams);
        self.rhythm.begun();
        self.served.append(&mut self.waiting);
        self.order(Order::Save { bytes, sync });
    }

    fn order(&mut self, order: Order) {
        if let Some(saver) = &self.saver {
            self.savers_beat.within(Beat::SLOW);
            // Bounded to one, and free: this never waits.
            self.busy = saver.orders.send(order).is_ok();
            if !self.busy {
                self.lose_saver();
            }
        }
    }

    /// It panicked, which is logged where it happened.
    fn lose_saver(&mut self) {
        (self.saver, self.busy) = (None, false);
        self.savers_beat.rests();
        self.served.clear();
        self.waiting.clear();
        self.trouble = Some("the thread that saves has ended".into());
        self.board.state().degraded.clone_from(&self.trouble);
    }

    fn take_report(&mut self, report: Report, now: Instant) {
        self.busy = false;
        self.savers_beat.rests();
        let served = std::mem::take(&mut self.served); // let go at the end, when the board says how it went
        match report {
            Report::Saved { bytes, sync, done } => {
                self.bytes = bytes;
                match done {
                    Ok(written) => {
                        self.rhythm.saved(sync, now);
                        if let Some(cover) = &self.cover {
                            cover.give(std::mem::take(&mut self.covering));
                        }
                        self.board.totals.state_bytes.fetch_add(written, Relaxed);
                        let air = &self.air;
                        self.ledger.saved(|stream| air.release(stream));
                        self.well();
                    }
                    Err(e) => self.failed(&e, now),
                }
            }
            Report::Synced(Ok(())) => {
                self.rhythm.synced();
                self.well();
            }
            Report::Synced(Err(e)) => self.failed(&e, now),
            Report::Looked(seen) => self.forget_absent(&seen, now),
            Report::Done => {}
        }
        drop(served);
    }

    fn failed(&mut self, e: &io::Error, now: Instant) {
        let times = self.rhythm.failed(now);
        let why = e.to_string();
        if self.trouble.as_ref() != Some(&why) {
            let effect = match self.cover {
                // See the invariant in `ship/journal.rs`; and `flights` has room for so many batches only.
                Some(_) => {
                    "exactly-once needs saved positions: new files wait now, the others once flights is full"
                }
                None => {
                    "delivery goes on, and what is delivered from now on is sent again if the agent is killed"
                }
            };
            log::error!(
                "save positions: {why}; {effect}: make the state folder writable, free or mend its disk"
            );
            self.board.state().degraded = Some(why.clone());
            self.board.alarm();
            self.trouble = Some(why);
        } else if times.is_power_of_two() {
            log::warn!("save positions: {why} ({times} times)");
        }
    }

    fn well(&mut self) {
        if self.trouble.take().is_some() {
            log::info!("positions are saved again");
            self.board.state().degraded = None;
            self.board.alarm();
        }
    }

    fn forget_absent(&mut self, seen: &[(StreamId, Presence)], now: Instant) {
        let clock = self.clock(now);
        for (stream, presence) in seen {
            let Some(account) = self.ledger.get_mut(*stream) else { continue };
            match presence {
                Presence::Present => account.seen = clock,
                Presence::Absent if clock.saturating_sub(account.seen) > FORGET_AFTER => {
                    log::info!("{}: absent for 30 days of running time, forgotten", account.path().display());
                    if self.ledger.forget_if_resting(*stream) {
                        self.rhythm.change(now);
                    }
                }
                Presence::Absent | Presence::Unknown => {}
            }
        }
    }

    /// The last save, synced. What nothing has changed is not written.
    fn finish(mut self) -> Result<(), Error> {
        let until = Instant::now() + LAST_SAVE;
        self.settle(until)?;
        if self.ledger.sizes_moved() {
            self.rhythm.change(Instant::now());
        }
        for again in 0..LAST_TRIES {
            if again > 0 {
                let _ = after(LAST_AGAIN).recv();
            }
            if self.rhythm.is_changed() {
                self.save(true, Instant::now());
            } else if self.rhythm.is_unsynced() {
                self.order(Order::Sync);
            }
            self.settle(until)?;
            if self.trouble.is_none() || self.saver.is_none() {
                break;
            }
        }
        if let Some(why) = &self.trouble {
            let fix = "free or mend the disk of the state folder; what was delivered is sent again at the next start";
            return Err(Error::failed("save positions", why, fix));
        }
        self.order(Order::End);
        self.settle(until)
    }

    /// Waits for the order that is under way.
    fn settle(&mut self, until: Instant) -> Result<(), Error> {
        while self.busy {
            let Some(saver) = &self.saver else { return Ok(()) };
            match saver.reports.recv_deadline(until) {
                Ok(report) => self.take_report(report, Instant::now()),
                Err(RecvTimeoutError::Disconnected) => self.lose_saver(),
                Err(RecvTimeoutError::Timeout) => {
                    let fix = "look at the disk of the state folder; what was delivered is sent again at the next start";
                    return Err(Error::failed("save positions", "the disk does not answer", fix));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
