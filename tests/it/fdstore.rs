//! systemd's descriptor store: a file deleted or rotated unread is read to its end by the next run of the agent.

use crate::harness::*;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::time::Instant;

/// 20 MB, more than `memory` holds: the tail is waiting for memory when the file is deleted.
const LINES: u64 = 100_000;

fn shipping(folder: &Folder, broker: &Scripted) -> Setup {
    let broker = broker.address();
    folder.agent_line(&format!(
        "run --from beginning --driver modern --topic t --brokers {broker} --state-dir state f.log"
    ))
}

#[track_caller]
fn all_arrive_once(folder: &Folder, agent: &mut Agent, broker: &Scripted, lines: &[&Lines]) {
    let count = lines.iter().map(|l| l.count()).sum::<usize>();
    wait_until(PATIENT, "all lines arrive", || broker.stored("t").len() >= count);
    Delivered::of(broker.stored("t")).assert_exactly_once(lines);
    wait_until(SOON, "nothing is kept any longer", || agent.kept().is_empty());
    agent.stop().expect_code(0);
    let status = status_json(folder, &folder.path("state"));
    assert_eq!(status["totals"]["lost_bytes"], 0, "{status}");
}

/// Deleted during an outage, then SIGKILL. Fails when a tail waiting for room does not notice the deletion, or when
/// a returned descriptor is not read, is read from elsewhere than the saved position, or stays in the store.
#[test]
fn deleted_unread_and_killed() {
    let (folder, broker) = (Folder::new(), Scripted::away());
    let lines = Lines::new("f", 0..LINES);
    lines.append_to(&folder.path("f.log"));
    let mut agent = shipping(&folder, &broker).start();
    wait_until(SOON, "no more is read", || {
        status_json(&folder, &folder.path("state"))["memory"]["used"].as_u64() > Some(3 << 20)
    });
    assert!(agent.kept().is_empty(), "a file with a name is found again by it");
    folder.remove("f.log");
    wait_until(SOON, "the store has it", || agent.kept().len() == 1);
    agent.kill();
    let mut agent = shipping(&folder, &broker).given(agent.take_kept()).start();
    broker.up(1);
    all_arrive_once(&folder, &mut agent, &broker, &[&lines]);
}

/// The file is deleted while the agent is down. Fails when a stop stores only files already seen to be rotated or
/// deleted.
#[test]
fn deleted_while_stopped() {
    let (folder, broker) = (Folder::new(), Scripted::away());
    let lines = Lines::new("f", 0..1000);
    lines.append_to(&folder.path("f.log"));
    let mut agent = shipping(&folder, &broker).start();
    stop_at_once(&mut agent);
    folder.remove("f.log");
    let mut agent = shipping(&folder, &broker).given(agent.take_kept()).start();
    broker.up(1);
    all_arrive_once(&folder, &mut agent, &broker, &[&lines]);
}

/// Two SIGTERMs: the drain would wait for a broker that is down.
fn stop_at_once(agent: &mut Agent) {
    agent.signal(rustix::process::Signal::TERM);
    agent.wait_log("stopping", SOON);
    wait_until(SOON, "the tail has stored its file", || !agent.kept().is_empty());
    pause(millis(100));
    agent.signal(rustix::process::Signal::TERM);
    agent.wait_exit(SOON);
}

/// Rotated in an outage; after a stop the rotated file is removed and a new one created at the path. Fails when only
/// deleted files are stored, or a stop closes them.
#[test]
fn rotated_then_removed_while_stopped() {
    let (folder, broker) = (Folder::new(), Scripted::away());
    let (old, new) = (Lines::new("f", 0..1000), Lines::new("f", 1000..1010));
    old.append_to(&folder.path("f.log"));
    let mut agent = shipping(&folder, &broker).start();
    folder.rename("f.log", "f.log.1");
    new.append_to(&folder.path("f.log"));
    wait_until(SOON, "the store has it", || agent.kept().len() == 1);
    stop_at_once(&mut agent);
    folder.remove("f.log.1");
    let mut agent = shipping(&folder, &broker).given(agent.take_kept()).start();
    broker.up(1);
    all_arrive_once(&folder, &mut agent, &broker, &[&old, &new]);
}

/// Each run reads a part of it. Fails when the file is missing from the store at the second restart, or is read from
/// the start.
#[test]
fn three_restarts() {
    let folder = Folder::new();
    let config = "[[files]]\npaths = [\"f.log\"]\nstart = \"beginning\"\nrate_limit = \"100KiB/s\"\n";
    folder.write("c.toml", config.replace("f.log", &folder.path("f.log").display().to_string()));
    let lines = Lines::new("f", 0..2000);
    lines.append_to(&folder.path("f.log"));
    let start = |given: Vec<(String, OwnedFd)>| {
        let setup = folder.agent_line("run -c c.toml --output stdout --state-dir state");
        if given.is_empty() { setup.start() } else { setup.given(given).start() }
    };
    let mut seen = Vec::new();
    let mut agent = start(Vec::new());
    folder.remove("f.log");
    for _ in 0..2 {
        wait_until(SOON, "a part is read", || agent.lines().len() > 100);
        seen.extend(agent.stop().expect_code(0).lines());
        let kept = agent.take_kept();
        assert_eq!(kept.len(), 1, "{kept:?}");
        agent = start(kept);
    }
    wait_until(PATIENT, "the rest is read", || agent.lines().len() + seen.len() >= lines.count());
    wait_until(SOON, "nothing is kept any longer", || agent.kept().is_empty());
    seen.extend(agent.stop().expect_code(0).lines());
    Delivered::of(seen).assert_exactly_once(&[&lines]);
}

