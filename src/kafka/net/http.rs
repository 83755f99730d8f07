//! HTTP/1 as a client (RFC 9112), for proxies and token endpoints: one request, and its answer. The parsers do no I/O.

use crate::kafka::net::stream::TimedStream;
use crate::kafka::net::trouble::Trouble;
use crate::kafka::protocol::messages::text;
use zeroize::Zeroizing;

/// Maximum size of an answer in bytes: a token with its claims has a few thousand.
const MOST: usize = 64 << 10;

/// An answer up to its empty line.
#[derive(Debug, PartialEq, Eq)]
pub struct HttpHead {
    pub status: u16,
    /// Status code and reason, for the operator.
    pub shown: String,
    /// The lines after the first.
    fields: String,
    /// Length in bytes, including the interim answers before it.
    length: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub struct HttpAnswer {
    pub status: u16,
    /// Wiped when dropped: it holds the token.
    pub body: Zeroizing<Vec<u8>>,
}

/// Sends the request and reads the answer.
pub fn exchange(stream: &mut TimedStream, request: &[u8]) -> Result<HttpAnswer, Trouble> {
    stream.send(request)?;
    // Allocated at full size: a growing buffer leaves copies behind.
    let mut answer = Zeroizing::new(vec![0; MOST]);
    let mut filled = 0;
    while filled < answer.len() {
        let n = stream.receive(&mut answer[filled..])?;
        filled += n;
        let done = parse(&answer[..filled], n == 0).map_err(|why| Trouble::Lost(why.into()))?;
        if let Some(done) = done {
            return Ok(done);
        }
    }
    Err(Trouble::Lost(format!("it answers more than {MOST} bytes").into()))
}

const NO_HTTP: &str = "it does not answer in HTTP";
const CUT: &str = "it closes the connection in the middle of its answer";

/// The head of the final answer, after any interim ones (RFC 9110, 15.2). `None`: it is incomplete.
pub fn head(bytes: &[u8]) -> Result<Option<HttpHead>, &'static str> {
    let begin = b"HTTP/1.";
    let mut length = 0;
    loop {
        let rest = &bytes[length..];
        if !rest.starts_with(&begin[..begin.len().min(rest.len())]) {
            return Err(NO_HTTP);
        }
        let Some(end) = end_of_head(rest) else { return Ok(None) };
        let (first, fields) = String::from_utf8_lossy(&rest[..end])
            .split_once('\n')
            .map(|(first, fields)| (first.to_owned(), fields.to_owned()))
            .ok_or(NO_HTTP)?;
        let told = first.split_once(' ').ok_or(NO_HTTP)?.1.trim_end();
        let status = told.get(..3).and_then(|code| code.parse().ok()).filter(|code| *code >= 100);
        let status: u16 = status.ok_or(NO_HTTP)?;
        length += end;
        if status >= 200 {
            return Ok(Some(HttpHead { status, shown: text(Some(told.as_bytes())), fields, length }));
        }
    }
}

/// The length up to the empty line, and with it.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let mut end = 0;
    bytes.split_inclusive(|b| *b == b'\n').find_map(|line| {
        end += line.len();
        matches!(line, b"\n" | b"\r\n").then_some(end)
    })
}

/// An answer, once it is complete; `closed`: nothing more will come.
fn parse(bytes: &[u8], closed: bool) -> Result<Option<HttpAnswer>, &'static str> {
    let Some(HttpHead { status, fields, length, .. }) = head(bytes)? else {
        return if closed { Err(CUT) } else { Ok(None) };
    };
    let rest = &bytes[length..];
    let (mut length, mut chunked) = (None, false);
    for (name, value) in fields.lines().filter_map(|line| line.split_once(':')) {
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
            let token = crate::kafka::net::oauth::endpoint::read_answer(&answer, &[b"secret"]);
            answer.body.len().max(token.map_or(0, |t| t.bytes().len()))
        });
    }

    /// Fails when bytes after the empty line count as the head's, when a line that ends without CR is not seen, or when
    /// interim answers are taken for the final one or use up the stack.
    #[test]
    fn heads_end_at_their_empty_line() {
        for (answer, status, shown) in [
            ("HTTP/1.1 200 Connection established\r\n\r\n", 200, "200 Connection established"),
            ("HTTP/1.0 407\nX: y\n\n", 407, "407"),
            ("HTTP/1.1 102 Wait\r\nX: y\r\n\r\nHTTP/1.1 503 \x1b[1m\r\n\r\n", 503, "503 ?[1m"),
        ] {
            for end in 0..answer.len() {
                assert_eq!(head(&answer.as_bytes()[..end]), Ok(None), "{answer:?} {end}");
            }
            let found = head(format!("{answer}\n\nx").as_bytes()).unwrap().unwrap();
            assert_eq!((found.status, &*found.shown, found.length), (status, shown, answer.len()));
        }
        assert_eq!(head("HTTP/1.1 100\n\n".repeat(100_000).as_bytes()), Ok(None));
        for wrong in
            ["SSH-2.0-x", "HTTP/2 200\n\n", "HTTP/1.1 2\n\n", "HTTP/1.1\n\n", "HTTP/1.1 099\n\n", "\n\n"]
        {
            assert_eq!(head(wrong.as_bytes()), Err(NO_HTTP), "{wrong:?}");
        }
    }

    /// Fails when the head of an answer makes the agent panic, run on or show more than a line.
    #[test]
    fn fuzz_http_head() {
        let samples = [
            &b"HTTP/1.1 200 Connection established\r\n\r\n"[..],
            b"HTTP/1.0 407\n\n",
            b"HTTP/1.1 500 \xff\xfe\n\n",
        ];
        let samples: Vec<Vec<u8>> = samples.iter().map(|s| s.to_vec()).collect();
        crate::fuzz::damaged(
            &samples,
            |_| 1000,
            |bytes| head(bytes).ok().flatten().map_or(0, |head| head.shown.len()),
        );
    }
}
