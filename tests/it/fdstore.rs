//! systemd's descriptor store: what is deleted or rotated unread is read on by the next life of the agent.

use crate::harness::*;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::time::Instant;

/// 20 MB, more than `memory` holds: the tail waits for room when the file goes.
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

/// Deleted in an outage, then SIGKILL. Fails when a tail that waits for room does not see the deletion, when what is given back
/// is not read, or not from the saved position, or stays in the store.
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

/// The file goes while the agent is down. Fails when a stop keeps only what was seen to be rotated or deleted.
#[test]
fn deleted_between_two_lives() {
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

/// SIGTERM, and again: the drain would wait for a broker that is away.
fn stop_at_once(agent: &mut Agent) {
    agent.signal(rustix::process::Signal::TERM);
    agent.wait_log("stopping", SOON);
    wait_until(SOON, "the tail keeps what it has", || !agent.kept().is_empty());
    pause(millis(100));
    agent.signal(rustix::process::Signal::TERM);
    agent.wait_exit(SOON);
}

/// Rotated in an outage, stopped, the rotated file removed, a new one at the path. Fails when only deleted files are kept, or a stop
/// lets go of them.
#[test]
fn rotated_stopped_and_removed_meanwhile() {
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

/// Each life reads a part of it. Fails when a second restart finds it gone from the store, or begins again.
#[test]
fn three_lives() {
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

/// `deleted_hold` is for these too. Fails when what was given back is held without bound, is not counted, or stays in the store.
#[test]
fn no_more_than_may_be_held() {
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
    wait_until(SOON, "it is let go", || agent.kept().is_empty());
    read += agent.stop().expect_code(0).lines().len() as u64;
    let lost = status_json(&folder, &folder.path("state"))["totals"]["lost_bytes"].as_u64().unwrap();
    assert_eq!(lost, (2000 - read) * 201);
}

/// Fails when a descriptor is taken for a stream's by its name, when one that is nobody's is read, or is kept for ever.
#[test]
fn what_is_not_ours_is_closed_and_said() {
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
    let mut told = Vec::new();
    wait_until(SOON, "it is ready", || {
        told.extend(agent.notices());
        told.iter().any(|m| m.starts_with("READY=1"))
    });
    for (name, why) in [("log-1-1", "no saved position"), ("log-2-2", "directory"), ("stored", "device")] {
        agent.wait_log(&format!("descriptor \"{name}\", kept by systemd, is not used: "), SOON);
        assert!(agent.log().contains(why), "{why}");
        let removed = format!("FDSTOREREMOVE=1\nFDNAME={name}");
        assert!(told.contains(&removed), "{told:?}");
    }
    let open = agent.open_files();
    assert!(!open.contains(&stranger) && !open.contains(&folder.root().to_owned()), "{open:?}");
    assert!(agent.stop().expect_code(0).lines().is_empty());
    // Meant for another process: not looked at.
    let mut agent = folder.agent_line(args).env("LISTEN_PID", "1").given(given()).start();
    assert!(!agent.log().contains("kept by systemd"), "{}", agent.log());
    agent.stop().expect_code(0);
}

/// Nobody takes messages, and then somebody does. Fails when tails wait for the manager at each look (`DEAF` zero), and when its
/// silence is not said, whichever message met it first.
#[test]
fn a_manager_that_does_not_listen() {
    let folder = Folder::new();
    let deaf = UnixDatagram::bind(folder.path("deaf")).unwrap();
    // Each sender has room for some hundred; only one who finds none at all has met the queue's own end.
    let full = || {
        let other = UnixDatagram::unbound().unwrap();
        other.set_nonblocking(true).unwrap();
        std::iter::from_fn(|| other.send_to(b"of another unit", folder.path("deaf")).ok()).count() == 0
    };
    while !full() {}
    folder.write("f.log", b"");
    let to_nobody = format!("NOTIFY_SOCKET={}", folder.path("deaf").display());
    let args = "run --output stdout --from beginning --state-dir state f.log";
    let agent = folder.behind(["env", &to_nobody], args).spawn();
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
    wait_until(SOON, "it is heard again", || {
        one_more();
        agent.log().contains("systemd takes messages again")
    });
    assert_eq!(said(), 1, "{}", agent.log());
}
