//! README and the other documents: their length, and that what they point to exists.

use crate::harness::{page::*, *};
use std::{fs, path::Path};

const DOCUMENTS: [&str; 4] =
    ["README.md", "tests/bench/README.md", ".github/CONTRIBUTING.md", ".github/SECURITY.md"];

/// Fails when README grows: references belong on the manual pages, measurements in tests/bench/README.md.
#[test]
fn readme_fits_on_a_few_screens() {
    let lines = text("README.md").lines().count();
    assert!(lines <= 350, "{lines} lines");
}

/// Fails when a document links to a file or a section that does not exist, or names a file of the repository that does not.
#[test]
fn what_the_documents_point_to_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for document in DOCUMENTS {
        let text = text(document);
        let headings: Names = text.lines().filter(|l| l.starts_with('#')).map(anchor).collect();
        let folder = root.join(document).parent().unwrap().to_owned();
        for link in between(&text, "](", ')') {
            if let Some(anchor) = link.strip_prefix('#') {
                assert!(headings.contains(anchor), "{document} links to the section #{anchor}");
            } else if !link.contains("://") {
                assert!(fs::exists(folder.join(link)).unwrap(), "{document} links to {link}");
            }
        }
        for word in text.split(|c: char| c.is_whitespace() || "`(),;:[]".contains(c)) {
            let ours =
                ["tests/", "systemd/", "src/", ".ci/", ".github/"].iter().any(|top| word.starts_with(top));
            let there = root.join(word.trim_end_matches('.')).exists() || folder.join(word).exists();
            assert!(!ours || there, "{document} names {word}");
        }
    }
}

/// Fails when README's config has a key or a value that the program rejects.
#[test]
fn the_config_is_valid() {
    let readme = text("README.md");
    let config = between(&readme, "```toml\n[kafka]", '`').next().expect("README has a config");
    let folder = Folder::new();
    let state = folder.path("state");
    folder.write("c.toml", format!("[agent]\nstate_dir = {state:?}\n[kafka]{config}"));
    let done = folder.agent(["check", "-c", "c.toml"]).run().expect_code(0);
    assert!(
        String::from_utf8_lossy(&done.stdout).contains("/var/log/nginx"),
        "it is this config that is checked"
    );
}

/// A heading as GitHub links to it.
fn anchor(heading: &str) -> String {
    let title = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().replace(' ', "-")
}

/// The numbers of a Markdown table's rows, by the row's name.
fn rows(text: &str) -> Vec<Vec<String>> {
    let rows = text.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| |"));
    rows.map(|row| row.replace("\\|", "\u{1}").split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

/// Fails when README gives a figure that is not in the benchmark's tables: both are written by `tests/bench/run --readme`.
#[test]
fn the_figures_are_those_of_the_benchmark() {
    let readme = text("README.md");
    let figures = between(&readme, "<!-- figures", '\u{0}').next().expect("README has the mark");
    let figures = figures.split("<!-- end of figures").next().unwrap();
    let benchmark = rows(&text("tests/bench/README.md"));
    let own = rows(figures);
    assert!(own.len() > 5, "a row for each program");
    for row in own {
        let same = benchmark.contains(&row);
        assert!(same, "not in tests/bench/README.md: {row:?}");
    }
}
