//! Reads a broker's answers and turns them into verdicts.

use super::{Request, Session, What};
use crate::kafka::net::connection::mismatch;
use crate::kafka::net::trouble::Trouble;
use crate::kafka::peer::Peer;
use crate::kafka::protocol::errors::{self, Also};
use crate::kafka::protocol::messages::{self, Produced};
use crate::kafka::protocol::producers;
use crate::kafka::protocol::wire::Malformed;
use crate::kafka::request::place;
use crate::kafka::{Incompatible, Shared};
use crate::producer::batch::Batch;
use crate::producer::driver::{ANSWERS_MAY_WAIT, Event, Pace, Verdict};
use std::time::{Duration, Instant};

/// Maximum throttle time accepted from a broker.
const LONGEST_THROTTLE: Duration = Duration::from_secs(60);

impl Session {
    /// Processes the next answer. `false`: it has not arrived completely.
    pub(super) fn next_answer(
        &mut self,
        peer: &mut Peer,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<bool, Trouble> {
        if let Some(Request { what: What::Ask { .. }, .. }) = self.in_flight.front() {
            return self.answer_by_parts(peer, shared, now);
        }
        let Some((correlation, body)) = self.connection.frame()? else { return Ok(false) };
        self.answer(correlation, body, peer, shared, now)?;
        Ok(true)
    }

    /// Reads the answer to DescribeProducers in parts, as it may be larger than any other.
    fn answer_by_parts(
        &mut self,
        peer: &mut Peer,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<bool, Trouble> {
        let Some(Request { correlation, bytes, what: What::Ask { answer, left, .. }, .. }) =
            self.in_flight.front_mut()
        else {
            return Ok(false);
        };
        let rest = match left {
            Some(rest) => rest,
            None => {
                let Some((got, all)) = self.connection.begin_parts(producers::CAP)? else { return Ok(false) };
                if got != *correlation {
                    return Err(mismatch(got, *correlation));
                }
                *bytes = all as u64; // it may take as long as a request of that size
                left.insert(all)
            }
        };
        let part = self.connection.part(*rest);
        let read = answer.read(part, *rest - part.len())?;
        self.connection.took_part(read);
        *rest -= read;
        if *rest > 0 {
            return Ok(false);
        }
        if let Some(Request { what: What::Ask { asked, answer, .. }, .. }) = self.in_flight.pop_front() {
            match answer.known() {
                Ok(known) => {
                    let known = known.map_err(|(code, message)| errors::text(code, &message));
                    shared.producer_described(&asked, known);
                }
                Err(e) => {
                    peer.asks.push_front(asked);
                    return Err(e.into());
                }
            }
        }
        self.has_answered(peer, now);
        Ok(true)
    }

    fn has_answered(&mut self, peer: &mut Peer, now: Instant) {
        (self.fresh, self.worked) = (false, true);
        self.answered = now;
        peer.health.answered();
    }

    fn answer(
        &mut self,
        correlation: i32,
        body: std::ops::Range<usize>,
        peer: &mut Peer,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<(), Trouble> {
        let Some(mut request) = self.in_flight.pop_front() else {
            return Err(Trouble::Lost("an unsolicited answer".into()));
        };
        if request.correlation != correlation {
            let due = request.correlation;
            self.in_flight.push_front(request);
            return Err(mismatch(correlation, due));
        }
        self.slow = now.saturating_duration_since(request.sent) > 2 * ANSWERS_MAY_WAIT;
        let body = self.connection.body(body);
        match &mut request.what {
            What::Ask { .. } => {} // read in parts
            What::Produce { version, codec, batches, .. } => {
                let codec = *codec;
                let mut said = std::mem::take(&mut self.said);
                let read = messages::produced(body, *version, |topic, p| {
                    if said.len() == batches.len() {
                        return Err(Malformed("more partitions than were asked about"));
                    }
                    said.push((place(batches, topic, p.partition, said.len())?, p));
                    Ok(())
                });
                let (throttle, nodes) = match read {
                    Ok(read) => read,
                    Err(e) => {
                        self.in_flight.push_front(request);
                        return Err(e.into());
                    }
                };
                for (i, p) in said.drain(..) {
                    if let Some(batch) = batches[i].take() {
                        if errors::of(p.error).also == Also::OtherCodec {
                            peer.leave_codec(codec, &errors::text(p.error, &p.message));
                        }
                        self.verdict(batch, p, &nodes, peer, shared, now);
                    }
                }
                self.said = said;
                if batches.iter().any(Option::is_some) {
                    self.in_flight.push_front(request);
                    return Err(Trouble::Lost("an answer without one of the partitions asked".into()));
                }
                shared.hang_ups = None;
                self.throttle(throttle, peer, now);
            }
        }
        self.has_answered(peer, now);
        Ok(())
    }

    fn throttle(&mut self, ms: i32, peer: &Peer, now: Instant) {
        if let Some(ms) = u64::try_from(ms).ok().filter(|ms| *ms > 0) {
            let pause = Duration::from_millis(ms).min(LONGEST_THROTTLE);
            log::debug!("broker {} throttles for {} ms", peer.address, pause.as_millis());
            self.quiet = Some(now + pause);
        }
    }

    /// Reports a batch's verdict, and does what else the code requires.
    fn verdict(
        &mut self,
        batch: Batch,
        p: Produced,
        nodes: &[messages::Node],
        peer: &mut Peer,
        shared: &mut Shared,
        now: Instant,
    ) {
        if errors::is_ours_unknown(p.error) && shared.options.incompatible == Incompatible::Refused {
            shared.incompatible(peer.describe(&errors::text(p.error, &p.message)));
        }
        let mut verdict = errors::verdict(p.error, &p.message, p.offset, &p.bad, batch.attempts);
        let topic = &batch.group.topic;
        match errors::of(p.error).also {
            Also::Nothing => {}
            Also::FindLeader => match p.leader.filter(|l| l.0 != peer.node) {
                Some((leader, epoch)) => {
                    shared.hint(topic, p.partition, (leader, epoch), nodes, now);
                    if let Verdict::Retry { pace, .. } = &mut verdict {
                        *pace = Pace::Now;
                    }
                }
                None => shared.cluster.refused(topic, p.partition, now),
            },
            Also::Reconnect => self.renew = Some(errors::text(p.error, &p.message)),
            Also::OtherCodec => {
                if let Verdict::Retry { pace, .. } = &mut verdict {
                    *pace = Pace::Now;
                }
            }
        }
        let stored = matches!(verdict, Verdict::Stored { .. });
        let (topic, partition) = (topic.clone(), batch.partition);
        shared.events.push(Event::Done { batch, verdict });
        if !stored {
            peer.return_behind(&topic, partition, shared);
        }
    }
}
