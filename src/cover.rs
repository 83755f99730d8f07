//! What the saved `offsets` cover: the only arrow back, from checkpoint to ship's journal. One slot that holds the latest;
//! filling it never waits, and nobody needs to see every one.

use crate::chunk::{Range, StreamId};
use crate::waker::Waker;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Per stream: acknowledged without a gap up to here, and ranges beyond it; as saved, and with `sync = "always"` synced.
#[derive(Clone, Debug, Default)]
pub struct Cover(pub HashMap<StreamId, (u64, Vec<Range>)>);

impl Cover {
    pub fn knows(&self, stream: StreamId) -> bool {
        self.0.contains_key(&stream)
    }

    /// All of the range is acknowledged. A stream that is not known any more was finished, and is forgotten.
    pub fn holds(&self, stream: StreamId, range: &Range) -> bool {
        let Some((at, beyond)) = self.0.get(&stream) else { return true };
        range.end <= *at || beyond.iter().any(|b| b.start <= range.start && range.end <= b.end)
    }
}

#[derive(Clone, Debug)]
pub struct Giver {
    slot: Arc<Mutex<Option<Cover>>>,
    waker: Waker,
}

#[derive(Debug)]
pub struct Taker {
    slot: Arc<Mutex<Option<Cover>>>,
}

/// `waker` wakes who takes.
pub fn pair(waker: &Waker) -> (Giver, Taker) {
    let slot = Arc::new(Mutex::new(None));
    (Giver { slot: slot.clone(), waker: waker.clone() }, Taker { slot })
}

impl Giver {
    pub fn give(&self, cover: Cover) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(cover);
        self.waker.wake();
    }
}

impl Taker {
    pub fn take(&self) -> Option<Cover> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
