//! SASL's requests and answers; all others are in `messages.rs`. Knows no mechanism.

use super::messages::{frame, text};
use super::wire::{Read, Reader, put_uvarint};
use kafka_protocol::messages::{ApiKey, SaslHandshakeRequest};
use kafka_protocol::protocol::StrBytes;
use zeroize::Zeroizing;

/// Names the SASL mechanism; version 1.
pub fn ask_mechanism(correlation: i32, client: &str, mechanism: &str) -> Vec<u8> {
    let body = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_string(mechanism.to_owned()));
    frame(ApiKey::SaslHandshake, 1, correlation, client, &body)
}

/// Error code, and the mechanisms that the broker takes.
pub fn mechanisms(body: &[u8]) -> Read<(i16, Vec<String>)> {
    let mut r = Reader::new(body, false);
    let error = r.i16("error")?;
    let mut all = Vec::new();
    for _ in 0..r.count(2, "mechanism count")? {
        let name = text(r.string("mechanism")?);
        if all.len() < 16 {
            all.push(name);
        }
    }
    Ok((error, all))
}

/// A message of a SASL mechanism. Written by hand into one buffer that is wiped: it may hold a password, and a vector
/// that grows would leave copies behind.
pub fn authenticate(version: i16, correlation: i32, client: &str, message: &[u8]) -> Zeroizing<Vec<u8>> {
    let flexible = version >= 2;
    let mut varint = [0; 5];
    let of_len = put_uvarint(&mut varint, message.len() as u32 + 1);
    let mut to = Zeroizing::new(Vec::with_capacity(32 + client.len() + message.len()));
    to.extend_from_slice(&[0; 4]);
    to.extend_from_slice(&(ApiKey::SaslAuthenticate as i16).to_be_bytes());
    to.extend_from_slice(&version.to_be_bytes());
    to.extend_from_slice(&correlation.to_be_bytes());
    to.extend_from_slice(&(client.len() as i16).to_be_bytes());
    to.extend_from_slice(client.as_bytes());
    match flexible {
        true => {
            to.push(0); // no tagged fields in the header
            to.extend_from_slice(&varint[..of_len]);
        }
        false => to.extend_from_slice(&(message.len() as i32).to_be_bytes()),
    }
    to.extend_from_slice(message);
    if flexible {
        to.push(0);
    }
    let len = (to.len() - 4) as u32;
    to[..4].copy_from_slice(&len.to_be_bytes());
    to
}

/// The broker's answer to [`authenticate`].
#[derive(Debug, PartialEq, Eq)]
pub struct Authenticated {
    pub error: i16,
    pub message: String,
    pub bytes: Vec<u8>,
    /// 0: the session has no end.
    pub lifetime_ms: i64,
}

pub fn authenticated(body: &[u8], version: i16) -> Read<Authenticated> {
    let mut r = Reader::new(body, version >= 2);
    r.skip_tags()?;
    let error = r.i16("error")?;
    let message = text(r.string("error message")?);
    let bytes = r.blob("SASL bytes")?.unwrap_or_default().to_vec();
    let lifetime_ms = if version >= 1 { r.i64("session lifetime")? } else { 0 };
    Ok(Authenticated { error, message, bytes, lifetime_ms })
}
