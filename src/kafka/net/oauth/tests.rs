//! Tests without a server: which tokens are accepted, kept and sent. `tests/it/oauth.rs` uses a real server.

use super::endpoint::read_answer;
use super::*;
use crate::kafka::net::http::HttpAnswer;

fn token(bytes: &str, lifetime: Option<u64>) -> Result<Token, &'static str> {
    Token::new(Zeroizing::new(bytes.as_bytes().to_vec()), lifetime.map(Duration::from_secs), None)
}

fn jwt(payload: &str) -> String {
    let url = crate::base64::encode(payload.as_bytes()).replace('+', "-").replace('/', "_");
    format!("e30.{}.c2ln", url.trim_end_matches('='))
}

/// Fails when the message is not as RFC 7628, 4.1 has it, or a token can end its field early.
#[test]
fn first_messages() {
    let of = |extensions: &[(&str, &str)]| {
        let extensions = extensions.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let options = OauthOptions::new(TokenSource::File("/t".into()), extensions);
        String::from_utf8(options.first_message(&token("a.b-c_~+/==", None).unwrap()).to_vec()).unwrap()
    };
    assert_eq!(of(&[]), "n,,\x01auth=Bearer a.b-c_~+/==\x01\x01");
    let two = [("logicalCluster", "lkc-1"), ("identityPoolId", "p 2")];
    assert_eq!(
        of(&two),
        "n,,\x01auth=Bearer a.b-c_~+/==\x01logicalCluster=lkc-1\x01identityPoolId=p 2\x01\x01"
    );
    for wrong in ["", "a b", "a\n", "a\x01b", "{}", "\u{e9}"] {
        assert!(token(wrong, None).is_err(), "{wrong:?}");
    }
}

