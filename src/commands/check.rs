//! `logagent check`: reports the effect of the config on this machine, without changing anything.
//!
//! Only a valid config gets here: [`config::load`] reports the problems of others. An unreadable file or an
//! unwritable state folder is a warning, because the agent's user may have permissions that this user lacks. A
//! missing `must_exist` file, a file in place of the state folder, a TLS file that is not PEM, and with `--connect` an
//! unreachable broker, are failures. A broker that can never do what the config requires makes it an invalid config.

mod cluster;
mod connect;
mod found;
mod traffic;

use super::{drivers, threads};
use crate::cli;
use crate::clock;
use crate::config::{
    self, Acks, Config, Delivery, DriverChoice, JournalSource, Kafka, Named, Output, Overrides, Sasl, Source,
};
use crate::error::{Error, Escaped, ExitCode};
use crate::exactly_once::file::HALF;
use crate::journal;
use crate::kafka::broker_check::{BrokerCheckStep, Outcome};
use crate::kafka::net::tls;
use crate::links;
use crate::network_fs::is_generated;
use crate::packed::{Packed, packing};
use crate::sys::heap;
use rustix::fs::{Access, OFlags, access};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Checks the brokers, reports each step as soon as it is done, and returns what else to print.
pub type Connect = fn(&Config, &mut dyn FnMut(BrokerCheckStep)) -> String;

/// Resident bytes in addition to the budget and the threads: the program, and freed blocks that are kept.
const PROGRAM: usize = (2 << 20) + heap::KEPT;

/// Bytes of the largest stack (`run.rs`). It counts in full, though few threads ever touch all of it.
const STACK: usize = 256 << 10;

pub fn run(asked: cli::CheckArgs) -> Result<ExitCode, Error> {
    run_with(asked, connect::steps)
}

fn run_with(asked: cli::CheckArgs, connect: Connect) -> Result<ExitCode, Error> {
    let (config, shown) = config::load_and_show(&Overrides { config: asked.config, ..Overrides::default() })?;
    if asked.show {
        print(&shown)?;
    }
    let report = Report::of(&config);
    print(&report.text)?;
    let (mut failed, mut never) = (report.failed, false);
    if asked.connect {
        let mut unsaid = Ok(());
        let table = connect(&config, &mut |step| {
            failed |= matches!(step.outcome, Outcome::Failed(_));
            never |= matches!(step.outcome, Outcome::Never(_));
            unsaid = print(&step_line(&step));
        });
        unsaid?;
        print(&table)?;
    }
    Ok(match (never, failed) {
        (true, _) => ExitCode::Config,
        (false, true) => ExitCode::Failed,
        (false, false) => ExitCode::Done,
    })
}

fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    let done = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    done.map_err(|e| Error::failed("write to standard output", e, "let something read it"))
}

fn step_line(step: &BrokerCheckStep) -> String {
    let ms = step.took.as_millis();
    let (head, told) = match &step.outcome {
        Outcome::Good(found) => ("ok", found.clone()),
        Outcome::Doubtful(why) => ("warning", why.to_string()),
        Outcome::Failed(why) | Outcome::Never(why) => ("failed", why.to_string()),
    };
    format!("{head:<9}{} ({ms} ms): {}\n", Escaped(&step.what.to_string()), Escaped(&told))
}

/// The report without the network.
#[derive(Default)]
struct Report {
    text: String,
    failed: bool,
    warnings: Vec<String>,
    /// Which source reads a file, by device and inode.
    readers: HashMap<(u64, u64), (usize, PathBuf)>,
    matched: usize,
}

impl Report {
    fn of(config: &Config) -> Report {
        let mut r = Report::default();
        for path in &config.read_from {
            r.line("config", &shown(path));
            r.warn_if_written_by_others(path);
        }
        r.output(config);
        r.state(config);
        r.metrics(config);
        for (i, source) in config.sources.iter().enumerate() {
            r.source(i, config, source);
        }
        for journal in &config.journals {
            r.journal(journal);
        }
        r.traffic(config);
        r.memory(config);
        r.threads();
        let warnings = std::mem::take(&mut r.warnings);
        for warning in &warnings {
            r.line("warning", warning);
        }
        match warnings.len() {
            _ if r.failed => {}
            0 => r.line("ok", "the config has no mistakes"),
            1 => r.line("ok", "the config is valid; see the warning above"),
            n => r.line("ok", &format!("the config is valid; see the {n} warnings above")),
        }
        r
    }

