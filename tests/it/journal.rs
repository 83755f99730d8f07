//! The systemd journal as a source, on files made by systemd-journal-remote: from the folder to standard output and to Kafka.
//! What needs a running journald is in tests/journal.

mod damage;
mod fields;
mod flush;
mod loss;
mod oddities;
mod reread;

use crate::harness::journal_files::{JournalWriter, export, messages, write_journal};
use crate::harness::*;

const LIVE: &str = "run -c c.toml --output stdout";

/// A folder with a config for the journal in `journal/`, with additional keys for its table.
fn with_journal(more: &str) -> Folder {
    let folder = Folder::new();
    let journal = folder.mkdir("journal");
    let text = format!(
        "[agent]\nstate_dir = {:?}\n[[journal]]\ndirectory = {journal:?}\nstart = \"beginning\"\n{more}\n",
        folder.path("state"),
    );
    folder.write("c.toml", text);
    folder
}

/// Like [`with_journal`], from the beginning into a topic, with more of `[agent]`.
fn to_kafka(topic: &Topic, more: &str) -> Folder {
    let folder = Folder::new();
    let journal = folder.mkdir("journal");
    folder.write(
        "c.toml",
        format!(
            "[agent]\nstate_dir = {:?}\n{more}\n[kafka]\nbrokers = [{:?}]\ntopic = {:?}\n\
             key = {{ field = \"_SYSTEMD_UNIT\" }}\n[[journal]]\ndirectory = {journal:?}\nstart = \"beginning\"\n",
            folder.path("state"),
            topic.address,
            topic.name,
        ),
    );
    folder
}

fn once(folder: &Folder) -> Vec<String> {
    let lines = folder.agent_line(&format!("{LIVE} --once")).run().expect_code(0).lines();
    lines.into_iter().map(|l| String::from_utf8(l).unwrap()).collect()
}

fn numbered(word: &str, numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|n| format!("{word} {n}")).collect()
}

fn append(folder: &Folder, name: &str, word: &str, n: u64) {
    write_journal(&folder.path("journal").join(name), true, &messages(word, n));
}

/// Fails when an entry is missing or sent again over restarts and rotations, or a file counts as new under another name.
#[test]
fn each_entry_once_over_restarts_and_rotations() {
    let folder = with_journal("");
    append(&folder, "system.journal", "a", 700);
    assert_eq!(once(&folder), numbered("a", 0..700));
    append(&folder, "system.journal", "b", 3);
    folder.rename("journal/system.journal", "journal/system@1.journal");
    append(&folder, "system.journal", "c", 3);
    assert_eq!(once(&folder), [numbered("b", 0..3), numbered("c", 0..3)].concat());
    assert_eq!(once(&folder), [""; 0]);
    folder.rename("journal/system.journal", "journal/system@2.journal~");
    assert_eq!(once(&folder), [""; 0], "a dirty file under its new name is the same file");
    assert_eq!(loss::lost(&folder), 0);
}

/// Fails when new entries, a new file, or a file that is rotated meanwhile are not seen while the agent runs.
#[test]
fn followed_while_it_is_written() {
    let folder = with_journal("");
    append(&folder, "system.journal", "a", 2);
    let mut agent = folder.agent_line(LIVE).start();
    agent.wait_lines(2);
    append(&folder, "system.journal", "b", 2);
    agent.wait_lines(4);
    append(&folder, "user-1000.journal", "u", 1);
    agent.wait_lines(5);
    folder.rename("journal/system.journal", "journal/system@1.journal");
    append(&folder, "system.journal", "c", 2);
    let lines = agent.wait_lines(7);
    agent.stop().expect_code(0);
    let lines: Vec<_> = lines.into_iter().map(|l| String::from_utf8(l).unwrap()).collect();
    assert_eq!(lines, ["a 0", "a 1", "b 0", "b 1", "u 0", "c 0", "c 1"]);
}

/// Fails when a kill at any time loses an entry.
#[test]
fn kills_lose_nothing() {
    let folder = with_journal("");
    let mut seen = Vec::new();
    for round in 0..6 {
        append(&folder, "system.journal", &format!("r{round}"), 2000);
        let mut agent = folder.agent_line(LIVE).start();
        pause(millis(20 + round * 40));
        seen.extend(agent.kill().whole_lines());
    }
    seen.extend(once(&folder).into_iter().map(String::into_bytes));
    for round in 0..6 {
        for line in numbered(&format!("r{round}"), 0..2000) {
            assert!(seen.contains(&line.clone().into_bytes()), "{line} is missing");
        }
    }
}

