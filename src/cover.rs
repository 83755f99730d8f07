//! What the saved `offsets` cover: the only arrow back, from checkpoint to ship's journal. One slot that holds the latest;
//! filling it never waits, and nobody needs to see every one.

use crate::chunk::{Range, StreamId};
use crossbeam_channel::{Receiver, Sender, bounded};
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
    bell: Sender<()>,
}

#[derive(Debug)]
pub struct Taker {
    slot: Arc<Mutex<Option<Cover>>>,
    /// One slot: a bell that finds it full is heard already.
    pub bell: Receiver<()>,
}

pub fn pair() -> (Giver, Taker) {
    let slot = Arc::new(Mutex::new(None));
    let (bell, heard) = bounded(1);
    (Giver { slot: slot.clone(), bell }, Taker { slot, bell: heard })
}

impl Giver {
    pub fn give(&self, cover: Cover) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(cover);
        let _ = self.bell.try_send(());
    }
}

impl Taker {
    pub fn take(&self) -> Option<Cover> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
