//! A slow uplink between one program and a broker: limited bits a second each way, and a delay *of the application's
//! bytes*. TCP's own behavior on a link with a long round trip (slow start, lost packets) is not included. Addresses in
//! the broker's answers are replaced by the link's own, so that everything goes through it.

use crate::harness::{accept_while, pause, rewrite, secs, wire::read_frame};
use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

/// Bytes that a sender can have buffered in addition to those on the link: as few as sockets allow.
const SOCKET_BUFFER: usize = 64 << 10;
const PIECE: usize = 4 << 10;
/// A read that took at most this long found its bytes already waiting.
const AT_ONCE: Duration = Duration::from_micros(500);
/// Pieces on the link: 200 ms at 10 Mbit/s are 61.
const ON_THE_LINE: usize = 256;

/// Runs until dropped.
pub struct Link {
    pub address: String,
    up: Arc<Direction>,
    ended: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

/// One direction, shared by all connections.
struct Direction {
    bytes_per_s: f64,
    /// One way.
    delay: Duration,
    free: Mutex<Instant>,
    passed: AtomicU64,
    first: OnceLock<Instant>,
}

impl Direction {
    fn of(bits_per_s: u64, delay: Duration) -> Arc<Direction> {
        let free = Mutex::new(Instant::now());
        Arc::new(Direction {
            bytes_per_s: bits_per_s as f64 / 8.0,
            delay,
            free,
            passed: AtomicU64::new(0),
            first: OnceLock::new(),
        })
    }
    /// Waits until this many bytes, available since `there`, have been sent; returns when they arrive. A late wake-up
    /// of this thread does not count against the link.
    fn send(&self, bytes: usize, there: Instant) -> Instant {
        self.first.get_or_init(Instant::now);
        let gone = {
            let mut free = self.free.lock().unwrap();
            *free = (*free).max(there) + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s);
            *free
        };
        pause(gone.saturating_duration_since(Instant::now()));
        self.passed.fetch_add(bytes as u64, Ordering::Relaxed);
        gone + self.delay
    }
}

impl Link {
    /// `round_trip`: the added delay of an answer.
    pub fn to(broker: &str, bits_per_s: u64, round_trip: Duration) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // Accepted connections inherit it.
        rustix::net::sockopt::set_socket_recv_buffer_size(&listener, SOCKET_BUFFER).unwrap();
        let own = listener.local_addr().unwrap();
        let target: SocketAddr = broker.parse().unwrap();
        let (up, down) =
            (Direction::of(bits_per_s, round_trip / 2), Direction::of(bits_per_s, round_trip / 2));
        let ended = Arc::new(AtomicBool::new(false));
        let open = Arc::new(Mutex::new(Vec::new()));
        let link =
            Link { address: own.to_string(), up: up.clone(), ended: ended.clone(), open: open.clone() };
        thread::spawn(move || {
            accept_while(
                &listener,
                || !ended.load(Ordering::Relaxed),
                |client| drop(connect(client, target, own.port(), &up, &down, &open)),
            );
        });
        link
    }
    /// When the first byte arrived.
    pub fn first(&self) -> Option<Instant> {
        self.up.first.get().copied()
    }
    /// Bytes towards the broker so far.
    pub fn sent(&self) -> u64 {
        self.up.passed.load(Ordering::Relaxed)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn connect(
    client: TcpStream,
    target: SocketAddr,
    own: u16,
    up: &Arc<Direction>,
    down: &Arc<Direction>,
    open: &Mutex<Vec<TcpStream>>,
) -> io::Result<()> {
    let server = TcpStream::connect_timeout(&target, secs(1))?;
    server.set_nodelay(true)?;
    for stream in [&client, &server] {
        open.lock().unwrap().push(stream.try_clone()?);
    }
    let (mut from, to, lane) = (client.try_clone()?, server.try_clone()?, up.clone());
    carry(to, move |line| {
        let (mut piece, mut there) = (vec![0; PIECE], Instant::now());
        loop {
            let asked = Instant::now();
            let n = from.read(&mut piece)?;
            if n == 0 {
                return Ok(());
            }
            if asked.elapsed() > AT_ONCE {
                there = Instant::now();
            }
            line.send((lane.send(n, there), piece[..n].to_vec())).map_err(io::Error::other)?;
        }
    });
    let (mut from, lane) = (server, down.clone());
    carry(client, move |line| {
        loop {
            let mut frame = read_frame(&mut from)?;
            rewrite(&mut frame, &[(target.port(), own)]);
            line.send((lane.send(frame.len(), Instant::now()), frame)).map_err(io::Error::other)?;
        }
    });
    Ok(())
}

type Due = (Instant, Vec<u8>);

/// One thread puts bytes on the link, another delivers them when they are due.
fn carry(mut to: TcpStream, mut put: impl FnMut(SyncSender<Due>) -> io::Result<()> + Send + 'static) {
    let (line, off): (SyncSender<Due>, Receiver<Due>) = sync_channel(ON_THE_LINE);
    thread::spawn(move || put(line));
    thread::spawn(move || {
        for (at, bytes) in off {
            pause(at.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
