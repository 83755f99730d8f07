//! From what was typed to what it means: the command line over the file, defaults for the rest, and the checks that need
//! more than one key. Reads nothing but whether a FILE of the command line exists.

use super::places::{Place, Problems};
use super::typed::{self, Typed};
use super::values::path_glob;
use super::walk::Field;
use super::*;

/// Merges and checks. Problems of the config go to `problems` (then the result is not to be used); a wrong command line
/// is the error.
pub fn resolve(
    typed: Typed,
    asked: &Overrides,
    around: &Surroundings,
    problems: &mut Problems,
) -> Result<Config, Error> {
    let mut r = Resolver { asked, around, top: typed.top, problems };
    let delivery = typed.agent.delivery.get().copied().unwrap_or(Delivery::AtLeastOnce);
    r.check_classic(&typed);
    r.check_kafka(&typed.kafka, delivery);
    let memory_place = typed.agent.memory.place().or(typed.kafka.batch.place()).or(typed.top);
    let stdout = r.writes_stdout(&typed)?;
    let host = typed.agent.hostname.get().unwrap_or(&around.hostname).clone();
    let sources = r.sources(typed.files, typed.has_files, &typed.kafka, &host, stdout)?;
    let agent = r.agent(typed.agent, delivery, host);
    let output =
        if stdout { Output::Stdout } else { Output::Kafka(r.kafka(typed.kafka, delivery, &agent.hostname)) };
    let config = Config {
        agent,
        output,
        textfile: typed.textfile.value(),
        sources,
        once: asked.once,
        read_from: typed.read_from,
    };
    if let Some(place) = memory_place {
        r.check_memory(&config, place);
    }
    Ok(config)
}

/// `[kafka]` alone, and its topic: `send` follows no files, and numbers nothing.
pub fn kafka(
    typed: Typed,
    asked: &Overrides,
    around: &Surroundings,
    problems: &mut Problems,
) -> Result<(Kafka, String), Error> {
    let typed = Typed { agent: typed::Agent::default(), files: Vec::new(), ..typed };
    let mut r = Resolver { asked, around, top: typed.top, problems };
    r.check_classic(&typed);
    r.check_kafka(&typed.kafka, Delivery::AtLeastOnce);
    r.writes_stdout(&typed)?;
    let topic = asked.topic.clone().or(typed.kafka.topic.get().cloned());
    if topic.is_none() && typed.kafka.topic.is_missing() {
        r.missing(
            typed.kafka.place,
            "`topic` is missing in [kafka]",
            "write topic = \"web_log\", or give --topic",
        );
    }
    Ok((r.kafka(typed.kafka, Delivery::AtLeastOnce, &around.hostname), topic.unwrap_or_default()))
}

/// The folder to use when `--state-dir` names none.
pub fn state_dir(typed: Option<PathBuf>, around: &Surroundings) -> PathBuf {
    typed.or_else(|| around.state_directory.clone()).unwrap_or_else(|| DEFAULT_STATE_DIR.into())
}

/// Bytes of lines in a batch, where the config does not say. With exactly-once a partition has one batch in the air at a
/// time, so the way there and back is paid once per batch; with larger ones that comes near at-least-once's speed.
fn usual_batch(delivery: Delivery) -> usize {
    match delivery {
        Delivery::AtLeastOnce => 512 << 10,
        Delivery::ExactlyOnce => 900 << 10,
    }
}

struct Resolver<'a> {
    asked: &'a Overrides,
    around: &'a Surroundings,
    /// `None`: there is no config file, so every mistake is the command line's.
    top: Option<Place>,
    problems: &'a mut Problems,
}

