//! Scripted proxies: what is asked of them, and what each answer means.

use super::*;
use crate::kafka::net::testing::{listen, parrot};
use std::io::{ErrorKind, Read, Write};
use std::time::Instant;

/// Opens a tunnel through a proxy that sends each answer after reading the given number of bytes. Returns what it read,
/// and the outcome with what the broker behind it says first.
fn through(
    kind: ProxyKind,
    user: Option<&str>,
    broker: &str,
    script: &[(usize, &[u8])],
) -> (Vec<u8>, Result<String, Trouble>) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "s3cret\n").unwrap();
    let script: Vec<(usize, Vec<u8>)> = script.iter().map(|(n, answer)| (*n, answer.to_vec())).collect();
    let (read_to, asked) = crossbeam_channel::bounded(1);
    let at = listen(move |mut peer| {
        let mut read = Vec::new();
        for (bytes, answer) in script {
            let from = read.len();
            read.resize(from + bytes, 0);
            peer.read_exact(&mut read[from..]).unwrap();
            // In pieces, as from a slow peer. A refusal may end the conversation before the last one.
            let _ = answer.chunks(3).try_for_each(|piece| peer.write_all(piece));
        }
        read_to.send(read).unwrap();
    });
    let options = ProxyOptions {
        url: ProxyUrl { kind, address: at.to_string(), user: user.map(str::to_owned) },
        password_file: Some(file),
    };
    let socket = TcpStream::connect_timeout(&at, Duration::from_secs(5)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let done = tunnel(socket, broker, &options, Duration::from_secs(5)).map(|mut socket| {
        socket.set_nonblocking(false).unwrap();
        let mut rest = String::new();
        match socket.read_to_string(&mut rest) {
            Err(e) if e.kind() != ErrorKind::ConnectionReset => panic!("{e}"),
            _ => rest,
        }
    });
    (asked.recv().unwrap(), done)
}

const PLAIN: &str = "CONNECT kafka:9092 HTTP/1.1\r\nHost: kafka:9092\r\n\r\n";
// "me:s3cret"
const AS_ME: &str =
    "CONNECT kafka:9092 HTTP/1.1\r\nHost: kafka:9092\r\nProxy-Authorization: Basic bWU6czNjcmV0\r\n\r\n";

/// Fails when the request is not RFC 9110's, or a byte after the answer gets lost.
#[test]
fn http_connects() {
    for (user, want) in [(None, PLAIN), (Some("me"), AS_ME)] {
        for answer in [
            "HTTP/1.1 200 Connection established\r\n\r\n",
            "HTTP/1.0 200\r\nProxy-agent: x\r\nContent-Length: 99\r\n\r\n",
            "HTTP/1.1 200 OK\n\n",
            "HTTP/1.1 102 Wait\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        ] {
            let answer = format!("{answer}broker");
            let (asked, done) =
                through(ProxyKind::Http, user, "kafka:9092", &[(want.len(), answer.as_bytes())]);
            assert_eq!((String::from_utf8(asked).unwrap().as_str(), done), (want, Ok("broker".into())));
        }
    }
}

