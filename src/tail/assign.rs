//! Decides which stream each file's bytes belong to. Pure: contents are read through [`Peek`], so tests use tables.
//!
//! Identity and birth time come first: a file that still has the bytes of the stream read from it is that stream's own file.
//! Contents come second: any other file either continues a stream whose own file is gone or overwritten, or is a copy (plain
//! or compressed) of bytes that are read elsewhere. Anything else is new. A stream continues in at most one file.

use super::siblings::Packed;
use crate::record::{Identity, Mark, Point, StreamId};
use std::cmp::Reverse;
use std::io;

/// What is known about a stream.
#[derive(Clone, Debug)]
pub struct KnownStream {
    pub id: StreamId,
    pub identity: Identity,
    /// Read up to here; the mark covers the bytes before it.
    pub read: Point,
    /// Size in bytes, as last seen.
    pub size: u64,
    /// In ns since 1970, as last seen; 0: unknown.
    pub modified: i64,
    pub finished: bool,
    /// A tail has its file open and reads it.
    pub is_read: bool,
    /// Its name and the names of the files in question belong to one log.
    pub kin: bool,
    /// The first bytes, as far as they are known.
    pub head: Vec<u8>,
    /// The listed file that is at its path now, by index.
    pub at_path: Option<usize>,
}

/// A file as it was listed.
#[derive(Clone, Debug)]
pub struct FolderFile {
    pub identity: Identity,
    pub packed: Packed,
    /// In ns since 1970.
    pub modified: i64,
    /// Its contents no longer match its stream.
    pub rewritten: bool,
    /// The uncompressed original, judging by the name, is listed too.
    pub beside_original: bool,
    /// It may be the file of a stream of which nothing was read yet.
    pub may_be_untouched: bool,
    /// It existed before anything was read under this name: it is searched for missing streams only.
    pub old: bool,
}

/// Length of a file's content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Length {
    Bytes(u64),
    /// A compressed file that is still being written.
    Incomplete,
    /// A compressed file that is damaged or in an unsupported format.
    Unknown,
}

/// Reads contents: files by their index in the list of files, a stream's own file by the index of the stream.
pub trait Peek {
    fn length(&mut self, file: usize) -> io::Result<Length>;
    /// Mark of the decompressed bytes before `offset`. `None`: the file is shorter.
    fn mark(&mut self, file: usize, offset: u64) -> io::Result<Option<Mark>>;
    /// The first ≤ 256 bytes.
    fn head(&mut self, file: usize) -> io::Result<Vec<u8>>;
    /// A checksum of all decompressed bytes. `None`: unreadable.
    fn sum(&mut self, file: usize) -> io::Result<Option<u32>>;
    /// Whether the file, whose identity is the stream's, also has the stream's bytes.
    fn is_own(&mut self, file: usize, stream: usize) -> io::Result<bool>;
    /// Whether the stream's own file is readable and has the stream's bytes.
    fn is_there(&mut self, stream: usize) -> io::Result<bool>;
    /// As [`Peek::is_there`], without the cached answer.
    fn is_still_there(&mut self, stream: usize) -> io::Result<bool>;
    /// As [`Peek::mark`], of the stream's own file.
    fn own_mark(&mut self, stream: usize, offset: u64) -> io::Result<Option<Mark>>;
}

/// What a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileVerdict {
    /// The stream's own file.
    Own(StreamId),
    /// The stream's own file is gone, or has other bytes now: the stream continues here.
    Continues(StreamId),
    /// Every byte was read as part of this stream.
    Read(StreamId),
    /// Belongs to no known stream and is not a copy of one.
    New,
    /// Never read.
    Old,
    Wait(Wait),
}

/// Why no decision about a file is possible yet. Retried whenever something changes in its folder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// It is empty, so it may become a copy of any file.
    Empty,
    /// All its bytes are also in this stream's own file. None of them is read while that file exists.
    Copy(StreamId),
    /// It may be a copy of what this stream's file holds since its truncation, or held before. The stream's tail has to look
    /// first.
    Unseen(StreamId),
    /// Compression is in progress.
    Incomplete,
    /// The uncompressed original, judging by the name, still exists: gzip(1) removes it last.
    Original,
}

impl FileVerdict {
    /// The stream it depends on.
    pub fn stream(self) -> Option<StreamId> {
        match self {
            FileVerdict::Own(s)
            | FileVerdict::Continues(s)
            | FileVerdict::Read(s)
            | FileVerdict::Wait(Wait::Copy(s) | Wait::Unseen(s)) => Some(s),
            FileVerdict::New
            | FileVerdict::Old
            | FileVerdict::Wait(Wait::Empty | Wait::Incomplete | Wait::Original) => None,
        }
    }
}

