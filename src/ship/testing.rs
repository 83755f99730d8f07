//! What ship's tests are made of: origins, chunks, batches. No behaviour under test lives here.

use super::flight::{Batch, Load, Records};
use crate::budget::{Budget, Share};
use crate::chunk::{Break, Chunk, FlightNo, Line, Mark, Origin, Point, Shape, StreamId, Then};
use crate::stop;
use crate::streams::Progress;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

pub const STAMP: i64 = 1_700_000_000_123;

pub fn origin(stream: u64, topic: &str, path: impl Into<PathBuf>, shape: Shape) -> Arc<Origin> {
    Arc::new(Origin {
        stream: StreamId(stream),
        topic: topic.into(),
        path: path.into(),
        shape: Arc::new(shape),
        gauge: Arc::new(Progress::default()),
    })
}

pub fn plain(stream: u64) -> Arc<Origin> {
    origin(stream, "t", "/log", Shape::default())
}

/// A chunk of whole lines that begins at `start`, each with its newline in between, as `tail` makes them.
pub fn chunk_of(origin: &Arc<Origin>, share: &Share, start: u64, lines: &[&[u8]]) -> Chunk {
    let mut bytes = Vec::new();
    let mut table = Vec::new();
    for line in lines {
        table.push(Line { at: bytes.len() as u32, len: line.len() as u32 });
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
    }
    let end = start + bytes.len() as u64;
    origin.gauge.framed.fetch_max(end, Relaxed);
    let (_handle, stop) = stop::pair();
    let permit = share.take(bytes.len(), &stop).expect("the test's budget is large enough");
    Chunk {
        origin: origin.clone(),
        range: start..end,
        end: Point { offset: end, mark: Mark::default(), then: Then::Line },
        last: Break::Newline,
        lines: table,
        bytes,
        permit,
    }
}

pub fn chunk(origin: &Arc<Origin>, start: u64, lines: &[&[u8]]) -> Chunk {
    chunk_of(origin, &Budget::new(1 << 30).share(), start, lines)
}

/// One batch of all lines of these chunks.
pub fn batch(flight: u64, chunks: Vec<Chunk>) -> Batch {
    let count = chunks.iter().map(|c| c.lines.len() as u32).sum();
    let bytes = chunks.iter().flat_map(|c| &c.lines).map(|l| l.len as usize).sum();
    let load = Load::new("t".into(), [0; 16], STAMP, chunks);
    Batch {
        flight: FlightNo(flight),
        partition: 0,
        load: Arc::new(load),
        records: Records::All,
        count,
        bytes,
        numbers: None,
        attempts: 0,
        maybe_stored: false,
        restamped: None,
        intent: 0,
        noted: None,
    }
}
