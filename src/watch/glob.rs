//! Globs, the syntax of all paths and excludes: `*` and `?` stop at `/`, `**` does not, `[…]` and `{a,b}` work, and `\`
//! escapes the next character. Matching takes linear time.
//!
//! The rules are those of the `globset` crate, against which a test compares. The crate itself compiles each glob to a
//! regular expression; with its dependencies, it took 330 KB of the static binary, and more memory per glob.

use std::fmt;
use std::mem;

/// Why a text is not a valid glob.
#[derive(Clone, PartialEq, Debug)]
pub enum GlobError {
    UnclosedClass,
    InvalidRange(char, char),
    UnopenedAlternates,
    UnclosedAlternates,
    DanglingEscape,
}

impl fmt::Display for GlobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GlobError::UnclosedClass => "unclosed character class; missing ']'",
            GlobError::InvalidRange(from, to) => return write!(f, "invalid range; '{from}' > '{to}'"),
            GlobError::UnopenedAlternates => {
                "unopened alternate group; missing '{' (maybe escape '}' with '[}]'?)"
            }
            GlobError::UnclosedAlternates => {
                "unclosed alternate group; missing '}' (maybe escape '{' with '[{]'?)"
            }
            GlobError::DanglingEscape => "dangling '\\'",
        })
    }
}

/// One step of the automaton. `Fork` continues at two places, relative to its own.
#[derive(Clone, PartialEq, Debug)]
enum GlobStep {
    Literal(char),
    /// Any character but `/`.
    NotSlash,
    Any,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
    Fork(isize, isize),
}
use GlobStep::{Any, Class, Fork, Literal, NotSlash};

#[derive(Clone, PartialEq, Debug)]
pub struct Glob(Vec<GlobStep>);

impl Glob {
    pub fn new(text: &str) -> Result<Glob, GlobError> {
        let mut parser = Parser { rest: text.chars().peekable(), previous: None };
        let steps = parser.sequence(false)?;
        Ok(Glob(steps))
    }

    /// A byte that is not part of a UTF-8 character counts as a character that no literal and no range contains.
    pub fn matches(&self, name: &[u8]) -> bool {
        let mut now = Vec::new();
        let mut next = Vec::new();
        let mut seen = vec![false; self.0.len() + 1];
        self.reach(0, &mut seen, &mut now);
        for part in name.utf8_chunks() {
            let odd = part.invalid().iter().map(|_| None);
            for c in part.valid().chars().map(Some).chain(odd) {
                seen.fill(false);
                for at in now.drain(..) {
                    if self.0.get(at).is_some_and(|step| step.takes(c)) {
                        self.reach(at + 1, &mut seen, &mut next);
                    }
                }
                mem::swap(&mut now, &mut next);
            }
        }
        now.contains(&self.0.len())
    }

    /// Adds the steps reached at `at` without a character.
    fn reach(&self, at: usize, seen: &mut [bool], to: &mut Vec<usize>) {
        if mem::replace(&mut seen[at], true) {
            return;
        }
        match self.0.get(at) {
            Some(Fork(one, other)) => {
                self.reach(at.wrapping_add_signed(*one), seen, to);
                self.reach(at.wrapping_add_signed(*other), seen, to);
            }
            _ => to.push(at),
        }
    }
}

impl GlobStep {
    fn takes(&self, c: Option<char>) -> bool {
        match self {
            Literal(l) => c == Some(*l),
            NotSlash => c != Some('/'),
            Any => true,
            Class { negated, ranges } => {
                c.is_some_and(|c| ranges.iter().any(|(from, to)| (*from..=*to).contains(&c))) != *negated
            }
            Fork(..) => false,
        }
    }
}

struct Parser<'t> {
    rest: std::iter::Peekable<std::str::Chars<'t>>,
    previous: Option<char>,
}

