//! SASL over Kafka's frames: PLAIN and SCRAM, and re-authentication (KIP-368). The SCRAM computations are in
//! `scram.rs`. A password is read from its file each time, wiped after use, and never part of a message to the
//! operator.

use super::secret;
use crate::base64;
use crate::error::Reason;
use crate::kafka::net::connection::{Connection, Trouble};
use crate::kafka::net::scram::{Hash, Scram};
use crate::kafka::protocol::{errors, sasl as messages};
use ring::rand::{SecureRandom, SystemRandom};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

#[derive(Debug, Clone)]
pub struct SaslOptions {
    pub mechanism: Mechanism,
    pub username: String,
    pub password_file: PathBuf,
    /// Allow PLAIN without TLS to other machines too.
    pub plain_without_tls: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    Plain,
    ScramSha256,
    ScramSha512,
}

impl Mechanism {
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// Authenticates. Returns when to do it again; `None`: never.
pub fn authenticate(
    c: &mut Connection,
    options: &SaslOptions,
    client_id: &str,
    limit: Duration,
) -> Result<Option<Instant>, Trouble> {
    if options.mechanism == Mechanism::Plain && !options.plain_without_tls {
        refuse_readable(c)?;
    }
    let began = Instant::now();
    let mut talk = Talk { c, options, client_id, deadline: began + limit, password: password(options)? };
    let lifetime = talk.run().map_err(|t| match t {
        Trouble::Ended => {
            Trouble::Lost(Reason::new("closed in the middle of authentication", "see the broker's log"))
        }
        other => other,
    })?;
    Ok(again_at(began, lifetime, random::<1>()?[0]))
}

/// PLAIN sends the password itself. The configured brokers were checked before; others are learned from them, and
/// `localhost` may be forwarded elsewhere.
fn refuse_readable(c: &Connection) -> Result<(), Trouble> {
    let Some(socket) = c.readable() else { return Ok(()) };
    let peer = socket.peer_addr()?.ip().to_canonical();
    if peer.is_loopback() {
        return Ok(());
    }
    Err(readable_by(&peer.to_string()))
}

/// PLAIN without TLS is not allowed to this peer.
pub fn readable_by(peer: &str) -> Trouble {
    Trouble::Denied(Reason::new(
        format!("PLAIN without TLS would send the password in the clear to {peer}"),
        "set [kafka.tls], or mechanism = \"SCRAM-SHA-512\", or, if the network is trusted, plain_without_tls = true \
         in [kafka.sasl]",
    ))
}

fn password(options: &SaslOptions) -> Result<Zeroizing<Vec<u8>>, Trouble> {
    let password = secret::password(&options.password_file, "password_file").map_err(Trouble::Lost)?;
    if options.mechanism == Mechanism::Plain && password.contains(&0) {
        let path = options.password_file.display();
        let why = format!("password_file {path}: PLAIN allows no NUL in the password");
        return Err(Trouble::Lost(Reason::new(why, "write text into it")));
    }
    Ok(password)
}

/// At 85 to 95 % of the session, so that agents do not reconnect in step. The broker allows it at most once a second.
fn again_at(began: Instant, lifetime_ms: i64, random: u8) -> Option<Instant> {
    let ms = u64::try_from(lifetime_ms).ok().filter(|ms| *ms > 0)?;
    let share = 850 + u64::from(random) * 100 / 255;
    began.checked_add(Duration::from_millis((ms.saturating_mul(share) / 1000).max(1000)))
}

fn random<const N: usize>() -> Result<[u8; N], Trouble> {
    let mut bytes = [0; N];
    let done = SystemRandom::new().fill(&mut bytes);
    done.map(|()| bytes).map_err(|_| Trouble::Lost("cannot get random numbers from the system".into()))
}

struct Talk<'a> {
    c: &'a mut Connection,
    options: &'a SaslOptions,
    client_id: &'a str,
    deadline: Instant,
    password: Zeroizing<Vec<u8>>,
}

