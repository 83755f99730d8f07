//! When the driver leaves a cluster to the other driver, and when it waits.

use super::*;
use crate::producer::driver::Leave;
use crate::producer::testing::{self, Ends};

/// A driver that knows topic `t`.
fn with_topic(options: KafkaOptions) -> Ends {
    let ends = testing::drive(drive(options), Arc::default());
    ends.order(Order::Topic("t".into()));
    while !matches!(ends.next(), Event::Topic(_)) {}
    ends
}

/// A server that claims to support our requests but does not. Fails when it is not left to the other driver, or when a
/// fixed driver, or one whose requests were answered before, leaves it.
#[test]
fn a_server_that_refuses_what_it_claims_is_left_under_auto() {
    type Refusal<'a> = &'a dyn Fn(&Asked);
    let refusals: [(Refusal<'_>, &str); 3] = [
        (&|a| a.answer_all(35), "UNSUPPORTED_VERSION"),
        (&|a| a.answer_all(43), "UNSUPPORTED_FOR_MESSAGE_FORMAT"),
        (&|a| a.close(), "closed by the broker on each of 5"),
    ];
    let leaves = |incompatible, refusal: Refusal<'_>, answered_before| {
        let peers = Peers::start(1);
        let options = KafkaOptions { incompatible, ..peers.options() };
        let Ends { orders, events, worker } = with_topic(options);
        let mut refused = 0;
        let send = || drop(orders.send(Order::Send(vec![one(0, 0)])));
        send();
        let until = Instant::now() + Duration::from_secs(30);
        while !worker.is_finished() && refused < 8 {
            assert!(Instant::now() < until);
            select! {
                recv(peers.asked) -> asked => match refused {
                    0 if answered_before => {
                        asked.unwrap().answer_all(0);
                        refused = 1;
                    }
                    _ => {
                        refusal(&asked.unwrap());
                        refused += 1;
                    }
                },
                recv(events) -> event => if let Ok(Event::Done { .. }) = event { send() },
                default(Duration::from_millis(20)) => {}
            }
        }
        drop(orders);
        match worker.join().unwrap() {
            Leave::Incompatible { why } => Some(why),
            _ => None,
        }
    };
    for (refusal, why) in refusals {
        let left = leaves(Incompatible::Refused, refusal, false);
        assert!(left.as_ref().is_some_and(|l| l.contains(why)), "{left:?}");
        assert_eq!(leaves(Incompatible::TooOld, refusal, false), None);
    }
    assert_eq!(leaves(Incompatible::Refused, refusals[2].0, true), None, "an ordinary outage");
}

/// Fails when, under auto, the driver waits for a broker that refuses producer ids, which the `kafka` crate does not
/// need.
#[test]
fn a_refused_producer_id_is_left_to_the_other_driver() {
    let peers = Peers::start(1);
    peers.world().no_pid = [31; 10].into();
    let options = KafkaOptions { incompatible: Incompatible::Refused, ..peers.options() };
    let ends = with_topic(options);
    ends.order(Order::ProducerId);
    let left = ends.ended();
    assert!(
        matches!(&left, Leave::Incompatible { why } if why.contains("CLUSTER_AUTHORIZATION_FAILED")),
        "{left:?}"
    );
}

/// Fails when `auto` is not notified, a batch is missing by then, or a fixed driver leaves (or does not notice that
/// the broker was replaced).
#[test]
fn a_broker_too_old_is_left_under_auto_and_waited_for_when_fixed() {
    let mut peers = Peers::start(1);
    let options = KafkaOptions { incompatible: Incompatible::TooOld, ..peers.options() };
    let Ends { orders, events, worker } = with_topic(options);
    orders.send(Order::Send(vec![one(0, 0)])).unwrap();
    let flying = peers.next();
    peers.world().produce_up_to(2);
    flying.close();
    let mut back = 0;
    let mut sent = 1;
    let until = Instant::now() + Duration::from_secs(30);
    while !worker.is_finished() {
        assert!(Instant::now() < until, "the driver does not leave");
        if let Ok(Event::Done { verdict, .. }) = events.recv_timeout(Duration::from_millis(20)) {
            again(&verdict);
            back += 1;
            if sent < 20 && orders.send(Order::Send(vec![one(0, 0)])).is_ok() {
                sent += 1;
            }
        }
    }
    back += events.try_iter().filter(|e| matches!(e, Event::Done { .. })).count();
    let left = orders.len();
    assert!(matches!(worker.join().unwrap(), Leave::Incompatible { why } if why.contains("version 2")));
    assert_eq!(back + left, sent, "returned batches and untaken orders");

    let mut f = Feeder::with(peers.options(), Arc::default());
    f.nothing_within(300);
    peers.world().produce_up_to(9);
    f.available(&[0]);
    peers.kill(1);
}
