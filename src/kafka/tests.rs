//! The whole driver against scripted brokers: what it sends when, and the verdict of each batch when an answer is
//! late, wrong or an error.

mod deferred;
mod leaving;
mod outages;

use super::*;
use crate::kafka::scripted::{Asked, Feeder, Peers, one, part, produced};
use crate::producer::driver::{Capabilities, Order, Pace, Refusal, Verdict};
use crossbeam_channel::select;
use kafka_protocol::messages::produce_response::{BatchIndexAndErrorMessage, LeaderIdAndEpoch, NodeEndpoint};
use kafka_protocol::protocol::StrBytes;
use std::thread;

fn stored(verdict: &Verdict) -> Option<i64> {
    match verdict {
        Verdict::Stored { offset } => *offset,
        other => panic!("{other:?}"),
    }
}

fn again(verdict: &Verdict) -> (bool, Pace) {
    match verdict {
        Verdict::Retry { maybe_stored, pace, .. } => (*maybe_stored, *pace),
        other => panic!("{other:?}"),
    }
}

/// Sends a batch, which the broker stores. Returns the request.
#[track_caller]
fn store(peers: &Peers, f: &mut Feeder, partition: i32, base: i32) -> Asked {
    f.send(one(partition, base));
    let asked = peers.next();
    asked.answer_all(0);
    assert_eq!(stored(&f.done().2), Some(100));
    asked
}

/// Sends a batch until it arrives: right after a failure the broker counts as down until it is reachable again.
fn insist(peers: &Peers, f: &mut Feeder) -> Asked {
    let until = Instant::now() + Duration::from_secs(20);
    f.send(one(0, 0));
    loop {
        select! {
            recv(peers.asked) -> asked => return asked.unwrap(),
            recv(f.ends.events) -> event => if let Event::Done { verdict, .. } = event.unwrap() {
                assert_eq!(again(&verdict), (false, Pace::Backoff));
                assert!(Instant::now() < until, "the broker does not become reachable again");
                thread::yield_now();
                f.send(one(0, 0));
            },
        }
    }
}

/// Fails when more requests are sent before a connection's first one was answered, more than five after that, or
/// answers are not read as they arrive.
#[test]
fn one_request_alone_then_five() {
    let peers = Peers::start(1);
    let mut f = peers.feed();
    (0..8).for_each(|base| f.send(one(0, base)));
    let first = peers.next();
    peers.nothing_within(100);
    first.answer_all(0);
    assert_eq!((0, 0, Some(100)), {
        let (p, b, v) = f.done();
        (p, b, stored(&v))
    });
    let five: Vec<Asked> = (0..5).map(|_| peers.next()).collect();
    peers.nothing_within(100);
    five[0].answer_all(0);
    assert_eq!(f.done().1, 1);
    assert_eq!(peers.next().produce(), [(0, 6)]);
    five[1..].iter().for_each(|a| a.answer_all(0));
    assert_eq!([f.done().1, f.done().1, f.done().1, f.done().1], [2, 3, 4, 5]);
}

/// Fails when batches of several partitions are sent in separate requests, or two of one partition in one request.
#[test]
fn several_partitions_in_one_request_and_each_once() {
    let peers = Peers::start(1);
    peers.world().leaders.insert(("t".into(), 1), (1, 0));
    let mut f = peers.feed();
    f.ends.order(Order::Send(vec![one(0, 0), one(0, 1), one(1, 0)]));
    let first = peers.next();
    assert_eq!(first.produce(), [(0, 0), (1, 0)]);
    first.answer(&produced(vec![part(1, 0, 20), part(0, 19, -1)]));
    let got: Vec<_> = (0..3).map(|_| f.done()).map(|(p, b, _)| (p, b)).collect();
    assert_eq!(got, [(1, 0), (0, 0), (0, 1)], "the batch behind the refused one is returned too, unsent");
    peers.nothing_within(50);
}

