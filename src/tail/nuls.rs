//! NULs at the end of a file that its writer may still fill with lines: in preallocated space (`fallocate(2)`,
//! `ftruncate(2)`), or in a page of a file that is written through `mmap(2)`. They do not count as part of the file. Nor do
//! bytes that a file has by its size but that cannot be read (sysfs reports 4096 for every file).

use super::content::read_at;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io;

/// Read at once while data is searched for.
const BLOCK: usize = 64 * 1024;

/// More than these are not searched for data (1 GiB). Holes are not counted.
const SEARCHED_BLOCKS: usize = 16 * 1024;

/// Fewer NULs at the end of a rotated file count as part of it unless they are a hole. Whether more of them are a hole
/// depends on the page cache: the kernel reports preallocated space that anyone has read as data.
const SHORTEST_SPACE: u64 = 4096;

/// The NULs from `start` to the end of a file of this size, or where reading ends before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrailingNuls {
    pub start: u64,
    size: u64,
    /// Few and not a hole: written as NULs, or in the page of the last line.
    pub written: bool,
}

impl TrailingNuls {
    /// What was read from `at` on ends in NULs, and so does the file. `is_end`: no more can be read. `no_data_before`: what
    /// follows was searched for data up to there, so a file full of NULs is searched once.
    pub fn find(
        file: &File,
        at: u64,
        bytes: &[u8],
        is_end: bool,
        size: u64,
        no_data_before: &mut u64,
    ) -> Option<TrailingNuls> {
        let start = at + text_len(bytes) as u64;
        if is_end && at + (bytes.len() as u64) < size {
            return Some(TrailingNuls { start, size, written: false });
        }
        at_end(bytes)?;
        let few = size.saturating_sub(start) < SHORTEST_SPACE;
        let written = few && seek(file, SeekFrom::Hole(start)).ok()? >= size;
        if *no_data_before > size {
            *no_data_before = 0; // the file has been cut
        }
        only_nuls(file, at + bytes.len() as u64, size, no_data_before).ok()?.then_some(TrailingNuls {
            start,
            size,
            written,
        })
    }

    /// Whether nothing has been written there yet. NULs that are no hole count as part of a file that has been rotated.
    pub fn remain(&self, file: &File, size: u64, live: bool) -> io::Result<bool> {
        Ok(size == self.size && (live || !self.written) && is_nul(file, self.start)?)
    }
}

/// Whether a file has nothing but holes and NULs from `at` on. The first block is searched in any case: a line may have been
/// written there since.
fn only_nuls(file: &File, mut at: u64, size: u64, no_data_before: &mut u64) -> io::Result<bool> {
    let mut block = vec![0; BLOCK];
    for _ in 0..SEARCHED_BLOCKS {
        if at >= size {
            return Ok(true);
        }
        at = match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => size,
            data => data?,
        };
        let n = read_at(file, at, &mut block)?;
        if text_len(&block[..n]) > 0 {
            return Ok(false);
        }
        at = if n == 0 { size } else { (at + n as u64).max(*no_data_before) };
        *no_data_before = at;
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
    if size == 0 || !is_nul(file, size - 1)? {
        return Ok(size);
    }
    let mut block = vec![0; BLOCK];
    let (mut end, mut step, mut searched) = (size, BLOCK as u64, 0);
    while end > 0 && searched < SEARCHED_BLOCKS {
        let from = end.saturating_sub(step);
        let data = match seek(file, SeekFrom::Data(from)) {
            Err(Errno::NXIO) => end,
            data => data.unwrap_or(from),
        };
        if data >= end {
            (end, step) = (from, step.saturating_mul(2)); // a hole
        } else if step > BLOCK as u64 {
            step = BLOCK as u64;
        } else {
            let n = read_at(file, from, &mut block[..(end - from) as usize])?;
            let text = text_len(&block[..n]);
            if text > 0 {
                return Ok(from + text as u64);
            }
            (end, searched) = (from, searched + 1);
        }
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn file(nuls: usize, text: &[u8]) -> (File, u64) {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[vec![0; nuls], text.to_vec()].concat(), 0).unwrap();
        (file, (nuls + text.len()) as u64)
    }

    /// Fails when text behind NULs is taken for space because the file was once searched, or the search does not continue.
    #[test]
    fn nuls_before_text_are_no_space() {
        let (space, size) = file(5 * BLOCK, b"");
        let found = |searched: &mut u64| TrailingNuls::find(&space, 0, b"a\n\0", false, size, searched);
        let mut searched = 0;
        let all = Some(TrailingNuls { start: 2, size, written: false });
        assert_eq!(found(&mut searched), all);
        assert_eq!((searched, found(&mut searched)), (size, all));
        space.write_all_at(b"text", BLOCK as u64 / 2).unwrap();
        assert_eq!(found(&mut searched), None, "a line with a NUL continues there");

        let (text, size) = file(5 * BLOCK, b"text\n");
        let mut searched = 0;
        for _ in 0..2 {
            assert_eq!(TrailingNuls::find(&text, 0, &[0], false, size, &mut searched), None);
            assert!(searched > 4 * BLOCK as u64 && searched < size, "{searched}");
        }
    }

    /// Fails when a new file's lines are passed over together with its space, written or not.
    #[test]
    fn lines_end_before_the_space() {
        let (space, size) = file(0, b"line\n");
        for (at, len) in [(5, 0), (5, 100), (size + 3 * BLOCK as u64, 0), (9 << 20, 1 << 30)] {
            space.write_all_at(&vec![0; 2 * BLOCK], at).unwrap();
            let size = space.metadata().unwrap().len() + len;
            space.set_len(size).unwrap();
            assert_eq!(end_of_lines(&space, size).unwrap(), 5, "{at} {len}");
        }
        space.write_all_at(b"end\n", 20 << 20).unwrap();
        let size = space.metadata().unwrap().len();
        assert_eq!(end_of_lines(&space, size).unwrap(), (20 << 20) + 4);
    }
}
