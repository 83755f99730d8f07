//! Exactly-once recovery: builds from `flights` and `offsets` what the producer, the tails and the saver start with.
//! The only code that combines the intent log, the saved positions and the log files.
//!
//! An untrusted intent log is not used. The agent then continues from the saved positions with a new producer id, logs
//! that, and counts the lines that may be duplicated.

use super::options::JournalSourceOptions;
use super::supervisor::SourceOptions;
use crate::budget::{Budget, Permit, Share};
use crate::chunk::{Chunk, Origin};
use crate::clock;
use crate::error::Error;
use crate::exactly_once::IntentLog;
use crate::exactly_once::analyze::{Loaded, Rebuild, WantedChunk, load};
use crate::exactly_once::file::{Binding, IntentFile, IntentFileContent};
use crate::exactly_once::intent::{ChunkPiece, IntentRecord};
use crate::fdstore::FdStore;
use crate::journal;
use crate::journal::reread::WantedEntries;
use crate::private_file;
use crate::producer::batch::{BatchGroup, Pick};
use crate::producer::recovered::{RecoveredState, Resumed};
use crate::record::{Identity, StreamId, Topic};
use crate::report::{Board, Progress};
use crate::state::{Footing, StateFolder};
use crate::stop;
use crate::streams::mailbox::Mailbox;
use crate::streams::{Saved, SavedPositions, SavedStream};
use crate::tail::reread::{self, reread};
use crate::watch::pattern::paths_to;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// What continues from an earlier run, or starts empty.
pub struct Recovered {
    pub intents: IntentLog,
    pub once: RecoveredState,
    /// The saved positions for the tails, which must not read lines that are resent without them.
    pub for_tails: Saved,
}

/// Recovers the last run's batches. Updates `saved` and `state`: lines proven to be stored count as acknowledged.
pub fn recover(
    (folder, always): (&Path, bool),
    (sources, journals, budget): (&[SourceOptions], &[JournalSourceOptions], &Arc<Budget>),
    state: &mut StateFolder,
    saved: &mut Saved,
    mailbox: Mailbox,
    kept: &FdStore,
    board: &Arc<Board>,
) -> Result<Recovered, Error> {
    board.once.active.store(true, Relaxed);
    let path = folder.join("flights");
    let trouble = |e| {
        let fix = "make this file writable for the agent's user and free 9 MiB on its disk; or set delivery = \"at-least-once\"";
        let fix = private_file::fix(&e, fix);
        Error::failed(format_args!("open {}", path.display()), e, fix)
    };
    let (store, found) = private_file::open_or_create(&path).and_then(IntentFile::open).map_err(trouble)?;
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default().trim().to_owned();
    let binding = Binding { machine, boot: clock::boot_id(), synced: always };
    let saved_positions = SavedPositions::of(saved);
    let mut loaded = match doubt(&found, &binding, state.found, saved) {
        None => load(records(found.records), &saved_positions),
        Some(why) => {
            log::error!(
                "{}: {why}; continuing from the saved positions with a new producer id: lines sent since they were saved may be stored twice, and are counted in doubled_at_most",
                path.display()
            );
            state.distrust();
            Loaded::default()
        }
    };
    let uncertain_now = || board.totals.uncertain.load(Relaxed);
    let uncertain = uncertain_now();
    for ack in &loaded.settled {
        if saved.acknowledge(ack) {
            board.totals.acked_lines.fetch_add(ack.lines, Relaxed);
        }
    }
    let groups = resume(&mut loaded, (sources, journals, budget), saved, kept, board)?;
    if loaded.id.is_some() {
        // Everything that is neither acknowledged nor in these batch groups is read again.
        let lines = groups.iter().flat_map(|f| &f.group.chunks).map(|c| c.lines.len() as u64).sum::<u64>();
        board.totals.read_lines.store(board.totals.acked_lines.load(Relaxed) + lines, Relaxed);
    }
    let mut for_tails = saved.clone();
    let mut rebuilt: HashMap<StreamId, u64> = HashMap::new();
    for chunk in groups.iter().flat_map(|f| &f.group.chunks) {
        let end = rebuilt.entry(chunk.origin.stream).or_default();
        *end = chunk.range.end.max(*end);
        for_tails.acknowledge(&chunk.ack());
    }
    if !loaded.settled.is_empty()
        || !loaded.keep.is_empty()
        || !groups.is_empty()
        || uncertain < uncertain_now()
    {
        state.take_over(saved, rebuilt);
    }
    if !groups.is_empty() {
        log::info!("{} batch group(s) of the last run are resumed", groups.len());
    }
    let intents = IntentLog::begin(store, binding, &loaded, saved_positions, mailbox, board.clone())
        .map_err(trouble)?;
    // Each run uses a new epoch.
    let id = loaded.id.and_then(|(pid, epoch)| Some((pid, epoch.checked_add(1)?)));
    let once = RecoveredState { id, lasts: Arc::new(loaded.lasts), groups, group_no: loaded.group_no };
    Ok(Recovered { intents, once, for_tails })
}

