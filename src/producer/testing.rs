//! Fixtures for the core's tests: origins, chunks, batches.

use super::batch::{Batch, BatchGroup, Records};
use super::driver::{Context, Current, Drive, Event, Leave, Order};
use super::partitioner::BatchPart;
use crate::budget::{Budget, Share};
use crate::chunk::{Chunk, Origin};
use crate::record::{BatchGroupNo, Break, Line, Mark, Point, Shape, StreamId, Then};
use crate::report::Board;
use crate::stop;
use crate::streams::Progress;
use crate::waker::Waker;
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use rustix::event::{PollFd, Timespec, poll};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub const STAMP: i64 = 1_700_000_000_123;

pub fn origin(stream: u64, topic: &str, path: impl Into<PathBuf>, shape: Shape) -> Arc<Origin> {
    Arc::new(Origin {
        stream: StreamId(stream),
        topic: topic.into(),
        path: path.into(),
        shape: Arc::new(shape),
        progress: Arc::new(Progress::default()),
    })
}

pub fn plain(stream: u64) -> Arc<Origin> {
    origin(stream, "t", "/log", Shape::default())
}

/// A chunk of whole lines starting at `start`, each including its newline, as `tail` makes them.
pub fn chunk_of(origin: &Arc<Origin>, share: &Share, start: u64, lines: &[&[u8]]) -> Chunk {
    let mut bytes = Vec::new();
    let mut table = Vec::new();
    for line in lines {
        table.push(Line { at: bytes.len() as u32, len: line.len() as u32 });
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
    }
    let end = start + bytes.len() as u64;
    origin.progress.framed.fetch_max(end, Relaxed);
    let (_handle, stop) = stop::pair();
    let permit = share.take(bytes.len(), &stop).expect("the test's budget is large enough");
    Chunk {
        noticed: Instant::now(),
        origin: origin.clone(),
        range: start..end,
        end: Point { offset: end, mark: Mark::default(), then: Then::Line },
        last: Break::Newline,
        lines: table,
        bytes,
        permit,
    }
}

pub fn chunk(origin: &Arc<Origin>, start: u64, lines: &[&[u8]]) -> Chunk {
    chunk_of(origin, &Budget::new(1 << 30).share(), start, lines)
}

/// One batch with all lines of these chunks.
pub fn batch(group_no: u64, chunks: Vec<Chunk>) -> Batch {
    let count = chunks.iter().map(|c| c.lines.len() as u32).sum();
    let bytes = chunks.iter().flat_map(|c| &c.lines).map(|l| l.len as usize).sum();
    let group = BatchGroup::new("t".into(), [0; 16], STAMP, chunks);
    BatchPart { partition: 0, records: Records::All, count, bytes }
        .into_batch(BatchGroupNo(group_no), Arc::new(group))
}

/// A driver running in its own thread, and the channels to it.
pub struct Ends {
    pub orders: Sender<Order>,
    pub events: Receiver<Event>,
    pub worker: JoinHandle<Leave>,
}

impl Ends {
    pub fn order(&self, order: Order) {
        self.orders.send(order).unwrap();
    }

    #[track_caller]
    pub fn next(&self) -> Event {
        self.events.recv_timeout(Duration::from_secs(60)).expect("the driver sent no event for a minute")
    }

    /// Waits until the driver leaves unasked.
    #[track_caller]
    pub fn ended(self) -> Leave {
        wait_until("the driver leaves", || self.worker.is_finished());
        self.leave()
    }

    /// Closes the channel of orders.
    pub fn leave(self) -> Leave {
        drop(self.orders);
        self.worker.join().expect("the driver panicked")
    }
}

/// Runs the driver until it ends, or the channel of orders closes.
pub fn drive(drive: Drive, board: Arc<Board>) -> Ends {
    let (orders, inbox) = bounded(1000);
    let (to, events) = bounded(10_000);
    let worker = thread::spawn(move || {
        let context = Context { board, waker: Waker::new().unwrap() };
        let mut current = Current::new(context.clone(), &drive);
        let (mut ready, mut events) = (Vec::new(), Vec::new());
        while current.turn(&ready, Instant::now(), &mut events) {
            loop {
                match inbox.try_recv() {
                    Ok(order) => current.order(order, Instant::now()),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        current.close();
                        break;
                    }
                }
            }
            let _ = current.turn(&[], Instant::now(), &mut events);
            events.drain(..).for_each(|event| drop(to.send(event)));
            let mut fds = vec![context.waker.poll_fd()];
            current.driver().sockets(&mut fds);
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 1_000_000 })).unwrap();
            ready = fds[1..].iter().map(PollFd::revents).collect();
        }
        events.drain(..).for_each(|event| drop(to.send(event)));
        current.driver().left().unwrap()
    });
    Ends { orders, events, worker }
}

/// Waits until there is something, for up to 20 s.
#[track_caller]
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "not within 20 s: {what}");
        thread::park_timeout(Duration::from_millis(5));
    }
}

#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}
