//! Waits for inotify events of a journal folder, the stop, or a deadline.
//!
//! journald writes through a memory map, which causes no events. For watchers, it truncates the file to its current
//! size 250 ms after the first entry (`journal_file_post_change`), which causes IN_MODIFY.

use crate::network_fs::is_network_fs;
use crate::waker::{Waker, poll_for};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init};
use rustix::io::Errno;
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// Interval between looks where events work: the longest delay after a lost event.
const UNHURRIED: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct FolderWatch {
    /// `None`: no events, so the folder is polled.
    events: Option<OwnedFd>,
    poll: Duration,
    /// Device and inode of the folder; `None`: there was none.
    of: Option<(u64, u64)>,
    /// The folder was removed. Another one may have its inode.
    ended: Cell<bool>,
}

impl FolderWatch {
    /// `poll`: how often to look where there are no events.
    pub fn new(folder: &Path, poll: Duration) -> FolderWatch {
        let of = device_and_inode(folder);
        let events = if is_network_fs(folder) { None } else { watch(folder).ok() };
        FolderWatch { events, poll, of, ended: Cell::new(false) }
    }

    /// Whether it watches the folder that has this name now. A removed or renamed folder may be created again.
    pub fn is_of(&self, folder: &Path) -> bool {
        !self.ended.get() && self.of == device_and_inode(folder)
    }

    /// For when there is no folder yet.
    pub fn nowhere(poll: Duration) -> FolderWatch {
        FolderWatch { events: None, poll, of: None, ended: Cell::new(false) }
    }

    /// Waits for a change, the waker, or the next scheduled look, but at most `most`. True: names may have changed.
    pub fn wait(&self, waker: &Waker, most: Option<Duration>) -> bool {
        let usual = if self.events.is_some() { UNHURRIED } else { self.poll };
        let time = most.map_or(usual, |most| most.min(usual));
        if waker.may_sleep() {
            let mut fds = vec![waker.poll_fd()];
            fds.extend(self.events.as_ref().map(|events| PollFd::new(events, PollFlags::IN)));
            match poll_for(&mut fds, Some(time)) {
                Ok(0) => return true,
                Ok(_) | Err(_) => waker.clear(),
            }
        }
        self.drain()
    }

    fn drain(&self) -> bool {
        let Some(events) = &self.events else { return true };
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(events, &mut space);
        let mut names = false;
        loop {
            match reader.next() {
                Ok(event) => {
                    names |= event.events() != ReadFlags::MODIFY;
                    self.ended.set(self.ended.get() || event.events().contains(ReadFlags::IGNORED));
                }
                Err(Errno::INTR) => {}
                Err(_) => return names, // no more
            }
        }
    }
}

fn device_and_inode(folder: &Path) -> Option<(u64, u64)> {
    folder.metadata().ok().map(|m| (m.dev(), m.ino()))
}

fn watch(folder: &Path) -> rustix::io::Result<OwnedFd> {
    let events = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let what = WatchFlags::MODIFY
        | WatchFlags::CREATE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF;
    add_watch(&events, folder, what)?;
    Ok(events)
}
