//! Reads the config files: the main one and the `*.toml` of the `.d` folder beside it.
//!
//! The parser goes on after a mistake, so that one run names the problems of the whole file; what it had to guess is not
//! judged.

use super::Surroundings;
use super::keys::{Agent, Kafka, Metrics, Source, elsewhere};
use super::mistake::Mistake;
use super::problem::{Problems, TextPosition};
use super::table::{Described, Value, Walk, defaults};
use crate::error::Error;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// What is in all files together: `[[files]]` from each, everything else from the main one.
pub struct Written {
    /// Start of the main file, to report what is missing in it; `None` when there is no file.
    pub top: Option<TextPosition>,
    pub read_from: Vec<PathBuf>,
    pub agent: Agent,
    pub kafka: Kafka,
    pub metrics: Metrics,
    /// Whether a `files` is there at all, be it a wrong one.
    pub has_files: bool,
    pub files: Vec<Source>,
}

impl Written {
    /// Without a file.
    pub fn nothing(host: &str) -> Self {
        Written {
            top: None,
            read_from: Vec::new(),
            agent: Agent { hostname: host.into(), ..defaults() },
            kafka: defaults(),
            metrics: defaults(),
            has_files: false,
            files: Vec::new(),
        }
    }
}

/// Reads `main` and the files that belong to it. `given`: keys that the command line gives.
pub fn read(
    main: &Path,
    around: &Surroundings,
    given: &'static [&'static str],
    problems: &mut Problems,
) -> Result<Written, Error> {
    let bytes = std::fs::read(main).map_err(|e| unreadable(main, &e))?;
    let text = String::from_utf8_lossy(&bytes);
    let (host, env) = (around.hostname.as_str(), around.env);
    let mut written = Written::nothing(host);
    let (doc, table) = parse(main, &bytes, &text, problems);
    written.top = Some(TextPosition { doc, at: 0 });
    let mut walk = Walk { given, env, host: host.into(), ..Walk::new(doc, problems) };
    main_file(&mut walk, &table, &mut written);
    let (mut host, mut source) = (walk.host, walk.source);
    for path in more_files(main)? {
        match std::fs::read(&path) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                let (doc, table) = parse(&path, &bytes, &text, problems);
                let mut walk = Walk { given, env, host, source, ..Walk::new(doc, problems) };
                file_beside(&mut walk, &table, &mut written);
                (host, source) = (walk.host, walk.source);
            }
            Err(e) => {
                let doc = problems.add_file(&path, "");
                problems.add(TextPosition { doc, at: 0 }, Mistake::Unreadable(e));
            }
        }
    }
    written.read_from = problems.files().map(Path::to_owned).collect();
    Ok(written)
}

fn unreadable(main: &Path, e: &std::io::Error) -> Error {
    let what = format!("read {}", main.display());
    match e.kind() {
        ErrorKind::IsADirectory => {
            let fix = format!("name the file in it, as in -c {}", main.join("logagent.toml").display());
            Error::config(what, "it is a folder", fix)
        }
        ErrorKind::NotFound => {
            let fix = "write one there, name another with -c, or give the files: logagent run FILE…";
            Error::config(what, e, fix)
        }
        _ => Error::config(what, e, "let this user read it, or name another with -c"),
    }
}

/// In the order of their names. No such folder: none.
fn more_files(main: &Path) -> Result<Vec<PathBuf>, Error> {
    let folder = main.with_extension("d");
    let unreadable =
        |e| Error::config(format!("read {}", folder.display()), e, "let the agent's user read it");
    let entries = match std::fs::read_dir(&folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(unreadable)?,
    };
    let paths: Result<Vec<PathBuf>, _> = entries.map(|e| e.map(|e| e.path())).collect();
    let mut paths = paths.map_err(unreadable)?;
    paths.retain(|p| p.extension().is_some_and(|e| e == "toml"));
    paths.sort();
    Ok(paths)
}

