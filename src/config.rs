//! Merges the config files and the command line into one [`Config`] with all defaults filled in. `commands/` derives
//! each stage's options from it.
//!
//! [`keys`] describes every key once; the parser, the suggestions of `check`, the example config, the manual page and
//! the reload rules are derived from it. [`read`] parses a file by these descriptions, by hand rather than with
//! `serde`, because one run must report all problems with their positions. [`resolve`] merges the values and checks
//! them together. A problem is a [`mistake::Mistake`] with a position until it is printed. An enum that is an option
//! of a stage belongs to that stage.

#[cfg(test)]
mod generated;
mod keys;
mod mistake;
mod names;
mod placeholder;
mod problem;
mod read;
mod resolve;
mod sasl;
mod show;
mod spec;
mod subtables;
mod table;
mod units;
mod values;
mod words;

use crate::chunk::Chunk;
use crate::error::Error;
pub use crate::kafka::net::proxy::ProxyUrl;
pub use crate::kafka::net::sasl::SaslOptions as Sasl;
pub use crate::kafka::protocol::codec::Codec;
pub use crate::producer::Partitioner;
pub use crate::producer::driver::Acks;
use crate::record::{Format, Key, Line};
use crate::report::metrics;
use crate::state::store;
pub use crate::state::{Damaged, Sync};
use crate::tail::Hold;
pub use crate::tail::Start;
use crate::tail::framing::{Joint, Multiline};
use crate::watch::pattern::{Exclude, Pattern};
pub use keys::{Agent, JournalSource, Kafka, Source};
use problem::Problems;
pub use spec::{KeySpec, Reload, ShownValue, TableSpec};
use std::path::{Path, PathBuf};
pub use subtables::KafkaTls;
pub use table::Described;
pub use units::{BrokerAddress, brokers, topic as topic_name};
pub use words::{Named, by_name};

/// The default config file, read when neither `-c` nor a FILE is given.
pub const DEFAULT_FILE: &str = "/etc/logagent.toml";

/// The line table of a full chunk, in bytes. The chunk itself shrinks to what the budget allows, down to one line.
const LINE_TABLE: usize = Chunk::MAX_LINES * size_of::<Line>();

/// The resolved config: no value is missing, and every path is absolute.
#[derive(Clone, Debug)]
pub struct Config {
    /// Without `state_dir`, nothing is saved.
    pub agent: Agent,
    pub output: Output,
    /// Prometheus text file for node_exporter.
    pub textfile: Option<PathBuf>,
    /// In the order of the config.
    pub sources: Vec<Source>,
    /// In the order of the config.
    pub journals: Vec<JournalSource>,
    /// `--once`: end when everything that existed at the start is acknowledged.
    pub once: bool,
    /// The config files that were read, the main one first; none when the command line has FILEs and no `-c`.
    pub read_from: Vec<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    AtLeastOnce,
    ExactlyOnce,
}

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant)] // a process has one
pub enum Output {
    Stdout,
    Kafka(Kafka),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DriverChoice {
    Auto,
    Classic,
    Modern,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mechanism {
    Plain,
    ScramSha256,
    ScramSha512,
    OauthBearer,
}

/// Options from the command line; they override the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `-c`.
    pub config: Option<PathBuf>,
    pub brokers: Option<Vec<BrokerAddress>>,
    pub topic: Option<String>,
    pub output: Option<OutputName>,
    pub from: Option<Start>,
    pub state_dir: Option<PathBuf>,
    pub driver: Option<DriverChoice>,
    pub once: bool,
    /// In place of all `[[files]]` and `[[journal]]`.
    pub files: Vec<PathBuf>,
    /// `--journal`, also in place of all of these: the units, if any.
    pub journal: Option<Vec<String>>,
}

/// What is sent for a journal entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JournalFormat {
    Message,
    Json,
}

/// A journal entry's priority, as in syslog(3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Priority(pub u8);

