//! Splits bytes into lines and records with their end positions. Works on buffers only.

use crate::record::{Break, Line, LineRegex, Then};
use memchr::{memchr, memchr_iter};

/// How to find the records of a source.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Longest line in bytes, without its line end; longer lines are cut there.
    pub max_line: usize,
    /// Drop empty lines.
    pub skip_empty: bool,
    pub multiline: Option<Multiline>,
    /// If not empty, keep only records that match one of these.
    pub include: Vec<LineRegex>,
    /// Drop records that match one of these.
    pub drop: Vec<LineRegex>,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            max_line: 1_000_000,
            skip_empty: false,
            multiline: None,
            include: Vec::new(),
            drop: Vec::new(),
        }
    }
}

/// How to join several lines into one record.
#[derive(Debug, Clone, PartialEq)]
pub struct Multiline {
    pub joint: Joint,
    pub max_lines: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Joint {
    /// A matching line starts a record.
    Start(LineRegex),
    /// A matching line continues the previous record.
    Continue(LineRegex),
}

/// How to treat the bytes after the last line end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rest {
    /// Keep them until more data comes.
    Waits,
    /// Keep them, but no line will follow for the record that is open (multiline).
    EndsRecord,
    /// Treat them as a line; no more data will come.
    IsALine,
}

/// Result of framing. The bytes after `consumed` are incomplete and are framed again once there is more data.
#[derive(PartialEq, Eq, Debug)]
pub struct Framed {
    pub consumed: usize,
    /// Parser state at `consumed`.
    pub then: Then,
    pub last: Break,
    /// Number of lines longer than `max_line`.
    pub cut: u64,
    /// Bytes dropped from cut lines and holes.
    pub left_out: u64,
    /// `consumed` is inside a hole that was skipped, so NULs that follow belong to it.
    pub in_hole: bool,
}

/// The bytes to frame. `then` is the parser state at `bytes[0]`.
#[derive(Clone, Copy)]
pub struct FramingInput<'a> {
    pub bytes: &'a [u8],
    pub then: Then,
    /// The bytes before `bytes[0]` were sent as a line although they had no line end: one that comes now is theirs.
    pub in_line: bool,
    pub rest: Rest,
    /// NULs at the start of `bytes` continue a hole.
    pub in_hole: bool,
    /// Whether this run of NULs (a range of `bytes`) overlaps a hole in the file.
    pub is_hole: &'a dyn Fn(Run) -> bool,
}

/// A run of NULs at the start of a line.
pub type Run = std::ops::Range<usize>;

/// Appends the records in `input` to `lines`, up to `most` lines in total.
pub fn frame(rules: &Rules, input: FramingInput<'_>, lines: &mut Vec<Line>, most: usize) -> Framed {
    let mut f =
        Framer { rules, input, bytes: input.bytes, lines, most, group: None, out: Framed::nothing(&input) };
    let Some(from) = f.begin() else { return f.out };
    if rules.multiline.is_none() && rules.include.is_empty() && rules.drop.is_empty() && !rules.skip_empty {
        f.plain(from);
    } else {
        f.picky(from);
    }
    f.finish(input.rest);
    f.out
}

struct Framer<'a> {
    rules: &'a Rules,
    input: FramingInput<'a>,
    bytes: &'a [u8],
    lines: &'a mut Vec<Line>,
    most: usize,
    /// Multiline: the record that is not complete yet.
    group: Option<Group>,
    /// Invariant: `out.consumed` is the start of a line or the end of the bytes.
    out: Framed,
}

#[derive(Clone, Copy)]
struct Group {
    start: usize,
    /// End of its last line, without the line end.
    end: usize,
    /// End of its last line, including the line end.
    next: usize,
    lines: usize,
}

impl Framed {
    fn nothing(input: &FramingInput<'_>) -> Framed {
        let in_hole = input.in_hole && input.then == Then::Line;
        Framed { consumed: 0, then: input.then, last: Break::Newline, cut: 0, left_out: 0, in_hole }
    }
}

