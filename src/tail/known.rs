//! The registry of known streams: which tail reads each, from which file, and how far. Loaded from the saved state. Its
//! lock is held for lookups and small updates, at most once per chunk.
//!
//! Invariant: a stream is open in at most one tail, so a file that two patterns or names lead to is read once.
//! [`super::assign`] decides which stream a file's bytes belong to; only one tail per folder decides at a time
//! ([`Known::folder`]). Tails that start together are registered before the first of them runs ([`Known::join`]), and each
//! stream is given to one path ([`Known::settle`]), so the order in which threads start does not matter.

mod entry;
mod table;

use super::identity::{self, Look};
use super::siblings;
use super::unpacked::UnpackedCache;
use crate::fdstore::FdStore;
use crate::lock::lock;
use crate::packed::{Packed, packing};
use crate::record::{Identity, Mark, Point, StreamId};
use crate::wake_slot::WakeSlot;
pub use entry::{Entry, StreamUse};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, MutexGuard};
use table::KnownTable;

/// A tail that runs or is about to.
#[derive(Debug)]
struct Running {
    slot: Arc<WakeSlot>,
    /// It has taken the streams of its path.
    has_begun: bool,
    /// The file at its path belongs to no stream yet.
    unassigned: bool,
}

#[derive(Debug, Default)]
pub struct Known {
    inner: Mutex<Inner>,
    /// One lock per folder, see [`Known::folder`].
    folders: Mutex<HashMap<PathBuf, Arc<Mutex<()>>>>,
    pub unpacked: UnpackedCache,
    /// Keeps files open beyond the end of this process.
    pub store: FdStore,
    /// When the loaded state was saved, in seconds and nanoseconds since 1970.
    pub saved_at: Option<(i64, u32)>,
    /// One minute before `saved_at`, because a file may have appeared just before the save without being in it. Anything
    /// that appeared later under a known pattern is new.
    pub since: (i64, u32),
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    table: KnownTable,
    /// The running tails, by followed path.
    tails: HashMap<PathBuf, Running>,
    /// Paths whose tails must look again when something changes: another tail has their file, or it is undecided.
    waiting: BTreeSet<PathBuf>,
}

/// Who may read a file that a tail wants to open.
#[derive(Debug)]
pub enum Claim {
    /// Continue this stream. The caller still has to verify its mark.
    Known(Entry),
    /// Another tail reads it.
    Anothers,
    New,
}

/// Finished entries kept per followed path, so that 10,000 rotations leave a bounded state.
pub const FINISHED_PER_PATH: usize = 64;

impl Known {
    pub fn new(entries: impl IntoIterator<Item = Entry>, next: u64) -> Known {
        let mut inner = Inner { next: next.max(1), ..Inner::default() };
        for entry in entries {
            inner.next = inner.next.max(entry.stream.0 + 1);
            inner.table.insert(entry);
        }
        Known { inner: Mutex::new(inner), ..Known::default() }
    }

    pub fn keeping(self, store: FdStore) -> Known {
        Known { store, ..self }
    }

