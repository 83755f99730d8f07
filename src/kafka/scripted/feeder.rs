//! Stands in for the core in tests of the whole driver.

use crate::kafka::{KafkaOptions, drive};
use crate::producer::batch::Batch;
use crate::producer::driver::{Capabilities, Event, Order, TopicView, Verdict};
use crate::producer::testing::{self, Ends, batch, chunk, origin};
use crate::report::Board;
use std::sync::Arc;
use std::time::Duration;

/// A batch of one line for a partition of topic `t`, with this base sequence.
pub fn one(partition: i32, base: i32) -> Batch {
    let o = origin(1, "t", "/log", Default::default());
    let mut b = batch(1, vec![chunk(&o, 0, &[b"line"])]);
    b.partition = partition;
    b.numbers = Some(crate::producer::batch::Numbers { pid: 4711, epoch: 0, base });
    b
}

/// Sends orders to a driver, and notes what it reports.
pub struct Feeder {
    pub ends: Ends,
    pub capabilities: Option<Capabilities>,
    pub view: Option<TopicView>,
    pub pid: Option<(i64, i16)>,
}

impl Feeder {
    /// The same, and waits for the topic and for a producer id.
    pub fn start(options: KafkaOptions) -> Self {
        let mut f = Feeder::with(options, Arc::default());
        f.ends.order(Order::ProducerId);
        while f.view.as_ref().is_none_or(|v| v.available.is_empty()) || f.pid.is_none() {
            f.take();
        }
        f
    }

    /// The next completed batch; records all other events.
    pub fn take(&mut self) -> Option<(Batch, Verdict)> {
        match self.ends.next() {
            Event::Ready(a) => self.capabilities = Some(a),
            Event::Topic(v) => self.view = Some(v),
            Event::ProducerId { pid, epoch } => self.pid = Some((pid, epoch)),
            Event::Done { batch, verdict } => return Some((batch, verdict)),
            Event::Described { .. } | Event::OtherCluster => {}
            Event::Dead { why } => panic!("{why}"),
        }
        None
    }

    pub fn send(&self, batch: Batch) {
        self.ends.order(Order::Send(vec![batch]));
    }

    /// Starts a driver and subscribes to topic `t`, without a producer id.
    pub fn with(options: KafkaOptions, board: Arc<Board>) -> Self {
        let ends = testing::drive(drive(options), board);
        ends.order(Order::Topic("t".into()));
        Feeder { ends, capabilities: None, view: None, pid: None }
    }

    /// The next returned batch: its partition, base sequence and verdict.
    pub fn done(&mut self) -> (i32, i32, Verdict) {
        loop {
            if let Some((batch, verdict)) = self.take() {
                return (batch.partition, batch.numbers.map_or(-1, |n| n.base), verdict);
            }
        }
    }

    /// Waits until exactly these partitions are available. Fails if batches are returned meanwhile.
    pub fn available(&mut self, want: &[i32]) {
        while self.view.as_ref().is_none_or(|v| v.available != want) {
            let done = self.take();
            assert!(done.is_none(), "{done:?}");
        }
    }

    pub fn nothing_within(&mut self, ms: u64) {
        while let Ok(event) = self.ends.events.recv_timeout(Duration::from_millis(ms)) {
            assert!(!matches!(event, Event::Done { .. }), "{event:?}");
        }
    }
}
