//! `logagent status`: shows the running agent's status, or the last saved one if no agent runs. Takes no lock and
//! contacts no broker.

mod shipped;

use crate::cli;
use crate::config;
use crate::error::{Error, ExitCode};
use crate::private_file;
use crate::report::live;
use crate::report::snapshot::{ExactlyOnce, File, Snapshot, StateStatus, StreamStatus, TotalsStatus, shown};
use crate::report::text;
use crate::signals::{self, Signal};
use crate::state::store::{self, FoundPositions};
use crate::streams::air::Header;
use crate::streams::{Saved, SavedStream};
use crate::tail::{identity, nuls};
use crossbeam_channel::{RecvTimeoutError, never};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The interval of `--watch`.
const EACH: Duration = Duration::from_secs(1);

pub fn run(asked: cli::StatusArgs) -> Result<ExitCode, Error> {
    let folder = state_folder(&asked)?;
    if let Some(file) = &asked.shipped {
        return shipped::run(&folder, file);
    }
    if asked.watch {
        return watch(&folder, asked.json);
    }
    show(&snapshot(&folder)?, asked.json, None)?;
    Ok(ExitCode::Done)
}

/// The folder given on the command line, otherwise the config's, otherwise the default.
fn state_folder(asked: &cli::StatusArgs) -> Result<PathBuf, Error> {
    if let Some(folder) = &asked.state_dir {
        return Ok(folder.clone());
    }
    config::state_dir(asked.config.as_deref())
}

/// The live status, or the saved one.
fn snapshot(folder: &Path) -> Result<Snapshot, Error> {
    match ask(folder)? {
        Some(snapshot) => Ok(snapshot),
        None => Ok(last_saved(folder, &saved(folder)?)),
    }
}

fn ask(folder: &Path) -> Result<Option<Snapshot>, Error> {
    live::ask(folder).map_err(|e| {
        let fix = match e.kind() {
            ErrorKind::PermissionDenied => "run it as root or as the agent's user",
            ErrorKind::TimedOut => "the agent is suspended, or the machine is overloaded; try again",
            _ => "try again; if it still fails, check the agent's log",
        };
        Error::failed(format_args!("ask the agent in {}", folder.display()), e, fix)
    })
}

/// The saved status of the folder. A missing folder or file is an error, because most likely the wrong folder was
/// named.
fn saved(folder: &Path) -> Result<Saved, Error> {
    let what = || format!("status from {}", folder.display());
    match store::look(folder)? {
        FoundPositions::Good(saved) => Ok(*saved),
        FoundPositions::Previous(saved, why) => {
            log::warn!("{}: {why}; this is {}", store::OFFSETS, store::PREVIOUS);
            Ok(*saved)
        }
        FoundPositions::Nothing => {
            let fix = "name the agent's folder with --state-dir, or its config with -c";
            Err(Error::failed(what(), "no agent runs there, and none has saved anything", fix))
        }
        FoundPositions::Neither { offsets, previous } => {
            let why = format!("{}: {offsets}; {}: {previous}", store::OFFSETS, store::PREVIOUS);
            Err(Error::config(what(), why, "see damaged_state in the config"))
        }
    }
}

