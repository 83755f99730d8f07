//! Maps the error of a batch to its verdict. Pure.

use super::client::CallError;
use super::request::FrameFailed;
use crate::error::Reason;
use crate::kafka::protocol::errors;
use crate::producer::batch::Batch;
use crate::producer::driver::{Pace, Verdict};

/// The verdict for a batch that failed.
pub fn verdict(FrameFailed { trouble, partly_stored }: &FrameFailed, batch: &Batch) -> Verdict {
    let mut verdict = match trouble {
        CallError::NotSent(_) => retry(trouble, false),
        CallError::Lost(_) | CallError::Closed | CallError::Panic(_) => retry(trouble, true),
        CallError::Code(code) => match errors::verdict(*code, "", -1, &[], batch.attempts) {
            // There are no sequence numbers, so these codes are as odd as unknown ones. But all of them are checked before
            // the batch is stored.
            Verdict::SequenceError { .. } => retry(trouble, false),
            other => other,
        },
    };
    if let Verdict::Retry { maybe_stored, why, .. } = &mut verdict {
        *maybe_stored |= partly_stored;
        *why = self::why(trouble);
    }
    verdict
}

fn retry(trouble: &CallError, maybe_stored: bool) -> Verdict {
    Verdict::Retry { maybe_stored, pace: Pace::Backoff, why: why(trouble) }
}

/// The reason, for the operator.
pub fn why(trouble: &CallError) -> String {
    match trouble {
        CallError::Code(code) => {
            let Reason { why, fix } = errors::reason(*code, "");
            let fix =
                fix.or_else(|| is_odd(trouble).then(|| "set driver = \"auto\" or \"modern\"".to_owned()));
            Reason { why, fix }.to_string()
        }
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
    matches!(trouble, CallError::Code(35))
}

/// A code that is not an answer to this crate's requests, which predate it: the other driver's may fare better.
pub fn is_odd(trouble: &CallError) -> bool {
    matches!(trouble, CallError::Code(-1 | 36..))
}
