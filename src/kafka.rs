//! The driver for Kafka 0.11 to 4.x: our own record batches over our own sockets. Retries, partitions and sequences are
//! the core's; no batch is sent twice by itself.
//!
//! It has no thread of its own: the producer's loop drives [`Client`], which owns one [`broker::Broker`] for each node and
//! the metadata fetcher, all on non-blocking sockets. Only connecting happens elsewhere, in the dialer's threads.
//!
//! In reading order: [`protocol`] (bytes), [`net`] (connections), [`cluster`] (who leads what), [`request`] (which batches
//! make one), [`session`] (requests in flight), [`broker`], [`fetcher`] (metadata and producer ids), [`client`] (all of it
//! together), [`health`] (status and log), [`auto`] (this driver or the `kafka` crate), [`broker_check`] (for
//! `check --connect`).
//!
//! Invariant: a batch is held by exactly one of: a broker's queue, a request, an event.

pub mod auto;
mod broker;
pub mod broker_check;
mod client;
mod cluster;
mod fetcher;
mod health;
pub mod net;
pub mod protocol;
mod request;
mod session;

#[cfg(test)]
mod scripted;
#[cfg(test)]
mod tests;

use crate::backoff::Rng;
use crate::producer::driver::{Acks, Capabilities, Context, Drive, Event, TopicView};
use crate::record::Topic;
use broker::Peer;
use client::Client;
use cluster::Cluster;
use protocol::codec::Codec;
use protocol::messages::Node;
use protocol::records::Encoder;
use protocol::wire::Writer;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Requests in the air per connection with numbers (KIP-98: the broker remembers five batches per producer).
const IN_FLIGHT: usize = 5;

#[derive(Debug, Clone)]
pub struct Options {
    /// `host:port` or `[IPv6]:port`, at least one.
    pub brokers: Vec<String>,
    pub client_id: String,
    /// With `All` batches are numbered (idempotent) and up to five requests are in the air, else one.
    pub acks: Acks,
    pub compression: Codec,
    /// Whether a question about a topic lets the broker create it.
    pub create_topics: bool,
    /// How long a broker may wait for its replicas; it counts as hung 5 s later.
    pub request_timeout: Duration,
    /// For connecting to one address, and for the answer to the first question.
    pub connect_timeout: Duration,
    /// Exactly-once: without producer ids nothing may be sent.
    pub once: bool,
    /// Most bytes of one request, its frame included; only a record that is larger goes alone. The encoding buffer grows to
    /// this (twice with compression), and is given back after 10 s without work.
    pub request_max: usize,
    /// A connection without work is closed after this: before a NAT in between forgets it (5 min and up).
    pub idle: Duration,
    /// How long metadata is believed where nothing is wrong. Event Hubs closes connections that are idle for 4 minutes.
    pub metadata_age: Duration,
    /// `Some` turns TLS on.
    pub tls: Option<net::tls::Options>,
    pub sasl: Option<net::sasl::Options>,
    pub unfit: Incompatible,
}

/// When to leave the broker to another driver ([`crate::producer::driver::Leave`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incompatible {
    /// Never: the config asks for this driver.
    Wait,
    /// Where the broker says that it has no Produce 3.
    TooOld,
    /// Also where it claims to have it, and then refuses our requests or hangs up on them: another driver may do better.
    Refused,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            brokers: Vec::new(),
            client_id: env!("CARGO_PKG_NAME").into(),
            acks: Acks::All,
            compression: Codec::None,
            create_topics: true,
            request_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            once: false,
            request_max: 1_000_000,
            idle: Duration::from_secs(180),
            metadata_age: Duration::from_secs(180),
            tls: None,
            sasl: None,
            unfit: Incompatible::Wait,
        }
    }
}

/// Which producer of which partition a leader is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Producer {
    topic: Topic,
    partition: i32,
    pid: i64,
}

/// So many Produce requests that a broker hangs up on show that it does not take ours, where none was ever answered.
const HANG_UPS: u32 = 5;

/// After this a question about a producer counts as unanswered. (The core is promised an answer within 30 s.)
const ASK_PATIENCE: Duration = Duration::from_secs(25);
/// Buffers are given back when nothing was sent for this long.
const RELEASE: Duration = Duration::from_secs(10);

