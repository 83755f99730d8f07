//! Turns signals into messages: one thread receives them, and all other threads have them blocked.

use crate::sys;
use crossbeam_channel::{Receiver, Sender, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGXCPU};
use signal_hook::iterator::{Handle, Signals as Incoming};
use std::io;
use std::thread::{self, JoinHandle};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// SIGTERM, SIGINT, SIGQUIT (Ctrl-\), SIGXCPU (the soft CPU limit; the kernel kills at the hard one) or SIGPWR.
    /// The second one means: exit immediately.
    Stop,
    /// SIGHUP: read the config again.
    Reload,
    /// SIGUSR1: log the status.
    Report,
}

/// Room for unread signals. Further reloads and status requests are redundant and dropped; a stop waits for room.
const WAITING: usize = 8;

/// The signals of this process. Dropping it ends the thread; signals are then ignored.
pub struct Signals {
    pub inbox: Receiver<Signal>,
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

/// Other signals that would terminate the process without a save, such as SIGUSR2 and SIGALRM, are ignored: they are
/// sent by mistake, or meant for a program that previously had our process id.
const STOP: [i32; 5] = [SIGTERM, SIGINT, SIGQUIT, SIGXCPU, sys::SIGPWR];

/// Blocks the signals in the calling thread, and so in all threads started later, and receives them in a separate
/// thread. Call before any other thread is started.
pub fn start() -> io::Result<Signals> {
    sys::block_signals()?;
    sys::ignore_stray_signals();
    let incoming = Incoming::new(STOP.into_iter().chain([SIGHUP, SIGUSR1]))?;
    let handle = incoming.handle();
    let (out, inbox) = bounded(WAITING);
    let thread = thread::Builder::new()
        .name("signals".into())
        .stack_size(128 << 10)
        .spawn(move || take(incoming, out))?;
    Ok(Signals { inbox, handle, thread: Some(thread) })
}

fn take(mut incoming: Incoming, out: Sender<Signal>) {
    if let Err(e) = sys::unblock_signals() {
        log::error!("signals: cannot be unblocked: {e}; stop the agent with SIGKILL and start it again");
    }
    for number in incoming.forever() {
        let gone = match number {
            SIGHUP => out.try_send(Signal::Reload).is_err_and(|e| e.is_disconnected()),
            SIGUSR1 => out.try_send(Signal::Report).is_err_and(|e| e.is_disconnected()),
            _ => out.send(Signal::Stop).is_err(),
        };
        if gone {
            return;
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.handle.close();
        self.inbox = crossbeam_channel::never(); // releases a thread that waits for room
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there has been logged by the hook
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Signal as Number, getpid, kill_process};
    use std::time::Duration;

    /// Runs in its own thread, because the mask stays. Fails when the second stop is swallowed, or a full queue loses
    /// one.
    #[test]
    fn every_signal_arrives_and_a_stop_is_never_dropped() {
        let scenario = || {
            let signals = start().unwrap();
            let wait = || signals.inbox.recv_timeout(Duration::from_secs(10)).unwrap();
            let send = |n| kill_process(getpid(), n).unwrap();
            for (number, meaning) in [
                (Number::HUP, Signal::Reload),
                (Number::USR1, Signal::Report),
                (Number::TERM, Signal::Stop),
                (Number::INT, Signal::Stop),
                (Number::QUIT, Signal::Stop),
                (Number::XCPU, Signal::Stop),
                (Number::POWER, Signal::Stop),
            ] {
                send(number);
                assert_eq!(wait(), meaning);
            }
            for n in 1..=WAITING {
                send(Number::HUP);
                while signals.inbox.len() < n {
                    thread::yield_now();
                }
            }
            send(Number::TERM);
            let taken: Vec<Signal> = (0..=WAITING).map(|_| wait()).collect();
            assert_eq!(taken.last(), Some(&Signal::Stop));
            // Dropped while the thread waits for room: it must end.
            for n in 1..=WAITING {
                send(if n % 2 == 0 { Number::HUP } else { Number::USR1 });
                while signals.inbox.len() < n {
                    thread::yield_now();
                }
            }
            send(Number::TERM);
        };
        thread::spawn(scenario).join().unwrap();
    }
}
