//! Sent marks: how far each stream may have been sent, written down before it is sent, so that a crash leaves it known.
//! Delivery does not need them; they make `doubled_at_most` honest.
//!
//! The producer writes the end of each chunk to the stream's mark before the chunk is first sent ([`SentMark::raise`]). So,
//! however a run ends, the lines from the saved position up to the mark may have been stored without an acknowledgement.
//! The next run counts them as it sends them again, and writes the count down first: a line of which two runs in a row left
//! a copy is counted by both.
//!
//! A stream that was opened after the last save is unknown to the next run, which gives its file a new stream. Nothing says
//! which one, so the highest mark of all such streams applies to every stream that is opened before the first scan of the
//! patterns is over, as far as its file goes. That limit is in the file's head from before the old marks are freed until
//! each of those streams has it in a mark of its own, so a second crash in between does not lose it. Files that cannot be
//! opened by then, and were created just before the crash, are not counted.
//!
//! The file `air` in the state folder, little-endian:
//!
//! ```text
//! 0    "logagent air 2 <boot id>\n", padded with zeros to 56 bytes
//! 56   u64  upper bound of all lines counted as sent again (resent, again, uncertain); the only one that is synced
//! 64   u64  lines resent without a crash (`Board::resent`)
//! 72   u64  1 from the first chunk of a run until its clean end
//! 80   u64  lines sent again that an earlier run may have sent
//! 88   u64  limit of streams that were sent of and never saved
//! 96   marks of 16 bytes: u64 stream, u64 limit; both 0: free
//! ```
//!
//! Places are not synced: a kill does not lose the page cache. The word at 72 is, at the first chunk and at the end, so
//! that a power loss is seen; then all that a file holds at the next start is in doubt.
//!
//! Counts must outlive a second power loss too, so before one passes the bound at 56, the bound is raised and synced. It is
//! raised by what this run has counted already, so a start after an unclean end syncs a few times, not once per chunk, and
//! after a power loss at most twice the lines are counted that this run had counted.

use crate::chunk::StreamId;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

const MAGIC: &str = "logagent air 2 ";
const HEAD: u64 = 96;
const BOUND: u64 = 56;
const RESENT: u64 = 64;
const RUNNING: u64 = 72;
const AGAIN: u64 = 80;
const UNSAVED: u64 = 88;
const SLOT: u64 = 16;

/// All sent marks of one state folder.
#[derive(Debug)]
pub struct SentMarks {
    /// `None`: nothing is remembered over a kill.
    file: Option<File>,
    slots: Mutex<Places>,
    counts: Mutex<Counts>,
    /// Bytes written.
    written: AtomicU64,
    broken: AtomicBool,
    /// The first chunk of this run has been noted.
    began: Once,
    /// Lines that are sent again are not doubled: the broker recognizes them.
    recognized: AtomicBool,
    /// What a power loss would leave.
    #[cfg(test)]
    synced: Mutex<Vec<u8>>,
}

/// Lines that may be stored more than once, over all runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sent again, though an earlier run may have sent them.
    pub again: u64,
    /// Sent again in the same run, without numbers.
    pub resent: u64,
    /// Sent again with other numbers than the first attempt's; its own file is `offsets`.
    pub uncertain: u64,
    /// Synced: the sum is not higher than this.
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
    /// Up to here an earlier run may have sent of a file whose stream begins now.
    unsaved: u64,
}

/// What is known of a stream's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MarkPlace {
    index: u64,
    limit: u64,
    /// Taken in this run: lines that start before this may have been sent by an earlier one.
    doubtful: Option<u64>,
}

/// One stream's mark. Written by the producer.
#[derive(Debug)]
pub struct SentMark {
    marks: Arc<SentMarks>,
    index: u64,
    limit: AtomicU64,
    /// Lines that start before this were possibly sent by an earlier run.
    doubtful: u64,
}

/// What `air` said when it was opened.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FoundMarks {
    /// It holds whatever the last run wrote: that ended cleanly, or in this boot. Else nothing is known.
    pub trusted: bool,
    /// It is of an earlier boot, or damaged: [`SentMarks::begin`] has to make it anew.
    pub stale: bool,
    /// Limit by stream.
    pub limits: HashMap<StreamId, u64>,
    again: u64,
    pub resent: u64,
    /// Of all lines sent again, uncertain ones too; after a power loss no count but this is certain.
    bound: u64,
    /// What the last run had found of unsaved streams, if it ended before first sight was over.
    unsaved: u64,
}

