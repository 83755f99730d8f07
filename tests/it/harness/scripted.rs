//! A scripted broker: answers like Kafka by default, and late, wrongly, partly or not at all when a test says so.
//! Records every request and every record it "stored". Several nodes share one state. No files, no groups, no fetch.
//!
//! ```ignore
//! let kafka = Scripted::start(1);
//! kafka.topic("t", &[0, 1, 2]);
//! kafka.script(|r| if r.api == Api::Produce && r.nth == 1 { Reply::Lost } else { Reply::Default });
//! ```

mod answers;

use super::{
    accept_while, limit_the_suite, lock, millis, pause,
    records::Batch,
    wire::{Reader, read_frame},
};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::enum_variant_names, reason = "Kafka's names")]
pub enum Api {
    Produce,
    Metadata,
    SaslHandshake,
    ApiVersions,
    InitProducerId,
    SaslAuthenticate,
    DescribeProducers,
    Other(i16),
}

impl Api {
    fn of(key: i16) -> Api {
        match key {
            0 => Api::Produce,
            3 => Api::Metadata,
            17 => Api::SaslHandshake,
            36 => Api::SaslAuthenticate,
            18 => Api::ApiVersions,
            22 => Api::InitProducerId,
            61 => Api::DescribeProducers,
            key => Api::Other(key),
        }
    }
    pub fn key(self) -> i16 {
        match self {
            Api::Produce => 0,
            Api::Metadata => 3,
            Api::SaslHandshake => 17,
            Api::SaslAuthenticate => 36,
            Api::ApiVersions => 18,
            Api::InitProducerId => 22,
            Api::DescribeProducers => 61,
            Api::Other(key) => key,
        }
    }
    fn flexible(self, version: i16) -> bool {
        match self {
            Api::Produce | Api::Metadata => version >= 9,
            Api::ApiVersions => version >= 3,
            Api::InitProducerId | Api::SaslAuthenticate => version >= 2,
            Api::DescribeProducers => true,
            Api::SaslHandshake | Api::Other(_) => false,
        }
    }
}

/// One request as received.
#[derive(Clone, Debug)]
pub struct Request {
    pub api: Api,
    pub version: i16,
    pub correlation: i32,
    pub client_id: Option<String>,
    /// The bytes after the header.
    pub body: Vec<u8>,
    /// The node that received it (from 1), and the number of the connection (from 1).
    pub node: i32,
    pub connection: usize,
    /// Its ordinal among requests of its kind (from 1), over all nodes and connections.
    pub nth: usize,
    pub at: Instant,
}

/// What to do with a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Answers as Kafka does.
    Default,
    /// The default answer after this delay; the connection waits, as with Kafka.
    Late(Duration),
    /// The default answer with its correlation id off by this much.
    Correlation(i32),
    /// Stores nothing and closes the connection.
    Close,
    /// Stores, then closes the connection without an answer.
    Lost,
    /// Stores nothing and does not answer; the connection stays open.
    Mute,
    /// Stores and never answers; the connection stays open.
    Swallow,
    /// These raw bytes instead of a frame; the connection stays open.
    Raw(Vec<u8>),
    /// Half of the frame, then closes the connection.
    Half,
    /// The default answer, one byte a second.
    Drip,
    /// The right correlation id, followed by these bytes.
    Body(Vec<u8>),
    /// Produce: this error for these partitions, which do not store; Metadata: for partitions with these ids.
    Codes(Vec<(i32, i16)>),
    /// This error for everything in the request: partitions, topics, or the answer as a whole. Stores nothing.
    Code(i16),
    /// Produce: one partition is refused, with the offending records by index in the batch (v8 and later).
    Refused { partition: i32, code: i16, records: Vec<i32> },
    /// The default answer with `throttle_time_ms`.
    Throttle(i32),
}

/// One partition of one Produce request.
#[derive(Clone, Debug)]
pub struct Produced {
    pub topic: String,
    pub partition: i32,
    pub acks: i16,
    pub version: i16,
    pub node: i32,
    pub connection: usize,
    pub nth: usize,
    pub batch: Batch,
    /// The error code of the answer, or the one it would have had.
    pub code: i16,
    /// The sequence was already known: not stored again.
    pub repeated: bool,
    pub base_offset: i64,
}

type Script = dyn Fn(&Request) -> Reply + Send + Sync;

struct State {
    script: Arc<Script>,
    nodes: Vec<SocketAddr>,
    topics: BTreeMap<String, BTreeMap<i32, i32>>,
    auto_create: Option<i32>,
    epoch: i32,
    cluster: String,
    versions: Vec<(i16, i16, i16)>,
    requests: Vec<Request>,
    produced: Vec<Produced>,
    malformed: Vec<String>,
    ends: HashMap<(String, i32), i64>,
    counts: HashMap<Api, usize>,
    connections: Vec<(i32, TcpStream)>,
    opened: usize,
    next_pid: i64,
}

