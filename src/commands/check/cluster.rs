//! The table at the end of `check --connect`: what the cluster can and cannot do, and which guarantee follows for this
//! config. A feature counts only if every broker that answered has it.

use crate::config::{Acks, Config, Delivery, DriverChoice, Kafka, Sync};
use crate::error::Escaped;
use crate::kafka::broker_check::Visited;
use crate::kafka::protocol::messages::Versions;

/// The brokers and their addresses.
type Brokers = [(Visited, String)];

/// Empty if no broker answered.
pub fn table(config: &Config, kafka: &Kafka, all: &Brokers) -> String {
    let answered = all.iter().filter(|(found, _)| found.versions.is_some()).count();
    if answered == 0 {
        return String::new();
    }
    let cluster = Capable::of(all);
    let mut rows = Vec::new();
    if answered < all.len() {
        rows.push(("brokers", format!("{answered} of {} answered, and only these count here", all.len())));
    }
    rows.push(("idempotence", yes_or_no(&cluster.numbered)));
    rows.push(("exactly-once", yes_or_no(&cluster.once)));
    rows.push(("compression", codecs(all)));
    rows.push(("largest record", largest(all)));
    rows.push(("new topics", new_topics(kafka, all)));
    rows.push(("guarantee", guarantee(config, kafka, &cluster)));
    let mut text = String::new();
    for (i, (what, told)) in rows.iter().enumerate() {
        let head = if i == 0 { "cluster" } else { "" };
        text.push_str(&format!("{head:<9}{what:<16}{}\n", Escaped(told)));
    }
    text
}

/// What all brokers support, or why not.
struct Capable {
    /// The modern driver may be used.
    modern: bool,
    numbered: Result<&'static str, String>,
    once: Result<&'static str, String>,
}

impl Capable {
    fn of(all: &Brokers) -> Capable {
        let lacking = |has: fn(&Versions) -> bool| {
            let lacks = |(found, _): &&(Visited, String)| found.versions.is_some_and(|v| !has(&v));
            all.iter().find(lacks).map(|(_, address)| address)
        };
        let refusing = all.iter().find(|(found, _)| found.assigns_ids == Some(false));
        let numbered = match (lacking(|v| v.init_producer_id.is_some()), refusing) {
            (Some(address), _) => Err(format!("{address} has no InitProducerId (needs Kafka 0.11)")),
            (None, Some((_, address))) => Err(format!("{address} assigns no producer id, see above")),
            (None, None) => Ok("the brokers recognize a batch that is sent twice"),
        };
        let unreadable = all.iter().find_map(|(found, _)| found.unreadable.first());
        let once = match (&numbered, lacking(|v| v.describe_producers.is_some()), unreadable) {
            (Err(why), ..) => Err(why.clone()),
            (_, Some(address), _) => {
                Err(format!("{address} cannot report the state of a producer (needs Kafka 2.8)"))
            }
            (.., Some(topic)) => Err(format!("this user may not READ {topic}")),
            _ => Ok("judging by versions and permissions; the agent verifies it with its first batch"),
        };
        Capable { modern: lacking(|v| v.produce.is_some()).is_none(), numbered, once }
    }
}

fn yes_or_no(can: &Result<&'static str, String>) -> String {
    match can {
        Ok(why) => format!("yes: {why}"),
        Err(why) => format!("no: {why}"),
    }
}

/// Each codec needs a certain version of Produce (KIP-110 for zstd). A hosted service may accept fewer codecs, which
/// shows only when a batch is sent.
fn codecs(all: &Brokers) -> String {
    let lacks = |(found, _): &&(Visited, String)| found.versions.is_some_and(|v| v.produce_max < 7);
    match all.iter().find(lacks) {
        None => "gzip, snappy, lz4, zstd".into(),
        Some((_, address)) => format!("gzip, snappy, lz4; not zstd: {address} is older than Kafka 2.1"),
    }
}

fn largest(all: &Brokers) -> String {
    let mut told: Vec<String> = Vec::new();
    for (topic, most) in all.iter().flat_map(|(found, _)| &found.largest) {
        let one = format!("{most} bytes in {topic}");
        if !told.contains(&one) {
            told.push(one);
        }
    }
    if told.is_empty() { "the brokers do not say".into() } else { told.join(", ") }
}

fn new_topics(kafka: &Kafka, all: &Brokers) -> String {
    let told = match all.iter().find_map(|(found, _)| found.creates_topics) {
        Some(true) => "created by the brokers (auto.create.topics.enable = true)",
        Some(false) => "not created by the brokers (auto.create.topics.enable = false)",
        None => "the brokers do not say whether they create them",
    };
    let asked =
        if kafka.create_topics { "" } else { "; the agent does not ask for it (create_topics = false)" };
    format!("{told}{asked}")
}

fn guarantee(config: &Config, kafka: &Kafka, cluster: &Capable) -> String {
    match (config.agent.delivery, &cluster.once) {
        (Delivery::ExactlyOnce, Ok(_)) => {
            let power = if config.agent.sync == Sync::Always {
                ""
            } else {
                "; a power cut may store some twice (sync = \"always\" prevents that)"
            };
            return format!(
                "exactly-once: no line is lost and none is stored twice, even after crashes{power}"
            );
        }
        (Delivery::ExactlyOnce, Err(_)) => {
            return "none: exactly-once is not possible on this cluster; write delivery = \"at-least-once\""
                .into();
        }
        (Delivery::AtLeastOnce, _) => {}
    }
    let modern = cluster.modern && kafka.driver != DriverChoice::Classic;
    match kafka.acks {
        Acks::Zero => "none: lines in transit are lost with their connection (acks = 0)".into(),
        Acks::One => {
            "no line is lost unless a leader dies before its followers have it (acks = 1); a lost connection may store a \
             batch twice, which is counted"
                .into()
        }
        Acks::All if modern && cluster.numbered.is_ok() => {
            "at-least-once: no line is lost; only a crash of the agent can store lines twice, and these are counted \
             (doubled_at_most)"
                .into()
        }
        Acks::All => {
            "at-least-once: no line is lost; a lost connection or a crash of the agent can store a batch twice, which is \
             counted (doubled_at_most)"
                .into()
        }
    }
}