    /// `None`: there was no saved state, or it was damaged.
    pub fn saved_at(self, written: Option<(i64, u32)>) -> Known {
        Known { saved_at: written, since: written.map_or((0, 0), |(s, ns)| (s - 60, ns)), ..self }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// A tail holds this lock while it decides about the files in the folder of its path and acts on that, so decisions
    /// about one folder never overlap. A folder on a hung file system blocks no other folder.
    pub fn folder(&self, path: &Path) -> Arc<Mutex<()>> {
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        let mut folders = lock(&self.folders);
        folders.entry(folder).or_default().clone()
    }

    /// Registers a tail that is about to run. Tails that start together must all be registered before the first of them
    /// runs.
    pub fn join(&self, path: &Path, slot: Arc<WakeSlot>) {
        let tail = Running { slot, has_begun: false, unassigned: true };
        self.lock().tails.insert(path.into(), tail);
    }

    /// What wakes the tail of this path.
    pub fn slot(&self, path: &Path) -> Option<Arc<WakeSlot>> {
        Some(self.lock().tails.get(path)?.slot.clone())
    }

    /// The tail of this path has taken its own streams.
    pub fn begun(&self, path: &Path) {
        let mut known = self.lock();
        if let Some(tail) = known.tails.get_mut(path).filter(|tail| !tail.has_begun) {
            tail.has_begun = true;
            known.nudge_waiting();
        }
    }

    /// The tail of this path has ended.
    pub fn leave(&self, path: &Path) {
        let mut known = self.lock();
        known.tails.remove(path);
        known.nudge_waiting();
    }

    /// Gives each stream to the path where its file is now, for tails that are about to run: a stream whose file was renamed
    /// to another followed path continues there. If the new name is a rotated form of the old one, the stream stays with its
    /// path, whose tail looks for it there.
    pub fn settle<'p>(&self, paths: impl Iterator<Item = &'p Path> + Clone) {
        let here: Vec<(&Path, Look)> =
            paths.filter_map(|path| Some((path, identity::look_at(path).ok()??))).collect();
        let places: HashMap<&Path, &Look> = here.iter().map(|(path, look)| (*path, look)).collect();
        for (path, look) in &here {
            let Some(entry) = self.get(&look.identity, path) else { continue };
            let still_there = places.get(&*entry.path).is_some_and(|l| l.identity == look.identity);
            let is_rotated = entry.path.parent() == path.parent()
                && entry
                    .path
                    .file_name()
                    .zip(path.file_name())
                    .is_some_and(|(old, new)| siblings::rotated(old, new).is_some());
            let has_tail = !matches!(entry.reader, StreamUse::Free);
            if entry.path == *path || has_tail || entry.finished || still_there || is_rotated {
                continue;
            }
            // A compressed file is never appended to, so its identity is enough.
            let is_packed = packing(path) != Packed::Plain;
            let has_its_bytes = is_packed
                || identity::open(path)
                    .is_ok_and(|(file, look)| entry.has_bytes_in(&file, &look).unwrap_or(false));
            if has_its_bytes {
                self.lock().table.move_to(entry.stream, None, Some(path));
            }
        }
    }

    /// Takes the file for `path` unless another tail has it.
    pub fn claim(&self, look: &Look, path: &Path) -> Claim {
        let mut known = self.lock();
        let Some(entry) = known.table.by_identity(&look.identity, path) else { return Claim::New };
        let stream = entry.stream;
        if entry.reader.is_taken() || known.is_expected(entry, path) {
            known.wait(path);
            return Claim::Anothers;
        }
        let Some(entry) = known.give(stream, &look.identity, path) else { return Claim::New };
        entry.reader = StreamUse::Opening;
        Claim::Known(entry.clone())
    }

    /// Takes a known stream that no tail has, wherever its bytes are now.
    pub fn take(&self, stream: StreamId, identity: &Identity) -> Option<Entry> {
        let mut known = self.lock();
        let is_free = |e: &&Entry| matches!(e.reader, StreamUse::Free);
        known.table.get(stream).filter(is_free)?;
        known.table.move_to(stream, Some(identity), None);
        let entry = known.table.get_mut(stream)?;
        (entry.reader, entry.finished) = (StreamUse::Opening, false);
        Some(entry.clone())
    }

    /// Takes a stream that continues in the file at `path`, unless another tail has it or is about to look for it.
    pub fn take_for(&self, stream: StreamId, identity: &Identity, path: &Path) -> Option<Entry> {
        let mut known = self.lock();
        let entry = known.table.get(stream)?;
        if entry.reader.is_taken() || known.is_expected(entry, path) {
            let of = entry.path.clone();
            known.tails.get(&of).inspect(|tail| tail.slot.nudge());
            known.wait(path);
            return None;
        }
        let entry = known.give(stream, identity, path)?;
        (entry.reader, entry.finished) = (StreamUse::Opening, false);
        Some(entry.clone())
    }

    /// Starts a new stream in the state `Opening`, unless another tail has registered the file meanwhile.
    pub fn begin_if_new(&self, look: &Look, path: &Path) -> Option<Entry> {
        let mut known = self.lock();
        known.table.by_identity(&look.identity, path).is_none().then(|| known.begin(look, path))
    }

    /// Starts a new stream in a file whose previous stream belonged to the caller.
    pub fn begin(&self, look: &Look, path: &Path) -> Entry {
        self.lock().begin(look, path)
    }

    /// A stream ID for a journal file, which no tail will ask about.
    pub fn new_stream(&self) -> StreamId {
        let mut known = self.lock();
        known.next += 1;
        StreamId(known.next - 1)
    }

