//! Follows one journal folder: lists its files, opens each as a stream, reads them in turn, and waits for more.
//!
//! `/run` and `/var` may hold the same entries (`journalctl --flush` copies them, with other IDs). So `/run` is read only while
//! there is no folder in `/var`; when that appears, `/run` is read to its end first, and what was read is left out in `/var`.

use super::file::{Id128, JournalFile, ReadError};
use super::folder::{self, Listed, Listing};
use super::open::{EntryCounts, JournalRead, JournalReading, OpenJournal, Scratch};
use super::tally::SeqnumTally;
use super::wait::FolderWatch;
use crate::chunk::{
    Chunk, Closed, Ending, Mark, Opened, Origin, Parcel, Point, Shape, StreamId, Then, Topic,
};
use crate::handover::{Outlet, Stopped};
use crate::quota::{LetterShare, Room};
use crate::report::{Board, FileState};
use crate::stop::Stop;
use crate::streams::SavedStream;
use crate::waker::Waker;
use log::{error, info, warn};
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// A journal, and how it is read.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    pub topic: Topic,
    pub shape: Arc<Shape>,
    /// Where it may be; the first of these that exists is read.
    pub folders: Vec<PathBuf>,
    pub reading: JournalReading,
    /// Entries that are there when the journal is first known are read too.
    pub from_beginning: bool,
    /// Nothing of it was read before.
    pub is_new: bool,
    /// `--once`: end when everything is read.
    pub once: bool,
    /// How often to look where no events come.
    pub poll: Duration,
}

impl JournalOptions {
    /// Whether a stream with this followed path is one of its files.
    pub fn follows(&self, path: &Path) -> bool {
        path.parent().is_some_and(|parent| self.folders.iter().any(|folder| folder == parent))
    }
}

/// What a journal's thread needs of the others.
pub struct JournalContext<'e> {
    pub board: &'e Board,
    /// Gives a stream its ID.
    pub new_stream: &'e (dyn Fn() -> StreamId + Sync),
    /// All streams of this journal that an earlier run saved.
    pub saved: Vec<SavedStream>,
    /// Every file that is there is open: `start` applies to none any more.
    pub first_look_done: Box<dyn FnOnce() + Send + 'e>,
}

/// Chunks that are read of a live file before the others have their turn.
const TURN: usize = 16;
/// While a gap in the numbers is looked at again, a chain is being written, or memory is short.
const SOON: Duration = Duration::from_millis(200);
/// While the journal is not where it is looked for first, or cannot be read.
const LATER: Duration = Duration::from_secs(1);

/// Why a thread ends, or waits for better times.
enum Halted {
    Stopped,
    Io(io::Error),
}

impl From<Stopped> for Halted {
    fn from(_: Stopped) -> Halted {
        Halted::Stopped
    }
}

/// Follows the journal until it is stopped, or with `once` to its end.
pub fn run(o: JournalOptions, context: JournalContext<'_>, out: Outlet, waker: &Waker, stop: &Stop) {
    let mut follower = Follower::new(o, context, out, stop);
    let mut watch = None;
    let mut relist = true;
    while !stop.is_on() {
        waker.begin_round();
        let moved = follower.choose_folder();
        if moved || watch.is_none() {
            watch = follower.folder.as_deref().map(|folder| FolderWatch::new(folder, follower.o.poll));
        }
        let most = match follower.turn(relist || moved) {
            Ok(Turn::Again) => {
                relist = false;
                continue;
            }
            Ok(Turn::Wait(most)) => most,
            Err(Halted::Stopped) => break,
            Err(Halted::Io(e)) => {
                follower.trouble(&e);
                Some(LATER)
            }
        };
        if follower.o.once && follower.is_read() {
            break;
        }
        let nowhere = FolderWatch::nowhere(LATER);
        relist = watch.as_ref().unwrap_or(&nowhere).wait(waker, most) || follower.relist;
    }
    follower.park();
}

