//! Ends a hanging call of the `kafka` crate by shutting down its sockets (D4: the crate connects without a timeout,
//! and reads and writes with one of 120 s that cannot be changed).

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
    /// Longest time without progress: no byte acknowledged by the peer's kernel, and none received.
    pub still: Duration,
    /// Longest call, whatever its progress. Below the crate's 120 s, so that it never reaches its own timeout in the
    /// middle of a write and takes part of a frame for the whole (D3). 512 KiB in 110 s is a link of 5 kB/s.
    pub whole: Duration,
}

impl Default for WatchLimits {
    fn default() -> Self {
        WatchLimits { still: Duration::from_secs(25), whole: Duration::from_secs(110) }
    }
}

/// The worker's handle to the watchdog thread.
#[derive(Debug)]
pub struct CallWatchdog(Sender<WatchedCall>);

#[derive(Debug)]
struct WatchedCall {
    peers: Vec<SocketAddr>,
    done: Stop,
    cut: Arc<AtomicBool>,
}

/// Sockets are watched until it is dropped.
#[derive(Debug)]
pub struct Guard {
    _on: stop::Handle,
    cut: Arc<AtomicBool>,
}

impl Guard {
    /// Whether sockets were shut down. Then the peer did not close them, whatever the call reports.
    pub fn has_cut(&self) -> bool {
        self.cut.load(Relaxed)
    }
}

impl CallWatchdog {
    /// Starts a thread that lives as long as the value. It inherits the caller's blocked signals.
    pub fn start(limits: WatchLimits) -> std::io::Result<Self> {
        let (to, watches) = bounded(1);
        let body = move || watches.iter().for_each(|w| watch(&w, &limits));
        thread::Builder::new().name("classic-watch".to_owned()).stack_size(128 << 10).spawn(body)?;
        Ok(CallWatchdog(to))
    }

    /// Watches sockets to `peers` until the guard is dropped.
    pub fn guard(&self, peers: Vec<SocketAddr>) -> Guard {
        let (_on, done) = stop::pair();
        let cut = Arc::new(AtomicBool::new(false));
        let _ = self.0.send(WatchedCall { peers, done, cut: cut.clone() }); // the thread outlives its channel
        Guard { _on, cut }
    }
}

/// Checks often enough that no call exceeds its limit by more than an eighth.
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
            // Listed at each check: the crate may move on to the name's next address.
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
