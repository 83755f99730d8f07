//! Groups waiting batches into requests, and matches an answer's partitions to them.

use crate::kafka::protocol::records::Encoder;
use crate::kafka::protocol::wire::Malformed;
use crate::producer::batch::Batch;
use std::collections::VecDeque;

/// Takes batches for one request: the first of each partition, up to `most` bytes (a single larger one goes alone),
/// grouped by topic. The rest keeps its order.
pub fn pick(waiting: &mut VecDeque<Batch>, most: usize) -> Vec<Batch> {
    let mut picked: Vec<Batch> = Vec::with_capacity(waiting.len());
    let mut stay = VecDeque::new();
    let mut bytes = 0;
    while let Some(batch) = waiting.pop_front() {
        let size = Encoder::estimate(&batch);
        if !picked.is_empty() && bytes + size > most {
            waiting.push_front(batch);
            break;
        }
        if picked.iter().any(|p| p.partition == batch.partition && p.group.topic == batch.group.topic) {
            stay.push_back(batch);
            continue;
        }
        bytes += size;
        picked.push(batch);
    }
    while let Some(batch) = stay.pop_back() {
        waiting.push_front(batch);
    }
    picked.sort_unstable_by(|a, b| (&a.group.topic, a.partition).cmp(&(&b.group.topic, b.partition)));
    picked
}

/// A partition's index in the request; `nth` is its index if the answer has the request's order.
pub fn place(
    batches: &[Option<Batch>],
    topic: &[u8],
    partition: i32,
    nth: usize,
) -> Result<usize, Malformed> {
    let is = |b: &Option<Batch>| {
        b.as_ref().is_some_and(|b| b.partition == partition && b.group.topic.as_bytes() == topic)
    };
    if batches.get(nth).is_some_and(is) {
        return Ok(nth);
    }
    batches.iter().position(is).ok_or(Malformed("a partition that was not asked about"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::scripted::one;
    use std::sync::Arc;

    fn of(topic: &str, partition: i32, base: i32, bytes: usize) -> Batch {
        let mut b = one(partition, base);
        Arc::get_mut(&mut b.group).unwrap().topic = topic.into();
        b.bytes = bytes;
        b
    }

    fn names(batches: &[Batch]) -> Vec<(&str, i32, i32)> {
        batches.iter().map(|b| (&*b.group.topic, b.partition, b.numbers.unwrap().base)).collect()
    }

    /// Fails when a partition occurs twice in a request, order within a partition is lost, topics are mixed, or the
    /// limit is exceeded by more than a first batch alone.
    #[test]
    fn one_of_each_partition_up_to_the_limit() {
        let all = [("b", 0, 0), ("a", 0, 0), ("b", 0, 1), ("b", 1, 0), ("b", 0, 2), ("a", 1, 0)];
        let mut waiting: VecDeque<Batch> = all.into_iter().map(|(t, p, base)| of(t, p, base, 100)).collect();
        let first = pick(&mut waiting, 1 << 20);
        assert_eq!(names(&first), [("a", 0, 0), ("a", 1, 0), ("b", 0, 0), ("b", 1, 0)]);
        let second = pick(&mut waiting, 1 << 20);
        assert_eq!((names(&second), names(&pick(&mut waiting, 1))), (vec![("b", 0, 1)], vec![("b", 0, 2)]));
        assert!(waiting.is_empty());
        let mut waiting: VecDeque<Batch> = (0..4).map(|p| of("t", p, 0, 300)).collect();
        assert_eq!(pick(&mut waiting, 1000).len(), 2);
        waiting.push_front(of("t", 9, 0, 5000));
        assert_eq!(names(&pick(&mut waiting, 1000)), [("t", 9, 0)]);
    }

    /// Fails when an answer in a different order is read in the request's order.
    #[test]
    fn a_partition_is_found_in_any_order() {
        let batches: Vec<_> = [of("a", 0, 0, 1), of("b", 0, 0, 1), of("b", 1, 0, 1)].map(Some).into();
        assert_eq!(place(&batches, b"a", 0, 0), Ok(0));
        assert_eq!(place(&batches, b"b", 1, 0), Ok(2));
        assert!(place(&batches, b"a", 1, 0).is_err());
    }
}
