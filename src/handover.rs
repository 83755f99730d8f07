//! The tails' way out: streams are opened and closed in the registry, chunks go to the producer over a bounded channel.

use crate::chunk::{Chunk, TailOutput};
use crate::stop::Stop;
use crate::streams::Registry;
use crate::waker::{Waker, Waking};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};
use std::sync::Arc;

/// The chunks' channel as tails hold it: the producer, which sleeps in `poll(2)`, is woken for each chunk and when the last
/// tail has ended.
pub type Chunks = Waking<Sender<Chunk>>;

/// `capacity` chunks may wait.
pub fn chunks(capacity: usize, waker: &Waker) -> (Chunks, Receiver<Chunk>) {
    let (to, from) = bounded(capacity);
    (Waking::new(to, waker), from)
}

/// One tail's end.
#[derive(Clone, Debug)]
pub struct Outlet(To);

#[derive(Clone, Debug)]
enum To {
    Agent {
        registry: Arc<Registry>,
        chunks: Chunks,
    },
    /// A simulator takes everything in its order.
    #[cfg(test)]
    Recorder(Sender<TailOutput>),
}

/// The producer has ended, or the tail is to stop.
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

    /// An opening or a closing, outside a tail's thread.
    pub fn tell(&self, parcel: TailOutput) {
        match (&self.0, parcel) {
            (To::Agent { registry, .. }, TailOutput::Opened(opened)) => registry.open(opened),
            (To::Agent { registry, .. }, TailOutput::Closed(closed)) => registry.close(&closed),
            (_, parcel) => debug_assert!(false, "{parcel:?} is for a tail to send"),
        }
    }

    /// Opening and closing never wait; a chunk waits while the producer is busy.
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
