//! The files `offsets` and `offsets.previous`: which copy is good, and the order of write, sync and rename that keeps
//! one good at all times. Also the folder's lock.
//!
//! Invariant: from the first save on, `offsets` or `offsets.previous` is whole at every moment, whatever a power loss
//! does to unsynced data. A kill loses nothing, because the page cache stays. A power loss may destroy any file that
//! was not synced, even one that was renamed into place (ext4 without `auto_da_alloc`, f2fs, XFS). Therefore
//! `offsets.previous` is only ever a file that was synced as `offsets`; one left by an earlier run is synced first.
//! If neither exists yet, the save syncs before it renames.

use super::Damaged;
use super::format::{self, Bad};
use crate::error::Error;
use crate::private_file;
use crate::streams::Saved;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

pub const OFFSETS: &str = "offsets";
pub const PREVIOUS: &str = "offsets.previous";
const TMP: &str = "offsets.tmp";
const LOCK: &str = "lock";
pub const LETTERS: &str = "dead-letter";
/// All files in the state folder.
pub const FILES: [&str; 8] = [OFFSETS, PREVIOUS, TMP, LOCK, LETTERS, "air", "flights", "budget"];

/// A larger `offsets` is not ours.
const MOST_BYTES: u64 = 256 << 20;

/// What this process knows about `offsets`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CurrentFile {
    /// Missing or damaged.
    Bad,
    /// Whole, from an earlier run; may or may not be synced.
    FoundPositions,
    /// Whole, but a power loss may destroy it.
    Unsynced,
    Synced,
}

/// One system call of a save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveStep {
    WriteTmp,
    SyncTmp,
    SyncOffsets,
    /// `offsets` becomes `offsets.previous`.
    KeepPrevious,
    /// `offsets.tmp` becomes `offsets`.
    Replace,
    SyncFolder,
}

/// The steps of a save, in order. `previous`: `offsets.previous` is whole and synced. `sync`: the policy requires a
/// sync.
pub fn steps(current: CurrentFile, previous: bool, sync: bool) -> Vec<SaveStep> {
    let sync = sync || !(previous || matches!(current, CurrentFile::FoundPositions | CurrentFile::Synced));
    let mut steps = vec![SaveStep::WriteTmp];
    if sync {
        steps.push(SaveStep::SyncTmp);
    }
    if current == CurrentFile::FoundPositions {
        steps.push(SaveStep::SyncOffsets);
    }
    if matches!(current, CurrentFile::FoundPositions | CurrentFile::Synced) {
        // Between these two renames `offsets` does not exist; `offsets.previous` holds the state before this save,
        // and `offsets.tmp` is whole.
        steps.push(SaveStep::KeepPrevious);
    }
    steps.push(SaveStep::Replace);
    if sync {
        steps.push(SaveStep::SyncFolder);
    }
    steps
}

/// The open state folder. Its lock is held until it is dropped.
#[derive(Debug)]
pub struct PositionsFile {
    folder: PathBuf,
    /// `None`: the lock file could not be created because the disk was full or read-only.
    lock: Option<File>,
    current: CurrentFile,
    /// `offsets.previous` is whole and synced. Only relevant while `current` is not.
    previous: bool,
}

/// What was found in a state folder.
#[derive(Debug, PartialEq, Eq)]
pub enum FoundPositions {
    /// Neither `offsets` nor `offsets.previous` exists.
    Nothing,
    Good(Box<Saved>),
    /// `offsets` is missing or damaged for the given reason; this is `offsets.previous`.
    Previous(Box<Saved>, String),
    /// Neither can be read, for these reasons.
    Neither {
        offsets: Bad,
        previous: Bad,
    },
}

fn written(path: &Path) -> Option<(i64, u32)> {
    let time = fs::metadata(path).ok()?;
    Some((time.mtime(), time.mtime_nsec().try_into().ok()?))
}

