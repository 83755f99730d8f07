//! Whose bytes a file holds that has another identity: copies (copytruncate) and packed files. Opens nothing.

use super::gz::Gz;
use super::identity::Look;
use super::known::Entry;
use super::siblings::{Packed, Sibling};
use super::{Halt, Tail, open};
use crate::chunk::{Mark, Point, StreamId};
use std::fs::File;
use std::io::{self, Seek};
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
        let known = self.known.of(&self.o.path);
        let (size, mark) = match packed {
            Packed::Plain => (look.size, open::mark_at(file, look.size)?),
            Packed::Gzip => match Gz::end(file) {
                Ok(end) => end,
                Err(_) if is_young(look) => return Ok(Whose::Incomplete),
                Err(_) => return Ok(Whose::Nobodys), // damaged: what can be read of it is
            },
            Packed::Other => {
                let read = known.iter().any(|e| e.finished && e.modified == look.modified);
                return Ok(if read { Whose::Read } else { Whose::Nobodys });
            }
        };
        if size == 0 {
            return Ok(Whose::Read);
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
        if known.iter().any(|e| e.finished && e.at.offset == size && e.at.mark == mark) {
            return Ok(Whose::Read);
        }
        let absent: Vec<StreamId> = self.not_open().collect();
        let shelved = self.shelf.iter().filter(|e| e.at.offset == 0);
        if packed == Packed::Gzip && shelved.into_iter().any(|e| is_packed_of(look, size, e)) {
            return Ok(Whose::Waits);
        }
        for entry in known.iter().filter(|e| absent.contains(&e.stream) && e.at.offset > 0) {
            let same = match packed {
                Packed::Plain => goes_on(file, look, entry)?,
                _ => holds(file, entry)?,
            };
            if same {
                return Ok(Whose::Waits);
            }
        }
        Ok(Whose::Nobodys)
    }
}

/// See [`Tail::whose`].
pub(super) enum Whose {
    Nobodys,
    /// All of it is read.
    Read,
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

/// Whether the file still has the bytes before the stream's position.
pub(super) fn goes_on(file: &File, look: &Look, entry: &Entry) -> io::Result<bool> {
    let Point { offset, mark, .. } = entry.at;
    Ok(look.size >= offset && (mark.len == 0 || open::mark_at(file, offset)? == mark))
}

/// The `.gz` of a file of which nothing was read: it has its length and its time.
pub(super) fn is_packed_of(look: &Look, size: u64, entry: &Entry) -> bool {
    let second = |ns: i64| ns.div_euclid(1_000_000_000);
    entry.modified != 0 && second(look.modified) == second(entry.modified) && size == entry.size
}

pub(super) fn packs(sibling: &Sibling, entry: &Entry) -> bool {
    let size = || File::open(&sibling.path).and_then(|f| Gz::end(&f));
    sibling.packed == Packed::Gzip && size().is_ok_and(|(size, _)| is_packed_of(&sibling.look, size, entry))
}

/// Whether a `.gz`, decompressed, has the stream's bytes before its position.
pub(super) fn holds(file: &File, entry: &Entry) -> io::Result<bool> {
    let mut rewind = file;
    rewind.rewind()?;
    let mut gz = Gz::new(file.try_clone()?);
    let before = gz.skip_to(entry.at.offset)?;
    let kept = &before[before.len().saturating_sub(usize::from(entry.at.mark.len))..];
    rewind.rewind()?;
    Ok(gz.position() == entry.at.offset && Mark::of(kept) == entry.at.mark)
}