/// How the bytes of a file relate to those of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Relation {
    None,
    /// It has the stream's bytes, possibly followed by more, and the stream's own file no longer has them.
    Continues,
    /// All its bytes are also in the stream's own file.
    Copy,
    Read,
}

/// For a file that is open and about to be read as a new stream.
pub const NOT_BEGUN: StreamId = StreamId(0);

/// Shorter prefixes than this may be equal in two unrelated logs.
const TELLING: u64 = Mark::SPAN as u64;

/// Decides about every file. To skip an unreadable file, give it [`Length::Unknown`].
pub fn assign(
    streams: &[KnownStream],
    files: &[FolderFile],
    peek: &mut dyn Peek,
) -> io::Result<Vec<FileVerdict>> {
    let mut verdicts: Vec<Option<FileVerdict>> = Vec::with_capacity(files.len());
    for (i, file) in files.iter().enumerate() {
        verdicts.push(own_stream(streams, file, i, peek)?.map(|j| FileVerdict::Own(streams[j].id)));
    }
    let is_missing = any_missing(streams, peek)?;
    let mut lengths = Vec::with_capacity(files.len());
    for (i, file) in files.iter().enumerate() {
        if file.old && !is_missing && verdicts[i].is_none() {
            verdicts[i] = Some(FileVerdict::Old);
        }
        lengths.push(if verdicts[i].is_some() { Length::Unknown } else { peek.length(i)? });
    }
    for i in 0..files.len() {
        if verdicts[i].is_none() {
            verdicts[i] = match lengths[i] {
                Length::Incomplete => Some(FileVerdict::Wait(Wait::Incomplete)),
                Length::Bytes(0) if streams.iter().any(|s| !s.finished) => {
                    Some(FileVerdict::Wait(Wait::Empty))
                }
                Length::Bytes(0) => Some(FileVerdict::New),
                _ => None,
            };
        }
    }
    continue_streams(streams, files, &lengths, &mut verdicts, peek)?;
    for i in 0..files.len() {
        if verdicts[i].is_none() {
            verdicts[i] = Some(match files[i].old {
                true => FileVerdict::Old,
                false => find_stream(streams, &files[i], i, lengths[i], peek)?,
            });
        }
    }
    let mut verdicts: Vec<FileVerdict> =
        verdicts.into_iter().map(|v| v.unwrap_or(FileVerdict::New)).collect();
    let duplicates = duplicates(files, &lengths, &verdicts, peek)?;
    for (i, _) in duplicates.iter().enumerate().filter(|(_, duplicate)| duplicate.is_some()) {
        verdicts[i] = FileVerdict::Wait(Wait::Original);
    }
    continue_untouched(streams, files, &lengths, &mut verdicts, peek)?;
    for (i, duplicate) in duplicates.iter().enumerate() {
        if let Some(FileVerdict::Continues(stream)) = duplicate.map(|duplicate| verdicts[duplicate]) {
            verdicts[i] = FileVerdict::Wait(Wait::Copy(stream));
        }
    }
    Ok(verdicts)
}

/// The indices of all files, compressed ones last.
fn plain_first(files: &[FolderFile]) -> impl Iterator<Item = usize> {
    let of = |plain| (0..files.len()).filter(move |i| (files[*i].packed == Packed::Plain) == plain);
    of(true).chain(of(false))
}

/// Of new files with equal content (a copy that is being compressed), picks one to read: a plain file before a compressed
/// one, else the first. The others are decided once that one belongs to a stream.
fn duplicates(
    files: &[FolderFile],
    lengths: &[Length],
    verdicts: &[FileVerdict],
    peek: &mut dyn Peek,
) -> io::Result<Vec<Option<usize>>> {
    let mut ends: Vec<(u64, Mark, usize)> = Vec::new();
    let mut duplicates = vec![None; files.len()];
    for i in plain_first(files) {
        let Length::Bytes(length) = lengths[i] else { continue };
        let is_new = matches!(verdicts[i], FileVerdict::New | FileVerdict::Wait(Wait::Unseen(_)));
        if length < TELLING || !is_new {
            continue;
        }
        let Some(mark) = peek.mark(i, length)? else { continue };
        // Files of lines without times may have equal ends and still differ.
        for (.., other) in ends.iter().filter(|(l, m, _)| (*l, *m) == (length, mark)) {
            let sum = peek.sum(i)?;
            if sum.is_some() && sum == peek.sum(*other)? {
                duplicates[i] = Some(*other);
                break;
            }
        }
        ends.push((length, mark, i));
    }
    Ok(duplicates)
}

