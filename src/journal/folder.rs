//! Lists a journal folder: which names are journal files, which chain each belongs to, and the order of reading.

use super::file::JournalFile;
use super::header::{Id128, JournalHeader, ReadError};
use crate::clock;
use crate::record::Identity;
use rustix::fs::{AtFlags, StatxFlags, statx};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The folder named in the config, or those in which journald may keep the journal of this machine, or of one of its
/// namespaces: on disk, then in memory. systemd settles `machine-id(5)` before any service starts, and `--commit` keeps the ID; journald reads it once,
/// when it starts. So its folder does not change while it runs, and the ID is read once here, too.
pub fn candidates(directory: Option<&Path>, namespace: Option<&str>) -> Vec<PathBuf> {
    if let Some(directory) = directory {
        return vec![directory.to_owned()];
    }
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let dot = namespace.map(|n| format!(".{n}")).unwrap_or_default();
    let folder = |root: &str| Path::new(root).join(format!("{}{dot}", machine.trim()));
    vec![folder("/var/log/journal"), folder("/run/log/journal")]
}

pub fn boot_id() -> Option<Id128> {
    u128::from_str_radix(&clock::boot_id().replace('-', ""), 16).ok().map(u128::to_be_bytes)
}

/// The chain that a file belongs to, by its name: `system.journal` also for `system@….journal` and `system@….journal~`.
/// `None`: not a journal file, or one received from another machine (`remote-…`).
pub fn chain_of(name: &OsStr) -> Option<String> {
    let name = name.to_str()?;
    let stem = name.strip_suffix(".journal").or_else(|| name.strip_suffix(".journal~"))?;
    let chain = stem.split_once('@').map_or(stem, |(chain, _)| chain);
    (!chain.is_empty() && !chain.starts_with("remote-")).then(|| format!("{chain}.journal"))
}

/// Whether files of this name are no longer written.
pub fn is_old_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    bytes.contains(&b'@') || bytes.ends_with(b"~")
}

/// A journal file in its folder.
#[derive(Debug)]
pub struct ListedJournal {
    pub path: PathBuf,
    pub chain: String,
    pub identity: Identity,
    pub header: JournalHeader,
}

/// The result of listing a folder.
#[derive(Debug, Default)]
pub struct Listing {
    /// Chain by chain, the oldest file first; see [`in_order`].
    pub files: Vec<ListedJournal>,
    /// Files that are not journals or cannot be read, with the reason. Excludes files that are just being created.
    pub refused: Vec<(PathBuf, ReadError)>,
    /// A file is just being created: list again soon.
    pub is_incomplete: bool,
}

/// A file without a header that is shorter than this and was changed recently is still being created.
const IN_THE_MAKING: u64 = 4096;
const LATELY: Duration = Duration::from_secs(60);

/// Looks at every journal file of a folder.
pub fn list(folder: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    for found in fs::read_dir(folder)? {
        let found = found?;
        let Some(chain) = chain_of(&found.file_name()) else { continue };
        let path = found.path();
        match look(&path) {
            Ok((identity, header)) => listing.files.push(ListedJournal { path, chain, identity, header }),
            Err(ReadError::Io(e)) if e.kind() == io::ErrorKind::NotFound => {} // renamed meanwhile
            Err(ReadError::NotAJournal) if found.metadata().is_ok_and(|m| m.len() < IN_THE_MAKING) => {
                let changed = found.metadata().and_then(|m| m.modified()).ok();
                listing.is_incomplete |=
                    changed.and_then(|t| t.elapsed().ok()).is_none_or(|age| age < LATELY);
            }
            Err(e) => listing.refused.push((path, e)),
        }
    }
    listing.files = in_order(without_copies(listing.files));
    Ok(listing)
}

/// Of a file and its copies or other names only the one with the most entries; of equal ones the live one.
fn without_copies(files: Vec<ListedJournal>) -> Vec<ListedJournal> {
    let rank = |f: &ListedJournal| (f.header.entries, !is_old_name(f.path.file_name().unwrap_or_default()));
    let mut kept: Vec<ListedJournal> = Vec::new();
    for file in files {
        match kept.iter_mut().find(|other| other.header.file_id == file.header.file_id) {
            Some(other) if rank(other) >= rank(&file) => {}
            Some(other) => *other = file,
            None => kept.push(file),
        }
    }
    kept
}

/// Sorts the archived files of a chain before the live one. Files of one sequence number series are sorted by their
/// numbers, because a clock may be set back; the order of the series is known only from the clock.
fn in_order(files: Vec<ListedJournal>) -> Vec<ListedJournal> {
    let began = |of: &ListedJournal| {
        let of_run = |f: &&ListedJournal| f.chain == of.chain && f.header.seqnum_id == of.header.seqnum_id;
        files.iter().filter(of_run).map(|f| f.header.head_realtime).min()
    };
    let keys: Vec<_> = files
        .iter()
        .map(|f| {
            let is_live = !is_old_name(f.path.file_name().unwrap_or_default());
            (f.chain.clone(), is_live, began(f), f.header.seqnum_id, f.header.head_seqnum)
        })
        .collect();
    // There are few files, and sorting functions are large.
    let mut sorted = Vec::new();
    for (key, file) in keys.into_iter().zip(files) {
        let i = sorted.partition_point(|(k, _)| *k <= key);
        sorted.insert(i, (key, file));
    }
    sorted.into_iter().map(|(_, file)| file).collect()
}

fn look(path: &Path) -> Result<(Identity, JournalHeader), ReadError> {
    let file = open(path).map_err(ReadError::Io)?;
    Ok((identity(&file).map_err(ReadError::Io)?, JournalHeader::read(&file)?))
}

/// Opens a listed file. `None`: its name belongs to another file by now, which the next listing will see.
pub fn open_listed(file: &ListedJournal) -> Option<JournalFile> {
    let opened = open(&file.path).map_err(ReadError::Io).and_then(JournalFile::open);
    opened.ok().filter(|j| j.header.file_id == file.header.file_id)
}

/// Opens a regular file, without waiting for a FIFO or a device of that name.
pub fn open(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

pub fn identity(file: &File) -> io::Result<Identity> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let s = statx(file, "", AtFlags::EMPTY_PATH, wanted)?;
    let born = (s.stx_btime.tv_sec, s.stx_btime.tv_nsec);
    // Some file systems claim to support birth times and return 0.
    let has_birth = s.stx_mask & StatxFlags::BTIME.bits() != 0 && born != (0, 0);
    Ok(Identity {
        dev: rustix::fs::makedev(s.stx_dev_major, s.stx_dev_minor),
        ino: s.stx_ino,
        born: has_birth.then_some(born),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when an archived or dirty file is not read, or one of another machine is.
    #[test]
    fn chains_by_name() {
        for (name, chain, old) in [
            ("system.journal", Some("system.journal"), false),
            ("system@0005f-1-2.journal", Some("system.journal"), true),
            ("system@0005f-1.journal~", Some("system.journal"), true),
            ("user-1000@a.journal", Some("user-1000.journal"), true),
            ("user-1000.journal", Some("user-1000.journal"), false),
            ("remote-10.0.0.1.journal", None, false),
            ("fss", None, false),
            ("system.journal.tmp", None, false),
        ] {
            assert_eq!(chain_of(OsStr::new(name)).as_deref(), chain, "{name}");
            assert_eq!(is_old_name(OsStr::new(name)), old, "{name}");
        }
    }
}
