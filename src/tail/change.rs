//! A running tail goes on with other options, where it stands and with all that it has open. Decides nothing.

use super::follow::Until;
use super::{Options, Tail};
use crate::stop::Stop;

/// Other options for a running tail. It holds no more than one: a later one takes its place.
#[derive(Debug)]
pub struct Change {
    pub options: Options,
    /// On when the next change comes, or the end: nothing is waited for with options that no longer hold.
    pub outdated: Stop,
}

impl Options {
    pub(super) fn paced(mut self) -> Options {
        if let Some(rate) = self.rate {
            // A second's worth at a time.
            let second = usize::try_from(rate).unwrap_or(usize::MAX).max(4096);
            self.reading.chunk = self.reading.chunk.min(second);
        }
        self
    }
}

impl Tail<'_> {
    /// Goes on where it stands, with all that is open. Where it begins is as it was told first.
    pub(super) fn change(&mut self, change: Change) {
        let Options { start, since, first_sight, .. } = self.o;
        if change.options.topic != self.o.topic {
            self.letter_share = super::letter_share(self.board, &change.options);
        }
        self.o = Options { start, since, first_sight, ..change.options.paced() };
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
