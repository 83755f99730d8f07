//! Manages streams whose file is not open: those that cannot be found now, and those that wait because too many files are
//! open.

use super::find::SearchResult;
use super::follow::Until;
use super::known::Entry;
use super::open::unread;
use super::{Halt, Tail};
use crate::chunk::Origin;
use crate::record::{Closed, Ending};
use crate::report::Progress;
use log::warn;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A stream whose bytes are not where they should be. A file being moved, a folder that does not answer, or a lack of
/// descriptors does not mean that it is gone. It is lost only after several looks without it.
#[derive(Debug)]
pub struct Absent {
    entry: Entry,
    why: &'static str,
    /// Number of looks that could read the folder and did not find the file.
    not_there: u32,
    looks: u32,
    next: Instant,
    since: Instant,
    /// Something changed: look before the scheduled time, without counting that look.
    nudged: bool,
    progress: Arc<Progress>,
    /// It was truncated: a copy may have a name that is not known yet. No newer file waits for it.
    truncated: Option<Arc<Origin>>,
}

/// A rotated file that is closed because too many others are open.
#[derive(Debug)]
pub struct Shelved {
    entry: Entry,
    progress: Arc<Progress>,
}

impl Absent {
    /// Number of looks before a file is given up, or before newer files stop waiting for it.
    const LOOKS: u32 = 5;
    /// The same for a copy whose name may not be known yet: new names are discovered within moments, or within seconds on a
    /// busy machine.
    const LOOKS_FOR_COPY: u32 = 20;
    const BETWEEN: Duration = Duration::from_millis(500);
    /// Interval between looks once nothing waits for the stream any more.
    const LATER: Duration = Duration::from_secs(10);
    /// How long to wait for a file that is being compressed.
    const COMPRESSION: Duration = Duration::from_secs(60);

    fn holds_up(&self) -> bool {
        self.looks < Self::LOOKS && self.truncated.is_none()
    }
}

