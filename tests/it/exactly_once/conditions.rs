//! What exactly-once needs of a broker: Kafka 2.8 or newer, and the right to read. `check --connect` says what is
//! missing, and a running agent sends nothing until it is available.

use super::{Chaos, SHORT, announced, config, survive, totals, write_config};
use crate::harness::*;

/// Runs `check --connect` with this config: its exit code, and the steps that failed.
#[track_caller]
fn check(folder: &Folder, code: i32) -> Vec<String> {
    let done = folder.agent_line("check --connect -c c.toml").run().expect_code(code);
    let text = String::from_utf8(done.stdout).unwrap();
    text.lines().filter(|l| l.starts_with("failed ")).map(str::to_owned).collect()
}

/// Fails when the right to read is not checked, when lines are sent that could not be proved stored after a crash, or
/// when the right is granted later and that goes unnoticed.
#[test]
fn nothing_is_sent_without_the_right_to_read() {
    let broker = Broker::secure(Version::V41);
    let (folder, topic) = (Folder::new(), broker.topic(1));
    broker.allow("alice", &topic);
    let password = folder.write("password", "alice-secret\n");
    let sasl = format!(
        "[kafka.sasl]\nmechanism = \"SCRAM-SHA-256\"\nusername = \"alice\"\npassword_file = {password:?}\n"
    );
    write_config(&folder, &topic.name, &broker.listener("saslplain"), "", &sasl);
    let failed = check(&folder, 78);
    assert!(failed.len() == 1 && failed[0].contains("allow READ on the topic"), "{failed:?}");
    let lines = Lines::new("a", 0..1000);
    lines.append_to(&folder.path("a.log"));
    let mut agent = folder.agent_line("run -c c.toml").start(); // ready all the same
    let said = agent.wait_log("does not report our producer state", SOON);
    assert!(said.contains("READ on the topic") && said.contains("TOPIC_AUTHORIZATION_FAILED"), "{said}");
    pause(secs(1));
    assert_eq!(topic.end_offsets(), 0);
    broker.allow_reading("alice", &topic);
    topic.wait_count(1000);
    agent.stop().expect_code(0);
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
    assert_eq!(announced(&totals(&folder)), 0);
    assert!(check(&folder, 0).is_empty());
}

/// Fails when a broker older than 2.8 is accepted, or receives lines whose fate it could not report.
#[test]
fn nothing_is_sent_to_a_broker_before_2_8() {
    let kafka = Scripted::start(1);
    kafka.topic("t", &[0]);
    kafka.versions(&[(0, 0, 8), (1, 0, 12), (3, 0, 9), (18, 0, 3), (22, 0, 3)]); // as 2.7
    let folder = Folder::new();
    write_config(&folder, "t", &kafka.address(), "", "");
    let failed = check(&folder, 78);
    assert!(failed.len() == 1 && failed[0].contains("before Kafka 2.8"), "{failed:?}");
    Lines::new("a", 0..10).append_to(&folder.path("a.log"));
    let mut agent = folder.agent_line("run -c c.toml").start();
    let said = agent.wait_log("does not report our producer state", SOON);
    assert!(said.contains("Kafka 2.8 or newer"), "{said}");
    assert!(kafka.produced().is_empty());
    agent.stop().expect_code(0);
}

/// The oldest Kafka with DescribeProducers. Fails like the kills on 4.1.
#[test]
fn kills_on_2_8() {
    survive(&Chaos { version: Some(Version::V28), agent_kills: 8, broker_kills: 1, seed: 5, ..SHORT });
}

/// A Produce request, version 3, with one record of this producer's first batch.
fn produce(topic: &str, producer: i64) -> Vec<u8> {
    let value = b"other";
    let record = [&[22, 0, 0, 0, 1, 10][..], value, &[0]].concat(); // 11 bytes behind the first; no key, no headers
    let mut body = Vec::new(); // from the attributes on, what the checksum covers
    body.extend(0i16.to_be_bytes());
    body.extend(0i32.to_be_bytes());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    [now, now, producer].iter().for_each(|n| body.extend(n.to_be_bytes()));
    body.extend(0i16.to_be_bytes()); // epoch
    body.extend(0i32.to_be_bytes()); // sequence
    body.extend(1i32.to_be_bytes());
    body.extend(record);
    let mut batch = 0i64.to_be_bytes().to_vec();
    batch.extend((body.len() as i32 + 9).to_be_bytes());
    batch.extend((-1i32).to_be_bytes());
    batch.push(2);
    batch.extend(crc32c::crc32c(&body).to_be_bytes());
    batch.extend(body);
    let mut request = Vec::new();
    request.extend([0, 0, 0, 3]); // Produce 3
    request.extend((producer as i32).to_be_bytes());
    request.extend((-1i16).to_be_bytes()); // no client id
    request.extend((-1i16).to_be_bytes()); // no transaction
    request.extend((-1i16).to_be_bytes()); // acks
    request.extend(30_000i32.to_be_bytes());
    request.extend(1i32.to_be_bytes());
    request.extend((topic.len() as i16).to_be_bytes());
    request.extend(topic.as_bytes());
    request.extend(1i32.to_be_bytes());
    request.extend(0i32.to_be_bytes());
    request.extend((batch.len() as i32).to_be_bytes());
    request.extend(batch);
    [&(request.len() as i32).to_be_bytes()[..], &request].concat()
}

