//! Which file systems another host, or a program, has behind them: its changes make no events here (inotify(7)), and the
//! times of its folders may be old ones that are kept for a while. Looks at no file.

use std::path::Path;

/// By `f_type` of statfs(2). One that cannot be asked counts as local.
pub fn is_network_fs(path: &Path) -> bool {
    const REMOTE: [u64; 8] = [
        0x6969,      // NFS
        0x517b,      // SMB
        0xfe53_4d42, // SMB2
        0xff53_4d42, // CIFS
        0x6573_5546, // FUSE
        0x0102_1997, // 9P
        0x00c3_6400, // CEPH
        0x5346_414f, // AFS
    ];
    rustix::fs::statfs(path).is_ok_and(|s| REMOTE.contains(&(s.f_type as u64 & 0xffff_ffff)))
}
