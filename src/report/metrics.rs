//! Formats a snapshot in Prometheus' text format, for the textfile collector of node_exporter. There is no HTTP port:
//! the agent has no listener that could be attacked, and node_exporter usually runs already.
//!
//! Names and units follow <https://prometheus.io/docs/practices/naming/>: base units, `_total` for counters.
//! Those of lines continue over restarts, those of bytes on the network begin at each start.

use super::snapshot::{File, NetworkStatus, PayloadStatus, PeerStatus, Snapshot};
use crate::error::Escaped;
use crate::private_file;
use std::fmt::Write as _;
use std::fs::Permissions;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Name, help and value of a metric of the agent, or of each file, broker or topic. Its type follows from the name.
type Metric<T> = (&'static str, &'static str, fn(&T) -> Option<f64>);

const BUILD: [Metric<Snapshot>; 1] =
    [("logagent_build_info", "Always 1; the labels name the version and the driver.", |_| Some(1.0))];

const AGENT: [Metric<Snapshot>; 18] = [
    ("logagent_budget_used_up", "1 while lines wait for the budget.", |s| {
        flag(s.budget.as_ref().is_some_and(|budget| budget.used_up))
    }),
    ("logagent_uptime_seconds", "Time since this run began.", |s| Some(s.uptime.unwrap_or(0.0))),
    ("logagent_files", "Followed files.", |s| number(s.files.len() as u64)),
    ("logagent_lines_read_total", "Lines read.", |s| number(s.totals.read)),
    ("logagent_lines_acknowledged_total", "Lines that Kafka acknowledged.", |s| number(s.totals.acked)),
    (
        "logagent_lines_dead_lettered_total",
        "Lines that Kafka permanently rejects, kept in dead-letter.",
        |s| number(s.totals.dead_lettered),
    ),
    (
        "logagent_lines_doubled_at_most_total",
        "Upper bound of lines stored more than once, together with the uncertain ones.",
        |s| number(s.totals.doubled_at_most),
    ),
    ("logagent_lines_uncertain_total", "Lines sent again without proof that they were not stored.", |s| {
        number(s.totals.uncertain)
    }),
    ("logagent_lines_cut_total", "Lines cut at max_line.", |s| number(s.totals.cut)),
    ("logagent_lost_bytes_total", "Bytes that disappeared before they could be read.", |s| {
        number(s.totals.lost_bytes)
    }),
    ("logagent_lost_entries_total", "Journal entries that were removed before they could be read.", |s| {
        number(s.totals.lost_entries)
    }),
    (
        "logagent_damaged_entries_total",
        "Journal entries that could not be read because they are damaged.",
        |s| number(s.totals.damaged_entries),
    ),
    ("logagent_retries_total", "Batches sent again.", |s| number(s.totals.retries)),
    ("logagent_memory_used_bytes", "Bytes between disk and acknowledgement.", |s| number(s.memory.used)),
    ("logagent_memory_limit_bytes", "What memory in the config allows, less the encoding buffers.", |s| {
        number(s.memory.limit)
    }),
    ("logagent_state_written_bytes_total", "Bytes written to the state folder.", |s| {
        number(s.state.bytes_written)
    }),
    ("logagent_state_degraded", "1 while the state folder cannot be written.", |s| {
        flag(s.state.degraded.is_some())
    }),
    ("logagent_lag_bytes", "Unacknowledged bytes over all files.", |s| number(s.lag_bytes())),
];

const FILES: [Metric<File>; 6] = [
    ("logagent_file_size_bytes", "Size of the file.", |f| number(f.size)),
    ("logagent_file_acknowledged_bytes", "Acknowledged up to this offset.", |f| number(f.acknowledged)),
    ("logagent_file_lag_bytes", "Unacknowledged bytes, including those of rotated files.", |f| {
        number(f.lag_bytes)
    }),
    (
        "logagent_file_unsent_entries",
        "Of a journal: entries not read yet, and records not acknowledged.",
        |f| f.unsent_entries.and_then(number),
    ),
    (
        "logagent_file_oldest_unsent_seconds",
        "Age of the oldest unacknowledged line; 0 if there is none.",
        |f| Some(f.oldest_unsent.unwrap_or(0.0)),
    ),
    ("logagent_file_stuck", "1 while its lines cannot be delivered.", |f| flag(f.stuck_because.is_some())),
];

const BROKERS: [Metric<PeerStatus>; 2] = [
    ("logagent_broker_up", "1 while it can be reached, otherwise 0.", |p| flag(p.attempts == 0)),
    ("logagent_broker_failed_attempts", "Failed attempts since it last worked.", |p| number(p.attempts)),
];

const TOPICS: [Metric<PeerStatus>; 1] =
    [("logagent_topic_up", "1 while lines of this topic are accepted, otherwise 0.", |p| {
        flag(p.attempts == 0)
    })];

const NETWORK: [Metric<NetworkStatus>; 2] = [
    ("logagent_network_transmit_bytes_total", "Bytes sent, with TLS and handshakes.", |n| {
        number(n.bytes_sent)
    }),
    ("logagent_network_receive_bytes_total", "Bytes received.", |n| number(n.bytes_received)),
];

const PAYLOAD: [Metric<PayloadStatus>; 1] =
    [("logagent_topic_payload_bytes_total", "Bytes of acknowledged lines.", |p| number(p.bytes))];

fn number(n: u64) -> Option<f64> {
    Some(n as f64)
}

fn flag(on: bool) -> Option<f64> {
    number(on.into())
}

