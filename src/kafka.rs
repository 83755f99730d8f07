//! The driver for Kafka 0.11 to 4.x: our own record batches over our own sockets. Retries, partitions and sequences
//! belong to the core; the driver never sends a batch twice on its own.
//!
//! It has no thread of its own. The producer's loop drives [`Client`], which owns a [`broker::Broker`] per node and
//! the metadata fetcher, all on non-blocking sockets. Only connecting happens elsewhere, in the dialer's threads.
//!
//! In reading order: [`protocol`] (bytes), [`net`] (connections), [`cluster`] (partition leaders), [`request`]
//! (grouping batches into requests), [`session`] (requests in flight), [`broker`], [`fetcher`] (metadata and producer
//! ids), [`client`] (ties them together), [`health`] (status and log), [`auto`] (chooses this driver or the `kafka`
//! crate), [`broker_check`] (for `check --connect`).
//!
//! Invariant: each batch is held by exactly one broker queue, request or event.
//!
//! # Why it is built this way
//!
//! **An encoder of our own.** Sending 250-byte lines to a broker that only answers, in batches of 900 kB, costs 39 ns a line
//! with it, 94 ns with the `kafka-protocol` crate's encoder and 904 ns with the `kafka` crate (uncompressed; with
//! compression, that is over 90 % of the cost). Answers are decoded by hand too, because generated decoders allocate
//! whatever count an answer announces. librdkafka was never a choice: it is a large C library with threads of its own.
//!
//! **Produce up to version 12.** From 13 on, requests name a topic by its id. Names survive a topic that is deleted and
//! created again; that the id has changed is noticed from the metadata. A request has one record batch per partition: two are
//! refused (error 87). A version the broker does not support closes the connection without an error, so only the versions
//! it announces are used, and of Produce only the highest one counts, because Kafka 4 announces 0 to 2 without serving them
//! (KAFKA-18659).
//!
//! **Large requests rather than many.** A broker handles one request per connection at a time, so requests in flight hide the
//! round trip, but not the replication. What is sent per second is at most batches in flight × batch size / (round trip +
//! replication): with 100 ms, one batch of 16 KiB in flight allows 0.16 MB/s, one of 512 KiB 5 MB/s, five 26 MB/s.
//!
//! **No thread per broker.** A TLS session cannot be read in one thread and written in another without a lock, and one loop
//! over non-blocking sockets needs no protocol between threads. A first version with a blocking worker per broker spent
//! more code on taking batches back from workers than on sending them.

pub mod auto;
mod broker;
pub mod broker_check;
mod client;
mod cluster;
mod fetcher;
mod health;
pub mod net;
mod peer;
pub mod protocol;
mod request;
mod session;

#[cfg(test)]
pub mod scripted;
#[cfg(test)]
mod tests;

use crate::backoff::Rng;
use crate::producer::driver::{Acks, Capabilities, Context, Drive, Event, TopicView};
use crate::record::Topic;
use client::Client;
use cluster::Cluster;
use peer::Peer;
use protocol::codec::Codec;
use protocol::messages::Node;
use protocol::records::Encoder;
use protocol::wire::Writer;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Requests in flight per connection with sequence numbers (KIP-98: the broker remembers five batches per producer).
const IN_FLIGHT: usize = 5;

#[derive(Debug, Clone)]
pub struct KafkaOptions {
    /// `host:port` or `[IPv6]:port`, at least one.
    pub brokers: Vec<String>,
    pub client_id: String,
    /// With `All`, the producer is idempotent and up to five requests are in flight, otherwise one.
    pub acks: Acks,
    pub compression: Codec,
    /// Whether a metadata request lets the broker create the topic.
    pub create_topics: bool,
    /// How long a broker may wait for its replicas. 5 s later it counts as hung.
    pub request_timeout: Duration,
    /// Limit for connecting to one address, and for the first answer.
    pub connect_timeout: Duration,
    /// Exactly-once: nothing may be sent without producer ids.
    pub once: bool,
    /// Maximum bytes of one request including its frame; only a single larger record exceeds it. The encoding buffer
    /// grows to this size (twice with compression) and is freed after 10 s without work.
    pub request_max: usize,
    /// Idle connections are closed after this time, before a NAT on the path forgets them (5 min and up).
    pub idle: Duration,
    /// Maximum age of metadata while all is well. Event Hubs closes connections that are idle for 4 minutes.
    pub metadata_age: Duration,
    /// Every connection goes through it, also that to a token endpoint.
    pub proxy: Option<net::proxy::ProxyOptions>,
    /// `Some` enables TLS.
    pub tls: Option<net::tls::TlsOptions>,
    pub sasl: Option<net::sasl::SaslOptions>,
    pub incompatible: Incompatible,
}

