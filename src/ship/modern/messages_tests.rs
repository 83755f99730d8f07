//! Tests of our readers against `kafka-protocol`'s writers, and against answers that were tampered with.

use super::*;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse, TopicProduceResponse,
};
use kafka_protocol::messages::{ApiVersionsResponse, MetadataResponse, ProduceResponse, ResponseHeader};
use kafka_protocol::protocol::{Decodable, HeaderVersion};
use proptest::prelude::*;

/// An answer as it stands behind its correlation id.
fn body<M: Encodable + HeaderVersion>(message: &M, version: i16) -> Vec<u8> {
    let mut to = BytesMut::new();
    ResponseHeader::default().encode(&mut to, M::header_version(version)).unwrap();
    message.encode(&mut to, version).unwrap();
    to[4..].to_vec()
}

fn some_metadata(version: i16) -> Vec<u8> {
    let text = StrBytes::from_static_str;
    let broker = MetadataResponseBroker::default()
        .with_node_id(5.into())
        .with_host(text("fe80::1"))
        .with_port(9092)
        .with_rack(Some(text("r")));
    let part = |i: i32, leader: i32| {
        MetadataResponsePartition::default()
            .with_partition_index(i)
            .with_leader_id(leader.into())
            .with_leader_epoch(if version >= 7 { 3 } else { -1 })
            .with_replica_nodes(vec![5.into(), 6.into()])
            .with_isr_nodes(vec![5.into()])
            .with_offline_replicas(if version >= 5 { vec![6.into()] } else { vec![] })
    };
    let topic = |name| {
        let mut topic = MetadataResponseTopic::default()
            .with_name(Some(topic_name(name)))
            .with_partitions(vec![part(1, -1), part(0, 5)]);
        if version >= 8 {
            topic.topic_authorized_operations = MAY_WRITE;
        }
        if version >= 10 {
            // The type of an id is of a crate that is no dependency of ours, so one is read.
            let with_id = [&[7u8; 16][..], &[0, 0]].concat();
            topic.topic_id = MetadataRequestTopic::decode(&mut &with_id[..], 12).unwrap().topic_id;
        }
        topic
    };
    let mut all =
        MetadataResponse::default().with_brokers(vec![broker]).with_topics(vec![topic("t"), topic("u")]);
    if version >= 2 {
        all.cluster_id = Some(text("c"));
    }
    body(&all, version)
}

fn some_produced(version: i16) -> Vec<u8> {
    let text = StrBytes::from_static_str;
    let mut bad = PartitionProduceResponse::default().with_index(3).with_error_code(87).with_base_offset(-1);
    let mut all = ProduceResponse::default().with_throttle_time_ms(77);
    if version >= 8 {
        let one = BatchIndexAndErrorMessage::default()
            .with_batch_index(4)
            .with_batch_index_error_message(Some(text("x")));
        bad = bad.with_record_errors(vec![one]).with_error_message(Some(text("y\u{1b}[31m")));
    }
    if version >= 10 {
        let leader = LeaderIdAndEpoch::default().with_leader_id(2.into()).with_leader_epoch(8);
        bad = bad.with_current_leader(leader);
        let node = NodeEndpoint::default().with_node_id(2.into()).with_host(text("h")).with_port(1);
        all = all.with_node_endpoints(vec![node]);
    }
    let good = PartitionProduceResponse::default().with_index(1).with_base_offset(1 << 40);
    let topic =
        TopicProduceResponse::default().with_name(topic_name("t")).with_partition_responses(vec![good, bad]);
    body(&all.with_responses(vec![topic]), version)
}

fn some_versions(version: i16) -> Vec<u8> {
    let api = |key, max| ApiVersion::default().with_api_key(key).with_max_version(max);
    let mut to = BytesMut::new();
    let all = ApiVersionsResponse::default().with_api_keys(vec![api(0, 9), api(3, 4)]);
    all.encode(&mut to, version).unwrap();
    to.to_vec()
}

/// Fails when a field of any version is missing, too many or of another size.
#[test]
fn metadata_in_every_version() {
    for version in 1..=12 {
        let got = metadata(&some_metadata(version), version, &["t", "u"]).unwrap();
        let node = Node { id: 5, host: "fe80::1".into(), port: 9092 };
        assert_eq!(node.address(), "[fe80::1]:9092");
        assert_eq!((got.nodes, got.cluster), (vec![node], (version >= 2).then(|| "c".into())));
        let epoch = if version >= 7 { 3 } else { -1 };
        let part = |partition, leader| PartitionMeta { partition, leader, epoch };
        let topic = |name: &str| TopicMeta {
            error: 0,
            name: name.into(),
            id: if version >= 10 { [7; 16] } else { [0; 16] },
            partitions: vec![part(0, 5), part(1, -1)],
            rights: (version >= 8).then_some(MAY_WRITE),
        };
        assert_eq!(got.topics, [topic("t"), topic("u")], "version {version}");
    }
}

