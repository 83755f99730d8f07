//! Every key of the config, described once. The parser, its suggestions, the example `systemd/logagent.toml`, the
//! page `systemd/logagent.toml.5` and the reload rules are derived from these tables.

use super::sasl::{extensions, sasl, token_url};
use super::table::*;
use super::units::BrokerAddress;
use super::values::*;
use super::{
    Acks, Boot, Codec, Damaged, Delivery, DriverChoice, Format, Hold, JournalFormat, Key as RecordKey,
    Mechanism, Multiline, Partitioner, Priority, Sasl, Start, Sync, TokenUrl,
};
use crate::watch::pattern::{Exclude, Pattern};
use regex::bytes::Regex;
use std::path::PathBuf;
use std::time::Duration;

/// In the order of the example.
pub const TABLES: [&TableSpec; 7] = [
    Agent::TABLE,
    Kafka::TABLE,
    KafkaTls::TABLE,
    KafkaSasl::TABLE,
    Metrics::TABLE,
    Source::TABLE,
    JournalSource::TABLE,
];

/// The table in which a misplaced key belongs.
pub fn elsewhere(key: &str) -> Option<&'static str> {
    match key {
        "password" => Some("a file of its own, which password_file in [kafka.sasl] names"),
        "agent" | "kafka" | "metrics" | "files" | "journal" => Some("the file, as a table of its own"),
        _ => TABLES.iter().find(|t| t.keys.iter().any(|k| k.name == key)).map(|t| t.name),
    }
}

table! {
    pub struct Agent "[agent]" {
        state_dir: Option<PathBuf> = folder("path"), Default("\"/var/lib/logagent\""), Restart,
            "Where positions are saved; under systemd the unit's StateDirectory.",
            "One agent per folder: a second one is refused.";
        memory: usize = bytes("size"), Default("\"8MiB\""), AtOnce,
            "Most bytes between disk and acknowledgement, over all files. When it is full, reading waits.",
            "It is split between the topics. More helps on links with a long delay. The check command says how much \
             is needed, and the worst case for the whole process.";
        delivery: Delivery = word(words::<Delivery>()), Default("\"at-least-once\""), Restart,
            "With \"exactly-once\" no line is stored twice, also when agent or broker crashes (Kafka from 2.8, acks = \
             \"all\").",
            "It needs the modern driver and the right to READ the topics.";
        sync: Sync = sync("duration, or \"always\""), Default("\"30s\""), Restart,
            "How often positions are forced to the disk; after a power cut, lines since then are sent again. \
             \"always\": also before each request, so that exactly-once survives power cuts.",
            "\"always\" costs flash writes.";
        drain_timeout: Duration = duration("duration"), Default("\"10s\""), AtOnce,
            "How long a stop waits for what is in flight.",
            "It does not wait at all where no broker could be reached for 1 s and positions are saved. Keep \
             TimeoutStopSec of the unit above it.";
        damaged_state: Damaged = word(words::<Damaged>()), Default("\"refuse\""), AtOnce,
            "When both copies of the positions are damaged: stop and say so, or \"beginning\": send everything again.",
            "The exit code is then 78. A changed value matters at the next start.";
        hostname: String = text("text"), Computed("\"box7\"", "the name of the machine"), AtOnce,
            "Used in keys, fields and headers; the machine's name by default.";
    }
}

