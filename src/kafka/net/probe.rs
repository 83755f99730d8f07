//! Probes what listens at an address with one ApiVersions request, before any driver talks to it. Tells Kafka from a
//! TLS port, a web server, a silent peer and a closed port, within limits of time and memory.
//!
//! Requests are of the oldest version, which every Kafka can answer. The answer's length is never trusted: the `kafka` crate took a TLS alert for a length of 336 MiB and a web page for 1.13 GiB (D10).

use crate::error::Reason;
use crate::kafka::net::stream::CountedSocket;
use crate::kafka::protocol::messages::{self, ApiRange};
use crate::traffic::SocketBytes;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time limits. A mobile link that repeats its SYN after 1, 3 and 7 s still gets through within 10 s.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub connect: Duration,
    /// From the request to the last byte of the answer.
    pub answer: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { connect: Duration::from_secs(10), answer: Duration::from_secs(10) }
    }
}

/// A broker that has not answered in this time is not waited for while another can be asked.
pub const HURRY: Duration = Duration::from_secs(3);

impl Limits {
    /// For the first round through several brokers: one that hangs must not keep the others waiting.
    pub fn hurried(self) -> Limits {
        Limits { connect: self.connect.min(HURRY), answer: self.answer.min(HURRY) }
    }
}

/// What listens at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    Kafka(Ranges),
    /// Closed the connection on ApiVersions. Kafka 0.9 does that (KIP-35 came with 0.10), and so do many other
    /// servers.
    Closed,
    /// Closes every connection before any request: a broker at its connection limit, or a proxy without a backend.
    ClosesUnasked,
    Tls,
    Http,
    /// Answers, but not as Kafka does; the first bytes.
    Foreign(Vec<u8>),
    /// Accepted the connection and the request, but sent nothing.
    Mute(Duration),
    Refused,
    /// No answer to the connection request within the limit.
    NoRoute(Duration),
    Failed(String),
}

/// API keys (<https://kafka.apache.org/protocol#protocol_api_keys>).
pub const PRODUCE: i16 = 0;
pub const FETCH: i16 = 1;
pub const METADATA: i16 = 3;

/// The versions of each request that a broker supports, as it reports them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ranges(Vec<ApiRange>);

impl Ranges {
    /// Lowest and highest version of a request.
    pub fn of(&self, api: i16) -> Option<(i16, i16)> {
        self.0.iter().find(|r| r.0 == api).map(|r| (r.1, r.2))
    }

    /// Whether the `kafka` crate, which sends Produce v0, can be used. Decided by Fetch: Kafka 4 reports Produce 0–13
    /// but closes the connection on v0–v2 (KAFKA-18659), while its Fetch starts at 4.
    pub fn suits_classic(&self) -> bool {
        self.of(FETCH).is_some_and(|(min, _)| min == 0) && self.of(PRODUCE).is_some_and(|(min, _)| min == 0)
    }

    /// Record batches came with Produce v3 (Kafka 0.11).
    pub fn suits_modern(&self) -> bool {
        self.of(PRODUCE).is_some_and(|(_, max)| max >= 3)
    }

    fn show(&self, api: i16) -> String {
        self.of(api).map_or_else(|| "none".to_owned(), |(min, max)| format!("{min}..{max}"))
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Produce {}, Fetch {}", self.show(PRODUCE), self.show(FETCH))
    }
}

/// For the operator: what was found, and what to do.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Kafka(r) => write!(f, "a Kafka broker ({r})"),
            Finding::Closed => {
                f.write_str("closed the connection on the first request (Kafka 0.9, or not Kafka)")
            }
            Finding::ClosesUnasked => crowded().fmt(f),
            Finding::Tls => f.write_str("this port speaks TLS; use the plaintext port, or set [kafka.tls]"),
            Finding::Http => f.write_str("a web server, not Kafka; use Kafka's port"),
            Finding::Foreign(b) => {
                write!(f, "not Kafka: it answers \"{}\"; use Kafka's port", b.escape_ascii())
            }
            Finding::Mute(t) => write!(f, "connected, but no answer in {} s", t.as_secs_f32()),
            Finding::Refused => f.write_str("connection refused"),
            Finding::NoRoute(t) => write!(f, "no connection in {} s", t.as_secs_f32()),
            Finding::Failed(why) => f.write_str(why),
        }
    }
}

/// The addresses of a `host:port` or `[IPv6]:port`. Resolved each time, since an address may change during an outage.
/// Blocks as long as the system's resolver does.
pub fn resolve(host: &str) -> Result<Vec<SocketAddr>, String> {
    let all: Vec<_> = host.to_socket_addrs().map_err(|e| format!("cannot resolve the name: {e}"))?.collect();
    if all.is_empty() { Err("the name has no address".to_owned()) } else { Ok(all) }
}

/// Probes `addr`.
pub fn ask(addr: SocketAddr, limits: &Limits, bytes: &Arc<SocketBytes>) -> Finding {
    let mut stream = match connect(addr, limits, bytes) {
        Ok(s) => s,
        Err(found) => return found,
    };
    let request = messages::ask_versions(0, CORRELATION, CLIENT);
    let answer = match exchange(&mut stream, &request, limits) {
        Ok(answer) => answer,
        Err(Finding::Closed) if connect(addr, limits, bytes).is_ok_and(|s| closes_unasked(s.socket)) => {
            return Finding::ClosesUnasked;
        }
        Err(found) => return found,
    };
    match messages::ranges(&answer, 0) {
        Ok(Ok(found)) => Finding::Kafka(Ranges(found)),
        _ => Finding::Foreign(answer[..answer.len().min(16)].to_vec()),
    }
}

