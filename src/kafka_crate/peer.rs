//! A scripted peer for the tests of driver and probe: speaks as much of Kafka's old protocol as they need, and
//! misbehaves on request. It records what it was sent, and answers in one thread per connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What to do with a Produce request.
#[derive(Clone, Debug)]
pub enum Act {
    Store,
    /// Answer with this error code; store nothing.
    Code(i16),
    Close,
    Mute,
    /// Send these bytes instead of an answer.
    Raw(Vec<u8>),
    /// Store and answer after this delay.
    Late(Duration),
    /// Store and answer, then answer again with another request's correlation id.
    Twice,
    /// Store, answer, then close.
    StoreAndClose,
}

pub type Record = (Option<Vec<u8>>, Option<Vec<u8>>);

/// The peer's current behavior; a test may change it at any time.
pub struct Script {
    /// `None`: closes the connection on ApiVersions.
    pub ranges: Option<Vec<(i16, i16, i16)>>,
    /// Partition ids, each with its leader's port; all on `host`.
    pub partitions: Vec<(i32, u16)>,
    pub host: String,
    /// Error code of the topic in Metadata v4.
    pub topic_code: i16,
    pub produce: Box<dyn FnMut(usize) -> Act + Send>,
    pub stored: Vec<Record>,
    /// Produce requests so far, with the connection each came by.
    pub produced: Vec<usize>,
    /// Metadata requests so far.
    pub asked: usize,
    pub connections: usize,
}

pub const KAFKA_3_9: [(i16, i16, i16); 4] = [(0, 0, 11), (1, 0, 17), (3, 0, 12), (22, 0, 5)];
pub const KAFKA_4_1: [(i16, i16, i16); 4] = [(0, 0, 13), (1, 4, 18), (3, 0, 13), (22, 0, 6)];
/// Before 0.11: no Metadata v4.
pub const KAFKA_0_10: [(i16, i16, i16); 3] = [(0, 0, 2), (1, 0, 3), (3, 0, 2)];

#[derive(Clone)]
pub struct Peer {
    pub addr: SocketAddr,
    pub script: Arc<Mutex<Script>>,
}

impl Peer {
    pub fn start() -> Peer {
        Peer::on("127.0.0.1")
    }

    pub fn on(ip: &str) -> Peer {
        let ip: std::net::IpAddr = ip.parse().unwrap();
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(Script {
            ranges: Some(KAFKA_3_9.to_vec()),
            partitions: vec![(0, addr.port())],
            host: ip.to_string(),
            topic_code: 0,
            produce: Box::new(|_| Act::Store),
            stored: vec![],
            produced: vec![],
            asked: 0,
            connections: 0,
        }));
        let peer = Peer { addr, script };
        let serving = peer.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let peer = serving.clone();
                thread::spawn(move || peer.serve(stream.unwrap()));
            }
        });
        peer
    }

    pub fn host(&self) -> String {
        self.addr.to_string()
    }

    pub fn set(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }

    /// The acts for the first Produce requests; `Store` for all after.
    pub fn acts(&self, acts: &[Act]) {
        let acts = acts.to_vec();
        self.set(|s| s.produce = Box::new(move |n| acts.get(n).cloned().unwrap_or(Act::Store)));
    }

    pub fn values(&self) -> Vec<Vec<u8>> {
        let script = self.script.lock().unwrap();
        script.stored.iter().map(|(_, v)| v.clone().unwrap_or_else(|| b"<null>".to_vec())).collect()
    }

    fn serve(&self, mut stream: TcpStream) {
        let number = {
            let mut s = self.script.lock().unwrap();
            s.connections += 1;
            s.connections
        };
        while let Some(request) = read_frame(&mut stream) {
            let api = i16::from_be_bytes([request[0], request[1]]);
            let version = i16::from_be_bytes([request[2], request[3]]);
            let correlation = request[4..8].to_vec();
            let client = i16::from_be_bytes([request[8], request[9]]).max(0) as usize;
            let body = &request[10 + client..];
            let keep_open = match (api, version) {
                (18, 0) => self.api_versions(&mut stream, &correlation),
                (3, 0 | 4) => self.metadata(&mut stream, &correlation, version),
                (0, 0) => self.produce(&mut stream, &correlation, body, number),
                other => panic!("unexpected request {other:?}"),
            };
            if !keep_open {
                return;
            }
        }
    }

    fn api_versions(&self, stream: &mut TcpStream, correlation: &[u8]) -> bool {
        let Some(ranges) = self.script.lock().unwrap().ranges.clone() else { return false };
        let mut answer = correlation.to_vec();
        answer.extend(0i16.to_be_bytes());
        answer.extend((ranges.len() as i32).to_be_bytes());
        for (key, min, max) in ranges {
            answer.extend([key, min, max].iter().flat_map(|n| n.to_be_bytes()));
        }
        write_frame(stream, &answer)
    }

    fn metadata(&self, stream: &mut TcpStream, correlation: &[u8], version: i16) -> bool {
        let new = version >= 4;
        let mut s = self.script.lock().unwrap();
        s.asked += 1;
        let mut a = correlation.to_vec();
        if new {
            a.extend(0i32.to_be_bytes());
        }
        let mut ports: Vec<u16> = s.partitions.iter().map(|p| p.1).collect();
        ports.dedup();
        a.extend((ports.len() as i32).to_be_bytes());
        for port in &ports {
            a.extend(i32::from(*port).to_be_bytes());
            string(&mut a, &s.host);
            a.extend(i32::from(*port).to_be_bytes());
            if new {
                a.extend((-1i16).to_be_bytes());
            }
        }
        if new {
            string(&mut a, "cluster");
            a.extend(1i32.to_be_bytes());
        }
        a.extend(1i32.to_be_bytes());
        a.extend(s.topic_code.to_be_bytes());
        string(&mut a, "t");
        if new {
            a.push(0);
        }
        a.extend((s.partitions.len() as i32).to_be_bytes());
        for (id, port) in &s.partitions {
            a.extend(0i16.to_be_bytes());
            a.extend(id.to_be_bytes());
            let leader = if *port == 0 { -1 } else { i32::from(*port) };
            a.extend(leader.to_be_bytes());
            a.extend([0u8; 8]); // no replicas, none in sync
        }
        drop(s);
        write_frame(stream, &a)
    }

    fn produce(&self, stream: &mut TcpStream, correlation: &[u8], body: &[u8], number: usize) -> bool {
        let mut s = self.script.lock().unwrap();
        let n = s.produced.len();
        s.produced.push(number);
        let act = (s.produce)(n);
        let acks = i16::from_be_bytes([body[0], body[1]]);
        let topic = u16::from_be_bytes([body[10], body[11]]) as usize;
        let at = 12 + topic + 4;
        let partition = &body[at..at + 4];
        let offset = s.stored.len() as i64 + 100;
        if matches!(act, Act::Store | Act::Late(_) | Act::Twice | Act::StoreAndClose) {
            s.stored.extend(records(&body[at + 8..]));
        }
        drop(s);
        if let Act::Late(time) = act {
            thread::park_timeout(time);
        }
        let answer = |correlation: &[u8], code: i16| {
            let mut a = correlation.to_vec();
            a.extend(1i32.to_be_bytes());
            string(&mut a, "t");
            a.extend(1i32.to_be_bytes());
            a.extend(partition);
            a.extend(code.to_be_bytes());
            a.extend(offset.to_be_bytes());
            a
        };
        match act {
            Act::Close => false,
            Act::Mute => true,
            Act::Raw(bytes) => stream.write_all(&bytes).is_ok(),
            Act::StoreAndClose if acks == 0 => false,
            _ if acks == 0 => true,
            Act::Code(code) => write_frame(stream, &answer(correlation, code)),
            Act::Twice => {
                write_frame(stream, &answer(correlation, 0)) && write_frame(stream, &answer(&[9, 9, 9, 9], 0))
            }
            Act::StoreAndClose => {
                write_frame(stream, &answer(correlation, 0));
                false
            }
            Act::Store | Act::Late(_) => write_frame(stream, &answer(correlation, 0)),
        }
    }
}

