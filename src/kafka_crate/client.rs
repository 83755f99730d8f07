//! A safe wrapper of the `kafka` crate: one client, with its panics caught and its calls watched.
//!
//! Invariant: after any failure the client is poisoned and never used again (D1, D2). The crate does not compare
//! correlation ids, so a late answer to batch 1 would confirm batch 2, and it keeps dead connections in its pool.

use super::watchdog::{CallWatchdog, Guard};
use crate::producer::driver::Acks;
use kafka::client::{Compression, KafkaClient, ProduceMessage, RequiredAcks};
use kafka::error::{Error, KafkaCode};
use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// Compression supported by the crate (D16: gzip at level 9 only, 12 MB/s; prefer snappy).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CrateCodec {
    #[default]
    None,
    Gzip,
    Snappy,
}

/// Why a call failed.
#[derive(Debug)]
pub enum CallError {
    /// The broker's error code for this partition.
    Code(i16),
    /// The request was not sent.
    NotSent(String),
    /// Sent, or partly sent, without a reliable answer.
    Lost(String),
    /// Like `Lost`, but the broker closed the connection instead of answering, as Kafka 4 does on Produce v0 (D15).
    Closed,
    /// The crate panicked (D9, D10).
    Panic(String),
}

impl CallError {
    /// The error of a watched call whose connection we shut down ourselves.
    pub fn after(self, guard: &Guard) -> CallError {
        match self {
            CallError::Closed | CallError::Lost(_) if guard.has_cut() => {
                CallError::Lost("no answer in time; the connection was shut down".to_owned())
            }
            other => other,
        }
    }
}

/// One partition as known to the crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Led {
    pub partition: i32,
    /// `host:port` as advertised by the cluster; `None` without a leader.
    pub leader: Option<String>,
}

pub struct CrateClient {
    /// `None` once poisoned.
    crate_client: Option<KafkaClient>,
    via: SocketAddr,
}

thread_local! {
    static FENCED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside the crate, so that a panic is caught and leads to a new client. For the panic hook.
pub fn fenced() -> bool {
    FENCED.get()
}

impl CrateClient {
    /// Does not connect yet. `via` must just have answered a probe: the crate connects without a timeout (D4), and of
    /// a list of hosts it would ask only the first that accepts the request (D5), so it gets a single address.
    ///
    /// Uses `KafkaClient`, never `Producer`: the latter loads all topics and freezes them (D8), sends empty values as
    /// null (D11), drops security settings (D13) and asserts on the answer's shape (D15).
    pub fn new(via: SocketAddr, client_id: &str, codec: CrateCodec, idle: Duration) -> Self {
        let mut c = KafkaClient::new(vec![via.to_string()]);
        c.set_client_id(client_id.to_owned());
        c.set_connection_idle_timeout(idle); // D2: below the idle timeouts of NATs and load balancers
        c.set_compression(match codec {
            CrateCodec::None => Compression::NONE,
            CrateCodec::Gzip => Compression::GZIP,
            CrateCodec::Snappy => Compression::SNAPPY,
        });
        CrateClient { crate_client: Some(c), via }
    }

    pub fn is_spoilt(&self) -> bool {
        self.crate_client.is_none()
    }

    /// Partitions and leaders of one topic; none if the topic does not exist (yet), because the crate drops the error
    /// (D9). One topic per call, so that one with gaps in its ids panics alone.
    pub fn load(&mut self, topic: &str, watch: &CallWatchdog) -> Result<Vec<Led>, CallError> {
        let guard = watch.guard(vec![self.via]);
        let led = self.fence(byteorder::METADATA, |c| {
            c.load_metadata(&[topic]).map_err(trouble)?;
            let topics = c.topics();
            let all = topics.partitions(topic).into_iter();
            let led = all.flat_map(|p| p.iter().collect::<Vec<_>>());
            Ok(led
                .map(|p| Led { partition: p.id(), leader: p.leader().map(|b| b.host().to_owned()) })
                .collect())
        });
        led.map_err(|t| t.after(&guard))
    }

    /// Sends the records of one batch to one partition's leader (D7: with several leaders, an error of the second
    /// discards the first one's confirmation) and waits for the answer. Returns the first record's offset; `None`
    /// with `Acks::Zero`, where the crate reads no answer (D6) and "stored" means "written to the socket".
    pub fn produce<'r>(
        &mut self,
        topic: &str,
        partition: i32,
        (acks, ack_timeout): (Acks, Duration),
        records: impl Iterator<Item = (Option<&'r [u8]>, &'r [u8])>,
    ) -> Result<Option<i64>, CallError> {
        let required = match acks {
            Acks::Zero => RequiredAcks::None,
            Acks::One => RequiredAcks::One,
            Acks::All => RequiredAcks::All,
        };
        self.fence(byteorder::PRODUCED, |c| {
            // Always `Some`: an empty line is an empty record, not a tombstone (D11).
            let messages =
                records.map(|(key, value)| ProduceMessage::new(topic, partition, key, Some(value)));
            let confirms = c.produce_messages(required, ack_timeout, messages).map_err(trouble)?;
            if acks == Acks::Zero {
                return Ok(None);
            }
            let of_topic =
                |c: kafka::client::ProduceConfirm| (c.topic == topic).then_some(c.partition_confirms);
            let mut ours = confirms.into_iter().filter_map(of_topic).flatten();
            match (ours.next(), ours.next()) {
                (Some(c), None) if c.partition == partition => c.offset.map(Some).map_err(code),
                _ => Err(CallError::Lost("the answer is not for this batch".to_owned())),
            }
        })
    }

    /// Runs one call of the crate. Any failure, including a panic, poisons the client. `answer` is the shape of the
    /// expected answer (D10).
    fn fence<T>(
        &mut self,
        answer: &'static [byteorder::Part],
        call: impl FnOnce(&mut KafkaClient) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        let Some(mut client) = self.crate_client.take() else {
            return Err(CallError::NotSent("the connection must be set up again".to_owned()));
        };
        byteorder::expect(answer);
        FENCED.set(true);
        let done = catch_unwind(AssertUnwindSafe(|| {
            let done = call(&mut client);
            (client, done)
        }));
        FENCED.set(false);
        match done {
            Ok((client, Ok(value))) => {
                self.crate_client = Some(client);
                Ok(value)
            }
            Ok((_, Err(trouble))) => Err(trouble),
            Err(panic) => Err(CallError::Panic(panic_text(&*panic))),
        }
    }
}

/// The code as the broker sent it (D14).
fn code(named: KafkaCode) -> CallError {
    CallError::Code(if named == KafkaCode::Unknown { byteorder::last_i16() } else { named as i16 })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
        .to_owned()
}

fn trouble(e: Error) -> CallError {
    match e {
        // Reported by the crate before sending: it knows no leader for this partition.
        Error::Kafka(KafkaCode::UnknownTopicOrPartition) => {
            CallError::NotSent("no leader is known for the partition".to_owned())
        }
        Error::NoHostReachable => CallError::NotSent("the broker cannot be reached".to_owned()),
        Error::Io(e) => match e.kind() {
            io::ErrorKind::ConnectionRefused => CallError::NotSent("connection refused".to_owned()),
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => CallError::Closed,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                CallError::Lost("no answer in time".to_owned())
            }
            _ => CallError::Lost(e.to_string()),
        },
        other => CallError::Lost(other.to_string()),
    }
}
