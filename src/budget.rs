//! The memory budget: bytes between disk and acknowledgement, split evenly between topics.
//!
//! A tail requests a whole chunk at once and holds nothing while it waits, so there is no hold-and-wait deadlock. A
//! stalled topic holds only its own share.

use crate::lock::lock;
use crate::quota::Reserved;
use crate::stop::Stop;
use crossbeam_channel::{Receiver, Sender, bounded, select};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

/// The fraction of a share (1/n) that may be set aside.
const ASIDE: usize = 8;

/// All shares of one process.
#[derive(Debug)]
pub struct Budget(Mutex<All>);

#[derive(Debug)]
struct All {
    total: usize,
    shares: Vec<Share>,
}

/// One topic's part of the budget.
#[derive(Clone, Debug)]
pub struct Share(Arc<Mutex<BudgetState>>);

#[derive(Debug, Default)]
struct BudgetState {
    limit: usize,
    /// Invariant: the sum of all living permits of this share.
    used: usize,
    /// Of that, bytes that were set aside.
    aside: usize,
    queue: VecDeque<(usize, Sender<Permit>)>,
    /// `Some` once retired: its quota is zero, and bytes it still holds are deducted from the other shares.
    retired: Option<Weak<Budget>>,
}

/// A place in the queue. Dropping it returns a permit granted meanwhile.
#[derive(Debug)]
pub struct QueuePlace {
    bytes: usize,
    granted: Receiver<Permit>,
}

/// Permission to hold `bytes`; dropping it returns them to the share.
#[derive(Debug)]
pub struct Permit {
    share: Share,
    bytes: usize,
    /// See [`Share::set_aside`].
    aside: bool,
    /// Room in the dead-letter file, in case the broker rejects these bytes.
    letters: Option<Reserved>,
}

impl Budget {
    pub fn new(total: usize) -> Self {
        Budget(Mutex::new(All { total, shares: Vec::new() }))
    }

    /// Adds a share and divides the total evenly again. A limit may shrink below the bytes in use; then nothing is
    /// granted until they fit.
    pub fn share(&self) -> Share {
        let share = Share(Arc::new(Mutex::new(BudgetState::default())));
        lock(&self.0).shares.push(share.clone());
        self.divide();
        share
    }

    /// Retires the share: the other shares get its quota as its bytes are returned.
    pub fn retire(self: &Arc<Self>, share: &Share) {
        share.lock().retired = Some(Arc::downgrade(self));
        self.divide();
    }

    pub fn resize(&self, total: usize) {
        lock(&self.0).total = total;
        self.divide();
    }

    fn divide(&self) {
        let mut all = lock(&self.0);
        all.shares.retain(|s| {
            let s = s.lock();
            s.retired.is_none() || s.used > 0
        });
        let retired: Vec<usize> =
            all.shares.iter().map(Share::lock).filter(|s| s.retired.is_some()).map(|s| s.used).collect();
        let living = (all.shares.len() - retired.len()).max(1);
        let each = all.total.saturating_sub(retired.iter().sum()) / living;
        for share in &all.shares {
            let mut s = share.lock();
            s.limit = if s.retired.is_some() { 0 } else { each };
        }
        let shares = all.shares.clone();
        drop(all);
        shares.iter().for_each(Share::serve);
    }

    pub fn total(&self) -> usize {
        lock(&self.0).total
    }

    /// Bytes in use now, over all shares.
    pub fn used(&self) -> usize {
        lock(&self.0).shares.iter().map(|s| s.lock().used).sum()
    }
}

