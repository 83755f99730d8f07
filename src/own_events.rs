//! A busy tail reads its events itself.
//!
//! `watch` serves all files with one inotify instance, so each of its wake-ups is followed by that of a tail. For a file
//! that is written to often, `watch` is a detour: the tail opens an instance of its own and asks `watch` to leave the
//! writes to it. That saves one of three wake-ups per line: at 100 lines per second, 2.3 context switches per line instead
//! of 3.5. One instance per file from the start was rejected: the kernel allows 128 per user, and most files are idle.

use crate::pace::{self, ReadPace};
use crate::record::Identity;
use crate::wake_slot::{Events, WakeReasons, WakeSlot};
use crate::waker::{Waker, poll_for};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init, remove_watch};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A file is busy after this many wake-ups for writes, each soon after the one before.
const BUSY: u32 = 16;
const SOON: Duration = Duration::from_millis(200);
/// It is idle after this long without one.
const IDLE: Duration = Duration::from_secs(60);
/// Number of tails that may have an instance.
const INSTANCES: usize = 4;
/// Time before the next attempt after one that failed.
const AGAIN: Duration = Duration::from_secs(60);
/// Interval between looks while a file cannot be watched and `watch` does not know that yet.
const BLIND: Duration = Duration::from_secs(1);

/// How many tails of this process have an instance: the kernel's limit is not per tail either.
static IN_USE: AtomicUsize = AtomicUsize::new(0);

/// One of a tail's open files.
pub type OpenFile<'f> = (&'f Identity, &'f File);

/// Waits for whatever wakes a tail.
#[derive(Debug)]
pub struct TailWait<'a> {
    slot: &'a WakeSlot,
    own: Option<OwnEvents>,
    /// Consecutive wake-ups for writes.
    frequent: u32,
    last: Instant,
    /// Try no sooner to watch the files.
    not_before: Instant,
}

impl<'a> TailWait<'a> {
    pub fn new(slot: &'a WakeSlot) -> TailWait<'a> {
        let now = Instant::now();
        TailWait { slot, own: None, frequent: 0, last: now, not_before: now }
    }

    /// Waits for a reason to look, at most `limit`, and takes all. `steady`: `files` is one file, at the followed path.
    /// `delay`: see [`pace::delay`].
    pub fn wait<'f>(
        &mut self,
        limit: Duration,
        files: impl Iterator<Item = OpenFile<'f>> + Clone,
        steady: bool,
        delay: Duration,
    ) -> WakeReasons {
        if let Some(own) = &self.own
            && self.slot.events() == Events::Shared
        {
            match steady {
                true => self.own = None,
                // Its renamed file is one that `watch` was asked to leave out.
                false => self.slot.claim_events(&own.waker),
            }
        }
        let Some(own) = &mut self.own else {
            let woken = self.slot.wait(limit);
            if steady {
                self.count(woken, files);
            }
            return woken;
        };
        let until_idle = IDLE.checked_sub(self.last.elapsed()).unwrap_or(IDLE);
        let mut most = limit.min(until_idle);
        match own.cover(files) {
            Ok(false) => {}
            Ok(true) => {
                self.slot.look(); // perhaps it was written to before it was watched
                return self.slot.take();
            }
            Err(_) => {
                self.slot.return_events();
                most = most.min(BLIND);
            }
        }
        let woken = own.wait(self.slot, most, delay);
        let now = Instant::now();
        if woken.modified.is_some() {
            self.last = now;
        } else if now.duration_since(self.last) >= IDLE && steady {
            self.slot.return_events();
        }
        woken
    }

