//! A rotated file that was compressed: its bytes by offset, forwards only. Frames nothing.

use crate::chunk::Mark;
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};

/// A `.gz` that is read on from where it is; what was read and not used stays until the next read.
pub struct Gz {
    decoder: MultiGzDecoder<BufReader<File>>,
    /// Behind the last byte that the decoder gave.
    position: u64,
    /// Bytes just before `position` that are read again.
    kept: Vec<u8>,
    at_end: bool,
}

impl std::fmt::Debug for Gz {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gz({})", self.position)
    }
}

impl Gz {
    pub fn new(file: File) -> Gz {
        let decoder = MultiGzDecoder::new(BufReader::with_capacity(16 * 1024, file));
        Gz { decoder, position: 0, kept: Vec::new(), at_end: false }
    }

    /// Length of the content and the mark of its end; an error where the file is damaged, or not complete yet.
    pub fn end(file: &File) -> io::Result<(u64, Mark)> {
        let mut file = file;
        file.rewind()?;
        let mut gz = Gz::new(file.try_clone()?);
        let before = gz.last_of(u64::MAX)?;
        file.rewind()?;
        Ok((gz.position, Mark::of(&before)))
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn is_at_end(&self) -> bool {
        self.at_end
    }

    /// Decompresses up to `offset` and returns the ≤ 256 bytes before it; none where the content is shorter.
    pub fn skip_to(&mut self, offset: u64) -> io::Result<Vec<u8>> {
        let before = self.last_of(offset)?;
        Ok(if self.position < offset { Vec::new() } else { before })
    }

    /// Decompresses up to `offset`, or the end, and returns the ≤ 256 bytes before that.
    fn last_of(&mut self, offset: u64) -> io::Result<Vec<u8>> {
        let mut window = [0; 8 * 1024];
        let mut before: Vec<u8> = Vec::with_capacity(window.len() + Mark::SPAN);
        while self.position < offset {
            let want = (window.len() as u64).min(offset - self.position) as usize;
            let n = self.decoder.read(&mut window[..want])?;
            if n == 0 {
                self.at_end = true;
                break;
            }
            self.position += n as u64;
            before.extend_from_slice(&window[..n]);
            let over = before.len().saturating_sub(Mark::SPAN);
            before.drain(..over);
        }
        Ok(before)
    }

    /// Appends up to `len` bytes from `offset` on, which is where the kept bytes start; true at the end.
    pub fn fill(&mut self, offset: u64, bytes: &mut Vec<u8>, len: usize) -> io::Result<bool> {
        debug_assert_eq!(offset + self.kept.len() as u64, self.position);
        bytes.append(&mut self.kept);
        while bytes.len() < len && !self.at_end {
            let want = (len - bytes.len()) as u64;
            let n = (&mut self.decoder).take(want).read_to_end(bytes)?;
            self.position += n as u64;
            self.at_end = (n as u64) < want;
        }
        Ok(self.at_end)
    }

    pub fn keep(&mut self, rest: &[u8]) {
        self.kept.clear();
        self.kept.extend_from_slice(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    #[test]
    fn reads_on_from_an_offset() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.gz");
        let content: Vec<u8> = (0..100_000u32).flat_map(|i| i.to_le_bytes()).collect();
        let mut e = GzEncoder::new(File::create(&path).unwrap(), Compression::fast());
        e.write_all(&content).unwrap();
        e.finish().unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(Gz::end(&file).unwrap(), (400_000, Mark::of(&content)));
        let mut gz = Gz::new(file);
        assert_eq!(gz.skip_to(100_003).unwrap(), content[100_003 - 256..100_003]);
        let mut got = Vec::new();
        assert!(!gz.fill(100_003, &mut got, 1000).unwrap());
        assert_eq!(got, content[100_003..101_003]);
        gz.keep(&got[900..]);
        got.clear();
        assert!(gz.fill(100_903, &mut got, 400_000).unwrap());
        assert_eq!(got, content[100_903..]);
    }

    /// Fails when a `.gz` that is being written is taken for a shorter one.
    #[test]
    fn an_incomplete_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.gz");
        let mut e = GzEncoder::new(Vec::new(), Compression::fast());
        e.write_all(&[7; 100_000]).unwrap();
        let whole = e.finish().unwrap();
        for len in [0, 1, 10, 20, whole.len() - 9, whole.len() - 1] {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert!(Gz::end(&File::open(&path).unwrap()).is_err(), "{len} of {} bytes", whole.len());
        }
    }
}
