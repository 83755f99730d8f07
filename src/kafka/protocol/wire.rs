//! Kafka's primitive types: [`Reader`] parses them from an answer, [`Writer`] writes them into a request. Also the
//! request header, and from which version on each API has compact lengths and tagged fields.
//!
//! Every answer is treated as hostile: a length or count is compared with the rest of the frame before use, and
//! nothing is ever allocated by a count.

use std::fmt;

/// The bytes violate the protocol; names the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed answer: {}", self.0)
    }
}

pub type Read<T> = Result<T, Malformed>;

/// Reads from the front of an answer. `flexible`: lengths are varints and structs end in tagged fields (KIP-482).
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
    flexible: bool,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8], flexible: bool) -> Self {
        Reader { rest: bytes, flexible }
    }

    /// The unread bytes.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub fn bytes(&mut self, n: usize, field: &'static str) -> Read<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(Malformed(field))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Read<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed(field))?;
        self.rest = rest;
        Ok(*head)
    }

    pub fn i8(&mut self, field: &'static str) -> Read<i8> {
        Ok(i8::from_be_bytes(self.array(field)?))
    }

    pub fn i16(&mut self, field: &'static str) -> Read<i16> {
        Ok(i16::from_be_bytes(self.array(field)?))
    }

    pub fn i32(&mut self, field: &'static str) -> Read<i32> {
        Ok(i32::from_be_bytes(self.array(field)?))
    }

    pub fn i64(&mut self, field: &'static str) -> Read<i64> {
        Ok(i64::from_be_bytes(self.array(field)?))
    }

    pub fn uuid(&mut self, field: &'static str) -> Read<[u8; 16]> {
        self.array(field)
    }

    pub fn uvarint(&mut self, field: &'static str) -> Read<u32> {
        let mut value = 0u32;
        for shift in (0..35).step_by(7) {
            let [byte] = self.array(field)?;
            let bits = u32::from(byte & 0x7f);
            if shift == 28 && bits > 0xf {
                return Err(Malformed(field));
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed(field))
    }

    /// A nullable string, not checked to be UTF-8.
    pub fn string(&mut self, field: &'static str) -> Read<Option<&'a [u8]>> {
        let len = match self.flexible {
            true => i64::from(self.uvarint(field)?) - 1,
            false => i64::from(self.i16(field)?),
        };
        self.of_len(len, field)
    }

    /// Nullable bytes, which can be longer than a string.
    pub fn blob(&mut self, field: &'static str) -> Read<Option<&'a [u8]>> {
        let len = match self.flexible {
            true => i64::from(self.uvarint(field)?) - 1,
            false => i64::from(self.i32(field)?),
        };
        self.of_len(len, field)
    }

    fn of_len(&mut self, len: i64, field: &'static str) -> Read<Option<&'a [u8]>> {
        match len {
            -1 => Ok(None),
            n => self.bytes(usize::try_from(n).map_err(|_| Malformed(field))?, field).map(Some),
        }
    }

    /// The number of items of an array (null is none), limited to what fits when each takes `least` bytes.
    pub fn count(&mut self, least: usize, field: &'static str) -> Read<usize> {
        self.count_within(0, least, field)
    }

    /// The same when `more` bytes of the answer have not arrived yet.
    pub fn count_within(&mut self, more: usize, least: usize, field: &'static str) -> Read<usize> {
        let n = match self.flexible {
            true => i64::from(self.uvarint(field)?) - 1,
            false => i64::from(self.i32(field)?),
        };
        if n == -1 {
            return Ok(0);
        }
        let n = usize::try_from(n).map_err(|_| Malformed(field))?;
        if n.checked_mul(least.max(1)).is_none_or(|all| all > self.rest.len() + more) {
            return Err(Malformed(field));
        }
        Ok(n)
    }

    /// Skips an array of i32 (replicas and the like).
    pub fn skip_i32s(&mut self, field: &'static str) -> Read<()> {
        let n = self.count(4, field)?;
        self.bytes(n * 4, field).map(drop)
    }

    /// Skips tagged fields; there are none if the message is not flexible.
    pub fn skip_tags(&mut self) -> Read<()> {
        self.tags(|_, _| Ok(()))
    }

    /// Passes each tagged field to `take`, with its number.
    pub fn tags(&mut self, mut take: impl FnMut(u32, Reader<'a>) -> Read<()>) -> Read<()> {
        if !self.flexible {
            return Ok(());
        }
        for _ in 0..self.uvarint("tag count")? {
            let tag = self.uvarint("tag")?;
            let len = self.uvarint("tag length")? as usize;
            take(tag, Reader::new(self.bytes(len, "tagged field")?, true))?;
        }
        Ok(())
    }
}

/// The requests we make, by API key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i16)]
pub enum ApiKey {
    Produce = 0,
    Metadata = 3,
    SaslHandshake = 17,
    ApiVersions = 18,
    InitProducerId = 22,
    DescribeConfigs = 32,
    SaslAuthenticate = 36,
    DescribeProducers = 61,
}

impl ApiKey {
    /// Whether this version has compact lengths and tagged fields (KIP-482), in the request and in the answer.
    pub const fn is_flexible(self, version: i16) -> bool {
        match self {
            ApiKey::Produce | ApiKey::Metadata => version >= 9,
            ApiKey::SaslHandshake => false,
            ApiKey::ApiVersions => version >= 3,
            ApiKey::InitProducerId | ApiKey::SaslAuthenticate => version >= 2,
            ApiKey::DescribeConfigs => version >= 4,
            ApiKey::DescribeProducers => true,
        }
    }
}

/// Writes a request into a reusable buffer. All of `bytes` is initialized, so nothing is zeroed twice.
#[derive(Debug, Default)]
pub struct Writer {
    pub(super) bytes: Vec<u8>,
    /// The end of the written bytes.
    pub(super) at: usize,
    flexible: bool,
}

impl Writer {
    /// Reserves room for `bytes` bytes.
    pub fn with_room(bytes: usize) -> Self {
        Writer { bytes: vec![0; bytes], ..Writer::default() }
    }

    /// Starts a new frame and writes the request header. The body follows, then [`Writer::end`].
    pub fn begin(&mut self, api: ApiKey, version: i16, correlation: i32, client: &str) {
        self.clear();
        self.flexible = false; // the client id is never compact (KIP-511)
        self.i32(0); // the frame's length
        self.i16(api as i16);
        self.i16(version);
        self.i32(correlation);
        self.string(client);
        self.flexible = api.is_flexible(version);
        self.tags();
    }

    /// Completes the frame.
    pub fn end(&mut self) {
        let len = (self.at - 4) as u32;
        self.bytes[..4].copy_from_slice(&len.to_be_bytes());
    }

    /// Returns the completed frame in its buffer.
    pub fn into_frame(mut self) -> Vec<u8> {
        self.end();
        self.bytes.truncate(self.at);
        self.bytes
    }

    pub fn filled(&self) -> &[u8] {
        &self.bytes[..self.at]
    }

    pub fn clear(&mut self) {
        self.at = 0;
    }

    /// Replaces the content.
    pub fn set(&mut self, bytes: &[u8]) {
        self.clear();
        self.put(bytes);
    }

    /// Bytes of memory held.
    pub fn held(&self) -> usize {
        self.bytes.capacity()
    }

    pub fn is_flexible(&self) -> bool {
        self.flexible
    }

    /// Makes room for `more` bytes after the written ones.
    #[inline(always)]
    pub fn room(&mut self, more: usize) -> &mut [u8] {
        if self.bytes.len() - self.at < more {
            self.grow(more);
        }
        &mut self.bytes[self.at..]
    }

    #[cold]
    fn grow(&mut self, more: usize) {
        self.bytes.truncate(self.at); // the bytes after it need not be copied
        self.bytes.reserve_exact(more);
        self.bytes.resize(self.at + more, 0);
    }

    pub fn put(&mut self, bytes: &[u8]) {
        self.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    pub fn i8(&mut self, value: i8) {
        self.put(&value.to_be_bytes());
    }

    pub fn bool(&mut self, value: bool) {
        self.i8(i8::from(value));
    }

    pub fn i16(&mut self, value: i16) {
        self.put(&value.to_be_bytes());
    }

    pub fn i32(&mut self, value: i32) {
        self.put(&value.to_be_bytes());
    }

    pub fn i64(&mut self, value: i64) {
        self.put(&value.to_be_bytes());
    }

    pub fn uvarint(&mut self, value: u32) {
        self.at += put_uvarint(self.room(5), value);
    }

    /// A signed varint that holds a length or an index of a record.
    pub fn varint(&mut self, value: usize) {
        self.uvarint(zigzag(value as i32));
    }

    pub fn string(&mut self, text: &str) {
        match self.flexible {
            true => self.uvarint(text.len() as u32 + 1),
            false => self.i16(text.len() as i16),
        }
        self.put(text.as_bytes());
    }

    pub fn null_string(&mut self) {
        match self.flexible {
            true => self.uvarint(0),
            false => self.i16(-1),
        }
    }

    /// Bytes, which can be longer than a string.
    pub fn blob(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.put(bytes);
    }

    /// The number of items of an array, which follow.
    pub fn count(&mut self, n: usize) {
        match self.flexible {
            true => self.uvarint(n as u32 + 1),
            false => self.i32(n as i32),
        }
    }

    /// Ends a struct without tagged fields.
    pub fn tags(&mut self) {
        if self.flexible {
            self.i8(0);
        }
    }
}

/// The size of `value` as an unsigned varint.
#[inline(always)]
pub const fn uvarint_len(value: u32) -> usize {
    (38 - value.leading_zeros() as usize + (value == 0) as usize) / 7
}

/// Writes an unsigned varint at the front of `to`; returns its size.
#[inline(always)]
pub fn put_uvarint(to: &mut [u8], mut value: u32) -> usize {
    let mut at = 0;
    while value >= 0x80 {
        to[at] = value as u8 | 0x80;
        value >>= 7;
        at += 1;
    }
    to[at] = value as u8;
    at + 1
}

/// Signed varints are zigzag: -1 is 1, 1 is 2.
#[inline(always)]
pub const fn zigzag(value: i32) -> u32 {
    ((value << 1) ^ (value >> 31)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Fails when the shift of `uvarint` or the rounding of `uvarint_len` is off by one.
    #[test]
    fn varints_round_trip_and_their_length_is_known() {
        let edges = (0..32).flat_map(|b| [(1u32 << b) - 1, 1 << b, (1 << b) | 1]).chain([u32::MAX]);
        for value in edges {
            let mut buf = [0; 5];
            let n = put_uvarint(&mut buf, value);
            assert_eq!((n, Reader::new(&buf[..n], true).uvarint("v")), (uvarint_len(value), Ok(value)));
        }
        assert_eq!((zigzag(0), zigzag(-1), zigzag(1), zigzag(i32::MIN)), (0, 1, 2, u32::MAX));
    }

    /// Fails when `count` trusts the wire.
    #[test]
    fn a_count_never_exceeds_what_the_frame_holds() {
        let hostile = [0x7f, 0xff, 0xff, 0xff, 1, 2, 3];
        assert_eq!(Reader::new(&hostile, false).count(1, "c"), Err(Malformed("c")));
        assert_eq!(Reader::new(&[0xff, 0xff, 0xff, 0xff, 0x0f], true).count(0, "c"), Err(Malformed("c")));
        assert_eq!(Reader::new(&[0xff, 0xff, 0xff, 0xfe], false).count(1, "c"), Err(Malformed("c")));
        assert_eq!(Reader::new(&[0, 0, 0, 2, 1, 2], false).count(1, "c"), Ok(2));
        assert_eq!(Reader::new(&[0, 0, 0, 2, 1, 2], false).count(2, "c"), Err(Malformed("c")));
        assert_eq!(Reader::new(&[0xff; 5], true).uvarint("v"), Err(Malformed("v")));
    }

    /// Fails when the reader does not read a length, a count or a null the way the writer writes it.
    #[test]
    fn what_is_written_is_read() {
        // SaslHandshake is flexible in no version, DescribeProducers in all.
        for api in [ApiKey::SaslHandshake, ApiKey::DescribeProducers] {
            for len in [0, 1, 126, 127, 128, 16_382, 16_383, 32_767] {
                let text = "x".repeat(len);
                let mut w = Writer::default();
                w.begin(api, 1, 7, "c");
                let head = w.filled().len();
                w.string(&text);
                w.null_string();
                w.blob(text.as_bytes());
                w.count(2);
                w.i32(-1);
                w.i32(i32::MIN);
                w.i64(i64::MIN);
                w.bool(true);
                w.tags();
                w.end();
                let bytes = w.filled();
                assert_eq!(bytes[..4], (bytes.len() as u32 - 4).to_be_bytes());
                let mut r = Reader::new(&bytes[head..], api.is_flexible(1));
                assert_eq!(r.string("s"), Ok(Some(text.as_bytes())));
                assert_eq!(r.string("s"), Ok(None));
                assert_eq!(r.blob("b"), Ok(Some(text.as_bytes())));
                assert_eq!(r.count(4, "c"), Ok(2));
                assert_eq!([r.i32("n"), r.i32("n")], [Ok(-1), Ok(i32::MIN)]);
                assert_eq!((r.i64("n"), r.i8("b"), r.skip_tags()), (Ok(i64::MIN), Ok(1), Ok(())));
                assert!(r.rest().is_empty());
            }
        }
    }

    proptest! {
        /// Fails (panics) when a length is used before it was compared with what is left.
        #[test]
        fn noise_is_refused_without_a_panic(noise in proptest::collection::vec(any::<u8>(), 0..64), flexible: bool) {
            let mut r = Reader::new(&noise, flexible);
            let _ = r.string("s").and_then(|_| r.count(3, "c")).and_then(|_| r.skip_tags());
            prop_assert!(r.rest.len() <= noise.len());
        }
    }
}
