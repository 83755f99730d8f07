//! Assigns streams to the files of a journal folder: which file continues a saved stream, is new, or has already been
//! read.

use super::file::{EntryLimits, JournalFile};
use super::folder::{self, ListedJournal, Listing};
use super::follow::{Follower, Halted};
use super::header::{Id128, ReadError};
use super::open::{OpenJournal, Scratch};
use super::tally::SeqnumTally;
use crate::chunk::Origin;
use crate::record::{Closed, Ending, Mark, Point, Range, StreamId, Then, fnv1a};
use crate::report::FileState;
use crate::streams::{FINISHED_PER_JOURNAL, SavedStream};
use log::{error, info, warn};
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl Follower<'_> {
    pub(super) fn list(&mut self, folder: &Path) -> Result<(), Halted> {
        let Listing { files, refused, is_incomplete } = folder::list(folder).map_err(Halted::Io)?;
        self.relist |= is_incomplete;
        let is_first = self.first_look_done.is_some();
        self.note_refused(&refused);
        self.is_orphaned = false;
        for o in &mut self.open {
            let now = files.iter().find(|f| f.header.file_id == o.journal.header.file_id);
            // journald notices late that someone has removed the file it writes to, and makes another only then.
            let is_replaced = files.iter().any(|f| f.path == o.origin.path);
            if now.is_some() || is_replaced {
                o.name = now.map(|f| f.path.clone());
            } else {
                self.is_orphaned = true;
            }
        }
        self.done.retain(|id| files.iter().any(|f| f.header.file_id == *id));
        let new: Vec<&ListedJournal> = files.iter().filter(|f| !self.is_known(&f.header.file_id)).collect();
        let is_other = self.tally.is_none();
        if is_other {
            self.tally = Some(self.begin_tally(folder, &files));
        }
        // Known files first: they tell how far their chains were read.
        let mut unknown = Vec::new();
        for file in new {
            if !self.resume(file) {
                unknown.push(file);
            }
        }
        for file in unknown {
            let chain = files.iter().filter(|f| f.chain == file.chain);
            let before = chain.take_while(|f| f.header.file_id != file.header.file_id).last();
            self.begin(file, before, is_first);
        }
        if is_other && self.o.reading.copied.is_none() {
            self.find_copies(folder);
        }
        self.give_up_vanished(folder);
        if let Some(done) = self.first_look_done.take() {
            done();
            if let Some(advice) = super::advice_on(folder, &self.o.folders) {
                warn!("{}: {advice}", folder.display());
            }
            info!("{}: {} journal file(s), {} to read", folder.display(), files.len(), self.open.len());
        }
        Ok(())
    }

    fn is_known(&self, id: &Id128) -> bool {
        self.done.contains(id) || self.open.iter().any(|o| o.journal.header.file_id == *id)
    }

    /// Counts from the newest position of an earlier run, so that entries removed while no agent ran count as lost. Not
    /// counted are lost entries with smaller numbers, from a file that the earlier run had not read as far.
    fn begin_tally(&mut self, folder: &Path, files: &[ListedJournal]) -> SeqnumTally {
        let newest = files.iter().map(|f| f.header.tail_seqnum).max().unwrap_or_default();
        let saved = self.saved.iter().filter(|s| s.path.parent() == Some(folder));
        // A larger number comes from a counter that has restarted since, as that of a journal in memory does at each
        // boot.
        let read = saved.filter_map(|s| s.at.mark.seqnum()).filter(|n| (1..=newest).contains(n)).max();
        let Some(read) = read else { return SeqnumTally::begin(newest) };
        let mut tally = SeqnumTally::begin(read);
        let counted = self.losses.iter().position(|(of, _)| of == folder);
        self.loss = counted.map(|i| self.losses.remove(i).1).filter(|gap| gap.upto > read);
        if let Some(gap) = self.loss {
            tally.counted_before(gap);
        }
        tally
    }

    /// A flush while no agent ran has copied the entries of another folder to this one, with other numbers. Those up to
    /// the last one acknowledged there are skipped here.
    fn find_copies(&mut self, folder: &Path) {
        let mut marks = Vec::new();
        for s in self.saved.iter().filter(|s| s.path.parent() != Some(folder)) {
            if s.at.offset > 0 {
                marks.push(s.at.mark);
            }
            if !s.finished {
                break; // what is acknowledged of later files is not contiguous with it
            }
        }
        const NO_FIELDS: EntryLimits = EntryLimits { field: 0, entry: 0 };
        let Scratch { pages, entry, .. } = &mut self.scratch;
        for journal in &mut self.open {
            while !marks.is_empty() {
                match journal.journal.next(pages, &NO_FIELDS, entry) {
                    Ok(true) => {}
                    Err(ReadError::Entry(_)) => continue,
                    Ok(false) | Err(_) => break,
                }
                let mark = entry.stamp().mark();
                // Of equal entries the first: rather one twice than one never.
                if let Some(i) = marks.iter().position(|m| m.is_copy_of(&mark)) {
                    marks.swap_remove(i);
                    self.o.reading.copied = Some(entry.stamp());
                }
            }
            let _ = journal.journal.seek(pages, journal.at.offset, entry);
        }
    }

    /// Continues the stream that an earlier run saved for this file. False: there is none.
    fn resume(&mut self, file: &ListedJournal) -> bool {
        let Some(mut journal) = self.open_listed(file) else { return true };
        let known = |s: &SavedStream| self.o.follows(&s.path);
        let mut found = None;
        for (i, s) in self.saved.iter().enumerate().filter(|(_, s)| known(s)) {
            if ends_there(&mut journal, s, file, &mut self.scratch) {
                found = Some(i);
                break;
            }
        }
        let Some(i) = found else { return false };
        let s = self.saved.remove(i);
        let last = self.scratch.entry.stamp();
        self.note_read((last.mark() == s.at.mark).then_some(last));
        let seqnum = s.at.mark.seqnum().unwrap_or_default();
        self.read_before.push((file.chain.clone(), file.header.seqnum_id, seqnum));
        if s.finished {
            self.done.push(file.header.file_id);
            return true;
        }
        let opened = self.open_stream(file, journal, s.stream, (s.at, s.beyond));
        self.add(opened);
        true
    }

    /// Keeps the chains together, and the files of each in order.
    fn add(&mut self, opened: OpenJournal) {
        let place = |o: &OpenJournal| {
            (o.origin.path.as_path(), o.origin.stream) <= (opened.origin.path.as_path(), opened.origin.stream)
        };
        let i = self.open.iter().position(|o| !place(o)).unwrap_or(self.open.len());
        self.open.insert(i, opened);
    }

    /// Takes a file of which nothing is known.
    fn begin(&mut self, file: &ListedJournal, before: Option<&ListedJournal>, is_first: bool) {
        let id = file.header.file_id;
        let is_old =
            folder::is_old_name(file.path.file_name().unwrap_or_default()) || file.header.is_archived();
        // The oldest finished streams may have been forgotten; a later file of the chain that was read proves the same.
        let path = file.path.with_file_name(&file.chain);
        let found = self.read_before.iter().filter(|(chain, ..)| *chain == file.chain).count();
        let vanished = self.saved.iter().filter(|s| *s.path == *path).count();
        let some_are_forgotten = found + vanished >= FINISHED_PER_JOURNAL;
        let is_later = |(chain, seqnum_id, read): &(String, Id128, u64)| {
            *chain == file.chain && *seqnum_id == file.header.seqnum_id && file.header.tail_seqnum <= *read
        };
        let was_read = is_old && some_are_forgotten && self.read_before.iter().any(is_later);
        let from_end = is_first && self.o.is_new && !self.o.from_beginning;
        if was_read {
            self.done.push(id);
            return;
        }
        let Some(mut journal) = self.open_listed(file) else { return };
        let mut at = Point { mark: nothing_of(&id), ..Point::default() };
        let Scratch { pages, entry, .. } = &mut self.scratch;
        if from_end && journal.seek_end(pages, entry).is_ok_and(|found| found) {
            let last = entry.stamp();
            at = Point { offset: entry.end, mark: last.mark(), then: Then::Line };
            self.note_read(Some(last));
        }
        let before = before.and_then(|before| {
            let mut before = self.open_listed(before)?;
            let Scratch { pages, entry, .. } = &mut self.scratch;
            before.seek_end(pages, entry).is_ok_and(|found| found).then(|| entry.stamp())
        });
        let stream = (self.new_stream)();
        let opened = self.open_stream(file, journal, stream, (at, Vec::new())).following(before);
        self.add(opened);
    }

    fn open_listed(&mut self, file: &ListedJournal) -> Option<JournalFile> {
        let journal = folder::open_listed(file);
        self.relist |= journal.is_none();
        journal
    }

    fn open_stream(
        &mut self,
        file: &ListedJournal,
        mut journal: JournalFile,
        stream: StreamId,
        (at, beyond): (Point, Vec<(Range, Point)>),
    ) -> OpenJournal {
        let path = file.path.with_file_name(&file.chain);
        let size = if journal.unread() > 0 { journal.header.tail_object } else { at.offset };
        let size = size.max(at.offset);
        let progress = self.board.progress(stream, at.offset, size, size);
        let (topic, shape) = (self.o.topic.clone(), self.o.shape.clone());
        let has_share = self.letter_share(&path).is_some();
        if let Some(quota) = self.board.quota.get().filter(|_| !has_share) {
            self.letter_shares.push((path.clone(), quota.share(&path, &topic)));
        }
        let origin = Arc::new(Origin { stream, topic, path, shape, progress });
        let identity = file.identity.clone();
        self.out.open(origin.opened(identity, at));
        let base = self.tally.as_ref().map_or(u64::MAX, SeqnumTally::base);
        let Scratch { pages, entry, .. } = &mut self.scratch;
        let listed = journal.entries_up_to(pages, base, entry);
        OpenJournal::new(journal, file.path.clone(), origin, (at, beyond), listed)
    }

    /// Finishes streams of an earlier run whose files are gone.
    fn give_up_vanished(&mut self, folder: &Path) {
        if self.blind || self.relist {
            return; // they may be in it
        }
        let is_gone = |s: &SavedStream| s.path.parent().is_some_and(|p| p == folder || !p.exists());
        let gone: Vec<StreamId> =
            self.saved.iter().filter(|s| !s.finished && is_gone(s)).map(|s| s.stream).collect();
        self.saved.retain(|s| !gone.contains(&s.stream));
        for stream in gone {
            self.out.close(Closed { stream, why: Ending::Gone { lost: 0 } });
        }
    }

    fn note_refused(&mut self, refused: &[(PathBuf, ReadError)]) {
        // Entries in such a file are not lost.
        self.blind = refused.iter().any(|(_, e)| !matches!(e, ReadError::NotAJournal));
        let again: Vec<PathBuf> = refused.iter().map(|(path, _)| path.clone()).collect();
        for path in self.refused.iter().filter(|path| !again.contains(path)) {
            self.board.files().remove(path);
        }
        for (path, e) in refused.iter().filter(|(path, _)| !self.refused.contains(path)) {
            let why = super::explain(e);
            error!("{}: {why}", path.display());
            let state = FileState {
                state: "unreadable".into(),
                last_error: Some(why),
                topic: self.o.topic.to_string(),
                ..FileState::default()
            };
            self.board.files().insert(path.clone(), state);
        }
        self.refused = again;
    }
}

/// The mark of a file of which nothing has been read.
fn nothing_of(file_id: &Id128) -> Mark {
    Mark::of_entry(fnv1a(file_id), 0)
}

/// Whether the saved position is in this file. If so, `journal` is positioned there.
fn ends_there(
    journal: &mut JournalFile,
    s: &SavedStream,
    file: &ListedJournal,
    scratch: &mut Scratch,
) -> bool {
    if s.at.offset == 0 {
        return s.at.mark == nothing_of(&file.header.file_id) && s.identity == file.identity;
    }
    if !s.at.mark.seqnum().is_some_and(|n| file.header.may_hold(n)) {
        return false;
    }
    match journal.seek(&mut scratch.pages, s.at.offset, &mut scratch.entry) {
        Ok(true) => scratch.entry.stamp().mark() == s.at.mark,
        // The last entry that was read, or the way to it, has been damaged since.
        Err(ReadError::Entry(_) | ReadError::Chain) => s.identity == file.identity,
        Ok(false) | Err(_) => false,
    }
}
