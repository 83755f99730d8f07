//! Brokers that come back elsewhere: another port with the same node id, another cluster behind the same name, a topic made
//! anew on another node.

use crate::harness::*;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// Within this, lines arrive again after a move.
const FOUND: std::time::Duration = secs(60);

/// An address that stays, as a DNS name does, whatever is behind it. Passes bytes on and knows no Kafka.
struct Name {
    address: String,
    target: Arc<Mutex<SocketAddr>>,
}

impl Name {
    fn of(broker: &str) -> Name {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let target = Arc::new(Mutex::new(broker.parse().unwrap()));
        let to = target.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect_timeout(&to.lock().unwrap(), SOON) else { continue };
                for (mut from, mut to) in
                    [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
                {
                    thread::spawn(move || {
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
            }
        });
        Name { address, target }
    }

    fn now_means(&self, broker: &str) {
        *self.target.lock().unwrap() = broker.parse().unwrap();
    }
}

#[track_caller]
fn comes_back_on_another_port(version: Version) {
    let mut broker = Broker::own(version);
    let mut topic = broker.topic(1);
    let name = Name::of(&broker.address);
    let folder = Folder::new();
    let lines = Lines::new("f", 0..200);
    folder.write("f.log", Lines::new("f", 0..100).bytes());
    let mut agent = folder.follows(&name.address, &topic, "modern").start();
    topic.wait_count(100);
    topic.address = broker.move_away();
    name.now_means(&topic.address);
    folder.append("f.log", Lines::new("f", 100..200).bytes());
    topic.wait_count_for(200, FOUND);
    agent.stop().expect_code(0);
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
}

/// Each fails when a broker counts as down by its node id: the worker that could find it up again has the old address.
#[test]
fn a_broker_of_3_9_comes_back_on_another_port() {
    comes_back_on_another_port(Version::V39);
}
#[test]
fn a_broker_of_4_1_comes_back_on_another_port() {
    comes_back_on_another_port(Version::V41);
}

/// The same on three nodes, where the others tell the new address.
#[test]
fn one_of_three_comes_back_on_another_port() {
    let mut cluster = Cluster::start(Version::V41, &[]);
    let topic = cluster.topic_on(2);
    let folder = Folder::new();
    let lines = Lines::new("f", 0..200);
    folder.write("f.log", Lines::new("f", 0..100).bytes());
    let mut agent = folder.follows(&cluster.addresses[0], &topic, "modern").start();
    topic.wait_count(100);
    cluster.move_away(2);
    folder.append("f.log", Lines::new("f", 100..200).bytes());
    topic.wait_count_for(200, FOUND);
    agent.stop().expect_code(0);
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
}

/// A standby cluster takes over behind the same name: the same node id, another address, another cluster. Fails as above.
#[test]
fn a_standby_cluster_behind_the_same_name() {
    let (active, standby) = (Broker::own(Version::V41), Broker::own(Version::V41));
    let topic = active.topic(1);
    let mut later = standby.unborn_topic(1);
    later.name.clone_from(&topic.name);
    later.create(&[]);
    let name = Name::of(&active.address);
    let folder = Folder::new();
    folder.write("f.log", Lines::new("f", 0..100).bytes());
    let mut agent = folder.follows(&name.address, &topic, "modern").start();
    topic.wait_count(100);
    active.kill();
    name.now_means(&standby.address);
    let lines = Lines::new("f", 100..200);
    folder.append("f.log", lines.bytes());
    later.wait_count_for(100, FOUND);
    let done = agent.stop().expect_code(0);
    Delivered::in_topic(&later).assert_exactly_once(&[&lines]);
    assert!(done.stderr.contains("of another cluster now"), "{}", done.stderr);
}

/// A topic is deleted and created again on another node while nothing is written. The old leader's hint (KIP-951) names the
/// new one in a leader epoch that is known already. Fails when metadata is not asked then: lines wait for five minutes.
#[test]
fn a_topic_made_anew_on_another_node_while_idle() {
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
    topic.wait_count_for(100, FOUND);
    agent.stop().expect_code(0);
    Delivered::in_topic(&topic).assert_exactly_once(&[&lines]);
}
