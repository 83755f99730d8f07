//! Kafka's primitive types read from an answer's bytes, and the few that a produce request needs written. Knows no
//! message and reads no socket.
//!
//! Every answer is hostile until read: a length or a count is compared with what the frame still holds before anything
//! is done with it, and nothing is ever allocated by a count.

use std::fmt;

/// The bytes are not what the protocol says; names the field.
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

    /// What has not been read.
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

    /// A string that may be null, as it is on the wire: not checked to be UTF-8.
    pub fn string(&mut self, field: &'static str) -> Read<Option<&'a [u8]>> {
        let len = match self.flexible {
            true => i64::from(self.uvarint(field)?) - 1,
            false => i64::from(self.i16(field)?),
        };
        self.of_len(len, field)
    }

    /// Bytes that may be null; longer ones than a string can be.
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

    /// The number of items of an array (null is none), at most as many as fit when each takes `least` bytes.
    pub fn count(&mut self, least: usize, field: &'static str) -> Read<usize> {
        self.count_within(0, least, field)
    }

    /// The same where `more` bytes of the answer are not here yet.
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

    /// An array of i32 that nobody asks for (replicas and the like).
    pub fn skip_i32s(&mut self, field: &'static str) -> Read<()> {
        let n = self.count(4, field)?;
        self.bytes(n * 4, field).map(drop)
    }

    /// Tagged fields nobody asks for; none where the message is not flexible.
    pub fn skip_tags(&mut self) -> Read<()> {
        self.tags(|_, _| Ok(()))
    }

    /// Hands each tagged field to `take`, by its number.
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

/// Bytes that `value` takes as an unsigned varint.
#[inline]
pub const fn uvarint_len(value: u32) -> usize {
    (38 - value.leading_zeros() as usize + (value == 0) as usize) / 7
}

/// Writes an unsigned varint at the front of `to` and says how many bytes it took.
#[inline]
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
#[inline]
pub const fn zigzag(value: i32) -> u32 {
    ((value << 1) ^ (value >> 31)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Fails when the shift of `uvarint` or the rounding of `uvarint_len` is off by one.
    #[test]
    fn varints_come_back_and_their_length_is_known() {
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
