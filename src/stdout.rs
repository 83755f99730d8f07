//! The driver that writes each record's value and a newline to standard output. It has no keys, headers or retries: a
//! failed write there is final.

use crate::producer::Outbox;
use crate::producer::batch::Batch;
use crate::producer::driver::{Capabilities, Event, Leave, Order, TopicView, Verdict};
use crate::producer::record_encoder::RecordEncoder;
use crate::producer::worker::Unheard;
use crate::sys;
use crossbeam_channel::Receiver;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;

/// Maximum bytes gathered for one write.
const BUFFER: usize = 256 << 10;

/// Runs until the core drops its channels. The reader of the pipe may stall forever.
pub fn run(orders: &Receiver<Order>, events: &Outbox) -> Leave {
    let mut buffer = LineBuffer {
        to: Fd,
        text: Vec::with_capacity(BUFFER),
        written: Vec::new(),
        encoder: RecordEncoder::default(),
    };
    match work(orders, events, &mut buffer) {
        Ok(leave) => leave,
        Err(Ended::Alone) => Leave::Closed,
        Err(Ended::Broken(e)) => {
            let _ = events.send(Event::Dead { why: format!("standard output: {e}") });
            Leave::Closed
        }
    }
}

/// Why the worker ends early.
#[derive(Debug)]
enum Ended {
    Broken(io::Error),
    /// The event channel is closed.
    Alone,
}

impl From<io::Error> for Ended {
    fn from(e: io::Error) -> Self {
        Ended::Broken(e)
    }
}

impl From<Unheard> for Ended {
    fn from(_: Unheard) -> Self {
        Ended::Alone
    }
}

fn work<W: Write>(inbox: &Receiver<Order>, out: &Outbox, buffer: &mut LineBuffer<W>) -> Result<Leave, Ended> {
    sys::stdout_was_open()?;
    out.send(Event::Ready(Capabilities { name: "stdout", idempotent: false, in_flight: 1 }))?;
    while let Ok(first) = inbox.recv() {
        for order in std::iter::once(first).chain(inbox.try_iter()) {
            match order {
                Order::Topic(topic) => {
                    let one = vec![0];
                    out.send(Event::Topic(TopicView {
                        topic,
                        id: [0; 16],
                        partitions: one.clone(),
                        available: one,
                    }))?;
                }
                Order::Send(batches) => batches.into_iter().try_for_each(|b| buffer.put(b))?,
                // Only sent to drivers with sequence numbers.
                Order::ProducerId | Order::Ask { .. } | Order::Change(_) => {}
            }
        }
        buffer.flush()?;
        for batch in buffer.written.drain(..) {
            out.send(Event::Done { batch, verdict: Verdict::Stored { offset: None } })?;
        }
    }
    Ok(Leave::Closed)
}

/// Gathers lines in one reused buffer.
struct LineBuffer<W> {
    to: W,
    text: Vec<u8>,
    /// Batches whose lines are in `text` or already written.
    written: Vec<Batch>,
    encoder: RecordEncoder,
}

impl<W: Write> LineBuffer<W> {
    fn put(&mut self, batch: Batch) -> io::Result<()> {
        let LineBuffer { to, text, encoder, .. } = self;
        let mut result = Ok(());
        encoder.each(&batch, |record| {
            let line = &*record.value;
            if text.len() + line.len() + 1 > BUFFER && result.is_ok() {
                result = to.write_all(text);
                text.clear();
            }
            if line.len() >= BUFFER {
                result = std::mem::replace(&mut result, Ok(())).and_then(|()| to.write_all(line));
            } else {
                text.extend_from_slice(line);
            }
            text.push(b'\n');
        });
        self.written.push(batch);
        result
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.to.write_all(&self.text);
        self.text.clear();
        result
    }
}

/// Standard output without std's line buffering.
struct Fd;

impl Write for Fd {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stdout = io::stdout();
        match rustix::io::write(stdout.as_fd(), bytes) {
            // Another process sharing it made it non-blocking (a terminal, ssh).
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::new(&stdout.as_fd(), PollFlags::OUT)], None)?;
                Err(ErrorKind::Interrupted.into())
            }
            written => Ok(written?),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::producer::testing::{batch, chunk, plain};
    use crossbeam_channel::bounded;

    /// Accepts `room` bytes and is then closed; counts the writes.
    struct Pipe<'a> {
        text: &'a mut Vec<u8>,
        writes: usize,
        room: usize,
    }

    impl Write for Pipe<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.text.len() + bytes.len() > self.room {
                return Err(ErrorKind::BrokenPipe.into());
            }
            self.writes += 1;
            self.text.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn worked(batches: Vec<Batch>, room: usize) -> (Vec<u8>, usize, usize, Result<Leave, Ended>) {
        let (orders, inbox) = bounded(9);
        let (out, events) = bounded(9);
        let out = Outbox::new(out, crate::waker::Waker::new().unwrap());
        orders.send(Order::Send(batches)).unwrap();
        drop(orders);
        let mut text = Vec::new();
        let pipe = Pipe { text: &mut text, writes: 0, room };
        let mut buffer =
            LineBuffer { to: pipe, text: Vec::new(), written: Vec::new(), encoder: RecordEncoder::default() };
        let result = work(&inbox, &out, &mut buffer);
        let (writes, done) =
            (buffer.to.writes, events.try_iter().filter(|e| matches!(e, Event::Done { .. })).count());
        (text, writes, done, result)
    }

    /// Fails when each line costs a write, a line longer than the buffer is cut, or lines are reordered.
    #[test]
    fn large_writes_in_order() {
        let long = vec![b'x'; BUFFER + 5];
        let lines: [&[u8]; 4] = [b"one", b"", &long, b"\xfflast"];
        let all = lines.join(&b'\n');
        let (text, writes, done, result) = worked(
            vec![
                batch(1, vec![chunk(&plain(1), 0, &lines[..2])]),
                batch(2, vec![chunk(&plain(1), 5, &lines[2..])]),
            ],
            usize::MAX,
        );
        result.unwrap();
        assert!(text.strip_suffix(b"\n") == Some(&all), "{} bytes", text.len());
        assert_eq!((writes, done), (3, 2));
    }

    /// Fails when a batch counts as stored before its bytes are written.
    #[test]
    fn a_closed_pipe_stores_nothing() {
        let (_, _, done, result) = worked(vec![batch(1, vec![chunk(&plain(1), 0, &[b"one"])])], 2);
        assert!(matches!(result, Err(Ended::Broken(e)) if e.kind() == ErrorKind::BrokenPipe));
        assert_eq!(done, 0);
    }
}
