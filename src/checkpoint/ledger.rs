//! What has been acknowledged, per stream: gapless up to a point, and ranges beyond it. Pure: no file, no time, no thread.

use super::saved::SavedStream;
use crate::chunk::{Ack, Ending, Identity, Opened, Point, StreamId};
use crate::report::Gauge;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// All streams that are known.
///
/// Bounded over any number of rotations: a finished stream says "this rotated file, or its `.gz`, is read already", and
/// only so many of those are kept per followed path; the rest is forgotten when it was absent long enough.
#[derive(Debug, Default)]
pub struct Ledger {
    accounts: BTreeMap<StreamId, Account>,
    /// Finished streams by followed path, oldest first.
    finished: BTreeMap<Arc<Path>, BTreeSet<StreamId>>,
    /// Number of finished streams, over all paths.
    finished_total: usize,
    next_stream: u64,
    lost_bytes: u64,
}

/// One stream.
#[derive(Debug)]
pub struct Account {
    path: Arc<Path>,
    identity: Identity,
    reached: Reached,
    size: u64,
    pub seen: u64,
    phase: Phase,
    gauge: Option<Arc<Gauge>>,
    /// What the save under way says of `at`.
    saving: u64,
    /// Bytes that were gone when it was closed.
    lost: u64,
    /// Bytes up to here may be acknowledged though no tail of this run reads them.
    rebuilt: u64,
}

/// A gapless point and what is acknowledged beyond it.
///
/// Invariant: the ranges are disjoint, do not touch each other, and all start after `at`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    pub at: Point,
    /// By start; the value is the range's end, kept whole since its mark is needed when the gap before it closes.
    pub beyond: BTreeMap<u64, Point>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Saved by an earlier run and not taken up yet, or parked.
    Resting,
    Open,
    /// Nothing more is read; finished once everything framed is acknowledged.
    Ending,
    Finished,
}

impl Reached {
    /// Takes an acknowledged range in. A repeat changes nothing.
    pub fn ack(&mut self, start: u64, end: Point) {
        debug_assert!(start >= self.at.offset, "acknowledged {start} again, before {}", self.at.offset);
        debug_assert!(start <= end.offset);
        if start > self.at.offset {
            return self.beyond(start, end);
        }
        if end.offset >= self.at.offset {
            self.at = end;
        }
        while let Some(first) = self.beyond.first_entry() {
            if *first.key() > self.at.offset {
                break;
            }
            let end = first.remove();
            if end.offset >= self.at.offset {
                self.at = end;
            }
        }
    }

    fn beyond(&mut self, mut start: u64, mut end: Point) {
        if let Some((&before, &upto)) = self.beyond.range(..=start).next_back()
            && upto.offset >= start
        {
            debug_assert!(
                upto.offset == start,
                "acknowledged {start} again, within {before}..{}",
                upto.offset
            );
            start = before;
            end = further(upto, end);
        }
        while let Some((&next, &upto)) = self.beyond.range(start..).next()
            && next <= end.offset
        {
            debug_assert!(next == end.offset || next == start, "acknowledged {next}..{} again", upto.offset);
            self.beyond.remove(&next);
            end = further(end, upto);
        }
        self.beyond.insert(start, end);
    }
}

/// The end that lies further; of equal ones the later said.
fn further(a: Point, b: Point) -> Point {
    if b.offset >= a.offset { b } else { a }
}

impl Ledger {
    /// Finished streams kept per followed path, at most.
    pub const FINISHED_PER_PATH: usize = 64;
    /// Finished streams kept over all paths, as long as that leaves [`Self::FINISHED_AT_LEAST`] for each.
    pub const FINISHED: usize = 4096;
    /// As many as rotated files of one path are held open.
    pub const FINISHED_AT_LEAST: usize = 8;

    pub fn new(streams: Vec<SavedStream>, next_stream: u64) -> Ledger {
        let mut ledger = Ledger { next_stream, ..Ledger::default() };
        for s in streams {
            let path: Arc<Path> = s.path.into();
            let beyond = s.beyond.into_iter().map(|(range, end)| (range.start, end)).collect();
            let account = Account {
                path: path.clone(),
                identity: s.identity,
                reached: Reached { at: s.at, beyond },
                size: s.size,
                seen: s.seen,
                phase: if s.finished { Phase::Finished } else { Phase::Resting },
                gauge: None,
                saving: s.at.offset,
                lost: 0,
                rebuilt: 0,
            };
            ledger.next_stream = ledger.next_stream.max(s.stream.0 + 1);
            ledger.accounts.insert(s.stream, account);
            if s.finished {
                ledger.note_finished(s.stream, path);
            }
        }
        ledger
    }

