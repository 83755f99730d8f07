//! The client side of SCRAM (RFC 5802, RFC 7677): client and broker prove that they know the password without sending
//! it. No I/O; the nonce is an argument. Without channel binding, which Kafka does not offer.

use crate::base64;
use ring::{digest, hmac, pbkdf2};
use std::num::NonZeroU32;
use zeroize::Zeroizing;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    Sha256,
    Sha512,
}

impl Hash {
    fn hmac(self) -> hmac::Algorithm {
        match self {
            Hash::Sha256 => hmac::HMAC_SHA256,
            Hash::Sha512 => hmac::HMAC_SHA512,
        }
    }

    fn pbkdf2(self) -> pbkdf2::Algorithm {
        match self {
            Hash::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
            Hash::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        }
    }

    fn digest(self, of: &[u8]) -> digest::Digest {
        let algorithm = match self {
            Hash::Sha256 => &digest::SHA256,
            Hash::Sha512 => &digest::SHA512,
        };
        digest::digest(algorithm, of)
    }

    fn len(self) -> usize {
        match self {
            Hash::Sha256 => 32,
            Hash::Sha512 => 64,
        }
    }
}

/// Kafka uses 4096 to 16384 (`ScramMechanism`). Fewer would let a fake broker guess passwords cheaply; many more would
/// keep this CPU busy at each connect.
const ITERATIONS: std::ops::RangeInclusive<u32> = 4096..=100_000;
/// Maximum size of a broker's message in bytes.
const MOST: usize = 4096;

/// State between the first message and the last.
pub struct Scram {
    hash: Hash,
    nonce: String,
    /// The first message without its header.
    bare: String,
}

/// The signature by which the broker proves that it knows the password too.
pub struct Expected(Vec<u8>);

impl Scram {
    /// Starts an exchange; also returns the first message. `nonce`: printable, without commas.
    pub fn begin(hash: Hash, username: &str, nonce: String) -> (Self, Vec<u8>) {
        let name = username.replace('=', "=3D").replace(',', "=2C");
        let bare = format!("n={name},r={nonce}");
        let first = format!("n,,{bare}").into_bytes();
        (Scram { hash, nonce, bare }, first)
    }

    /// Processes the broker's first message; returns our final one.
    pub fn prove(self, server_first: &[u8], password: &[u8]) -> Result<(Expected, Vec<u8>), String> {
        let text = printable(server_first)?;
        let field = |mark: &str, at: usize| {
            let found = text.split(',').nth(at).and_then(|f| f.strip_prefix(mark)?.strip_prefix('='));
            found.ok_or_else(|| format!("its first SCRAM message lacks {mark}="))
        };
        let (nonce, salt, iterations) = (field("r", 0)?, field("s", 1)?, field("i", 2)?);
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err("it does not repeat our SCRAM nonce".into());
        }
        let salt = base64::decode(salt).filter(|s| !s.is_empty()).ok_or("its SCRAM salt is not base64")?;
        let iterations: u32 = iterations.parse().unwrap_or(0);
        let rounds =
            NonZeroU32::new(iterations).filter(|n| ITERATIONS.contains(&n.get())).ok_or_else(|| {
                format!("it asks for {iterations} SCRAM iterations, allowed are {ITERATIONS:?}")
            })?;
        let mut salted = Zeroizing::new([0u8; 64]);
        let salted = &mut salted[..self.hash.len()];
        pbkdf2::derive(self.hash.pbkdf2(), rounds, &salt, password, salted);
        let key = hmac::Key::new(self.hash.hmac(), salted);
        let client = hmac::sign(&key, b"Client Key");
        let stored = self.hash.digest(client.as_ref());
        // "biws" is base64 of "n,,".
        let without_proof = format!("c=biws,r={nonce}");
        let message = format!("{},{text},{without_proof}", self.bare);
        let signature = hmac::sign(&hmac::Key::new(self.hash.hmac(), stored.as_ref()), message.as_bytes());
        let proof: Vec<u8> = client.as_ref().iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
        let server = hmac::sign(&key, b"Server Key");
        let expected = hmac::sign(&hmac::Key::new(self.hash.hmac(), server.as_ref()), message.as_bytes());
        let last = format!("{without_proof},p={}", base64::encode(&proof)).into_bytes();
        Ok((Expected(expected.as_ref().to_vec()), last))
    }
}

impl Expected {
    /// Verifies the broker's final message, which only a broker that knows the password can compute.
    pub fn verify(&self, server_final: &[u8]) -> Result<(), String> {
        let text = printable(server_final)?;
        if let Some(why) = text.strip_prefix("e=") {
            return Err(format!("it refuses: {}", why.split(',').next().unwrap_or(why)));
        }
        let proof = text.split(',').next().and_then(|f| base64::decode(f.strip_prefix("v=")?));
        let proof = proof.ok_or("its last SCRAM message lacks v=")?;
        // Not in constant time: the broker knows both, and there is one comparison per connection and nonce.
        match proof == self.0 {
            true => Ok(()),
            false => {
                Err("it does not prove that it knows the password: it is not the broker it claims to be"
                    .into())
            }
        }
    }
}

fn printable(message: &[u8]) -> Result<&str, String> {
    let text =
        std::str::from_utf8(message).ok().filter(|t| t.len() <= MOST && !t.chars().any(char::is_control));
    text.ok_or_else(|| "its SCRAM message is not text".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The example of RFC 7677, section 3.
    const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const SERVER_FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    fn begun() -> Scram {
        Scram::begin(Hash::Sha256, "user", NONCE.into()).0
    }

    #[test]
    fn the_example_of_the_rfc() {
        let (scram, first) = Scram::begin(Hash::Sha256, "user", NONCE.into());
        assert_eq!(first, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let (expected, last) = scram.prove(SERVER_FIRST.as_bytes(), b"pencil").unwrap();
        assert_eq!(
            String::from_utf8(last).unwrap(),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        expected.verify(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=").unwrap();
        assert!(expected.verify(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5=").is_err());
        assert!(expected.verify(b"e=invalid-proof").unwrap_err().contains("invalid-proof"));
    }

    /// Fails when a fake broker gets a proof for too few iterations, its own nonce, or no salt.
    #[test]
    fn a_fake_broker_gets_no_proof() {
        for (message, why) in [
            (SERVER_FIRST.replace("4096", "1"), "iterations"),
            (SERVER_FIRST.replace("4096", "2147483647"), "iterations"),
            (SERVER_FIRST.replace("4096", "99999999999"), "iterations"),
            (SERVER_FIRST.replace("r=rO", "r=xO"), "nonce"),
            (format!("r={NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"), "nonce"),
            (SERVER_FIRST.replace("W22ZaJ0SNY7soEsUEjb6gQ==", ""), "salt"),
            (SERVER_FIRST.replace("W22Z", "W2=Z"), "salt"),
            (SERVER_FIRST.replace("s=", "m=x,s="), "lacks s="),
            ("x".repeat(5000), "not text"),
            (String::new(), "lacks r="),
        ] {
            let said = begun().prove(message.as_bytes(), b"pencil").err().unwrap();
            assert!(said.contains(why) && !said.contains("pencil"), "{message}: {said}");
        }
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(Scram::begin(Hash::Sha512, "a,b=c", "x".into()).1, b"n,,n=a=2Cb=3Dc,r=x");
    }

    proptest! {
        /// Fails when noise makes anything panic, or is accepted as an answer.
        #[test]
        fn noise_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(begun().prove(&bytes, b"p").is_err());
            prop_assert!(Expected(vec![1]).verify(&bytes).is_err());
        }
    }
}
