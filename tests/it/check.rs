//! `check --connect` against real brokers: its steps, what each reports when it fails, and what the topic accepts.
//! `check` without the network is in `cli.rs` and in unit tests.

use crate::harness::*;
use crate::limits::Jail;
use crate::security::{PASSWORD, client, config, sasl, tls};
use std::thread;

/// Fails when a step is missing, out of order, or without advice, or when check writes or creates something.
#[test]
fn step_by_step_3_9() {
    step_by_step(Version::V39);
}
#[test]
fn step_by_step_4_1() {
    step_by_step(Version::V41);
}

#[track_caller]
fn step_by_step(version: Version) {
    let broker = Broker::secure(version);
    let folder = Folder::new();
    let topic = broker.topic(1);
    broker.allow("alice", &topic);
    folder.write("c.log", "");
    let steps = |name: &str, listener: &str, topic: &str, security: &str, code: i32| -> Vec<String> {
        let config = config(&folder, name, &broker.listener(listener), topic, "auto", security);
        let done = folder.agent(["check", "--connect", "-c"]).arg(config).run().expect_code(code);
        let text = String::from_utf8(done.stdout).unwrap();
        let is_step = |l: &&str| (l.starts_with("ok ") || l.starts_with("failed ")) && l.contains(" ms)");
        text.lines().filter(is_step).map(str::to_owned).collect()
    };
    let heads = |steps: &[String]| -> Vec<String> {
        steps
            .iter()
            .map(|s| s.split(" (").next().unwrap().split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    };
    let security = format!("{}{}", tls(broker), sasl(&folder, "SCRAM-SHA-512", PASSWORD));
    let address = broker.listener("sasltls");
    let way = ["ok name 127.0.0.1".to_owned(), format!("ok TCP {address}"), "ok TLS".into()];
    let good = steps("good", "sasltls", &topic.name, &security, 0);
    let rest = ["ok SASL SCRAM-SHA-512", "ok versions", "ok metadata", "ok producer id"].map(str::to_owned);
    let all = [&way[..], &rest[..], &[format!("ok write {}", topic.name)][..]].concat();
    assert_eq!(heads(&good), all);
    let no_right = steps("right", "sasltls", "another", &security, 1);
    assert_eq!(no_right.last().unwrap().split(" (").next().unwrap(), "failed   write another");
    assert!(no_right.last().unwrap().contains("allow WRITE on the topic"), "{no_right:?}");
    let security = format!("{}{}", tls(broker), sasl(&folder, "SCRAM-SHA-512", "wrong-secret"));
    let wrong = steps("wrong", "sasltls", &topic.name, &security, 1);
    assert_eq!(heads(&wrong), [&way[..], &["failed SASL SCRAM-SHA-512".to_owned()][..]].concat());
    assert!(wrong[3].contains("set username and password_file"), "{wrong:?}");
    let expired = steps("expired", "expired", &topic.name, &tls(broker), 1);
    assert!(expired[2].starts_with("failed   TLS") && expired[2].contains("; renew it there"), "{expired:?}");
    assert_eq!(topic.end_offsets(), 0);
}

/// The output and exit code of `check --connect` for a config with this `[kafka]` section.
fn connect_output(folder: &Folder, name: &str, kafka: &str) -> (String, i32) {
    let (state, log) = (folder.path("state"), folder.path("c.log"));
    let text = format!(
        "[agent]\nstate_dir = {state:?}\n[kafka]\n{kafka}\n[[files]]\npaths = [{log:?}]\nmax_line = 500000\n"
    );
    let config = folder.write(&format!("{name}.toml"), text);
    let done = folder.agent(["check", "--connect", "-c"]).arg(config).run_for(PATIENT);
    (String::from_utf8(done.stdout).unwrap(), done.status.code().unwrap())
}

/// The last line of a step; the table follows.
fn last_step(text: &str) -> &str {
    text.lines().rfind(|line| line.contains(" ms): ")).unwrap()
}

/// The rows of the table, by their names.
fn table(text: &str) -> Vec<(&str, &str)> {
    let rows = text.lines().skip_while(|line| !line.starts_with("cluster  "));
    rows.map(|row| (row[9..25].trim(), &row[25..])).collect()
}

/// A name with two addresses, of which the first refuses, as `localhost` often has. Fails when that fails the check,
/// although the agent uses the other address.
#[test]
fn one_dead_address_of_a_name_is_a_warning() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return; // no IPv6, so no address that is certain to be tried first
    }
    let broker = Broker::shared(Version::V41);
    let (folder, topic) = (Folder::new(), broker.topic(1));
    folder.write("hosts", "::1 two.test\n127.0.0.1 two.test\n");
    let (state, log) = (folder.path("state"), folder.path("c.log"));
    folder.write(
        "c.toml",
        format!(
            "[agent]\nstate_dir = {state:?}\n[kafka]\nbrokers = [\"two.test:{}\"]\ntopic = {:?}\n[[files]]\npaths = [{log:?}]\n",
            broker.port(),
            topic.name
        ),
    );
    let script = "mount --bind hosts /etc/hosts; $A check --connect -c c.toml && echo code 0 || echo code $?";
    let jail = Jail::start(&folder, script);
    let text = || jail.lines().iter().map(|l| String::from_utf8_lossy(l) + "\n").collect::<String>();
    wait_until(SOON, "the exit code", || text().contains("code "));
    let text = text();
    assert!(text.contains("warning  TCP [::1]") && text.contains("ok       TCP 127.0.0.1"), "{text}");
    assert!(text.contains("code 0"), "{text}\n{}", jail.log());
}

