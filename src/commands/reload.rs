//! Reload (SIGHUP): compares the new config with the running one, key by key, following the reload rule in each key's
//! description. `run.rs` applies the result.
//!
//! Keys tied to the state folder, or with exactly-once to the sequence numbers of batches that may be stored, need a
//! restart. Their old values are restored, so that [`crate::config::Config`] always describes what runs.

use super::drivers;
use crate::config::{
    self, Config, Delivery, Described, KeySpec, Output, Overrides, Reload, ShownValue, Source, TableSpec,
};
use crate::error::Error;
use crate::kafka::net::tls;
use std::fmt;

/// The differences between two configs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ConfigChanges {
    /// Changed keys, and counts of tables.
    taken: Vec<String>,
    /// Keys that need a restart.
    restart: Vec<String>,
    /// The driver or its options changed.
    pub driver: bool,
    /// The brokers may belong to another cluster.
    pub elsewhere: bool,
}

/// Reads the config again. An error lists all of its problems.
pub fn read(asked: &Overrides, running: &Config) -> Result<(Config, ConfigChanges), Error> {
    if let Some(main) = running.read_from.first()
        && main.metadata().is_ok_and(|meta| !meta.is_file() && !meta.is_dir())
    {
        // Reading a pipe would wait for its writer, and what was read at the start is gone from it.
        let fix = "start the agent with a file, to reload its config";
        return Err(Error::config(format_args!("read {}", main.display()), "not a regular file", fix));
    }
    let mut new = config::load(asked)?;
    let changes = ConfigChanges::make(running, &mut new);
    usable_keys(running, &new)?;
    Ok((new, changes))
}

/// A new `[kafka.tls]` with files that cannot be used would end a delivery that works.
fn usable_keys(running: &Config, new: &Config) -> Result<(), Error> {
    let (Output::Kafka(was), Output::Kafka(is)) = (&running.output, &new.output) else { return Ok(()) };
    match &is.tls {
        Some(tls) if is.tls != was.tls => tls::check_files(&drivers::tls(tls))
            .map_err(|why| Error::config("[kafka.tls]", why, "then reload again")),
        _ => Ok(()),
    }
}

impl ConfigChanges {
    /// Compares `old` with `new`, and restores in `new` the values that need a restart.
    pub fn make(old: &Config, new: &mut Config) -> ConfigChanges {
        let mut changes = ConfigChanges::default();
        let needs_modern = old.needs_modern();
        let exactly_once = old.agent.delivery == Delivery::ExactlyOnce;
        if let (Output::Kafka(was), Output::Kafka(is)) = (&old.output, &mut new.output) {
            if old.agent.delivery != new.agent.delivery {
                is.batch = was.batch; // its default depends on `delivery`, which needs a restart
            }
            changes.elsewhere = was.brokers != is.brokers && !exactly_once;
        }
        old.agent.compare(&mut new.agent, &mut |table, key| changes.key(table, key, exactly_once));
        if let (Output::Kafka(was), Output::Kafka(is)) = (&old.output, &mut new.output) {
            was.compare(is, &mut |table, key| changes.key(table, key, exactly_once));
        }
        if old.textfile != new.textfile {
            changes.taken.push("[metrics] textfile".into());
        }
        changes.files(&old.sources, &new.sources);
        let key = |c: &Config| match &c.output {
            Output::Kafka(kafka) => kafka.key.clone(),
            Output::Stdout => None,
        };
        // The records of a journal keep the key, too, with which it was started.
        if old.journals != new.journals || !old.journals.is_empty() && key(old) != key(new) {
            new.journals.clone_from(&old.journals);
            changes.restart.push("[[journal]]".into());
        }
        changes.driver |= needs_modern != new.needs_modern();
        changes
    }

    /// Records a changed key by its rule; returns whether to keep the old value.
    fn key(&mut self, table: &'static TableSpec, key: &'static KeySpec, exactly_once: bool) -> bool {
        let name = match key.shown {
            ShownValue::Table => key.value.to_owned(),
            _ => format!("{} {}", table.name, key.name),
        };
        match key.reload {
            Reload::OfFiles => return false,
            Reload::Restart => return self.keep(name),
            Reload::AtOnceOrRestart | Reload::ReconnectsOrRestart if exactly_once => return self.keep(name),
            Reload::Reconnects | Reload::ReconnectsOrRestart => self.driver = true,
            Reload::AtOnce | Reload::AtOnceOrRestart => {}
        }
        self.taken.push(name);
        false
    }

    fn keep(&mut self, name: String) -> bool {
        self.restart.push(name);
        true
    }

    /// A table with other `paths` is a different table. `topic` of `[kafka]` has been copied into the tables by now.
    fn files(&mut self, old: &[Source], new: &[Source]) {
        let lacks = |all: &[Source], one: &Source| !all.iter().any(|s| s.paths == one.paths);
        let added = new.iter().filter(|s| lacks(old, s)).count();
        let removed = old.iter().filter(|s| lacks(new, s)).count();
        let changed = new.iter().filter(|s| !old.contains(s)).count() - added;
        for (n, what) in [(added, "added"), (removed, "removed"), (changed, "changed")] {
            if n > 0 {
                self.taken.push(format!("{n} [[files]] {what}"));
            }
        }
        if added + removed == 0 && !old.iter().map(|s| &s.paths).eq(new.iter().map(|s| &s.paths)) {
            self.taken.push("the order of [[files]]".into());
        }
    }

    /// Whether some keys need a restart.
    pub fn needs_restart(&self) -> bool {
        !self.restart.is_empty()
    }
}

