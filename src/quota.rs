//! Shares of the dead-letter file: which followed paths have filled theirs with refused lines and have to wait, so that one
//! log that the broker refuses cannot fill the file and stop the others of its topic. Ship counts what it writes, tails ask
//! before they read.
//!
//! A path waits once its letters take more than a third of what is still free (dynamic thresholds, as switches share a
//! buffer): one path alone stops at a quarter of the limit, of many each stops earlier, and a newcomer always finds room. The
//! rest is room for the lines that were read before the path had to wait; they are refused and written too.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often it is looked whether the file was moved away, while somebody waits for that.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Quota {
    /// The dead-letter file.
    file: PathBuf,
    limit: u64,
    /// Some path has to wait: else tails need no lock.
    any: AtomicBool,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    /// Bytes of letters by followed path.
    bytes: HashMap<PathBuf, u64>,
    /// Device and inode of the file that these are in.
    of: Option<(u64, u64)>,
    looked: Option<Instant>,
}

impl Quota {
    /// `letters`: what the file holds now, path and bytes of each letter.
    pub fn new(file: PathBuf, limit: u64, letters: impl Iterator<Item = (PathBuf, u64)>) -> Quota {
        let mut used = Used::default();
        used.renew(&file);
        for (path, bytes) in letters {
            *used.bytes.entry(path).or_default() += bytes;
        }
        let quota = Quota { file, limit, any: AtomicBool::new(false), used: Mutex::new(used) };
        quota.tell(&quota.lock());
        quota
    }

    /// A letter of this path was written. `true`: the path has to wait from now on.
    pub fn wrote(&self, path: &Path, bytes: u64) -> bool {
        let mut used = self.lock();
        used.renew(&self.file);
        let before = used.is_full(path, self.limit);
        match used.bytes.get_mut(path) {
            Some(sum) => *sum += bytes,
            None => drop(used.bytes.insert(path.to_owned(), bytes)),
        }
        self.tell(&used);
        !before && used.is_full(path, self.limit)
    }

    /// Nothing more is to be read of this path.
    pub fn must_wait(&self, path: &Path, now: Instant) -> bool {
        if !self.any.load(Relaxed) {
            return false;
        }
        let mut used = self.lock();
        if used.looked.is_none_or(|at| now.saturating_duration_since(at) > LOOK) {
            used.looked = Some(now);
            used.renew(&self.file);
            self.tell(&used);
        }
        used.is_full(path, self.limit)
    }

    fn tell(&self, used: &Used) {
        self.any.store(used.bytes.keys().any(|path| used.is_full(path, self.limit)), Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Used {
    /// The file may be moved away or emptied at any time: then all begin with nothing.
    fn renew(&mut self, file: &Path) {
        let there = fs::symlink_metadata(file).ok();
        let now = there.as_ref().map(|m| (m.dev(), m.ino()));
        let len = there.map_or(0, |m| m.len());
        if now != self.of || len < self.total() {
            self.bytes.clear();
            self.of = now;
        }
    }

    fn total(&self) -> u64 {
        self.bytes.values().sum()
    }

    fn is_full(&self, path: &Path, limit: u64) -> bool {
        let Some(own) = self.bytes.get(path) else { return false };
        let free = limit.saturating_sub(self.total());
        own.saturating_mul(3) >= free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when one path may fill the file, when one that has written little has to wait for it, or when a file that was
    /// moved away still counts.
    #[test]
    fn nobody_fills_the_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("dead-letter");
        fs::write(&file, "x".repeat(2000)).unwrap();
        let (bad, good, now) = (Path::new("/bad"), Path::new("/good"), Instant::now());
        let quota = Quota::new(file.clone(), 1000, [(bad.into(), 200)].into_iter());
        assert!(!quota.must_wait(bad, now));
        assert!(!quota.wrote(bad, 40));
        assert!(quota.wrote(bad, 10), "250 of 1000");
        assert!(!quota.wrote(bad, 10), "said once");
        assert!(quota.must_wait(bad, now) && !quota.must_wait(good, now));
        assert!(!quota.wrote(good, 100) && !quota.must_wait(good, now));
        // A restart counts what is there.
        let letters = [(bad.into(), 260), (good.into(), 100)];
        let quota = Quota::new(file.clone(), 1000, letters.into_iter());
        assert!(quota.must_wait(bad, now) && !quota.must_wait(good, now));
        fs::remove_file(&file).unwrap();
        assert!(!quota.must_wait(bad, now + LOOK * 2));
    }

    /// Fails when many paths together fill the file, so that a newcomer finds no room.
    #[test]
    fn many_leave_room_for_one_more() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("dead-letter");
        fs::write(&file, "x".repeat(20_000)).unwrap();
        let quota = Quota::new(file, 10_000, std::iter::empty());
        let mut total = 0;
        for path in 0..50 {
            let path = PathBuf::from(format!("/{path}"));
            while !quota.must_wait(&path, Instant::now()) {
                total += 1;
                quota.wrote(&path, 1);
            }
        }
        assert!(total < 10_050, "{total}");
        assert!(!quota.must_wait(Path::new("/new"), Instant::now()));
    }
}
