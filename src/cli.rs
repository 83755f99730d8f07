//! The command line: five commands, parsed by `argh`. An invalid command line is an [`Error`] with code 64.
//!
//! `argh` supports only UTF-8 and no `--opt=value`, so arguments are escaped before and unescaped by the value
//! readers below.

use crate::config::{self, Acks, BrokerAddress, DriverChoice, OutputName, Overrides, Start};
use crate::error::Error;
use argh::FromArgs;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// The parsed command line.
#[derive(Debug, PartialEq)]
pub enum Invocation {
    Command(Command),
    /// `--help` or `--version`: print this text.
    Text(String),
}

/// Follows log files and delivers every line to Kafka.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    help_triggers("-h", "--help", "help"),
    note = "Exit codes: 0 done or stopped, 1 failed, 64 wrong command line, 78 wrong config or damaged state."
)]
struct Top {
    /// print the version
    #[argh(switch, short = 'V')]
    version: bool,
    #[argh(subcommand)]
    command: Option<Command>,
}

#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand)]
pub enum Command {
    Run(RunArgs),
    Tail(TailArgs),
    Send(SendArgs),
    Check(CheckArgs),
    Status(StatusArgs),
}

/// Follow files and deliver their lines. With FILE and without -c no config is needed: without --brokers, lines go to
/// standard output; without --state-dir, nothing is saved.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "run",
    help_triggers("-h", "--help"),
    example = "{command_name} /var/log/nginx/access.log\n{command_name} -c /etc/logagent.toml"
)]
pub struct RunArgs {
    /// config file (/etc/logagent.toml)
    #[argh(option, short = 'c', arg_name = "FILE", from_str_fn(path))]
    pub config: Option<PathBuf>,
    /// bootstrap brokers, host:port,…
    #[argh(option, arg_name = "H:P,…", from_str_fn(brokers))]
    pub brokers: Option<Vec<BrokerAddress>>,
    /// topic for all files
    #[argh(option, from_str_fn(topic))]
    pub topic: Option<String>,
    /// kafka or stdout
    #[argh(option, from_str_fn(word))]
    pub output: Option<OutputName>,
    /// beginning or end: where to start in files without a saved position
    #[argh(option, from_str_fn(word))]
    pub from: Option<Start>,
    /// folder for saved positions
    #[argh(option, arg_name = "DIR", from_str_fn(path))]
    pub state_dir: Option<PathBuf>,
    /// auto (modern where the broker supports it), classic (the kafka crate) or modern
    #[argh(option, from_str_fn(word))]
    pub driver: Option<DriverChoice>,
    /// read what exists now, deliver it, and exit
    #[argh(switch)]
    pub once: bool,
    /// files to follow instead of the config's; taken literally if they exist, otherwise as globs
    #[argh(positional, arg_name = "FILE", from_str_fn(path))]
    pub files: Vec<PathBuf>,
}

/// Print each line as it is appended.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "tail", help_triggers("-h", "--help"))]
pub struct TailArgs {
    /// beginning or end (the default): where to start
    #[argh(option, default = "Start::End", from_str_fn(word))]
    pub from: Start,
    /// print the messages of the systemd journal instead of files
    #[argh(switch)]
    pub journal: bool,
    /// with --journal: only this unit's; may be repeated
    #[argh(option, short = 'u', long = "unit", arg_name = "UNIT")]
    pub units: Vec<String>,
    /// files to follow; taken literally if they exist, otherwise as globs
    #[argh(positional, arg_name = "FILE", from_str_fn(path))]
    pub files: Vec<PathBuf>,
}

/// Send values from the command line, or the lines of standard input, as records.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "send",
    help_triggers("-h", "--help"),
    description = "Send values to Kafka, one record each, and print pid:<partition> offset:<offset> for each. Needs \
                   --brokers and --topic, or -c with a config, whose TLS and SASL settings are used too.",
    example = "{command_name} --brokers kafka.example:9092 --topic t 'a value'\n{command_name} -c /etc/logagent.toml 'a value'"
)]
pub struct SendArgs {
    /// config file whose [kafka] section is used, except for key, partition and linger; its files are not read
    #[argh(option, short = 'c', arg_name = "FILE", from_str_fn(path))]
    pub config: Option<PathBuf>,
    /// bootstrap brokers, host:port,…
    #[argh(option, arg_name = "H:P,…", from_str_fn(brokers))]
    pub brokers: Option<Vec<BrokerAddress>>,
    /// topic
    #[argh(option, from_str_fn(topic))]
    pub topic: Option<String>,
    /// key of every record
    #[argh(option, from_str_fn(bytes))]
    pub key: Option<Vec<u8>>,
    /// partition of every record
    #[argh(option, from_str_fn(partition))]
    pub partition: Option<i32>,
    /// all, 1 or 0; by default as in the config, otherwise all
    #[argh(option, from_str_fn(word))]
    pub acks: Option<Acks>,
    /// auto (modern where the broker supports it), classic (the kafka crate) or modern
    #[argh(option, from_str_fn(word))]
    pub driver: Option<DriverChoice>,
    /// what to send; without one, the lines of standard input
    #[argh(positional, arg_name = "VALUE", from_str_fn(bytes))]
    pub values: Vec<Vec<u8>>,
}

