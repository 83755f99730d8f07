//! Serves the live status on a Unix socket and writes the metrics file, in a thread of its own, so that a slow reader
//! delays no other work. The socket accepts no input.

use super::from_json::FromJson;
use super::{Board, metrics, snapshot::Snapshot};
use crate::lock::lock;
use crate::waker::poll_for;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The socket's name in the state folder.
pub const SOCKET: &str = "status";

/// A reader that does not read the answer within this time is dropped.
const READER: Duration = Duration::from_secs(1);
/// How often the metrics file is written.
const METRICS: Duration = Duration::from_secs(15);
/// Pause after accept(2) failed, most likely because no descriptor was free.
const RETRY: Duration = Duration::from_secs(1);
/// The client's time limit for the whole answer, and its size limit.
const ANSWER: Duration = Duration::from_secs(5);
const MOST_BYTES: u64 = 256 << 20;

/// The running thread. Dropping it ends the thread and removes the socket.
#[derive(Debug)]
pub struct StatusServer {
    /// A byte means "write the metrics now"; closing ends the thread.
    wake: Option<UnixStream>,
    textfile: Textfile,
    thread: Option<JoinHandle<()>>,
}

/// The metrics file; `None`: none.
type Textfile = Arc<Mutex<Option<PathBuf>>>;

/// Serves snapshots of `board` in `folder`. Writes no metrics before [`StatusServer::metrics`] is called. If the
/// socket cannot be created, that is logged, and `status` shows only the saved state. Without a folder there is no
/// socket.
pub fn start(board: Arc<Board>, folder: Option<&Path>) -> io::Result<StatusServer> {
    let textfile = Textfile::default();
    let Some(folder) = folder else { return Ok(StatusServer { wake: None, textfile, thread: None }) };
    let listener = match listen(folder) {
        Ok(listener) => Some(listener),
        Err(e) => {
            log::warn!(
                "status socket in {}: {e}; `logagent status` will show only the saved state",
                folder.display()
            );
            None
        }
    };
    let socket = listener.as_ref().map(|_| folder.join(SOCKET));
    let (wake, woken) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    let _ = board.alarm.set(wake.try_clone()?);
    let to = textfile.clone();
    let thread = thread::Builder::new().name("status".into()).stack_size(128 << 10).spawn(move || {
        serve(&board, listener.as_ref(), &to, &woken);
        if let Some(socket) = socket {
            let _ = fs::remove_file(socket); // a stale socket is harmless
        }
    })?;
    Ok(StatusServer { wake: Some(wake), textfile, thread: Some(thread) })
}

impl StatusServer {
    /// Writes the metrics to this file, now and periodically; `None` stops that. A file no longer used is removed, so
    /// that stale values are not mistaken for current ones.
    pub fn metrics(&self, textfile: Option<PathBuf>) {
        *lock(&self.textfile) = textfile;
        if let Some(mut wake) = self.wake.as_ref() {
            let _ = wake.write(&[0]); // fails if the thread has ended, which it has logged
        }
    }
}

