//! The metadata fetcher: asks any broker for topics, leaders and producer ids.
//!
//! It has its own connection, so that a metadata request never waits behind a batch that waits for its replicas, and a
//! hung bootstrap broker does not delay batches.

mod candidates;

use super::protocol::{errors, messages};
use super::{Incompatible, Shared};
use crate::error::Reason;
use crate::kafka::health::Health;
use crate::kafka::net::connection::{Call, Connection, METADATA_CAP};
use crate::kafka::net::dialer::Dial;
use crate::kafka::net::probe::HURRY;
use crate::kafka::net::trouble::Trouble;
use crate::producer::driver::{Event, Pace};
use crate::producer::outage;
use crate::record::Topic;
use crate::report::Board;
use candidates::{BootstrapBroker, Candidates};
use rustix::event::PollFd;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A pending request for a producer id.
#[derive(Debug)]
struct ProducerId {
    /// Not before this time.
    at: Instant,
    /// How many times a broker has answered "not now".
    tries: u32,
}

enum Link {
    None,
    Dialing(Vec<BootstrapDial>),
    Up(Box<Up>),
}

/// An attempt to connect to a broker of the round.
#[derive(Debug)]
struct BootstrapDial {
    to: BootstrapBroker,
    dial: Dial,
}

/// Attempts at the same time: a broker that hangs must not keep the others waiting.
const ATTEMPTS: usize = 4;

struct Up {
    connection: Connection,
    /// The request in flight.
    asked: Option<Asked>,
    /// Since the last answer.
    idle: Instant,
}

struct Asked {
    question: Question,
    version: i16,
    call: Call<'static>,
}

#[derive(Debug)]
enum Question {
    Metadata(Vec<Topic>),
    ProducerId,
}

/// One pass through the brokers, until one of them has answered a question for metadata.
#[derive(Debug)]
struct Round {
    rest: VecDeque<BootstrapBroker>,
    /// The broker that is connected.
    at: Option<BootstrapBroker>,
    /// When the next broker is tried although the others may still answer.
    next: Instant,
    /// After this time the round ends once one of each kind was tried; the next round starts with others.
    until: Instant,
    tried: [usize; 2],
}

pub struct Fetcher {
    link: Link,
    round: Option<Round>,
    producer_id: Option<ProducerId>,
    health: Health,
    candidates: Candidates,
    /// Consecutive rounds in which no broker could be asked.
    failures: u32,
    /// When the next round may start.
    next_round: Instant,
}

/// A broker that does not answer these requests within this time is hung; in a first round the others get their turn
/// sooner.
fn patience(shared: &Shared) -> Duration {
    shared.options.request_timeout.min(Duration::from_secs(10))
}

impl Fetcher {
    pub fn new(board: Arc<Board>) -> Self {
        Fetcher {
            link: Link::None,
            round: None,
            producer_id: None,
            health: Health::new(board, "bootstrap".into()),
            candidates: Candidates::default(),
            failures: 0,
            next_round: Instant::now(),
        }
    }

    pub fn want_producer_id(&mut self, now: Instant) {
        self.producer_id.get_or_insert(ProducerId { at: now, tries: 0 });
    }

    pub fn has_socket(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    pub fn socket(&self) -> Option<PollFd<'_>> {
        let Link::Up(up) = &self.link else { return None };
        Some(match &up.asked {
            Some(asked) => asked.call.poll_fd(&up.connection),
            None => up.connection.poll_fd(true, false),
        })
    }

    pub fn close(&mut self) {
        (self.link, self.round) = (Link::None, None);
    }

    pub fn wake(&self, shared: &Shared) -> Option<Instant> {
        let due = self.due(shared);
        match &self.link {
            Link::Dialing(attempts) => self.next_attempt(attempts),
            Link::None => due.map(|at| at.max(self.next_round)),
            Link::Up(up) => match &up.asked {
                Some(asked) => Some(asked.call.deadline),
                None => due.into_iter().chain([up.idle + shared.options.idle]).min(),
            },
        }
    }

    fn next_attempt(&self, attempts: &[BootstrapDial]) -> Option<Instant> {
        let round = self.round.as_ref().filter(|r| !r.rest.is_empty() && attempts.len() < ATTEMPTS)?;
        Some(round.next)
    }

    /// When the next request is due.
    fn due(&self, shared: &Shared) -> Option<Instant> {
        shared.cluster.next_due().into_iter().chain(self.producer_id.as_ref().map(|p| p.at)).min()
    }

