//! Reads ranges of a stream again, wherever its bytes are now: under its path, renamed, copied or compressed. The
//! checksum proves the match: bytes at that offset with the same checksum are those that were read.

use super::gz::Gz;
use super::identity;
use super::siblings::{self, Packed};
use crate::record::{Identity, Range};
use crossbeam_channel::after;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirEntryExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A range and the crc32c of its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    pub range: Range,
    pub crc: u32,
}

/// A rotation in progress may hide a file between two names: number of attempts, and the delay between them.
const LOOKS: u32 = 4;
const APART: Duration = Duration::from_millis(50);

/// The bytes of each range, in the order requested; `None`: not found. An error concerns the folder and may be transient.
/// `kept`: the stream's file, if the descriptor store kept it from the last run.
pub fn reread(
    path: &Path,
    identity: &Identity,
    kept: Option<&File>,
    wanted: &[Wanted],
) -> io::Result<Vec<Option<Vec<u8>>>> {
    let mut found = vec![None; wanted.len()];
    if let Some(file) = kept {
        let _ = plain(file, wanted, &mut found); // after an error, another file may have the same bytes
        if found.iter().all(Option::is_some) {
            return Ok(found);
        }
    }
    for look in 0..LOOKS {
        if look > 0 {
            let _ = after(APART).recv();
        }
        look_once(path, identity, wanted, &mut found)?;
        if found.iter().all(Option::is_some) {
            break;
        }
    }
    Ok(found)
}

fn look_once(
    path: &Path,
    identity: &Identity,
    wanted: &[Wanted],
    found: &mut [Option<Vec<u8>>],
) -> io::Result<()> {
    let mut files = Vec::new();
    if let Ok((file, look)) = identity::open(path) {
        files.push((look.identity != *identity, Packed::Plain, file));
    }
    for sibling in siblings::list_family(path)? {
        if let Ok((file, look)) = identity::open(&sibling.path) {
            files.push((look.identity != *identity, sibling.packed, file));
        }
    }
    // Its name may be another log's by now.
    if files.iter().all(|(other, ..)| *other) {
        let renamed = beside(path, identity).into_iter().filter_map(|path| identity::open(&path).ok());
        let own = renamed.filter(|(_, look)| look.identity == *identity);
        files.extend(own.map(|(file, _)| (false, Packed::Plain, file)));
    }
    files.sort_by_key(|(other, packed, _)| (*other, *packed != Packed::Plain)); // the file itself first
    for (_, packed, file) in files {
        // An error (a damaged `.gz`, a disk) counts as a mismatch: the next file may have the bytes.
        let _ = match packed {
            Packed::Plain => plain(&file, wanted, found),
            Packed::Gzip => packed_in(file, wanted, found),
            Packed::Other => Ok(()),
        };
        if found.iter().all(Option::is_some) {
            break;
        }
    }
    Ok(())
}

/// The names with the stream's inode in the folder of the path, and of its target if it is a symlink.
fn beside(path: &Path, identity: &Identity) -> Vec<PathBuf> {
    let target = siblings::target(path);
    let folders = [Some(path), target.as_deref()].map(|p| p.and_then(Path::parent));
    let names = folders.into_iter().flatten().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
    names.flatten().filter(|name| name.ino() == identity.ino).map(|name| name.path()).collect()
}

fn plain(file: &File, wanted: &[Wanted], found: &mut [Option<Vec<u8>>]) -> io::Result<()> {
    let size = file.metadata()?.len();
    for (w, slot) in wanted.iter().zip(found).filter(|(w, slot)| slot.is_none() && w.range.end <= size) {
        let mut bytes = vec![0; (w.range.end - w.range.start) as usize];
        file.read_exact_at(&mut bytes, w.range.start)?;
        *slot = (crc32c::crc32c(&bytes) == w.crc).then_some(bytes);
    }
    Ok(())
}

