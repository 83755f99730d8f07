//! Bearer tokens for SASL OAUTHBEARER (RFC 7628, KIP-255, KIP-768): reads one from a file, or gets one from a token
//! endpoint with client credentials (RFC 6749, 4.4) and reuses it while it is valid. A token is wiped when dropped, and
//! never logged.

pub mod endpoint;
mod jwt;
pub mod url;

use crate::clock;
use crate::error::Reason;
use crate::kafka::KafkaOptions;
use crate::kafka::net::secret;
use crate::kafka::net::trouble::Trouble;
use crate::lock::lock;
use crate::producer::json;
pub use endpoint::TokenEndpoint;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// Maximum size of a token in bytes.
const TOKEN_MOST: u64 = 32 << 10;
/// A token that expires sooner is not used: the broker would close the session when it expires.
const TOO_SHORT: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct OauthOptions {
    pub source: TokenSource,
    /// SASL extensions (RFC 7628, 3.1; KIP-342).
    pub extensions: Vec<(String, String)>,
    /// The endpoint's token, shared by all connections.
    kept: Arc<Mutex<KeptToken>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// Read at each use: another program renews it.
    File(PathBuf),
    Endpoint(Box<TokenEndpoint>),
}

pub struct Token {
    bytes: Zeroizing<Vec<u8>>,
    /// When it was read or requested.
    since: Instant,
    /// `None`: unknown.
    lifetime: Option<Duration>,
    /// Its scope, if the token or the endpoint states one.
    scope: Option<String>,
}

#[derive(Default)]
struct KeptToken {
    token: Option<Arc<Token>>,
    /// When to request the next one.
    renew: Option<Instant>,
    failed: Option<(Instant, Trouble)>,
}

impl OauthOptions {
    pub fn new(source: TokenSource, extensions: Vec<(String, String)>) -> Self {
        OauthOptions { source, extensions, kept: Arc::default() }
    }

    /// A token that is valid for at least 30 s. `options`: how to reach the endpoint.
    pub fn token(&self, options: &KafkaOptions) -> Result<Arc<Token>, Trouble> {
        match &self.source {
            TokenSource::File(path) => from_file(path).map(Arc::new).map_err(Trouble::Lost),
            TokenSource::Endpoint(endpoint) => {
                let began = Instant::now();
                lock(&self.kept).get(began, || endpoint.fetch(options))
            }
        }
    }

    /// The broker refused the token: the next call gets another one.
    pub fn refused(&self) {
        lock(&self.kept).token = None;
    }

    /// The client's first message (RFC 7628, 3.1).
    pub fn first_message(&self, token: &Token) -> Zeroizing<Vec<u8>> {
        let mut parts: Vec<&[u8]> = vec![b"n,,\x01auth=Bearer ", &token.bytes, b"\x01"];
        for (name, value) in &self.extensions {
            parts.extend([name.as_bytes(), b"=", value.as_bytes(), b"\x01"]);
        }
        parts.push(b"\x01");
        secret::joined(&parts)
    }

    /// Where tokens come from, for the operator.
    pub fn origin(&self) -> String {
        match &self.source {
            TokenSource::File(path) => format!("token_file {}", path.display()),
            TokenSource::Endpoint(endpoint) => format!("token_url {}", endpoint.url),
        }
    }
}

/// Leaves out the kept token, for a reload.
impl PartialEq for OauthOptions {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.extensions == other.extensions
    }
}

/// Leaves out the kept token.
impl fmt::Debug for OauthOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.source, self.extensions)
    }
}

