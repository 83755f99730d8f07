//! Decides the next step for the open files of one path. Pure: no I/O and no waiting.

use std::time::Duration;

/// What is at the followed path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AtPath {
    /// The file that is being read as the live one.
    Live,
    /// A different file than the live one, or a file where none was open.
    Another,
    Nothing,
    /// It cannot be seen or opened at the moment; open files stay open.
    Unknown,
}

/// The current state of one open file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    pub live: bool,
    /// There may be bytes that were not read yet.
    pub unread: bool,
    /// Some of them existed at the rotation: they are sent before anything from a newer file.
    pub owed: bool,
    /// Bytes that are not a complete record yet.
    pub rest: bool,
    /// They contain complete lines (multiline).
    pub rest_has_lines: bool,
    /// They existed at the rotation, and nothing was appended since.
    pub rest_owed: bool,
    /// It is shorter than what was read, or has different bytes.
    pub truncated: bool,
    /// It has been deleted: no name is left.
    pub deleted: bool,
    /// Everything framed so far is acknowledged.
    pub acked: bool,
    /// Time since its last change.
    pub quiet: Duration,
    /// Deleted, and over the limit for deleted files.
    pub too_much: bool,
}

/// How long to wait for the files of one path.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A rotated file is closed after being unchanged for this long.
    pub rotate_grace: Duration,
    /// An incomplete line is sent after this long (`partial_after`).
    pub line_after: Option<Duration>,
    /// The complete lines of an incomplete record are sent after this long (multiline's `timeout`).
    pub record_after: Option<Duration>,
    /// Interval between looks without events.
    pub poll: Duration,
}

impl Patience {
    /// A deleted file is closed this long after its last ack. It cannot be opened by name to append.
    pub const DELETED: Duration = Duration::from_secs(10);
    /// The unterminated end of a rotated file becomes a line after this long without new data.
    pub const REST: Duration = Duration::from_secs(3);
}

/// Maximum number of rotated files per path kept open while they have a name; the others are found again by identity.
pub const HELD: usize = 8;

/// How far to follow the path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Until {
    Stopped,
    /// Up to the end seen at the first look (`--once`), or up to the current end (`follow = false`).
    Read,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A different file is at the path: open it and keep the old one open.
    Open,
    /// The path is gone: treat the live file as a rotated one.
    Orphan,
    /// Start over at offset 0 of the same file.
    Truncated(usize),
    Read(usize),
    /// No more data will come: send the incomplete record, and an incomplete line as well.
    SendRest(usize),
    /// No more lines will come for the incomplete record: send its complete lines.
    SendRecord(usize),
    /// Close it: everything was read.
    Leave(usize),
    /// Close it although it has unread bytes.
    GiveUp(usize),
    /// Too many files are open: close it for now and find it again by its identity.
    Shelve(usize),
    /// There is room again for the oldest shelved file.
    Unshelve,
    Wait(Duration),
    /// Nothing is left to follow.
    End,
}

/// `seen` is sorted oldest first; the `shelved` closed files come between its rotated files and the live one. `turn` is a
/// counter that alternates between files, so a late writer in an old file cannot starve the live one.
pub fn decide(
    path: AtPath,
    seen: &[Seen],
    shelved: usize,
    until: Until,
    patience: Patience,
    turn: usize,
) -> Step {
    let live = seen.iter().position(|s| s.live);
    match path {
        AtPath::Another => return Step::Open,
        AtPath::Nothing if live.is_some() => return Step::Orphan,
        _ => {}
    }
    if let Some(i) = seen.iter().position(|s| s.truncated) {
        return Step::Truncated(i);
    }
    if let Some(i) = seen.iter().position(|s| s.too_much) {
        return Step::GiveUp(i);
    }
    if let Some(step) = make_room(seen, shelved) {
        return step;
    }
    // The last record of a rotated file waits for more lines, and newer files wait for it.
    let n = seen.len();
    let newest = seen.iter().position(|s| s.rest_owed && !s.live).unwrap_or(n);
    if let Some(i) = seen.iter().position(|s| s.owed).filter(|i| *i <= newest) {
        return Step::Read(i);
    }
    let readable = |i: &usize| seen[*i].unread && *i <= newest && (shelved == 0 || !seen[*i].live);
    if let Some(i) = (0..n).map(|i| (i + turn) % n).find(readable) {
        return Step::Read(i);
    }
    let waits: Vec<Option<Duration>> = seen.iter().map(|s| rest_wait(s, until, patience)).collect();
    if let Some(i) = waits.iter().position(|w| *w == Some(Duration::ZERO)) {
        return Step::SendRest(i);
    }
    let records: Vec<Option<Duration>> = seen.iter().map(|s| record_wait(s, patience)).collect();
    if let Some(i) = records.iter().position(|w| *w == Some(Duration::ZERO)) {
        return Step::SendRecord(i);
    }
    let leaves: Vec<Option<Duration>> = seen.iter().map(|s| leave_wait(s, until, patience)).collect();
    if let Some(i) = leaves.iter().position(|w| *w == Some(Duration::ZERO)) {
        return Step::Leave(i);
    }
    if seen.is_empty() && shelved == 0 && (path == AtPath::Nothing || until == Until::Read) {
        return Step::End;
    }
    let soonest = waits.into_iter().chain(records).chain(leaves).flatten().min();
    Step::Wait(soonest.map_or(patience.poll, |w| w.min(patience.poll)))
}

