//! Which stream is whose, and how far it has been framed: the one place where tails meet.
//!
//! Seeded from the saved state; locked for look-ups and small updates, at most once per chunk. Invariant: a stream is open in
//! at most one tail, so a file that two patterns or names lead to is read once.
//!
//! Tails that start together are registered before the first of them runs ([`Known::join`]), and each stream is given to one
//! path ([`Known::settle`]), so the order in which threads start does not matter.

use super::copies::goes_on;
use super::identity::{self, Look};
use super::siblings;
use crate::chunk::{Identity, Point, Range, StreamId};
use crate::fdstore::FdStore;
use crate::packed::{Packed, packing};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is known of a stream that no tail may have open now.
#[derive(Clone, Debug)]
pub struct Entry {
    pub stream: StreamId,
    /// The followed path that it was read for.
    pub path: PathBuf,
    pub identity: Identity,
    pub at: Point,
    /// The first ≤ 256 bytes, as far as a tail of this run knows them.
    pub head: Vec<u8>,
    /// Acknowledged beyond `at`, with where reading goes on behind each.
    pub beyond: Vec<(Range, Point)>,
    /// Last seen.
    pub size: u64,
    /// Last seen, in ns since 1970; 0: not known.
    pub modified: i64,
    /// Read to its end and left behind.
    pub finished: bool,
    /// A tail has it, and reads it or looks for it.
    pub open: bool,
    /// That tail has found it.
    pub reading: bool,
    /// Its tail cannot find the file: whichever tail finds it may go on with it.
    pub absent: bool,
}

impl Entry {
    /// Of a file of which nothing is known but who it is.
    pub fn of(identity: Identity) -> Entry {
        Entry {
            stream: StreamId(0),
            path: PathBuf::new(),
            identity,
            at: Point::default(),
            head: Vec::new(),
            beyond: Vec::new(),
            size: 0,
            modified: 0,
            finished: false,
            open: false,
            reading: false,
            absent: false,
        }
    }
}

/// What other tails know of a running one: how often it has looked, and how to make it look again.
#[derive(Debug)]
pub struct Looks {
    begun: AtomicU64,
    done: AtomicU64,
    nudge: Sender<()>,
}

impl Looks {
    pub fn begin(&self) {
        self.begun.fetch_add(1, SeqCst);
    }

    pub fn end(&self) {
        self.done.store(self.begun.load(SeqCst), SeqCst);
    }

    fn nudge(&self) {
        let _ = self.nudge.try_send(()); // a full slot is a nudge that was not taken yet
    }
}

#[derive(Debug, Default)]
pub struct Known {
    inner: Mutex<Inner>,
    /// Where files are kept beyond the end of this process.
    pub store: FdStore,
    /// When all this was saved, in seconds and nanoseconds since 1970.
    pub saved_at: Option<(i64, u32)>,
    /// A minute before, since a file may have come just then that is not in it. What came under a known pattern later is new.
    pub since: (i64, u32),
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    entries: BTreeMap<StreamId, Entry>,
    /// The running tails, by followed path.
    tails: HashMap<PathBuf, Arc<Looks>>,
    /// Tails whose path leads to a file that another tail reads.
    waiting: BTreeSet<(StreamId, PathBuf)>,
    /// Followed paths with a file that is in no stream yet.
    strangers: BTreeSet<PathBuf>,
}

/// What becomes of a file that a tail would read.
#[derive(Debug)]
pub enum Claim {
    /// Goes on with this stream. The caller still has to see that its mark agrees.
    Known(Entry),
    /// Another tail reads it.
    Anothers,
    New,
}

/// Finished entries kept per followed path, so that 10,000 rotations leave a bounded state.
pub const FINISHED_PER_PATH: usize = 64;

impl Known {
    pub fn new(entries: impl IntoIterator<Item = Entry>, next: u64) -> Known {
        let entries: BTreeMap<_, _> = entries.into_iter().map(|e| (e.stream, e)).collect();
        let above = entries.keys().next_back().map_or(0, |s| s.0 + 1);
        let inner = Mutex::new(Inner { next: next.max(above).max(1), entries, ..Inner::default() });
        Known { inner, store: FdStore::default(), saved_at: None, since: (0, 0) }
    }

    pub fn keeping(self, store: FdStore) -> Known {
        Known { store, ..self }
    }

