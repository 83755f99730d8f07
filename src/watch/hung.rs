//! Keeps walks away from network file systems that do not answer: the thread that walks also wakes the tails of all other
//! files, and a call on a dead mount may never return.

use crate::network_fs::is_network_fs;
use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError, bounded};
use log::{info, warn};
use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// A file system that takes longer for statfs(2), which is never answered from a cache, is not walked.
const PATIENCE: Duration = Duration::from_millis(500);

/// The folders that produce no events, as the last walks found them.
#[derive(Debug, Default)]
pub struct RemoteFolders {
    /// By the pattern's place in the sources: the topmost ones.
    of: HashMap<(usize, usize), Vec<PathBuf>>,
    /// Those that have not answered. The thread that asks ends with its question.
    asked: HashMap<PathBuf, Receiver<Infallible>>,
}

impl RemoteFolders {
    /// A walk of this pattern has visited `folders`, parents first.
    pub fn found(&mut self, pattern: (usize, usize), folders: Vec<PathBuf>) {
        let mut topmost: Vec<PathBuf> = Vec::new();
        for folder in folders {
            if !topmost.iter().any(|top| folder.starts_with(top)) {
                topmost.push(folder);
            }
        }
        self.of.insert(pattern, topmost);
    }

    /// Whether all remote folders of this pattern answer.
    pub fn answer(&mut self, pattern: (usize, usize)) -> bool {
        let folders = self.of.get(&pattern).cloned().unwrap_or_default();
        folders.iter().all(|folder| self.answers(folder, is_network_fs))
    }

    fn answers(&mut self, folder: &Path, ask: fn(&Path) -> bool) -> bool {
        if let Some(asked) = self.asked.get(folder) {
            if asked.try_recv() == Err(TryRecvError::Empty) {
                return false;
            }
            self.asked.remove(folder);
            info!("{}: answers again", folder.display());
        }
        let (told, answer) = bounded(0);
        let path = folder.to_path_buf();
        let body = move || {
            ask(&path);
            drop(told);
        };
        // Detached: it may never return.
        let asks = thread::Builder::new().name("ask".into()).stack_size(64 << 10).spawn(body);
        if asks.is_err() || answer.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout) {
            return true;
        }
        warn!(
            "{}: the file system does not answer; new files and lines there are not read until it does",
            folder.display()
        );
        self.asked.insert(folder.into(), answer);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::after;

    /// Fails when a walk waits for a file system that hangs, asks it again while it hangs, or never walks it again.
    #[test]
    fn a_folder_that_hangs_for_a_while() {
        let mut remote = RemoteFolders::default();
        let paths = ["/n", "/n/a", "/m/b"].map(PathBuf::from);
        remote.found((0, 1), paths.to_vec());
        assert_eq!(remote.of[&(0, 1)], ["/n", "/m/b"].map(PathBuf::from));
        assert!(remote.answer((0, 1)) && remote.answer((0, 0)));
        let hangs = |_: &Path| {
            let _ = after(PATIENCE * 2).recv();
            true
        };
        assert!(!remote.answers(Path::new("/n"), hangs));
        assert!(!remote.answer((0, 1)), "it still hangs");
        let _ = after(PATIENCE * 2).recv();
        assert!(remote.answer((0, 1)));
        assert!(remote.asked.is_empty());
    }
}
