//! From the config to each stage's options: the only place where both are known. Starts nothing.

use super::crew::Plan;
use crate::budget::{Budget, Share};
use crate::chunk::{Format, Key, Shape, Topic};
use crate::config::{self, Config, Joint, Output, Pattern, Source};
use crate::error::Error;
use crate::producer::{self, Partitioner};
use crate::tail::follow::Until;
use crate::tail::framing::{self, Multiline, Rules};
use crate::tail::open::Reading;
use crate::tail::{Followed, Hold, Options, Start};
use crate::watch::Watched;
use crate::watch::pattern::{self, Exclude};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Most bytes of a chunk: large enough that a busy file costs few hand-overs, small enough for many in the budget.
const CHUNK: usize = 512 << 10;

/// Where events do not come.
const POLL: Duration = Duration::from_secs(1);

/// `--once`: what hinders reading may pass for so long.
const GIVE_UP: Duration = Duration::from_secs(5);

/// Bytes of a batch that exactly-once can write an intent for, whatever its lines are like.
const LARGEST_BATCH: usize = 4 << 20;

/// What exactly-once cannot do is refused, rather than promised.
pub fn refuse_too_much(config: &Config) -> Result<(), Error> {
    let Output::Kafka(kafka) = &config.output else { return Ok(()) };
    if config.agent.delivery == config::Delivery::ExactlyOnce && kafka.batch > LARGEST_BATCH {
        let why = "delivery = \"exactly-once\" takes no batches over 4 MiB";
        return Err(Error::config("[kafka] batch", why, "write batch = \"4MiB\" or less"));
    }
    Ok(())
}

/// Each topic's share of the budget, over all configs.
pub struct Shares {
    budget: Arc<Budget>,
    of: BTreeMap<String, (Topic, Share)>,
}

impl Shares {
    pub fn of(budget: &Arc<Budget>) -> Shares {
        Shares { budget: budget.clone(), of: BTreeMap::new() }
    }

    /// Divides the budget between the topics of this config.
    fn divide(&mut self, config: &Config) {
        self.budget.resize(config.agent.memory.saturating_sub(config.memory_plan().encoding));
        let named = |topic: &str| config.sources.iter().any(|s| s.topic == topic);
        self.of.retain(|topic, (_, share)| {
            if !named(topic) {
                self.budget.retire(share);
            }
            named(topic)
        });
        for s in &config.sources {
            let new = || (Topic::from(s.topic.as_str()), self.budget.share());
            self.of.entry(s.topic.clone()).or_insert_with(new);
        }
    }
}

/// One plan for each source. To patterns that are known from before, `start` does not apply.
pub fn sources(
    config: &Config,
    shares: &mut Shares,
    is_known: impl Fn(&[u8]) -> bool,
) -> Result<Vec<Plan>, Error> {
    shares.divide(config);
    let topics = &shares.of;
    let chunk = whole_part(config).min(config.agent.memory / topics.len().max(1) / 8).max(4096);
    let plan = |s: &Source| {
        let (topic, share) = &topics[s.topic.as_str()];
        let watched = watched(s)?;
        let known = watched.patterns.iter().filter(|p| is_known(&p.text)).cloned().collect();
        Ok(Plan {
            tail: Options {
                topic: topic.clone(),
                shape: Arc::new(shape(config, s)),
                path: PathBuf::new(),
                reading: Reading { rules: rules(s), share: share.clone(), chunk },
                start: start(s.start),
                first_sight: false,
                followed: Followed::default(),
                since: (0, 0),
                until: if config.once || !s.follow { Until::Read } else { Until::Stopped },
                give_up: config.once.then_some(GIVE_UP),
                reopen: s.reopen,
                poll: s.poll.unwrap_or(POLL),
                rotate_grace: s.rotate_grace,
                rest_after: [s.partial_after, s.multiline.as_ref().map(|m| m.timeout)]
                    .into_iter()
                    .flatten()
                    .min(),
                deleted_hold: Hold { bytes: s.deleted_hold.bytes, time: s.deleted_hold.time },
                rate: s.rate_limit,
            },
            watched,
            known,
            must_exist: s.must_exist,
        })
    };
    config.sources.iter().map(plan).collect()
}

