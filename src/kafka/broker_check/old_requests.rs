//! Whether the broker accepts the `kafka` crate's Produce requests: some servers announce them and refuse each one.

use super::Visit;
use crate::error::Reason;
use crate::kafka::net::connection::Connection;
use crate::kafka::net::trouble::Trouble;
use crate::kafka::protocol::errors;
use crate::kafka::protocol::messages::request;
use crate::kafka::protocol::wire::{ApiKey, Read, Reader};
use std::time::Instant;

/// A message set of one record in the oldest format, with a wrong checksum.
const DAMAGED: [u8; 27] =
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 15, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, b'x'];

/// Nothing can be stored: a partition of this number cannot exist, and the record is damaged.
const NOWHERE: i32 = i32::MAX;

pub fn are_accepted(v: &Visit<'_>, topic: &str, c: &mut Connection) -> Result<String, Reason> {
    let id = c.next_correlation();
    let mut to = request(ApiKey::Produce, 0, id, &v.options.client_id, 64 + topic.len());
    to.i16(1); // acks
    to.i32(v.options.connect_timeout.as_millis() as i32);
    to.count(1);
    to.string(topic);
    to.count(1);
    to.i32(NOWHERE);
    to.blob(&DAMAGED);
    let fix = "set driver = \"auto\" or \"modern\"";
    let answer = c.call(&to.into_frame(), id, Instant::now() + v.options.connect_timeout);
    let answer = answer.map_err(|t| match t {
        Trouble::Ended => Reason::new("it announces Produce 0 but closes the connection on it", fix),
        other => other.into_reason(),
    })?;
    match code(answer).map_err(|e| Reason::from(e.to_string()))? {
        // No such partition, not its leader, not allowed.
        3 | 5 | 6 | 29 => Ok("it accepts Produce 0".into()),
        code => {
            let why = errors::reason(code, "").why;
            Err(Reason::new(format!("it announces Produce 0 but refuses it: {why}"), fix))
        }
    }
}

/// The code of the only partition.
fn code(answer: &[u8]) -> Read<i16> {
    let mut r = Reader::new(answer, false);
    r.count(1, "topic count")?;
    r.string("topic name")?;
    r.count(1, "partition count")?;
    r.i32("partition")?;
    r.i16("error")
}
