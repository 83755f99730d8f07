//! `status` against the truth, at random moments: the test knows what was written to which file and what has arrived in
//! the topic, while files are rotated, the network breaks, and the agent is stopped and killed. Nothing is written
//! during a check, so most of what `status` reports must be exact. `SEED=n` runs a single seed.

use crate::harness::*;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

/// Bytes of a line, including its end.
const WIDTH: u64 = 201;
/// As in the config.
const MEMORY: u64 = 192 << 10;
const BATCH: u64 = 16 << 10;
const RATE: u64 = 200 << 10;

/// One log, and all its files so far.
struct Log {
    name: &'static str,
    /// By inode (none is deleted, so none is reused): the lines it holds. The last is the file at the path.
    files: Vec<(u64, std::ops::Range<u64>)>,
}

impl Log {
    fn next(&self) -> u64 {
        self.files.last().map_or(0, |(_, lines)| lines.end)
    }
}

/// A consumer's view: how often each line of each log is in the topic.
type Arrived = HashMap<String, BTreeMap<u64, u64>>;

struct Day<'b> {
    dice: Dice,
    folder: Folder,
    proxy: Proxy,
    topic: &'b Topic,
    driver: &'static str,
    logs: Vec<Log>,
    agent: Option<Agent>,
    /// The most lines that can be doubled, given what was done to the agent.
    cap: u64,
    looks: u64,
    did: Vec<String>,
}

