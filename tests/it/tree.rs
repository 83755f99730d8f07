//! Repository rules that the compiler does not check. Only reads files.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files that git would commit; without git, everything but `target`.
fn files() -> Vec<PathBuf> {
    let git = Command::new("git")
        .current_dir(root())
        .args(["ls-files", "-co", "--exclude-standard", "-z"])
        .output();
    if let Ok(out) = git
        && out.status.success()
    {
        let names = out.stdout.split(|b| *b == 0).filter(|n| !n.is_empty());
        let paths = names.map(|n| PathBuf::from(String::from_utf8_lossy(n).into_owned()));
        return paths.filter(|p| root().join(p).exists()).collect();
    }
    let mut found = Vec::new();
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            match (path.is_dir(), entry.file_name().to_str()) {
                (true, Some("target" | ".git")) => {}
                (true, _) => folders.push(path),
                (false, _) => found.push(path.strip_prefix(root()).unwrap().to_owned()),
            }
        }
    }
    found
}

fn sources() -> Vec<(String, String)> {
    let rust =
        files().into_iter().filter(|p| p.starts_with("src") && p.extension().is_some_and(|e| e == "rs"));
    rust.map(|p| (p.display().to_string(), fs::read_to_string(root().join(&p)).unwrap())).collect()
}

/// Code without line comments and string literals, which may mention anything.
fn code(text: &str) -> impl Iterator<Item = String> {
    text.lines().map(|line| {
        let line = line.split("//").next().unwrap_or("").replace("\\\"", "");
        line.split('"').step_by(2).collect::<Vec<_>>().join("\"\"")
    })
}

/// Fails when a dependency pulls in a runtime or a C library that a static binary should not have.
#[test]
fn no_runtime_and_no_openssl_in_the_lock() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let names: BTreeSet<&str> =
        lock.lines().filter_map(|l| l.strip_prefix("name = \"")?.strip_suffix('"')).collect();
    assert!(names.contains("logagent") && names.contains("kafka"), "this is the right lock file");
    for banned in [
        "tokio",
        "mio",
        "async-std",
        "smol",
        "async-io",
        "async-global-executor",
        "futures-executor",
        "openssl",
        "openssl-sys",
        "native-tls",
        "rdkafka",
        "rdkafka-sys",
    ] {
        assert!(!names.contains(banned), "{banned} is in Cargo.lock");
    }
}

/// Fails when an unexpected file or folder appears at the top of the repository.
#[test]
fn the_top_of_the_repository_is_small() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "README.md",
        "src",
        "systemd",
        "tests",
        ".cargo",
        ".ci",
        ".github",
        ".gitignore",
        "LICENSE",
        "CHANGELOG.md",
        "clippy.toml",
        "rustfmt.toml",
        "deny.toml",
    ];
    let tops: BTreeSet<String> = files()
        .iter()
        .map(|p| p.components().next().unwrap().as_os_str().to_string_lossy().into_owned())
        .collect();
    for top in tops {
        assert!(allowed.contains(&top.as_str()), "{top} at the top of the repository");
    }
    assert!(!root().join("src/lib.rs").exists(), "one binary crate: dead public code stays visible");
}

/// Fails when a type name is used for two types, when files import each other in a circle, or when one folder holds more
/// than a quarter of the program. Seen to fail with a second `struct Batch`.
#[test]
fn structure() {
    let done = std::process::Command::new(root().join("tests/structure")).output().expect("python3");
    let report = String::from_utf8(done.stdout).unwrap();
    for rule in ["type names that exist more than once: 0,", "import cycles between files: 0,"] {
        assert!(report.contains(rule), "{rule}\n{report}");
    }
    assert!(done.status.success() && !report.contains("over 25 %"), "{report}");
}

/// Each of these crates, and unsafe code, is used in one place only. Fails when it is used elsewhere.
#[test]
fn each_crate_is_used_in_one_place() {
    for (words, allowed) in [
        (&["inotify::", "use inotify"][..], &["src/watch/watches.rs"][..]),
        (&["kafka::", "use kafka;"], &["src/kafka_crate.rs", "src/kafka_crate/"]),
        // A dev-dependency, for tests only.
        (&["kafka_protocol"], &["src/kafka/"]),
        (&["signal_hook"], &["src/signals.rs"]),
        (&["argh::", "use argh"], &["src/cli.rs"]),
        (&["env_logger"], &["src/logging.rs"]),
        (&["rustls"], &["src/kafka/net/"]),
        (
            &["zstd::", "snap::", "lz4_flex::"],
            &["src/kafka/protocol/codec.rs", "src/kafka/protocol/lz4.rs", "src/journal/decompress.rs"],
        ),
        (
            &["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe_code"],
            &["src/sys.rs", "src/sys/"],
        ),
    ] {
        for (path, text) in sources() {
            let free = allowed.iter().any(|a| path == *a || (a.ends_with('/') && path.starts_with(a)));
            let used = code(&text).find(|line| {
                words.iter().any(|word| {
                    // not `crate::kafka::`, nor the end of another word
                    line.match_indices(word).any(|(at, _)| {
                        !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_:".contains(c))
                    })
                })
            });
            assert!(free || used.is_none(), "{path} uses what only {allowed:?} may: {used:?}");
        }
    }
}

