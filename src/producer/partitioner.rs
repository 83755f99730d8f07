//! Assigns records to partitions and splits them into batches. Deterministic: the same group, rule and seed always
//! give the same batches.

use super::Partitioner;
use super::batch::{Batch, BatchGroup, Pick, Records};
use super::record_encoder::Keys;
use crate::backoff::Rng;
use crate::chunk::Chunk;
use crate::record::{BatchGroupNo, Format, Key, RecordHead};
use std::sync::Arc;

/// What a batch group is distributed over.
#[derive(Debug)]
pub struct Distribution<'a> {
    pub partitioner: Partitioner,
    /// All partitions of the topic, in order: the ones `hash` computes over.
    pub all: &'a [i32],
    /// The partitions that keyless records may go to; never empty.
    pub open: &'a [i32],
    /// One of `open`: receives every record that is not distributed individually.
    pub sticky: i32,
    /// Where `round-robin` starts, and the seed of `random`.
    pub seed: u64,
    pub limit: Limit,
}

/// Size limits of one batch.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Bytes of lines.
    pub bytes: usize,
    /// Upper estimate of the bytes on the wire: many empty lines are small only on disk.
    pub wire: usize,
    pub records: usize,
}

impl Limit {
    /// A broker that refuses records lists each in its answer with up to 330 bytes of text (KIP-467): for 26,000 short
    /// lines the answer was 1.8 MB.
    pub const RECORDS: usize = 8192;

    /// A batch of up to 1 MiB must fit the default `message.max.bytes` (1,048,588) whatever its lines are like.
    pub fn of(batch: usize) -> Self {
        let wire = batch / 4 * 7;
        let wire = if batch <= 1 << 20 { wire.min(1_000_000) } else { wire };
        Limit { bytes: batch, wire, records: Self::RECORDS }
    }
}

/// A batch being filled.
#[derive(Debug)]
pub struct BatchPart {
    pub partition: i32,
    pub records: Records,
    pub count: u32,
    pub bytes: usize,
}

impl BatchPart {
    /// A batch of these records, which were never sent.
    pub fn into_batch(self, group_no: BatchGroupNo, group: Arc<BatchGroup>) -> Batch {
        let BatchPart { partition, records, count, bytes } = self;
        Batch {
            group_no,
            partition,
            group,
            records,
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
}

/// Bytes around a record in the oldest message format, which has the most: offset 8, size 4, crc 4, magic and
/// attributes 2, two lengths 8, timestamp 8.
const FRAME: usize = 34;

/// Bytes that every record of this chunk has in addition to its line.
fn extra(chunk: &Chunk) -> usize {
    let shape = &chunk.origin.shape;
    let path = chunk.origin.path.as_os_str().len();
    let key = match &shape.key {
        Key::Constant(bytes) => bytes.len(),
        Key::Path => path,
        Key::None | Key::Regex(_) | Key::Field(_) | Key::Head => 0,
    };
    let json = match &shape.format {
        Format::Raw | Format::Headed => 0,
        Format::Json { host, fields } => {
            100 + host.len() + path + fields.iter().map(|(n, v)| n.len() + v.len() + 6).sum::<usize>()
        }
    };
    FRAME + key + json + shape.headers.iter().map(|(n, v)| n.len() + v.len() + 4).sum::<usize>()
}

/// A chunk's bytes on the wire, an upper estimate.
pub fn wire(chunk: &Chunk) -> usize {
    chunk.bytes.len() + chunk.lines.len() * extra(chunk)
}

impl Distribution<'_> {
    /// Appends the group's batches in record order, also within each partition. No batch is empty.
    pub fn out(&self, group: &BatchGroup, parts: &mut Vec<BatchPart>) {
        let whole = match self.partitioner {
            Partitioner::Fixed(_) | Partitioner::Sticky => true,
            // With a single partition, keys make no difference.
            Partitioner::Hash => self.all.len() == 1 || keyless(group),
            Partitioner::RoundRobin | Partitioner::Random => self.open.len() == 1,
        };
        let bytes = group.chunks.iter().flat_map(|c| &c.lines).map(|l| l.len as usize).sum();
        let count = group.chunks.iter().map(|c| c.lines.len()).sum::<usize>();
        let fits = bytes <= self.limit.bytes
            && count <= self.limit.records
            && group.chunks.iter().map(wire).sum::<usize>() <= self.limit.wire;
        if whole && fits {
            let count = count as u32;
            parts.push(BatchPart { partition: self.sticky, records: Records::All, count, bytes });
            return;
        }
        let mut hands = OpenBatches::new(self.all, self.limit);
        self.record_by_record(group, whole, &mut hands);
        parts.extend(hands.parts.into_iter().map(Filling::close));
    }

    fn record_by_record(&self, group: &BatchGroup, whole: bool, hands: &mut OpenBatches<'_>) {
        let slot = |id: i32| self.all.binary_search(&id).unwrap_or(0);
        let sticky = slot(self.sticky);
        let open: Vec<usize> = self.open.iter().map(|id| slot(*id)).collect();
        let mut rng = Rng::new(self.seed);
        let mut turn = self.seed as usize % open.len();
        let mut scratch = Vec::new();
        for (c, chunk) in group.chunks.iter().enumerate() {
            let extra = extra(chunk);
            let mut keys = Keys::of(&chunk.origin);
            let headed = matches!(chunk.origin.shape.format, Format::Headed);
            // A key that all lines share is hashed once.
            let same = if let Keys::Same(key) = &keys { Some(by_key(key, self.all.len())) } else { None };
            for (l, line) in chunk.lines.iter().enumerate() {
                let to = match self.partitioner {
                    _ if whole => sticky,
                    Partitioner::Fixed(_) | Partitioner::Sticky => sticky,
                    Partitioner::Hash if same.is_some() => same.unwrap_or(sticky),
                    Partitioner::Hash => {
                        let bytes = &chunk.bytes[line.at as usize..][..line.len as usize];
                        let head = RecordHead::of(&chunk.bytes, *line).filter(|_| headed);
                        keys.key(head, bytes, &mut scratch).map_or(sticky, |key| by_key(&key, self.all.len()))
                    }
                    Partitioner::RoundRobin => {
                        turn = if turn + 1 < open.len() { turn + 1 } else { 0 };
                        open[turn]
                    }
                    Partitioner::Random => open[rng.below(open.len())],
                };
                let len = line.len as usize;
                hands.put(to, Pick { chunk: c as u16, line: l as u16 }, len, len + extra);
            }
        }
    }
}

fn keyless(group: &BatchGroup) -> bool {
    group.chunks.iter().all(|c| matches!(c.origin.shape.key, Key::None))
}

/// Batches being filled.
struct OpenBatches<'a> {
    all: &'a [i32],
    limit: Limit,
    parts: Vec<Filling>,
    /// For each partition, by index in `all`, the part being filled; `NONE` before the first.
    filling: Vec<usize>,
}

