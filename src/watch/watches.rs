//! The one inotify instance: what it watches, and what its events say. The only file that knows the `inotify` crate. Walks
//! no folder and wakes no tail.
//!
//! A folder is watched for names that come and go, a followed file for its contents: a folder's other files make no
//! wake-up.

use crate::network_fs::is_network_fs;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use log::warn;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// Most readings of the queue at a time.
const READINGS: usize = 64;

/// How often a folder is watched again that is replaced at that moment.
const REPLACED: usize = 20;

/// That a folder itself is renamed or removed. `MASK_ADD`: one folder may be watched for several reasons.
const ITSELF: WatchMask =
    WatchMask::MOVE_SELF.union(WatchMask::DELETE_SELF).union(WatchMask::ONLYDIR).union(WatchMask::MASK_ADD);
/// And that names in it go or are replaced: while they are there, none of them has to come.
const BY_NAME: WatchMask =
    ITSELF.union(WatchMask::DELETE).union(WatchMask::MOVED_FROM).union(WatchMask::MOVED_TO);

/// What an event says.
#[derive(Debug, PartialEq, Eq)]
pub enum FileEvent {
    /// The queue was full: anything may have changed.
    Overflow,
    /// One of these followed paths may have changed.
    Files(Vec<PathBuf>),
    /// This name in a watched folder came, went, or has other permissions.
    Name(PathBuf),
    /// A watched folder, or one above it, went, came or moved.
    Folder,
}

/// What one watched folder is watched for; several paths may lead to it.
#[derive(Debug, Default)]
struct Folder {
    /// Its paths where a walk reads its names: every change of a name is reported.
    walked: Vec<PathBuf>,
    /// Names in it that lead to walked folders: only changes of these are reported.
    on_the_way: HashSet<OsString>,
}

/// The watches of one path: of what it leads to now, and of some files that it led to before.
#[derive(Debug, Default)]
pub struct OfPath(VecDeque<WatchDescriptor>);

impl OfPath {
    /// The live file and some rotated ones.
    const MOST: usize = 10;
}

/// Whether a folder or a file tells of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventSupport {
    Yes,
    /// It must be looked at again and again.
    No,
}

#[derive(Clone, Copy, Debug)]
struct FollowedUp {
    /// Changes of its name are reported, not only its renaming.
    by_name: bool,
    /// It or a folder above it is a symlink.
    through_link: bool,
}

#[derive(Debug)]
pub struct Watches {
    /// `None`: there are too many on this machine.
    inotify: Option<Inotify>,
    folders: HashMap<WatchDescriptor, Folder>,
    /// Folders that this walk met.
    met: HashSet<WatchDescriptor>,
    /// Paths that this walk has followed up to `/`.
    followed_up: HashMap<PathBuf, FollowedUp>,
    /// A folder above a walked one could not be watched because the watches have run out.
    exhausted: bool,
    files: HashMap<WatchDescriptor, Vec<PathBuf>>,
    limits_said: bool,
    buffer: Vec<u8>,
}

impl Watches {
    pub fn new() -> Watches {
        let (inotify, trouble) = match Inotify::init() {
            Ok(inotify) => (Some(inotify), None),
            Err(e) => (None, Some(e)),
        };
        let mut w = Watches {
            inotify,
            folders: HashMap::new(),
            met: HashSet::new(),
            followed_up: HashMap::new(),
            exhausted: false,
            files: HashMap::new(),
            limits_said: false,
            buffer: vec![0; 16 * 1024],
        };
        if let Some(e) = trouble {
            w.limit("inotify", &e, "fs.inotify.max_user_instances");
        }
        w
    }

    pub fn work(&self) -> bool {
        self.inotify.is_some()
    }

