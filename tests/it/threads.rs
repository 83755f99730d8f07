//! More files than threads: the limit is per user (`ulimit -u`) and does not apply to root.

use crate::harness::*;
use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, chown};

/// An agent that may have `limit` threads; as a separate user where the tests run as root.
fn limited(folder: &Folder, limit: u64, args: &str) -> Setup {
    need("prlimit");
    need("setpriv");
    let bin = folder.path("logagent");
    std::fs::copy(binary(), &bin).unwrap();
    std::fs::set_permissions(&bin, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut starter = Vec::new();
    if rustix::process::geteuid().is_root() {
        let user = user_of(folder);
        for entry in std::fs::read_dir(folder.root()).unwrap().flatten() {
            chown(entry.path(), Some(user), Some(user)).unwrap();
        }
        chown(folder.root(), Some(user), Some(user)).unwrap();
        starter.push(format!("prlimit --nproc={limit}:{limit}"));
        starter.push(format!("setpriv --reuid {user} --regid {user} --clear-groups"));
    } else {
        let limit = limit + own_threads();
        starter.push(format!("prlimit --nproc={limit}:{limit}"));
    }
    let words = starter.join(" ");
    let bin = bin.display().to_string();
    folder
        .agent(Vec::<&str>::new())
        .replaced_by(words.split(' ').chain([bin.as_str()]).chain(args.split(' ')))
}

/// The limit counts all threads of a user, so each folder gets its own user id.
fn user_of(folder: &Folder) -> u32 {
    use std::os::unix::fs::MetadataExt;
    let made = std::fs::metadata(folder.root()).unwrap();
    if made.uid() == 0 { 1_000_000 + (made.ino() % 1_000_000) as u32 } else { made.uid() }
}

/// Threads of the user that runs the tests.
fn own_threads() -> u64 {
    let user = rustix::process::getuid().as_raw().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let threads = processes.filter_map(|p| {
        let status = std::fs::read_to_string(p.path().join("status")).ok()?;
        let field = |name: &str| {
            status.lines().find_map(|l| l.strip_prefix(name))?.split_whitespace().next().map(str::to_owned)
        };
        field("Threads:").filter(|_| field("Uid:").as_ref() == Some(&user))?.parse::<u64>().ok()
    });
    threads.sum()
}

/// Names of the files that status reports as waiting for a thread.
fn waiting(folder: &Folder) -> BTreeSet<String> {
    let status = status_json(folder, &folder.path("state"));
    let files = status["files"].as_array().unwrap().iter();
    let waits = files.filter(|f| {
        f["state"] == "unreadable" && f["stuck_because"].as_str().is_some_and(|w| w.contains("no thread"))
    });
    let name = |f: &serde_json::Value| f["path"].as_str()?.rsplit('/').next().map(str::to_owned);
    waits.filter_map(name).collect()
}

/// Fails when the agent exits because it has no thread left, or when a file without one is not shown as unreadable,
/// loses its position (while it waits, when rotated, or across a restart), or is not read once threads are available.
#[test]
fn more_files_than_threads() {
    const FILES: usize = 120;
    let folder = Folder::new();
    let names: Vec<String> = (0..FILES).map(|i| format!("f{i:03}")).collect();
    let lines = |name: &str, range| Lines { range, ..Lines::new(name, 0..0) };
    let mut want: Vec<Lines> = Vec::new();
    for name in &names {
        folder.append(&format!("{name}.log"), lines(name, 0..5).bytes()); // existing lines: start = "end"
        want.push(lines(name, 5..10));
    }
    let run = "run --output stdout --state-dir state f*.log";
    let mut agent = limited(&folder, 80, run).spawn();
    agent.wait_log(&format!("following {FILES} file(s)"), SOON);
    assert_eq!(agent.log().matches("no thread is free to read it").count(), 1, "{}", agent.log());
    let waits = waiting(&folder);
    assert!(waits.len() > FILES / 4 && waits.len() < FILES, "{} wait", waits.len());
    for name in &names {
        folder.append(&format!("{name}.log"), lines(name, 5..10).bytes());
    }
    let mut seen = agent.wait_lines((FILES - waits.len()) * 5);
    let rotated = waits.last().unwrap().clone();
    folder.rename(&rotated, &format!("{rotated}.1"));
    let name = rotated.strip_suffix(".log").unwrap();
    folder.append(&rotated, lines(name, 10..12).bytes());
    want.push(lines(name, 10..12));
    assert!(agent.ended().is_none(), "{}", agent.log());
    agent.stop().expect_code(0);

    let mut agent = limited(&folder, 80, run).spawn();
    agent.wait_log("no thread is free to read it", SOON);
    // Files that are being read are removed, which frees their threads for others.
    let read = |seen: &[Vec<u8>], name: &str| {
        let prefix = format!("{name} ").into_bytes();
        seen.iter().filter(|l| l.starts_with(&prefix)).count() >= 5
    };
    wait_until(PATIENT, "every file is read", || {
        let all: Vec<Vec<u8>> = seen.iter().chain(&agent.lines()).cloned().collect();
        for name in names.iter().filter(|name| !rotated.starts_with(*name) && read(&all, name)) {
            let _ = std::fs::remove_file(folder.path(format!("{name}.log")));
        }
        all.len() >= FILES * 5 + 2
    });
    agent.wait_log("every file has a thread again", SOON);
    assert_eq!(waiting(&folder), BTreeSet::new());
    agent.stop().expect_code(0);
    seen.extend(agent.lines());
    Delivered::of(seen).assert_exactly_once(&want.iter().collect::<Vec<_>>());
}

/// Fails when `--once` does not read files that got no thread at first, or exits before it has read them.
#[test]
fn once_reads_more_files_than_threads() {
    let folder = Folder::new();
    let names: Vec<String> = (0..120).map(|i| format!("f{i:03}")).collect();
    for name in &names {
        folder.append(&format!("{name}.log"), Lines::new(name, 0..5).bytes());
    }
    let done = limited(&folder, 80, "run --once --output stdout f*.log").run_for(PATIENT).expect_code(0);
    let want: Vec<Lines> = names.iter().map(|name| Lines::new(name, 0..5)).collect();
    Delivered::of(done.lines()).assert_exactly_once(&want.iter().collect::<Vec<_>>());
}

/// Fails when `check` does not say that there are more files than threads.
#[test]
fn check_warns_about_too_many_files() {
    let folder = Folder::new();
    folder.write(
        "c.toml",
        format!(
            "[kafka]\nbrokers = [\"127.0.0.1:1\"]\ntopic = \"t\"\n[[files]]\npaths = [\"{}/f*.log\"]\n",
            folder.root().display()
        ),
    );
    for i in 0..120 {
        folder.write(&format!("f{i:03}.log"), "");
    }
    let said = |limit| {
        let done = limited(&folder, limit, "check -c c.toml").run().expect_code(0);
        String::from_utf8(done.stdout).unwrap()
    };
    let warned = |text: &str| text.lines().any(|l| l.starts_with("warning") && l.contains("a thread each"));
    let (few, many) = (said(80), said(500));
    assert!(warned(&few) && few.contains("ulimit -u"), "{few}");
    assert!(!warned(&many) || !many.contains("ulimit -u"), "{many}");
}

/// Fails when lines in a file that waits for a thread are not shown, or not counted as lost once the file is deleted.
#[test]
fn deleted_before_it_gets_a_thread() {
    let folder = Folder::new();
    let names: Vec<String> = (0..60).map(|i| format!("f{i:03}.log")).collect();
    for name in &names {
        folder.append(name, "old\n");
    }
    let agent = limited(&folder, 40, "run --output stdout --state-dir state f*.log").spawn();
    agent.wait_log("following 60 file(s)", SOON);
    let waits = waiting(&folder);
    let one = waits.first().unwrap();
    folder.append(one, "new\n");
    let state = folder.path("state");
    let of_one = |status: &serde_json::Value| {
        let mut files = status["files"].as_array().unwrap().iter();
        files.find(|f| f["path"].as_str().unwrap().ends_with(one.as_str())).unwrap().clone()
    };
    wait_status(&folder, &state, "its line is shown as unsent", |status| of_one(status)["lag_bytes"] == 4);
    folder.remove(one);
    for name in names.iter().filter(|name| !waits.contains(*name)) {
        folder.remove(name);
    }
    let said = agent.wait_log("4 bytes were not read and are lost", PATIENT);
    assert!(said.contains(one.as_str()), "{said}");
    wait_status(&folder, &state, "it is counted", |status| status["totals"]["lost_bytes"] == 4);
    assert!(agent.lines().is_empty(), "{:?}", agent.lines());
}
