//! Reads one journal file in order with `pread(2)`. Nothing is mapped, so vacuuming cannot kill the process with
//! SIGBUS, and no number in the file is trusted.
//!
//! Entries are found through the file's chain of entry arrays, because an entry is listed there only once it is
//! complete. Offsets of arrays and entries must ascend, so no file can make the reader loop. Entry arrays and the
//! header change in place, so they are read again each time; ENTRY and DATA objects never change.
//!
//! A damaged ENTRY costs that entry and a damaged DATA that field. Vacuuming punches a hole over the whole file,
//! beginning at its start, while readers have it open: bytes that were read are valid only if the header is still
//! intact afterwards, which [`JournalFile::refresh`] checks.

use super::decompress::{COMPRESSED, Decompressed};
use super::header::{Id128, JournalHeader, ReadError, id_at, u32_at, u64_at};
use super::pages::{Pages, REPEATED_MAX};
use crate::record::{Mark, fnv1a};
use std::fs::File;
use std::os::unix::fs::FileExt;

const DATA: u8 = 1;
const ENTRY: u8 = 3;
const ENTRY_ARRAY: u8 = 6;

/// Maximum size of an object in bytes; one that claims to be larger is damaged.
const OBJECT_MAX: u64 = 1 << 40;
/// Number of slots of an entry array that are read at once.
const SLOTS: u64 = 256;
/// Maximum number of fields of an entry. journald allows 1024.
const FIELDS: u64 = 4096;

/// A field up to this length is kept whatever the entry holds before it: filters and keys need such fields.
const SMALL: usize = 512;

/// Limits on what is kept of an entry's fields.
#[derive(Clone, Copy, Debug)]
pub struct EntryLimits {
    /// Bytes of one field including its name; a longer one is cut.
    pub field: usize,
    /// Bytes of all fields, beyond which only the message and [`SMALL`] fields are kept. 0: read no fields.
    pub entry: usize,
}

/// One field: `NAME=value` at `at` of the entry's bytes.
#[derive(Clone, Copy, Debug)]
pub struct EntryField {
    at: usize,
    name: usize,
    len: usize,
    pub cut: bool,
}

/// One entry; the value is reused for the next one.
#[derive(Debug, Default)]
pub struct JournalEntry {
    pub offset: u64,
    /// The offset of the end of the object.
    pub end: u64,
    pub seqnum: u64,
    /// Microseconds since 1970.
    pub realtime: u64,
    pub monotonic: u64,
    pub boot_id: Id128,
    pub xor_hash: u64,
    /// Fields that could not be read, or were over a limit.
    pub left_out: u32,
    pub fields: Vec<EntryField>,
    bytes: Vec<u8>,
    items: Vec<u64>,
}

impl JournalEntry {
    /// Bytes of memory that its fields hold.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    pub fn name(&self, f: &EntryField) -> &[u8] {
        &self.bytes[f.at..f.at + f.name]
    }

    pub fn value(&self, f: &EntryField) -> &[u8] {
        &self.bytes[f.at + f.name + 1..f.at + f.len]
    }

    /// The values of a field, in the file's order.
    pub fn values<'e>(&'e self, name: &'e [u8]) -> impl Iterator<Item = &'e [u8]> {
        self.fields.iter().filter(move |f| self.name(f) == name).map(|f| self.value(f))
    }

    pub fn stamp(&self) -> EntryStamp {
        let JournalEntry { boot_id, monotonic, realtime, xor_hash, seqnum, .. } = *self;
        EntryStamp { boot_id, monotonic, realtime, xor_hash, seqnum }
    }

    pub fn first(&self, name: &[u8]) -> Option<&[u8]> {
        self.fields.iter().find(|f| self.name(f) == name).map(|f| self.value(f))
    }
}

/// What identifies an entry. A copy of it differs only in the sequence number.
#[derive(Clone, Copy, Debug)]
pub struct EntryStamp {
    pub boot_id: Id128,
    /// Microseconds since the start of the boot. Several entries may have the same, and they may be equal in all but
    /// the sequence number.
    pub monotonic: u64,
    pub realtime: u64,
    pub xor_hash: u64,
    pub seqnum: u64,
}

