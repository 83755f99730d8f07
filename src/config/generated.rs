//! Generates the example config and the manual page from the tables of [`super::keys`]. A test fails if one of them
//! is stale.

use super::keys::TABLES;
use super::spec::{KeySpec, Reload, ShownValue, TableSpec};
use super::tests::good;
use super::*;
use std::fmt::Write as _;
use std::fs;

const EXAMPLE_HEAD: &str = "\
# What logagent follows and where it sends it. `logagent check` reports every mistake and lists the files that match.
# A line that starts with `#` and no space is a key with its default, or with an example if there is no default.
# Sizes: \"512KiB\", \"8MiB\", or plain bytes. Durations: \"5ms\", \"30s\", \"10m\", \"1h\", \"7d\". Rates: \"1MiB/s\".
# In every text, ${host}, ${env:NAME} and ${env:NAME:-default} are filled in.
# After a change: logagent check, then systemctl reload logagent. The log reports which keys need a restart.
# Every key is described in logagent.toml(5).
";

const PAGE_HEAD: &str = "\
.\\\" Generated from src/config/keys.rs by: UPDATE_GENERATED=1 cargo test --bins generated
.TH LOGAGENT.TOML 5
.SH NAME
logagent.toml \\- configuration of logagent, which follows log files and delivers their lines to Kafka
.SH SYNOPSIS
.I /etc/logagent.toml
.br
.I /etc/logagent.d/*.toml
.SH DESCRIPTION
The files are TOML. Beside the main file, a folder whose name ends in
.I .d
instead of
.I .toml
may contain further
.I *.toml
files with any tables; they are read in alphabetical order, except hidden ones. The
.B [[files]]
and
.B [[journal]]
tables of all files apply. For every other key the last file wins;
.B [kafka.tls]
and
.B [kafka.sasl]
count as one key each.
.B logagent check \\-\\-show
prints the merged configuration and where each value comes from. An unknown key is an error.
.B logagent check
reports all problems at once, each with file, line and column. Command-line options override the files.
.PP
On SIGHUP
.RB ( \"systemctl reload logagent\" )
a running agent reads the files again. Each key below says whether its new value takes effect at once or needs a
restart; the log lists the changed keys that need one. A configuration with problems changes nothing.
.PP
In every text, also in a list,
.B ${host}
is replaced by
.BR hostname ,
.B ${env:NAME}
by that environment variable, and
.B ${env:NAME:\\-default}
by the variable or, if it is unset or empty, by the default. A variable whose name suggests a secret is rejected: put
secrets into files.
.SS Values
.TP
size
Bytes: a number, or a text with a unit: B, KiB, MiB, GiB, TiB (powers of 1024), kB, MB, GB, TB (powers of 1000).
.TP
duration
A text of whole numbers with units: ms, s, m (or min), h, d; for example \"1h30m\".
.TP
rate
Bytes per second: a number, or a size with /s, for example \"1MiB/s\".
.TP
path
An absolute path.
.TP
host:port
A name, an IPv4 address or an IPv6 address in brackets, and a port.
.TP
regular expression
In the syntax of the Rust crate regex, best written between single quotes, where a backslash needs no escaping. It
matches bytes.
.TP
glob
* and ? stop at /, ** does not; [abc] and {a,b} work. A backslash escapes the next character.
Names that begin with a dot match too. ** enters no symlinked folders.
";

const PAGE_FOOT: &str = "\
.SH FILES
.TP
.I /etc/logagent.toml
The main file; name another one with
.BR \\-c .
.TP
.I /etc/logagent.d/*.toml
Further tables.
.SH EXIT STATUS
If the configuration has problems,
.B logagent
exits with status 78, and systemd does not restart it.
.SH SEE ALSO
.BR logagent (1),
.BR systemd.exec (5)
";

fn example() -> String {
    let mut out = EXAMPLE_HEAD.to_owned();
    for table in TABLES {
        out.push('\n');
        comment(&mut out, table.docs.text);
        let _ = writeln!(out, "{}{}", if table.docs.optional { "#" } else { "" }, table.name);
        for key in table.keys.iter().filter(|k| k.shown != ShownValue::Table) {
            comment(&mut out, key.docs.text);
            let value = if key.shown == ShownValue::Instance { key.docs.note } else { key.value };
            let is_set =
                matches!(key.shown, ShownValue::Required | ShownValue::Sample) && !table.docs.optional;
            let _ = writeln!(out, "{}{} = {value}", if is_set { "" } else { "#" }, key.name);
        }
    }
    out
}

/// Wraps at 120 characters.
fn comment(out: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > 120 {
            let _ = writeln!(out, "{line}");
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    if line != "#" {
        let _ = writeln!(out, "{line}");
    }
}

fn page() -> String {
    let mut out = PAGE_HEAD.to_owned();
    for table in TABLES {
        let _ = writeln!(out, ".SH {}", roff(table.name));
        for text in [table.docs.text].into_iter().filter(|t| !t.is_empty()) {
            let _ = writeln!(out, "{}", roff(text));
        }
        keys(&mut out, table);
    }
    out + PAGE_FOOT
}

fn keys(out: &mut String, table: &TableSpec) {
    for key in table.keys {
        let _ = writeln!(out, ".TP\n.B {}", roff(key.name));
        if key.shown == ShownValue::Table {
            let _ = writeln!(out, "The table {}, below.", roff(key.value));
            continue;
        }
        for text in [key.docs.text, key.docs.more].into_iter().filter(|t| !t.is_empty()) {
            let _ = writeln!(out, "{}", roff(text));
        }
        let _ = writeln!(out, ".br\nType: {}. {}.", roff(&(key.docs.kind)()), roff(&default(key)));
        // Keys inside a value follow the rule of the value's key.
        if !table.name.starts_with('`') {
            let _ = writeln!(out, "Reload: {}.", roff(rule(key.reload)));
        }
        if let Some(inner) = key.docs.inner {
            let _ = writeln!(out, ".RS");
            keys(out, inner);
            let _ = writeln!(out, ".RE");
        }
    }
}

fn default(key: &KeySpec) -> String {
    match key.shown {
        ShownValue::Instance if matches!(key.value, "[]" | "{}") => {
            format!("Default: none. Example: {}", key.docs.note)
        }
        ShownValue::Default | ShownValue::Instance => format!("Default: {}", key.value),
        ShownValue::Computed => format!("Default: {}", key.docs.note),
        ShownValue::Required => format!("Required. Example: {}", key.value),
        ShownValue::Example | ShownValue::Sample | ShownValue::Table => {
            format!("Default: none. Example: {}", key.value)
        }
    }
}

fn rule(reload: Reload) -> &'static str {
    match reload {
        Reload::AtOnce | Reload::OfFiles => "at once",
        Reload::Reconnects => "at once, over new connections",
        Reload::Restart => "needs a restart",
        Reload::AtOnceOrRestart => "at once; with exactly-once needs a restart",
        Reload::ReconnectsOrRestart => "at once, over new connections; with exactly-once needs a restart",
    }
}

/// Escapes text for roff, so that nothing in it is a request or an escape.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('"', "\\(dq").replace('`', "");
    let text = text.replace('^', "\\(ha").replace('~', "\\(ti").replace('\'', "\\(aq");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}

/// Fails when a key was changed and the file was not regenerated.
#[track_caller]
fn is_current(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        fs::write(&path, text).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == text, "{name} is stale; write it by: UPDATE_GENERATED=1 cargo test --bins generated");
}

#[test]
fn the_example_is_current() {
    is_current("systemd/logagent.toml", &example());
}

#[test]
fn the_page_is_current() {
    is_current("systemd/logagent.toml.5", &page());
}

/// The example with every key uncommented.
fn uncommented(example: &str) -> String {
    let mut table = "";
    let lines = example.lines().map(|l| match l.strip_prefix('#') {
        Some(key) if !key.starts_with(' ') => {
            table = if key.starts_with('[') { key } else { table };
            let name = key.split(' ').next().unwrap();
            // [kafka.sasl] shows the keys of several mechanisms.
            if table == "[kafka.sasl]" && sasl::OF_TOKENS.concat().contains(&name) { l } else { key }
        }
        _ => l,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Fails when the example shows an invalid value, or when the agent's defaults differ from those shown.
#[test]
fn the_example_is_a_config_as_it_is_and_with_every_key() {
    let c = good(&example());
    assert!(c.needs_modern().is_empty());
    let all = good(&uncommented(&example()));
    assert_eq!(all.needs_modern(), ["a proxy", "TLS", "SASL", "budget", "headers"]);
    assert_eq!(all.sources[0].headers, [("source".to_owned(), "logagent@box7".to_owned())]);
}

/// The settings in the first version's example.
const FIRST_EXAMPLE: &str = r#"
[agent]
#state_dir = "/var/lib/logagent"
#memory = "8MiB"
#delivery = "at-least-once"
#sync = "30s"
#drain_timeout = "10s"
#damaged_state = "refuse"
#hostname = "box7"
[kafka]
brokers = ["127.0.0.1:9092"]
topic = "web_log"
#acks = "all"
#driver = "auto"
#client_id = "logagent"
#key = "path"
#partition = "hash"
#compression = "none"
#linger = "0ms"
#batch = "512KiB"
#rate = "1MiB/s"
#create_topics = true
#[kafka.tls]
#ca = "/etc/ssl/certs/kafka-ca.pem"
#cert = "/etc/ssl/certs/logagent.pem"
#key = "/run/credentials/logagent.service/kafka-key"
#server_name = "kafka.example"
#[kafka.sasl]
#mechanism = "SCRAM-SHA-512"
#username = "logagent"
#password_file = "/run/credentials/logagent.service/kafka-password"
#plain_without_tls = false
#[metrics]
#textfile = "/var/lib/node_exporter/logagent.prom"
[[files]]
paths = ["/var/log/nginx/*.log"]
#exclude = ["*.gz"]
#topic = "nginx"
#start = "end"
#must_exist = false
#follow = true
#reopen = true
#poll = false
#rotate_grace = "60s"
#deleted_hold = { bytes = "1GiB", time = "7d" }
#max_line = 1000000
#partial_after = "5s"
#multiline = { start = '^\d{4}-', timeout = "2s", max_lines = 500 }
#include = ['"(GET|POST) ']
#drop = ['"GET /health ']
#skip_empty = false
#format = "json"
#fields = { service = "nginx", node = "${host}" }
#headers = { source = "logagent@${host}" }
#rate_limit = "100KiB/s"
"#;

/// Fails when an update changes what an installed example means, with or without its commented keys.
#[test]
fn the_first_example_means_the_same_today() {
    // What came later is left out.
    let shown = |text: &str| {
        let mut config = Config { read_from: Vec::new(), journals: Vec::new(), ..good(text) };
        if let Output::Kafka(kafka) = &mut config.output {
            (kafka.budget, kafka.proxy, kafka.proxy_password_file) = (None, None, None);
        }
        format!("{config:#?}")
    };
    assert_eq!(shown(&example()), shown(FIRST_EXAMPLE));
    assert_eq!(shown(&uncommented(&example())), shown(&uncommented(FIRST_EXAMPLE)));
    assert_ne!(shown(FIRST_EXAMPLE), shown(&uncommented(FIRST_EXAMPLE)));
}

/// Fails when an omitted key means anything but its documented default.
#[test]
fn a_default_written_out_changes_nothing() {
    let mut text = String::new();
    for table in TABLES.iter().filter(|t| !t.docs.optional) {
        let _ = writeln!(text, "{}", table.name);
        let is_set = |k: &&KeySpec| {
            matches!(
                k.shown,
                ShownValue::Default | ShownValue::Instance | ShownValue::Required | ShownValue::Sample
            )
        };
        for key in table.keys.iter().filter(is_set) {
            let _ = writeln!(text, "{} = {}", key.name, key.value);
        }
    }
    let shown = |text: &str| format!("{:#?}", Config { read_from: Vec::new(), ..good(text) });
    assert_eq!(shown(&text), shown(&example()), "{text}");
}

/// Fails when a text of the tables contains roff markup: groff reports it.
#[test]
fn the_page_renders_without_a_warning() {
    use std::process::{Command, Stdio};
    let mut groff = Command::new("groff");
    groff.args(["-man", "-ww", "-z", "-Tutf8", "-K", "utf8"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut running) = groff.spawn() else { return }; // only where it is installed
    std::io::Write::write_all(&mut running.stdin.take().unwrap(), page().as_bytes()).unwrap();
    let done = running.wait_with_output().unwrap();
    assert!(done.status.success() && done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
}
