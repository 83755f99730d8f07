//! Starts and stops the watch thread and one tail per file it finds; shared by `run` and `tail`.

mod waiting;

use super::threads;
use crate::clock;
use crate::error::Error;
use crate::handover::Outlet;
use crate::packed::{Packed, packing};
use crate::report::Board;
use crate::report::log_throttle::LogThrottle;
use crate::stop;
use crate::tail::follow::Until;
use crate::tail::known::Known;
use crate::tail::{self, Followed, Start, TailChange, Unread};
use crate::wake_slot::WakeSlot;
use crate::watch::pattern::Pattern;
use crate::watch::{self, Found, WatchEvent, WatchHandle, Watched};
use crossbeam_channel::{Receiver, Sender, TrySendError, after, bounded, never};
use log::{error, info, warn};
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, Scope};
use std::time::Instant;
use waiting::{RETRY, Waiting};

/// Stack size of a tail in bytes; `memory` should mostly go to lines.
const STACK: usize = 128 << 10;

/// The path of a tail that ended, and what it could not read.
type TailExit = (PathBuf, Option<Unread>);

/// The options of a source: what to watch, and how to read the files found.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    pub watched: Watched,
    /// Options for every file, except `path` and `start`.
    pub tail: tail::TailOptions,
    /// Patterns known before: `start` does not apply to their files.
    pub known: Vec<Pattern>,
    pub must_exist: bool,
}

impl SourceOptions {
    pub fn follows(&self, path: &Path) -> bool {
        self.watched.means(path)
    }
}

pub struct Supervisor<'s, 'e> {
    scope: &'s Scope<'s, 'e>,
    known: &'e Known,
    board: &'e Board,
    sources: Vec<SourceOptions>,
    followed: Followed,
    watch_handle: Option<WatchHandle>,
    pub watch_events: Receiver<WatchEvent>,
    pub ends: Receiver<TailExit>,
    ended: Sender<TailExit>,
    tails: HashMap<PathBuf, TailHandle>,
    /// Found by the walk in progress. Their tails start together, so that each stream is assigned to one of them.
    found: Vec<Found>,
    /// Files for which no thread is available, in the order they were found.
    waiting: VecDeque<Waiting>,
    /// Fires when the waiting files should be retried.
    pub retry: Receiver<Instant>,
    /// Tails that may be started before the limits are checked again.
    granted: u64,
    /// How often a file found no thread, and whether that was logged.
    refusals: LogThrottle,
    logged: bool,
    /// Why the last one found none.
    refusal: String,
    /// Which of the waiting files is checked next.
    looked: usize,
    /// Positions are saved, so waiting files are registered with the registry.
    saves: bool,
    /// Read to the end (`follow = false`): not watched again until the sources change.
    done: Vec<PathBuf>,
    out: Option<Outlet>,
    /// Closes when every tail of the first walk has checked its file once.
    pub scanned: Receiver<Infallible>,
    scanning: Option<Sender<Infallible>>,
    watching: bool,
    once: bool,
    /// What was given up (`--once`).
    unread: Vec<PathBuf>,
    /// At least one file was found.
    met: bool,
    /// When these sources were configured.
    since: (i64, u32),
    /// The first walk of all is done.
    walked: bool,
}

/// Controls a running tail. Dropping it ends the tail.
struct TailHandle {
    _stop: stop::Handle,
    outdated: stop::Handle,
    changes: Sender<TailChange>,
    /// The tail's receiving end: a newer change replaces one not yet received.
    untaken: Receiver<TailChange>,
    // Dropped last, so that the tail sees the stop when it wakes up.
    woken: InterruptOnDrop,
}

struct InterruptOnDrop(Arc<WakeSlot>);

impl Drop for InterruptOnDrop {
    fn drop(&mut self) {
        self.0.interrupt();
    }
}

impl TailHandle {
    fn change(&mut self, options: tail::TailOptions) {
        let (handle, outdated) = stop::pair();
        let mut change = TailChange { options, outdated };
        while let Err(TrySendError::Full(again)) = self.changes.try_send(change) {
            let _ = self.untaken.try_recv();
            change = again;
        }
        self.outdated = handle; // dropping the previous handle ends a wait for the budget
        self.woken.0.interrupt();
    }
}

