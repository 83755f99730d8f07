//! The workloads and what they share: brokers, the order of systems, one system running on a topic of its own.

mod growth;
mod idle;
mod latency;
mod many;
mod outage;
mod quiet;
mod ship;
mod startup;
mod steady;
mod trickle;
mod uplink;

use crate::{
    corpus::{Check, Corpus},
    harness::{Broker, Folder, Topic, Version, binary, secs},
    offsets::Offsets,
    plan::Plan,
    results::{About, OTHERS, Results, Sample},
    running::{self, Running},
    systems::{self, How, Job, Kind, System},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// As in most topics.
const PARTITIONS: u32 = 3;

/// One kind of work.
struct Work {
    letter: char,
    settings: fn(&Plan) -> String,
    takes: fn(&System) -> bool,
    round: fn(&mut Bench<'_>, u32),
}

const ALL: [Work; 11] = [
    ship::WORK,
    latency::WORK,
    outage::WORK,
    idle::WORK,
    many::WORK,
    uplink::WORK,
    startup::WORK,
    growth::WORK,
    trickle::WORK,
    steady::WORK,
    quiet::WORK,
];

/// Whether a system takes part in a workload.
pub fn takes(letter: char, system: &System) -> bool {
    ALL.iter().any(|work| work.letter == letter && (work.takes)(system))
}

pub fn run(plan: &Plan) {
    let files = rustix::process::Resource::Nofile;
    let mut limit = rustix::process::getrlimit(files);
    limit.current = limit.maximum.map(|most| most.min(65_536)).or(Some(65_536));
    let _ = rustix::process::setrlimit(files, limit);

    let versions: BTreeMap<String, String> =
        systems::ALL.iter().filter_map(|s| Some((s.name.to_owned(), s.version()?))).collect();
    for system in systems::ALL {
        eprintln!("{}: {}", system.name, versions.get(system.name).map_or("not run", String::as_str));
    }
    let mut bench = Bench {
        plan,
        results: Results::open(&plan.out),
        broker: Broker::own(Version::V41),
        old: None,
        reachable: None,
        folder: Folder::new(),
        systems: systems::ALL
            .into_iter()
            .filter(|s| versions.contains_key(s.name) && is_asked_for(plan, s))
            .collect(),
    };
    for work in ALL.iter().filter(|work| plan.only.contains(&work.letter)) {
        let about = About {
            work: work.letter,
            date: output("date", &["-u", "+%F %H:%M UTC"]),
            commit: output("git", &["rev-parse", "--short", "HEAD"]),
            machine: machine(),
            settings: (work.settings)(plan),
            versions: versions.clone(),
        };
        let before = bench.results.begin(about, plan);
        for round in before + 1..=before + plan.runs {
            let before = Spent::now(&bench);
            (work.round)(&mut bench, round);
            let cores = Spent::now(&bench).others_since(&before);
            bench.add(work, "", round, OTHERS, &[("cores", cores)], "");
        }
    }
}

fn is_asked_for(plan: &Plan, system: &System) -> bool {
    plan.systems.as_ref().is_none_or(|list| list.iter().any(|name| system.is_called(name)))
}

fn output(command: &str, args: &[&str]) -> String {
    let output = Command::new(command).args(args).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}

fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("").trim_matches([':', '\t', ' ']);
    let cores = info.lines().filter(|l| l.starts_with("processor")).count();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    let kernel = output("uname", &["-sr"]);
    let agent = std::fs::metadata(binary()).map_or(0, |m| m.len());
    format!("{cores} cores ({model}), {} GiB, {kernel}; agent's binary {agent} bytes", kib >> 20)
}

struct Bench<'a> {
    plan: &'a Plan,
    results: Results,
    broker: Broker,
    /// A broker older than 4.0, for the classic driver.
    old: Option<Broker>,
    /// With TLS, for programs in network namespaces.
    reachable: Option<Broker>,
    folder: Folder,
    systems: Vec<System>,
}

