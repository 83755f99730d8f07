//! Runs a blocking driver in its own thread, with one channel for orders and one for events.

use super::driver::{Context, Drive, Driver, Event, Leave, Order, Pace, STACK};
use crate::heartbeat::Heartbeat;
use crate::report::Board;
use crate::sys;
use crate::waker::{Waker, Waking};
use crossbeam_channel::{Receiver, Sender, unbounded};
use rustix::event::{PollFd, PollFlags};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// The thread's sender of events.
#[derive(Clone, Debug)]
pub struct Outbox {
    to: Sender<Event>,
    waker: Waker,
}

/// The producer has ended.
#[derive(Debug)]
pub struct Unheard;

impl Outbox {
    pub fn new(to: Sender<Event>, waker: Waker) -> Self {
        Outbox { to, waker }
    }

    pub fn send(&self, event: Event) -> Result<(), Unheard> {
        self.to.send(event).map_err(|_| Unheard)?;
        self.waker.wake();
        Ok(())
    }
}

/// The producer's end. The thread is never joined: it may hang in name resolution or in writing to a full pipe.
pub struct Worker {
    /// `None` once closed, which ends the thread.
    orders: Option<Sender<Order>>,
    /// A second receiver of the same channel: returns orders left there when the thread ends.
    untaken: Receiver<Order>,
    events: Receiver<Event>,
    ended: Receiver<Leave>,
    left: Option<Leave>,
    limit: Option<Duration>,
    heartbeat: Arc<Heartbeat>,
    /// Batches the thread holds.
    held: usize,
}

impl Worker {
    /// Builds drivers that run a blocking client in a thread of its own. `limit`: how long it may hold a batch without
    /// reporting anything before it counts as stuck; `None`: no limit.
    pub fn drive(
        limit: Option<Duration>,
        run: impl Fn(&Receiver<Order>, &Outbox, &Arc<Board>) -> Leave + Send + Sync + 'static,
    ) -> Drive {
        let run = Arc::new(run);
        Drive::new(move |context| Box::new(Worker::start(context, limit, run.clone())))
    }

    /// Both channels are unbounded: the byte budget limits their content, and neither side may block on the other.
    #[allow(clippy::disallowed_methods, reason = "bounded by the batches in flight")]
    fn start(
        context: &Context,
        limit: Option<Duration>,
        run: Arc<impl Fn(&Receiver<Order>, &Outbox, &Arc<Board>) -> Leave + Send + Sync + 'static + ?Sized>,
    ) -> Self {
        let (orders, inbox) = unbounded();
        let (to, events) = unbounded();
        let (leave, ended) = crossbeam_channel::bounded(1);
        let outbox = Outbox::new(to, context.waker.clone());
        let board = context.board.clone();
        let untaken = inbox.clone();
        let leave = Waking::new(leave, &context.waker);
        let body = move || {
            // A signal during a write would cut a frame short (D3). The thread's own threads inherit the mask.
            let left = match sys::block_signals() {
                Ok(()) => run(&inbox, &outbox, &board),
                Err(e) => {
                    let _ = outbox.send(Event::Dead { why: format!("cannot block signals: {e}") });
                    Leave::Closed
                }
            };
            let _ = leave.get().send(left);
        };
        let spawned = thread::Builder::new().name("driver".into()).stack_size(STACK).spawn(body);
        let heartbeat = context.board.heartbeats.register("driver");
        let mut worker =
            Worker { orders: Some(orders), untaken, events, ended, left: None, limit, heartbeat, held: 0 };
        if let Err(e) = spawned {
            let (to, events) = unbounded();
            let _ = to.send(Event::Dead { why: format!("cannot start a thread: {e}") });
            (worker.events, worker.left) = (events, Some(Leave::Closed));
        }
        worker
    }

    fn moved(&self) {
        match self.limit {
            Some(limit) if self.held > 0 => self.heartbeat.within(limit),
            _ => self.heartbeat.suspend(),
        }
    }

