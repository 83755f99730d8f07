//! Decides which files the service manager should hold. Pure.

use crate::record::StreamId;
use std::collections::BTreeMap;

#[derive(Debug)]
pub struct Slots {
    /// Maximum number of files.
    room: usize,
    held: BTreeMap<StreamId, StoredFile>,
    /// Whether the lack of room has been reported.
    said: bool,
}

#[derive(Debug)]
struct StoredFile {
    name: String,
    /// The file has been deleted, so only the store can return it. Others can most likely be found by name.
    deleted: bool,
}

/// What to do for a file that should be held.
#[derive(Debug, PartialEq, Eq)]
pub enum StoreAction {
    /// It is held already, or there is no room, which has been reported.
    Nothing,
    /// Store it under this name, and drop `instead_of` for it.
    Store { name: String, instead_of: Option<String> },
    /// No room, to be reported.
    Full,
}

impl Slots {
    pub fn new(room: usize) -> Slots {
        Slots { room, held: BTreeMap::new(), said: false }
    }

    /// Registers a file stored by an earlier run.
    pub fn restore(&mut self, stream: StreamId, name: String) {
        self.held.insert(stream, StoredFile { name, deleted: false });
    }

    pub fn holds(&self, stream: StreamId) -> bool {
        self.held.contains_key(&stream)
    }

    /// Requests a slot for a file. A deleted file takes precedence over one that still has a name.
    pub fn request(&mut self, stream: StreamId, inode: u64, deleted: bool) -> StoreAction {
        if let Some(held) = self.held.get_mut(&stream) {
            held.deleted |= deleted;
            return StoreAction::Nothing;
        }
        let mut instead_of = None;
        if self.held.len() >= self.room {
            // Drop the newest file that still has a name, because rotation deletes it last.
            let other = self.held.iter().rev().find(|(_, h)| !h.deleted).map(|(s, _)| *s);
            instead_of = other.filter(|_| deleted).and_then(|other| self.release(other));
            if instead_of.is_none() {
                return if std::mem::replace(&mut self.said, true) {
                    StoreAction::Nothing
                } else {
                    StoreAction::Full
                };
            }
        }
        // Names must be unique, because dropping a name drops everything stored under it. The stream's number alone
        // may be reused after a crash.
        let name = format!("log-{}-{inode}", stream.0);
        self.held.insert(stream, StoredFile { name: name.clone(), deleted });
        StoreAction::Store { name, instead_of }
    }

    /// Frees the slot. Returns the file's name if it was held.
    pub fn release(&mut self, stream: StreamId) -> Option<String> {
        Some(self.held.remove(&stream)?.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(name: &str, instead_of: Option<&str>) -> StoreAction {
        StoreAction::Store { name: name.into(), instead_of: instead_of.map(str::to_owned) }
    }

    /// Fails when a file is stored twice, when full slots drop a deleted file, or when the lack of room is reported
    /// repeatedly.
    #[test]
    fn deleted_files_go_before_rotated_ones() {
        let mut slots = Slots::new(3);
        let s = StreamId;
        slots.restore(s(1), "log-1-11".into());
        assert_eq!(slots.request(s(1), 11, true), StoreAction::Nothing, "from an earlier run; deleted since");
        assert_eq!(slots.request(s(2), 12, false), store("log-2-12", None));
        assert_eq!(slots.request(s(2), 12, false), StoreAction::Nothing);
        assert_eq!(slots.request(s(3), 13, false), store("log-3-13", None));
        assert_eq!(slots.request(s(4), 14, false), StoreAction::Full);
        assert_eq!(slots.request(s(4), 14, false), StoreAction::Nothing, "reported once");
        assert_eq!(slots.request(s(4), 14, true), store("log-4-14", Some("log-3-13")));
        assert_eq!(slots.request(s(5), 15, true), store("log-5-15", Some("log-2-12")));
        assert_eq!(slots.request(s(6), 16, true), StoreAction::Nothing, "all of them are deleted");
        assert_eq!(slots.release(s(1)), Some("log-1-11".into()));
        assert_eq!(slots.release(s(1)), None);
        assert!(slots.holds(s(4)) && !slots.holds(s(3)));
        assert_eq!(slots.request(s(6), 16, true), store("log-6-16", None), "there is room again");
    }
}