impl Talk<'_> {
    /// The session's lifetime in ms; 0: unlimited.
    fn run(&mut self) -> Result<i64, Trouble> {
        self.choose()?;
        let hash = match self.options.mechanism {
            Mechanism::Plain => return self.plain(),
            Mechanism::ScramSha256 => Hash::Sha256,
            Mechanism::ScramSha512 => Hash::Sha512,
        };
        let nonce = base64::encode(&random::<24>()?);
        let (scram, first) = Scram::begin(hash, &self.options.username, nonce);
        let (server_first, _) = self.send(&first)?;
        let lied =
            |why: String| Trouble::Denied(format!("the broker's authentication is wrong: {why}").into());
        let (expected, last) = scram.prove(&server_first, &self.password).map_err(lied)?;
        let (server_final, lifetime) = self.send(&last)?;
        expected.verify(&server_final).map_err(lied)?;
        Ok(lifetime)
    }

    fn plain(&mut self) -> Result<i64, Trouble> {
        let name = self.options.username.as_bytes();
        let mut message = Zeroizing::new(Vec::with_capacity(name.len() + self.password.len() + 2));
        for part in [name, &self.password] {
            message.push(0);
            message.extend_from_slice(part);
        }
        self.send(&message).map(|(_, lifetime)| lifetime)
    }

    /// Names the mechanism (SaslHandshake).
    fn choose(&mut self) -> Result<(), Trouble> {
        if self.c.versions.sasl_handshake.is_none() || self.c.versions.sasl_authenticate.is_none() {
            return Err(Trouble::Denied(
                "it has no SaslAuthenticate (Kafka 1.0 or newer), which SASL needs with this driver".into(),
            ));
        }
        let name = self.options.mechanism.name();
        let id = self.c.next_correlation();
        let request = messages::ask_mechanism(id, self.client_id, name);
        let (error, offered) = messages::mechanisms(self.c.call(&request, id, self.deadline)?)?;
        match error {
            0 => Ok(()),
            33 => {
                let offered = if offered.is_empty() { "nothing".to_owned() } else { offered.join(", ") };
                let why = format!("it does not support {name}, only {offered}");
                Err(Trouble::Denied(Reason::new(why, "set another mechanism in [kafka.sasl]")))
            }
            34 => Err(Trouble::Denied(Reason::new(
                "this port does not use SASL",
                "use the port that does, or remove [kafka.sasl]",
            ))),
            code => Err(Trouble::Denied(errors::reason(code, ""))),
        }
    }

    /// Sends one message of the mechanism; returns the broker's answer and the session's lifetime.
    fn send(&mut self, message: &[u8]) -> Result<(Vec<u8>, i64), Trouble> {
        let version = self.c.versions.sasl_authenticate.unwrap_or(0);
        let id = self.c.next_correlation();
        let request = messages::authenticate(version, id, self.client_id, message);
        let said = messages::authenticated(self.c.call(&request, id, self.deadline)?, version)?;
        if said.error == 0 {
            return Ok((said.bytes, said.lifetime_ms));
        }
        let name = &self.options.username;
        let (mechanism, told) = (self.options.mechanism.name(), self.wiped(&said.message));
        Err(Trouble::Denied(match said.error {
            58 => Reason::new(
                format!("the broker refuses user {name} with this password ({mechanism}): {told}"),
                "set username and password_file in [kafka.sasl]",
            ),
            code => errors::reason(code, &told),
        }))
    }

    /// Keeps the password out of our log even if the broker echoes it.
    fn wiped(&self, text: &str) -> String {
        let secret = Zeroizing::new(String::from_utf8_lossy(&self.password).into_owned());
        if text.contains(secret.as_str()) { "(its text contains the password)".into() } else { text.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when a session is renewed too late or in a busy loop, or a lifetime from the wire overflows.
    #[test]
    fn sessions_are_renewed_before_their_end() {
        let now = Instant::now();
        let after = |ms, random| again_at(now, ms, random).map(|at| (at - now).as_millis());
        assert_eq!((after(0, 9), after(-1, 9), after(i64::MIN, 9)), (None, None, None));
        assert_eq!((after(10_000, 0), after(10_000, 255)), (Some(8500), Some(9500)));
        assert_eq!(after(1, 0), Some(1000));
        let _ = after(i64::MAX, 255);
    }
}
