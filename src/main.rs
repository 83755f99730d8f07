//! A log agent for small Linux boxes: follows log files and delivers every line to Kafka with required acks. It loses no
//! line, and with exactly-once it stores none twice.
//!
//! The log files are the buffer: nothing is spooled. A saved position advances only over bytes that the broker has
//! acknowledged, so whatever a crash interrupts is read and sent again.
//!
//! # The path of a line
//!
//! ```text
//!  kernel ─▶ watch ──wake──▶ tail, one per file ──Chunk──▶ producer ◀──▶ broker sockets
//!        1 inotify fd            │ open, close   bounded      │    ▲      one poll(2)
//!                                ▼               channel      │    └── dialers, blocking clients
//!                             registry ◀───────────acks───────┘
//!                                │ ▲
//!                       snapshot ▼ │ saved
//!                              saver ─▶ state folder
//! ```
//!
//! A new line wakes `watch`, its tail and the producer; in a file that is written to often, only its tail, which then
//! reads the events itself (`own_events.rs`), and the producer. The broker's answer wakes the producer only if another line
//! waits for it; otherwise it is read together with the next line, or 50 ms later. The saver runs on its own clock. In an
//! idle agent, only `watch` wakes, every 30 s, for a walk of the patterns, in case an event was lost. Under load, and with
//! `linger`, events are read at intervals (`pace.rs`): many lines then cost one wake-up of each thread.
//!
//! 1. [`watch`] owns the two inotify instances for all followed files. It finds the files that match the patterns and wakes
//!    their tails. Events are hints: a lost one costs delay, never a line.
//! 2. [`tail`] runs one thread per followed path. It checks the path and its open files, lets the pure function
//!    [`tail::follow::decide`] choose the next steps, executes them, and waits with a deadline. What it reads is framed
//!    into [`chunk::Chunk`]s. [`tail::catchup`] finds bytes that were rotated, copied or compressed while the agent was
//!    not running. Which stream continues in which file is decided by the pure function `assign` in [`tail`], under
//!    one lock per folder; what identities alone decide is settled for all files of a walk before their tails start
//!    ([`tail::known`]). So the order in which threads start cannot matter. [`journal`] does the same for the files of the
//!    systemd journal, with one thread and one inotify instance per `[[journal]]`.
//! 3. [`streams`] is the registry of all streams: how far each one is framed, sent, acknowledged and saved. [`state`]
//!    saves it.
//! 4. [`producer`] is one thread that owns everything about sending: topic queues, partitions, sequence numbers, broker
//!    connections, and with exactly-once the intent log. Its core is pure. It gathers chunks into batch groups
//!    ([`producer::batch`]), keeps each partition's batches in order, and turns answers into acks; it alone decides on
//!    retries, splitting and dead letters. The loop around it calls a [`producer::driver::Driver`] and waits in one
//!    `poll(2)` for sockets, an eventfd ([`waker`]) and a deadline.
//! 5. The drivers are [`mod@kafka`] on our own sockets, [`kafka_crate`] on the `kafka` crate, and [`stdout`].
//!    [`kafka::auto`] probes the brokers and chooses between the first two.
//!
//! # When a position is saved
//!
//! The producer passes each ack to [`streams`], which advances the stream's position over contiguous acknowledged
//! ranges. The saver writes a snapshot of all positions to `offsets` in the state folder, by rename: within 100 ms of
//! the first ack of a run, then at most once a second while something changes (`state/schedule.rs`), and at the end.
//! `fsync` follows every 30 s (`sync`). An ack of anything beyond a gap is kept in the same snapshot, so after a crash
//! only the gap is read again. Before the first byte of a batch goes out, its sent mark or intent is written.
//!
//! # When a broker dies
//!
//! 1. The connection ends, or a response does not arrive in time (60 s with `acks = "all"`, otherwise 30 s, and 5 s
//!    more). The driver's session returns every batch of that connection to the core with `Verdict::Retry`, marked
//!    `maybe_stored` unless part of its request was still unsent; batches that were waiting for a request are returned
//!    as well. `kafka::broker` reconnects at once, and then with a growing pause.
//! 2. When reconnecting fails, `kafka::cluster` marks the broker's partitions as unavailable and refreshes the metadata
//!    soon. The partitioner then skips these partitions, unless the key or `fixed` names one of them.
//! 3. Each affected partition stops sending until all its batches are back (`Draining`), waits, and sends the first
//!    batch alone (`Probing`) to whichever broker leads it now, with the same sequence numbers. Once that one is stored,
//!    it sends the rest in order. See the diagram in `producer::partition`.
//! 4. Meanwhile chunks fill the byte budget and the channel; tails stop reading, and the log files hold the rest.
//!    [`producer::outage`] logs the outage and its end.
//!
//! # Threads
//!
//! | thread | owns | waits in |
//! |---|---|---|
//! | main ([`commands::run`]) | start-up order, reload, shutdown, watchdog | `select!` on signals, watch events, tails |
//! | `signals` | signal delivery; blocked everywhere else | the signal iterator |
//! | `watch` | its two inotify instances, patterns, folder listings | `poll(2)` on inotify and its eventfd |
//! | `ask`, for network file systems (short-lived) | one `statfs(2)` | the file system, which may hang |
//! | `tail …`, one per file | open files and framing state | its [`wake_slot`], with a deadline; of a busy file, `poll(2)` on its own inotify and an eventfd |
//! | `journal`, one per `[[journal]]` | the open files of one systemd journal | `poll(2)` on its own inotify, an eventfd, a deadline |
//! | `producer` | everything in [`producer`], [`mod@kafka`] and [`exactly_once`] | `poll(2)` on eventfd, sockets, a deadline |
//! | `saver` | writing `offsets` | a condition variable with a deadline |
//! | `status` | the status socket and the metrics file | `poll(2)` |
//! | `dial`, `choose` (short-lived) | one connection attempt; one probe | blocking calls with deadlines |
//! | `driver` (only for blocking clients) | one blocking client: the `kafka` crate or standard output | its order channel |
//!
//! Dialers and blocking clients may hang in name resolution or inside the `kafka` crate, the saver in a slow flash, and `ask`
//! in a dead mount.
//! Those threads are abandoned at exit; all others are joined.
//!
//! # Why it is built this way
//!
//! **Threads, no async runtime.** Regular files cannot be polled, so an async agent would read them on a thread pool
//! anyway. A thread per file has a small fixed stack, and each wait is an ordinary blocking call with a deadline. It
//! keeps the static binary small and lets a hanging NFS mount stop one file only.
//!
//! **One producer thread.** An earlier version had a coordinator, one worker per broker, and protocols to hand batches
//! back across threads and to stop one batch from overtaking another. Now a batch moves between its partition's queue and
//! a connection by calls within one thread, so nothing can overtake it on the way. Blocking work runs in helper threads
//! that return a finished result: a dialer resolves, connects, authenticates and hands over a ready non-blocking
//! connection; a blocking client reports verdicts.
//!
//! **One registry.** Position, progress and status of a stream used to be spread over several types and channels. Tails,
//! producer and saver now share one table, so the order of the offsets can be asserted in one place.
//!
//! **Record before sending.** The producer writes down what it is about to send, immediately before the first byte goes
//! to a socket: a high-water mark per stream ([`streams::sent_marks`]), which keeps `doubled_at_most` correct after a
//! kill, or with exactly-once the batch's intent ([`exactly_once`]), from which [`commands::recover`] rebuilds the batch.
//!
//! **Two drivers.** The own driver is about three times as fast and alone has timestamps, headers, idempotence, TLS and
//! SASL. The `kafka` crate serves brokers before 0.11. Its defects are listed in [`kafka_crate`].
//!
//! # Invariants
//!
//! Invariant: per stream, `saved ≤ acked ≤ sent ≤ framed`, asserted in release builds. A truncation starts a new stream,
//! so none of them ever moves back.
//!
//! Invariant: each byte that exists is read by exactly one tail.
//!
//! Invariant: every batch given to a driver is returned exactly once. A chunk is acknowledged when all its records
//! are stored, or are in the dead-letter file.
//!
//! Invariant: nothing overtakes a failed batch of its partition, and a topic, partition or broker in trouble delays only
//! its own lines.
//!
//! Invariant: every queue is bounded by its capacity, the byte budget ([`budget`]) or the number of files. Every wait has
//! a deadline or selects on [`stop::Stop`]. A tail holds nothing while it waits for memory.
//!
//! Invariant: a stage ends when its input channel closes. SIGTERM stops the tails, and the rest follows in the direction
//! of the data.
//!
//! Invariant: no stage imports another stage or [`config`]; [`commands::run`] alone knows all of them.
//!
//! # Modules in reading order
//!
//! [`record`] (shared types), [`chunk`], [`budget`] (memory), [`streams`], [`state`], [`watch`], [`tail`], [`journal`],
//! [`handover`] (from tails to registry and producer), [`producer`], [`mod@kafka`], [`kafka_crate`], [`exactly_once`],
//! [`config`], [`commands`].
//!
//! Around them: [`report`] (the status board, of which status, metrics and log lines are views), [`heartbeat`] (liveness
//! behind the watchdog), [`quota`] (shares of the dead-letter file), [`fdstore`] and [`commands::inherited`] (files that
//! outlive the process in systemd's descriptor store), [`links`] (trusted symlinks), [`sys`] (unsafe code).

