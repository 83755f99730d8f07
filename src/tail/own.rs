//! Handles a file at a followed path that belongs to no known stream: acts on the verdict about it. While the verdict is to
//! wait (a copy of a log that still exists, an empty file), the file stays open, so that it can be read even if it is
//! deleted.

use super::assign::{FileVerdict, Wait};
use super::content::{mark_at, point_at};
use super::follow::{Step, Until};
use super::identity::{self, Look};
use super::known::Entry;
use super::open::Bytes;
use super::siblings::{self, Packed, Sibling};
use super::survey::{PathFile, Scope, SiblingAge};
use super::{Halt, Start, Tail};
use crate::record::{Identity, StreamId};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

/// A file at the path that is not read yet.
#[derive(Debug)]
pub(super) struct Undecided {
    file: File,
    look: Look,
    since: Instant,
    /// There is nothing to read at the moment: it is empty, or all its bytes are also in a log.
    settled: bool,
    /// The stream that another tail must handle first, and that tail's count of looks when it was asked.
    asked: Option<(StreamId, u64)>,
}

impl Undecided {
    const BETWEEN: Duration = Duration::from_millis(100);
    /// The same for a file that waits for another tail, which will wake this one.
    const SELDOM: Duration = Duration::from_secs(1);
    /// Interval between looks at a file that rarely changes; an event triggers a look sooner.
    const LATER: Duration = Duration::from_secs(10);
}

/// Interval between looks at a file that is being compressed.
const INCOMPLETE: Duration = Duration::from_secs(1);

/// An undecided file delays the end of the initial scan at most this long.
const FIRST_LOOKS: Duration = Duration::from_secs(5);