    /// A tail releases a stream that it has read up to `at`.
    pub fn release(&self, stream: StreamId, at: Point, size: u64, modified: i64, finished: bool) {
        let mut known = self.lock();
        let Some(entry) = known.table.get_mut(stream) else { return };
        entry.at = at;
        entry.beyond.retain(|(range, _)| range.start >= at.offset);
        (entry.size, entry.modified, entry.finished) = (size, modified, finished);
        entry.reader = StreamUse::Free;
        if finished {
            let path = entry.path.clone();
            known.forget_some(&path);
        }
        known.nudge_waiting();
    }

    /// A tail reads the stream, from this file if it is a plain one.
    pub fn reads(&self, stream: StreamId, at: Point, head: &[u8], file: Option<&Arc<File>>) {
        self.progress(stream, at, head);
        if let Some(e) = self.lock().table.get_mut(stream) {
            e.reader = StreamUse::Reading(file.cloned());
        }
    }

    /// Records how far the stream is framed and how it begins; a copy of its file is recognized by these.
    pub fn progress(&self, stream: StreamId, at: Point, head: &[u8]) {
        if let Some(e) = self.lock().table.get_mut(stream) {
            e.at = at;
            if head.len() > e.head.len() {
                e.head = head.into();
            }
        }
    }

    /// Marks the file at this followed path as belonging to no stream yet. Tails may find their missing streams in it.
    pub fn unassigned(&self, path: &Path, is_so: bool) {
        let mut known = self.lock();
        if let Some(tail) = known.tails.get_mut(path) {
            tail.unassigned = is_so;
        }
        if is_so {
            known.waiting.insert(path.into());
        }
    }

    /// Other followed paths in the same folder whose files belong to no stream yet.
    pub fn unassigned_beside(&self, path: &Path) -> Vec<PathBuf> {
        let known = self.lock();
        let beside =
            |(p, tail): &(&PathBuf, &Running)| tail.unassigned && *p != path && p.parent() == path.parent();
        let mut paths: Vec<PathBuf> = known.tails.iter().filter(beside).map(|(p, _)| p.clone()).collect();
        paths.sort_unstable();
        paths
    }

    /// The tail of this stream cannot find its bytes; `entry` is its last state.
    pub fn miss(&self, entry: &Entry) {
        let mut known = self.lock();
        let Some(e) = known.table.get_mut(entry.stream) else { return };
        (e.at, e.beyond) = (entry.at, entry.beyond.clone());
        (e.size, e.modified, e.finished) = (entry.size, entry.modified, false);
        if !matches!(e.reader, StreamUse::Missing) {
            e.reader = StreamUse::Missing;
            known.nudge_waiting();
        }
    }

    /// Called by the tail of `path`, which missed this stream: true if no other tail has found it meanwhile. After that none
    /// can, until [`Known::miss`] is called again.
    pub fn take_missing(&self, stream: StreamId, path: &Path) -> bool {
        let mut known = self.lock();
        known.table.get_mut(stream).is_some_and(|e| matches!(e.reader, StreamUse::Missing) && e.path == path)
    }

    /// Whether the tail of another path has this file. If so, makes that tail look, because it may get no events for it.
    pub fn is_read_elsewhere(&self, identity: &Identity, path: &Path) -> bool {
        let mut known = self.lock();
        let Some(entry) = known.table.by_identity(identity, path).filter(|e| e.reader.is_taken()) else {
            return false;
        };
        let of = entry.path.clone();
        if of != path {
            known.tails.get(&of).inspect(|tail| tail.slot.nudge());
            known.wait(path);
        }
        true
    }

    /// Whether a tail reads this file.
    pub fn is_being_read(&self, identity: &Identity, path: &Path) -> bool {
        let is_read = |e: &Entry| matches!(e.reader, StreamUse::Reading(_));
        self.lock().table.by_identity(identity, path).is_some_and(is_read)
    }

    /// Makes the tail of this stream look, and returns its count of looks so far. `None`: it is not running.
    pub fn ask_to_look(&self, stream: StreamId) -> Option<u64> {
        let known = self.lock();
        let tail = known.tails.get(&known.table.get(stream)?.path)?;
        tail.slot.nudge();
        Some(tail.slot.looks.load(SeqCst))
    }

