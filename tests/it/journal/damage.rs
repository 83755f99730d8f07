//! Damaged objects of journal files: each costs only what it holds, is counted, and stops nothing.

use super::loss::lost;
use super::oddities::patch;
use super::*;
use std::fs;

const DAMAGED: &[u8] = &[99];

fn bytes_of(folder: &Folder, name: &str) -> Vec<u8> {
    fs::read(folder.path("journal").join(name)).unwrap()
}

fn u64_at(bytes: &[u8], at: u64) -> u64 {
    u64::from_le_bytes(bytes[at as usize..at as usize + 8].try_into().unwrap())
}

/// Gives the second entry array another type. Returns how many entries the first one lists.
fn damage_array(folder: &Folder, name: &str) -> u64 {
    let bytes = bytes_of(folder, name);
    let first = u64_at(&bytes, 176);
    patch(folder, name, u64_at(&bytes, first + 16), DAMAGED);
    (u64_at(&bytes, first + 8) - 24) / 4
}

fn damaged(folder: &Folder) -> u64 {
    status_json(folder, &folder.path("state"))["totals"]["damaged_entries"].as_u64().unwrap()
}

/// Fails when a damaged value costs more than its field, or a damaged entry more than itself, or is not counted.
#[test]
fn a_value_and_an_entry() {
    let folder = with_journal("format = \"json\"");
    append(&folder, "system.journal", "a", 5);
    let bytes = bytes_of(&folder, "system.journal");
    let message = memchr::memmem::find(&bytes, b"MESSAGE=a 2").unwrap() as u64;
    patch(&folder, "system.journal", message - 72, DAMAGED);
    let (mut at, mut entries) = (u64_at(&bytes, 88), Vec::new());
    while at <= u64_at(&bytes, 136) {
        entries.extend((bytes[at as usize] == 3).then_some(at));
        at += u64_at(&bytes, at + 8).next_multiple_of(8);
    }
    patch(&folder, "system.journal", entries[3], DAMAGED);
    let found: Vec<serde_json::Value> =
        once(&folder).iter().map(|l| serde_json::from_str(l).unwrap()).collect();
    let found: Vec<_> = found.iter().map(|e| (e["MESSAGE"].as_str(), e["_SYSTEMD_UNIT"].as_str())).collect();
    assert_eq!(found, [Some("a 0"), Some("a 1"), None, Some("a 4")].map(|m| (m, Some("a.service"))));
    let totals = status_json(&folder, &folder.path("state"))["totals"].clone();
    assert_eq!((totals["damaged_entries"].as_u64(), totals["cut"].as_u64()), (Some(1), Some(1)), "{totals}");
    assert_eq!(lost(&folder), 0);
    assert_eq!(once(&folder), [""; 0]);
}

/// Fails when a damaged entry array in a rotated file costs entries before it or in other files, or is not counted, or counts
/// as lost too; when one in a file that is still written keeps the agent busy, or keeps other files from being read.
#[test]
fn an_entry_array() {
    let folder = with_journal("");
    append(&folder, "system@1.journal", "a", 100);
    append(&folder, "system.journal", "b", 100);
    let listed = damage_array(&folder, "system@1.journal");
    assert!(listed < 50, "{listed}");
    assert_eq!(damage_array(&folder, "system.journal"), listed);
    let mut agent = folder.agent_line(LIVE).start();
    let mut want = [numbered("a", 0..listed), numbered("b", 0..listed)].concat();
    agent.wait_lines(want.len());
    let before = agent.cpu();
    pause(secs(2));
    assert!(agent.cpu() - before < millis(300), "{:?} of CPU in 2 s", agent.cpu() - before);
    assert_eq!(damaged(&folder), 100 - listed, "the other file may be about to be completed");
    append(&folder, "user-1000.journal", "u", 3);
    want.extend(numbered("u", 0..3));
    agent.wait_lines(want.len());
    folder.rename("journal/system.journal", "journal/system@2.journal");
    append(&folder, "system.journal", "c", 3);
    want.extend(numbered("c", 0..3));
    let lines: Vec<_> =
        agent.wait_lines(want.len()).into_iter().map(|l| String::from_utf8(l).unwrap()).collect();
    assert_eq!(lines, want);
    agent.stop().expect_code(0);
    assert_eq!((damaged(&folder), lost(&folder)), (2 * (100 - listed), 0));
    assert_eq!(once(&folder), [""; 0]);
}
