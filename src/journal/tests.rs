//! Tests with files made by systemd-journal-remote: compared with `journalctl`, damaged, rotated and vacuumed.

#[path = "../../tests/it/harness/journal_files.rs"]
mod journal_files;

use super::file::{EntryLimits, JournalFile};
use super::folder;
use super::header::ReadError;
use super::open::Scratch;
use super::render::{EntryFormat, render};
use crate::fuzz::Dice;
use journal_files::{export, messages, write_journal};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const LIMITS: EntryLimits = EntryLimits { field: 1 << 20, entry: 2 << 20 };

/// What `journalctl` prints of a file, entry by entry.
fn oracle(path: &Path) -> Vec<serde_json::Value> {
    let out = Command::new("journalctl").args(["-o", "json", "--all", "--file"]).arg(path).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// All entries of a file as JSON, and the errors met.
fn read_all(path: &Path) -> (Vec<serde_json::Value>, Vec<ReadError>) {
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    let mut journal = match folder::open(path).map_err(ReadError::Io).and_then(JournalFile::open) {
        Ok(journal) => journal,
        Err(e) => return (found, vec![e]),
    };
    let Scratch { mut pages, mut entry, .. } = Scratch::default();
    loop {
        match journal.next(&mut pages, &LIMITS, &mut entry) {
            Ok(false) => return (found, errors),
            Ok(true) => {
                let mut text = Vec::new();
                render(
                    EntryFormat::Json { long: true },
                    &journal.header.seqnum_id,
                    &entry,
                    usize::MAX,
                    &mut text,
                );
                found.push(serde_json::from_slice(&text).unwrap());
            }
            Err(e @ ReadError::Entry(_)) => errors.push(e),
            Err(e) => {
                errors.push(e);
                return (found, errors);
            }
        }
    }
}

/// As systemd before 254 prints them.
fn without_seqnum(mut entries: Vec<serde_json::Value>) -> Vec<serde_json::Value> {
    for e in &mut entries {
        let e = e.as_object_mut().unwrap();
        e.remove("__SEQNUM");
        e.remove("__SEQNUM_ID");
    }
    entries
}

fn odd_entries() -> Vec<u8> {
    let noise: Vec<u8> = (0..4000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 | 1).collect();
    let long = "a long value ".repeat(400).into_bytes();
    let mut all = messages("plain", 600);
    for i in 0..50 {
        all.extend(export(
            700 + i,
            &[
                ("MESSAGE", format!("line\nbreak {i}").as_bytes()),
                ("EMPTY", b""),
                ("TWICE", b"one"),
                ("TWICE", format!("two {i}").as_bytes()),
                ("LATIN", b"gr\xfc\xdf\x01"),
                ("TEXT", "\u{65e5} \"quoted\" \\ tab\t".as_bytes()),
                ("NOT", "\u{1fffe}\u{fdd0}".as_bytes()),
                ("NOISE", &noise[i as usize..]),
                ("LONG", &long),
            ],
        ));
    }
    all
}

/// Fails when an entry is missing, doubled, out of order, or differs from what `journalctl` prints, in either layout,
/// with compressed values, repeated fields and values that are not text.
#[test]
fn entries_as_journalctl_prints_them() {
    let dir = tempfile::tempdir().unwrap();
    for compact in [false, true] {
        let path = dir.path().join(format!("{compact}.journal"));
        write_journal(&path, compact, &odd_entries());
        let (found, errors) = read_all(&path);
        assert!(errors.is_empty(), "{errors:?}");
        let want = without_seqnum(oracle(&path));
        assert_eq!(want.len(), 650);
        for (found, want) in without_seqnum(found).iter().zip(&want) {
            assert_eq!(found, want);
        }
    }
}

/// Fails when a position is not found again, or one that is not in the file is accepted.
#[test]
fn positions_are_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.journal");
    write_journal(&path, true, &messages("m", 700));
    let mut journal = JournalFile::open(File::open(&path).unwrap()).unwrap();
    let Scratch { mut pages, mut entry, .. } = Scratch::default();
    let mut ends = vec![0];
    while journal.next(&mut pages, &LIMITS, &mut entry).unwrap() {
        ends.push(entry.end);
    }
    assert_eq!(ends.len(), 701);
    for (i, end) in ends.iter().enumerate().step_by(77) {
        assert!(journal.seek(&mut pages, *end, &mut entry).unwrap(), "{i}");
        assert_eq!(journal.unread(), 700 - i as u64);
        if journal.next(&mut pages, &LIMITS, &mut entry).unwrap() {
            assert_eq!(entry.end, ends[i + 1]);
            journal.back(&entry);
            assert!(journal.next(&mut pages, &LIMITS, &mut entry).unwrap());
            assert_eq!(entry.end, ends[i + 1]);
        }
        assert!(!journal.seek(&mut pages, end + 8, &mut entry).unwrap());
    }
    assert!(journal.seek_end(&mut pages, &mut entry).unwrap());
    assert_eq!((entry.end, journal.unread()), (ends[700], 0));
}

