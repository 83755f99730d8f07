//! Tests of the harness itself, against kcat, an independent client.

use super::*;
use std::io::Write;

/// Produces with kcat; returns whether everything was sent.
fn kcat_produce(address: &str, topic: &str, lines: &[u8], options: &[&str]) -> bool {
    need("kcat");
    let mut args = vec!["-P", "-E", "-b", address, "-t", topic, "-X", "message.timeout.ms=8000"];
    args.extend(options.iter().flat_map(|o| ["-X", o]));
    let mut kcat =
        Command::new("kcat").args(args).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    kcat.stdin.take().unwrap().write_all(lines).unwrap();
    kcat.wait().unwrap().success()
}

#[test]
fn the_oracle_finds_missing_doubled_strange_and_reordered_lines() {
    let lines = Lines::new("a", 0..1000);
    let all: Vec<Vec<u8>> = lines.iter().collect();
    Delivered::of(&all).assert_exactly_once(&[&lines]);
    Delivered::of(&all).assert_ordered();
    let count = |payloads: &[Vec<u8>]| {
        let v = Delivered::of(payloads).against(&[&lines]);
        (v.missing.len(), v.doubled, v.strange.len())
    };
    assert_eq!(count(&all), (0, 0, 0));
    assert_eq!(count(&all[1..]), (1, 0, 0));
    assert_eq!(count(&[&all[..], &all[5..8]].concat()), (0, 3, 0));
    assert_eq!(count(&[&all[..], &[b"a 000000003 cut".to_vec()]].concat()), (0, 0, 1));
    let mut swapped = all.clone();
    swapped.swap(3, 4);
    assert!(std::panic::catch_unwind(|| Delivered::of(&swapped).assert_ordered()).is_err());
}

/// Metadata and Produce in several versions with each codec: the scripted broker decodes what kcat sent.
#[test]
fn the_scripted_broker_understands_kcat() {
    let lines = Lines::new("k", 0..500);
    let old = ["api.version.request=false", "broker.version.fallback=0.8.2"];
    for options in [
        &[][..],
        &["enable.idempotence=true"],
        &["compression.codec=gzip"],
        &["compression.codec=snappy"],
        &["compression.codec=lz4"],
        &["compression.codec=zstd"],
        &old,
        &["api.version.request=false", "broker.version.fallback=0.8.2", "compression.codec=snappy"],
        &["api.version.request=false", "broker.version.fallback=0.10.0", "compression.codec=gzip"],
    ] {
        let kafka = Scripted::start(2);
        kafka.topic("t", &[0, 1, 2]);
        assert!(kcat_produce(&kafka.address(), "t", &lines.bytes(), options), "kcat with {options:?}");
        kafka.assert_well_formed();
        Delivered::of(kafka.stored("t")).assert_exactly_once(&[&lines]);
        assert!(options != old || kafka.produced()[0].batch.magic == 0);
        assert!(options != ["enable.idempotence=true"] || kafka.produced()[0].batch.producer_id > 0);
    }
}

#[test]
fn the_scripted_broker_follows_its_script() {
    let lines = Lines::new("k", 0..50);
    for reply in [
        Reply::Close,
        Reply::Lost,
        Reply::Half,
        Reply::Code(6),
        Reply::Codes(vec![(0, 7)]),
        Reply::Late(millis(50)),
        Reply::Throttle(20),
    ] {
        let kafka = Scripted::start(1);
        kafka.topic("t", &[0]);
        let scripted_reply = reply.clone();
        kafka.script(move |r| {
            if r.api == Api::Produce && r.nth == 1 { scripted_reply.clone() } else { Reply::Default }
        });
        assert!(
            kcat_produce(
                &kafka.address(),
                "t",
                &lines.bytes(),
                &["retry.backoff.ms=20", "enable.idempotence=true"]
            ),
            "{reply:?}"
        );
        // Idempotence: what was stored but not answered is recognized when it is resent.
        Delivered::of(kafka.stored("t")).assert_exactly_once(&[&lines]);
    }
    let kafka = Scripted::start(1);
    kafka.topic("t", &[0]);
    let address = kafka.node_address(1);
    kafka.down(1);
    assert!(std::net::TcpStream::connect_timeout(&address, millis(500)).is_err());
    kafka.up(1);
    assert!(kcat_produce(&kafka.address(), "t", &lines.bytes(), &[]));
}