/// This driver with these options.
pub fn drive(options: Options) -> Drive {
    let options = Arc::new(options);
    Drive::new(move |context| Box::new(Client::new(options.clone(), context.clone())))
}

/// What all parts of this driver share.
struct Shared {
    options: Arc<Options>,
    context: Context,
    cluster: Cluster,
    /// What is to be told since the last turn.
    events: Vec<Event>,
    /// How often a broker hung up on a Produce request while none has ever been answered. `None`: one was.
    hang_ups: Option<u32>,
    /// Questions to leaders that are not answered yet, and until when they must be.
    asks: Vec<(Producer, Instant)>,
    /// Batches get producer ids: `acks = "all"`, and the brokers give ids.
    numbered: bool,
    /// Why the broker is one for another driver.
    unfit: Option<String>,
    rng: Rng,
    encoder: Encoder,
    /// The buffer of the last request that was written as a whole, for the next.
    spare: Option<Writer>,
    /// When something was encoded last.
    used: Instant,
}

impl Shared {
    fn new(options: Arc<Options>, context: Context) -> Self {
        Shared {
            cluster: Cluster::new(options.metadata_age),
            numbered: options.acks == Acks::All,
            options,
            context,
            events: Vec::new(),
            hang_ups: Some(0),
            asks: Vec::new(),
            unfit: None,
            rng: Rng::random(),
            encoder: Encoder::default(),
            spare: None,
            used: Instant::now(),
        }
    }

    /// What the core may do with this driver.
    fn ready(&mut self) {
        let numbered = self.numbered;
        let in_flight = if numbered { IN_FLIGHT } else { 1 };
        self.events.push(Event::Ready(Capabilities { name: "modern", numbered, in_flight }));
    }

    /// The broker gives no producer ids: sends without, one request at a time, and what a lost connection may have
    /// doubled is counted.
    fn go_unnumbered(&mut self, why: &str) {
        const LEFT: &str =
            "so batches go without, one at a time, and a lost connection may double the batch in flight";
        log::warn!("no producer id: {why}; {LEFT} (doubled_at_most)");
        self.context.board.driver().push_str("; without producer ids: the broker gives none");
        self.numbered = false;
        self.ready();
    }

    fn unfit(&mut self, why: String) {
        self.unfit.get_or_insert(why);
    }

    fn tell(&mut self, views: Vec<TopicView>) {
        self.events.extend(views.into_iter().map(Event::Topic));
    }

    fn reachable(&mut self, peer: &Peer, yes: bool, now: Instant) {
        let views = self.cluster.reachable(peer.node, &peer.address, yes, now);
        self.tell(views);
    }

    /// A broker that refused a batch says who leads its partition, and since which epoch.
    fn hint(
        &mut self,
        topic: &Topic,
        partition: i32,
        (leader, epoch): (i32, i32),
        nodes: &[Node],
        now: Instant,
    ) {
        let views = self.cluster.hint(topic, partition, leader, epoch, nodes, now);
        self.tell(views);
    }

    /// A broker closed the connection on a Produce request.
    fn hung_up(&mut self, why: &str) {
        let Some(so_far) = self.hang_ups.as_mut() else { return };
        *so_far += 1;
        if *so_far >= HANG_UPS && self.options.unfit == Incompatible::Refused {
            let why = format!("{why} on each of {so_far} Produce requests");
            self.unfit(why);
        }
    }

    /// What a leader knows of a producer. An answer that comes after its time was told already.
    fn knows(&mut self, asked: &Producer, last: Result<Option<(i16, i32)>, String>) {
        let Some(at) = self.asks.iter().position(|(a, _)| a == asked) else { return };
        self.asks.swap_remove(at);
        let Producer { topic, partition, pid } = asked.clone();
        self.events.push(Event::Knows { topic, partition, pid, last });
    }
}

/// This driver alone, in a thread, with channels for the test.
#[cfg(test)]
fn start(
    options: Options,
    board: Arc<crate::report::Board>,
) -> std::io::Result<crate::producer::testing::Ends> {
    Ok(crate::producer::testing::drive(drive(options), board))
}
