//! systemd's file descriptor store: rotated or deleted files with undelivered lines outlive the process there
//! (sd_pid_notify_with_fds(3), `FileDescriptorStoreMax=`) and are returned at the next start.
//!
//! A returned descriptor refers to the same open file description as the stored one and shares its offset, so readers
//! use `pread(2)`.
//!
//! A deleted file cannot be reopened in any other way after a restart, and a rotated one may be deleted while the agent
//! is down. The files are matched to streams by [`crate::commands`]' start-up code, by device, inode and birth time and
//! never by the store's names.

mod slots;

use crate::lock::lock;
use crate::record::StreamId;
use crate::sys;
use crate::systemd::Notify;
use slots::{Slots, StoreAction};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Handle to the store; clones share it. Without a service manager nothing is kept.
#[derive(Clone, Debug, Default)]
pub struct FdStore(Option<Arc<FdStoreInner>>);

#[derive(Debug)]
struct FdStoreInner {
    notify: Notify,
    state: Mutex<FdStates>,
}

#[derive(Debug)]
struct FdStates {
    slots: Slots,
    /// Returned at the start and not yet claimed by a tail.
    given: HashMap<StreamId, File>,
    /// Names the manager should drop.
    unwanted: Vec<String>,
    /// The manager's queue was full, which has been logged: send nothing before this time, so that tails do not wait
    /// for it.
    retry_at: Option<Instant>,
}

impl FdStates {
    fn is_paused(&self) -> bool {
        self.retry_at.is_some_and(|at| Instant::now() < at)
    }

    /// Logs when the manager stops or resumes taking messages.
    fn note_answer(&mut self, answer: &io::Result<()>) {
        let was_paused = self.retry_at.is_some();
        match answer {
            Ok(()) if was_paused => log::info!("systemd takes messages again"),
            Err(e) if !was_paused => log::warn!(
                "systemd takes no messages ({e}): files that are rotated or deleted unread from now on are lost if the agent ends before it has read them; retrying"
            ),
            _ => {}
        }
        self.retry_at = answer.as_ref().err().map(|_| Instant::now() + PAUSE);
    }

    fn send_removals(&mut self, notify: &Notify) {
        while !self.is_paused()
            && let Some(name) = self.unwanted.last()
        {
            let answer = notify.forget(name);
            if answer.is_ok() {
                self.unwanted.pop();
            }
            self.note_answer(&answer);
        }
    }
}

/// A descriptor returned at the start.
#[derive(Debug)]
pub struct InheritedFd {
    pub name: String,
    pub fd: OwnedFd,
}

/// `FileDescriptorStoreMax=` of our unit, for a systemd that does not report it (`$FDSTORE` exists since version
/// 254).
const ROOM: usize = 512;

/// Pause after a message did not fit into the manager's queue.
const PAUSE: Duration = Duration::from_secs(5);

/// Takes the descriptors passed by the manager. Call once, before anything else is opened.
pub fn inherited() -> Vec<InheritedFd> {
    let var = |name| std::env::var(name).ok();
    let own = std::process::id();
    let (pid, count, names) = (var("LISTEN_PID"), var("LISTEN_FDS"), var("LISTEN_FDNAMES"));
    let Some(names) = listed(pid.as_deref(), count.as_deref(), names.as_deref(), own) else {
        return Vec::new();
    };
    let fds = sys::passed_on(names.len());
    names.into_iter().zip(fds).filter_map(|(name, fd)| Some(InheritedFd { name, fd: fd? })).collect()
}

/// The names of the passed descriptors (sd_listen_fds_with_names(3)). `None` if there are none, or they are meant for
/// another process.
fn listed(pid: Option<&str>, count: Option<&str>, names: Option<&str>, own: u32) -> Option<Vec<String>> {
    if pid?.parse() != Ok(own) {
        return None;
    }
    let count: usize = count?.parse().ok().filter(|n| (1..=MOST).contains(n))?;
    let mut names: Vec<String> = names.unwrap_or_default().split(':').map(str::to_owned).collect();
    if names.len() != count {
        names = vec![String::new(); count];
    }
    Some(names)
}

/// Upper limit of plausible values.
const MOST: usize = 1 << 16;

impl FdStore {
    pub fn new(notify: &Notify) -> FdStore {
        let room = std::env::var("FDSTORE").ok().and_then(|n| n.parse().ok()).unwrap_or(ROOM);
        if !notify.is_present() || room == 0 {
            return FdStore(None);
        }
        let slots = Slots::new(room);
        let state = FdStates { slots, given: HashMap::new(), unwanted: Vec::new(), retry_at: None };
        FdStore(Some(Arc::new(FdStoreInner { notify: notify.clone(), state: Mutex::new(state) })))
    }

