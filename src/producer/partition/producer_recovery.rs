//! Exactly-once at startup: compares what an earlier run left in a partition with what its leader knows. No I/O.
//!
//! This run sends nothing before the leader has answered about our producer id. It is asked even at the very first
//! start, so that a broker that cannot answer blocks the topic, visibly, before there is anything to prove. Possible
//! answers:
//!
//! | the leader knows | an open batch | otherwise |
//! |---|---|---|
//! | its last sequence | stored; sent again, and the answer proves it | as expected |
//! | the one before its first | not stored; sent again | |
//! | nothing; the batch and its newest record are recent, and nothing was acknowledged here | not stored; sent again | as expected |
//! | nothing | forgotten: sent with new numbers, counted as uncertain | as expected |
//! | less | new numbers, counted as uncertain | the leader lost acknowledged records, or a batch was abandoned |
//! | more than we ever used | the state was restored or copied: new id, counted as uncertain | the same |

use super::{Action, Now, PATIENCE, Partition, PartitionHealth};
use crate::clock::EARLIEST_MS;
use crate::producer::batch::Batch;
use crate::producer::sequence::{ProducerState, after, ahead};
use std::cmp::Ordering;
use std::time::Duration;

/// A producer id that an earlier run used, or may have used, in this partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastProducer {
    pub pid: i64,
    /// Epoch, and the sequence after the last one used; `None`: not used here.
    pub last: Option<(i16, i32)>,
    /// The leader has acknowledged a batch of this producer here.
    pub proven: bool,
    /// The topic is still the one the id was used in.
    pub same_topic: bool,
}

impl PastProducer {
    /// Not an id of an earlier run: checks only that the leader answers. No broker assigns this id.
    pub const NONE: PastProducer = PastProducer { pid: -1, last: None, proven: false, same_topic: false };
}

/// No broker forgets a producer within this time, unless it is configured to keep producers for less (the default is a
/// day, checked every 10 minutes and at startup), or our clock is a day behind the broker's.
const FRESH_MS: i64 = 120_000;
/// Brokers expire producers by the newest timestamp of their last batch: one this old may be forgotten at once, so an
/// unstored batch gets a new timestamp.
const OLD_MS: i64 = 6 * 3_600_000;

/// Whether the broker still knows the producer if it has stored this batch.
fn is_remembered(now: Now, batch: &Batch) -> bool {
    let stamp_ms = batch.group.stamp_ms;
    stamp_ms >= EARLIEST_MS
        && (0..FRESH_MS).contains(&(now.wall_ms - stamp_ms))
        && now.wall_ms.saturating_sub(batch.newest_ms()) < OLD_MS
}

impl Partition {
    pub(super) fn ask_about_past(&mut self, now: Now, actions: &mut Vec<Action>) {
        match self.health {
            PartitionHealth::Asking { until } if now.at >= until => {
                self.check_past(Err("no answer".into()), now, actions);
            }
            PartitionHealth::Waiting { until } if now.at < until => {}
            PartitionHealth::Up | PartitionHealth::Waiting { .. } => {
                let Some(past) = self.pasts.front() else { return };
                actions.push(Action::Ask { pid: past.pid });
                self.health = PartitionHealth::Asking { until: now.at + PATIENCE };
            }
            PartitionHealth::Asking { .. } | PartitionHealth::Draining(_) | PartitionHealth::Probing => {}
        }
    }

    pub(super) fn check_past(
        &mut self,
        last: Result<Option<(i16, i32)>, String>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let known = match last {
            Ok(known) => known,
            Err(why) => {
                // Without the answer nothing may be sent; the leader may be starting up.
                self.attempts = self.attempts.saturating_add(1);
                self.why = format!(
                    "the leader does not report our producer state (exactly-once needs Kafka 2.8 or newer, and READ on the topic): {why}"
                );
                let wait = Duration::from_millis(100 << self.attempts.min(6)).min(Duration::from_secs(5));
                self.health = PartitionHealth::Waiting { until: now.at + wait };
                return;
            }
        };
        let Some(past) = self.pasts.pop_front() else { return };
        self.recover();
        match self.pending.front().is_some_and(|b| b.noted.is_some_and(|n| n.pid == past.pid)) {
            true => self.check_open(&past, known, now, actions),
            false => self.check_rest(&past, known, actions),
        }
    }

