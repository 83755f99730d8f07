//! Where in which file a problem is, and what the operator should write there. Parses nothing.

use crate::error::{Error, ExitCode, Line};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A spot in one of the files that were read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    doc: usize,
    at: usize,
}

/// Everything that is wrong, over all files.
#[derive(Debug, Default)]
pub struct Problems {
    docs: Vec<Doc>,
    found: Vec<Problem>,
}

#[derive(Debug)]
struct Doc {
    path: PathBuf,
    text: String,
    /// What [`super::syntax`] reported: a value that overlaps one of these is a guess, so nothing else is said of it.
    broken: Vec<Range<usize>>,
}

#[derive(Debug)]
struct Problem {
    place: Place,
    what: String,
    instead: String,
}

impl Problems {
    /// Takes a file up; its number is the first half of a [`Place`].
    pub fn add_file(&mut self, path: &Path, text: String) -> usize {
        self.docs.push(Doc { path: path.into(), text, broken: Vec::new() });
        self.docs.len() - 1
    }

    pub fn place(&self, doc: usize, at: usize) -> Place {
        Place { doc, at }
    }

    /// A value or key at `span` is wrong.
    pub fn add(&mut self, place: Place, what: impl Into<String>, instead: impl Into<String>) {
        self.found.push(Problem { place, what: what.into(), instead: instead.into() });
    }

    /// The text itself is wrong.
    pub fn add_syntax(&mut self, doc: usize, span: Range<usize>, what: String, instead: String) {
        self.found.push(Problem { place: Place { doc, at: span.start }, what, instead });
        self.docs[doc].broken.push(span);
    }

    /// Whether the parser had to guess within `span`.
    pub fn is_guess(&self, doc: usize, span: &Range<usize>) -> bool {
        self.docs[doc].broken.iter().any(|b| b.start <= span.end && span.start <= b.end)
    }

    /// Whether something may be missing only because a file could not be parsed to its end.
    pub fn any_syntax(&self) -> bool {
        self.docs.iter().any(|d| !d.broken.is_empty())
    }

    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.docs.iter().map(|d| d.path.as_path())
    }

    /// `value`, unless there are problems: then the error that names them all, with code 78.
    pub fn into_result<T>(self, value: T) -> Result<T, Error> {
        match self.into_lines() {
            lines if lines.is_empty() => Ok(value),
            lines => Err(Error::several(ExitCode::Config, lines)),
        }
    }

    /// `FILE:LINE:COL`, what is wrong, what to write instead; in the order of the files.
    pub fn into_lines(mut self) -> Vec<Line> {
        self.found.sort_by_key(|p| p.place);
        let lines = self.found.iter().map(|p| {
            let doc = &self.docs[p.place.doc];
            let (line, column) = line_and_column(&doc.text, p.place.at);
            Line::new(format!("{}:{line}:{column}", doc.path.display()), &p.what, &p.instead)
        });
        let mut lines: Vec<Line> = lines.collect();
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
        let one = p.add_file(Path::new("/1"), "a\nb".into());
        let two = p.add_file(Path::new("/2"), "a".into());
        p.add(p.place(two, 0), "second", "x");
        p.add(p.place(one, 2), "first", "x");
        let whats: Vec<String> = p.into_lines().into_iter().map(|l| l.what).collect();
        assert_eq!(whats, ["/1:2:1", "/2:1:1"]);
    }
}
