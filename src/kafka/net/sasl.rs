//! SASL over Kafka's frames: PLAIN, SCRAM and OAUTHBEARER, and re-authentication (KIP-368). The SCRAM computations are in
//! `scram.rs`, tokens in `oauth.rs`. A password is read from its file each time, wiped after use, and never logged.

use super::scram::{Hash, Scram};
use super::secret::{self, PASSWORD_MOST};
use crate::base64;
use crate::error::Reason;
use crate::kafka::KafkaOptions;
use crate::kafka::net::connection::Connection;
use crate::kafka::net::oauth::{OauthOptions, TokenSource};
use crate::kafka::net::trouble::Trouble;
use crate::kafka::protocol::errors;
use crate::kafka::protocol::sasl::{self as messages, Authenticated};
use ring::rand::{SecureRandom, SystemRandom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

#[derive(Debug, Clone, PartialEq)]
pub enum SaslOptions {
    Plain {
        login: PasswordLogin,
        /// Allow it without TLS to other machines too.
        without_tls: bool,
    },
    Scram(Hash, PasswordLogin),
    OauthBearer(OauthOptions),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PasswordLogin {
    pub username: String,
    pub password_file: PathBuf,
}

impl SaslOptions {
    /// The mechanism's name (IANA).
    pub fn mechanism(&self) -> &'static str {
        match self {
            SaslOptions::Plain { .. } => "PLAIN",
            SaslOptions::Scram(Hash::Sha256, _) => "SCRAM-SHA-256",
            SaslOptions::Scram(Hash::Sha512, _) => "SCRAM-SHA-512",
            SaslOptions::OauthBearer(_) => "OAUTHBEARER",
        }
    }

    /// The file that holds the secret, and its key in the config.
    pub fn secret_file(&self) -> (&Path, &'static str) {
        match self {
            SaslOptions::Plain { login, .. } | SaslOptions::Scram(_, login) => {
                (&login.password_file, "password_file")
            }
            SaslOptions::OauthBearer(oauth) => match &oauth.source {
                TokenSource::File(file) => (file, "token_file"),
                TokenSource::Endpoint(endpoint) => (&endpoint.client_secret_file, "client_secret_file"),
            },
        }
    }

    /// It needs TLS, because it sends the secret itself.
    pub fn needs_tls(&self) -> bool {
        match self {
            SaslOptions::Plain { without_tls, .. } => !without_tls,
            SaslOptions::Scram(..) => false,
            SaslOptions::OauthBearer(_) => true,
        }
    }
}

/// Authenticates. Returns when to do it again; `None`: never.
pub fn authenticate(
    c: &mut Connection,
    sasl: &SaslOptions,
    options: &KafkaOptions,
) -> Result<Option<Instant>, Trouble> {
    if sasl.needs_tls() {
        refuse_readable(c, sasl)?;
    }
    let (began, client_id) = (Instant::now(), &options.client_id);
    let deadline = began + options.connect_timeout;
    let exchange = Exchange { c, mechanism: sasl.mechanism(), client_id, deadline };
    let done = match sasl {
        SaslOptions::Plain { login, .. } => exchange.plain(login),
        SaslOptions::Scram(hash, login) => exchange.scram(*hash, login),
        SaslOptions::OauthBearer(oauth) => exchange.token(oauth, options),
    };
    let lifetime = done.map_err(|t| match t {
        Trouble::Ended => {
            Trouble::Lost(Reason::new("closed in the middle of authentication", "see the broker's log"))
        }
        other => other,
    })?;
    Ok(again_at(began, lifetime, random::<1>()?[0]))
}

/// The configured brokers were checked before; others are learned from them, and `localhost` may be forwarded elsewhere.
fn refuse_readable(c: &Connection, options: &SaslOptions) -> Result<(), Trouble> {
    let Some(socket) = c.readable() else { return Ok(()) };
    let peer = socket.peer_addr()?.ip().to_canonical();
    if peer.is_loopback() {
        return Ok(());
    }
    Err(readable_by(options, &peer.to_string()))
}

/// The mechanism needs TLS, and without it this peer would see the secret.
pub fn readable_by(options: &SaslOptions, peer: &str) -> Trouble {
    let (secret, or) = match options {
        SaslOptions::OauthBearer(_) => ("token", ""),
        _ => (
            "password",
            ", or mechanism = \"SCRAM-SHA-512\", or, if the network is trusted, plain_without_tls = true in [kafka.sasl]",
        ),
    };
    Trouble::Denied(Reason::new(
        format!("{} without TLS would send the {secret} in the clear to {peer}", options.mechanism()),
        format!("set [kafka.tls]{or}"),
    ))
}

impl PasswordLogin {
    fn password(&self) -> Result<Zeroizing<Vec<u8>>, Trouble> {
        secret::text(&self.password_file, "password_file", PASSWORD_MOST).map_err(Trouble::Lost)
    }
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

struct Exchange<'a> {
    c: &'a mut Connection,
    mechanism: &'static str,
    client_id: &'a str,
    deadline: Instant,
}

/// Each mechanism returns the session's lifetime in ms; 0: unlimited.
impl Exchange<'_> {
    fn scram(mut self, hash: Hash, login: &PasswordLogin) -> Result<i64, Trouble> {
        let password = login.password()?;
        self.choose()?;
        let nonce = base64::encode(&random::<24>()?);
        let (scram, first) = Scram::begin(hash, &login.username, nonce);
        let said = self.send(&first)?;
        let (server_first, _) = self.accepted(said, login, &password)?;
        let lied =
            |why: String| Trouble::Denied(format!("the broker's authentication is wrong: {why}").into());
        let (expected, last) = scram.prove(&server_first, &password).map_err(lied)?;
        let said = self.send(&last)?;
        let (server_final, lifetime) = self.accepted(said, login, &password)?;
        expected.verify(&server_final).map_err(lied)?;
        Ok(lifetime)
    }

    fn plain(mut self, login: &PasswordLogin) -> Result<i64, Trouble> {
        let password = login.password()?;
        if password.contains(&0) {
            let path = login.password_file.display();
            let why = format!("password_file {path}: PLAIN allows no NUL in it");
            return Err(Trouble::Lost(Reason::new(why, "write text into it")));
        }
        self.choose()?;
        let message = secret::joined(&[b"\0", login.username.as_bytes(), b"\0", &password]);
        let said = self.send(&message)?;
        self.accepted(said, login, &password).map(|(_, lifetime)| lifetime)
    }

    /// RFC 7628: a refusal is JSON in an answer without an error, and the exchange ends only after another message from
    /// us.
    fn token(mut self, oauth: &OauthOptions, options: &KafkaOptions) -> Result<i64, Trouble> {
        let token = oauth.token(options)?;
        self.choose()?;
        let mut said = self.send(&oauth.first_message(&token))?;
        if said.error == 0 && said.bytes.is_empty() {
            return Ok(said.lifetime_ms);
        }
        oauth.refused();
        // Some services refuse with an error code at once.
        let why =
            if said.error == 0 { String::from_utf8_lossy(&said.bytes).into_owned() } else { said.message };
        if said.error == 0 {
            said.error = self.send(b"\x01")?.error;
        }
        let why = secret::one_line(&why, &[token.bytes()]);
        Err(Trouble::Denied(match said.error {
            0 | 58 => Reason::new(
                format!("the broker refuses the token: {why}"),
                format!(
                    "check the token's issuer, audience and times ({}), the extensions, and the clocks",
                    oauth.origin()
                ),
            ),
            code => errors::reason(code, &why),
        }))
    }

    /// Names the mechanism (SaslHandshake).
    fn choose(&mut self) -> Result<(), Trouble> {
        if self.c.versions.sasl_handshake.is_none() || self.c.versions.sasl_authenticate.is_none() {
            return Err(Trouble::Denied(
                "it has no SaslAuthenticate (Kafka 1.0 or newer), which SASL needs with this driver".into(),
            ));
        }
        let name = self.mechanism;
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

    /// Sends one message of the mechanism; returns the broker's answer.
    fn send(&mut self, message: &[u8]) -> Result<Authenticated, Trouble> {
        let version = self.c.versions.sasl_authenticate.unwrap_or(0);
        let id = self.c.next_correlation();
        let request = messages::authenticate(version, id, self.client_id, message);
        Ok(messages::authenticated(self.c.call(&request, id, self.deadline)?, version)?)
    }

    /// The mechanism's message in an answer, and the session's lifetime, unless the broker refuses.
    fn accepted(
        &self,
        said: Authenticated,
        login: &PasswordLogin,
        password: &[u8],
    ) -> Result<(Vec<u8>, i64), Trouble> {
        let shown = secret::one_line(&said.message, &[password]);
        Err(Trouble::Denied(match said.error {
            0 => return Ok((said.bytes, said.lifetime_ms)),
            58 => Reason::new(
                format!(
                    "the broker refuses user {} with this password ({}): {shown}",
                    login.username, self.mechanism
                ),
                "set username and password_file in [kafka.sasl]",
            ),
            code => errors::reason(code, &shown),
        }))
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
