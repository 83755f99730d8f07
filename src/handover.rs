//! The interface from tails to the rest of the agent: they open and close streams in the registry and send chunks to
//! the producer over a bounded channel.

use crate::chunk::{Chunk, TailOutput};
use crate::stop::Stop;
use crate::streams::Registry;
use crate::waker::{Waker, Waking};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};
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

    /// Opens or closes a stream from outside a tail's thread.
    pub fn tell(&self, parcel: TailOutput) {
        match (&self.0, parcel) {
            (To::Agent { registry, .. }, TailOutput::Opened(opened)) => registry.open(opened),
            (To::Agent { registry, .. }, TailOutput::Closed(closed)) => registry.close(&closed),
            (_, parcel) => debug_assert!(false, "{parcel:?} can only be sent by a tail"),
        }
    }

    /// Opening and closing never block. Sending a chunk blocks while the channel is full.
    pub fn send(&self, parcel: TailOutput, stop: &Stop) -> Result<(), Stopped> {
        let (registry, chunks) = match &self.0 {
            To::Agent { registry, chunks } => (registry, chunks),
            #[cfg(test)]
            To::Recorder(to) => return to.send(parcel).map_err(|_| Stopped),
        };
        match parcel {
            TailOutput::Opened(opened) => registry.open(opened),
            TailOutput::Closed(closed) => registry.close(&closed),
            TailOutput::Chunk(chunk) => {
                match chunks.get().try_send(chunk) {
                    Err(TrySendError::Full(chunk)) => select! {
                        send(chunks.get(), chunk) -> sent => sent.map_err(|_| Stopped)?,
                        recv(stop.on()) -> _ => return Err(Stopped),
                    },
                    sent => sent.map_err(|_| Stopped)?,
                }
                chunks.wake();
            }
        }
        Ok(())
    }
}
