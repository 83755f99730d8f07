//! The one HTTP request that gets a token: a form in, a small answer out (RFC 9112). `parse` does no I/O.

use crate::kafka::net::connection::Trouble;
use crate::kafka::net::stream::Stream;
use crate::waker::poll_for;
use rustix::event::{PollFd, PollFlags};
use std::io::{self, ErrorKind};
use std::time::Instant;
use zeroize::Zeroizing;

/// Maximum size of an answer in bytes: a token with its claims has a few thousand.
const MOST: usize = 64 << 10;

#[derive(Debug, PartialEq, Eq)]
pub struct HttpAnswer {
    pub status: usize,
    /// Wiped when dropped: it holds the token.
    pub body: Zeroizing<Vec<u8>>,
}

/// Sends the request and reads the answer until `deadline`.
pub fn exchange(stream: &mut Stream, request: &[u8], deadline: Instant) -> Result<HttpAnswer, Trouble> {
    let mut sent = 0;
    // Allocated at full size: a growing buffer leaves copies behind.
    let mut answer = Zeroizing::new(vec![0; MOST]);
    let mut filled = 0;
    loop {
        stream.flush()?;
        while sent < request.len() {
            let Some(n) = unless_blocked(stream.write(&request[sent..]))? else { break };
            sent += n;
        }
        while let Some(n) = unless_blocked(stream.read(&mut answer[filled..]))? {
            filled += n;
            let done = parse(&answer[..filled], n == 0).map_err(|why| Trouble::Lost(why.into()))?;
            if let Some(done) = done {
                return Ok(done);
            }
            if filled == answer.len() {
                return Err(Trouble::Lost(format!("it answers more than {MOST} bytes").into()));
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Trouble::Lost("no answer in time".into()));
        }
        let mut events = PollFlags::IN;
        events.set(PollFlags::OUT, sent < request.len() || stream.has_own());
        poll_for(&mut [PollFd::new(stream.socket(), events)], Some(left))?;
    }
}

/// `None`: would block.
fn unless_blocked(done: io::Result<usize>) -> Result<Option<usize>, Trouble> {
    match done {
        Ok(n) => Ok(Some(n)),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

const NO_HTTP: &str = "it does not answer in HTTP";
const CUT: &str = "it closes the connection in the middle of its answer";

/// An answer, once it is complete; `closed`: nothing more will come.
pub fn parse(bytes: &[u8], closed: bool) -> Result<Option<HttpAnswer>, &'static str> {
    let begin = b"HTTP/1.";
    if !bytes.starts_with(&begin[..begin.len().min(bytes.len())]) {
        return Err(NO_HTTP);
    }
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        return if closed { Err(CUT) } else { Ok(None) };
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| NO_HTTP)?;
    let rest = &bytes[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let status: usize = status.ok_or(NO_HTTP)?;
    if (100..200).contains(&status) {
        return parse(rest, closed); // an interim answer; the final one follows
    }
    let (mut length, mut chunked) = (None, false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse::<usize>().map_err(|_| NO_HTTP)?);
        }
        chunked |=
            name.eq_ignore_ascii_case("transfer-encoding") && value.trim().eq_ignore_ascii_case("chunked");
    }
    let body = match length {
        _ if chunked => joined(rest)?,
        Some(length) => rest.get(..length).map(|body| Zeroizing::new(body.to_vec())),
        None => closed.then(|| Zeroizing::new(rest.to_vec())),
    };
    match body {
        Some(body) => Ok(Some(HttpAnswer { status, body })),
        None if closed => Err(CUT),
        None => Ok(None),
    }
}

/// The content of all chunks (RFC 9112, 7.1). `None`: the last one is missing.
fn joined(mut rest: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, &'static str> {
    let mut body = Zeroizing::new(Vec::with_capacity(rest.len()));
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = std::str::from_utf8(&rest[..end]).map_err(|_| NO_HTTP)?;
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).map_err(|_| NO_HTTP)?;
        if size == 0 {
            return Ok(Some(body));
        }
        let (Some(chunk), Some(next)) =
            (rest[end + 2..].get(..size), rest.get(end.saturating_add(size).saturating_add(4)..))
        else {
            return Ok(None);
        };
        body.extend_from_slice(chunk);
        rest = next;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Vec<u8>> {
        let json = r#"{"access_token":"abc","expires_in":3600}"#;
        let plain = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{json}", json.len());
        let (a, b) = json.split_at(7);
        let chunked = format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n7;x=y\r\n{a}\r\n{:X}\r\n{b}\r\n0\r\n\r\n",
            b.len()
        );
        let until_closed = format!("HTTP/1.0 400 Bad\r\nx: y\r\n\r\n{json}");
        let interim = format!("HTTP/1.1 100 Continue\r\n\r\n{plain}");
        [plain, chunked, until_closed, interim].map(String::into_bytes).to_vec()
    }

    /// Fails when one of the three ways to mark the end of an answer is wrong, or an incomplete answer is taken.
    #[test]
    fn answers_are_read_to_their_end() {
        for (at, sample) in samples().iter().enumerate() {
            let by_close = at == 2;
            let whole = parse(sample, by_close).unwrap().unwrap();
            assert_eq!(whole.status, if by_close { 400 } else { 200 });
            assert_eq!(*whole.body, br#"{"access_token":"abc","expires_in":3600}"#);
            let cut = if by_close { 10 } else { sample.len() - 8 };
            for end in 0..cut {
                assert_eq!(parse(&sample[..end], false), Ok(None), "{at} {end}");
                assert_eq!(parse(&sample[..end], true), Err(CUT), "{at} {end}");
            }
        }
        for wrong in
            ["SSH-2.0-x", "HTTP/1.1 abc\r\n\r\n", "\x15\x03", "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"]
        {
            assert_eq!(parse(wrong.as_bytes(), false), Err(NO_HTTP), "{wrong:?}");
        }
    }

    /// Fails when a length is trusted, or when the parser panics or keeps more than was sent.
    #[test]
    fn fuzz_token_answer() {
        crate::fuzz::damaged(&samples(), <[u8]>::len, |bytes| {
            let _ = parse(bytes, false);
            let Ok(Some(answer)) = parse(bytes, true) else { return 0 };
            let token = super::super::endpoint::read_answer(&answer, b"secret");
            answer.body.len().max(token.map_or(0, |t| t.bytes().len()))
        });
    }
}
