//! Stops one thread of a process; a signal would stop the whole process. Reads and changes nothing in it.
#![allow(unsafe_code, reason = "ptrace(2) has no safe form, and is for tests only")]

use rustix::process::{Pid, WaitOptions};
use std::io;
use std::marker::PhantomData;

/// A thread that is stopped until this is dropped, on the thread that created it.
pub struct Halted {
    thread: libc::pid_t,
    /// Only the tracing thread may make ptrace(2) requests.
    _here: PhantomData<*const ()>,
}

impl Halted {
    /// Stops the thread while it waits for work. In the middle of a round it may have no deadline: a file system that
    /// hangs is no reason for a restart.
    #[track_caller]
    pub fn waiting(process: u32, thread: u32) -> Halted {
        for _ in 0..1000 {
            let halted = Halted::new(thread);
            let call = std::fs::read_to_string(format!("/proc/{process}/task/{thread}/syscall")).unwrap();
            let number = call.split(' ').next().and_then(|n| n.parse().ok());
            if [libc::SYS_poll, libc::SYS_ppoll, libc::SYS_futex].into_iter().any(|n| number == Some(n)) {
                return halted;
            }
            drop(halted);
            super::pause(super::millis(1));
        }
        panic!("thread {thread} never waits");
    }

    #[track_caller]
    fn new(thread: u32) -> Halted {
        let thread = thread as libc::pid_t;
        let ask = |request: libc::c_uint, what: &str| {
            let none = std::ptr::null_mut::<libc::c_void>();
            // SAFETY: these requests take neither an address nor data.
            let done = unsafe { libc::ptrace(request, thread, none, none) };
            assert_eq!(done, 0, "{what}: {}", io::Error::last_os_error());
        };
        ask(libc::PTRACE_SEIZE, "PTRACE_SEIZE");
        let halted = Halted { thread, _here: PhantomData };
        ask(libc::PTRACE_INTERRUPT, "PTRACE_INTERRUPT");
        // Waiting for a thread of another process needs __WALL.
        let (all, pid) = (WaitOptions::from_bits_retain(libc::__WALL as u32), Pid::from_raw(thread));
        let stopped = rustix::process::waitpid(pid, all).expect("the thread stops");
        assert!(stopped.is_some_and(|(_, status)| status.stopped()));
        halted
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: as above. A thread that has exited meanwhile gives ESRCH.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.thread, none, none) };
    }
}
