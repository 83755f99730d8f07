//! The driver on the `kafka` crate, for brokers up to 3.9. A worker thread takes orders, keeps a session with the
//! cluster, and returns every batch with a verdict. It sends one request at a time and does not retry batches or
//! choose partitions. It has no TLS or SASL (D3, D17: over TLS the crate sends only the first 16 KiB of a frame).
//! Only `client.rs` and `verdict.rs` use the crate itself.
//!
//! This driver exists because our own driver needs Produce v3 (Kafka 0.11). It serves older brokers, and configs with
//! `driver = "classic"`. Everything that fences the crate in (watchdog, sockets, panic hook, stand-ins for `crc` and
//! `byteorder`) is in this folder, so it can be deleted as a whole.
//!
//! Invariant: any failure ends the session, whatever its cause, and the next order sets up a new one (D1, D2: the
//! crate never recovers from a broken connection, and may take a late answer for the next one's).
//!
//! # The `kafka` crate's defects
//!
//! Version 0.10.0. Found in its source; most were observed. Comments and tests here refer to these numbers.
//!
//! | | defect | workaround |
//! |---|---|---|
//! | D1 | Never compares an answer's correlation id: after a timeout, the late answer confirms the next batch, even one that was rejected. | A new client after any error; the broker's timeout is far below the crate's. |
//! | D2 | Keeps a dead connection in its pool forever. | The same, and an idle limit below that of NATs. |
//! | D3 | Sends a frame with one `write`: a signal cuts it short, and TLS sends the first 16 KiB only. | Signals are blocked in the thread; no TLS. |
//! | D4 | Connects without a timeout (some 127 s), and reads with one of 120 s. | A probe first; a watchdog shuts down the socket. |
//! | D5 | Asks only the first bootstrap host that accepts the request. | It gets one host at a time, which has just answered. |
//! | D6 | Reads no answer with `acks = 0`, so errors are invisible. | `all` is the default; a silent connection is checked before use. |
//! | D7 | Asks leaders in turn and discards the first one's answer when the second fails. | One partition, so one leader, per call. |
//! | D8 | `Producer` loads all topics, once. | `KafkaClient` only, recreated every five minutes. |
//! | D9 | Drops metadata's errors; panics where partition ids have gaps; a new topic is "ok, no partitions". | Our own metadata request; panics are caught; an empty list is queried again. |
//! | D10 | Trusts an answer's length and counts: panics, allocates a gigabyte, or aborts the process if that fails. | The probe tells other protocols apart; `byteorder/` stands in for the crate that reads them, and refuses what cannot be; panics are caught. |
//! | D11 | `Producer` sends empty values as null, which is a tombstone. | `produce_messages` with `Some(b"")`. |
//! | D12 | Message format 0: no timestamps, no headers. | None: the modern driver. |
//! | D13 | `with_partitioner` forgets security settings and client id. | The builder is not used. |
//! | D14 | Codes above 35 all look alike. | `byteorder/` keeps the number that was read last, which is the code; with `auto`, the other driver takes over. |
//! | D15 | Asserts on the shape of an answer; on Kafka 4 metadata works and every send fails. | The probe checks versions; a connection closed on a send means "too new". |
//! | D16 | Copies byte by byte, and computes its checksum table for every message; gzip at level 9 only (12 MB/s); no lz4, no zstd. | `crc/` replaces the checksum crate. Snappy, or the modern driver. |
//! | D17 | Hashes keys differently from the Java client; formats IPv6 leaders as `::1:9092`; no SASL; throttling is invisible. | The core chooses partitions; addresses are parsed in the crate's format. |

mod client;
mod request;
mod session;
mod topics;
mod verdict;
mod watchdog;

#[cfg(test)]
mod tests;

pub use client::{CrateCodec, fenced};

use crate::kafka::net::probe;
use crate::producer::Outbox;
use crate::producer::batch::Batch;
use crate::producer::driver::{Acks, Capabilities, Event, Leave, Order, Pace, TopicView, Verdict};
use crate::producer::outage::{Outages, Who};
use crate::producer::record_encoder;
use crate::record::Topic;
use crate::report::Board;
use client::{CallError, Led};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use request::FrameFailed;
use session::{CrateSession, RetryWait};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use watchdog::CallWatchdog;

