//! Checks that every written line was delivered or is accounted for.

use super::{Op, World, only};
use crate::tail::identity;
use std::collections::HashMap;
use std::fs;

impl World {
    /// Prints where a line is, and what is known about that file.
    pub fn show(&self, n: usize) {
        let line = &self.written[n];
        for entry in fs::read_dir(self.dir.path()).unwrap().map(Result::unwrap) {
            let bytes = fs::read(entry.path()).unwrap();
            let has = bytes.windows(7).any(|b| b == &line[..7]);
            let look = identity::look_at(&entry.path()).unwrap().unwrap();
            let known = self.acked.values().find(|e| e.identity == look.identity);
            eprintln!(
                "{:?} {} bytes, has it: {has}, born {:?}, modified {}: {known:?}",
                entry.file_name(),
                bytes.len(),
                look.identity.born,
                look.modified
            );
        }
    }

    pub fn judge(&self, seed: u64) {
        let mut count: HashMap<&[u8], usize> = HashMap::new();
        for line in &self.delivered {
            *count.entry(line).or_default() += 1;
        }
        // Without birth times a reused inode may hide that a copy was read, or after a crash, which file was.
        let is_vague =
            identity::BIRTHLESS.get() && (self.did.contains(&Op::CopyTruncate) || self.crashes > 0);
        let say = |what: &str, n: usize| {
            if only().is_some() {
                self.show(n);
            }
            panic!(
                "seed {seed}: line {n} of {} {what}; steps {:?}, lost {}",
                self.written.len(),
                self.did,
                self.lost
            )
        };
        for (n, line) in self.written.iter().enumerate() {
            match count.remove(line.as_slice()) {
                None => say("is missing", n),
                Some(1) => {}
                Some(_) if self.crashes > 0 && !self.once || is_vague => {}
                Some(_) => say("was delivered twice", n),
            }
        }
        assert!(
            count.is_empty(),
            "seed {seed}: delivered but never written: {:?} after {:?}",
            count.keys().next().map(|k| String::from_utf8_lossy(k)),
            self.did
        );
        assert!(
            self.lost == 0 || is_vague,
            "seed {seed}: {} bytes counted as lost, after {:?}",
            self.lost,
            self.did
        );
        // Files that appear and disappear within a step have no observable order.
        if self.crashes == 0 && !self.late && !is_vague && !self.once {
            let at = self.delivered.windows(2).position(|w| w[0] > w[1]);
            if let (Some(at), Some(_)) = (at, only()) {
                for line in &self.delivered[at..at + 2] {
                    self.show(self.written.iter().position(|w| w == line).unwrap());
                }
            }
            assert!(at.is_none(), "seed {seed}: out of order at {at:?} after {:?}", self.did);
        }
    }
}
