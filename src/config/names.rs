//! The words of the config and the command line, and the values they name.

use super::words::Named;
use super::{
    Acks, Boot, Codec, Damaged, Delivery, DriverChoice, Format, JournalFormat, Mechanism, OutputName,
    Partitioner, Priority, Start,
};

macro_rules! names {
    ($($type:ident: $(($name:literal, $value:expr)),+;)+) => {
        $(impl Named for $type {
            const NAMES: &'static [(&'static str, Self)] = &[$(($name, $value)),+];
        })+
    };
}

names! {
    Delivery: ("at-least-once", Delivery::AtLeastOnce), ("exactly-once", Delivery::ExactlyOnce);
    Damaged: ("refuse", Damaged::Refuse), ("beginning", Damaged::Beginning);
    Acks: ("all", Acks::All), ("1", Acks::One), ("0", Acks::Zero);
    DriverChoice: ("auto", DriverChoice::Auto), ("classic", DriverChoice::Classic), ("modern", DriverChoice::Modern);
    Partitioner: ("sticky", Partitioner::Sticky), ("hash", Partitioner::Hash),
        ("round-robin", Partitioner::RoundRobin), ("random", Partitioner::Random);
    Codec: ("none", Codec::None), ("gzip", Codec::Gzip), ("snappy", Codec::Snappy), ("lz4", Codec::Lz4),
        ("zstd", Codec::Zstd);
    Mechanism: ("PLAIN", Mechanism::Plain), ("SCRAM-SHA-256", Mechanism::ScramSha256),
        ("SCRAM-SHA-512", Mechanism::ScramSha512), ("OAUTHBEARER", Mechanism::OauthBearer);
    Start: ("end", Start::End), ("beginning", Start::Beginning);
    JournalFormat: ("message", JournalFormat::Message), ("json", JournalFormat::Json);
    Priority: ("emerg", Priority(0)), ("alert", Priority(1)), ("crit", Priority(2)), ("err", Priority(3)),
        ("warning", Priority(4)), ("notice", Priority(5)), ("info", Priority(6)), ("debug", Priority(7));
    Boot: ("current", Boot::Current);
    // Host and fields are filled in once the whole config is known.
    Format: ("raw", Format::Raw), ("json", Format::Json { host: String::new(), fields: Vec::new() });
    OutputName: ("kafka", OutputName::Kafka), ("stdout", OutputName::Stdout);
}
