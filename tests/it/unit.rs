//! The systemd unit as systemd parses it: its keys, its sandbox, and the numbers that it shares with the program.
//! Starts nothing: that is `tests/service`.

use crate::harness::*;
use std::process::Command;

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/logagent.service");

/// Exit code and combined output.
fn analyze(args: &[&str]) -> (Option<i32>, String) {
    need("systemd-analyze");
    let done = Command::new("systemd-analyze").env("SYSTEMD_LOG_LEVEL", "info").args(args).output().unwrap();
    let said = [done.stdout, done.stderr].concat();
    (done.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// The unit with the path of the tested program, which exists.
fn unit(folder: &Folder) -> String {
    let text = std::fs::read_to_string(UNIT).unwrap();
    assert!(text.contains("ExecStart=/usr/bin/logagent "));
    let program = binary().display().to_string();
    folder.write("logagent.service", text.replace("/usr/bin/logagent", &program)).display().to_string()
}

/// Fails when a key is misspelt, has a value that systemd rejects, or is newer than the oldest systemd the unit
/// supports.
#[test]
fn systemd_analyze_verify_is_clean() {
    let folder = Folder::new();
    let (code, said) = analyze(&["verify", "--man=no", &unit(&folder)]);
    // It also loads the targets that want the unit, and comments on those.
    assert!(!said.contains("logagent"), "{said}");
    assert!(code == Some(0) || !said.is_empty(), "{code:?}");
}

/// Fails when a part of the sandbox is removed.
#[test]
fn exposure_is_at_most_1_5() {
    let folder = Folder::new();
    let (code, said) =
        analyze(&["security", "--offline=true", "--threshold=15", "--no-pager", &unit(&folder)]);
    let last = said.lines().last().unwrap_or_default();
    println!("{last}");
    assert_eq!(code, Some(0), "(systemd 250 or newer is needed) {said}");
    assert!(last.contains("Overall exposure level"), "{said}");
}

/// Fails when the unit kills an agent that is still draining, or its limits differ from those the program assumes.
#[test]
fn limits_match_the_program() {
    let text = std::fs::read_to_string(UNIT).unwrap();
    let value = |key: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("{key}")).trim_end_matches('s').to_owned()
    };
    let number = |key: &str| value(key).parse::<u64>().unwrap();
    assert!(number("TimeoutStopSec") > 10 + 10, "drain_timeout, and the last save");
    assert!(number("WatchdogSec") >= 60, "the agent wakes each 30 s");
    let program = include_str!("../../src/fdstore.rs");
    assert!(program.contains(&format!("const ROOM: usize = {};", number("FileDescriptorStoreMax"))));
    assert_eq!(value("RestartPreventExitStatus"), "64 78");
}

/// The drop-in that the unit's comment suggests for logs that group `adm` cannot read. Fails when systemd rejects a key of it,
/// or when the secrets that every machine has could be followed through a link.
#[test]
fn suggested_capability_hides_the_usual_secrets() {
    let folder = Folder::new();
    let text = std::fs::read_to_string(unit(&folder)).unwrap();
    let suggested = text.lines().skip_while(|line| *line != "#   [Service]").skip(1);
    let keys: Vec<&str> = suggested.map_while(|line| line.strip_prefix("#   ")).collect();
    assert!(keys.contains(&"AmbientCapabilities=CAP_DAC_READ_SEARCH"), "{keys:?}");
    let hidden: Vec<&str> = keys
        .iter()
        .filter_map(|key| key.strip_prefix("InaccessiblePaths="))
        .flat_map(|p| p.split(' '))
        .collect();
    for secret in ["/etc/shadow", "/etc/gshadow", "/etc/ssh", "/etc/ssl/private", "/etc/krb5.keytab", "/root"]
    {
        // A path that does not exist is no error.
        assert!(hidden.contains(&format!("-{secret}").as_str()), "{secret} is not in {hidden:?}");
    }
    let unit = folder.write("logagent.service", format!("{text}\n[Service]\n{}\n", keys.join("\n")));
    let (_, said) = analyze(&["verify", "--man=no", &unit.display().to_string()]);
    assert!(!said.contains("logagent"), "{said}");
}
