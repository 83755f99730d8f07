//! File discovery and change notification: finds the files that match the patterns, and wakes a tail when its file
//! may have changed.
//!
//! Two inotify instances serve all files (the kernel allows 128 per user): one watches the folders of the patterns for
//! names, the other each followed file for its contents. So other files in a folder cause no wake-ups, and while writes
//! are gathered, which `linger` may ask for a second of, a rotation is still noticed at once. A wake never blocks. The
//! tails of a few busy files watch for writes themselves ([`crate::own_events`]).
//!
//! Events are hints. After a lost event, a queue overflow, or where inotify does not work (network file systems,
//! exhausted watches), the tail's next check or the next walk comes later, and no line is lost. inotify alone was
//! rejected as a source of truth: it misses mounts, replaced parent folders and everything before the first watch.

pub mod glob;
mod hung;
pub mod pattern;
mod walk;
mod watches;

use crate::heartbeat::Heartbeat;
use crate::pace::{self, ReadPace};
use crate::wake_slot::{Events, WakeSlot};
use crate::waker::poll_for;
use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use hung::RemoteFolders;
use pattern::{Exclude, Pattern};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};
use watches::{ContentEvents, EventSupport, FileEvent, OfPath, Watches};

/// The paths that a source follows.
#[derive(Debug, Clone)]
pub struct Watched {
    pub patterns: Vec<Pattern>,
    pub exclude: Exclude,
    /// Poll instead of relying on events.
    pub poll: bool,
    /// Lines may wait this long for more of them.
    pub linger: Duration,
}

impl Watched {
    /// Whether the source follows this path. A path belongs to the first source that does.
    pub fn means(&self, path: &Path) -> bool {
        self.patterns.iter().any(|p| p.matches(path)) && !self.exclude.matches(path)
    }
}

#[derive(Debug)]
pub struct Options {
    pub sources: Vec<Watched>,
    /// Paths with unread bytes from an earlier run: reported even if nothing exists there now.
    pub expected: Vec<PathBuf>,
    /// Device and inode of files that the agent itself writes; never followed.
    pub own: Vec<(u64, u64)>,
    /// End after the first walk.
    pub once: bool,
    pub heartbeat: Arc<Heartbeat>,
    /// Longest wait between two check-ins.
    pub longest: Duration,
}

/// A file to follow, with the receiving end of its wake channel. When its tail has ended, call
/// [`WatchHandle::ended`].
#[derive(Debug)]
pub struct Found {
    pub path: PathBuf,
    pub slot: Arc<WakeSlot>,
}

#[derive(Debug)]
pub enum WatchEvent {
    Found(Found),
    /// The first walk (of these sources) is done; nothing exists at these literal paths.
    Walked {
        missing: Vec<PathBuf>,
    },
}

#[derive(Debug)]
enum Control {
    Ended(PathBuf),
    Sources { sources: Vec<Watched>, expected: Vec<PathBuf>, ended: Vec<PathBuf> },
}

/// Controls the watch thread, which ends when this is dropped.
#[derive(Debug)]
pub struct WatchHandle {
    control: Option<Sender<Control>>,
    wakeup: Arc<OwnedFd>,
}

impl WatchHandle {
    /// The tail of this path has ended. If a file exists there (again), it is reported as found.
    pub fn ended(&self, path: &Path) {
        self.tell(Control::Ended(path.into()));
    }

    /// Replaces the sources. `ended` works as in [`WatchHandle::ended`]; it is part of the same message, because the
    /// thread may be waiting for the caller to receive what it found. Paths with a live tail are not reported again.
    /// Finishes with a [`WatchEvent::Walked`].
    pub fn sources(&self, sources: Vec<Watched>, expected: Vec<PathBuf>, ended: Vec<PathBuf>) {
        self.tell(Control::Sources { sources, expected, ended });
    }

    fn tell(&self, what: Control) {
        if let Some(to) = &self.control {
            let _ = to.send(what);
            wake_thread(&self.wakeup);
        }
    }
}

impl Drop for WatchHandle {
    fn drop(&mut self) {
        self.control.take();
        wake_thread(&self.wakeup);
    }
}

fn wake_thread(wakeup: &OwnedFd) {
    let _ = rustix::io::write(wakeup, &1u64.to_ne_bytes());
}

/// The watch thread's end of [`WatchHandle`].
#[derive(Debug)]
pub struct ControlInbox {
    control: Receiver<Control>,
    wakeup: Arc<OwnedFd>,
}

pub fn channel() -> io::Result<(WatchHandle, ControlInbox)> {
    let wakeup = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    // Unbounded: the sender must not wait for a walk, because a walk waits until its finds are received.
    #[allow(clippy::disallowed_methods, reason = "at most one per tail and one per reload")]
    let (tx, rx) = unbounded();
    Ok((WatchHandle { control: Some(tx), wakeup: wakeup.clone() }, ControlInbox { control: rx, wakeup }))
}

/// Interval between walks of all patterns when no event asks for one: how late a change is noticed that caused no event.
/// The unit's watchdog wakes the thread as often.
const WALK: Duration = Duration::from_secs(30);
/// The same when some folder produces no events.
const WALK_BLIND: Duration = Duration::from_secs(1);
/// Shortest interval between walks requested by events.
const CALM: Duration = Duration::from_millis(50);

