//! The classic driver against a scripted peer: each of the crate's defects (D1–D17, see [`super`]) that
//! shows from outside.
//! Times are short; what is asserted is order and content, with deadlines that only a hang passes.

use super::peer::{Act, KAFKA_0_10, KAFKA_4_1, Peer, hole, parrot};
use super::*;
use crate::chunk::Shape;
use crate::ship::testing::{batch, chunk, origin, plain};
use std::thread::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(20);

fn options(brokers: &[String]) -> Options {
    let second = Duration::from_secs(1);
    Options {
        brokers: brokers.to_vec(),
        client_id: "test".to_owned(),
        acks: Acks::All,
        codec: Codec::None,
        create_topics: true,
        unfit: Unfit::Wait,
        limits: Limits {
            probe: probe::Limits { connect: second, answer: second },
            call: watchdog::Limits { still: second, whole: 3 * second },
            ack: second / 2,
            pause: second / 10,
            held: second / 3,
            ..Limits::default()
        },
    }
}

/// A running driver.
struct Rig {
    orders: Option<Sender<Order>>,
    events: Receiver<Event>,
    worker: Option<JoinHandle<Leave>>,
    board: Arc<Board>,
}

impl Rig {
    fn new(peer: &Peer) -> Rig {
        Rig::with(options(&[peer.host()]))
    }

    fn with(options: Options) -> Rig {
        let (ends, orders, events) = Ends::pair();
        let board = Arc::new(Board::default());
        let of_worker = board.clone();
        let worker = thread::spawn(move || run(&options, &orders, &events, &of_worker));
        let rig = Rig { orders: Some(ends.orders), events: ends.events, worker: Some(worker), board };
        assert!(matches!(rig.next(), Event::Ready(a) if a == ABILITIES));
        rig
    }

    fn next(&self) -> Event {
        self.events.recv_timeout(PATIENCE).expect("the driver says nothing")
    }

    fn order(&self, order: Order) {
        self.orders.as_ref().unwrap().send(order).unwrap();
    }

    fn verdict(&self) -> Verdict {
        loop {
            if let Event::Done { verdict, .. } = self.next() {
                return verdict;
            }
        }
    }

    fn view(&self) -> TopicView {
        loop {
            if let Event::Topic(view) = self.next() {
                return view;
            }
        }
    }

    fn send_batch(&self, batch: Batch) -> Verdict {
        self.order(Order::Send(vec![batch]));
        self.verdict()
    }

    fn send(&self, value: &str) -> Verdict {
        self.send_batch(one(value))
    }

    /// Sends as ship does: again and again until it is stored. How often it came back before.
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

    fn leave(mut self) -> Leave {
        self.orders = None;
        self.worker.take().unwrap().join().expect("the worker panicked")
    }
}

fn one(value: &str) -> Batch {
    batch(1, vec![chunk(&plain(1), 0, &[value.as_bytes()])])
}

fn again(v: Verdict) -> (bool, Pace, String) {
    match v {
        Verdict::Again { maybe_stored, pace, why } => (maybe_stored, pace, why),
        other => panic!("{other:?}"),
    }
}

#[test]
fn lines_arrive_with_keys_in_order_and_with_their_offset() {
    let peer = Peer::start();
    let rig = Rig::new(&peer);
    rig.order(Order::Topic("t".into()));
    assert_eq!((rig.view().living, rig.send("a").offset()), (vec![0], Some(100)));
    let keyed = origin(1, "t", "/p", Shape { key: crate::chunk::Key::Path, ..Shape::default() });
    assert_eq!(rig.send_batch(batch(2, vec![chunk(&keyed, 0, &[b"b", b"c"])])).offset(), Some(101));
    let b = |s: &str| Some(s.as_bytes().to_vec());
    let want = [(None, b("a")), (b("/p"), b("b")), (b("/p"), b("c"))];
    assert_eq!(peer.script.lock().unwrap().stored, want);
    assert_eq!(rig.leave(), Leave::Closed);
}

impl Verdict {
    fn offset(&self) -> Option<i64> {
        match self {
            Verdict::Stored { offset } => *offset,
            other => panic!("{other:?}"),
        }
    }
}