impl KeptToken {
    /// Called under the lock, so only one connection at a time fetches. Connections that have waited since `began`
    /// share its result, even a failure.
    fn get(
        &mut self,
        began: Instant,
        fetch: impl FnOnce() -> Result<Token, Trouble>,
    ) -> Result<Arc<Token>, Trouble> {
        let now = Instant::now();
        if let (Some(token), true) = (&self.token, self.renew.is_some_and(|at| now < at)) {
            return Ok(token.clone());
        }
        if let Some((_, t)) = self.failed.as_ref().filter(|(at, _)| *at >= began) {
            return Err(t.clone());
        }
        match (fetch(), &self.token) {
            (Ok(token), _) => {
                // As the Java client: at 80 % of its lifetime (sasl.login.refresh.window.factor).
                self.renew = token.lifetime.and_then(|all| token.since.checked_add(all * 4 / 5));
                Ok(self.token.insert(Arc::new(token)).clone())
            }
            // The endpoint is down, but the last token is still valid: retry later.
            (Err(_), Some(token)) if token.is_good() => {
                self.renew = now.checked_add(TOO_SHORT);
                Ok(token.clone())
            }
            (Err(t), _) => {
                self.failed = Some((Instant::now(), t.clone()));
                Err(t)
            }
        }
    }
}

impl Token {
    /// `scope`: a JWT's own scope is shown instead.
    fn new(
        bytes: Zeroizing<Vec<u8>>,
        lifetime: Option<Duration>,
        scope: Option<String>,
    ) -> Result<Token, &'static str> {
        // b68token of RFC 6750, 2.1; a control character would end the token early in the SASL message.
        if bytes.is_empty() || !bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~+/=".contains(b)) {
            return Err("it is not a token: it is empty, or has an invalid character");
        }
        Ok(Token { bytes, since: Instant::now(), lifetime, scope })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn left(&self) -> Option<Duration> {
        self.lifetime.map(|all| all.saturating_sub(self.since.elapsed()))
    }

    fn is_good(&self) -> bool {
        self.left().is_some_and(|left| left > TOO_SHORT)
    }
}

/// For the operator.
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.left().map(|left| left.as_secs()) {
            None => f.write_str("it does not say how long it is valid")?,
            Some(s) => {
                let (n, unit) = if s < 120 { (s, "s") } else { (s / 60, "min") };
                write!(f, "valid for {n} {unit}")?;
            }
        }
        match &self.scope {
            Some(scope) => write!(f, ", scope {}", secret::one_line(scope, &[])),
            None => Ok(()),
        }
    }
}

fn from_file(path: &Path) -> Result<Token, Reason> {
    let wrong = |why: String, fix: &str| Reason::new(format!("token_file {}: {why}", path.display()), fix);
    let bytes = secret::text(path, "token_file", TOKEN_MOST)?;
    let claims = jwt::claims(&bytes).unwrap_or_default();
    let left = claims.ends.map(|ends| (ends, left_of(ends)));
    if let Some((ends, _)) = left.filter(|(_, left)| *left <= TOO_SHORT) {
        let mut time = Vec::new();
        json::time(&mut time, i64::try_from(ends * 1000).unwrap_or(i64::MAX));
        let (time, least) = (String::from_utf8_lossy(&time), TOO_SHORT.as_secs());
        let why =
            format!("the token expires at {time}, which by this machine's clock is less than {least} s away");
        return Err(wrong(why, "renew it earlier, or set the clock"));
    }
    Token::new(bytes, left.map(|(_, left)| left), claims.scope)
        .map_err(|why| wrong(why.to_owned(), "write nothing but the token into it"))
}

fn left_of(ends: u64) -> Duration {
    Duration::from_millis((ends * 1000).saturating_sub(clock::now_ms().unsigned_abs()))
}

/// A field of a JSON object; a number as text. Wiped when dropped, since it may be the token.
fn field(object: &[u8], name: &str) -> Option<Zeroizing<Vec<u8>>> {
    // Large enough for any field, because a growing buffer leaves copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(object.len().max(32)));
    json::field(&mut text, object, &[name.to_owned()]).then_some(text)
}

/// A time or duration in whole seconds: at most the year 9999.
fn seconds(text: &[u8]) -> Option<u64> {
    let whole = std::str::from_utf8(text).ok()?.split('.').next()?;
    whole.parse().ok().filter(|s| *s < 253_402_300_800)
}

#[cfg(test)]
mod tests;
