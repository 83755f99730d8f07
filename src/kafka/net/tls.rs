//! TLS with rustls and ring: reads the configured files, makes the handshake, and explains failures. Files are read at
//! each connect, so that a replaced certificate takes effect at the next one.

use crate::error::Reason;
use crate::kafka::net::secret::{self, PEM_MOST};
use crate::kafka::net::stream::{CountedSocket, Tls};
use crate::waker::poll_for;
use rustix::event::{PollFd, PollFlags};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, ClientConfig, ClientConnection, RootCertStore};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

#[derive(Debug, Clone, Default)]
pub struct TlsOptions {
    /// PEM; the system's roots if not set.
    pub ca: Option<PathBuf>,
    /// Client certificate chain and key for a broker that requires them, PEM.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Checked against the broker's certificate instead of the host name it was reached by.
    pub server_name: Option<String>,
}

/// Where systems keep their trusted roots in one file: Debian, Alpine, Arch · Fedora, RHEL · SUSE · OpenWrt, BSD.
const ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why there is no TLS session.
#[derive(Debug)]
pub enum HandshakeError {
    /// The peer closed the connection without an alert.
    Closed,
    Failed(Reason),
}

impl From<HandshakeError> for Reason {
    fn from(e: HandshakeError) -> Self {
        match e {
            HandshakeError::Closed => Reason::new(
                "closed during the TLS handshake: a port without TLS",
                "use the TLS port, or remove [kafka.tls]",
            ),
            HandshakeError::Failed(why) => why,
        }
    }
}

impl From<Reason> for HandshakeError {
    fn from(why: Reason) -> Self {
        HandshakeError::Failed(why)
    }
}

impl From<std::io::Error> for HandshakeError {
    fn from(e: std::io::Error) -> Self {
        match e.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                HandshakeError::Closed
            }
            // What `explain` said is wrapped.
            _ => HandshakeError::Failed(e.downcast().unwrap_or_else(|e| e.to_string().into())),
        }
    }
}

/// Makes the handshake on a connected, non-blocking socket. `address`: the broker's `host:port`.
pub fn handshake(
    socket: CountedSocket,
    address: &str,
    options: &TlsOptions,
    limit: Duration,
) -> Result<Tls, HandshakeError> {
    let deadline = Instant::now() + limit;
    let name = options.server_name.as_deref().unwrap_or_else(|| host(address));
    let name = ServerName::try_from(name.to_owned())
        .map_err(|_| Reason::new(format!("{name:?} is not a host name"), "set server_name in [kafka.tls]"))?;
    let session = ClientConnection::new(Arc::new(config(options)?), name).map_err(|e| explain(&e))?;
    let mut tls = Tls::new(socket, session);
    while tls.session.is_handshaking() || tls.session.wants_write() {
        step(&mut tls)?;
        let now = Instant::now();
        if now >= deadline {
            let why = format!("the TLS handshake did not finish within {} s", limit.as_secs());
            return Err(Reason::from(why).into());
        }
        if tls.session.is_handshaking() || tls.session.wants_write() {
            let events =
                if tls.session.wants_write() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            let mut fds = [PollFd::new(tls.socket(), events)];
            poll_for(&mut fds, Some(deadline - now))?;
        }
    }
    Ok(tls)
}

/// Sends and receives what is possible without blocking.
fn step(tls: &mut Tls) -> std::io::Result<()> {
    let idle = |done: std::io::Result<()>| match done {
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
        done => done,
    };
    idle(tls.push())?;
    idle(tls.pull().and_then(|open| if open { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }))
}

/// The negotiated parameters, for the operator.
pub fn agreed(tls: &Tls) -> String {
    let version = tls.session.protocol_version().and_then(|v| v.as_str()).unwrap_or("TLS");
    let suite = tls.session.negotiated_cipher_suite().and_then(|s| s.suite().as_str());
    format!("{}, {}", version.replace('v', " ").replace('_', "."), suite.unwrap_or("?"))
}

/// The host in `host:port` or `[IPv6]:port`.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.')
}

/// Whether the files can be used: PEM, and certificate and key belong together.
pub fn check_files(options: &TlsOptions) -> Result<(), Reason> {
    config(options).map(drop)
}

