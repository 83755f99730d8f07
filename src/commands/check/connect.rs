//! `check --connect`: checks the configured brokers, then the leaders of the topics at their advertised addresses.
//! The steps are the modern driver's; advice is added here.

use super::{CheckOutcome, CheckProblem, CheckStep};
use crate::commands::drivers;
use crate::config::{Codec, Config, Delivery, DriverChoice, Kafka, Output};
use crate::kafka::broker_check::{self, PlannedLoad, Speaks, Visit};
use std::collections::BTreeMap;
use std::time::Duration;

/// Time limit per step.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum number of leaders checked in addition to the configured brokers.
const LEADERS: usize = 16;

pub fn steps(config: &Config, tell: &mut dyn FnMut(CheckStep)) {
    let Output::Kafka(kafka) = &config.output else { return };
    let options = drivers::visiting(kafka, PATIENCE);
    let topics = wanted(config, kafka);
    let speaks = match kafka.driver {
        DriverChoice::Classic => Speaks::Classic,
        DriverChoice::Auto if config.needs_modern().is_empty() => Speaks::Any,
        DriverChoice::Auto | DriverChoice::Modern => Speaks::Modern,
    };
    let read = config.agent.delivery == Delivery::ExactlyOnce;
    let mut seen: Vec<String> = kafka.brokers.iter().map(ToString::to_string).collect();
    let mut leaders = Vec::new();
    for address in &seen {
        let v = Visit { address, options: &options, topics: &topics, speaks, read };
        leaders.extend(broker_check::visit(&v, &mut |step| tell(advised(step, address))));
    }
    for address in leaders.into_iter().take(LEADERS) {
        if !seen.contains(&address) {
            let v = Visit { address: &address, options: &options, topics: &[], speaks, read };
            broker_check::visit(&v, &mut |step| tell(advised(step, &address)));
            seen.push(address);
        }
    }
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

/// Adds the broker's name if the step lacks it, and advice if the step failed.
fn advised(step: broker_check::BrokerCheckStep, address: &str) -> CheckStep {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let what = match step.what.as_str() {
        "name" => format!("name {host}"),
        other => other.to_owned(),
    };
    let trouble = |finding: String| match finding.rsplit_once("; ") {
        Some((why, fix)) => CheckProblem { why: why.to_owned(), fix: fix.to_owned() },
        None => CheckProblem { fix: advice(&what).to_owned(), why: finding },
    };
    let outcome = match step.outcome {
        broker_check::Outcome::Good(found) => CheckOutcome::Good(found),
        broker_check::Outcome::Doubtful(finding) => CheckOutcome::Doubtful(trouble(finding)),
        broker_check::Outcome::Failed(finding) => CheckOutcome::Failed(trouble(finding)),
        broker_check::Outcome::Never(finding) => CheckOutcome::Never(trouble(finding)),
    };
    CheckStep { what, took: step.took, outcome }
}

fn advice(what: &str) -> &'static str {
    match what.split(' ').next().unwrap_or_default() {
        "name" => {
            "correct the name in `brokers` (or in the brokers' advertised.listeners), or this machine's DNS and /etc/hosts"
        }
        "TCP" => "start the broker there, or make it reachable (port, firewall, route)",
        "TLS" => "see [kafka.tls] and the broker's listener",
        "SASL" | "token" => "see [kafka.sasl] and the broker's log",
        "versions" => "use the address of a Kafka broker",
        _ => "see the broker's log",
    }
}
