//! SASL OAUTHBEARER with real brokers and a real OAuth server: tokens signed by openssl, from a file or by `token_url`.

use crate::harness::*;
use crate::security::{config, tls};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

pub const ALICE: &str = "alice";

/// Base64 for URLs (RFC 4648, 5).
fn url_encoded(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let three = |part: &[u8]| {
        let all = part.iter().fold(0u32, |all, b| all << 8 | u32::from(*b)) << (8 * (3 - part.len()));
        (0..=part.len()).map(|i| ALPHABET[(all >> (18 - 6 * i)) as usize & 63] as char).collect::<String>()
    };
    bytes.chunks(3).map(three).collect()
}

/// A JWT signed by openssl with this key, RS256.
fn signed(key: &Path, claims: &Value) -> String {
    let head = url_encoded(br#"{"alg":"RS256","kid":"test","typ":"JWT"}"#);
    let text = format!("{head}.{}", url_encoded(claims.to_string().as_bytes()));
    let mut openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign"])
        .arg(key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("openssl starts");
    openssl.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let done = openssl.wait_with_output().unwrap();
    assert!(done.status.success());
    format!("{text}.{}", url_encoded(&done.stdout))
}

/// Claims of a user, issued `issued` seconds from now and valid for `lifetime` seconds.
fn claims(user: &str, issued: i64, lifetime: i64) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let from = now + issued;
    json!({"iss": "https://issuer.test", "aud": "kafka", "sub": user, "iat": from, "nbf": from, "exp": from + lifetime})
}

fn token(broker: &Broker, claims: &Value) -> String {
    signed(&broker.key("jwt.key"), claims)
}

/// Replaces the file atomically, as programs that renew tokens do.
fn put(folder: &Folder, name: &str, token: &str) -> PathBuf {
    folder.write("new-token", token);
    folder.rename("new-token", name);
    folder.path(name)
}

fn from_file(broker: &Broker, file: &Path) -> String {
    format!("{}[kafka.sasl]\nmechanism = \"OAUTHBEARER\"\ntoken_file = {file:?}\n", tls(broker))
}

pub fn from_url(broker: &Broker, url: &str, ca: &str, secret: &Path) -> String {
    format!(
        "{}[kafka.sasl]\nmechanism = \"OAUTHBEARER\"\ntoken_url = {url:?}\nclient_id = \"box\"\nclient_secret_file = {secret:?}\n\
         token_ca = {:?}\nscope = \"kafka\"\n",
        tls(broker),
        broker.key(ca)
    )
}

fn run(folder: &Folder, config: &Path) -> Setup {
    folder.agent(["run", "-c"]).arg(config).env("RUST_LOG", "trace")
}

/// A config for `NAME.log`, which holds 100 lines.
fn agent_of(folder: &Folder, name: &str, broker: &Broker, topic: &Topic, security: &str) -> (Setup, Lines) {
    let lines = Lines::new(name, 0..100);
    lines.append_to(&folder.path(format!("{name}.log")));
    let config = config(folder, name, &broker.listener("oauth"), &topic.name, "auto", security);
    (run(folder, &config), lines)
}

/// Fails when any part of OAUTHBEARER is wrong with `run`, `send` or `check --connect`: then nothing arrives; or when
/// the token is logged.
#[test]
fn a_token_from_a_file_3_9() {
    a_token_from_a_file(Version::V39);
}
#[test]
fn a_token_from_a_file_4_4() {
    a_token_from_a_file(Version::V44);
}

#[track_caller]
fn a_token_from_a_file(version: Version) {
    let broker = Broker::secure(version);
    let (folder, topic) = (Folder::new(), broker.topic(2));
    broker.allow(ALICE, &topic);
    let mut of_alice = claims(ALICE, 0, 3630);
    of_alice["scope"] = "logs".into();
    let token = token(broker, &of_alice);
    let security = from_file(broker, &put(&folder, "token", &format!("{token}\n")))
        + "extensions = { logicalCluster = \"lkc-1\", identityPoolId = \"pool-1\" }\n";
    let lines = Lines::new("f", 0..20_000);
    lines.append_to(&folder.path("f.log"));
    let config = config(&folder, "f", &broker.listener("oauth"), &topic.name, "auto", &security);
    let ran = run(&folder, &config).arg("--once").run_for(PATIENT).expect_code(0);
    assert!(ran.vm_hwm < 24_000, "{} KiB resident", ran.vm_hwm);
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
    let sent = folder.agent(["send", "--topic", &topic.name, "-c"]).arg(&config).arg("one more");
    let sent = sent.run_for(PATIENT).expect_code(0);
    assert_eq!(topic.end_offsets(), 20_001);
    let checked = folder.agent(["check", "--connect", "-c"]).arg(&config).run_for(PATIENT).expect_code(0);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    let file = folder.path("token").display().to_string();
    for part in [&*file, "valid for 60 min, scope logs", "SASL OAUTHBEARER", "accepts the token"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let status = folder.agent(["status", "--json", "--state-dir"]).arg(folder.path("state-f")).run();
    let secret = token.rsplit('.').next().unwrap();
    for text in [ran.stderr, sent.stderr, said, String::from_utf8_lossy(&status.stdout).into_owned()] {
        assert!(!text.contains(secret), "{text}");
    }
}

/// Sessions end after 4 s. Fails when a session is renewed too late or with the old token, whose user may no longer write.
#[test]
fn sessions_are_renewed_while_the_token_is_swapped_3_9() {
    swapped(Broker::secure(Version::V39), secs(16), secs(4));
}
#[test]
fn sessions_are_renewed_while_the_token_is_swapped_4_4() {
    swapped(Broker::secure(Version::V44), secs(16), secs(4));
}

/// The same for a minute, with sessions of 10 s.
#[test]
#[ignore = "long form: tests/run --long"]
fn sessions_are_renewed_for_a_minute() {
    for version in [Version::V39, Version::V44] {
        let broker = Broker::own_secure(version, &["connections.max.reauth.ms=10000"]);
        swapped(&broker, secs(60), secs(10));
    }
}

/// 1,000 lines/s for `time`, while the token in the file is replaced every second, in the second half by one of another
/// user.
#[track_caller]
fn swapped(broker: &Broker, time: Duration, session: Duration) {
    let (folder, topic) = (Folder::new(), broker.topic(1));
    broker.allow(ALICE, &topic);
    broker.allow("bob", &topic);
    let file = put(&folder, "token", &token(broker, &claims(ALICE, 0, 60)));
    folder.write("r.log", "");
    let security = from_file(broker, &file);
    let config = config(&folder, "r", &broker.listener("oauth"), &topic.name, "auto", &security);
    let mut agent = folder.agent(["run", "-c"]).arg(&config).start();
    let writer = Writer::steady(folder.path("r.log"), "r", 1000);
    let began = Instant::now();
    let mut may_alice = true;
    while began.elapsed() < time {
        let user = if began.elapsed() < time / 4 { ALICE } else { "bob" };
        put(&folder, "token", &token(broker, &claims(user, 0, 60)));
        if may_alice && began.elapsed() > time / 4 + session + secs(3) {
            broker.forbid(ALICE, &topic);
            may_alice = false;
        }
        pause(secs(1));
    }
    assert!(!may_alice);
    let lines = writer.finish();
    topic.wait_count(lines.count() as u64);
    let done = agent.stop().expect_code(0);
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
    for trouble in ["down", "lost", "closed", "FAILED"] {
        assert!(!done.stderr.contains(trouble), "{}", done.stderr);
    }
    println!("{} lines in {time:?}, each once", lines.count());
}

/// Fails when an invalid token is not explained in one line, when its refusal ends the agent or loses lines, when a new
/// token is not picked up, or when a token is logged.
#[test]
fn wrong_tokens_3_9() {
    wrong_tokens(Version::V39);
}
#[test]
fn wrong_tokens_4_4() {
    wrong_tokens(Version::V44);
}

#[track_caller]
fn wrong_tokens(version: Version) {
    let broker = Broker::secure(version);
    let (folder, topic) = (Folder::new(), broker.topic(1));
    broker.allow(ALICE, &topic);
    let of_broker = |claims| token(broker, &claims);
    let stranger = signed(&broker.key("stranger-jwt.key"), &claims(ALICE, 0, 3600));
    let mut elsewhere = claims(ALICE, 0, 3600);
    elsewhere["aud"] = "another".into();
    // "refused": by the broker, whose answer is JSON.
    let refused = ["the broker refuses the token: {", "invalid_token", "; check "];
    let ended = ["the token expires at 20", "less than 30 s away", "; renew it earlier, or set the clock"];
    let cases = [
        ("stranger", stranger, refused),
        ("audience", of_broker(elsewhere), refused),
        ("opaque", "not-a-token-of-this-issuer".into(), refused),
        ("not-yet", of_broker(claims(ALICE, 3600, 3600)), refused),
        ("expired", of_broker(claims(ALICE, -7200, 3600)), ended),
        ("hour-off", of_broker(claims(ALICE, -3600, 3610)), ended),
        (
            "words",
            "two words".into(),
            ["it is not a token", "an invalid character", "; write nothing but the token"],
        ),
    ];
    let mut agents = Vec::new();
    let mut all = Vec::new();
    for (name, token, said) in cases {
        let file = put(&folder, &format!("token-{name}"), &token);
        let (setup, lines) = agent_of(&folder, name, broker, &topic, &from_file(broker, &file));
        all.push(lines);
        agents.push((name, token, said, setup.start()));
    }
    for (name, _, said, agent) in &agents {
        let line = agent.wait_log(said[0], SOON);
        said.iter().for_each(|part| assert!(line.contains(part), "{name}: {part:?} in {line}"));
    }
    pause(secs(5));
    for (name, _, said, agent) in &agents {
        let log = agent.log();
        let shown = log.lines().filter(|l| !l.contains(" DEBUG ")); // each attempt is there
        let times = shown.filter(|l| l.contains(said[0])).count();
        assert!(times <= 5, "{name}: {times} times\n{log}");
        put(&folder, &format!("token-{name}"), &of_broker(claims(ALICE, 0, 3600)));
    }
    topic.wait_count(all.iter().map(|lines| lines.count() as u64).sum());
    for (name, token, _, mut agent) in agents {
        let done = agent.stop().expect_code(0);
        assert!(!done.stderr.contains(&token), "{name}: {}", done.stderr);
    }
    Delivered::in_topic(&topic).assert_exactly_once(&all.iter().collect::<Vec<_>>());
}

/// Fails when a refusal is not acknowledged as RFC 7628, 3.2.3 wants it, when a refusal by error code (some services)
/// is misinterpreted, or when refused attempts come in quick succession.
#[test]
fn a_refusal_is_acknowledged() {
    // Tags, error, message, bytes, lifetime, tags.
    let said = |code: u8, message: &[u8], bytes: &[u8]| {
        let compact = |b: &[u8]| [&[b.len() as u8 + 1][..], b].concat();
        Reply::Body([&[0, 0, code][..], &compact(message), &compact(bytes), &[0; 9]].concat())
    };
    let json = br#"{"status":"invalid_token","scope":"logs"}"#;
    for by_code in [false, true] {
        let kafka = Scripted::start(1);
        kafka.topic("t", &[0]);
        kafka.script(move |r| match r.api {
            Api::SaslAuthenticate if by_code => said(58, b"no\nsuch token", b""),
            Api::SaslAuthenticate if r.nth % 2 == 1 => said(0, b"", json),
            Api::SaslAuthenticate => said(58, b"refused", b""),
            _ => Reply::Default,
        });
        let folder = Folder::new();
        folder.write("f.log", "line\n");
        let sasl = format!(
            "[kafka.sasl]\nmechanism = \"OAUTHBEARER\"\ntoken_file = {:?}\nextensions = {{ a = \"b\" }}\n",
            folder.write("token", "opaque.token")
        );
        let config = config(&folder, "f", &kafka.address(), "t", "auto", &sasl);
        let mut agent = run(&folder, &config).start();
        let line = agent.wait_log("the broker refuses the token: ", SOON);
        let why = if by_code { "no?such token" } else { std::str::from_utf8(json).unwrap() };
        assert!(line.contains(&format!("the broker refuses the token: {why}; check ")), "{line}");
        pause(secs(4));
        let all = kafka.requests().into_iter().filter(|r| r.api == Api::SaslAuthenticate);
        let all: Vec<_> = all.map(|r| (r.version, r.body)).collect();
        let first = b"n,,\x01auth=Bearer opaque.token\x01a=b\x01\x01";
        assert_eq!(all[0].0, 2);
        assert!(all[0].1[1..].starts_with(first), "{:?}", all[0].1.escape_ascii().to_string());
        assert!(by_code || all[1].1 == [2, 1, 0], "{all:?}");
        assert_eq!(all.len(), if by_code { 1 } else { 2 }, "an immediate retry");
        agent.stop().expect_code(0);
    }
}

/// A running `tests/oauth-server` for a broker. Killed when dropped.
pub struct OauthServer {
    pub url: String,
    child: Child,
    /// The server ends when this is closed.
    _input: ChildStdin,
    /// A line for each request it has answered.
    answers: Arc<Mutex<Vec<String>>>,
}

impl OauthServer {
    pub fn start(broker: &Broker, port: &str) -> OauthServer {
        need("node");
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oauth-server"));
        command.arg("run").arg(broker.dir());
        if !port.is_empty() {
            command.arg(port);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut url = String::new();
        out.read_line(&mut url).unwrap();
        assert!(url.starts_with("https://"), "tests/oauth-server: {url:?}");
        let answers = Arc::new(Mutex::new(Vec::new()));
        let into = answers.clone();
        thread::spawn(move || {
            out.lines().map_while(Result::ok).for_each(|line| into.lock().unwrap().push(line))
        });
        let input = child.stdin.take().unwrap();
        OauthServer { url: url.trim().into(), child, _input: input, answers }
    }
    fn port(&self) -> String {
        self.url.split([':', '/']).nth(4).unwrap().into()
    }
    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for OauthServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Fails when a token is not fetched as RFC 6749 requires, or fetched again for each connection; when the agent does
/// not wait for a server that is down, mute, busy or answers nonsense, does not say so, or shows a secret.
#[test]
fn tokens_from_a_server() {
    let broker = Broker::own_secure(Version::V44, &["connections.max.reauth.ms=4000"]);
    let (folder, topic) = (Folder::new(), broker.topic(1));
    broker.allow(ALICE, &topic);
    let secret = folder.write("secret", "box-secret\n");
    let server = OauthServer::start(&broker, "");
    let (url, port) = (server.url.clone(), server.port());
    let mode = |mode: &str| fs::write(broker.dir().join("mode"), mode).unwrap();
    let good = from_url(&broker, &url, "ca.crt", &secret);
    let (setup, first) = agent_of(&folder, "first", &broker, &topic, &good);
    let mut agent = setup.start();
    topic.wait_count(100);
    pause(secs(5)); // the session ends
    let more = Lines::new("first", 100..200);
    more.append_to(&folder.path("first.log"));
    topic.wait_count(200);
    assert_eq!(*server.answers.lock().unwrap(), ["200 "], "asked once for all connections");
    agent.stop().expect_code(0);
    server.signal(rustix::process::Signal::STOP);
    let (setup, slow) = agent_of(&folder, "slow", &broker, &topic, &good);
    let mut agent = setup.start();
    pause(secs(3));
    server.signal(rustix::process::Signal::CONT);
    topic.wait_count(300);
    let done = agent.stop().expect_code(0);
    assert!(!done.stderr.contains("down"), "{}", done.stderr);
    let mut all = vec![first, more, slow];
    let mut agents = Vec::new();
    let mut begin = |name: &'static str, security: &str, said: &str| {
        let (setup, lines) = agent_of(&folder, name, &broker, &topic, security);
        all.push(lines);
        let agent = setup.start();
        let line = agent.wait_log(said, secs(30));
        assert!(line.contains(&format!("no token from {url}: ")), "{line}");
        agents.push(agent);
    };
    for (answer, said) in
        [("nonsense", "holds no access_token; "), ("busy", "HTTP 503"), ("failed", "HTTP 500")]
    {
        mode(answer);
        begin(answer, &good, said);
    }
    mode("");
    let wrong = folder.write("wrong", "not-it");
    begin(
        "secret",
        &from_url(&broker, &url, "ca.crt", &wrong),
        "it answers HTTP 401, invalid_client: unknown; set client_id",
    );
    begin("ca", &from_url(&broker, &url, "other-ca.crt", &secret), "; set token_ca in [kafka.sasl]");
    folder.write("wrong", "box-secret"); // read again for each request
    server.signal(rustix::process::Signal::STOP);
    begin("mute", &good, "the TLS handshake did not finish within");
    drop(server);
    begin("down", &good, "connection refused");
    let _server = OauthServer::start(&broker, &port);
    fs::copy(broker.key("ca.crt"), broker.key("other-ca.crt")).unwrap();
    topic.wait_count(all.iter().map(|lines| lines.count() as u64).sum());
    for agent in &mut agents {
        let done = agent.stop().expect_code(0);
        for secret in ["box-secret", "not-it", "Basic ", "Bearer "] {
            assert!(!done.stderr.contains(secret), "{}", done.stderr);
        }
    }
    Delivered::in_topic(&topic).assert_exactly_once(&all.iter().collect::<Vec<_>>());
}

/// The machine's clock is an hour ahead. Fails when a fetched token's lifetime is measured by it, or when a token in a
/// file that seems to have expired is not explained.
#[test]
fn a_clock_that_is_an_hour_ahead() {
    need("faketime");
    let broker = Broker::secure(Version::V44);
    let (folder, topic) = (Folder::new(), broker.topic(1));
    broker.allow(ALICE, &topic);
    let library = Command::new("faketime").args(["-f", "+1h", "printenv", "LD_PRELOAD"]).output().unwrap();
    let library = String::from_utf8(library.stdout).unwrap();
    let ahead = |setup: Setup| {
        let setup = setup.dynamic().env("LD_PRELOAD", library.trim()).env("FAKETIME", "+1h");
        setup.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").start()
    };
    let server = OauthServer::start(broker, "");
    let secret = folder.write("secret", "box-secret");
    let (fetching, f) =
        agent_of(&folder, "f", broker, &topic, &from_url(broker, &server.url, "ca.crt", &secret));
    let file = put(&folder, "token", &token(broker, &claims(ALICE, 0, 3600)));
    let (reading, r) = agent_of(&folder, "r", broker, &topic, &from_file(broker, &file));
    let (mut fetching, mut reading) = (ahead(fetching), ahead(reading));
    reading.wait_log("; renew it earlier, or set the clock", SOON);
    topic.wait_count(100);
    put(&folder, "token", &token(broker, &claims(ALICE, 0, 7200)));
    topic.wait_count(200);
    fetching.stop().expect_code(0);
    reading.stop().expect_code(0);
    Delivered::in_topic(&topic).assert_exactly_once(&[&f, &r]);
}

/// Fails when the step for the token, or the one for the login, does not say what is wrong.
#[test]
fn check_connect_explains_tokens() {
    let broker = Broker::secure(Version::V44);
    let folder = Folder::new();
    let address = broker.listener("oauth");
    let check = |token: &str, code: i32| {
        let security = from_file(broker, &put(&folder, "token", token));
        let config = config(&folder, "c", &address, "t", "auto", &security);
        let done = folder.agent(["check", "--connect", "-c"]).arg(&config).run_for(PATIENT).expect_code(code);
        String::from_utf8(done.stdout).unwrap()
    };
    let expired = check(&token(broker, &claims(ALICE, -7200, 3600)), 1);
    assert!(expired.contains("failed   token"), "{expired}");
    assert!(!expired.contains("SASL OAUTHBEARER"), "{expired}");
    let stranger = check(&signed(&broker.key("stranger-jwt.key"), &claims(ALICE, 0, 3600)), 1);
    assert!(stranger.contains("ok       token"), "{stranger}");
    assert!(stranger.contains("failed   SASL OAUTHBEARER"), "{stranger}");
    assert!(stranger.contains("invalid_token"), "{stranger}");
}
