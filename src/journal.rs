//! The systemd journal as a source: reads journal files natively, without libsystemd, `journalctl` or a memory map.
//!
//! [`follow`] is one thread per journal folder. It opens each journal file as a stream of its own and turns entries into
//! chunks; archived files come before the live one of the same chain. [`listing`] assigns streams to files.
//! Below them: [`folder`] knows names, [`mod@file`] reads one
//! file, [`render`] makes records of entries and [`filter`] chooses them. [`reread`] makes the same records again for
//! exactly-once.
//!
//! A position is the end of the last entry, with a mark of the file's ID and that entry's sequence number
//! ([`crate::record::Mark::of_entry`]): both survive rename, copy and restore. journald numbers entries without a gap, so what
//! is vacuumed before it was read is counted exactly.
//!
//! An open descriptor does not keep a journal file from being vacuumed: journald punches a hole over it. So journald's
//! `SystemMaxUse=` is the buffer, and nothing of a journal is kept in the descriptor store.

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

/// How many journal files of a folder can be read, and which cannot, and why.
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
            "a journal format that this version does not know (incompatible flags {flags:#x}); read it with journalctl, or \
             update logagent"
        ),
        ReadError::NotAJournal => "not a journal file; remove it".into(),
        ReadError::Entry(why) => (*why).into(),
        ReadError::Chain => "its chain of entries is broken".into(),
    }
}

fn explain_io(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("{e}; put the agent's user into the group systemd-journal")
        }
        _ => e.to_string(),
    }
}
