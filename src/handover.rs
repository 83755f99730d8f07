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

/// The tails' side of the chunk channel. The producer sleeps in `poll(2)` and is woken for each chunk, and when the
/// last tail ends.
pub type Chunks = Waking<Sender<Chunk>>;

/// A channel with room for `capacity` chunks.
pub fn chunks(capacity: usize, waker: &Waker) -> (Chunks, Receiver<Chunk>) {
    let (to, from) = bounded(capacity);
    (Waking::new(to, waker), from)
}

/// One tail's sender.
#[derive(Clone, Debug)]
pub struct Outlet(To);

#[derive(Clone, Debug)]
enum To {
    Agent {
        registry: Arc<Registry>,
        chunks: Chunks,
    },
    /// The simulator receives everything in order.
    #[cfg(test)]
    Recorder(Sender<TailOutput>),
}

#[cfg(test)]
#[derive(Debug)]
pub enum TailOutput {
    Opened(Opened),
    Chunk(Chunk),
    Closed(Closed),
}

/// The producer has ended, or the tail should stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

impl Outlet {
    pub fn new(registry: Arc<Registry>, chunks: Chunks) -> Outlet {
        Outlet(To::Agent { registry, chunks })
    }

    #[cfg(test)]
    pub fn recorder(to: Sender<TailOutput>) -> Outlet {
        Outlet(To::Recorder(to))
    }

    /// Registers a stream as being read. Must be called before its first chunk is sent.
    pub fn open(&self, opened: Opened) {
        match &self.0 {
            To::Agent { registry, .. } => registry.open(opened),
            #[cfg(test)]
            To::Recorder(to) => to.send(TailOutput::Opened(opened)).expect("the simulator reads"),
        }
    }

    /// No more chunks of this stream will be sent.
    pub fn close(&self, closed: Closed) {
        match &self.0 {
            To::Agent { registry, .. } => registry.close(&closed),
            #[cfg(test)]
            To::Recorder(to) => to.send(TailOutput::Closed(closed)).expect("the simulator reads"),
        }
    }

    /// See [`Registry::lost_entries`].
    pub fn lost_entries(&self, entries: u64, gap: Option<(PathBuf, NumberGap)>) {
        match &self.0 {
            To::Agent { registry, .. } => registry.lost_entries(entries, gap),
            #[cfg(test)]
            To::Recorder(_) => {}
        }
    }

    /// Blocks while the channel is full.
    pub fn send(&self, chunk: Chunk, stop: &Stop) -> Result<(), Stopped> {
        let chunks = match &self.0 {
            To::Agent { registry, chunks } => {
                registry.grown();
                chunks
            }
            #[cfg(test)]
            To::Recorder(to) => return to.send(TailOutput::Chunk(chunk)).map_err(|_| Stopped),
        };
        match chunks.get().try_send(chunk) {
            Err(TrySendError::Full(chunk)) => select! {
                send(chunks.get(), chunk) -> sent => sent.map_err(|_| Stopped)?,
                recv(stop.on()) -> _ => return Err(Stopped),
            },
            sent => sent.map_err(|_| Stopped)?,
        }
        chunks.wake();
        Ok(())
    }
}
