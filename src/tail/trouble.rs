//! Handles a path that cannot be read: what to log, and when to give up.

use super::Tail;
use crate::error::too_few_descriptors;
use crate::report::Progress;
use crate::report::log_throttle::LogThrottle;
use log::{info, warn};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A file that was given up, or a rotated one that could not be opened, when a tail ended.
#[derive(Debug)]
pub struct Unread {
    pub path: PathBuf,
    pub why: io::Error,
}

/// The file system behind an open file is gone: the server no longer knows the handle, or the process behind a mount ended.
pub(super) fn is_cut_off(e: &io::Error) -> bool {
    e.raw_os_error().is_some_and(|n| n == libc::ESTALE || n == libc::ENOTCONN)
}

/// The current failure to read the path, if there is one.
#[derive(Default)]
pub(super) struct ReadFailure {
    /// As shown in the status.
    pub error: Option<String>,
    pub since: Option<Instant>,
    /// Whether `error` was logged.
    logged: bool,
    throttle: LogThrottle,
}

/// How soon to retry a file that could not be opened.
const RETRY_OPEN: Duration = Duration::from_secs(1);

impl Tail<'_> {
    /// Logs one line when a problem starts and one when it is over; throttled for a file with recurring problems.
    pub(super) fn trouble(&mut self, e: &io::Error) {
        let text = e.to_string();
        if self.failure.error.as_deref() != Some(&text) {
            if let Some(times) = self.failure.throttle.more(1, self.now) {
                let path = self.o.path.display();
                let again = if times > 1 { format!(" ({times} times recently)") } else { String::new() };
                let fix = too_few_descriptors(e).map_or(String::new(), |fix| format!("; {fix}"));
                warn!("{path}: cannot be read now: {text}{again}{fix}; keeping its position and retrying");
                self.failure.logged = true;
            }
            self.say("unreadable", Some(text.clone()));
            self.failure.error = Some(text);
        }
    }

    /// The file at the path cannot be opened; keep reading the rotated files.
    pub(super) fn path_cannot_be_opened(&mut self, e: &io::Error) {
        self.trouble(e);
        self.path_again = Some(self.now + RETRY_OPEN);
    }

    /// Call after each failure.
    pub(super) fn has_timed_out(&mut self) -> bool {
        let since = *self.failure.since.get_or_insert(self.now);
        self.o.give_up.is_some_and(|most| self.now.duration_since(since) >= most)
    }

    /// `--once`: a file that is not open at the end stays unread.
    pub(super) fn never_opened(&mut self) -> Option<Unread> {
        self.o.give_up?;
        let why = io::ErrorKind::PermissionDenied.into();
        self.denied.take().map(|path| Unread { path, why })
    }

    pub(super) fn readable_again(&mut self) {
        self.failure.since = None;
        if self.failure.error.take().is_some() {
            if std::mem::take(&mut self.failure.logged) {
                info!("{}: readable again", self.o.path.display());
            }
            self.say("following", None);
        }
    }

    pub(super) fn say(&self, state: &str, error: Option<String>) {
        let mut files = self.board.files();
        let file = files.entry(self.o.path.clone()).or_default();
        file.state = state.into();
        file.last_error = error;
        file.progress = self.progress();
    }

    /// Shows a file that was read to its end: its lines are unsent until they are acknowledged.
    pub(super) fn show_left(&self, progress: Arc<Progress>) {
        let mut files = self.board.files();
        let left = &mut files.entry(self.o.path.clone()).or_default().left;
        left.retain(|g| !g.is_done());
        left.push(progress);
    }

    /// Shows the current streams without changing their state.
    pub(super) fn show(&self) {
        self.board.files().entry(self.o.path.clone()).or_default().progress = self.progress();
    }
}
