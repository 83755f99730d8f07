//! The records of the intent log: encodes and decodes what is written before a batch is first sent.
//!
//! An intent records *which lines* a batch carries, not how they were found: ranges of streams with the checksum of
//! their bytes, the positions of the lines in them, and which of these the batch carries. Rebuilding a batch therefore
//! needs neither the framing rules nor the partitioner nor the config of that run, and a change of any of them between
//! two runs leaves a rebuilt batch unchanged. (The broker compares only numbers. A record that is rendered differently
//! now, with another key or format, is still that line, stored once.)
//!
//! A chunk whose lines are exactly those that [`split`] finds needs no table. Any other (multiline, filters, cut
//! lines, a forced end) has a table of two small numbers per line. [`split`] is part of the format and must not
//! change.

use crate::chunk::Chunk;
use crate::producer::batch::{Batch, Numbers, Pick, Records, Seal};
use crate::producer::recovered::LastSequence;
use crate::record::{BatchGroupNo, Break, Line, Mark, Point, Range, StreamId, Then, Topic};
use memchr::memchr_iter;

/// One batch that may have been sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Intent {
    /// Ascending over all runs; never 0.
    pub serial: u64,
    /// The intent that this one replaces (after a split, or with new numbers); 0: none.
    pub voids: u64,
    pub group_no: BatchGroupNo,
    pub topic: Topic,
    pub topic_id: [u8; 16],
    pub partition: i32,
    pub numbers: Numbers,
    /// Records.
    pub count: u32,
    /// An earlier intent of this partition had the same producer id, so the broker should know the id.
    pub follows: bool,
    /// Time of reading, in ms since 1970.
    pub stamp_ms: i64,
    pub pieces: Vec<ChunkPiece>,
}

/// A chunk of which the batch carries lines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkPiece {
    pub stream: StreamId,
    pub range: Range,
    pub end: Point,
    pub last: Break,
    /// Of the chunk's bytes: those of `range`, or the records made of a journal's entries there.
    pub crc: u32,
    /// Lines in the chunk.
    pub lines: u32,
    /// Their positions, if different from those [`split`] finds.
    pub table: Option<Vec<Line>>,
    /// The lines that the batch carries, ascending; `None`: all.
    pub picks: Option<Vec<u16>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IntentRecord {
    Intent(Intent),
    Last(LastSequence),
}

/// Lines that end in `\n`, without the `\n` and without a `\r` before it. Bytes after the last `\n` are not a line.
pub fn split(bytes: &[u8]) -> impl Iterator<Item = Line> + '_ {
    let mut start = 0;
    memchr_iter(b'\n', bytes).map(move |nl| {
        let end = if nl > start && bytes[nl - 1] == b'\r' { nl - 1 } else { nl };
        let line = Line { at: start as u32, len: (end - start) as u32 };
        start = nl + 1;
        line
    })
}

impl Seal {
    pub fn of(chunk: &Chunk) -> Seal {
        debug_assert!(
            chunk.end.mark.seqnum().is_some()
                || chunk.range.end - chunk.range.start == chunk.bytes.len() as u64
        );
        let usual = chunk.last == Break::Newline && split(&chunk.bytes).eq(chunk.lines.iter().copied());
        Seal { crc: crc32c::crc32c(&chunk.bytes), usual }
    }
}

impl ChunkPiece {
    fn of(chunk: &Chunk, seal: Seal, picks: Option<Vec<u16>>) -> ChunkPiece {
        ChunkPiece {
            stream: chunk.origin.stream,
            range: chunk.range.clone(),
            end: chunk.end,
            last: chunk.last,
            crc: seal.crc,
            lines: chunk.lines.len() as u32,
            table: (!seal.usual).then(|| chunk.lines.clone()),
            picks,
        }
    }

    /// The lines of the chunk, given its bytes; `None` if the bytes differ from those recorded.
    pub fn lines_in(&self, bytes: &[u8]) -> Option<Vec<Line>> {
        if crc32c::crc32c(bytes) != self.crc {
            return None;
        }
        let lines = self.table.clone().unwrap_or_else(|| split(bytes).collect());
        let fits = lines.iter().all(|l| (l.at as usize + l.len as usize) <= bytes.len());
        (fits && lines.len() == self.lines as usize).then_some(lines)
    }

