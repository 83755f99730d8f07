//! Shares of the dead-letter file: which followed paths have filled theirs with refused lines and have to wait, so that one
//! log that the broker refuses cannot fill the file and stop the others of its topic. The producer counts what it writes;
//! tails ask before they read, and reserve room for what they have read.
//!
//! A path waits once its letters, and what its lines in memory would take as letters, are more than a third of what is still
//! free (dynamic thresholds, as switches share a buffer): one path alone stops at a quarter of the limit, of many each stops
//! earlier, and a newcomer always finds room. A letter is counted with everything around its line: that of a line of one
//! byte has some 250, so 8 MiB of short lines in memory would otherwise become 200 MiB of letters.
//!
//! A path without letters always has one chunk on its way, however full the file is.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often it is checked whether the file was moved away, while a path waits for that.
const LOOK: Duration = Duration::from_secs(1);

/// Longest reason in a letter, in bytes.
pub const REASON: usize = 100;

/// Most that a letter has beside its texts: names, quotes, numbers and time.
const FRAME: usize = 210;

#[derive(Debug)]
pub struct Quota {
    /// The dead-letter file.
    pub file: PathBuf,
    limit: u64,
    paths: Mutex<Paths>,
    sums: Arc<Sums>,
}

/// Over all paths, in bytes.
#[derive(Debug, Default)]
struct Sums {
    letters: AtomicU64,
    reserved: AtomicU64,
}

#[derive(Debug, Default)]
struct Paths {
    /// Bytes of each path's letters.
    letters: HashMap<PathBuf, Arc<AtomicU64>>,
    /// Device and inode of the file that the letters are in.
    of: Option<(u64, u64)>,
    looked: Option<Instant>,
}

/// What one path sends to one topic: the tail's handle. Asking for room and reserving it takes no lock.
#[derive(Clone, Debug)]
pub struct LetterShare {
    /// Of the path, whatever the topic.
    letters: Arc<AtomicU64>,
    reserved: Arc<AtomicU64>,
    sums: Arc<Sums>,
    /// Bytes of a letter beside its line.
    overhead: usize,
}

/// Whether a path may be read further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Enough,
    /// Once some of its lines have been acknowledged.
    Later,
    /// Once the letters have been moved away.
    Full,
}

/// Room for the letters of a chunk; given back when it is dropped.
#[derive(Debug)]
pub struct Reserved {
    bytes: u64,
    own: Arc<AtomicU64>,
    sums: Arc<Sums>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.own.fetch_sub(self.bytes, Relaxed);
        self.sums.reserved.fetch_sub(self.bytes, Relaxed);
    }
}

impl Quota {
    /// `letters`: what the file holds now, path and bytes of each letter.
    pub fn new(file: PathBuf, limit: u64, letters: impl Iterator<Item = (PathBuf, u64)>) -> Quota {
        let quota = Quota { file, limit, paths: Mutex::default(), sums: Arc::default() };
        quota.renew(&mut quota.lock());
        letters.for_each(|(path, bytes)| quota.add(&mut quota.lock(), &path, bytes));
        quota
    }

    /// For a tail that follows `path`, and for each topic that it has.
    pub fn share(&self, path: &Path, topic: &str) -> LetterShare {
        let overhead = FRAME + REASON + topic.len() + escaped(path.as_os_str().as_encoded_bytes());
        let letters = self.lock().letters(path).clone();
        LetterShare { letters, reserved: Arc::default(), sums: self.sums.clone(), overhead }
    }

    /// Letters of this path were written.
    pub fn wrote(&self, path: &Path, bytes: u64) {
        let mut paths = self.lock();
        self.renew(&mut paths);
        self.add(&mut paths, path, bytes);
    }

    fn add(&self, paths: &mut Paths, path: &Path, bytes: u64) {
        paths.letters(path).fetch_add(bytes, Relaxed);
        self.sums.letters.fetch_add(bytes, Relaxed);
    }

    /// Whether more is to be read; `next`: what that takes if it is refused.
    pub fn room(&self, own: &LetterShare, next: u64, now: Instant) -> Room {
        let (letters, reserved) = (own.letters.load(Relaxed), own.reserved.load(Relaxed));
        if letters == 0 && reserved == 0 {
            return Room::Enough;
        }
        let all = self.sums.letters.load(Relaxed);
        if !self.is_full(all + self.sums.reserved.load(Relaxed) + next, letters + reserved + next) {
            return Room::Enough;
        }
        if letters == 0 {
            return Room::Later;
        }
        let mut paths = self.lock();
        if paths.looked.is_none_or(|at| now.saturating_duration_since(at) > LOOK) {
            paths.looked = Some(now);
            self.renew(&mut paths);
        }
        let (letters, all) = (own.letters.load(Relaxed), self.sums.letters.load(Relaxed));
        if letters > 0 && (reserved == 0 || self.is_full(all, letters)) { Room::Full } else { Room::Later }
    }

    /// `own` of `all` bytes are too much for one path.
    fn is_full(&self, all: u64, own: u64) -> bool {
        own > 0 && own.saturating_mul(3) >= self.limit.saturating_sub(all)
    }

