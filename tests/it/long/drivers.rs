//! Long forms of the driver tests: a broker that is killed or suspended repeatedly, a cluster that loses each of its
//! brokers in turn, the cost of each codec. The comparison with other programs is `tests/bench/run`.

use super::{Figures, LONG, MAX_KIB, micros_a_line};
use crate::harness::*;
use std::time::{Duration, Instant};

/// A recovered broker has this long until lines arrive, in ms.
const RECOVERY_MS: u64 = 15_000;

/// State kept over the rounds of a trial with a steady writer.
struct Trial {
    figures: Figures,
    slowest: u64,
}

impl Trial {
    /// Waits until lines arrive again, and records how long that took since `since`.
    fn recovered(&mut self, topic: &Topic, since: Instant) {
        let before = topic.end_offsets();
        wait_until(LONG, "lines arrive again", || topic.end_offsets() > before);
        self.slowest = self.slowest.max(since.elapsed().as_millis() as u64);
    }

    fn end(
        mut self,
        agent: &mut Agent,
        again: impl Fn() -> Setup,
        writer: Writer,
        topic: &Topic,
        begun: Instant,
    ) {
        let lines = writer.finish();
        let (cpu, hwm) = (agent.cpu(), agent.vm_hwm());
        agent.stop().expect_code(0);
        again().arg("--once").run_for(LONG).expect_code(0);
        let verdict = Delivered::in_topic(topic).against(&[&lines]);
        self.figures.nothing_lost(&verdict);
        self.figures.at_most("slowest recovery after the broker", self.slowest, RECOVERY_MS, "ms");
        self.figures.at_most("VmHWM", hwm, MAX_KIB, "KiB");
        let share = cpu.as_secs_f64() / begun.elapsed().as_secs_f64();
        self.figures.row("CPU", format!("{:.1} % of a core", share * 100.0), "≤ 5 %", share <= 0.05);
        self.figures.judge();
    }
}

fn repeatedly(driver: &str, case: &str, rounds: usize, trouble: impl Fn(&Broker)) {
    let mut trial =
        Trial { figures: Figures::of(format!("{driver}: {case}, under 5,000 lines/s")), slowest: 0 };
    let broker = Broker::own(Version::V39);
    let topic = broker.topic(3);
    let folder = Folder::new();
    folder.write("f.log", b"");
    let follows = || folder.follows(&broker.address, &topic, driver);
    let mut agent = follows().start();
    let begun = Instant::now();
    let writer = Writer::steady(folder.path("f.log"), "f", 5000);
    topic.wait_count_for(1, LONG);
    for round in 0..rounds {
        trouble(&broker);
        trial.recovered(&topic, Instant::now());
        pause(millis(500 + 97 * (round as u64 % 7)));
    }
    trial.end(&mut agent, follows, writer, &topic, begun);
}

fn kill_and_restart(broker: &Broker) {
    broker.kill();
    broker.restart();
}

fn suspend(broker: &Broker) {
    broker.pause();
    pause(secs(40));
    broker.resume();
}

#[test]
#[ignore = "long form: tests/run --long"]
fn classic_twenty_kills() {
    repeatedly("classic", "the broker killed 20 times", 20, kill_and_restart);
}

/// A quarter of an hour: each of the twenty suspensions takes 40 s.
#[test]
#[ignore = "long form: tests/run --long"]
fn classic_twenty_stops() {
    repeatedly("classic", "the broker stopped for 40 s 20 times", 20, suspend);
}

#[test]
#[ignore = "long form: tests/run --long"]
fn modern_twenty_kills() {
    repeatedly("modern", "the broker killed 20 times", 20, kill_and_restart);
}

