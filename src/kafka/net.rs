//! Connections to brokers: sockets, frames, proxies, TLS, SASL, and the dialer that opens them.

pub mod connection;
pub mod dialer;
pub mod frames;
pub mod probe;
pub mod proxy;
pub mod sasl;
mod scram;
pub mod secret;
pub mod stream;
pub mod tls;
