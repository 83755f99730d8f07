//! Pings systemd's watchdog while no thread misses its deadline ([`crate::heartbeat`]). When the pings stop, systemd
//! restarts the agent.

use crate::heartbeat::{Heartbeat, Heartbeats};
use crate::report::Board;
use crate::systemd::{self, Notify};
use crossbeam_channel::{Receiver, after, never};
use log::{error, info};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Watchdog {
    /// `None`: no watchdog is configured.
    every: Option<Duration>,
    /// The thread last reported as stuck.
    stuck: Option<String>,
}

impl Watchdog {
    /// Call before the stages start, because it limits their waits.
    pub fn from_env(heartbeats: &Heartbeats) -> Watchdog {
        let every = systemd::watchdog_interval();
        every.into_iter().for_each(|every| heartbeats.check_every(every));
        Watchdog { every, stuck: None }
    }

    /// Fires when the next check is due.
    pub fn next(&self) -> Receiver<Instant> {
        let Some(every) = self.every else { return never() };
        // Check often, so that a recovered thread is noticed before systemd restarts the agent.
        after(if self.stuck.is_some() { every / 10 } else { every })
    }

    /// Pings unless a thread is stuck; sends the status line with it.
    pub fn look(&mut self, board: &Board, notify: &Notify, status: impl FnOnce() -> String) {
        let now = Instant::now();
        // A restart does not help while a disk hangs.
        let hung = board.hung_write(now).is_some_and(|h| now.duration_since(h.since) < Heartbeat::SLOW);
        match board.heartbeats.overdue(now).filter(|_| !hung) {
            None => {
                if let Some(name) = self.stuck.take() {
                    info!("watchdog: thread {name} has recovered");
                }
                notify.watchdog();
                notify.status(&status());
            }
            Some((name, by)) => {
                if self.stuck.as_ref() != Some(&name) {
                    error!(
                        "watchdog: thread {name} is stuck, {by:.0?} overdue; if this persists, systemd restarts the agent"
                    );
                    self.stuck = Some(name);
                }
            }
        }
    }
}
