//! A log agent for small Linux boxes: follows files, delivers every line to Kafka with required acks.
//!
//! The log files are the buffer. Nothing is spooled, and a position moves forward only when the broker has acknowledged
//! everything before it.
//!
//! # The way of a line
//!
//! ```text
//! kernel ─▶ watch ──wake──▶ tail (one thread per file) ──Chunk──▶ producer ◀──▶ broker sockets
//!         (1 inotify fd)  (1 slot)   │ open, close   (bounded)    │    ▲  one poll(2)
//!                                    ▼                            │    └── dialers, clients that block
//!                                 registry ◀──────────acks────────┘
//!                                    │ ▲
//!                           snapshot ▼ │ saved
//!                                  saver ─▶ disk
//! ```
//!
//! 1. [`watch`] owns the only inotify instance. It finds the files that the patterns mean and wakes their tails. Events
//!    are hints: a lost one costs delay, never a line.
//! 2. [`tail`] is STAGE 1, one thread per followed path: it looks, lets [`tail::follow::decide`] say what to do, does it,
//!    and waits with a deadline. What it reads is framed into [`chunk::Chunk`]s. [`tail::catchup`] finds bytes that were
//!    rotated, copied or compressed while nobody looked. Which stream goes on in which file is settled for all files of a walk
//!    before their tails start, and [`tail::known`] is where tails see each other.
//! 3. [`producer`] is STAGE 2, one thread that owns everything about sending. Its core (`producer/core.rs`) is pure: it
//!    gathers chunks into batch groups ([`producer::batch`]), gives each partition one batch, and turns what comes back
//!    into acks; it alone decides on retries, splitting and sequence numbers. Its loop drives a [`producer::driver::Driver`]
//!    by calls and waits for the driver's sockets, an eventfd ([`waker`]) and deadlines in one `poll(2)`. Whatever may
//!    block happens elsewhere: connecting in [`kafka::net::dialer`]'s threads, a client that blocks in a
//!    [`producer::worker`]'s.
//!    Drivers: [`mod@kafka`] on our own sockets, [`kafka_crate`] on the `kafka` crate, [`stdout`]; [`kafka::auto`] chooses
//!    between the first two by what the broker takes, again after each change of it.
//! 4. [`streams`] is the registry of all log streams: per stream, how far it is framed, sent, acknowledged (without a gap,
//!    and which ranges beyond it) and saved. [`state`] saves it, in a thread of its own.
//!
//! With exactly-once the producer has [`exactly_once`] write down what each batch carries before it is sent; [`commands::recover`] reads it at the start, and [`streams::mailbox`] brings it the saved positions.
//!
//! What is rotated or deleted before it is delivered outlives the process in systemd's descriptor store: [`fdstore`],
//! [`commands::inherited`].
//!
//! The words that all of them use are in [`chunk`]; the bytes between disk and ack are counted in [`budget`]; how much of the
//! dead-letter file each path may fill is in [`quota`]; what there is to see is on one board ([`report`]), of which status,
//! metrics and log lines are views; whether all make progress is in [`pulse`]. [`commands::run`] alone knows all stages. No stage imports another, or [`config`].
//!
//! # Invariants
//!
//! Invariant: per stream, `saved ≤ acked ≤ sent ≤ framed`; the registry asserts it. A truncation begins a new stream,
//! so none of them ever moves back.
//!
//! Invariant: every batch given to a driver comes back exactly once. A chunk is acknowledged when all batches with records
//! of it are stored, or are in the dead-letter file.
//!
//! Invariant: every queue is bounded, by its capacity, the byte budget or the number of files; every wait has a deadline or
//! selects on [`stop::Stop`]. A tail holds nothing while it waits for memory.
//!
//! Invariant: a stage ends because the channel it reads from is closed. SIGTERM stops the tails; the rest follows in the
//! direction of the data.
//!
//! What is absent: an async runtime, a spool, unsafe code outside [`sys`], a thread that polls a flag.
//!
//! # Threads
//!
//! main (`commands/run.rs`), `signals`, `watch`, one `tail …` per file, `producer`, `saver`, `status`;
//! short-lived `dial` and `choose`; and `driver` where the client blocks (the `kafka` crate, standard output). Signals are
//! blocked in all but one. Dialers and clients may hang in name resolution or in the `kafka` crate, the saver in a slow
//! flash: those are left to the end of the process, all others are joined.

mod backoff;
mod base64;
mod budget;
mod chunk;
mod cli;
mod commands;
mod config;
mod error;
mod exactly_once;
mod fdstore;
mod files;
#[cfg(test)]
mod fuzz;
mod handover;
mod kafka;
mod kafka_crate;
mod links;
mod logging;
mod packed;
mod producer;
mod pulse;
mod quota;
mod remote;
mod report;
mod signals;
mod state;
mod stdout;
mod stop;
mod streams;
mod sys;
mod systemd;
mod tail;
mod waker;
mod wall;
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
            logging::last_words(&error);
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

/// A panic of ours leaves shared state that nobody vouches for: one line, and the process ends, so that systemd starts it
/// again from what is saved. The `kafka` crate's panics are expected (D9, D10 in [`kafka_crate`]): the thread that calls
/// it catches them and builds a new client.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        if kafka_crate::fenced() {
            return; // it becomes the reason of an outage, and is said there
        }
        let thread = std::thread::current();
        log::error!("panic in thread {}: {info}", thread.name().unwrap_or("unnamed"));
        #[allow(clippy::disallowed_methods)] // this is main.rs
        process::exit(ExitCode::Failed as i32);
    }));
}

/// Ends the process at once: for the second signal.
fn leave(code: ExitCode) -> ! {
    #[allow(clippy::disallowed_methods)] // this is main.rs
    process::exit(code as i32)
}