fn config(options: &TlsOptions) -> Result<ClientConfig, Reason> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| explain(&e))?
        .with_root_certificates(roots(options.ca.as_deref())?);
    let mut config = match &options.client {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = certificates(cert, "cert")?;
            let pem = read_pem(key, "key")?;
            let none = |_| {
                let why = format!("key {}: no unencrypted PEM private key in it", key.display());
                Reason::new(why, "convert it with openssl pkey, or name the right file")
            };
            let der = PrivateKeyDer::from_pem_slice(&pem).map_err(none)?;
            builder.with_client_auth_cert(chain, der).map_err(|e| {
                let (cert, key) = (cert.display(), key.display());
                let why = format!("cert {cert} and key {key}: {e}");
                Reason::new(why, "name a certificate and its own key")
            })?
        }
    };
    // Resumption was rejected: Kafka's brokers hand out tickets and then refuse them ("Stateless session ticket invalid"; 4.1
    // on OpenJDK 17 and 25, EC and RSA keys, also from openssl s_client), so each connect would send a ticket in vain.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, Reason> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca {
        for one in certificates(path, "ca")? {
            let wrong = |_| {
                let why = format!("ca {}: one of its certificates is damaged", path.display());
                Reason::new(why, "replace it, or take it out")
            };
            roots.add(one).map_err(wrong)?;
        }
        return Ok(roots);
    }
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let path = named.or_else(|| ROOTS.iter().map(PathBuf::from).find(|p| p.is_file())).ok_or_else(|| {
        Reason::new(
            "this system has no root certificates",
            "install ca-certificates, or set ca in [kafka.tls]",
        )
    })?;
    // Systems ship some non-standard certificates; skip those.
    roots.add_parsable_certificates(certificates(&path, "root certificates")?);
    Ok(roots)
}

/// Without the byte order mark that Windows editors put before the first line: that line would not count otherwise.
fn read_pem(path: &Path, what: &str) -> Result<Zeroizing<Vec<u8>>, Reason> {
    let mut pem = secret::read(path, what, PEM_MOST)?;
    if pem.starts_with(b"\xef\xbb\xbf") {
        pem.drain(..3);
    }
    Ok(pem)
}

fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>, Reason> {
    let wrong = |why: &str| {
        let why = format!("{what} {}: {why}", path.display());
        Reason::new(why, "name a file with -----BEGIN CERTIFICATE----- in it")
    };
    let pem = read_pem(path, what)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err(wrong("no PEM certificate in it")),
        Ok(all) => Ok(all),
        Err(_) => Err(wrong("damaged PEM")),
    }
}

/// Explains a TLS error and what to do about it.
pub fn explain(e: &rustls::Error) -> Reason {
    use rustls::Error as E;
    match e {
        E::InvalidCertificate(e) => certificate(e),
        E::AlertReceived(alert) => alerted(*alert),
        E::InvalidMessage(_) => {
            Reason::new("it does not speak TLS", "use the TLS port, or remove [kafka.tls]")
        }
        E::PeerIncompatible(why) => {
            Reason::new(format!("no TLS version in common ({why:?})"), "the broker must offer TLS 1.2 or 1.3")
        }
        E::NoCertificatesPresented => Reason::new("the broker presents no certificate", "give it one"),
        other => other.to_string().into(),
    }
}

fn certificate(e: &CertificateError) -> Reason {
    use CertificateError as C;
    let (why, fix) = match e {
        C::UnknownIssuer => {
            ("is signed by a CA that is not trusted here", "set ca in [kafka.tls] to that CA's certificate")
        }
        C::Expired => return expired(""),
        C::ExpiredContext { time, not_after } => {
            return expired(&format!(" ({})", spell(*not_after, *time)));
        }
        C::NotValidYet | C::NotValidYetContext { .. } => {
            ("is not valid yet", "set the clock of this machine")
        }
        C::NotValidForName => return elsewhere("another host", "this one"),
        C::NotValidForNameContext { expected, presented } => {
            let shown: Vec<&str> = presented.iter().take(8).map(|n| name(n)).collect();
            let of = if shown.is_empty() { "no host".to_owned() } else { shown.join(", ") };
            return elsewhere(&of, &expected.to_str());
        }
        C::BadSignature => (
            "is not signed by the CA that it names as its issuer, or with an RSA key of less than 2048 bits",
            "set ca in [kafka.tls] to that CA's current certificate",
        ),
        C::Revoked => ("was revoked", "give it a new one"),
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => {
            ("is not a server certificate", "give it one with serverAuth")
        }
        C::UnsupportedSignatureAlgorithmContext { .. } => {
            ("is signed with an algorithm that is not secure (SHA-1?)", "give it one signed with SHA-256")
        }
        // CaUsedAsEndEntity: a CA's own certificate, which Java and OpenSSL accept.
        C::Other(e) => {
            return Reason::new(
                format!("the broker's certificate is refused ({e})"),
                "give it another one; a self-signed one from openssl req -x509 needs basicConstraints = CA:FALSE",
            );
        }
        other => return format!("the broker's certificate is refused: {other}").into(),
    };
    Reason::new(format!("the broker's certificate {why}"), fix)
}