impl Share {
    fn lock(&self) -> MutexGuard<'_, BudgetState> {
        lock(&self.0)
    }

    /// Waits for `bytes` in FIFO order; a request above the limit is granted alone. `None`: stopped.
    pub fn take(&self, bytes: usize, stop: &Stop) -> Option<Permit> {
        let granted = match self.ask(bytes) {
            Ok(permit) => return Some(permit),
            Err(place) => place.granted,
        };
        // Stopped: a permit granted meanwhile is dropped with the receiver and returned.
        select! { recv(granted) -> p => p.ok(), recv(stop.on()) -> _ => None }
    }

    /// Like [`Share::take`] with a timeout. On timeout or stop, `place` keeps the position in the queue for the next
    /// call with the same size.
    pub fn take_within(
        &self,
        bytes: usize,
        place: &mut Option<QueuePlace>,
        time: Duration,
        stop: &Stop,
    ) -> Option<Permit> {
        let kept = place.take().filter(|p| p.bytes == bytes);
        let waiting = match kept.map_or_else(|| self.ask(bytes), Err) {
            Ok(permit) => return Some(permit),
            Err(waiting) => place.insert(waiting),
        };
        let granted = select! {
            recv(waiting.granted) -> p => p.ok(),
            recv(stop.on()) -> _ => None,
            default(time) => None,
        };
        if granted.is_some() {
            *place = None;
        }
        granted
    }

    /// Takes bytes that will be held indefinitely, without ever waiting: `None` if others are waiting or this part of
    /// the share is used up. The part is small, and is ignored when a request above the limit is granted alone, so no
    /// request waits for it either.
    pub fn set_aside(&self, bytes: usize) -> Option<Permit> {
        let mut s = self.lock();
        let fits = s.queue.is_empty() && s.used + bytes <= s.limit && s.aside + bytes <= s.limit / ASIDE;
        if !fits {
            return None;
        }
        s.used += bytes;
        s.aside += bytes;
        Some(Permit { share: self.clone(), bytes, aside: true, letters: None })
    }

    fn ask(&self, bytes: usize) -> Result<Permit, QueuePlace> {
        let mut s = self.lock();
        if s.queue.is_empty() && s.fits(bytes) {
            s.used += bytes;
            return Ok(Permit { share: self.clone(), bytes, aside: false, letters: None });
        }
        let (tx, granted) = bounded(1);
        s.queue.push_back((bytes, tx));
        Err(QueuePlace { bytes, granted })
    }

    fn serve(&self) {
        let mut handed = Vec::new(); // dropped after the lock, because dropping an unclaimed permit locks again
        let mut s = self.lock();
        while let Some(&(bytes, _)) = s.queue.front() {
            if !s.fits(bytes) {
                break;
            }
            let Some((bytes, to)) = s.queue.pop_front() else { break };
            s.used += bytes;
            let sent = to.try_send(Permit { share: self.clone(), bytes, aside: false, letters: None });
            handed.push((to, sent));
        }
        drop(s);
        drop(handed);
    }
}

impl BudgetState {
    fn fits(&self, bytes: usize) -> bool {
        self.used == self.aside || self.used + bytes <= self.limit
    }
}

impl Permit {
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Splits off a permit for up to `bytes`.
    pub fn split(&mut self, bytes: usize) -> Permit {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Permit { share: self.share.clone(), bytes, aside: self.aside, letters: None }
    }

    /// The bytes are no longer set aside: they are on their way to the broker.
    pub fn put_to_use(&mut self) {
        if std::mem::take(&mut self.aside) {
            self.share.lock().aside -= self.bytes;
        }
    }

    /// Ties the reserved dead-letter room to these bytes.
    pub fn with_letters(&mut self, room: Reserved) {
        self.letters = Some(room);
    }

