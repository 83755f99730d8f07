//! The systemd notification protocol over `$NOTIFY_SOCKET` (sd_notify(3)): readiness, status, watchdog and descriptor
//! store. Does nothing without systemd.

use crate::error::Escaped;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg_addr};
use rustix::time::{ClockId, clock_gettime};
use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for room in systemd's queue; after that a message is dropped.
const PATIENCE: Duration = Duration::from_secs(2);

/// Handle to the service manager, if there is one; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Notify(Option<Arc<(UnixDatagram, SocketAddrUnix)>>);

impl Notify {
    /// Connects to the manager that started us. An unusable socket is logged once and not retried.
    pub fn from_env() -> Notify {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|n| !n.is_empty()) else {
            return Notify(None);
        };
        Self::to(&name).unwrap_or_else(|e| {
            log::warn!(
                "systemd: NOTIFY_SOCKET {}: {e}; systemd will not learn that the agent is ready",
                name.display()
            );
            Notify(None)
        })
    }

    /// `name` is a path, or `@` and the name of an abstract socket.
    fn to(name: &OsStr) -> io::Result<Notify> {
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddrUnix::new_abstract_name(rest)?,
            [b'/', ..] => SocketAddrUnix::new(name)?,
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "neither a path nor an abstract name",
                ));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Notify(Some(Arc::new((socket, address)))))
    }

    /// Whether there is a service manager.
    pub fn is_present(&self) -> bool {
        self.0.is_some()
    }

    /// Start-up is complete: config, state and watches are in place.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", Escaped(status)));
    }

    /// The config is being reloaded; [`Notify::ready`] marks the end (sd_notify(3), `RELOADING=1`).
    pub fn reloading(&self) {
        let now = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default();
        let micros = now.as_micros();
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    /// One line for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", Escaped(status)));
    }

    /// All threads are alive.
    pub fn watchdog(&self) {
        self.send("WATCHDOG=1");
    }

    pub fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={}", Escaped(status)));
    }

    /// Keeps this descriptor beyond our exit, under this name. (`FDPOLL=0`: a regular file has no hang-up to poll
    /// for.)
    pub fn store(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.try_send(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), &[fd])
    }

    /// Drops the descriptors kept under this name.
    pub fn forget(&self, name: &str) -> io::Result<()> {
        self.try_send(&format!("FDSTOREREMOVE=1\nFDNAME={}", Escaped(name)), &[])
    }

    fn send(&self, message: &str) {
        if let Err(e) = self.try_send(message, &[]) {
            log::debug!("systemd: {}: {e}", message.lines().next().unwrap_or_default());
        }
    }

    fn try_send(&self, message: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let Some(to) = &self.0 else { return Ok(()) };
        let (socket, address) = &**to;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !rights.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sendmsg_addr(socket, address, &[IoSlice::new(message.as_bytes())], &mut rights, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// How often [`Notify::watchdog`] must be called: half of the unit's `WatchdogSec`. `None` if there is no watchdog.
pub fn watchdog_interval() -> Option<Duration> {
    let var = |name| std::env::var(name).ok();
    interval(var("WATCHDOG_USEC").as_deref(), var("WATCHDOG_PID").as_deref(), std::process::id())
}

/// sd_watchdog_enabled(3): the variables may be meant for another process.
fn interval(micros: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    let micros: u64 = micros?.parse().ok().filter(|n| *n > 0)?;
    match pid {
        Some(pid) if pid.parse() != Ok(own) => None,
        _ => Some(Duration::from_micros(micros / 2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 512];
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let n = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    }

    #[test]
    fn messages_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("logagent-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        for (socket, name) in [
            (UnixDatagram::bind(&path).unwrap(), path.as_os_str()),
            (UnixDatagram::bind_addr(&abstract_address).unwrap(), OsStr::new(&format!("@{name}"))),
        ] {
            let notify = Notify::to(name).unwrap();
            notify.ready("3 files");
            assert_eq!(received(&socket), "READY=1\nSTATUS=3 files");
            notify.watchdog();
            assert_eq!(received(&socket), "WATCHDOG=1");
            notify.reloading();
            let said = received(&socket);
            let micros =
                said.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").and_then(|n| n.parse::<u64>().ok());
            assert!(micros.is_some_and(|n| n > 0), "{said}");
            notify.stopping("draining");
            assert_eq!(received(&socket), "STOPPING=1\nSTATUS=draining");
        }
    }

    /// Fails when the status is sent unescaped: a path with a newline could then inject READY=1 or MAINPID=.
    #[test]
    fn a_status_is_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Notify::to(path.as_os_str()).unwrap().status("stuck: /var/log/a\nMAINPID=1");
        assert_eq!(received(&socket), "STATUS=stuck: /var/log/a\\nMAINPID=1");
    }

    #[test]
    fn a_missing_manager_is_not_an_error() {
        let dir = tempfile::tempdir().unwrap();
        Notify::to(dir.path().join("none").as_os_str()).unwrap().ready("");
        Notify::default().ready("");
        assert!(Notify::to(OsStr::new("vsock:2:1234")).is_err());
    }

    #[test]
    fn intervals() {
        let half = Some(Duration::from_secs(15));
        assert_eq!(interval(Some("30000000"), None, 7), half);
        assert_eq!(interval(Some("30000000"), Some("7"), 7), half);
        assert_eq!(interval(Some("30000000"), Some("8"), 7), None);
        assert_eq!(interval(Some("0"), None, 7), None);
        assert_eq!(interval(Some("x"), None, 7), None);
        assert_eq!(interval(None, Some("7"), 7), None);
    }
}