/// Which boots' entries of a journal are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Boot {
    Current,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OutputName {
    Kafka,
    Stdout,
}

/// The process's environment; an argument, so that tests can choose it.
#[derive(Clone, Debug)]
pub struct Surroundings {
    pub hostname: String,
    /// `$STATE_DIRECTORY`, set by systemd.
    pub state_directory: Option<PathBuf>,
    pub working_directory: PathBuf,
    /// A variable of the environment.
    pub env: fn(&str) -> Option<String>,
}

impl Surroundings {
    pub fn of_this_process() -> Self {
        let state = std::env::var_os("STATE_DIRECTORY").filter(|d| !d.is_empty());
        Surroundings {
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            // Multiple folders are separated by colons (systemd.exec(5)); ours is the first.
            state_directory: state.map(|dirs| {
                use std::os::unix::ffi::{OsStrExt, OsStringExt};
                let first = dirs.as_bytes().split(|b| *b == b':').next().unwrap_or_default();
                std::ffi::OsString::from_vec(first.to_vec()).into()
            }),
            working_directory: std::env::current_dir().unwrap_or_else(|_| "/".into()),
            env: |name| std::env::var(name).ok(),
        }
    }
}

/// Reads and merges everything. The error has one line per problem of any kind, in file order; its code is 78 for
/// problems of the file and 64 for those of the command line.
pub fn load(asked: &Overrides) -> Result<Config, Error> {
    load_in(asked, &Surroundings::of_this_process()).map(|(config, _)| config)
}

/// As [`load`], with the merged config as TOML, and where each value comes from.
pub fn load_and_show(asked: &Overrides) -> Result<(Config, String), Error> {
    load_in(asked, &Surroundings::of_this_process())
}

fn load_in(asked: &Overrides, around: &Surroundings) -> Result<(Config, String), Error> {
    let main = match &asked.config {
        Some(path) => Some(path.as_path()),
        None if asked.files.is_empty() && asked.journal.is_none() => Some(Path::new(DEFAULT_FILE)),
        None => None,
    };
    let mut problems = Problems::default();
    let written = read_in(main, asked, around, &mut problems)?;
    let config = resolve::resolve(written, asked, around, &mut problems)?;
    let shown = show::show(&problems);
    problems.into_result((config, shown))
}

fn read_in(
    main: Option<&Path>,
    asked: &Overrides,
    around: &Surroundings,
    problems: &mut Problems,
) -> Result<read::Written, Error> {
    let needs_brokers = asked.brokers.is_none() && asked.output != Some(OutputName::Stdout);
    let given: &[&str] = if needs_brokers { &[] } else { &["brokers"] };
    match main {
        Some(path) => read::read(path, around, given, problems),
        None => Ok(read::Written::nothing(&around.hostname)),
    }
}

/// `[kafka]` and the topic only, for `send`; the defaults if `asked` names no config. Errors as in [`load`].
pub fn load_kafka(asked: &Overrides) -> Result<(Kafka, String), Error> {
    let around = Surroundings::of_this_process();
    let mut problems = Problems::default();
    let written = read_in(asked.config.as_deref(), asked, &around, &mut problems)?;
    let found = resolve::kafka(written, asked, &mut problems)?;
    problems.into_result(found)
}

/// The state folder named by `config` (or by the default file, if it exists). For `status`, which must work while the
/// rest of the config is invalid.
pub fn state_dir(config: Option<&Path>) -> Result<PathBuf, Error> {
    state_dir_in(config, &Surroundings::of_this_process())
}

fn state_dir_in(config: Option<&Path>, around: &Surroundings) -> Result<PathBuf, Error> {
    let usual = Some(Path::new(DEFAULT_FILE)).filter(|file| file.exists());
    let mut ignored = Problems::default();
    let written = read_in(config.or(usual), &Overrides::default(), around, &mut ignored)?;
    let found = resolve::state_dir(written.agent.state_dir, around, &ignored);
    Ok(found.unwrap_or_else(|| unreachable!("state_dir has a default")))
}

