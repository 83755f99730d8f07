//! Chooses the driver by the versions the brokers support, runs it, and chooses again when it reports that the broker
//! needs the other one.

use crate::backoff::{Backoff, Rng};
use crate::heartbeat::Heartbeat;
use crate::kafka::net::probe;
use crate::kafka::protocol::messages::Versions;
use crate::producer::driver::{Context, Drive, Driver, Event, Leave, Order, Pace};
use crate::producer::outage::{Outages, Who};
use crate::producer::worker::refuse;
use crate::stop::{self, Stop};
use crate::waker::Waking;
use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::event::{PollFd, PollFlags};
use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

pub struct AutoOptions {
    /// The bootstrap list, each `host:port`.
    pub brokers: Vec<String>,
    /// Limit for connecting to a broker, and for its answer.
    pub probe: Duration,
    /// Maximum pause between two rounds through the list while no broker answers.
    pub pause: Duration,
    pub classic: Choice,
    pub modern: Choice,
}

/// A driver in two configurations.
pub struct Choice {
    /// For a broker that also claims to support the other driver: ends when the broker refuses this one's requests.
    pub first: Drive,
    /// For a broker that claims to support only this driver: ends when the broker says otherwise.
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

/// A driver that ran this long does not count as giving up immediately.
const LONG_RUN: Duration = Duration::from_secs(600);

pub fn drive(options: AutoOptions) -> Drive {
    let options = Arc::new(options);
    Drive::new(move |context| Box::new(Auto::new(options.clone(), context.clone())))
}

struct Auto {
    options: Arc<AutoOptions>,
    context: Context,
    state: AutoState,
    /// Consecutive drivers that gave up soon.
    short_runs: u32,
    /// Orders refused while there is no driver.
    refused: Vec<Event>,
    /// Why there is none.
    why: String,
    closing: bool,
}

enum AutoState {
    Choosing(Choosing),
    Running { name: Name, driver: Box<dyn Driver>, began: Instant },
    Closed,
}

impl Auto {
    fn new(options: Arc<AutoOptions>, context: Context) -> Self {
        let state = AutoState::Choosing(Choosing::start(&options, &context, None, Duration::ZERO));
        let why = "no broker has reported its versions yet".to_owned();
        Auto { options, context, state, short_runs: 0, refused: Vec::new(), why, closing: false }
    }

    fn run(&mut self, Chosen { name, only, why }: Chosen, now: Instant) {
        log::info!("driver {name}: {why}");
        *self.context.board.driver() = format!("{name}: {why}");
        let choice = match name {
            Name::Classic => &self.options.classic,
            Name::Modern => &self.options.modern,
        };
        let drive = if only { &choice.only } else { &choice.first };
        self.state = AutoState::Running { name, driver: drive.build(&self.context), began: now };
    }

    fn choose_again(&mut self, left: Name, took: Duration, why: String) {
        log::warn!("driver {left} gave up: {why}; choosing again");
        // Two drivers that both give up at once must not alternate in a busy loop.
        self.short_runs = if took < LONG_RUN { self.short_runs + 1 } else { 0 };
        let pause = self.options.pause * (1 << u32::min(self.short_runs, 5)) / 2;
        let choosing = Choosing::start(&self.options, &self.context, Some(left), pause.saturating_sub(took));
        self.state = AutoState::Choosing(choosing);
        self.why = why;
    }
}

impl Driver for Auto {
    fn order(&mut self, order: Order, now: Instant) {
        match &mut self.state {
            AutoState::Running { driver, .. } => driver.order(order, now),
            _ => refuse(order, Pace::Backoff, &self.why, &mut self.refused),
        }
    }

    fn turn(&mut self, ready: &[PollFlags], now: Instant, events: &mut Vec<Event>) {
        events.append(&mut self.refused);
        if let AutoState::Choosing(choosing) = &mut self.state
            && let Some(chosen) = choosing.result()
        {
            self.run(chosen, now);
        }
        let AutoState::Running { name, driver, began } = &mut self.state else { return };
        driver.turn(ready, now, events);
        if let Some(Leave::Incompatible { why }) = driver.left().filter(|_| !self.closing) {
            let (name, took) = (*name, now - *began);
            self.choose_again(name, took, why);
        }
    }

    fn sockets<'a>(&'a self, add: &mut Vec<PollFd<'a>>) {
        if let AutoState::Running { driver, .. } = &self.state {
            driver.sockets(add);
        }
    }

    fn wake(&self) -> Option<Instant> {
        if let AutoState::Running { driver, .. } = &self.state { driver.wake() } else { None }
    }

    fn close(&mut self) {
        self.closing = true;
        match &mut self.state {
            AutoState::Running { driver, .. } => driver.close(),
            state => *state = AutoState::Closed,
        }
    }

    fn left(&self) -> Option<Leave> {
        match &self.state {
            AutoState::Closed => Some(Leave::Closed),
            AutoState::Running { driver, .. } => driver.left(),
            AutoState::Choosing(_) => None,
        }
    }
}

/// Asks the brokers in its own thread. Dropping it ends that thread before the next question.
struct Choosing {
    chosen: Receiver<Chosen>,
    _on: stop::Handle,
    _heartbeat: Arc<Heartbeat>,
}

