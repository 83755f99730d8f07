//! Caches the contents of compressed files: their length, their first bytes, and the marks at requested offsets. Each file
//! is decompressed as rarely as possible: once for its end, and once for all offsets. Also remembers when they last
//! changed.

use super::gz::Gz;
use super::identity::Look;
use crate::lock::lock;
use crate::packed::Packed;
use crate::record::{Identity, Mark};
use flate2::read::MultiGzDecoder;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[derive(Debug, Default)]
pub struct UnpackedCache {
    contents: Mutex<HashMap<AsItWas, UnpackedFile>>,
    changes: Mutex<HashMap<Identity, LastChange>>,
    /// Of plain files too.
    sums: Mutex<HashMap<AsItWas, u32>>,
}

/// Identity, size and modification time.
type AsItWas = (Identity, u64, i64);

#[derive(Debug)]
struct LastChange {
    size: u64,
    modified: i64,
    /// `None`: before the first look, and long ago.
    at: Option<Instant>,
}

#[derive(Clone, Debug)]
struct UnpackedFile {
    end: (u64, Mark),
    /// The first ≤ 256 bytes, set once a mark was requested.
    head: Vec<u8>,
    marks: BTreeMap<u64, Mark>,
}

/// Maximum number of files to remember.
const MOST: usize = 1024;

/// A file that has not changed for this long is no longer being compressed.
const GROWS: Duration = Duration::from_secs(60);

fn as_it_was(look: &Look) -> AsItWas {
    (look.identity.clone(), look.size, look.modified)
}

fn insert<V>(all: &mut HashMap<AsItWas, V>, key: AsItWas, value: V) {
    if all.len() >= MOST {
        all.clear();
    }
    all.insert(key, value);
}

