//! One connection to one broker: connects, negotiates versions, sends and receives frames, all within limits. Retrying
//! and logging are up to the caller.
//!
//! The socket never blocks. [`Connection::open`] and [`Connection::call`] wait in `poll(2)` with deadlines, for the
//! dialer's thread and for `check`; the producer polls all of its sockets together. After any [`Trouble`] the
//! connection is dropped, never reused.

use super::tls::{self, HandshakeError};
use super::{proxy, sasl};
use crate::backoff::{Backoff, Rng};
use crate::error::Reason;
use crate::kafka::KafkaOptions;
use crate::kafka::net::frames::Input;
use crate::kafka::net::probe;
use crate::kafka::net::sasl::SaslOptions;
use crate::kafka::net::stream::{CountedSocket, Stream};
use crate::kafka::protocol::errors;
use crate::kafka::protocol::messages::{self, Versions};
use crate::kafka::protocol::wire::Malformed;
use crate::traffic::SocketBytes;
use crate::waker::poll_for;
use rustix::event::{PollFd, PollFlags};
use rustix::net::sockopt;
use std::borrow::Cow;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Maximum size of a produce answer in bytes. Real ones have about a hundred, unless they list each refused record, at
/// up to 340 bytes for each of 8,192.
pub const ANSWER_CAP: usize = 3 << 20;
/// Maximum size of a Metadata answer: 1 MiB holds some 25,000 partitions with three replicas. With 2 MiB a malicious
/// peer could make the agent use 24.5 MB of memory, more than the 24 MB it may use in all.
pub const METADATA_CAP: usize = 1 << 20;
/// Maximum time that sent data may stay unacknowledged by the peer's TCP (`TCP_USER_TIMEOUT`).
const UNACKED: Duration = Duration::from_secs(30);

/// Why a connection could not be opened, or was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The next attempt may succeed.
    Lost(Reason),
    /// Closed by the peer between two answers, as brokers do with idle connections.
    Ended,
    /// The broker denies access: retry, but not often (accounts get locked).
    Denied(Reason),
    /// The peer accepts no more connections.
    Crowded(Reason),
    /// The broker is too old for this driver.
    Incompatible(Reason),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Lost(why)
            | Trouble::Denied(why)
            | Trouble::Crowded(why)
            | Trouble::Incompatible(why) => why.fmt(f),
            Trouble::Ended => f.write_str("closed by the broker"),
        }
    }
}

impl Trouble {
    pub fn into_reason(self) -> Reason {
        match self {
            Trouble::Lost(why)
            | Trouble::Denied(why)
            | Trouble::Crowded(why)
            | Trouble::Incompatible(why) => why,
            Trouble::Ended => self.to_string().into(),
        }
    }

    /// Pause before the next attempt: up to 0.1 s after the first failure, doubled up to 4 s, or up to a minute if the
    /// broker denies access or is crowded.
    pub fn pause(&self, failures: u32, rng: &mut Rng) -> Duration {
        const MINUTE: Duration = Duration::from_secs(60);
        let backoff = match self {
            // At least 5 s: accounts get locked.
            Trouble::Denied(_) => Backoff { first: Duration::from_secs(10), most: MINUTE },
            Trouble::Crowded(_) => Backoff { first: Backoff::QUICK.first * 2, most: MINUTE },
            _ => Backoff::QUICK,
        };
        backoff.pause(failures.saturating_add(1), rng)
    }
}

impl From<io::Error> for Trouble {
    fn from(e: io::Error) -> Self {
        // TLS wraps its own ones.
        Trouble::Lost(e.downcast().unwrap_or_else(|e| e.to_string().into()))
    }
}

impl From<rustix::io::Errno> for Trouble {
    fn from(e: rustix::io::Errno) -> Self {
        Trouble::Lost(e.to_string().into())
    }
}

impl From<Malformed> for Trouble {
    fn from(e: Malformed) -> Self {
        Trouble::Lost(e.to_string().into())
    }
}

