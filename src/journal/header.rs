//! The header of a journal file, and the errors a file can have.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A 128-bit ID: of a file, of a sequence number series, or of a boot.
pub type Id128 = [u8; 16];

const COMPACT: u32 = 1 << 4;
/// xz, lz4, keyed hash, zstd, compact. Bit 5 (segmented) is another format.
const KNOWN_FLAGS: u32 = 0x1f;
/// The header's size in the oldest version, in bytes.
const HEADER: usize = 208;
const MAGIC: &[u8] = b"LPKSHHRH";
const ARCHIVED: u8 = 2;

#[derive(Debug)]
pub enum ReadError {
    Io(io::Error),
    /// Not a journal file, no longer one (vacuumed), or a different one.
    NotAJournal,
    /// Incompatible flags that this reader does not support.
    Incompatible(u32),
    /// One entry cannot be read. The next call continues after it.
    Entry(&'static str),
    /// The chain of entry arrays ends early. In a file that is still being written it may be complete at the next look.
    Chain,
}

impl From<io::Error> for ReadError {
    fn from(e: io::Error) -> ReadError {
        match e.kind() {
            io::ErrorKind::UnexpectedEof => ReadError::Entry("beyond the end of the file"),
            _ => ReadError::Io(e),
        }
    }
}

/// The header, as last read.
#[derive(Clone, Debug)]
pub struct JournalHeader {
    flags: u32,
    state: u8,
    pub file_id: Id128,
    pub seqnum_id: Id128,
    /// Size of the header in bytes.
    pub size: u64,
    pub tail_object: u64,
    pub entries: u64,
    pub tail_seqnum: u64,
    pub head_seqnum: u64,
    pub array: u64,
    pub head_realtime: u64,
    pub tail_realtime: u64,
}

impl JournalHeader {
    pub fn read(file: &File) -> Result<JournalHeader, ReadError> {
        let mut b = [0; HEADER];
        file.read_exact_at(&mut b, 0).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => ReadError::NotAJournal,
            _ => ReadError::Io(e),
        })?;
        if !b.starts_with(MAGIC) {
            return Err(ReadError::NotAJournal);
        }
        let flags = u32_at(&b, 12);
        if flags & !KNOWN_FLAGS != 0 {
            return Err(ReadError::Incompatible(flags & !KNOWN_FLAGS));
        }
        // The writer moves the tail before it counts an entry: read after the count, the tail covers every counted
        // entry.
        let mut tail = [0; 8];
        file.read_exact_at(&mut tail, 136).map_err(ReadError::Io)?;
        Ok(JournalHeader {
            flags,
            state: b[16],
            file_id: id_at(&b, 24),
            seqnum_id: id_at(&b, 72),
            size: u64_at(&b, 88),
            tail_object: u64::from_le_bytes(tail),
            entries: u64_at(&b, 152),
            tail_seqnum: u64_at(&b, 160),
            head_seqnum: u64_at(&b, 168),
            array: u64_at(&b, 176),
            head_realtime: u64_at(&b, 184),
            tail_realtime: u64_at(&b, 192),
        })
    }

    /// It is no longer written. The rename to `@` happens before this state is set, so the name is checked as well.
    pub fn is_archived(&self) -> bool {
        self.state == ARCHIVED
    }

    /// Whether an entry with this number may be in it.
    pub fn may_hold(&self, seqnum: u64) -> bool {
        (self.head_seqnum..=self.tail_seqnum).contains(&seqnum)
    }

    pub fn is_compact(&self) -> bool {
        self.flags & COMPACT != 0
    }
}

pub fn u64_at(b: &[u8], at: usize) -> u64 {
    let mut n = [0; 8];
    n.copy_from_slice(&b[at..at + 8]);
    u64::from_le_bytes(n)
}

pub fn u32_at(b: &[u8], at: usize) -> u32 {
    let mut n = [0; 4];
    n.copy_from_slice(&b[at..at + 4]);
    u32::from_le_bytes(n)
}

pub fn id_at(b: &[u8], at: usize) -> Id128 {
    let mut id = [0; 16];
    id.copy_from_slice(&b[at..at + 16]);
    id
}
