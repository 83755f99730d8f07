//! The registry of log streams: which file each one belongs to, and how far it is framed, sent, acknowledged and
//! saved.
//!
//! Tails open and close streams here, the producer acknowledges here, and the saver takes snapshots here. One mutex
//! guards the registry. It is held for lookups and small updates, never during I/O. The offsets that change with
//! every chunk are atomics ([`Progress`]).
//!
//! A single owner replaced ten types and several channels that each knew a part of a stream's state. A stream is
//! registered before its tail can send a chunk, so the producer never sees an unknown stream, and a snapshot of all
//! positions is consistent without pausing any thread.
//!
//! Invariant: per stream, `saved ≤ acked ≤ sent ≤ framed`, asserted in release builds. A position that runs ahead of
//! the acknowledgements silently loses lines at the next crash; ending the process is cheaper. Positions never move
//! back: a truncated file becomes a new stream.
//!
//! Invariant: a stream is open here before its first chunk can reach the producer.

pub mod air;
pub mod mailbox;
mod progress;
mod ranges;
pub mod saved;
pub mod sent_marks;
mod table;
mod totals;

pub use progress::Progress;
pub use saved::{NumberGap, Saved, SavedPositions, SavedStream, SavedTotals};
pub use table::FINISHED_PER_JOURNAL;
pub use totals::Totals;

use crate::lock::lock;
use crate::record::{Ack, Closed, Ending, Identity, Point, StreamId};
use crossbeam_channel::Sender;
use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use table::Table;

/// A stream as a tail opens it: for the first time, or again after a start or in another file. Everything before `at`
/// is acknowledged.
#[derive(Clone, Debug)]
pub struct Opened {
    pub stream: StreamId,
    /// The followed path.
    pub path: PathBuf,
    pub identity: Identity,
    pub at: Point,
    pub progress: Arc<Progress>,
}

/// All streams known to this process.
#[derive(Debug, Default)]
pub struct Registry {
    inner: Mutex<RegistryState>,
    /// Wakes the saver.
    news: Condvar,
    totals: Arc<Totals>,
    /// The saver waits for lines to be read.
    quiet: AtomicBool,
}

#[derive(Debug, Default)]
struct RegistryState {
    table: Table,
    pending: Pending,
    /// The least urgent change that wakes the waiting saver.
    wakes: Urgency,
    /// Exactly-once: nothing of a stream is sent before its opening is saved.
    opens_are_urgent: bool,
    /// Patterns whose existing files are all registered; see [`Saved::sources`].
    sources: Vec<Vec<u8>>,
    /// See [`Saved::losses`].
    losses: Vec<(PathBuf, NumberGap)>,
    /// See [`Saved::from_beginning`].
    from_beginning: bool,
    /// Seconds that agents have run on this state folder, as of the saver's last look.
    clock: u64,
}

/// What has changed since the saver last looked.
#[derive(Debug, Default)]
pub struct Pending {
    /// The first change.
    pub changed: Option<Instant>,
    /// The first acknowledgement.
    pub acked: Option<Instant>,
    /// Lines were read after a quiet period.
    pub grown: bool,
    /// Someone waits for the next save.
    pub urgent: bool,
    /// Dropped when a save that includes everything up to now has succeeded or failed.
    pub waiting: Vec<Sender<Infallible>>,
    /// No more changes will come: save and exit.
    pub ending: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Any change.
    #[default]
    Change,
    Ack,
    /// Someone waits for a save, or the registry was ended.
    Now,
}

impl Registry {
    /// Starts from what an earlier run saved. `resent` gives, per stream, the offset up to which exactly-once sends
    /// bytes again without a tail reading them.
    pub fn new(saved: &Saved, resent: &HashMap<StreamId, u64>, totals: Arc<Totals>) -> Registry {
        let inner = RegistryState {
            table: Table::new(&saved.streams, saved.next_stream).resending(resent),
            sources: saved.sources.clone(),
            losses: saved.losses.clone(),
            from_beginning: saved.from_beginning,
            clock: saved.clock,
            ..RegistryState::default()
        };
        Registry { inner: Mutex::new(inner), news: Condvar::new(), totals, quiet: AtomicBool::new(false) }
    }

