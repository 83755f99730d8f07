//! The state folder: the saved positions, choosing the good copy, and when to save.
//!
//! In reading order: [`mod@format`] (positions as text), [`store`] (the files, crash-safe replacement, the lock),
//! [`schedule`] (when to save, pure), [`saver`] (the thread).
//!
//! One text file is rewritten as a whole, because it is small (one line per stream), a reader of any version can
//! check it by its checksum, and an operator can read it. A database or an append-only log would need compaction and
//! recovery code of its own. `sync` is every 30 seconds by default: flash wears out with syncs, a kill loses nothing
//! without them, and after a power loss the lines since the last sync are sent again.
//!
//! The first acknowledgement of a run is saved within 100 ms, so an agent that is killed every half second still
//! makes progress. After that there is at most one save a second while something changes, and none while nothing
//! does.

mod existence;
pub mod format;
mod saver;
mod schedule;
pub mod store;
mod totals;

pub use saver::Saver;
#[cfg(test)]
pub use saver::Work;

use crate::clock;
use crate::error::Error;
use crate::private_file;
use crate::record::StreamId;
use crate::report::Board;
use crate::streams::mailbox::Publisher;
use crate::streams::sent_marks::{RepeatCounts, SentMarks};
use crate::streams::{Registry, Saved, SavedStream};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use store::PositionsFile;

/// Where and how positions are kept.
#[derive(Clone, Debug)]
pub struct StateOptions {
    /// `None`: nothing is saved; positions live as long as the process.
    pub state_dir: Option<PathBuf>,
    pub sync: Sync,
    pub damaged: Damaged,
    /// Exactly-once: the broker deduplicates lines that are sent again, so they are not counted as duplicated, and
    /// saved positions are published here.
    pub exactly_once: Option<Publisher>,
}

/// When saved state is forced to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// This long after the first unsynced save, and at exit.
    Every(Duration),
    /// At every save.
    Always,
}

/// What to do when neither `offsets` nor `offsets.previous` can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damaged {
    /// Exit with code 78.
    Refuse,
    /// Send everything again.
    Beginning,
}

/// An open state folder, locked.
#[derive(Debug)]
pub struct StateFolder {
    /// `None`: nothing is saved.
    store: Option<PositionsFile>,
    marks: Arc<SentMarks>,
    saved: Saved,
    sync: Sync,
    publisher: Option<Publisher>,
    /// Per stream: bytes up to here are sent again although no tail of this run reads them.
    resent: HashMap<StreamId, u64>,
    /// There is something to save right after the start.
    changed: bool,
    pub found: Footing,
}

/// How far the found state can be relied on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footing {
    /// The last run ended cleanly or in this boot, so its unsynced writes are present.
    pub whole: bool,
    /// The positions are from `offsets.previous`, or were discarded.
    pub fell_back: bool,
}

impl StateFolder {
    /// Exactly-once: lines that an earlier run sent have been acknowledged or will be. `saved` is the opened state
    /// with the former applied.
    pub fn take_over(&mut self, saved: &Saved, resent: HashMap<StreamId, u64>) {
        (self.saved, self.resent, self.changed) = (saved.clone(), resent, true);
    }

    /// All streams as they were saved.
    pub fn registry(&self, board: &Board) -> Arc<Registry> {
        let registry = Registry::new(&self.saved, &self.resent, board.totals.clone());
        Arc::new(if self.publisher.is_some() { registry.saving_openings() } else { registry })
    }

    /// Nothing proves which lines are stored, so lines sent again count as duplicated. Must be called before any tail
    /// runs.
    pub fn distrust(&self) {
        self.marks.doubt_all();
    }
}

/// Opens the state folder and puts its totals on the board; before any stage runs.
pub fn open(options: StateOptions, board: &Board) -> Result<(StateFolder, Saved), Error> {
    let (store, saved, marks, found) = match &options.state_dir {
        None => (None, Saved::default(), Arc::new(SentMarks::nowhere()), Footing::default()),
        Some(folder) => {
            let (store, mut saved, fell_back) = PositionsFile::open(folder, options.damaged)?;
            let (marks, whole) = open_marks(&store, &mut saved, fell_back, options.exactly_once.is_some());
            (Some(store), saved, Arc::new(marks), Footing { whole, fell_back })
        }
    };
    board.state().path = options.state_dir;
    saved.totals.put_on(board);
    let _ = board.sent_marks.set(marks.clone());
    let (sync, publisher) = (options.sync, options.exactly_once);
    let resent = HashMap::new();
    Ok((
        StateFolder { store, marks, saved: saved.clone(), sync, publisher, resent, changed: false, found },
        saved,
    ))
}

/// Opens the sent marks of the last run; see `sent_marks`. The flag says whether they are complete.
fn open_marks(
    store: &PositionsFile,
    saved: &mut Saved,
    fell_back: bool,
    recognized: bool,
) -> (SentMarks, bool) {
    let boot = clock::boot_id();
    let path = store.folder().join("air");
    let first = !path.exists() && saved.next_stream == 0 && !fell_back;
    let opened = private_file::open_or_create(&path);
    let opened = opened.and_then(|file| SentMarks::open(file, &boot, recognized));
    let (marks, found) = match opened {
        Ok(opened) => opened,
        Err(e) => {
            log::error!(
                "open {}: {e}; doubled_at_most will not include lines sent again after a crash; {}",
                path.display(),
                private_file::fix(&e, "let the agent's user write it")
            );
            return (SentMarks::nowhere(), false);
        }
    };
    let whole = found.trusted;
    let totals = &mut saved.totals;
    let (again, resent, uncertain) = (totals.again, totals.resent, totals.uncertain);
    let counts = found.counts(RepeatCounts::of(again, resent, uncertain));
    (totals.again, totals.resent) = (counts.again, counts.resent);
    marks.count_from(counts);
    let unfinished = || saved.streams.iter().filter(|s| !s.finished);
    let ids: HashSet<StreamId> = unfinished().map(|s| s.stream).collect();
    let is_untouched = |s: &&SavedStream| s.at.offset == 0 && s.beyond.is_empty();
    let untouched = unfinished().filter(is_untouched).map(|s| s.stream).collect();
    let unsaved = found.unsaved(saved.next_stream, &untouched);
    if found.stale || fell_back {
        let unknown = if found.trusted && !fell_back { None } else { Some(u64::MAX) };
        let unsaved = if first { 0 } else { unknown.unwrap_or(unsaved) };
        let limit = |s: &SavedStream| found.limits.get(&s.stream).copied().or(unknown).unwrap_or(s.at.offset);
        marks.begin(unsaved, unfinished().map(|s| (s.stream, limit(s))));
    } else {
        marks.retain(unsaved, |stream| ids.contains(&stream));
    }
    (marks, whole)
}

#[cfg(test)]
mod tests;