    pub fn picked(&self) -> impl Iterator<Item = u16> + '_ {
        let all = if self.picks.is_none() { 0..self.lines as u16 } else { 0..0 };
        self.picks.iter().flatten().copied().chain(all)
    }
}

impl Intent {
    /// The intent of a batch that has sequence numbers.
    pub fn of(batch: &Batch, numbers: Numbers, serial: u64, follows: bool) -> Intent {
        let (chunks, seals) = (&batch.group.chunks, batch.group.seals());
        let pieces = match &batch.records {
            Records::All => {
                chunks.iter().zip(seals).map(|(c, seal)| ChunkPiece::of(c, *seal, None)).collect()
            }
            Records::Picked(picks) => picks
                .chunk_by(|a, b| a.chunk == b.chunk)
                .map(|run| {
                    let at = usize::from(run[0].chunk);
                    let all = run.len() == chunks[at].lines.len();
                    ChunkPiece::of(
                        &chunks[at],
                        seals[at],
                        (!all).then(|| run.iter().map(|p: &Pick| p.line).collect()),
                    )
                })
                .collect(),
        };
        Intent {
            serial,
            voids: batch.intent,
            group_no: batch.group_no,
            topic: batch.group.topic.clone(),
            topic_id: batch.group.topic_id,
            partition: batch.partition,
            numbers,
            count: batch.count,
            follows,
            stamp_ms: batch.group.stamp_ms,
            pieces,
        }
    }
}

const INTENT: u8 = 1;
const LAST: u8 = 2;

impl IntentRecord {
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            IntentRecord::Intent(i) => {
                out.push(INTENT);
                write_intent(i, out);
            }
            IntentRecord::Last(l) => {
                out.push(LAST);
                out.extend_from_slice(&l.serial.to_le_bytes());
                name(out, &l.topic);
                out.extend_from_slice(&l.topic_id);
                out.extend_from_slice(&l.partition.to_le_bytes());
                out.extend_from_slice(&l.pid.to_le_bytes());
                out.extend_from_slice(&l.epoch.to_le_bytes());
                out.extend_from_slice(&l.end.to_le_bytes());
            }
        }
    }

    /// `None` if this is not the output of [`IntentRecord::write`].
    pub fn read(bytes: &[u8]) -> Option<IntentRecord> {
        let mut r = RecordReader(bytes);
        let record = match r.byte()? {
            INTENT => IntentRecord::Intent(read_intent(&mut r)?),
            LAST => IntentRecord::Last(LastSequence {
                serial: r.u64()?,
                topic: r.name()?,
                topic_id: r.array()?,
                partition: i32::from_le_bytes(r.array()?),
                pid: i64::from_le_bytes(r.array()?),
                epoch: i16::from_le_bytes(r.array()?),
                end: i32::from_le_bytes(r.array()?),
            }),
            _ => return None,
        };
        r.0.is_empty().then_some(record)
    }
}

fn write_intent(i: &Intent, out: &mut Vec<u8>) {
    for n in [i.serial, i.voids, i.group_no.0] {
        out.extend_from_slice(&n.to_le_bytes());
    }
    name(out, &i.topic);
    out.extend_from_slice(&i.topic_id);
    out.extend_from_slice(&i.partition.to_le_bytes());
    out.extend_from_slice(&i.numbers.pid.to_le_bytes());
    out.extend_from_slice(&i.numbers.epoch.to_le_bytes());
    out.extend_from_slice(&i.numbers.base.to_le_bytes());
    out.extend_from_slice(&i.stamp_ms.to_le_bytes());
    out.push(u8::from(i.follows));
    varint(out, i.count.into());
    varint(out, i.pieces.len() as u64);
    for p in &i.pieces {
        varint(out, p.stream.0);
        varint(out, p.range.start);
        varint(out, p.range.end - p.range.start);
        out.extend_from_slice(&p.end.mark.hash.to_le_bytes());
        out.extend_from_slice(&p.end.mark.len.to_le_bytes());
        let then = u8::from(p.end.then == Then::SkipToNewline);
        let last = match p.last {
            Break::Newline => 0,
            Break::Cut => 1,
            Break::Forced => 2,
        };
        let (table, picks) = (u8::from(p.table.is_some()), u8::from(p.picks.is_some()));
        out.push(then | last << 1 | table << 3 | picks << 4);
        out.extend_from_slice(&p.crc.to_le_bytes());
        varint(out, p.lines.into());
        let mut before = 0;
        for l in p.table.iter().flatten() {
            varint(out, u64::from(l.at - before));
            varint(out, l.len.into());
            before = l.at + l.len;
        }
        if let Some(picks) = &p.picks {
            varint(out, picks.len() as u64);
            let mut before = 0;
            for n in picks {
                varint(out, u64::from(n - before));
                before = *n;
            }
        }
    }
}