pub const CAPABILITIES: Capabilities = Capabilities { name: "classic", idempotent: false, in_flight: 1 };

#[derive(Debug, Clone)]
pub struct CrateOptions {
    /// The bootstrap list, `host:port` each.
    pub brokers: Vec<String>,
    pub client_id: String,
    pub acks: Acks,
    pub codec: CrateCodec,
    /// Whether a metadata request may create the topic. Brokers before 0.11 create it regardless, if their own config
    /// says so.
    pub create_topics: bool,
    pub incompatible: OnIncompatible,
    pub limits: TimeLimits,
}

/// What to do about a broker that is incompatible with the `kafka` crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnIncompatible {
    /// Report it and wait: the config requires this driver.
    Wait,
    /// Leave a broker to another driver if it is too new, or rejects our requests although it claims to support them.
    Refused,
    /// Leave a broker to the modern driver if it is too new, or if the modern driver can serve it: this driver was
    /// chosen because the previous broker required it.
    Replaced,
}

/// Timeouts. With the defaults no failure blocks the worker for more than 30 s.
#[derive(Debug, Clone, Copy)]
pub struct TimeLimits {
    /// For connecting to a broker before the crate does, and for its answer.
    pub probe: Duration,
    pub call: watchdog::WatchLimits,
    /// How long the broker may wait for its replicas before it answers. Well below `call.still`, so that the broker,
    /// which knows the reason, answers first (D1).
    pub ack: Duration,
    /// A connection idle for this long is replaced (D2): a NAT may have dropped it, which the crate would not notice.
    pub idle: Duration,
    /// Age at which a session, including topics and leaders, is replaced (D8).
    pub refresh: Duration,
    /// Longest pause between two attempts to reach a broker or to find a topic.
    pub pause: Duration,
    /// Interval between checks of a topic that only an operator can create or grant.
    pub held: Duration,
}

impl Default for TimeLimits {
    fn default() -> Self {
        TimeLimits {
            probe: probe::LIMIT,
            call: watchdog::WatchLimits::default(),
            ack: Duration::from_secs(20),
            idle: Duration::from_secs(25),
            refresh: Duration::from_secs(300),
            pause: Duration::from_secs(2),
            held: Duration::from_secs(60),
        }
    }
}

/// Runs until the core drops its channels or changes to another driver, or the broker needs another driver.
pub fn run(options: &CrateOptions, orders: &Receiver<Order>, events: &Outbox, board: &Arc<Board>) -> Leave {
    let watch = match CallWatchdog::start(options.limits.call) {
        Ok(watch) => watch,
        Err(e) => {
            let _ = events.send(Event::Dead { why: format!("cannot start a thread: {e}") });
            return Leave::Closed;
        }
    };
    let mut worker = CrateWorker {
        options,
        events,
        outages: Outages::new(board),
        watch,
        encoder: record_encoder::RecordEncoder::default(),
        session: None,
        topics: BTreeMap::new(),
        turn: 0,
        wait: RetryWait::default(),
        down: HashMap::new(),
        unproven: HashSet::new(),
        proven: false,
        leaving: None,
    };
    let Err(leave) = worker.work(orders);
    leave
}

/// Why an operation failed.
#[derive(Debug)]
enum Fault {
    Leave(Leave),
    /// Nothing was sent; can be retried.
    Retry(Pace, String),
}

impl From<Leave> for Fault {
    fn from(leave: Leave) -> Self {
        Fault::Leave(leave)
    }
}

struct CrateWorker<'a> {
    options: &'a CrateOptions,
    events: &'a Outbox,
    outages: Outages,
    watch: CallWatchdog,
    encoder: record_encoder::RecordEncoder,
    session: Option<CrateSession>,
    topics: BTreeMap<Topic, TopicState>,
    /// Which bootstrap host is asked first.
    turn: usize,
    /// When the bootstrap list may be tried again, and why it failed.
    wait: RetryWait,
    /// The same for leaders that could not be reached.
    down: HashMap<String, RetryWait>,
    /// Leaders whose last batch got no answer. Answers to other requests do not end their outage.
    unproven: HashSet<String>,
    /// A broker has answered a batch.
    proven: bool,
    /// A batch's answer showed that this broker needs another driver.
    leaving: Option<String>,
}

