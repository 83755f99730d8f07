//! The interface from tails to the rest of the agent: they open and close streams in the registry and send chunks to
//! the producer over a bounded channel.

use crate::chunk::Chunk;
use crate::record::Closed;
use crate::stop::Stop;
use crate::streams::{NumberGap, Opened, Registry};
use crate::waker::{Waker, Waking};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The tails' side of the chunk channel. The producer sleeps in `poll(2)` and is woken for each chunk, and when the
/// last tail ends.
pub type Chunks = Waking<Sender<Chunk>>;

/// A tail that waits longer for room in the channel looks once more why that may be.
const LATE: Duration = Duration::from_millis(2100);

/// A channel with room for `capacity` chunks.
pub fn chunks(capacity: usize, waker: &Waker) -> (Chunks, Receiver<Chunk>) {
    let (to, from) = bounded(capacity);
    (Waking::new(to, waker), from)
}

/// One tail's sender.
#[derive(Clone, Debug)]
pub struct Outlet {
    registry: Arc<Registry>,
    chunks: Chunks,
}

/// The producer has ended, or the tail should stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

impl Outlet {
    pub fn new(registry: Arc<Registry>, chunks: Chunks) -> Outlet {
        Outlet { registry, chunks }
    }

    /// Registers a stream as being read. Must be called before its first chunk is sent.
    pub fn open(&self, opened: Opened) {
        self.registry.open(opened);
    }

    /// No more chunks of this stream will be sent.
    pub fn close(&self, closed: Closed) {
        self.registry.close(&closed);
    }

    /// See [`Registry::lost_entries`].
    pub fn lost_entries(&self, entries: u64, gap: Option<(PathBuf, NumberGap)>) {
        self.registry.lost_entries(entries, gap);
    }

    /// Blocks while the channel is full. Calls `look` first, and again if it has waited for [`LATE`].
    pub fn send(&self, chunk: Chunk, stop: &Stop, look: &dyn Fn()) -> Result<(), Stopped> {
        look();
        self.registry.grown();
        let chunks = self.chunks.get();
        match chunks.try_send(chunk) {
            Err(TrySendError::Full(chunk)) => {
                let mut wait = LATE;
                loop {
                    select! {
                        send(chunks, chunk) -> sent => break sent.map_err(|_| Stopped)?,
                        recv(stop.on()) -> _ => return Err(Stopped),
                        default(wait) => look(),
                    }
                    wait = Duration::from_secs(3600);
                }
            }
            sent => sent.map_err(|_| Stopped)?,
        }
        self.chunks.wake();
        Ok(())
    }
}
