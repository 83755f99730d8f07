//! The service manager's end of `NOTIFY_SOCKET`: receives messages, and keeps descriptors as systemd's store does.
//! Starts nothing.

use super::{SOON, millis, wait_until};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use std::{
    collections::VecDeque,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, Weak},
    thread,
};

/// Reads until it is dropped, since a socket's queue is short.
pub struct Manager(Arc<Mutex<Received>>);

#[derive(Default)]
struct Received {
    messages: VecDeque<String>,
    store: Vec<(String, OwnedFd)>,
    /// How often the socket was empty.
    silences: u64,
}

impl Manager {
    /// `store`: descriptors kept from an earlier run.
    pub fn bind(path: &Path, store: Vec<(String, OwnedFd)>) -> Manager {
        let socket = UnixDatagram::bind(path).expect("a notify socket");
        socket.set_read_timeout(Some(millis(10))).unwrap();
        let received = Arc::new(Mutex::new(Received { store, ..Received::default() }));
        let weak = Arc::downgrade(&received);
        thread::spawn(move || listen(&socket, &weak));
        Manager(received)
    }

    /// The next message, if any.
    pub fn next(&self) -> Option<String> {
        self.received().messages.pop_front()
    }

    /// The names of the stored descriptors, after everything sent so far.
    pub fn kept(&self) -> Vec<String> {
        self.wait_for_silence();
        self.received().store.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Removes the stored descriptors and returns them.
    pub fn take(&self) -> Vec<(String, OwnedFd)> {
        self.wait_for_silence();
        self.received().store.drain(..).collect()
    }

    fn wait_for_silence(&self) {
        let before = self.received().silences;
        wait_until(SOON, "silence", || self.received().silences > before + 1);
    }

    fn received(&self) -> MutexGuard<'_, Received> {
        self.0.lock().unwrap()
    }
}

fn listen(socket: &UnixDatagram, received: &Weak<Mutex<Received>>) {
    while let Some(received) = received.upgrade() {
        let next = receive(socket);
        let mut received = received.lock().unwrap();
        match next {
            Some((message, fds)) => received.take(message, fds),
            None => received.silences += 1,
        }
    }
}

fn receive(socket: &UnixDatagram) -> Option<(String, Vec<OwnedFd>)> {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let got =
        recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut rights, RecvFlags::CMSG_CLOEXEC).ok()?;
    assert!(!got.flags.contains(ReturnFlags::CTRUNC), "one descriptor at most");
    let message = String::from_utf8(bytes[..got.bytes].to_vec()).expect("text");
    let fds = |m| if let RecvAncillaryMessage::ScmRights(fds) = m { Some(fds) } else { None };
    let fds = rights.drain().filter_map(fds).flatten().collect();
    Some((message, fds))
}

impl Received {
    fn take(&mut self, message: String, fds: Vec<OwnedFd>) {
        let said = |what: &str| message.lines().find_map(|line| line.strip_prefix(what));
        let name = said("FDNAME=").unwrap_or("stored").to_owned();
        if said("FDSTOREREMOVE=") == Some("1") {
            self.store.retain(|(other, _)| *other != name);
        }
        assert_eq!(fds.is_empty(), said("FDSTORE=").is_none(), "{message}");
        assert!(fds.is_empty() || said("FDPOLL=") == Some("0"), "a file cannot be polled: {message}");
        self.store.extend(fds.into_iter().map(|fd| (name.clone(), fd)));
        self.messages.push_back(message);
    }
}
