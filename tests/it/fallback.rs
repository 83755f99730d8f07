//! Which driver `auto` chooses, and how it handles servers that misreport what they support (scripted ones). Also
//! what the operator reads when a broker refuses the agent, temporarily or for good.

use crate::harness::*;
use std::net::TcpStream;

/// A server that looks like Kafka 3.9 and answers Produce requests of these versions with this reply.
fn refuses(versions: std::ops::RangeInclusive<i16>, how: Reply) -> Scripted {
    let kafka = Scripted::start(1);
    kafka.topic("t", &[0, 1]);
    kafka.script(move |r| {
        if r.api == Api::Produce && versions.contains(&r.version) { how.clone() } else { Reply::Default }
    });
    kafka
}

/// Sends 500 lines by `run --once` with these lines in `[kafka]`.
#[track_caller]
fn delivers(kafka: &Scripted, how: &str) -> Done {
    let folder = Folder::new();
    let lines = Lines::new("f", 0..500);
    folder.write("f.log", lines.bytes());
    folder.write_config(&kafka.address(), "t", how);
    let done = folder.agent_line("run -c c.toml --once").run_for(PATIENT).expect_code(0);
    Delivered::of(kafka.stored("t")).assert_at_least_once(&[&lines]);
    done
}

const ALL: &str = "acks = \"all\"";

/// A server that announces old Produce versions and closes the connection on them, as Tansu does. Fails when `auto`
/// starts with the `kafka` crate, or, with `acks = 0`, counts lines written to a closed connection as delivered.
#[test]
fn auto_does_not_begin_with_the_old_requests() {
    for acks in [ALL, "acks = 1", "acks = 0"] {
        let kafka = refuses(0..=2, Reply::Close);
        let done = delivers(&kafka, acks);
        assert!(done.stderr.contains("driver modern"), "{}", done.stderr);
        assert!(kafka.produced().iter().all(|p| p.version >= 3), "{acks}");
    }
}

/// The opposite: the new versions are announced, and answered by a closed connection, by 35, or by 43. Fails when
/// `auto` stays with the modern driver, or lines are lost with `acks = 0`.
#[test]
fn auto_falls_back_to_the_old_requests() {
    for how in [Reply::Close, Reply::Code(35), Reply::Code(43)] {
        for acks in [ALL, "acks = 0"] {
            let kafka = refuses(3..=20, how.clone());
            let done = delivers(&kafka, acks);
            assert!(done.stderr.contains("driver classic"), "{how:?}, {acks}: {}", done.stderr);
        }
    }
}

/// A 0.10 broker is replaced by a newer one. Fails when `auto` stays with the `kafka` crate forever.
#[test]
fn auto_leaves_the_old_requests_when_the_broker_is_replaced() {
    let kafka = Scripted::start(1);
    kafka.topic("t", &[0]);
    kafka.versions(&[(0, 0, 2), (1, 0, 3), (3, 0, 2), (18, 0, 0)]);
    let folder = Folder::new();
    folder.write("f.log", "one\n");
    folder.write_config(&kafka.address(), "t", "");
    let agent = folder.agent_line("run -c c.toml").start();
    agent.wait_log("driver classic", SOON);
    wait_until(PATIENT, "the first line", || kafka.stored("t").len() == 1);
    kafka.versions(&[(0, 0, 11), (1, 0, 17), (3, 0, 12), (18, 0, 4), (22, 0, 5)]);
    kafka.drop_connections();
    folder.append("f.log", "two\n");
    agent.wait_log("driver modern", PATIENT);
    wait_until(PATIENT, "the second line", || kafka.stored("t").contains(&b"two".to_vec()));
}

/// A controller of Kafka's own (KRaft) among the bootstrap brokers: it answers ApiVersions, without Produce. Fails when a
/// driver gives up because of it, although the others work.
#[test]
fn a_controller_among_the_brokers() {
    for driver in ["auto", "modern"] {
        let (controller, broker, folder) = (Scripted::start(1), Scripted::start(1), Folder::new());
        controller.versions(&[(1, 4, 17), (18, 0, 4)]);
        broker.topic("t", &[0]);
        folder.write("f.log", "one\n");
        let brokers = format!("{}\", \"{}", controller.address(), broker.address());
        folder.write(
            "c.toml",
            format!(
                "[agent]\nstate_dir = {:?}\n[kafka]\nbrokers = [\"{brokers}\"]\ntopic = \"t\"\ndriver = {driver:?}\n\
                 [[files]]\npaths = [{:?}]\nstart = \"beginning\"\n",
                folder.path("state"),
                folder.path("f.log"),
            ),
        );
        let agent = folder.agent_line("run -c c.toml").start();
        wait_until(secs(15), driver, || broker.stored("t").len() == 1);
        assert!(!agent.log().contains("gave up"), "{}", agent.log());
    }
}

