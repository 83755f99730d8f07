//! `check --connect` against real brokers: its steps, what each reports when it fails, and what the topic accepts.
//! `check` without the network is in `cli.rs` and in unit tests.

use crate::harness::*;
use crate::security::{PASSWORD, client, config, sasl, tls};

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
    let rest = ["ok SASL SCRAM-SHA-512".to_owned(), "ok versions".into(), "ok metadata".into()];
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
        let last = text.lines().last().unwrap().to_owned();
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
    let last = text.lines().last().unwrap();
    assert!(last.starts_with(&format!("failed   read {}", topic.name)), "{text}");
    assert!(last.contains("allow READ on the topic to this user"), "{text}");
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
            let last = text.lines().last().unwrap();
            assert!(last.starts_with(head) && last.contains(said), "{most}, {compression}: {text}");
            assert_eq!(code, 0, "{text}");
        }
    }
}
