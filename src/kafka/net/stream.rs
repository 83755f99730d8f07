//! What the bytes of a connection travel through: a socket that never blocks, bare or inside TLS. Knows no frames, waits
//! for nothing and makes no handshake.

use crate::kafka::net::tls;
use rustls::ClientConnection;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;

#[derive(Debug)]
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

/// rustls does no input or output itself: it is handed ciphertext, and asked for some.
#[derive(Debug)]
pub struct Tls {
    socket: TcpStream,
    pub session: ClientConnection,
    /// Bytes given to `write` that are encrypted, and of which some may not have left yet: not yet reported as written.
    sealed: usize,
    /// Decrypted bytes wait inside; the socket has no part in them any more, so `poll(2)` does not tell.
    more: bool,
}

impl Stream {
    pub fn socket(&self) -> &TcpStream {
        match self {
            Stream::Plain(s) => s,
            Stream::Tls(t) => &t.socket,
        }
    }

    /// 0: the peer has closed. `WouldBlock`: nothing is here now.
    pub fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(s) => s.read(to),
            Stream::Tls(t) => t.read(to),
        }
    }

    /// How many bytes the kernel has taken. `WouldBlock`: none; the next call must begin with the same bytes.
    pub fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(s) => s.write(from),
            Stream::Tls(t) => t.write(from),
        }
    }

    /// There is something to read although the socket has nothing.
    pub fn has_more(&self) -> bool {
        matches!(self, Stream::Tls(t) if t.more)
    }

    /// There is something to be sent that nobody has written: TLS's own answers.
    pub fn has_own(&self) -> bool {
        matches!(self, Stream::Tls(t) if t.session.wants_write())
    }

    /// Sends what [`Stream::has_own`] speaks of, as far as the socket takes it.
    pub fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(_) => Ok(()),
            Stream::Tls(t) => match t.push() {
                Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(()),
                done => done,
            },
        }
    }
}

impl Tls {
    pub fn new(socket: TcpStream, session: ClientConnection) -> Self {
        Tls { socket, session, sealed: 0, more: false }
    }

    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Takes what the socket has (one read) into the session. `Ok(false)`: the peer has closed.
    pub fn pull(&mut self) -> io::Result<bool> {
        let n = self.session.read_tls(&mut self.socket)?;
        match self.session.process_new_packets() {
            Ok(state) => self.more = state.plaintext_bytes_to_read() > 0,
            Err(e) => {
                let _ = self.push(); // the alert that tells the peer why
                return Err(io::Error::other(tls::explain(&e)));
            }
        }
        Ok(n > 0)
    }

    /// Sends what the session has for the peer. `WouldBlock`: not all of it.
    pub fn push(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.socket) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(e),
                Err(e) => return Err(self.said_before(e)),
            }
        }
        Ok(())
    }

    /// A peer that refuses our certificate says so and closes; what is written meanwhile fails, and that says nothing.
    fn said_before(&mut self, failed: io::Error) -> io::Error {
        while let Ok(1..) = self.session.read_tls(&mut self.socket) {
            if let Err(e) = self.session.process_new_packets() {
                return io::Error::other(tls::explain(&e));
            }
        }
        failed
    }

    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if !self.more && !self.pull()? {
            return Ok(0);
        }
        let n = match self.session.reader().read(to) {
            // Without TLS's own farewell; a frame of Kafka's knows its length, so nothing can be cut off unseen.
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => 0,
            read => read?,
        };
        self.more = self.session.process_new_packets().is_ok_and(|s| s.plaintext_bytes_to_read() > 0);
        Ok(n)
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        if self.sealed == 0 {
            self.push()?; // TLS's own, so that there is room
            self.sealed = self.session.writer().write(from)?; // up to rustls's own buffer, 64 KiB
        }
        self.push()?;
        Ok(std::mem::take(&mut self.sealed))
    }
}