impl EntryStamp {
    pub fn mark(&self) -> Mark {
        let mut bytes = [0; 40];
        bytes[..16].copy_from_slice(&self.boot_id);
        for (i, n) in [self.monotonic, self.realtime, self.xor_hash].into_iter().enumerate() {
            bytes[16 + 8 * i..24 + 8 * i].copy_from_slice(&n.to_le_bytes());
        }
        Mark::of_entry(fnv1a(&bytes), self.seqnum)
    }

    pub fn is_copy_of(&self, other: &EntryStamp) -> bool {
        self.mark().is_copy_of(&other.mark())
    }

    /// Whether it is of the same boot, and not later.
    pub fn is_up_to(&self, last: &EntryStamp) -> bool {
        self.boot_id == last.boot_id && (self.monotonic, self.seqnum) <= (last.monotonic, last.seqnum)
    }
}

/// A journal file and how far it has been read.
#[derive(Debug)]
pub struct JournalFile {
    file: File,
    pub header: JournalHeader,
    /// Entries before this one are read or skipped.
    index: u64,
    /// Offset of the current entry array; 0: the file had none yet.
    array: u64,
    in_array: u64,
    /// Offsets of the next entries from `index` on, in reverse order.
    next: Vec<u64>,
    last_entry: u64,
}

impl JournalFile {
    pub fn open(file: File) -> Result<JournalFile, ReadError> {
        let header = JournalHeader::read(&file)?;
        let array = header.array;
        Ok(JournalFile { file, header, index: 0, array, in_array: 0, next: Vec::new(), last_entry: 0 })
    }

    /// Entries before this one are read or skipped.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Unread entries, as of the last read of the header.
    pub fn unread(&self) -> u64 {
        self.header.entries.saturating_sub(self.index)
    }

    /// Reads the header again. An error: the file is no longer this journal, and nothing read since the last refresh is
    /// valid.
    pub fn refresh(&mut self, pages: &mut Pages) -> Result<(), ReadError> {
        let header = JournalHeader::read(&self.file)?;
        if header.file_id != self.header.file_id {
            return Err(ReadError::NotAJournal);
        }
        if self.array == 0 {
            self.array = header.array;
        }
        if header.tail_object != self.header.tail_object || header.entries != self.header.entries {
            // Bytes from the previous last object on may have been read before they were written.
            pages.forget_from(&header.file_id, self.header.tail_object);
        }
        self.header = header;
        Ok(())
    }

    /// Reads the next entry into `e`. `false`: there is none now.
    pub fn next(
        &mut self,
        pages: &mut Pages,
        limits: &EntryLimits,
        e: &mut JournalEntry,
    ) -> Result<bool, ReadError> {
        pages.belong_to(&self.header.file_id);
        if self.index >= self.header.entries {
            return Ok(false);
        }
        let offset = self.next_offset()?;
        if offset == 0 {
            self.next.clear();
            return Err(ReadError::Chain);
        }
        self.step();
        if offset <= self.last_entry {
            return Err(ReadError::Entry("entries do not ascend"));
        }
        self.entry(pages, offset, e)?;
        self.last_entry = offset;
        self.fields(pages, limits, e)?;
        Ok(true)
    }

    /// In a file that is no longer written: skips a slot that was never filled. `false`: the chain itself ends.
    pub fn skip_slot(&mut self) -> bool {
        let is_there = self.next_offset().is_ok();
        if is_there {
            self.step();
        }
        is_there
    }

    /// Steps back: the entry just read will be read again.
    pub fn back(&mut self, e: &JournalEntry) {
        self.next.push(e.offset);
        self.index -= 1;
        self.in_array -= 1;
        self.last_entry = e.offset - 1;
    }

    /// No more of its entries can be found. Returns how many are missing.
    pub fn give_up(&mut self) -> u64 {
        let rest = self.unread();
        self.index = self.header.entries;
        self.next.clear();
        rest
    }

    fn step(&mut self) {
        self.next.pop();
        self.index += 1;
        self.in_array += 1;
    }