impl Framer<'_> {
    /// Where the first line starts; `None` if no line starts here.
    fn begin(&mut self) -> Option<usize> {
        if self.input.then == Then::Line {
            self.out.consumed = match self.bytes {
                [b'\n', ..] if self.input.in_line => 1,
                [b'\r', b'\n', ..] if self.input.in_line => 2,
                _ => 0,
            };
            return Some(self.out.consumed);
        }
        let end = memchr(b'\n', self.bytes);
        self.out.consumed = end.map_or(self.bytes.len(), |e| e + 1);
        self.out.left_out += end.unwrap_or(self.bytes.len()) as u64;
        self.out.then = if end.is_some() { Then::Line } else { Then::SkipToNewline };
        end.map(|e| e + 1)
    }

    /// The common case: every line is a record.
    fn plain(&mut self, from: usize) {
        let mut start = from;
        for at in memchr_iter(b'\n', &self.bytes[from..]) {
            if self.lines.len() >= self.most {
                break;
            }
            let nl = from + at;
            self.line(start, nl);
            start = nl + 1;
        }
        self.out.consumed = start;
    }

    /// One complete line, `start..nl`.
    #[inline(always)]
    fn line(&mut self, start: usize, nl: usize) {
        let (start, end) = self.trim(start, nl);
        self.push(start, end);
        self.out.last = Break::Newline;
    }

    /// Strips `\r` at the end and a hole at the start.
    #[inline(always)]
    fn trim(&mut self, start: usize, nl: usize) -> (usize, usize) {
        let end = if nl > start && self.bytes[nl - 1] == b'\r' { nl - 1 } else { nl };
        let start = if start < end && self.bytes[start] == 0 { self.behind_hole(start, end) } else { start };
        self.out.in_hole = false;
        (start, end)
    }

    /// For a line that starts with NULs: the offset after them, if they are a hole.
    fn behind_hole(&mut self, start: usize, end: usize) -> usize {
        let nuls = start..start + nuls(&self.bytes[start..end]);
        let is_hole = (start == 0 && self.out.in_hole) || (self.input.is_hole)(nuls.clone());
        if !is_hole {
            return start;
        }
        self.out.left_out += nuls.len() as u64;
        nuls.end
    }

    /// Adds a record, cut to the maximum length.
    #[inline(always)]
    fn push(&mut self, start: usize, end: usize) {
        let mut len = end - start;
        if len > self.rules.max_line {
            self.out.cut += 1;
            self.out.left_out += (len - self.rules.max_line) as u64;
            len = self.rules.max_line;
        }
        self.lines.push(Line { at: start as u32, len: len as u32 });
    }

    /// Joins lines and applies filters.
    fn picky(&mut self, from: usize) {
        let mut start = from;
        self.out.consumed = from;
        for at in memchr_iter(b'\n', &self.bytes[from..]) {
            if self.lines.len() >= self.most {
                return;
            }
            let nl = from + at;
            let (s, e) = self.trim(start, nl);
            start = nl + 1;
            match &self.rules.multiline {
                None => {
                    self.keep(s, e);
                    self.out.last = Break::Newline;
                    self.out.consumed = start;
                }
                Some(m) => self.join(m, Group { start: s, end: e, next: start, lines: 1 }),
            }
        }
    }

    fn join(&mut self, m: &Multiline, line: Group) {
        let text = &self.bytes[line.start..line.end];
        let begins = match &m.joint {
            Joint::Start(r) => r.is_match(text),
            Joint::Continue(r) => !r.is_match(text),
        };
        let fits = |g: &Group| g.lines < m.max_lines && line.end - g.start <= self.rules.max_line;
        match self.group {
            Some(g) if !begins && fits(&g) => {
                self.group = Some(Group { end: line.end, next: line.next, lines: g.lines + 1, ..g });
            }
            Some(g) => {
                self.close(g, if begins { Break::Newline } else { Break::Forced });
                self.group = Some(line);
            }
            None => self.group = Some(line),
        }
    }

    fn close(&mut self, g: Group, why: Break) {
        self.keep(g.start, g.end);
        self.out.last = why;
        self.out.consumed = g.next;
    }

    /// Adds the record unless it is filtered out.
    fn keep(&mut self, start: usize, end: usize) {
        let text = &self.bytes[start..end];
        let r = self.rules;
        let wanted = !(r.skip_empty && text.is_empty())
            && (r.include.is_empty() || r.include.iter().any(|i| i.is_match(text)))
            && !r.drop.iter().any(|d| d.is_match(text));
        if wanted {
            self.push(start, end);
        }
    }

    /// Handles the bytes after the last line end.
    fn finish(&mut self, rest: Rest) {
        if self.lines.len() >= self.most {
            return;
        }
        if let Some(g) = self.group {
            let tail = &self.bytes[g.next..];
            let is_whole = tail.first().is_some_and(|b| *b != 0) && tail.len() <= self.rules.max_line;
            if let (Some(m), Rest::IsALine, true) = (&self.rules.multiline, rest, is_whole) {
                let end = self.bytes.len();
                self.join(m, Group { start: g.next, end, next: end, lines: 1 });
                if let Some(last) = self.group {
                    self.close(last, Break::Forced);
                }
                return;
            }
            if rest != Rest::Waits {
                self.close(g, Break::Forced);
            } else if g.next - g.start + tail.len() > self.rules.max_line + 2 {
                self.close(g, Break::Forced); // the incomplete line would make the record too long
            } else {
                return;
            }
        }
        self.pass_hole();
        let start = self.out.consumed;
        let tail = &self.bytes[start..];
        let max = self.rules.max_line;
        if tail.len() > max + 1 || (tail.len() == max + 1 && tail[max] != b'\r') {
            self.keep(start, start + tail.len());
            self.out.consumed = self.bytes.len();
            self.out.then = Then::SkipToNewline;
            self.out.last = Break::Cut;
            self.out.in_hole = false;
        } else if rest == Rest::IsALine && !tail.is_empty() {
            self.keep(start, start + tail.len());
            self.out.consumed = self.bytes.len();
            self.out.last = Break::Forced;
            self.out.in_hole = false;
        }
    }

    /// Consumes a hole at the start of the incomplete bytes, so that it is neither kept nor read again.
    fn pass_hole(&mut self) {
        let start = self.out.consumed;
        if self.bytes.get(start) == Some(&0) {
            let behind = self.behind_hole(start, self.bytes.len());
            self.out.in_hole = behind > start;
            self.out.consumed = behind;
        }
    }
}

