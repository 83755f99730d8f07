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
    /// Whether the modern driver needs producer ids: it numbers batches with `acks = "all"`.
    pub numbered: bool,
    pub classic: Choice,
    pub modern: Choice,
}

/// One driver, set up for either case.
pub struct Choice {
    /// For a broker that says it takes the other driver's requests too: leaves when the broker refuses this one's.
    pub first: Drive,
    /// For a broker that says it takes this driver's requests alone: leaves when the broker says otherwise.
    pub only: Drive,
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
    let mut short_runs = 0;
    loop {
        let Chosen { name, only, why } = chooser.choose(left, orders, events)?;
        log::info!("driver {name}: {why}");
        *board.driver() = format!("{name}: {why}");
        let choice = match name {
            Name::Classic => &options.classic,
            Name::Modern => &options.modern,
        };
        let drive = if only { &choice.only } else { &choice.first };
        let began = Instant::now();
        let why = match drive.run(orders, events, board) {
            Leave::Unfit { why } => why,
            leave => return Err(leave),
        };
        log::warn!("driver {name} gives up: {why}; choosing again");
        left = Some(name);
        // Two drivers that both give up at once must not chase each other.
        let took = began.elapsed();
        short_runs = if took < LONG_RUN { short_runs + 1 } else { 0 };
        let pause = options.pause * (1 << u32::min(short_runs, 5)) / 2;
        hold(orders, events, &why, pause.saturating_sub(took))?;
    }
}

/// A driver that worked for so long does not count as one that gives up at once.
const LONG_RUN: Duration = Duration::from_secs(600);

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
    ) -> Result<Chosen, Leave> {
        let mut pause = Duration::from_millis(100);
        let mut again = left;
        loop {
            let mut why = "no broker is configured".to_owned();
            for _ in 0..self.options.brokers.len() {
                let host = &self.options.brokers[self.turn % self.options.brokers.len()];
                match self.visit(host).and_then(|r| decide(again, r.as_ref(), self.options.numbered)) {
                    Ok(chosen) => {
                        self.outages.works(Who::Broker(host), Instant::now());
                        return Ok(Chosen { why: format!("{host} {}", chosen.why), ..chosen });
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

/// Which driver, and why.
#[derive(Debug, PartialEq, Eq)]
struct Chosen {
    name: Name,
    /// The broker does not say that it takes the other one's requests.
    only: bool,
    why: String,
}

/// The rule: modern where the broker takes it, else the `kafka` crate. `numbered`: modern would ask for producer ids.
fn decide(left: Option<Name>, ranges: Option<&Ranges>, numbered: bool) -> Result<Chosen, String> {
    let only = |name, why| Ok(Chosen { name, only: true, why });
    let first = |name, why| Ok(Chosen { name, only: false, why });
    let Some(r) = ranges else {
        return match left {
            Some(Name::Classic) => Err(Finding::Closed.to_string()),
            _ => only(Name::Classic, "closes the connection on ApiVersions, as Kafka 0.9 does".to_owned()),
        };
    };
    let without_ids = numbered && !r.gives_producer_ids();
    match (r.suits_classic(), r.suits_modern(), left) {
        // Beside brokers that do take them, as in a cluster that is being upgraded: not to be left for one of those.
        (true, false, Some(Name::Modern)) => first(Name::Classic, format!("takes no record batches ({r})")),
        (true, false, _) => only(Name::Classic, format!("takes no record batches ({r})")),
        (true, true, _) if without_ids => {
            first(Name::Classic, format!("gives no producer ids; acks = 1 needs none ({r})"))
        }
        (true, true, Some(Name::Modern)) => first(Name::Classic, format!("takes both ({r}), modern gave up")),
        (true, true, Some(Name::Classic)) => {
            first(Name::Modern, format!("takes both ({r}), classic gave up"))
        }
        (true, true, None) => first(Name::Modern, format!("takes record batches ({r})")),
        (false, true, _) => only(Name::Modern, format!("no longer takes the kafka crate's requests ({r})")),
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
