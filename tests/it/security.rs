//! TLS, SASL and ACLs on real brokers: what must work, and what must fail with one clear line. Hostile peers are in
//! `hostile.rs`, files in `untrusted.rs`.

use crate::harness::*;
use std::{fs, path::Path, path::PathBuf, time::Instant};

pub const PASSWORD: &str = "alice-secret";

/// A config of one file `NAME.log`, read from its beginning; `security` holds the tables [kafka.tls] and
/// [kafka.sasl].
pub fn config(
    folder: &Folder,
    name: &str,
    address: &str,
    topic: &str,
    driver: &str,
    security: &str,
) -> PathBuf {
    let (state, log) = (folder.path(format!("state-{name}")), folder.path(format!("{name}.log")));
    let text = format!(
        "[agent]\nstate_dir = {state:?}\ndrain_timeout = \"2s\"\n\
         [kafka]\nbrokers = [{address:?}]\ntopic = {topic:?}\ndriver = {driver:?}\n{security}\n\
         [[files]]\npaths = [{log:?}]\nstart = \"beginning\"\n"
    );
    folder.write(&format!("{name}.toml"), text)
}

pub fn tls(broker: &Broker) -> String {
    format!("[kafka.tls]\nca = {:?}\n", broker.key("ca.crt"))
}

pub fn client(broker: &Broker, name: &str) -> String {
    let (cert, key) = (broker.key(&format!("{name}.pem")), broker.key(&format!("{name}.key")));
    format!("{}cert = {cert:?}\nkey = {key:?}\n", tls(broker))
}

pub fn sasl(folder: &Folder, mechanism: &str, password: &str) -> String {
    let file = folder.write(&format!("password-{mechanism}-{password}"), format!("{password}\n"));
    sasl_from(mechanism, &file)
}

fn sasl_from(mechanism: &str, file: &Path) -> String {
    format!("[kafka.sasl]\nmechanism = {mechanism:?}\nusername = \"alice\"\npassword_file = {file:?}\n")
}

fn run(folder: &Folder, config: &Path) -> Setup {
    folder.agent(["run", "-c"]).arg(config)
}

/// Every authentication method, with `run` and with `send`, into two topics whose ACLs allow only these users.
#[track_caller]
fn every_authentication(version: Version) {
    let broker = Broker::secure(version);
    let folder = Folder::new();
    let (topic, sent) = (broker.topic(2), broker.topic(1));
    for user in ["alice", "CN=client"] {
        broker.allow(user, &topic);
        broker.allow(user, &sent);
    }
    let over_tls = |mechanism| format!("{}{}", tls(broker), sasl(&folder, mechanism, PASSWORD));
    let ways = [
        ("mtls", "mtls", client(broker, "client")),
        ("plain", "sasltls", over_tls("PLAIN")),
        ("scram256", "sasltls", over_tls("SCRAM-SHA-256")),
        ("scram512", "sasltls", over_tls("SCRAM-SHA-512")),
        ("bare", "saslplain", sasl(&folder, "SCRAM-SHA-256", PASSWORD)),
        ("named", "elsewhere", format!("{}server_name = \"kafka.example.org\"\n", tls(broker))),
    ];
    let all: Vec<Lines> = ways.iter().map(|(name, ..)| Lines::new(name, 0..20_000)).collect();
    for (lines, (name, listener, security)) in all.iter().zip(&ways) {
        lines.append_to(&folder.path(format!("{name}.log")));
        let config = config(&folder, name, &broker.listener(listener), &topic.name, "auto", security);
        let done = run(&folder, &config).arg("--once").run_for(PATIENT).expect_code(0);
        assert!(done.vm_hwm < 24_000, "{name}: {} KiB resident", done.vm_hwm);
        let send = folder.agent(["send", "--topic", &sent.name, "-c"]).arg(&config).arg(name);
        let done = send.run_for(PATIENT).expect_code(0);
        assert!(done.stdout.starts_with(b"pid:0 offset:"), "{name}: {}", done.stderr);
    }
    Delivered::in_topic(&topic).assert_exactly_once(&all.iter().collect::<Vec<_>>());
    let names: Vec<Vec<u8>> = ways.iter().map(|(name, ..)| name.as_bytes().to_vec()).collect();
    assert_eq!(sent.values(), names);
}

/// Fails when any part of TLS, client certificates, PLAIN, SCRAM or server_name is wrong, or `send` ignores part of
/// [kafka]: then nothing arrives.
#[test]
fn every_authentication_3_9() {
    every_authentication(Version::V39);
}
#[test]
fn every_authentication_4_1() {
    every_authentication(Version::V41);
}

