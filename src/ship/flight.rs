//! Flights: some chunks of one topic and, for each partition, one batch of their lines. Knows no driver and no time.

use crate::chunk::{Ack, Chunk, FlightNo, Topic};
use std::sync::Arc;

/// The chunks of a flight, shared by its batches. When the last batch is gone, bytes and permits go back by themselves.
#[derive(Debug)]
pub struct Load {
    pub topic: Topic,
    /// Time of reading in ms since 1970: the records' timestamp.
    pub stamp_ms: i64,
    /// At most [`Load::MAX_CHUNKS`].
    pub chunks: Vec<Chunk>,
}

impl Load {
    /// So that a record is addressed by two `u16`.
    pub const MAX_CHUNKS: usize = 1024;
}

/// One record: line `line` of chunk `chunk` of the load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pick {
    pub chunk: u16,
    pub line: u16,
}

/// Which records of the load a batch carries.
#[derive(Clone, Debug)]
pub enum Records {
    All,
    Picked(Arc<[Pick]>),
}

/// Producer id, epoch and the sequence of a batch's first record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Numbers {
    pub pid: i64,
    pub epoch: i16,
    pub base: i32,
}

/// The unit of sending, retry and completion: one partition's records, encoded by the driver into its own reused buffer
/// each time it is sent.
#[derive(Debug)]
pub struct Batch {
    pub flight: FlightNo,
    pub partition: i32,
    pub load: Arc<Load>,
    pub records: Records,
    /// Records in it, at least 1.
    pub count: u32,
    /// Bytes of its lines, without keys and framing.
    pub bytes: usize,
    pub numbers: Option<Numbers>,
    /// Times it was sent before.
    pub attempts: u32,
    /// An earlier attempt may have been stored without our knowing.
    pub maybe_stored: bool,
    /// A timestamp of its own, after the broker refused the load's; -1 is none at all. See [`Batch::stamp_ms`].
    pub restamped: Option<i64>,
}

impl Batch {
    /// The records' timestamp in ms since 1970; -1: none.
    pub fn stamp_ms(&self) -> i64 {
        self.restamped.unwrap_or(self.load.stamp_ms)
    }

    /// The records in order, as picks.
    pub fn picks(&self) -> impl Iterator<Item = Pick> + '_ {
        let (all, picked): (&[Chunk], &[Pick]) = match &self.records {
            Records::All => (&self.load.chunks, &[]),
            Records::Picked(p) => (&[], p),
        };
        let every = all.iter().enumerate().flat_map(|(c, chunk)| {
            (0..chunk.lines.len()).map(move |l| Pick { chunk: c as u16, line: l as u16 })
        });
        every.chain(picked.iter().copied())
    }
}

/// What ship keeps of a flight that has left: no bytes, only which chunks still wait for how many batches.
#[derive(Debug)]
pub struct Aloft {
    pub acks: Vec<(Ack, u16)>,
}
