//! Values that only one key takes: where to start, what the record's key is, which lines belong together. Typed as they
//! stand there, without defaults.

use super::typed::elsewhere;
use super::values::*;
use super::walk::*;
use super::{Acks, Partition, Pattern, Regex, Start, Sync};
use std::time::Duration;

/// As typed; `"host"` becomes a constant once the host's name is known.
#[derive(Clone, Debug)]
pub enum Key {
    Host,
    Other(super::Key),
}

#[derive(Clone, Debug)]
pub struct Multiline {
    pub start: Field<Regex>,
    pub continues: Field<Regex>,
    pub timeout: Field<Duration>,
    pub max_lines: Field<u64>,
}

/// A path, or a glob where it has a glob's characters.
pub fn followed(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Pattern> {
    let found = path(walk, key, v)?;
    let s = v.get_ref().as_str()?;
    if !has_glob(s) {
        return Some(Pattern::Path(found));
    }
    walk.parsed(key, v, ("a glob", "[\"/var/log/nginx/*.log\"]"), path_glob)?;
    Some(Pattern::Glob(s.to_owned()))
}

/// Whether globbing would take some character of `s` as more than itself.
pub fn has_glob(s: &str) -> bool {
    s.contains(['*', '?', '[', '{', '\\'])
}

pub fn sync(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Sync> {
    match v.get_ref().as_str() {
        Some("always") => Some(Sync::Always),
        _ => wait(walk, key, v).map(Sync::Every),
    }
}

pub fn acks(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Acks> {
    match integer(v) {
        Some(Ok(0)) => Some(Acks::None),
        Some(Ok(1)) => Some(Acks::Leader),
        Some(_) => {
            let n = v.get_ref().as_integer().map_or("another number", |n| n.as_str());
            walk.wrong(v.span(), format!("`{key}` cannot be {n}"), "write \"all\", 1 or 0");
            None
        }
        None => named(walk, key, v),
    }
}

pub fn record_key(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Key> {
    const EXAMPLE: &str =
        "\"path\", \"host\", { constant = \"x\" }, { regex = 'id=(\\d+)' } or { field = \"user.id\" }";
    match v.get_ref().as_str() {
        Some("path") => return Some(Key::Other(super::Key::Path)),
        Some("host") => return Some(Key::Host),
        Some(other) => {
            let what = format!("`{key}` cannot be {other:?}");
            walk.wrong(v.span(), what, format!("write {key} = {EXAMPLE}"));
            return None;
        }
        None => {}
    }
    let Some(found) = v.get_ref().as_table() else {
        walk.mismatch(key, v, "a record's key", EXAMPLE);
        return None;
    };
    let mut s = Section::new(walk, "`key`", found);
    let constant = s.field("constant", text);
    let regex = s.field("regex", pattern);
    let field = s.field("field", json_path);
    s.finish(elsewhere);
    let missing = [constant.is_missing(), regex.is_missing(), field.is_missing()];
    if missing.iter().filter(|m| !**m).count() != 1 {
        walk.wrong(
            v.span(),
            format!("`{key}` has not exactly one source"),
            format!("write {key} = {EXAMPLE}"),
        );
        return None;
    }
    let constant = constant.value().map(|c| super::Key::Constant(c.into_bytes()));
    let found = constant.or(regex.value().map(super::Key::Regex)).or(field.value().map(super::Key::Field));
    found.map(Key::Other)
}

pub fn json_path(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Vec<String>> {
    walk.parsed(key, v, ("a way to a JSON field", "\"user.id\""), |s| {
        let parts: Vec<String> = s.split('.').map(str::to_owned).collect();
        if parts.iter().any(String::is_empty) { Err("a name in it is empty".into()) } else { Ok(parts) }
    })
}

pub fn partition(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Partition> {
    let Some(found) = v.get_ref().as_table() else { return named(walk, key, v) };
    let mut s = Section::new(walk, "`partition`", found);
    let fixed = s.field("fixed", number(0..=i32::MAX as u64));
    s.finish(elsewhere);
    if fixed.is_missing() {
        walk.wrong(v.span(), format!("`{key}` names no partition"), format!("write {key} = {{ fixed = 0 }}"));
    }
    fixed.value().map(|n| Partition::Fixed(n as i32))
}

pub fn start(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Start> {
    match integer(v) {
        Some(_) => number(0..=i64::MAX as u64)(walk, key, v).map(Start::Offset),
        None => named(walk, key, v),
    }
}

pub fn poll(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Option<Duration>> {
    match v.get_ref().as_bool() {
        Some(on) => Some(on.then_some(Duration::from_secs(1))),
        None => wait(walk, key, v).map(Some),
    }
}

pub fn deleted_hold(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<(Field<u64>, Field<Duration>)> {
    let found = table(walk, key, v, "{ bytes = \"1GiB\", time = \"7d\" }")?;
    let mut s = Section::new(walk, "`deleted_hold`", found);
    let hold = (s.field("bytes", size), s.field("time", duration));
    s.finish(elsewhere);
    Some(hold)
}

pub fn multiline(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Multiline> {
    let found = table(walk, key, v, "{ start = '^\\d{4}-' }")?;
    let mut s = Section::new(walk, "`multiline`", found);
    let multiline = Multiline {
        start: s.field("start", pattern),
        continues: s.field("continue", pattern),
        timeout: s.field("timeout", wait),
        max_lines: s.field("max_lines", number(1..=1_000_000)),
    };
    s.finish(elsewhere);
    if multiline.start.is_missing() == multiline.continues.is_missing() {
        let what = format!("`{key}` does not have exactly one of `start` and `continue`");
        walk.wrong(v.span(), what, "write the one that says which lines belong together");
        return None;
    }
    Some(multiline)
}
