//! One run of the simulated agent, from a start to a stop or a crash: the real tail, producer core, registry and state
//! folder, connected as `commands::run` connects them.

use super::producing::Producing;
use super::world::remove;
use super::{Op, World};
use crate::budget::Budget;
use crate::chunk::Chunk;
use crate::commands::recover::{Recovered, recover};
use crate::commands::run::entries;
use crate::commands::supervisor::SourceOptions;
use crate::fdstore::FdStore;
use crate::handover::{self, Outlet};
use crate::record::{Key, Shape};
use crate::report::Board;
use crate::state::{self, Work};
use crate::streams::mailbox;
use crate::tail::follow::{Step, Until};
use crate::tail::known::Known;
use crate::tail::open::Reading;
use crate::tail::{Followed, Halt, Hold, Start, Tail, TailChange, TailOptions, framing};
use crate::waker::Waker;
use crate::watch::Watched;
use crate::watch::pattern::{Exclude, Pattern};
use crossbeam_channel::Receiver;
use regex::bytes::Regex;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// One run of the agent.
pub struct Life<'a> {
    tail: Tail<'a>,
    inbox: Receiver<Chunk>,
    producing: Producing<'a>,
    saver: Work,
    board: &'a Board,
}

/// The key of a line.
static LAST_DIGIT: LazyLock<Regex> = LazyLock::new(|| Regex::new("[0-9]$").unwrap());

fn source(path: &Path, budget: &Budget) -> SourceOptions {
    let tail = TailOptions {
        topic: "t".into(),
        shape: Arc::new(Shape { key: Key::Regex(LAST_DIGIT.clone().into()), ..Shape::default() }),
        path: path.into(),
        reading: Reading { rules: framing::Rules::default(), share: budget.share(), chunk: 4096 },
        start: Start::Beginning,
        new_pattern: false,
        followed: Followed::default(),
        since: (0, 0),
        until: Until::Stopped,
        give_up: None,
        reopen: true,
        poll: Duration::from_secs(1),
        linger: Duration::ZERO,
        rotate_grace: Duration::from_secs(60),
        line_after: None,
        record_after: None,
        deleted_hold: Hold { bytes: u64::MAX, time: Duration::from_secs(1 << 20) },
        rate: None,
    };
    let (patterns, exclude) = (vec![Pattern::path(path)], Exclude::default());
    let watched = Watched { patterns, exclude, poll: false, linger: Duration::ZERO };
    SourceOptions { watched, tail, known: Vec::new(), must_exist: false }
}

impl Life<'_> {
    pub fn step(&mut self, w: &mut World) -> Step {
        self.tail.look_at_undecided(); // each step simulates an event
        let step = match self.tail.step(w.now, true) {
            Ok(step) => step,
            Err(Halt::Io(e)) if w.meddled => {
                self.tail.release_unopened(); // as `run` does
                self.tail.trouble(&e);
                Step::Wait(Duration::from_secs(1))
            }
            Err(Halt::Io(e)) => panic!("{e} after {:?}", w.did),
            Err(Halt::Stopped) => panic!("stopped"),
        };
        self.hand_over(w);
        step
    }

    /// An event that says no more than that the live file was written to.
    fn written(&mut self, w: &mut World) {
        match self.tail.read_appended(w.now) {
            Ok(_) => self.hand_over(w),
            Err(Halt::Io(_)) if w.meddled => {}
            Err(e) => panic!("{e:?} after {:?}", w.did),
        }
    }

    fn hand_over(&mut self, w: &mut World) {
        for chunk in self.inbox.try_iter() {
            self.producing.take(w, chunk);
        }
    }

    fn produce(&mut self, w: &mut World, turns: u64) {
        for _ in 0..turns {
            self.producing.turn(w);
            w.now += Duration::from_millis(w.dice.below(8));
        }
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
            Op::Send => {
                let turns = w.dice.of(&[1, 5, 40]);
                self.produce(w, turns);
            }
            Op::Save => self.saver.save(false),
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

    /// The tail ends, and the producer delivers what it has, if it gets the time.
    fn stop(mut self, w: &mut World, gives_up: bool) {
        self.tail.park();
        self.hand_over(w);
        if gives_up {
            self.produce(w, 4);
        } else {
            self.producing.close();
            let faults = std::mem::take(&mut w.brokers.faults);
            self.producing.finish(w, &mut self.saver);
            w.brokers.faults = faults;
        }
        self.saver.save(true);
        self.board.sent_marks.get().expect("set at the start").end();
    }

    /// Finally reads everything, including what becomes readable only after the grace period.
    fn last(&mut self, w: &mut World) {
        w.brokers.faults = false;
        let end = w.now + Duration::from_secs(300);
        while w.now < end {
            self.saver.save(false);
            self.producing.finish(w, &mut self.saver);
            match self.step(w) {
                Step::Wait(time) => w.now += time.max(Duration::from_millis(1)),
                Step::End => return,
                _ => {}
            }
        }
        let held: Vec<_> = self.tail.open.iter().map(|o| (o.live, o.at.offset, o.size)).collect();
        assert!(held.len() <= 1 && self.tail.shelf.is_empty(), "{held:?} open at the end of {:?}", w.did);
    }
}

