//! Batch groups: some chunks of one topic and, for each partition, one batch of their lines.

use crate::chunk::Chunk;
use crate::record::{Ack, BatchGroupNo, Format, RecordHead, Topic};
use std::sync::{Arc, OnceLock};

/// The chunks of a batch group, shared by its batches. Dropping the last batch releases the bytes and permits.
#[derive(Debug)]
pub struct BatchGroup {
    pub topic: Topic,
    /// As of when the group was formed. All zeros when the broker has no topic ids.
    pub topic_id: [u8; 16],
    /// Read time in ms since 1970, used as the records' timestamp.
    pub stamp_ms: i64,
    /// At most [`BatchGroup::MAX_CHUNKS`].
    pub chunks: Vec<Chunk>,
    /// Exactly-once: each chunk's checksums, computed on first use.
    seals: OnceLock<Vec<Seal>>,
}

impl BatchGroup {
    /// Lets a record be addressed by two `u16`.
    pub const MAX_CHUNKS: usize = 1024;

    pub fn new(topic: Topic, topic_id: [u8; 16], stamp_ms: i64, chunks: Vec<Chunk>) -> Self {
        BatchGroup { topic, topic_id, stamp_ms, chunks, seals: OnceLock::new() }
    }

    /// The chunk bytes' description in an intent, computed once for all partitions and resends.
    pub fn seals(&self) -> &[Seal] {
        self.seals.get_or_init(|| self.chunks.iter().map(Seal::of).collect())
    }
}

/// How an intent describes a chunk's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seal {
    pub crc: u32,
    /// The lines are exactly those that `exactly_once::intent::split` yields.
    pub usual: bool,
}

/// One record: line `line` of chunk `chunk` of the group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pick {
    pub chunk: u16,
    pub line: u16,
}

/// Which of the group's records a batch carries.
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

/// The unit of sending, retry and completion: one partition's records. The driver encodes them into its own reused
/// buffer for every attempt.
#[derive(Debug)]
pub struct Batch {
    pub group_no: BatchGroupNo,
    pub partition: i32,
    pub group: Arc<BatchGroup>,
    pub records: Records,
    /// Number of records, at least 1.
    pub count: u32,
    /// Bytes of the lines, without keys and framing.
    pub bytes: usize,
    pub numbers: Option<Numbers>,
    /// Number of earlier attempts.
    pub attempts: u32,
    /// An earlier attempt may have been stored although we got no acknowledgement.
    pub maybe_stored: bool,
    /// Its own timestamp, set after the broker refused the group's; -1 means none. See [`Batch::stamp_ms`].
    pub restamped: Option<i64>,
    /// Exactly-once: the last intent written for any of these records; 0: none. See `exactly_once`.
    pub intent: u64,
    /// The sequence numbers in that intent, if it covers exactly these records.
    pub noted: Option<Numbers>,
}

impl Batch {
    /// The records' timestamp in ms since 1970; -1: none.
    pub fn stamp_ms(&self) -> i64 {
        self.restamped.unwrap_or(self.group.stamp_ms)
    }

    /// The newest of its records' timestamps, in ms since 1970. Those of a journal have their entries' times.
    pub fn newest_ms(&self) -> i64 {
        let own = |pick: Pick| {
            let chunk = &self.group.chunks[usize::from(pick.chunk)];
            let line = chunk.lines[usize::from(pick.line)];
            let headed = matches!(chunk.origin.shape.format, Format::Headed) && self.restamped.is_none();
            headed.then(|| RecordHead::of(&chunk.bytes, line)).flatten().map(|head| head.stamp_ms)
        };
        let all = self.picks().map(|pick| own(pick).unwrap_or(self.stamp_ms()));
        all.max().unwrap_or(self.stamp_ms())
    }

    /// The records in order, as picks.
    pub fn picks(&self) -> impl Iterator<Item = Pick> + '_ {
        let (all, picked): (&[Chunk], &[Pick]) = match &self.records {
            Records::All => (&self.group.chunks, &[]),
            Records::Picked(p) => (&[], p),
        };
        let every = all.iter().enumerate().flat_map(|(c, chunk)| {
            (0..chunk.lines.len()).map(move |l| Pick { chunk: c as u16, line: l as u16 })
        });
        every.chain(picked.iter().copied())
    }
}

/// Order of a partition's batches: by batch group, then by first record.
pub type Place = (BatchGroupNo, Pick);

/// Splitting. Records keep their order; the parts have no sequence numbers yet.
impl Batch {
    pub fn place(&self) -> Place {
        let first = match &self.records {
            Records::All => Pick { chunk: 0, line: 0 },
            Records::Picked(p) => p.first().copied().unwrap_or(Pick { chunk: 0, line: 0 }),
        };
        (self.group_no, first)
    }

    /// Splits the records into two halves, front first. Needs at least two records.
    pub fn halve(self) -> (Batch, Batch) {
        debug_assert!(self.count > 1);
        let picks: Vec<Pick> = self.picks().collect();
        let (front, back) = picks.split_at(picks.len() / 2);
        (self.of(front), self.of(back))
    }

