//! Recognizes compressed files by name. Rotation tools make them from files that have been read; a `.gz` is read only
//! if it contains unread lines of a followed log.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How a rotated file is compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packed {
    Plain,
    Gzip,
    /// bzip2, xz, zstd, compress, lz4: not read, but reported if it is the only file with unread lines.
    Other,
}

/// The compression that the file name indicates.
pub fn packing(path: &Path) -> Packed {
    unpack(path.file_name().unwrap_or_default().as_bytes()).1
}

/// The name without its compression suffix.
pub fn unpack(name: &[u8]) -> (&[u8], Packed) {
    if let Some(plain) = name.strip_suffix(b".gz") {
        return (plain, Packed::Gzip);
    }
    let other = [&b".bz2"[..], b".xz", b".zst", b".Z", b".lz4"].iter().find_map(|s| name.strip_suffix(*s));
    other.map_or((name, Packed::Plain), |plain| (plain, Packed::Other))
}
