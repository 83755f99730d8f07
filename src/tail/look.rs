//! Looks at the path and at the open files, for [`super::follow::decide`].

use super::follow::{AtPath, Seen, Until};
use super::{Halt, IDLE, Tail, UNHURRIED, identity};
use crate::packed::{Packed, packing};
use std::time::{Duration, Instant, SystemTime};

impl Tail<'_> {
    /// How long to wait for the next look if nothing happens before.
    pub(super) fn between_looks(&self, hints: bool) -> Duration {
        // There are no events for a rotated file that was found by its name, nor for what is written through mmap(2).
        let without_events = self.open.iter().any(|o| o.found_by_name && o.links > 0 || o.nuls.is_some());
        let usual = match hints && !without_events {
            false => self.o.poll,
            true if self.is_steady() => IDLE,
            true => UNHURRIED,
        };
        let sooner = [self.look_again, self.path_again, self.absent_until()].into_iter().flatten().min();
        sooner.map_or(usual, |at| usual.min(at.saturating_duration_since(self.now)))
    }

    /// What is at the path, compared with the open files.
    pub(super) fn look_at_path(&mut self) -> Result<AtPath, Halt> {
        if self.o.until == Until::Read && self.undecided.is_none() && !self.expected_elsewhere {
            return Ok(AtPath::Unknown); // only what existed at the first look is read
        }
        if packing(&self.o.path) != Packed::Plain {
            return Ok(AtPath::Nothing); // it is read once
        }
        let live = self.open.iter().find(|o| o.live);
        let look = match identity::look_at(&self.o.path) {
            Ok(Some(look)) => look,
            Ok(None) => return Ok(AtPath::Nothing),
            // A transient error, or a folder that cannot be searched now: keep following the open file.
            Err(_) if live.is_some() => return Ok(AtPath::Unknown),
            Err(e) => return Err(e.into()),
        };
        if live.is_some_and(|l| l.identity == look.identity) {
            return Ok(AtPath::Live);
        }
        if live.is_some_and(|l| l.identity.ino == look.identity.ino) && self.follow_copy_up(&look)? {
            return Ok(AtPath::Live);
        }
        if !self.o.reopen && !self.open.is_empty() {
            return Ok(AtPath::Unknown);
        }
        let read_elsewhere = self.open.iter().any(|o| o.identity == look.identity)
            || self.known.is_read_elsewhere(&look.identity, &self.o.path);
        if read_elsewhere {
            self.undecided = None;
            // The other tail may still be looking for the stream, and find it elsewhere.
            self.expected_elsewhere &= !self.known.is_being_read(&look.identity, &self.o.path);
            self.known.unassigned(&self.o.path, false);
        }
        Ok(match (read_elsewhere, self.open.iter().any(|o| o.live)) {
            (false, _) => AtPath::Another,
            (true, true) => AtPath::Nothing,
            (true, false) => AtPath::Unknown,
        })
    }

    pub(super) fn look_at_open(&mut self, now: Instant) -> Result<Vec<Seen>, Halt> {
        let mut seen = Vec::with_capacity(self.open.len());
        let mut held = 0;
        let before = self.looks_at[1];
        self.looks_at = [before, SystemTime::now()];
        for open in &mut self.open {
            let mut truncated = false;
            if let Some(look) = open.look()? {
                let touched = look.modified != open.modified;
                truncated =
                    look.size < open.size || touched && look.size == open.searched && !open.unchanged()?;
                let was_empty = touched && look.size == 0;
                if open.live && (truncated || was_empty) && self.o.until == Until::Stopped {
                    self.copied_since.get_or_insert(before);
                }
                // If not handled now, the change must show up again at the next look.
                if !truncated {
                    open.saw(&look, now);
                }
            }
            let deleted = open.links == 0;
            if deleted {
                held += open.backlog();
            }
            let quiet = now.duration_since(open.changed);
            let progress = &open.origin.progress;
            if deleted
                && !progress.is_done()
                && let Some(slot) = self.known.slot(&self.o.path)
            {
                progress.awaited_by(slot);
            }
            seen.push(Seen {
                live: open.live,
                unread: open.unread(),
                owed: open.unread() && open.searched < open.owed,
                rest: open.rest(),
                rest_has_lines: open.rest_has_lines(),
                rest_owed: open.rest_owed(),
                truncated,
                deleted,
                acked: progress.is_done(),
                quiet,
                too_much: deleted
                    && open.backlog() > 0
                    && (held > self.o.deleted_hold.bytes || quiet > self.o.deleted_hold.time),
            });
        }
        Ok(seen)
    }
}
