//! From the config to a driver: which one, with which options. Starts nothing, and speaks to no broker itself.

use crate::config::{self, Compression, Config, Driver, Kafka, Output};
use crate::kafka::{self as modern, auto, net, net::probe, protocol::codec::Codec};
use crate::kafka_crate as classic;
use crate::producer::driver::{Acks, Drive};
use crate::pulse::Beat;
use crate::stdout;
use std::time::Duration;

/// The driver that `driver` and what the config asks for decide.
pub fn drive(config: &Config) -> Drive {
    match &config.output {
        // Who reads the other end may stop for ever: that is no reason for a restart.
        Output::Stdout => Drive::worker(None, |orders, events, _| stdout::run(orders, events)),
        Output::Kafka(kafka) => of_kafka(kafka, &config.needs_modern()),
    }
}

pub fn of_kafka(kafka: &Kafka, needs_modern: &[&str]) -> Drive {
    match kafka.driver {
        Driver::Classic => {
            let options = classic_options(kafka, classic::Incompatible::Wait);
            Drive::worker(Some(Beat::SLOW), move |orders, events, board| {
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
                let run =
                    move |orders: &_, events: &_, board: &_| classic::run(&options, orders, events, board);
                Drive::worker(Some(Beat::SLOW), run)
            };
            let modern = |unfit| modern::drive(modern_options(kafka, unfit));
            let options = auto::Options {
                brokers: addresses(kafka),
                probe: probe::Limits::default(),
                pause: Duration::from_secs(5),
                numbered: acks(kafka) == Acks::All,
                classic: auto::Choice {
                    first: classic(classic::Incompatible::Refused),
                    only: classic(classic::Incompatible::Replaced),
                },
                modern: auto::Choice {
                    first: modern(modern::Incompatible::Refused),
                    only: modern(modern::Incompatible::TooOld),
                },
            };
            auto::drive(options)
        }
    }
}

fn only_modern(kafka: &Kafka, why: &str) -> Drive {
    let (modern, why) =
        (modern::drive(modern_options(kafka, modern::Incompatible::Wait)), format!("modern: {why}"));
    Drive::new(move |context| {
        context.board.driver().clone_from(&why);
        modern.build(context)
    })
}

fn addresses(kafka: &Kafka) -> Vec<String> {
    kafka.brokers.iter().map(ToString::to_string).collect()
}

fn acks(kafka: &Kafka) -> Acks {
    match kafka.acks {
        config::Acks::None => Acks::Zero,
        config::Acks::Leader => Acks::One,
        config::Acks::All => Acks::All,
    }
}

fn classic_options(kafka: &Kafka, unfit: classic::Incompatible) -> classic::Options {
    classic::Options {
        brokers: addresses(kafka),
        client_id: kafka.client_id.clone(),
        acks: acks(kafka),
        codec: match kafka.compression {
            Compression::Gzip => classic::Codec::Gzip,
            Compression::Snappy => classic::Codec::Snappy,
            // lz4 and zstd ask for the modern driver: see `Config::needs_modern`.
            Compression::None | Compression::Lz4 | Compression::Zstd => classic::Codec::None,
        },
        create_topics: kafka.create_topics,
        unfit,
        limits: classic::Limits::default(),
    }
}

fn modern_options(kafka: &Kafka, unfit: modern::Incompatible) -> modern::Options {
    modern::Options {
        brokers: addresses(kafka),
        client_id: kafka.client_id.clone(),
        acks: acks(kafka),
        compression: match kafka.compression {
            Compression::None => Codec::None,
            Compression::Gzip => Codec::Gzip,
            Compression::Snappy => Codec::Snappy,
            Compression::Lz4 => Codec::Lz4,
            Compression::Zstd => Codec::Zstd,
        },
        create_topics: kafka.create_topics,
        unfit,
        tls: kafka.tls.as_ref().map(tls),
        sasl: kafka.sasl.as_ref().map(sasl),
        ..modern::Options::default()
    }
}

/// For looking at brokers without a driver; `limit` is for each step.
pub fn visiting(kafka: &Kafka, limit: Duration) -> modern::Options {
    let options = modern_options(kafka, modern::Incompatible::Wait);
    modern::Options { connect_timeout: limit, request_timeout: limit, ..options }
}

fn tls(tls: &config::Tls) -> net::tls::Options {
    net::tls::Options {
        ca: tls.ca.clone(),
        client: tls.cert.clone().zip(tls.key.clone()),
        server_name: tls.server_name.clone(),
    }
}

fn sasl(sasl: &config::Sasl) -> net::sasl::Options {
    net::sasl::Options {
        mechanism: match sasl.mechanism {
            config::Mechanism::Plain => net::sasl::Mechanism::Plain,
            config::Mechanism::ScramSha256 => net::sasl::Mechanism::ScramSha256,
            config::Mechanism::ScramSha512 => net::sasl::Mechanism::ScramSha512,
        },
        username: sasl.username.clone(),
        password_file: sasl.password_file.clone(),
        plain_without_tls: sasl.plain_without_tls,
    }
}
