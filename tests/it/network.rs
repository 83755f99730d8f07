//! Bytes on the network: what the agent counts, and the budget that limits them.

use crate::harness::*;
use std::time::Instant;

/// Ethernet, IPv4 and TCP with timestamps, in each packet.
const HEADERS: u64 = 66;

/// Sent and received, over all brokers.
fn counted(folder: &Folder) -> Traffic {
    let status = status_json(folder, &folder.path("state"));
    let sum =
        |name: &str| status["network"].as_array().unwrap().iter().map(|b| b[name].as_u64().unwrap()).sum();
    Traffic { sent: sum("bytes_sent"), received: sum("bytes_received") }
}

/// The kernel's count of the bytes in TCP's segments, once it no longer changes.
fn payload(ns: &NetNs) -> Traffic {
    let mut before = Traffic::default();
    wait_until(PATIENT, "no more packets", || {
        pause(millis(500));
        std::mem::replace(&mut before, ns.packets()) == ns.packets()
    });
    let (bytes, packets) = (ns.bytes(), ns.packets());
    Traffic {
        sent: bytes.sent - HEADERS * packets.sent,
        received: bytes.received - HEADERS * packets.received,
    }
}

#[track_caller]
fn agree(what: &str, ours: u64, kernels: u64) {
    println!("{what}: {ours} counted, {kernels} by the kernel");
    assert!(ours.abs_diff(kernels) * 100 <= kernels, "{what}: {ours} counted, but {kernels} by the kernel");
}

/// Over TLS, with a bootstrap broker that is down: for lines one by one against `TCP_INFO`, since a single packet sent
/// again would be more than 1 %; for large batches against the counters of a network namespace's interface. Fails when
/// bytes are counted above TLS, or when handshakes, metadata or one of the directions is left out.
#[test]
fn bytes_agree_with_the_kernel() {
    let (ns, folder) = (NetNs::new(), Folder::new());
    let broker = Broker::secure_at(Version::V41, &ns.host);
    let topic = broker.topic(1);
    let config = format!(
        "[agent]\nstate_dir = {:?}\n[kafka]\nbrokers = [\"{}:1\", {:?}]\ntopic = {:?}\n[kafka.tls]\nca = {:?}\n\
         [metrics]\ntextfile = {:?}\n[[files]]\npaths = [{:?}]\n",
        folder.path("state"),
        ns.host,
        broker.listener("tls"),
        topic.name,
        broker.key("ca.crt"),
        folder.path("m.prom"),
        folder.path("f.log"),
    );
    folder.write("c.toml", config);
    folder.write("f.log", "");
    let _agent = folder.agent_line("run -c c.toml").wrapped_in(["ip", "netns", "exec", &ns.name]).start();
    let few = Lines::new("f", 0..300);
    for line in few.iter() {
        folder.append("f.log", [&line[..], b"\n"].concat());
        pause(millis(3));
    }
    topic.wait_count(300);
    println!("less headers, by the interface: {:?}", payload(&ns));
    let (kernels, ours) = (ns.tcp_bytes(), counted(&folder));
    agree("sent one by one", ours.sent, kernels.sent);
    agree("received one by one", ours.received, kernels.received);

    let raw = ns.bytes();
    let many = Lines::new("f", 300..40_300).width(400);
    many.append_to(&folder.path("f.log"));
    topic.wait_count(40_300);
    let kernels = payload(&ns);
    let (raw, all) = (ns.bytes().since(raw), counted(&folder));
    agree("sent and received", all.both(), kernels.both()); // acks with SACK have longer headers
    agree("sent in large batches", all.since(ours).sent, raw.sent);
    Delivered::in_topic(&topic).assert_exactly_once(&[&few, &many]);

    let status = status_json(&folder, &folder.path("state"));
    let lines = few.iter().chain(many.iter()).map(|line| line.len() as u64).sum::<u64>();
    assert_eq!(status["payload"], serde_json::json!([{ "topic": topic.name, "bytes": lines }]));
    let metric = format!("logagent_network_transmit_bytes_total{{broker=\"{}\"}} ", broker.listener("tls"));
    wait_until(PATIENT, "the metrics show it", || {
        let text = std::fs::read_to_string(folder.path("m.prom")).unwrap_or_default();
        let shown = text.lines().find_map(|l| l.strip_prefix(&metric)?.parse::<f64>().ok());
        shown.is_some_and(|bytes| bytes > lines as f64)
    });
}

/// A budget of 600 KiB a minute: about 9.8 KB/s, after an initial 13 KB. Fails when lines pass faster, when SIGKILL and
/// a restart reset it, when a line is lost or doubled, when a stop waits for it, or when nothing says why lines wait.
#[test]
fn a_budget_delays_lines_and_survives_a_kill() {
    let folder = Folder::new();
    let topic = Broker::shared(Version::V41).topic(2);
    let (state, log) = (folder.path("state"), folder.path("f.log"));
    let config = format!(
        "[agent]\nstate_dir = {state:?}\ndelivery = \"exactly-once\"\n\
         [kafka]\nbrokers = [{:?}]\ntopic = {:?}\nbudget = \"600KiB/min\"\n\
         [[files]]\npaths = [{log:?}]\nstart = \"beginning\"\n",
        topic.address, topic.name
    );
    folder.write("c.toml", config);
    let lines = Lines::new("f", 0..700);
    folder.write("f.log", lines.bytes());
    let begun = Instant::now();
    let mut agent = folder.agent_line("run -c c.toml").start();
    agent.wait_log("the budget of 600 KiB per min is used up", PATIENT);
    wait_status(&folder, &state, "the file says why it waits", |status| {
        status["files"][0]["stuck_because"] == "the budget is used up" && status["budget"]["used_up"] == true
    });
    for _ in 0..4 {
        agent.kill();
        agent = folder.agent_line("run -c c.toml").start();
        pause(millis(300));
    }
    assert!(topic.end_offsets() < 700, "the budget was not used up");
    let stopped = agent.stop();
    assert!(stopped.took < secs(8) && stopped.code() == Some(0), "a stop took {:?}", stopped.took);
    let _agent = folder.agent_line("run -c c.toml").start();
    topic.wait_count(700);
    let took = begun.elapsed();
    let least = (lines.count() * 200 - 12_800 - 6_400) as f64 / (600.0 * 1024.0 * 46.0 / 48.0 / 60.0);
    assert!(took.as_secs_f64() >= least, "{took:?}, but the budget allows {least:.1} s at best");
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
}

/// The `kafka` crate's sockets are only seen from outside. Fails when the classic driver's bytes are not counted, or twice.
#[test]
fn the_classic_drivers_bytes_are_counted() {
    let folder = Folder::new();
    let topic = Broker::shared(Version::V39).topic(1);
    let lines = Lines::new("f", 0..20_000);
    folder.write("f.log", lines.bytes());
    let _agent = folder.follows(&topic.address, &topic, "classic").start();
    topic.wait_count(20_000);
    let status = wait_status(&folder, &folder.path("state"), "all is acknowledged", |status| {
        status["payload"][0]["bytes"] == 20_000 * 200
    });
    let (sent, received) = (counted(&folder).sent, counted(&folder).received);
    // A record of format 0 has 26 bytes besides its line.
    assert!(
        (4_000_000..=4_000_000 + 20_000 * 30).contains(&sent) && received > 100,
        "{sent} {received}: {status}"
    );
}
