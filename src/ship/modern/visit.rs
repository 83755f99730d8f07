//! The way to one broker, step by step, for `check --connect`: by the connections that the driver itself makes, so that
//! what works here works there. Writes nothing, creates no topic, and tries nothing twice.

use super::connection::{self, Connection, METADATA_CAP, Trouble};
use super::messages::{self, MAY_READ, MAY_WRITE, Metadata, TopicMeta, Versions};
use super::stream::Stream;
use super::{Options, errors, tls};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// What is to be found out.
pub struct Visit<'a> {
    /// `host:port`.
    pub address: &'a str,
    pub options: &'a Options,
    /// Empty: nothing is asked beyond the versions.
    pub topics: &'a [&'a str],
    pub speaks: Speaks,
    /// The right to read is needed too (exactly-once asks `DescribeProducers`).
    pub read: bool,
}

/// Which driver must be able to work with the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    Any,
    Classic,
    Modern,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// "name", "TCP 10.0.0.5:9092", "TLS", "SASL SCRAM-SHA-512", "versions", "metadata", "write web_log", "read web_log".
    pub what: String,
    pub took: Duration,
    /// What was found; else "why", or "why; what to do".
    pub outcome: Result<String, String>,
    /// Where it failed: the config asks for what this broker cannot do, or does not allow. No waiting mends it.
    pub never: bool,
}

/// Tells each step as it is done, in this order: name, TCP, TLS, SASL, versions, metadata, rights. Gives the addresses of
/// the topics' leaders.
pub fn visit(v: &Visit<'_>, tell: &mut dyn FnMut(Step)) -> Vec<String> {
    walk(v, tell).unwrap_or_default()
}

/// Runs one step; `None`: it failed, and there is no next.
fn step<T>(
    what: impl Into<String>,
    tell: &mut dyn FnMut(Step),
    run: impl FnOnce() -> Result<(T, String), String>,
) -> Option<T> {
    let began = Instant::now();
    let done = run();
    let took = began.elapsed();
    let (value, outcome) = match done {
        Ok((value, found)) => (Some(value), Ok(found)),
        Err(why) => (None, Err(why)),
    };
    tell(Step { what: what.into(), took, outcome, never: false });
    value
}

