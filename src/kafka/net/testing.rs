//! Peers that do not speak Kafka, for tests; the fake Kafka is [`crate::kafka::scripted`].

use std::io::{Read, Write, copy, sink};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// An address that refuses connections.
pub const REFUSED: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1));

/// Listens; serves each connection in a thread of its own.
pub fn listen(serve: impl FnOnce(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream.unwrap()));
        }
    });
    addr
}

/// Answers every connection with these bytes after the first input, and keeps it open.
pub fn parrot(answer: &'static [u8]) -> SocketAddr {
    listen(move |mut stream| {
        let _ = stream.read(&mut [0; 512]);
        stream.write_all(answer).unwrap();
        let _ = copy(&mut stream, &mut sink());
    })
}

/// Listens with a full queue: a connection request gets no answer at all, as from a black hole.
pub struct Hole {
    pub addr: SocketAddr,
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

pub fn hole() -> Hole {
    hole_on("127.0.0.1:0")
}

pub fn hole_on(address: &str) -> Hole {
    let listener = TcpListener::bind(address).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let addr = listener.local_addr().unwrap();
    let brief = Duration::from_millis(200);
    let queued = std::iter::from_fn(|| TcpStream::connect_timeout(&addr, brief).ok()).take(16).collect();
    assert!(TcpStream::connect_timeout(&addr, brief).is_err(), "its queue is not full");
    Hole { addr, _listener: listener, _queued: queued }
}