    /// `None`: nothing was saved, or what was is damaged.
    pub fn saved_at(self, written: Option<(i64, u32)>) -> Known {
        Known { saved_at: written, since: written.map_or((0, 0), |(s, ns)| (s - 60, ns)), ..self }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tail of this path is about to run. To be called for all that start together before the first of them runs.
    pub fn join(&self, path: &Path) -> (Arc<Looks>, Receiver<()>) {
        let (nudge, nudged) = bounded(1);
        let looks = Arc::new(Looks { begun: AtomicU64::new(0), done: AtomicU64::new(0), nudge });
        self.lock().tails.insert(path.into(), looks.clone());
        (looks, nudged)
    }

    /// The tail of this path has ended.
    pub fn leave(&self, path: &Path) {
        let mut known = self.lock();
        known.tails.remove(path);
        known.strangers.remove(path);
        known.waiting.retain(|(_, waiter)| waiter != path);
    }

    /// Gives each stream to the path where its file is now, for tails that are about to run: a stream whose file was renamed
    /// to another followed path goes on there. Where the new name is a rotated form of the old one, the stream stays with its
    /// path, whose tail looks for it there.
    pub fn settle<'p>(&self, paths: impl Iterator<Item = &'p Path> + Clone) {
        let here: Vec<(&Path, Look)> =
            paths.filter_map(|path| Some((path, identity::look_at(path).ok()??))).collect();
        for (path, look) in &here {
            let Some(entry) = self.get(&look.identity, path) else {
                self.stranger(path);
                continue;
            };
            let still_there = here.iter().any(|(p, l)| *p == entry.path && l.identity == look.identity);
            let is_rotated = entry.path.parent() == path.parent()
                && entry
                    .path
                    .file_name()
                    .zip(path.file_name())
                    .is_some_and(|(old, new)| siblings::rotated(old, new).is_some());
            if entry.path == *path || entry.open || entry.finished || still_there || is_rotated {
                continue;
            }
            // A packed file is not written to, so who it is says enough.
            let is_packed = packing(path) != Packed::Plain;
            let has_its_bytes = is_packed
                || identity::open(path)
                    .is_ok_and(|(file, look)| goes_on(&file, &look, &entry).unwrap_or(false));
            if let Some(entry) = self.lock().entries.get_mut(&entry.stream).filter(|_| has_its_bytes) {
                entry.path = path.to_path_buf();
            }
        }
    }

    /// Takes the file for `path`, if no other tail has it.
    pub fn claim(&self, look: &Look, path: &Path) -> Claim {
        let mut known = self.lock();
        let Some(entry) = known.by_identity(&look.identity, path) else { return Claim::New };
        let (stream, of) = (entry.stream, entry.path.clone());
        let is_open = entry.open && !entry.absent;
        let is_expected = !entry.open
            && !entry.finished
            && of != path
            && known.tails.get(&of).is_some_and(|tail| tail.done.load(SeqCst) == 0);
        if is_open || is_expected {
            known.waiting.insert((stream, path.into()));
            return Claim::Anothers;
        }
        let Some(entry) = known.entries.get_mut(&stream) else { return Claim::New };
        (entry.open, entry.reading, entry.absent) = (true, false, false);
        entry.path = path.into();
        entry.identity = look.identity.clone();
        Claim::Known(entry.clone())
    }

    /// Takes an entry up again, wherever its bytes are now.
    pub fn take(&self, stream: StreamId, identity: &Identity) -> Option<Entry> {
        let mut known = self.lock();
        let entry = known.entries.get_mut(&stream).filter(|e| !e.open)?;
        (entry.open, entry.finished, entry.absent) = (true, false, false);
        entry.reading = false;
        entry.identity = identity.clone();
        Some(entry.clone())
    }

    /// A new stream, open, unless another tail has made the file known meanwhile.
    pub fn begin_if_new(&self, look: &Look, path: &Path) -> Option<Entry> {
        let mut known = self.lock();
        known.by_identity(&look.identity, path).is_none().then(|| known.begin(look, path))
    }

    /// A new stream, open, in a file whose former stream was the caller's.
    pub fn begin(&self, look: &Look, path: &Path) -> Entry {
        self.lock().begin(look, path)
    }

    /// The ID of a stream that no tail will ask about: a journal file's.
    pub fn new_stream(&self) -> StreamId {
        let mut known = self.lock();
        known.next += 1;
        StreamId(known.next - 1)
    }

    /// A tail lets a stream go, read up to `at`.
    pub fn release(&self, stream: StreamId, at: Point, size: u64, modified: i64, finished: bool) {
        let mut known = self.lock();
        let Some(entry) = known.entries.get_mut(&stream) else { return };
        entry.at = at;
        entry.beyond.retain(|(range, _)| range.start >= at.offset);
        (entry.size, entry.modified, entry.finished, entry.open) = (size, modified, finished, false);
        (entry.absent, entry.reading) = (false, false);
        if finished {
            let path = entry.path.clone();
            known.forget_some(&path);
        }
        known.wake_waiting(stream);
    }

    /// Framed up to here, and how it begins: what a copy of its file is known by.
    pub fn progress(&self, stream: StreamId, at: Point, head: &[u8]) {
        if let Some(e) = self.lock().entries.get_mut(&stream) {
            (e.at, e.reading) = (at, true);
            if head.len() > e.head.len() {
                e.head = head.into();
            }
        }
    }

