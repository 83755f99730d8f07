//! `status --shipped FILE`: checks whether every complete line of a file is acknowledged. For logrotate and clean-up
//! scripts, so the answer is yes only if proven: by the file's identity and its stream's position or, for a copy, by
//! the bytes before the position (its mark). For a `.gz`, all of this applies to the decompressed content.

use crate::error::{Error, ExitCode};
use crate::record::{Identity, Mark};
use crate::report::snapshot::{FileId, Snapshot};
use crate::streams::{Saved, SavedStream};
use crate::tail::content::mark_at;
use crate::tail::gz::Gz;
use crate::tail::identity::{self, Look};
use memchr::memrchr;
use std::fs::File;
use std::io::{self, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes searched at a time for the last newline.
const WINDOW: u64 = 64 << 10;

pub fn run(folder: &Path, path: &Path) -> Result<ExitCode, Error> {
    let what = || format!("{} is not shipped", path.display());
    let trouble = |e: io::Error| Error::failed(what(), e, "name a file that can be read");
    let (file, look) = identity::open(path).map_err(trouble)?;
    if look.size == 0 {
        return Ok(ExitCode::Done); // no complete line
    }
    // Check the running agent first, then the saved state, which covers a file that is finished in between.
    let live = super::ask(folder)?;
    let saved = match super::saved(folder) {
        Ok(saved) => saved,
        Err(_) if live.is_some() => Saved::default(),
        Err(e) => return Err(e),
    };
    let is_packed = path.extension().is_some_and(|e| e == "gz") && !is_followed(&look, live.as_ref(), &saved);
    let content = if is_packed { Content::packed(file) } else { Content::plain(file, look.size) };
    let content = content.map_err(trouble)?;
    let lines_end = content.lines_end;
    if lines_end == 0 {
        return Ok(ExitCode::Done); // no complete line
    }
    match reached(&content, &look, live.as_ref(), &saved).map_err(trouble)? {
        Some(at) if at >= lines_end => Ok(ExitCode::Done),
        Some(at) => {
            let why = format!("{} of {lines_end} bytes of lines are not acknowledged", lines_end - at);
            let fix = if live.is_some() {
                "wait, or see `logagent status`"
            } else {
                "start the agent: none runs on this state folder"
            };
            Err(Error::failed(what(), why, fix))
        }
        None => {
            let why = format!("no agent with state in {} has read this file", folder.display());
            Err(Error::failed(what(), why, "name the right state folder, or add the file to its config"))
        }
    }
}

/// Whether a stream's followed path leads to this file: then its bytes are read directly, whatever its name.
fn is_followed(look: &Look, live: Option<&Snapshot>, saved: &Saved) -> bool {
    let live = live.into_iter().flat_map(|s| &s.files).map(|f| Path::new(&f.path));
    let mut paths = live.chain(saved.streams.iter().map(|s| &*s.path));
    paths.any(|p| identity::look_at(p).is_ok_and(|at| at.is_some_and(|at| at.identity == look.identity)))
}

/// A file's content, addressed by the offsets of its stream.
struct Content {
    file: File,
    packed: bool,
    size: u64,
    /// The position after the last newline.
    lines_end: u64,
}

impl Content {
    fn plain(file: File, size: u64) -> io::Result<Content> {
        let lines_end = lines_end(&file, size)?;
        Ok(Content { file, packed: false, size, lines_end })
    }

    fn packed(file: File) -> io::Result<Content> {
        let (mut gz, mut window, mut lines_end) = (Gz::new(file.try_clone()?), Vec::new(), 0);
        while !gz.is_at_end() {
            let start = gz.position();
            window.clear();
            gz.fill(start, &mut window, WINDOW as usize)?;
            lines_end = memrchr(b'\n', &window).map_or(lines_end, |at| start + at as u64 + 1);
        }
        Ok(Content { file, packed: true, size: gz.position(), lines_end })
    }

    fn mark_at(&self, offset: u64) -> io::Result<Mark> {
        if !self.packed {
            return mark_at(&self.file, offset);
        }
        let mut file = &self.file;
        file.rewind()?;
        Ok(Mark::of(&Gz::new(file.try_clone()?).skip_to(offset)?))
    }

    /// Whether the bytes before the saved position match.
    fn fits(&self, stream: &SavedStream) -> io::Result<bool> {
        let at = &stream.at;
        Ok(at.offset == 0 || at.offset <= self.size && self.mark_at(at.offset)? == at.mark)
    }
}

fn lines_end(file: &File, size: u64) -> io::Result<u64> {
    let mut buffer = vec![0; WINDOW as usize];
    let mut end = size;
    while end > 0 {
        let start = end.saturating_sub(WINDOW);
        let part = &mut buffer[..(end - start) as usize];
        file.read_exact_at(part, start)?;
        if let Some(at) = memrchr(b'\n', part) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// How far the file is acknowledged; `None` if unknown.
fn reached(
    content: &Content,
    look: &Look,
    live: Option<&Snapshot>,
    saved: &Saved,
) -> io::Result<Option<u64>> {
    // A truncation starts a new stream in the same file: the highest number is the current one.
    let open = live.into_iter().flat_map(|s| s.files.iter().flat_map(|f| &f.streams));
    let open = open.filter(|s| s.identity.as_ref().is_some_and(|id| is_same_id(id, &look.identity)));
    let newest = open.max_by_key(|s| s.stream);
    let kept = saved.streams.iter().filter(|s| is_same(&s.identity, &look.identity)).max_by_key(|s| s.stream);
    if let Some(open) = newest
        && kept.is_none_or(|kept| kept.stream.0 <= open.stream)
    {
        // The agent may not have noticed yet that the file has changed.
        let kept = kept.filter(|kept| kept.stream.0 == open.stream);
        let is_there = open.acknowledged <= content.size && kept.map_or(Ok(true), |k| content.fits(k))?;
        return Ok(Some(if is_there { open.acknowledged } else { 0 }));
    }
    if let Some(kept) = kept
        && content.fits(kept)?
    {
        return Ok(Some(kept.at.offset));
    }
    if kept.is_some_and(|kept| !kept.finished) {
        return Ok(None);
    }
    // A copy (`copytruncate`, `cp`) contains the bytes of a stream that was read from another file.
    for stream in saved.streams.iter().rev().filter(|s| s.at.offset >= content.lines_end) {
        // If the writer continued meanwhile, a copy is recognized before all of its content is acknowledged.
        let is_acked = |s: &SavedStream| s.finished || s.stream >= stream.stream || s.path != stream.path;
        if u64::from(stream.at.mark.len) >= (Mark::SPAN as u64).min(stream.at.offset)
            && saved.streams.iter().all(is_acked)
            && content.fits(stream)?
        {
            return Ok(Some(stream.at.offset));
        }
    }
    Ok(None)
}

/// The device number may change across a boot.
pub fn is_same(a: &Identity, b: &Identity) -> bool {
    a.ino == b.ino && a.born == b.born && (a.dev == b.dev || a.born.is_some())
}

fn is_same_id(id: &FileId, of: &Identity) -> bool {
    is_same(&Identity { dev: id.device, ino: id.inode, born: id.born }, of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Point;
    use crate::report::snapshot;
    use flate2::{Compression, write::GzEncoder};
    use std::fs;
    use std::io::Write;
    use std::path::PathBuf;

    struct Bench {
        dir: tempfile::TempDir,
        saved: Saved,
    }

    impl Bench {
        fn new() -> Bench {
            Bench { dir: tempfile::tempdir().unwrap(), saved: Saved::default() }
        }

        fn write(&self, name: &str, text: &[u8]) -> PathBuf {
            let path = self.dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        }

        /// Saves a stream of this file, acknowledged up to `at`.
        fn save(&mut self, stream: u64, path: &Path, at: u64) {
            let (file, look) = identity::open(path).unwrap();
            let at = Point { offset: at, mark: mark_at(&file, at).unwrap(), ..Point::default() };
            self.saved.streams.push(SavedStream::acked(stream, path, look.identity, at, look.size));
        }

        fn reached(&self, path: &Path, live: Option<&Snapshot>) -> Option<u64> {
            let (file, look) = identity::open(path).unwrap();
            let packed = path.extension().is_some_and(|e| e == "gz");
            let content = if packed { Content::packed(file) } else { Content::plain(file, look.size) };
            reached(&content.unwrap(), &look, live, &self.saved).unwrap()
        }
    }

    fn lines(n: usize) -> Vec<u8> {
        (0..n).flat_map(|i| format!("line {i}\n").into_bytes()).collect()
    }

    /// Fails when the incomplete last line is required, or when a newline at the edge of a window is missed.
    #[test]
    fn the_end_of_the_last_line() {
        let bench = Bench::new();
        let end_of = |text: &[u8]| {
            let path = bench.write("a", text);
            lines_end(&File::open(&path).unwrap(), text.len() as u64).unwrap()
        };
        assert_eq!([end_of(b""), end_of(b"abc"), end_of(b"a\n"), end_of(b"a\nbc")], [0, 0, 2, 2]);
        for newline in [0, 1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW - 1] {
            let mut text = vec![b'x'; 3 * WINDOW as usize];
            text[newline as usize] = b'\n';
            assert_eq!(end_of(&text), newline + 1);
        }
    }

    /// Fails when the name counts instead of the file.
    #[test]
    fn a_renamed_file_is_the_same() {
        let mut bench = Bench::new();
        let path = bench.write("a.log", &lines(100));
        bench.save(1, &path, 300);
        let rotated = bench.dir.path().join("a.log.1");
        #[allow(clippy::disallowed_methods)]
        fs::rename(&path, &rotated).unwrap();
        bench.write("a.log", &lines(3));
        assert_eq!(bench.reached(&rotated, None), Some(300));
        assert_eq!(bench.reached(&path, None), None);
    }

    /// Fails when a copy counts as shipped although a line of it is not, or is not recognized.
    #[test]
    fn a_copy_is_known_by_the_bytes_before_the_position() {
        let mut bench = Bench::new();
        let text = lines(100);
        let path = bench.write("a.log", &text);
        bench.save(1, &path, text.len() as u64);
        let copy = bench.write("a.log.1", &text);
        assert_eq!(bench.reached(&copy, None), Some(text.len() as u64));
        let other = bench.write("b.log", &[&text[..text.len() - 2], b"X\n"].concat());
        assert_eq!(bench.reached(&other, None), None);
        let longer = bench.write("a.log.2", &[&text[..], b"more\n"].concat());
        assert_eq!(bench.reached(&longer, None), None);
    }

    /// Fails when a truncated file's old stream answers for its new bytes.
    #[test]
    fn the_newest_stream_of_a_file_decides() {
        let mut bench = Bench::new();
        let path = bench.write("a.log", &lines(100));
        bench.save(1, &path, 790);
        fs::write(&path, lines(120)).unwrap();
        bench.save(2, &path, 70);
        assert_eq!(bench.reached(&path, None), Some(70));
        let identity = Some((&identity::look_at(&path).unwrap().unwrap().identity).into());
        let stream = |stream, acknowledged| snapshot::StreamStatus {
            stream,
            acknowledged,
            identity: identity.clone(),
            ..snapshot::StreamStatus::default()
        };
        let live = |streams| {
            let file = snapshot::File { streams, ..snapshot::File::default() };
            Snapshot { live: true, files: vec![file], ..Snapshot::default() }
        };
        assert_eq!(bench.reached(&path, Some(&live(vec![stream(2, 80)]))), Some(80));
        assert_eq!(bench.reached(&path, Some(&live(vec![stream(3, 9), stream(2, 800)]))), Some(9));
        assert_eq!(bench.reached(&path, Some(&live(vec![stream(1, 790)]))), Some(70));
    }

    /// Without a running agent, a file that was rewritten is not shipped. Fails when the mark is not checked.
    #[test]
    fn a_file_rewritten_in_place_is_another() {
        let mut bench = Bench::new();
        let path = bench.write("a.log", &lines(100));
        bench.save(1, &path, 790);
        fs::write(&path, vec![b'\n'; 790]).unwrap();
        assert_eq!(bench.reached(&path, None), None);
    }

    /// Fails when the lines of a `.gz` are searched in its compressed bytes, which are fewer than those acknowledged.
    #[test]
    fn a_compressed_file_is_judged_by_its_content() {
        let mut bench = Bench::new();
        let (text, path) = (lines(10_000), bench.write("a.log", &lines(10_000)));
        bench.save(1, &path, 50_000);
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        packed.write_all(&text).unwrap();
        let gz = bench.write("a.log.1.gz", &packed.finish().unwrap());
        assert!(fs::metadata(&gz).unwrap().len() < 50_000);
        bench.saved.streams[0].identity = identity::look_at(&gz).unwrap().unwrap().identity;
        assert_eq!(bench.reached(&gz, None), Some(50_000), "a part of it");
        fs::remove_file(&path).unwrap();
        let whole = bench.write("whole.log", &text);
        bench.save(2, &whole, text.len() as u64);
        bench.saved.streams.remove(0);
        assert_eq!(bench.reached(&gz, None), Some(text.len() as u64), "packed after it was read");
    }

    /// Fails when the running agent's answer is used for a file that was truncated or rewritten since its last check.
    #[test]
    fn a_truncation_that_the_agent_has_not_seen() {
        let mut bench = Bench::new();
        let path = bench.write("a.log", &lines(100));
        bench.save(1, &path, 790);
        let identity = Some((&identity::look_at(&path).unwrap().unwrap().identity).into());
        let stream = snapshot::StreamStatus { stream: 1, acknowledged: 790, identity, ..Default::default() };
        let file = snapshot::File { streams: vec![stream], ..Default::default() };
        let live = Snapshot { live: true, files: vec![file], ..Snapshot::default() };
        assert_eq!(bench.reached(&path, Some(&live)), Some(790));
        fs::write(&path, lines(20)).unwrap();
        assert_eq!(bench.reached(&path, Some(&live)), Some(0), "shorter");
        fs::write(&path, vec![b'\n'; 790]).unwrap();
        assert_eq!(bench.reached(&path, Some(&live)), Some(0), "rewritten");
    }
}
