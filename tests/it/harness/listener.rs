//! Servers that do not speak Kafka: what happens on a connection is up to the test. The fake Kafka is `scripted.rs`.

use super::{millis, pause};
use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
};

/// Serves each connection to the returned address in a thread of its own.
pub fn listen(serve: impl FnOnce(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// Accepts connections in this thread while `wanted`, which is checked every few milliseconds.
pub fn accept_while(listener: &TcpListener, wanted: impl Fn() -> bool, mut each: impl FnMut(TcpStream)) {
    listener.set_nonblocking(true).unwrap();
    while wanted() {
        let Ok((stream, _)) = listener.accept() else {
            pause(millis(3));
            continue;
        };
        stream.set_nonblocking(false).unwrap();
        let _ = stream.set_nodelay(true);
        each(stream);
    }
}

/// Copies bytes both ways until one end closes its connection.
pub fn forward(client: &TcpStream, server: &TcpStream) {
    let copy = |mut from: &TcpStream, mut to: &TcpStream| {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    };
    thread::scope(|scope| {
        scope.spawn(|| copy(client, server));
        copy(server, client);
    });
}

/// Reads until the other end closes.
pub fn ignore(mut stream: TcpStream) {
    let _ = io::copy(&mut stream, &mut io::sink());
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
