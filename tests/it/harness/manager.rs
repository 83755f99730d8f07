//! The service manager's end of `NOTIFY_SOCKET`: takes messages, and keeps descriptors as systemd's store does. Starts nothing.

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

/// Listens until it is dropped, as the queue of a socket is short.
pub struct Manager(Arc<Mutex<Heard>>);

#[derive(Default)]
struct Heard {
    messages: VecDeque<String>,
    store: Vec<(String, OwnedFd)>,
    /// How often nothing came for a moment.
    silences: u64,
}

impl Manager {
    /// `store`: what is kept from before, and passed on.
    pub fn bind(path: &Path, store: Vec<(String, OwnedFd)>) -> Manager {
        let socket = UnixDatagram::bind(path).expect("a notify socket");
        socket.set_read_timeout(Some(millis(10))).unwrap();
        let heard = Arc::new(Mutex::new(Heard { store, ..Heard::default() }));
        let weak = Arc::downgrade(&heard);
        thread::spawn(move || listen(&socket, &weak));
        Manager(heard)
    }

    /// The next message, if there is one.
    pub fn next(&self) -> Option<String> {
        self.heard().messages.pop_front()
    }

    /// What is kept, after all that was sent by now.
    pub fn kept(&self) -> Vec<String> {
        self.wait_for_silence();
        self.heard().store.iter().map(|(name, _)| name.clone()).collect()
    }

    /// The same with the descriptors, which are kept no longer.
    pub fn take(&self) -> Vec<(String, OwnedFd)> {
        self.wait_for_silence();
        self.heard().store.drain(..).collect()
    }

    fn wait_for_silence(&self) {
        let before = self.heard().silences;
        wait_until(SOON, "silence", || self.heard().silences > before + 1);
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap()
    }
}

fn listen(socket: &UnixDatagram, heard: &Weak<Mutex<Heard>>) {
    while let Some(heard) = heard.upgrade() {
        let next = receive(socket);
        let mut heard = heard.lock().unwrap();
        match next {
            Some((message, fds)) => heard.take(message, fds),
            None => heard.silences += 1,
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

impl Heard {
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
