//! What the Debian package puts beside the program, against the program and README: man page, logrotate example, the list of
//! files. Builds and installs nothing: that is `tests/package`.

use crate::readme::{Names, assert_same, between, options, section, text};

/// The lines of the man page from `.SH heading` to the next one.
fn part(heading: &str) -> Vec<String> {
    let page = text("systemd/logagent.1").replace("\\-", "-");
    let mut lines = page.lines().skip_while(|l| *l != format!(".SH {heading}"));
    assert!(lines.next().is_some(), "the man page has no section {heading}");
    lines.take_while(|l| !l.starts_with(".SH ")).map(str::to_owned).collect()
}

/// The words of each line that follows `.TP`, without fonts and quotes.
fn tags(lines: &[String]) -> impl Iterator<Item = Vec<&str>> {
    lines.windows(2).filter(|pair| pair[0] == ".TP").map(|pair| {
        let words = pair[1].split(|c: char| c.is_whitespace() || "\",".contains(c));
        words.skip(1).filter(|w| !w.is_empty()).collect()
    })
}

/// Fails when an option or a command is added, goes or moves, and the man page is not changed: seen to fail with `--once`
/// taken out of the page, and with `--json` put under `check`.
#[test]
fn the_man_page_has_every_option() {
    let mut told = Names::new();
    for (command, lines) in by_command(part("COMMANDS")) {
        let names = tags(&lines).flatten().filter(|w| w.starts_with('-')).map(|w| format!("{command} {w}"));
        told.extend(names);
        told.insert(command);
    }
    assert_same("commands and options of the man page", &told, &options());
}

/// A `.SS command` and the lines below it.
fn by_command(section: Vec<String>) -> Vec<(String, Vec<String>)> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for line in section {
        match (line.strip_prefix(".SS "), found.last_mut()) {
            (Some(command), _) => found.push((command.to_owned(), Vec::new())),
            (None, Some((_, lines))) => lines.push(line),
            (None, None) => {}
        }
    }
    found
}

/// Fails when an exit code is added or goes: seen to fail with 64 taken out of the page.
#[test]
fn the_man_page_has_every_exit_code() {
    let page = part("EXIT STATUS");
    let told = tags(&page).flatten().map(str::to_owned).collect();
    let errors = text("src/error.rs");
    let codes = between(&errors, " = ", ',').filter(|code| code.parse::<u8>().is_ok());
    assert_same("exit codes of the man page", &told, &codes.map(str::to_owned).collect());
}

/// Fails when README shows another logrotate example than the package installs: seen to fail with `rotate 7` made `rotate 8`.
#[test]
fn the_logrotate_example_is_the_one_of_readme() {
    let readme = section("### logrotate");
    let shown = between(&readme, "```\n", '`').next().unwrap();
    let installed = text("systemd/logrotate.example");
    assert!(installed.ends_with(shown), "README:\n{shown}\ninstalled:\n{installed}");
}

/// Fails when the package is to hold a file that is not there, or has no page of the config: seen to fail with a man page of
/// another name.
#[test]
fn the_files_of_the_package_are_there() {
    let manifest: toml::Table = text("Cargo.toml").parse().unwrap();
    let deb = &manifest["package"]["metadata"]["deb"];
    let sources = deb["assets"].as_array().unwrap().iter().map(|a| a[0].as_str().unwrap());
    let is_page = |a: &toml::Value| a[0].as_str() == Some("systemd/logagent.toml.5");
    let page = deb["assets"].as_array().unwrap().iter().find(|a| is_page(a)).expect("the page of the config");
    assert_eq!(page[1].as_str(), Some("usr/share/man/man5/"));
    let mut kept = sources.filter(|s| !s.starts_with("target/")).map(text);
    assert!(kept.all(|text| !text.is_empty()));
    assert!(text("systemd/postrm").contains("\n#DEBHELPER#\n"), "where cargo-deb puts its part");
}