    fn check_open(
        &mut self,
        past: &PastProducer,
        known: Option<(i16, i32)>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let Some(batch) = self.pending.front_mut() else { return };
        let Some(n) = batch.noted else { return };
        let age = now.wall_ms.saturating_sub(batch.group.stamp_ms);
        let end = after(n.base, batch.count);
        // `Some(found)`: send it again with its sequence numbers.
        let again = match known {
            None if !past.proven && past.same_topic && is_remembered(now, batch) => Some(false),
            None => None,
            Some((epoch, last)) => match epoch.cmp(&n.epoch) {
                Ordering::Equal if after(last, 1) == end => Some(true),
                Ordering::Equal if after(last, 1) == n.base => Some(false),
                Ordering::Less if n.base == 0 => Some(false),
                Ordering::Equal if ahead(after(last, 1), end) > 0 => {
                    return self.foreign_producer(past, (epoch, last), actions);
                }
                Ordering::Greater => return self.foreign_producer(past, (epoch, last), actions),
                Ordering::Equal | Ordering::Less => None,
            },
        };
        match again {
            Some(found) => {
                self.producer = Some(ProducerState::resumed(n, batch.count));
                if !found && age > OLD_MS {
                    batch.restamped = Some(now.wall_ms);
                }
                actions.push(Action::Retry { found });
            }
            None => {
                // Its sequence numbers no longer prove anything. It gets new ones, and is counted as uncertain then.
                let knows = known.map_or("nothing".to_owned(), |(epoch, last)| {
                    format!("epoch {epoch} and sequence number {last}")
                });
                log::warn!(
                    "partition {}: the broker has forgotten our producer id (it knows {knows} of it): {} lines are sent again although they may be stored; they are counted as uncertain",
                    self.id,
                    batch.count
                );
                self.producer = None;
            }
        }
    }

    fn check_rest(&mut self, past: &PastProducer, known: Option<(i16, i32)>, actions: &mut Vec<Action>) {
        let Some((epoch, last)) = known.filter(|_| past.same_topic) else { return };
        let ours = match past.last {
            None => false,
            Some((e, end)) => epoch < e || (epoch == e && ahead(after(last, 1), end) <= 0),
        };
        if !ours {
            self.foreign_producer(past, (epoch, last), actions);
        }
    }

