//! The thread that asks any broker about the cluster: metadata and producer ids. Sends no batches and keeps no state of
//! the cluster.
//!
//! It has a connection of its own, so that a question never waits behind a batch that waits for its replicas, and a
//! bootstrap broker that hangs holds up no batch.

use super::connection::{Connection, METADATA_CAP, Trouble};
use super::health::Health;
use super::{News, Shared, errors, messages};
use crate::chunk::Topic;
use crate::pulse::Beat;
use crate::ship::driver::Pace;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub enum Question {
    /// `known`: addresses of brokers that were alive at the last answer; tried before the configured ones.
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
    tries: u32,
}

pub struct Scout {
    shared: Arc<Shared>,
    connection: Option<Connection>,
    health: Health,
    /// The candidate that is tried next.
    turn: usize,
    /// From the last question that brought some.
    known: Vec<String>,
}

/// A broker answers these at once, or it hangs.
fn patience(shared: &Shared) -> Duration {
    shared.options.request_timeout.min(Duration::from_secs(10))
}

impl Scout {
    pub fn new(shared: Arc<Shared>) -> Self {
        let health = Health::new(shared.board.clone(), "bootstrap".into());
        Scout { shared, connection: None, health, turn: 0, known: Vec::new() }
    }

    /// Until the questions' sender is dropped.
    pub fn run(mut self, questions: Receiver<Question>) {
        let mut open: Vec<Open> = Vec::new();
        let beat = self.shared.board.pulse.beat("modern-scout");
        loop {
            let now = Instant::now();
            let next = open.iter().map(|o| o.at).min();
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
            let now = Instant::now();
            let mut nobody = None;
            for mut one in std::mem::take(&mut open) {
                if one.at <= now {
                    // Where nobody could be reached for one question, nobody is tried for the next.
                    let asked = nobody.map_or_else(|| self.answer(&one), Err);
                    let Err(after) = asked else { continue };
                    nobody = self.connection.is_none().then_some(after);
                    one.tries += 1;
                    one.at = Instant::now() + after;
                }
                open.push(one);
            }
        }
    }

    fn rest(&mut self) {
        if self.connection.take().is_some() {
            self.health.idle();
        }
    }

    /// `Err`: not answered, wait this long.
    fn answer(&mut self, open: &Open) -> Result<(), Duration> {
        if let Question::Metadata { known, .. } = &open.question {
            self.known.clone_from(known);
        }
        if self.connection.is_some() {
            match self.ask(open) {
                Ok(done) => return done,
                Err(_) => self.connection = None, // most likely it was closed for being idle: ask on a new one
            }
        }
        let bootstrap = self.shared.options.brokers.iter().filter(|b| !self.known.contains(b));
        let candidates: Vec<String> = self.known.iter().chain(bootstrap).cloned().collect();
        let mut last = Trouble::Lost("no brokers".into());
        for _ in 0..candidates.len() {
            let address = &candidates[self.turn % candidates.len()];
            let asked = Connection::open(address, &self.shared.options, METADATA_CAP).and_then(|c| {
                self.connection = Some(c);
                self.ask(open).map_err(|t| self.shut_out(t))
            });
            match asked {
                Ok(done) => {
                    // Not before: a broker that hangs up on every question would be up and down at each.
                    self.health.up(&format!("{address}, modern"));
                    return done;
                }
                Err(t) => {
                    if let (Trouble::Unfit(why), true) = (&t, self.shared.options.auto) {
                        self.shared.news(News::Unfit(format!("{address}: {why}")));
                    }
                    let told = format!("{address}: {t}");
                    last = match t {
                        Trouble::Denied(_) => Trouble::Denied(told),
                        _ => Trouble::Lost(told),
                    };
                    self.connection = None;
                    self.turn = self.turn.wrapping_add(1);
                }
            }
        }
        self.health.failed(&last.to_string(), false);
        Err(last.pause(open.tries))
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

    /// One question on the connection there is. The outer error is the connection's, the inner one the broker's.
    fn ask(&mut self, open: &Open) -> Result<Result<(), Duration>, Trouble> {
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
                Ok(Ok(()))
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
                    return Ok(Ok(()));
                }
                // A broker that has just started, or never gave one, says 14 once or twice.
                if open.tries >= 3 && (open.tries + 1).is_power_of_two() {
                    log::warn!("no producer id: {}; asking again", errors::text(error, ""));
                }
                Ok(Err(match errors::of(error).fate {
                    errors::Fate::Again(Pace::Held) => Duration::from_secs(60),
                    _ => Trouble::Ended.pause(open.tries),
                }))
            }
        }
    }
}
