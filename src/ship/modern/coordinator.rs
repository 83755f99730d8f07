//! Carries ship's orders to the threads of the brokers concerned, and keeps what is known of the cluster. Opens no
//! connection, and waits for nothing but orders, news and its own deadlines.

use super::broker::Broker;
use super::cluster::Cluster;
use super::inbox::{self, Job, Post};
use super::messages::Node;
use super::scout::Question;
use super::{ASK_PATIENCE, News, Producer, STACK, Shared};
use crate::ship::driver::{Event, Leave, Order, Pace, TopicView};
use crossbeam_channel::{Receiver, Sender, never, select};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

/// One broker's thread, seen from outside.
struct Worker {
    post: Post,
    serial: u64,
    address: String,
}

pub struct Coordinator {
    shared: Arc<Shared>,
    cluster: Cluster,
    brokers: HashMap<i32, Worker>,
    questions: Sender<Question>,
    /// A question about metadata is open.
    asking: bool,
    serial: u64,
    unfit: Option<String>,
}

impl Coordinator {
    pub fn new(shared: Arc<Shared>, questions: Sender<Question>) -> Self {
        let cluster = Cluster::new(shared.options.metadata_age);
        Coordinator {
            shared,
            cluster,
            brokers: HashMap::new(),
            questions,
            asking: false,
            serial: 0,
            unfit: None,
        }
    }

    pub fn run(mut self, orders: &Receiver<Order>, told: &Receiver<News>) -> Leave {
        let leave = self.work(orders, told);
        self.end(&leave, told);
        leave
    }

    fn work(&mut self, orders: &Receiver<Order>, told: &Receiver<News>) -> Leave {
        loop {
            let now = Instant::now();
            self.ask(now);
            if let Some(why) = self.unfit.take() {
                return Leave::Unfit { why };
            }
            let metadata = if self.asking { None } else { self.cluster.next_due() };
            let due = metadata.into_iter().chain(self.overdue(now)).min();
            let due = due.map_or_else(never, crossbeam_channel::at);
            select! {
                recv(orders) -> order => match order {
                    Ok(Order::Change(next)) => return Leave::Changed(next),
                    Ok(order) => {
                        // What a worker told before it gave a batch back must be known before the batch goes out again.
                        told.try_iter().for_each(|n| self.news(n));
                        self.order(order);
                    }
                    Err(_) => return Leave::Closed,
                },
                recv(told) -> news => news.into_iter().for_each(|n| self.news(n)),
                recv(due) -> _ => {}
            }
        }
    }

    /// Answers for leaders that were asked and say nothing; tells when the next of them is due.
    fn overdue(&self, now: Instant) -> Option<Instant> {
        let late: Vec<Producer> =
            self.shared.asks().iter().filter(|(_, due)| *due <= now).map(|(a, _)| a.clone()).collect();
        late.iter().for_each(|a| self.shared.knows(a, Err("the leader does not answer".into())));
        self.shared.asks().iter().map(|(_, due)| *due).min()
    }

