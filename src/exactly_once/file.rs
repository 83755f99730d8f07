//! The file `flights`: an append-only record log in two halves that survives a kill, and with `sync = "always"` a
//! power loss.
//!
//! ```text
//! 0       head of half 0, 4096 bytes            8192            half 0: records
//! 4096    head of half 1, 4096 bytes            8192 + HALF     half 1: records
//! head    "logagent flights 1\n", u64 generation, u8 synced, 3 x (u8 length, text) machine, boot, made by; u32 crc32c
//! record  u32 length, u32 crc32c of generation and payload, payload
//! ```
//!
//! The half with the highest generation is current. Records are appended to it. When it is full, and at each start, the
//! records still needed are copied to the other half, whose header, written last, makes it current. So one half is
//! whole at every moment. Bytes of an earlier generation are never mistaken for records, because the checksum covers
//! the generation. After a start nothing is ever appended behind a torn record. The file is allocated at full size when
//! it is created, so a full disk cannot stop it later.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const MAGIC: &[u8] = b"logagent flights 1\n";
const HEAD: u64 = 4096;
const DATA: u64 = 2 * HEAD;
/// Bytes per half. Small in tests, so that halves switch often.
pub const HALF: u64 = if cfg!(test) { 8 << 10 } else { 4 << 20 };
/// Bytes of a record in addition to its payload.
pub const FRAME: usize = 8;

/// The machine, boot and program that wrote a half.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    pub machine: String,
    pub boot: String,
    /// All records were synced before their batches were sent.
    pub synced: bool,
}

#[derive(Debug)]
pub struct IntentFile {
    file: File,
    half: u64,
    generation: u64,
    /// Position of the next record, relative to the half's start.
    at: u64,
    written: u64,
}

/// The content of a `flights` file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct IntentFileContent {
    /// `None`: no half is whole.
    pub binding: Option<Binding>,
    pub records: Vec<Vec<u8>>,
    /// The file was not empty, so without a whole half it is damaged.
    pub content: bool,
}

/// Records appended with one write.
#[derive(Debug, Default)]
pub struct RecordGroup {
    bytes: Vec<u8>,
}

impl IntentFile {
    /// Opens a readable and writable file. Nothing is written before [`IntentFile::begin`], which must be called
    /// next.
    pub fn open(file: File) -> io::Result<(IntentFile, IntentFileContent)> {
        let mut store = IntentFile { file, half: 1, generation: 0, at: 0, written: 0 };
        let mut found =
            IntentFileContent { content: store.file.metadata()?.len() > 0, ..IntentFileContent::default() };
        let mut best: Option<(u64, u64, Binding)> = None;
        for half in 0..2 {
            let mut head = vec![0; HEAD as usize];
            if store.file.read_exact_at(&mut head, half * HEAD).is_err() {
                continue;
            }
            if let Some((generation, binding)) = read_head(&head)
                && best.as_ref().is_none_or(|b| b.0 < generation)
            {
                best = Some((generation, half, binding));
            }
        }
        if let Some((generation, half, binding)) = best {
            (store.generation, store.half) = (generation, half);
            found.records = store.records()?;
            found.binding = Some(binding);
        }
        Ok((store, found))
    }

    fn base(&self) -> u64 {
        DATA + self.half * HALF
    }

    fn records(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut records = Vec::new();
        let mut at = 0;
        loop {
            let mut frame = [0; FRAME];
            if at + FRAME as u64 > HALF || !self.is_there(&mut frame, at)? {
                return Ok(records);
            }
            let [a, b, c, d, e, f, g, h] = frame;
            let (len, crc) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
            at += FRAME as u64;
            if len == 0 || at + u64::from(len) > HALF {
                return Ok(records);
            }
            let mut payload = vec![0; len as usize];
            if !self.is_there(&mut payload, at)? || crc != check(self.generation, &payload) {
                return Ok(records);
            }
            at += u64::from(len);
            records.push(payload);
        }
    }

