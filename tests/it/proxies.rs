//! Brokers behind a proxy: tinyproxy (CONNECT) and microsocks (SOCKS 5), with and without a password, killed and mute.
//! What scripted proxies answer is in unit tests.

use crate::harness::*;
use crate::oauth::{ALICE, OauthServer, from_url};
use crate::security::{PASSWORD as ALICES, sasl, tls};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

const USER: &str = "edge";
const PASSWORD: &str = "proxy-secret";
/// An address that is not in the test certificates, which are for 127.0.0.1 and localhost.
const HOST: &str = "127.0.0.2";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tinyproxy,
    Microsocks,
}

/// A proxy on a port of its own. Killed when dropped.
struct Running {
    kind: Kind,
    /// Whether it asks for [`USER`] and [`PASSWORD`].
    login: bool,
    port: u16,
    folder: Folder,
    child: Option<Child>,
}

impl Running {
    fn start(kind: Kind, login: bool) -> Running {
        let port = TcpListener::bind((HOST, 0)).unwrap().local_addr().unwrap().port();
        let mut proxy = Running { kind, login, port, folder: Folder::new(), child: None };
        proxy.restart();
        proxy
    }

    /// With a port of its own, but not running.
    fn stopped(kind: Kind, login: bool) -> Running {
        let mut proxy = Running::start(kind, login);
        proxy.kill();
        proxy
    }