    /// Of these streams, bytes up to there are sent again without a tail.
    pub fn rebuilding(mut self, rebuilt: &HashMap<StreamId, u64>) -> Ledger {
        for (stream, end) in rebuilt {
            if let Some(account) = self.accounts.get_mut(stream) {
                account.rebuilt = *end;
            }
        }
        self
    }

    pub fn next_stream(&self) -> u64 {
        self.next_stream
    }

    /// Lost of streams finished in this run: of one that is not, the next run would count it anew.
    pub fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    /// A stream is taken up at `clock` of running time. True: something is to be saved. What was acknowledged of a known
    /// stream stays as it is known here.
    pub fn open(&mut self, o: Opened, clock: u64) -> bool {
        let (stream, gauge) = (o.origin.stream, o.origin.gauge.clone());
        self.next_stream = self.next_stream.max(stream.0 + 1);
        gauge.belongs(stream, o.identity.clone());
        self.unnote_finished(stream); // a late writer went on in a file that was left
        if let Some(known) = self.accounts.get_mut(&stream) {
            // Beyond it: the tail goes on in another file (a copy, a `.gz`) while chunks are in the air.
            let (acked, saved) =
                (known.reached.at.offset, known.gauge.as_ref().map(|g| g.saved.load(Relaxed)));
            debug_assert!(o.at.offset >= acked, "{stream:?} is opened before what is acknowledged");
            gauge.acked.store(acked, Relaxed);
            gauge.saved.store(saved.unwrap_or(acked), Relaxed);
            let moved = known.identity != o.identity || *known.path != *o.origin.path;
            known.identity = o.identity;
            known.path = o.origin.path.as_path().into();
            known.phase = Phase::Open;
            known.gauge = Some(gauge);
            known.seen = clock;
            return moved;
        }
        let account = Account {
            path: o.origin.path.as_path().into(),
            identity: o.identity,
            reached: Reached { at: o.at, beyond: BTreeMap::new() },
            size: gauge.size.load(Relaxed),
            seen: clock,
            phase: Phase::Open,
            saving: o.at.offset,
            lost: 0,
            rebuilt: 0,
            gauge: Some(gauge),
        };
        self.accounts.insert(stream, account);
        true
    }

    /// Takes an acknowledgement in and moves the gauge.
    pub fn ack(&mut self, ack: &Ack) {
        let Some(account) = self.accounts.get_mut(&ack.stream) else {
            debug_assert!(false, "acknowledged {ack:?}, which was never opened");
            return;
        };
        debug_assert!(ack.end.offset == ack.range.end);
        account.reached.ack(ack.range.start, ack.end);
        if let Some(gauge) = &account.gauge {
            debug_assert!(
                ack.range.end <= gauge.flown.load(Relaxed).max(account.rebuilt),
                "acknowledged what never flew: {ack:?}"
            );
            gauge.acked.store(account.reached.at.offset, Relaxed);
        }
        if account.phase == Phase::Ending {
            self.finish_if_done(ack.stream);
        }
    }

    /// Nothing more comes of `stream`. True: something is to be saved.
    pub fn close(&mut self, stream: StreamId, why: &Ending) -> bool {
        let Some(account) = self.accounts.get_mut(&stream) else {
            debug_assert!(false, "{stream:?} is closed and was never opened");
            return false;
        };
        (account.phase, account.lost) = match why {
            Ending::Parked => (Phase::Resting, 0),
            Ending::Finished => (Phase::Ending, 0),
            Ending::Truncated { lost } | Ending::Gone { lost } => (Phase::Ending, *lost),
        };
        account.phase == Phase::Ending && self.finish_if_done(stream)
    }

    fn finish_if_done(&mut self, stream: StreamId) -> bool {
        let Some(account) = self.accounts.get_mut(&stream) else { return false };
        // All chunks were framed before the stream was closed.
        let framed = account.gauge.as_ref().map_or(0, |g| g.framed.load(Relaxed)).max(account.rebuilt);
        // What lies between the position and what was acknowledged beyond it in an earlier life is lost, or to be read.
        let gaps = !account.reached.beyond.is_empty() && account.lost == 0;
        if account.reached.at.offset < framed || gaps {
            return false;
        }
        account.size = account.size_seen();
        account.phase = Phase::Finished;
        self.lost_bytes += std::mem::take(&mut account.lost);
        let path = account.path.clone();
        self.note_finished(stream, path);
        true
    }