/// Sessions expire after 4 s there. Fails when the agent reauthenticates too late or never: the broker then closes
/// the connection.
#[test]
fn session_is_renewed_before_it_expires_3_9() {
    session_is_renewed(Version::V39);
}
#[test]
fn session_is_renewed_before_it_expires_4_1() {
    session_is_renewed(Version::V41);
}

#[track_caller]
fn session_is_renewed(version: Version) {
    let broker = Broker::secure(version);
    let folder = Folder::new();
    let topic = broker.topic(1);
    broker.allow("alice", &topic);
    let security = format!("{}{}", tls(broker), sasl(&folder, "SCRAM-SHA-512", PASSWORD));
    let config = config(&folder, "r", &broker.listener("sasltls"), &topic.name, "auto", &security);
    folder.write("r.log", "");
    let mut agent = run(&folder, &config).start();
    let began = Instant::now();
    let mut written: u64 = 0;
    while began.elapsed() < secs(14) {
        Lines::new("r", written..written + 10).append_to(&folder.path("r.log"));
        written += 10;
        pause(millis(100));
    }
    // Idle for longer than a session, then more lines: it must reauthenticate before the first request.
    topic.wait_count(written);
    pause(secs(6));
    Lines::new("r", written..written + 10).append_to(&folder.path("r.log"));
    topic.wait_count(written + 10);
    let done = agent.stop().expect_code(0);
    Delivered::in_topic(&topic).assert_exactly_once(&[&Lines::new("r", 0..written + 10)]);
    for trouble in ["down", "lost", "closed"] {
        assert!(!done.stderr.contains(trouble), "{}", done.stderr);
    }
}

/// Name, listener, tables of the config, and what one line of the log must contain. A name that starts with `auto` or
/// `classic` selects that driver instead of modern.
type Case = (&'static str, &'static str, String, &'static [&'static str]);

fn wrong_configs(broker: &Broker, folder: &Folder) -> Vec<Case> {
    let tls = tls(broker);
    let wrong = |mechanism| format!("{tls}{}", sasl(folder, mechanism, "wrong-secret"));
    let gone = sasl_from("PLAIN", &folder.path("no-such-password"));
    let other_ca = format!("[kafka.tls]\nca = {:?}\n", broker.key("other-ca.crt"));
    let mixed = client(broker, "client").replace("client.key", "stranger.key");
    vec![
        ("password", "sasltls", wrong("PLAIN"), &["refuses user alice", "set username and password_file"]),
        (
            "scram",
            "sasltls",
            wrong("SCRAM-SHA-512"),
            &["refuses user alice", "set username and password_file"],
        ),
        (
            "mechanism",
            "saslplain",
            sasl(folder, "SCRAM-SHA-512", PASSWORD),
            &["does not support SCRAM-SHA-512, only", "PLAIN", "SCRAM-SHA-256", "set another mechanism"],
        ),
        ("no-file", "sasltls", format!("{tls}{gone}"), &["no-such-password", "No such file"]),
        ("no-sasl", "tls", format!("{tls}{}", sasl(folder, "PLAIN", PASSWORD)), &["does not use SASL"]),
        ("need-sasl", "saslplain", String::new(), &["SASL", "[kafka.sasl]"]),
        ("ca", "tls", other_ca, &["a CA that is not trusted here; set ca"]),
        ("system-ca", "tls", "[kafka.tls]\n".into(), &["set ca in [kafka.tls]"]),
        ("expired", "expired", tls.clone(), &["has expired", "renew it there, or set the clock"]),
        ("name", "elsewhere", tls.clone(), &["for kafka.example.org, not for 127.0.0.1", "set server_name"]),
        // The alert, and so the message, is up to the JVM: bad_certificate, or certificate_required since JDK
        // 17.0.16.
        ("no-cert", "mtls", tls.clone(), &["asks for ", "set cert and key"]),
        ("stranger", "mtls", client(broker, "stranger"), &["our certificate", "set cert and key"]),
        ("mixed", "mtls", mixed, &["name a certificate and its own key"]),
        ("tls-on-plain", "saslplain", tls.clone(), &["a port without TLS"]),
        ("plain-on-tls", "tls", String::new(), &["TLS", "[kafka.tls]"]),
        ("auto-plain-on-tls", "tls", String::new(), &["speaks TLS", "[kafka.tls]"]),
        ("classic-plain-on-tls", "tls", String::new(), &["speaks TLS", "[kafka.tls]"]),
        ("auto-need-sasl", "saslplain", String::new(), &["SASL", "[kafka.sasl]"]),
    ]
}

