//! A fixed-size cache of journal file bytes: a few windows of the file being read, small values that entries repeat,
//! and buffers for larger objects.

use super::decompress::{Decompressed, Decompressor};
use super::header::{Id128, ReadError};
use std::fs::File;
use std::os::unix::fs::FileExt;

const WINDOW: usize = 16 * 1024;
const WINDOWS: usize = 8;
const PAGE: u64 = 4096;
/// Number of cached values, and the maximum length of one.
const REPEATED: usize = 512;
pub const REPEATED_MAX: usize = 256;

/// The cache; one per thread, for all of its files.
pub struct Pages {
    owner: Id128,
    windows: Vec<Window>,
    turn: u64,
    large: Vec<u8>,
    /// Small values that entries repeat (unit, host name …), by offset.
    repeated: Vec<(u64, Vec<u8>)>,
    decompressor: Decompressor,
}

#[derive(Default)]
struct Window {
    start: u64,
    bytes: Vec<u8>,
    used: u64,
}

impl Default for Pages {
    fn default() -> Pages {
        Pages {
            owner: Id128::default(),
            windows: (0..WINDOWS).map(|_| Window::default()).collect(),
            turn: 0,
            large: Vec::new(),
            repeated: vec![(0, Vec::new()); REPEATED],
            decompressor: Decompressor::default(),
        }
    }
}

impl Pages {
    /// Switches to another file, whose bytes are read from now on.
    pub fn belong_to(&mut self, file: &Id128) {
        if self.owner != *file {
            self.owner = *file;
            self.windows.iter_mut().for_each(|w| w.bytes.clear());
            self.repeated.iter_mut().for_each(|r| r.0 = 0);
            self.large = Vec::new();
        }
    }

    /// Bytes of this file from here on may have been read before they were written.
    pub fn forget_from(&mut self, file: &Id128, offset: u64) {
        if self.owner != *file {
            return;
        }
        for w in self.windows.iter_mut().filter(|w| w.start + w.bytes.len() as u64 > offset) {
            w.bytes.clear();
        }
    }

    /// `len` bytes at `at`.
    pub fn bytes(&mut self, file: &File, at: u64, len: usize) -> Result<&[u8], ReadError> {
        if len > WINDOW - 2 * PAGE as usize {
            self.large.resize(len, 0);
            file.read_exact_at(&mut self.large, at)?;
            return Ok(&self.large);
        }
        self.turn += 1;
        let inside = |w: &Window| at >= w.start && (at - w.start) as usize + len <= w.bytes.len();
        let i = match self.windows.iter().position(inside) {
            Some(i) => i,
            None => self.load(file, at)?,
        };
        let w = &mut self.windows[i];
        w.used = self.turn;
        let from = (at - w.start) as usize;
        w.bytes.get(from..from + len).ok_or(ReadError::Entry("beyond the end of the file"))
    }

    /// Reads the window around `at` in place of the least recently used one.
    fn load(&mut self, file: &File, at: u64) -> Result<usize, ReadError> {
        let i = (0..WINDOWS).min_by_key(|i| self.windows[*i].used).unwrap_or(0);
        let w = &mut self.windows[i];
        w.start = (at & !(PAGE - 1)).saturating_sub(PAGE); // an entry's own values precede it
        w.bytes.resize(WINDOW, 0);
        let mut n = 0;
        while n < WINDOW {
            match file.read_at(&mut w.bytes[n..], w.start + n as u64) {
                Ok(0) => break,
                Ok(more) => n += more,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    w.bytes.clear();
                    return Err(ReadError::Io(e));
                }
            }
        }
        w.bytes.truncate(n);
        Ok(i)
    }

    /// Decompresses `len` bytes at `at` and appends at most `most` bytes.
    pub fn unpack(
        &mut self,
        file: &File,
        at: u64,
        len: usize,
        flags: u8,
        most: usize,
        out: &mut Vec<u8>,
    ) -> Result<Decompressed, ReadError> {
        let mut decompressor = std::mem::take(&mut self.decompressor);
        let unpacked = self.bytes(file, at, len).map(|packed| decompressor.unpack(flags, packed, most, out));
        self.decompressor = decompressor;
        unpacked?.ok_or(ReadError::Entry("a field that cannot be decompressed"))
    }

    pub fn repeated(&self, at: u64) -> Option<&[u8]> {
        let (kept_at, value) = &self.repeated[slot(at)];
        (*kept_at == at && at != 0).then_some(value)
    }

    pub fn repeat(&mut self, at: u64, value: &[u8]) {
        let (kept_at, kept) = &mut self.repeated[slot(at)];
        *kept_at = at;
        kept.clear();
        kept.extend_from_slice(value);
    }
}

fn slot(at: u64) -> usize {
    (at / 8 % REPEATED as u64) as usize
}
