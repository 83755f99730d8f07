//! A replacement for the parts of the `byteorder` crate that the `kafka` crate uses. It also rejects lengths that no
//! valid answer can have.
//!
//! The `kafka` crate allocates whatever sizes and counts an answer announces. Where address space is limited (`ulimit
//! -v`, strict overcommit, 32 bits), a count of 2³¹-1 fails to allocate, which aborts the process. All these numbers
//! pass through [`ReadBytesExt::read_i32`]; the [`Part`]s of an answer say which of its 32-bit numbers are counts.

use std::cell::{Cell, RefCell};
use std::io::{Error, ErrorKind, Read, Result, Write};

/// Longest accepted answer, in bytes.
pub const MOST: i32 = 1 << 20;

/// The meaning of an answer's 32-bit numbers, in order.
#[derive(Debug)]
pub enum Part {
    /// Any value: an id, a port.
    Number,
    /// A count, followed by that many repetitions of these parts; each element takes at least `bytes`.
    List { bytes: i32, of: &'static [Part] },
}

use Part::{List, Number};

/// Metadata v0: correlation id, brokers (node id, host, port), topics (error, name, partitions (error, id, leader, replicas,
/// in-sync replicas)).
pub static METADATA: &[Part] = &[
    Number,
    List { bytes: 10, of: &[Number, Number] },
    List {
        bytes: 8,
        of: &[List {
            bytes: 18,
            of: &[
                Number,
                Number,
                List { bytes: 4, of: &[Number] },
                List { bytes: 4, of: &[Number] },
            ],
        }],
    },
];

/// Produce v0: correlation id, topics (name, partitions (id, error, offset)).
pub static PRODUCED: &[Part] = &[Number, List { bytes: 6, of: &[List { bytes: 14, of: &[Number] }] }];

thread_local! {
    static EXPECTED: RefCell<Option<Answer>> = const { RefCell::new(None) };
    static LAST_I16: Cell<i16> = const { Cell::new(0) };
}

/// The last 16-bit number this thread has read. In an answer to Produce for one partition, that is its error code, of which
/// the crate keeps only those it knows.
pub fn last_i16() -> i16 {
    LAST_I16.get()
}

/// This thread now reads answers of this shape.
pub fn expect(shape: &'static [Part]) {
    EXPECTED.set(Some(Answer::new(shape)));
}

/// The progress of reading an answer.
struct Answer {
    shape: &'static [Part],
    /// Total length in bytes; it comes first.
    size: Option<i32>,
    /// From the outside in: parts, the next one's index, and the remaining repetitions including the current one.
    within: Vec<(&'static [Part], usize, i32)>,
}

impl Answer {
    fn new(shape: &'static [Part]) -> Answer {
        Answer { shape, size: None, within: vec![(shape, 0, 1)] }
    }

    /// Whether this number is possible here.
    fn takes(&mut self, number: i32) -> bool {
        let Some(size) = self.size else {
            self.size = Some(number);
            return (4..=MOST).contains(&number);
        };
        let Some((parts, at, _)) = self.within.last_mut() else { return true };
        let part = &parts[*at];
        *at += 1;
        let fits = match part {
            Number => true,
            List { bytes, of } => {
                if number > 0 {
                    self.within.push((of, 0, number));
                }
                number <= size / bytes
            }
        };
        self.close();
        fits
    }

    /// Leaves finished parts; after the last part comes another answer.
    fn close(&mut self) {
        while let Some((parts, at, times)) = self.within.last_mut() {
            if *at < parts.len() {
                return;
            }
            (*at, *times) = (0, *times - 1);
            if *times > 0 {
                return;
            }
            self.within.pop();
        }
        *self = Answer::new(self.shape);
    }
}

pub trait ByteOrder {
    fn read_i16(from: &[u8]) -> i16;
    fn read_i32(from: &[u8]) -> i32;
    fn read_i64(from: &[u8]) -> i64;
    fn bytes_i16(number: i16) -> [u8; 2];
    fn bytes_i32(number: i32) -> [u8; 4];
    fn bytes_i64(number: i64) -> [u8; 8];
}

pub struct BigEndian;

/// The first bytes of a slice; the crate ensures that it is long enough.
fn first<const N: usize>(from: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&from[..N]);
    bytes
}

impl ByteOrder for BigEndian {
    fn read_i16(from: &[u8]) -> i16 {
        i16::from_be_bytes(first(from))
    }
    fn read_i32(from: &[u8]) -> i32 {
        i32::from_be_bytes(first(from))
    }
    fn read_i64(from: &[u8]) -> i64 {
        i64::from_be_bytes(first(from))
    }
    fn bytes_i16(number: i16) -> [u8; 2] {
        number.to_be_bytes()
    }
    fn bytes_i32(number: i32) -> [u8; 4] {
        number.to_be_bytes()
    }
    fn bytes_i64(number: i64) -> [u8; 8] {
        number.to_be_bytes()
    }
}

pub trait ReadBytesExt: Read {
    fn read_i8(&mut self) -> Result<i8> {
        Ok(i8::from_be_bytes(exact(self)?))
    }
    fn read_i16<O: ByteOrder>(&mut self) -> Result<i16> {
        let number = O::read_i16(&exact::<2>(self)?);
        LAST_I16.set(number);
        Ok(number)
    }
    fn read_i32<O: ByteOrder>(&mut self) -> Result<i32> {
        let number = O::read_i32(&exact::<4>(self)?);
        let takes = |answer: &mut Option<Answer>| answer.as_mut().is_none_or(|a| a.takes(number));
        match EXPECTED.with_borrow_mut(takes) {
            true => Ok(number),
            false => Err(Error::new(ErrorKind::InvalidData, IMPOSSIBLE)),
        }
    }
    fn read_i64<O: ByteOrder>(&mut self) -> Result<i64> {
        Ok(O::read_i64(&exact::<8>(self)?))
    }
}

/// The error text for the operator.
pub const IMPOSSIBLE: &str = "an answer of an impossible length: no Kafka broker, or damaged on its way";

impl<R: Read + ?Sized> ReadBytesExt for R {}

fn exact<const N: usize>(from: &mut (impl Read + ?Sized)) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

pub trait WriteBytesExt: Write {
    fn write_i8(&mut self, number: i8) -> Result<()> {
        self.write_all(&number.to_be_bytes())
    }
    fn write_i16<O: ByteOrder>(&mut self, number: i16) -> Result<()> {
        self.write_all(&O::bytes_i16(number))
    }
    fn write_i32<O: ByteOrder>(&mut self, number: i32) -> Result<()> {
        self.write_all(&O::bytes_i32(number))
    }
    fn write_i64<O: ByteOrder>(&mut self, number: i64) -> Result<()> {
        self.write_all(&O::bytes_i64(number))
    }
}

impl<W: Write + ?Sized> WriteBytesExt for W {}
