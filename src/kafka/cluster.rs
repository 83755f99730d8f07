//! The known state of the cluster: brokers, topics, leaders, and when to refresh them. No I/O; time is an argument.

use crate::kafka::protocol::errors;
use crate::kafka::protocol::messages::{Metadata, Node, TopicMeta};
use crate::producer::driver::{Pace, TopicView};
use crate::record::Topic;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Shortest interval between two metadata requests for a topic in trouble. Doubled up to [`SLOWEST`], or up to
/// [`ELECTION`] if only leaders are missing: those are elected within seconds, and each second counts.
const QUICKEST: Duration = Duration::from_millis(100);
const SLOWEST: Duration = Duration::from_secs(5);
const ELECTION: Duration = Duration::from_secs(1);
/// How many consecutive answers may name an older leader epoch, each after a refusal by the leader with the newer one,
/// before the older one is believed. A single such answer can come from a broker that lags behind.
const DOUBTS: u8 = 2;

#[derive(Debug)]
pub struct Cluster {
    /// Maximum age of an answer while all is well.
    age: Duration,
    pub id: Option<String>,
    nodes: BTreeMap<i32, Node>,
    /// The address at which a broker is unreachable. The same node at another address counts as a different broker.
    down: BTreeMap<i32, String>,
    topics: HashMap<Topic, KnownTopic>,
}

#[derive(Debug)]
struct KnownTopic {
    id: [u8; 16],
    /// From the last answer; 0: none.
    error: i16,
    leaders: BTreeMap<i32, Leader>,
    /// The view last reported to the core.
    reported: Option<TopicView>,
    asked: Option<Instant>,
    next: Instant,
    /// All is well, and no batch was sent since that answer: `next` does not count. Refreshing the metadata of topics without
    /// traffic would wake an idle agent and its connection for nothing (as in KIP-526).
    unused: bool,
    pace: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Leader {
    /// -1: none.
    node: i32,
    /// -1: not known.
    epoch: i32,
    /// It says that it is not the leader, and no metadata has arrived since.
    refuses: bool,
    /// Consecutive answers that named an older epoch after such a refusal.
    doubts: u8,
}

impl Leader {
    fn new(node: i32, epoch: i32) -> Self {
        Leader { node, epoch, refuses: false, doubts: 0 }
    }
}

impl Cluster {
    pub fn new(age: Duration) -> Self {
        Cluster { age, id: None, nodes: BTreeMap::new(), down: BTreeMap::new(), topics: HashMap::new() }
    }

    /// Subscribes to a topic. Returns the view already reported to the core, if any, so that it is reported again.
    pub fn want(&mut self, topic: Topic, now: Instant) -> Option<TopicView> {
        let known = self.topics.entry(topic).or_insert_with(|| KnownTopic {
            id: [0; 16],
            error: 0,
            leaders: BTreeMap::new(),
            reported: None,
            asked: None,
            next: now,
            unused: false,
            pace: QUICKEST,
        });
        known.reported.clone()
    }

    /// A topic's leaders are in doubt: refresh soon, but at most every 100 ms.
    pub fn stale(&mut self, topic: &Topic, now: Instant) {
        if let Some(known) = self.topics.get_mut(topic) {
            let soon = known.asked.map_or(now, |asked| (asked + QUICKEST).max(now));
            known.next = known.next.min(soon);
            known.unused = false;
        }
    }

    /// A partition's leader refused a batch: refresh soon.
    pub fn refused(&mut self, topic: &Topic, partition: i32, now: Instant) {
        if let Some(leader) = self.topics.get_mut(topic).and_then(|k| k.leaders.get_mut(&partition)) {
            leader.refuses = true;
        }
        self.stale(topic, now);
    }

    /// The topics to request now.
    pub fn due(&self, now: Instant) -> Vec<Topic> {
        self.topics.iter().filter(|(_, k)| !k.unused && k.next <= now).map(|(t, _)| t.clone()).collect()
    }