/// Fails when `start = "end"` sends existing entries, sends them after a restart, or skips later ones.
#[test]
fn start_at_the_end() {
    let folder = with_journal("");
    let text = std::fs::read_to_string(folder.path("c.toml")).unwrap();
    folder.write("c.toml", text.replace("\"beginning\"", "\"end\""));
    append(&folder, "system@1.journal", "old", 3);
    append(&folder, "system.journal", "a", 3);
    let mut agent = folder.agent_line(LIVE).start();
    wait_status(&folder, &folder.path("state"), "it is followed", |s| s["files"][0]["state"] == "following");
    append(&folder, "system.journal", "b", 2);
    agent.wait_lines(2);
    agent.stop().expect_code(0);
    append(&folder, "system.journal", "c", 1);
    let mut agent = folder.agent_line(LIVE).start();
    assert_eq!(agent.wait_lines(1), [b"c 0"]);
    agent.stop().expect_code(0);
}

/// Fails when the agent is ready before the positions are saved: after a crash, it would skip what was written meanwhile.
#[test]
fn ready_once_the_end_is_saved() {
    let folder = with_journal("");
    let text = std::fs::read_to_string(folder.path("c.toml")).unwrap();
    folder.write("c.toml", text.replace("beginning", "end"));
    for name in ["system.journal", "system@1.journal", "system@2.journal", "system@3.journal"] {
        append(&folder, name, "old", 20_000);
    }
    let mut agent = folder.agent_line(LIVE).start();
    agent.kill();
    append(&folder, "system.journal", "new", 3);
    let mut agent = folder.agent_line(LIVE).start();
    assert_eq!(agent.wait_lines(3), [b"new 0", b"new 1", b"new 2"]);
    agent.stop().expect_code(0);
}

