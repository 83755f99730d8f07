//! A topic's limits from `DescribeConfigs`, used only by `check --connect`. The other requests are in `messages.rs`
//! and `sasl.rs`.

use crate::kafka::protocol::messages::request;
use crate::kafka::protocol::wire::{ApiKey, Malformed, Read, Reader};

/// From Kafka's `ConfigResource.Type`.
const TOPIC: i8 = 2;
/// The largest batch the topic accepts, in bytes on the wire.
const KEY: &str = "max.message.bytes";

pub fn ask_largest_batch(version: i16, correlation: i32, client: &str, topic: &str) -> Vec<u8> {
    let mut to = request(ApiKey::DescribeConfigs, version, correlation, client, 64 + topic.len());
    to.count(1);
    to.i8(TOPIC);
    to.string(topic);
    to.count(1);
    to.string(KEY);
    to.tags();
    to.bool(false); // no synonyms
    if version >= 3 {
        to.bool(false); // no documentation
    }
    to.tags();
    to.into_frame()
}

/// `None`: the broker does not say, because we lack the right (`DESCRIBE_CONFIGS`) or for another reason.
pub fn largest_batch(body: &[u8], version: i16) -> Read<Option<u64>> {
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
            let ours = r.string("config name")? == Some(KEY.as_bytes());
            let value = r.string("config value")?;
            if ours {
                let text = std::str::from_utf8(value.unwrap_or_default());
                found = Some(text.ok().and_then(|t| t.parse().ok()).ok_or(Malformed("config value"))?);
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
            .with_configs(vec![one("min.insync.replicas"), one(KEY)]);
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
            assert_eq!(largest_batch(&answer(version, "1048588"), version), Ok(Some(1_048_588)), "{version}");
            assert!(largest_batch(&answer(version, "many"), version).is_err());
            let whole = answer(version, "1");
            (0..whole.len() - 1)
                .for_each(|n| assert!(largest_batch(&whole[..n], version).is_err(), "{version}: {n}"));
        }
    }
}