    /// Positions the reader after the entry that ends at `offset`, or at the start if that is 0. `false`: no entry ends
    /// there. [`ReadError::Chain`]: the chain breaks before it; the reader is after the last entry that can be found.
    pub fn seek(&mut self, pages: &mut Pages, offset: u64, e: &mut JournalEntry) -> Result<bool, ReadError> {
        pages.belong_to(&self.header.file_id);
        (self.index, self.array, self.in_array, self.last_entry) = (0, self.header.array, 0, 0);
        self.next.clear();
        let (mut last, mut rest) = (0, Ok(false));
        while self.index < self.header.entries {
            match self.next_offset() {
                Ok(at) if at >= offset => break,
                Ok(at) => last = last.max(at),
                Err(broken) => {
                    rest = Err(broken);
                    break;
                }
            }
            self.step();
        }
        if last == 0 && offset > 0 {
            return rest;
        }
        self.last_entry = last;
        if last == 0 {
            return Ok(true);
        }
        self.entry(pages, last, e)?;
        if e.end == offset { Ok(true) } else { rest }
    }

    /// Positions the reader after the last entry, and reads that entry into `e` (without its fields). `false`: there is
    /// none.
    pub fn seek_end(&mut self, pages: &mut Pages, e: &mut JournalEntry) -> Result<bool, ReadError> {
        match self.seek(pages, u64::MAX, e) {
            Ok(_) | Err(ReadError::Chain) => Ok(self.last_entry > 0),
            Err(error) => Err(error),
        }
    }

    /// How many entries have numbers up to this one. All before the current one must have.
    pub fn entries_up_to(&mut self, pages: &mut Pages, seqnum: u64, e: &mut JournalEntry) -> u64 {
        if self.header.tail_seqnum <= seqnum {
            return self.header.entries;
        }
        if self.header.head_seqnum > seqnum {
            return 0;
        }
        pages.belong_to(&self.header.file_id);
        let before = (self.index, self.array, self.in_array);
        while self.index < self.header.entries {
            let Ok(offset) = self.next_offset() else { break };
            if self.entry(pages, offset, e).is_ok() && e.seqnum > seqnum {
                break;
            }
            self.step();
        }
        let found = self.index;
        (self.index, self.array, self.in_array) = before;
        self.next.clear();
        found
    }

    /// The size and flags of the object at `at`, if it has this type and at least `least` bytes.
    fn object(&self, pages: &mut Pages, at: u64, kind: u8, least: u64) -> Result<(u64, u8), ReadError> {
        if at & 7 != 0 || at < self.header.size || at > self.header.tail_object {
            return Err(ReadError::Entry("an offset out of range"));
        }
        let b = pages.bytes(&self.file, at, 16)?;
        let (is, flags, size) = (b[0], b[1], u64_at(b, 8));
        if is != kind || !(least..OBJECT_MAX).contains(&size) {
            return Err(ReadError::Entry("an object of an unexpected type"));
        }
        Ok((size, flags))
    }

    fn item_size(&self) -> usize {
        if self.header.is_compact() { 4 } else { 8 }
    }

    /// The number of slots of the current array, and the offset of the next array (0: none).
    fn array(&self) -> Result<(u64, u64), ReadError> {
        let mut b = [0; 24];
        if self.array == 0 || self.array & 7 != 0 || self.file.read_exact_at(&mut b, self.array).is_err() {
            return Err(ReadError::Chain);
        }
        let (size, next) = (u64_at(&b, 8), u64_at(&b, 16));
        if b[0] != ENTRY_ARRAY || !(24..OBJECT_MAX).contains(&size) || next != 0 && next <= self.array {
            return Err(ReadError::Chain);
        }
        Ok(((size - 24) / self.item_size() as u64, next))
    }

    /// The offset of the next entry; 0: its slot is not filled.
    fn next_offset(&mut self) -> Result<u64, ReadError> {
        while self.next.is_empty() {
            let (slots, next) = self.array()?;
            if self.in_array >= slots {
                if next == 0 {
                    return Err(ReadError::Chain);
                }
                (self.array, self.in_array) = (next, 0);
                continue;
            }
            let n = SLOTS.min(slots - self.in_array).min(self.header.entries - self.index);
            let each = self.item_size();
            let mut b = [0; SLOTS as usize * 8];
            let b = &mut b[..n as usize * each];
            let at = self.array + 24 + self.in_array * each as u64;
            self.file.read_exact_at(b, at).map_err(|_| ReadError::Chain)?;
            let slot = |c: &[u8]| if each == 4 { u32_at(c, 0).into() } else { u64_at(c, 0) };
            self.next.extend(b.chunks_exact(each).rev().map(slot));
        }
        Ok(self.next.last().copied().unwrap_or(0))
    }

