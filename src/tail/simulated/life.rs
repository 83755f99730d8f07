//! One run of the simulated agent, from a start to a stop or a crash, with its sent and acknowledged chunks.

use super::world::{State, remove};
use super::{Op, World};
use crate::budget::Budget;
use crate::chunk::Chunk;
use crate::handover::{Outlet, TailOutput};
use crate::record::{Ending, StreamId};
use crate::report::Board;
use crate::tail::follow::{Step, Until};
use crate::tail::known::{Entry, Known};
use crate::tail::open::Reading;
use crate::tail::{Followed, Halt, Hold, Start, Tail, TailChange, TailOptions, framing};
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

/// One run of the agent.
pub struct Life<'a> {
    tail: Tail<'a>,
    outputs: Receiver<TailOutput>,
    /// Sent and not acknowledged.
    in_flight: VecDeque<Chunk>,
    closed: Vec<StreamId>,
    progress: HashMap<StreamId, Arc<crate::report::Progress>>,
}

fn options(path: &Path, since: SystemTime, budget: &Budget) -> TailOptions {
    // A file may have appeared just before the save without being in it.
    let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap().saturating_sub(Duration::from_secs(60));
    TailOptions {
        topic: "t".into(),
        shape: Arc::default(),
        path: path.into(),
        reading: Reading { rules: framing::Rules::default(), share: budget.share(), chunk: 4096 },
        start: Start::Beginning,
        new_pattern: false,
        followed: Followed::default(),
        since: (since.as_secs() as i64, since.subsec_nanos()),
        until: Until::Stopped,
        give_up: None,
        reopen: true,
        poll: Duration::from_secs(1),
        linger: Duration::ZERO,
        rotate_grace: Duration::from_secs(60),
        rest_after: None,
        deleted_hold: Hold { bytes: u64::MAX, time: Duration::from_secs(1 << 20) },
        rate: None,
    }
}

/// The chunk is delivered; ranges that are now contiguous are merged.
fn acknowledge(state: &mut State, chunk: &Chunk) {
    let e = state.get_mut(&chunk.origin.stream).expect("opened before");
    assert!(chunk.range.start >= e.at.offset, "acknowledged twice: {chunk:?}");
    e.beyond.push((chunk.range.clone(), chunk.end));
    e.beyond.sort_by_key(|(range, _)| range.start);
    while e.beyond.first().is_some_and(|(range, _)| range.start == e.at.offset) {
        e.at = e.beyond.remove(0).1;
    }
    e.size = e.size.max(chunk.range.end);
    chunk.origin.progress.acked.store(e.at.offset, Relaxed);
}

impl Life<'_> {
    pub fn step(&mut self, w: &mut World) -> Step {
        self.tail.look_at_undecided(); // each step simulates an event
        let step = match self.tail.step(w.now, true) {
            Ok(step) => step,
            Err(Halt::Io(e)) if w.once => {
                self.tail.release_unopened(); // as `run` does
                self.tail.trouble(&e);
                Step::Wait(Duration::from_secs(1))
            }
            Err(Halt::Io(e)) => panic!("{e} after {:?}", w.did),
            Err(Halt::Stopped) => panic!("stopped"),
        };
        self.drain(w);
        step
    }

    /// An event that says no more than that the live file was written to.
    fn written(&mut self, w: &mut World) {
        match self.tail.read_appended(w.now) {
            Ok(_) => self.drain(w),
            Err(Halt::Io(_)) if w.once => {}
            Err(e) => panic!("{e:?} after {:?}", w.did),
        }
    }

    pub fn drain(&mut self, w: &mut World) {
        for output in self.outputs.try_iter() {
            match output {
                TailOutput::Opened(o) => {
                    self.progress.insert(o.stream, o.progress.clone());
                    self.closed.retain(|c| *c != o.stream);
                    let e = w.acked.entry(o.stream).or_insert_with(|| Entry {
                        stream: o.stream,
                        path: o.path.clone(),
                        at: o.at,
                        size: o.at.offset,
                        ..Entry::of(o.identity.clone())
                    });
                    (e.identity, e.finished) = (o.identity, false);
                }
                TailOutput::Chunk(chunk) => {
                    w.delivered.extend((0..chunk.lines.len()).map(|i| chunk.line(i).to_vec()));
                    self.in_flight.push_back(chunk);
                }
                TailOutput::Closed(c) => {
                    if let Ending::Truncated { lost } | Ending::Gone { lost } = c.why {
                        w.lost += lost;
                    }
                    if c.why != Ending::Parked {
                        self.closed.push(c.stream);
                    }
                }
            }
        }
        self.finish(w);
    }

    /// Acknowledges the first `n` chunks in flight that may have been sent.
    pub fn ack(&mut self, w: &mut World, n: usize) {
        let mut left = n;
        for chunk in std::mem::take(&mut self.in_flight) {
            if left > 0 && w.may_be_sent(&chunk) {
                left -= 1;
                acknowledge(&mut w.acked, &chunk);
            } else {
                self.in_flight.push_back(chunk);
            }
        }
        self.finish(w);
    }

    /// Acknowledges one chunk out of order.
    pub fn ack_any(&mut self, w: &mut World) {
        if !self.in_flight.is_empty() {
            let i = w.dice.below(self.in_flight.len() as u64) as usize;
            if w.may_be_sent(&self.in_flight[i]) {
                acknowledge(&mut w.acked, &self.in_flight.remove(i).expect("within"));
            }
        }
        self.finish(w);
    }

    /// A kill with exactly-once delivery. The intent log knows every chunk that may have been sent, and the next run either
    /// counts it as acknowledged or resends it unchanged. The other chunks were never sent.
    fn killed(&mut self, w: &mut World) {
        for (stream, e) in &mut w.saved {
            let acked = &w.acked[stream];
            (e.at, e.beyond, e.size) = (acked.at, acked.beyond.clone(), e.size.max(acked.size));
        }
        for chunk in self.in_flight.drain(..) {
            if w.may_be_sent(&chunk) && w.dice.below(3) > 0 {
                acknowledge(&mut w.saved, &chunk);
                continue;
            }
            for line in (0..chunk.lines.len()).map(|i| chunk.line(i)) {
                let at = w.delivered.iter().rposition(|l| l == line).expect("framed");
                w.delivered.remove(at);
            }
        }
    }

    pub fn finish(&mut self, w: &mut World) {
        let is_in_flight = |s: &StreamId| self.in_flight.iter().any(|c| c.origin.stream == *s);
        for stream in self.closed.iter().filter(|s| !is_in_flight(s)) {
            if let Some(e) = w.acked.get_mut(stream) {
                e.finished = true;
            }
        }
    }

    pub fn save(&mut self, w: &mut World) {
        for (stream, e) in &mut w.acked {
            e.size = self.progress.get(stream).map_or(e.size, |g| g.size.load(Relaxed));
        }
        w.saved = w.acked.clone();
        w.saved_at = w.tick();
    }

    /// Runs until there is nothing left to do now.
    pub fn settle(&mut self, w: &mut World) {
        for _ in 0..10_000 {
            match self.step(w) {
                Step::Wait(_) if self.tail.absent.is_empty() => return,
                Step::End => return,
                Step::Wait(time) => w.now += time,
                _ => {}
            }
        }
        panic!("never settles after {:?}", w.did);
    }

    pub fn act(&mut self, w: &mut World, op: Op) {
        match op {
            Op::Look => {
                for i in 0..1 + w.dice.below(8) {
                    if i % 2 == 0 {
                        self.written(w);
                    }
                    self.step(w);
                }
            }
            Op::Ack => {
                let n = w.dice.below(20) as usize;
                self.ack(w, n);
            }
            Op::AckAny => self.ack_any(w),
            Op::Save => self.save(w),
            Op::Compress => {
                if let Some(rest) = w.compress() {
                    for _ in 0..w.dice.below(4) {
                        self.step(w);
                    }
                    rest.complete();
                }
            }
            Op::CutOff => self.tail.begin_again(),
            Op::Meanwhile => {
                w.meanwhile();
                for _ in 0..1 + w.dice.below(4) {
                    self.step(w);
                }
                w.afterwards();
            }
            Op::CopyTruncate if w.half.is_none() => {
                self.settle(w);
                w.copy();
                w.truncate();
            }
            // Copies of less than 256 bytes are read again.
            Op::CopyTruncateLate if w.half.is_none() && w.log.metadata().unwrap().len() >= 256 => {
                self.settle(w);
                w.copy();
                w.append();
                self.settle(w);
                w.truncate();
            }
            Op::DeleteCreate if w.half.is_none() => {
                self.settle(w);
                remove(&w.path("app.log"));
                w.reopen(false);
            }
            op => w.act(op),
        }
    }
}

