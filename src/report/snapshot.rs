//! The board at one moment, as a value. `status --json` serializes it; the text, the metrics and the log print it.

use super::from_json::json_struct;
use super::hung::HungWrite;
use super::{Board, BrokerState, FileState, Progress, StateFolderTrouble};
use crate::lock::lock;
use crate::record::{Identity, StreamId};
use crate::traffic::DataBudgetState;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

json_struct! {
    /// The complete status. Sizes and offsets are in bytes, times in seconds.
    pub struct Snapshot {
        /// Of the program.
        pub version: String,
        /// Reported by the running agent. Otherwise read from the state folder, and as old as that.
        pub live: bool,
        pub pid: Option<u32>,
        pub uptime: Option<f64>,
        /// The driver, and why it was chosen.
        pub driver: String,
        pub files: Vec<File>,
        pub brokers: Vec<PeerStatus>,
        /// Topics that have had problems.
        pub topics: Vec<PeerStatus>,
        pub network: Vec<NetworkStatus>,
        pub payload: Vec<PayloadStatus>,
        /// With `budget` in `[kafka]`.
        pub budget: Option<DataBudgetStatus>,
        pub totals: TotalsStatus,
        pub memory: Memory,
        pub state: StateStatus,
        /// With `delivery = "exactly-once"`.
        pub exactly_once: Option<ExactlyOnce>,
    }
}

json_struct! {
    /// In batches, over all restarts except `open_intents`.
    pub struct ExactlyOnce {
        /// `None`: not assigned yet.
        pub producer_id: Option<i64>,
        /// The epoch of this run; a partition may have a higher one.
        pub epoch: Option<i16>,
        /// Written, but not yet covered by the saved positions.
        pub open_intents: u64,
        /// Batches of an earlier run, sent again with their original numbers.
        pub resent: u64,
        /// How many of those the broker already had.
        pub found_stored: u64,
        /// The brokers do not list our producer right after a stored batch.
        pub unlisted: bool,
    }
}

json_struct! {
    /// One followed path.
    pub struct File {
        /// Bytes that are not UTF-8 are written as `\xHH`.
        pub path: String,
        pub topic: String,
        /// "following", "unreadable" …
        pub state: String,
        /// Of the file at the path. Rotated files are included in `streams` and in the sums below.
        pub identity: Option<FileId>,
        pub size: u64,
        pub framed: u64,
        pub acknowledged: u64,
        pub saved: u64,
        /// Unacknowledged bytes that exist, including those of rotated files.
        pub lag_bytes: u64,
        /// Only of a journal: entries not read yet, including those that the filters will drop, and records not acknowledged.
        pub unsent_entries: Option<u64>,
        /// Age of the oldest complete unacknowledged line, since this run first saw it.
        pub oldest_unsent: Option<f64>,
        pub last_error: Option<String>,
        pub stuck_because: Option<String>,
        /// Rotated files that are still open, oldest first, and the live one.
        pub streams: Vec<StreamStatus>,
    }
}

json_struct! {
    /// One contiguous byte stream.
    pub struct StreamStatus {
        pub stream: u64,
        pub identity: Option<FileId>,
        pub size: u64,
        pub framed: u64,
        pub acknowledged: u64,
        pub saved: u64,
    }
}

json_struct! {
    /// Identifies the file, whatever its name.
    pub struct FileId {
        pub device: u64,
        pub inode: u64,
        /// Seconds and nanoseconds, where the file system keeps a birth time.
        pub born: Option<(i64, u32)>,
    }
}

json_struct! {
    /// A broker, the bootstrap list, or a topic.
    pub struct PeerStatus {
        pub name: String,
        pub state: String,
        /// Time spent in this state.
        pub since: f64,
        /// Failed attempts since it last worked.
        pub attempts: u64,
        pub last_error: Option<String>,
    }
}

json_struct! {
    /// Bytes at the sockets to one broker since the start, including TLS, handshakes and metadata, but not TCP and IP
    /// headers.
    pub struct NetworkStatus {
        /// `host:port`, as configured or as the cluster names it.
        pub broker: String,
        pub bytes_sent: u64,
        pub bytes_received: u64,
    }
}

