//! Keeps a batch from overtaking one that has just come back. Knows numbers only; sends nothing.
//!
//! Ship keeps several batches of a partition in the air. When one comes back unstored, those behind it may still be on
//! their way *to* the driver, sent before ship could hear of it. A broker that has forgotten the producer (it restarted,
//! or the leader changed uncleanly) would take such a batch for the first of its producer, whatever its sequence,
//! and the one that came back would count as stored. So from a failure on, batches of the partition come
//! back unsent, until one comes that has been back before (ship sends nothing until all are back, so it has heard), or
//! one with another producer id or epoch.

use crate::chunk::Topic;
use crate::ship::flight::{Batch, Numbers};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
pub struct Fences {
    all: Mutex<HashMap<(Topic, i32), Fence>>,
    /// How many there are, so that the usual case takes no lock.
    up: AtomicUsize,
}

#[derive(Debug)]
struct Fence {
    pid: i64,
    epoch: i16,
    /// First sequences of what has come back: at most what ship has in the air.
    back: Vec<i32>,
}

impl Fence {
    fn is_of(&self, n: Numbers) -> bool {
        (self.pid, self.epoch) == (n.pid, n.epoch)
    }
}

impl Fences {
    fn lock(&self) -> MutexGuard<'_, HashMap<(Topic, i32), Fence>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn any(&self) -> bool {
        self.up.load(SeqCst) > 0
    }

    /// This batch comes back and is not stored. To be called before ship can hear of it.
    pub fn raise(&self, batch: &Batch) {
        let Some(n) = batch.numbers else { return };
        let mut all = self.lock();
        let fence = all.entry((batch.load.topic.clone(), batch.partition)).or_insert_with(|| Fence {
            pid: n.pid,
            epoch: n.epoch,
            back: Vec::new(),
        });
        if !fence.is_of(n) {
            *fence = Fence { pid: n.pid, epoch: n.epoch, back: Vec::new() };
        }
        if !fence.back.contains(&n.base) {
            fence.back.push(n.base);
        }
        self.up.store(all.len(), SeqCst);
    }

    /// Whether the batch may go; if so, all behind it may.
    pub fn admit(&self, batch: &Batch) -> bool {
        let Some(n) = batch.numbers else { return true };
        let mut all = self.lock();
        let place = (batch.load.topic.clone(), batch.partition);
        let Some(fence) = all.get(&place) else { return true };
        if fence.is_of(n) && !fence.back.contains(&n.base) {
            return false;
        }
        all.remove(&place);
        self.up.store(all.len(), SeqCst);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::scripted::one;
    use super::*;

    /// Fails when a batch that was ordered too early passes, one that was sent again does not, or another partition or a
    /// new epoch is held up.
    #[test]
    fn only_what_was_back_before_passes() {
        let f = Fences::default();
        assert!(f.admit(&one(0, 20)) && !f.any());
        f.raise(&one(0, 0));
        f.raise(&one(0, 10));
        assert!(f.any() && !f.admit(&one(0, 20)), "ordered before ship could hear");
        assert!(f.admit(&one(1, 20)), "another partition");
        assert!(f.admit(&one(0, 0)) && !f.any());
        assert!(f.admit(&one(0, 10)) && f.admit(&one(0, 20)));
        f.raise(&one(0, 0));
        f.raise(&one(0, 20)); // it came too early, and came back
        assert!(f.admit(&one(0, 20)), "ship has settled what was before it by other means");
        f.raise(&one(0, 30));
        let mut bumped = one(0, 0);
        bumped.numbers.as_mut().unwrap().epoch = 1;
        assert!(f.admit(&bumped) && f.admit(&one(0, 40)));
    }
}