table! {
    pub struct Kafka "[kafka]" {
        brokers: Vec<BrokerAddress> = brokers("list of host:port"), Required("[\"127.0.0.1:9092\"]"), ReconnectsOrRestart,
            "One or more to begin with: names, IPv4, [IPv6]. The others of the cluster are learned from them.",
            "Name two or three.";
        topic: Option<String> = topic("topic"), Sample("\"web_log\""), OfFiles, "",
            "The topic for all [[files]] that have none of their own; required if there are any such.";
        acks: Acks = acks("\"all\", 1 or 0"), Default("\"all\""), ReconnectsOrRestart,
            "A line counts as delivered when all in-sync replicas have it; 1: the leader; 0: it was written to the \
             socket.",
            "Only \"all\" loses nothing.";
        driver: DriverChoice = word(words::<DriverChoice>()), Default("\"auto\""), ReconnectsOrRestart,
            "auto takes modern where the broker does (Kafka 0.11 and later), else classic: the `kafka` crate, for \
             brokers up to 3.9 and without TLS, SASL, lz4, zstd, headers and exactly-once.",
            "Change it only to pin one of the two.";
        client_id: String = client_id("text, 1 to 255 bytes"), Default("\"logagent\""), Reconnects, "",
            "\"logagent-${host}\" tells agents apart in the logs, metrics and quotas of the broker.";
        key: Option<RecordKey> = record_key("\"path\", \"host\", or a table with one key" => KeyTable),
            Example("\"path\""), AtOnce,
            "The record's key: \"path\", \"host\", { constant = \"x\" }, { regex = 'id=(\\d+)' } or \
             { field = \"user.id\" } of a JSON line. Without it records have none.",
            "Needed for order per file or per user, and by compacted topics.";
        partition: Partitioner = partition(words::<Partitioner>() + ", or a table with one key" => PartitionTable),
            Computed("\"hash\"", "\"hash\" with a key, else \"sticky\""), AtOnce,
            "By the hash of the key if there is one; else \"sticky\": one partition for what is sent together, the \
             cheapest. Also \"round-robin\", \"random\", { fixed = 0 }. Only lines of one partition keep their order.",
            "\"hash\" chooses the same partition as the Java client of Kafka.";
        compression: Codec = word(words::<Codec>()), Default("\"none\""), Reconnects,
            "\"gzip\" or \"snappy\" with every driver, \"lz4\" or \"zstd\" with modern.",
            "On metered links use zstd.";
        linger: Duration = duration("duration"), Default("\"0ms\""), AtOnce,
            "Wait this long for more lines before a request, where requests are expensive.";
        batch: usize = bytes("size"), Computed("\"512KiB\"", "\"512KiB\"; \"880KiB\" with exactly-once"),
            AtOnceOrRestart,
            "Most bytes of lines for one partition in one request, before compression.",
            "Use less on bad links. With exactly-once at most 4 MiB.";
        request_max: usize = bytes("size"), Default("1000000"), Reconnects,
            "Most bytes of a whole request; only a longer line goes alone. Some services close the connection above a \
             limit.",
            "Event Hubs does above 1046528 bytes. Raise it together with batch. It is a limit of the modern driver.";
        rate: Option<u64> = rate("rate"), Example("\"1MiB/s\""), AtOnce,
            "Limit of the uplink, over all topics. Slows down, never drops; without it there is no limit.";
        create_topics: bool = flag("true or false"), Default("true"), Reconnects,
            "Whether asking for a topic lets the broker create it, where the broker allows that.";
        tls: Option<KafkaTls> = tls("table"), Table("[kafka.tls]"), Reconnects, "";
        sasl: Option<Sasl> = sasl("table"), Table("[kafka.sasl]"), Reconnects, "";
    }
}

table! {
    pub struct KeyTable "`key`" {
        constant: Option<String> = text("text"), Example("\"x\""), AtOnce, "The same key for every record.";
        regex: Option<Regex> = pattern("regular expression"), Example("'id=(\\d+)'"), AtOnce,
            "The first group of the match, or the whole match where there is no group.";
        field: Option<Vec<String>> = json_path("text"), Example("\"user.id\""), AtOnce,
            "A field of a line that is a JSON object; dots separate the names on the way to it.";
    }
}

table! {
    pub struct PartitionTable "`partition`" {
        fixed: i32 = partition_number("number"), Required("0"), AtOnce, "Always this partition.";
    }
}