    /// Exactly-once: no bytes of a stream are sent before its opening is saved, so every opening is saved
    /// immediately.
    pub fn saving_openings(self) -> Registry {
        self.lock().opens_are_urgent = true;
        self
    }

    fn lock(&self) -> MutexGuard<'_, RegistryState> {
        lock(&self.inner)
    }

    /// A tail starts to read `opened`. Must be called before its first chunk is handed over.
    pub fn open(&self, opened: Opened) {
        let mut inner = self.lock();
        let clock = inner.clock;
        if inner.table.open(opened, clock) {
            let urgency = if inner.opens_are_urgent { Urgency::Now } else { Urgency::Change };
            inner.pending.urgent |= inner.opens_are_urgent;
            self.changed(&mut inner, urgency);
        }
    }

    /// The tail will send no more chunks of this stream.
    pub fn close(&self, closed: &Closed) {
        if let Ending::Truncated { lost } | Ending::Gone { lost } = closed.why {
            self.totals.lost_bytes.fetch_add(lost, Relaxed);
        }
        let mut inner = self.lock();
        if inner.table.close(closed.stream, &closed.why) {
            self.changed(&mut inner, Urgency::Change);
        }
    }

    /// A tail has read lines. Costs nothing except after a quiet period.
    pub fn grown(&self) {
        if self.quiet.load(Relaxed) {
            let mut inner = self.lock();
            self.quiet.store(false, Relaxed);
            inner.pending.grown = true;
            self.wake(&mut inner, Urgency::Change);
        }
    }

    /// Everything in these ranges is stored, or is in the dead-letter file.
    pub fn acknowledge(&self, acks: impl IntoIterator<Item = Ack>) {
        let mut acks = acks.into_iter().peekable();
        if acks.peek().is_none() {
            return;
        }
        let mut inner = self.lock();
        for ack in acks {
            inner.table.ack(&ack);
            self.totals.acked_lines.fetch_add(ack.lines, Relaxed);
        }
        let pending = &mut inner.pending;
        if pending.acked.is_none() {
            pending.acked = Some(Instant::now());
            self.changed(&mut inner, Urgency::Ack);
        }
    }

    /// All existing files of this pattern are open here, so `start` no longer applies to it.
    pub fn pattern_known(&self, pattern: Vec<u8>) {
        let mut inner = self.lock();
        if !inner.sources.contains(&pattern) {
            inner.sources.push(pattern);
            self.changed(&mut inner, Urgency::Change);
        }
    }

    /// Entries of a journal are lost. `gap`: the folder and the gap in its numbers, if that is how it was noticed.
    pub fn lost_entries(&self, entries: u64, gap: Option<(PathBuf, NumberGap)>) {
        let mut inner = self.lock();
        self.totals.lost_entries.fetch_add(entries, Relaxed);
        if let Some(gap) = gap {
            inner.losses.retain(|(folder, _)| *folder != gap.0);
            inner.losses.push(gap);
        }
        self.changed(&mut inner, Urgency::Change);
    }

    /// The first scan of all patterns is over. `done` is dropped when that is saved, or the save has failed.
    pub fn first_scan_done(&self, done: Sender<Infallible>) {
        let mut inner = self.lock();
        if std::mem::take(&mut inner.from_beginning) {
            inner.pending.changed.get_or_insert_with(Instant::now);
        }
        inner.pending.waiting.push(done);
        self.wake(&mut inner, Urgency::Now);
    }

    /// Save now: batches wait for it (exactly-once), or the counters must not be lost.
    pub fn save_soon(&self) {
        let mut inner = self.lock();
        inner.pending.urgent = true;
        self.changed(&mut inner, Urgency::Now);
    }

    /// No more changes will come.
    pub fn end(&self) {
        let mut inner = self.lock();
        inner.pending.ending = true;
        self.wake(&mut inner, Urgency::Now);
    }

    fn changed(&self, inner: &mut RegistryState, urgency: Urgency) {
        inner.pending.changed.get_or_insert_with(Instant::now);
        self.wake(inner, urgency);
    }

    fn wake(&self, inner: &mut RegistryState, urgency: Urgency) {
        if urgency >= inner.wakes {
            inner.wakes = Urgency::Now; // once is enough
            self.news.notify_one();
        }
    }
}

