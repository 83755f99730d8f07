//! Maps the error of a batch to its verdict. Pure.

use super::client::CallError;
use crate::producer::driver::{Pace, Refusal, Verdict};
use kafka::error::KafkaCode as Code;

/// The verdict for a batch that failed with `trouble`. Errors not in the table are retried forever (D14: the crate
/// knows no code above 35, so 44, 56, 74, 76, 87 and 89 look alike).
pub fn verdict(trouble: &CallError) -> Verdict {
    let why = why(trouble);
    let (maybe_stored, pace) = match trouble {
        CallError::NotSent(_) => (false, Pace::Backoff),
        CallError::Lost(_) | CallError::Closed | CallError::Panic(_) => (true, Pace::Backoff),
        CallError::Code(code) => match code {
            Code::MessageSizeTooLarge | Code::RecordListTooLarge => {
                return Verdict::Refused { what: Refusal::TooLarge, why };
            }
            Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::InvalidTopic
            | Code::InvalidRequiredAcks => (false, Pace::Blocked),
            Code::UnknownTopicOrPartition
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::BrokerNotAvailable
            | Code::ReplicaNotAvailable
            | Code::CorruptMessage
            | Code::NotEnoughReplicas
            | Code::InvalidTimestamp
            | Code::UnsupportedVersion => (false, Pace::Backoff),
            // RequestTimedOut, NotEnoughReplicasAfterAppend: written by the leader, but not by enough replicas.
            _ => (true, Pace::Backoff),
        },
    };
    Verdict::Retry { maybe_stored, pace, why }
}

/// The reason, for the operator.
pub fn why(trouble: &CallError) -> String {
    match trouble {
        CallError::Code(Code::Unknown) => {
            "an error code unknown to the kafka crate (above 35); driver = \"modern\" would show it"
                .to_owned()
        }
        CallError::Code(c) => format!("{c:?} (error {})", *c as i16),
        CallError::NotSent(why) | CallError::Lost(why) => why.clone(),
        CallError::Closed => "the broker closed the connection".to_owned(),
        CallError::Panic(text) => format!("the kafka crate panicked: {text}"),
    }
}

/// Whether the broker or its connection has a problem, rather than this batch or its topic.
pub fn is_brokers(trouble: &CallError) -> bool {
    !matches!(trouble, CallError::Code(_))
}

/// The broker does not support this version of the request, whatever it claims in ApiVersions.
pub fn is_version(trouble: &CallError) -> bool {
    matches!(trouble, CallError::Code(Code::UnsupportedVersion))
}

/// A code that the crate cannot distinguish (D14).
pub fn is_nameless(trouble: &CallError) -> bool {
    matches!(trouble, CallError::Code(Code::Unknown))
}
