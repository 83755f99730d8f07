//! What delays the reading of a path: the rate limit, and room in the dead-letter file for lines that the broker may
//! refuse.

use super::options::TailOptions;
use crate::chunk::Chunk;
use crate::quota::{DeadLetterShare, Room};
use crate::report::Board;
use log::error;
use std::time::{Duration, Instant};

const LETTERS_FULL: &str =
    "its rejected lines fill its share of dead-letter in the state folder: move that file away";
/// How often to check whether a path's dead-letter share is still full.
const QUOTA_AGAIN: Duration = Duration::from_secs(5);
/// When a path's limit of unacknowledged bytes is reached: delay before the first check for room. At 2,000,000 lines/s the
/// remaining bytes last another 10 ms. In an outage the interval grows.
const ROOM_AGAIN: Duration = Duration::from_millis(4);

pub struct ReadLimits {
    /// `rate`: read nothing before this time.
    free_at: Instant,
    /// Space the last chunk would need in the dead-letter file; an estimate for the next one.
    letters: u64,
    /// Share of the lines under the current topic; `None` without a dead-letter file.
    share: Option<DeadLetterShare>,
    /// Consecutive looks without room in the dead-letter file; capped at 8, which makes the interval one second.
    looks: u32,
    /// The reason shown in the status.
    shown: Option<&'static str>,
}

impl ReadLimits {
    pub fn new(board: &Board, o: &TailOptions, now: Instant) -> ReadLimits {
        ReadLimits { free_at: now, letters: 0, share: share(board, o), looks: 0, shown: None }
    }

    /// The topic has changed.
    pub fn use_topic(&mut self, board: &Board, o: &TailOptions) {
        self.share = share(board, o);
    }

    /// How long reading must wait, and shows why.
    pub fn wait(&mut self, board: &Board, o: &TailOptions, now: Instant) -> Option<Duration> {
        let (wait, why) = match self.room(board, o, now) {
            None => (o.rate.map(|_| self.free_at.saturating_duration_since(now))?, Some("the rate limit")),
            Some(room) => room,
        };
        if wait.is_zero() {
            return None;
        }
        self.show(board, o, why);
        Some(wait)
    }

    /// How long to wait for room in the dead-letter file, in case a line of this path is refused, and what to show.
    fn room(
        &mut self,
        board: &Board,
        o: &TailOptions,
        now: Instant,
    ) -> Option<(Duration, Option<&'static str>)> {
        let (quota, share) = (board.quota.get()?, self.share.as_ref()?);
        match quota.room(share, self.letters, now) {
            Room::Enough => {
                self.looks = 0;
                None
            }
            Room::Later => {
                let wait = ROOM_AGAIN * (1 << self.looks);
                self.looks = (self.looks + 1).min(8);
                Some((wait, self.shown))
            }
            Room::Full => {
                if self.shown != Some(LETTERS_FULL) {
                    error!(
                        "{}: its rejected lines fill its share of {}: reading is paused until that file is moved away",
                        o.path.display(),
                        quota.file.display()
                    );
                }
                Some((QUOTA_AGAIN, Some(LETTERS_FULL)))
            }
        }
    }

    /// A read begins: nothing delays it.
    pub fn begin(&mut self, board: &Board, o: &TailOptions) {
        self.show(board, o, None);
    }

    /// These lines were read.
    pub fn spend(&mut self, chunk: &mut Chunk, o: &TailOptions, now: Instant) {
        if let Some(share) = &self.share {
            self.letters = chunk.reserve_letters(share);
        }
        if let Some(rate) = o.rate {
            let cost = Duration::from_secs_f64(chunk.bytes.len() as f64 / rate.max(1) as f64);
            self.free_at = self.free_at.max(now) + cost;
        }
    }

    /// Shows why reading is paused, whenever the reason changes.
    fn show(&mut self, board: &Board, o: &TailOptions, why: Option<&'static str>) {
        if std::mem::replace(&mut self.shown, why) != why
            && let Some(file) = board.files().get_mut(&o.path)
        {
            file.stuck = why.map(str::to_owned);
        }
    }
}

fn share(board: &Board, o: &TailOptions) -> Option<DeadLetterShare> {
    board.quota.get().map(|quota| quota.share(&o.path, &o.topic))
}