/// Fails when the answer to a timed-out request is taken for a later one's, or the connection is reused.
#[test]
fn a_late_answer_is_never_taken() {
    let peers = Peers::start(1);
    let mut f = peers.feed();
    f.send(one(0, 0));
    let late = peers.next();
    let (_, _, verdict) = f.done();
    assert_eq!(again(&verdict), (true, Pace::Backoff));
    let second = insist(&peers, &mut f);
    late.answer_all(0);
    second.answer_all(19);
    assert_eq!(again(&f.done().2), (false, Pace::Backoff));
}

/// Fails when a correlation id is not compared, part of an answer is taken for the whole, a partition that is
/// unexpected or missing goes unnoticed, or a batch is not returned when the connection closes.
#[test]
fn a_wrong_answer_closes_the_connection_and_returns_all_batches() {
    let peers = Peers::start(1);
    let mut f = peers.feed();
    let good = produced(vec![part(0, 0, 5)]);
    type Wrong<'a> = Box<dyn Fn(&Asked) + 'a>;
    let bad: Vec<Wrong<'_>> = vec![
        Box::new(|a| a.write(&a.frame(a.correlation + 1, &good, a.version))),
        Box::new(|a| {
            let frame = a.frame(a.correlation, &good, a.version);
            a.write(&frame[..frame.len() - 3]);
            a.close();
        }),
        Box::new(|a| a.answer(&produced(vec![part(3, 0, 5)]))),
        Box::new(|a| a.answer(&produced(vec![]))),
        Box::new(|a| a.close()),
        Box::new(|a| a.write(&[0x7f, 0xff, 0xff, 0xff, 0, 0])),
        Box::new(|a| a.write(&[0xff, 0xff, 0xff, 0xff, 0, 0])),
        Box::new(|a| a.write(&[0, 0, 0, 3, 0, 0, 0])),
        Box::new(|a| a.write(b"HTTP/1.1 400 Bad Request\r\n")),
        Box::new(|a| {
            // A topic count of 4,294,967,294 in an answer of ten bytes.
            let mut frame = vec![0, 0, 0, 10];
            frame.extend(a.correlation.to_be_bytes());
            frame.extend([0, 0xff, 0xff, 0xff, 0xff, 0x0f]);
            a.write(&frame);
        }),
    ];
    for (i, wrong) in bad.iter().enumerate() {
        f.send(one(0, 0));
        wrong(&peers.next());
        assert!(again(&f.done().2).0, "case {i}");
        insist(&peers, &mut f).answer_all(0);
        assert_eq!(stored(&f.done().2), Some(100), "case {i}");
    }
}

/// Fails when an answer in many small pieces is not assembled, or is only read once it is complete.
#[test]
fn an_answer_may_arrive_byte_by_byte() {
    let peers = Peers::start(1);
    let mut f = peers.feed();
    f.send(one(0, 0));
    let a = peers.next();
    let frame = a.frame(a.correlation, &produced(vec![part(0, 0, 7)]), a.version);
    frame.chunks(1).for_each(|b| {
        a.write(b);
        thread::yield_now();
    });
    assert_eq!(stored(&f.done().2), Some(7));
}

/// Fails when anything is sent to a throttled broker before its time is over.
#[test]
fn throttling_is_honored() {
    let peers = Peers::start(1);
    let mut f = peers.feed();
    f.send(one(0, 0));
    let asked = peers.next();
    let start = Instant::now();
    asked.answer(&produced(vec![part(0, 0, 0)]).with_throttle_time_ms(400));
    f.done();
    store(&peers, &mut f, 0, 1);
    assert!(start.elapsed() >= Duration::from_millis(380), "{:?}", start.elapsed());
}

/// Fails when the hint is not used: the batch would go to the old leader again, or metadata would be requested.
#[test]
fn a_hint_moves_the_leader_without_metadata() {
    let peers = Peers::start(2);
    let mut f = peers.feed();
    let asked = peers.world().metadata_asked;
    f.send(one(0, 0));
    let a = peers.next();
    assert_eq!(a.node, 1);
    let leader = LeaderIdAndEpoch::default().with_leader_id(2.into()).with_leader_epoch(5);
    let port = i32::from(peers.world().nodes[&2]);
    let node = NodeEndpoint::default()
        .with_node_id(2.into())
        .with_host(StrBytes::from_static_str("127.0.0.1"))
        .with_port(port);
    a.answer(&produced(vec![part(0, 6, -1).with_current_leader(leader)]).with_node_endpoints(vec![node]));
    assert_eq!(again(&f.done().2), (true, Pace::Now));
    let b = store(&peers, &mut f, 0, 0);
    assert_eq!((b.node, peers.world().metadata_asked), (2, asked));
}