/// Runs until dropped.
pub struct Scripted {
    state: Arc<Mutex<State>>,
    down: Vec<Arc<AtomicBool>>,
    end: Arc<AtomicBool>,
}

impl Scripted {
    /// Starts this many nodes with the ids 1…, which look like Kafka 3.9.
    pub fn start(nodes: i32) -> Scripted {
        Scripted::start_at(&vec![[127, 0, 0, 1].into(); nodes as usize])
    }
    /// Like [`Scripted::start`], with a node at each of these local addresses.
    pub fn start_at(addresses: &[std::net::IpAddr]) -> Scripted {
        limit_the_suite();
        let listeners: Vec<TcpListener> =
            addresses.iter().map(|address| TcpListener::bind((*address, 0)).unwrap()).collect();
        let state = State {
            script: Arc::new(|_: &Request| Reply::Default),
            nodes: listeners.iter().map(|l| l.local_addr().unwrap()).collect(),
            topics: BTreeMap::new(),
            auto_create: None,
            epoch: 1,
            cluster: "scripted".into(),
            versions: vec![
                (0, 0, 11),
                (1, 0, 17),
                (3, 0, 12),
                (17, 0, 1),
                (18, 0, 4),
                (22, 0, 5),
                (36, 0, 2),
                (61, 0, 0),
            ],
            requests: Vec::new(),
            produced: Vec::new(),
            malformed: Vec::new(),
            ends: HashMap::new(),
            counts: HashMap::new(),
            connections: Vec::new(),
            opened: 0,
            next_pid: 4000,
        };
        let mut broker = Scripted {
            state: Arc::new(Mutex::new(state)),
            down: Vec::new(),
            end: Arc::new(AtomicBool::new(false)),
        };
        for (at, listener) in listeners.into_iter().enumerate() {
            let down = Arc::new(AtomicBool::new(false));
            broker.down.push(down.clone());
            let (state, end) = (broker.state.clone(), broker.end.clone());
            thread::spawn(move || accept(listener, at as i32 + 1, &state, &down, &end));
        }
        broker
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
    /// Bootstrap list of all nodes.
    pub fn address(&self) -> String {
        self.lock().nodes.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",")
    }
    pub fn node_address(&self, node: i32) -> SocketAddr {
        self.lock().nodes[node as usize - 1]
    }
    /// A topic with these partition ids (gaps are allowed), led by the nodes in turn.
    pub fn topic(&self, name: &str, partitions: &[i32]) {
        let mut state = self.lock();
        let nodes = state.nodes.len();
        let led = partitions.iter().enumerate().map(|(at, p)| (*p, (at % nodes) as i32 + 1)).collect();
        state.topics.insert(name.into(), led);
    }
    pub fn remove_topic(&self, name: &str) {
        self.lock().topics.remove(name);
    }
    /// Adds this many brokers to its metadata that do not exist.
    pub fn invent(&self, nodes: u16) {
        self.also((0..nodes).map(|n| SocketAddr::from(([127, 1, (n >> 8) as u8, n as u8], 9))));
    }
    /// Adds brokers at these addresses to its metadata.
    pub fn also(&self, nodes: impl IntoIterator<Item = SocketAddr>) {
        self.lock().nodes.extend(nodes);
    }
    /// Sets the cluster id in its metadata, "scripted" by default.
    pub fn cluster(&self, id: &str) {
        self.lock().cluster = id.into();
    }
    /// Sets the leader epoch of all partitions in its metadata, 1 by default.
    pub fn epoch(&self, epoch: i32) {
        self.lock().epoch = epoch;
    }
    /// Metadata requests for an unknown topic create it with this many partitions.
    pub fn auto_create(&self, partitions: i32) {
        self.lock().auto_create = Some(partitions);
    }
    /// Sets the leader of a partition; -1 is no leader.
    pub fn lead(&self, topic: &str, partition: i32, node: i32) {
        self.lock().topics.get_mut(topic).unwrap().insert(partition, node);
    }
    /// Behaves like Kafka 4.x: announces Produce 0 to 12, and closes the connection on 0 to 2.
    pub fn as_kafka_4(&self) {
        self.versions(&[(0, 0, 12), (1, 4, 17), (3, 0, 12), (18, 0, 4), (22, 0, 5), (61, 0, 0)]);
    }
    /// Sets the answer to ApiVersions: key, lowest, highest.
    pub fn versions(&self, versions: &[(i16, i16, i16)]) {
        self.lock().versions = versions.to_vec();
    }
    /// Called for every request from now on.
    pub fn script(&self, script: impl Fn(&Request) -> Reply + Send + Sync + 'static) {
        self.lock().script = Arc::new(script);
    }