impl World {
    /// With exactly-once delivery, nothing of a stream is sent before its opening is saved.
    fn may_be_sent(&self, chunk: &Chunk) -> bool {
        !self.once || self.saved.contains_key(&chunk.origin.stream)
    }

    /// Runs until the agent stops, is killed, or has done `ops`.
    pub fn live(&mut self, ops: &mut Vec<Op>, last: bool) {
        let budget = Budget::new(1 << 40);
        let (handle, stop) = crate::stop::pair();
        let board = Board::default();
        let known = Known::new(self.saved.values().cloned(), 0);
        self.acked = self.saved.clone();
        let (out, outputs) = unbounded_for_a_test();
        let path = self.path("app.log");
        let options = options(&path, self.saved_at, &budget);
        let first = TailChange { options, outdated: stop.clone() };
        let tail = Tail::new(first, &known, &board, Outlet::recorder(out), &stop, self.now);
        let progress = HashMap::new();
        let mut life = Life { tail, outputs, in_flight: VecDeque::new(), closed: Vec::new(), progress };
        if self.once && self.dice.below(2) == 0 {
            self.meanwhile();
            life.step(self);
            self.afterwards();
        } else {
            life.step(self);
        }
        life.save(self); // the initial scan is saved before the agent reports ready
        while let Some(op) = ops.pop() {
            self.did.push(op);
            match op {
                Op::Stop => break,
                Op::Crash => {
                    self.crashes += 1;
                    if self.once {
                        life.killed(self);
                    }
                    return;
                }
                op => life.act(self, op),
            }
        }
        if last {
            self.last(&mut life);
        }
        life.tail.park();
        life.drain(self);
        life.save(self); // so that everything may be sent
        life.ack(self, usize::MAX);
        life.save(self);
        drop(handle);
    }

    /// Finally reads everything, including what becomes readable only after the grace period.
    pub fn last(&mut self, life: &mut Life<'_>) {
        let end = self.now + Duration::from_secs(300);
        while self.now < end {
            life.save(self);
            life.ack(self, usize::MAX);
            match life.step(self) {
                Step::Wait(time) => self.now += time.max(Duration::from_millis(1)),
                Step::End => return,
                _ => {}
            }
        }
        let held: Vec<_> = life.tail.open.iter().map(|o| (o.live, o.at.offset, o.size)).collect();
        assert!(held.len() <= 1 && life.tail.shelf.is_empty(), "{held:?} open at the end of {:?}", self.did);
    }
}
#[allow(clippy::disallowed_methods)]
fn unbounded_for_a_test() -> (Sender<TailOutput>, Receiver<TailOutput>) {
    unbounded() // one thread both writes and reads it
}
