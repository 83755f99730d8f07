//! A session with the cluster: finding a host that answers, the topics' partitions, the way to each leader, and sending one
//! batch. Keeps no order queue and gives no verdicts.

use super::client::{Client, Trouble};
use super::{Fault, Lane, Options, Unfit, Worker, verdict};
use crate::chunk::Topic;
use crate::ship::driver::{Event, Leave, Pace, TopicView};
use crate::ship::flight::Batch;
use crate::ship::outage::Who;
use crate::ship::probe::{self, Finding, Ranges};
use crate::ship::render::{Pen, Piece};
use crate::sys;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Attempts that failed in a row, and when the next is due.
#[derive(Debug, Default, Clone)]
pub struct Wait {
    tries: u32,
    pub until: Option<Instant>,
    pub why: String,
}

impl Wait {
    /// 0.1 s, doubled each time up to `longest`, of which a random part of up to a quarter is left out, so that a fleet
    /// does not come back in step.
    fn failed(&mut self, why: String, longest: Duration) {
        let base = Duration::from_millis(100) * 2u32.pow(self.tries.min(10));
        let random = std::hash::RandomState::new().build_hasher().finish() % 250;
        let pause = base.min(longest);
        self.until = Some(Instant::now() + pause - pause * random as u32 / 1000);
        self.tries += 1;
        self.why = why;
    }

    fn is_over(&self) -> bool {
        self.until.is_none_or(|at| Instant::now() >= at)
    }
}

/// One client of the crate, and what is known through it.
pub struct Session {
    client: Client,
    /// The bootstrap host, as the config calls it, and its address.
    host: String,
    via: SocketAddr,
    pub ranges: Ranges,
    pub born: Instant,
    leaders: HashMap<String, Leader>,
}

/// A leader that answered a probe or a request.
struct Leader {
    peers: Vec<SocketAddr>,
    /// When it answered last.
    at: Instant,
    /// The crate's own connections to it, found after its first answer.
    sockets: Vec<sys::Socket>,
}

impl Session {
    /// Is there nothing to read from this leader, as it must be before a request? What there is would be taken for the answer
    /// to it (D1). And a connection that the peer has closed would still take one request, and lose it without a word
    /// where no answer is asked for (D2, D6).
    pub fn is_silent(&self, leader: &str) -> bool {
        self.leaders.get(leader).is_none_or(|l| l.sockets.iter().all(sys::Socket::is_silent))
    }

    pub fn used(&mut self, leader: &str) {
        if let Some(l) = self.leaders.get_mut(leader) {
            l.at = Instant::now();
            if l.sockets.is_empty() {
                l.sockets = sys::sockets_to(&l.peers);
            }
        }
    }

    /// Sends a batch in frames of up to [`FRAME`] bytes, mostly one, each answered before the next goes. The first
    /// record's offset; none where other producers' records came in between.
    pub fn produce(
        &mut self,
        pen: &mut Pen,
        batch: &Batch,
        options: &Options,
    ) -> Result<Option<i64>, Trouble> {
        let mut page = Page::default();
        let mut sent = Ok(Sent::default());
        let mut flush = |page: &mut Page<'_>, sent: &mut Result<Sent, Trouble>| {
            if let Ok(so_far) = sent {
                let how = (options.acks, options.limits.ack);
                let done = self.client.produce(&batch.load.topic, batch.partition, how, page.records());
                match done {
                    Ok(offset) => so_far.add(offset, page.places.len()),
                    Err(trouble) => *sent = Err(trouble),
                }
            }
            page.clear();
        };
        pen.each(batch, |record| {
            let bytes = OVERHEAD + record.key.as_deref().map_or(0, <[u8]>::len) + record.value.len();
            if page.bytes > 0 && page.bytes + bytes > FRAME {
                flush(&mut page, &mut sent);
            }
            page.bytes += bytes;
            let key = record.key.map(|k| page.place(k));
            let value = page.place(record.value);
            page.places.push((key, value));
        });
        flush(&mut page, &mut sent);
        sent.map(|s| s.first.filter(|_| s.gapless))
    }
}

/// Largest frame of more than one record, in bytes: a usual batch of 512 KiB goes as one, and one of very short lines, which
/// the old format makes many times larger, does not fill the memory.
const FRAME: usize = 1 << 20;

/// What the old message format adds to key and value: offset 8, size 4, crc 4, magic, attributes, two lengths of 4.
const OVERHEAD: usize = 26;

struct Sent {
    first: Option<i64>,
    records: i64,
    gapless: bool,
}

impl Default for Sent {
    fn default() -> Self {
        Sent { first: None, records: 0, gapless: true }
    }
}

impl Sent {
    fn add(&mut self, offset: Option<i64>, records: usize) {
        if self.records == 0 {
            self.first = offset;
        }
        self.gapless &= offset == self.first.map(|f| f + self.records);
        self.records += records as i64;
    }
}

