//! The inotify instance: which watches exist and what its events mean. The only file that uses the `inotify` crate.
//!
//! A folder is watched for names that appear and disappear, a followed file for its contents, so that other files in
//! a folder cause no wake-ups.

use crate::network_fs::is_network_fs;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use log::warn;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// Maximum number of reads of a queue at a time.
const READINGS: usize = 64;
/// So many events without names fit into a quarter of the buffer.
const FEW: usize = 256;

/// How often to retry watching a folder that is being replaced.
const REPLACED: usize = 20;

/// The folder itself is renamed or removed. `MASK_ADD`: a folder may be watched for several reasons.
const ITSELF: WatchMask =
    WatchMask::MOVE_SELF.union(WatchMask::DELETE_SELF).union(WatchMask::ONLYDIR).union(WatchMask::MASK_ADD);
/// Also, names in it disappear or are replaced. Names that exist need no creation events.
const BY_NAME: WatchMask =
    ITSELF.union(WatchMask::DELETE).union(WatchMask::MOVED_FROM).union(WatchMask::MOVED_TO);

/// The meaning of an inotify event.
#[derive(Debug, PartialEq, Eq)]
pub enum FileEvent {
    /// The queue overflowed: anything may have changed.
    Overflow,
    /// This name in a watched folder appeared, disappeared, or changed its permissions.
    Name(PathBuf),
    /// A watched folder, or one of its parents, appeared, disappeared or was moved.
    Folder,
}

/// What a read of the queue of writes found, apart from what it reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContentEvents {
    None,
    Some,
    /// The queue overflowed: any file may have changed.
    Overflow,
}

/// Why a folder is watched. Several paths may lead to it.
#[derive(Debug, Default)]
struct Folder {
    /// Its paths as walked: every change of a name is reported.
    walked: Vec<PathBuf>,
    /// Names in it that lead to walked folders: only their changes are reported.
    on_the_way: HashSet<OsString>,
}

#[derive(Debug)]
struct WatchedFile {
    /// The followed paths that lead to it.
    paths: Vec<PathBuf>,
    /// What a read of the queue says about it. Empty between two reads.
    events: EventMask,
}

/// The watches of one path: its current file and some previous ones.
#[derive(Debug, Default)]
pub struct OfPath(VecDeque<WatchDescriptor>);

impl OfPath {
    /// The live file and some rotated files.
    const MOST: usize = 10;
}

/// Whether inotify reports changes for this path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventSupport {
    Yes,
    /// The path must be polled.
    No,
}

#[derive(Clone, Copy, Debug)]
struct FollowedUp {
    /// All changes of its name are reported, not only renames.
    by_name: bool,
    /// It or one of its parents is a symlink.
    through_link: bool,
}

#[derive(Debug)]
pub struct Watches {
    /// For folders: names appear and disappear. `None`: the limit of instances was reached.
    names: Option<Inotify>,
    /// For followed files: they are written to. `None`: as above.
    contents: Option<Inotify>,
    folders: HashMap<WatchDescriptor, Folder>,
    /// Folders visited by this walk.
    met: HashSet<WatchDescriptor>,
    /// Paths whose parents this walk has watched up to `/`.
    followed_up: HashMap<PathBuf, FollowedUp>,
    /// A parent folder could not be watched because the watches ran out.
    exhausted: bool,
    files: HashMap<WatchDescriptor, WatchedFile>,
    /// The files with events. Empty between two reads.
    changed: Vec<WatchDescriptor>,
    limits_said: bool,
    buffer: Vec<u8>,
}

impl Watches {
    pub fn new() -> Watches {
        let both = Inotify::init().and_then(|names| Ok((names, Inotify::init()?)));
        let (names, contents, trouble) = match both {
            Ok((names, contents)) => (Some(names), Some(contents), None),
            Err(e) => (None, None, Some(e)),
        };
        let mut w = Watches {
            names,
            contents,
            folders: HashMap::new(),
            met: HashSet::new(),
            followed_up: HashMap::new(),
            exhausted: false,
            files: HashMap::new(),
            changed: Vec::new(),
            limits_said: false,
            buffer: vec![0; 16 * 1024],
        };
        if let Some(e) = trouble {
            w.limit("inotify", &e, "fs.inotify.max_user_instances");
        }
        w
    }

    pub fn work(&self) -> bool {
        self.names.is_some()
    }

