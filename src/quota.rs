//! Shares of the dead-letter file. A path whose rejected lines have filled its share has to wait, so that one bad log
//! cannot fill the file and stop the other logs of its topic. The producer counts what it writes; tails ask before
//! they read, and reserve room for what they have read.
//!
//! A path waits once its dead letters, plus the letters that its lines in memory could become, exceed a third of the
//! space left (dynamic thresholds, as in switch buffers): a single path stops at a quarter of the limit, many paths
//! stop earlier, and a newcomer always finds room. A letter is counted with everything around its line: a one-byte
//! line makes a letter of some 250 bytes, so 8 MiB of short lines in memory could otherwise become 200 MiB of
//! letters.
//!
//! A path without dead letters may always have one chunk in flight, however full the file is.

use crate::lock::lock;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How often to check whether the file was moved away while a path waits for that.
const LOOK: Duration = Duration::from_secs(1);

/// Longest reason in a letter, in bytes.
pub const REASON: usize = 100;

/// Upper bound of a letter's bytes beside its texts: field names, quotes, numbers and time.
const FRAME: usize = 210;

#[derive(Debug)]
pub struct Quota {
    /// The dead-letter file.
    pub file: PathBuf,
    limit: u64,
    paths: Mutex<Paths>,
    sums: Arc<Sums>,
}

/// Sums over all paths, in bytes.
#[derive(Debug, Default)]
struct Sums {
    letters: AtomicU64,
    reserved: AtomicU64,
}

#[derive(Debug, Default)]
struct Paths {
    /// Bytes of dead letters per path.
    letters: HashMap<PathBuf, Arc<AtomicU64>>,
    /// Device and inode of the file that contains the letters.
    of: Option<(u64, u64)>,
    looked: Option<Instant>,
}

/// A tail's handle for one path and topic. Checking and reserving room takes no lock.
#[derive(Clone, Debug)]
pub struct DeadLetterShare {
    /// Shared by all topics of the path.
    letters: Arc<AtomicU64>,
    reserved: Arc<AtomicU64>,
    sums: Arc<Sums>,
    /// Bytes of a letter in addition to its line.
    overhead: usize,
}

/// Whether reading of a path may continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Enough,
    /// Wait until some of its lines have been acknowledged.
    Later,
    /// Wait until the dead-letter file has been moved away.
    Full,
}

/// Reserved room for the letters of a chunk; returned on drop.
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
    /// `letters`: path and size of each letter now in the file.
    pub fn new(file: PathBuf, limit: u64, letters: impl Iterator<Item = (PathBuf, u64)>) -> Quota {
        let quota = Quota { file, limit, paths: Mutex::default(), sums: Arc::default() };
        quota.renew(&mut lock(&quota.paths));
        letters.for_each(|(path, bytes)| quota.add(&mut lock(&quota.paths), &path, bytes));
        quota
    }

    /// A handle for a tail that follows `path`, per topic.
    pub fn share(&self, path: &Path, topic: &str) -> DeadLetterShare {
        let overhead = FRAME + REASON + topic.len() + escaped(path.as_os_str().as_encoded_bytes());
        let letters = lock(&self.paths).letters(path).clone();
        DeadLetterShare { letters, reserved: Arc::default(), sums: self.sums.clone(), overhead }
    }

    /// Records letters written for this path.
    pub fn wrote(&self, path: &Path, bytes: u64) {
        let mut paths = lock(&self.paths);
        self.renew(&mut paths);
        self.add(&mut paths, path, bytes);
    }

    fn add(&self, paths: &mut Paths, path: &Path, bytes: u64) {
        paths.letters(path).fetch_add(bytes, Relaxed);
        self.sums.letters.fetch_add(bytes, Relaxed);
    }

    /// Whether to read more; `next` is the room needed if the next lines are rejected.
    pub fn room(&self, own: &DeadLetterShare, next: u64, now: Instant) -> Room {
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
        let mut paths = lock(&self.paths);
        if paths.looked.is_none_or(|at| now.saturating_duration_since(at) > LOOK) {
            paths.looked = Some(now);
            self.renew(&mut paths);
        }
        let (letters, all) = (own.letters.load(Relaxed), self.sums.letters.load(Relaxed));
        if letters > 0 && (reserved == 0 || self.is_full(all, letters)) { Room::Full } else { Room::Later }
    }

    /// Whether `own` of `all` bytes exceed one path's share.
    fn is_full(&self, all: u64, own: u64) -> bool {
        own > 0 && own.saturating_mul(3) >= self.limit.saturating_sub(all)
    }

    /// The file may be moved away or emptied at any time; all paths then start from zero.
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
            // Forget paths that are no longer followed; they start from zero if they return.
            self.letters.retain(|_, letters| letters.load(Relaxed) > 0 || Arc::strong_count(letters) > 1);
        }
        self.letters.entry(path.to_owned()).or_default()
    }
}

impl DeadLetterShare {
    /// Upper bound of the letters for `lines` lines with `bytes` bytes in total. Control characters are not counted
    /// separately, although each may take six bytes instead of two: scanning for them would cost more than everything
    /// else done per line here.
    pub fn letters(&self, lines: usize, bytes: usize) -> u64 {
        (lines * (self.overhead + 4) + 2 * bytes) as u64
    }

    pub fn reserve(&self, bytes: u64) -> Reserved {
        self.reserved.fetch_add(bytes, Relaxed);
        self.sums.reserved.fetch_add(bytes, Relaxed);
        Reserved { bytes, own: self.reserved.clone(), sums: self.sums.clone() }
    }
}

/// Upper bound of bytes as JSON text.
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

    /// Fails when one path can fill the file, when a path with few letters has to wait for it, or when a file that
    /// was moved away still counts.
    #[test]
    fn no_single_path_fills_the_file() {
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
        // A restart counts the existing letters.
        let (_dir, file, q) = quota(1000, &[(bad, 260), (good, 100)]);
        assert_eq!((room(&q, bad, now), room(&q, good, now)), (Room::Full, Room::Enough));
        fs::remove_file(&file).unwrap();
        room(&q, bad, now + LOOK * 2);
        assert_eq!(room(&q, bad, now + LOOK * 2), Room::Enough);
    }

    /// Fails when lines in flight do not count for their path, are not returned, or count as letters; when a path
    /// without letters stalls because the file is full; or when lines for another topic block it.
    #[test]
    fn lines_in_flight_count() {
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
    fn many_paths_leave_room_for_one_more() {
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