    /// The file at this followed path is in no stream yet: tails may find in it what they miss.
    pub fn stranger(&self, path: &Path) {
        self.lock().strangers.insert(path.into());
    }

    /// The file at this followed path is in a stream now.
    pub fn met(&self, path: &Path) {
        self.lock().strangers.remove(path);
    }

    pub fn strangers(&self) -> Vec<PathBuf> {
        self.lock().strangers.iter().cloned().collect()
    }

    /// The tail of this path cannot find the stream's file.
    pub fn miss(&self, stream: StreamId) {
        let mut known = self.lock();
        if let Some(e) = known.entries.get_mut(&stream) {
            e.absent = true;
        }
        known.wake_waiting(stream);
    }

    /// For the tail of `path`, which missed this stream: whether no other has found it meanwhile. None can then, until
    /// [`Known::miss`] is called again.
    pub fn take_missing(&self, stream: StreamId, path: &Path) -> bool {
        let mut known = self.lock();
        let Some(e) = known.entries.get_mut(&stream).filter(|e| e.absent && e.path == path) else {
            return false;
        };
        e.absent = false;
        true
    }

    /// Whether the tail of another path reads this file; that one is made to look, since it may have no events for it.
    pub fn is_read_elsewhere(&self, identity: &Identity, path: &Path) -> bool {
        let mut known = self.lock();
        let Some(entry) = known.by_identity(identity, path).filter(|e| e.open && !e.absent) else {
            return false;
        };
        let (stream, of) = (entry.stream, entry.path.clone());
        if of != path {
            known.tails.get(&of).inspect(|tail| tail.nudge());
            known.waiting.insert((stream, path.into()));
        }
        true
    }

    /// Whether the stream waits for the first look of its tail.
    pub fn is_expected(&self, entry: &Entry) -> bool {
        let known = self.lock();
        let has_not_looked = |tail: &Arc<Looks>| tail.done.load(SeqCst) == 0;
        !entry.finished && !entry.open && known.tails.get(&entry.path).is_some_and(has_not_looked)
    }

    /// Whether every running tail has had its first look.
    pub fn all_have_looked(&self) -> bool {
        self.lock().tails.values().all(|tail| tail.done.load(SeqCst) > 0)
    }

    /// Whether a tail reads this very file.
    pub fn is_being_read(&self, identity: &Identity, path: &Path) -> bool {
        self.lock().by_identity(identity, path).is_some_and(|e| e.open && e.reading)
    }

    /// How many looks the tail of this path has begun, and makes it look again. `None`: it does not run.
    pub fn looks_begun(&self, path: &Path) -> Option<u64> {
        let known = self.lock();
        let tail = known.tails.get(path)?;
        tail.nudge();
        Some(tail.begun.load(SeqCst))
    }

    /// Whether the tail of this path has done a look that it began after so many, or has ended.
    pub fn has_looked_since(&self, path: &Path, begun: u64) -> bool {
        let known = self.lock();
        let Some(tail) = known.tails.get(path) else { return true };
        tail.nudge();
        // One look may open a new file and leave a truncation to the next.
        tail.done.load(SeqCst) >= begun + 3
    }

    /// A file that no tail has open has grown: what is lost with it is counted up to here.
    pub fn grew(&self, look: &Look, path: &Path) {
        let mut known = self.lock();
        let entry = known.by_identity(&look.identity, path).filter(|e| !e.open && look.size > e.size);
        if let Some(entry) = entry {
            (entry.size, entry.modified) = (look.size, look.modified);
        }
    }

    /// The same bytes as a stream's, in another file (a copy, a `.gz`).
    pub fn found_again(&self, stream: StreamId, identity: &Identity) {
        if let Some(e) = self.lock().entries.get_mut(&stream) {
            e.identity = identity.clone();
        }
    }

    /// The same, before the stream goes on there. `None`: another tail reads that file. Else where the stream was before.
    pub fn go_on_in(&self, stream: StreamId, identity: &Identity, path: &Path) -> Option<Identity> {
        let mut known = self.lock();
        if known.by_identity(identity, path).is_some_and(|e| e.stream != stream && e.open && e.reading) {
            return None;
        }
        let e = known.entries.get_mut(&stream)?;
        Some(std::mem::replace(&mut e.identity, identity.clone()))
    }

    /// Streams of a followed path are free again, but for these.
    pub fn let_go(&self, path: &Path, but: &[StreamId]) {
        for e in self.lock().entries.values_mut().filter(|e| e.path == path && !but.contains(&e.stream)) {
            (e.open, e.reading, e.absent) = (false, false, false);
        }
    }

