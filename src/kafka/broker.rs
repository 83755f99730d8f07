//! One broker: what waits for it, and its connection. Connects when there is work, gives everything back while it cannot,
//! and tries again until it can. What happens on a connection is in `session.rs`; who leads what, in `cluster.rs`.

use super::{Incompatible, Producer, Shared};
use crate::kafka::health::Health;
use crate::kafka::net::connection::{ANSWER_CAP, Trouble};
use crate::kafka::net::dialer::Dial;
use crate::kafka::protocol::codec::Codec;
use crate::kafka::session::{End, Session};
use crate::producer::batch::Batch;
use crate::producer::driver::{Event, Pace, Refusal, Verdict};
use crate::record::Topic;
use rustix::event::PollFd;
use std::collections::VecDeque;
use std::time::Instant;

/// A broker as its session sees it.
#[derive(Debug)]
pub struct Peer {
    pub node: i32,
    pub address: String,
    /// Batches that are in no request yet, in the order they came.
    pub waiting: VecDeque<Batch>,
    pub asks: VecDeque<Producer>,
    pub health: Health,
    /// The configured one, or what this broker takes instead.
    pub codec: Codec,
}

#[derive(Debug)]
pub struct Broker {
    pub peer: Peer,
    link: Link,
    /// Attempts to connect in a row that failed.
    failures: u32,
}

#[derive(Debug)]
enum Link {
    /// No connection, and no work for one.
    Idle,
    Dialing(Dial),
    Up(Box<Session>),
    /// Not connected again before `until`. What comes meanwhile goes straight back.
    Resting {
        until: Instant,
        why: String,
    },
}

impl Broker {
    pub fn new(node: i32, address: String, shared: &Shared) -> Self {
        let health = Health::new(shared.context.board.clone(), address.clone());
        let codec = shared.options.compression;
        let (waiting, asks) = Default::default();
        let peer = Peer { node, address, waiting, asks, health, codec };
        Broker { peer, link: Link::Idle, failures: 0 }
    }

    pub fn has_socket(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    pub fn socket(&self) -> Option<PollFd<'_>> {
        if let Link::Up(session) = &self.link { Some(session.socket()) } else { None }
    }

    /// When the next turn is due.
    pub fn wake(&self) -> Option<Instant> {
        match &self.link {
            Link::Idle | Link::Dialing(_) => None,
            Link::Up(session) => session.wake(),
            Link::Resting { until, .. } => Some(*until),
        }
    }

    /// Something of this broker is on its way or waits.
    pub fn is_busy(&self) -> bool {
        let busy = if let Link::Up(session) = &self.link { session.is_busy() } else { false };
        busy || self.peer.has_work()
    }

    /// Does what can be done now.
    pub fn turn(&mut self, shared: &mut Shared, mut readable: bool, now: Instant) {
        loop {
            match &mut self.link {
                Link::Idle if !self.peer.has_work() => return,
                Link::Idle => self.dial(shared),
                Link::Dialing(dial) => match dial.result() {
                    None => return,
                    Some(Ok(c)) => {
                        let speaks = format!("modern, Produce {}", c.versions.produce.unwrap_or_default());
                        self.peer.health.up(&speaks);
                        if self.failures > 0 {
                            shared.reachable(&self.peer, true, now);
                        }
                        self.link = Link::Up(Box::new(Session::new(c, now)));
                    }
                    Some(Err(t)) => {
                        let why = t.to_string();
                        if let (Trouble::Incompatible(_), true) =
                            (&t, shared.options.unfit != Incompatible::Wait)
                        {
                            shared.unfit(format!("{}: {why}", self.peer.address));
                        }
                        self.failed(shared, &t, &why, false, now);
                    }
                },
                Link::Up(session) => match session.turn(&mut self.peer, shared, readable, now) {
                    None => return,
                    Some(end) => self.ended(shared, end, now),
                },
                Link::Resting { until, why } => {
                    if self.peer.has_work() {
                        let told = self.peer.told(why);
                        self.peer.give_back(shared, Pace::Backoff, &told);
                    }
                    if now < *until {
                        return;
                    }
                    self.dial(shared);
                }
            }
            readable = false;
        }
    }

