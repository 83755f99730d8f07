//! `logagent tail`: prints each line as it is appended, without saving or sending anything.

use super::{journals::Journals, options, supervisor::Supervisor};
use crate::budget::Budget;
use crate::chunk::Chunk;
use crate::cli;
use crate::config::{self, Overrides};
use crate::error::{Error, ExitCode};
use crate::handover::{self, Outlet};
use crate::report::Board;
use crate::signals;
use crate::streams::Saved;
use crate::sys;
use crate::tail::known::Known;
use crate::waker::Waker;
use crate::watch::WatchEvent;
use crossbeam_channel::select;
use std::io::{self, Write};
use std::sync::Arc;
use std::thread;

pub fn run(asked: cli::TailArgs) -> Result<ExitCode, Error> {
    sys::stdout_was_open().map_err(|e| Error::failed("standard output", e, "let something read it"))?;
    let signals = signals::start().map_err(Error::no_signals)?;
    let journal = asked.journal.then_some(asked.units);
    let overrides = Overrides { from: Some(asked.from), files: asked.files, journal, ..Overrides::default() };
    let config = config::load(&overrides)?;
    let (board, known) = (Board::default(), Known::default());
    let mut shares = options::Shares::of(&Arc::new(Budget::new(config.agent.memory)));
    let sources = options::sources(&config, &mut shares, |_| false);
    // Nothing here sleeps in poll(2), so this waker has no effect.
    let (out, chunks) = handover::chunks(64, &Waker::new().map_err(Error::no_eventfd)?);
    let out = Outlet::new(Arc::default(), out);
    let journals = options::journals(&config, &shares, |_| false);
    thread::scope(|scope| {
        let saved = Saved::default();
        let _journals = Journals::start(scope, &journals, &saved, (&known, &board), None, &out)?;
        let mut supervisor = Supervisor::start(scope, (&known, &board), sources, false, false, out)?;
        let mut stdout = io::stdout().lock();
        loop {
            select! {
                recv(supervisor.watch_events) -> s => match s {
                    Ok(WatchEvent::Found(f)) => supervisor.follow(f),
                    Ok(WatchEvent::Walked { missing }) => supervisor.walked(&missing)?,
                    Err(_) => supervisor.watch_ended(),
                },
                recv(supervisor.retry) -> _ => supervisor.retry_waiting(),
                recv(supervisor.ends) -> end => if let Ok(end) = end { supervisor.ended(end) },
                recv(chunks) -> chunk => if let Ok(chunk) = chunk {
                    match print(&mut stdout, &chunk) {
                        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                            return Err(Error::failed("standard output", "it was closed", "nothing is lost: start it again"));
                        }
                        done => done.map_err(|e| Error::failed("standard output", e, "give it room"))?,
                    }
                },
                recv(signals.inbox) -> _ => return Ok(ExitCode::Done),
            }
        }
    })
}

fn print(to: &mut impl Write, chunk: &Chunk) -> io::Result<()> {
    let mut page = Vec::with_capacity(chunk.bytes.len() + chunk.lines.len());
    for i in 0..chunk.lines.len() {
        page.extend_from_slice(chunk.line(i));
        page.push(b'\n');
    }
    to.write_all(&page)?;
    to.flush()
}