    /// Reads from the half; `false` if the file is too short.
    fn is_there(&self, bytes: &mut [u8], at: u64) -> io::Result<bool> {
        match self.file.read_exact_at(bytes, self.base() + at) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Makes the other half current, starting with these records. After an error the old half is still current.
    pub fn begin(&mut self, binding: &Binding, payloads: impl Iterator<Item = Vec<u8>>) -> io::Result<()> {
        if self.file.metadata()?.len() < DATA + 2 * HALF {
            allocate(&self.file, DATA + 2 * HALF)?;
        }
        let mut next = IntentFile {
            file: self.file.try_clone()?,
            half: 1 - self.half,
            generation: self.generation + 1,
            at: 0,
            written: self.written,
        };
        let mut group = RecordGroup::default();
        for payload in payloads {
            next.add(&mut group, &payload);
        }
        if !next.fits(&group) {
            return Err(io::Error::other("more unsettled intents than the file holds"));
        }
        next.append(&group, false)?;
        if binding.synced {
            next.file.sync_data()?;
        }
        let head = head(next.generation, binding);
        next.file.write_all_at(&head, next.half * HEAD)?;
        next.written += head.len() as u64;
        if binding.synced {
            next.file.sync_data()?;
        }
        *self = next;
        Ok(())
    }

    pub fn add(&self, group: &mut RecordGroup, payload: &[u8]) {
        group.bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        group.bytes.extend_from_slice(&check(self.generation, payload).to_le_bytes());
        group.bytes.extend_from_slice(payload);
    }

    pub fn fits(&self, group: &RecordGroup) -> bool {
        self.at + group.bytes.len() as u64 <= HALF
    }

    /// Whether a record of this size fits behind this group.
    pub fn has_room(&self, group: &RecordGroup, payload: usize) -> bool {
        self.at + (group.bytes.len() + FRAME + payload) as u64 <= HALF
    }

    /// After an error the next append writes at the same position.
    pub fn append(&mut self, group: &RecordGroup, sync: bool) -> io::Result<()> {
        self.file.write_all_at(&group.bytes, self.base() + self.at)?;
        if sync {
            self.file.sync_data()?;
        }
        self.at += group.bytes.len() as u64;
        self.written += group.bytes.len() as u64;
        Ok(())
    }

    /// Bytes written by this process.
    pub fn written(&self) -> u64 {
        self.written
    }
}

impl RecordGroup {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

fn allocate(file: &File, len: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        Ok(()) => Ok(()),
        // The file system does not support it: write zeros instead.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
            let have = file.metadata()?.len();
            let zeros = vec![0; 64 << 10];
            let mut at = have;
            while at < len {
                let n = zeros.len().min((len - at) as usize);
                file.write_all_at(&zeros[..n], at)?;
                at += n as u64;
            }
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}

fn check(generation: u64, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&generation.to_le_bytes()), payload)
}

fn head(generation: u64, b: &Binding) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&generation.to_le_bytes());
    out.push(u8::from(b.synced));
    for text in [b.machine.as_str(), b.boot.as_str(), env!("CARGO_PKG_VERSION")] {
        let text = &text.as_bytes()[..text.len().min(255)];
        out.push(text.len() as u8);
        out.extend_from_slice(text);
    }
    out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
    out.resize(HEAD as usize, 0);
    out
}

