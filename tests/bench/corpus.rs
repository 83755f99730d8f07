//! Numbered lines like those of a web server, and the check of what arrived. A line is computed from the numbers of
//! its file and line, so every byte can be checked without storing anything.

use crate::harness::Topic;
use std::{
    fmt::Write as _,
    fs,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

/// `files` files of `lines` lines each, of `width` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corpus {
    pub files: u32,
    pub lines: u64,
    pub width: usize,
}

/// The difference between what arrived and what was written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Check {
    pub arrived: u64,
    pub missing: u64,
    pub doubled: u64,
    pub strange: u64,
    /// The missing lines whose number is higher than any of their file that arrived. A program that is stopped early
    /// leaves these out.
    pub unsent: u64,
}

/// Appends the line `file seq …` without its end. None of its bytes needs escaping in JSON.
pub fn push_line(out: &mut String, file: u32, seq: u64, width: usize) {
    let end = out.len() + width;
    let mut x =
        (seq + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ u64::from(file).wrapping_mul(0xD1B5_4A32_D192_ED03);
    let _ = write!(out, "{file:04} {seq:09} ");
    while out.len() < end {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let (a, b, page, size, took) =
            (x % 251, x >> 8 & 255, x >> 16 & 1023, x >> 26 & 65535, x >> 42 & 4095);
        let (minute, second) = (seq / 60_000 % 60, seq / 1000 % 60);
        let _ = write!(
            out,
            "10.{a}.{b}.17 - - [22/Nov/2026:20:{minute:02}:{second:02} +0000] GET /shop/item/{page}?ref=start HTTP/1.1 200 \
             {size} https://shop.example/list Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 {took} session={:012x} ",
            x >> 16
        );
    }
    out.truncate(end);
    // Some shippers strip trailing blanks, which is fair.
    if out.ends_with(' ') {
        out.pop();
        out.push('.');
    }
}

/// File and number of a line, also of one sent as a JSON string.
pub fn number_of(line: &[u8]) -> Option<(u32, u64)> {
    let line = line.strip_prefix(b"\"").unwrap_or(line);
    let number = |part: Option<&[u8]>| std::str::from_utf8(part?).ok()?.parse::<u64>().ok();
    Some((number(line.get(0..4))? as u32, number(line.get(5..14))?))
}

/// Prints an example of an unexpected record.
fn show_first(strange: u64, value: &[u8]) {
    if strange == 1 {
        eprintln!(
            "strange, {} bytes: {}",
            value.len(),
            String::from_utf8_lossy(&value[..value.len().min(300)])
        );
    }
}

impl Corpus {
    pub fn one(lines: u64) -> Corpus {
        Corpus { files: 1, lines, width: 200 }
    }
    pub fn total(&self) -> u64 {
        u64::from(self.files) * self.lines
    }
    /// Size of the files, with line ends.
    pub fn bytes(&self) -> u64 {
        self.total() * (self.width as u64 + 1)
    }
    pub fn path(folder: &Path, file: u32) -> PathBuf {
        folder.join(format!("{file:04}.log"))
    }
    /// What a program is configured to follow: the one file, or a glob.
    pub fn pattern(&self, folder: &Path) -> String {
        let path = if self.files == 1 { Corpus::path(folder, 0) } else { folder.join("*.log") };
        path.display().to_string()
    }
    /// Appends the lines with these numbers to file `file`.
    pub fn append(&self, folder: &Path, file: u32, numbers: std::ops::Range<u64>) {
        let log = fs::OpenOptions::new().create(true).append(true).open(Corpus::path(folder, file)).unwrap();
        let mut log = BufWriter::with_capacity(1 << 18, log);
        let mut line = String::new();
        for seq in numbers {
            line.clear();
            push_line(&mut line, file, seq, self.width);
            line.push('\n');
            log.write_all(line.as_bytes()).unwrap();
        }
        log.flush().unwrap();
    }
    /// Writes all files, unless an earlier run has.
    pub fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        for file in 0..self.files {
            if !Corpus::path(folder, file).exists() {
                self.append(folder, file, 0..self.lines);
            }
        }
    }
    /// Reads the topic from the beginning and compares each record with the line it should be.
    pub fn check(&self, topic: &Topic) -> Check {
        let mut seen = vec![0u64; (self.total() as usize).div_ceil(64)];
        let mut check = Check::default();
        let mut line = String::new();
        let mut next = vec![0; self.files as usize];
        topic.each(|record| {
            check.arrived += 1;
            let value = record.value.unwrap_or(b"");
            let bare = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value);
            match number_of(bare).filter(|(file, seq)| *file < self.files && *seq < self.lines) {
                Some((file, seq)) => {
                    line.clear();
                    push_line(&mut line, file, seq, self.width);
                    if line.as_bytes() != bare {
                        check.strange += 1;
                        show_first(check.strange, value);
                    }
                    let at = (u64::from(file) * self.lines + seq) as usize;
                    check.doubled += seen[at / 64] >> (at % 64) & 1;
                    seen[at / 64] |= 1 << (at % 64);
                    let next: &mut u64 = &mut next[file as usize];
                    *next = (*next).max(seq + 1);
                }
                None => {
                    check.strange += 1;
                    show_first(check.strange, value);
                }
            }
        });
        check.missing = self.total() - seen.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        check.unsent = next.into_iter().map(|next| self.lines - next).sum();
        check
    }
    /// For a program that sends random lines of the file: how many arrived.
    pub fn count(&self, topic: &Topic) -> Check {
        let arrived = topic.end_offsets();
        let (missing, doubled) = (self.total().saturating_sub(arrived), arrived.saturating_sub(self.total()));
        Check { arrived, missing, doubled, strange: 0, unsent: missing }
    }
}
