//! The offsets of one open stream, and the age of its oldest unacknowledged byte.

use super::sent_marks::SentMark;
use crate::lock::lock;
use crate::record::{Identity, Range, StreamId};
use crate::wake_slot::WakeSlot;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Offsets of one open stream, in bytes. Invariant: `saved ≤ acked ≤ sent ≤ framed ≤ size` (unless truncated).
#[derive(Debug, Default)]
pub struct Progress {
    pub size: AtomicU64,
    /// End of the last chunk that the tail handed over, or is about to.
    pub framed: AtomicU64,
    /// End of the last chunk that may have been sent. Moved by [`Progress::send`].
    pub sent: AtomicU64,
    pub acked: AtomicU64,
    pub saved: AtomicU64,
    /// There is no line end between `framed` and here: an incomplete last line, which does not count as waiting.
    /// Writer: the tail.
    pub searched: AtomicU64,
    /// Of a journal file: entries that are not read yet, as of the last look.
    pub unread_entries: AtomicU64,
    /// Of a journal file: records handed over in this run and not acknowledged yet.
    pub records: AtomicU64,
    /// Persists `sent` across a crash.
    mark: Option<SentMark>,
    seen: Mutex<SizesSeen>,
    who: Mutex<Option<(StreamId, Identity)>>,
    /// See [`Progress::awaited_by`].
    waiter: Mutex<Option<Arc<WakeSlot>>>,
}

/// When each size was first seen, ascending.
#[derive(Debug, Default)]
struct SizesSeen(VecDeque<(u64, Instant)>);

impl SizesSeen {
    /// Above this, neighbors are merged, which overstates the age of old bytes rather than understating it.
    const MOST: usize = 64;
    /// Sizes seen within this time share an entry.
    const STEP: Duration = Duration::from_millis(500);

    fn grew(&mut self, size: u64, now: Instant) {
        match self.0.back_mut() {
            Some((s, _)) if *s >= size => return,
            Some((s, t)) if now.duration_since(*t) < Self::STEP => *s = size,
            _ => self.0.push_back((size, now)),
        }
        if self.0.len() > Self::MOST {
            let mut first = None;
            self.0.retain_mut(|entry| match first.take() {
                // Keep the second of a pair with the first's time: bytes up to it have been seen since then.
                Some(t) => {
                    entry.1 = t;
                    true
                }
                None => {
                    first = Some(entry.1);
                    false
                }
            });
            // An unpaired last entry was removed: put it back.
            if let Some(t) = first {
                self.0.push_back((size, t));
            }
        }
    }

    fn oldest_after(&mut self, acked: u64) -> Option<Instant> {
        while self.0.front().is_some_and(|(size, _)| *size <= acked) {
            self.0.pop_front();
        }
        self.0.front().map(|(_, t)| *t)
    }
}

impl Progress {
    /// Progress of a stream opened at offset `at`, whose file holds `size` bytes.
    pub fn new(at: u64, size: u64, mark: Option<SentMark>) -> Progress {
        let progress = Progress { mark, ..Progress::default() };
        for offset in [&progress.framed, &progress.sent, &progress.acked, &progress.saved] {
            offset.store(at, Relaxed);
        }
        progress.saw(size, Instant::now());
        progress
    }

    /// Records that the file now holds `size` bytes. Called once per check of the file, not per chunk.
    pub fn saw(&self, size: u64, now: Instant) {
        self.size.store(size, Relaxed);
        lock(&self.seen).grew(size, now);
    }

    /// A chunk that ends at `end` is about to be handed over.
    pub fn frame(&self, end: u64) {
        self.framed.fetch_max(end, Relaxed);
    }

    /// A chunk with these bytes is about to be sent for the first time. On return this is on record, so that after a crash it is
    /// known which lines may have been stored without an acknowledgement.
    pub fn send(&self, range: &Range, lines: u64) {
        assert!(range.end <= self.framed.load(Relaxed), "{range:?} is sent before it is framed");
        if let Some(mark) = &self.mark {
            mark.raise(range.start, range.end, lines);
        }
        self.sent.fetch_max(range.end, Relaxed);
    }

    /// Wakes `slot` once, when everything framed is acknowledged, or when that is saved. Call before checking whether it is, so
    /// that nothing is missed in between.
    pub fn awaited_by(&self, slot: Arc<WakeSlot>) {
        *lock(&self.waiter) = Some(slot);
    }

    /// Everything up to `at` is acknowledged.
    pub fn ack(&self, at: u64) {
        self.acked.store(at, Relaxed);
        self.wake_if_complete(at);
    }

    /// Everything up to `at` is acknowledged and saved.
    pub fn save(&self, at: u64) {
        self.saved.store(at, Relaxed);
        self.wake_if_complete(at);
    }

    fn wake_if_complete(&self, at: u64) {
        let mut waiter = lock(&self.waiter);
        if waiter.is_some()
            && at >= self.framed.load(Relaxed)
            && let Some(slot) = waiter.take()
        {
            slot.look();
        }
    }

    /// Everything framed has been acknowledged.
    pub fn is_done(&self) -> bool {
        self.acked.load(Relaxed) >= self.framed.load(Relaxed)
    }

    /// When the oldest unacknowledged line was first seen; `None` if only an incomplete line is left.
    pub fn waits_since(&self) -> Option<Instant> {
        let (acked, framed) = (self.acked.load(Relaxed), self.framed.load(Relaxed));
        let late = acked < framed || self.searched.load(Relaxed).max(framed) < self.size.load(Relaxed);
        let since = lock(&self.seen).oldest_after(acked);
        since.filter(|_| late)
    }

    /// Which stream and file this belongs to. Writer: the registry, when the stream is opened.
    pub fn belongs(&self, stream: StreamId, identity: Identity) {
        *lock(&self.who) = Some((stream, identity));
    }

    pub fn who(&self) -> Option<(StreamId, Identity)> {
        lock(&self.who).clone()
    }
}