impl World {
    /// Runs until the agent stops, is killed, or has done `ops`.
    pub fn live(&mut self, ops: &mut Vec<Op>, last: bool) {
        let board = Arc::new(Board::default());
        let budget = Arc::new(Budget::new(1 << 40));
        let end = self.run(ops, last, &board, &budget);
        if end == Op::Stop {
            assert_eq!(budget.used(), 0, "memory is not returned, after {:?}", self.did);
        } else {
            self.crashes += 1;
        }
        self.brokers.disconnect();
        self.brokers.run += 1;
        self.lost = self.lost.max(board.totals.lost_bytes.load(Relaxed));
        self.doubled_at_most = board.doubled_at_most() + board.totals.uncertain.load(Relaxed);
    }

    /// Returns how the run ended.
    fn run(&mut self, ops: &mut Vec<Op>, last: bool, board: &Arc<Board>, budget: &Arc<Budget>) -> Op {
        let waker = Waker::new().unwrap();
        let (publisher, mailbox) = mailbox::pair(&waker);
        let options = self.state_options(self.is_once().then_some(publisher));
        let (mut folder, mut saved) = state::open(options, board).unwrap();
        let source = source(&self.path("app.log"), budget);
        let mut once = (None, None);
        if self.is_once() {
            let (state, sources) = (self.state.path(), std::slice::from_ref(&source));
            let (sources, store) = ((sources, &[][..], budget), FdStore::default());
            let recovered = recover((state, false), sources, &mut folder, &mut saved, mailbox, &store, board);
            let Recovered { intents, once: state, for_tails } = recovered.unwrap();
            (once, saved) = ((Some(intents), Some(state)), for_tails);
        }
        let registry = folder.registry(board);
        let saver = Work::new(folder, registry.clone(), board.clone()).expect("a state folder");
        let known = Known::new(entries(&saved), saved.next_stream).saved_at(saved.written);
        let (chunks, inbox) = handover::chunks(1 << 10, &waker);
        let (_handle, stop) = crate::stop::pair();
        let options = TailOptions { since: known.since, ..source.tail };
        let first = TailChange { options, outdated: stop.clone() };
        let outlet = Outlet::new(registry.clone(), chunks);
        let tail = Tail::new(first, &known, board, outlet, &stop, self.now);
        let producing = Producing::new(self, board, registry.clone(), once);
        let mut life = Life { tail, inbox, producing, saver, board };
        if self.is_once() && self.dice.below(2) == 0 {
            self.meanwhile();
            life.step(self);
            self.afterwards();
        } else {
            life.step(self);
        }
        // The initial scan is saved before the agent reports ready.
        board.sent_marks.get().expect("set at the start").first_scan_done();
        life.saver.save(false);
        while let Some(op) = ops.pop() {
            self.did.push(op);
            match op {
                Op::Stop => break,
                Op::Crash => return op,
                Op::GiveUp => {
                    life.stop(self, true);
                    return op;
                }
                op => life.act(self, op),
            }
        }
        if last {
            life.last(self);
        }
        life.stop(self, false);
        Op::Stop
    }
}
