//! Chunks: pieces of a stream on their way from a tail to the producer.

use crate::budget::Permit;
use crate::record::{Ack, Break, Closed, Identity, Line, Point, Range, Shape, StreamId, Topic};
use crate::streams::{Opened, Progress};
use std::path::PathBuf;
use std::sync::Arc;

/// The source of a chunk's bytes; one per open stream, shared by its chunks.
#[derive(Debug)]
pub struct Origin {
    pub stream: StreamId,
    pub topic: Topic,
    /// The *followed* path, also when the bytes are read from a rotated file.
    pub path: PathBuf,
    pub shape: Arc<Shape>,
    pub progress: Arc<Progress>,
}

/// A piece of a stream with the lines found in it.
///
/// Invariant: `bytes[0]` is the byte at `range.start`, and the lines are in `bytes` in order and without overlap.
/// Bytes that are left out (the rest of a cut line, a hole, filtered lines) belong to a chunk's range but to no line.
/// A chunk without records has no bytes either; it still advances the position.
#[derive(Debug)]
pub struct Chunk {
    pub origin: Arc<Origin>,
    pub range: Range,
    /// `end.offset == range.end`.
    pub end: Point,
    pub last: Break,
    pub lines: Vec<Line>,
    pub bytes: Vec<u8>,
    /// Covers the bytes and the line table; returned to the budget when the last owner drops the chunk.
    #[allow(dead_code, reason = "held, not read")]
    pub permit: Permit,
}

impl Origin {
    /// For the registry: the stream is read from `at` on, in the file of this identity.
    pub fn opened(&self, identity: Identity, at: Point) -> Opened {
        Opened { stream: self.stream, path: self.path.clone(), identity, at, progress: self.progress.clone() }
    }
}

impl Chunk {
    /// Maximum number of lines in a chunk, so that a record is addressed by two `u16`.
    pub const MAX_LINES: usize = 16 * 1024;

    pub fn line(&self, i: usize) -> &[u8] {
        let l = self.lines[i];
        &self.bytes[l.at as usize..(l.at + l.len) as usize]
    }

    pub fn ack(&self) -> Ack {
        Ack {
            stream: self.origin.stream,
            range: self.range.clone(),
            end: self.end,
            lines: self.lines.len() as u64,
        }
    }
}

/// What a tail sends.
#[derive(Debug)]
pub enum TailOutput {
    Opened(Opened),
    Chunk(Chunk),
    /// The stream ends: its file was left after rotation, deleted, or truncated.
    Closed(Closed),
}
