//! Chooses the driver by what the brokers say they take, runs it on ship's own channel ends, and chooses again when it says
//! that the broker is one for the other. Sends nothing itself and knows no driver's options.

use super::driver::{Ends, Event, Leave, Order, Pace, Verdict};
use super::outage::{Outages, Who};
use super::probe::{self, Finding, Ranges};
use crate::report::Board;
use crate::sys;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// A driver's `run` with its options bound.
pub type Drive = Box<dyn Fn(&Receiver<Order>, &Sender<Event>, &Arc<Board>) -> Leave + Send>;

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

/// Starts the worker. Its thread is never joined: see [`Ends`].
pub fn start(options: Options, board: &Arc<Board>) -> std::io::Result<Ends> {
    let (ends, orders, events) = Ends::pair();
    let board = Arc::clone(board);
    let body = move || {
        match sys::block_signals() {
            // the drivers' threads inherit it
            Ok(()) => run(&options, &orders, &events, &board),
            Err(e) => drop(events.send(Event::Dead { why: format!("cannot block signals: {e}") })),
        }
    };
    thread::Builder::new().name("kafka-auto".to_owned()).stack_size(256 << 10).spawn(body)?;
    Ok(ends)
}

/// Works until ship drops its ends.
pub fn run(options: &Options, orders: &Receiver<Order>, events: &Sender<Event>, board: &Arc<Board>) {
    let mut chooser = Chooser { options, outages: Outages::new(board), turn: 0 };
    let mut left = None;
    while let Some((name, why)) = chooser.choose(left, orders, events) {
        log::info!("driver {name}: {why}");
        *board.driver() = format!("{name}: {why}");
        let drive = match name {
            Name::Classic => &options.classic,
            Name::Modern => &options.modern,
        };
        let began = Instant::now();
        let Leave::Unfit { why } = drive(orders, events, board) else { return };
        log::warn!("driver {name} gives up: {why}; choosing again");
        left = Some(name);
        // Two drivers that both give up at once must not chase each other.
        if hold(orders, events, &why, options.pause.saturating_sub(began.elapsed())).is_none() {
            return;
        }
    }
}

struct Chooser<'a> {
    options: &'a Options,
    outages: Outages,
    turn: usize,
}

impl Chooser<'_> {
    /// Asks the hosts in turn, for ever, until one answers as Kafka. `None`: ship is gone. A driver that has just `left` is
    /// taken again only where the other cannot be.
    fn choose(
        &mut self,
        left: Option<Name>,
        orders: &Receiver<Order>,
        events: &Sender<Event>,
    ) -> Option<(Name, String)> {
        let mut pause = Duration::from_millis(100);
        let mut again = left;
        loop {
            let mut why = "no broker is configured".to_owned();
            for _ in 0..self.options.brokers.len() {
                let host = &self.options.brokers[self.turn % self.options.brokers.len()];
                match self.visit(host).and_then(|r| decide(again, r.as_ref())) {
                    Ok((name, why)) => {
                        self.outages.works(Who::Broker(host), Instant::now());
                        return Some((name, format!("{host} {why}")));
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

/// While no driver runs: batches go back at once, topics are said again by ship after the next `Ready`. `None`: ship is gone.
fn hold(orders: &Receiver<Order>, events: &Sender<Event>, why: &str, time: Duration) -> Option<()> {
    let until = Instant::now() + time;
    loop {
        match orders.recv_deadline(until) {
            Ok(Order::Send(batches)) => {
                for batch in batches {
                    let why = why.to_owned();
                    let verdict = Verdict::Again { maybe_stored: false, pace: Pace::Backoff, why };
                    events.send(Event::Done { batch, verdict }).ok()?;
                }
            }
            Ok(Order::Ask { topic, partition, pid }) => {
                events.send(Event::Knows { topic, partition, pid, last: Err(why.to_owned()) }).ok()?;
            }
            Ok(Order::Topic(_) | Order::ProducerId) => {}
            Err(RecvTimeoutError::Timeout) => return Some(()),
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

#[cfg(test)]
mod tests;
