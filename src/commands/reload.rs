//! Reload (SIGHUP): compares the config that was read again with the running one, key by key, by the rule in each key's
//! description. `run.rs` applies the result.
//!
//! Keys that are bound to the state folder, or with exactly-once to the sequence numbers of batches that may be stored, need
//! a restart. Their old values are put back, so that [`crate::config::Config`] says what runs.

use crate::config::{
    self, Config, Delivery, Described, KeySpec, Output, Overrides, Reload, ShownValue, Source, TableSpec,
    differ,
};
use crate::error::Error;
use std::fmt;

/// What is different.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ConfigChanges {
    /// Keys, and numbers of tables.
    taken: Vec<String>,
    /// Keys that stay as they were.
    restart: Vec<String>,
    /// Another driver is wanted, or the same with other options.
    pub driver: bool,
    /// The brokers may be those of another cluster.
    pub elsewhere: bool,
}

/// Reads the config again. An error has every problem of it.
pub fn read(asked: &Overrides, running: &Config) -> Result<(Config, ConfigChanges), Error> {
    let mut new = config::load(asked)?;
    let changes = ConfigChanges::make(running, &mut new);
    Ok((new, changes))
}

impl ConfigChanges {
    /// From `old` to `new`, in which what needs a restart is put back.
    pub fn make(old: &Config, new: &mut Config) -> ConfigChanges {
        let mut changes = ConfigChanges::default();
        let needs_modern = old.needs_modern();
        let exactly_once = old.agent.delivery == Delivery::ExactlyOnce;
        if let (Output::Kafka(was), Output::Kafka(is)) = (&old.output, &mut new.output) {
            if old.agent.delivery != new.agent.delivery {
                is.batch = was.batch; // its default is the delivery's, which needs a restart
            }
            changes.elsewhere = differ(&was.brokers, &is.brokers) && !exactly_once;
        }
        old.agent.compare(&mut new.agent, &mut |table, key| changes.key(table, key, exactly_once));
        if let (Output::Kafka(was), Output::Kafka(is)) = (&old.output, &mut new.output) {
            was.compare(is, &mut |table, key| changes.key(table, key, exactly_once));
        }
        if old.textfile != new.textfile {
            changes.taken.push("[metrics] textfile".into());
        }
        changes.files(&old.sources, &new.sources);
        changes.driver |= needs_modern != new.needs_modern();
        changes
    }

    /// Notes a changed key by its rule; whether the old value is to be kept.
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

    /// A table is another one if its `paths` are; `topic` of `[kafka]` is theirs by now.
    fn files(&mut self, old: &[Source], new: &[Source]) {
        let (old, new) = (Tables::of(old), Tables::of(new));
        let added = new.paths.iter().filter(|paths| !old.paths.contains(paths)).count();
        let removed = old.paths.iter().filter(|paths| !new.paths.contains(paths)).count();
        let changed = new.whole.iter().filter(|whole| !old.whole.contains(whole)).count() - added;
        for (n, what) in [(added, "added"), (removed, "removed"), (changed, "changed")] {
            if n > 0 {
                self.taken.push(format!("{n} [[files]] {what}"));
            }
        }
        if added + removed == 0 && old.paths != new.paths {
            self.taken.push("the order of [[files]]".into());
        }
    }

    /// Keys that only a restart takes up.
    pub fn needs_restart(&self) -> bool {
        !self.restart.is_empty()
    }
}

/// All `[[files]]`, printed once to be compared many times.
struct Tables {
    paths: Vec<String>,
    whole: Vec<String>,
}

impl Tables {
    fn of(all: &[Source]) -> Self {
        Tables {
            paths: all.iter().map(|s| format!("{:?}", s.paths)).collect(),
            whole: all.iter().map(|s| format!("{s:?}")).collect(),
        }
    }
}

/// `taken up: [kafka] linger, 1 [[files]] added; needs a restart: [agent] sync`.
impl fmt::Display for ConfigChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.taken.as_slice() {
            [] if self.restart.is_empty() => return f.write_str("nothing has changed"),
            [] => f.write_str("nothing to take up")?,
            taken => write!(f, "taken up: {}", taken.join(", "))?,
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

    /// Fails when a change is not seen, is called by another name, or does not reach the driver though it is the driver's.
    #[test]
    fn what_differs_and_what_it_takes() {
        let old = format!("{BASE}{FILES}");
        let kafka = |line: &str| format!("{BASE}{line}\n{FILES}");
        let agent = |line: &str| old.replace("[agent]", &format!("[agent]\n{line}"));
        for (new, said, driver) in [
            (old.clone(), "nothing has changed", false),
            (agent("memory = \"9MiB\""), "taken up: [agent] memory", false),
            (agent("sync = \"1s\""), "nothing to take up; needs a restart: [agent] sync", false),
            (
                agent("delivery = \"exactly-once\"\ndrain_timeout = \"1s\""),
                "taken up: [agent] drain_timeout; needs a restart: [agent] delivery",
                false,
            ),
            (kafka("linger = \"1s\""), "taken up: [kafka] linger", false),
            (kafka("compression = \"zstd\""), "taken up: [kafka] compression", true),
            (kafka("[kafka.tls]"), "taken up: [kafka.tls]", true),
            (old.replace("b:9092", "c:9092"), "taken up: [kafka] brokers", true),
            (old.replace("topic = \"t\"", "topic = \"u\""), "taken up: 2 [[files]] changed", false),
            (format!("{old}drop = ['x']"), "taken up: 1 [[files]] changed", false),
            (format!("{old}headers = {{ a = \"b\" }}"), "taken up: 1 [[files]] changed", true),
            (format!("{old}[[files]]\npaths = [\"/c\"]"), "taken up: 1 [[files]] added", false),
            (old.replace("/a.log", "/c.log"), "taken up: 1 [[files]] added, 1 [[files]] removed", false),
            (format!("{old}[metrics]\ntextfile = \"/m\""), "taken up: [metrics] textfile", false),
            (
                format!("{BASE}[[files]]\npaths = [\"/b/*.log\"]\n[[files]]\npaths = [\"/a.log\"]\n"),
                "taken up: the order of [[files]]",
                false,
            ),
        ] {
            let (changes, _) = changes(&old, &new);
            assert_eq!((changes.to_string().as_str(), changes.driver), (said, driver), "{new}");
            assert_eq!(changes.elsewhere, said.contains("brokers"));
        }
    }

    /// Fails when the config says something else than what runs.
    #[test]
    fn what_needs_a_restart_is_put_back() {
        let (_, new) = changes(&format!("{BASE}{FILES}"), &format!("{BASE}{FILES}").replace("/s", "/t"));
        assert_eq!(new.agent.state_dir.unwrap().to_str(), Some("/s"));
        let once = |brokers: &str, rest: &str| {
            let kafka = BASE.replace("b:9092", brokers);
            format!("{kafka}{rest}\n{FILES}").replace("[agent]", "[agent]\ndelivery = \"exactly-once\"")
        };
        let (changes, new) = changes(&once("b:9092", ""), &once("c:9092", "batch = 1000\nlinger = \"1s\""));
        let said = "taken up: [kafka] linger; needs a restart: [kafka] brokers, [kafka] batch";
        assert_eq!((changes.to_string().as_str(), changes.driver, changes.elsewhere), (said, false, false));
        let Output::Kafka(kafka) = new.output else { panic!() };
        assert_eq!((kafka.brokers[0].to_string().as_str(), kafka.batch), ("b:9092", 880 << 10));
    }
}
