//! The address of a token endpoint.

use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenUrl {
    pub is_tls: bool,
    /// `host:port`, with an IPv6 address in brackets.
    pub address: String,
    /// The value of the request's `Host`.
    pub host: String,
    /// With the query, if there is one.
    pub path: String,
}

/// `https://HOST[:PORT][/PATH][?QUERY]`, or the same with `http`. The error says what is wrong.
pub fn parse(text: &str) -> Result<TokenUrl, &'static str> {
    let (is_tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
        (Some(rest), _) => (true, rest),
        (_, Some(rest)) => (false, rest),
        _ => return Err("it does not begin with https://"),
    };
    if !rest.bytes().all(|b| b.is_ascii_graphic()) || rest.contains('#') {
        return Err("it has a character that is not allowed in it");
    }
    let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if host.contains('@') {
        return Err("put the name and password into client_id and client_secret_file");
    }
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
    let usual = if is_tls { 443 } else { 80 };
    let address = if has_port { host.to_owned() } else { format!("{host}:{usual}") };
    Ok(TokenUrl { is_tls, address, host: host.to_owned(), path })
}

/// Without the query, which may hold a secret.
impl fmt::Display for TokenUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.host, self.path.split('?').next().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when a URL is sent to another place than it names, or its query gets into the log.
    #[test]
    fn urls() {
        for (text, address, path, shown) in [
            ("https://a.example/t?k=s", "a.example:443", "/t?k=s", "https://a.example/t"),
            ("https://a.example", "a.example:443", "/", "https://a.example/"),
            ("http://127.0.0.1:8080/token", "127.0.0.1:8080", "/token", "http://127.0.0.1:8080/token"),
            ("http://[::1]/x", "[::1]:80", "/x", "http://[::1]/x"),
            ("https://[::1]:99?q=/", "[::1]:99", "/?q=/", "https://[::1]:99/"),
        ] {
            let url = parse(text).unwrap();
            assert_eq!((&*url.address, &*url.path, &*url.to_string()), (address, path, shown));
            assert_eq!(url.is_tls, text.starts_with("https"));
        }
        for wrong in
            ["a.example/t", "ftp://a", "https://u:p@a/t", "https://a/ b", "https://a/#x", "HTTPS://ä"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