/// Fails when NOT_LEADER without a hint does not trigger a metadata request.
#[test]
fn without_a_hint_metadata_is_requested() {
    let peers = Peers::start(2);
    peers.world().produce_up_to(9);
    let mut f = peers.feed();
    f.send(one(0, 0));
    peers.world().leaders.insert(("t".into(), 0), (2, 1));
    peers.next().answer_all(6);
    assert_eq!(again(&f.done().2), (true, Pace::Backoff));
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        f.send(one(0, 0));
        let a = peers.next();
        a.answer_all(if a.node == 2 { 0 } else { 6 });
        if let (_, _, Verdict::Stored { .. }) = f.done() {
            break;
        }
        assert!(Instant::now() < until, "the new leader is not found");
    }
}

/// Fails when the list of bad records is not read. The core leaves out what is not in the batch.
#[test]
fn bad_records_are_named() {
    let peers = Peers::start(1);
    let mut f = peers.feed();
    f.send(one(0, 0));
    let bad = |i| BatchIndexAndErrorMessage::default().with_batch_index(i);
    let p = part(0, 87, -1).with_record_errors(vec![bad(0), bad(7)]);
    peers.next().answer(&produced(vec![p.with_error_message(Some(StrBytes::from_static_str("no key\n")))]));
    match f.done().2 {
        Verdict::Refused { what, why } => {
            assert_eq!(what, Refusal::Records(vec![0, 7]));
            assert!(why.contains("INVALID_RECORD (87): no key?"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

/// Fails when a batch is not reported as stored once written, or an answer is awaited; also when the first request of
/// a connection does not ask for an answer, which alone shows whether the broker supports such requests.
#[test]
fn with_acks_0_all_but_the_first_are_stored_when_written() {
    let peers = Peers::start(1);
    let options = KafkaOptions { acks: Acks::Zero, ..peers.options() };
    let mut f = Feeder::with(options, Arc::default());
    f.available(&[0]);
    f.send(one(0, 0));
    peers.next().close();
    assert_eq!(again(&f.done().2), (true, Pace::Backoff));
    let asked = insist(&peers, &mut f);
    f.nothing_within(50);
    asked.answer_all(0);
    assert_eq!(stored(&f.done().2), Some(100));
    for base in 1..20 {
        f.send(one(0, base));
        assert_eq!(stored(&f.done().2), None);
        assert_eq!(peers.next().produce(), [(0, base)]);
    }
    assert_eq!(f.capabilities, Some(Capabilities { name: "modern", idempotent: false, in_flight: 1 }));
}

/// Fails when an old broker's error 35 is not followed by version 0, or a refused producer id is final.
#[test]
fn versions_and_producer_id_by_the_second_try() {
    let peers = Peers::start(1);
    peers.world().versions_refused_from = 1;
    peers.world().produce_up_to(3);
    peers.world().no_pid = [14, 15].into();
    let mut f = peers.feed();
    assert_eq!(f.pid, Some((4711, 0)));
    assert_eq!(store(&peers, &mut f, 0, 0).version, 3);
}

/// Fails when a broker other than the leader is asked, the producer is looked up in the wrong partition, or a refusal
/// or a lost connection produces no answer.
#[test]
fn what_a_leader_knows_of_a_producer() {
    use kafka_protocol::messages::DescribeProducersResponse;
    use kafka_protocol::messages::describe_producers_response::{
        PartitionResponse, ProducerState, TopicResponse,
    };
    let peers = Peers::start(2);
    let f = peers.feed();
    let answer = |error: i16, pid: i64| {
        let one = ProducerState::default()
            .with_producer_id(pid.into())
            .with_producer_epoch(3)
            .with_last_sequence(41);
        let other = ProducerState::default().with_producer_id(1.into()).with_last_sequence(9);
        let part = |i, all| {
            let text = (error != 0).then(|| StrBytes::from_static_str("no READ"));
            PartitionResponse::default()
                .with_partition_index(i)
                .with_error_code(error)
                .with_error_message(text)
                .with_active_producers(all)
        };
        let topic = TopicResponse::default()
            .with_name(kafka_protocol::messages::TopicName(StrBytes::from_static_str("t")))
            .with_partitions(vec![part(0, vec![]), part(1, vec![other, one])]);
        DescribeProducersResponse::default().with_topics(vec![topic])
    };
    let knows = |does: &dyn Fn(&Asked)| {
        f.ends.order(Order::Ask { topic: "t".into(), partition: 1, pid: 7 });
        let asked = peers.next();
        assert_eq!((asked.node, asked.api, asked.version), (2, 61, 0));
        does(&asked);
        loop {
            if let Event::Described { partition: 1, pid: 7, last, .. } = f.ends.next() {
                return last;
            }
        }
    };
    assert_eq!(knows(&|a| a.answer(&answer(0, 7))), Ok(Some((3, 41))));
    assert_eq!(knows(&|a| a.answer(&answer(0, 8))), Ok(None));
    assert!(
        knows(&|a| a.answer(&answer(29, 7)))
            .unwrap_err()
            .contains("TOPIC_AUTHORIZATION_FAILED (29): no READ")
    );
    assert!(knows(&|a| a.close()).is_err());
}

/// The leader's hint names another leader in the epoch already known: the topic was re-created. Fails when metadata is
/// not requested.
#[test]
fn a_hint_that_is_not_newer_asks_for_metadata() {
    let peers = Peers::start(2);
    let mut f = peers.feed();
    f.send(one(0, 0));
    peers.world().leaders.insert(("t".into(), 0), (2, 0));
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let a = peers.next();
        if a.node == 2 {
            a.answer_all(0);
            break;
        }
        let leader = LeaderIdAndEpoch::default().with_leader_id(2.into()).with_leader_epoch(0);
        a.answer(&produced(vec![part(0, 6, -1).with_current_leader(leader)]));
        again(&f.done().2);
        assert!(Instant::now() < until, "the new leader is not found");
        thread::yield_now();
        f.send(one(0, 0));
    }
    assert_eq!(stored(&f.done().2), Some(100));
}

/// Fails when a request exceeds the limit although it could be split: a batch too large on its own is refused and not
/// sent, and a batch that would make a request too large waits for the next.
#[test]
fn no_request_exceeds_the_limit() {
    let peers = Peers::start(1);
    peers.world().leaders.extend((1..8).map(|p| (("t".to_owned(), p), (1, 0))));
    let options = KafkaOptions { request_max: 3000, ..peers.options() };
    let mut f = Feeder::start(options);
    // The estimate ignores headers.
    let of = |partition, lines: usize| {
        let shape = crate::record::Shape { headers: vec![("h".into(), vec![1; 900])], ..Default::default() };
        let origin = crate::producer::testing::origin(1, "t", "/log", shape);
        let lines = crate::producer::testing::chunk(&origin, 0, &vec![&b"line"[..]; lines]);
        crate::producer::batch::Batch { partition, ..crate::producer::testing::batch(1, vec![lines]) }
    };
    f.ends.order(Order::Send((0..8).map(|p| of(p, 1)).chain([of(0, 4)]).collect()));
    let (mut done, mut requests) = (0, 0);
    while done < 8 {
        let asked = peers.next();
        assert!(asked.body.len() <= 3000, "{}", asked.body.len());
        requests += 1;
        done += asked.produce().len();
        asked.answer_all(0);
    }
    assert!(requests <= 4, "{requests} requests where 4 were enough");
    let refused = (0..9).map(|_| f.done()).filter(|(p, _, v)| {
        *p == 0
            && matches!(v, Verdict::Refused { what: Refusal::TooLarge, why } if why.contains("request_max"))
    });
    assert_eq!(refused.count(), 1);
    peers.nothing_within(100);
}
