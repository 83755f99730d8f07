//! The manual pages against the program, in both directions: commands, options, exit codes, signals, status fields, metrics,
//! states, log messages, and the files of the state folder.

use crate::harness::{page::*, *};
use std::{fs, process::Command};

const PAGES: [&str; 3] = ["logagent.1", "logagent.toml.5", "logagent-status.7"];

/// Fails when a page has a macro or an escape that groff does not know, an unbalanced font, or a section that is not ended.
#[test]
fn the_pages_render_without_warnings() {
    need("groff");
    for page in PAGES {
        let path = format!("{}/systemd/{page}", env!("CARGO_MANIFEST_DIR"));
        let done = Command::new("groff").args(["-man", "-Tutf8", "-ww", "-z", &path]).output().unwrap();
        assert!(done.status.success());
        assert_eq!(String::from_utf8_lossy(&done.stderr), "", "{page}");
    }
}

/// `command --option`, as `--help` says.
fn options_of_the_program() -> Names {
    let folder = Folder::new();
    let help = |args: &[&str]| {
        let done = folder.agent(args).run().expect_code(0);
        String::from_utf8(done.stdout).unwrap()
    };
    let top = help(&["--help"]);
    let commands = top.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    // A name is indented by two columns, the continuation of a text by more.
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

/// Fails when a command or an option is added, removed or moved and logagent(1) is not changed.
#[test]
fn commands_and_options() {
    let mut page = Names::new();
    for (command, part) in Page::read("logagent.1").section("COMMANDS").subsections() {
        let words = part.names().into_iter().flat_map(|name| {
            name.split_whitespace().map(str::to_owned).filter(|w| w.starts_with('-')).collect::<Vec<_>>()
        });
        page.extend(words.map(|option| format!("{command} {option}")));
        page.insert(command);
    }
    let program = options_of_the_program();
    assert_same("commands and options", &page, &program);
    // Wherever else a command line is written.
    let mut texts: Vec<(String, String)> =
        PAGES.iter().map(|name| ((*name).to_owned(), Page::read(name).text())).collect();
    texts.push(("README.md".to_owned(), text("README.md")));
    for (name, text) in texts {
        for call in text.lines().flat_map(|line| between(line, "logagent ", '`')) {
            let mut words = call.split_whitespace();
            let command = words.next().unwrap_or_default();
            if program.contains(command) {
                for option in words.take_while(|w| *w != "#").filter(|w| w.starts_with("--")) {
                    let option = option.trim_end_matches(['.', ',', ';', ')']);
                    let known = program.contains(&format!("{command} {option}"));
                    assert!(known, "{name} writes logagent {command} {option}, which does not exist");
                }
            }
        }
    }
}

/// Fails when an exit code is added or removed and logagent(1) or `--help` is not changed.
#[test]
fn exit_codes() {
    let numbers = |words: &mut dyn Iterator<Item = &str>| -> Names {
        words.filter(|w| w.parse::<u8>().is_ok()).map(str::to_owned).collect()
    };
    let errors = text("src/error.rs");
    let program = numbers(&mut between(&errors, " = ", ','));
    assert_same("exit codes", &Page::read("logagent.1").section("EXIT STATUS").names(), &program);
    let folder = Folder::new();
    let help = String::from_utf8(folder.agent(["--help"]).run().expect_code(0).stdout).unwrap();
    let note = help.split("Exit codes:").nth(1).expect("--help lists the exit codes");
    assert_same("exit codes in --help", &numbers(&mut note.split_whitespace()), &program);
}

/// Fails when the agent handles a signal that logagent(1) does not list, or no longer handles a listed one.
#[test]
fn signals() {
    let entries = Page::read("logagent.1").section("SIGNALS").entries();
    let handled = entries.iter().filter(|entry| entry.text != "ignored");
    let page = handled.flat_map(|entry| entry.names.clone()).collect();
    let source = text("src/signals.rs");
    let code: String = source.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
    let code: String = code.split('"').step_by(2).collect(); // without what it logs
    let words = code.split(|c: char| !c.is_alphanumeric());
    let program = words.filter(|w| w.starts_with("SIG") && w.len() > 3).map(str::to_owned).collect();
    assert_same("signals", &page, &program);
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

/// A running agent with exactly-once that cannot reach its broker. Fails when a status field or a metric is added, removed
/// or renamed, or a file appears in the state folder, and the pages are not changed.
#[test]
fn status_fields_metrics_and_state_files() {
    let folder = Folder::new();
    let log = folder.write("f.log", "one\ntwo\n");
    let (state, textfile) = (folder.path("state"), folder.path("m.prom"));
    let config = format!(
        "[agent]\nstate_dir = {state:?}\ndelivery = \"exactly-once\"\n\
         [kafka]\nbrokers = [\"127.0.0.1:1\"]\ntopic = \"t\"\nbudget = \"1GiB/day\"\n\
         [metrics]\ntextfile = {textfile:?}\n[[files]]\npaths = [{log:?}]\nstart = \"beginning\"\n"
    );
    folder.write("c.toml", config);
    let mut agent = folder.agent(["run", "-c", "c.toml"]).start();
    let ask = || {
        let done = folder.agent(["status", "-c", "c.toml", "--json"]).run().expect_code(0);
        serde_json::from_slice::<serde_json::Value>(&done.stdout).unwrap()
    };
    let status = wait_for(SOON, "status lists a file, a broker, its bytes and a topic", || {
        let status = ask();
        let full = |name: &str| status[name].as_array().is_some_and(|list| !list.is_empty());
        ["files", "brokers", "network", "payload"].into_iter().all(full).then_some(status)
    });
    let mut program_fields = Names::new();
    fields(&status, "", &mut program_fields);
    let page = Page::read("logagent-status.7");
    assert_same("status fields", &page.section("STATUS FIELDS").names(), &program_fields);

    let listed: Names =
        fs::read_dir(&state).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let entries = Page::read("logagent.1").section("STATE FOLDER").entries();
    let documented: Names = entries.into_iter().map(|entry| entry.tag).collect();
    let strange: Vec<&String> = listed.difference(&documented).collect();
    assert!(strange.is_empty(), "files of the state folder that logagent(1) does not list: {strange:?}");
    let code = program();
    for name in documented.difference(&listed) {
        assert!(code.contains(&format!("\"{name}\"")), "no file {name} exists in the state folder");
    }

    let source = text("src/report/metrics.rs");
    let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let all: Names = between(source, "\"logagent_", '"').map(|name| format!("logagent_{name}")).collect();
    let metrics = page.section("METRICS");
    assert_same("metrics", &metrics.names(), &all);
    let written = wait_for(SOON, "metrics are written", || fs::read_to_string(&textfile).ok());
    let tags: Names = metrics.entries().into_iter().map(|entry| entry.tag).collect();
    // Only current values are written; topics in trouble, for example, are not.
    assert!(
        tags.iter().all(|tag| tag.ends_with("_total (counter)") != tag.ends_with(" (gauge)")),
        "{tags:?}"
    );
    for line in between(&written, "# TYPE ", '\n') {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(tags.contains(&format!("{name} ({kind})")), "{name} is a {kind}");
    }
    agent.kill();
}

/// Fails when a state or a log message in logagent-status(7) is worded differently in the program, or a file state is
/// missing from the page.
#[test]
fn states_and_log_messages() {
    let program = program();
    let page = Page::read("logagent-status.7");
    let mut states_of_files = Names::new();
    for (of, part) in page.section("STATES").subsections() {
        for state in part.names() {
            let known =
                program.contains(&format!("\"{state}\"")) || program.contains(&format!("\"{state} ("));
            assert!(known, "no state of a {of} is called {state:?}");
            if of == "File" {
                states_of_files.insert(state);
            }
        }
    }
    for state in between(&program, "self.say(\"", '"') {
        assert!(states_of_files.contains(state), "the state {state:?} of a file is not documented");
    }
    for message in page.section("LOG MESSAGES").names() {
        assert!(program.contains(&message), "the program never logs {message:?}");
    }
    // Tags also contain placeholders for the operator's values: check only messages and codes.
    for words in page.section("TROUBLESHOOTING").names() {
        let is_message = words.contains([' ', '_']) && !words.contains(['=', '/']);
        assert!(!is_message || program.contains(&words), "the program never logs {words:?}");
    }
}

/// Fails when logagent(1) shows a different logrotate example than the package installs.
#[test]
fn the_logrotate_example_is_the_installed_one() {
    let shown = Page::read("logagent.1").section("LOGROTATE").example();
    let installed = text("systemd/logrotate.example");
    assert!(
        installed.ends_with(&shown) && shown.contains("prerotate"),
        "shown:\n{shown}\ninstalled:\n{installed}"
    );
}