impl<'s, 'e> Supervisor<'s, 'e> {
    pub fn start(
        scope: &'s Scope<'s, 'e>,
        (known, board): (&'e Known, &'e Board),
        sources: Vec<SourceOptions>,
        once: bool,
        saves: bool,
        out: Outlet,
    ) -> Result<Self, Error> {
        let trouble = |e| Error::not_started("start watching", e);
        let (watch_handle, watch_inbox) = watch::channel().map_err(trouble)?;
        let (watch_event_tx, watch_events) = bounded(64);
        #[allow(clippy::disallowed_methods)] // bounded by the tails that live
        let (ended, ends) = crossbeam_channel::unbounded();
        let (scanning, scanned) = bounded(0);
        let options = watch::Options {
            sources: watched(&sources),
            expected: known.unread(),
            own: own_log(),
            once,
            heartbeat: board.heartbeats.register("watch"),
            longest: board.heartbeats.max_wait(),
        };
        let watch = Builder::new().name("watch".into()).stack_size(STACK * 2);
        watch
            .spawn_scoped(scope, move || watch::run(options, &watch_inbox, &watch_event_tx))
            .map_err(trouble)?;
        Ok(Supervisor {
            scope,
            known,
            board,
            followed: followed(&sources),
            sources,
            watch_handle: Some(watch_handle),
            watch_events,
            ends,
            ended,
            tails: HashMap::new(),
            found: Vec::new(),
            waiting: VecDeque::new(),
            retry: never(),
            granted: 0,
            refusals: LogThrottle::default(),
            logged: false,
            refusal: String::new(),
            looked: 0,
            saves,
            done: Vec::new(),
            out: Some(out),
            scanned,
            scanning: Some(scanning),
            watching: true,
            once,
            unread: Vec::new(),
            met: false,
            since: since(clock::now_ms()),
            walked: false,
        })
    }

    /// Applies new sources. Tails keep their open files, tails of paths that no source follows end, and newly found
    /// files belong to the first scan until [`Supervisor::scanned`] closes.
    pub fn change(&mut self, sources: Vec<SourceOptions>) {
        self.sources = sources;
        self.since = since(clock::now_ms());
        let (scanning, scanned) = bounded(0);
        (self.scanning, self.scanned) = (Some(scanning), scanned);
        if let Some(watch_handle) = &self.watch_handle {
            watch_handle.sources(watched(&self.sources), self.known.unread(), std::mem::take(&mut self.done));
        }
        self.followed = followed(&self.sources);
        let (sources, followed) = (&self.sources, &self.followed);
        self.tails.retain(|path, tail_handle| match source_of(sources, path) {
            Some(source) => {
                let followed = followed.clone();
                tail_handle.change(tail::TailOptions { path: path.clone(), followed, ..source.tail.clone() });
                true
            }
            None => {
                info!("{}: no longer followed", path.display());
                false
            }
        });
        let (board, watch_handle) = (self.board, &self.watch_handle);
        self.waiting.retain(|file| {
            let stays = source_of(sources, &file.found.path).is_some();
            if !stays {
                info!("{}: no longer followed", file.found.path.display());
                board.files().remove(&file.found.path);
                watch_handle.iter().for_each(|watch_handle| watch_handle.ended(&file.found.path));
            }
            stays
        });
    }

    /// Starts the tail of a file, or queues the file if no thread is available. During the first walk this is
    /// deferred to the end of the walk.
    pub fn follow(&mut self, found: Found) {
        match self.scanning {
            Some(_) => self.found.push(found),
            None => self.follow_all(vec![found]),
        }
    }

    /// All at once, because a tail must know the other tails before it claims a file.
    fn follow_all(&mut self, all: Vec<Found>) {
        self.known.settle(all.iter().map(|f| f.path.as_path()));
        all.iter().for_each(|found| self.known.join(&found.path, found.slot.clone()));
        all.into_iter().for_each(|found| self.follow_one(found));
    }

