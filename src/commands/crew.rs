//! The watch and one tail for each file it finds, started and stopped together: what `run` and `tail` share. Knows neither
//! ship nor checkpoint.

use crate::chunk::{Parcel, SourceId};
use crate::error::Error;
use crate::report::Board;
use crate::stop;
use crate::tail::known::Known;
use crate::tail::{self, Start};
use crate::watch::pattern::Pattern;
use crate::watch::{self, Found, Remote, Sight, Watched};
use crossbeam_channel::{Receiver, Sender, bounded};
use log::{info, warn};
use std::collections::HashMap;
use std::convert::Infallible;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread::{Builder, Scope};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes of a tail's stack: the budget's memory is for lines.
const STACK: usize = 128 << 10;

/// A source: what to watch, and how to read what is found.
#[derive(Debug, Clone)]
pub struct Plan {
    pub watched: Watched,
    /// For every file, but for `path` and `start`.
    pub tail: tail::Options,
    /// Patterns that were known before: `start` does not apply to their files.
    pub known: Vec<Pattern>,
    pub must_exist: bool,
}

impl Plan {
    pub fn follows(&self, path: &Path) -> bool {
        self.watched.patterns.iter().any(|p| p.matches(path)) && !self.watched.exclude.matches(path)
    }
}

pub struct Crew<'s, 'e> {
    scope: &'s Scope<'s, 'e>,
    known: &'e Known,
    board: &'e Board,
    plans: Vec<Plan>,
    remote: Option<Remote>,
    pub sights: Receiver<Sight>,
    pub ends: Receiver<PathBuf>,
    ended: Sender<PathBuf>,
    tails: HashMap<PathBuf, stop::Handle>,
    out: Option<Sender<Parcel>>,
    /// Closes when every tail of the first walk has had its first look.
    pub sighted: Receiver<Infallible>,
    sighting: Option<Sender<Infallible>>,
    watching: bool,
    once: bool,
    /// Some file was found.
    met: bool,
    /// When this began.
    since: (i64, u32),
}

impl<'s, 'e> Crew<'s, 'e> {
    /// `expected`: paths with unread bytes of an earlier life.
    pub fn start(
        scope: &'s Scope<'s, 'e>,
        (known, board): (&'e Known, &'e Board),
        plans: Vec<Plan>,
        expected: Vec<PathBuf>,
        once: bool,
        out: Sender<Parcel>,
    ) -> Result<Self, Error> {
        let trouble =
            |e| Error::failed("start watching", e, "free descriptors or raise the limit (ulimit -n)");
        let (remote, ears) = watch::remote().map_err(trouble)?;
        let (sight_tx, sights) = bounded(64);
        #[allow(clippy::disallowed_methods)] // bounded by the tails that live
        let (ended, ends) = crossbeam_channel::unbounded();
        let (sighting, sighted) = bounded(0);
        let options = watch::Options {
            sources: plans.iter().map(|p| p.watched.clone()).collect(),
            expected,
            own: own_log(),
            once,
            beat: board.pulse.beat("watch"),
            longest: board.pulse.longest(),
        };
        let watch = Builder::new().name("watch".into()).stack_size(STACK * 2);
        watch.spawn_scoped(scope, move || watch::run(options, &ears, &sight_tx)).map_err(trouble)?;
        Ok(Crew {
            scope,
            known,
            board,
            plans,
            remote: Some(remote),
            sights,
            ends,
            ended,
            tails: HashMap::new(),
            out: Some(out),
            sighted,
            sighting: Some(sighting),
            watching: true,
            once,
            met: false,
            since: now(),
        })
    }

    /// Starts the tail of a file that was found.
    pub fn follow(&mut self, found: Found) -> Result<(), Error> {
        let (Some(out), Some(plan)) = (&self.out, self.plans.get(found.source.0 as usize)) else {
            return Ok(());
        };
        let new = self.sighting.is_some() && !plan.known.iter().any(|p| p.matches(&found.path));
        let options = tail::Options {
            start: if new { plan.tail.start } else { Start::Beginning },
            since: self.since,
            path: found.path.clone(),
            ..plan.tail.clone()
        };
        let (handle, stop) = stop::pair();
        let (known, board, out, ended) = (self.known, self.board, out.clone(), self.ended.clone());
        let sighted = self.sighting.clone().unwrap_or_else(|| bounded(0).0);
        let path = found.path.clone();
        let wake = tail::Wake { slot: found.slot, hints: found.hints };
        let name = found.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let thread = Builder::new().name(format!("tail {name}").replace('\0', "?")).stack_size(STACK);
        let spawned = thread.spawn_scoped(self.scope, move || {
            tail::run(options, known, board, &wake, out, sighted, &stop);
            drop(wake);
            let _ = ended.send(path);
        });
        spawned.map_err(|e| {
            Error::failed("start a thread", e, "raise the limit of threads (ulimit -u, TasksMax)")
        })?;
        self.tails.insert(found.path, handle);
        self.met = true;
        Ok(())
    }

    /// The first walk is done: every tail of it is started.
    pub fn walked(&mut self, missing: &[(SourceId, PathBuf)]) -> Result<(), Error> {
        self.sighting = None;
        for (source, path) in missing {
            let what = path.display();
            if self.plans.get(source.0 as usize).is_some_and(|p| p.must_exist) {
                let fix = "create it, or leave must_exist out";
                return Err(Error::failed(what, "there is no such file, and must_exist is set", fix));
            }
            match (path.is_dir(), self.once) {
                (true, _) => warn!(
                    "{what}: it is a folder, of which nothing is read; name its files, as in {what}/*.log"
                ),
                (_, true) => {
                    warn!("{what}: there is no such file, so nothing of it is read; correct the path")
                }
                (_, false) => info!("{what}: waiting for the file"),
            }
        }
        if self.once && missing.is_empty() && !self.met {
            warn!("no file matches, so nothing is read; correct the patterns");
        }
        Ok(())
    }

    /// The watch has ended (`--once`).
    pub fn blind(&mut self) {
        self.sights = crossbeam_channel::never();
        self.watching = false;
        self.close_if_done();
    }

    pub fn ended(&mut self, path: &Path) {
        self.tails.remove(path);
        if let Some(remote) = &self.remote {
            remote.ended(path);
        }
        self.close_if_done();
    }

    /// Ends the watch and all tails; the parcel channel closes with the last of them.
    pub fn stop(&mut self) {
        self.remote = None;
        self.tails.clear();
        self.out = None;
    }

    /// All patterns, as they are saved.
    pub fn patterns(&self) -> Vec<Vec<u8>> {
        self.plans.iter().flat_map(|p| p.watched.patterns.iter().map(|p| p.text.clone())).collect()
    }

    /// No tail lives, and none will come.
    pub fn is_closed(&self) -> bool {
        self.out.is_none()
    }

    pub fn files(&self) -> usize {
        self.tails.len()
    }

    fn close_if_done(&mut self) {
        if !self.watching && self.tails.is_empty() {
            self.out = None;
        }
    }
}

/// As the kernel stamps files, whose clock is a few milliseconds behind.
fn now() -> (i64, u32) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = now.saturating_sub(Duration::from_millis(20));
    (now.as_secs() as i64, now.subsec_nanos())
}

/// Device and inode of standard output and error, when they are files: following them would never end.
fn own_log() -> Vec<(u64, u64)> {
    let seen = |fd: std::os::fd::BorrowedFd<'_>| rustix::fs::fstat(fd).ok().map(|s| (s.st_dev, s.st_ino));
    [seen(std::io::stdout().as_fd()), seen(std::io::stderr().as_fd())].into_iter().flatten().collect()
}