/// The number of the file, and its table as far as it could be parsed; reports what is wrong with the text.
fn parse<'t>(path: &Path, bytes: &[u8], text: &'t str, problems: &mut Problems) -> (usize, DeTable<'t>) {
    let doc = problems.add_file(path, text);
    if let Err(e) = std::str::from_utf8(bytes) {
        let at = e.valid_up_to();
        problems.add_broken(doc, at, at..at + 1, Mistake::NotUtf8);
    }
    let (table, errors) = DeTable::parse_recoverable(text);
    let table = table.into_inner();
    let mut errors: Vec<(Range<usize>, &str)> =
        errors.iter().map(|e| (e.span().unwrap_or(0..0), e.message())).collect();
    errors.sort_by_key(|(span, _)| span.start);
    let mut reported = Vec::new();
    for (span, message) in &errors {
        let Some(value) = spoilt(&table, span) else {
            problems.add_syntax(doc, span.start, span.clone(), message);
            continue;
        };
        // All that follows an unclosed bracket is an error in its value. The last one says that it is not closed.
        if !reported.contains(&value.start) {
            reported.push(value.start);
            let last = errors.iter().rfind(|(span, _)| spoilt(&table, span) == Some(value.clone()));
            problems.add_syntax(doc, value.start, value, last.map_or(message, |(_, m)| m));
        }
    }
    (doc, table)
}

/// The value that an error is in. The span of a table with a header is the header.
fn spoilt(table: &DeTable<'_>, error: &Range<usize>) -> Option<Range<usize>> {
    table.iter().find_map(|(_, value)| spoilt_within(value, error))
}

fn spoilt_within(value: &Value<'_>, error: &Range<usize>) -> Option<Range<usize>> {
    let span = value.span();
    if span.start < error.start && error.start <= span.end {
        return Some(span);
    }
    match value.get_ref() {
        DeValue::Table(inner) => spoilt(inner, error),
        DeValue::Array(items) => items.iter().find_map(|v| spoilt_within(v, error)),
        _ => None,
    }
}

fn main_file(walk: &mut Walk<'_>, root: &DeTable<'_>, written: &mut Written) {
    walk.unknown(root, &["agent", "kafka", "metrics", "files"], "the file", elsewhere);
    written.agent = of_its_own(walk, root, "agent");
    match walk.problems.has((Agent::TABLE.name, 0), "hostname") {
        true => walk.host.clone_from(&written.agent.hostname),
        false => written.agent.hostname.clone_from(&walk.host),
    }
    written.kafka = of_its_own(walk, root, "kafka");
    written.metrics = of_its_own(walk, root, "metrics");
    files(walk, root, written);
}

fn file_beside(walk: &mut Walk<'_>, root: &DeTable<'_>, written: &mut Written) {
    let name = "a file of the .d folder, which may hold [[files]] only";
    walk.unknown(root, &["files"], name, |key| match key {
        "agent" | "kafka" | "metrics" => Some("the main config file"),
        other => elsewhere(other),
    });
    files(walk, root, written);
}

/// `[agent]`, `[kafka]` or `[metrics]`.
fn of_its_own<T: Described>(walk: &mut Walk<'_>, root: &DeTable<'_>, key: &str) -> T {
    let Some(v) = root.get(key) else { return walk.section(walk.place(0), None) };
    let found = walk.table(v).or_else(|| walk.mismatch(key, v, "a table", T::TABLE.name));
    found.unwrap_or_else(defaults)
}

fn files(walk: &mut Walk<'_>, root: &DeTable<'_>, written: &mut Written) {
    let Some(v) = root.get("files") else { return };
    written.has_files = true;
    match v.get_ref().as_array().filter(|a| a.iter().all(|t| t.get_ref().is_table())) {
        None => walk.wrong(v.span(), Mistake::NotTables),
        Some(tables) => {
            for table in tables.iter() {
                written.files.extend(walk.table::<Source>(table));
                walk.source += 1;
            }
        }
    }
}
