//! Checks the path to one broker step by step, for `check --connect`. Uses the driver's own connections, so that what
//! works here works there. Writes no record, creates no topic, and never retries.

mod old_requests;
mod topics;

use super::KafkaOptions;
use super::fetcher::may_ask_for_sasl;
use super::net::{open, proxy, socket, tls};
use super::protocol::errors;
use crate::error::Reason;
use crate::kafka::net::connection::{Connection, METADATA_CAP};
use crate::kafka::net::sasl::SaslOptions;
use crate::kafka::net::stream::{CountedSocket, Stream};
use crate::kafka::net::trouble::Trouble;
use crate::kafka::protocol::messages::{self, MAY_READ, Metadata, Versions};
use crate::producer::driver::Pace;
use crate::record::Key;
use crate::waker::poll_for;
use std::fmt;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::vec;
use topics::{creates_topics, key, leaders, rights, size};

/// What to check.
pub struct Visit<'a> {
    /// `host:port`.
    pub address: &'a str,
    pub options: &'a KafkaOptions,
    /// If empty, only the versions are checked.
    pub topics: &'a [PlannedLoad<'a>],
    pub speaks: Speaks,
    /// The partition that all lines go to.
    pub fixed: Option<i32>,
    pub key: &'a Key,
    /// Exactly-once: `DescribeProducers` and the right to read are needed too.
    pub once: bool,
    /// Batches will get producer ids, if the broker assigns them.
    pub numbered: bool,
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

/// What is tried, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerStep {
    /// Name resolution of this host. With a proxy, this step and the next are about the proxy.
    Name(String),
    Tcp(SocketAddr),
    Proxy,
    Tls,
    Token,
    /// The mechanism.
    Sasl(&'static str),
    Versions,
    DescribeProducers,
    Metadata,
    /// Whether the brokers of the config belong together.
    Cluster,
    ProducerId,
    /// Permission to write to a topic and to read it, and whether it accepts what will be sent: its size, and its key.
    Write(String),
    Read(String),
    Size(String),
    Key(String),
    OldRequests,
}

