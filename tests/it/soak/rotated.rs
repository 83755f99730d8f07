//! A random history of a log whose pattern matches the rotated files too: all forms of rotation, compression, clock
//! steps, renames. Nothing is written between a copy and its truncation, because copytruncate itself would lose it.

use super::{Soak, open};
use crate::harness::Dice;
use crate::harness::*;
use std::fs::{self, File, OpenOptions};
use std::process::Command;
use std::time::SystemTime;

/// Naming scheme of rotated files.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Naming {
    /// f.log.1 is the newest.
    Numbered,
    /// f.log-20260101 is the oldest.
    Dated,
    /// f-20260101.log is the oldest.
    DatedStem,
    /// f.1.log is the newest.
    NumberedStem,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Packing {
    Never,
    AtOnce,
    /// At the next rotation.
    Delayed,
}

#[derive(Debug)]
pub struct Day {
    pub follow: &'static str,
    naming: Naming,
    packing: Packing,
    /// How many of 4 rotations use copytruncate.
    by_copy: u64,
    /// Rotate with the real logrotate.
    logrotate: bool,
    rotations: u32,
    renamed: u32,
}

impl Day {
    pub fn of(dice: &mut Dice) -> Day {
        let packing = [Packing::Never, Packing::AtOnce, Packing::Delayed][dice.below(3) as usize];
        let by_copy = [0, 2, 4][dice.below(3) as usize];
        let (naming, follow) = [
            (Naming::Numbered, "f.log*"),
            (Naming::Numbered, "f*"),
            (Naming::Dated, "f.log*"),
            (Naming::Dated, "f*"),
            (Naming::DatedStem, "f*"),
            (Naming::DatedStem, "f*.log"),
            (Naming::NumberedStem, "f*"),
        ][dice.below(7) as usize];
        let logrotate = naming == Naming::Numbered && dice.below(2) == 0;
        Day { follow, naming, packing, by_copy, logrotate, rotations: 0, renamed: 0 }
    }

    /// The name of the rotated file that is `n` rotations older than the newest.
    fn name(&self, n: u32) -> String {
        let date = 20_260_100 + self.rotations.saturating_sub(n);
        match self.naming {
            Naming::Numbered => format!("f.log.{}", n + 1),
            Naming::Dated => format!("f.log-{date}"),
            Naming::DatedStem => format!("f-{date}.log"),
            Naming::NumberedStem => format!("f.{}.log", n + 1),
        }
    }

    fn counts_down(&self) -> bool {
        matches!(self.naming, Naming::Numbered | Naming::NumberedStem)
    }
}

impl Soak {
    fn day(&mut self) -> &mut Day {
        self.day.as_mut().expect("a day with rotated files")
    }

    pub fn rotated_step(&mut self, seed: u64) {
        match self.dice.below(1000) {
            0..700 => self.append(),
            700..760 => self.rotate_any(),
            760..790 => self.step_the_clock(),
            790..820 if self.renames => self.rename_some(),
            820..900 if self.agent.is_none() => self.begin(seed),
            900..940 if !self.paused => self.end(),
            940..970 => self.pause_or_resume(),
            _ => {}
        }
        pause(millis(self.dice.below(20)));
    }

    fn begin(&mut self, seed: u64) {
        if self.dice.below(3) > 0 {
            self.agent = Some(self.agent().start());
            self.did.push("start".into());
            return;
        }
        self.did.push("--once".into());
        let done = self.agent().arg("--once").run().expect_code(0);
        self.keep(&done);
        self.seen.extend(done.lines());
        self.all_are_seen(seed);
    }

    fn rotate_any(&mut self) {
        let by_copy = self.dice.below(4) < self.day().by_copy;
        let late = !by_copy && self.dice.below(3) == 0;
        let (packing, slowly) = (self.day().packing, self.dice.below(3) == 0);
        self.did.push(format!("rotate {}", if by_copy { "by copy" } else { "by name" }));
        if self.day().logrotate {
            let how = if by_copy { " copytruncate\n" } else { " create 0600\n" };
            let packed = match packing {
                Packing::Never => " nocompress",
                Packing::AtOnce => " compress",
                Packing::Delayed => " compress\n delaycompress",
            };
            // No file is removed: an agent that is down or paused for twenty rotations would lose files it never saw.
            crate::logrotate::logrotate(&self.folder, &format!("{how}{packed}\n rotate 1000"));
            // gzip removes its input, with anything written to it meanwhile.
            if late && packing != Packing::AtOnce {
                self.append();
            }
            self.log = open(&self.folder);
            return;
        }
        self.day().rotations += 1;
        if self.day().counts_down() {
            self.shift();
        }
        let to = self.day().name(0);
        if by_copy {
            fs::copy(self.folder.path("f.log"), self.folder.path(&to)).unwrap();
            pause(millis(self.dice.below(30)));
            self.log.set_len(0).unwrap();
        } else {
            self.folder.rename("f.log", &to);
            if late {
                self.append();
                pause(millis(self.dice.below(50)));
            }
            self.log = open(&self.folder);
        }
        let due = match packing {
            Packing::Never => return,
            Packing::AtOnce => to,
            Packing::Delayed => self.day().name(1),
        };
        if self.folder.path(&due).exists() {
            self.pack(&due, slowly);
        }
    }

