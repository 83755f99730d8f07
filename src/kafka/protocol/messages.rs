//! The Kafka requests a producer needs, and their responses ("answers" in this code).
//!
//! Written and parsed by hand: they are few, and most answer fields are not needed. Field order and versions:
//! `clients/src/main/resources/common/message/*.json` of apache/kafka. In the tests the crate `kafka-protocol` is the
//! other side.

use crate::kafka::protocol::wire::{ApiKey, Malformed, Read, Reader, Writer};
use std::fmt;

/// Version ranges we speak. Produce 13 names topics by id, which a re-created topic would break; Metadata 13 asks for
/// rebootstrap; InitProducerId 5 is for transactions.
const PRODUCE: (i16, i16) = (3, 12);
const METADATA: (i16, i16) = (1, 12);
const INIT_PRODUCER_ID: (i16, i16) = (0, 4);
const DESCRIBE_PRODUCERS: (i16, i16) = (0, 0);
/// Version 0 has a different layout, and was last needed by Kafka 1.1.
const DESCRIBE_CONFIGS: (i16, i16) = (1, 4);
/// Version 0 would be followed by unframed SASL bytes.
const SASL_HANDSHAKE: (i16, i16) = (1, 1);
const SASL_AUTHENTICATE: (i16, i16) = (0, 2);

/// The version of each request that both sides support, from the broker's ApiVersions; `None`: nothing in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Versions {
    pub produce: Option<i16>,
    pub metadata: Option<i16>,
    pub init_producer_id: Option<i16>,
    pub describe_producers: Option<i16>,
    pub describe_configs: Option<i16>,
    pub sasl_handshake: Option<i16>,
    pub sasl_authenticate: Option<i16>,
    /// The broker's lowest Fetch version: 0 means that it still accepts the `kafka` crate's requests.
    pub fetch_min: Option<i16>,
    /// The broker's lowest Produce version.
    pub produce_min: Option<i16>,
    /// The broker's highest Produce version, whether we support it or not.
    pub produce_max: i16,
}

impl Versions {
    /// Whether the `kafka` crate, which sends Produce v0, can be used. Decided by Fetch as well: Kafka 4 reports Produce
    /// 0 to 13 but closes the connection on v0 to v2 (KAFKA-18659), while its Fetch starts at 4.
    pub fn suits_classic(&self) -> bool {
        self.fetch_min == Some(0) && self.produce_min == Some(0)
    }

    /// Record batches came with Produce v3 (Kafka 0.11).
    pub fn suits_modern(&self) -> bool {
        self.produce.is_some()
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Produce up to {}, Fetch from {}", self.produce_max, self.fetch_min.unwrap_or(-1))
    }
}

/// Parses the answer to ApiVersions, version 3 (flexible) or 0. `Err(35)`: the broker wants an older version of the
/// request; it answers in version 0's format.
pub fn versions(body: &[u8], version: i16) -> Read<Result<Versions, i16>> {
    let error = Reader::new(body, false).i16("error")?;
    if error != 0 {
        return Ok(Err(error));
    }
    let mut r = Reader::new(&body[2..], ApiKey::ApiVersions.is_flexible(version));
    let mut found = Versions { produce_max: -1, ..Versions::default() };
    for _ in 0..r.count(6, "api count")? {
        let (key, low, high) = (r.i16("api key")?, r.i16("min version")?, r.i16("max version")?);
        r.skip_tags()?;
        let common = |(least, most): (i16, i16)| Some(high.min(most)).filter(|v| *v >= low.max(least));
        match key {
            0 => {
                (found.produce_min, found.produce_max) = (Some(low), high);
                found.produce = common(PRODUCE);
            }
            1 => found.fetch_min = Some(low),
            3 => found.metadata = common(METADATA),
            17 => found.sasl_handshake = common(SASL_HANDSHAKE),
            22 => found.init_producer_id = common(INIT_PRODUCER_ID),
            32 => found.describe_configs = common(DESCRIBE_CONFIGS),
            36 => found.sasl_authenticate = common(SASL_AUTHENTICATE),
            61 => found.describe_producers = common(DESCRIBE_PRODUCERS),
            _ => {}
        }
    }
    Ok(Ok(found))
}

/// Starts a request; the body follows, and [`Writer::into_frame`] completes it.
pub fn request(api: ApiKey, version: i16, correlation: i32, client: &str, body: usize) -> Writer {
    let mut to = Writer::with_room(32 + client.len() + body);
    to.begin(api, version, correlation, client);
    to
}

/// Version 3, and version 0 for a broker that answers 35.
pub fn ask_versions(version: i16, correlation: i32, client: &str) -> Vec<u8> {
    let mut to = request(ApiKey::ApiVersions, version, correlation, client, 64);
    if version >= 3 {
        to.string(env!("CARGO_PKG_NAME"));
        to.string(env!("CARGO_PKG_VERSION"));
    }
    to.tags();
    to.into_frame()
}