/// Listens, answers every connection with these bytes after the first input, and keeps it open.
pub fn parrot(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut kept = vec![];
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 512]);
            stream.write_all(answer).unwrap();
            kept.push(stream);
        }
    });
    addr
}

/// Listens with a full queue: a connection request gets no answer at all, as from a black hole.
pub struct Hole {
    pub addr: SocketAddr,
    _listener: std::os::fd::OwnedFd,
    _queued: Vec<TcpStream>,
}

pub fn hole() -> Hole {
    hole_on("127.0.0.1:0")
}

pub fn hole_on(address: &str) -> Hole {
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
    let listener = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&listener, &address.parse::<SocketAddr>().unwrap()).unwrap();
    listen(&listener, 0).unwrap();
    let addr = SocketAddr::try_from(getsockname(&listener).unwrap()).unwrap();
    let brief = Duration::from_millis(200);
    let queued = std::iter::from_fn(|| TcpStream::connect_timeout(&addr, brief).ok()).take(16).collect();
    assert!(TcpStream::connect_timeout(&addr, brief).is_err(), "its queue is not full");
    Hole { addr, _listener: listener, _queued: queued }
}

fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut size = [0; 4];
    stream.read_exact(&mut size).ok()?;
    let mut frame = vec![0; u32::from_be_bytes(size) as usize];
    stream.read_exact(&mut frame).ok()?;
    Some(frame)
}

fn write_frame(stream: &mut TcpStream, answer: &[u8]) -> bool {
    let mut frame = (answer.len() as u32).to_be_bytes().to_vec();
    frame.extend(answer);
    stream.write_all(&frame).is_ok()
}

fn string(into: &mut Vec<u8>, s: &str) {
    into.extend((s.len() as i16).to_be_bytes());
    into.extend(s.as_bytes());
}

/// An uncompressed message set of magic 0.
fn records(mut set: &[u8]) -> Vec<Record> {
    let mut all = vec![];
    while set.len() >= 12 {
        let size = u32::from_be_bytes(set[8..12].try_into().unwrap()) as usize;
        let mut message = &set[12 + 6..12 + size]; // after crc, magic, attributes
        let mut bytes = || {
            let n = i32::from_be_bytes(message[..4].try_into().unwrap());
            let value = (n >= 0).then(|| message[4..4 + n as usize].to_vec());
            message = &message[4 + n.max(0) as usize..];
            value
        };
        all.push((bytes(), bytes()));
        set = &set[12 + size..];
    }
    all
}