    fn lock(&self) -> MutexGuard<'_, Paths> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file may be moved away or emptied at any time: then every path starts with nothing.
    fn renew(&self, paths: &mut Paths) {
        let there = fs::symlink_metadata(&self.file).ok();
        let now = there.as_ref().map(|m| (m.dev(), m.ino()));
        let len = there.map_or(0, |m| m.len());
        if now != paths.of || len < self.sums.letters.load(Relaxed) {
            paths.letters.values().for_each(|letters| letters.store(0, Relaxed));
            self.sums.letters.store(0, Relaxed);
            paths.of = now;
        }
    }
}

impl Paths {
    fn letters(&mut self, path: &Path) -> &Arc<AtomicU64> {
        if !self.letters.contains_key(path) {
            // Without those that are no longer followed: one that comes back starts with nothing.
            self.letters.retain(|_, letters| letters.load(Relaxed) > 0 || Arc::strong_count(letters) > 1);
        }
        self.letters.entry(path.to_owned()).or_default()
    }
}

impl LetterShare {
    /// What the letters of `lines` lines with `bytes` bytes take: at most, but for control characters, of which each may
    /// take six bytes instead of two. To count those would cost each line more than all else that is done with it here.
    pub fn letters(&self, lines: usize, bytes: usize) -> u64 {
        (lines * (self.overhead + 4) + 2 * bytes) as u64
    }

    pub fn reserve(&self, bytes: u64) -> Reserved {
        self.reserved.fetch_add(bytes, Relaxed);
        self.sums.reserved.fetch_add(bytes, Relaxed);
        Reserved { bytes, own: self.reserved.clone(), sums: self.sums.clone() }
    }
}

/// Most that bytes take as JSON text.
fn escaped(bytes: &[u8]) -> usize {
    bytes.iter().map(|b| if *b < 0x20 { 6 } else { 2 }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(limit: u64, letters: &[(&Path, u64)]) -> (tempfile::TempDir, PathBuf, Quota) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("dead-letter");
        fs::write(&file, "x".repeat(2 * limit as usize)).unwrap();
        let quota = Quota::new(file.clone(), limit, letters.iter().map(|(p, n)| (p.to_path_buf(), *n)));
        (dir, file, quota)
    }

    /// Fails when one path may fill the file, when one that has written little has to wait for it, or when a file that was
    /// moved away still counts.
    #[test]
    fn nobody_fills_the_file_alone() {
        let (bad, good, now) = (Path::new("/bad"), Path::new("/good"), Instant::now());
        let room = |q: &Quota, path, now| q.room(&q.share(path, "t"), 0, now);
        let (_dir, _, q) = quota(1000, &[(bad, 200)]);
        assert_eq!(room(&q, bad, now), Room::Enough);
        q.wrote(bad, 40);
        assert_eq!(room(&q, bad, now), Room::Enough);
        q.wrote(bad, 10); // 250 of 1000
        assert_eq!((room(&q, bad, now), room(&q, good, now)), (Room::Full, Room::Enough));
        q.wrote(good, 100);
        assert_eq!(room(&q, good, now), Room::Enough);
        // A restart counts what is there.
        let (_dir, file, q) = quota(1000, &[(bad, 260), (good, 100)]);
        assert_eq!((room(&q, bad, now), room(&q, good, now)), (Room::Full, Room::Enough));
        fs::remove_file(&file).unwrap();
        room(&q, bad, now + LOOK * 2);
        assert_eq!(room(&q, bad, now + LOOK * 2), Room::Enough);
    }

    /// Fails when what is on its way to the broker does not count for its path, is not given back, or passes for letters;
    /// when a path without letters stands still because the file is full; or when lines for another topic are in its way.
    #[test]
    fn what_is_on_its_way_counts() {
        let now = Instant::now();
        let (_dir, _, q) = quota(1000, &[]);
        let (bad, good) = (q.share(Path::new("/bad"), "t"), q.share(Path::new("/good"), "t"));
        let first = bad.reserve(100);
        assert_eq!((q.room(&bad, 100, now), q.room(&bad, 180, now)), (Room::Enough, Room::Later));
        let second = bad.reserve(150);
        assert_eq!((q.room(&bad, 0, now), q.room(&good, 0, now)), (Room::Later, Room::Enough));
        assert_eq!(q.room(&q.share(Path::new("/bad"), "another"), 0, now), Room::Enough);
        drop(first);
        assert_eq!(q.room(&bad, 0, now), Room::Enough);
        q.wrote(Path::new("/bad"), 240);
        assert_eq!(q.room(&bad, 0, now), Room::Later);
        drop(second);
        assert_eq!((q.room(&bad, 0, now), q.room(&bad, 10, now)), (Room::Enough, Room::Full));
        q.wrote(Path::new("/bad"), 760);
        assert_eq!(q.room(&good, 500, now), Room::Enough);
        let _third = good.reserve(10);
        assert_eq!(q.room(&good, 500, now), Room::Later);
    }

    /// Fails when many paths together fill the file, so that a newcomer finds no room.
    #[test]
    fn many_leave_room_for_one_more() {
        let (_dir, _, q) = quota(10_000, &[]);
        let mut total = 0;
        for path in 0..50 {
            let path = PathBuf::from(format!("/{path}"));
            let own = q.share(&path, "t");
            while q.room(&own, 0, Instant::now()) == Room::Enough {
                total += 1;
                q.wrote(&path, 1);
            }
        }
        assert!(total < 10_050, "{total}");
        assert_eq!(q.room(&q.share(Path::new("/new"), "t"), 0, Instant::now()), Room::Enough);
    }
}