    fn follow_one(&mut self, found: Found) {
        if self.out.is_none() {
            return;
        }
        let Some(source) = source_of(&self.sources, &found.path) else {
            // Found for sources that have been replaced since.
            self.known.leave(&found.path);
            self.watch_handle.iter().for_each(|watch_handle| watch_handle.ended(&found.path));
            return;
        };
        let known = source.known.iter().any(|p| p.matches(&found.path));
        let new = self.scanning.is_some() && !known;
        let file = Waiting {
            found,
            start: if new { source.tail.start } else { Start::Beginning },
            new_pattern: new,
            // Files that appeared and were rotated away while no agent ran are new.
            since: if known { self.known.since } else { self.since },
            found_at: Instant::now(),
        };
        self.met = true;
        if self.waiting.is_empty()
            && let Err(why) = self.start_tail(&file)
        {
            if self.refusals.more(1, Instant::now()).is_some() {
                let path = file.found.path.display();
                warn!("{path}: no thread is free to read it: {why}; keeping its position and retrying");
                self.logged = true;
            }
            self.refusal = why;
            self.retry = after(RETRY);
            self.wait(file);
        } else if !self.waiting.is_empty() {
            self.wait(file); // in order, behind earlier files
        }
    }

    fn options_of(&self, file: &Waiting) -> Option<tail::TailOptions> {
        let source = source_of(&self.sources, &file.found.path)?;
        let (start, new_pattern, since) = (file.start, file.new_pattern, file.since);
        let (path, followed) = (file.found.path.clone(), self.followed.clone());
        Some(tail::TailOptions { start, new_pattern, since, path, followed, ..source.tail.clone() })
    }

    /// An error says why no thread is available.
    fn start_tail(&mut self, file: &Waiting) -> Result<(), String> {
        let (Some(out), Some(options)) = (&self.out, self.options_of(file)) else { return Ok(()) };
        if !self.tails.is_empty() {
            self.granted =
                threads::grant(self.granted).inspect_err(|_| self.known.leave(&file.found.path))?;
        }
        let ((handle, stop), (outdated, outdated_on)) = (stop::pair(), stop::pair());
        let (changes, untaken) = bounded(1);
        let (known, board, out, ended) = (self.known, self.board, out.clone(), self.ended.clone());
        let scanned = self.scanning.clone().unwrap_or_else(|| bounded(0).0);
        let path = file.found.path.clone();
        let slot = file.found.slot.clone();
        known.join(&path, slot.clone());
        let wake = tail::Wake { changes: untaken.clone(), slot: slot.clone() };
        let first = TailChange { options, outdated: outdated_on };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let thread = Builder::new().name(format!("tail {name}").replace('\0', "?")).stack_size(STACK);
        let spawned = thread.spawn_scoped(self.scope, move || {
            let unread = tail::run(first, known, board, &wake, out, scanned, &stop);
            drop(wake);
            let _ = ended.send((path, unread));
        });
        if let Err(e) = spawned {
            known.leave(&file.found.path);
            return Err(format!("{e}; raise the limit of threads (ulimit -u, TasksMax)"));
        }
        let tail_handle =
            TailHandle { _stop: handle, outdated, changes, untaken, woken: InterruptOnDrop(slot) };
        self.tails.insert(file.found.path.clone(), tail_handle);
        Ok(())
    }

    /// The first walk (of these sources) is done: starts all tails it found.
    pub fn walked(&mut self, missing: &[PathBuf]) -> Result<(), Error> {
        let found = std::mem::take(&mut self.found);
        self.follow_all(found);
        self.scanning = None;
        let first = !std::mem::replace(&mut self.walked, true);
        for path in missing {
            let what = path.display();
            if first && source_of(&self.sources, path).is_some_and(|p| p.must_exist) {
                let fix = "create it, or remove must_exist";
                return Err(Error::failed(what, "there is no such file, and must_exist is set", fix));
            }
            if fs::metadata(path).is_err_and(|e| e.kind() == ErrorKind::PermissionDenied) {
                continue; // its folder was reported
            }
            match (path.is_dir(), self.once) {
                (true, _) => warn!(
                    "{what}: it is a folder, so nothing in it is read; name its files, as in {what}/*.log"
                ),
                (_, true) => {
                    warn!("{what}: there is no such file, so nothing is read from it; correct the path")
                }
                (_, false) => info!("{what}: waiting for the file"),
            }
        }
        if !self.waiting.is_empty() {
            let (n, all) = (self.waiting.len(), self.files());
            warn!("{n} of {all} files are not read because no thread is free for them: {}", self.refusal);
        }
        if self.once && missing.is_empty() && !self.met && !self.sources.is_empty() {
            warn!("no file matches, so nothing is read; correct the patterns");
        }
        Ok(())
    }

