//! Chooses the driver and derives its options from the config.

use crate::config::{self, Acks, Codec, Config, Delivery, DriverChoice, Kafka, Output};
use crate::heartbeat::Heartbeat;
use crate::kafka::{self as modern, auto, net, net::probe};
use crate::kafka_crate as classic;
use crate::producer::driver::Drive;
use crate::producer::worker::Worker;
use crate::stdout;
use std::time::Duration;

/// The driver, as decided by `driver` and the features the config needs.
pub fn drive(config: &Config) -> Drive {
    match &config.output {
        // The reader of the pipe may stall forever, which a restart would not fix.
        Output::Stdout => Worker::drive(None, |orders, events, _| stdout::run(orders, events)),
        Output::Kafka(kafka) => of_kafka(kafka, &config.needs_modern(), config.agent.delivery),
    }
}

pub fn of_kafka(kafka: &Kafka, needs_modern: &[&str], delivery: Delivery) -> Drive {
    let modern = |incompatible| {
        let once = delivery == Delivery::ExactlyOnce;
        modern::drive(modern::KafkaOptions { once, ..modern_options(kafka, incompatible) })
    };
    match kafka.driver {
        DriverChoice::Classic => {
            let options = classic_options(kafka, classic::OnIncompatible::Wait);
            Worker::drive(Some(Heartbeat::SLOW), move |orders, events, board| {
                *board.driver() = "classic: the config asks for it".into();
                classic::run(&options, orders, events, board)
            })
        }
        DriverChoice::Modern => only_modern(modern(modern::Incompatible::Wait), "the config asks for it"),
        DriverChoice::Auto if !needs_modern.is_empty() => {
            let why = format!("the config asks for {}", needs_modern.join(", "));
            only_modern(modern(modern::Incompatible::Wait), &why)
        }
        DriverChoice::Auto => {
            let classic = |incompatible| {
                let options = classic_options(kafka, incompatible);
                let run =
                    move |orders: &_, events: &_, board: &_| classic::run(&options, orders, events, board);
                Worker::drive(Some(Heartbeat::SLOW), run)
            };
            let options = auto::AutoOptions {
                brokers: addresses(kafka),
                probe: probe::LIMIT,
                pause: Duration::from_secs(5),
                classic: auto::Choice {
                    first: classic(classic::OnIncompatible::Refused),
                    only: classic(classic::OnIncompatible::Replaced),
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

fn only_modern(modern: Drive, why: &str) -> Drive {
    let why = format!("modern: {why}");
    Drive::new(move |context| {
        context.board.driver().clone_from(&why);
        modern.build(context)
    })
}

fn addresses(kafka: &Kafka) -> Vec<String> {
    kafka.brokers.iter().map(ToString::to_string).collect()
}

fn classic_options(kafka: &Kafka, incompatible: classic::OnIncompatible) -> classic::CrateOptions {
    classic::CrateOptions {
        brokers: addresses(kafka),
        client_id: kafka.client_id.clone(),
        acks: kafka.acks,
        codec: match kafka.compression {
            Codec::Gzip => classic::CrateCodec::Gzip,
            Codec::Snappy => classic::CrateCodec::Snappy,
            // lz4 and zstd require the modern driver: see `Config::needs_modern`.
            Codec::None | Codec::Lz4 | Codec::Zstd => classic::CrateCodec::None,
        },
        create_topics: kafka.create_topics,
        incompatible,
        limits: classic::TimeLimits::default(),
    }
}

fn modern_options(kafka: &Kafka, incompatible: modern::Incompatible) -> modern::KafkaOptions {
    modern::KafkaOptions {
        brokers: addresses(kafka),
        client_id: kafka.client_id.clone(),
        acks: kafka.acks,
        compression: kafka.compression,
        create_topics: kafka.create_topics,
        request_max: kafka.request_max,
        // Event Hubs asks for a minute where producers are idempotent.
        request_timeout: Duration::from_secs(if kafka.acks == Acks::All { 60 } else { 30 }),
        incompatible,
        proxy: kafka.proxy.as_ref().map(|url| net::proxy::ProxyOptions {
            url: url.clone(),
            password_file: kafka.proxy_password_file.clone(),
        }),
        tls: kafka.tls.as_ref().map(tls),
        sasl: kafka.sasl.clone(),
        ..modern::KafkaOptions::default()
    }
}

/// Options for checking brokers without a driver; `limit` applies to each step.
pub fn visiting(kafka: &Kafka, limit: Duration) -> modern::KafkaOptions {
    let options = modern_options(kafka, modern::Incompatible::Wait);
    modern::KafkaOptions { connect_timeout: limit, request_timeout: limit, ..options }
}

pub fn tls(tls: &config::KafkaTls) -> net::tls::TlsOptions {
    net::tls::TlsOptions {
        ca: tls.ca.clone(),
        client: tls.cert.clone().zip(tls.key.clone()),
        server_name: tls.server_name.clone(),
    }
}
