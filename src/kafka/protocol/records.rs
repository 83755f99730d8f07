//! Writes record batches (version 2) and the produce request around them, straight from the chunks' bytes into one
//! reused buffer.
//!
//! Nothing is allocated per line. Layout of a batch (KIP-98, `DefaultRecordBatch.java`): base offset 8, length 4,
//! leader epoch 4, magic 1, crc32c 4 (of everything after it), attributes 2, last offset delta 4, first and last
//! timestamp 8 + 8, producer id 8, epoch 2, base sequence 4, record count 4; then the records. Of a record: length,
//! attributes 1, timestamp delta, offset delta, key, value, headers; lengths and deltas are zigzag varints, length -1
//! is null.

use crate::chunk::Chunk;
use crate::kafka::protocol::codec::{Codec, Compressor};
use crate::kafka::protocol::wire::{ApiKey, Writer, put_uvarint, uvarint_len, zigzag};
use crate::producer::batch::{Batch, Records};
use crate::producer::driver::Acks;
use crate::producer::record_encoder::{Record, RecordEncoder};
use crate::record::{Format, Key, Line};
use std::hint::black_box;

/// Bytes before a batch's records.
pub const HEADER: usize = 61;
/// Where the checksummed part starts.
const CHECKED: usize = 21;
/// Maximum overhead of a record without key and headers: five varints of 5, of which two are single bytes.
const FRAMING: usize = 24;
/// Lines are copied in blocks of this size. musl's memcpy takes 60 ns for 64 to 1563 bytes, and this a fifth of that.
/// Longer lines use memcpy.
const BLOCK: usize = 64;
const LONG: usize = 2048;

impl Writer {
    /// Writes a record without key and headers. Its value is the first `len` bytes of `from`; bytes after it may be
    /// read too.
    #[inline(always)]
    fn plain(&mut self, delta: u32, from: &[u8], len: usize) {
        let (delta, value) = (zigzag(delta as i32), zigzag(len as i32));
        let body = 4 + uvarint_len(delta) + uvarint_len(value) + len;
        let to = self.room(FRAMING + len + BLOCK);
        let mut at = put_uvarint(to, zigzag(body as i32));
        to[at..at + 2].fill(0); // attributes, timestamp delta
        at += 2;
        at += put_uvarint(&mut to[at..], delta);
        to[at] = 1; // no key
        at += 1;
        at += put_uvarint(&mut to[at..], value);
        copy(&mut to[at..], from, len);
        at += len;
        to[at] = 0; // no headers
        self.at += at + 1;
    }

    /// `later_ms`: than the batch's first timestamp.
    fn record(&mut self, r: &Record<'_, '_>, later_ms: i64) {
        let sized = |n: usize| uvarint_len(zigzag(n as i32)) + n;
        let delta = zigzag(r.index as i32);
        let mut later = [0; 10];
        let later = put_varlong(&mut later, later_ms);
        let headers: usize = r.headers.iter().map(|(k, v)| sized(k.len()) + sized(v.len())).sum();
        let key = r.key.as_deref();
        let body = 1 // attributes
            + later.len()
            + uvarint_len(delta)
            + key.map_or(1, |k| sized(k.len()))
            + sized(r.value.len())
            + uvarint_len(zigzag(r.headers.len() as i32))
            + headers;
        self.varint(body);
        self.put(&[0]);
        self.put(later);
        self.uvarint(delta);
        match key {
            Some(key) => self.sized(key),
            None => self.put(&[1]),
        }
        self.sized(&r.value);
        self.varint(r.headers.len());
        for (name, value) in r.headers {
            self.sized(name.as_bytes());
            self.sized(value);
        }
    }

    fn sized(&mut self, bytes: &[u8]) {
        self.varint(bytes.len());
        self.put(bytes);
    }
}

/// Writes a signed varint of up to 64 bits at the front of `to`: the bytes it took.
fn put_varlong(to: &mut [u8; 10], value: i64) -> &[u8] {
    let mut zigzag = ((value << 1) ^ (value >> 63)) as u64;
    let mut at = 0;
    while zigzag >= 0x80 {
        to[at] = zigzag as u8 | 0x80;
        zigzag >>= 7;
        at += 1;
    }
    to[at] = zigzag as u8;
    &to[..=at]
}

