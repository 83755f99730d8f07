//! Shares of the dead-letter file: which followed paths have filled theirs with refused lines and have to wait, so that one
//! log that the broker refuses cannot fill the file and stop the others of its topic. Ship counts what it writes; tails ask
//! before they read, and reserve room for what they have read.
//!
//! A path waits once its letters, and what the lines on their way to the broker would take as letters, are more than a third
//! of what is still free (dynamic thresholds, as switches share a buffer): one path alone stops at a quarter of the limit, of
//! many each stops earlier, and a newcomer always finds room. A letter is counted with everything around its line: that of a
//! line of one byte has some 250, so 8 MiB of short lines in memory would else be 200 MiB of letters.
//!
//! A path without letters always has one chunk on its way, however full the file is.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often it is looked whether the file was moved away, while somebody waits for that.
const LOOK: Duration = Duration::from_secs(1);

/// Longest reason in a letter, in bytes.
pub const REASON: usize = 100;

/// Most that a letter has beside its texts: names, quotes, numbers and time.
pub const FRAME: usize = 200;

#[derive(Debug)]
pub struct Quota {
    /// The dead-letter file.
    pub file: PathBuf,
    limit: u64,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    paths: HashMap<PathBuf, LetterShare>,
    /// Bytes of letters of all paths.
    letters: u64,
    /// Bytes that are reserved, of all paths.
    reserved: Arc<AtomicU64>,
    /// Device and inode of the file that the letters are in.
    of: Option<(u64, u64)>,
    looked: Option<Instant>,
}

#[derive(Debug, Default)]
struct LetterShare {
    letters: u64,
    reserved: Arc<AtomicU64>,
}

/// Whether a path may be read on.
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
    of: [Arc<AtomicU64>; 2],
}

impl Drop for Reserved {
    fn drop(&mut self) {
        for sum in &self.of {
            sum.fetch_sub(self.bytes, Relaxed);
        }
    }
}

impl Quota {
    /// `letters`: what the file holds now, path and bytes of each letter.
    pub fn new(file: PathBuf, limit: u64, letters: impl Iterator<Item = (PathBuf, u64)>) -> Quota {
        let mut used = Used::default();
        used.renew(&file);
        for (path, bytes) in letters {
            used.paths.entry(path).or_default().letters += bytes;
            used.letters += bytes;
        }
        Quota { file, limit, used: Mutex::new(used) }
    }

    /// A letter of this path was written.
    pub fn wrote(&self, path: &Path, bytes: u64) {
        let mut used = self.lock();
        used.renew(&self.file);
        used.share(path).letters += bytes;
        used.letters += bytes;
    }

    /// Whether more is to be read of this path; `next`: what that takes if it is refused.
    pub fn room(&self, path: &Path, next: u64, now: Instant) -> Room {
        let mut used = self.lock();
        let (letters, reserved) =
            used.paths.get(path).map_or((0, 0), |own| (own.letters, own.reserved.load(Relaxed)));
        if letters == 0 && reserved == 0 {
            return Room::Enough;
        }
        let all = used.letters + used.reserved.load(Relaxed);
        if !self.is_full(all + next, letters + reserved + next) {
            return Room::Enough;
        }
        if letters > 0 && used.looked.is_none_or(|at| now.saturating_duration_since(at) > LOOK) {
            used.looked = Some(now);
            used.renew(&self.file);
        }
        if letters > 0 && (reserved == 0 || self.is_full(used.letters, letters)) {
            Room::Full
        } else {
            Room::Later
        }
    }

    /// Room for the letters of lines that were read of this path.
    pub fn reserve(&self, path: &Path, bytes: u64) -> Reserved {
        let mut used = self.lock();
        let of = [used.share(path).reserved.clone(), used.reserved.clone()];
        for sum in &of {
            sum.fetch_add(bytes, Relaxed);
        }
        Reserved { bytes, of }
    }