impl PositionsFile {
    /// Creates the folder if missing, locks it and reads the saved state. The flag: it came from `offsets.previous`.
    pub fn open(folder: &Path, damaged: Damaged) -> Result<(PositionsFile, Saved, bool), Error> {
        refuse_shared(folder)?;
        let lock = match lock(folder) {
            Ok(lock) => Some(lock),
            Err(NotLocked::Held(pid)) => return Err(held(folder, pid)),
            Err(NotLocked::Failed(e)) if is_disk_trouble(&e) => {
                log::error!("{}: {e}; positions are not saved until this is fixed", folder.display());
                None
            }
            Err(NotLocked::Failed(e)) => {
                let fix = "give the agent's user this folder, or name another with state_dir or --state-dir";
                let fix = private_file::fix(&e, fix);
                return Err(Error::failed(format_args!("lock {}", folder.join(LOCK).display()), e, fix));
            }
        };
        refuse_newer(folder)?;
        if lock.is_some() && is_cut_short(folder)? {
            // Ignore an error: the previous state is still there.
            let _ = replace(&folder.join(TMP), &folder.join(OFFSETS));
        }
        let mut store =
            PositionsFile { folder: folder.into(), lock, current: CurrentFile::Bad, previous: false };
        let (mut saved, previous) = match look(folder)? {
            FoundPositions::Nothing => (Saved::default(), false),
            FoundPositions::Good(saved) => {
                store.current = CurrentFile::FoundPositions;
                (*saved, false)
            }
            FoundPositions::Previous(saved, why) => {
                log::warn!(
                    "{}: {why}; continuing from {PREVIOUS}, so lines delivered since it was saved are sent again",
                    folder.join(OFFSETS).display()
                );
                store.previous = true;
                (*saved, true)
            }
            FoundPositions::Neither { offsets, previous } => {
                (hopeless(folder, damaged, &offsets, &previous)?, true)
            }
        };
        if !saved.from_beginning {
            saved.written = written(&folder.join(if previous { PREVIOUS } else { OFFSETS }));
        }
        Ok((store, saved, previous))
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes `bytes` as the new `offsets` and returns their number. After an error the old state is still in place.
    pub fn save(&mut self, bytes: &[u8], sync: bool) -> io::Result<u64> {
        self.locked()?;
        let mut all = steps(self.current, self.previous, sync).into_iter();
        let done = all.try_for_each(|step| self.step(step, bytes));
        if done.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound) {
            // The folder or the copies in it were removed. In a new folder, the next save starts over.
            (self.current, self.previous) = (CurrentFile::Bad, false);
        }
        done.map(|()| bytes.len() as u64)
    }

    /// Syncs the last save to disk.
    pub fn sync(&mut self) -> io::Result<()> {
        if matches!(self.current, CurrentFile::FoundPositions | CurrentFile::Unsynced) {
            self.step(SaveStep::SyncOffsets, &[])?;
            self.step(SaveStep::SyncFolder, &[])?;
        }
        Ok(())
    }

    fn locked(&mut self) -> io::Result<()> {
        if self.lock.is_none() {
            self.lock = Some(lock(&self.folder).map_err(|e| match e {
                NotLocked::Held(pid) => io::Error::other(format!("another agent uses it{}", named(pid))),
                NotLocked::Failed(e) => e,
            })?);
        }
        Ok(())
    }

    /// Positions pass over a line that is only a dead letter, so the letter must be on disk first.
    fn sync_letters(&self) -> io::Result<()> {
        private_file::open_read(&self.folder.join(LETTERS)).map_or(Ok(()), |file| file.sync_data())
    }

    fn step(&mut self, step: SaveStep, bytes: &[u8]) -> io::Result<()> {
        let at = |name: &str| self.folder.join(name);
        match step {
            SaveStep::WriteTmp => private_file::replace(&at(TMP), 0o600)?.write_all(bytes)?,
            SaveStep::SyncTmp => {
                self.sync_letters()?;
                private_file::open_read(&at(TMP))?.sync_all()?;
            }
            SaveStep::SyncOffsets => {
                self.sync_letters()?;
                private_file::open_read(&at(OFFSETS))?.sync_all()?;
            }
            SaveStep::KeepPrevious => {
                replace(&at(OFFSETS), &at(PREVIOUS))?;
                (self.current, self.previous) = (CurrentFile::Bad, true);
            }
            SaveStep::Replace => {
                replace(&at(TMP), &at(OFFSETS))?;
                self.current = CurrentFile::Unsynced;
            }
            SaveStep::SyncFolder => {
                File::open(&self.folder)?.sync_all()?;
                self.current = CurrentFile::Synced;
            }
        }
        Ok(())
    }
}

