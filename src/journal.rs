//! The systemd journal as a source: reads journal files natively, without libsystemd, `journalctl` or a memory map.
//!
//! [`follow`] is one thread per journal folder. It opens each journal file as a stream of its own and turns entries
//! into chunks; archived files are read before the live file of the same chain. [`listing`] assigns streams to files.
//! Below them: [`folder`] interprets file names, [`mod@file`] reads one file, [`filter`] selects entries and [`render`]
//! turns them into records. [`reread`] rebuilds the same records for exactly-once.
//!
//! A position is the end of the last entry, with a mark of the file's ID and that entry's sequence number
//! ([`crate::record::Mark::of_entry`]): both survive rename, copy and restore. journald numbers entries without gaps,
//! so entries vacuumed before they were read are counted exactly.
//!
//! An open descriptor does not keep a journal file from being vacuumed: journald punches a hole over it. So journald's
//! `SystemMaxUse=` is the buffer, and no journal file is kept in the descriptor store.

mod decompress;
mod file;
mod filter;
mod folder;
pub mod follow;
mod header;
mod listing;
mod open;
mod pages;
pub mod records;
pub mod render;
pub mod reread;
mod shown;
mod tally;
#[cfg(test)]
mod tests;
mod wait;

pub use filter::{EntryFilter, own_unit};
pub use folder::{boot_id, candidates};
pub use open::JournalReading;

use header::ReadError;
use std::io;
use std::path::{Path, PathBuf};

/// The number of readable journal files in a folder, and the unreadable ones with the reason.
pub fn found(folder: &Path) -> Result<(usize, Vec<(PathBuf, String)>), String> {
    let listing = folder::list(folder).map_err(|e| explain_io(&e))?;
    let refused = listing.refused.into_iter().map(|(path, e)| (path, explain(&e))).collect();
    Ok((listing.files.len(), refused))
}

/// What is wrong with a journal file, and what to do.
fn explain(e: &ReadError) -> String {
    match e {
        ReadError::Io(e) => explain_io(e),
        ReadError::Incompatible(flags) => format!(
            "a journal format that this version does not support (incompatible flags {flags:#x}); read it with journalctl, or update logagent"
        ),
        ReadError::NotAJournal => "not a journal file; remove it".into(),
        ReadError::Entry(why) => (*why).into(),
        ReadError::Chain => "its chain of entries is broken".into(),
    }
}

fn explain_io(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("{e}; add the agent's user to the group systemd-journal")
        }
        _ => e.to_string(),
    }
}
