//! Exactly once. Before a batch is first sent with its numbers, the producer's thread has what it carries
//! written down (its *intent*); so whatever is killed, the next run knows what may be stored, and proves it by sending the
//! same numbers again. Decides nothing about sending or numbers, and reads no log file.
//!
//! Invariant: no batch leaves whose intent is not in `flights` (with `sync = "always"`: on the disk). Per partition one
//! intent is open at most. No stream flies before its opening is saved, or an intent could name a stream that the next run
//! gives to another file.
//!
//! # One id, with an epoch of each partition
//!
//! One producer id serves all partitions; it is kept over restarts, and each run uses it with an epoch of its own, higher
//! than all before (KIP-98 lets a client choose a higher epoch, if it begins at sequence 0). So a copy of the state folder,
//! or one put back from a backup, meets an epoch that its numbers cannot explain, and requests of a killed run that are
//! still under way are refused (47) as soon as this run has stored something there. Only open batches are sent again with
//! the epoch they had.
//!
//! Measured on 3.9.1 and 4.1.0: what a broker keeps of a producer is kept per partition, so an
//! epoch that rises in one partition does nothing to another; a jump over several epochs is taken, at sequence 0 only (45
//! else); an older epoch gets 47; an exact repeat is answered with the first offset, from any connection, also after `kill -9` of
//! the broker, but then for the last batch only (45 for the one before); `DescribeProducers` tells epoch and last sequence of
//! the id after each of these, and nothing where it never wrote. A broker that starts drops producers whose last *record
//! timestamp* is older than a day: a machine whose clock is a day behind is forgotten at each restart of the broker.
//!
//! # At the start
//!
//! [`mod@analyze`] says what the intents mean. Lines of settled ones count as acknowledged; a flight with open ones is read again
//! and handed to the core as it was. Before a partition is first used, its leader is asked about our id (`partition/recall.rs`):
//! it must know neither more nor other numbers than ours. A batch that it may have is sent again with the numbers it had:
//! the answer is the proof.
//!
//! In reading order: [`intent`] (what is written), [`mod@file`] (the file), [`mod@analyze`].

pub mod analyze;
pub mod file;
pub mod intent;

use crate::chunk::{Range, StreamId};
use crate::producer::BeforeSend;
use crate::producer::batch::Batch;
use crate::producer::recovered::{LastSequence, TopicPartition};
use crate::report::{Blocked, Board};
use crate::streams::SavedPositions;
use crate::streams::mailbox::Mailbox;
use analyze::Loaded;
use file::{Binding, HALF, JournalFile, RecordGroup};
use intent::{Intent, JournalRecord};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// What is known of an intent that the saved positions do not cover.
#[derive(Debug)]
struct OpenIntent {
    serial: u64,
    spans: Vec<(StreamId, Range)>,
    /// Its record, to be carried over when the file changes halves.
    payload: Vec<u8>,
}

#[derive(Debug)]
pub struct Journal {
    store: JournalFile,
    binding: Binding,
    saved: SavedPositions,
    lasts: HashMap<TopicPartition, LastSequence>,
    /// By serial, ascending.
    live: Vec<OpenIntent>,
    serial: u64,
    board: Arc<Board>,
    gate: Gate,
}

/// After a failed write the next try comes so much later.
const RETRY: Duration = Duration::from_secs(1);
/// How soon it shows that batches wait because positions cannot be saved.
const LOOK: Duration = Duration::from_millis(250);
/// A save that takes longer than this is a disk that does not answer.
const SLOW: Duration = Duration::from_secs(2);

impl Journal {
    /// Begins this run: what is still needed of `loaded` goes to the other half of the file.
    pub fn begin(
        store: JournalFile,
        binding: Binding,
        loaded: &Loaded,
        saved: SavedPositions,
        mailbox: Mailbox,
        board: Arc<Board>,
    ) -> io::Result<Journal> {
        let live = loaded.keep.iter().map(|intent| OpenIntent::of(intent.clone())).collect();
        let lasts = loaded.lasts.clone();
        let mut journal = Journal {
            store,
            binding,
            saved,
            lasts,
            live,
            serial: loaded.serial,
            board,
            gate: Gate::new(mailbox),
        };
        journal.change_halves()?;
        Ok(journal)
    }

