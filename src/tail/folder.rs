//! Caches the names in a folder as long as its timestamps prove them current. Where a thousand files of one folder are
//! followed, each tail would otherwise read all names to find its siblings.
//!
//! A listing is current if the folder's last change was well before the listing and is still the last one. "Well before"
//! means longer than the resolution of the file system's clock. Timestamps of network file systems prove nothing.

use crate::lock::lock;
use crate::network_fs::is_network_fs;
use rustix::fs::{Mode, OFlags, RawDir, fstat, open};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// How far back a change must lie, in ns: more than a tick of the kernel clock that stamps files.
const REST: i64 = 100_000_000;
/// The same for coarse timestamps: FAT has 2 s resolution, ext3 1 s, exFAT 10 ms.
const REST_IF_ROUND: i64 = 3_000_000_000;
const ROUND: i64 = 10_000_000;
/// Smallest listing worth caching, in bytes.
const LARGE: usize = 4 << 10;

/// The large folder that was read last; tails of one folder start together.
static LAST: Mutex<Option<Arc<Names>>> = Mutex::new(None);

/// The names in a folder.
#[derive(Debug)]
pub struct Names {
    /// Each name ends in NUL.
    all: Vec<u8>,
    stamp: Stamp,
    /// Nothing had changed for a while when it was read.
    at_rest: bool,
}

/// Identifies a folder and its last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    /// In nanoseconds since 1970, as [`Stamp::changed`].
    modified: i64,
    changed: i64,
}

/// As one number; overflows in 2262.
fn nanos(seconds: i64, nanoseconds: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

impl Stamp {
    fn of(folder: impl AsFd) -> Result<Stamp, Errno> {
        let s = fstat(folder)?;
        Ok(Stamp {
            device: s.st_dev,
            inode: s.st_ino,
            modified: nanos(s.st_mtime as i64, s.st_mtime_nsec as i64),
            changed: nanos(s.st_ctime as i64, s.st_ctime_nsec as i64),
        })
    }

    fn is_old(&self) -> bool {
        let now = clock_gettime(ClockId::Realtime);
        let rest = if self.changed % ROUND == 0 { REST_IF_ROUND } else { REST };
        self.modified.max(self.changed) < nanos(now.tv_sec, now.tv_nsec).saturating_sub(rest)
    }
}

impl Names {
    /// `None`: the folder does not exist.
    pub fn of(folder: &Path) -> Result<Option<Arc<Names>>, Errno> {
        let Some(open) = opened(folder)? else { return Ok(None) };
        let stamp = Stamp::of(&open)?;
        let last = lock(&LAST).clone();
        if let Some(last) = last.filter(|l| l.at_rest && l.stamp == stamp) {
            return Ok(Some(last));
        }
        let at_rest = stamp.is_old() && !is_network_fs(folder);
        let names = Arc::new(Names { all: read(open)?, stamp, at_rest });
        if names.at_rest && names.all.len() >= LARGE {
            *lock(&LAST) = Some(names.clone());
        }
        Ok(Some(names))
    }

    pub fn iter(&self) -> impl Iterator<Item = &OsStr> {
        self.all.split(|b| *b == 0).filter(|name| !name.is_empty()).map(OsStr::from_bytes)
    }

    /// Whether the names have been unchanged since some time before the listing.
    pub fn hold_still(&self, folder: &Path) -> bool {
        let now = opened(folder).ok().flatten().and_then(|folder| Stamp::of(folder).ok());
        self.at_rest && now == Some(self.stamp)
    }
}

fn opened(folder: &Path) -> Result<Option<OwnedFd>, Errno> {
    match open(folder, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(e) => Err(e),
    }
}

fn read(folder: OwnedFd) -> Result<Vec<u8>, Errno> {
    let mut all = Vec::new();
    let mut buffer = [MaybeUninit::uninit(); 2 << 10]; // small: the stack stays resident
    let mut entries = RawDir::new(folder, &mut buffer);
    while let Some(entry) = entries.next() {
        all.extend_from_slice(entry?.file_name().to_bytes_with_nul());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::rename;
    use std::fs::{File, remove_file};
    use std::time::Duration;

    fn is_read_again(names: &Arc<Names>, folder: &Path) -> bool {
        !Arc::ptr_eq(names, &Names::of(folder).unwrap().unwrap())
    }

    /// Fails when an unchanged folder is read again, or when an added, removed or renamed name is not seen at once.
    #[test]
    fn is_read_when_it_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let file = |n: usize| dir.path().join(format!("a-rather-long-name-{n:05}.log"));
        (0..300).for_each(|n| drop(File::create(file(n)).unwrap()));
        let just_changed = |_| {
            File::create(file(0)).and_then(|_| remove_file(file(0))).unwrap();
            !Names::of(dir.path()).unwrap().unwrap().hold_still(dir.path())
        };
        assert!((0..20).any(just_changed), "however busy the machine is");
        assert_eq!(Names::of(dir.path()).unwrap().unwrap().iter().count(), 301, "with . and ..");
        for change in 0..3 {
            crossbeam_channel::after(Duration::from_nanos(REST_IF_ROUND as u64 + ROUND as u64))
                .recv()
                .unwrap();
            let names = Names::of(dir.path()).unwrap().unwrap();
            assert!(names.hold_still(dir.path()));
            assert!(!is_read_again(&names, dir.path()), "nothing was changed");
            match change {
                0 => drop(File::create(file(300)).unwrap()),
                1 => rename(file(7), file(301)).unwrap(),
                _ => remove_file(file(8)).unwrap(),
            }
            assert!(!names.hold_still(dir.path()));
            assert!(is_read_again(&names, dir.path()));
        }
        assert!(Names::of(&file(300).join("x")).unwrap().is_none() && Names::of(&file(8)).unwrap().is_none());
    }
}
