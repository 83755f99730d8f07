//! One connection at work: requests put together from waiting batches, up to five in the air, answers taken as they come.
//! Connects nothing and retries nothing: a batch comes back with its verdict, and when the connection is lost, all do.

use super::broker::Broker;
use super::codec::Codec;
use super::connection::{Connection, Trouble, mismatch};
use super::errors::{self, Also};
use super::inbox::Job;
use super::messages::{self, Produced};
use super::pick::{pick, place};
use super::producers::{self, Producers};
use super::records::Envelope;
use super::wire::Malformed;
use super::{IN_FLIGHT, News, Producer, Unfit};
use crate::ship::driver::{Acks, Pace, Verdict};
use crate::ship::flight::Batch;
use crate::sys::heap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a broker may take beyond the time it was given for its replicas, before it counts as hung.
const GRACE: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(5) };
/// The slowest uplink that is not mistaken for a hung broker: a request gets this much more time for its way, in bytes/s.
const SLOWEST: u64 = 64 << 10;
/// Buffers are given back when there was nothing to do for this long.
const RELEASE: Duration = Duration::from_secs(10);
/// A broker that throttles is believed up to this.
const LONGEST_THROTTLE: Duration = Duration::from_secs(60);

/// Why a session ended. Everything it held has been given back.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Idle,
    /// There is no more work.
    Closed,
    /// `worked`: at least one request had been answered.
    Lost {
        why: String,
        worked: bool,
    },
}

/// A request that was sent, or is being sent.
struct Request {
    correlation: i32,
    /// When its last byte left.
    sent: Instant,
    bytes: u64,
    what: What,
}

enum What {
    /// A batch is taken out when its verdict is known.
    Produce {
        version: i16,
        /// What this request asks for: see [`Session::acks`].
        acks: Acks,
        batches: Vec<Option<Batch>>,
    },
    Ask {
        asked: Producer,
        answer: Producers,
        /// Bytes of the answer that are not read yet; `None`: it has not begun.
        left: Option<usize>,
    },
}

pub struct Session<'b> {
    broker: &'b mut Broker,
    connection: Connection,
    /// Batches not yet in a request, in the order they came.
    waiting: VecDeque<Batch>,
    asks: VecDeque<Producer>,
    /// Being written: `out` up to here has left.
    writing: Option<(Request, usize)>,
    /// Waiting for their answers, which come in this order.
    air: VecDeque<Request>,
    /// No request has been answered yet: one alone, then more.
    fresh: bool,
    /// Throttled until then.
    quiet: Option<Instant>,
    /// When the last answer came or, at first, the session began.
    answered: Instant,
    /// The answer just read asks for a new connection.
    renew: Option<String>,
}

impl<'b> Session<'b> {
    pub fn new(broker: &'b mut Broker, connection: Connection) -> Self {
        Session {
            broker,
            connection,
            waiting: VecDeque::new(),
            asks: VecDeque::new(),
            writing: None,
            air: VecDeque::new(),
            fresh: true,
            quiet: None,
            answered: Instant::now(),
            renew: None,
        }
    }

    pub fn run(mut self) -> End {
        let worked = |s: &Self| !s.fresh;
        match self.work() {
            Ok(end) => {
                self.abandon(Pace::Now, "the driver ends");
                end
            }
            Err(Trouble::Ended)
                if self.air.is_empty() && self.writing.is_none() && self.waiting.is_empty() =>
            {
                self.abandon(Pace::Now, "closed while idle");
                End::Idle
            }
            Err(t) => {
                let why = t.to_string();
                let told = self.broker.told(&why);
                let produce = |r: &Request| matches!(r.what, What::Produce { .. });
                let asked = self.air.iter().chain(self.writing.as_ref().map(|(r, _)| r)).any(produce);
                if t == Trouble::Ended && asked {
                    self.broker.shared.hung_up(&told);
                }
                self.abandon(Pace::Backoff, &told);
                End::Lost { why, worked: worked(&self) }
            }
        }
    }