/// A connection whose versions are known.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    input: Input,
    pub versions: Versions,
    correlation: i32,
    /// When to authenticate again; `None`: never.
    renew: Option<Instant>,
}

impl Connection {
    /// Resolves the name, connects, makes the TLS handshake, negotiates versions, authenticates. `cap`: maximum answer
    /// size. `bytes` counts everything, also of an attempt that fails.
    pub fn open(
        address: &str,
        options: &KafkaOptions,
        cap: usize,
        bytes: &Arc<SocketBytes>,
    ) -> Result<Connection, Trouble> {
        // Before connecting to any broker: without a token, the connection would be useless.
        if let Some(SaslOptions::OauthBearer(oauth)) = &options.sasl {
            oauth.token(options)?;
        }
        // One address of a name may accept connections and never answer, while the others work.
        let first = bytes.first_address.load(Relaxed);
        Connection::attempt(address, options, cap, bytes).inspect_err(|_| bytes.failed_at(first))
    }

    fn attempt(
        address: &str,
        options: &KafkaOptions,
        cap: usize,
        bytes: &Arc<SocketBytes>,
    ) -> Result<Connection, Trouble> {
        let mut c = Connection::over(dial(address, options, bytes)?, cap);
        c.versions = c.greet(address, options, bytes)?;
        c.suits()?;
        c.authenticate(options)?;
        Ok(c)
    }

    /// Wraps a stream on which nothing has been sent yet.
    pub fn over(stream: Stream, cap: usize) -> Connection {
        let input = Input::new(cap);
        Connection { stream, input, versions: Versions::default(), correlation: 0, renew: None }
    }

    /// The socket, if it is not encrypted and the traffic can be read on the way.
    pub fn readable(&self) -> Option<&TcpStream> {
        match &self.stream {
            Stream::Plain(counted) => Some(&counted.socket),
            Stream::Tls(_) => None,
        }
    }

    fn suits(&self) -> Result<(), Trouble> {
        if self.versions.produce.is_none() || self.versions.metadata.is_none() {
            let most = self.versions.produce_max;
            if most < 0 {
                return Err(Trouble::Lost(probe::controller())); // no other driver could use it either
            }
            let why = format!(
                "the broker supports Produce up to version {most}, this driver needs 3 to 12 (Kafka 0.11 or newer)"
            );
            return Err(Trouble::Incompatible(Reason::new(why, "set driver = \"auto\"")));
        }
        Ok(())
    }

    /// Authenticates by SASL, if configured.
    pub fn authenticate(&mut self, options: &KafkaOptions) -> Result<(), Trouble> {
        if let Some(sasl) = &options.sasl {
            // Even a local proxy sends the password on to other machines.
            if let (Some(proxy), Some(_)) = (&options.proxy, self.readable())
                && sasl.needs_tls()
            {
                return Err(sasl::readable_by(sasl, &proxy.url.to_string()));
            }
            self.renew = sasl::authenticate(self, sasl, options)?;
        }
        Ok(())
    }

    /// Most of the session is over. Checked before a request instead of by a timer, because the broker closes the
    /// connection only on a request after the session's end (KIP-368).
    pub fn must_renew(&self) -> bool {
        self.renew.is_some_and(|at| Instant::now() >= at)
    }

    /// As [`Connection::negotiate`], for a broker that must know ApiVersions.
    pub fn greet(
        &mut self,
        address: &str,
        options: &KafkaOptions,
        bytes: &Arc<SocketBytes>,
    ) -> Result<Versions, Trouble> {
        self.negotiate(address, options, bytes).map_err(|t| match t {
            Trouble::Ended => Trouble::Lost(self.closed_at_once()),
            other => other,
        })
    }

