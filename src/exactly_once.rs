//! The intent log of exactly-once. Before a batch is first sent with sequence numbers, the producer thread records what the
//! batch carries (its *intent*). After a kill, the next run knows what may have been stored, and proves it by sending
//! the same batches with the same numbers again.
//!
//! Invariant: no batch is sent before its intent is in `flights` (with `sync = "always"`: on disk). Each partition
//! has at most one open intent. No line of a stream is sent before the stream's opening is saved; otherwise an intent
//! could name a stream id that the next run assigns to another file.
//!
//! # One producer id, one epoch per run
//!
//! One producer id serves all partitions and is kept over restarts. Each run uses it with a new epoch, higher than
//! all before (KIP-98 lets a client choose a higher epoch if it starts at sequence 0). A copy of the state folder, or
//! one restored from a backup, therefore meets an epoch that its numbers cannot explain; and requests of a killed run
//! that are still in flight are rejected (error 47) as soon as this run has stored something in the partition. Only
//! open batches are sent again with their original epoch.
//!
//! Measured on Kafka 3.9.1 and 4.1.0: a broker keeps producer state per partition, so a new epoch in one partition
//! does not affect another. Skipping epochs is accepted, but only at sequence 0 (otherwise error 45). An older epoch
//! gets error 47. An exact repeat is answered with its original offset, from any connection and also after `kill -9`
//! of the broker, but then only for the last batch (45 for the one before). `DescribeProducers` reports the epoch and
//! last sequence after each of these, and nothing where the id never wrote. A starting broker drops producers whose
//! last *record timestamp* is older than a day, so a machine whose clock is a day behind is forgotten at each restart
//! of the broker.
//!
//! # Why an intent log and not transactions
//!
//! Transactions (a transactional id, positions committed in Kafka) would solve the same problem, but every consumer
//! would have to read with `isolation.level=read_committed`, the agent would need another ACL, each commit writes a
//! marker per partition, and an agent that dies holds back all readers of the topic until `transaction.timeout.ms`.
//! Idempotence alone already makes the broker deduplicate a repeated batch; the intent log adds what a restarted client
//! needs to repeat one exactly. A prototype survived 138 `SIGKILL`s of agent and broker over 3,000,000 lines with none
//! lost or doubled.
//!
//! # Recovery
//!
//! [`mod@analyze`] interprets the intents. Lines of settled intents count as acknowledged; a batch group with open
//! intents is read again from the log files and handed to the producer core unchanged. Before a partition is first
//! used, its leader is asked about our id (`partition/producer_recovery.rs`), and must report exactly our numbers. A
//! batch that the leader may have is sent again with its original numbers; its answer proves whether it had it.
//!
//! The question alone would be no proof: `DescribeProducers` reports what the leader has appended, which a leader that fails
//! at once may take with it, while a repeated batch is answered only once it is replicated. So the question decides only
//! where a repeat is impossible: it is refused, or its bytes are gone.
//!
//! # Limits
//!
//! A line must still be readable to be repeated. The topic needs `min.insync.replicas` of 2 or more to outlive a leader.
//! A power loss needs `sync = "always"`. A rebuilt cluster may assign the same producer ids, so the journal is bound to cluster,
//! topic id and machine. Flink continues a producer id in a similar way, and KIP-939 is to make that official; no log shipper
//! known to us does.
//!
//! In reading order: [`intent`] (the records), [`mod@file`] (the file), [`mod@analyze`].

pub mod analyze;
pub mod file;
pub mod intent;

use crate::producer::BeforeSend;
use crate::producer::batch::Batch;
use crate::producer::recovered::{LastSequence, TopicPartition};
use crate::record::{BatchGroupNo, Range, StreamId};
use crate::report::{Blocked, Board};
use crate::streams::SavedPositions;
use crate::streams::mailbox::Mailbox;
use analyze::Loaded;
use file::{Binding, FRAME, HALF, IntentFile, RecordGroup};
use intent::{Intent, IntentRecord};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// An intent not yet covered by the saved positions.
#[derive(Debug)]
struct OpenIntent {
    serial: u64,
    group_no: BatchGroupNo,
    spans: Vec<(StreamId, Range)>,
    /// Its record, copied when the file switches halves.
    payload: Vec<u8>,
}