    fn work(&mut self) -> Result<End, Trouble> {
        loop {
            let (waiting, asks) = (&mut self.waiting, &mut self.asks);
            let open = self.broker.inbox.take(|job| match job {
                Job::Send(batch) => waiting.push_back(batch),
                Job::Ask(asked) => asks.push_back(asked),
            });
            if !open {
                return Ok(End::Closed);
            }
            self.sift();
            self.send()?;
            let now = Instant::now();
            let Some(limit) = self.limit(now)? else { return Ok(End::Idle) };
            let (connection, write) = (&mut self.connection, self.writing.is_some());
            let readable = self
                .broker
                .inbox
                .sleep(Some(limit), |bell, limit| connection.wait(write, Some(bell), limit))?;
            if readable {
                self.connection.read()?;
                while self.next_answer()? {}
                if let Some(why) = self.renew.take() {
                    return Err(Trouble::Lost(why));
                }
            }
        }
    }

    /// How long to wait at most. `None`: idle for so long that the connection is to be closed.
    fn limit(&mut self, now: Instant) -> Result<Option<Duration>, Trouble> {
        let options = &self.broker.shared.options;
        let allowed = |r: &Request| options.request_timeout + GRACE + Duration::from_secs(r.bytes / SLOWEST);
        if let Some(first) = self.air.front() {
            let due = first.sent.max(self.answered) + allowed(first);
            if now >= due {
                return Err(Trouble::Lost(format!("no answer within {} s", allowed(first).as_secs())));
            }
            let wake =
                self.quiet.filter(|q| *q > now && !self.waiting.is_empty()).map_or(due, |q| q.min(due));
            return Ok(Some(wake - now));
        }
        if let Some((r, _)) = &self.writing {
            let due = r.sent.max(self.answered) + allowed(r);
            if now >= due {
                return Err(Trouble::Lost("takes nothing more".into()));
            }
            return Ok(Some(due - now));
        }
        if let Some(quiet) = self.quiet.filter(|q| *q > now && !self.waiting.is_empty()) {
            return Ok(Some(quiet - now));
        }
        let idle = now - self.answered;
        if idle >= options.idle {
            return Ok(None);
        }
        if idle >= RELEASE && self.broker.out.held() > 0 {
            self.broker.out = Default::default();
            self.broker.encoder.release();
            heap::trim();
        }
        let next = if idle < RELEASE { RELEASE.min(options.idle) } else { options.idle };
        Ok(Some(next - idle))
    }

    /// Writes what is being written, and begins the next requests while there is room.
    fn send(&mut self) -> Result<(), Trouble> {
        loop {
            if let Some((mut request, mut at)) = self.writing.take() {
                match self.connection.write(&self.broker.out.filled()[at..]) {
                    Ok(0) => {}
                    Ok(n) => (at, request.sent) = (at + n, Instant::now()),
                    Err(t) => {
                        self.writing = Some((request, at));
                        return Err(t);
                    }
                }
                if at < self.broker.out.filled().len() {
                    self.writing = Some((request, at));
                    return Ok(());
                }
                self.sent(request);
            }
            if self.connection.must_renew() {
                if !self.air.is_empty() {
                    return Ok(()); // what comes back first are those answers
                }
                self.connection.authenticate(&self.broker.shared.options)?;
            }
            let window = if self.fresh || !self.broker.shared.numbered() { 1 } else { IN_FLIGHT };
            if self.air.len() >= window || self.quiet.is_some_and(|q| q > Instant::now()) || !self.begin() {
                return Ok(());
            }
        }
    }

    fn sent(&mut self, request: Request) {
        match request.what {
            // Nothing comes.
            What::Produce { batches, acks: Acks::Zero, .. } => {
                self.answered = request.sent;
                self.broker.health.answered();
                for batch in batches.into_iter().flatten() {
                    self.broker.shared.done(batch, Verdict::Stored { offset: None });
                }
            }
            what => self.air.push_back(Request { what, ..request }),
        }
    }

    /// With `acks = 0` a broker that takes no such request at all would swallow every line without a word, so the first
    /// request of each connection asks for an answer.
    fn acks(&self) -> Acks {
        match self.broker.shared.options.acks {
            Acks::Zero if self.fresh => Acks::One,
            acks => acks,
        }
    }

