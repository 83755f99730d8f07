//! The simulators' brokers, and failures on the driver's side.
//!
//! Producer state follows Kafka's `ProducerStateManager`: it keeps the last five batches, one after a restart. An
//! exact repeat is answered with its first offset, an unknown id may start anywhere, and a new epoch starts at 0.

use crate::backoff::Rng;
use crate::producer::batch::{Batch, Numbers};
use crate::producer::driver::{Capabilities, Event, Order, Pace, Refusal, TopicView, Verdict};
use crate::producer::record_encoder::RecordEncoder;
use crate::producer::sequence::after;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// What may happen in one run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Script {
    pub idempotent: bool,
    /// Lines that no broker accepts, and limits that change.
    pub refusals: bool,
    /// Producer state is lost entirely, or another producer fences ours: then sequence numbers prove nothing.
    pub amnesia: bool,
    /// `auto` changes the driver.
    pub changes: bool,
    /// The leader cannot be asked (before 2.8, or no right to read).
    pub mute: bool,
    /// A leader may fail before its followers have copied a batch.
    pub failover: bool,
    /// The topic gains no partitions.
    pub fixed: bool,
    /// Every retry is immediate.
    pub quick: bool,
}

/// A request on its way; `batch` lasts as long as the agent that sent it.
pub struct Request {
    numbers: Option<Numbers>,
    ids: Vec<u64>,
    bytes: usize,
    batch: Option<Batch>,
}

/// The bits of a line's id that are its number; the others are the run that sent it.
const RUN: u32 = 32;

/// The run that sent a line first, and the line's number.
pub fn run_and_number(id: u64) -> (u64, u64) {
    (id >> RUN, id & ((1 << RUN) - 1))
}

/// One partition on its broker, with the requests on their way to it.
#[derive(Default)]
pub struct Log {
    pub lines: Vec<u64>,
    pub producers: HashMap<i64, ProducerState>,
    pub wire: VecDeque<Request>,
    /// Batches of unknown outcome not yet reported to the core. Until they are, the driver sends no others.
    pub unreported: usize,
    /// Number of lines, and the producers, that the followers have, if fewer than the leader.
    pub replicated: Option<(usize, HashMap<i64, ProducerState>)>,
}

#[derive(Clone, Default)]
pub struct ProducerState {
    pub epoch: i16,
    /// First and last sequence, first offset.
    pub last: VecDeque<(i32, i32, i64)>,
}

pub const TOPIC: [u8; 16] = [7; 16];

impl Log {
    /// Kafka's append: refusals first, then duplicates, then sequences.
    pub fn append(&mut self, numbers: Option<Numbers>, ids: &[u64]) -> Result<i64, i16> {
        if let Some(Numbers { pid, epoch, base }) = numbers {
            let end = after(base, ids.len() as u32 - 1);
            if let Some(p) = self.producers.get(&pid) {
                let repeat = p.last.iter().find(|l| p.epoch == epoch && (l.0, l.1) == (base, end));
                if let Some((_, _, offset)) = repeat {
                    return Ok(*offset);
                }
                if epoch < p.epoch {
                    return Err(47);
                }
                let expected = if epoch > p.epoch { Some(0) } else { p.last.back().map(|l| after(l.1, 1)) };
                if expected.is_some_and(|e| e != base) {
                    return Err(45);
                }
            }
            let p = self.producers.entry(pid).or_default();
            if p.epoch != epoch {
                *p = ProducerState { epoch, last: VecDeque::new() };
            }
            p.last.push_back((base, end, self.lines.len() as i64));
            if p.last.len() > 5 {
                p.last.pop_front();
            }
        }
        let offset = self.lines.len() as i64;
        self.lines.extend_from_slice(ids);
        Ok(offset)
    }

    /// A snapshot keeps one batch of each producer.
    pub fn restart(&mut self) {
        for p in self.producers.values_mut() {
            p.last.drain(..p.last.len().saturating_sub(1));
        }
    }

    /// Another replica becomes the leader.
    fn fail_over(&mut self) {
        if let Some((lines, producers)) = self.replicated.take() {
            self.lines.truncate(lines);
            self.producers = producers;
        }
    }

    /// Requests of the agent that runs now.
    fn own(&self) -> impl Iterator<Item = &Batch> {
        self.wire.iter().filter_map(|request| request.batch.as_ref())
    }
}

