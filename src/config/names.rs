//! The words of the config and the command line, and what they stand for.

use super::nearest::nearest;
use super::{Acks, Codec, Damaged, Delivery, Driver, Format, Mechanism, OutputName, Partitioner, Start};

/// A type whose values have names.
pub trait Named: Clone + 'static {
    const NAMES: &'static [(&'static str, Self)];
}

pub fn by_name<T: Named>(s: &str) -> Result<T, String> {
    let found = T::NAMES.iter().find(|(name, _)| *name == s);
    found.map(|(_, value)| value.clone()).ok_or_else(|| {
        let names: Vec<&str> = T::NAMES.iter().map(|(name, _)| *name).collect();
        let hint = nearest(s, names.iter().copied()).map(|near| format!("; did you mean {near:?}?"));
        format!("{s:?} is none of {}{}", names.join(", "), hint.unwrap_or_default())
    })
}

impl Named for Delivery {
    const NAMES: &'static [(&'static str, Self)] =
        &[("at-least-once", Delivery::AtLeastOnce), ("exactly-once", Delivery::ExactlyOnce)];
}

impl Named for Damaged {
    const NAMES: &'static [(&'static str, Self)] =
        &[("refuse", Damaged::Refuse), ("beginning", Damaged::Beginning)];
}

impl Named for Acks {
    const NAMES: &'static [(&'static str, Self)] = &[("all", Acks::All), ("1", Acks::One), ("0", Acks::Zero)];
}

impl Named for Driver {
    const NAMES: &'static [(&'static str, Self)] =
        &[("auto", Driver::Auto), ("classic", Driver::Classic), ("modern", Driver::Modern)];
}

impl Named for Partitioner {
    const NAMES: &'static [(&'static str, Self)] = &[
        ("sticky", Partitioner::Sticky),
        ("hash", Partitioner::Hash),
        ("round-robin", Partitioner::RoundRobin),
        ("random", Partitioner::Random),
    ];
}

impl Named for Codec {
    const NAMES: &'static [(&'static str, Self)] = &[
        ("none", Codec::None),
        ("gzip", Codec::Gzip),
        ("snappy", Codec::Snappy),
        ("lz4", Codec::Lz4),
        ("zstd", Codec::Zstd),
    ];
}

impl Named for Mechanism {
    const NAMES: &'static [(&'static str, Self)] = &[
        ("PLAIN", Mechanism::Plain),
        ("SCRAM-SHA-256", Mechanism::ScramSha256),
        ("SCRAM-SHA-512", Mechanism::ScramSha512),
    ];
}

impl Named for Start {
    const NAMES: &'static [(&'static str, Self)] = &[("end", Start::End), ("beginning", Start::Beginning)];
}

/// Host and fields are filled in with the rest of the config.
impl Named for Format {
    const NAMES: &'static [(&'static str, Self)] =
        &[("raw", Format::Raw), ("json", Format::Json { host: String::new(), fields: Vec::new() })];
}

impl Named for OutputName {
    const NAMES: &'static [(&'static str, Self)] =
        &[("kafka", OutputName::Kafka), ("stdout", OutputName::Stdout)];
}
