//! Caches the contents of compressed files: their length, their first bytes, and the marks at requested offsets. Each file
//! is decompressed as rarely as possible: once for its end, and once for all offsets.

use super::gz::Gz;
use super::identity::Look;
use crate::record::{Identity, Mark};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Seek};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Keyed by identity, size and modification time.
#[derive(Debug, Default)]
pub struct UnpackedCache(Mutex<HashMap<AsItWas, UnpackedFile>>);

type AsItWas = (Identity, u64, i64);

#[derive(Clone, Debug)]
struct UnpackedFile {
    end: (u64, Mark),
    /// The first ≤ 256 bytes, set once a mark was requested.
    head: Vec<u8>,
    marks: BTreeMap<u64, Mark>,
}

/// Maximum number of files to remember.
const MOST: usize = 1024;

impl UnpackedCache {
    fn lock(&self) -> MutexGuard<'_, HashMap<AsItWas, UnpackedFile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, look: &Look, content: UnpackedFile) {
        let mut all = self.lock();
        if all.len() >= MOST {
            all.clear();
        }
        all.insert((look.identity.clone(), look.size, look.modified), content);
    }

    fn content(&self, file: &File, look: &Look) -> io::Result<UnpackedFile> {
        let key = (look.identity.clone(), look.size, look.modified);
        if let Some(content) = self.lock().get(&key) {
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
}