/// The records of one frame, as the crate must have them: all at once. Lines stay where they are; only what the pen
/// writes is copied.
#[derive(Default)]
struct Page<'l> {
    bytes: usize,
    places: Vec<(Option<Place<'l>>, Place<'l>)>,
    written: Vec<u8>,
}

enum Place<'l> {
    Lasting(&'l [u8]),
    Written(Range<usize>),
}

impl<'l> Page<'l> {
    fn place(&mut self, piece: Piece<'l, '_>) -> Place<'l> {
        match piece {
            Piece::Lasting(bytes) => Place::Lasting(bytes),
            Piece::Passing(bytes) => {
                let from = self.written.len();
                self.written.extend_from_slice(bytes);
                Place::Written(from..self.written.len())
            }
        }
    }

    fn get(&self, place: &Place<'l>) -> &[u8] {
        match place {
            Place::Lasting(bytes) => bytes,
            Place::Written(range) => &self.written[range.clone()],
        }
    }

    fn records(&self) -> impl Iterator<Item = (Option<&[u8]>, &[u8])> {
        self.places.iter().map(|(key, value)| (key.as_ref().map(|k| self.get(k)), self.get(value)))
    }

    fn clear(&mut self) {
        self.bytes = 0;
        self.places.clear();
        self.written.clear();
    }
}