/// Keeps the number of open rotated files at [`HELD`]: closes a fully read one early (a late write is found when siblings
/// are listed next), else shelves the newest.
fn make_room(seen: &[Seen], shelved: usize) -> Option<Step> {
    let rotated = |s: &Seen| !s.live && !s.deleted;
    let held = seen.iter().filter(|s| rotated(s)).count();
    if held + usize::from(shelved > 0) > HELD {
        if let Some(i) = seen.iter().position(|s| rotated(s) && !s.unread && !s.rest) {
            return Some(Step::Leave(i));
        }
        if held > HELD {
            return seen.iter().rposition(rotated).map(Step::Shelve);
        }
    }
    (shelved > 0 && held < HELD).then_some(Step::Unshelve)
}

/// How long until an incomplete line is sent; `None`: it waits for its end, or for older lines.
fn rest_wait(s: &Seen, until: Until, patience: Patience) -> Option<Duration> {
    if !s.rest || s.unread {
        return None;
    }
    if until == Until::Read {
        return Some(Duration::ZERO);
    }
    let rotated = (!s.live).then(|| Patience::REST.min(patience.rotate_grace));
    let after = [rotated, patience.line_after].into_iter().flatten().min()?;
    Some(after.saturating_sub(s.quiet))
}

/// How long until the complete lines of an incomplete record are sent; `None`: there are none.
fn record_wait(s: &Seen, patience: Patience) -> Option<Duration> {
    let after = patience.record_after.filter(|_| s.rest_has_lines && !s.unread)?;
    Some(after.saturating_sub(s.quiet))
}