/// Each mistake must be reported in one line that says what to do, cheaply, without the password, and without
/// delaying shutdown.
#[test]
fn misconfiguration_logs_one_clear_line_3_9() {
    misconfiguration(Version::V39);
}
#[test]
fn misconfiguration_logs_one_clear_line_4_1() {
    misconfiguration(Version::V41);
}

#[track_caller]
fn misconfiguration(version: Version) {
    let broker = Broker::secure(version);
    let folder = Folder::new();
    let mut cases = wrong_configs(broker, &folder);
    if version == Version::V39 {
        cases.push(("classic-need-sasl", "saslplain", String::new(), &["SASL", "[kafka.sasl]"]));
    }
    let mut agents = Vec::new();
    for (name, listener, security, said) in cases {
        folder.write(&format!("{name}.log"), "a line\n");
        let driver = ["auto", "classic"].into_iter().find(|d| name.starts_with(d)).unwrap_or("modern");
        let config = config(&folder, name, &broker.listener(listener), "t", driver, &security);
        let agent = run(&folder, &config).env("RUST_LOG", "trace").start();
        agents.push((name, said, agent));
    }
    for (name, said, agent) in &agents {
        let line = agent.wait_log(said[0], SOON);
        for part in said.iter() {
            assert!(line.contains(part), "{name}: {part:?} in {line}");
        }
        assert!(line.contains("; "), "{name}: no advice in {line}");
    }
    let before: Vec<_> = agents.iter().map(|(.., agent)| agent.cpu()).collect();
    pause(secs(10));
    for ((name, said, agent), before) in agents.iter_mut().zip(before) {
        let used = agent.cpu() - before;
        assert!(used < millis(500), "{name}: {used:?} in 10 s");
        let stopped = Instant::now();
        let done = agent.stop().expect_code(0);
        assert!(stopped.elapsed() < secs(5), "{name}: {:?} to stop", stopped.elapsed());
        assert!(done.vm_hwm < 24_000, "{name}: {} KiB resident", done.vm_hwm);
        let shown = done.stderr.lines().filter(|l| !l.contains(" DEBUG ")); // each attempt is there
        let repeated = shown.filter(|l| l.contains(said[0])).count();
        assert!(repeated <= 6, "{name}: {repeated} times\n{}", done.stderr);
        for secret in [PASSWORD, "wrong-secret", "PRIVATE KEY"] {
            assert!(!done.stderr.contains(secret), "{name}: {}", done.stderr);
        }
    }
}

/// Certificate, CA and password are read at each connect. Fails when any of them is cached from the start.
#[test]
fn replaced_credentials_are_picked_up_3_9() {
    replaced_credentials(Version::V39);
}
#[test]
fn replaced_credentials_are_picked_up_4_1() {
    replaced_credentials(Version::V41);
}

#[track_caller]
fn replaced_credentials(version: Version) {
    let broker = Broker::secure(version);
    let folder = Folder::new();
    let topic = broker.topic(1);
    broker.allow("alice", &topic);
    broker.allow("CN=client", &topic);
    let copy = |from: &str, to: &str| folder.write(to, fs::read(broker.key(from)).unwrap());
    let (ca, cert, key) = (
        copy("other-ca.crt", "k/ca.crt"),
        copy("stranger.pem", "k/cert.pem"),
        copy("stranger.key", "k/key.pem"),
    );
    let security = format!("[kafka.tls]\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n");
    let mtls = config(&folder, "m", &broker.listener("mtls"), &topic.name, "auto", &security);
    let password = folder.write("p", "not-yet");
    let security = format!("{}{}", tls(broker), sasl_from("SCRAM-SHA-256", &password));
    let scram = config(&folder, "s", &broker.listener("sasltls"), &topic.name, "auto", &security);
    let (m, s) = (Lines::new("m", 0..1000), Lines::new("s", 0..1000));
    m.append_to(&folder.path("m.log"));
    s.append_to(&folder.path("s.log"));
    let (mut by_cert, mut by_password) = (run(&folder, &mtls).start(), run(&folder, &scram).start());
    by_cert.wait_log("CA that is not trusted here", SOON);
    copy("ca.crt", "k/ca.crt");
    by_cert.wait_log("set cert and key", SOON);
    copy("client.pem", "k/cert.pem");
    copy("client.key", "k/key.pem");
    by_password.wait_log("refuses user alice", SOON);
    folder.write("p", PASSWORD);
    topic.wait_count(2000);
    by_cert.wait_log("up again", SOON);
    by_password.wait_log("up again", SOON);
    by_cert.stop().expect_code(0);
    by_password.stop().expect_code(0);
    Delivered::in_topic(&topic).assert_exactly_once(&[&m, &s]);
}

