//! A session with the cluster: finding a host that answers, and the way to each leader. Knows the topics only as what to
//! forget with it, and sends nothing.

use super::client::CrateClient;
use super::{CrateWorker, Fault, OnIncompatible, TopicState};
use crate::backoff::{Backoff, Rng};
use crate::kafka::net::probe::{self, Finding, Ranges};
use crate::producer::driver::{Leave, Pace};
use crate::producer::outage::Who;
use crate::sys;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Attempts that failed in a row, and when the next is due.
#[derive(Debug, Default, Clone)]
pub struct Wait {
    pub tries: u32,
    pub until: Option<Instant>,
    pub why: String,
}

impl Wait {
    pub fn failed(&mut self, why: String, longest: Duration) {
        self.tries += 1;
        let backoff = Backoff { most: longest, ..Backoff::QUICK };
        self.until = Some(Instant::now() + backoff.pause(self.tries, &mut Rng::random()));
        self.why = why;
    }

    pub fn is_over(&self) -> bool {
        self.until.is_none_or(|at| Instant::now() >= at)
    }
}

/// One client of the crate, and what is known through it.
pub struct CrateSession {
    pub client: CrateClient,
    /// The bootstrap host, as the config calls it, and its address.
    pub host: String,
    pub via: SocketAddr,
    pub ranges: Ranges,
    pub born: Instant,
    /// A batch was answered in it.
    pub proven: bool,
    leaders: HashMap<String, ProvenLeader>,
}

/// A leader that answered a probe or a request.
struct ProvenLeader {
    peers: Vec<SocketAddr>,
    /// When it answered last.
    at: Instant,
    /// The crate's own connections to it, found after its first answer.
    sockets: Vec<sys::Socket>,
}

impl CrateSession {
    /// Is there nothing to read from this leader, as it must be before a request? What there is would be taken for the answer
    /// to it (D1). And a connection that the peer has closed would still take one request, and lose it without a word
    /// where no answer is asked for (D2, D6).
    pub fn is_silent(&self, leader: &str) -> bool {
        self.leaders.get(leader).is_none_or(|l| l.sockets.iter().all(sys::Socket::is_silent))
    }

    pub fn used(&mut self, leader: &str) {
        if let Some(l) = self.leaders.get_mut(leader) {
            l.at = Instant::now();
            if l.sockets.is_empty() {
                l.sockets = sys::sockets_to(&l.peers);
            }
        }
    }
}

