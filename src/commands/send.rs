//! `logagent send`: sends values from the command line, or the lines of standard input, as records. Prints
//! `pid:<partition> offset:<offset>` for each when the broker has acknowledged it, in the order of the
//! acknowledgements. Saves nothing: records not acknowledged at the end are reported, and are lost.

use super::drivers;
use crate::budget::{Budget, Share};
use crate::chunk::{Chunk, Origin};
use crate::cli;
use crate::config::{self, Delivery};
use crate::error::{Error, ExitCode};
use crate::handover::{self, Outlet};
use crate::producer::{self, Partitioner, Receipt};
use crate::record::{Break, Identity, Key, Line, Mark, Point, Shape, StreamId, Then};
use crate::report::Board;
use crate::signals::{self, Signal};
use crate::stop::{self, Stop};
use crate::streams::{Progress, Registry};
use crate::waker::{Waker, Waking};
use crossbeam_channel::{Receiver, Select, after, bounded, never, select};
use std::io::{self, BufRead, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{self, Builder};
use std::time::Duration;

/// Bytes between input and acknowledgement.
const MEMORY: usize = 8 << 20;
/// Size of a chunk in bytes, unless one line is longer.
const CHUNK: usize = 64 << 10;
/// Longest line of standard input. Brokers accept about 1 MB by default.
const MAX_LINE: usize = 16 << 20;
/// How long to wait for acknowledgements after a signal.
const DRAIN: Duration = Duration::from_secs(10);

/// `at_once` exits immediately, for the second signal.
pub fn run(asked: cli::SendArgs, at_once: fn(ExitCode) -> !) -> Result<ExitCode, Error> {
    let signals = signals::start().map_err(Error::no_signals)?;
    let (mut kafka, topic) = config::load_kafka(&asked.overrides())?;
    kafka.acks = asked.acks.unwrap_or(kafka.acks);
    let board = Arc::new(Board::default());
    let (receipt_tx, receipts) = bounded::<Receipt>(1024);
    let options = producer::ProducerOptions {
        partitioner: match (asked.partition, &asked.key) {
            (Some(n), _) => Partitioner::Fixed(n),
            (None, Some(_)) => Partitioner::Hash,
            (None, None) => Partitioner::Sticky,
        },
        batch: kafka.batch,
        rate: kafka.rate,
        receipts: Some(receipt_tx),
        seed: super::options::seed(),
        ..producer::ProducerOptions::default()
    };
    let waker = Waker::new().map_err(Error::no_eventfd)?;
    let (chunks, inbox) = handover::chunks(4, &waker);
    let registry = Arc::new(Registry::default());
    let outlet = Outlet::new(registry.clone(), chunks);
    let (input_stop, input_on) = stop::pair();
    let input_stop = Waking::new(input_stop, &waker);
    let given = Arc::new(AtomicU64::new(0));
    let stuck = input_on.clone();
    let failed = SendInput::start(asked, &topic, &given, outlet, input_on)?;
    if first(&inbox, &signals.inbox).is_none() {
        return failed.try_recv().map_or(Ok(ExitCode::Done), Err);
    }
    let (give_up, give_up_on) = stop::pair();
    let give_up = Waking::new(give_up, &waker);
    let producer = producer::Producer {
        options,
        inbox,
        changes: never(),
        drive: drivers::of_kafka(&kafka, &kafka.needs_modern(), Delivery::AtLeastOnce),
        context: producer::driver::Context { board: board.clone(), waker },
        intents: None,
        registry: &registry,
        halts: producer::Halts { stuck: Some(stuck), now: give_up_on },
    };
    thread::scope(|scope| {
        let board: &Board = &board;
        let body = move || producer::run(producer);
        let shipping = thread("producer").spawn_scoped(scope, body);
        let shipping = shipping.map_err(|e| Error::no_thread("producer", e))?;
        let (give_up, input) = (Some(give_up), Some(input_stop));
        let mut send_loop =
            SendLoop { give_up, input, stopping: false, stored: 0, given: &given, board, at_once };
        let done = send_loop.work(failed, &receipts, &signals.inbox);
        let stored = send_loop.stored;
        drop((send_loop, receipts));
        let shipped = shipping.join();
        done?;
        if let Ok(Err(dead)) = shipped {
            return Err(Error::failed("deliver", dead.why, "send the unacknowledged records again"));
        }
        verdict(given.load(Relaxed), stored, board.totals.dead_lettered.load(Relaxed))
    })
}

/// Waits for the first value, so that no broker is contacted if there is none. `None`: no input, or stopped by a
/// signal.
fn first(inbox: &Receiver<Chunk>, signals: &Receiver<Signal>) -> Option<()> {
    loop {
        let mut either = Select::new();
        either.recv(inbox);
        let signalled = either.recv(signals);
        if either.ready() != signalled {
            return (!inbox.is_empty()).then_some(()); // empty: closed
        }
        if signals.try_recv() == Ok(Signal::Stop) {
            return None;
        }
    }
}

fn verdict(given: u64, stored: u64, refused: u64) -> Result<ExitCode, Error> {
    if refused > 0 {
        let why = format!("the broker rejected {refused} of {given} records");
        return Err(Error::failed(
            "deliver",
            why,
            "see the reason above; make them smaller, or the topic's limit larger",
        ));
    }
    if stored < given {
        let why = format!("{} of {given} records were not acknowledged", given - stored);
        return Err(Error::failed("deliver", why, "send them again once the brokers can be reached"));
    }
    Ok(ExitCode::Done)
}

fn thread(name: &str) -> Builder {
    Builder::new().name(name.to_owned()).stack_size(256 << 10)
}

/// The main thread's loop: prints receipts and handles signals.
struct SendLoop<'a> {
    give_up: Option<Waking<stop::Handle>>,
    input: Option<Waking<stop::Handle>>,
    stopping: bool,
    /// Records that were answered.
    stored: u64,
    /// Records handed to the producer.
    given: &'a AtomicU64,
    board: &'a Board,
    at_once: fn(ExitCode) -> !,
}

