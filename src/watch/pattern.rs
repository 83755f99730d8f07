//! The path patterns of a source: one literal path, or a glob that is walked folder by folder.

use super::glob::{self, Glob, GlobError};
use crate::links;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// Maximum depth below a `**`. Symlinked folders are not entered there, so this only guards against odd trees.
const DEEPEST: usize = 64;

#[derive(Debug, Clone, PartialEq)]
pub struct Pattern {
    /// Where walking starts: an absolute path without wildcards.
    root: PathBuf,
    parts: Vec<PatternPart>,
    /// As written in the config and saved in `offsets`.
    pub text: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq)]
enum PatternPart {
    /// A literal name, which need not be UTF-8.
    Name(OsString),
    Wild(Glob),
    /// `**`: any number of folders.
    Deep,
}

/// Receives what a walk finds.
pub trait Visitor {
    /// A folder in which matching names may appear; it need not exist. Called before the folder is listed.
    fn folder(&mut self, path: &Path);
    /// Anything but a folder, with its stat(2) data.
    fn file(&mut self, path: PathBuf, m: fs::Metadata);
    /// A folder behind an untrusted symlink, or one that this user may not list or search; its content is skipped.
    fn refused(&mut self, _folder: &Path, _why: &io::Error) {}
}

/// The paths among those of the patterns that lead to this file now, whose device and inode are given.
pub fn paths_to<'p>(patterns: impl Iterator<Item = &'p Pattern>, file: (u64, u64)) -> Vec<PathBuf> {
    struct Same((u64, u64), Vec<PathBuf>);
    impl Visitor for Same {
        fn folder(&mut self, _: &Path) {}
        fn file(&mut self, path: PathBuf, m: fs::Metadata) {
            if (m.dev(), m.ino()) == self.0 {
                self.1.push(path);
            }
        }
    }
    let mut same = Same(file, Vec::new());
    patterns.for_each(|pattern| pattern.walk(&mut same));
    same.1
}

impl Pattern {
    /// This literal path, whatever characters it contains.
    pub fn path(path: &Path) -> Pattern {
        let (root, parts) = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => (parent.to_owned(), vec![PatternPart::Name(name.to_owned())]),
            _ => (path.to_owned(), Vec::new()),
        };
        Pattern { root, parts, text: path.as_os_str().as_bytes().to_vec() }
    }

    /// An absolute glob; `*` does not match `/`.
    pub fn glob(text: &str) -> Result<Pattern, GlobError> {
        let mut root = PathBuf::from("/");
        let mut parts = Vec::new();
        for name in pieces(text) {
            if name == "**" {
                parts.push(PatternPart::Deep);
            } else if parts.is_empty() && !name.contains(['*', '?', '[', '{', '\\']) {
                root.push(name);
            } else {
                parts.push(PatternPart::Wild(Glob::new(name)?));
            }
        }
        if parts.is_empty() {
            return Ok(Pattern::path(Path::new(text)));
        }
        if let Some(PatternPart::Deep) = parts.last() {
            parts.push(PatternPart::Wild(Glob::new("*")?)); // every file below
        }
        Ok(Pattern { root, parts, text: text.as_bytes().to_vec() })
    }

    /// The path, if the pattern is literal.
    pub fn literal(&self) -> Option<PathBuf> {
        match self.parts.as_slice() {
            [PatternPart::Name(name)] => Some(self.root.join(name)),
            [] => Some(self.root.clone()), // `/`
            _ => None,
        }
    }

    /// Visits every folder to watch and every path that matches now, in order of names.
    pub fn walk(&self, to: &mut impl Visitor) {
        walk(&self.root, &self.parts, 0, to);
    }

    /// Whether the pattern matches this path, so that a walk would visit it if it existed.
    pub fn matches(&self, path: &Path) -> bool {
        let Ok(rest) = path.strip_prefix(&self.root) else { return false };
        let names: Vec<&Path> = rest
            .components()
            .filter(|c| matches!(c, Component::Normal(_)))
            .map(|c| Path::new(c.as_os_str()))
            .collect();
        fits(&self.parts, &names, &self.root)
    }
}

