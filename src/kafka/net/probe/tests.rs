//! The probe against unexpected peers.

use super::*;
use crate::kafka::net::testing::{REFUSED, hole, listen, parrot};
use crate::kafka::scripted::{KAFKA_3_9, KAFKA_4_1, Peers};

const LIMITS: Limits = Limits { connect: Duration::from_secs(1), answer: Duration::from_secs(1) };

/// Fails when one kind of peer is mistaken for another, or an answer's length is trusted before its first bytes are
/// checked.
#[test]
fn what_listens_there() {
    let hole = hole();
    let cases = [
        (parrot(b"\x15\x03\x03\x00\x02\x02\x16"), Finding::Tls),
        (parrot(b"HTTP/1.1 400 Bad Request\r\n\r\n"), Finding::Http),
        (parrot(b"SSH-2.0-OpenSSH_9"), Finding::Foreign(b"SSH-2.0-".to_vec())),
        (parrot(&[0xff; 64]), Finding::Foreign(vec![0xff; 8])),
        (parrot(b"\x00\x10\x00\x01loga"), Finding::Foreign(b"\x00\x10\x00\x01loga".to_vec())), // 1 MiB and 1 byte
        (
            parrot(b"\x00\x00\x00\x0aloga\x00\x00\x7f\xff\xff\xff"),
            Finding::Foreign(b"\x00\x00\x7f\xff\xff\xff".to_vec()),
        ),
        (parrot(b"\x00\x10\x00\x00loga\x00\x00"), Finding::Mute(LIMITS.answer)), // and nothing more
        (parrot(b""), Finding::Mute(LIMITS.answer)),
        (hole.addr, Finding::NoRoute(LIMITS.connect)),
        (REFUSED, Finding::Refused),
    ];
    for (addr, want) in cases {
        let began = Instant::now();
        assert_eq!(ask(addr, &LIMITS, &std::sync::Arc::default()), want);
        assert!(began.elapsed() < Duration::from_secs(10), "{want:?} took {:?}", began.elapsed());
        assert!(!want.to_string().is_empty());
    }
}

/// Fails when sending one byte at a time can extend the limit: the deadline must cover the whole answer.
#[test]
fn a_trickle_does_not_extend_the_limit() {
    let addr = listen(|mut stream| {
        while stream.write_all(b"\0").is_ok() {
            std::thread::park_timeout(Duration::from_millis(300));
        }
    });
    assert_eq!(ask(addr, &LIMITS, &std::sync::Arc::default()), Finding::Mute(LIMITS.answer));
}

/// Fails when the choice uses Produce's lowest version (KAFKA-18659).
#[test]
fn which_driver_a_broker_suits() {
    let peer = Peers::start(1);
    for (ranges, classic, modern) in
        [(&KAFKA_3_9[..], true, true), (&KAFKA_4_1, false, true), (&[(0, 0, 2), (1, 0, 3)], true, false)]
    {
        peer.world().versions = Some(ranges.to_vec());
        let Finding::Kafka(r) = ask(peer.addr(1), &LIMITS, &std::sync::Arc::default()) else { panic!() };
        assert_eq!((r.suits_classic(), r.suits_modern()), (classic, modern), "{r}");
    }
    peer.world().versions = None;
    assert_eq!(ask(peer.addr(1), &LIMITS, &std::sync::Arc::default()), Finding::Closed);
}

#[test]
fn what_a_broker_says_of_a_topic() {
    let peer = Peers::start(1);
    peer.leads(&[4, 0]);
    peer.world().topic_code = Some(3);
    let said = topic(peer.addr(1), "t", false, &LIMITS, &std::sync::Arc::default()).unwrap();
    assert_eq!(said, TopicAnswer { code: 3, partitions: vec![0, 4] });
}

#[test]
fn hosts_as_people_write_them() {
    for (host, want) in
        [("127.0.0.1:9092", "127.0.0.1:9092"), ("[::1]:9092", "[::1]:9092"), ("::1:9092", "[::1]:9092")]
    {
        assert_eq!(resolve(host).unwrap(), [want.parse::<SocketAddr>().unwrap()]);
    }
    assert!(resolve("nowhere").is_err());
}

/// Metadata v4 with one broker, one topic and the partitions 1 and 0.
fn an_answer() -> Vec<u8> {
    let partition =
        |id: u8| [&[0, 0, 0, 0, 0, id, 0, 0, 0, 1][..], &[0, 0, 0, 1, 0, 0, 0, 1].repeat(2)[..]].concat();
    [
        &[0, 0, 0, 0, 0, 0, 0, 1][..],                           // throttle time, brokers
        &[0, 0, 0, 1, 0, 1, b'h', 0, 0, 0x23, 0x84, 0xff, 0xff], // id, host, port, rack
        &[0, 1, b'c', 0, 0, 0, 1],                               // cluster, controller
        &[0, 0, 0, 1, 0, 0, 0, 1, b't', 0, 0, 0, 0, 2],          // topics: code, name, internal, partitions
        &partition(1)[..],
        &partition(0)[..],
    ]
    .concat()
}

proptest::proptest! {
    /// Fails (panics or hangs) when a length or a count is trusted.
    #[test]
    fn noise_and_damage_are_read_or_refused(
        noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
        changes in proptest::collection::vec(
            (proptest::prelude::any::<proptest::sample::Index>(), proptest::sample::select(vec![0, 1, 0x7f, 0x80, 0xff])),
            0..6,
        ),
    ) {
        let _ = (ranges(&noise), topic_answer(&noise));
        let mut answer = an_answer();
        proptest::prop_assert_eq!(topic_answer(&answer), Some(TopicAnswer { code: 0, partitions: vec![0, 1] }));
        for (at, byte) in changes {
            let at = at.index(answer.len());
            answer[at] = byte;
        }
        if let Some(found) = topic_answer(&answer) {
            proptest::prop_assert!(found.partitions.len() <= answer.len());
        }
    }
}
