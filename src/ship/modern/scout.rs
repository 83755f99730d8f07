//! The thread that asks any broker about the cluster: metadata and producer ids. Sends no batches and keeps no state of
//! the cluster.
//!
//! It has a connection of its own, so that a question never waits behind a batch that waits for its replicas, and a
//! bootstrap broker that hangs holds up no batch.

use super::connection::{Connection, METADATA_CAP, Trouble};
use super::health::Health;
use super::{News, Shared, Unfit, errors, messages};
use crate::chunk::Topic;
use crate::pulse::Beat;
use crate::ship::driver::Pace;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub enum Question {
    /// `known`: addresses of brokers that were alive at the last answer; tried in turn with the configured ones.
    Metadata {
        topics: Vec<Topic>,
        known: Vec<String>,
    },
    ProducerId,
}

struct Open {
    question: Question,
    /// Not before.
    at: Instant,
    /// How often a broker has answered "not now".
    tries: u32,
}

/// What became of a question.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Answered,
    /// A broker answered: not now, ask again after this.
    Later(Duration),
    /// No broker could be asked.
    Unreached,
}

pub struct Scout {
    shared: Arc<Shared>,
    connection: Option<Connection>,
    health: Health,
    candidates: Candidates,
    /// Rounds in a row in which no broker could be asked.
    failures: u32,
    /// When the next round may begin.
    next_round: Instant,
}

/// The brokers to ask, in the order of a round: the one that answered last, then learned and configured ones in turn, so
/// that many learned ones that are gone do not keep a configured one waiting.
#[derive(Debug, Default)]
struct Candidates {
    /// From the last question that brought some.
    learned: Vec<String>,
    /// How many of each kind have failed so far: the next round begins behind them.
    failed: [usize; 2],
    last: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Learned,
    Configured,
}

impl Candidates {
    fn round(&self, configured: &[String]) -> Vec<(Kind, String)> {
        let learned = self.learned.iter().filter(|l| !configured.contains(l));
        let learned = turned(learned, self.failed[Kind::Learned as usize]);
        let configured = turned(configured.iter(), self.failed[Kind::Configured as usize]);
        let longest = learned.len().max(configured.len());
        let mut all: Vec<(Kind, String)> = Vec::new();
        for i in 0..longest {
            all.extend(learned.get(i).map(|l| (Kind::Learned, (*l).clone())));
            all.extend(configured.get(i).map(|c| (Kind::Configured, (*c).clone())));
        }
        if let Some(at) = all.iter().position(|(_, a)| self.last.as_ref() == Some(a)) {
            all[..=at].rotate_right(1);
        }
        all
    }

    fn failed(&mut self, kind: Kind, address: &str) {
        if self.last.as_deref() == Some(address) {
            self.last = None;
        } else {
            self.failed[kind as usize] = self.failed[kind as usize].wrapping_add(1);
        }
    }
}

/// These, begun at the `first`-th and wrapped around.
fn turned<'a>(all: impl Iterator<Item = &'a String>, first: usize) -> Vec<&'a String> {
    let mut all: Vec<&String> = all.collect();
    if !all.is_empty() {
        let first = first % all.len();
        all.rotate_left(first);
    }
    all
}

/// A broker answers these at once, or it hangs.
fn patience(shared: &Shared) -> Duration {
    shared.options.request_timeout.min(Duration::from_secs(10))
}

impl Scout {
    pub fn new(shared: Arc<Shared>) -> Self {
        let health = Health::new(shared.board.clone(), "bootstrap".into());
        Scout {
            shared,
            connection: None,
            health,
            candidates: Candidates::default(),
            failures: 0,
            next_round: Instant::now(),
        }
    }

