//! The possible problems of a config. Each text says what is wrong and, after a semicolon, what to write instead.

use super::MemoryPlan;
use super::placeholder::WrongPlaceholder;
use super::spec::KeySpec;
use super::units::{BrokerAddress, Invalid};
use std::fmt::{self, Display};

/// A problem. The first text is the key, if there is one.
#[derive(Debug)]
pub enum Mistake {
    /// A file of the `.d` folder.
    Unreadable(std::io::Error),
    NotUtf8,
    /// The parser's message, and the line it is about.
    Syntax(String, String),
    /// With the table it is in.
    UnknownKey(String, &'static str, Hint),
    /// With its table and an example.
    MissingKey(&'static KeySpec, &'static str),
    MissingTopic,
    NoFiles,
    /// With the key.
    NotTables(&'static str),
    /// The actual type, the expected one, and an example.
    Type(String, &'static str, &'static str, String),
    /// With the value.
    Value(String, String, WrongValue),
    /// With the value, all words, and the nearest.
    Word(String, String, Vec<String>, Option<&'static str>),
    /// Like `Word`, but not all valid values are words.
    Choice(String, String, &'static str),
    /// Outside the range from the first number to the second.
    Range(String, u64, u64),
    Bytes(String),
    /// A duration of zero.
    NoTime(String),
    /// With an example.
    EmptyList(String, &'static str),
    /// A name within the key's value.
    EmptyName(String),
    /// With the path.
    RelativePath(String, String),
    /// The name of a SASL extension with an invalid name or value.
    Extension(String),
    /// With the valid choices.
    KeySources(&'static str),
    MultilineSources,
    Placeholder(String, WrongPlaceholder),
    Conflict(Conflict),
}

/// Keys that conflict.
#[derive(Debug)]
pub enum Conflict {
    /// Only the modern driver supports this.
    Classic(&'static str),
    ExactlyOnceAcks,
    /// With the maximum size.
    ExactlyOnceBatch(usize),
    HashWithoutKey,
    StickyWithKey,
    CertWithoutKey,
    KeyWithoutCert,
    ProxyPassword,
    ProxyUserWithoutPassword,
    ProxyPasswordWithoutUser,
    /// The mechanism, and what it would send.
    ReadableSecret(&'static str, &'static str, BrokerAddress),
    TokenUrlWithoutTls,
    /// A key of [kafka.sasl], and what it conflicts with.
    UnusedSaslKey(&'static str, &'static str),
    ReopenWithoutFollow,
    SameJournal,
    FieldsOfRaw,
    Memory(usize, MemoryPlan),
}

impl From<Conflict> for Mistake {
    fn from(conflict: Conflict) -> Self {
        Mistake::Conflict(conflict)
    }
}

/// What a value should have been.
#[derive(Debug)]
pub struct WrongValue {
    pub wanted: &'static str,
    pub why: Invalid,
    pub example: String,
}

/// A suggestion for an unknown key.
#[derive(Debug)]
pub enum Hint {
    Nearest(&'static str),
    Elsewhere(&'static str),
    Known(Vec<&'static str>),
}

/// What is wrong, and what to write instead.
impl Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Mistake::*;
        match self {
            Unreadable(e) => write!(f, "cannot be read: {e}; let the agent's user read it, or remove it"),
            NotUtf8 => f.write_str("a byte that is not UTF-8; save the file as UTF-8"),
            Syntax(message, line) => write!(f, "{message}; correct the TOML of this line: {line}"),
            UnknownKey(key, table, hint) => {
                write!(f, "unknown key `{key}` in {table}; ")?;
                match hint {
                    Hint::Nearest(near) => write!(f, "did you mean `{near}`?"),
                    Hint::Elsewhere(table) => write!(f, "it belongs in {table}"),
                    Hint::Known(known) => write!(f, "known here: {}", known.join(", ")),
                }
            }
            EmptyName(key) => write!(f, "a name in `{key}` is empty; give it a name"),
            MissingKey(KeySpec { name: key, value: example, .. }, table) => {
                let or = match *key {
                    "brokers" => ", or run with --output stdout",
                    "token_file" => ", or token_url and its keys",
                    _ => "",
                };
                write!(f, "`{key}` is missing in {table}; write {key} = {example}{or}")
            }
            MissingTopic => f.write_str(
                "`topic` is missing in [kafka], and not every [[files]] has its own; write topic = \"web_log\" in \
                 [kafka], or one in each [[files]], or give --topic",
            ),
            NoFiles => {
                f.write_str("there is no [[files]]; write [[files]] and below it paths = [\"/var/log/…\"]")
            }
            NotTables(key) => {
                write!(f, "`{key}` is not a list of tables; write [[{key}]] above the keys of each")
            }
            Type(key, is, wanted, example) => {
                write!(f, "`{key}` is {is}, not {wanted}; write {key} = {example}")
            }
            Value(key, value, WrongValue { wanted, why, example }) => {
                write!(f, "`{key}`: {value:?} is not {wanted}: {why}; write for example {key} = {example}")
            }
            Word(key, value, _, Some(near)) => {
                write!(f, "`{key}` cannot be {value:?}; did you mean {near:?}?")
            }
            Word(key, value, words, None) => {
                write!(f, "`{key}` cannot be {value:?}; write {}", words.join(" or "))
            }
            Choice(key, value, choices) => write!(f, "`{key}` cannot be {value}; write {choices}"),
            Range(key, from, to) => {
                write!(f, "`{key}` is not from {from} to {to}; write a number in that range")
            }
            Bytes(key) => {
                write!(f, "`{key}` is not from 1 byte to 1 GiB; write a size such as \"8MiB\"")
            }
            NoTime(key) => write!(f, "`{key}` must not be zero; write {key} = \"1s\" or longer"),
            EmptyList(key, example) => write!(f, "`{key}` is empty; write {key} = {example}"),
            RelativePath(key, path) => write!(
                f,
                "`{key}`: {path:?} is a relative path; begin it with /, because a service has no folder of its own to \
                 start from"
            ),
            Extension(name) => write!(
                f,
                "{name:?} is not a valid SASL extension: a name has only letters and is not \"auth\", a value is printable \
                 ASCII; write for example extensions = {{ logicalCluster = \"lkc-1\" }}"
            ),
            KeySources(choices) => write!(f, "`key` has not exactly one source; write key = {choices}"),
            MultilineSources => f.write_str(
                "`multiline` does not have exactly one of `start` and `continue`; write one of them, to define which lines \
                 belong together",
            ),
            Placeholder(key, WrongPlaceholder::Unknown) => write!(
                f,
                "{key} has a ${{…}} that is not ${{host}} or ${{env:NAME}}; write one of these, or remove the $"
            ),
            Placeholder(key, WrongPlaceholder::Missing(name)) => write!(
                f,
                "{key}: {name} is not in the environment; set it with Environment= in the unit, or write \
                 ${{env:{name}:-default}}"
            ),
            Placeholder(key, WrongPlaceholder::Secret(name)) => write!(
                f,
                "{key}: {name} looks like a secret, and a process's environment can be read by others; put it into a file, and name that file in the key that ends with _file"
            ),
            Conflict(conflict) => conflict.fmt(f),
        }
    }
}

impl Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Conflict::*;
        let text = match self {
            Classic(what) => {
                return write!(
                    f,
                    "the classic driver, set by `driver`, does not support {what}; write driver = \"auto\" or \"modern\", or remove this"
                );
            }
            ExactlyOnceBatch(most) => {
                let most = most >> 20;
                return write!(
                    f,
                    "delivery = \"exactly-once\" allows no batches over {most} MiB; write batch = \"{most}MiB\" or less"
                );
            }
            ReadableSecret(mechanism, secret, broker) => {
                let or = match *mechanism {
                    "PLAIN" => ", or, if the network path is safe, plain_without_tls = true in [kafka.sasl]",
                    _ => "",
                };
                return write!(
                    f,
                    "{mechanism} without TLS would send the {secret} in the clear to {broker}; write [kafka.tls], or \
                     mechanism = \"SCRAM-SHA-512\"{or}"
                );
            }
            UnusedSaslKey(key, with) => {
                return write!(f, "`{key}` cannot be used with {with}; remove one of them");
            }
            Memory(memory, MemoryPlan { encoding, topics, per_topic, needed }) => {
                let s = if *topics == 1 { "" } else { "s" };
                let least = needed.div_ceil(1 << 10);
                return write!(
                    f,
                    "`memory` of {memory} bytes is too small for {topics} topic{s}: {per_topic} bytes for each (its \
                     longest line, and tables) and {encoding} to encode are needed; write memory = \"{least}KiB\" or \
                     more in [agent], or a smaller batch or max_line"
                );
            }
            ExactlyOnceAcks => {
                "exactly-once needs acknowledgement by all in-sync replicas; write acks = \"all\", or delivery = \"at-least-once\" in [agent]"
            }
            HashWithoutKey => {
                "`partition` = \"hash\" needs a `key`, and there is none; write for example key = \"path\", or partition = \"sticky\""
            }
            StickyWithKey => {
                "`partition` = \"sticky\" ignores the `key`, so lines with the same key would lose their order; write \
                 partition = \"hash\", or leave it out"
            }
            CertWithoutKey => {
                "a client certificate without its `key`; name both `cert` and `key`, or neither"
            }
            KeyWithoutCert => "a client key without its `cert`; name both `cert` and `key`, or neither",
            ProxyPassword => {
                "`proxy` contains a password; put it into a file, and name that file in proxy_password_file"
            }
            ProxyUserWithoutPassword => {
                "`proxy` names a user without a password; set proxy_password_file, or remove the user"
            }
            ProxyPasswordWithoutUser => {
                "`proxy_password_file` without a user; name the user in proxy, as in \"http://user@proxy:3128\""
            }
            TokenUrlWithoutTls => {
                "`token_url` without TLS would send the client's secret in the clear; use https://, or, if the \
                 network path is safe, write token_url_without_tls = true"
            }
            ReopenWithoutFollow => {
                "`reopen` without `follow`: a file that is read once is not reopened; remove one of them"
            }
            SameJournal => {
                "another [[journal]] already reads this journal; put the units of both into one, or name another namespace or directory"
            }
            FieldsOfRaw => "`fields` needs format = \"json\"; write that, or use headers",
        };
        f.write_str(text)
    }
}
