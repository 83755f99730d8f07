//! Registers where to start reading in a file that has no thread yet. `start` then refers to now rather than to the start of
//! the thread, and a rename, a deletion or a restart in the meantime loses no line.

use super::content::point_at;
use super::known::Known;
use super::{TailOptions, identity};
use crate::chunk::Origin;
use crate::record::{Closed, Ending};
use crate::report::Board;
use crate::streams::Opened;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// The messages for the registry: the file's stream is opened and parked at once. `None`: the path or the file is already
/// known, and its tail will continue from there.
pub fn reserve(o: &TailOptions, known: &Known, board: &Board) -> io::Result<Option<(Opened, Closed)>> {
    if !known.of(&o.path).is_empty() {
        return Ok(None);
    }
    let (file, look) = identity::open(&o.path)?;
    let at = point_at(&file, &look, o.start.offset(&file, look.size)?)?;
    let Some(entry) = known.begin_if_new(&look, &o.path) else { return Ok(None) };
    known.release(entry.stream, at, look.size, look.modified, false);
    let origin = Arc::new(Origin {
        stream: entry.stream,
        topic: o.topic.clone(),
        path: o.path.clone(),
        shape: o.shape.clone(),
        progress: board.progress(entry.stream, at.offset, look.size, look.size),
    });
    if let Some(file) = board.files().get_mut(&o.path) {
        file.progress = vec![origin.progress.clone()];
    }
    let closed = Closed { stream: entry.stream, why: Ending::Parked };
    Ok(Some((origin.opened(look.identity, at), closed)))
}

/// Looks at a file that still has no thread: the status shows its unread bytes, and a deletion counts them as lost.
pub fn look_again(path: &Path, known: &Known, board: &Board) {
    let Ok(Some(look)) = identity::look_at(path) else { return };
    known.grew(&look, path);
    let files = board.files();
    let progress = files.get(path).and_then(|f| f.progress.last());
    // A different file at the path is shown once there is a thread.
    if let Some(progress) = progress
        && progress.who().is_some_and(|(_, identity)| identity == look.identity)
    {
        progress.saw(look.size, Instant::now());
    }
}
