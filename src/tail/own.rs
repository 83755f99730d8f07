//! A new file whose path is followed for its own sake and is also a rotated name of another followed log, as with the pattern
//! `app.log*`: whether its lines are new, or a copy (copytruncate) of what that log's tail reads.
//!
//! A copy appears while the original is still whole, and the original is truncated a moment later. So a file is taken for new
//! only when it has stood still for a while and the log's own tail has looked since: that one knows of a truncation, and goes
//! on with its stream in the copy.

use super::copies::{goes_on, proof};
use super::follow::{Step, Until};
use super::identity::{self, Look};
use super::known::Entry;
use super::open::{self, Bytes};
use super::{Halt, Tail, siblings};
use crate::chunk::{Mark, Point};
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A file at the path that is not read yet.
#[derive(Debug)]
pub(super) struct Undecided {
    /// Open, so that it can be read if it is deleted meanwhile.
    file: File,
    look: Look,
    /// Since when it has been as it is.
    since: Instant,
    /// Looks that the log's own tail had begun then.
    looks: Option<u64>,
    /// Its bytes are those of the log as it is now: nothing is to be read here.
    copy: bool,
}

/// What a new file holds.
enum Holds {
    New,
    /// Not known yet.
    Undecided,
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

impl Tail<'_> {
    /// Reads a file that is in no known stream from `offset` on, as soon as it is certain that it is no copy.
    pub(super) fn take_up_new(&mut self, file: File, look: &Look, offset: u64) -> Result<(), Halt> {
        let last = self.undecided.take();
        let holds = match self.log_of_this() {
            Some(log) => self.holds(&file, look, &log, last.as_ref())?,
            None => Holds::New,
        };
        match holds {
            Holds::New => self.begin_stream(file, look, offset),
            Holds::WhatWasRead => {
                let at =
                    Point { offset: look.size, mark: open::mark_at(&file, look.size)?, ..Point::default() };
                self.note(look, at)
            }
            Holds::Rest(entry) => match self.known.take(entry.stream, &look.identity) {
                Some(entry) => self.resume(file, look.clone(), entry),
                None => Ok(()), // its tail is back; the next look sees what became of it
            },
            Holds::Undecided | Holds::ACopy => {
                let same = last.filter(|u| (u.look.size, u.look.modified) == (look.size, look.modified));
                let copy = matches!(holds, Holds::ACopy);
                let (since, looks) = match same {
                    Some(u) => (u.since, u.looks),
                    None => (self.now, self.log_of_this().and_then(|log| self.known.looks_begun(&log))),
                };
                self.path_again = Some(self.now + if copy { Undecided::LATER } else { Undecided::BETWEEN });
                self.undecided = Some(Undecided { file, look: look.clone(), since, looks, copy });
                Ok(())
            }
        }
    }

    fn begin_stream(&mut self, file: File, look: &Look, offset: u64) -> Result<(), Halt> {
        let offset = offset.min(look.size);
        let at = Point { offset, mark: open::mark_at(&file, offset)?, ..Point::default() };
        match self.known.begin_if_new(look, &self.o.path) {
            Some(entry) => self.take_up_live(file, look, Entry { at, ..entry }).map(drop),
            None => Ok(()), // another tail was faster
        }
    }

    /// The followed log that this path is a rotated name of. Files that were there before anything was known are not asked
    /// about: `start` says what is read of them.
    fn log_of_this(&self) -> Option<PathBuf> {
        let name = self.o.path.file_name()?;
        let base = siblings::base_of(name);
        let log = self.o.path.with_file_name(&base);
        (base != name && !self.o.first_sight && (self.o.followed.0)(&log)).then_some(log)
    }

    fn holds(
        &self,
        file: &File,
        look: &Look,
        log: &std::path::Path,
        last: Option<&Undecided>,
    ) -> Result<Holds, Halt> {
        let (size, mark) = (look.size, open::mark_at(file, look.size)?);
        let family = self.known.family_of(&self.o.path);
        if size > 0 && family.iter().any(|e| e.finished && (e.at.offset, e.at.mark) == (size, mark)) {
            return Ok(Holds::WhatWasRead);
        }
        let original = identity::open(log).ok().filter(|(_, l)| l.identity != look.identity);
        if let Some((of, of_look)) = &original
            && size > 0
            && of_look.size >= size
            && open::mark_at(of, size)? == mark
            && head(of, size)? == head(file, size)?
        {
            return Ok(Holds::ACopy);
        }
        for entry in family.into_iter().filter(|e| !e.finished && e.identity != look.identity) {
            if proof(&entry).offset == 0 || !goes_on(file, look, &entry)? {
                continue;
            }
            let is_whole = match &original {
                Some((of, of_look)) if of_look.identity == entry.identity => goes_on(of, of_look, &entry)?,
                _ => false,
            };
            if is_whole {
                continue; // the same beginning, and another end
            }
            return Ok(match self.known.looks_begun(&entry.path) {
                Some(_) => Holds::Undecided,
                None => Holds::Rest(entry),
            });
        }
        if original.is_none() && self.known.looks_begun(log).is_none() {
            return Ok(Holds::New); // nothing is there that it could be a copy of
        }
        let still = last.filter(|u| (u.look.size, u.look.modified) == (size, look.modified));
        let is_certain = still.is_some_and(|u| {
            self.now.duration_since(u.since) >= Undecided::STILL
                && u.looks.is_none_or(|begun| self.known.has_looked_since(log, begun))
        });
        Ok(if is_certain { Holds::New } else { Holds::Undecided })
    }

    /// Something may have changed: a file that is not decided upon is looked at now.
    pub(super) fn look_at_undecided(&mut self) {
        if self.undecided.is_some() {
            self.path_again = None;
        }
    }

    /// A file that was deleted before it was decided upon is read, unless it was a copy.
    pub(super) fn save_undecided(&mut self) -> Result<(), Halt> {
        let Some(u) = &self.undecided else { return Ok(()) };
        let at_path = identity::look_at(&self.o.path).ok().flatten();
        if at_path.is_some_and(|l| l.identity == u.look.identity) {
            return Ok(());
        }
        let look = identity::look(&u.file)?;
        let Some(Undecided { file, copy, .. }) = self.undecided.take() else { return Ok(()) };
        self.path_again = None;
        if look.links == 0 && !copy {
            if let Some(entry) = self.known.begin_if_new(&look, &self.o.path) {
                self.take_up(Bytes::Plain(file.into()), &look, entry)?;
            }
        }
        Ok(())
    }

    /// `--once`: the end waits until it is known what the file holds.
    pub(super) fn until_decided(&self, step: Step) -> Step {
        match (&self.undecided, step) {
            (Some(u), Step::End) if !(u.copy && self.o.until == Until::Read) => {
                Step::Wait(Undecided::BETWEEN)
            }
            (_, step) => step,
        }
    }
}

/// What the file begins with, at most `size` bytes of it.
fn head(file: &File, size: u64) -> std::io::Result<Vec<u8>> {
    open::before(file, size.min(Mark::SPAN as u64))
}