/// D1, answers late. Fails when the client outlives an error (`fence` putting it back): batch 2 then meets the cut
/// connection, and without the cut takes batch 1's answer for its own.
#[test]
fn d1_a_late_answer_never_confirms_the_next_batch() {
    let peer = Peer::start();
    peer.acts(&[Act::Late(Duration::from_secs(2)), Act::Code(19)]);
    let rig = Rig::new(&peer);
    let (maybe_stored, ..) = again(rig.send("one"));
    assert!(maybe_stored);
    let (maybe_stored, _, why) = again(rig.send("two"));
    assert!(!maybe_stored && why.contains("NotEnoughReplicas"), "{why}");
    assert_eq!(rig.send("two").offset(), Some(101));
    let by = peer.script.lock().unwrap().produced.clone();
    assert!(by[0] != by[1] && by[1] != by[2], "a connection was used again: {by:?}");
}

/// D1, wrong correlation id: an answer nobody asked for lies in the socket when batch 2 is due. Fails without
/// `Session::is_silent`: batch 2 is "stored" while the peer refused it.
#[test]
fn d1_an_answer_that_nobody_asked_for_confirms_nothing() {
    let peer = Peer::start();
    peer.acts(&[Act::Twice, Act::Code(19)]);
    let rig = Rig::new(&peer);
    assert_eq!(rig.send("one").offset(), Some(100));
    thread::park_timeout(Duration::from_millis(100));
    let (.., why) = again(rig.send("two"));
    assert!(why.contains("nobody asked for"), "{why}");
    assert!(again(rig.send("two")).2.contains("NotEnoughReplicas"));
    assert_eq!(peer.values(), [b"one"]);
}

/// D2. Fails when the client is kept after an error: its pool keeps the dead connection, and all batches fail for ever.
#[test]
fn d2_a_closed_connection_is_replaced() {
    let peer = Peer::start();
    peer.acts(&[Act::Store, Act::Close, Act::StoreAndClose]);
    let rig = Rig::new(&peer);
    rig.send("a").offset();
    assert!(again(rig.send("b")).0, "it may be stored");
    rig.send("b").offset();
    assert!(rig.insist("c") <= 1);
    assert_eq!(peer.values(), [b"a", b"b", b"c"]);
    let brokers = rig.board.brokers().clone();
    assert_eq!(brokers[&peer.host()].state, "up");
    assert!(brokers[&peer.host()].last_error.is_some());
}

/// D3: a signal in mid-write would cut a frame short. Fails when `start` does not block signals before it works.
#[test]
fn d3_signals_are_blocked_in_the_drivers_threads() {
    let peer = Peer::start();
    let ends = start(options(&[peer.host()]), &Arc::new(Board::default())).unwrap();
    ends.orders.send(Order::Send(vec![one("a")])).unwrap();
    let stored = |e: Event| matches!(e, Event::Done { verdict: Verdict::Stored { .. }, .. });
    assert!(ends.events.iter().any(stored));
    for name in ["kafka-classic", "classic-watch"] {
        let mut found = 0;
        for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
            let Ok(comm) = std::fs::read_to_string(task.path().join("comm")) else { continue };
            let Ok(status) = std::fs::read_to_string(task.path().join("status")) else { continue };
            let blocked = status.lines().find_map(|l| l.strip_prefix("SigBlk:\t")).unwrap_or("0");
            let blocked = u64::from_str_radix(blocked, 16).unwrap();
            // TERM, INT and USR1; the watching threads of other tests are started without `start`.
            found +=
                usize::from(comm.trim() == name && [15, 2, 10].iter().all(|s| blocked >> (s - 1) & 1 == 1));
        }
        assert!(found > 0, "{name} takes signals");
    }
}

/// D4, a leader behind a black hole. Fails when leaders are not probed before the crate connects to them: its `connect`
/// has no limit, and the watchdog's is 20 s here.
#[test]
fn d4_a_leader_that_does_not_answer_costs_one_limit() {
    let (peer, hole) = (Peer::start(), hole());
    peer.set(|s| s.partitions = vec![(0, hole.addr.port()), (1, s.partitions[0].1)]);
    let mut o = options(&[peer.host()]);
    o.limits.call = watchdog::Limits { still: PATIENCE, whole: PATIENCE };
    let rig = Rig::with(o);
    let began = Instant::now();
    let other = Batch { partition: 1, ..one("b") };
    rig.order(Order::Send(vec![one("a"), other]));
    assert!(again(rig.verdict()).2.contains("no connection in 1 s"));
    rig.verdict().offset(); // the other leader's batch goes on
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let brokers = rig.board.brokers().clone();
    assert_eq!(brokers[&hole.addr.to_string()].state, "down");
}

