//! A session's view of its broker: its name, the batches waiting for it, and what it accepts.

use super::{AskedProducer, Shared};
use crate::kafka::health::Health;
use crate::kafka::protocol::codec::Codec;
use crate::producer::batch::Batch;
use crate::producer::driver::{Event, Pace, Refusal, Verdict};
use crate::record::Topic;
use std::collections::VecDeque;

#[derive(Debug)]
pub struct Peer {
    pub node: i32,
    pub address: String,
    /// Batches not yet in a request, in order of arrival.
    pub waiting: VecDeque<Batch>,
    pub asks: VecDeque<AskedProducer>,
    pub health: Health,
    /// The configured codec, or the fallback this broker accepts.
    pub codec: Codec,
}

impl Peer {
    pub fn has_work(&self) -> bool {
        !self.waiting.is_empty() || !self.asks.is_empty()
    }

    /// Returns all batches not yet in a request.
    pub fn return_waiting(&mut self, shared: &mut Shared, pace: Pace, why: &str) {
        shared.events.extend(self.waiting.drain(..).map(|b| Event::retry(b, false, pace, why)));
        self.asks.drain(..).for_each(|asked| shared.producer_described(&asked, Err(why.to_owned())));
    }

    /// Returns the batches queued behind one that was returned, as none may overtake it: if the broker has forgotten
    /// the producer, it would take a later batch for the first one, and we could no longer prove that the earlier one
    /// is missing.
    pub fn return_behind(&mut self, topic: &Topic, partition: i32, shared: &mut Shared) {
        let same = |b: &Batch| b.partition == partition && b.group.topic == *topic;
        if !self.waiting.iter().any(same) {
            return;
        }
        for batch in std::mem::take(&mut self.waiting) {
            if same(&batch) {
                let why = "a batch before it was not stored";
                shared.events.push(Event::retry(batch, false, Pace::Now, why));
            } else {
                self.waiting.push_back(batch);
            }
        }
    }

    /// This codec is refused: use the next. Of several requests in flight, only the first refusal counts.
    pub fn leave_codec(&mut self, refused: Codec, why: &str) {
        if refused == self.codec && refused != Codec::None {
            self.codec = refused.fallback();
            let codec = format!("{:?}", self.codec).to_ascii_lowercase();
            log::warn!("{}; using {codec}", self.describe(why));
        }
    }

    /// Refuses a batch that was never sent.
    pub fn refuse(&mut self, batch: Batch, what: Refusal, why: String, shared: &mut Shared) {
        let (topic, partition) = (batch.group.topic.clone(), batch.partition);
        shared.events.push(Event::Done { batch, verdict: Verdict::Refused { what, why } });
        self.return_behind(&topic, partition, shared);
    }

    /// "broker b1:9092: why".
    pub fn describe(&self, why: &str) -> String {
        format!("broker {}: {why}", self.address)
    }
}