/// All brokers of a topic, and the driver between them and the core.
pub struct Brokers {
    pub rng: Rng,
    pub script: Script,
    pub logs: BTreeMap<i32, Log>,
    /// Events on their way to the core, in any order between partitions.
    pub back: VecDeque<Event>,
    /// Lines that no broker accepts.
    pub bad: BTreeSet<u64>,
    /// A larger batch is refused.
    pub largest: usize,
    pub faults: bool,
    /// A partition whose leader takes nothing, while there are faults.
    pub down: Option<i32>,
    /// Which run of the agent sends now; part of the lines' ids.
    pub run: u64,
    capabilities: Option<Capabilities>,
    pids: i64,
    pen: RecordEncoder,
}

impl Brokers {
    pub fn new(rng: Rng, script: Script, partitions: i32) -> Brokers {
        Brokers {
            rng,
            script,
            logs: (0..partitions).map(|id| (id, Log::default())).collect(),
            back: VecDeque::new(),
            bad: BTreeSet::new(),
            largest: usize::MAX,
            faults: true,
            down: None,
            run: 0,
            capabilities: None,
            pids: 1000,
            pen: RecordEncoder::default(),
        }
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.rng.below(100) < percent
    }

    /// Neither a request nor an event is on its way.
    pub fn is_quiet(&self) -> bool {
        self.back.is_empty() && self.logs.values().all(|l| l.wire.is_empty())
    }

    /// Whether a line is stored and replicated.
    pub fn has_stored(&self, number: u64) -> bool {
        let is_there = |l: &Log| {
            let replicated = l.replicated.as_ref().map_or(l.lines.len(), |r| r.0);
            l.lines[..replicated].iter().any(|id| run_and_number(*id).1 == number)
        };
        self.logs.values().any(is_there)
    }

    /// Executes an order of the core. `check` gets each record that is sent, with its number.
    pub fn order(&mut self, order: Order, mut check: impl FnMut(u64, &[u8])) {
        match order {
            Order::Topic(_) => self.view(),
            Order::ProducerId => {
                self.pids += 1;
                let epoch = self.rng.below(2) as i16;
                self.back.push_back(Event::ProducerId { pid: self.pids, epoch });
            }
            Order::Ask { topic, partition, pid } => {
                let known = self.logs[&partition].producers.get(&pid);
                let last = known.and_then(|p| p.last.back().map(|l| (p.epoch, l.1)));
                let is_moving = self.script.failover && self.faults && self.chance(10);
                let last = match (self.script.mute, is_moving) {
                    (true, _) => Err("not authorized".into()),
                    (_, true) => Err("the leader is moving".into()),
                    _ => Ok(last),
                };
                self.back.push_back(Event::Described { topic, partition, pid, last });
            }
            Order::Send(batches) => batches.into_iter().for_each(|b| self.depart(b, &mut check)),
            Order::Change(_) => {
                assert!(self.logs.values().all(|l| l.wire.is_empty()), "the driver still has batches");
                self.capabilities = None;
                self.connect();
            }
        }
    }

    /// A driver starts.
    pub fn connect(&mut self) {
        let idempotent = if self.script.changes { self.chance(50) } else { self.script.idempotent };
        let in_flight = if idempotent { 1 + self.rng.below(5) } else { 1 };
        self.back.push_back(Event::Ready(Capabilities { name: "model", idempotent, in_flight }));
    }

    /// The agent is killed. Its requests may still arrive, at any time.
    pub fn disconnect(&mut self) {
        (self.capabilities, self.back) = (None, VecDeque::new());
        for log in self.logs.values_mut() {
            log.unreported = 0;
            log.wire.iter_mut().for_each(|request| request.batch = None);
            if self.rng.below(100) < 40 {
                log.wire.clear();
            }
        }
    }