/// Length of the run of NULs at the start.
fn nuls(bytes: &[u8]) -> usize {
    bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use regex::bytes::Regex;

    fn input(bytes: &[u8], then: Then, rest: Rest) -> FramingInput<'_> {
        FramingInput { bytes, then, in_line: false, rest, in_hole: false, is_hole: &|_| false }
    }

    fn all(rules: &Rules, bytes: &[u8], rest: Rest) -> (Vec<Vec<u8>>, Framed) {
        let mut lines = Vec::new();
        let f = frame(rules, input(bytes, Then::Line, rest), &mut lines, usize::MAX);
        (lines.iter().map(|l| bytes[l.at as usize..(l.at + l.len) as usize].to_vec()).collect(), f)
    }

    fn texts(rules: &Rules, bytes: &[u8], rest: Rest) -> Vec<String> {
        all(rules, bytes, rest).0.into_iter().map(|l| String::from_utf8_lossy(&l).into_owned()).collect()
    }

    #[test]
    fn lines() {
        let r = Rules::default();
        for (input, lines, consumed) in [
            (&b"a\nb\n"[..], &["a", "b"][..], 4),
            (b"a\n\nb\n\n", &["a", "", "b", ""], 6),
            (b"\n", &[""], 1),
            (b"a\r\nb\r\n", &["a", "b"], 6),
            (b"a\rb\r\r\n", &["a\rb\r"], 6),
            (b"abc", &[], 0),
            (b"abc\nde", &["abc"], 4),
            (b"\xef\xbb\xbfabc\n", &["\u{feff}abc"], 7),
            (b"\xef\xbb", &[], 0),
            (b"", &[], 0),
            (b"\0\0\0abc\n", &["\0\0\0abc"], 7),
            (b"abc\n\0\0\0", &["abc"], 4),
            (b"a\0b\n", &["a\0b"], 4),
        ] {
            let (got, f) = all(&r, input, Rest::Waits);
            assert_eq!(got, lines.iter().map(|l| l.as_bytes().to_vec()).collect::<Vec<_>>(), "{input:?}");
            assert_eq!(f.consumed, consumed, "{input:?}");
        }
    }

    /// The bytes before were sent as a line. Fails when their line end becomes a record, or an empty line after it does not.
    #[test]
    fn the_end_of_a_line_that_was_sent() {
        let multiline = Multiline { joint: Joint::Start(Regex::new("^b").unwrap().into()), max_lines: 9 };
        for rules in [Rules::default(), Rules { multiline: Some(multiline), ..Rules::default() }] {
            for (bytes, want, consumed) in [
                (&b"\n"[..], &[][..], 1),
                (b"\r\n", &[], 2),
                (b"\n\nb", &["", "b"], 3),
                (b"\r\n\r\nb", &["", "b"], 5),
                (b"a\nb", &["a", "b"], 3),
                (b"\ra\nb", &["\ra", "b"], 4),
            ] {
                let mut lines = Vec::new();
                let input = FramingInput { in_line: true, ..input(bytes, Then::Line, Rest::IsALine) };
                let f = frame(&rules, input, &mut lines, 9);
                let text = |l: &Line| String::from_utf8_lossy(&bytes[l.at as usize..][..l.len as usize]);
                assert_eq!(lines.iter().map(text).collect::<Vec<_>>(), want, "{bytes:?}");
                assert!(f.consumed >= consumed, "{bytes:?}");
            }
        }
    }

    #[test]
    fn an_incomplete_line_at_the_end() {
        let r = Rules::default();
        assert_eq!(texts(&r, b"a\nbc", Rest::IsALine), ["a", "bc"]);
        assert_eq!(texts(&r, b"a\n", Rest::IsALine), ["a"]);
        assert_eq!(texts(&r, b"", Rest::IsALine), [""; 0]);
        assert_eq!(texts(&r, b"\xef\xbb", Rest::IsALine).len(), 1);
    }

    /// There is a hole at 5..8. Fails when NULs outside a hole are dropped, when the edge of a hole within a block is
    /// kept, or when the result depends on where the buffer ends.
    #[test]
    fn holes_are_left_out() {
        let frame_at = |bytes: &[u8], in_hole, rest| {
            let mut lines = Vec::new();
            let is_hole = |run: Run| run.start < 8 && run.end > 5;
            let input = FramingInput { in_hole, is_hole: &is_hole, ..input(bytes, Then::Line, rest) };
            let f = frame(&Rules::default(), input, &mut lines, 9);
            let text = |l: &Line| bytes[l.at as usize..(l.at + l.len) as usize].to_vec();
            (lines.iter().map(text).collect::<Vec<_>>(), f.consumed, f.left_out, f.in_hole)
        };
        let wait = |bytes, in_hole| frame_at(bytes, in_hole, Rest::Waits);
        assert_eq!(wait(b"abc\n\0\0\0\0d\n", false), (vec![b"abc".to_vec(), b"d".to_vec()], 10, 4, false));
        assert_eq!(wait(b"a\n\0\0\0\0\0\0\0d\n", false).2, 7, "the hole's blocks are not all of it");
        assert_eq!(wait(b"a\n\0\0b\n", false).0[1], b"\0\0b");
        assert_eq!(wait(b"a\n\0\0", false), (vec![b"a".to_vec()], 2, 0, false), "it may be part of a hole");
        assert_eq!(wait(b"a\n\0\0\0\0", false), (vec![b"a".to_vec()], 6, 4, true));
        assert_eq!(wait(b"\0\0d\n\0e\n", true), (vec![b"d".to_vec(), b"\0e".to_vec()], 7, 2, false));
        assert_eq!(wait(b"\0\0", true), (vec![], 2, 2, true));
        assert_eq!(
            wait(b"\0\0d", true),
            (vec![], 2, 2, true),
            "a byte that is not NUL follows, so the hole is complete"
        );
        assert_eq!(frame_at(b"\0\0", false, Rest::IsALine).0, [b"\0\0"]);
    }

    /// Lines of exactly `max_line`, one less and one more, with either line end. Fails when the `\r` counts as part of the
    /// line.
    #[test]
    fn the_longest_line() {
        let r = Rules { max_line: 5, ..Rules::default() };
        for end in ["\n", "\r\n"] {
            for (line, want, cut) in [("1234", "1234", 0), ("12345", "12345", 0), ("123456", "12345", 1)] {
                let (got, f) = all(&r, format!("{line}{end}z\n").as_bytes(), Rest::Waits);
                assert_eq!(got, [want.as_bytes(), b"z"], "{line:?} {end:?}");
                assert_eq!(f.cut, cut);
                assert_eq!(f.then, Then::Line);
            }
        }
        assert_eq!(all(&r, b"12345\r", Rest::Waits).1.consumed, 0, "the newline may still come");
        let (got, f) = all(&r, b"12345x", Rest::Waits);
        assert_eq!(
            (got, f.consumed, f.then, f.last),
            (vec![b"12345".to_vec()], 6, Then::SkipToNewline, Break::Cut)
        );
    }

    #[test]
    fn the_rest_of_a_cut_line_is_left_out() {
        let r = Rules::default();
        let mut lines = Vec::new();
        let input = |bytes| input(bytes, Then::SkipToNewline, Rest::Waits);
        let f = frame(&r, input(b"more"), &mut lines, 9);
        assert_eq!((f.consumed, f.then, f.left_out, lines.len()), (4, Then::SkipToNewline, 4, 0));
        let f = frame(&r, input(b"re\nnext\n"), &mut lines, 9);
        assert_eq!((f.consumed, f.then, f.left_out, lines.len()), (8, Then::Line, 2, 1));
    }

    #[test]
    fn the_number_of_lines_is_limited() {
        let mut lines = Vec::new();
        let input = input(b"a\nb\nc\nd", Then::Line, Rest::IsALine);
        assert_eq!(frame(&Rules::default(), input, &mut lines, 2).consumed, 4);
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn filters_move_the_position() {
        let set = |p| vec![Regex::new(p).unwrap().into()];
        let r = Rules { drop: set("^#"), skip_empty: true, ..Rules::default() };
        assert_eq!(texts(&r, b"#a\nb\n\n#c\n", Rest::Waits), ["b"]);
        assert_eq!(all(&r, b"#a\n#b\n", Rest::Waits).1.consumed, 6);
        let r = Rules { include: set("x"), ..Rules::default() };
        assert_eq!(texts(&r, b"ax\nb\nxc\n", Rest::Waits), ["ax", "xc"]);
    }

    #[test]
    fn several_lines_make_a_record() {
        let start = |max_lines| Rules {
            multiline: Some(Multiline { joint: Joint::Start(Regex::new(r"^\d").unwrap().into()), max_lines }),
            ..Rules::default()
        };
        assert_eq!(texts(&start(9), b"1 a\n b\n c\n2 d\n e\n", Rest::Waits), ["1 a\n b\n c"]);
        assert_eq!(all(&start(9), b"1 a\n b\n c\n2 d\n e\n", Rest::Waits).1.consumed, 10);
        assert_eq!(texts(&start(9), b"1 a\n b\n2 d\n e", Rest::IsALine), ["1 a\n b", "2 d\n e"]);
        assert_eq!(texts(&start(2), b"1\n2\n a\n b\n c\n3\n", Rest::IsALine), ["1", "2\n a", " b\n c", "3"]);
        let by_continuation = Rules {
            multiline: Some(Multiline {
                joint: Joint::Continue(Regex::new(r"^\s").unwrap().into()),
                max_lines: 9,
            }),
            ..Rules::default()
        };
        assert_eq!(texts(&by_continuation, b"a\n b\nc\n d\n", Rest::IsALine), ["a\n b", "c\n d"]);
    }

    proptest! {
        /// Fails when the way the bytes are split changes the lines, or when bytes are consumed twice.
        #[test]
        fn pieces_make_no_difference(
            bytes in proptest::collection::vec(prop_oneof![
                Just(b'\n'), Just(b'\r'), Just(0u8), Just(b'a'), any::<u8>()], 0..300),
            cuts in proptest::collection::vec(1usize..40, 1..40),
            max_line in 1usize..20,
        ) {
            let r = Rules { max_line, ..Rules::default() };
            let whole = all(&r, &bytes, Rest::IsALine).0;
            let (mut at, mut seen, mut then, mut got) = (0, 0, Then::Line, Vec::new());
            let mut cuts = cuts.iter().cycle();
            while seen < bytes.len() {
                seen = (seen + cuts.next().unwrap()).min(bytes.len());
                let rest = if seen == bytes.len() { Rest::IsALine } else { Rest::Waits };
                let mut lines = Vec::new();
                let b = &bytes[at..seen];
                let f = frame(&r, input(b, then, rest), &mut lines, usize::MAX);
                got.extend(lines.iter().map(|l| b[l.at as usize..(l.at + l.len) as usize].to_vec()));
                prop_assert!(f.consumed <= b.len());
                at += f.consumed;
                then = f.then;
            }
            prop_assert_eq!(at, bytes.len());
            prop_assert_eq!(got, whole);
        }
    }
}
