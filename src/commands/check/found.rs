//! The files that a source matches now, found with the agent's own discovery code.

use crate::config::{Config, Source};
use crate::packed::{Packed, packing};
use crate::watch::pattern::{Pattern, Visitor};
use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};

/// Every file that the source would follow, in order, each path once.
pub fn files(config: &Config, source: &Source) -> Vec<PathBuf> {
    let mut all = named(config, source);
    all.retain(|p| packing(p) != Packed::Other);
    all
}

/// Matching files in an unsupported compression format.
pub fn compressed(config: &Config, source: &Source) -> Vec<PathBuf> {
    let mut all = named(config, source);
    all.retain(|p| packing(p) == Packed::Other);
    all
}

fn named(config: &Config, source: &Source) -> Vec<PathBuf> {
    let exclude = config.exclude(source);
    let mut all: Vec<PathBuf> = source.paths.iter().flat_map(|p| walk(p).files).collect();
    all.sort_unstable();
    all.dedup();
    all.retain(|p| !exclude.matches(p));
    all
}

/// The paths and globs that match nothing.
pub fn missing(source: &Source) -> Vec<String> {
    source.paths.iter().filter(|p| walk(p).files.is_empty()).map(pattern_text).collect()
}

/// The paths that are folders, in which nothing is read.
pub fn folders(source: &Source) -> impl Iterator<Item = PathBuf> {
    source.paths.iter().filter_map(Pattern::literal).filter(|p| p.is_dir())
}

pub fn pattern_text(pattern: &Pattern) -> String {
    String::from_utf8_lossy(&pattern.text).into_owned()
}

/// Folders that are skipped, with the reason.
pub fn refused(source: &Source) -> Vec<(PathBuf, String)> {
    let mut all: Vec<_> = source.paths.iter().flat_map(|p| walk(p).refused).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[derive(Default)]
struct MatchedFile {
    files: Vec<PathBuf>,
    refused: Vec<(PathBuf, String)>,
}

impl Visitor for MatchedFile {
    fn folder(&mut self, _: &Path) {}
    fn file(&mut self, path: PathBuf, _: Metadata) {
        self.files.push(path);
    }
    fn refused(&mut self, folder: &Path, why: &io::Error) {
        self.refused.push((folder.into(), why.to_string()));
    }
}

fn walk(pattern: &Pattern) -> MatchedFile {
    let mut met = MatchedFile::default();
    pattern.walk(&mut met);
    met
}