/// Fails when an answer is misinterpreted or comes without advice, or when a refused login is retried quickly.
#[test]
fn http_refuses() {
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(HEAD_MOST));
    for (user, answer, denied, said) in [
        (
            None,
            "HTTP/1.1 407 Login\r\n\r\n",
            true,
            "it answers 407 Login; name the user in `proxy` of [kafka]",
        ),
        (Some("me"), "HTTP/1.1 407 x\r\n\r\n", true, "it refuses user me with this password; correct"),
        (None, "HTTP/1.1 403 No\r\n\r\n", false, "does not allow CONNECT to kafka:9092 (403 No); allow"),
        (
            Some("me"),
            "HTTP/1.1 503 bWU6czNjcmV0\r\n\r\n",
            false,
            "kafka:9092 ((its text contains the secret))",
        ),
        (None, "HTTP/1.1 503 Down\r\n\r\n", false, "it cannot reach kafka:9092 (503 Down); check that"),
        (None, "HTTP/1.1 301 \x1b[1m\r\n\r\n", false, "it answers 301 ?[1m"),
        (None, "HTTP/1.1 2\r\n\r\n", false, "does not answer like a proxy for HTTP"),
        (None, "SSH-2.0-OpenSSH_9.2", false, "does not answer like a proxy for HTTP; correct scheme"),
        (None, "HTTP/1.1 200 OK\r\n", false, "it closes the connection without an answer"),
        (None, &endless, false, "does not answer like a proxy for HTTP"),
    ] {
        let want = if user.is_some() { AS_ME } else { PLAIN };
        let (_, done) = through(ProxyKind::Http, user, "kafka:9092", &[(want.len(), answer.as_bytes())]);
        let trouble = done.unwrap_err();
        assert_eq!(matches!(trouble, Trouble::Denied(_)), denied, "{trouble}");
        let text = trouble.to_string();
        assert!(text.starts_with("proxy http://127.0.0.1:") && text.contains(said), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
}

/// Fails when a message is not RFC 1928's or RFC 1929's, or an answer is read too far or not to its end.
#[test]
fn socks_connects() {
    let no_user: (usize, &[u8]) = (3, &[5, 0]);
    let by_name: &[u8] = b"\x05\x01\x00\x03\x05kafka\x23\x84";
    for address in [&b"\x01\x0a\0\0\x01"[..], b"\x03\x04name", &[4; 17]] {
        let answer = [b"\x05\0\0", address, b"\x23\x84broker"].concat();
        let script = [no_user, (by_name.len(), &answer[..])];
        let (asked, done) = through(ProxyKind::Socks5, None, "kafka:9092", &script);
        assert_eq!((&asked[..], done), (&[b"\x05\x01\0", by_name].concat()[..], Ok("broker".into())));
    }
    let granted: &[u8] = b"\x05\0\0\x01\x0a\0\0\x01\x23\x84broker";
    let script: [(usize, &[u8]); 3] = [(4, &[5, 2]), (11, &[1, 0]), (by_name.len(), granted)];
    let (asked, done) = through(ProxyKind::Socks5, Some("me"), "kafka:9092", &script);
    assert_eq!((&asked[..15], done), (&b"\x05\x02\0\x02\x01\x02me\x06s3cret"[..], Ok("broker".into())));
    for (broker, want) in [
        ("10.0.0.1:9092", &b"\x05\x01\0\x01\x0a\0\0\x01\x23\x84"[..]),
        ("[::1]:9092", b"\x05\x01\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x23\x84"),
    ] {
        let (asked, done) = through(ProxyKind::Socks5, None, broker, &[no_user, (want.len(), granted)]);
        assert_eq!((&asked[3..], done), (want, Ok("broker".into())));
    }
}

/// Fails when a refusal is misinterpreted, or taken for a tunnel.
#[test]
fn socks_refuses() {
    let asks = |code| -> Vec<(usize, Vec<u8>)> { vec![(3, vec![5, 0]), (12, vec![5, code, 0, 1])] };
    for (user, script, denied, said) in [
        (None, vec![(3, vec![5, 255])], true, "it asks for a user name; name the user in `proxy`"),
        (Some("me"), vec![(4, vec![5, 255])], true, "accepts no user name and password"),
        (
            Some("me"),
            vec![(4, vec![5, 2]), (11, vec![1, 1])],
            true,
            "refuses user me with this password; correct",
        ),
        (None, vec![(3, vec![5, 2])], true, "it asks for a user name"),
        (None, vec![(3, b"HTTP/1.1 400".to_vec())], false, "does not answer like a proxy for SOCKS 5"),
        (None, asks(5), false, "it cannot reach kafka:9092 (connection refused)"),
        (None, asks(2), false, "does not allow connections to kafka:9092; allow"),
        (None, asks(0), false, "it closes the connection"),
    ] {
        let script: Vec<_> = script.iter().map(|(n, answer)| (*n, &answer[..])).collect();
        let (_, done) = through(ProxyKind::Socks5, user, "kafka:9092", &script);
        let trouble = done.unwrap_err();
        assert_eq!(matches!(trouble, Trouble::Denied(_)), denied, "{trouble}");
        let text = trouble.to_string();
        assert!(text.starts_with("proxy socks5h://127.0.0.1:") && text.contains(said), "{text}");
    }
}

/// Fails when a host name from a broker can add a header or a request, or is cut to fit.
#[test]
fn names_add_nothing() {
    for kind in [ProxyKind::Http, ProxyKind::Socks5] {
        for broker in ["a b:1", "a\r\nX: y:1", "ä:1"] {
            let (asked, done) = through(kind, None, broker, &[]);
            assert!(asked.is_empty() && done.unwrap_err().to_string().contains("is not a host name"));
        }
    }
    let long = format!("{}:1", "x".repeat(256));
    let (_, done) = through(ProxyKind::Socks5, None, &long, &[(3, &[5, 0])]);
    assert!(done.unwrap_err().to_string().contains("at most 255 bytes"));
}

/// Fails when a proxy that accepts and says nothing holds a dialer longer than the limit.
#[test]
fn a_mute_proxy() {
    let at = parrot(b"");
    for kind in [ProxyKind::Http, ProxyKind::Socks5] {
        let url = ProxyUrl { kind, address: at.to_string(), user: None };
        let socket = TcpStream::connect_timeout(&at, Duration::from_secs(5)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let options = ProxyOptions { url, password_file: None };
        let began = Instant::now();
        let done = tunnel(socket, "kafka:9092", &options, Duration::from_millis(300));
        assert!(done.unwrap_err().to_string().ends_with("no answer in 0.3 s"));
        assert!(began.elapsed() < Duration::from_secs(3));
    }
}
