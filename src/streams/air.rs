//! The file `air` in the state folder, little-endian:
//!
//! ```text
//! 0    "logagent air 2 <boot id>\n", padded with zeros to 56 bytes
//! 56   u64  upper bound of all lines counted as sent again (resent, again, uncertain); the only one that is synced
//! 64   u64  lines resent without a crash (`Board::resent`)
//! 72   u64  1 from the first chunk of a run until its clean end
//! 80   u64  lines sent again that an earlier run may have sent
//! 88   u64  limit of streams that were sent but never saved
//! 96   marks of 16 bytes: u64 stream, u64 limit; both 0: free
//! ```
//!
//! Marks are not synced, because a kill does not lose the page cache. The word at 72 is synced at the first chunk and
//! at the end, so that a power loss is detected; after one, everything a file holds at the next start is in doubt.

use crate::record::StreamId;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

const MAGIC: &str = "logagent air 2 ";
/// Where the words of the header are, and its size.
pub const BOUND: u64 = 56;
pub const RESENT: u64 = 64;
pub const RUNNING: u64 = 72;
pub const AGAIN: u64 = 80;
pub const UNSAVED: u64 = 88;
pub const HEAD: u64 = 96;
/// The size of a mark.
pub const SLOT: u64 = 16;

/// The words of the header.
#[derive(Clone, Copy, Debug, Default)]
pub struct Header {
    pub bound: u64,
    pub resent: u64,
    pub running: u64,
    pub again: u64,
    pub unsaved: u64,
}

impl Header {
    /// Zeros if the file is not ours.
    pub fn of(bytes: &[u8]) -> Header {
        if !is_ours(bytes) {
            return Header::default();
        }
        let [bound, resent, running, again, unsaved] =
            [BOUND, RESENT, RUNNING, AGAIN, UNSAVED].map(|at| word(bytes, at));
        Header { bound, resent, running, again, unsaved }
    }

    fn bytes(&self, boot: &str) -> Vec<u8> {
        let mut bytes = head(boot);
        let words = [self.bound, self.resent, self.running, self.again, self.unsaved];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes
    }
}

pub fn is_ours(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC.as_bytes()) && bytes.len() >= HEAD as usize
}

/// Whether it was written in this boot. `boot` is empty if the kernel does not report an id.
pub fn is_of(bytes: &[u8], boot: &str) -> bool {
    !boot.is_empty() && bytes.starts_with(&head(boot))
}

/// The marks, in order; a free one has stream and limit 0.
pub fn marks(bytes: &[u8]) -> impl Iterator<Item = (StreamId, u64)> {
    let marks = bytes.get(HEAD as usize..).unwrap_or_default().chunks_exact(SLOT as usize);
    marks.map(|mark| (StreamId(word(mark, 0)), word(mark, 8)))
}

pub fn head(boot: &str) -> Vec<u8> {
    let mut head = format!("{MAGIC}{boot}\n").into_bytes();
    head.resize(BOUND as usize, 0);
    head
}

pub fn mark(stream: StreamId, limit: u64) -> [u8; SLOT as usize] {
    let mut mark = [0; SLOT as usize];
    for (to, word) in mark.chunks_exact_mut(8).zip([stream.0, limit]) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    mark
}

