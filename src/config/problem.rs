//! What can be wrong with a config, where it stands, and how that is told.

use super::MemoryPlan;
use super::table::Key;
use super::units::{Broker, Invalid};
use crate::error::{Error, ExitCode};
use std::collections::HashMap;
use std::fmt::{self, Display};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One mistake. The first text is the key, if there is one.
#[derive(Debug)]
pub enum Fault {
    /// A file of the `.d` folder.
    Unreadable(std::io::Error),
    NotUtf8,
    /// The parser's message, and the line it is about.
    Syntax(String, String),
    /// With the table it is in.
    UnknownKey(String, &'static str, Hint),
    /// With its table and an example.
    MissingKey(&'static Key, &'static str),
    MissingTopic,
    NoFiles,
    NotTables,
    /// What it is, what is wanted, and an example.
    Type(String, &'static str, &'static str, String),
    /// With the value.
    Value(String, String, Expected),
    /// With the value, all words, and the nearest.
    Word(String, String, Vec<String>, Option<&'static str>),
    /// As `Word`, where not all that can be written are words.
    Choice(String, String, &'static str),
    /// Not from the first number to the second.
    Range(String, u64, u64),
    Bytes(String),
    /// A duration of zero.
    NoTime(String),
    /// With an example.
    EmptyList(String, &'static str),
    /// A name within the key's value.
    EmptyName(String),
    /// With the path.
    RelativePath(String, String),
    /// With what can be written.
    KeySources(&'static str),
    MultilineSources,
    /// A name in `fields` or `headers`, and its text.
    Placeholder(String, String),
    /// Only the modern driver does this.
    Classic(&'static str),
    ExactlyOnceAcks,
    /// With the most bytes.
    ExactlyOnceBatch(usize),
    HashWithoutKey,
    StickyWithKey,
    CertWithoutKey,
    KeyWithoutCert,
    PlainWithoutTls(Broker),
    ReopenWithoutFollow,
    FieldsOfRaw,
    Memory(usize, MemoryPlan),
}

/// What a text should have been.
#[derive(Debug)]
pub struct Expected {
    pub wanted: &'static str,
    pub why: Invalid,
    pub example: String,
}

/// Where an unknown key may have been meant to go.
#[derive(Debug)]
pub enum Hint {
    Nearest(&'static str),
    Elsewhere(&'static str),
    Known(Vec<&'static str>),
}

/// What is wrong, and what to write instead.
impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Fault::*;
        match self {
            Unreadable(e) => write!(f, "cannot be read: {e}; let the agent's user read it, or remove it"),
            NotUtf8 => f.write_str("a byte that is not UTF-8; save the file as UTF-8"),
            Syntax(message, line) => write!(f, "{message}; correct the TOML of this line: {line}"),
            UnknownKey(key, table, hint) => {
                write!(f, "unknown key `{key}` in {table}; ")?;
                match hint {
                    Hint::Nearest(near) => write!(f, "did you mean `{near}`?"),
                    Hint::Elsewhere(table) => write!(f, "it belongs in {table}"),
                    Hint::Known(known) => write!(f, "known here: {}", known.join(", ")),
                }
            }
            EmptyName(key) => write!(f, "a name in `{key}` is empty; give it a name"),
            MissingKey(Key { name: key, value: example, .. }, table) => {
                let or = if *key == "brokers" { ", or run with --output stdout" } else { "" };
                write!(f, "`{key}` is missing in {table}; write {key} = {example}{or}")
            }
            MissingTopic => f.write_str(
                "`topic` is missing in [kafka], and not every [[files]] has its own; write topic = \"web_log\" in \
                 [kafka], or one in each [[files]], or give --topic",
            ),
            NoFiles => {
                f.write_str("there is no [[files]]; write [[files]] and below it paths = [\"/var/log/…\"]")
            }
            NotTables => f.write_str("`files` is not a list of tables; write [[files]] above the keys of each"),
            Type(key, is, wanted, example) => {
                write!(f, "`{key}` is {is}, not {wanted}; write {key} = {example}")
            }
            Value(key, value, Expected { wanted, why, example }) => {
                write!(f, "`{key}`: {value:?} is not {wanted}: {why}; write for example {key} = {example}")
            }
            Word(key, value, _, Some(near)) => {
                write!(f, "`{key}` cannot be {value:?}; did you mean {near:?}?")
            }
            Word(key, value, words, None) => {
                write!(f, "`{key}` cannot be {value:?}; write {}", words.join(" or "))
            }
            Choice(key, value, choices) => write!(f, "`{key}` cannot be {value}; write {choices}"),
            Range(key, from, to) => {
                write!(f, "`{key}` is not from {from} to {to}; write a number in that range")
            }
            Bytes(key) => {
                write!(f, "`{key}` is not from 1 byte to 1 GiB; write a size such as \"8MiB\"")
            }
            NoTime(key) => write!(f, "`{key}` is no time at all; write {key} = \"1s\" or longer"),
            EmptyList(key, example) => write!(f, "`{key}` is empty; write {key} = {example}"),
            RelativePath(key, path) => write!(
                f,
                "`{key}`: {path:?} is a relative path; begin it with /, because a service has no folder of its own to \
                 start from"
            ),
            KeySources(choices) => write!(f, "`key` has not exactly one source; write key = {choices}"),
            MultilineSources => f.write_str(
                "`multiline` does not have exactly one of `start` and `continue`; write the one that says which lines \
                 belong together",
            ),
            Placeholder(name, text) => write!(
                f,
                "{text:?} of {name:?} has a ${{…}} that is not ${{host}}; write ${{host}}, or leave out the $"
            ),
            Classic(what) => write!(
                f,
                "the classic driver, which `driver` asks for, cannot do {what}; write driver = \"auto\" or \"modern\", \
                 or take this out"
            ),
            ExactlyOnceAcks => f.write_str(
                "exactly-once needs the acknowledgement of all in-sync replicas; write acks = \"all\", or delivery = \
                 \"at-least-once\" in [agent]",
            ),
            ExactlyOnceBatch(most) => {
                let most = most >> 20;
                write!(
                    f,
                    "delivery = \"exactly-once\" takes no batches over {most} MiB; write batch = \"{most}MiB\" or less"
                )
            }
            HashWithoutKey => f.write_str(
                "`partition` is by the hash of the key, and there is no `key`; write for example key = \"path\", or \
                 partition = \"sticky\"",
            ),
            StickyWithKey => f.write_str(
                "`partition` = \"sticky\" ignores the `key`, so lines with the same key would lose their order; write \
                 partition = \"hash\", or leave it out",
            ),
            CertWithoutKey => f.write_str(
                "a client certificate without its `key`; name both `cert` and `key`, or neither",
            ),
            KeyWithoutCert => {
                f.write_str("a client key without its `cert`; name both `cert` and `key`, or neither")
            }
            PlainWithoutTls(broker) => write!(
                f,
                "PLAIN without TLS would send the password readably to {broker}; write [kafka.tls], or mechanism = \
                 \"SCRAM-SHA-512\", or, where the network path is safe, plain_without_tls = true in [kafka.sasl]"
            ),
            ReopenWithoutFollow => f.write_str(
                "`reopen` without `follow`: a file that is read once is not waited for; take out one of them",
            ),
            FieldsOfRaw => f.write_str(
                "`fields` has no place in a record that is the line alone; write format = \"json\", or use headers",
            ),
            Memory(memory, MemoryPlan { encoding, topics, per_topic, needed }) => write!(
                f,
                "`memory` of {memory} bytes is too small for {topics} topic{}: {per_topic} bytes for each (its longest \
                 line, and tables) and {encoding} to encode are needed; write memory = \"{}KiB\" or more in [agent], or \
                 a smaller max_line",
                if *topics == 1 { "" } else { "s" },
                needed.div_ceil(1 << 10),
            ),
        }
    }
}

/// A position in one of the files that were read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    pub doc: usize,
    pub at: usize,
}

/// A table by its name; one of several `[[files]]` by its number too.
pub type TableId = (&'static str, usize);

/// Everything that is wrong over all files, and where each key is.
#[derive(Debug, Default)]
pub struct Problems {
    docs: Vec<Doc>,
    found: Vec<(Place, Fault)>,
    /// Keys that are missing, which they may only seem to be where a file could not be parsed to its end.
    missing: Vec<(Place, Fault)>,
    headers: HashMap<TableId, Place>,
    /// With whether the value is a good one.
    keys: HashMap<(TableId, &'static str), (Place, bool)>,
}

#[derive(Debug)]
struct Doc {
    path: PathBuf,
    text: String,
    /// Syntax errors: the value of a key that overlaps one is a guess of the parser, so nothing else is said of it.
    broken: Vec<Range<usize>>,
}

impl Problems {
    /// Adds a file; gives its number, the first half of a [`Place`].
    pub fn add_file(&mut self, path: &Path, text: &str) -> usize {
        self.docs.push(Doc { path: path.into(), text: text.into(), broken: Vec::new() });
        self.docs.len() - 1
    }

    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.docs.iter().map(|d| d.path.as_path())
    }

    pub fn add(&mut self, place: Place, fault: Fault) {
        self.found.push((place, fault));
    }

    pub fn add_missing(&mut self, place: Place, fault: Fault) {
        self.missing.push((place, fault));
    }

    /// The text itself is wrong within `span`, and the parser's error is `message`; reported at `at`.
    pub fn add_syntax(&mut self, doc: usize, at: usize, span: Range<usize>, message: &str) {
        let text = &self.docs[doc].text;
        let (number, _) = line_and_column(text, at);
        let line = text.lines().nth(number - 1).unwrap_or_default().trim().to_owned();
        self.add_broken(doc, at, span, Fault::Syntax(message.into(), line));
    }

    pub fn add_broken(&mut self, doc: usize, at: usize, span: Range<usize>, fault: Fault) {
        self.add(Place { doc, at }, fault);
        self.docs[doc].broken.push(span);
    }

    /// Whether the parser had to guess within `span`.
    pub fn is_guess(&self, doc: usize, span: &Range<usize>) -> bool {
        let broken = self.docs.get(doc).map(|d| d.broken.as_slice()).unwrap_or_default();
        broken.iter().any(|b| b.start <= span.end && span.start <= b.end)
    }

    pub fn header(&mut self, table: TableId, place: Place) {
        self.headers.insert(table, place);
    }

    pub fn written(&mut self, table: TableId, key: &'static str, place: Place, good: bool) {
        self.keys.insert((table, key), (place, good));
    }

    pub fn header_of(&self, table: TableId) -> Option<Place> {
        self.headers.get(&table).copied()
    }

    /// Whether the key has a value, be it a wrong one.
    pub fn has(&self, table: TableId, key: &'static str) -> bool {
        self.keys.contains_key(&(table, key))
    }

    /// The place of a key's value, where that is a good one.
    pub fn place_of(&self, table: TableId, key: &'static str) -> Option<Place> {
        self.keys.get(&(table, key)).and_then(|(place, good)| good.then_some(*place))
    }

    /// Reports a combination at one of its keys, if that was written.
    pub fn add_at(&mut self, table: TableId, key: &'static str, fault: Fault) {
        if let Some(place) = self.place_of(table, key) {
            self.add(place, fault);
        }
    }

    /// `value`, unless there are problems: then the error that names them all, with code 78.
    pub fn into_result<T>(mut self, value: T) -> Result<T, Error> {
        if self.docs.iter().all(|d| d.broken.is_empty()) {
            self.found.append(&mut self.missing);
        }
        match self.into_lines() {
            lines if lines.is_empty() => Ok(value),
            lines => Err(Error::several(ExitCode::Config, lines)),
        }
    }

    /// `FILE:LINE:COL`, what is wrong, what to write instead; in the order of the files.
    fn into_lines(mut self) -> Vec<String> {
        self.found.sort_by_key(|(place, _)| *place);
        let line = |(place, fault): &(Place, Fault)| {
            let doc = &self.docs[place.doc];
            let (line, column) = line_and_column(&doc.text, place.at);
            format!("{}:{line}:{column}: {fault}", doc.path.display())
        };
        let mut lines: Vec<String> = self.found.iter().map(line).collect();
        lines.dedup();
        lines
    }
}

/// Both from 1; columns in characters.
fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let before = &text[..at];
    let start = before.rfind('\n').map_or(0, |i| i + 1);
    let column = before[start..].trim_start_matches('\u{feff}').chars().count() + 1;
    (before.matches('\n').count() + 1, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns() {
        let cases = [
            ("", 0, (1, 1)),
            ("ab\ncd", 0, (1, 1)),
            ("ab\ncd", 2, (1, 3)),
            ("ab\ncd", 3, (2, 1)),
            ("ä = x", 5, (1, 5)),
            ("ä", 1, (1, 1)),
            ("a\n", 99, (2, 1)),
            ("\u{feff}a", 3, (1, 1)),
        ];
        for (text, at, expected) in cases {
            assert_eq!(line_and_column(text, at), expected, "{text:?} at {at}");
        }
    }

    #[test]
    fn problems_come_in_the_order_of_the_files() {
        let mut p = Problems::default();
        let one = p.add_file(Path::new("/1"), "a\nb");
        let two = p.add_file(Path::new("/2"), "a");
        p.add(Place { doc: two, at: 0 }, Fault::NoFiles);
        p.add(Place { doc: one, at: 2 }, Fault::NotUtf8);
        let lines = p.into_lines();
        assert!(lines[0].starts_with("/1:2:1: ") && lines[1].starts_with("/2:1:1: "), "{lines:?}");
    }
}
