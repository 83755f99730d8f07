//! Many agents whose only broker goes away and returns: how long until everything is delivered, and how their attempts
//! to connect are spread. Attempts are taken from the agents' debug logs.

use crate::harness::*;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// Agents on one topic, each with a folder and a log of its own. Killed when dropped.
struct Fleet {
    folder: Folder,
    topic: Topic,
    agents: Vec<Child>,
    written: u64,
}

/// One agent's attempt to connect.
struct Attempt {
    agent: usize,
    /// Time of its end, in seconds of the day.
    second: u64,
    accepted: bool,
}

impl Fleet {
    fn start(topic: Topic, size: usize) -> Fleet {
        let folder = Folder::new();
        let spawn = |i| {
            let name = format!("{i}");
            folder.write(&format!("{name}/f.log"), "");
            let args = ["--from", "beginning", "--state-dir", "state", "f.log"];
            Command::new(binary())
                .args(["run", "--brokers", &topic.address, "--topic", &topic.name])
                .args(args)
                .current_dir(folder.path(&name))
                .env("RUST_LOG", "logagent=debug")
                .env_remove("NOTIFY_SOCKET")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(File::create(folder.path(format!("{name}/log"))).unwrap())
                .spawn()
                .expect("the agent starts")
        };
        let agents = (0..size).map(spawn).collect();
        Fleet { folder, topic, agents, written: 0 }
    }

    fn lines(&self, agent: usize) -> Lines {
        Lines::new(&format!("agent{agent}"), 0..self.written)
    }
    /// One line to each log.
    fn write(&mut self) {
        for agent in 0..self.agents.len() {
            let line = Lines { range: self.written..self.written + 1, ..self.lines(agent) };
            line.append_to(&self.folder.path(format!("{agent}/f.log")));
        }
        self.written += 1;
    }
    fn write_for(&mut self, time: std::time::Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.write();
            pause(secs(1));
        }
    }
    /// Waits until there are as many records as lines. Polls rarely, because kcat's connections count towards the
    /// broker's limit too.
    #[track_caller]
    fn wait_all(&self, limit: std::time::Duration) {
        let all = self.written * self.agents.len() as u64;
        let end = Instant::now() + limit;
        while self.topic.end_offsets() < all {
            assert!(Instant::now() < end, "{} of {all} lines after {limit:?}", self.topic.end_offsets());
            pause(secs(1));
        }
    }

    fn attempts(&self) -> Vec<Attempt> {
        let of = |agent: usize| {
            let text = fs::read_to_string(self.folder.path(format!("{agent}/log"))).unwrap();
            let attempt = move |line: &str| {
                // `2026-11-22T18:15:17Z DEBUG connected to 127.0.0.1:9092`
                let (time, rest) = line.split_once('Z')?;
                let mut clock = time.split_once('T')?.1.split(':').map(|n| n.parse::<u64>().unwrap());
                let second = clock.next()? * 3600 + clock.next()? * 60 + clock.next()?;
                let accepted = rest.contains("DEBUG connected to ");
                let is_one = accepted || rest.contains("DEBUG no connection to ");
                is_one.then_some(Attempt { agent, second, accepted })
            };
            text.lines().filter_map(attempt).collect::<Vec<_>>()
        };
        (0..self.agents.len()).flat_map(of).collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// Whether a process listens on this port. No connection is made.
fn is_listening(port: u16) -> bool {
    let port = format!(":{port:04X}");
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|table| {
        let text = fs::read_to_string(table).unwrap_or_default();
        text.lines().any(|line| {
            let mut words = line.split_whitespace().skip(1);
            words.next().is_some_and(|local| local.ends_with(&port)) && words.nth(1) == Some("0A")
        })
    })
}

/// Seconds of the day, in UTC like the log.
fn second_of_the_day() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_secs() % 86_400
}

