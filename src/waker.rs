//! Wakes a thread that sleeps in `poll(2)`. The eventfd is written only while the thread sleeps, so waking a busy
//! producer costs no system call.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::time::Duration;

/// `poll(2)` for at most `limit`; `None`: without one. Returns the number of ready descriptors. An interruption by a
/// signal counts as no event.
pub fn poll_for(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> io::Result<usize> {
    // A limit too large for a timespec is none.
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    match poll(fds, limit.as_ref()) {
        Ok(ready) => Ok(ready),
        Err(e) => {
            fds.iter_mut().for_each(PollFd::clear_revents);
            if e == rustix::io::Errno::INTR { Ok(0) } else { Err(e.into()) }
        }
    }
}

/// Wakes its thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Waker(Arc<WakerState>);

#[derive(Debug)]
struct WakerState {
    event: OwnedFd,
    state: AtomicU8,
}

/// The thread is working. It checks its queues again before sleeping only if the state becomes [`WOKEN`].
const AWAKE: u8 = 0;
/// A wake came since the thread last started to check its queues.
const WOKEN: u8 = 1;
/// In `poll(2)`, or about to be.
const ASLEEP: u8 = 2;

impl Waker {
    pub fn new() -> io::Result<Waker> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Waker(Arc::new(WakerState { event, state: AtomicU8::new(AWAKE) })))
    }

    /// Call after the new item is visible in its queue.
    pub fn wake(&self) {
        if self.0.state.swap(WOKEN, SeqCst) == ASLEEP {
            // Fails only after 2^64 - 2 unread wakes.
            let _ = rustix::io::write(&self.0.event, &1u64.to_ne_bytes());
        }
    }

    /// The thread is about to check its queues.
    pub fn begin_round(&self) {
        self.0.state.swap(AWAKE, SeqCst);
    }

    /// The thread is about to sleep. Returns `false` if a wake came meanwhile and it must not.
    #[must_use]
    pub fn may_sleep(&self) -> bool {
        self.0.state.compare_exchange(AWAKE, ASLEEP, SeqCst, SeqCst).is_ok()
    }

    pub fn poll_fd(&self) -> PollFd<'_> {
        PollFd::new(&self.0.event, PollFlags::IN)
    }

    /// Call after `poll(2)` reported it readable.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.0.event, &mut [0u8; 8]);
    }
}

/// Wraps a value whose drop must wake the thread: the wake comes after the value is gone.
#[derive(Clone, Debug)]
pub struct Waking<T> {
    value: T,
    // Dropped after `value`.
    last: WakeOnDrop,
}

#[derive(Clone, Debug)]
struct WakeOnDrop(Waker);

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        self.0.wake();
    }
}

impl<T> Waking<T> {
    pub fn new(value: T, waker: &Waker) -> Waking<T> {
        Waking { value, last: WakeOnDrop(waker.clone()) }
    }

    pub fn get(&self) -> &T {
        &self.value
    }

    pub fn wake(&self) {
        self.last.0.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// Fails when a wake between a check and the sleep is missed, or when each wake costs a write.
    #[test]
    fn a_wake_between_check_and_sleep_is_not_missed() {
        let waker = Waker::new().unwrap();
        let readable = || {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            poll(&mut [waker.poll_fd()], Some(&now)).unwrap() == 1
        };
        waker.begin_round();
        waker.wake();
        assert!(!waker.may_sleep());
        assert!(!readable(), "a thread that is awake needs no write");
        waker.begin_round();
        assert!(waker.may_sleep());
        waker.wake();
        assert!(readable());
        waker.clear();
        waker.begin_round();
        assert!(waker.may_sleep());
        assert!(!readable());
    }

    /// Fails when the drop does not wake, or wakes before the value is gone.
    #[test]
    fn an_end_wakes() {
        let waker = Waker::new().unwrap();
        let (value, closed) = crossbeam_channel::bounded::<()>(0);
        let value = Waking::new(value, &waker);
        waker.begin_round();
        assert!(waker.may_sleep());
        let other = thread::spawn(move || drop(value));
        poll(&mut [waker.poll_fd()], None).unwrap();
        assert_eq!(closed.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected));
        other.join().unwrap();
    }
}