    /// Whether the tail of this stream has looked often enough since then to have seen what happened to its files, or has
    /// ended.
    pub fn has_looked_since(&self, stream: StreamId, looks: u64) -> bool {
        let known = self.lock();
        let Some(tail) = known.table.get(stream).and_then(|e| known.tails.get(&e.path)) else { return true };
        tail.slot.nudge();
        // One look may be in progress, and one may open a new file and leave a truncation to the next.
        tail.slot.looks.load(SeqCst) >= looks + 6
    }

    /// A file that no tail has open has grown. If it disappears, the loss is counted up to this size.
    pub fn grew(&self, look: &Look, path: &Path) {
        let mut known = self.lock();
        let is_free = |e: &&Entry| matches!(e.reader, StreamUse::Free) && look.size > e.size;
        let entry = known.table.by_identity(&look.identity, path).filter(is_free);
        let stream = entry.map(|e| e.stream);
        if let Some(entry) = stream.and_then(|stream| known.table.get_mut(stream)) {
            (entry.size, entry.modified) = (look.size, look.modified);
        }
    }

    /// The stream's bytes were found in another file (a copy, a `.gz`); [`Identity::default`] if no file has them.
    pub fn found_again(&self, stream: StreamId, identity: &Identity) {
        self.lock().table.move_to(stream, Some(identity), None);
    }

    /// The stream that was read from this file no longer has its bytes there.
    pub fn has_other_bytes(&self, identity: &Identity, path: &Path) {
        let mut known = self.lock();
        let entry =
            known.table.by_identity(identity, path).filter(|e| !matches!(e.reader, StreamUse::Reading(_)));
        if let Some(stream) = entry.map(|e| e.stream) {
            known.table.move_to(stream, Some(&Identity::default()), None);
        }
    }

    /// Like [`Known::found_again`], just before the stream continues in that file. Returns its former identity. `None`:
    /// another tail reads that file.
    pub fn continue_in(&self, stream: StreamId, identity: &Identity, path: &Path) -> Option<Identity> {
        let mut known = self.lock();
        let is_read = |e: &Entry| e.stream != stream && matches!(e.reader, StreamUse::Reading(_));
        if known.table.by_identity(identity, path).is_some_and(is_read) {
            return None;
        }
        let before = known.table.get(stream)?.identity.clone();
        known.table.move_to(stream, Some(identity), None);
        Some(before)
    }

    /// Releases the streams of a followed path, except these.
    pub fn release_all_but(&self, path: &Path, but: &[StreamId]) {
        let mut known = self.lock();
        let streams: Vec<StreamId> = known.table.of(path).map(|e| e.stream).collect();
        for stream in streams.iter().filter(|stream| !but.contains(stream)) {
            if let Some(e) = known.table.get_mut(*stream) {
                e.reader = StreamUse::Free;
            }
        }
    }

    /// A stream that ended without being read to its end (truncated, lost): forgets its file.
    pub fn forget(&self, stream: StreamId) {
        let mut known = self.lock();
        known.table.remove(stream);
        known.nudge_waiting();
    }

    /// All streams, oldest first.
    pub fn all(&self) -> Vec<Entry> {
        self.lock().table.iter().cloned().collect()
    }

    /// Whether a finished stream ends at this offset with this mark.
    pub fn ends_so(&self, offset: u64, mark: Mark) -> bool {
        self.lock().table.iter().any(|e| e.finished && (e.at.offset, e.at.mark) == (offset, mark))
    }

    /// The stream of this file, as seen from a followed path.
    pub fn get(&self, identity: &Identity, path: &Path) -> Option<Entry> {
        self.lock().table.by_identity(identity, path).cloned()
    }

    /// Followed paths with unfinished streams that no tail has open.
    pub fn unread(&self) -> Vec<PathBuf> {
        let known = self.lock();
        let is_free = |e: &&Entry| !e.finished && matches!(e.reader, StreamUse::Free | StreamUse::Missing);
        let mut paths: Vec<PathBuf> = known.table.iter().filter(is_free).map(|e| e.path.clone()).collect();
        paths.sort_unstable();
        paths.dedup();
        paths
    }

    /// Whether the stream belongs to this followed path.
    pub fn is_of(&self, stream: StreamId, path: &Path) -> bool {
        self.lock().table.get(stream).is_none_or(|e| e.path == path)
    }

    /// All streams of a followed path, oldest first.
    pub fn of(&self, path: &Path) -> Vec<Entry> {
        self.lock().table.of(path).cloned().collect()
    }
}