mod backoff;
mod base64;
mod budget;
mod chunk;
mod cli;
mod clock;
mod commands;
mod config;
mod error;
mod exactly_once;
mod fdstore;
#[cfg(test)]
mod fuzz;
mod handover;
mod heartbeat;
mod journal;
mod kafka;
mod kafka_crate;
mod links;
mod lock;
mod logging;
mod network_fs;
mod own_events;
mod pace;
mod packed;
mod private_file;
mod producer;
mod quota;
mod record;
mod report;
mod signals;
mod state;
mod stdout;
mod stop;
mod streams;
mod sys;
mod systemd;
mod tail;
mod traffic;
mod wake_slot;
mod waker;
mod watch;

use cli::{Command, Invocation};
use error::{Error, ExitCode};
use std::io::{self, Write as _};
use std::process;

#[global_allocator]
static ALLOCATOR: sys::heap::Heap = sys::heap::Heap;

fn main() -> process::ExitCode {
    logging::init();
    end_on_panic();
    let done = cli::parse(std::env::args_os().skip(1)).and_then(|asked| match asked {
        Invocation::Text(text) => print(&text),
        Invocation::Command(command) => run(command),
    });
    match done {
        Ok(code) => code.into(),
        Err(error) => {
            logging::fatal(&error);
            error.code.into()
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Error> {
    match command {
        Command::Check(asked) => commands::check::run(asked),
        Command::Run(asked) => commands::run::run(asked, leave),
        Command::Send(asked) => commands::send::run(asked, leave),
        Command::Status(asked) => commands::status::run(asked),
        Command::Tail(asked) => commands::tail::run(asked),
    }
}

fn print(text: &str) -> Result<ExitCode, Error> {
    let done = writeln!(io::stdout(), "{text}");
    done.map_err(|e| Error::failed("write to standard output", e, "let something read it"))?;
    Ok(ExitCode::Done)
}

/// A panic in our code may leave shared state inconsistent: log one line and exit, so that systemd restarts the agent
/// from the saved positions. Panics of the `kafka` crate are expected (D9, D10 in [`kafka_crate`]): the calling
/// thread catches them and builds a new client.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        if kafka_crate::fenced() {
            return; // reported as the reason of an outage
        }
        let thread = std::thread::current();
        log::error!("panic in thread {}: {info}", thread.name().unwrap_or("unnamed"));
        #[allow(clippy::disallowed_methods)] // this is main.rs
        process::exit(ExitCode::Failed as i32);
    }));
}

/// Exits immediately, for the second signal.
fn leave(code: ExitCode) -> ! {
    #[allow(clippy::disallowed_methods)] // this is main.rs
    process::exit(code as i32)
}
