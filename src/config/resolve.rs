//! Resolves the written values into the final config: the command line overrides the file, defaults may depend on other
//! keys, and some checks span several keys.

use super::keys::{JournalSource, Kafka, Source};
use super::mistake::{Conflict, Mistake};
use super::problem::{Problems, TableId, TextPosition};
use super::read::Written;
use super::table::defaults;
use super::*;
use crate::journal;
use crate::kafka::net::oauth::{OauthOptions, TokenSource};
use crate::watch::glob;

const AGENT: TableId = ("[agent]", 0);
const KAFKA: TableId = ("[kafka]", 0);
const SASL: TableId = ("[kafka.sasl]", 0);

/// Largest batch in bytes for which exactly-once can record an intent, whatever its lines are.
const LARGEST_INTENT: usize = 4 << 20;

/// Merges and checks. Problems of the config are added to `problems` (the result is then unusable); an invalid
/// command line is the error.
pub fn resolve(
    mut written: Written,
    asked: &Overrides,
    around: &Surroundings,
    problems: &mut Problems,
) -> Result<Config, Error> {
    let mut r = Resolver { asked, top: written.top, problems };
    let stdout = r.writes_stdout()?;
    let delivery = written.agent.delivery;
    r.kafka(&mut written.kafka, delivery);
    r.check_classic(&written, delivery);
    let (mut sources, mut journals) = (written.files, written.journals);
    for (i, source) in sources.iter_mut().enumerate() {
        r.source(source, i);
    }
    if let Some(units) = &asked.journal {
        sources.clear();
        journals = vec![JournalSource { units: units.clone(), ..defaults() }];
    } else if !asked.files.is_empty() {
        let paths: Result<_, Error> = asked.files.iter().map(|f| argument(f, around)).collect();
        let mut source = Source { paths: paths?, ..defaults() };
        r.source(&mut source, sources.len());
        sources = vec![source];
        journals.clear();
    } else if !written.has_files {
        r.missing(None, Mistake::NoFiles);
    }
    for journal in journals.iter_mut().filter(|_| asked.once || asked.from.is_some()) {
        journal.start = asked.from.unwrap_or(Start::Beginning);
    }
    r.check_journals(&journals);
    r.topics((&mut sources, &mut journals), &written.kafka, stdout);
    let mut agent = written.agent;
    agent.state_dir = match &asked.state_dir {
        Some(dir) => Some(absolute(dir, around)),
        None if r.top.is_some() => state_dir(agent.state_dir, around, r.problems),
        None => None,
    };
    let config = Config {
        agent,
        output: if stdout { Output::Stdout } else { Output::Kafka(written.kafka) },
        textfile: written.metrics.textfile,
        sources,
        journals,
        once: asked.once,
        read_from: written.read_from,
    };
    r.check_memory(&config);
    Ok(config)
}

/// `[kafka]` and its topic only: `send` follows no files and uses no sequence numbers.
pub fn kafka(
    mut written: Written,
    asked: &Overrides,
    problems: &mut Problems,
) -> Result<(Kafka, String), Error> {
    let mut r = Resolver { asked, top: written.top, problems };
    r.writes_stdout()?;
    written.files.clear();
    r.kafka(&mut written.kafka, Delivery::AtLeastOnce);
    r.check_classic(&written, Delivery::AtLeastOnce);
    let topic = asked.topic.clone().or(written.kafka.topic.clone());
    if topic.is_none() && !r.problems.has(KAFKA, "topic") {
        r.missing(r.problems.header_of(KAFKA), Mistake::MissingTopic);
    }
    Ok((written.kafka, topic.unwrap_or_default()))
}

/// The state folder: from the config, otherwise from systemd, otherwise the default (`written` if there is no
/// config).
pub fn state_dir(written: Option<PathBuf>, around: &Surroundings, problems: &Problems) -> Option<PathBuf> {
    let says = problems.place_of(AGENT, "state_dir").is_some();
    around.state_directory.clone().filter(|_| !says).or(written)
}

struct Resolver<'a> {
    asked: &'a Overrides,
    /// `None`: there is no config file, so every mistake is on the command line.
    top: Option<TextPosition>,
    problems: &'a mut Problems,
}