impl fmt::Display for BrokerStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BrokerStep::Name(host) => write!(f, "name {host}"),
            BrokerStep::Tcp(at) => write!(f, "TCP {at}"),
            BrokerStep::Proxy => f.write_str("proxy"),
            BrokerStep::Tls => f.write_str("TLS"),
            BrokerStep::Token => f.write_str("token"),
            BrokerStep::Sasl(mechanism) => write!(f, "SASL {mechanism}"),
            BrokerStep::Versions => f.write_str("versions"),
            BrokerStep::DescribeProducers => f.write_str("DescribeProducers"),
            BrokerStep::Metadata => f.write_str("metadata"),
            BrokerStep::Cluster => f.write_str("cluster id"),
            BrokerStep::ProducerId => f.write_str("producer id"),
            BrokerStep::Write(topic) => write!(f, "write {topic}"),
            BrokerStep::Read(topic) => write!(f, "read {topic}"),
            BrokerStep::Size(topic) => write!(f, "size {topic}"),
            BrokerStep::Key(topic) => write!(f, "key {topic}"),
            BrokerStep::OldRequests => f.write_str("old requests"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerCheckStep {
    pub what: BrokerStep,
    pub took: Duration,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// What was found.
    Good(String),
    Doubtful(Reason),
    Failed(Reason),
    /// The config asks for something this broker cannot do or does not allow. Waiting does not help.
    Never(Reason),
}

impl From<Result<String, Reason>> for Outcome {
    fn from(found: Result<String, Reason>) -> Self {
        found.map_or_else(Outcome::Failed, Outcome::Good)
    }
}

/// The capabilities of a broker, as far as the check got.
#[derive(Debug, Clone, Default)]
pub struct Visited {
    /// `None`: it could not be asked.
    pub versions: Option<Versions>,
    /// Whether it assigned a producer id. `None`: it was not asked.
    pub assigns_ids: Option<bool>,
    /// The topics that we may not read.
    pub unreadable: Vec<String>,
    /// Each topic's `max.message.bytes`, if the broker says.
    pub largest: Vec<(String, u64)>,
    /// `auto.create.topics.enable`, if the broker says.
    pub creates_topics: Option<bool>,
    /// The addresses of the topics' leaders.
    pub leaders: Vec<String>,
    /// The cluster's id, if the broker says.
    pub cluster: Option<String>,
}

/// Reports each step as it completes.
pub fn visit(v: &Visit<'_>, tell: &mut dyn FnMut(BrokerCheckStep)) -> Visited {
    let mut found = Visited::default();
    let _ = walk(v, &mut found, tell);
    found
}

/// Runs one step. `None`: it failed, and the check ends.
fn step<T>(
    what: BrokerStep,
    tell: &mut dyn FnMut(BrokerCheckStep),
    run: impl FnOnce() -> Result<(T, String), Reason>,
) -> Option<T> {
    let began = Instant::now();
    let done = run();
    let took = began.elapsed();
    let (value, outcome) = match done {
        Ok((value, found)) => (Some(value), Ok(found)),
        Err(why) => (None, Err(why)),
    };
    tell(BrokerCheckStep { what, took, outcome: outcome.into() });
    value
}

fn walk(v: &Visit<'_>, to: &mut Visited, tell: &mut dyn FnMut(BrokerCheckStep)) -> Option<()> {
    let (mut c, greeting) = greeted(v, tell)?;
    authenticate(v, &mut c, tell)?;
    to.versions = Some(c.versions);
    let outcome = suits(&c.versions, v.speaks);
    let failed = outcome.is_err();
    tell(BrokerCheckStep { what: BrokerStep::Versions, took: greeting, outcome: outcome.into() });
    if failed {
        return None;
    }
    if v.once && c.versions.describe_producers.is_none() {
        let why = Reason::new(
            "the broker cannot report a producer's state (before Kafka 2.8), so delivery = \"exactly-once\" is not possible \
             here",
            "upgrade it, or write delivery = \"at-least-once\"",
        );
        let (what, took) = (BrokerStep::DescribeProducers, Duration::ZERO);
        tell(BrokerCheckStep { what, took, outcome: Outcome::Never(why) });
        return None;
    }
    if v.topics.is_empty() {
        return Some(());
    }
    let answer = step(BrokerStep::Metadata, tell, || {
        let answer = metadata(v, &mut c)?;
        let found = format!("{} brokers, {} topics", answer.nodes.len(), answer.topics.len());
        Ok((answer, found))
    })?;
    to.leaders = leaders(&answer);
    to.cluster = answer.cluster.clone();
    if v.numbered {
        to.assigns_ids = producer_id(v, &mut c, tell)?;
    }
    for wanted in v.topics {
        let meta = answer.topics.iter().find(|t| t.name == wanted.topic);
        if meta.is_some_and(|t| t.rights.is_some_and(|all| all & MAY_READ == 0)) {
            to.unreadable.push(wanted.topic.to_owned());
        }
        rights(v, wanted.topic, meta, tell);
    }
    if v.speaks == Speaks::Classic {
        step(BrokerStep::OldRequests, tell, || {
            Ok(((), old_requests::are_accepted(v, v.topics[0].topic, &mut c)?))
        })?;
    }
    for wanted in v.topics {
        to.largest.extend(size(v, wanted, &mut c, tell)?.map(|most| (wanted.topic.to_owned(), most)));
        key(v, wanted.topic, &mut c, tell)?;
    }
    to.creates_topics = creates_topics(v, &answer, &mut c);
    Some(())
}

/// A connection to the first of the name's addresses that answers, its versions, and how long they took. The agent tries
/// the next address too, so only the last one fails the check.
fn greeted(v: &Visit<'_>, tell: &mut dyn FnMut(BrokerCheckStep)) -> Option<(Connection, Duration)> {
    let address = v.options.proxy.as_ref().map_or(v.address, |proxy| &proxy.url.address);
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let addresses = step(BrokerStep::Name(host.to_owned()), tell, || {
        let all = socket::resolve(address)?;
        let shown: Vec<String> = all.iter().map(ToString::to_string).collect();
        Ok((all, shown.join(", ")))
    })?;
    let mut left = addresses.into_iter();
    loop {
        let socket = CountedSocket::new(connect(v, &mut left, tell)?, &Arc::default());
        let is_last = left.len() == 0;
        let mut tell = |s: BrokerCheckStep| match s.outcome {
            Outcome::Failed(why) if !is_last => {
                tell(BrokerCheckStep { outcome: Outcome::Doubtful(why), ..s })
            }
            _ => tell(s),
        };
        if let Some(stream) = secure(v, socket, &mut tell) {
            let mut c = Connection::over(stream, METADATA_CAP);
            // ApiVersions comes first on the wire, since it tells whether there is SASL at all.
            let began = Instant::now();
            let versions = c.greet(v.address, v.options, &Arc::default());
            let took = began.elapsed();
            match versions {
                Ok(found) => {
                    c.versions = found;
                    return Some((c, took));
                }
                Err(t) => {
                    let outcome = Outcome::Failed(t.into_reason());
                    tell(BrokerCheckStep { what: BrokerStep::Versions, took, outcome });
                }
            }
        }
        if is_last {
            return None;
        }
    }
}

/// A socket to the broker, directly or through the proxy, at the next address that can be reached.
fn connect(
    v: &Visit<'_>,
    left: &mut vec::IntoIter<SocketAddr>,
    tell: &mut dyn FnMut(BrokerCheckStep),
) -> Option<TcpStream> {
    let limit = v.options.connect_timeout;
    let proxy = v.options.proxy.as_ref();
    let socket = loop {
        let one = left.next()?;
        let began = Instant::now();
        let (socket, outcome) = match socket::reach(one, limit) {
            Ok(socket) => (Some(socket), Outcome::Good("connected".into())),
            // `localhost` is often ::1 and 127.0.0.1.
            Err(t) if left.len() > 0 => (None, Outcome::Doubtful(t.into_reason())),
            Err(t) => (None, Outcome::Failed(t.into_reason())),
        };
        tell(BrokerCheckStep { what: BrokerStep::Tcp(one), took: began.elapsed(), outcome });
        if let Some(socket) = socket {
            break socket;
        }
    };
    let Some(proxy) = proxy else { return Some(socket) };
    step(BrokerStep::Proxy, tell, || match proxy::tunnel(socket, v.address, proxy, limit) {
        Ok(socket) => Ok((socket, format!("{} connects to {}", proxy.url, v.address))),
        Err(t) => Err(t.into_reason()),
    })
}

fn secure(v: &Visit<'_>, socket: CountedSocket, tell: &mut dyn FnMut(BrokerCheckStep)) -> Option<Stream> {
    if v.options.tls.is_none() {
        return Some(Stream::Plain(socket));
    }
    step(BrokerStep::Tls, tell, || {
        let stream = socket::secure(socket, v.address, v.options).map_err(Trouble::into_reason)?;
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
            step(BrokerStep::Token, tell, || {
                let token = oauth.token(v.options).map_err(Trouble::into_reason)?;
                Ok(((), format!("from {}, {token}", oauth.origin())))
            })?;
            "the broker accepts the token".into()
        }
    };
    step(BrokerStep::Sasl(sasl.mechanism()), tell, || {
        c.authenticate(v.options).map_err(Trouble::into_reason)?;
        Ok(((), who))
    })
}

/// Whether the broker assigns producer ids, if it says. Each call uses up one 64-bit id of the cluster. `None`: the
/// connection is lost.
fn producer_id(
    v: &Visit<'_>,
    c: &mut Connection,
    tell: &mut dyn FnMut(BrokerCheckStep),
) -> Option<Option<bool>> {
    let began = Instant::now();
    let mut answer = ask_producer_id(v, c);
    // A broker that has never assigned one, or has just started, may answer "not now" a few times.
    while answer.as_ref().is_ok_and(|code| is_not_now(*code)) && began.elapsed() < v.options.connect_timeout {
        let _ = poll_for(&mut [], Some(Duration::from_millis(200)));
        answer = ask_producer_id(v, c);
    }
    let assigns = match answer {
        Ok(0) => Some(Some(true)),
        Ok(code) if is_not_now(code) => Some(None),
        Ok(_) => Some(Some(false)),
        Err(_) => None,
    };
    let outcome = match answer {
        Ok(0) => Outcome::Good("the broker assigns one, and so recognizes repeated batches".into()),
        Ok(UNSUPPORTED_VERSION) => {
            let why = "the broker assigns none";
            if v.once {
                let fix = "use another cluster, or write delivery = \"at-least-once\"";
                Outcome::Never(Reason::new(format!("{why}, which exactly-once needs"), fix))
            } else {
                let why = format!(
                    "{why}, so batches are sent one at a time, and a lost connection may duplicate one"
                );
                Outcome::Doubtful(Reason::new(why, "use Kafka 0.11 or newer if that matters"))
            }
        }
        Ok(code) if is_not_now(code) => Outcome::Doubtful(errors::reason(code, "")),
        // `auto` then chooses the other driver.
        Ok(code @ (31 | 53)) if v.speaks == Speaks::Any => Outcome::Doubtful(errors::reason(code, "")),
        Ok(code) => Outcome::Failed(errors::reason(code, "")),
        Err(why) => Outcome::Failed(why),
    };
    tell(BrokerCheckStep { what: BrokerStep::ProducerId, took: began.elapsed(), outcome });
    assigns
}

fn is_not_now(code: i16) -> bool {
    errors::of(code).fate == errors::Fate::Retry(Pace::Backoff)
}

const UNSUPPORTED_VERSION: i16 = 35;

/// The code of the answer.
fn ask_producer_id(v: &Visit<'_>, c: &mut Connection) -> Result<i16, Reason> {
    let Some(version) = c.versions.init_producer_id else { return Ok(UNSUPPORTED_VERSION) };
    let id = c.next_correlation();
    let request = messages::ask_producer_id(version, id, &v.options.client_id);
    let deadline = Instant::now() + v.options.connect_timeout;
    let answer = c.call(&request, id, deadline).map_err(Trouble::into_reason)?;
    let (code, ..) = messages::producer_id(answer, version).map_err(|e| e.to_string())?;
    Ok(code)
}

fn suits(found: &Versions, speaks: Speaks) -> Result<String, Reason> {
    let classic = found.suits_classic();
    let modern = found.suits_modern() && found.metadata.is_some();
    let most = found.produce_max;
    match (speaks, classic, modern) {
        (Speaks::Classic, false, _) => Err(Reason::new(
            format!("it no longer supports the kafka crate's requests ({found})"),
            "set driver = \"auto\" or \"modern\"",
        )),
        (Speaks::Modern, _, false) => Err(Reason::new(
            format!("it supports Produce up to {most}, the modern driver needs 3 to 12"),
            "set driver = \"auto\" or \"classic\"",
        )),
        (_, false, false) => Err(match found.produce_max {
            ..0 => open::controller(),
            _ => format!("it supports neither driver's requests ({found})").into(),
        }),
        _ => Ok(found.to_string()),
    }
}

fn metadata(v: &Visit<'_>, c: &mut Connection) -> Result<Metadata, Reason> {
    let Some(version) = c.versions.metadata else {
        return Err("it does not support Metadata version 1 or later".into());
    };
    let id = c.next_correlation();
    let topics: Vec<&str> = v.topics.iter().map(|w| w.topic).collect();
    let request = messages::ask_metadata(version, id, &v.options.client_id, &topics, false);
    let answer = c.call(&request, id, Instant::now() + v.options.connect_timeout).map_err(|t| match t {
        Trouble::Ended if v.options.sasl.is_none() => may_ask_for_sasl(),
        other => other.into_reason(),
    })?;
    messages::metadata(answer, version, &topics).map_err(|e| e.to_string().into())
}