/// `applied: [kafka] linger, 1 [[files]] added; needs a restart: [agent] sync`.
impl fmt::Display for ConfigChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.taken.as_slice() {
            [] if self.restart.is_empty() => return f.write_str("nothing has changed"),
            [] => f.write_str("nothing to apply")?,
            taken => write!(f, "applied: {}", taken.join(", "))?,
        }
        if !self.restart.is_empty() {
            write!(f, "; needs a restart: {}", self.restart.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "[agent]\nstate_dir = \"/s\"\n[kafka]\nbrokers = [\"b:9092\"]\ntopic = \"t\"\n";
    const FILES: &str = "[[files]]\npaths = [\"/a.log\"]\n[[files]]\npaths = [\"/b/*.log\"]\n";

    fn config(text: &str) -> Config {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        config::load(&Overrides { config: Some(path), ..Overrides::default() }).unwrap()
    }

    fn changes(from: &str, to: &str) -> (ConfigChanges, Config) {
        let mut new = config(to);
        (ConfigChanges::make(&config(from), &mut new), new)
    }

    /// Fails when a change is missed, is misnamed, or does not reach the driver although it is the driver's.
    #[test]
    fn each_change_is_found_and_applied_by_its_rule() {
        let old = format!("{BASE}{FILES}");
        let kafka = |line: &str| format!("{BASE}{line}\n{FILES}");
        let agent = |line: &str| old.replace("[agent]", &format!("[agent]\n{line}"));
        for (new, said, driver) in [
            (old.clone(), "nothing has changed", false),
            (agent("memory = \"9MiB\""), "applied: [agent] memory", false),
            (agent("sync = \"1s\""), "nothing to apply; needs a restart: [agent] sync", false),
            (
                agent("delivery = \"exactly-once\"\ndrain_timeout = \"1s\""),
                "applied: [agent] drain_timeout; needs a restart: [agent] delivery",
                false,
            ),
            (kafka("linger = \"1s\""), "applied: [kafka] linger", false),
            (kafka("compression = \"zstd\""), "applied: [kafka] compression", true),
            (kafka("[kafka.tls]"), "applied: [kafka.tls]", true),
            (old.replace("b:9092", "c:9092"), "applied: [kafka] brokers", true),
            (old.replace("topic = \"t\"", "topic = \"u\""), "applied: 2 [[files]] changed", false),
            (format!("{old}drop = ['x']"), "applied: 1 [[files]] changed", false),
            (format!("{old}multiline = {{ start = 'x' }}"), "applied: 1 [[files]] changed", false),
            (kafka("key = { regex = 'x' }"), "applied: [kafka] key, [kafka] partition", false),
            (format!("{old}headers = {{ a = \"b\" }}"), "applied: 1 [[files]] changed", true),
            (format!("{old}[[files]]\npaths = [\"/c\"]"), "applied: 1 [[files]] added", false),
            (old.replace("/a.log", "/c.log"), "applied: 1 [[files]] added, 1 [[files]] removed", false),
            (format!("{old}[metrics]\ntextfile = \"/m\""), "applied: [metrics] textfile", false),
            (
                format!("{BASE}[[files]]\npaths = [\"/b/*.log\"]\n[[files]]\npaths = [\"/a.log\"]\n"),
                "applied: the order of [[files]]",
                false,
            ),
        ] {
            let (changes, _) = changes(&old, &new);
            assert_eq!((changes.to_string().as_str(), changes.driver), (said, driver), "{new}");
            assert_eq!(changes.elsewhere, said.contains("brokers"));
        }
    }

    /// Fails when two regular expressions are equal although their texts differ, or the other way round.
    #[test]
    fn regular_expressions_are_compared_by_their_text() {
        for key in ["drop = ['^a']", "multiline = { start = '^a', timeout = \"1s\" }"] {
            let old = format!("{BASE}{FILES}{key}\n");
            assert_eq!(changes(&old, &old).0.to_string(), "nothing has changed");
            let changed = changes(&old, &old.replace("^a", "^b")).0.to_string();
            assert_eq!(changed, "applied: 1 [[files]] changed");
        }
    }

    /// Fails when the config differs from what runs.
    #[test]
    fn keys_that_need_a_restart_keep_their_old_value() {
        let old = format!("{BASE}{FILES}");
        let (with_journal, new) = changes(&old, &format!("{old}[[journal]]\n"));
        assert_eq!(with_journal.to_string(), "nothing to apply; needs a restart: [[journal]]");
        assert!(new.journals.is_empty());
        let journal = format!("{old}[[journal]]\n");
        let keyed = journal.replace("topic = \"t\"", "topic = \"t\"\nkey = \"host\"");
        let said = changes(&journal, &keyed).0.to_string();
        assert_eq!(said, "applied: [kafka] key, [kafka] partition; needs a restart: [[journal]]");
        let (_, new) = changes(&format!("{BASE}{FILES}"), &format!("{BASE}{FILES}").replace("/s", "/t"));
        assert_eq!(new.agent.state_dir.unwrap().to_str(), Some("/s"));
        let once = |brokers: &str, rest: &str| {
            let kafka = BASE.replace("b:9092", brokers);
            format!("{kafka}{rest}\n{FILES}").replace("[agent]", "[agent]\ndelivery = \"exactly-once\"")
        };
        let (changes, new) = changes(&once("b:9092", ""), &once("c:9092", "batch = 1000\nlinger = \"1s\""));
        let said = "applied: [kafka] linger; needs a restart: [kafka] brokers, [kafka] batch";
        assert_eq!((changes.to_string().as_str(), changes.driver, changes.elsewhere), (said, false, false));
        let Output::Kafka(kafka) = new.output else { panic!() };
        assert_eq!((kafka.brokers[0].to_string().as_str(), kafka.batch), ("b:9092", 880 << 10));
    }
}
