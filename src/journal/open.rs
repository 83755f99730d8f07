//! One open journal file: reads entries and builds chunks.

use super::file::{EntryStamp, JournalEntry, JournalFile};
use super::folder;
use super::header::ReadError;
use super::pages::Pages;
use super::records::{EntryRecord, EntryRules};
use super::tally::SeqnumTally;
use crate::budget::{QueuePlace, Share};
use crate::chunk::{Chunk, Origin};
use crate::record::{Break, Line, Point, Range, Then};
use crate::stop::Stop;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Buffers for reading, shared by all files of a thread.
#[derive(Default)]
pub struct Scratch {
    pub pages: Pages,
    pub entry: JournalEntry,
    pub record: EntryRecord,
}

impl Scratch {
    /// Frees the memory of a large entry.
    pub fn release(&mut self) {
        const LARGE: usize = 64 << 10;
        if self.entry.capacity() > LARGE || self.record.bytes.capacity() > LARGE {
            *self = Scratch::default();
        }
    }
}

#[derive(Debug)]
pub struct OpenJournal {
    pub journal: JournalFile,
    /// Its name in the last listing in which it or its successor was; `None`: it has been removed.
    pub name: Option<PathBuf>,
    pub origin: Arc<Origin>,
    /// Handed over up to here.
    pub at: Point,
    /// Ranges acknowledged by an earlier run; they are skipped.
    pub beyond: VecDeque<(Range, Point)>,
    /// The last entry read. Entries between `at` and it yielded no record.
    passed: EntryEnd,
    /// The number of those entries.
    unsent: u64,
    /// They are copies of entries that were read elsewhere.
    are_copies: bool,
    /// Entries whose numbers the tally ignores; lost ones among these are counted by the header.
    listed: u64,
    /// The last entry of the file before it. Before systemd 248 (systemd#18005) it may be repeated as the first one.
    before: Option<EntryStamp>,
    /// When the position moved last.
    moved: Instant,
    /// Entries that were read, and were whole.
    read: u64,
    /// Recent average of bytes per record.
    per_line: usize,
    /// The size of a record that needs a larger chunk.
    longest: usize,
    place: Option<QueuePlace>,
}

/// The result of one read.
#[derive(Debug)]
pub enum JournalRead {
    Chunk(Chunk, EntryCounts),
    /// No chunk, but there is more to read.
    More(EntryCounts),
    /// There is nothing more at the moment.
    End(EntryCounts),
    /// The budget has no room, or an entry chain is being written: look again later.
    Later,
    Stopped,
    /// Vacuumed. Entries read since the last chunk are invalid.
    Gone,
    Failed(io::Error),
}

/// What a read found besides records.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct EntryCounts {
    pub damaged: u64,
    /// The reason for the last one.
    pub why: &'static str,
    pub cut: u64,
}

/// How a source's files are read.
#[derive(Clone, Debug)]
pub struct JournalReading {
    pub rules: EntryRules,
    pub share: Share,
    /// Maximum bytes of a chunk; a single longer record may exceed it.
    pub chunk: usize,
    /// Entries of the same boot up to this one were read in another folder.
    pub copied: Option<EntryStamp>,
}

/// Longest wait for the budget without a look at the folder.
const PATIENCE: Duration = Duration::from_secs(2);
/// Entries without a record that may wait before the position moves over them, and how long they may.
const UNSENT: u64 = 1000;
const UNSENT_TIME: Duration = Duration::from_secs(30);
/// Length of a first guess.
const USUAL_RECORD: usize = 200;

/// A chunk being filled.
struct Draft {
    bytes: Vec<u8>,
    lines: Vec<Line>,
    most: usize,
    /// As [`OpenJournal::passed`].
    passed: EntryEnd,
    unsent: u64,
    are_copies: bool,
    tally: SeqnumTally,
    counts: EntryCounts,
}

/// The end of the last entry that was read; `None`: none in this run.
#[derive(Clone, Copy, Debug)]
struct EntryEnd {
    offset: u64,
    entry: Option<EntryStamp>,
}

/// Why a draft is complete.
enum Full {
    Room,
    /// An already acknowledged range begins, or copies begin or end.
    Beyond,
    NoMore,
    Unfinished,
    Failed(ReadError),
}