/// Fails when a stage imports another one, or the config.
#[test]
fn stages_do_not_import_each_other() {
    const STAGES: [&str; 5] = ["watch", "tail", "journal", "producer", "state"];
    for (path, text) in sources() {
        if path.starts_with("src/producer/sim") || path.starts_with("src/tail/simulated") {
            continue; // the simulators cover several stages
        }
        let Some(stage) =
            STAGES.iter().find(|s| path == format!("src/{s}.rs") || path.starts_with(&format!("src/{s}/")))
        else {
            continue;
        };
        // Drivers import the producer's types, never the reverse.
        let drivers: &[&str] = if *stage == "producer" { &["kafka", "kafka_crate", "stdout"] } else { &[] };
        for other in STAGES.iter().filter(|s| s != &stage).chain(&["config", "commands"]).chain(drivers) {
            let reach = format!("crate::{other}::");
            // A test may compare one stage with another.
            let found = code(production(&text)).find(|line| line.contains(&reach));
            assert!(found.is_none(), "{path} imports {other}: {found:?}");
        }
    }
}

/// What these modules may import; a module that is not named here is checked by the other tests only. They are the
/// vocabulary and the tables that all stages share.
const MAY_IMPORT: [(&str, &[&str]); 4] = [
    ("record", &[]),
    ("streams", &["lock", "record", "waker", "wake_slot"]),
    (
        "report",
        &[
            "budget",
            "error",
            "heartbeat",
            "lock",
            "private_file",
            "quota",
            "record",
            "streams",
            "traffic",
            "waker",
        ],
    ),
    ("exactly_once", &["backoff", "chunk", "private_file", "producer", "record", "report", "streams"]),
];

/// `record` ← `streams` ← the stages, and `report` only reads. Fails when one of [`MAY_IMPORT`] imports more, or when a file
/// outside of `config` and `commands` knows both ends of the data's way.
#[test]
fn imports_follow_the_data() {
    for (path, text) in sources() {
        let module = path["src/".len()..].split('/').next().unwrap().trim_end_matches(".rs");
        if is_test(&path) || matches!(module, "config" | "commands" | "fuzz") {
            continue;
        }
        let imports = |name: &str| code(production(&text)).any(|l| l.contains(&format!("crate::{name}::")));
        let reads = ["watch", "tail", "journal"].iter().any(|m| imports(m) || *m == module);
        assert!(!(reads && (imports("producer") || module == "producer")), "{path} reads and sends");
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(of, _)| *of == module) else { continue };
        for line in code(production(&text)) {
            for (at, start) in line.match_indices("crate::") {
                let rest = &line[at + start.len()..];
                let name = rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap();
                assert!(allowed.contains(&name) || name == module, "{path} imports {name}: {line}");
            }
        }
    }
}

/// A file of tests, or of the simulator, which covers several stages.
fn is_test(path: &str) -> bool {
    ["/tests", "_tests", "/testing", "/sim", "/scripted", "/mutated", "/simulated"]
        .iter()
        .any(|t| path.contains(t))
}

/// A file's text without its tests.
fn production(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap()
}

/// Errors are typed: no code looks into the text of one, and none splits a message of ours again. Fails when it does.
#[test]
fn no_message_is_parsed() {
    let looks = ["contains(", "starts_with(", "ends_with(", "strip_prefix(", "split_once(", "find(", " == "];
    let splits =
        ["split(\"; \")", "split_once(\"; \")", "rsplit(\"; \")", "split(\": \")", "split_once(\": \")"];
    for (path, text) in sources().into_iter().filter(|(path, _)| !is_test(path)) {
        for line in production(&text).lines().filter(|line| !line.trim_start().starts_with("//")) {
            let of_an_error = line.split_once(".to_string()").is_some_and(|(before, after)| {
                let error = before.ends_with(['e', ')']) || before.ends_with("err");
                error
                    && looks
                        .iter()
                        .any(|look| after.starts_with('.') && after.contains(look) || after.starts_with(look))
            });
            let splits = splits.iter().any(|split| line.contains(split));
            assert!(!of_an_error && !splits, "{path}: {line}");
        }
    }
}

