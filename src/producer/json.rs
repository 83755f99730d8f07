//! Writes JSON text straight into a buffer (strings, times) and extracts one field from a line, without building
//! values.

use crate::clock;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::fmt;
use std::io::Write;

/// Appends `bytes` as the inside of a JSON string (no quotes). Each maximal invalid UTF-8 part becomes one U+FFFD, as
/// in `String::from_utf8_lossy`, so equal bytes always give equal text. Returns `false` if any were invalid.
pub fn text(out: &mut Vec<u8>, bytes: &[u8]) -> bool {
    // Nearly all lines are valid, and one pass of std's vectorized validation is cheaper than going part by part.
    if std::str::from_utf8(bytes).is_ok() {
        escape(out, bytes);
        return true;
    }
    for part in bytes.utf8_chunks() {
        escape(out, part.valid().as_bytes());
        if !part.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    false
}

fn escape(out: &mut Vec<u8>, valid: &[u8]) {
    let mut from = 0;
    for (i, &b) in valid.iter().enumerate() {
        if b >= 0x20 && b != b'"' && b != b'\\' {
            continue;
        }
        out.extend_from_slice(&valid[from..i]);
        from = i + 1;
        match b {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', b]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let (high, low) = (HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]);
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
        }
    }
    out.extend_from_slice(&valid[from..]);
}

/// Appends milliseconds since 1970 as RFC 3339 in UTC with three decimals. Years outside 1970–9999 are clamped.
pub fn time(out: &mut Vec<u8>, ms: i64) {
    let ms = ms.clamp(0, 253_402_300_799_999) as u64;
    let (days, rest) = (ms / 86_400_000, ms % 86_400_000);
    let (year, month, day) = clock::civil(days);
    let (h, m, s, milli) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60, rest % 1000);
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{milli:03}Z");
}

/// Appends a number in decimal.
pub fn number(out: &mut Vec<u8>, n: u64) {
    let _ = serde_json::to_writer(out, &n); // writing to a Vec cannot fail
}

/// Appends the field at `path` of a line that is one JSON object; returns whether it was found. Strings yield their
/// text, numbers and booleans what `serde_json` writes for them; null, objects and arrays yield nothing. The last of
/// duplicate names counts.
pub fn field(out: &mut Vec<u8>, line: &[u8], path: &[String]) -> bool {
    let start = out.len();
    let mut found = false;
    let mut json = serde_json::Deserializer::from_slice(line);
    let looked = FieldLookup { path, out, start, found: &mut found }.deserialize(&mut json);
    let whole = looked.is_ok() && json.end().is_ok();
    if !(whole && found) {
        out.truncate(start);
    }
    whole && found
}

struct FieldLookup<'p, 'o> {
    path: &'p [String],
    out: &'o mut Vec<u8>,
    start: usize,
    found: &'o mut bool,
}

impl FieldLookup<'_, '_> {
    fn leaf<E: Error>(self, text: fmt::Arguments<'_>) -> Result<(), E> {
        self.bare(|out| out.write_fmt(text).unwrap_or_default())
    }

