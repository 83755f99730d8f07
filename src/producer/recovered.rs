//! Exactly-once: the state restored from an earlier run, and how a group that was read again becomes batches. Which
//! lines are stored is decided in `exactly_once/analyze.rs`.

use super::Partitioner;
use super::batch::{Batch, BatchGroup, Numbers, PendingAcks, Pick, Records};
use super::driver::TopicView;
use super::partition::Partition;
use super::partition::producer_recovery::PastProducer;
use super::partitioner::{BatchPart, Distribution, Limit};
use crate::record::{BatchGroupNo, Topic};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// A partition of a topic.
pub type TopicPartition = (Topic, i32);

/// The last sequence numbers used in a partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LastSequence {
    /// The intent that used them.
    pub serial: u64,
    pub topic: Topic,
    pub topic_id: [u8; 16],
    pub partition: i32,
    pub pid: i64,
    pub epoch: i16,
    /// The sequence after the last one used.
    pub end: i32,
}

/// A batch that may be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenBatch {
    pub serial: u64,
    pub partition: i32,
    pub numbers: Numbers,
    pub count: u32,
    pub follows: bool,
    /// By chunk of the group and line, ascending.
    pub picks: Vec<(usize, u16)>,
}

/// Restored from the intent log.
#[derive(Debug, Default)]
pub struct RecoveredState {
    /// The producer id to continue with, in an epoch that no run has used. `None`: request a new one.
    pub id: Option<(i64, i16)>,
    pub lasts: Arc<HashMap<TopicPartition, LastSequence>>,
    pub groups: Vec<Resumed>,
    /// The highest group number used.
    pub group_no: BatchGroupNo,
}

/// A batch group whose chunks are read again.
#[derive(Debug)]
pub struct Resumed {
    pub group_no: BatchGroupNo,
    pub group: BatchGroup,
    /// Batches that may be stored.
    pub open: Vec<OpenBatch>,
    /// Records that are stored, ascending.
    pub stored: Vec<Pick>,
}

/// The part of the restored state that one queue needs.
#[derive(Debug, Default)]
pub struct RecoveredTopic {
    /// Exactly-once delivery is enabled.
    once: bool,
    id: Option<(i64, i16)>,
    lasts: Arc<HashMap<TopicPartition, LastSequence>>,
    pub groups: VecDeque<Resumed>,
}

impl RecoveredTopic {
    /// Takes one topic's part, including its groups.
    pub fn of(once: &mut RecoveredState, topic: &Topic) -> RecoveredTopic {
        let (mine, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut once.groups).into_iter().partition(|f: &Resumed| f.group.topic == *topic);
        once.groups = others;
        RecoveredTopic { once: true, id: once.id, lasts: once.lasts.clone(), groups: mine.into() }
    }

    /// A partition, with the questions its leader must answer first.
    pub fn partition(&self, view: &TopicView, id: i32) -> Partition {
        let mut pasts = VecDeque::new();
        let last = self.lasts.get(&(view.topic.clone(), id));
        if let Some(l) = last {
            let open = self.groups.iter().flat_map(|f| &f.open).find(|o| o.partition == id);
            pasts.push_back(PastProducer {
                pid: l.pid,
                last: Some((l.epoch, l.end)),
                proven: open.is_none_or(|o| o.follows),
                same_topic: l.topic_id == view.id,
            });
        }
        if let Some((pid, _)) = self.id
            && last.is_none_or(|l| l.pid != pid)
        {
            pasts.push_back(PastProducer { pid, last: None, proven: false, same_topic: true });
        }
        if self.once && pasts.is_empty() {
            pasts.push_back(PastProducer::NONE);
        }
        Partition::with_recovered(id, pasts)
    }
}

impl Resumed {
    /// The acks still pending.
    pub fn pending(&self) -> PendingAcks {
        let mut pending = PendingAcks::of(&self.group);
        pending.forget(&self.stored);
        pending
    }