/// For each path, the streams that were being read; if there are none, the one read last.
fn last_saved(folder: &Path, saved: &Saved) -> Snapshot {
    let mut paths: BTreeMap<&Path, Vec<&SavedStream>> = BTreeMap::new();
    for s in &saved.streams {
        paths.entry(&s.path).or_default().push(s);
    }
    let file = |(path, streams): (&Path, Vec<&SavedStream>)| {
        let unfinished: Vec<StreamStatus> =
            streams.iter().filter(|s| !s.finished).map(|s| stream(s)).collect();
        let last = streams.last().map(|s| stream(s));
        let state = if unfinished.is_empty() { "finished" } else { "not running" };
        let shown = if unfinished.is_empty() { last.into_iter().collect() } else { unfinished };
        File::with(path, "", state, shown)
    };
    let t = &saved.totals;
    // The last run's resends are in `air` even if they were not saved.
    let air = Header::of(&sent_marks_file(folder).unwrap_or_default());
    Snapshot {
        version: env!("CARGO_PKG_VERSION").into(),
        files: paths.into_iter().map(file).collect(),
        totals: TotalsStatus {
            read: t.read_lines,
            acked: t.acked_lines.saturating_sub(t.dead_lettered),
            dead_lettered: t.dead_lettered,
            doubled_at_most: t.again.max(air.again) + t.resent.max(air.resent),
            uncertain: t.uncertain,
            cut: t.cut_lines,
            lost_bytes: t.lost_bytes,
            lost_entries: t.lost_entries,
            damaged_entries: t.damaged_entries,
            retries: t.retries,
        },
        state: StateStatus { path: Some(shown(folder)), degraded: None, bytes_written: t.state_bytes },
        exactly_once: (t.flights_resent > 0).then(|| ExactlyOnce {
            resent: t.flights_resent,
            found_stored: t.flights_found,
            ..ExactlyOnce::default()
        }),
        ..Snapshot::default()
    }
}

fn sent_marks_file(folder: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    private_file::open_read(&folder.join("air"))?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// With the file's current size, without space for further lines, if the path still leads to it.
fn stream(s: &SavedStream) -> StreamStatus {
    let now = identity::look_at(&s.path).ok().flatten();
    let size = now.filter(|n| shipped::is_same(&n.identity, &s.identity)).map_or(s.size, |n| {
        let end = identity::open(&s.path).and_then(|(file, look)| nuls::end_of_lines(&file, look.size));
        end.unwrap_or(n.size) // this user may not read it
    });
    StreamStatus {
        stream: s.stream.0,
        identity: Some((&s.identity).into()),
        size: size.max(s.at.offset),
        framed: s.at.offset,
        acknowledged: s.at.offset,
        saved: s.at.offset,
    }
}

/// Once a second, until standard output is closed or a signal arrives.
fn watch(folder: &Path, json: bool) -> Result<ExitCode, Error> {
    let signals = signals::start().ok();
    let inbox = signals.as_ref().map_or_else(never, |s| s.inbox.clone());
    let mut before: Option<(Snapshot, Instant)> = None;
    loop {
        let (now, at) = (snapshot(folder), Instant::now());
        match now {
            Ok(now) => {
                let since = before.take();
                let rates = since.map(|(then, since)| text::rates(&then, &now, at.duration_since(since)));
                if !show(&now, json, Some(rates.unwrap_or_default()))? {
                    return Ok(ExitCode::Done);
                }
                before = Some((now, at));
            }
            // An agent that was there is likely to answer again.
            Err(e) if before.is_some() => log::error!("{e}"),
            Err(e) => return Err(e),
        }
        match inbox.recv_deadline(at + EACH) {
            Ok(Signal::Stop) => return Ok(ExitCode::Done),
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(ExitCode::Done),
        }
    }
}

/// Prints the status; `rates` with `--watch` only. Returns false when the output was closed.
fn show(snapshot: &Snapshot, json: bool, rates: Option<String>) -> Result<bool, Error> {
    let mut out = if json {
        let text = if rates.is_some() {
            serde_json::to_string(snapshot)
        } else {
            serde_json::to_string_pretty(snapshot)
        };
        text.map_err(|e| Error::failed("write the status as JSON", e, "report this defect"))? + "\n"
    } else {
        text::status(snapshot)
    };
    if let Some(rates) = rates.filter(|_| !json) {
        out = format!("{out}{rates}\n");
        if io::stdout().is_terminal() {
            out.insert_str(0, "\x1b[H\x1b[2J"); // home, and clear
        }
    }
    let mut stdout = io::stdout().lock();
    match stdout.write_all(out.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Error::failed("write to standard output", e, "let something read it")),
    }
}