    /// Counts this wake-up, and opens an instance if the file is busy.
    fn count<'f>(&mut self, woken: WakeReasons, files: impl Iterator<Item = OpenFile<'f>> + Clone) {
        let now = Instant::now();
        let soon = now.duration_since(self.last) < SOON;
        self.frequent = if soon && !woken.more_than_modified() { self.frequent + 1 } else { 0 };
        self.last = now;
        if self.frequent < BUSY || now < self.not_before {
            return;
        }
        match OwnEvents::new().and_then(|mut own| own.cover(files).map(|_| own)) {
            Ok(own) => {
                self.slot.claim_events(&own.waker);
                self.own = Some(own);
            }
            Err(_) => self.not_before = now + AGAIN,
        }
    }
}

/// A tail's inotify instance.
#[derive(Debug)]
struct OwnEvents {
    queue: OwnedFd,
    waker: Waker,
    watched: Vec<(Identity, i32)>,
    pace: ReadPace,
    _counted: Counted,
}

impl OwnEvents {
    fn new() -> io::Result<OwnEvents> {
        let counted = Counted::new()?;
        let queue = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let (waker, pace) = (Waker::new()?, ReadPace::new(Instant::now()));
        Ok(OwnEvents { queue, waker, watched: Vec::new(), pace, _counted: counted })
    }

    /// Watches these files and no others. Returns whether one of them was not watched before.
    fn cover<'f>(&mut self, files: impl Iterator<Item = OpenFile<'f>> + Clone) -> io::Result<bool> {
        let mut added = false;
        for (identity, file) in files.clone() {
            if !self.watched.iter().any(|(watched, _)| watched == identity) {
                // Its name may be another file's by now (proc_pid_fd(5)).
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                let watch = add_watch(&self.queue, path, WatchFlags::MODIFY)?;
                self.watched.push((identity.clone(), watch));
                added = true;
            }
        }
        if self.watched.len() > files.clone().count() {
            self.watched.retain(|(watched, watch)| {
                let open = files.clone().any(|(identity, _)| identity == watched);
                if !open {
                    let _ = remove_watch(&self.queue, *watch); // fails if it is gone with its file
                }
                open
            });
        }
        Ok(added)
    }

    fn wait(&mut self, slot: &WakeSlot, limit: Duration, delay: Duration) -> WakeReasons {
        let mut now = Instant::now();
        let end = now + limit;
        loop {
            self.waker.begin_round();
            if self.pace.is_due(now) {
                let noticed = self.pace.noticed();
                let written = self.drain();
                self.pace.was_read(now, written, pace::pause(1), delay);
                if written {
                    slot.modified(noticed);
                }
            }
            let reasons = slot.take();
            if reasons.any() || now >= end {
                return reasons;
            }
            let due = self.pace.due();
            if self.waker.may_sleep() {
                let mut fds = [self.waker.poll_fd(), PollFd::new(&self.queue, PollFlags::IN)];
                // A queue that is read at intervals is not polled.
                let polled = if due.is_some() { &mut fds[..1] } else { &mut fds[..] };
                let until = due.map_or(end, |due| due.min(end));
                let _ = poll_for(polled, Some(until.saturating_duration_since(now)));
                let [waker, queue] = fds.map(|fd| !fd.revents().is_empty());
                if waker {
                    self.waker.clear();
                }
                now = Instant::now();
                if queue {
                    self.pace.readable(now, delay);
                }
            }
        }
    }

    /// Reads the queue; returns whether there was anything in it. Equal events in a row are one, so the space suffices as
    /// a rule; what does not fit is left for the next read.
    fn drain(&self) -> bool {
        let mut space = [MaybeUninit::uninit(); 1024];
        let mut reader = Reader::new(&self.queue, &mut space);
        let mut any = false;
        while reader.next().is_ok() {
            any = true;
            if reader.is_buffer_empty() {
                break;
            }
        }
        any
    }
}

/// Counts one instance while it exists.
#[derive(Debug)]
struct Counted;

