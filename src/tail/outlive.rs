//! Chooses the files that must stay open beyond the process: deleted or rotated ones with bytes whose delivery is not saved,
//! and at a stop all files with such bytes. If they vanish while the agent is down, nothing else can restore them. The store
//! itself is `fdstore.rs`.

use super::follow::{AtPath, Seen, Step};
use super::{Tail, UNHURRIED};
use crate::chunk::Origin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// What the store should do with an open file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum StoreFate {
    Keep,
    Drop,
    AsItIs,
}

/// `saved`: the delivery of everything framed from it is saved.
fn fate(seen: &Seen, saved: bool, path: AtPath) -> StoreFate {
    if !seen.unread && !seen.rest && saved {
        return StoreFate::Drop;
    }
    match path {
        _ if !seen.live || seen.deleted => StoreFate::Keep,
        AtPath::Another | AtPath::Nothing => StoreFate::Keep,
        AtPath::Live => StoreFate::Drop,
        AtPath::Unknown => StoreFate::AsItIs,
    }
}

impl Tail<'_> {
    /// Updates the store for the open files and for those that were closed.
    pub(super) fn outlive(&mut self, path: AtPath, seen: &[Seen]) {
        let store = &self.known.store;
        if !store.is_on() {
            return;
        }
        store.again();
        for (open, seen) in self.open.iter().zip(seen) {
            let stream = open.origin.stream;
            let Some(file) = open.file() else { continue }; // for a compressed file the store has its plain original
            match fate(seen, is_saved(&open.origin), path) {
                StoreFate::Keep => store.keep(stream, file, open.identity.ino, seen.deleted),
                StoreFate::Drop if store.keeps(stream) => store.done(stream),
                StoreFate::Drop | StoreFate::AsItIs => {}
            }
        }
        let (known, path) = (self.known, &self.o.path);
        self.leaving.retain(|origin| {
            if !known.is_of(origin.stream, path) {
                return false; // another tail continues it
            }
            if let Some(slot) = known.slot(path) {
                origin.progress.awaited_by(slot);
            }
            let saved = is_saved(origin);
            if saved {
                store.done(origin.stream);
            }
            !saved
        });
    }

    /// At a stop, also keeps files that still have a name: they may be deleted before the next start.
    pub(super) fn outlive_restart(&mut self) {
        if let Ok(seen) = self.look_at_open(self.now) {
            self.outlive(AtPath::Nothing, &seen);
        }
    }

    /// A file was read to its end: it stays in the store until that is saved.
    pub(super) fn left(&mut self, origin: Arc<Origin>) {
        if self.known.store.keeps(origin.stream) {
            self.leaving.push(origin);
        }
    }

    /// The tail must keep running until then. The save wakes it.
    pub(super) fn until_saved(&self, step: Step) -> Step {
        if step == Step::End && !self.leaving.is_empty() { Step::Wait(UNHURRIED) } else { step }
    }
}

fn is_saved(origin: &Origin) -> bool {
    let progress = &origin.progress;
    progress.saved.load(Relaxed) >= progress.framed.load(Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Fails when a file with a name is kept without need, or one without a name is released before its delivery is saved.
    #[test]
    fn which_files_are_kept() {
        use AtPath::{Another, Live, Nothing, Unknown};
        let live = Seen {
            live: true,
            unread: true,
            owed: false,
            rest: false,
            rest_has_lines: false,
            rest_owed: false,
            truncated: false,
            deleted: false,
            acked: false,
            quiet: Duration::ZERO,
            too_much: false,
        };
        let rotated = Seen { live: false, ..live };
        let deleted = Seen { deleted: true, ..rotated };
        let read = |s: Seen| Seen { unread: false, acked: true, ..s };
        for (seen, saved, path, want) in [
            (live, false, Live, StoreFate::Drop),
            (live, false, Unknown, StoreFate::AsItIs),
            (live, false, Nothing, StoreFate::Keep),
            (live, false, Another, StoreFate::Keep),
            (Seen { deleted: true, ..live }, false, Unknown, StoreFate::Keep),
            (rotated, false, Live, StoreFate::Keep),
            (rotated, true, Live, StoreFate::Keep),
            (deleted, false, Nothing, StoreFate::Keep),
            (read(deleted), false, Nothing, StoreFate::Keep),
            (read(deleted), true, Nothing, StoreFate::Drop),
            (Seen { rest: true, ..read(deleted) }, true, Nothing, StoreFate::Keep),
            (read(rotated), true, Live, StoreFate::Drop),
            (read(live), true, Nothing, StoreFate::Drop),
        ] {
            assert_eq!(fate(&seen, saved, path), want, "{seen:?} {saved} {path:?}");
        }
    }
}
