//! Files that outlive the process: rotated or deleted ones with lines that are not delivered, handed to systemd's descriptor
//! store (sd_pid_notify_with_fds(3), `FileDescriptorStoreMax=`) and given back by it at the next start. Reads no contents, and
//! does not know whose they are.
//!
//! A descriptor from the store is the same open file as ours was, with the same offset: whoever reads it reads at offsets of
//! its own (`pread(2)`).

mod shelf;

use crate::chunk::StreamId;
use crate::sys;
use crate::systemd::Notify;
use shelf::{Shelf, Want};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The way to the store; a clone is another way to the same. Without a service manager nothing is kept.
#[derive(Clone, Debug, Default)]
pub struct FdStore(Option<Arc<FdStoreInner>>);

#[derive(Debug)]
struct FdStoreInner {
    notify: Notify,
    state: Mutex<FdStates>,
}

#[derive(Debug)]
struct FdStates {
    shelf: Shelf,
    /// Given back at the start, and not taken up by a tail yet.
    given: HashMap<StreamId, File>,
    /// Names that the manager is to let go of.
    unwanted: Vec<String>,
    /// It takes nothing now, which was said: no tail is to wait for it again before.
    deaf_until: Option<Instant>,
}

impl FdStates {
    fn is_deaf(&self) -> bool {
        self.deaf_until.is_some_and(|at| Instant::now() < at)
    }

    /// What came of a message to it. Silence is said once, and its end.
    fn heard(&mut self, answer: &io::Result<()>) {
        let was_deaf = self.deaf_until.is_some();
        match answer {
            Ok(()) if was_deaf => log::info!("systemd takes messages again"),
            Err(e) if !was_deaf => log::warn!(
                "systemd takes no messages ({e}): what is rotated or deleted unread from now on is lost if the agent ends before \
                 it is read; trying again"
            ),
            _ => {}
        }
        self.deaf_until = answer.as_ref().err().map(|_| Instant::now() + DEAF);
    }

    fn tell(&mut self, notify: &Notify) {
        while !self.is_deaf()
            && let Some(name) = self.unwanted.last()
        {
            let answer = notify.forget(name);
            if answer.is_ok() {
                self.unwanted.pop();
            }
            self.heard(&answer);
        }
    }
}

/// A descriptor that was given back at the start.
#[derive(Debug)]
pub struct Given {
    pub name: String,
    pub fd: OwnedFd,
}

/// `FileDescriptorStoreMax=` of our unit, for a systemd that does not tell (`$FDSTORE` is there from 254 on).
const ROOM: usize = 512;

/// After a message that found no room in the manager's queue.
const DEAF: Duration = Duration::from_secs(5);

/// Takes what the manager passed on. Once, and before anything else is opened.
pub fn given() -> Vec<Given> {
    let var = |name| std::env::var(name).ok();
    let own = std::process::id();
    let (pid, count, names) = (var("LISTEN_PID"), var("LISTEN_FDS"), var("LISTEN_FDNAMES"));
    let Some(names) = listed(pid.as_deref(), count.as_deref(), names.as_deref(), own) else {
        return Vec::new();
    };
    let fds = sys::passed_on(names.len());
    names.into_iter().zip(fds).filter_map(|(name, fd)| Some(Given { name, fd: fd? })).collect()
}

/// The names of what is passed on (sd_listen_fds_with_names(3)). `None`: nothing is, or it is meant for another process.
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

/// No unit has room for more.
const MOST: usize = 1 << 16;

impl FdStore {
    pub fn new(notify: &Notify) -> FdStore {
        let room = std::env::var("FDSTORE").ok().and_then(|n| n.parse().ok()).unwrap_or(ROOM);
        if !notify.is_heard() || room == 0 {
            return FdStore(None);
        }
        let shelf = Shelf::new(room);
        let state = FdStates { shelf, given: HashMap::new(), unwanted: Vec::new(), deaf_until: None };
        FdStore(Some(Arc::new(FdStoreInner { notify: notify.clone(), state: Mutex::new(state) })))
    }

    /// Somebody keeps what it is told to.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// This stream's file was given back, and waits for its tail.
    pub fn adopt(&self, stream: StreamId, name: String, file: File) {
        if let Some(mut state) = self.state() {
            state.shelf.held_already(stream, name);
            state.given.insert(stream, file);
        }
    }

    /// Nobody wants what is there by this name.
    pub fn dismiss(&self, name: String) {
        if let (Some(inner), Some(mut state)) = (&self.0, self.state()) {
            state.unwanted.push(name);
            state.tell(&inner.notify);
        }
    }

    /// What was given back for a stream, once more.
    pub fn of(&self, stream: StreamId) -> Option<File> {
        self.state()?.given.get(&stream)?.try_clone().ok()
    }

    /// A tail has this stream open now.
    pub fn taken_up(&self, stream: StreamId) {
        self.state().and_then(|mut state| state.given.remove(&stream));
    }

    /// Keeps a stream's file beyond the end of this process. To be asked again and again: the first time counts, and
    /// what could not be kept is tried again.
    pub fn keep(&self, stream: StreamId, file: &File, inode: u64, deleted: bool) {
        let (Some(inner), Some(mut state)) = (&self.0, self.state()) else { return };
        state.tell(&inner.notify);
        if state.is_deaf() {
            return;
        }
        let name = match state.shelf.want(stream, inode, deleted) {
            Want::Nothing => return,
            Want::Full => {
                log::warn!(
                    "systemd keeps no more rotated and deleted files for us; those beyond are lost if they are deleted while the \
                     agent is not running: raise FileDescriptorStoreMax="
                );
                return;
            }
            Want::Store { name, instead_of } => {
                state.unwanted.extend(instead_of);
                state.tell(&inner.notify);
                name
            }
        };
        let answer = inner.notify.store(&name, file.as_fd());
        if answer.is_err() {
            state.shelf.unwant(stream);
        }
        state.heard(&answer);
    }

    /// Whether a stream's file is kept.
    pub fn keeps(&self, stream: StreamId) -> bool {
        self.state().is_some_and(|state| state.shelf.holds(stream))
    }

    /// Nothing of this stream is needed any more.
    pub fn done(&self, stream: StreamId) {
        let (Some(inner), Some(mut state)) = (&self.0, self.state()) else { return };
        state.given.remove(&stream);
        let name = state.shelf.unwant(stream);
        state.unwanted.extend(name);
        state.tell(&inner.notify);
    }

    /// Tries again what could not be told.
    pub fn again(&self) {
        if let (Some(inner), Some(mut state)) = (&self.0, self.state()) {
            state.tell(&inner.notify);
        }
    }

    fn state(&self) -> Option<MutexGuard<'_, FdStates>> {
        Some(self.0.as_ref()?.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when descriptors are taken that are another process's, or more than there are names for.
    #[test]
    fn the_environment_is_not_believed() {
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

    /// Fails when a name of the manager's makes us panic, or there are more names than descriptors.
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
