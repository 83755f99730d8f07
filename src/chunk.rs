//! Chunks: pieces of a stream on their way from a tail to the producer.

use crate::budget::Permit;
use crate::quota::DeadLetterShare;
use crate::record::{Ack, Break, Format, Identity, Line, Point, Range, Shape, StreamId, Topic};
use crate::streams::{Opened, Progress};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

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
/// Invariant: the lines are in `bytes` in order and without overlap. For a log file, `bytes[0]` is the byte at
/// `range.start`; for a journal, `bytes` are the records of the entries in `range`. Bytes that are left out (the rest
/// of a cut line, a hole, filtered lines) belong to a chunk's range but to no line. A chunk without records has no
/// bytes either; it still advances the position.
#[derive(Debug)]
pub struct Chunk {
    pub origin: Arc<Origin>,
    pub range: Range,
    /// `end.offset == range.end`.
    pub end: Point,
    pub last: Break,
    /// When the oldest of its lines was noticed: `linger` counts from here.
    pub noticed: Instant,
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
    /// Reserves room in the dead-letter file for all lines, as long as the chunk is in memory. Returns the bytes.
    pub fn reserve_letters(&mut self, share: &DeadLetterShare) -> u64 {
        let letters = share.letters(self.lines.len(), self.bytes.len());
        self.permit.with_letters(share.reserve(letters));
        letters
    }

    /// Maximum number of lines in a chunk, so that a record is addressed by two `u16`.
    pub const MAX_LINES: usize = 16 * 1024;

    pub fn line(&self, i: usize) -> &[u8] {
        let l = self.lines[i];
        &self.bytes[l.at as usize..(l.at + l.len) as usize]
    }

    /// Where a line is in its file, as far as that is known.
    pub fn offset_of(&self, line: Line) -> u64 {
        match self.origin.shape.format {
            Format::Headed => self.range.start,
            Format::Raw | Format::Json { .. } => self.range.start + u64::from(line.at),
        }
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