impl Tail<'_> {
    /// Reads a file that belongs to no known stream from `offset` on, unless the verdict says otherwise.
    pub(super) fn read_new(&mut self, file: File, look: &Look, offset: u64) -> Result<(), Halt> {
        if !self.may_be_a_copy() && (self.is_new_pattern() || !self.o.followed.by_pattern || look.size == 0) {
            return self.begin_stream(file, look, offset);
        }
        self.read_as_decided(file, look, offset, false)
    }

    /// Reads the file at the path, which no longer has the bytes of its stream.
    pub(super) fn read_rewritten(&mut self, file: File, look: &Look) -> Result<(), Halt> {
        if !self.may_be_a_copy() {
            let look = identity::look(&file)?;
            let fresh = self.fresh(&file, &look, 0)?;
            return self.start_reading_live(file, &look, fresh).map(drop);
        }
        if let Some(entry) = self.known.get(&look.identity, &self.o.path) {
            self.known.found_again(entry.stream, &Identity::default());
        }
        let look = identity::look(&file)?;
        self.read_as_decided(file, &look, 0, true)
    }

    fn read_as_decided(&mut self, file: File, look: &Look, offset: u64, rewritten: bool) -> Result<(), Halt> {
        let last = self.undecided.take();
        let mut look = look.clone();
        let follows_another = !self.may_be_a_copy();
        self.expected_elsewhere = false;
        let mut verdict = None;
        let mut ready = None;
        self.listed(|tail| {
            look = identity::look(&file)?;
            let asked = PathFile::Asked { file: &file, look: &look, rewritten };
            let survey = tail.survey(asked, tail.scope(), SiblingAge::Any)?;
            verdict = survey.of(&look.identity);
            // A replaced log is read from the beginning, also if it starts with the lines of the file before. But if that
            // file still exists with other bytes, it was truncated (copytruncate), and this is the copy.
            let is_own_rest = |v, e: &Entry| {
                matches!(v, FileVerdict::Continues(_)) && (!tail.first || e.identity == Identity::default())
            };
            let is_of_other = |v| survey.entry(v).is_some_and(|e| e.path != tail.o.path || is_own_rest(v, e));
            if follows_another && !verdict.is_some_and(is_of_other) {
                verdict = Some(FileVerdict::New);
            }
            ready =
                verdict.and_then(|v| survey.entry(v)).map(|e| (e.stream, e.finished, e.reader.is_taken()));
            Ok(false)
        })?;
        let asked = last.as_ref().and_then(|u| u.asked);
        let (settled, ask) = match verdict {
            Some(FileVerdict::New | FileVerdict::Old) => return self.begin_stream(file, &look, offset),
            // The stream's tail must first see that its file has different bytes now.
            Some(FileVerdict::Read(_)) if ready.is_some_and(|(_, finished, _)| !finished) => (false, ready),
            Some(FileVerdict::Read(_)) => return self.begin_stream(file, &look, look.size),
            Some(FileVerdict::Own(stream) | FileVerdict::Continues(stream)) => {
                if let Some(entry) = self.known.take_for(stream, &look.identity, &self.o.path) {
                    return self.resume(file, look, entry);
                }
                (false, ready)
            }
            Some(FileVerdict::Wait(Wait::Unseen(stream)))
                if asked
                    .is_some_and(|(of, looks)| of == stream && self.known.has_looked_since(of, looks)) =>
            {
                return self.begin_stream(file, &look, offset);
            }
            Some(FileVerdict::Wait(Wait::Unseen(_))) => (false, ready),
            Some(FileVerdict::Wait(Wait::Empty | Wait::Copy(_))) => (true, None),
            Some(FileVerdict::Wait(Wait::Incomplete | Wait::Original)) | None => (false, None),
        };
        let ask = match (ask, asked) {
            (Some((stream, ..)), Some(asked)) if asked.0 == stream => Some(asked),
            (Some((stream, ..)), _) => self.known.ask_to_look(stream).map(|looks| (stream, looks)),
            (None, _) => None,
        };
        let since = last.map_or(self.now, |u| u.since);
        let between = (self.now.duration_since(since) / 4).clamp(Undecided::BETWEEN, Undecided::SELDOM);
        self.path_again = Some(self.now + if settled { Undecided::LATER } else { between });
        self.known.unassigned(&self.o.path, true);
        self.undecided = Some(Undecided { file, look, since, settled, asked: ask });
        Ok(())
    }

    fn begin_stream(&mut self, file: File, look: &Look, offset: u64) -> Result<(), Halt> {
        let at = point_at(&file, look, offset)?;
        match self.known.begin_if_new(look, &self.o.path) {
            Some(entry) => self.start_reading_live(file, look, Entry { at, ..entry }).map(drop),
            None => Ok(()), // another tail has it by now
        }
    }

    /// Whether the file was read elsewhere although it is registered as another stream: a copy made before the last lines of
    /// its original.
    pub(super) fn was_read(&self, file: &File, look: &Look) -> Result<bool, Halt> {
        Ok(look.size > 0 && self.known.ends_so(look.size, mark_at(file, look.size)?))
    }

    /// Follows such a copy from its end. `entry` is the stream it is registered as.
    pub(super) fn follow_copy(&mut self, file: File, look: &Look, entry: Entry) -> Result<(), Halt> {
        self.known.release(entry.stream, entry.at, entry.size, entry.modified, true);
        let fresh = self.fresh(&file, look, look.size)?;
        self.start_reading_live(file, look, fresh).map(drop)
    }

    /// Files that existed before anything was known are not treated as copies: `start` decides about them. A file that
    /// follows one read under this path is compared only with streams of other paths, unless it has the name of a rotated
    /// file.
    pub(super) fn may_be_a_copy(&self) -> bool {
        let name = self.o.path.file_name().unwrap_or_default();
        let is_new = self.open.is_empty() && self.known.of(&self.o.path).is_empty();
        !self.is_new_pattern() && (is_new || siblings::base_of(name) != name)
    }

    /// At a start no file belongs to a stream yet, and each tail would look at the files of all others.
    fn scope(&self) -> Scope {
        if self.first { Scope::Log } else { Scope::Folder }
    }

    /// Files that exist now existed before the pattern was known.
    fn is_new_pattern(&self) -> bool {
        self.first && self.o.new_pattern
    }

    /// Something may have changed: look at an undecided file now.
    pub(super) fn look_at_undecided(&mut self) {
        if self.undecided.is_some() || self.expected_elsewhere {
            self.path_again = None;
        }
    }

    /// Whether the verdict about the file at the path depends on a look by another tail.
    pub(super) fn awaits_another(&self) -> bool {
        let asked = self.undecided.as_ref().and_then(|u| u.asked);
        asked.is_some_and(|(stream, looks)| !self.known.has_looked_since(stream, looks))
    }

    /// Whether the verdict about the file at the path is expected soon.
    pub(super) fn is_deciding(&self) -> bool {
        let is_early = |since: Instant| self.now.duration_since(since) < FIRST_LOOKS;
        self.undecided.as_ref().is_some_and(|u| !u.settled && is_early(u.since))
            || self.first && self.begun.is_some_and(is_early)
    }

    /// Reads a file that was deleted before the verdict, unless it was a copy.
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
        if look.links > 0 || settled && look.size == before.size {
            return Ok(());
        }
        let asked = PathFile::Asked { file: &file, look: &look, rewritten: false };
        let survey = self.survey(asked, self.scope(), SiblingAge::Any)?;
        let entry = match survey.of(&look.identity) {
            Some(FileVerdict::New) => self.known.begin_if_new(&look, &self.o.path),
            Some(FileVerdict::Continues(stream)) => self.known.take_for(stream, &look.identity, &self.o.path),
            _ => None,
        };
        if let Some(entry) = entry {
            self.start_reading(Bytes::Plain(file.into()), &look, entry)?;
        }
        Ok(())
    }

    /// Another tail reads the file at the path, or is about to look for its stream. That tail may find the stream elsewhere,
    /// so check again later.
    pub(super) fn leave_to_another(&mut self) {
        self.expected_elsewhere = true;
        self.path_again = Some(self.now + Undecided::BETWEEN);
    }

    /// `--once`: do not end before the verdict about the file.
    pub(super) fn until_decided(&self, step: Step) -> Step {
        let once = self.o.until == Until::Read;
        let undecided = self.undecided.as_ref().is_some_and(|u| !(u.settled && once));
        match step {
            Step::End if undecided || self.expected_elsewhere && once => Step::Wait(Undecided::BETWEEN),
            step => step,
        }
    }

    /// Whether a file is followed by a tail of its own.
    pub(super) fn is_followed(&self, path: &Path) -> bool {
        self.o.followed.has(path)
    }
}

