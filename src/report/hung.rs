//! Notices that the disk of the state folder does not answer. The threads that write to it wait inside the kernel, so the status
//! looks when it is asked for, and a tail with each chunk.

use super::Board;
use super::log_throttle::LogThrottle;
use crate::lock::lock;
use log::{error, info};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A write that takes longer is reported.
const SLOW: Duration = Duration::from_secs(2);

/// What was logged about the disk.
#[derive(Debug, Default)]
pub struct HungReports {
    /// The last line said that it does not answer.
    open: AtomicBool,
    throttle: Mutex<LogThrottle>,
}

/// A write to the state folder that has not returned for more than 2 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HungWrite {
    pub since: Instant,
    /// Nothing is sent until it returns. Otherwise only positions are not saved.
    pub blocks: bool,
    effect: &'static str,
}

impl HungWrite {
    /// What this means, for status and log.
    pub fn why(self, now: Instant) -> String {
        let time = now.saturating_duration_since(self.since).as_secs();
        format!("the disk of the state folder has not answered for {time} s; {}", self.effect)
    }
}

impl Board {
    /// What it means that positions cannot be saved.
    pub fn effect_of_unsaved(&self) -> &'static str {
        match self.once.active.load(Relaxed) {
            // See the invariant in `exactly_once.rs`; also, `flights` has room for only so many batches.
            true => "exactly-once needs saved positions: new files wait now, all others when flights is full",
            false => {
                "delivery continues, but lines delivered from now on are sent again if the agent is killed"
            }
        }
    }

    pub fn hung_write(&self, now: Instant) -> Option<HungWrite> {
        let (writing, saving) = {
            let state = self.state();
            (state.writing, state.saving)
        };
        let marks = self.sent_marks.get().and_then(|marks| marks.writing());
        let late = |since: &Instant| now.saturating_duration_since(*since) > SLOW;
        let blocks = [writing, marks].into_iter().flatten().find(late);
        let hung =
            blocks.map(|since| HungWrite { since, blocks: true, effect: "nothing is sent until it does" });
        let unsaved = |since| HungWrite { since, blocks: false, effect: self.effect_of_unsaved() };
        hung.or(saving.filter(late).map(unsaved))
    }

    /// Logs that the disk does not answer, and that it does again; rarely, if that happens often.
    pub fn report_hung_write(&self, now: Instant) {
        let reports = &self.hung_reports;
        match self.hung_write(now) {
            Some(hung) if !reports.open.load(Relaxed) => {
                let is_due = lock(&reports.throttle).more(1, now).is_some();
                if is_due && !reports.open.swap(true, Relaxed) {
                    error!("{}; repair or replace it", hung.why(now));
                    self.alarm();
                }
            }
            None if reports.open.load(Relaxed) && reports.open.swap(false, Relaxed) => {
                info!("the disk of the state folder answers again");
                self.alarm();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A save hangs. Fails when exactly-once claims that delivery continues and lines will be doubled, or at-least-once
    /// does not.
    #[test]
    fn a_hanging_save_has_the_effect_of_a_failed_one() {
        let (board, start) = (Board::default(), Instant::now());
        board.state().saving = Some(start);
        let late = start + SLOW * 2;
        assert!(board.hung_write(late).unwrap().why(late).contains("delivery continues"));
        board.once.active.store(true, Relaxed);
        let why = board.hung_write(late).unwrap().why(late);
        assert!(why.contains("new files wait now") && !why.contains("delivery continues"), "{why}");
    }
}
