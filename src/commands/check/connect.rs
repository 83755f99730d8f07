//! `check --connect`: checks the configured brokers, then the leaders of the topics at their advertised addresses.
//! The steps are the modern driver's; advice is added here, and a table of what the cluster can do.

use super::cluster;
use crate::commands::drivers;
use crate::config::{Acks, Codec, Config, Delivery, DriverChoice, Kafka, Output, Partitioner};
use crate::error::Reason;
use crate::kafka::broker_check::{
    self, BrokerCheckStep, BrokerStep, Outcome, PlannedLoad, Speaks, Visit, Visited,
};
use crate::record::Key;
use std::collections::BTreeMap;
use std::time::Duration;

/// Time limit per step.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum number of leaders checked in addition to the configured brokers.
const LEADERS: usize = 16;

/// Reports each step as soon as it is done; returns the table.
pub fn steps(config: &Config, tell: &mut dyn FnMut(BrokerCheckStep)) -> String {
    let Output::Kafka(kafka) = &config.output else { return String::new() };
    let options = drivers::visiting(kafka, PATIENCE);
    let topics = wanted(config, kafka);
    let speaks = match kafka.driver {
        DriverChoice::Classic => Speaks::Classic,
        DriverChoice::Auto if config.needs_modern().is_empty() => Speaks::Any,
        DriverChoice::Auto | DriverChoice::Modern => Speaks::Modern,
    };
    let once = config.agent.delivery == Delivery::ExactlyOnce;
    let numbered = kafka.acks == Acks::All && speaks != Speaks::Classic;
    let fixed = if let Partitioner::Fixed(n) = kafka.partition { Some(n) } else { None };
    let key = kafka.key.as_ref().unwrap_or(&Key::None);
    let visit = |address: &str, topics: &[PlannedLoad<'_>], tell: &mut dyn FnMut(BrokerCheckStep)| {
        let v = Visit { address, options: &options, topics, speaks, fixed, key, once, numbered };
        broker_check::visit(&v, &mut |step| tell(advised(step, kafka.proxy.is_some())))
    };
    let mut all = Vec::new();
    for address in kafka.brokers.iter().map(ToString::to_string) {
        let found = visit(&address, &topics, tell);
        if let Some(why) = another_cluster(&found, &all) {
            let what = BrokerStep::Cluster;
            tell(BrokerCheckStep { what, took: Duration::ZERO, outcome: Outcome::Failed(why) });
        }
        all.push((found, address));
    }
    let leaders: Vec<String> =
        all.iter().flat_map(|(found, _)| found.leaders.clone()).take(LEADERS).collect();
    for address in leaders {
        if !all.iter().any(|(_, seen)| *seen == address) {
            all.push((visit(&address, &[], tell), address));
        }
    }
    cluster::table(config, kafka, &all)
}

/// The first cluster that answers gets the lines, so all brokers must belong to the same one.
fn another_cluster(found: &Visited, before: &[(Visited, String)]) -> Option<Reason> {
    let id = found.cluster.as_ref()?;
    let (other, first) = before.iter().find_map(|(v, address)| Some((v.cluster.as_ref()?, address)))?;
    (id != other).then(|| {
        let why = format!("it belongs to cluster {id}, but {first} to cluster {other}");
        Reason::new(why, "name only brokers of the same cluster in `brokers`")
    })
}

/// Each topic once, with the largest `max_line` of its sources.
fn wanted<'c>(config: &'c Config, kafka: &Kafka) -> Vec<PlannedLoad<'c>> {
    let batch = (kafka.compression == Codec::None).then_some(kafka.batch);
    let mut longest = BTreeMap::new();
    let files = config.sources.iter().map(|s| (s.topic(), s.max_line));
    for (topic, max_line) in files.chain(config.journals.iter().map(|j| (j.topic(), j.max_line))) {
        let of_topic = longest.entry(topic).or_insert(0);
        *of_topic = max_line.max(*of_topic);
    }
    longest.into_iter().map(|(topic, longest_line)| PlannedLoad { topic, longest_line, batch }).collect()
}

/// Adds advice to a problem that has none.
fn advised(mut step: BrokerCheckStep, by_proxy: bool) -> BrokerCheckStep {
    if let Outcome::Doubtful(why) | Outcome::Failed(why) | Outcome::Never(why) = &mut step.outcome {
        why.fix.get_or_insert_with(|| advice(&step.what, by_proxy).to_owned());
    }
    step
}

fn advice(step: &BrokerStep, by_proxy: bool) -> &'static str {
    match step {
        BrokerStep::Name(_) if by_proxy => "correct `proxy` of [kafka], or this machine's DNS and /etc/hosts",
        BrokerStep::Name(_) => {
            "correct the name in `brokers` (or in the brokers' advertised.listeners), or this machine's DNS and /etc/hosts"
        }
        BrokerStep::Tcp(_) if by_proxy => {
            "start the proxy there, or make it reachable (port, firewall, route)"
        }
        BrokerStep::Tcp(_) => "start the broker there, or make it reachable (port, firewall, route)",
        BrokerStep::Proxy => "see the proxy's log",
        BrokerStep::Tls => "see [kafka.tls] and the broker's listener",
        BrokerStep::Token | BrokerStep::Sasl(_) => "see [kafka.sasl] and the broker's log",
        BrokerStep::Versions => "use the address of a Kafka broker",
        _ => "see the broker's log",
    }
}