impl OpenJournal {
    pub fn new(
        journal: JournalFile,
        name: PathBuf,
        origin: Arc<Origin>,
        (at, beyond): (Point, Vec<(Range, Point)>),
        listed: u64,
    ) -> OpenJournal {
        OpenJournal {
            listed,
            before: None,
            moved: Instant::now(),
            read: journal.index(),
            journal,
            name: Some(name),
            origin,
            at,
            beyond: beyond.into(),
            passed: EntryEnd { offset: at.offset, entry: None },
            unsent: 0,
            are_copies: false,
            per_line: USUAL_RECORD,
            longest: 0,
            place: None,
        }
    }

    /// Skips the first entry if it repeats this one.
    pub fn following(mut self, before: Option<EntryStamp>) -> OpenJournal {
        self.before = before;
        self
    }

    /// Nothing more is written to it. To be asked before its last entries are read.
    pub fn is_finished(&self) -> bool {
        let name = self.name.as_ref().and_then(|path| path.file_name());
        name.is_none_or(folder::is_old_name) || self.journal.header.is_archived()
    }

    /// The last entry read in this run.
    pub fn last_read(&self) -> Option<EntryStamp> {
        self.passed.entry
    }

    /// Unread entries that the tally ignores.
    pub fn listed_unread(&self) -> u64 {
        self.listed.saturating_sub(self.read)
    }

    /// Checks for new entries. An error: it was vacuumed, or cannot be read.
    pub fn refresh(&mut self, scratch: &mut Scratch) -> Result<(), ReadError> {
        self.journal.refresh(&mut scratch.pages)?;
        let size = match self.journal.unread() {
            0 => self.passed.offset,
            _ => self.journal.header.tail_object.max(self.passed.offset + 1),
        };
        self.origin.progress.saw(size, Instant::now());
        self.origin.progress.unread_entries.store(self.journal.unread(), Relaxed);
        Ok(())
    }

    /// Reads the next chunk.
    pub fn read(
        &mut self,
        how: &JournalReading,
        scratch: &mut Scratch,
        tally: &mut SeqnumTally,
        stop: &Stop,
    ) -> JournalRead {
        let finished = self.is_finished();
        if self.journal.unread() == 0 {
            if let Err(e) = self.refresh(scratch) {
                return JournalRead::of(e);
            }
            if self.journal.unread() == 0 && (self.unsent == 0 || !finished && !self.is_overdue()) {
                return JournalRead::End(EntryCounts::default());
            }
        }
        let unread = self.journal.unread() as usize;
        let len = unread.saturating_mul(self.per_line).clamp(4096, how.chunk).max(self.longest);
        let most = (len / self.per_line + 64).min(Chunk::MAX_LINES);
        let wanted = len + most * size_of::<Line>();
        let Some(mut permit) = how.share.take_within(wanted, &mut self.place, PATIENCE, stop) else {
            if stop.is_on() {
                return JournalRead::Stopped;
            }
            // The status shows what is being written meanwhile.
            return self.refresh(scratch).map_or_else(JournalRead::of, |()| JournalRead::Later);
        };
        let mut draft = Draft {
            bytes: Vec::with_capacity(len),
            lines: Vec::with_capacity(most),
            most,
            passed: self.passed,
            unsent: self.unsent,
            are_copies: self.are_copies,
            tally: *tally,
            counts: EntryCounts::default(),
        };
        let full = self.fill(&mut draft, how, scratch, finished);
        if let Full::Failed(e) = full {
            return JournalRead::of(e);
        }
        // Vacuuming zeroes the file under its readers, beginning at the start: bytes are valid only if the header was
        // intact after they were read.
        if let Err(e) = self.refresh(scratch) {
            return JournalRead::of(e);
        }
        *tally = draft.tally;
        self.passed = draft.passed;
        (self.unsent, self.are_copies, self.read) = (draft.unsent, draft.are_copies, self.journal.index());
        let is_end = finished && matches!(full, Full::NoMore);
        let is_due = is_end || self.unsent >= UNSENT || self.is_overdue() || matches!(full, Full::Beyond);
        let moves = self.unsent > 0 && is_due;
        if draft.lines.is_empty() && !moves {
            self.origin.progress.searched.store(self.passed.offset, Relaxed);
            return match full {
                Full::Room | Full::Beyond => JournalRead::More(draft.counts),
                Full::Unfinished => JournalRead::Later,
                Full::NoMore | Full::Failed(_) => JournalRead::End(draft.counts),
            };
        }
        let Draft { mut bytes, mut lines, counts, .. } = draft;
        if lines.is_empty() {
            (bytes, lines) = Default::default();
        } else {
            self.per_line = (bytes.len() / lines.len()).clamp(16, how.chunk);
        }
        permit.shrink(bytes.capacity() + lines.capacity() * size_of::<Line>());
        let start = self.at.offset;
        let mark = self.passed.entry.map_or(self.at.mark, |e| e.mark());
        self.at = Point { offset: self.passed.offset, mark, then: Then::Line };
        (self.unsent, self.longest, self.moved) = (0, 0, Instant::now());
        self.origin.progress.frame(self.at.offset);
        self.origin.progress.searched.store(self.at.offset, Relaxed);
        let (origin, range, end) = (self.origin.clone(), start..self.at.offset, self.at);
        let last = Break::Newline;
        JournalRead::Chunk(
            Chunk { origin, range, end, last, noticed: Instant::now(), lines, bytes, permit },
            counts,
        )
    }

