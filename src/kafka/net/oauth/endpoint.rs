//! Asks a token endpoint for a token by client credentials (RFC 6749, 4.4).

use super::url::TokenUrl;
use super::{TOO_SHORT, Token, field, jwt, left_of, seconds};
use crate::error::Reason;
use crate::kafka::KafkaOptions;
use crate::kafka::net::http::{self, HttpAnswer};
use crate::kafka::net::secret::{self, PASSWORD_MOST};
use crate::kafka::net::socket;
use crate::kafka::net::stream::{CountedSocket, Stream, TimedStream};
use crate::kafka::net::tls::{self, TlsOptions};
use crate::kafka::net::trouble::Trouble;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenEndpoint {
    pub url: TokenUrl,
    pub client_id: String,
    pub client_secret_file: PathBuf,
    pub scope: Option<String>,
    /// PEM; the system's roots if not set.
    pub ca: Option<PathBuf>,
    /// Allow `http` to other machines too.
    pub without_tls: bool,
}

impl TokenEndpoint {
    /// Reaches it as a broker: with the same limit for each step, and through the same proxy.
    pub fn fetch(&self, options: &KafkaOptions) -> Result<Token, Trouble> {
        self.ask(options).map_err(|mut t| {
            if let Trouble::Lost(why) | Trouble::Denied(why) | Trouble::Crowded(why) = &mut t {
                why.why.insert_str(0, &format!("no token from {}: ", self.url));
            }
            t
        })
    }

    fn ask(&self, options: &KafkaOptions) -> Result<Token, Trouble> {
        let secret = secret::text(&self.client_secret_file, "client_secret_file", PASSWORD_MOST)
            .map_err(Trouble::Lost)?;
        let stream = self.connect(options).map_err(about_endpoint)?;
        let mut stream = TimedStream::new(stream, options.connect_timeout);
        let answer = http::exchange(&mut stream, &self.request(&secret)).map_err(about_endpoint)?;
        // Servers that refuse a request may quote it.
        let (in_form, in_head) = (Zeroizing::new(encoded(&secret)), self.credentials(&secret));
        read_answer(&answer, &[&secret, in_form.as_bytes(), in_head.as_bytes()])
    }

    fn connect(&self, options: &KafkaOptions) -> Result<Stream, Trouble> {
        let socket = socket::connect(&self.url.address, options, 0)?;
        // `localhost` may be forwarded elsewhere, and a local proxy sends everything on.
        let peer = socket.peer_addr()?.ip().to_canonical();
        let socket = CountedSocket::new(socket, &Arc::default()); // not counted for any broker
        if self.url.is_tls {
            let tls = TlsOptions { ca: self.ca.clone(), ..TlsOptions::default() };
            return match tls::handshake(socket, &self.url.address, &tls, options.connect_timeout) {
                Ok(done) => Ok(Stream::Tls(Box::new(done))),
                Err(e) => Err(Trouble::Lost(e.into())),
            };
        }
        if (options.proxy.is_some() || !peer.is_loopback()) && !self.without_tls {
            let why = format!("http would send the client's secret in the clear to {peer}");
            return Err(Trouble::Denied(Reason::new(why, "name an https address")));
        }
        Ok(Stream::Plain(socket))
    }

    /// The value of the request's `Authorization`, without `Basic`.
    fn credentials(&self, secret: &[u8]) -> Zeroizing<String> {
        let secret = Zeroizing::new(encoded(secret));
        secret::basic(encoded(self.client_id.as_bytes()).as_bytes(), secret.as_bytes())
    }

    /// Client credentials by HTTP Basic, which every server must support (RFC 6749, 2.3.1).
    pub fn request(&self, secret: &[u8]) -> Zeroizing<Vec<u8>> {
        let scope = self.scope.as_ref().map(|scope| ["&scope=".into(), encoded(scope.as_bytes())].concat());
        let form = ["grant_type=client_credentials", scope.as_deref().unwrap_or_default()].concat();
        let basic = self.credentials(secret);
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: logagent\r\nAccept: application/json\r\nConnection: close\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\nAuthorization: Basic ",
            self.url.path,
            self.url.host,
            form.len()
        );
        secret::joined(&[head.as_bytes(), basic.as_bytes(), b"\r\n\r\n", form.as_bytes()])
    }
}

