//! Tests the classic driver against a scripted peer: each of the crate's defects (D1–D17, see [`super`]) that is
//! visible from outside.

mod answers;
mod connections;

use super::*;
use crate::kafka::net::testing::REFUSED;
use crate::kafka::scripted::{Act, Peers};
use crate::producer::testing::{Ends, batch, chunk, origin, plain, wait_for};
use crate::record::Shape;
use crate::waker::Waker;
use crossbeam_channel::bounded;
use std::thread;

const PATIENCE: Duration = Duration::from_secs(20);

fn options(brokers: &[String]) -> CrateOptions {
    let second = Duration::from_secs(1);
    CrateOptions {
        brokers: brokers.to_vec(),
        client_id: "test".to_owned(),
        acks: Acks::All,
        codec: CrateCodec::None,
        create_topics: true,
        incompatible: OnIncompatible::Wait,
        limits: TimeLimits {
            probe: second,
            call: watchdog::WatchLimits { still: second, whole: 3 * second },
            ack: second / 2,
            pause: second / 10,
            held: second / 3,
            ..TimeLimits::default()
        },
    }
}

/// A running driver.
struct Rig {
    ends: Ends,
    board: Arc<Board>,
}

impl Rig {
    fn new(peer: &Peers) -> Rig {
        Rig::with(options(&[peer.host()]))
    }

    fn with(options: CrateOptions) -> Rig {
        let (orders, inbox) = bounded(1000);
        let (to, events) = bounded(1000);
        let outbox = Outbox::new(to, Waker::new().unwrap());
        let board = Arc::new(Board::default());
        let of_worker = board.clone();
        let worker = thread::spawn(move || run(&options, &inbox, &outbox, &of_worker));
        let rig = Rig { ends: Ends { orders, events, worker }, board };
        assert!(matches!(rig.ends.next(), Event::Ready(a) if a == CAPABILITIES));
        rig
    }

    fn verdict(&self) -> Verdict {
        loop {
            if let Event::Done { verdict, .. } = self.ends.next() {
                return verdict;
            }
        }
    }

    fn view(&self) -> TopicView {
        loop {
            if let Event::Topic(view) = self.ends.next() {
                return view;
            }
        }
    }

    fn send_batch(&self, batch: Batch) -> Verdict {
        self.ends.order(Order::Send(vec![batch]));
        self.verdict()
    }

    fn send(&self, value: &str) -> Verdict {
        self.send_batch(one(value))
    }

    /// Sends as the core does, repeatedly until it is stored. Returns how often it was returned before.
    fn insist(&self, value: &str) -> usize {
        let until = Instant::now() + PATIENCE;
        for n in 0.. {
            match self.send(value) {
                Verdict::Stored { .. } => return n,
                v => assert!(Instant::now() < until, "still {v:?}"),
            }
            thread::park_timeout(Duration::from_millis(20));
        }
        unreachable!()
    }

    fn leave(self) -> Leave {
        self.ends.leave()
    }
}

fn one(value: &str) -> Batch {
    batch(1, vec![chunk(&plain(1), 0, &[value.as_bytes()])])
}

fn again(v: Verdict) -> (bool, Pace, String) {
    match v {
        Verdict::Retry { maybe_stored, pace, why } => (maybe_stored, pace, why),
        other => panic!("{other:?}"),
    }
}

#[test]
fn lines_arrive_with_keys_in_order_and_with_their_offset() {
    let peer = Peers::start(1);
    let rig = Rig::new(&peer);
    rig.ends.order(Order::Topic("t".into()));
    assert_eq!((rig.view().available, rig.send("a").offset()), (vec![0], Some(100)));
    let keyed = origin(1, "t", "/p", Shape { key: crate::record::Key::Path, ..Shape::default() });
    assert_eq!(rig.send_batch(batch(2, vec![chunk(&keyed, 0, &[b"b", b"c"])])).offset(), Some(101));
    let b = |s: &str| Some(s.as_bytes().to_vec());
    let want = [(None, b("a")), (b("/p"), b("b")), (b("/p"), b("c"))];
    assert_eq!(peer.world().stored, want);
    assert!(matches!(rig.leave(), Leave::Closed));
}

impl Verdict {
    fn offset(&self) -> Option<i64> {
        match self {
            Verdict::Stored { offset } => *offset,
            other => panic!("{other:?}"),
        }
    }
}

/// D17: the crate formats an IPv6 leader as `::1:9092`. Fails when addresses are parsed more strictly.
#[test]
fn d17_ipv6_literals() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return;
    }
    let peer = Peers::on("::1", 1);
    let rig = Rig::new(&peer);
    rig.send("a").offset();
    assert_eq!(peer.values(), [b"a"]);
}

