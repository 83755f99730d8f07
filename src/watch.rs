//! inotify and discovery: which files there are, and a wake for the tail of a file that may have changed. Opens no file,
//! reads nothing, starts nothing.
//!
//! One inotify instance for all (the kernel allows 128 per user). It watches the folders of the patterns, for names that
//! come and go, and each followed file, for its contents: a folder's other files make no wake-up. A wake is a full slot
//! and never waits. Events are hints: after a lost one, a full queue, or where inotify does not work, the next look of
//! the tail or the next walk comes later, and no line is lost.

pub mod pattern;

use crate::pulse::Beat;
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use log::{info, warn};
use pattern::{Exclude, Pattern, Visitor};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// What a source follows.
#[derive(Debug, Clone)]
pub struct Watched {
    pub patterns: Vec<Pattern>,
    pub exclude: Exclude,
    /// Events are not wanted: look again and again.
    pub poll: bool,
}

impl Watched {
    /// A path belongs to the first source that means it.
    pub fn means(&self, path: &Path) -> bool {
        self.patterns.iter().any(|p| p.matches(path)) && !self.exclude.matches(path)
    }
}

#[derive(Debug)]
pub struct Options {
    pub sources: Vec<Watched>,
    /// Paths with unread bytes of an earlier life: told of even when nothing is there now.
    pub expected: Vec<PathBuf>,
    /// Device and inode of files that the agent itself writes: never followed.
    pub own: Vec<(u64, u64)>,
    /// End after the first walk.
    pub once: bool,
    pub beat: Arc<Beat>,
    /// Longest wait between two beats.
    pub longest: Duration,
}

/// A file to follow. The slot was made here and travels with the find; whoever drops it says so by [`Remote::ended`].
#[derive(Debug)]
pub struct Found {
    pub path: PathBuf,
    pub slot: Receiver<()>,
    /// Whether events come for this path.
    pub hints: Arc<AtomicBool>,
}

#[derive(Debug)]
pub enum Sight {
    Found(Found),
    /// The first walk (of these sources) is done; these literal paths lead to nothing.
    Walked {
        missing: Vec<PathBuf>,
    },
}

#[derive(Debug)]
enum Control {
    Ended(PathBuf),
    Sources { sources: Vec<Watched>, expected: Vec<PathBuf>, ended: Vec<PathBuf> },
}

/// How the others speak to the thread. Dropping it ends the thread.
#[derive(Debug)]
pub struct Remote {
    control: Option<Sender<Control>>,
    bell: Arc<OwnedFd>,
}

impl Remote {
    /// The tail of this path has ended. If something is there (again), it is told as found.
    pub fn ended(&self, path: &Path) {
        self.tell(Control::Ended(path.into()));
    }

    /// Look for these from now on; `ended` as by [`Remote::ended`], all in one message, for the thread may wait for the
    /// caller to take what it found. Paths whose tails live are not told again; ends with a [`Sight::Walked`].
    pub fn sources(&self, sources: Vec<Watched>, expected: Vec<PathBuf>, ended: Vec<PathBuf>) {
        self.tell(Control::Sources { sources, expected, ended });
    }

