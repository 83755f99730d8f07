//! Signals as messages: one thread takes them, all others have them blocked. Decides nothing: what a signal means is
//! `commands/run.rs`'s.

use crate::sys;
use crossbeam_channel::{Receiver, Sender, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGXCPU};
use signal_hook::iterator::{Handle, Signals as Incoming};
use std::io;
use std::thread::{self, JoinHandle};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// SIGTERM, SIGINT, SIGQUIT (Ctrl-\), SIGXCPU (the soft limit of processor time; at the hard one the kernel kills) or SIGPWR.
    /// The second one says: at once.
    Stop,
    /// SIGHUP: read the config again.
    Reload,
    /// SIGUSR1: log the status.
    Report,
}

/// Room for signals that nobody took yet. More reloads and reports than this say nothing new and are dropped; a stop
/// waits for room.
const WAITING: usize = 8;

/// The signals of this process. Dropping it ends the thread and leaves the signals without effect.
pub struct Signals {
    pub inbox: Receiver<Signal>,
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

/// What is not listed here and would end a process without a save by default, such as SIGUSR2 and SIGALRM, is ignored: it is
/// sent by mistake, or to another program that had our number before.
const STOP: [i32; 5] = [SIGTERM, SIGINT, SIGQUIT, SIGXCPU, sys::SIGPWR];

/// Blocks the signals in the calling thread (so also in those started later) and takes them up in one of its own. Call it
/// before any other thread is started.
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
        self.inbox = crossbeam_channel::never(); // a thread that waits for room finds nobody there
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it has no panic of its own, and there is nothing left to do about one
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Signal as Number, getpid, kill_process};
    use std::time::Duration;

    /// In a thread of its own, because the mask stays. Fails when the second stop is swallowed, or a full queue loses one.
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
            // Dropped while it waits for room: the thread must end.
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
