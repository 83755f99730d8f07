//! The words of the config and the command line, and what they stand for.

use super::{
    Acks, Compression, DamagedState, Delivery, Driver, Format, Mechanism, Named, OutputName, Partition, Start,
};

impl Named for Delivery {
    const NAMES: &'static [(&'static str, Self)] =
        &[("at-least-once", Delivery::AtLeastOnce), ("exactly-once", Delivery::ExactlyOnce)];
}

impl Named for DamagedState {
    const NAMES: &'static [(&'static str, Self)] =
        &[("refuse", DamagedState::Refuse), ("beginning", DamagedState::Beginning)];
}

impl Named for Acks {
    const NAMES: &'static [(&'static str, Self)] =
        &[("all", Acks::All), ("1", Acks::Leader), ("0", Acks::None)];
}

impl Named for Driver {
    const NAMES: &'static [(&'static str, Self)] =
        &[("auto", Driver::Auto), ("classic", Driver::Classic), ("modern", Driver::Modern)];
}

impl Named for Partition {
    const NAMES: &'static [(&'static str, Self)] = &[
        ("sticky", Partition::Sticky),
        ("hash", Partition::Hash),
        ("round-robin", Partition::RoundRobin),
        ("random", Partition::Random),
    ];
}

impl Named for Compression {
    const NAMES: &'static [(&'static str, Self)] = &[
        ("none", Compression::None),
        ("gzip", Compression::Gzip),
        ("snappy", Compression::Snappy),
        ("lz4", Compression::Lz4),
        ("zstd", Compression::Zstd),
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

impl Named for Format {
    const NAMES: &'static [(&'static str, Self)] = &[("raw", Format::Raw), ("json", Format::Json)];
}

impl Named for OutputName {
    const NAMES: &'static [(&'static str, Self)] =
        &[("kafka", OutputName::Kafka), ("stdout", OutputName::Stdout)];
}