    /// f.log.1 becomes f.log.2 and so on.
    fn shift(&mut self) {
        for n in (0..60).rev() {
            let (from, to) = (self.day().name(n), self.day().name(n + 1));
            for suffix in ["", ".gz"] {
                if self.folder.path(format!("{from}{suffix}")).exists() {
                    self.folder.rename(&format!("{from}{suffix}"), &format!("{to}{suffix}"));
                }
            }
        }
    }

    /// Does what gzip(1) does; slowly, so that the agent sees the `.gz` before it is complete, and may stop meanwhile.
    fn pack(&mut self, name: &str, slowly: bool) {
        let path = self.folder.path(name);
        if !slowly {
            let done = Command::new("gzip").arg(&path).status().unwrap();
            assert!(done.success(), "gzip {name}");
            self.did.push(format!("gzip {name}"));
            return;
        }
        let packed = Command::new("gzip").arg("-c").arg(&path).output().unwrap().stdout;
        let (to, half) = (format!("{name}.gz"), packed.len() / 2);
        self.folder.append(&to, &packed[..half]);
        pause(millis(self.dice.below(300)));
        if self.dice.below(3) == 0 && !self.paused {
            self.end();
        }
        self.folder.append(&to, &packed[half..]);
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        File::open(self.folder.path(&to)).unwrap().set_modified(modified).unwrap();
        pause(millis(self.dice.below(30)));
        self.folder.remove(name);
        self.did.push(format!("gzip {name} slowly"));
    }

    /// Names of rotated files, in the order of names.
    fn rotated(&self) -> Vec<String> {
        let names =
            fs::read_dir(self.folder.root()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|n| n.starts_with('f') && n != "f.log").collect();
        names.sort();
        names
    }

    fn choose(&mut self, among: &[String]) -> Option<String> {
        let n = self.dice.below(among.len().max(1) as u64) as usize;
        among.get(n).cloned()
    }

    /// Sets times as from a wrong clock, rsync or tar.
    fn step_the_clock(&mut self) {
        let mut names = self.rotated();
        names.push("f.log".into());
        let Some(name) = self.choose(&names) else { return };
        let now = SystemTime::now();
        let time = match self.dice.below(5) {
            0 => SystemTime::UNIX_EPOCH + secs(self.dice.below(1000)),
            1 => now - secs(3600 + self.dice.below(3)),
            2 => now + secs(86_400 * 365),
            3 => now - secs(1) - millis(self.dice.below(1000)),
            _ => fs::metadata(self.folder.path("f.log")).unwrap().modified().unwrap(),
        };
        OpenOptions::new().append(true).open(self.folder.path(&name)).unwrap().set_modified(time).unwrap();
        self.did.push(format!("touch {name}"));
    }

    /// An administrator tidies up, mostly while no agent runs.
    fn rename_some(&mut self) {
        let what = self.dice.below(3);
        if self.agent.is_some() && !self.paused && self.dice.below(4) > 0 {
            return;
        }
        let plain: Vec<String> = self.rotated().into_iter().filter(|n| !n.ends_with(".gz")).collect();
        let (a, b) = (self.choose(&plain), self.choose(&plain));
        match (what, a, b) {
            (0, Some(a), Some(b)) if a != b => self.swap(&a, &b),
            (1, Some(a), _) => {
                self.swap(&a, "f.log");
                self.log = open(&self.folder);
            }
            (2, ..) => {
                let all = self.rotated();
                let Some(name) = self.choose(&all) else { return };
                self.day().renamed += 1;
                let n = self.day().renamed;
                let to = match (self.day().naming, name.ends_with(".gz")) {
                    (Naming::Numbered | Naming::Dated, false) => format!("f.log.old{n}"),
                    (Naming::Numbered | Naming::Dated, true) => format!("f.log.old{n}.gz"),
                    (_, false) => format!("f-old{n}.log"),
                    (_, true) => return,
                };
                self.folder.rename(&name, &to);
                self.did.push(format!("mv {name} {to}"));
            }
            _ => {}
        }
    }

    fn swap(&mut self, a: &str, b: &str) {
        self.folder.rename(a, ".aside");
        self.folder.rename(b, a);
        self.folder.rename(".aside", b);
        self.did.push(format!("swap {a} {b}"));
    }
}
