//! Reads the manual pages in `systemd`: their sections and `.TP` entries, with bold text kept apart. Understands only
//! the man macros that they use.

use std::{collections::BTreeSet, fs, path::Path};

pub type Names = BTreeSet<String>;

/// A file of the repository.
pub fn text(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every text between `before` and `after`.
pub fn between<'t>(text: &'t str, before: &'t str, after: char) -> impl Iterator<Item = &'t str> {
    text.split(before).skip(1).filter_map(move |rest| rest.split(after).next())
}

#[track_caller]
pub fn assert_same(what: &str, page: &Names, program: &Names) {
    let only = |a: &Names, b: &Names| a.difference(b).cloned().collect::<Vec<_>>().join(", ");
    let (wrong, missing) = (only(page, program), only(program, page));
    assert!(wrong.is_empty(), "{what}: documented but not in the program: {wrong}");
    assert!(missing.is_empty(), "{what}: in the program but not documented: {missing}");
}

/// All of the program's code, without comments and tests.
pub fn program() -> String {
    let mut code = String::new();
    collect_code(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut code);
    code
}

fn collect_code(folder: &Path, out: &mut String) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect_code(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap().lines();
            for line in code.filter(|l| !l.trim_start().starts_with("//")) {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
}

/// A page, or one of its sections or subsections, as source lines.
pub struct Page {
    lines: Vec<String>,
}

/// A `.TP` paragraph.
pub struct Entry {
    /// The whole tag as displayed.
    pub tag: String,
    /// The bold parts of the tag.
    pub names: Vec<String>,
    /// The paragraph as displayed, on one line.
    pub text: String,
}

impl Page {
    pub fn read(name: &str) -> Page {
        Page { lines: text(&format!("systemd/{name}")).lines().map(str::to_owned).collect() }
    }

    pub fn section(&self, heading: &str) -> Page {
        self.sections()
            .into_iter()
            .find(|(name, _)| name == heading)
            .map_or_else(|| panic!("no section {heading}"), |(_, part)| part)
    }

    pub fn sections(&self) -> Vec<(String, Page)> {
        self.parts(".SH ")
    }

    pub fn subsections(&self) -> Vec<(String, Page)> {
        self.parts(".SS ")
    }

    fn parts(&self, mark: &str) -> Vec<(String, Page)> {
        let mut parts: Vec<(String, Page)> = Vec::new();
        for line in &self.lines {
            if let Some(name) = line.strip_prefix(mark) {
                parts.push((unescaped(name), Page { lines: Vec::new() }));
            } else if let Some((_, part)) = parts.last_mut() {
                part.lines.push(line.clone());
            }
        }
        parts
    }

    pub fn entries(&self) -> Vec<Entry> {
        let mut found = Vec::new();
        let mut lines = self.lines.iter().peekable();
        while let Some(line) = lines.next() {
            if line != ".TP" {
                continue;
            }
            let tag = pieces(lines.next().expect("a tag after .TP"));
            let ends = |l: &str| [".TP", ".PP", ".SH", ".SS", ".IP"].iter().any(|m| l.starts_with(m));
            let mut body = Vec::new();
            let mut depth = 0;
            while let Some(line) = lines.next_if(|l| depth > 0 || !ends(l)) {
                depth += i32::from(line == ".RS") - i32::from(line == ".RE");
                if depth == 0 {
                    body.push(displayed(line)); // without entries within the entry
                }
            }
            found.push(Entry {
                tag: tag.iter().map(|(_, text)| text.as_str()).collect(),
                names: tag.into_iter().filter(|(bold, _)| *bold).map(|(_, text)| text).collect(),
                text: body.join(" "),
            });
        }
        found
    }

    /// The displayed text, one output line per source line.
    pub fn text(&self) -> String {
        self.lines.iter().map(|line| displayed(line) + "\n").collect()
    }

    /// The text between `.EX` and `.EE`.
    pub fn example(&self) -> String {
        let lines = self.lines.iter().skip_while(|l| *l != ".EX").skip(1).take_while(|l| *l != ".EE");
        lines.map(|line| unescaped(line) + "\n").collect()
    }

    /// The bold parts of all tags.
    pub fn names(&self) -> Names {
        self.entries().into_iter().flat_map(|entry| entry.names).collect()
    }
}

fn displayed(line: &str) -> String {
    pieces(line).into_iter().map(|(_, text)| text).collect()
}

/// A source line as runs of bold and other text.
fn pieces(line: &str) -> Vec<(bool, String)> {
    let Some(request) = line.strip_prefix('.') else { return inline(line) };
    let (fonts, rest) = request.split_once(' ').unwrap_or((request, ""));
    let is_font = !fonts.is_empty() && fonts.chars().all(|c| "BRI".contains(c));
    if !is_font {
        return Vec::new(); // .PP, .RS, a comment
    }
    let arguments = arguments(rest);
    if fonts.len() == 1 {
        return vec![(fonts == "B", unescaped(&arguments.join(" ")))];
    }
    let fonts = fonts.chars().cycle();
    arguments.iter().zip(fonts).map(|(text, font)| (font == 'B', unescaped(text))).collect()
}

fn arguments(rest: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = rest.trim_start();
    while !rest.is_empty() {
        let (argument, tail) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        found.push(argument.to_owned());
        rest = tail.trim_start();
    }
    found
}

/// Text with `\fB` and `\fR`.
fn inline(line: &str) -> Vec<(bool, String)> {
    let mut runs = line.split("\\f");
    let mut found = vec![(false, unescaped(runs.next().unwrap_or_default()))];
    found.extend(runs.map(|run| (run.starts_with('B'), unescaped(run.get(1..).unwrap_or_default()))));
    found.retain(|(_, text)| !text.is_empty());
    found
}

fn unescaped(text: &str) -> String {
    let mut text = text.to_owned();
    for (from, to) in [
        ("\\-", "-"),
        ("\\(dq", "\""),
        ("\\(aq", "'"),
        ("\\(lq", "\""),
        ("\\(rq", "\""),
        ("\\|", ""),
        ("\\&", ""),
        ("\\fR", ""),
        ("\\fI", ""),
        ("\\fB", ""),
        ("\\ ", " "),
        ("\\e", "\\"),
    ] {
        text = text.replace(from, to);
    }
    text
}
