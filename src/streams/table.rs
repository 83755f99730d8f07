//! The table of streams: the state of each, and how long it is kept. Pure: no I/O, no lock; time is an argument.

use super::ranges::AckedRanges;
use super::saved::SavedStream;
use super::{Opened, Progress};
use crate::record::{Ack, Ending, Identity, StreamId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Finished streams kept per chain of journal files, at most: journald keeps 100 files unless `SystemMaxFiles=` says
/// otherwise, and a file that is forgotten may be sent again.
pub const FINISHED_PER_JOURNAL: usize = 256;

/// All known streams.
///
/// The size stays bounded over any number of rotations. A finished stream records "this rotated file, or its `.gz`,
/// has been read"; only a limited number of those is kept per followed path. Other streams are forgotten once their
/// file has been absent long enough.
#[derive(Debug, Default)]
pub struct Table {
    streams: BTreeMap<StreamId, StreamEntry>,
    /// Finished streams by followed path, oldest first.
    finished: BTreeMap<Arc<Path>, BTreeSet<StreamId>>,
    /// Number of finished streams, over all paths.
    finished_total: usize,
    next_stream: u64,
    lost_bytes: u64,
}

#[derive(Debug)]
struct StreamEntry {
    path: Arc<Path>,
    identity: Identity,
    acked: AckedRanges,
    size: u64,
    /// Running time, in seconds, when its file was last known to exist.
    seen: u64,
    phase: Phase,
    progress: Option<Arc<Progress>>,
    /// `acked.at` as of the last snapshot.
    saving: u64,
    /// Unread bytes that were gone when the stream was closed.
    lost: u64,
    /// Bytes up to here may be acknowledged although no tail of this run reads them.
    resent: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Known from an earlier run, or parked: no tail reads it.
    Resting,
    Open,
    /// No longer read; finished once everything framed is acknowledged.
    Ending,
    Finished,
}

impl Table {
    /// Finished streams kept per followed path, at most.
    pub const FINISHED_PER_PATH: usize = 64;
    /// Finished streams kept over all paths, as long as each path keeps [`Self::FINISHED_AT_LEAST`].
    pub const FINISHED: usize = 4096;
    /// Matches the number of rotated files of one path that a tail holds open.
    pub const FINISHED_AT_LEAST: usize = 8;

    pub fn new(saved: &[SavedStream], next_stream: u64) -> Table {
        let mut table = Table { next_stream, ..Table::default() };
        for s in saved {
            let stream = StreamEntry {
                path: s.path.clone(),
                identity: s.identity.clone(),
                acked: AckedRanges { at: s.at, beyond: s.beyond.clone() },
                size: s.size,
                seen: s.seen,
                phase: if s.finished { Phase::Finished } else { Phase::Resting },
                progress: None,
                saving: s.at.offset,
                lost: 0,
                resent: 0,
            };
            table.next_stream = table.next_stream.max(s.stream.0 + 1);
            table.streams.insert(s.stream, stream);
            if s.finished {
                table.note_finished(s.stream, s.path.clone());
            }
        }
        table
    }

    /// Bytes of these streams, up to the given offsets, are sent again without a tail.
    pub fn resending(mut self, resent: &HashMap<StreamId, u64>) -> Table {
        for (id, end) in resent {
            if let Some(stream) = self.streams.get_mut(id) {
                stream.resent = *end;
            }
        }
        self
    }

    pub fn next_stream(&self) -> u64 {
        self.next_stream
    }

    /// Bytes lost by streams that finished in this run. Losses of an unfinished stream are counted again by the next
    /// run.
    pub fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    /// A tail opens a stream at `clock` seconds of running time. For a known stream, the acknowledgements recorded
    /// here are kept. Returns whether there is something to save.
    pub fn open(&mut self, o: Opened, clock: u64) -> bool {
        let (id, progress) = (o.stream, o.progress);
        self.next_stream = self.next_stream.max(id.0 + 1);
        progress.belongs(id, o.identity.clone());
        self.unnote_finished(id); // a rotated file is written again
        if let Some(known) = self.streams.get_mut(&id) {
            let acked = known.acked.at.offset;
            let saved = known.progress.as_ref().map_or(acked, |p| p.saved.load(Relaxed));
            // It may be further on: the tail continues in another file (a copy, a `.gz`) while chunks are in flight.
            assert!(
                o.at.offset >= acked,
                "{id:?} is opened at {}, before its acknowledged position",
                o.at.offset
            );
            progress.acked.store(acked, Relaxed);
            progress.saved.store(saved, Relaxed);
            let moved = known.identity != o.identity || *known.path != *o.path;
            known.identity = o.identity;
            known.path = o.path.as_path().into();
            known.phase = Phase::Open;
            known.progress = Some(progress);
            known.seen = clock;
            return moved;
        }
        let stream = StreamEntry {
            path: o.path.as_path().into(),
            identity: o.identity,
            acked: AckedRanges { at: o.at, beyond: Vec::new() },
            size: progress.size.load(Relaxed),
            seen: clock,
            phase: Phase::Open,
            saving: o.at.offset,
            lost: 0,
            resent: 0,
            progress: Some(progress),
        };
        self.streams.insert(id, stream);
        true
    }

    pub fn ack(&mut self, ack: &Ack) {
        let Some(stream) = self.streams.get_mut(&ack.stream) else {
            debug_assert!(false, "acknowledged {ack:?}, which was never opened");
            return;
        };
        debug_assert!(ack.end.offset == ack.range.end);
        stream.acked.ack(ack.range.start, ack.end);
        if let Some(progress) = &stream.progress {
            let sent = progress.sent.load(Relaxed).max(stream.resent);
            assert!(ack.range.end <= sent, "acknowledged {ack:?}, of which only {sent} bytes were sent");
            progress.ack(stream.acked.at.offset);
            let records = progress.records.load(Relaxed); // 0: of a log file, or sent by an earlier run
            progress.records.fetch_sub(ack.lines.min(records), Relaxed);
        }
        if stream.phase == Phase::Ending {
            self.finish_if_done(ack.stream);
        }
    }

    /// The tail sends no more chunks of this stream. Returns whether there is something to save.
    pub fn close(&mut self, id: StreamId, why: &Ending) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else {
            debug_assert!(false, "{id:?} is closed but was never opened");
            return false;
        };
        (stream.phase, stream.lost) = match why {
            Ending::Parked => (Phase::Resting, 0),
            Ending::Finished => (Phase::Ending, 0),
            Ending::Truncated { lost } | Ending::Gone { lost } => (Phase::Ending, *lost),
        };
        stream.phase == Phase::Ending && self.finish_if_done(id)
    }

    fn finish_if_done(&mut self, id: StreamId) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return false };
        // All chunks were framed before the stream was closed.
        let framed = stream.progress.as_ref().map_or(0, |p| p.framed.load(Relaxed)).max(stream.resent);
        // A gap below ranges acknowledged by an earlier run is lost, or still has to be read.
        let gaps = !stream.acked.beyond.is_empty() && stream.lost == 0;
        if stream.acked.at.offset < framed || gaps {
            return false;
        }
        stream.size = stream.size_seen();
        stream.phase = Phase::Finished;
        self.lost_bytes += std::mem::take(&mut stream.lost);
        let path = stream.path.clone();
        self.note_finished(id, path);
        true
    }

    fn note_finished(&mut self, id: StreamId, path: Arc<Path>) {
        let most = if self.is_journal(id) { FINISHED_PER_JOURNAL } else { Self::FINISHED_PER_PATH };
        let of_path = self.finished.entry(path).or_default();
        self.finished_total += usize::from(of_path.insert(id));
        let oldest = if of_path.len() > most { of_path.first().copied() } else { None };
        let oldest = oldest.or_else(|| self.oldest_of_the_largest());
        if let Some(oldest) = oldest {
            self.forget(oldest);
        }
    }

    fn unnote_finished(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(&id) else { return };
        if let Some(of_path) = self.finished.get_mut(&stream.path) {
            self.finished_total -= usize::from(of_path.remove(&id));
            if of_path.is_empty() {
                self.finished.remove(&stream.path);
            }
        }
    }

    fn is_journal(&self, id: StreamId) -> bool {
        self.streams.get(&id).is_some_and(|s| s.acked.at.mark.seqnum().is_some())
    }

    /// When the total is exceeded: the oldest finished stream of the log file that has the most.
    fn oldest_of_the_largest(&self) -> Option<StreamId> {
        if self.finished_total <= Self::FINISHED {
            return None;
        }
        let of_files =
            self.finished.values().filter(|all| all.first().is_none_or(|id| !self.is_journal(*id)));
        let most = of_files.max_by_key(|of_path| of_path.len())?;
        if most.len() <= Self::FINISHED_AT_LEAST { None } else { most.first().copied() }
    }

    fn forget(&mut self, id: StreamId) {
        self.unnote_finished(id);
        self.streams.remove(&id);
    }

    /// Streams without a tail: id, followed path, inode.
    pub fn resting(&self) -> impl Iterator<Item = (StreamId, Arc<Path>, u64)> {
        let resting = self.streams.iter().filter(|(_, s)| s.is_resting());
        resting.map(|(id, s)| (*id, s.path.clone(), s.identity.ino))
    }

    /// The file of a resting stream exists at `clock`.
    pub fn exists(&mut self, id: StreamId, clock: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.seen = clock;
        }
    }

    /// Forgets a resting stream last seen more than `age` seconds before `clock`, and returns its path if so.
    pub fn forget_absent(&mut self, id: StreamId, clock: u64, age: u64) -> Option<Arc<Path>> {
        let stream = self.streams.get(&id).filter(|s| s.is_resting())?;
        if clock.saturating_sub(stream.seen) <= age {
            return None;
        }
        let path = stream.path.clone();
        self.forget(id);
        Some(path)
    }

    /// Whether any file's size differs from the last snapshot, and whether any file has unacknowledged bytes.
    pub fn sizes(&self) -> (bool, bool) {
        let read = || self.streams.values().filter(|s| s.progress.is_some() && s.phase != Phase::Finished);
        (read().any(|s| s.size != s.size_seen()), read().any(|s| s.acked.at.offset < s.size_seen()))
    }

    /// All streams as they will be saved at `clock`. The positions become `saved` with [`Table::saved`].
    pub fn write_down(&mut self, clock: u64) -> impl Iterator<Item = SavedStream> {
        self.streams.iter_mut().map(move |(id, s)| s.write_down(*id, clock))
    }

    /// The last [`Table::write_down`] is on disk. Calls `finished` for each stream that finished since the previous
    /// one.
    pub fn saved(&mut self, mut finished: impl FnMut(StreamId)) {
        for (id, s) in &mut self.streams {
            let Some(progress) = &s.progress else { continue };
            assert!(
                s.saving <= progress.acked.load(Relaxed),
                "{id:?}: saved a position that is not acknowledged"
            );
            progress.save(s.saving);
            if s.phase == Phase::Finished && s.saving == s.acked.at.offset {
                finished(*id);
                s.progress = None;
            }
        }
    }
}

impl StreamEntry {
    fn is_resting(&self) -> bool {
        matches!(self.phase, Phase::Resting | Phase::Finished)
    }

    fn size_seen(&self) -> u64 {
        self.progress.as_ref().map_or(self.size, |p| p.size.load(Relaxed).max(self.acked.at.offset))
    }

    fn write_down(&mut self, id: StreamId, clock: u64) -> SavedStream {
        self.size = self.size_seen();
        self.saving = self.acked.at.offset;
        if matches!(self.phase, Phase::Open | Phase::Ending) {
            self.seen = clock;
        }
        SavedStream {
            stream: id,
            path: self.path.clone(),
            identity: self.identity.clone(),
            at: self.acked.at,
            beyond: self.acked.beyond.clone(),
            size: self.size,
            finished: self.phase == Phase::Finished,
            seen: self.seen,
        }
    }
}

#[cfg(test)]
mod tests;
