//! Collects the input of [`mod@assign`]: the current files in a log's folder, and the known streams. Reads file
//! contents as rarely as possible.

use super::assign::{self, FileVerdict, FolderFile, KnownStream, Length, Peek, assign, is_same_file};
use super::content::{before, mark_at};
use super::identity::{self, Look};
use super::known::{Entry, Known, StreamUse};
use super::siblings::{self, Packed, Sibling};
use super::{Halt, Tail};
use crate::record::{Identity, Mark};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// How to treat the file at the tail's own path.
#[derive(Clone, Copy)]
pub(super) enum PathFile<'f> {
    /// Decide about it like about the others.
    Asked {
        file: &'f File,
        look: &'f Look,
        /// It no longer has the bytes of its stream.
        rewritten: bool,
    },
    /// Its bytes belong to a stream, or it is not examined.
    LeftOut,
}

/// The files found, and the verdicts about them.
pub(super) struct Survey {
    pub files: Vec<Candidate>,
    pub entries: Vec<Entry>,
    pub verdicts: Vec<FileVerdict>,
}

pub(super) struct Candidate {
    pub sibling: Sibling,
    file: Option<File>,
}

impl Survey {
    /// Verdicts by file, in list order: oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&Sibling, FileVerdict)> {
        self.files.iter().map(|c| &c.sibling).zip(self.verdicts.iter().copied())
    }

    pub fn of(&self, identity: &Identity) -> Option<FileVerdict> {
        self.iter().find(|(s, _)| s.look.identity == *identity).map(|(_, verdict)| verdict)
    }

    pub fn entry(&self, verdict: FileVerdict) -> Option<&Entry> {
        let stream = verdict.stream()?;
        self.entries.iter().find(|e| e.stream == stream)
    }
}

/// Which files to examine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// The file itself and its rotated names.
    Log,
    /// Also followed files in the same folder that belong to no stream.
    Folder,
    /// Also rotated names of other followed logs.
    Logs,
}

/// Which unread siblings to read.
#[derive(Clone, Copy)]
pub(super) enum SiblingAge<'a> {
    Any,
    /// Those newer than this.
    NewerThan(&'a Entry),
}

