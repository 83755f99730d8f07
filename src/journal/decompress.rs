//! Decompresses values of journal files, up to a size limit.

use std::io::Read;
use zstd::zstd_safe::{DCtx, get_frame_content_size};

/// How a DATA object is compressed, by its flags.
const XZ: u8 = 1;
const LZ4: u8 = 2;
const ZSTD: u8 = 4;
pub const COMPRESSED: u8 = XZ | LZ4 | ZSTD;

/// The largest window that journald compresses with: 2 MiB.
const WINDOW_LOG: u32 = 21;

/// The result of decompressing a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decompressed {
    Whole,
    /// The value is longer than requested.
    Cut,
}

/// A decompression context, reused from value to value.
#[derive(Default)]
pub struct Decompressor {
    zstd: Option<DCtx<'static>>,
}

impl Decompressor {
    /// Appends at most `most` bytes to `out`. `None`: damaged, or a codec that is not built in (xz).
    pub fn unpack(&mut self, flags: u8, from: &[u8], most: usize, out: &mut Vec<u8>) -> Option<Decompressed> {
        match flags & COMPRESSED {
            LZ4 => lz4(from, most, out),
            ZSTD => self.zstd(from, most, out),
            _ => None,
        }
    }

    fn zstd(&mut self, from: &[u8], most: usize, out: &mut Vec<u8>) -> Option<Decompressed> {
        let start = out.len();
        match get_frame_content_size(from) {
            Ok(Some(n)) if n <= most as u64 => {
                out.resize(start + n as usize, 0);
                let context = self.zstd.get_or_insert_with(DCtx::create);
                let got = context.decompress(&mut out[start..], from).ok()?;
                (got as u64 == n).then_some(Decompressed::Whole)
            }
            _ => {
                let mut stream = zstd::stream::read::Decoder::with_buffer(from).ok()?;
                stream.window_log_max(WINDOW_LOG).ok()?;
                stream.take(most as u64 + 1).read_to_end(out).ok()?;
                let cut = out.len() - start > most;
                out.truncate(start + most);
                Some(if cut { Decompressed::Cut } else { Decompressed::Whole })
            }
        }
    }
}

/// Eight bytes of size, then one LZ4 block. Stops when the output is long enough, which `lz4_flex` cannot.
fn lz4(from: &[u8], most: usize, out: &mut Vec<u8>) -> Option<Decompressed> {
    let (size, mut rest) = from.split_first_chunk::<8>()?;
    let size = u64::from_le_bytes(*size);
    let start = out.len();
    let end = start + size.min(most as u64) as usize;
    while out.len() < end {
        let token = next(&mut rest)?;
        let literals = length(&mut rest, token >> 4)?;
        let (literal, after) = rest.split_at_checked(literals)?;
        rest = after;
        out.extend_from_slice(&literal[..literals.min(end - out.len())]);
        if out.len() == end {
            break;
        }
        let back = usize::from(u16::from_le_bytes([next(&mut rest)?, next(&mut rest)?]));
        let matched = length(&mut rest, token & 15)?.checked_add(4)?;
        let from = out.len().checked_sub(back).filter(|from| back > 0 && *from >= start)?;
        for at in from..from + matched.min(end - out.len()) {
            out.push(out[at]);
        }
    }
    Some(if size > most as u64 { Decompressed::Cut } else { Decompressed::Whole })
}

fn next(rest: &mut &[u8]) -> Option<u8> {
    let (first, after) = rest.split_first()?;
    *rest = after;
    Some(*first)
}

fn length(rest: &mut &[u8], nibble: u8) -> Option<usize> {
    let mut n = usize::from(nibble);
    if nibble == 15 {
        loop {
            let more = next(rest)?;
            n = n.checked_add(usize::from(more))?;
            if more != 255 {
                break;
            }
        }
    }
    Some(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(flags: u8, from: &[u8], most: usize) -> Option<(Decompressed, Vec<u8>)> {
        let mut out = b"before".to_vec();
        let how = Decompressor::default().unpack(flags, from, most, &mut out)?;
        Some((how, out.split_off(6)))
    }

    /// Fails when a value exceeds the limit, is cut too early, or a match reaches before its start.
    #[test]
    fn values_are_bounded() {
        let plain: Vec<u8> = (0..200_000u32).map(|i| (i / 300) as u8).collect();
        let mut lz4 = (plain.len() as u64).to_le_bytes().to_vec();
        lz4.extend(lz4_flex::block::compress(&plain));
        let zstd = zstd::bulk::compress(&plain, 1).unwrap();
        for (flags, packed) in [(LZ4, &lz4), (ZSTD, &zstd)] {
            assert_eq!(unpack(flags, packed, 1 << 20), Some((Decompressed::Whole, plain.clone())), "{flags}");
            assert_eq!(
                unpack(flags, packed, 1000),
                Some((Decompressed::Cut, plain[..1000].to_vec())),
                "{flags}"
            );
            assert_eq!(unpack(flags, &packed[..packed.len() / 2], 1 << 20), None, "{flags}");
        }
        let reaches_back = [8, 0, 0, 0, 0, 0, 0, 0, 0x10, b'x', 3, 0];
        assert_eq!(unpack(LZ4, &reaches_back, 100), None);
        assert_eq!(unpack(XZ, &zstd, 100), None);
    }
}