    /// Puts the next request into `out`. `false`: there is nothing to send.
    fn begin(&mut self) -> bool {
        let now = Instant::now();
        if let Some(asked) = self.asks.pop_front() {
            if self.connection.versions.describe_producers.is_none() {
                let why = "the broker cannot tell (DescribeProducers, from 2.8)".to_owned();
                self.broker.shared.knows(&asked, Err(why));
                return self.begin();
            }
            let correlation = self.connection.next_correlation();
            let client = &self.broker.shared.options.client_id;
            let request = messages::ask_producers(correlation, client, &asked.topic, asked.partition);
            self.broker.out.set(&request);
            let answer = Producers::new(&asked.topic, asked.partition, asked.pid);
            let what = What::Ask { asked, answer, left: None };
            self.writing = Some((Request { correlation, sent: now, bytes: 0, what }, 0));
            return true;
        }
        let batches = pick(&mut self.waiting, self.broker.shared.options.request_max);
        if batches.is_empty() {
            return false;
        }
        let version = self.connection.versions.produce.unwrap_or(3);
        let correlation = self.connection.next_correlation();
        let options = &self.broker.shared.options;
        let envelope = Envelope {
            version,
            correlation,
            client: &options.client_id,
            acks: self.acks(),
            timeout_ms: options.request_timeout.as_millis().min(i32::MAX as u128) as i32,
            codec: match self.broker.codec {
                Codec::Zstd if version < 7 => Codec::Gzip,
                codec => codec,
            },
        };
        self.broker.encoder.request(&mut self.broker.out, &envelope, &batches);
        let bytes = self.broker.out.filled().len() as u64;
        let (acks, batches) = (self.acks(), batches.into_iter().map(Some).collect());
        let what = What::Produce { version, acks, batches };
        self.writing = Some((Request { correlation, sent: now, bytes, what }, 0));
        true
    }

    /// Takes the next answer, if it is here. `false`: it is not, or not as a whole.
    fn next_answer(&mut self) -> Result<bool, Trouble> {
        if let Some(Request { what: What::Ask { .. }, .. }) = self.air.front() {
            return self.answer_by_parts();
        }
        let Some((correlation, body)) = self.connection.frame()? else { return Ok(false) };
        self.answer(correlation, body)?;
        Ok(true)
    }

    /// The answer to DescribeProducers may be larger than any other.
    fn answer_by_parts(&mut self) -> Result<bool, Trouble> {
        let Some(Request { correlation, bytes, what: What::Ask { answer, left, .. }, .. }) =
            self.air.front_mut()
        else {
            return Ok(false);
        };
        let rest = match left {
            Some(rest) => rest,
            None => {
                let Some((got, all)) = self.connection.begin_parts(producers::CAP)? else { return Ok(false) };
                if got != *correlation {
                    return Err(mismatch(got, *correlation));
                }
                *bytes = all as u64; // it may take as long as a request of that size
                left.insert(all)
            }
        };
        let part = self.connection.part(*rest);
        let read = answer.read(part, *rest - part.len())?;
        self.connection.took_part(read);
        *rest -= read;
        if *rest > 0 {
            return Ok(false);
        }
        if let Some(Request { what: What::Ask { asked, answer, .. }, .. }) = self.air.pop_front() {
            match answer.known() {
                Ok(known) => {
                    let known = known.map_err(|(code, message)| errors::text(code, &message));
                    self.broker.shared.knows(&asked, known);
                }
                Err(e) => {
                    self.asks.push_front(asked);
                    return Err(e.into());
                }
            }
        }
        self.has_answered();
        Ok(true)
    }

    fn has_answered(&mut self) {
        self.fresh = false;
        self.answered = Instant::now();
        self.broker.health.answered();
    }

    fn answer(&mut self, correlation: i32, body: std::ops::Range<usize>) -> Result<(), Trouble> {
        let Some(mut request) = self.air.pop_front() else {
            return Err(Trouble::Lost("an answer that nobody asked for".into()));
        };
        if request.correlation != correlation {
            let due = request.correlation;
            self.air.push_front(request);
            return Err(mismatch(correlation, due));
        }
        let body = self.connection.body(body);
        match &mut request.what {
            What::Ask { .. } => {} // taken by parts
            What::Produce { version, batches, .. } => {
                let mut said = Vec::with_capacity(batches.len());
                let read = messages::produced(body, *version, |topic, p| {
                    if said.len() == batches.len() {
                        return Err(Malformed("more partitions than were asked about"));
                    }
                    said.push((place(batches, topic, p.partition, said.len())?, p));
                    Ok(())
                });
                let (throttle, nodes) = match read {
                    Ok(read) => read,
                    Err(e) => {
                        self.air.push_front(request);
                        return Err(e.into());
                    }
                };
                let nodes: Arc<[messages::Node]> = nodes.into();
                for (i, p) in said {
                    if let Some(batch) = batches[i].take() {
                        self.verdict(batch, p, &nodes);
                    }
                }
                if batches.iter().any(Option::is_some) {
                    self.air.push_front(request);
                    return Err(Trouble::Lost("an answer without one of the partitions asked".into()));
                }
                self.broker.shared.takes_ours();
                self.throttle(throttle);
            }
        }
        self.has_answered();
        Ok(())
    }