fn sum(mut content: impl Read) -> io::Result<u32> {
    let (mut sum, mut buffer) = (0, vec![0; 64 << 10]);
    loop {
        match content.read(&mut buffer) {
            Ok(0) => return Ok(sum),
            Ok(n) => sum = crc32c::crc32c_append(sum, &buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

impl UnpackedCache {
    fn remember(&self, look: &Look, content: UnpackedFile) {
        insert(&mut lock(&self.contents), as_it_was(look), content);
    }

    fn content(&self, file: &File, look: &Look) -> io::Result<UnpackedFile> {
        if let Some(content) = lock(&self.contents).get(&as_it_was(look)) {
            return Ok(content.clone());
        }
        let content = UnpackedFile { end: Gz::end(file)?, head: Vec::new(), marks: BTreeMap::new() };
        self.remember(look, content.clone());
        Ok(content)
    }

    /// Length of the content and the mark at its end. An error if the file is damaged or incomplete.
    pub fn end(&self, file: &File, look: &Look) -> io::Result<(u64, Mark)> {
        Ok(self.content(file, look)?.end)
    }

    /// The mark of an offset in the content; `also` lists offsets that may be needed soon. `None`: the content is shorter.
    pub fn mark(
        &self,
        file: &File,
        look: &Look,
        offset: u64,
        also: &BTreeSet<u64>,
    ) -> io::Result<Option<Mark>> {
        let content = self.content(file, look)?;
        match content.marks.get(&offset) {
            _ if content.end.0 == offset => Ok(Some(content.end.1)),
            _ if content.end.0 < offset => Ok(None),
            Some(mark) => Ok(Some(*mark)),
            None => Ok(self.look_into(file, look, content, offset, also)?.marks.get(&offset).copied()),
        }
    }

    pub fn head(&self, file: &File, look: &Look, also: &BTreeSet<u64>) -> io::Result<Vec<u8>> {
        let content = self.content(file, look)?;
        let span = content.end.0.min(Mark::SPAN as u64);
        if content.head.len() as u64 == span {
            return Ok(content.head);
        }
        Ok(self.look_into(file, look, content, span, also)?.head)
    }

    /// The crc32c of the whole content.
    pub fn sum(&self, mut file: &File, look: &Look, packed: Packed) -> io::Result<u32> {
        let key = as_it_was(look);
        let sums = || lock(&self.sums);
        if let Some(sum) = sums().get(&key) {
            return Ok(*sum);
        }
        file.rewind()?;
        let sum = match packed {
            Packed::Plain => sum(file.take(look.size)),
            _ => sum(MultiGzDecoder::new(BufReader::new(file))),
        };
        file.rewind()?;
        let sum = sum?;
        insert(&mut sums(), key, sum);
        Ok(sum)
    }

    /// Whether the file was written so recently that it may still be growing. The wall clock only decides at the first look,
    /// because it may be set at any time, and a file server has its own: a time in the future counts as recent.
    pub fn may_grow(&self, look: &Look) -> bool {
        self.may_grow_at(look, Instant::now(), SystemTime::now())
    }

    fn may_grow_at(&self, look: &Look, now: Instant, wall: SystemTime) -> bool {
        let mut changes = lock(&self.changes);
        if changes.len() >= MOST && !changes.contains_key(&look.identity) {
            changes.clear();
        }
        let Look { size, modified, .. } = *look;
        let change = changes.entry(look.identity.clone()).or_insert_with(|| {
            let written = UNIX_EPOCH + Duration::from_nanos(modified.max(0) as u64);
            let is_old = wall.duration_since(written).is_ok_and(|age| age >= GROWS);
            LastChange { size, modified, at: (!is_old).then_some(now) }
        });
        if (change.size, change.modified) != (size, modified) {
            *change = LastChange { size, modified, at: Some(now) };
        }
        change.at.is_some_and(|at| now.duration_since(at) < GROWS)
    }

    fn look_into(
        &self,
        file: &File,
        look: &Look,
        mut content: UnpackedFile,
        offset: u64,
        also: &BTreeSet<u64>,
    ) -> io::Result<UnpackedFile> {
        let span = content.end.0.min(Mark::SPAN as u64);
        let mut offsets = BTreeSet::new();
        offsets.extend(also.range(..content.end.0));
        offsets.extend([span, offset]);
        let mut rewind = file;
        rewind.rewind()?;
        let mut gz = Gz::new(file.try_clone()?);
        let mut before = Vec::new();
        for offset in offsets {
            before.extend(gz.skip_to(offset)?);
            let over = before.len().saturating_sub(Mark::SPAN);
            before.drain(..over);
            content.marks.insert(offset, Mark::of(&before));
            if offset == span {
                content.head = before.clone();
            }
        }
        rewind.rewind()?;
        self.remember(look, content.clone());
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tail::identity;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    /// Fails when the mark of an offset differs from that of the plain content, whatever the order and distance of the
    /// requested offsets.
    #[test]
    fn marks_are_those_of_the_content() {
        let content: Vec<u8> = (0..20_000u32).flat_map(|i| format!("{i} ").into_bytes()).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.gz");
        let mut e = GzEncoder::new(File::create(&path).unwrap(), Compression::fast());
        e.write_all(&content).unwrap();
        e.finish().unwrap();
        let (file, look) = identity::open(&path).unwrap();
        let unpacked = UnpackedCache::default();
        let also = BTreeSet::from([1, 10, 255, 256, 257, 9000, 9001, 50_000, 10_000_000]);
        assert_eq!(unpacked.head(&file, &look, &also).unwrap(), content[..256]);
        for offset in [9001, 1, 10, 256, 257, 70_000, 69_999, content.len() as u64] {
            let mark = unpacked.mark(&file, &look, offset, &also).unwrap();
            assert_eq!(mark, Some(Mark::of(&content[..offset as usize])), "{offset}");
        }
        assert_eq!(unpacked.mark(&file, &look, content.len() as u64 + 1, &also).unwrap(), None);
    }

    /// A `.gz` is being compressed, and the wall clock is set meanwhile. Fails when its age is taken from the wall clock at
    /// each look: after it was set back, the file looked damaged, and the rest of it was lost.
    #[test]
    fn the_age_of_a_file_outlives_a_set_clock() {
        let secs = Duration::from_secs;
        let (start, noon) = (Instant::now(), UNIX_EPOCH + secs(1_800_000_000));
        let at = |modified: SystemTime, size| Look {
            size,
            modified: modified.duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64,
            ..identity::look_at(std::path::Path::new("/")).unwrap().unwrap()
        };
        for (wall, modified, name) in [
            (noon, noon - secs(1), "a correct clock"),
            (noon - secs(3600), noon, "set back before the first look"),
        ] {
            let cache = UnpackedCache::default();
            for (age, wall, may_grow) in [
                (0, wall, true),
                (30, wall + secs(30), true),
                (31, wall - secs(3600), true),
                (32, wall + secs(86_400), true),
                (60, wall - secs(3600), false),
            ] {
                let is = cache.may_grow_at(&at(modified, 7), start + secs(age), wall);
                assert_eq!(is, may_grow, "{name}: after {age} s");
            }
            let grown = at(modified, 8);
            assert!(cache.may_grow_at(&grown, start + secs(70), wall + secs(86_400)), "{name}: it grew");
            assert!(!cache.may_grow_at(&grown, start + secs(130), wall), "{name}: and then no more");
        }
        let cache = UnpackedCache::default();
        assert!(!cache.may_grow_at(&at(noon - secs(60), 7), start, noon), "an old file is not waited for");
    }
}
