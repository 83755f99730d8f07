//! One open file of a stream: reads from the current position, frames lines, and builds chunks.

use super::content::{BLOCK, append, before, beginning, ends_in_hole, is_hole, read_at};
use super::framing::{self, FramingInput, Rest, Rules, Run};
use super::gz::Gz;
use super::identity::{self, Look};
use super::nuls::{self, TrailingNuls};
use crate::budget::{Permit, QueuePlace, Share};
use crate::chunk::{Chunk, Origin};
use crate::record::{Identity, Line, Mark, Point, Range, Shape, Then, Topic};
use crate::stop::Stop;
use memchr::{memchr, memrchr};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::cell::Cell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Where a stream's bytes are read from.
#[derive(Debug)]
pub enum Bytes {
    Plain(Arc<File>),
    Gz(Box<Gz>),
}

/// How to read the files of a source.
#[derive(Debug, Clone)]
pub struct Reading {
    pub rules: Rules,
    pub share: Share,
    /// Maximum bytes per chunk; a single longer line may exceed it.
    pub chunk: usize,
}

/// The result of one read.
#[derive(Debug)]
pub enum Got {
    Chunk(Chunk, Counts),
    /// There is no complete record.
    Nothing,
    /// The bytes before the position differ from those that were read.
    Changed,
    /// `stop` was set while waiting for the budget.
    Stopped,
    /// The budget had no room for some time: check whether the file is still the same.
    NoRoom,
    /// A compressed file that cannot be read any further.
    Broken(io::Error),
}

/// What a chunk left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub cut_lines: u64,
    pub left_out_bytes: u64,
}

#[derive(Debug)]
pub struct Open {
    bytes: Bytes,
    pub origin: Arc<Origin>,
    pub identity: Identity,
    /// Framed up to here.
    pub at: Point,
    /// The ≤ 256 bytes before `at`, as they were read.
    before: Vec<u8>,
    /// The beginning of a plain file of which nothing was read yet. If it changes, the file was truncated before that.
    beginning: Vec<u8>,
    /// The first ≤ 256 bytes of a plain file, as far as they were read. A copy of the file begins with the same bytes.
    pub head: Vec<u8>,
    /// Ranges acknowledged in an earlier run; they are skipped.
    beyond: VecDeque<(Range, Point)>,
    /// `at.offset..searched` was searched and holds no complete record. Invariant: `at.offset ≤ searched ≤ size`.
    pub searched: u64,
    /// As last seen.
    pub size: u64,
    /// Size of the file when the bytes before `at` last matched. If they stop matching, the loss is counted up to here,
    /// because a larger size may belong to different content.
    pub proven: u64,
    /// As last seen, in ns since 1970.
    pub modified: i64,
    pub links: u32,
    pub live: bool,
    /// A rotated file that was found by its name: no events are reported for it.
    pub found_by_name: bool,
    /// Bytes before this offset are sent before those of newer files.
    pub owed: u64,
    /// Read no further than this (`--once`).
    pub limit: u64,
    /// When it last changed.
    pub changed: Instant,
    /// Recent average of bytes per line, used to size the line table.
    per_line: usize,
    /// Place in the queue for the budget.
    pub place: Option<QueuePlace>,
    /// NULs at `at` continue a hole: one that ends there, or one that a truncation left behind.
    pub in_hole: bool,
    /// What follows `size`, which does not count.
    pub nuls: Option<TrailingNuls>,
    /// NULs are written over in this file.
    has_nuls: bool,
    /// See [`TrailingNuls::find`].
    no_data_before: u64,
    /// The offset up to which the deleted file was compared with a `.gz` of it.
    pub compared: u64,
    /// The complete lines after `at` of a record that is still incomplete. A truncation would destroy them in the file.
    waiting: Option<(Vec<u8>, Permit)>,
    /// There are such lines, even if memory does not allow keeping them.
    lines_wait: bool,
}

/// Longest wait for the budget without a look at the files. While nothing can be sent, a log may grow, be rotated and be
/// removed; a file that was never opened would be lost without any report.
const PATIENCE: Duration = Duration::from_secs(2);

/// The smallest page of the kernel's page cache, in bytes.
const PAGE: u64 = 4096;

/// Initial guess of a line's length.
const USUAL_LINE: usize = 100;

