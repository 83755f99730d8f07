//! Connections to brokers: sockets, frames, proxies, TLS, SASL, tokens, and the dialer that opens them.

pub mod connection;
pub mod dialer;
pub mod frames;
pub mod http;
pub mod oauth;
pub mod open;
pub mod probe;
pub mod proxy;
pub mod sasl;
pub mod scram;
pub mod secret;
pub mod socket;
pub mod stream;
#[cfg(test)]
pub mod testing;
pub mod tls;
mod tls_errors;
pub mod trouble;