impl Resolver<'_> {
    /// Something must stand in the config and does not. After a syntax error it may well stand there.
    fn missing(&mut self, place: Option<Place>, what: &str, instead: &str) {
        if let Some(place) = place.or(self.top)
            && !self.problems.any_syntax()
        {
            self.problems.add(place, what, instead);
        }
    }

    /// Reports a combination at one of its keys.
    fn wrong<T>(&mut self, at: &Field<T>, what: impl Into<String>, instead: impl Into<String>) {
        if let Some(place) = at.place() {
            self.problems.add(place, what, instead);
        }
    }

    /// Where lines go, and whether enough is known to go there.
    fn writes_stdout(&mut self, typed: &Typed) -> Result<bool, Error> {
        let asked = self.asked;
        if asked.output == Some(OutputName::Stdout) {
            return Ok(true);
        }
        if self.top.is_none() {
            if asked.brokers.is_none() && asked.topic.is_none() && asked.output.is_none() {
                return Ok(true);
            }
            let lacking = match (&asked.brokers, &asked.topic) {
                (None, None) => "--brokers and --topic",
                (None, _) => "--brokers",
                (_, None) => "--topic",
                _ => return Ok(false),
            };
            let why = format!("Kafka is asked for without {lacking}");
            return Err(Error::usage(
                "run",
                why,
                "add it, or name a config file with -c, or use --output stdout",
            ));
        }
        if asked.brokers.is_none() {
            match typed.kafka.brokers.get() {
                None if typed.kafka.brokers.is_missing() => self.missing(
                    typed.kafka.place,
                    "`brokers` is missing in [kafka]",
                    "write brokers = [\"kafka.example:9092\"], or run with --output stdout",
                ),
                Some(list) if list.is_empty() => {
                    self.wrong(&typed.kafka.brokers, "`brokers` is empty", "write one at least")
                }
                _ => {}
            }
        }
        Ok(false)
    }

    fn agent(&mut self, typed: typed::Agent, delivery: Delivery, hostname: String) -> Agent {
        let given = self.asked.state_dir.as_ref().map(|d| absolute(d, self.around));
        let typed_dir = typed.state_dir.value();
        let saved = given.or_else(|| self.top.map(|_| state_dir(typed_dir, self.around)));
        Agent {
            state_dir: saved,
            memory: typed.memory.or(8 << 20),
            delivery,
            sync: typed.sync.or(Sync::Every(Duration::from_secs(30))),
            drain_timeout: typed.drain_timeout.or(Duration::from_secs(10)),
            damaged_state: typed.damaged_state.or(DamagedState::Refuse),
            hostname,
        }
    }

    fn kafka(&mut self, typed: typed::Kafka, delivery: Delivery, host: &str) -> Kafka {
        let key = typed.key.value().map(|k| match k {
            keys::Key::Host => Key::Constant(host.as_bytes().to_vec()),
            keys::Key::Other(key) => key,
        });
        let by_key = if key.is_some() { Partition::Hash } else { Partition::Sticky };
        Kafka {
            brokers: self.asked.brokers.clone().or(typed.brokers.value()).unwrap_or_default(),
            acks: typed.acks.or(Acks::All),
            driver: self.asked.driver.or(typed.driver.value()).unwrap_or(Driver::Auto),
            client_id: typed.client_id.or("logagent".into()),
            key,
            partition: typed.partition.or(by_key),
            compression: typed.compression.or(Compression::None),
            linger: typed.linger.or(Duration::ZERO),
            batch: typed.batch.or(usual_batch(delivery)),
            rate: typed.rate.value(),
            create_topics: typed.create_topics.or(true),
            tls: typed.tls.value().map(|t| Tls {
                ca: t.ca.value(),
                cert: t.cert.value(),
                key: t.key.value(),
                server_name: t.server_name.value(),
            }),
            sasl: typed.sasl.value().and_then(|s| {
                Some(Sasl {
                    mechanism: s.mechanism.value()?,
                    username: s.username.value()?,
                    password_file: s.password_file.value()?,
                    plain_without_tls: s.plain_without_tls.or(false),
                })
            }),
        }
    }

    /// What only the modern driver does, where the classic one is demanded.
    fn check_classic(&mut self, typed: &Typed) {
        if self.asked.driver.or(typed.kafka.driver.get().copied()) != Some(Driver::Classic) {
            return;
        }
        let mut beyond: Vec<(Option<Place>, &str)> =
            vec![(typed.kafka.tls.place(), "TLS"), (typed.kafka.sasl.place(), "SASL")];
        match typed.kafka.compression.get() {
            Some(Compression::Lz4) => beyond.push((typed.kafka.compression.place(), "lz4")),
            Some(Compression::Zstd) => beyond.push((typed.kafka.compression.place(), "zstd")),
            _ => {}
        }
        if typed.agent.delivery.get() == Some(&Delivery::ExactlyOnce) {
            beyond.push((typed.agent.delivery.place(), "exactly-once"));
        }
        beyond.extend(typed.files.iter().map(|f| (f.headers.place(), "headers")));
        for (place, what) in beyond {
            if let Some(place) = place {
                let why = format!("the classic driver, which `driver` asks for, cannot do {what}");
                self.problems.add(place, why, "write driver = \"auto\" or \"modern\", or take this out");
            }
        }
    }

    fn check_kafka(&mut self, k: &typed::Kafka, delivery: Delivery) {
        if delivery == Delivery::ExactlyOnce && matches!(k.acks.get(), Some(Acks::None | Acks::Leader)) {
            let what = "exactly-once needs the acknowledgement of all in-sync replicas";
            self.wrong(&k.acks, what, "write acks = \"all\", or delivery = \"at-least-once\" in [agent]");
        }
        match k.partition.get() {
            Some(Partition::Hash) if k.key.is_missing() => self.wrong(
                &k.partition,
                "`partition` is by the hash of the key, and there is no `key`",
                "write for example key = \"path\", or partition = \"sticky\"",
            ),
            Some(Partition::Sticky) if k.key.place().is_some() => self.wrong(
                &k.partition,
                "`partition` = \"sticky\" has no regard for the `key`, so lines of one key would lose their order",
                "write partition = \"hash\", or leave it out",
            ),
            _ => {}
        }
        if let Some(tls) = k.tls.get() {
            let instead = "name both `cert` and `key`, or neither";
            if tls.key.is_missing() {
                self.wrong(&tls.cert, "a client certificate without its `key`", instead);
            }
            if tls.cert.is_missing() {
                self.wrong(&tls.key, "a client key without its `cert`", instead);
            }
        }
        if let Some(sasl) = k.sasl.get() {
            self.check_plain(k, sasl);
            for (missing, key) in [
                (sasl.mechanism.is_missing(), "mechanism = \"SCRAM-SHA-512\""),
                (sasl.username.is_missing(), "username = \"…\""),
                (sasl.password_file.is_missing(), "password_file = \"/etc/logagent.password\""),
            ] {
                if missing {
                    let name = key.split(' ').next().unwrap_or(key);
                    self.missing(
                        k.sasl.place(),
                        &format!("`{name}` is missing in [kafka.sasl]"),
                        &format!("write {key}"),
                    );
                }
            }
        }
    }

    /// PLAIN is the password itself.
    fn check_plain(&mut self, k: &typed::Kafka, sasl: &typed::Sasl) {
        let brokers = self.asked.brokers.as_ref().or(k.brokers.get()).into_iter().flatten();
        let allowed = k.tls.place().is_some() || sasl.plain_without_tls.get() == Some(&true);
        let other = brokers.into_iter().find(|b| !b.is_loopback());
        if let (Some(Mechanism::Plain), false, Some(broker)) = (sasl.mechanism.get(), allowed, other) {
            let what = format!("PLAIN without TLS would send the password readably to {broker}");
            let instead = "write [kafka.tls], or mechanism = \"SCRAM-SHA-512\", or, where the way there is safe, \
                           plain_without_tls = true in [kafka.sasl]";
            self.wrong(&sasl.mechanism, what, instead);
        }
    }

    /// A budget that is too small would stop a file for ever at its first long line.
    fn check_memory(&mut self, config: &Config, place: Place) {
        let plan = config.memory_plan();
        if config.agent.memory < plan.needed {
            let what = format!(
                "`memory` of {} bytes is too small for {}: {} bytes for each (its longest line, and tables) and {} to encode are needed",
                config.agent.memory,
                if plan.topics == 1 { "1 topic".into() } else { format!("{} topics", plan.topics) },
                plan.per_topic,
                plan.encoding,
            );
            let least = plan.needed.div_ceil(1 << 10);
            self.problems.add(
                place,
                what,
                format!("write memory = \"{least}KiB\" or more in [agent], or a smaller max_line"),
            );
        }
    }

    fn sources(
        &mut self,
        typed: Vec<typed::Files>,
        has_files: bool,
        kafka: &typed::Kafka,
        host: &str,
        stdout: bool,
    ) -> Result<Vec<Source>, Error> {
        let mut all = Vec::new();
        let mut topicless = false;
        let named: Result<Vec<Pattern>, Error> =
            self.asked.files.iter().map(|f| argument(f, self.around)).collect();
        let named = named?;
        if typed.is_empty() && named.is_empty() && !has_files {
            self.missing(
                None,
                "there is no [[files]]",
                "write [[files]] and below it paths = [\"/var/log/…\"]",
            );
        }
        // The config's tables are looked at also when the command line's FILEs replace them, so that their problems show.
        for files in typed {
            topicless |= files.topic.is_missing();
            all.push(self.source(files, host));
        }
        if !named.is_empty() {
            topicless = true;
            all = vec![self.source(typed::Files::default(), host)];
            all[0].paths = named;
        }
        let default = self.asked.topic.as_ref().or(kafka.topic.get());
        if topicless && default.is_none() && !stdout && kafka.topic.is_missing() {
            let instead = "write topic = \"web_log\" in [kafka], or one in each [[files]]";
            self.missing(
                kafka.place,
                "`topic` is missing in [kafka], and not every [[files]] has its own",
                instead,
            );
        }
        for source in &mut all {
            if let Some(topic) = &self.asked.topic {
                source.topic.clone_from(topic);
            } else if source.topic.is_empty() {
                source.topic = default.cloned().unwrap_or_else(|| "-".into());
            }
        }
        Ok(all)
    }

    fn source(&mut self, t: typed::Files, host: &str) -> Source {
        self.check_files(&t);
        let start = match (self.asked.from, self.asked.once) {
            (Some(from), _) => from,
            (None, true) => Start::Beginning,
            (None, false) => t.start.or(Start::End),
        };
        let follow = t.follow.or(true);
        let (held_bytes, held_time) = t.deleted_hold.or_default();
        let fields = self.filled(t.fields, host);
        let headers = self.filled(t.headers, host);
        Source {
            paths: t.paths.or_default(),
            exclude: t.exclude.or_default(),
            topic: t.topic.or_default(),
            start,
            must_exist: t.must_exist.or(false),
            follow,
            reopen: t.reopen.or(follow),
            poll: t.poll.or(None),
            rotate_grace: t.rotate_grace.or(Duration::from_secs(60)),
            deleted_hold: Hold {
                bytes: held_bytes.or(1 << 30),
                time: held_time.or(Duration::from_secs(7 * 24 * 3600)),
            },
            max_line: t.max_line.or(1_000_000),
            partial_after: t.partial_after.value(),
            multiline: t.multiline.value().and_then(|m| {
                let joint = m.start.value().map(Joint::Start).or(m.continues.value().map(Joint::Continue))?;
                let max_lines = m.max_lines.or(500) as usize;
                Some(Multiline { joint, timeout: m.timeout.or(Duration::from_secs(2)), max_lines })
            }),
            include: t.include.or_default(),
            drop: t.drop.or_default(),
            skip_empty: t.skip_empty.or(false),
            format: t.format.or(Format::Raw),
            fields,
            headers,
            rate_limit: t.rate_limit.value(),
        }
    }

    fn check_files(&mut self, t: &typed::Files) {
        let example = "write paths = [\"/var/log/nginx/*.log\"]";
        match t.paths.get() {
            None if t.place.is_some() && t.paths.is_missing() => {
                self.missing(t.place, "`paths` is missing in [[files]]", example)
            }
            Some(paths) if paths.is_empty() => self.wrong(&t.paths, "`paths` is empty", example),
            _ => {}
        }
        if t.follow.get() == Some(&false) && t.reopen.get() == Some(&true) {
            let what = "`reopen` without `follow`: a file that is read once is not waited for";
            self.wrong(&t.reopen, what, "take out one of them");
        }
        if t.format.get() != Some(&Format::Json) && t.fields.get().is_some_and(|f| !f.is_empty()) {
            let what = "`fields` has no place in a record that is the line alone";
            self.wrong(&t.fields, what, "write format = \"json\", or use headers");
        }
    }

    /// Fills in `${host}`.
    fn filled(&mut self, texts: Field<Vec<(String, String)>>, host: &str) -> Vec<(String, String)> {
        for (name, text) in texts.get().into_iter().flatten() {
            if text.replace("${host}", "").contains("${") {
                let what = format!("{text:?} of {name:?} has a ${{…}} that is not ${{host}}");
                self.wrong(&texts, what, "write ${host}, or leave out the $");
            }
        }
        let texts = texts.or_default().into_iter();
        texts.map(|(name, text)| (name, text.replace("${host}", host))).collect()
    }
}

/// A FILE of the command line: as it is if it exists, else as a glob if it has a glob's characters.
fn argument(file: &Path, around: &Surroundings) -> Result<Pattern, Error> {
    let path = absolute(file, around);
    let Some(text) = file.to_str().filter(|t| keys::has_glob(t)) else { return Ok(Pattern::Path(path)) };
    if path.symlink_metadata().is_ok() {
        return Ok(Pattern::Path(path));
    }
    // The folder we are in is meant as it is, whatever its name looks like.
    let pattern = match around.working_directory.to_str() {
        _ if text.starts_with('/') => text.to_owned(),
        Some(here) => {
            format!("{}/{}", globset::escape(here.trim_end_matches('/')), text.trim_start_matches("./"))
        }
        None => return Ok(Pattern::Path(path)),
    };
    match path_glob(&pattern) {
        Ok(()) => Ok(Pattern::Glob(pattern)),
        Err(why) => {
            let what = format!("FILE {text}");
            Err(Error::usage(what, why, "give a path, or a glob such as '/var/log/*.log'"))
        }
    }
}

fn absolute(path: &Path, around: &Surroundings) -> PathBuf {
    around.working_directory.join(path).components().collect()
}
