//! Settings of topics and brokers by `DescribeConfigs`, used only by `check --connect`. The other requests are in `messages.rs`
//! and `sasl.rs`.

use crate::kafka::protocol::messages::{request, text};
use crate::kafka::protocol::wire::{ApiKey, Read, Reader};

/// What is asked, and of which topic or broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting<'a> {
    /// The largest batch the topic accepts, in bytes on the wire.
    LargestBatch(&'a str),
    /// Which lines the topic keeps: compacted ones accept none without a key.
    CleanupPolicy(&'a str),
    /// Whether asking for a topic creates it.
    CreatesTopics(i32),
}

/// From Kafka's `ConfigResource.Type`.
const TOPIC: i8 = 2;
const BROKER: i8 = 4;

impl Setting<'_> {
    fn key(self) -> &'static str {
        match self {
            Setting::LargestBatch(_) => "max.message.bytes",
            Setting::CleanupPolicy(_) => "cleanup.policy",
            Setting::CreatesTopics(_) => "auto.create.topics.enable",
        }
    }
}

pub fn ask(version: i16, correlation: i32, client: &str, wanted: Setting<'_>) -> Vec<u8> {
    let (kind, name) = match wanted {
        Setting::LargestBatch(topic) | Setting::CleanupPolicy(topic) => (TOPIC, topic.to_owned()),
        Setting::CreatesTopics(node) => (BROKER, node.to_string()),
    };
    let mut to = request(ApiKey::DescribeConfigs, version, correlation, client, 96 + name.len());
    to.count(1);
    to.i8(kind);
    to.string(&name);
    to.count(1);
    to.string(wanted.key());
    to.tags();
    to.bool(false); // no synonyms
    if version >= 3 {
        to.bool(false); // no documentation
    }
    to.tags();
    to.into_frame()
}

/// `None`: the broker does not say, because we lack the right (`DESCRIBE_CONFIGS`) or for another reason.
pub fn value(body: &[u8], version: i16, wanted: Setting<'_>) -> Read<Option<String>> {
    let mut r = Reader::new(body, ApiKey::DescribeConfigs.is_flexible(version));
    let mut found = None;
    r.skip_tags()?; // of the answer's header
    r.i32("throttle")?;
    for _ in 0..r.count(8, "resource count")? {
        r.i16("error")?;
        r.string("error message")?;
        r.i8("resource type")?;
        r.string("resource name")?;
        for _ in 0..r.count(8, "config count")? {
            let ours = r.string("config name")? == Some(wanted.key().as_bytes());
            let value = r.string("config value")?;
            if ours {
                found = Some(text(value));
            }
            r.bytes(3, "config")?; // read only, source, sensitive
            for _ in 0..r.count(4, "synonym count")? {
                r.string("synonym")?;
                r.string("synonym's value")?;
                r.i8("synonym's source")?;
                r.skip_tags()?;
            }
            if version >= 3 {
                r.i8("config type")?;
                r.string("documentation")?;
            }
            r.skip_tags()?;
        }
        r.skip_tags()?;
    }
    Ok(found)
}

#[cfg(test)]
pub use tests::some_answer;

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use kafka_protocol::messages::describe_configs_response::{
        DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
    };
    use kafka_protocol::messages::{DescribeConfigsResponse, ResponseHeader};
    use kafka_protocol::protocol::{Encodable, HeaderVersion, StrBytes};

    const WANTED: Setting<'_> = Setting::LargestBatch("t");

    fn answer(version: i16, value: &str) -> Vec<u8> {
        let text = |t: &str| StrBytes::from_string(t.to_owned());
        let one = |name: &str| {
            let synonym = DescribeConfigsSynonym::default()
                .with_name(text("message.max.bytes"))
                .with_value(Some(text("7")))
                .with_source(5);
            DescribeConfigsResourceResult::default()
                .with_name(text(name))
                .with_value(Some(text(value)))
                .with_config_source(5)
                .with_synonyms(vec![synonym])
        };
        let topic = DescribeConfigsResult::default()
            .with_error_message(None)
            .with_resource_type(TOPIC)
            .with_resource_name(text("t"))
            .with_configs(vec![one("min.insync.replicas"), one(WANTED.key())]);
        let all = DescribeConfigsResponse::default().with_results(vec![topic]);
        let mut to = BytesMut::new();
        let header = DescribeConfigsResponse::header_version(version);
        ResponseHeader::default().encode(&mut to, header).unwrap();
        all.encode(&mut to, version).unwrap();
        to[4..].to_vec()
    }

    /// For the combined tests of all readers.
    pub fn some_answer(version: i16) -> Vec<u8> {
        answer(version, "1048588")
    }

    /// Fails when a field is read that its version does not have, or another key's value is taken.
    #[test]
    fn every_version_is_read() {
        for version in 1..=4 {
            let found = value(&answer(version, "1048588"), version, WANTED);
            assert_eq!(found, Ok(Some("1048588".into())), "{version}");
            let other = value(&answer(version, "1048588"), version, Setting::CreatesTopics(1));
            assert_eq!(other, Ok(None), "{version}");
            let whole = answer(version, "1");
            (0..whole.len() - 1)
                .for_each(|n| assert!(value(&whole[..n], version, WANTED).is_err(), "{version}: {n}"));
        }
    }
}