fn read_intent(r: &mut RecordReader<'_>) -> Option<Intent> {
    let (serial, voids, group_no) = (r.u64()?, r.u64()?, BatchGroupNo(r.u64()?));
    let (topic, topic_id) = (r.name()?, r.array()?);
    let partition = i32::from_le_bytes(r.array()?);
    let numbers = Numbers {
        pid: i64::from_le_bytes(r.array()?),
        epoch: i16::from_le_bytes(r.array()?),
        base: i32::from_le_bytes(r.array()?),
    };
    let stamp_ms = i64::from_le_bytes(r.array()?);
    let follows = r.byte()? == 1;
    let count = r.varint()?.try_into().ok()?;
    let pieces = (0..r.varint()?).map(|_| read_piece(r)).collect::<Option<_>>()?;
    Some(Intent {
        serial,
        voids,
        group_no,
        topic,
        topic_id,
        partition,
        numbers,
        count,
        follows,
        stamp_ms,
        pieces,
    })
}

fn read_piece(r: &mut RecordReader<'_>) -> Option<ChunkPiece> {
    let (stream, start) = (StreamId(r.varint()?), r.varint()?);
    let range = start..start.checked_add(r.varint()?)?;
    let mark = Mark { hash: r.u64()?, len: u16::from_le_bytes(r.array()?) };
    let flags = r.byte()?;
    let then = if flags & 1 == 1 { Then::SkipToNewline } else { Then::Line };
    let last = match flags >> 1 & 3 {
        0 => Break::Newline,
        1 => Break::Cut,
        2 => Break::Forced,
        _ => return None,
    };
    let crc = u32::from_le_bytes(r.array()?);
    let lines: u32 = r.varint()?.try_into().ok()?;
    if lines as usize > Chunk::MAX_LINES {
        return None;
    }
    let mut before: u32 = 0;
    let mut line = |r: &mut RecordReader<'_>| {
        let at = before.checked_add(r.varint()?.try_into().ok()?)?;
        let len: u32 = r.varint()?.try_into().ok()?;
        before = at.checked_add(len)?;
        Some(Line { at, len })
    };
    let table = match flags >> 3 & 1 {
        1 => Some((0..lines).map(|_| line(r)).collect::<Option<Vec<_>>>()?),
        _ => None,
    };
    let mut before: u16 = 0;
    let mut pick = |r: &mut RecordReader<'_>| {
        before = before.checked_add(r.varint()?.try_into().ok()?)?;
        (u32::from(before) < lines).then_some(before)
    };
    let picks = match flags >> 4 & 1 {
        1 => {
            let n = r.varint()?;
            Some((0..n).map(|_| pick(r)).collect::<Option<Vec<_>>>()?)
        }
        _ => None,
    };
    let end = Point { offset: range.end, mark, then };
    Some(ChunkPiece { stream, range, end, last, crc, lines, table, picks })
}

fn name(out: &mut Vec<u8>, text: &str) {
    varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

struct RecordReader<'a>(&'a [u8]);