    fn depart(&mut self, batch: Batch, check: &mut impl FnMut(u64, &[u8])) {
        let mut ids = Vec::new();
        self.pen.each(&batch, |r| {
            let number = r.value.split(|b| *b == b' ').next().and_then(|n| std::str::from_utf8(n).ok());
            let number: u64 = number.expect("a number").parse().expect("a number");
            check(number, &r.value);
            ids.push(self.run << RUN | number);
        });
        assert_eq!(ids.len(), batch.count as usize);
        let capabilities = self.capabilities.as_ref().expect("nothing is sent before Ready");
        assert_eq!(batch.numbers.is_some(), capabilities.idempotent);
        let log = self.logs.get_mut(&batch.partition).expect("a partition that exists");
        if log.unreported > 0 {
            return self.again(batch, false);
        }
        let numbers = batch.numbers;
        log.wire.push_back(Request { numbers, ids, bytes: batch.bytes, batch: Some(batch) });
        assert!(log.own().count() <= capabilities.in_flight, "too many in flight");
        // A broker that does not know the id accepts any sequence, so such a batch must be in flight alone.
        if let Some(n) = log.own().next().and_then(|b| b.numbers) {
            let known = log.producers.get(&n.pid).is_some_and(|p| p.epoch == n.epoch);
            assert!(
                known || self.script.amnesia || log.own().count() == 1,
                "the first batch of an id is not alone in flight"
            );
        }
    }

    pub fn view(&mut self) {
        let partitions: Vec<i32> = self.logs.keys().copied().collect();
        let dead = if self.faults { self.rng.below(3) } else { 0 };
        let available = partitions.iter().copied().filter(|_| dead == 0 || self.rng.below(3) > 0).collect();
        let view = TopicView { topic: "t".into(), id: TOPIC, partitions, available };
        self.back.push_back(Event::Topic(view));
    }

    /// The next event reaches the core.
    pub fn event(&mut self) -> Option<Event> {
        let event = self.back.pop_front()?;
        if let Event::Done { batch, verdict: Verdict::Retry { maybe_stored: true, .. } } = &event {
            self.logs.get_mut(&batch.partition).expect("a partition that exists").unreported -= 1;
        }
        if let Event::Ready(capabilities) = &event {
            // All batches must have been returned, including those sent in the meantime.
            if self.logs.values().any(|l| l.own().next().is_some()) {
                self.logs.keys().copied().collect::<Vec<_>>().into_iter().for_each(|id| self.cut(id));
                self.back.push_back(event);
                return None;
            }
            self.capabilities = Some(capabilities.clone());
        }
        Some(event)
    }

    fn again(&mut self, batch: Batch, maybe_stored: bool) {
        let paces = [Pace::Now, Pace::Backoff, Pace::Backoff, Pace::Blocked];
        let pace = if self.script.quick { Pace::Now } else { paces[self.rng.below(4)] };
        self.logs.get_mut(&batch.partition).expect("a partition that exists").unreported +=
            usize::from(maybe_stored);
        self.done(batch, Verdict::Retry { maybe_stored, pace, why: "fault".into() });
    }

    fn done(&mut self, batch: Batch, verdict: Verdict) {
        self.back.push_back(Event::Done { batch, verdict });
    }

    /// Any broker handles its next request.
    pub fn serve(&mut self) {
        let busy: Vec<i32> =
            self.logs.iter().filter(|(_, l)| !l.wire.is_empty()).map(|(id, _)| *id).collect();
        if !busy.is_empty() {
            let id = busy[self.rng.below(busy.len())];
            self.serve_partition(id);
        }
    }

    fn serve_partition(&mut self, id: i32) {
        let Some(request) = self.logs.get_mut(&id).and_then(|l| l.wire.pop_front()) else { return };
        let Request { numbers, ids, batch: Some(batch), .. } = request else {
            return self.arrive(id, &request);
        };
        if self.faults && (self.down == Some(id) || self.chance(8)) {
            return self.again(batch, false);
        }
        if let Some(what) = self.refuse(&batch, &ids) {
            return self.done(batch, Verdict::Refused { what, why: "refused".into() });
        }
        let is_replicated = !(self.script.failover && self.faults && self.chance(8));
        match self.append(id, numbers, &ids, is_replicated) {
            Ok(_) if !is_replicated => self.again(batch, true),
            // Appended, but the replicas were late, or the connection and the answer were lost.
            Ok(_) if self.faults && self.chance(8) => self.again(batch, true),
            Ok(_) if self.faults && self.chance(8) => {
                self.again(batch, true);
                self.cut(id);
            }
            Ok(offset) => self.done(batch, Verdict::Stored { offset: Some(offset) }),
            Err(code) => {
                self.done(batch, Verdict::SequenceError { new_id: code == 47, why: "numbers".into() })
            }
        }
    }

    /// A request arrives whose answer is lost.
    fn arrive(&mut self, id: i32, request: &Request) {
        let is_bad = request.ids.iter().any(|id| self.bad.contains(id));
        if !is_bad && (request.bytes <= self.largest || request.ids.len() == 1) {
            let _ = self.append(id, request.numbers, &request.ids, true);
        }
    }