/// The components of a glob. A brace that contains `/` is kept whole, so that such a glob is rejected.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0usize;
    let mut escaped = false;
    text.split(move |c| {
        match c {
            _ if std::mem::take(&mut escaped) => {}
            '\\' => escaped = true,
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == '/' && depth == 0
    })
    .filter(|p| !p.is_empty() && *p != ".")
}

/// `at`: where the name components begin.
fn fits(parts: &[PatternPart], names: &[&Path], at: &Path) -> bool {
    let Some((part, rest)) = parts.split_first() else { return names.is_empty() };
    let Some((name, others)) = names.split_first() else { return false };
    let below = at.join(name);
    match part {
        // A walk does not enter symlinks below `**`.
        PatternPart::Deep => fits(rest, names, at) || (!below.is_symlink() && fits(parts, others, &below)),
        PatternPart::Name(n) => name.as_os_str() == n && fits(rest, others, &below),
        PatternPart::Wild(w) => w.matches(name.as_os_str().as_bytes()) && fits(rest, others, &below),
    }
}

fn walk(folder: &Path, parts: &[PatternPart], depth: usize, to: &mut impl Visitor) {
    let Some((part, rest)) = parts.split_first() else { return };
    if depth > DEEPEST {
        return;
    }
    if let PatternPart::Name(name) = part {
        to.folder(folder);
        return meet(folder.join(name), rest, depth, to);
    }
    if let PatternPart::Deep = part {
        walk(folder, rest, depth + 1, to);
    }
    to.folder(folder);
    if let Err(e) = links::enter(folder) {
        if links::is_untrusted(&e) {
            to.refused(folder, &e);
        }
        return deny(folder, &e, to);
    }
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) => return deny(folder, &e, to),
    };
    let mut entries: Vec<_> = entries.filter_map(Result::ok).collect();
    entries.sort_unstable_by_key(fs::DirEntry::file_name);
    for entry in entries {
        match part {
            PatternPart::Deep if entry.file_type().is_ok_and(|t| t.is_dir()) => {
                walk(&entry.path(), parts, depth + 1, to)
            }
            PatternPart::Wild(w) if w.matches(entry.file_name().as_bytes()) => {
                meet(entry.path(), rest, depth, to)
            }
            _ => {}
        }
    }
}

fn meet(path: PathBuf, rest: &[PatternPart], depth: usize, to: &mut impl Visitor) {
    match fs::metadata(&path) {
        // A folder is never a file.
        Ok(m) if m.is_dir() != rest.is_empty() => {
            if rest.is_empty() {
                to.file(path, m);
            } else {
                walk(&path, rest, depth + 1, to);
            }
        }
        Ok(_) => {}
        // A dangling symlink is not a file yet.
        Err(e) => deny(path.parent().unwrap_or(&path), &e, to),
    }
}

/// Reports a folder that this user may not list or search; any other error means that nothing is there.
fn deny(folder: &Path, e: &io::Error, to: &mut impl Visitor) {
    if e.raw_os_error() == Some(libc::EACCES) {
        let why = "this user may not list or search it (add the agent's user to its group)";
        to.refused(folder, &io::Error::new(e.kind(), why));
    }
}

/// Paths excluded although a pattern matches them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exclude(Vec<(bool, Glob)>);

impl Exclude {
    /// A glob without `/` applies to the file name, any other to the whole path.
    pub fn new(globs: &[String]) -> Result<Exclude, GlobError> {
        let build = |g: &String| Ok((g.contains('/'), Glob::new(g)?));
        Ok(Exclude(globs.iter().map(build).collect::<Result<_, GlobError>>()?))
    }

