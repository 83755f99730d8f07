//! The meaning of each Kafka error code for a batch, in one table.
//!
//! Codes and names: `org.apache.kafka.common.protocol.Errors`. Reactions follow Java's `Sender`, franz-go's `sink.go`
//! and librdkafka's `rdkafka_request.c`. An unlisted code is retried indefinitely and counts as maybe stored: an
//! unknown refusal must never lose a line.

use crate::error::Reason;
use crate::producer::driver::{Pace, Refusal, Verdict};

/// What happens to the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Stored,
    /// Retry; the broker has not stored it.
    Retry(Pace),
    /// Retry; it may be stored, since the error can also come after the append (a leader that steps down while the
    /// followers still fetch answers 6).
    Maybe(Pace),
    TooLarge,
    /// Some records are bad; the answer may list them.
    BadRecords,
    BadTimestamp,
    /// Sequence or producer id do not match what the leader knows.
    SequenceError,
}

/// What to do in addition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Also {
    Nothing,
    /// Refresh the partition's leader.
    FindLeader,
    /// Close the connection: the next one negotiates versions again.
    Reconnect,
    /// Use another codec with this broker from now on.
    OtherCodec,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    pub code: i16,
    pub name: &'static str,
    pub fate: Fate,
    pub also: Also,
    /// Advice for the operator.
    pub help: &'static str,
}

const UNKNOWN: Rule = rule(i16::MIN, "UNKNOWN_ERROR_CODE", Maybe(Backoff), FindLeader, "");

const fn rule(code: i16, name: &'static str, fate: Fate, also: Also, help: &'static str) -> Rule {
    Rule { code, name, fate, also, help }
}

use Also::{FindLeader, Nothing, OtherCodec, Reconnect};
use Fate::{BadRecords, BadTimestamp, Maybe, Retry, SequenceError, Stored, TooLarge};
use Pace::{Backoff, Blocked};

