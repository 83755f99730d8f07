//! Reads the config files: the main one and the `*.toml` of the `.d` folder beside it.
//!
//! The parser continues after a mistake, so that one run reports the problems of the whole file. Values it had to
//! guess are not judged.

use super::Surroundings;
use super::keys::{Agent, JournalSource, Kafka, Metrics, Source, elsewhere};
use super::mistake::Mistake;
use super::problem::{Problems, TextPosition};
use super::table::{Described, Value, Walk, defaults};
use crate::error::Error;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// The content of all files: `[[files]]` and `[[journal]]` from each; for every other key, the value in the last file
/// that has it.
pub struct Written {
    /// Start of the main file, for reporting missing keys; `None` without a file.
    pub top: Option<TextPosition>,
    pub read_from: Vec<PathBuf>,
    pub agent: Agent,
    pub kafka: Kafka,
    pub metrics: Metrics,
    /// Whether there is any `files` or `journal` key, valid or not.
    pub has_files: bool,
    pub files: Vec<Source>,
    pub journals: Vec<JournalSource>,
}

impl Written {
    /// The defaults, without a file.
    pub fn nothing(host: &str) -> Self {
        Written {
            top: None,
            read_from: Vec::new(),
            agent: Agent { hostname: host.into(), ..defaults() },
            kafka: defaults(),
            metrics: defaults(),
            has_files: false,
            files: Vec::new(),
            journals: Vec::new(),
        }
    }
}

