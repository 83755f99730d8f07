//! A file that appears under a followed path of which nothing was read before: whether its lines are new, or a copy of what
//! another tail reads, as with copytruncate and the pattern `app.log*`.
//!
//! A copy appears while the original is still whole, and the original is truncated a moment later. So a file that begins like
//! a log is taken for new only when it has stood still for a while and the log's own tail has looked since: that one knows of
//! a truncation, and goes on with its stream in the copy. Until then the path counts among the strangers, where tails look for
//! copies of theirs.

use super::copies::{Whose, goes_on, is_young, proof};
use super::follow::{Step, Until};
use super::identity::{self, Look};
use super::known::Entry;
use super::open::{self, Bytes};
use super::siblings::{self, Packed, Sibling};
use super::{Halt, Start, Tail};
use crate::chunk::{Mark, Point};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A file at the path that is not read yet.
#[derive(Debug)]
pub(super) struct Undecided {
    /// Open, so that it can be read if it is deleted meanwhile.
    file: File,
    look: Look,
    /// Since when it has been as it is.
    since: Instant,
    /// The log that it may be a copy of.
    log: Option<PathBuf>,
    /// How many looks that log's tail had begun then, if it runs.
    looks: Option<u64>,
    /// Nothing is to be read here as things are: it is empty, or has the bytes that the log has too.
    settled: bool,
}

/// What a file holds that is in no known stream.
enum Holds {
    New,
    Nothing,
    /// Not known yet; it may be a copy of the log at this path.
    Undecided(PathBuf),
    /// What the log holds too.
    ACopy,
    /// What was read to its end elsewhere.
    WhatWasRead,
    /// What is to be read on of a stream that no tail looks for any more.
    Rest(Entry),
}

impl Undecided {
    /// How long a new file must stand still.
    const STILL: Duration = Duration::from_secs(1);
    const BETWEEN: Duration = Duration::from_millis(100);
    /// Between two looks at a copy: a change of it wakes the tail before.
    const LATER: Duration = Duration::from_secs(10);
}

/// Fewer bytes than this may well be the same in two logs of different names.
const TELLING: u64 = Mark::SPAN as u64;

/// The first look of a tail that hangs is not waited for longer.
const FIRST_LOOKS: Duration = Duration::from_secs(5);

