//! Files for which no thread is available: shown like unreadable ones, checked occasionally, and retried.

use super::{Supervisor, source_of};
use crate::tail::{self, Start};
use crate::watch::Found;
use crossbeam_channel::{after, never};
use log::{debug, error, info};
use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// When a waiting file is retried, unless a tail ends before.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// Waiting files checked between two attempts.
const LOOKS: usize = 64;

/// A file that has no tail yet.
pub(super) struct Waiting {
    pub(super) found: Found,
    pub(super) start: Start,
    pub(super) new_pattern: bool,
    pub(super) since: (i64, u32),
    pub(super) found_at: Instant,
}

impl Supervisor<'_, '_> {
    /// Starts tails for as many waiting files as there are threads.
    pub fn retry_waiting(&mut self) {
        self.granted = 0; // the limits may have changed
        while let Some(file) = self.waiting.pop_front() {
            if let Err(why) = self.start_tail(&file) {
                self.waiting.push_front(file);
                self.refusal = why;
                self.retry = after(RETRY);
                self.look_at_waiting();
                return self.give_up_waiting();
            }
        }
        self.retry = never();
        if std::mem::take(&mut self.logged) {
            info!("every file has a thread again");
        }
    }

    /// A few at a time, round robin; not those on file systems that may hang (which produce no events).
    fn look_at_waiting(&mut self) {
        let from = if self.looked < self.waiting.len() { self.looked } else { 0 };
        for file in self.waiting.iter().skip(from).take(LOOKS).filter(|w| w.found.slot.hints.load(Relaxed)) {
            tail::look_again(&file.found.path, self.known, self.board);
        }
        self.looked = from + LOOKS;
    }

    /// With `--once`: gives up when no running tail could free a thread.
    fn give_up_waiting(&mut self) {
        if !self.once || !self.tails.is_empty() {
            return;
        }
        let hopeless = |w: &Waiting| {
            let most = source_of(&self.sources, &w.found.path).and_then(|p| p.tail.give_up);
            most.is_some_and(|most| w.found_at.elapsed() >= most)
        };
        let waiting = std::mem::take(&mut self.waiting);
        let (given_up, waiting): (VecDeque<_>, VecDeque<_>) = waiting.into_iter().partition(hopeless);
        self.waiting = waiting;
        for Waiting { found, .. } in given_up {
            let (path, why) = (found.path.display(), &self.refusal);
            error!("{path}: no thread is free to read it: {why}; it is not read (--once)");
            self.board.files().remove(&found.path);
            self.unread.push(found.path);
        }
        self.close_if_done();
    }

    /// Queues a file without a thread. It is shown like an unreadable one, and keeps its position.
    pub(super) fn wait(&mut self, file: Waiting) {
        let Some(options) = self.options_of(&file) else { return };
        {
            let mut files = self.board.files();
            let state = files.entry(file.found.path.clone()).or_default();
            state.topic = options.topic.to_string();
            (state.state, state.ended) = ("unreadable".into(), false);
            state.last_error = Some(format!("no thread is free to read it: {}", self.refusal));
        }
        match tail::reserve(&options, self.known, self.board) {
            Ok(reserved) => {
                if let (Some(out), Some((opened, closed))) =
                    (self.out.as_ref().filter(|_| self.saves), reserved)
                {
                    out.open(opened);
                    out.close(closed);
                }
            }
            Err(e) => debug!("{}: {e}", file.found.path.display()), // its tail will report it
        }
        self.waiting.push_back(file);
    }
}
