//! The measurements: one line of JSON each, kept in a file, so that workloads can be measured separately. Medians are
//! computed on reading.

use crate::plan::Plan;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

/// The conditions under which a workload was measured.
#[derive(Clone, Serialize, Deserialize)]
pub struct About {
    pub work: char,
    pub date: String,
    /// Commit of the measured program.
    pub commit: String,
    pub machine: String,
    pub settings: String,
    /// By system; systems that were not installed are absent.
    pub versions: BTreeMap<String, String>,
}

/// One system, one case, one round.
#[derive(Clone, Serialize, Deserialize)]
pub struct Sample {
    pub work: char,
    pub case: String,
    pub system: String,
    pub round: u32,
    pub figures: BTreeMap<String, f64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Entry {
    About(About),
    Sample(Sample),
}

/// In place of a sample's system: all programs outside the benchmark.
pub const OTHERS: &str = "others on the machine";

pub struct Results {
    path: PathBuf,
    entries: Vec<Entry>,
}

impl Results {
    pub fn open(folder: &Path) -> Results {
        let path = folder.join("measured.jsonl");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let entries = text.lines().map(|l| serde_json::from_str(l).expect("a line of measured.jsonl"));
        Results { entries: entries.collect(), path }
    }
    /// Discards earlier measurements of this workload, unless rounds are to be added; returns the number of rounds kept.
    pub fn begin(&mut self, about: About, plan: &Plan) -> u32 {
        let work = about.work;
        self.entries.retain(|entry| match entry {
            Entry::About(known) => known.work != work,
            Entry::Sample(sample) => plan.add || sample.work != work,
        });
        self.entries.push(Entry::About(about));
        self.save();
        self.samples().filter(|s| s.work == work).map(|s| s.round).max().unwrap_or(0)
    }
    pub fn add(&mut self, sample: Sample) {
        let figures: Vec<String> = sample.figures.iter().map(|(k, v)| format!("{k} {v:.3}")).collect();
        eprintln!(
            "{} {} · {} · {} · {}",
            sample.work,
            sample.case,
            sample.system,
            figures.join(", "),
            sample.note
        );
        self.entries.push(Entry::Sample(sample));
        self.save();
    }
    fn save(&self) {
        let mut file = fs::File::create(&self.path).unwrap();
        for entry in &self.entries {
            writeln!(file, "{}", serde_json::to_string(entry).unwrap()).unwrap();
        }
    }

    pub fn about(&self, work: char) -> Option<&About> {
        self.entries.iter().find_map(|entry| match entry {
            Entry::About(about) if about.work == work => Some(about),
            _ => None,
        })
    }
    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Sample(sample) => Some(sample),
            Entry::About(_) => None,
        })
    }
    /// The value of each round.
    pub fn values(&self, work: char, case: &str, system: &str, figure: &str) -> Vec<f64> {
        let mine = self.samples().filter(|s| s.work == work && s.case == case && s.system == system);
        let mut values: Vec<f64> = mine.filter_map(|s| s.figures.get(figure).copied()).collect();
        values.sort_by(f64::total_cmp);
        values
    }
    pub fn median(&self, work: char, case: &str, system: &str, figure: &str) -> Option<f64> {
        let values = self.values(work, case, system, figure);
        let middle = values.len() / 2;
        match values.len() {
            0 => None,
            n if n % 2 == 1 => Some(values[middle]),
            _ => Some((values[middle - 1] + values[middle]) / 2.0),
        }
    }
    /// Over all rounds.
    pub fn worst(&self, work: char, case: &str, system: &str, figure: &str) -> Option<f64> {
        self.values(work, case, system, figure).last().copied()
    }
    pub fn note(&self, work: char, case: &str, system: &str) -> Option<&str> {
        let mut mine = self.samples().filter(|s| s.work == work && s.case == case && s.system == system);
        mine.find(|s| !s.note.is_empty()).map(|s| s.note.as_str())
    }
    /// Cases of a workload, in the order they were first measured.
    pub fn cases(&self, work: char) -> Vec<&str> {
        let mut cases: Vec<&str> = Vec::new();
        for sample in self.samples().filter(|s| s.work == work && s.system != OTHERS) {
            if !cases.contains(&sample.case.as_str()) {
                cases.push(&sample.case);
            }
        }
        cases
    }
}