/// One topic.
#[derive(Debug, Default)]
struct TopicState {
    /// As known to the current client; empty if it was not asked, or there are none.
    led: Vec<Led>,
    /// The last state reported to the core.
    said: Option<TopicView>,
    wait: RetryWait,
    pace: Option<Pace>,
}

impl TopicState {
    /// Needs a re-check: the topic does not exist yet, or a partition has no leader.
    fn is_wanting(&self) -> bool {
        self.said.as_ref().is_none_or(|v| v.available.len() < v.partitions.len())
    }

    fn leader(&self, partition: i32) -> Option<&str> {
        self.led.iter().find(|l| l.partition == partition)?.leader.as_deref()
    }
}

impl CrateWorker<'_> {
    fn work(&mut self, orders: &Receiver<Order>) -> Result<Infallible, Leave> {
        self.say(Event::Ready(CAPABILITIES))?;
        loop {
            let order = match self.next_chore() {
                Some(at) => orders.recv_deadline(at),
                None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match order {
                Ok(Order::Topic(topic)) => self.open_topic(&topic)?,
                Ok(Order::Send(batches)) => self.send(batches)?,
                Ok(Order::ProducerId | Order::Change(_)) => {} // never sent to a driver without sequence numbers
                Ok(Order::Ask { topic, partition, pid }) => {
                    let last = Err("the classic driver cannot ask for a producer's state".to_owned());
                    self.say(Event::Described { topic, partition, pid, last })?;
                }
                Err(RecvTimeoutError::Timeout) => self.chores()?,
                Err(RecvTimeoutError::Disconnected) => return Err(Leave::Closed),
            }
        }
    }

    fn say(&self, event: Event) -> Result<(), Leave> {
        self.events.send(event).map_err(|_| Leave::Closed)
    }

    fn open_topic(&mut self, topic: &Topic) -> Result<(), Leave> {
        let topic_state = self.topics.entry(topic.clone()).or_default();
        if let Some(view) = &topic_state.said {
            let view = view.clone();
            return self.say(Event::Topic(view)); // queried again: the core has dropped its state
        }
        topic_state.wait = RetryWait::default();
        self.quietly(|w| w.learn(topic))
    }

    /// Runs a task that no batch waits for. A failure is already recorded, and the next task meets it again.
    fn quietly(&mut self, act: impl FnOnce(&mut Self) -> Result<(), Fault>) -> Result<(), Leave> {
        match act(self) {
            Ok(()) | Err(Fault::Retry(..)) => Ok(()),
            Err(Fault::Leave(leave)) => Err(leave),
        }
    }

    /// When the next task without an order is due.
    fn next_chore(&self) -> Option<Instant> {
        let refresh = self.session.as_ref().map(|s| s.born + self.options.limits.refresh);
        let wanting = self.topics.values().filter(|l| l.is_wanting()).filter_map(|l| l.wait.until);
        let due = wanting.chain(self.down.values().filter_map(|w| w.until)).min();
        // Without a session, all tasks wait for one.
        let due =
            due.map(|at| if self.session.is_none() { at.max(self.wait.until.unwrap_or(at)) } else { at });
        [refresh, due].into_iter().flatten().min()
    }

    fn chores(&mut self) -> Result<(), Leave> {
        let now = Instant::now();
        if self.session.as_ref().is_some_and(|s| now >= s.born + self.options.limits.refresh) {
            self.drop_session(); // D8: a new client, new metadata, and another look at the broker's version
            let all: Vec<Topic> = self.topics.keys().cloned().collect();
            for topic in all {
                self.quietly(|w| w.learn(&topic))?;
            }
        }
        let due = |w: &RetryWait| w.until.is_some_and(|at| now >= at);
        let down: Vec<String> = self.down.iter().filter(|(_, w)| due(w)).map(|(h, _)| h.clone()).collect();
        for host in down {
            self.quietly(|w| w.reach(&host).map(drop))?;
        }
        let topics = self.topics.iter().filter(|(_, l)| l.is_wanting() && due(&l.wait));
        let topics: Vec<Topic> = topics.map(|(t, _)| t.clone()).collect();
        for topic in topics {
            self.quietly(|w| w.learn(&topic))?;
        }
        Ok(())
    }

    /// Every batch is returned, whatever happens to those before it.
    fn send(&mut self, batches: Vec<Batch>) -> Result<(), Leave> {
        let mut left: Option<String> = None;
        for batch in batches {
            let verdict = match &left {
                Some(why) => incompatible(why),
                None => match self.deliver(&batch) {
                    Ok(verdict) => verdict,
                    Err(Fault::Retry(pace, why)) => Verdict::Retry { maybe_stored: false, pace, why },
                    Err(Fault::Leave(Leave::Incompatible { why })) => incompatible(left.insert(why)),
                    Err(Fault::Leave(leave)) => return Err(leave),
                },
            };
            self.say(Event::Done { batch, verdict })?;
            left = left.or(self.leaving.take());
        }
        left.map_or(Ok(()), |why| Err(Leave::Incompatible { why }))
    }

    fn deliver(&mut self, batch: &Batch) -> Result<Verdict, Fault> {
        let topic = &batch.group.topic;
        self.connect()?;
        let known = |w: &Self| w.topics.get(topic).and_then(|l| l.leader(batch.partition)).map(str::to_owned);
        let leader = match known(self) {
            Some(leader) => leader,
            None => {
                self.learn(topic)?;
                let why = || format!("partition {} has no leader", batch.partition);
                known(self).ok_or_else(|| Fault::Retry(Pace::Backoff, why()))?
            }
        };
        let peers = self.reach(&leader)?;
        let Some(session) = &mut self.session else {
            return Err(Fault::Retry(Pace::Backoff, "the connection must be set up again".to_owned()));
        };
        if !session.is_silent(&leader) {
            self.drop_session();
            let why = format!("{leader}: the connection was closed, or holds an unexpected answer");
            return Err(Fault::Retry(Pace::Now, why));
        }
        let guard = self.watch.guard(peers);
        // A broker that does not support the request at all would silently drop every line (D6), so the first batch
        // of each session requests an answer.
        let acks = match self.options.acks {
            Acks::Zero if !session.proven => Acks::One,
            acks => acks,
        };
        let how = (acks, self.options.limits.ack);
        let done = request::produce(&mut session.client, &mut self.encoder, batch, how);
        let done = done.map_err(|f| FrameFailed { trouble: f.trouble.after(&guard), ..f });
        drop(guard);
        match done {
            Ok(offset) => {
                session.used(&leader, &self.outages.board.traffic.broker(&leader));
                session.proven = true;
                self.proven = true;
                self.unproven.remove(&leader);
                self.outages.works(Who::Broker(&leader), Instant::now());
                Ok(Verdict::Stored { offset })
            }
            Err(failed) => Ok(self.failed(batch, &leader, &failed)),
        }
    }

    /// After a failed call: ends the session, records the reason, and looks up the verdict.
    fn failed(&mut self, batch: &Batch, leader: &str, failed: &FrameFailed) -> Verdict {
        let trouble = &failed.trouble;
        let modern = self.session.as_ref().is_some_and(|s| s.versions.suits_modern());
        self.drop_session();
        let why = verdict::why(trouble);
        if verdict::is_brokers(trouble) {
            self.outages.failed(Who::Broker(leader), &why, Instant::now());
            self.unproven.insert(leader.to_owned());
        }
        if verdict::is_odd(trouble)
            && batch.attempts >= 2
            && modern
            && self.options.incompatible != OnIncompatible::Wait
        {
            self.leaving = Some(why.clone());
        }
        let hangs_up = matches!(trouble, CallError::Closed) && !self.proven && batch.attempts >= 3; // D15
        if (hangs_up || verdict::is_version(trouble))
            && modern
            && self.options.incompatible == OnIncompatible::Refused
        {
            self.leaving = Some(format!("{leader}: {why}"));
        }
        verdict::verdict(failed, batch)
    }
}

fn incompatible(why: &str) -> Verdict {
    Verdict::Retry { maybe_stored: false, pace: Pace::Now, why: format!("another driver takes over: {why}") }
}