/// A compressed file that is followed by its own tail: its unread part is read once, then the tail ends.
impl Tail<'_> {
    /// `Some`: its contents are not known yet; try again after this time.
    pub(super) fn begin_packed(&mut self) -> Result<Option<Duration>, Halt> {
        let Some(look) = identity::look_at(&self.o.path)? else { return Ok(None) };
        let sibling = Sibling { path: self.o.path.clone(), packed: Packed::Gzip, look };
        if let Some(entry) = self.known.get(&sibling.look.identity, &self.o.path) {
            if !entry.finished
                && entry.path == self.o.path
                && let Some(entry) = self.known.take(entry.stream, &sibling.look.identity)
                && !self.continue_in(&sibling, &entry)?
            {
                self.lose(&entry, "it now has different contents")?;
            }
            return Ok(None);
        }
        self.begun.get_or_insert(self.now);
        let Some((file, look)) = self.open_sibling(&sibling)? else { return Ok(Some(INCOMPLETE)) };
        if self.o.new_pattern && self.o.start != Start::Beginning {
            self.note_as_read(&sibling, Some(&file))?;
            return Ok(None);
        }
        let once = self.o.until == Until::Read;
        let asked = PathFile::Asked { file: &file, look: &look, rewritten: false };
        let survey = self.survey(asked, self.scope(), SiblingAge::Any)?;
        let verdict = survey.of(&look.identity);
        let entry = verdict.and_then(|v| survey.entry(v)).cloned();
        let is_over = |e: &Entry| e.finished;
        match (verdict, entry) {
            (Some(FileVerdict::New | FileVerdict::Old), _) => self.read_sibling(&sibling, file, &look)?,
            (Some(FileVerdict::Read(_)), Some(entry)) if is_over(&entry) => self.move_on(&entry, &look),
            (Some(FileVerdict::Continues(stream) | FileVerdict::Own(stream)), _) => {
                match self.known.take_for(stream, &look.identity, &self.o.path) {
                    Some(entry) if !self.continue_in(&sibling, &entry)? => {
                        self.miss(entry, "it is gone");
                    }
                    Some(_) => {}
                    None => return Ok(Some(Undecided::BETWEEN)),
                }
            }
            (Some(FileVerdict::Wait(Wait::Empty)), _) => self.note_as_read(&sibling, Some(&file))?,
            (Some(FileVerdict::Read(stream) | FileVerdict::Wait(Wait::Unseen(stream))), _) => {
                let asked = self.asked.filter(|(of, _)| *of == stream);
                if verdict == Some(FileVerdict::Wait(Wait::Unseen(stream)))
                    && asked.is_some_and(|(_, looks)| self.known.has_looked_since(stream, looks))
                {
                    self.read_sibling(&sibling, file, &look)?;
                    return Ok(None);
                }
                self.asked = asked.or_else(|| Some((stream, self.known.ask_to_look(stream)?)));
                return Ok(Some(Undecided::BETWEEN));
            }
            (Some(FileVerdict::Wait(Wait::Copy(_) | Wait::Original)), _) if once => {}
            (Some(FileVerdict::Wait(Wait::Copy(_) | Wait::Original)), _) => {
                return Ok(Some(if self.known.unpacked.may_grow(&look) {
                    INCOMPLETE
                } else {
                    Undecided::LATER
                }));
            }
            (Some(FileVerdict::Wait(Wait::Incomplete)) | None, _) => return Ok(Some(INCOMPLETE)),
        }
        Ok(None)
    }
}
