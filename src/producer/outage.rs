//! Tracks outages: what does not answer, since when, the number of attempts and the last reason. Reports them in
//! status and log.
//!
//! Logs attempts 1, 2, 4, 8 … and each reason not seen since the last of those, and one line on recovery.

use crate::report::{Board, BrokerState};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// All outages of one worker. Only that worker writes its status entries.
#[derive(Debug)]
pub struct Outages {
    pub board: Arc<Board>,
    open: HashMap<String, Outage>,
    /// Brokers currently in the status, so that a successful batch does not touch it.
    shown: HashSet<String>,
}

/// One outage, from its first failed attempt on.
#[derive(Debug)]
pub struct Outage {
    pub since: Instant,
    pub attempts: u64,
    reasons: Reasons,
}

impl Outage {
    pub fn new(now: Instant) -> Self {
        Outage { since: now, attempts: 0, reasons: Reasons::default() }
    }

    /// Counts a failed attempt and logs it if it is worth a line. `how`: "down", or "lost" if it worked a moment ago.
    pub fn failed(&mut self, who: &dyn fmt::Display, how: &str, why: &str, now: Instant) {
        self.attempts += 1;
        if self.reasons.is_worth_a_line(self.attempts, why) {
            match self.attempts {
                1 => log::warn!("{who} {how}: {why}; retrying"),
                n => log::warn!(
                    "{who} still down after {}, attempt {n}: {why}; retrying",
                    Span(now.duration_since(self.since))
                ),
            }
        }
    }

    pub fn over(self, who: &dyn fmt::Display, now: Instant) {
        let s = if self.attempts == 1 { "" } else { "s" };
        log::info!(
            "{who} up again after {}, {} attempt{s}",
            Span(now.duration_since(self.since)),
            self.attempts
        );
    }
}

/// Decides which attempts of an outage are logged: 1, 2, 4, 8 …, and each reason not logged since the last of those.
#[derive(Debug, Default)]
struct Reasons(Vec<String>);

impl Reasons {
    /// Maximum lines between two powers of two: a text that changes with each attempt must fill neither log nor
    /// memory.
    const MOST: usize = 4;

    /// `attempt` counts from 1.
    fn is_worth_a_line(&mut self, attempt: u64, why: &str) -> bool {
        if attempt.is_power_of_two() {
            self.0.clear();
        }
        let new = self.0.len() < Reasons::MOST && !self.0.iter().any(|r| r == why);
        if new {
            self.0.push(why.to_owned());
        }
        new
    }
}

/// A waiting topic's state in the status.
const WAITING: &str = "waiting";

/// Removes the previous drivers' entries from the status when another driver starts.
pub fn forget(board: &Board) {
    board.brokers().clear();
    board.topics().retain(|_, topic| topic.state != WAITING);
}

/// What is failing.
#[derive(Debug, Clone, Copy)]
pub enum Who<'a> {
    /// `host:port` as written in the config or named by the cluster.
    Broker(&'a str),
    /// A topic whose metadata is unavailable. The core reports on its batches.
    Topic(&'a str),
}

impl fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Broker(b) => write!(f, "broker {b}"),
            Who::Topic(t) => write!(f, "topic {t}"),
        }
    }
}

impl Who<'_> {
    fn key(&self) -> String {
        match self {
            Who::Broker(b) => (*b).to_owned(),
            Who::Topic(_) => self.to_string(),
        }
    }
}

/// Shows in the status why a topic's partitions are not known; `None`: they are. Keeps a trouble that the core has set.
pub fn show_topic(board: &Board, topic: &str, why: Option<String>, now: Instant) {
    let mut topics = board.topics();
    let ours = topics.get(topic).is_some_and(|s| s.state == WAITING);
    let core = topics.get(topic).is_some_and(|s| s.state != WAITING && s.attempts > 0);
    match why {
        Some(_) if core => {}
        Some(why) => {
            let (since, attempts) = match topics.get(topic).filter(|_| ours) {
                Some(s) => (s.since, s.attempts + 1),
                None => (now, 1),
            };
            let state = BrokerState { state: WAITING.into(), since, attempts, last_error: Some(why) };
            topics.insert(topic.to_owned(), state);
        }
        None if ours => drop(topics.remove(topic)),
        None => {}
    }
}

impl Outages {
    pub fn new(board: &Arc<Board>) -> Self {
        Outages { board: Arc::clone(board), open: HashMap::new(), shown: HashSet::new() }
    }