enum Turn {
    Again,
    /// At the longest for so long.
    Wait(Option<Duration>),
}

struct Follower<'a> {
    o: JournalOptions,
    board: &'a Board,
    new_stream: &'a (dyn Fn() -> StreamId + Sync),
    out: Outlet,
    stop: &'a Stop,
    /// The folder that is read.
    folder: Option<PathBuf>,
    /// Chain by chain, the oldest file of each first.
    open: Vec<OpenJournal>,
    /// Read to their end, or never to be read.
    done: HashSet<Id128>,
    /// Not found yet.
    saved: Vec<SavedStream>,
    /// Per chain and run of numbers, how far an earlier run had read.
    read_before: HashMap<(String, Id128), u64>,
    first_look_done: Option<Box<dyn FnOnce() + Send + 'a>>,
    /// Files that cannot be read, as far as that was logged.
    refused: HashSet<PathBuf>,
    scratch: Scratch,
    tally: SeqnumTally,
    /// A file was not where it was listed.
    relist: bool,
    /// Some file cannot be read: what is missing may be in there.
    blind: bool,
    /// Closed streams whose entries are not all acknowledged.
    left: Vec<Arc<Origin>>,
    /// What the last chunk would take in dead-letter: the next will be alike.
    letters: u64,
    /// By followed path; empty where there is no dead-letter file.
    letter_shares: HashMap<PathBuf, LetterShare>,
    error: Option<String>,
}

impl<'a> Follower<'a> {
    fn new(o: JournalOptions, context: JournalContext<'a>, out: Outlet, stop: &'a Stop) -> Follower<'a> {
        Follower {
            o,
            board: context.board,
            new_stream: context.new_stream,
            out,
            stop,
            folder: None,
            open: Vec::new(),
            done: HashSet::new(),
            saved: context.saved,
            read_before: HashMap::new(),
            first_look_done: Some(context.first_look_done),
            refused: HashSet::new(),
            scratch: Scratch::default(),
            tally: SeqnumTally::default(),
            relist: false,
            blind: false,
            left: Vec::new(),
            letters: 0,
            letter_shares: HashMap::new(),
            error: None,
        }
    }

    /// Goes to the first folder that exists. True: it is another one now.
    fn choose_folder(&mut self) -> bool {
        let is_there = |folder: &&PathBuf| {
            folder.symlink_metadata().map_or_else(|e| e.kind() != io::ErrorKind::NotFound, |_| true)
        };
        let best = self.o.folders.iter().find(is_there);
        if best.is_none() || best == self.folder.as_ref() {
            return false;
        }
        let best = best.cloned();
        if self.folder.is_some() && !self.leave_folder() {
            return false;
        }
        self.folder = best;
        true
    }

    /// Reads what is left in the folder, which nothing more is written to. False: not now.
    fn leave_folder(&mut self) -> bool {
        let mut written = None;
        while let Some(journal) = self.open.first_mut() {
            journal.name = None; // so it ends when it is read
            match self.read_file(0) {
                Ok(Progressed::Closed) => {}
                Ok(Progressed::More) => continue,
                Ok(Progressed::Nothing | Progressed::Later) | Err(_) => return false,
            }
            written = written.max(self.open.remove(0).written());
        }
        self.o.reading.rules.filter.read_until = written;
        // Its numbers are others.
        self.tally = SeqnumTally::default();
        self.done.clear();
        true
    }

    fn turn(&mut self, relist: bool) -> Result<Turn, Halted> {
        let Some(folder) = self.folder.clone() else {
            self.say_nowhere();
            if let Some(done) = self.first_look_done.take() {
                done();
            }
            return Ok(Turn::Wait(Some(LATER)));
        };
        if relist || self.first_look_done.is_some() {
            self.relist = false;
            self.list(&folder)?;
            self.well();
            self.show();
        }
        let (mut again, mut later, mut i) = (false, false, 0);
        while i < self.open.len() {
            match self.read_file(i)? {
                Progressed::Closed => {
                    self.open.remove(i);
                    self.show();
                    continue;
                }
                Progressed::More => again = true,
                Progressed::Later => later = true,
                Progressed::Nothing => {}
            }
            i += 1;
        }
        if again {
            return Ok(Turn::Again);
        }
        let is_last = self.o.folders.first() == self.folder.as_ref();
        let usual = if is_last { None } else { Some(LATER) };
        if later {
            return Ok(Turn::Wait(Some(SOON)));
        }
        if self.relist || !self.count_gaps() {
            self.relist = true;
            return Ok(Turn::Wait(Some(SOON)));
        }
        Ok(Turn::Wait(usual))
    }

    /// Every file is read as far as it went. False: it has to be looked at once more to know what is lost.
    fn count_gaps(&mut self) -> bool {
        if self.blind {
            return true;
        }
        for journal in &mut self.open {
            if journal.refresh(&mut self.scratch).is_err() || journal.journal.unread() > 0 {
                return false;
            }
        }
        if let Some(lost) = self.tally.all_read() {
            self.lost(lost, "they were removed before they were read");
        }
        !self.tally.is_suspicious()
    }

    /// `--once`: everything that was there is read.
    fn is_read(&self) -> bool {
        let all_read = |o: &OpenJournal| o.journal.unread() == 0;
        self.first_look_done.is_none() && !self.relist && self.open.iter().all(all_read)
    }

    fn lost(&self, entries: u64, why: &str) {
        self.board.totals.lost_entries.fetch_add(entries, Relaxed);
        let folder = self.folder.as_deref().unwrap_or(Path::new("the journal")).display();
        error!("{folder}: {entries} entries are lost: {why}; give journald more room (SystemMaxUse=)");
    }

    fn park(&mut self) {
        for journal in std::mem::take(&mut self.open) {
            let stream = journal.origin.stream;
            self.board.files().remove(&journal.origin.path);
            self.out.tell(Parcel::Closed(Closed { stream, why: Ending::Parked }));
        }
    }
}