pub fn word(bytes: &[u8], at: u64) -> u64 {
    let at = at as usize;
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// The file, open for writing. After a failed write nothing is written until [`AirFile::empty`].
#[derive(Debug)]
pub struct AirFile {
    /// `None`: nothing survives a kill.
    pub file: Option<File>,
    /// Empty if the kernel does not report a boot id.
    boot: String,
    /// Bytes written.
    written: AtomicU64,
    /// A write failed, so the file is empty, or says too little.
    broken: AtomicBool,
    /// That was logged.
    reported: AtomicBool,
    /// The first chunk of this run has been noted.
    began: Once,
    /// The file as a power loss would leave it.
    #[cfg(test)]
    pub synced: std::sync::Mutex<Vec<u8>>,
}

impl AirFile {
    pub fn new(file: Option<File>, boot: &str) -> AirFile {
        AirFile {
            file,
            boot: boot.into(),
            written: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            reported: AtomicBool::new(false),
            began: Once::new(),
            #[cfg(test)]
            synced: std::sync::Mutex::default(),
        }
    }

    /// Replaces the content of a file that is not of this boot.
    pub fn create(&self, header: Header, marks: &[u8]) {
        let Some(file) = &self.file else { return };
        let header = header.bytes(&self.boot);
        // Rewritten in place, because a power loss at any step must not lose the counts. A file that is cut short
        // still says that a run of another boot did not end, so it is not trusted; the header that assigns it to
        // this boot is written last.
        let is_new = file.metadata().is_ok_and(|m| m.len() < HEAD);
        let unended = match is_new {
            true => Ok(()),
            false => file.write_all_at(&1u64.to_le_bytes(), RUNNING).and_then(|()| file.sync_data()),
        };
        let done = unended.and_then(|()| file.write_all_at(marks, HEAD));
        let done = done.and_then(|()| file.set_len(HEAD + marks.len() as u64));
        self.check(done.and_then(|()| file.write_all_at(&header, 0)));
        self.written.fetch_add(HEAD + marks.len() as u64, Relaxed);
        self.sync(); // a header on disk without its marks would understate the limits
    }

    /// Empties the file after a failed write, so that all of it can be written again, the header last. `false`: no write
    /// failed, or it cannot be emptied yet.
    pub fn empty(&self) -> bool {
        let Some(file) = self.file.as_ref().filter(|_| self.is_broken()) else { return false };
        if file.set_len(0).is_err() {
            return false;
        }
        self.began.call_once(|| {}); // the header will say so
        self.broken.store(false, Relaxed);
        true
    }

    /// Writes the header after [`AirFile::empty`] and all marks. Without it, the file is not trusted.
    pub fn complete(&self, header: Header) {
        self.write(0, &Header { running: 1, ..header }.bytes(&self.boot));
        self.sync();
        if !self.is_broken() {
            self.reported.store(false, Relaxed);
            log::info!("`air` in the state folder is written again");
        }
    }

    /// The first chunk of a run is about to be sent.
    pub fn begin_run(&self) {
        self.began.call_once(|| {
            self.put(RUNNING, 1);
            self.sync();
        });
    }

    /// The run has ended cleanly.
    pub fn end_run(&self) {
        if self.began.is_completed() {
            self.put(RUNNING, 0);
            self.sync();
        }
    }

    /// Writes a word of the header.
    pub fn put(&self, at: u64, word: u64) {
        self.write(at, &word.to_le_bytes());
    }

    /// Writes the mark number `index`; stream and limit 0 free it.
    pub fn put_mark(&self, index: u64, stream: StreamId, limit: u64) {
        self.write(HEAD + index * SLOT, &mark(stream, limit));
    }

    /// Writes the limit of the mark number `index`.
    pub fn put_limit(&self, index: u64, limit: u64) {
        self.put(HEAD + index * SLOT + 8, limit);
    }

    pub fn sync(&self) {
        if let Some(file) = self.file.as_ref().filter(|_| !self.is_broken()) {
            self.check(file.sync_data());
            #[cfg(test)]
            self.keep_synced(file);
        }
    }

    #[cfg(test)]
    fn keep_synced(&self, file: &File) {
        let mut bytes = vec![0; file.metadata().map_or(0, |m| m.len() as usize)];
        if file.read_exact_at(&mut bytes, 0).is_ok() {
            *crate::lock::lock(&self.synced) = bytes;
        }
    }

    /// A write failed, so the file is no longer reliable.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Relaxed)
    }

    /// Bytes written in this run.
    pub fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        if let Some(file) = self.file.as_ref().filter(|_| !self.is_broken()) {
            self.check(file.write_all_at(bytes, at));
            self.written.fetch_add(bytes.len() as u64, Relaxed);
        }
    }

    fn check(&self, done: io::Result<()>) {
        let (Err(e), Some(file)) = (done, &self.file) else { return };
        // An empty file means "nothing known", which is true; the old content would understate the limits.
        let _ = file.set_len(0);
        self.broken.store(true, Relaxed);
        if !self.reported.swap(true, Relaxed) {
            log::error!(
                "write `air` in the state folder: {e}; free disk space: until positions are saved again, a crash makes doubled_at_most count every line that is read again"
            );
        }
    }
}
