//! Shows a journal in the status: one entry per chain of files, like a followed log file.

use super::follow::Follower;
use crate::chunk::Origin;
use crate::report::FileState;
use log::{error, info};
use std::io;
use std::path::Path;
use std::sync::Arc;

impl Follower<'_> {
    /// Updates the entry of each chain.
    pub(super) fn show(&mut self) {
        self.left.retain(|origin| !origin.progress.is_done());
        let mut files = self.board.files();
        let of = |all: &mut dyn Iterator<Item = &Arc<Origin>>, path: &Path| {
            all.filter(|o| o.path == path).map(|o| o.progress.clone()).collect::<Vec<_>>()
        };
        let open: Vec<Arc<Origin>> = self.open.iter().map(|o| o.origin.clone()).collect();
        for origin in open.iter().chain(&self.left) {
            let state = files.entry(origin.path.clone()).or_default();
            state.progress = of(&mut open.iter(), &origin.path);
            state.left = of(&mut self.left.iter(), &origin.path);
            state.is_journal = true;
            state.state = "following".into();
            state.topic = self.o.topic.to_string();
        }
    }

    pub(super) fn show_waiting(&mut self) {
        let Some(folder) = self.o.folders.first() else { return };
        if self.error.is_none() {
            info!("{}: waiting for the journal", folder.display());
            self.error = Some(String::new());
        }
        let (state, topic) = ("waiting for the journal".into(), self.o.topic.to_string());
        let state = FileState { state, topic, ..FileState::default() };
        self.board.files().insert(folder.clone(), state);
    }

    pub(super) fn trouble(&mut self, e: &io::Error) {
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

    pub(super) fn well(&mut self) {
        if self.error.take().is_some() {
            let folders = self.o.folders.iter().chain(&self.folder);
            folders.for_each(|folder| drop(self.board.files().remove(folder)));
        }
    }
}
