//! A log agent for small Linux boxes: follows files, delivers every line to Kafka with required acks.

mod budget;
mod cli;
mod config;
mod error;
mod checkpoint;
mod chunk;
mod report;
mod ship;
mod stop;
mod tail;

fn main() {}