    /// Returns everything above `to` bytes.
    pub fn shrink(&mut self, to: usize) {
        if to < self.bytes {
            let rest = Permit {
                share: self.share.clone(),
                bytes: self.bytes - to,
                aside: self.aside,
                letters: None,
            };
            self.bytes = to;
            drop(rest);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let (waiting, retired) = {
            let mut s = self.share.lock();
            s.used -= self.bytes;
            s.aside -= if self.aside { self.bytes } else { 0 };
            (!s.queue.is_empty(), s.retired.clone())
        };
        if waiting {
            self.share.serve();
        }
        if let Some(budget) = retired.and_then(|b| b.upgrade()) {
            budget.divide();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_share_is_the_total_divided_by_topics() {
        let b = Budget::new(100);
        let (one, _two) = (b.share(), b.share());
        let (_h, stop) = stop::pair();
        let a = one.take(50, &stop).unwrap();
        let (tx, rx) = bounded(1);
        let again = one.clone();
        let t = thread::spawn(move || tx.send(again.take(1, &stop).is_some()).unwrap());
        assert!(rx.recv_timeout(Duration::from_millis(50)).is_err(), "granted over the limit");
        drop(a);
        assert!(rx.recv_timeout(Duration::from_secs(5)).unwrap());
        t.join().unwrap();
        assert_eq!(b.used(), 0);
    }

    #[test]
    fn more_than_the_limit_is_granted_alone() {
        let b = Budget::new(10);
        let s = b.share();
        let (_h, stop) = stop::pair();
        let mut p = s.take(1000, &stop).unwrap();
        p.shrink(7);
        assert_eq!((p.bytes(), b.used()), (7, 7));
        assert!(s.take(3, &stop).is_some());
    }

    /// Fails when a retired share keeps its quota forever, when its bytes in use are granted a second time, or when
    /// no waiter gets the freed room.
    #[test]
    fn a_retired_share_goes_to_the_others() {
        let b = Arc::new(Budget::new(100));
        let (one, two) = (b.share(), b.share());
        let (_h, stop) = stop::pair();
        let old = one.take(40, &stop).unwrap();
        b.retire(&one);
        let most = two.take(60, &stop).unwrap();
        let (tx, rx) = bounded(1);
        let again = two.clone();
        let t = thread::spawn(move || tx.send(again.take(40, &stop).is_some()).unwrap());
        assert!(rx.recv_timeout(Duration::from_millis(50)).is_err(), "what is in use was given out again");
        assert_eq!(b.used(), 100);
        drop(old);
        assert!(rx.recv_timeout(Duration::from_secs(5)).unwrap());
        t.join().unwrap();
        drop(most);
        b.resize(10);
        assert_eq!((b.total(), two.lock().limit, lock(&b.0).shares.len()), (10, 10, 1));
    }

    /// Fails when a waiter loses its place after a timeout, or an abandoned place keeps bytes.
    #[test]
    fn a_place_in_the_queue_is_kept() {
        let b = Budget::new(10);
        let s = b.share();
        let (_h, stop) = stop::pair();
        let moment = Duration::from_millis(1);
        let (mut first, mut second) = (None, None);
        let all = s.take(10, &stop).unwrap();
        assert!(s.take_within(10, &mut first, moment, &stop).is_none());
        assert!(s.take_within(9, &mut second, moment, &stop).is_none());
        drop(all);
        assert!(s.take_within(9, &mut second, moment, &stop).is_none());
        let got = s.take_within(10, &mut first, moment, &stop);
        assert!(got.is_some() && first.is_none());
        drop(got);
        drop(second);
        assert_eq!(b.used(), 0);
    }

    /// Fails when a permit granted to a waiter that stopped meanwhile is not given back.
    #[test]
    fn a_stopped_waiter_leaves_nothing_behind() {
        let b = Budget::new(10);
        let s = b.share();
        for _ in 0..200 {
            let (h, stop) = stop::pair();
            let p = s.take(10, &stop).unwrap();
            let (again, on) = (s.clone(), stop.clone());
            let t = thread::spawn(move || again.take(10, &on).map(drop));
            let u = thread::spawn(move || drop(h));
            drop(p);
            t.join().unwrap();
            u.join().unwrap();
        }
        let (_h, stop) = stop::pair();
        assert!(s.take(10, &stop).is_some());
    }
}
