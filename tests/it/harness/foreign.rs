//! Servers that are not Apache Kafka, through `tests/kafka/foreign/run`.

use super::{Topic, limit_the_suite};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// A running server with twelve partitions per topic. It ends when dropped, or when the test process exits.
pub struct Foreign {
    child: Child,
    address: String,
}

impl Foreign {
    /// `name`: as in the head of the script.
    #[track_caller]
    pub fn start(name: &str, topics: &[&str]) -> Foreign {
        limit_the_suite();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kafka/foreign/run");
        let mut child = Command::new(script)
            .arg(name)
            .args(topics)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/kafka/foreign/run starts");
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let address = address.trim().to_owned();
        assert!(
            !address.is_empty(),
            "{name} does not start; was it installed by tests/kafka/foreign/run install?"
        );
        Foreign { child, address }
    }
    /// `host:port`, several separated by commas.
    pub fn address(&self) -> &str {
        &self.address
    }
    pub fn topic(&self, name: &str) -> Topic {
        Topic::of_foreign(&self.address, name, 12)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