/// Copies `len` bytes; may read and write up to [`BLOCK`] more where both sides have them.
#[inline(always)]
fn copy(to: &mut [u8], from: &[u8], len: usize) {
    let whole = len.next_multiple_of(BLOCK);
    if len <= LONG
        && let (Some(to), Some(from)) = (to.get_mut(..whole), from.get(..whole))
    {
        let ((to, _), (from, _)) = (to.as_chunks_mut::<BLOCK>(), from.as_chunks::<BLOCK>());
        for (to, from) in to.iter_mut().zip(from) {
            *to = *from;
            black_box(()); // otherwise the compiler turns the loop back into one memcpy
        }
    } else {
        to[..len].copy_from_slice(&from[..len]);
    }
}

/// The fields of a produce request besides its batches.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    pub version: i16,
    pub correlation: i32,
    pub client: &'a str,
    pub acks: Acks,
    /// How long the broker may wait for the replicas.
    pub timeout_ms: i32,
    pub codec: Codec,
}

/// One worker's encoder: contexts and scratch buffers, created once.
#[derive(Debug, Default)]
pub struct Encoder {
    compressor: Compressor,
    record_encoder: RecordEncoder,
    /// Records before compression.
    loose: Writer,
}

impl Encoder {
    /// Frees the memory between bursts.
    pub fn release(&mut self) {
        *self = Encoder::default();
    }

    /// Upper bound of a batch's uncompressed bytes on the wire if its records have neither keys nor headers: the
    /// estimate used to group batches into requests. Short records count for more, since the answer may list each.
    pub fn estimate(batch: &Batch) -> usize {
        let count = batch.count as usize;
        HEADER + (batch.bytes + count * 10).max(count * 128) + 32
    }

    /// Writes the whole frame of a produce request of at most `most` bytes: the first batch whatever its size, and as
    /// many of the others as fit. Returns how many it contains. Batches of one topic must be adjacent, and no
    /// partition may occur twice: a broker accepts exactly one record batch per partition (two give 87).
    pub fn request(
        &mut self,
        out: &mut Writer,
        envelope: &Envelope<'_>,
        batches: &[Batch],
        most: usize,
    ) -> usize {
        out.begin(ApiKey::Produce, envelope.version, envelope.correlation, envelope.client);
        out.null_string(); // no transactional id
        out.i16(match envelope.acks {
            Acks::Zero => 0,
            Acks::One => 1,
            Acks::All => -1,
        });
        out.i32(envelope.timeout_ms);
        let topics_at = out.at;
        let topics = batches.chunk_by(|a, b| a.group.topic == b.group.topic);
        let all = topics.clone().count();
        out.count(all);
        let (mut whole, mut fitted) = (0, 0);
        for topic in topics {
            let in_topic = self.topic(out, envelope.codec, topic, fitted == 0, most);
            fitted += in_topic;
            whole += usize::from(in_topic > 0);
            if in_topic < topic.len() {
                recount(out, topics_at, all, whole);
                break;
            }
        }
        out.tags();
        out.end();
        fitted
    }

    /// Writes the batches of one topic that fit; with `first`, at least one. Writes nothing if none fits.
    fn topic(
        &mut self,
        out: &mut Writer,
        codec: Codec,
        batches: &[Batch],
        first: bool,
        most: usize,
    ) -> usize {
        let start = out.at;
        out.string(&batches[0].group.topic);
        let count_at = out.at;
        out.count(batches.len());
        let mut fitted = 0;
        for batch in batches {
            let before = out.at;
            out.i32(batch.partition);
            self.sized_batch(out, batch, codec);
            out.tags();
            // The topic's and the request's.
            const TAGS: usize = 2;
            if out.at + TAGS > most && !(first && fitted == 0) {
                out.at = before;
                recount(out, count_at, batches.len(), fitted);
                break;
            }
            fitted += 1;
        }
        if fitted == 0 {
            out.at = start;
        } else {
            out.tags();
        }
        fitted
    }

    /// Writes a batch after its length. A compact length is a varint whose size is guessed; a wrong guess costs a
    /// move.
    fn sized_batch(&mut self, out: &mut Writer, batch: &Batch, codec: Codec) {
        let flexible = out.is_flexible();
        let length_at = out.at;
        let guess = match flexible {
            true => uvarint_len(Self::estimate(batch) as u32),
            false => 4,
        };
        out.room(guess);
        out.at += guess;
        let start = out.at;
        self.batch(out, batch, codec);
        let len = out.at - start;
        if !flexible {
            out.bytes[length_at..start].copy_from_slice(&(len as u32).to_be_bytes());
            return;
        }
        let real = uvarint_len(len as u32 + 1);
        if real != guess {
            out.room(8);
            out.bytes.copy_within(start..out.at, length_at + real);
            out.at = length_at + real + len;
        }
        put_uvarint(&mut out.bytes[length_at..], len as u32 + 1);
    }