/// The only `rename` in the program apart from the metrics file.
#[allow(clippy::disallowed_methods)]
fn replace(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)
}

/// Anyone else with write access to the folder could replace the agent's files.
fn refuse_shared(folder: &Path) -> Result<(), Error> {
    let Ok(there) = fs::metadata(folder) else { return Ok(()) }; // it is created, or taking the lock reports why not
    let (owner, own) = (there.uid(), rustix::process::geteuid().as_raw());
    let what = format!("state folder {}", folder.display());
    let elsewhere = "or name another folder with state_dir or --state-dir";
    if !there.is_dir() {
        return Err(Error::config(what, "it is not a folder", format!("move it away, {elsewhere}")));
    }
    // Root can change everything anyway.
    if owner != own && owner != 0 {
        let why = format!("it belongs to user {owner}, and the agent runs as user {own}");
        let fix = format!("give it to the agent's user (chown), {elsewhere}");
        return Err(Error::config(what, why, fix));
    }
    if there.mode() & 0o022 != 0 {
        let why = format!("other users may write there (mode {:o})", there.mode() & 0o7777);
        let fix = format!("remove that permission (chmod go-w), {elsewhere}");
        return Err(Error::config(what, why, fix));
    }
    Ok(())
}

/// State saved by a newer version is never overwritten, not even if an older copy is readable.
fn refuse_newer(folder: &Path) -> Result<(), Error> {
    let offsets = folder.join(OFFSETS);
    // After an interrupted save, the newest state is in the temporary file.
    let cut_short = !offsets.exists() && folder.join(PREVIOUS).exists();
    let path = if cut_short { folder.join(TMP) } else { offsets };
    match read(&path)? {
        Some(Err(newer @ Bad::Newer(_))) => Err(too_new(&path, &newer)),
        _ => Ok(()),
    }
}

fn too_new(path: &Path, newer: &Bad) -> Error {
    Error::config(path.display(), newer, "install that version again, or move the folder away to start over")
}

/// Whether a kill came between the two renames of a save and the new state is whole: then the save is completed. The
/// previous state would do as well, but could not be distinguished from one older than what other files rely on.
fn is_cut_short(folder: &Path) -> Result<bool, Error> {
    let is_there = |name: &str| folder.join(name).exists();
    Ok(!is_there(OFFSETS) && is_there(PREVIOUS) && matches!(read(&folder.join(TMP))?, Some(Ok(_))))
}

/// Reads the saved state of a folder without taking its lock; also used by `status`.
pub fn look(folder: &Path) -> Result<FoundPositions, Error> {
    let offsets = read(&folder.join(OFFSETS))?;
    if let Some(Ok(saved)) = offsets {
        return Ok(FoundPositions::Good(Box::new(saved)));
    }
    let previous = read(&folder.join(PREVIOUS))?;
    // A concurrent save may have removed `offsets` for a moment.
    let offsets = match offsets {
        None => read(&folder.join(OFFSETS))?,
        bad => bad,
    };
    let missing = || Bad::Damaged("it is missing".into());
    Ok(match (offsets, previous) {
        (Some(Ok(saved)), _) => FoundPositions::Good(Box::new(saved)),
        (None, None) => FoundPositions::Nothing,
        (None, Some(Ok(saved))) => {
            FoundPositions::Previous(Box::new(saved), "missing, a save was cut short".into())
        }
        (Some(Err(bad)), Some(Ok(saved))) => FoundPositions::Previous(Box::new(saved), bad.to_string()),
        (offsets, previous) => FoundPositions::Neither {
            offsets: offsets.and_then(Result::err).unwrap_or_else(missing),
            previous: previous.and_then(Result::err).unwrap_or_else(missing),
        },
    })
}

