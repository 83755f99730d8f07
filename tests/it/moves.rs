//! Brokers that return elsewhere: on another port with the same node id, as another cluster behind the same name, or
//! with a topic recreated on another node.

use crate::harness::*;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

/// Delivery must resume within this time after a move.
const RECOVERY: std::time::Duration = secs(60);

/// A stable address, such as a DNS name, whose target can change. Forwards bytes without parsing Kafka.
struct StableAddress {
    address: String,
    target: Arc<Mutex<SocketAddr>>,
}

impl StableAddress {
    fn of(broker: &str) -> StableAddress {
        let target: Arc<Mutex<SocketAddr>> = Arc::new(Mutex::new(broker.parse().unwrap()));
        let to = target.clone();
        let address = listen(move |client| {
            let to = *to.lock().unwrap();
            let Ok(server) = TcpStream::connect_timeout(&to, SOON) else { return };
            forward(&client, &server);
        });
        StableAddress { address: address.to_string(), target }
    }

    fn point_to(&self, broker: &str) {
        *self.target.lock().unwrap() = broker.parse().unwrap();
    }
}

#[track_caller]
fn returns_on_another_port(version: Version) {
    let mut broker = Broker::own(version);
    let mut topic = broker.topic(1);
    let name = StableAddress::of(&broker.address);
    let folder = Folder::new();
    let lines = Lines::new("f", 0..200);
    folder.write("f.log", Lines::new("f", 0..100).bytes());
    let mut agent = folder.follows(&name.address, &topic, "modern").start();
    topic.wait_count(100);
    topic.address = broker.move_away();
    name.point_to(&topic.address);
    folder.append("f.log", Lines::new("f", 100..200).bytes());
    topic.wait_count_for(200, RECOVERY);
    agent.stop().expect_code(0);
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
}

/// Fails when a broker is marked down by node id: only the worker with the old address could mark it up again.
#[test]
fn broker_3_9_returns_on_another_port() {
    returns_on_another_port(Version::V39);
}
#[test]
fn broker_4_1_returns_on_another_port() {
    returns_on_another_port(Version::V41);
}

/// The same on three nodes, where the other brokers announce the new address.
#[test]
fn one_of_three_brokers_returns_on_another_port() {
    let mut cluster = Cluster::start(Version::V41, &[]);
    let topic = cluster.topic_on(2);
    let folder = Folder::new();
    let lines = Lines::new("f", 0..200);
    folder.write("f.log", Lines::new("f", 0..100).bytes());
    let mut agent = folder.follows(&cluster.addresses[0], &topic, "modern").start();
    topic.wait_count(100);
    cluster.move_away(2);
    folder.append("f.log", Lines::new("f", 100..200).bytes());
    topic.wait_count_for(200, RECOVERY);
    agent.stop().expect_code(0);
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
}

/// A standby cluster takes over behind the same name: same node id, another address, another cluster id. Fails as
/// above.
#[test]
fn standby_cluster_behind_the_same_name() {
    let (active, standby) = (Broker::own(Version::V41), Broker::own(Version::V41));
    let topic = active.topic(1);
    let mut later = standby.missing_topic(1);
    later.name.clone_from(&topic.name);
    later.create(&[]);
    let name = StableAddress::of(&active.address);
    let folder = Folder::new();
    folder.write("f.log", Lines::new("f", 0..100).bytes());
    let mut agent = folder.follows(&name.address, &topic, "modern").start();
    topic.wait_count(100);
    active.kill();
    name.point_to(&standby.address);
    let lines = Lines::new("f", 100..200);
    folder.append("f.log", lines.bytes());
    later.wait_count_for(100, RECOVERY);
    let done = agent.stop().expect_code(0);
    Delivered::in_topic(&later).assert_exactly_once(&[&lines]);
    assert!(done.stderr.contains("now belong to another cluster"), "{}", done.stderr);
}

/// A topic is deleted and recreated on another node while the log is idle. The old leader's hint (KIP-951) names the
/// new leader with a leader epoch that is already known. Fails when metadata is not refreshed then: lines wait five
/// minutes.
#[test]
fn topic_recreated_on_another_node_while_idle() {
    let cluster = Cluster::start(Version::V41, &[]);
    let topic = cluster.topic_on(1);
    let folder = Folder::new();
    folder.write("f.log", Lines::new("f", 0..100).bytes());
    let mut agent = folder.follows(&cluster.bootstrap(), &topic, "modern").start();
    topic.wait_count(100);
    topic.delete();
    topic.create_on(2);
    let lines = Lines::new("f", 100..200);
    folder.append("f.log", lines.bytes());
    topic.wait_count_for(100, RECOVERY);
    agent.stop().expect_code(0);
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
}
