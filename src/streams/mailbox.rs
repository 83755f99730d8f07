//! A single-value mailbox from the saver to the journal. A new value replaces the old one, so publishing never blocks.

use super::SavedPositions;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Clone, Debug)]
pub struct Publisher {
    latest: Arc<Mutex<Option<SavedPositions>>>,
    bell: Sender<()>,
}

#[derive(Debug)]
pub struct Mailbox {
    latest: Arc<Mutex<Option<SavedPositions>>>,
    /// Holds at most one message: a value that replaces an unread one needs no second wake-up.
    pub bell: Receiver<()>,
}

pub fn pair() -> (Publisher, Mailbox) {
    let latest = Arc::new(Mutex::new(None));
    let (bell, rings) = bounded(1);
    (Publisher { latest: latest.clone(), bell }, Mailbox { latest, bell: rings })
}

impl Publisher {
    pub fn publish(&self, positions: SavedPositions) {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(positions);
        let _ = self.bell.try_send(());
    }
}

impl Mailbox {
    pub fn take(&self) -> Option<SavedPositions> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