/// `deleted_hold` also applies to returned descriptors. Fails when they are held without a limit, are not counted, or
/// stay in the store.
#[test]
fn deleted_hold_is_enforced() {
    let folder = Folder::new();
    let config = |hold: &str| {
        let path = folder.path("f.log");
        let text = format!(
            "[[files]]\npaths = [{path:?}]\nstart = \"beginning\"\nrate_limit = \"1KiB/s\"\n\
             deleted_hold = {{ bytes = \"{hold}\", time = \"1h\" }}\n"
        );
        folder.write("c.toml", text);
        folder.agent_line("run -c c.toml --output stdout --state-dir state")
    };
    let lines = Lines::new("f", 0..2000);
    folder.write("f.log", lines.bytes());
    let mut agent = config("1GiB").start();
    folder.remove("f.log");
    wait_until(SOON, "the store has it", || agent.kept().len() == 1);
    let mut read = agent.stop().expect_code(0).lines().len() as u64;
    let mut agent = config("64KiB").given(agent.take_kept()).start();
    agent.wait_log("deleted_hold", SOON);
    wait_until(SOON, "it is released", || agent.kept().is_empty());
    read += agent.stop().expect_code(0).lines().len() as u64;
    let lost = status_json(&folder, &folder.path("state"))["totals"]["lost_bytes"].as_u64().unwrap();
    assert_eq!(lost, (2000 - read) * 201);
}

/// Fails when a descriptor is matched to a stream by its name alone, or when one that belongs to no stream is read,
/// or kept forever.
#[test]
fn foreign_descriptors_are_closed_and_logged() {
    let folder = Folder::new();
    let mine = Lines::new("f", 0..10);
    folder.write("f.log", mine.bytes());
    let args = "run --output stdout --from beginning --state-dir state f.log";
    let mut agent = folder.agent_line(args).start();
    agent.wait_lines(10);
    agent.stop().expect_code(0);
    let stranger = folder.write("secret", "never to be sent\n");
    let open = |path: &std::path::Path| OwnedFd::from(std::fs::File::open(path).unwrap());
    let given = || {
        let (secret, folder, null) = (open(&stranger), open(folder.root()), open("/dev/null".as_ref()));
        vec![("log-1-1".to_owned(), secret), ("log-2-2".to_owned(), folder), ("stored".to_owned(), null)]
    };
    let mut agent = folder.agent_line(args).given(given()).spawn();
    let mut notices = Vec::new();
    wait_until(SOON, "it is ready", || {
        notices.extend(agent.notices());
        notices.iter().any(|m| m.starts_with("READY=1"))
    });
    for (name, why) in [("log-1-1", "no saved position"), ("log-2-2", "directory"), ("stored", "device")] {
        agent.wait_log(&format!("descriptor \"{name}\", kept by systemd, is not used: "), SOON);
        assert!(agent.log().contains(why), "{why}");
        let removed = format!("FDSTOREREMOVE=1\nFDNAME={name}");
        assert!(notices.contains(&removed), "{notices:?}");
    }
    let open = agent.open_files();
    assert!(!open.contains(&stranger) && !open.contains(&folder.root().to_owned()), "{open:?}");
    assert!(agent.stop().expect_code(0).lines().is_empty());
    // Meant for another process: ignored.
    let mut agent = folder.agent_line(args).env("LISTEN_PID", "1").given(given()).start();
    assert!(!agent.log().contains("kept by systemd"), "{}", agent.log());
    agent.stop().expect_code(0);
}

/// The service manager stops reading messages, then reads again. Fails when tails wait for it at each check (`DEAF`
/// zero), or when its silence is not logged whichever message met it first.
#[test]
fn service_manager_that_does_not_read() {
    let folder = Folder::new();
    let deaf = UnixDatagram::bind(folder.path("deaf")).unwrap();
    // Each sender has room for some hundred messages; only a sender that finds no room at all has hit the limit of
    // the receiving queue.
    let full = || {
        let other = UnixDatagram::unbound().unwrap();
        other.set_nonblocking(true).unwrap();
        std::iter::from_fn(|| other.send_to(b"of another unit", folder.path("deaf")).ok()).count() == 0
    };
    while !full() {}
    folder.write("f.log", b"");
    let unread_socket = format!("NOTIFY_SOCKET={}", folder.path("deaf").display());
    let args = "run --output stdout --from beginning --state-dir state f.log";
    let agent = folder.started_by(["env", &unread_socket], args).spawn();
    wait_until(SOON, "it runs", || agent.log().contains("following"));
    let mut seen = 0;
    let mut one_more = || {
        folder.append("f.log", Lines::new("f", seen..seen + 10).bytes());
        seen += 10;
        agent.wait_lines(seen as usize);
        folder.remove("f.log");
    };
    let begun = Instant::now();
    (0..20).for_each(|_| one_more());
    assert!(begun.elapsed() < SOON, "{:?} for 200 lines", begun.elapsed());
    let said = || agent.log().matches("systemd takes no messages").count();
    assert_eq!(said(), 1, "{}", agent.log());
    std::thread::spawn(move || while deaf.recv(&mut [0; 512]).is_ok() {});
    wait_until(SOON, "messages are read again", || {
        one_more();
        agent.log().contains("systemd takes messages again")
    });
    assert_eq!(said(), 1, "{}", agent.log());
}