    /// Records a failed attempt.
    pub fn failed(&mut self, who: Who<'_>, why: &str, now: Instant) {
        let key = who.key();
        let outage = self.open.entry(key).or_insert_with(|| Outage::new(now));
        outage.failed(&who, "down", why, now);
        let (since, attempts) = (outage.since, outage.attempts);
        let of = |state: &str| {
            let last_error = Some(why.to_owned());
            BrokerState { state: state.to_owned(), since, attempts, last_error }
        };
        match who {
            Who::Broker(b) => drop(self.board.brokers().insert(b.to_owned(), of("down"))),
            Who::Topic(t) => drop(self.board.topics().insert(t.to_owned(), of(WAITING))),
        }
    }

    /// Records a success. Logged only after a failure. In the status a broker's last error remains visible.
    pub fn works(&mut self, who: Who<'_>, now: Instant) {
        let known = match who {
            Who::Broker(b) => self.shown.contains(b),
            Who::Topic(_) => true,
        };
        if known && self.open.is_empty() {
            return;
        }
        let key = who.key();
        match self.open.remove(&key) {
            Some(outage) => outage.over(&who, now),
            None if known => return,
            None => {}
        }
        match who {
            Who::Broker(b) => {
                let mut brokers = self.board.brokers();
                let last_error = brokers.remove(b).and_then(|b| b.last_error);
                let state = BrokerState { state: "up".to_owned(), since: now, attempts: 0, last_error };
                brokers.insert(b.to_owned(), state);
                self.shown.insert(key);
            }
            Who::Topic(t) => {
                show_topic(&self.board, t, None, now);
            }
        }
    }

    /// Removes a broker that is no longer needed from the status.
    pub fn forget(&mut self, broker: &str) {
        self.open.remove(&Who::Broker(broker).key());
        self.shown.remove(broker);
        self.board.brokers().remove(broker);
    }
}

/// A human-readable duration: `0.4 s`, `41 s`, `3 min`, `7 h`, `2 d`.
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            0..10 => write!(f, "{:.1} s", self.0.as_secs_f64()),
            s @ 10..120 => write!(f, "{s} s"),
            s @ 120..7200 => write!(f, "{} min", s / 60),
            s @ 7200..172_800 => write!(f, "{} h", s / 3600),
            s => write!(f, "{} d", s / 86_400),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when `works` leaves the outage open: the second outage would continue the first one's count.
    #[test]
    fn an_outage_is_counted_until_it_ends() {
        let board = Arc::new(Board::default());
        let mut o = Outages::new(&board);
        let t = Instant::now();
        for i in 0..5 {
            o.failed(Who::Broker("b:1"), "refused", t + Duration::from_secs(i));
        }
        let b = board.brokers()["b:1"].clone();
        assert_eq!((b.state.as_str(), b.attempts, b.since), ("down", 5, t));
        assert_eq!(b.last_error.as_deref(), Some("refused"));
        o.works(Who::Broker("b:1"), t + Duration::from_secs(9));
        let b = board.brokers()["b:1"].clone();
        assert_eq!((b.state.as_str(), b.attempts), ("up", 0));
        assert_eq!(b.last_error.as_deref(), Some("refused"));
        o.failed(Who::Broker("b:1"), "refused", t + Duration::from_secs(10));
        assert_eq!(board.brokers()["b:1"].attempts, 1);
    }

    /// Fails when a new reason waits for the next power of two, or a text that changes each time is logged each time.
    #[test]
    fn a_new_reason_is_logged_at_once_but_not_without_end() {
        let mut r = Reasons::default();
        let said: Vec<u64> =
            (1..=8).filter(|n| r.is_worth_a_line(*n, if *n < 7 { "a" } else { "b" })).collect();
        assert_eq!(said, [1, 2, 4, 7, 8]);
        let mut r = Reasons::default();
        assert_eq!(
            (1..=1024u64).filter(|n| r.is_worth_a_line(*n, &n.to_string())).count(),
            1 + 2 + 4 * 8 + 1
        );
    }

    #[test]
    fn spans_read_well() {
        let of = |s| Span(Duration::from_secs_f64(s)).to_string();
        assert_eq!(
            [of(0.44), of(41.0), of(185.0), of(7300.0), of(200_000.0)],
            ["0.4 s", "41 s", "3 min", "2 h", "2 d"]
        );
    }
}