    /// Asks for metadata where it is due.
    fn ask(&mut self, now: Instant) {
        if self.asking {
            return;
        }
        let topics = self.cluster.due(now);
        if !topics.is_empty() {
            let known = self.cluster.nodes().map(Node::address).collect();
            self.asking = self.questions.try_send(Question::Metadata { topics, known }).is_ok();
        }
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Change(_) => {} // taken by `work`
            Order::Topic(topic) => {
                let view = self.cluster.want(topic, Instant::now());
                self.tell(view);
            }
            Order::ProducerId => {
                let asked = self.questions.send(Question::ProducerId);
                debug_assert!(asked.is_ok(), "the scout lives as long as the questions do");
            }
            Order::Ask { topic, partition, pid } => {
                let route = self.cluster.route(&topic, partition);
                let asked = Producer { topic, partition, pid };
                self.shared.asks().push((asked.clone(), Instant::now() + ASK_PATIENCE));
                self.hand(Job::Ask(asked), route).into_iter().for_each(|node| self.ring(node));
            }
            Order::Send(batches) => {
                let mut rung: Vec<i32> = Vec::new();
                for batch in batches {
                    let route = self.cluster.route(&batch.load.topic, batch.partition);
                    self.shared.held.fetch_add(1, SeqCst);
                    rung.extend(self.hand(Job::Send(batch), route).filter(|node| !rung.contains(node)));
                }
                rung.into_iter().for_each(|node| self.ring(node));
            }
        }
    }

    fn ring(&self, node: i32) {
        if let Some(worker) = self.brokers.get(&node) {
            worker.post.ring();
        }
    }

    /// Lays a job into the inbox of its broker; `None`: it went back.
    fn hand(&mut self, job: Job, route: Result<i32, (Pace, String)>) -> Option<i32> {
        let node = match route.and_then(|node| self.worker(node).map(|()| node)) {
            Ok(node) => node,
            Err((pace, why)) => {
                if let Job::Send(batch) = &job {
                    self.cluster.stale(&batch.load.topic, Instant::now());
                }
                self.shared.give_back(job, pace, &why);
                return None;
            }
        };
        self.brokers.get(&node)?.post.put(job);
        Some(node)
    }

    /// Makes sure that a broker has its thread.
    fn worker(&mut self, node: i32) -> Result<(), (Pace, String)> {
        let address = self.cluster.node(node).map(Node::address).unwrap_or_default();
        match self.brokers.get(&node) {
            Some(worker) if worker.address == address => return Ok(()),
            Some(_) => self.retire(node),
            None => {}
        }
        self.serial += 1;
        let serial = self.serial;
        let (post, inbox) = inbox::pair(self.shared.board.pulse.beat(format!("broker-{node}")))
            .map_err(|e| (Pace::Backoff, format!("eventfd: {e}")))?;
        let broker = Broker::new(node, serial, address.clone(), self.shared.clone(), inbox);
        thread::Builder::new()
            .name(format!("broker-{node}"))
            .stack_size(STACK)
            .spawn(move || broker.run())
            .map_err(|e| (Pace::Backoff, format!("cannot start a thread: {e}")))?;
        self.brokers.insert(node, Worker { post, serial, address });
        Ok(())
    }

    /// Ends a broker's thread. What it has not taken comes back at once, also while it hangs in connecting.
    fn retire(&mut self, node: i32) {
        if let Some(worker) = self.brokers.remove(&node) {
            for job in worker.post.take_back() {
                self.shared.give_back(job, Pace::Now, "the broker has another address");
            }
            self.shared.board.brokers().remove(&worker.address);
        }
    }

    fn tell(&self, views: impl IntoIterator<Item = TopicView>) {
        views.into_iter().for_each(|view| self.shared.event(Event::Topic(view)));
    }

    fn news(&mut self, news: News) {
        let now = Instant::now();
        match news {
            News::Up { node, serial } => self.reachable(node, serial, true),
            News::Down { node, serial } => self.reachable(node, serial, false),
            News::Ended => {}
            News::Stale { topic, partition } => self.cluster.refused(&topic, partition, now),
            News::Leader { topic, partition, leader, epoch, nodes } => {
                let views = self.cluster.hint(&topic, partition, leader, epoch, &nodes, now);
                self.tell(views);
            }
            News::Metadata { answer, topics } => {
                self.asking = false;
                let before = self.cluster.id.clone();
                let views = self.cluster.learn(answer, &topics, now);
                if before.is_some() && before != self.cluster.id {
                    self.shared.event(Event::OtherCluster);
                }
                let gone = |(node, w): (&i32, &Worker)| {
                    (self.cluster.node(*node).map(Node::address).as_ref() != Some(&w.address))
                        .then_some(*node)
                };
                let gone: Vec<i32> = self.brokers.iter().filter_map(gone).collect();
                gone.into_iter().for_each(|node| self.retire(node));
                self.tell(views);
            }
            News::ProducerId { pid, epoch } => self.shared.event(Event::ProducerId { pid, epoch }),
            News::Unfit(why) => self.unfit = Some(why),
        }
    }

    fn reachable(&mut self, node: i32, serial: u64, yes: bool) {
        if let Some(worker) = self.brokers.get(&node).filter(|w| w.serial == serial) {
            let views = self.cluster.reachable(node, &worker.address, yes, Instant::now());
            self.tell(views);
        }
    }

    /// Ends the workers. Before another driver takes over, every batch must be back; a worker with batches never blocks
    /// for long, so the limit is for the case that this is wrong.
    fn end(&mut self, leave: &Leave, told: &Receiver<News>) {
        let nodes: Vec<i32> = self.brokers.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.retire(node));
        self.shared.board.brokers().remove("bootstrap");
        let limit = Instant::now() + Duration::from_secs(10);
        while !matches!(leave, Leave::Closed) && self.shared.held.load(SeqCst) > 0 {
            if told.recv_deadline(limit).is_err() {
                log::error!("{} batches did not come back", self.shared.held.load(SeqCst));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::messages::{Metadata, PartitionMeta, TopicMeta};
    use super::super::scripted::one;
    use super::*;
    use crate::ship::driver::Verdict;
    use crossbeam_channel::{after, bounded};

    fn coordinator() -> (Coordinator, Receiver<Event>, Sender<News>, Receiver<News>) {
        let (events, seen) = bounded(100);
        let (news, told) = bounded(100);
        let shared = Shared::new(Default::default(), Default::default(), events, news.clone());
        let (questions, _) = bounded(1);
        (Coordinator::new(Arc::new(shared), questions), seen, news, told)
    }

    /// Fails when an order is carried out before what a worker told earlier: the batch would go to the old leader.
    #[test]
    fn news_count_before_orders() {
        for _ in 0..30 {
            let (mut c, _seen, news, told) = coordinator();
            let node = |id| Node { id, host: "127.0.0.1".into(), port: 1 };
            let part = PartitionMeta { partition: 0, leader: 1, epoch: 0 };
            let (name, partitions) = ("t".into(), vec![part]);
            let topic = TopicMeta { error: 0, name, id: [0; 16], partitions, rights: None };
            let answer = Metadata { nodes: vec![node(1), node(2)], cluster: None, topics: vec![topic] };
            c.cluster.want("t".into(), Instant::now());
            c.asking = true;
            c.news(News::Metadata { answer, topics: vec!["t".into()] });
            let nodes = Vec::new().into();
            news.send(News::Leader { topic: "t".into(), partition: 0, leader: 2, epoch: 1, nodes }).unwrap();
            let (orders, inbox) = bounded(1);
            orders.send(Order::Send(vec![one(0, 0)])).unwrap();
            drop(orders);
            assert!(matches!(c.work(&inbox, &told), Leave::Closed));
            assert_eq!(c.brokers.keys().copied().collect::<Vec<_>>(), [2]);
        }
    }

    /// Fails when another driver is let in while a worker still holds a batch, or a batch that no worker has taken is not
    /// given back.
    #[test]
    fn before_another_driver_takes_over_every_batch_is_back() {
        let (mut c, seen, _news, told) = coordinator();
        let (post, inbox) = inbox::pair(crate::pulse::Pulse::default().beat("test")).unwrap();
        c.shared.held.store(2, SeqCst);
        post.put(Job::Send(one(0, 0)));
        let mut taken = None;
        assert!(inbox.take(|job| taken = Some(job)));
        post.put(Job::Send(one(0, 1)));
        let address = String::new();
        c.brokers.insert(1, Worker { post, serial: 1, address });
        let shared = c.shared.clone();
        let slow = thread::spawn(move || {
            while !inbox.is_closed() {
                thread::yield_now();
            }
            let _ = after(Duration::from_millis(200)).recv();
            shared.give_back(taken.unwrap(), Pace::Now, "late");
            shared.news(News::Ended);
        });
        c.end(&Leave::Unfit { why: String::new() }, &told);
        let back =
            seen.try_iter().filter(|e| matches!(e, Event::Done { verdict: Verdict::Again { .. }, .. }));
        assert_eq!(back.count(), 2);
        slow.join().unwrap();
    }
}
