//! Interprets the records of an earlier run: which lines are stored, which may be, and the last sequence numbers of
//! each partition. Pure.
//!
//! A partition has at most one open intent: the next one is written only when the one before is settled (all its
//! records are stored or dead-lettered) or is explicitly voided. So only the last intent of a partition can be open.

use super::intent::{ChunkPiece, Intent, IntentRecord};
use crate::producer::recovered::{LastSequence, OpenBatch, TopicPartition};
use crate::record::{Ack, BatchGroupNo, Range, StreamId, Topic};
use crate::streams::SavedPositions;
use std::collections::{BTreeMap, HashMap, HashSet};

#[derive(Debug, Default)]
pub struct Loaded {
    /// Chunks whose lines are all stored although the saved positions do not include them.
    pub settled: Vec<Ack>,
    /// Batch groups with at least one line that is not known to be stored.
    pub groups: Vec<Rebuild>,
    /// The last sequence numbers of each partition.
    pub lasts: HashMap<TopicPartition, LastSequence>,
    /// Intents that are still needed, in order.
    pub keep: Vec<Intent>,
    /// The highest serial, batch group number, and epoch of the id that was used last.
    pub serial: u64,
    pub group_no: BatchGroupNo,
    pub id: Option<(i64, i16)>,
}

/// A batch group to be read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuild {
    pub group_no: BatchGroupNo,
    pub topic: Topic,
    pub topic_id: [u8; 16],
    pub stamp_ms: i64,
    pub chunks: Vec<WantedChunk>,
    pub open: Vec<OpenBatch>,
}

/// One of its chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedChunk {
    pub piece: ChunkPiece,
    /// Lines that are stored, ascending.
    pub stored: Vec<u16>,
}

/// Identifies a chunk across the intents that name it.
type ChunkKey = (StreamId, u64, u64);

fn key(p: &ChunkPiece) -> ChunkKey {
    (p.stream, p.range.start, p.range.end)
}

pub fn load(records: Vec<IntentRecord>, saved: &SavedPositions) -> Loaded {
    let mut out = Loaded::default();
    let mut intents: Vec<Intent> = Vec::new();
    let mut last_intent: HashMap<TopicPartition, u64> = HashMap::new();
    let mut void: HashSet<u64> = HashSet::new();
    let mut latest = (0, None);
    for record in records {
        match record {
            IntentRecord::Last(l) => {
                let at = (l.topic.clone(), l.partition);
                last_intent.remove(&at);
                note_id(&mut latest, l.serial, l.pid, l.epoch);
                out.serial = out.serial.max(l.serial);
                out.lasts.insert(at, l);
            }
            IntentRecord::Intent(i) => {
                let at = (i.topic.clone(), i.partition);
                void.insert(i.voids);
                last_intent.insert(at.clone(), i.serial);
                note_id(&mut latest, i.serial, i.numbers.pid, i.numbers.epoch);
                out.serial = out.serial.max(i.serial);
                out.group_no = out.group_no.max(i.group_no);
                out.lasts.insert(at, i.last());
                intents.push(i);
            }
        }
    }
    out.id = latest.1;
    // If one piece of a batch is covered by the saved positions, the whole batch was done.
    let covered = |p: &ChunkPiece| saved.holds(p.stream, &p.range);
    intents.retain(|i| !void.contains(&i.serial) && !i.pieces.iter().all(covered));
    let is_open = |i: &Intent| {
        last_intent.get(&(i.topic.clone(), i.partition)) == Some(&i.serial) && !i.pieces.iter().any(covered)
    };
    let mut groups: BTreeMap<BatchGroupNo, Vec<&Intent>> = BTreeMap::new();
    for i in &intents {
        groups.entry(i.group_no).or_default().push(i);
    }
    for (_, of_group) in groups {
        one_group(&of_group, &is_open, &covered, &mut out);
    }
    out.keep = intents;
    out
}