/// Fails when a value over the limit stops the reader, is kept whole, or hides the entries after it.
#[test]
fn values_over_the_limit_are_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.journal");
    let mut state = 1u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8 | 1
    };
    let noise: Vec<u8> = (0..3 << 20).map(|_| noise()).collect();
    let same = vec![b'x'; 3 << 20];
    let mut all = messages("before", 2);
    all.extend(export(5, &[("MESSAGE", b"noise"), ("BIG", &noise), ("A\u{5a}", b"after")]));
    all.extend(export(6, &[("MESSAGE", b"same"), ("BIG", &same), ("AZ", b"after")]));
    all.extend(messages("behind", 2));
    write_journal(&path, true, &all);
    let (found, errors) = read_all(&path);
    assert!(errors.is_empty());
    let messages: Vec<_> = found.iter().map(|e| e["MESSAGE"].as_str().unwrap()).collect();
    assert_eq!(messages, ["before 0", "before 1", "noise", "same", "behind 0", "behind 1"]);
    for e in &found[2..4] {
        assert!(e["BIG"].is_null(), "cut or dropped");
        assert_eq!(e["AZ"], "after");
    }
}

/// The offsets of all entries, and the file's bytes.
fn entry_offsets(path: &Path) -> Vec<u64> {
    let mut journal = JournalFile::open(File::open(path).unwrap()).unwrap();
    let Scratch { mut pages, mut entry, .. } = Scratch::default();
    let mut all = Vec::new();
    while journal.next(&mut pages, &LIMITS, &mut entry).unwrap() {
        all.push(entry.offset);
    }
    all
}

fn patch(path: &Path, at: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

/// Fails when one damaged entry costs others, or stops the reader.
#[test]
fn a_damaged_entry_costs_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.journal");
    write_journal(&path, false, &messages("m", 100));
    let offsets = entry_offsets(&path);
    patch(&path, offsets[40], &[9]); // the type
    patch(&path, offsets[60] + 8, &u64::MAX.to_le_bytes()); // the size
    let (found, errors) = read_all(&path);
    assert_eq!((found.len(), errors.len()), (98, 2));
    assert_eq!(found[97]["MESSAGE"], "m 99");
}

/// Fails when a slot of the entry array that points backwards makes the reader loop, or ends it.
#[test]
fn entries_that_point_backwards_are_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.journal");
    write_journal(&path, false, &messages("m", 100));
    let offsets = entry_offsets(&path);
    let bytes = fs::read(&path).unwrap();
    let slot = |n: usize| {
        let wanted = offsets[n].to_le_bytes();
        let at = |at: &usize| bytes[*at..*at + 8] == wanted;
        // The first one may be in the objects' own lists too; only the chain of all entries has two in a row.
        let next = offsets[n + 1].to_le_bytes();
        (0..bytes.len() - 16).step_by(8).find(|i| at(i) && bytes[i + 8..i + 16] == next).unwrap() as u64
    };
    patch(&path, slot(50), &offsets[3].to_le_bytes());
    let (found, errors) = read_all(&path);
    assert_eq!((found.len(), errors.len()), (99, 1));
}

/// Fails when a file that is not a journal, or has another format, is read.
#[test]
fn other_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.journal");
    write_journal(&path, false, &messages("m", 3));
    let flags = fs::read(&path).unwrap()[12];
    patch(&path, 12, &[flags | 1 << 5]);
    assert!(matches!(read_all(&path).1[..], [ReadError::Incompatible(32)]));
    patch(&path, 12, &[flags]);
    patch(&path, 0, b"X");
    assert!(matches!(read_all(&path).1[..], [ReadError::NotAJournal]));
    fs::write(&path, b"").unwrap();
    assert!(matches!(read_all(&path).1[..], [ReadError::NotAJournal]));
    let listing = folder::list(dir.path()).unwrap();
    assert!(listing.files.is_empty() && listing.refused.is_empty(), "an empty file is still being created");
}

