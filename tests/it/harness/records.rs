//! Decodes the records of a Produce request: batches of magic 2 and the message sets of magic 0 and 1, with every
//! codec, checking lengths, deltas and CRCs. Encodes nothing.

use super::wire::Reader;
use std::io::Read;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rec {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Milliseconds; -1 if absent (magic 0).
    pub timestamp: i64,
}

#[derive(Clone, Debug)]
pub struct Batch {
    pub magic: i8,
    /// 0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd.
    pub codec: i16,
    /// -1 without idempotence, like the next two.
    pub producer_id: i64,
    pub epoch: i16,
    pub base_sequence: i32,
    pub records: Vec<Rec>,
    /// Size on the wire.
    pub bytes: usize,
}

/// Everything that a Produce request holds for one partition; an error says what is wrong with it.
pub fn decode(bytes: &[u8]) -> Result<Batch, String> {
    match bytes.get(16) {
        Some(2) => batch(bytes),
        Some(0 | 1) => message_set(bytes),
        other => Err(format!("{} bytes with magic {other:?}", bytes.len())),
    }
}

/// The header of a batch; the names are Kafka's.
struct Head<'a> {
    length: i32,
    magic: i8,
    crc: u32,
    /// Everything after the checksum matches it.
    covered: &'a [u8],
    attributes: i16,
    last_delta: i32,
    first_time: i64,
    producer_id: i64,
    epoch: i16,
    base_sequence: i32,
    count: i32,
}

impl<'a> Head<'a> {
    fn read(r: &mut Reader<'a>) -> Option<Head<'a>> {
        let (_base, length, _epoch, magic) = (r.i64()?, r.i32()?, r.i32()?, r.i8()?);
        let (crc, covered) = (r.i32()? as u32, r.rest);
        let (attributes, last_delta, first_time, _max_time) = (r.i16()?, r.i32()?, r.i64()?, r.i64()?);
        let (producer_id, epoch, base_sequence, count) = (r.i64()?, r.i16()?, r.i32()?, r.i32()?);
        Some(Head {
            length,
            magic,
            crc,
            covered,
            attributes,
            last_delta,
            first_time,
            producer_id,
            epoch,
            base_sequence,
            count,
        })
    }
}

fn batch(bytes: &[u8]) -> Result<Batch, String> {
    let mut r = Reader::new(bytes);
    let head = Head::read(&mut r).ok_or("the batch ends too early")?;
    let Head { length, magic, crc, covered, attributes, last_delta, first_time, count, .. } = head;
    let Head { producer_id, epoch, base_sequence, .. } = head;
    if length as usize + 12 != bytes.len() {
        return Err(format!(
            "one batch per partition: {} bytes, of which the first batch has {}",
            bytes.len(),
            length + 12
        ));
    }
    if crc32c::crc32c(covered) != crc {
        return Err("the batch's crc32c is wrong".into());
    }
    if last_delta + 1 != count {
        return Err(format!("last offset delta {last_delta} with {count} records"));
    }
    let codec = attributes & 7;
    let plain = decompress(codec, r.rest)?;
    let mut r = Reader::new(&plain);
    let mut records = Vec::with_capacity(count.max(0) as usize);
    for at in 0..count {
        let (delta, record) = record(&mut r, first_time)
            .ok_or_else(|| format!("record {at} of {count} is cut or malformed"))?;
        if delta != i64::from(at) {
            return Err(format!("record {at} has offset delta {delta}"));
        }
        records.push(record);
    }
    if !r.rest.is_empty() {
        return Err(format!("{} bytes after the last record", r.rest.len()));
    }
    Ok(Batch { magic, codec, producer_id, epoch, base_sequence, records, bytes: bytes.len() })
}

fn record(r: &mut Reader<'_>, first_time: i64) -> Option<(i64, Rec)> {
    let length = r.varint()?;
    let mut r = Reader::new(r.take(usize::try_from(length).ok()?)?);
    r.i8()?;
    let (time, delta) = (first_time + r.varint()?, r.varint()?);
    let key = varint_bytes(&mut r)?;
    let value = varint_bytes(&mut r)?;
    let count = r.varint()?;
    let headers =
        (0..count).map(|_| Some((varint_bytes(&mut r)??, varint_bytes(&mut r)?))).collect::<Option<_>>()?;
    r.rest.is_empty().then_some((delta, Rec { key, value, headers, timestamp: time }))
}

fn varint_bytes(r: &mut Reader<'_>) -> Option<Option<Vec<u8>>> {
    match r.varint()? {
        n if n < 0 => Some(None),
        n => Some(Some(r.take(n as usize)?.to_vec())),
    }
}

fn message_set(bytes: &[u8]) -> Result<Batch, String> {
    let mut found = Batch {
        magic: bytes[16] as i8,
        codec: 0,
        producer_id: -1,
        epoch: -1,
        base_sequence: -1,
        records: Vec::new(),
        bytes: bytes.len(),
    };
    messages(bytes, &mut found)?;
    Ok(found)
}

fn messages(bytes: &[u8], found: &mut Batch) -> Result<(), String> {
    let cut = || "the message set ends too early".to_owned();
    let mut r = Reader::new(bytes);
    while !r.rest.is_empty() {
        r.i64().ok_or_else(cut)?;
        let size = r.i32().ok_or_else(cut)?;
        let mut m = Reader::new(r.take(size as usize).ok_or_else(cut)?);
        let crc = m.i32().ok_or_else(cut)? as u32;
        let mut check = flate2::Crc::new();
        check.update(m.rest);
        if check.sum() != crc {
            return Err("a message's crc32 is wrong".into());
        }
        let magic = m.i8().ok_or_else(cut)?;
        let codec = i16::from(m.i8().ok_or_else(cut)?) & 7;
        let timestamp = if magic > 0 { m.i64().ok_or_else(cut)? } else { -1 };
        let key = m.bytes().ok_or_else(cut)?.map(<[u8]>::to_vec);
        let value = m.bytes().ok_or_else(cut)?;
        if codec == 0 {
            found.records.push(Rec { key, value: value.map(<[u8]>::to_vec), headers: Vec::new(), timestamp });
        } else {
            found.codec = codec;
            messages(&decompress(codec, value.unwrap_or(b""))?, found)?;
        }
    }
    Ok(())
}

fn decompress(codec: i16, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut plain = Vec::new();
    let done = match codec {
        0 => return Ok(bytes.to_vec()),
        1 => flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut plain).map_err(|e| e.to_string()),
        2 => return snappy(bytes),
        3 => lz4_flex::frame::FrameDecoder::new(bytes).read_to_end(&mut plain).map_err(|e| e.to_string()),
        4 => return zstd::stream::decode_all(bytes).map_err(|e| format!("codec 4: {e}")),
        _ => return Err(format!("there is no codec {codec}")),
    };
    done.map_err(|e| format!("codec {codec}: {e}"))?;
    Ok(plain)
}

/// Raw, or in the block format of the Java library, which the `kafka` crate also writes.
fn snappy(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let raw =
        |block: &[u8]| snap::raw::Decoder::new().decompress_vec(block).map_err(|e| format!("snappy: {e}"));
    let Some(blocks) = bytes.strip_prefix(b"\x82SNAPPY\0") else { return raw(bytes) };
    let mut r = Reader::new(blocks.get(8..).ok_or("snappy: no header")?);
    let mut plain = Vec::new();
    while !r.rest.is_empty() {
        let block = r.bytes().flatten().ok_or("snappy: a block is cut")?;
        plain.extend(raw(block)?);
    }
    Ok(plain)
}