    /// Its batches: the open ones unchanged, and lines that never got sequence numbers distributed again.
    pub fn batches(self, view: &TopicView, partitioner: Partitioner, batch: usize, seed: u64) -> Vec<Batch> {
        let group = Arc::new(self.group);
        // All records of the group, not yet assigned to a partition.
        let whole = BatchPart { partition: 0, records: Records::All, count: 0, bytes: 0 }
            .into_batch(self.group_no, group.clone());
        let mut taken: HashSet<Pick> = self.stored.iter().copied().collect();
        let mut out = Vec::new();
        for open in self.open {
            let picks: Vec<Pick> =
                open.picks.iter().map(|(chunk, line)| Pick { chunk: *chunk as u16, line: *line }).collect();
            debug_assert_eq!(picks.len(), open.count as usize);
            taken.extend(&picks);
            let numbers = Some(open.numbers);
            let (partition, intent) = (open.partition, open.serial);
            // As far as we know it was attempted: count it as a retry that may be stored.
            let of = Batch { attempts: 1, maybe_stored: true, ..whole.of(&picks) };
            out.push(Batch { partition, intent, numbers, noted: numbers, ..of });
        }
        let all = &view.partitions;
        let fixed = match partitioner {
            Partitioner::Fixed(n) => vec![n],
            _ => all.clone(),
        };
        let sticky = fixed[seed as usize % fixed.len()];
        let deal = Distribution { partitioner, all, open: &fixed, sticky, seed, limit: Limit::of(batch) };
        let mut parts = Vec::new();
        deal.out(&group, &mut parts);
        for part in parts {
            let dealt = Batch { records: part.records, count: part.count, ..whole.of(&[]) };
            let rest: Vec<Pick> = dealt.picks().filter(|p| !taken.contains(p)).collect();
            if !rest.is_empty() {
                out.push(Batch { partition: part.partition, ..whole.of(&rest) });
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::producer::batch::Numbers;
    use crate::producer::testing::{STAMP, chunk, plain};

    /// Fails when a line of the group goes into two batches or into none, or the open batch changes.
    #[test]
    fn every_line_once() {
        let lines: Vec<&[u8]> = vec![b"x"; 10];
        let chunks = vec![chunk(&plain(1), 0, &lines), chunk(&plain(2), 0, &lines)];
        let group = BatchGroup::new("t".into(), [0; 16], STAMP, chunks);
        let pick = |chunk, line| Pick { chunk, line };
        let stored = vec![pick(0, 0), pick(1, 9)];
        let numbers = Numbers { pid: 1, epoch: 2, base: 3 };
        let open = OpenBatch {
            serial: 5,
            partition: 1,
            numbers,
            count: 3,
            follows: true,
            picks: vec![(0, 1), (0, 2), (1, 0)],
        };
        let resumed = Resumed { group_no: BatchGroupNo(3), group, open: vec![open], stored: stored.clone() };
        let mut pending = resumed.pending();
        let view =
            TopicView { topic: "t".into(), id: [0; 16], partitions: vec![0, 1, 2], available: vec![0, 1, 2] };
        let batches = resumed.batches(&view, Partitioner::RoundRobin, 1 << 20, 7);
        let first = &batches[0];
        assert_eq!((first.partition, first.numbers, first.noted), (1, Some(numbers), Some(numbers)));
        assert!(first.maybe_stored && batches[1..].iter().all(|b| !b.maybe_stored && b.numbers.is_none()));
        let mut all: Vec<Pick> = batches.iter().flat_map(|b| b.picks().collect::<Vec<_>>()).collect();
        assert!(batches.iter().all(|b| b.picks().count() == b.count as usize && b.bytes == b.count as usize));
        all.extend(stored);
        all.sort();
        let want: Vec<Pick> = (0..2).flat_map(|c| (0..10).map(move |l| pick(c, l))).collect();
        assert_eq!(all, want);
        let mut acked = 0;
        batches.iter().for_each(|b| pending.done(b, |_| acked += 1));
        assert!(acked == 2 && pending.is_over());
    }
}
