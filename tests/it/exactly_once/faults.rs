//! State, broker or files disagree with the sequence numbers: restored, copied, damaged, expired, recreated, deleted,
//! changed. Nothing is lost, and every possible duplicate is counted and logged.

use super::{Chaos, SHORT, announced, config, config_by, totals, write_some};
use crate::harness::*;

/// The starting point of each fault: an agent that was killed while it delivered `a.log`.
struct Killed {
    folder: Folder,
    topic: Topic,
    next: u64,
}

impl Killed {
    fn on(broker: &Broker) -> Killed {
        let (folder, topic) = (Folder::new(), broker.topic(2));
        config(&folder, &topic, &SHORT);
        let mut killed = Killed { folder, topic, next: 0 };
        killed.run_for(1500);
        killed
    }
    /// Runs the agent for this many ms of writing, and kills it once lines have arrived and a batch is open.
    fn run_for(&mut self, ms: u64) -> String {
        let before = self.topic.end_offsets();
        let mut agent = self.folder.agent_line("run -c c.toml").start();
        for _ in 0..ms / 20 {
            write_some(&self.folder, &mut self.next, 100, &["a.log"]);
            pause(millis(20));
        }
        wait_until(PATIENT, "lines have arrived", || self.topic.end_offsets() > before);
        wait_until(PATIENT, "a batch is open", || {
            write_some(&self.folder, &mut self.next, 100, &["a.log"]);
            status_json(&self.folder, &self.folder.path("state"))["exactly_once"]["open_intents"].as_u64()
                > Some(0)
        });
        agent.kill().stderr
    }
    /// Starts it again and waits until everything is acknowledged; returns its log, what arrived, and the status.
    fn resume(&self) -> (String, Delivered, serde_json::Value) {
        let mut agent = self.folder.agent_line("run -c c.toml").start();
        let state = self.folder.path("state");
        wait_status(&self.folder, &state, "all is acknowledged", |s| {
            let files = s["files"].as_array().unwrap();
            files.iter().all(|f| f["acknowledged"] == f["size"] && f["saved"] == f["size"])
        });
        let log = agent.stop().expect_code(0).stderr;
        (log, Delivered::in_topic(&self.topic), totals(&self.folder))
    }
    fn copy(&self, from: &str, to: &str) {
        let _ = std::fs::remove_dir_all(self.folder.path(to));
        self.folder.mkdir(to);
        for entry in std::fs::read_dir(self.folder.path(from)).unwrap() {
            let entry = entry.unwrap();
            if entry.metadata().unwrap().is_file() {
                std::fs::copy(entry.path(), self.folder.path(to).join(entry.file_name())).unwrap();
            }
        }
    }
    fn lines(&self) -> Lines {
        Lines::new("a", 0..self.next)
    }
}

/// Nothing is lost, and no more lines are doubled than announced.
#[track_caller]
fn nothing_silent(killed: &Killed, log: &str, delivered: &Delivered, status: &serde_json::Value) -> u64 {
    let doubled = delivered.assert_at_least_once(&[&killed.lines()]) as u64;
    eprintln!("{doubled} doubled, {} announced", announced(status));
    assert!(doubled <= announced(status), "{doubled} doubled, {} announced\n{log}", announced(status));
    doubled
}

/// Fails when a folder restored from a backup silently reuses its sequence numbers.
#[test]
fn restored_folder_gets_a_new_producer_id() {
    let mut killed = Killed::on(Broker::shared(Version::V41));
    killed.copy("state", "backup");
    killed.run_for(1500);
    killed.copy("backup", "state");
    let (log, delivered, status) = killed.resume();
    assert!(log.contains("restored from a backup"), "{log}");
    assert!(nothing_silent(&killed, &log, &delivered, &status) > 0);
}

