//! File discovery and change notification: finds the files that match the patterns, and wakes a tail when its file
//! may have changed.
//!
//! One inotify instance serves all files (the kernel allows 128 per user). It watches the folders of the patterns for
//! names, and each followed file for its contents, so that other files in a folder cause no wake-ups. A wake fills
//! the tail's one-element channel and never blocks.
//!
//! Events are hints. After a lost event, a queue overflow, or where inotify does not work (network file systems,
//! exhausted watches), the tail's next check or the next walk comes later, and no line is lost. inotify alone was
//! rejected as a source of truth: it misses mounts, replaced parent folders and everything before the first watch.

pub mod glob;
pub mod pattern;
mod watches;

use crate::heartbeat::Heartbeat;
use crate::packed::{Packed, packing};
use crate::waker::poll_for;
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, unbounded};
use log::{info, warn};
use pattern::{Exclude, Pattern, Visitor};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};
use watches::{EventSupport, FileEvent, OfPath, Watches};

/// The paths that a source follows.
#[derive(Debug, Clone)]
pub struct Watched {
    pub patterns: Vec<Pattern>,
    pub exclude: Exclude,
    /// Poll instead of relying on events.
    pub poll: bool,
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
    pub slot: Receiver<()>,
    /// Whether inotify reports changes for this path.
    pub hints: Arc<AtomicBool>,
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

/// Controls the watch thread. Dropping it ends the thread.
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
    // The sender must not wait for a walk, because a walk waits until what it finds is received.
    #[allow(clippy::disallowed_methods, reason = "at most one for each tail, and one for each reload")]
    let (tx, rx) = unbounded();
    Ok((WatchHandle { control: Some(tx), wakeup: wakeup.clone() }, ControlInbox { control: rx, wakeup }))
}

/// Interval between walks of all patterns when no event asks for one.
const WALK: Duration = Duration::from_secs(30);
/// The same when some folder produces no events.
const WALK_BLIND: Duration = Duration::from_secs(1);
/// Pause between two reads of the event queue, per tail that the previous read woke, within limits. A wake-up costs
/// more than a line, and a thousand per second are enough.
const PER_WAKE: Duration = Duration::from_millis(1);
const TOGETHER: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(200));
/// The same after events for no followed path: a parent folder may be a busy one, such as `/tmp`.
const BESIDE: Duration = Duration::from_millis(50);
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
        w.gather(inbox);
        w.events();
        let now = Instant::now();
        if (w.dirty && now >= w.walked + CALM.max(w.walk_cost * 20)) || now >= w.next_walk {
            w.walk(false);
        }
    }
}

struct Slot {
    wake: Sender<()>,
    hints: Arc<AtomicBool>,
    watches: OfPath,
    /// The last component of the path is a symlink, so other names in its folder may change where it leads.
    link: bool,
    /// The file that the last walk found at the path.
    at_path: Option<FileKey>,
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
    /// When events were last read.
    events_read: Instant,
    /// Pause before events are read again.
    rest: Duration,
}

impl<'a> Watch<'a> {
    fn new(o: Options, out: &'a Sender<WatchEvent>) -> Self {
        let now = Instant::now();
        Watch {
            out,
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
            events_read: now,
            rest: Duration::ZERO,
        }
    }

