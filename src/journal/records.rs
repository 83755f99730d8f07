//! Turns selected entries into records in a chunk's bytes. Following a journal and rereading it for exactly-once give
//! the same bytes.

use super::file::{EntryLimits, JournalEntry};
use super::filter::EntryFilter;
use super::header::Id128;
use super::render::{self, EntryFormat};
use crate::record::{Line, RecordHead};

/// How a source's entries become records.
#[derive(Clone, Debug)]
pub struct EntryRules {
    pub filter: EntryFilter,
    pub format: EntryFormat,
    /// The field that is the record's key.
    pub key: Option<String>,
    /// Maximum bytes of a record.
    pub max_line: usize,
}

/// A rendered record, as a part of a chunk's bytes.
#[derive(Debug, Default)]
pub struct EntryRecord {
    /// The head and the line.
    pub bytes: Vec<u8>,
    head: usize,
    pub cut: bool,
}

impl EntryRecord {
    /// The line's location in a chunk that already holds `before` bytes.
    pub fn line(&self, before: usize) -> Line {
        Line { at: (before + self.head) as u32, len: (self.bytes.len() - self.head) as u32 }
    }
}

/// Maximum bytes of a key.
const KEY_MAX: usize = 4096;

impl EntryRules {
    pub fn limits(&self) -> EntryLimits {
        // Room for the field's own name, so that a message of `max_line` bytes is not cut; and with a small `max_line`
        // for keys and for what filters compare.
        let most = self.max_line.max(KEY_MAX);
        EntryLimits { field: most + 64, entry: 2 * most }
    }

    /// `false`: the entry is filtered out.
    pub fn record(&self, seqnum_id: &Id128, e: &JournalEntry, record: &mut EntryRecord) -> bool {
        if !self.filter.takes(e) {
            return false;
        }
        record.bytes.clear();
        let key = self.key.as_ref().and_then(|key| e.first(key.as_bytes()));
        let key = key.map(|key| &key[..key.len().min(KEY_MAX)]);
        RecordHead { key, stamp_ms: (e.realtime / 1000) as i64 }.put(&mut record.bytes);
        record.head = record.bytes.len();
        record.cut = render::render(self.format, seqnum_id, e, self.max_line, &mut record.bytes);
        true
    }
}
