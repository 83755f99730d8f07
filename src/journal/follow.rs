//! Follows one journal folder: lists its files, opens each as a stream, reads them in turn, and waits for changes.
//!
//! `/run` and `/var` may hold the same entries (`journalctl --flush` copies them, with other IDs). So `/run` is read
//! only while there is no folder in `/var`. When that appears, `/run` is read to its end first, and entries read there
//! are skipped in `/var`.

use super::file::EntryStamp;
use super::header::Id128;
use super::open::{EntryCounts, JournalRead, JournalReading, OpenJournal, Scratch};
use super::tally::SeqnumTally;
use super::wait::FolderWatch;
use crate::chunk::{Chunk, Origin};
use crate::handover::{Outlet, Stopped};
use crate::quota::{DeadLetterShare, Room};
use crate::record::{Closed, Ending, Shape, StreamId, Topic};
use crate::report::Board;
use crate::report::log_throttle::LogThrottle;
use crate::stop::Stop;
use crate::streams::{NumberGap, SavedStream};
use crate::waker::Waker;
use crossbeam_channel::Sender;
use log::{error, warn};
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// One journal and how to read it.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    pub topic: Topic,
    pub shape: Arc<Shape>,
    /// Candidate folders; the first that exists is read.
    pub folders: Vec<PathBuf>,
    pub reading: JournalReading,
    /// Also read entries that exist when the journal is first seen.
    pub from_beginning: bool,
    /// No earlier run has read it.
    pub is_new: bool,
    /// `--once`: end when everything is read.
    pub once: bool,
    /// How often to look where there are no events.
    pub poll: Duration,
}

impl JournalOptions {
    /// Whether a stream with this followed path is one of its files.
    pub fn follows(&self, path: &Path) -> bool {
        path.parent().is_some_and(|parent| self.folders.iter().any(|folder| folder == parent))
    }
}

/// What a journal's thread needs from other stages.
pub struct JournalContext<'e> {
    pub board: &'e Board,
    /// Assigns stream IDs.
    pub new_stream: &'e (dyn Fn() -> StreamId + Sync),
    /// All streams of this journal that an earlier run saved.
    pub saved: Vec<SavedStream>,
    /// Per folder, what an earlier run counted as lost.
    pub losses: Vec<(PathBuf, NumberGap)>,
    /// All existing files are open, so `start` no longer applies.
    pub first_look_done: Box<dyn FnOnce() + Send + 'e>,
    /// Dropped then, or when there is nothing to open.
    pub looking: Sender<Infallible>,
}

/// Maximum chunks read from a live file before the others get their turn.
const TURN: usize = 16;
/// Pause while a gap in the sequence numbers is being confirmed, an entry chain is being written, or memory is short.
const SOON: Duration = Duration::from_millis(200);
/// Pause while the journal is not in its preferred folder, or cannot be read.
const LATER: Duration = Duration::from_secs(1);

