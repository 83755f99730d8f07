//! Opens a path and follows only trusted symlinks. Otherwise anyone with write access to a followed folder could have
//! the agent ship any file it can read.
//!
//! A link is followed if it belongs to root, to the agent's user, or to the owner of its target. This is the rule of
//! Apache's `SymLinksIfOwnerMatch` and of the kernel's `protected_symlinks` (proc(5)), which applies only in sticky
//! folders. Each component is opened relative to the folder opened before it, so nothing can be swapped between check
//! and use.

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, readlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::collections::VecDeque;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Maximum number of links on the way to a file, as in the kernel.
const MOST: usize = 40;

/// A link that was refused.
#[derive(Debug)]
pub struct Untrusted {
    link: PathBuf,
    owner: u32,
    target_owner: u32,
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Untrusted { link, owner, target_owner } = self;
        write!(
            f,
            "the symlink {} belongs to user {owner} and leads to what belongs to user {target_owner}, so it is not trusted: name \
             its target in `paths`, or let root own the link (chown -h root)",
            link.display()
        )
    }
}

impl Error for Untrusted {}

/// Whether the error is a refused link.
pub fn is_untrusted(e: &io::Error) -> bool {
    e.get_ref().is_some_and(|e| e.is::<Untrusted>())
}

/// As open(2).
pub fn open(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    match openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        // A link on the way, or the call is missing (kernel before 5.6, or a sandbox).
        Err(Errno::LOOP | Errno::NOSYS | Errno::PERM) => step_by_step(path, flags),
        opened => Ok(opened?),
    }
}

/// Checks that a folder exists and may be entered.
pub fn enter(folder: &Path) -> io::Result<()> {
    open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC).map(drop)
}

/// Names still to be opened, in order.
struct PathNames {
    left: VecDeque<OsString>,
    /// The link they were read from and its owner; `None` for the path itself.
    link: Option<(PathBuf, u32)>,
}

impl PathNames {
    fn of(path: &Path, link: Option<(PathBuf, u32)>) -> PathNames {
        let is_name = |c: &Component<'_>| matches!(c, Component::Normal(_) | Component::ParentDir);
        PathNames {
            left: path.components().filter(is_name).map(|c| c.as_os_str().to_owned()).collect(),
            link,
        }
    }

    /// Checked once all names are opened; `target` is what the link leads to.
    fn check(self, target: impl AsFd) -> io::Result<()> {
        let Some((link, owner)) = self.link else { return Ok(()) };
        let target_owner = fstat(target)?.st_uid;
        if owner == 0 || owner == geteuid().as_raw() || owner == target_owner {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::PermissionDenied, Untrusted { link, owner, target_owner }))
    }
}

fn step_by_step(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    const FOLDER: OFlags =
        OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
    let start = |path: &Path| if path.is_absolute() { Path::new("/") } else { Path::new(".") };
    let mut at = openat(CWD, start(path), FOLDER, Mode::empty())?;
    let mut shown = start(path).to_owned();
    // The names of a link come before the rest of the path that contains it.
    let mut names = vec![PathNames::of(path, None)];
    let mut links = 0;
    while let Some(next) = names.last_mut() {
        let Some(name) = next.left.pop_front() else {
            names.pop().map_or(Ok(()), |done| done.check(&at))?;
            continue;
        };
        let is_last = names.iter().all(|n| n.left.is_empty());
        let how = if is_last { flags | OFlags::NOFOLLOW } else { FOLDER };
        let opened = openat(&at, &name, how, Mode::empty());
        match opened {
            Ok(file) if is_last => {
                names.into_iter().try_for_each(|n| n.check(&file))?;
                return Ok(file);
            }
            Ok(folder) => {
                at = folder;
                shown.push(&name);
            }
            // A link, or not a folder.
            Err(e @ (Errno::LOOP | Errno::NOTDIR)) => {
                let Some((target, owner)) = read_link(&at, &name)? else { return Err(e.into()) };
                links += 1;
                if links > MOST {
                    return Err(Errno::LOOP.into());
                }
                let link = shown.join(&name);
                if target.is_absolute() {
                    at = openat(CWD, "/", FOLDER, Mode::empty())?;
                    shown = "/".into();
                }
                names.push(PathNames::of(&target, Some((link, owner))));
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(openat(&at, ".", flags, Mode::empty())?) // the path ends in `..`, or is `/`
}

/// A link's target and owner; `None` if it is not a link.
fn read_link(folder: &OwnedFd, name: &OsStr) -> io::Result<Option<(PathBuf, u32)>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let link = openat(folder, name, flags, Mode::empty())?;
    let stat = fstat(&link)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        return Ok(None);
    }
    let target = readlinkat(&link, "", Vec::new())?;
    Ok(Some((OsStr::from_bytes(target.as_bytes()).into(), stat.st_uid)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    /// Both ways of opening agree. Fails when a link is resolved differently from the kernel.
    #[test]
    fn as_the_kernel_resolves_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/f"), "f").unwrap();
        fs::write(root.join("a/g"), "g").unwrap();
        for (target, link) in [
            ("a/b", "to"),
            ("b/f", "a/f"),
            ("../to/../g", "a/up"),
            ("up", "a/b/x"),
            ("../up", "a/b/y"),
            ("loop", "loop"),
            ("nowhere", "dangling"),
            ("..", "a/parent"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        symlink(root.join("to/../f"), root.join("absolute")).unwrap();
        let text = |mut file: fs::File| {
            let mut text = String::new();
            file.read_to_string(&mut text).map(|_| text)
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        for name in [
            "a/b/f",
            "to/f",
            "a/f",
            "a/up",
            "a/b/y",
            "a/b/x",
            "absolute",
            "loop",
            "dangling",
            "a/g/x",
            "to/../../a/g",
            "a/parent/a/g",
            "a/parent",
            "to",
            "/",
            "..",
            "none/f",
        ] {
            let path = root.join(name);
            let want = fs::File::open(&path).and_then(text);
            for opened in [open(&path, flags), step_by_step(&path, flags)] {
                let got = opened.map(fs::File::from).and_then(text);
                match (&want, got) {
                    (Ok(want), Ok(got)) => assert_eq!(*want, got, "{name}"),
                    (Err(want), Err(got)) => assert_eq!(want.raw_os_error(), got.raw_os_error(), "{name}"),
                    (want, got) => panic!("{name}: {want:?}, {got:?}"),
                }
            }
        }
        assert!(enter(&root.join("to")).is_ok() && enter(&root.join("a/f")).is_err());
    }
}