/// D4, in the crate's own `connect`. Fails when `sys::sockets_to` leaves out sockets that are still connecting: 127 s.
#[test]
fn d4_a_hanging_connect_is_cut() {
    let hole = hole();
    let second = Duration::from_secs(1);
    let watch = Watchdog::start(watchdog::Limits { still: second, whole: second }).unwrap();
    let mut client = client::Client::new(hole.addr, "test", Codec::None, second);
    let began = Instant::now();
    let trouble = client.load("t", &watch).unwrap_err();
    assert!(began.elapsed() < PATIENCE, "{:?} {trouble:?}", began.elapsed());
    assert!(client.is_spoilt());
}

/// D5. Fails when the client gets the whole list: it asks the first host that takes the request, and no other.
#[test]
fn d5_a_bootstrap_host_that_hangs_does_not_stand_before_the_others() {
    let (peer, hole, mute) = (Peer::start(), hole(), parrot(b""));
    let rig = Rig::with(options(&[mute.to_string(), hole.addr.to_string(), peer.host()]));
    let began = Instant::now();
    rig.insist("a");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let down: Vec<_> = rig.board.brokers().iter().map(|(h, b)| (h.clone(), b.state.clone())).collect();
    assert!(down.contains(&(mute.to_string(), "down".to_owned())), "{down:?}");
}

/// D6: with acks = 0 nothing is answered. Fails without `Session::is_silent`: the second batch goes into the closed
/// connection, which still takes one, and is "stored" without being anywhere.
#[test]
fn d6_without_acks_a_closed_connection_is_seen() {
    let peer = Peer::start();
    peer.acts(&[Act::StoreAndClose]);
    let rig = Rig::with(Options { acks: Acks::Zero, ..options(&[peer.host()]) });
    assert_eq!(rig.send("a").offset(), None);
    thread::park_timeout(Duration::from_millis(100));
    assert!(rig.insist("b") > 0);
    let until = Instant::now() + PATIENCE;
    while peer.values() != [b"a", b"b"] {
        assert!(Instant::now() < until, "{:?}", peer.values());
        thread::park_timeout(Duration::from_millis(10));
    }
}

/// D9, partition ids with gaps, told by our own Metadata request. Fails when `ask_for` does not look at them.
#[test]
fn d9_gaps_in_partition_ids_are_told() {
    let peer = Peer::start();
    let port = peer.addr.port();
    peer.set(|s| s.partitions = vec![(0, port), (2, port)]);
    let rig = Rig::new(&peer);
    let (_, pace, why) = again(rig.send("a"));
    assert!(pace == Pace::Held && why.contains("gaps"), "{why}");
    let rig = Rig::with(Options { unfit: Unfit::Leave, ..options(&[peer.host()]) });
    assert!(again(rig.send("a")).2.contains("another driver"));
    assert!(matches!(rig.leave(), Leave::Unfit { why } if why.contains("gaps")));
}

/// D9, as above from a broker too old to be asked. Fails without `catch_unwind`: the worker's thread is gone.
#[test]
fn d9_a_panic_of_the_crate_is_caught() {
    let peer = Peer::start();
    let port = peer.addr.port();
    peer.set(|s| {
        s.ranges = Some(KAFKA_0_10.to_vec());
        s.partitions = vec![(0, port), (7, port)];
    });
    let rig = Rig::new(&peer);
    let (maybe_stored, pace, why) = again(rig.send("a"));
    assert!(!maybe_stored && pace == Pace::Held && why.contains("panicked"), "{why}");
    peer.set(|s| s.partitions = vec![(0, port)]);
    rig.insist("a");
    assert_eq!(rig.leave(), Leave::Closed);
}

/// D9: the first answer about a topic that is just being created is "ok, no partitions". Fails when an empty list ends the
/// search: no view ever comes, and nobody asks again.
#[test]
fn d9_a_topic_without_partitions_is_asked_for_again() {
    let peer = Peer::start();
    let port = peer.addr.port();
    peer.set(|s| s.partitions = vec![]);
    let rig = Rig::new(&peer);
    rig.order(Order::Topic("t".into()));
    assert!(again(rig.send("a")).2.contains("no partitions"));
    let until = Instant::now() + PATIENCE;
    while rig.board.topics().get("t").is_none_or(|t| t.state != "waiting") {
        assert!(Instant::now() < until);
        thread::park_timeout(Duration::from_millis(20));
    }
    peer.set(|s| s.partitions = vec![(0, port), (1, port)]);
    assert_eq!(rig.view().partitions, [0, 1]);
    rig.insist("a");
    assert!(rig.board.topics().is_empty());
}