fn read_head(head: &[u8]) -> Option<(u64, Binding)> {
    let rest = head.strip_prefix(MAGIC)?;
    let (generation, rest) = rest.split_first_chunk::<8>()?;
    let (synced, mut rest) = rest.split_first()?;
    let mut texts = Vec::new();
    for _ in 0..3 {
        let (len, after) = rest.split_first()?;
        let (text, after) = after.split_at_checked(usize::from(*len))?;
        texts.push(String::from_utf8_lossy(text).into_owned());
        rest = after;
    }
    let said = head.len() - rest.len();
    let crc = rest.first_chunk::<4>()?;
    if u32::from_le_bytes(*crc) != crc32c::crc32c(&head[..said]) {
        return None;
    }
    texts.pop();
    let (boot, machine) = (texts.pop()?, texts.pop()?);
    Some((u64::from_le_bytes(*generation), Binding { machine, boot, synced: *synced == 1 }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::Dice;
    use crate::private_file::open_or_create;
    use std::path::Path;

    fn open(path: &Path) -> (IntentFile, IntentFileContent) {
        IntentFile::open(open_or_create(path).unwrap()).unwrap()
    }

    fn binding() -> Binding {
        Binding { machine: "m".into(), boot: "b".into(), synced: true }
    }

    fn put(store: &mut IntentFile, payload: &[u8]) {
        let mut group = RecordGroup::default();
        store.add(&mut group, payload);
        store.append(&group, false).unwrap();
    }

    /// Fails when a record is lost, or one of an earlier generation reappears.
    #[test]
    fn records_over_many_generations() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flights");
        assert_eq!(open(&path).1, IntentFileContent::default());
        let mut want: Vec<Vec<u8>> = Vec::new();
        let mut dice = Dice(1);
        for round in 0..50u8 {
            let (mut store, found) = open(&path);
            assert_eq!(found.records, want);
            assert_eq!(found.binding.is_some(), round > 0);
            want.drain(..dice.below(want.len() as u64 + 1) as usize);
            store.begin(&binding(), want.iter().cloned()).unwrap();
            for _ in 0..dice.below(5) {
                let payload = vec![round; 1 + dice.below(300) as usize];
                put(&mut store, &payload);
                want.push(payload);
            }
        }
    }

    /// Crash images: the writes of a switch of halves and of an append, each cut short at every length (a kill keeps
    /// everything written before it). Fails when any of them loses a record that counted before, or returns a torn
    /// one.
    #[test]
    fn every_cut_leaves_a_whole_half() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flights");
        let (mut store, _) = open(&path);
        store.begin(&binding(), [b"one".to_vec(), b"two".to_vec()].into_iter()).unwrap();
        let old = vec![b"one".to_vec(), b"two".to_vec()];
        let image = std::fs::read(&path).unwrap();
        // An append.
        put(&mut store, b"three");
        let after = std::fs::read(&path).unwrap();
        let changed: Vec<usize> = (0..image.len()).filter(|i| image[*i] != after[*i]).collect();
        for cut in 0..=changed.len() {
            let mut torn = image.clone();
            changed[..cut].iter().for_each(|i| torn[*i] = after[*i]);
            std::fs::write(&path, &torn).unwrap();
            let records = open(&path).1.records;
            assert_eq!(&records[..2], &old[..]);
            assert_eq!(records.len(), if cut == changed.len() { 3 } else { 2 });
        }
        // A switch of halves: records first, then the header.
        std::fs::write(&path, &image).unwrap();
        let (mut store, _) = open(&path);
        store.begin(&binding(), [b"two".to_vec()].into_iter()).unwrap();
        let after = std::fs::read(&path).unwrap();
        let mut changed: Vec<usize> = (0..image.len()).filter(|i| image[*i] != after[*i]).collect();
        changed.sort_by_key(|i| *i < DATA as usize);
        for cut in 0..=changed.len() {
            let mut torn = image.clone();
            changed[..cut].iter().for_each(|i| torn[*i] = after[*i]);
            std::fs::write(&path, &torn).unwrap();
            let records = open(&path).1.records;
            let new = cut == changed.len();
            assert_eq!(records, if new { vec![b"two".to_vec()] } else { old.clone() }, "cut {cut}");
        }
    }

    /// Fails when a zeroed or damaged file passes for an empty one.
    #[test]
    fn damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flights");
        for bytes in [vec![0; 1 << 20], vec![7; 100]] {
            std::fs::write(&path, bytes).unwrap();
            let found = open(&path).1;
            assert!(found.content && found.binding.is_none());
        }
    }

    /// Fails when a length in the file is trusted, or when a record is returned that was never written.
    #[test]
    fn fuzz_intent_file() {
        const HEADS: usize = 100;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flights");
        let sample = |payloads: &[&[u8]]| {
            let mut bytes = head(3, &binding());
            bytes.resize(HEADS, 0);
            for payload in payloads {
                bytes.extend((payload.len() as u32).to_le_bytes());
                bytes.extend(check(3, payload).to_le_bytes());
                bytes.extend_from_slice(payload);
            }
            bytes
        };
        let written: [&[u8]; 4] = [b"one", b"three", &[7; 900], b"x"];
        let samples =
            [sample(&[]), sample(&written[..2]), sample(&written[2..]), sample(&[b"one", b"", b"x"])];
        crate::fuzz::damaged(&samples, <[u8]>::len, |bytes| {
            let file = open_or_create(&path).unwrap();
            file.set_len(0).unwrap();
            let (first, rest) = bytes.split_at(bytes.len().min(HEADS));
            file.write_all_at(first, 0).unwrap();
            file.write_all_at(rest, DATA).unwrap();
            let (_, found) = IntentFile::open(file).unwrap();
            assert!(found.records.iter().all(|r| written.contains(&&r[..])), "{:?}", found.records);
            found.records.iter().map(Vec::len).sum()
        });
    }
}
