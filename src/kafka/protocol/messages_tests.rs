//! Our requests byte for byte against those of `kafka-protocol`, and our readers against its writers and against
//! mutated answers.

use super::super::{limits, sasl};
use super::*;
use bytes::BytesMut;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse, TopicProduceResponse,
};
use kafka_protocol::messages::{
    ApiKey as TheirKey, ApiVersionsRequest, ApiVersionsResponse, DescribeConfigsRequest,
    DescribeProducersRequest, InitProducerIdRequest, InitProducerIdResponse, MetadataRequest,
    MetadataResponse, ProduceResponse, RequestHeader, ResponseHeader, SaslAuthenticateRequest,
    SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse, TopicName,
    describe_configs_request::DescribeConfigsResource, describe_producers_request::TopicRequest,
    metadata_request::MetadataRequestTopic,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};
use proptest::prelude::*;

fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

/// Compares a request of ours with that of `kafka-protocol` in both directions: it reads ours as `theirs`, and writes
/// the same bytes.
fn same<M>(ours: &[u8], api: TheirKey, version: i16, client: &str, theirs: &M)
where
    M: Encodable + Decodable + PartialEq + std::fmt::Debug,
{
    let header = RequestHeader::default()
        .with_request_api_key(api as i16)
        .with_request_api_version(version)
        .with_correlation_id(CORRELATION)
        .with_client_id(Some(StrBytes::from_string(client.to_owned())));
    let headed = api.request_header_version(version);
    let mut to = BytesMut::from(&(ours.len() as u32 - 4).to_be_bytes()[..]);
    header.encode(&mut to, headed).unwrap();
    theirs.encode(&mut to, version).unwrap();
    assert_eq!(ours, &to[..], "{api:?} {version}");
    let mut rest = bytes::Bytes::copy_from_slice(&ours[4..]);
    assert_eq!(RequestHeader::decode(&mut rest, headed).unwrap(), header, "{api:?} {version}");
    assert_eq!(&M::decode(&mut rest, version).unwrap(), theirs, "{api:?} {version}");
    assert!(rest.is_empty(), "{api:?} {version}");
}

const CORRELATION: i32 = 0x0102_0304;

/// All requests except Produce (in `records_tests.rs`), in every version we may send.
fn all_requests(client: &str, topics: &[&str], partition: i32, sasl: &[u8], create: bool) {
    let text = |t: &str| StrBytes::from_string(t.to_owned());
    for version in [0, 3] {
        let mut body = ApiVersionsRequest::default();
        if version == 3 {
            body = body
                .with_client_software_name(text("logagent"))
                .with_client_software_version(text(env!("CARGO_PKG_VERSION")));
        }
        let ours = ask_versions(version, CORRELATION, client);
        same(&ours, TheirKey::ApiVersions, version, client, &body);
    }
    for version in METADATA.0..=METADATA.1 {
        let all = topics.iter().map(|t| MetadataRequestTopic::default().with_name(Some(topic_name(t))));
        let body = MetadataRequest::default()
            .with_topics(Some(all.collect()))
            .with_allow_auto_topic_creation(create || version < 4)
            .with_include_topic_authorized_operations(version >= 8);
        let ours = ask_metadata(version, CORRELATION, client, topics, create);
        same(&ours, TheirKey::Metadata, version, client, &body);
    }
    for version in INIT_PRODUCER_ID.0..=INIT_PRODUCER_ID.1 {
        let body = InitProducerIdRequest::default()
            .with_transactional_id(None)
            .with_transaction_timeout_ms(i32::MAX);
        let ours = ask_producer_id(version, CORRELATION, client);
        same(&ours, TheirKey::InitProducerId, version, client, &body);
    }
    for topic in topics {
        let one =
            TopicRequest::default().with_name(topic_name(topic)).with_partition_indexes(vec![partition]);
        let body = DescribeProducersRequest::default().with_topics(vec![one]);
        let ours = ask_producers(CORRELATION, client, topic, partition);
        same(&ours, TheirKey::DescribeProducers, 0, client, &body);
        for version in DESCRIBE_CONFIGS.0..=DESCRIBE_CONFIGS.1 {
            let one = DescribeConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(text(topic))
                .with_configuration_keys(Some(vec![text("max.message.bytes")]));
            let body = DescribeConfigsRequest::default().with_resources(vec![one]);
            let ours = limits::ask(version, CORRELATION, client, limits::Setting::LargestBatch(topic));
            same(&ours, TheirKey::DescribeConfigs, version, client, &body);
        }
    }
    let body = SaslHandshakeRequest::default().with_mechanism(text("SCRAM-SHA-256"));
    let ours = sasl::ask_mechanism(CORRELATION, client, "SCRAM-SHA-256");
    same(&ours, TheirKey::SaslHandshake, 1, client, &body);
    for version in SASL_AUTHENTICATE.0..=SASL_AUTHENTICATE.1 {
        let body = SaslAuthenticateRequest::default().with_auth_bytes(sasl.to_vec().into());
        let ours = sasl::authenticate(version, CORRELATION, client, sasl);
        same(&ours, TheirKey::SaslAuthenticate, version, client, &body);
    }
}