/// Report every mistake in the config, the files that it follows, and how much memory it needs.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "check", help_triggers("-h", "--help"))]
pub struct CheckArgs {
    /// config file (/etc/logagent.toml)
    #[argh(option, short = 'c', arg_name = "FILE", from_str_fn(path))]
    pub config: Option<PathBuf>,
    /// also check the brokers, step by step
    #[argh(switch)]
    pub connect: bool,
    /// print the merged config first, and where each value comes from
    #[argh(switch)]
    pub show: bool,
}

/// Show how far each file is delivered.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "status", help_triggers("-h", "--help"))]
pub struct StatusArgs {
    /// config file that names the state folder (/etc/logagent.toml)
    #[argh(option, short = 'c', arg_name = "FILE", from_str_fn(path))]
    pub config: Option<PathBuf>,
    /// state folder
    #[argh(option, arg_name = "DIR", from_str_fn(path))]
    pub state_dir: Option<PathBuf>,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
    /// repeat every second, with rates
    #[argh(switch)]
    pub watch: bool,
    /// exit with 0 if every complete line of this file is acknowledged, otherwise with 1
    #[argh(option, arg_name = "FILE", from_str_fn(path))]
    pub shipped: Option<PathBuf>,
}

impl RunArgs {
    pub fn overrides(self) -> Overrides {
        Overrides {
            config: self.config,
            brokers: self.brokers,
            topic: self.topic,
            output: self.output,
            from: self.from,
            state_dir: self.state_dir,
            driver: self.driver,
            once: self.once,
            files: self.files,
            journal: None,
        }
    }
}

impl SendArgs {
    /// The options that override the config.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            config: self.config.clone(),
            brokers: self.brokers.clone(),
            topic: self.topic.clone(),
            driver: self.driver,
            output: Some(OutputName::Kafka),
            ..Overrides::default()
        }
    }
}

/// Parses `args`, given without the program's name.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, Error> {
    let args: Vec<String> = args.into_iter().map(|a| escape(&a)).collect();
    let args = split_values(args);
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let ["help", command] = args[..]
        && COMMANDS.contains(&command)
    {
        args = vec![command, "--help"]; // `argh` would take the command's own `help` for a FILE
    }
    let command = args.iter().find(|a| COMMANDS.contains(a)).copied();
    match Top::from_args(&["logagent"], &args) {
        Ok(Top { version: true, .. }) => {
            Ok(Invocation::Text(format!("logagent {}", env!("CARGO_PKG_VERSION"))))
        }
        Ok(Top { command: None, .. }) => Err(wrong(None, "no command is given")),
        Ok(Top { command: Some(c), .. }) => judge(c).map(Invocation::Command),
        Err(exit) if exit.status.is_ok() => Ok(Invocation::Text(exit.output.trim_end().to_owned())),
        Err(_) if names_standard_input(&args) => Err(wrong(
            command,
            "`-` is not a file: only send reads standard input, and it does so without `-`",
        )),
        Err(exit) => Err(wrong(command, &readable(&exit.output))),
    }
}

const COMMANDS: [&str; 5] = ["run", "tail", "send", "check", "status"];

/// Options that take a value.
const VALUED: [&str; 12] = [
    "-c",
    "--config",
    "--brokers",
    "--topic",
    "--output",
    "--from",
    "--state-dir",
    "--driver",
    "--key",
    "--partition",
    "--acks",
    "--shipped",
];

