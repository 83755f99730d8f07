//! Stage 1: one thread per followed path. It reads files and sends chunks; partitions and brokers are the producer's
//! business.
//!
//! The thread loops: look at the path and the open files, let [`follow::decide`] choose a step, execute it, and wait on the
//! wake channel until a deadline. It reads only while its budget and the output channel have room; that is the whole
//! backpressure mechanism. Events are hints: if one is lost, the next look is later, but no line is lost.
//!
//! # Why it is built this way
//!
//! **A rotated file stays open beside the new one.** In a simulation of 2,000 random schedules of a writer and a rotation,
//! closing the old file and opening the new one lost lines in 1,992, reading the old one to its end first in 1,637 (its
//! writer keeps writing to it for a while), and reading both in 9, which [`catchup`] is for: several rotations at once, or while
//! the agent was not running.
//!
//! **Identity is more than an inode.** ext4 gives a deleted file's inode to the next file at once (19 of 19 times), and two
//! files may begin with the same 4 KB. So a file is its device, inode and birth time, and a position is
//! checked by a hash of the up to 256 bytes before it. Identical bytes at the same position cannot be told apart.
//!
//! **Names tell which files belong together, never in which order.** Rotation schemes count up, count down or use dates.
//! Rotated files are ordered by modification time, and by birth time where that is equal.
//!
//! **An unfinished line is not kept in memory.** Its bytes return to the budget and are read again when more arrives, so
//! a thousand files with half a line each hold nothing.

mod assign;
pub mod catchup;
mod change;
pub mod content;
mod find;
mod folder;
pub mod follow;
pub mod framing;
pub mod gz;
pub mod identity;
pub mod known;
mod limits;
mod look;
mod nuls;
pub mod open;
mod options;
mod outlive;
mod own;
pub mod reread;
mod reserve;
mod shelf;
pub mod siblings;
#[cfg(test)]
mod simulated;
mod streams;
mod survey;
mod trouble;
mod unpacked;

pub use change::TailChange;
pub use options::{Followed, Hold, Start, TailOptions};
pub use reserve::{look_again, reserve};
pub use trouble::Unread;

use crate::chunk::{Chunk, Origin};
use crate::handover::{Outlet, Stopped};
use crate::lock::lock;
use crate::own_events::TailWait;
use crate::pace;
use crate::record::StreamId;
use crate::report::Board;
use crate::report::log_throttle::LogThrottle;
use crate::stop::Stop;
use crate::wake_slot::{WakeReasons, WakeSlot};
use crossbeam_channel::{Receiver, Sender};
use follow::{AtPath, Patience, Step, Until};
use framing::Rest;
use known::{Entry, Known};
use limits::ReadLimits;
use log::warn;
use open::{Got, Open};
use own::Undecided;
use shelf::{Absent, Shelved};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};
use trouble::ReadFailure;

/// What wakes a tail.
#[derive(Debug)]
pub struct Wake {
    pub changes: Receiver<TailChange>,
    pub slot: Arc<WakeSlot>,
}

/// Interval between looks where events work. A lost event costs at most this delay.
const UNHURRIED: Duration = Duration::from_secs(30);
/// The same for a tail that only waits for its live file to change: `watch` looks at that too.
const IDLE: Duration = Duration::from_secs(3600);

/// Why a tail ends before its files are finished.
#[derive(Debug)]
enum Halt {
    Stopped,
    Io(io::Error),
}

impl From<io::Error> for Halt {
    fn from(e: io::Error) -> Halt {
        Halt::Io(e)
    }
}

impl From<Stopped> for Halt {
    fn from(_: Stopped) -> Halt {
        Halt::Stopped
    }
}

/// Follows one path until it is gone for good, or the agent stops. `sighted` is dropped after the first look.
pub fn run(
    first: TailChange,
    known: &Known,
    board: &Board,
    wake: &Wake,
    out: Outlet,
    sighted: Sender<Infallible>,
    stop: &Stop,
) -> Option<Unread> {
    let path = first.options.path.clone();
    board.tail_started(&path, &first.options.topic);
    let mut tail = Tail::new(first, known, board, out, stop, Instant::now());
    let mut sighted = Some(sighted);
    let slot = &*wake.slot;
    let mut waits = TailWait::new(slot);
    let mut woken = WakeReasons::default();
    let unread = loop {
        if let Ok(change) = wake.changes.try_recv() {
            tail.change(change);
        }
        let step = match tail.next_step(Instant::now(), slot, woken) {
            Ok(step) => step,
            Err(Halt::Stopped) => break None,
            Err(Halt::Io(e)) => {
                tail.release_unopened();
                tail.trouble(&e);
                if tail.has_timed_out() {
                    break Some(Unread { path: path.clone(), why: e });
                }
                if trouble::is_cut_off(&e) {
                    tail.begin_again();
                }
                Step::Wait(Duration::from_secs(1).max(tail.o.poll.min(Duration::from_secs(5))))
            }
        };
        // Bytes that an earlier run may have sent but did not save count only for streams seen before `sighted` is dropped.
        if !tail.is_deciding() {
            sighted.take();
        }
        match step {
            Step::End => break tail.never_opened(),
            Step::Wait(time) => woken = tail.wait(&mut waits, time),
            _ => woken = WakeReasons::default(),
        }
        if stop.is_on() {
            break None;
        }
        if woken.look || woken.nudged || woken.modified.is_some() {
            tail.look_at_undecided();
        }
        if woken.nudged {
            tail.look_for_copies();
        }
    };
    tail.park();
    known.leave(&path);
    board.tail_ended(&path);
    unread
}

