//! What the kernel reports about a file: identity, size, times.

use crate::record::Identity;
use rustix::fs::{self, AtFlags, FileType, OFlags, Statx, StatxFlags};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

/// The result of one `statx(2)`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Look {
    pub identity: Identity,
    /// Bytes.
    pub size: u64,
    /// Last modification in ns since 1970.
    pub modified: i64,
    /// Number of names; 0 is a deleted file that a process holds open.
    pub links: u32,
    pub kind: FileType,
}

impl Look {
    /// Whether the file was created after this moment (seconds and nanoseconds since 1970). If the file system keeps no
    /// birth times: whether it was written after it.
    pub fn is_since(&self, moment: (i64, u32)) -> bool {
        self.made() >= moment
    }

    /// Creation time, or last modification if the file system keeps no birth times; seconds and nanoseconds since 1970.
    pub fn made(&self) -> (i64, u32) {
        let written = self.modified;
        self.identity.born.unwrap_or((written.div_euclid(SECOND), written.rem_euclid(SECOND) as u32))
    }
}

/// Nanoseconds per second.
const SECOND: i64 = 1_000_000_000;

/// Converts seconds and nanoseconds to nanoseconds.
pub fn nanos((s, ns): (i64, u32)) -> i64 {
    s.saturating_mul(SECOND).saturating_add(i64::from(ns))
}

/// Stats `path`, following symlinks. `None`: it does not exist.
pub fn look_at(path: &Path) -> io::Result<Option<Look>> {
    others_act();
    match fs::statx(fs::CWD, path, AtFlags::empty(), wanted()) {
        Ok(s) => Ok(Some(Look::from(&s))),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Stats an open file.
pub fn look(file: impl AsFd) -> io::Result<Look> {
    Ok(Look::from(&fs::statx(file, "", AtFlags::EMPTY_PATH, wanted())?))
}

/// Whether the file is on overlayfs, the file system of containers.
pub fn is_on_overlay(file: impl AsFd) -> bool {
    const OVERLAYFS_SUPER_MAGIC: i64 = 0x794c_7630; // linux/magic.h
    #[allow(clippy::unnecessary_cast, reason = "narrower on other machines")]
    fs::fstatfs(file).is_ok_and(|s| s.f_type as i64 == OVERLAYFS_SUPER_MAGIC)
}

/// Descriptors that log files leave free for the saved state and for sockets.
const RESERVE: u64 = 32;

/// Opens a regular file for reading and refuses everything else. Never blocks on a FIFO or a device.
pub fn open(path: &Path) -> io::Result<(File, Look)> {
    others_act();
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = crate::links::open(path, flags)?;
    // The kernel returns the lowest free number, so a high one means that few are left.
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if fd.as_raw_fd() as u64 + RESERVE.min(limit / 2) >= limit {
        return Err(Errno::MFILE.into());
    }
    let seen = look(&fd)?;
    if seen.kind != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, not_regular(seen.kind)));
    }
    Ok((File::from(fd), seen))
}

/// Why a path is not followed, in the user's terms.
pub fn not_regular(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "is a directory, not a file",
        FileType::Fifo => "is a FIFO, not a regular file",
        FileType::Socket => "is a socket, not a regular file",
        FileType::CharacterDevice | FileType::BlockDevice => "is a device, not a regular file",
        _ => "is not a regular file",
    }
}

fn wanted() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::BTIME
}

impl From<&Statx> for Look {
    fn from(s: &Statx) -> Look {
        let born =
            (s.stx_mask & StatxFlags::BTIME.bits() != 0).then_some((s.stx_btime.tv_sec, s.stx_btime.tv_nsec));
        Look {
            identity: Identity {
                dev: fs::makedev(s.stx_dev_major, s.stx_dev_minor),
                ino: s.stx_ino,
                // Some file systems claim to support birth times and return 0.
                born: born.filter(|b| *b != (0, 0) && !is_birthless()),
            },
            size: s.stx_size,
            modified: nanos((s.stx_mtime.tv_sec, s.stx_mtime.tv_nsec)),
            links: s.stx_nlink,
            kind: FileType::from_raw_mode(u32::from(s.stx_mode)),
        }
    }
}

#[cfg(test)]
thread_local! {
    /// For tests on this thread: simulates a file system without birth times.
    pub static BIRTHLESS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    /// For tests on this thread: actions of other processes, each run after the given number of looks.
    pub static MEANWHILE: std::cell::RefCell<std::collections::VecDeque<Deed>> =
        const { std::cell::RefCell::new(std::collections::VecDeque::new()) };
}

/// Number of looks before the action, and the action.
#[cfg(test)]
pub type Deed = (u64, Box<dyn FnOnce()>);

/// Runs between any two looks.
fn others_act() {
    #[cfg(test)]
    let due = MEANWHILE.with_borrow_mut(|deeds| match deeds.front_mut() {
        Some((looks, _)) if *looks > 0 => {
            *looks -= 1;
            None
        }
        _ => deeds.pop_front(),
    });
    #[cfg(test)]
    if let Some((_, deed)) = due {
        deed();
    }
}

fn is_birthless() -> bool {
    #[cfg(test)]
    return BIRTHLESS.get();
    #[cfg(not(test))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::Mode;

    #[test]
    fn a_directory_is_refused_and_a_fifo_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open(dir.path()).unwrap_err().to_string().contains("directory"));
        let fifo = dir.path().join("fifo");
        fs::mknodat(fs::CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(open(&fifo).unwrap_err().to_string().contains("FIFO"));
    }

    #[test]
    fn nothing_there_is_not_an_error() {
        assert_eq!(look_at(Path::new("/nonexistent/x")).unwrap(), None);
        assert_eq!(look_at(Path::new("/dev/null/x")).unwrap(), None);
    }

    #[test]
    fn a_renamed_file_stays_the_same_and_a_new_one_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, "x").unwrap();
        let first = look_at(&a).unwrap().unwrap().identity;
        #[allow(clippy::disallowed_methods)]
        std::fs::rename(&a, &b).unwrap();
        assert_eq!(look_at(&b).unwrap().unwrap().identity, first);
        std::fs::write(&a, "x").unwrap(); // while `b` has its inode: both may be born in the same clock tick
        assert_ne!(look_at(&a).unwrap().unwrap().identity, first);
    }
}
