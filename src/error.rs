//! What went wrong, for the operator: a reason with advice, and the error that ends a command, with its exit code.

use std::fmt::{self, Display};
use std::io;

/// Exit codes. The numbers above 1 are those of `sysexits.h`; the unit does not restart on them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitCode {
    /// Done, or stopped by a signal.
    Done = 0,
    /// Failed while running.
    Failed = 1,
    /// Invalid command line (`EX_USAGE`).
    Usage = 64,
    /// Invalid config, or damaged state (`EX_CONFIG`).
    Config = 78,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        (code as u8).into()
    }
}

/// One or more lines `logagent: <what>: <why>; <what to do>`, and the exit code.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    pub code: ExitCode,
    lines: Vec<String>,
}

impl Error {
    /// `what` failed: an operation, path or broker. `why`: the cause. `fix`: what the reader can do.
    pub fn new(code: ExitCode, what: impl Display, why: impl Display, fix: impl Display) -> Self {
        Error { code, lines: vec![format!("{what}: {why}; {fix}")] }
    }

    /// Exit code 1.
    pub fn failed(what: impl Display, why: impl Display, fix: impl Display) -> Self {
        Self::new(ExitCode::Failed, what, why, fix)
    }

    /// Exit code 64.
    pub fn usage(what: impl Display, why: impl Display, fix: impl Display) -> Self {
        Self::new(ExitCode::Usage, what, why, fix)
    }

    /// Exit code 78.
    pub fn config(what: impl Display, why: impl Display, fix: impl Display) -> Self {
        Self::new(ExitCode::Config, what, why, fix)
    }

    pub fn no_thread(name: &str, why: io::Error) -> Self {
        Self::not_started(format_args!("start the {name} thread"), why)
    }

    pub fn no_eventfd(why: io::Error) -> Self {
        Self::not_started("eventfd", why)
    }

    pub fn no_signals(why: io::Error) -> Self {
        Self::not_started("signals", why)
    }

    /// A thread, or the descriptors it needs, could not be had.
    pub fn not_started(what: impl Display, why: io::Error) -> Self {
        let fix = too_few_descriptors(&why).unwrap_or("raise the limit of threads (ulimit -u, TasksMax)");
        Self::failed(what, why, fix)
    }

    /// Several problems reported together, each as a line of the same form.
    pub fn several(code: ExitCode, lines: Vec<String>) -> Self {
        Error { code, lines }
    }
}

/// What to do if the limit of open files is reached.
pub fn too_few_descriptors(why: &io::Error) -> Option<&'static str> {
    let is_it = why.raw_os_error().is_some_and(|n| n == libc::EMFILE || n == libc::ENFILE);
    is_it.then_some("raise the limit of descriptors (ulimit -n, LimitNOFILE)")
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, line) in self.lines.iter().enumerate() {
            let end = if i == 0 { "" } else { "\n" };
            write!(f, "{end}logagent: {}", Escaped(line))?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Why something failed, and what the operator can do about it, where that is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reason {
    pub why: String,
    pub fix: Option<String>,
}

impl Reason {
    pub fn new(why: impl Into<String>, fix: impl Into<String>) -> Self {
        Reason { why: why.into(), fix: Some(fix.into()) }
    }
}

impl From<String> for Reason {
    fn from(why: String) -> Self {
        Reason { why, fix: None }
    }
}

impl From<&str> for Reason {
    fn from(why: &str) -> Self {
        Reason::from(why.to_owned())
    }
}

impl Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)?;
        match &self.fix {
            Some(fix) => write!(f, "; {fix}"),
            None => Ok(()),
        }
    }
}

/// So that it survives being wrapped in an `io::Error`.
impl std::error::Error for Reason {}

/// Displays text from files, paths and the network with control characters escaped: a terminal escape in a log line,
/// or a newline in a path, must neither move the operator's cursor nor forge a log line.
pub struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(is_active) {
            f.write_str(&rest[..at])?;
            let mut after = rest[at..].chars();
            if let Some(c) = after.next() {
                match c {
                    '\0'..='\u{ff}' if !matches!(c, '\n' | '\r' | '\t') => write!(f, "\\x{:02x}", c as u32)?,
                    _ => write!(f, "{}", c.escape_default())?,
                }
            }
            rest = after.as_str();
        }
        f.write_str(rest)
    }
}

/// C0 and C1 controls, and characters that reorder or break lines on a terminal (Unicode's bidirectional controls, TR
/// 9).
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// [`Escaped`] as a writer, so that a message is escaped while it is being formatted, without a second copy.
pub struct Escaping<'a, W: fmt::Write>(pub &'a mut W);

impl<W: fmt::Write> fmt::Write for Escaping<'_, W> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        write!(self.0, "{}", Escaped(s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_each() {
        let e = Error::failed("open /var/log/a", "permission denied", "add the user to the group adm");
        assert_eq!(
            e.to_string(),
            "logagent: open /var/log/a: permission denied; add the user to the group adm"
        );
        let two = Error::several(ExitCode::Config, vec!["1: b; c".into(), "2: b; c".into()]);
        assert_eq!(two.to_string(), "logagent: 1: b; c\nlogagent: 2: b; c");
    }

    /// A thread needs descriptors, and watching needs a thread. Fails when the advice depends on what was started.
    #[test]
    fn the_limit_that_was_reached_is_named() {
        for (code, limit) in [(libc::EMFILE, "ulimit -n"), (libc::EAGAIN, "ulimit -u")] {
            let why = || io::Error::from_raw_os_error(code);
            for e in [Error::no_thread("x", why()), Error::no_signals(why()), Error::not_started("x", why())]
            {
                assert!(e.to_string().contains(limit), "{e}");
            }
        }
    }

    /// Fails when a line is not escaped: a path with a newline could then forge a line.
    #[test]
    fn control_characters_are_escaped() {
        let e = Error::failed("/tmp/a\nlogagent: all is well", "\x1b[2J\u{9b}1m\u{202e}", "\tdo\0");
        let text = e.to_string();
        assert!(!text.contains(is_active), "{text:?}");
        assert_eq!(text, "logagent: /tmp/a\\nlogagent: all is well: \\x1b[2J\\x9b1m\\u{202e}; \\tdo\\x00");
    }

    #[test]
    fn plain_text_stays() {
        for s in ["", "größe \\d+ \"x\" 日本 🦀", "a b"] {
            assert_eq!(Escaped(s).to_string(), s);
        }
    }

    #[test]
    fn codes() {
        let codes = [ExitCode::Done, ExitCode::Failed, ExitCode::Usage, ExitCode::Config].map(|c| c as u8);
        assert_eq!(codes, [0, 1, 64, 78]);
    }
}
