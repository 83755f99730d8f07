//! Brokers that are gone, idle, silent or hostile, and topics that do not exist yet.

use super::*;
use crate::kafka::scripted::FIRST_GHOST;
use crate::producer::batch::Batch;
use crate::producer::testing::{batch, chunk, origin, wait_until};
use crate::report::Board;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

/// Two brokers, of which the leader of partition 0 is killed: a batch for it came back, and only partition 1 is available.
fn first_of_two_is_killed() -> (Peers, Feeder) {
    let mut peers = Peers::start(2);
    let mut f = peers.feed();
    f.available(&[0, 1]);
    store(&peers, &mut f, 0, 0);
    peers.kill(1);
    f.send(one(0, 1));
    let (p, _, verdict) = f.done();
    assert_eq!((p, again(&verdict).1), (0, Pace::Backoff));
    f.available(&[1]);
    (peers, f)
}

/// Partition 0 is available again, and a batch for it is stored.
fn partition_0_is_back(peers: &Peers, f: &mut Feeder) {
    f.available(&[0, 1]);
    store(peers, f, 0, 1);
}

/// Fails when a dead broker's batches wait for it, its partition stays available, the other broker is delayed, or its
/// return is not noticed automatically.
#[test]
fn a_dead_broker_stops_only_its_partition() {
    let (mut peers, mut f) = first_of_two_is_killed();
    f.send(one(0, 1));
    assert_eq!(again(&f.done().2), (false, Pace::Backoff));
    assert_eq!(store(&peers, &mut f, 1, 0).node, 2);
    peers.revive(1);
    partition_0_is_back(&peers, &mut f);
}

/// Fails when an idle connection is kept, or closing it costs a batch or shows as a failure in the status.
#[test]
fn an_idle_connection_is_closed_quietly() {
    let peers = Peers::start(1);
    let board = Arc::new(Board::default());
    let options = KafkaOptions { idle: Duration::from_millis(150), ..peers.options() };
    let mut f = Feeder::with(options, board.clone());
    f.available(&[0]);
    let address = peers.host();
    for base in 0..2 {
        let a = store(&peers, &mut f, 0, base);
        assert_eq!(a.correlation, 2, "the second request of a new connection");
        wait_until("idle", || board.brokers().get(&address).is_some_and(|b| b.state == "idle"));
        assert_eq!(board.brokers()[&address].last_error, None);
    }
}

/// Fails when the broker closing an idle connection counts as a failure, or costs a batch.
#[test]
fn a_connection_closed_by_the_broker_while_idle_costs_nothing() {
    let peers = Peers::start(1);
    let board = Arc::new(Board::default());
    let mut f = Feeder::with(peers.options(), board.clone());
    f.available(&[0]);
    let address = peers.host();
    for base in 0..3 {
        store(&peers, &mut f, 0, base).close();
        let until = Instant::now() + Duration::from_secs(20);
        let seen = || board.brokers()[&address].clone();
        while seen().state != "idle" {
            assert!(Instant::now() < until, "{:?}", seen());
            f.nothing_within(10);
        }
        assert_eq!(seen().last_error, None);
    }
}

/// Fails when a missing topic delays another, is not found once it exists, or is requested too often.
#[test]
fn an_absent_topic_is_waited_for_and_delays_no_other() {
    let peers = Peers::start(1);
    let mut f = peers.feed();
    f.ends.order(Order::Topic("later".into()));
    let mut b = one(0, 0);
    Arc::get_mut(&mut b.group).unwrap().topic = "later".into();
    f.send(b);
    assert_eq!(again(&f.done().2), (false, Pace::Backoff));
    store(&peers, &mut f, 0, 0);
    let before = peers.world().metadata_asked;
    f.nothing_within(1000);
    let asked = peers.world().metadata_asked - before;
    assert!((1..=6).contains(&asked), "asked {asked} times");
    peers.world().leaders.insert(("later".into(), 0), (1, 0));
    f.view = None;
    f.available(&[0]);
    assert_eq!(f.view.as_ref().unwrap().topic, "later".into());
}

/// Fails when noise instead of any answer makes the driver panic, spin or end.
#[test]
fn hostile_bootstrap_brokers_are_survived() {
    let tls_alert = vec![0x15, 3, 3, 0, 2, 2, 0x28];
    let huge = vec![0x40, 0, 0, 0, 1, 2, 3, 4];
    let count =
        [&[0u8, 0, 0, 14, 0, 0, 0, 1, 0, 0][..], &[0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0][..]].concat();
    for noise in [tls_alert, huge, count, b"HTTP/1.0 200 OK\r\n\r\n".to_vec(), vec![0; 64], vec![0xff; 64]] {
        let peers = Peers::start(1);
        peers.world().noise = Some(noise);
        let board = Arc::new(Board::default());
        let mut f = Feeder::with(peers.options(), board.clone());
        f.nothing_within(400);
        let attempts = board.brokers()["bootstrap"].attempts;
        assert!((1..=5).contains(&attempts), "{attempts} attempts: {:?}", board.brokers());
        peers.world().noise = None;
        f.available(&[0]);
    }
}