/// Fails when a file contains the path of a developer's machine.
#[test]
fn no_paths_of_a_developers_machine() {
    let own = root().display().to_string();
    let is_plain = own.matches('/').count() < 2; // many lines contain "/src"
    // Split in two, so that this file does not contain them.
    let homes = [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/"), concat!("/wo", "rk/")];
    for path in files() {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for (at, line) in text.lines().enumerate() {
            assert!(is_plain || !line.contains(&own), "{}:{}: {own}", path.display(), at + 1);
            for home in homes {
                let absolute = line.match_indices(home).any(|(i, _)| {
                    !line[..i].ends_with(|c: char| c.is_alphanumeric() || "._-*}~/".contains(c))
                });
                assert!(!absolute, "{}:{}: a path under {home}: {line}", path.display(), at + 1);
            }
        }
    }
}

/// Fails when a file refers to a document that does not exist.
#[test]
fn referenced_documents_exist() {
    for path in files() {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for word in text.split(|c: char| !(c.is_alphanumeric() || "_-./".contains(c))) {
            let is_document = word.len() > 3 && word.ends_with(".md") && !word.contains("://");
            let here = root().join(word).exists() || root().join(&path).parent().unwrap().join(word).exists();
            assert!(!is_document || here, "{}: {word} is not in the repository", path.display());
        }
    }
}

/// Fails when a script or service file needs something outside the repository.
#[test]
fn scripts_stay_inside_the_repository() {
    for path in
        files().into_iter().filter(|p| [".ci", "tests", "systemd"].iter().any(|top| p.starts_with(top)))
    {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        if !text.starts_with("#!") && path.extension().is_none_or(|e| e != "sh") {
            continue;
        }
        // Scripts change to the repository's root first, so `../` leaves it.
        let leaves = |line: &&str| {
            let words = line.split(|c: char| c.is_whitespace() || "\"'=(:-".contains(c));
            words.into_iter().any(|word| word.starts_with("../") && word.len() > "../".len())
        };
        let found = text.lines().find(leaves);
        assert!(found.is_none(), "{}: {found:?}", path.display());
    }
}

/// Where the language is checked.
const PLAIN_ENGLISH: [&str; 9] =
    ["README.md", "CHANGELOG.md", "Cargo.toml", "clippy.toml", "systemd", ".github", ".ci", "src", "tests"];

/// This file has to name the phrases.
const NOT_CHECKED: &str = "tests/it/tree.rs";

/// Phrases that read like a translation.
const MARKERS: [&str; 35] = [
    "anew",
    "taken up",
    "takes up",
    "take up",
    "let go",
    "lets go",
    "first sight",
    "nobody",
    "somebody",
    "whoever",
    "the one that",
    "for want of",
    "dear",
    "in the midst",
    "goes on",
    "go on",
    "comes back",
    "is told",
    "is said",
    "by itself",
    "by themselves",
    "as it stands",
    "for ever",
    "anybody",
    "everybody",
    "nobody's",
    "unborn",
    "are told",
    "stands still",
    "stood still",
    "of late",
    "now and then",
    "again and again",
    "what came of",
    "is said of",
];

/// Fails when one of [`MARKERS`] is used in [`PLAIN_ENGLISH`].
#[test]
fn plain_english() {
    for path in files() {
        if !PLAIN_ENGLISH.iter().any(|top| path.starts_with(top)) || path.starts_with(NOT_CHECKED) {
            continue;
        }
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        let text = text.to_lowercase();
        // Markers may span two lines.
        let words: Vec<&str> =
            text.split(|c: char| !(c.is_alphanumeric() || c == '\'')).filter(|w| !w.is_empty()).collect();
        let text = format!(" {} ", words.join(" "));
        for marker in MARKERS {
            assert!(
                !text.contains(&format!(" {marker} ")),
                "{}: {marker:?}: use plain English",
                path.display()
            );
        }
    }
}

/// Fails when a file does not describe itself in its first line.
#[test]
fn every_file_describes_itself() {
    for path in files() {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        let name = path.display();
        if path.extension().is_some_and(|e| e == "rs") {
            assert!(text.starts_with("//!"), "{name} begins with a description");
        } else if let Some(rest) = text.strip_prefix("#!") {
            assert!(
                rest.lines().nth(1).is_some_and(|l| l.starts_with("# ")),
                "{name} begins with a description"
            );
            assert!(
                rest.starts_with("/bin/sh")
                    || rest.starts_with("/usr/bin/env python3\n") // Python stops at an exception
                    || text.contains("\nset -euo pipefail\n"),
                "{name} stops at the first failure"
            );
        }
    }
}