/// For a run without exactly-once: it sends lines under other numbers, after which the log of an earlier run proves
/// nothing.
pub fn forget(folder: &Path) -> Result<(), Error> {
    let path = folder.join("flights");
    let removed = match fs::remove_file(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        // Synced: after a power loss it must not be there again.
        removed => removed.and_then(|()| fs::File::open(folder)?.sync_all()),
    };
    let fix = "let the agent's user write to this folder";
    removed.map_err(|e| Error::failed(format_args!("remove {}", path.display()), e, fix))
}

/// Why the intent log cannot be trusted, if so.
fn doubt(found: &IntentFileContent, now: &Binding, saved_as: Footing, saved: &Saved) -> Option<String> {
    let Some(then) = &found.binding else {
        let unfinished = saved.streams.iter().any(|s| !s.finished);
        return match found.content {
            true => Some("it is damaged".into()),
            false if unfinished => {
                Some("it is missing although positions are saved, as after a run without exactly-once".into())
            }
            false => None,
        };
    };
    if then.machine != now.machine {
        return Some("it was written on another machine (/etc/machine-id)".into());
    }
    if saved.next_stream == 0 && !found.records.is_empty() {
        return Some("the saved positions that belong to it are gone".into());
    }
    if saved_as.fell_back {
        return Some("the saved positions are older than the records it has dropped".into());
    }
    if then.boot != now.boot && !then.synced && !saved_as.whole {
        return Some("the machine went down before it was on disk (sync = \"always\" covers that)".into());
    }
    None
}

fn records(payloads: Vec<Vec<u8>>) -> Vec<IntentRecord> {
    let understood = |payload: &Vec<u8>| {
        let record = IntentRecord::read(payload);
        if record.is_none() {
            log::error!("flights: a record of {} bytes is not understood", payload.len());
        }
        record
    };
    payloads.iter().filter_map(understood).collect()
}

/// Reads the open batch groups again. Lines that no longer exist are given up and counted.
fn resume(
    loaded: &mut Loaded,
    (sources, journals, budget): (&[SourceOptions], &[JournalSourceOptions], &Arc<Budget>),
    saved: &Saved,
    kept: &FdStore,
    board: &Board,
) -> Result<Vec<Resumed>, Error> {
    let streams: HashMap<StreamId, &SavedStream> = saved.streams.iter().map(|s| (s.stream, s)).collect();
    let mut bytes = read_all(&loaded.groups, &streams, (sources, journals), kept)?;
    let share = |topic: &Topic| {
        let of_files = sources.iter().map(|s| (&s.tail.topic, &s.tail.reading.share));
        let of_journals = journals.iter().map(|j| (&j.options.topic, &j.options.reading.share));
        Some(of_files.chain(of_journals).find(|(t, _)| *t == topic)?.1.clone())
    };
    // The size of a journal's records is known only now that they have been rebuilt.
    let len = |p: &ChunkPiece| bytes.get(&(p.stream, p.range.start)).map_or(0, Vec::len);
    let mut permits = permits(&loaded.groups, len, share, budget);
    let mut gone: HashSet<(StreamId, u64)> = HashSet::new();
    let mut resumed = Vec::new();
    for rebuild in std::mem::take(&mut loaded.groups) {
        let mut chunks = Vec::new();
        let mut places = HashMap::new();
        let mut stored = Vec::new();
        for (i, wanted) in rebuild.chunks.iter().enumerate() {
            let key = (wanted.piece.stream, wanted.piece.range.start);
            let chunk = streams.get(&wanted.piece.stream).and_then(|stream| {
                chunk(&rebuild.topic, wanted, bytes.remove(&key)?, stream, (sources, journals), &mut permits)
            });
            let Some(chunk) = chunk else {
                gone.insert(key);
                give_up(board, wanted.stored.len(), &wanted.piece, &streams);
                continue;
            };
            places.insert(i, chunks.len());
            stored.extend(wanted.stored.iter().map(|l| Pick { chunk: chunks.len() as u16, line: *l }));
            chunks.push(chunk);
        }
        let mut open = rebuild.open;
        open.retain_mut(|o| {
            let there = o.picks.iter_mut().all(|(at, _)| match places.get(at) {
                Some(now) => {
                    *at = *now;
                    true
                }
                None => false,
            });
            if !there {
                board.uncertain(o.count.into());
                log::error!(
                    "{} lines of an open batch cannot be proven to be stored: counted as uncertain",
                    o.count
                );
            }
            there
        });
        if !chunks.is_empty() {
            let Rebuild { topic, topic_id, stamp_ms, group_no, .. } = rebuild;
            let group = BatchGroup::new(topic, topic_id, stamp_ms, chunks);
            resumed.push(Resumed { group_no, group, open, stored });
        }
    }
    loaded.keep.retain(|i| !i.pieces.iter().any(|p| gone.contains(&(p.stream, p.range.start))));
    Ok(resumed)
}

