//! The steps about topics: our permissions, the record sizes and keys they accept, and whether the broker creates missing
//! ones.

use super::{BrokerCheckStep, BrokerStep, Outcome, PlannedLoad, Visit};
use crate::error::Reason;
use crate::kafka::net::connection::Connection;
use crate::kafka::protocol::errors;
use crate::kafka::protocol::limits::{self, Setting};
use crate::kafka::protocol::messages::{MAY_READ, MAY_WRITE, Metadata, TopicMeta};
use crate::record::Key;
use std::time::{Duration, Instant};

/// Our permissions on a topic, from the broker's metadata (KIP-430), so that nothing needs to be written.
pub fn rights(v: &Visit<'_>, topic: &str, meta: Option<&TopicMeta>, tell: &mut dyn FnMut(BrokerCheckStep)) {
    let found = |right: i32, allow: &str| {
        let meta = meta.ok_or_else(|| Reason::from("the answer does not mention it"))?;
        match (meta.error, meta.rights) {
            (0, _)
                if !meta.partitions.is_empty()
                    && v.fixed.is_some_and(|n| meta.partitions.iter().all(|p| p.partition != n)) =>
            {
                Err(errors::no_partition(meta.partitions.len()))
            }
            (0 | 5, None) => Ok("the broker does not say (it is older than 2.3)".to_owned()),
            (0 | 5, Some(all)) if all & right != 0 => {
                Ok(format!("allowed, {} partitions", meta.partitions.len()))
            }
            (0 | 5, Some(_)) => {
                Err(Reason::new("not allowed", format!("allow {allow} on the topic to this user")))
            }
            (3, _) if v.options.create_topics => {
                Ok("no such topic yet; the broker may create it when the first line is sent".into())
            }
            (code, _) => Err(errors::reason(code, "")),
        }
    };
    let topic = topic.to_owned();
    for (asked, what, right, allow) in [
        (true, BrokerStep::Write(topic.clone()), MAY_WRITE, "WRITE"),
        (v.once, BrokerStep::Read(topic), MAY_READ, "READ"),
    ] {
        if asked {
            let outcome = match found(right, allow) {
                // Without write permission, lines wait for it. Without read permission, exactly-once cannot be
                // guaranteed.
                Err(why) if right == MAY_READ => Outcome::Never(why),
                other => other.into(),
            };
            tell(BrokerCheckStep { what, took: Duration::ZERO, outcome });
        }
    }
}

/// Overhead of a batch of one record over its line: the batch header, the record's own lengths, and a margin.
const ENVELOPE: usize = 100;

/// Whether the topic accepts what will be sent, and its limit. Reports nothing if the broker does not say, for example
/// without the right to DESCRIBE_CONFIGS. `None`: the connection is lost.
pub fn size(
    v: &Visit<'_>,
    wanted: &PlannedLoad<'_>,
    c: &mut Connection,
    tell: &mut dyn FnMut(BrokerCheckStep),
) -> Option<Option<u64>> {
    let began = Instant::now();
    let most = setting(v, c, Setting::LargestBatch(wanted.topic))?.and_then(|text| text.parse().ok());
    let Some(most) = most else { return Some(None) };
    let outcome = judge_size(most, wanted);
    let what = BrokerStep::Size(wanted.topic.to_owned());
    tell(BrokerCheckStep { what, took: began.elapsed(), outcome });
    Some(Some(most))
}