/// D10: an answer's length is taken as it is. Fails without `catch_unwind` (0xFFFFFFFF panics with "capacity overflow").
#[test]
fn d10_an_absurd_length_is_survived() {
    let peer = Peer::start();
    peer.acts(&[Act::Raw(vec![0xff; 4]), Act::Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())]);
    let rig = Rig::new(&peer);
    let (maybe_stored, _, why) = again(rig.send("a"));
    assert!(maybe_stored && why.contains("panicked"), "{why}");
    assert!(again(rig.send("a")).0);
    rig.send("a").offset();
    assert_eq!(peer.values(), [b"a"]);
}

/// D10: a port that is not Kafka's is told by the probe. Fails when the crate is let loose on an address that did not answer
/// the probe: the reason is then a panic or a time-out.
#[test]
fn d10_foreign_ports_are_told_apart() {
    for (answer, what) in [(&b"HTTP/1.1 400 Bad"[..], "web server"), (b"\x15\x03\x03\x00\x02\x02\x16", "TLS")]
    {
        let rig = Rig::with(options(&[parrot(answer).to_string()]));
        let (maybe_stored, pace, why) = again(rig.send("a"));
        assert!(!maybe_stored && pace == Pace::Backoff && why.contains(what), "{why}");
    }
}

/// D11. Fails when an empty line's value goes as `None` or through `Producer`: a null value is a tombstone.
#[test]
fn d11_an_empty_line_is_an_empty_record() {
    let peer = Peer::start();
    let rig = Rig::new(&peer);
    rig.send_batch(batch(1, vec![chunk(&plain(1), 0, &[b"", b"x", b""])])).offset();
    assert_eq!(peer.values(), [&b""[..], b"x", b""]);
}

/// D14: codes above 35 all look alike. Fails when an unknown code is refused, or given up on.
#[test]
fn d14_an_unknown_code_is_retried_for_ever() {
    let peer = Peer::start();
    peer.acts(&[Act::Code(87), Act::Code(44), Act::Code(-1), Act::Code(89)]);
    let rig = Rig::new(&peer);
    for attempts in 0..4 {
        let (maybe_stored, pace, why) = again(rig.send_batch(Batch { attempts, ..one("a") }));
        assert!(maybe_stored && pace == Pace::Backoff && why.contains("modern"), "{why}");
    }
    rig.send("a").offset();
}

/// D14, under `auto`: the other driver is asked. Fails when the first unknown code leaves, or none ever does.
#[test]
fn d14_an_unknown_code_again_and_again_is_left_to_the_other_driver() {
    let peer = Peer::start();
    peer.set(|s| s.produce = Box::new(|_| Act::Code(87)));
    let rig = Rig::with(Options { unfit: Unfit::Leave, ..options(&[peer.host()]) });
    for attempts in 0..3 {
        assert!(again(rig.send_batch(Batch { attempts, ..one("a") })).0);
    }
    assert!(matches!(rig.leave(), Leave::Unfit { .. }));
}

/// D15: Kafka 4 answers Metadata v0 and closes the connection on Produce v0. Fails when Produce's own range is believed.
#[test]
fn d15_a_broker_too_new_is_told_and_left_only_under_auto() {
    let peer = Peer::start();
    peer.set(|s| {
        s.ranges = Some(KAFKA_4_1.to_vec());
        s.produce = Box::new(|_| Act::Close);
    });
    let rig = Rig::new(&peer);
    assert!(again(rig.send("a")).2.contains("too new for the kafka crate"));
    let said = rig.board.brokers()[&peer.host()].last_error.clone().unwrap();
    assert!(said.contains("driver = \"auto\""), "{said}");
    assert_eq!(rig.leave(), Leave::Closed);

    let rig = Rig::with(Options { unfit: Unfit::Leave, ..options(&[peer.host()]) });
    rig.order(Order::Send(vec![one("a"), one("b")]));
    for _ in 0..2 {
        assert_eq!(again(rig.verdict()).1, Pace::Now);
    }
    assert!(matches!(rig.leave(), Leave::Unfit { why } if why.contains("too new")));
    assert!(peer.script.lock().unwrap().produced.is_empty());
}

/// D15: a cluster upgraded under a running agent. Fails when the broker is not probed anew after a closed connection.
#[test]
fn d15_an_upgrade_is_noticed() {
    let peer = Peer::start();
    let rig = Rig::with(Options { unfit: Unfit::Leave, ..options(&[peer.host()]) });
    rig.send("a").offset();
    peer.set(|s| {
        s.ranges = Some(KAFKA_4_1.to_vec());
        s.produce = Box::new(|_| Act::Close);
    });
    assert!(again(rig.send("b")).0);
    assert!(!again(rig.send("b")).0);
    assert!(matches!(rig.leave(), Leave::Unfit { .. }));
}