#[derive(Debug)]
pub struct IntentLog {
    store: IntentFile,
    binding: Binding,
    saved: SavedPositions,
    lasts: HashMap<TopicPartition, LastSequence>,
    /// By serial, ascending.
    live: Vec<OpenIntent>,
    serial: u64,
    board: Arc<Board>,
    gate: Gate,
}

/// Pause after a failed write.
const RETRY: Duration = Duration::from_secs(1);
/// How often to check whether batches are waiting because positions cannot be saved.
const LOOK: Duration = Duration::from_millis(250);
/// When a save takes longer than this, the disk counts as hung.
const SLOW: Duration = Duration::from_secs(2);

impl IntentLog {
    /// Starts this run: copies the records of `loaded` that are still needed to the other half of the file.
    pub fn begin(
        store: IntentFile,
        binding: Binding,
        loaded: &Loaded,
        saved: SavedPositions,
        mailbox: Mailbox,
        board: Arc<Board>,
    ) -> io::Result<IntentLog> {
        let live = loaded.keep.iter().map(|intent| OpenIntent::of(intent.clone())).collect();
        let lasts = loaded.lasts.clone();
        let mut intents = IntentLog {
            store,
            binding,
            saved,
            lasts,
            live,
            serial: loaded.serial,
            board,
            gate: Gate::new(mailbox),
        };
        intents.change_halves()?;
        Ok(intents)
    }

    /// Writes intents and returns how many of the batches have theirs. The others have to wait until positions are
    /// saved.
    fn put(&mut self, batches: &mut [Batch]) -> io::Result<usize> {
        let (n, is_full) = self.write(batches)?;
        if !is_full {
            return Ok(n);
        }
        // The records written so far are among those copied.
        self.change_halves()?;
        Ok(n + self.write(&mut batches[n..])?.0)
    }

    /// Writes as many intents as fit and returns how many of the batches have theirs, and whether the next one would fit
    /// into an empty half. Marks those batches as recorded.
    fn write(&mut self, batches: &mut [Batch]) -> io::Result<(usize, bool)> {
        let mut needed: usize = self.live.iter().map(OpenIntent::size).sum();
        let groups = || self.live.iter().map(|l| l.group_no);
        let unsettled = groups().min().zip(groups().max());
        let mut is_full = false;
        let mut group = RecordGroup::default();
        let mut added: Vec<(OpenIntent, LastSequence, u64)> = Vec::new();
        let mut fits = 0;
        for batch in batches.iter() {
            let Some(numbers) = batch.numbers.filter(|n| batch.noted != Some(*n)) else {
                fits += 1; // without numbers there is nothing to prove, or it is already recorded
                continue;
            };
            let place = (batch.group.topic.clone(), batch.partition);
            let follows = self.lasts.get(&place).is_some_and(|l| l.pid == numbers.pid);
            let serial = self.serial + 1 + added.len() as u64;
            let intent = Intent::of(batch, numbers, serial, follows);
            let (last, voids) = (intent.last(), intent.voids);
            let live = OpenIntent::of(intent);
            needed += live.size();
            if needed as u64 > most(batch.group_no, unsettled) {
                break;
            }
            is_full = !self.store.has_room(&group, live.payload.len());
            if is_full {
                break;
            }
            self.store.add(&mut group, &live.payload);
            added.push((live, last, voids));
            fits += 1;
        }
        if group.is_empty() {
            return Ok((fits, is_full));
        }
        self.store.append(&group, self.binding.synced)?;
        let mut serials = added.iter().map(|(live, ..)| live.serial);
        for batch in &mut batches[..fits] {
            if batch.numbers.is_some() && batch.noted != batch.numbers {
                (batch.intent, batch.noted) = (serials.next().unwrap_or_default(), batch.numbers);
            }
        }
        drop(serials);
        for (live, last, voids) in added {
            self.live.retain(|l| l.serial != voids);
            self.serial = live.serial;
            self.lasts.insert((last.topic.clone(), last.partition), last);
            self.live.push(live);
        }
        self.report();
        Ok((fits, is_full))
    }

    /// Copies only the records still needed, so there is room afterwards unless much is unsettled.
    fn change_halves(&mut self) -> io::Result<()> {
        let is_live =
            |l: &LastSequence| self.live.binary_search_by_key(&l.serial, |live| live.serial).is_ok();
        // After the intents: the last sequence of each other partition.
        let lasts = self.lasts.values().filter(|l| !is_live(l)).map(|l| {
            let mut payload = Vec::new();
            IntentRecord::Last(l.clone()).write(&mut payload);
            payload
        });
        let payloads = self.live.iter().map(|l| l.payload.clone()).chain(lasts);
        self.store.begin(&self.binding, payloads)?;
        self.report();
        Ok(())
    }

