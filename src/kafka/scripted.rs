//! The fake Kafka of the unit tests: brokers on real sockets, with answers written by `kafka-protocol`, so that our own
//! readers are checked independently. They answer requests for versions, metadata and producer ids from a shared
//! [`World`]. Other requests go to the test, or [`World::acts`] decides about them.

mod feeder;
mod produce_v0;

pub use feeder::{Feeder, one};
pub use produce_v0::{Act, Record};

use super::KafkaOptions;
use bytes::{Buf, Bytes, BytesMut};
use crossbeam_channel::{Receiver, Sender, bounded};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsResponse, BrokerId, InitProducerIdResponse, MetadataRequest, MetadataResponse,
    ProduceRequest, ProduceResponse, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};
use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// A request, with its lowest and highest version.
pub type Versions = (i16, i16, i16);

pub const KAFKA_3_9: [Versions; 5] = [(0, 0, 11), (1, 0, 17), (3, 0, 12), (22, 0, 5), (61, 0, 0)];
pub const KAFKA_4_1: [Versions; 5] = [(0, 0, 13), (1, 4, 18), (3, 0, 13), (22, 0, 6), (61, 0, 0)];
/// Before 0.11: no Metadata v4.
pub const KAFKA_0_10: [Versions; 3] = [(0, 0, 2), (1, 0, 3), (3, 0, 2)];

/// The state the scripted brokers report, and what they were asked.
pub struct World {
    host: IpAddr,
    /// Node and port.
    pub nodes: BTreeMap<i32, u16>,
    /// Not in the metadata, like a proxy in front of the cluster.
    pub hidden: Option<i32>,
    /// In the metadata only, with ids from [`FIRST_GHOST`].
    pub ghosts: Vec<SocketAddr>,
    /// Topic, partition → leader (-1: none), epoch.
    pub leaders: BTreeMap<(String, i32), (i32, i32)>,
    /// Error code of all topics in the metadata. `None`: 3 for one without partitions.
    pub topic_code: Option<i16>,
    /// `None`: closes the connection on ApiVersions.
    pub versions: Option<Vec<Versions>>,
    /// ApiVersions is answered with 35 from this version on.
    pub versions_refused_from: i16,
    pub metadata_asked: usize,
    /// Error codes for InitProducerId before it succeeds.
    pub no_pid: VecDeque<i16>,
    /// What to do with the nth Produce v0, from 0.
    pub acts: Box<dyn FnMut(usize) -> Act + Send>,
    /// The connection by which each Produce v0 came.
    pub produced: Vec<usize>,
    /// What [`Self::acts`] stored.
    pub stored: Vec<Record>,
    /// Every answer is these bytes instead.
    pub noise: Option<Vec<u8>>,
    /// Nothing is answered at all.
    pub mute: bool,
}

pub const FIRST_GHOST: i32 = 1000;

/// Some brokers of one world, and the requests they received.
pub struct Peers {
    world: Arc<Mutex<World>>,
    pub asked: Receiver<Asked>,
    asked_to: Sender<Asked>,
    available: BTreeMap<i32, Living>,
}

struct Living {
    connections: Arc<Mutex<Vec<TcpStream>>>,
    end: Arc<Mutex<bool>>,
    acceptor: thread::JoinHandle<()>,
}

/// A request waiting for the test's answer.
pub struct Asked {
    pub node: i32,
    /// Its number at this broker, from 1.
    connection: usize,
    pub api: i16,
    pub version: i16,
    pub correlation: i32,
    pub body: Bytes,
    stream: TcpStream,
}

impl Peers {
    /// Starts brokers 1..=n like Kafka 3.9; partitions 0..n of topic `t` are led by broker partition + 1.
    pub fn start(n: i32) -> Self {
        Peers::on("127.0.0.1", n)
    }