    /// Excludes these files too.
    pub fn add(&mut self, paths: &[PathBuf]) {
        let globs = paths.iter().filter_map(|p| Glob::new(&glob::escape(p.to_str()?)).ok());
        self.0.extend(globs.map(|glob| (true, glob)));
    }

    pub fn matches(&self, path: &Path) -> bool {
        let name = path.file_name().map(Path::new).unwrap_or(path);
        self.0
            .iter()
            .any(|(whole, glob)| glob.matches(if *whole { path } else { name }.as_os_str().as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    #[derive(Default)]
    struct Met(Vec<PathBuf>);

    impl Visitor for Met {
        fn folder(&mut self, _: &Path) {}
        fn file(&mut self, path: PathBuf, _: fs::Metadata) {
            self.0.push(path);
        }
    }

    #[test]
    fn walks_what_matches() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        for f in ["a/x.log", "a/y.txt", "b/x.log", "b/c/d/x.log", "o{dd/x.log", "top.log"] {
            fs::create_dir_all(at(f).parent().unwrap()).unwrap();
            fs::write(at(f), "").unwrap();
        }
        let odd = dir.path().join(OsString::from_vec(b"a/\xff.log".to_vec()));
        fs::write(&odd, "").unwrap();
        fs::create_dir(at("a/dir.log")).unwrap();
        let root = dir.path().to_str().unwrap();
        for (glob, want) in [
            ("*/x.log", vec![at("a/x.log"), at("b/x.log"), at("o{dd/x.log")]),
            ("a/*.log", vec![at("a/x.log"), odd.clone()]),
            ("**/x.log", vec![at("a/x.log"), at("b/x.log"), at("b/c/d/x.log"), at("o{dd/x.log")]),
            ("{a,b}/[wx].log", vec![at("a/x.log"), at("b/x.log")]),
            ("*.log", vec![at("top.log")]),
            ("no/*.log", vec![]),
            (r"o\{dd/*.log", vec![at("o{dd/x.log")]),
        ] {
            let p = Pattern::glob(&format!("{root}/{glob}")).unwrap();
            let mut met = Met::default();
            p.walk(&mut met);
            met.0.sort();
            let mut sorted = want.clone();
            sorted.sort();
            assert_eq!(met.0, sorted, "{glob}");
            assert!(want.iter().all(|w| p.matches(w)), "{glob}");
            assert!(!p.matches(&at("a/y.txt")), "{glob}");
        }
    }

    /// Creates a file in each visited folder at that moment.
    struct Late(Met);

    impl Visitor for Late {
        fn folder(&mut self, path: &Path) {
            fs::write(path.join("late.log"), "").unwrap();
        }
        fn file(&mut self, path: PathBuf, m: fs::Metadata) {
            self.0.file(path, m);
        }
    }

    /// Fails when a folder is listed before it is reported: names created before it is watched would be missed.
    #[test]
    fn a_folder_is_reported_before_it_is_listed() {
        for glob in ["*.log", "late.log", "**/*.log", "*/*.log"] {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("a/b")).unwrap();
            let mut met = Late(Met::default());
            Pattern::glob(&format!("{}/{glob}", dir.path().display())).unwrap().walk(&mut met);
            let below: &[&str] = match glob {
                "**/*.log" => &["a/b/late.log", "a/late.log", "late.log"],
                "*/*.log" => &["a/late.log"],
                _ => &["late.log"],
            };
            met.0.0.sort();
            assert_eq!(met.0.0, below.iter().map(|f| dir.path().join(f)).collect::<Vec<_>>(), "{glob}");
        }
    }

    #[test]
    fn excludes_by_name_or_path() {
        let e = Exclude::new(&["*.gz".into(), "/var/log/x/*".into()]).unwrap();
        for (path, out) in
            [("/var/log/a.gz", true), ("/var/log/x/a", true), ("/var/log/x/y/a", false), ("/a", false)]
        {
            assert_eq!(e.matches(Path::new(path)), out, "{path}");
        }
    }
}
