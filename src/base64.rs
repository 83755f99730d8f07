//! Base64 (RFC 4648): for SCRAM, tokens, and dead letters that are not UTF-8.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let all = three.iter().fold(0u32, |all, b| all << 8 | u32::from(*b)) << (8 * (3 - three.len()));
        for i in 0..4 {
            let six = (all >> (18 - 6 * i)) as usize & 63;
            text.push(if i <= three.len() { char::from(ALPHABET[six]) } else { '=' });
        }
    }
    text
}

/// Strict: whole groups, padding only at the end, no leftover bits.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let bare = text.trim_end_matches('=');
    let padding = text.len() - bare.len();
    if !text.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut all, mut bits) = (0u32, 0);
    for c in bare.bytes() {
        let six = ALPHABET.iter().position(|a| *a == c)?;
        (all, bits) = (all << 6 | six as u32, bits + 6);
        if bits >= 8 {
            bits -= 8;
            bytes.push((all >> bits) as u8);
            all &= (1 << bits) - 1;
        }
    }
    (all == 0).then_some(bytes)
}

/// The variant for URLs, without padding (RFC 4648, 5), as JSON Web Tokens have it.
pub fn decode_url(text: &str) -> Option<Vec<u8>> {
    let padding = "=".repeat((4 - text.len() % 4) % 4);
    decode(&(text.replace('-', "+").replace('_', "/") + &padding))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 4648, section 10. Fails with wrong padding, or when a text that is not base64 is decoded.
    #[test]
    fn the_examples_of_the_rfc() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text).as_deref(), Some(bytes.as_bytes()));
        }
        assert_eq!(decode_url("-_-_Zg").as_deref(), Some(&[0xfb, 0xff, 0xbf, b'f'][..]));
        assert_eq!(decode_url("Z"), None);
        for wrong in ["Zg", "Zg=", "Z===", "Zh==", "Z g=", "====", "Zg==Zg=="] {
            assert_eq!(decode(wrong), None, "{wrong}");
        }
    }

    proptest! {
        /// Fails when bytes do not come back, or noise makes anything panic.
        #[test]
        fn bytes_round_trip(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(decode(&encode(&bytes)), Some(bytes.clone()));
            let _ = String::from_utf8(bytes).map(|t| decode(&t));
        }
    }
}
