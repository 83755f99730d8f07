//! Reads a compressed rotated file by offset of its decompressed content, forward only.

use super::content::read_at;
use super::identity::Look;
use crate::record::Mark;
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::sync::Arc;

/// A `.gz` being read sequentially. Bytes that were read but not consumed are kept for the next read.
pub struct Gz<R = Arc<File>> {
    file: R,
    /// `None`: the next read starts at the beginning of the file.
    decoder: Option<MultiGzDecoder<BufReader<R>>>,
    /// Offset after the last decoded byte, also after an error.
    position: u64,
    /// Bytes just before `position` that the next read returns again.
    kept: Vec<u8>,
    at_end: bool,
    /// A decoder error after bytes that are still usable; the next read returns it.
    failed: Option<io::Error>,
}

impl<R> std::fmt::Debug for Gz<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gz({})", self.position)
    }
}

/// The content's length modulo 2^32, as a `.gz` of one member ends with it (RFC 1952, ISIZE). Not checked.
pub fn claimed_size(file: &File, look: &Look) -> io::Result<u32> {
    let mut size = [0; 4];
    read_at(file, look.size.saturating_sub(4), &mut size)?;
    Ok(u32::from_le_bytes(size))
}

impl Gz {
    pub fn new(file: File) -> Gz {
        Gz::over(Arc::new(file))
    }

    /// Length of the content and the mark at its end. An error if the file is damaged or incomplete.
    pub fn end(file: &File) -> io::Result<(u64, Mark)> {
        let mut file = file;
        let mut gz = Gz::new(file.try_clone()?);
        let before = gz.last_of(u64::MAX)?;
        file.rewind()?;
        Ok((gz.position, Mark::of(&before)))
    }
}