json_struct! {
    /// Bytes of a topic's acknowledged lines since the start, before compression.
    pub struct PayloadStatus {
        pub topic: String,
        pub bytes: u64,
    }
}

json_struct! {
    /// The network budget.
    pub struct DataBudgetStatus {
        pub bytes: u64,
        pub period: f64,
        /// "200 MiB per day".
        pub text: String,
        /// Bytes that may be sent at once; negative for a debt.
        pub left: i64,
        /// Bytes gained per second.
        pub per_second: f64,
        /// Bytes spent per second lately.
        pub pace: f64,
        /// Lines wait for it.
        pub used_up: bool,
        /// Seconds until it is used up at this pace.
        pub used_up_in: Option<f64>,
        /// Seconds until the next lines are sent, if they wait.
        pub resumes_in: Option<f64>,
    }
}

impl DataBudgetStatus {
    fn of(s: &DataBudgetState, now: Instant) -> DataBudgetStatus {
        let left = s.left_at(now);
        DataBudgetStatus {
            bytes: s.bytes,
            period: s.period.as_secs_f64(),
            text: s.text.clone(),
            left: left as i64,
            per_second: s.per_second,
            pace: s.pace,
            used_up: s.is_used_up,
            used_up_in: s.used_up_in().filter(|_| !s.is_used_up),
            resumes_in: s.is_used_up.then(|| (1.0 - left).max(0.0) / s.per_second.max(1e-9)),
        }
    }
}

json_struct! {
    /// Over all restarts. In lines, unless the name says bytes.
    pub struct TotalsStatus {
        pub read: u64,
        pub acked: u64,
        pub dead_lettered: u64,
        /// At most this many lines plus `uncertain` are stored twice (a line stored three times counts as two).
        pub doubled_at_most: u64,
        pub uncertain: u64,
        pub cut: u64,
        pub lost_bytes: u64,
        /// Journal entries.
        pub lost_entries: u64,
        pub damaged_entries: u64,
        /// Batches sent again.
        pub retries: u64,
    }
}

json_struct! {
    /// The budget of bytes between disk and acknowledgement.
    pub struct Memory {
        pub used: u64,
        pub limit: u64,
    }
}

json_struct! {
    pub struct StateStatus {
        /// `None`: nothing is saved.
        pub path: Option<String>,
        /// Why the folder cannot be written, and whether that blocks delivery.
        pub degraded: Option<String>,
        /// Bytes written to the folder, over all restarts.
        pub bytes_written: u64,
    }
}

/// A line that waits longer than this without a reason in its own file counts as stuck.
const STUCK_AFTER: Duration = Duration::from_secs(2);

impl Snapshot {
    pub fn take(board: &Board, now: Instant) -> Snapshot {
        let peers = |states: &BTreeMap<String, BrokerState>| -> Vec<PeerStatus> {
            states.iter().map(|(name, state)| PeerStatus::of(name, state, now)).collect()
        };
        let (brokers, mut topics) = (peers(&board.brokers()), peers(&board.topics()));
        let folder = board.state().clone();
        let hung = board.hung_write(now);
        if let Some(blocked) = &folder.blocked {
            topics.retain(|topic| !blocked.topics.contains(&topic.name));
            topics.extend(blocked.topics.iter().map(|topic| PeerStatus {
                name: topic.clone(),
                state: "blocked by the state folder".into(),
                since: now.saturating_duration_since(blocked.since).as_secs_f64(),
                attempts: blocked.attempts,
                last_error: Some(blocked.why.clone()),
            }));
            topics.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        }
        let budget = board.budget.get();
        let mut snapshot = Snapshot {
            version: env!("CARGO_PKG_VERSION").into(),
            live: true,
            pid: Some(std::process::id()),
            uptime: Some(now.duration_since(board.started).as_secs_f64()),
            driver: board.driver().clone(),
            files: Vec::new(),
            brokers,
            topics,
            network: board
                .traffic
                .brokers()
                .into_iter()
                .map(|(broker, bytes_sent, bytes_received)| NetworkStatus {
                    broker,
                    bytes_sent,
                    bytes_received,
                })
                .collect(),
            payload: board
                .traffic
                .topics()
                .into_iter()
                .map(|(topic, bytes)| PayloadStatus { topic, bytes })
                .collect(),
            budget: board.traffic.budget().map(|state| DataBudgetStatus::of(&state, now)),
            totals: TotalsStatus::of(board),
            memory: Memory {
                used: budget.map_or(0, |b| b.used() as u64),
                limit: budget.map_or(0, |b| b.total() as u64),
            },
            state: StateStatus {
                path: folder.path.as_deref().map(shown),
                degraded: degraded(&folder).or_else(|| hung.map(|hung| hung.why(now))),
                bytes_written: read(&board.totals.state_bytes)
                    + board.sent_marks.get().map_or(0, |m| m.written())
                    + read(&board.once.bytes),
            },
            exactly_once: ExactlyOnce::of(board),
        };
        snapshot.files = board
            .files()
            .iter()
            .filter(|(_, file)| !file.is_over())
            .map(|(path, file)| File::of(path, file, (&snapshot, &folder, hung), now))
            .collect();
        snapshot
    }