    /// The watch thread has ended (`--once`).
    pub fn watch_ended(&mut self) {
        self.watch_events = crossbeam_channel::never();
        self.watching = false;
        self.close_if_done();
    }

    pub fn ended(&mut self, (path, unread): TailExit) {
        if let Some(Unread { path, why }) = unread {
            error!("{}: {why}; the rest of it is not read (--once)", path.display());
            self.unread.push(path);
        }
        self.tails.remove(&path);
        match &self.watch_handle {
            Some(_) if source_of(&self.sources, &path).is_some_and(|p| p.tail.until == Until::Read) => {
                self.done.push(path);
            }
            Some(watch_handle) => watch_handle.ended(&path),
            None => {}
        }
        if !self.waiting.is_empty() {
            self.retry_waiting();
        }
        self.close_if_done();
    }

    /// Ends the watch and all tails; the chunk channel closes with the last of them.
    pub fn stop(&mut self) {
        self.watch_handle = None;
        self.waiting.clear();
        self.retry = never();
        self.tails.clear();
        self.out = None;
    }

    /// An error names the files that were given up.
    pub fn verdict(&self) -> Result<(), Error> {
        let Some((first, others)) = self.unread.split_first() else { return Ok(()) };
        let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
        let fix = "let the agent's user read it, and run it again; everything read so far is delivered";
        Err(Error::failed(format_args!("{}{more}", first.display()), "could not be read", fix))
    }

    /// All patterns, as they are saved.
    pub fn patterns(&self) -> Vec<Vec<u8>> {
        self.sources.iter().flat_map(|p| p.watched.patterns.iter().map(|p| p.text.clone())).collect()
    }

    /// No tail is running, and none will be started.
    pub fn is_closed(&self) -> bool {
        self.out.is_none()
    }

    pub fn files(&self) -> usize {
        self.tails.len() + self.waiting.len()
    }

    fn close_if_done(&mut self) {
        if !self.watching && self.files() == 0 {
            self.out = None;
        }
    }
}

/// The source that a path belongs to.
fn source_of<'p>(sources: &'p [SourceOptions], path: &Path) -> Option<&'p SourceOptions> {
    sources.iter().find(|p| p.follows(path))
}

/// Whether any of the sources follows a path. Of compressed files, only a `.gz` is followed.
fn followed(sources: &[SourceOptions]) -> Followed {
    let sources = watched(sources);
    let by_pattern = sources.iter().flat_map(|s| &s.patterns).any(|p| p.literal().is_none());
    let means = move |path: &Path| packing(path) != Packed::Other && sources.iter().any(|s| s.means(path));
    Followed { means: Arc::new(means), by_pattern }
}

fn watched(sources: &[SourceOptions]) -> Vec<Watched> {
    sources.iter().map(|p| p.watched.clone()).collect()
}

/// Files created after this time are new, given a clock that shows `wall_ms`. The kernel's timestamps are a few
/// milliseconds behind the clock. With an unset clock no file is new; otherwise all files rotated earlier would be.
fn since(wall_ms: i64) -> (i64, u32) {
    if wall_ms < clock::EARLIEST_MS {
        return (i64::MAX, 0);
    }
    let ms = wall_ms - 20;
    (ms / 1000, (ms % 1000) as u32 * 1_000_000)
}

/// Device and inode of standard output and error if they are files: following them would never end.
fn own_log() -> Vec<(u64, u64)> {
    let seen = |fd: std::os::fd::BorrowedFd<'_>| rustix::fs::fstat(fd).ok().map(|s| (s.st_dev, s.st_ino));
    [seen(std::io::stdout().as_fd()), seen(std::io::stderr().as_fd())].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when an unset clock makes every rotated file new: they would be sent, whatever `start` says.
    #[test]
    fn new_files() {
        let set = clock::EARLIEST_MS + 1_234;
        assert_eq!(since(set), (clock::EARLIEST_MS / 1000 + 1, 214_000_000));
        let today = (clock::EARLIEST_MS / 1000, 0);
        assert!(since(5_000) > today, "to a machine in 1970, a file of today is new");
    }
}