/// Errors of TLS and of a proxy are worded for brokers.
fn about_endpoint(t: Trouble) -> Trouble {
    let Trouble::Lost(Reason { why, fix }) = t else { return t };
    let here = |text: String| {
        [
            ("the broker", "the server"),
            ("set ca in [kafka.tls]", "set token_ca in [kafka.sasl]"),
            ("set server_name in [kafka.tls]", "correct token_url"),
            ("remove [kafka.tls]", "begin token_url with http://"),
        ]
        .into_iter()
        .fold(text, |text, (of_broker, here)| text.replace(of_broker, here))
    };
    Trouble::Lost(Reason { why: here(why), fix: fix.map(here) })
}

/// Percent-encoded, in a string that does not grow.
fn encoded(bytes: &[u8]) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut text = String::with_capacity(bytes.len() * 3);
    for b in bytes {
        if b.is_ascii_alphanumeric() || b"-._~".contains(b) {
            text.push(char::from(*b));
        } else {
            text.extend(['%', char::from(HEX[usize::from(b >> 4)]), char::from(HEX[usize::from(b & 15)])]);
        }
    }
    text
}

/// The token in the endpoint's answer (RFC 6749, 5).
pub fn read_answer(answer: &HttpAnswer, secrets: &[&[u8]]) -> Result<Token, Trouble> {
    let text = |name| field(&answer.body, name);
    let shown = |name| text(name).map(|t| secret::one_line(&String::from_utf8_lossy(&t), secrets));
    let status = answer.status;
    if status != 200 {
        let why = ["error", "error_description"].into_iter().filter_map(shown).collect::<Vec<_>>().join(": ");
        let separator = if why.is_empty() { "" } else { ", " };
        let (kind, fix): (fn(Reason) -> Trouble, _) = match status {
            429 | 503 => (Trouble::Crowded, "it is busy; the agent retries later"),
            500.. => (Trouble::Lost, "see its log"),
            400 | 401 | 403 => (
                Trouble::Denied,
                "set client_id, client_secret_file and scope in [kafka.sasl] to what it expects",
            ),
            _ => (Trouble::Denied, "set token_url in [kafka.sasl] to its token endpoint"),
        };
        return Err(kind(Reason::new(format!("it answers HTTP {status}{separator}{why}"), fix)));
    }
    let nonsense = || {
        let fix = "set token_url in [kafka.sasl] to its token endpoint";
        Trouble::Lost(Reason::new("its answer holds no access_token", fix))
    };
    let bytes = text("access_token").ok_or_else(nonsense)?;
    let claims = jwt::claims(&bytes).unwrap_or_default();
    // Elapsed time rather than the wall clock, which may be wrong.
    let of_jwt = || match (claims.ends, claims.issued) {
        (Some(ends), Some(issued)) => Some(Duration::from_secs(ends.saturating_sub(issued))),
        (ends, _) => ends.map(left_of),
    };
    let says = text("expires_in").and_then(|t| seconds(&t)).map(Duration::from_secs);
    let lifetime = says.or_else(of_jwt);
    if let Some(lifetime) = lifetime.filter(|lifetime| *lifetime <= TOO_SHORT) {
        let (lives, least) = (lifetime.as_secs(), TOO_SHORT.as_secs());
        let why = format!("its token is valid for only {lives} s");
        let fix = format!("make it issue tokens that are valid for more than {least} s");
        return Err(Trouble::Lost(Reason::new(why, fix)));
    }
    let scope = claims.scope.or_else(|| shown("scope"));
    Token::new(bytes, lifetime, scope).map_err(|why| Trouble::Lost(why.into()))
}
