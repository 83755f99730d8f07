//! The probe against unexpected peers.

use super::*;
use crate::kafka::net::testing::{REFUSED, hole, listen, parrot};
use crate::kafka::scripted::{KAFKA_3_9, KAFKA_4_1, Peers};
use std::io::Write;

const SECOND: Duration = Duration::from_secs(1);

/// What [`ask`] says of a peer that is not Kafka.
fn refused(addr: SocketAddr) -> String {
    match ask(addr, SECOND, &Arc::default()) {
        Err(t) => t.to_string(),
        found => panic!("{found:?}"),
    }
}

/// Fails when one kind of peer is mistaken for another, or an answer's length is trusted before its first bytes are
/// checked.
#[test]
fn what_listens_there() {
    let hole = hole();
    let cases = [
        (parrot(b"\x15\x03\x03\x00\x02\x02\x16"), "it speaks TLS"),
        (parrot(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "it speaks HTTP"),
        (parrot(b"SSH-2.0-OpenSSH_9"), "it speaks SSH"),
        (parrot(&[0xff; 64]), "an answer of 4294967295 bytes"),
        (parrot(b"\x00\x10\x00\x01\x00\x00\x00\x01"), "an answer of 1048577 bytes"),
        (parrot(b"\x00\x00\x00\x0aloga\x00\x00\x7f\xff\xff\xff"), "answer to request 1819240289"),
        (parrot(b"\x00\x00\x00\x0a\x00\x00\x00\x01\x00\x00\x7f\xff\xff\xff"), "malformed answer"),
        (parrot(b"\x00\x10\x00\x00\x00\x00\x00\x01\x00\x00"), "no answer in time"), // and nothing more
        (parrot(b""), "no answer in time"),
        (hole.addr, "no connection in 1 s"),
        (REFUSED, "connection refused"),
    ];
    for (addr, want) in cases {
        let (began, said) = (Instant::now(), refused(addr));
        assert!(said.starts_with(want), "{want}: {said}");
        assert!(began.elapsed() < Duration::from_secs(10), "{want} took {:?}", began.elapsed());
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
    let began = Instant::now();
    assert!(!refused(addr).is_empty() && began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
}

/// Fails when the choice uses Produce's lowest version (KAFKA-18659).
#[test]
fn which_driver_a_broker_suits() {
    let peer = Peers::start(1);
    for (ranges, classic, modern) in
        [(&KAFKA_3_9[..], true, true), (&KAFKA_4_1, false, true), (&[(0, 0, 2), (1, 0, 3)], true, false)]
    {
        peer.world().versions = Some(ranges.to_vec());
        let v = ask(peer.addr(1), SECOND, &Arc::default()).unwrap().unwrap();
        assert_eq!((v.suits_classic(), v.suits_modern()), (classic, modern), "{v}");
    }
    peer.world().versions = None;
    assert_eq!(ask(peer.addr(1), SECOND, &Arc::default()), Ok(None));
}

#[test]
fn what_a_broker_says_of_a_topic() {
    let peer = Peers::start(1);
    peer.leads(&[4, 0]);
    peer.world().topic_code = Some(3);
    let said = topic(peer.addr(1), "t", false, SECOND, &Arc::default()).unwrap();
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
