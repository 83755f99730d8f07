//! Kafka services that differ from Apache Kafka: what they lack, and where they close the connection. Each test notes
//! what the Java producer would do.

use crate::harness::*;

const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

/// Writes `c.toml` for `f.log`, with these lines in `[agent]` and `[kafka]`.
fn config(folder: &Folder, brokers: &str, agent: &str, kafka: &str) {
    let (state, log) = (folder.path("state"), folder.path("f.log"));
    let text = format!(
        "[agent]\nstate_dir = {state:?}\n{agent}\n[kafka]\nbrokers = [{brokers:?}]\ntopic = \"t\"\n{kafka}\n\
         [[files]]\npaths = [{log:?}]\nstart = \"beginning\"\n"
    );
    folder.write("c.toml", text);
}

/// One broker that leads all of topic `t`, with this script.
fn scripted(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Scripted {
    let kafka = Scripted::start(1);
    kafka.topic("t", &[0, 1]);
    kafka.script(script);
    kafka
}

/// Sends 500 lines by `run --once`, each stored once; gives what it said.
#[track_caller]
fn delivers(kafka: &Scripted, how: &str) -> Done {
    let folder = Folder::new();
    let lines = Lines::new("f", 0..500);
    folder.write("f.log", lines.bytes());
    config(&folder, &kafka.address(), "", how);
    let done = folder.agent_line("run -c c.toml --once").run_for(PATIENT).expect_code(0);
    Delivered::of(kafka.stored("t")).assert_exactly_once(&[&lines]);
    kafka.assert_well_formed();
    done
}

/// Event Hubs answers 49 forever once it has confused a producer, others answer transactional codes. The Java producer
/// fails the batch with them. Fails when the agent keeps its producer id, or stalls.
#[test]
fn a_refused_producer_id_is_replaced() {
    for code in [22, 48, 49, 51, 52, 120] {
        let kafka =
            scripted(
                move |r| {
                    if r.api == Api::Produce && r.nth <= 4 { Reply::Code(code) } else { Reply::Default }
                },
            );
        let done = delivers(&kafka, "driver = \"modern\"");
        assert!(kafka.count(Api::InitProducerId) > 1, "{code}: the id stays: {}", done.stderr);
        assert!(done.stderr.contains("can no longer be used"), "{code}: {}", done.stderr);
    }
}

/// OCI Streaming and old gateways have no InitProducerId; the Java producer fails, unless idempotence is turned off.
/// Fails when nothing is sent, several requests are in flight, acks are weakened, it is not logged once, or status does
/// not show it; and when exactly-once sends anything.
#[test]
fn without_producer_ids_batches_go_one_at_a_time() {
    const WITHOUT: [(i16, i16, i16); 4] = [(0, 0, 9), (1, 0, 11), (3, 0, 9), (18, 0, 3)];
    for driver in ["modern", "auto"] {
        let kafka = scripted(|r| match r.api {
            Api::Produce if r.nth == 2 => Reply::Lost,
            Api::Produce => Reply::Late(millis(200)),
            _ => Reply::Default,
        });
        kafka.versions(&WITHOUT);
        let folder = Folder::new();
        let lines = Lines::new("f", 0..300);
        folder.write("f.log", lines.bytes());
        config(&folder, &kafka.address(), "", &format!("driver = {driver:?}\nbatch = \"2KiB\""));
        let mut agent = folder.agent_line("run -c c.toml").start();
        wait_until(PATIENT, "all lines", || {
            Delivered::of(kafka.stored("t")).against(&[&lines]).missing.is_empty()
        });
        let status =
            wait_status(&folder, &folder.path("state"), "all acknowledged", |s| s["totals"]["acked"] == 300);
        assert!(status["driver"].as_str().unwrap().contains("without producer ids"), "{status}");
        let doubled = Delivered::of(kafka.stored("t")).assert_at_least_once(&[&lines]) as u64;
        let counted = status["totals"]["doubled_at_most"].as_u64().unwrap();
        assert!(doubled > 0 && counted >= doubled, "{doubled} doubled, {counted} counted");
        assert!(kafka.produced().iter().all(|p| p.acks == -1 && p.batch.producer_id == -1));
        let produce: Vec<_> = kafka.requests().into_iter().filter(|r| r.api == Api::Produce).collect();
        assert!(produce.len() > 3 && produce[3..].windows(2).all(|w| w[1].at - w[0].at >= millis(190)));
        let said = agent.stop().expect_code(0).stderr;
        assert_eq!(said.matches("no producer id").count(), 1, "{said}");
    }
    let kafka = scripted(|_| Reply::Default);
    kafka.versions(&WITHOUT);
    let folder = Folder::new();
    folder.write("f.log", "line\n");
    config(&folder, &kafka.address(), "delivery = \"exactly-once\"", "");
    let mut agent = folder.agent_line("run -c c.toml").start();
    agent.wait_log("InitProducerId, which exactly-once needs", SOON);
    assert!(kafka.produced().is_empty());
    agent.stop();
}

/// Event Hubs accepts only gzip. The Java producer fails each batch. Fails when the next codec is not tried, lines go
/// uncompressed where gzip would do, or a batch is sent again in a refused codec.
#[test]
fn another_codec_is_used_where_one_is_refused() {
    for (configured, refused, want) in [
        ("zstd", 2, vec!["zstd", "lz4", "gzip"]),
        ("snappy", 1, vec!["snappy", "gzip"]),
        ("gzip", 1, vec!["gzip", "none"]),
    ] {
        let kafka = scripted(move |r| {
            if r.api == Api::Produce && r.nth <= refused { Reply::Code(76) } else { Reply::Default }
        });
        let how = format!("driver = \"modern\"\npartition = {{ fixed = 0 }}\ncompression = {configured:?}");
        let done = delivers(&kafka, &how);
        let mut used: Vec<&str> = kafka.produced().iter().map(|p| CODECS[p.batch.codec as usize]).collect();
        used.dedup();
        assert_eq!(used, want, "{}", done.stderr);
        assert!(done.stderr.contains(&format!("; using {}", want[1])), "{}", done.stderr);
    }
}

/// Some gateways hang up on an ApiVersions version that they do not know. The Java producer reconnects forever. Fails when
/// version 0 is not tried on the next connection.
#[test]
fn a_broker_that_hangs_up_on_new_api_versions_gets_version_0() {
    let hangs_up = |r: &Request| match r.api {
        Api::ApiVersions if r.version > 0 => Reply::Close,
        _ => Reply::Default,
    };
    for driver in ["modern", "auto"] {
        let done = delivers(&scripted(hangs_up), &format!("driver = {driver:?}"));
        assert!(!done.stderr.contains("down"), "{}", done.stderr);
    }
}

/// Older Redpanda and kfake list transactional producers only; the Java producer does not ask. Fails when the agent, right
/// after a stored batch, does not notice that its own id is missing, or claims it where it is not.
#[test]
fn exactly_once_reports_a_broker_that_does_not_list_its_producer() {
    let none = |r: &Request| match r.api {
        // Header tags, throttle, topic "t", partition 0, no error, no message, no producers.
        Api::DescribeProducers => {
            Reply::Body(vec![0, 0, 0, 0, 0, 2, 2, b't', 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0])
        }
        _ => Reply::Default,
    };
    let once = "delivery = \"exactly-once\"";
    for lists in [false, true] {
        let kafka = if lists { scripted(|_| Reply::Default) } else { scripted(none) };
        kafka.topic("t", &[0]);
        let folder = Folder::new();
        folder.write("f.log", "line\n");
        config(&folder, &kafka.address(), once, "");
        let mut agent = folder.agent_line("run -c c.toml").start();
        if lists {
            wait_until(SOON, "it is asked again", || kafka.count(Api::DescribeProducers) > 1);
        } else {
            agent.wait_log("cannot be proved on this cluster", SOON);
        }
        let status =
            wait_status(&folder, &folder.path("state"), "all acknowledged", |s| s["totals"]["acked"] == 1);
        assert_eq!(status["exactly_once"]["unlisted"], !lists);
        let said = agent.stop().expect_code(0).stderr;
        assert_eq!(said.contains("cannot be proved"), !lists, "{said}");
    }
}

/// Event Hubs, and Kafka with this limit, close the connection on a request above it; the Java producer has the same limit
/// only by its defaults. Fails when any mix of batches, partitions, keys and formats makes a larger one.
#[test]
fn no_request_exceeds_the_brokers_limit() {
    let broker = Broker::own_with(Version::V39, &["socket.request.max.bytes=1046528"]);
    for (kafka, files, width) in [
        ("batch = \"4MiB\"", "", 300),
        ("batch = \"900KiB\"\nkey = \"path\"\npartition = \"hash\"", "format = \"json\"", 200),
        (
            "partition = \"round-robin\"\nkey = { constant = \"0123456789012345678901234567890123456789\" }",
            "",
            40,
        ),
        ("batch = \"4MiB\"\ncompression = \"gzip\"", "format = \"json\"\nheaders = { a = \"b\" }", 100),
    ] {
        let (folder, topic) = (Folder::new(), broker.topic(4));
        let count = 6_000_000 / width as u64;
        let lines = Lines::new("f", 0..count).width(width);
        folder.write("f.log", lines.bytes());
        config(&folder, &broker.address, "memory = \"24MiB\"", kafka);
        let text = std::fs::read_to_string(folder.path("c.toml")).unwrap();
        folder.write("c.toml", text.replace("topic = \"t\"", &format!("topic = {:?}", topic.name)) + files);
        let done = folder.agent_line("run -c c.toml --once").run_for(PATIENT).expect_code(0);
        assert!(!done.stderr.contains("lost"), "{kafka}: {}", done.stderr);
        assert_eq!(topic.end_offsets(), count, "{kafka}: {}", done.stderr);
        assert!(done.stderr.matches("WARN").count() == 0, "{kafka}: {}", done.stderr);
    }
}
