//! Random days in the life of a log file, by seeds: appends cut anywhere, rotations, truncations,
//! removals, stops, kills, pauses. Ten of them daily, a hundred in the long form; `LOGAGENT_SEED=n` tries one alone.

use crate::harness::*;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::Instant;

/// Splitmix64.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

struct Soak {
    dice: Dice,
    folder: Folder,
    log: File,
    agent: Option<Agent>,
    paused: bool,
    kills: bool,
    next: u64,
    seen: Vec<Vec<u8>>,
    /// Whether a writer wrote into a renamed file: what it wrote interleaves.
    late: bool,
    did: Vec<String>,
}

const RUN: &str = "run --output stdout --from beginning --state-dir state f.log";

impl Soak {
    fn new(seed: u64, kills: bool) -> Soak {
        let folder = Folder::new();
        let log = open(&folder);
        let agent = Some(folder.agent_line(RUN).start());
        let (seen, did) = (Vec::new(), Vec::new());
        Soak { dice: Dice(seed), folder, log, agent, paused: false, kills, next: 0, seen, late: false, did }
    }

    fn append(&mut self) {
        let n = 1 + self.dice.below(30);
        let width = [30, 100, 1000, 5000][self.dice.below(4) as usize];
        let bytes = Lines::new("f", self.next..self.next + n).width(width).bytes();
        self.next += n;
        self.widths(n, width);
        let cut =
            if self.dice.below(3) == 0 { self.dice.below(bytes.len() as u64) as usize } else { bytes.len() };
        self.log.write_all(&bytes[..cut]).unwrap();
        if cut < bytes.len() {
            pause(millis(self.dice.below(20)));
            self.log.write_all(&bytes[cut..]).unwrap();
        }
    }

    fn widths(&mut self, n: u64, width: usize) {
        self.did.push(format!("{n}x{width}"));
    }

    fn rotate(&mut self) {
        crate::rotation::chain(&self.folder, "f.log");
        if self.dice.below(2) == 0 {
            self.late = true;
            self.append();
            pause(millis(self.dice.below(50)));
        }
        self.log = open(&self.folder);
    }

    /// Both take away what is not read, so it is read before.
    fn destroy(&mut self, by_copy: bool) {
        let Some(agent) = self.agent.as_ref().filter(|_| !self.paused) else { return };
        if !self.kills {
            agent.wait_lines(self.next as usize - self.seen.len());
        }
        wait_until(SOON, "what is in the file is delivered", || {
            self.folder.agent_line("status --state-dir state --shipped f.log").run().code() == Some(0)
        });
        if by_copy {
            let to = self.folder.path("f.log.1");
            if to.exists() {
                crate::rotation::chain(&self.folder, "f.log");
                self.log = open(&self.folder);
                return;
            }
            std::fs::copy(self.folder.path("f.log"), to).unwrap();
            self.log.set_len(0).unwrap();
        } else {
            self.folder.remove("f.log");
            self.log = open(&self.folder);
        }
    }

    fn step(&mut self) {
        match self.dice.below(1000) {
            0..800 => self.append(),
            800..820 => self.rotate(),
            820..830 => {
                let by_copy = self.dice.below(2) == 0;
                self.destroy(by_copy);
            }
            830..930 if self.agent.is_none() => self.agent = Some(self.folder.agent_line(RUN).start()),
            930..940 if !self.paused => self.end(),
            940..970 => {
                if let Some(agent) = &self.agent {
                    if self.paused {
                        agent.resume()
                    } else {
                        agent.pause()
                    }
                    self.paused = !self.paused;
                }
            }
            _ => {}
        }
        pause(millis(self.dice.below(20)));
    }

    fn end(&mut self) {
        let Some(mut agent) = self.agent.take() else { return };
        let done =
            if self.kills && self.dice.below(2) == 0 { agent.kill() } else { agent.stop().expect_code(0) };
        self.seen.extend(done.whole_lines());
    }

    /// Every line in its width, as it was written.
    fn judge(mut self, seed: u64) {
        if let Some(agent) = &self.agent {
            agent.resume();
        }
        self.paused = false;
        self.end();
        let mut last = self.folder.agent_line(RUN).start();
        let missing = |seen: usize| (self.next as usize).saturating_sub(seen + self.seen.len());
        if !self.kills {
            last.wait_lines(missing(0));
        }
        pause(secs(4)); // rests of rotated files
        self.seen.extend(last.stop().expect_code(0).lines());
        let mut count = std::collections::HashMap::new();
        for line in &self.seen {
            *count.entry(&line[..11]).or_insert(0usize) += 1;
        }
        let gone: Vec<u64> =
            (0..self.next).filter(|n| !count.contains_key(format!("f {n:09}").as_bytes())).collect();
        assert!(
            gone.is_empty(),
            "seed {seed}: {} of {} lines are missing, from {}",
            gone.len(),
            self.next,
            gone[0]
        );
        assert!(
            self.seen.iter().all(|l| Lines::new("f", 0..0).width(l.len()).line(number(l)) == *l),
            "seed {seed}: a line is not what was written"
        );
        if !self.kills {
            assert_eq!(self.seen.len() as u64, self.next, "seed {seed}: some came twice");
            let order = self.seen.windows(2).position(|w| number(&w[0]) > number(&w[1]));
            assert!(self.late || order.is_none(), "seed {seed}: out of order at {order:?}");
        }
    }
}

fn number(line: &[u8]) -> u64 {
    std::str::from_utf8(&line[2..11]).unwrap().parse().unwrap()
}

fn open(folder: &Folder) -> File {
    OpenOptions::new().create(true).append(true).open(folder.path("f.log")).unwrap()
}

fn soak(seeds: std::ops::Range<u64>, time: std::time::Duration, kills: bool) {
    let only = std::env::var("LOGAGENT_SEED").ok().and_then(|s| s.parse().ok());
    for seed in only.map_or(seeds, |s| s..s + 1) {
        let mut soak = Soak::new(seed, kills);
        let end = Instant::now() + time;
        while Instant::now() < end {
            soak.step();
        }
        soak.judge(seed);
    }
}

/// Fails when any rule of `follow::decide` is taken out.
#[test]
fn five_with_stops() {
    soak(0..5, secs(5), false);
}

/// Fails when a position is saved before its acknowledgement.
#[test]
fn five_with_kills() {
    soak(100..105, secs(5), true);
}

/// The long form; called from `long.rs`.
pub fn a_hundred() {
    soak(1000..1050, secs(15), false);
    soak(1050..1100, secs(15), true);
}