impl Tail<'_> {
    /// Retries the search for this stream's file before declaring it lost.
    pub(super) fn miss(&mut self, entry: Entry, why: &'static str) {
        let next = self.now + Absent::BETWEEN;
        let progress = Arc::new(Progress::new(entry.at.offset, entry.size, None));
        progress.belongs(entry.stream, entry.identity.clone());
        self.known.miss(&entry);
        let (since, truncated) = (self.now, None);
        let absent =
            Absent { entry, why, not_there: 0, looks: 0, next, since, nudged: false, progress, truncated };
        self.absent.push(absent);
        self.show();
    }

    /// A truncated file without a known copy: the copy may have a name that another tail has yet to discover. New writes are
    /// not held up by this.
    pub(super) fn await_copy(&mut self, entry: Entry, origin: Arc<Origin>, why: &'static str) {
        self.miss(entry, why);
        if let Some(absent) = self.absent.last_mut() {
            absent.truncated = Some(origin);
        }
    }

    /// At a stop: counts what truncated files lost, unless a copy has appeared.
    pub(super) fn count_truncated(&mut self) -> Result<(), Halt> {
        while let Some(i) = self.absent.iter().position(|a| a.truncated.is_some()) {
            self.absent[i].not_there = Absent::LOOKS_FOR_COPY;
            if !self.look_for(i)? {
                break;
            }
        }
        Ok(())
    }

    /// A new file appeared that may be a copy of a missing stream.
    pub(super) fn look_for_copies(&mut self) {
        self.absent.iter_mut().for_each(|a| a.nudged = true);
    }

    /// The next look for absent streams. `Some`: newer files wait that long for them.
    pub(super) fn find_absent(&mut self) -> Result<Option<Duration>, Halt> {
        let mut i = 0;
        while i < self.absent.len() {
            let is_due = self.absent[i].nudged || self.absent[i].next <= self.now;
            if !is_due || !self.look_for(i)? {
                i += 1;
            }
        }
        let ends = self.o.until == Until::Read;
        let waits = self.absent.iter().filter(|a| a.holds_up() || ends && a.truncated.is_some());
        let waits = waits.map(|a| a.next.saturating_duration_since(self.now));
        Ok(waits.max().map(|w| w.max(Duration::from_millis(1))))
    }

    /// Streams that belong to this tail but have no open file, in their last state.
    pub(super) fn not_open(&self) -> impl Iterator<Item = &Entry> {
        self.absent.iter().map(|a| &a.entry).chain(self.shelved())
    }

    pub(super) fn shelved(&self) -> impl Iterator<Item = &Entry> {
        self.shelf.iter().map(|s| &s.entry)
    }

    /// Progress of all streams of this tail, oldest first, the live one last.
    pub(super) fn progress(&self) -> Vec<Arc<Progress>> {
        let open = |live| self.open.iter().filter(move |o| o.live == live).map(|o| &o.origin.progress);
        let absent = self.absent.iter().map(|a| &a.progress);
        let shelved = self.shelf.iter().map(|s| &s.progress);
        absent.chain(open(false)).chain(shelved).chain(open(true)).cloned().collect()
    }

    /// When to look for an absent stream next.
    pub(super) fn absent_until(&self) -> Option<Instant> {
        self.absent.iter().map(|a| if a.nudged { self.now } else { a.next }).min()
    }

    /// Returns true if it was found or is lost, and has been removed from the list.
    fn look_for(&mut self, i: usize) -> Result<bool, Halt> {
        let entry = self.absent[i].entry.clone();
        if !self.known.take_missing(entry.stream, &self.o.path) {
            self.absent.remove(i); // another tail found it under its own path
            self.show();
            return Ok(true);
        }
        let truncated = self.absent[i].truncated.clone();
        let place = match self.find(&entry, truncated.as_ref()) {
            Err(Halt::Io(e)) => {
                self.trouble(&e);
                SearchResult::NotYet
            }
            place => place?,
        };
        let found = matches!(place, SearchResult::Found | SearchResult::ShortCopy);
        if place == SearchResult::ShortCopy {
            self.ended(&entry, 0)?;
        }
        let now = self.now;
        let absent = &mut self.absent[i];
        let may_come =
            place == SearchResult::NotYet && now.duration_since(absent.since) < Absent::COMPRESSION;
        if !std::mem::take(&mut absent.nudged) || absent.next <= now {
            absent.looks += 1;
            absent.not_there += u32::from(!may_come);
            let soon = absent.holds_up() || absent.truncated.is_some();
            absent.next = now + if soon { Absent::BETWEEN } else { Absent::LATER };
        }
        let ends = self.o.until == Until::Read;
        let most = if absent.truncated.is_some() && !ends { Absent::LOOKS_FOR_COPY } else { Absent::LOOKS };
        if !found && (may_come || absent.not_there < most) {
            return Ok(false);
        }
        let why = self.absent.remove(i).why;
        if !found {
            self.lose(&entry, why)?;
        }
        self.forget_memory();
        self.show();
        Ok(true)
    }

    /// Reports the unread bytes of a stream as lost.
    pub(super) fn lose(&mut self, entry: &Entry, why: &str) -> Result<(), Halt> {
        let at = self.send_from_memory(entry.stream)?.unwrap_or(entry.at);
        let entry = &Entry { at, ..entry.clone() };
        let lost = unread(entry.size, entry.at.offset, &entry.beyond);
        // The stream stays known: if its file returns with a mount or a move, reading continues at its position.
        self.known.release(entry.stream, entry.at, entry.size, entry.modified, true);
        self.known.store.done(entry.stream);
        self.count_lost(lost, why);
        self.out.close(Closed { stream: entry.stream, why: Ending::Truncated { lost } });
        Ok(())
    }

    pub(super) fn count_lost(&self, lost: u64, why: &str) {
        if lost > 0 {
            warn!("{}: {lost} bytes were not read and are lost: {why}", self.o.path.display());
        }
    }

    /// Closes a rotated file for now.
    pub(super) fn shelve(&mut self, i: usize) {
        let open = self.open.remove(i);
        // The stream stays with this tail, so that no other takes it.
        let Some(known) = self.known.of(&self.o.path).into_iter().find(|e| e.stream == open.origin.stream)
        else {
            return;
        };
        let (at, beyond, size, modified) = (open.at, open.beyond(), open.known_size(), open.modified);
        let before = |s: &Shelved| (s.entry.modified, s.entry.stream) < (modified, known.stream);
        let place = self.shelf.partition_point(before);
        let entry = Entry { at, beyond, size, modified, ..known };
        self.shelf.insert(place, Shelved { entry, progress: open.origin.progress.clone() });
        self.say("catching up", None);
    }

    /// Reopens the oldest shelved file.
    pub(super) fn unshelve(&mut self) -> Result<(), Halt> {
        let Some(entry) = self.shelf.front().map(|s| s.entry.clone()) else { return Ok(()) };
        let place = self.find(&entry, None)?;
        self.shelf.pop_front();
        match place {
            SearchResult::Found => self.show(),
            _ => self.miss(entry, "it was removed before there was room to read it"),
        }
        Ok(())
    }
}