    fn entry(&self, pages: &mut Pages, offset: u64, e: &mut JournalEntry) -> Result<(), ReadError> {
        let (size, _) = self.object(pages, offset, ENTRY, 64)?;
        if size > 64 + FIELDS * 16 {
            return Err(ReadError::Entry("too many fields"));
        }
        let b = pages.bytes(&self.file, offset, size as usize)?;
        (e.offset, e.end) = (offset, offset + size.next_multiple_of(8));
        (e.seqnum, e.realtime, e.monotonic) = (u64_at(b, 16), u64_at(b, 24), u64_at(b, 32));
        (e.boot_id, e.xor_hash) = (id_at(b, 40), u64_at(b, 56));
        e.items.clear();
        match self.header.is_compact() {
            true => e.items.extend(b[64..].chunks_exact(4).map(|c| u64::from(u32_at(c, 0)))),
            false => e.items.extend(b[64..].chunks_exact(16).map(|c| u64_at(c, 0))),
        }
        Ok(())
    }

    fn fields(&self, pages: &mut Pages, limits: &EntryLimits, e: &mut JournalEntry) -> Result<(), ReadError> {
        e.bytes.clear();
        e.fields.clear();
        e.left_out = 0;
        if limits.entry == 0 {
            return Ok(());
        }
        for i in 0..e.items.len() {
            if e.items[i] == 0 {
                continue; // padding in the compact layout
            }
            let at = e.bytes.len();
            let is_full = at >= limits.entry;
            let most = if is_full { SMALL } else { limits.field };
            let mut read = self.data(pages, e.items[i], e.offset, most, &mut e.bytes);
            if is_full && matches!(read, Ok(true)) {
                let is_message = e.bytes[at..].starts_with(b"MESSAGE=") && e.first(b"MESSAGE").is_none();
                e.bytes.truncate(at);
                read = match is_message {
                    true => self.data(pages, e.items[i], e.offset, limits.field, &mut e.bytes),
                    false => Err(ReadError::Entry("too many large fields")),
                };
            }
            let cut = match read {
                Ok(cut) => Some(cut),
                Err(ReadError::Io(error)) => return Err(ReadError::Io(error)),
                Err(_) => None,
            };
            let name = memchr::memchr(b'=', &e.bytes[at..]).filter(|name| *name > 0);
            match cut.zip(name) {
                Some((cut, name)) => e.fields.push(EntryField { at, name, len: e.bytes.len() - at, cut }),
                None => {
                    e.bytes.truncate(at);
                    e.left_out += 1;
                }
            }
        }
        Ok(())
    }

    /// Appends `NAME=value` to `out`, at most `most` bytes. True: it is cut.
    fn data(
        &self,
        pages: &mut Pages,
        at: u64,
        entry: u64,
        most: usize,
        out: &mut Vec<u8>,
    ) -> Result<bool, ReadError> {
        if let Some(kept) = pages.repeated(at) {
            out.extend_from_slice(kept);
            return Ok(false);
        }
        let skip = if self.header.is_compact() { 72 } else { 64 };
        let (size, flags) = self.object(pages, at, DATA, skip)?;
        if flags & COMPRESSED != 0 {
            // Of a longer value as much as decompresses to the limit: an incompressible block of zstd has up to
            // 128 KiB and 3 bytes more than its content, and LZ4 needs a byte for 255.
            let packed = (size - skip).min((most + most / 128 + (256 << 10)) as u64);
            let unpacked = pages.unpack(&self.file, at + skip, packed as usize, flags, most, out)?;
            return Ok(unpacked == Decompressed::Cut);
        }
        let len = (size - skip).min(most as u64) as usize;
        let start = out.len();
        out.extend_from_slice(pages.bytes(&self.file, at + skip, len)?);
        if len <= REPEATED_MAX && at < entry {
            pages.repeat(at, &out[start..]);
        }
        Ok(size - skip > most as u64)
    }
}