    /// Replicas copy in order: with this batch, everything before it.
    fn append(
        &mut self,
        id: i32,
        numbers: Option<Numbers>,
        ids: &[u64],
        replicated: bool,
    ) -> Result<i64, i16> {
        let log = self.logs.get_mut(&id).expect("a partition that exists");
        if !replicated && log.replicated.is_none() {
            log.replicated = Some((log.lines.len(), log.producers.clone()));
        }
        let result = log.append(numbers, ids);
        if replicated && result.is_ok() {
            log.replicated = None;
        }
        result
    }

    fn refuse(&mut self, batch: &Batch, ids: &[u64]) -> Option<Refusal> {
        if batch.bytes > self.largest && batch.count > 1 {
            return Some(Refusal::TooLarge);
        }
        if !self.script.refusals {
            return None;
        }
        if self.faults && batch.restamped != Some(-1) && self.chance(3) {
            return Some(Refusal::Timestamp);
        }
        let bad: Vec<u32> = (0..).zip(ids).filter(|(_, id)| self.bad.contains(id)).map(|(i, _)| i).collect();
        if bad.is_empty() {
            return None;
        }
        let whats = [Refusal::TooLarge, Refusal::Something, Refusal::Records(bad), Refusal::Records(vec![])];
        whats.into_iter().nth(self.rng.below(4))
    }

    /// Loses the connection: some requests under way still arrive, the rest do not, and the core cannot tell which.
    fn cut(&mut self, id: i32) {
        let most = self.logs[&id].wire.len();
        let arrive = self.rng.below(most + 1);
        self.lose(id, arrive);
    }

    /// Loses the connection after `arrive` requests.
    fn lose(&mut self, id: i32, arrive: usize) {
        let log = self.logs.get_mut(&id).expect("a partition that exists");
        let wire: Vec<Request> = log.wire.drain(..).collect();
        let mut lost = Vec::new();
        for (i, request) in wire.into_iter().enumerate() {
            if i < arrive {
                self.arrive(id, &request);
            }
            lost.extend(request.batch);
        }
        // A driver returns them in any order.
        while !lost.is_empty() {
            let batch = lost.swap_remove(self.rng.below(lost.len()));
            self.again(batch, true);
        }
    }

    /// One of eight faults; some need the script's permission.
    pub fn fault(&mut self, which: usize) {
        let ids: Vec<i32> = self.logs.keys().copied().collect();
        let id = ids[self.rng.below(ids.len())];
        match which {
            0..=2 => self.cut(id),
            3 => ids.into_iter().for_each(|id| {
                self.cut(id);
                self.logs.get_mut(&id).expect("a partition that exists").restart();
            }),
            4 => self.view(),
            5 if self.logs.len() < 6 && !self.script.fixed => {
                self.logs.insert(ids.len() as i32, Log::default());
                self.view();
            }
            6 if self.script.refusals => self.largest = [40, 200, 5000][self.rng.below(3)],
            6 if self.script.failover => {
                self.lose(id, 0);
                self.logs.get_mut(&id).expect("a partition that exists").fail_over();
            }
            7 if self.script.amnesia => {
                let log = self.logs.get_mut(&id).expect("a partition that exists");
                match self.rng.below(2) {
                    0 => log.producers.clear(),
                    _ => log.producers.values_mut().for_each(|p| {
                        let last = VecDeque::from([(1 << 20, 1 << 20, 0)]);
                        *p = ProducerState { epoch: p.epoch + 1, last };
                    }),
                }
            }
            7 if self.script.changes => {
                ids.into_iter().for_each(|id| self.cut(id));
                self.connect();
            }
            _ => {}
        }
    }

    /// Lines of a stream (`stream_of`) are in order within each partition, ignoring repeats.
    pub fn verify_order<S: std::hash::Hash + Eq>(&self, stream_of: impl Fn(u64) -> S) {
        for (id, log) in &self.logs {
            let mut seen = BTreeSet::new();
            let mut last: HashMap<S, u64> = HashMap::new();
            for line in log.lines.iter().filter(|l| seen.insert(**l)) {
                let number = run_and_number(*line).1;
                let before = last.insert(stream_of(*line), number);
                assert!(before < Some(number), "partition {id}: {number} after {before:?}");
            }
        }
    }
}
