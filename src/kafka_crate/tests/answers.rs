//! D9–D15: tests the answers of brokers, and of servers that are not brokers.

use super::super::*;
use super::{Rig, again, one, options};
use crate::kafka::net::testing::parrot;
use crate::kafka::scripted::{Act, KAFKA_0_10, KAFKA_4_1, Peers};
use crate::producer::driver::Refusal;
use crate::producer::testing::{batch, chunk, plain, wait_until};

/// D9, partition ids with gaps, reported by our own Metadata request. Fails when `ask_for` does not check for them.
#[test]
fn d9_gaps_in_partition_ids_are_reported() {
    let peer = Peers::start(1);
    peer.leads(&[0, 2]);
    let rig = Rig::new(&peer);
    let (_, pace, why) = again(rig.send("a"));
    assert!(pace == Pace::Blocked && why.contains("gaps"), "{why}");
    let rig = Rig::with(CrateOptions { incompatible: OnIncompatible::Refused, ..options(&[peer.host()]) });
    assert!(again(rig.send("a")).2.contains("another driver"));
    assert!(matches!(rig.leave(), Leave::Incompatible { why } if why.contains("gaps")));
}

/// D9, the same from a broker too old for that request. Fails without `catch_unwind`: the worker's thread dies.
#[test]
fn d9_a_panic_of_the_crate_is_caught() {
    let peer = Peers::start(1);
    peer.world().versions = Some(KAFKA_0_10.to_vec());
    peer.leads(&[0, 7]);
    let rig = Rig::new(&peer);
    let (maybe_stored, pace, why) = again(rig.send("a"));
    assert!(!maybe_stored && pace == Pace::Blocked && why.contains("panicked"), "{why}");
    peer.leads(&[0]);
    rig.insist("a");
    assert!(matches!(rig.leave(), Leave::Closed));
}

/// D9: the first answer about a topic being created is "ok, no partitions". Fails when an empty list ends the search:
/// no view ever arrives, and the topic is not queried again.
#[test]
fn d9_a_topic_without_partitions_is_asked_for_again() {
    let peer = Peers::start(1);
    peer.leads(&[]);
    peer.world().topic_code = Some(0);
    let rig = Rig::new(&peer);
    rig.ends.order(Order::Topic("t".into()));
    assert!(again(rig.send("a")).2.contains("no partitions"));
    wait_until("waiting", || rig.board.topics().get("t").is_some_and(|t| t.state == "waiting"));
    peer.leads(&[0, 1]);
    assert_eq!(rig.view().partitions, [0, 1]);
    rig.insist("a");
    assert!(rig.board.topics().is_empty());
}

/// D10: the crate trusts an answer's length. Fails when it gets one that no valid answer has.
#[test]
fn d10_an_absurd_length_is_survived() {
    let peer = Peers::start(1);
    peer.acts(&[Act::Raw(vec![0xff; 4]), Act::Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())]);
    let rig = Rig::new(&peer);
    let (maybe_stored, _, why) = again(rig.send("a"));
    assert!(maybe_stored && why.contains("impossible length"), "{why}");
    assert!(again(rig.send("a")).0);
    rig.send("a").offset();
    assert_eq!(peer.values(), [b"a"]);
}

/// D10: the probe recognizes a port that is not Kafka's. Fails when the crate connects to an address that did not
/// answer the probe: the reason is then a panic or a timeout.
#[test]
fn d10_foreign_ports_are_recognized() {
    for (answer, what) in
        [(&b"HTTP/1.1 400 Bad"[..], "speaks HTTP"), (b"\x15\x03\x03\x00\x02\x02\x16", "TLS")]
    {
        let rig = Rig::with(options(&[parrot(answer).to_string()]));
        let (maybe_stored, pace, why) = again(rig.send("a"));
        assert!(!maybe_stored && pace == Pace::Backoff && why.contains(what), "{why}");
    }
}

/// D11. Fails when an empty line is sent as `None` or through `Producer`: a null value is a tombstone.
#[test]
fn d11_an_empty_line_is_an_empty_record() {
    let peer = Peers::start(1);
    let rig = Rig::new(&peer);
    rig.send_batch(batch(1, vec![chunk(&plain(1), 0, &[b"", b"x", b""])])).offset();
    assert_eq!(peer.values(), [&b""[..], b"x", b""]);
}

/// D14: codes above 35 all look alike to the crate. Fails when they look alike here, or when a refused batch counts as
/// maybe stored.
#[test]
fn d14_a_code_above_35_has_its_own_meaning() {
    let peer = Peers::start(1);
    peer.acts(&[Act::Code(44), Act::Code(-1), Act::Code(89), Act::Code(56), Act::Code(59), Act::Code(87)]);
    let rig = Rig::new(&peer);
    for (stored, paced, name) in [
        (false, Pace::Blocked, "POLICY_VIOLATION (44)"),
        (true, Pace::Backoff, "UNKNOWN_SERVER_ERROR (-1)"),
        (false, Pace::Backoff, "THROTTLING_QUOTA_EXCEEDED (89)"),
        (true, Pace::Backoff, "KAFKA_STORAGE_ERROR (56)"),
        (false, Pace::Backoff, "UNKNOWN_PRODUCER_ID (59); set driver = \"auto\" or \"modern\""),
    ] {
        let (maybe_stored, pace, why) = again(rig.send("a"));
        assert!(maybe_stored == stored && pace == paced && why.contains(name), "{why}");
    }
    assert!(matches!(rig.send("a"), Verdict::Refused { what: Refusal::Something, .. }));
    rig.send("a").offset();
}

