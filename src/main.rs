//! A log agent for small Linux boxes: follows files, delivers every line to Kafka with required acks.

mod air;
mod budget;
mod checkpoint;
mod chunk;
mod cli;
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

fn main() {}