impl Bench<'_> {
    /// The participants; each round starts with a different one.
    fn order(&self, work: &Work, round: u32) -> Vec<System> {
        let mut order: Vec<System> = self.systems.iter().copied().filter(|s| (work.takes)(s)).collect();
        if !order.is_empty() {
            let by = round as usize % order.len();
            order.rotate_left(by);
        }
        order
    }
    fn broker_for(&mut self, system: &System) -> &Broker {
        if system.kind == (Kind::Agent { driver: "classic" }) {
            return self.old.get_or_insert_with(|| Broker::own(Version::V39));
        }
        &self.broker
    }
    /// The folder with these files, written once.
    fn data(&self, name: &str, corpus: Corpus) -> PathBuf {
        let folder = self.folder.path(name);
        corpus.write(&folder);
        folder
    }
    fn begin(&mut self, system: &System, data: &Path, corpus: Corpus, compression: &str) -> AtWork {
        let topic = self.broker_for(system).topic(PARTITIONS);
        let address = topic.address.clone();
        self.begin_at(system, data, corpus, How::compressed(compression), topic, &address)
    }
    /// Like [`Bench::begin`], through another address of the broker.
    fn begin_at(
        &self,
        system: &System,
        data: &Path,
        corpus: Corpus,
        how: How<'_>,
        topic: Topic,
        brokers: &str,
    ) -> AtWork {
        let state = self.folder.path(format!("state-{}", topic.name));
        let pattern = corpus.pattern(data);
        let job =
            Job { pattern: &pattern, topic: &topic.name, brokers, lines: corpus.total(), state: &state, how };
        let mut offsets = Offsets::of(&topic);
        offsets.now();
        let running = Running::start(system, &job);
        AtWork { system: *system, running, offsets, topic, corpus, state, note: String::new() }
    }
    fn add(&mut self, work: &Work, case: &str, round: u32, name: &str, figures: &[(&str, f64)], note: &str) {
        self.results.add(Sample {
            work: work.letter,
            case: case.into(),
            system: name.into(),
            round,
            figures: figures.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
            note: note.into(),
        });
    }
}

/// Processor time so far, to find out afterwards how much other programs used: a figure is only as good as the
/// machine was quiet.
struct Spent {
    at: Instant,
    all: Duration,
    /// Of this process, with the children it has waited for, and of the brokers, by process.
    ours: Vec<(u32, Duration)>,
}

impl Spent {
    fn now(bench: &Bench<'_>) -> Spent {
        let brokers =
            [Some(&bench.broker), bench.old.as_ref(), bench.reachable.as_ref()].into_iter().flatten();
        let ours = brokers.map(|broker| broker.pid()).chain([std::process::id()]);
        let (at, all) = (Instant::now(), running::machine_ticks());
        Spent { at, all, ours: ours.map(|pid| (pid, running::ticks(pid))).collect() }
    }
    /// In cores. A restarted broker counts from its start.
    fn others_since(&self, before: &Spent) -> f64 {
        let was = |pid: u32| before.ours.iter().find(|b| b.0 == pid).map_or(Duration::ZERO, |b| b.1);
        let ours: Duration = self.ours.iter().map(|(pid, time)| time.saturating_sub(was(*pid))).sum();
        let others = (self.all - before.all).saturating_sub(ours);
        others.as_secs_f64() / (self.at - before.at).as_secs_f64()
    }
}

/// A system shipping to a topic of its own.
struct AtWork {
    system: System,
    running: Running,
    offsets: Offsets,
    topic: Topic,
    corpus: Corpus,
    state: PathBuf,
    note: String,
}

impl AtWork {
    /// Stops it, reads the topic, and removes the topic and the state.
    fn end(mut self) -> (Check, String) {
        self.running.stop(secs(15));
        let check = if self.system == systems::PERF_TEST {
            self.corpus.count(&self.topic)
        } else {
            self.corpus.check(&self.topic)
        };
        self.topic.delete();
        let _ = std::fs::remove_dir_all(&self.state);
        (check, self.note)
    }
    /// Checks every `step` until the topic holds all lines, or all that arrive without further writes.
    fn wait(&mut self, step: Duration, limit: Duration) -> Option<Instant> {
        let enough = self.corpus.total().saturating_sub(self.system.holds_back());
        self.offsets.wait(enough, step, limit, || self.running.ended())
    }
    /// Records why no more lines will arrive in the results, and prints the program's own output.
    fn remark(&mut self, what: &str) {
        let ended = if self.running.ended() { ", it ended" } else { "" };
        self.note = format!("{what}{ended}");
        eprintln!("{}: {}: {}", self.system.name, self.note, self.running.said());
    }
}

/// Figures of a check, which every workload adds to its own.
fn checked(check: &Check) -> [(&'static str, f64); 3] {
    [("missing", check.missing as f64), ("doubled", check.doubled as f64), ("strange", check.strange as f64)]
}
