//! Derives each stage's options from the config.

use super::supervisor::SourceOptions;
use crate::budget::{Budget, Share};
use crate::config::{Boot, Config, Delivery, JournalFormat, JournalSource, Kafka, Output, Source};
use crate::journal::follow::JournalOptions;
use crate::journal::records::EntryRules;
use crate::journal::render::EntryFormat;
use crate::journal::{self, EntryFilter, JournalReading};
use crate::producer;
use crate::record::{Format, Key, Shape, Topic};
use crate::state::store::LETTERS;
use crate::tail::follow::Until;
use crate::tail::framing::Rules;
use crate::tail::open::Reading;
use crate::tail::{Followed, Start, TailOptions};
use crate::watch::Watched;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Maximum size of a chunk in bytes: large enough that a busy file needs few hand-overs, small enough that many fit
/// in the budget.
const CHUNK: usize = 512 << 10;

/// Polling interval where inotify reports no events.
const POLL: Duration = Duration::from_secs(1);

/// `--once`: how long to wait for a file that cannot be read.
const GIVE_UP: Duration = Duration::from_secs(5);

/// Each topic's share of the budget, kept across reloads.
pub struct Shares {
    budget: Arc<Budget>,
    of: BTreeMap<String, (Topic, Share)>,
}

impl Shares {
    pub fn of(budget: &Arc<Budget>) -> Shares {
        Shares { budget: budget.clone(), of: BTreeMap::new() }
    }

    /// Divides the budget among the topics of this config.
    fn divide(&mut self, config: &Config) {
        self.budget.resize(config.agent.memory.saturating_sub(config.memory_plan().encoding));
        let named = |topic: &str| config.topics().any(|t| t == topic);
        self.of.retain(|topic, (_, share)| {
            if !named(topic) {
                self.budget.retire(share);
            }
            named(topic)
        });
        for topic in config.topics() {
            let new = || (Topic::from(topic), self.budget.share());
            self.of.entry(topic.to_owned()).or_insert_with(new);
        }
    }
}

/// The options of each source. `start` does not apply to patterns that are already known.
pub fn sources(config: &Config, shares: &mut Shares, is_known: impl Fn(&[u8]) -> bool) -> Vec<SourceOptions> {
    shares.divide(config);
    let topics = &shares.of;
    let chunk = chunk_size(config, topics.len());
    let plan = |s: &Source| {
        let (topic, share) = &topics[s.topic()];
        let known = s.paths.iter().filter(|p| is_known(&p.text)).cloned().collect();
        let watched = Watched {
            patterns: s.paths.clone(),
            exclude: config.exclude(s),
            poll: s.poll.is_some(),
            linger: producer(config).linger,
        };
        SourceOptions {
            tail: TailOptions {
                topic: topic.clone(),
                shape: Arc::new(shape(config, s)),
                path: PathBuf::new(),
                reading: Reading { rules: rules(s), share: share.clone(), chunk },
                start: s.start,
                new_pattern: false,
                followed: Followed::default(),
                since: (0, 0),
                until: if config.once || !s.follow { Until::Read } else { Until::Stopped },
                give_up: config.once.then_some(GIVE_UP),
                reopen: s.reopen,
                poll: s.poll.unwrap_or(POLL),
                linger: producer(config).linger,
                rotate_grace: s.rotate_grace,
                line_after: s.partial_after,
                record_after: s.multiline.as_ref().map(|(_, timeout)| *timeout),
                deleted_hold: s.deleted_hold,
                rate: s.rate_limit,
            },
            watched,
            known,
            must_exist: s.must_exist,
        }
    };
    config.sources.iter().map(plan).collect()
}

/// A journal, and the name under which it is recorded as known.
pub struct JournalSourceOptions {
    pub name: Vec<u8>,
    pub options: JournalOptions,
}

/// The options of each journal; after [`sources`], which divides the budget.
pub fn journals(
    config: &Config,
    shares: &Shares,
    is_known: impl Fn(&[u8]) -> bool,
) -> Vec<JournalSourceOptions> {
    let chunk = chunk_size(config, shares.of.len());
    let options = |j: &JournalSource| {
        let (topic, share) = &shares.of[j.topic()];
        let folders = journal::candidates(j.directory.as_deref(), j.namespace.as_deref());
        let name = [b"journal:", folders[0].as_os_str().as_encoded_bytes()].concat();
        let options = JournalOptions {
            topic: topic.clone(),
            shape: Arc::new(journal_shape(config, j)),
            folders,
            reading: JournalReading {
                rules: entry_rules(config, j),
                share: share.clone(),
                chunk,
                copied: None,
            },
            from_beginning: j.start != Start::End,
            is_new: !is_known(&name),
            once: config.once,
            poll: POLL,
        };
        JournalSourceOptions { name, options }
    };
    config.journals.iter().map(options).collect()
}