table! {
    pub struct KafkaTls "[kafka.tls]" optional:
        "This table, even empty, turns TLS on. Files are PEM, and are read again at each connect." {
        ca: Option<PathBuf> = path("path"), Example("\"/etc/ssl/certs/kafka-ca.pem\""), Reconnects,
            "Who signed the brokers' certificates; the system's own roots if missing.";
        cert: Option<PathBuf> = path("path"), Example("\"/etc/ssl/certs/logagent.pem\""), Reconnects,
            "The agent's own certificate, for brokers that ask for one.",
            "Goes with its key.";
        key: Option<PathBuf> = path("path"), Example("\"/run/credentials/logagent.service/kafka-key\""), Reconnects,
            "", "The private key that goes with cert.";
        server_name: Option<String> = text("text"), Example("\"kafka.example\""), Reconnects,
            "The name in the brokers' certificates, where it is not the one in `brokers`.",
            "It is then the same for all brokers.";
    }
}

table! {
    pub struct KafkaSasl "[kafka.sasl]" optional:
        "\"PLAIN\" (over TLS), \"SCRAM-SHA-256\" and \"SCRAM-SHA-512\" by username and password_file; \"OAUTHBEARER\" (over \
         TLS) by token_file or token_url in place of them. A secret is alone in its file: see LoadCredential= in the unit." {
        mechanism: Mechanism = word(words::<Mechanism>()), Required("\"SCRAM-SHA-512\""), Reconnects, "";
        username: Option<String> = text("text"), Example("\"logagent\""), Reconnects, "",
            "Required by PLAIN and SCRAM.";
        password_file: Option<PathBuf> = path("path"),
            Example("\"/run/credentials/logagent.service/kafka-password\""), Reconnects, "",
            "Required by PLAIN and SCRAM. Read at each connect.";
        plain_without_tls: bool = flag("true or false"), Default("false"), Reconnects,
            "PLAIN to other machines without [kafka.tls]: anyone on the network path can read the password.",
            "Without this, PLAIN needs TLS, except to a loopback address or localhost.";
        token_file: Option<PathBuf> = path("path"), Example("\"/run/secrets/kafka-token\""), Reconnects,
            "OAUTHBEARER: a token that another program renews, a JWT or opaque. Read at each connect.",
            "A JWT that ends within 30 s is not used: the file is read again until it holds another.";
        token_url: Option<TokenUrl> = token_url("URL"), Example("\"https://login.example/oauth2/token\""), Reconnects,
            "Or where tokens are to be had for client_id, client_secret_file and scope (client credentials, RFC 6749 4.4).",
            "A token serves all brokers, for 80 % of its lifetime; while none is to be had, lines wait. No proxy is used.";
        client_id: Option<String> = text("text"), Example("\"logagent\""), Reconnects, "",
            "Required by token_url.";
        client_secret_file: Option<PathBuf> = path("path"),
            Example("\"/run/credentials/logagent.service/client-secret\""), Reconnects, "",
            "Required by token_url. Read whenever a token is asked for.";
        scope: Option<String> = text("text"), Example("\"kafka\""), Reconnects, "",
            "Of the token; several are separated by spaces.";
        token_ca: Option<PathBuf> = path("path"), Example("\"/etc/ssl/certs/login-ca.pem\""), Reconnects, "",
            "Who signed the certificate of token_url, PEM; the system's own roots if missing.";
        token_url_without_tls: bool = flag("true or false"), Default("false"), Reconnects, "",
            "http:// to other machines: anyone on the network path can read the client's secret and the token. Without \
             this, http:// is only for a loopback address or localhost.";
        extensions: Vec<(String, String)> = extensions("table of texts"),
            Instance("{}", "{ logicalCluster = \"lkc-1\", identityPoolId = \"pool-1\" }"), Reconnects,
            "SASL extensions, which some services ask for.";
    }
}

table! {
    pub struct Metrics "[metrics]" optional:
        "Metrics for the textfile collector of Prometheus' node_exporter." {
        textfile: Option<PathBuf> = path("path"), Example("\"/var/lib/node_exporter/logagent.prom\""), AtOnce, "";
    }
}