impl Tail<'_> {
    /// Decides about all files of this log, and about neighboring files that belong to no stream, in their current state.
    pub(super) fn survey(
        &mut self,
        at_path: PathFile<'_>,
        scope: Scope,
        age: SiblingAge<'_>,
    ) -> Result<Survey, Halt> {
        let files = self.candidates(at_path, scope)?;
        if files.is_empty() {
            return Ok(Survey { files, entries: Vec::new(), verdicts: Vec::new() });
        }
        if scope == Scope::Log
            && let Some(entries) = self.all_known(&files)
        {
            let verdicts = entries.iter().map(|e| FileVerdict::Own(e.stream)).collect();
            return Ok(Survey { files, entries, verdicts });
        }
        let mut entries = self.known.all();
        self.add_held(&mut entries)?;
        let live = identity::look_at(&self.o.path).ok().flatten();
        let mut found = Vec::with_capacity(files.len());
        for candidate in &files {
            let Sibling { path, packed, look } = &candidate.sibling;
            let is_own_path = *path == self.o.path;
            let is_asked = matches!(at_path, PathFile::Asked { .. });
            let is_rival =
                !is_asked && (is_own_path || live.as_ref().is_some_and(|l| l.identity == look.identity));
            let old = !is_own_path
                && !self.is_followed(path)
                && match age {
                    SiblingAge::Any => false,
                    SiblingAge::NewerThan(last) => !self.is_newer(&candidate.sibling, last, live.as_ref()),
                };
            found.push(FolderFile {
                identity: look.identity.clone(),
                packed: *packed,
                modified: look.modified,
                rewritten: is_own_path && matches!(at_path, PathFile::Asked { rewritten: true, .. }),
                beside_original: *packed == Packed::Gzip && path.with_extension("").exists(),
                may_be_untouched: *packed != Packed::Other && !is_rival && !old,
                old,
            });
        }
        // Files that belong to no stream are opened now, because their names may soon belong to other files.
        let mut kept = Vec::with_capacity(files.len());
        let mut kept_found = Vec::with_capacity(files.len());
        for (mut candidate, found) in files.into_iter().zip(found) {
            let is_known = entries.iter().any(|e| is_same_file(&e.identity, &found.identity));
            if candidate.file.is_none() && !is_known && found.packed != Packed::Other {
                let Some((file, look)) = self.open_sibling(&candidate.sibling)? else { continue };
                (candidate.file, candidate.sibling.look) = (Some(file), look);
            }
            kept.push(candidate);
            kept_found.push(found);
        }
        let streams: Vec<KnownStream> = entries.iter().map(|e| self.stream(e, &kept)).collect();
        let mut contents = Contents::new(self.known, &kept, &entries);
        let verdicts = assign(&streams, &kept_found, &mut contents)?;
        self.search.moved |= contents.moved;
        for (candidate, verdict) in kept.iter().zip(&verdicts) {
            // A copy that was incomplete may be complete by now, and its original truncated.
            if let (FileVerdict::New | FileVerdict::Read(_), Some(file)) = (verdict, &candidate.file)
                && identity::look(file)?.size != candidate.sibling.look.size
            {
                self.search.moved = true;
            }
            if !matches!(verdict, FileVerdict::Own(_) | FileVerdict::Old) {
                self.known.has_other_bytes(&candidate.sibling.look.identity, &self.o.path);
            }
        }
        log::debug!(
            "{}: {:?}",
            self.o.path.display(),
            kept.iter().map(|c| c.sibling.path.file_name()).zip(&verdicts).collect::<Vec<_>>()
        );
        Ok(Survey { files: kept, entries, verdicts })
    }

    /// Runs a search while this tail has `file` open, which was at its path, and is about to read it: see
    /// [`super::find::Search::held`].
    pub(super) fn holding<T>(
        &mut self,
        file: Option<&File>,
        search: impl FnOnce(&mut Self) -> Result<T, Halt>,
    ) -> Result<T, Halt> {
        self.search.held = file.map(|file| file.try_clone().map(Arc::new)).transpose()?;
        let done = search(self);
        self.search.held = None;
        done
    }

    /// Shows the held file as the file of its stream, or of a stream that is about to begin.
    fn add_held(&self, entries: &mut Vec<Entry>) -> io::Result<()> {
        let Some(file) = &self.search.held else { return Ok(()) };
        let look = identity::look(file)?;
        let stream = self.known.get(&look.identity, &self.o.path).map(|e| e.stream);
        let reader = StreamUse::Reading(Some(file.clone()));
        let is_its = |e: &&mut Entry| {
            Some(e.stream) == stream && !e.finished && !matches!(e.reader, StreamUse::Missing)
        };
        match entries.iter_mut().find(is_its) {
            Some(entry) if entry.has_bytes_in(file, &look)? => entry.reader = reader,
            _ => entries.push(Entry { path: self.o.path.clone(), reader, ..Entry::of(look.identity) }),
        }
        Ok(())
    }

    /// The streams of these files, if each is known by identity and no contents need checking. This is the usual case: no
    /// file appeared or disappeared.
    fn all_known(&self, files: &[Candidate]) -> Option<Vec<Entry>> {
        let own = |c: &Candidate| {
            let entry = self.known.get(&c.sibling.look.identity, &self.o.path)?;
            let is_read = matches!(entry.reader, StreamUse::Reading(_));
            (is_read || entry.finished && entry.identity.born.is_some()).then_some(entry)
        };
        files.iter().map(own).collect()
    }

    /// Oldest first.
    fn candidates(&mut self, at_path: PathFile<'_>, scope: Scope) -> Result<Vec<Candidate>, Halt> {
        let mut list = match siblings::list_family(&self.o.path) {
            // A folder that cannot be listed counts as having no siblings.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Vec::new(),
            list => list?,
        };
        if scope == Scope::Logs {
            list.extend(siblings::list_rotated(&self.o.path, |path| self.is_followed(path))?);
        }
        if scope != Scope::Log {
            let is_known = |s: &Sibling| self.known.get(&s.look.identity, &self.o.path).is_some();
            list.extend(siblings::list_former_targets(&self.o.path)?.into_iter().filter(is_known));
        }
        let beside = match scope {
            Scope::Log => Vec::new(),
            Scope::Folder | Scope::Logs => self.known.unassigned_beside(&self.o.path),
        };
        for path in beside {
            if let Ok(Some(look)) = identity::look_at(&path)
                && look.kind == rustix::fs::FileType::RegularFile
            {
                list.push(Sibling { packed: crate::packed::packing(&path), path, look });
            }
        }
        // The file at the path is the newest, whatever its times say.
        let own = match at_path {
            PathFile::Asked { file, look, .. } => Some((file.try_clone()?, look.clone())),
            PathFile::LeftOut => None,
        };
        let mut files: Vec<Candidate> = Vec::with_capacity(list.len() + 1);
        for sibling in list {
            let is_it = |look: &Look| look.identity == sibling.look.identity;
            let is_own = own.as_ref().is_some_and(|(_, look)| is_it(look));
            if !is_own && !files.iter().any(|c| is_it(&c.sibling.look)) {
                files.push(Candidate { sibling, file: None });
            }
        }
        if let Some((file, look)) = own {
            let (path, packed) = (self.o.path.clone(), crate::packed::packing(&self.o.path));
            files.push(Candidate { sibling: Sibling { path, packed, look }, file: Some(file) });
        }
        Ok(files)
    }

    fn stream(&self, e: &Entry, files: &[Candidate]) -> KnownStream {
        let is_untouched = !e.finished && e.proof().offset == 0;
        let at_path = || files.iter().position(|c| c.sibling.path == e.path);
        KnownStream {
            id: e.stream,
            identity: e.identity.clone(),
            read: e.proof(),
            size: e.size,
            modified: e.modified,
            finished: e.finished,
            is_read: matches!(e.reader, StreamUse::Reading(_)),
            kin: siblings::are_kin(&e.path, &self.o.path),
            head: e.head.clone(),
            at_path: if is_untouched { at_path() } else { None },
        }
    }
}