    fn dial(&mut self, shared: &Shared) {
        let dial = Dial::start(&self.peer.address, &shared.options, ANSWER_CAP, &shared.context);
        self.link = Link::Dialing(dial);
    }

    fn ended(&mut self, shared: &mut Shared, end: End, now: Instant) {
        match end {
            // Also the end of a broker that hung up before it was asked anything.
            End::Idle => {
                self.peer.health.idle();
                self.failures = 0;
                self.link = Link::Idle;
            }
            End::Lost { why, worked: true } => {
                self.failures = 0;
                self.peer.health.failed(&why, true);
                let told = self.peer.told(&why);
                self.peer.give_back(shared, Pace::Backoff, &told);
                self.dial(shared);
            }
            End::Lost { why, worked: false } => self.failed(shared, &Trouble::Ended, &why, true, now),
        }
    }

    /// An attempt failed; `connected` says whether that came after connecting.
    fn failed(&mut self, shared: &mut Shared, t: &Trouble, why: &str, connected: bool, now: Instant) {
        self.peer.health.failed(why, connected);
        shared.reachable(&self.peer, false, now);
        let told = self.peer.told(why);
        self.peer.give_back(shared, Pace::Backoff, &told);
        self.link =
            Link::Resting { until: now + t.pause(self.failures, &mut shared.rng), why: why.to_owned() };
        self.failures += 1;
    }

    /// Gives all back, wherever it is.
    pub fn close(mut self, shared: &mut Shared, why: &str) {
        if let Link::Up(session) = &mut self.link {
            session.abandon(shared, Pace::Now, why);
        }
        self.peer.give_back(shared, Pace::Now, why);
        shared.context.board.brokers().remove(&self.peer.address);
    }
}

impl Peer {
    fn has_work(&self) -> bool {
        !self.waiting.is_empty() || !self.asks.is_empty()
    }

    /// All that is in no request yet.
    pub fn give_back(&mut self, shared: &mut Shared, pace: Pace, why: &str) {
        for batch in self.waiting.drain(..) {
            let verdict = Verdict::Retry { maybe_stored: false, pace, why: why.to_owned() };
            shared.events.push(Event::Done { batch, verdict });
        }
        self.asks.drain(..).for_each(|asked| shared.knows(&asked, Err(why.to_owned())));
    }

    /// Nothing may overtake a batch that has come back: the broker, if it has forgotten the producer, would take a later
    /// one for its first, and the earlier one could no longer be proved missing.
    pub fn give_back_behind(&mut self, topic: &Topic, partition: i32, shared: &mut Shared) {
        let same = |b: &Batch| b.partition == partition && b.group.topic == *topic;
        if !self.waiting.iter().any(same) {
            return;
        }
        for batch in std::mem::take(&mut self.waiting) {
            if same(&batch) {
                let why = "a batch before it was not stored".to_owned();
                let verdict = Verdict::Retry { maybe_stored: false, pace: Pace::Now, why };
                shared.events.push(Event::Done { batch, verdict });
            } else {
                self.waiting.push_back(batch);
            }
        }
    }

    /// This codec is refused: the next one. Of several requests in flight, only the first refusal counts.
    pub fn leave_codec(&mut self, refused: Codec, why: &str) {
        if refused == self.codec && refused != Codec::None {
            self.codec = refused.fallback();
            let codec = format!("{:?}", self.codec).to_ascii_lowercase();
            log::warn!("{}; using {codec}", self.told(why));
        }
    }

    /// Gives a batch back that was never sent.
    pub fn refuse(&mut self, batch: Batch, what: Refusal, why: String, shared: &mut Shared) {
        let (topic, partition) = (batch.group.topic.clone(), batch.partition);
        shared.events.push(Event::Done { batch, verdict: Verdict::Refused { what, why } });
        self.give_back_behind(&topic, partition, shared);
    }

    /// "broker b1:9092: why".
    pub fn told(&self, why: &str) -> String {
        format!("broker {}: {why}", self.address)
    }
}