impl Open {
    /// `None`: the file's bytes before `at` do not match the mark.
    pub fn new(
        bytes: Bytes,
        look: &Look,
        origin: Arc<Origin>,
        at: Point,
        beyond: Vec<(Range, Point)>,
        now: Instant,
    ) -> io::Result<Option<Open>> {
        let mut open = Open {
            bytes,
            origin,
            identity: look.identity.clone(),
            at,
            before: Vec::new(),
            beginning: Vec::new(),
            head: Vec::new(),
            beyond: beyond.into(),
            searched: at.offset,
            size: look.size,
            proven: look.size,
            modified: look.modified,
            links: look.links,
            live: false,
            found_by_name: false,
            owed: 0,
            limit: u64::MAX,
            changed: now,
            per_line: USUAL_LINE,
            place: None,
            in_hole: false,
            nuls: None,
            has_nuls: false,
            no_data_before: 0,
            compared: 0,
            waiting: None,
            lines_wait: false,
        };
        open.before = open.read_before(at.offset)?;
        let kept = &open.before[open.before.len().saturating_sub(usize::from(at.mark.len))..];
        if Mark::of(kept) != at.mark {
            return Ok(None);
        }
        open.at.mark = Mark::of(&open.before);
        if let Bytes::Plain(file) = &open.bytes {
            open.head = before(file, at.offset.min(Mark::SPAN as u64))?;
            if at.offset == 0 {
                open.beginning = beginning(file)?;
            }
            open.in_hole = open.before.last() == Some(&0) && ends_in_hole(file, at.offset)?;
        }
        Ok(Some(open))
    }

    /// Keeps the stream, but its lines become records of another topic or shape from here on. Bytes that were not framed yet
    /// are searched again.
    pub fn relabel(&mut self, topic: &Topic, shape: &Arc<Shape>) {
        let Origin { stream, path, progress, .. } = &*self.origin;
        let (path, progress) = (path.clone(), progress.clone());
        self.origin =
            Arc::new(Origin { stream: *stream, topic: topic.clone(), path, shape: shape.clone(), progress });
        if let Bytes::Plain(_) = self.bytes {
            self.searched = self.at.offset;
        }
        (self.place, self.waiting) = (None, None); // they may belong to another topic
    }

    /// Continues in another file if it has the bytes before the position.
    pub fn continue_in(&mut self, file: File, look: &Look, now: Instant) -> io::Result<bool> {
        if look.size < self.at.offset || before(&file, self.at.offset)? != self.before {
            return Ok(false);
        }
        (self.bytes, self.identity, self.place) = (Bytes::Plain(file.into()), look.identity.clone(), None);
        (self.nuls, self.no_data_before) = (None, 0);
        self.saw(look, now);
        Ok(true)
    }

    /// Ranges acknowledged in an earlier run that have not been skipped yet.
    pub fn beyond(&self) -> Vec<(Range, Point)> {
        self.beyond.iter().cloned().collect()
    }

    /// The descriptor of a plain file.
    pub fn file(&self) -> Option<&Arc<File>> {
        match &self.bytes {
            Bytes::Plain(f) => Some(f),
            Bytes::Gz(_) => None,
        }
    }

    /// Looks at a plain file. NULs at its end that may still be written over do not count.
    pub fn look(&mut self) -> io::Result<Option<Look>> {
        let Bytes::Plain(file) = &self.bytes else { return Ok(None) };
        let mut look = identity::look(file)?;
        if let Some(nuls) = self.nuls {
            match nuls.remain(file, look.size, self.live)? {
                true => look.size = nuls.start,
                false => self.nuls = None,
            }
        }
        Ok(Some(look))
    }

