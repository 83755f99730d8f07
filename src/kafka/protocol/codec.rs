//! Compresses a batch's records into a buffer, with contexts that are created once and reused.
//!
//! Levels chosen by measurement (200-byte log lines): gzip 1 compresses at 172 MB/s, while 6 runs at 20 for 20 % fewer
//! bytes; zstd 1 at 384 MB/s, while 3 runs at 226 for 1 % fewer.

use crate::kafka::protocol::lz4;
use flate2::{Compress, Compression, Crc, FlushCompress, Status};
use std::fmt;

/// The record batch's compression; the values are Kafka's attribute bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Codec {
    #[default]
    None = 0,
    Gzip = 1,
    Snappy = 2,
    Lz4 = 3,
    /// From Produce 7 (Kafka 2.1).
    Zstd = 4,
}

impl Codec {
    /// The codec to try if a broker refuses this one. gzip is last, the only one that Event Hubs accepts.
    pub fn fallback(self) -> Codec {
        match self {
            Codec::Zstd => Codec::Lz4,
            Codec::Lz4 | Codec::Snappy => Codec::Gzip,
            Codec::Gzip | Codec::None => Codec::None,
        }
    }
}

/// The contexts of one worker. Each is created on first use: an unused codec costs nothing.
#[derive(Default)]
pub struct Compressor {
    gzip: Option<Compress>,
    snappy: Option<snap::raw::Encoder>,
    lz4: Option<lz4_flex::block::CompressTable>,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Compressor")
    }
}

/// The compressor failed, which happens only when memory is short. The batch is then sent uncompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompressionFailed;

impl Compressor {
    /// Maximum compressed size of `len` bytes, header and trailer included.
    pub fn bound(codec: Codec, len: usize) -> usize {
        match codec {
            Codec::None => len,
            // Deflate stores incompressible data in blocks with 5 bytes overhead; miniz flushes after at most 31 KiB.
            Codec::Gzip => len + len / 1000 + len / (16 << 10) * 5 + 64,
            Codec::Snappy => snap::raw::max_compress_len(len),
            Codec::Lz4 => lz4::bound(len),
            Codec::Zstd => zstd::zstd_safe::compress_bound(len),
        }
    }

    /// Compresses `from` into `to`, which holds [`Compressor::bound`] bytes; returns the number of bytes written.
    pub fn compress(&mut self, codec: Codec, from: &[u8], to: &mut [u8]) -> Result<usize, CompressionFailed> {
        match codec {
            Codec::None => Err(CompressionFailed),
            Codec::Gzip => self.gzip(from, to),
            Codec::Snappy => self
                .snappy
                .get_or_insert_with(snap::raw::Encoder::new)
                .compress(from, to)
                .map_err(|_| CompressionFailed),
            Codec::Lz4 => Ok(lz4::frame(self.lz4.get_or_insert_default(), from, to)),
            Codec::Zstd => {
                if self.zstd.is_none() {
                    self.zstd = zstd::bulk::Compressor::new(1).ok();
                }
                self.zstd.as_mut().and_then(|z| z.compress_to_buffer(from, to).ok()).ok_or(CompressionFailed)
            }
        }
    }

    /// RFC 1952 around raw deflate: flate2's own gzip encoder cannot be reused without allocating.
    fn gzip(&mut self, from: &[u8], to: &mut [u8]) -> Result<usize, CompressionFailed> {
        const HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 0xff];
        let deflate = self.gzip.get_or_insert_with(|| Compress::new(Compression::new(1), false));
        deflate.reset();
        to[..HEAD.len()].copy_from_slice(&HEAD);
        let done = deflate.compress(from, &mut to[HEAD.len()..], FlushCompress::Finish);
        if !matches!(done, Ok(Status::StreamEnd)) {
            return Err(CompressionFailed);
        }
        let at = HEAD.len() + deflate.total_out() as usize;
        let mut crc = Crc::new();
        crc.update(from);
        let tail = to.get_mut(at..at + 8).ok_or(CompressionFailed)?;
        tail[..4].copy_from_slice(&crc.sum().to_le_bytes());
        tail[4..].copy_from_slice(&(from.len() as u32).to_le_bytes());
        Ok(at + 8)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;

    /// Decompresses with the codecs' own readers.
    pub fn decompress(codec: Codec, bytes: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        match codec {
            Codec::None => plain.extend_from_slice(bytes),
            Codec::Gzip => drop(flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).unwrap()),
            Codec::Snappy => plain = snap::raw::Decoder::new().decompress_vec(bytes).unwrap(),
            Codec::Lz4 => drop(lz4_flex::frame::FrameDecoder::new(bytes).read_to_end(&mut plain).unwrap()),
            Codec::Zstd => plain = zstd::stream::decode_all(bytes).unwrap(),
        }
        plain
    }

    pub const ALL: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

    fn round(compress: &mut Compressor, codec: Codec, plain: &[u8]) {
        let mut to = vec![0; Compressor::bound(codec, plain.len())];
        let n = compress.compress(codec, plain, &mut to).unwrap();
        assert!(decompress(codec, &to[..n]) == plain, "{codec:?}, {} bytes", plain.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Fails when a context keeps data of the previous batch, a bound is too small, or a frame's flags are wrong.
        /// `spread` 1 is noise, which cannot be compressed.
        #[test]
        fn round_trip(sizes in proptest::collection::vec(0usize..300_000, 1..4), spread in 1u32..40, seed: u64) {
            let mut compress = Compressor::default();
            for codec in &ALL[1..] {
                let mut x = seed | 1;
                for size in &sizes {
                    let mut plain = Vec::with_capacity(*size);
                    while plain.len() < *size {
                        x ^= x << 13; x ^= x >> 7; x ^= x << 17;
                        plain.extend(x.to_le_bytes().map(|b| if spread == 1 { b } else { b % spread as u8 }));
                    }
                    plain.truncate(*size);
                    round(&mut compress, *codec, &plain);
                }
            }
        }
    }

    /// Fails when a codec needs more stack than a worker thread has.
    #[test]
    fn fits_into_a_small_stack() {
        let work = || {
            let mut compress = Compressor::default();
            ALL[1..].iter().for_each(|c| round(&mut compress, *c, &b"a line of a log file\n".repeat(30_000)));
        };
        std::thread::Builder::new()
            .stack_size(crate::producer::driver::STACK)
            .spawn(work)
            .unwrap()
            .join()
            .unwrap();
    }
}
