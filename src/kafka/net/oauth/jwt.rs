//! Reads the claims of a JSON Web Token (RFC 7519). The broker checks its signature.

use super::{field, seconds};
use crate::base64;
use zeroize::Zeroizing;

/// The claims that matter here; times in seconds since 1970.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Claims {
    pub ends: Option<u64>,
    pub issued: Option<u64>,
    pub scope: Option<String>,
}

/// `None`: an opaque token.
pub fn claims(token: &[u8]) -> Option<Claims> {
    let mut parts = std::str::from_utf8(token).ok()?.split('.');
    let (_, payload, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    let payload = Zeroizing::new(base64::decode_url(payload)?);
    let time = |name| field(&payload, name).and_then(|text| seconds(&text));
    let scope = field(&payload, "scope").map(|text| String::from_utf8_lossy(&text).into_owned());
    Some(Claims { ends: time("exp"), issued: time("iat"), scope })
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn jwt(payload: &str) -> Vec<u8> {
        let url = |text: &str| {
            base64::encode(text.as_bytes()).trim_end_matches('=').replace('+', "-").replace('/', "_")
        };
        format!("{}.{}.c2ln", url(r#"{"alg":"RS256"}"#), url(payload)).into_bytes()
    }

    /// Fails when a claim is missed, an absurd one is trusted, or an opaque token is taken for a JWT.
    #[test]
    fn claims_are_read() {
        let ends = |payload: &str| claims(&jwt(payload)).unwrap().ends;
        let all = claims(&jwt(r#"{"exp":1800000000,"iat":1799996400,"scope":"a b","sub":"ü??>"}"#)).unwrap();
        assert_eq!((all.ends, all.issued), (Some(1_800_000_000), Some(1_799_996_400)));
        assert_eq!(all.scope.as_deref(), Some("a b"));
        assert_eq!(ends(r#"{"exp":1800000000.5}"#), Some(1_800_000_000));
        for strange in
            ["{}", r#"{"exp":-5}"#, r#"{"exp":1e300}"#, r#"{"exp":null}"#, r#"{"exp":"soon"}"#, "[]"]
        {
            assert_eq!(ends(strange), None, "{strange}");
        }
        for opaque in ["opaque", "a.b", "a.b.c.d", "a.%%.c", ""] {
            assert_eq!(claims(opaque.as_bytes()), None, "{opaque}");
        }
    }

    /// Fails when a token from a file makes the reader panic.
    #[test]
    fn fuzz_jwt() {
        let samples = [jwt(r#"{"exp":1800000000,"iat":1,"scope":"a"}"#), jwt("{}"), b"opaque".to_vec()];
        crate::fuzz::damaged(&samples, <[u8]>::len, |bytes| {
            claims(bytes).and_then(|c| c.scope).map_or(0, |scope| scope.chars().count())
        });
    }
}
