//! TOML text to a table with a place for everything, going on after mistakes. Knows no keys.
//!
//! `toml` recovers from most mistakes, but an unclosed `[` swallows the rest of the file and reports every line of it. So
//! that one is closed here, before the next line that looks like a key or a table, and the text is parsed again.

use super::places::Problems;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Error};

/// Brackets that are put in before giving up; each is a mistake of its own.
const MOST_REPAIRS: usize = 16;

/// Where in the *original* text, what is wrong, what to write instead.
pub type Mistake = (Range<usize>, String, String);

/// A text that parses as well as it can.
pub struct Repaired {
    text: String,
    /// Where bytes were put into `text`, in its own offsets, and how many; ascending.
    put_in: Vec<(usize, usize)>,
    errors: Vec<(Range<usize>, String)>,
}

impl Repaired {
    pub fn new(text: &str) -> Self {
        let mut r = Repaired { text: text.into(), put_in: Vec::new(), errors: Vec::new() };
        for _ in 0..MOST_REPAIRS {
            let Some((message, at, closing)) = r.unclosed() else { break };
            let start = r.original(at.start);
            r.errors.push((start..(start + 1).min(text.len()), message));
            r.insert(at.end, closing);
        }
        r
    }

    /// The table, and what was wrong with the text.
    pub fn parse(&self) -> (Spanned<DeTable<'_>>, Vec<Mistake>) {
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        let own = self.errors.iter().map(|(span, what)| (span.clone(), what.clone(), "close it".to_owned()));
        let theirs = errors.iter().map(|e| {
            let span = e.span().unwrap_or(0..0);
            let (what, instead) = explain(e, self.text.get(span.clone()).unwrap_or_default());
            (self.original(span.start)..self.original(span.end), what, instead)
        });
        let mut all: Vec<_> = own.chain(theirs).collect();
        all.sort_by_key(|(span, ..)| span.start);
        (table, all)
    }

    /// Offset in the text as it was, for an offset in the repaired one.
    pub fn original(&self, at: usize) -> usize {
        at - self.put_in.iter().map(|&(p, len)| len.min(at.saturating_sub(p))).sum::<usize>()
    }

    fn insert(&mut self, at: usize, what: &str) {
        self.text.insert_str(at, what);
        for (p, _) in self.put_in.iter_mut().filter(|(p, _)| *p >= at) {
            *p += what.len();
        }
        self.put_in.push((at, what.len()));
        self.put_in.sort();
    }

    /// The first bracket that is never closed: what to say, from where to where it goes, and what closes it.
    fn unclosed(&self) -> Option<(String, Range<usize>, &'static str)> {
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        let header = |e: &&Error| {
            ["unclosed table", "unclosed array table"].iter().any(|m| e.message().starts_with(m))
        };
        if let Some(e) = errors.iter().find(header) {
            let at = e.span()?.start;
            return Some(("the name of a table is not closed".into(), at..at, "]"));
        }
        if !errors.iter().any(|e| e.message().starts_with("unclosed")) {
            return None;
        }
        let open = first_open(table.get_ref(), &self.text)?;
        let end = next_statement(&self.text, open);
        match self.text.as_bytes()[open] {
            b'[' => Some(("the list that begins here is not closed".into(), open..end, "\n]\n")),
            _ => Some(("the { that begins here is not closed".into(), open..end, "\n}\n")),
        }
    }
}

/// Start of the first list or inline table that the parser gave up closing: it goes on to the end of the text, or ends in
/// something else than its bracket.
fn first_open(table: &DeTable<'_>, text: &str) -> Option<usize> {
    let mut first: Option<usize> = None;
    for (key, value) in table.iter() {
        let span = value.span();
        let between = text.get(key.span().end..span.start).unwrap_or_default();
        let found = match value.get_ref() {
            DeValue::Array(_) | DeValue::Table(_) if between.contains('=') => {
                let closing = if matches!(value.get_ref(), DeValue::Array(_)) { ']' } else { '}' };
                let closed = text.get(span.clone()).is_some_and(|t| t.ends_with(closing));
                (!closed || span.end >= text.trim_end().len()).then_some(span.start)
            }
            DeValue::Table(inner) => first_open(inner, text),
            DeValue::Array(tables) => {
                tables.iter().filter_map(|t| first_open(t.get_ref().as_table()?, text)).min()
            }
            _ => None,
        };
        first = first.into_iter().chain(found).min();
    }
    first
}