/// D14 with `auto`: the other driver takes over. Fails when the driver leaves at the first such code, or never.
#[test]
fn d14_repeated_odd_codes_are_left_to_the_other_driver() {
    let peer = Peers::start(1);
    peer.world().acts = Box::new(|_| Act::Code(56));
    let rig = Rig::with(CrateOptions { incompatible: OnIncompatible::Refused, ..options(&[peer.host()]) });
    for attempts in 0..3 {
        assert!(again(rig.send_batch(Batch { attempts, ..one("a") })).0);
    }
    assert!(matches!(rig.leave(), Leave::Incompatible { .. }));
}

/// D15: Kafka 4 answers Metadata v0 and closes the connection on Produce v0. Fails when the advertised Produce range
/// is trusted.
#[test]
fn d15_a_broker_too_new_is_reported_and_left_only_with_auto() {
    let peer = Peers::start(1);
    peer.world().versions = Some(KAFKA_4_1.to_vec());
    peer.world().acts = Box::new(|_| Act::Close);
    let rig = Rig::new(&peer);
    assert!(again(rig.send("a")).2.contains("too new for the kafka crate"));
    let said = rig.board.brokers()[&peer.host()].last_error.clone().unwrap();
    assert!(said.contains("driver = \"auto\""), "{said}");
    assert!(matches!(rig.leave(), Leave::Closed));

    let rig = Rig::with(CrateOptions { incompatible: OnIncompatible::Refused, ..options(&[peer.host()]) });
    rig.ends.order(Order::Send(vec![one("a"), one("b")]));
    for _ in 0..2 {
        assert_eq!(again(rig.verdict()).1, Pace::Now);
    }
    assert!(matches!(rig.leave(), Leave::Incompatible { why } if why.contains("too new")));
    assert!(peer.world().produced.is_empty());
}

/// D15: a cluster upgraded under a running agent. Fails when the broker is not probed again after a closed
/// connection.
#[test]
fn d15_an_upgrade_is_noticed() {
    let peer = Peers::start(1);
    let rig = Rig::with(CrateOptions { incompatible: OnIncompatible::Refused, ..options(&[peer.host()]) });
    rig.send("a").offset();
    peer.world().versions = Some(KAFKA_4_1.to_vec());
    peer.world().acts = Box::new(|_| Act::Close);
    assert!(again(rig.send("b")).0);
    assert!(!again(rig.send("b")).0);
    assert!(matches!(rig.leave(), Leave::Incompatible { .. }));
}

/// D10, which numbers of an answer are counts. Fails when the crate gets a count that does not fit into the answer,
/// or when a valid count or a large broker id is rejected.
#[test]
fn d10_counts_that_fit() {
    use byteorder::{BigEndian, METADATA, PRODUCED, Part, ReadBytesExt};
    let takes = |shape: &'static [Part], numbers: &[i32]| {
        byteorder::expect(shape);
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_be_bytes()).collect();
        let mut bytes = &bytes[..];
        numbers.iter().take_while(|_| bytes.read_i32::<BigEndian>().is_ok()).count()
    };
    let max = i32::MAX;
    // Size and correlation id; two brokers; a topic with two partitions, one of them without replicas.
    let metadata =
        [400, 7, 2, max, 9092, 1, 9093, 1, 2, 0, max, 1, max, 2, max, 1, 1, -1, 0, 0, 400, 7, 0, 0];
    assert_eq!(takes(METADATA, &metadata), metadata.len(), "and another answer");
    assert_eq!(takes(METADATA, &[1 << 20, 7, 1, 1, 9092, 1, (1 << 20) / 18]), 7);
    for (numbers, fits) in [
        (&[max][..], 0),
        (&[(1 << 20) + 1], 0),
        (&[-1], 0),
        (&[400, 7, max], 2),
        (&[400, 7, 41], 2),
        (&[400, 7, 0, 51], 3),
        (&[400, 7, 0, 1, 23], 4),
        (&[400, 7, 0, 1, 1, 0, 0, 101], 7),
        (&[400, 7, 0, 1, 1, 0, 0, 1, 0, max], 9),
    ] {
        assert_eq!(takes(METADATA, numbers), fits, "{numbers:?}");
    }
    let produced = [40, 7, 1, 1, max, 40, 8, 1];
    assert_eq!(takes(PRODUCED, &produced), produced.len(), "and another answer");
    assert_eq!((takes(PRODUCED, &[40, 7, 7]), takes(PRODUCED, &[40, 7, 1, 3])), (2, 3));
}
