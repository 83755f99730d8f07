//! Every key of the config, described once. The parser, its suggestions, the example `systemd/logagent.toml`, the
//! page `systemd/logagent.toml.5` and the reload rules are derived from these tables. Those within them are in
//! [`super::subtables`] and [`super::sasl`].

use super::sasl::{KafkaSasl, sasl};
use super::spec::*;
use super::subtables::*;
use super::table::*;
use super::units::BrokerAddress;
use super::values::*;
use super::{
    Acks, Boot, Codec, Damaged, Delivery, DriverChoice, Format, Hold, JournalFormat, Key as RecordKey,
    Multiline, Partitioner, Priority, ProxyUrl, Sasl, Start, Sync,
};
use crate::producer::spending::DataBudget;
use crate::record::LineRegex;
use crate::watch::pattern::{Exclude, Pattern};
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
            "One agent per folder: a second one does not start.";
        memory: usize = bytes("size"), Default("\"8MiB\""), AtOnce,
            "Maximum bytes between disk and acknowledgement, over all files. When it is full, reading waits.",
            "It is split among the topics. More helps on links with high latency. `logagent check` shows how much is needed, and the worst case for the whole process.";
        delivery: Delivery = word(words::<Delivery>()), Default("\"at-least-once\""), Restart,
            "With \"exactly-once\" no line is stored twice, even when the agent or a broker crashes (Kafka 2.8 or newer, acks = \"all\").",
            "It needs the modern driver and READ permission on the topics.";
        sync: Sync = sync("duration, or \"always\""), Default("\"30s\""), Restart,
            "How often positions are synced to disk; after a power loss, lines since the last sync are sent again. \"always\": also before each request, so that exactly-once survives a power loss.",
            "\"always\" wears out flash.";
        drain_timeout: Duration = duration("duration"), Default("\"10s\""), AtOnce,
            "How long a stop waits for lines in flight.",
            "It does not wait if no broker could be reached for 1 s and positions are saved. Keep TimeoutStopSec= of the unit above it.";
        damaged_state: Damaged = word(words::<Damaged>()), Default("\"refuse\""), AtOnce,
            "What to do if both copies of the positions are damaged: \"refuse\" to start, or send everything again from the \"beginning\".",
            "\"refuse\" exits with code 78. A changed value takes effect at the next start.";
        hostname: String = text("text"), Computed("\"box7\"", "the name of the machine"), AtOnce,
            "Used in keys, fields and headers; by default the machine's name.";
    }
}