    pub fn on(host: &str, n: i32) -> Self {
        let (asked_to, asked) = bounded(1000);
        let world = World {
            host: host.parse().unwrap(),
            nodes: BTreeMap::new(),
            hidden: None,
            ghosts: Vec::new(),
            leaders: (0..n).map(|p| (("t".to_owned(), p), (p + 1, 0))).collect(),
            topic_code: None,
            versions: Some(KAFKA_3_9.to_vec()),
            versions_refused_from: i16::MAX,
            metadata_asked: 0,
            no_pid: VecDeque::new(),
            acts: Box::new(|_| Act::Store),
            produced: Vec::new(),
            stored: Vec::new(),
            noise: None,
            mute: false,
        };
        let world = Arc::new(Mutex::new(world));
        let mut peers = Peers { world, asked, asked_to, available: BTreeMap::new() };
        (1..=n).for_each(|node| peers.revive(node));
        peers
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub fn addr(&self, node: i32) -> SocketAddr {
        let world = self.world();
        (world.host, world.nodes[&node]).into()
    }

    /// The address of broker 1.
    pub fn host(&self) -> String {
        self.addr(1).to_string()
    }

    /// Topic `t` has exactly these partitions, all led by broker 1.
    pub fn leads(&self, partitions: &[i32]) {
        self.world().leaders = partitions.iter().map(|p| (("t".to_owned(), *p), (1, 0))).collect();
    }

    /// The acts for the first Produce requests; `Store` for all after.
    pub fn acts(&self, acts: &[Act]) {
        let acts = acts.to_vec();
        self.world().acts = Box::new(move |n| acts.get(n).cloned().unwrap_or(Act::Store));
    }

    /// The stored values.
    pub fn values(&self) -> Vec<Vec<u8>> {
        let value = |(_, value): &Record| value.clone().unwrap_or_else(|| b"<null>".to_vec());
        self.world().stored.iter().map(value).collect()
    }

    /// Restarts a killed broker on another port.
    pub fn move_away(&mut self, node: i32) {
        self.world().nodes.remove(&node);
        self.revive(node);
    }

    /// Restarts a broker on its previous port.
    pub fn revive(&mut self, node: i32) {
        let at = {
            let world = self.world();
            (world.host, world.nodes.get(&node).copied().unwrap_or(0))
        };
        let listener = TcpListener::bind(at).unwrap();
        self.world().nodes.insert(node, listener.local_addr().unwrap().port());
        let connections: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let end: Arc<Mutex<bool>> = Arc::default();
        let (world, asked, open, over) =
            (self.world.clone(), self.asked_to.clone(), connections.clone(), end.clone());
        let acceptor = thread::spawn(move || {
            for (connection, stream) in (1..).zip(listener.incoming().map_while(Result::ok)) {
                if *over.lock().unwrap() {
                    return;
                }
                open.lock().unwrap().push(stream.try_clone().unwrap());
                let (world, asked) = (world.clone(), asked.clone());
                thread::spawn(move || drop(converse(node, connection, stream, &world, &asked)));
            }
        });
        self.available.insert(node, Living { connections, end, acceptor });
    }

    /// Like SIGKILL: closes connections and refuses the port.
    pub fn kill(&mut self, node: i32) {
        let Living { connections, end, acceptor } = self.available.remove(&node).unwrap();
        *end.lock().unwrap() = true;
        drop(TcpStream::connect_timeout(&self.addr(node), Duration::from_secs(1)));
        acceptor.join().unwrap();
        connections.lock().unwrap().iter().for_each(|c| drop(c.shutdown(Shutdown::Both)));
    }

    pub fn options(&self) -> KafkaOptions {
        let nodes: Vec<i32> = self.world().nodes.keys().copied().collect();
        KafkaOptions {
            brokers: nodes.iter().map(|node| self.addr(*node).to_string()).collect(),
            request_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(2),
            ..KafkaOptions::default()
        }
    }

    pub fn feed(&self) -> Feeder {
        Feeder::start(self.options())
    }

    pub fn next(&self) -> Asked {
        self.asked.recv_timeout(Duration::from_secs(20)).expect("no request arrived")
    }

    pub fn nothing_within(&self, ms: u64) {
        let got = self.asked.recv_timeout(Duration::from_millis(ms));
        assert!(got.is_err(), "a request arrived: {:?}", got.map(|a| (a.api, a.correlation)));
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.available.keys().copied().collect::<Vec<_>>().into_iter().for_each(|n| self.kill(n));
    }
}

fn converse(
    node: i32,
    connection: usize,
    mut stream: TcpStream,
    world: &Mutex<World>,
    asked: &Sender<Asked>,
) -> std::io::Result<()> {
    loop {
        let mut len = [0; 4];
        stream.read_exact(&mut len)?;
        let mut frame = vec![0; u32::from_be_bytes(len) as usize];
        stream.read_exact(&mut frame)?;
        let mut body = Bytes::from(frame);
        let api = i16::from_be_bytes([body[0], body[1]]);
        let version = i16::from_be_bytes([body[2], body[3]]);
        let headed = ApiKey::try_from(api).unwrap().request_header_version(version);
        let header = RequestHeader::decode(&mut body, headed).unwrap();
        let correlation = header.correlation_id;
        let request =
            Asked { node, connection, api, version, correlation, body, stream: stream.try_clone()? };
        let mut now = world.lock().unwrap();
        if now.mute {
            continue;
        }
        if let Some(noise) = &now.noise {
            stream.write_all(noise)?;
            continue;
        }
        match (api, version) {
            (18, _) => now.versions(&request),
            (3, _) => now.metadata(request),
            (22, _) => now.producer_id(&request),
            (0, 0) => {
                let act = now.act(&request);
                drop(now);
                produce_v0::perform(&act, &request, world);
                if matches!(act, Act::Close | Act::StoreAndClose) {
                    return Ok(()); // what has arrived meanwhile could still be read
                }
                if matches!(act, Act::Close | Act::StoreAndClose) {
                    return Ok(()); // what has arrived meanwhile could still be read
                }
            }
            _ => drop(asked.send(request)),
        }
    }
}

impl World {
    /// Announces this highest version of Produce.
    pub fn produce_up_to(&mut self, version: i16) {
        self.versions.iter_mut().flatten().filter(|(api, ..)| *api == 0).for_each(|v| v.2 = version);
    }