/// A server that accepts neither. Fails when a driver counts lines as delivered that it wrote to a connection which
/// the server closed on the first of them.
#[test]
fn without_acks_lines_to_a_closing_server_are_not_delivered() {
    for driver in ["classic", "modern", "auto"] {
        let kafka = refuses(0..=20, Reply::Close);
        let folder = Folder::new();
        folder.write("f.log", Lines::new("f", 0..500).bytes());
        folder.write_config(&kafka.address(), "t", &format!("acks = 0\ndriver = {driver:?}"));
        let mut agent = folder.agent_line("run -c c.toml --once").spawn();
        wait_until(PATIENT, "it is retried repeatedly", || {
            agent.ended().is_some() || kafka.count(Api::Produce) >= 4
        });
        assert!(agent.ended().is_none(), "{driver}: {}", agent.log());
        agent.kill();
    }
}

/// A topic with an old message format refuses idempotent batches. Fails when `auto` waits for that to change, or when
/// the modern driver does not say what to do.
#[test]
fn a_topic_of_an_old_message_format() {
    let broker = Broker::shared(Version::V28);
    let topic = broker.topic_with(1, &["message.format.version=0.10.2"]);
    let folder = Folder::new();
    let lines = Lines::new("f", 0..500);
    folder.write("f.log", lines.bytes());
    let mut agent = folder.follows(&broker.address, &topic, "modern").start();
    let said = agent.wait_log("UNSUPPORTED_FOR_MESSAGE_FORMAT", SOON);
    assert!(said.contains("acks = 1") && said.contains("message.format.version"), "{said}");
    agent.stop();
    folder.write_config(&broker.address, &topic.name, "driver = \"modern\"\nacks = 1");
    folder.agent_line("run -c c.toml --once").run_for(PATIENT).expect_code(0);
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
    let folder = Folder::new();
    folder.write("f.log", lines.bytes());
    let topic = broker.topic_with(1, &["message.format.version=0.10.2"]);
    let done = folder.follows(&broker.address, &topic, "auto").arg("--once").run_for(PATIENT).expect_code(0);
    assert!(done.stderr.contains("driver classic"), "{}", done.stderr);
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
}

/// Java: the cut connection counts as any other (`NetworkClient.processDisconnection`), and it comes again every
/// `reconnect.backoff.max.ms` = 1 s ± 20 % (`ClusterConnectionStates`). Fails when a broker at its connection limit is
/// reported as a TLS port, or taken for Kafka 0.9.
#[test]
fn a_broker_at_its_limit_of_connections() {
    let broker = Broker::own_with(Version::V39, &["max.connections.per.ip=8"]);
    let address = broker.address.parse().unwrap();
    for driver in ["modern", "auto"] {
        let topic = broker.topic(1);
        let folder = Folder::new();
        folder.write("f.log", Lines::new("f", 0..500).bytes());
        let mut held: Vec<TcpStream> =
            (0..12).map(|_| TcpStream::connect_timeout(&address, SOON).unwrap()).collect();
        let agent = folder.follows(&broker.address, &topic, driver).start();
        let said = agent.wait_log("down", SOON);
        assert!(said.contains("max.connections.per.ip") && !said.contains("TLS"), "{driver}: {said}");
        held.clear();
        agent.wait_log("up again", PATIENT);
        topic.wait_count(500);
        assert!(!agent.log().contains("driver classic"), "{}", agent.log());
    }
}

/// Java: `DefaultMetadataUpdater.handleServerDisconnect` fails the waiting `send`, and the login is tried again after a
/// second or less (`ClusterConnectionStates.authenticationFailed`). Fails when any thread retries a refused login within
/// seconds: accounts get locked.
#[test]
fn a_refused_login_is_not_retried_at_once() {
    let kafka = Scripted::start(1);
    kafka.topic("t", &[0]);
    kafka.script(|r| if r.api == Api::SaslAuthenticate { Reply::Code(58) } else { Reply::Default });
    let folder = Folder::new();
    folder.write("f.log", "one\n");
    let password = folder.write("password", "p");
    let sasl = format!("sasl = {{ mechanism = \"PLAIN\", username = \"u\", password_file = {password:?} }}");
    folder.write_config(&kafka.address(), "t", &sasl);
    let _agent = folder.agent_line("run -c c.toml").start();
    wait_until(PATIENT, "a second login", || kafka.count(Api::SaslAuthenticate) >= 2);
    let at: Vec<_> =
        kafka.requests().iter().filter(|r| r.api == Api::SaslAuthenticate).map(|r| r.at).collect();
    assert!(at[1] - at[0] > millis(4900), "again after {:?}", at[1] - at[0]);
}

/// Fails when a new reason for an outage is not logged until the attempt count reaches the next power of two.
#[test]
fn a_changed_reason_is_logged_at_once() {
    let kafka = Scripted::away();
    let folder = Folder::new();
    folder.write("f.log", "one\n");
    let run = format!(
        "run --brokers {} --topic t --driver modern --from beginning --state-dir state f.log",
        kafka.address()
    );
    let agent = folder.agent_line(&run).start();
    agent.wait_log("attempt 4", SOON);
    kafka.script(|_| Reply::Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()));
    kafka.up(1);
    let said = agent.wait_log("HTTP", PATIENT);
    let attempt = said.split("attempt ").nth(1).and_then(|rest| rest.split(':').next()).unwrap();
    assert!(attempt.parse::<u32>().unwrap() < 8, "{said}");
}