struct Filling {
    partition: i32,
    picks: Vec<Pick>,
    bytes: usize,
    wire: usize,
}

const NONE: usize = usize::MAX;

impl<'a> OpenBatches<'a> {
    fn new(all: &'a [i32], limit: Limit) -> Self {
        OpenBatches { all, limit, parts: Vec::new(), filling: vec![NONE; all.len()] }
    }

    fn put(&mut self, slot: usize, pick: Pick, bytes: usize, wire: usize) {
        let limit = self.limit;
        let full = |h: &Filling| {
            h.bytes + bytes > limit.bytes || h.wire + wire > limit.wire || h.picks.len() == limit.records
        };
        if self.parts.get(self.filling[slot]).is_none_or(full) {
            self.filling[slot] = self.parts.len();
            self.parts.push(Filling { partition: self.all[slot], picks: Vec::new(), bytes: 0, wire: 0 });
        }
        let hand = &mut self.parts[self.filling[slot]];
        hand.picks.push(pick);
        hand.bytes += bytes;
        hand.wire += wire;
    }
}

impl Filling {
    fn close(self) -> BatchPart {
        BatchPart {
            partition: self.partition,
            count: self.picks.len() as u32,
            records: Records::Picked(self.picks.into()),
            bytes: self.bytes,
        }
    }
}

/// The partition's index among `n`, as in Kafka's Java client (`BuiltInPartitioner.partitionForKey`).
pub fn by_key(key: &[u8], n: usize) -> usize {
    // toPositive clears the sign bit, it does not use `abs`.
    (murmur2(key) & 0x7fff_ffff) as usize % n
}

