//! NULs at the end of a file that its writer may still fill with lines: in preallocated space (`fallocate(2)`,
//! `ftruncate(2)`), or in a page of a file that is written through `mmap(2)`. They do not count as part of the file. Nor do
//! bytes that a file has by its size but that cannot be read (sysfs reports 4096 for every file).

use super::open::read_at;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io;

/// More than these are not searched for data.
const SEARCHED_BLOCKS: usize = 256;

/// The NULs from `start` to the end of a file of this size, or where reading ends before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrailingNuls {
    pub start: u64,
    size: u64,
    /// Not a hole: written as NULs, or in the page of the last line.
    pub written: bool,
}

impl TrailingNuls {
    /// What was read from `at` on ends in NULs, and so does the file. `is_end`: no more can be read.
    pub fn find(file: &File, at: u64, bytes: &[u8], is_end: bool, size: u64) -> Option<TrailingNuls> {
        let start = at + text_len(bytes) as u64;
        if is_end && at + (bytes.len() as u64) < size {
            return Some(TrailingNuls { start, size, written: false });
        }
        at_end(bytes)?;
        let written = seek(file, SeekFrom::Hole(start)).ok()? >= size;
        only_nuls(file, at + bytes.len() as u64).ok()?.then_some(TrailingNuls { start, size, written })
    }

    /// Whether nothing has been written there yet. NULs that are no hole count as part of a file that has been rotated.
    pub fn remain(&self, file: &File, size: u64, live: bool) -> io::Result<bool> {
        Ok(size == self.size && (live || !self.written) && is_nul(file, self.start)?)
    }
}

/// Whether a file has nothing but holes and NULs from `at` on. The kernel reports preallocated space that was read as data.
fn only_nuls(file: &File, mut at: u64) -> io::Result<bool> {
    let mut block = [0; 4096];
    for _ in 0..SEARCHED_BLOCKS {
        at = match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return Ok(true),
            data => data?,
        };
        let n = read_at(file, at, &mut block)?;
        if text_len(&block[..n]) > 0 {
            return Ok(false);
        }
        at += n as u64;
    }
    Ok(false)
}

/// Whether there is a NUL, or nothing, at this offset.
pub fn is_nul(file: &File, offset: u64) -> io::Result<bool> {
    let mut byte = [0];
    read_at(file, offset, &mut byte)?;
    Ok(byte == [0])
}

/// Where the NULs at the end begin, if there are any.
pub fn at_end(bytes: &[u8]) -> Option<usize> {
    Some(text_len(bytes)).filter(|text| *text < bytes.len())
}

/// Length without the NULs at the end.
fn text_len(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1)
}

/// Where the lines of a file of this size end: before the NULs at its end.
pub fn end_of_lines(file: &File, size: u64) -> io::Result<u64> {
    let mut block = [0; 4096];
    let mut end = size;
    if end == 0 || !is_nul(file, end - 1)? {
        return Ok(size);
    }
    // The start of the hole at the end, if there is one. A file with very many holes is not worth the search.
    let mut at = 0;
    for _ in 0..SEARCHED_BLOCKS {
        match seek(file, SeekFrom::Data(at)) {
            Ok(data) => at = seek(file, SeekFrom::Hole(data))?,
            Err(Errno::NXIO) => end = at.min(size),
            Err(_) => break,
        }
        if at >= size || end < size {
            break;
        }
    }
    let from = end.saturating_sub(block.len() as u64);
    let n = read_at(file, from, &mut block[..(end - from) as usize])?;
    Ok(from + text_len(&block[..n]) as u64)
}
