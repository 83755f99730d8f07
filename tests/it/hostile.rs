//! Hostile peers, with every driver: whatever arrives from the network, the agent stays alive, small and idle, logs
//! what is wrong, and stops when asked to. Errors of real brokers are in `security.rs`.

use crate::harness::*;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Malformed replies by name, and whether each shows at once.
fn malformed_replies() -> Vec<(&'static str, Reply, bool)> {
    let noise: Vec<u8> = (0u32..1 << 16).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 | 1).collect();
    let http = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec();
    vec![
        ("2 GiB", Reply::Raw([&[0x7f, 0xff, 0xff, 0xff][..], &[0; 64]].concat()), true),
        ("negative", Reply::Raw([&[0xff; 4][..], &[0; 64]].concat()), true),
        ("a count that does not fit", Reply::Body(vec![0x7f; 40]), true),
        ("half", Reply::Half, true),
        ("http", Reply::Raw(http), true),
        ("tls alert", Reply::Raw(vec![0x15, 3, 3, 0, 2, 2, 0x46]), true),
        ("another's answer", Reply::Correlation(1), true),
        ("noise", Reply::Raw(noise), true),
        ("mute", Reply::Mute, false),
        ("a byte a second", Reply::Drip, false),
        ("closed", Reply::Close, true),
        ("half, and mute", Reply::Raw(vec![0, 0, 0, 100, 0, 0]), false),
        ("a frame as large as may be", Reply::Raw([&[0, 0x10, 0, 0][..], &[0x55; 1 << 20]].concat()), true),
    ]
}

/// Starts an agent on this broker with a config of its own. Modern authenticates, so that SASL answers can be
/// malformed too.
fn starts(folder: &Folder, n: usize, broker: &str, driver: &str, more: &str) -> Agent {
    set_up(folder, n, broker, driver, more).start()
}

fn set_up(folder: &Folder, n: usize, broker: &str, driver: &str, more: &str) -> Setup {
    let config = format!(
        "[agent]\nstate_dir = {:?}\ndrain_timeout = \"1s\"\n[kafka]\nbrokers = [{broker:?}]\ntopic = \"t\"\n\
         driver = {driver:?}\n{more}\n[[files]]\npaths = [{:?}]\nstart = \"beginning\"\n",
        folder.path(format!("state-{n}")),
        folder.path("f.log"),
    );
    let config = folder.write(&format!("{n}.toml"), config);
    folder.agent(["run", "-c"]).arg(config)
}

/// What every agent must show after some seconds with a hostile peer: alive, small, idle, and stopped on request.
#[track_caller]
fn survives(what: &str, agent: &mut Agent) -> Done {
    survives_within(what, agent, millis(500))
}

#[track_caller]
fn survives_within(what: &str, agent: &mut Agent, cpu: Duration) -> Done {
    assert!(agent.ended().is_none(), "{what}: it exited\n{}", agent.log());
    let asked = Instant::now();
    let done = agent.stop().expect_code(0);
    assert!(asked.elapsed() < secs(4), "{what}: {:?} to exit", asked.elapsed());
    // Panics of the kafka crate are caught and handled as an outage.
    assert!(!done.stderr.contains("panic in"), "{what}: {}", done.stderr);
    assert!(done.vm_hwm < 24_000, "{what}: {} KiB resident", done.vm_hwm);
    assert!(done.cpu < cpu, "{what}: {:?} of processor time in {:?}", done.cpu, done.took);
    done
}

/// Exposes a dozen agents at a time to the malformed replies to one kind of request.
#[track_caller]
fn expose_to(driver: &str, at: Api) {
    let folder = Folder::new();
    folder.write("f.log", "one\ntwo\n");
    let sasl = match at {
        Api::SaslHandshake | Api::SaslAuthenticate => {
            let password = folder.write("password", "p");
            format!("sasl = {{ mechanism = \"PLAIN\", username = \"u\", password_file = {password:?} }}")
        }
        _ => String::new(),
    };
    let mut all = Vec::new();
    for (n, (lie, reply, shows)) in malformed_replies().into_iter().enumerate() {
        let kafka = Scripted::start(1);
        kafka.topic("t", &[0]);
        kafka.script(move |r| if r.api == at { reply.clone() } else { Reply::Default });
        let agent = starts(&folder, n, &kafka.address(), driver, &sasl);
        all.push((lie, shows, kafka, agent));
    }
    pause(secs(6));
    for (lie, shows, kafka, mut agent) in all {
        let what = format!("{driver}, {at:?}, {lie}");
        assert!(kafka.count(at) > 0, "{what}: no such request was sent");
        let done = survives(&what, &mut agent);
        // Classic takes a peer that closes on ApiVersions for Kafka 0.9, and reads no correlation ids (D1): then it
        // just starts working.
        let said = done.stderr.contains(" WARN ") || kafka.stored("t").len() >= 2;
        assert!(!shows || said, "{what}: nothing is logged\n{}", done.stderr);
    }
}

