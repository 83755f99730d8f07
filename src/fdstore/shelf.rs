//! Which files the service manager holds for us, and which it should. Pure: sends nothing, opens nothing.

use crate::chunk::StreamId;
use std::collections::BTreeMap;

#[derive(Debug)]
pub struct Shelf {
    /// Most files.
    room: usize,
    held: BTreeMap<StreamId, Held>,
    /// What found no room was said.
    said: bool,
}

#[derive(Debug)]
struct Held {
    name: String,
    /// It has no name any more: nobody else can give it back. Others are found by their names, most likely.
    deleted: bool,
}

/// What is to be done for a file that should be held.
#[derive(Debug, PartialEq, Eq)]
pub enum Want {
    /// It is held, or there is no room, which was said.
    Nothing,
    /// By this name; `instead_of` is let go for it.
    Store { name: String, instead_of: Option<String> },
    /// No room: to be said.
    Full,
}

impl Shelf {
    pub fn new(room: usize) -> Shelf {
        Shelf { room, held: BTreeMap::new(), said: false }
    }

    /// From an earlier life.
    pub fn held_already(&mut self, stream: StreamId, name: String) {
        self.held.insert(stream, Held { name, deleted: false });
    }

    pub fn holds(&self, stream: StreamId) -> bool {
        self.held.contains_key(&stream)
    }

    /// A file that is to be held. One that is deleted goes before one that has a name.
    pub fn want(&mut self, stream: StreamId, inode: u64, deleted: bool) -> Want {
        if let Some(held) = self.held.get_mut(&stream) {
            held.deleted |= deleted;
            return Want::Nothing;
        }
        let mut instead_of = None;
        if self.held.len() >= self.room {
            // The newest of those with a name: it is the last to be deleted by a rotation.
            let other = self.held.iter().rev().find(|(_, h)| !h.deleted).map(|(s, _)| *s);
            instead_of = other.filter(|_| deleted).and_then(|other| self.unwant(other));
            if instead_of.is_none() {
                return if std::mem::replace(&mut self.said, true) { Want::Nothing } else { Want::Full };
            }
        }
        // Unique, as a name stands for all that is stored by it; the stream's number alone may be given again after a crash.
        let name = format!("log-{}-{inode}", stream.0);
        self.held.insert(stream, Held { name: name.clone(), deleted });
        Want::Store { name, instead_of }
    }

    /// Its name, if it was held.
    pub fn unwant(&mut self, stream: StreamId) -> Option<String> {
        Some(self.held.remove(&stream)?.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(name: &str, instead_of: Option<&str>) -> Want {
        Want::Store { name: name.into(), instead_of: instead_of.map(str::to_owned) }
    }

    /// Fails when a file is stored twice, a full shelf lets go of a deleted file, or complains at each look.
    #[test]
    fn deleted_files_go_before_rotated_ones() {
        let mut shelf = Shelf::new(3);
        let s = StreamId;
        shelf.held_already(s(1), "log-1-11".into());
        assert_eq!(shelf.want(s(1), 11, true), Want::Nothing, "from an earlier life; deleted since");
        assert_eq!(shelf.want(s(2), 12, false), store("log-2-12", None));
        assert_eq!(shelf.want(s(2), 12, false), Want::Nothing);
        assert_eq!(shelf.want(s(3), 13, false), store("log-3-13", None));
        assert_eq!(shelf.want(s(4), 14, false), Want::Full);
        assert_eq!(shelf.want(s(4), 14, false), Want::Nothing, "said once");
        assert_eq!(shelf.want(s(4), 14, true), store("log-4-14", Some("log-3-13")));
        assert_eq!(shelf.want(s(5), 15, true), store("log-5-15", Some("log-2-12")));
        assert_eq!(shelf.want(s(6), 16, true), Want::Nothing, "all of them are deleted");
        assert_eq!(shelf.unwant(s(1)), Some("log-1-11".into()));
        assert_eq!(shelf.unwant(s(1)), None);
        assert!(shelf.holds(s(4)) && !shelf.holds(s(3)));
        assert_eq!(shelf.want(s(6), 16, true), store("log-6-16", None), "there is room again");
    }
}