    /// Readable when there is something to hear.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(AsFd::as_fd)
    }

    /// One line, whatever number of watches fail.
    fn limit(&mut self, what: &str, e: &io::Error, sysctl: &str) {
        if !std::mem::replace(&mut self.limits_said, true) {
            warn!(
                "{what}: {e}; looking at the files every second instead, raise {sysctl} (sysctl) to have events"
            );
        }
    }

    fn refused(&mut self, e: &io::Error) -> EventSupport {
        if e.raw_os_error() == Some(libc::ENOSPC) {
            self.limit("inotify watches", e, "fs.inotify.max_user_watches");
        }
        EventSupport::No
    }

    /// What has happened, of each file once; in a storm that does not end, a part of it.
    pub fn hear(&mut self) -> Vec<FileEvent> {
        let mut heard = Vec::new();
        let mut files = HashSet::new();
        for _ in 0..READINGS {
            let Some(inotify) = &mut self.inotify else { break };
            let Ok(events) = inotify.read_events(&mut self.buffer) else { break };
            for event in events {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    heard.push(FileEvent::Overflow);
                } else if event.mask.contains(EventMask::IGNORED) {
                    self.files.remove(&event.wd);
                    heard.extend(self.folders.remove(&event.wd).map(|_| FileEvent::Folder));
                } else {
                    if let Some(paths) = self.files.get(&event.wd)
                        && files.insert(event.wd.clone())
                    {
                        heard.push(FileEvent::Files(paths.clone()));
                    }
                    match (self.folders.get(&event.wd), event.name) {
                        (Some(folder), Some(name)) => {
                            heard.extend(folder.walked.iter().map(|path| FileEvent::Name(path.join(name))));
                            heard.extend(folder.on_the_way.contains(name).then_some(FileEvent::Folder));
                        }
                        (Some(_), None) => heard.push(FileEvent::Folder),
                        (None, _) => {}
                    }
                }
            }
        }
        heard
    }

    /// Watches a folder and what is above it, since it may be replaced; where it is not there, the nearest one above that is,
    /// which reports when it comes.
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
            // What was done before the watches above were there was reported by nobody.
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
        EventSupport::No // it is replaced all the time
    }

    /// The folder itself, or the nearest one above it that exists, watched.
    fn nearest<'p>(&self, folder: &'p Path) -> io::Result<Option<(WatchDescriptor, &'p Path)>> {
        let Some(inotify) = &self.inotify else { return Err(io::ErrorKind::Unsupported.into()) };
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

    /// Watches the folders above `path`, the highest first. `by_name`: its removal must be reported too. The folder's own watch
    /// does not do that as long as somebody, such as this agent, has a file of it open. Further up a rename is all that can
    /// happen unnoticed, and a watch for renames is not woken by other names. Returns whether a symlink is on the way.
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
        let Some(inotify) = &self.inotify else { return through_link };
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
            // Gone, which the caller sees, or not readable to us: the next regular walk finds what changes there.
            Err(_) => {}
        }
        through_link
    }

    /// Keeps a folder beyond this walk.
    fn meet(&mut self, wd: WatchDescriptor) -> &mut Folder {
        let watched = self.folders.entry(wd.clone()).or_default();
        if self.met.insert(wd) {
            *watched = Folder::default();
        }
        watched
    }

    /// A walk is over: folders that it did not meet are let go.
    pub fn walked(&mut self) {
        let met = std::mem::take(&mut self.met);
        self.followed_up.clear();
        self.exhausted = false;
        let gone: Vec<_> = self.folders.keys().filter(|wd| !met.contains(wd)).cloned().collect();
        for wd in gone {
            self.folders.remove(&wd);
            self.remove(wd);
        }
    }

    /// Watches what the path leads to now; the files it led to before stay watched for late writers.
    pub fn file(&mut self, path: &Path, of_path: &mut OfPath) -> EventSupport {
        let Some(inotify) = &self.inotify else { return EventSupport::No };
        let mask = WatchMask::MODIFY | WatchMask::ATTRIB | WatchMask::MOVE_SELF | WatchMask::DELETE_SELF;
        match inotify.watches().add(path, mask) {
            Ok(wd) => {
                let paths = self.files.entry(wd.clone()).or_default();
                if !paths.iter().any(|p| p == path) {
                    paths.push(path.into());
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

    /// Nobody follows this path any more.
    pub fn forget(&mut self, path: &Path, of_path: OfPath) {
        for wd in of_path.0 {
            self.forget_one(path, wd);
        }
    }

    fn forget_one(&mut self, path: &Path, wd: WatchDescriptor) {
        let Some(paths) = self.files.get_mut(&wd) else { return };
        paths.retain(|p| p != path);
        if paths.is_empty() {
            self.files.remove(&wd);
            self.remove(wd);
        }
    }

    fn remove(&self, wd: WatchDescriptor) {
        if let Some(inotify) = &self.inotify {
            let _ = inotify.watches().remove(wd); // gone with its file already
        }
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
        std::iter::from_fn(|| Some(w.hear()).filter(|h| !h.is_empty())).flatten().collect()
    }

    /// Fails when a folder above is not watched, names that are nobody's business are reported there, or a folder stays watched
    /// that no walk meets.
    #[test]
    fn folders_that_a_walk_meets() {
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
        assert!(all(&mut w).contains(&FileEvent::Folder), "though a file of it is open");
    }

    /// Fails when watches of one path grow without bound, or a path that is let go still tells.
    #[test]
    fn a_path_that_leads_to_many_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let (mut w, mut of_path) = (Watches::new(), OfPath::default());
        let mut held = Vec::new(); // so that no inode is given twice
        for _ in 0..30 {
            let _ = fs::remove_file(&path);
            held.push(fs::File::create(&path).unwrap());
            assert_eq!(w.file(&path, &mut of_path), EventSupport::Yes);
            assert!(of_path.0.len() <= OfPath::MOST && w.files.len() <= 30);
        }
        all(&mut w);
        fs::write(&path, "x").unwrap();
        assert!(all(&mut w).contains(&FileEvent::Files(vec![path.clone()])));
        w.forget(&path, of_path);
        all(&mut w);
        fs::write(&path, "y").unwrap();
        assert_eq!((all(&mut w), w.files.len()), (vec![], 0));
    }
}
