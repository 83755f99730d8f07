//! Parses the answer to DescribeProducers piece by piece: it lists every producer of the partition, of which we want
//! one, and only that one is kept.

use crate::kafka::protocol::messages::text;
use crate::kafka::protocol::wire::{ApiKey, Malformed, Read, Reader};

/// Maximum answer size: 1.8 million producers at 37 bytes each. A broker keeps each for a day by default
/// (`producer.id.expiration.ms`).
pub const CAP: usize = 64 << 20;

/// The longest part that must be complete to be parsed: names and messages are Kafka strings, below 32 KiB.
const LONGEST_PART: usize = 40 << 10;

/// The producer's epoch and last sequence, `None` if it is not listed; or code and message of a broker that refuses.
pub type ListedState = Result<Option<(i16, i32)>, (i16, String)>;

#[derive(Debug)]
pub struct Producers {
    topic: String,
    partition: i32,
    pid: i64,
    part: ExpectedPart,
    /// Items of each array not yet begun.
    topics: usize,
    partitions: usize,
    producers: usize,
    /// Whether the topic being read, and its partition, are the wanted ones.
    our_topic: bool,
    ours: bool,
    said: ListedState,
    found: Option<ListedState>,
}

/// The part expected next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExpectedPart {
    Head,
    Topic,
    Partition,
    Producer,
    /// Only tags, which are ignored.
    Rest,
}

impl Producers {
    pub fn new(topic: &str, partition: i32, pid: i64) -> Producers {
        Producers {
            topic: topic.to_owned(),
            partition,
            pid,
            part: ExpectedPart::Head,
            topics: 0,
            partitions: 0,
            producers: 0,
            our_topic: false,
            ours: false,
            said: Ok(None),
            found: None,
        }
    }

    /// Parses the complete parts of `bytes`, after which `more` bytes of the answer are still to come. Returns the
    /// number of bytes consumed; the rest must be passed again together with those that follow.
    pub fn read(&mut self, bytes: &[u8], more: usize) -> Read<usize> {
        let mut rest = bytes;
        while self.part != ExpectedPart::Rest {
            let mut r = Reader::new(rest, ApiKey::DescribeProducers.is_flexible(0));
            match self.next(&mut r, more) {
                Ok(()) => rest = r.rest(),
                Err(_) if more > 0 && rest.len() < LONGEST_PART => break,
                Err(e) => return Err(e),
            }
        }
        if self.part == ExpectedPart::Rest {
            rest = &[];
        }
        Ok(bytes.len() - rest.len())
    }

    /// The result, after the last byte.
    pub fn known(self) -> Read<ListedState> {
        let whole = self.part == ExpectedPart::Rest;
        self.found.filter(|_| whole).ok_or(Malformed("our partition is not in it"))
    }