    pub fn requests(&self) -> Vec<Request> {
        self.lock().requests.clone()
    }
    pub fn count(&self, api: Api) -> usize {
        self.lock().counts.get(&api).copied().unwrap_or(0)
    }
    /// Connections accepted so far.
    pub fn opened(&self) -> usize {
        self.lock().opened
    }
    /// Every batch received, including refused and repeated ones.
    pub fn produced(&self) -> Vec<Produced> {
        self.lock().produced.clone()
    }
    /// The values that a consumer of the topic would see.
    pub fn stored(&self, topic: &str) -> Vec<Vec<u8>> {
        let state = self.lock();
        let taken = state.produced.iter().filter(|p| p.topic == topic && p.code == 0 && !p.repeated);
        taken
            .flat_map(|p| &p.batch.records)
            .map(|r| r.value.clone().unwrap_or_else(|| b"<null>".to_vec()))
            .collect()
    }
    /// Fails with the first malformed request.
    #[track_caller]
    pub fn assert_well_formed(&self) {
        let state = self.lock();
        assert!(state.malformed.is_empty(), "{:?}", state.malformed);
    }

    pub fn drop_connections(&self) {
        for (_, stream) in self.lock().connections.drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
    /// One node with the topic `t`, unreachable until [`Scripted::up`].
    pub fn away() -> Scripted {
        let kafka = Scripted::start(1);
        kafka.topic("t", &[0]);
        kafka.down(1);
        kafka
    }
    /// Closes the node's port and connections until [`Scripted::up`].
    pub fn down(&self, node: i32) {
        self.down[node as usize - 1].store(true, Ordering::SeqCst);
        self.lock().connections.retain(|(of, stream)| {
            if *of == node {
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
            *of != node
        });
        let address = self.node_address(node);
        super::wait_until(super::SOON, "the scripted broker is down", || {
            TcpStream::connect_timeout(&address, millis(200)).is_err()
        });
    }
    pub fn up(&self, node: i32) {
        self.down[node as usize - 1].store(false, Ordering::SeqCst);
        let address = self.node_address(node);
        super::wait_until(super::SOON, "the scripted broker is up", || {
            TcpStream::connect_timeout(&address, millis(200)).is_ok()
        });
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        self.drop_connections();
    }
}

fn accept(
    listener: TcpListener,
    node: i32,
    state: &Arc<Mutex<State>>,
    down: &AtomicBool,
    end: &Arc<AtomicBool>,
) {
    let address = listener.local_addr().unwrap();
    let mut listening = Some(listener);
    while !end.load(Ordering::SeqCst) {
        let up = || !down.load(Ordering::SeqCst) && !end.load(Ordering::SeqCst);
        if let Some(listener) = listening.take() {
            accept_while(&listener, up, |stream| {
                let connection = {
                    let mut state = lock(state);
                    state.opened += 1;
                    state.connections.push((node, stream.try_clone().unwrap()));
                    state.opened
                };
                let (state, end) = (state.clone(), end.clone());
                thread::spawn(move || {
                    let mut stream = stream;
                    let _ = serve(&mut stream, node, connection, &state, &end);
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                });
            });
        } else {
            pause(millis(5));
        }
        if up() {
            listening = TcpListener::bind(address).ok();
        }
    }
}

fn serve(
    stream: &mut TcpStream,
    node: i32,
    connection: usize,
    state: &Mutex<State>,
    end: &AtomicBool,
) -> io::Result<()> {
    loop {
        let frame = read_frame(stream)?;
        let Some(mut request) = parse(&frame[4..], node, connection) else {
            lock(state).malformed.push(format!("a request header of {} bytes", frame.len()));
            return Ok(());
        };
        let script = {
            let mut state = lock(state);
            let count = state.counts.entry(request.api).or_default();
            *count += 1;
            request.nth = *count;
            state.requests.push(request.clone());
            state.script.clone()
        };
        let reply = script(&request);
        if let Reply::Late(time) = &reply {
            let due = Instant::now() + *time;
            while Instant::now() < due && !end.load(Ordering::SeqCst) {
                pause(millis(5));
            }
        }
        if !answers::answer(stream, &request, &reply, state)? {
            return Ok(());
        }
    }
}

fn parse(frame: &[u8], node: i32, connection: usize) -> Option<Request> {
    let mut r = Reader::new(frame);
    let (api, version, correlation) = (Api::of(r.i16()?), r.i16()?, r.i32()?);
    let client_id = r.nullable_string()?;
    r.flexible = api.flexible(version);
    r.tags()?;
    let body = r.rest.to_vec();
    Some(Request { api, version, correlation, client_id, body, node, connection, nth: 0, at: Instant::now() })
}