/// Start of the first line after `open` that looks like `key =` or `[table]`, or the end.
fn next_statement(text: &str, open: usize) -> usize {
    let mut at = open;
    while let Some(newline) = text[at..].find('\n') {
        at += newline + 1;
        let line = text[at..].lines().next().unwrap_or_default().trim_start();
        let name = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let after = line.trim_start_matches(name);
        let is_key = after.len() < line.len() && after.trim_start().starts_with('=');
        let head = line.trim_start_matches('[');
        let rest = head.trim_start_matches(name);
        let is_table = line.starts_with('[') && rest.len() < head.len() && rest.starts_with(']');
        if is_key || is_table {
            return at;
        }
    }
    text.len()
}

/// The parser's words, and what to write instead.
fn explain(error: &Error, found: &str) -> (String, String) {
    let message = error.message();
    let quoted = || (format!("`{found}` is text without quotes"), format!("write \"{found}\""));
    if message.starts_with("string values must be quoted") {
        return quoted();
    }
    if message.starts_with("invalid boolean") {
        return match found.to_ascii_lowercase().as_str() {
            yes @ ("true" | "false") => (format!("`{found}` is not lower case"), format!("write {yes}")),
            _ => quoted(),
        };
    }
    let (what, instead) = match message.split(',').next().unwrap_or(message) {
        "duplicate key" => {
            return (format!("`{found}` stands here a second time"), "keep one of them".into());
        }
        "invalid basic string" => ("the text has no closing \"", "put a \" at its end"),
        "invalid literal string" => ("the text has no closing '", "put a ' at its end"),
        "missing escaped value" => (
            "a backslash in \"…\" begins an escape, and this is none",
            "write two backslashes, or put the text in '…'",
        ),
        "key with no value" => ("a key without a value", "write key = value"),
        _ => (message, "correct the TOML here"),
    };
    (what.into(), instead.into())
}

/// Parses `text` and reports what is wrong with it.
pub fn report(repaired: &Repaired, doc: usize, problems: &mut Problems) {
    for (span, what, instead) in repaired.parse().1 {
        problems.add_syntax(doc, span, what, instead);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn errors(text: &str) -> Vec<(usize, String)> {
        let r = Repaired::new(text);
        let lines =
            r.parse().1.into_iter().map(|(s, what, _)| (text[..s.start].matches('\n').count() + 1, what));
        lines.collect()
    }

    fn keys(text: &str) -> usize {
        let r = Repaired::new(text);
        let table = r.parse().0;
        table.get_ref().iter().filter_map(|(_, v)| v.get_ref().as_table()).map(|t| t.len()).sum()
    }

    /// Fails without the repair: an open list would hide all that follows, and report each line of it.
    #[test]
    fn an_unclosed_bracket_is_one_mistake() {
        let tail = "topic = \"t\"\n[agent]\nmemory = 1\n[[files]]\npaths = [\"/x\"]\n";
        for (open, line) in [
            ("[kafka]\nbrokers = [\"a:1\"\n", 2),
            ("[kafka]\nbrokers = [\"a:1\", # the first\n  \"b:1\",\n", 2),
            ("[kafka\nbrokers = [\"a:1\"]\n", 1),
            ("[kafka]\nbrokers = { a = 1\n", 2),
        ] {
            let text = format!("{open}{tail}");
            let found = errors(&text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert_eq!(found[0].0, line, "{text}: {found:?}");
            assert_eq!(keys(&text), 3, "{text}: brokers, topic, memory");
        }
    }

    #[test]
    fn all_mistakes_are_found_where_they_are() {
        let text =
            "[kafka]\nbrokers = [\"a:1\"\ntopic = web_log\nacks = True\n[agent]\nmemory = 8MiB\nmemory = 1\n";
        let lines: Vec<usize> = errors(text).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, [2, 3, 4, 6, 7]);
    }

    #[test]
    fn good_text_has_no_mistakes() {
        assert!(errors("\u{feff}[a]\nb = [\n 1,\n]\n[[files]]\nx = { y = 1 }\n").is_empty());
        assert!(errors("").is_empty());
    }

    /// Once reported one byte behind the end.
    #[test]
    fn a_mistake_at_the_very_end_lies_within_the_text() {
        for text in ["[\"", "[a", "a = [", "a = {"] {
            let r = Repaired::new(text);
            assert!(r.parse().1.iter().all(|(span, ..)| span.end <= text.len()), "{text}");
        }
    }

    proptest! {
        /// Whatever stands in the file: no panic, no endless repair, and every mistake lies within the text.
        #[test]
        fn never_panics(text in "([\\[\\]{}=\"'#,\\\\.a-cä0-9 \n]|\\[\\[f\\]\\]\n|k = ){0,60}") {
            let r = Repaired::new(&text);
            for (span, ..) in r.parse().1 {
                prop_assert!(span.start <= text.len() && span.end <= text.len());
            }
        }
    }
}