    /// Takes the NULs at the end of the file off its size, and off what was read up to there. `is_end`: no more can be read;
    /// returns whether that is still so.
    fn leave_nuls(&mut self, bytes: &mut Vec<u8>, is_end: bool) -> io::Result<bool> {
        let Bytes::Plain(file) = &self.bytes else { return Ok(is_end) };
        let (at, searched) = (self.at.offset, &mut self.no_data_before);
        let found = TrailingNuls::find(file, at, bytes, is_end, self.size, searched);
        let grows = self.live && self.limit == u64::MAX;
        if let Some(nuls) = found.filter(|nuls| grows || !nuls.written) {
            self.has_nuls = true;
            bytes.truncate((nuls.start - self.at.offset) as usize);
            // If it was truncated meanwhile, the next look sees it.
            if identity::look(file)?.size == self.size {
                self.size = nuls.start;
                (self.searched, self.proven) = (self.searched.min(self.size), self.proven.min(self.size));
                self.nuls = Some(nuls);
                self.origin.progress.saw(self.size, self.changed);
            }
        }
        // The writer may have filled some of them since, and written on behind what was read.
        let first = if self.has_nuls { memchr(0, bytes) } else { nuls::at_end(bytes) };
        if let Some(first) = first
            && !nuls::is_nul(file, self.at.offset + first as u64)?
        {
            bytes.truncate(first);
            return Ok(false);
        }
        Ok(is_end)
    }

    /// Applies the result of a new look at the file. Bytes that may have been overwritten in place are checked again.
    pub fn saw(&mut self, look: &Look, now: Instant) {
        if (look.size, look.modified, look.links) == (self.size, self.modified, self.links) {
            return;
        }
        if look.modified != self.modified
            && look.size == self.searched
            && self.searched - self.at.offset <= Mark::SPAN as u64
        {
            self.searched = self.at.offset;
        }
        (self.size, self.modified, self.links, self.changed) = (look.size, look.modified, look.links, now);
        self.origin.progress.saw(look.size, now);
    }

    /// Whether the bytes before the position are still those that were read.
    pub fn unchanged(&mut self) -> io::Result<bool> {
        if let Bytes::Gz(_) = self.bytes {
            return Ok(true);
        }
        if let (0, Bytes::Plain(file)) = (self.at.offset, &self.bytes) {
            return Ok(before(file, self.beginning.len() as u64)? == self.beginning);
        }
        Ok(self.read_before(self.at.offset)? == self.before)
    }

    /// After a look: if the bytes before the position still match, the whole size belongs to this content.
    pub fn prove(&mut self) -> io::Result<()> {
        if self.size > self.proven && self.unchanged()? {
            self.proven = self.size;
        }
        Ok(())
    }

    fn end(&self) -> u64 {
        self.size.min(self.limit)
    }

    pub fn unread(&self) -> bool {
        self.end() > self.searched
    }

    pub fn rest(&self) -> bool {
        self.searched > self.at.offset
    }

    /// `rest` contains complete lines.
    pub fn rest_has_lines(&self) -> bool {
        self.rest() && self.lines_wait
    }

    /// `rest` existed at the rotation, and nothing was appended since.
    pub fn rest_owed(&self) -> bool {
        self.rest() && self.at.offset < self.owed && self.size <= self.owed
    }

    /// It was deleted, perhaps by gzip(1), and more was read of it since it was compared with a `.gz`.
    pub fn is_news_for_gz(&self) -> bool {
        self.links == 0 && self.compared != self.at.offset
    }

    /// The known size; for a `.gz` it is exact only at its end.
    pub fn known_size(&self) -> u64 {
        if self.size == u64::MAX { self.origin.progress.size.load(Relaxed) } else { self.size }
    }

    /// Bytes that exist but were neither framed nor acknowledged in an earlier run.
    pub fn backlog(&self) -> u64 {
        unread(self.known_size(), self.at.offset, &self.beyond)
    }

