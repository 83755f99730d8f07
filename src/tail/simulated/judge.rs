//! Checks that every written line is stored, how often, and in which order.

use super::{Delivery, Op, World, only};
use crate::producer::sim::broker::run_and_number;
use crate::tail::identity;
use std::collections::HashMap;
use std::fs;

impl World {
    /// Prints where a line is.
    fn show(&self, n: usize) {
        let line = &self.written[n];
        for entry in fs::read_dir(self.dir.path()).unwrap().map(Result::unwrap) {
            let bytes = fs::read(entry.path()).unwrap();
            let has = bytes.windows(7).any(|b| b == &line[..7]);
            let look = identity::look_at(&entry.path()).unwrap().unwrap();
            let (name, born) = (entry.file_name(), look.identity.born);
            eprintln!(
                "{name:?} {} bytes, has it: {has}, born {born:?}, modified {}",
                bytes.len(),
                look.modified
            );
        }
        eprintln!("{}", fs::read_to_string(self.state.path().join("offsets")).unwrap_or_default());
    }

    /// Lines with an equal result are in order. After a kill, lines that were not sent may get another partition, where later
    /// ones are stored already.
    fn ordered_by(&self, id: u64) -> (u64, u64) {
        let (run, line) = run_and_number(id);
        let stream = (0..=run).rev().find_map(|run| self.streams.get(&(run, line))).expect("was read").0;
        match self.is_once() {
            true if self.brokers.logs.len() == 1 => (0, stream),
            true if self.resumed.contains(&(run, line)) => (u64::MAX, line),
            _ => (run, stream),
        }
    }

    pub fn judge(&self, seed: u64) {
        let mut stored: HashMap<u64, u64> = HashMap::new();
        for id in self.brokers.logs.values().flat_map(|l| &l.lines) {
            *stored.entry(run_and_number(*id).1).or_default() += 1;
        }
        // Without birth times a reused inode may hide that a copy was read, or after a crash, which file was.
        let is_vague =
            identity::BIRTHLESS.get() && (self.did.contains(&Op::CopyTruncate) || self.crashes > 0);
        let say = |what: &str, n: usize| {
            if only().is_some() {
                self.show(n);
            }
            panic!(
                "seed {seed}, {:?}: line {n} of {} {what}; steps {:?}, lost {}",
                self.delivery,
                self.written.len(),
                self.did,
                self.lost
            )
        };
        let may_double = self.delivery == Delivery::Plain || self.crashes > 0 && !self.is_once();
        let mut doubled = 0;
        for n in 0..self.written.len() {
            match stored.get(&(n as u64)) {
                None => say("is missing", n),
                Some(times) if *times > 1 && !may_double && !is_vague => say("is stored twice", n),
                Some(times) => doubled += times - 1,
            }
        }
        let most = self.doubled_at_most;
        let (steps, delivery) = (&self.did, self.delivery);
        assert!(
            doubled <= most || is_vague,
            "seed {seed}: {doubled} doubled, {most} reported, after {steps:?}"
        );
        assert!(
            most == 0 || may_double || is_vague,
            "seed {seed}, {delivery:?}: {most} may be doubled, after {steps:?}"
        );
        assert!(
            self.lost == 0 || is_vague,
            "seed {seed}: {} bytes counted as lost, after {:?}",
            self.lost,
            self.did
        );
        if !is_vague {
            self.brokers.verify_order(|id| self.ordered_by(id));
        }
        // Files that appear and disappear within a step have no observable order.
        if self.crashes == 0 && !self.late && !is_vague && !self.meddled {
            let at = self.read.windows(2).position(|w| w[0] > w[1]);
            if let (Some(at), Some(_)) = (at, only()) {
                self.read[at..at + 2].iter().for_each(|n| self.show(*n as usize));
            }
            assert!(at.is_none(), "seed {seed}: out of order at {at:?} after {:?}", self.did);
        }
    }
}