/// Two agents with copies of one folder. Fails when one takes the other's sequence numbers for its own: its lines
/// would be dropped.
#[test]
fn copied_folder_gets_a_new_producer_id() {
    let mut killed = Killed::on(Broker::shared(Version::V41));
    killed.copy("state", "copy");
    let mut first = killed.folder.agent_line("run -c c.toml").start();
    write_some(&killed.folder, &mut killed.next, 2000, &["a.log"]);
    killed.topic.wait_count_for(killed.next, PATIENT);
    let second_config =
        std::fs::read_to_string(killed.folder.path("c.toml")).unwrap().replace("/state\"", "/copy\"");
    killed.folder.write("d.toml", second_config);
    let mut second = killed.folder.agent_line("run -c d.toml").start();
    write_some(&killed.folder, &mut killed.next, 3000, &["a.log"]);
    wait_status(&killed.folder, &killed.folder.path("copy"), "the second agent has sent everything", |s| {
        s["files"].as_array().unwrap().iter().all(|f| f["acknowledged"] == f["size"])
    });
    wait_status(&killed.folder, &killed.folder.path("state"), "the first agent has sent everything", |s| {
        s["files"].as_array().unwrap().iter().all(|f| f["acknowledged"] == f["size"])
    });
    let log = second.stop().expect_code(0).stderr;
    first.stop().expect_code(0);
    assert!(log.contains("restored from a backup"), "{log}");
    // Lines that both have read are stored twice, as expected of two agents on one file. Nothing is missing.
    Delivered::in_topic(&killed.topic).assert_at_least_once(&[&killed.lines()]);
}

/// Fails when an intent log without contents is read as "nothing was sent".
#[test]
fn zeroed_or_missing_intent_log_is_reported_and_counted() {
    for zeroed in [true, false] {
        let announces = |_| {
            let killed = Killed::on(Broker::shared(Version::V41));
            match zeroed {
                true => {
                    let len = std::fs::metadata(killed.folder.path("state/flights")).unwrap().len();
                    killed.folder.write("state/flights", vec![0; len as usize]);
                }
                false => killed.folder.remove("state/flights"),
            }
            let (log, delivered, status) = killed.resume();
            assert!(log.contains(if zeroed { "it is damaged" } else { "it is missing" }), "{log}");
            nothing_silent(&killed, &log, &delivered, &status);
            announced(&status) > 0
        };
        // The open batch may have been stored and saved just before the kill.
        assert!((0..5).any(announces));
    }
}

/// Fails when a broker that has forgotten the producer gets a resend that it cannot recognize, and the duplicates are
/// not counted.
#[test]
fn expired_producer_id_is_counted() {
    let conf = ["producer.id.expiration.ms=1000", "producer.id.expiration.check.interval.ms=200"];
    let broker = Broker::own_with(Version::V41, &conf);
    let killed = Killed::on(&broker);
    pause(secs(4));
    let (log, delivered, status) = killed.resume();
    assert!(log.contains("has forgotten our producer id"), "{log}");
    assert!(nothing_silent(&killed, &log, &delivered, &status) > 0);
}

/// Fails when the agent waits for sequence numbers that a new topic never had.
#[test]
fn recreated_topic() {
    let mut killed = Killed::on(Broker::shared(Version::V41));
    killed.topic.delete();
    killed.topic.create(&[]);
    let from = killed.next;
    write_some(&killed.folder, &mut killed.next, 1000, &["a.log"]);
    let (_, delivered, status) = killed.resume();
    let verdict = delivered.against(&[&Lines::new("a", from..killed.next)]);
    assert!(verdict.missing.is_empty(), "{verdict}");
    assert!(verdict.doubled as u64 <= announced(&status), "{verdict}");
}

/// Fails when an open batch whose bytes are gone is forgotten silently.
#[test]
fn deleted_source_is_counted() {
    let killed = Killed::on(Broker::shared(Version::V41));
    killed.folder.remove("a.log");
    let mut agent = killed.folder.agent_line("run -c c.toml").start();
    pause(secs(1));
    let log = agent.stop().expect_code(0).stderr;
    assert!(log.contains("cannot be proven to be stored"), "{log}");
    assert!(totals(&killed.folder)["totals"]["uncertain"].as_u64().unwrap() > 0);
}

/// A file with an open batch gets another name that the pattern matches, in the folder or below it. Fails when the batch is
/// rebuilt only from files whose names begin with the log's.
#[test]
fn renamed_source_doubles_nothing() {
    for name in ["z.log", "below/z.log"] {
        let killed = Killed::on(Broker::shared(Version::V41));
        let config = std::fs::read_to_string(killed.folder.path("c.toml")).unwrap();
        killed.folder.write("c.toml", config.replace("/*.log", "/**/*.log"));
        killed.folder.mkdir("below");
        killed.folder.rename("a.log", name);
        let (log, delivered, status) = killed.resume();
        delivered.assert_exactly_once(&[&killed.lines()]);
        assert_eq!(announced(&status), 0, "{log}");
    }
}