    /// Does what can be done now. `true`: the cluster's brokers may have changed.
    pub fn turn(&mut self, shared: &mut Shared, mut readable: bool, now: Instant) -> bool {
        let mut learned = false;
        loop {
            let is_due = self.due(shared).is_some_and(|at| at <= now);
            match &mut self.link {
                Link::None => {
                    if !is_due || now < self.next_round || !self.begin_round(shared, now) {
                        return learned;
                    }
                }
                Link::Dialing(attempts) => match finished(attempts) {
                    None => {
                        let Link::Dialing(attempts) = &self.link else { return learned };
                        if self.next_attempt(attempts).is_none_or(|at| now < at) {
                            return learned;
                        }
                        self.dial_next(shared, now);
                    }
                    Some((to, Ok(connection))) => {
                        if let Some(round) = &mut self.round {
                            round.at = Some(to);
                        }
                        self.link = Link::Up(Box::new(Up { connection, asked: None, idle: now }));
                        // Ask at once, even if nothing is due any more: only an answer proves the connection good.
                        self.ask(shared, now);
                    }
                    Some((to, Err(t))) => self.next_of_round(to, &t, shared, now),
                },
                Link::Up(up) if up.asked.is_none() => {
                    // Closed by the broker for being idle, or by us.
                    let idle = now >= up.idle + shared.options.idle;
                    if idle || (readable && up.connection.read().is_err()) {
                        self.link = Link::None;
                        self.round = None;
                        self.health.idle();
                    } else if is_due {
                        if up.connection.must_renew() {
                            self.link = Link::None; // a new connection, with a new SASL session
                        } else {
                            self.ask(shared, now);
                        }
                    } else {
                        return learned;
                    }
                }
                Link::Up(up) => {
                    let Some(asked) = &mut up.asked else { return learned };
                    match asked.call.turn(&mut up.connection, readable, now) {
                        Ok(None) => return learned,
                        Ok(Some(body)) => learned |= self.answered(body, shared, now),
                        Err(t) => self.lost(t, shared, now),
                    }
                }
            }
            readable = false;
        }
    }

    /// Sends the next request.
    fn ask(&mut self, shared: &mut Shared, now: Instant) {
        let Link::Up(up) = &mut self.link else { return };
        let options = &shared.options;
        let topics = shared.cluster.due(now);
        let correlation = up.connection.next_correlation();
        let (question, version, request) =
            if topics.is_empty() && self.producer_id.as_ref().is_some_and(|p| p.at <= now) {
                let Some(version) = up.connection.versions.init_producer_id else {
                    return self.no_producer_ids("the broker has no InitProducerId", shared, now);
                };
                let request = messages::ask_producer_id(version, correlation, &options.client_id);
                (Question::ProducerId, version, request)
            } else {
                let version = up.connection.versions.metadata.unwrap_or(1);
                let names: Vec<&str> = topics.iter().map(|t| &**t).collect();
                let (client, create) = (&options.client_id, options.create_topics);
                let request = messages::ask_metadata(version, correlation, client, &names, create);
                (Question::Metadata(topics), version, request)
            };
        let others = self.failures == 0 && self.round.as_ref().is_some_and(|r| !r.rest.is_empty());
        let limit = if others { patience(shared).min(HURRY) } else { patience(shared) };
        let call = Call::new(request.into(), correlation, now + limit);
        up.asked = Some(Asked { question, version, call });
    }

    /// Processes the answer. `true`: it was metadata.
    fn answered(&mut self, body: std::ops::Range<usize>, shared: &mut Shared, now: Instant) -> bool {
        let Link::Up(up) = &mut self.link else { return false };
        let Some(Asked { question, version, .. }) = up.asked.take() else { return false };
        up.idle = now;
        let body = up.connection.body(body);
        let done = match question {
            Question::Metadata(topics) => {
                let names: Vec<&str> = topics.iter().map(|t| &**t).collect();
                match messages::metadata(body, version, &names) {
                    Ok(answer) if answer.nodes.is_empty() => {
                        Err(Trouble::Lost("it knows no brokers yet".into()))
                    }
                    Ok(answer) => {
                        self.candidates.learned =
                            answer.nodes.iter().map(|node| node.address.clone()).collect();
                        let before = shared.cluster.id.clone();
                        let views = shared.cluster.learn(answer, &topics, now);
                        if before.is_some() && before != shared.cluster.id {
                            shared.events.push(Event::OtherCluster);
                        }
                        for topic in &topics {
                            let why = shared.cluster.trouble(topic);
                            outage::show_topic(&shared.context.board, topic, why, now);
                        }
                        shared.tell(views);
                        Ok(true)
                    }
                    Err(e) => Err(e.into()),
                }
            }
            Question::ProducerId => match messages::producer_id(body, version) {
                Ok(answer) => {
                    self.producer_id(answer, shared, now);
                    Ok(false)
                }
                Err(e) => Err(e.into()),
            },
        };
        match done {
            Ok(learned) => {
                // Only now: a broker that hangs up on every request would otherwise flap between up and down.
                if let Some(Round { at: Some((_, address)), .. }) = &self.round {
                    self.health.up(&format!("{address}, modern"));
                    self.candidates.last = Some(address.clone());
                    self.failures = 0;
                }
                // Until then the others of the round are asked soon if this one does not answer.
                if learned {
                    self.round = None;
                }
                learned
            }
            Err(t) => {
                self.lost(t, shared, now);
                false
            }
        }
    }

