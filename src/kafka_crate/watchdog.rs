//! Ends a call of the `kafka` crate that hangs, by cutting its sockets (D4: the crate connects without a limit, and reads
//! and writes with one of 120 s that cannot be changed). Knows nothing of what the call does.

use crate::stop::{self, Stop};
use crate::sys;
use crossbeam_channel::{Receiver, Sender, bounded, select};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy)]
pub struct WatchLimits {
    /// Longest time in which nothing moves: no byte acknowledged by the peer's kernel, none received.
    pub still: Duration,
    /// Longest call, however much moves. Below the crate's 120 s, so that it never meets its own limit in mid-write and
    /// takes a part of a frame for the whole (D3). 512 KiB in 110 s is a link of 5 kB/s.
    pub whole: Duration,
}

impl Default for WatchLimits {
    fn default() -> Self {
        WatchLimits { still: Duration::from_secs(25), whole: Duration::from_secs(110) }
    }
}

/// The worker's end of its watching thread.
#[derive(Debug)]
pub struct CallWatchdog(Sender<WatchedCall>);

#[derive(Debug)]
struct WatchedCall {
    peers: Vec<SocketAddr>,
    done: Stop,
    cut: Arc<AtomicBool>,
}

/// Sockets are watched as long as it lives.
#[derive(Debug)]
pub struct Guard {
    _on: stop::Handle,
    cut: Arc<AtomicBool>,
}

impl Guard {
    /// Were sockets cut? Then the peer did not close them, whatever the call says.
    pub fn has_cut(&self) -> bool {
        self.cut.load(Relaxed)
    }
}

impl CallWatchdog {
    /// A thread that lives as long as the value. Signals are blocked in it as they are in the caller.
    pub fn start(limits: WatchLimits) -> std::io::Result<Self> {
        let (to, watches) = bounded(1);
        let body = move || watches.iter().for_each(|w| watch(&w, &limits));
        thread::Builder::new().name("classic-watch".to_owned()).stack_size(128 << 10).spawn(body)?;
        Ok(CallWatchdog(to))
    }

    /// From now until the guard is dropped, sockets to `peers` are watched.
    pub fn guard(&self, peers: Vec<SocketAddr>) -> Guard {
        let (_on, done) = stop::pair();
        let cut = Arc::new(AtomicBool::new(false));
        let _ = self.0.send(WatchedCall { peers, done, cut: cut.clone() }); // the thread cannot be gone before its channel is
        Guard { _on, cut }
    }
}

/// Looks often enough that no call outlives its limit by more than an eighth.
fn watch(w: &WatchedCall, limits: &WatchLimits) {
    let began = Instant::now();
    let (mut moved, mut since) = (0, began);
    loop {
        if done_within(w.done.on(), limits.still / 8) {
            return;
        }
        let now = Instant::now();
        let sockets = sys::sockets_to(&w.peers);
        let sum = sockets.iter().map(|s| s.moved).sum::<u64>();
        if sum != moved {
            (moved, since) = (sum, now);
        }
        if now.duration_since(since) >= limits.still || now.duration_since(began) >= limits.whole {
            // Again at each look: the crate may go on to the name's next address.
            w.cut.store(true, Relaxed);
            sockets.iter().for_each(sys::Socket::cut);
        }
    }
}

fn done_within(done: &Receiver<std::convert::Infallible>, time: Duration) -> bool {
    select! {
        recv(done) -> _ => true,
        default(time) => false,
    }
}
