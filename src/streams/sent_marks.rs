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
//! copied or compressed before the next run, nothing tells that its bytes are that stream's. This limit is written to the file's header before the old marks
//! are freed, and stays until each new stream has it in a mark of its own, so a second crash in between does not lose
//! it. Files that were created just before the crash and cannot be opened by then are not counted.
//!
//! The file `air` in the state folder, little-endian:
//!
//! ```text
//! 0    "logagent air 2 <boot id>\n", padded with zeros to 56 bytes
//! 56   u64  upper bound of all lines counted as sent again (resent, again, uncertain); the only one that is synced
//! 64   u64  lines resent without a crash (`Board::resent`)
//! 72   u64  1 from the first chunk of a run until its clean end
//! 80   u64  lines sent again that an earlier run may have sent
//! 88   u64  limit of streams that were sent but never saved
//! 96   marks of 16 bytes: u64 stream, u64 limit; both 0: free
//! ```
//!
//! Marks are not synced, because a kill does not lose the page cache. The word at 72 is synced at the first chunk and
//! at the end, so that a power loss is detected; after one, everything a file holds at the next start is in doubt.
//!
//! Counts must also survive a second power loss, so the bound at 56 is raised and synced before a count passes it. It
//! is raised by what this run has counted so far: a start after an unclean end syncs a few times, not once per chunk,
//! and a power loss overstates this run's count by at most a factor of two.

use crate::lock::lock;
use crate::record::StreamId;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

const MAGIC: &str = "logagent air 2 ";
const HEAD: u64 = 96;
const BOUND: u64 = 56;
const RESENT: u64 = 64;
const RUNNING: u64 = 72;
const AGAIN: u64 = 80;
const UNSAVED: u64 = 88;
const SLOT: u64 = 16;

/// A stream that sends fewer chunks than this between two saves has each limit written exactly.
const BUSY: u32 = 4;
/// A limit is written ahead by at most this many bytes.
const MOST_AHEAD: u64 = 64 << 10;

/// All sent marks of one state folder.
#[derive(Debug)]
pub struct SentMarks {
    /// `None`: nothing survives a kill.
    file: Option<File>,
    /// Empty if the kernel does not report a boot id.
    boot: String,
    slots: Mutex<Places>,
    counts: Mutex<Counts>,
    /// Bytes written.
    written: AtomicU64,
    /// `counts.again`, for the status: `counts` is locked while the disk is written.
    again: AtomicU64,
    /// When the last chunk's write began, in ms after `opened`, plus 1; 0 when it has returned.
    writing: AtomicU64,
    opened: Instant,
    /// A write failed, so the file is empty, or says too little.
    broken: AtomicBool,
    /// That was logged.
    reported: AtomicBool,
    /// The first chunk of this run has been noted.
    began: Once,
    /// Lines sent again are not duplicates, because the broker deduplicates them.
    recognized: AtomicBool,
    /// The file as a power loss would leave it.
    #[cfg(test)]
    synced: Mutex<Vec<u8>>,
}

/// Lines that may be stored more than once, over all runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
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