    /// Reads one part. Changes nothing unless the part is complete.
    fn next(&mut self, r: &mut Reader<'_>, more: usize) -> Read<()> {
        match self.part {
            ExpectedPart::Head => {
                r.skip_tags()?;
                r.i32("throttle")?;
                self.topics = r.count_within(more, 3, "topic count")?;
                self.part = ExpectedPart::Topic;
            }
            ExpectedPart::Topic if self.topics == 0 => self.part = ExpectedPart::Rest,
            ExpectedPart::Topic => {
                let ours = r.string("topic name")? == Some(self.topic.as_bytes());
                self.partitions = r.count_within(more, 9, "partition count")?;
                self.our_topic = ours;
                self.part = ExpectedPart::Partition;
            }
            ExpectedPart::Partition if self.partitions == 0 => {
                r.skip_tags()?;
                self.topics -= 1;
                self.part = ExpectedPart::Topic;
            }
            ExpectedPart::Partition => {
                let ours = r.i32("partition")? == self.partition && self.our_topic;
                let error = r.i16("error")?;
                let message = r.string("error message")?;
                self.producers = r.count_within(more, 37, "producer count")?;
                self.ours = ours;
                self.said = if error == 0 { Ok(None) } else { Err((error, text(message))) };
                self.part = ExpectedPart::Producer;
            }
            ExpectedPart::Producer if self.producers == 0 => {
                r.skip_tags()?;
                if self.ours {
                    self.found = Some(std::mem::replace(&mut self.said, Ok(None)));
                }
                self.partitions -= 1;
                self.part = ExpectedPart::Partition;
            }
            ExpectedPart::Producer => {
                let (id, epoch, sequence) = (r.i64("pid")?, r.i32("epoch")?, r.i32("sequence")?);
                r.bytes(8 + 4 + 8, "producer")?;
                r.skip_tags()?;
                if id == self.pid && self.said.is_ok() {
                    self.said = Ok(Some((epoch as i16, sequence)));
                }
                self.producers -= 1;
            }
            ExpectedPart::Rest => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use kafka_protocol::messages::describe_producers_response::{
        PartitionResponse, ProducerState, TopicResponse,
    };
    use kafka_protocol::messages::{DescribeProducersResponse, TopicName};
    use kafka_protocol::protocol::{Encodable, StrBytes};
    use proptest::prelude::*;

    /// Partition 1 of topic "t" with `others` producers around number 7, and a neighbor.
    fn answer(others: i64, error: i16) -> Vec<u8> {
        let state = |id: i64| {
            ProducerState::default()
                .with_producer_id(id.into())
                .with_producer_epoch(3)
                .with_last_sequence((id * 2) as i32)
        };
        let part = |index, all| {
            let message = (error != 0).then(|| StrBytes::from_static_str("no READ"));
            PartitionResponse::default()
                .with_partition_index(index)
                .with_error_code(error)
                .with_error_message(message)
                .with_active_producers(all)
        };
        let ours = (100..100 + others / 2).chain([7]).chain(5000..5000 + others / 2).map(state).collect();
        let topic = |name: &'static str, parts| {
            TopicResponse::default()
                .with_name(TopicName(StrBytes::from_static_str(name)))
                .with_partitions(parts)
        };
        let topics =
            vec![topic("u", vec![part(1, vec![state(7)])]), topic("t", vec![part(0, vec![]), part(1, ours)])];
        let mut bytes = BytesMut::new();
        bytes.extend_from_slice(&[0]); // no tags in the header
        DescribeProducersResponse::default().with_topics(topics).encode(&mut bytes, 0).unwrap();
        bytes.to_vec()
    }

    /// Reads in pieces of these sizes; also returns the most bytes that had to be kept for the next piece.
    fn read(bytes: &[u8], pieces: &[usize], pid: i64) -> (Read<ListedState>, usize) {
        let mut answer = Producers::new("t", 1, pid);
        let (mut from, mut to, mut most) = (0, 0, 0);
        for piece in pieces.iter().cycle() {
            to = bytes.len().min(to + piece);
            match answer.read(&bytes[from..to], bytes.len() - to) {
                Ok(n) => from += n,
                Err(e) => return (Err(e), most),
            }
            most = most.max(to - from);
            if to == bytes.len() {
                break;
            }
        }
        (answer.known(), most)
    }

    proptest! {
        /// Fails when an answer in pieces is read differently, or is kept as a whole.
        #[test]
        fn an_answer_in_pieces_is_read_alike(pieces in proptest::collection::vec(1usize..3000, 1..6)) {
            let bytes = answer(2000, 0);
            let (known, kept) = read(&bytes, &pieces, 7);
            prop_assert_eq!(known, Ok(Ok(Some((3, 14)))));
            prop_assert!(kept < 100, "{} bytes kept", kept);
            prop_assert_eq!(read(&bytes, &pieces, 8).0, Ok(Ok(None)));
            prop_assert_eq!(read(&answer(10, 29), &pieces, 7).0, Ok(Err((29, "no READ".to_owned()))));
        }

        /// Fails when noise panics.
        #[test]
        fn noise_is_refused(noise in proptest::collection::vec(any::<u8>(), 1..2000), piece in 1usize..300) {
            let _ = read(&noise, &[piece], 7);
        }
    }

    /// Fails when half an answer is accepted as complete.
    #[test]
    fn half_an_answer_is_rejected() {
        let bytes = answer(10, 0);
        for n in 0..bytes.len() - 3 {
            assert!(read(&bytes[..n], &[64], 7).0.is_err(), "{n}");
        }
    }
}
