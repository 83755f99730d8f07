//! Sent marks: a persistent high-water mark per stream of what may have been sent, written before sending. Delivery
//! does not need the marks; they make `doubled_at_most` correct after a crash.
//!
//! The producer raises the stream's mark to at least the end of each chunk before the chunk is first sent
//! ([`SentMark::raise`]). A write costs more CPU than anything else on a line's way (18 µs on ext4, of some 100 µs a line at
//! 100 lines/s), so the mark of a busy stream runs ahead by what the stream sent between the last two saves, and each save
//! brings it back ([`SentMarks::settle`]): two writes per second instead of one per line. A crash then counts at most those
//! bytes' lines too many.
//!
//! However a run ends, the lines between the saved position and the mark may have been stored without an
//! acknowledgement. The next run counts them as it sends them again, and records the count first. A line that was
//! duplicated by two runs in a row is counted twice.
//!
//! A stream opened after the last save is unknown to the next run, which assigns the file a new stream. Nothing links
//! the two, so the highest mark of all unsaved streams applies to every stream opened before the first scan of the
//! patterns is over, capped by the size of its file. The same holds for a stream saved at position 0: if its file is
//! copied or compressed before the next run, nothing tells that its bytes are that stream's. This limit is written to
//! the file's header ([`super::air`]) before the old marks are freed, and stays until each new stream has it in a mark
//! of its own, so a second crash in between does not lose it. Files that were created just before the crash and cannot
//! be opened by then are not counted.
//!
//! Counts must also survive a second power loss, so their bound in the header is raised and synced before a count passes
//! it. It is raised by what this run has counted so far: a start after an unclean end syncs a few times, not once per
//! chunk, and a power loss overstates this run's count by at most a factor of two.

use super::air::{self, AGAIN, AirFile, BOUND, Header, RESENT, UNSAVED};
use crate::lock::lock;
use crate::record::StreamId;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A stream that sends fewer chunks than this between two saves has each limit written exactly.
const BUSY: u32 = 4;
/// A limit is written ahead by at most this many bytes.
const MOST_AHEAD: u64 = 64 << 10;

/// All sent marks of one state folder.
#[derive(Debug)]
pub struct SentMarks {
    file: AirFile,
    slots: Mutex<Places>,
    counts: Mutex<RepeatCounts>,
    /// `counts.again`, for the status: `counts` is locked while the disk is written.
    again: AtomicU64,
    /// When the last chunk's write began, in ms after `opened`, plus 1; 0 when it has returned.
    writing: AtomicU64,
    opened: Instant,
    /// Lines sent again are not duplicates, because the broker deduplicates them.
    recognized: AtomicBool,
}

/// Lines that may be stored more than once, over all runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepeatCounts {
    /// Sent again although an earlier run may have sent them.
    pub again: u64,
    /// Sent again in the same run, without sequence numbers.
    pub resent: u64,
    /// Sent again with different sequence numbers from the first attempt. Persisted in `offsets`.
    pub uncertain: u64,
    /// A synced upper bound of the sum.
    bound: u64,
    /// The sum when this run began.
    began_at: u64,
}

impl RepeatCounts {
    pub fn of(again: u64, resent: u64, uncertain: u64) -> RepeatCounts {
        RepeatCounts { again, resent, uncertain, ..RepeatCounts::default() }
    }

    fn header(&self, unsaved: u64) -> Header {
        Header { bound: self.bound, resent: self.resent, running: 0, again: self.again, unsaved }
    }

    fn sum(&self) -> u64 {
        self.again.saturating_add(self.resent).saturating_add(self.uncertain)
    }
}

#[derive(Debug, Default)]
struct Places {
    places: HashMap<StreamId, MarkPlace>,
    free: Vec<u64>,
    /// Number of slots in the file.
    len: u64,
    /// See [`FoundMarks::unsaved`].
    unsaved: u64,
}

/// A stream's slot in the file.
#[derive(Clone, Debug)]
struct MarkPlace {
    index: u64,
    /// The limit that an earlier run left.
    limit: u64,
    taken: Option<Taken>,
}

/// A slot whose stream is open, or was, in this run.
#[derive(Clone, Debug)]
struct Taken {
    /// Lines that start before this offset may have been sent by an earlier run.
    doubtful: u64,
    reach: Arc<Mutex<Reach>>,
}