/// A chunk that whole numbers of fill a batch: a chunk that is larger than a batch would have to be dealt out line by line.
/// With exactly-once batches come near to what a broker takes, framing and all: so that what has no room is a part of them
/// and not the half, chunks are a third as large.
fn whole_part(config: &Config) -> usize {
    let finer = if config.agent.delivery == config::Delivery::ExactlyOnce { 3 } else { 1 };
    match &config.output {
        Output::Kafka(kafka) => kafka.batch / kafka.batch.div_ceil(CHUNK).max(1) / finer,
        Output::Stdout => CHUNK,
    }
}

fn watched(s: &Source) -> Result<Watched, Error> {
    let bad = |e: globset::Error| Error::config("glob", e, "correct it");
    let pattern = |p: &Pattern| match p {
        Pattern::Path(path) => Ok(pattern::Pattern::path(path)),
        Pattern::Glob(glob) => pattern::Pattern::glob(glob).map_err(bad),
    };
    Ok(Watched {
        patterns: s.paths.iter().map(pattern).collect::<Result<_, Error>>()?,
        exclude: Exclude::new(&s.exclude).map_err(bad)?,
        poll: s.poll.is_some(),
    })
}

fn start(s: config::Start) -> Start {
    match s {
        config::Start::Beginning => Start::Beginning,
        config::Start::End => Start::End,
        config::Start::Offset(n) => Start::Offset(n),
    }
}

fn rules(s: &Source) -> Rules {
    Rules {
        max_line: s.max_line,
        skip_empty: s.skip_empty,
        multiline: s.multiline.as_ref().map(|m| Multiline {
            joint: match &m.joint {
                Joint::Start(r) => framing::Joint::Start(r.0.clone()),
                Joint::Continue(r) => framing::Joint::Continue(r.0.clone()),
            },
            max_lines: m.max_lines,
        }),
        include: s.include.iter().map(|r| r.0.clone()).collect(),
        drop: s.drop.iter().map(|r| r.0.clone()).collect(),
    }
}

/// What makes a record of a line.
fn shape(config: &Config, s: &Source) -> Shape {
    let key = match &config.output {
        Output::Kafka(k) => k.key.as_ref(),
        Output::Stdout => None,
    };
    let key = match key {
        None => Key::None,
        Some(config::Key::Constant(c)) => Key::Constant(c.clone()),
        Some(config::Key::Path) => Key::Path,
        Some(config::Key::Regex(r)) => Key::Regex(r.0.clone()),
        Some(config::Key::Field(f)) => Key::Field(f.clone()),
    };
    let format = match s.format {
        config::Format::Raw => Format::Raw,
        config::Format::Json => {
            Format::Json { host: config.agent.hostname.clone(), fields: s.fields.clone() }
        }
    };
    let headers: Vec<_> = s.headers.iter().map(|(k, v)| (k.clone(), v.clone().into_bytes())).collect();
    Shape { key, format, headers }
}

pub fn ship(config: &Config) -> producer::Options {
    let defaults = producer::Options { seed: seed(), ..producer::Options::default() };
    let Output::Kafka(kafka) = &config.output else { return defaults };
    producer::Options {
        partitioner: match kafka.partition {
            config::Partition::Sticky => Partitioner::Sticky,
            config::Partition::Hash => Partitioner::Hash,
            config::Partition::RoundRobin => Partitioner::RoundRobin,
            config::Partition::Random => Partitioner::Random,
            config::Partition::Fixed(n) => Partitioner::Fixed(n),
        },
        batch: kafka.batch,
        linger: kafka.linger,
        rate: kafka.rate,
        dead_letter: config.agent.state_dir.as_ref().map(|dir| dir.join("dead-letter")),
        ..defaults
    }
}

/// Where refused records go, and how many bytes of them are kept.
pub fn dead_letter(config: &Config) -> (Option<PathBuf>, u64) {
    let options = ship(config);
    (options.dead_letter, options.dead_letter_limit)
}

/// Different in every process: two agents must not choose the same partitions and pauses.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0u8)
}
