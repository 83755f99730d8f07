//! Encodes a batch for the `kafka` crate, which takes all records of a frame at once, as slices. Copies no line.

use super::client::{CallError, CrateClient};
use crate::producer::batch::Batch;
use crate::producer::driver::Acks;
use crate::producer::record_encoder::{Piece, RecordEncoder};
use std::ops::Range;
use std::time::Duration;

/// Why a batch could not be stored as a whole.
#[derive(Debug)]
pub struct FrameFailed {
    pub trouble: CallError,
    /// Its first records are stored.
    pub partly_stored: bool,
}

/// Sends a batch in frames of up to [`FRAME`] bytes, usually one, each answered before the next is sent. Returns the
/// first record's offset; none if other producers' records came in between.
pub fn produce(
    client: &mut CrateClient,
    encoder: &mut RecordEncoder,
    batch: &Batch,
    how: (Acks, Duration),
) -> Result<Option<i64>, FrameFailed> {
    let mut page = RequestRecords::default();
    let mut sent = Ok(Sent::default());
    let mut flush = |page: &mut RequestRecords<'_>, sent: &mut Result<Sent, FrameFailed>| {
        if let Ok(so_far) = sent {
            let done = client.produce(&batch.group.topic, batch.partition, how, page.records());
            match done {
                Ok(offset) => so_far.add(offset, page.places.len()),
                Err(trouble) => *sent = Err(FrameFailed { trouble, partly_stored: so_far.records > 0 }),
            }
        }
        page.clear();
    };
    encoder.each(batch, |record| {
        let bytes = OVERHEAD + record.key.as_deref().map_or(0, <[u8]>::len) + record.value.len();
        if page.bytes > 0 && page.bytes + bytes > FRAME {
            flush(&mut page, &mut sent);
        }
        page.bytes += bytes;
        let key = record.key.map(|k| page.place(k));
        let value = page.place(record.value);
        page.places.push((key, value));
    });
    flush(&mut page, &mut sent);
    sent.map(|s| s.first.filter(|_| s.gapless))
}

/// Largest frame with more than one record, in bytes. An ordinary batch of 512 KiB goes as one frame; one of very
/// short lines, which the old format makes many times larger, does not fill the memory.
const FRAME: usize = 1 << 20;

/// Overhead of the old message format per record: offset 8, size 4, crc 4, magic, attributes, two lengths of 4.
const OVERHEAD: usize = 26;

struct Sent {
    first: Option<i64>,
    records: i64,
    gapless: bool,
}

impl Default for Sent {
    fn default() -> Self {
        Sent { first: None, records: 0, gapless: true }
    }
}

impl Sent {
    fn add(&mut self, offset: Option<i64>, records: usize) {
        if self.records == 0 {
            self.first = offset;
        }
        self.gapless &= offset == self.first.map(|f| f + self.records);
        self.records += records as i64;
    }
}

/// The records of one frame in the crate's form. Lines stay where they are; only what the encoder produces is copied.
#[derive(Default)]
struct RequestRecords<'l> {
    bytes: usize,
    places: Vec<(Option<FieldPlace<'l>>, FieldPlace<'l>)>,
    written: Vec<u8>,
}

enum FieldPlace<'l> {
    Lasting(&'l [u8]),
    Written(Range<usize>),
}

impl<'l> RequestRecords<'l> {
    fn place(&mut self, piece: Piece<'l, '_>) -> FieldPlace<'l> {
        match piece {
            Piece::Lasting(bytes) => FieldPlace::Lasting(bytes),
            Piece::Passing(bytes) => {
                let from = self.written.len();
                self.written.extend_from_slice(bytes);
                FieldPlace::Written(from..self.written.len())
            }
        }
    }

    fn get(&self, place: &FieldPlace<'l>) -> &[u8] {
        match place {
            FieldPlace::Lasting(bytes) => bytes,
            FieldPlace::Written(range) => &self.written[range.clone()],
        }
    }

    fn records(&self) -> impl Iterator<Item = (Option<&[u8]>, &[u8])> {
        self.places.iter().map(|(key, value)| (key.as_ref().map(|k| self.get(k)), self.get(value)))
    }

    fn clear(&mut self) {
        self.bytes = 0;
        self.places.clear();
        self.written.clear();
    }
}