/// Fails when the file's token is not read each time, or one that ends within 30 s is used.
#[test]
fn a_token_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let options = OauthOptions::new(TokenSource::File(path.clone()), Vec::new());
    let read = |text: String| {
        std::fs::write(&path, text).unwrap();
        options
            .token(&KafkaOptions::default())
            .map(|t| (String::from_utf8(t.bytes().to_vec()).unwrap(), t.to_string()))
    };
    assert_eq!(
        read("opaque\n".into()).unwrap(),
        ("opaque".into(), "it does not say how long it is valid".into())
    );
    let now = clock::now_ms() / 1000;
    let ending_in = |s: i64| jwt(&format!(r#"{{"exp":{},"scope":"a b"}}"#, now + s));
    assert_eq!(read(ending_in(3601)).unwrap(), (ending_in(3601), "valid for 60 min, scope a b".into()));
    assert!(read(ending_in(60)).unwrap().1.starts_with("valid for "));
    for ended in [30, 0, -3600] {
        let why = read(ending_in(ended)).unwrap_err().to_string();
        assert!(why.contains("the token expires at 20") && why.contains("; renew it earlier"), "{why}");
        assert!(!why.contains(&ending_in(ended)), "{why}");
    }
    let why = read("two words".into()).unwrap_err().to_string();
    assert!(why.contains("not a token") && !why.contains("words"), "{why}");
}

/// Fails when the endpoint is asked for each connection, a refused or old token is used again, a failure is not shared,
/// or its outage stops deliveries while the last token is valid.
#[test]
fn a_token_is_kept_while_it_is_good() {
    let mut kept = KeptToken::default();
    let mut asked = 0;
    let mut get = |kept: &mut KeptToken, answer: Result<Token, Trouble>| {
        asked += 1;
        let mut fetched = false;
        let found = kept.get(Instant::now(), || {
            fetched = true;
            answer
        });
        (found.map(|t| String::from_utf8(t.bytes().to_vec()).unwrap()).ok(), fetched)
    };
    let good = |name: &str, lifetime| Ok(token(name, lifetime).unwrap());
    let down = || Err(Trouble::Lost("down".into()));
    assert_eq!(get(&mut kept, good("a", Some(3600))), (Some("a".into()), true));
    assert_eq!(get(&mut kept, good("b", Some(3600))), (Some("a".into()), false));
    kept.renew = Some(Instant::now());
    assert_eq!(get(&mut kept, down()), (Some("a".into()), true));
    assert_eq!(get(&mut kept, down()), (Some("a".into()), false)); // not asked again at once
    kept.token = None; // refused by the broker
    assert_eq!(get(&mut kept, down()), (None, true));
    let before = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
    assert!(kept.get(before, || panic!("its failure is shared")).is_err());
    assert_eq!(get(&mut kept, good("c", None)), (Some("c".into()), true));
    assert_eq!(get(&mut kept, good("d", None)), (Some("d".into()), true)); // its end is unknown
    let (options, used) = (OauthOptions::new(TokenSource::File("/t".into()), Vec::new()), kept);
    let before = format!("{options:?}");
    *lock(&options.kept) = used;
    assert_eq!(format!("{options:?}"), before, "a reload would see a change");
}

/// Fails when an answer is misread, its secret gets into the text, or there is no advice.
#[test]
fn answers_of_endpoints() {
    let read = |status, body: &str| {
        let body = Zeroizing::new(body.as_bytes().to_vec());
        read_answer(&HttpAnswer { status, body }, &[b"s3cret"]).map(|t| (t.lifetime, t.to_string()))
    };
    let hour = Some(Duration::from_secs(3600));
    for (body, lifetime) in [
        (r#"{"access_token":"abc","expires_in":3600,"scope":"x"}"#.to_owned(), hour),
        (r#"{"access_token":"abc","expires_in":"3600"}"#.to_owned(), hour),
        (r#"{"access_token":"abc"}"#.to_owned(), None),
        // Its clock is not ours: only the difference of the two times counts.
        (format!(r#"{{"access_token":"{}"}}"#, jwt(r#"{"iat":1000,"exp":4600}"#)), hour),
    ] {
        assert_eq!(read(200, &body).unwrap().0, lifetime, "{body}");
    }
    assert_eq!(
        read(200, r#"{"access_token":"a","expires_in":3601,"scope":"x y"}"#).unwrap().1,
        "valid for 60 min, scope x y"
    );
    let denied = r#"{"error":"invalid_client","error_description":"no\nsuch client"}"#;
    for (status, body, want) in [
        (401, denied, "D: it answers HTTP 401, invalid_client: no such client; set client_id"),
        (400, r#"{"error":"s3cret?"}"#, "D: it answers HTTP 400, (its text contains the secret); set"),
        (302, "", "D: it answers HTTP 302; set token_url"),
        (404, "<html>", "D: it answers HTTP 404; set token_url"),
        (503, "", "C: it answers HTTP 503; it is busy"),
        (429, "", "C: it answers HTTP 429; it is busy"),
        (500, "oops", "L: it answers HTTP 500; see"),
        (200, "<html>", "L: its answer holds no access_token; "),
        (200, r#"{"token":"a"}"#, "L: its answer holds no access_token; "),
        (200, r#"{"access_token":null}"#, "L: its answer holds no access_token; "),
        (200, r#"{"access_token":"a b"}"#, "L: it is not a token"),
        (200, r#"{"access_token":"a","expires_in":30}"#, "L: its token is valid for only 30 s; make"),
    ] {
        let said = match read(status, body).unwrap_err() {
            Trouble::Denied(why) => format!("D: {why}"),
            Trouble::Crowded(why) => format!("C: {why}"),
            Trouble::Lost(why) => format!("L: {why}"),
            other => panic!("{other:?}"),
        };
        assert!(said.starts_with(want), "{status} {body}: {said}");
    }
}

/// Fails when the request is not as RFC 6749, 4.4.2 and RFC 7617 have it, or grew while it was made.
#[test]
fn the_request_for_a_token() {
    let endpoint = TokenEndpoint {
        url: url::parse("https://login.example/t?x=y").unwrap(),
        client_id: "box 7".into(),
        client_secret_file: "/s".into(),
        scope: Some("kafka a/b".into()),
        ca: None,
        without_tls: false,
    };
    let request = endpoint.request("p:\u{e4}~".as_bytes());
    let text = std::str::from_utf8(&request).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, "grant_type=client_credentials&scope=kafka%20a%2Fb");
    let basic = crate::base64::encode(b"box%207:p%3A%C3%A4~");
    let length = format!("Content-Length: {}", body.len());
    for line in
        ["POST /t?x=y HTTP/1.1", "Host: login.example", &length, &format!("Authorization: Basic {basic}")]
    {
        assert!(head.split("\r\n").any(|l| l == line), "{line} in {head}");
    }
    assert_eq!(request.capacity(), request.len());
}

/// Fails when an error shows the secret because the endpoint quotes the request: as it is, percent-encoded, or in Base64.
#[test]
fn a_quoted_secret_is_not_shown() {
    use std::io::{Read, Write};
    let dir = tempfile::tempdir().unwrap();
    let client_secret_file = dir.path().join("secret");
    std::fs::write(&client_secret_file, "s3cr/et\n").unwrap();
    for quoted in ["s3cr/et", "s3cr%2Fet", &crate::base64::encode(b"box:s3cr%2Fet")] {
        let body = format!(r#"{{"error":"bad","error_description":"{}: {quoted}"}}"#, "x".repeat(290));
        let answer = format!("HTTP/1.1 401 No\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let address = crate::kafka::net::testing::listen(move |mut stream| {
            let _ = stream.read(&mut [0; 4096]);
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let endpoint = TokenEndpoint {
            url: url::parse(&format!("http://{address}/t")).unwrap(),
            client_id: "box".into(),
            client_secret_file: client_secret_file.clone(),
            scope: None,
            ca: None,
            without_tls: false,
        };
        let said = endpoint.fetch(&KafkaOptions::default()).err().unwrap().to_string();
        assert!(said.contains("HTTP 401, bad: (its text contains the secret);"), "{said}");
    }
}