/// When to leave a broker to another driver ([`crate::producer::driver::Leave`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incompatible {
    /// Never: the config names this driver.
    Wait,
    /// If the broker does not support Produce 3.
    TooOld,
    /// Also if the broker claims to support it and then refuses our requests or hangs up on them: another driver may
    /// do better.
    Refused,
}

impl Default for KafkaOptions {
    fn default() -> Self {
        KafkaOptions {
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
            proxy: None,
            tls: None,
            sasl: None,
            incompatible: Incompatible::Wait,
        }
    }
}

/// A producer in a partition, as asked of its leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedProducer {
    topic: Topic,
    partition: i32,
    pid: i64,
}

/// After this many hang-ups on Produce requests, with none ever answered, the broker counts as not supporting ours.
const HANG_UPS: u32 = 5;

/// After this time a question about a producer counts as unanswered: the core expects an answer within 30 s.
const ASK_PATIENCE: Duration = Duration::from_secs(25);
/// Buffers are freed when nothing was sent for this long.
const RELEASE: Duration = Duration::from_secs(10);

/// Creates this driver with these options.
pub fn drive(options: KafkaOptions) -> Drive {
    let options = Arc::new(options);
    Drive::new(move |context| Box::new(Client::new(options.clone(), context.clone())))
}

/// State shared by all parts of this driver.
struct Shared {
    options: Arc<KafkaOptions>,
    context: Context,
    cluster: Cluster,
    /// Events since the last turn.
    events: Vec<Event>,
    /// Hang-ups on Produce requests while none has ever been answered. `None`: one was.
    hang_ups: Option<u32>,
    /// Unanswered questions to leaders, with their deadlines.
    asks: Vec<(AskedProducer, Instant)>,
    /// Batches get producer ids: `acks = "all"`, and the brokers assign ids.
    idempotent: bool,
    /// Why the broker needs another driver.
    incompatible: Option<String>,
    rng: Rng,
    encoder: Encoder,
    /// The buffer of the last fully written request, for reuse.
    spare: Option<Writer>,
    /// When something was last encoded.
    used: Instant,
}

impl Shared {
    fn new(options: Arc<KafkaOptions>, context: Context) -> Self {
        Shared {
            cluster: Cluster::new(options.metadata_age),
            idempotent: options.acks == Acks::All,
            options,
            context,
            events: Vec::new(),
            hang_ups: Some(0),
            asks: Vec::new(),
            incompatible: None,
            rng: Rng::random(),
            encoder: Encoder::default(),
            spare: None,
            used: Instant::now(),
        }
    }

    /// Reports this driver's capabilities to the core.
    fn ready(&mut self) {
        let idempotent = self.idempotent;
        let in_flight = if idempotent { IN_FLIGHT } else { 1 };
        self.events.push(Event::Ready(Capabilities { name: "modern", idempotent, in_flight }));
    }

    /// The broker assigns no producer ids: send without them, one request at a time, and count what a lost connection
    /// may have duplicated.
    fn go_without_producer_ids(&mut self, why: &str) {
        const LEFT: &str = "so batches are sent without it, one at a time, and a lost connection may duplicate the batch in flight";
        log::warn!("no producer id: {why}; {LEFT} (doubled_at_most)");
        self.context.board.driver().push_str("; without producer ids: the broker assigns none");
        self.idempotent = false;
        self.ready();
    }

    fn incompatible(&mut self, why: String) {
        self.incompatible.get_or_insert(why);
    }

    fn tell(&mut self, views: Vec<TopicView>) {
        self.events.extend(views.into_iter().map(Event::Topic));
    }

    fn reachable(&mut self, peer: &Peer, yes: bool, now: Instant) {
        let views = self.cluster.reachable(peer.node, &peer.address, yes, now);
        self.tell(views);
    }

    /// A broker that refused a batch names the partition's leader and its epoch.
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
        if *so_far >= HANG_UPS && self.options.incompatible == Incompatible::Refused {
            let why = format!("{why} on each of {so_far} Produce requests");
            self.incompatible(why);
        }
    }

    /// Passes on a leader's DescribeProducers answer. A late one is ignored, since its question was already reported as
    /// failed.
    fn producer_described(&mut self, asked: &AskedProducer, last: Result<Option<(i16, i32)>, String>) {
        let Some(at) = self.asks.iter().position(|(a, _)| a == asked) else { return };
        self.asks.swap_remove(at);
        let AskedProducer { topic, partition, pid } = asked.clone();
        self.events.push(Event::Described { topic, partition, pid, last });
    }
}