/// A peer that speaks no Kafka: sends this to every client at this pace, then waits.
fn unsolicited(says: Vec<u8>, pace: Option<Duration>) -> SocketAddr {
    listen(move |mut stream| {
        if stream.read(&mut [0; 4096]).is_err() {
            return;
        }
        for bytes in says.chunks(if pace.is_some() { 1 } else { 1 << 16 }) {
            if stream.write_all(bytes).is_err() {
                return;
            }
            pace.into_iter().for_each(pause);
        }
        ignore(stream);
    })
}

/// What a peer does with a connection before it has received anything.
#[derive(Clone, Copy)]
enum First {
    Says(&'static [u8]),
    /// Sends the same bytes endlessly, as fast as it can.
    Floods(&'static [u8]),
    Closes,
    /// Resets the connection.
    Resets,
}

fn speaks_first(how: First) -> SocketAddr {
    listen(move |mut stream| match how {
        First::Says(bytes) => {
            let _ = stream.write_all(bytes);
            ignore(stream);
        }
        First::Floods(bytes) => while stream.write_all(&bytes.repeat(1000)).is_ok() {},
        First::Closes => {}
        First::Resets => {
            let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
        }
    })
}

/// Fails when unsolicited bytes are buffered, answered, or taken for an answer, or when a loop never pauses.
#[test]
fn peers_that_speak_first() {
    let firsts = [
        ("a banner", First::Says(b"SSH-2.0-OpenSSH_9.6\r\n")),
        ("an answer", First::Says(b"\0\0\0\x0a\0\0\0\x01\0\0\0\0\0\0")),
        ("answers without end", First::Floods(b"\0\0\0\x0a\0\0\0\x01\0\0\0\0\0\0")),
        ("zeros without end", First::Floods(&[0; 64])),
        ("noise without end", First::Floods(b"\0\x0f\xff\xff logagent ")),
        ("closed", First::Closes),
        ("reset", First::Resets),
    ];
    let folder = Folder::new();
    folder.write("f.log", "one\n");
    let mut all = Vec::new();
    for driver in ["classic", "modern", "auto"] {
        for (what, first) in firsts {
            let broker = speaks_first(first).to_string();
            all.push((driver, what, starts(&folder, all.len(), &broker, driver, "")));
        }
    }
    pause(secs(10));
    for (driver, what, mut agent) in all {
        let done = survives(&format!("{driver}, {what}"), &mut agent);
        assert!(done.stderr.contains(" WARN "), "{driver}, {what}: nothing is logged\n{}", done.stderr);
    }
}

/// A cluster as large as an answer can describe, of which only the first broker exists. Fails when each broker or
/// partition costs a thread or a connection of its own, or memory without a limit.
#[test]
fn cluster_of_mostly_dead_brokers() {
    let folder = Folder::new();
    folder.write("f.log", Lines::new("f", 0..2000).bytes());
    let part = optimized(1, 8);
    let mut all = Vec::new();
    for (driver, partitions) in
        [("classic", 20_000 / part), ("modern", 35_000 / part), ("auto", 20_000 / part)]
    {
        let kafka = Scripted::start(1);
        let first = kafka.node_address(1).to_string();
        kafka.invent(1900);
        kafka.topic("t", &(0..partitions).collect::<Vec<_>>());
        let agent = starts(&folder, all.len(), &first, driver, "");
        all.push((driver, kafka, agent));
    }
    pause(secs(10));
    for (driver, kafka, mut agent) in all {
        assert!(kafka.count(Api::Metadata) > 0, "{driver}");
        assert!(agent.threads() < 100, "{driver}: {} threads", agent.threads());
        // Modern scans all partitions once for each broker that turns out to be down: that much CPU, and then no
        // more.
        let done = survives_within(driver, &mut agent, secs(3));
        println!("{driver}: {} KiB, {:?}, {} stored", done.vm_hwm, done.cpu, kafka.stored("t").len());
    }
}

/// Fails when the TLS handshake has no timeout, when a peer without TLS is not reported as such, or when a large
/// record takes memory.
#[test]
fn tls_by_modern() {
    let hello = [&[0x16, 3, 3, 0x40, 0, 2, 0, 0x3f, 0xfc, 3, 3][..], &[7; 3000]].concat();
    let cases = [
        ("http", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), None, "does not speak TLS"),
        ("kafka", [&[0, 0, 0, 40][..], &[0; 40]].concat(), None, "does not speak TLS"),
        ("alert", vec![0x15, 3, 3, 0, 2, 2, 0x28], None, "refuses the handshake"),
        ("half a hello", hello.clone(), None, ""),
        ("a hello, a byte a second", hello, Some(secs(1)), ""),
        ("an endless record", [&[0x16, 3, 3, 0xff, 0xff][..], &[0; 1 << 20]].concat(), None, "TLS"),
        ("mute", Vec::new(), None, ""),
    ];
    let folder = Folder::new();
    folder.write("f.log", "one\n");
    let mut all = Vec::new();
    for (n, (lie, says, pace, said)) in cases.into_iter().enumerate() {
        let broker = unsolicited(says, pace).to_string();
        all.push((lie, said, starts(&folder, n, &broker, "auto", "[kafka.tls]")));
    }
    pause(secs(6));
    for (lie, said, mut agent) in all {
        assert!(said.is_empty() || agent.log().contains(said), "{lie}: {}", agent.log());
        survives_within(lie, &mut agent, millis(1000));
    }
}

/// Fails when a length or count is trusted before it is checked, a wait has no timeout, or a loop never pauses.
#[test]
fn versions_by_classic() {
    expose_to("classic", Api::ApiVersions);
}
#[test]
fn versions_by_modern() {
    expose_to("modern", Api::ApiVersions);
}
#[test]
fn versions_by_auto() {
    expose_to("auto", Api::ApiVersions);
}
#[test]
fn producer_id_by_modern() {
    expose_to("modern", Api::InitProducerId);
}
#[test]
fn sasl_handshake_by_modern() {
    expose_to("modern", Api::SaslHandshake);
}
#[test]
fn sasl_authenticate_by_modern() {
    expose_to("modern", Api::SaslAuthenticate);
}
#[test]
fn metadata_by_classic() {
    expose_to("classic", Api::Metadata);
}
#[test]
fn metadata_by_modern() {
    expose_to("modern", Api::Metadata);
}
#[test]
fn metadata_by_auto() {
    expose_to("auto", Api::Metadata);
}
#[test]
fn produce_by_classic() {
    expose_to("classic", Api::Produce);
}
#[test]
fn produce_by_modern() {
    expose_to("modern", Api::Produce);
}
#[test]
fn produce_by_auto() {
    expose_to("auto", Api::Produce);
}

/// With limited address space. Fails when the `kafka` crate allocates as much as a broker announces: that aborts the
/// process.
#[test]
fn impossible_lengths_by_classic() {
    let folder = Folder::new();
    folder.write("f.log", "one\ntwo\n");
    let frame = |bytes: &[u8]| Reply::Raw([&0x7fff_ffffi32.to_be_bytes()[..], bytes].concat());
    let count = |bytes: &[i32]| Reply::Body(bytes.iter().flat_map(|n| n.to_be_bytes()).collect());
    for (n, (api, lie)) in [
        (Api::Metadata, frame(&[0; 64])),
        (Api::Metadata, count(&[i32::MAX, 0, 0])),
        (Api::Metadata, count(&[0, i32::MAX, 0])),
        (Api::Produce, frame(&[0; 64])),
        (Api::Produce, count(&[i32::MAX, 0, 0])),
    ]
    .into_iter()
    .enumerate()
    {
        let kafka = Scripted::start(1);
        kafka.topic("t", &[0]);
        // Version 0 is the crate's request: our own uses another version.
        let reply = lie.clone();
        kafka.script(move |r| if r.api == api && r.version == 0 { reply.clone() } else { Reply::Default });
        let bounded = ["sh", "-c", "ulimit -v 600000; exec \"$@\"", "sh"];
        let mut agent = set_up(&folder, n, &kafka.address(), "classic", "").wrapped_in(bounded).start();
        wait_until(SOON, "the request was answered", || {
            kafka.requests().iter().any(|r| r.api == api && r.version == 0)
        });
        agent.wait_log("an answer of an impossible length", SOON);
        survives(&format!("{api:?} {lie:?}"), &mut agent);
    }
}

/// The first of two configured brokers accepts connections and never answers, or only the question for its versions. Fails
/// when delivery waits for the whole time limit of that broker, once or several times.
#[test]
fn a_mute_broker_does_not_keep_the_others_waiting() {
    let all_mute = Scripted::start(1);
    all_mute.script(|_| Reply::Mute);
    let half_mute = Scripted::start(1);
    half_mute.script(|r| if r.api == Api::Metadata { Reply::Mute } else { Reply::Default });
    let rows = [
        (&all_mute, "modern"),
        (&all_mute, "classic"),
        (&all_mute, "auto"),
        (&half_mute, "modern"),
        (&half_mute, "classic"),
        (&half_mute, "auto"),
    ];
    for (mute, driver) in rows {
        let broker = Scripted::start(1);
        broker.topic("t", &[0]);
        let folder = Folder::new();
        folder.write("f.log", "one\n");
        let brokers = format!("{}\", \"{}", mute.address(), broker.address());
        let config = format!(
            "[agent]\nstate_dir = {:?}\n[kafka]\nbrokers = [\"{brokers}\"]\ntopic = \"t\"\ndriver = {driver:?}\n\
             [[files]]\npaths = [{:?}]\nstart = \"beginning\"\n",
            folder.path("state"),
            folder.path("f.log"),
        );
        folder.write("c.toml", config);
        let begun = Instant::now();
        let _agent = folder.agent_line("run -c c.toml").start();
        wait_until(secs(60), "the line", || broker.stored("t").len() == 1);
        assert!(begun.elapsed() < secs(8), "{driver}: {:?}", begun.elapsed());
    }
}

/// A name with two addresses at a port, for `/etc/hosts` of an agent: the first is this peer's, the second leads to the
/// broker. Both differ from 127.0.0.1 in as many bits, so that no resolver sorts them.
fn second_address_works(broker: &Scripted, first: fn(TcpStream)) -> u16 {
    let behind: SocketAddr = broker.address().parse().unwrap();
    let bad = TcpListener::bind("127.0.0.2:0").unwrap();
    let port = bad.local_addr().unwrap().port();
    let good = TcpListener::bind(("127.0.0.3", port)).unwrap();
    std::thread::spawn(move || accept_while(&bad, || true, |s| drop(std::thread::spawn(move || first(s)))));
    std::thread::spawn(move || {
        accept_while(
            &good,
            || true,
            |client| {
                let broker = TcpStream::connect_timeout(&behind, secs(5));
                std::thread::spawn(move || broker.map(|broker| forward(&client, &broker)));
            },
        );
    });
    port
}

/// One name, several addresses, as for a bootstrap service. Fails when a peer that accepts connections but does not answer,
/// or closes them, is tried at each attempt instead of the name's other address, or is taken for Kafka 0.9.
#[test]
fn a_bad_address_of_a_name_does_not_hide_the_others() {
    need("unshare");
    let closes: fn(TcpStream) = |mut stream| drop(stream.read(&mut [0; 100]));
    let rows = [(ignore as fn(TcpStream), "modern"), (ignore, "auto"), (closes, "modern"), (closes, "auto")];
    let all = rows.map(|(first, driver)| {
        let (broker, folder) = (Scripted::start(1), Folder::new());
        broker.topic("t", &[0]);
        folder.write("f.log", "one\n");
        folder.write("hosts", "127.0.0.2 kafka.test\n127.0.0.3 kafka.test\n");
        let brokers = format!("kafka.test:{}", second_address_works(&broker, first));
        folder.write_config(&brokers, "t", &format!("driver = {driver:?}"));
        let shell = "mount --bind hosts /etc/hosts && exec \"$@\"";
        let namespaces = ["unshare", "--map-root-user", "--mount", "sh", "-c", shell, "sh"];
        let agent = folder.agent_line("run -c c.toml").wrapped_in(namespaces).start();
        (broker, folder, agent, driver)
    });
    for (broker, _folder, agent, driver) in &all {
        wait_until(secs(40), driver, || broker.stored("t").len() == 1);
        assert!(!agent.log().contains("driver classic"), "{}", agent.log());
    }
}