table! {
    pub struct Kafka "[kafka]" {
        brokers: Vec<BrokerAddress> = brokers("list of host:port"), Required("[\"127.0.0.1:9092\"]"), ReconnectsOrRestart,
            "One or more brokers to start with: names, IPv4, [IPv6]. The rest of the cluster is learned from them.",
            "Name two or three.";
        topic: Option<String> = topic("topic"), Sample("\"web_log\""), OfFiles, "",
            "The topic for all [[files]] without a topic of their own; required if there are any.";
        acks: Acks = acks("\"all\", 1 or 0"), Default("\"all\""), ReconnectsOrRestart,
            "When a line counts as delivered. \"all\": all in-sync replicas have it; 1: the leader has it; 0: it was written to the socket.",
            "Only \"all\" loses nothing.";
        driver: DriverChoice = word(words::<DriverChoice>()), Default("\"auto\""), ReconnectsOrRestart,
            "auto uses modern if the broker supports it (Kafka 0.11 or newer), otherwise classic: the `kafka` crate, for brokers up to 3.9, without TLS, SASL, lz4, zstd, headers and exactly-once.",
            "Change it only to force one of the two.";
        client_id: String = client_id("text, 1 to 255 bytes"), Default("\"logagent\""), Reconnects, "",
            "With \"logagent-${host}\", the broker's logs, metrics and quotas distinguish agents.";
        key: Option<RecordKey> = record_key("\"path\", \"host\", or a table with one key" => KeyTable),
            Example("\"path\""), AtOnce,
            "The record's key: \"path\", \"host\", { constant = \"x\" }, { regex = 'id=(\\d+)' } or \
             { field = \"user.id\" } of a JSON line. Without it records have none.",
            "Needed for order per file or per user, and by compacted topics.";
        partition: Partitioner = partition(words::<Partitioner>() + ", or a table with one key" => PartitionTable),
            Computed("\"hash\"", "\"hash\" with a key, else \"sticky\""), AtOnce,
            "By the hash of the key if there is one; otherwise \"sticky\": one partition for all lines sent together, the cheapest. Also \"round-robin\", \"random\", { fixed = 0 }. Order is kept only within a partition.",
            "\"hash\" chooses the same partition as Kafka's Java client.";
        compression: Codec = word(words::<Codec>()), Default("\"none\""), Reconnects,
            "\"gzip\" or \"snappy\" with every driver, \"lz4\" or \"zstd\" with modern.",
            "On metered links use zstd.";
        linger: Duration = duration("duration"), Default("\"0ms\""), AtOnce,
            "Wait this long for more lines before sending. Saves CPU and bytes where requests are expensive.",
            "Reading waits too, for up to a second, so that a single line wakes no thread; rotations are still noticed at once. \
             Lines that a writer truncates in that time without a copy are lost.";
        batch: usize = bytes("size"), Computed("\"512KiB\"", "\"512KiB\"; \"880KiB\" with exactly-once"),
            AtOnceOrRestart,
            "Maximum bytes of lines for one partition in one request, before compression.",
            "Use less on unreliable links. With exactly-once at most 4 MiB.";
        request_max: usize = bytes("size"), Default("1000000"), Reconnects,
            "Maximum bytes of a whole request; only a single longer line exceeds it. Some services close the connection above a limit.",
            "Event Hubs does so above 1046528 bytes. Raise it together with batch. Only the modern driver has this limit.";
        rate: Option<u64> = rate("rate"), Example("\"1MiB/s\""), AtOnce,
            "Bandwidth limit over all topics. It delays lines and never drops any; unlimited by default.";
        budget: Option<DataBudget> = data_budget("budget"), Example("\"200MiB/day\""), Restart,
            "Maximum bytes on the network, in both directions and over all brokers, per min, hour, day, week or month (30 \
             days). Spent evenly; it delays lines and never drops any.",
            "TLS, handshakes and metadata count; TCP and IP headers (52 bytes per packet) do not. Kept across restarts. \
             `logagent send` ignores it.";
        create_topics: bool = flag("true or false"), Default("true"), Reconnects,
            "Whether a missing topic is created, if the broker allows it.";
        proxy: Option<ProxyUrl> = proxy("URL"), Example("\"http://logagent@proxy:3128\""), Reconnects,
            "Reach the brokers and token_url through this proxy: http:// (by CONNECT) or socks5h://, with user@ if it requires a \
             login.",
            "No connection is made without it; localhost then means the proxy's own machine. The proxy resolves all names. \
             TLS and SASL run between agent and broker; without TLS, the proxy can read the lines. A token endpoint that the \
             proxy cannot reach needs another program that asks it: see token_file. In the user name, write @ as %40. It \
             needs the modern driver.";
        proxy_password_file: Option<PathBuf> = path("path"),
            Example("\"/run/credentials/logagent.service/proxy-password\""), Reconnects, "",
            "The password of the user in proxy. Read at each connect. With both kinds of proxy it is sent to the proxy \
             unencrypted.";
        tls: Option<KafkaTls> = tls("table"), Table("[kafka.tls]"), Reconnects, "";
        sasl: Option<Sasl> = sasl("table"), Table("[kafka.sasl]"), Reconnects, "";
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
            "Files to skip: a glob without / is matched against the file's name, one with / against the whole path.",
            "The agent's own files in state_dir and its metrics textfile are always skipped, unless paths names one of them.";
        topic: Option<String> = topic("topic"), Example("\"nginx\""), AtOnce,
            "Overrides the one in [kafka].";
        start: Start = start("\"end\", \"beginning\" or an offset in bytes"), Default("\"end\""), AtOnce,
            "For files that exist when these paths are first configured: \"end\", \"beginning\" or an offset in bytes. Files that appear later are read from their beginning.",
            "Never overrides a saved position.";
        must_exist: bool = flag("true or false"), Default("false"), AtOnce,
            "Fail at start if a file does not exist.";
        follow: bool = flag("true or false"), Default("true"), AtOnce, "false: read to the end once.";
        reopen: bool = flag("true or false"), Computed("true", "the value of follow"), AtOnce,
            "Follow the name, not the file: continue with the new file after a rotation.",
            "With false, a new file after a rotation is read only after a restart.";
        poll: Option<Duration> = poll("false, true or duration"), Default("false"), AtOnce,
            "Check this often, for file systems that do not report changes (NFS is recognized); true is \"1s\".";
        rotate_grace: Duration = duration("duration"), Default("\"60s\""), AtOnce,
            "How long a rotated file must be unchanged before it is closed.",
            "Use more if writers keep writing to it for long.";
        deleted_hold: Hold = nested("table" => Hold), Default("{ bytes = \"1GiB\", time = \"7d\" }"), AtOnce,
            "How much unread data of deleted files is kept open; any loss beyond this is counted and reported.",
            "It takes disk space.";
        max_line: usize = bytes("size"), Default("1000000"), AtOnce,
            "A longer line is cut here. Brokers accept 1 MiB by default.",
            "Cut lines are counted.";
        partial_after: Option<Duration> = wait("duration"), Example("\"5s\""), AtOnce,
            "Send an unfinished line after this long; without it, a line waits for its end.",
            "For writers that leave prompts or progress without a newline. The rest of the line is sent as a line of its own.";
        multiline: Option<(Multiline, Duration)> = multiline("table" => MultilineTable),
            Example("{ start = '^\\d{4}-', timeout = \"2s\", max_lines = 500 }"), AtOnce,
            "Joins several lines into one record: `start` matches the first line of each, or `continue` every line but the first.",
            "Line ends inside a record stay as they are, also \\r\\n. A record also ends before it would exceed max_line.";
        include: Vec<LineRegex> = patterns("regular expression or list"), Instance("[]", "['\"(GET|POST) ']"), AtOnce,
            "Send only lines that match one of these and none of drop.";
        drop: Vec<LineRegex> = patterns("regular expression or list"), Instance("[]", "['\"GET /health ']"), AtOnce, "",
            "Lines that match one of these are not sent.";
        skip_empty: bool = flag("true or false"), Default("false"), AtOnce, "", "Do not send empty lines.";
        format: Format = word(words::<Format>()), Instance("\"raw\"", "\"json\""), AtOnce,
            "\"raw\": the line unchanged. \"json\": an object with message, host, path, offset, time, and the fields below.",
            "A line that is not UTF-8 also gets invalid_utf8, and its invalid bytes become U+FFFD.";
        fields: Vec<(String, String)> = texts("table of texts"),
            Instance("{}", "{ service = \"nginx\", node = \"${host}\" }"), AtOnce, "",
            "Added by format = \"json\".";
        headers: Vec<(String, String)> = texts("table of texts"),
            Instance("{}", "{ source = \"logagent@${host}\" }"), AtOnce,
            "Kafka record headers; modern driver only.";
        rate_limit: Option<u64> = rate("rate"), Example("\"100KiB/s\""), AtOnce,
            "Limit for each of these files. It delays lines and never skips any.";
    }
}

