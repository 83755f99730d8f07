//! One broker: its queue and its connection. Connects when there is work, returns the queued batches while it cannot
//! connect, and keeps retrying. `session.rs` runs a connection; `cluster.rs` knows the leaders.

use super::peer::Peer;
use super::{Incompatible, Shared};
use crate::kafka::health::Health;
use crate::kafka::net::connection::ANSWER_CAP;
use crate::kafka::net::dialer::Dial;
use crate::kafka::net::trouble::Trouble;
use crate::kafka::session::{End, Session};
use crate::producer::driver::Pace;
use rustix::event::PollFd;
use std::time::Instant;

#[derive(Debug)]
pub struct Broker {
    pub peer: Peer,
    link: BrokerLink,
    /// Consecutive failed attempts to connect.
    failures: u32,
}

#[derive(Debug)]
enum BrokerLink {
    /// No connection, and no work for one.
    Idle,
    Dialing(Dial),
    Up(Box<Session>),
    /// Backing off: no new connection before `until`, and arriving batches are returned at once.
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
        Broker { peer, link: BrokerLink::Idle, failures: 0 }
    }

    pub fn has_socket(&self) -> bool {
        matches!(self.link, BrokerLink::Up(_))
    }

    pub fn socket(&self) -> Option<PollFd<'_>> {
        if let BrokerLink::Up(session) = &self.link { Some(session.socket()) } else { None }
    }

    pub fn defer_answers(&mut self, defer: bool, now: Instant) {
        if let BrokerLink::Up(session) = &mut self.link {
            session.defer_answers(defer && !self.peer.has_work(), now);
        }
    }

    /// When the next turn is due.
    pub fn wake(&self) -> Option<Instant> {
        match &self.link {
            BrokerLink::Idle | BrokerLink::Dialing(_) => None,
            BrokerLink::Up(session) => session.wake(),
            BrokerLink::Resting { until, .. } => Some(*until),
        }
    }

    /// Something is in flight or waiting.
    pub fn is_busy(&self) -> bool {
        let busy = if let BrokerLink::Up(session) = &self.link { session.is_busy() } else { false };
        busy || self.peer.has_work()
    }

    /// Does what can be done now.
    pub fn turn(&mut self, shared: &mut Shared, mut readable: bool, now: Instant) {
        loop {
            match &mut self.link {
                BrokerLink::Idle if !self.peer.has_work() => return,
                BrokerLink::Idle => self.dial(shared),
                BrokerLink::Dialing(dial) => match dial.result() {
                    None => return,
                    Some(Ok(c)) => {
                        let speaks = format!("modern, Produce {}", c.versions.produce.unwrap_or_default());
                        self.peer.health.up(&speaks);
                        if self.failures > 0 {
                            shared.reachable(&self.peer, true, now);
                        }
                        self.link = BrokerLink::Up(Box::new(Session::new(c, now)));
                    }
                    Some(Err(t)) => {
                        let why = t.to_string();
                        if let (Trouble::Incompatible(_), true) =
                            (&t, shared.options.incompatible != Incompatible::Wait)
                        {
                            shared.incompatible(format!("{}: {why}", self.peer.address));
                        }
                        self.failed(shared, &t, &why, false, now);
                    }
                },
                BrokerLink::Up(session) => match session.turn(&mut self.peer, shared, readable, now) {
                    None => return,
                    Some(end) => self.ended(shared, end, now),
                },
                BrokerLink::Resting { until, why } => {
                    if self.peer.has_work() {
                        let why = self.peer.describe(why);
                        self.peer.return_waiting(shared, Pace::Backoff, &why);
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
        self.link = BrokerLink::Dialing(dial);
    }

    fn ended(&mut self, shared: &mut Shared, end: End, now: Instant) {
        match end {
            // Also when a broker hangs up before the first request.
            End::Idle => {
                self.peer.health.idle();
                self.failures = 0;
                self.link = BrokerLink::Idle;
            }
            End::Lost { why, worked: true } => {
                self.failures = 0;
                self.peer.health.failed(&why, true);
                let why = self.peer.describe(&why);
                self.peer.return_waiting(shared, Pace::Backoff, &why);
                self.dial(shared);
            }
            End::Lost { why, worked: false } => self.failed(shared, &Trouble::Ended, &why, true, now),
        }
    }

    /// Handles a failed attempt. `connected`: it failed after connecting.
    fn failed(&mut self, shared: &mut Shared, t: &Trouble, why: &str, connected: bool, now: Instant) {
        self.peer.health.failed(why, connected);
        shared.reachable(&self.peer, false, now);
        let why = self.peer.describe(why);
        self.peer.return_waiting(shared, Pace::Backoff, &why);
        self.link =
            BrokerLink::Resting { until: now + t.pause(self.failures, &mut shared.rng), why: why.to_owned() };
        self.failures += 1;
    }

    /// Closes the connection and returns all batches.
    pub fn close(mut self, shared: &mut Shared, why: &str) {
        if let BrokerLink::Up(session) = &mut self.link {
            session.abandon(shared, Pace::Now, why);
        }
        self.peer.return_waiting(shared, Pace::Now, why);
        shared.context.board.brokers().remove(&self.peer.address);
    }
}
