//! The thread of one broker: connects when there is work, gives everything back while it cannot, and tries again until
//! it can. What happens on a connection stands in `session.rs`; who leads what, in `cluster.rs`.

use super::codec::Codec;
use super::connection::{ANSWER_CAP, Connection, Trouble, wait_for};
use super::health::Health;
use super::inbox::{Inbox, Job};
use super::records::Encoder;
use super::session::{End, Session};
use super::wire::Writer;
use super::{News, Shared, Unfit};
use crate::ship::driver::{Pace, Verdict};
use rustix::event::{PollFd, PollFlags};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Broker {
    pub node: i32,
    /// Tells this thread from an earlier one of the same node.
    pub serial: u64,
    pub address: String,
    pub shared: Arc<Shared>,
    pub inbox: Inbox,
    pub health: Health,
    pub encoder: Encoder,
    pub out: Writer,
    /// The configured one, or what this broker takes instead.
    pub codec: Codec,
}

impl Broker {
    pub fn new(node: i32, serial: u64, address: String, shared: Arc<Shared>, inbox: Inbox) -> Self {
        let health = Health::new(shared.board.clone(), address.clone());
        let codec = shared.options.compression;
        let (encoder, out) = Default::default();
        Broker { node, serial, address, shared, inbox, health, encoder, out, codec }
    }

    /// Until the inbox closes.
    pub fn run(mut self) {
        while self.wait_for_work() {
            if !self.connected() {
                break;
            }
        }
        self.give_all_back(Pace::Now, "the driver ends");
        self.shared.news(News::Ended);
    }

    /// `false`: the inbox is closed.
    fn wait_for_work(&self) -> bool {
        while self.inbox.is_empty() {
            if self.inbox.is_closed() {
                return false;
            }
            self.listen(None);
        }
        true
    }

    fn listen(&self, limit: Option<Duration>) {
        let wait = |bell: BorrowedFd<'_>, limit| {
            let mut fds = [PollFd::new(&bell, PollFlags::IN)];
            wait_for(&mut fds, limit).map(|()| ((), !fds[0].revents().is_empty()))
        };
        if let Err(t) = self.inbox.sleep(limit, wait) {
            log::error!("broker {}: poll: {t}", self.address);
        }
    }

    /// From work to idleness, over as many connections as it takes. `false`: the inbox is closed.
    fn connected(&mut self) -> bool {
        let mut failures = 0;
        loop {
            // Jobs stay in the inbox while connecting, where the coordinator can take them back.
            let opened = Connection::open(&self.address, &self.shared.options, ANSWER_CAP);
            if self.inbox.is_closed() {
                return false; // retired meanwhile: the board's line may be another's by now
            }
            match opened {
                Ok(c) => {
                    self.health.up(&format!("modern, Produce {}", c.versions.produce.unwrap_or_default()));
                    if failures > 0 {
                        self.shared.news(News::Up { node: self.node, serial: self.serial });
                    }
                    match Session::new(self, c).run() {
                        // Also the end of a broker that hung up before it was asked anything.
                        End::Idle => {
                            self.health.idle();
                            return true;
                        }
                        End::Closed => return false,
                        End::Lost { why, worked: true } => {
                            failures = 0;
                            self.health.failed(&why, true);
                            self.give_all_back(Pace::Backoff, &why);
                        }
                        End::Lost { why, worked: false } => {
                            self.health.failed(&why, true);
                            self.shared.news(News::Down { node: self.node, serial: self.serial });
                            if !self.sit_out(Trouble::Ended.pause(failures), &why) {
                                return false;
                            }
                            failures += 1;
                        }
                    }
                }
                Err(t) => {
                    let why = t.to_string();
                    if let (Trouble::Unfit(_), true) = (&t, self.shared.options.unfit != Unfit::Wait) {
                        self.shared.news(News::Unfit(format!("{}: {why}", self.address)));
                    }
                    self.health.failed(&why, false);
                    self.shared.news(News::Down { node: self.node, serial: self.serial });
                    if !self.sit_out(t.pause(failures), &why) {
                        return false;
                    }
                    failures += 1;
                }
            }
        }
    }

    /// Waits before the next attempt to connect; work that comes meanwhile goes straight back. `false`: closed.
    fn sit_out(&self, pause: Duration, why: &str) -> bool {
        let until = Instant::now() + pause;
        loop {
            self.give_all_back(Pace::Backoff, why);
            if self.inbox.is_closed() {
                return false;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            self.listen(Some(left));
        }
    }

    pub fn give_all_back(&self, pace: Pace, why: &str) {
        let _ = self.inbox.take(|job| self.shared.give_back(job, pace, &self.told(why)));
    }

    /// "broker b1:9092: why".
    pub fn told(&self, why: &str) -> String {
        format!("broker {}: {why}", self.address)
    }
}

impl Shared {
    /// A job that was never sent.
    pub fn give_back(&self, job: Job, pace: Pace, why: &str) {
        match job {
            Job::Send(batch) => {
                self.done(batch, Verdict::Again { maybe_stored: false, pace, why: why.to_owned() });
            }
            Job::Ask(asked) => self.knows(&asked, Err(why.to_owned())),
        }
    }
}
