//! What the operator asks for: the config file and the command line, merged into one [`Config`] with every default
//! filled in. Starts nothing, and knows no stage: `commands/run.rs` makes each stage's options from it.
//!
//! A file is walked by hand, not by `serde`, because one run must name all its problems: [`syntax`] parses and repairs so
//! that a missing bracket does not hide the rest, [`typed`] takes up what stands there, key by key, and [`resolve`] merges,
//! fills in and checks what it means. Each problem knows its [`places`].

mod keys;
mod names;
mod nearest;
mod places;
mod resolve;
mod syntax;
mod typed;
mod units;
mod values;
mod walk;

use crate::chunk::{Chunk, Line};
use crate::error::Error;
use places::Problems;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
pub use units::{Broker, brokers};
pub use values::topic_name;
pub use walk::{Named, by_name};

/// Read when neither `-c` nor a FILE is given.
pub const DEFAULT_FILE: &str = "/etc/logagent.toml";

/// State folder when neither the config nor systemd (`$STATE_DIRECTORY`) names one.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/logagent";

/// The line table of a full chunk, in bytes; the chunk itself shrinks to what the budget allows, down to one line.
const LINE_TABLE: usize = Chunk::MAX_LINES * size_of::<Line>();

/// Everything decided: no value is missing, and every path is absolute.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    pub agent: Agent,
    pub output: Output,
    /// Prometheus text file for node_exporter.
    pub textfile: Option<PathBuf>,
    /// In the order of the config; never empty for `run`.
    pub sources: Vec<Source>,
    /// `--once`: end when everything there at first sight is acknowledged.
    pub once: bool,
    /// The config files that were read, the main one first; none when FILEs stand on the command line without `-c`.
    pub read_from: Vec<PathBuf>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Agent {
    /// `None`: nothing is saved.
    pub state_dir: Option<PathBuf>,
    /// Bytes between disk and ack.
    pub memory: usize,
    pub delivery: Delivery,
    pub sync: Sync,
    pub drain_timeout: Duration,
    pub damaged_state: DamagedState,
    pub hostname: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    AtLeastOnce,
    ExactlyOnce,
}

/// When saved state is forced to the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sync {
    Always,
    Every(Duration),
}

/// What to do when both copies of `offsets` are damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DamagedState {
    Refuse,
    Beginning,
}

#[derive(Clone, PartialEq, Debug)]
#[expect(clippy::large_enum_variant)] // a process has one
pub enum Output {
    Stdout,
    Kafka(Kafka),
}

