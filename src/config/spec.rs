//! What is known about a config table and its keys, except how their values are read.

/// A table of the config, or an inline table that is a key's value.
#[derive(Debug)]
pub struct TableSpec {
    /// The displayed name: `[kafka]`; for an inline table, its key's name.
    pub name: &'static str,
    pub keys: &'static [KeySpec],
    #[cfg(test)]
    pub docs: TableDocs,
}

/// The description of a key, except how its value is read, which the macro knows.
#[derive(Debug)]
pub struct KeySpec {
    pub name: &'static str,
    /// TOML.
    pub value: &'static str,
    pub shown: ShownValue,
    pub reload: Reload,
    #[cfg(test)]
    pub docs: KeyDocs,
}

/// The meaning of [`KeySpec::value`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShownValue {
    /// The default.
    Default,
    /// The default; its note is a more informative example.
    Instance,
    /// The default depends on something named in its note and computed by [`super::resolve`]; the value is a
    /// placeholder until then.
    Computed,
    /// An example; there is no default.
    Example,
    /// Like `Example`, but set in the example config.
    Sample,
    /// An example, used as a placeholder for a missing value until that is reported.
    Required,
    /// The name of an optional table.
    Table,
}

/// How a running agent applies a changed value on SIGHUP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reload {
    AtOnce,
    /// Takes effect immediately, with new connections.
    Reconnects,
    /// Takes effect only after a restart.
    Restart,
    /// `AtOnce`; with exactly-once `Restart`, because saved sequence numbers depend on it.
    AtOnceOrRestart,
    /// `Reconnects`; with exactly-once `Restart`.
    ReconnectsOrRestart,
    /// Part of its `[[files]]` table.
    OfFiles,
}

#[cfg(test)]
#[derive(Debug)]
pub struct TableDocs {
    /// Commented out in the example.
    pub optional: bool,
    pub text: &'static str,
}

#[cfg(test)]
#[derive(Debug)]
pub struct KeyDocs {
    pub kind: fn() -> String,
    pub note: &'static str,
    /// For the example config and the manual page.
    pub text: &'static str,
    /// For the manual page only.
    pub more: &'static str,
    /// The keys inside the value.
    pub inner: Option<&'static TableSpec>,
}

impl TableSpec {
    pub fn key(&self, name: &str) -> &'static KeySpec {
        let found = self.keys.iter().find(|k| k.name == name);
        found.unwrap_or_else(|| unreachable!("{name} is not a key of {}", self.name))
    }
}