/// Fails when a field of any version is missing, too many or of another size, or text reaches us unwashed.
#[test]
fn produced_in_every_version() {
    for version in 3..=12 {
        let mut all = Vec::new();
        let each = |topic: &[u8], p: Produced| {
            assert_eq!(topic, b"t");
            all.push(p);
            Ok(())
        };
        let (throttle, nodes) = produced(&some_produced(version), version, each).unwrap();
        let endpoints = if version >= 10 { vec![Node { id: 2, host: "h".into(), port: 1 }] } else { vec![] };
        assert_eq!((throttle, nodes), (77, endpoints), "version {version}");
        assert_eq!((all[0].partition, all[0].error, all[0].offset, all[0].leader), (1, 0, 1 << 40, None));
        assert_eq!((all[1].partition, all[1].error, all[1].offset), (3, 87, -1));
        let (bad, message): (&[u32], _) = if version >= 8 { (&[4], "y?[31m") } else { (&[], "") };
        assert_eq!((&all[1].bad[..], &all[1].message[..]), (bad, message));
        assert_eq!(all[1].leader, (version >= 10).then_some((2, 8)));
    }
}

/// Fails when a version is chosen that one side does not speak, or the minimum of Produce is believed (KAFKA-18659).
#[test]
fn versions_are_the_highest_of_both() {
    let api =
        |key, min, max| ApiVersion::default().with_api_key(key).with_min_version(min).with_max_version(max);
    let read = |apis, version| {
        let mut to = BytesMut::new();
        ApiVersionsResponse::default().with_api_keys(apis).encode(&mut to, version).unwrap();
        versions(&to, version).unwrap().unwrap()
    };
    for version in [0, 3] {
        let kafka4 = read(vec![api(0, 0, 13), api(3, 0, 13), api(22, 0, 5), api(61, 0, 0)], version);
        let got = (kafka4.produce, kafka4.metadata, kafka4.init_producer_id, kafka4.describe_producers);
        assert_eq!(got, (Some(12), Some(12), Some(4), Some(0)));
        let old = read(vec![api(0, 0, 2), api(3, 0, 1)], version);
        assert_eq!(
            (old.produce, old.metadata, old.produce_max, old.init_producer_id),
            (None, Some(1), 2, None)
        );
        let future = read(vec![api(0, 14, 20), api(3, 12, 30)], version);
        assert_eq!((future.produce, future.metadata), (None, Some(12)));
    }
    assert_eq!(versions(&[0, 35, 0, 0, 0, 0], 3), Ok(Err(35)));
}

fn all_answers() -> Vec<(u8, i16, Vec<u8>)> {
    let produced = (3..=12).map(|v| (0, v, some_produced(v)));
    let metadata = (1..=12).map(|v| (3, v, some_metadata(v)));
    let versions = [0, 3].map(|v| (18, v, some_versions(v)));
    produced.chain(metadata).chain(versions).collect()
}

fn read(api: u8, version: i16, bytes: &[u8]) -> bool {
    let read = match api {
        0 => produced(bytes, version, |_, _| Ok(())).map(drop),
        3 => metadata(bytes, version, &["t", "u"]).map(drop),
        _ => versions(bytes, version).map(drop),
    };
    // Whatever these are given, they must not panic either.
    let _ = producer_id(bytes, version);
    read.is_ok()
}

/// Fails when an answer that was cut short is taken for whole.
#[test]
fn half_an_answer_is_none() {
    for (api, version, bytes) in all_answers() {
        assert!(read(api, version, &bytes), "api {api} version {version}");
        // Behind the list of topics or of apis nothing is read: throttle, operations, tags.
        let unread = match (api, version) {
            (3, 1..=7) => 0,
            (3, 11..) => 1,
            (3, 9..) => 5,
            (3, _) => 4,
            (18, 3..) => 5,
            _ => 0,
        };
        for n in 0..bytes.len() - unread {
            assert!(
                !read(api, version, &bytes[..n]),
                "api {api} version {version}: {n} of {} bytes",
                bytes.len()
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    /// Fails (panics, or runs out of time or memory) when a length or count of a real answer is believed unchecked.
    #[test]
    fn mutated_answers_are_read_or_refused(
        which: proptest::sample::Index,
        changes in proptest::collection::vec(
            (any::<proptest::sample::Index>(), prop_oneof![Just(0xffu8), Just(0x7f), Just(0x80), any::<u8>()]),
            1..6,
        ),
        cut: proptest::sample::Index,
    ) {
        let all = all_answers();
        let (api, version, bytes) = which.get(&all);
        let mut bytes = bytes.clone();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        read(*api, *version, &bytes);
        read(*api, *version, &bytes[..cut.index(bytes.len())]);
    }
}
