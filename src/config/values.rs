//! Readers for the values of keys. A reader reports an invalid value at its position and returns `None`.

use super::mistake::{Conflict, Mistake, WrongValue};
use super::table::{Described, ReadValue, Value, Walk};
use super::units::{self, Invalid};
use super::words::{Named, names, nearest};
use super::{Acks, Priority, ProxyUrl, Start, Sync};
use crate::producer::spending::DataBudget;
use crate::record::LineRegex;
use crate::watch::pattern::{Exclude, Pattern};
use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;
use toml::Spanned;

/// The names of all values, for the manual page.
#[cfg(test)]
pub fn words<T: Named>() -> String {
    let names: Vec<String> = T::NAMES.iter().map(|(name, _)| format!("{name:?}")).collect();
    names.join(" or ")
}

/// A text accepted by `parse`.
pub fn parsed<T>(
    walk: &mut Walk<'_>,
    key: &str,
    v: &Value<'_>,
    (wanted, example): (&'static str, &str),
    parse: impl FnOnce(&str) -> Result<T, Invalid>,
) -> Option<T> {
    let Some(s) = v.get_ref().as_str() else {
        return walk.mismatch(key, v, wanted, example);
    };
    match parse(s) {
        Ok(found) => Some(found),
        Err(why) => {
            let wrong = WrongValue { wanted, why, example: example.into() };
            walk.refuse(v, Mistake::Value(key.into(), s.into(), wrong))
        }
    }
}

pub fn text(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<String> {
    let not_empty = |s: &str| if s.is_empty() { Err(Invalid::Text("it is empty")) } else { Ok(s.to_owned()) };
    parsed(walk, key, v, ("a text", "\"…\""), not_empty)
}

pub fn flag(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<bool> {
    v.get_ref().as_bool().or_else(|| walk.mismatch(key, v, "true or false", "true"))
}

/// `None`: not an integer. `Err`: one that does not fit.
pub fn integer(v: &Value<'_>) -> Option<Result<u64, ()>> {
    let n = v.get_ref().as_integer()?;
    Some(u64::from_str_radix(n.as_str(), n.radix()).map_err(|_| ()))
}

pub fn number(walk: &mut Walk<'_>, key: &str, v: &Value<'_>, (from, to): (u64, u64)) -> Option<u64> {
    let Some(found) = integer(v) else {
        return walk.mismatch(key, v, "a whole number", &from.to_string());
    };
    let n = found.ok().filter(|n| (from..=to).contains(n));
    n.or_else(|| walk.refuse(v, Mistake::Range(key.into(), from, to)))
}

pub fn partition_number(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<i32> {
    number(walk, key, v, (0, i32::MAX as u64)).map(|n| n as i32)
}

pub fn lines(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<usize> {
    number(walk, key, v, (1, 1_000_000)).map(|n| n as usize)
}

/// A word from a fixed set.
pub fn word<T: Named>(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<T> {
    let found = one_of(walk, key, v, &names::<T>())?;
    Some(T::NAMES[found].1.clone())
}

/// The index of the value in `names`.
fn one_of(walk: &mut Walk<'_>, key: &str, v: &Value<'_>, names: &[&'static str]) -> Option<usize> {
    let words = || -> Vec<String> { names.iter().map(|name| format!("{name:?}")).collect() };
    let Some(s) = v.get_ref().as_str() else {
        return walk.mismatch(key, v, "one of these words", &words().join(" or "));
    };
    let found = names.iter().position(|name| *name == s);
    found.or_else(|| walk.refuse(v, Mistake::Word(key.into(), s.into(), words(), nearest(s, names))))
}

/// Bytes.
pub fn size(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<u64> {
    match integer(v) {
        Some(_) => number(walk, key, v, (0, i64::MAX as u64)),
        None => parsed(walk, key, v, ("a size", "\"8MiB\""), units::size),
    }
}

/// Bytes that fit in memory and are at least 1.
pub fn bytes(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<usize> {
    let n = match integer(v) {
        Some(n) => n.ok(),
        None => Some(size(walk, key, v)?),
    };
    let fits = n.filter(|n| (1..=1 << 30).contains(n)).map(|n| n as usize);
    fits.or_else(|| walk.refuse(v, Mistake::Bytes(key.into())))
}

/// Bytes per second.
pub fn rate(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<u64> {
    match integer(v) {
        Some(_) => number(walk, key, v, (1, i64::MAX as u64)),
        None => parsed(walk, key, v, ("a rate", "\"1MiB/s\""), units::rate),
    }
}

/// Bytes per period.
pub fn data_budget(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<DataBudget> {
    parsed(walk, key, v, ("a budget", "\"200MiB/day\""), units::data_budget)
}

pub fn duration(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Duration> {
    parsed(walk, key, v, ("a duration", "\"30s\""), units::duration)
}

/// A duration above zero.
pub fn wait(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Duration> {
    let d = duration(walk, key, v)?;
    if d.is_zero() {
        return walk.refuse(v, Mistake::NoTime(key.into()));
    }
    Some(d)
}

pub fn path(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<PathBuf> {
    let s = text(walk, key, v)?;
    if !s.starts_with('/') || s.contains('\0') {
        return walk.refuse(v, Mistake::RelativePath(key.into(), s));
    }
    Some(s.into())
}

/// A folder. It may be absent, but not by writing an empty value.
pub fn folder(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Option<PathBuf>> {
    path(walk, key, v).map(Some)
}

pub fn brokers(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Vec<units::BrokerAddress>> {
    if let Some(s) = v.get_ref().as_str() {
        return walk.mismatch(key, v, "a list", &each_with_port(s));
    }
    let all = list(walk, key, v, broker)?;
    if all.is_empty() {
        walk.refuse(v, Mistake::EmptyList(key.into(), "[\"kafka.example:9092\"]"))
    } else {
        Some(all)
    }
}

fn broker(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<units::BrokerAddress> {
    let example = each_with_port(v.get_ref().as_str().unwrap_or_default());
    parsed(walk, key, v, ("a broker", &example), units::broker)
}

/// A list of suggestions for what may be several brokers in one text.
fn each_with_port(s: &str) -> String {
    let all: Vec<String> = s.split(',').map(|one| format!("{:?}", with_port(one.trim()))).collect();
    format!("[{}]", all.join(", "))
}

/// A suggestion in the form of an example.
fn with_port(s: &str) -> String {
    let meant = [s.to_owned(), format!("{s}:9092"), "kafka.example:9092".into()];
    meant.into_iter().find(|m| units::broker(m).is_ok()).unwrap_or_default()
}

pub fn client_id(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<String> {
    parsed(walk, key, v, ("a client id", "\"logagent\""), units::client_id)
}

pub fn topic(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<String> {
    parsed(walk, key, v, ("a topic", "\"web_log\""), units::topic)
}

pub fn pattern(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<LineRegex> {
    parsed(walk, key, v, ("a regular expression", "'^[0-9]+ '"), units::regex)
}

pub fn patterns(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Vec<LineRegex>> {
    one_or_list(walk, key, v, pattern)
}

pub fn texts_list(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Vec<String>> {
    one_or_list(walk, key, v, text)
}

pub fn priority(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Priority> {
    match integer(v) {
        Some(_) => number(walk, key, v, (0, 7)).map(|n| Priority(n as u8)),
        None => word(walk, key, v),
    }
}

pub fn exclusions(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Exclude> {
    let globs = one_or_list(walk, key, v, |walk, key, v| {
        parsed(walk, key, v, ("a glob", "[\"*.gz\"]"), |s| units::glob(s).map(|_| s.to_owned()))
    })?;
    Exclude::new(&globs).ok()
}

pub fn paths(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Vec<Pattern>> {
    let all = one_or_list(walk, key, v, followed)?;
    if all.is_empty() {
        walk.refuse(v, Mistake::EmptyList(key.into(), "[\"/var/log/nginx/*.log\"]"))
    } else {
        Some(all)
    }
}

/// A path, or a glob if it contains glob characters.
fn followed(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Pattern> {
    let found = path(walk, key, v)?;
    let s = v.get_ref().as_str()?;
    if !units::has_glob(s) {
        return Some(Pattern::path(&found));
    }
    parsed(walk, key, v, ("a glob", "[\"/var/log/nginx/*.log\"]"), units::path_glob)
}

fn list<T>(walk: &mut Walk<'_>, key: &str, v: &Value<'_>, read: ReadValue<T>) -> Option<Vec<T>> {
    let Some(items) = v.get_ref().as_array() else {
        return walk.mismatch(key, v, "a list", "[…]");
    };
    all(items.iter().map(|item| read(walk, key, item)))
}

/// Reads all items, so that each invalid one is reported.
fn all<T>(items: impl Iterator<Item = Option<T>>) -> Option<Vec<T>> {
    let read: Vec<Option<T>> = items.collect();
    read.into_iter().collect()
}

/// A list, or a single item without brackets.
fn one_or_list<T>(walk: &mut Walk<'_>, key: &str, v: &Value<'_>, read: ReadValue<T>) -> Option<Vec<T>> {
    match v.get_ref().as_array() {
        Some(_) => list(walk, key, v, read),
        None => Some(vec![read(walk, key, v)?]),
    }
}

/// A table of names and texts, in the order of the names.
pub fn texts(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Vec<(String, String)>> {
    let Some(found) = v.get_ref().as_table() else {
        return walk.mismatch(key, v, "a table of texts", "{ service = \"web\" }");
    };
    let one = |(name, value): (&Spanned<Cow<'_, str>>, &Value<'_>)| {
        let (name, at) = (name.get_ref().to_string(), name.span());
        let value = &*walk.filled(&name, value)?;
        let Some(text) = value.get_ref().as_str() else {
            return walk.mismatch(&format!("{key}.{name}"), value, "a text", "\"…\"");
        };
        if name.is_empty() {
            walk.wrong(at, Mistake::EmptyName(key.into()));
            return None;
        }
        Some((name, text.to_owned()))
    };
    all(found.iter().map(one))
}

/// A nested table.
pub fn nested<T: Described>(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<T> {
    walk.table(v).or_else(|| walk.mismatch(key, v, "a table", "{ … }"))
}

/// A URL. One with a password in it is not shown, since problems are logged.
pub fn proxy(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<ProxyUrl> {
    if v.get_ref().as_str().is_some_and(units::has_password) {
        return walk.refuse(v, Conflict::ProxyPassword.into());
    }
    parsed(walk, key, v, ("a proxy", "\"http://proxy:3128\""), units::proxy)
}

pub fn sync(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Sync> {
    match v.get_ref().as_str() {
        Some("always") => Some(Sync::Always),
        _ => wait(walk, key, v).map(Sync::Every),
    }
}

pub fn acks(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Acks> {
    match integer(v) {
        Some(Ok(0)) => Some(Acks::Zero),
        Some(Ok(1)) => Some(Acks::One),
        Some(_) => {
            let value = v.get_ref().as_integer().map_or("another number", |n| n.as_str()).into();
            walk.refuse(v, Mistake::Choice(key.into(), value, "\"all\", 1 or 0"))
        }
        None => word(walk, key, v),
    }
}

pub fn json_path(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Vec<String>> {
    parsed(walk, key, v, ("a path to a JSON field", "\"user.id\""), |s| {
        let parts: Vec<String> = s.split('.').map(str::to_owned).collect();
        if parts.iter().any(String::is_empty) {
            Err(Invalid::Text("a name in it is empty"))
        } else {
            Ok(parts)
        }
    })
}

pub fn start(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Start> {
    match integer(v) {
        Some(_) => number(walk, key, v, (0, i64::MAX as u64)).map(Start::Offset),
        None => word(walk, key, v),
    }
}

pub fn poll(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Option<Duration>> {
    match v.get_ref().as_bool() {
        Some(on) => Some(on.then_some(Duration::from_secs(1))),
        None => wait(walk, key, v).map(Some),
    }
}