/// How far a stream may have been sent, as known here and as written. Invariant: `sent ≤ limit`.
#[derive(Debug)]
struct Reach {
    sent: u64,
    /// The limit in the file.
    limit: u64,
    /// `sent` at the last [`SentMarks::settle`], and the chunks since then.
    settled: u64,
    chunks: u32,
    /// Bytes by which the next limit is written ahead.
    ahead: u64,
}

/// One stream's mark. Raised by the producer.
#[derive(Debug)]
pub struct SentMark {
    marks: Arc<SentMarks>,
    index: u64,
    of: Taken,
}

/// The content of `air` when it was opened, as far as it can be trusted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FoundMarks {
    /// It contains everything the last run wrote, because that run ended cleanly or in this boot. Otherwise nothing
    /// is known.
    pub trusted: bool,
    /// It is from an earlier boot, or damaged: [`SentMarks::begin`] must recreate it.
    pub stale: bool,
    /// Limit by stream.
    pub limits: HashMap<StreamId, u64>,
    again: u64,
    pub resent: u64,
    /// Upper bound of all lines sent again, including uncertain ones. After a power loss it is the only reliable
    /// count.
    bound: u64,
    /// The last run's limit for unsaved streams, if it ended before its first scan was over.
    unsaved: u64,
}

impl FoundMarks {
    /// The counts to continue from, given `known` from `offsets`.
    pub fn counts(&self, known: RepeatCounts) -> RepeatCounts {
        let mut counts = RepeatCounts { resent: known.resent.max(self.resent), ..known };
        counts.again = counts.again.max(self.again);
        if !self.trusted {
            counts.again += self.bound.saturating_sub(counts.sum());
        }
        counts
    }

    /// The highest limit of streams whose bytes the next run may read as a new stream: those that were never saved
    /// (`next` is the first such stream id), and the `untouched`, saved before anything was acknowledged.
    pub fn unsaved(&self, next: u64, untouched: &HashSet<StreamId>) -> u64 {
        let is_it = |stream: &StreamId| stream.0 >= next || untouched.contains(stream);
        let limits = self.limits.iter().filter(|(stream, _)| is_it(stream)).map(|(_, limit)| *limit);
        limits.fold(self.unsaved, u64::max)
    }
}

impl SentMarks {
    /// Without a file: nothing survives a restart.
    pub fn nowhere() -> SentMarks {
        SentMarks::with(AirFile::new(None, ""), Places::default(), false)
    }

    fn with(file: AirFile, slots: Places, recognized: bool) -> SentMarks {
        SentMarks {
            file,
            slots: Mutex::new(slots),
            counts: Mutex::default(),
            again: AtomicU64::new(0),
            writing: AtomicU64::new(0),
            opened: Instant::now(),
            recognized: AtomicBool::new(recognized),
        }
    }