struct Tail<'a> {
    o: TailOptions,
    known: &'a Known,
    board: &'a Board,
    out: Outlet,
    stop: &'a Stop,
    /// See [`TailChange::outdated`].
    outdated: Stop,
    /// Oldest first; the live file is last.
    open: Vec<Open>,
    /// Closed files that the descriptor store keeps until their acknowledged positions are saved.
    leaving: Vec<Arc<Origin>>,
    turn: usize,
    /// The first look has not completed yet.
    first: bool,
    /// When the first look began.
    begun: Option<Instant>,
    /// See [`Known::folder`].
    folder: Arc<Mutex<()>>,
    failure: ReadFailure,
    cuts: LogThrottle,
    /// A rotation may have been in progress at the last look: look for siblings once more at this time.
    look_again: Option<Instant>,
    /// The file at the path cannot be opened or is undecided: do not retry before this time.
    path_again: Option<Instant>,
    /// The file at the path may be a copy of another one.
    undecided: Option<Undecided>,
    /// For a compressed file: the stream whose tail must look first, see [`Undecided`].
    asked: Option<(StreamId, u64)>,
    /// The file at the path belongs to a stream that another tail has yet to look for.
    expected_elsewhere: bool,
    limits: ReadLimits,
    /// Time of the current step.
    now: Instant,
    /// Of the last look at everything.
    looked: Instant,
    /// The clock at the last two looks at the open files, the older one first.
    looks_at: [SystemTime; 2],
    /// The live file was truncated after this time: what it held meanwhile may be in copies alone.
    copied_since: Option<SystemTime>,
    /// When the bytes that are read now were noticed.
    noticed: Instant,
    /// Streams known when the first look began; that look may take several attempts.
    history: Option<Vec<Entry>>,
    absent: Vec<Absent>,
    /// A sibling was no longer at its listed name.
    moved: bool,
    /// The file that was opened at the path and is about to be read. Meanwhile it may be renamed, compressed and deleted,
    /// so only this descriptor shows that its bytes are taken.
    held: Option<Arc<File>>,
    /// A sibling that cannot be read for lack of permission.
    denied: Option<PathBuf>,
    /// Rotated files that are not open because the limit of open files is reached. Oldest first; they are newer than the
    /// open ones.
    shelf: VecDeque<Shelved>,
    /// A new stream that starts because its file has different bytes now, and is not open yet.
    restarted: Option<StreamId>,
    /// Incomplete records read from truncated streams. They are sent unless a copy of the file has them.
    in_memory: Vec<Chunk>,
}

/// See [`Known::folder`]. Decisions still open when the agent stops are made at the next start.
fn decides<'f>(folder: &'f Mutex<()>, stop: &Stop) -> Result<MutexGuard<'f, ()>, Halt> {
    let decides = lock(folder);
    if stop.is_on() { Err(Halt::Stopped) } else { Ok(decides) }
}

/// Interval between checks whether another tail has looked.
const AWAITED: Duration = Duration::from_millis(100);

impl<'a> Tail<'a> {
    fn new(
        first: TailChange,
        known: &'a Known,
        board: &'a Board,
        out: Outlet,
        stop: &'a Stop,
        now: Instant,
    ) -> Tail<'a> {
        let limits = ReadLimits::new(board, &first.options, now);
        let folder = known.folder(&first.options.path);
        Tail {
            o: first.options.paced(),
            outdated: first.outdated,
            known,
            board,
            out,
            stop,
            open: Vec::new(),
            leaving: Vec::new(),
            turn: 0,
            first: true,
            begun: None,
            folder,
            failure: ReadFailure::default(),
            cuts: LogThrottle::default(),
            look_again: None,
            path_again: None,
            undecided: None,
            asked: None,
            expected_elsewhere: false,
            limits,
            now,
            looked: now,
            looks_at: [SystemTime::now(); 2],
            copied_since: None,
            noticed: now,
            history: None,
            absent: Vec::new(),
            moved: false,
            held: None,
            denied: None,
            shelf: VecDeque::new(),
            restarted: None,
            in_memory: Vec::new(),
        }
    }
}

