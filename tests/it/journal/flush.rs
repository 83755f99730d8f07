//! A journal that moves from /run to /var: journald copies its entries there, with new numbers, and removes the old files.

use super::loss::lost;
use super::*;
use std::fs;
use std::path::{Path, PathBuf};

/// Runs a program that sees the folders `log` and `run` as /var/log and /run.
const SHELL: &str = "mount --bind log /var/log && mount --bind run /run && exec \"$@\"";

fn unshared() -> [&'static str; 7] {
    need("unshare");
    ["unshare", "--map-root-user", "--mount", "sh", "-c", SHELL, "sh"]
}

/// A config without `directory`, and this machine's journal folders in /run and in /var, of which the first exists.
fn in_memory() -> (Folder, PathBuf, PathBuf) {
    let folder = Folder::new();
    let text =
        format!("[agent]\nstate_dir = {:?}\n[[journal]]\nstart = \"beginning\"\n", folder.path("state"));
    folder.write("c.toml", text);
    let machine = fs::read_to_string("/etc/machine-id").expect("a machine ID");
    let of = |root: PathBuf| root.join("journal").join(machine.trim());
    let (run, var) = (of(folder.mkdir("run/log")), of(folder.mkdir("log")));
    fs::create_dir_all(&run).unwrap();
    (folder, run, var)
}

fn once(folder: &Folder) -> Vec<String> {
    let lines = folder.started_by(unshared(), &format!("{LIVE} --once")).run().expect_code(0).lines();
    lines.into_iter().map(|l| String::from_utf8(l).unwrap()).collect()
}

/// Entries of one moment.
fn burst(numbers: std::ops::Range<u64>) -> Vec<u8> {
    numbers.flat_map(|n| export(50, &[("MESSAGE", format!("burst {n}").as_bytes())])).collect()
}

/// Copies into a folder in which an earlier boot left entries, so that the copies have other numbers.
fn flush(folder: &Folder, run: &Path, var: &Path, entries: &[u8]) {
    let made = var.with_file_name("being-made");
    fs::create_dir_all(&made).unwrap();
    let earlier =
        String::from_utf8(messages("earlier", 5)).unwrap().replace("0123456789abcdef", "fedcba9876543210");
    write_journal(&made.join("system.journal"), true, &[earlier.as_bytes(), entries].concat());
    folder.rename(made.to_str().unwrap(), var.to_str().unwrap());
    fs::remove_dir_all(run).unwrap();
}

/// Fails when entries delivered from /run are sent again from /var, or when those not delivered yet are skipped, though they
/// have the same time as the last one delivered.
#[test]
fn flushed_while_no_agent_runs() {
    let (folder, run, var) = in_memory();
    let (before, after) = ([messages("a", 10), burst(0..2)].concat(), burst(2..4));
    write_journal(&run.join("system.journal"), true, &before);
    assert_eq!(once(&folder), [numbered("a", 0..10), numbered("burst", 0..2)].concat());
    let later = export(60, &[("MESSAGE", b"later")]);
    flush(&folder, &run, &var, &[before, after, later].concat());
    let want = [numbered("earlier", 0..5), numbered("burst", 2..4), vec!["later".into()]].concat();
    assert_eq!(once(&folder), want);
    assert_eq!(once(&folder), [""; 0]);
    assert_eq!(lost(&folder), 0);
}

/// Fails when a restarted agent, which has read nothing new in /run, sends its entries again from /var.
#[test]
fn flushed_while_the_agent_runs() {
    let (folder, run, var) = in_memory();
    let before = [messages("a", 10), burst(0..2)].concat();
    write_journal(&run.join("system.journal"), true, &before);
    assert_eq!(once(&folder).len(), 12);
    let mut agent = folder.started_by(unshared(), LIVE).start();
    let state = folder.path("state");
    wait_status(&folder, &state, "it is followed", |s| s["files"][0]["state"] == "following");
    let later = export(60, &[("MESSAGE", b"later")]);
    flush(&folder, &run, &var, &[before, later].concat());
    let lines: Vec<_> = agent.wait_lines(6).into_iter().map(|l| String::from_utf8(l).unwrap()).collect();
    assert_eq!(lines, [numbered("earlier", 0..5), vec!["later".into()]].concat());
    agent.stop().expect_code(0);
    assert_eq!(once(&folder), [""; 0]);
    assert_eq!(lost(&folder), 0);
}

/// journald no longer keeps its journal on disk, but what it wrote there is left. Fails when nothing says that the entries in
/// memory are not read.
#[test]
fn a_folder_that_is_left_on_disk() {
    let (folder, run, var) = in_memory();
    fs::create_dir_all(&var).unwrap();
    write_journal(&var.join("system.journal"), true, &messages("old", 3));
    write_journal(&run.join("system.journal"), true, &export(60, &[("MESSAGE", b"new")]));
    let wanted = "journald writes to /run/log/journal/";
    let done = folder.started_by(unshared(), &format!("{LIVE} --once")).run().expect_code(0);
    assert!(done.stderr.contains(wanted), "{}", done.stderr);
    let kafka = "topic = \"t\"\n[kafka]\nbrokers = [\"127.0.0.1:1\"]\n";
    folder.write("c.toml", fs::read_to_string(folder.path("c.toml")).unwrap() + kafka);
    let done = folder.started_by(unshared(), "check -c c.toml").run();
    let said = String::from_utf8(done.stdout).unwrap() + &done.stderr;
    assert!(said.contains(wanted), "{said}");
    fs::remove_dir_all(&var).unwrap();
    let done = folder.started_by(unshared(), "check -c c.toml").run();
    assert!(!String::from_utf8(done.stdout).unwrap().contains(wanted));
}

/// Fails when `tail --journal` asks for a file, or prints what no unit named by `-u` has written.
#[test]
fn tail_prints_messages() {
    let (folder, run, _) = in_memory();
    let other = export(60, &[("MESSAGE", b"of another unit"), ("_SYSTEMD_UNIT", b"b.service")]);
    let entries = [messages("a", 2), other, export(61, &[("MESSAGE", b"of none")])].concat();
    write_journal(&run.join("system.journal"), true, &entries);
    let mut agent = folder.started_by(unshared(), "tail --journal --from beginning").spawn();
    assert_eq!(agent.wait_lines(4), [&b"a 0"[..], b"a 1", b"of another unit", b"of none"]);
    agent.stop().expect_code(0);
    let line = "tail --journal --from beginning -u a.service -u b.service";
    let mut agent = folder.started_by(unshared(), line).spawn();
    assert_eq!(agent.wait_lines(3), [&b"a 0"[..], b"a 1", b"of another unit"]);
    write_journal(&run.join("system.journal"), true, &messages("later", 1));
    assert_eq!(agent.wait_lines(4)[3], b"later 0");
    agent.stop().expect_code(0);
}