    /// `own` of `all` bytes are too much for one path.
    fn is_full(&self, all: u64, own: u64) -> bool {
        own > 0 && own.saturating_mul(3) >= self.limit.saturating_sub(all)
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Used {
    fn share(&mut self, path: &Path) -> &mut LetterShare {
        if !self.paths.contains_key(path) {
            // Those that are followed no more: one that comes back begins again.
            self.paths.retain(|_, s| s.letters > 0 || s.reserved.load(Relaxed) > 0);
        }
        self.paths.entry(path.to_owned()).or_default()
    }

    /// The file may be moved away or emptied at any time: then all begin with nothing.
    fn renew(&mut self, file: &Path) {
        let there = fs::symlink_metadata(file).ok();
        let now = there.as_ref().map(|m| (m.dev(), m.ino()));
        let len = there.map_or(0, |m| m.len());
        if now != self.of || len < self.letters {
            self.paths.values_mut().for_each(|s| s.letters = 0);
            self.letters = 0;
            self.of = now;
        }
    }
}

/// Most bytes of the letters of `lines` lines, which are all of `bytes`.
pub fn letters(path: &[u8], topic: &str, lines: usize, bytes: &[u8]) -> u64 {
    (lines * (FRAME + REASON + topic.len() + text(path)) + text(bytes) + 4 * lines) as u64
}

/// Most that bytes take as JSON text, or in base64: six for a control character, two for any other, since it may be a quote
/// or a backslash. Each byte of a log comes by here, so no more is looked at than eight at once.
fn text(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    let (mut control, words) = (0, bytes.as_chunks::<8>());
    for some in words.0.chunks(255) {
        let mut lanes = 0; // one count for each place in a word
        for word in some.iter().map(|w| u64::from_le_bytes(*w)) {
            // Bytes below 0x20 (Bit Twiddling Hacks, "countless").
            lanes += ((ONES * (127 + 0x20) - (word & !HIGH)) & !word & HIGH) >> 7;
        }
        control += lanes.to_le_bytes().iter().map(|n| usize::from(*n)).sum::<usize>();
    }
    control += words.1.iter().filter(|b| **b < 0x20).count();
    2 * bytes.len() + 4 * control
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
        let (_dir, _, q) = quota(1000, &[(bad, 200)]);
        assert_eq!(q.room(bad, 0, now), Room::Enough);
        q.wrote(bad, 40);
        assert_eq!(q.room(bad, 0, now), Room::Enough);
        q.wrote(bad, 10); // 250 of 1000
        assert_eq!((q.room(bad, 0, now), q.room(good, 0, now)), (Room::Full, Room::Enough));
        q.wrote(good, 100);
        assert_eq!(q.room(good, 0, now), Room::Enough);
        // A restart counts what is there.
        let (_dir, file, q) = quota(1000, &[(bad, 260), (good, 100)]);
        assert_eq!((q.room(bad, 0, now), q.room(good, 0, now)), (Room::Full, Room::Enough));
        fs::remove_file(&file).unwrap();
        q.room(bad, 0, now + LOOK * 2);
        assert_eq!(q.room(bad, 0, now + LOOK * 2), Room::Enough);
    }

    /// Fails when what is on its way to the broker does not count for its path, is not given back, or passes for letters;
    /// or when a path without letters stands still because the file is full.
    #[test]
    fn what_is_on_its_way_counts() {
        let (bad, good, now) = (Path::new("/bad"), Path::new("/good"), Instant::now());
        let (_dir, _, q) = quota(1000, &[]);
        let first = q.reserve(bad, 100);
        assert_eq!((q.room(bad, 100, now), q.room(bad, 180, now)), (Room::Enough, Room::Later));
        let second = q.reserve(bad, 150);
        assert_eq!((q.room(bad, 0, now), q.room(good, 0, now)), (Room::Later, Room::Enough));
        drop(first);
        assert_eq!(q.room(bad, 0, now), Room::Enough);
        q.wrote(bad, 240);
        assert_eq!(q.room(bad, 0, now), Room::Later);
        drop(second);
        assert_eq!((q.room(bad, 0, now), q.room(bad, 10, now)), (Room::Enough, Room::Full));
        q.wrote(bad, 760);
        assert_eq!(q.room(good, 500, now), Room::Enough);
        let _third = q.reserve(good, 10);
        assert_eq!(q.room(good, 500, now), Room::Later);
    }

    /// Fails when many paths together fill the file, so that a newcomer finds no room.
    #[test]
    fn many_leave_room_for_one_more() {
        let (_dir, _, q) = quota(10_000, &[]);
        let mut total = 0;
        for path in 0..50 {
            let path = PathBuf::from(format!("/{path}"));
            while q.room(&path, 0, Instant::now()) == Room::Enough {
                total += 1;
                q.wrote(&path, 1);
            }
        }
        assert!(total < 10_050, "{total}");
        assert_eq!(q.room(Path::new("/new"), 0, Instant::now()), Room::Enough);
    }
}