/// Deleted while its last batches have no answer, and kept by the service manager. Fails when batches are rebuilt
/// from paths only.
#[test]
fn deleted_source_kept_in_the_fdstore() {
    let broker = Broker::shared(Version::V41);
    let (folder, topic) = (Folder::new(), broker.topic(2));
    let proxy = Proxy::to(&broker.address);
    config_by(&folder, &topic, &proxy.address, &SHORT);
    let mut agent = folder.agent_line("run -c c.toml").start();
    let mut next = 0;
    write_some(&folder, &mut next, 1000, &["a.log"]);
    topic.wait_count_for(next, PATIENT);
    proxy.mode(Mode::Delay(secs(60)));
    write_some(&folder, &mut next, 20_000, &["a.log"]);
    wait_status(&folder, &folder.path("state"), "batches without an answer", |s| {
        s["files"][0]["framed"] == s["files"][0]["size"]
            && s["exactly_once"]["open_intents"].as_u64() > Some(0)
    });
    folder.remove("a.log");
    wait_until(SOON, "the store has it", || agent.kept().len() == 1);
    agent.kill();
    proxy.mode(Mode::Pass);
    let mut agent = folder.agent_line("run -c c.toml").given(agent.take_kept()).start();
    topic.wait_count_for(next, PATIENT);
    wait_until(SOON, "nothing is kept any longer", || agent.kept().is_empty());
    let log = agent.stop().expect_code(0).stderr;
    Delivered::in_topic(&topic).assert_exactly_once(&[&Lines::new("a", 0..next)]);
    let status = totals(&folder);
    assert_eq!(announced(&status), 0, "{log}");
    assert!(status["exactly_once"]["resent"].as_u64() > Some(0), "{status}");
}

/// Fails when a rebuilt batch depends on the current config.
#[test]
fn changed_config_does_not_change_sent_batches() {
    let killed = Killed::on(Broker::shared(Version::V41));
    let changed = Chaos { kafka: "key = \"path\"\ncompression = \"gzip\"\nbatch = \"32KiB\"", ..SHORT };
    config(&killed.folder, &killed.topic, &changed);
    let (log, delivered, status) = killed.resume();
    assert_eq!(nothing_silent(&killed, &log, &delivered, &status), 0);
    assert_eq!(announced(&status), 0, "{log}");
    assert!(status["exactly_once"]["resent"].as_u64() > Some(0));
}

/// Open batches of two topics, one of which is no longer in the config, and less memory. Fails when the start waits
/// for memory that its own permits hold: it then sends nothing and ignores signals.
#[test]
fn topic_removed_from_the_config() {
    let broker = Broker::own(Version::V41);
    let (folder, [a, b, c]) = (Folder::new(), [(); 3].map(|()| broker.topic(4)));
    let configure = |of_a: &Topic, memory: &str| {
        let file = |name: &str, topic: &Topic| {
            let (path, topic) = (folder.path(name), &topic.name);
            format!("[[files]]\npaths = [{path:?}]\ntopic = {topic:?}\nmax_line = \"16KiB\"\n")
        };
        let (state, address) = (folder.path("state"), &broker.address);
        let files = [file("b.log", &b), file("a.log", of_a)].concat();
        let agent = format!("state_dir = {state:?}\ndelivery = \"exactly-once\"\nmemory = {memory:?}\n");
        let text = format!("[agent]\n{agent}[kafka]\nbrokers = [{address:?}]\n");
        folder.write("c.toml", format!("{text}batch = \"256KiB\"\n{files}"));
    };
    configure(&a, "16MiB");
    let lines = ["a", "b"].map(|file| Lines::new(file, 0..20_000));
    let mut agent = folder.agent_line("run -c c.toml").start();
    let part = |range: std::ops::Range<u64>| {
        for file in ["a", "b"] {
            Lines::new(file, range.clone()).append_to(&folder.path(format!("{file}.log")));
        }
    };
    part(0..10);
    a.wait_count(10);
    b.wait_count(10);
    broker.pause();
    part(10..20_000);
    let open = || totals(&folder)["exactly_once"]["open_intents"].as_u64();
    wait_until(PATIENT, "batches of both are open", || open() >= Some(6));
    agent.kill();
    broker.resume();
    configure(&c, "1MiB");
    let mut agent = folder.agent_line("run -c c.toml").spawn();
    let there = |topics: &[&Topic]| topics.iter().map(|t| t.end_offsets()).sum::<u64>();
    wait_until(PATIENT, "all has arrived", || there(&[&a, &b, &c]) >= 40_000);
    let log = agent.stop().expect_code(0).stderr;
    assert!(log.contains("are resumed"), "{log}");
    Delivered::in_topic(&b).assert_exactly_once(&[&lines[1]]);
    Delivered::of([a.values(), c.values()].concat()).assert_exactly_once(&[&lines[0]]);
    assert_eq!(announced(&totals(&folder)), 0, "{log}");
}