/// Why reading was interrupted.
pub(super) enum Halted {
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
        follower.choose_folder();
        if let Some(folder) = follower.folder.as_deref()
            && !watch.as_ref().is_some_and(|watch: &FolderWatch| watch.is_of(folder))
        {
            watch = Some(FolderWatch::new(folder, follower.o.poll));
            relist = true;
        }
        let most = match follower.turn(relist) {
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
    /// The longest pause.
    Wait(Option<Duration>),
}

pub(super) struct Follower<'a> {
    pub(super) o: JournalOptions,
    pub(super) board: &'a Board,
    pub(super) new_stream: &'a (dyn Fn() -> StreamId + Sync),
    pub(super) out: Outlet,
    pub(super) stop: &'a Stop,
    /// The folder being read.
    pub(super) folder: Option<PathBuf>,
    /// Chain by chain, the oldest file of each first.
    pub(super) open: Vec<OpenJournal>,
    /// Files read to their end, or not to be read.
    pub(super) done: Vec<Id128>,
    /// Saved streams whose files have not been found yet.
    pub(super) saved: Vec<SavedStream>,
    /// How far an earlier run had read, per chain and sequence number ID.
    pub(super) read_before: Vec<(String, Id128, u64)>,
    pub(super) first_look_done: Option<Box<dyn FnOnce() + Send + 'a>>,
    looking: Option<Sender<Infallible>>,
    /// Unreadable files that have been logged.
    pub(super) refused: Vec<PathBuf>,
    pub(super) scratch: Scratch,
    /// `None`: the folder was not listed yet.
    pub(super) tally: Option<SeqnumTally>,
    /// Per folder, what an earlier run counted as lost.
    pub(super) losses: Vec<(PathBuf, NumberGap)>,
    /// The newest entry of the folder that was read, in the files closed so far and by earlier runs.
    newest: Option<EntryStamp>,
    /// The gap counted as lost with numbers beyond a saved position.
    pub(super) loss: Option<NumberGap>,
    damaged: LogThrottle,
    cut: LogThrottle,
    /// A file was not where it was listed.
    pub(super) relist: bool,
    /// A removed file is kept open until it has a successor. While it is, the removal of its folder causes no event.
    pub(super) is_orphaned: bool,
    /// Some file cannot be read: missing entries may be in it.
    pub(super) blind: bool,
    /// Closed streams with unacknowledged entries.
    pub(super) left: Vec<Arc<Origin>>,
    /// Space the last chunk would need in the dead-letter file; an estimate for the next one.
    pub(super) letters: u64,
    /// By followed path; empty without a dead-letter file.
    pub(super) letter_shares: Vec<(PathBuf, DeadLetterShare)>,
    pub(super) error: Option<String>,
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
            done: Vec::new(),
            saved: context.saved,
            read_before: Vec::new(),
            first_look_done: Some(context.first_look_done),
            looking: Some(context.looking),
            refused: Vec::new(),
            scratch: Scratch::default(),
            tally: None,
            losses: context.losses,
            newest: None,
            loss: None,
            damaged: LogThrottle::default(),
            cut: LogThrottle::default(),
            relist: false,
            is_orphaned: false,
            blind: false,
            left: Vec::new(),
            letters: 0,
            letter_shares: Vec::new(),
            error: None,
        }
    }

    /// Chooses the first folder that exists.
    fn choose_folder(&mut self) {
        let is_there = |folder: &&PathBuf| {
            folder.symlink_metadata().map_or_else(|e| e.kind() != io::ErrorKind::NotFound, |_| true)
        };
        let best = self.o.folders.iter().find(is_there);
        if best.is_none() || best == self.folder.as_ref() {
            return;
        }
        let best = best.cloned();
        if self.folder.is_none() || self.leave_folder() {
            self.folder = best;
        }
    }

    /// Reads the rest of the folder, which is no longer written. False: not finished yet.
    fn leave_folder(&mut self) -> bool {
        while let Some(journal) = self.open.first_mut() {
            journal.name = None; // so that it ends once it is read
            match self.read_file(0) {
                Ok(Progressed::Closed) => {}
                Ok(Progressed::More) => continue,
                Ok(Progressed::Nothing | Progressed::Later) | Err(_) => return false,
            }
            self.open.remove(0);
        }
        // Whatever has been written at the same time has been read, too.
        self.o.reading.copied = self.newest.take().map(|e| EntryStamp { seqnum: u64::MAX, ..e });
        // It has other sequence numbers.
        (self.tally, self.loss) = (None, None);
        self.done.clear();
        true
    }

    fn turn(&mut self, relist: bool) -> Result<Turn, Halted> {
        let Some(folder) = self.folder.clone() else {
            self.show_waiting();
            if let Some(done) = self.first_look_done.take() {
                done();
            }
            self.looking = None;
            return Ok(Turn::Wait(Some(LATER)));
        };
        if relist || self.first_look_done.is_some() {
            self.relist = false;
            let listed = self.list(&folder);
            self.looking = None;
            listed?;
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
        let usual = if is_last && !self.is_orphaned { None } else { Some(LATER) };
        if later {
            return Ok(Turn::Wait(Some(SOON)));
        }
        self.count_gaps();
        self.scratch.release();
        self.relist |= self.tally.is_some_and(|tally| tally.is_suspicious());
        Ok(Turn::Wait(if self.relist { Some(SOON) } else { usual }))
    }

    /// Once every file is read to its end, missing sequence numbers are lost entries. Not while a file is being written
    /// or cannot be read.
    fn count_gaps(&mut self) {
        if self.blind {
            return;
        }
        for journal in &mut self.open {
            if journal.refresh(&mut self.scratch).is_err() || journal.journal.unread() > 0 {
                return;
            }
        }
        if self.left.iter().all(|origin| origin.progress.is_done())
            && self.open.iter().all(|o| o.is_settled())
        {
            self.loss = None; // every position is beyond it
        }
        let (Some(gap), Some(folder)) = (self.tally.as_mut().and_then(SeqnumTally::all_read), &self.folder)
        else {
            return;
        };
        // A restart sees the gap again as long as no position beyond it is saved.
        let before = self.loss.map_or(0, |gap| gap.entries);
        let total = NumberGap { entries: before + gap.entries, upto: gap.upto };
        let folder = folder.clone();
        self.loss = Some(total);
        self.lost(gap.entries, Some((folder, total)), "they were removed before they were read");
    }

    pub(super) fn note_read(&mut self, entry: Option<EntryStamp>) {
        self.newest = self.newest.into_iter().chain(entry).max_by_key(|e| e.monotonic);
    }

    /// `--once`: everything that existed at the start is read.
    fn is_read(&self) -> bool {
        let all_read = |o: &OpenJournal| o.journal.unread() == 0;
        self.first_look_done.is_none() && !self.relist && self.open.iter().all(all_read)
    }

    fn lost(&self, entries: u64, gap: Option<(PathBuf, NumberGap)>, why: &str) {
        self.out.lost_entries(entries, gap);
        let folder = self.folder.as_deref().unwrap_or(Path::new("the journal")).display();
        error!("{folder}: {entries} entries are lost: {why}; give journald more room (SystemMaxUse=)");
    }

    fn park(&mut self) {
        for journal in std::mem::take(&mut self.open) {
            let stream = journal.origin.stream;
            self.board.files().remove(&journal.origin.path);
            self.out.close(Closed { stream, why: Ending::Parked });
        }
    }
}

