//! Matches the descriptors returned by systemd's store to saved streams, by what the kernel says about each
//! descriptor and never by its name. The tail that claims a file verifies its contents.

use super::supervisor::SourceOptions;
use crate::fdstore::{FdStore, InheritedFd};
use crate::record::StreamId;
use crate::streams::{Saved, SavedStream};
use crate::tail::identity::{self, Look};
use log::{info, warn};
use rustix::fs::{FileType, OFlags, fcntl_getfl};
use std::fs::File;

/// Assigns each file to its stream; all others are logged, closed and dropped from the store.
pub fn adopt(given: Vec<InheritedFd>, store: &FdStore, saved: &Saved, sources: &[SourceOptions]) {
    let mut adopted: Vec<(StreamId, String)> = Vec::new();
    let mut others: Vec<String> = Vec::new();
    for InheritedFd { name, fd } in given {
        let readable = fcntl_getfl(&fd).is_ok_and(is_readable);
        let judged = match identity::look(&fd) {
            Ok(look) if readable => judge(&look, saved, sources),
            Ok(_) => Err("it is not open for reading".into()),
            Err(e) => Err(e.to_string()),
        };
        match judged {
            Ok(Some(stream)) if adopted.iter().all(|(s, _)| *s != stream) => {
                adopted.push((stream, name.clone()));
                store.adopt(stream, name, File::from(fd));
            }
            Ok(_) => others.push(name), // fully delivered, or stored twice
            Err(why) => {
                warn!("descriptor {name:?}, kept by systemd, is not used: {why}");
                others.push(name);
            }
        }
    }
    others.retain(|other| adopted.iter().all(|(_, name)| name != other));
    others.into_iter().for_each(|name| store.discard(name));
    if !adopted.is_empty() {
        info!("{} file(s) with undelivered lines were kept by systemd; reading continues", adopted.len());
    }
}

fn is_readable(flags: OFlags) -> bool {
    !flags.contains(OFlags::PATH) && matches!(flags & OFlags::RWMODE, OFlags::RDONLY | OFlags::RDWR)
}

/// The stream whose bytes the file contains; `None` if all of them are delivered; an error says why it belongs to no
/// stream.
fn judge(look: &Look, saved: &Saved, sources: &[SourceOptions]) -> Result<Option<StreamId>, String> {
    if look.kind != FileType::RegularFile {
        return Err(identity::not_regular(look.kind).into());
    }
    let same = |s: &&SavedStream| s.identity == look.identity;
    // The newest, because a truncation starts another stream in the same file.
    let Some(stream) = saved.streams.iter().rev().find(same) else {
        let bytes = look.size;
        return Err(format!("no saved position belongs to it; it contains {bytes} bytes"));
    };
    let path = stream.path.display();
    if stream.finished {
        return Ok(None);
    }
    if !sources.iter().any(|p| p.follows(&stream.path)) {
        return Err(format!("{path} is no longer followed"));
    }
    Ok(Some(stream.stream))
}
