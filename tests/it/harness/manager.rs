//! The service manager's end of `NOTIFY_SOCKET`: takes messages, and keeps descriptors as systemd's store does. Starts nothing.

use super::millis;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use std::{
    io::IoSliceMut,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    os::unix::net::UnixDatagram,
    path::Path,
    sync::{Mutex, MutexGuard},
};

pub struct Manager {
    socket: UnixDatagram,
    store: Mutex<Vec<(String, OwnedFd)>>,
}

impl Manager {
    /// `store`: what is kept from before, and passed on.
    pub fn bind(path: &Path, store: Vec<(String, OwnedFd)>) -> Manager {
        let socket = UnixDatagram::bind(path).expect("a notify socket");
        socket.set_read_timeout(Some(millis(20))).unwrap();
        Manager { socket, store: Mutex::new(store) }
    }

    /// The next message; waits a moment for one.
    pub fn next(&self) -> Option<String> {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut rights, flags).ok()?;
        assert!(!got.flags.contains(ReturnFlags::CTRUNC), "one descriptor at most");
        let message = String::from_utf8(bytes[..got.bytes].to_vec()).expect("text");
        let fds: Vec<OwnedFd> = rights
            .drain()
            .filter_map(|m| if let RecvAncillaryMessage::ScmRights(fds) = m { Some(fds) } else { None })
            .flatten()
            .collect();
        self.keep(&message, fds);
        Some(message)
    }

    fn keep(&self, message: &str, fds: Vec<OwnedFd>) {
        let said = |what: &str| message.lines().find_map(|line| line.strip_prefix(what));
        let name = said("FDNAME=").unwrap_or("stored").to_owned();
        if said("FDSTOREREMOVE=") == Some("1") {
            self.store().retain(|(other, _)| *other != name);
        }
        assert_eq!(fds.is_empty(), said("FDSTORE=").is_none(), "{message}");
        assert!(fds.is_empty() || said("FDPOLL=") == Some("0"), "a file cannot be polled: {message}");
        self.store().extend(fds.into_iter().map(|fd| (name.clone(), fd)));
    }

    /// Everything that is kept, after all messages that are there.
    pub fn kept(&self) -> MutexGuard<'_, Vec<(String, OwnedFd)>> {
        while self.next().is_some() {}
        self.store()
    }

    fn store(&self) -> MutexGuard<'_, Vec<(String, OwnedFd)>> {
        self.store.lock().unwrap()
    }
}
