//! The byte stream of a connection: a non-blocking socket, plain or inside TLS. `tls.rs` makes the handshake.
//! [`TimedStream`] adds blocking calls with a deadline.

use crate::kafka::net::tls_errors::explain;
use crate::kafka::net::trouble::Trouble;
use crate::traffic::SocketBytes;
use crate::waker::poll_for;
use rustix::event::{PollFd, PollFlags};
use rustls::ClientConnection;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub enum Stream {
    Plain(CountedSocket),
    Tls(Box<Tls>),
}

/// A socket that counts its bytes, those of TLS included.
#[derive(Debug)]
pub struct CountedSocket {
    pub socket: TcpStream,
    bytes: Arc<SocketBytes>,
}

impl CountedSocket {
    pub fn new(socket: TcpStream, bytes: &Arc<SocketBytes>) -> Self {
        CountedSocket { socket, bytes: bytes.clone() }
    }

    fn sent(&self, done: io::Result<usize>) -> io::Result<usize> {
        done.inspect(|n| _ = self.bytes.sent.fetch_add(*n as u64, Relaxed))
    }
}

impl Read for CountedSocket {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.socket.read(to).inspect(|n| _ = self.bytes.received.fetch_add(*n as u64, Relaxed))
    }
}

impl Write for CountedSocket {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let done = self.socket.write(from);
        self.sent(done)
    }

    /// rustls hands over several records at once.
    fn write_vectored(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        let done = self.socket.write_vectored(from);
        self.sent(done)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// rustls does no I/O itself: it is handed ciphertext and asked for some.
#[derive(Debug)]
pub struct Tls {
    socket: CountedSocket,
    pub session: ClientConnection,
    /// Bytes given to `write` that are encrypted but may not have been sent completely, so not yet reported as
    /// written.
    sealed: usize,
    /// Decrypted bytes are buffered inside. They are no longer in the socket, so `poll(2)` does not report them.
    more: bool,
}

impl Stream {
    pub fn socket(&self) -> &TcpStream {
        match self {
            Stream::Plain(s) => &s.socket,
            Stream::Tls(t) => &t.socket.socket,
        }
    }

    /// 0: the peer has closed. `WouldBlock`: nothing to read now.
    pub fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(s) => s.read(to),
            Stream::Tls(t) => t.read(to),
        }
    }

    /// How many bytes the kernel accepted. `WouldBlock`: none; the next call must start with the same bytes.
    pub fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(s) => s.write(from),
            Stream::Tls(t) => t.write(from),
        }
    }

    /// Buffered data is readable although the socket has none.
    pub fn has_more(&self) -> bool {
        matches!(self, Stream::Tls(t) if t.more)
    }

    /// TLS has messages of its own to send.
    pub fn has_own(&self) -> bool {
        matches!(self, Stream::Tls(t) if t.session.wants_write())
    }

    /// Sends those of [`Stream::has_own`], as far as the socket accepts them.
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
    pub fn new(socket: CountedSocket, session: ClientConnection) -> Self {
        Tls { socket, session, sealed: 0, more: false }
    }

    pub fn socket(&self) -> &TcpStream {
        &self.socket.socket
    }

    /// Reads from the socket once and feeds the session. `Ok(false)`: the peer has closed.
    pub fn pull(&mut self) -> io::Result<bool> {
        let n = self.session.read_tls(&mut self.socket)?;
        match self.session.process_new_packets() {
            Ok(state) => self.more = state.plaintext_bytes_to_read() > 0,
            Err(e) => {
                let _ = self.push(); // the alert that tells the peer why
                return Err(io::Error::other(explain(&e)));
            }
        }
        Ok(n > 0)
    }

    /// Sends the session's output. `WouldBlock`: not all of it.
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

    /// A peer that refuses our certificate sends an alert and closes. If a write fails meanwhile, report the alert
    /// instead.
    fn said_before(&mut self, failed: io::Error) -> io::Error {
        while let Ok(1..) = self.session.read_tls(&mut self.socket) {
            if let Err(e) = self.session.process_new_packets() {
                return io::Error::other(explain(&e));
            }
        }
        failed
    }

    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if !self.more && !self.pull()? {
            return Ok(0);
        }
        let n = match self.session.reader().read(to) {
            // Closed without TLS close_notify. Kafka frames carry their length, so a truncation cannot go unnoticed.
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

/// For conversations other than Kafka's: blocking calls, all of which together take at most `limit`.
#[derive(Debug)]
pub struct TimedStream {
    stream: Stream,
    limit: Duration,
    deadline: Instant,
}

impl TimedStream {
    pub fn new(stream: Stream, limit: Duration) -> Self {
        TimedStream { stream, limit, deadline: Instant::now() + limit }
    }

    pub fn into_socket(self) -> TcpStream {
        match self.stream {
            Stream::Plain(s) => s.socket,
            Stream::Tls(t) => t.socket.socket,
        }
    }

    pub fn send(&mut self, mut bytes: &[u8]) -> Result<(), Trouble> {
        while !bytes.is_empty() {
            let done = self.stream.write(bytes);
            bytes = &bytes[self.unless_blocked(done, PollFlags::OUT)?.unwrap_or_default()..];
        }
        Ok(())
    }

    /// Waits until there is something to read. 0: the peer has closed.
    pub fn receive(&mut self, to: &mut [u8]) -> Result<usize, Trouble> {
        loop {
            self.stream.flush()?;
            let done = self.stream.read(to);
            if let Some(n) = self.unless_blocked(done, PollFlags::IN)? {
                return Ok(n);
            }
        }
    }

    /// Fills `to`.
    pub fn fill(&mut self, mut to: &mut [u8]) -> Result<(), Trouble> {
        while !to.is_empty() {
            match self.receive(to)? {
                0 => return Err(Trouble::Lost("it closes the connection without an answer".into())),
                n => to = &mut to[n..],
            }
        }
        Ok(())
    }

    /// `None`: the call would have blocked; waits until it may be worth repeating.
    fn unless_blocked(
        &self,
        done: io::Result<usize>,
        mut events: PollFlags,
    ) -> Result<Option<usize>, Trouble> {
        match done {
            Ok(n) => return Ok(Some(n)),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return Err(e.into()),
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Trouble::Lost(format!("no answer in {} s", self.limit.as_secs_f32()).into()));
        }
        events.set(PollFlags::OUT, events.contains(PollFlags::OUT) || self.stream.has_own());
        poll_for(&mut [PollFd::new(self.stream.socket(), events)], Some(left))?;
        Ok(None)
    }
}
