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

/// What to do if no new entries come from this folder, the first that exists of `folders`: it holds only folders of
/// journals, which systemd's tools take as well; or journald writes to another one, since it no longer keeps its journal on
/// disk (`Storage=volatile`).
pub fn advice_on(folder: &Path, folders: &[PathBuf]) -> Option<String> {
    let newest = |path: &Path| {
        let files = folder::list(path).map(|listing| listing.files).unwrap_or_default();
        files.iter().map(|file| file.header.tail_realtime).max()
    };
    let here = newest(folder);
    if let Some(other) = folders.iter().find(|other| *other != folder && newest(other) > here) {
        let (folder, other) = (folder.display(), other.display());
        return Some(format!(
            "journald writes to {other}, which is read only if there is no {folder}: remove that"
        ));
    }
    let below = || std::fs::read_dir(folder).ok()?.flatten().find(|found| newest(&found.path()).is_some());
    let found = below().filter(|_| here.is_none())?.path();
    Some(format!("it has no journal files; set directory to the folder in it, such as {}", found.display()))
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
