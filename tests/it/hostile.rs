//! Peers that lie, with every driver: whatever comes from the network, the agent lives, stays small and idle, says what is
//! wrong, and ends when it is told to. What real brokers refuse is in `security.rs`.

use crate::harness::*;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

/// How each lie is told, and whether it is one that shows at once.
fn lies() -> Vec<(&'static str, Reply, bool)> {
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

/// Starts an agent on this broker; its config is written for it. Modern authenticates, so that there are lies about that.
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

/// What every agent must hold after some seconds with a peer that lies: alive, small, idle, and gone when told.
#[track_caller]
fn lives(what: &str, agent: &mut Agent) -> Done {
    lives_on(what, agent, millis(500))
}

#[track_caller]
fn lives_on(what: &str, agent: &mut Agent, cpu: Duration) -> Done {
    assert!(agent.ended().is_none(), "{what}: it ended\n{}", agent.log());
    let told = Instant::now();
    let done = agent.stop().expect_code(0);
    assert!(told.elapsed() < secs(4), "{what}: {:?} to end", told.elapsed());
    // Those of the kafka crate are caught, and are an outage like any other.
    assert!(!done.stderr.contains("panic in"), "{what}: {}", done.stderr);
    assert!(done.vm_hwm < 24_000, "{what}: {} KiB resident", done.vm_hwm);
    assert!(done.cpu < cpu, "{what}: {:?} of processor time in {:?}", done.cpu, done.took);
    done
}

/// Lets a dozen agents at a time meet the lies in one kind of answer.
#[track_caller]
fn meets(driver: &str, at: Api) {
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
    for (n, (lie, reply, shows)) in lies().into_iter().enumerate() {
        let kafka = Scripted::start(1);
        kafka.topic("t", &[0]);
        kafka.script(move |r| if r.api == at { reply.clone() } else { Reply::Default });
        let agent = starts(&folder, n, &kafka.address(), driver, &sasl);
        all.push((lie, shows, kafka, agent));
    }
    pause(secs(6));
    for (lie, shows, kafka, mut agent) in all {
        let what = format!("{driver}, {at:?}, {lie}");
        assert!(kafka.count(at) > 0, "{what}: it never came to that");
        let done = lives(&what, &mut agent);
        // Classic takes a peer that hangs up on ApiVersions for Kafka 0.9, and reads no correlation ids (D1): then
        // it gets on with its work.
        let said = done.stderr.contains(" WARN ") || kafka.stored("t").len() >= 2;
        assert!(!shows || said, "{what}: nothing is said\n{}", done.stderr);
    }
}

/// A peer that speaks no protocol: says this to everybody who connects, at this pace, then waits.
fn blurts(says: Vec<u8>, pace: Option<Duration>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let says = says.clone();
            thread::spawn(move || {
                let (mut sink, mut heard) = (stream.try_clone().unwrap(), [0; 4096]);
                if stream.read(&mut heard).is_err() {
                    return;
                }
                for bytes in says.chunks(if pace.is_some() { 1 } else { 1 << 16 }) {
                    if sink.write_all(bytes).is_err() {
                        return;
                    }
                    pace.into_iter().for_each(pause);
                }
                while stream.read(&mut heard).is_ok_and(|n| n > 0) {}
            });
        }
    });
    address
}

/// What a peer does with a connection before anything is asked of it.
#[derive(Clone, Copy)]
enum First {
    Says(&'static [u8]),
    /// The same, as fast as it can and without end.
    Floods(&'static [u8]),
    Closes,
    /// By a reset.
    Resets,
}

fn begins(how: First) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || match how {
                First::Says(bytes) => {
                    let _ = stream.write_all(bytes);
                    while stream.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {}
                }
                First::Floods(bytes) => while stream.write_all(&bytes.repeat(1000)).is_ok() {},
                First::Closes => {}
                First::Resets => {
                    let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
                }
            });
        }
    });
    address
}

/// Fails when bytes that nobody asked for are kept, answered, or taken for an answer, or when a loop has no pause.
#[test]
fn who_begins_without_being_asked() {
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
            let broker = begins(first).to_string();
            all.push((driver, what, starts(&folder, all.len(), &broker, driver, "")));
        }
    }
    pause(secs(10));
    for (driver, what, mut agent) in all {
        let done = lives(&format!("{driver}, {what}"), &mut agent);
        assert!(done.stderr.contains(" WARN "), "{driver}, {what}: nothing is said\n{}", done.stderr);
    }
}