/// Ordered by code.
#[rustfmt::skip]
pub const TABLE: &[Rule] = &[
    rule(-1,  "UNKNOWN_SERVER_ERROR",             Maybe(Backoff), FindLeader,   "see the broker's log"),
    rule(0,   "NONE",                             Stored,         Nothing,      ""),
    rule(2,   "CORRUPT_MESSAGE",                  Retry(Backoff), Nothing,      "the batch was damaged on the way, or its topic is compacted and a line has no key"),
    rule(3,   "UNKNOWN_TOPIC_OR_PARTITION",       Maybe(Backoff), FindLeader,   "create the topic"),
    rule(5,   "LEADER_NOT_AVAILABLE",             Maybe(Backoff), FindLeader,   ""),
    rule(6,   "NOT_LEADER_OR_FOLLOWER",           Maybe(Backoff), FindLeader,   ""),
    rule(7,   "REQUEST_TIMED_OUT",                Maybe(Backoff), Nothing,      "the replicas are slow"),
    rule(9,   "REPLICA_NOT_AVAILABLE",            Maybe(Backoff), FindLeader,   ""),
    rule(10,  "MESSAGE_TOO_LARGE",                TooLarge,       Nothing,      "raise max.message.bytes of the topic"),
    rule(13,  "NETWORK_EXCEPTION",                Maybe(Backoff), FindLeader,   ""),
    rule(14,  "COORDINATOR_LOAD_IN_PROGRESS",     Retry(Backoff), Nothing,      ""),
    rule(15,  "COORDINATOR_NOT_AVAILABLE",        Retry(Backoff), Nothing,      ""),
    rule(16,  "NOT_COORDINATOR",                  Retry(Backoff), Nothing,      ""),
    rule(17,  "INVALID_TOPIC_EXCEPTION",          Retry(Blocked), Nothing,      "this topic name is invalid; set another"),
    rule(18,  "RECORD_LIST_TOO_LARGE",            TooLarge,       Nothing,      "raise segment.bytes of the topic"),
    rule(19,  "NOT_ENOUGH_REPLICAS",              Retry(Backoff), Nothing,      "fewer replicas in sync than min.insync.replicas"),
    rule(20,  "NOT_ENOUGH_REPLICAS_AFTER_APPEND", Maybe(Backoff), Nothing,      "fewer replicas in sync than min.insync.replicas"),
    rule(21,  "INVALID_REQUIRED_ACKS",            Retry(Blocked), Nothing,      "set acks = \"all\""),
    rule(22,  "ILLEGAL_GENERATION",               SequenceError,  Nothing,      ""),
    rule(29,  "TOPIC_AUTHORIZATION_FAILED",       Retry(Blocked), Nothing,      "allow WRITE on the topic"),
    rule(31,  "CLUSTER_AUTHORIZATION_FAILED",     Retry(Blocked), Nothing,      "allow IDEMPOTENT_WRITE on the cluster"),
    rule(32,  "INVALID_TIMESTAMP",                BadTimestamp,   Nothing,      "set the clock of this machine"),
    rule(33,  "UNSUPPORTED_SASL_MECHANISM",       Retry(Blocked), Reconnect,    "set another mechanism in [kafka.sasl]"),
    rule(34,  "ILLEGAL_SASL_STATE",               Retry(Blocked), Reconnect,    "set [kafka.sasl]"),
    rule(35,  "UNSUPPORTED_VERSION",              Retry(Blocked), Reconnect,    ""),
    rule(42,  "INVALID_REQUEST",                  Retry(Blocked), Reconnect,    ""),
    rule(43,  "UNSUPPORTED_FOR_MESSAGE_FORMAT",   Retry(Blocked), Reconnect,    "set acks = 1, or raise message.format.version of the topic to 0.11 or later"),
    rule(44,  "POLICY_VIOLATION",                 Retry(Blocked), Nothing,      "ask the cluster's administrators"),
    rule(45,  "OUT_OF_ORDER_SEQUENCE_NUMBER",     SequenceError,  Nothing,      ""),
    rule(46,  "DUPLICATE_SEQUENCE_NUMBER",        Stored,         Nothing,      ""),
    rule(47,  "INVALID_PRODUCER_EPOCH",           SequenceError,  Nothing,      "another agent uses the same producer id: a copied state folder?"),
    rule(48,  "INVALID_TXN_STATE",                SequenceError,  Nothing,      ""),
    rule(49,  "INVALID_PRODUCER_ID_MAPPING",      SequenceError,  Nothing,      ""),
    rule(51,  "CONCURRENT_TRANSACTIONS",          Retry(Backoff), Nothing,      ""),
    rule(52,  "TRANSACTION_COORDINATOR_FENCED",   SequenceError,  Nothing,      ""),
    rule(53,  "TRANSACTIONAL_ID_AUTHORIZATION_FAILED", Retry(Blocked), Nothing, "allow IDEMPOTENT_WRITE on the cluster"),
    rule(56,  "KAFKA_STORAGE_ERROR",              Maybe(Backoff), FindLeader,   "see the broker's disks"),
    rule(58,  "SASL_AUTHENTICATION_FAILED",       Retry(Blocked), Reconnect,    "set user name and password in [kafka.sasl]"),
    rule(59,  "UNKNOWN_PRODUCER_ID",              SequenceError,  Nothing,      ""),
    rule(72,  "LISTENER_NOT_FOUND",               Maybe(Backoff), FindLeader,   "the leader has no listener with this name"),
    rule(74,  "FENCED_LEADER_EPOCH",              Maybe(Backoff), FindLeader,   ""),
    rule(75,  "UNKNOWN_LEADER_EPOCH",             Maybe(Backoff), FindLeader,   ""),
    rule(76,  "UNSUPPORTED_COMPRESSION_TYPE",     Retry(Backoff), OtherCodec,   "configure another compression"),
    rule(87,  "INVALID_RECORD",                   BadRecords,     Nothing,      "the topic does not accept such a record (compacted topics need keys)"),
    rule(89,  "THROTTLING_QUOTA_EXCEEDED",        Retry(Backoff), Nothing,      ""),
    rule(90,  "PRODUCER_FENCED",                  SequenceError,  Nothing,      "another agent uses the same producer id: a copied state folder?"),
    rule(100, "UNKNOWN_TOPIC_ID",                 Maybe(Backoff), FindLeader,   ""),
    rule(103, "INCONSISTENT_TOPIC_ID",            Maybe(Backoff), FindLeader,   ""),
    rule(105, "TRANSACTIONAL_ID_NOT_FOUND",       SequenceError,  Nothing,      ""),
    rule(120, "TRANSACTION_ABORTABLE",            SequenceError,  Nothing,      ""),
];

pub fn of(code: i16) -> &'static Rule {
    TABLE.binary_search_by_key(&code, |r| r.code).map_or(&UNKNOWN, |i| &TABLE[i])
}

/// Whether a [`Fate::SequenceError`] is about the producer id itself, so that no epoch of it helps. Transactional
/// codes are included: a service that confuses its producers (Event Hubs keeps answering 49 after time-outs) gets a
/// new id.
fn needs_new_producer_id(code: i16) -> bool {
    !matches!(code, 45 | 59)
}

/// The broker does not support this kind of request or batch; it may accept an older version.
pub fn is_ours_unknown(code: i16) -> bool {
    matches!(code, 35 | 43)
}

/// "NOT_ENOUGH_REPLICAS (19): what the broker says; what to do".
pub fn text(code: i16, message: &str) -> String {
    reason(code, message).to_string()
}

/// "NOT_ENOUGH_REPLICAS (19): what the broker says", and what to do.
pub fn reason(code: i16, message: &str) -> Reason {
    let rule = of(code);
    let colon = if message.is_empty() { "" } else { ": " };
    let why = format!("{} ({code}){colon}{message}", rule.name);
    Reason { why, fix: (!rule.help.is_empty()).then(|| rule.help.to_owned()) }
}

