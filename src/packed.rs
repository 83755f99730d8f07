//! Compressed files, as their names tell them. Rotation tools make them from files that were read before; they are read only
//! where they hold lines of a followed log that were not.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How a rotated file is packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packed {
    Plain,
    Gzip,
    /// bzip2, xz, zstd, compress, lz4: not read, but named when it is the only one to hold unread lines.
    Other,
}

/// How a file of this name is packed.
pub fn packing(path: &Path) -> Packed {
    unpack(path.file_name().unwrap_or_default().as_bytes()).1
}

/// The name without the suffix of its compression.
pub fn unpack(name: &[u8]) -> (&[u8], Packed) {
    if let Some(plain) = name.strip_suffix(b".gz") {
        return (plain, Packed::Gzip);
    }
    let other = [&b".bz2"[..], b".xz", b".zst", b".Z", b".lz4"].iter().find_map(|s| name.strip_suffix(*s));
    other.map_or((name, Packed::Plain), |plain| (plain, Packed::Other))
}