impl Inner {
    fn begin(&mut self, look: &Look, path: &Path) -> Entry {
        let stream = StreamId(self.next);
        self.next += 1;
        let entry = Entry {
            stream,
            path: path.into(),
            size: look.size,
            modified: look.modified,
            reader: StreamUse::Opening,
            ..Entry::of(look.identity.clone())
        };
        self.table.insert(entry.clone());
        entry
    }

    /// The stream continues in this file, at this followed path. The tail it belonged to may wait for its last save.
    fn give(&mut self, stream: StreamId, identity: &Identity, path: &Path) -> Option<&mut Entry> {
        let former = self.table.get(stream)?.path.clone();
        self.table.move_to(stream, Some(identity), Some(path));
        if former != path {
            self.tails.get(&former).inspect(|tail| tail.slot.nudge());
        }
        self.table.get_mut(stream)
    }

    /// Whether the tail of a different path is about to look for the stream.
    fn is_expected(&self, entry: &Entry, path: &Path) -> bool {
        let is_free = matches!(entry.reader, StreamUse::Free) && !entry.finished;
        is_free && entry.path != path && self.tails.get(&entry.path).is_some_and(|tail| !tail.has_begun)
    }

    /// Makes the tail of this path look again when something changes.
    fn wait(&mut self, path: &Path) {
        self.waiting.insert(path.into());
    }

    fn nudge_waiting(&mut self) {
        let tails = &self.tails;
        self.waiting.retain(|path| {
            let tail = tails.get(path).inspect(|tail| tail.slot.nudge());
            tail.is_some_and(|tail| tail.unassigned)
        });
    }

    fn forget_some(&mut self, path: &Path) {
        let is_old = |e: &&Entry| e.finished && matches!(e.reader, StreamUse::Free);
        let finished: Vec<StreamId> = self.table.of(path).filter(is_old).map(|e| e.stream).collect();
        for stream in finished.iter().take(finished.len().saturating_sub(FINISHED_PER_PATH)) {
            self.table.remove(*stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tail::identity;

    #[test]
    fn a_file_is_read_by_one_tail_only() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, "x").unwrap();
        std::fs::hard_link(&a, &b).unwrap();
        let known = Known::new([], 1);
        let look = identity::look_at(&a).unwrap().unwrap();
        assert!(matches!(known.claim(&look, &a), Claim::New));
        let stream = known.begin(&look, &a).stream;
        let other = identity::look_at(&b).unwrap().unwrap();
        assert!(matches!(known.claim(&other, &b), Claim::Anothers));
        known.release(stream, Point { offset: 1, ..Point::default() }, 1, 0, false);
        assert!(matches!(known.claim(&other, &b), Claim::Known(e) if e.stream == stream && e.at.offset == 1));
    }

    #[test]
    fn finished_streams_are_bounded() {
        let known = Known::new([], 7);
        let look = identity::look_at(Path::new("/")).unwrap().unwrap();
        for i in 0..1000 {
            let look = Look { identity: Identity { ino: i, ..look.identity.clone() }, ..look.clone() };
            let s = known.begin(&look, Path::new("/f"));
            known.release(s.stream, Point::default(), 0, 0, true);
        }
        assert_eq!(known.of(Path::new("/f")).len(), FINISHED_PER_PATH);
    }

    /// A remount changes the device number of a file system without birth times. Fails when its files count as new, or a
    /// file on another file system is mistaken for one of them.
    #[test]
    fn a_remount_changes_the_device_number() {
        let id = |dev, ino| Identity { dev, ino, born: None };
        let look = |dev| Look { identity: id(dev, 7), ..identity::look_at(Path::new("/")).unwrap().unwrap() };
        let known = Known::new([], 1);
        let (path, other) = (Path::new("/mnt/a"), Path::new("/other/a"));
        let stream = known.begin(&look(40), path).stream;
        known.release(stream, Point { offset: 1, ..Point::default() }, 1, 0, false);
        assert!(known.get(&id(41, 7), other).is_none() && known.get(&id(41, 8), path).is_none());
        assert!(matches!(known.claim(&look(41), path), Claim::Known(e) if e.stream == stream));
        assert!(
            known.get(&id(41, 7), other).is_some_and(|e| e.reader.is_taken()),
            "it has the new device number"
        );
    }
}