/// What came of reading one file.
enum Progressed {
    More,
    Nothing,
    Later,
    /// It is read to its end, or gone: to be taken out of the open ones.
    Closed,
}

/// Reading.
impl Follower<'_> {
    fn read_file(&mut self, i: usize) -> Result<Progressed, Halted> {
        let finished = self.open[i].is_finished();
        let mut chunks = 0;
        loop {
            if self.stop.is_on() {
                return Err(Halted::Stopped);
            }
            if !self.has_letter_room(i) {
                return Ok(Progressed::Later);
            }
            let o = &mut self.open[i];
            match o.read(&self.o.reading, &mut self.scratch, &mut self.tally, self.stop) {
                JournalRead::Chunk(chunk, counts) => {
                    self.count(i, &counts);
                    self.send(chunk)?;
                    chunks += 1;
                    if chunks >= TURN && !finished {
                        return Ok(Progressed::More);
                    }
                }
                JournalRead::More(counts) => self.count(i, &counts),
                JournalRead::End(counts) => {
                    self.count(i, &counts);
                    if !finished {
                        return Ok(Progressed::Nothing);
                    }
                    self.close(i, Ending::Finished)?;
                    return Ok(Progressed::Closed);
                }
                JournalRead::Later => return Ok(Progressed::Later),
                JournalRead::Stopped => return Err(Halted::Stopped),
                JournalRead::Gone => {
                    let lost = self.open[i].listed_unread();
                    if lost > 0 {
                        self.lost(lost, "their file was removed before they were read");
                    }
                    self.close(i, Ending::Gone { lost: 0 })?;
                    return Ok(Progressed::Closed);
                }
                JournalRead::Failed(e) => return Err(Halted::Io(e)),
            }
        }
    }

    fn send(&mut self, mut chunk: Chunk) -> Result<(), Halted> {
        let origin = &chunk.origin;
        if let Some(share) = self.letter_shares.get(&origin.path) {
            self.letters = share.letters(chunk.lines.len(), chunk.bytes.len());
            chunk.permit.with_letters(share.reserve(self.letters));
        }
        self.board.totals.read_lines.fetch_add(chunk.lines.len() as u64, Relaxed);
        Ok(self.out.send(Parcel::Chunk(chunk), self.stop)?)
    }

    /// Whether the dead-letter file has room for what would be read, if all of it is refused.
    fn has_letter_room(&self, i: usize) -> bool {
        let share = self.letter_shares.get(&self.open[i].origin.path);
        let (Some(quota), Some(share)) = (self.board.quota.get(), share) else { return true };
        quota.room(share, self.letters, Instant::now()) == Room::Enough
    }

    fn count(&self, i: usize, counts: &EntryCounts) {
        let path = self.open[i].origin.path.display();
        if counts.damaged > 0 {
            self.board.totals.damaged_entries.fetch_add(counts.damaged, Relaxed);
            warn!("{path}: {} damaged entries are left out: {}", counts.damaged, counts.why);
        }
        if counts.cut > 0 {
            self.board.totals.cut_lines.fetch_add(counts.cut, Relaxed);
            let max = self.o.reading.rules.max_line;
            warn!("{path}: {} entries cut, to keep each within {max} bytes", counts.cut);
        }
    }

    fn close(&mut self, i: usize, why: Ending) -> Result<(), Halted> {
        let journal = &self.open[i];
        self.done.insert(journal.journal.header.file_id);
        self.left.push(journal.origin.clone());
        Ok(self.out.send(Parcel::Closed(Closed { stream: journal.origin.stream, why }), self.stop)?)
    }
}

