//! A replacement, based on `crc32fast`, for the parts of the `crc` crate that `kafka` and, in tests, `kafka-protocol`
//! use.
//!
//! The `kafka` crate makes a new [`Crc`] for every message, and in `crc` that recomputes the whole table, which is more
//! work than everything else the classic driver does for a line.

#![no_std]

/// CRC-32 as in zip and Ethernet.
pub const CRC_32_ISO_HDLC: Algorithm<u32> = Algorithm(0);

pub struct Algorithm<W>(W);

pub struct Crc<W>(W);

impl Crc<u32> {
    #[must_use]
    pub const fn new(algorithm: &'static Algorithm<u32>) -> Self {
        Crc(algorithm.0)
    }

    #[must_use]
    pub fn checksum(&self, bytes: &[u8]) -> u32 {
        let mut sum = crc32fast::Hasher::new_with_initial(self.0);
        sum.update(bytes);
        sum.finalize()
    }
}

/// Fails when the checksum differs from the catalogue's.
#[test]
fn the_check_value_of_the_catalogue() {
    assert_eq!(Crc::<u32>::new(&CRC_32_ISO_HDLC).checksum(b"123456789"), 0xcbf4_3926);
}