    /// Unacknowledged bytes of all files.
    pub fn lag_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.lag_bytes).sum()
    }
}

impl File {
    fn of(
        path: &Path,
        file: &FileState,
        all: (&Snapshot, &StateFolderTrouble, Option<HungWrite>),
        now: Instant,
    ) -> File {
        let progress = || file.left.iter().filter(|g| !g.is_done()).chain(&file.progress);
        let streams: Vec<StreamStatus> = progress().map(|g| StreamStatus::of(g)).collect();
        let since = progress().filter_map(|g| g.waits_since()).min();
        let waits = since.map(|since| now.saturating_duration_since(since));
        File {
            unsent_entries: file
                .is_journal
                .then(|| progress().map(|g| read(&g.unread_entries) + read(&g.records)).sum()),
            oldest_unsent: waits.map(|w| w.as_secs_f64()),
            stuck_because: stuck(file, waits, all, now),
            last_error: file.last_error.clone(),
            ..File::with(path, &file.topic, &file.state, streams)
        }
    }

    /// Builds the status of a path from its streams; the last one is the file at the path.
    pub fn with(path: &Path, topic: &str, state: &str, streams: Vec<StreamStatus>) -> File {
        let live = streams.last().cloned().unwrap_or_default();
        File {
            path: shown(path),
            topic: topic.into(),
            state: state.into(),
            identity: live.identity,
            size: live.size,
            framed: live.framed,
            acknowledged: live.acknowledged,
            saved: live.saved,
            lag_bytes: streams.iter().map(|s| s.size.saturating_sub(s.acknowledged)).sum(),
            streams,
            ..File::default()
        }
    }
}

/// Why the folder cannot be written, and what that stops.
fn degraded(folder: &StateFolderTrouble) -> Option<String> {
    let Some(blocked) = &folder.blocked else { return folder.degraded.clone() };
    let topics: Vec<&str> = blocked.topics.iter().map(String::as_str).collect();
    Some(format!("{}; delivery to {} is blocked until it can be written", blocked.why, topics.join(", ")))
}

