//! A log agent for small Linux boxes: follows files, delivers every line to Kafka with required acks.

mod air;
mod budget;
mod checkpoint;
mod chunk;
mod cli;
mod commands;
mod config;
mod error;
mod logging;
mod report;
mod ship;
mod signals;
mod stop;
mod sys;
mod systemd;
mod tail;
mod watch;

use cli::{Asked, Command};
use error::{Error, ExitCode};
use std::io::{self, Write as _};
use std::process;

fn main() -> process::ExitCode {
    logging::init();
    end_on_panic();
    let done = cli::parse(std::env::args_os().skip(1)).and_then(|asked| match asked {
        Asked::Text(text) => print(&text),
        Asked::Command(command) => run(command),
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
/// again from what is saved. The `kafka` crate's panics are expected (KAFKA.md, D9, D10): the thread that calls it catches
/// them and builds a new client.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        if ship::classic::fenced() {
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
