//! A scripted broker: answers like Kafka by default, and late, wrongly, partly or not at all when a test says so.
//! Records every request and every record it "stored". Several nodes share one state. No files, no groups, no fetch.
//!
//! ```ignore
//! let kafka = Scripted::start(1);
//! kafka.topic("t", &[0, 1, 2]);
//! kafka.script(|r| if r.api == Api::Produce && r.nth == 1 { Reply::Lost } else { Reply::Default });
//! ```

use super::{
    limit_the_suite, millis, pause,
    records::{self, Batch},
    wire::{Out, Reader},
};
use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Read, Write},
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

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(|e| e.into_inner())
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
        if down.load(Ordering::SeqCst) {
            listening = None;
        } else if listening.is_none() {
            listening = TcpListener::bind(address).ok();
        }
        let Some(listener) = &listening else {
            pause(millis(5));
            continue;
        };
        listener.set_nonblocking(true).unwrap();
        let Ok((stream, _)) = listener.accept() else {
            pause(millis(3));
            continue;
        };
        stream.set_nonblocking(false).unwrap();
        let _ = stream.set_nodelay(true);
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
        let mut size = [0; 4];
        stream.read_exact(&mut size)?;
        let mut frame = vec![0; (u32::from_be_bytes(size) as usize).min(200 << 20)];
        stream.read_exact(&mut frame)?;
        let Some(mut request) = parse(&frame, node, connection) else {
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
        if !answer(stream, &request, &reply, state)? {
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

/// Writes the answer; returns false if the connection must be closed.
fn answer(
    stream: &mut TcpStream,
    request: &Request,
    reply: &Reply,
    state: &Mutex<State>,
) -> io::Result<bool> {
    match reply {
        Reply::Close => return Ok(false),
        Reply::Mute => return Ok(true),
        Reply::Raw(bytes) => return stream.write_all(bytes).map(|()| true),
        Reply::Body(bytes) => return stream.write_all(&frame(request.correlation, bytes)).map(|()| true),
        _ => {}
    }
    let Some(body) = lock(state).respond(request, reply) else { return Ok(false) };
    let correlation = if let Reply::Correlation(off) = reply {
        request.correlation.wrapping_add(*off)
    } else {
        request.correlation
    };
    let frame = frame(correlation, &body);
    match reply {
        Reply::Lost => Ok(false),
        Reply::Swallow => Ok(true),
        Reply::Drip => {
            for byte in frame {
                stream.write_all(&[byte])?;
                pause(millis(1000));
            }
            Ok(true)
        }
        Reply::Half => stream.write_all(&frame[..frame.len() / 2]).map(|()| false),
        // acks=0: a broker answers nothing
        _ if request.api == Api::Produce && body.is_empty() => Ok(true),
        _ => stream.write_all(&frame).map(|()| true),
    }
}

fn frame(correlation: i32, body: &[u8]) -> Vec<u8> {
    let mut frame = ((body.len() + 4) as u32).to_be_bytes().to_vec();
    frame.extend(correlation.to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

impl State {
    /// The body of the answer, with the header's tags; `None` closes the connection, as Kafka does on a malformed
    /// request.
    fn respond(&mut self, request: &Request, reply: &Reply) -> Option<Vec<u8>> {
        let version = request.version;
        let allowed = self.versions.iter().find(|v| v.0 == request.api.key());
        let fits = allowed.is_some_and(|(_, low, high)| (*low..=*high).contains(&version));
        if request.api != Api::ApiVersions && !fits {
            return None;
        }
        let mut out = Out { flexible: request.api.flexible(version), ..Out::default() };
        if request.api != Api::ApiVersions {
            out.tags();
        }
        let done = match request.api {
            Api::ApiVersions => self.api_versions(version, reply, &mut out),
            Api::Metadata => self.metadata(request, reply, &mut out),
            Api::Produce => self.produce(request, reply, &mut out),
            Api::InitProducerId => self.init_producer_id(reply, &mut out),
            Api::DescribeProducers => self.describe_producers(request, reply, &mut out),
            Api::SaslHandshake => {
                out.i16(whole_code(reply));
                out.list(vec!["PLAIN"], |out, name| out.string(Some(name)));
                Some(())
            }
            Api::SaslAuthenticate => {
                out.i16(whole_code(reply));
                out.string(None);
                out.list(Vec::new(), Out::i8); // bytes
                if version >= 1 {
                    out.i64(0);
                }
                out.tags();
                Some(())
            }
            Api::Other(_) => None,
        };
        if done.is_none() {
            self.malformed.push(format!("{:?} v{version} of {} bytes", request.api, request.body.len()));
        }
        done.map(|()| out.bytes)
    }

    fn api_versions(&self, version: i16, reply: &Reply, out: &mut Out) -> Option<()> {
        let known = (0..=4).contains(&version);
        out.flexible = known && out.flexible;
        let code = if known { whole_code(reply) } else { 35 };
        out.i16(code);
        let all = self.versions.clone();
        let announced = if known { all } else { vec![(18, 0, 4)] };
        out.list(announced, |out, (key, low, high)| {
            out.i16(key);
            out.i16(low);
            out.i16(high);
            out.tags();
        });
        if known && version >= 1 {
            out.i32(throttle(reply));
        }
        out.tags();
        Some(())
    }

    fn metadata(&mut self, request: &Request, reply: &Reply, out: &mut Out) -> Option<()> {
        let v = request.version;
        let mut r = Reader { rest: &request.body, flexible: out.flexible };
        let asked = r.list(|r| {
            if v >= 10 {
                r.take(16)?;
            }
            let name = r.nullable_string()?;
            r.tags()?;
            Some(name.unwrap_or_default())
        })?;
        let may_create = v < 4 || r.i8()? != 0;
        let names = match asked {
            None => self.topics.keys().cloned().collect(),
            Some(names) if names.is_empty() && v == 0 => self.topics.keys().cloned().collect(),
            Some(names) => names,
        };
        if let (true, Some(partitions)) = (may_create, self.auto_create) {
            for name in &names {
                let nodes = self.nodes.len() as i32;
                self.topics
                    .entry(name.clone())
                    .or_insert_with(|| (0..partitions).map(|p| (p, p % nodes + 1)).collect());
            }
        }
        if v >= 3 {
            out.i32(throttle(reply));
        }
        let nodes: Vec<(i32, SocketAddr)> =
            self.nodes.iter().enumerate().map(|(at, a)| (at as i32 + 1, *a)).collect();
        out.list(nodes, |out, (id, address)| {
            out.i32(id);
            out.string(Some(&address.ip().to_string()));
            out.i32(i32::from(address.port()));
            if v >= 1 {
                out.string(None);
            }
            out.tags();
        });
        if v >= 2 {
            out.string(Some(&self.cluster));
        }
        if v >= 1 {
            out.i32(1);
        }
        out.list(names, |out, name| self.topic_metadata(v, &name, reply, out));
        if (8..=10).contains(&v) {
            out.i32(i32::MIN);
        }
        out.tags();
        Some(())
    }

    fn topic_metadata(&self, v: i16, name: &str, reply: &Reply, out: &mut Out) {
        let known = self.topics.get(name);
        let code = match whole_code(reply) {
            0 if known.is_none() => 3,
            code => code,
        };
        out.i16(code);
        out.string(Some(name));
        if v >= 10 {
            let mut id = [0; 16];
            for (at, byte) in name.bytes().enumerate() {
                id[at % 16] ^= byte.rotate_left(at as u32 / 16);
            }
            out.bytes.extend(id);
        }
        if v >= 1 {
            out.i8(0);
        }
        let partitions: Vec<(i32, i32)> =
            if code == 0 { known.into_iter().flatten().map(|(p, l)| (*p, *l)).collect() } else { Vec::new() };
        out.list(partitions, |out, (partition, leader)| {
            let code = match reply {
                Reply::Codes(codes) => codes.iter().find(|c| c.0 == partition).map_or(0, |c| c.1),
                _ => 0,
            };
            out.i16(if code == 0 && leader < 0 { 5 } else { code });
            out.i32(partition);
            out.i32(leader);
            if v >= 7 {
                out.i32(self.epoch);
            }
            let copies = if leader < 0 { vec![] } else { vec![leader] };
            out.list(copies.clone(), Out::i32);
            out.list(copies, Out::i32);
            if v >= 5 {
                out.list(Vec::new(), Out::i32);
            }
            out.tags();
        });
        if v >= 8 {
            out.i32(i32::MIN);
        }
        out.tags();
    }

    fn produce(&mut self, request: &Request, reply: &Reply, out: &mut Out) -> Option<()> {
        let v = request.version;
        if v < 3 && self.versions.iter().any(|(key, low, _)| *key == 1 && *low >= 4) {
            return None; // Kafka 4
        }
        let mut r = Reader { rest: &request.body, flexible: out.flexible };
        if v >= 3 {
            r.nullable_string()?;
        }
        let (acks, _timeout) = (r.i16()?, r.i32()?);
        let topics = r
            .list(|r| {
                let name = r.string()?;
                let partitions = r.list(|r| {
                    let partition = r.i32()?;
                    let bytes = r.bytes()??.to_vec();
                    r.tags()?;
                    Some((partition, bytes))
                })??;
                r.tags()?;
                Some((name, partitions))
            })?
            .unwrap_or_default();
        out.list(topics, |out, (topic, partitions)| {
            out.string(Some(&topic));
            out.list(partitions, |out, (partition, bytes)| {
                let (code, offset) = self.append(request, reply, acks, &topic, partition, &bytes);
                write_produced(v, partition, code, offset, reply, out);
            });
            out.tags();
        });
        if v >= 1 {
            out.i32(throttle(reply));
        }
        out.tags();
        if acks == 0 {
            out.bytes.clear();
        }
        Some(())
    }

    fn append(
        &mut self,
        request: &Request,
        reply: &Reply,
        acks: i16,
        topic: &str,
        partition: i32,
        bytes: &[u8],
    ) -> (i16, i64) {
        let batch = match records::decode(bytes) {
            Ok(batch) => batch,
            Err(why) => {
                self.malformed.push(format!("records for {topic}/{partition}: {why}"));
                return (2, -1);
            }
        };
        let mut code = match reply {
            Reply::Code(code) => *code,
            Reply::Codes(codes) => codes.iter().find(|c| c.0 == partition).map_or(0, |c| c.1),
            Reply::Refused { partition: refused, code, .. } if *refused == partition => *code,
            _ => 0,
        };
        if code == 0 {
            code = match self.topics.get(topic).and_then(|t| t.get(&partition)) {
                None => 3,
                Some(leader) if *leader != request.node => 6,
                Some(_) => 0,
            };
        }
        let known = self.produced.iter().find(|p| {
            let (a, b) = (&p.batch, &batch);
            p.code == 0
                && p.topic == topic
                && p.partition == partition
                && b.producer_id >= 0
                && (a.producer_id, a.epoch, a.base_sequence, a.records.len())
                    == (b.producer_id, b.epoch, b.base_sequence, b.records.len())
        });
        let (repeated, known_offset) = (known.is_some(), known.map(|p| p.base_offset));
        let mut base_offset = -1;
        if code == 0 {
            let end = self.ends.entry((topic.to_owned(), partition)).or_default();
            base_offset = known_offset.unwrap_or(*end);
            if !repeated {
                *end += batch.records.len() as i64;
            }
        }
        let Request { version, node, connection, nth, .. } = *request;
        let topic = topic.to_owned();
        self.produced.push(Produced {
            topic,
            partition,
            acks,
            version,
            node,
            connection,
            nth,
            batch,
            code,
            repeated,
            base_offset,
        });
        (code, base_offset)
    }

    fn init_producer_id(&mut self, reply: &Reply, out: &mut Out) -> Option<()> {
        let code = whole_code(reply);
        self.next_pid += 1;
        out.i32(throttle(reply));
        out.i16(code);
        out.i64(if code == 0 { self.next_pid } else { -1 });
        out.i16(if code == 0 { 0 } else { -1 });
        out.tags();
        Some(())
    }

    fn describe_producers(&self, request: &Request, reply: &Reply, out: &mut Out) -> Option<()> {
        let mut r = Reader { rest: &request.body, flexible: true };
        let asked = r
            .list(|r| {
                let topic = r.string()?;
                let partitions = r.list(Reader::i32)??;
                r.tags()?;
                Some((topic, partitions))
            })?
            .unwrap_or_default();
        out.i32(throttle(reply));
        out.list(asked, |out, (topic, partitions)| {
            out.string(Some(&topic));
            out.list(partitions, |out, partition| {
                out.i32(partition);
                out.i16(whole_code(reply));
                out.string(None);
                let mut last: BTreeMap<i64, &Produced> = BTreeMap::new();
                for p in self
                    .produced
                    .iter()
                    .filter(|p| p.topic == topic && p.partition == partition && p.code == 0)
                {
                    if p.batch.producer_id >= 0 && !p.repeated {
                        last.insert(p.batch.producer_id, p);
                    }
                }
                out.list(last, |out, (pid, p)| {
                    out.i64(pid);
                    out.i32(i32::from(p.batch.epoch));
                    out.i32(p.batch.base_sequence.wrapping_add(p.batch.records.len() as i32 - 1) & i32::MAX);
                    out.i64(p.batch.records.last().map_or(-1, |r| r.timestamp));
                    out.i32(-1);
                    out.i64(-1);
                    out.tags();
                });
                out.tags();
            });
            out.tags();
        });
        out.tags();
        Some(())
    }
}

fn write_produced(v: i16, partition: i32, code: i16, offset: i64, reply: &Reply, out: &mut Out) {
    out.i32(partition);
    out.i16(code);
    out.i64(offset);
    if v >= 2 {
        out.i64(-1);
    }
    if v >= 5 {
        out.i64(if code == 0 { 0 } else { -1 });
    }
    if v >= 8 {
        let blamed = match reply {
            Reply::Refused { partition: refused, records, .. } if *refused == partition => records.clone(),
            _ => Vec::new(),
        };
        out.list(blamed, |out, index| {
            out.i32(index);
            out.string(Some("refused by the script"));
            out.tags();
        });
        out.string(None);
    }
    out.tags();
}

fn whole_code(reply: &Reply) -> i16 {
    if let Reply::Code(code) = reply { *code } else { 0 }
}

fn throttle(reply: &Reply) -> i32 {
    if let Reply::Throttle(time) = reply { *time } else { 0 }
}

/// A port whose backlog is full: a connect to it hangs, as with a firewall that drops packets, until the returned
/// sockets are dropped.
pub fn full_backlog() -> (SocketAddr, Vec<TcpStream>, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, millis(300)) {
        held.push(stream);
        assert!(held.len() < 64, "the backlog of {address} does not fill");
    }
    (address, held, listener)
}