impl RecordReader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut n = 0;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            n |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return Some(n);
            }
        }
        None
    }

    fn name(&mut self) -> Option<Topic> {
        let len = usize::try_from(self.varint()?).ok()?;
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        std::str::from_utf8(text).ok().map(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::producer::testing::{batch, chunk, plain};

    const NUMBERS: Numbers = Numbers { pid: 7, epoch: 3, base: i32::MAX };

    fn records_round_trip(intent: Intent) -> usize {
        let mut bytes = Vec::new();
        IntentRecord::Intent(intent.clone()).write(&mut bytes);
        assert_eq!(IntentRecord::read(&bytes), Some(IntentRecord::Intent(intent)));
        for cut in 0..bytes.len() {
            assert_eq!(IntentRecord::read(&bytes[..cut]), None);
        }
        bytes.len()
    }

    /// Fails when an ordinary chunk costs bytes per line, or its lines cannot be found again.
    #[test]
    fn usual_lines_cost_nothing() {
        let lines: Vec<&[u8]> = vec![b"abc"; 1000];
        let b = batch(5, vec![chunk(&plain(1), 0, &lines), chunk(&plain(2), 70_000, &lines[..1])]);
        let intent = Intent::of(&b, NUMBERS, 9, true);
        for (piece, chunk) in intent.pieces.iter().zip(&b.group.chunks) {
            assert_eq!(piece.lines_in(&chunk.bytes).as_ref(), Some(&chunk.lines));
            let mut other = chunk.bytes.clone();
            other[0] ^= 1;
            assert_eq!(piece.lines_in(&other), None);
        }
        assert!(records_round_trip(intent) < 200);
    }

    /// Fails when the table or the selection of an unusual chunk changes in a round trip.
    #[test]
    fn unusual_lines_are_kept_as_they_were() {
        let mut c = chunk(&plain(1), 10, &[b"a", b"bb", b"ccc", b"d"]);
        c.lines.remove(1); // left out by a filter
        c.last = Break::Forced;
        let table = c.lines.clone();
        let bytes = c.bytes.clone();
        let (front, back) = batch(5, vec![c]).halve();
        for part in [front, back] {
            let intent = Intent::of(&part, NUMBERS, 1, false);
            assert_eq!(intent.pieces[0].lines_in(&bytes).as_ref(), Some(&table));
            assert_eq!(intent.pieces[0].picked().count(), part.count as usize);
            records_round_trip(intent);
        }
    }

    /// Fails when a length or an index in a record is trusted, or when a decoded record does not encode to the same
    /// bytes.
    #[test]
    fn fuzz_intents() {
        let mut odd = chunk(&plain(1), 10, &[b"a", b"bb", b"ccc", b"d"]);
        odd.lines.remove(1);
        odd.last = Break::Forced;
        let text = odd.bytes.clone();
        let (front, back) = batch(5, vec![odd, chunk(&plain(2), 0, &[&b"x"[..]; 20])]).halve();
        let samples: Vec<Vec<u8>> = [front, back]
            .iter()
            .map(|b| {
                let mut out = Vec::new();
                IntentRecord::Intent(Intent::of(b, NUMBERS, 9, true)).write(&mut out);
                out
            })
            .collect();
        crate::fuzz::damaged(
            &samples,
            |bytes| 16 * bytes.len(),
            |bytes| {
                let Some(record) = IntentRecord::read(bytes) else { return 0 };
                let mut out = Vec::new();
                record.write(&mut out);
                assert_eq!(IntentRecord::read(&out).as_ref(), Some(&record));
                let IntentRecord::Intent(intent) = record else { return 0 };
                for piece in &intent.pieces {
                    let _ = piece.lines_in(&text);
                    let _ = piece.picked().take(100_000).count();
                }
                intent.pieces.len()
            },
        );
    }

    #[test]
    fn split_finds_what_framing_finds() {
        use crate::tail::framing::{FramingInput, Rest, Rules, frame};
        for text in ["", "a\n", "a\r\n\n\r\nb\nrest", "\n\n"] {
            let mut lines = Vec::new();
            let text = text.as_bytes();
            let (then, rest) = (Then::Line, Rest::Waits);
            let input =
                FramingInput { bytes: text, then, in_line: false, rest, in_hole: false, is_hole: &|_| false };
            let framed = frame(&Rules::default(), input, &mut lines, 100);
            assert_eq!(split(&text[..framed.consumed]).collect::<Vec<_>>(), lines, "{text:?}");
        }
    }
}