/// A name with two addresses, of which the first accepts connections and never answers. Fails when that fails the check,
/// or is not mentioned.
#[test]
fn a_mute_address_of_a_name_is_a_warning() {
    let Ok(mute) = std::net::TcpListener::bind("[::1]:0") else { return }; // as above
    let port = mute.local_addr().unwrap().port();
    let broker = Broker::shared(Version::V41);
    let (folder, topic) = (Folder::new(), broker.topic(1));
    folder.write("hosts", "::1 two.test\n127.0.0.1 two.test\n");
    let Ok(answers) = std::net::TcpListener::bind(("127.0.0.1", port)) else { return };
    let address: std::net::SocketAddr = broker.address.parse().unwrap();
    thread::spawn(move || {
        for client in answers.incoming().flatten() {
            let to = std::net::TcpStream::connect_timeout(&address, SOON).unwrap();
            let (mut from, mut back) = (client.try_clone().unwrap(), to.try_clone().unwrap());
            let (mut to, mut client) = (to, client);
            thread::spawn(move || std::io::copy(&mut from, &mut to));
            thread::spawn(move || std::io::copy(&mut back, &mut client));
        }
    });
    let (state, log) = (folder.path("state"), folder.path("c.log"));
    folder.write(
        "c.toml",
        format!(
            "[agent]\nstate_dir = {state:?}\n[kafka]\nbrokers = [\"two.test:{port}\"]\ntopic = {:?}\n\
             [[files]]\npaths = [{log:?}]\n",
            topic.name
        ),
    );
    let script = "mount --bind hosts /etc/hosts; $A check --connect -c c.toml && echo code 0 || echo code $?";
    let jail = Jail::start(&folder, script);
    let text = || jail.lines().iter().map(|l| String::from_utf8_lossy(l) + "\n").collect::<String>();
    wait_until(PATIENT, "the exit code", || text().contains("code "));
    let text = text();
    for said in
        ["warning  versions (5", "no answer in time", "ok       TCP 127.0.0.1", "ok       write", "code 0"]
    {
        assert!(text.contains(said), "{said}: {text}\n{}", jail.log());
    }
}

/// Lines would go to whichever of the two clusters answers first. Fails when the check accepts that.
#[test]
fn brokers_of_two_clusters() {
    let folder = Folder::new();
    let (a, b) = (Broker::shared(Version::V41), Broker::shared(Version::V39));
    let topic = a.topic(1);
    let kafka = format!("brokers = [{:?}, {:?}]\ntopic = {:?}", a.address, b.address, topic.name);
    let (text, code) = connect_output(&folder, "two", &kafka);
    let failed = text.lines().find(|line| line.starts_with("failed   cluster id")).unwrap_or(&text);
    assert!(failed.contains(&format!("but {} to cluster ", a.address)), "{text}");
    assert!(failed.contains("name only brokers of the same cluster in `brokers`") && code == 1, "{text}");
}

/// Fails when a failed step is not the last one of its broker, does not show its time, or does not say what to do.
#[test]
fn each_step_that_fails_says_what_to_do_3_9() {
    each_step_that_fails(Version::V39);
}
#[test]
fn each_step_that_fails_says_what_to_do_4_1() {
    each_step_that_fails(Version::V41);
}