    fn no_producer_ids(&mut self, why: &str, shared: &mut Shared, now: Instant) {
        if shared.options.once {
            let why = format!("{why}, which exactly-once needs");
            let why = Reason::new(why, "set delivery = \"at-least-once\"");
            return self.lost(Trouble::Lost(why), shared, now);
        }
        self.producer_id = None;
        shared.go_without_producer_ids(why);
    }

    fn producer_id(&mut self, (error, pid, epoch): (i16, i64, i16), shared: &mut Shared, now: Instant) {
        let Some(asked) = &mut self.producer_id else { return };
        if error == 0 {
            shared.events.push(Event::ProducerId { pid, epoch });
            self.producer_id = None;
            return;
        }
        if error == 35 {
            return self.no_producer_ids(&errors::text(error, ""), shared, now);
        }
        if shared.options.incompatible == Incompatible::Refused && matches!(error, 31 | 53) {
            shared.incompatible(format!("no producer id: {}", errors::text(error, "")));
        }
        // A broker that has just started, or has never assigned an id, answers 14 once or twice.
        if asked.tries >= 3 && (asked.tries + 1).is_power_of_two() {
            log::warn!("no producer id: {}; asking again", errors::text(error, ""));
        }
        asked.at = now
            + match errors::of(error).fate {
                errors::Fate::Retry(Pace::Blocked) => Duration::from_secs(60),
                _ => Trouble::Ended.pause(asked.tries, &mut shared.rng),
            };
        asked.tries += 1;
    }

    /// The connection is lost, most likely closed for being idle. Ask again on a new one.
    fn lost(&mut self, t: Trouble, shared: &mut Shared, now: Instant) {
        self.link = Link::None;
        if let Some(at) = self.round.as_mut().and_then(|round| round.at.take()) {
            let t = shut_out(t, shared);
            return self.next_of_round(at, &t, shared, now);
        }
        self.health.searching(&t.to_string());
        self.begin_round(shared, now);
    }

    /// `false`: there is no broker to ask.
    fn begin_round(&mut self, shared: &Shared, now: Instant) -> bool {
        let rest: VecDeque<_> = self.candidates.round(&shared.options.brokers).into();
        if rest.is_empty() {
            self.next_round = now + shared.options.idle;
            return false;
        }
        let until = now + shared.options.connect_timeout;
        self.round = Some(Round { rest, at: None, next: now, until, tried: [0; 2] });
        self.dial_next(shared, now);
        true
    }

    /// Starts an attempt to connect to the next broker of the round. `false`: there is none.
    fn dial_next(&mut self, shared: &Shared, now: Instant) -> bool {
        let Some(round) = &mut self.round else { return false };
        let Some(to) = round.rest.pop_front() else { return false };
        round.next = now + HURRY;
        let dial = Dial::start(&to.1, &shared.options, METADATA_CAP, &shared.context);
        let attempt = BootstrapDial { to, dial };
        match &mut self.link {
            Link::Dialing(attempts) => attempts.push(attempt),
            link => *link = Link::Dialing(vec![attempt]),
        }
        true
    }

    /// A broker of the round could not be asked: try the next one, wait for the others, or end the round.
    fn next_of_round(&mut self, at: BootstrapBroker, t: &Trouble, shared: &mut Shared, now: Instant) {
        let Some(round) = &mut self.round else { return };
        let (kind, address) = at;
        let why = format!("{address}: {t}");
        if let (Trouble::Incompatible(_), true) = (t, shared.options.incompatible != Incompatible::Wait) {
            shared.incompatible(why.clone());
        }
        self.candidates.failed(kind, &address);
        self.health.searching(&why);
        round.tried[kind as usize] += 1;
        let [learned, configured] = round.tried;
        let late = now >= round.until && configured > 0 && learned + configured > 1;
        // A refused login is refused by every broker, and too many attempts lock the account.
        let over = late || matches!(t, Trouble::Denied(_)) && shared.options.sasl.is_some();
        let others = matches!(&self.link, Link::Dialing(others) if !others.is_empty());
        if !over && (self.dial_next(shared, now) || others) {
            return;
        }
        (self.link, self.round) = (Link::None, None);
        self.health.failed(&why, false);
        self.next_round = now + t.pause(self.failures, &mut shared.rng);
        self.failures = self.failures.saturating_add(1);
    }
}

/// Takes the first attempt that has a result.
fn finished(attempts: &mut Vec<BootstrapDial>) -> Option<(BootstrapBroker, Result<Connection, Trouble>)> {
    let (i, result) = attempts.iter().enumerate().find_map(|(i, a)| Some((i, a.dial.result()?)))?;
    Some((attempts.swap_remove(i).to, result))
}

/// The reason where a broker closes the connection at the first request after ApiVersions.
pub fn may_ask_for_sasl() -> Reason {
    "it closed the connection at the first request and may require SASL: set [kafka.sasl]".into()
}

/// A broker that requires SASL answers ApiVersions and closes the connection on the next request.
fn shut_out(t: Trouble, shared: &Shared) -> Trouble {
    match t {
        Trouble::Ended if shared.options.sasl.is_none() => Trouble::Denied(may_ask_for_sasl()),
        other => other,
    }
}
