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
use std::path::Path;

/// A metric of the whole agent: name, type, help, value.
type One = (&'static str, &'static str, &'static str, fn(&Snapshot) -> f64);
/// A metric per file, broker or topic.
type Each<T> = (&'static str, &'static str, fn(&T) -> Option<f64>);

const AGENT: [One; 18] = [
    ("logagent_budget_used_up", "gauge", "1 while lines wait for the budget.", |s| {
        f64::from(u8::from(s.budget.as_ref().is_some_and(|budget| budget.used_up)))
    }),
    ("logagent_uptime_seconds", "gauge", "Time since this run began.", |s| s.uptime.unwrap_or(0.0)),
    ("logagent_files", "gauge", "Followed files.", |s| s.files.len() as f64),
    ("logagent_lines_read_total", "counter", "Lines read.", |s| s.totals.read as f64),
    ("logagent_lines_acknowledged_total", "counter", "Lines that Kafka acknowledged.", |s| {
        s.totals.acked as f64
    }),
    (
        "logagent_lines_dead_lettered_total",
        "counter",
        "Lines that Kafka permanently rejects, kept in dead-letter.",
        |s| s.totals.dead_lettered as f64,
    ),
    (
        "logagent_lines_doubled_at_most_total",
        "counter",
        "Upper bound of lines stored more than once, together with the uncertain ones.",
        |s| s.totals.doubled_at_most as f64,
    ),
    (
        "logagent_lines_uncertain_total",
        "counter",
        "Lines sent again without proof that they were not stored.",
        |s| s.totals.uncertain as f64,
    ),
    ("logagent_lines_cut_total", "counter", "Lines cut at max_line.", |s| s.totals.cut as f64),
    ("logagent_lost_bytes_total", "counter", "Bytes that disappeared before they could be read.", |s| {
        s.totals.lost_bytes as f64
    }),
    (
        "logagent_lost_entries_total",
        "counter",
        "Journal entries that were removed before they could be read.",
        |s| s.totals.lost_entries as f64,
    ),
    (
        "logagent_damaged_entries_total",
        "counter",
        "Journal entries that could not be read because they are damaged.",
        |s| s.totals.damaged_entries as f64,
    ),
    ("logagent_retries_total", "counter", "Batches sent again.", |s| s.totals.retries as f64),
    ("logagent_memory_used_bytes", "gauge", "Bytes between disk and acknowledgement.", |s| {
        s.memory.used as f64
    }),
    ("logagent_memory_limit_bytes", "gauge", "The limit set by memory in the config.", |s| {
        s.memory.limit as f64
    }),
    ("logagent_state_written_bytes_total", "counter", "Bytes written to the state folder.", |s| {
        s.state.bytes_written as f64
    }),
    ("logagent_state_degraded", "gauge", "1 while the state folder cannot be written.", |s| {
        f64::from(u8::from(s.state.degraded.is_some()))
    }),
    ("logagent_lag_bytes", "gauge", "Unacknowledged bytes over all files.", |s| s.lag_bytes() as f64),
];

const FILES: [Each<File>; 6] = [
    ("logagent_file_size_bytes", "Size of the file.", |f| Some(f.size as f64)),
    ("logagent_file_acknowledged_bytes", "Acknowledged up to this offset.", |f| Some(f.acknowledged as f64)),
    ("logagent_file_lag_bytes", "Unacknowledged bytes, including those of rotated files.", |f| {
        Some(f.lag_bytes as f64)
    }),
    (
        "logagent_file_unsent_entries",
        "Of a journal: entries not read yet, and records not acknowledged.",
        |f| f.unsent_entries.map(|n| n as f64),
    ),
    (
        "logagent_file_oldest_unsent_seconds",
        "Age of the oldest unacknowledged line; 0 if there is none.",
        |f| Some(f.oldest_unsent.unwrap_or(0.0)),
    ),
    ("logagent_file_stuck", "1 while its lines cannot be delivered.", |f| {
        Some(f64::from(u8::from(f.stuck_because.is_some())))
    }),
];

const BROKERS: [Each<PeerStatus>; 2] = [
    ("logagent_broker_up", "1 while it can be reached, otherwise 0.", |p| {
        Some(f64::from(u8::from(p.attempts == 0)))
    }),
    ("logagent_broker_failed_attempts", "Failed attempts since it last worked.", |p| Some(p.attempts as f64)),
];

const TOPICS: [Each<PeerStatus>; 1] =
    [("logagent_topic_up", "1 while lines of this topic are accepted, otherwise 0.", |p| {
        Some(f64::from(u8::from(p.attempts == 0)))
    })];

const NETWORK: [Each<NetworkStatus>; 2] = [
    ("logagent_network_transmit_bytes_total", "Bytes sent, with TLS and handshakes.", |n| {
        Some(n.bytes_sent as f64)
    }),
    ("logagent_network_receive_bytes_total", "Bytes received.", |n| Some(n.bytes_received as f64)),
];

const PAYLOAD: [Each<PayloadStatus>; 1] =
    [("logagent_topic_payload_bytes_total", "Bytes of acknowledged lines.", |p| Some(p.bytes as f64))];

/// All metrics.
pub fn text(s: &Snapshot) -> String {
    let mut out = String::new();
    head(&mut out, "logagent_build_info", "gauge", "Always 1; the labels name the version and the driver.");
    let driver = s.driver.split(':').next().unwrap_or_default();
    labelled(&mut out, "logagent_build_info", &[("version", &s.version), ("driver", driver)], 1.0);
    for (name, kind, help, value) in AGENT {
        head(&mut out, name, kind, help);
        labelled(&mut out, name, &[], value(s));
    }
    each(&mut out, &FILES, &s.files, |f| vec![("path", f.path.as_str()), ("topic", f.topic.as_str())]);
    each(&mut out, &BROKERS, &s.brokers, |p| vec![("broker", p.name.as_str())]);
    each(&mut out, &TOPICS, &s.topics, |p| vec![("topic", p.name.as_str())]);
    each(&mut out, &NETWORK, &s.network, |n| vec![("broker", n.broker.as_str())]);
    each(&mut out, &PAYLOAD, &s.payload, |p| vec![("topic", p.topic.as_str())]);
    out
}

fn each<T>(out: &mut String, metrics: &[Each<T>], all: &[T], labels: fn(&T) -> Vec<(&'static str, &str)>) {
    for (name, help, value) in metrics.iter().filter(|_| !all.is_empty()) {
        head(out, name, if name.ends_with("_total") { "counter" } else { "gauge" }, help);
        for one in all {
            if let Some(value) = value(one) {
                labelled(out, name, &labels(one), value);
            }
        }
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}"); // a String takes everything
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

/// Replaces the file atomically, as the collector requires. Not synced, because it is worthless after a reboot.
pub fn write(path: &Path, s: &Snapshot) -> io::Result<()> {
    let mut tmp = path.as_os_str().to_owned();
    tmp.push(".tmp"); // the collector reads only *.prom
    // The folder, or a symlink in it, may belong to another user.
    let mut file = private_file::replace(tmp.as_ref(), 0o644)?;
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