/// How long until the file may be closed; `None`: not in its current state.
fn leave_wait(s: &Seen, until: Until, patience: Patience) -> Option<Duration> {
    if s.rest {
        return None;
    }
    if until == Until::Read {
        return Some(Duration::ZERO);
    }
    if s.live {
        return None;
    }
    if !s.deleted {
        return Some(patience.rotate_grace.saturating_sub(s.quiet));
    }
    // The last acknowledgement wakes the tail.
    s.acked.then(|| Patience::DELETED.min(patience.rotate_grace).saturating_sub(s.quiet))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn patience() -> Patience {
        Patience { rotate_grace: S(60), line_after: None, record_after: None, poll: S(30) }
    }

    fn live() -> Seen {
        Seen {
            live: true,
            unread: false,
            owed: false,
            rest: false,
            rest_has_lines: false,
            rest_owed: false,
            truncated: false,
            deleted: false,
            acked: true,
            quiet: S(0),
            too_much: false,
        }
    }

    fn old() -> Seen {
        Seen { live: false, ..live() }
    }

    /// Fails when the rule that a row is named after is removed from `decide`.
    #[test]
    fn steps() {
        use AtPath::*;
        let unread = |s| Seen { unread: true, ..s };
        let rows: Vec<(&str, AtPath, Vec<Seen>, Step)> = vec![
            ("nothing to do", Live, vec![live()], Step::Wait(S(30))),
            ("append", Live, vec![unread(live())], Step::Read(0)),
            (
                "rotated: the new one is opened before the old is read",
                Another,
                vec![unread(live())],
                Step::Open,
            ),
            ("moved away", Nothing, vec![live()], Step::Orphan),
            ("cannot be seen: nothing changes", Unknown, vec![live()], Step::Wait(S(30))),
            ("truncated", Live, vec![Seen { truncated: true, ..unread(live()) }], Step::Truncated(0)),
            (
                "the old one first",
                Live,
                vec![Seen { owed: true, ..unread(old()) }, unread(live())],
                Step::Read(0),
            ),
            ("then they take turns", Live, vec![unread(old()), unread(live())], Step::Read(1)),
            (
                "an old one in its grace period",
                Live,
                vec![Seen { quiet: S(20), ..old() }, live()],
                Step::Wait(S(30)),
            ),
            (
                "near the end of its grace period",
                Live,
                vec![Seen { quiet: S(50), ..old() }, live()],
                Step::Wait(S(10)),
            ),
            ("past it", Live, vec![Seen { quiet: S(60), ..old() }, live()], Step::Leave(0)),
            (
                "an incomplete line of the live file waits",
                Live,
                vec![Seen { rest: true, quiet: S(99), ..live() }],
                Step::Wait(S(30)),
            ),
            (
                "that of an old file does not",
                Live,
                vec![Seen { rest: true, quiet: S(3), ..old() }, live()],
                Step::SendRest(0),
            ),
            (
                "newer files wait for the end of an old one",
                Live,
                vec![Seen { rest: true, rest_owed: true, quiet: S(1), ..old() }, unread(live())],
                Step::Wait(S(2)),
            ),
            (
                "also if they are rotated meanwhile",
                Live,
                vec![
                    Seen { rest: true, rest_owed: true, quiet: S(1), ..old() },
                    Seen { owed: true, ..unread(old()) },
                    live(),
                ],
                Step::Wait(S(2)),
            ),
            (
                "also with an incomplete line of their own, which more was appended to",
                Live,
                vec![
                    Seen { rest: true, rest_owed: true, quiet: S(1), ..old() },
                    Seen { rest: true, quiet: S(9), ..unread(old()) },
                    live(),
                ],
                Step::Wait(S(2)),
            ),
            ("deleted, acked", Nothing, vec![Seen { deleted: true, quiet: S(10), ..old() }], Step::Leave(0)),
            (
                "deleted, not acked: that wakes it",
                Nothing,
                vec![Seen { deleted: true, acked: false, quiet: S(99), ..old() }],
                Step::Wait(S(30)),
            ),
            (
                "over the limit for deleted files",
                Nothing,
                vec![Seen { deleted: true, too_much: true, ..unread(old()) }],
                Step::GiveUp(0),
            ),
            ("all gone", Nothing, vec![], Step::End),
            ("not there yet, but cannot be seen", Unknown, vec![], Step::Wait(S(30))),
        ];
        for (name, path, seen, want) in rows {
            assert_eq!(decide(path, &seen, 0, Until::Stopped, patience(), 1), want, "{name}");
        }
    }

    #[test]
    fn once() {
        let d = |seen: &[Seen]| decide(AtPath::Live, seen, 0, Until::Read, patience(), 0);
        assert_eq!(d(&[Seen { unread: true, rest: true, ..live() }]), Step::Read(0));
        assert_eq!(d(&[Seen { rest: true, ..live() }]), Step::SendRest(0));
        assert_eq!(d(&[live()]), Step::Leave(0));
        assert_eq!(d(&[]), Step::End);
    }

    #[test]
    fn a_rest_may_be_sent_early() {
        let p = Patience { line_after: Some(S(2)), ..patience() };
        let s = Seen { rest: true, quiet: S(1), ..live() };
        assert_eq!(decide(AtPath::Live, &[s], 0, Until::Stopped, p, 0), Step::Wait(S(1)));
        assert_eq!(
            decide(AtPath::Live, &[Seen { quiet: S(2), ..s }], 0, Until::Stopped, p, 0),
            Step::SendRest(0)
        );
    }

    /// Multiline's `timeout`. Fails when it sends an incomplete line, or when a record never ends.
    #[test]
    fn a_record_ends_after_a_timeout_and_a_line_does_not() {
        let d = |p, s| decide(AtPath::Live, &[s], 0, Until::Stopped, p, 0);
        let p = Patience { record_after: Some(S(2)), ..patience() };
        let s = Seen { rest: true, quiet: S(1), ..live() };
        let lines = Seen { rest_has_lines: true, ..s };
        assert_eq!(d(p, lines), Step::Wait(S(1)));
        assert_eq!(d(p, Seen { quiet: S(2), ..lines }), Step::SendRecord(0));
        assert_eq!(d(p, Seen { quiet: S(99), ..s }), Step::Wait(S(30)), "an incomplete line waits");
        let both = Patience { line_after: Some(S(5)), ..p };
        assert_eq!(d(both, Seen { quiet: S(5), ..s }), Step::SendRest(0));
    }

    /// The number of open rotated files is limited. Fails when one more is kept, or one with unread bytes is closed for
    /// good.
    #[test]
    fn the_ninth_rotated_file() {
        let d = |seen: &[Seen], shelved| decide(AtPath::Live, seen, shelved, Until::Stopped, patience(), 0);
        let owed = Seen { unread: true, owed: true, ..old() };
        let mut seen = vec![owed; HELD + 1];
        seen.push(live());
        assert_eq!(d(&seen, 0), Step::Shelve(HELD), "the newest waits");
        seen[3] = old();
        assert_eq!(d(&seen, 0), Step::Leave(3), "a fully read one makes room");
        seen.remove(3);
        assert_eq!(d(&seen, 1), Step::Read(0), "the shelf waits for room");
        seen[0] = old();
        assert_eq!(d(&seen, 1), Step::Leave(0));
        assert_eq!(d(&seen[1..], 1), Step::Unshelve);
        let unread = Seen { unread: true, ..live() };
        assert_eq!(d(&[unread], 1), Step::Unshelve, "before reading the live one continues");
        let deleted = Seen { deleted: true, ..owed };
        assert_eq!(
            d(&[vec![deleted; 30], vec![live()]].concat(), 0),
            Step::Read(0),
            "these cannot be found again"
        );
    }

    use proptest::prelude::*;

    fn any_seen() -> impl Strategy<Value = Seen> {
        let flags =
            (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
        (flags, any::<bool>(), any::<bool>(), 0..120u64).prop_map(
            |((unread, owed, rest, truncated, deleted, acked), lines, too_much, quiet)| Seen {
                live: false,
                unread,
                owed: owed && unread,
                rest,
                rest_has_lines: lines && rest,
                rest_owed: lines && rest,
                truncated,
                deleted,
                acked,
                quiet: S(quiet),
                too_much: too_much && deleted,
            },
        )
    }

    proptest! {
        /// Invariants of every step, whatever the input.
        #[test]
        fn no_step_loses_anything(
            old in prop::collection::vec(any_seen(), 0..12),
            live in prop::option::of(any_seen()),
            path in prop::sample::select(vec![AtPath::Live, AtPath::Another, AtPath::Nothing, AtPath::Unknown]),
            shelved in 0..3usize,
            once in any::<bool>(),
            turn in any::<usize>(),
        ) {
            let mut seen = old;
            seen.extend(live.map(|s| Seen { live: true, owed: false, ..s }));
            let until = if once { Until::Read } else { Until::Stopped };
            let held = seen.iter().filter(|s| !s.live && !s.deleted).count();
            let patience = Patience { record_after: Some(S(2)), ..patience() };
            match decide(path, &seen, shelved, until, patience, turn) {
                Step::Leave(i) => {
                    let s = seen[i];
                    prop_assert!(!s.unread && !s.rest && !s.truncated, "closed with unread bytes");
                    prop_assert!(once || !s.live, "the live one is never closed");
                    let enough = s.quiet >= S(10) || once || held + shelved > HELD;
                    prop_assert!(enough, "closed too soon");
                    prop_assert!(!s.deleted || s.acked || once, "closed before its last ack");
                }
                Step::Read(i) => {
                    prop_assert!(seen[i].unread);
                    let first = seen.iter().position(|s| s.owed);
                    let held = seen.iter().position(|s| s.rest_owed && !s.live);
                    prop_assert!(held.is_none_or(|h| i <= h), "before the end of an older one");
                    prop_assert!(first.is_none_or(|f| f == i || held.is_some_and(|h| h < f)), "not in order");
                    prop_assert!(!(seen[i].live && shelved > 0), "the live one before shelved ones");
                }
                Step::SendRest(i) => prop_assert!(seen[i].rest && !seen[i].unread && (once || !seen[i].live)),
                Step::SendRecord(i) => prop_assert!(seen[i].rest_has_lines && !seen[i].unread),
                Step::GiveUp(i) => prop_assert!(seen[i].too_much),
                Step::Truncated(i) => prop_assert!(seen[i].truncated),
                Step::Shelve(i) => prop_assert!(held > HELD && !seen[i].live && !seen[i].deleted),
                Step::Unshelve => prop_assert!(shelved > 0 && held < HELD),
                Step::Open => prop_assert!(path == AtPath::Another),
                Step::Orphan => prop_assert!(path == AtPath::Nothing && seen.iter().any(|s| s.live)),
                Step::Wait(time) => {
                    prop_assert!(time <= patience.poll);
                    let held = seen.iter().any(|s| s.rest_owed && !s.live);
                    prop_assert!(!held || time <= S(3), "newer files wait for too long");
                    let unread = seen.iter().any(|s| s.unread && !(s.live && shelved > 0));
                    prop_assert!(held || !unread, "unread bytes are left waiting");
                }
                Step::End => prop_assert!(seen.is_empty() && shelved == 0),
            }
        }
    }
}
