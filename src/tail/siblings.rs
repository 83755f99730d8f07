//! Finds rotated files beside a followed one, by name.
//!
//! A sibling is the name plus `.` or `-` plus digits or a date, optionally with a compression suffix, or `stem-date.ext`, or
//! the name with only a compression suffix. A bare prefix is not enough: `app.log.err` is another log.
//!
//! Names that belong to one log form a *family*: the log itself and all names that [`base_of`] maps to it. With a pattern
//! such as `app.log*`, which follows rotated files too, several followed paths belong to one family.

use super::folder::Names;
use super::identity::{self, Look};
pub use crate::packed::Packed;
use crate::packed::unpack;
use rustix::fs::FileType;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug)]
pub struct Sibling {
    pub path: PathBuf,
    pub packed: Packed,
    pub look: Look,
}

/// The current siblings of `path`, oldest first: by modification time, ties by birth time, plain before compressed; never by
/// number.
///
/// During a chain of renames `readdir(3)` may miss a file that exists throughout. So a changing folder is read until
/// two listings agree.
pub fn list(path: &Path) -> io::Result<Vec<Sibling>> {
    list_by(path, &rotated)
}

/// Like [`list`], with every name of the path's family: a stream that was read as `app.log.1` may be in `app.log.2.gz` now.
pub fn list_family(path: &Path) -> io::Result<Vec<Sibling>> {
    let base = base_of(path.file_name().unwrap_or_default());
    let extension = base.as_bytes().iter().rposition(|b| *b == b'.').filter(|at| *at > 0);
    let stem = &base.as_bytes()[..extension.unwrap_or(base.len())];
    list_by(path, &|name, other| {
        // In a folder of a thousand logs, most names fail the prefix test.
        let is_kin = other.as_bytes().starts_with(stem) && other != name && base_of(other) == base;
        is_kin.then(|| unpack(other.as_bytes()).1)
    })
}

/// Every rotated name in the folder, of any log for which `is_followed`: after names were swapped, a stream may have another
/// log's name.
pub fn list_rotated(path: &Path, is_followed: impl Fn(&Path) -> bool) -> io::Result<Vec<Sibling>> {
    list_by(path, &|name, other| {
        let base = base_of(other);
        let is_rotated = other != name && base != other && is_followed(&path.with_file_name(base));
        is_rotated.then(|| unpack(other.as_bytes()).1)
    })
}

/// Whether the second name is a form of the first, and how it is compressed.
type Form<'f> = &'f dyn Fn(&OsStr, &OsStr) -> Option<Packed>;

fn list_by(path: &Path, form: Form<'_>) -> io::Result<Vec<Sibling>> {
    let (mut last, at_rest) = list_once(path, form)?;
    if at_rest {
        return Ok(last);
    }
    for _ in 0..READINGS {
        let (next, _) = list_once(path, form)?;
        if next.iter().map(|s| &s.look.identity).eq(last.iter().map(|s| &s.look.identity)) {
            break;
        }
        last = next;
    }
    Ok(last)
}

/// Maximum number of listings of a folder that keeps changing.
const READINGS: usize = 20;

/// The files that the path, a symlink, may have led to before, for example if its target has a date in its name.
pub fn list_former_targets(path: &Path) -> io::Result<Vec<Sibling>> {
    let Some(real) = target(path) else { return Ok(Vec::new()) };
    let base = base_of(real.file_name().unwrap_or_default());
    let form: Form<'_> = &|name, other| (other != name && base_of(other) == base).then_some(Packed::Plain);
    Ok(in_folder_of(&real, form)?.0)
}

/// Where the path leads if it is a symlink to something below its own folder.
pub fn target(path: &Path) -> Option<PathBuf> {
    let real = fs::canonicalize(path).ok().filter(|real| real != path)?;
    let own = fs::canonicalize(path.parent()?).ok()?;
    real.starts_with(own).then_some(real)
}

