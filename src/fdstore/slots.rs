//! Which files the service manager holds for us, and which it should. Pure: sends nothing, opens nothing.

use crate::chunk::StreamId;
use std::collections::BTreeMap;

#[derive(Debug)]
pub struct Slots {
    /// Most files.
    room: usize,
    held: BTreeMap<StreamId, StoredFile>,
    /// What found no room was said.
    said: bool,
}

#[derive(Debug)]
struct StoredFile {
    name: String,
    /// It has no name any more: nobody else can give it back. Others are found by their names, most likely.
    deleted: bool,
}

/// What is to be done for a file that should be held.
#[derive(Debug, PartialEq, Eq)]
pub enum StoreAction {
    /// It is held, or there is no room, which was said.
    Nothing,
    /// By this name; `instead_of` is let go for it.
    Store { name: String, instead_of: Option<String> },
    /// No room: to be said.
    Full,
}

impl Slots {
    pub fn new(room: usize) -> Slots {
        Slots { room, held: BTreeMap::new(), said: false }
    }

    /// From an earlier life.
    pub fn restore(&mut self, stream: StreamId, name: String) {
        self.held.insert(stream, StoredFile { name, deleted: false });
    }

    pub fn holds(&self, stream: StreamId) -> bool {
        self.held.contains_key(&stream)
    }

    /// A file that is to be held. One that is deleted goes before one that has a name.
    pub fn request(&mut self, stream: StreamId, inode: u64, deleted: bool) -> StoreAction {
        if let Some(held) = self.held.get_mut(&stream) {
            held.deleted |= deleted;
            return StoreAction::Nothing;
        }
        let mut instead_of = None;
        if self.held.len() >= self.room {
            // The newest of those with a name: it is the last to be deleted by a rotation.
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
        // Unique, as a name stands for all that is stored by it; the stream's number alone may be given again after a crash.
        let name = format!("log-{}-{inode}", stream.0);
        self.held.insert(stream, StoredFile { name: name.clone(), deleted });
        StoreAction::Store { name, instead_of }
    }

    /// Its name, if it was held.
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

    /// Fails when a file is stored twice, a full slots lets go of a deleted file, or complains at each look.
    #[test]
    fn deleted_files_go_before_rotated_ones() {
        let mut slots = Slots::new(3);
        let s = StreamId;
        slots.restore(s(1), "log-1-11".into());
        assert_eq!(
            slots.request(s(1), 11, true),
            StoreAction::Nothing,
            "from an earlier life; deleted since"
        );
        assert_eq!(slots.request(s(2), 12, false), store("log-2-12", None));
        assert_eq!(slots.request(s(2), 12, false), StoreAction::Nothing);
        assert_eq!(slots.request(s(3), 13, false), store("log-3-13", None));
        assert_eq!(slots.request(s(4), 14, false), StoreAction::Full);
        assert_eq!(slots.request(s(4), 14, false), StoreAction::Nothing, "said once");
        assert_eq!(slots.request(s(4), 14, true), store("log-4-14", Some("log-3-13")));
        assert_eq!(slots.request(s(5), 15, true), store("log-5-15", Some("log-2-12")));
        assert_eq!(slots.request(s(6), 16, true), StoreAction::Nothing, "all of them are deleted");
        assert_eq!(slots.release(s(1)), Some("log-1-11".into()));
        assert_eq!(slots.release(s(1)), None);
        assert!(slots.holds(s(4)) && !slots.holds(s(3)));
        assert_eq!(slots.request(s(6), 16, true), store("log-6-16", None), "there is room again");
    }
}
