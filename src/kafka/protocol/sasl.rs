//! SASL's requests and answers, for any mechanism.

use crate::kafka::protocol::messages::{request, text};
use crate::kafka::protocol::wire::{ApiKey, Read, Reader};
use zeroize::Zeroizing;

/// Names the SASL mechanism; version 1.
pub fn ask_mechanism(correlation: i32, client: &str, mechanism: &str) -> Vec<u8> {
    let mut to = request(ApiKey::SaslHandshake, 1, correlation, client, 2 + mechanism.len());
    to.string(mechanism);
    to.into_frame()
}

/// Error code, and the mechanisms the broker supports.
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

/// A message of a SASL mechanism, in one buffer that is wiped. It may hold a password, and a growing buffer would
/// leave copies behind.
pub fn authenticate(version: i16, correlation: i32, client: &str, message: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut to = request(ApiKey::SaslAuthenticate, version, correlation, client, AROUND + message.len());
    let room = to.held();
    to.blob(message);
    to.tags();
    debug_assert_eq!(to.held(), room, "the message was moved");
    Zeroizing::new(to.into_frame())
}

/// Maximum overhead around the message: its length, and tags.
const AROUND: usize = 6;

/// The broker's answer to [`authenticate`].
#[derive(Debug, PartialEq, Eq)]
pub struct Authenticated {
    pub error: i16,
    pub message: String,
    pub bytes: Vec<u8>,
    /// 0: the session does not expire.
    pub lifetime_ms: i64,
}

pub fn authenticated(body: &[u8], version: i16) -> Read<Authenticated> {
    let mut r = Reader::new(body, ApiKey::SaslAuthenticate.is_flexible(version));
    r.skip_tags()?;
    let error = r.i16("error")?;
    let message = text(r.string("error message")?);
    let bytes = r.blob("SASL bytes")?.unwrap_or_default().to_vec();
    let lifetime_ms = if version >= 1 { r.i64("session lifetime")? } else { 0 };
    Ok(Authenticated { error, message, bytes, lifetime_ms })
}
