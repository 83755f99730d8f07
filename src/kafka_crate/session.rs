//! A session with the cluster: finds a host that answers, and checks each leader before use.

use super::client::CrateClient;
use super::{CrateWorker, Fault, OnIncompatible, TopicState};
use crate::backoff::{Backoff, Rng};
use crate::kafka::net::{probe, socket};
use crate::kafka::protocol::messages::Versions;
use crate::producer::driver::{Leave, Pace};
use crate::producer::outage::Who;
use crate::sys;
use crate::traffic::SocketBytes;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Number of failed attempts in a row, and when the next is due.
#[derive(Debug, Default, Clone)]
pub struct RetryWait {
    pub tries: u32,
    pub until: Option<Instant>,
    pub why: String,
}

impl RetryWait {
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

/// One client of the crate, and what was learned through it.
pub struct CrateSession {
    pub client: CrateClient,
    /// The bootstrap host as written in the config, and its address.
    pub host: String,
    pub via: SocketAddr,
    /// Default: a broker that does not report them.
    pub versions: Versions,
    pub born: Instant,
    /// Whether a batch has been answered in this session.
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
    /// Whether there is nothing to read from this leader. Before a request that must hold: pending bytes would be
    /// taken for its answer (D1), and a connection closed by the peer would still accept one request and silently
    /// lose it if no answer is requested (D2, D6).
    pub fn is_silent(&self, leader: &str) -> bool {
        self.leaders.get(leader).is_none_or(|l| l.sockets.iter().all(sys::Socket::is_silent))
    }

    /// The leader has answered. `bytes` gets what its connections have carried since its last answer: the crate's
    /// sockets are only seen from outside, so those of a connection that fails are not complete.
    pub fn used(&mut self, leader: &str, bytes: &SocketBytes) {
        if let Some(l) = self.leaders.get_mut(leader) {
            l.at = Instant::now();
            if l.sockets.is_empty() {
                l.sockets = sys::sockets_to(&l.peers);
            }
            for (sent, received) in l.sockets.iter_mut().filter_map(sys::Socket::uncounted) {
                bytes.sent.fetch_add(sent, Relaxed);
                bytes.received.fetch_add(received, Relaxed);
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

    /// The current session, or a new one through the first bootstrap host that answers.
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
        let limit = self.patience();
        for _ in 0..hosts {
            let host = self.options.brokers[self.turn % hosts].clone();
            match self.visit(&host, limit) {
                Ok((via, versions)) => {
                    let o = self.options;
                    let client = CrateClient::new(via, &o.client_id, o.codec, o.limits.idle);
                    let (born, leaders) = (Instant::now(), HashMap::new());
                    let proven = false;
                    self.session = Some(CrateSession { client, host, via, versions, born, proven, leaders });
                    self.wait.until = None; // `tries` is reset when the cluster has answered for a topic
                    return Ok(());
                }
                Err(Fault::Retry(_, why)) => last = format!("{host}: {why}"),
                Err(other) => return Err(other),
            }
            // D5: the next attempt starts with the next host, so that a hanging host does not block the others.
            self.turn = (self.turn + 1) % hosts;
            if began.elapsed() > Duration::from_secs(15) {
                break; // the rest in the next attempt, because batches are waiting for their verdict
            }
        }
        self.wait.failed(last.clone(), self.options.limits.pause);
        Err(Fault::Retry(Pace::Backoff, last))
    }

    /// How long a host may take to answer. At first one that hangs must not keep the others waiting.
    pub fn patience(&self) -> Duration {
        let limit = self.options.limits.probe;
        if self.options.brokers.len() > 1 && self.wait.tries == 0 { limit.min(probe::HURRY) } else { limit }
    }

    /// Probes what listens at each address of a host (D4, D10), and records its outages.
    fn visit(&mut self, host: &str, limit: Duration) -> Result<(SocketAddr, Versions), Fault> {
        // Kafka 0.9 closes the connection on ApiVersions, but accepts the crate's requests; they will show.
        let found = probe::ask_host(host, limit, &self.outages.board.traffic.broker(host))
            .map(|(addr, versions)| (addr, versions.unwrap_or_default()));
        let why = match found {
            Ok((_, versions))
                if self.options.incompatible == OnIncompatible::Replaced && versions.suits_modern() =>
            {
                let why = format!("{host} now supports the modern driver's requests ({versions})");
                return Err(Leave::Incompatible { why }.into());
            }
            Ok((addr, versions)) if versions == Versions::default() || versions.suits_classic() => {
                return Ok((addr, versions));
            }
            Ok((_, versions)) if self.options.incompatible != OnIncompatible::Wait => {
                return Err(Leave::Incompatible { why: too_new(&versions) }.into());
            }
            Ok((_, versions)) => format!("{}; set driver = \"auto\" or \"modern\"", too_new(&versions)),
            Err(why) => why,
        };
        self.outages.failed(Who::Broker(host), &why, Instant::now());
        Err(Fault::Retry(Pace::Backoff, why))
    }

    /// Checks a leader: probed before the crate connects without a timeout (D4), and again after a pause (D2).
    pub fn reach(&mut self, leader: &str) -> Result<Vec<SocketAddr>, Fault> {
        let idle = self.options.limits.idle;
        let known = self.session.as_ref().and_then(|s| s.leaders.get(leader));
        if let Some(known) = known.filter(|l| l.at.elapsed() < idle) {
            return Ok(known.peers.clone());
        }
        if let Some(wait) = self.down.get(leader).filter(|w| !w.is_over()) {
            return Err(Fault::Retry(Pace::Backoff, wait.why.clone()));
        }
        match self.visit(leader, self.options.limits.probe) {
            Ok(_) => {
                let peers = socket::resolve(leader).unwrap_or_default();
                if let Some(session) = &mut self.session {
                    let (at, sockets) = (Instant::now(), Vec::new()); // the previous sockets belong to another connection
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

    /// A leader cannot be reached: its partitions are no longer available, and it may soon lose its leadership. The
    /// others continue.
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

fn too_new(versions: &Versions) -> String {
    format!("too new for the kafka crate ({versions}; Kafka 4 no longer supports its requests)")
}