/// The message for a peer that [`closes_unasked`].
pub fn crowded() -> Reason {
    const WHY: &str = "closes every connection at once, before any request: too many connections \
        (max.connections.per.ip or max.connections of the broker), or a proxy without a backend";
    Reason::new(WHY, "close some, or raise the limit")
}

/// How long a peer may take to close a connection on which nothing is sent.
const UNASKED: Duration = Duration::from_secs(1);

/// Whether the peer closes a connection before any request. A Kafka listener, with TLS or without, waits minutes for
/// the first request.
pub fn closes_unasked(stream: TcpStream) -> bool {
    if stream.set_nonblocking(false).is_err() {
        return false;
    }
    let mut stream = CountedSocket::new(stream, &Arc::default()); // nothing is sent, and at most a byte read
    match fill(&mut stream, &mut [0], Instant::now() + UNASKED) {
        Ok(read) => read == 0,
        Err(e) => e.kind() == io::ErrorKind::ConnectionReset,
    }
}

/// A topic's metadata from a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicAnswer {
    /// Kafka's error code; 0: none.
    pub code: i16,
    pub partitions: Vec<i32>,
}

/// The version of Metadata, the first one (Kafka 0.11) that lets the client decide whether the topic is created.
pub const TOPIC_VERSION: i16 = 4;

/// Requests one topic. Returns the error code and partition ids, which the `kafka` crate drops or panics on (D9).
pub fn topic(
    addr: SocketAddr,
    name: &str,
    create: bool,
    limits: &Limits,
    bytes: &Arc<SocketBytes>,
) -> Result<TopicAnswer, Finding> {
    let mut stream = connect(addr, limits, bytes)?;
    let request = messages::ask_metadata(TOPIC_VERSION, CORRELATION, CLIENT, &[name], create);
    let answer = exchange(&mut stream, &request, limits)?;
    topic_answer(&answer, name)
        .ok_or_else(|| Finding::Failed("its Metadata answer cannot be read".to_owned()))
}

fn connect(addr: SocketAddr, limits: &Limits, bytes: &Arc<SocketBytes>) -> Result<CountedSocket, Finding> {
    let socket = TcpStream::connect_timeout(&addr, limits.connect).map_err(|e| match e.kind() {
        io::ErrorKind::ConnectionRefused => Finding::Refused,
        io::ErrorKind::TimedOut => Finding::NoRoute(limits.connect),
        _ => Finding::Failed(e.to_string()),
    })?;
    Ok(CountedSocket::new(socket, bytes))
}

const CORRELATION: i32 = 0x6c6f_6761; // "loga": identifies the answer as ours
const CLIENT: &str = env!("CARGO_PKG_NAME");

/// Maximum answer size in bytes: some 50 APIs take under 1 KiB, a topic with 10,000 partitions about 300 KiB.
const CAP: u32 = 1 << 20;

/// One request and its answer (without size and correlation id).
fn exchange(stream: &mut CountedSocket, request: &[u8], limits: &Limits) -> Result<Vec<u8>, Finding> {
    let until = Instant::now() + limits.answer;
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Finding::Mute(limits.answer),
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => Finding::Closed,
        _ => Finding::Failed(e.to_string()),
    };
    stream.socket.set_write_timeout(Some(limits.answer)).map_err(failed)?;
    stream.write_all(request).map_err(failed)?;
    let mut head = [0u8; 8];
    let got = fill(stream, &mut head, until);
    match &head {
        [0x15 | 0x16, 3, ..] => return Err(Finding::Tls), // TLS record: alert or handshake, version 3.x
        [b'H', b'T', b'T', b'P', ..] => return Err(Finding::Http),
        _ => {}
    }
    match got {
        Ok(8) => {}
        Ok(0) => return Err(Finding::Closed),
        Ok(n) => return Err(Finding::Foreign(head[..n].to_vec())),
        Err(e) => return Err(failed(e)),
    }
    let size = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
    let correlation = i32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    if !(4..=CAP).contains(&size) || correlation != CORRELATION {
        return Err(Finding::Foreign(head.to_vec()));
    }
    let mut answer = vec![0; size as usize - 4];
    match fill(stream, &mut answer, until) {
        Ok(n) if n == answer.len() => Ok(answer),
        Ok(_) => Err(Finding::Closed),
        Err(e) => Err(failed(e)),
    }
}

/// Reads until `into` is full, the peer closes (fewer bytes), or time is up.
fn fill(stream: &mut CountedSocket, into: &mut [u8], until: Instant) -> io::Result<usize> {
    let mut n = 0;
    while n < into.len() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.socket.set_read_timeout(Some(left))?;
        match stream.read(&mut into[n..]) {
            Ok(0) => break,
            Ok(m) => n += m,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

fn topic_answer(answer: &[u8], name: &str) -> Option<TopicAnswer> {
    let topic = messages::metadata(answer, TOPIC_VERSION, &[name]).ok()?.topics.pop()?;
    let mut partitions: Vec<i32> = topic.partitions.iter().map(|p| p.partition).collect();
    partitions.sort_unstable();
    Some(TopicAnswer { code: topic.error, partitions })
}

#[cfg(test)]
mod tests;
