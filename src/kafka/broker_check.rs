//! Checks the path to one broker step by step, for `check --connect`. Uses the driver's own connections, so that what
//! works here works there. Writes nothing, creates no topic, and never retries.

use super::KafkaOptions;
use super::net::{probe, tls};
use super::protocol::{errors, limits};
use crate::kafka::net::connection::{self, Connection, METADATA_CAP, Trouble};
use crate::kafka::net::sasl::SaslOptions;
use crate::kafka::net::stream::Stream;
use crate::kafka::protocol::messages::{self, MAY_READ, MAY_WRITE, Metadata, TopicMeta, Versions};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// What to check.
pub struct Visit<'a> {
    /// `host:port`.
    pub address: &'a str,
    pub options: &'a KafkaOptions,
    /// If empty, only the versions are checked.
    pub topics: &'a [PlannedLoad<'a>],
    pub speaks: Speaks,
    /// The read permission is needed too (exactly-once uses `DescribeProducers`).
    pub read: bool,
}

/// What will be sent to a topic, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedLoad<'a> {
    pub topic: &'a str,
    pub longest_line: usize,
    /// `None`: batches are compressed, so their size on the wire is unknown.
    pub batch: Option<usize>,
}

/// Which driver must be able to work with the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    Any,
    Classic,
    Modern,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerCheckStep {
    /// "name", "TCP 10.0.0.5:9092", "TLS", "SASL SCRAM-SHA-512", "versions", "metadata", "write web_log", "read web_log",
    /// "size web_log".
    pub what: String,
    pub took: Duration,
    pub outcome: Outcome,
}

/// The text is the finding; on failure "why" or "why; what to do".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Good(String),
    Doubtful(String),
    Failed(String),
    /// The config asks for something this broker cannot do or does not allow. Waiting does not help.
    Never(String),
}

impl From<Result<String, String>> for Outcome {
    fn from(found: Result<String, String>) -> Self {
        found.map_or_else(Outcome::Failed, Outcome::Good)
    }
}

/// Reports each step as it completes, in this order: name, TCP, TLS, token, SASL, versions, metadata, rights,
/// sizes. Returns the addresses of the topics' leaders.
pub fn visit(v: &Visit<'_>, tell: &mut dyn FnMut(BrokerCheckStep)) -> Vec<String> {
    walk(v, tell).unwrap_or_default()
}

/// Runs one step. `None`: it failed, and the check ends.
fn step<T>(
    what: impl Into<String>,
    tell: &mut dyn FnMut(BrokerCheckStep),
    run: impl FnOnce() -> Result<(T, String), String>,
) -> Option<T> {
    let began = Instant::now();
    let done = run();
    let took = began.elapsed();
    let (value, outcome) = match done {
        Ok((value, found)) => (Some(value), Ok(found)),
        Err(why) => (None, Err(why)),
    };
    tell(BrokerCheckStep { what: what.into(), took, outcome: outcome.into() });
    value
}

fn walk(v: &Visit<'_>, tell: &mut dyn FnMut(BrokerCheckStep)) -> Option<Vec<String>> {
    let limit = v.options.connect_timeout;
    let addresses = step("name", tell, || {
        let all = probe::resolve(v.address)?;
        let shown: Vec<String> = all.iter().map(ToString::to_string).collect();
        Ok((all, shown.join(", ")))
    })?;
    let reach = |one| connection::reach(one, limit).map(|s| (s, "something listens".to_owned()));
    let socket = addresses
        .into_iter()
        .find_map(|one| step(format!("TCP {one}"), tell, || reach(one).map_err(|t| t.to_string())))?;
    let stream = secure(v, socket, tell)?;
    let mut c = Connection::over(stream, METADATA_CAP);
    // ApiVersions comes first on the wire, since it tells whether there is SASL at all.
    let began = Instant::now();
    let versions = c.greet(v.address, v.options);
    let greeting = began.elapsed();
    if let Ok(found) = &versions {
        c.versions = *found;
        authenticate(v, &mut c, tell)?;
    }
    let tells = versions.as_ref().is_ok_and(|found| found.describe_producers.is_some());
    let outcome = versions.map_err(|t| t.to_string()).and_then(|found| suits(&found, v.speaks));
    let failed = outcome.is_err();
    tell(BrokerCheckStep { what: "versions".into(), took: greeting, outcome: outcome.into() });
    if failed {
        return None;
    }
    if v.read && !tells {
        let why = "the broker cannot report a producer's state (before Kafka 2.8), so delivery = \"exactly-once\" is not possible here; upgrade it, or write delivery = \"at-least-once\"";
        let (what, took) = ("DescribeProducers".into(), Duration::ZERO);
        tell(BrokerCheckStep { what, took, outcome: Outcome::Never(why.into()) });
        return None;
    }
    if v.topics.is_empty() {
        return Some(Vec::new());
    }
    let answer = step("metadata", tell, || {
        let answer = metadata(v, &mut c)?;
        let found = format!("{} brokers, {} topics", answer.nodes.len(), answer.topics.len());
        Ok((answer, found))
    })?;
    for wanted in v.topics {
        let meta = answer.topics.iter().find(|t| t.name == wanted.topic);
        rights(v, wanted.topic, meta, tell);
    }
    for wanted in v.topics {
        size(v, wanted, &mut c, tell)?;
    }
    Some(leaders(&answer))
}