/// `create`: the broker may create missing topics (from version 4; before that, its own config decides).
pub fn ask_metadata(version: i16, correlation: i32, client: &str, topics: &[&str], create: bool) -> Vec<u8> {
    // Besides a topic's name: its id, its length, tags.
    let room = 32 + topics.iter().map(|t| t.len() + 24).sum::<usize>();
    let mut to = request(ApiKey::Metadata, version, correlation, client, room);
    to.count(topics.len());
    for topic in topics {
        if version >= 10 {
            to.put(&[0; 16]); // asked for by name
        }
        to.string(topic);
        to.tags();
    }
    if version >= 4 {
        to.bool(create);
    }
    if matches!(version, 8..=10) {
        to.bool(false); // what we may do in the cluster
    }
    if version >= 8 {
        to.bool(true); // what we may do with each topic
    }
    to.tags();
    to.into_frame()
}

pub fn ask_producer_id(version: i16, correlation: i32, client: &str) -> Vec<u8> {
    let mut to = request(ApiKey::InitProducerId, version, correlation, client, 32);
    to.null_string(); // no transactional id
    to.i32(i32::MAX); // the time limit of a transaction
    if version >= 3 {
        to.i64(-1); // we have no producer id yet
        to.i16(-1);
    }
    to.tags();
    to.into_frame()
}

pub fn ask_producers(correlation: i32, client: &str, topic: &str, partition: i32) -> Vec<u8> {
    let mut to = request(ApiKey::DescribeProducers, 0, correlation, client, 32 + topic.len());
    to.count(1);
    to.string(topic);
    to.count(1);
    to.i32(partition);
    to.tags();
    to.tags();
    to.into_frame()
}

/// Maximum length of a text from a broker, in characters.
const TEXT: usize = 250;

/// Text from a broker may end up in a log line: remove control characters and limit its length.
pub fn text(bytes: Option<&[u8]>) -> String {
    let bytes = bytes.unwrap_or_default();
    String::from_utf8_lossy(&bytes[..bytes.len().min(4 * TEXT)])
        .chars()
        .take(TEXT)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// A broker as named by the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub id: i32,
    /// In the format of a bootstrap entry: `host:port`, with an IPv6 address in brackets.
    pub address: String,
}

impl Node {
    pub fn new(id: i32, host: &str, port: u16) -> Node {
        let address = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        Node { id, address }
    }
}

