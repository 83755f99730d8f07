//! Detects network and FUSE file systems. Changes made by another host produce no inotify events there (inotify(7)),
//! and folder timestamps may be cached and stale.

use std::path::Path;

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
    rustix::fs::statfs(path).is_ok_and(|s| NETWORK_FS.contains(&(s.f_type as u64 & 0xffff_ffff)))
}