/// Whether the file of any stream of this log is gone or has different bytes.
fn any_missing(streams: &[KnownStream], peek: &mut dyn Peek) -> io::Result<bool> {
    for (j, s) in streams.iter().enumerate() {
        if s.kin && !s.finished && !peek.is_there(j)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether both identities are the same file. The device number may change after a reboot or remount, so inode and birth
/// time are enough. Without a birth time the contents must match as well.
pub fn is_same_file(a: &Identity, b: &Identity) -> bool {
    (a.ino, a.born) == (b.ino, b.born) && a.ino != 0 && (a.born.is_some() || a.dev == b.dev)
}

/// The stream that was read from this file, if its bytes are still there. Prefers the stream being read now, then unfinished
/// ones, then the newest.
fn own_stream(
    streams: &[KnownStream],
    file: &FolderFile,
    i: usize,
    peek: &mut dyn Peek,
) -> io::Result<Option<usize>> {
    if file.rewritten {
        return Ok(None);
    }
    let same = (0..streams.len()).filter(|j| is_same_file(&streams[*j].identity, &file.identity));
    let Some(j) = same.max_by_key(|j| (streams[*j].is_read, !streams[*j].finished, streams[*j].id)) else {
        return Ok(None);
    };
    Ok(peek.is_own(i, j)?.then_some(j))
}

/// Each stream whose own file is gone or has different bytes continues in one of the files that have its bytes: a plain
/// file before a compressed one, otherwise the longest. The others are copies of that file.
fn continue_streams(
    streams: &[KnownStream],
    files: &[FolderFile],
    lengths: &[Length],
    verdicts: &mut [Option<FileVerdict>],
    peek: &mut dyn Peek,
) -> io::Result<()> {
    // Unfinished streams, ordered by how much was read: of two streams with the same beginning, the longer one is better
    // evidence.
    let mut unfinished: Vec<usize> = (0..streams.len()).filter(|j| !streams[*j].finished).collect();
    unfinished.sort_unstable_by_key(|j| Reverse((streams[*j].read.offset, streams[*j].id)));
    for j in unfinished {
        let mut found: Vec<usize> = Vec::new();
        for i in (0..files.len()).filter(|i| verdicts[*i].is_none()) {
            if relation(&streams[j], j, &files[i], i, lengths[i], peek)? == Relation::Continues {
                found.push(i);
            }
        }
        let rank = |i: &usize| {
            let length = if let Length::Bytes(n) = lengths[*i] { n } else { 0 };
            (files[*i].packed == Packed::Plain, length, *i)
        };
        let best = found.iter().copied().max_by_key(rank);
        for i in found {
            let id = streams[j].id;
            verdicts[i] = Some(match best == Some(i) {
                true => FileVerdict::Continues(id),
                false => FileVerdict::Wait(Wait::Copy(id)),
            });
        }
    }
    Ok(())
}

/// Finds the stream of a file in which no stream continues.
fn find_stream(
    streams: &[KnownStream],
    file: &FolderFile,
    i: usize,
    length: Length,
    peek: &mut dyn Peek,
) -> io::Result<FileVerdict> {
    let (mut copy, mut continues, mut read): (Option<usize>, Option<usize>, Option<usize>) =
        (None, None, None);
    for (j, s) in streams.iter().enumerate() {
        match relation(s, j, file, i, length, peek)? {
            Relation::None => {}
            Relation::Read if s.finished => {
                let waits = file.beside_original && peek.is_there(j)?;
                return Ok(if waits { FileVerdict::Wait(Wait::Copy(s.id)) } else { FileVerdict::Read(s.id) });
            }
            Relation::Read => read = Some(j),
            Relation::Copy => copy = Some(j),
            Relation::Continues if s.finished => {
                let before = continues.map(|c| streams[c].read.offset);
                continues = if before < Some(s.read.offset) { Some(j) } else { continues };
            }
            Relation::Continues => copy = Some(j), // it continues in another file
        }
    }
    let id = |j: usize| streams[j].id;
    Ok(match (copy, read, continues) {
        (Some(j), _, _) => FileVerdict::Wait(Wait::Copy(id(j))),
        (_, Some(j), _) => FileVerdict::Read(id(j)),
        (_, _, Some(j)) => FileVerdict::Continues(id(j)),
        _ if file.beside_original => FileVerdict::Wait(Wait::Original),
        _ => unseen(streams, length, peek)?
            .map_or(FileVerdict::New, |j| FileVerdict::Wait(Wait::Unseen(id(j)))),
    })
}

/// A stream whose file became shorter than this one before anything was read, or was overwritten before its tail saw
/// it: this file may be a copy of the old contents.
fn unseen(streams: &[KnownStream], length: Length, peek: &mut dyn Peek) -> io::Result<Option<usize>> {
    let Length::Bytes(length) = length else { return Ok(None) };
    for (j, s) in streams.iter().enumerate() {
        if !s.kin || !s.is_read || s.finished || s.id == NOT_BEGUN {
            continue;
        }
        let is_unseen = match s.read.offset {
            0 => peek.own_mark(j, length)?.is_none(),
            _ => !peek.is_there(j)?,
        };
        if is_unseen {
            return Ok(Some(j));
        }
    }
    Ok(None)
}

fn relation(
    s: &KnownStream,
    j: usize,
    file: &FolderFile,
    i: usize,
    length: Length,
    peek: &mut dyn Peek,
) -> io::Result<Relation> {
    let Length::Bytes(length) = length else { return Ok(Relation::None) };
    let Point { offset, mark, .. } = s.read;
    let is_telling = s.kin || length >= TELLING && (!s.finished || length == offset);
    if length == 0 || !is_telling || offset > 0 && mark.len == 0 || !begins_alike(s, i, peek)? {
        return Ok(Relation::None);
    }
    if offset > 0 && length >= offset && peek.mark(i, offset)? != Some(mark) {
        return Ok(Relation::None);
    }
    if s.finished && offset > 0 && length == offset {
        return Ok(Relation::Read);
    }
    if peek.is_there(j)? {
        let end = peek.mark(i, length)?;
        if end.is_some() && peek.own_mark(j, length)? == end {
            let is_read = s.finished && length <= offset;
            return Ok(if is_read { Relation::Read } else { Relation::Copy });
        }
        // It may have been truncated just now.
        if peek.is_still_there(j)? {
            return Ok(Relation::None);
        }
    }
    if offset == 0 {
        let is_packed = file.packed == Packed::Gzip && !s.finished;
        let is_it =
            is_packed && s.modified != 0 && second(file.modified) == second(s.modified) && length == s.size;
        return Ok(if is_it { Relation::Continues } else { Relation::None });
    }
    if length >= offset {
        return Ok(Relation::Continues);
    }
    // A copy made before the last lines of its original were written. As with marks, 256 equal bytes at the same offset
    // count as equal content. A shorter copy is read again rather than mistaken for one.
    let is_it = !s.finished && s.head.len() == Mark::SPAN && length >= TELLING;
    Ok(if is_it { Relation::Read } else { Relation::None })
}

/// False if no head is known.
fn begins_alike(s: &KnownStream, i: usize, peek: &mut dyn Peek) -> io::Result<bool> {
    if s.head.is_empty() {
        return Ok(true);
    }
    let head = peek.head(i)?;
    let both = head.len().min(s.head.len());
    Ok(head[..both] == s.head[..both])
}

/// A stream of which nothing was read has no bytes to recognize it by. If its file is missing, it most likely continues in a
/// new file of the same length, else in a longer one, but never in the file that replaced it at its path. Of streams with
/// the same length, the oldest continues in the oldest file.
///
/// This may be wrong, which does no harm: with exactly-once nothing of such a stream was delivered, and each file is read
/// once, whichever stream it continues. A file whose bytes a tail already has open must not be among them, whatever its name
/// is now ([`super::find::Search::held`]). A stream for which no file is left is reported as lost.
fn continue_untouched(
    streams: &[KnownStream],
    files: &[FolderFile],
    lengths: &[Length],
    verdicts: &mut [FileVerdict],
    peek: &mut dyn Peek,
) -> io::Result<()> {
    let mut untouched = Vec::new();
    for (j, s) in streams.iter().enumerate() {
        if !s.finished && s.read.offset == 0 && s.size > 0 && s.kin && !peek.is_there(j)? {
            untouched.push(s);
        }
    }
    // Exact length first, then at least that length. A file of the exact length may have any modification time.
    for exactly in [true, false] {
        for i in plain_first(files) {
            let Length::Bytes(length) = lengths[i] else { continue };
            let may_be = match verdicts[i] {
                FileVerdict::New | FileVerdict::Wait(Wait::Unseen(_)) => files[i].may_be_untouched,
                FileVerdict::Old => exactly,
                _ => false,
            };
            let fits = |(_, s): &(usize, &&KnownStream)| {
                (s.size == length || s.size < length && !exactly) && s.at_path != Some(i)
            };
            let likely = untouched.iter().enumerate().filter(fits).max_by_key(|(n, s)| (s.size, Reverse(*n)));
            if let Some((n, s)) = likely.map(|(n, s)| (n, *s)).filter(|_| may_be) {
                verdicts[i] = FileVerdict::Continues(s.id);
                untouched.remove(n);
            }
        }
    }
    Ok(())
}

/// The second of a time given in nanoseconds.
pub fn second(ns: i64) -> i64 {
    ns.div_euclid(1_000_000_000)
}

#[cfg(test)]
mod tests;
