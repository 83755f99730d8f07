//! Scripted brokers for tests: real sockets, with answers written by `kafka-protocol`, so that our own readers are
//! checked independently. They answer requests for versions, metadata and producer ids from a shared [`World`]; every
//! other request goes to the test, which decides what happens.

use super::{KafkaOptions, start};
use crate::producer::batch::Batch;
use crate::producer::driver::{Capabilities, Event, Order, TopicView, Verdict};
use crate::producer::testing::{Ends, batch, chunk, origin};
use crate::record::Topic;
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
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// The state the scripted brokers report.
pub struct World {
    /// Node and port.
    pub nodes: BTreeMap<i32, u16>,
    /// Not in the metadata, like a proxy in front of the cluster.
    pub hidden: Option<i32>,
    /// In the metadata only.
    pub ghosts: Vec<std::net::SocketAddr>,
    /// Topic, partition → leader, epoch.
    pub leaders: BTreeMap<(String, i32), (i32, i32)>,
    pub produce: (i16, i16),
    /// ApiVersions is answered with 35 from this version on.
    pub versions_refused_from: i16,
    pub metadata_asked: usize,
    /// Error codes for InitProducerId before it succeeds.
    pub no_pid: VecDeque<i16>,
    /// Every answer is these bytes instead.
    pub noise: Option<Vec<u8>>,
    /// Nothing is answered at all.
    pub mute: bool,
}

/// Some brokers of one world, and the requests they received.
pub struct Peers {
    pub world: Arc<Mutex<World>>,
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
    pub api: i16,
    pub version: i16,
    pub correlation: i32,
    pub body: Bytes,
    stream: TcpStream,
}

impl Peers {
    /// Starts brokers 1..=n; partitions 0..n of topic `t` are led by broker partition + 1.
    pub fn start(n: i32) -> Self {
        let (asked_to, asked) = bounded(1000);
        let world = World {
            nodes: BTreeMap::new(),
            hidden: None,
            ghosts: Vec::new(),
            leaders: (0..n).map(|p| (("t".to_owned(), p), (p + 1, 0))).collect(),
            produce: (0, 11),
            versions_refused_from: i16::MAX,
            metadata_asked: 0,
            no_pid: VecDeque::new(),
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

    /// Restarts a killed broker on another port.
    pub fn move_away(&mut self, node: i32) {
        self.world().nodes.remove(&node);
        self.revive(node);
    }

    /// Restarts a broker on its previous port.
    pub fn revive(&mut self, node: i32) {
        let port = self.world().nodes.get(&node).copied().unwrap_or(0);
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        self.world().nodes.insert(node, listener.local_addr().unwrap().port());
        let connections: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let end: Arc<Mutex<bool>> = Arc::default();
        let (world, asked, open, over) =
            (self.world.clone(), self.asked_to.clone(), connections.clone(), end.clone());
        let acceptor = thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if *over.lock().unwrap() {
                    return;
                }
                open.lock().unwrap().push(stream.try_clone().unwrap());
                let (world, asked) = (world.clone(), asked.clone());
                thread::spawn(move || drop(converse(node, stream, &world, &asked)));
            }
        });
        self.available.insert(node, Living { connections, end, acceptor });
    }

    /// Like SIGKILL: closes connections and refuses the port.
    pub fn kill(&mut self, node: i32) {
        let Living { connections, end, acceptor } = self.available.remove(&node).unwrap();
        *end.lock().unwrap() = true;
        let port = self.world().nodes[&node];
        drop(TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), Duration::from_secs(1)));
        acceptor.join().unwrap();
        connections.lock().unwrap().iter().for_each(|c| drop(c.shutdown(Shutdown::Both)));
    }

    pub fn options(&self) -> KafkaOptions {
        KafkaOptions {
            brokers: self.world().nodes.values().map(|p| format!("127.0.0.1:{p}")).collect(),
            request_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(2),
            ..KafkaOptions::default()
        }
    }

    pub fn feed(&self) -> Feeder {
        Feeder::start(self.options(), "t")
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
        let request = Asked {
            node,
            api,
            version,
            correlation: header.correlation_id,
            body,
            stream: stream.try_clone()?,
        };
        let mut world = world.lock().unwrap();
        if world.mute {
            continue;
        }
        if let Some(noise) = &world.noise {
            stream.write_all(noise)?;
            continue;
        }
        match api {
            18 => world.versions(&request),
            3 => world.metadata(request),
            22 => world.producer_id(&request),
            _ => drop(asked.send(request)),
        }
    }
}

