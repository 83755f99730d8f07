//! The options of a tail: its path with the settings of its source.

use super::follow::Until;
use super::nuls;
use super::open::Reading;
use crate::record::{Shape, Topic};
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Where to start reading a file that already exists when its source is first seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    Beginning,
    End,
    Offset(u64),
}

impl Start {
    /// The offset in a file of this size.
    pub fn offset(self, file: &File, size: u64) -> io::Result<u64> {
        Ok(match self {
            Start::Beginning => 0,
            Start::End => nuls::end_of_lines(file, size)?,
            Start::Offset(n) => n,
        })
    }
}

/// How much data of deleted files is kept open for unread lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hold {
    pub bytes: u64,
    pub time: Duration,
}

/// One followed path with the settings of its source.
#[derive(Clone, Debug)]
pub struct TailOptions {
    pub topic: Topic,
    pub shape: Arc<Shape>,
    pub path: PathBuf,
    pub reading: Reading,
    pub start: Start,
    /// The path's pattern is new: `start` applies, and nothing was read under it before.
    pub new_pattern: bool,
    pub followed: Followed,
    /// Files born after this time (see [`crate::record::Identity::born`]) are new, even if they were renamed before the
    /// agent saw them. For a new pattern, this is when it was first seen; for a known one, when the state was last saved.
    pub since: (i64, u32),
    /// `Read` for `--once` or `follow = false`.
    pub until: Until,
    /// `--once`: give up a file that cannot be read for this long.
    pub give_up: Option<Duration>,
    /// Whether to follow a new file that appears at the path.
    pub reopen: bool,
    /// How often to look if events are unavailable or disabled.
    pub poll: Duration,
    /// Lines may wait this long for more of them.
    pub linger: Duration,
    pub rotate_grace: Duration,
    /// See [`super::follow::Patience`].
    pub line_after: Option<Duration>,
    pub record_after: Option<Duration>,
    pub deleted_hold: Hold,
    /// Bytes per second.
    pub rate: Option<u64>,
}

impl TailOptions {
    /// With chunks of no more than `rate` allows in a second.
    pub fn paced(mut self) -> TailOptions {
        if let Some(rate) = self.rate {
            // The bucket holds one second's worth.
            let second = usize::try_from(rate).unwrap_or(usize::MAX).max(4096);
            self.reading.chunk = self.reading.chunk.min(second);
        }
        self
    }
}

/// Which files are followed by a tail of their own.
#[derive(Clone)]
pub struct Followed {
    pub means: Arc<dyn Fn(&Path) -> bool + Send + Sync>,
    /// A pattern is followed, so files may appear under names that are not known yet.
    pub by_pattern: bool,
}

impl Followed {
    pub fn has(&self, path: &Path) -> bool {
        (self.means)(path)
    }
}

impl fmt::Debug for Followed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Followed").field("by_pattern", &self.by_pattern).finish_non_exhaustive()
    }
}

impl Default for Followed {
    fn default() -> Followed {
        Followed { means: Arc::new(|_| false), by_pattern: false }
    }
}