impl FoundMarks {
    /// The counts to go on from, where `offsets` has `known`.
    pub fn counts(&self, known: Counts) -> Counts {
        let mut counts = Counts { resent: known.resent.max(self.resent), ..known };
        counts.again = counts.again.max(self.again);
        if !self.trusted {
            counts.again += self.bound.saturating_sub(counts.sum());
        }
        counts
    }

    /// Highest limit of streams that were never saved: `next` is the first of those.
    pub fn unsaved(&self, next: u64) -> u64 {
        let limits = self.limits.iter().filter(|(stream, _)| stream.0 >= next).map(|(_, limit)| *limit);
        limits.fold(self.unsaved, u64::max)
    }
}

/// What a file says of lines sent again, without a crash and after one; zeros where it is not ours.
pub fn totals(bytes: &[u8]) -> (u64, u64) {
    if is_ours(bytes) { (word(bytes, RESENT), word(bytes, AGAIN)) } else { (0, 0) }
}

fn is_ours(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC.as_bytes()) && bytes.len() >= HEAD as usize
}

impl SentMarks {
    /// Without a file nothing is known over a restart.
    pub fn nowhere() -> SentMarks {
        SentMarks::with(None, Places::default(), false)
    }

    fn with(file: Option<File>, slots: Places, recognized: bool) -> SentMarks {
        SentMarks {
            file,
            slots: Mutex::new(slots),
            counts: Mutex::default(),
            written: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            began: Once::new(),
            recognized: AtomicBool::new(recognized),
            #[cfg(test)]
            synced: Mutex::default(),
        }
    }

    /// Takes up `file` (readable and writable). `boot` is empty where the kernel tells none. `recognized`: with
    /// exactly-once nothing counts as doubled.
    pub fn open(mut file: File, boot: &str, recognized: bool) -> io::Result<(SentMarks, FoundMarks)> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let same_boot = !boot.is_empty() && bytes.starts_with(&head(boot)[..BOUND as usize]);
        if !is_ours(&bytes) || !(same_boot || word(&bytes, RUNNING) == 0) {
            let mut found = FoundMarks { stale: true, ..FoundMarks::default() };
            if is_ours(&bytes) {
                // These only rise, so each was true at some time.
                (found.resent, found.again) = (word(&bytes, RESENT), word(&bytes, AGAIN));
                found.bound = word(&bytes, BOUND);
            }
            return Ok((SentMarks::with(Some(file), Places::default(), recognized), found));
        }
        let unsaved = word(&bytes, UNSAVED);
        let mut slots = Places { len: (bytes.len() as u64 - HEAD) / SLOT, unsaved, ..Places::default() };
        for index in 0..slots.len {
            let at = HEAD + index * SLOT;
            let stream = StreamId(word(&bytes, at));
            let place = MarkPlace { index, limit: word(&bytes, at + 8), doubtful: None };
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
        let air = SentMarks::with(Some(file), slots, recognized);
        air.count_from(found.counts(Counts::default()));
        Ok((air, found))
    }