impl SendLoop<'_> {
    /// Runs until the producer has nothing left and closes the receipts.
    fn work(
        &mut self,
        mut failed: Receiver<Error>,
        receipts: &Receiver<Receipt>,
        signals: &Receiver<Signal>,
    ) -> Result<(), Error> {
        let mut stdout = io::stdout().lock();
        let mut deadline = never();
        loop {
            select! {
                recv(receipts) -> receipt => match receipt {
                    Ok(receipt) => self.print(&mut stdout, &receipt)?,
                    Err(_) => return Ok(()),
                },
                recv(failed) -> error => match error {
                    Ok(error) => return Err(error),
                    Err(_) => failed = never(), // the input is complete
                },
                recv(signals) -> signal => if let Ok(Signal::Stop) = signal {
                    if std::mem::replace(&mut self.stopping, true) {
                        (self.at_once)(ExitCode::Failed);
                    }
                    self.input = None;
                    deadline = after(DRAIN);
                },
                recv(deadline) -> _ => self.give_up = None,
            }
            // A thread that reads from a terminal cannot be stopped, and the producer would wait for it.
            let refused = self.board.totals.dead_lettered.load(Relaxed);
            if self.stopping && self.stored + refused >= self.given.load(Relaxed) {
                self.give_up = None;
            }
        }
    }

    fn print(&mut self, to: &mut impl Write, receipt: &Receipt) -> Result<(), Error> {
        self.stored += u64::from(receipt.count);
        answer(to, receipt).map_err(|e| Error::failed("standard output", e, "let something read it"))
    }
}

/// Without an offset (acks = 0), -1 is printed, as in Kafka's own clients.
fn answer(to: &mut impl Write, receipt: &Receipt) -> io::Result<()> {
    let mut page = Vec::new();
    for i in 0..i64::from(receipt.count) {
        let offset = receipt.offset.map_or(-1, |first| first + i);
        writeln!(page, "pid:{} offset:{offset}", receipt.partition)?;
    }
    to.write_all(&page)?;
    to.flush()
}

/// The input thread. It is not joined: a read from a terminal or a pipe may block forever.
struct SendInput {
    origin: Arc<Origin>,
    share: Share,
    given: Arc<AtomicU64>,
    out: Outlet,
    stop: Stop,
    /// The next chunk's offset in the input.
    at: u64,
}

impl SendInput {
    /// The channel returns an error; it closes when all input has been read.
    fn start(
        asked: cli::SendArgs,
        topic: &str,
        given: &Arc<AtomicU64>,
        out: Outlet,
        stop: Stop,
    ) -> Result<Receiver<Error>, Error> {
        let mut input = SendInput::new(topic, asked.key, given, out, stop);
        let (tell, failed) = bounded(1);
        let body = move || {
            let done = match asked.values {
                values if values.is_empty() => input.lines(io::stdin().lock()),
                values => values
                    .chunks(Chunk::MAX_LINES)
                    .try_for_each(|some| input.pass(&mut some.to_vec()).ok_or(None)),
            };
            if let Err(Some(e)) = done {
                let _ = tell.send(Error::failed("standard input", e, "the lines before it were sent"));
            }
        };
        thread("input").spawn(body).map_err(|e| Error::no_thread("input", e))?;
        Ok(failed)
    }