    fn line(&mut self, head: &str, text: &str) {
        let _ = writeln!(self.text, "{head:<9}{}", Escaped(text)); // a String takes everything
    }

    fn warn(&mut self, what: impl Into<String>) {
        self.warnings.push(what.into());
    }

    fn output(&mut self, config: &Config) {
        let Output::Kafka(k) = &config.output else { return self.line("output", "standard output") };
        let brokers: Vec<String> = k.brokers.iter().map(ToString::to_string).collect();
        let line = format!("{} with acks = {}", brokers.join(", "), name(k.acks));
        self.line("brokers", &line);
        if let Some(proxy) = &k.proxy {
            self.line("proxy", &proxy.to_string());
        }
        let reasons = config.needs_modern();
        let driver = match (k.driver, reasons.is_empty()) {
            (DriverChoice::Auto, true) => {
                "auto: modern if the broker supports it (0.11 or newer), otherwise classic (the kafka crate)"
                    .into()
            }
            (DriverChoice::Auto, false) => format!("auto: modern, because of {}", reasons.join(", ")),
            (fixed, _) => name(fixed).to_owned(),
        };
        self.line("driver", &driver);
        self.delivery(config.agent.delivery, k);
        self.secrets(k);
    }

    fn delivery(&mut self, delivery: Delivery, k: &Kafka) {
        self.line("delivery", name(delivery));
        match k.acks {
            Acks::Zero => self.warn(
                "acks = 0 can lose lines: they count as delivered once written to the socket; write acks = \"all\" to lose none",
            ),
            Acks::One => self.warn(
                "acks = 1 can lose lines when a leader dies before its followers have them; write acks = \"all\" to lose none",
            ),
            Acks::All => {}
        }
    }

    fn fail(&mut self, why: &str) {
        self.failed = true;
        self.line("failed", why);
    }

    fn secrets(&mut self, k: &Kafka) {
        if let Some(sasl) = &k.sasl {
            let (file, key) = sasl.secret_file();
            self.secret(file, key);
            if let (Sasl::Plain { without_tls: true, .. }, None) = (sasl, &k.tls) {
                self.warn(
                    "PLAIN without TLS sends the password in the clear; add [kafka.tls], or use SCRAM-SHA-512",
                );
            }
        }
        if let Some(password) = &k.proxy_password_file {
            self.secret(password, "proxy_password_file");
        }
        if let Some(tls) = &k.tls {
            let mut readable = true;
            for (file, key) in [(&tls.ca, "ca"), (&tls.cert, "cert")] {
                if let Some(file) = file
                    && let Err(e) = access(file, Access::READ_OK)
                {
                    readable = false;
                    self.warn(format!("{key} {}: {e}; give the path of a PEM file", shown(file)));
                }
            }
            if let Some(key) = &tls.key {
                self.secret(key, "key");
                readable &= access(key, Access::READ_OK).is_ok();
            }
            if readable && let Err(why) = tls::check_files(&drivers::tls(tls)) {
                self.fail(&why.to_string());
            }
        }
    }

    /// A file that must be private. A systemd credential exists only while the service runs.
    fn secret(&mut self, path: &Path, key: &str) {
        match path.metadata() {
            Ok(m) if m.is_dir() && key != "key" => {
                self.fail(&format!("{key} {}: it is a folder; name a file", shown(path)));
            }
            Ok(m) if m.is_file() && m.mode() & 0o007 != 0 => {
                let mode = m.mode() & 0o777;
                self.warn(format!(
                    "{key} {} is readable by every user (mode {mode:o}); chmod o= it",
                    shown(path)
                ));
            }
            Ok(_) => {}
            Err(e) => self.warn(format!("{key} {}: {e}; is it there when the service runs?", shown(path))),
        }
    }

    fn warn_if_written_by_others(&mut self, path: &Path) {
        if let Ok(m) = path.metadata()
            && m.mode() & 0o002 != 0
        {
            self.warn(format!(
                "{} can be written by every user, so any of them can have any log sent anywhere; chmod o-w it",
                shown(path)
            ));
        }
    }