impl Drop for StatusServer {
    fn drop(&mut self) {
        if let Some(wake) = self.wake.take() {
            let _ = wake.shutdown(Shutdown::Both); // the board has a clone
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(board: &Board, listener: Option<&UnixListener>, textfile: &Textfile, woken: &UnixStream) {
    let (mut to, mut metrics_at): (Option<PathBuf>, Option<Instant>) = (None, None);
    let mut failed = false;
    let (mut deaf_until, mut refused): (Option<Instant>, bool) = (None, false);
    loop {
        let now = Instant::now();
        if let (Some(path), Some(_)) = (&to, metrics_at.filter(|at| *at <= now)) {
            failed = write_metrics(path, board, now, failed);
            metrics_at = Some(now + METRICS);
        }
        deaf_until = deaf_until.filter(|until| *until > now);
        let next_at = [metrics_at.filter(|_| to.is_some()), deaf_until].into_iter().flatten().min();
        let wait = next_at.map(|at| at.saturating_duration_since(now));
        match next(listener.filter(|_| deaf_until.is_none()), woken, wait) {
            Ok(ServerEvent::End) => return,
            Ok(ServerEvent::Metrics) => {
                let asked = lock(textfile).clone();
                if let Some(left) = to.filter(|left| asked.as_ref() != Some(left)) {
                    let _ = fs::remove_file(left); // it may never have been written
                }
                (to, metrics_at) = (asked, Some(Instant::now()));
            }
            Ok(ServerEvent::Nothing) => {}
            Ok(ServerEvent::Reader(stream)) => {
                if std::mem::take(&mut refused) {
                    log::info!("status socket: answers again");
                }
                let _ = answer(board, stream); // a reader that does not read it gets nothing
            }
            Err(e) => {
                if !std::mem::replace(&mut refused, true) {
                    log::warn!(
                        "status socket: {e}; `logagent status` gets no answer at the moment, retrying"
                    );
                }
                deaf_until = Some(Instant::now() + RETRY);
            }
        }
    }
}

/// Returns whether it failed; logs changes of that.
fn write_metrics(path: &Path, board: &Board, now: Instant, failed: bool) -> bool {
    let done = metrics::write(path, &Snapshot::take(board, now));
    match &done {
        Err(e) if !failed => log::warn!(
            "write metrics {}: {e}; create its folder, and let the agent's user write there",
            path.display()
        ),
        Ok(()) if failed => log::info!("metrics are written again"),
        _ => {}
    }
    done.is_err()
}

enum ServerEvent {
    End,
    Metrics,
    Nothing,
    Reader(UnixStream),
}

fn next(
    listener: Option<&UnixListener>,
    woken: &UnixStream,
    wait: Option<Duration>,
) -> io::Result<ServerEvent> {
    let mut fds = vec![PollFd::new(woken, PollFlags::IN)];
    fds.extend(listener.map(|l| PollFd::new(l, PollFlags::IN)));
    match poll_for(&mut fds, wait) {
        Ok(_) if !fds[0].revents().is_empty() => {
            let mut woken = woken;
            let end = woken.read(&mut [0; 64]).is_ok_and(|n| n == 0);
            return Ok(if end { ServerEvent::End } else { ServerEvent::Metrics });
        }
        Ok(_) => {}
        Err(e) => {
            let _ = crossbeam_channel::after(RETRY).recv(); // there is no event for free kernel memory
            return Err(e);
        }
    }
    let Some(listener) = listener.filter(|_| fds[1].revents().contains(PollFlags::IN)) else {
        return Ok(ServerEvent::Nothing);
    };
    match listener.accept() {
        Ok((stream, _)) => Ok(ServerEvent::Reader(stream)),
        // The client has already gone.
        Err(e) if e.kind() == ErrorKind::WouldBlock || e.kind() == ErrorKind::ConnectionAborted => {
            Ok(ServerEvent::Nothing)
        }
        Err(e) => Err(e),
    }
}

/// Sends the whole answer within [`READER`], however slowly it is read.
fn answer(board: &Board, mut stream: UnixStream) -> io::Result<()> {
    let json = serde_json::to_vec(&Snapshot::take(board, Instant::now()))?;
    let until = Instant::now() + READER;
    let mut rest = &json[..];
    while !rest.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        match stream.write(rest) {
            Ok(n) => rest = &rest[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Listens on the socket in `folder`. The caller holds the folder's lock, so an existing socket is stale.
fn listen(folder: &Path) -> io::Result<UnixListener> {
    let path = folder.join(SOCKET);
    match fs::symlink_metadata(&path) {
        Ok(there) if there.file_type().is_socket() => fs::remove_file(&path)?,
        Ok(_) => return Err(io::Error::other("a file with this name exists and is not a socket")),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Set the mode before the socket has a name, so that no other user can ever connect (Linux derives the name's
    // mode from the socket's).
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    let (_folder, address) = address(folder)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 16)?;
    Ok(UnixListener::from(socket))
}

/// A socket address holds 108 bytes (unix(7)): a longer path goes through the folder's descriptor.
fn address(folder: &Path) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let held = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let address = SocketAddrUnix::new(folder.join(SOCKET))
        .or_else(|_| SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", held.as_fd().as_raw_fd())))?;
    Ok((held, address))
}

fn late(e: io::Error) -> io::Error {
    if e.kind() != ErrorKind::WouldBlock {
        return e;
    }
    io::Error::new(ErrorKind::TimedOut, format!("no answer within {} s", ANSWER.as_secs()))
}

/// Asks the agent running on `folder`. `None`: none is running.
pub fn ask(folder: &Path) -> io::Result<Option<Snapshot>> {
    let absent = |e: &io::Error| matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused);
    let connected = address(folder).and_then(|(_folder, address)| {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // A stopped agent accepts nothing: once its queue is full, connecting takes as long as the answer.
        set_socket_timeout(&socket, Timeout::Send, Some(ANSWER))?;
        rustix::net::connect(&socket, &address)?;
        Ok(UnixStream::from(socket))
    });
    let stream = match connected {
        Ok(stream) => stream,
        Err(e) if absent(&e) => return Ok(None),
        Err(e) => return Err(late(e)),
    };
    stream.set_read_timeout(Some(ANSWER))?;
    let mut json = Vec::new();
    stream.take(MOST_BYTES).read_to_end(&mut json).map_err(late)?;
    if json.is_empty() {
        return Ok(None); // the agent just exited
    }
    Ok(Some(Snapshot::from_json(&serde_json::from_slice(&json)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn live(folder: &Path, board: &Arc<Board>) -> StatusServer {
        start(board.clone(), Some(folder)).unwrap()
    }

    /// Fails when the socket stays after exit, when a stale one blocks a new one, or when other users may connect.
    #[test]
    fn each_client_gets_one_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ask(dir.path()).unwrap(), None);
        let board = Arc::new(Board::default());
        *board.driver() = "stdout".into();
        let running = live(dir.path(), &board);
        for _ in 0..3 {
            assert_eq!(ask(dir.path()).unwrap().unwrap().driver, "stdout");
        }
        let socket = dir.path().join(SOCKET);
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        drop(running);
        assert!(!socket.exists());
        drop(UnixListener::bind(&socket).unwrap()); // as left by a killed agent
        assert_eq!(ask(dir.path()).unwrap(), None);
        let _again = live(dir.path(), &board);
        assert!(ask(dir.path()).unwrap().is_some());
    }

    /// Fails when a client that never reads delays the next one, or the exit.
    #[test]
    fn a_slow_reader_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let board = Arc::new(Board::default());
        for i in 0..5000 {
            board.files().entry(format!("/var/log/some/long/path/{i}").into()).or_default();
        }
        let running = live(dir.path(), &board);
        let _slow = UnixStream::connect(dir.path().join(SOCKET)).unwrap();
        let before = Instant::now();
        assert_eq!(ask(dir.path()).unwrap().unwrap().files.len(), 5000);
        assert!(before.elapsed() < READER + Duration::from_secs(10));
        drop(running);
        assert!(before.elapsed() < READER + Duration::from_secs(20));
    }

    /// Fails when connecting to an agent whose queue is full waits forever, or when the reason is not named.
    #[test]
    fn a_stopped_agent_does_not_keep_anyone_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let _never_accepts = listen(dir.path()).unwrap();
        let asked = Instant::now();
        let answers = thread::scope(|scope| {
            let asking: Vec<_> = (0..20).map(|_| scope.spawn(|| ask(dir.path()).unwrap_err())).collect();
            asking.into_iter().map(|a| a.join().unwrap().to_string()).collect::<Vec<_>>()
        });
        assert!(asked.elapsed() < 3 * ANSWER, "{:?}", asked.elapsed());
        assert!(answers.iter().all(|a| a == "no answer within 5 s"), "{answers:?}");
    }

    /// Fails when a deep state folder has no live status.
    #[test]
    fn a_long_path_works() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("x".repeat(120));
        fs::create_dir(&folder).unwrap();
        let _live = live(&folder, &Arc::new(Board::default()));
        assert!(ask(&folder).unwrap().is_some());
    }

    #[test]
    fn a_file_that_is_not_a_socket_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(SOCKET), "mine").unwrap();
        drop(live(dir.path(), &Arc::new(Board::default())));
        assert_eq!(fs::read_to_string(dir.path().join(SOCKET)).unwrap(), "mine");
    }

    /// Fails when metrics are written before they are requested, when they come later than that, or when a replaced
    /// file stays behind.
    #[test]
    fn metrics_are_written_on_request_to_the_given_file() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a.prom"), dir.path().join("b.prom"));
        let board = Arc::new(Board::default());
        let running = live(dir.path(), &board);
        let says = |path: &Path, files: usize| {
            fs::read_to_string(path).is_ok_and(|t| t.contains(&format!("\nlogagent_files {files}\n")))
        };
        let soon = |path: &Path, files: usize| {
            let (tick, before) = (crossbeam_channel::tick(Duration::from_millis(5)), Instant::now());
            while !says(path, files) {
                tick.recv().unwrap();
                assert!(before.elapsed() < Duration::from_secs(5), "{}", path.display());
            }
        };
        board.files().entry("/a".into()).or_default();
        running.metrics(Some(a.clone()));
        soon(&a, 1);
        board.files().entry("/b".into()).or_default();
        running.metrics(Some(a.clone()));
        soon(&a, 2);
        running.metrics(Some(b.clone()));
        soon(&b, 2);
        assert!(!a.exists());
        running.metrics(None);
        drop(running);
        assert!(!b.exists());
    }
}
