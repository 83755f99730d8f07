//! Kafka's wire protocol: requests, responses, record batches, compression, and the meaning of error codes. No I/O.

pub mod codec;
pub mod errors;
pub mod limits;
mod lz4;
pub mod messages;
pub mod producers;
pub mod records;
pub mod sasl;
pub mod wire;

#[cfg(test)]
mod mutated;
