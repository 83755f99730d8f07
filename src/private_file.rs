//! Opens and creates the agent's own files. None is opened through a symlink, so another user cannot redirect a
//! write.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens a file readable only by its owner, creating it if missing.
pub fn open_or_create(path: &Path) -> io::Result<File> {
    open(OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600), path)
}

/// Like [`open_or_create`], for appending.
pub fn append(path: &Path) -> io::Result<File> {
    open(OpenOptions::new().append(true).create(true).mode(0o600), path)
}

/// Opens an existing file for reading and writing.
pub fn open_existing(path: &Path) -> io::Result<File> {
    open(OpenOptions::new().read(true).write(true), path)
}

/// Opens a file for reading.
pub fn open_read(path: &Path) -> io::Result<File> {
    open(OpenOptions::new().read(true), path)
}

fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.custom_flags(libc::O_NOFOLLOW).open(path).map_err(|e| match e.raw_os_error() {
        Some(libc::ELOOP) => {
            io::Error::new(ErrorKind::InvalidInput, "it is a symbolic link, which is not followed here")
        }
        _ => e,
    })
}

/// What to do about an error of this module: `otherwise`, unless the file is a symbolic link.
pub fn fix<'a>(e: &io::Error, otherwise: &'a str) -> &'a str {
    match e.kind() {
        ErrorKind::InvalidInput => "replace the link by the file itself (the whole folder may be a link)",
        _ => otherwise,
    }
}

/// Creates a new file, removing whatever has that name; a symlink there is not followed. The umask applies to `mode`.
pub fn replace(path: &Path, mode: u32) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}