impl Worker<'_> {
    pub fn drop_session(&mut self) {
        self.session = None;
        let soon = Instant::now() + self.options.limits.pause;
        for lane in self.topics.values_mut() {
            lane.led.clear();
            if lane.is_wanting() {
                lane.wait.until.get_or_insert(soon);
            }
        }
    }

    /// A session, the present one or a new one through the first bootstrap host that answers.
    pub fn connect(&mut self) -> Result<(), Fault> {
        if self.session.as_ref().is_some_and(|s| !s.client.is_spoilt()) {
            return Ok(());
        }
        self.drop_session();
        if !self.wait.is_over() {
            return Err(Fault::Again(Pace::Backoff, self.wait.why.clone()));
        }
        let began = Instant::now();
        let hosts = self.options.brokers.len();
        let mut last = "no broker is configured".to_owned();
        for _ in 0..hosts {
            let host = self.options.brokers[self.turn % hosts].clone();
            match self.visit(&host) {
                Ok((via, ranges)) => {
                    let o = self.options;
                    let client = Client::new(via, &o.client_id, o.codec, o.limits.idle);
                    let (born, leaders) = (Instant::now(), HashMap::new());
                    self.session = Some(Session { client, host, via, ranges, born, leaders });
                    self.wait.until = None; // `tries` goes back when the cluster has answered for a topic
                    return Ok(());
                }
                Err(Fault::Again(_, why)) => last = format!("{host}: {why}"),
                Err(other) => return Err(other),
            }
            // D5: the next attempt begins with the next host, so that none that hangs stands before the others.
            self.turn = (self.turn + 1) % hosts;
            if began.elapsed() > Duration::from_secs(15) {
                break; // the rest at the next attempt: batches wait for their verdict meanwhile
            }
        }
        self.wait.failed(last.clone(), self.options.limits.pause);
        Err(Fault::Again(Pace::Backoff, last))
    }

    /// Asks what listens at a host (D4, D10), at each of its addresses, with its outage recorded.
    fn visit(&mut self, host: &str) -> Result<(SocketAddr, Ranges), Fault> {
        let found = probe::resolve(host).and_then(|all| {
            let mut last = String::new();
            for addr in all {
                match probe::ask(addr, &self.options.limits.probe) {
                    Finding::Kafka(ranges) => return Ok((addr, ranges)),
                    // Kafka 0.9 closes on ApiVersions and takes the crate's requests all the same: they will show.
                    Finding::Closed => return Ok((addr, Ranges::default())),
                    other => last = other.to_string(),
                }
            }
            Err(last)
        });
        let why = match found {
            Ok((addr, ranges)) if ranges == Ranges::default() || ranges.suits_classic() => {
                return Ok((addr, ranges));
            }
            Ok((_, ranges)) if self.options.unfit == Unfit::Leave => {
                return Err(Leave::Unfit { why: too_new(&ranges) }.into());
            }
            Ok((_, ranges)) => format!("{}; set driver = \"auto\" or \"modern\"", too_new(&ranges)),
            Err(why) => why,
        };
        self.outages.failed(Who::Broker(host), &why, Instant::now());
        Err(Fault::Again(Pace::Backoff, why))
    }

    /// The way to a leader: probed before the crate connects without a limit (D4), and again after a pause (D2).
    pub fn reach(&mut self, leader: &str) -> Result<Vec<SocketAddr>, Fault> {
        let idle = self.options.limits.idle;
        let known = self.session.as_ref().and_then(|s| s.leaders.get(leader));
        if let Some(known) = known.filter(|l| l.at.elapsed() < idle) {
            return Ok(known.peers.clone());
        }
        if let Some(wait) = self.down.get(leader).filter(|w| !w.is_over()) {
            return Err(Fault::Again(Pace::Backoff, wait.why.clone()));
        }
        match self.visit(leader) {
            Ok(_) => {
                let peers = probe::resolve(leader).unwrap_or_default();
                if let Some(session) = &mut self.session {
                    let (at, sockets) = (Instant::now(), Vec::new()); // an old one's would be another connection's
                    session.leaders.insert(leader.to_owned(), Leader { peers: peers.clone(), at, sockets });
                }
                if self.down.remove(leader).is_some() {
                    self.outages.works(Who::Broker(leader), Instant::now());
                    self.say_views()?;
                }
                Ok(peers)
            }
            Err(Fault::Again(pace, why)) => {
                let why = format!("{leader}: {why}");
                self.lost(leader, &why)?;
                Err(Fault::Again(pace, why))
            }
            Err(other) => Err(other),
        }
    }

    /// A leader cannot be reached: it is not among the living any more, and perhaps soon no longer the leader. The others
    /// go on.
    fn lost(&mut self, leader: &str, why: &str) -> Result<(), Leave> {
        let pause = self.options.limits.pause;
        self.down.entry(leader.to_owned()).or_default().failed(why.to_owned(), pause);
        if let Some(session) = &mut self.session {
            session.leaders.remove(leader);
        }
        let its = |l: &Lane| l.led.iter().any(|l| l.leader.as_deref() == Some(leader));
        for lane in self.topics.values_mut().filter(|l| its(l)) {
            lane.wait.failed(why.to_owned(), pause); // then its metadata is loaded again
        }
        self.say_views()
    }

    /// Learns a topic's partitions and leaders, and tells ship what is new.
    pub fn learn(&mut self, topic: &Topic) -> Result<(), Fault> {
        self.topics.entry(topic.clone()).or_default();
        if let Err(fault) = self.connect() {
            if let (Some(lane), Fault::Again(_, why)) = (self.topics.get_mut(topic), &fault) {
                lane.wait.failed(why.clone(), self.options.limits.pause);
            }
            return Err(fault);
        }
        let held = self.topics.get(topic).and_then(|l| l.pace.filter(|_| !l.wait.is_over()).map(|p| (p, l)));
        if let Some((pace, lane)) = held {
            return Err(Fault::Again(pace, lane.wait.why.clone()));
        }
        self.ask_for(topic)?;
        let Some(session) = &mut self.session else { return Ok(()) };
        let led = match session.client.load(topic, &self.watch) {
            Ok(led) => led,
            Err(trouble) => return Err(self.load_failed(topic, &trouble)),
        };
        if led.is_empty() {
            // D9: the first answer about a topic that is just being created is "ok, no partitions".
            return Err(self.topic_failed(
                topic,
                Pace::Backoff,
                "it has no partitions (yet), or is not there",
            ));
        }
        self.wait = Wait::default();
        let (host, now) = (session.host.clone(), Instant::now());
        if !self.unproven.contains(&host) {
            self.outages.works(Who::Broker(&host), now);
        }
        self.outages.works(Who::Topic(topic), now);
        let pause = self.options.limits.pause;
        if let Some(lane) = self.topics.get_mut(topic) {
            let leaderless = led.iter().any(|l| l.leader.is_none());
            let wait = std::mem::take(&mut lane.wait);
            *lane = Lane { led, said: lane.said.take(), ..Lane::default() };
            if leaderless {
                lane.wait = wait;
                lane.wait.failed("a partition has no leader".to_owned(), pause);
            }
        }
        self.forget_former_leaders();
        Ok(self.say_views()?)
    }

    /// A broker that leads nothing any more is not waited for.
    fn forget_former_leaders(&mut self) {
        if self.topics.values().any(|l| l.led.is_empty()) {
            return; // not known of all
        }
        let leads =
            |host: &str| self.topics.values().flat_map(|l| &l.led).any(|l| l.leader.as_deref() == Some(host));
        let former: Vec<String> = self.down.keys().filter(|h| !leads(h)).cloned().collect();
        for host in former {
            self.down.remove(&host);
            self.outages.forget(&host);
        }
    }

    /// Asks for the topic by a request of our own where the broker knows Metadata v4 (0.11): the crate drops the error codes,
    /// creates topics unasked, and panics where partition ids have gaps (D9).
    fn ask_for(&mut self, topic: &Topic) -> Result<(), Fault> {
        let Some(session) = &self.session else { return Ok(()) };
        if session.ranges.of(probe::METADATA).is_none_or(|(min, max)| min > 4 || max < 4) {
            return Ok(());
        }
        let (host, modern) = (session.host.clone(), session.ranges.suits_modern());
        let o = self.options;
        let answer = match probe::topic(session.via, topic, o.create_topics, &o.limits.probe) {
            Ok(answer) => answer,
            Err(found) => {
                let why = match found {
                    Finding::Closed => "closes the connection on Metadata; it may ask for SASL".to_owned(),
                    other => other.to_string(),
                };
                return Err(self.host_failed(&host, &why));
            }
        };
        let gaps = answer.partitions.iter().zip(0..).any(|(id, i)| *id != i);
        match answer.code {
            0 | 5 | 72 if gaps => {
                let why = "its partition ids have gaps, which the kafka crate cannot take".to_owned();
                if o.unfit == Unfit::Leave && modern {
                    return Err(Leave::Unfit { why: format!("topic {topic}: {why}") }.into());
                }
                let why = format!("{why}; set driver = \"modern\"");
                Err(self.topic_failed(topic, Pace::Held, &why))
            }
            0 | 5 | 72 => Ok(()),
            29 => {
                let why = "not authorized (error 29); give the client DESCRIBE and WRITE on it";
                Err(self.topic_failed(topic, Pace::Held, why))
            }
            17 => Err(self.topic_failed(topic, Pace::Held, "not a name that Kafka takes (error 17)")),
            3 if o.create_topics => {
                Err(self.topic_absent(topic, "it is not there, and the broker does not create it"))
            }
            3 => Err(self.topic_failed(topic, Pace::Backoff, "it is not there (error 3); create it")),
            code => Err(self.topic_failed(topic, Pace::Backoff, &format!("Metadata says error {code}"))),
        }
    }

    fn load_failed(&mut self, topic: &Topic, trouble: &Trouble) -> Fault {
        let host = self.session.as_ref().map(|s| s.host.clone()).unwrap_or_default();
        let why = verdict::why(trouble);
        if matches!(trouble, Trouble::Panic(_)) {
            // D9, D10: this topic's answer, not the others'. The client is gone all the same.
            self.drop_session();
            return self.topic_failed(topic, Pace::Held, &why);
        }
        self.host_failed(&host, &why)
    }

    fn host_failed(&mut self, host: &str, why: &str) -> Fault {
        self.outages.failed(Who::Broker(host), why, Instant::now());
        self.drop_session();
        self.turn += 1;
        let why = format!("{host}: {why}");
        self.wait.failed(why.clone(), self.options.limits.pause);
        Fault::Again(Pace::Backoff, why)
    }

    /// Not there, or without partitions: at the first time it is about to be created, as a rule, which is not worth a word.
    fn topic_absent(&mut self, topic: &Topic, why: &str) -> Fault {
        let lane = self.topics.entry(topic.clone()).or_default();
        if lane.wait.tries > 0 {
            return self.topic_failed(topic, Pace::Backoff, why);
        }
        lane.wait.failed(why.to_owned(), self.options.limits.pause);
        lane.pace = Some(Pace::Backoff);
        Fault::Again(Pace::Backoff, why.to_owned())
    }

    /// Records what is wrong with a topic, and when it is looked at again.
    pub fn topic_failed(&mut self, topic: &Topic, pace: Pace, why: &str) -> Fault {
        self.outages.failed(Who::Topic(topic), why, Instant::now());
        let lane = self.topics.entry(topic.clone()).or_default();
        let limits = &self.options.limits;
        if pace == Pace::Held {
            lane.wait.until = Some(Instant::now() + limits.held);
            lane.wait.why = why.to_owned();
        } else {
            lane.wait.failed(why.to_owned(), limits.pause);
        }
        lane.pace = Some(pace);
        Fault::Again(pace, why.to_owned())
    }

    /// Tells ship of every topic whose partitions, or the living among them, are others than it was told.
    fn say_views(&mut self) -> Result<(), Leave> {
        let mut news = Vec::new();
        for (topic, lane) in self.topics.iter_mut().filter(|(_, l)| !l.led.is_empty()) {
            let lives = |h: &String| !self.down.contains_key(h);
            let living = lane.led.iter().filter(|l| l.leader.as_ref().is_some_and(lives));
            let view = TopicView {
                topic: topic.clone(),
                id: [0; 16],
                partitions: lane.led.iter().map(|l| l.partition).collect(),
                living: living.map(|l| l.partition).collect(),
            };
            if lane.said.as_ref() != Some(&view) {
                lane.said = Some(view.clone());
                news.push(view);
            }
        }
        news.into_iter().try_for_each(|view| self.say(Event::Topic(view)))
    }
}

fn too_new(ranges: &Ranges) -> String {
    format!("too new for the kafka crate ({ranges}; Kafka 4 no longer takes its requests)")
}