/// A cluster as large as an answer may tell of, of which only the first broker is there. Fails when each broker, or each
/// partition, costs a thread or a connection of its own for no use, or memory without limit.
#[test]
fn a_cluster_that_is_mostly_invented() {
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
        // Modern looks at all partitions once for each broker that turns out not to be there: this much, and then no more.
        let done = lives_on(driver, &mut agent, secs(3));
        println!("{driver}: {} KiB, {:?}, {} stored", done.vm_hwm, done.cpu, kafka.stored("t").len());
    }
}

/// Fails when TLS is waited for without a limit, when what is no TLS is not named, or when a large record takes memory.
#[test]
fn tls_by_modern() {
    let hello = [&[0x16, 3, 3, 0x40, 0, 2, 0, 0x3f, 0xfc, 3, 3][..], &[7; 3000]].concat();
    let cases = [
        ("http", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), None, "does not answer in TLS"),
        ("kafka", [&[0, 0, 0, 40][..], &[0; 40]].concat(), None, "does not answer in TLS"),
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
        let config = format!(
            "[agent]\nstate_dir = {:?}\ndrain_timeout = \"1s\"\n[kafka]\nbrokers = [\"{}\"]\ntopic = \"t\"\n\
             [kafka.tls]\n[[files]]\npaths = [{:?}]\n",
            folder.path(format!("state-{n}")),
            blurts(says, pace),
            folder.path("f.log"),
        );
        let config = folder.write(&format!("{n}.toml"), config);
        all.push((lie, said, folder.agent(["run", "-c"]).arg(config).start()));
    }
    pause(secs(6));
    for (lie, said, mut agent) in all {
        assert!(said.is_empty() || agent.log().contains(said), "{lie}: {}", agent.log());
        let told = Instant::now();
        let done = agent.stop().expect_code(0);
        assert!(told.elapsed() < secs(4), "{lie}: {:?} to end", told.elapsed());
        assert!(!done.stderr.contains("panic in"), "{lie}: {}", done.stderr);
        assert!(done.vm_hwm < 24_000, "{lie}: {} KiB resident", done.vm_hwm);
        assert!(done.cpu < millis(1000), "{lie}: {:?} of processor time", done.cpu);
    }
}

/// Each fails when a length or count is believed before it is compared, a time is not limited, or a loop has no pause.
#[test]
fn versions_by_classic() {
    meets("classic", Api::ApiVersions);
}
#[test]
fn versions_by_modern() {
    meets("modern", Api::ApiVersions);
}
#[test]
fn versions_by_auto() {
    meets("auto", Api::ApiVersions);
}
#[test]
fn producer_id_by_modern() {
    meets("modern", Api::InitProducerId);
}
#[test]
fn sasl_handshake_by_modern() {
    meets("modern", Api::SaslHandshake);
}
#[test]
fn sasl_authenticate_by_modern() {
    meets("modern", Api::SaslAuthenticate);
}
#[test]
fn metadata_by_classic() {
    meets("classic", Api::Metadata);
}
#[test]
fn metadata_by_modern() {
    meets("modern", Api::Metadata);
}
#[test]
fn metadata_by_auto() {
    meets("auto", Api::Metadata);
}
#[test]
fn produce_by_classic() {
    meets("classic", Api::Produce);
}
#[test]
fn produce_by_modern() {
    meets("modern", Api::Produce);
}
#[test]
fn produce_by_auto() {
    meets("auto", Api::Produce);
}

/// Where address space is bounded. Fails when the `kafka` crate allocates what a broker says: that ends the process.
#[test]
fn lengths_that_cannot_be_had_by_classic() {
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
        // Version 0 is the crate's: our own question is another.
        let reply = lie.clone();
        kafka.script(move |r| if r.api == api && r.version == 0 { reply.clone() } else { Reply::Default });
        let bounded = ["sh", "-c", "ulimit -v 600000; exec \"$@\"", "sh"];
        let mut agent = set_up(&folder, n, &kafka.address(), "classic", "").within(bounded).start();
        wait_until(SOON, "it is told", || kafka.requests().iter().any(|r| r.api == api && r.version == 0));
        agent.wait_log("an answer of an impossible length", SOON);
        lives(&format!("{api:?} {lie:?}"), &mut agent);
    }
}
