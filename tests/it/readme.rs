//! README's names against the program's, in both directions: options, exit codes, config keys, status fields, metrics, files
//! of the state folder. What can be seen from outside is asked of the program; the rest is read from its lists. Judges
//! no sentence.

use crate::harness::*;
use std::{collections::BTreeSet, fs, path::Path};

pub type Names = BTreeSet<String>;

pub fn text(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// README from a heading to the next one that is not below it.
pub fn section(heading: &str) -> String {
    let level = heading.split(' ').next().unwrap().len();
    let readme = text("README.md");
    let mut lines = readme.lines().skip_while(|l| *l != heading);
    assert!(lines.next().is_some(), "README has no {heading:?}");
    let mut in_code = false;
    let goes_on = |l: &&str| {
        in_code ^= l.starts_with("```");
        let marks = l.bytes().take_while(|b| *b == b'#').count();
        in_code || !(1..=level).contains(&marks)
    };
    lines.take_while(goes_on).collect::<Vec<_>>().join("\n")
}

/// The cells of each row of the tables in `text`, without heads and rules. A `|` in a cell is written `\|`.
fn rows(text: &str) -> Vec<Vec<String>> {
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    let is_rule = |l: &str| l.starts_with("|--");
    let mut rows = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let is_head = lines.get(i + 1).is_some_and(|next| is_rule(next));
        if line.starts_with('|') && !is_rule(line) && !is_head {
            let cells = line.replace("\\|", "\u{1}");
            let cells = cells.trim_matches('|').split('|');
            rows.push(cells.map(|c| c.trim().replace('\u{1}', "|")).collect());
        }
    }
    rows
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The first quoted text of each row.
fn first_column(text: &str) -> Names {
    rows(text).iter().filter_map(|row| quoted(&row[0]).next().map(str::to_owned)).collect()
}

/// What stands between `before` and `after`, everywhere.
pub fn between<'t>(text: &'t str, before: &'t str, after: char) -> impl Iterator<Item = &'t str> {
    text.split(before).skip(1).filter_map(move |rest| rest.split(after).next())
}

/// A source file without its tests.
fn source(path: &str) -> String {
    text(path).split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned()
}

#[track_caller]
pub fn assert_same(what: &str, readme: &Names, program: &Names) {
    let only = |a: &Names, b: &Names| a.difference(b).cloned().collect::<Vec<_>>().join(", ");
    let (wrong, missing) = (only(readme, program), only(program, readme));
    assert!(wrong.is_empty(), "{what} that are told of and that the program does not have: {wrong}");
    assert!(missing.is_empty(), "{what} of the program that are not told of: {missing}");
}

/// `command --option`, as `--help` says.
pub fn options() -> Names {
    let folder = Folder::new();
    let help = |args: &[&str]| {
        let done = folder.agent(args).run().expect_code(0);
        String::from_utf8(done.stdout).unwrap()
    };
    let top = help(&["--help"]);
    let commands = top.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    // A name stands two columns in; what goes on from the line before stands further in.
    let commands = commands.lines().filter(|l| l.starts_with("  ") && !l.starts_with("   "));
    let mut found = Names::new();
    for command in commands.filter_map(|l| l.split_whitespace().next()) {
        found.insert(command.to_owned());
        let text = help(&[command, "--help"]);
        let options = text.split("Options:\n").nth(1).unwrap().split("\n\n").next().unwrap();
        for line in options.lines().filter(|l| l.starts_with("  -")) {
            let names = line.split_whitespace().map(|w| w.trim_end_matches(','));
            found.extend(names.take_while(|w| w.starts_with('-')).map(|w| format!("{command} {w}")));
        }
    }
    found
}

/// Fails when an option or a command is added, goes or moves, and README is not changed.
#[test]
fn commands_and_options() {
    let section = section("## Command line");
    let mut readme = Names::new();
    for row in rows(&section) {
        let names: Vec<&str> = quoted(&row[0]).filter_map(|q| q.split(' ').next()).collect();
        if !names.first().is_some_and(|n| n.starts_with('-')) {
            readme.extend(names.iter().filter(|n| n.parse::<u8>().is_err()).map(|n| n.to_string()));
        } else {
            readme.extend(
                quoted(&row[1]).flat_map(|command| names.iter().map(move |n| format!("{command} {n}"))),
            );
        }
    }
    let program = options();
    assert_same("commands and options", &readme, &program);
    // Wherever a command is written out.
    for line in text("README.md").lines() {
        for call in between(line, "logagent ", '`') {
            let mut words = call.split_whitespace();
            let command = words.next().unwrap_or_default();
            if program.contains(command) {
                for option in words.take_while(|w| *w != "#").filter(|w| w.starts_with("--")) {
                    let known = program.contains(&format!("{command} {option}"));
                    assert!(known, "README writes logagent {command} {option}, which there is not");
                }
            }
        }
    }
}

/// Fails when an exit code is added or goes.
#[test]
fn exit_codes() {
    let folder = Folder::new();
    let help = String::from_utf8(folder.agent(["--help"]).run().expect_code(0).stdout).unwrap();
    let note = help.split("Exit codes:").nth(1).expect("--help tells the exit codes");
    let numbers = |words: &mut dyn Iterator<Item = &str>| -> Names {
        words.filter(|w| w.parse::<u8>().is_ok()).map(str::to_owned).collect()
    };
    let readme: Vec<String> = first_column(&section("## Command line")).into_iter().collect();
    let readme = numbers(&mut readme.iter().map(String::as_str));
    assert_same("exit codes", &readme, &numbers(&mut note.split_whitespace()));
    let all = source("src/error.rs");
    let all: Vec<&str> = between(&all, " = ", ',').collect();
    assert_same("exit codes", &readme, &numbers(&mut all.into_iter()));
}

/// The example's tables and keys with what it gives them: it shows every key, which a test of `src/config` holds.
fn example() -> Vec<(String, String, String)> {
    let mut table = String::new();
    let mut found = Vec::new();
    for line in text("systemd/logagent.toml").lines() {
        let line = match line.strip_prefix('#') {
            Some(words) if words.starts_with(' ') => continue,
            key => key.unwrap_or(line),
        };
        if line.starts_with('[') {
            table = line.to_owned();
        } else if let Some((key, value)) = line.split_once(" = ") {
            found.push((table.clone(), key.to_owned(), value.to_owned()));
        }
    }
    found
}

/// Fails when a key is added, goes or moves, or README's default is not the example's.
#[test]
fn config_keys() {
    let reference = section("## Config reference");
    let mut readme = Names::new();
    let mut defaults = Vec::new();
    for heading in reference.lines().filter_map(|l| l.strip_prefix("### ")) {
        let table = heading.trim_matches('`');
        for row in rows(&section(&format!("### {heading}"))) {
            let key = quoted(&row[0]).next().unwrap();
            readme.insert(format!("{table} {key}"));
            defaults.extend(quoted(&row[1]).next().map(|d| (table.to_owned(), key.to_owned(), d.to_owned())));
        }
    }
    let example = example();
    let mut program: Names = example.iter().map(|(table, key, _)| format!("{table} {key}")).collect();
    // Tables of their own in the example.
    program.extend(["[kafka] tls".to_owned(), "[kafka] sasl".to_owned()]);
    assert_same("config keys", &readme, &program);
    for (table, key, default) in defaults {
        let given = example.iter().find(|(t, k, _)| (t, k) == (&table, &key)).map(|(.., v)| v.as_str());
        // Of these two the example shows another value; and a default may be told by another key's name.
        let is_shown = !["partition", "format"].contains(&key.as_str());
        let is_value = !["topic", "brokers"].contains(&default.as_str());
        if is_shown && is_value {
            assert_eq!(Some(default.as_str()), given, "default of {key} in {table}");
        }
    }
}

/// Fails when a word that a config can hold, or a key within a value, is not in README.
#[test]
fn config_words() {
    let readme = section("## Config reference") + &section("## How a line becomes a record");
    let names = source("src/config/names.rs");
    for word in between(&names, "(\"", '"') {
        // `output` is the command line's.
        let of_output = ["kafka", "stdout"].contains(&word);
        let known = [format!("\"{word}\""), format!("`{word}`")].iter().any(|w| readme.contains(w));
        assert!(of_output || known, "README does not know the config's word {word:?}");
    }
    // The page indents the keys within a value.
    let page = text("systemd/logagent.toml.5");
    let keys: Vec<&str> = (page.split(".RS\n").skip(1))
        .flat_map(|rest| between(rest.split(".RE\n").next().unwrap(), ".B ", '\n'))
        .collect();
    assert!(keys.contains(&"constant") && keys.contains(&"max_lines"), "{keys:?}");
    for key in keys {
        let known = [format!("{key} ="), format!("`{key}`")].iter().any(|w| readme.contains(w));
        assert!(known, "README does not know the key {key} within a value");
    }
}

/// Fails when a record of `format = "json"` has another member than README says.
#[test]
fn members_of_a_json_record() {
    let folder = Folder::new();
    let log = folder.write("f.log", b"caf\xe9\n");
    folder.write(
        "c.toml",
        format!(
            "[agent]\nstate_dir = {:?}\n[[files]]\npaths = [{log:?}]\nformat = \"json\"\n",
            folder.path("state")
        ),
    );
    let done = folder.agent(["run", "-c", "c.toml", "--once", "--output", "stdout"]).run().expect_code(0);
    let record: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    let program: Names = record.as_object().unwrap().keys().cloned().collect();
    let files = rows(&section("### `[[files]]`"));
    let told = files.iter().find(|row| row[0] == "`format`").unwrap()[2].clone();
    let readme = quoted(&told).filter(|w| !w.starts_with('"') && *w != "fields").map(str::to_owned).collect();
    assert_same("members of a JSON record", &readme, &program);
}

/// The paths of all fields: `files[].path`. A list of numbers is a field, a list of objects ends in `[]`.
fn fields(of: &serde_json::Value, path: &str, found: &mut Names) {
    if let Some(object) = of.as_object() {
        for (name, value) in object {
            let dot = if path.is_empty() { "" } else { "." };
            fields_at(value, format!("{path}{dot}{name}"), found);
        }
    }
}

fn fields_at(value: &serde_json::Value, path: String, found: &mut Names) {
    match value.as_array().filter(|list| list.iter().all(serde_json::Value::is_object)) {
        Some(list) => {
            let path = path + "[]";
            list.iter().for_each(|one| fields(one, &path, found));
            found.insert(path);
        }
        None => {
            fields(value, &path, found);
            found.insert(path);
        }
    }
}

/// A running agent that cannot reach its broker: status, metrics and state folder. Fails when a field or a metric is added,
/// goes or is renamed, or a file appears in the state folder, and README is not changed.
#[test]
fn status_fields_metrics_and_state_files() {
    let folder = Folder::new();
    let log = folder.write("f.log", "one\ntwo\n");
    let (state, textfile) = (folder.path("state"), folder.path("m.prom"));
    let config = format!(
        "[agent]\nstate_dir = {state:?}\n[kafka]\nbrokers = [\"127.0.0.1:1\"]\ntopic = \"t\"\n\
         [metrics]\ntextfile = {textfile:?}\n[[files]]\npaths = [{log:?}]\nstart = \"beginning\"\n"
    );
    folder.write("c.toml", config);
    let mut agent = folder.agent(["run", "-c", "c.toml"]).start();
    let ask = || {
        let done = folder.agent(["status", "-c", "c.toml", "--json"]).run().expect_code(0);
        serde_json::from_slice::<serde_json::Value>(&done.stdout).unwrap()
    };
    let status = wait_for(SOON, "status tells of a file and a broker", || {
        let status = ask();
        let full = |name: &str| status[name].as_array().is_some_and(|list| !list.is_empty());
        (full("files") && full("brokers")).then_some(status)
    });
    let mut program = Names::new();
    fields(&status, "", &mut program);
    // The table of states stands in the same section.
    let told = rows(&section("### `logagent status`")).into_iter().filter(|row| row.len() == 2);
    let told = told.map(|row| row[0].trim_matches('`').to_owned()).collect();
    assert_same("status fields", &told, &program);

    let listed: Names =
        fs::read_dir(&state).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let told = first_column(&section("### State folder"));
    let strange: Vec<&String> = listed.difference(&told).collect();
    assert!(strange.is_empty(), "files of the state folder that README does not have: {strange:?}");
    let store = ["state/store", "state", "commands/plan", "commands/recover"]
        .map(|module| source(&format!("src/{module}.rs")))
        .concat();
    for name in told.difference(&listed) {
        assert!(
            store.contains(&format!("\"{name}\"")),
            "README has {name} in the state folder; the program has not"
        );
    }

    let list = source("src/report/metrics.rs");
    let all: Names = between(&list, "\"logagent_", '"').map(|name| format!("logagent_{name}")).collect();
    let metrics = section("### Metrics");
    assert_same("metrics", &first_column(&metrics), &all);
    let written = wait_for(SOON, "metrics are written", || fs::read_to_string(&textfile).ok());
    let kinds: Vec<Vec<String>> = rows(&metrics);
    for line in between(&written, "# TYPE ", '\n') {
        let (name, kind) = line.split_once(' ').unwrap();
        let told = kinds.iter().find(|row| row[0] == format!("`{name}`")).map(|row| row[1].as_str());
        assert_eq!(told, Some(kind), "type of {name}");
    }
    agent.kill();
}

/// All that the program says, in one: its code without comments and tests.
fn all_sources(folder: &Path, out: &mut String) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all_sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let path = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap();
            let text = source(path.to_str().unwrap());
            let code = text.lines().filter(|l| !l.trim_start().starts_with("//"));
            code.for_each(|line| *out = std::mem::take(out) + line + "\n");
        }
    }
}