/// How the byte budget is divided, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryPlan {
    /// The encoding buffers, taken from the budget at start.
    pub encoding: usize,
    pub topics: usize,
    /// The longest line plus a chunk's line table: the minimum per topic.
    pub per_topic: usize,
    /// The minimum of `memory`. The budget is split into equal shares, so each must hold the largest `per_topic`.
    pub needed: usize,
}

impl Config {
    /// What is left out of a source. That includes the files that the agent itself writes, unless `paths` names one of
    /// them: a pattern that matched them would feed on its own output.
    pub fn exclude(&self, source: &Source) -> Exclude {
        let mut exclude = source.exclude.clone();
        let own = self.own_files();
        if !source.paths.iter().any(|p| p.literal().is_some_and(|path| own.contains(&path))) {
            exclude.add(&own);
        }
        exclude
    }

    fn own_files(&self) -> Vec<PathBuf> {
        let state_dir = self.agent.state_dir.as_deref();
        let folders = [state_dir.map(Path::to_owned), state_dir.and_then(|dir| dir.canonicalize().ok())];
        let mut all: Vec<PathBuf> =
            folders.iter().flatten().flat_map(|dir| store::FILES.map(|name| dir.join(name))).collect();
        all.extend(self.textfile.iter().flat_map(|path| [path.clone(), metrics::new_file(path)]));
        all
    }

    pub fn memory_plan(&self) -> MemoryPlan {
        let files = self.sources.iter().map(|s| s.max_line);
        let longest = files.chain(self.journals.iter().map(|j| j.max_line)).max().unwrap_or(0);
        let mut topics: Vec<&str> = self.topics().collect();
        topics.sort_unstable();
        topics.dedup();
        // A line longer than `batch` is sent alone.
        let encoding = match &self.output {
            Output::Stdout => 0,
            Output::Kafka(k) => k.batch.max(longest),
        };
        let per_topic = longest + LINE_TABLE;
        MemoryPlan { encoding, topics: topics.len(), per_topic, needed: encoding + topics.len() * per_topic }
    }

    /// The topics of all sources; one may occur more than once.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.sources.iter().map(Source::topic).chain(self.journals.iter().map(JournalSource::topic))
    }

    /// The features in the config that only the modern driver supports, in the operator's words.
    pub fn needs_modern(&self) -> Vec<&'static str> {
        let Output::Kafka(k) = &self.output else { return Vec::new() };
        let mut all = k.needs_modern();
        if self.agent.delivery == Delivery::ExactlyOnce {
            all.insert(0, "exactly-once");
        }
        let mut headers =
            self.sources.iter().map(|s| &s.headers).chain(self.journals.iter().map(|j| &j.headers));
        if headers.any(|headers| !headers.is_empty()) {
            all.push("headers");
        }
        all
    }
}

impl Source {
    /// `-` if lines go to standard output and no topic is named.
    pub fn topic(&self) -> &str {
        self.topic.as_deref().unwrap_or("-")
    }
}

impl JournalSource {
    /// As [`Source::topic`].
    pub fn topic(&self) -> &str {
        self.topic.as_deref().unwrap_or("-")
    }
}

impl Kafka {
    /// Like [`Config::needs_modern`], for `[kafka]` only.
    pub fn needs_modern(&self) -> Vec<&'static str> {
        let all = [
            (self.proxy.is_some(), "a proxy"),
            (self.tls.is_some(), "TLS"),
            (self.sasl.is_some(), "SASL"),
            (self.budget.is_some(), "budget"),
            (self.compression == Codec::Lz4, "lz4"),
            (self.compression == Codec::Zstd, "zstd"),
        ];
        all.into_iter().filter_map(|(asked, what)| asked.then_some(what)).collect()
    }
}

#[cfg(test)]
mod tests;
