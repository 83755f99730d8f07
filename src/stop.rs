//! A stop signal that every wait can select on. Dropping the handle is the signal: no message is sent and no flag is
//! polled.

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use std::convert::Infallible;

/// The waiting side; clones wait for the same handle.
#[derive(Clone, Debug)]
pub struct Stop(Receiver<Infallible>);

/// Dropping it stops all waiters.
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
