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
    #[track_caller]
    pub fn new(thread: u32) -> Halted {
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