/// Fails when a reload exchanges keys that work for keys that cannot be used.
#[test]
fn a_reload_to_unusable_keys_changes_nothing() {
    let broker = Broker::secure(Version::V41);
    let folder = Folder::new();
    let topic = broker.topic(1);
    broker.allow("CN=client", &topic);
    let of = |security: &str| config(&folder, "m", &broker.listener("mtls"), &topic.name, "auto", security);
    let good = client(broker, "client");
    let lines = Lines::new("m", 0..30);
    let bytes = lines.bytes();
    let mut agent = run(&folder, &of(&good)).start();
    for (i, part) in bytes.chunks(bytes.len() / 3).enumerate() {
        folder.append("m.log", part);
        topic.wait_count(10 * (i as u64 + 1));
        of(&good.replace("client.key", ["stranger.key", "ca.crt", "no-such.key"][i]));
        agent.reload();
    }
    let refused = agent.log().matches("SIGHUP: the config is unchanged: logagent: [kafka.tls]: ").count();
    agent.stop().expect_code(0);
    assert_eq!(refused, 3);
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
}

/// Fails when a missing permission drops lines, ends the agent, keeps it from becoming ready, or is not retried.
#[test]
fn permission_revoked_and_granted_again_3_9() {
    permission_revoked(Version::V39);
}
#[test]
fn permission_revoked_and_granted_again_4_1() {
    permission_revoked(Version::V41);
}

#[track_caller]
fn permission_revoked(version: Version) {
    let broker = Broker::secure(version);
    let folder = Folder::new();
    let topic = broker.topic(1);
    let security = format!("{}{}", tls(broker), sasl(&folder, "SCRAM-SHA-256", PASSWORD));
    let config = config(&folder, "a", &broker.listener("sasltls"), &topic.name, "auto", &security);
    let log = folder.path("a.log");
    Lines::new("a", 0..100).append_to(&log);
    let mut agent = run(&folder, &config).start(); // ready, although it may not yet
    let line = agent.wait_log("TOPIC_AUTHORIZATION_FAILED", SOON);
    assert!(line.contains("allow WRITE on the topic"), "{line}");
    broker.allow("alice", &topic);
    topic.wait_count(100);
    broker.forbid("alice", &topic);
    Lines::new("a", 100..200).append_to(&log);
    wait_until(PATIENT, "it is logged again", || {
        agent.log().matches("TOPIC_AUTHORIZATION_FAILED").count() >= 2
    });
    let before = agent.cpu();
    pause(secs(10));
    assert!(agent.cpu() - before < millis(500), "{:?} in 10 s", agent.cpu() - before);
    assert_eq!(topic.end_offsets(), 100);
    broker.allow("alice", &topic);
    topic.wait_count(200);
    agent.stop().expect_code(0);
    Delivered::in_topic(&topic).assert_exactly_once(&[&Lines::new("a", 0..200)]);
}

/// The address by which other machines would reach this one; no packet is sent to find it.
fn own_address() -> std::net::IpAddr {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("192.0.2.1:9").expect("this test needs a network interface with an IPv4 address");
    socket.local_addr().unwrap().ip()
}

/// PLAIN without TLS. Fails when the password is sent to another machine without a warning: to a broker of the
/// config, or to one learned from metadata.
#[test]
fn plain_without_tls_to_another_machine_is_refused() {
    let folder = Folder::new();
    folder.write("f.log", Lines::new("f", 0..10).bytes());
    let plain = sasl(&folder, "PLAIN", PASSWORD);
    let allowed = format!("{plain}plain_without_tls = true\n");

    let text = config(&folder, "refused", "192.0.2.1:9092", "t", "auto", &plain);
    for command in ["run", "check"] {
        let done = folder.agent([command, "-c"]).arg(&text).run().expect_code(78);
        assert!(
            done.stderr.contains("PLAIN without TLS would send the password in the clear"),
            "{}",
            done.stderr
        );
    }

    let kafka = Scripted::start_at(&[[127, 0, 0, 1].into(), own_address()]);
    kafka.topic("t", &[0]);
    kafka.lead("t", 0, 2);
    let asked = |node| kafka.requests().iter().any(|r| r.api == Api::SaslAuthenticate && r.node == node);
    let first = kafka.node_address(1).to_string();
    let mut agent = run(&folder, &config(&folder, "f", &first, "t", "modern", &plain)).start();
    agent.wait_log("PLAIN without TLS would send the password in the clear to", SOON);
    assert!(asked(1) && !asked(2), "{}", agent.log());
    agent.stop().expect_code(0);
    let mut agent = run(&folder, &config(&folder, "f", &first, "t", "modern", &allowed)).start();
    wait_until(SOON, "the lines are stored", || kafka.stored("t").len() == 10);
    assert!(asked(2));
    agent.stop().expect_code(0);
}