fn walk(v: &Visit<'_>, tell: &mut dyn FnMut(Step)) -> Option<Vec<String>> {
    let limit = v.options.connect_timeout;
    let addresses = step("name", tell, || {
        let all = connection::resolve(v.address).map_err(|t| t.to_string())?;
        let shown: Vec<String> = all.iter().map(ToString::to_string).collect();
        Ok((all, shown.join(", ")))
    })?;
    let reach = |one| connection::reach(one, limit).map(|s| (s, "something listens".to_owned()));
    let socket = addresses
        .into_iter()
        .find_map(|one| step(format!("TCP {one}"), tell, || reach(one).map_err(|t| t.to_string())))?;
    let stream = secure(v, socket, tell)?;
    let mut c = Connection::over(stream, METADATA_CAP);
    // The question about the versions comes first on the wire, for it says whether there is SASL at all.
    let began = Instant::now();
    let versions = c.greet(v.options);
    let greeting = began.elapsed();
    if let Ok(found) = &versions {
        c.versions = *found;
        authenticate(v, &mut c, tell)?;
    }
    let told = versions.as_ref().ok().map(|found| found.describe_producers.is_some());
    let outcome = versions.map_err(|t| t.to_string()).and_then(|found| suits(&found, v.speaks));
    let failed = outcome.is_err();
    tell(Step { what: "versions".into(), took: greeting, outcome, never: false });
    if v.read && told == Some(false) {
        let why = "the broker cannot tell what it has of a producer (before Kafka 2.8), so delivery = \"exactly-once\" \
                   cannot be kept here; upgrade it, or write delivery = \"at-least-once\"";
        let (what, took) = ("DescribeProducers".into(), Duration::ZERO);
        tell(Step { what, took, outcome: Err(why.into()), never: true });
        return None;
    }
    if failed {
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
    for topic in v.topics {
        let meta = answer.topics.iter().find(|t| t.name == *topic);
        rights(v, topic, meta, tell);
    }
    Some(leaders(&answer))
}

fn secure(v: &Visit<'_>, socket: TcpStream, tell: &mut dyn FnMut(Step)) -> Option<Stream> {
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

fn authenticate(v: &Visit<'_>, c: &mut Connection, tell: &mut dyn FnMut(Step)) -> Option<()> {
    let Some(sasl) = &v.options.sasl else { return Some(()) };
    step(format!("SASL {}", sasl.mechanism.name()), tell, || {
        c.authenticate(v.options).map_err(|t| t.to_string())?;
        Ok(((), format!("user {}", sasl.username)))
    })
}

fn suits(found: &Versions, speaks: Speaks) -> Result<String, String> {
    let classic = found.fetch_min == Some(0);
    let modern = found.produce.is_some() && found.metadata.is_some();
    let (most, fetch) = (found.produce_max, found.fetch_min.unwrap_or(-1));
    match (speaks, classic, modern) {
        (Speaks::Classic, false, _) => Err(format!(
            "it no longer takes the kafka crate's requests (Fetch from {fetch}); set driver = \"auto\" or \"modern\""
        )),
        (Speaks::Modern, _, false) => Err(format!(
            "it takes Produce up to {most}, the modern driver speaks 3 to 12; set driver = \"auto\" or \"classic\""
        )),
        (_, false, false) => {
            Err(format!("it takes neither driver's requests (Produce up to {most}, Fetch from {fetch})"))
        }
        _ => Ok(format!("Produce up to {most}, Fetch from {fetch}")),
    }
}

fn metadata(v: &Visit<'_>, c: &mut Connection) -> Result<Metadata, String> {
    let Some(version) = c.versions.metadata else {
        return Err("it takes no Metadata from version 1 on".into());
    };
    let id = c.next_correlation();
    let request = messages::ask_metadata(version, id, &v.options.client_id, v.topics, false);
    let answer = c.call(&request, id, Instant::now() + v.options.connect_timeout).map_err(|t| match t {
        Trouble::Ended if v.options.sasl.is_none() => {
            "closed at the first question; it may ask for SASL: set [kafka.sasl]".into()
        }
        other => other.to_string(),
    })?;
    messages::metadata(answer, version, v.topics).map_err(|e| e.to_string())
}

/// What we may do with a topic, as the broker says with its metadata (KIP-430); so nothing need be written.
fn rights(v: &Visit<'_>, topic: &str, meta: Option<&TopicMeta>, tell: &mut dyn FnMut(Step)) {
    let found = |right: i32, allow: &str| {
        let meta = meta.ok_or("the answer does not speak of it")?;
        match (meta.error, meta.rights) {
            (0 | 5, None) => Ok("the broker does not say (it is older than 2.3)".to_owned()),
            (0 | 5, Some(all)) if all & right != 0 => {
                Ok(format!("allowed, {} partitions", meta.partitions.len()))
            }
            (0 | 5, Some(_)) => Err(format!("not allowed; allow {allow} on the topic to this user")),
            (3, _) if v.options.create_topics => {
                Ok("no such topic yet; the broker may create it with the first line".into())
            }
            (code, _) => Err(errors::text(code, "")),
        }
    };
    for (asked, what, right, allow) in
        [(true, "write", MAY_WRITE, "WRITE"), (v.read, "read", MAY_READ, "READ")]
    {
        if asked {
            let outcome = found(right, allow);
            // Without the right to write lines wait for it; without that to read, exactly-once cannot be kept at all.
            let never = right == MAY_READ && outcome.is_err();
            tell(Step { what: format!("{what} {topic}"), took: Duration::ZERO, outcome, never });
        }
    }
}

fn leaders(answer: &Metadata) -> Vec<String> {
    let leads = |id: i32| answer.topics.iter().any(|t| t.partitions.iter().any(|p| p.leader == id));
    answer.nodes.iter().filter(|n| leads(n.id)).map(messages::Node::address).collect()
}
