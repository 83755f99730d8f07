//! Rebuilds records for exactly-once from a range that may have been sent before a crash. As for log files, the
//! checksum proves the match; it fails if the source's format or filters have changed.

use super::file::JournalFile;
use super::folder;
use super::header::ReadError;
use super::open::Scratch;
use super::records::EntryRules;
use crate::record::{Point, Range};
use std::io;
use std::path::Path;

/// A range and the crc32c of its records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WantedEntries {
    pub range: Range,
    /// The end of `range`.
    pub end: Point,
    pub crc: u32,
}

/// The bytes of a range; `None`: its entries are gone, or yield other records.
pub fn reread(folder: &Path, rules: &EntryRules, wanted: &WantedEntries) -> io::Result<Option<Vec<u8>>> {
    let Some(seqnum) = wanted.end.mark.seqnum() else { return Ok(None) };
    let mut scratch = Scratch::default();
    for file in folder::list(folder)?.files {
        if !file.header.may_hold(seqnum) {
            continue;
        }
        let Some(mut journal) = folder::open_listed(&file) else { continue };
        let bytes = records(&mut journal, rules, wanted, &mut scratch).ok().flatten();
        if let Some(bytes) = bytes.filter(|bytes| crc32c::crc32c(bytes) == wanted.crc) {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

fn records(
    journal: &mut JournalFile,
    rules: &EntryRules,
    wanted: &WantedEntries,
    scratch: &mut Scratch,
) -> Result<Option<Vec<u8>>, ReadError> {
    let Scratch { pages, entry, record } = scratch;
    if !journal.seek(pages, wanted.range.start, entry)? {
        return Ok(None);
    }
    let (limits, mut bytes) = (rules.limits(), Vec::new());
    loop {
        match journal.next(pages, &limits, entry) {
            Ok(true) if entry.end <= wanted.range.end => {}
            Ok(_) => return Ok(None),
            Err(ReadError::Entry(_)) => continue,
            Err(e) => return Err(e),
        }
        if rules.record(&journal.header.seqnum_id, entry, record) {
            bytes.extend_from_slice(&record.bytes);
        }
        if entry.end == wanted.range.end {
            return Ok((entry.stamp().mark() == wanted.end.mark).then_some(bytes));
        }
    }
}