impl World {
    fn versions(&self, a: &Asked) {
        let old = a.version >= self.versions_refused_from;
        let version = if old { 0 } else { a.version };
        let api = |key, (min, max)| {
            ApiVersion::default().with_api_key(key).with_min_version(min).with_max_version(max)
        };
        let mut apis = vec![api(0, self.produce), api(3, (0, 12)), api(22, (0, 4)), api(61, (0, 0))];
        if old {
            apis = vec![];
        }
        let answer =
            ApiVersionsResponse::default().with_error_code(if old { 35 } else { 0 }).with_api_keys(apis);
        a.answer_as(&answer, version);
    }

    fn metadata(&mut self, mut a: Asked) {
        self.metadata_asked += 1;
        let asked = MetadataRequest::decode(&mut a.body, a.version).unwrap();
        let broker = |id: i32, host: String, port: u16| {
            MetadataResponseBroker::default()
                .with_node_id(BrokerId(id))
                .with_host(StrBytes::from_string(host))
                .with_port(i32::from(port))
        };
        let shown = self.nodes.iter().filter(|(id, _)| self.hidden != Some(**id));
        let shown = shown.map(|(id, port)| broker(*id, "127.0.0.1".into(), *port));
        let ghosts = self.ghosts.iter().zip(1000..).map(|(a, id)| broker(id, a.ip().to_string(), a.port()));
        let brokers = shown.chain(ghosts).collect();
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
            let partitions: Vec<_> = self.leaders.iter().filter_map(of).collect();
            MetadataResponseTopic::default()
                .with_error_code(if partitions.is_empty() { 3 } else { 0 })
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

/// A batch of one line for a partition of topic `t`, with this base sequence.
pub fn one(partition: i32, base: i32) -> Batch {
    let o = origin(1, "t", "/log", Default::default());
    let mut b = batch(1, vec![chunk(&o, 0, &[b"line"])]);
    b.partition = partition;
    b.numbers = Some(crate::producer::batch::Numbers { pid: 4711, epoch: 0, base });
    b
}

/// Stands in for the core: assigns sequence numbers, retries in order and keeps a few batches of each partition in
/// flight.
pub struct Feeder {
    pub ends: Ends,
    pub topic: Topic,
    pub capabilities: Option<Capabilities>,
    pub view: Option<TopicView>,
    pub pid: Option<(i64, i16)>,
}

impl Feeder {
    pub fn start(options: KafkaOptions, topic: &str) -> Self {
        let ends = start(options, Arc::default()).unwrap();
        let mut f = Feeder { ends, topic: topic.into(), capabilities: None, view: None, pid: None };
        f.ends.orders.send(Order::Topic(f.topic.clone())).unwrap();
        f.ends.orders.send(Order::ProducerId).unwrap();
        while f.view.as_ref().is_none_or(|v| v.available.is_empty()) || f.pid.is_none() {
            f.take();
        }
        f
    }

    /// The next completed batch; records all other events.
    pub fn take(&mut self) -> Option<(Batch, Verdict)> {
        match self
            .ends
            .events
            .recv_timeout(Duration::from_secs(60))
            .expect("the driver sent no event for a minute")
        {
            Event::Ready(a) => self.capabilities = Some(a),
            Event::Topic(v) => self.view = Some(v),
            Event::ProducerId { pid, epoch } => self.pid = Some((pid, epoch)),
            Event::Done { batch, verdict } => return Some((batch, verdict)),
            Event::Described { .. } | Event::OtherCluster => {}
            Event::Dead { why } => panic!("{why}"),
        }
        None
    }

    pub fn send(&self, batch: Batch) {
        self.ends.orders.send(Order::Send(vec![batch])).unwrap();
    }
}

impl Feeder {
    /// Subscribes to topic `t`, without a producer id.
    pub fn with(ends: Ends) -> Self {
        ends.orders.send(Order::Topic("t".into())).unwrap();
        Feeder { ends, topic: "t".into(), capabilities: None, view: None, pid: None }
    }

    /// The next returned batch: its partition, base sequence and verdict.
    pub fn done(&mut self) -> (i32, i32, Verdict) {
        loop {
            if let Some((batch, verdict)) = self.take() {
                return (batch.partition, batch.numbers.map_or(-1, |n| n.base), verdict);
            }
        }
    }

    /// Waits until exactly these partitions are available. Fails if batches are returned meanwhile.
    pub fn available(&mut self, want: &[i32]) {
        while self.view.as_ref().is_none_or(|v| v.available != want) {
            let done = self.take();
            assert!(done.is_none(), "{done:?}");
        }
    }

    pub fn nothing_within(&mut self, ms: u64) {
        while let Ok(event) = self.ends.events.recv_timeout(Duration::from_millis(ms)) {
            assert!(!matches!(event, Event::Done { .. }), "{event:?}");
        }
    }
}