    /// The acknowledged position is behind every entry that was read.
    pub fn is_settled(&self) -> bool {
        self.unsent == 0 && self.origin.progress.is_done()
    }

    fn is_overdue(&self) -> bool {
        self.moved.elapsed() >= UNSENT_TIME
    }

    fn fill(
        &mut self,
        draft: &mut Draft,
        how: &JournalReading,
        scratch: &mut Scratch,
        finished: bool,
    ) -> Full {
        let limits = how.rules.limits();
        let Scratch { pages, entry, record } = scratch;
        loop {
            if draft.lines.len() >= draft.most || draft.lines.is_empty() && draft.unsent >= UNSENT {
                return Full::Room;
            }
            match self.journal.next(pages, &limits, entry) {
                Ok(true) => {}
                Ok(false) => return Full::NoMore,
                Err(ReadError::Entry(why)) => {
                    draft.damaged(why, self.journal.index() > self.listed);
                    continue;
                }
                Err(ReadError::Chain) if !finished => return Full::Unfinished,
                Err(ReadError::Chain) if self.journal.skip_slot() => {
                    draft.damaged("its slot is empty", self.journal.index() > self.listed);
                    continue;
                }
                Err(ReadError::Chain) => {
                    let rest = self.journal.give_up();
                    draft.counts.damaged += rest;
                    draft.counts.why = "the chain of entries is broken";
                    draft.tally.missed(rest.min(self.journal.index().saturating_sub(self.listed)));
                    return Full::NoMore;
                }
                Err(e) => return Full::Failed(e),
            }
            if let Some((range, to)) = self.beyond.front().filter(|(r, _)| entry.offset >= r.start) {
                if draft.passed.offset > self.at.offset {
                    self.journal.back(entry);
                    return Full::Beyond;
                }
                let (to, inside, ends) = (*to, entry.end <= range.end, entry.end >= range.end);
                if inside {
                    draft.tally.read(entry.seqnum);
                }
                if ends {
                    self.at = to;
                    draft.passed = EntryEnd { offset: to.offset, entry: Some(entry.stamp()) };
                    self.beyond.pop_front();
                }
                if inside {
                    continue;
                }
            }
            let stamp = entry.stamp();
            let is_copy = self.journal.index() == 1 && self.before.is_some_and(|e| e.is_copy_of(&stamp))
                || how.copied.is_some_and(|last| stamp.is_up_to(&last));
            // A chunk ends where copies begin or end, because exactly-once must get the same records from its range.
            if is_copy != draft.are_copies && draft.passed.offset > self.at.offset {
                self.journal.back(entry);
                return Full::Beyond;
            }
            draft.are_copies = is_copy;
            if !is_copy && how.rules.record(&self.journal.header.seqnum_id, entry, record) {
                if record.bytes.len() > draft.bytes.capacity() - draft.bytes.len() {
                    self.longest = record.bytes.len();
                    self.journal.back(entry);
                    return Full::Room;
                }
                draft.lines.push(record.line(draft.bytes.len()));
                draft.bytes.extend_from_slice(&record.bytes);
                draft.counts.cut += u64::from(record.cut);
            } else {
                draft.unsent += 1;
            }
            draft.passed = EntryEnd { offset: entry.end, entry: Some(stamp) };
            draft.tally.read(entry.seqnum);
        }
    }
}

impl Draft {
    /// `is_new`: the tally counts it.
    fn damaged(&mut self, why: &'static str, is_new: bool) {
        self.counts.damaged += 1;
        self.counts.why = why;
        self.tally.missed(u64::from(is_new));
    }
}

impl JournalRead {
    fn of(e: ReadError) -> JournalRead {
        match e {
            ReadError::Io(e) => JournalRead::Failed(e),
            _ => JournalRead::Gone,
        }
    }
}