/// A batch of several frames.
fn many_short_lines() -> (Vec<Vec<u8>>, Batch) {
    let lines: Vec<Vec<u8>> = (0..100_000).map(|i| i.to_string().into_bytes()).collect();
    let slices: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
    let chunks = slices.chunks(10_000).map(|c| chunk(&plain(1), 0, c)).collect();
    let batch = batch(1, chunks);
    (lines, batch)
}

/// A frame of very short lines would be many times the size of its batch. Fails when the batch goes as one frame, or
/// out of order.
#[test]
fn many_short_lines_go_in_several_frames() {
    let peer = Peers::start(1);
    let mut o = options(&[peer.host()]);
    o.limits.call = watchdog::WatchLimits { still: PATIENCE, whole: PATIENCE }; // a busy machine may take its time
    let rig = Rig::with(o);
    let (lines, batch) = many_short_lines();
    assert_eq!(rig.send_batch(batch).offset(), Some(100));
    assert_eq!(peer.values(), lines);
    assert!(peer.world().produced.len() > 2);
}

/// The second frame of a batch is refused. Fails when the batch counts as not stored although its first frame is.
#[test]
fn a_batch_that_is_stored_in_part() {
    let peer = Peers::start(1);
    peer.acts(&[Act::Store, Act::Code(19)]);
    let rig = Rig::new(&peer);
    let (maybe_stored, _, why) = again(rig.send_batch(many_short_lines().1));
    assert!(maybe_stored && why.contains("NOT_ENOUGH_REPLICAS"), "{why}");
    assert!(!peer.values().is_empty());
}

/// Codes that the crate knows. Fails when they do not mean what the table in `protocol/errors.rs` says.
#[test]
fn known_codes() {
    for (code, maybe_stored, pace) in [
        (3, true, Pace::Backoff),
        (6, true, Pace::Backoff),
        (7, true, Pace::Backoff),
        (19, false, Pace::Backoff),
        (20, true, Pace::Backoff),
        (29, false, Pace::Blocked),
        (31, false, Pace::Blocked),
    ] {
        let peer = Peers::start(1);
        peer.acts(&[Act::Code(code)]);
        let rig = Rig::new(&peer);
        let v = again(rig.send("a"));
        assert_eq!((v.0, v.1), (maybe_stored, pace), "{code}: {}", v.2);
        rig.send("a").offset();
    }
    let peer = Peers::start(1);
    peer.acts(&[Act::Code(10)]);
    let v = Rig::new(&peer).send("a");
    assert!(matches!(v, Verdict::Refused { what: crate::producer::driver::Refusal::TooLarge, .. }), "{v:?}");
}

/// The watchdog disconnects a broker that stops answering, and the driver recovers as soon as it answers. Fails
/// without that: the crate's own timeout is 120 s.
#[test]
fn a_mute_broker_costs_one_limit() {
    let peer = Peers::start(1);
    peer.acts(&[Act::Mute]);
    let rig = Rig::new(&peer);
    let began = Instant::now();
    assert!(again(rig.send("a")).0);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    rig.send("a").offset();
}

/// Fails when a partition without a leader blocks its neighbour, or is not checked again.
#[test]
fn a_partition_without_a_leader_delays_no_other() {
    let peer = Peers::start(1);
    peer.leads(&[0, 1]);
    peer.world().leaders.insert(("t".into(), 0), (-1, 0));
    let rig = Rig::new(&peer);
    rig.ends.order(Order::Topic("t".into()));
    assert_eq!(rig.view().available, [1]);
    for _ in 0..5 {
        rig.ends.order(Order::Send(vec![one("a"), Batch { partition: 1, ..one("b") }]));
        assert!(again(rig.verdict()).2.contains("no leader"));
        rig.verdict().offset();
    }
    peer.leads(&[0, 1]);
    assert_eq!(rig.view().available, [0, 1]);
    rig.send("a").offset();
}

/// The recorded outage: which broker, how many attempts, why. Fails when an attempt is not recorded, or paused for
/// too long.
#[test]
fn a_broker_that_is_away_is_recorded_and_found_again() {
    let rig = Rig::with(options(&[REFUSED.to_string()]));
    rig.ends.order(Order::Topic("t".into()));
    let b = wait_for("three attempts", || {
        rig.board.brokers().get(&REFUSED.to_string()).filter(|b| b.attempts >= 3).cloned()
    });
    assert_eq!((b.state.as_str(), b.last_error.as_deref()), ("down", Some("connection refused")));
    assert!(again(rig.send("a")).2.contains("connection refused"));
}