    /// Writes intents; how many of the batches have theirs. The others have to wait until positions are saved.
    pub fn put(&mut self, batches: &mut [Batch]) -> io::Result<usize> {
        let n = self.write(batches)?;
        let needed: usize = self.live.iter().map(|l| l.payload.len()).sum();
        if n == batches.len() || needed as u64 > HALF / 2 {
            return Ok(n);
        }
        // What was written stays good: it is among what is carried over.
        self.change_halves()?;
        Ok(n + self.write(&mut batches[n..])?)
    }

    /// Writes intents until they would not fit; how many of the batches have theirs. Those batches know it.
    fn write(&mut self, batches: &mut [Batch]) -> io::Result<usize> {
        let mut group = RecordGroup::default();
        let mut added: Vec<(OpenIntent, LastSequence, u64)> = Vec::new();
        let mut fits = 0;
        for batch in batches.iter() {
            let Some(numbers) = batch.numbers.filter(|n| batch.noted != Some(*n)) else {
                fits += 1; // without numbers there is nothing to prove; or it is written already
                continue;
            };
            let place = (batch.group.topic.clone(), batch.partition);
            let follows = self.lasts.get(&place).is_some_and(|l| l.pid == numbers.pid);
            let serial = self.serial + 1 + added.len() as u64;
            let intent = Intent::of(batch, numbers, serial, follows);
            let (last, voids) = (intent.last(), intent.voids);
            let live = OpenIntent::of(intent);
            if !self.store.has_room(&group, live.payload.len()) {
                break;
            }
            self.store.add(&mut group, &live.payload);
            added.push((live, last, voids));
            fits += 1;
        }
        if group.is_empty() {
            return Ok(fits);
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
        self.tell();
        Ok(fits)
    }

    /// Only what is needed is carried over, so there is room afterwards, unless much is unsettled.
    fn change_halves(&mut self) -> io::Result<()> {
        let is_live =
            |l: &LastSequence| self.live.binary_search_by_key(&l.serial, |live| live.serial).is_ok();
        // After the intents: a partition's last word.
        let lasts = self.lasts.values().filter(|l| !is_live(l)).map(|l| {
            let mut payload = Vec::new();
            JournalRecord::Last(l.clone()).write(&mut payload);
            payload
        });
        let payloads = self.live.iter().map(|l| l.payload.clone()).chain(lasts);
        self.store.begin(&self.binding, payloads)?;
        self.tell();
        Ok(())
    }

    /// Positions are saved: what they cover is not needed any more.
    pub fn covered(&mut self, saved: SavedPositions) {
        self.live.retain(|l| !l.spans.iter().all(|(stream, range)| saved.holds(*stream, range)));
        self.saved = saved;
        self.tell();
    }

    fn may_fly(&self, batch: &Batch) -> bool {
        batch.group.chunks.iter().all(|c| self.saved.knows(c.origin.stream))
    }

    fn tell(&self) {
        self.board.once.unsettled.store(self.live.len() as u64, Relaxed);
        self.board.once.bytes.store(self.store.written(), Relaxed);
    }
}

impl OpenIntent {
    fn of(intent: Intent) -> OpenIntent {
        let spans = intent.pieces.iter().map(|p| p.spans()).collect();
        let serial = intent.serial;
        let mut payload = Vec::new();
        JournalRecord::Intent(intent).write(&mut payload);
        OpenIntent { serial, spans, payload }
    }
}

/// Batches that wait for their intent, and why.
#[derive(Debug)]
struct Gate {
    mailbox: Mailbox,
    /// In the order they came.
    waiting: Vec<Batch>,
    /// When batches were first left waiting, since the last save.
    since: Option<Instant>,
    /// Why `flights` could not be written.
    trouble: Option<String>,
    /// What is shown in the status.
    blocked: Option<Blocked>,
    /// When to look again although nothing happened.
    next: Option<Instant>,
}

impl Gate {
    fn new(mailbox: Mailbox) -> Gate {
        Gate { mailbox, waiting: Vec::new(), since: None, trouble: None, blocked: None, next: None }
    }
}

impl BeforeSend for Journal {
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
            self.gate.since = None;
        } else if self.gate.waiting.is_empty() || !is_due {
            if self.gate.waiting.is_empty() && self.gate.blocked.is_some() {
                self.report_blocked(now);
            }
            return Vec::new();
        }
        let recorded = self.write_waiting();
        self.report_blocked(now);
        let pause = if self.gate.blocked.is_some() { RETRY } else { LOOK };
        self.gate.next = self.gate.since.map(|_| now + pause);
        recorded
    }
}