    /// Until the questions' sender is dropped.
    pub fn run(mut self, questions: Receiver<Question>) {
        let mut open: Vec<Open> = Vec::new();
        let beat = self.shared.board.pulse.beat("modern-scout");
        loop {
            let now = Instant::now();
            let next = open.iter().map(|o| self.due(o)).min();
            let wait = next.map_or(self.shared.options.idle, |at| at.saturating_duration_since(now));
            beat.within(wait);
            let question = questions.recv_timeout(wait);
            beat.within(Beat::SLOW);
            match question {
                Ok(question) => open.push(Open { question, at: Instant::now(), tries: 0 }),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) if open.is_empty() => self.rest(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            for mut one in std::mem::take(&mut open) {
                // A round that failed for one question puts off the others too.
                if self.due(&one) <= Instant::now() {
                    match self.answer(&one) {
                        Asked::Answered => continue,
                        Asked::Later(pause) => {
                            one.tries += 1;
                            one.at = Instant::now() + pause;
                        }
                        Asked::Unreached => {}
                    }
                }
                open.push(one);
            }
        }
    }

    fn due(&self, open: &Open) -> Instant {
        if self.connection.is_some() { open.at } else { open.at.max(self.next_round) }
    }

    fn rest(&mut self) {
        if self.connection.take().is_some() {
            self.health.idle();
        }
    }

    fn answer(&mut self, open: &Open) -> Asked {
        if let Question::Metadata { known, .. } = &open.question {
            self.candidates.learned.clone_from(known);
        }
        if self.connection.is_some() {
            match self.ask(open) {
                Ok(done) => return done,
                // Most likely it was closed for being idle: ask on a new one.
                Err(t) => {
                    self.connection = None;
                    self.health.searching(&t.to_string());
                }
            }
        }
        // After this the round is over once one of each kind was tried: the next one begins with others.
        let until = Instant::now() + self.shared.options.connect_timeout;
        let mut tried = [0; 2];
        let mut last = Trouble::Lost("no brokers".into());
        for (kind, address) in self.candidates.round(&self.shared.options.brokers) {
            let asked = Connection::open(&address, &self.shared.options, METADATA_CAP).and_then(|c| {
                self.connection = Some(c);
                self.ask(open).map_err(|t| self.shut_out(t))
            });
            match asked {
                Ok(done) => {
                    // Not before: a broker that hangs up on every question would be up and down at each.
                    self.health.up(&format!("{address}, modern"));
                    self.candidates.last = Some(address);
                    self.failures = 0;
                    return done;
                }
                Err(t) => {
                    if let (Trouble::Unfit(why), true) = (&t, self.shared.options.unfit != Unfit::Wait) {
                        self.shared.news(News::Unfit(format!("{address}: {why}")));
                    }
                    let told = format!("{address}: {t}");
                    self.connection = None;
                    self.candidates.failed(kind, &address);
                    self.health.searching(&told);
                    let denied = matches!(t, Trouble::Denied(_));
                    last = if denied { Trouble::Denied(told) } else { Trouble::Lost(told) };
                    tried[kind as usize] += 1;
                    let [learned, configured] = tried;
                    let late = Instant::now() >= until && configured > 0 && learned + configured > 1;
                    // A refused login is one for every broker, and too many of them lock the account.
                    if late || (denied && self.shared.options.sasl.is_some()) {
                        break;
                    }
                }
            }
        }
        self.health.failed(&last.to_string(), false);
        self.next_round = Instant::now() + last.pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        Asked::Unreached
    }

    /// A broker that wants SASL answers ApiVersions, and closes at whatever comes next.
    fn shut_out(&self, t: Trouble) -> Trouble {
        match t {
            Trouble::Ended if self.shared.options.sasl.is_none() => {
                Trouble::Denied("closed at the first question; it may ask for SASL: set [kafka.sasl]".into())
            }
            other => other,
        }
    }

    /// One question on the connection there is.
    fn ask(&mut self, open: &Open) -> Result<Asked, Trouble> {
        let Some(c) = &mut self.connection else { return Err(Trouble::Ended) };
        let options = &self.shared.options;
        if c.must_renew() {
            c.authenticate(options)?;
        }
        let deadline = Instant::now() + patience(&self.shared);
        let id = c.next_correlation();
        match &open.question {
            Question::Metadata { topics, .. } => {
                let version = c.versions.metadata.unwrap_or(1);
                let names: Vec<&str> = topics.iter().map(|t| &**t).collect();
                let (client, create) = (&options.client_id, options.create_topics);
                let request = messages::ask_metadata(version, id, client, &names, create);
                let answer = messages::metadata(c.call(&request, id, deadline)?, version, &names)?;
                if answer.nodes.is_empty() {
                    return Err(Trouble::Lost("it knows no brokers yet".into()));
                }
                self.shared.news(News::Metadata { answer, topics: topics.clone() });
                Ok(Asked::Answered)
            }
            Question::ProducerId => {
                let version = c.versions.init_producer_id.ok_or_else(|| {
                    Trouble::Lost("it gives no producer ids (InitProducerId); set acks = 1".into())
                })?;
                let request = messages::ask_producer_id(version, id, &options.client_id);
                let (error, pid, epoch) = messages::producer_id(c.call(&request, id, deadline)?, version)?;
                if error == 0 {
                    // By the coordinator: one that comes after this driver's end is another's no longer.
                    self.shared.news(News::ProducerId { pid, epoch });
                    return Ok(Asked::Answered);
                }
                if self.shared.options.unfit == Unfit::Refused && matches!(error, 31 | 35 | 53) {
                    let why = errors::text(error, "");
                    self.shared.news(News::Unfit(format!("no producer id: {why}")));
                }
                // A broker that has just started, or never gave one, says 14 once or twice.
                if open.tries >= 3 && (open.tries + 1).is_power_of_two() {
                    log::warn!("no producer id: {}; asking again", errors::text(error, ""));
                }
                Ok(Asked::Later(match errors::of(error).fate {
                    errors::Fate::Again(Pace::Held) => Duration::from_secs(60),
                    _ => Trouble::Ended.pause(open.tries),
                }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(candidates: &Candidates, configured: &[String]) -> String {
        candidates.round(configured).iter().map(|(_, a)| a.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// Fails when learned brokers all come before a configured one, when a round begins where the last one did, or when
    /// one that is both is asked twice.
    #[test]
    fn learned_and_configured_brokers_take_turns() {
        let configured = ["c1".to_owned(), "c2".to_owned()];
        let learned = ["l1", "l2", "c2", "l3"].map(str::to_owned).to_vec();
        let mut c = Candidates { learned, ..Candidates::default() };
        assert_eq!(names(&c, &configured), "l1 c1 l2 c2 l3");
        c.failed(Kind::Learned, "l1");
        c.failed(Kind::Configured, "c1");
        c.failed(Kind::Learned, "l2");
        assert_eq!(names(&c, &configured), "l3 c2 l1 c1 l2");
        c.last = Some("c1".into());
        assert_eq!(names(&c, &configured), "c1 l3 c2 l1 l2");
        c.failed(Kind::Configured, "c1");
        assert_eq!(names(&c, &configured), "l3 c2 l1 c1 l2");
        c.last = Some("gone".into());
        assert_eq!(names(&c, &configured), "l3 c2 l1 c1 l2");
        assert_eq!(names(&Candidates::default(), &[]), "");
    }
}