fn secure(v: &Visit<'_>, socket: TcpStream, tell: &mut dyn FnMut(BrokerCheckStep)) -> Option<Stream> {
    if v.options.tls.is_none() {
        return Some(Stream::Plain(socket));
    }
    step("TLS", tell, || {
        let stream = connection::secure(socket, v.address, v.options).map_err(|t| t.to_string())?;
        let found = match &stream {
            Stream::Tls(session) => tls::agreed(session),
            Stream::Plain(_) => String::new(),
        };
        Ok((stream, found))
    })
}

fn authenticate(v: &Visit<'_>, c: &mut Connection, tell: &mut dyn FnMut(BrokerCheckStep)) -> Option<()> {
    let Some(sasl) = &v.options.sasl else { return Some(()) };
    let who = match sasl {
        SaslOptions::Plain { login, .. } | SaslOptions::Scram(_, login) => format!("user {}", login.username),
        SaslOptions::OauthBearer(oauth) => {
            let limit = v.options.connect_timeout;
            step("token", tell, || {
                let token = oauth.token(limit).map_err(|t| t.to_string())?;
                Ok(((), format!("from {}, {token}", oauth.origin())))
            })?;
            "the broker takes the token".into()
        }
    };
    step(format!("SASL {}", sasl.mechanism()), tell, || {
        c.authenticate(v.options).map_err(|t| t.to_string())?;
        Ok(((), who))
    })
}

fn suits(found: &Versions, speaks: Speaks) -> Result<String, String> {
    let classic = found.fetch_min == Some(0);
    let modern = found.produce.is_some() && found.metadata.is_some();
    let (most, fetch) = (found.produce_max, found.fetch_min.unwrap_or(-1));
    match (speaks, classic, modern) {
        (Speaks::Classic, false, _) => Err(format!(
            "it no longer supports the kafka crate's requests (Fetch from {fetch}); set driver = \"auto\" or \"modern\""
        )),
        (Speaks::Modern, _, false) => Err(format!(
            "it supports Produce up to {most}, the modern driver needs 3 to 12; set driver = \"auto\" or \"classic\""
        )),
        (_, false, false) => {
            Err(format!("it supports neither driver's requests (Produce up to {most}, Fetch from {fetch})"))
        }
        _ => Ok(format!("Produce up to {most}, Fetch from {fetch}")),
    }
}

fn metadata(v: &Visit<'_>, c: &mut Connection) -> Result<Metadata, String> {
    let Some(version) = c.versions.metadata else {
        return Err("it does not support Metadata version 1 or later".into());
    };
    let id = c.next_correlation();
    let topics: Vec<&str> = v.topics.iter().map(|w| w.topic).collect();
    let request = messages::ask_metadata(version, id, &v.options.client_id, &topics, false);
    let answer = c.call(&request, id, Instant::now() + v.options.connect_timeout).map_err(|t| match t {
        Trouble::Ended if v.options.sasl.is_none() => {
            "it closed the connection at the first request and may require SASL: set [kafka.sasl]".into()
        }
        other => other.to_string(),
    })?;
    messages::metadata(answer, version, &topics).map_err(|e| e.to_string())
}