table! {
    pub struct Source "[[files]]":
        "One table for each kind of log. More of them may be in /etc/logagent.d/*.toml." {
        paths: Vec<Pattern> = paths("path or list of paths"), Required("[\"/var/log/nginx/*.log\"]"), AtOnce,
            "Globs: * and ? stop at /, ** does not; [abc] and {a,b} work. New files are found without a reload, \
             rotated ones are read to their end.",
            "A file that two tables match is read once, by the first.";
        exclude: Exclude = exclusions("glob or list of globs"), Instance("[]", "[\"*.gz\"]"), AtOnce,
            "Leave these out: without / for the file's name, with / for the whole path.";
        topic: Option<String> = topic("topic"), Example("\"nginx\""), AtOnce,
            "Overrides the one in [kafka].";
        start: Start = start("\"end\", \"beginning\" or an offset in bytes"), Default("\"end\""), AtOnce,
            "For files that exist when these paths are first known: \"end\", \"beginning\" or an offset in bytes. A \
             file that appears later is read from its beginning.",
            "Never overrides a saved position.";
        must_exist: bool = flag("true or false"), Default("false"), AtOnce,
            "Fail at start if there is no such file.";
        follow: bool = flag("true or false"), Default("true"), AtOnce, "false: read to the end once.";
        reopen: bool = flag("true or false"), Computed("true", "the value of follow"), AtOnce,
            "Follow the name and not the file: continue with the new file after a rotation.",
            "With false a new file after a rotation is not read.";
        poll: Option<Duration> = poll("false, true or duration"), Default("false"), AtOnce,
            "Look this often, where the file system does not report changes (NFS); true is \"1s\".";
        rotate_grace: Duration = duration("duration"), Default("\"60s\""), AtOnce,
            "How long a rotated file must have been quiet before it is closed.",
            "Use more where a writer keeps writing to it for long.";
        deleted_hold: Hold = nested("table" => Hold), Default("{ bytes = \"1GiB\", time = \"7d\" }"), AtOnce,
            "How much of deleted files is kept open while it is not delivered; the loss beyond it is counted and \
             reported.",
            "It takes disk space.";
        max_line: usize = bytes("size"), Default("1000000"), AtOnce,
            "A longer line is cut there. Brokers take 1 MiB by default.",
            "What is cut is counted.";
        partial_after: Option<Duration> = wait("duration"), Example("\"5s\""), AtOnce,
            "Send an unfinished line after this long; without it, a line waits for its end.",
            "For writers that leave prompts or progress without a newline.";
        multiline: Option<(Multiline, Duration)> = multiline("table" => MultilineTable),
            Example("{ start = '^\\d{4}-', timeout = \"2s\", max_lines = 500 }"), AtOnce,
            "Several lines as one record: `start` matches the first line of each, or `continue` each line but the \
             first.";
        include: Vec<Regex> = patterns("regular expression or list"), Instance("[]", "['\"(GET|POST) ']"), AtOnce,
            "Only lines that one of these matches and none of drop.";
        drop: Vec<Regex> = patterns("regular expression or list"), Instance("[]", "['\"GET /health ']"), AtOnce, "",
            "Lines that one of these matches are not sent.";
        skip_empty: bool = flag("true or false"), Default("false"), AtOnce, "", "Leave out empty lines.";
        format: Format = word(words::<Format>()), Instance("\"raw\"", "\"json\""), AtOnce,
            "\"raw\": the line as it is. \"json\": an object with message, host, path, offset, time, and the fields \
             below.",
            "A line that is not UTF-8 gets invalid_utf8 too, and its bad bytes become U+FFFD.";
        fields: Vec<(String, String)> = texts("table of texts"),
            Instance("{}", "{ service = \"nginx\", node = \"${host}\" }"), AtOnce, "",
            "Added by format = \"json\".";
        headers: Vec<(String, String)> = texts("table of texts"),
            Instance("{}", "{ source = \"logagent@${host}\" }"), AtOnce,
            "Kafka record headers; by the modern driver.";
        rate_limit: Option<u64> = rate("rate"), Example("\"100KiB/s\""), AtOnce,
            "For each of these files; slows down, never skips.";
    }
}