    /// Another process used our producer id after the state that we started from was saved.
    fn foreign_producer(
        &mut self,
        past: &PastProducer,
        (epoch, last): (i16, i32),
        actions: &mut Vec<Action>,
    ) {
        let pid = past.pid;
        // At least this many records were written that the saved state does not know of. Earlier epochs are not
        // reported.
        let more = match past.last {
            Some((e, end)) if e == epoch => ahead(after(last, 1), end).unsigned_abs(),
            _ => after(last, 1).unsigned_abs(),
        };
        actions.push(Action::Uncertain(more));
        log::error!(
            "partition {}: the broker knows producer {pid} up to epoch {}, sequence {}, which this state folder never used: it is a copy, or was restored from a backup; requesting a new id; at least {more} lines are stored twice and counted as uncertain",
            self.id,
            epoch,
            last
        );
        self.producer = None;
        actions.push(Action::NewId { pid });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::producer::batch::{BatchGroup, Numbers};
    use crate::producer::driver::Verdict;
    use crate::producer::partition::SendRules;
    use crate::producer::testing::{STAMP, batch, chunk, origin, plain};
    use crate::record::{Format, RecordHead, Shape};
    use std::sync::Arc;
    use std::time::Instant;

    const RULES: SendRules = SendRules::Idempotent { in_flight: 5, id: Some((7, 3)), once: true };

    fn now() -> Now {
        Now { at: Instant::now(), wall_ms: STAMP + LATER + 1000 }
    }

    /// [`STAMP`] is in 2023.
    const LATER: i64 = 100_000_000_000;

    fn open(epoch: i16, base: i32, lines: usize) -> Batch {
        let numbers = Some(Numbers { pid: 7, epoch, base });
        let mut b = batch(4, vec![chunk(&plain(1), 0, &vec![&b"x"[..]; lines])]);
        Arc::get_mut(&mut b.group).unwrap().stamp_ms = STAMP + LATER;
        Batch { numbers, noted: numbers, intent: 9, maybe_stored: true, ..b }
    }

    fn past(last: Option<(i16, i32)>, proven: bool) -> PastProducer {
        PastProducer { pid: 7, last, proven, same_topic: true }
    }

    fn asked(p: &mut Partition, known: Option<(i16, i32)>) -> Vec<Action> {
        let mut actions = Vec::new();
        p.launch(now(), RULES, &mut actions);
        assert!(matches!(actions.as_slice(), [Action::Ask { pid: 7 }]), "{actions:?}");
        actions.clear();
        p.described(7, Ok(known), now(), &mut actions);
        p.launch(now(), RULES, &mut actions);
        actions
    }

    /// Sequence numbers of the sent batch, lines counted as uncertain, and whether a new id was requested.
    fn outcome(actions: &[Action]) -> (Option<(i16, i32)>, u32, bool) {
        let mut out = (None, 0, false);
        for a in actions {
            match a {
                Action::Send(b) => out.0 = b.numbers.map(|n| (n.epoch, n.base)),
                Action::Uncertain(n) => out.1 += n,
                Action::NewId { .. } => out.2 = true,
                _ => {}
            }
        }
        out
    }

    /// The table at the head of this file, for an open batch 10..15 of epoch 2 in a run with epoch 3.
    #[test]
    fn outcomes_for_an_open_batch() {
        for (known, proven, want) in [
            (Some((2, 14)), true, (Some((2, 10)), 0, false)),
            (Some((2, 9)), true, (Some((2, 10)), 0, false)),
            (None, false, (Some((2, 10)), 0, false)),
            (None, true, (Some((3, 0)), 5, false)),
            (Some((2, 7)), true, (Some((3, 0)), 5, false)),
            (Some((2, 12)), true, (Some((3, 0)), 5, false)),
            (Some((1, 99)), true, (Some((3, 0)), 5, false)),
        ] {
            let mut p = Partition::with_recovered(0, [past(Some((2, 15)), proven)].into());
            p.push(open(2, 10, 5));
            assert_eq!(outcome(&asked(&mut p, known)), want, "{known:?}");
        }
        for known in [Some((2, 15)), Some((3, 0))] {
            let mut p = Partition::with_recovered(0, [past(Some((2, 15)), true)].into());
            p.push(open(2, 10, 5));
            assert!(outcome(&asked(&mut p, known)).2, "{known:?}");
        }
        let mut p = Partition::with_recovered(0, [past(Some((2, 5)), true)].into());
        p.push(open(2, 0, 5));
        assert_eq!(outcome(&asked(&mut p, Some((1, 99)))), (Some((2, 0)), 0, false));
    }

    /// Fails when a journal's batch of old entries, whose producer the broker forgets at its next check, is taken for not stored
    /// because it was read lately: it would be stored twice and not be counted.
    #[test]
    fn an_open_batch_of_old_entries() {
        let shape = || Shape { format: Format::Headed, ..Shape::default() };
        for (stamp_ms, want) in
            [(STAMP, (Some((3, 0)), 1, false)), (STAMP + LATER, (Some((2, 10)), 0, false))]
        {
            let mut bytes = Vec::new();
            RecordHead { key: None, stamp_ms }.put(&mut bytes);
            let head = bytes.len() as u32;
            bytes.push(b'x');
            let mut headed = chunk(&origin(1, "t", "/j", shape()), 0, &[&bytes]);
            (headed.lines[0].at, headed.lines[0].len) = (head, 1);
            let mut b = open(2, 10, 1);
            b.group = Arc::new(BatchGroup::new("t".into(), [0; 16], STAMP + LATER, vec![headed]));
            let mut p = Partition::with_recovered(0, [past(Some((2, 11)), false)].into());
            p.push(b);
            assert_eq!(outcome(&asked(&mut p, None)), want, "{stamp_ms}");
        }
    }

    /// Fails when a restored state folder continues with its old sequence numbers, or a good one does not.
    #[test]
    fn outcomes_when_no_batch_is_open() {
        for (last, known, want) in [
            (Some((2, 15)), Some((2, 14)), (0, false)),
            (Some((2, 15)), Some((2, 9)), (0, false)),
            (Some((2, 15)), None, (0, false)),
            (None, None, (0, false)),
            (Some((2, 15)), Some((2, 24)), (10, true)),
            (Some((2, 15)), Some((3, 4)), (5, true)),
            (None, Some((0, 4)), (5, true)),
        ] {
            let mut p = Partition::with_recovered(0, [past(last, true)].into());
            let (_, uncertain, new_id) = outcome(&asked(&mut p, known));
            assert_eq!((uncertain, new_id), want, "{last:?} {known:?}");
        }
    }

    /// Fails when the first new batch uses the earlier run's epoch: that run's late requests could be confused with
    /// ours.
    #[test]
    fn after_the_open_batch_this_runs_epoch_begins() {
        let mut p = Partition::with_recovered(0, [past(Some((2, 15)), true)].into());
        p.push(open(2, 10, 5));
        p.push(batch(5, vec![chunk(&plain(1), 9, &[b"y"])]));
        let mut actions = asked(&mut p, Some((2, 14)));
        let sent = actions.iter().position(|a| matches!(a, Action::Send(_))).unwrap();
        let Action::Send(first) = actions.swap_remove(sent) else { unreachable!() };
        actions.clear();
        p.launch(now(), RULES, &mut actions);
        assert!(actions.is_empty(), "the next one waits");
        p.done(
            first,
            Verdict::Stored { offset: Some(1) },
            now(),
            &mut crate::backoff::Rng::new(1),
            &mut actions,
        );
        p.launch(now(), RULES, &mut actions);
        assert_eq!(outcome(&actions).0, Some((3, 0)));
    }
}