/// Fails when a filter lets through what it should not, or the other way round, or what is left out is read at each start.
#[test]
fn filters() {
    let folder = with_journal(
        "units = [\"a.service\"]\nexclude_units = [\"b.service\"]\nidentifiers = [\"x\"]\npriority = \"warning\"\ntransport = \"syslog\"",
    );
    let all: [(&str, &[u8]); 6] = [
        ("MESSAGE", b"yes"),
        ("_SYSTEMD_UNIT", b"a.service"),
        ("SYSLOG_IDENTIFIER", b"x"),
        ("PRIORITY", b"4"),
        ("_TRANSPORT", b"syslog"),
        ("A", b"1"),
    ];
    let mut entries = export(0, &all);
    for (i, other) in [
        ("_SYSTEMD_UNIT", &b"c.service"[..]),
        ("SYSLOG_IDENTIFIER", b"y"),
        ("PRIORITY", b"5"),
        ("_TRANSPORT", b"kernel"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut fields = all;
        fields[0].1 = b"no";
        fields[i + 1] = other;
        entries.extend(export(1 + i as u64, &fields));
    }
    let about: [(&str, &[u8]); 6] = [
        ("MESSAGE", b"about it"),
        ("UNIT", b"a.service"),
        ("_PID", b"1"),
        ("SYSLOG_IDENTIFIER", b"x"),
        ("PRIORITY", b"3"),
        ("_TRANSPORT", b"syslog"),
    ];
    entries.extend(export(9, &about));
    write_journal(&folder.path("journal/system.journal"), true, &entries);
    assert_eq!(once(&folder), ["yes", "about it"]);
    assert_eq!(once(&folder), [""; 0]);
}

/// Fails when `format = "json"` is not what `journalctl` prints, line by line.
#[test]
fn json_as_journalctl_prints_it() {
    let folder = with_journal("format = \"json\"\nall = true");
    let entry =
        |i: u64| export(i, &[("MESSAGE", format!("two\nlines {i}").as_bytes()), ("RAW", b"\xff\x01")]);
    let path = folder.path("journal/system.journal");
    write_journal(&path, true, &(0..20).flat_map(entry).collect::<Vec<_>>());
    let done =
        std::process::Command::new("journalctl").args(["-o", "json", "--all", "--file"]).arg(&path).output();
    let want = String::from_utf8(done.unwrap().stdout).unwrap();
    let parse = |line: &str| -> serde_json::Value { serde_json::from_str(line).unwrap() };
    let found = once(&folder);
    assert_eq!(found.len(), 20);
    for (found, want) in found.iter().zip(want.lines()) {
        let mut found = parse(found);
        for later in ["__SEQNUM", "__SEQNUM_ID"] {
            if parse(want).get(later).is_none() {
                found.as_object_mut().unwrap().remove(later);
            }
        }
        assert_eq!(found, parse(want));
    }
}

/// Fails when `check` does not name the journal, or `tail --journal` asks for a config.
#[test]
fn check_and_status_show_it() {
    let folder = with_journal("");
    append(&folder, "system.journal", "a", 1);
    std::fs::write(folder.path("journal/system@9.journal"), vec![b'x'; 5000]).unwrap();
    folder.write(
        "c.toml",
        std::fs::read_to_string(folder.path("c.toml")).unwrap()
            + "topic = \"t\"\n[kafka]\nbrokers = [\"127.0.0.1:1\"]\n",
    );
    let done = folder.agent_line("check -c c.toml").run().expect_code(0);
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(text.contains("1 journal file") && text.contains("system@9.journal is not read"), "{text}");
}

/// systemd's tools and other shippers take `/var/log/journal` as a whole. Fails when nothing says that the folder in it is meant.
#[test]
fn a_folder_of_journal_folders() {
    let folder = with_journal("topic = \"t\"\n[kafka]\nbrokers = [\"127.0.0.1:1\"]");
    folder.mkdir("journal/0123456789abcdef");
    append(&folder, "0123456789abcdef/system.journal", "a", 1);
    let wanted = "set directory to the folder in it, such as";
    let done = folder.agent_line("check -c c.toml").run();
    let said = String::from_utf8(done.stdout).unwrap() + &done.stderr;
    assert!(said.contains(wanted) && said.contains("journal/0123456789abcdef"), "{said}");
    let done = folder.agent_line(&format!("{LIVE} --once")).run().expect_code(0);
    assert!(done.stderr.contains(wanted), "{}", done.stderr);
}

/// Fails when the backlog of a journal is not counted in entries, read or not, or remains after delivery.
#[test]
fn status_counts_unsent_entries() {
    let broker = Broker::own(Version::V44);
    let topic = broker.topic(1);
    let folder = to_kafka(&topic, "");
    let state = folder.path("state");
    let unsent = |n: u64| move |s: &serde_json::Value| s["files"][0]["unsent_entries"] == n;
    append(&folder, "system.journal", "a", 3);
    let mut agent = folder.agent_line("run -c c.toml").start();
    topic.wait_count(3);
    wait_status(&folder, &state, "nothing waits", unsent(0));
    broker.pause();
    append(&folder, "system.journal", "b", 7);
    wait_status(&folder, &state, "seven wait", unsent(7));
    broker.resume();
    topic.wait_count(10);
    wait_status(&folder, &state, "nothing waits again", unsent(0));
    agent.stop().expect_code(0);
}

/// Fails when a kill between sending and the acknowledgement stores an entry twice, or a record's time or key differs
/// from its entry's.
#[test]
fn exactly_once_into_kafka() {
    let broker = Broker::shared(Version::V44);
    let topic = broker.topic(2);
    let folder = to_kafka(&topic, "delivery = \"exactly-once\"");
    let mut want = 0;
    for round in 0..6u64 {
        append(&folder, "system.journal", &format!("r{round}"), 3000);
        want += 3000;
        if round == 3 {
            folder.rename("journal/system.journal", "journal/system@1.journal");
        }
        let mut agent = folder.agent_line("run -c c.toml").start();
        pause(millis(30 + round * 60));
        agent.kill();
    }
    folder.agent_line("run -c c.toml --once").run_for(secs(60)).expect_code(0);
    let mut values = topic.values();
    assert_eq!(values.len(), want, "each once");
    values.sort();
    values.dedup();
    assert_eq!(values.len(), want, "none twice");
    topic.each(|r| {
        assert_eq!(r.key, Some(&b"a.service"[..]));
        assert!((1_700_000_000_000..1_700_003_000_000).contains(&r.timestamp), "{}", r.timestamp);
    });
}
