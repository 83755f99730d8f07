//! Kafka's protocol: requests and answers as bytes, record batches, compression, and what error codes mean. Knows no
//! sockets.

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
