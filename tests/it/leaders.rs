//! Brokers and leaders that are not where metadata says: dead brokers, impossible leader epochs.

use crate::harness::*;
use std::sync::atomic::Ordering::Relaxed;

fn follows(folder: &Folder, brokers: impl std::fmt::Display) -> Setup {
    let args = "--topic t --driver modern --from beginning --state-dir state f.log";
    folder.agent_line(&format!("run --brokers {brokers} {args}"))
}

/// Metadata lists a hundred unreachable brokers, each of which costs a connect timeout. Fails when all of them are
/// tried before the configured one, or when `status` reports bootstrap as up while no broker answers.
#[test]
fn a_hundred_dead_brokers_do_not_starve_the_configured_one() {
    let kafka = Scripted::start(1);
    kafka.topic("t", &[0]);
    let dead: Vec<_> = (0..100).map(|_| full_backlog()).collect();
    kafka.also(dead.iter().map(|(address, ..)| *address));
    let folder = Folder::new();
    let lines = Lines::new("f", 0..200);
    Lines::new("f", 0..100).append_to(&folder.path("f.log"));
    let mut agent = follows(&folder, kafka.node_address(1)).start();
    wait_until(PATIENT, "the first half", || kafka.stored("t").len() == 100);
    kafka.down(1);
    let before = kafka.count(Api::Metadata);
    // After its return it accepts no batch until it was asked for the leaders, which only the bootstrap connection can
    // do.
    kafka.script(move |r| match r.api {
        Api::Produce => Reply::Code(6),
        _ => Reply::Default,
    });
    Lines::new("f", 100..200).append_to(&folder.path("f.log"));
    let bootstrap = |s: &serde_json::Value| {
        let all = s["brokers"].as_array().unwrap();
        all.iter().find(|b| b["name"].as_str().unwrap().starts_with("bootstrap")).cloned().unwrap_or_default()
    };
    let state = folder.path("state");
    wait_status(&folder, &state, "status says that bootstrap is down", |s| {
        bootstrap(s)["attempts"].as_u64() > Some(0) && bootstrap(s)["last_error"].is_string()
    });
    kafka.up(1);
    let back = std::time::Instant::now();
    wait_until(PATIENT, "the configured broker is asked", || kafka.count(Api::Metadata) > before);
    // A connect timeout of 10 s for a learned broker before it, and one more for a broker being tried.
    assert!(back.elapsed() < secs(35), "{:?}", back.elapsed());
    kafka.script(|_| Reply::Default);
    wait_until(PATIENT, "all lines", || kafka.stored("t").len() == 200);
    wait_status(&folder, &state, "status says that bootstrap is up", |s| {
        bootstrap(s)["attempts"].as_u64() == Some(0)
    });
    agent.stop().expect_code(0);
    Delivered::of(kafka.stored("t")).assert_exactly_once(&[&lines]);
}

/// One answer has the highest possible leader epoch; then the leader moves with a normal one. Fails when the first is
/// believed forever.
#[test]
fn impossible_leader_epoch_is_not_believed_forever() {
    let kafka = Scripted::start(2);
    kafka.topic("t", &[0]);
    kafka.epoch(i32::MAX);
    let folder = Folder::new();
    let lines = Lines::new("f", 0..200);
    Lines::new("f", 0..100).append_to(&folder.path("f.log"));
    let mut agent = follows(&folder, kafka.address()).start();
    wait_until(PATIENT, "the first half", || kafka.stored("t").len() == 100);
    kafka.epoch(8);
    kafka.lead("t", 0, 2);
    Lines::new("f", 100..200).append_to(&folder.path("f.log"));
    wait_until(SOON, "the second half, by the new leader", || kafka.stored("t").len() == 200);
    assert!(kafka.produced().last().unwrap().node == 2);
    agent.stop().expect_code(0);
    Delivered::of(kafka.stored("t")).assert_exactly_once(&[&lines]);
}

/// Another cluster answers behind the same name. Fails when the agent keeps the producer id of the old cluster: in
/// the new one it may belong to another producer, and the broker would take new lines for repeats.
#[test]
fn another_cluster_gives_another_producer_id() {
    let kafka = Scripted::start(1);
    kafka.topic("t", &[0]);
    let folder = Folder::new();
    let lines = Lines::new("f", 0..200);
    Lines::new("f", 0..100).append_to(&folder.path("f.log"));
    let mut agent = follows(&folder, kafka.address()).start();
    wait_until(PATIENT, "the first half", || kafka.stored("t").len() == 100);
    kafka.cluster("another");
    // The answer of a broker that was just restarted, until the agent has requested metadata.
    let requested = std::sync::atomic::AtomicBool::new(false);
    kafka.script(move |r| {
        requested.fetch_or(r.api == Api::Metadata, Relaxed);
        let refuses = r.api == Api::Produce && !requested.load(Relaxed);
        if refuses { Reply::Code(6) } else { Reply::Default }
    });
    Lines::new("f", 100..200).append_to(&folder.path("f.log"));
    wait_until(PATIENT, "all lines", || kafka.stored("t").len() == 200);
    let log = agent.stop().expect_code(0).stderr;
    let ids: std::collections::BTreeSet<i64> = kafka.produced().iter().map(|p| p.batch.producer_id).collect();
    assert_eq!((kafka.count(Api::InitProducerId), ids.len()), (2, 2), "{ids:?}");
    assert_eq!(kafka.produced().last().map(|p| p.batch.producer_id), ids.last().copied());
    assert!(log.contains("another cluster") && log.contains("requesting a new one"), "{log}");
    Delivered::of(kafka.stored("t")).assert_exactly_once(&[&lines]);
}