impl Tail<'_> {
    /// Reads a file that is in no known stream from `offset` on, as soon as it is certain that it is no copy.
    pub(super) fn take_up_new(&mut self, file: File, look: &Look, offset: u64) -> Result<(), Halt> {
        let last = self.undecided.take();
        let holds = match self.may_be_a_copy() {
            true => self.holds(&file, look, last.as_ref())?,
            false => Holds::New,
        };
        let (log, settled) = match holds {
            Holds::New => return self.begin_stream(file, look, offset),
            Holds::WhatWasRead => return self.begin_stream(file, look, look.size),
            Holds::Rest(entry) => {
                return match self.known.take(entry.stream, &look.identity) {
                    Some(entry) => self.resume(file, look.clone(), entry),
                    None => Ok(()), // its tail is back; the next look sees what became of it
                };
            }
            Holds::Undecided(log) => (Some(log), false),
            Holds::Nothing | Holds::ACopy => (None, true),
        };
        let same = |u: &Undecided| (u.look.size, u.look.modified, &u.log) == (look.size, look.modified, &log);
        let (since, looks) = match last.filter(same) {
            Some(u) => (u.since, u.looks),
            None => (self.now, log.as_ref().and_then(|log| self.known.looks_begun(log))),
        };
        self.path_again = Some(self.now + if settled { Undecided::LATER } else { Undecided::BETWEEN });
        self.known.stranger(&self.o.path);
        self.undecided = Some(Undecided { file, look: look.clone(), since, log, looks, settled });
        Ok(())
    }

    fn begin_stream(&mut self, file: File, look: &Look, offset: u64) -> Result<(), Halt> {
        let offset = offset.min(look.size);
        let at = Point { offset, mark: open::mark_at(&file, offset)?, ..Point::default() };
        self.known.met(&self.o.path);
        match self.known.begin_if_new(look, &self.o.path) {
            Some(entry) => self.take_up_live(file, look, Entry { at, ..entry }).map(drop),
            None => Ok(()), // another tail was faster
        }
    }

    /// Whether the file is a copy that was read elsewhere, though it is known as another stream: a copy that was made before the
    /// last lines of its original.
    pub(super) fn was_read(&self, file: &File, look: &Look) -> Result<bool, Halt> {
        let end = (look.size, open::mark_at(file, look.size)?);
        let ends_so = |e: &Entry| e.finished && (e.at.offset, e.at.mark) == end;
        Ok(look.size > 0 && !self.known.all(ends_so).is_empty())
    }

    /// Follows such a copy from its end on. `entry` is the stream that it is known as.
    pub(super) fn follow_copy(&mut self, file: File, look: &Look, entry: Entry) -> Result<(), Halt> {
        self.known.release(entry.stream, entry.at, entry.size, entry.modified, true);
        let fresh = self.fresh(&file, look, look.size)?;
        self.take_up_live(file, look, fresh).map(drop)
    }

    /// Files that were there before anything was known are not asked about: `start` says what is read of them. Nor is what
    /// follows a file that was read under this path, unless that has the name of a rotated file.
    fn may_be_a_copy(&self) -> bool {
        let name = self.o.path.file_name().unwrap_or_default();
        let is_new = self.open.is_empty() && self.known.of(&self.o.path).is_empty();
        !self.o.first_sight && (is_new || siblings::base_of(name) != name)
    }

    fn holds(&self, file: &File, look: &Look, last: Option<&Undecided>) -> Result<Holds, Halt> {
        let size = look.size;
        if size == 0 {
            // It may be the beginning of a copy of any file that is read now.
            let is_read = |e: &Entry| !e.finished && e.identity != look.identity;
            return Ok(if self.known.all(is_read).is_empty() { Holds::New } else { Holds::Nothing });
        }
        let (mark, head) = (open::mark_at(file, size)?, head(file, size)?);
        let name = |path: &Path| siblings::base_of(path.file_name().unwrap_or_default());
        let base = name(&self.o.path);
        let is_kin = |e: &Entry| e.path.parent() == self.o.path.parent() && name(&e.path) == base;
        let begins_so = |e: &Entry| {
            let both = e.head.len().min(head.len());
            both > 0 && e.head[..both] == head[..both]
        };
        let streams = self.known.all(|e| e.identity != look.identity && (size >= TELLING || is_kin(e)));
        if streams.iter().any(|e| e.finished && (e.at.offset, e.at.mark) == (size, mark)) {
            return Ok(Holds::WhatWasRead);
        }
        // A stream that its tail has not opened yet does not tell how it begins.
        if let Some(e) = streams.iter().find(|e| self.known.is_expected(e))
            && last.is_none_or(|u| self.now.duration_since(u.since) < FIRST_LOOKS)
        {
            return Ok(Holds::Undecided(e.path.clone()));
        }
        let mut log = None;
        for e in streams.iter().filter(|e| !e.finished && begins_so(e)) {
            log = log.or(Some(e.path.clone()));
            let original = identity::open(&e.path).ok().filter(|(_, l)| l.identity == e.identity);
            if let Some((of, of_look)) = &original
                && of_look.size >= size
                && open::mark_at(of, size)? == mark
            {
                return Ok(Holds::ACopy);
            }
            if proof(e).offset == 0 || !goes_on(file, look, e)? {
                continue;
            }
            match original {
                Some((of, of_look)) if goes_on(&of, &of_look, e)? => {} // the same beginning, and another end
                _ if self.known.looks_begun(&e.path).is_none() => return Ok(Holds::Rest(e.clone())),
                _ => return Ok(Holds::Undecided(e.path.clone())),
            }
        }
        // Of a log of which nothing was read there is nothing to compare.
        let log = log.or_else(|| {
            let unread = |e: &&Entry| !e.finished && e.head.is_empty() && is_kin(e);
            streams.iter().find(unread).map(|e| e.path.clone())
        });
        let Some(log) = log else { return Ok(Holds::New) };
        let same = |u: &&Undecided| {
            (u.look.size, u.look.modified, u.log.as_ref()) == (size, look.modified, Some(&log))
        };
        let is_certain = last.filter(same).is_some_and(|u| {
            self.now.duration_since(u.since) >= Undecided::STILL
                && u.looks.is_none_or(|begun| self.known.has_looked_since(&log, begun))
        });
        Ok(if is_certain { Holds::New } else { Holds::Undecided(log) })
    }

    /// Something may have changed: a file that is not decided upon is looked at now.
    pub(super) fn look_at_undecided(&mut self) {
        if self.undecided.is_some() {
            self.path_again = None;
        }
    }

    /// Whether it will soon be known what the file at the path holds.
    pub(super) fn is_deciding(&self) -> bool {
        let begun = self.begun.is_some_and(|begun| self.now.duration_since(begun) < FIRST_LOOKS);
        self.undecided.as_ref().is_some_and(|u| !u.settled) || self.first && begun
    }

    /// A file that was deleted before it was decided upon is read, unless it was a copy.
    pub(super) fn save_undecided(&mut self) -> Result<(), Halt> {
        let Some(u) = &self.undecided else { return Ok(()) };
        let at_path = identity::look_at(&self.o.path).ok().flatten();
        if at_path.is_some_and(|l| l.identity == u.look.identity) {
            return Ok(());
        }
        let look = identity::look(&u.file)?;
        let Some(Undecided { file, settled, look: before, .. }) = self.undecided.take() else {
            return Ok(());
        };
        self.path_again = None;
        if look.links == 0
            && !(settled && look.size == before.size)
            && let Some(entry) = self.known.begin_if_new(&look, &self.o.path)
        {
            self.take_up(Bytes::Plain(file.into()), &look, entry)?;
        }
        Ok(())
    }

    /// Another tail reads the file at the path, or is about to look for the stream that it is in. It may find that elsewhere, so
    /// this is looked at again.
    pub(super) fn leave_to_another(&mut self) {
        self.expected_elsewhere = true;
        self.path_again = Some(self.now + Undecided::BETWEEN);
    }

    /// `--once`: the end waits until it is known what the file holds.
    pub(super) fn until_decided(&self, step: Step) -> Step {
        let once = self.o.until == Until::Read;
        let undecided = self.undecided.as_ref().is_some_and(|u| !(u.settled && once));
        match step {
            Step::End if undecided || self.expected_elsewhere && once => Step::Wait(Undecided::BETWEEN),
            step => step,
        }
    }

    /// Files of other paths in which a stream of ours may go on.
    pub(super) fn strangers(&self) -> Vec<Sibling> {
        let others = self.known.strangers();
        let paths = others.into_iter().filter(|path| *path != self.o.path);
        let looked = paths.filter_map(|path| {
            let look = identity::look_at(&path).ok()??;
            let packed = crate::packed::packing(&path);
            Some(Sibling { path, packed, look })
        });
        looked.collect()
    }
}