fn packed_in(file: File, wanted: &[Wanted], found: &mut [Option<Vec<u8>>]) -> io::Result<()> {
    let mut gz = Gz::new(file);
    let mut order: Vec<usize> = (0..wanted.len()).filter(|i| found[*i].is_none()).collect();
    order.sort_unstable_by_key(|i| wanted[*i].range.start);
    for i in order {
        let Wanted { range, crc } = &wanted[i];
        if gz.position() > range.start {
            continue; // ranges of one stream do not overlap
        }
        gz.skip_to(range.start)?;
        if gz.position() < range.start {
            return Ok(());
        }
        let len = (range.end - range.start) as usize;
        let mut bytes = Vec::new();
        while bytes.len() < len && !gz.fill(range.start + bytes.len() as u64, &mut bytes, len)? {}
        if bytes.len() == len && crc32c::crc32c(&bytes) == *crc {
            found[i] = Some(bytes);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    /// A file that took another log's name, a symlink that leads elsewhere now, and a rotated name that moved on. Fails when only
    /// names that begin with the path's are searched.
    #[test]
    fn whatever_they_are_called() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("b.log"), "bytes\n").unwrap();
        let identity = identity::look_at(&at("b.log")).unwrap().unwrap().identity;
        let wanted = [Wanted { range: 0..6, crc: crc32c::crc32c(b"bytes\n") }];
        let want = [Some(b"bytes\n".to_vec())];
        std::fs::write(at("a.log"), "other\n").unwrap();
        assert_eq!(reread(&at("a.log"), &identity, None, &wanted).unwrap(), want);
        std::fs::create_dir(at("links")).unwrap();
        std::os::unix::fs::symlink("links/2", at("current")).unwrap();
        std::fs::write(at("links/2"), "other\n").unwrap();
        std::fs::hard_link(at("b.log"), at("links/1")).unwrap();
        std::fs::remove_file(at("b.log")).unwrap();
        assert_eq!(reread(&at("current"), &identity, None, &wanted).unwrap(), want);
        let mut e = GzEncoder::new(File::create(at("c.log.2.gz")).unwrap(), Compression::fast());
        e.write_all(b"bytes\n").unwrap();
        e.finish().unwrap();
        assert_eq!(reread(&at("c.log.1"), &identity, None, &wanted).unwrap(), want);
    }

    /// Fails when bytes are not found after a rotation, in a copy or in a `.gz`, or when other bytes are accepted.
    #[test]
    fn wherever_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let content: Vec<u8> = (0..50_000u32).flat_map(|i| format!("{i}\n").into_bytes()).collect();
        std::fs::write(&path, &content).unwrap();
        let identity = identity::look_at(&path).unwrap().unwrap().identity;
        let of = |range: Range| {
            let bytes = &content[range.start as usize..range.end as usize];
            (Wanted { range: range.clone(), crc: crc32c::crc32c(bytes) }, Some(bytes.to_vec()))
        };
        let (wanted, want): (Vec<_>, Vec<_>) = [1000..2000, 5000..100_000, 0..10].map(of).into_iter().unzip();
        let check =
            |want: &[Option<Vec<u8>>]| assert_eq!(reread(&path, &identity, None, &wanted).unwrap(), want);
        check(&want);
        #[allow(clippy::disallowed_methods)]
        std::fs::rename(&path, dir.path().join("a.log.1")).unwrap();
        std::fs::write(&path, vec![b'x'; 300_000]).unwrap();
        check(&want);
        let mut e = GzEncoder::new(File::create(dir.path().join("a.log.2.gz")).unwrap(), Compression::fast());
        e.write_all(&content).unwrap();
        e.finish().unwrap();
        std::fs::remove_file(dir.path().join("a.log.1")).unwrap();
        check(&want);
        std::fs::remove_file(dir.path().join("a.log.2.gz")).unwrap();
        check(&[None, None, None]);
        let mut gone = tempfile::tempfile().unwrap();
        gone.write_all(&content).unwrap();
        assert_eq!(reread(&path, &identity, Some(&gone), &wanted).unwrap(), want);
    }
}
