//! What a TLS error means, and what to do about it.

use crate::error::Reason;
use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError};

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
