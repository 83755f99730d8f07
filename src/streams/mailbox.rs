//! A single-value mailbox from the saver to the intent log. A new value replaces the old one, so publishing never blocks.

use super::SavedPositions;
use crate::lock::lock;
use crate::waker::Waker;
use std::sync::{Arc, Mutex};

#[derive(Clone, Debug)]
pub struct Publisher {
    latest: Arc<Mutex<Option<SavedPositions>>>,
    waker: Waker,
}

#[derive(Debug)]
pub struct Mailbox {
    latest: Arc<Mutex<Option<SavedPositions>>>,
}

/// `waker` wakes the intent log's thread.
pub fn pair(waker: &Waker) -> (Publisher, Mailbox) {
    let latest = Arc::new(Mutex::new(None));
    (Publisher { latest: latest.clone(), waker: waker.clone() }, Mailbox { latest })
}

impl Publisher {
    pub fn publish(&self, positions: SavedPositions) {
        *lock(&self.latest) = Some(positions);
        self.waker.wake();
    }
}

impl Mailbox {
    pub fn take(&self) -> Option<SavedPositions> {
        lock(&self.latest).take()
    }
}
