//! Pings systemd's watchdog while all threads keep their promises (`heartbeat.rs`). Ends nothing: that is systemd's, when the
//! pings stay out.

use crate::heartbeat::Heartbeats;
use crate::systemd::{self, Notify};
use crossbeam_channel::{Receiver, after, never};
use log::{error, info};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Watchdog {
    /// `None`: nobody watches.
    every: Option<Duration>,
    /// The thread that was found stuck.
    stuck: Option<String>,
}

impl Watchdog {
    /// Before the stages begin: they learn how long they may wait at most.
    pub fn from_env(heartbeats: &Heartbeats) -> Watchdog {
        let every = systemd::watchdog_interval();
        every.into_iter().for_each(|every| heartbeats.check_every(every));
        Watchdog { every, stuck: None }
    }

    /// When to look next.
    pub fn next(&self) -> Receiver<Instant> {
        let Some(every) = self.every else { return never() };
        // One that comes back must not be restarted because nobody looked.
        after(if self.stuck.is_some() { every / 10 } else { every })
    }

    /// Pings, unless a thread is stuck, and says what is to be said with it.
    pub fn look(&mut self, heartbeats: &Heartbeats, notify: &Notify, status: impl FnOnce() -> String) {
        match heartbeats.overdue(Instant::now()) {
            None => {
                if let Some(name) = self.stuck.take() {
                    info!("watchdog: thread {name} is back");
                }
                notify.watchdog();
                notify.status(&status());
            }
            Some((name, by)) => {
                if self.stuck.as_ref() != Some(&name) {
                    error!(
                        "watchdog: thread {name} is stuck, {by:.0?} overdue; if that stays, systemd starts the agent again"
                    );
                    self.stuck = Some(name);
                }
            }
        }
    }
}