impl Parser<'_> {
    /// Up to the end of the text or, if `nested`, up to the `,` or `}` that ends this alternative.
    fn sequence(&mut self, nested: bool) -> Result<Vec<GlobStep>, GlobError> {
        let mut steps = Vec::new();
        let mut before = self.previous;
        while let Some(c) = self.rest.next_if(|c| !(nested && matches!(c, ',' | '}'))) {
            self.previous = Some(c);
            match c {
                '?' => steps.push(NotSlash),
                '*' if self.rest.next_if_eq(&'*').is_some() => {
                    self.previous = Some('*');
                    self.double_star(nested, before == Some('/'), &mut steps);
                }
                '*' => repeat(NotSlash, &mut steps),
                '[' => steps.push(self.class()?),
                '{' => self.alternates(&mut steps)?,
                '}' => return Err(GlobError::UnopenedAlternates),
                '\\' => {
                    self.previous = self.rest.next();
                    steps.push(Literal(self.previous.ok_or(GlobError::DanglingEscape)?));
                }
                c => steps.push(Literal(c)),
            }
            before = self.previous;
        }
        Ok(steps)
    }

    /// `**` crosses folders if it is a whole component; elsewhere it is a `*`.
    fn double_star(&mut self, nested: bool, after_slash: bool, steps: &mut Vec<GlobStep>) {
        let starts = after_slash || steps.is_empty();
        let next = self.rest.peek().copied();
        if starts && next == Some('/') {
            self.previous = self.rest.next();
            steps.push(Fork(1, 5)); // any folders and a slash, or nothing
            repeat(Any, steps);
            steps.push(Literal('/'));
        } else if match next {
            None => starts,
            Some(',' | '}') => after_slash && nested,
            Some(_) => false,
        } {
            repeat(Any, steps);
        } else {
            repeat(NotSlash, steps);
        }
    }

    /// Alternatives that match nothing are ignored.
    fn alternates(&mut self, steps: &mut Vec<GlobStep>) -> Result<(), GlobError> {
        let mut alternatives = Vec::new();
        loop {
            let alternative = self.sequence(true)?;
            if !alternative.is_empty() {
                alternatives.push(alternative);
            }
            self.previous = Some(self.rest.next().ok_or(GlobError::UnclosedAlternates)?);
            if self.previous == Some('}') {
                break;
            }
        }
        // Each but the last: a fork to itself or to the next one, and a jump behind the last.
        let Some(last) = alternatives.pop() else { return Ok(()) };
        let mut left = alternatives.iter().map(|a| a.len() + 2).sum::<usize>() + last.len();
        for alternative in alternatives {
            let length = alternative.len() + 2;
            steps.push(Fork(1, length.cast_signed()));
            steps.extend(alternative);
            left -= length;
            let end = left.cast_signed() + 1;
            steps.push(Fork(end, end));
        }
        steps.extend(last);
        Ok(())
    }

    /// What follows `[`. A `]` at the start and a `-` at either end stand for themselves.
    fn class(&mut self) -> Result<GlobStep, GlobError> {
        let negated = self.rest.next_if(|c| matches!(c, '!' | '^')).is_some();
        let mut ranges: Vec<(char, char)> = Vec::new();
        let mut in_range = false;
        loop {
            let c = self.rest.next().ok_or(GlobError::UnclosedClass)?;
            match (c, ranges.last_mut()) {
                (']', Some(_)) => break,
                (c, Some(range)) if mem::take(&mut in_range) => {
                    range.1 = c;
                    if range.1 < range.0 {
                        return Err(GlobError::InvalidRange(range.0, range.1));
                    }
                }
                ('-', Some(_)) => in_range = true,
                (c, _) => ranges.push((c, c)),
            }
        }
        if in_range {
            ranges.push(('-', '-'));
        }
        self.previous = Some(']');
        Ok(Class { negated, ranges })
    }
}

fn repeat(step: GlobStep, steps: &mut Vec<GlobStep>) {
    steps.extend([Fork(1, 3), step, Fork(-2, -2)]);
}

/// A glob that matches only this text.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '?' | '*' | '[' | ']' | '{' | '}' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(glob: &str, name: &[u8]) -> bool {
        Glob::new(glob).unwrap().matches(name)
    }

    /// Fails when `?` and `[…]` match bytes instead of characters, or when a byte that is not UTF-8 ends the search.
    #[test]
    fn characters_not_bytes() {
        assert!(matches("a?b[à-é].log", "aéb\u{e8}.log".as_bytes()));
        assert!(!matches("a?b", "a\u{e9}\u{e9}b".as_bytes()));
        assert!(matches("a?*.log", b"a\xff\xfe.log") && !matches("a[a-z].log", b"a\xff.log"));
    }

    /// Fails when a text is escaped too little or too much.
    #[test]
    fn an_escaped_text_matches_itself_alone() {
        let text = r"/a[b]/{c,d}\*?";
        assert!(matches(&escape(text), text.as_bytes()));
        assert!(!matches(&escape(text), br"/a[b]/{c,d}\xy?"));
    }

    /// Fails when an error of the glob is not found.
    #[test]
    fn errors() {
        for (glob, why) in [
            ("a[b", GlobError::UnclosedClass),
            ("[z-a]", GlobError::InvalidRange('z', 'a')),
            ("a}", GlobError::UnopenedAlternates),
            ("{a,{b}", GlobError::UnclosedAlternates),
            ("a\\", GlobError::DanglingEscape),
        ] {
            assert_eq!(Glob::new(glob).unwrap_err(), why, "{glob}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        /// Fails when a glob is valid, or matches a path, in only one of the two implementations.
        #[test]
        fn as_globset(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "a", "b", "/", "/", "*", "**", "/**/", "?", "{", ",", "}", "{a,b/}", "{a/**,b}", "[ab]", "[!a]", "[a-]", "[]-a]", "\\a", "-",
                ]),
                0..8,
            ),
            names in prop::collection::vec("[ab/]{0,6}", 12),
        ) {
            let text = parts.concat();
            // Where globset is odd: `**/**` does not match a file name, `**/` alone matches everything, and an alternative
            // that is left empty counts as text before a `**`.
            prop_assume!(text != "**/" && !["**/**", "{}", "{,", ",,", ",}"].iter().any(|odd| text.contains(odd)));
            let theirs = globset::GlobBuilder::new(&text).literal_separator(true).backslash_escape(true).build();
            match (Glob::new(&text), theirs) {
                (Ok(ours), Ok(theirs)) => {
                    let theirs = theirs.compile_matcher();
                    for name in &names {
                        prop_assert_eq!(ours.matches(name.as_bytes()), theirs.is_match(name), "{} on {}", text, name);
                    }
                }
                (ours, theirs) => prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{}: {:?}, {:?}", text, ours, theirs),
            }
        }
    }
}