/// Contents of the listed files and of the streams' own files.
struct Contents<'a> {
    known: &'a Known,
    files: &'a [Candidate],
    entries: &'a [Entry],
    heads: HashMap<usize, Vec<u8>>,
    marks: HashMap<(usize, u64), Option<Mark>>,
    /// Offsets at which contents are compared.
    offsets: BTreeSet<u64>,
    /// Own files of streams; `None` if gone or overwritten.
    own: HashMap<usize, Option<Own>>,
    /// A file was no longer at its listed name.
    moved: bool,
}

#[derive(Clone)]
enum Own {
    Plain(Arc<File>),
    Packed(Arc<File>, Look),
    /// Compressed, with an unknown end.
    Unknown,
}

impl<'a> Contents<'a> {
    fn new(known: &'a Known, files: &'a [Candidate], entries: &'a [Entry]) -> Contents<'a> {
        let (heads, marks, own) = (HashMap::new(), HashMap::new(), HashMap::new());
        let offsets = entries.iter().map(|e| e.proof().offset).filter(|offset| *offset > 0).collect();
        Contents { known, files, entries, heads, marks, offsets, own, moved: false }
    }

    fn opened(&mut self, i: usize) -> io::Result<Option<(File, Look)>> {
        let Candidate { sibling, file } = &self.files[i];
        if let Some(file) = file {
            return Ok(Some((file.try_clone()?, sibling.look.clone())));
        }
        self.open(&sibling.path, &sibling.look.identity)
    }

    fn open(&mut self, path: &Path, identity: &Identity) -> io::Result<Option<(File, Look)>> {
        match identity::open(path) {
            Ok((file, look)) if is_same_file(&look.identity, identity) => Ok(Some((file, look))),
            Ok(_) => {
                self.moved = true;
                Ok(None)
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => {
                self.moved = true;
                Ok(None)
            }
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The stream's own file, if it has the stream's bytes.
    fn find_own(&mut self, j: usize) -> io::Result<Option<Own>> {
        let e = &self.entries[j];
        if let StreamUse::Reading(Some(file)) = &e.reader {
            let look = identity::look(file)?;
            return Ok(e.has_bytes_in(file, &look)?.then(|| Own::Plain(file.clone())));
        }
        if let Some(file) = self.known.store.of(e.stream) {
            let look = identity::look(&file)?;
            if look.identity == e.identity && e.has_bytes_in(&file, &look)? {
                return Ok(Some(Own::Plain(file.into())));
            }
        }
        let is_read = matches!(e.reader, StreamUse::Reading(None));
        // If a newer stream has this file by now, its bytes are that stream's.
        let rank = |e: &Entry| (!matches!(e.reader, StreamUse::Free), !e.finished, e.stream);
        let same = |other: &&Entry| is_same_file(&other.identity, &e.identity);
        if !is_read && self.entries.iter().filter(same).any(|other| rank(other) > rank(e)) {
            return Ok(None);
        }
        let listed = self.files.iter().position(|c| is_same_file(&c.sibling.look.identity, &e.identity));
        let (opened, packed) = match listed {
            Some(i) if self.files[i].sibling.packed == Packed::Other => return Ok(Some(Own::Unknown)),
            Some(i) => (self.opened(i)?, self.files[i].sibling.packed),
            None => match identity::open(&e.path) {
                Ok(opened) if is_same_file(&opened.1.identity, &e.identity) => {
                    (Some(opened), crate::packed::packing(&e.path))
                }
                _ => (None, Packed::Plain),
            },
        };
        let Some((file, look)) = opened else { return Ok(is_read.then_some(Own::Unknown)) };
        if packed == Packed::Gzip {
            return Ok(match self.known.unpacked.end(&file, &look) {
                // If nothing was read and there is no birth time, the inode may belong to another file by now.
                Ok(_)
                    if is_read
                        || look.identity.born.is_some()
                        || e.proof().offset > 0 && e.has_bytes_in_gz(&file)? =>
                {
                    Some(Own::Packed(file.into(), look))
                }
                Ok(_) => None,
                Err(_) => Some(Own::Unknown),
            });
        }
        Ok(e.has_bytes_in(&file, &look)?.then(|| Own::Plain(file.into())))
    }

    fn own(&mut self, j: usize) -> io::Result<Option<Own>> {
        if let Some(own) = self.own.get(&j) {
            return Ok(own.clone());
        }
        let own = self.find_own(j)?;
        self.own.insert(j, own.clone());
        Ok(own)
    }
}

impl Peek for Contents<'_> {
    fn length(&mut self, i: usize) -> io::Result<Length> {
        let Sibling { packed, look, .. } = &self.files[i].sibling;
        match packed {
            Packed::Plain => Ok(Length::Bytes(look.size)),
            Packed::Other => Ok(Length::Unknown),
            Packed::Gzip => {
                let Some((file, look)) = self.opened(i)? else { return Ok(Length::Incomplete) };
                Ok(match self.known.unpacked.end(&file, &look) {
                    Ok((size, _)) => Length::Bytes(size),
                    Err(_) if self.known.unpacked.may_grow(&look) => Length::Incomplete,
                    Err(_) => Length::Unknown,
                })
            }
        }
    }

    fn mark(&mut self, i: usize, offset: u64) -> io::Result<Option<Mark>> {
        if let Some(mark) = self.marks.get(&(i, offset)) {
            return Ok(*mark);
        }
        let packed = self.files[i].sibling.packed;
        let mark = match self.opened(i)? {
            Some((file, look)) if packed == Packed::Plain => mark_if_there(&file, &look, offset)?,
            Some((file, look)) => {
                self.known.unpacked.mark(&file, &look, offset, &self.offsets).unwrap_or(None)
            }
            None => None,
        };
        self.marks.insert((i, offset), mark);
        Ok(mark)
    }

    fn head(&mut self, i: usize) -> io::Result<Vec<u8>> {
        if let Some(head) = self.heads.get(&i) {
            return Ok(head.clone());
        }
        let Sibling { packed, look, .. } = &self.files[i].sibling;
        let (packed, size) = (*packed, look.size);
        let head = match self.opened(i)? {
            Some((file, _)) if packed == Packed::Plain => before(&file, size.min(Mark::SPAN as u64))?,
            Some((file, look)) => self.known.unpacked.head(&file, &look, &self.offsets).unwrap_or_default(),
            None => Vec::new(),
        };
        self.heads.insert(i, head.clone());
        Ok(head)
    }

    fn sum(&mut self, i: usize) -> io::Result<Option<u32>> {
        let packed = self.files[i].sibling.packed;
        let Some((file, look)) = self.opened(i)? else { return Ok(None) };
        Ok(self.known.unpacked.sum(&file, &look, packed).ok())
    }

    fn is_own(&mut self, i: usize, j: usize) -> io::Result<bool> {
        let e = &self.entries[j];
        let Sibling { packed, look, .. } = &self.files[i].sibling;
        let as_it_was = (e.size, e.modified) == (look.size, look.modified);
        let is_short_copy = e.finished && e.identity.born.is_some() && look.size < e.at.offset;
        if matches!(e.reader, StreamUse::Reading(_)) || as_it_was || is_short_copy || *packed == Packed::Other
        {
            return Ok(true);
        }
        let packed = *packed;
        let Some((file, look)) = self.opened(i)? else { return Ok(true) };
        match packed {
            Packed::Gzip if look.identity.born.is_some() => Ok(true),
            Packed::Gzip => Ok(e.proof().offset > 0 && e.has_bytes_in_gz(&file).unwrap_or(true)),
            _ => e.has_bytes_in(&file, &look),
        }
    }

    fn is_there(&mut self, j: usize) -> io::Result<bool> {
        Ok(self.own(j)?.is_some())
    }

    fn is_still_there(&mut self, j: usize) -> io::Result<bool> {
        self.own.remove(&j);
        self.is_there(j)
    }

    fn own_mark(&mut self, j: usize, offset: u64) -> io::Result<Option<Mark>> {
        Ok(match self.own(j)? {
            Some(Own::Plain(file)) => mark_if_there(&file, &identity::look(&file)?, offset)?,
            Some(Own::Packed(file, look)) => {
                self.known.unpacked.mark(&file, &look, offset, &self.offsets).unwrap_or(None)
            }
            Some(Own::Unknown) | None => None,
        })
    }
}

/// `None`: the file is shorter.
fn mark_if_there(file: &File, look: &Look, offset: u64) -> io::Result<Option<Mark>> {
    if look.size < offset { Ok(None) } else { mark_at(file, offset).map(Some) }
}

/// For times in nanoseconds.
pub(super) use assign::second;
