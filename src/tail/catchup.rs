//! Catches up with files that were rotated, copied or compressed while no tail was watching them.
//!
//! First it searches for known streams ([`super::find`]), then it reads unread siblings, oldest first, then the live
//! file. Bytes that can no longer be found are reported as lost.

use super::assign::{FileVerdict, Wait};
use super::content::mark_at;
use super::find::SearchResult;
use super::gz::Gz;
use super::identity::{self, Look, nanos};
use super::known::{Claim, Entry, StreamUse};
use super::open::{Bytes, Open};
use super::siblings::{self, Packed, Sibling};
use super::survey::{PathFile, Scope, SiblingAge, Survey, second};
use super::{Halt, Tail, known};
use crate::packed::packing;
use crate::record::{Closed, Ending, Identity, Mark, Point, StreamId};
use log::{info, warn};
use std::fs::File;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

impl Tail<'_> {
    /// The first look at the path. `Some`: repeat it after this time.
    pub(super) fn begin(&mut self) -> Result<Option<Duration>, Halt> {
        match packing(&self.o.path) {
            Packed::Plain => self.begin_plain().map(|()| None),
            _ => self.begin_packed(),
        }
    }

    fn begin_plain(&mut self) -> Result<(), Halt> {
        let known = || self.known.of(&self.o.path);
        let history = self.history.get_or_insert_with(known).clone();
        let at_path = match identity::look_at(&self.o.path)? {
            Some(look) => match identity::open(&self.o.path) {
                Ok(opened) => Some(opened),
                // A new stream at the path cannot be opened: still read the rotated files.
                Err(e)
                    if !history.is_empty()
                        && self.o.give_up.is_none()
                        && self.known.get(&look.identity, &self.o.path).is_none() =>
                {
                    self.path_cannot_be_opened(&e);
                    None
                }
                Err(e) => return Err(e.into()),
            },
            None => None,
        };
        if history.is_empty() {
            return match at_path {
                Some((file, look)) => self.begin_unknown_path(file, look),
                None => self.unread_siblings(&self.since()),
            };
        }
        let (mut live, mut rewritten) = (None, None);
        if let Some((file, look)) = at_path {
            match self.known.claim(&look, &self.o.path) {
                Claim::Anothers => self.leave_to_another(),
                Claim::Known(entry) if entry.has_bytes_in(&file, &look)? => {
                    live = Some((file, look, Some(entry)))
                }
                Claim::Known(entry) if self.was_read(&file, &look)? => {
                    self.follow_copy(file, &look, entry)?
                }
                Claim::Known(entry) => {
                    rewritten = Some(entry.stream);
                    self.holding(Some(&file), |tail| tail.rewritten(entry))?;
                    live = Some((file, look, None));
                }
                Claim::New => {
                    let entry = self.copied_up(&history, &file, &look)?;
                    live = Some((file, look, entry));
                }
            }
        }
        let at_path = live.as_ref().map(|(file, ..)| file);
        self.holding(at_path, |tail| tail.read_history(&history, rewritten))?;
        let Some((file, look, entry)) = live else { return Ok(()) };
        match entry {
            Some(entry) => self.resume(file, look, entry),
            None if rewritten.is_some() => self.read_rewritten(file, &look),
            None => self.read_new(file, &look, 0),
        }
    }

    /// Finds the unfinished streams of earlier runs, except this one, and then what was rotated since.
    fn read_history(&mut self, history: &[Entry], but: Option<StreamId>) -> Result<(), Halt> {
        for entry in history.iter().filter(|e| !e.finished && but != Some(e.stream)) {
            // `take` refuses streams that are open by now.
            let Some(entry) = self.known.take(entry.stream, &entry.identity) else { continue };
            match entry.size {
                0 if self.find(&entry, None)? != SearchResult::Found => self.lose(&entry, "")?,
                0 => {}
                _ => self.find_or_miss(entry, "it is gone")?,
            }
        }
        let last = oldest(history.iter().rev().take(RECENT)).cloned().unwrap_or_else(|| self.since());
        self.unread_siblings(&last)
    }

    /// The stream's file has different bytes now: continue in a copy, if there is one.
    pub(super) fn rewritten(&mut self, entry: Entry) -> Result<(), Halt> {
        if entry.finished {
            self.known.release(entry.stream, entry.at, entry.size, entry.modified, true);
            return Ok(());
        }
        let origin = self.origin(entry.stream, entry.at.offset, entry.size, u64::MAX);
        self.find_or_await(entry, origin, REWRITTEN)
    }

    /// The stream this file had before overlayfs copied it to the upper layer at the first write: the inode stays the same,
    /// the birth time changes.
    fn copied_up(&self, history: &[Entry], file: &File, look: &Look) -> Result<Option<Entry>, Halt> {
        let Identity { ino, born, .. } = look.identity;
        // After a remount the upper file may have an inode of its own.
        let is_it = |e: &&Entry| e.identity.ino == ino || born.is_some() && e.identity.born == born;
        let was = history.iter().rev().filter(|e| !e.finished && e.proof().offset > 0).find(is_it);
        let Some(was) = was else { return Ok(None) };
        if !identity::is_on_overlay(file) || !was.has_bytes_in(file, look)? {
            return Ok(None);
        }
        Ok(self.known.take(was.stream, &look.identity))
    }

    /// Continues the live stream if the file at the path is the overlayfs copy of its file, see [`Tail::copied_up`].
    /// The open file is the lower one, which receives no more writes.
    pub(super) fn follow_copy_up(&mut self, at_path: &Look) -> Result<bool, Halt> {
        let is_it = |o: &Open| o.live && o.identity.ino == at_path.identity.ino && o.links > 0;
        let Some(i) = self.open.iter().position(is_it) else { return Ok(false) };
        let Ok((file, look)) = identity::open(&self.o.path) else { return Ok(false) };
        if look.identity != at_path.identity
            || !identity::is_on_overlay(&file)
            || !self.open[i].continue_in(file, &look, self.now)?
        {
            return Ok(false);
        }
        let Open { origin, at, .. } = &self.open[i];
        self.known.found_again(origin.stream, &look.identity);
        self.out.open(origin.opened(look.identity.clone(), *at));
        Ok(true)
    }

    /// A path with no known stream: `start` says where to begin, and existing siblings are old.
    fn begin_unknown_path(&mut self, file: File, look: Look) -> Result<(), Halt> {
        match self.known.claim(&look, &self.o.path) {
            Claim::Anothers => {
                self.leave_to_another();
                return Ok(());
            }
            Claim::Known(entry) => return self.resume(file, look, entry), // it had another name
            Claim::New => {}
        }
        let since = self.o.since;
        let list = match siblings::list(&self.o.path) {
            // A folder that cannot be listed counts as having no siblings.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Vec::new(),
            list => list?,
        };
        // Files with a tail of their own are left to that tail. Oldest first, because the oldest entries are dropped
        // first.
        let is_old = |s: &&Sibling| !s.look.is_since(since) && !self.is_followed(&s.path);
        let old: Vec<&Sibling> = list.iter().filter(is_old).collect();
        for old in &old[old.len().saturating_sub(OLD_SIBLINGS)..] {
            if self.known.get(&old.look.identity, &self.o.path).is_none()
                && old.look.identity != look.identity
            {
                let file = identity::open(&old.path).ok().filter(|(_, l)| l.identity == old.look.identity);
                self.note_as_read(old, file.as_ref().map(|(file, _)| file))?;
            }
        }
        let since = self.since();
        self.holding(Some(&file), |tail| tail.unread_siblings(&since))?;
        let offset = self.o.start.offset(&file, look.size)?;
        self.read_new(file, &look, offset)
    }

    /// Files newer than this were created, and perhaps rotated, before the first look.
    fn since(&self) -> Entry {
        Entry::of(Identity { born: Some(self.o.since), ..Identity::default() })
    }

    /// Marks a sibling as read: it existed before the first look, or its contents were read elsewhere.
    pub(super) fn note_as_read(&mut self, old: &Sibling, file: Option<&File>) -> Result<(), Halt> {
        let offset = old.look.size;
        let mark = match file {
            Some(file) if old.packed == Packed::Plain => mark_at(file, offset)?,
            _ => Mark::default(),
        };
        self.note(&old.look, Point { offset, mark, ..Point::default() });
        Ok(())
    }

    /// A stream that was read to its end is in another file now. After a crash its unacknowledged bytes are read from there.
    pub(super) fn move_on(&mut self, read: &Entry, look: &Look) {
        self.known.found_again(read.stream, &look.identity);
        self.tell_finished(read.stream, look, read.at);
    }

    /// Registers a file as read up to `at`, which is its end.
    pub(super) fn note(&self, look: &Look, at: Point) {
        let Some(Entry { stream, .. }) = self.known.begin_if_new(look, &self.o.path) else { return };
        self.known.release(stream, at, at.offset, look.modified, true);
        self.tell_finished(stream, look, at);
    }

    /// Tells the registry that the stream is in this file and ends at `at`.
    fn tell_finished(&self, stream: StreamId, look: &Look, at: Point) {
        let origin = self.origin(stream, at.offset, at.offset, at.offset);
        self.out.open(origin.opened(look.identity.clone(), at));
        self.out.close(Closed { stream, why: Ending::Finished });
    }

    /// After a rotation: finds siblings that appeared between two looks. `again`: the new live file is open, and the file before
    /// it may be closed already.
    pub(super) fn catch_up(&mut self, again: bool) -> Result<(), Halt> {
        self.see_truncations()?; // a copy can only be recognized by the stream it copies
        let known = self.known.of(&self.o.path);
        let open = self.open.iter().filter(|o| !(again && o.live)).filter_map(|o| {
            let entry = known.iter().find(|e| e.stream == o.origin.stream)?;
            Some(Entry { modified: o.modified, size: o.size, ..entry.clone() })
        });
        let open: Vec<Entry> = open.collect();
        let last = oldest(open.iter()).or_else(|| oldest(known.iter().rev().take(RECENT))).cloned();
        let last = last.unwrap_or_else(|| self.since());
        self.unread_siblings(&last)
    }

    /// After a truncation: reads copies that were made since the last look. A log that is copied and truncated more than
    /// once between two looks leaves lines that are in a copy alone. Older copies are not examined: one of a few lines
    /// that was made before the last lines read cannot be told from new lines.
    pub(super) fn read_copies(&mut self, since: SystemTime) -> Result<(), Halt> {
        let since = (since - CLOCK_TICK).duration_since(UNIX_EPOCH).unwrap_or_default();
        let born = Some((since.as_secs() as i64, since.subsec_nanos()));
        self.unread_siblings(&Entry::of(Identity { born, ..Identity::default() }))
    }

    /// Reads every unread sibling that is newer than `last`, oldest first.
    fn unread_siblings(&mut self, last: &Entry) -> Result<(), Halt> {
        self.listed(|tail| {
            let survey = tail.survey(PathFile::LeftOut, Scope::Log, SiblingAge::NewerThan(last))?;
            for (sibling, verdict) in survey.iter() {
                // A file with a tail of its own is read there.
                if !tail.is_followed(&sibling.path) {
                    tail.read_unfollowed(sibling, verdict, &survey)?;
                }
            }
            Ok(false)
        })
        .map(drop)
    }

    fn read_unfollowed(
        &mut self,
        sibling: &Sibling,
        verdict: FileVerdict,
        survey: &Survey,
    ) -> Result<(), Halt> {
        let entry = survey.entry(verdict);
        match (verdict, entry) {
            (FileVerdict::Own(_), Some(entry)) => self.continue_after_late_write(sibling, entry).map(drop),
            (FileVerdict::Continues(_), Some(entry)) if entry.finished => {
                self.continue_finished(sibling, entry).map(drop)
            }
            (FileVerdict::Read(_), Some(entry)) if entry.finished => {
                let is_found = |s: &Sibling| s.packed != Packed::Plain && s.look.identity == entry.identity;
                match sibling.packed {
                    Packed::Gzip if !survey.iter().any(|(s, _)| is_found(s)) => {
                        self.move_on(entry, &sibling.look);
                        Ok(())
                    }
                    _ => self.note_unfollowed(sibling),
                }
            }
            (FileVerdict::New, _)
                if sibling.packed == Packed::Other && self.was_read_before_packed(sibling, survey) =>
            {
                self.note_unfollowed(sibling)
            }
            (FileVerdict::New, _) => self.read_unread(sibling),
            // This tail's own files have just been checked.
            (FileVerdict::Wait(Wait::Unseen(_)), Some(entry)) if entry.path == self.o.path => {
                self.read_unread(sibling)
            }
            (FileVerdict::Wait(Wait::Empty), _) => self.note_unfollowed(sibling),
            (FileVerdict::Wait(Wait::Incomplete | Wait::Unseen(_)), _) => {
                self.look_again = Some(self.now + Duration::from_secs(1));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn read_unread(&mut self, sibling: &Sibling) -> Result<(), Halt> {
        match self.open_sibling(sibling)? {
            Some((file, look)) => self.read_sibling(sibling, file, &look),
            None => Ok(()),
        }
    }

    fn note_unfollowed(&mut self, sibling: &Sibling) -> Result<(), Halt> {
        let Some((file, look)) = self.open_sibling(sibling)? else { return Ok(()) };
        self.note_as_read(&Sibling { look, ..sibling.clone() }, Some(&file))
    }

    /// For an unsupported format: whether this file most likely is a stream that was read to its end, because that
    /// stream was last written in the same second (bzip2 keeps whole seconds), or is finished and missing.
    fn was_read_before_packed(&self, sibling: &Sibling, survey: &Survey) -> bool {
        let packed = second(sibling.look.modified);
        let saved = self.known.saved_at.map_or(0, |(s, _)| s);
        let mut kin = survey.entries.iter().filter(|e| siblings::are_kin(&e.path, &self.o.path));
        let is_missing = |e: &Entry| {
            let last = if e.modified == 0 { saved } else { second(e.modified) };
            e.at.offset >= e.size && packed <= last
        };
        kin.any(|e| e.finished && second(e.modified) == packed) || self.not_open().any(is_missing)
    }

    /// Reads an unread file from its beginning.
    pub(super) fn read_sibling(&mut self, sibling: &Sibling, file: File, look: &Look) -> Result<(), Halt> {
        let (bytes, limit, size) = match sibling.packed {
            Packed::Plain => (Bytes::Plain(file.into()), look.size, look.size),
            Packed::Gzip => {
                let (size, _) = self.known.unpacked.end(&file, look).unwrap_or_default();
                (Bytes::Gz(Box::new(Gz::new(file))), u64::MAX, size)
            }
            Packed::Other => {
                let path = sibling.path.display();
                warn!("{path}: may contain unread lines, but its compression format is not supported");
                return self.note_as_read(sibling, Some(&file));
            }
        };
        let Some(entry) = self.known.begin_if_new(look, &self.o.path) else { return Ok(()) };
        if sibling.path != self.o.path {
            let (path, rotated) = (self.o.path.display(), sibling.path.display());
            info!("{path}: reading {rotated}, which was rotated before it was read");
        }
        let entry = Entry { size, ..entry };
        let taken = self.start_reading(bytes, &Look { size: limit, ..look.clone() }, entry)?;
        debug_assert!(taken.is_some(), "offset 0 matches every file");
        Ok(())
    }

    /// A rotated file that was closed, and that a late writer has appended to.
    fn continue_after_late_write(&mut self, sibling: &Sibling, entry: &Entry) -> Result<bool, Halt> {
        let has_grown = entry.finished && entry.path == self.o.path && sibling.look.size > entry.at.offset;
        if !has_grown || sibling.packed != Packed::Plain || !matches!(entry.reader, StreamUse::Free) {
            return Ok(false);
        }
        let Some((file, look)) = self.open_sibling(sibling)? else { return Ok(false) };
        if !entry.has_bytes_in(&file, &look)? {
            return Ok(false);
        }
        self.continue_finished(sibling, entry)
    }

    fn continue_finished(&mut self, sibling: &Sibling, entry: &Entry) -> Result<bool, Halt> {
        let Some(entry) = self.known.take_for(entry.stream, &sibling.look.identity, &self.o.path) else {
            return Ok(false);
        };
        let has_bytes_of = self.continue_in(sibling, &entry);
        if !matches!(has_bytes_of, Ok(true)) {
            // It was moved or truncated meanwhile: it still counts as read to its end.
            self.known.release(entry.stream, entry.at, entry.size, entry.modified, true);
        }
        has_bytes_of
    }

    /// Whether an unread file is newer than the last known one: by birth time, where the file system keeps one. A compressed
    /// file is born at compression; its modification time is that of its lines.
    ///
    /// If the file at the path is older than files known before it, the clock was set back in between and times prove
    /// nothing. In that case everything older than the file at the path counts as new. The files that existed at the initial
    /// scan are known anyway.
    pub(super) fn is_newer(&self, sibling: &Sibling, last: &Entry, live: Option<&Look>) -> bool {
        let Sibling { packed, look, .. } = sibling;
        let newer = |look: &Look, packed: Packed| match (last.identity.born, look.identity.born, packed) {
            (Some(last), Some(born), Packed::Plain) => born >= last,
            // Compressed just now; the original had its own birth time. The contents show whether it was read.
            (Some(last), Some(born), Packed::Gzip) => born >= last || second(look.modified) >= last.0,
            (Some(last), _, _) => second(look.modified) >= last.0,
            (None, _, _) if last.modified != 0 => second(look.modified) >= second(last.modified),
            (None, _, _) => look.modified >= nanos(self.o.since),
        };
        let nothing_known = last.stream == StreamId(0);
        let clock_was_set_back = |live: &Look| {
            let was_read = self.known.get(&live.identity, &self.o.path).is_some_and(|e| e.at.offset > 0);
            let is_odd = !newer(live, Packed::Plain)
                || live.made() < self.known.since
                || second(live.modified) < live.made().0;
            is_odd && !nothing_known && !was_read
        };
        let older_than = |live: &Look| match packed {
            Packed::Plain => look.made() <= live.made(),
            _ => second(look.modified) <= second(live.modified),
        };
        newer(look, *packed) || live.is_some_and(|live| clock_was_set_back(live) && older_than(live))
    }
}

/// The clock of file times may be this far behind: it advances with the kernel's timer interrupt (`CONFIG_HZ`, at least 100).
const CLOCK_TICK: Duration = Duration::from_millis(20);

/// How many recent known files a sibling is compared with. More than one, because a crash may have interrupted a
/// rotation.
const RECENT: usize = 8;

fn oldest<'a>(entries: impl Iterator<Item = &'a Entry>) -> Option<&'a Entry> {
    entries.min_by_key(|e| (e.identity.born, e.modified))
}

pub(super) const TRUNCATED: &str = "it was truncated";
pub(super) const REWRITTEN: &str = "it was truncated or rewritten while the agent was not reading it";

/// Siblings registered at the initial scan; older ones are recognized by their times.
const OLD_SIBLINGS: usize = known::FINISHED_PER_PATH;