    fn tell(&self, what: Control) {
        if let Some(to) = &self.control {
            let _ = to.send(what);
            ring(&self.bell);
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.control.take();
        ring(&self.bell);
    }
}

fn ring(bell: &OwnedFd) {
    let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
}

/// The thread's side of [`Remote`].
#[derive(Debug)]
pub struct Ears {
    control: Receiver<Control>,
    bell: Arc<OwnedFd>,
}

pub fn remote() -> io::Result<(Remote, Ears)> {
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (tx, rx) = bounded(256);
    Ok((Remote { control: Some(tx), bell: bell.clone() }, Ears { control: rx, bell }))
}

/// Between two walks of all patterns when no event asks for one.
const WALK: Duration = Duration::from_secs(30);
/// The same where events do not come for some folder.
const WALK_BLIND: Duration = Duration::from_secs(1);
/// Between two readings of events.
const TOGETHER: Duration = Duration::from_millis(2);
/// Between two walks that events ask for.
const CALM: Duration = Duration::from_millis(50);
/// Inodes that are watched for one path: the live file and some rotated ones.
const WATCHES_PER_PATH: usize = 10;

pub fn run(options: Options, ears: &Ears, out: &Sender<Sight>) {
    let mut w = Watch::new(options, out);
    w.walk(true);
    if w.once {
        return;
    }
    let mut buffer = vec![0; 16 * 1024];
    loop {
        w.wait(ears);
        loop {
            match ears.control.try_recv() {
                Ok(Control::Ended(path)) => w.ended(&path),
                Ok(Control::Sources { sources, expected, ended }) => {
                    ended.iter().for_each(|path| w.ended(path));
                    w.take_up(sources, expected);
                }
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => break,
            }
        }
        w.gather(ears);
        w.events(&mut buffer);
        let now = Instant::now();
        if (w.dirty && now >= w.walked + CALM.max(w.walk_cost * 20)) || now >= w.next_walk {
            w.walk(false);
        }
    }
}

struct Slot {
    wake: Sender<()>,
    hints: Arc<AtomicBool>,
    watches: VecDeque<WatchDescriptor>,
    /// A link in the path's last part: other names in its folder may change where it leads.
    link: bool,
}

struct Watch<'a> {
    out: &'a Sender<Sight>,
    sources: Vec<Watched>,
    expected: Vec<PathBuf>,
    own: Vec<(u64, u64)>,
    once: bool,
    beat: Arc<Beat>,
    longest: Duration,
    inotify: Option<Inotify>,
    /// How watches are added and removed, also while events are being read.
    watches: Option<Watches>,
    folders: HashMap<WatchDescriptor, PathBuf>,
    files: HashMap<WatchDescriptor, Vec<PathBuf>>,
    slots: BTreeMap<PathBuf, Slot>,
    /// Paths that were refused or found missing, with what was said about them.
    said: HashMap<PathBuf, String>,
    dirty: bool,
    walked: Instant,
    walk_cost: Duration,
    next_walk: Instant,
    /// Some folder cannot be watched.
    blind: bool,
    limits_said: bool,
    /// Events were last read.
    heard: Instant,
}

impl<'a> Watch<'a> {
    fn new(o: Options, out: &'a Sender<Sight>) -> Self {
        let now = Instant::now();
        let mut w = Watch {
            out,
            sources: o.sources,
            expected: o.expected,
            own: o.own,
            once: o.once,
            beat: o.beat,
            longest: o.longest,
            inotify: None,
            watches: None,
            folders: HashMap::new(),
            files: HashMap::new(),
            slots: BTreeMap::new(),
            said: HashMap::new(),
            dirty: false,
            walked: now,
            walk_cost: Duration::ZERO,
            next_walk: now,
            blind: false,
            limits_said: false,
            heard: now,
        };
        match Inotify::init() {
            Ok(i) => {
                w.watches = Some(i.watches());
                w.inotify = Some(i);
            }
            Err(e) => w.limit("inotify", &e, "fs.inotify.max_user_instances"),
        }
        w
    }

    /// One line, whatever number of watches fail.
    fn limit(&mut self, what: &str, e: &io::Error, sysctl: &str) {
        if !std::mem::replace(&mut self.limits_said, true) {
            warn!(
                "{what}: {e}; looking at the files every second instead, raise {sysctl} (sysctl) to have events"
            );
        }
    }

    fn wait(&self, ears: &Ears) {
        let now = Instant::now();
        let at = if self.dirty { self.walked + CALM.max(self.walk_cost * 20) } else { self.next_walk };
        let left = at.min(self.next_walk).saturating_duration_since(now) + Duration::from_millis(1);
        let left = left.min(self.longest);
        let time = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = vec![PollFd::new(&*ears.bell, PollFlags::IN)];
        if let Some(i) = &self.inotify {
            fds.push(PollFd::new(i, PollFlags::IN));
        }
        self.beat.within(left);
        let _ = poll(&mut fds, Some(&time)); // EINTR is a wake-up like any other
        self.beat.rests(); // a file system that hangs would hang after a restart too
        let mut count = [0; 8];
        let _ = rustix::io::read(&*ears.bell, &mut count);
    }