pub fn run(options: Options, inbox: &ControlInbox, out: &Sender<WatchEvent>) {
    let mut w = Watch::new(options, out);
    w.walk(true);
    if w.once {
        return;
    }
    loop {
        w.wait(inbox);
        loop {
            match inbox.control.try_recv() {
                Ok(Control::Ended(path)) => w.ended(&path),
                Ok(Control::Sources { sources, expected, ended }) => {
                    ended.iter().for_each(|path| w.ended(path));
                    w.replace_sources(sources, expected);
                }
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => break,
            }
        }
        w.read_names();
        w.read_contents();
        let now = Instant::now();
        if (w.dirty && now >= w.walked + CALM.max(w.walk_cost * 20)) || now >= w.next_walk {
            w.walk(false);
        }
    }
}

struct Slot {
    wake: Arc<WakeSlot>,
    watches: OfPath,
    /// The last component of the path is a symlink, so other names in its folder may change where it leads.
    link: bool,
    /// The file that the last walk found at the path.
    at_path: Option<FileKey>,
    /// Its size, and when it was modified, in ns since 1970.
    state: (u64, i64),
    /// Number of the last walk that found a file there.
    walk: u64,
}

/// Identifies a file: device, inode, and the birth time where the file system has one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct FileKey(u64, u64, Option<SystemTime>);

impl FileKey {
    fn of(m: &fs::Metadata) -> FileKey {
        FileKey(m.dev(), m.ino(), m.created().ok())
    }
}

struct Watch<'a> {
    out: &'a Sender<WatchEvent>,
    sources: Vec<Watched>,
    expected: Vec<PathBuf>,
    own: Vec<(u64, u64)>,
    once: bool,
    heartbeat: Arc<Heartbeat>,
    longest: Duration,
    watches: Watches,
    /// `/proc/self/mountinfo`; poll(2) reports each change (proc_pid_mounts(5)). A mount over a folder produces no
    /// inotify event.
    mounts: Option<fs::File>,
    slots: BTreeMap<PathBuf, Slot>,
    /// Paths that were rejected or missing, with the message logged for each.
    reported: HashMap<PathBuf, String>,
    /// Compressed files found: device, inode, modification time in seconds since 1970, size.
    packed: HashMap<PathBuf, (u64, u64, i64, u64)>,
    /// Skipping compressed files has been logged.
    compressed_said: bool,
    dirty: bool,
    /// Number of the current or last walk.
    walk: u64,
    walked: Instant,
    walk_cost: Duration,
    next_walk: Instant,
    /// Some folder cannot be watched.
    blind: bool,
    remote: RemoteFolders,
    names: ReadPace,
    contents: ReadPace,
    /// How long writes are gathered before a tail is woken for them.
    delay: Duration,
}

impl<'a> Watch<'a> {
    fn new(o: Options, out: &'a Sender<WatchEvent>) -> Self {
        let now = Instant::now();
        Watch {
            out,
            delay: delay(&o.sources),
            sources: o.sources,
            expected: o.expected,
            own: o.own,
            once: o.once,
            heartbeat: o.heartbeat,
            longest: o.longest,
            watches: Watches::new(),
            mounts: fs::File::open("/proc/self/mountinfo").ok(),
            slots: BTreeMap::new(),
            reported: HashMap::new(),
            packed: HashMap::new(),
            compressed_said: false,
            dirty: false,
            walk: 0,
            walked: now,
            walk_cost: Duration::ZERO,
            next_walk: now,
            blind: false,
            remote: RemoteFolders::default(),
            names: ReadPace::new(now),
            contents: ReadPace::new(now),
        }
    }

    fn wait(&mut self, inbox: &ControlInbox) {
        let now = Instant::now();
        let walk = if self.dirty { self.walked + CALM.max(self.walk_cost * 20) } else { self.next_walk };
        let due = [self.names.due(), self.contents.due()].into_iter().flatten();
        let until = due.fold(walk.min(self.next_walk), Instant::min);
        let left = (until.saturating_duration_since(now) + Duration::from_millis(1)).min(self.longest);
        // A queue that is read at intervals is not polled.
        let names = self.watches.names_fd().filter(|_| self.names.due().is_none());
        let contents = self.watches.contents_fd().filter(|_| self.contents.due().is_none());
        let mounts = self.mounts.as_ref().map(|mounts| PollFd::new(mounts, PollFlags::PRI));
        let is_in = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let wakeup = PollFd::new(&*inbox.wakeup, PollFlags::IN);
        let fds = [Some(wakeup), mounts, names.map(is_in), contents.map(is_in)];
        let mut polled: Vec<PollFd<'_>> = fds.iter().flatten().cloned().collect();
        self.heartbeat.within(left);
        let known = poll_for(&mut polled, Some(left)).is_ok();
        if !known {
            // More descriptors than the limit allows: look at all of them once a second.
            let _ = poll_for(&mut polled[..1], Some(left.min(WALK_BLIND)));
        }
        self.heartbeat.suspend(); // a restart would not help against a hanging file system
        let mut polled = polled.iter();
        let ready =
            fds.map(|fd| fd.is_some() && polled.next().is_some_and(|p| !known || !p.revents().is_empty()));
        let [wakeup, mounted, names, contents] = ready;
        let now = Instant::now();
        if wakeup {
            let _ = rustix::io::read(&*inbox.wakeup, &mut [0; 8]);
        }
        self.dirty |= mounted;
        if names {
            self.names.readable(now, Duration::ZERO);
        }
        if contents {
            self.contents.readable(now, self.delay);
        }
    }