    /// See [`FoundMarks::counts`]. Before any slot is taken.
    pub fn count_from(&self, counts: Counts) {
        // What an earlier run reserved and did not use is not taken over.
        *self.counts() = Counts { bound: counts.sum(), began_at: counts.sum(), ..counts };
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the counts and writes them down; the bound first, if they pass it. The lock is held meanwhile, so that a
    /// lower number never comes last.
    fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts();
        let before = *counts;
        change(&mut counts);
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

    /// The broker recognizes nothing, after all. Before any slot is taken.
    pub fn doubt_all(&self) {
        self.recognized.store(false, Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the file anew for this boot, with what is known of each stream, and of those that were never saved;
    /// [`u64::MAX`]: all that exists when it is opened. Before any slot is taken.
    pub fn begin(&self, boot: &str, unsaved: u64, limits: impl Iterator<Item = (StreamId, u64)>) {
        let mut slots = Places { unsaved, ..Places::default() };
        let mut bytes = head(boot);
        let counts = *self.counts();
        let words =
            [(BOUND, counts.bound), (RESENT, counts.resent), (AGAIN, counts.again), (UNSAVED, unsaved)];
        for (at, total) in words {
            bytes[at as usize..at as usize + 8].copy_from_slice(&total.to_le_bytes());
        }
        for (stream, limit) in limits {
            slots.places.insert(stream, MarkPlace { index: slots.len, limit, doubtful: None });
            bytes.extend_from_slice(&record(stream, limit));
            slots.len += 1;
        }
        *self.lock() = slots;
        if let Some(file) = &self.file {
            // In place, for a power loss may come at any of these steps and must not take the counts. Cut short, the file says
            // that a run of another boot did not end, so it is not trusted; the head, which makes it this boot's, comes last.
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
            self.sync(); // a head that reached the disk without its slots would say too little
        }
    }

    /// The run ended and `offsets` is saved and synced.
    pub fn end(&self) {
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
            *self.synced.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
        }
    }

    /// Keeps only the slots of streams that `keep` names; the others are free for new ones. `unsaved` is what
    /// [`FoundMarks::unsaved`] says of them.
    pub fn retain(&self, unsaved: u64, keep: impl Fn(StreamId) -> bool) {
        self.begins_unsaved(unsaved); // as long as their slots say so too
        let mut slots = self.lock();
        let dropped: Vec<MarkPlace> =
            slots.places.extract_if(|stream, _| !keep(*stream)).map(|(_, place)| place).collect();
        slots.free.extend(dropped.iter().map(|place| place.index));
        drop(slots);
        // The next run would take them for those of streams of this one.
        for place in dropped {
            self.write(HEAD + place.index * SLOT, &record(StreamId(0), 0));
        }
    }

    /// All files of the earlier run have been opened: what begins from here on was never sent.
    pub fn first_scan_done(&self) {
        self.begins_unsaved(0);
    }

    fn begins_unsaved(&self, limit: u64) {
        if std::mem::replace(&mut self.lock().unsaved, limit) != limit {
            self.write(UNSAVED, &limit.to_le_bytes());
        }
    }

    /// The slot of a stream that is opened at `at` while its file holds `size` bytes. Again in the same run: the same slot.
    pub fn take(self: &Arc<Self>, stream: StreamId, at: u64, size: u64) -> SentMark {
        let mut slots = self.lock();
        let old = slots.places.get(&stream).copied();
        let place = match old {
            Some(p) if p.doubtful.is_some() => p,
            Some(p) => {
                let limit = if p.limit == u64::MAX { size.max(at) } else { p.limit.max(at) };
                MarkPlace { limit, doubtful: Some(self.in_doubt(limit, at)), ..p }
            }
            None => {
                let index = slots.free.pop().unwrap_or(slots.len);
                slots.len = slots.len.max(index + 1);
                let limit = slots.unsaved.min(size).max(at);
                MarkPlace { index, limit, doubtful: Some(self.in_doubt(limit, at)) }
            }
        };
        slots.places.insert(stream, place);
        drop(slots);
        if old.is_none_or(|o| o.limit != place.limit) {
            self.write(HEAD + place.index * SLOT, &record(stream, place.limit));
        }
        SentMark {
            marks: self.clone(),
            index: place.index,
            limit: AtomicU64::new(place.limit),
            doubtful: place.doubtful.unwrap_or_default(),
        }
    }

    /// Lines of a stream that is opened at `at` are in doubt if they start before this.
    fn in_doubt(&self, limit: u64, at: u64) -> u64 {
        if limit == at || self.recognized.load(Relaxed) { 0 } else { limit }
    }

    /// The stream is finished, and saved as such.
    pub fn release(&self, stream: StreamId) {
        let mut slots = self.lock();
        if let Some(place) = slots.places.remove(&stream) {
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
        self.counts().again
    }

    /// A limit could not be written down, so the file says nothing any more.
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
        // An empty file says that nothing is known, which holds; an old one would say too little.
        let _ = file.set_len(0);
        if !self.broken.swap(true, Relaxed) {
            log::error!(
                "write `air` in the state folder: {e}; free its disk: after a crash doubled_at_most will count all that is read again"
            );
        }
    }
}

impl SentMark {
    /// Lines of a chunk `start..end` are about to be sent for the first time.
    pub fn raise(&self, start: u64, end: u64, lines: u64) {
        self.marks.began.call_once(|| {
            self.marks.write(RUNNING, &1u64.to_le_bytes());
            self.marks.sync();
        });
        if end > self.limit.load(Relaxed) {
            self.limit.store(end, Relaxed);
            self.marks.write(HEAD + self.index * SLOT + 8, &end.to_le_bytes());
        }
        if start < self.doubtful {
            self.marks.count(|c| c.again = c.again.saturating_add(lines));
        }
    }
}

fn head(boot: &str) -> Vec<u8> {
    let mut head = format!("{MAGIC}{boot}\n").into_bytes();
    head.truncate(RESENT as usize);
    head.resize(HEAD as usize, 0);
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
