//! D1–D6: tests connections that hang, close, or carry the wrong answer.

use super::super::*;
use super::{PATIENCE, Rig, again, one, options};
use crate::kafka::net::testing::{hole, parrot};
use crate::kafka::scripted::{Act, FIRST_GHOST, Peers};
use crate::producer::testing;
use crate::producer::worker::Worker;
use std::thread;

/// D1, late answers. Fails when the client survives an error (`fence` putting it back): batch 2 then meets the closed
/// connection, and otherwise would take batch 1's answer for its own.
#[test]
fn d1_a_late_answer_never_confirms_the_next_batch() {
    let peer = Peers::start(1);
    peer.acts(&[Act::Late(Duration::from_secs(2)), Act::Code(19)]);
    let rig = Rig::new(&peer);
    let (maybe_stored, _, why) = again(rig.send("one"));
    assert!(maybe_stored && why.contains("no answer in time"), "{why}");
    let (maybe_stored, _, why) = again(rig.send("two"));
    assert!(!maybe_stored && why.contains("NOT_ENOUGH_REPLICAS"), "{why}");
    assert_eq!(rig.send("two").offset(), Some(101));
    let by = peer.world().produced.clone();
    assert!(by[0] != by[1] && by[1] != by[2], "a connection was used again: {by:?}");
}

/// D1, wrong correlation id: an unexpected answer is waiting in the socket when batch 2 is due. Fails without
/// `Session::is_silent`: batch 2 is "stored" although the peer rejected it.
#[test]
fn d1_an_unexpected_answer_confirms_nothing() {
    let peer = Peers::start(1);
    peer.acts(&[Act::Twice, Act::Code(19)]);
    let rig = Rig::new(&peer);
    assert_eq!(rig.send("one").offset(), Some(100));
    thread::park_timeout(Duration::from_millis(300));
    let (.., why) = again(rig.send("two"));
    assert!(why.contains("unexpected answer"), "{why}");
    assert!(again(rig.send("two")).2.contains("NOT_ENOUGH_REPLICAS"));
    assert_eq!(peer.values(), [b"one"]);
}

/// D2. Fails when the client is kept after an error: its pool keeps the dead connection, and all batches fail
/// forever.
#[test]
fn d2_a_closed_connection_is_replaced() {
    let peer = Peers::start(1);
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

/// D3: a signal in mid-write would cut a frame short. Fails when `start` does not block signals first.
#[test]
fn d3_signals_are_blocked_in_the_drivers_threads() {
    let peer = Peers::start(1);
    let ends = {
        let options = options(&[peer.host()]);
        let run = move |orders: &_, events: &_, board: &_| run(&options, orders, events, board);
        testing::drive(Worker::drive(None, run), Arc::new(Board::default()))
    };
    ends.order(Order::Send(vec![one("a")]));
    let stored = |e: Event| matches!(e, Event::Done { verdict: Verdict::Stored { .. }, .. });
    assert!(ends.events.iter().any(stored));
    for name in ["driver", "classic-watch"] {
        let mut found = 0;
        for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
            let Ok(comm) = std::fs::read_to_string(task.path().join("comm")) else { continue };
            let Ok(status) = std::fs::read_to_string(task.path().join("status")) else { continue };
            let blocked = status.lines().find_map(|l| l.strip_prefix("SigBlk:\t")).unwrap_or("0");
            let blocked = u64::from_str_radix(blocked, 16).unwrap();
            // TERM, INT and USR1; the watchdog threads of other tests are started without `start`.
            found +=
                usize::from(comm.trim() == name && [15, 2, 10].iter().all(|s| blocked >> (s - 1) & 1 == 1));
        }
        assert!(found > 0, "{name} takes signals");
    }
}

/// D4, a leader behind a black hole. Fails when leaders are not probed before the crate connects: its `connect` has
/// no timeout, and the watchdog's is 20 s here.
#[test]
fn d4_a_leader_that_does_not_answer_costs_one_limit() {
    let (peer, hole) = (Peers::start(1), hole());
    peer.leads(&[0, 1]);
    peer.world().ghosts = vec![hole.addr];
    peer.world().leaders.insert(("t".into(), 0), (FIRST_GHOST, 0));
    let mut o = options(&[peer.host()]);
    o.limits.call = watchdog::WatchLimits { still: PATIENCE, whole: PATIENCE };
    let rig = Rig::with(o);
    let began = Instant::now();
    let other = Batch { partition: 1, ..one("b") };
    rig.ends.order(Order::Send(vec![one("a"), other]));
    assert!(again(rig.verdict()).2.contains("no connection in 1 s"));
    rig.verdict().offset(); // the other leader's batch continues
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let brokers = rig.board.brokers().clone();
    assert_eq!(brokers[&hole.addr.to_string()].state, "down");
}

/// D4, in the crate's own `connect`. Fails when `sys::sockets_to` misses sockets that are still connecting (for which
/// `getpeername` reports no peer): 127 s.
#[test]
fn d4_a_hanging_connect_is_cut() {
    let hole = hole();
    let second = Duration::from_secs(1);
    let watch = CallWatchdog::start(watchdog::WatchLimits { still: second, whole: second }).unwrap();
    let mut client = client::CrateClient::new(hole.addr, "test", CrateCodec::None, second);
    let began = Instant::now();
    let trouble = client.load("t", &watch).unwrap_err();
    assert!(began.elapsed() < PATIENCE, "{:?} {trouble:?}", began.elapsed());
    assert!(client.is_spoilt());
}

/// D5. Fails when the client gets the whole list: it asks only the first host that accepts the request.
#[test]
fn d5_a_bootstrap_host_that_hangs_does_not_stand_before_the_others() {
    let (peer, hole, mute) = (Peers::start(1), hole(), parrot(b""));
    let rig = Rig::with(options(&[mute.to_string(), hole.addr.to_string(), peer.host()]));
    let began = Instant::now();
    rig.insist("a");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let down: Vec<_> = rig.board.brokers().iter().map(|(h, b)| (h.clone(), b.state.clone())).collect();
    assert!(down.contains(&(mute.to_string(), "down".to_owned())), "{down:?}");
}

/// D6: with acks = 0 only a session's first batch is answered. Fails without `Session::is_silent`: the third batch
/// goes into the closed connection, which still accepts one, and counts as "stored" although it is lost.
#[test]
fn d6_without_acks_a_closed_connection_is_seen() {
    let peer = Peers::start(1);
    peer.acts(&[Act::Store, Act::StoreAndClose]);
    let rig = Rig::with(CrateOptions { acks: Acks::Zero, ..options(&[peer.host()]) });
    assert!(rig.send("a").offset().is_some());
    assert_eq!(rig.send("b").offset(), None);
    thread::park_timeout(Duration::from_millis(300));
    assert!(rig.insist("c") > 0);
    testing::wait_until("all lines, each once", || peer.values() == [b"a", b"b", b"c"]);
}