impl Day<'_> {
    fn new<'b>(seed: u64, broker: &Broker, topic: &'b Topic, driver: &'static str) -> Day<'b> {
        let folder = Folder::new();
        let proxy = Proxy::to(&broker.address);
        let config = format!(
            "[agent]\nstate_dir = {:?}\nmemory = {MEMORY}\ndrain_timeout = \"1s\"\n[kafka]\nbrokers = [{:?}]\ntopic = {:?}\n\
             driver = {driver:?}\nbatch = {BATCH}\nrate = {RATE}\n[[files]]\npaths = [{:?}, {:?}]\nmax_line = 4096\n\
             start = \"beginning\"\n",
            folder.path("state"),
            proxy.address,
            topic.name,
            folder.path("a.log"),
            folder.path("b.log"),
        );
        folder.write("c.toml", config);
        let mut day = Day {
            dice: Dice(seed),
            folder,
            proxy,
            topic,
            driver,
            logs: ["a", "b"].map(|name| Log { name, files: Vec::new() }).into(),
            agent: None,
            cap: 0,
            looks: 0,
            did: Vec::new(),
        };
        (0..2).for_each(|log| day.create(log));
        day.start();
        day
    }

    fn did(&mut self, what: impl Into<String>) {
        self.did.push(what.into());
    }

    fn start(&mut self) {
        self.agent = Some(self.folder.agent_line("run -c c.toml").start());
    }

    fn path(&self, log: usize) -> std::path::PathBuf {
        self.folder.path(format!("{}.log", self.logs[log].name))
    }

    fn create(&mut self, log: usize) {
        let path = self.path(log);
        std::fs::write(&path, "").unwrap();
        let next = self.logs[log].next();
        self.logs[log].files.push((path.metadata().unwrap().ino(), next..next));
    }

    fn append(&mut self, log: usize, n: u64) {
        let path = self.path(log);
        let (name, lines) = (self.logs[log].name, &mut self.logs[log].files.last_mut().unwrap().1);
        Lines::new(name, lines.end..lines.end + n).append_to(&path);
        lines.end += n;
    }

    fn rotate(&mut self, log: usize) {
        self.did(format!("rotate {log}"));
        crate::rotation::chain(&self.folder, &format!("{}.log", self.logs[log].name));
        self.create(log);
    }

    /// Lines acknowledged but not yet saved as such: one second's worth, plus the time of the save.
    const UNSAVED: u64 = 2 * RATE / WIDTH;

    fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            self.did("kill");
            agent.kill();
            self.cap += MEMORY / WIDTH + Self::UNSAVED;
        }
    }

    fn stop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            self.did("stop");
            agent.stop().expect_code(0);
            self.cap += MEMORY / WIDTH; // where drain_timeout ran out
        }
    }

    fn step(&mut self) {
        let log = self.dice.below(2) as usize;
        match self.dice.below(100) {
            0..55 => {
                let n = 1 + self.dice.below(60);
                self.append(log, n);
            }
            55..59 => self.rotate(log),
            59..63 => {
                let mode = [Mode::BlackHole, Mode::Refuse][self.dice.below(2) as usize];
                self.did(format!("{mode:?}"));
                self.proxy.mode(mode);
            }
            63..75 => self.proxy.mode(Mode::Pass),
            75..78 => self.proxy.drop_next_response(Api::Produce),
            78..80 => {
                let after = 1 + self.dice.below(20_000) as usize;
                self.proxy.cut_next_request(Api::Produce, after);
            }
            80..82 => self.kill(),
            82..84 => self.stop(),
            84..92 if self.agent.is_none() => {
                self.did("start");
                self.start();
            }
            92.. => self.look(),
            _ => {}
        }
        pause(millis(self.dice.below(40)));
    }

    fn arrived(&self) -> Arrived {
        let mut all = Arrived::new();
        self.topic.each(|r| {
            let text = std::str::from_utf8(r.value.unwrap()).unwrap();
            let mut words = text.split(' ');
            let (log, seq) = (words.next().unwrap(), words.next().unwrap().parse().unwrap());
            *all.entry(log.to_owned()).or_default().entry(seq).or_default() += 1;
        });
        all
    }

    /// Queries and compares. An acknowledged line has arrived by then; a doubled one was counted before.
    fn look(&mut self) {
        self.looks += 1;
        let end = Instant::now() + Self::STALE;
        loop {
            let doubled: u64 = self.arrived().values().flat_map(|log| log.values()).map(|n| n - 1).sum();
            let status = status_json(&self.folder, &self.folder.path("state"));
            let Err(why) = self.judge(&status, doubled, &self.arrived()) else { return };
            let (why, may_pass) = match why {
                Wrong::Old(why) => (why, Instant::now() < end),
                Wrong::Never(why) => (why, false),
            };
            assert!(may_pass, "{why}\ndid {:?}\n{status:#}", self.did);
            pause(millis(100));
        }
    }

    /// A tail that waits for memory checks its files every 2 s.
    const STALE: std::time::Duration = secs(4);

    fn judge(&self, status: &Value, doubled: u64, arrived: &Arrived) -> Result<(), Wrong> {
        let live = self.agent.is_some();
        must(status["live"] == live, || format!("live, and it is {live}"))?;
        for log in &self.logs {
            let path = self.folder.path(format!("{}.log", log.name)).display().to_string();
            let file = status["files"].as_array().unwrap().iter().find(|f| f["path"] == path.as_str());
            match file {
                Some(file) => judge_file(log, file, live, arrived)?,
                // The agent does not know the file before its first save.
                None => must(!live, || format!("{path} is followed"))?,
            }
        }
        let totals = |name: &str| status["totals"][name].as_u64().unwrap();
        let at_most = totals("doubled_at_most");
        // What a killed run had in flight is counted when the next run reads it again.
        must_become(!live || at_most >= doubled, || format!("{doubled} are doubled, and at most {at_most}"))?;
        // Classic counts a batch for each attempt that may have been stored; modern's repeats are recognized.
        let by_retries = if self.driver == "classic" { totals("retries") * (BATCH / WIDTH + 1) } else { 0 };
        let cap = self.cap + by_retries;
        must(at_most <= cap, || format!("{at_most} doubled at most, where only {cap} were in flight"))?;
        let stored: u64 = arrived.values().flat_map(|log| log.values()).sum();
        must(totals("acked") <= stored, || format!("{stored} lines have arrived"))?;
        must(totals("lost_bytes") == 0, || "nothing is lost".into())
    }

    /// Everything is repaired: after a while all is delivered, and every number is exact.
    fn evening(mut self) {
        self.proxy.mode(Mode::Pass);
        if self.agent.is_none() {
            self.start();
        }
        let state = self.folder.path("state");
        let written: u64 = self.logs.iter().map(Log::next).sum();
        let did = self.did.clone();
        wait_until(PATIENT, "nothing waits", || {
            let status = status_json(&self.folder, &state);
            let files = status["files"].as_array().unwrap();
            let live: u64 = files.iter().map(|f| f["acknowledged"].as_u64().unwrap()).sum();
            let last: u64 = self
                .logs
                .iter()
                .map(|l| l.files.last().unwrap())
                .map(|(_, r)| (r.end - r.start) * WIDTH)
                .sum();
            files.iter().all(|f| f["lag_bytes"] == 0) && live == last
        });
        self.look();
        let arrived = self.arrived();
        let distinct: u64 = arrived.values().map(|log| log.len() as u64).sum();
        assert_eq!(distinct, written, "lines that arrived, of those written; did {did:?}");
        let status = status_json(&self.folder, &state);
        assert_eq!(status["totals"]["acked"], written, "{status:#}\ndid {did:?}");
        assert_eq!(status["totals"]["uncertain"], 0, "{status:#}");
        self.agent.take().unwrap().stop().expect_code(0);
        let after = status_json(&self.folder, &state);
        assert_eq!(after["totals"], status["totals"], "the same after the end");
        self.look();
        println!(
            "{}: {written} lines, {} looks, cap {}, {:?}",
            self.driver, self.looks, self.cap, after["totals"]
        );
    }
}