/// Three brokers, each killed in turn at 20,000 lines/s: nothing is lost or doubled, and the remaining partitions
/// keep flowing.
#[test]
#[ignore = "long form: tests/run --long"]
fn modern_each_broker_killed_in_turn() {
    let mut figures =
        Figures::of("three brokers, min.insync.replicas=2, each killed in turn, 20,000 lines/s");
    let cluster = Cluster::start(Version::V41, &["min.insync.replicas=2", "default.replication.factor=3"]);
    let topic = cluster.topic(6);
    let folder = Folder::new();
    folder.write("f.log", b"");
    let follows = || folder.follows(&cluster.bootstrap(), &topic, "modern");
    let mut agent = follows().start();
    let writer = Writer::steady(folder.path("f.log"), "f", 20_000);
    topic.wait_count_for(20_000, LONG);
    let mut longest = Duration::ZERO;
    for node in 1..=3 {
        cluster.kill(node);
        longest = longest.max(longest_pause(&topic, secs(12)));
        cluster.restart(node);
        longest = longest.max(longest_pause(&topic, secs(12)));
    }
    let lines = writer.finish();
    let hwm = agent.vm_hwm();
    agent.stop().expect_code(0);
    follows().arg("--once").run_for(LONG).expect_code(0);
    figures.exactly_once(&Delivered::in_topic(&topic).against(&[&lines]));
    figures.at_most("longest time without a new line", longest.as_millis() as u64, 10_000, "ms");
    figures.at_most("VmHWM", hwm, MAX_KIB, "KiB");
    figures.judge();
}

/// The longest time without a new line, sampled for `time`.
fn longest_pause(topic: &Topic, time: Duration) -> Duration {
    let (begun, mut last, mut count, mut longest) = (Instant::now(), Instant::now(), 0, Duration::ZERO);
    while begun.elapsed() < time {
        let now = topic.end_offsets();
        if now != count {
            longest = longest.max(last.elapsed());
            (last, count) = (Instant::now(), now);
        }
        pause(millis(100));
    }
    longest.max(last.elapsed())
}

/// The cost and savings of each codec, on lines like those of a web server.
#[test]
#[ignore = "long form: tests/run --long"]
fn codecs() {
    const COUNT: u64 = 1_000_000;
    let mut figures = Figures::of("1,000,000 lines of an access log into Kafka 4.1 by modern, by codec");
    let broker = Broker::own(Version::V41);
    let folder = Folder::new();
    let mut text = Vec::new();
    let mut seed = 88_172_645_463_325_252u64;
    for n in 0..COUNT {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let (a, b, page, size, took) =
            (seed % 251, seed >> 8 & 255, seed >> 16 & 1023, seed >> 26 & 65535, seed >> 42 & 4095);
        text.extend_from_slice(
            format!(
                "10.{a}.{b}.17 - - [22/Nov/2026:20:{:02}:{:02} +0000] \"GET /shop/item/{page}?ref=start HTTP/1.1\" 200 {size} \"https://shop.example/list\" \"Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101\" {took} {n:07}\n",
                n / 60_000 % 60,
                n / 1000 % 60
            )
            .as_bytes(),
        );
    }
    let path = folder.write("f.log", &text);
    figures.note("the file", format!("{} bytes", text.len()));
    for codec in ["none", "snappy", "lz4", "zstd", "gzip"] {
        let topic = broker.topic(3);
        let config = format!(
            "[agent]\nstate_dir = {:?}\n[kafka]\nbrokers = [{:?}]\ntopic = {:?}\ndriver = \"modern\"\ncompression = {codec:?}\n[[files]]\npaths = [{path:?}]\n",
            folder.path(format!("state-{codec}")),
            topic.address,
            topic.name
        );
        folder.write("c.toml", config);
        let done = folder.agent_line("run -c c.toml --once").run_for(LONG).expect_code(0);
        assert_eq!(topic.end_offsets(), COUNT);
        let (bytes, rate) = (topic.bytes_on_disk(), per_second(COUNT as usize, done.took));
        let share = 100.0 * bytes as f64 / text.len() as f64;
        let cost = micros_a_line(done.cpu, COUNT);
        figures.note(
            codec,
            format!("{share:.1} % of the bytes, {cost}, {rate} lines a second, {} KiB", done.vm_hwm),
        );
    }
    figures.judge();
}