/// MurmurHash2, 32 bits, seed 0x9747b28c, as in `org.apache.kafka.common.utils.Utils.murmur2`.
pub fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut h = 0x9747_b28c ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for w in &mut words {
        let mut k = u32::from_le_bytes([w[0], w[1], w[2], w[3]]).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (i, b) in rest.iter().enumerate() {
            h ^= u32::from(*b) << (8 * i);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ h >> 15
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::producer::testing::{STAMP, chunk, origin, plain};
    use crate::record::Shape;
    use std::collections::BTreeMap;

    /// Java's own values (`UtilsTest.testMurmur2`). Fails with any other seed, tail or byte order.
    #[test]
    fn murmur2_is_javas() {
        for (key, want) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, want, "{key}");
        }
        // Negative hashes: the sign bit is cleared, so 21 goes to (-973932308 & 0x7fffffff) % 3.
        assert_eq!(by_key(b"21", 3), 1_173_551_340 % 3);
    }

    fn load(key: Key, lines: usize) -> BatchGroup {
        let texts: Vec<Vec<u8>> = (0..lines).map(|i| format!("id={} x", i % 10).into_bytes()).collect();
        let texts: Vec<&[u8]> = texts.iter().map(Vec::as_slice).collect();
        let o = origin(1, "t", "/log", Shape { key, ..Shape::default() });
        let chunks = vec![chunk(&o, 0, &texts[..lines / 2]), chunk(&o, 0, &texts[lines / 2..])];
        BatchGroup::new("t".into(), [0; 16], STAMP, chunks)
    }

    fn deal(partitioner: Partitioner) -> Distribution<'static> {
        let limit = Limit::of(512 << 10);
        Distribution { partitioner, all: &[0, 1, 4], open: &[0, 4], sticky: 4, seed: 11, limit }
    }

    fn dealt(by: &Distribution<'_>, group: &BatchGroup) -> Vec<BatchPart> {
        let mut parts = Vec::new();
        by.out(group, &mut parts);
        parts
    }

    fn counts(parts: &[BatchPart]) -> BTreeMap<i32, u32> {
        let mut sums = BTreeMap::new();
        parts.iter().for_each(|p| *sums.entry(p.partition).or_insert(0) += p.count);
        sums
    }

    fn digit() -> Key {
        Key::Regex(regex::bytes::Regex::new("id=([0-8])").unwrap().into())
    }

    /// Fails when a partitioner uses a forbidden partition, or leaves one out.
    #[test]
    fn each_partitioner_uses_its_partitions() {
        let keyless = counts(&dealt(&deal(Partitioner::RoundRobin), &load(Key::None, 1001)));
        assert!(
            keyless == BTreeMap::from([(0, 500), (4, 501)])
                || keyless == BTreeMap::from([(0, 501), (4, 500)])
        );
        let random = counts(&dealt(&deal(Partitioner::Random), &load(Key::None, 1000)));
        assert!(random.keys().eq(&[0, 4]) && random.values().all(|n| (400..600).contains(n)), "{random:?}");
        for whole in [Partitioner::Sticky, Partitioner::Hash] {
            let parts = dealt(&deal(whole), &load(Key::None, 1000));
            assert!(matches!(
                &parts[..],
                [BatchPart { partition: 4, records: Records::All, count: 1000, .. }]
            ));
        }
        // Keys 0 to 8 by murmur2 over all three, including one that is not open; the record without a key (9) goes
        // sticky.
        let mut want = BTreeMap::new();
        for id in 0..9u8 {
            *want.entry([0, 1, 4][by_key(&[b'0' + id], 3)]).or_insert(0) += 100;
        }
        *want.entry(4).or_insert(0) += 100;
        assert_eq!(counts(&dealt(&deal(Partitioner::Hash), &load(digit(), 1000))), want);
    }

    /// Fails when partitioning the same group again gives different batches: a rebuilt group must be identical.
    #[test]
    fn the_same_seed_gives_the_same_batches() {
        for p in [Partitioner::Random, Partitioner::RoundRobin, Partitioner::Hash] {
            let all = || format!("{:?}", dealt(&deal(p), &load(digit(), 100)));
            assert_eq!(all(), all());
        }
    }

    /// Fails when a batch exceeds its limit, an oversize line is lost, or order within a partition changes.
    #[test]
    fn batches_keep_their_limit() {
        let mut d = deal(Partitioner::Sticky);
        d.limit = Limit { bytes: 100, wire: 1000, records: 12 };
        let long = [b'x'; 500];
        let o = plain(1);
        let chunks = vec![chunk(&o, 0, &[&b"a"[..]; 30]), chunk(&o, 60, &[b"b", &long, b"c"])];
        let group = BatchGroup::new("t".into(), [0; 16], STAMP, chunks);
        let parts = dealt(&d, &group);
        let mut picks = Vec::new();
        for p in &parts {
            assert!(p.count == 1 || (p.bytes <= 100 && p.count as usize * FRAME <= 1000), "{p:?}");
            assert!(p.count <= 12, "{p:?}");
            let Records::Picked(of) = &p.records else { panic!("not cut") };
            picks.extend_from_slice(of);
        }
        assert!(picks.is_sorted() && picks.len() == 33);
        assert_eq!(parts.iter().filter(|p| p.bytes == 500).count(), 1);
    }
}