impl Tail<'_> {
    /// Reads what was appended, if that is all that happened; otherwise looks at everything.
    fn next_step(&mut self, now: Instant, slot: &WakeSlot, woken: WakeReasons) -> Result<Step, Halt> {
        self.noticed = woken.modified.unwrap_or(now);
        // Some file systems report only the writes of this machine.
        let hints = slot.hints.load(Relaxed);
        if hints
            && !woken.more_than_modified()
            && let Some(step) = self.read_appended(now)?
        {
            return Ok(step);
        }
        slot.looks.fetch_add(1, SeqCst);
        let step = self.step(now, hints);
        slot.looks.fetch_add(1, SeqCst);
        step
    }

    /// The short way for an event that only says "written to": one look at the live file and one read. `None`: there is
    /// more to do than that.
    ///
    /// Nothing is missed by not looking at the path, nor by not looking again after the read: a rename, or bytes written
    /// since, cause an event of their own, and at the latest every [`UNHURRIED`] the tail looks at everything.
    fn read_appended(&mut self, now: Instant) -> Result<Option<Step>, Halt> {
        let looked = now.duration_since(self.looked);
        if !self.is_steady() || looked >= UNHURRIED {
            return Ok(None);
        }
        let [open] = &mut self.open[..] else { return Ok(None) };
        let Some(look) = open.look()? else { return Ok(None) };
        let touched = look.modified != open.modified;
        if look.size < open.size || look.links != open.links || touched && look.size == open.searched {
            return Ok(None);
        }
        self.now = now;
        open.saw(&look, now);
        if !open.unread() {
            return Ok(None);
        }
        if let Some(wait) = self.read_if_allowed(0, now)? {
            return Ok(Some(Step::Wait(wait)));
        }
        let done = self.is_steady() && matches!(&self.open[..], [open] if !open.unread() && !open.rest());
        Ok(Some(if done { Step::Wait(self.between_looks(true)) } else { Step::Read(0) }))
    }

    fn wait(&self, waits: &mut TailWait<'_>, time: Duration) -> WakeReasons {
        let files = self.open.iter().filter_map(|open| Some((&open.identity, &**open.file()?)));
        waits.wait(time, files, self.is_steady(), pace::delay(self.o.linger))
    }

    /// Nothing is going on but that lines are appended to the live file.
    fn is_steady(&self) -> bool {
        let pending =
            self.first || self.undecided.is_some() || self.expected_elsewhere || self.failure.error.is_some();
        let due = self.look_again.or(self.path_again).is_some() || self.failure.since.is_some();
        let apart = !(self.absent.is_empty() && self.shelf.is_empty() && self.leaving.is_empty());
        let live = matches!(&self.open[..], [open] if open.live && !open.rest());
        live && !pending && !due && !apart && self.in_memory.is_empty() && self.o.until == Until::Stopped
    }

    /// Reads the next chunk of a file, unless that must wait; then says how long.
    fn read_if_allowed(&mut self, i: usize, now: Instant) -> Result<Option<Duration>, Halt> {
        self.turn = self.turn.wrapping_add(1);
        let wait = self.limits.wait(self.board, &self.o, now);
        match wait {
            Some(_) => self.open[i].prove()?,
            None => self.read(i, Rest::Waits)?,
        }
        Ok(wait)
    }

    /// One look at everything, and one step.
    fn step(&mut self, now: Instant, hints: bool) -> Result<Step, Halt> {
        (self.now, self.looked) = (now, now);
        let folder = self.folder.clone();
        let stop = self.stop;
        let decides = || decides(&folder, stop);
        if self.first {
            let _decides = decides()?;
            let wait = self.begin();
            self.known.begun(&self.o.path);
            if let Some(wait) = wait? {
                return Ok(Step::Wait(wait));
            }
            self.first = false;
        }
        if !self.absent.is_empty() {
            let _decides = self.absent_until().is_some_and(|at| at <= now).then(decides).transpose()?;
            if let Some(wait) = self.find_absent()? {
                return Ok(Step::Wait(wait));
            }
        }
        if self.undecided.is_some() {
            let _decides = decides()?;
            self.save_undecided()?;
        }
        let at_path = match (self.look_at_path()?, self.path_again) {
            (AtPath::Another, Some(at)) if at > now => AtPath::Unknown,
            (AtPath::Another, _) if self.awaits_another() => {
                self.path_again = Some(now + AWAITED);
                AtPath::Unknown
            }
            (AtPath::Another, _) => AtPath::Another,
            (at_path, _) => {
                self.path_again = None;
                at_path
            }
        };
        // If the path has a new file, open that first: it also looks for siblings, and knows which file is live.
        if at_path != AtPath::Another && self.look_again.is_some_and(|at| at <= now) {
            self.look_again = None;
            let _decides = decides()?;
            self.catch_up(true)?;
        }
        let seen = self.look_at_open(now)?;
        if at_path == AtPath::Live
            && !seen.iter().any(|s| s.truncated)
            && let Some(since) = self.copied_since
        {
            let deciding = decides()?;
            self.read_copies(since)?;
            self.copied_since = None;
            drop(deciding);
            return self.step(now, hints); // their lines come before those of the live file
        }
        self.outlive(at_path, &seen);
        let patience = Patience {
            rotate_grace: self.o.rotate_grace,
            line_after: self.o.line_after,
            record_after: self.o.record_after,
            poll: self.between_looks(hints),
        };
        let step = follow::decide(at_path, &seen, self.shelf.len(), self.o.until, patience, self.turn);
        // A file that is not being read gives up its place in the budget's queue.
        let read = match step {
            Step::Read(i) | Step::SendRest(i) | Step::SendRecord(i) => Some(i),
            _ => None,
        };
        for (_, open) in self.open.iter_mut().enumerate().filter(|(i, _)| Some(*i) != read) {
            open.place = None;
            open.prove()?;
        }
        let is_decision = read.is_none() && !matches!(step, Step::Wait(_) | Step::End);
        let _decides = is_decision.then(decides).transpose()?;
        match step {
            Step::Open => self.open_new()?,
            Step::Orphan => self.orphan(),
            Step::Truncated(i) => self.truncated(i)?,
            Step::Read(i) => {
                if let Some(wait) = self.read_if_allowed(i, now)? {
                    return Ok(Step::Wait(wait));
                }
            }
            Step::SendRest(i) => self.read(i, Rest::IsALine)?,
            Step::SendRecord(i) => self.read(i, Rest::EndsRecord)?,
            Step::Leave(i) => self.leave(i),
            Step::GiveUp(i) => self.give_up(i),
            Step::Shelve(i) => self.shelve(i),
            Step::Unshelve => self.unshelve()?,
            Step::Wait(_) if self.open.iter().any(Open::is_news_for_gz) => {
                let _decides = decides()?;
                self.note_shorter_gz()?;
            }
            Step::Wait(_) | Step::End => {}
        }
        if self.path_again.is_none() {
            self.readable_again();
        }
        Ok(self.until_decided(self.until_saved(step)))
    }

    fn read(&mut self, i: usize, rest: Rest) -> Result<(), Halt> {
        self.limits.begin(self.board, &self.o);
        let got = self.open[i].read(&self.o.reading, rest, &self.outdated)?;
        let open = &self.open[i];
        open.origin.progress.searched.store(open.searched, Relaxed);
        match got {
            Got::Stopped if self.stop.is_on() => Err(Halt::Stopped),
            Got::Stopped => Ok(()), // continue with the new options
            Got::NoRoom => Ok(self.open[i].prove()?),
            Got::Nothing => Ok(()),
            Got::Changed => {
                // The last look may have been after the truncation.
                self.copied_since.get_or_insert(self.looks_at[0]);
                let folder = self.folder.clone();
                let _decides = decides(&folder, self.stop)?;
                self.truncated(i)
            }
            Got::Broken(e) => {
                self.broken(i, &e);
                Ok(())
            }
            Got::Chunk(mut chunk, counts) => {
                chunk.noticed = self.noticed;
                let t = &self.board.totals;
                t.read_lines.fetch_add(chunk.lines.len() as u64, Relaxed);
                if counts.cut_lines > 0 {
                    t.cut_lines.fetch_add(counts.cut_lines, Relaxed);
                    let (path, max) = (self.o.path.display(), self.o.reading.rules.max_line);
                    if let Some(all) = self.cuts.more(counts.cut_lines, self.now) {
                        let (lines, at) = (counts.cut_lines, chunk.range.start);
                        warn!(
                            "{path}: {lines} line(s) over {max} bytes cut near offset {at} ({all} recently)"
                        );
                    }
                }
                self.limits.spend(&mut chunk, &self.o, self.now);
                self.known.progress(chunk.origin.stream, chunk.end, &self.open[i].head);
                self.send(chunk)
            }
        }
    }

    /// A tail blocks here while the producer is busy.
    fn send(&self, chunk: Chunk) -> Result<(), Halt> {
        self.board.report_hung_write(self.now);
        Ok(self.out.send(chunk, self.stop, &|| self.board.report_hung_write(Instant::now()))?)
    }
}