#[test]
fn a_full_backlog_does_not_answer() {
    let (address, _held, _listener) = full_backlog();
    let error = std::net::TcpStream::connect_timeout(&address, millis(500)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn a_topic_reads_back_as_written() {
    let broker = Broker::shared(Version::V39);
    let topic = broker.topic(3);
    let lines = Lines::new("k", 0..5000);
    assert!(kcat_produce(&broker.address, &topic.name, &lines.bytes(), &[]));
    assert_eq!(topic.end_offsets(), 5000);
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
    let missing = broker.missing_topic(1);
    assert_eq!(missing.end_offsets(), 0);
}

/// Every byte goes through the proxy, or it could not count them; also after Metadata announced the broker.
#[test]
fn all_traffic_goes_through_the_proxy() {
    let broker = Broker::shared(Version::V39);
    let topic = broker.topic(1);
    let proxy = Proxy::to(&broker.address);
    let lines = Lines::new("p", 0..1000);
    assert!(kcat_produce(&proxy.address, &topic.name, &lines.bytes(), &[]));
    assert!(proxy.sent() > lines.bytes().len() as u64, "{} bytes went through", proxy.sent());

    let more = Lines::new("q", 0..1000);
    proxy.drop_next_response(Api::Produce);
    assert!(kcat_produce(&proxy.address, &topic.name, &more.bytes(), &["retry.backoff.ms=20"]));
    assert_eq!(proxy.pending(), 0);
    let doubled = Delivered::in_topic(&topic).assert_at_least_once(&[&lines, &more]);
    assert!(doubled > 0, "a lost response without idempotence doubles");

    let rest = Lines::new("r", 0..1000);
    proxy.cut_next_request(Api::Produce, 100);
    assert!(kcat_produce(&proxy.address, &topic.name, &rest.bytes(), &["retry.backoff.ms=20"]));
    Delivered::in_topic(&topic).assert_at_least_once(&[&lines, &more, &rest]);

    proxy.mode(Mode::BlackHole);
    assert!(!kcat_produce(&proxy.address, &topic.name, b"x\n", &["message.timeout.ms=1500"]));
    proxy.mode(Mode::Delay(millis(300)));
    let start = Instant::now();
    assert!(kcat_produce(&proxy.address, &topic.name, &Lines::new("s", 0..1).bytes(), &[]));
    assert!(start.elapsed() > millis(900), "at least three answers were late: {:?}", start.elapsed());
}

/// A broker's folder is left after a power cut, and its process number is another process's by now. Fails when the sweep
/// kills that process, or keeps the folder.
#[test]
fn a_sweep_kills_only_brokers() {
    let folder = Folder::new();
    let mut other = Command::new("sleep").arg("60").spawn().unwrap();
    let mut ended = Command::new("true").spawn().unwrap();
    ended.wait().unwrap();
    let dir = folder.path("logagent-kafka/4.1.left");
    std::fs::create_dir_all(&dir).unwrap();
    let files =
        [("owner", ended.id().to_string()), ("pid", other.id().to_string()), ("node.env", NODE.into())];
    for (name, text) in files {
        std::fs::write(dir.join(name), text).unwrap();
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kafka/broker");
    let swept = Command::new(script).arg("sweep").env("TMPDIR", folder.root()).status().unwrap();
    let lives = other.try_wait().unwrap().is_none();
    let _ = (other.kill(), other.wait());
    assert!(swept.success() && lives && !dir.exists(), "{swept}, lives: {lives}");
}
const NODE: &str = "VERSION=4.1\nPORT=1\nBACK=2\n";