    pub fn next_due(&self) -> Option<Instant> {
        self.topics.values().filter(|k| !k.unused).map(|k| k.next).min()
    }

    /// Processes an answer; returns the changed views for the core.
    pub fn learn(&mut self, answer: Metadata, asked: &[Topic], now: Instant) -> Vec<TopicView> {
        if let (Some(old), Some(new)) = (&self.id, &answer.cluster)
            && old != new
        {
            log::warn!("the bootstrap brokers now belong to another cluster: {new} instead of {old}");
            // Leader epochs of another cluster cannot be compared with these.
            for leader in self.topics.values_mut().flat_map(|k| k.leaders.values_mut()) {
                leader.epoch = -1;
            }
        }
        self.id = answer.cluster.or(self.id.take());
        self.nodes = answer.nodes.into_iter().map(|n| (n.id, n)).collect();
        let nodes = &self.nodes;
        self.down.retain(|id, address| nodes.get(id).is_some_and(|n| n.address == *address));
        for meta in &answer.topics {
            if let Some(known) = self.topics.get_mut(meta.name.as_str()) {
                known.learn(&meta.name, meta);
            }
        }
        for topic in asked {
            let Some(known) = self.topics.get_mut(topic) else { continue };
            known.asked = Some(now);
            let well = known.error == 0
                && !known.leaders.is_empty()
                && known
                    .leaders
                    .values()
                    .all(|l| self.nodes.contains_key(&l.node) && !self.down.contains_key(&l.node));
            known.unused = well;
            if well {
                (known.pace, known.next) = (QUICKEST, now + self.age);
            } else {
                let most = if known.error == 0 && !known.leaders.is_empty() { ELECTION } else { SLOWEST };
                (known.pace, known.next) = ((known.pace * 2).min(SLOWEST), now + known.pace.min(most));
            }
        }
        self.changes()
    }

    /// A broker that refused a batch names the partition's leader (KIP-951). `nodes`: the leaders' addresses. A hint
    /// that is not newer than what is known is ignored, and metadata is requested instead.
    pub fn hint(
        &mut self,
        topic: &Topic,
        partition: i32,
        node: i32,
        epoch: i32,
        nodes: &[Node],
        now: Instant,
    ) -> Vec<TopicView> {
        // Take only the current leader's address: other nodes in answers must not accumulate.
        if let Some(n) = nodes.iter().find(|n| n.id == node) {
            self.nodes.entry(n.id).or_insert_with(|| n.clone());
        }
        if let Some(known) = self.topics.get_mut(topic)
            && let Some(leader) = known.leaders.get_mut(&partition)
            && epoch > leader.epoch
            && self.nodes.contains_key(&node)
        {
            *leader = Leader::new(node, epoch);
        } else {
            self.refused(topic, partition, now);
        }
        self.changes()
    }

    /// A broker became reachable or unreachable at this address. If unreachable, its partitions may soon have another
    /// leader.
    pub fn reachable(&mut self, node: i32, address: &str, yes: bool, now: Instant) -> Vec<TopicView> {
        if self.nodes.get(&node).is_none_or(|n| n.address != address) {
            return Vec::new(); // it has another address by now
        }
        if yes {
            self.down.remove(&node);
        } else {
            self.down.insert(node, address.to_owned());
        }
        let led: Vec<Topic> = self
            .topics
            .iter()
            .filter(|(_, k)| !yes && k.leaders.values().any(|l| l.node == node))
            .map(|(t, _)| t.clone())
            .collect();
        led.iter().for_each(|t| self.stale(t, now));
        self.changes()
    }

