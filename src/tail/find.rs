//! Finds and opens the file where a stream continues after its own file was removed or overwritten.
//!
//! Names change during the search: a listed name may belong to another file by the time it is opened. So the identity is
//! checked again after opening; if it differs, the folder is listed again.

use super::assign::{FileVerdict, Wait};
use super::content::mark_at;
use super::gz::Gz;
use super::identity::{self, Look};
use super::known::Entry;
use super::open::Bytes;
use super::siblings::{Packed, Sibling};
use super::survey::{PathFile, Scope, SiblingAge, Survey};
use super::{Halt, Tail};
use crate::chunk::Origin;
use crate::record::{Identity, Point};
use log::{info, warn};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Result of the search for a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SearchResult {
    /// In a file that is now open.
    Found,
    /// Nothing: all of it was read. A copy made before its last lines still provides the unacknowledged bytes after a
    /// crash.
    ShortCopy,
    /// A file is being compressed and may be the right one.
    NotYet,
    Nowhere,
}

impl Tail<'_> {
    /// Continues a stream whose file was removed or overwritten: where its bytes are now, or later when they are found.
    pub(super) fn find_or_await(
        &mut self,
        entry: Entry,
        origin: Arc<Origin>,
        why: &'static str,
    ) -> Result<(), Halt> {
        self.known.miss(&entry);
        let place = match self.find(&entry, Some(&origin)) {
            Err(Halt::Io(e)) => {
                self.trouble(&e);
                SearchResult::NotYet
            }
            place => place?,
        };
        match place {
            SearchResult::Found => Ok(()),
            SearchResult::ShortCopy => self.ended(&entry, 0),
            SearchResult::Nowhere if !self.o.followed.by_pattern => self.lose(&entry, why),
            SearchResult::Nowhere | SearchResult::NotYet => {
                self.await_copy(entry, origin, why);
                Ok(())
            }
        }
    }

    pub(super) fn find_or_miss(&mut self, entry: Entry, why: &'static str) -> Result<(), Halt> {
        match self.find(&entry, None) {
            Ok(SearchResult::Found) => return Ok(()),
            Ok(_) => {}
            Err(Halt::Io(e)) => self.trouble(&e),
            Err(stopped) => return Err(stopped),
        }
        self.miss(entry, why);
        Ok(())
    }

    /// Looks for the file where the stream continues. `truncated` is set if a copy shorter than what was read may be all
    /// that is left.
    pub(super) fn find(
        &mut self,
        entry: &Entry,
        truncated: Option<&Arc<Origin>>,
    ) -> Result<SearchResult, Halt> {
        if self.continue_in_kept(entry)? {
            return Ok(SearchResult::Found);
        }
        let mut place = SearchResult::Nowhere;
        // If nothing was read, there are no bytes by which to recognize an old file or another log's file.
        let is_untouched = entry.proof().offset == 0;
        let age = if is_untouched { SiblingAge::NewerThan(entry) } else { SiblingAge::Any };
        let has_others = self.o.followed.by_pattern && !is_untouched;
        let scopes = [Some(Scope::Folder), has_others.then_some(Scope::Logs)];
        let found = self.listed(|tail| {
            for scope in scopes.into_iter().flatten() {
                let survey = tail.survey(PathFile::LeftOut, scope, age)?;
                place = tail.find_in(&survey, entry, truncated)?;
                if matches!(place, SearchResult::Found | SearchResult::ShortCopy) {
                    return Ok(true);
                }
            }
            Ok(false)
        })?;
        Ok(if found || place == SearchResult::NotYet { place } else { SearchResult::Nowhere })
    }

    fn find_in(
        &mut self,
        survey: &Survey,
        entry: &Entry,
        truncated: Option<&Arc<Origin>>,
    ) -> Result<SearchResult, Halt> {
        let of = entry.stream;
        let mut place = SearchResult::Nowhere;
        for (sibling, verdict) in survey.iter() {
            match verdict {
                FileVerdict::Own(stream) | FileVerdict::Continues(stream)
                    if stream == of
                        && sibling.packed != Packed::Other
                        && self.continue_in(sibling, entry)? =>
                {
                    return Ok(SearchResult::Found);
                }
                FileVerdict::Read(stream) if stream == of => {
                    if let Some(origin) = truncated
                        && self.take_short_copy(sibling, entry, origin)?
                    {
                        return Ok(SearchResult::ShortCopy);
                    }
                }
                FileVerdict::Wait(Wait::Incomplete) => place = SearchResult::NotYet,
                _ => {}
            }
        }
        Ok(place)
    }

    /// After a truncation: uses a copy that is shorter than what was read, because the writer appended while it was made.
    /// Reading cannot continue there, but until everything is acknowledged it provides the stream's bytes after a crash. So
    /// the stream moves to it, and its length and mark identify it after compression.
    fn take_short_copy(
        &mut self,
        sibling: &Sibling,
        old: &Entry,
        origin: &Arc<Origin>,
    ) -> Result<bool, Halt> {
        let Some((file, look)) = self.open_sibling(sibling)? else { return Ok(false) };
        let (offset, mark) = match sibling.packed {
            Packed::Plain => (look.size, mark_at(&file, look.size)?),
            _ => self.known.unpacked.end(&file, &look)?,
        };
        self.known.release(old.stream, old.at, old.size, old.modified, true);
        self.known.found_again(old.stream, &look.identity);
        self.out.open(origin.opened(look.identity.clone(), old.at));
        self.note(
            &Look { identity: Identity::default(), ..look },
            Point { offset, mark, ..Point::default() },
        );
        Ok(true)
    }

    /// Repeats the search while it returns `false` because files were renamed after they were listed.
    pub(super) fn listed(
        &mut self,
        mut look: impl FnMut(&mut Self) -> Result<bool, Halt>,
    ) -> Result<bool, Halt> {
        for _ in 0..LISTINGS {
            self.moved = false;
            if look(self)? {
                return Ok(true);
            }
            if !self.moved {
                return Ok(false);
            }
        }
        self.look_again = Some(self.now + Duration::from_secs(1));
        Ok(false)
    }

    /// Opens the stream's file if the descriptor store kept it from the last run.
    fn continue_in_kept(&mut self, entry: &Entry) -> Result<bool, Halt> {
        let Some(file) = self.known.store.of(entry.stream) else { return Ok(false) };
        let look = identity::look(&file)?;
        if look.identity == entry.identity && entry.has_bytes_in(&file, &look)? {
            return Ok(self.start_reading(Bytes::Plain(file.into()), &look, entry.clone())?.is_some());
        }
        warn!("{}: the file that systemd kept for it now has different contents", self.o.path.display());
        self.known.store.done(entry.stream);
        Ok(false)
    }

    /// Opens this sibling if it has the stream's bytes up to the read position.
    pub(super) fn continue_in(&mut self, sibling: &Sibling, entry: &Entry) -> Result<bool, Halt> {
        let Some((file, look)) = self.open_sibling(sibling)? else { return Ok(false) };
        let bytes = match sibling.packed {
            Packed::Plain if !entry.has_bytes_in(&file, &look)? => return Ok(false),
            Packed::Plain => Bytes::Plain(file.into()),
            Packed::Gzip
                if self.known.unpacked.end(&file, &look).is_err() && self.known.unpacked.may_grow(&look) =>
            {
                return Ok(false);
            }
            Packed::Gzip => match entry.has_bytes_in_gz(&file) {
                Ok(true) => Bytes::Gz(Box::new(Gz::new(file))),
                Ok(false) => return Ok(false),
                Err(e) => {
                    warn!("{}: cannot be decompressed: {e}", sibling.path.display());
                    return Ok(false);
                }
            },
            Packed::Other => return Ok(false),
        };
        let unpacked = match bytes {
            Bytes::Gz(_) => Look { size: u64::MAX, ..look },
            Bytes::Plain(_) => look,
        };
        let Some(before) = self.known.continue_in(entry.stream, &unpacked.identity, &self.o.path) else {
            return Ok(false);
        };
        let Some(place) = self.start_reading(bytes, &unpacked, entry.clone())? else {
            self.known.found_again(entry.stream, &before);
            return Ok(false);
        };
        self.open[place].found_by_name = true;
        if unpacked.size > entry.at.offset && sibling.path != self.o.path {
            info!(
                "{}: continues in {} at offset {}",
                self.o.path.display(),
                sibling.path.display(),
                entry.at.offset
            );
        }
        Ok(true)
    }

    /// `None`: the file is gone, or unreadable for lack of permission, which is logged once.
    pub(super) fn open_sibling(&mut self, sibling: &Sibling) -> Result<Option<(File, Look)>, Halt> {
        match identity::open(&sibling.path) {
            Ok((file, look)) if look.identity == sibling.look.identity => Ok(Some((file, look))),
            Ok(_) => {
                self.moved = true; // a chain of renames gave its name to another file
                Ok(None)
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => {
                self.moved = true;
                Ok(None)
            }
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                if self.denied.as_ref() != Some(&sibling.path) {
                    warn!("{}: {e}; newer lines wait until it can be read", sibling.path.display());
                    self.denied = Some(sibling.path.clone());
                }
                let later = self.now + DENIED;
                self.look_again = Some(self.look_again.map_or(later, |at| at.min(later)));
                Ok(None)
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// Maximum number of listings in a row because siblings were renamed.
const LISTINGS: u32 = 20;

/// How soon an unreadable sibling is tried again.
const DENIED: Duration = Duration::from_secs(10);