    /// Starts it on its port; returns when it accepts connections.
    fn restart(&mut self) {
        let mut command = match self.kind {
            Kind::Tinyproxy => {
                let login = if self.login { format!("BasicAuth {USER} {PASSWORD}\n") } else { String::new() };
                let text = format!("Port {}\nListen {HOST}\nTimeout 600\nMaxClients 50\n{login}", self.port);
                let mut command = Command::new("tinyproxy");
                command.args(["-d", "-c"]).arg(self.folder.write("tinyproxy.conf", text));
                command
            }
            Kind::Microsocks => {
                let mut command = Command::new("microsocks");
                command.args(["-i", HOST, "-p", &self.port.to_string()]);
                if self.login {
                    command.args(["-u", USER, "-P", PASSWORD]);
                }
                command
            }
        };
        need(command.get_program().to_str().unwrap());
        self.child = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let port = self.port;
        wait_until(SOON, "the proxy listens", || connect(HOST, port).is_ok());
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().unwrap().id() as i32;
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The keys of `[kafka]`.
    fn keys(&self, folder: &Folder, password: &str) -> String {
        let scheme = if self.kind == Kind::Tinyproxy { "http" } else { "socks5h" };
        if !self.login {
            return format!("proxy = \"{scheme}://{HOST}:{}\"\n", self.port);
        }
        let file = folder.write("proxy-password", format!("{password}\n"));
        format!("proxy = \"{scheme}://{USER}@{HOST}:{}\"\nproxy_password_file = {file:?}\n", self.port)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn connect(host: &str, port: u16) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&format!("{host}:{port}").parse().unwrap(), secs(5))
}

const ALL: [(Kind, bool); 4] =
    [(Kind::Tinyproxy, false), (Kind::Tinyproxy, true), (Kind::Microsocks, false), (Kind::Microsocks, true)];

/// TLS and SASL run inside the tunnel. Fails when the certificate is checked against the proxy's name, when a login is sent wrongly, or when `check --connect` has no step for the proxy.
#[test]
fn each_proxy_delivers_every_line_once() {
    let broker = Broker::secure(Version::V39);
    let lines = Lines::new("f", 0..20_000);
    for (kind, login) in ALL {
        let proxy = Running::start(kind, login);
        let (folder, topic) = (Folder::new(), broker.topic(2));
        broker.allow("alice", &topic);
        folder.write("f.log", lines.bytes());
        let security = format!("{}{}", tls(broker), sasl(&folder, "PLAIN", ALICES));
        let kafka = proxy.keys(&folder, PASSWORD) + &security;
        folder.write_config(&broker.listener("sasltls"), &topic.name, &kafka);
        let checked = folder.agent_line("check --connect -c c.toml").run_for(PATIENT).expect_code(0);
        let said = String::from_utf8(checked.stdout).unwrap();
        assert!(said.contains("ok       proxy (") && said.contains(" connects to 127.0.0.1:"), "{said}");
        let done = folder.agent_line("run -c c.toml --once").run_for(PATIENT).expect_code(0);
        assert_eq!(done.stderr.matches("WARN").count(), 0, "{kind:?}, {login}: {}", done.stderr);
        Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
    }
}

/// How long delivery may take to resume once the proxy is back.
const BACK: std::time::Duration = secs(5);

/// 100 lines/s while the proxy is killed, returns mute, and falls mute again; delivery resumes within 5 s each time, and
/// every line is stored once.
#[track_caller]
fn comes_and_goes(kind: Kind, login: bool) {
    let broker = Broker::shared(Version::V39);
    let mut proxy = Running::start(kind, login);
    let (folder, topic) = (Folder::new(), broker.topic(1));
    folder.write_config(&broker.address, &topic.name, &proxy.keys(&folder, PASSWORD));
    let mut agent = folder.agent_line("run -c c.toml").start();
    let writer = Writer::steady(folder.path("f.log"), "f", 100);
    topic.wait_count(200);
    let resumes = |proxy: &Running, after: &str| {
        let (stored, from) = (topic.end_offsets(), Instant::now());
        proxy.signal(Signal::CONT);
        wait_until(PATIENT, "lines arrive again", || topic.end_offsets() > stored);
        let took = from.elapsed();
        println!("{kind:?}, login {login}: lines arrive {took:?} after {after}");
        assert!(took < BACK, "{kind:?}, login {login}: {took:?} after {after}");
    };
    // Meanwhile no new connection succeeds.
    proxy.kill();
    pause(secs(20));
    proxy.restart();
    resumes(&proxy, "a restart");
    // They are accepted by the kernel, and nothing answers.
    proxy.kill();
    pause(secs(2));
    proxy.restart();
    proxy.signal(Signal::STOP);
    pause(secs(20));
    resumes(&proxy, "mute from its start");
    proxy.signal(Signal::STOP);
    pause(secs(15));
    resumes(&proxy, "mute with connections");
    let lines = writer.finish();
    topic.wait_count(lines.count() as u64);
    let done = agent.stop().expect_code(0);
    assert!(!done.stderr.contains(PASSWORD), "{}", done.stderr);
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
}

/// Fails when a dialer waits for a mute proxy without limit, or waits grow above 5 s.
#[test]
fn proxies_that_fail_and_return() {
    thread::scope(|scope| {
        for (kind, login) in ALL {
            scope.spawn(move || comes_and_goes(kind, login));
        }
    });
}

/// Fails when a token is requested without the proxy, when its certificate is checked against the proxy's name, or when
/// a proxy that is down or allows only the broker is not named, or loses lines.
#[test]
fn tokens_come_through_the_proxy() {
    let broker = Broker::secure(Version::V44);
    let (server, secret) = (OauthServer::start(broker, ""), Folder::new());
    let sasl = from_url(broker, &server.url, "ca.crt", &secret.write("secret", "box-secret\n"));
    let lines = Lines::new("f", 0..1000);
    for (kind, login) in ALL {
        let mut proxy = Running::stopped(kind, login);
        let (folder, topic) = (Folder::new(), broker.topic(1));
        broker.allow(ALICE, &topic);
        folder.write("f.log", lines.bytes());
        let kafka = proxy.keys(&folder, PASSWORD) + &sasl;
        folder.write_config(&broker.listener("oauth"), &topic.name, &kafka);
        let mut agent = folder.agent_line("run -c c.toml").start();
        let line = agent.wait_log(&format!("no token from {}: proxy ", server.url), SOON);
        assert!(line.contains("connection refused"), "{line}");
        pause(secs(10));
        proxy.restart();
        let from = Instant::now();
        topic.wait_count(1000);
        let took = from.elapsed();
        println!("{kind:?}, login {login}: lines arrive {took:?} after the proxy's return");
        assert!(took < BACK, "{kind:?}, login {login}: {took:?}");
        agent.stop().expect_code(0);
        Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
    }
    let (port, asked) = proxy_that_knows_all_names();
    let (folder, topic) = (Folder::new(), broker.topic(1));
    let kafka = format!("proxy = \"http://localhost:{port}\"\n{sasl}");
    folder.write_config(&broker.listener("oauth"), &topic.name, &kafka);
    folder.agent_line("check --connect -c c.toml").run_for(PATIENT);
    let address = server.url.split('/').nth(2).unwrap();
    assert!(asked.lock().unwrap().iter().any(|target| target == address), "{asked:?}");
}

/// Fails when a wrong or missing password, or a server that is not a proxy, is not reported in a clear line, when a
/// password gets into a log, or when the steps of `check --connect` do not show where it fails.
#[test]
fn wrong_configs_say_what_to_do() {
    let broker = Broker::shared(Version::V39);
    let topic = broker.topic(1);
    let (tiny, micro) = (Running::start(Kind::Tinyproxy, true), Running::start(Kind::Microsocks, true));
    let none = "proxy = \"http://127.0.0.1:1\"".to_owned();
    let folder = Folder::new();
    let open = |proxy: &Running, scheme: &str| format!("proxy = \"{scheme}://{HOST}:{}\"", proxy.port);
    folder.write("f.log", "a line\n");
    for (kafka, step, said) in [
        (tiny.keys(&folder, "wrong-secret"), "proxy", "401 Unauthorized"),
        (micro.keys(&folder, "wrong-secret"), "proxy", "refuses user edge with this password; correct"),
        (open(&tiny, "http"), "proxy", "407 Proxy Authentication Required; name the user in `proxy`"),
        (open(&micro, "socks5h"), "proxy", "asks for a user name; name the user in `proxy`"),
        (open(&micro, "http"), "proxy", "does not answer like a proxy for HTTP; correct scheme"),
        // A broker waits for the rest of a request.
        (format!("proxy = \"socks5h://{}\"", broker.address), "proxy", "no answer in "),
        (none, "TCP 127.0.0.1:1", "connection refused; start the proxy there"),
    ] {
        folder.write_config(&broker.address, &topic.name, &kafka);
        let done = folder.agent_line("check --connect -c c.toml").run_for(PATIENT).expect_code(1);
        let text = String::from_utf8(done.stdout).unwrap();
        let failed = text.lines().find(|line| line.starts_with("failed")).unwrap_or_default();
        assert!(failed.starts_with(&format!("failed   {step}")) && failed.contains(said), "{said}: {text}");
        let mut agent = folder.agent_line("run -c c.toml").start();
        let line = agent.wait_log("bootstrap brokers down", SOON);
        let why = said.split("; start").next().unwrap();
        assert!(line.contains(why), "{why}: {line}");
        let done = agent.stop().expect_code(0);
        assert!(!(done.stderr + &text).contains("wrong-secret"));
    }
    // The password file belongs to the first of these, and is not read by the others.
    assert!(fs::read_to_string(folder.path("proxy-password")).is_ok());
}

/// Fails when the classic driver would bypass the proxy, or a password in a URL is shown.
#[test]
fn refused_at_start() {
    let folder = Folder::new();
    for (kafka, said) in [
        ("driver = \"classic\"\nproxy = \"http://p:1\"", "does not support a proxy; write driver = \"auto\""),
        ("proxy = \"http://edge:hidden-1@p:1\"", "contains a password"),
        ("proxy = \"edge:hidden-1@p\"", "contains a password"),
        ("proxy = \"http://edge@p:1\"", "set proxy_password_file"),
        ("proxy = \"http://p:1\"\nproxy_password_file = \"/p\"", "without a user"),
        ("proxy = \"https://p:1\"", "a proxy URL begins with http:// or socks5h://"),
        (
            "proxy = \"http://p:1\"\n[kafka.tls]\n[kafka.sasl]\nmechanism = \"OAUTHBEARER\"\nclient_id = \"c\"\n\
             client_secret_file = \"/s\"\ntoken_url = \"http://localhost/t\"",
            "`token_url` without TLS would send the client's secret in the clear",
        ),
        (
            "proxy = \"http://p:1\"\n[kafka.sasl]\nmechanism = \"PLAIN\"\nusername = \"u\"\npassword_file = \"/p\"",
            "PLAIN without TLS would send the password in the clear",
        ),
    ] {
        folder.write_config("localhost:9092", "t", kafka);
        for command in ["run", "check", "check --show"] {
            let done = folder.agent_line(&format!("{command} -c c.toml")).run().expect_code(78);
            assert!(
                done.stderr.contains(said) && !done.stderr.contains("hidden"),
                "{kafka}: {}",
                done.stderr
            );
            assert!(done.stdout.is_empty());
        }
    }
}

/// A CONNECT proxy that resolves every host name to this machine. Returns its port, and a list of the requests to it.
fn proxy_that_knows_all_names() -> (u16, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let list = asked.clone();
    (listen(move |client| serve(client, &list)).port(), asked)
}

fn serve(mut client: TcpStream, list: &Mutex<Vec<String>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap().to_owned();
    let port: u16 = target.rsplit_once(':').unwrap().1.parse().unwrap();
    list.lock().unwrap().push(target);
    let broker = connect("127.0.0.1", port).unwrap();
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    forward(&client, &broker);
}

/// Fails when a broker's name is resolved here, where it does not exist, or a broker learned from metadata is reached
/// without the proxy; for `run`, `send` and `check --connect`.
#[test]
fn the_proxy_resolves_the_names_of_all_brokers() {
    let kafka = Scripted::start(2);
    kafka.topic("t", &[0]);
    kafka.lead("t", 0, 2);
    let (port, asked) = proxy_that_knows_all_names();
    let folder = Folder::new();
    folder.write("f.log", "a line\n");
    let first = format!("kafka.invalid:{}", kafka.node_address(1).port());
    folder.write_config(&first, "t", &format!("proxy = \"http://127.0.0.1:{port}\""));
    let leader = kafka.node_address(2).to_string();
    for command in ["run --once -c c.toml", "send -c c.toml word", "check --connect -c c.toml"] {
        asked.lock().unwrap().clear();
        folder.agent_line(command).run_for(PATIENT).expect_code(0);
        let asked = asked.lock().unwrap().clone();
        assert!(asked.contains(&first) && asked.contains(&leader), "{command}: {asked:?}");
    }
    assert_eq!(kafka.stored("t").len(), 2);
}