    /// The broker for a partition's batches, or why there is none. The topic is in use: its metadata is refreshed once it
    /// is old enough.
    pub fn route(&mut self, topic: &Topic, partition: i32) -> Result<i32, (Pace, String)> {
        let Some(known) = self.topics.get_mut(topic) else {
            return Err((Pace::Backoff, "it was never requested".into()));
        };
        known.unused = false;
        match known.leaders.get(&partition) {
            Some(l) if self.down.contains_key(&l.node) => {
                let at = &self.down[&l.node];
                Err((Pace::Backoff, format!("broker {at} is down")))
            }
            Some(l) if self.nodes.contains_key(&l.node) && known.error == 0 => Ok(l.node),
            _ if known.error != 0 => {
                let pace = match errors::of(known.error).fate {
                    errors::Fate::Retry(Pace::Blocked) => Pace::Blocked,
                    _ => Pace::Backoff,
                };
                Err((pace, errors::text(known.error, "")))
            }
            Some(_) => Err((Pace::Backoff, "it has no leader".into())),
            None if known.asked.is_none() => Err((Pace::Backoff, "the cluster is not known yet".into())),
            None => Err((Pace::Backoff, errors::no_partition(known.leaders.len()).to_string())),
        }
    }

    /// The error in the last answer about a topic.
    pub fn trouble(&self, topic: &Topic) -> Option<String> {
        let known = self.topics.get(topic).filter(|known| known.error != 0)?;
        Some(errors::text(known.error, ""))
    }

    pub fn address(&self, node: i32) -> Option<&str> {
        self.nodes.get(&node).map(|node| &*node.address)
    }