/// The id that was used last, and its highest epoch.
fn note_id(latest: &mut (u64, Option<(i64, i16)>), serial: u64, pid: i64, epoch: i16) {
    match &mut latest.1 {
        Some((known, e)) if *known == pid => *e = epoch.max(*e),
        _ if serial >= latest.0 => latest.1 = Some((pid, epoch)),
        _ => return,
    }
    latest.0 = serial.max(latest.0);
}

fn one_group(
    intents: &[&Intent],
    is_open: &impl Fn(&Intent) -> bool,
    covered: &impl Fn(&ChunkPiece) -> bool,
    out: &mut Loaded,
) {
    // By stream, in stream order, as in the original batch group.
    let mut stored: BTreeMap<ChunkKey, (&ChunkPiece, Vec<u16>)> = BTreeMap::new();
    for i in intents {
        for p in i.pieces.iter().filter(|p| !covered(p)) {
            let (_, lines) = stored.entry(key(p)).or_insert((p, Vec::new()));
            if !is_open(i) {
                lines.extend(p.picked());
            }
        }
    }
    let mut chunks: Vec<WantedChunk> = Vec::new();
    for (piece, mut lines) in stored.into_values() {
        lines.sort_unstable();
        lines.dedup();
        if lines.len() == piece.lines as usize {
            out.settled.push(piece.ack());
            continue;
        }
        chunks.push(WantedChunk { piece: ChunkPiece { picks: None, ..piece.clone() }, stored: lines });
    }
    let Some(first) = intents.first().filter(|_| !chunks.is_empty()) else { return };
    let open = intents.iter().filter(|i| is_open(i)).map(|i| {
        let mut picks: Vec<(usize, u16)> = Vec::new();
        for p in &i.pieces {
            if let Ok(at) = chunks.binary_search_by_key(&key(p), |c| key(&c.piece)) {
                picks.extend(p.picked().map(|line| (at, line)));
            }
        }
        picks.sort_unstable();
        OpenBatch {
            serial: i.serial,
            partition: i.partition,
            numbers: i.numbers,
            count: i.count,
            follows: i.follows,
            picks,
        }
    });
    let open = open.collect();
    let (topic, topic_id) = (first.topic.clone(), first.topic_id);
    out.groups.push(Rebuild {
        group_no: first.group_no,
        topic,
        topic_id,
        stamp_ms: first.stamp_ms,
        chunks,
        open,
    });
}

impl Intent {
    pub fn last(&self) -> LastSequence {
        LastSequence {
            serial: self.serial,
            topic: self.topic.clone(),
            topic_id: self.topic_id,
            partition: self.partition,
            pid: self.numbers.pid,
            epoch: self.numbers.epoch,
            end: crate::producer::sequence::after(self.numbers.base, self.count),
        }
    }
}

impl ChunkPiece {
    pub fn ack(&self) -> Ack {
        Ack { stream: self.stream, range: self.range.clone(), end: self.end, lines: self.lines.into() }
    }