/// How `status` is wrong.
enum Wrong {
    /// It may reflect the state of a moment ago.
    Old(String),
    Never(String),
}

fn must(holds: bool, what: impl FnOnce() -> String) -> Result<(), Wrong> {
    if holds { Ok(()) } else { Err(Wrong::Never(format!("not so: {}", what()))) }
}

fn must_become(holds: bool, what: impl FnOnce() -> String) -> Result<(), Wrong> {
    if holds { Ok(()) } else { Err(Wrong::Old(format!("not so: {}", what()))) }
}

fn judge_file(log: &Log, file: &Value, live: bool, arrived: &Arrived) -> Result<(), Wrong> {
    let none = BTreeMap::new();
    let here = arrived.get(log.name).unwrap_or(&none);
    let streams = file["streams"].as_array().unwrap();
    let (mut lag, mut seen) = (0, Vec::new());
    for stream in streams {
        let number = |name: &str| stream[name].as_u64().unwrap();
        let (saved, acked, framed, size) =
            (number("saved"), number("acknowledged"), number("framed"), number("size"));
        must(saved <= acked && acked <= framed && framed <= size, || format!("order in {stream}"))?;
        lag += size - acked;
        let Some(inode) = stream["identity"]["inode"].as_u64() else { continue };
        let Some((_, lines)) = log.files.iter().find(|(ino, _)| *ino == inode) else {
            return Err(Wrong::Never(format!("{} was never the file {inode}", log.name)));
        };
        seen.push(inode);
        let bytes = (lines.end - lines.start) * WIDTH;
        must_become(size == bytes || !live && size < bytes, || {
            format!("{inode} has {bytes} bytes: {stream}")
        })?;
        let first_open = lines.start + acked / WIDTH;
        if let Some(gone) = (lines.start..first_open).find(|n| !here.contains_key(n)) {
            let why = format!("{} {gone} has not arrived, and is acknowledged: {stream}", log.name);
            return Err(Wrong::Never(why));
        }
    }
    must(file["lag_bytes"] == lag, || format!("{lag} bytes wait"))?;
    if live && file["state"] == "following" {
        for (inode, lines) in log.files.iter().filter(|(inode, _)| !seen.contains(inode)) {
            let gone = lines.clone().find(|n| !here.contains_key(n));
            must_become(gone.is_none(), || {
                format!("{} {gone:?} waits in the file {inode}, which is not reported", log.name)
            })?;
        }
    }
    Ok(())
}

fn day(seed: u64, version: Version, driver: &'static str, time: std::time::Duration) {
    let broker = Broker::shared(version);
    let topic = broker.topic(1);
    let mut day = Day::new(seed, broker, &topic, driver);
    let end = Instant::now() + time;
    while Instant::now() < end {
        day.step();
    }
    day.look();
    day.evening();
}

/// Fails when a position is reported before its acknowledgement, when the rest of a rotated file is missing from the
/// lag, or when too few lines are counted after a kill.
#[test]
fn a_day_with_modern() {
    day(7, Version::V41, "modern", secs(20));
}
#[test]
fn a_day_with_classic() {
    day(8, Version::V39, "classic", secs(20));
}

/// The long form; called from `long.rs`.
pub fn many_days() {
    let only = std::env::var("SEED").ok().and_then(|s| s.parse().ok());
    for seed in only.map_or(100..110, |s| s..s + 1) {
        let (version, driver) =
            [(Version::V41, "modern"), (Version::V39, "classic"), (Version::V39, "modern")]
                [seed as usize % 3];
        println!("seed {seed}");
        day(seed, version, driver, secs(60));
    }
}
