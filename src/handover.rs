//! Where a tail hands its chunks to the producer: a bounded queue, and a wake-up for a producer that sleeps.

use crate::chunk::Parcel;
use crate::stop::Stop;
use crate::waker::{Waker, Waking};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};

/// The tails' end; the producer learns when the last clone is gone.
#[derive(Clone, Debug)]
pub struct Handover(Waking<Sender<Parcel>>);

/// Why a parcel was not handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The tail was stopped while the queue was full.
    Stopped,
    /// The queue is full ([`Handover::try_send`] alone), or the producer has ended.
    NoRoom,
}

/// `capacity` parcels may wait.
pub fn queue(capacity: usize, waker: &Waker) -> (Handover, Receiver<Parcel>) {
    let (to, from) = bounded(capacity);
    (Handover(Waking::new(to, waker)), from)
}

impl Handover {
    /// Waits while the queue is full: this is where a tail stands while the producer is busy.
    pub fn send(&self, parcel: Parcel, stop: &Stop) -> Result<(), Refused> {
        let to = self.0.get();
        match to.try_send(parcel) {
            Ok(()) => {}
            Err(TrySendError::Full(parcel)) => select! {
                send(to, parcel) -> sent => sent.map_err(|_| Refused::NoRoom)?,
                recv(stop.on()) -> _ => return Err(Refused::Stopped),
            },
            Err(TrySendError::Disconnected(_)) => return Err(Refused::NoRoom),
        }
        self.0.wake();
        Ok(())
    }

    /// Does not wait.
    pub fn try_send(&self, parcel: Parcel) -> Result<(), Refused> {
        self.0.get().try_send(parcel).map_err(|_| Refused::NoRoom)?;
        self.0.wake();
        Ok(())
    }

    /// Waits as long as it takes; for a thread that is not stopped by itself.
    pub fn send_anyway(&self, parcel: Parcel) -> Result<(), Refused> {
        self.0.get().send(parcel).map_err(|_| Refused::NoRoom)?;
        self.0.wake();
        Ok(())
    }
}