/// Why a file's lines are not sent, as far as the board knows.
fn stuck(
    file: &FileState,
    waits: Option<Duration>,
    (all, folder, hung): (&Snapshot, &StateFolderTrouble, Option<HungWrite>),
    now: Instant,
) -> Option<String> {
    // Checked before the file's own reason, because a tail that waits for memory does so because of this.
    let blocked = folder.blocked.as_ref().filter(|b| b.topics.contains(&file.topic));
    if let Some(blocked) = blocked.filter(|_| waits.is_some() && file.last_error.is_none()) {
        return Some(blocked.why.clone());
    }
    if file.stuck.is_some() || file.last_error.is_some() {
        return file.stuck.clone().or_else(|| file.last_error.clone());
    }
    waits.filter(|w| *w > STUCK_AFTER)?;
    let reason = |p: &PeerStatus| format!("{}: {}", p.name, p.last_error.as_deref().unwrap_or(&p.state));
    let in_trouble = |p: &&PeerStatus| p.attempts > 0;
    let topic = all.topics.iter().filter(in_trouble).find(|t| t.name == file.topic);
    if let Some(topic) = topic {
        return Some(format!("topic {}", reason(topic)));
    }
    let broker = all.brokers.iter().find(in_trouble);
    if let Some(broker) = broker {
        return Some(format!("broker {}", reason(broker)));
    }
    if all.budget.as_ref().is_some_and(|budget| budget.used_up) {
        return Some("the budget is used up".into());
    }
    if let Some(hung) = hung.filter(|hung| hung.blocks) {
        return Some(hung.why(now));
    }
    if all.driver.is_empty() && all.brokers.is_empty() {
        return None;
    }
    let full = all.memory.limit > 0 && all.memory.used >= all.memory.limit / 10 * 9;
    full.then(|| "all memory is in use by lines that wait for acknowledgement".into())
}

impl StreamStatus {
    fn of(progress: &Progress) -> StreamStatus {
        let who = progress.who();
        // Read in this order, so that a concurrent acknowledgement cannot make one offset exceed the next.
        let (saved, acknowledged) = (read(&progress.saved), read(&progress.acked));
        let framed = read(&progress.framed);
        // The decompressed size of a `.gz` is known only at its end.
        let size = Some(read(&progress.size)).filter(|size| *size != u64::MAX).unwrap_or(framed);
        StreamStatus {
            stream: who.as_ref().map_or(0, |(StreamId(stream), _)| *stream),
            identity: who.map(|(_, identity)| (&identity).into()),
            saved,
            acknowledged,
            framed,
            size,
        }
    }
}

impl From<&Identity> for FileId {
    fn from(i: &Identity) -> FileId {
        FileId { device: i.dev, inode: i.ino, born: i.born }
    }
}

impl PeerStatus {
    fn of(name: &str, state: &BrokerState, now: Instant) -> PeerStatus {
        PeerStatus {
            name: name.into(),
            state: state.state.clone(),
            since: now.saturating_duration_since(state.since).as_secs_f64(),
            attempts: state.attempts,
            last_error: state.last_error.clone(),
        }
    }
}

impl ExactlyOnce {
    fn of(board: &Board) -> Option<ExactlyOnce> {
        let once = &board.once;
        let producer = *lock(&once.producer);
        once.active.load(Relaxed).then(|| ExactlyOnce {
            producer_id: producer.map(|(pid, _)| pid),
            epoch: producer.map(|(_, epoch)| epoch),
            open_intents: read(&once.unsettled),
            resent: read(&once.resent),
            found_stored: read(&once.found),
            unlisted: once.unlisted.load(Relaxed),
        })
    }
}

impl TotalsStatus {
    fn of(board: &Board) -> TotalsStatus {
        let t = &board.totals;
        TotalsStatus {
            read: read(&t.read_lines),
            acked: read(&t.acked_lines).saturating_sub(read(&t.dead_lettered)),
            dead_lettered: read(&t.dead_lettered),
            doubled_at_most: board.doubled_at_most(),
            uncertain: read(&t.uncertain),
            cut: read(&t.cut_lines),
            lost_bytes: read(&t.lost_bytes),
            lost_entries: read(&t.lost_entries),
            damaged_entries: read(&t.damaged_entries),
            retries: read(&t.retries),
        }
    }
}

fn read(n: &AtomicU64) -> u64 {
    n.load(Relaxed)
}