table! {
    pub struct JournalSource "[[journal]]" optional:
        "One table for each systemd journal, which is read from its files. journald removes old entries by its own limits \
         (SystemMaxUse=): a longer outage of the brokers loses them, which is counted. Where `key` of [kafka] names a field, it \
         is a field of the entry. The record's time is the entry's." {
        units: Vec<String> = texts_list("list of texts"), Instance("[]", "[\"sshd.service\"]"), Restart,
            "Only entries of these units and about them, as `journalctl -u`; without it all of them.";
        exclude_units: Vec<String> = texts_list("list of texts"), Instance("[]", "[\"noisy.service\"]"), Restart,
            "Leave these units out. The agent's own unit always is.";
        identifiers: Vec<String> = texts_list("list of texts"), Instance("[]", "[\"sudo\"]"), Restart,
            "Only entries with one of these syslog identifiers.";
        priority: Option<Priority> = priority(words::<Priority>() + ", or 0 to 7"), Example("\"warning\""), Restart,
            "Only entries of this priority and more important ones.";
        transport: Vec<String> = texts_list("list of texts"), Instance("[]", "[\"kernel\"]"), Restart,
            "Only entries that came this way: \"kernel\", \"syslog\", \"journal\", \"stdout\", \"audit\", \"driver\".";
        boot: Option<Boot> = word(words::<Boot>()), Example("\"current\""), Restart,
            "\"current\": only entries since the machine started.";
        namespace: Option<String> = text("text"), Example("\"app\""), Restart,
            "The journal of this namespace (LogNamespace=) instead of the machine's.";
        directory: Option<PathBuf> = path("path"), Example("\"/host/var/log/journal/0123456789abcdef\""), Restart,
            "The folder that holds the journal files, as in a container; without it /var/log/journal or /run/log/journal.";
        topic: Option<String> = topic("topic"), Example("\"journal\""), Restart,
            "Overrides the one in [kafka].";
        start: Start = word(words::<Start>()), Default("\"end\""), Restart,
            "For entries that are there when this journal is first known. Never overrides a saved position.";
        format: JournalFormat = word(words::<JournalFormat>()), Instance("\"message\"", "\"json\""), Restart,
            "\"message\": the text of the message. \"json\": an object with all fields, as `journalctl -o json` prints it.";
        all: bool = flag("true or false"), Default("false"), Restart,
            "By format = \"json\": also fields of 4096 bytes and more, which are null otherwise.";
        max_line: usize = bytes("size"), Default("1000000"), Restart,
            "A longer message is cut there; of a longer object the longest fields become null. Both are counted.";
        headers: Vec<(String, String)> = texts("table of texts"),
            Instance("{}", "{ source = \"journal@${host}\" }"), Restart,
            "Kafka record headers; by the modern driver.", "${host} is filled in.";
    }
}

table! {
    for Hold "`deleted_hold`" {
        bytes: u64 = size("size"), Default("\"1GiB\""), AtOnce, "Undelivered bytes of all deleted files of one path.";
        time: Duration = duration("duration"), Default("\"7d\""), AtOnce, "Since the file last changed.";
    }
}

table! {
    pub struct MultilineTable "`multiline`" {
        start: Option<Regex> = pattern("regular expression"), Example("'^\\d{4}-'"), AtOnce,
            "Matches the first line of each record.";
        continues as "continue": Option<Regex> = pattern("regular expression"), Example("'^\\s'"), AtOnce,
            "In place of start: matches each line of a record but the first.";
        timeout: Duration = wait("duration"), Default("\"2s\""), AtOnce,
            "A record that no line follows is sent after this long.";
        max_lines: usize = lines("number"), Default("500"), AtOnce, "A record of this many lines is complete.";
    }
}
