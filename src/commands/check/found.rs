//! Which files a source matches at this moment. Watches nothing: a running agent's discovery is `watch.rs`'s.

use crate::config::{self, Pattern, Source};
use globset::{GlobSet, GlobSetBuilder};
use std::path::{Path, PathBuf};

/// Deepest folder below a glob's fixed part; also ends a walk through symlinks that lead back.
const DEEPEST: usize = 32;

/// Every file that the source names, in order, each path once. Literal paths count if something is there.
pub fn files(source: &Source) -> Vec<PathBuf> {
    let excluded =
        set(source.exclude.iter().map(|e| if e.contains('/') { e.clone() } else { format!("**/{e}") }));
    let mut all = Vec::new();
    for pattern in &source.paths {
        match pattern {
            Pattern::Path(p) if p.symlink_metadata().is_ok() => all.push(p.clone()),
            Pattern::Path(_) => {}
            Pattern::Glob(g) => all.extend(expand(g)),
        }
    }
    all.sort();
    all.dedup();
    all.retain(|p| !excluded.is_match(p));
    all
}

/// The literal paths at which there is nothing, and the globs that match nothing.
pub fn missing(source: &Source) -> Vec<PathBuf> {
    let absent = |p: &&Pattern| match p {
        Pattern::Path(p) => p.metadata().is_err(),
        Pattern::Glob(g) => expand(g).is_empty(),
    };
    source.paths.iter().filter(absent).map(|p| pattern_text(p).into()).collect()
}

pub fn pattern_text(pattern: &Pattern) -> String {
    match pattern {
        Pattern::Path(p) => p.display().to_string(),
        Pattern::Glob(g) => g.clone(),
    }
}

/// Patterns that were checked when the config was read.
fn set(patterns: impl Iterator<Item = String>) -> GlobSet {
    let mut builder = GlobSetBuilder::new();
    for glob in patterns.filter_map(|p| config::glob(&p).ok()) {
        builder.add(glob);
    }
    builder.build().unwrap_or_default()
}

fn expand(glob: &str) -> Vec<PathBuf> {
    let matcher = set(std::iter::once(glob.to_owned()));
    let (base, depth) = base_and_depth(glob);
    let mut found = Vec::new();
    let mut folders = vec![(base, depth)];
    while let Some((folder, depth)) = folders.pop() {
        let Ok(entries) = folder.read_dir() else { continue };
        for path in entries.flatten().map(|e| e.path()) {
            let is_dir = path.is_dir();
            if !is_dir && matcher.is_match(&path) {
                found.push(path);
            } else if is_dir && depth > 1 {
                folders.push((path, depth - 1));
            }
        }
    }
    found
}

/// The folder before the first special character, and how many levels of it to look through.
fn base_and_depth(glob: &str) -> (PathBuf, usize) {
    let special = glob.find(['*', '?', '[', '{', '\\']).unwrap_or(glob.len());
    let cut = glob[..special].rfind('/').unwrap_or(0);
    let rest = &glob[cut..];
    // `**` crosses folders, and alternatives may have different depths.
    let depth = if rest.contains("**") || rest.contains('{') { DEEPEST } else { rest.matches('/').count() };
    (Path::new(if cut == 0 { "/" } else { &glob[..cut] }).to_owned(), depth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases() {
        for (glob, base, depth) in [
            ("/var/log/*.log", "/var/log", 1),
            ("/var/log/*/x.log", "/var/log", 2),
            ("/var/lo?/x", "/var", 2),
            ("/*", "/", 1),
            ("/a/**/x", "/a", DEEPEST),
            ("/a/{b,c/d}", "/a", DEEPEST),
        ] {
            assert_eq!(base_and_depth(glob), (base.into(), depth), "{glob}");
        }
    }
}