    /// Sends ApiVersions in version 3, or 0 if that is too new. If the broker hangs up on version 3, as some gateways
    /// do, asks again on a new connection. [`Trouble::Ended`]: it hangs up on version 0 as well.
    pub fn negotiate(
        &mut self,
        address: &str,
        options: &KafkaOptions,
        bytes: &Arc<SocketBytes>,
    ) -> Result<Versions, Trouble> {
        let peer = self.stream.socket().peer_addr();
        match self.ask_versions(&[3, 0], options) {
            Err(Trouble::Ended) => {}
            done => return done,
        }
        if closes_unasked(peer, address, options) {
            return Err(Trouble::Crowded(probe::crowded()));
        }
        self.stream = dial(address, options, bytes)?;
        self.ask_versions(&[0], options)
    }

    /// The broker hung up on ApiVersions.
    fn closed_at_once(&self) -> Reason {
        match self.stream {
            Stream::Plain(_) => Reason::new(
                "closed at the first request: this port speaks TLS, is not Kafka, or is a broker before 0.10",
                "set [kafka.tls], or use the address of a Kafka broker",
            ),
            Stream::Tls(_) => Reason::new(
                "closed after the TLS handshake: it may require a client certificate, or is not Kafka",
                "set cert and key in [kafka.tls]",
            ),
        }
    }

    fn ask_versions(&mut self, versions: &[i16], options: &KafkaOptions) -> Result<Versions, Trouble> {
        let deadline = Instant::now() + options.connect_timeout;
        for version in versions {
            let correlation = self.next_correlation();
            let request = messages::ask_versions(*version, correlation, &options.client_id);
            match messages::versions(self.call(&request, correlation, deadline)?, *version)? {
                Ok(found) => return Ok(found),
                Err(35) if *version > 0 => {}
                Err(code) => return Err(Trouble::Lost(errors::reason(code, ""))),
            }
        }
        Err(Trouble::Lost("it refuses every version of ApiVersions".into()))
    }

    pub fn next_correlation(&mut self) -> i32 {
        self.correlation = self.correlation.wrapping_add(1) & i32::MAX;
        self.correlation
    }

    /// Sends one request and waits for its answer (without the correlation id). Nothing else may be in flight.
    pub fn call(&mut self, request: &[u8], correlation: i32, deadline: Instant) -> Result<&[u8], Trouble> {
        let mut call = Call::new(Cow::Borrowed(request), correlation, deadline);
        let mut readable = false;
        loop {
            let now = Instant::now();
            if let Some(body) = call.turn(self, readable, now)? {
                return Ok(self.input.bytes(body));
            }
            let mut fds = [call.poll_fd(self)];
            poll_for(&mut fds, Some(deadline.saturating_duration_since(now)))?;
            readable = is_readable(fds[0].revents());
        }
    }