    /// Under many events they are taken together, so that 5,000 lines a second are 500 wake-ups and not 5,000. An event
    /// after a rest is passed on at once.
    fn gather(&mut self, ears: &Ears) {
        let left = TOGETHER.saturating_sub(self.heard.elapsed());
        if !left.is_zero() {
            let time = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
            let _ = poll(&mut [PollFd::new(&*ears.bell, PollFlags::IN)], Some(&time));
        }
        self.heard = Instant::now();
    }

    fn events(&mut self, buffer: &mut [u8]) {
        let Some(mut inotify) = self.inotify.take() else { return };
        while let Ok(events) = inotify.read_events(buffer) {
            for event in events {
                self.event(&event.wd, event.mask, event.name);
            }
        }
        self.inotify = Some(inotify);
    }

    fn event(&mut self, wd: &WatchDescriptor, mask: EventMask, name: Option<&std::ffi::OsStr>) {
        if mask.contains(EventMask::Q_OVERFLOW) {
            self.dirty = true;
            self.slots.values().for_each(wake);
            return;
        }
        if mask.contains(EventMask::IGNORED) {
            if self.folders.remove(wd).is_some() {
                self.dirty = true;
            }
            self.files.remove(wd);
            return;
        }
        if let Some(paths) = self.files.get(wd) {
            paths.iter().filter_map(|p| self.slots.get(p)).for_each(wake);
        }
        let Some(folder) = self.folders.get(wd).cloned() else { return };
        let Some(name) = name else {
            self.dirty = true; // the folder itself went or moved
            return;
        };
        let path = folder.join(name);
        if self.slots.contains_key(&path) {
            self.watch_file(&path);
            self.slots.get(&path).into_iter().for_each(wake);
        } else {
            self.dirty = true;
            let links = self.slots.iter().filter(|(p, s)| s.link && p.parent() == Some(&folder));
            let links: Vec<PathBuf> = links.map(|(p, _)| p.clone()).collect();
            for path in links {
                self.watch_file(&path);
                self.slots.get(&path).into_iter().for_each(wake);
            }
        }
    }

    /// Looks for everything that the patterns mean; keeps the watches on the folders met, and lets the others go.
    fn walk(&mut self, first: bool) {
        let start = Instant::now();
        self.dirty = false;
        self.blind = self.watches.is_none();
        let mut kept = HashSet::new();
        let sources = std::mem::take(&mut self.sources);
        for source in &sources {
            for pattern in &source.patterns {
                let mut met = Met::default();
                pattern.walk(&mut met);
                for folder in met.folders {
                    self.watch_folder(&folder, &mut kept);
                }
                for path in met.files.into_iter().filter(|p| !source.exclude.matches(p)) {
                    self.meet(source.poll, path);
                }
            }
        }
        if first {
            self.meet_expected(&sources);
            let missing = self.missing(&sources);
            let _ = self.out.send(Sight::Walked { missing });
        }
        self.sources = sources;
        self.let_go(&kept);
        self.walked = Instant::now();
        self.walk_cost = self.walked - start;
        self.next_walk = self.walked + if self.blind { WALK_BLIND } else { WALK };
    }

    /// Paths that are not there, and still have bytes that were not read, in rotated files.
    fn meet_expected(&mut self, sources: &[Watched]) {
        for path in std::mem::take(&mut self.expected) {
            if let Some(source) = sources.iter().find(|s| s.means(&path))
                && !self.slots.contains_key(&path)
            {
                self.found(source.poll, path);
            }
        }
    }

    fn missing(&mut self, sources: &[Watched]) -> Vec<PathBuf> {
        let literal = sources.iter().flat_map(|s| s.patterns.iter().filter_map(Pattern::literal));
        literal.filter(|path| !self.slots.contains_key(path) && !self.said.contains_key(path)).collect()
    }

    fn take_up(&mut self, sources: Vec<Watched>, expected: Vec<PathBuf>) {
        (self.sources, self.expected) = (sources, expected);
        self.said.clear();
        let paths: Vec<PathBuf> = self.slots.keys().cloned().collect();
        for path in paths {
            if let Some(slot) = self.slots.get(&path) {
                slot.hints.store(true, Relaxed);
            }
            self.watch_file(&path);
        }
        self.walk(true);
    }