    pub fn spans(&self) -> (StreamId, Range) {
        (self.stream, self.range.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::producer::batch::Numbers;
    use crate::record::{Break, Point};

    fn piece(stream: u64, start: u64, lines: u32, picks: Option<Vec<u16>>) -> ChunkPiece {
        let range = start..start + 10 * u64::from(lines);
        let end = Point { offset: range.end, ..Point::default() };
        ChunkPiece {
            stream: StreamId(stream),
            range,
            end,
            last: Break::Newline,
            crc: 0,
            lines,
            table: None,
            picks,
        }
    }

    fn intent(serial: u64, group_no: u64, partition: i32, pieces: Vec<ChunkPiece>) -> Intent {
        let count = pieces.iter().map(|p| p.picked().count() as u32).sum();
        let numbers = Numbers { pid: 1, epoch: 0, base: 0 };
        let group_no = BatchGroupNo(group_no);
        Intent {
            serial,
            voids: 0,
            group_no,
            topic: "t".into(),
            topic_id: [1; 16],
            partition,
            numbers,
            count,
            follows: true,
            stamp_ms: 5,
            pieces,
        }
    }

    fn saved(of: &[(u64, u64)]) -> SavedPositions {
        SavedPositions(of.iter().map(|(s, at)| (StreamId(*s), (*at, vec![]))).collect())
    }

    fn loaded(intents: &[Intent], of: &[(u64, u64)]) -> Loaded {
        load(intents.iter().cloned().map(IntentRecord::Intent).collect(), &saved(of))
    }

    /// Fails when an earlier intent of a partition counts as open, or the last one as stored.
    #[test]
    fn only_the_last_of_a_partition_is_open() {
        let a = intent(1, 1, 0, vec![piece(1, 0, 3, None)]);
        let b = intent(2, 2, 0, vec![piece(1, 30, 2, None)]);
        let l = loaded(&[a, b], &[(1, 0)]);
        assert_eq!((l.settled.len(), l.settled[0].range.clone()), (1, 0..30));
        assert_eq!(l.groups.len(), 1);
        assert_eq!((l.groups[0].open[0].serial, l.groups[0].chunks[0].stored.len()), (2, 0));
        assert_eq!((l.serial, l.group_no, l.id, l.keep.len()), (2, BatchGroupNo(2), Some((1, 0)), 2));
        assert_eq!(l.lasts[&("t".into(), 0)].end, 2);
    }

    /// Fails when a covered intent is resumed, or when an intent that the saved positions cover in part counts as
    /// open: saved positions were acknowledged, and a chunk is acknowledged only when all batches with lines of it
    /// are stored.
    #[test]
    fn covered_intents_are_done() {
        let a = intent(1, 1, 0, vec![piece(1, 0, 3, None), piece(2, 0, 4, Some(vec![0, 2]))]);
        let l = loaded(std::slice::from_ref(&a), &[(1, 30), (2, 40)]);
        assert!(l.groups.is_empty() && l.settled.is_empty() && l.keep.is_empty());
        let l = loaded(&[a], &[(1, 30), (2, 0)]);
        assert_eq!(l.groups[0].chunks[0].stored, [0, 2]);
        assert!(l.groups[0].open.is_empty(), "lines 1 and 3 are sent with new numbers, 0 and 2 are stored");
    }

    /// Fails when lines of a split batch that never got numbers count as stored.
    #[test]
    fn a_voided_intent_proves_nothing() {
        let whole = intent(1, 1, 0, vec![piece(1, 0, 4, None)]);
        let front = Intent { voids: 1, ..intent(2, 1, 0, vec![piece(1, 0, 4, Some(vec![0, 1]))]) };
        let l = loaded(&[whole.clone(), front.clone()], &[(1, 0)]);
        let f = &l.groups[0];
        assert_eq!((f.open.len(), f.open[0].picks.clone()), (1, vec![(0, 0), (0, 1)]));
        assert!(f.chunks[0].stored.is_empty());
        // With the other half in another partition, the front is settled if its own partition moved on.
        let back = Intent { voids: 1, ..intent(3, 1, 0, vec![piece(1, 0, 4, Some(vec![2, 3]))]) };
        let l = loaded(&[whole, front, back], &[(1, 0)]);
        assert_eq!((l.groups[0].open[0].serial, l.groups[0].chunks[0].stored.clone()), (3, vec![0, 1]));
    }

    /// Fails when a batch group over two partitions is not assembled from its two intents.
    #[test]
    fn a_group_over_several_partitions() {
        let even = intent(1, 7, 0, vec![piece(1, 0, 4, Some(vec![0, 2]))]);
        let odd = intent(2, 7, 1, vec![piece(1, 0, 4, Some(vec![1, 3]))]);
        let l = loaded(&[even.clone(), odd.clone()], &[(1, 0)]);
        assert_eq!((l.groups[0].open.len(), l.groups[0].chunks.len()), (2, 1));
        let next = intent(3, 8, 0, vec![piece(1, 40, 1, None)]);
        let more = intent(4, 9, 1, vec![piece(1, 50, 1, None)]);
        let l = loaded(&[even, odd, next, more], &[(1, 0)]);
        assert_eq!(l.settled.len(), 1);
        assert_eq!(l.groups.iter().map(|f| f.group_no.0).collect::<Vec<_>>(), [8, 9]);
    }
}
