//! Why a connection could not be opened or was lost, and how soon to try again.

use crate::backoff::{Backoff, Rng};
use crate::error::Reason;
use crate::kafka::protocol::wire::Malformed;
use std::fmt;
use std::io;
use std::time::Duration;

/// Why a connection could not be opened, or was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The next attempt may succeed.
    Lost(Reason),
    /// Closed by the peer between two answers, as brokers do with idle connections.
    Ended,
    /// The broker denies access: retry, but not often (accounts get locked).
    Denied(Reason),
    /// The peer accepts no more connections.
    Crowded(Reason),
    /// The broker is too old for this driver.
    Incompatible(Reason),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Lost(why)
            | Trouble::Denied(why)
            | Trouble::Crowded(why)
            | Trouble::Incompatible(why) => why.fmt(f),
            Trouble::Ended => f.write_str("closed by the broker"),
        }
    }
}

impl Trouble {
    pub fn into_reason(self) -> Reason {
        match self {
            Trouble::Lost(why)
            | Trouble::Denied(why)
            | Trouble::Crowded(why)
            | Trouble::Incompatible(why) => why,
            Trouble::Ended => self.to_string().into(),
        }
    }

    /// Pause before the next attempt: up to 0.1 s after the first failure, doubled up to 4 s, or up to a minute if the
    /// broker denies access or is crowded.
    pub fn pause(&self, failures: u32, rng: &mut Rng) -> Duration {
        const MINUTE: Duration = Duration::from_secs(60);
        let backoff = match self {
            // At least 5 s: accounts get locked.
            Trouble::Denied(_) => Backoff { first: Duration::from_secs(10), most: MINUTE },
            Trouble::Crowded(_) => Backoff { first: Backoff::QUICK.first * 2, most: MINUTE },
            _ => Backoff::QUICK,
        };
        backoff.pause(failures.saturating_add(1), rng)
    }
}

impl From<io::Error> for Trouble {
    fn from(e: io::Error) -> Self {
        // TLS wraps its own ones.
        Trouble::Lost(e.downcast().unwrap_or_else(|e| e.to_string().into()))
    }
}

impl From<rustix::io::Errno> for Trouble {
    fn from(e: rustix::io::Errno) -> Self {
        Trouble::Lost(e.to_string().into())
    }
}

impl From<Malformed> for Trouble {
    fn from(e: Malformed) -> Self {
        Trouble::Lost(e.to_string().into())
    }
}
