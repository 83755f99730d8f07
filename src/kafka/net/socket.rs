//! Opens the way to a broker: resolves its name, connects, directly or through a proxy, and adds TLS.

use super::proxy;
use super::stream::{CountedSocket, Stream};
use super::tls::{self, HandshakeError};
use super::trouble::Trouble;
use crate::error::Reason;
use crate::kafka::KafkaOptions;
use crate::traffic::SocketBytes;
use rustix::net::sockopt;
use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Maximum time that sent data may stay unacknowledged by the peer's TCP (`TCP_USER_TIMEOUT`).
const UNACKED: Duration = Duration::from_secs(30);

/// The addresses of a `host:port` or `[IPv6]:port`. Resolved each time, since an address may change during an outage.
/// Blocks as long as the system's resolver does.
pub fn resolve(host: &str) -> Result<Vec<SocketAddr>, String> {
    let all: Vec<_> = host.to_socket_addrs().map_err(|e| format!("cannot resolve the name: {e}"))?.collect();
    if all.is_empty() { Err("the name has no address".to_owned()) } else { Ok(all) }
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
    let mut all = resolve(address).map_err(|why| Trouble::Lost(why.into()))?;
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
            Err(Trouble::Crowded(crowded()))
        }
        Err(e) => Err(Trouble::Lost(e.into())),
    }
}

/// Whether the broker that closed this connection, from `peer`, closes every one before any request.
pub fn closes_unasked(peer: io::Result<SocketAddr>, address: &str, options: &KafkaOptions) -> bool {
    let again = match (&options.proxy, peer) {
        (None, Ok(peer)) => reach(peer, options.connect_timeout),
        _ => connect(address, options, 0),
    };
    again.is_ok_and(closes_before_a_request)
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
fn closes_before_a_request(mut stream: TcpStream) -> bool {
    if stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(UNASKED))).is_err() {
        return false;
    }
    match stream.read(&mut [0]) {
        Ok(read) => read == 0,
        Err(e) => e.kind() == io::ErrorKind::ConnectionReset,
    }
}