    fn state(&mut self, config: &Config) {
        let Some(dir) = &config.agent.state_dir else { return self.line("state", "none: nothing is saved") };
        self.line("state", &shown(dir));
        let existing = dir.ancestors().find(|d| d.exists()).unwrap_or(Path::new("/"));
        if !existing.is_dir() {
            // No permission fixes this.
            let fix = "move it away, or name a folder with state_dir";
            return self.fail(&format!("{}: it is not a folder; {fix}", shown(existing)));
        }
        if access(existing, Access::WRITE_OK).is_err() {
            self.warn(format!(
                "{} cannot be written by this user; for the service systemd creates it (StateDirectory=), otherwise chown it",
                shown(existing)
            ));
        }
        if dir.metadata().is_ok_and(|m| m.mode() & 0o077 != 0) {
            self.warn(format!("{} is open to other users; chmod 700 it", shown(dir)));
        }
    }

    fn metrics(&mut self, config: &Config) {
        let Some(file) = &config.textfile else { return };
        self.line("metrics", &shown(file));
        if file.is_dir() {
            self.warn(format!(
                "textfile: {} is a folder; name a file in it, such as logagent.prom",
                shown(file)
            ));
        }
        if let Some(folder) = file.parent().filter(|folder| !folder.is_dir()) {
            self.warn(format!(
                "textfile: there is no folder {}; create it for the agent's user",
                shown(folder)
            ));
        }
    }

    /// The files that a source matches now.
    fn source(&mut self, index: usize, config: &Config, source: &Source) {
        let patterns: Vec<String> = source.paths.iter().map(found::pattern_text).collect();
        self.line("files", &format!("{} to topic {}", patterns.join(", "), source.topic()));
        let files = found::files(config, source);
        if files.is_empty() {
            self.line("", "    no file matches at the moment");
        }
        for folder in found::folders(source) {
            let folder = shown(&folder);
            self.warn(format!(
                "{folder} is a folder, so nothing in it is read; name its files, as in {folder}/*.log"
            ));
        }
        if source.must_exist {
            for missing in found::missing(source) {
                self.failed = true;
                self.line("", &format!("  {}: missing, and must_exist is set", missing));
            }
        }
        let own = ["message", "host", "path", "offset", "time", "invalid_utf8"];
        for (name, _) in source.fields.iter().filter(|(name, _)| own.contains(&name.as_str())) {
            self.warn(format!(
                "fields.{name}: every object has a field of this name, and consumers see only one of the two; rename it"
            ));
        }
        for (folder, why) in found::refused(source) {
            self.warn(format!("nothing in {} is read: {why}", shown(&folder)));
        }
        for path in files {
            self.matched += 1;
            self.file(index, &path);
        }
        for path in found::compressed(config, source) {
            self.line("", &format!("    {}: compressed in an unsupported format, skipped", shown(&path)));
        }
    }