fn give_up(board: &Board, lines: usize, piece: &ChunkPiece, streams: &HashMap<StreamId, &SavedStream>) {
    board.uncertain(lines as u64);
    let path = streams.get(&piece.stream).map(|s| s.path.display().to_string()).unwrap_or_default();
    log::error!(
        "{path}: bytes {}..{} of an unfinished batch group are gone or no longer followed; the rest is read and sent again",
        piece.range.start,
        piece.range.end
    );
}

/// The bytes of all chunks, by stream and start.
fn read_all(
    groups: &[Rebuild],
    streams: &HashMap<StreamId, &SavedStream>,
    (sources, journals): (&[SourceOptions], &[JournalSourceOptions]),
    kept: &FdStore,
) -> Result<HashMap<(StreamId, u64), Vec<u8>>, Error> {
    let mut wanted: HashMap<StreamId, Vec<reread::Wanted>> = HashMap::new();
    for p in groups.iter().flat_map(|f| &f.chunks).map(|c| &c.piece) {
        let of = wanted.entry(p.stream).or_default();
        of.push(reread::Wanted { range: p.range.clone(), crc: p.crc });
    }
    let mut out = entries(groups, streams, journals);
    let patterns = || sources.iter().flat_map(|s| &s.watched.patterns);
    let followed = |file: &Identity| paths_to(patterns(), (file.dev, file.ino));
    for (stream, wanted) in wanted {
        let of_files = |s: &&&SavedStream| s.at.mark.seqnum().is_none();
        let Some(s) = streams.get(&stream).filter(of_files) else { continue };
        let kept = kept.of(stream);
        let found = reread(&s.path, &s.identity, kept.as_ref(), &followed, &wanted).map_err(|e| {
            let fix = "let the agent's user read its folder; batches that may have been sent are rebuilt from there";
            Error::failed(format_args!("read {}", s.path.display()), e, fix)
        })?;
        for (w, bytes) in wanted.iter().zip(found) {
            // A partly acknowledged chunk has been framed differently since.
            if let Some(bytes) = bytes.filter(|_| w.range.start >= s.at.offset) {
                out.insert((stream, w.range.start), bytes);
            }
        }
    }
    Ok(out)
}

/// Rebuilds the records of all journal chunks. Entries that cannot be read count as gone.
fn entries(
    groups: &[Rebuild],
    streams: &HashMap<StreamId, &SavedStream>,
    journals: &[JournalSourceOptions],
) -> HashMap<(StreamId, u64), Vec<u8>> {
    let mut out = HashMap::new();
    for p in groups.iter().flat_map(|f| &f.chunks).map(|c| &c.piece) {
        let Some(s) = streams.get(&p.stream).filter(|s| s.at.mark.seqnum().is_some()) else { continue };
        let journal = journals.iter().find(|j| j.options.follows(&s.path));
        let (Some(journal), Some(folder)) = (journal, s.path.parent()) else { continue };
        let wanted = WantedEntries { range: p.range.clone(), end: p.end, crc: p.crc };
        match journal::reread::reread(folder, &journal.options.reading.rules, &wanted) {
            Ok(Some(bytes)) if p.range.start >= s.at.offset => {
                out.insert((p.stream, p.range.start), bytes);
            }
            Ok(_) => {}
            Err(e) => log::error!("read {}: {e}", folder.display()),
        }
    }
    out
}

/// One permit per topic, taken before any tail runs. It is the first of its share and is therefore granted
/// immediately, even if `memory` was reduced. A topic that is no longer in the config gets a share of its own, as
/// after a reload, which is divided among the others as its lines are acknowledged. A second permit on another
/// topic's share could wait forever, because the first is never returned.
fn permits(
    groups: &[Rebuild],
    len: impl Fn(&ChunkPiece) -> usize,
    share_of: impl Fn(&Topic) -> Option<Share>,
    budget: &Arc<Budget>,
) -> HashMap<Topic, Permit> {
    let mut sizes: HashMap<&Topic, usize> = HashMap::new();
    for f in groups {
        let of = |c: &WantedChunk| len(&c.piece) + c.piece.lines as usize * 8;
        *sizes.entry(&f.topic).or_default() += f.chunks.iter().map(of).sum::<usize>();
    }
    let stop = stop::pair().1; // its handle is dropped, so no wait here can block
    let mut former = Vec::new();
    let permit = |(topic, size): (&Topic, usize)| {
        let share = share_of(topic).unwrap_or_else(|| {
            former.push(budget.share());
            former[former.len() - 1].clone()
        });
        Some((topic.clone(), share.take(size, &stop)?))
    };
    let permits = sizes.into_iter().filter_map(permit).collect();
    former.iter().for_each(|share| budget.retire(share));
    permits
}

