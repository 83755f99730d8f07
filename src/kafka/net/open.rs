//! Opens a [`Connection`]: after the socket and TLS, ApiVersions and SASL.

use super::connection::Connection;
use super::sasl::{self, SaslOptions};
use super::socket;
use super::stream::Stream;
use super::trouble::Trouble;
use crate::error::Reason;
use crate::kafka::KafkaOptions;
use crate::kafka::protocol::errors;
use crate::kafka::protocol::messages::{self, Versions};
use crate::traffic::SocketBytes;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

impl Connection {
    /// Resolves the name, connects, makes the TLS handshake, negotiates versions, authenticates. `cap`: maximum answer
    /// size. `bytes` counts everything, also of an attempt that fails.
    pub fn open(
        address: &str,
        options: &KafkaOptions,
        cap: usize,
        bytes: &Arc<SocketBytes>,
    ) -> Result<Connection, Trouble> {
        // Before connecting to any broker: without a token, the connection would be useless.
        if let Some(SaslOptions::OauthBearer(oauth)) = &options.sasl {
            oauth.token(options)?;
        }
        // One address of a name may accept connections and never answer, while the others work.
        let first = bytes.first_address.load(Relaxed);
        Connection::attempt(address, options, cap, bytes).inspect_err(|_| bytes.failed_at(first))
    }

    fn attempt(
        address: &str,
        options: &KafkaOptions,
        cap: usize,
        bytes: &Arc<SocketBytes>,
    ) -> Result<Connection, Trouble> {
        let mut c = Connection::over(socket::dial(address, options, bytes)?, cap);
        c.versions = c.greet(address, options, bytes)?;
        c.suits()?;
        c.authenticate(options)?;
        Ok(c)
    }

    /// Whether this driver can use the broker.
    fn suits(&self) -> Result<(), Trouble> {
        if self.versions.produce.is_none() || self.versions.metadata.is_none() {
            let most = self.versions.produce_max;
            if most < 0 {
                return Err(Trouble::Lost(controller())); // no other driver could use it either
            }
            let why = format!(
                "the broker supports Produce up to version {most}, this driver needs 3 to 12 (Kafka 0.11 or newer)"
            );
            return Err(Trouble::Incompatible(Reason::new(why, "set driver = \"auto\"")));
        }
        Ok(())
    }

    /// Authenticates by SASL, if configured.
    pub fn authenticate(&mut self, options: &KafkaOptions) -> Result<(), Trouble> {
        if let Some(sasl) = &options.sasl {
            // Even a local proxy sends the password on to other machines.
            if let (Some(proxy), Some(_)) = (&options.proxy, self.readable())
                && sasl.needs_tls()
            {
                return Err(sasl::readable_by(sasl, &proxy.url.to_string()));
            }
            self.renew = sasl::authenticate(self, sasl, options)?;
        }
        Ok(())
    }

    /// As [`Connection::negotiate`], for a broker that must know ApiVersions.
    pub fn greet(
        &mut self,
        address: &str,
        options: &KafkaOptions,
        bytes: &Arc<SocketBytes>,
    ) -> Result<Versions, Trouble> {
        self.negotiate(address, options, bytes).map_err(|t| match t {
            Trouble::Ended => Trouble::Lost(self.closed_at_once()),
            other => other,
        })
    }

    /// Sends ApiVersions in version 3, or 0 if that is too new. If the broker hangs up on version 3, as some gateways
    /// do, asks again on a new connection. [`Trouble::Ended`]: it hangs up on version 0 as well.
    pub fn negotiate(
        &mut self,
        address: &str,
        options: &KafkaOptions,
        bytes: &Arc<SocketBytes>,
    ) -> Result<Versions, Trouble> {
        let peer = self.stream.socket().peer_addr();
        match self.ask_versions(&[3, 0], options) {
            Err(Trouble::Ended) => {}
            done => return done,
        }
        if socket::closes_unasked(peer, address, options) {
            return Err(Trouble::Crowded(socket::crowded()));
        }
        self.stream = socket::dial(address, options, bytes)?;
        self.ask_versions(&[0], options)
    }

    /// The broker hung up on ApiVersions.
    fn closed_at_once(&self) -> Reason {
        match self.stream {
            Stream::Plain(_) => Reason::new(
                "closed at the first request: this port speaks TLS, is not Kafka, or is a broker before 0.10",
                "set [kafka.tls], or use the address of a Kafka broker",
            ),
            Stream::Tls(_) => Reason::new(
                "closed after the TLS handshake: it may require a client certificate, or is not Kafka",
                "set cert and key in [kafka.tls]",
            ),
        }
    }

    fn ask_versions(&mut self, versions: &[i16], options: &KafkaOptions) -> Result<Versions, Trouble> {
        let deadline = Instant::now() + options.connect_timeout;
        for version in versions {
            let correlation = self.next_correlation();
            let request = messages::ask_versions(*version, correlation, &options.client_id);
            match messages::versions(self.call(&request, correlation, deadline)?, *version)? {
                Ok(found) => return Ok(found),
                Err(35) if *version > 0 => {}
                Err(code) => return Err(Trouble::Lost(errors::reason(code, ""))),
            }
        }
        Err(Trouble::Lost("it refuses every version of ApiVersions".into()))
    }
}

/// The message for a peer that supports ApiVersions, but not Produce.
pub fn controller() -> Reason {
    Reason::new("it accepts no records, as a controller does not", "use a broker's port")
}