impl Journal {
    fn write_waiting(&mut self) -> Vec<Batch> {
        let waiting = std::mem::take(&mut self.gate.waiting);
        let (mut ready, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|b| self.may_fly(b));
        self.gate.waiting = rest;
        if ready.is_empty() {
            return ready;
        }
        self.board.state().writing = Some(Instant::now());
        let done = self.put(&mut ready);
        self.board.state().writing = None;
        let n = match done {
            Ok(n) => {
                if self.gate.trouble.take().is_some() {
                    log::info!("flights are written again");
                }
                n
            }
            Err(e) => {
                self.failed(&e);
                ready.iter().take_while(|b| b.noted == b.numbers).count()
            }
        };
        // What has no room waits until positions are saved.
        let late = ready.split_off(n);
        self.gate.waiting.splice(0..0, late);
        ready
    }

    fn failed(&mut self, e: &io::Error) {
        let why = e.to_string();
        if self.gate.trouble.as_ref() != Some(&why) {
            log::error!(
                "write flights in the state folder: {why}; nothing is sent until it can be: mend its disk, or \
                 set delivery = \"at-least-once\""
            );
            self.gate.trouble = Some(why);
        }
    }

    /// Says on the board, and once for each reason in the log, that batches wait for the state folder.
    fn report_blocked(&mut self, now: Instant) {
        let Some(why) = self.blocked_because(now) else {
            if self.gate.blocked.take().is_some() {
                self.board.state().blocked = None;
                self.board.alarm();
                log::info!("the state folder is written again, delivery is no longer blocked");
            }
            return;
        };
        let topics: BTreeSet<String> = self.gate.waiting.iter().map(|b| b.group.topic.to_string()).collect();
        let (since, attempts) = match &self.gate.blocked {
            Some(blocked) => (blocked.since, blocked.attempts + 1),
            None => (now, 1),
        };
        // That `flights` cannot be written is said already.
        if self.gate.blocked.as_ref().is_none_or(|b| b.why != why) && self.gate.trouble.is_none() {
            let names: Vec<&str> = topics.iter().map(String::as_str).collect();
            log::error!(
                "delivery to {} is blocked: {why}; make the folder writable, free or mend its disk, or set \
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

    fn blocked_because(&mut self, now: Instant) -> Option<String> {
        if self.gate.waiting.is_empty() {
            self.gate.since = None;
            return None;
        }
        let since = *self.gate.since.get_or_insert(now);
        if let Some(why) = &self.gate.trouble {
            return Some(format!("flights in the state folder cannot be written: {why}"));
        }
        if let Some(why) = &self.board.state().degraded {
            return Some(format!("positions cannot be saved in the state folder: {why}"));
        }
        let is_slow = now.duration_since(since) > SLOW; // else the save that they wait for is under way
        is_slow.then(|| "positions are not saved: the disk of the state folder does not answer".into())
    }
}