    /// Writes what the socket accepts now; 0: nothing.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, Trouble> {
        let mut sent = 0;
        while sent < bytes.len() {
            match self.stream.write(&bytes[sent..]) {
                Ok(0) => return Err(Trouble::Lost("the socket accepts no more data".into())),
                Ok(n) => sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if is_closed(&e) => return Err(Trouble::Ended),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(sent)
    }

    /// Reads available bytes into the buffer, at most once its free room.
    pub fn read(&mut self) -> Result<(), Trouble> {
        let between = self.input.is_between();
        match self.stream.read(self.input.room()) {
            Ok(0) if between => Err(Trouble::Ended),
            Ok(0) => Err(Trouble::Lost("closed in the middle of an answer".into())),
            Ok(n) => {
                self.input.took(n);
                Ok(())
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(e) if is_closed(&e) && between => Err(Trouble::Ended),
            Err(e) => Err(e.into()),
        }
    }

    /// The next whole answer: its correlation id, and its range for [`Connection::body`].
    pub fn frame(&mut self) -> Result<Option<(i32, Range<usize>)>, Trouble> {
        let Some(frame) = self.input.frame()? else { return Ok(None) };
        let (head, _) = self.input.bytes(frame.clone()).split_first_chunk::<4>().ok_or(Malformed("frame"))?;
        Ok(Some((i32::from_be_bytes(*head), frame.start + 4..frame.end)))
    }

    /// The correlation id and remaining length of the next answer, which is then read in parts. `None`: they have not
    /// arrived yet.
    pub fn begin_parts(&mut self, cap: usize) -> Result<Option<(i32, usize)>, Trouble> {
        let Some(all) = self.input.head(cap)? else { return Ok(None) };
        let Some(id) = self.input.here().get(4..8).and_then(|b| b.first_chunk::<4>()) else {
            return Ok(None);
        };
        let id = i32::from_be_bytes(*id);
        self.input.skip(8);
        Ok(Some((id, all - 8)))
    }

    /// The available part of an answer with `left` unprocessed bytes.
    pub fn part(&self, left: usize) -> &[u8] {
        let here = self.input.here();
        &here[..here.len().min(left)]
    }

    /// Marks bytes of the part as processed.
    pub fn took_part(&mut self, n: usize) {
        self.input.skip(n);
    }

    /// The bytes of an answer, valid until the next read.
    pub fn body(&self, range: Range<usize>) -> &[u8] {
        self.input.bytes(range)
    }

    /// The events to poll for; with `write`, also for room to write.
    /// Without `read`, only the peer's close is reported.
    pub fn poll_fd(&self, read: bool, write: bool) -> PollFd<'_> {
        let write = if write || self.stream.has_own() { PollFlags::OUT } else { PollFlags::empty() };
        let read = if read { PollFlags::IN } else { PollFlags::RDHUP };
        PollFd::new(self.stream.socket(), read | write)
    }

    /// What the kernel holds of the sent bytes: segments and bytes that the peer's kernel has not acknowledged, and the
    /// bytes that it has.
    pub fn unacknowledged(&self) -> Option<(u32, u64)> {
        crate::sys::unacknowledged(self.stream.socket())
    }

    /// Buffered data is readable although the socket has none.
    pub fn has_more(&self) -> bool {
        self.stream.has_more()
    }

    /// Sends pending TLS messages.
    pub fn flush(&mut self) -> Result<(), Trouble> {
        if self.stream.has_own() { Ok(self.stream.flush()?) } else { Ok(()) }
    }
}

/// One request and its answer, on a connection where nothing else is in flight. Not `Debug`: it may hold a password.
pub struct Call<'r> {
    request: Cow<'r, [u8]>,
    /// Bytes of it sent so far.
    sent: usize,
    correlation: i32,
    pub deadline: Instant,
}

impl<'r> Call<'r> {
    pub fn new(request: Cow<'r, [u8]>, correlation: i32, deadline: Instant) -> Self {
        Call { request, sent: 0, correlation, deadline }
    }

    pub fn poll_fd<'a>(&self, c: &'a Connection) -> PollFd<'a> {
        c.poll_fd(true, self.sent < self.request.len())
    }

    /// Sends and reads what is possible without blocking. Returns the answer's range for [`Connection::body`] once it
    /// is complete.
    pub fn turn(
        &mut self,
        c: &mut Connection,
        readable: bool,
        now: Instant,
    ) -> Result<Option<Range<usize>>, Trouble> {
        c.flush()?;
        if self.sent < self.request.len() {
            self.sent += c.write(&self.request[self.sent..])?;
        }
        let mut read = readable;
        loop {
            if read {
                c.read()?;
            }
            if let Some((id, body)) = c.frame()? {
                if id != self.correlation || self.sent < self.request.len() {
                    return Err(mismatch(id, self.correlation));
                }
                return Ok(Some(body));
            }
            read = c.has_more();
            if !read {
                break;
            }
        }
        if now >= self.deadline {
            return Err(Trouble::Lost("no answer in time".into()));
        }
        Ok(None)
    }
}

/// Readable, or closed.
pub fn is_readable(found: PollFlags) -> bool {
    found.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR)
}