impl CrateWorker<'_> {
    pub fn drop_session(&mut self) {
        self.session = None;
        let soon = Instant::now() + self.options.limits.pause;
        for topic_state in self.topics.values_mut() {
            topic_state.led.clear();
            if topic_state.is_wanting() {
                topic_state.wait.until.get_or_insert(soon);
            }
        }
    }

    /// A session, the present one or a new one through the first bootstrap host that answers.
    pub fn connect(&mut self) -> Result<(), Fault> {
        if self.session.as_ref().is_some_and(|s| !s.client.is_spoilt()) {
            return Ok(());
        }
        self.drop_session();
        if !self.wait.is_over() {
            return Err(Fault::Retry(Pace::Backoff, self.wait.why.clone()));
        }
        let began = Instant::now();
        let hosts = self.options.brokers.len();
        let mut last = "no broker is configured".to_owned();
        for _ in 0..hosts {
            let host = self.options.brokers[self.turn % hosts].clone();
            match self.visit(&host) {
                Ok((via, ranges)) => {
                    let o = self.options;
                    let client = CrateClient::new(via, &o.client_id, o.codec, o.limits.idle);
                    let (born, leaders) = (Instant::now(), HashMap::new());
                    let proven = false;
                    self.session = Some(CrateSession { client, host, via, ranges, born, proven, leaders });
                    self.wait.until = None; // `tries` goes back when the cluster has answered for a topic
                    return Ok(());
                }
                Err(Fault::Retry(_, why)) => last = format!("{host}: {why}"),
                Err(other) => return Err(other),
            }
            // D5: the next attempt begins with the next host, so that none that hangs stands before the others.
            self.turn = (self.turn + 1) % hosts;
            if began.elapsed() > Duration::from_secs(15) {
                break; // the rest at the next attempt: batches wait for their verdict meanwhile
            }
        }
        self.wait.failed(last.clone(), self.options.limits.pause);
        Err(Fault::Retry(Pace::Backoff, last))
    }

    /// Asks what listens at a host (D4, D10), at each of its addresses, with its outage recorded.
    fn visit(&mut self, host: &str) -> Result<(SocketAddr, Ranges), Fault> {
        let found = probe::resolve(host).and_then(|all| {
            let mut last = String::new();
            for addr in all {
                match probe::ask(addr, &self.options.limits.probe) {
                    Finding::Kafka(ranges) => return Ok((addr, ranges)),
                    // Kafka 0.9 closes on ApiVersions and takes the crate's requests all the same: they will show.
                    Finding::Closed => return Ok((addr, Ranges::default())),
                    other => last = other.to_string(),
                }
            }
            Err(last)
        });
        let why = match found {
            Ok((_, ranges)) if self.options.unfit == OnIncompatible::Replaced && ranges.suits_modern() => {
                let why = format!("{host} takes the modern driver's requests now ({ranges})");
                return Err(Leave::Incompatible { why }.into());
            }
            Ok((addr, ranges)) if ranges == Ranges::default() || ranges.suits_classic() => {
                return Ok((addr, ranges));
            }
            Ok((_, ranges)) if self.options.unfit != OnIncompatible::Wait => {
                return Err(Leave::Incompatible { why: too_new(&ranges) }.into());
            }
            Ok((_, ranges)) => format!("{}; set driver = \"auto\" or \"modern\"", too_new(&ranges)),
            Err(why) => why,
        };
        self.outages.failed(Who::Broker(host), &why, Instant::now());
        Err(Fault::Retry(Pace::Backoff, why))
    }

    /// The way to a leader: probed before the crate connects without a limit (D4), and again after a pause (D2).
    pub fn reach(&mut self, leader: &str) -> Result<Vec<SocketAddr>, Fault> {
        let idle = self.options.limits.idle;
        let known = self.session.as_ref().and_then(|s| s.leaders.get(leader));
        if let Some(known) = known.filter(|l| l.at.elapsed() < idle) {
            return Ok(known.peers.clone());
        }
        if let Some(wait) = self.down.get(leader).filter(|w| !w.is_over()) {
            return Err(Fault::Retry(Pace::Backoff, wait.why.clone()));
        }
        match self.visit(leader) {
            Ok(_) => {
                let peers = probe::resolve(leader).unwrap_or_default();
                if let Some(session) = &mut self.session {
                    let (at, sockets) = (Instant::now(), Vec::new()); // an old one's would be another connection's
                    session
                        .leaders
                        .insert(leader.to_owned(), ProvenLeader { peers: peers.clone(), at, sockets });
                }
                if self.down.remove(leader).is_some() {
                    self.outages.works(Who::Broker(leader), Instant::now());
                    self.say_views()?;
                }
                Ok(peers)
            }
            Err(Fault::Retry(pace, why)) => {
                let why = format!("{leader}: {why}");
                self.lost(leader, &why)?;
                Err(Fault::Retry(pace, why))
            }
            Err(other) => Err(other),
        }
    }

    /// A leader cannot be reached: it is not among the available any more, and perhaps soon no longer the leader. The others
    /// go on.
    fn lost(&mut self, leader: &str, why: &str) -> Result<(), Leave> {
        let pause = self.options.limits.pause;
        self.down.entry(leader.to_owned()).or_default().failed(why.to_owned(), pause);
        if let Some(session) = &mut self.session {
            session.leaders.remove(leader);
        }
        let its = |l: &TopicState| l.led.iter().any(|l| l.leader.as_deref() == Some(leader));
        for topic_state in self.topics.values_mut().filter(|l| its(l)) {
            topic_state.wait.failed(why.to_owned(), pause); // then its metadata is loaded again
        }
        self.say_views()
    }
}

fn too_new(ranges: &Ranges) -> String {
    format!("too new for the kafka crate ({ranges}; Kafka 4 no longer takes its requests)")
}