    /// Reads the next chunk. `rest` says how to treat the bytes after the last line end.
    pub fn read(&mut self, how: &Reading, rest: Rest, stop: &Stop) -> io::Result<Got> {
        self.pass_over()?;
        let hole_ends = self.beyond.front().map_or(u64::MAX, |(r, _)| r.start);
        let mut end = self.end().min(hole_ends);
        let mut len = self.window(how, end);
        loop {
            if len == 0 {
                return Ok(Got::Nothing);
            }
            let most = (len / self.per_line.max(1) + 64).min(Chunk::MAX_LINES);
            let wanted = len + Mark::SPAN + most * size_of::<Line>();
            let Some(mut permit) = how.share.take_within(wanted, &mut self.place, PATIENCE, stop) else {
                return Ok(if stop.is_on() { Got::Stopped } else { Got::NoRoom });
            };
            let mut bytes = Vec::with_capacity(len + self.before.len());
            let filled = match self.fill(&mut bytes, len) {
                Err(e) if self.is_broken(&e) => return Ok(Got::Broken(e)),
                filled => filled?,
            };
            let Some(mut filled) = filled else { return Ok(Got::Changed) };
            let is_short = filled && self.at.offset + (bytes.len() as u64) < end;
            let may_end_in_nuls = is_short || self.has_nuls || bytes.last() == Some(&0);
            if may_end_in_nuls && end == self.size && matches!(self.bytes, Bytes::Plain(_)) {
                filled = self.leave_nuls(&mut bytes, filled)?;
                end = self.size;
                if bytes.is_empty() {
                    return Ok(Got::Nothing);
                }
            }
            let is_end = filled || self.at.offset + bytes.len() as u64 >= end;
            self.proven = self.proven.max(self.size);
            let rest = if is_end && end == hole_ends { Rest::IsALine } else { rest };
            let rest = if is_end { rest } else { Rest::Waits };
            let mut lines = Vec::with_capacity(most);
            let framed = self.frame(&how.rules, &bytes, rest, &mut lines, most);
            if framed.consumed == 0 {
                self.keep(&bytes);
                self.searched = self.at.offset + bytes.len() as u64;
                drop(permit);
                match self.longer(how, len, end)? {
                    Some(longer) => len = longer,
                    None => {
                        self.keep_waiting(how, &bytes);
                        return Ok(Got::Nothing);
                    }
                }
                continue;
            }
            let start = self.at.offset;
            self.advance(&bytes, framed.consumed, framed.then);
            self.in_hole = framed.in_hole;
            self.keep_waiting(how, &bytes[framed.consumed..]);
            let all = lines.len() < most; // otherwise the same bytes may hold more lines
            self.searched = self.searched.max(if all { start + bytes.len() as u64 } else { self.at.offset });
            if framed.consumed == bytes.len() && lines.is_empty() {
                self.jump_over_hole(&bytes, end)?;
            }
            self.per_line = (framed.consumed / lines.len().max(1)).clamp(1, how.chunk);
            if lines.is_empty() {
                (bytes, lines) = Default::default();
            }
            bytes.truncate(framed.consumed);
            permit.shrink(bytes.capacity() + lines.capacity() * size_of::<Line>());
            self.origin.progress.frame(self.at.offset);
            let chunk = Chunk {
                origin: self.origin.clone(),
                range: start..self.at.offset,
                end: self.at,
                last: framed.last,
                noticed: self.changed,
                lines,
                bytes,
                permit,
            };
            return Ok(Got::Chunk(chunk, Counts { cut_lines: framed.cut, left_out_bytes: framed.left_out }));
        }
    }

    fn frame(
        &self,
        rules: &Rules,
        bytes: &[u8],
        rest: Rest,
        lines: &mut Vec<Line>,
        most: usize,
    ) -> framing::Framed {
        let no_hole_before = Cell::new(0);
        let is_hole = |run: Run| match &self.bytes {
            Bytes::Plain(file) => {
                let at = self.at.offset;
                is_hole(file, at + run.start as u64..at + run.end as u64, &no_hole_before)
            }
            // A `.gz` keeps no holes, so a run as long as the shortest hole counts as one.
            Bytes::Gz(_) => run.len() as u64 >= BLOCK,
        };
        let Open { in_hole, .. } = *self;
        // Nothing about this is saved: the bytes before a saved position are proven, and the last one tells.
        let in_line = !in_hole && self.before.last().is_some_and(|b| *b != b'\n');
        let input = FramingInput { bytes, then: self.at.then, in_line, rest, in_hole, is_hole: &is_hole };
        framing::frame(rules, input, lines, most)
    }

    /// Keeps the complete lines of an incomplete record, as far as memory allows.
    fn keep_waiting(&mut self, how: &Reading, rest: &[u8]) {
        self.waiting = None;
        let end = how.rules.multiline.as_ref().and_then(|_| memrchr(b'\n', rest));
        self.lines_wait = end.is_some();
        if let (Bytes::Plain(_), Some(end)) = (&self.bytes, end)
            && let Some(permit) = how.share.set_aside(end + 1 + size_of::<Line>())
        {
            self.waiting = Some((rest[..=end].to_vec(), permit));
        }
    }