/// The saver's side.
impl Registry {
    /// Waits until `until`, or for a change at least as urgent as `wakes`, and takes the pending changes. `quiet`: the next
    /// lines that are read are a change too.
    pub fn wait(&self, wakes: Urgency, until: Instant, quiet: bool) -> Pending {
        let mut inner = self.lock();
        self.quiet.store(quiet, Relaxed);
        let is_there = |inner: &RegistryState| {
            let p = &inner.pending;
            let now = p.urgent || p.ending || !p.waiting.is_empty();
            now || (wakes <= Urgency::Ack && p.acked.is_some())
                || (wakes == Urgency::Change && (p.changed.is_some() || p.grown))
        };
        while !is_there(&inner) {
            let time = until.saturating_duration_since(Instant::now());
            if time.is_zero() {
                break;
            }
            inner.wakes = wakes;
            inner = self.news.wait_timeout(inner, time).unwrap_or_else(PoisonError::into_inner).0;
        }
        inner.wakes = Urgency::Now;
        self.quiet.store(false, Relaxed);
        let ending = inner.pending.ending;
        std::mem::replace(&mut inner.pending, Pending { ending, ..Pending::default() })
    }

    /// Fills `head` with the streams and their totals, as `offsets` will record them at `clock` seconds of running
    /// time.
    pub fn snapshot(&self, head: &mut Saved, clock: u64) {
        let mut inner = self.lock();
        inner.clock = clock;
        (head.clock, head.next_stream, head.from_beginning) =
            (clock, inner.table.next_stream(), inner.from_beginning);
        if head.sources.len() < inner.sources.len() {
            head.sources.extend_from_slice(&inner.sources[head.sources.len()..]);
        }
        // Taken together with the positions: after a crash a line is counted once per saved acknowledgement.
        head.totals.acked_lines = self.totals.acked_lines.load(Relaxed);
        head.totals.lost_entries = self.totals.lost_entries.load(Relaxed);
        head.losses.clone_from(&inner.losses);
        head.totals.lost_bytes = inner.table.lost_bytes();
        head.streams.clear();
        head.streams.extend(inner.table.write_down(clock));
    }

    /// The last snapshot is on disk. Calls `finished` for each stream that is done.
    pub fn saved(&self, finished: impl FnMut(StreamId)) {
        self.lock().table.saved(finished);
    }

    /// Whether any file's size differs from the saved one, which is worth a save, but not urgent; and whether any file has
    /// unacknowledged bytes.
    pub fn sizes(&self) -> (bool, bool) {
        self.lock().table.sizes()
    }

    /// Streams without a tail: id, followed path, inode.
    pub fn resting(&self) -> Vec<(StreamId, Arc<Path>, u64)> {
        self.lock().table.resting().collect()
    }

    /// A resting stream's file exists at `clock`.
    pub fn exists(&self, stream: StreamId, clock: u64) {
        self.lock().table.exists(stream, clock);
    }

    /// A resting stream's file is gone. Forgets the stream if the file was last seen more than `age` seconds of
    /// running time ago, and returns its path if so.
    pub fn absent(&self, stream: StreamId, clock: u64, age: u64) -> Option<Arc<Path>> {
        let mut inner = self.lock();
        let path = inner.table.forget_absent(stream, clock, age)?;
        self.changed(&mut inner, Urgency::Change);
        Some(path)
    }
}

#[cfg(test)]
mod tests;
