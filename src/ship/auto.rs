//! Chooses the driver by what the brokers say they take, runs it on ship's own channel ends, and chooses again when it says
//! that the broker is one for the other. Sends nothing itself and knows no driver's options.

use super::driver::{Drive, Event, Leave, Order, Pace, Verdict};
use super::outage::{Outages, Who};
use super::probe::{self, Finding, Ranges};
use crate::report::Board;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub struct Options {
    /// The bootstrap list, `host:port` each.
    pub brokers: Vec<String>,
    pub probe: probe::Limits,
    /// Longest pause between two rounds through the list while none answers.
    pub pause: Duration,
    pub classic: Drive,
    pub modern: Drive,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Classic,
    Modern,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Name::Classic => "classic",
            Name::Modern => "modern",
        })
    }
}

/// Works until ship drops its ends, or changes to another driver.
pub fn run(options: &Options, orders: &Receiver<Order>, events: &Sender<Event>, board: &Arc<Board>) -> Leave {
    let mut chooser = Chooser { options, outages: Outages::new(board), turn: 0 };
    let Err(leave) = work(&mut chooser, orders, events, board);
    leave
}

fn work(
    chooser: &mut Chooser<'_>,
    orders: &Receiver<Order>,
    events: &Sender<Event>,
    board: &Arc<Board>,
) -> Result<Infallible, Leave> {
    let options = chooser.options;
    let mut left = None;
    loop {
        let (name, why) = chooser.choose(left, orders, events)?;
        log::info!("driver {name}: {why}");
        *board.driver() = format!("{name}: {why}");
        let drive = match name {
            Name::Classic => &options.classic,
            Name::Modern => &options.modern,
        };
        let began = Instant::now();
        let why = match drive.run(orders, events, board) {
            Leave::Unfit { why } => why,
            leave => return Err(leave),
        };
        log::warn!("driver {name} gives up: {why}; choosing again");
        left = Some(name);
        // Two drivers that both give up at once must not chase each other.
        hold(orders, events, &why, options.pause.saturating_sub(began.elapsed()))?;
    }
}

struct Chooser<'a> {
    options: &'a Options,
    outages: Outages,
    turn: usize,
}

impl Chooser<'_> {
    /// Asks the hosts in turn, for ever, until one answers as Kafka. A driver that has just `left` is taken again only where
    /// the other cannot be.
    fn choose(
        &mut self,
        left: Option<Name>,
        orders: &Receiver<Order>,
        events: &Sender<Event>,
    ) -> Result<(Name, String), Leave> {
        let mut pause = Duration::from_millis(100);
        let mut again = left;
        loop {
            let mut why = "no broker is configured".to_owned();
            for _ in 0..self.options.brokers.len() {
                let host = &self.options.brokers[self.turn % self.options.brokers.len()];
                match self.visit(host).and_then(|r| decide(again, r.as_ref())) {
                    Ok((name, why)) => {
                        self.outages.works(Who::Broker(host), Instant::now());
                        return Ok((name, format!("{host} {why}")));
                    }
                    Err(trouble) => {
                        self.outages.failed(Who::Broker(host), &trouble, Instant::now());
                        why = format!("{host}: {trouble}");
                    }
                }
                self.turn += 1;
                hold(orders, events, &why, Duration::ZERO)?;
            }
            hold(orders, events, &why, pause)?;
            pause = (pause * 2).min(self.options.pause);
            if pause == self.options.pause {
                again = None; // the other cannot be had either
            }
        }
    }

    /// What the host takes; `None` where it does not say, as Kafka 0.9 does.
    fn visit(&self, host: &str) -> Result<Option<Ranges>, String> {
        let mut last = String::new();
        for addr in probe::resolve(host)? {
            match probe::ask(addr, &self.options.probe) {
                Finding::Kafka(ranges) => return Ok(Some(ranges)),
                Finding::Closed => return Ok(None),
                other => last = other.to_string(),
            }
        }
        Err(last)
    }
}

/// The rule: the `kafka` crate where the broker takes it, else modern.
fn decide(left: Option<Name>, ranges: Option<&Ranges>) -> Result<(Name, String), String> {
    let Some(r) = ranges else {
        return match left {
            Some(Name::Classic) => Err(Finding::Closed.to_string()),
            _ => Ok((Name::Classic, "closes the connection on ApiVersions, as Kafka 0.9 does".to_owned())),
        };
    };
    match (r.suits_classic(), r.suits_modern(), left) {
        (true, false, _) => Ok((Name::Classic, format!("takes no record batches ({r})"))),
        (true, true, Some(Name::Classic)) => Ok((Name::Modern, format!("takes both ({r}), classic gave up"))),
        (true, true, _) => Ok((Name::Classic, format!("takes the kafka crate's requests ({r})"))),
        (false, true, _) => Ok((Name::Modern, format!("no longer takes the kafka crate's requests ({r})"))),
        (false, false, _) => Err(format!("takes neither driver's requests ({r})")),
    }
}

/// While no driver runs: batches go back at once, topics are said again by ship after the next `Ready`.
fn hold(orders: &Receiver<Order>, events: &Sender<Event>, why: &str, time: Duration) -> Result<(), Leave> {
    let say = |event| events.send(event).map_err(|_| Leave::Closed);
    let until = Instant::now() + time;
    loop {
        match orders.recv_deadline(until) {
            Ok(Order::Send(batches)) => {
                for batch in batches {
                    let why = why.to_owned();
                    let verdict = Verdict::Again { maybe_stored: false, pace: Pace::Backoff, why };
                    say(Event::Done { batch, verdict })?;
                }
            }
            Ok(Order::Ask { topic, partition, pid }) => {
                say(Event::Knows { topic, partition, pid, last: Err(why.to_owned()) })?;
            }
            Ok(Order::Topic(_) | Order::ProducerId) => {}
            Ok(Order::Change(next)) => return Err(Leave::Changed(next)),
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => return Err(Leave::Closed),
        }
    }
}

#[cfg(test)]
mod tests;