    /// Readable when events for folders are pending.
    pub fn names_fd(&self) -> Option<BorrowedFd<'_>> {
        self.names.as_ref().map(AsFd::as_fd)
    }

    /// Readable when events for followed files are pending.
    pub fn contents_fd(&self) -> Option<BorrowedFd<'_>> {
        self.contents.as_ref().map(AsFd::as_fd)
    }

    /// Logs one line, however many watches fail.
    fn limit(&mut self, what: &str, e: &io::Error, sysctl: &str) {
        if !std::mem::replace(&mut self.limits_said, true) {
            warn!(
                "{what}: {e}; polling the files every second instead; raise the sysctl {sysctl} to get events"
            );
        }
    }

    fn refused(&mut self, e: &io::Error) -> EventSupport {
        if e.raw_os_error() == Some(libc::ENOSPC) {
            self.limit("inotify watches", e, "fs.inotify.max_user_watches");
        }
        EventSupport::No
    }

    /// Reads pending events for folders, and says whether there were any. Under a continuous stream of events, reads only a
    /// part of them.
    pub fn read_names(&mut self) -> (bool, Vec<FileEvent>) {
        let (mut had_events, mut reported) = (false, Vec::new());
        for _ in 0..READINGS {
            let Some(inotify) = &mut self.names else { break };
            let Ok(events) = inotify.read_events(&mut self.buffer) else { break };
            for event in events {
                had_events = true;
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    reported.push(FileEvent::Overflow);
                } else if event.mask.contains(EventMask::IGNORED) {
                    reported.extend(self.folders.remove(&event.wd).map(|_| FileEvent::Folder));
                } else {
                    match (self.folders.get(&event.wd), event.name) {
                        (Some(folder), Some(name)) => {
                            reported
                                .extend(folder.walked.iter().map(|path| FileEvent::Name(path.join(name))));
                            reported.extend(folder.on_the_way.contains(name).then_some(FileEvent::Folder));
                        }
                        (Some(_), None) => reported.push(FileEvent::Folder),
                        (None, _) => {}
                    }
                }
            }
        }
        (had_events, reported)
    }

    /// Reads pending events for followed files. Calls `changed` once for each path concerned, with whether its file was
    /// only written to. Calls it when all are read: a woken tail may run at once, and would be woken by each further
    /// event again. Under a continuous stream of events, reads only a part of them.
    pub fn read_contents(&mut self, mut changed: impl FnMut(&Path, bool)) -> ContentEvents {
        let mut found = ContentEvents::None;
        for _ in 0..READINGS {
            let Some(inotify) = &mut self.contents else { break };
            let Ok(events) = inotify.read_events(&mut self.buffer) else { break };
            let mut read = 0;
            for event in events {
                read += 1;
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    found = ContentEvents::Overflow;
                } else if let Some(file) = self.files.get_mut(&event.wd) {
                    if file.events.is_empty() {
                        self.changed.push(event.wd);
                    }
                    file.events |= event.mask;
                }
            }
            if read > 0 && found == ContentEvents::None {
                found = ContentEvents::Some;
            }
            // The kernel gives as many events as fit, so there are no more.
            if read < FEW {
                break;
            }
        }
        for wd in self.changed.drain(..) {
            let Some(file) = self.files.get_mut(&wd) else { continue };
            let events = std::mem::replace(&mut file.events, EventMask::empty());
            if events != EventMask::IGNORED {
                file.paths.iter().for_each(|path| changed(path, events == EventMask::MODIFY));
            }
            if events.contains(EventMask::IGNORED) {
                self.files.remove(&wd);
            }
        }
        found
    }

    /// Watches a folder and its parents, since any of them may be replaced. If it does not exist, watches the nearest
    /// existing parent, which reports when it appears.
    pub fn folder(&mut self, folder: &Path) -> EventSupport {
        for _ in 0..REPLACED {
            let (wd, found) = match self.nearest(folder) {
                Ok(Some(nearest)) => nearest,
                Ok(None) => return EventSupport::Yes,
                Err(e) => return self.refused(&e),
            };
            let through_link = self.follow_up(found, true);
            if through_link && let Ok(real) = fs::canonicalize(found) {
                self.follow_up(&real, true);
            }
            // Changes made before the parents were watched were not reported.
            if self.nearest(folder).ok().flatten() != Some((wd.clone(), found)) {
                continue;
            }
            let watched = self.meet(wd);
            if found == folder {
                watched.walked.push(folder.into());
            } else {
                let below = folder.strip_prefix(found).ok().and_then(|rest| rest.iter().next());
                watched.on_the_way.extend(below.map(OsString::from));
            }
            return if self.exhausted { EventSupport::No } else { event_support(found) };
        }
        EventSupport::No // it is being replaced repeatedly
    }

    /// Watches the folder itself, or its nearest existing parent.
    fn nearest<'p>(&self, folder: &'p Path) -> io::Result<Option<(WatchDescriptor, &'p Path)>> {
        let Some(inotify) = &self.names else { return Err(io::ErrorKind::Unsupported.into()) };
        let mask = BY_NAME | WatchMask::CREATE | WatchMask::ATTRIB;
        for above in folder.ancestors() {
            match inotify.watches().add(above, mask) {
                Ok(wd) => return Ok(Some((wd, above))),
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// Watches the parents of `path`, topmost first. `by_name`: its removal must be reported too. The folder's own
    /// watch does not report that while any process, such as this agent, has one of its files open. Further up only
    /// renames can go unnoticed, and a watch for renames is not triggered by other names. Returns whether a symlink
    /// is on the path.
    fn follow_up(&mut self, path: &Path, by_name: bool) -> bool {
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return false };
        let done = self.followed_up.get(path).copied();
        if let Some(done) = done.filter(|done| done.by_name || !by_name) {
            return done.through_link;
        }
        let is_link = path.is_symlink();
        let by_name = by_name || is_link; // a link that is replaced is not renamed
        let through_link = self.follow_up(above, false) || is_link;
        self.followed_up.insert(path.into(), FollowedUp { by_name, through_link });
        let Some(inotify) = &self.names else { return through_link };
        let mask = if by_name { BY_NAME } else { ITSELF };
        match inotify.watches().add(above, mask) {
            Ok(wd) => {
                let watched = self.meet(wd);
                if by_name {
                    watched.on_the_way.insert(name.into());
                }
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => {
                self.refused(&e);
                self.exhausted = true;
            }
            // Gone, which the caller notices, or not readable: the next regular walk finds changes there.
            Err(_) => {}
        }
        through_link
    }

    /// Marks a folder as visited by this walk, which keeps its watch.
    fn meet(&mut self, wd: WatchDescriptor) -> &mut Folder {
        let watched = self.folders.entry(wd.clone()).or_default();
        if self.met.insert(wd) {
            *watched = Folder::default();
        }
        watched
    }

    /// A walk is over: drops the watches of folders it did not visit.
    pub fn walked(&mut self) {
        let met = std::mem::take(&mut self.met);
        self.followed_up.clear();
        self.exhausted = false;
        let gone: Vec<_> = self.folders.keys().filter(|wd| !met.contains(wd)).cloned().collect();
        for wd in gone {
            self.folders.remove(&wd);
            remove(&self.names, wd);
        }
    }

    /// Watches the path's current file; for writes only if `writes`, or if another path leads to it. Its previous files
    /// stay watched for late writers.
    pub fn file(&mut self, path: &Path, of_path: &mut OfPath, writes: bool) -> EventSupport {
        let Some(inotify) = &self.contents else { return EventSupport::No };
        let names = WatchMask::ATTRIB | WatchMask::MOVE_SELF | WatchMask::DELETE_SELF;
        match inotify.watches().add(path, if writes { names | WatchMask::MODIFY } else { names }) {
            Ok(wd) => {
                let new = || WatchedFile { paths: Vec::new(), events: EventMask::empty() };
                let paths = &mut self.files.entry(wd.clone()).or_insert_with(new).paths;
                if !paths.iter().any(|p| p == path) {
                    paths.push(path.into());
                }
                if !writes && paths.len() > 1 {
                    // If the path leads elsewhere by now, that is reported, and this method is called again.
                    let _ = inotify.watches().add(path, WatchMask::MODIFY | WatchMask::MASK_ADD);
                }
                if !of_path.0.contains(&wd) {
                    of_path.0.push_back(wd);
                }
                if of_path.0.len() > OfPath::MOST
                    && let Some(oldest) = of_path.0.pop_front()
                {
                    self.forget_one(path, oldest);
                }
                event_support(path)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => EventSupport::Yes,
            Err(e) => self.refused(&e),
        }
    }

    /// The path is no longer followed.
    pub fn forget(&mut self, path: &Path, of_path: OfPath) {
        for wd in of_path.0 {
            self.forget_one(path, wd);
        }
    }

    fn forget_one(&mut self, path: &Path, wd: WatchDescriptor) {
        let Some(WatchedFile { paths, .. }) = self.files.get_mut(&wd) else { return };
        paths.retain(|p| p != path);
        if paths.is_empty() {
            self.files.remove(&wd);
            remove(&self.contents, wd);
        }
    }
}

fn remove(from: &Option<Inotify>, wd: WatchDescriptor) {
    if let Some(inotify) = from {
        let _ = inotify.watches().remove(wd); // fails if it is gone with its file
    }
}

fn event_support(path: &Path) -> EventSupport {
    if is_network_fs(path) { EventSupport::No } else { EventSupport::Yes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn all(w: &mut Watches) -> Vec<FileEvent> {
        std::iter::from_fn(|| Some(w.read_names().1).filter(|h| !h.is_empty())).flatten().collect()
    }

    fn written(w: &mut Watches) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        while w.read_contents(|path, _| paths.push(path.to_path_buf())) != ContentEvents::None {}
        paths
    }

    /// Fails when a parent folder is not watched, when unrelated names are reported there, or when a folder stays
    /// watched that no walk visits.
    #[test]
    fn folders_that_a_walk_visits() {
        let dir = tempfile::tempdir().unwrap();
        let mut w = Watches::new();
        assert_eq!(w.folder(&dir.path().join("a/b")), EventSupport::Yes);
        w.walked();
        fs::create_dir(dir.path().join("a")).unwrap();
        assert_eq!(all(&mut w), [FileEvent::Folder]);
        w.folder(&dir.path().join("a/b"));
        w.walked();
        fs::write(dir.path().join("beside"), "").unwrap();
        fs::create_dir(dir.path().join("a/b")).unwrap();
        assert_eq!(all(&mut w), [FileEvent::Folder]);
        w.folder(&dir.path().join("a/b"));
        w.walked();
        let _open = fs::File::create(dir.path().join("a/b/f")).unwrap();
        assert_eq!(all(&mut w), [FileEvent::Name(dir.path().join("a/b/f"))]);
        fs::remove_dir_all(dir.path().join("a/b")).unwrap();
        assert!(all(&mut w).contains(&FileEvent::Folder), "although a file in it is open");
    }

    /// Fails when the watches of one path grow without bound, or a forgotten path still reports events.
    #[test]
    fn a_path_that_leads_to_many_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let (mut w, mut of_path) = (Watches::new(), OfPath::default());
        let mut held = Vec::new(); // so that no inode is reused
        for _ in 0..30 {
            let _ = fs::remove_file(&path);
            held.push(fs::File::create(&path).unwrap());
            assert_eq!(w.file(&path, &mut of_path, true), EventSupport::Yes);
            assert!(of_path.0.len() <= OfPath::MOST && w.files.len() <= 30);
        }
        written(&mut w);
        fs::write(&path, "x").unwrap();
        assert!(written(&mut w).contains(&path));
        w.file(&path, &mut of_path, false);
        fs::write(&path, "y").unwrap();
        assert!(!written(&mut w).contains(&path), "its tail watches for that");
        w.file(&path, &mut of_path, true);
        fs::write(&path, "y").unwrap();
        assert!(written(&mut w).contains(&path));
        w.forget(&path, of_path);
        written(&mut w);
        fs::write(&path, "y").unwrap();
        assert_eq!((written(&mut w), w.files.len()), (vec![], 0));
    }

    /// Fails when a file is reported again for each of its writes: with many busy files, that was most of the agent's CPU
    /// time.
    #[test]
    fn files_written_by_turns() {
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("a"), dir.path().join("b")];
        let mut w = Watches::new();
        for path in &paths {
            fs::write(path, "").unwrap();
            assert_eq!(w.file(path, &mut OfPath::default(), true), EventSupport::Yes);
        }
        for _ in 0..10 {
            paths.iter().for_each(|path| fs::write(path, "x").unwrap());
        }
        let mut reported = Vec::new();
        w.read_contents(|path, only_modified| reported.push((path.to_path_buf(), only_modified)));
        reported.sort();
        assert_eq!(reported, paths.map(|path| (path, true)));
    }
}