/// All metrics.
pub fn text(s: &Snapshot) -> String {
    let mut out = String::new();
    each(&mut out, &BUILD, std::slice::from_ref(s), |s| {
        vec![("version", &s.version), ("driver", s.driver.split(':').next().unwrap_or_default())]
    });
    each(&mut out, &AGENT, std::slice::from_ref(s), |_| vec![]);
    each(&mut out, &FILES, &s.files, |f| vec![("path", f.path.as_str()), ("topic", f.topic.as_str())]);
    each(&mut out, &BROKERS, &s.brokers, |p| vec![("broker", p.name.as_str())]);
    each(&mut out, &TOPICS, &s.topics, |p| vec![("topic", p.name.as_str())]);
    each(&mut out, &NETWORK, &s.network, |n| vec![("broker", n.broker.as_str())]);
    each(&mut out, &PAYLOAD, &s.payload, |p| vec![("topic", p.topic.as_str())]);
    out
}

fn each<T>(out: &mut String, metrics: &[Metric<T>], all: &[T], labels: fn(&T) -> Vec<(&'static str, &str)>) {
    for (name, help, value) in metrics.iter().filter(|_| !all.is_empty()) {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}"); // a String takes everything
        for one in all {
            if let Some(value) = value(one) {
                labelled(out, name, &labels(one), value);
            }
        }
    }
}

fn labelled(out: &mut String, name: &str, labels: &[(&str, &str)], value: f64) {
    out.push_str(name);
    for (i, (label, text)) in labels.iter().enumerate() {
        out.push(if i == 0 { '{' } else { ',' });
        // Prometheus knows only these three escapes; other control characters are shown escaped.
        let lines: Vec<String> = text.split('\n').map(|line| Escaped(line).to_string()).collect();
        let text = lines.join("\n").replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(out, "{label}=\"{text}\"");
    }
    out.push_str(if labels.is_empty() { "" } else { "}" });
    let _ = writeln!(out, " {value}");
}

/// The name under which a new version of the file is written.
pub fn new_file(path: &Path) -> PathBuf {
    let mut tmp = path.as_os_str().to_owned();
    tmp.push(".tmp"); // the collector reads only *.prom
    tmp.into()
}

/// Replaces the file atomically, as the collector requires. Not synced, because it is worthless after a reboot.
pub fn write(path: &Path, s: &Snapshot) -> io::Result<()> {
    let tmp = new_file(path);
    // The folder, or a symlink in it, may belong to another user.
    let mut file = private_file::replace(&tmp, 0o644)?;
    file.set_permissions(Permissions::from_mode(0o644))?; // the collector runs as another user, and our umask is strict
    file.write_all(text(s).as_bytes())?;
    #[allow(clippy::disallowed_methods)] // nothing here has to survive a power loss
    std::fs::rename(&tmp, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        let file = File {
            path: "/var/log/\"a\\\n.log".into(),
            topic: "t".into(),
            size: 5_000_000_000,
            oldest_unsent: Some(1.5),
            ..File::default()
        };
        let peer = PeerStatus { name: "k:9092".into(), attempts: 2, ..PeerStatus::default() };
        let network = NetworkStatus { broker: "k:9092".into(), bytes_sent: 7, bytes_received: 8 };
        Snapshot {
            network: vec![network],
            payload: vec![PayloadStatus { topic: "t".into(), bytes: 6 }],
            files: vec![file],
            brokers: vec![peer],
            driver: "modern: why".into(),
            ..Snapshot::default()
        }
    }

    /// Checks the text format and the naming rules. Fails when a label is not escaped, a type is missing, or a
    /// counter's name does not end in `_total`.
    #[test]
    fn follows_prometheus_rules() {
        let text = text(&snapshot());
        let mut kind = ("", "");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                kind = rest.split_once(' ').unwrap();
                assert_eq!(kind.0.ends_with("_total"), kind.1 == "counter", "{line}");
                assert_eq!(text.matches(&format!("# TYPE {} ", kind.0)).count(), 1, "{line}");
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert_eq!(name.split('{').next(), Some(kind.0));
                value.parse::<f64>().unwrap();
            }
        }
        assert!(
            text.contains(r#"logagent_file_size_bytes{path="/var/log/\"a\\\n.log",topic="t"} 5000000000"#),
            "{text}"
        );
        for line in [
            "logagent_network_transmit_bytes_total{broker=\"k:9092\"} 7\n",
            "logagent_network_receive_bytes_total{broker=\"k:9092\"} 8\n",
            "logagent_topic_payload_bytes_total{topic=\"t\"} 6\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(text.contains("logagent_broker_up{broker=\"k:9092\"} 0\n"));
        assert!(text.contains("driver=\"modern\"} 1\n"));
    }

    /// Fails when a file name can control the terminal of someone viewing the file or a graph.
    #[test]
    fn control_characters_in_labels_are_escaped() {
        let file = File { path: "/a\x1b[2J\r\u{202e}\u{9b}b\n".into(), topic: "t".into(), ..File::default() };
        let peer = PeerStatus { name: "k\u{2066}:1".into(), ..PeerStatus::default() };
        let text = text(&Snapshot { files: vec![file], brokers: vec![peer], ..Snapshot::default() });
        let label = r#"path="/a\\x1b[2J\\r\\u{202e}\\x9bb\n","#;
        assert!(text.contains(label) && text.contains(r#"broker="k\\u{2066}:1""#), "{text}");
        assert!(text.lines().all(|line| line == Escaped(line).to_string()), "{text}");
    }

    #[test]
    fn written_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logagent.prom");
        for _ in 0..2 {
            write(&path, &snapshot()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text(&snapshot()));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
