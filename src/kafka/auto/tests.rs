//! Choosing a driver, with stub drivers that only report their names.

use super::*;
use crate::kafka::net::testing::{REFUSED, listen, parrot};
use crate::kafka::scripted::{KAFKA_0_10, KAFKA_3_9, KAFKA_4_1, Peers, Versions};
use crate::producer::driver::{Capabilities, Verdict};
use crate::producer::testing::{self, Ends, batch, chunk, plain, wait_for};
use crate::producer::worker::Worker;
use crate::record::Topic;
use crate::report::Board;

const PATIENCE: Duration = Duration::from_secs(20);

/// A driver that reports its name, and ends when it receives the topic "leave".
fn stub(name: &'static str) -> Drive {
    Worker::drive(None, move |orders, events, _board| {
        let ready = Event::Ready(Capabilities { name, idempotent: false, in_flight: 1 });
        if events.send(ready).is_err() {
            return Leave::Closed;
        }
        for order in orders {
            match order {
                Order::Topic(t) if &*t == "leave" => {
                    return Leave::Incompatible { why: "asked to".to_owned() };
                }
                Order::Send(batches) => {
                    for batch in batches {
                        let _ = events.send(Event::Done { batch, verdict: Verdict::Stored { offset: None } });
                    }
                }
                _ => {}
            }
        }
        Leave::Closed
    })
}

fn auto(brokers: &[String]) -> (Ends, Arc<Board>) {
    let second = Duration::from_secs(1);
    let board = Arc::new(Board::default());
    let options = AutoOptions {
        brokers: brokers.to_vec(),
        probe: second,
        pause: second / 5,
        classic: Choice { first: stub("classic"), only: stub("only classic") },
        modern: Choice { first: stub("modern"), only: stub("only modern") },
    };
    (testing::drive(drive(options), board.clone()), board)
}

fn ready(ends: &Ends) -> &'static str {
    loop {
        if let Event::Ready(a) = ends.next() {
            return a.name;
        }
    }
}

/// Versions of a server that speaks Kafka's protocol without producer ids.
const WITHOUT_IDS: [Versions; 3] = [(0, 0, 9), (1, 0, 11), (3, 0, 9)];

/// Fails when the rule changes, or its reason is not in the status.
#[test]
fn chosen_by_the_versions_a_broker_accepts() {
    let peer = Peers::start(1);
    for (ranges, name) in [
        (Some(KAFKA_3_9.to_vec()), "modern"),
        (Some(KAFKA_4_1.to_vec()), "only modern"),
        (Some(KAFKA_0_10.to_vec()), "only classic"),
        (None, "only classic"),
        (Some(WITHOUT_IDS.to_vec()), "modern"),
        (Some(vec![(0, 3, 9), (1, 4, 11)]), "only modern"), // others that speak Kafka's protocol
    ] {
        peer.world().versions = ranges;
        let (ends, board) = auto(&[peer.host()]);
        assert_eq!(ready(&ends), name);
        let name = name.trim_start_matches("only ");
        assert!(board.driver().starts_with(&format!("{name}: {}", peer.host())), "{}", board.driver());
    }
}

/// Fails when a host that is not Kafka ends the search, or is not recorded.
#[test]
fn the_first_that_answers_decides() {
    let peer = Peers::start(1);
    let web = parrot(b"HTTP/1.1 400 Bad Request\r\n\r\n").to_string();
    let (ends, board) = auto(&[web.clone(), peer.host()]);
    assert_eq!(ready(&ends), "modern");
    let said = board.brokers()[&web].last_error.clone().unwrap();
    assert!(said.contains("speaks HTTP"), "{said}");
}

/// When a driver leaves, the other takes over its channels; the previous one is chosen again only if it is the only
/// option. Fails when `left` is ignored.
#[test]
fn one_driver_replaces_the_other() {
    let peer = Peers::start(1);
    let (ends, _board) = auto(&[peer.host()]);
    let leave = || ends.order(Order::Topic(Topic::from("leave")));
    assert_eq!(ready(&ends), "modern");
    leave();
    assert_eq!(ready(&ends), "classic");
    leave();
    assert_eq!(ready(&ends), "modern");
    peer.world().versions = Some(KAFKA_0_10.to_vec());
    leave();
    assert_eq!(ready(&ends), "classic");
    leave();
    assert_eq!(ready(&ends), "only classic");
    peer.world().versions = Some(KAFKA_4_1.to_vec());
    leave();
    assert_eq!(ready(&ends), "only modern");
    leave();
    assert_eq!(ready(&ends), "only modern");
}

/// The driver changes on request, both while one runs and while no broker answers. Fails when `hold` or a driver keeps
/// the core's order, or when the previous driver's brokers stay in the status.
#[test]
fn the_producer_changes_the_driver() {
    let peer = Peers::start(1);
    for host in [peer.host(), REFUSED.to_string()] {
        let (ends, board) = auto(std::slice::from_ref(&host));
        if host == peer.host() {
            assert_eq!(ready(&ends), "modern");
        }
        ends.order(Order::Change(stub("another")));
        assert_eq!(ready(&ends), "another");
        assert!(board.brokers().is_empty());
    }
}

/// Fails when batches wait for a driver that may never start: the core could neither end nor count them.
#[test]
fn while_no_broker_answers_batches_are_returned() {
    let (ends, board) = auto(&[REFUSED.to_string()]);
    ends.order(Order::Send(vec![batch(1, vec![chunk(&plain(1), 0, &[b"a"])])]));
    let Event::Done { verdict, .. } = ends.next() else { panic!() };
    assert!(matches!(&verdict, Verdict::Retry { pace: Pace::Backoff, .. }), "{verdict:?}");
    let b = wait_for("a broker in the status", || board.brokers().get(&REFUSED.to_string()).cloned());
    assert_eq!((b.state.as_str(), b.last_error.as_deref()), ("down", Some("connection refused")));
    let events = ends.events;
    drop(ends.orders);
    let until = Instant::now() + PATIENCE;
    while !matches!(events.recv_timeout(PATIENCE), Err(crossbeam_channel::RecvTimeoutError::Disconnected)) {
        assert!(Instant::now() < until, "it ends without the core");
    }
}

/// A running driver gets the orders in order. Fails when `choose` takes one from it.
#[test]
fn a_running_driver_gets_every_order() {
    let peer = Peers::start(1);
    let (ends, _board) = auto(&[peer.host()]);
    assert_eq!(ready(&ends), "modern");
    let mut seen = 0;
    for _ in 0..50 {
        ends.order(Order::Send(vec![batch(1, vec![chunk(&plain(1), 0, &[b"a"])])]));
    }
    for _ in 0..50 {
        let Event::Done { verdict, .. } = ends.next() else { continue };
        assert!(matches!(verdict, Verdict::Stored { .. }));
        seen += 1;
    }
    assert_eq!(seen, 50);
}

/// A peer that closes every connection at once is at its limit, or is a proxy without a backend; it is not Kafka 0.9.
/// Fails when the `kafka` crate is chosen for it, or it is not asked again.
#[test]
fn a_peer_that_closes_unasked_is_no_old_kafka() {
    let host = listen(drop).to_string();
    let (ends, board) = auto(std::slice::from_ref(&host));
    let said = wait_for("an error", || {
        assert!(ends.events.try_recv().is_err());
        board.brokers().get(&host)?.last_error.clone()
    });
    assert!(said.contains("max.connections.per.ip"), "{said}");
}
