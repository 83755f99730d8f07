//! logagent.toml(5) against the program and the example config, which contains every key.

use crate::harness::{page::*, *};

/// The example's tables and keys, with the values it shows.
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

fn tables() -> Vec<(String, Page)> {
    let mut sections = Page::read("logagent.toml.5").sections();
    sections.retain(|(name, _)| name.starts_with('['));
    sections
}

/// Fails when a key is added, removed or moved, or the default on the page differs from the example's.
#[test]
fn config_keys() {
    let mut page = Names::new();
    let mut entries = Vec::new();
    for (table, part) in tables() {
        for entry in part.entries() {
            let name = format!("{table} {}", entry.names[0]);
            page.insert(name.clone());
            entries.push((name, entry));
        }
    }
    let example = example();
    let mut program: Names = example.iter().map(|(table, key, _)| format!("{table} {key}")).collect();
    program.extend(["[kafka] tls".to_owned(), "[kafka] sasl".to_owned()]); // tables of their own in the example
    assert_same("config keys", &page, &program);
    for (table, key, value) in &example {
        let (_, entry) = entries.iter().find(|(name, _)| *name == format!("{table} {key}")).unwrap();
        let Some((_, default)) = entry.text.split_once("Default: \"") else { continue };
        // For these two the example shows another value than the default.
        if !["partition", "format"].contains(&key.as_str()) {
            assert!(format!("\"{default}").starts_with(value), "{table} {key} = {value}: \"{default}");
        }
    }
}

/// Fails when a word that the config accepts is not on the page.
#[test]
fn config_words() {
    let page = Page::read("logagent.toml.5").text();
    let names = text("src/config/names.rs");
    for word in between(&names, "(\"", '"') {
        let of_output = ["kafka", "stdout"].contains(&word); // an option of the command line
        let known = page.split(|c: char| !(c.is_alphanumeric() || c == '-')).any(|w| w == word);
        assert!(of_output || known, "logagent.toml(5) does not have {word:?}");
    }
}

/// Fails when the members of a `format = "json"` record differ from those on the page.
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
    let (_, files) = tables().into_iter().find(|(table, _)| table == "[[files]]").unwrap();
    let entry = files.entries().into_iter().find(|entry| entry.names == ["format"]).unwrap();
    for member in record.as_object().unwrap().keys() {
        let words = entry.text.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        assert!(words.into_iter().any(|w| w == member), "the page does not have the member {member}");
    }
}
