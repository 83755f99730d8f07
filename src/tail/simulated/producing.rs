//! The producer of one run: the real core and intent log between the tail's chunks, the simulated brokers and the registry.

use super::World;
use crate::chunk::Chunk;
use crate::exactly_once::IntentLog;
use crate::producer::batch::Batch;
use crate::producer::driver::Order;
use crate::producer::sim::Core;
use crate::producer::{BeforeSend, ProducerOptions, recovered::RecoveredState};
use crate::record::{Ack, StreamId};
use crate::report::Board;
use crate::state::Work;
use crate::streams::Registry;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub struct Producing<'a> {
    core: Core<'a>,
    intents: Option<IntentLog>,
    /// Recorded by the intent log, and not sent yet.
    recorded: Vec<Batch>,
    registry: Arc<Registry>,
    /// The lines of each chunk that is not acknowledged, by stream and start.
    chunks: HashMap<(StreamId, u64), Vec<u64>>,
}

impl<'a> Producing<'a> {
    pub fn new(
        w: &mut World,
        board: &'a Board,
        registry: Arc<Registry>,
        (intents, once): (Option<IntentLog>, Option<RecoveredState>),
    ) -> Producing<'a> {
        let mut chunks = HashMap::new();
        for chunk in once.iter().flat_map(|once| &once.groups).flat_map(|g| &g.group.chunks) {
            let lines = lines(w, chunk);
            w.resumed.extend(lines.iter().map(|line| (w.brokers.run, *line)));
            chunks.insert(key(chunk), lines);
        }
        let options = ProducerOptions {
            partitioner: w.partitioner,
            batch: w.dice.of(&[64, 1000, 512 << 10]),
            linger: Duration::from_millis(w.dice.of(&[0, 0, 30])),
            seed: w.dice.next(),
            once,
            ..ProducerOptions::default()
        };
        w.brokers.connect();
        Producing {
            core: Core::new(options, board, w.now()),
            intents,
            recorded: Vec::new(),
            registry,
            chunks,
        }
    }

    pub fn take(&mut self, w: &mut World, chunk: Chunk) {
        let lines = lines(w, &chunk);
        let run = w.brokers.run;
        w.streams.extend(lines.iter().map(|line| ((run, *line), chunk.origin.stream)));
        w.read.extend(&lines);
        self.chunks.insert(key(&chunk), lines);
        self.core.chunk(chunk, w.now());
    }

    /// Passes orders and acks on, and then lets one thing happen to the brokers. Returns when the core has something to do
    /// although nothing happens.
    pub fn turn(&mut self, w: &mut World) -> Option<Instant> {
        let wake = self.core.tick(w.now());
        let orders: Vec<Order> = self.core.orders().collect();
        for order in orders {
            match (order, &mut self.intents) {
                (Order::Send(batches), Some(intents)) => intents.hold(batches),
                (order, _) => send(w, order),
            }
        }
        let acks = std::mem::take(&mut self.core.acks);
        acks.iter().for_each(|ack| self.check(w, ack));
        self.registry.acknowledge(acks);
        match w.dice.below(4) {
            0 => {
                if let Some(event) = w.brokers.event() {
                    self.core.event(event, w.now()).expect("the driver lives");
                }
            }
            // Two steps, because a crash may come between them.
            1 if !self.recorded.is_empty() => send(w, Order::Send(std::mem::take(&mut self.recorded))),
            1 => self.recorded.extend(self.intents.iter_mut().flat_map(|i| i.record(w.now))),
            _ => w.brokers.serve(),
        }
        wake
    }

    /// Acknowledged lines are stored. Not every chunk has lines.
    fn check(&mut self, w: &World, ack: &Ack) {
        let lines = self.chunks.remove(&(ack.stream, ack.range.start)).expect("one ack for each chunk");
        for line in lines {
            assert!(
                w.brokers.has_stored(line),
                "line {line} is acknowledged but not stored, after {:?}",
                w.did
            );
        }
    }

    /// Delivers everything, with a save from time to time.
    pub fn finish(&mut self, w: &mut World, saver: &mut Work) {
        for turns in 0..100_000 {
            let wake = self.turn(w);
            if self.core.is_empty() && self.core.acks.is_empty() {
                return;
            }
            if turns % 8 == 0 {
                saver.save(false);
            }
            if w.brokers.is_quiet() && self.recorded.is_empty() {
                w.now = wake.unwrap_or(w.now).max(w.now + Duration::from_millis(u64::from(turns % 8 == 7)));
            }
        }
        panic!("never delivered: {:?} after {:?}", self.chunks, w.did);
    }

    pub fn close(&mut self) {
        self.core.close();
    }
}

fn key(chunk: &Chunk) -> (StreamId, u64) {
    (chunk.origin.stream, chunk.range.start)
}

fn lines(w: &World, chunk: &Chunk) -> Vec<u64> {
    (0..chunk.lines.len()).map(|i| w.number(chunk.line(i))).collect()
}

/// The records that are sent have the contents of their lines.
fn send(w: &mut World, order: Order) {
    let (brokers, written) = (&mut w.brokers, &w.written);
    brokers.order(order, |number, record| assert_eq!(record, written[number as usize], "sent"));
}