impl<R: Read + Seek + Clone> Gz<R> {
    fn over(file: R) -> Gz<R> {
        Gz { file, decoder: None, position: 0, kept: Vec::new(), at_end: false, failed: None }
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn is_at_end(&self) -> bool {
        self.at_end
    }

    /// Decompresses up to `offset` and returns the ≤ 256 bytes before it; empty if the content is shorter.
    pub fn skip_to(&mut self, offset: u64) -> io::Result<Vec<u8>> {
        let before = self.last_of(offset)?;
        Ok(if self.position < offset { Vec::new() } else { before })
    }

    /// Decompresses up to `offset` or the end, and returns the ≤ 256 bytes before that. After an error it starts over;
    /// otherwise the next attempt would return fewer bytes before `offset`, and would miss the damage.
    fn last_of(&mut self, offset: u64) -> io::Result<Vec<u8>> {
        const WINDOW: u64 = 8 * 1024;
        let mut before: Vec<u8> = Vec::with_capacity(WINDOW as usize + Mark::SPAN);
        while self.position < offset && !self.at_end {
            if let Err(e) = self.decompress(&mut before, WINDOW.min(offset - self.position)) {
                (self.decoder, self.position) = (None, 0);
                return Err(e);
            }
            let over = before.len().saturating_sub(Mark::SPAN);
            before.drain(..over);
        }
        Ok(before)
    }

    /// Appends up to `len` bytes from `offset`, which is where the kept bytes start; true at the end. Bytes before an error
    /// are returned first, the error by the next call; no bytes are skipped.
    pub fn fill(&mut self, offset: u64, bytes: &mut Vec<u8>, len: usize) -> io::Result<bool> {
        if let Some(e) = self.failed.take() {
            return Err(e);
        }
        if self.position < offset {
            self.last_of(offset)?; // a failed read starts over
        }
        debug_assert!(self.at_end || offset + self.kept.len() as u64 == self.position);
        let (had, kept) = (bytes.len(), self.kept.len());
        bytes.append(&mut self.kept);
        if bytes.len() < len && !self.at_end {
            let want = (len - bytes.len()) as u64;
            match self.decompress(bytes, want) {
                Err(e) if bytes.len() == had + kept => {
                    self.kept = bytes.split_off(had);
                    return Err(e);
                }
                done => self.failed = done.err(),
            }
        }
        Ok(self.at_end)
    }

    /// Appends up to `most` bytes, including those before an error. After a file error such as EIO, the decoder continues
    /// where it was. The exception is the first header: flate2 reports that error once and then treats it as the end.
    fn decompress(&mut self, bytes: &mut Vec<u8>, most: u64) -> io::Result<()> {
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => {
                self.file.rewind()?;
                none.insert(MultiGzDecoder::new(BufReader::with_capacity(16 * 1024, self.file.clone())))
            }
        };
        let had = bytes.len();
        let done = decoder.take(most).read_to_end(bytes);
        let n = (bytes.len() - had) as u64;
        self.position += n;
        self.at_end = done.is_ok() && n < most;
        if done.is_err() && self.position == 0 {
            self.decoder = None;
        }
        done.map(drop)
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
    use std::cell::{Cell, RefCell};
    use std::io::{Cursor, SeekFrom, Write};
    use std::rc::Rc;

    #[test]
    fn reading_continues_at_an_offset() {
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

    /// A file whose reads sometimes fail.
    #[derive(Clone)]
    struct Flaky {
        file: Rc<RefCell<Cursor<Vec<u8>>>>,
        reads: Rc<Cell<usize>>,
        fails: fn(usize, usize) -> bool,
        nth: usize,
    }

    impl Flaky {
        fn new(bytes: Vec<u8>, nth: usize, fails: fn(usize, usize) -> bool) -> Flaky {
            Flaky { file: Rc::new(Cursor::new(bytes).into()), reads: Rc::default(), fails, nth }
        }
    }

    impl Read for Flaky {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let read = self.reads.replace(self.reads.get() + 1);
            if (self.fails)(read, self.nth) {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            self.file.borrow_mut().read(buffer)
        }
    }

    impl Seek for Flaky {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.file.borrow_mut().seek(to)
        }
    }

    /// Poorly compressible lines, so that the file takes many reads.
    fn lines() -> Vec<u8> {
        let line =
            |i: u32| format!("{i} {:08x}{:08x}\n", i.wrapping_mul(0x9e37_79b1), i.wrapping_mul(0x85eb_ca6b));
        (0..20_000).flat_map(|i| line(i).into_bytes()).collect()
    }

    fn packed(members: &[&[u8]]) -> Vec<u8> {
        let pack = |member: &&[u8]| {
            let mut e = GzEncoder::new(Vec::new(), Compression::fast());
            e.write_all(member).unwrap();
            e.finish().unwrap()
        };
        members.iter().flat_map(pack).collect()
    }

    /// Reads like a tail: line by line, keeping the incomplete rest. Returns the content, the number of errors, and the
    /// permanent error.
    fn by_lines<R: Read + Seek + Clone>(gz: &mut Gz<R>, mut at: u64) -> (Vec<u8>, usize, Option<io::Error>) {
        let (mut all, mut errors, mut in_a_row) = (Vec::new(), 0, 0);
        loop {
            let mut bytes = Vec::with_capacity(5000);
            match gz.fill(at, &mut bytes, 5000) {
                Ok(end) => {
                    let whole = memchr::memrchr(b'\n', &bytes).map_or(0, |nl| nl + 1);
                    gz.keep(&bytes[whole..]);
                    all.extend_from_slice(&bytes[..whole]);
                    at += whole as u64;
                    in_a_row = 0;
                    if end && whole == 0 {
                        return (all, errors, None);
                    }
                }
                Err(e) if in_a_row == 3 => return (all, errors, Some(e)),
                Err(_) => (errors, in_a_row) = (errors + 1, in_a_row + 1),
            }
        }
    }

    /// Read errors once, twice in a row or at every second read. Fails when one loses bytes that were decompressed before it
    /// or kept from the last read, joins two lines, or ends the file.
    #[test]
    fn a_transient_read_error_loses_nothing() {
        let content = lines();
        let bytes = packed(&[&content[..200_000], &content[200_000..]]);
        let all = Flaky::new(bytes.clone(), 0, |_, _| false);
        by_lines(&mut Gz::over(all.clone()), 0);
        let reads = all.reads.get();
        let kinds: [fn(usize, usize) -> bool; 3] = [
            |read, nth| read == nth,
            |read, nth| read == nth || read == nth + 1,
            |read, nth| read >= nth && (read - nth) % 2 == 0,
        ];
        for (kind, nth) in (0..kinds.len()).flat_map(|k| (0..reads).map(move |n| (k, n))) {
            let mut gz = Gz::over(Flaky::new(bytes.clone(), nth, kinds[kind]));
            let (got, errors, stays) = by_lines(&mut gz, 0);
            assert!(stays.is_none() && errors > 0, "{kind}, read {nth}: {errors} errors, {stays:?}");
            assert!(got == content, "{kind}, read {nth}: {} of {} bytes", got.len(), content.len());
        }
    }

    /// Fails when bytes that failed to read while seeking are skipped at the next attempt, or the mark covers fewer
    /// bytes.
    #[test]
    fn an_error_on_the_way_to_an_offset_costs_nothing() {
        let content = lines();
        let bytes = packed(&[&content]);
        let start = memchr::memchr(b'\n', &content[300_000..]).unwrap() + 300_001;
        for nth in 0..5 {
            let flaky = || Flaky::new(bytes.clone(), nth, |read, nth| read == nth);
            let mut gz = Gz::over(flaky());
            gz.skip_to(start as u64).unwrap_err();
            assert_eq!(gz.skip_to(start as u64).unwrap(), content[start - Mark::SPAN..start], "read {nth}");
            assert!(by_lines(&mut gz, start as u64).0 == content[start..], "read {nth}");
            let mut gz = Gz::over(flaky());
            gz.skip_to(start as u64).unwrap_err();
            assert!(by_lines(&mut gz, start as u64).0 == content[start..], "read {nth}: not skipped again");
        }
    }

    /// Fails when complete lines before the damage are not returned, or damage counts as the end, even only at the second
    /// attempt.
    #[test]
    fn lines_before_damage_are_returned() {
        let content = lines();
        let whole = packed(&[&content]);
        let mut wrong_sum = whole.clone();
        let sum = whole.len() - 8;
        wrong_sum[sum] ^= 1;
        let mut gz = Gz::over(Cursor::new(wrong_sum.clone()));
        for _ in 0..2 {
            gz.skip_to(u64::MAX).unwrap_err();
        }
        let mut gz = Gz::over(Cursor::new(wrong_sum));
        let (got, errors, _) = by_lines(&mut gz, 0);
        assert!(errors > 0 && got == content, "{} of {} bytes, {errors} errors", got.len(), content.len());
        let mut gz = Gz::over(Cursor::new(whole[..whole.len() / 2].to_vec()));
        let (got, _, stays) = by_lines(&mut gz, 0);
        assert_eq!(stays.unwrap().kind(), io::ErrorKind::UnexpectedEof);
        let len = content.len();
        assert!(got.len() > len / 3 && content.starts_with(&got), "{} of {len} bytes", got.len());
        assert!(gz.position() - (got.len() as u64) < 40, "a complete line was not returned");
    }

    /// Fails when an incomplete `.gz` counts as a complete, shorter one.
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

    /// Fails when damaged input makes the reader panic, or it returns more than deflate can expand (1,032 : 1).
    #[test]
    fn fuzz_gzip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.gz");
        let pack = |text: &[u8], level| {
            let mut gz = GzEncoder::new(Vec::new(), level);
            gz.write_all(text).unwrap();
            gz.finish().unwrap()
        };
        let text: Vec<u8> = (0..500).flat_map(|i| format!("line {i}\n").into_bytes()).collect();
        let two = [pack(b"one\n", Compression::fast()), pack(&text, Compression::best())].concat();
        let samples = [two, pack(&text, Compression::none()), pack(&[0; 100_000], Compression::best())];
        crate::fuzz::damaged(
            &samples,
            |bytes| 1032 * bytes.len() + 4096,
            |bytes| {
                std::fs::write(&path, bytes).unwrap();
                let _ = Gz::end(&File::open(&path).unwrap());
                let mut gz = Gz::new(File::open(&path).unwrap());
                let (mut all, mut piece) = (0, Vec::new());
                loop {
                    piece.clear();
                    let done = gz.fill(all as u64, &mut piece, 4096);
                    all += piece.len();
                    if done.is_err() || gz.is_at_end() {
                        return all;
                    }
                    gz.keep(&[]);
                }
            },
        );
    }
}
