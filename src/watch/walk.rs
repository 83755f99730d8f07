//! A walk of all patterns: finds new files, notices replaced ones, and keeps the watches of the folders it visits.

use super::pattern::{Pattern, Visitor};
use super::watches::{EventSupport, OfPath, Watches};
use super::{FileKey, Found, Slot, WALK, WALK_BLIND, Watch, WatchEvent, Watched, wake};
use crate::network_fs::is_generated;
use crate::packed::{Packed, packing};
use crate::wake_slot::WakeSlot;
use log::{info, warn};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Whether a path that a pattern matches leads through a link to a file with a followed path of its own. Its rotated files are
/// next to that one.
fn leads_to_followed(sources: &[Watched], path: &Path) -> bool {
    fs::canonicalize(path).is_ok_and(|file| file != path && sources.iter().any(|s| s.means(&file)))
}

impl Watch<'_> {
    /// Walks all patterns. Keeps the watches of the folders it visits and drops the others.
    pub(super) fn walk(&mut self, first: bool) {
        let start = Instant::now();
        self.dirty = false;
        self.walk += 1;
        self.blind = !self.watches.work();
        let sources = std::mem::take(&mut self.sources);
        let mut skipped = false;
        for (s, source) in sources.iter().enumerate() {
            for (p, pattern) in source.patterns.iter().enumerate() {
                if !first && !self.remote.answer((s, p)) {
                    (skipped, self.blind) = (true, true);
                    continue;
                }
                let (blind, files, refused) = (Vec::new(), Vec::new(), Vec::new());
                let mut met = Met { watches: &mut self.watches, blind, files, refused };
                pattern.walk(&mut met);
                let Met { blind, files, refused, .. } = met;
                self.blind |= !blind.is_empty();
                self.remote.found((s, p), blind);
                refused.into_iter().for_each(|(folder, why)| self.refuse(folder, &why));
                let is_literal = pattern.literal().is_some();
                for (path, m) in files.into_iter().filter(|(p, _)| !source.exclude.matches(p)) {
                    let is_known = is_literal || self.slots.contains_key(&path);
                    if !is_known && leads_to_followed(&sources[..=s], &path) {
                        continue;
                    }
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
        if !skipped {
            self.packed.retain(|path, _| path.exists());
        }
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

    /// A walk found a file. If it differs from the last walk's, no event may have reported that: its folder was
    /// replaced, or mounted over.
    fn meet(&mut self, poll: bool, path: PathBuf, m: &fs::Metadata) {
        let at_path = Some(FileKey::of(m));
        if let Some(slot) = self.slots.get_mut(&path) {
            slot.walk = self.walk;
            let state = (m.size(), m.mtime_nsec().saturating_add(m.mtime().saturating_mul(1_000_000_000)));
            let changed = std::mem::replace(&mut slot.state, state) != state;
            if std::mem::replace(&mut slot.at_path, at_path) != at_path {
                self.look_at(&path);
            } else if changed {
                slot.wake.look(); // in case no event told, as for a write to mapped memory
            }
            self.settle(&path);
        } else if !m.is_file() {
            self.refuse(path, kind(m));
        } else if is_generated(&path, m) {
            self.refuse(path, GENERATED);
        } else if self.own.contains(&(m.dev(), m.ino())) {
            self.refuse(path, "is this agent's own log");
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
            self.refuse(path, "is compressed in an unsupported format");
        } else if !std::mem::replace(&mut self.compressed_said, true) {
            let path = path.display();
            info!("{path}: is compressed in an unsupported format; all such files are skipped");
        }
    }

    fn refuse(&mut self, path: PathBuf, why: &str) {
        if self.reported.get(&path).is_none_or(|s| s != why) {
            warn!("{}: {why}; it is not followed", path.display());
            self.reported.insert(path, why.into());
        }
    }

    fn found(&mut self, poll: bool, path: PathBuf, at_path: Option<FileKey>) {
        let wake = Arc::new(WakeSlot::new(!poll));
        let link = fs::symlink_metadata(&path).is_ok_and(|m| m.is_symlink());
        let watches = OfPath::default();
        let entry = Slot { wake: wake.clone(), watches, link, at_path, state: (0, 0), walk: self.walk };
        self.slots.insert(path.clone(), entry);
        if at_path.is_some() && self.reported.remove(&path).is_some() {
            info!("{}: is a regular file now", path.display());
        }
        self.watch_file(&path);
        let _ = self.out.send(WatchEvent::Found(Found { path, slot: wake }));
    }
}

const GENERATED: &str = "is made by the kernel while it is read, and has no size";

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
    /// Folders that cannot be watched.
    blind: Vec<PathBuf>,
    files: Vec<(PathBuf, fs::Metadata)>,
    /// Folders behind untrusted links, with the reason.
    refused: Vec<(PathBuf, String)>,
}

impl Visitor for Met<'_> {
    /// Watched before it is listed, so that names created in between are reported.
    fn folder(&mut self, path: &Path) {
        if self.watches.folder(path) == EventSupport::No {
            self.blind.push(path.into());
        }
    }

    fn file(&mut self, path: PathBuf, m: fs::Metadata) {
        self.files.push((path, m));
    }

    fn refused(&mut self, folder: &Path, why: &io::Error) {
        self.refused.push((folder.into(), why.to_string()));
    }
}