/// A path as text, with bytes that are not UTF-8 as `\xHH`.
pub fn shown(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut out = String::new();
    for part in path.as_os_str().as_bytes().utf8_chunks() {
        out += part.valid();
        part.invalid().iter().for_each(|b| out += &format!("\\x{b:02x}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::from_json::FromJson;
    use std::sync::Arc;

    fn board() -> (Board, Arc<Progress>, Arc<Progress>) {
        let board = Board::default();
        let (old, live) =
            (board.progress(StreamId(3), 50, 100, 100), board.progress(StreamId(4), 0, 1000, 1000));
        live.frame(600);
        live.acked.store(400, Relaxed);
        live.belongs(StreamId(4), Identity { dev: 1, ino: 2, born: None });
        let progress = vec![old.clone(), live.clone()];
        let file =
            FileState { progress, state: "following".into(), topic: "t".into(), ..FileState::default() };
        board.files().insert("/a".into(), file);
        (board, old, live)
    }

    /// Fails when rotated files' bytes are left out of the lag.
    #[test]
    fn the_lag_includes_rotated_files() {
        let (board, ..) = board();
        let s = Snapshot::take(&board, Instant::now());
        let f = &s.files[0];
        assert_eq!((f.size, f.framed, f.acknowledged, f.lag_bytes), (1000, 600, 400, 650));
        assert_eq!(f.identity, Some(FileId { device: 1, inode: 2, born: None }));
        assert_eq!(f.streams.len(), 2);
        assert_eq!(s.lag_bytes(), 650);
    }

    /// Fails when an incomplete last line counts as waiting, or the age is that of the newest bytes.
    #[test]
    fn the_age_is_that_of_the_oldest_line() {
        let (board, old, live) = board();
        let later = Instant::now() + Duration::from_secs(60);
        live.saw(2000, later);
        let age = |now| Snapshot::take(&board, now).files[0].oldest_unsent;
        assert!(age(later).is_some_and(|a| (59.0..70.0).contains(&a)), "{:?}", age(later));
        old.frame(100);
        old.acked.store(100, Relaxed);
        live.frame(1900);
        live.acked.store(1500, Relaxed);
        assert!(age(later + Duration::from_secs(5)).is_some_and(|a| (4.9..6.0).contains(&a)));
        live.acked.store(1900, Relaxed);
        live.searched.store(2000, Relaxed);
        assert_eq!(age(later), None, "100 bytes without a newline are not late");
    }

    /// Fails when a file is reported as stuck because of a broker while nothing of it waits, or another topic's
    /// problem is blamed.
    #[test]
    fn the_reason_why_a_file_is_stuck() {
        let (board, old, live) = board();
        let peer = |name: &str, attempts| {
            let last_error = Some("refused".into());
            (
                name.to_string(),
                BrokerState { state: "down".into(), since: Instant::now(), attempts, last_error },
            )
        };
        let stuck = || {
            let soon = Instant::now() + Duration::from_secs(10);
            Snapshot::take(&board, soon).files[0].stuck_because.clone()
        };
        assert_eq!(stuck(), None);
        board.topics().extend([peer("other", 1), peer("t", 0)]);
        assert_eq!(stuck(), None);
        board.brokers().extend([peer("k:9092", 3)]);
        assert_eq!(stuck().as_deref(), Some("broker k:9092: refused"));
        board.topics().extend([peer("t", 2)]);
        assert_eq!(stuck().as_deref(), Some("topic t: refused"));
        board.files().get_mut(Path::new("/a")).unwrap().last_error = Some("denied".into());
        assert_eq!(stuck().as_deref(), Some("denied"));
        board.files().get_mut(Path::new("/a")).unwrap().last_error = None;
        for progress in [old, live] {
            progress.frame(1000);
            progress.acked.store(1000, Relaxed);
        }
        assert_eq!(stuck(), None);
    }

    /// Fails when a value changes on its way to `status`, or when a field that another version does not write is an
    /// error.
    #[test]
    fn json_round_trips() {
        let (board, ..) = board();
        let mut snapshot = Snapshot::take(&board, Instant::now());
        snapshot.exactly_once =
            Some(ExactlyOnce { producer_id: Some(7), epoch: Some(-1), ..Default::default() });
        snapshot.files[0].identity = Some(FileId { device: 1, inode: 2, born: Some((-3, 4)) });
        let json = serde_json::to_string(&snapshot).unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(Snapshot::from_json(&value), snapshot);
        assert_eq!(Snapshot::from_json(&serde_json::json!({"live": 1})), Snapshot::default());
        for field in ["read", "acked", "dead_lettered", "doubled_at_most", "uncertain", "lost_bytes"] {
            assert!(value["totals"][field].is_u64(), "{field}");
        }
    }
}