/// The siblings, and whether their folders were unchanged.
fn list_once(path: &Path, form: Form<'_>) -> io::Result<(Vec<Sibling>, bool)> {
    // If the path is a symlink, rotation also happens beside its target. Files outside the path's own folder tree were not
    // requested.
    let (mut found, mut at_rest) = in_folder_of(path, form)?;
    if let Some(real) = target(path) {
        let (more, rests) = in_folder_of(&real, form)?;
        found.extend(more);
        at_rest &= rests;
    }
    found.sort_by_key(|s| (s.look.modified, s.look.identity.born, s.packed != Packed::Plain, rank(&s.path)));
    found.dedup_by(|a, b| a.look.identity == b.look.identity);
    Ok((found, at_rest))
}

/// Errors concern the folder, or a file in it whose existence is then unknown.
fn in_folder_of(path: &Path, form: Form<'_>) -> io::Result<(Vec<Sibling>, bool)> {
    let nothing = Ok((Vec::new(), true));
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return nothing };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let Some(names) = Names::of(folder)? else { return nothing };
    let mut found = Vec::new();
    for other in names.iter() {
        let Some(packed) = form(name, other) else { continue };
        let path = folder.join(other);
        if let Some(look) = identity::look_at(&path)?
            && look.kind == FileType::RegularFile
        {
            found.push(Sibling { path, packed, look });
        }
    }
    Ok((found, names.hold_still(folder)))
}

/// Only for files with equal times: with short numbers, as logrotate's, the lowest is the newest; with dates the
/// highest.
fn rank(path: &Path) -> i64 {
    let name = path.file_name().unwrap_or_default().as_bytes();
    let (plain, _) = unpack(name);
    let from = plain.iter().rposition(|b| !b.is_ascii_digit()).map_or(0, |at| at + 1);
    let number = str::from_utf8(&plain[from..]).ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    if number < 10_000 { -number } else { number }
}

/// Whether `name` is a rotated file of `base`, and how it is compressed.
pub fn rotated(base: &OsStr, name: &OsStr) -> Option<Packed> {
    let (base, name) = (base.as_bytes(), name.as_bytes());
    let (plain, packed) = unpack(name);
    if plain == base && packed != Packed::Plain {
        return Some(packed);
    }
    let behind = plain.strip_prefix(base).and_then(|r| r.strip_prefix(b".").or_else(|| r.strip_prefix(b"-")));
    if behind.is_some_and(|mark| is_number(mark) || is_date(mark)) {
        return Some(packed);
    }
    let dot = base.iter().rposition(|b| *b == b'.').filter(|at| *at > 0)?;
    let (stem, ext) = base.split_at(dot);
    let mark = plain.strip_prefix(stem)?.strip_suffix(ext)?;
    let mark = mark.strip_prefix(b"-").or_else(|| mark.strip_prefix(b"."))?;
    is_date(mark).then_some(packed)
}

/// The name of the log that a rotated name belongs to; any other name maps to itself. In addition to the forms of
/// [`rotated`], this covers `stem.1.ext`, which logrotate's `extension` creates.
pub fn base_of(name: &OsStr) -> OsString {
    let (mut base, _) = unpack(name.as_bytes());
    let with_extension;
    let separators =
        |of: &[u8]| -> Vec<usize> { (1..of.len()).filter(|at| matches!(of[*at], b'.' | b'-')).collect() };
    let marked = |at: &usize| is_number(&base[at + 1..]) || is_date(&base[at + 1..]);
    if let Some(at) = separators(base).into_iter().find(marked) {
        base = &base[..at];
    } else if let Some(dot) = base.iter().rposition(|b| *b == b'.').filter(|at| *at > 0) {
        let (stem, extension) = base.split_at(dot);
        let marked = |at: &usize| {
            let mark = &stem[at + 1..];
            is_date(mark) || stem[*at] == b'.' && is_number(mark)
        };
        if let Some(at) = separators(stem).into_iter().find(marked) {
            with_extension = [&stem[..at], extension].concat();
            base = &with_extension;
        }
    }
    OsStr::from_bytes(base).to_owned()
}