    fn meet(&mut self, poll: bool, path: PathBuf) {
        if self.slots.contains_key(&path) {
            return;
        }
        match fs::metadata(&path) {
            Ok(m) if !m.is_file() => self.refuse(path, kind(&m)),
            Ok(m) if self.own.contains(&(m.dev(), m.ino())) => {
                self.refuse(path, "is where this agent writes its own log")
            }
            _ => self.found(poll, path),
        }
    }

    fn refuse(&mut self, path: PathBuf, why: &str) {
        if self.said.get(&path).is_none_or(|s| s != why) {
            warn!("{}: {why}; it is not followed", path.display());
            self.said.insert(path, why.into());
        }
    }

    fn found(&mut self, poll: bool, path: PathBuf) {
        let (wake, slot) = bounded(1);
        let hints = Arc::new(AtomicBool::new(!poll));
        let link = fs::symlink_metadata(&path).is_ok_and(|m| m.is_symlink());
        let entry = Slot { wake, hints: hints.clone(), watches: VecDeque::new(), link };
        self.slots.insert(path.clone(), entry);
        if self.said.remove(&path).is_some() {
            info!("{}: is a file now", path.display());
        }
        self.watch_file(&path);
        let _ = self.out.send(Sight::Found(Found { path, slot, hints }));
    }

    fn watch_folder(&mut self, folder: &Path, kept: &mut HashSet<WatchDescriptor>) {
        let mask = WatchMask::CREATE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let Some(watches) = &mut self.watches else { return };
        let mut folder = folder;
        loop {
            match watches.add(folder, mask) {
                Ok(wd) => {
                    self.folders.insert(wd.clone(), folder.into());
                    kept.insert(wd);
                    self.blind |= !gives_events(folder);
                    return;
                }
                // Not there yet: its parent tells when it comes.
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    match folder.parent() {
                        Some(parent) => folder = parent,
                        None => return,
                    }
                }
                Err(e) => {
                    self.blind = true;
                    if e.raw_os_error() == Some(libc::ENOSPC) {
                        self.limit("inotify watches", &e, "fs.inotify.max_user_watches");
                    }
                    return;
                }
            }
        }
    }

    /// Watches what the path leads to now; the files it led to before stay watched for late writers.
    fn watch_file(&mut self, path: &Path) {
        let Some(slot) = self.slots.get_mut(path) else { return };
        let polled = self.sources.iter().find(|s| s.means(path)).is_some_and(|s| s.poll);
        let Some(watches) = self.watches.as_mut().filter(|_| !polled) else {
            slot.hints.store(false, Relaxed);
            return;
        };
        let mask = WatchMask::MODIFY | WatchMask::ATTRIB | WatchMask::MOVE_SELF | WatchMask::DELETE_SELF;
        match watches.add(path, mask) {
            Ok(wd) => {
                slot.hints.store(slot.hints.load(Relaxed) && gives_events(path), Relaxed);
                let paths = self.files.entry(wd.clone()).or_default();
                if !paths.iter().any(|p| p == path) {
                    paths.push(path.into());
                }
                if slot.watches.contains(&wd) {
                    return;
                }
                slot.watches.push_back(wd);
                if slot.watches.len() > WATCHES_PER_PATH
                    && let Some(old) = slot.watches.pop_front()
                {
                    self.forget(path.into(), old);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                slot.hints.store(false, Relaxed);
                if e.raw_os_error() == Some(libc::ENOSPC) {
                    self.limit("inotify watches", &e, "fs.inotify.max_user_watches");
                }
            }
        }
    }

    fn forget(&mut self, path: PathBuf, wd: WatchDescriptor) {
        let Some(paths) = self.files.get_mut(&wd) else { return };
        paths.retain(|p| *p != path);
        if paths.is_empty() {
            self.files.remove(&wd);
            if let Some(watches) = &mut self.watches {
                let _ = watches.remove(wd); // gone with its file already
            }
        }
    }

    fn let_go(&mut self, kept: &HashSet<WatchDescriptor>) {
        let Some(watches) = &mut self.watches else { return };
        let gone: Vec<_> = self.folders.keys().filter(|wd| !kept.contains(wd)).cloned().collect();
        for wd in gone {
            self.folders.remove(&wd);
            let _ = watches.remove(wd);
        }
    }

    fn ended(&mut self, path: &Path) {
        let Some(slot) = self.slots.remove(path) else { return };
        for wd in slot.watches {
            self.forget(path.into(), wd);
        }
        self.dirty = true; // it may be there again
    }
}