/// The broker is down for `outage` and returns with these settings.
#[track_caller]
fn broker_returns(size: usize, outage: std::time::Duration, settings: &[&str]) {
    let broker = Broker::own(Version::V39);
    let mut fleet = Fleet::start(broker.topic(12), size);
    fleet.write();
    fleet.wait_all(PATIENT);
    broker.stop();
    let stopped = second_of_the_day();
    fleet.write_for(outage);
    let (returned, at) = std::thread::scope(|scope| {
        let starter = scope.spawn(|| broker.restart_with(settings));
        wait_until(PATIENT, "the broker listens", || is_listening(broker.port()));
        let returned = (Instant::now(), second_of_the_day());
        starter.join().unwrap();
        returned
    });
    fleet.wait_all(secs(90));
    let took = returned.elapsed();
    let lines: Vec<Lines> = (0..size).map(|agent| fleet.lines(agent)).collect();
    let doubled = Delivered::in_topic(&fleet.topic).assert_at_least_once(&lines.iter().collect::<Vec<_>>());

    let attempts = fleet.attempts();
    let mut each_second: BTreeMap<u64, [u64; 2]> = (stopped..at + 60).map(|s| (s, [0, 0])).collect();
    let mut in_vain = vec![0; size];
    for Attempt { agent, second, accepted } in attempts.into_iter().filter(|a| a.second >= stopped) {
        each_second.entry(second).or_default()[usize::from(accepted)] += 1;
        in_vain[agent] += u64::from(!accepted && second > at);
    }
    let (lost, won) = (in_vain.iter().sum::<u64>(), in_vain.iter().max().unwrap());
    println!(
        "{size} agents, broker back after {outage:?} with {settings:?}: {} lines delivered {took:?} after its return, \
         {doubled} doubled; failed attempts after that: {lost}, at most {won} by one agent",
        fleet.written * size as u64
    );
    let last = each_second.iter().filter(|(_, n)| n.iter().sum::<u64>() > 0).map(|(s, _)| *s).max();
    for (second, [failed, accepted]) in each_second.range(..=last.unwrap_or(at)) {
        let from = *second as i64 - at as i64;
        println!(
            "  {from:>4} s: {failed:>4} failed {accepted:>4} accepted  {}",
            "#".repeat((failed + accepted) as usize / 4)
        );
    }
    // From the tenth second of the outage on. Too few agents leave some seconds empty by chance.
    let steady: Vec<u64> =
        each_second.range(stopped + 10..at.max(stopped + 11) - 1).map(|(_, n)| n.iter().sum()).collect();
    let mean = steady.iter().sum::<u64>() / steady.len().max(1) as u64;
    let even = steady.iter().all(|n| (mean / 2..=mean * 2).contains(n));
    assert!(even || size < 100, "the agents reconnect in step: {steady:?}");
    assert!(took < secs(60), "{took:?}");
    assert!(*won <= 3, "{in_vain:?}");
}

/// The short form. Fails when an agent gives up, waits longer than a few seconds, or loses a line.
#[test]
fn twenty_agents_find_their_broker_again() {
    broker_returns(20, secs(5), &[]);
}

/// Fails when agents reconnect in step during the outage, or an agent is delayed after it. Java: each producer
/// reconnects after 1 s ± 20 % (`ClusterConnectionStates`, `reconnect.backoff.max.ms`), and drops lines after
/// `delivery.timeout.ms`.
#[test]
#[ignore = "long form: tests/run --long"]
fn fleet_of_200() {
    broker_returns(200, secs(60), &[]);
}

/// Kafka's limit (KIP-612) delays: `ConnectionQuotas.waitForConnectionSlot` lets the acceptor sleep, connections wait in
/// the listen backlog (`socket.listen.backlog.size` = 50), and beyond that the kernel drops their SYNs. The listener's
/// own limit is set, because the broker-wide limit does not apply to the inter-broker listener. Fails when an agent
/// gives up too soon and so uses up the limit, or tries so often that others are kept out.
#[test]
#[ignore = "long form: tests/run --long"]
fn fleet_of_200_with_a_limited_rate_of_connections() {
    broker_returns(200, secs(60), &["listener.name.plaintext.max.connection.creation.rate=20"]);
}
