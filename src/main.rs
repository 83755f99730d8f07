//! A log agent for small Linux boxes: follows files, delivers every line to Kafka with required acks.

mod budget;
mod checkpoint;
mod chunk;
mod report;
mod ship;
mod stop;
mod sys;
mod tail;

fn main() {}