impl Counts {
    pub fn of(again: u64, resent: u64, uncertain: u64) -> Counts {
        Counts { again, resent, uncertain, ..Counts::default() }
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

/// The content of `air` when it was opened.
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
    pub fn counts(&self, known: Counts) -> Counts {
        let mut counts = Counts { resent: known.resent.max(self.resent), ..known };
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

/// The file's counts of lines resent without a crash and after one; zeros if it is not ours.
pub fn totals(bytes: &[u8]) -> (u64, u64) {
    if is_ours(bytes) { (word(bytes, RESENT), word(bytes, AGAIN)) } else { (0, 0) }
}

fn is_ours(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC.as_bytes()) && bytes.len() >= HEAD as usize
}

impl SentMarks {
    /// Without a file: nothing survives a restart.
    pub fn nowhere() -> SentMarks {
        SentMarks::with(None, "", Places::default(), false)
    }

    fn with(file: Option<File>, boot: &str, slots: Places, recognized: bool) -> SentMarks {
        SentMarks {
            file,
            boot: boot.into(),
            slots: Mutex::new(slots),
            counts: Mutex::default(),
            written: AtomicU64::new(0),
            again: AtomicU64::new(0),
            writing: AtomicU64::new(0),
            opened: Instant::now(),
            broken: AtomicBool::new(false),
            reported: AtomicBool::new(false),
            began: Once::new(),
            recognized: AtomicBool::new(recognized),
            #[cfg(test)]
            synced: Mutex::default(),
        }
    }

    /// Opens `file` (readable and writable). `boot` is empty if the kernel does not report a boot id. With
    /// `recognized` (exactly-once), nothing counts as duplicated.
    pub fn open(mut file: File, boot: &str, recognized: bool) -> io::Result<(SentMarks, FoundMarks)> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let same_boot = !boot.is_empty() && bytes.starts_with(&head(boot));
        if !is_ours(&bytes) || !(same_boot || word(&bytes, RUNNING) == 0) {
            let mut found = FoundMarks { stale: true, ..FoundMarks::default() };
            if is_ours(&bytes) {
                // Counts only rise, so each value was correct at some time.
                (found.resent, found.again) = (word(&bytes, RESENT), word(&bytes, AGAIN));
                found.bound = word(&bytes, BOUND);
            }
            return Ok((SentMarks::with(Some(file), boot, Places::default(), recognized), found));
        }
        let unsaved = word(&bytes, UNSAVED);
        let mut slots = Places { len: (bytes.len() as u64 - HEAD) / SLOT, unsaved, ..Places::default() };
        for index in 0..slots.len {
            let at = HEAD + index * SLOT;
            let stream = StreamId(word(&bytes, at));
            let place = MarkPlace { index, limit: word(&bytes, at + 8), taken: None };
            if (stream.0, place.limit) == (0, 0) {
                slots.free.push(index);
            } else {
                slots.places.insert(stream, place);
            }
        }
        let found = FoundMarks {
            trusted: true,
            stale: !same_boot,
            limits: slots.places.iter().map(|(stream, place)| (*stream, place.limit)).collect(),
            again: word(&bytes, AGAIN),
            resent: word(&bytes, RESENT),
            bound: word(&bytes, BOUND),
            unsaved,
        };
        let marks = SentMarks::with(Some(file), boot, slots, recognized);
        marks.count_from(found.counts(Counts::default()));
        Ok((marks, found))
    }

    /// See [`FoundMarks::counts`]. Call before any slot is taken.
    pub fn count_from(&self, counts: Counts) {
        // An earlier run's unused reserve is dropped.
        *lock(&self.counts) = Counts { bound: counts.sum(), began_at: counts.sum(), ..counts };
        self.again.store(counts.again, Relaxed);
    }

    /// Updates the counts and writes them, raising the bound first if necessary. The lock is held throughout, so a
    /// lower number is never written last.
    fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = lock(&self.counts);
        let before = *counts;
        change(&mut counts);
        self.again.store(counts.again, Relaxed);
        let sum = counts.sum();
        let passed = sum > counts.bound;
        if passed {
            counts.bound = sum.saturating_add(before.sum().saturating_sub(counts.began_at));
            self.write(BOUND, &counts.bound.to_le_bytes());
        }
        for (at, was, is) in [(AGAIN, before.again, counts.again), (RESENT, before.resent, counts.resent)] {
            if was != is {
                self.write(at, &is.to_le_bytes());
            }
        }
        if passed {
            self.sync();
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
        let mut bytes = self.header(&lock(&self.counts), 0, unsaved);
        for (stream, limit) in limits {
            slots.places.insert(stream, MarkPlace { index: slots.len, limit, taken: None });
            bytes.extend_from_slice(&record(stream, limit));
            slots.len += 1;
        }
        *lock(&self.slots) = slots;
        if let Some(file) = &self.file {
            // Rewritten in place, because a power loss at any step must not lose the counts. A file that is cut short
            // still says that a run of another boot did not end, so it is not trusted; the header that assigns it to
            // this boot is written last.
            let head = HEAD as usize;
            let is_new = file.metadata().is_ok_and(|m| m.len() < HEAD);
            let unended = match is_new {
                true => Ok(()),
                false => file.write_all_at(&1u64.to_le_bytes(), RUNNING).and_then(|()| file.sync_data()),
            };
            let done = unended.and_then(|()| file.write_all_at(&bytes[head..], HEAD));
            let done = done.and_then(|()| file.set_len(bytes.len() as u64));
            self.check(done.and_then(|()| file.write_all_at(&bytes[..head], 0)));
            self.written.fetch_add(bytes.len() as u64, Relaxed);
            self.sync(); // a header on disk without its slots would understate the limits
        }
    }

    fn header(&self, counts: &Counts, running: u64, unsaved: u64) -> Vec<u8> {
        let mut bytes = head(&self.boot);
        let words = [counts.bound, counts.resent, running, counts.again, unsaved];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes
    }

    /// Writes the whole file again after a write has failed: a save has succeeded since.
    fn rewrite(&self, file: &File) {
        if file.set_len(0).is_err() {
            return;
        }
        self.began.call_once(|| {}); // the header says so
        let slots = lock(&self.slots);
        self.broken.store(false, Relaxed); // from now on, each chunk writes its limit
        for (stream, place) in &slots.places {
            let reach = place.taken.as_ref().map(|of| lock(&of.reach));
            let limit = reach.as_ref().map_or(place.limit, |reach| reach.limit);
            self.write(HEAD + place.index * SLOT, &record(*stream, limit));
        }
        // Without it, the file is not trusted.
        let counts = lock(&self.counts);
        self.write(0, &self.header(&counts, 1, slots.unsaved));
        self.sync();
        if !self.is_broken() {
            self.reported.store(false, Relaxed);
            log::info!("`air` in the state folder is written again");
        }
    }

    /// The run ended and `offsets` is saved and synced.
    pub fn end(&self) {
        self.settle();
        if self.began.is_completed() {
            self.write(RUNNING, &0u64.to_le_bytes());
            self.sync();
        }
    }

    fn sync(&self) {
        if let Some(file) = self.file.as_ref().filter(|_| !self.is_broken()) {
            self.check(file.sync_data());
            #[cfg(test)]
            self.keep_synced(file);
        }
    }

    #[cfg(test)]
    fn keep_synced(&self, file: &File) {
        let mut bytes = vec![0; file.metadata().map_or(0, |m| m.len() as usize)];
        if file.read_exact_at(&mut bytes, 0).is_ok() {
            *lock(&self.synced) = bytes;
        }
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
            self.write(HEAD + place.index * SLOT, &record(StreamId(0), 0));
        }
    }

