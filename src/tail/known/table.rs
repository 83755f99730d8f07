//! The known streams, indexed by stream number, by inode and by followed path.

use super::entry::{Entry, StreamUse};
use crate::record::{Identity, StreamId};
use crate::tail::assign::is_same_file;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

#[derive(Debug, Default)]
pub struct KnownTable {
    entries: BTreeMap<StreamId, Entry>,
    by_inode: HashMap<u64, BTreeSet<StreamId>>,
    by_path: HashMap<PathBuf, BTreeSet<StreamId>>,
}

impl KnownTable {
    pub fn insert(&mut self, entry: Entry) {
        self.by_inode.entry(entry.identity.ino).or_default().insert(entry.stream);
        self.by_path.entry(entry.path.clone()).or_default().insert(entry.stream);
        self.entries.insert(entry.stream, entry);
    }

    pub fn remove(&mut self, stream: StreamId) {
        if let Some(entry) = self.entries.remove(&stream) {
            take_out(&mut self.by_inode, &entry.identity.ino, stream);
            take_out(&mut self.by_path, &entry.path, stream);
        }
    }

    /// Changes the identity or the path together with the indexes.
    pub fn move_to(&mut self, stream: StreamId, identity: Option<&Identity>, path: Option<&Path>) {
        let Some(mut entry) = self.entries.get(&stream).cloned() else { return };
        self.remove(stream);
        if let Some(identity) = identity {
            entry.identity = identity.clone();
        }
        if let Some(path) = path {
            entry.path = path.into();
        }
        self.insert(entry);
    }

    pub fn get(&self, stream: StreamId) -> Option<&Entry> {
        self.entries.get(&stream)
    }

    /// The caller must not change the identity or the path: see [`KnownTable::move_to`].
    pub fn get_mut(&mut self, stream: StreamId) -> Option<&mut Entry> {
        self.entries.get_mut(&stream)
    }

    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Oldest first.
    pub fn of(&self, path: &Path) -> impl Iterator<Item = &Entry> {
        self.by_path.get(path).into_iter().flatten().filter_map(|s| self.entries.get(s))
    }

    /// The stream of a file as seen from a followed path. Prefers a stream that a tail has, then unfinished ones, then the
    /// newest. Without birth times (NFS, FUSE) the device number may change at a mount, so inode and path are enough there.
    pub fn by_identity(&self, id: &Identity, path: &Path) -> Option<&Entry> {
        let same = |e: &&Entry| {
            is_same_file(&e.identity, id)
                || id.ino != 0 && (e.identity.ino, e.identity.born) == (id.ino, id.born) && e.path == path
        };
        let entries = self.by_inode.get(&id.ino)?.iter().filter_map(|s| self.entries.get(s));
        let has_tail = |e: &Entry| !matches!(e.reader, StreamUse::Free);
        entries.filter(same).max_by_key(|e| (has_tail(e), !e.finished, e.stream))
    }
}

fn take_out<K: std::hash::Hash + Eq>(index: &mut HashMap<K, BTreeSet<StreamId>>, key: &K, stream: StreamId) {
    if let Some(streams) = index.get_mut(key) {
        streams.remove(&stream);
        if streams.is_empty() {
            index.remove(key);
        }
    }
}