/// Listing.
impl Follower<'_> {
    fn list(&mut self, folder: &Path) -> Result<(), Halted> {
        let Listing { files, refused, is_incomplete } = folder::list(folder).map_err(Halted::Io)?;
        self.relist |= is_incomplete;
        let is_first = self.first_look_done.is_some();
        self.note_refused(&refused);
        for o in &mut self.open {
            let now = files.iter().find(|f| f.header.file_id == o.journal.header.file_id);
            o.name = now.map(|f| f.path.clone());
        }
        self.done.retain(|id| files.iter().any(|f| f.header.file_id == *id));
        let new: Vec<&Listed> = files.iter().filter(|f| !self.is_known(&f.header.file_id)).collect();
        if is_first {
            let newest = files.iter().map(|f| f.header.tail_seqnum).max().unwrap_or_default();
            self.tally = SeqnumTally::begin(newest);
            self.count_leading_gap(&files);
        }
        // First those that are known: they say how far their chains were read.
        let mut unknown = Vec::new();
        for file in new {
            if !self.resume(file)? {
                unknown.push(file);
            }
        }
        for file in unknown {
            self.begin(file, is_first)?;
        }
        self.open
            .sort_by(|a, b| a.origin.path.cmp(&b.origin.path).then(a.origin.stream.cmp(&b.origin.stream)));
        self.give_up_vanished(folder)?;
        if let Some(done) = self.first_look_done.take() {
            done();
            info!("{}: {} journal file(s), {} to be read", folder.display(), files.len(), self.open.len());
        }
        Ok(())
    }

    fn is_known(&self, id: &Id128) -> bool {
        self.done.contains(id) || self.open.iter().any(|o| o.journal.header.file_id == *id)
    }

    /// Since the last run, the oldest files may have been removed unread.
    fn count_leading_gap(&mut self, files: &[Listed]) {
        let read = self.saved.iter().filter(|s| self.folder.as_deref() == s.path.parent());
        let Some(read) = read.filter_map(|s| s.at.mark.seqnum()).max().filter(|n| *n > 0) else { return };
        let later = || files.iter().filter(|f| f.header.entries > 0 && f.header.tail_seqnum > read);
        let first = later().map(|f| f.header.head_seqnum).min().unwrap_or(read + 1);
        if !self.blind && first > read + 1 {
            self.lost(first - read - 1, "they were removed while no agent ran");
        }
    }

    /// Goes on with the stream that an earlier run saved of this file. False: there is none.
    fn resume(&mut self, file: &Listed) -> Result<bool, Halted> {
        let Some(mut journal) = self.open_listed(file) else { return Ok(true) };
        let known = |s: &SavedStream| self.o.follows(&s.path);
        let mut found = None;
        for (i, s) in self.saved.iter().enumerate().filter(|(_, s)| known(s)) {
            if ends_there(&mut journal, s, file, &mut self.scratch) {
                found = Some(i);
                break;
            }
        }
        let Some(i) = found else { return Ok(false) };
        let s = self.saved.remove(i);
        let seqnum = s.at.mark.seqnum().unwrap_or_default();
        let read = self.read_before.entry((file.chain.clone(), file.header.seqnum_id)).or_default();
        *read = seqnum.max(*read);
        if s.finished {
            self.done.insert(file.header.file_id);
            return Ok(true);
        }
        self.open_stream(file, journal, s.stream, s.at, s.beyond)?;
        Ok(true)
    }

    /// Takes a file of which nothing is known.
    fn begin(&mut self, file: &Listed, is_first: bool) -> Result<(), Halted> {
        let id = file.header.file_id;
        let is_old =
            folder::is_old_name(file.path.file_name().unwrap_or_default()) || file.header.is_archived();
        let read = self.read_before.get(&(file.chain.clone(), file.header.seqnum_id)).copied();
        // Finished streams are forgotten in time; a later file of the same chain that was read says the same.
        let was_read = is_old && read.is_some_and(|read| file.header.tail_seqnum <= read);
        let from_end = is_first && self.o.is_new && !self.o.from_beginning;
        if was_read {
            self.done.insert(id);
            return Ok(());
        }
        let Some(mut journal) = self.open_listed(file) else { return Ok(()) };
        let mut at = Point { mark: Mark::of_entry(&id, 0), ..Point::default() };
        let Scratch { pages, entry, .. } = &mut self.scratch;
        if from_end && journal.seek_end(pages, entry).is_ok_and(|found| found) {
            at = Point { offset: entry.end, mark: Mark::of_entry(&id, entry.seqnum), then: Then::Line };
        }
        let stream = (self.new_stream)();
        self.open_stream(file, journal, stream, at, Vec::new())
    }

    /// `None`: the name belongs to another file by now, which the next listing will see.
    fn open_listed(&mut self, file: &Listed) -> Option<JournalFile> {
        let opened = folder::open(&file.path).map_err(ReadError::Io).and_then(JournalFile::open);
        let journal = opened.ok().filter(|j| j.header.file_id == file.header.file_id);
        self.relist |= journal.is_none();
        journal
    }

    fn open_stream(
        &mut self,
        file: &Listed,
        journal: JournalFile,
        stream: StreamId,
        at: Point,
        beyond: Vec<(crate::chunk::Range, Point)>,
    ) -> Result<(), Halted> {
        let path = file.path.with_file_name(&file.chain);
        let size = if journal.unread() > 0 { journal.header.tail_object } else { at.offset };
        let gauge = self.board.gauge(stream, at.offset, size.max(at.offset));
        let (topic, shape) = (self.o.topic.clone(), self.o.shape.clone());
        if let Some(quota) = self.board.quota.get() {
            let share = || quota.share(&path, &topic);
            self.letter_shares.entry(path.clone()).or_insert_with(share);
        }
        let origin = Arc::new(Origin { stream, topic, path, shape, gauge });
        let identity = file.identity.clone();
        self.out.send(Parcel::Opened(Opened { origin: origin.clone(), identity, at }), self.stop)?;
        self.open.push(OpenJournal::new(journal, file.path.clone(), origin, at, beyond));
        Ok(())
    }

    /// Streams of an earlier run whose files are gone are at their end.
    fn give_up_vanished(&mut self, folder: &Path) -> Result<(), Halted> {
        if self.blind || self.relist {
            return Ok(()); // they may be there
        }
        let is_gone = |s: &SavedStream| s.path.parent().is_some_and(|p| p == folder || !p.exists());
        let gone: Vec<StreamId> =
            self.saved.iter().filter(|s| !s.finished && is_gone(s)).map(|s| s.stream).collect();
        self.saved.retain(|s| !gone.contains(&s.stream));
        for stream in gone {
            self.out.send(Parcel::Closed(Closed { stream, why: Ending::Gone { lost: 0 } }), self.stop)?;
        }
        Ok(())
    }

    fn note_refused(&mut self, refused: &[(PathBuf, ReadError)]) {
        // What is in such a file is not lost.
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

/// Whether the saved position is in this file; then that is where `journal` goes on.
fn ends_there(journal: &mut JournalFile, s: &SavedStream, file: &Listed, scratch: &mut Scratch) -> bool {
    let Some(seqnum) = s.at.mark.seqnum() else { return false };
    if s.at.mark != Mark::of_entry(&file.header.file_id, seqnum) {
        return false;
    }
    match journal.seek(&mut scratch.pages, s.at.offset, &mut scratch.entry) {
        Ok(true) if s.at.offset == 0 => s.identity == file.identity,
        Ok(true) => scratch.entry.seqnum == seqnum,
        // The last entry that was read is damaged now.
        Err(ReadError::Entry(_)) => s.identity == file.identity,
        Ok(false) | Err(_) => false,
    }
}

/// Status.
impl Follower<'_> {
    /// What there is to see of each chain.
    fn show(&mut self) {
        self.left.retain(|origin| !origin.gauge.is_done());
        let mut files = self.board.files();
        let of = |all: &mut dyn Iterator<Item = &Arc<Origin>>, path: &Path| {
            all.filter(|o| o.path == path).map(|o| o.gauge.clone()).collect::<Vec<_>>()
        };
        let open: Vec<Arc<Origin>> = self.open.iter().map(|o| o.origin.clone()).collect();
        for origin in open.iter().chain(&self.left) {
            let state = files.entry(origin.path.clone()).or_default();
            state.gauges = of(&mut open.iter(), &origin.path);
            state.left = of(&mut self.left.iter(), &origin.path);
            state.state = "following".into();
            state.topic = self.o.topic.to_string();
        }
    }

    fn say_nowhere(&mut self) {
        let Some(folder) = self.o.folders.first() else { return };
        if self.error.is_none() {
            info!("{}: waiting for the journal", folder.display());
            self.error = Some(String::new());
        }
        let (state, topic) = ("waiting for the journal".into(), self.o.topic.to_string());
        let state = FileState { state, topic, ..FileState::default() };
        self.board.files().insert(folder.clone(), state);
    }

    fn trouble(&mut self, e: &io::Error) {
        let why = super::explain_io(e);
        let Some(folder) = &self.folder else { return };
        if self.error.as_ref() != Some(&why) {
            error!("{}: {why}", folder.display());
        }
        let (state, topic) = ("unreadable".into(), self.o.topic.to_string());
        let last_error = Some(why.clone());
        let state = FileState { state, topic, last_error, ..FileState::default() };
        self.board.files().insert(folder.clone(), state);
        self.error = Some(why);
    }

    fn well(&mut self) {
        if self.error.take().is_some() {
            let folders = self.o.folders.iter().chain(&self.folder);
            folders.for_each(|folder| drop(self.board.files().remove(folder)));
        }
    }
}