/// Fails when a state or a log line that README explains is worded otherwise in the program.
#[test]
fn words_of_status_and_log() {
    let mut program = String::new();
    all_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut program);
    let states = rows(&section("### `logagent status`"));
    for row in states.iter().filter(|row| row.len() == 4) {
        let word = quoted(&row[1]).next().unwrap();
        let known = program.contains(&format!("\"{word}\"")) || program.contains(&format!("\"{word} ("));
        assert!(known, "no state is called {word:?}");
    }
    for state in between(&program, "self.say(\"", '"') {
        let told = states.iter().any(|row| row[0] == "file" && row[1] == format!("`{state}`"));
        assert!(told, "README does not know the state {state:?} of a file");
    }
    for row in rows(&section("### Log lines")) {
        for words in quoted(&row[0]) {
            assert!(program.contains(words), "the program never says {words:?}");
        }
    }
    // Here the left column has words of the reader's too: only what is a message or a code is looked for.
    for row in rows(&section("## Troubleshooting")) {
        for words in quoted(&row[0]).filter(|w| w.contains([' ', '_']) && !w.contains('=')) {
            assert!(program.contains(words), "the program never says {words:?}");
        }
    }
}

/// Fails when README leads to a file or a section that is not there.
#[test]
fn what_it_leads_to_is_there() {
    let readme = text("README.md");
    let headings: Names = readme
        .lines()
        .filter(|l| l.starts_with('#'))
        .map(|l| {
            let title = l.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.collect::<String>().replace(' ', "-")
        })
        .collect();
    for link in between(&readme, "](", ')') {
        if let Some(anchor) = link.strip_prefix('#') {
            assert!(headings.contains(anchor), "README leads to the section #{anchor}");
        } else if !link.contains("://") {
            text(link);
        }
    }
    for word in readme.split(|c: char| c.is_whitespace() || "`(),;:".contains(c)) {
        let ours = ["tests/", "systemd/", "src/", ".ci/"].iter().any(|top| word.starts_with(top));
        let there = Path::new(env!("CARGO_MANIFEST_DIR")).join(word.trim_end_matches('.')).exists();
        assert!(!ours || there, "README names {word}");
    }
}