    fn throttle(&mut self, ms: i32) {
        if let Some(ms) = u64::try_from(ms).ok().filter(|ms| *ms > 0) {
            let pause = Duration::from_millis(ms).min(LONGEST_THROTTLE);
            log::debug!("broker {} throttles for {} ms", self.broker.address, pause.as_millis());
            self.quiet = Some(Instant::now() + pause);
        }
    }

    /// Says what became of a batch, and does what else the code asks for.
    fn verdict(&mut self, batch: Batch, p: Produced, nodes: &Arc<[messages::Node]>) {
        if errors::is_ours_unknown(p.error) && self.broker.shared.options.unfit == Unfit::Refused {
            let why = errors::text(p.error, &p.message);
            self.broker.shared.news(News::Unfit(self.broker.told(&why)));
        }
        let mut verdict = errors::verdict(p.error, &p.message, p.offset, &p.bad, batch.attempts, batch.count);
        let topic = &batch.load.topic;
        match errors::of(p.error).also {
            Also::Nothing => {}
            Also::FindLeader => match p.leader.filter(|l| l.0 != self.broker.node) {
                Some((leader, epoch)) => {
                    let (topic, nodes) = (topic.clone(), nodes.clone());
                    self.broker.shared.news(News::Leader {
                        topic,
                        partition: p.partition,
                        leader,
                        epoch,
                        nodes,
                    });
                    if let Verdict::Again { pace, .. } = &mut verdict {
                        *pace = Pace::Now;
                    }
                }
                None => {
                    self.broker.shared.news(News::Stale { topic: topic.clone(), partition: p.partition });
                }
            },
            Also::Reconnect => self.renew = Some(errors::text(p.error, &p.message)),
            Also::Uncompressed => {
                if self.broker.codec != Codec::None {
                    log::warn!(
                        "{}; sending uncompressed",
                        self.broker.told(&errors::text(p.error, &p.message))
                    );
                    self.broker.codec = Codec::None;
                }
            }
        }
        self.broker.shared.done(batch, verdict);
        self.sift();
    }

    /// Gives back what may not overtake a batch that has come back.
    fn sift(&mut self) {
        let shared = &self.broker.shared;
        if shared.fences.any() {
            for batch in std::mem::take(&mut self.waiting) {
                if shared.fences.admit(&batch) {
                    self.waiting.push_back(batch);
                } else {
                    shared.give_back(Job::Send(batch), Pace::Now, "a batch before it was not stored");
                }
            }
        }
    }

    /// Gives back all that is held, oldest first.
    fn abandon(&mut self, pace: Pace, why: &str) {
        let shared = self.broker.shared.clone();
        // A request of which a byte has not left cannot have been read as a whole.
        let writing = self.writing.take().map(|(r, _)| (r, false));
        let air = self.air.drain(..).map(|r| (r, true)).collect::<Vec<_>>();
        for (request, maybe_stored) in air.into_iter().chain(writing) {
            match request.what {
                What::Produce { batches, .. } => {
                    for batch in batches.into_iter().flatten() {
                        let why = why.to_owned();
                        shared.done(batch, Verdict::Again { maybe_stored, pace, why });
                    }
                }
                What::Ask { asked, .. } => shared.give_back(Job::Ask(asked), pace, why),
            }
        }
        self.waiting.drain(..).for_each(|b| shared.give_back(Job::Send(b), pace, why));
        self.asks.drain(..).for_each(|a| shared.give_back(Job::Ask(a), pace, why));
    }
}