/// Fails when a broker that accepts connections but sends nothing delays the driver beyond the limits.
#[test]
fn a_silent_bootstrap_broker_is_skipped() {
    let peers = Peers::start(1);
    let mute = Peers::start(1);
    mute.world().mute = true;
    let mut options = peers.options();
    options.brokers.insert(0, mute.host());
    options.connect_timeout = Duration::from_millis(300);
    let start = Instant::now();
    let f = Feeder::start(options);
    assert!(f.pid.is_some() && start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

/// A broker returns on another port with its previous node id. Fails when the node counts as down indefinitely.
#[test]
fn a_broker_that_returns_elsewhere_is_found() {
    let (mut peers, mut f) = first_of_two_is_killed();
    peers.move_away(1);
    partition_0_is_back(&peers, &mut f);
}

/// One configured broker that is not in the metadata, and a hundred learned ones that do not answer. Fails when all of
/// them are asked before the configured one, or the status meanwhile shows the bootstrap brokers as up.
#[test]
fn learned_brokers_that_are_gone_do_not_starve_a_configured_one() {
    let mut peers = Peers::start(2);
    peers.world().leaders.remove(&("t".to_owned(), 1));
    let hole = net::testing::hole_on("0.0.0.0:0");
    peers.world().hidden = Some(2);
    let ghosts = (0..100).map(|n| std::net::SocketAddr::from(([127, 2, 0, n], hole.addr.port())));
    peers.world().ghosts = ghosts.collect();
    let options = KafkaOptions {
        brokers: vec![peers.addr(2).to_string()],
        connect_timeout: Duration::from_millis(500),
        metadata_age: Duration::from_millis(300),
        idle: Duration::from_millis(100),
        ..peers.options()
    };
    let board = Arc::new(Board::default());
    let mut f = Feeder::with(options, board.clone());
    f.available(&[0]);
    // Metadata is refreshed only for topics in use.
    store(&peers, &mut f, 0, 0);
    peers.kill(1);
    peers.kill(2);
    let bootstrap = || board.brokers()["bootstrap"].clone();
    let killed = Instant::now();
    while bootstrap().state != "down" {
        assert!(killed.elapsed() < Duration::from_secs(3), "{:?}", bootstrap());
        f.nothing_within(10);
    }
    while bootstrap().attempts < 3 {
        assert!(killed.elapsed() < Duration::from_secs(20), "{:?}", bootstrap());
        assert_eq!(bootstrap().state, "down");
        f.nothing_within(10);
    }
    peers.revive(2);
    let (revived, asked) = (Instant::now(), peers.world().metadata_asked);
    while peers.world().metadata_asked == asked {
        assert!(revived.elapsed() < Duration::from_secs(8), "{:?}", bootstrap());
        f.nothing_within(10);
    }
}

/// A link that takes 2.5 s for a request of which the kernel accepts everything at once, when an answer is due after
/// 0.8 s. Fails when the request counts as unanswered while its bytes still trickle through: it would be sent over and
/// over, and never arrive.
#[test]
fn a_request_on_a_very_slow_link_is_waited_for() {
    let peers = Peers::start(1);
    let broker = peers.addr(1);
    let link = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&link, 4 << 10).unwrap();
    {
        let mut world = peers.world();
        world.ghosts.push(link.local_addr().unwrap());
        world.leaders.insert(("t".to_owned(), 0), (FIRST_GHOST, 0));
    }
    thread::spawn(move || {
        let mut client = link.accept().unwrap().0;
        let mut server = TcpStream::connect_timeout(&broker, Duration::from_secs(1)).unwrap();
        let (mut answers, mut back) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        thread::spawn(move || std::io::copy(&mut answers, &mut back));
        let mut some = [0; 1 << 10];
        while let Ok(n @ 1..) = client.read(&mut some) {
            server.write_all(&some[..n]).unwrap();
            let _ = crossbeam_channel::after(Duration::from_millis(n as u64 / 24)).recv();
        }
    });
    let request_timeout = Duration::from_millis(500);
    let brokers = vec![broker.to_string()];
    let mut f = Feeder::start(KafkaOptions { request_timeout, brokers, ..peers.options() });
    f.available(&[0]);
    let line = [b'x'; 60_000];
    let began = Instant::now();
    f.send(Batch {
        numbers: one(0, 0).numbers,
        ..batch(1, vec![chunk(&origin(1, "t", "/log", Default::default()), 0, &[&line])])
    });
    peers.next().answer_all(0);
    assert_eq!(stored(&f.done().2), Some(100));
    assert!(began.elapsed() > Duration::from_millis(1500), "the link was not slow: {:?}", began.elapsed());
}
