//! Whose bytes a file holds that has another identity: copies (copytruncate) and packed files.

use super::gz::Gz;
use super::identity::{self, Look};
use super::known::Entry;
use super::siblings::{Packed, Sibling};
use super::{Halt, Tail, open};
use crate::chunk::{Identity, Mark, Opened, Origin, Parcel, Point};
use std::fs::File;
use std::io::{self, Seek};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

impl Tail<'_> {
    /// Whose bytes a sibling holds that is no known file: it may be a copy (copytruncate) or a `.gz` of one.
    /// `at_path` is opened already and among no streams yet: it may be packed by now.
    pub(super) fn whose(
        &mut self,
        packed: Packed,
        file: &File,
        look: &Look,
        at_path: Option<&File>,
    ) -> Result<Whose, Halt> {
        let known = self.known.family_of(&self.o.path);
        let (size, mark) = match packed {
            Packed::Plain => (look.size, open::mark_at(file, look.size)?),
            Packed::Gzip => match Gz::end(file) {
                Ok(end) => end,
                Err(_) if is_young(look) => return Ok(Whose::Incomplete),
                Err(_) => return Ok(Whose::Nobodys { size: 0 }), // damaged: what can be read of it is
            },
            Packed::Other => {
                let is_it = |e: &Entry| second(e.modified) == second(look.modified); // as bzip2 keeps it
                // What is missing and was read to its end is most likely this.
                let saved = self.known.saved_at.map_or(0, |(s, _)| s);
                let is_missing = |e: &Entry| {
                    let last = if e.modified == 0 { saved } else { second(e.modified) };
                    e.at.offset >= e.size && second(look.modified) <= last
                };
                let read = known.iter().any(|e| e.finished && is_it(e)) || self.not_open().any(is_missing);
                return Ok(if read { Whose::Read(None) } else { Whose::Nobodys { size: 0 } });
            }
        };
        if size == 0 {
            return Ok(Whose::Read(None));
        }
        let holds_it =
            |of: &File| Ok::<_, io::Error>(of.metadata()?.len() >= size && open::mark_at(of, size)? == mark);
        if packed == Packed::Gzip && at_path.is_some_and(|of| holds_it(of).unwrap_or(false)) {
            return Ok(Whose::Waits);
        }
        for open in &self.open {
            let Some(of) = open.file() else { continue };
            // Also a copy that was taken while the file still grew; and one with lines that we have not seen here yet.
            let ends_there = (open.at.offset, open.at.mark) == (size, mark);
            if ends_there || holds_it(of)? {
                return Ok(Whose::Waits); // it may be needed when the original goes
            }
        }
        // What ends so is the same, under whatever name.
        let ends_so = |e: &Entry| e.at.offset == size && e.at.mark == mark;
        let same = self.known.all(|e| size >= Mark::SPAN as u64 && ends_so(e));
        if let Some(read) = known.iter().chain(&same).find(|e| e.finished && ends_so(e)) {
            return Ok(Whose::Read(Some(read.clone()).filter(|_| packed == Packed::Gzip)));
        }
        if !same.is_empty() {
            return Ok(Whose::Waits);
        }
        let mut untouched = self.shelved().filter(|e| e.at.offset == 0);
        if packed == Packed::Gzip && untouched.any(|e| is_packed_of(look, size, e)) {
            return Ok(Whose::Waits);
        }
        // The one at the path may be claimed and still to be opened; others are of other tails.
        let is_open = |e: &&Entry| self.open.iter().any(|o| o.origin.stream == e.stream);
        let others = known.iter().filter(|e| !e.finished && !is_open(e));
        for entry in self.not_open().chain(others).filter(|e| proof(e).offset > 0) {
            let same = match packed {
                Packed::Plain => goes_on(file, look, entry)?,
                _ => holds(file, entry)?,
            };
            if same {
                return Ok(Whose::Waits);
            }
        }
        Ok(Whose::Nobodys { size })
    }
}

impl Tail<'_> {
    /// After a truncation: a copy of what was read of the stream that is too short to go on in, since the writer went on while it
    /// was made. As long as not all is acknowledged, it is where the stream's bytes can be had after a crash: so the stream moves
    /// to it. By its length and mark it is known when it is packed.
    pub(super) fn take_short_copy(&mut self, old: &Entry, origin: &Arc<Origin>) -> Result<bool, Halt> {
        for sibling in self.siblings()?.into_iter().chain(self.strangers()).rev() {
            let known = self.known.get(&sibling.look.identity, &self.o.path).is_some();
            if known || sibling.packed == Packed::Other {
                continue;
            }
            let Some((file, look)) = self.open_sibling(&sibling)? else { continue };
            let Some(end) = end_if_short(&file, &look, sibling.packed, old).unwrap_or(None) else { continue };
            self.known.release(old.stream, old.at, old.size, old.modified, true);
            self.known.found_again(old.stream, &look.identity);
            let opened = Opened { origin: origin.clone(), identity: look.identity.clone(), at: old.at };
            self.send(Parcel::Opened(opened))?;
            self.note(&Look { identity: Identity::default(), ..look }, end)?;
            return Ok(true);
        }
        Ok(false)
    }
}