    fn versions(&self, a: &Asked) {
        let Some(versions) = &self.versions else { return a.close() };
        let old = a.version >= self.versions_refused_from;
        let api = |(key, min, max): &Versions| {
            ApiVersion::default().with_api_key(*key).with_min_version(*min).with_max_version(*max)
        };
        let (version, code, versions) = if old { (0, 35, &[][..]) } else { (a.version, 0, &versions[..]) };
        let apis = versions.iter().map(api).collect();
        a.answer_as(&ApiVersionsResponse::default().with_error_code(code).with_api_keys(apis), version);
    }

    fn act(&mut self, a: &Asked) -> Act {
        self.produced.push(a.connection);
        (self.acts)(self.produced.len() - 1)
    }

    fn metadata(&mut self, mut a: Asked) {
        self.metadata_asked += 1;
        let asked = MetadataRequest::decode(&mut a.body, a.version).unwrap();
        let broker = |(id, addr): (i32, SocketAddr)| {
            MetadataResponseBroker::default()
                .with_node_id(BrokerId(id))
                .with_host(StrBytes::from_string(addr.ip().to_string()))
                .with_port(i32::from(addr.port()))
        };
        let shown = self.nodes.iter().filter(|(id, _)| self.hidden != Some(**id));
        let shown = shown.map(|(id, port)| (*id, (self.host, *port).into()));
        let brokers = shown.chain((FIRST_GHOST..).zip(self.ghosts.iter().copied())).map(broker).collect();
        let topic = |name: TopicName| {
            let of = |((t, p), (node, epoch)): (&(String, i32), &(i32, i32))| {
                (t.as_str() == name.as_str()).then(|| {
                    MetadataResponsePartition::default()
                        .with_partition_index(*p)
                        .with_leader_id(BrokerId(*node))
                        .with_leader_epoch(*epoch)
                        .with_replica_nodes(vec![BrokerId(1), BrokerId(2)])
                })
            };
            // In no useful order, as from Kafka.
            let partitions: Vec<_> = self.leaders.iter().rev().filter_map(of).collect();
            MetadataResponseTopic::default()
                .with_error_code(self.topic_code.unwrap_or(if partitions.is_empty() { 3 } else { 0 }))
                .with_name(Some(name))
                .with_partitions(partitions)
        };
        let topics = asked.topics.unwrap().into_iter().map(|t| topic(t.name.unwrap())).collect();
        let answer = MetadataResponse::default()
            .with_brokers(brokers)
            .with_cluster_id(Some(StrBytes::from_static_str("scripted")))
            .with_topics(topics);
        a.answer(&answer);
    }

    fn producer_id(&mut self, a: &Asked) {
        let error = self.no_pid.pop_front().unwrap_or(0);
        let answer = InitProducerIdResponse::default().with_error_code(error).with_producer_id(4711.into());
        a.answer(&answer.with_producer_epoch(0));
    }
}

/// One partition's part of a produce answer.
pub fn part(partition: i32, error: i16, offset: i64) -> PartitionProduceResponse {
    PartitionProduceResponse::default().with_index(partition).with_error_code(error).with_base_offset(offset)
}

pub fn produced(parts: Vec<PartitionProduceResponse>) -> ProduceResponse {
    let name = TopicName(StrBytes::from_static_str("t"));
    let topic = TopicProduceResponse::default().with_name(name).with_partition_responses(parts);
    ProduceResponse::default().with_responses(vec![topic])
}

impl Asked {
    pub fn frame<M: Encodable + HeaderVersion>(
        &self,
        correlation: i32,
        message: &M,
        version: i16,
    ) -> Vec<u8> {
        let mut to = BytesMut::from(&[0u8; 4][..]);
        let headed = if self.api == 18 { 0 } else { M::header_version(version) };
        ResponseHeader::default().with_correlation_id(correlation).encode(&mut to, headed).unwrap();
        message.encode(&mut to, version).unwrap();
        let len = to.len() as u32 - 4;
        to[..4].copy_from_slice(&len.to_be_bytes());
        to.to_vec()
    }

    fn answer_as<M: Encodable + HeaderVersion>(&self, message: &M, version: i16) {
        self.write(&self.frame(self.correlation, message, version));
    }

    pub fn answer<M: Encodable + HeaderVersion>(&self, message: &M) {
        self.answer_as(message, self.version);
    }

    /// Answers all partitions of the request with the same code.
    pub fn answer_all(&self, error: i16) {
        let parts =
            self.produce().iter().map(|(p, _)| part(*p, error, if error == 0 { 100 } else { -1 })).collect();
        self.answer(&produced(parts));
    }

    pub fn write(&self, bytes: &[u8]) {
        let _ = (&self.stream).write_all(bytes);
    }

    pub fn close(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Partitions and base sequences of a produce request.
    pub fn produce(&self) -> Vec<(i32, i32)> {
        assert_eq!(self.api, 0);
        let request = ProduceRequest::decode(&mut self.body.clone(), self.version).unwrap();
        let parts = request.topic_data.into_iter().flat_map(|t| t.partition_data);
        parts
            .map(|p| {
                let mut records = p.records.unwrap();
                records.advance(53);
                (p.index, records.get_i32())
            })
            .collect()
    }
}
