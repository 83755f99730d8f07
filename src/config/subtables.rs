//! The tables within other tables, [kafka.tls] and those that are a key's value, and how they are read.

use super::mistake::{Conflict, Mistake};
use super::spec::*;
use super::table::*;
use super::values::*;
use super::{Hold, Joint, Key, Multiline, Partitioner};
use crate::record::LineRegex;
use std::path::PathBuf;
use std::time::Duration;

/// The possible sources of a record's key.
const RECORD_KEYS: &str =
    "\"path\", \"host\", { constant = \"x\" }, { regex = 'id=(\\d+)' } or { field = \"user.id\" }";

table! {
    pub struct KafkaTls "[kafka.tls]" optional:
        "This table, even empty, turns TLS on. Files are PEM, and are read again at each connect." {
        ca: Option<PathBuf> = path("path"), Example("\"/etc/ssl/certs/kafka-ca.pem\""), Reconnects,
            "The CA that signed the brokers' certificates; by default the system's roots.";
        cert: Option<PathBuf> = path("path"), Example("\"/etc/ssl/certs/logagent.pem\""), Reconnects,
            "The agent's own certificate, for brokers that require one.",
            "Needs its key. Certificates of CAs between it and `ca` come after it.";
        key: Option<PathBuf> = path("path"), Example("\"/run/credentials/logagent.service/kafka-key\""), Reconnects,
            "", "The private key that goes with cert: EC P-256 or P-384, Ed25519, or RSA of 2048 to 4096 bits, not encrypted.";
        server_name: Option<String> = text("text"), Example("\"kafka.example\""), Reconnects,
            "The name in the brokers' certificates, if it differs from the one in `brokers`. It applies to all brokers.",
            "It replaces each broker's own name both in the certificate check and in SNI. Do not set it for a service that \
             routes by SNI behind one address, as Confluent Cloud and most ingress controllers do: every connection \
             would reach the same broker.";
    }
}

pub fn tls(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<KafkaTls> {
    let tls: KafkaTls = nested(walk, key, v)?;
    let id = (KafkaTls::TABLE.name, walk.source);
    if !walk.problems.has(id, "key") {
        walk.problems.add_at(id, "cert", Conflict::CertWithoutKey);
    }
    if !walk.problems.has(id, "cert") {
        walk.problems.add_at(id, "key", Conflict::KeyWithoutCert);
    }
    Some(tls)
}

table! {
    pub struct KeyTable "`key`" {
        constant: Option<String> = text("text"), Example("\"x\""), AtOnce, "The same key for every record.";
        regex: Option<LineRegex> = pattern("regular expression"), Example("'id=(\\d+)'"), AtOnce,
            "The first group of the match, or the whole match if there is no group.";
        field: Option<Vec<String>> = json_path("text"), Example("\"user.id\""), AtOnce,
            "A field of a line that is a JSON object; dots separate nested names.";
    }
}

pub fn record_key(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Key> {
    match v.get_ref().as_str() {
        Some("path") => return Some(Key::Path),
        Some("host") => return Some(Key::Constant(walk.host.clone().into_bytes())),
        Some(other) => {
            let value = format!("{other:?}");
            return walk.refuse(v, Mistake::Choice(key.into(), value, RECORD_KEYS));
        }
        None => {}
    }
    if !v.get_ref().is_table() {
        return walk.mismatch(key, v, "a record's key", RECORD_KEYS);
    }
    let found: KeyTable = nested(walk, key, v)?;
    let id = (KeyTable::TABLE.name, walk.source);
    let sources = ["constant", "regex", "field"].iter().filter(|k| walk.problems.has(id, k)).count();
    if sources != 1 {
        return walk.refuse(v, Mistake::KeySources(RECORD_KEYS));
    }
    let constant = found.constant.map(|c| Key::Constant(c.into_bytes()));
    constant.or(found.regex.map(Key::Regex)).or(found.field.map(Key::Field))
}

table! {
    pub struct PartitionTable "`partition`" {
        fixed: i32 = partition_number("number"), Required("0"), AtOnce, "Always this partition.";
    }
}

pub fn partition(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Partitioner> {
    if let Some(PartitionTable { fixed }) = walk.table(v) {
        return Some(Partitioner::Fixed(fixed));
    }
    let meant = integer(v).map(|n| n.unwrap_or_default());
    match meant.or((v.get_ref().as_str() == Some("fixed")).then_some(0)) {
        Some(n) => walk.mismatch(key, v, "a table", &format!("{{ fixed = {n} }}")),
        None => word(walk, key, v),
    }
}

table! {
    for Hold "`deleted_hold`" {
        bytes: u64 = size("size"), Default("\"1GiB\""), AtOnce, "Unread bytes of all deleted files of one path. What was read is delivered in any case.";
        time: Duration = duration("duration"), Default("\"7d\""), AtOnce, "Since the file last changed.";
    }
}

table! {
    pub struct MultilineTable "`multiline`" {
        start: Option<LineRegex> = pattern("regular expression"), Example("'^\\d{4}-'"), AtOnce,
            "Matches the first line of each record.";
        continues as "continue": Option<LineRegex> = pattern("regular expression"), Example("'^\\s'"), AtOnce,
            "Instead of start: matches every line of a record but the first.";
        timeout: Duration = wait("duration"), Default("\"2s\""), AtOnce,
            "A record is sent after this long without another line.";
        max_lines: usize = lines("number"), Default("500"), AtOnce, "A record ends after this many lines.";
    }
}

/// With the time to wait for another line.
pub fn multiline(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<(Multiline, Duration)> {
    let found: MultilineTable = nested(walk, key, v)?;
    let id = (MultilineTable::TABLE.name, walk.source);
    if walk.problems.has(id, "start") == walk.problems.has(id, "continue") {
        return walk.refuse(v, Mistake::MultilineSources);
    }
    let joint = found.start.map(Joint::Start).or(found.continues.map(Joint::Continue))?;
    Some((Multiline { joint, max_lines: found.max_lines }, found.timeout))
}