fn wake(slot: &Slot) {
    let _ = slot.wake.try_send(()); // full: it is told already; closed: its end is on the way
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

/// File systems where another host's or a user-space server's changes make no events (`statfs(2)`, f_type).
fn gives_events(path: &Path) -> bool {
    const BLIND: [u64; 8] = [
        0x6969,      // NFS
        0x517b,      // SMB
        0xfe53_4d42, // SMB2
        0xff53_4d42, // CIFS
        0x6573_5546, // FUSE
        0x0102_1997, // 9P
        0x00c3_6400, // CEPH
        0x5346_414f, // AFS
    ];
    rustix::fs::statfs(path).map_or(true, |s| !BLIND.contains(&(s.f_type as u64 & 0xffff_ffff)))
}

#[derive(Default)]
struct Met {
    folders: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

impl Visitor for Met {
    fn folder(&mut self, path: &Path) {
        self.folders.push(path.into());
    }

    fn file(&mut self, path: PathBuf) {
        self.files.push(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::thread;

    /// Fails when files are not watched, or when a new file needs the next regular walk to be found.
    #[test]
    fn tells_of_files_and_wakes_their_tails() {
        let dir = tempfile::tempdir().unwrap();
        let glob = format!("{}/sub/*.log", dir.path().display());
        let watched = Watched {
            patterns: vec![Pattern::glob(&glob).unwrap()],
            exclude: Exclude::default(),
            poll: false,
        };
        let beat = crate::pulse::Pulse::default().beat("watch");
        let options = Options {
            sources: vec![watched],
            expected: vec![],
            own: vec![],
            once: false,
            beat,
            longest: WALK,
        };
        let (tx, sights) = bounded(16);
        let (remote, ears) = remote().unwrap();
        let t = thread::spawn(move || run(options, &ears, &tx));
        let soon = Duration::from_secs(5);
        assert!(matches!(sights.recv_timeout(soon), Ok(Sight::Walked { missing }) if missing.is_empty()));
        fs::create_dir(dir.path().join("sub")).unwrap();
        let path = dir.path().join("sub/a.log");
        let mut file = fs::File::create(&path).unwrap();
        let Ok(Sight::Found(found)) = sights.recv_timeout(soon) else { panic!("not found") };
        assert_eq!(found.path, path);
        found.slot.try_iter().for_each(drop);
        file.write_all(b"x").unwrap();
        found.slot.recv_timeout(soon).unwrap();
        // Another file at the path is watched too: fails when watches cannot be added while events are read.
        fs::remove_file(&path).unwrap();
        found.slot.recv_timeout(soon).unwrap();
        let mut file = fs::File::create(&path).unwrap();
        assert!(found.slot.recv_timeout(soon).is_ok() && found.hints.load(Relaxed));
        while found.slot.recv_timeout(Duration::from_millis(200)).is_ok() {}
        file.write_all(b"x").unwrap();
        found.slot.recv_timeout(soon).unwrap();
        fs::remove_file(&path).unwrap();
        found.slot.recv_timeout(soon).unwrap();
        remote.ended(&path);
        fs::write(&path, "again").unwrap();
        assert!(matches!(sights.recv_timeout(soon), Ok(Sight::Found(_))));
        // Other sources: fails when a path that is followed is told again, or a new one is not.
        let other = dir.path().join("other.txt");
        fs::write(&other, "x").unwrap();
        let patterns = [glob.clone(), format!("{}/*.txt", dir.path().display())];
        let patterns = patterns.iter().map(|p| Pattern::glob(p).unwrap()).collect();
        remote.sources(vec![Watched { patterns, exclude: Exclude::default(), poll: true }], vec![], vec![]);
        assert!(matches!(sights.recv_timeout(soon), Ok(Sight::Found(f)) if f.path == other));
        assert!(matches!(sights.recv_timeout(soon), Ok(Sight::Walked { .. })));
        drop(remote);
        t.join().unwrap();
    }
}
