//! Asks what listens at an address in plain text, before any driver talks to it: a [`Connection`] tells Kafka from a TLS
//! port, a web server, a silent peer and a closed port, within limits of time and memory.

use crate::kafka::KafkaOptions;
use crate::kafka::net::connection::{Connection, METADATA_CAP};
use crate::kafka::net::socket::{dial, resolve};
use crate::kafka::net::trouble::Trouble;
use crate::kafka::protocol::messages::{self, Versions};
use crate::traffic::SocketBytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Limit for connecting, and for each answer. A mobile link that repeats its SYN after 1, 3 and 7 s still gets through.
pub const LIMIT: Duration = Duration::from_secs(10);

/// A broker that has not answered in this time is not waited for while another can be asked.
pub const HURRY: Duration = Duration::from_secs(3);

/// The reason where [`ask`] finds a peer that closes the connection on ApiVersions.
pub const CLOSED: &str = "closed the connection on the first request (Kafka 0.9, or not Kafka)";

/// The versions that the broker supports. `None`: it closes the connection on ApiVersions. Kafka 0.9 does that (KIP-35
/// came with 0.10), and so do many other servers.
pub fn ask(addr: SocketAddr, limit: Duration, bytes: &Arc<SocketBytes>) -> Result<Option<Versions>, Trouble> {
    let (mut c, options) = connect(addr, limit, bytes)?;
    match c.negotiate(&addr.to_string(), &options, bytes) {
        Err(Trouble::Ended) => Ok(None),
        versions => versions.map(Some),
    }
}

/// As [`ask`], for each address of a name until one answers, which is returned too. One that closes the connection counts
/// only if none answers.
pub fn ask_host(
    host: &str,
    limit: Duration,
    bytes: &Arc<SocketBytes>,
) -> Result<(SocketAddr, Option<Versions>), String> {
    let mut last = Err(String::new());
    for addr in resolve(host)? {
        match ask(addr, limit, bytes) {
            Ok(Some(found)) => return Ok((addr, Some(found))),
            Ok(None) => last = Ok((addr, None)),
            Err(t) => last = last.map_err(|_| t.to_string()),
        }
    }
    last
}

fn connect(
    addr: SocketAddr,
    limit: Duration,
    bytes: &Arc<SocketBytes>,
) -> Result<(Connection, KafkaOptions), Trouble> {
    let options = KafkaOptions { connect_timeout: limit, ..KafkaOptions::default() };
    let stream = dial(&addr.to_string(), &options, bytes)?;
    Ok((Connection::over(stream, METADATA_CAP), options))
}

/// A topic's metadata from a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicAnswer {
    /// Kafka's error code; 0: none.
    pub code: i16,
    /// Ascending.
    pub partitions: Vec<i32>,
}

/// Requests one topic with Metadata v4 (Kafka 0.11), the first version that lets the client decide whether the topic
/// is created. Returns the error code and partition ids, which the `kafka` crate drops or panics on (D9).
pub fn topic(
    addr: SocketAddr,
    name: &str,
    create: bool,
    limit: Duration,
    bytes: &Arc<SocketBytes>,
) -> Result<TopicAnswer, Trouble> {
    const VERSION: i16 = 4;
    let (mut c, options) = connect(addr, limit, bytes)?;
    let id = c.next_correlation();
    let request = messages::ask_metadata(VERSION, id, &options.client_id, &[name], create);
    let answer = c.call(&request, id, Instant::now() + limit)?;
    let found = messages::metadata(answer, VERSION, &[name])?.topics.pop();
    let found = found.ok_or_else(|| Trouble::Lost("its Metadata answer does not name the topic".into()))?;
    let mut partitions: Vec<i32> = found.partitions.iter().map(|p| p.partition).collect();
    partitions.sort_unstable();
    Ok(TopicAnswer { code: found.error, partitions })
}

#[cfg(test)]
mod tests;