/// Whether both followed paths are names of one log.
pub fn are_kin(one: &Path, other: &Path) -> bool {
    let base = |path: &Path| base_of(path.file_name().unwrap_or_default());
    one == other || one.parent() == other.parent() && base(one) == base(other)
}

fn is_number(mark: &[u8]) -> bool {
    !mark.is_empty() && mark.len() <= 10 && mark.iter().all(u8::is_ascii_digit)
}

/// At least six digits with the usual date separators; also followed by `-1` (logrotate's dateext twice a day).
fn is_date(mark: &[u8]) -> bool {
    mark.first().is_some_and(u8::is_ascii_digit)
        && mark
            .iter()
            .all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.' | b':' | b'T' | b'Z' | b'+'))
        && mark.iter().filter(|b| b.is_ascii_digit()).count() >= 6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        use Packed::*;
        for (name, want) in [
            ("app.log.1", Some(Plain)),
            ("app.log.10", Some(Plain)),
            ("app.log-20261122", Some(Plain)),
            ("app.log-20261122.gz", Some(Gzip)),
            ("app.log.2026-11-22_10:00:00", Some(Plain)),
            ("app.log-20261122-1700000000.gz", Some(Gzip)),
            ("app.log.1.gz", Some(Gzip)),
            ("app.log.2.xz", Some(Other)),
            ("app-20261122.log", Some(Plain)),
            ("app-2026-11-22.log.gz", Some(Gzip)),
            ("app.log", None),
            ("app.log.err", None),
            ("app.log.1.bak", None),
            ("app.log2", None),
            ("app-2.log", None),
            ("app.log.", None),
            ("app.log.gz", Some(Gzip)),
            ("other.log.1", None),
        ] {
            assert_eq!(rotated(OsStr::new("app.log"), OsStr::new(name)), want, "{name}");
        }
    }

    /// Fails when two names of one log count as two logs, or two logs as one.
    #[test]
    fn families() {
        for (name, base) in [
            ("app.log", "app.log"),
            ("app.log.1", "app.log"),
            ("app.log.12.gz", "app.log"),
            ("app.log.gz", "app.log"),
            ("app.log-20261122-1700000000.gz", "app.log"),
            ("app.log.2026-11-22_10:00:00", "app.log"),
            ("app-20261122.log", "app.log"),
            ("app-2026-11-22.log.xz", "app.log"),
            ("a.1.log", "a.log"),
            ("a-1.log", "a-1.log"),
            ("app.log.err", "app.log.err"),
            ("app.log.1.bak", "app.log.bak"),
            (".1", ".1"),
            ("1", "1"),
            ("syslog", "syslog"),
        ] {
            assert_eq!(base_of(OsStr::new(name)), base, "{name}");
        }
    }

    #[test]
    fn oldest_first_and_never_by_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for (n, ns) in [("f.1", 30), ("f.2", 10), ("f.3", 20), ("f.err", 40)] {
            let file = fs::File::create(dir.path().join(n)).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(ns)).unwrap();
        }
        let names: Vec<_> =
            list(&path).unwrap().iter().map(|s| s.path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["f.2", "f.3", "f.1"]);
    }

    /// Arbitrary file names, as anyone with write access to the folder may create. Fails when one makes the rules panic, or
    /// the base of a rotated name is itself a rotated name of that base.
    #[test]
    fn fuzz_names() {
        let names = [
            "app.log.1",
            "app.log-20261122-1.gz",
            "a.1.log",
            ".1.2",
            "-1.gz",
            "stem-2026-11-22.log.xz",
            "\u{fc}",
        ];
        let samples = names.map(|name| name.as_bytes().to_vec());
        crate::fuzz::damaged(
            &samples,
            |name| name.len(),
            |name| {
                let base = base_of(OsStr::from_bytes(name));
                for base in [&base, OsStr::new("app.log"), OsStr::new(".1")] {
                    let _ = rotated(base, OsStr::from_bytes(name));
                }
                rank(Path::new(OsStr::from_bytes(name)));
                base.len()
            },
        );
    }
}
