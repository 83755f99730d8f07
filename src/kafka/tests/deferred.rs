//! Answers that nothing waits for, in turns taken by hand.

use super::*;
use crate::producer::driver::{ANSWERS_MAY_WAIT, Context, Driver};
use crate::waker::{Waker, poll_for};
use rustix::event::{PollFd, PollFlags};

/// A driver whose turns the test takes.
struct ByHand {
    client: client::Client,
    ready: Vec<PollFlags>,
    events: Vec<Event>,
}

impl ByHand {
    /// A turn; then polls for `ms`. Returns whether a socket was ready. `defer`: no line waits for an answer.
    fn step(&mut self, defer: bool, ms: u64) -> bool {
        self.client.turn(&std::mem::take(&mut self.ready), Instant::now(), &mut self.events);
        self.client.defer_answers(defer, Instant::now());
        self.poll(ms)
    }

    fn poll(&mut self, ms: u64) -> bool {
        let mut fds = Vec::new();
        self.client.sockets(&mut fds);
        poll_for(&mut fds, Some(Duration::from_millis(ms))).unwrap();
        self.ready = fds.iter().map(PollFd::revents).collect();
        self.ready.iter().any(|found| !found.is_empty())
    }

    fn verdicts(&mut self) -> Vec<Verdict> {
        let done = |event| if let Event::Done { verdict, .. } = event { Some(verdict) } else { None };
        self.events.drain(..).filter_map(done).collect()
    }

    /// A turn that reads one answer.
    fn read_one(&mut self) -> Verdict {
        self.step(true, 0);
        let mut all = self.verdicts();
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    /// Sends a batch; returns the broker's side once it is there.
    fn send(&mut self, peers: &Peers, defer: bool) -> Asked {
        self.client.order(Order::Send(vec![one(0, 0)]), Instant::now());
        self.step(defer, 0);
        peers.next()
    }
}

/// Fails when the answer to a lone line wakes the producer although nothing waits for it, is not read with the next
/// turn, when the end of the connection is noticed late, when an answer may wait for longer than it should, or when
/// answers of a slow broker cost a wake-up more.
#[test]
fn an_answer_that_no_line_waits_for_wakes_no_thread() {
    let peers = Peers::start(1);
    let context = Context { board: Arc::default(), waker: Waker::new().unwrap() };
    let client = client::Client::new(Arc::new(peers.options()), context);
    let mut d = ByHand { client, ready: Vec::new(), events: Vec::new() };
    d.client.order(Order::Topic("t".into()), Instant::now());
    while !d.events.iter().any(|e| matches!(e, Event::Topic(view) if !view.available.is_empty())) {
        d.step(false, 10);
    }
    d.client.order(Order::Send(vec![one(0, 0)]), Instant::now());
    let until = Instant::now() + Duration::from_secs(30);
    let first = loop {
        d.step(false, 10);
        if let Ok(asked) = peers.asked.try_recv() {
            break asked;
        }
        assert!(Instant::now() < until);
    };
    first.answer_all(0);
    while d.verdicts().is_empty() {
        d.step(false, 100);
    }
    // Deferred, and read with the next turn.
    let asked = d.send(&peers, true);
    asked.answer_all(0);
    assert!(!d.poll(20), "the answer wakes the producer");
    assert!(d.client.wake().unwrap() <= Instant::now() + ANSWERS_MAY_WAIT);
    d.read_one();
    // A line waits for it.
    d.send(&peers, false).answer_all(0);
    assert!(d.step(false, 5000));
    d.read_one();
    // Later than it may be deferred, and so late that the next one is not.
    let asked = d.send(&peers, true);
    peers.nothing_within(150);
    assert!(!d.step(true, 0));
    asked.answer_all(0);
    assert!(d.step(true, 5000), "an answer of a slow broker is not polled for");
    d.read_one();
    d.send(&peers, true).answer_all(0);
    assert!(d.step(true, 5000));
    d.read_one();
    // The connection ends while its answers are deferred.
    let asked = d.send(&peers, true);
    asked.close();
    assert!(d.poll(5000), "the end of the connection is not noticed");
    assert!(again(&d.read_one()).0);
}