    /// All files of the earlier run have been opened: streams that start from now on were never sent.
    pub fn first_scan_done(&self) {
        self.begins_unsaved(0);
    }

    fn begins_unsaved(&self, limit: u64) {
        if std::mem::replace(&mut lock(&self.slots).unsaved, limit) != limit {
            self.write(UNSAVED, &limit.to_le_bytes());
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
            self.write(HEAD + index * SLOT, &record(stream, limit));
        }
        SentMark { marks: self.clone(), index, of }
    }

    /// Brings back the limits that were written ahead. Called after each save.
    pub fn settle(&self) {
        if let Some(file) = self.file.as_ref().filter(|_| self.is_broken()) {
            self.rewrite(file);
        }
        for place in lock(&self.slots).places.values() {
            let Some(of) = &place.taken else { continue };
            let mut reach = lock(&of.reach);
            let sent = reach.sent;
            if reach.limit > sent {
                reach.limit = sent;
                self.write(HEAD + place.index * SLOT + 8, &sent.to_le_bytes());
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
            self.write(HEAD + place.index * SLOT, &record(StreamId(0), 0));
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

    /// A limit could not be written, so the file is no longer reliable.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Relaxed)
    }

    /// Bytes written to the file in this run.
    pub fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        if let Some(file) = self.file.as_ref().filter(|_| !self.is_broken()) {
            self.check(file.write_all_at(bytes, at));
            self.written.fetch_add(bytes.len() as u64, Relaxed);
        }
    }

    fn check(&self, done: io::Result<()>) {
        let (Err(e), Some(file)) = (done, &self.file) else { return };
        // An empty file means "nothing known", which is true; the old content would understate the limits.
        let _ = file.set_len(0);
        self.broken.store(true, Relaxed);
        if !self.reported.swap(true, Relaxed) {
            log::error!(
                "write `air` in the state folder: {e}; free disk space: until positions are saved again, a crash makes doubled_at_most count every line that is read again"
            );
        }
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
        self.marks.began.call_once(|| {
            self.marks.write(RUNNING, &1u64.to_le_bytes());
            self.marks.sync();
        });
        let mut reach = lock(&self.of.reach);
        reach.sent = reach.sent.max(end);
        reach.chunks = reach.chunks.saturating_add(1);
        if end > reach.limit {
            reach.limit = end.saturating_add(reach.ahead);
            self.marks.write(HEAD + self.index * SLOT + 8, &reach.limit.to_le_bytes());
        }
        drop(reach);
        if start < self.of.doubtful {
            self.marks.count(|c| c.again = c.again.saturating_add(lines));
        }
    }
}

fn head(boot: &str) -> Vec<u8> {
    let mut head = format!("{MAGIC}{boot}\n").into_bytes();
    head.resize(BOUND as usize, 0);
    head
}

fn record(stream: StreamId, limit: u64) -> [u8; SLOT as usize] {
    let mut r = [0; SLOT as usize];
    for (to, word) in r.chunks_exact_mut(8).zip([stream.0, limit]) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    r
}

fn word(bytes: &[u8], at: u64) -> u64 {
    let at = at as usize;
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests;
