//! One connection to one broker: sends requests and receives answers, within limits. Retrying and logging are up to the
//! caller.
//!
//! The socket never blocks. [`Connection::open`] and [`Connection::call`] wait in `poll(2)` with deadlines, for the
//! dialer's thread and for `check`; the producer polls all of its sockets together. After any [`Trouble`] the
//! connection is dropped, never reused.

use super::frames::Input;
use super::stream::Stream;
use super::trouble::Trouble;
use crate::kafka::protocol::messages::Versions;
use crate::kafka::protocol::wire::Malformed;
use crate::waker::poll_for;
use rustix::event::{PollFd, PollFlags};
use std::borrow::Cow;
use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::ops::Range;
use std::time::Instant;

/// Maximum size of a produce answer in bytes. Real ones have about a hundred, unless they list each refused record, at
/// up to 340 bytes for each of 8,192.
pub const ANSWER_CAP: usize = 3 << 20;
/// Maximum size of a Metadata answer: 1 MiB holds some 25,000 partitions with three replicas. With 2 MiB a malicious
/// peer could make the agent use 24.5 MB of memory, more than the 24 MB it may use in all.
pub const METADATA_CAP: usize = 1 << 20;
/// A connection whose versions are known.
#[derive(Debug)]
pub struct Connection {
    pub(super) stream: Stream,
    input: Input,
    pub versions: Versions,
    correlation: i32,
    /// When to authenticate again; `None`: never.
    pub(super) renew: Option<Instant>,
}

impl Connection {
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

    /// Most of the session is over. Checked before a request instead of by a timer, because the broker closes the
    /// connection only on a request after the session's end (KIP-368).
    pub fn must_renew(&self) -> bool {
        self.renew.is_some_and(|at| Instant::now() >= at)
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

    /// The events to poll for; with `write`, also for room to write. Without `read`, only the peer's close is reported.
    pub fn poll_fd(&self, read: bool, write: bool) -> PollFd<'_> {
        let write = if write || self.stream.has_own() { PollFlags::OUT } else { PollFlags::empty() };
        let read = if read { PollFlags::IN } else { PollFlags::RDHUP };
        PollFd::new(self.stream.socket(), read | write)
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
