//! Looks where a stream of this tail continues whose file is gone or has other bytes, and opens that.
//!
//! Names move while they are looked at: what was listed under a name may be another file when that is opened. So who a file is
//! is asked again once it is open, and where it is not the one that was listed, all are listed anew.

use super::assign::{Verdict, Wait};
use super::gz::Gz;
use super::identity::{self, Look};
use super::known::Entry;
use super::open::{self, Bytes};
use super::siblings::{Packed, Sibling};
use super::survey::{Age, AtPath, Scope, Survey, goes_on, holds, proof};
use super::{Halt, Tail};
use crate::chunk::{Origin, TailOutput};
use crate::record::{Identity, Point};
use log::{info, warn};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Where a stream continues.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// In a file that is open now.
    Found,
    /// All of it was read; a copy that was made before its last lines is where the others can be had after a crash.
    ShortCopy,
    /// Some file is being compressed, and may be the one.
    NotYet,
    Nowhere,
}

impl Tail<'_> {
    /// Continues a stream of this tail whose file has other bytes now, or is gone: where its bytes are, or else when they are
    /// found later.
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
                Place::NotYet
            }
            place => place?,
        };
        match place {
            Place::Found => Ok(()),
            Place::ShortCopy => self.ended(&entry, 0),
            Place::Nowhere if !self.o.followed.by_pattern => self.lose(&entry, why),
            Place::Nowhere | Place::NotYet => {
                self.await_copy(entry, origin, why);
                Ok(())
            }
        }
    }

    pub(super) fn find_or_miss(&mut self, entry: Entry, why: &'static str) -> Result<(), Halt> {
        match self.find(&entry, None) {
            Ok(Place::Found) => return Ok(()),
            Ok(_) => {}
            Err(Halt::Io(e)) => self.trouble(&e),
            Err(stopped) => return Err(stopped),
        }
        self.miss(entry, why);
        Ok(())
    }

    /// Looks where the stream continues. `truncated` is given if a copy that is shorter than what was read may be all there is.
    pub(super) fn find(&mut self, entry: &Entry, truncated: Option<&Arc<Origin>>) -> Result<Place, Halt> {
        if self.go_on_in_kept(entry)? {
            return Ok(Place::Found);
        }
        let mut place = Place::Nowhere;
        // Where nothing was read, there is no byte by which to know an old file, or one of another log.
        let is_untouched = proof(entry).offset == 0;
        let age = if is_untouched { Age::NewerThan(entry) } else { Age::Any };
        let has_others = self.o.followed.by_pattern && !is_untouched;
        let scopes = [Some(Scope::Folder), has_others.then_some(Scope::Logs)];
        let found = self.listed(|tail| {
            for scope in scopes.into_iter().flatten() {
                let survey = tail.survey(AtPath::LeftOut, scope, age)?;
                place = tail.find_in(&survey, entry, truncated)?;
                if matches!(place, Place::Found | Place::ShortCopy) {
                    return Ok(true);
                }
            }
            Ok(false)
        })?;
        Ok(if found || place == Place::NotYet { place } else { Place::Nowhere })
    }

    fn find_in(
        &mut self,
        survey: &Survey,
        entry: &Entry,
        truncated: Option<&Arc<Origin>>,
    ) -> Result<Place, Halt> {
        let of = entry.stream;
        let mut place = Place::Nowhere;
        for (sibling, verdict) in survey.iter() {
            match verdict {
                Verdict::Own(stream) | Verdict::Continues(stream)
                    if stream == of
                        && sibling.packed != Packed::Other
                        && self.go_on_in(sibling, entry)? =>
                {
                    return Ok(Place::Found);
                }
                Verdict::Read(stream) if stream == of => {
                    if let Some(origin) = truncated
                        && self.take_short_copy(sibling, entry, origin)?
                    {
                        return Ok(Place::ShortCopy);
                    }
                }
                Verdict::Wait(Wait::Incomplete) => place = Place::NotYet,
                _ => {}
            }
        }
        Ok(place)
    }

    /// After a truncation: a copy of what was read of the stream that is too short to go on in, since the writer went on while it
    /// was made. As long as not all is acknowledged, it is where the stream's bytes can be had after a crash: so the stream moves
    /// to it. By its length and mark it is known when it is packed.
    fn take_short_copy(
        &mut self,
        sibling: &Sibling,
        old: &Entry,
        origin: &Arc<Origin>,
    ) -> Result<bool, Halt> {
        let Some((file, look)) = self.open_sibling(sibling)? else { return Ok(false) };
        let (offset, mark) = match sibling.packed {
            Packed::Plain => (look.size, open::mark_at(&file, look.size)?),
            _ => self.known.unpacked.end(&file, &look)?,
        };
        self.known.release(old.stream, old.at, old.size, old.modified, true);
        self.known.found_again(old.stream, &look.identity);
        let opened = origin.opened(look.identity.clone(), old.at);
        self.send(TailOutput::Opened(opened))?;
        self.note(
            &Look { identity: Identity::default(), ..look },
            Point { offset, mark, ..Point::default() },
        )?;
        Ok(true)
    }

    /// Again, as long as it gives `false` and files have other names by then than they had when they were listed.
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

    /// Whether the stream's file was kept beyond the end of the last run; if so it is open now.
    fn go_on_in_kept(&mut self, entry: &Entry) -> Result<bool, Halt> {
        let Some(file) = self.known.store.of(entry.stream) else { return Ok(false) };
        let look = identity::look(&file)?;
        if look.identity == entry.identity && goes_on(&file, &look, entry)? {
            return Ok(self.take_up(Bytes::Plain(file.into()), &look, entry.clone())?.is_some());
        }
        warn!("{}: the file that systemd kept for it holds other bytes now", self.o.path.display());
        self.known.store.done(entry.stream);
        Ok(false)
    }

    /// Whether this sibling holds the stream's bytes up to where it was read; if so it is open now.
    pub(super) fn go_on_in(&mut self, sibling: &Sibling, entry: &Entry) -> Result<bool, Halt> {
        let Some((file, look)) = self.open_sibling(sibling)? else { return Ok(false) };
        let bytes = match sibling.packed {
            Packed::Plain if !goes_on(&file, &look, entry)? => return Ok(false),
            Packed::Plain => Bytes::Plain(file.into()),
            Packed::Gzip
                if super::survey::is_young(&look) && self.known.unpacked.end(&file, &look).is_err() =>
            {
                return Ok(false);
            }
            Packed::Gzip => match holds(&file, entry) {
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
        let Some(before) = self.known.go_on_in(entry.stream, &unpacked.identity, &self.o.path) else {
            return Ok(false);
        };
        let Some(place) = self.take_up(bytes, &unpacked, entry.clone())? else {
            self.known.found_again(entry.stream, &before);
            return Ok(false);
        };
        self.open[place].found_by_name = true;
        if unpacked.size > entry.at.offset && sibling.path != self.o.path {
            info!("{}: goes on in {} at {}", self.o.path.display(), sibling.path.display(), entry.at.offset);
        }
        Ok(true)
    }

    /// `None`: it is no longer there, or may not be read by us, which is said once.
    pub(super) fn open_sibling(&mut self, sibling: &Sibling) -> Result<Option<(File, Look)>, Halt> {
        match identity::open(&sibling.path) {
            Ok((file, look)) if look.identity == sibling.look.identity => Ok(Some((file, look))),
            Ok(_) => {
                self.moved = true; // a chain of renames gave its name to another
                Ok(None)
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => {
                self.moved = true;
                Ok(None)
            }
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                if self.denied.as_ref() != Some(&sibling.path) {
                    warn!("{}: {e}; its lines wait until it may be read", sibling.path.display());
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

/// How often siblings are listed anew because they have moved.
const LISTINGS: u32 = 20;

/// When a sibling that may not be read is tried again.
const DENIED: Duration = Duration::from_secs(10);
