//! Reads files with keys, certificates and passwords: in full at each connect, within size limits, and wiped after
//! use.

use crate::base64;
use crate::error::Reason;
use rustix::fs::OFlags;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use zeroize::Zeroizing;

/// Maximum size of a certificate file: all roots of a distribution are some 220 KB.
pub const PEM_MOST: u64 = 2 << 20;
/// Maximum size of a password.
pub const PASSWORD_MOST: u64 = 4096;

/// The content of a regular file. The error names the path and what to do, and never includes the content.
pub fn read(path: &Path, what: &str, most: u64) -> Result<Zeroizing<Vec<u8>>, Reason> {
    let wrong = |why: &str| Reason::from(format!("{what} {}: {why}", path.display()));
    // NONBLOCK: a FIFO at this path must not block the connection.
    let flags = OFlags::NONBLOCK.bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path);
    let mut file = file
        .map_err(|e| Reason { fix: Some("let the agent's user read it".into()), ..wrong(&e.to_string()) })?;
    let meta = file.metadata().map_err(|e| wrong(&e.to_string()))?;
    if !meta.is_file() {
        let why = if meta.is_dir() { "it is a folder" } else { "not a regular file" };
        return Err(Reason { fix: Some("name a file".into()), ..wrong(why) });
    }
    if meta.len() > most {
        return Err(wrong(&format!("{} bytes, over the limit of {most}", meta.len())));
    }
    // Allocate everything at once: a growing vector leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(meta.len() as usize + 1));
    let room = meta.len() + 1;
    file.by_ref().take(room).read_to_end(&mut bytes).map_err(|e| wrong(&e.to_string()))?;
    if bytes.len() as u64 > meta.len() {
        return Err(wrong("grew while it was being read"));
    }
    Ok(bytes)
}

/// The secret text in a file, without the trailing newline that `echo` and editors write. Works with systemd
/// credentials. `key`: the config key that names the file.
pub fn text(path: &Path, key: &str, most: u64) -> Result<Zeroizing<Vec<u8>>, Reason> {
    let mut bytes = read(path, key, most)?;
    for end in [b'\n', b'\r'] {
        if bytes.last() == Some(&end) {
            bytes.pop();
        }
    }
    if bytes.is_empty() {
        return Err(Reason::new(
            format!("{key} {}: it is empty", path.display()),
            "write the secret into it",
        ));
    }
    Ok(bytes)
}

/// All parts in one buffer that is wiped. It never grows, because that would leave copies behind.
pub fn joined(parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let mut all = Zeroizing::new(Vec::with_capacity(parts.iter().map(|part| part.len()).sum()));
    parts.iter().for_each(|part| all.extend_from_slice(part));
    all
}

/// User name and password as HTTP's Basic credentials (RFC 7617).
pub fn basic(user: &[u8], password: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(base64::encode(&joined(&[user, b":", password])))
}

/// Text from a peer, as shown to the operator: one line of at most 300 characters, and none of it if it echoes one of
/// the secrets.
pub fn one_line(text: &str, secrets: &[&[u8]]) -> String {
    let echoes = |s: &&[u8]| !s.is_empty() && text.as_bytes().windows(s.len()).any(|part| part == *s);
    if secrets.iter().any(echoes) {
        return "(its text contains the secret)".into();
    }
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(300).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when a trailing newline becomes part of the password, or more than one is removed.
    #[test]
    fn one_trailing_newline_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        let all: [(&[u8], Option<&[u8]>); 7] = [
            (b"s3cret", Some(b"s3cret")),
            (b"s3cret\n", Some(b"s3cret")),
            (b"s3cret\r\n", Some(b"s3cret")),
            (b"two\n\n", Some(b"two\n")),
            (b" blank \n", Some(b" blank ")),
            (b"\n", None),
            (b"", None),
        ];
        for (written, want) in all {
            std::fs::write(&path, written).unwrap();
            assert_eq!(
                text(&path, "password_file", PASSWORD_MOST).ok().as_deref().map(|p| &p[..]),
                want,
                "{written:?}"
            );
        }
    }

    /// Fails when a FIFO, a folder or a huge file is read.
    #[test]
    fn only_small_regular_files() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
        let large = dir.path().join("large");
        std::fs::write(&large, vec![b'x'; PASSWORD_MOST as usize + 1]).unwrap();
        for (path, why) in [
            (&fifo, "not a regular file"),
            (&dir.path().to_owned(), "it is a folder; name a file"),
            (&large, "over the limit of 4096"),
            (&dir.path().join("gone"), "No such file"),
        ] {
            let said = text(path, "password_file", PASSWORD_MOST).unwrap_err().to_string();
            assert!(said.starts_with("password_file /") && said.contains(why), "{said}");
        }
    }
}
