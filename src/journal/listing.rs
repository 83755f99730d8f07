//! Assigns streams to the files of a journal folder: which file continues a saved stream, is new, or has already been
//! read.

use super::file::JournalFile;
use super::folder::{self, ListedJournal, Listing};
use super::follow::{Follower, Halted};
use super::header::{Id128, ReadError};
use super::open::{OpenJournal, Scratch};
use super::tally::SeqnumTally;
use crate::chunk::Origin;
use crate::record::{Closed, Ending, Mark, Point, Range, StreamId, Then};
use crate::report::FileState;
use crate::streams::SavedStream;
use log::{error, info};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl Follower<'_> {
    pub(super) fn list(&mut self, folder: &Path) -> Result<(), Halted> {
        let Listing { files, refused, is_incomplete } = folder::list(folder).map_err(Halted::Io)?;
        self.relist |= is_incomplete;
        let is_first = self.first_look_done.is_some();
        self.note_refused(&refused);
        for o in &mut self.open {
            let now = files.iter().find(|f| f.header.file_id == o.journal.header.file_id);
            o.name = now.map(|f| f.path.clone());
        }
        self.done.retain(|id| files.iter().any(|f| f.header.file_id == *id));
        let new: Vec<&ListedJournal> = files.iter().filter(|f| !self.is_known(&f.header.file_id)).collect();
        if is_first {
            let newest = files.iter().map(|f| f.header.tail_seqnum).max().unwrap_or_default();
            self.tally = SeqnumTally::begin(newest);
            self.count_leading_gap(&files);
        }
        // Known files first: they tell how far their chains were read.
        let mut unknown = Vec::new();
        for file in new {
            if !self.resume(file) {
                unknown.push(file);
            }
        }
        for file in unknown {
            self.begin(file, is_first);
        }
        self.open
            .sort_by(|a, b| a.origin.path.cmp(&b.origin.path).then(a.origin.stream.cmp(&b.origin.stream)));
        self.give_up_vanished(folder);
        if let Some(done) = self.first_look_done.take() {
            done();
            info!("{}: {} journal file(s), {} to read", folder.display(), files.len(), self.open.len());
        }
        Ok(())
    }

    fn is_known(&self, id: &Id128) -> bool {
        self.done.contains(id) || self.open.iter().any(|o| o.journal.header.file_id == *id)
    }

    /// The oldest files may have been removed unread since the last run.
    fn count_leading_gap(&mut self, files: &[ListedJournal]) {
        let read = self.saved.iter().filter(|s| self.folder.as_deref() == s.path.parent());
        let Some(read) = read.filter_map(|s| s.at.mark.seqnum()).max().filter(|n| *n > 0) else { return };
        let later = || files.iter().filter(|f| f.header.entries > 0 && f.header.tail_seqnum > read);
        let first = later().map(|f| f.header.head_seqnum).min().unwrap_or(read + 1);
        if !self.blind && first > read + 1 {
            self.lost(first - read - 1, "they were removed while no agent ran");
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
        let seqnum = s.at.mark.seqnum().unwrap_or_default();
        let read = self.read_before.entry((file.chain.clone(), file.header.seqnum_id)).or_default();
        *read = seqnum.max(*read);
        if s.finished {
            self.done.insert(file.header.file_id);
            return true;
        }
        self.open_stream(file, journal, s.stream, s.at, s.beyond);
        true
    }

    /// Starts a stream for an unknown file.
    fn begin(&mut self, file: &ListedJournal, is_first: bool) {
        let id = file.header.file_id;
        let is_old =
            folder::is_old_name(file.path.file_name().unwrap_or_default()) || file.header.is_archived();
        let read = self.read_before.get(&(file.chain.clone(), file.header.seqnum_id)).copied();
        // Finished streams are eventually forgotten; a later file of the chain that was read proves the same.
        let was_read = is_old && read.is_some_and(|read| file.header.tail_seqnum <= read);
        let from_end = is_first && self.o.is_new && !self.o.from_beginning;
        if was_read {
            self.done.insert(id);
            return;
        }
        let Some(mut journal) = self.open_listed(file) else { return };
        let mut at = Point { mark: Mark::of_entry(&id, 0), ..Point::default() };
        let Scratch { pages, entry, .. } = &mut self.scratch;
        if from_end && journal.seek_end(pages, entry).is_ok_and(|found| found) {
            at = Point { offset: entry.end, mark: Mark::of_entry(&id, entry.seqnum), then: Then::Line };
        }
        let stream = (self.new_stream)();
        self.open_stream(file, journal, stream, at, Vec::new());
    }

    /// `None`: the name now belongs to another file, which the next listing will find.
    fn open_listed(&mut self, file: &ListedJournal) -> Option<JournalFile> {
        let opened = folder::open(&file.path).map_err(ReadError::Io).and_then(JournalFile::open);
        let journal = opened.ok().filter(|j| j.header.file_id == file.header.file_id);
        self.relist |= journal.is_none();
        journal
    }

    fn open_stream(
        &mut self,
        file: &ListedJournal,
        journal: JournalFile,
        stream: StreamId,
        at: Point,
        beyond: Vec<(Range, Point)>,
    ) {
        let path = file.path.with_file_name(&file.chain);
        let size = if journal.unread() > 0 { journal.header.tail_object } else { at.offset };
        let progress = self.board.progress(stream, at.offset, size.max(at.offset));
        let (topic, shape) = (self.o.topic.clone(), self.o.shape.clone());
        if let Some(quota) = self.board.quota.get() {
            let share = || quota.share(&path, &topic);
            self.letter_shares.entry(path.clone()).or_insert_with(share);
        }
        let origin = Arc::new(Origin { stream, topic, path, shape, progress });
        let identity = file.identity.clone();
        self.out.open(origin.opened(identity, at));
        self.open.push(OpenJournal::new(journal, file.path.clone(), origin, at, beyond));
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
        let again: HashSet<PathBuf> = refused.iter().map(|(path, _)| path.clone()).collect();
        for path in self.refused.difference(&again) {
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

/// Whether the saved position is in this file. If so, `journal` is positioned there.
fn ends_there(
    journal: &mut JournalFile,
    s: &SavedStream,
    file: &ListedJournal,
    scratch: &mut Scratch,
) -> bool {
    let Some(seqnum) = s.at.mark.seqnum() else { return false };
    if s.at.mark != Mark::of_entry(&file.header.file_id, seqnum) {
        return false;
    }
    match journal.seek(&mut scratch.pages, s.at.offset, &mut scratch.entry) {
        Ok(true) if s.at.offset == 0 => s.identity == file.identity,
        Ok(true) => scratch.entry.seqnum == seqnum,
        // The last entry that was read has been damaged since.
        Err(ReadError::Entry(_)) => s.identity == file.identity,
        Ok(false) | Err(_) => false,
    }
}