#[track_caller]
fn each_step_that_fails(version: Version) {
    let broker = Broker::secure(version);
    let folder = Folder::new();
    let topic = broker.topic(1);
    broker.allow("alice", &topic);
    let (full, _held, _listener) = full_backlog();
    let to =
        |listener: &str| format!("brokers = [{:?}]\ntopic = {:?}", broker.listener(listener), topic.name);
    let at = |address: &str| format!("brokers = [{address:?}]\ntopic = \"t\"");
    let plain = |more: &str| format!("brokers = [{:?}]\n{more}", broker.address);
    let password = |word: &str| format!("{}{}", tls(broker), sasl(&folder, "SCRAM-SHA-512", word));
    let mine = client(broker, "client");
    let mut cases = vec![
        (
            "name",
            at("no-such-host.invalid:9092"),
            "name no-such-host.invalid",
            "correct the name in `brokers`",
        ),
        ("refused", at("127.0.0.1:1"), "TCP 127.0.0.1:1", "connection refused; start the broker there"),
        (
            "silent",
            at(&full.to_string()),
            "TCP",
            "no connection in 5 s; start the broker there, or make it reachable",
        ),
        ("unknown-ca", to("tls") + "\n[kafka.tls]", "TLS", "; set ca in [kafka.tls]"),
        ("other-name", to("elsewhere") + "\n" + &tls(broker), "TLS", "; use the name in the certificate"),
        ("no-tls", to("saslplain") + "\n" + &tls(broker), "TLS", "a port without TLS"),
        // With TLS 1.3 the broker checks our certificate after our part of the handshake: either step may report it.
        ("no-cert", to("mtls") + "\n" + &tls(broker), "", "; set cert and key"),
        (
            "password",
            to("sasltls") + "\n" + &password("wrong"),
            "SASL SCRAM-SHA-512",
            "; set username and password_file",
        ),
        ("need-tls", to("tls"), "versions", "[kafka.tls]"),
        (
            "need-sasl",
            to("saslplain"),
            "metadata",
            "it closed the connection at the first request and may require SASL: set [kafka.sasl]",
        ),
        (
            "no-right",
            to("mtls") + "\n" + &mine,
            "write",
            "TOPIC_AUTHORIZATION_FAILED (29); allow WRITE on the topic",
        ),
        (
            "no-topic",
            plain("topic = \"nowhere\"\ncreate_topics = false"),
            "write nowhere",
            "UNKNOWN_TOPIC_OR_PARTITION (3); create the topic",
        ),
    ];
    if version == Version::V41 {
        let classic = plain("topic = \"t\"\ndriver = \"classic\"");
        cases.push(("classic", classic, "versions", "; set driver = \"auto\" or \"modern\""));
    }
    let mut wrong = Vec::new();
    for (name, kafka, step, said) in cases {
        let (text, code) = connect_output(&folder, name, &kafka);
        let last = last_step(&text).to_owned();
        let right = last.starts_with(&format!("failed   {step}")) && last.contains(" ms): ");
        if !right || !last.contains(said) || !last.contains("; ") || code != 1 {
            wrong.push((name, last));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Fails when exactly-once is promised to a user without the right to read.
#[test]
fn exactly_once_needs_the_right_to_read() {
    let broker = Broker::secure(Version::V41);
    let folder = Folder::new();
    let topic = broker.topic(1);
    broker.allow("alice", &topic);
    let kafka = format!(
        "brokers = [{:?}]\ntopic = {:?}\n{}{}[agent]\nstate_dir = {:?}\ndelivery = \"exactly-once\"",
        broker.listener("sasltls"),
        topic.name,
        tls(broker),
        sasl(&folder, "PLAIN", PASSWORD),
        folder.path("state"),
    );
    let text = format!("[kafka]\n{kafka}\n[[files]]\npaths = [{:?}]\n", folder.path("c.log"));
    let config = folder.write("c.toml", text);
    let done = folder.agent(["check", "--connect", "-c"]).arg(config).run_for(PATIENT).expect_code(78);
    let text = String::from_utf8(done.stdout).unwrap();
    let last = last_step(&text);
    assert!(last.starts_with(&format!("failed   read {}", topic.name)), "{text}");
    assert!(last.contains("allow READ on the topic to this user"), "{text}");
    let table = table(&text);
    assert!(
        table.contains(&("exactly-once", &format!("no: this user may not READ {}", topic.name))),
        "{text}"
    );
    assert!(table.last().unwrap().1.starts_with("none: exactly-once is not possible"), "{text}");
}

/// Fails when the topic's limit is not queried, or compared with the wrong one of line and batch.
#[test]
fn a_lower_topic_limit_is_reported() {
    for version in [Version::V39, Version::V41] {
        let broker = Broker::shared(version);
        let folder = Folder::new();
        let cases = [
            ("20000", "none", "warning  size", "so lines near max_line (500000) are refused"),
            ("500100", "none", "warning  size", "write batch = 500000"),
            ("500100", "gzip", "ok       size", "max.message.bytes is 500100"),
            ("600000", "none", "ok       size", "max.message.bytes is 600000"),
        ];
        for (most, compression, head, said) in cases {
            let topic = broker.topic_with(1, &[&format!("max.message.bytes={most}")]);
            let kafka = format!(
                "brokers = [{:?}]\ntopic = {:?}\ncompression = {compression:?}",
                broker.address, topic.name
            );
            let (text, code) = connect_output(&folder, "c", &kafka);
            let last = last_step(&text);
            assert!(last.starts_with(head) && last.contains(said), "{most}, {compression}: {text}");
            assert_eq!(code, 0, "{text}");
        }
    }
}

/// Servers that announce the `kafka` crate's requests, but do not accept them; and brokers that do. Fails when they look
/// alike with `driver = "classic"`, or when a record is written.
#[test]
fn the_classic_drivers_requests_are_tried() {
    let folder = Folder::new();
    folder.write("c.log", "");
    let keys = |address: &str, topic: &str| {
        format!("brokers = [{address:?}]\ntopic = {topic:?}\ndriver = \"classic\"")
    };
    // One topic "t", one partition, error 59, offset -1.
    let refusal = [&[0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1, 127, 255, 255, 255, 0, 59][..], &[255; 8]].concat();
    for (how, said) in [
        (Reply::Close, "announces Produce 0 but closes the connection on it; set driver = \"auto\""),
        (
            Reply::Body(refusal),
            "announces Produce 0 but refuses it: UNKNOWN_PRODUCER_ID (59); set driver = \"auto\"",
        ),
    ] {
        let kafka = Scripted::start(1);
        kafka.topic("t", &[0]);
        kafka.script(move |r| if r.api == Api::Produce { how.clone() } else { Reply::Default });
        let (text, code) = connect_output(&folder, "c", &keys(&kafka.node_address(1).to_string(), "t"));
        assert!(last_step(&text).starts_with("failed   old requests ("), "{text}");
        assert!(code == 1 && text.contains(said), "{text}");
    }
    for version in [Version::V011, Version::V24, Version::V39] {
        let broker = Broker::shared(version);
        let topic = broker.topic(1);
        let (text, code) = connect_output(&folder, "c", &keys(&broker.address, &topic.name));
        assert!(text.contains("\nok       old requests ("), "{text}");
        assert!(code == 0 && topic.values().is_empty(), "{text}");
    }
}

/// A compacted topic refuses lines without a key. Fails when that is not reported, or is although every line has a key.
#[test]
fn a_compacted_topic_needs_keys() {
    for version in [Version::V39, Version::V44] {
        let broker = Broker::shared(version);
        let folder = Folder::new();
        folder.write("c.log", "one\n");
        let cases = [
            ("compact", "", "failed   key", 1),
            ("compact,delete", "", "failed   key", 1),
            ("compact", "key = { regex = 'id=(.)' }", "warning  key", 0),
            ("compact", "key = \"path\"", "", 0),
            ("delete", "", "", 0),
        ];
        for (policy, key, head, code) in cases {
            let topic = broker.topic_with(1, &[&format!("cleanup.policy={policy}")]);
            let kafka = format!("brokers = [{:?}]\ntopic = {:?}\n{key}", broker.address, topic.name);
            let (text, found) = connect_output(&folder, "c", &kafka);
            let said = text.lines().find(|line| line.contains(" key "));
            let whole = format!("{head} {} (", topic.name);
            assert_eq!(
                said.is_some_and(|line| line.starts_with(&whole)),
                !head.is_empty(),
                "{policy} {key}: {text}"
            );
            assert!(said.is_none_or(|line| line.contains("set `key` in [kafka]")), "{text}");
            assert_eq!(found, code, "{policy} {key}: {text}");
        }
    }
}

/// What old and new Kafka can do, and what follows. Fails when a row is missing or claims what the broker cannot do.
#[test]
fn the_table_of_each_version() {
    thread::scope(|scope| {
        for version in [Version::V011, Version::V39, Version::V44] {
            scope.spawn(move || table_of(version));
        }
    });
}

#[track_caller]
fn table_of(version: Version) {
    let broker = Broker::shared(version);
    let folder = Folder::new();
    let topic = broker.topic_with(1, &["max.message.bytes=700123"]);
    folder.write("c.log", "");
    let kafka = |more: &str| format!("brokers = [{:?}]\ntopic = {:?}\n{more}", broker.address, topic.name);
    let old = version == Version::V011;
    let (text, code) = connect_output(&folder, "c", &kafka(""));
    assert_eq!(code, 0, "{text}");
    let rows = table(&text);
    let names: Vec<&str> = rows.iter().map(|row| row.0).collect();
    let all = ["idempotence", "exactly-once", "compression", "largest record", "new topics", "guarantee"];
    assert_eq!(names, all, "{text}");
    let told = |name| rows.iter().find(|row| row.0 == name).unwrap().1;
    assert!(told("idempotence").starts_with("yes: "), "{text}");
    let listed = if old { "cannot report the state of a producer (needs Kafka 2.8)" } else { "yes: " };
    assert!(told("exactly-once").contains(listed), "{text}");
    let zstd = if old { "lz4; not zstd" } else { "lz4, zstd" };
    assert!(told("compression").contains(zstd), "{text}");
    // 0.11 has no DescribeConfigs that we speak.
    let size = if old { "do not say".to_owned() } else { format!("700123 bytes in {}", topic.name) };
    assert!(told("largest record").contains(&size), "{text}");
    assert!(told("guarantee").starts_with("at-least-once: no line is lost; only a crash"), "{text}");
    let weak = connect_output(&folder, "c", &kafka("acks = 0")).0;
    assert!(table(&weak).last().unwrap().1.starts_with("none: lines in transit"), "{weak}");
    let config = std::fs::read_to_string(folder.path("c.toml")).unwrap().replace("acks = 0", "");
    let once = folder.write("once.toml", config.replace("[agent]", "[agent]\ndelivery = \"exactly-once\""));
    let done = folder.agent(["check", "--connect", "-c"]).arg(once).run_for(PATIENT);
    let text = String::from_utf8(done.stdout).unwrap();
    let follows =
        if old { "none: exactly-once is not possible" } else { "exactly-once: no line is lost and none" };
    assert!(table(&text).last().unwrap().1.starts_with(follows), "{text}");
    assert_eq!(done.status.code(), Some(if old { 78 } else { 0 }), "{text}");
}

/// Brokers that lack a feature, and a second one that does not answer. Fails when a row claims what one of them lacks, or
/// does not say which.
#[test]
fn the_table_of_brokers_that_differ() {
    let folder = Folder::new();
    folder.write("c.log", "");
    let told = |kafka: &Scripted, others: &str| {
        let keys = format!("brokers = [{:?}{others}]\ntopic = \"t\"", kafka.node_address(1).to_string());
        connect_output(&folder, "c", &keys)
    };
    let kafka = Scripted::start(1);
    kafka.topic("t", &[0]);
    let (text, code) = told(&kafka, "");
    assert!(code == 0 && text.contains("idempotence     yes: "), "{text}");
    let (text, code) = told(&kafka, ", \"127.0.0.1:1\"");
    assert!(code == 1 && text.contains("cluster  brokers         1 of 2 answered"), "{text}");
    for (error, head, code) in [(35, "warning  producer id", 0), (31, "warning  producer id", 0)] {
        kafka.script(move |r| match r.api {
            Api::InitProducerId => Reply::Code(error),
            _ => Reply::Default,
        });
        let (text, found) = told(&kafka, "");
        assert!(found == code && text.contains(head), "{error}: {text}");
        assert!(text.contains("idempotence     no: "), "{text}");
        assert!(table(&text).last().unwrap().1.contains("a lost connection or a crash"), "{text}");
    }
}
