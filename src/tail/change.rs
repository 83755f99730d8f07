//! Applies changed options to a running tail without closing its files or losing its position.

use super::follow::Until;
use super::{Tail, TailOptions};
use crate::stop::Stop;

/// New options for a running tail. At most one change is pending; a later one replaces it.
#[derive(Debug)]
pub struct TailChange {
    pub options: TailOptions,
    /// Set when the next change or the end comes, so that no wait continues under outdated options.
    pub outdated: Stop,
}

impl Tail<'_> {
    /// Continues at the current position with all open files. `start` keeps its first value.
    pub(super) fn change(&mut self, change: TailChange) {
        let TailOptions { start, since, new_pattern, .. } = self.o;
        if change.options.topic != self.o.topic {
            self.limits.use_topic(self.board, &change.options);
        }
        self.o = TailOptions { start, since, new_pattern, ..change.options.paced() };
        self.outdated = change.outdated;
        for open in &mut self.open {
            open.relabel(&self.o.topic, &self.o.shape);
            open.limit = if self.o.until == Until::Read { open.size } else { u64::MAX };
        }
        if let Some(file) = self.board.files().get_mut(&self.o.path) {
            file.topic = self.o.topic.to_string();
        }
    }
}