    fn new(topic: &str, key: Option<Vec<u8>>, given: &Arc<AtomicU64>, out: Outlet, stop: Stop) -> Self {
        let key = key.map_or(Key::None, Key::Constant);
        let origin = Origin {
            stream: StreamId(1),
            topic: topic.into(),
            path: PathBuf::from("-"),
            shape: Arc::new(Shape { key, ..Shape::default() }),
            progress: Arc::new(Progress::default()),
        };
        let share = Budget::new(MEMORY).share();
        let origin = Arc::new(origin);
        out.open(origin.opened(Identity::default(), Point::default()));
        SendInput { origin, share, given: given.clone(), out, stop, at: 0 }
    }

    /// Builds a chunk from the input available without waiting. `Err(None)`: stopped.
    fn lines(&mut self, from: impl Read) -> Result<(), Option<io::Error>> {
        let mut from = io::BufReader::with_capacity(CHUNK, from);
        let mut lines: Vec<Vec<u8>> = Vec::new();
        loop {
            let mut line = Vec::new();
            let n = (&mut from).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)?;
            if n > MAX_LINE {
                return Err(Some(io::Error::other(format!("a line is longer than {MAX_LINE} bytes"))));
            }
            if n > 0 {
                let whole = line.strip_suffix(b"\n").map(|l| l.strip_suffix(b"\r").unwrap_or(l).len());
                line.truncate(whole.unwrap_or(n));
                lines.push(line);
            }
            let more = from.buffer().contains(&b'\n') && lines.len() < Chunk::MAX_LINES;
            if !more && !lines.is_empty() {
                self.pass(&mut lines).ok_or(None)?;
            }
            if n == 0 {
                return Ok(());
            }
        }
    }

    /// Sends these lines as one chunk and clears the list. `None`: stopped, or the producer is gone.
    fn pass(&mut self, lines: &mut Vec<Vec<u8>>) -> Option<()> {
        let size: usize = lines.iter().map(|l| l.len() + 1).sum();
        let permit = self.share.take(size + lines.len() * size_of::<Line>(), &self.stop)?;
        let (mut bytes, mut table) = (Vec::with_capacity(size), Vec::with_capacity(lines.len()));
        for line in lines.drain(..) {
            table.push(Line { at: bytes.len() as u32, len: line.len() as u32 });
            bytes.extend_from_slice(&line);
            bytes.push(b'\n');
        }
        let range = self.at..self.at + size as u64;
        self.at = range.end;
        self.origin.progress.frame(range.end);
        self.given.fetch_add(table.len() as u64, Relaxed);
        let end = Point { offset: range.end, mark: Mark::default(), then: Then::Line };
        let origin = self.origin.clone();
        let chunk = Chunk {
            origin,
            range,
            end,
            last: Break::Newline,
            noticed: std::time::Instant::now(),
            lines: table,
            bytes,
            permit,
        };
        self.out.send(chunk, &self.stop, &|| ()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(input: &'static [u8]) -> Vec<Vec<u8>> {
        let (out, chunks) = handover::chunks(100, &Waker::new().unwrap());
        let out = Outlet::new(Arc::default(), out);
        let (_handle, stop) = stop::pair();
        let given = Arc::new(AtomicU64::new(0));
        let mut i = SendInput::new("t", None, &given, out, stop);
        i.lines(input).unwrap();
        drop(i);
        let mut texts = vec![];
        for c in chunks {
            texts.extend((0..c.lines.len()).map(|i| c.line(i).to_vec()));
        }
        assert_eq!(given.load(Relaxed), texts.len() as u64);
        texts
    }

    /// Fails when an empty line or an unfinished last one is dropped, or a carriage return stays.
    #[test]
    fn lines_of_standard_input() {
        assert_eq!(texts(b"a\n\nb\r\nc"), [&b"a"[..], b"", b"b", b"c"]);
        assert_eq!(texts(b"").len(), 0);
    }

    #[test]
    fn answers() {
        let mut out = vec![];
        answer(&mut out, &Receipt { partition: 2, offset: Some(41), count: 2 }).unwrap();
        answer(&mut out, &Receipt { partition: 0, offset: None, count: 1 }).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "pid:2 offset:41\npid:2 offset:42\npid:0 offset:-1\n");
    }

    /// Fails when unacknowledged records end with exit code 0.
    #[test]
    fn the_end() {
        assert_eq!(verdict(3, 3, 0), Ok(ExitCode::Done));
        assert!(verdict(3, 2, 0).is_err_and(|e| e.code == ExitCode::Failed));
        assert!(verdict(3, 2, 1).is_err_and(|e| e.to_string().contains("rejected 1 of 3")));
    }
}
