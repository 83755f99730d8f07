//! Reads bytes of a log file at an offset: what stands there, what stands before it, and where holes are.

use super::identity::Look;
use crate::record::{Mark, Point, Range};
use memchr::{memchr, memrchr};
use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, pread};
use std::cell::Cell;
use std::fs::File;
use std::io;

/// Shortest hole and its alignment. After a hole, the first bytes of a block may be NULs that were filled in.
pub const BLOCK: u64 = 4096;

/// Whether part of this range is a hole (`lseek(2)`, SEEK_HOLE). False if the file system cannot tell. `no_hole_before`:
/// there is no hole between the last checked offset and this one, so one call covers many lines.
pub fn is_hole(file: &File, run: Range, no_hole_before: &Cell<u64>) -> bool {
    if run.end <= no_hole_before.get() {
        return false;
    }
    let Ok(hole) = seek(file, SeekFrom::Hole(run.start)) else { return false };
    no_hole_before.set(hole);
    hole < run.end
}

/// Whether the NULs before `offset` are the end of a hole, including the NULs filled in after it.
pub fn ends_in_hole(file: &File, offset: u64) -> io::Result<bool> {
    let block = offset.saturating_sub(1) / BLOCK * BLOCK;
    let mut filled = vec![0; (offset - block) as usize];
    let n = read_at(file, block, &mut filled)?;
    let from = block.saturating_sub(1);
    Ok(filled[..n].iter().all(|b| *b == 0) && is_hole(file, from..offset, &Cell::new(0)))
}

/// The mark of an offset in a plain file.
pub fn mark_at(file: &File, offset: u64) -> io::Result<Mark> {
    Ok(Mark::of(&before(file, offset)?))
}

/// Where reading starts at `offset`, or at the end of a file that is shorter.
pub fn point_at(file: &File, look: &Look, offset: u64) -> io::Result<Point> {
    let offset = offset.min(look.size);
    Ok(Point { offset, mark: mark_at(file, offset)?, ..Point::default() })
}

/// The first bytes of a file that a writer no longer changes: complete lines, or at least 256 bytes. NULs may be written over.
pub fn beginning(file: &File) -> io::Result<Vec<u8>> {
    let mut first = before(file, Mark::SPAN as u64)?;
    if first.len() < Mark::SPAN {
        first.truncate(memrchr(b'\n', &first).map_or(0, |nl| nl + 1));
    }
    first.truncate(memchr(0, &first).unwrap_or(first.len()));
    Ok(first)
}

/// The ≤ 256 bytes before `offset`; fewer if the file is shorter.
pub fn before(file: &File, offset: u64) -> io::Result<Vec<u8>> {
    let len = offset.min(Mark::SPAN as u64);
    let mut buffer = vec![0; len as usize];
    let n = read_at(file, offset - len, &mut buffer)?;
    buffer.truncate(n);
    Ok(buffer)
}

/// Appends up to `len` bytes from `offset` on, within the capacity; true at the end of the file.
pub fn append(file: &File, offset: u64, bytes: &mut Vec<u8>, len: usize) -> io::Result<bool> {
    while bytes.len() < len {
        let at = offset + bytes.len() as u64;
        match pread(file, rustix::buffer::spare_capacity(bytes), at) {
            Ok(0) => return Ok(true),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    bytes.truncate(len);
    Ok(false)
}

/// Fills `buffer` from `offset` on, up to the end of the file.
pub fn read_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match pread(file, &mut buffer[n..], offset + n as u64) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(n)
}
