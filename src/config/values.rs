//! The kinds of values that keys take: texts, numbers, sizes, paths, patterns and lists of them. A reader reports a wrong
//! value at its place and then gives `None`; it knows no key by name.

use super::Regex;
use super::nearest::nearest;
use super::units;
use super::walk::{Named, Value, Walk, by_name};
use std::path::PathBuf;
use std::time::Duration;
use toml::de::DeTable;

/// A way to read a value: `None` when it was reported as wrong.
type Read<T> = fn(&mut Walk<'_>, &str, &Value<'_>) -> Option<T>;

/// A table within a table; `None` when it is something else.
pub fn table<'t>(walk: &mut Walk<'_>, key: &str, v: &'t Value<'t>, example: &str) -> Option<&'t DeTable<'t>> {
    let found = v.get_ref().as_table();
    if found.is_none() {
        walk.mismatch(key, v, "a table", example);
    }
    found
}

pub fn text(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<String> {
    let not_empty = |s: &str| if s.is_empty() { Err("it is empty".into()) } else { Ok(s.to_owned()) };
    walk.parsed(key, v, ("a text", "\"…\""), not_empty)
}

pub fn flag(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<bool> {
    let found = v.get_ref().as_bool();
    if found.is_none() {
        walk.mismatch(key, v, "true or false", "true");
    }
    found
}

/// A whole number in `range`.
pub fn number(
    range: std::ops::RangeInclusive<u64>,
) -> impl FnOnce(&mut Walk<'_>, &str, &Value<'_>) -> Option<u64> {
    move |walk, key, v| {
        let Some(found) = integer(v) else {
            walk.mismatch(key, v, "a whole number", &range.start().to_string());
            return None;
        };
        let n = found.ok().filter(|n| range.contains(n));
        if n.is_none() {
            let what = format!("`{key}` is not from {} to {}", range.start(), range.end());
            walk.wrong(v.span(), what, "write a number from there");
        }
        n
    }
}

/// `None`: not an integer. `Err`: one that does not fit.
pub fn integer(v: &Value<'_>) -> Option<Result<u64, ()>> {
    let n = v.get_ref().as_integer()?;
    Some(u64::from_str_radix(n.as_str(), n.radix()).map_err(|_| ()))
}

/// A word that stands for something.
pub fn named<T: Named>(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<T> {
    let names: Vec<String> = T::NAMES.iter().map(|(name, _)| format!("{name:?}")).collect();
    let Some(s) = v.get_ref().as_str() else {
        walk.mismatch(key, v, "one of these words", &names.join(" or "));
        return None;
    };
    by_name(s)
        .map_err(|_| {
            let instead = match nearest(s, T::NAMES.iter().map(|(name, _)| *name)) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("write {}", names.join(" or ")),
            };
            walk.wrong(v.span(), format!("`{key}` cannot be {s:?}"), instead);
        })
        .ok()
}

/// Bytes.
pub fn size(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<u64> {
    match integer(v) {
        Some(Ok(n)) => Some(n),
        _ => walk.parsed(key, v, ("a size", "\"8MiB\""), units::size),
    }
}

/// Bytes that fit in memory and are at least 1.
pub fn bytes(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<usize> {
    let n = size(walk, key, v)?;
    let fits = usize::try_from(n).ok().filter(|n| (1..=1 << 30).contains(n));
    if fits.is_none() {
        walk.wrong(v.span(), format!("`{key}` is not from 1 byte to 1 GiB"), "write a size such as \"8MiB\"");
    }
    fits
}

/// Bytes per second.
pub fn rate(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<u64> {
    match integer(v) {
        Some(Ok(n)) if n > 0 => Some(n),
        _ => walk.parsed(key, v, ("a rate", "\"1MiB/s\""), units::rate),
    }
}

pub fn duration(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Duration> {
    walk.parsed(key, v, ("a duration", "\"30s\""), units::duration)
}

/// A duration longer than nothing.
pub fn wait(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Duration> {
    let d = duration(walk, key, v)?;
    if d.is_zero() {
        walk.wrong(v.span(), format!("`{key}` is no time at all"), format!("write {key} = \"1s\" or longer"));
        return None;
    }
    Some(d)
}

pub fn path(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<PathBuf> {
    let s = text(walk, key, v)?;
    if !s.starts_with('/') || s.contains('\0') {
        let what = format!("`{key}`: {s:?} is a relative path");
        walk.wrong(
            v.span(),
            what,
            "begin it with /, because a service has no folder of its own to start from",
        );
        return None;
    }
    Some(s.into())
}

pub fn broker_list(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Vec<units::Broker>> {
    if let Some(s) = v.get_ref().as_str() {
        let all: Vec<String> = s.split(',').map(|one| format!("{:?}", with_port(one.trim()))).collect();
        walk.mismatch(key, v, "a list", &format!("[{}]", all.join(", ")));
        return None;
    }
    list(broker)(walk, key, v)
}

fn broker(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<units::Broker> {
    let example = format!("[{:?}]", with_port(v.get_ref().as_str().unwrap_or_default()));
    walk.parsed(key, v, ("a broker", &example), units::broker)
}

/// What may have been meant, as an example of how to write it.
fn with_port(s: &str) -> String {
    let meant = [s.to_owned(), format!("{s}:9092"), "kafka.example:9092".into()];
    meant.into_iter().find(|m| units::broker(m).is_ok()).unwrap_or_default()
}

/// What brokers write into their logs; the protocol has room for 32,767 bytes in every request.
pub fn client_id(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<String> {
    let fits = |s: &str| match s.len() {
        1..=255 => Ok(s.to_owned()),
        n => Err(format!("1 to 255 bytes, not {n}")),
    };
    walk.parsed(key, v, ("a client id", "\"logagent\""), fits)
}

/// The topic names that Kafka takes (`org.apache.kafka.common.internals.Topic`).
pub fn topic(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<String> {
    walk.parsed(key, v, ("a topic", "\"web_log\""), topic_name)
}

pub fn topic_name(s: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if s.is_empty() || s.len() > 249 || s == "." || s == ".." || !s.chars().all(legal) {
        return Err("Kafka takes 1 to 249 of the characters a-z A-Z 0-9 . _ -".into());
    }
    Ok(s.to_owned())
}

/// A regular expression over bytes, with the limits that all stages use: a program and a cache that stay small, since
/// there is one cache for each thread that searches.
pub fn regex(s: &str) -> Result<Regex, String> {
    let built = regex::bytes::RegexBuilder::new(s).size_limit(1 << 20).dfa_size_limit(256 << 10).build();
    built.map(Regex).map_err(|e| {
        let text = e.to_string();
        text.lines().last().unwrap_or("it cannot be compiled").trim_start_matches("error: ").to_owned()
    })
}

pub fn pattern(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Regex> {
    walk.parsed(key, v, ("a regular expression", "'^[0-9]+ '"), regex)
}

/// A glob as all stages understand it: `*` and `?` stop at `/`, `**` does not, `[…]` and `{a,b}` work, `\` takes a
/// character as it is.
pub fn glob(s: &str) -> Result<globset::Glob, String> {
    let built = globset::GlobBuilder::new(s).literal_separator(true).backslash_escape(true).build();
    built.map_err(|e| e.kind().to_string())
}

/// A glob for paths, which is walked folder by folder: each piece between two `/` is a glob by itself, or `**`.
pub fn path_glob(s: &str) -> Result<(), String> {
    glob(s)?;
    let broken = |piece: &str| glob(piece).is_err();
    if s.split('/').any(broken) {
        return Err("a / within {…} or […] is not understood, write one path for each".into());
    }
    Ok(())
}

pub fn exclusion(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<String> {
    walk.parsed(key, v, ("a glob", "[\"*.gz\"]"), |s| glob(s).map(|_| s.to_owned()))
}

/// A list of what `read` takes.
pub fn list<T>(read: Read<T>) -> impl FnOnce(&mut Walk<'_>, &str, &Value<'_>) -> Option<Vec<T>> {
    move |walk, key, v| {
        let Some(items) = v.get_ref().as_array() else {
            walk.mismatch(key, v, "a list", "[…]");
            return None;
        };
        let read: Vec<Option<T>> = items.iter().map(|item| read(walk, key, item)).collect();
        read.into_iter().collect()
    }
}

/// A list, or one of them without brackets.
pub fn one_or_list<T>(read: Read<T>) -> impl FnOnce(&mut Walk<'_>, &str, &Value<'_>) -> Option<Vec<T>> {
    move |walk, key, v| match v.get_ref().as_array() {
        Some(_) => list(read)(walk, key, v),
        None => Some(vec![read(walk, key, v)?]),
    }
}

/// A table of names and texts, in the order of the names.
pub fn texts(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Vec<(String, String)>> {
    let Some(found) = v.get_ref().as_table() else {
        walk.mismatch(key, v, "a table of texts", "{ service = \"web\" }");
        return None;
    };
    let mut all = Vec::new();
    let mut good = true;
    for (name, value) in found.iter() {
        match value.get_ref().as_str() {
            Some(s) if !name.get_ref().is_empty() => all.push((name.get_ref().to_string(), s.to_owned())),
            Some(_) => {
                walk.wrong(name.span(), format!("a name in `{key}` is empty"), "give it a name");
                good = false;
            }
            None => {
                let name = format!("{key}.{}", name.get_ref());
                walk.mismatch(&name, value, "a text", "\"…\"");
                good = false;
            }
        }
    }
    good.then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics() {
        for good in ["web_log", "a.b-C", &"x".repeat(249)] {
            assert!(topic_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a b", "ä", "a/b", &"x".repeat(250)] {
            assert!(topic_name(bad).is_err(), "{bad}");
        }
    }

    /// Fails when `literal_separator` is off: `/var/log/*.log` would then follow files of other folders.
    #[test]
    fn a_star_stops_at_a_slash() {
        let m = glob("/var/log/*.log").unwrap().compile_matcher();
        assert!(m.is_match("/var/log/a.log") && !m.is_match("/var/log/b/a.log"));
        assert!(glob("/var/log/[a").is_err());
        assert!(path_glob("/var/{a,b}/**/[xy].log").is_ok());
        assert!(path_glob("/var/{a,b/c}/x").is_err() && path_glob("/var/[").is_err());
    }
}