#[derive(Clone, PartialEq, Debug)]
pub struct Kafka {
    /// Never empty.
    pub brokers: Vec<Broker>,
    pub acks: Acks,
    pub driver: Driver,
    pub client_id: String,
    pub key: Option<Key>,
    pub partition: Partition,
    pub compression: Compression,
    pub linger: Duration,
    /// Most bytes of one request's records before compression.
    pub batch: usize,
    /// Bytes per second, over all topics.
    pub rate: Option<u64>,
    pub create_topics: bool,
    /// `Some` (also an empty table) turns TLS on.
    pub tls: Option<Tls>,
    pub sasl: Option<Sasl>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acks {
    None,
    Leader,
    All,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Driver {
    Auto,
    Classic,
    Modern,
}

/// A regular expression; equal to another that is written the same.
#[derive(Clone)]
pub struct Regex(pub regex::bytes::Regex);

impl fmt::Debug for Regex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl PartialEq for Regex {
    fn eq(&self, other: &Regex) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// Where a record's key comes from.
#[derive(Clone, PartialEq, Debug)]
pub enum Key {
    /// Also `"host"`, which is the same for every record.
    Constant(Vec<u8>),
    Path,
    /// The first group, or the whole match where there is none.
    Regex(Regex),
    /// The way to a field of a line that is a JSON object; never empty.
    Field(Vec<String>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Partition {
    Sticky,
    Hash,
    RoundRobin,
    Random,
    Fixed(i32),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

/// Files are named, not read: they are read again at each connect.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Tls {
    /// PEM; the system's roots when missing.
    pub ca: Option<PathBuf>,
    /// Client certificate and its key; both or neither.
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// Checked against the broker's certificate in place of the host it was reached by.
    pub server_name: Option<String>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Sasl {
    pub mechanism: Mechanism,
    pub username: String,
    pub password_file: PathBuf,
    /// PLAIN without TLS, to other machines: the password is readable on the way.
    pub plain_without_tls: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mechanism {
    Plain,
    ScramSha256,
    ScramSha512,
}

/// One `[[files]]` table, or the FILEs of the command line.
#[derive(Clone, PartialEq, Debug)]
pub struct Source {
    /// Never empty.
    pub paths: Vec<Pattern>,
    /// Globs; one without `/` is for the file's name, another for the whole path.
    pub exclude: Vec<String>,
    /// `-` where standard output is written and no topic is named.
    pub topic: String,
    pub start: Start,
    pub must_exist: bool,
    pub follow: bool,
    pub reopen: bool,
    /// Look at the file this often instead of waiting for inotify.
    pub poll: Option<Duration>,
    pub rotate_grace: Duration,
    pub deleted_hold: Hold,
    /// Bytes.
    pub max_line: usize,
    pub partial_after: Option<Duration>,
    pub multiline: Option<Multiline>,
    /// A line is sent if one of these matches (or there is none), and none of `drop` does.
    pub include: Vec<Regex>,
    pub drop: Vec<Regex>,
    pub skip_empty: bool,
    pub format: Format,
    /// For [`Format::Json`]; `${host}` is filled in already.
    pub fields: Vec<(String, String)>,
    pub headers: Vec<(String, String)>,
    /// Bytes per second.
    pub rate_limit: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// This one path, whatever characters it has; it need not exist yet.
    Path(PathBuf),
    /// Absolute; every piece between two `/` is a glob by itself.
    Glob(String),
}

/// Where reading starts in a file that exists when its source is first known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    End,
    Beginning,
    Offset(u64),
}

/// How much of deleted files is kept open for unread lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hold {
    pub bytes: u64,
    pub time: Duration,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Multiline {
    pub joint: Joint,
    pub timeout: Duration,
    pub max_lines: usize,
}

/// Which lines belong together.
#[derive(Clone, PartialEq, Debug)]
pub enum Joint {
    /// A match starts a new record.
    Start(Regex),
    /// A match goes on with the record before it.
    Continue(Regex),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    Raw,
    Json,
}

/// What the command line says; it wins over the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `-c`.
    pub config: Option<PathBuf>,
    pub brokers: Option<Vec<Broker>>,
    pub topic: Option<String>,
    pub output: Option<OutputName>,
    pub from: Option<Start>,
    pub state_dir: Option<PathBuf>,
    pub driver: Option<Driver>,
    pub once: bool,
    /// In place of all `[[files]]`.
    pub files: Vec<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OutputName {
    Kafka,
    Stdout,
}

/// What the process finds around it; an argument, so that tests choose it.
#[derive(Clone, Debug)]
pub struct Surroundings {
    pub hostname: String,
    /// `$STATE_DIRECTORY`, set by systemd.
    pub state_directory: Option<PathBuf>,
    pub working_directory: PathBuf,
}

impl Surroundings {
    pub fn of_this_process() -> Self {
        let state = std::env::var_os("STATE_DIRECTORY").filter(|d| !d.is_empty());
        Surroundings {
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            // Several folders are separated by colons (systemd.exec(5)); ours is the first.
            state_directory: state.map(|dirs| {
                use std::os::unix::ffi::{OsStrExt, OsStringExt};
                let first = dirs.as_bytes().split(|b| *b == b':').next().unwrap_or_default();
                std::ffi::OsString::from_vec(first.to_vec()).into()
            }),
            working_directory: std::env::current_dir().unwrap_or_else(|_| "/".into()),
        }
    }
}

/// Reads and merges everything. The error has one line for each problem, of every kind, in the order of the files; its
/// code is 78 for the file's problems and 64 for the command line's.
pub fn load(asked: &Overrides) -> Result<Config, Error> {
    load_in(asked, &Surroundings::of_this_process())
}

fn load_in(asked: &Overrides, around: &Surroundings) -> Result<Config, Error> {
    let main = match &asked.config {
        Some(path) => Some(path.clone()),
        None if asked.files.is_empty() => Some(DEFAULT_FILE.into()),
        None => None,
    };
    let mut problems = Problems::default();
    let typed = match &main {
        None => typed::Typed::default(),
        Some(path) => typed::read(path, &mut problems)?,
    };
    let config = resolve::resolve(typed, asked, around, &mut problems)?;
    problems.into_result(config)
}

/// `[kafka]` alone and its topic, for `send`; the defaults where `asked` names no config. Errors as of [`load`].
pub fn load_kafka(asked: &Overrides) -> Result<(Kafka, String), Error> {
    let mut problems = Problems::default();
    let typed =
        asked.config.as_ref().map_or_else(|| Ok(Default::default()), |p| typed::read(p, &mut problems))?;
    let found = resolve::kafka(typed, asked, &Surroundings::of_this_process(), &mut problems)?;
    problems.into_result(found)
}

/// The state folder that `config` (or the default file) names. For `status`, which must work while the rest of the
/// config is wrong.
pub fn state_dir(config: Option<&Path>) -> Result<PathBuf, Error> {
    let mut ignored = Problems::default();
    let typed = typed::read(config.unwrap_or(Path::new(DEFAULT_FILE)), &mut ignored)?;
    Ok(resolve::state_dir(typed.agent.state_dir.value(), &Surroundings::of_this_process()))
}

/// How the byte budget is used, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryPlan {
    /// The workers' encoding buffers, taken from the budget at start.
    pub encoding: usize,
    pub topics: usize,
    /// The longest line and a chunk's line table: the least that a topic must get.
    pub per_topic: usize,
    /// The least `memory`. The budget is split into equal shares, so each must hold the largest `per_topic`.
    pub needed: usize,
}

impl Config {
    pub fn memory_plan(&self) -> MemoryPlan {
        let longest = self.sources.iter().map(|s| s.max_line).max().unwrap_or(0);
        let mut topics: Vec<&str> = self.sources.iter().map(|s| s.topic.as_str()).collect();
        topics.sort();
        topics.dedup();
        // A line longer than `batch` is sent alone.
        let encoding = match &self.output {
            Output::Stdout => 0,
            Output::Kafka(k) => k.batch.max(longest),
        };
        let per_topic = longest + LINE_TABLE;
        MemoryPlan { encoding, topics: topics.len(), per_topic, needed: encoding + topics.len() * per_topic }
    }

    /// What the config asks for that only the modern driver does, in the operator's words.
    pub fn needs_modern(&self) -> Vec<&'static str> {
        let Output::Kafka(k) = &self.output else { return Vec::new() };
        let mut all = k.needs_modern();
        if self.agent.delivery == Delivery::ExactlyOnce {
            all.insert(0, "exactly-once");
        }
        if self.sources.iter().any(|s| !s.headers.is_empty()) {
            all.push("headers");
        }
        all
    }
}

impl Kafka {
    /// As [`Config::needs_modern`], as far as `[kafka]` says it.
    pub fn needs_modern(&self) -> Vec<&'static str> {
        let all = [
            (self.tls.is_some(), "TLS"),
            (self.sasl.is_some(), "SASL"),
            (self.compression == Compression::Lz4, "lz4"),
            (self.compression == Compression::Zstd, "zstd"),
        ];
        all.into_iter().filter_map(|(asked, what)| asked.then_some(what)).collect()
    }
}

#[cfg(test)]
mod tests;
