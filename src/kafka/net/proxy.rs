//! Connects to a broker through a proxy: by CONNECT of an HTTP proxy (RFC 9110, 9.3.6), or by SOCKS 5 (RFC 1928), with
//! a user name and password if required (RFC 1929). The proxy resolves the broker's name.
//!
//! An answer is read up to its last byte and no further, because what follows comes from the broker.

use super::http::{self, HttpHead};
use super::secret;
use crate::error::Reason;
use crate::kafka::net::stream::{CountedSocket, Stream, TimedStream};
use crate::kafka::net::trouble::Trouble;
use std::fmt;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

#[derive(Debug, Clone)]
pub struct ProxyOptions {
    pub url: ProxyUrl,
    /// Goes with the user name.
    pub password_file: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyUrl {
    pub kind: ProxyKind,
    /// `host:port` or `[IPv6]:port`.
    pub address: String,
    pub user: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyKind {
    Http,
    Socks5,
}

/// Without the user name.
impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            ProxyKind::Http => "http",
            ProxyKind::Socks5 => "socks5h",
        };
        write!(f, "{scheme}://{}", self.address)
    }
}

impl ProxyUrl {
    /// Adds the name of the proxy to an error of the proxy or of the connection to it.
    pub fn failed(&self, trouble: Trouble) -> Trouble {
        let named = |Reason { why, fix }| Reason { why: format!("proxy {self}: {why}"), fix };
        match trouble {
            Trouble::Denied(why) => Trouble::Denied(named(why)),
            other => Trouble::Lost(named(other.into_reason())),
        }
    }
}

/// Maximum size of the header of an HTTP proxy's answer, in bytes.
const HEAD_MOST: usize = 8 << 10;

/// Asks the proxy at the other end of `socket`, which is non-blocking, to connect to `broker` (`host:port`) within
/// `limit`.
pub fn tunnel(
    socket: TcpStream,
    broker: &str,
    options: &ProxyOptions,
    limit: Duration,
) -> Result<TcpStream, Trouble> {
    // A name comes from the config or from a broker, and must not add anything to the request.
    if !broker.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Trouble::Lost(
            format!("{broker:?} is not a host name that a proxy could resolve").into(),
        ));
    }
    let socket = CountedSocket::new(socket, &Arc::default()); // not counted for any broker
    let mut ask = Ask { stream: TimedStream::new(Stream::Plain(socket), limit), broker };
    let done = login(options).and_then(|login| match options.url.kind {
        ProxyKind::Http => ask.connect(login),
        ProxyKind::Socks5 => ask.socks(login),
    });
    done.map_err(|t| options.url.failed(t))?;
    Ok(ask.stream.into_socket())
}

/// User name and password.
type Login<'a> = (&'a str, Zeroizing<Vec<u8>>);

fn login(options: &ProxyOptions) -> Result<Option<Login<'_>>, Trouble> {
    let (Some(user), Some(file)) = (&options.url.user, &options.password_file) else { return Ok(None) };
    let password = secret::text(file, "proxy_password_file", secret::PASSWORD_MOST).map_err(Trouble::Lost)?;
    Ok(Some((user, password)))
}

fn wants_login(why: &str) -> Trouble {
    let fix =
        "name the user in `proxy` of [kafka], as in \"http://user@proxy:3128\", and set proxy_password_file";
    Trouble::Denied(Reason::new(why, fix))
}

fn refuses_login(user: &str) -> Trouble {
    let why = format!("it refuses user {user} with this password");
    Trouble::Denied(Reason::new(why, "correct the user in `proxy` of [kafka], or proxy_password_file"))
}

/// The conversation with a proxy.
struct Ask<'a> {
    stream: TimedStream,
    /// `host:port`
    broker: &'a str,
}