/// Writes to the state folder fail, in two ways: `offsets` cannot be written (so a new file's lines may not be sent),
/// or nothing can, not even `flights`. Fails when status, metrics or the log do not say that delivery is blocked and
/// by what, when a line claims that it continues, or when it does not resume.
#[test]
fn unwritable_state_folder_is_reported_as_blocking_delivery() {
    for whole in [false, true] {
        let broker = Broker::shared(Version::V41);
        let (folder, topic) = (Folder::new(), broker.topic(1));
        config(&folder, &topic, &SHORT);
        let metrics = format!("[metrics]\ntextfile = {:?}\n", folder.path("m.prom"));
        folder.append("c.toml", metrics);
        folder.append("a.log", Lines::new("a", 0..10).bytes());
        // SIGXFSZ, raised by a limit on file sizes, is ignored: writes fail instead.
        let ignoring = ["env", "--ignore-signal=XFSZ"];
        let mut agent = folder.agent_line("run -c c.toml").wrapped_in(ignoring).start();
        let state = folder.path("state");
        wait_status(&folder, &state, "the first lines are saved", |s| {
            s["files"][0]["saved"] == s["files"][0]["size"] && s["files"][0]["saved"].as_u64() > Some(0)
        });
        let limit = |to: &str| {
            let pid = agent.id().to_string();
            let done = std::process::Command::new("prlimit").args(["--pid", &pid, to]).status().unwrap();
            assert!(done.success(), "prlimit: {done}");
        };
        let file = if whole { "a.log" } else { "b.log" };
        let lines = match whole {
            true => {
                limit("--fsize=0:");
                Lines::new("a", 10..20)
            }
            false => {
                std::fs::create_dir(folder.path("state/offsets.tmp")).unwrap(); // refuses root as well
                Lines::new("b", 0..10)
            }
        };
        let before = std::time::Instant::now();
        folder.append(file, lines.bytes());
        let said = wait_status(&folder, &state, "shown as blocked", |s| {
            let files = s["files"].as_array().unwrap();
            let ours = files.iter().find(|f| f["path"].as_str().unwrap().ends_with(file));
            ours.is_some_and(|f| f["stuck_because"].as_str().is_some_and(|w| w.contains("state folder")))
        });
        let took = before.elapsed();
        assert!(took < optimized(secs(2), secs(6)), "{took:?}");
        let degraded = said["state"]["degraded"].as_str().unwrap_or_default();
        assert!(degraded.contains(&format!("delivery to {} is blocked", topic.name)), "{said}");
        let of = said["topics"].as_array().unwrap().iter().find(|t| t["name"] == topic.name.as_str());
        let why = of.and_then(|t| t["last_error"].as_str()).unwrap_or_default();
        assert!(why.contains(if whole { "flights" } else { "positions" }), "{said}");
        assert!(of.is_some_and(|t| t["attempts"].as_u64() > Some(0)), "{said}");
        agent.wait_log(if whole { "nothing is sent until this succeeds" } else { "is blocked" }, secs(2));
        if !whole {
            wait_until(secs(20), "the metrics report it", || {
                let text = std::fs::read_to_string(folder.path("m.prom")).unwrap_or_default();
                let is = |line: &str| text.lines().any(|l| l.starts_with(line) && l.ends_with(" 1"));
                is("logagent_file_stuck{") && is("logagent_state_degraded")
            });
        }
        assert_eq!(topic.end_offsets(), 10);
        match whole {
            true => limit("--fsize=unlimited:"),
            false => std::fs::remove_dir(folder.path("state/offsets.tmp")).unwrap(),
        }
        topic.wait_count(20);
        wait_status(&folder, &state, "well again", |s| {
            let well = |f: &serde_json::Value| f["stuck_because"].is_null() && f["saved"] == f["size"];
            s["state"]["degraded"].is_null() && s["files"].as_array().unwrap().iter().all(well)
        });
        let log = agent.stop().expect_code(0).stderr;
        assert!(!log.contains("delivery continues"), "{log}");
        assert!(log.contains("delivery is no longer blocked"), "{log}");
        let (a, b) =
            (Lines::new("a", 0..if whole { 20 } else { 10 }), Lines::new("b", 0..if whole { 0 } else { 10 }));
        Delivered::in_topic(&topic).assert_exactly_once(&[&a, &b]);
    }
}
