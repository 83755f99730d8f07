//! Opens and closes files: executes the steps that [`super::follow`] returned.

use super::content::{mark_at, point_at};
use super::identity::Look;
use super::known::{Claim, Entry};
use super::open::{Bytes, Open};
use super::siblings::{Packed, Sibling};
use super::{Halt, Tail, Until, catchup, gz, identity, open, siblings};
use crate::chunk::Origin;
use crate::lock::lock;
use crate::record::{Closed, Ending, Identity, Point, StreamId};
use log::warn;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

impl Tail<'_> {
    /// Starts reading a stream that `known` has marked as open: registers it, and inserts its file by age, before the
    /// live one.
    pub(super) fn start_reading(
        &mut self,
        bytes: Bytes,
        look: &Look,
        e: Entry,
    ) -> Result<Option<usize>, Halt> {
        let size = if look.size == u64::MAX { e.size.max(e.at.offset) } else { look.size }; // unknown at first for a .gz
        let origin = self.origin(e.stream, e.at.offset, size, look.size);
        let Some(mut open) = Open::new(bytes, look, origin.clone(), e.at, e.beyond.clone(), self.now)? else {
            return Ok(None);
        };
        open.owed = look.size;
        open.in_hole |= self.restarted == Some(e.stream) && e.at.offset == 0;
        if self.o.until == Until::Read {
            open.limit = look.size;
        }
        self.out.open(origin.opened(look.identity.clone(), open.at));
        self.known.store.claimed(e.stream);
        self.leaving.retain(|left| left.stream != e.stream);
        self.known.reads(e.stream, open.at, &open.head, open.file());
        // Oldest first; the live file is last.
        let after = |o: &Open| o.live || (o.modified, o.origin.stream) > (look.modified, e.stream);
        let place = self.open.iter().position(after).unwrap_or(self.open.len());
        self.open.insert(place, open);
        self.say("following", None);
        Ok(Some(place))
    }

    pub(super) fn start_reading_live(&mut self, file: File, look: &Look, e: Entry) -> Result<bool, Halt> {
        self.expected_elsewhere = false;
        let Some(place) = self.start_reading(Bytes::Plain(file.into()), look, e)? else { return Ok(false) };
        let mut open = self.open.remove(place);
        open.live = true;
        open.owed = 0;
        self.open.push(open);
        self.undecided = None;
        self.known.unassigned(&self.o.path, false);
        self.say("following", None);
        Ok(true)
    }

    pub(super) fn origin(&self, stream: StreamId, at: u64, size: u64, most: u64) -> Arc<Origin> {
        Arc::new(Origin {
            stream,
            topic: self.o.topic.clone(),
            path: self.o.path.clone(),
            shape: self.o.shape.clone(),
            progress: self.board.progress(stream, at, size, most),
        })
    }

    /// A new stream in `file`, starting at `offset`.
    pub(super) fn fresh(&mut self, file: &File, look: &Look, offset: u64) -> Result<Entry, Halt> {
        let at = point_at(file, look, offset)?;
        let entry = Entry { at, ..self.known.begin(look, &self.o.path) };
        self.restarted = Some(entry.stream);
        Ok(entry)
    }

    /// A different file is at the path: keeps the old one open, and reads the new one after what the old one holds now.
    pub(super) fn open_new(&mut self) -> Result<(), Halt> {
        let opened = identity::open(&self.o.path);
        self.orphan();
        let (file, look) = match opened {
            Ok(opened) => opened,
            Err(e) => {
                self.path_cannot_be_opened(&e);
                return Ok(()); // keep following the open file
            }
        };
        self.path_again = None;
        self.holding(Some(&file), |tail| tail.catch_up(false))?;
        self.look_again = Some(self.now + Duration::from_secs(1));
        match self.known.claim(&look, &self.o.path) {
            Claim::Anothers => {
                self.leave_to_another();
                Ok(())
            }
            Claim::New => self.read_new(file, &look, 0),
            Claim::Known(entry) => self.resume(file, look, entry),
        }
    }

    /// Continues a known stream in the file at the path, or starts a new one if the bytes differ: they may have changed
    /// since they were checked.
    pub(super) fn resume(&mut self, file: File, look: Look, entry: Entry) -> Result<(), Halt> {
        let has_bytes_of = entry.has_bytes_in(&file, &look)?;
        if !has_bytes_of && self.was_read(&file, &look)? {
            return self.follow_copy(file, &look, entry);
        }
        if has_bytes_of && self.start_reading_live(file.try_clone()?, &look, entry.clone())? {
            return Ok(());
        }
        self.holding(Some(&file), |tail| tail.rewritten(entry))?;
        self.read_rewritten(file, &look)
    }

    /// The live file was rotated. Its unread bytes are sent first.
    pub(super) fn orphan(&mut self) {
        for open in self.open.iter_mut().filter(|o| o.live) {
            open.live = false;
            open.owed = open.size;
            open.changed = self.now;
        }
    }

    /// The file has different bytes now: starts a new stream at 0. Reading continues in a copy of the old bytes
    /// (copytruncate), if there is one; otherwise the unread bytes are counted as lost. If only the end was cut off, the new
    /// stream continues at the old position.
    pub(super) fn truncated(&mut self, i: usize) -> Result<(), Halt> {
        let open = &mut self.open[i];
        let file = open.file().map(|f| f.try_clone()).transpose()?;
        let look = file.as_ref().map(identity::look).transpose()?;
        let cut = match &look {
            Some(l) if open.at.offset > 0 && l.size >= open.at.offset && open.unchanged()? => Some(l.size),
            _ => None,
        };
        let mut old = self.open.remove(i);
        self.known.store.done(old.origin.stream);
        self.in_memory.extend(old.take_waiting(&self.o.reading.rules));
        let entry = Entry {
            stream: old.origin.stream,
            path: self.o.path.clone(),
            at: old.at,
            beyond: old.beyond(),
            size: old.proven,
            modified: old.modified,
            head: old.head.clone(),
            ..Entry::of(old.identity.clone())
        };
        let is_asked = old.live && cut.is_none() && self.may_be_a_copy();
        if cut.is_none() {
            self.known.found_again(entry.stream, &Identity::default()); // its bytes are gone from that file
        }
        if !old.live && cut.is_none() && look.as_ref().is_some_and(|look| self.is_at_followed_path(look)) {
            // The tail of that path decides about it.
        } else if is_asked {
            (self.path_again, self.expected_elsewhere) = (None, true);
        } else if let (Some(file), Some(look)) = (file, look) {
            let fresh = match cut {
                Some(_) => Entry { at: old.at, ..self.known.begin(&look, &self.o.path) },
                None => self.fresh(&file, &look, 0)?,
            };
            if old.live {
                self.start_reading_live(file, &look, fresh)?;
            } else {
                self.start_reading(Bytes::Plain(file.into()), &look, fresh)?;
            }
        }
        if let Some(size) = cut {
            let kept = size - old.at.offset;
            if kept > 0 {
                self.forget_memory(); // part of the record is still in the file
            }
            return self.ended(&entry, kept);
        }
        let done = self.find_or_await(entry, old.origin, catchup::TRUNCATED);
        self.forget_memory();
        done
    }

    /// Whether this file is at another followed path of the same log.
    fn is_at_followed_path(&self, look: &Look) -> bool {
        let Ok(list) = siblings::list_family(&self.o.path) else { return false };
        list.iter().any(|s| s.look.identity == look.identity && self.is_followed(&s.path))
    }

    /// Sends what is in memory of a stream whose file was overwritten. Returns the position after it.
    pub(super) fn send_from_memory(&mut self, stream: StreamId) -> Result<Option<Point>, Halt> {
        let Some(i) = self.in_memory.iter().position(|c| c.origin.stream == stream) else { return Ok(None) };
        let chunk = self.in_memory.remove(i);
        let (end, lines) = (chunk.end, chunk.lines.len() as u64);
        chunk.origin.progress.frame(end.offset);
        self.board.totals.read_lines.fetch_add(lines, Relaxed);
        self.send(chunk)?;
        Ok(Some(end))
    }

    /// Keeps data in memory only for streams that are still being looked for.
    pub(super) fn forget_memory(&mut self) {
        let absent: Vec<StreamId> = self.not_open().map(|e| e.stream).collect();
        self.in_memory.retain(|chunk| absent.contains(&chunk.origin.stream));
    }

    /// Closes a truncated stream. Of its unread bytes, `kept` are read as part of another stream.
    pub(super) fn ended(&mut self, entry: &Entry, kept: u64) -> Result<(), Halt> {
        let stream = entry.stream;
        let at = self.send_from_memory(stream)?.unwrap_or(entry.at);
        self.known.release(stream, at, entry.size, entry.modified, true);
        let lost = open::unread(entry.size, at.offset, &entry.beyond).saturating_sub(kept);
        self.count_lost(lost, catchup::TRUNCATED);
        self.out.close(Closed { stream, why: Ending::Truncated { lost } });
        Ok(())
    }

    /// The complete lines before the damage are sent; the rest is unreadable.
    pub(super) fn broken(&mut self, i: usize, e: &io::Error) {
        let open = self.open.remove(i);
        let stream = open.origin.stream;
        let lost = open.origin.progress.size.load(Relaxed).saturating_sub(open.at.offset).max(1);
        let (path, at) = (self.o.path.display(), open.at.offset);
        warn!(
            "{path}: one of its compressed rotated files is damaged after offset {at}: {e}; the rest is lost"
        );
        // The stream stays known, so that the file is not tried again.
        self.known.release(stream, open.at, open.known_size(), open.modified, true);
        self.out.close(Closed { stream, why: Ending::Truncated { lost } });
    }

    /// A file may have been compressed and deleted while its writer still appended to it. Its `.gz` lacks the last lines that
    /// were read, and only the deleted file shows that it holds no others: after a restart it would be read again.
    pub(super) fn note_shorter_gz(&mut self) -> Result<(), Halt> {
        for open in self.open.iter_mut().filter(|o| o.is_news_for_gz()) {
            open.compared = open.at.offset;
        }
        for (open, own) in self.open.iter().filter(|o| o.links == 0).filter_map(|o| Some((o, o.file()?))) {
            let is_later = |s: &Sibling| s.look.made() >= open.identity.born.unwrap_or_default();
            for s in siblings::list(&self.o.path)?.iter().filter(|s| s.packed == Packed::Gzip && is_later(s))
            {
                let Ok((file, look)) = identity::open(&s.path) else { continue };
                if gz::claimed_size(&file, &look)? == open.at.offset as u32 {
                    continue; // the bytes before its end will tell
                }
                let Ok((offset, mark)) = self.known.unpacked.end(&file, &look) else { continue };
                let is_shorter = 0 < offset && offset < open.at.offset && mark_at(own, offset)? == mark;
                let head = || self.known.unpacked.head(&file, &look, &BTreeSet::new());
                if is_shorter && open.head.starts_with(&head()?) {
                    self.note(&look, Point { offset, mark, ..Point::default() });
                }
            }
        }
        Ok(())
    }

    pub(super) fn leave(&mut self, i: usize) {
        let open = self.open.remove(i);
        let stream = open.origin.stream;
        let (why, finished) = match (self.o.until, open.live) {
            (Until::Read, true) => (Ending::Parked, false),
            _ => (Ending::Finished, true),
        };
        self.known.release(stream, open.at, open.known_size(), open.modified, finished);
        self.left(open.origin.clone());
        self.show_left(open.origin.progress.clone());
        self.say("following", None);
        self.out.close(Closed { stream, why });
    }

    /// Closes a deleted file with unread bytes that is over the limit.
    pub(super) fn give_up(&mut self, i: usize) {
        let open = self.open.remove(i);
        let lost = open.backlog();
        self.known.forget(open.origin.stream);
        self.known.store.done(open.origin.stream);
        self.count_lost(lost, "it was deleted, and deleted_hold is exceeded");
        open.origin.progress.saw(open.at.offset, self.now); // the rest does not lag: it is lost
        self.show_left(open.origin.progress.clone());
        self.show();
        self.out.close(Closed { stream: open.origin.stream, why: Ending::Gone { lost } });
    }

    /// A failed step may have claimed a file without opening it: release it, so that the next attempt can claim it.
    pub(super) fn release_unopened(&self) {
        let open = self.open.iter().map(|o| o.origin.stream);
        let mine: Vec<StreamId> = open.chain(self.not_open().map(|e| e.stream)).collect();
        self.known.release_all_but(&self.o.path, &mine);
    }

    /// Handles truncations that happened since the last look.
    pub(super) fn see_truncations(&mut self) -> Result<(), Halt> {
        while let Some(i) = self.a_truncated_one()? {
            self.truncated(i)?;
        }
        Ok(())
    }

    fn a_truncated_one(&mut self) -> Result<Option<usize>, Halt> {
        for (i, open) in self.open.iter_mut().enumerate() {
            let Some(look) = open.look()? else { continue };
            let touched = look.modified != open.modified || open.unread();
            if look.size < open.size || touched && !open.unchanged()? {
                return Ok(Some(i));
            }
        }
        Ok(None)
    }

    /// Closes all open files and starts over, looking for them by name.
    pub(super) fn begin_again(&mut self) {
        self.release();
        (self.first, self.history) = (true, None);
    }

    /// Stops; the agent continues at the next start.
    pub(super) fn park(&mut self) {
        // The next run does not know the first bytes of these streams, so it cannot recognize copies by them.
        let folder = self.folder.clone();
        let _decides = lock(&folder);
        let _ = self.see_truncations();
        let _ = self.count_truncated();
        self.outlive_restart();
        self.release();
        self.known.release_all_but(&self.o.path, &[]);
    }

    fn release(&mut self) {
        for open in std::mem::take(&mut self.open) {
            self.known.release(open.origin.stream, open.at, open.known_size(), open.modified, false);
            self.out.close(Closed { stream: open.origin.stream, why: Ending::Parked });
        }
    }
}