impl Ask<'_> {
    /// HTTP's CONNECT.
    fn connect(&mut self, login: Option<Login<'_>>) -> Result<(), Trouble> {
        let user = login.as_ref().map(|(user, _)| *user);
        let pair = login.as_ref().map(|(user, password)| secret::basic(user.as_bytes(), password));
        let pair = pair.as_ref().map_or("", |pair| pair);
        self.stream.send(&connect_request(self.broker, pair))?;
        let HttpHead { status, shown, .. } = self.head()?;
        // Some proxies quote the request.
        let password = login.as_ref().map_or(&[][..], |(_, password)| password);
        let shown = secret::one_line(&shown, &[password, pair.as_bytes()]);
        match (status, user) {
            (200..=299, _) => Ok(()),
            (407, None) => Err(wants_login(&format!("it answers {shown}"))),
            (407, Some(user)) => Err(refuses_login(user)),
            (403 | 405, _) => {
                let why = format!("it does not allow CONNECT to {} ({shown})", self.broker);
                Err(Trouble::Lost(Reason::new(why, "allow this host and port there")))
            }
            (500.., _) => Err(self.cannot_reach(&shown)),
            _ => Err(Trouble::Lost(format!("it answers {shown}").into())),
        }
    }

    fn cannot_reach(&self, why: &str) -> Trouble {
        let why = format!("it cannot reach {} ({why})", self.broker);
        Trouble::Lost(Reason::new(why, "check that the broker runs, and that the proxy can resolve its name"))
    }

    /// Reads an answer up to its empty line.
    fn head(&mut self) -> Result<HttpHead, Trouble> {
        let mut bytes = Vec::new();
        while bytes.len() < HEAD_MOST {
            let mut byte = [0];
            self.stream.fill(&mut byte)?;
            bytes.push(byte[0]);
            if let Some(head) = http::head(&bytes).map_err(|_| not_a_proxy("HTTP"))? {
                return Ok(head);
            }
        }
        Err(not_a_proxy("HTTP"))
    }

    /// SOCKS 5 by host name.
    fn socks(&mut self, login: Option<Login<'_>>) -> Result<(), Trouble> {
        const NONE: u8 = 0;
        const PASSWORD: u8 = 2;
        let methods: &[u8] = if login.is_some() { &[5, 2, NONE, PASSWORD] } else { &[5, 1, NONE] };
        self.stream.send(methods)?;
        let mut chosen = [0; 2];
        self.stream.fill(&mut chosen)?;
        match (chosen, login) {
            ([5, NONE], _) => {}
            ([5, PASSWORD], Some((user, password))) => {
                self.stream.send(&password_message(user, &password)?)?;
                let mut answer = [0; 2];
                self.stream.fill(&mut answer)?;
                if answer[1] != 0 {
                    return Err(refuses_login(user));
                }
            }
            ([5, _], None) => return Err(wants_login("it asks for a user name")),
            ([5, _], Some(_)) => {
                return Err(Trouble::Denied(
                    "it accepts no user name and password, only other methods".into(),
                ));
            }
            _ => return Err(not_a_proxy("SOCKS 5")),
        }
        self.stream.send(&socks_request(self.broker)?)?;
        let mut head = [0; 4];
        self.stream.fill(&mut head)?;
        match head {
            [5, 0, ..] => {}
            [5, 2, ..] => {
                let why = format!("it does not allow connections to {}", self.broker);
                return Err(Trouble::Lost(Reason::new(why, "allow this host and port there")));
            }
            [5, code, ..] => return Err(self.cannot_reach(socks_error(code))),
            _ => return Err(not_a_proxy("SOCKS 5")),
        }
        // The address that the proxy connects from, and its port.
        let mut length = [4];
        match head[3] {
            1 => {}
            3 => self.stream.fill(&mut length)?,
            4 => length = [16],
            _ => return Err(not_a_proxy("SOCKS 5")),
        }
        self.stream.fill(&mut vec![0; usize::from(length[0]) + 2])
    }
}

fn not_a_proxy(kind: &str) -> Trouble {
    let why = format!("it does not answer like a proxy for {kind}");
    Trouble::Lost(Reason::new(why, "correct scheme, host and port in `proxy` of [kafka]"))
}

/// `pair`: user and password in Base64, or nothing.
fn connect_request(broker: &str, pair: &str) -> Zeroizing<Vec<u8>> {
    let request = format!("CONNECT {broker} HTTP/1.1\r\nHost: {broker}\r\n");
    match pair {
        "" => Zeroizing::new([request.as_bytes(), b"\r\n"].concat()),
        _ => {
            let head: &[u8] = b"Proxy-Authorization: Basic ";
            secret::joined(&[request.as_bytes(), head, pair.as_bytes(), b"\r\n\r\n"])
        }
    }
}

/// User name and password in one message (RFC 1929).
fn password_message(user: &str, password: &[u8]) -> Result<Zeroizing<Vec<u8>>, Trouble> {
    let mut message = Zeroizing::new(Vec::with_capacity(3 + user.len() + password.len()));
    message.push(1);
    for part in [user.as_bytes(), password] {
        message.push(one_byte_length(part, "user names and passwords")?);
        message.extend_from_slice(part);
    }
    Ok(message)
}

/// CONNECT to the host by its name, or by its address if it is one.
fn socks_request(broker: &str) -> Result<Vec<u8>, Trouble> {
    let no_port = || Trouble::Lost(format!("{broker} has no port").into());
    let (host, port) = broker.rsplit_once(':').ok_or_else(no_port)?;
    let port: u16 = port.parse().map_err(|_| no_port())?;
    let mut request = vec![5, 1, 0];
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match host.parse() {
        Ok(std::net::IpAddr::V4(address)) => {
            request.push(1);
            request.extend_from_slice(&address.octets());
        }
        Ok(std::net::IpAddr::V6(address)) => {
            request.push(4);
            request.extend_from_slice(&address.octets());
        }
        Err(_) => {
            request.extend([3, one_byte_length(host.as_bytes(), "host names")?]);
            request.extend_from_slice(host.as_bytes());
        }
    }
    request.extend_from_slice(&port.to_be_bytes());
    Ok(request)
}

fn one_byte_length(bytes: &[u8], what: &str) -> Result<u8, Trouble> {
    let most = || Trouble::Lost(format!("SOCKS 5 takes {what} of at most 255 bytes").into());
    u8::try_from(bytes.len()).map_err(|_| most())
}

/// RFC 1928, 6.
fn socks_error(code: u8) -> &'static str {
    match code {
        3 => "network unreachable",
        4 => "host unreachable",
        5 => "connection refused",
        6 => "TTL expired",
        7 => "it does not know the command CONNECT",
        8 => "it does not know this kind of address",
        _ => "general failure",
    }
}

#[cfg(test)]
mod tests;
