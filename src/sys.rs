//! What std and rustix do not offer without `unsafe`: the only file that may hold it, each use with its SAFETY. Decides
//! nothing and keeps nothing.
#![allow(unsafe_code)]

use rustix::net::SocketAddrAny;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

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

/// A TCP socket of this process, held by a descriptor of its own: what happens to the owner's number meanwhile does
/// not matter. To be dropped soon: while it lives, the owner's `close` sends no FIN.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    /// A blocking `connect` is under way (SYN sent); the kernel does not tell the peer's address then.
    pub connecting: bool,
    /// Bytes that the peer's kernel has acknowledged and bytes received from it, added up.
    pub moved: u64,
}

impl Socket {
    /// Nothing to read, and not closed by the peer.
    pub fn is_silent(&self) -> bool {
        use rustix::net::{RecvFlags, recv};
        let peeked = recv(&self.fd, &mut [0u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        matches!(peeked, Err(rustix::io::Errno::AGAIN))
    }

    /// Ends both directions by `shutdown(2)`: a blocked `connect`, `read` or `write` in another thread returns at once.
    /// On a socket that is still connecting it gives the attempt up (Linux: `inet_shutdown`, case `TCP_SYN_SENT`).
    pub fn cut(&self) {
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both); // already closed: as wanted
    }
}

/// This process's TCP sockets that are connected to one of `peers`, and all that are still connecting without a limit: by
/// a blocking `connect`, for one with a limit (`TcpStream::connect_timeout`) is made non-blocking for that time.
pub fn sockets_to(peers: &[SocketAddr]) -> Vec<Socket> {
    open_descriptors().into_iter().filter_map(tcp).filter(|s| s.connecting || is_peer(s, peers)).collect()
}

fn is_peer(socket: &Socket, peers: &[SocketAddr]) -> bool {
    let peer = rustix::net::getpeername(&socket.fd).ok().flatten();
    peer.and_then(|p: SocketAddrAny| SocketAddr::try_from(p).ok())
        .is_some_and(|p| peers.iter().any(|q| q.ip() == p.ip() && q.port() == p.port()))
}

/// Numbers that are open now, or may be where there is no `/proc` (an empty chroot): then up to 4,096.
fn open_descriptors() -> Vec<RawFd> {
    let Ok(all) = std::fs::read_dir("/proc/self/fd") else { return (0..4096).collect() };
    all.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// The TCP socket behind a number; `None` for anything else. Asked before it is duplicated, since closing a duplicate of
/// a file would end the process's POSIX locks on that file.
fn tcp(number: RawFd) -> Option<Socket> {
    tcp_info(number)?;
    // SAFETY: F_DUPFD_CLOEXEC takes any number and fails with EBADF where nothing is open; it touches no memory.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return None;
    }
    // SAFETY: `copy` was opened by the call above and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(copy) };
    let info = tcp_info(fd.as_raw_fd())?; // again: the number may have been reused in between
    let blocking = rustix::fs::fcntl_getfl(&fd).is_ok_and(|f| !f.contains(rustix::fs::OFlags::NONBLOCK));
    let connecting = blocking && info.tcpi_state == SYN_SENT;
    Some(Socket { fd, connecting, moved: info.tcpi_bytes_acked + info.tcpi_bytes_received })
}

/// `TCP_SYN_SENT` of linux/tcp_states.h.
const SYN_SENT: u8 = 2;

fn tcp_info(number: RawFd) -> Option<libc::tcp_info> {
    // SAFETY: all fields are integers, for which zeros are a value; an older kernel fills in fewer of them.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    let to: *mut libc::tcp_info = &mut info;
    // SAFETY: the kernel writes at most `len` bytes to `to`, which is valid for that many, and the new length to `len`;
    // a number that is no TCP socket gives an error.
    let done = unsafe { libc::getsockopt(number, libc::IPPROTO_TCP, libc::TCP_INFO, to.cast(), &mut len) };
    (done == 0).then_some(info)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

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

    /// Fails when `cut` closes its copy instead of shutting the connection down: the read then waits for its 20 s.
    #[test]
    fn a_blocked_read_returns_when_its_socket_is_cut() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let mut client = TcpStream::connect_timeout(&addr, Duration::from_secs(5)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let reader = std::thread::spawn(move || {
            let began = Instant::now();
            (client.read(&mut [0; 1]).ok(), began.elapsed())
        });
        let sockets = sockets_to(&[addr]);
        assert!(sockets.iter().any(|s| !s.connecting), "not found: {sockets:?}");
        sockets.iter().filter(|s| !s.connecting).for_each(Socket::cut);
        drop(sockets);
        let (read, took) = reader.join().unwrap();
        assert_eq!(read, Some(0));
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
}
