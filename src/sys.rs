//! What std and rustix do not offer without `unsafe`: the only file that may hold it, each use with its SAFETY. Decides
//! nothing and keeps nothing.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;

/// Keeps all signals from the calling thread, and from those it starts from now on: a signal in the midst of a `write`
/// makes it short, and the `kafka` crate takes a short write for a whole one. Signals that a thread raises by its own
/// fault (SIGSEGV and the like) stay open: blocking those is undefined (sigprocmask(2)).
pub fn block_signals() -> io::Result<()> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset initializes the set it is given; sigdelset changes it, and these numbers are valid.
    let set = unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for own_fault in
            [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS]
        {
            libc::sigdelset(set.as_mut_ptr(), own_fault);
        }
        set.assume_init()
    };
    set_mask(&set)
}

/// Opens the calling thread to all signals again: the one of `signals.rs`.
pub fn unblock_signals() -> io::Result<()> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initializes the set it is given.
    let set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    };
    set_mask(&set)
}

fn set_mask(set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: `set` is initialized, and a null pointer says that the old mask is not wanted.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set, std::ptr::null_mut()) } {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Signal numbers blocked in the calling thread, as `/proc` shows them.
    fn blocked() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    }

    /// Fails when threads do not inherit the mask, or when SIGSEGV would be blocked.
    #[test]
    fn all_signals_but_faults_are_kept_out_and_children_inherit_it() {
        let bit = |signal: i32| 1u64 << (signal - 1);
        let mask = || {
            block_signals().unwrap();
            let inherited = std::thread::spawn(blocked).join().unwrap();
            unblock_signals().unwrap();
            (inherited, blocked())
        };
        let (inherited, after) = std::thread::spawn(mask).join().unwrap();
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1, libc::SIGALRM] {
            assert_ne!(inherited & bit(signal), 0, "signal {signal}");
        }
        assert_eq!(inherited & (bit(libc::SIGSEGV) | bit(libc::SIGBUS)), 0);
        assert_eq!(after, 0);
    }
}
