//! System calls that std and rustix do not offer safely: the only file of the agent that may contain `unsafe`, apart
//! from the allocator.
#![allow(unsafe_code)]

pub mod heap;

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Blocks all signals in the calling thread and in threads it starts later. A signal during a `write` cuts it short,
/// and the `kafka` crate takes a short write for a complete one. Synchronous signals (SIGSEGV and the like) stay
/// unblocked, because blocking those is undefined (sigprocmask(2)).
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

static STDOUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether standard output was open when the process started. Before `main`, std opens /dev/null in place of a standard
/// descriptor that is closed, and that accepts every line and keeps none.
pub fn stdout_was_open() -> io::Result<()> {
    if STDOUT_WAS_CLOSED.load(Ordering::Relaxed) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    Ok(())
}

extern "C" fn look_at_stdout() {
    // SAFETY: F_GETFD takes any number and fails with EBADF where nothing is open; it touches no memory.
    let is_closed = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } < 0;
    STDOUT_WAS_CLOSED.store(is_closed, Ordering::Relaxed);
}

// SAFETY: the C library calls these functions before `main`, and this one needs nothing that std sets up.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_STD: extern "C" fn() = look_at_stdout;

/// Power failure.
pub use libc::SIGPWR;

/// Signals without meaning for the agent that would terminate it: those of timers and descriptors it does not use,
/// and those that programs define for themselves. A write beyond `ulimit -f` fails instead (SIGXFSZ).
pub fn ignore_stray_signals() {
    let named = [
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
        libc::SIGXFSZ,
        libc::SIGSTKFLT,
    ];
    for signal in named.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        // SAFETY: SIG_IGN runs no code; a number that cannot be ignored gives an error.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Unblocks all signals in the calling thread, which is that of `signals.rs`.
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
    // SAFETY: `set` is initialized; a null pointer means that the old mask is not requested.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set, std::ptr::null_mut()) } {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// The descriptors passed by the service manager, from 3 upwards (sd_listen_fds(3)); `None` for numbers that are not
/// open. All get CLOEXEC. A second call returns nothing.
pub fn passed_on(count: usize) -> Vec<Option<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let take = |number: RawFd| {
        // SAFETY: F_SETFD takes any number and fails with EBADF where nothing is open; it touches no memory.
        let open = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
        // SAFETY: the descriptor is open, was passed to us alone, and is not used elsewhere in this process.
        open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
    };
    (0..count).map(|n| RawFd::try_from(n + 3).ok().and_then(take)).collect()
}

/// A TCP socket of this process, held through a duplicate descriptor, so reuse of the owner's number does not matter.
/// Drop it soon: while it exists, the owner's `close` sends no FIN.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    /// Identical for all descriptors of a socket.
    inode: u64,
    /// Sum of the bytes acknowledged by the peer's kernel and the bytes received from it.
    pub moved: u64,
    /// Bytes sent and received that [`Socket::uncounted`] has returned.
    counted: (u64, u64),
}

impl Socket {
    /// The bytes acknowledged by the peer's kernel and those received from it, since the last call.
    pub fn uncounted(&mut self) -> Option<(u64, u64)> {
        let info = tcp_info(self.fd.as_raw_fd())?;
        let before = self.counted;
        // The kernel counts the SYN.
        self.counted = (info.tcpi_bytes_acked.saturating_sub(1), info.tcpi_bytes_received);
        Some((self.counted.0.saturating_sub(before.0), self.counted.1.saturating_sub(before.1)))
    }

