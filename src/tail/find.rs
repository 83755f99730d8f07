//! Finds where a known stream goes on: in its file under another name, in a copy, or compressed. Reads no line, and begins no
//! stream.
//!
//! Names move while they are looked at: what was listed under a name may be another file when that is opened. So who a file is
//! is asked again once it is open, and where it is not the one that was listed, all are listed anew.

use super::copies::{goes_on, holds, is_whole, packs, proof};
use super::gz::Gz;
use super::identity::{self, Look};
use super::known::Entry;
use super::open::Bytes;
use super::siblings::{self, Packed, Sibling};
use super::{Halt, Tail};
use log::{info, warn};
use std::fs::File;
use std::io;
use std::time::Duration;

impl Tail<'_> {
    /// Goes on with a stream that is open in `known` and whose file has other bytes now: in a copy of those that it had.
    /// `at_path` is as with [`Tail::unread_siblings`].
    pub(super) fn find_rest(
        &mut self,
        entry: Entry,
        at_path: Option<&File>,
        why: &'static str,
    ) -> Result<(), Halt> {
        if proof(&entry).offset > 0 {
            let found = self.find(&entry);
            return self.found_or_lost(found, entry, why);
        }
        // Nothing was read, so there is no byte by which to know a copy: it is among what nobody has read.
        let mut untouched = vec![entry.clone()];
        let done = self.unread_siblings(Some(&entry), at_path, &mut untouched).map(|()| false);
        match untouched.pop() {
            Some(entry) => self.found_or_lost(done, entry, why),
            None => done.map(drop),
        }
    }

    pub(super) fn found_or_lost(
        &mut self,
        found: Result<bool, Halt>,
        entry: Entry,
        why: &'static str,
    ) -> Result<(), Halt> {
        match found {
            Ok(true) => Ok(()),
            Ok(false) => self.lose(&entry, why),
            Err(Halt::Io(e)) => {
                self.trouble(&e);
                self.miss(entry, why);
                Ok(())
            }
            Err(stopped) => Err(stopped),
        }
    }

    pub(super) fn find_or_miss(&mut self, entry: Entry, why: &'static str) -> Result<(), Halt> {
        match self.find(&entry) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(Halt::Io(e)) => self.trouble(&e),
            Err(stopped) => return Err(stopped),
        }
        self.miss(entry, why);
        Ok(())
    }

    /// Whether the stream goes on in some file, which is open then.
    pub(super) fn find(&mut self, entry: &Entry) -> Result<bool, Halt> {
        if self.go_on_in_kept(entry)? {
            return Ok(true);
        }
        self.listed(|tail| {
            let mut list = siblings::list_family(&tail.o.path)?;
            list.extend(tail.strangers());
            tail.find_among(&list, entry)
        })
    }

    fn find_among(&mut self, list: &[Sibling], entry: &Entry) -> Result<bool, Halt> {
        // Without a birth time the inode may be another file's by now; of a `.gz` of which nothing was read that shows nowhere.
        let is_sure = |s: &Sibling| {
            s.packed == Packed::Plain || s.look.identity.born.is_some() || proof(entry).offset > 0
        };
        let is_it =
            |s: &&Sibling| s.look.identity == entry.identity && s.packed != Packed::Other && is_sure(s);
        let by_identity = list.iter().find(is_it);
        if let Some(sibling) = by_identity
            && self.go_on_in(sibling, entry)?
        {
            return Ok(true);
        }
        for sibling in list.iter().rev().filter(|s| s.packed != Packed::Other) {
            let known = self.known_as(sibling)?.is_some_and(|e| e.stream != entry.stream);
            let may_be = proof(entry).offset > 0 || packs(sibling, entry);
            if !known && may_be && self.go_on_in(sibling, entry)? {
                return Ok(true);
            }
        }
        Ok(false)
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
            Packed::Gzip if !is_whole(&file, &look) => return Ok(false),
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

    /// A folder whose names may not be read has no siblings for us.
    pub(super) fn siblings(&self) -> Result<Vec<Sibling>, Halt> {
        match siblings::list(&self.o.path) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(Vec::new()),
            list => Ok(list?),
        }
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