/// Fails when a field of any version is missing, superfluous or of another size, including when a compact length or
/// count takes one more byte.
#[test]
fn requests_in_every_version() {
    for len in [1, 126, 127, 128, 249] {
        let long = "t".repeat(len);
        all_requests("c", &[&long], 3, long.as_bytes(), false);
        all_requests(&long, &["t"; 127][..len.min(127)], -1, &vec![7; len * 130], true);
    }
    all_requests("", &[], 0, b"", false);
}

/// Fails when the two disagree on which versions are flexible.
#[test]
fn flexible_versions_are_those_of_the_protocol() {
    let all = [
        (ApiKey::Produce, TheirKey::Produce, PRODUCE),
        (ApiKey::Metadata, TheirKey::Metadata, METADATA),
        (ApiKey::SaslHandshake, TheirKey::SaslHandshake, SASL_HANDSHAKE),
        (ApiKey::ApiVersions, TheirKey::ApiVersions, (0, 3)),
        (ApiKey::InitProducerId, TheirKey::InitProducerId, INIT_PRODUCER_ID),
        (ApiKey::DescribeConfigs, TheirKey::DescribeConfigs, DESCRIBE_CONFIGS),
        (ApiKey::SaslAuthenticate, TheirKey::SaslAuthenticate, SASL_AUTHENTICATE),
        (ApiKey::DescribeProducers, TheirKey::DescribeProducers, DESCRIBE_PRODUCERS),
    ];
    for (ours, theirs, (low, high)) in all {
        assert_eq!(ours as i16, theirs as i16);
        for version in low..=high {
            let flexible = theirs.request_header_version(version) >= 2;
            assert_eq!(ours.is_flexible(version), flexible, "{ours:?} {version}");
        }
    }
}

/// An answer after its correlation id.
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
            // The id's type belongs to a crate we do not depend on, so parse one instead.
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

fn some_producer_id(version: i16) -> Vec<u8> {
    let all = InitProducerIdResponse::default().with_throttle_time_ms(5).with_producer_id((1 << 40).into());
    body(&all.with_producer_epoch(9), version)
}

fn some_mechanisms() -> Vec<u8> {
    let all = ["PLAIN", "SCRAM-SHA-256"].map(StrBytes::from_static_str).to_vec();
    body(&SaslHandshakeResponse::default().with_error_code(33).with_mechanisms(all), 1)
}

fn some_authenticated(version: i16) -> Vec<u8> {
    let all = SaslAuthenticateResponse::default()
        .with_error_code(58)
        .with_error_message(Some(StrBytes::from_static_str("no\n")))
        .with_auth_bytes(vec![1, 2, 3].into())
        .with_session_lifetime_ms(if version >= 1 { 1 << 33 } else { 0 });
    body(&all, version)
}

/// Fails when a field of any version is missing, superfluous or of another size.
#[test]
fn producer_ids_and_sasl_in_every_version() {
    for version in INIT_PRODUCER_ID.0..=INIT_PRODUCER_ID.1 {
        assert_eq!(producer_id(&some_producer_id(version), version), Ok((0, 1 << 40, 9)), "{version}");
    }
    let names = ["PLAIN", "SCRAM-SHA-256"].map(str::to_owned).to_vec();
    assert_eq!(sasl::mechanisms(&some_mechanisms()), Ok((33, names)));
    for version in SASL_AUTHENTICATE.0..=SASL_AUTHENTICATE.1 {
        let want = sasl::Authenticated {
            error: 58,
            message: "no?".into(),
            bytes: vec![1, 2, 3],
            lifetime_ms: if version >= 1 { 1 << 33 } else { 0 },
        };
        assert_eq!(sasl::authenticated(&some_authenticated(version), version), Ok(want), "{version}");
    }
}