    /// Returns orders that the thread did not take before it ended.
    fn return_waiting(&mut self, events: &mut Vec<Event>) {
        let why = "another driver takes over";
        for order in self.untaken.try_iter() {
            refuse(order, Pace::Now, why, events);
        }
    }
}

/// Rejects an order that no driver can execute now. Topics and producer ids are ordered again after the next `Ready`.
pub fn refuse(order: Order, pace: Pace, why: &str, events: &mut Vec<Event>) {
    match order {
        Order::Send(batches) => {
            events.extend(batches.into_iter().map(|batch| Event::retry(batch, false, pace, why)));
        }
        Order::Ask { topic, partition, pid } => {
            events.push(Event::Described { topic, partition, pid, last: Err(why.to_owned()) });
        }
        Order::Topic(_) | Order::ProducerId | Order::Change(_) => {}
    }
}

impl Driver for Worker {
    fn order(&mut self, order: Order, _now: Instant) {
        if let Order::Send(batches) = &order {
            let idle = self.held == 0;
            self.held += batches.len();
            if idle {
                self.moved();
            }
        }
        if let Some(orders) = &self.orders {
            let _ = orders.send(order); // cannot fail: `untaken` lives as long
        }
    }

    fn turn(&mut self, _ready: &[PollFlags], _now: Instant, events: &mut Vec<Event>) {
        // Read before the events: the thread sends its events before its end.
        self.left = self.left.take().or_else(|| self.ended.try_recv().ok());
        let before = events.len();
        events.extend(self.events.try_iter());
        if self.left.is_some() {
            self.return_waiting(events);
        }
        let news = &events[before..];
        if !news.is_empty() {
            self.held -= news.iter().filter(|e| matches!(e, Event::Done { .. })).count().min(self.held);
            self.moved();
        }
    }

    fn sockets<'a>(&'a self, _add: &mut Vec<PollFd<'a>>) {}

    fn wake(&self) -> Option<Instant> {
        None
    }

    fn close(&mut self) {
        self.orders = None;
    }

    fn left(&self) -> Option<Leave> {
        self.left.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::producer::driver::Verdict;
    use crate::producer::testing::{batch, chunk, plain};
    use crossbeam_channel::bounded;

    /// Fails when a client that makes progress counts as stuck, one that makes none does not, or a batch it leaves
    /// behind is lost.
    #[test]
    fn a_client_that_makes_no_progress_counts_as_stuck() {
        let context = Context { board: Arc::default(), waker: Waker::new().unwrap() };
        let (proceed, wait) = bounded::<()>(0);
        let run = move |orders: &Receiver<Order>, events: &Outbox, _: &Arc<Board>| {
            let _ = wait.recv();
            let Ok(Order::Send(batches)) = orders.recv() else { return Leave::Closed };
            for batch in batches {
                let _ = events.send(Event::Done { batch, verdict: Verdict::Stored { offset: None } });
            }
            Leave::Incompatible { why: "asked to".into() }
        };
        let mut w = Worker::start(&context, Some(Duration::from_secs(60)), Arc::new(run));
        let one = |n| Order::Send(vec![batch(n, vec![chunk(&plain(1), 0, &[b"a"])])]);
        let late = |s| context.board.heartbeats.overdue(Instant::now() + Duration::from_secs(s)).is_some();
        assert!(!late(70), "it has nothing to do");
        w.order(one(1), Instant::now());
        w.order(one(2), Instant::now());
        assert!(!late(50) && late(70));
        proceed.send(()).unwrap();
        let mut events = Vec::new();
        while w.left().is_none() {
            w.turn(&[], Instant::now(), &mut events);
            thread::yield_now();
        }
        assert!(matches!(
            &events[..],
            [
                Event::Done { verdict: Verdict::Stored { .. }, .. },
                Event::Done { verdict: Verdict::Retry { maybe_stored: false, .. }, .. }
            ]
        ));
        assert!(!late(70));
        assert_eq!(w.left(), Some(Leave::Incompatible { why: "asked to".into() }));
    }
}