fn node(r: &mut Reader<'_>) -> Read<Node> {
    let id = r.i32("node id")?;
    let host = text(r.string("host")?);
    let port = u16::try_from(r.i32("port")?).map_err(|_| Malformed("port"))?;
    Ok(Node::new(id, &host, port))
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    pub nodes: Vec<Node>,
    pub cluster: Option<String>,
    pub topics: Vec<TopicMeta>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicMeta {
    pub error: i16,
    pub name: String,
    /// All zeros below version 10.
    pub id: [u8; 16],
    pub partitions: Vec<PartitionMeta>,
    /// One bit per permitted `AclOperation`; `None`: the broker does not say (before 2.3).
    pub rights: Option<i32>,
}

/// Bits of [`TopicMeta::rights`].
pub const MAY_READ: i32 = 1 << 3;
pub const MAY_WRITE: i32 = 1 << 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionMeta {
    pub partition: i32,
    /// -1: none.
    pub leader: i32,
    /// -1: not known (before version 7).
    pub epoch: i32,
}

/// Maximum brokers in an answer: the largest known clusters have some hundreds.
const NODES: usize = 2000;

/// `asked`: the requested topics. Others are skipped, so that no answer can fill memory with topics we did not ask
/// for.
pub fn metadata(body: &[u8], version: i16, asked: &[&str]) -> Read<Metadata> {
    let mut r = Reader::new(body, ApiKey::Metadata.is_flexible(version));
    let mut found = Metadata::default();
    r.skip_tags()?; // of the answer's header
    if version >= 3 {
        r.i32("throttle")?;
    }
    let nodes = r.count(11, "broker count")?;
    if nodes > NODES {
        return Err(Malformed("broker count"));
    }
    for _ in 0..nodes {
        found.nodes.push(node(&mut r)?);
        r.string("rack")?;
        r.skip_tags()?;
    }
    if version >= 2 {
        found.cluster = r.string("cluster id")?.map(|id| text(Some(id)));
    }
    r.i32("controller")?;
    for _ in 0..r.count(8, "topic count")? {
        let topic = topic_meta(&mut r, version)?;
        if asked.contains(&topic.name.as_str()) && !found.topics.iter().any(|t| t.name == topic.name) {
            found.topics.push(topic);
        }
    }
    Ok(found)
}

fn topic_meta(r: &mut Reader<'_>, version: i16) -> Read<TopicMeta> {
    let error = r.i16("topic error")?;
    let name = text(r.string("topic name")?);
    let id = if version >= 10 { r.uuid("topic id")? } else { [0; 16] };
    r.i8("is internal")?;
    let mut partitions = Vec::new();
    for _ in 0..r.count(12, "partition count")? {
        r.i16("partition error")?; // 5: no leader; 9: a replica is missing, which does not matter here
        let partition = r.i32("partition")?;
        if partition < 0 {
            return Err(Malformed("partition"));
        }
        let leader = r.i32("leader")?;
        let epoch = if version >= 7 { r.i32("leader epoch")? } else { -1 };
        r.skip_i32s("replicas")?;
        r.skip_i32s("in sync")?;
        if version >= 5 {
            r.skip_i32s("offline")?;
        }
        r.skip_tags()?;
        partitions.push(PartitionMeta { partition, leader, epoch });
    }
    let rights = if version >= 8 { Some(r.i32("operations")?).filter(|r| *r != i32::MIN) } else { None };
    r.skip_tags()?;
    Ok(TopicMeta { error, name, id, partitions, rights })
}

/// Error code, producer id, epoch.
pub fn producer_id(body: &[u8], version: i16) -> Read<(i16, i64, i16)> {
    let mut r = Reader::new(body, ApiKey::InitProducerId.is_flexible(version));
    r.skip_tags()?;
    r.i32("throttle")?;
    let (error, pid, epoch) = (r.i16("error")?, r.i64("producer id")?, r.i16("producer epoch")?);
    // -1 would mean "without sequence numbers" to the broker.
    match error == 0 && (pid < 0 || epoch < 0) {
        true => Err(Malformed("producer id")),
        false => Ok((error, pid, epoch)),
    }
}

/// One partition's result in a produce answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Produced {
    pub partition: i32,
    pub error: i16,
    pub offset: i64,
    /// Indices of bad records in the batch (KIP-467).
    pub bad: Vec<u32>,
    pub message: String,
    /// Leader and its epoch, if the broker is no longer the leader (KIP-951).
    pub leader: Option<(i32, i32)>,
}

/// Maximum broker addresses taken from a produce answer: the new leaders of one request's partitions.
const ENDPOINTS: usize = 64;

/// Passes each partition of a produce answer to `each`, with its topic's name. Returns the throttle time in ms, and
/// the addresses of the leaders named in it (KIP-951).
pub fn produced(
    body: &[u8],
    version: i16,
    mut each: impl FnMut(&[u8], Produced) -> Read<()>,
) -> Read<(i32, Vec<Node>)> {
    let mut r = Reader::new(body, ApiKey::Produce.is_flexible(version));
    r.skip_tags()?;
    for _ in 0..r.count(2, "topic count")? {
        let topic = r.string("topic name")?.ok_or(Malformed("topic name"))?;
        for _ in 0..r.count(22, "partition count")? {
            each(topic, partition_produced(&mut r, version)?)?;
        }
        r.skip_tags()?;
    }
    let throttle = r.i32("throttle")?;
    let mut nodes = Vec::new();
    r.tags(|tag, mut r| {
        if tag == 0 {
            for _ in 0..r.count(11, "endpoint count")? {
                let node = node(&mut r)?;
                r.string("rack")?;
                r.skip_tags()?;
                if nodes.len() < ENDPOINTS {
                    nodes.push(node);
                }
            }
        }
        Ok(())
    })?;
    Ok((throttle, nodes))
}

fn partition_produced(r: &mut Reader<'_>, version: i16) -> Read<Produced> {
    let partition = r.i32("partition")?;
    let error = r.i16("error")?;
    let offset = r.i64("offset")?;
    let mut p = Produced { partition, error, offset, bad: Vec::new(), message: String::new(), leader: None };
    r.i64("append time")?;
    if version >= 5 {
        r.i64("log start")?;
    }
    if version >= 8 {
        for _ in 0..r.count(5, "record error count")? {
            p.bad.extend(u32::try_from(r.i32("record index")?).ok());
            let why = r.string("record error")?;
            if p.message.is_empty() {
                p.message = text(why);
            }
            r.skip_tags()?;
        }
        if let Some(why) = r.string("error message")? {
            p.message = text(Some(why));
        }
    }
    r.tags(|tag, mut r| {
        if tag == 0 {
            p.leader = Some((r.i32("leader")?, r.i32("leader epoch")?)).filter(|l| l.0 >= 0);
        }
        Ok(())
    })?;
    Ok(p)
}

#[cfg(test)]
#[path = "messages_tests.rs"]
mod tests;