    /// Whether a manager keeps our descriptors.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Registers a returned file, to be claimed by the stream's tail.
    pub fn adopt(&self, stream: StreamId, name: String, file: File) {
        if let Some(mut state) = self.state() {
            state.slots.restore(stream, name);
            state.given.insert(stream, file);
        }
    }

    /// Releases an unclaimed descriptor.
    pub fn discard(&self, name: String) {
        if let (Some(inner), Some(mut state)) = (&self.0, self.state()) {
            state.unwanted.push(name);
            state.send_removals(&inner.notify);
        }
    }

    /// A duplicate of the file returned for a stream.
    pub fn of(&self, stream: StreamId) -> Option<File> {
        self.state()?.given.get(&stream)?.try_clone().ok()
    }

    /// A tail has opened the stream, so the returned file is no longer needed here.
    pub fn claimed(&self, stream: StreamId) {
        self.state().and_then(|mut state| state.given.remove(&stream));
    }

    /// Stores a stream's file beyond the end of this process. May be called repeatedly: a stored file is not sent
    /// again, and a failed one is retried.
    pub fn keep(&self, stream: StreamId, file: &File, inode: u64, deleted: bool) {
        let (Some(inner), Some(mut state)) = (&self.0, self.state()) else { return };
        state.send_removals(&inner.notify);
        if state.is_paused() {
            return;
        }
        let name = match state.slots.request(stream, inode, deleted) {
            StoreAction::Nothing => return,
            StoreAction::Full => {
                log::warn!(
                    "systemd keeps no more rotated and deleted files for us; further ones are lost if they are deleted while the agent is not running: raise FileDescriptorStoreMax="
                );
                return;
            }
            StoreAction::Store { name, instead_of } => {
                state.unwanted.extend(instead_of);
                state.send_removals(&inner.notify);
                name
            }
        };
        let answer = inner.notify.store(&name, file.as_fd());
        if answer.is_err() {
            state.slots.release(stream);
        }
        state.note_answer(&answer);
    }

    /// Whether a stream's file is kept.
    pub fn keeps(&self, stream: StreamId) -> bool {
        self.state().is_some_and(|state| state.slots.holds(stream))
    }

    /// The stream is finished: drops its file from the store.
    pub fn done(&self, stream: StreamId) {
        let (Some(inner), Some(mut state)) = (&self.0, self.state()) else { return };
        state.given.remove(&stream);
        let name = state.slots.release(stream);
        state.unwanted.extend(name);
        state.send_removals(&inner.notify);
    }

    /// Retries pending removals.
    pub fn again(&self) {
        if let (Some(inner), Some(mut state)) = (&self.0, self.state()) {
            state.send_removals(&inner.notify);
        }
    }

    fn state(&self) -> Option<MutexGuard<'_, FdStates>> {
        Some(lock(&self.0.as_ref()?.state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when another process's descriptors are taken, or more than there are names for.
    #[test]
    fn the_environment_is_not_trusted() {
        let names = |pid, count, names| listed(pid, count, names, 7);
        let two = Some(vec!["a".to_owned(), "b".to_owned()]);
        let unnamed = Some(vec![String::new(), String::new()]);
        assert_eq!(names(Some("7"), Some("2"), Some("a:b")), two);
        assert_eq!(names(Some("7"), Some("2"), Some("a:b:c")), unnamed);
        assert_eq!(names(Some("7"), Some("2"), None), unnamed);
        for (pid, count) in [
            (None, Some("2")),
            (Some("8"), Some("2")),
            (Some("x"), Some("2")),
            (Some("7"), None),
            (Some("7"), Some("0")),
            (Some("7"), Some("-1")),
            (Some("7"), Some("99999999999")),
        ] {
            assert_eq!(names(pid, count, Some("a:b")), None, "{pid:?} {count:?}");
        }
    }

    /// Fails when a name from the manager causes a panic, or when there are more names than descriptors.
    #[test]
    fn fuzz_names_of_descriptors() {
        let samples = [b"7 2 a:b".to_vec(), b"7 3 logagent-1-2:stored:".to_vec(), b"7 65536 x".to_vec()];
        crate::fuzz::damaged(
            &samples,
            |_| MOST,
            |text| {
                let text = String::from_utf8_lossy(text);
                let mut fields = text.splitn(3, ' ');
                let (pid, count, names) = (fields.next(), fields.next(), fields.next());
                let found = listed(pid, count, names, 7);
                assert!(found.as_ref().is_none_or(|f| count.and_then(|n| n.parse().ok()) == Some(f.len())));
                found.map_or(0, |f| f.len())
            },
        );
    }
}