table! {
    pub struct JournalSource "[[journal]]" optional:
        "One table for each systemd journal, which is read from its files. journald removes old entries by its own limits (SystemMaxUse=); entries lost in a longer outage are counted. If `key` of [kafka] names a field, it is a field of the entry. The record's time is the entry's." {
        units: Vec<String> = texts_list("list of texts"), Instance("[]", "[\"sshd.service\"]"), Restart,
            "Only entries of or about these units, as with `journalctl -u`; by default all.",
            "Without wildcards; a name without a unit type is a service. Entries about a unit are those of systemd (UNIT=) and of root \
             (OBJECT_SYSTEMD_UNIT=, COREDUMP_UNIT=).";
        exclude_units: Vec<String> = texts_list("list of texts"), Instance("[]", "[\"noisy.service\"]"), Restart,
            "Units to skip. The agent's own unit is always skipped.";
        identifiers: Vec<String> = texts_list("list of texts"), Instance("[]", "[\"sudo\"]"), Restart,
            "Only entries with one of these syslog identifiers.", "That is the field SYSLOG_IDENTIFIER.";
        priority: Option<Priority> = priority(words::<Priority>() + ", or 0 to 7"), Example("\"warning\""), Restart,
            "Only entries of this priority or higher.", "Entries without a priority are sent as well.";
        transport: Vec<String> = texts_list("list of texts"), Instance("[]", "[\"kernel\"]"), Restart,
            "Only entries received by these transports:  \"kernel\", \"syslog\", \"journal\", \"stdout\", \"audit\", \"driver\".";
        boot: Option<Boot> = word(words::<Boot>()), Example("\"current\""), Restart,
            "\"current\": only entries since the machine started.", "That is, of the boot in which the agent was started.";
        namespace: Option<String> = text("text"), Example("\"app\""), Restart,
            "The journal of this namespace (LogNamespace=) instead of the machine's.",
            "It may appear later. Each namespace needs its own table.";
        directory: Option<PathBuf> = path("path"), Example("\"/host/var/log/journal/0123456789abcdef\""), Restart,
            "The folder with the journal files, for example in a container; by default in /var/log/journal or /run/log/journal.",
            "/run is read as long as this machine has no folder in /var; entries that are in both are sent once. Like journald, \
             the agent reads /etc/machine-id only when it starts: restart both after a change. Files named remote-* are not read.";
        topic: Option<String> = topic("topic"), Example("\"journal\""), Restart,
            "Overrides the one in [kafka].";
        start: Start = word(words::<Start>()), Default("\"end\""), Restart,
            "For entries that exist when this journal is first configured. Never overrides a saved position.",
            "\"beginning\" or \"end\".";
        format: JournalFormat = word(words::<JournalFormat>()), Instance("\"message\"", "\"json\""), Restart,
            "\"message\": the text of the message. \"json\": an object with all fields, as `journalctl -o json` prints it.",
            "A message is one record, line breaks included. An object has __SEQNUM, by which consumers can sort entries of \
             system and users: between their files there is no order. With exactly-once, a format or filter that is changed \
             after a crash makes what was in flight uncertain.";
        all: bool = flag("true or false"), Default("false"), Restart,
            "With format = \"json\": include fields of 4096 bytes or more, which are otherwise null.";
        max_line: usize = bytes("size"), Default("1000000"), Restart,
            "A longer message is cut here; in a longer object the longest fields become null. Both are counted.";
        headers: Vec<(String, String)> = texts("table of texts"),
            Instance("{}", "{ source = \"journal@${host}\" }"), Restart,
            "Kafka record headers; modern driver only.", "${host} is filled in.";
    }
}
