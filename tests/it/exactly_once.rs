//! `delivery = "exactly-once"`: kills of the agent and of the broker at random moments, every line counted by a consumer.
//! The long form is `tests/run --long`, in `long/`.

use crate::harness::*;

/// xorshift64*: moments of kills, the same for the same seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

/// What a run of kills is like.
#[derive(Clone, Copy, Default)]
pub struct Chaos {
    pub version: Option<Version>,
    pub agent_kills: u32,
    pub broker_kills: u32,
    /// Lines a second.
    pub rate: u64,
    /// The log is renamed after every so many writes, on average; 0: never. Nothing is deleted.
    pub rotate: u64,
    /// More of `[kafka]` and `[agent]`.
    pub kafka: &'static str,
    pub agent: &'static str,
    pub seed: u64,
    /// Longest time between two kills, in ms.
    pub apart: u64,
}

pub fn config(folder: &Folder, topic: &Topic, chaos: &Chaos) {
    config_by(folder, topic, &topic.address, chaos);
}

fn config_by(folder: &Folder, topic: &Topic, address: &str, chaos: &Chaos) {
    let text = format!(
        "[agent]\nstate_dir = {:?}\ndelivery = \"exactly-once\"\n{}\n[kafka]\nbrokers = {:?}\ntopic = {:?}\n{}\n[[files]]\n\
         paths = [{:?}]\nstart = \"beginning\"\n",
        folder.path("state"),
        chaos.agent,
        address.split(',').collect::<Vec<_>>(),
        topic.name,
        chaos.kafka,
        folder.path("*.log"),
    );
    folder.write("c.toml", text);
}

pub fn totals(folder: &Folder) -> serde_json::Value {
    status_json(folder, &folder.path("state"))
}

/// A writer that renames its log as logrotate does, without stopping: `a.log` to `a.log.1` and so on.
fn rotate(folder: &Folder) {
    let oldest = (1..).find(|n| !folder.path(format!("a.log.{n}")).exists()).unwrap_or(1);
    for n in (1..oldest).rev() {
        folder.rename(&format!("a.log.{n}"), &format!("a.log.{}", n + 1));
    }
    if folder.path("a.log").exists() {
        folder.rename("a.log", "a.log.1");
    }
}

/// Appends `n` lines to each file; in the test's own thread, so that a rotation falls between two writes.
pub fn write_some(folder: &Folder, next: &mut u64, n: u64, files: &[&str]) {
    for (i, file) in files.iter().enumerate() {
        let lines = Lines::new(&file[..1], *next..*next + n);
        if i + 1 == files.len() {
            *next += n;
        }
        lines.append_to(&folder.path(file));
    }
}

/// Everything arrives once, whatever is killed. Gives the status after the end.
#[track_caller]
pub fn survive(chaos: &Chaos) -> serde_json::Value {
    let broker = Broker::own(chaos.version.unwrap_or(Version::V41));
    let topic = broker.topic(3);
    let folder = Folder::new();
    config(&folder, &topic, chaos);
    let mut dice = Dice::new(chaos.seed);
    let mut next = 0;
    let files: &[&str] = &["a.log", "b.log"];
    let mut kills = (0, 0);
    let mut log = String::new();
    while kills.0 < chaos.agent_kills || kills.1 < chaos.broker_kills {
        let mut agent = folder.agent_line("run -c c.toml").spawn();
        let life = 20 + dice.below(chaos.apart);
        let mut lived = 0;
        let broker_too = kills.1 < chaos.broker_kills && dice.below(4) == 0;
        while lived < life {
            write_some(&folder, &mut next, chaos.rate / 50, files);
            if chaos.rotate > 0 && dice.below(chaos.rotate) == 0 {
                rotate(&folder);
            }
            pause(millis(20));
            lived += 20;
            if broker_too && lived >= life / 2 && lived < life / 2 + 20 {
                broker.kill();
                kills.1 += 1;
            }
            assert!(agent.ended().is_none(), "the agent ended by itself:\n{}", agent.log());
        }
        log.push_str(&agent.kill().stderr);
        kills.0 += 1;
        if broker_too {
            broker.restart();
        }
    }
    let written = [Lines::new("a", 0..next), Lines::new("b", 0..next)];
    let mut agent = folder.agent_line("run -c c.toml").start();
    topic.wait_count_for(2 * next, secs(90 + next / 5000));
    let log = log + &agent.stop().expect_code(0).stderr;
    let verdict = Delivered::in_topic(&topic).against(&[&written[0], &written[1]]);
    let status = totals(&folder);
    eprintln!(
        "{verdict}; {} lines; {kills:?} kills; {} {}",
        2 * next,
        status["totals"],
        status["exactly_once"]
    );
    assert!(
        verdict.missing.is_empty() && verdict.strange.is_empty() && verdict.doubled == 0,
        "{verdict}\n{}",
        tail_of(&log)
    );
    assert_eq!(status["totals"]["uncertain"].as_u64(), Some(0), "{}", tail_of(&log));
    assert_eq!(status["totals"]["doubled_at_most"].as_u64(), Some(0));
    assert_eq!(status["totals"]["acked"].as_u64(), Some(2 * next), "{}", tail_of(&log));
    status
}

