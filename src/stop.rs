//! A stop that every wait can select on. Dropping the handle is the signal; nothing is ever sent, no flag is polled.

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use std::convert::Infallible;

/// The waiting side; a clone is another waiter of the same stop.
#[derive(Clone, Debug)]
pub struct Stop(Receiver<Infallible>);

/// Whoever holds it keeps the others running.
#[derive(Debug)]
pub struct Handle(#[allow(dead_code)] Sender<Infallible>);

pub fn pair() -> (Handle, Stop) {
    let (s, r) = bounded(0);
    (Handle(s), Stop(r))
}

impl Stop {
    /// For `select!`: ready (disconnected) once the handle is gone.
    pub fn on(&self) -> &Receiver<Infallible> {
        &self.0
    }

    pub fn is_on(&self) -> bool {
        matches!(self.0.try_recv(), Err(TryRecvError::Disconnected))
    }
}