    fn bare<E: Error>(self, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), E> {
        self.out.truncate(self.start);
        *self.found = self.path.is_empty();
        if self.path.is_empty() {
            write(self.out);
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for FieldLookup<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for FieldLookup<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.out.truncate(self.start);
        *self.found = false;
        while let Some(here) = map.next_key_seed(IsName(self.path.first().map(String::as_str)))? {
            if here {
                let (out, found) = (&mut *self.out, &mut *self.found);
                map.next_value_seed(FieldLookup { path: &self.path[1..], out, start: self.start, found })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.out.truncate(self.start);
        *self.found = false;
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_str<E: Error>(self, s: &str) -> Result<(), E> {
        self.bare(|out| out.extend_from_slice(s.as_bytes()))
    }

    fn visit_bool<E: Error>(self, b: bool) -> Result<(), E> {
        self.leaf(format_args!("{b}"))
    }

    fn visit_u64<E: Error>(self, n: u64) -> Result<(), E> {
        self.leaf(format_args!("{n}"))
    }

    fn visit_i64<E: Error>(self, n: i64) -> Result<(), E> {
        self.leaf(format_args!("{n}"))
    }

    fn visit_f64<E: Error>(self, n: f64) -> Result<(), E> {
        self.bare(|out| serde_json::to_writer(out, &n).unwrap_or_default())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.out.truncate(self.start);
        *self.found = false;
        Ok(())
    }
}

/// Compares a name without keeping it.
struct IsName<'n>(Option<&'n str>);

impl<'de> DeserializeSeed<'de> for IsName<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<bool, D::Error> {
        d.deserialize_str(self)
    }
}

impl Visitor<'_> for IsName<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, s: &str) -> Result<bool, E> {
        Ok(Some(s) == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(bytes: &[u8]) -> (String, bool) {
        let mut out = Vec::new();
        let whole = text(&mut out, bytes);
        (String::from_utf8(out).unwrap(), whole)
    }

    /// Fails when an escape is missing (`serde_json` then rejects the text) or a byte is lost.
    #[test]
    fn text_is_read_back_as_it_was() {
        let all: String = (0..0x250u32).filter_map(char::from_u32).collect();
        let (json, whole) = written(all.as_bytes());
        assert!(whole);
        assert_eq!(serde_json::from_str::<String>(&format!("\"{json}\"")).unwrap(), all);
    }

    /// Fails when invalid UTF-8 is dropped, doubled, or not flagged.
    #[test]
    fn invalid_bytes_are_replaced_as_std_does() {
        for bytes in [&b"a\xffb"[..], b"\xe2\x82", b"\xf0\x9f\x92", b"\xc0\xaf\x80", b"ok\xed\xa0\x80"] {
            assert_eq!(written(bytes), (String::from_utf8_lossy(bytes).into_owned(), false));
        }
    }

    /// Known answers from `date -u`. Fails on any calendar error.
    #[test]
    fn time_is_rfc_3339() {
        for (ms, want) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_700_000_000_123, "2023-11-14T22:13:20.123Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (-5, "1970-01-01T00:00:00.000Z"),
        ] {
            let mut out = Vec::new();
            time(&mut out, ms);
            assert_eq!(String::from_utf8(out).unwrap(), want);
        }
    }

    /// Fails when a nested field or one of the same name elsewhere is taken, or garbage after the object is accepted.
    #[test]
    fn field_by_path() {
        let path = ["user".to_owned(), "id".to_owned()];
        for (line, want) in [
            (r#"{"id":1,"user":{"name":{"id":2},"id":"x\u0041"}}"#, Some("xA")),
            (r#"{"user":{"id":17}}"#, Some("17")),
            (r#"{"user":{"id":-1}, "z":[{"user":{"id":3}}]}"#, Some("-1")),
            (r#"{"user":{"id":1.5}}"#, Some("1.5")),
            (r#"{"user":{"id":true}}"#, Some("true")),
            (r#"{"user":{"id":1},"user":{"id":2}}"#, Some("2")),
            (r#"{"user":{"id":1},"user":5}"#, None),
            (r#"{"user":{"id":null}}"#, None),
            (r#"{"user":{"id":{"a":1}}}"#, None),
            (r#"{"user":{}}"#, None),
            (r#"{"user":"id"}"#, None),
            (r#"{"user":{"id":1}} x"#, None),
            (r#"{"user":{"id":1}"#, None),
            ("not json", None),
            ("", None),
        ] {
            let mut out = b"kept".to_vec();
            let found = field(&mut out, line.as_bytes(), &path);
            assert_eq!((found, &out[4..]), (want.is_some(), want.unwrap_or("").as_bytes()), "{line}");
        }
    }
}