impl Choosing {
    /// Starts after `pause`. A driver that has just `left` is chosen again only if the other one cannot be used.
    fn start(options: &Arc<AutoOptions>, context: &Context, left: Option<Name>, pause: Duration) -> Self {
        let (tell, chosen) = bounded(1);
        let (on, stop) = stop::pair();
        let heartbeat = context.board.heartbeats.register("choose driver");
        let mut chooser = Chooser {
            options: options.clone(),
            outages: Outages::new(&context.board),
            heartbeat: heartbeat.clone(),
            stop,
            turn: 0,
        };
        let body = {
            let tell = Waking::new(tell.clone(), &context.waker);
            move || {
                if chooser.rests(pause)
                    && let Some(chosen) = chooser.choose(left)
                {
                    let _ = tell.get().try_send(chosen);
                }
            }
        };
        let spawned = thread::Builder::new()
            .name("choose".into())
            .stack_size(crate::producer::driver::STACK)
            .spawn(body);
        if let Err(e) = spawned {
            give_up(&tell, &e);
            context.waker.wake();
        }
        Choosing { chosen, _on: on, _heartbeat: heartbeat }
    }

    fn result(&mut self) -> Option<Chosen> {
        self.chosen.try_recv().ok()
    }
}

/// If no thread can be started, guess the modern driver: it will hit the same problem and report it.
fn give_up(tell: &Sender<Chosen>, e: &std::io::Error) {
    let why = format!("brokers cannot be asked ({e})");
    let _ = tell.try_send(Chosen { name: Name::Modern, only: false, why });
}

/// Rounds after which a driver that has left is chosen again: some 3 s.
const ENOUGH: u32 = 5;

struct Chooser {
    options: Arc<AutoOptions>,
    outages: Outages,
    heartbeat: Arc<Heartbeat>,
    stop: Stop,
    turn: usize,
}

impl Chooser {
    /// Asks the hosts in turn until one answers as Kafka. `None`: stopped.
    fn choose(&mut self, left: Option<Name>) -> Option<Chosen> {
        let options = self.options.clone();
        let backoff = Backoff { most: options.pause, ..Backoff::QUICK };
        let (mut tries, mut rng) = (0, Rng::random());
        let mut again = left;
        loop {
            let is_hurried = tries == 0 && options.brokers.len() > 1;
            // One that hangs must not keep the others waiting.
            let limit = if is_hurried { options.probe.min(probe::HURRY) } else { options.probe };
            for _ in 0..options.brokers.len() {
                let host = &options.brokers[self.turn % options.brokers.len()];
                self.heartbeat.within(Heartbeat::SLOW);
                let found = probe::ask_host(host, limit, &self.outages.board.traffic.broker(host));
                if self.stop.is_on() {
                    return None; // the status holds another driver's brokers by now
                }
                match found.and_then(|(_, versions)| decide(again, versions.as_ref())) {
                    Ok(chosen) => {
                        self.outages.works(Who::Broker(host), Instant::now());
                        return Some(Chosen { why: format!("{host} {}", chosen.why), ..chosen });
                    }
                    Err(trouble) => self.outages.failed(Who::Broker(host), &trouble, Instant::now()),
                }
                self.turn += 1;
            }
            tries += 1;
            if !self.rests(backoff.pause(tries, &mut rng)) {
                return None;
            }
            if tries >= ENOUGH {
                again = None; // the other one cannot be used either
            }
        }
    }

    /// Sleeps. `false`: stopped.
    fn rests(&self, time: Duration) -> bool {
        self.heartbeat.within(time);
        self.stop.on().recv_timeout(time) == Err(crossbeam_channel::RecvTimeoutError::Timeout)
    }
}

/// The chosen driver, and why.
#[derive(Debug, PartialEq, Eq)]
struct Chosen {
    name: Name,
    /// The broker does not claim to support the other one's requests.
    only: bool,
    why: String,
}

/// The rule: modern if the broker supports it, otherwise the `kafka` crate.
fn decide(left: Option<Name>, versions: Option<&Versions>) -> Result<Chosen, String> {
    let only = |name, why| Ok(Chosen { name, only: true, why });
    let first = |name, why| Ok(Chosen { name, only: false, why });
    let Some(v) = versions else {
        return match left {
            Some(Name::Classic) => Err(probe::CLOSED.to_owned()),
            _ => only(Name::Classic, "closes the connection on ApiVersions, as Kafka 0.9 does".to_owned()),
        };
    };
    match (v.suits_classic(), v.suits_modern(), left) {
        // Other brokers do support them, as in a cluster being upgraded. Do not leave this driver for an old broker.
        (true, false, Some(Name::Modern)) => {
            first(Name::Classic, format!("does not support record batches ({v})"))
        }
        (true, false, _) => only(Name::Classic, format!("does not support record batches ({v})")),
        (true, true, Some(Name::Modern)) => {
            first(Name::Classic, format!("supports both drivers ({v}), modern gave up"))
        }
        (true, true, Some(Name::Classic)) => {
            first(Name::Modern, format!("supports both drivers ({v}), classic gave up"))
        }
        (true, true, None) => first(Name::Modern, format!("supports record batches ({v})")),
        (false, true, _) => {
            only(Name::Modern, format!("no longer supports the kafka crate's requests ({v})"))
        }
        (false, false, _) => Err(format!("supports neither driver's requests ({v})")),
    }
}

#[cfg(test)]
mod tests;