    fn file(&mut self, source: usize, path: &Path) {
        // NONBLOCK, because the path may have become a FIFO.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let meta = match links::open(path, flags).and_then(|f| File::from(f).metadata()) {
            Err(e) if links::is_untrusted(&e) => {
                return self.warn(format!("{} is not read: {e}", shown(path)));
            }
            Err(e) => {
                self.line("", &format!("  {}: {e}", shown(path)));
                let fix = "add the agent's user to its group (adm), or give it CAP_DAC_READ_SEARCH";
                return self.warn(format!("{} cannot be read by this user; {fix}", shown(path)));
            }
            Ok(meta) if !meta.is_file() => {
                return self.line("", &format!("    {}: not a regular file, skipped", shown(path)));
            }
            Ok(meta) if is_generated(path, &meta) => {
                return self.line("", &format!("    {}: made by the kernel, skipped", shown(path)));
            }
            Ok(meta) => meta,
        };
        let packed = match packing(path) {
            Packed::Plain => "",
            _ => "  compressed, each line is sent once unless it was already sent",
        };
        self.line("", &format!("  {} ({} bytes{packed})", shown(path), meta.size()));
        let id = (meta.dev(), meta.ino());
        if let Some((first, name)) = self.readers.get(&id) {
            let (first, name) = (first + 1, shown(name));
            let second = source + 1;
            self.warn(format!(
                "{} is matched twice, by [[files]] {first} as {name} and by [[files]] {second}: it is read once, by the first",
                shown(path)
            ));
        } else {
            self.readers.insert(id, (source, path.to_owned()));
        }
    }

    /// The journal files that are read now.
    fn journal(&mut self, j: &JournalSource) {
        let folders = journal::candidates(j.directory.as_deref(), j.namespace.as_deref());
        self.line("journal", &format!("{} to topic {}", shown(&folders[0]), j.topic()));
        self.matched += 1;
        let Some(folder) = folders.iter().find(|folder| folder.symlink_metadata().is_ok()) else {
            self.line("", "    there is no journal at the moment");
            let fix =
                "with Storage=none in journald.conf there never is one; otherwise wait for systemd-journald";
            return self.warn(format!("there is no folder {}; {fix}", shown(&folders[0])));
        };
        match journal::found(folder) {
            Ok((files, refused)) => {
                let s = if files == 1 { "" } else { "s" };
                self.line("", &format!("  {}: {files} journal file{s}", shown(folder)));
                if let Some(advice) = journal::advice_on(folder, &folders) {
                    self.warn(format!("{}: {advice}", shown(folder)));
                }
                for (path, why) in refused {
                    self.warn(format!("{} is not read: {why}", shown(&path)));
                }
            }
            Err(why) => self.warn(format!("{} cannot be read: {why}", shown(folder))),
        }
    }

    /// Estimates the network traffic per day from the current files.
    fn traffic(&mut self, config: &Config) {
        let Output::Kafka(k) = &config.output else { return };
        let mut files: Vec<PathBuf> =
            config.sources.iter().flat_map(|source| found::files(config, source)).collect();
        files.retain(|path| path.is_file());
        files.sort_unstable();
        files.dedup();
        let now = clock::now_ms() as f64 / 1e3;
        let Some((text, a_day)) = traffic::Estimate::of(&files, now).text(k) else { return };
        self.line("traffic", &text);
        let Some(budget) = k.budget else { return };
        if a_day > budget.per_second() * 86_400.0 {
            self.warn(format!(
                "the budget of {budget} is less than what the files are likely to need: lines will wait longer and longer; \
                 compress with zstd, set linger, filter lines with drop, or raise it"
            ));
        }
    }

    fn memory(&mut self, config: &Config) {
        let plan = config.memory_plan();
        let drivers_copies = match &config.output {
            // Intents not yet covered by a save: at most half a `flights` file.
            Output::Kafka(_) if config.agent.delivery == Delivery::ExactlyOnce => HALF as usize,
            // The kafka crate holds up to three copies of a request while it is encoded.
            Output::Kafka(k) if k.driver != DriverChoice::Modern => 2 * k.batch,
            _ => 0,
        };
        let threads = (self.matched + threads::OTHERS) * STACK;
        let worst = PROGRAM + config.agent.memory + drivers_copies + threads;
        let line = format!(
            "at most {} resident: {} in flight (memory; at least {} for {}), {} for threads, {} for the rest",
            kib(worst),
            kib(config.agent.memory),
            kib(plan.needed),
            if plan.topics == 1 { "1 topic".into() } else { format!("{} topics", plan.topics) },
            kib(threads),
            kib(PROGRAM + drivers_copies),
        );
        self.line("memory", &line);
    }

    /// One thread reads one file.
    fn threads(&mut self) {
        let Some(limit) = threads::lowest() else { return };
        let (files, others) = (self.matched as u64, threads::OTHERS as u64);
        if files > limit.for_tails(others) {
            self.warn(format!(
                "{files} files need a thread each, and {others} more are needed, but {} is {}: files without a thread are not read; raise it",
                limit.what, limit.most
            ));
        }
    }
}

fn kib(bytes: usize) -> String {
    format!("{} KiB", bytes.div_ceil(1 << 10))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The config's name for `value`.
fn name<T: Named + PartialEq>(value: T) -> &'static str {
    T::NAMES.iter().find(|(_, v)| *v == value).map_or("", |(name, _)| *name)
}

#[cfg(test)]
mod tests;