    /// Opens `file` (readable and writable). `boot` is empty if the kernel does not report a boot id. With
    /// `recognized` (exactly-once), nothing counts as duplicated.
    pub fn open(mut file: File, boot: &str, recognized: bool) -> io::Result<(SentMarks, FoundMarks)> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let (header, same_boot) = (Header::of(&bytes), air::is_of(&bytes, boot));
        let file = AirFile::new(Some(file), boot);
        // Counts only rise, so each value was correct at some time.
        let counts = FoundMarks {
            again: header.again,
            resent: header.resent,
            bound: header.bound,
            stale: !same_boot,
            ..FoundMarks::default()
        };
        if !air::is_ours(&bytes) || !(same_boot || header.running == 0) {
            let found = FoundMarks { stale: true, ..counts };
            return Ok((SentMarks::with(file, Places::default(), recognized), found));
        }
        let mut slots = Places { unsaved: header.unsaved, ..Places::default() };
        for (stream, limit) in air::marks(&bytes) {
            let index = slots.len;
            if (stream.0, limit) == (0, 0) {
                slots.free.push(index);
            } else {
                slots.places.insert(stream, MarkPlace { index, limit, taken: None });
            }
            slots.len += 1;
        }
        let limits = slots.places.iter().map(|(stream, place)| (*stream, place.limit)).collect();
        let found = FoundMarks { trusted: true, limits, unsaved: header.unsaved, ..counts };
        let marks = SentMarks::with(file, slots, recognized);
        marks.count_from(found.counts(RepeatCounts::default()));
        Ok((marks, found))
    }

    /// See [`FoundMarks::counts`]. Call before any slot is taken.
    pub fn count_from(&self, counts: RepeatCounts) {
        // An earlier run's unused reserve is dropped.
        *lock(&self.counts) = RepeatCounts { bound: counts.sum(), began_at: counts.sum(), ..counts };
        self.again.store(counts.again, Relaxed);
    }

    /// Updates the counts and writes them, raising the bound first if necessary. The lock is held throughout, so a
    /// lower number is never written last.
    fn count(&self, change: impl FnOnce(&mut RepeatCounts)) {
        let mut counts = lock(&self.counts);
        let before = *counts;
        change(&mut counts);
        self.again.store(counts.again, Relaxed);
        let sum = counts.sum();
        let passed = sum > counts.bound;
        if passed {
            counts.bound = sum.saturating_add(before.sum().saturating_sub(counts.began_at));
            self.file.put(BOUND, counts.bound);
        }
        for (at, was, is) in [(AGAIN, before.again, counts.again), (RESENT, before.resent, counts.resent)] {
            if was != is {
                self.file.put(at, is);
            }
        }
        if passed {
            self.file.sync();
        }
    }

    /// The broker will not deduplicate after all. Call before any slot is taken.
    pub fn doubt_all(&self) {
        self.recognized.store(false, Relaxed);
    }

    /// Recreates the file for this boot with the known limits per stream and the limit of unsaved streams
    /// ([`u64::MAX`]: everything that exists when it is opened). Call before any slot is taken.
    pub fn begin(&self, unsaved: u64, limits: impl Iterator<Item = (StreamId, u64)>) {
        let mut slots = Places { unsaved, ..Places::default() };
        let mut marks = Vec::new();
        for (stream, limit) in limits {
            slots.places.insert(stream, MarkPlace { index: slots.len, limit, taken: None });
            marks.extend_from_slice(&air::mark(stream, limit));
            slots.len += 1;
        }
        *lock(&self.slots) = slots;
        self.file.create(lock(&self.counts).header(unsaved), &marks);
    }

    /// Writes the whole file again if a write has failed: a save has succeeded since.
    fn rewrite(&self) {
        let slots = lock(&self.slots);
        if !self.file.empty() {
            return;
        }
        // From now on, each chunk writes its limit.
        for (stream, place) in &slots.places {
            let reach = place.taken.as_ref().map(|of| lock(&of.reach));
            let limit = reach.as_ref().map_or(place.limit, |reach| reach.limit);
            self.file.put_mark(place.index, *stream, limit);
        }
        let counts = lock(&self.counts);
        self.file.complete(counts.header(slots.unsaved));
    }

    /// The run ended and `offsets` is saved and synced.
    pub fn end(&self) {
        self.settle();
        self.file.end_run();
    }

    /// Keeps only the slots selected by `keep` and frees the others. `unsaved` is the result of
    /// [`FoundMarks::unsaved`] for them.
    pub fn retain(&self, unsaved: u64, keep: impl Fn(StreamId) -> bool) {
        self.begins_unsaved(unsaved); // while the slots are still unchanged
        let mut slots = lock(&self.slots);
        let dropped: Vec<MarkPlace> =
            slots.places.extract_if(|stream, _| !keep(*stream)).map(|(_, place)| place).collect();
        slots.free.extend(dropped.iter().map(|place| place.index));
        drop(slots);
        // The next run would mistake them for marks of this run's streams.
        for place in dropped {
            self.file.put_mark(place.index, StreamId(0), 0);
        }
    }

    /// All files of the earlier run have been opened: streams that start from now on were never sent.
    pub fn first_scan_done(&self) {
        self.begins_unsaved(0);
    }

    fn begins_unsaved(&self, limit: u64) {
        if std::mem::replace(&mut lock(&self.slots).unsaved, limit) != limit {
            self.file.put(UNSAVED, limit);
        }
    }

    /// The slot of a stream opened at `at` while its file holds `size` bytes ([`u64::MAX`]: unknown). Returns the same slot
    /// when called again in the same run.
    pub fn take(self: &Arc<Self>, stream: StreamId, at: u64, size: u64) -> SentMark {
        let mut slots = lock(&self.slots);
        let (index, old) = match slots.places.get(&stream) {
            Some(MarkPlace { index, taken: Some(of), .. }) => {
                return SentMark { marks: self.clone(), index: *index, of: of.clone() };
            }
            Some(p) => (p.index, Some(p.limit)),
            None => {
                let index = slots.free.pop().unwrap_or(slots.len);
                slots.len = slots.len.max(index + 1);
                (index, None)
            }
        };
        // What is not in the file yet was not sent, even if the limit was written ahead.
        let limit = old.unwrap_or(slots.unsaved).min(size).max(at);
        let reach = Reach { sent: limit, limit, settled: limit, chunks: 0, ahead: 0 };
        let of = Taken { doubtful: self.in_doubt(limit, at), reach: Arc::new(Mutex::new(reach)) };
        slots.places.insert(stream, MarkPlace { index, limit, taken: Some(of.clone()) });
        drop(slots);
        if old != Some(limit) {
            self.file.put_mark(index, stream, limit);
        }
        SentMark { marks: self.clone(), index, of }
    }

    /// Brings back the limits that were written ahead. Called after each save.
    pub fn settle(&self) {
        self.rewrite();
        for place in lock(&self.slots).places.values() {
            let Some(of) = &place.taken else { continue };
            let mut reach = lock(&of.reach);
            let sent = reach.sent;
            if reach.limit > sent {
                reach.limit = sent;
                self.file.put_limit(place.index, sent);
            }
            reach.ahead = if reach.chunks < BUSY { 0 } else { (sent - reach.settled).min(MOST_AHEAD) };
            (reach.settled, reach.chunks) = (sent, 0);
        }
    }

    /// Lines of a stream opened at `at` are in doubt if they start before the returned offset.
    fn in_doubt(&self, limit: u64, at: u64) -> u64 {
        if limit == at || self.recognized.load(Relaxed) { 0 } else { limit }
    }

    /// The stream is finished, and saved as such.
    pub fn release(&self, stream: StreamId) {
        let mut slots = lock(&self.slots);
        let holders = |place: &MarkPlace| place.taken.as_ref().map_or(0, |of| Arc::strong_count(&of.reach));
        // Besides the place and the progress that is saved, a tail may hold it that is just opening the file again.
        if slots.places.get(&stream).is_some_and(|place| holders(place) > 2) {
            return;
        }
        if let Some(place) = slots.places.remove(&stream) {
            // If it is opened again, it gets another slot: two would contradict each other.
            self.file.put_mark(place.index, StreamId(0), 0);
            slots.free.push(place.index);
        }
    }

    /// Lines are about to be sent again without a crash.
    pub fn resent(&self, lines: u64) {
        self.count(|c| c.resent = c.resent.saturating_add(lines));
    }

    /// Lines are about to be sent again with other numbers.
    pub fn uncertain(&self, lines: u64) {
        self.count(|c| c.uncertain = c.uncertain.saturating_add(lines));
    }

    /// Lines sent again that an earlier run may have sent, over all runs.
    pub fn again(&self) -> u64 {
        self.again.load(Relaxed)
    }

    /// When the write began that a chunk waits for.
    pub fn writing(&self) -> Option<Instant> {
        let since = self.writing.load(Relaxed).checked_sub(1)?;
        Some(self.opened + Duration::from_millis(since))
    }

    /// Bytes written to the file in this run.
    pub fn written(&self) -> u64 {
        self.file.written()
    }
}

impl SentMark {
    /// Lines of a chunk `start..end` are about to be sent for the first time.
    pub fn raise(&self, start: u64, end: u64, lines: u64) {
        let marks = &self.marks;
        marks.writing.store(marks.opened.elapsed().as_millis() as u64 + 1, Relaxed);
        self.raise_to(start, end, lines);
        marks.writing.store(0, Relaxed);
    }

    fn raise_to(&self, start: u64, end: u64, lines: u64) {
        self.marks.file.begin_run();
        let mut reach = lock(&self.of.reach);
        reach.sent = reach.sent.max(end);
        reach.chunks = reach.chunks.saturating_add(1);
        if end > reach.limit {
            reach.limit = end.saturating_add(reach.ahead);
            self.marks.file.put_limit(self.index, reach.limit);
        }
        drop(reach);
        if start < self.of.doubtful {
            self.marks.count(|c| c.again = c.again.saturating_add(lines));
        }
    }
}

#[cfg(test)]
mod tests;