    /// Positions were saved: drops the intents they cover.
    pub fn covered(&mut self, saved: SavedPositions) {
        self.live.retain(|l| !l.spans.iter().all(|(stream, range)| saved.holds(*stream, range)));
        self.saved = saved;
        self.report();
    }

    fn may_be_sent(&self, batch: &Batch) -> bool {
        batch.group.chunks.iter().all(|c| self.saved.knows(c.origin.stream))
    }

    fn report(&self) {
        self.board.once.unsettled.store(self.live.len() as u64, Relaxed);
        self.board.once.bytes.store(self.store.written(), Relaxed);
    }
}

/// How many bytes of a half the unsettled intents may take, with one more of this group. `unsettled`: their oldest and newest
/// group. While a partition is down, its lines keep groups unsettled. The other batches must leave room for those that
/// settle them: first no group begins, and then only the oldest is completed.
fn most(group_no: BatchGroupNo, unsettled: Option<(BatchGroupNo, BatchGroupNo)>) -> u64 {
    match unsettled {
        Some((_, newest)) if group_no > newest => HALF / 2,
        Some((oldest, _)) if group_no > oldest => HALF / 4 * 3,
        _ => HALF / 8 * 7, // the rest is for the last sequences
    }
}

impl OpenIntent {
    fn of(intent: Intent) -> OpenIntent {
        let spans = intent.pieces.iter().map(|p| p.spans()).collect();
        let (serial, group_no) = (intent.serial, intent.group_no);
        let mut payload = Vec::new();
        IntentRecord::Intent(intent).write(&mut payload);
        OpenIntent { serial, group_no, spans, payload }
    }

    /// Bytes in the file.
    fn size(&self) -> usize {
        FRAME + self.payload.len()
    }
}

/// Batches waiting for their intent to be recorded, and why.
#[derive(Debug)]
struct Gate {
    mailbox: Mailbox,
    /// In the order they came.
    waiting: Vec<Batch>,
    /// Why `flights` could not be written.
    trouble: Option<String>,
    /// As shown in the status.
    blocked: Option<Blocked>,
    /// When to check again although nothing happened.
    next: Option<Instant>,
}

impl Gate {
    fn new(mailbox: Mailbox) -> Gate {
        Gate { mailbox, waiting: Vec::new(), trouble: None, blocked: None, next: None }
    }
}

impl BeforeSend for IntentLog {
    fn hold(&mut self, batches: Vec<Batch>) {
        self.gate.waiting.extend(batches);
        self.gate.next = None;
    }

    fn wake(&self, now: Instant) -> Option<Instant> {
        (!self.gate.waiting.is_empty()).then(|| self.gate.next.unwrap_or(now))
    }

    fn record(&mut self, now: Instant) -> Vec<Batch> {
        let saved = self.gate.mailbox.take();
        let is_due = self.gate.next.is_none_or(|at| now >= at);
        if let Some(saved) = saved {
            self.covered(saved);
        } else if self.gate.waiting.is_empty() || !is_due {
            if self.gate.waiting.is_empty() && self.gate.blocked.is_some() {
                self.report_blocked(now);
            }
            return Vec::new();
        }
        let recorded = self.write_waiting();
        self.report_blocked(now);
        let pause = if self.gate.blocked.is_some() { RETRY } else { LOOK };
        self.gate.next = Some(now + pause);
        recorded
    }
}

impl IntentLog {
    fn write_waiting(&mut self) -> Vec<Batch> {
        let waiting = std::mem::take(&mut self.gate.waiting);
        let (mut ready, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|b| self.may_be_sent(b));
        self.gate.waiting = rest;
        if ready.is_empty() {
            return ready;
        }
        // First those that need no room, then the oldest, which settle the most. A partition has only one here.
        ready.sort_by_key(|b| (b.noted != b.numbers, b.group_no));
        self.board.state().writing = Some(Instant::now());
        let done = self.put(&mut ready);
        self.board.state().writing = None;
        let n = match done {
            Ok(n) => {
                if self.gate.trouble.take().is_some() {
                    log::info!("flights can be written again");
                }
                n
            }
            Err(e) => {
                self.failed(&e);
                ready.iter().take_while(|b| b.noted == b.numbers).count()
            }
        };
        // Batches without room wait until positions are saved.
        let late = ready.split_off(n);
        self.gate.waiting.splice(0..0, late);
        ready
    }