    /// A stream that ended otherwise than by being read (truncated, lost): its file is not known any more.
    pub fn forget(&self, stream: StreamId) {
        let mut known = self.lock();
        known.entries.remove(&stream);
        known.wake_waiting(stream);
    }

    /// All streams of which `which` is true, oldest first.
    pub fn all(&self, which: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        self.lock().entries.values().filter(|e| which(e)).cloned().collect()
    }

    /// All streams whose paths are of the same family as this one, oldest first.
    pub fn family_of(&self, path: &Path) -> Vec<Entry> {
        let base = siblings::base_of(path.file_name().unwrap_or_default());
        let is_kin = |other: &Path| {
            other == path
                || other.parent() == path.parent()
                    && siblings::base_of(other.file_name().unwrap_or_default()) == base
        };
        self.lock().entries.values().filter(|e| is_kin(&e.path)).cloned().collect()
    }

    /// Who has this file, as seen from a followed path.
    pub fn get(&self, identity: &Identity, path: &Path) -> Option<Entry> {
        self.lock().by_identity(identity, path).cloned()
    }

    /// Followed paths with streams that are not read to their end, and that no tail has open.
    pub fn unread(&self) -> Vec<PathBuf> {
        let known = self.lock();
        let paths: BTreeSet<&PathBuf> =
            known.entries.values().filter(|e| !e.finished && !e.open).map(|e| &e.path).collect();
        paths.into_iter().cloned().collect()
    }

    /// Whether the stream is one of this followed path.
    pub fn is_of(&self, stream: StreamId, path: &Path) -> bool {
        self.lock().entries.get(&stream).is_none_or(|e| e.path == path)
    }

    /// All streams of a followed path, oldest first.
    pub fn of(&self, path: &Path) -> Vec<Entry> {
        self.lock().entries.values().filter(|e| e.path == path).cloned().collect()
    }
}

impl Inner {
    fn begin(&mut self, look: &Look, path: &Path) -> Entry {
        let stream = StreamId(self.next);
        self.next += 1;
        let entry = Entry {
            stream,
            path: path.into(),
            identity: look.identity.clone(),
            at: Point::default(),
            head: Vec::new(),
            beyond: Vec::new(),
            size: look.size,
            modified: look.modified,
            finished: false,
            open: true,
            reading: false,
            absent: false,
        };
        self.entries.insert(stream, entry.clone());
        entry
    }

    /// The stream of a file: one that is not finished before others, then the newest. After a reboot, or when it is mounted
    /// again, the device number may be another one: inode and birth time say enough, and where there is no birth time (NFS,
    /// FUSE), inode and path.
    fn by_identity(&mut self, id: &Identity, path: &Path) -> Option<&mut Entry> {
        let same = |e: &Entry| {
            (e.identity.ino, e.identity.born) == (id.ino, id.born)
                && (e.identity.dev == id.dev || id.born.is_some() || e.path == path)
                && id.ino != 0 // no file has that: it is gone, and only its mark is of use
        };
        self.entries.values_mut().filter(|e| same(e)).max_by_key(|e| (e.open, !e.finished, e.stream))
    }

    /// Tails that found another one at their file look again.
    fn wake_waiting(&mut self, stream: StreamId) {
        let waiting = std::mem::take(&mut self.waiting);
        let (woken, waiting) = waiting.into_iter().partition(|(s, _)| *s == stream);
        self.waiting = waiting;
        let woken: BTreeSet<(StreamId, PathBuf)> = woken;
        woken.iter().filter_map(|(_, path)| self.tails.get(path)).for_each(|tail| tail.nudge());
    }

    fn forget_some(&mut self, path: &Path) {
        let finished: Vec<StreamId> = self
            .entries
            .values()
            .filter(|e| e.finished && !e.open && e.path == path)
            .map(|e| e.stream)
            .collect();
        for stream in finished.iter().take(finished.len().saturating_sub(FINISHED_PER_PATH)) {
            self.entries.remove(stream);
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

    /// A file system without birth times is mounted again and has another number. Fails when its files are taken for new
    /// ones, or a file on another file system for one of them.
    #[test]
    fn mounted_again() {
        let id = |dev, ino| Identity { dev, ino, born: None };
        let look = |dev| Look { identity: id(dev, 7), ..identity::look_at(Path::new("/")).unwrap().unwrap() };
        let known = Known::new([], 1);
        let (path, other) = (Path::new("/mnt/a"), Path::new("/other/a"));
        let stream = known.begin(&look(40), path).stream;
        known.release(stream, Point { offset: 1, ..Point::default() }, 1, 0, false);
        assert!(known.get(&id(41, 7), other).is_none() && known.get(&id(41, 8), path).is_none());
        assert!(matches!(known.claim(&look(41), path), Claim::Known(e) if e.stream == stream));
        assert!(known.get(&id(41, 7), other).is_some_and(|e| e.open), "its number is the new one");
    }
}