fn tail_of(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|l| !l.contains(" INFO ")).collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

const SHORT: Chaos = Chaos {
    version: None,
    agent_kills: 15,
    broker_kills: 2,
    rate: 10_000,
    rotate: 0,
    kafka: "",
    agent: "",
    seed: 1,
    apart: 700,
};

/// Each fails when a killed run leaves a line unsent, or one that is sent again stands twice: when an intent is written after
/// its batch is sent, when a settled intent counts as open or the other way round, or when numbers are used twice.
#[test]
fn fifteen_kills_on_3_9() {
    survive(&Chaos { version: Some(Version::V39), ..SHORT });
}
#[test]
fn fifteen_kills_on_4_1() {
    survive(&SHORT);
}
#[test]
fn fifteen_kills_with_rotations() {
    survive(&Chaos { rotate: 12, seed: 2, ..SHORT });
}
#[test]
fn fifteen_kills_with_keys() {
    survive(&Chaos { kafka: "key = \"path\"", seed: 3, ..SHORT });
}
#[test]
fn fifteen_kills_with_every_write_synced_and_lines_spread() {
    survive(&Chaos { kafka: "partition = \"round-robin\"", agent: "sync = \"always\"", seed: 4, ..SHORT });
}

/// What faults begin with: an agent that was killed while it delivered `a.log`.
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
    /// The agent runs for so many ms of writing, and is killed.
    fn run_for(&mut self, ms: u64) -> String {
        let mut agent = self.folder.agent_line("run -c c.toml").start();
        for _ in 0..ms / 20 {
            write_some(&self.folder, &mut self.next, 100, &["a.log"]);
            pause(millis(20));
        }
        agent.kill().stderr
    }
    /// Starts it again, until everything is acknowledged; its log, what arrived, and the status.
    fn go_on(&self) -> (String, Delivered, serde_json::Value) {
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

/// Lines that status says may stand twice.
pub fn announced(status: &serde_json::Value) -> u64 {
    status["totals"]["uncertain"].as_u64().unwrap() + status["totals"]["doubled_at_most"].as_u64().unwrap()
}

/// Nothing lost, and no more doubled than announced.
#[track_caller]
fn nothing_silent(killed: &Killed, log: &str, delivered: &Delivered, status: &serde_json::Value) -> u64 {
    let doubled = delivered.assert_at_least_once(&[&killed.lines()]) as u64;
    eprintln!("{doubled} doubled, {} announced", announced(status));
    assert!(doubled <= announced(status), "{doubled} doubled, {} announced\n{log}", announced(status));
    doubled
}

/// Fails when a folder from a backup goes on with the numbers it has, silently.
#[test]
fn a_folder_that_was_put_back_takes_a_new_id() {
    let mut killed = Killed::on(Broker::shared(Version::V41));
    killed.copy("state", "backup");
    killed.run_for(1500);
    killed.copy("backup", "state");
    let (log, delivered, status) = killed.go_on();
    assert!(log.contains("put back from a backup"), "{log}");
    assert!(nothing_silent(&killed, &log, &delivered, &status) > 0);
}

/// Two agents with one folder's copy. Fails when one takes the other's numbers for its own: its lines would be dropped.
#[test]
fn a_copied_folder_takes_a_new_id() {
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
    wait_status(&killed.folder, &killed.folder.path("copy"), "the second has sent all", |s| {
        s["files"].as_array().unwrap().iter().all(|f| f["acknowledged"] == f["size"])
    });
    wait_status(&killed.folder, &killed.folder.path("state"), "the first has sent all", |s| {
        s["files"].as_array().unwrap().iter().all(|f| f["acknowledged"] == f["size"])
    });
    let log = second.stop().expect_code(0).stderr;
    first.stop().expect_code(0);
    assert!(log.contains("put back from a backup"), "{log}");
    // What both have read stands twice; that is what two agents for one file do. Nothing is missing.
    Delivered::in_topic(&killed.topic).assert_at_least_once(&[&killed.lines()]);
}

/// Fails when a journal without contents passes for one that says that nothing was sent.
#[test]
fn a_zeroed_or_missing_journal_is_said_and_counted() {
    for zeroed in [true, false] {
        let killed = Killed::on(Broker::shared(Version::V41));
        match zeroed {
            true => {
                let len = std::fs::metadata(killed.folder.path("state/flights")).unwrap().len();
                killed.folder.write("state/flights", vec![0; len as usize]);
            }
            false => killed.folder.remove("state/flights"),
        }
        let (log, delivered, status) = killed.go_on();
        assert!(log.contains(if zeroed { "it is damaged" } else { "it is missing" }), "{log}");
        nothing_silent(&killed, &log, &delivered, &status);
        assert!(announced(&status) > 0);
    }
}

/// Fails when a broker that has forgotten the producer gets a resend that it cannot recognize, and nobody counts it.
#[test]
fn an_expired_producer_id_is_counted() {
    let conf = ["producer.id.expiration.ms=1000", "producer.id.expiration.check.interval.ms=200"];
    let broker = Broker::own_with(Version::V41, &conf);
    let killed = Killed::on(&broker);
    pause(secs(4));
    let (log, delivered, status) = killed.go_on();
    assert!(log.contains("has forgotten our producer id"), "{log}");
    assert!(nothing_silent(&killed, &log, &delivered, &status) > 0);
}

/// Fails when the agent waits for numbers that a new topic never knew.
#[test]
fn a_topic_that_was_created_anew() {
    let mut killed = Killed::on(Broker::shared(Version::V41));
    killed.topic.delete();
    killed.topic.create(&[]);
    let from = killed.next;
    write_some(&killed.folder, &mut killed.next, 1000, &["a.log"]);
    let (_, delivered, status) = killed.go_on();
    let verdict = delivered.against(&[&Lines::new("a", from..killed.next)]);
    assert!(verdict.missing.is_empty(), "{verdict}");
    assert!(verdict.doubled as u64 <= announced(&status), "{verdict}");
}

/// Fails when an open batch whose bytes are gone is forgotten without a word.
#[test]
fn a_source_that_is_gone_is_counted() {
    let killed = Killed::on(Broker::shared(Version::V41));
    killed.folder.remove("a.log");
    let mut agent = killed.folder.agent_line("run -c c.toml").start();
    pause(secs(1));
    let log = agent.stop().expect_code(0).stderr;
    assert!(log.contains("cannot be proved stored"), "{log}");
    assert!(totals(&killed.folder)["totals"]["uncertain"].as_u64().unwrap() > 0);
}

/// Deleted while its last batches have no answer, and kept by the service manager. Fails when flights are rebuilt from names only.
#[test]
fn a_source_that_is_gone_and_was_kept() {
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

/// Fails when a rebuilt batch depends on the config of now.
#[test]
fn a_changed_config_changes_nothing_that_was_sent() {
    let killed = Killed::on(Broker::shared(Version::V41));
    let changed = Chaos { kafka: "key = \"path\"\ncompression = \"gzip\"\nbatch = \"32KiB\"", ..SHORT };
    config(&killed.folder, &killed.topic, &changed);
    let (log, delivered, status) = killed.go_on();
    assert_eq!(nothing_silent(&killed, &log, &delivered, &status), 0);
    assert_eq!(announced(&status), 0, "{log}");
    assert!(status["exactly_once"]["resent"].as_u64() > Some(0));
}

/// Answers that are lost after the append, requests of which a part arrives, answers that come late; between them kills.
/// Fails when a batch of unknown outcome is sent under other numbers.
#[test]
fn lost_answers_and_torn_requests_among_kills() {
    let broker = Broker::shared(Version::V41);
    let (folder, topic) = (Folder::new(), broker.topic(3));
    let proxy = Proxy::to(&broker.address);
    config_by(&folder, &topic, &proxy.address, &SHORT);
    let (mut dice, mut next) = (Dice::new(21), 0);
    for round in 0..12 {
        let mut agent = folder.agent_line("run -c c.toml").start();
        proxy.mode(if round % 4 == 3 { Mode::Delay(millis(120)) } else { Mode::Pass });
        for _ in 0..10 + dice.below(20) {
            write_some(&folder, &mut next, 100, &["a.log", "b.log"]);
            match dice.below(6) {
                // One at a time: an answer that never comes holds the connection until it is cut.
                0 if proxy.pending() == 0 => proxy.drop_next_response(Api::Produce),
                1 if proxy.pending() == 0 => {
                    proxy.cut_next_request(Api::Produce, 1 + dice.below(5000) as usize);
                }
                2 => proxy.cut(),
                _ => {}
            }
            pause(millis(30));
        }
        agent.kill();
    }
    proxy.mode(Mode::Pass);
    let mut agent = folder.agent_line("run -c c.toml").start();
    topic.wait_count_for(2 * next, PATIENT);
    let log = agent.stop().expect_code(0).stderr;
    let written = [Lines::new("a", 0..next), Lines::new("b", 0..next)];
    Delivered::in_topic(&topic).assert_exactly_once(&[&written[0], &written[1]]);
    assert_eq!(announced(&totals(&folder)), 0, "{log}");
}

/// Multi-line records that end by a timeout, filters, and lines that are cut: rebuilt as they were, not framed anew.
#[test]
fn records_that_are_not_lines_among_kills() {
    let broker = Broker::shared(Version::V41);
    let (folder, topic) = (Folder::new(), broker.topic(2));
    config(&folder, &topic, &SHORT);
    let path = folder.path("c.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let more = "multiline = { start = '^#', timeout = \"100ms\" }\ndrop = ['^#\\d+ no']\nmax_line = 60\npartial_after = \"150ms\"\n";
    std::fs::write(&path, text + more).unwrap();
    let (mut n, mut want) = (0u64, Vec::new());
    for round in 0..12 {
        let mut agent = folder.agent_line("run -c c.toml").start();
        for _ in 0..12 + round {
            let mut block = String::new();
            for _ in 0..40 {
                let (long, no) = (n % 17 == 0, n % 5 == 0);
                let record = match (long, no) {
                    (true, _) => format!("#{n} {}", "x".repeat(100)),
                    (_, true) => format!("#{n} no"),
                    _ => format!("#{n} head\n  more of {n}"),
                };
                if long || !no {
                    want.push(record.as_bytes()[..record.len().min(60)].to_vec());
                }
                block += &record;
                block.push('\n');
                n += 1;
            }
            folder.append("a.log", block);
            pause(millis(25));
        }
        // So that no record is open at the kill: what follows would be another one's.
        pause(millis(400));
        agent.kill();
    }
    let mut agent = folder.agent_line("run -c c.toml").start();
    topic.wait_count_for(want.len() as u64, PATIENT);
    agent.stop().expect_code(0);
    let mut got = topic.values();
    got.sort();
    want.sort();
    assert!(got == want, "{} wanted, {} got", want.len(), got.len());
    assert_eq!(announced(&totals(&folder)), 0);
}
