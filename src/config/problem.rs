//! Collects all problems of the config files with their positions, and the positions of the keys that were read.

use super::mistake::{Conflict, Mistake};
use crate::error::{Error, ExitCode};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Characters of a line that a syntax error shows.
const EXCERPT: usize = 120;

/// A position in one of the files that were read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TextPosition {
    pub doc: usize,
    pub at: usize,
}

/// A table by name; one of several `[[files]]` also by number.
pub type TableId = (&'static str, usize);

/// All problems over all files, and the position of each key.
#[derive(Debug, Default)]
pub struct Problems {
    docs: Vec<Doc>,
    /// In file order.
    found: Vec<(TextPosition, Mistake)>,
    /// Missing keys. They may only seem missing if a file could not be parsed to its end.
    missing: Vec<(TextPosition, Mistake)>,
    headers: HashMap<TableId, TextPosition>,
    keys: HashMap<(TableId, &'static str), WrittenKey>,
}

/// Where a key's value is.
#[derive(Debug)]
struct WrittenKey {
    doc: usize,
    span: Range<usize>,
    good: bool,
}

#[derive(Debug)]
struct Doc {
    path: PathBuf,
    text: String,
    /// Spans of syntax errors. A value that overlaps one is the parser's guess, so nothing else is reported about it.
    broken: Vec<Range<usize>>,
}

impl Problems {
    /// Adds a file and returns its number, the first half of a [`TextPosition`].
    pub fn add_file(&mut self, path: &Path, text: &str) -> usize {
        self.docs.push(Doc { path: path.into(), text: text.into(), broken: Vec::new() });
        self.docs.len() - 1
    }

    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.docs.iter().map(|d| d.path.as_path())
    }

    pub fn add(&mut self, place: TextPosition, mistake: Mistake) {
        let at = self.found.partition_point(|(other, _)| *other <= place);
        self.found.insert(at, (place, mistake));
    }

    pub fn add_missing(&mut self, place: TextPosition, mistake: Mistake) {
        self.missing.push((place, mistake));
    }

    /// Reports a syntax error within `span` at position `at`, with the parser's `message`.
    pub fn add_syntax(&mut self, doc: usize, at: usize, span: Range<usize>, message: &str) {
        let text = &self.docs[doc].text;
        let (number, _) = line_and_column(text, at);
        let line = text.lines().nth(number - 1).unwrap_or_default().trim();
        let line = match line.char_indices().nth(EXCERPT) {
            Some((end, _)) => format!("{}…", &line[..end]),
            None => line.to_owned(),
        };
        self.add_broken(doc, at, span, Mistake::Syntax(message.into(), line));
    }

    pub fn add_broken(&mut self, doc: usize, at: usize, span: Range<usize>, mistake: Mistake) {
        self.add(TextPosition { doc, at }, mistake);
        self.docs[doc].broken.push(span);
    }

    /// Whether the value in `span` is the parser's guess.
    pub fn is_guess(&self, doc: usize, span: &Range<usize>) -> bool {
        let broken = self.docs.get(doc).map(|d| d.broken.as_slice()).unwrap_or_default();
        broken.iter().any(|b| b.start <= span.end && span.start <= b.end)
    }

    pub fn header(&mut self, table: TableId, place: TextPosition) {
        self.headers.insert(table, place);
    }

    pub fn written(&mut self, table: TableId, key: &'static str, doc: usize, span: Range<usize>, good: bool) {
        self.keys.insert((table, key), WrittenKey { doc, span, good });
    }

    /// A key's value as it is written, and `FILE:LINE` of it.
    pub fn source_of(&self, table: TableId, key: &'static str) -> Option<(&str, String)> {
        let WrittenKey { doc, span, .. } = self.keys.get(&(table, key))?;
        let doc = &self.docs[*doc];
        let (line, _) = line_and_column(&doc.text, span.start);
        Some((&doc.text[span.clone()], format!("{}:{line}", doc.path.display())))
    }

    pub fn header_of(&self, table: TableId) -> Option<TextPosition> {
        self.headers.get(&table).copied()
    }

    /// Whether the key has a value, valid or not.
    pub fn has(&self, table: TableId, key: &'static str) -> bool {
        self.keys.contains_key(&(table, key))
    }

    /// The position of a key's value, if the value is valid.
    pub fn place_of(&self, table: TableId, key: &'static str) -> Option<TextPosition> {
        let WrittenKey { doc, span, good } = self.keys.get(&(table, key))?;
        good.then_some(TextPosition { doc: *doc, at: span.start })
    }

    /// Reports a conflict at one of its keys, if that key was written.
    pub fn add_at(&mut self, table: TableId, key: &'static str, conflict: Conflict) {
        if let Some(place) = self.place_of(table, key) {
            self.add(place, conflict.into());
        }
    }

    /// Returns `value`, or an error with code 78 that lists all problems.
    pub fn into_result<T>(mut self, value: T) -> Result<T, Error> {
        if self.docs.iter().all(|d| d.broken.is_empty()) {
            std::mem::take(&mut self.missing)
                .into_iter()
                .for_each(|(place, mistake)| self.add(place, mistake));
        }
        match self.into_lines() {
            lines if lines.is_empty() => Ok(value),
            lines => Err(Error::several(ExitCode::Config, lines)),
        }
    }

    /// Lines of the form `FILE:LINE:COL: problem; fix`, in file order.
    fn into_lines(self) -> Vec<String> {
        let line = |(place, mistake): &(TextPosition, Mistake)| {
            let doc = &self.docs[place.doc];
            let (line, column) = line_and_column(&doc.text, place.at);
            format!("{}:{line}:{column}: {mistake}", doc.path.display())
        };
        let mut lines: Vec<String> = self.found.iter().map(line).collect();
        lines.dedup();
        lines
    }
}

/// Line and column, both from 1; columns count characters.
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
        p.add(TextPosition { doc: two, at: 0 }, Mistake::NoFiles);
        p.add(TextPosition { doc: one, at: 2 }, Mistake::NotUtf8);
        let lines = p.into_lines();
        assert!(lines[0].starts_with("/1:2:1: ") && lines[1].starts_with("/2:1:1: "), "{lines:?}");
    }
}
