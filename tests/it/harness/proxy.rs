//! A proxy between agent and brokers that knows Kafka's framing: forwards, delays, throttles, swallows, cuts. It
//! replaces the addresses in the brokers' answers by its own, so that everything goes through it. Changes nothing
//! else.

use super::{accept_while, limit_the_suite, lock, millis, pause, scripted::Api, wire::read_frame};
use std::{
    collections::HashMap,
    io::{self, Write},
    net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// What happens to all traffic from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Each answer is delayed by this much; answers overlap, as on a link with a long round trip.
    Delay(Duration),
    /// Bytes a second towards the brokers, per connection.
    Bandwidth(u64),
    /// Connections are accepted and stay open, but nothing passes either way.
    BlackHole,
    /// New connections are closed immediately; open ones are cut.
    Refuse,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    DropResponse,
    CutRequest(usize),
}

struct State {
    mode: Mode,
    faults: Vec<(i16, Fault)>,
    /// Real port and the proxy's port for it.
    ports: Vec<(u16, u16)>,
    open: Vec<TcpStream>,
    ended: bool,
}

/// Runs until dropped.
pub struct Proxy {
    state: Arc<Mutex<State>>,
    /// Bootstrap list of the proxy's own ports, in the brokers' order.
    pub address: String,
    connections: Arc<AtomicUsize>,
    sent: Arc<AtomicU64>,
}

impl Proxy {
    /// In front of one broker or of several, `host:port,host:port`.
    pub fn to(brokers: &str) -> Proxy {
        limit_the_suite();
        let state =
            State { mode: Mode::Pass, faults: Vec::new(), ports: Vec::new(), open: Vec::new(), ended: false };
        let state = Arc::new(Mutex::new(state));
        let (connections, sent) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
        let mut address = Vec::new();
        for broker in brokers.split(',') {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let target = broker.to_socket_addrs().unwrap().next().unwrap();
            let own = listener.local_addr().unwrap();
            lock(&state).ports.push((target.port(), own.port()));
            address.push(own.to_string());
            let (state, connections, sent) = (state.clone(), connections.clone(), sent.clone());
            thread::spawn(move || {
                accept_while(
                    &listener,
                    || !lock(&state).ended,
                    |client| {
                        connections.fetch_add(1, Ordering::Relaxed);
                        if lock(&state).mode != Mode::Refuse {
                            join(client, target, &state, &sent);
                        }
                    },
                );
            });
        }
        Proxy { state, address: address.join(","), connections, sent }
    }

    pub fn mode(&self, mode: Mode) {
        lock(&self.state).mode = mode;
        if mode == Mode::Refuse {
            self.cut();
        }
    }
    /// The next request of this kind is forwarded, but instead of its answer the connection is closed.
    pub fn drop_next_response(&self, api: Api) {
        lock(&self.state).faults.push((api.key(), Fault::DropResponse));
    }
    /// Only this many bytes of the next request of this kind are forwarded; then the connection is closed.
    pub fn cut_next_request(&self, api: Api, after: usize) {
        lock(&self.state).faults.push((api.key(), Fault::CutRequest(after)));
    }
    /// How many of the requested faults have not happened yet.
    pub fn pending(&self) -> usize {
        lock(&self.state).faults.len()
    }
    /// Closes every open connection.
    pub fn cut(&self) {
        for stream in lock(&self.state).open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
    /// Bytes forwarded to the brokers so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        lock(&self.state).ended = true;
        self.cut();
    }
}

/// Requests in flight on a connection: by correlation id, whether the answer is to be dropped.
type Asked = Arc<Mutex<HashMap<i32, bool>>>;

fn join(client: TcpStream, target: std::net::SocketAddr, state: &Arc<Mutex<State>>, sent: &Arc<AtomicU64>) {
    let Ok(server) = TcpStream::connect_timeout(&target, millis(1000)) else {
        return; // as if the port were closed: the client sees its connection closed
    };
    let _ = server.set_nodelay(true);
    for stream in [&client, &server] {
        lock(state).open.push(stream.try_clone().unwrap());
    }
    let asked = Asked::default();
    let both = [client.try_clone().unwrap(), server.try_clone().unwrap()];
    let close = move || both.iter().for_each(|s| drop(s.shutdown(Shutdown::Both)));
    let (up, down) = ((client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client));
    {
        let (state, asked, sent, close) = (state.clone(), asked.clone(), sent.clone(), close);
        let again = up.0.try_clone().unwrap();
        thread::spawn(move || {
            let _ = requests(up.0, up.1, &state, &asked, &sent);
            close();
            drop(again);
        });
    }
    let state = state.clone();
    thread::spawn(move || {
        let ends = [down.0.try_clone().unwrap(), down.1.try_clone().unwrap()];
        let _ = responses(down.0, down.1, &state, &asked);
        ends.iter().for_each(|s| drop(s.shutdown(Shutdown::Both)));
    });
}