/// Reports a compacted topic if lines have no key: the broker refuses them. `None`: the connection is lost.
pub fn key(
    v: &Visit<'_>,
    topic: &str,
    c: &mut Connection,
    tell: &mut dyn FnMut(BrokerCheckStep),
) -> Option<()> {
    let by_line = match v.key {
        Key::Constant(_) | Key::Path => return Some(()),
        Key::None => false,
        Key::Regex(_) | Key::Field(_) | Key::Head => true,
    };
    let began = Instant::now();
    let policy = setting(v, c, Setting::CleanupPolicy(topic))?.unwrap_or_default();
    if policy.contains("compact") {
        let why = |lines| {
            Reason::new(
                format!("cleanup.policy is {policy}, so {lines} are refused and go to the dead-letter file"),
                "set `key` in [kafka] to one that every line has, or set cleanup.policy to delete on the topic",
            )
        };
        let outcome = if by_line {
            Outcome::Doubtful(why("lines without the key"))
        } else {
            Outcome::Failed(why("lines without a key (all of them)"))
        };
        tell(BrokerCheckStep { what: BrokerStep::Key(topic.to_owned()), took: began.elapsed(), outcome });
    }
    Some(())
}

/// A value by DescribeConfigs; `Some(None)`: the broker does not say. `None`: the connection is lost.
fn setting(v: &Visit<'_>, c: &mut Connection, wanted: Setting<'_>) -> Option<Option<String>> {
    let Some(version) = c.versions.describe_configs else { return Some(None) };
    let id = c.next_correlation();
    let request = limits::ask(version, id, &v.options.client_id, wanted);
    let answer = c.call(&request, id, Instant::now() + v.options.connect_timeout).ok()?;
    limits::value(answer, version, wanted).ok()
}

/// A broker answers this only about itself, addressed by its node id.
pub fn creates_topics(v: &Visit<'_>, answer: &Metadata, c: &mut Connection) -> Option<bool> {
    let node = match &answer.nodes[..] {
        [only] => only,
        several => several.iter().find(|n| n.address == v.address)?,
    };
    match setting(v, c, Setting::CreatesTopics(node.id))??.as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

fn judge_size(most: u64, wanted: &PlannedLoad<'_>) -> Outcome {
    let fits = |n: usize| n as u64 + ENVELOPE as u64 <= most;
    let least = wanted.longest_line.max(wanted.batch.unwrap_or(0)) + ENVELOPE;
    if !fits(wanted.longest_line) {
        let fit = most.saturating_sub(ENVELOPE as u64);
        let line = wanted.longest_line;
        return Outcome::Doubtful(Reason::new(
            format!(
                "max.message.bytes is {most}, so lines near max_line ({line}) are refused and go to the dead-letter file"
            ),
            format!("set it to {least} on the topic, or write max_line = {fit}"),
        ));
    }
    match wanted.batch {
        Some(batch) if !fits(batch) => {
            let fit = most.saturating_sub(ENVELOPE as u64);
            Outcome::Doubtful(Reason::new(
                format!(
                    "max.message.bytes is {most}, so full batches ({batch} bytes) are refused and sent again in parts"
                ),
                format!("set it to {least} on the topic, or write batch = {fit}"),
            ))
        }
        _ => Outcome::Good(format!("max.message.bytes is {most}")),
    }
}

pub fn leaders(answer: &Metadata) -> Vec<String> {
    let leads = |id: i32| answer.topics.iter().any(|t| t.partitions.iter().any(|p| p.leader == id));
    answer.nodes.iter().filter(|n| leads(n.id)).map(|n| n.address.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when a limit one byte too small passes, or the batch limit is applied although batches are compressed.
    #[test]
    fn sizes() {
        let wanted = |longest_line, batch| PlannedLoad { topic: "t", longest_line, batch };
        let told = |most, w: PlannedLoad<'_>| match judge_size(most, &w) {
            Outcome::Good(_) => "good",
            Outcome::Doubtful(Reason { why, .. }) if why.contains("max_line (1000)") => "line",
            Outcome::Doubtful(Reason { fix: Some(fix), .. }) if fix.contains("batch = 1900") => "batch",
            other => panic!("{other:?}"),
        };
        assert_eq!(told(1100, wanted(1000, None)), "good");
        assert_eq!(told(1099, wanted(1000, None)), "line");
        assert_eq!(told(2000, wanted(1000, Some(1900))), "good");
        assert_eq!(told(2000, wanted(1000, Some(1901))), "batch");
        assert_eq!(told(0, wanted(1000, Some(9))), "line");
    }
}
