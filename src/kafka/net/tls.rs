//! TLS with rustls and ring: reads the configured files, makes the handshake, and explains failures. Files are read at
//! each connect, so that a replaced certificate takes effect at the next one.

use crate::error::Reason;
use crate::kafka::net::secret::{self, PEM_MOST};
use crate::kafka::net::stream::{CountedSocket, Tls};
use crate::kafka::net::tls_errors::explain;
use crate::waker::poll_for;
use rustix::event::{PollFd, PollFlags};
use rustls::client::Resumption;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
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
        Some((cert, key)) => builder.with_client_cert_resolver(Arc::new(own(cert, key)?)),
    };
    // Resumption was rejected: Kafka's brokers hand out tickets and then refuse them ("Stateless session ticket invalid"; 4.1
    // on OpenJDK 17 and 25, EC and RSA keys, also from openssl s_client), so each connect would send a ticket in vain.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The agent's own certificate chain and key.
///
/// rustls' `with_client_auth_cert` parses the certificate to see whether they belong together, and so refuses version 1,
/// which `openssl x509 -req` writes without extensions and brokers accept. But a certificate holds its public key as the
/// private key yields it, in DER, so look for that.
fn own(cert: &Path, key: &Path) -> Result<SingleCertAndKey, Reason> {
    let chain = certificates(cert, "cert")?;
    let pem = read_pem(key, "key")?;
    let wrong = |why: &str, fix: &str| Reason::new(format!("key {}: {why}", key.display()), fix);
    let der = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        wrong("no unencrypted PEM private key in it", "convert it with openssl pkey, or name the right file")
    })?;
    let private = any_supported_type(&der).map_err(|_| {
        wrong(
            "damaged, or of an unsupported kind",
            "use EC P-256 or P-384, Ed25519, or RSA of 2048 to 4096 bits",
        )
    })?;
    let is_its = |public: &[u8]| chain[0].windows(public.len()).any(|part| part == public);
    if private.public_key().is_some_and(|public| !is_its(&public)) {
        let (cert, key) = (cert.display(), key.display());
        let why = format!("cert {cert} and key {key}: the first certificate belongs to another key");
        return Err(Reason::new(
            why,
            "name a certificate and its own key, and the CA's certificates after it",
        ));
    }
    Ok(CertifiedKey::new(chain, private).into())
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

#[cfg(test)]
mod tests;