    /// Returns what was read of an incomplete record, because the file has different bytes now.
    pub fn take_waiting(&mut self, rules: &Rules) -> Option<Chunk> {
        let (mut bytes, mut permit) = self.waiting.take()?;
        let mut lines = Vec::with_capacity(1);
        let framed = self.frame(rules, &bytes, Rest::IsALine, &mut lines, Chunk::MAX_LINES);
        bytes.truncate(framed.consumed);
        let start = self.at.offset;
        let before = [&self.before[..], &bytes].concat();
        let offset = start + bytes.len() as u64;
        if lines.is_empty() {
            bytes = Vec::new();
        }
        permit.put_to_use();
        Some(Chunk {
            origin: self.origin.clone(),
            range: start..offset,
            end: Point { offset, mark: Mark::of(&before), then: framed.then },
            last: framed.last,
            noticed: self.changed,
            lines,
            bytes,
            permit,
        })
    }

    /// How much to read: what is available, up to one chunk; for a long incomplete line, only once its end is near.
    fn window(&mut self, how: &Reading, end: u64) -> usize {
        let there = end.saturating_sub(self.at.offset);
        let by_lines = Chunk::MAX_LINES.saturating_mul(self.per_line).max(4096);
        let usual = (how.chunk.min(by_lines)) as u64;
        there.min(usual.max(self.searched - self.at.offset)) as usize
    }

    /// After a read of `len` bytes without a complete record: how much to read to get one. The bytes in between are searched
    /// through a small window, so an unfinished line costs no memory. `None`: the end is not there yet.
    fn longer(&mut self, how: &Reading, len: usize, end: u64) -> io::Result<Option<usize>> {
        let most = (how.rules.max_line + 2) as u64;
        let limit = end.min(self.at.offset + most);
        if self.at.offset + len as u64 >= limit {
            return Ok(None);
        }
        let whole = |to: u64, at: u64| Some((to - at) as usize);
        if how.rules.multiline.is_some() || matches!(self.bytes, Bytes::Gz(_)) {
            return Ok(whole(limit, self.at.offset));
        }
        match self.newline_before(limit)? {
            Some(end) => Ok(whole(end, self.at.offset)),
            None if self.searched >= self.at.offset + most => Ok(whole(limit, self.at.offset)),
            None => Ok(None),
        }
    }

    /// Continues the search for a line end and returns the offset after it. Not inlined: its window would otherwise be part
    /// of every tail's stack, and touched stack pages stay resident.
    #[inline(never)]
    fn newline_before(&mut self, limit: u64) -> io::Result<Option<u64>> {
        let mut window = [0u8; 16 * 1024];
        while self.searched < limit {
            let want = window.len().min((limit - self.searched) as usize);
            let n = self.read_at(self.searched, &mut window[..want])?;
            if n == 0 {
                break;
            }
            let found = memchr(b'\n', &window[..n]);
            self.searched += found.map_or(n, |nl| nl + 1) as u64;
            if found.is_some() {
                return Ok(Some(self.searched));
            }
        }
        Ok(None)
    }

    fn advance(&mut self, bytes: &[u8], consumed: usize, then: Then) {
        self.keep(&bytes[consumed..]);
        let read = &bytes[..consumed];
        if self.at.offset == self.head.len() as u64 {
            let missing = Mark::SPAN - self.head.len();
            self.head.extend_from_slice(&read[..consumed.min(missing)]);
        }
        if consumed >= Mark::SPAN {
            self.before.clear();
            self.before.extend_from_slice(&read[consumed - Mark::SPAN..]);
        } else {
            self.before.extend_from_slice(read);
            let over = self.before.len().saturating_sub(Mark::SPAN);
            self.before.drain(..over);
        }
        self.at = Point { offset: self.at.offset + consumed as u64, mark: Mark::of(&self.before), then };
    }