/// Waits while the proxy is a black hole; an error when it has been dropped.
fn wait_passable(state: &Mutex<State>) -> io::Result<Mode> {
    loop {
        let (mode, ended) = {
            let state = lock(state);
            (state.mode, state.ended)
        };
        if ended {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if mode != Mode::BlackHole {
            return Ok(mode);
        }
        pause(millis(10));
    }
}

fn requests(
    mut from: TcpStream,
    mut to: TcpStream,
    state: &Mutex<State>,
    asked: &Asked,
    sent: &AtomicU64,
) -> io::Result<()> {
    loop {
        wait_passable(state)?;
        let frame = read_frame(&mut from)?;
        let mode = wait_passable(state)?;
        if frame.len() < 12 {
            to.write_all(&frame)?;
            continue;
        }
        let api = i16::from_be_bytes([frame[4], frame[5]]);
        let correlation = i32::from_be_bytes(frame[8..12].try_into().unwrap());
        let fault = {
            let mut state = lock(state);
            let at = state.faults.iter().position(|(of, _)| *of == api);
            at.map(|at| state.faults.remove(at).1)
        };
        if let Some(Fault::CutRequest(after)) = fault {
            to.write_all(&frame[..after.min(frame.len())])?;
            return Ok(());
        }
        asked.lock().unwrap().insert(correlation, fault.is_some());
        match mode {
            Mode::Bandwidth(rate) => {
                for slice in frame.chunks((rate / 50).max(1) as usize) {
                    to.write_all(slice)?;
                    sent.fetch_add(slice.len() as u64, Ordering::Relaxed);
                    pause(millis(20));
                    wait_passable(state)?;
                }
            }
            _ => {
                to.write_all(&frame)?;
                sent.fetch_add(frame.len() as u64, Ordering::Relaxed);
            }
        }
    }
}

fn responses(mut from: TcpStream, to: TcpStream, state: &Arc<Mutex<State>>, asked: &Asked) -> io::Result<()> {
    let (out, due) = mpsc::channel::<(Instant, Vec<u8>)>();
    let passing = state.clone();
    let writer = thread::spawn(move || {
        let mut to = to;
        for (at, frame) in due {
            pause(at.saturating_duration_since(Instant::now()));
            if wait_passable(&passing).is_err() || to.write_all(&frame).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
    while let Ok(mut frame) = read_frame(&mut from) {
        let correlation = frame.get(4..8).map_or(0, |b| i32::from_be_bytes(b.try_into().unwrap()));
        if asked.lock().unwrap().remove(&correlation) == Some(true) {
            break;
        }
        let mode = {
            let state = lock(state);
            rewrite(&mut frame, &state.ports);
            state.mode
        };
        let delay = if let Mode::Delay(time) = mode { time } else { Duration::ZERO };
        let _ = out.send((Instant::now() + delay, frame));
    }
    drop(out);
    let _ = writer.join();
    Ok(())
}

/// `127.0.0.1` followed by a broker's port, as Metadata has it in all versions.
pub fn rewrite(frame: &mut [u8], ports: &[(u16, u16)]) {
    const HOST: &[u8] = b"127.0.0.1";
    let found: Vec<usize> = memchr::memmem::find_iter(frame, HOST).map(|at| at + HOST.len()).collect();
    for at in found {
        let Some(place) = frame.get_mut(at..at + 4) else { continue };
        let announced = i32::from_be_bytes((&*place).try_into().unwrap());
        if let Some((_, own)) = ports.iter().find(|(real, _)| i32::from(*real) == announced) {
            place.copy_from_slice(&i32::from(*own).to_be_bytes());
        }
    }
}