/// The end of the file, if it is what the stream began with and no longer than what was read of it. As with marks: 256 equal
/// bytes at the same place are taken for the same; a shorter copy is read again rather than taken for one.
fn end_if_short(file: &File, look: &Look, packed: Packed, old: &Entry) -> io::Result<Option<Point>> {
    let (head, offset, mark) = match packed {
        Packed::Plain => (open::before(file, Mark::SPAN as u64)?, look.size, open::mark_at(file, look.size)?),
        _ => {
            let (size, mark) = Gz::end(file)?;
            (Gz::new(file.try_clone()?).skip_to(Mark::SPAN as u64)?, size, mark)
        }
    };
    let is_it = offset <= old.at.offset && head.len() == Mark::SPAN && head == old.head;
    Ok(is_it.then_some(Point { offset, mark, ..Point::default() }))
}

/// See [`Tail::whose`].
pub(super) enum Whose {
    /// With its length, decompressed; 0 where that cannot be had.
    Nobodys { size: u64 },
    /// All of it is read: where it is packed, as this stream.
    Read(Option<Entry>),
    /// A stream's that is being read elsewhere, or will be.
    Waits,
    /// It is being written.
    Incomplete,
}

/// gzip(1) removes the original when the packed file is complete: until then it is the one to read.
pub(super) fn is_being_packed(sibling: &Sibling, list: &[Sibling]) -> bool {
    sibling.packed != Packed::Plain && {
        let plain = sibling.path.with_extension("");
        list.iter().any(|s| s.path == plain)
    }
}

/// A file that was written this lately may be written still.
pub(super) fn is_young(look: &Look) -> bool {
    let written = UNIX_EPOCH + Duration::from_nanos(look.modified.max(0) as u64);
    SystemTime::now().duration_since(written).is_ok_and(|age| age < Duration::from_secs(60))
}

pub(super) fn is_whole(file: &File, look: &Look) -> bool {
    !is_young(look) || Gz::end(file).is_ok()
}

/// The point by which a file is known to hold the stream's bytes: its position, and where nothing is gapless, the end of
/// what is acknowledged beyond.
pub(super) fn proof(entry: &Entry) -> Point {
    let beyond = entry.beyond.first().map(|(_, end)| *end);
    if entry.at.offset > 0 { entry.at } else { beyond.unwrap_or(entry.at) }
}

/// Whether the file still has the bytes before the stream's position. Where nothing was read there are none: then it has other
/// bytes if it is shorter than it was.
pub(super) fn goes_on(file: &File, look: &Look, entry: &Entry) -> io::Result<bool> {
    let Point { offset, mark, .. } = proof(entry);
    let least = if offset == 0 { entry.size } else { offset };
    Ok(look.size >= least && (mark.len == 0 || open::mark_at(file, offset)? == mark))
}

/// Of a time in nanoseconds.
pub(super) fn second(ns: i64) -> i64 {
    ns.div_euclid(1_000_000_000)
}

/// The `.gz` of a file of which nothing was read: it has its length and its time.
pub(super) fn is_packed_of(look: &Look, size: u64, entry: &Entry) -> bool {
    entry.modified != 0 && second(look.modified) == second(entry.modified) && size == entry.size
}

pub(super) fn packs(sibling: &Sibling, entry: &Entry) -> bool {
    sibling.packed == Packed::Gzip
        && identity::open(&sibling.path)
            .and_then(|(file, look)| Ok((Gz::end(&file)?.0, look)))
            .is_ok_and(|(size, look)| is_packed_of(&look, size, entry))
}

/// Whether a `.gz`, decompressed, has the stream's bytes before its position.
pub(super) fn holds(file: &File, entry: &Entry) -> io::Result<bool> {
    let mut rewind = file;
    rewind.rewind()?;
    let mut gz = Gz::new(file.try_clone()?);
    let Point { offset, mark, .. } = proof(entry);
    let before = gz.skip_to(offset)?;
    let kept = &before[before.len().saturating_sub(usize::from(mark.len))..];
    rewind.rewind()?;
    Ok(gz.position() == offset && Mark::of(kept) == mark)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::{lchown, symlink};

    /// Fails when a `.gz` is opened that a link leads to which its owner may not follow there.
    #[test]
    fn what_an_untrusted_link_leads_to_packs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (target, path) = (dir.path().join("target"), dir.path().join("f.log.1.gz"));
        let mut gz =
            flate2::write::GzEncoder::new(File::create(&target).unwrap(), flate2::Compression::fast());
        gz.write_all(b"one\n").unwrap();
        gz.finish().unwrap();
        symlink(&target, &path).unwrap();
        let look = identity::look_at(&path).unwrap().unwrap();
        let entry = Entry { size: 4, modified: look.modified, ..Entry::of(Identity::default()) };
        let sibling = Sibling { path: path.clone(), look, packed: Packed::Gzip };
        assert!(packs(&sibling, &entry));
        lchown(&path, Some(12345), None).unwrap();
        assert!(!packs(&sibling, &entry));
    }
}
