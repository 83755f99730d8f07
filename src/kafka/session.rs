//! One connection in use: builds requests from waiting batches, up to five in flight, and reads answers, at once if a
//! line waits for them. Each batch is returned with its verdict; when the connection is lost, all are returned.

mod answers;

use super::{AskedProducer, IN_FLIGHT, Shared};
use crate::kafka::net::connection::{ANSWER_CAP, Connection};
use crate::kafka::net::dialer::Dial;
use crate::kafka::net::trouble::Trouble;
use crate::kafka::peer::Peer;
use crate::kafka::protocol::codec::Codec;
use crate::kafka::protocol::messages::{self, Produced};
use crate::kafka::protocol::producers::Producers;
use crate::kafka::protocol::records::Envelope;
use crate::kafka::protocol::wire::Writer;
use crate::kafka::request::pick;
use crate::producer::batch::Batch;
use crate::producer::driver::{ANSWERS_MAY_WAIT, Acks, Event, Pace, Refusal, Verdict};
use rustix::event::PollFd;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How much longer than its time for the replicas a broker may take before it counts as hung.
const GRACE: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(5) };
/// The slowest uplink, in bytes/s, that is not mistaken for a hung broker: a request's transfer gets this much more
/// time.
const SLOWEST: u64 = 64 << 10;
/// Bytes in flight up to which answers may be read late.
const FEW: u64 = 16 << 10;
/// Why a session ended. All batches in requests have been returned; those not in a request are still waiting.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Idle,
    /// `worked`: at least one request was answered.
    Lost {
        why: String,
        worked: bool,
    },
}

/// A request sent or being sent.
#[derive(Debug)]
struct Request {
    correlation: i32,
    /// When its last byte was sent.
    sent: Instant,
    bytes: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    /// A batch is removed when its verdict is known.
    Produce {
        version: i16,
        /// The acks this request asks for: see [`Session::acks`].
        acks: Acks,
        /// The broker's codec at the time ([`Peer::codec`]).
        codec: Codec,
        batches: Vec<Option<Batch>>,
    },
    Ask {
        asked: AskedProducer,
        answer: Producers,
        /// Unread bytes of the answer; `None`: it has not begun.
        left: Option<usize>,
    },
}

/// A request that is partly written.
#[derive(Debug)]
struct Writing {
    request: Request,
    bytes: Writer,
    /// Bytes of it sent so far.
    at: usize,
}

#[derive(Debug)]
pub struct Session {
    connection: Connection,
    writing: Option<Writing>,
    /// Waiting for their answers, which arrive in this order.
    in_flight: VecDeque<Request>,
    /// No request on this connection has been answered yet: send one alone first.
    fresh: bool,
    /// At least one request has been answered.
    worked: bool,
    /// Throttled until this time.
    quiet: Option<Instant>,
    /// When the last answer arrived or, at first, the session began.
    answered: Instant,
    /// The last answer asks for a new connection, for this reason.
    renew: Option<String>,
    /// The replacement for this connection, whose SASL session expires soon (KIP-368).
    successor: Option<Dial>,
    wake: Option<Instant>,
    /// Answers are not polled for before this time ([`Session::defer_answers`]).
    unread_until: Option<Instant>,
    /// The last answer came too late to be worth deferring: it would cost a wake-up more.
    slow: bool,
    /// Memory for an answer's partitions, each with its index in the request; empty in between.
    said: Vec<(usize, Produced)>,
}

impl Session {
    pub fn new(connection: Connection, now: Instant) -> Self {
        Session {
            connection,
            writing: None,
            in_flight: VecDeque::new(),
            fresh: true,
            worked: false,
            quiet: None,
            answered: now,
            renew: None,
            successor: None,
            wake: None,
            unread_until: None,
            slow: false,
            said: Vec::new(),
        }
    }

