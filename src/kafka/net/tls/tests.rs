//! Files that can be used and files that cannot, and what errors report.

use super::*;
use rustls::CertificateError;
use rustls::pki_types::UnixTime;

/// Version 1, as `openssl x509 -req` writes it without -extfile.
const CERT: &str = "\
-----BEGIN CERTIFICATE-----
MIIBFjCBvAIUbEMs4QEeMFvYmXvze4DHg7Wo+uYwCgYIKoZIzj0EAwIwDDEKMAgG
A1UEAwwBYzAgFw0yNjEyMDEwMTA1MjdaGA8yMTI2MTEwNzAxMDUyN1owDTELMAkG
A1UEAwwCdjEwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASmt2tWZafgSIHZNsiI
4OD+4zrNjIYPFeq9uKHk4wVsdMIoQXCNAnC4znLsMkiKev0AXoUsOcvS3s5Y4zKT
6asuMAoGCCqGSM49BAMCA0kAMEYCIQDJhFEKQvsolemISFTAMQdnOSu96RXyaP8h
IcBxxrltlgIhAOll69MOJQ0lnfEy5Jen1S/q4Plm+wTuJoOz4hLW2LRu
-----END CERTIFICATE-----
";
/// Its key.
const KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgSOLamfsbX+NCLspZ
xCZl62erTEdJGAfZhs41CZcGhkWhRANCAASmt2tWZafgSIHZNsiI4OD+4zrNjIYP
Feq9uKHk4wVsdMIoQXCNAnC4znLsMkiKev0AXoUsOcvS3s5Y4zKT6asu
-----END PRIVATE KEY-----
";
/// EC P-521, which ring does not support.
const P521: &str = "\
-----BEGIN PRIVATE KEY-----
MIHuAgEAMBAGByqGSM49AgEGBSuBBAAjBIHWMIHTAgEBBEIA1fsX3ST6bPsKWI/D
Yv3NarbkB1GHX/J3wMahUpTi51zxt8r8fQfEzGhpdKPK5cZyc+jlcOH5aSbccy6q
4AGA3T+hgYkDgYYABAFFgRrvTUiv5tQdAln7fGBwmYLhn/pOTvVoNQGxiZ1dU8IW
FfpaX5EeDVppZef7i2pjhEzLzR0476ArM0Cl/38GSgHVugKTNAqaxKLKymjgnZim
VIjs+XjyZM/dWbNYnNIlzHKqwd7VBIK+iswF+iym6Pe+cqnWyc8Ef6QmoNW4Mwut
qw==
-----END PRIVATE KEY-----
";

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
            CertificateError::Other(rustls::OtherError(Arc::new(std::io::Error::other("CaUsedAsEndEntity")))),
            "refused (CaUsedAsEndEntity); give it another one; a self-signed",
        ),
    ] {
        let text = explain(&rustls::Error::InvalidCertificate(e)).to_string();
        assert!(text.contains(said), "{text}");
    }
}

/// Fails when a certificate of version 1 is refused, when a key of another certificate is not, or when the advice does not
/// fit the mistake.
#[test]
fn own_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name)
    };
    let other = CERT.replacen("mt2tW", "mt2tX", 1);
    for (cert, key, said) in [
        (CERT.to_owned(), KEY.to_owned(), ""),
        (format!("{CERT}{other}"), KEY.to_owned(), ""),
        (format!("{other}{CERT}"), KEY.to_owned(), "the first certificate belongs to another key; name a"),
        (CERT.to_owned(), P521.to_owned(), "damaged, or of an unsupported kind; use EC P-256"),
        (CERT.to_owned(), KEY.replace("PRIVATE", "ENCRYPTED PRIVATE"), "no unencrypted PEM"),
    ] {
        let client = Some((write("cert", &cert), write("key", &key)));
        let ca = Some(write("ca", CERT));
        let result = check_files(&TlsOptions { ca, client, server_name: None });
        let text = result.map_or_else(|why| why.to_string(), |()| String::new());
        assert!(text.contains(said) && text.is_empty() == said.is_empty(), "{said:?}: {text}");
    }
}