fn chunk(
    topic: &Topic,
    wanted: &WantedChunk,
    bytes: Vec<u8>,
    stream: &SavedStream,
    (sources, journals): (&[SourceOptions], &[JournalSourceOptions]),
    permits: &mut HashMap<Topic, Permit>,
) -> Option<Chunk> {
    let piece = &wanted.piece;
    let lines = piece.lines_in(&bytes)?;
    let shape = match stream.at.mark.seqnum() {
        None => &sources.iter().find(|s| s.follows(&stream.path))?.tail.shape,
        Some(_) => &journals.iter().find(|j| j.options.follows(&stream.path))?.options.shape,
    };
    let end = piece.range.end;
    let origin = Origin {
        stream: piece.stream,
        topic: topic.clone(),
        path: stream.path.to_path_buf(),
        shape: shape.clone(),
        progress: Arc::new(Progress::new(end, end, None)),
    };
    let permit = permits.get_mut(topic)?.split(bytes.len() + lines.len() * 8);
    Some(Chunk {
        noticed: std::time::Instant::now(),
        origin: Arc::new(origin),
        range: piece.range.clone(),
        end: piece.end,
        last: piece.last,
        lines,
        bytes,
        permit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BatchGroupNo, Break, Point};

    /// Fails when the start waits for memory that is never returned because the permits of two topics come from one
    /// share; or when a topic that was removed keeps a part of the budget.
    #[test]
    fn each_topic_has_its_permit_at_once() {
        let rebuild = |topic: &str, len| {
            let range = 0..len;
            let (end, last) = (Point::default(), Break::Newline);
            let piece = ChunkPiece {
                stream: StreamId(1),
                range,
                end,
                last,
                crc: 0,
                lines: 0,
                table: None,
                picks: None,
            };
            let chunks = vec![WantedChunk { piece, stored: Vec::new() }];
            let topic = Topic::from(topic);
            Rebuild {
                group_no: BatchGroupNo(1),
                topic,
                topic_id: [0; 16],
                stamp_ms: 0,
                chunks,
                open: Vec::new(),
            }
        };
        let budget = Arc::new(Budget::new(1000));
        let (named, other) = (budget.share(), budget.share());
        let groups: Vec<Rebuild> =
            ["gone", "named", "gone too", "named", "gone"].map(|t| rebuild(t, 400)).into();
        let share = |topic: &Topic| (topic.as_ref() == "named").then(|| named.clone());
        let len = |p: &ChunkPiece| (p.range.end - p.range.start) as usize;
        let mut permits = permits(&groups, len, share, &budget);
        let sizes = ["gone", "named", "gone too"].map(|t| permits[&Topic::from(t)].bytes());
        assert_eq!((sizes, budget.used()), ([800, 800, 400], 2000));
        permits.retain(|topic, _| topic.as_ref() == "named");
        let stop = stop::pair().1;
        let half = (other.take(250, &stop), other.take(250, &stop));
        assert!(half.0.is_some() && half.1.is_some());
    }

    /// Fails when sequence numbers are used that may have been used elsewhere since, or discarded without need.
    #[test]
    fn reasons_to_distrust_an_intent_log() {
        let binding = |machine: &str, boot: &str, synced| Binding {
            machine: machine.into(),
            boot: boot.into(),
            synced,
        };
        let found = |binding| IntentFileContent { binding, records: Vec::new(), content: true };
        let whole = Footing { whole: true, fell_back: false };
        let torn = Footing { whole: false, fell_back: false };
        let older = Footing { whole: true, fell_back: true };
        let now = binding("m", "b", false);
        for (then, footing, word) in [
            (Some(binding("m", "b", false)), whole, None),
            (Some(binding("m", "b", false)), torn, None),
            (Some(binding("m", "a", false)), whole, None),
            (Some(binding("m", "a", true)), torn, None),
            (Some(binding("m", "a", false)), torn, Some("went down")),
            (Some(binding("n", "b", true)), whole, Some("another machine")),
            (Some(binding("m", "a", true)), older, Some("older")),
            (Some(binding("m", "b", false)), older, Some("older")),
            (None, whole, Some("damaged")),
        ] {
            let why = doubt(&found(then.clone()), &now, footing, &Saved::default());
            match word {
                None => assert_eq!(why, None, "{then:?}"),
                Some(word) => assert!(why.as_ref().is_some_and(|w| w.contains(word)), "{then:?}: {why:?}"),
            }
        }
        assert_eq!(
            doubt(&IntentFileContent::default(), &now, torn, &Saved::default()),
            None,
            "the first start of all"
        );
    }
}