/// Reads `main` and the files of its `.d` folder. `given` are keys set on the command line.
pub fn read(
    main: &Path,
    around: &Surroundings,
    given: &'static [&'static str],
    problems: &mut Problems,
) -> Result<Written, Error> {
    let mut files = vec![(main.to_owned(), std::fs::read(main).map_err(|e| unreadable(main, &e))?)];
    for path in more_files(main)? {
        match read_regular(&path) {
            Ok(bytes) => files.push((path, bytes)),
            Err(e) if may_pass(&e) => return Err(not_read(&path, &e)),
            Err(e) => {
                let doc = problems.add_file(&path, "");
                problems.add(TextPosition { doc, at: 0 }, Mistake::Unreadable(e));
            }
        }
    }
    let texts: Vec<_> = files.iter().map(|(_, bytes)| String::from_utf8_lossy(bytes)).collect();
    let parsed = files.iter().zip(&texts).map(|((path, bytes), text)| parse(path, bytes, text, problems));
    let docs: Vec<(usize, DeTable<'_>)> = parsed.collect();
    let top = TextPosition { doc: docs.first().map_or(0, |(doc, _)| *doc), at: 0 };
    let mut walk = Walk {
        given,
        env: around.env,
        elsewhere,
        host: around.hostname.clone(),
        ..Walk::new(top.doc, problems)
    };
    let mut written = all_files(&mut walk, top, &docs);
    written.read_from = problems.files().map(Path::to_owned).collect();
    Ok(written)
}

/// Refuses a FIFO instead of waiting for its writer.
fn read_regular(path: &Path) -> std::io::Result<Vec<u8>> {
    match std::fs::metadata(path)?.is_file() {
        true => std::fs::read(path),
        false => Err(std::io::Error::new(ErrorKind::InvalidInput, "not a regular file")),
    }
}

/// The disk or a limit of the system, rather than a mistake in the config.
fn may_pass(e: &std::io::Error) -> bool {
    use libc::{EIO, EMFILE, ENFILE, ENOMEM, ESTALE, ETIMEDOUT};
    [EIO, EMFILE, ENFILE, ENOMEM, ESTALE, ETIMEDOUT].iter().any(|code| e.raw_os_error() == Some(*code))
}

/// Exit code 1, so that systemd starts the agent again.
fn not_read(path: &Path, e: &std::io::Error) -> Error {
    let fix = "check its disk and the limits of this system; nothing was changed";
    Error::failed(format_args!("read {}", path.display()), e, fix)
}

fn unreadable(main: &Path, e: &std::io::Error) -> Error {
    if may_pass(e) {
        return not_read(main, e);
    }
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

/// In order of their names; empty if the folder does not exist.
fn more_files(main: &Path) -> Result<Vec<PathBuf>, Error> {
    let folder = main.with_extension("d");
    let unreadable = |e| match may_pass(&e) {
        true => not_read(&folder, &e),
        false => Error::config(format!("read {}", folder.display()), e, "let the agent's user read it"),
    };
    let entries = match std::fs::read_dir(&folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(unreadable)?,
    };
    let paths: Result<Vec<PathBuf>, _> = entries.map(|e| e.map(|e| e.path())).collect();
    let mut paths = paths.map_err(unreadable)?;
    // Emacs's lock of the file being edited is a dangling link `.#NAME.toml`.
    let hidden = |p: &PathBuf| p.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
    paths.retain(|p| p.extension().is_some_and(|e| e == "toml") && !hidden(p));
    paths.sort_unstable();
    Ok(paths)
}

/// Returns the file's number and its table as far as it could be parsed; reports syntax errors.
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
    errors.sort_unstable_by_key(|(span, message)| (span.start, *message));
    let mut reported = Vec::new();
    for (span, message) in &errors {
        let Some(value) = spoilt(&table, span) else {
            problems.add_syntax(doc, span.start, span.clone(), message);
            continue;
        };
        // Everything after an unclosed bracket is an error in its value. The last error says that it is not closed.
        if !reported.contains(&value.start) {
            reported.push(value.start);
            let last = errors.iter().rfind(|(span, _)| spoilt(&table, span) == Some(value.clone()));
            problems.add_syntax(doc, value.start, value, last.map_or(message, |(_, m)| m));
        }
    }
    (doc, table)
}

/// The value that contains an error. The span of a table with a header is the header.
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

fn all_files(walk: &mut Walk<'_>, top: TextPosition, docs: &[(usize, DeTable<'_>)]) -> Written {
    for (doc, root) in docs {
        walk.doc = *doc;
        walk.unknown(root, &["agent", "kafka", "metrics", "files", "journal"], "the file");
    }
    let mut agent: Agent = of_its_own(walk, top, docs, "agent");
    match walk.problems.has((Agent::TABLE.name, 0), "hostname") {
        true => walk.host.clone_from(&agent.hostname),
        false => agent.hostname.clone_from(&walk.host),
    }
    let (kafka, metrics) = (of_its_own(walk, top, docs, "kafka"), of_its_own(walk, top, docs, "metrics"));
    let files = docs.iter().filter_map(|(doc, root)| Some((*doc, root.get("files")?)));
    let (mut sources, mut has_files) = (Vec::new(), false);
    for (doc, v) in files {
        (walk.doc, has_files) = (doc, true);
        for table in tables(walk, "files", v) {
            sources.extend(walk.table::<Source>(table));
            walk.source += 1;
        }
    }
    let files = walk.source;
    let mut journals: Vec<JournalSource> = Vec::new();
    for (doc, v) in docs.iter().filter_map(|(doc, root)| Some((*doc, root.get("journal")?))) {
        (walk.doc, has_files) = (doc, true);
        for table in tables(walk, "journal", v) {
            walk.source = journals.len();
            journals.extend(walk.table::<JournalSource>(table));
        }
    }
    walk.source = files;
    Written {
        top: Some(top),
        read_from: Vec::new(),
        agent,
        kafka,
        metrics,
        has_files,
        files: sources,
        journals,
    }
}

/// `[agent]`, `[kafka]` or `[metrics]`: for each key the value in the last file that has it.
fn of_its_own<T: Described>(
    walk: &mut Walk<'_>,
    top: TextPosition,
    docs: &[(usize, DeTable<'_>)],
    key: &str,
) -> T {
    let (mut place, mut tables) = (top, Vec::new());
    for (doc, v) in docs.iter().filter_map(|(doc, root)| Some((*doc, root.get(key)?))) {
        walk.doc = doc;
        match v.get_ref().as_table() {
            Some(table) if tables.is_empty() => {
                place = walk.place(v.span().start);
                tables.push((doc, table));
            }
            Some(table) => tables.push((doc, table)),
            None => return walk.mismatch(key, v, "a table", "{ … }").unwrap_or_else(defaults),
        }
    }
    walk.section(place, tables)
}

/// The tables of a key that may have several.
fn tables<'v, 't>(
    walk: &mut Walk<'_>,
    key: &'static str,
    v: &'v Value<'t>,
) -> impl Iterator<Item = &'v Value<'t>> + use<'v, 't> {
    let all = v.get_ref().as_array().filter(|a| a.iter().all(|t| t.get_ref().is_table()));
    if all.is_none() {
        walk.wrong(v.span(), Mistake::NotTables(key));
    }
    all.into_iter().flat_map(|all| all.iter())
}