fn entry_rules(config: &Config, j: &JournalSource) -> EntryRules {
    let filter = EntryFilter {
        units: j.units.iter().map(|name| unit(name)).collect(),
        exclude_units: j.exclude_units.iter().map(|name| unit(name)).chain(journal::own_unit()).collect(),
        identifiers: j.identifiers.clone(),
        priority: j.priority.map(|p| p.0),
        transports: j.transport.clone(),
        boot: j.boot.and_then(|Boot::Current| journal::boot_id()),
    };
    let format = match j.format {
        JournalFormat::Message => EntryFormat::Message,
        JournalFormat::Json => EntryFormat::Json { long: j.all },
    };
    let key = match record_key(config) {
        Key::Field(path) => Some(path.join(".")),
        _ => None,
    };
    EntryRules { filter, format, key, max_line: j.max_line }
}

/// As for journalctl and systemctl, a name without a unit type is a service (systemd.unit(5)).
fn unit(name: &str) -> String {
    let types = "service socket device mount automount swap target path timer slice scope";
    let has_type = name.rsplit_once('.').is_some_and(|(_, end)| types.split(' ').any(|t| t == end));
    if has_type { name.to_owned() } else { format!("{name}.service") }
}

fn journal_shape(config: &Config, j: &JournalSource) -> Shape {
    let key = match record_key(config) {
        Key::Field(_) => Key::Head, // a field of the entry, whatever the record's format
        key => key,
    };
    Shape { key, format: Format::Headed, headers: header_bytes(&j.headers) }
}

fn record_key(config: &Config) -> Key {
    match &config.output {
        Output::Kafka(k) => k.key.clone().unwrap_or_default(),
        Output::Stdout => Key::None,
    }
}

fn header_bytes(headers: &[(String, String)]) -> Vec<(String, Vec<u8>)> {
    headers.iter().map(|(k, v)| (k.clone(), v.clone().into_bytes())).collect()
}

/// Maximum bytes of a chunk when the budget is split among this many topics.
fn chunk_size(config: &Config, topics: usize) -> usize {
    whole_part(config).min(config.agent.memory / topics.max(1) / 8).max(4096)
}

/// The chunk size, chosen so that whole chunks fill a batch: a chunk larger than a batch would have to be distributed
/// line by line. With exactly-once, batches come close to what a broker accepts, framing included; chunks are a third
/// of the size, so that only a part of a batch has to be split off rather than half of it.
fn whole_part(config: &Config) -> usize {
    let finer = if config.agent.delivery == Delivery::ExactlyOnce { 3 } else { 1 };
    match &config.output {
        Output::Kafka(kafka) => batch(kafka) / batch(kafka).div_ceil(CHUNK).max(1) / finer,
        Output::Stdout => CHUNK,
    }
}

/// A batch is sent at once, so it holds no more than `rate` allows in a second.
fn batch(kafka: &Kafka) -> usize {
    let second = kafka.rate.map_or(usize::MAX, |rate| usize::try_from(rate).unwrap_or(usize::MAX));
    kafka.batch.min(second.max(4096))
}

fn rules(s: &Source) -> Rules {
    Rules {
        max_line: s.max_line,
        skip_empty: s.skip_empty,
        multiline: s.multiline.as_ref().map(|(multiline, _)| multiline.clone()),
        include: s.include.clone(),
        drop: s.drop.clone(),
    }
}

/// How a line becomes a record.
fn shape(config: &Config, s: &Source) -> Shape {
    let key = record_key(config);
    let format = match &s.format {
        Format::Raw | Format::Headed => Format::Raw,
        Format::Json { .. } => Format::Json { host: config.agent.hostname.clone(), fields: s.fields.clone() },
    };
    Shape { key, format, headers: header_bytes(&s.headers) }
}

pub fn producer(config: &Config) -> producer::ProducerOptions {
    let defaults = producer::ProducerOptions { seed: seed(), ..producer::ProducerOptions::default() };
    let Output::Kafka(kafka) = &config.output else { return defaults };
    producer::ProducerOptions {
        partitioner: kafka.partition,
        batch: batch(kafka),
        linger: kafka.linger,
        rate: kafka.rate,
        budget: kafka.budget,
        budget_file: config.agent.state_dir.as_ref().map(|dir| dir.join("budget")),
        dead_letter: config.agent.state_dir.as_ref().map(|dir| dir.join(LETTERS)),
        ..defaults
    }
}

/// The dead-letter file and its size limit in bytes.
pub fn dead_letter(config: &Config) -> (Option<PathBuf>, u64) {
    let options = producer(config);
    (options.dead_letter, options.dead_letter_limit)
}

/// Different in every process, so that two agents do not choose the same partitions and pauses.
pub fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0u8)
}
