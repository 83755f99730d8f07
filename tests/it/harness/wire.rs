//! Kafka's primitive types, read and written by hand, so that the tests do not depend on the crates that the agent
//! uses. Knows no request.

use std::io::{self, Read};

/// A request or an answer, with the four bytes of its length.
pub fn read_frame(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    from.read_exact(&mut frame)?;
    let size = u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize;
    if size > 200 << 20 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    frame.resize(4 + size, 0);
    from.read_exact(&mut frame[4..])?;
    Ok(frame)
}

/// Reads; `None` when the bytes end too early or are invalid.
pub struct Reader<'a> {
    pub rest: &'a [u8],
    /// Compact strings and arrays, tagged fields.
    pub flexible: bool,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes, flexible: false }
    }
    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(taken)
    }
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
    pub fn i8(&mut self) -> Option<i8> {
        self.array().map(i8::from_be_bytes)
    }
    pub fn i16(&mut self) -> Option<i16> {
        self.array().map(i16::from_be_bytes)
    }
    pub fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_be_bytes)
    }
    pub fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_be_bytes)
    }
    pub fn unsigned_varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let byte = self.array::<1>()?[0];
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
    /// Zigzag, as in records.
    pub fn varint(&mut self) -> Option<i64> {
        let n = self.unsigned_varint()?;
        Some((n >> 1) as i64 ^ -((n & 1) as i64))
    }
    fn length(&mut self, short: bool) -> Option<Option<usize>> {
        let n = match (self.flexible, short) {
            (true, _) => i64::try_from(self.unsigned_varint()?).ok()? - 1,
            (false, true) => i64::from(self.i16()?),
            (false, false) => i64::from(self.i32()?),
        };
        Some(usize::try_from(n).ok())
    }
    /// `Some(None)` is a null.
    pub fn nullable_string(&mut self) -> Option<Option<String>> {
        match self.length(true)? {
            None => Some(None),
            Some(n) => Some(Some(String::from_utf8(self.take(n)?.to_vec()).ok()?)),
        }
    }
    pub fn string(&mut self) -> Option<String> {
        self.nullable_string()?
    }
    pub fn bytes(&mut self) -> Option<Option<&'a [u8]>> {
        match self.length(false)? {
            None => Some(None),
            Some(n) => self.take(n).map(Some),
        }
    }
    /// A null array is `Some(None)`.
    pub fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Option<Vec<T>>> {
        let Some(n) = self.length(false)? else { return Some(None) };
        (0..n).map(|_| item(self)).collect::<Option<Vec<T>>>().map(Some)
    }
    pub fn tags(&mut self) -> Option<()> {
        if self.flexible {
            for _ in 0..self.unsigned_varint()? {
                self.unsigned_varint()?;
                let n = self.unsigned_varint()? as usize;
                self.take(n)?;
            }
        }
        Some(())
    }
}

#[derive(Default)]
pub struct Out {
    pub bytes: Vec<u8>,
    pub flexible: bool,
}

impl Out {
    pub fn i8(&mut self, n: i8) {
        self.bytes.extend(n.to_be_bytes());
    }
    pub fn i16(&mut self, n: i16) {
        self.bytes.extend(n.to_be_bytes());
    }
    pub fn i32(&mut self, n: i32) {
        self.bytes.extend(n.to_be_bytes());
    }
    pub fn i64(&mut self, n: i64) {
        self.bytes.extend(n.to_be_bytes());
    }
    fn unsigned_varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.bytes.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.bytes.push(n as u8);
    }
    pub fn string(&mut self, text: Option<&str>) {
        match (self.flexible, text) {
            (true, text) => self.unsigned_varint(text.map_or(0, |t| t.len() as u64 + 1)),
            (false, text) => self.i16(text.map_or(-1, |t| t.len() as i16)),
        }
        self.bytes.extend_from_slice(text.unwrap_or("").as_bytes());
    }
    pub fn list<T>(
        &mut self,
        items: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
        mut each: impl FnMut(&mut Self, T),
    ) {
        let items = items.into_iter();
        if self.flexible {
            self.unsigned_varint(items.len() as u64 + 1)
        } else {
            self.i32(items.len() as i32)
        }
        for item in items {
            each(self, item);
        }
    }
    pub fn tags(&mut self) {
        if self.flexible {
            self.bytes.push(0);
        }
    }
}
