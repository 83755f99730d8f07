//! Detects network and FUSE file systems, where changes made by another host produce no inotify events (inotify(7)) and
//! folder timestamps may be cached and stale; and files that the kernel makes.

use std::fs::Metadata;
use std::path::Path;

/// Whether the kernel makes the contents of this file while it is read, as in /proc. Its size is 0 then, so it cannot be
/// known what was appended.
pub fn is_generated(path: &Path, m: &Metadata) -> bool {
    const KERNEL_FS: [u64; 5] = [
        0x9fa0,      // proc
        0x6462_6720, // debugfs
        0x7472_6163, // tracefs
        0x6367_7270, // cgroup2
        0x7363_6673, // securityfs
    ];
    m.is_file() && m.len() == 0 && fs_type(path).is_some_and(|t| KERNEL_FS.contains(&t))
}

/// Checks `f_type` of statfs(2). A file system that cannot be queried counts as local.
pub fn is_network_fs(path: &Path) -> bool {
    const NETWORK_FS: [u64; 8] = [
        0x6969,      // NFS
        0x517b,      // SMB
        0xfe53_4d42, // SMB2
        0xff53_4d42, // CIFS
        0x6573_5546, // FUSE
        0x0102_1997, // 9P
        0x00c3_6400, // CEPH
        0x5346_414f, // AFS
    ];
    fs_type(path).is_some_and(|t| NETWORK_FS.contains(&t))
}

fn fs_type(path: &Path) -> Option<u64> {
    rustix::fs::statfs(path).ok().map(|s| s.f_type as u64 & 0xffff_ffff)
}