    /// Skips a hole in a sparse file: `bytes` were all NUL, so ask the file system where data continues (`lseek(2)`,
    /// SEEK_DATA).
    fn jump_over_hole(&mut self, bytes: &[u8], end: u64) -> io::Result<()> {
        let Bytes::Plain(file) = &self.bytes else { return Ok(()) };
        if bytes.len() < Mark::SPAN || bytes.iter().any(|b| *b != 0) {
            return Ok(());
        }
        let data = match seek(file, SeekFrom::Data(self.at.offset)) {
            Ok(at) => at.min(end),
            Err(Errno::NXIO) => end,
            Err(Errno::INVAL) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        if data > self.at.offset {
            self.at.offset = data; // the bytes before it are NULs that were already read
            self.searched = self.searched.max(data);
        }
        Ok(())
    }

    /// Skips ranges that were acknowledged in an earlier run. A range stays queued if the bytes before its end cannot be
    /// read now; with a wrong mark the file would look truncated.
    fn pass_over(&mut self) -> io::Result<()> {
        while let Some((range, to)) = self.beyond.front().filter(|(r, _)| r.start <= self.at.offset) {
            if range.end > self.at.offset {
                (self.in_hole, self.waiting) = (false, None);
                let to = *to;
                self.before = match self.read_before(to.offset) {
                    Err(e) if self.is_broken(&e) => Vec::new(), // the next read reports it
                    before => before?,
                };
                self.at = Point { mark: Mark::of(&self.before), ..to };
                self.searched = to.offset;
            }
            self.beyond.pop_front();
        }
        Ok(())
    }

    /// Appends up to `len` bytes at the position; true at the end of the file. `None`: the bytes before the position differ
    /// from those that were read, so these belong to other content.
    fn fill(&mut self, bytes: &mut Vec<u8>, len: usize) -> io::Result<Option<bool>> {
        let is_one_page = self.is_one_page(len);
        match &mut self.bytes {
            Bytes::Plain(file) if is_one_page => {
                let known = self.before.len();
                let is_end = append(file, self.at.offset - known as u64, bytes, known + len)?;
                let wanted = if self.at.offset == 0 { &self.beginning } else { &self.before };
                let same = bytes.starts_with(&wanted[..wanted.len().min(known + len)]);
                bytes.drain(..known.min(bytes.len()));
                Ok(same.then_some(is_end))
            }
            Bytes::Plain(file) => {
                let is_end = append(file, self.at.offset, bytes, len)?;
                // Checked afterwards: the file may be overwritten while it is read.
                Ok(self.unchanged()?.then_some(is_end))
            }
            Bytes::Gz(gz) => gz.fill(self.at.offset, bytes, len).map(Some),
        }
    }

    /// Whether `len` bytes at the position and those before it are in one page. The kernel copies a page at once, so
    /// one read returns bytes that belong together.
    fn is_one_page(&self, len: usize) -> bool {
        let first = self.at.offset - self.before.len() as u64;
        first / PAGE == (self.at.offset + len as u64 - 1) / PAGE
    }

    fn is_broken(&self, e: &io::Error) -> bool {
        use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
        matches!(self.bytes, Bytes::Gz(_)) && matches!(e.kind(), InvalidData | InvalidInput | UnexpectedEof)
    }

    /// A `.gz` is not decompressed twice, so its unconsumed bytes are kept.
    fn keep(&mut self, rest: &[u8]) {
        if let Bytes::Gz(gz) = &mut self.bytes {
            gz.keep(rest);
            if gz.is_at_end() && self.size == u64::MAX {
                self.size = gz.position();
                self.owed = self.size;
                self.origin.progress.saw(self.size, Instant::now());
            }
        }
    }

    fn read_before(&mut self, offset: u64) -> io::Result<Vec<u8>> {
        match &mut self.bytes {
            Bytes::Plain(file) => before(file, offset),
            Bytes::Gz(gz) if gz.position() <= offset => gz.skip_to(offset),
            Bytes::Gz(_) => Ok(self.before.clone()),
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.bytes {
            Bytes::Plain(file) => read_at(file, offset, buffer),
            Bytes::Gz(_) => Ok(0),
        }
    }
}

/// Bytes from `at` to `size` that are in none of the ranges.
pub fn unread<'a>(size: u64, at: u64, but: impl IntoIterator<Item = &'a (Range, Point)>) -> u64 {
    let read = but.into_iter().map(|(r, _)| r.end.min(size).saturating_sub(r.start.max(at)));
    size.saturating_sub(at).saturating_sub(read.sum())
}

#[cfg(test)]
mod tests;