/// A partition was named that a topic with this many does not have.
pub fn no_partition(among: usize) -> Reason {
    let why = format!("the topic has {among} partition(s) and not this one");
    Reason::new(why, "add it, or change partition in [kafka]")
}

/// The verdict for a batch's code. `attempts`: how often it was sent before; some errors are worth a few quick retries
/// and then only slow ones, because sending the same bytes again will not help.
pub fn verdict(code: i16, message: &str, offset: i64, bad: &[u32], attempts: u32) -> Verdict {
    let rule = of(code);
    let why = || text(code, message);
    match rule.fate {
        Stored => Verdict::Stored { offset: (code == 0 && offset >= 0).then_some(offset) },
        // In a healthy cluster this resolves on its own.
        Retry(_) if code == 51 && attempts >= 3 => Verdict::SequenceError { new_id: true, why: why() },
        Retry(pace) => {
            let quick = match (code, rule.also) {
                (2, _) => attempts < 3,
                (35 | 42 | 43, Reconnect) => attempts < 1,
                _ => pace == Backoff,
            };
            Verdict::Retry { maybe_stored: false, pace: if quick { Backoff } else { Blocked }, why: why() }
        }
        Maybe(pace) => Verdict::Retry { maybe_stored: true, pace, why: why() },
        TooLarge => Verdict::Refused { what: Refusal::TooLarge, why: why() },
        BadTimestamp => Verdict::Refused { what: Refusal::Timestamp, why: why() },
        BadRecords => {
            let what = if bad.is_empty() { Refusal::Something } else { Refusal::Records(bad.to_vec()) };
            Verdict::Refused { what, why: why() }
        }
        SequenceError => Verdict::SequenceError { new_id: needs_new_producer_id(code), why: why() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(code: i16, attempts: u32) -> String {
        match verdict(code, "", 5, &[], attempts) {
            Verdict::Stored { offset } => format!("stored {offset:?}"),
            Verdict::Retry { maybe_stored: true, pace, .. } => format!("maybe {pace:?}"),
            Verdict::Retry { maybe_stored: false, pace, .. } => format!("again {pace:?}"),
            Verdict::Refused { what, .. } => format!("refused {what:?}"),
            Verdict::SequenceError { new_id: false, .. } => "sequence_error".into(),
            Verdict::SequenceError { new_id: true, .. } => "new id".into(),
        }
    }

    /// Written independently of the table, by what the core does. Fails when any code changes its meaning.
    #[test]
    fn every_code_at_its_first_attempt() {
        let want: &[(&str, &[i16])] = &[
            ("stored Some(5)", &[0]),
            ("stored None", &[46]),
            (
                "maybe Backoff",
                &[-1, 3, 5, 6, 7, 9, 13, 20, 56, 72, 74, 75, 100, 103, 1, 4, 60, 9999, i16::MIN, i16::MAX],
            ),
            ("again Backoff", &[2, 14, 15, 16, 19, 35, 42, 43, 51, 76, 89]),
            ("again Blocked", &[17, 21, 29, 31, 33, 34, 44, 53, 58]),
            ("refused TooLarge", &[10, 18]),
            ("refused Something", &[87]),
            ("refused Timestamp", &[32]),
            ("sequence_error", &[45, 59]),
            ("new id", &[22, 47, 48, 49, 52, 90, 105, 120]),
        ];
        for (what, codes) in want {
            codes.iter().for_each(|c| assert_eq!(&short(*c, 0), what, "code {c}"));
        }
        let named = |code| want.iter().any(|(_, codes)| codes.contains(&code));
        TABLE.iter().for_each(|r| assert!(named(r.code), "{} has no expectation", r.name));
    }

    /// Fails when bytes that were refused three times keep being resent quickly.
    #[test]
    fn repeated_refusals_slow_down() {
        assert_eq!((short(2, 2), short(2, 3)), ("again Backoff".into(), "again Blocked".into()));
        for code in [35, 42, 43] {
            assert_eq!(short(code, 1), "again Blocked");
        }
        assert_eq!((short(51, 2), short(51, 3)), ("again Backoff".into(), "new id".into()));
        assert_eq!(short(19, 1000), "again Backoff");
    }

    /// Fails when the table is out of order: `of` uses binary search.
    #[test]
    fn the_table_is_sorted() {
        assert!(TABLE.windows(2).all(|w| w[0].code < w[1].code));
        TABLE.iter().for_each(|r| assert_eq!(of(r.code), r));
    }

    /// Fails when the records that the broker names are not passed on.
    #[test]
    fn bad_records() {
        let what = |bad: &[u32]| match verdict(87, "why", -1, bad, 0) {
            Verdict::Refused { what, why } => (what, why),
            other => panic!("{other:?}"),
        };
        assert_eq!(what(&[9, 3]).0, Refusal::Records(vec![9, 3]));
        assert_eq!(what(&[]).0, Refusal::Something);
        assert!(what(&[]).1.starts_with("INVALID_RECORD (87): why; the topic does not accept such a record"));
    }
}