    pub fn socket(&self) -> PollFd<'_> {
        self.connection.poll_fd(self.unread_until.is_none(), self.writing.is_some())
    }

    pub fn wake(&self) -> Option<Instant> {
        self.wake.into_iter().chain(self.unread_until).min()
    }

    /// Whether to read answers late ([`crate::producer::driver::Driver::defer_answers`]): only those to few bytes, since
    /// lines in flight hold memory that a tail may wait for.
    pub fn defer_answers(&mut self, defer: bool, now: Instant) {
        let is_produce = |r: &Request| matches!(r.what, What::Produce { .. });
        let few = self.in_flight.iter().map(|r| r.bytes).sum::<u64>() <= FEW
            && self.in_flight.iter().all(is_produce)
            && self.writing.is_none();
        let last = self.in_flight.back().filter(|_| defer && few && !self.slow);
        self.unread_until = last.map(|last| last.sent + ANSWERS_MAY_WAIT).filter(|until| *until > now);
    }

    pub fn is_busy(&self) -> bool {
        self.writing.is_some() || !self.in_flight.is_empty()
    }

    /// Reads what has arrived, and sends what may be sent. `Some`: the connection is over.
    pub fn turn(
        &mut self,
        peer: &mut Peer,
        shared: &mut Shared,
        readable: bool,
        now: Instant,
    ) -> Option<End> {
        let t = match self.work(peer, shared, readable, now) {
            Ok(end) => return end,
            Err(t) => t,
        };
        // A broker that hangs up on everything is not idle.
        if t == Trouble::Ended && !self.is_busy() && (self.worked || peer.waiting.is_empty()) {
            return Some(End::Idle);
        }
        let mut why = t.to_string();
        let produce = |r: &Request| matches!(r.what, What::Produce { .. });
        let asked = self.in_flight.iter().chain(self.writing.as_ref().map(|w| &w.request)).any(produce);
        if t == Trouble::Ended && asked {
            shared.hung_up(&peer.describe(&why));
            if !self.worked {
                // As above `socket.request.max.bytes`; without a produce request, nothing points to one.
                why += "; if this repeats, lower request_max: the request may be too large for it";
            }
        }
        self.abandon(shared, Pace::Backoff, &peer.describe(&why));
        Some(End::Lost { why, worked: self.worked })
    }

    fn work(
        &mut self,
        peer: &mut Peer,
        shared: &mut Shared,
        readable: bool,
        now: Instant,
    ) -> Result<Option<End>, Trouble> {
        self.connection.flush()?;
        let unread = self.unread_until.take().is_some();
        if readable || unread || self.connection.has_more() {
            self.connection.read()?;
            while self.next_answer(peer, shared, now)? {}
            if let Some(why) = self.renew.take() {
                return Err(Trouble::Lost(why.into()));
            }
        }
        self.send(peer, shared, now)?;
        let Some(wake) = self.deadline(peer, shared, now)? else { return Ok(Some(End::Idle)) };
        self.wake = Some(if self.connection.has_more() { now } else { wake });
        Ok(None)
    }

    /// When the next turn is due at the latest. `None`: idle for so long that the connection must be closed.
    fn deadline(&mut self, peer: &Peer, shared: &Shared, now: Instant) -> Result<Option<Instant>, Trouble> {
        let options = &shared.options;
        let allowed = |r: &Request| options.request_timeout + GRACE + Duration::from_secs(r.bytes / SLOWEST);
        let quiet = self.quiet.filter(|q| *q > now && !peer.waiting.is_empty());
        if let Some(first) = self.in_flight.front() {
            let due = first.sent.max(self.answered) + allowed(first);
            if now >= due {
                return Err(Trouble::Lost(format!("no answer within {} s", allowed(first).as_secs()).into()));
            }
            return Ok(Some(quiet.map_or(due, |q| q.min(due))));
        }
        if let Some(Writing { request, .. }) = &self.writing {
            let due = request.sent.max(self.answered) + allowed(request);
            if now >= due {
                return Err(Trouble::Lost("accepts no more data".into()));
            }
            return Ok(Some(due));
        }
        if quiet.is_some() {
            return Ok(quiet);
        }
        if self.successor.is_some() && !peer.waiting.is_empty() {
            return Ok(Some(now + options.idle)); // its expiry wakes us
        }
        let idle_at = self.answered + options.idle;
        Ok((now < idle_at).then_some(idle_at))
    }

    /// Continues writing, and starts further requests while there is room.
    fn send(&mut self, peer: &mut Peer, shared: &mut Shared, now: Instant) -> Result<(), Trouble> {
        loop {
            if let Some(writing) = &mut self.writing {
                let all = writing.bytes.filled();
                let n = self.connection.write(&all[writing.at..])?;
                if n > 0 {
                    (writing.at, writing.request.sent) = (writing.at + n, now);
                }
                if writing.at < all.len() {
                    return Ok(());
                }
            }
            if let Some(Writing { request, bytes, .. }) = self.writing.take() {
                shared.spare = Some(bytes);
                self.sent(request, peer, shared, now);
            }
            let window = if self.fresh || !shared.idempotent { 1 } else { IN_FLIGHT };
            let nothing = peer.waiting.is_empty() && peer.asks.is_empty();
            if nothing || self.in_flight.len() >= window || self.quiet.is_some_and(|q| q > now) {
                return Ok(());
            }
            if !self.is_authenticated(peer, shared)? || !self.begin(peer, shared, now) {
                return Ok(());
            }
        }
    }

    /// Whether a request may be sent on this connection: not when most of its SASL session is over. Checked before a
    /// request instead of by a timer, because the broker closes the connection only on a request after the session's
    /// end (KIP-368). Another connection then takes over once all answers have arrived.
    fn is_authenticated(&mut self, peer: &Peer, shared: &Shared) -> Result<bool, Trouble> {
        if !self.connection.must_renew() {
            return Ok(true);
        }
        let Some(dial) = &self.successor else {
            self.successor = Some(Dial::start(&peer.address, &shared.options, ANSWER_CAP, &shared.context));
            return Ok(false);
        };
        if !self.in_flight.is_empty() {
            return Ok(false);
        }
        let Some(result) = dial.result() else { return Ok(false) };
        self.successor = None;
        self.connection = result?;
        self.fresh = true;
        Ok(true)
    }

    fn sent(&mut self, request: Request, peer: &mut Peer, shared: &mut Shared, now: Instant) {
        match request.what {
            // No answer will arrive.
            What::Produce { batches, acks: Acks::Zero, .. } => {
                self.answered = now;
                peer.health.answered();
                for batch in batches.into_iter().flatten() {
                    shared.events.push(Event::Done { batch, verdict: Verdict::Stored { offset: None } });
                }
            }
            what => self.in_flight.push_back(Request { what, ..request }),
        }
    }

    /// With `acks = 0` a broker that does not support the request at all would silently drop every line, so the first
    /// request of each connection asks for an answer.
    fn acks(&self, shared: &Shared) -> Acks {
        match shared.options.acks {
            Acks::Zero if self.fresh => Acks::One,
            acks => acks,
        }
    }

    /// Encodes the next request. `false`: there is nothing to send.
    fn begin(&mut self, peer: &mut Peer, shared: &mut Shared, now: Instant) -> bool {
        while let Some(asked) = peer.asks.pop_front() {
            if self.connection.versions.describe_producers.is_none() {
                let why = "the broker does not support DescribeProducers (Kafka 2.8)".to_owned();
                shared.producer_described(&asked, Err(why));
                continue;
            }
            let correlation = self.connection.next_correlation();
            let client = &shared.options.client_id;
            let request = messages::ask_producers(correlation, client, &asked.topic, asked.partition);
            let mut bytes = Writer::default();
            bytes.set(&request);
            let answer = Producers::new(&asked.topic, asked.partition, asked.pid);
            let what = What::Ask { asked, answer, left: None };
            let request = Request { correlation, sent: now, bytes: 0, what };
            self.writing = Some(Writing { request, bytes, at: 0 });
            return true;
        }
        while !peer.waiting.is_empty() {
            if self.begin_produce(peer, shared, now) {
                return true;
            }
        }
        false
    }

    /// Encodes the next Produce request. `false`: its only batch would make it too large. That batch is refused here,
    /// since a broker would refuse it or drop the connection (Event Hubs, `socket.request.max.bytes`).
    fn begin_produce(&mut self, peer: &mut Peer, shared: &mut Shared, now: Instant) -> bool {
        let most = shared.options.request_max;
        let mut batches = pick(&mut peer.waiting, most);
        let version = self.connection.versions.produce.unwrap_or(3);
        let correlation = self.connection.next_correlation();
        let acks = self.acks(shared);
        let options = &shared.options;
        let envelope = Envelope {
            version,
            correlation,
            client: &options.client_id,
            acks,
            timeout_ms: options.request_timeout.as_millis().min(i32::MAX as u128) as i32,
            codec: match peer.codec {
                Codec::Zstd if version < 7 => Codec::Gzip,
                codec => codec,
            },
        };
        let mut bytes = shared.spare.take().unwrap_or_default();
        let fitted = shared.encoder.request(&mut bytes, &envelope, &batches, most);
        shared.used = now;
        batches.drain(fitted..).rev().for_each(|batch| peer.waiting.push_front(batch));
        let size = bytes.filled().len();
        if size > most && batches[0].count > 1 {
            shared.spare = Some(bytes);
            let why = format!("the request would be {size} bytes; the limit is {most} (request_max)");
            for batch in batches {
                peer.refuse(batch, Refusal::TooLarge, why.clone(), shared);
            }
            return false;
        }
        let batches = batches.into_iter().map(Some).collect();
        let what = What::Produce { version, acks, codec: peer.codec, batches };
        let request = Request { correlation, sent: now, bytes: size as u64, what };
        self.writing = Some(Writing { request, bytes, at: 0 });
        true
    }

    /// Returns all batches in requests, oldest first.
    pub fn abandon(&mut self, shared: &mut Shared, pace: Pace, why: &str) {
        // A request with an unsent byte cannot have been read completely.
        let writing = self.writing.take().map(|w| (w.request, false));
        let in_flight = self.in_flight.drain(..).map(|r| (r, true));
        for (request, maybe_stored) in in_flight.chain(writing) {
            match request.what {
                What::Produce { batches, .. } => {
                    let batches = batches.into_iter().flatten();
                    shared.events.extend(batches.map(|b| Event::retry(b, maybe_stored, pace, why)));
                }
                What::Ask { asked, .. } => shared.producer_described(&asked, Err(why.to_owned())),
            }
        }
    }
}