    /// Appends one record batch.
    pub fn batch(&mut self, out: &mut Writer, batch: &Batch, mut codec: Codec) {
        let start = out.at;
        if codec != Codec::None {
            self.loose.clear();
            let written = records(&mut self.record_encoder, &mut self.loose, batch);
            let loose = &self.loose.bytes[..self.loose.at];
            let to = out.room(HEADER + Compressor::bound(codec, loose.len()));
            match self.compressor.compress(codec, loose, &mut to[HEADER..]) {
                Ok(n) => {
                    out.at += HEADER + n;
                    return header(&mut out.bytes[start..out.at], batch, codec, written);
                }
                Err(_) => codec = Codec::None,
            }
        }
        out.room(Self::estimate(batch) + FRAMING + BLOCK);
        out.at += HEADER;
        let written = records(&mut self.record_encoder, out, batch);
        header(&mut out.bytes[start..out.at], batch, codec, written);
    }
}

/// Corrects a count already written; the new one is not larger.
fn recount(out: &mut Writer, at: usize, was: usize, now: usize) {
    if !out.is_flexible() {
        out.bytes[at..at + 4].copy_from_slice(&(now as u32).to_be_bytes());
        return;
    }
    let (old, new) = (uvarint_len(was as u32 + 1), uvarint_len(now as u32 + 1));
    out.bytes.copy_within(at + old..out.at, at + new);
    out.at -= old - new;
    put_uvarint(&mut out.bytes[at..], now as u32 + 1);
}

/// What a batch's header states about its records.
struct RecordsWritten {
    count: u32,
    newest_ms: i64,
}

/// Appends the records of a batch.
fn records(record_encoder: &mut RecordEncoder, out: &mut Writer, batch: &Batch) -> RecordsWritten {
    // A different timestamp was forced by the broker: it applies even to records with a time of their own.
    let (base_ms, restamped) = (batch.stamp_ms(), batch.restamped.is_some());
    let (mut count, mut newest) = (0, None);
    if !batch.group.chunks.iter().all(is_plain) {
        record_encoder.each(batch, |r| {
            let stamp_ms = r.stamp_ms.filter(|_| !restamped).unwrap_or(base_ms);
            out.record(&r, stamp_ms.saturating_sub(base_ms));
            count += 1;
            newest = newest.max(Some(stamp_ms));
        });
        return RecordsWritten { count, newest_ms: newest.unwrap_or(base_ms) };
    }
    let mut put = |chunk: &Chunk, line: &Line| {
        out.plain(count, &chunk.bytes[line.at as usize..], line.len as usize);
        count += 1;
    };
    match &batch.records {
        Records::All => batch.group.chunks.iter().for_each(|c| c.lines.iter().for_each(|l| put(c, l))),
        Records::Picked(picks) => picks.iter().for_each(|p| {
            let chunk = &batch.group.chunks[usize::from(p.chunk)];
            put(chunk, &chunk.lines[usize::from(p.line)]);
        }),
    }
    RecordsWritten { count, newest_ms: base_ms }
}

/// Neither key nor headers, and the value is the line.
fn is_plain(chunk: &Chunk) -> bool {
    let shape = &chunk.origin.shape;
    matches!((&shape.key, &shape.format), (Key::None, Format::Raw)) && shape.headers.is_empty()
}

/// Fills in the header of a batch whose records follow it.
fn header(bytes: &mut [u8], batch: &Batch, codec: Codec, written: RecordsWritten) {
    let RecordsWritten { count, newest_ms } = written;
    debug_assert_eq!(
        count, batch.count,
        "the core counts a batch's records, and sequence numbers depend on that count"
    );
    let numbers = batch.numbers.map_or((-1, -1, -1), |n| (n.pid, n.epoch, n.base));
    let stamp = batch.stamp_ms().to_be_bytes();
    let (len, last) = (bytes.len() as u32 - 12, count.wrapping_sub(1));
    let mut at = 0;
    let mut put = |field: &[u8]| {
        bytes[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    };
    put(&0i64.to_be_bytes());
    put(&len.to_be_bytes());
    put(&(-1i32).to_be_bytes());
    put(&[2, 0, 0, 0, 0]); // magic; the checksum comes last
    put(&(codec as i16).to_be_bytes());
    put(&last.to_be_bytes());
    put(&stamp);
    put(&newest_ms.to_be_bytes());
    put(&numbers.0.to_be_bytes());
    put(&numbers.1.to_be_bytes());
    put(&numbers.2.to_be_bytes());
    put(&count.to_be_bytes());
    let sum = crc32c::crc32c(&bytes[CHECKED..]);
    bytes[CHECKED - 4..CHECKED].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
