//! A queue of jobs with a bell that `poll(2)` can hear, so that one thread waits for its socket and for new work at once.
//! Knows no sockets and no Kafka.

use super::Producer;
use crate::pulse::Beat;
use crate::ship::flight::Batch;
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// What a broker's thread is asked to do.
#[derive(Debug)]
pub enum Job {
    Send(Batch),
    Ask(Producer),
}

/// The sending side; dropping it ends the worker, wherever that waits.
#[derive(Debug)]
pub struct Post {
    /// `None` only while dropping.
    jobs: Option<Sender<Job>>,
    /// The worker's own end: jobs that it has not taken can be taken back.
    waiting: Receiver<Job>,
    open: Option<Arc<()>>,
    bell: Arc<Bell>,
}

#[derive(Debug)]
pub struct Inbox {
    jobs: Receiver<Job>,
    /// Dead once the sending side is gone; a channel alone tells that only to who takes from it.
    open: Weak<()>,
    bell: Arc<Bell>,
}

#[derive(Debug)]
struct Bell {
    event: OwnedFd,
    /// The worker waits, or is about to: only then does a ring cost a system call.
    asleep: AtomicBool,
    /// The worker's, which promises nothing while it has nothing to do; so who rings does.
    beat: Arc<Beat>,
}

pub fn pair(beat: Arc<Beat>) -> io::Result<(Post, Inbox)> {
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let bell = Arc::new(Bell { event, asleep: AtomicBool::new(false), beat });
    #[allow(clippy::disallowed_methods, reason = "bounded by the batches that ship has in flight")]
    let (jobs, waiting) = crossbeam_channel::unbounded();
    let open = Arc::new(());
    let inbox = Inbox { jobs: waiting.clone(), open: Arc::downgrade(&open), bell: bell.clone() };
    Ok((Post { jobs: Some(jobs), waiting, open: Some(open), bell }, inbox))
}

impl Post {
    /// Lays a job down without waking the worker: several are one request.
    pub fn put(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(job); // cannot fail: `waiting` lives as long
        }
    }

    pub fn ring(&self) {
        if self.bell.asleep.swap(false, SeqCst) {
            self.bell.beat.within(Beat::SLOW);
            self.bell.ring();
        }
    }

    /// What the worker has not taken yet.
    pub fn take_back(&self) -> impl Iterator<Item = Job> + '_ {
        self.waiting.try_iter()
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        // First, so that the worker finds the queue closed when it wakes.
        self.jobs = None;
        self.open = None;
        self.bell.ring();
    }
}

impl Bell {
    fn ring(&self) {
        // Fails only where 2^64 - 2 rings were not heard.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}

impl Inbox {
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Empty, and nothing will come any more.
    pub fn is_closed(&self) -> bool {
        self.open.upgrade().is_none() && self.jobs.is_empty()
    }

    /// Hands over all waiting jobs; `false`: there will be no more.
    #[must_use]
    pub fn take(&self, mut each: impl FnMut(Job)) -> bool {
        loop {
            match self.jobs.try_recv() {
                Ok(job) => each(job),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Waits by `wait`, which gets what rings and how long it may wait, and says whether it rang. Does not wait where
    /// jobs are there already.
    pub fn sleep<T, E>(
        &self,
        limit: Option<Duration>,
        wait: impl FnOnce(BorrowedFd<'_>, Option<Duration>) -> Result<(T, bool), E>,
    ) -> Result<T, E> {
        self.bell.asleep.store(true, SeqCst);
        let limit = if self.jobs.is_empty() { limit } else { Some(Duration::ZERO) };
        match limit {
            Some(limit) => self.bell.beat.within(limit),
            None => self.bell.beat.rests(),
        }
        let woken = wait(self.bell.event.as_fd(), limit);
        self.bell.asleep.store(false, SeqCst);
        self.bell.beat.within(Beat::SLOW);
        let (other, rang) = woken?;
        if rang {
            let _ = rustix::io::read(&self.bell.event, &mut [0u8; 8]);
        }
        Ok(other)
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.bell.beat.rests();
    }
}

#[cfg(test)]
mod tests {
    use super::super::connection::wait_for;
    use super::*;
    use rustix::event::{PollFd, PollFlags};
    use std::time::Instant;

    fn ask(partition: i32) -> Job {
        Job::Ask(Producer { topic: "t".into(), partition, pid: 1 })
    }

    fn sleep(inbox: &Inbox, limit: Duration) {
        let wait = |bell: BorrowedFd<'_>, limit| {
            let mut fds = [PollFd::new(&bell, PollFlags::IN)];
            wait_for(&mut fds, limit).map(|()| ((), !fds[0].revents().is_empty()))
        };
        inbox.sleep(Some(limit), wait).unwrap();
    }

    /// Fails when a job laid down between the look into the queue and the wait is not heard (no `asleep` before the look).
    #[test]
    fn no_job_is_slept_over() {
        let (post, inbox) = pair(crate::pulse::Pulse::default().beat("test")).unwrap();
        let worker = std::thread::spawn(move || {
            let (mut seen, start) = (0, Instant::now());
            while inbox.take(|_| seen += 1) {
                sleep(&inbox, Duration::from_secs(20));
            }
            (seen, start.elapsed())
        });
        for i in 0..20_000 {
            post.put(ask(i));
            post.ring();
            if i % 3 == 0 {
                std::thread::yield_now();
            }
        }
        drop(post);
        let (seen, took) = worker.join().unwrap();
        assert!(seen == 20_000 && took < Duration::from_secs(19), "{seen} in {took:?}");
    }

    /// Fails when dropping the sender does not ring, or jobs that nobody took are lost.
    #[test]
    fn what_was_not_taken_can_be_taken_back() {
        let (post, inbox) = pair(crate::pulse::Pulse::default().beat("test")).unwrap();
        post.put(ask(1));
        assert_eq!(post.take_back().count(), 1);
        let start = Instant::now();
        drop(post);
        sleep(&inbox, Duration::from_secs(20));
        assert!(!inbox.take(|_| unreachable!()) && start.elapsed() < Duration::from_secs(10));
    }
}