/// A compressed file that is followed for its own sake: what of it was never read is read once, and the tail ends.
impl Tail<'_> {
    /// `Some`: it is not known yet what it holds.
    pub(super) fn begin_packed(&mut self) -> Result<Option<Duration>, Halt> {
        let Some(look) = identity::look_at(&self.o.path)? else { return Ok(None) };
        let sibling = Sibling { path: self.o.path.clone(), packed: Packed::Gzip, look };
        if let Some(entry) = self.known.get(&sibling.look.identity, &self.o.path) {
            if !entry.finished
                && entry.path == self.o.path
                && let Some(entry) = self.known.take(entry.stream, &sibling.look.identity)
                && !self.go_on_in(&sibling, &entry)?
            {
                self.lose(&entry, "it holds other bytes now")?;
            }
            return Ok(None);
        }
        let begun = *self.begun.get_or_insert(self.now);
        let Some((file, look)) = self.open_sibling(&sibling)? else { return Ok(Some(Undecided::STILL)) };
        if self.o.first_sight && self.o.start != Start::Beginning {
            self.note_as_read(&sibling, Some(&file))?;
            return Ok(None);
        }
        if !self.known.all_have_looked() && self.now.duration_since(begun) < FIRST_LOOKS {
            return Ok(Some(Undecided::BETWEEN));
        }
        let (plain, once) = (self.o.path.with_extension(""), self.o.until == Until::Read);
        let later = if is_young(&look) { Undecided::STILL } else { Undecided::LATER };
        if plain.exists() && self.o.followed.has(&plain) {
            return Ok(Some(later).filter(|_| !once)); // gzip(1) removes it when the packed file is complete
        }
        match self.whose(Packed::Gzip, &file, &look, None)? {
            Whose::Nobodys { .. } => self.take_up_sibling(&sibling, file, &look, &mut Vec::new(), 0)?,
            Whose::Read(Some(entry)) => self.move_on(&entry, &look)?,
            Whose::Read(None) => self.note_as_read(&sibling, Some(&file))?,
            Whose::Waits if once => {}
            Whose::Waits => return Ok(Some(later)),
            Whose::Incomplete => return Ok(Some(Undecided::STILL)),
        }
        Ok(None)
    }
}

/// What the file begins with.
fn head(file: &File, size: u64) -> io::Result<Vec<u8>> {
    open::before(file, size.min(Mark::SPAN as u64))
}