    fn wait(&mut self, inbox: &ControlInbox) {
        let now = Instant::now();
        let at = if self.dirty { self.walked + CALM.max(self.walk_cost * 20) } else { self.next_walk };
        let left = at.min(self.next_walk).saturating_duration_since(now) + Duration::from_millis(1);
        let left = left.min(self.longest);
        let mut fds = vec![PollFd::new(&*inbox.wakeup, PollFlags::IN)];
        fds.extend(self.mounts.as_ref().map(|mounts| PollFd::new(mounts, PollFlags::PRI)));
        fds.extend(self.watches.fd().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        self.heartbeat.within(left);
        let _ = poll_for(&mut fds, Some(left));
        let mounted = self.mounts.is_some() && !fds[1].revents().is_empty();
        self.heartbeat.suspend(); // a restart would not help against a hanging file system
        let mut count = [0; 8];
        let _ = rustix::io::read(&*inbox.wakeup, &mut count);
        self.dirty |= mounted;
    }

    /// Coalesces events under load: 5,000 lines per second become 250 wake-ups of a tail instead of 5,000, and 200
    /// busy files cause a thousand. An event after a pause is passed on immediately.
    fn gather(&mut self, inbox: &ControlInbox) {
        let left = self.rest.saturating_sub(self.events_read.elapsed());
        if !left.is_zero() {
            let _ = poll_for(&mut [PollFd::new(&*inbox.wakeup, PollFlags::IN)], Some(left));
        }
        self.events_read = Instant::now();
    }

    fn events(&mut self) {
        let events = self.watches.read_events();
        let least = if events.is_empty() { BESIDE } else { TOGETHER.0 };
        let woken: u32 = events.into_iter().map(|event| self.event(event)).sum();
        self.rest = (PER_WAKE * woken).clamp(least, TOGETHER.1);
    }

    /// Returns how many tails were woken.
    fn event(&mut self, event: FileEvent) -> u32 {
        match event {
            FileEvent::Overflow => {
                self.dirty = true;
                self.slots.values().map(wake).sum()
            }
            FileEvent::Folder => {
                self.dirty = true;
                0
            }
            FileEvent::Files(paths) => paths.iter().filter_map(|p| self.slots.get(p)).map(wake).sum(),
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

    /// Walks all patterns. Keeps the watches of the folders it visits and drops the others.
    fn walk(&mut self, first: bool) {
        let start = Instant::now();
        self.dirty = false;
        self.walk += 1;
        self.blind = !self.watches.work();
        let sources = std::mem::take(&mut self.sources);
        for source in &sources {
            for pattern in &source.patterns {
                let (files, refused) = (Vec::new(), Vec::new());
                let mut met = Met { watches: &mut self.watches, blind: false, files, refused };
                pattern.walk(&mut met);
                let Met { blind, files, refused, .. } = met;
                self.blind |= blind;
                refused.into_iter().for_each(|(folder, why)| self.refuse(folder, &why));
                let is_literal = pattern.literal().is_some();
                for (path, m) in files.into_iter().filter(|(p, _)| !source.exclude.matches(p)) {
                    match packing(&path) {
                        Packed::Plain => self.meet(source.poll, path, &m),
                        Packed::Gzip => self.meet_packed(source.poll, path, &m),
                        Packed::Other => self.compressed(path, is_literal),
                    }
                }
            }
        }
        self.wake_missing();
        if first {
            self.meet_expected(&sources);
            let missing = self.missing(&sources);
            let _ = self.out.send(WatchEvent::Walked { missing });
        }
        self.sources = sources;
        self.packed.retain(|path, _| path.exists());
        self.watches.walked();
        self.walked = Instant::now();
        self.walk_cost = self.walked - start;
        self.next_walk = self.walked + if self.blind { WALK_BLIND } else { WALK };
    }

    /// Missing paths that still have unread bytes in rotated files.
    fn meet_expected(&mut self, sources: &[Watched]) {
        for path in std::mem::take(&mut self.expected) {
            if let Some(source) = sources.iter().find(|s| s.means(&path))
                && !self.slots.contains_key(&path)
            {
                self.found(source.poll, path, None);
            }
        }
    }

    fn missing(&mut self, sources: &[Watched]) -> Vec<PathBuf> {
        let literal = sources.iter().flat_map(|s| s.patterns.iter().filter_map(Pattern::literal));
        literal.filter(|path| !self.slots.contains_key(path) && !self.reported.contains_key(path)).collect()
    }

    fn replace_sources(&mut self, sources: Vec<Watched>, expected: Vec<PathBuf>) {
        (self.sources, self.expected) = (sources, expected);
        self.reported.clear();
        self.packed.clear();
        let paths: Vec<PathBuf> = self.slots.keys().cloned().collect();
        for path in paths {
            if let Some(slot) = self.slots.get(&path) {
                slot.hints.store(true, Relaxed);
            }
            self.watch_file(&path);
        }
        self.walk(true);
    }

    /// A walk found a file. If it differs from the last walk's, no event may have reported that: its folder was
    /// replaced, or mounted over.
    fn meet(&mut self, poll: bool, path: PathBuf, m: &fs::Metadata) {
        let at_path = Some(FileKey::of(m));
        if let Some(slot) = self.slots.get_mut(&path) {
            slot.walk = self.walk;
            if std::mem::replace(&mut slot.at_path, at_path) != at_path {
                self.look_at(&path);
            }
        } else if !m.is_file() {
            self.refuse(path, kind(m));
        } else if self.own.contains(&(m.dev(), m.ino())) {
            self.refuse(path, "is where this agent writes its own log");
        } else {
            self.found(poll, path, at_path);
        }
    }

    /// Wakes the tails of paths where the previous walk found a file and this one did not.
    fn wake_missing(&mut self) {
        for slot in self.slots.values_mut().filter(|s| s.walk != self.walk) {
            if slot.at_path.take().is_some() {
                wake(slot);
            }
        }
    }

    /// A compressed file is read once: its tail ends and is not started again for the same file.
    fn meet_packed(&mut self, poll: bool, path: PathBuf, m: &fs::Metadata) {
        let file = (m.dev(), m.ino(), m.mtime(), m.size());
        if self.slots.contains_key(&path) || self.packed.get(&path) != Some(&file) {
            self.packed.insert(path.clone(), file);
            self.meet(poll, path, m);
        }
    }

    /// Warns about a compressed file that was named literally; logs once that patterns skip such files.
    fn compressed(&mut self, path: PathBuf, is_literal: bool) {
        if is_literal {
            self.refuse(path, "is compressed in a form that is not read");
        } else if !std::mem::replace(&mut self.compressed_said, true) {
            let path = path.display();
            info!("{path}: is compressed in a form that is not read; all such files are left out");
        }
    }

    fn refuse(&mut self, path: PathBuf, why: &str) {
        if self.reported.get(&path).is_none_or(|s| s != why) {
            warn!("{}: {why}; it is not followed", path.display());
            self.reported.insert(path, why.into());
        }
    }

    fn found(&mut self, poll: bool, path: PathBuf, at_path: Option<FileKey>) {
        let (wake, slot) = bounded(1);
        let hints = Arc::new(AtomicBool::new(!poll));
        let link = fs::symlink_metadata(&path).is_ok_and(|m| m.is_symlink());
        let watches = OfPath::default();
        let entry = Slot { wake, hints: hints.clone(), watches, link, at_path, walk: self.walk };
        self.slots.insert(path.clone(), entry);
        if self.reported.remove(&path).is_some() {
            info!("{}: is a file now", path.display());
        }
        self.watch_file(&path);
        let _ = self.out.send(WatchEvent::Found(Found { path, slot, hints }));
    }

    /// Without events for the file, its tail polls.
    fn watch_file(&mut self, path: &Path) {
        let Some(slot) = self.slots.get_mut(path) else { return };
        let polled = self.sources.iter().find(|s| s.means(path)).is_some_and(|s| s.poll);
        if polled || self.watches.file(path, &mut slot.watches) == EventSupport::No {
            slot.hints.store(false, Relaxed);
        }
    }

    fn ended(&mut self, path: &Path) {
        let Some(slot) = self.slots.remove(path) else { return };
        self.watches.forget(path, slot.watches);
        self.dirty = true; // the path may exist again
    }
}

/// 1, or 0 if the channel is full (already woken) or closed (the tail is ending).
fn wake(slot: &Slot) -> u32 {
    slot.wake.try_send(()).is_ok().into()
}

fn kind(m: &fs::Metadata) -> &'static str {
    let t = m.file_type();
    if t.is_fifo() {
        "is a FIFO, not a regular file"
    } else if t.is_socket() {
        "is a socket, not a regular file"
    } else {
        "is a device, not a regular file"
    }
}

struct Met<'a> {
    watches: &'a mut Watches,
    /// Some folder cannot be watched.
    blind: bool,
    files: Vec<(PathBuf, fs::Metadata)>,
    /// Folders behind untrusted links, with the reason.
    refused: Vec<(PathBuf, String)>,
}

impl Visitor for Met<'_> {
    /// Watched before it is listed, so that names created in between are reported.
    fn folder(&mut self, path: &Path) {
        self.blind |= self.watches.folder(path) == EventSupport::No;
    }

    fn file(&mut self, path: PathBuf, m: fs::Metadata) {
        self.files.push((path, m));
    }

    fn refused(&mut self, folder: &Path, why: &io::Error) {
        self.refused.push((folder.into(), why.to_string()));
    }
}

#[cfg(test)]
mod tests;