/// Whether there is a `-` that is neither an option's value nor behind `--`.
fn names_standard_input(args: &[&str]) -> bool {
    let valued = |i: usize| i.checked_sub(1).is_some_and(|before| VALUED.contains(&args[before]));
    let mut before_files = args.iter().take_while(|a| **a != "--").enumerate();
    before_files.any(|(i, a)| *a == "-" && !valued(i))
}

fn wrong(command: Option<&str>, why: &str) -> Error {
    match command {
        Some(c) => Error::usage(c, why, format!("see logagent {c} --help")),
        None => Error::usage("command line", why, "see logagent --help"),
    }
}

/// Checks that `argh` does not do.
fn judge(command: Command) -> Result<Command, Error> {
    match &command {
        Command::Tail(t) if t.journal && !t.files.is_empty() => {
            Err(wrong(Some("tail"), "--journal replaces FILE: give only one"))
        }
        Command::Tail(t) if !t.journal && !t.units.is_empty() => {
            Err(wrong(Some("tail"), "--unit needs --journal"))
        }
        Command::Tail(t) if !t.journal && t.files.is_empty() => Err(wrong(Some("tail"), "no FILE is given")),
        Command::Send(s) if s.config.is_none() && (s.brokers.is_none() || s.topic.is_none()) => {
            Err(wrong(Some("send"), "--brokers and --topic are needed, or a config file with -c"))
        }
        Command::Status(s) if s.config.is_some() && s.state_dir.is_some() => {
            Err(wrong(Some("status"), "-c and --state-dir both name the state folder: give only one"))
        }
        _ => Ok(command),
    }
}

/// Splits `--opt=value` into `--opt value` for options that take a value, up to `--`.
fn split_values(args: Vec<String>) -> Vec<String> {
    let mut out = Vec::with_capacity(args.len() + 4);
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            out.push(arg);
            break;
        }
        match arg.split_once('=') {
            Some((name, value)) if name.starts_with("--") && VALUED.contains(&name) => {
                out.extend([name.to_owned(), value.to_owned()]);
            }
            _ => {
                let valued = VALUED.contains(&arg.as_str());
                out.push(arg);
                // The value, which may itself look like an option with a value.
                out.extend(valued.then(|| args.next()).flatten());
            }
        }
    }
    out.extend(args);
    out
}

/// Joins `argh`'s error lines.
fn readable(output: &str) -> String {
    let parts: Vec<&str> = output.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    String::from_utf8_lossy(&unescape(&parts.join(" "))).into_owned()
}

/// Reversibly encodes arbitrary bytes as text: bytes that are not UTF-8 become private-use characters (U+10FF00 plus
/// the byte), and so do the bytes of those characters if present in the input.
fn escape(arg: &OsStr) -> String {
    let hide = |bytes: &[u8]| bytes.iter().map(|b| private(*b)).collect::<String>();
    let mut out = String::new();
    for chunk in arg.as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match public(c) {
                Some(_) => out.push_str(&hide(c.encode_utf8(&mut [0; 4]).as_bytes())),
                None => out.push(c),
            }
        }
        out.push_str(&hide(chunk.invalid()));
    }
    out
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for c in text.chars() {
        match public(c) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out
}

fn private(byte: u8) -> char {
    char::from_u32(0x10_ff00 + u32::from(byte)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn public(c: char) -> Option<u8> {
    u8::try_from((c as u32).checked_sub(0x10_ff00)?).ok()
}

// Value readers for `argh`.

fn bytes(arg: &str) -> Result<Vec<u8>, String> {
    Ok(unescape(arg))
}

fn path(arg: &str) -> Result<PathBuf, String> {
    match arg.is_empty() {
        true => Err("it is empty".into()),
        false => Ok(OsString::from_vec(unescape(arg)).into()),
    }
}

fn text(arg: &str) -> Result<String, String> {
    String::from_utf8(unescape(arg)).map_err(|_| "it is not UTF-8".into())
}

fn topic(arg: &str) -> Result<String, String> {
    config::topic_name(&text(arg)?).map_err(|e| e.to_string())
}

fn brokers(arg: &str) -> Result<Vec<BrokerAddress>, String> {
    config::brokers(&text(arg)?).map_err(|e| e.to_string())
}

fn word<T: config::Named>(arg: &str) -> Result<T, String> {
    config::by_name(&text(arg)?)
}

fn partition(arg: &str) -> Result<i32, String> {
    let n: Option<i32> = arg.parse().ok().filter(|n| *n >= 0);
    n.ok_or_else(|| "it is not a whole number of at least 0".into())
}

#[cfg(test)]
mod tests;
