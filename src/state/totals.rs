//! Copies the counters between `offsets` and the status board.

use crate::report::Board;
use crate::streams::SavedTotals;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

impl SavedTotals {
    /// At the start: the board continues from these values.
    pub fn put_on(&self, board: &Board) {
        let t = &board.totals;
        t.read_lines.store(self.read_lines, Relaxed);
        t.acked_lines.store(self.acked_lines, Relaxed);
        t.dead_lettered.store(self.dead_lettered, Relaxed);
        t.resent.store(self.resent, Relaxed);
        t.uncertain.store(self.uncertain, Relaxed);
        t.lost_bytes.store(self.lost_bytes, Relaxed);
        t.lost_entries.store(self.lost_entries, Relaxed);
        t.damaged_entries.store(self.damaged_entries, Relaxed);
        t.cut_lines.store(self.cut_lines, Relaxed);
        t.retries.store(self.retries, Relaxed);
        t.state_bytes.store(self.state_bytes, Relaxed);
        board.once.resent.store(self.flights_resent, Relaxed);
        board.once.found.store(self.flights_found, Relaxed);
    }

    /// Copies the board's counters, except `lost_bytes`: the board includes unfinished streams, whose loss the next
    /// run counts again. `lost_entries` comes with the gap it belongs to, from the registry.
    pub fn take_from(&mut self, board: &Board) {
        let t = &board.totals;
        let of = |n: &AtomicU64| n.load(Relaxed);
        self.read_lines = of(&t.read_lines);
        self.acked_lines = of(&t.acked_lines);
        self.dead_lettered = of(&t.dead_lettered);
        self.resent = of(&t.resent);
        self.uncertain = of(&t.uncertain);
        self.damaged_entries = of(&t.damaged_entries);
        self.cut_lines = of(&t.cut_lines);
        self.retries = of(&t.retries);
        if let Some(marks) = board.sent_marks.get() {
            self.again = marks.again();
        }
        let marks = board.sent_marks.get().map_or(0, |marks| marks.written());
        self.state_bytes = of(&t.state_bytes) + marks + of(&board.once.bytes);
        self.flights_resent = of(&board.once.resent);
        self.flights_found = of(&board.once.found);
    }
}
