//! Chooses the driver that the config asks for, and makes its options.

use crate::config::{self, Acks, Codec, Config, Driver, Kafka, Output};
use crate::ship::driver::Drive;
use crate::ship::{auto, classic, modern, probe, stdout};
use std::time::Duration;

/// The driver that `driver` and what the config asks for decide.
pub fn drive(config: &Config) -> Drive {
    match &config.output {
        Output::Stdout => Drive::new(|orders, events, _| stdout::run(orders, events)),
        Output::Kafka(kafka) => of_kafka(kafka, &config.needs_modern()),
    }
}

pub fn of_kafka(kafka: &Kafka, needs_modern: &[&str]) -> Drive {
    match kafka.driver {
        Driver::Classic => {
            let options = classic_options(kafka, classic::Unfit::Wait);
            Drive::new(move |orders, events, board| {
                *board.driver() = "classic: the config asks for it".into();
                classic::run(&options, orders, events, board)
            })
        }
        Driver::Modern => only_modern(kafka, "the config asks for it"),
        Driver::Auto if !needs_modern.is_empty() => {
            only_modern(kafka, &format!("the config asks for {}", needs_modern.join(", ")))
        }
        Driver::Auto => {
            let classic = |unfit| {
                let options = classic_options(kafka, unfit);
                Drive::new(move |orders, events, board| classic::run(&options, orders, events, board))
            };
            let modern = |unfit| {
                let options = modern_options(kafka, unfit);
                Drive::new(move |orders, events, board| modern::run(&options, orders, events, board))
            };
            let options = auto::Options {
                brokers: addresses(kafka),
                probe: probe::Limits::default(),
                pause: Duration::from_secs(5),
                numbered: kafka.acks == Acks::All,
                classic: auto::Choice {
                    first: classic(classic::Unfit::Refused),
                    only: classic(classic::Unfit::Replaced),
                },
                modern: auto::Choice {
                    first: modern(modern::Unfit::Refused),
                    only: modern(modern::Unfit::TooOld),
                },
            };
            Drive::new(move |orders, events, board| auto::run(&options, orders, events, board))
        }
    }
}

fn only_modern(kafka: &Kafka, why: &str) -> Drive {
    let (options, why) = (modern_options(kafka, modern::Unfit::Wait), format!("modern: {why}"));
    Drive::new(move |orders, events, board| {
        board.driver().clone_from(&why);
        modern::run(&options, orders, events, board)
    })
}

fn addresses(kafka: &Kafka) -> Vec<String> {
    kafka.brokers.iter().map(ToString::to_string).collect()
}

fn classic_options(kafka: &Kafka, unfit: classic::Unfit) -> classic::Options {
    classic::Options {
        brokers: addresses(kafka),
        client_id: kafka.client_id.clone(),
        acks: kafka.acks,
        codec: match kafka.compression {
            Codec::Gzip => classic::Codec::Gzip,
            Codec::Snappy => classic::Codec::Snappy,
            // lz4 and zstd ask for the modern driver: see `Config::needs_modern`.
            Codec::None | Codec::Lz4 | Codec::Zstd => classic::Codec::None,
        },
        create_topics: kafka.create_topics,
        unfit,
        limits: classic::Limits::default(),
    }
}

fn modern_options(kafka: &Kafka, unfit: modern::Unfit) -> modern::Options {
    modern::Options {
        brokers: addresses(kafka),
        client_id: kafka.client_id.clone(),
        acks: kafka.acks,
        compression: kafka.compression,
        create_topics: kafka.create_topics,
        unfit,
        tls: kafka.tls.as_ref().map(tls),
        sasl: kafka.sasl.clone(),
        ..modern::Options::default()
    }
}

/// For looking at brokers without a driver; `limit` is for each step.
pub fn visiting(kafka: &Kafka, limit: Duration) -> modern::Options {
    let options = modern_options(kafka, modern::Unfit::Wait);
    modern::Options { connect_timeout: limit, request_timeout: limit, ..options }
}

fn tls(tls: &config::KafkaTls) -> modern::tls::Options {
    modern::tls::Options {
        ca: tls.ca.clone(),
        client: tls.cert.clone().zip(tls.key.clone()),
        server_name: tls.server_name.clone(),
    }
}
