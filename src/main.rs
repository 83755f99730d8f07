//! A log agent for small Linux boxes: follows files, delivers every line to Kafka with required acks.

mod air;
mod budget;
mod checkpoint;
mod chunk;
mod error;
mod report;
mod ship;
mod stop;
mod tail;
mod watch;

fn main() {}