    /// Whether there is nothing to read and the peer has not closed.
    pub fn is_silent(&self) -> bool {
        use rustix::net::{RecvFlags, recv};
        let peeked = recv(&self.fd, &mut [0u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        matches!(peeked, Err(rustix::io::Errno::AGAIN))
    }

    /// Shuts down both directions with `shutdown(2)`: a blocked `connect`, `read` or `write` in another thread
    /// returns immediately. A connection attempt in progress is aborted (Linux: `inet_shutdown`, case
    /// `TCP_SYN_SENT`).
    pub fn cut(&self) {
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both); // fails if it is closed already
    }
}

/// This process's TCP sockets that are connected, or connecting, to one of `peers`.
pub fn sockets_to(peers: &[SocketAddr]) -> Vec<Socket> {
    let mut found: Vec<Socket> = Vec::new();
    for socket in open_descriptors().into_iter().filter_map(tcp) {
        // A duplicate may have taken a number still to come (that of the listing itself).
        let new = found.iter().all(|s| s.inode != socket.inode);
        if new && peer(&socket.fd).is_some_and(|p| peers.contains(&p)) {
            found.push(socket);
        }
    }
    found
}

/// The address a socket is connected or connecting to: while connecting, `getpeername` fails but `SO_PEERNAME` does
/// not (Linux: `inet_getname` with peer = 2).
fn peer(socket: &OwnedFd) -> Option<SocketAddr> {
    let mut b = [0u8; size_of::<libc::sockaddr_in6>()];
    // It rejects a length larger than the address: try IPv6's first, then IPv4's.
    let taken = [b.len(), size_of::<libc::sockaddr_in>()].into_iter().any(|n| {
        let mut len = n as libc::socklen_t;
        let (fd, to) = (socket.as_raw_fd(), b.as_mut_ptr());
        // SAFETY: the kernel writes at most `len` bytes to `b`, which is at least that long, and the new length to `len`.
        let done = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERNAME, to.cast(), &mut len) };
        done == 0
    });
    if !taken {
        return None;
    }
    // sockaddr_in: family, port, address. sockaddr_in6: family, port, flow, address.
    let port = u16::from_be_bytes([b[2], b[3]]);
    match i32::from(u16::from_ne_bytes([b[0], b[1]])) {
        libc::AF_INET => Some((<[u8; 4]>::try_from(&b[4..8]).ok()?, port).into()),
        libc::AF_INET6 => Some((<[u8; 16]>::try_from(&b[8..24]).ok()?, port).into()),
        _ => None,
    }
}

/// Open descriptor numbers; without `/proc` (an empty chroot) all numbers up to 4,096.
fn open_descriptors() -> Vec<RawFd> {
    let Ok(all) = std::fs::read_dir("/proc/self/fd") else { return (0..4096).collect() };
    all.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// The TCP socket behind a descriptor number; `None` for anything else. Checked before duplicating, because closing a
/// duplicate of a file would release the process's POSIX locks on that file.
fn tcp(number: RawFd) -> Option<Socket> {
    tcp_info(number)?;
    // SAFETY: F_DUPFD_CLOEXEC takes any number and fails with EBADF where nothing is open; it touches no memory.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return None;
    }
    // SAFETY: `copy` was opened by the call above and has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(copy) };
    let info = tcp_info(fd.as_raw_fd())?; // check again: the number may have been reused in between
    let inode = rustix::fs::fstat(&fd).ok()?.st_ino;
    Some(Socket { fd, inode, moved: info.tcpi_bytes_acked + info.tcpi_bytes_received, counted: (0, 0) })
}

/// Zero if the kernel holds nothing for this TCP socket that the peer's kernel has not acknowledged; and the bytes that it
/// has acknowledged.
pub fn unacknowledged(socket: &impl AsRawFd) -> Option<(u32, u64)> {
    let info = tcp_info(socket.as_raw_fd())?;
    Some((info.tcpi_unacked.saturating_add(info.tcpi_notsent_bytes), info.tcpi_bytes_acked))
}

fn tcp_info(number: RawFd) -> Option<libc::tcp_info> {
    // SAFETY: all fields are integers, for which zero is valid; an older kernel fills in fewer of them.
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
    fn all_signals_but_faults_are_blocked_and_threads_inherit_it() {
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

    /// Fails when `cut` closes its duplicate instead of shutting the connection down: the read then waits for its 20
    /// s.
    #[test]
    fn a_blocked_read_returns_when_its_socket_is_cut() {
        ["127.0.0.1:0", "[::1]:0"].into_iter().for_each(cut_at);
    }

    fn cut_at(at: &str) {
        let Ok(listener) = TcpListener::bind(at) else { return assert!(at.starts_with('['), "no IPv4") };
        let addr = listener.local_addr().unwrap();
        let mut client = TcpStream::connect_timeout(&addr, Duration::from_secs(5)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let reader = std::thread::spawn(move || {
            let began = Instant::now();
            (client.read(&mut [0; 1]).ok(), began.elapsed())
        });
        let sockets = sockets_to(&[addr]);
        assert_eq!(sockets.len(), 1, "not found, or another's: {sockets:?}");
        sockets.iter().for_each(Socket::cut);
        drop(sockets);
        let (read, took) = reader.join().unwrap();
        assert_eq!(read, Some(0));
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
}