fn expired(when: &str) -> Reason {
    let why = format!("the broker's certificate has expired{when}");
    Reason::new(why, "renew it there, or set the clock of this machine")
}

fn elsewhere(of: &str, expected: &str) -> Reason {
    Reason::new(
        format!("the broker's certificate is for {of}, not for {expected}"),
        "use the name in the certificate, or set server_name in [kafka.tls]",
    )
}

/// rustls shows names as `DnsName("kafka1")`; keep only the inner part.
fn name(shown: &str) -> &str {
    shown.split('"').nth(1).unwrap_or(shown)
}

/// "40 days ago"; not to the second, because each new text is a line in the log.
fn spell(then: UnixTime, now: UnixTime) -> String {
    let s = now.as_secs().saturating_sub(then.as_secs());
    match s {
        // A text that changes every second would be logged as a new reason every time.
        0..=119 => "less than 2 min ago".into(),
        120..=7199 => format!("{} min ago", s / 60),
        7200..=172_799 => format!("{} h ago", s / 3600),
        _ => format!("{} days ago", s / 86_400),
    }
}

fn alerted(alert: AlertDescription) -> Reason {
    use AlertDescription as A;
    let ours = |what: &str| {
        Reason::new(format!("the broker {what}"), "set cert and key in [kafka.tls] to what it accepts")
    };
    match alert {
        A::CertificateRequired => ours("asks for a client certificate"),
        A::CertificateExpired => ours("says that our certificate has expired"),
        A::CertificateRevoked => ours("says that our certificate was revoked"),
        A::UnknownCA => ours("does not know the CA of our certificate"),
        A::BadCertificate | A::UnsupportedCertificate | A::CertificateUnknown | A::AccessDenied => {
            ours(&format!("refuses our certificate, or asks for one ({alert:?})"))
        }
        A::HandshakeFailure | A::ProtocolVersion | A::InsufficientSecurity => format!(
            "the broker refuses the handshake ({alert:?}): no TLS version or cipher in common, or it requires a client certificate"
        )
        .into(),
        A::UnrecognisedName => {
            Reason::new("the broker does not recognize this name as its own", "set server_name in [kafka.tls]")
        }
        other => format!("the broker closes TLS with the alert {other:?}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (address, want) in [
            ("kafka1:9093", "kafka1"),
            ("[fe80::1]:9093", "fe80::1"),
            ("10.0.0.1:1", "10.0.0.1"),
            ("a.b.:1", "a.b"),
        ] {
            assert_eq!(host(address), want);
        }
    }

    /// Fails when a byte order mark hides the first certificate, or when a damaged one in `ca` is blamed on the broker.
    #[test]
    fn marks_and_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca");
        let one = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        std::fs::write(&path, format!("\u{feff}{one}{one}")).unwrap();
        assert_eq!(certificates(&path, "ca").unwrap().len(), 2);
        let said = roots(Some(&path)).unwrap_err().to_string();
        assert!(said.ends_with("one of its certificates is damaged; replace it, or take it out"), "{said}");
    }

    /// Fails when an error has no advice.
    #[test]
    fn what_to_do() {
        let time = |s| UnixTime::since_unix_epoch(Duration::from_secs(s));
        let expected = ServerName::try_from("kafka1").unwrap();
        let presented = vec!["DnsName(\"other\")".to_owned()];
        for (e, said) in [
            (CertificateError::UnknownIssuer, "not trusted here; set ca"),
            (
                CertificateError::ExpiredContext { time: time(864_000), not_after: time(0) },
                "expired (10 days ago); renew",
            ),
            (
                CertificateError::NotValidForNameContext { expected, presented },
                "for other, not for kafka1; use the",
            ),
            (
                CertificateError::UnsupportedSignatureAlgorithmContext {
                    signature_algorithm_id: vec![6],
                    supported_algorithms: Vec::new(),
                },
                "not secure (SHA-1?); give it",
            ),
            (
                CertificateError::Other(rustls::OtherError(Arc::new(std::io::Error::other(
                    "CaUsedAsEndEntity",
                )))),
                "refused (CaUsedAsEndEntity); give it another one; a self-signed",
            ),
        ] {
            let text = explain(&rustls::Error::InvalidCertificate(e)).to_string();
            assert!(text.contains(said), "{text}");
        }
    }
}