    fn note_finished(&mut self, stream: StreamId, path: Arc<Path>) {
        let of_path = self.finished.entry(path).or_default();
        self.finished_total += usize::from(of_path.insert(stream));
        let most = Self::FINISHED_PER_PATH;
        let oldest = if of_path.len() > most { of_path.first().copied() } else { None };
        let oldest = oldest.or_else(|| self.richest());
        if let Some(oldest) = oldest {
            self.forget(oldest);
        }
    }

    fn unnote_finished(&mut self, stream: StreamId) {
        let Some(account) = self.accounts.get(&stream) else { return };
        if let Some(of_path) = self.finished.get_mut(&account.path) {
            self.finished_total -= usize::from(of_path.remove(&stream));
            if of_path.is_empty() {
                self.finished.remove(&account.path);
            }
        }
    }

    /// Over the total: the oldest finished stream of the path that has most of them.
    fn richest(&self) -> Option<StreamId> {
        if self.finished_total <= Self::FINISHED {
            return None;
        }
        let most = self.finished.values().max_by_key(|of_path| of_path.len())?;
        if most.len() <= Self::FINISHED_AT_LEAST { None } else { most.first().copied() }
    }

    /// Nothing is known of `stream` from now on.
    fn forget(&mut self, stream: StreamId) {
        self.unnote_finished(stream);
        self.accounts.remove(&stream);
    }

    /// [`Ledger::forget`], unless somebody reads it. True: forgotten.
    pub fn forget_if_resting(&mut self, stream: StreamId) -> bool {
        let resting =
            self.accounts.get(&stream).is_some_and(|a| matches!(a.phase, Phase::Resting | Phase::Finished));
        if resting {
            self.forget(stream);
        }
        resting
    }

    /// Streams that nobody has open.
    pub fn resting(&self) -> impl Iterator<Item = (StreamId, &Account)> {
        let closed = |a: &Account| matches!(a.phase, Phase::Resting | Phase::Finished);
        self.accounts.iter().filter(move |(_, a)| closed(a)).map(|(id, a)| (*id, a))
    }

    pub fn get_mut(&mut self, stream: StreamId) -> Option<&mut Account> {
        self.accounts.get_mut(&stream)
    }

    /// True when a size on the board is another than the one saved last: worth saving, not worth hurrying.
    pub fn sizes_moved(&self) -> bool {
        self.accounts
            .values()
            .any(|a| a.gauge.is_some() && a.phase != Phase::Finished && a.size != a.size_seen())
    }

    /// All streams as they are to be saved at `clock`; what is said of them becomes `saved` by [`Ledger::saved`].
    pub fn write_down(&mut self, clock: u64) -> impl Iterator<Item = SavedStream> {
        self.accounts.iter_mut().map(move |(id, a)| a.write_down(*id, clock))
    }

    /// The last [`Ledger::write_down`] is saved. Calls `finished` for each stream that is finished since the last time.
    pub fn saved(&mut self, mut finished: impl FnMut(StreamId)) {
        for (id, a) in &mut self.accounts {
            let Some(gauge) = &a.gauge else { continue };
            debug_assert!(a.saving <= gauge.acked.load(Relaxed), "saved what is not acknowledged: {id:?}");
            gauge.saved.store(a.saving, Relaxed);
            if a.phase == Phase::Finished && a.saving == a.reached.at.offset {
                finished(*id);
                a.gauge = None;
            }
        }
    }
}

impl Account {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    fn size_seen(&self) -> u64 {
        self.gauge.as_ref().map_or(self.size, |g| g.size.load(Relaxed).max(self.reached.at.offset))
    }

    fn write_down(&mut self, stream: StreamId, clock: u64) -> SavedStream {
        self.size = self.size_seen();
        self.saving = self.reached.at.offset;
        if matches!(self.phase, Phase::Open | Phase::Ending) {
            self.seen = clock;
        }
        SavedStream {
            stream,
            path: PathBuf::from(&*self.path),
            identity: self.identity.clone(),
            at: self.reached.at,
            beyond: self.reached.beyond.iter().map(|(s, e)| (*s..e.offset, *e)).collect(),
            size: self.size,
            finished: self.phase == Phase::Finished,
            seen: self.seen,
        }
    }
}

#[cfg(test)]
mod tests;