/// Fails when damage makes the reader panic, loop, or exceed its limits.
#[test]
fn fuzz_damaged_journals() {
    let dir = tempfile::tempdir().unwrap();
    let until = std::env::var("LOGAGENT_FUZZ").map_or(1, |s| s.parse().unwrap());
    let until = Instant::now() + Duration::from_secs(until);
    let mut dice = Dice(7);
    let (mut rounds, mut read) = (0u64, 0u64);
    for compact in [false, true].into_iter().cycle() {
        if Instant::now() > until && rounds > 1 {
            break;
        }
        let path = dir.path().join(format!("{compact}.journal"));
        if !path.exists() {
            write_journal(&path, compact, &odd_entries());
        }
        let whole = fs::read(&path).unwrap();
        let used = JournalFile::open(File::open(&path).unwrap()).unwrap().header.tail_object + 512;
        let scratch_path: PathBuf = dir.path().join("damaged");
        fs::write(&scratch_path, &whole[..used as usize]).unwrap();
        for _ in 0..20 {
            let file = File::options().read(true).write(true).open(&scratch_path).unwrap();
            let mut touched = Vec::new();
            for _ in 0..=dice.below(20) {
                let at = if dice.below(4) == 0 { dice.below(272) } else { dice.below(used - 8) };
                let (at, len) = if dice.below(3) == 0 { (at & !7, 8) } else { (at, 1 + dice.below(4)) };
                let lie = [0, u64::MAX, dice.below(used) & !7, dice.next()][dice.below(4) as usize];
                file.write_all_at(&lie.to_le_bytes()[..len as usize], at).unwrap();
                touched.push((at as usize, len as usize));
            }
            if dice.below(20) == 0 {
                file.set_len(dice.below(used)).unwrap();
            }
            let began = Instant::now();
            read += read_damaged(file.try_clone().unwrap());
            assert!(began.elapsed() < Duration::from_secs(5), "{:?} for {touched:?}", began.elapsed());
            file.set_len(used).unwrap();
            for (at, len) in touched {
                file.write_all_at(&whole[at..at + len], at as u64).unwrap();
            }
            if rounds % 20 == 0 {
                file.write_all_at(&whole[..used as usize], 0).unwrap(); // the part that was cut off
            }
            rounds += 1;
        }
    }
    println!("{rounds} rounds, {read} entries");
}

fn read_damaged(file: File) -> u64 {
    let Ok(mut journal) = JournalFile::open(file) else { return 0 };
    let Scratch { mut pages, mut entry, .. } = Scratch::default();
    let _ = journal.seek(&mut pages, 100_000, &mut entry);
    let _ = journal.seek(&mut pages, 0, &mut entry);
    let (mut read, mut line) = (0, Vec::new());
    loop {
        line.clear();
        match journal.next(&mut pages, &LIMITS, &mut entry) {
            Ok(true) => {
                read += 1;
                render(EntryFormat::Json { long: true }, &[0; 16], &entry, 100_000, &mut line);
                assert!(line.len() <= 100_000);
            }
            Ok(false) => return read,
            Err(ReadError::Entry(_)) => {}
            Err(ReadError::Chain) if journal.skip_slot() => {}
            Err(_) => {
                journal.give_up();
                return read;
            }
        }
    }
}

/// A rotation between listing and opening gives a listed name to another file. Fails when that file is read under the position
/// of the listed one.
#[test]
fn a_name_that_moves_after_the_listing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("system.journal");
    write_journal(&path, true, &messages("old", 3));
    let listed = folder::list(dir.path()).unwrap().files.remove(0);
    assert!(folder::open_listed(&listed).is_some());
    fs::copy(&path, dir.path().join("system@1.journal")).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(folder::open_listed(&listed).is_none(), "not there yet");
    write_journal(&path, true, &messages("new", 3));
    assert!(folder::open_listed(&listed).is_none(), "another file");
}