impl Resolver<'_> {
    fn missing(&mut self, place: Option<TextPosition>, mistake: Mistake) {
        if let Some(place) = place.or(self.top) {
            self.problems.add_missing(place, mistake);
        }
    }

    /// The output, and whether the command line alone provides everything it needs.
    fn writes_stdout(&mut self) -> Result<bool, Error> {
        let asked = self.asked;
        if asked.output == Some(OutputName::Stdout) {
            return Ok(true);
        }
        if self.top.is_some() {
            return Ok(false);
        }
        let lacking = match (&asked.brokers, &asked.topic) {
            (None, None) if asked.output.is_none() => return Ok(true),
            (None, None) => "--brokers and --topic",
            (None, _) => "--brokers",
            (_, None) => "--topic",
            _ => return Ok(false),
        };
        let why = format!("output to Kafka needs {lacking}");
        Err(Error::usage("run", why, "add it, or name a config file with -c, or use --output stdout"))
    }

    fn kafka(&mut self, kafka: &mut Kafka, delivery: Delivery) {
        if let Some(brokers) = &self.asked.brokers {
            kafka.brokers.clone_from(brokers);
        }
        kafka.driver = self.asked.driver.unwrap_or(kafka.driver);
        let has_key = self.problems.has(KAFKA, "key");
        if !self.problems.has(KAFKA, "partition") {
            kafka.partition = if has_key { Partitioner::Hash } else { Partitioner::Sticky };
        }
        if !self.problems.has(KAFKA, "batch") && delivery == Delivery::ExactlyOnce {
            // With exactly-once a partition has one batch in flight, so each batch costs a round trip; larger batches
            // come near the speed of at-least-once.
            kafka.batch = 880 << 10;
        }
        if let Some(budget) = kafka.budget {
            kafka.batch = kafka.batch.min(budget.request());
        }
        match kafka.partition {
            Partitioner::Hash if !has_key => {
                self.problems.add_at(KAFKA, "partition", Conflict::HashWithoutKey)
            }
            Partitioner::Sticky if kafka.key.is_some() => {
                self.problems.add_at(KAFKA, "partition", Conflict::StickyWithKey);
            }
            _ => {}
        }
        if delivery == Delivery::ExactlyOnce && kafka.acks != Acks::All {
            self.problems.add_at(KAFKA, "acks", Conflict::ExactlyOnceAcks);
        }
        if delivery == Delivery::ExactlyOnce && kafka.batch > LARGEST_INTENT {
            self.problems.add_at(KAFKA, "batch", Conflict::ExactlyOnceBatch(LARGEST_INTENT));
        }
        self.check_plain(kafka);
        match (kafka.proxy.as_ref().map(|url| url.user.is_some()), &kafka.proxy_password_file) {
            (Some(true), None) if !self.problems.has(KAFKA, "proxy_password_file") => {
                self.problems.add_at(KAFKA, "proxy", Conflict::ProxyUserWithoutPassword)
            }
            (Some(false) | None, Some(_)) => {
                self.problems.add_at(KAFKA, "proxy_password_file", Conflict::ProxyPasswordWithoutUser)
            }
            _ => {}
        }
    }

    /// PLAIN sends the password itself, OAUTHBEARER the token, and a token endpoint gets the client's secret.
    fn check_plain(&mut self, kafka: &Kafka) {
        let Some(sasl) = kafka.sasl.as_ref().filter(|sasl| sasl.needs_tls()) else { return };
        // Through a proxy, a loopback address is the proxy's.
        let is_local = |address: &BrokerAddress| kafka.proxy.is_none() && address.is_loopback();
        if let Sasl::OauthBearer(OauthOptions { source: TokenSource::Endpoint(endpoint), .. }) = sasl {
            let here = units::broker(&endpoint.url.address).is_ok_and(|address| is_local(&address));
            if !(endpoint.url.is_tls || here || endpoint.without_tls) {
                self.problems.add_at(SASL, "token_url", Conflict::TokenUrlWithoutTls);
            }
        }
        let has_tls = self.problems.header_of(("[kafka.tls]", 0)).is_some();
        let other = kafka.brokers.iter().find(|b| !is_local(b));
        if let (false, Some(broker)) = (has_tls, other) {
            let secret = if matches!(sasl, Sasl::OauthBearer(_)) { "token" } else { "password" };
            let conflict = Conflict::ReadableSecret(sasl.mechanism(), secret, broker.clone());
            self.problems.add_at(SASL, "mechanism", conflict);
        }
    }

    /// Features of the modern driver that conflict with `driver = "classic"`.
    fn check_classic(&mut self, written: &Written, delivery: Delivery) {
        if written.kafka.driver != DriverChoice::Classic {
            return;
        }
        let mut beyond = vec![(KAFKA, "proxy", "a proxy"), (KAFKA, "tls", "TLS"), (KAFKA, "sasl", "SASL")];
        match written.kafka.compression {
            Codec::Lz4 => beyond.push((KAFKA, "compression", "lz4")),
            Codec::Zstd => beyond.push((KAFKA, "compression", "zstd")),
            Codec::None | Codec::Gzip | Codec::Snappy => {}
        }
        if delivery == Delivery::ExactlyOnce {
            beyond.push((AGENT, "delivery", "exactly-once"));
        }
        beyond.extend((0..written.files.len()).map(|i| (("[[files]]", i), "headers", "headers")));
        beyond.extend((0..written.journals.len()).map(|i| (("[[journal]]", i), "headers", "headers")));
        for (table, key, what) in beyond {
            self.problems.add_at(table, key, Conflict::Classic(what));
        }
    }

    fn source(&mut self, source: &mut Source, number: usize) {
        let id: TableId = ("[[files]]", number);
        match self.asked.from {
            Some(from) => source.start = from,
            None if self.asked.once => source.start = Start::Beginning,
            None => {}
        }
        if !self.problems.has(id, "reopen") {
            source.reopen = source.follow;
        }
        if source.reopen && !source.follow {
            self.problems.add_at(id, "reopen", Conflict::ReopenWithoutFollow);
        }
        if matches!(source.format, Format::Raw) && !source.fields.is_empty() {
            self.problems.add_at(id, "fields", Conflict::FieldsOfRaw);
        }
    }

    /// A journal is one source: its positions are saved once.
    fn check_journals(&mut self, journals: &[JournalSource]) {
        let folders = |j: &JournalSource| {
            let all = journal::candidates(j.directory.as_deref(), j.namespace.as_deref());
            all.into_iter().map(|folder| folder.canonicalize().unwrap_or(folder)).collect::<Vec<_>>()
        };
        let all: Vec<_> = journals.iter().map(folders).collect();
        for (i, folders) in all.iter().enumerate() {
            if all[..i].iter().flatten().any(|before| folders.contains(before)) {
                self.missing(self.problems.header_of(("[[journal]]", i)), Conflict::SameJournal.into());
            }
        }
    }

    /// Every source gets its topic, except where lines go to standard output and none is named.
    fn topics(
        &mut self,
        (sources, journals): (&mut [Source], &mut [JournalSource]),
        kafka: &Kafka,
        stdout: bool,
    ) {
        let common = self.asked.topic.as_ref().or(kafka.topic.as_ref());
        let of_config = self.asked.files.is_empty() && self.asked.journal.is_none();
        let lacks = |table, i| !(of_config && self.problems.has((table, i), "topic"));
        let is_lacking = (0..sources.len()).any(|i| lacks("[[files]]", i))
            || (0..journals.len()).any(|i| lacks("[[journal]]", i));
        let of_files = sources.iter_mut().map(|s| &mut s.topic);
        for topic in of_files.chain(journals.iter_mut().map(|j| &mut j.topic)) {
            *topic = self.asked.topic.clone().or(topic.take()).or(common.cloned());
        }
        if is_lacking && common.is_none() && !stdout && !self.problems.has(KAFKA, "topic") {
            self.missing(self.problems.header_of(KAFKA), Mistake::MissingTopic);
        }
    }

    /// A budget that is too small would block a file forever at its first long line.
    fn check_memory(&mut self, config: &Config) {
        let (memory, plan) = (config.agent.memory, config.memory_plan());
        let place = self.problems.place_of(AGENT, "memory").or(self.problems.place_of(KAFKA, "batch"));
        if let Some(place) = place.or(self.top)
            && memory < plan.needed
        {
            self.problems.add(place, Conflict::Memory(memory, plan).into());
        }
    }
}

/// A FILE of the command line: literal if it exists, otherwise a glob if it contains glob characters.
fn argument(file: &Path, around: &Surroundings) -> Result<Pattern, Error> {
    let path = absolute(file, around);
    let Some(text) = file.to_str().filter(|t| units::has_glob(t)) else { return Ok(Pattern::path(&path)) };
    if path.symlink_metadata().is_ok() {
        return Ok(Pattern::path(&path));
    }
    // The current folder is literal, whatever characters its name contains.
    let pattern = match around.working_directory.to_str() {
        _ if text.starts_with('/') => text.to_owned(),
        Some(here) => {
            format!("{}/{}", glob::escape(here.trim_end_matches('/')), text.trim_start_matches("./"))
        }
        None => return Ok(Pattern::path(&path)),
    };
    units::path_glob(&pattern).map_err(|why| {
        Error::usage(format!("FILE {text}"), why, "give a path, or a glob such as '/var/log/*.log'")
    })
}

fn absolute(path: &Path, around: &Surroundings) -> PathBuf {
    around.working_directory.join(path).components().collect()
}