/// Fails when the answer to DescribeProducers, 37 bytes per producer, must fit into 1 MiB: then nothing is ever sent.
#[test]
fn sixty_thousand_producers_on_one_partition() {
    use std::io::{Read, Write};
    const PRODUCERS: i64 = 60_000;
    let broker = Broker::own(Version::V41);
    let (folder, topic) = (Folder::new(), broker.topic(1));
    let mut socket = std::net::TcpStream::connect_timeout(&topic.address.parse().unwrap(), SOON).unwrap();
    let mut answers = std::io::BufReader::new(socket.try_clone().unwrap());
    let name = topic.name.clone();
    let writer = std::thread::spawn(move || {
        for first in (0..PRODUCERS).step_by(100) {
            let many: Vec<u8> = (first..first + 100).flat_map(|n| produce(&name, 1_000_000 + n)).collect();
            socket.write_all(&many).unwrap();
        }
        socket
    });
    for n in 0..PRODUCERS {
        let mut length = [0; 4];
        answers.read_exact(&mut length).unwrap();
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        answers.read_exact(&mut answer).unwrap();
        let error = 4 + 4 + 2 + topic.name.len() + 4 + 4;
        assert_eq!(answer[error..error + 2], [0, 0], "producer {n}");
    }
    writer.join().unwrap();
    config(&folder, &topic, &SHORT);
    let lines = Lines::new("a", 0..1000);
    folder.append("a.log", lines.bytes());
    let mut agent = folder.agent_line("run -c c.toml").start();
    topic.wait_count(PRODUCERS as u64 + 1000);
    let log = agent.stop().expect_code(0).stderr;
    Delivered::of(topic.values().into_iter().filter(|v| v != b"other")).assert_exactly_once(&[&lines]);
    assert_eq!(announced(&totals(&folder)), 0, "{log}");
}

/// An agent without exactly-once is killed between two runs with it, before it could save. Fails when the lines that it sent
/// under other numbers are stored again without being counted: of 200, only 100 were.
#[test]
fn a_run_without_exactly_once_between_two_with_it() {
    let broker = Broker::shared(Version::V41);
    let (folder, topic) = (Folder::new(), broker.topic(1));
    config(&folder, &topic, &SHORT);
    let once = std::fs::read_to_string(folder.path("c.toml")).unwrap();
    let lines = Lines::new("a", 0..300);
    let bytes = lines.bytes();
    let parts: Vec<&[u8]> = bytes.chunks(bytes.len() / 3).collect();
    folder.append("a.log", parts[0]);
    let mut agent = folder.agent_line("run -c c.toml").start();
    topic.wait_count(100);
    agent.kill();
    folder.write("c.toml", once.replace("exactly-once", "at-least-once"));
    let mut agent = folder.agent_line("run -c c.toml").start();
    std::fs::create_dir(folder.path("state/offsets.tmp")).unwrap(); // nothing can be saved any more
    folder.append("a.log", parts[1]);
    topic.wait_count(200);
    agent.kill();
    std::fs::remove_dir(folder.path("state/offsets.tmp")).unwrap();
    folder.write("c.toml", once);
    folder.append("a.log", parts[2]);
    let mut agent = folder.agent_line("run -c c.toml").start();
    wait_until(SOON, "everything is saved", || totals(&folder)["files"][0]["saved"] == bytes.len());
    agent.stop().expect_code(0);
    let doubled = topic.end_offsets() - 300;
    let counted = announced(&totals(&folder));
    assert!(doubled > 0 && doubled <= counted, "{doubled} doubled, {counted} counted");
}