impl Counted {
    fn new() -> io::Result<Counted> {
        let more = |n: usize| (n < INSTANCES).then_some(n + 1);
        let counted = IN_USE.fetch_update(Relaxed, Relaxed, more);
        counted.map(|_| Counted).map_err(|_| io::ErrorKind::QuotaExceeded.into())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        IN_USE.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::thread;

    const SOON_ENOUGH: Duration = Duration::from_secs(20);

    fn identity(ino: u64) -> Identity {
        Identity { dev: 1, ino, born: None }
    }

    /// Fails when a busy tail does not watch its files, when an added or a late-written file goes unnoticed, or when an idle
    /// tail keeps its instance.
    #[test]
    fn a_tail_becomes_busy_and_idle() {
        let slot = WakeSlot::new(true);
        let mut waits = TailWait::new(&slot);
        let mut files: Vec<(Identity, File)> = vec![(identity(1), tempfile::tempfile().unwrap())];
        let wait = |waits: &mut TailWait<'_>, files: &[(Identity, File)], limit| {
            let open = files.iter().map(|(identity, file)| (identity, file));
            waits.wait(limit, open, files.len() == 1, Duration::ZERO)
        };
        for n in 0..BUSY {
            assert!(waits.own.is_none() && slot.events() == Events::Shared, "{n}");
            slot.modified(Instant::now());
            wait(&mut waits, &files, SOON_ENOUGH);
        }
        assert_eq!(slot.events(), Events::Claimed);
        slot.settle(Events::Claimed);
        files[0].1.write_all(b"x").unwrap();
        assert!(!wait(&mut waits, &files, SOON_ENOUGH).more_than_modified());
        slot.nudge();
        assert!(wait(&mut waits, &files, SOON_ENOUGH).nudged);
        files.push((identity(2), tempfile::tempfile().unwrap()));
        assert!(wait(&mut waits, &files, SOON_ENOUGH).look, "it may have been written to before");
        for i in [0, 1] {
            files[i].1.write_all(b"x").unwrap();
            assert!(!wait(&mut waits, &files, SOON_ENOUGH).more_than_modified(), "{i}");
        }
        files.remove(0);
        assert!(!wait(&mut waits, &files, Duration::ZERO).any());
        assert_eq!(waits.own.as_ref().unwrap().watched.len(), 1);
        waits.last -= IDLE;
        assert!(!wait(&mut waits, &files, Duration::ZERO).any());
        assert_eq!(slot.events(), Events::Returned);
        files[0].1.write_all(b"x").unwrap();
        assert!(!wait(&mut waits, &files, SOON_ENOUGH).more_than_modified(), "watch does not report it yet");
        slot.settle(Events::Returned);
        assert!(wait(&mut waits, &files, SOON_ENOUGH).look);
        assert!(waits.own.is_none() && slot.events() == Events::Shared);
    }

    /// Fails when a tail that `watch` takes the events from while it waits returns them once more: then nothing wakes it, and
    /// a rotation or a stop goes unnoticed for up to a minute.
    #[test]
    fn events_are_returned_once() {
        let slot = WakeSlot::new(true);
        let mut waits = TailWait::new(&slot);
        let file = (identity(1), tempfile::tempfile().unwrap());
        let open = || [(&file.0, &file.1)].into_iter();
        let now = Instant::now();
        waits.own = OwnEvents::new().ok();
        slot.claim_events(&waits.own.as_ref().unwrap().waker);
        waits.wait(Duration::ZERO, open(), true, Duration::ZERO); // it watches its file
        waits.last = now.checked_sub(IDLE).unwrap();
        waits.wait(Duration::ZERO, open(), true, Duration::ZERO);
        assert_eq!(slot.events(), Events::Returned);
        let later = |f: &(dyn Fn() + Sync), waits: &mut TailWait<'_>| {
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::park_timeout(Duration::from_millis(100));
                    f();
                });
                waits.wait(SOON_ENOUGH, open(), true, Duration::ZERO)
            })
        };
        assert!(later(&|| slot.settle(Events::Returned), &mut waits).look);
        assert_eq!(slot.events(), Events::Shared);
        assert!(later(&|| slot.nudge(), &mut waits).nudged);
        assert!(waits.own.is_none());
    }
}
