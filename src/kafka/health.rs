//! One broker's state for the operator: its status entry, and a log line at each change.

use crate::producer::outage::{self, Reasons};
use crate::report::{Board, BrokerState};
use std::sync::Arc;
use std::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HealthState {
    New,
    Up,
    Idle,
    Down,
}

#[derive(Debug)]
pub struct Health {
    board: Arc<Board>,
    /// Its name in the status: an address, or "bootstrap".
    name: String,
    state: HealthState,
    /// Failures since its last answer.
    failures: u64,
    /// When the first of them happened.
    failing_since: Instant,
    /// The last failure came after connecting, so connecting alone does not count as recovery.
    shaky: bool,
    reasons: Reasons,
}

impl Health {
    pub fn new(board: Arc<Board>, name: String) -> Self {
        Health {
            board,
            name,
            state: HealthState::New,
            failures: 0,
            failing_since: Instant::now(),
            shaky: false,
            reasons: Reasons::default(),
        }
    }

    /// Connected; `speaks` describes the protocol.
    pub fn up(&mut self, speaks: &str) {
        if !self.shaky {
            self.recovered();
        }
        self.show(HealthState::Up, format!("up ({speaks})"), None);
    }

    /// It answered a request.
    pub fn answered(&mut self) {
        if self.shaky {
            self.shaky = false;
            self.recovered();
            self.show(HealthState::Up, String::new(), None);
        }
    }

    /// Closed because idle.
    pub fn idle(&mut self) {
        self.show(HealthState::Idle, "idle".into(), None);
    }

    /// The connection is lost and a new one is being opened; not yet counted as a failure.
    pub fn searching(&mut self, why: &str) {
        self.show(HealthState::Down, "down".into(), Some(why.to_owned()));
    }

    /// Records a failure; `connected`: it came after connecting.
    pub fn failed(&mut self, why: &str, connected: bool) {
        self.failures += 1;
        self.shaky |= connected;
        if self.failures == 1 {
            self.failing_since = Instant::now();
        }
        if self.reasons.is_worth_a_line(self.failures, why) {
            let how = if connected { "lost" } else { "down" };
            outage::say_down(&self.what(), how, self.failures, self.failing_since.elapsed(), why);
        }
        self.show(HealthState::Down, "down".into(), Some(why.to_owned()));
    }

    fn recovered(&mut self) {
        if self.failures > 0 {
            outage::say_up(&self.what(), self.failures, self.failing_since.elapsed());
            self.failures = 0;
        }
    }

    fn what(&self) -> String {
        match self.name.as_str() {
            "bootstrap" => "bootstrap brokers".into(),
            name => format!("broker {name}"),
        }
    }

    fn show(&mut self, state: HealthState, text: String, error: Option<String>) {
        let mut brokers = self.board.brokers();
        let changed = self.state != state;
        let entry = brokers.entry(self.name.clone()).or_insert_with(|| BrokerState {
            state: String::new(),
            since: Instant::now(),
            attempts: 0,
            last_error: None,
        });
        if changed {
            entry.since = Instant::now();
            self.state = state;
        }
        if !text.is_empty() {
            entry.state = text;
        }
        entry.attempts = self.failures;
        if error.is_some() {
            entry.last_error = error;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(board: &Arc<Board>) -> (String, u64, Option<String>) {
        let b = board.brokers();
        let b = b.get("b:9092").unwrap();
        (b.state.clone(), b.attempts, b.last_error.clone())
    }

    /// Fails when a connection refused at the first request counts as recovered each time: the log would get two lines
    /// per retry.
    #[test]
    fn only_an_answer_ends_a_failure_after_connecting() {
        let board = Arc::new(Board::default());
        let mut h = Health::new(board.clone(), "b:9092".into());
        h.failed("refused", false);
        assert_eq!(of(&board), ("down".into(), 1, Some("refused".into())));
        h.up("modern");
        assert_eq!(of(&board), ("up (modern)".into(), 0, Some("refused".into())));
        h.failed("closed", true);
        h.up("modern");
        assert_eq!(of(&board).1, 1);
        h.answered();
        assert_eq!(of(&board).1, 0);
    }
}