/// `None` if there is none. An error that may be temporary (permissions, descriptors) is not damage; it ends the
/// start.
fn read(path: &Path) -> Result<Option<Result<Saved, Bad>>, Error> {
    let bytes = private_file::open_read(path).and_then(|file| {
        let mut bytes = Vec::new();
        file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    match bytes {
        Ok(bytes) if bytes.len() as u64 > MOST_BYTES => Ok(Some(Err(Bad::Damaged("it is too large".into())))),
        Ok(bytes) => Ok(Some(format::read(&bytes))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) if is_rot(&e) => Ok(Some(Err(Bad::NotRead(e.to_string())))),
        Err(e) => {
            let fix = private_file::fix(&e, "let the agent's user read it; nothing was changed");
            Err(Error::failed(format_args!("read {}", path.display()), e, fix))
        }
    }
}

fn hopeless(folder: &Path, damaged: Damaged, offsets: &Bad, previous: &Bad) -> Result<Saved, Error> {
    let path = folder.join(OFFSETS);
    if let (Bad::Newer(_), bad) | (bad, Bad::Newer(_)) = (offsets, previous) {
        let newer = if matches!(offsets, Bad::Newer(_)) { offsets } else { previous };
        log::debug!("beside it: {bad}");
        return Err(too_new(&path, newer));
    }
    match damaged {
        Damaged::Refuse => {
            let why = format!("{offsets}; and {PREVIOUS}: {previous}");
            if matches!((offsets, previous), (Bad::NotRead(_), Bad::NotRead(_))) {
                // The whole disk; this may pass, so the service is to be started again.
                let fix = format!("check the disk of {}; nothing was changed", folder.display());
                return Err(Error::failed(path.display(), why, fix));
            }
            let fix = format!(
                "restore a copy of either, or remove both to start over as `start` says, or set damaged_state = \"beginning\" to send every file from its beginning ({})",
                folder.display()
            );
            Err(Error::config(path.display(), why, fix))
        }
        Damaged::Beginning => {
            log::error!(
                "{}: {offsets}; and {PREVIOUS}: {previous}; every file is sent from its beginning (damaged_state)",
                path.display()
            );
            Ok(Saved { from_beginning: true, ..Saved::default() })
        }
    }
}

#[derive(Debug)]
enum NotLocked {
    /// By the agent with this process id, if known.
    Held(Option<u32>),
    Failed(io::Error),
}

impl From<io::Error> for NotLocked {
    fn from(e: io::Error) -> Self {
        NotLocked::Failed(e)
    }
}

/// Takes `flock(2)` on the file `lock` and writes our process id into it. The file is never removed: a waiting
/// process could otherwise lock a deleted file.
fn lock(folder: &Path) -> Result<File, NotLocked> {
    make(folder)?;
    let path = folder.join(LOCK);
    let mut file = match private_file::open_or_create(&path) {
        // On a read-only file system, an existing lock file can still be locked.
        Err(e) if e.kind() == ErrorKind::ReadOnlyFilesystem => {
            private_file::open_read(&path).map_err(|_| e)?
        }
        file => file?,
    };
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let _ = file.take(32).read_to_string(&mut pid);
            return Err(NotLocked::Held(pid.trim().parse().ok()));
        }
        Err(e) => return Err(NotLocked::Failed(e.into())),
    }
    // Only informational, so a full disk does not matter.
    let _ = file.set_len(0).and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
    Ok(file)
}

fn make(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    // Sync the parent so that a power loss does not remove the folder and everything synced in it. Not every file
    // system supports this.
    let _ = folder.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all());
    Ok(())
}

fn named(pid: Option<u32>) -> String {
    pid.map(|pid| format!(", process {pid}")).unwrap_or_default()
}

fn held(folder: &Path, pid: Option<u32>) -> Error {
    let why = format!("another agent uses it{}", named(pid));
    let fix = "stop that agent, or give this one its own folder with --state-dir or state_dir";
    Error::failed(format_args!("lock state folder {}", folder.display()), why, fix)
}

/// A disk problem rather than a configuration mistake: delivery continues without saving.
fn is_disk_trouble(e: &io::Error) -> bool {
    use ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(e.kind(), ReadOnlyFilesystem | StorageFull | QuotaExceeded) || is_rot(e)
}

/// The medium fails to return its data.
fn is_rot(e: &io::Error) -> bool {
    [libc::EIO, libc::EUCLEAN, libc::EISDIR].iter().any(|code| e.raw_os_error() == Some(*code))
}

#[cfg(test)]
mod tests;