    /// Splits into the records not in `bad` and those in it. `bad` is sorted and names at least one existing record.
    pub fn sift(self, bad: &[u32]) -> (Option<Batch>, Batch) {
        let (mut good, mut worse) = (Vec::new(), Vec::new());
        for (i, pick) in (0u32..).zip(self.picks()) {
            if bad.binary_search(&i).is_ok() { worse.push(pick) } else { good.push(pick) }
        }
        ((!good.is_empty()).then(|| self.of(&good)), self.of(&worse))
    }

    /// A batch of only these records.
    pub fn of(&self, picks: &[Pick]) -> Batch {
        let line = |p: &Pick| self.group.chunks[usize::from(p.chunk)].lines[usize::from(p.line)].len as usize;
        Batch {
            group_no: self.group_no,
            partition: self.partition,
            group: self.group.clone(),
            records: Records::Picked(picks.into()),
            count: picks.len() as u32,
            bytes: picks.iter().map(line).sum(),
            numbers: None,
            attempts: 0,
            maybe_stored: self.maybe_stored,
            restamped: self.restamped,
            intent: self.intent,
            noted: None,
        }
    }
}

/// What the core keeps of a group after sending it: no bytes, only each chunk's count of pending records. It counts
/// records rather than batches so that a split changes nothing here.
#[derive(Debug)]
pub struct PendingAcks {
    waits: Vec<(Ack, u32)>,
    /// Invariant: the sum of the counts in `waits`.
    open: u64,
}

impl PendingAcks {
    pub fn of(group: &BatchGroup) -> Self {
        let waits: Vec<_> = group.chunks.iter().map(|c| (c.ack(), c.lines.len() as u32)).collect();
        let open = waits.iter().map(|w| u64::from(w.1)).sum();
        PendingAcks { waits, open }
    }

    /// Marks records as already done. They must not complete a chunk.
    pub fn forget(&mut self, stored: &[Pick]) {
        for p in stored {
            self.waits[usize::from(p.chunk)].1 -= 1;
            self.open -= 1;
        }
    }

    /// Marks the batch's records as done and passes each completed chunk to `acked`.
    pub fn done(&mut self, batch: &Batch, mut acked: impl FnMut(&Ack)) {
        debug_assert!(self.open >= u64::from(batch.count), "a record was completed twice");
        self.open -= u64::from(batch.count);
        let mut strike = |chunk: usize, records: u32| {
            let (ack, left) = &mut self.waits[chunk];
            *left -= records;
            if *left == 0 {
                acked(ack);
            }
        };
        match &batch.records {
            Records::All => {
                for (i, c) in batch.group.chunks.iter().enumerate() {
                    strike(i, c.lines.len() as u32);
                }
            }
            Records::Picked(picks) => {
                for run in picks.chunk_by(|a, b| a.chunk == b.chunk) {
                    strike(usize::from(run[0].chunk), run.len() as u32);
                }
            }
        }
    }

    /// Nothing is pending.
    pub fn is_over(&self) -> bool {
        self.open == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::producer::testing::{batch, chunk, plain};

    fn values(b: &Batch) -> Vec<String> {
        let mut seen = Vec::new();
        crate::producer::record_encoder::RecordEncoder::default()
            .each(b, |r| seen.push(String::from_utf8_lossy(&r.value).into_owned()));
        assert_eq!(seen.len(), b.count as usize);
        assert_eq!(seen.iter().map(String::len).sum::<usize>(), b.bytes);
        seen
    }

    fn three() -> Batch {
        batch(1, vec![chunk(&plain(1), 0, &[b"a", b"bb"]), chunk(&plain(2), 0, &[b"ccc"])])
    }

    /// Fails when a half loses a record, changes the order, or keeps another range's sequence numbers.
    #[test]
    fn halves_keep_their_order() {
        let mut b = three();
        b.numbers = Some(Numbers { pid: 1, epoch: 0, base: i32::MAX });
        let (front, back) = b.halve();
        assert_eq!((values(&front), values(&back)), (vec!["a".into()], vec!["bb".into(), "ccc".into()]));
        assert_eq!((front.numbers, back.numbers), (None, None));
        assert!(front.place() < back.place());
        let (bb, ccc) = back.halve();
        assert_eq!((values(&bb), values(&ccc)), (vec!["bb".into()], vec!["ccc".into()]));
    }

    /// Fails when a good record is removed with the bad ones.
    #[test]
    fn sift_separates_the_bad_records() {
        let (good, bad) = three().sift(&[1]);
        assert_eq!(
            (values(&good.unwrap()), values(&bad)),
            (vec!["a".into(), "ccc".into()], vec!["bb".into()])
        );
        assert!(three().sift(&[0, 1, 2]).0.is_none());
    }

    /// Fails when a chunk is acknowledged before its last record is done, or never.
    #[test]
    fn a_chunk_is_acked_when_its_last_record_is_done() {
        let b = three();
        let mut pending = PendingAcks::of(&b.group);
        let mut acked = Vec::new();
        let (front, back) = b.halve();
        pending.done(&back, |a| acked.push(a.stream.0));
        assert_eq!((acked.as_slice(), pending.is_over()), (&[2][..], false));
        pending.done(&front, |a| acked.push(a.stream.0));
        assert_eq!((acked.as_slice(), pending.is_over()), (&[2, 1][..], true));
    }
}