/// The result of reading one file.
enum Progressed {
    More,
    Nothing,
    Later,
    /// Read to its end, or gone: close it.
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
            let (o, Some(tally)) = (&mut self.open[i], &mut self.tally) else { return Ok(Progressed::Later) };
            match o.read(&self.o.reading, &mut self.scratch, tally, self.stop) {
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
                    self.close(i, Ending::Finished);
                    return Ok(Progressed::Closed);
                }
                JournalRead::Later => return Ok(Progressed::Later),
                JournalRead::Stopped => return Err(Halted::Stopped),
                JournalRead::Gone => {
                    let lost = self.open[i].listed_unread();
                    if lost > 0 {
                        self.lost(lost, None, "their file was removed before they were read");
                    }
                    self.close(i, Ending::Gone { lost: 0 });
                    return Ok(Progressed::Closed);
                }
                JournalRead::Failed(e) => {
                    self.trouble(&e); // other files may be readable
                    return Ok(Progressed::Later);
                }
            }
        }
    }

    fn send(&mut self, mut chunk: Chunk) -> Result<(), Halted> {
        if let Some(share) = self.letter_share(&chunk.origin.path) {
            self.letters = chunk.reserve_letters(share);
        }
        let records = chunk.lines.len() as u64;
        self.board.totals.read_lines.fetch_add(records, Relaxed);
        chunk.origin.progress.records.fetch_add(records, Relaxed);
        Ok(self.out.send(chunk, self.stop, &|| self.board.report_hung_write(Instant::now()))?)
    }

    /// The share of the dead-letter file that this path has.
    pub(super) fn letter_share(&self, path: &Path) -> Option<&DeadLetterShare> {
        self.letter_shares.iter().find(|(of, _)| of == path).map(|(_, share)| share)
    }

    /// Whether the dead-letter file has room for the next chunk, should all of it be rejected.
    fn has_letter_room(&self, i: usize) -> bool {
        let share = self.letter_share(&self.open[i].origin.path);
        let (Some(quota), Some(share)) = (self.board.quota.get(), share) else { return true };
        quota.room(share, self.letters, Instant::now()) == Room::Enough
    }

    fn count(&mut self, i: usize, counts: &EntryCounts) {
        let path = self.open[i].origin.path.display();
        let EntryCounts { damaged, why, cut } = *counts;
        if damaged > 0 {
            self.board.totals.damaged_entries.fetch_add(damaged, Relaxed);
            if let Some(all) = self.damaged.more(damaged, Instant::now()) {
                warn!("{path}: {damaged} damaged entries are skipped: {why} ({all} recently)");
            }
        }
        if cut > 0 {
            self.board.totals.cut_lines.fetch_add(cut, Relaxed);
            if let Some(all) = self.cut.more(cut, Instant::now()) {
                let max = self.o.reading.rules.max_line;
                warn!("{path}: {cut} entries cut to {max} bytes each ({all} recently)");
            }
        }
    }

    fn close(&mut self, i: usize, why: Ending) {
        let journal = &self.open[i];
        let last = journal.last_read();
        self.done.push(journal.journal.header.file_id);
        self.left.push(journal.origin.clone());
        self.out.close(Closed { stream: journal.origin.stream, why });
        self.note_read(last);
    }
}
