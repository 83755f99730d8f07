//! What is known about one stream, and whether a file holds its bytes.

use crate::record::{Identity, Mark, Point, Range, StreamId};
use crate::tail::content::mark_at;
use crate::tail::gz::Gz;
use crate::tail::identity::Look;
use std::fs::File;
use std::io::{self, Seek};
use std::path::PathBuf;
use std::sync::Arc;

/// What is known about a stream that may not be open in any tail.
#[derive(Clone, Debug)]
pub struct Entry {
    pub stream: StreamId,
    /// The followed path that it was read for.
    pub path: PathBuf,
    pub identity: Identity,
    pub at: Point,
    /// The first ≤ 256 bytes, as far as a tail of this run knows them.
    pub head: Vec<u8>,
    /// Ranges acknowledged beyond `at`, each with the point where reading continues after it.
    pub beyond: Vec<(Range, Point)>,
    /// Size in bytes, as last seen.
    pub size: u64,
    /// As last seen, in ns since 1970; 0: unknown.
    pub modified: i64,
    /// Read to its end and closed.
    pub finished: bool,
    pub reader: StreamUse,
}

/// How a tail uses a stream.
#[derive(Clone, Debug, Default)]
pub enum StreamUse {
    /// No tail has it.
    #[default]
    Free,
    /// A tail owns it and is about to open its file, or waits for a free descriptor.
    Opening,
    /// A tail reads it; from this file, unless it is compressed.
    Reading(Option<Arc<File>>),
    /// Its tail cannot find its bytes. Any tail that finds them may continue it.
    Missing,
}

impl StreamUse {
    /// Whether other tails must not take the stream.
    pub fn is_taken(&self) -> bool {
        matches!(self, StreamUse::Opening | StreamUse::Reading(_))
    }
}

impl Entry {
    /// An entry for a file of which only the identity is known.
    pub fn of(identity: Identity) -> Entry {
        Entry {
            stream: StreamId(0),
            path: PathBuf::new(),
            identity,
            at: Point::default(),
            head: Vec::new(),
            beyond: Vec::new(),
            size: 0,
            modified: 0,
            finished: false,
            reader: StreamUse::Free,
        }
    }

    /// The point that proves a file holds the stream's bytes: the position, or if that is 0, the end of the first range
    /// acknowledged beyond it.
    pub fn proof(&self) -> Point {
        let beyond = self.beyond.first().map(|(_, end)| *end);
        if self.at.offset > 0 { self.at } else { beyond.unwrap_or(self.at) }
    }

    /// Whether the file still has the bytes before the stream's position. If nothing was read there are none to compare:
    /// then its bytes count as different only if it is shorter than before.
    pub fn has_bytes_in(&self, file: &File, look: &Look) -> io::Result<bool> {
        let Point { offset, mark, .. } = self.proof();
        let least = if offset == 0 { self.size } else { offset };
        Ok(look.size >= least && (mark.len == 0 || mark_at(file, offset)? == mark))
    }

    /// Whether the decompressed `.gz` has the stream's bytes before its position.
    pub fn has_bytes_in_gz(&self, file: &File) -> io::Result<bool> {
        let Point { offset, mark, .. } = self.proof();
        rewound(file, |file| {
            let mut gz = Gz::new(file);
            let before = gz.skip_to(offset)?;
            let kept = &before[before.len().saturating_sub(usize::from(mark.len))..];
            Ok(gz.position() == offset && Mark::of(kept) == mark)
        })
    }
}

/// Rewinds the file before and after `read`; its position does not matter to the caller.
fn rewound<T>(file: &File, read: impl FnOnce(File) -> io::Result<T>) -> io::Result<T> {
    let mut rewind = file;
    rewind.rewind()?;
    let done = read(file.try_clone()?);
    rewind.rewind()?;
    done
}