    fn failed(&mut self, e: &io::Error) {
        let why = e.to_string();
        if self.gate.trouble.as_ref() != Some(&why) {
            log::error!(
                "write flights in the state folder: {why}; nothing is sent until this succeeds: repair its disk, or \
                 set delivery = \"at-least-once\""
            );
            self.gate.trouble = Some(why);
        }
    }

    /// Shows on the board, and logs once per reason, that batches wait for the state folder.
    fn report_blocked(&mut self, now: Instant) {
        let Some(why) = self.blocked_because(now) else {
            if self.gate.blocked.take().is_some() {
                self.board.state().blocked = None;
                self.board.alarm();
                log::info!("the state folder is writable again, delivery is no longer blocked");
            }
            return;
        };
        let mut topics = BTreeSet::new();
        topics.extend(self.gate.waiting.iter().map(|b| b.group.topic.to_string()));
        let (since, attempts) = match &self.gate.blocked {
            Some(blocked) => (blocked.since, blocked.attempts + 1),
            None => (now, 1),
        };
        // A failure to write `flights` has been logged already.
        if self.gate.blocked.as_ref().is_none_or(|b| b.why != why) && self.gate.trouble.is_none() {
            let names: Vec<&str> = topics.iter().map(String::as_str).collect();
            log::error!(
                "delivery to {} is blocked: {why}; make the folder writable, free or repair its disk, or set \
                 delivery = \"at-least-once\"",
                names.join(", ")
            );
        }
        let blocked = Blocked { why, since, attempts, topics };
        self.board.state().blocked = Some(blocked.clone());
        if self.gate.blocked.replace(blocked).is_none() {
            self.board.alarm();
        }
    }

    fn blocked_because(&self, now: Instant) -> Option<String> {
        if self.gate.waiting.is_empty() {
            return None;
        }
        if let Some(why) = &self.gate.trouble {
            return Some(format!("flights in the state folder cannot be written: {why}"));
        }
        let state = self.board.state();
        if let Some(why) = &state.degraded {
            return Some(format!("positions cannot be saved in the state folder: {why}"));
        }
        // Otherwise they wait for the next save, or `flights` is full: then a topic or a broker is what is in trouble.
        let is_slow = state.saving.is_some_and(|since| now.saturating_duration_since(since) > SLOW);
        is_slow.then(|| "positions are not saved: the disk of the state folder does not answer".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::private_file::open_or_create;
    use crate::producer::batch::Numbers;
    use crate::producer::testing::{batch, chunk, plain};
    use crate::streams::mailbox;
    use crate::waker::Waker;

    fn numbered(group_no: u64, partition: i32) -> Batch {
        let numbers = Some(Numbers { pid: 7, epoch: 0, base: group_no as i32 });
        Batch { partition, numbers, ..batch(group_no, vec![chunk(&plain(1), group_no * 2, &[b"a"])]) }
    }

    /// Batches wait because no position is saved: the disk hangs, or everything in `flights` waits for a partition. Fails when
    /// the disk is blamed for the latter, or not for the former.
    #[test]
    fn a_full_log_is_no_fault_of_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = IntentFile::open(open_or_create(&dir.path().join("flights")).unwrap()).unwrap();
        let board = Arc::new(Board::default());
        let saved = SavedPositions(HashMap::from([(StreamId(1), (0, Vec::new()))]));
        let (binding, mailbox) = (Binding::default(), mailbox::pair(&Waker::new().unwrap()).1);
        let mut log =
            IntentLog::begin(store, binding, &Loaded::default(), saved, mailbox, board.clone()).unwrap();
        let start = Instant::now();
        let mut sent = 0;
        while log.gate.waiting.is_empty() {
            log.hold(vec![numbered(sent, sent as i32)]);
            sent += log.record(start).len() as u64;
            assert!(sent < 100_000, "never full");
        }
        let late = start + SLOW * 2;
        log.record(late);
        assert!(board.state().blocked.is_none());
        board.state().saving = Some(start);
        log.record(late + LOOK);
        assert!(board.state().blocked.as_ref().unwrap().why.contains("disk"));
    }
}
