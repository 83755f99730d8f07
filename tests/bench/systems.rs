//! The participants: the agent with each driver, other shippers, and two upper bounds that follow no file.
//! `peers/NAME/run` knows how to start a peer and which version is installed.

use crate::harness::binary;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Agent {
        driver: &'static str,
    },
    /// Follows files, as the agent does.
    Shipper {
        run: &'static str,
    },
    /// Sends one file and exits.
    Limit {
        run: &'static str,
    },
}

#[derive(Clone, Copy)]
pub struct System {
    pub name: &'static str,
    pub kind: Kind,
}

pub const AGENT: System = System { name: "logagent", kind: Kind::Agent { driver: "auto" } };
/// Into a 3.9 broker: brokers 4.x no longer accept what the `kafka` crate sends.
pub const CLASSIC: System =
    System { name: "logagent, classic driver, into 3.9", kind: Kind::Agent { driver: "classic" } };
/// Sends line by line, waiting for each: it gets a tenth of the lines, or fewer.
pub const LINE_BY_LINE: System =
    System { name: "hpcloud/tail + sarama", kind: Kind::Shipper { run: "sarama" } };
/// Sends random lines, so only their count can be checked.
pub const PERF_TEST: System =
    System { name: "Kafka's ProducerPerformance", kind: Kind::Limit { run: "perf-test" } };

pub const ALL: [System; 10] = [
    AGENT,
    CLASSIC,
    System { name: "tail | kcat", kind: Kind::Shipper { run: "tail-kcat" } },
    System { name: "OpenTelemetry collector", kind: Kind::Shipper { run: "otelcol" } },
    System { name: "rsyslog", kind: Kind::Shipper { run: "rsyslog" } },
    System { name: "syslog-ng", kind: Kind::Shipper { run: "syslog-ng" } },
    System { name: "Filebeat", kind: Kind::Shipper { run: "filebeat" } },
    LINE_BY_LINE,
    System { name: "kcat -P -l", kind: Kind::Limit { run: "kcat-l" } },
    PERF_TEST,
];

/// The task of a program.
pub struct Job<'a> {
    pub pattern: &'a str,
    pub topic: &'a str,
    pub brokers: &'a str,
    pub compression: &'a str,
    /// The number of lines, for programs that cannot tell.
    pub lines: u64,
    /// A folder of its own, kept across restarts.
    pub state: &'a Path,
}

impl PartialEq for System {
    fn eq(&self, other: &System) -> bool {
        self.name == other.name
    }
}

impl System {
    /// How many lines at the end it holds back until more arrive: kcat reads its input 1,024 bytes at a time.
    pub fn holds_back(&self) -> u64 {
        if self.kind == (Kind::Shipper { run: "tail-kcat" }) { 6 } else { 0 }
    }
    pub fn follows(&self) -> bool {
        !matches!(self.kind, Kind::Limit { .. })
    }
    /// The installed version; `None` if not installed.
    pub fn version(&self) -> Option<String> {
        let mut command = match self.kind {
            Kind::Agent { .. } => Command::new(binary()),
            Kind::Shipper { run } | Kind::Limit { run } => peer(run),
        };
        let output = command.arg("--version").stdin(Stdio::null()).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
        (!text.is_empty()).then_some(text)
    }
    pub fn command(&self, job: &Job<'_>) -> Command {
        fs::create_dir_all(job.state).unwrap();
        let (Kind::Shipper { run } | Kind::Limit { run }) = self.kind else { return self.agent(job) };
        let mut command = peer(run);
        command
            .args([job.pattern, job.topic, job.brokers])
            .env("COMP", job.compression)
            .env("STATE", job.state)
            .env("LINES", job.lines.to_string());
        command
    }
    /// Defaults for everything that has one.
    fn agent(&self, job: &Job<'_>) -> Command {
        let Kind::Agent { driver } = self.kind else { unreachable!("only for the agent") };
        let config = job.state.join("logagent.toml");
        let text = format!(
            "[agent]\nstate_dir = {:?}\n[kafka]\nbrokers = [{:?}]\ntopic = {:?}\ndriver = {driver:?}\ncompression = {:?}\n\
             [[files]]\npaths = [{:?}]\nstart = \"beginning\"\n",
            job.state.join("positions"),
            job.brokers,
            job.topic,
            job.compression,
            job.pattern
        );
        fs::write(&config, text).unwrap();
        // As the unit runs it (CPUSchedulingPolicy=batch).
        let mut command = Command::new("chrt");
        command.args(["--batch", "0"]).arg(binary());
        command.arg("run").arg("-c").arg(config).env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
        command
    }
}

fn peer(run: &str) -> Command {
    let mut command =
        Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/peers").join(run).join("run"));
    command.env("PEERS", peers());
    command
}

/// Where `peers/setup` installed them.
fn peers() -> PathBuf {
    std::env::var_os("PEERS").map(PathBuf::from).unwrap_or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
        cache.unwrap_or_else(|| home().join(".cache")).join("logagent-peers")
    })
}