/// D17: the crate writes an IPv6 leader as `::1:9092`. Fails when addresses are parsed more strictly than it does.
#[test]
fn d17_ipv6_literals() {
    if TcpListenerV6::missing() {
        return;
    }
    let peer = Peer::on("::1");
    let rig = Rig::with(options(&[format!("[::1]:{}", peer.addr.port())]));
    rig.send("a").offset();
    assert_eq!(peer.values(), [b"a"]);
}

struct TcpListenerV6;

impl TcpListenerV6 {
    fn missing() -> bool {
        std::net::TcpListener::bind("[::1]:0").is_err()
    }
}

/// A frame of very short lines would be many times its batch. Fails when the batch goes as one frame, or out of order.
#[test]
fn many_short_lines_go_in_several_frames() {
    let peer = Peer::start();
    let mut o = options(&[peer.host()]);
    o.limits.call = watchdog::Limits { still: PATIENCE, whole: PATIENCE }; // a busy machine may take its time
    let rig = Rig::with(o);
    let lines: Vec<Vec<u8>> = (0..100_000).map(|i| i.to_string().into_bytes()).collect();
    let slices: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
    let chunks = slices.chunks(10_000).map(|c| chunk(&plain(1), 0, c)).collect();
    assert_eq!(rig.send_batch(batch(1, chunks)).offset(), Some(100));
    assert_eq!(peer.values(), lines);
    assert!(peer.script.lock().unwrap().produced.len() > 2);
}

/// Codes that have a name. Fails when a line of the table in `verdict.rs` changes.
#[test]
fn known_codes() {
    for (code, maybe_stored, pace) in [
        (3, false, Pace::Backoff),
        (6, false, Pace::Backoff),
        (7, true, Pace::Backoff),
        (19, false, Pace::Backoff),
        (20, true, Pace::Backoff),
        (29, false, Pace::Held),
        (31, false, Pace::Held),
    ] {
        let peer = Peer::start();
        peer.acts(&[Act::Code(code)]);
        let rig = Rig::new(&peer);
        let v = again(rig.send("a"));
        assert_eq!((v.0, v.1), (maybe_stored, pace), "{code}: {}", v.2);
        rig.send("a").offset();
    }
    let peer = Peer::start();
    peer.acts(&[Act::Code(10)]);
    let v = Rig::new(&peer).send("a");
    assert!(matches!(v, Verdict::Refused { what: crate::ship::driver::Refusal::TooLarge, .. }), "{v:?}");
}

/// A broker that says nothing more is cut by the watchdog, and back at work as soon as it answers. Fails without the cut:
/// the crate's own limit is 120 s.
#[test]
fn a_mute_broker_costs_one_limit() {
    let peer = Peer::start();
    peer.acts(&[Act::Mute]);
    let rig = Rig::new(&peer);
    let began = Instant::now();
    assert!(again(rig.send("a")).0);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    rig.send("a").offset();
}

/// Fails when a partition without a leader holds up its neighbour, or is not looked for again.
#[test]
fn a_partition_without_a_leader_holds_up_nobody() {
    let peer = Peer::start();
    let port = peer.addr.port();
    peer.set(|s| s.partitions = vec![(0, 0), (1, port)]);
    let rig = Rig::new(&peer);
    rig.order(Order::Topic("t".into()));
    assert_eq!(rig.view().living, [1]);
    for _ in 0..5 {
        rig.order(Order::Send(vec![one("a"), Batch { partition: 1, ..one("b") }]));
        assert!(again(rig.verdict()).2.contains("no leader"));
        rig.verdict().offset();
    }
    peer.set(|s| s.partitions = vec![(0, port), (1, port)]);
    assert_eq!(rig.view().living, [0, 1]);
    rig.send("a").offset();
}

/// The record of the wait: who, how often, why. Fails when an attempt is not recorded, or paused for too long.
#[test]
fn a_broker_that_is_away_is_recorded_and_found_again() {
    let addr = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(); // free again at once
    let rig = Rig::with(options(&[addr.to_string()]));
    rig.order(Order::Topic("t".into()));
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(b) = rig.board.brokers().get(&addr.to_string()).filter(|b| b.attempts >= 3) {
            assert_eq!((b.state.as_str(), b.last_error.as_deref()), ("down", Some("connection refused")));
            break;
        }
        assert!(Instant::now() < until);
        thread::park_timeout(Duration::from_millis(20));
    }
    assert!(again(rig.send("a")).2.contains("connection refused"));
}
