//! The threads that follow systemd journals, one for each `[[journal]]`.

use super::options::JournalSourceOptions;
use crate::error::Error;
use crate::handover::Outlet;
use crate::journal::follow::{self, JournalContext};
use crate::report::Board;
use crate::stop;
use crate::streams::{Registry, Saved};
use crate::tail::known::Known;
use crate::waker::{Waker, Waking};
use crossbeam_channel::{Receiver, bounded};
use std::convert::Infallible;
use std::thread::{Builder, Scope};

/// Bytes of a thread's stack.
const STACK: usize = 256 << 10;

/// The running threads. Dropping it ends them.
pub struct Journals {
    #[allow(dead_code, reason = "held, not read")]
    handles: Vec<Waking<stop::Handle>>,
    /// Closes when every journal has opened the files that existed at the start, or cannot.
    pub looked: Receiver<Infallible>,
}

impl Journals {
    /// `registry` records which journals are known; `None` if nothing is saved.
    pub fn start<'s, 'e>(
        scope: &'s Scope<'s, 'e>,
        plans: &[JournalSourceOptions],
        saved: &Saved,
        (known, board): (&'e Known, &'e Board),
        registry: Option<&'e Registry>,
        out: &Outlet,
    ) -> Result<Journals, Error> {
        let mut handles = Vec::new();
        let (looking, looked) = bounded(0);
        for plan in plans {
            let waker = Waker::new().map_err(Error::no_eventfd)?;
            let (handle, stop) = stop::pair();
            handles.push(Waking::new(handle, &waker));
            let is_its = |s: &&crate::streams::SavedStream| {
                s.at.mark.seqnum().is_some() && plan.options.follows(&s.path)
            };
            let losses = saved.losses.iter().filter(|(folder, _)| plan.options.folders.contains(folder));
            let losses = losses.cloned().collect();
            let saved = saved.streams.iter().filter(is_its).cloned().collect();
            let (options, name, out) = (plan.options.clone(), plan.name.clone(), out.clone());
            let looking = looking.clone();
            let body = move || {
                let new_stream = || known.new_stream();
                let first_look_done = Box::new(move || {
                    if let Some(registry) = registry {
                        registry.pattern_known(name);
                    }
                });
                let context = JournalContext {
                    board,
                    new_stream: &new_stream,
                    saved,
                    losses,
                    first_look_done,
                    looking,
                };
                follow::run(options, context, out, &waker, &stop);
            };
            let thread = Builder::new().name("journal".into()).stack_size(STACK);
            thread.spawn_scoped(scope, body).map_err(|e| Error::no_thread("journal", e))?;
        }
        Ok(Journals { handles, looked })
    }
}