/// Fails when a field of any version is missing, superfluous or of another size.
#[test]
fn metadata_in_every_version() {
    for version in 1..=12 {
        let got = metadata(&some_metadata(version), version, &["t", "u"]).unwrap();
        let node = Node::new(5, "fe80::1", 9092);
        assert_eq!(node.address, "[fe80::1]:9092");
        assert_eq!((got.nodes, got.cluster), (vec![node], (version >= 2).then(|| "c".into())));
        let epoch = if version >= 7 { 3 } else { -1 };
        let part = |partition, leader| PartitionMeta { partition, leader, epoch };
        let topic = |name: &str| TopicMeta {
            error: 0,
            name: name.into(),
            id: if version >= 10 { [7; 16] } else { [0; 16] },
            partitions: vec![part(1, -1), part(0, 5)],
            rights: (version >= 8).then_some(MAY_WRITE),
        };
        assert_eq!(got.topics, [topic("t"), topic("u")], "version {version}");
    }
}

/// Fails when a field of any version is missing, superfluous or of another size, or text is not sanitized.
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
        let endpoints = if version >= 10 { vec![Node::new(2, "h", 1)] } else { vec![] };
        assert_eq!((throttle, nodes), (77, endpoints), "version {version}");
        assert_eq!((all[0].partition, all[0].error, all[0].offset, all[0].leader), (1, 0, 1 << 40, None));
        assert_eq!((all[1].partition, all[1].error, all[1].offset), (3, 87, -1));
        let (bad, message): (&[u32], _) = if version >= 8 { (&[4], "y?[31m") } else { (&[], "") };
        assert_eq!((&all[1].bad[..], &all[1].message[..]), (bad, message));
        assert_eq!(all[1].leader, (version >= 10).then_some((2, 8)));
    }
}

/// Fails when a version is chosen that one side does not support, or the minimum of Produce is trusted (KAFKA-18659).
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
    let producer_ids = (0..=4).map(|v| (22, v, some_producer_id(v)));
    let sasl = (0..=2).map(|v| (36, v, some_authenticated(v))).chain([(17, 1, some_mechanisms())]);
    let configs = (1..=4).map(|v| (32, v, limits::some_answer(v)));
    produced.chain(metadata).chain(versions).chain(producer_ids).chain(sasl).chain(configs).collect()
}

fn read(api: u8, version: i16, bytes: &[u8]) -> bool {
    let read = match api {
        0 => produced(bytes, version, |_, _| Ok(())).map(drop),
        3 => metadata(bytes, version, &["t", "u"]).map(drop),
        17 => sasl::mechanisms(bytes).map(drop),
        18 => versions(bytes, version).map(drop),
        22 => producer_id(bytes, version).map(drop),
        32 => limits::value(bytes, version, limits::Setting::LargestBatch("t")).map(drop),
        36 => sasl::authenticated(bytes, version).map(drop),
        other => panic!("api {other}"),
    };
    read.is_ok()
}

/// Fails when a truncated answer is accepted as complete.
#[test]
fn half_an_answer_is_none() {
    for (api, version, bytes) in all_answers() {
        assert!(read(api, version, &bytes), "api {api} version {version}");
        // Nothing is read after the list of topics or APIs: throttle time, operations, tags.
        let unread = match (api, version) {
            (3, 1..=7) => 0,
            (3, 11..) => 1,
            (3, 9..) => 5,
            (3, _) => 4,
            (18, 3..) => 5,
            (22 | 36, 2..) | (32, 4..) => 1,
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
    /// Fails when a name, a number or a message is written differently than by `kafka-protocol`.
    #[test]
    fn requests_are_those_of_the_protocol(
        client in "\\PC{0,40}",
        topics in proptest::collection::btree_set("[a-zA-Z0-9._-]{1,249}", 0..12),
        partition: i32,
        sasl in proptest::collection::vec(any::<u8>(), 0..400),
        create: bool,
    ) {
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        all_requests(&client, &topics, partition, &sasl, create);
    }

    /// Fails (panics, or runs out of time or memory) when a length or count of a real answer is used unchecked.
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