    /// Views that differ from the last reported ones. A topic that becomes unavailable keeps its partitions, none
    /// available.
    fn changes(&mut self) -> Vec<TopicView> {
        let mut changed = Vec::new();
        for (topic, known) in &mut self.topics {
            if known.leaders.is_empty() {
                continue;
            }
            let lives = |l: &Leader| self.nodes.contains_key(&l.node) && !self.down.contains_key(&l.node);
            let available = match known.error {
                0 => known.leaders.iter().filter(|(_, l)| lives(l)).map(|(p, _)| *p).collect(),
                _ => Vec::new(),
            };
            let partitions = known.leaders.keys().copied().collect();
            let view = TopicView { topic: topic.clone(), id: known.id, partitions, available };
            if known.reported.as_ref() != Some(&view) {
                known.reported = Some(view.clone());
                changed.push(view);
            }
        }
        changed
    }
}

impl Leader {
    /// What to keep of a leader when metadata names an older epoch: a broker that lags behind may name a replaced
    /// leader. `None`: the leader has refused so often that the older epoch is believed.
    fn outlives(&self, older: i32) -> Option<Leader> {
        let doubts = self.doubts + u8::from(self.refuses);
        if doubts < DOUBTS {
            return Some(Leader { refuses: false, doubts, ..*self });
        }
        log::warn!(
            "node {} refuses batches although it should lead with epoch {}; using the metadata, which says epoch {older}",
            self.node,
            self.epoch
        );
        None
    }
}

impl KnownTopic {
    fn learn(&mut self, name: &str, meta: &TopicMeta) {
        if self.error != meta.error {
            match meta.error {
                0 => log::info!("topic {name}: available again"),
                // The topic is being created, or its leaders are being elected: over in a moment, or reported
                // elsewhere.
                5 => {}
                code => log::warn!("topic {name}: {}; asking again", errors::text(code, "")),
            }
        }
        self.error = meta.error;
        if meta.partitions.is_empty() {
            return;
        }
        let same = self.id == meta.id;
        self.id = meta.id;
        let old = std::mem::take(&mut self.leaders);
        for p in &meta.partitions {
            let claimed = Leader::new(p.leader, p.epoch);
            let newer =
                old.get(&p.partition).filter(|o| same && claimed.epoch >= 0 && o.epoch > claimed.epoch);
            self.leaders
                .insert(p.partition, newer.and_then(|o| o.outlives(claimed.epoch)).unwrap_or(claimed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::protocol::messages::PartitionMeta;

    const ZERO: [u8; 16] = [0; 16];

    /// Name, error, and each partition's number, leader and epoch.
    type Told<'a> = (&'a str, i16, &'a [(i32, i32, i32)]);

    fn answer(nodes: &[i32], topics: &[Told<'_>]) -> Metadata {
        let node = |id: &i32| Node::new(*id, "h", *id as u16);
        let topic = |(name, error, partitions): &Told<'_>| TopicMeta {
            error: *error,
            name: (*name).into(),
            id: ZERO,
            rights: None,
            partitions: partitions
                .iter()
                .map(|&(partition, leader, epoch)| PartitionMeta { partition, leader, epoch })
                .collect(),
        };
        Metadata {
            nodes: nodes.iter().map(node).collect(),
            cluster: None,
            topics: topics.iter().map(topic).collect(),
        }
    }

    struct At {
        c: Cluster,
        now: Instant,
        t: Topic,
    }

    impl At {
        fn new() -> Self {
            let (mut c, now, t) = (Cluster::new(Duration::from_secs(300)), Instant::now(), Topic::from("t"));
            assert_eq!(c.want(t.clone(), now), None);
            assert!(c.due(now) == [&*t].map(Topic::from));
            At { c, now, t }
        }

        /// Feeds an answer about `t`; returns the partitions and available ones reported to the core, if any.
        fn learn(
            &mut self,
            nodes: &[i32],
            error: i16,
            parts: &[(i32, i32, i32)],
        ) -> Option<(Vec<i32>, Vec<i32>)> {
            let t = self.t.clone();
            let views = self.c.learn(answer(nodes, &[("t", error, parts)]), &[t], self.now);
            assert!(views.len() <= 1);
            views.into_iter().next().map(|v| (v.partitions, v.available))
        }

        /// Until the next request for a topic that is in use, in ms.
        fn waits(&mut self) -> u128 {
            let _ = self.c.route(&self.t, 0);
            self.c.next_due().unwrap().saturating_duration_since(self.now).as_millis()
        }
    }

    /// Fails when the metadata of a topic without traffic is refreshed, or that of one in use or in doubt is not.
    #[test]
    fn topics_without_traffic_are_not_asked_for() {
        let mut a = At::new();
        a.learn(&[1], 0, &[(0, 1, 5)]);
        let later = a.now + Duration::from_secs(3600);
        assert_eq!((a.c.next_due(), a.c.due(later)), (None, vec![]));
        assert_eq!(a.c.route(&a.t, 0), Ok(1));
        assert_eq!(a.c.due(later), [a.t.clone()]);
        a.learn(&[1], 0, &[(0, 1, 5)]);
        assert_eq!(a.c.due(later), []);
        a.c.stale(&a.t.clone(), a.now);
        assert!(a.c.next_due().is_some_and(|at| at <= a.now + QUICKEST));
    }

    /// Fails when a partition without a leader, or one led by a broker that is unknown or down, counts as available.
    #[test]
    fn available_are_those_with_a_reachable_leader() {
        let mut a = At::new();
        let parts = [(0, 1, 0), (1, -1, 0), (2, 9, 0), (5, 2, 0)];
        assert_eq!(a.learn(&[1, 2], 0, &parts), Some((vec![0, 1, 2, 5], vec![0, 5])));
        assert_eq!(a.learn(&[1, 2], 0, &parts), None, "reported twice");
        assert_eq!(a.c.reachable(2, "h:2", false, a.now)[0].available, [0]);
        assert_eq!(a.c.route(&a.t, 0), Ok(1));
        assert!(a.c.route(&a.t, 5).unwrap_err().1.contains("down"));
        assert!(a.c.route(&a.t, 1).unwrap_err().1.contains("no leader"));
        assert!(a.c.route(&a.t, 7).unwrap_err().1.contains("and not this one"));
        assert_eq!(a.c.reachable(2, "h:2", true, a.now)[0].available, [0, 5]);
        assert!(
            a.c.want(a.t.clone(), a.now).is_some_and(|v| v.available == [0, 5]),
            "requested again, reported again"
        );
    }

    /// Fails when a lagging broker's answer or an older hint moves a partition back to a replaced leader.
    #[test]
    fn a_newer_leader_stays() {
        let mut a = At::new();
        a.learn(&[1, 2, 3], 0, &[(0, 1, 4)]);
        a.c.hint(&a.t.clone(), 0, 2, 5, &[], a.now);
        assert_eq!(a.c.route(&a.t, 0), Ok(2));
        a.learn(&[1, 2, 3], 0, &[(0, 1, 4)]);
        assert_eq!(a.c.route(&a.t, 0), Ok(2));
        a.c.hint(&a.t.clone(), 0, 1, 5, &[], a.now);
        assert_eq!(a.c.route(&a.t, 0), Ok(2));
        a.c.hint(&a.t.clone(), 0, 44, 9, &[], a.now);
        assert_eq!(a.c.route(&a.t, 0), Ok(2), "an unknown leader");
        a.learn(&[1, 2, 3], 0, &[(0, 3, 6)]);
        assert_eq!(a.c.route(&a.t, 0), Ok(3));
        a.learn(&[1, 2, 3], 0, &[(0, 1, -1)]);
        assert_eq!(a.c.route(&a.t, 0), Ok(1), "without epochs the latest metadata counts");
    }

    /// Fails when an unreachable broker counts as down at another address too, does not at the same address, or
    /// reports about the old address are applied to the new one.
    #[test]
    fn an_address_is_down_not_a_node() {
        let mut a = At::new();
        a.learn(&[1], 0, &[(0, 1, 0)]);
        assert!(a.c.reachable(1, "h:1", false, a.now)[0].available.is_empty());
        assert_eq!(a.learn(&[1], 0, &[(0, 1, 0)]), None, "the same address");
        let moved = Node::new(1, "h", 77);
        let mut news = answer(&[], &[("t", 0, &[(0, 1, 0)])]);
        news.nodes.push(moved);
        let views = a.c.learn(news, &[a.t.clone()], a.now);
        assert_eq!(views[0].available, [0]);
        assert_eq!((a.c.route(&a.t, 0), a.waits()), (Ok(1), 300_000));
        assert!(a.c.reachable(1, "h:1", false, a.now).is_empty());
        assert_eq!(a.c.route(&a.t, 0), Ok(1));
    }

    /// Fails when a hint that cannot be used changes nothing until the metadata expires.
    #[test]
    fn a_hint_that_is_not_newer_asks_for_metadata() {
        let mut a = At::new();
        a.learn(&[1, 2], 0, &[(0, 1, 4)]);
        a.now += Duration::from_secs(10);
        for (node, epoch) in [(2, 4), (2, 0), (44, 9)] {
            a.learn(&[1, 2], 0, &[(0, 1, 4)]);
            assert_eq!(a.waits(), 300_000);
            a.c.hint(&a.t.clone(), 0, node, epoch, &[], a.now);
            assert_eq!(a.waits(), 100, "node {node}, epoch {epoch}");
        }
        a.learn(&[1, 2], 0, &[(0, 1, 4)]);
        a.c.hint(&a.t.clone(), 0, 2, 5, &[], a.now);
        assert_eq!(a.waits(), 300_000, "the hint was used");
    }

    /// A broker once reported the highest possible epoch. Fails when that is believed indefinitely, or when a single
    /// answer of a broker that lags behind moves a partition back.
    #[test]
    fn a_leader_that_refuses_is_not_believed_indefinitely() {
        let mut a = At::new();
        a.learn(&[1, 2], 0, &[(0, 1, i32::MAX)]);
        for _ in 0..5 {
            a.learn(&[1, 2], 0, &[(0, 2, 6)]);
        }
        assert_eq!(a.c.route(&a.t, 0), Ok(1), "it has refused nothing");
        for _ in 0..3 {
            a.c.refused(&a.t.clone(), 0, a.now);
        }
        a.learn(&[1, 2], 0, &[(0, 2, 6)]);
        assert_eq!(a.c.route(&a.t, 0), Ok(1), "one answer");
        a.c.refused(&a.t.clone(), 0, a.now);
        a.learn(&[1, 2], 0, &[(0, 2, 6)]);
        assert_eq!(a.c.route(&a.t, 0), Ok(2));
        a.c.hint(&a.t.clone(), 0, 1, 7, &[], a.now);
        assert_eq!(a.c.route(&a.t, 0), Ok(1), "its epochs count again");
    }

    /// Fails when the previous cluster's leader epochs block those of another cluster behind the same name.
    #[test]
    fn another_cluster_has_other_epochs() {
        let mut a = At::new();
        let of = |cluster: &str, leader, epoch| Metadata {
            cluster: Some(cluster.into()),
            ..answer(&[1, 2], &[("t", 0, &[(0, leader, epoch)])])
        };
        a.c.learn(of("a", 1, 9), &[a.t.clone()], a.now);
        a.c.learn(of("a", 2, 3), &[a.t.clone()], a.now);
        assert_eq!(a.c.route(&a.t, 0), Ok(1));
        a.c.learn(of("b", 2, 0), &[a.t.clone()], a.now);
        assert_eq!(a.c.route(&a.t, 0), Ok(2));
    }

    /// Fails when a topic in trouble is requested in a busy loop, or only after the maximum age.
    #[test]
    fn metadata_requests_are_paced() {
        let mut a = At::new();
        let mut waits = Vec::new();
        for _ in 0..8 {
            a.learn(&[1], 3, &[]);
            waits.push(a.waits());
            let waits = a.waits();
            a.now += Duration::from_millis(waits as u64);
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        a.learn(&[1], 0, &[(0, -1, 0)]);
        assert_eq!(a.waits(), 1000, "an election");
        a.learn(&[1], 0, &[(0, 1, 0)]);
        assert_eq!(a.waits(), 300_000);
        a.c.stale(&a.t.clone(), a.now);
        assert_eq!(a.waits(), 100, "just asked");
        a.now += Duration::from_secs(1);
        a.c.stale(&a.t.clone(), a.now);
        assert_eq!(a.waits(), 0);
    }

    /// Fails when another topic changes how often a topic in trouble is requested.
    #[test]
    fn each_topic_has_its_own_pace() {
        let mut a = At::new();
        let other = Topic::from("u");
        a.c.want(other.clone(), a.now);
        let both = [a.t.clone(), other.clone()];
        a.c.learn(answer(&[1], &[("t", 0, &[(0, 1, 0)]), ("u", 3, &[])]), &both, a.now);
        assert_eq!(a.c.due(a.now + Duration::from_millis(150)), [other]);
    }

    /// Fails when a topic that was deleted, or that we may no longer see, keeps its available partitions or loses its
    /// view.
    #[test]
    fn a_lost_topic_keeps_its_partitions_but_none_is_available() {
        let mut a = At::new();
        a.learn(&[1], 0, &[(0, 1, 0)]);
        assert_eq!(a.learn(&[1], 29, &[]), Some((vec![0], vec![])));
        assert!(
            matches!(a.c.route(&a.t, 0), Err((Pace::Blocked, why)) if why.contains("TOPIC_AUTHORIZATION_FAILED"))
        );
        assert_eq!(a.learn(&[1], 3, &[]), None);
        assert!(matches!(a.c.route(&a.t, 0), Err((Pace::Backoff, _))));
        assert_eq!(a.learn(&[1], 0, &[(0, 1, 0)]), Some((vec![0], vec![0])));
    }
}
