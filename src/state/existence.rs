//! Checks whether the files of streams without a tail still exist.
//!
//! Conservative: a file counts as present while its followed path exists, or while any name in that folder has its
//! inode (it was rotated). It counts as unknown on every error that may be temporary. Only a folder that could be
//! listed, or is gone, proves absence.

use crate::record::StreamId;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug)]
pub struct RestingFile {
    pub stream: StreamId,
    pub path: PathBuf,
    pub ino: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existence {
    Present,
    Absent,
    Unknown,
}

pub fn look(asked: &[RestingFile]) -> Vec<(StreamId, Existence)> {
    let mut folders = HashMap::new();
    asked.iter().map(|a| (a.stream, of(a, &mut folders))).collect()
}

/// Inodes of a folder's names; `None`: it could not be listed.
type Listed = Option<HashSet<u64>>;

fn of(asked: &RestingFile, folders: &mut HashMap<PathBuf, Listed>) -> Existence {
    match fs::symlink_metadata(&asked.path) {
        Ok(_) => return Existence::Present,
        Err(e) if is_gone(&e) => {}
        Err(_) => return Existence::Unknown,
    }
    let folder = asked.path.parent().unwrap_or(Path::new("/"));
    let listed = folders.entry(folder.to_owned()).or_insert_with(|| list(folder).ok());
    match listed {
        Some(inodes) if inodes.contains(&asked.ino) => Existence::Present,
        Some(_) => Existence::Absent,
        None => Existence::Unknown,
    }
}

fn list(folder: &Path) -> io::Result<HashSet<u64>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.ino())).collect(),
        Err(e) if is_gone(&e) => Ok(HashSet::new()),
        Err(e) => Err(e),
    }
}

fn is_gone(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    /// Fails when a rotated file counts as absent, or when an error counts as absence.
    #[test]
    fn only_missing_files_are_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        fs::write(&path, "x").unwrap();
        let ino = fs::metadata(&path).unwrap().ino();
        let seen =
            |path: &Path, ino| look(&[RestingFile { stream: StreamId(1), path: path.into(), ino }])[0].1;
        assert_eq!(seen(&path, ino), Existence::Present);
        let rotated = dir.path().join("a.log.1");
        #[allow(clippy::disallowed_methods)]
        fs::rename(&path, &rotated).unwrap();
        assert_eq!(seen(&path, ino), Existence::Present);
        fs::remove_file(&rotated).unwrap();
        assert_eq!(seen(&path, ino), Existence::Absent);
        assert_eq!(seen(&dir.path().join("no/folder/a.log"), ino), Existence::Absent);
        assert_eq!(seen(&dir.path().join("x".repeat(300)), ino), Existence::Unknown);
    }
}