/// Our permissions on a topic, from the broker's metadata (KIP-430), so that nothing needs to be written.
fn rights(v: &Visit<'_>, topic: &str, meta: Option<&TopicMeta>, tell: &mut dyn FnMut(BrokerCheckStep)) {
    let found = |right: i32, allow: &str| {
        let meta = meta.ok_or("the answer does not mention it")?;
        match (meta.error, meta.rights) {
            (0 | 5, None) => Ok("the broker does not say (it is older than 2.3)".to_owned()),
            (0 | 5, Some(all)) if all & right != 0 => {
                Ok(format!("allowed, {} partitions", meta.partitions.len()))
            }
            (0 | 5, Some(_)) => Err(format!("not allowed; allow {allow} on the topic to this user")),
            (3, _) if v.options.create_topics => {
                Ok("no such topic yet; the broker may create it when the first line is sent".into())
            }
            (code, _) => Err(errors::text(code, "")),
        }
    };
    for (asked, what, right, allow) in
        [(true, "write", MAY_WRITE, "WRITE"), (v.read, "read", MAY_READ, "READ")]
    {
        if asked {
            let outcome = match found(right, allow) {
                // Without write permission, lines wait for it. Without read permission, exactly-once cannot be
                // guaranteed.
                Err(why) if right == MAY_READ => Outcome::Never(why),
                other => other.into(),
            };
            tell(BrokerCheckStep { what: format!("{what} {topic}"), took: Duration::ZERO, outcome });
        }
    }
}

/// Overhead of a batch of one record over its line: the batch header, the record's own lengths, and a margin.
const ENVELOPE: usize = 100;

/// Whether the topic accepts what will be sent. Reports nothing if the broker does not say, for example without the
/// right to DESCRIBE_CONFIGS. `None`: the connection is lost.
fn size(
    v: &Visit<'_>,
    wanted: &PlannedLoad<'_>,
    c: &mut Connection,
    tell: &mut dyn FnMut(BrokerCheckStep),
) -> Option<()> {
    let Some(version) = c.versions.describe_configs else { return Some(()) };
    let began = Instant::now();
    let id = c.next_correlation();
    let request = limits::ask_largest_batch(version, id, &v.options.client_id, wanted.topic);
    let answer = c.call(&request, id, began + v.options.connect_timeout).ok()?;
    let Some(most) = limits::largest_batch(answer, version).ok()? else { return Some(()) };
    let outcome = judge_size(most, wanted);
    tell(BrokerCheckStep { what: format!("size {}", wanted.topic), took: began.elapsed(), outcome });
    Some(())
}

fn judge_size(most: u64, wanted: &PlannedLoad<'_>) -> Outcome {
    let fits = |n: usize| n as u64 + ENVELOPE as u64 <= most;
    let least = wanted.longest_line.max(wanted.batch.unwrap_or(0)) + ENVELOPE;
    if !fits(wanted.longest_line) {
        let fit = most.saturating_sub(ENVELOPE as u64);
        return Outcome::Doubtful(format!(
            "max.message.bytes is {most}, so lines near max_line ({}) are refused and go to the dead-letter file; set it to \
             {least} on the topic, or write max_line = {fit}",
            wanted.longest_line
        ));
    }
    match wanted.batch {
        Some(batch) if !fits(batch) => Outcome::Doubtful(format!(
            "max.message.bytes is {most}, so full batches ({batch} bytes) are refused and sent again in parts; set it to \
             {least} on the topic, or write batch = {}",
            most.saturating_sub(ENVELOPE as u64)
        )),
        _ => Outcome::Good(format!("max.message.bytes is {most}")),
    }
}

fn leaders(answer: &Metadata) -> Vec<String> {
    let leads = |id: i32| answer.topics.iter().any(|t| t.partitions.iter().any(|p| p.leader == id));
    answer.nodes.iter().filter(|n| leads(n.id)).map(messages::Node::address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when a limit one byte too small passes, or the batch limit is applied although batches are compressed.
    #[test]
    fn sizes() {
        let wanted = |longest_line, batch| PlannedLoad { topic: "t", longest_line, batch };
        let judged = |most, w: PlannedLoad<'_>| match judge_size(most, &w) {
            Outcome::Good(_) => "good",
            Outcome::Doubtful(why) if why.contains("max_line (1000)") => "line",
            Outcome::Doubtful(why) if why.contains("batch = 1900") => "batch",
            other => panic!("{other:?}"),
        };
        assert_eq!(judged(1100, wanted(1000, None)), "good");
        assert_eq!(judged(1099, wanted(1000, None)), "line");
        assert_eq!(judged(2000, wanted(1000, Some(1900))), "good");
        assert_eq!(judged(2000, wanted(1000, Some(1901))), "batch");
        assert_eq!(judged(0, wanted(1000, Some(9))), "line");
    }
}