    /// Reads the queue of names if that is due.
    fn read_names(&mut self) {
        let now = Instant::now();
        if !self.names.is_due(now) {
            return;
        }
        let (had_events, events) = self.watches.read_names();
        let concerned = !events.is_empty();
        let woken: u32 = events.into_iter().map(|event| self.event(event)).sum();
        let pause = if concerned { pace::pause(woken) } else { pace::BESIDE };
        self.names.was_read(now, had_events, pause, Duration::ZERO);
        if concerned && self.contents.due().is_some() {
            self.contents.hurry(now); // before what a rotation does next
        }
    }

    /// Reads the queue of writes if that is due.
    fn read_contents(&mut self) {
        let now = Instant::now();
        if !self.contents.is_due(now) {
            return;
        }
        let (slots, noticed) = (&self.slots, self.contents.noticed());
        let (mut woken, mut claimed) = (0, Vec::new());
        let had_events = self.watches.read_contents(|path, only_modified| {
            if let Some(slot) = slots.get(path) {
                let wake = &slot.wake;
                woken += u32::from(if only_modified { wake.modified(noticed) } else { wake.look() });
                if wake.events() == Events::Claimed {
                    claimed.push(path.to_path_buf());
                }
            }
        });
        claimed.iter().for_each(|path| self.watch_file(path));
        if had_events == ContentEvents::Overflow {
            woken += self.wake_all();
        }
        let had_events = had_events != ContentEvents::None;
        self.contents.was_read(now, had_events, pace::pause(woken), self.delay);
    }

    fn wake_all(&self) -> u32 {
        self.slots.values().map(wake).sum()
    }

    /// Returns how many tails were woken.
    fn event(&mut self, event: FileEvent) -> u32 {
        match event {
            FileEvent::Overflow => {
                self.dirty = true;
                self.wake_all()
            }
            FileEvent::Folder => {
                self.dirty = true;
                0
            }
            FileEvent::Name(path) if self.slots.contains_key(&path) => self.look_at(&path),
            FileEvent::Name(path) => {
                self.dirty = true;
                let links = self.slots.iter().filter(|(p, s)| s.link && p.parent() == path.parent());
                let links: Vec<PathBuf> = links.map(|(p, _)| p.clone()).collect();
                links.iter().map(|path| self.look_at(path)).sum()
            }
        }
    }

    /// The path may now lead to another file.
    fn look_at(&mut self, path: &Path) -> u32 {
        self.watch_file(path);
        self.slots.get(path).map_or(0, wake)
    }

    fn replace_sources(&mut self, sources: Vec<Watched>, expected: Vec<PathBuf>) {
        self.delay = delay(&sources);
        (self.sources, self.expected) = (sources, expected);
        self.reported.clear();
        self.packed.clear();
        let paths: Vec<PathBuf> = self.slots.keys().cloned().collect();
        for path in paths {
            if let Some(slot) = self.slots.get(&path) {
                slot.wake.hints.store(true, Relaxed);
            }
            self.watch_file(&path);
        }
        self.walk(true);
    }

    /// Without events for the file, its tail polls.
    fn watch_file(&mut self, path: &Path) {
        let Some(slot) = self.slots.get_mut(path) else { return };
        let polled = self.sources.iter().find(|s| s.means(path)).is_some_and(|s| s.poll);
        let events = slot.wake.events();
        let writes = matches!(events, Events::Shared | Events::Returned);
        if polled || self.watches.file(path, &mut slot.watches, writes) == EventSupport::No {
            slot.wake.hints.store(false, Relaxed);
        }
        slot.wake.settle(events);
    }

    /// Does what the tail asked for about the events for writes.
    fn settle(&mut self, path: &Path) {
        let asked = |slot: &Slot| matches!(slot.wake.events(), Events::Claimed | Events::Returned);
        if self.slots.get(path).is_some_and(asked) {
            self.watch_file(path);
        }
    }

    fn ended(&mut self, path: &Path) {
        let Some(slot) = self.slots.remove(path) else { return };
        self.watches.forget(path, slot.watches);
        self.dirty = true; // the path may exist again
    }
}

/// How long writes are gathered: no longer than any source allows.
fn delay(sources: &[Watched]) -> Duration {
    pace::delay(sources.iter().map(|s| s.linger).min().unwrap_or_default())
}

/// 1, or 0 if its tail is already woken.
fn wake(slot: &Slot) -> u32 {
    slot.wake.look().into()
}

#[cfg(test)]
mod tests;