/// The peer closed the connection and answered our later data with a reset.
fn is_closed(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

pub fn mismatch(got: i32, want: i32) -> Trouble {
    Trouble::Lost(format!("answer to request {got}, but the next one due is {want}").into())
}

/// Opens a connection, on which nothing has been sent yet.
pub fn dial(address: &str, options: &KafkaOptions, bytes: &Arc<SocketBytes>) -> Result<Stream, Trouble> {
    let socket = connect(address, options, bytes.first_address.load(Relaxed))?;
    secure(CountedSocket::new(socket, bytes), address, options)
}

/// Connects directly, or through the proxy, which then resolves the name. `first`: which of the addresses to try first.
pub fn connect(address: &str, options: &KafkaOptions, first: usize) -> Result<TcpStream, Trouble> {
    let limit = options.connect_timeout;
    let Some(proxy) = &options.proxy else { return connect_to(address, limit, first) };
    let socket = connect_to(&proxy.url.address, limit, first).map_err(|t| proxy.url.failed(t))?;
    proxy::tunnel(socket, address, proxy, limit)
}

/// Tries the name's addresses in turn, each with the limit. If there are more than two, they share twice the limit.
/// The error is that of the resolver's last address, whichever was tried first: each new text is a line in the log.
fn connect_to(address: &str, limit: Duration, first: usize) -> Result<TcpStream, Trouble> {
    let mut last = Trouble::Ended;
    let mut all = probe::resolve(address).map_err(|why| Trouble::Lost(why.into()))?;
    let (several, shown) = (all.len() > 1, all.last().copied());
    let first = first % all.len().max(1);
    all.rotate_left(first);
    let until = Instant::now() + limit * 2;
    for (tried, one) in all.iter().enumerate() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let share = left / (all.len() - tried) as u32;
        // `connect` rejects a limit of zero, and a shorter one would reach no peer.
        match reach(*one, share.min(limit).max(Duration::from_millis(200))) {
            Ok(socket) => return Ok(socket),
            Err(_) if last != Trouble::Ended && Some(*one) != shown => {}
            Err(Trouble::Lost(why)) if several => last = Trouble::Lost(format!("{one}: {why}").into()),
            Err(t) => last = t,
        }
    }
    Err(last)
}

/// Connects a socket and makes it non-blocking.
pub fn reach(one: SocketAddr, limit: Duration) -> Result<TcpStream, Trouble> {
    let socket = TcpStream::connect_timeout(&one, limit).map_err(|e| match e.kind() {
        ErrorKind::ConnectionRefused => Trouble::Lost("connection refused".into()),
        ErrorKind::TimedOut => Trouble::Lost(format!("no connection in {} s", limit.as_secs_f32()).into()),
        _ => e.into(),
    })?;
    tune(&socket)?;
    Ok(socket)
}

/// Adds TLS, if configured.
pub fn secure(socket: CountedSocket, address: &str, options: &KafkaOptions) -> Result<Stream, Trouble> {
    let Some(tls) = &options.tls else { return Ok(Stream::Plain(socket)) };
    let peer = socket.socket.peer_addr();
    match tls::handshake(socket, address, tls, options.connect_timeout) {
        Ok(done) => Ok(Stream::Tls(Box::new(done))),
        Err(HandshakeError::Closed) if closes_unasked(peer, address, options) => {
            Err(Trouble::Crowded(probe::crowded()))
        }
        Err(e) => Err(Trouble::Lost(e.into())),
    }
}

/// Whether the broker that closed this connection, from `peer`, closes every one before any request.
fn closes_unasked(peer: io::Result<SocketAddr>, address: &str, options: &KafkaOptions) -> bool {
    let again = match (&options.proxy, peer) {
        (None, Ok(peer)) => reach(peer, options.connect_timeout),
        _ => connect(address, options, 0),
    };
    again.is_ok_and(probe::closes_unasked)
}

/// A dead peer is noticed within 30 + 3 × 10 s when idle (keepalive), and otherwise after [`UNACKED`]. Small requests
/// are sent at once.
fn tune(socket: &TcpStream) -> Result<(), Trouble> {
    socket.set_nonblocking(true)?;
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(30))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(socket, 3)?;
    sockopt::set_tcp_user_timeout(socket, UNACKED.as_millis() as u32)?;
    Ok(())
}
