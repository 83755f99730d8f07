//! Parses sizes, durations, rates, broker addresses, topics and patterns from the config or the command line.

use crate::kafka::net::proxy::{ProxyKind, ProxyUrl};
use crate::producer::spending::{DataBudget, PERIODS};
use crate::record::LineRegex;
use crate::watch::glob::{Glob, GlobError};
use crate::watch::pattern::Pattern;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// Why a text is invalid.
#[derive(Clone, PartialEq, Debug)]
pub enum Invalid {
    Text(&'static str),
    /// An unknown unit, and the known ones.
    Unit(String, &'static str),
    /// A rate that is not per second.
    Per(String),
    Regex(Box<regex_syntax::Error>),
    Glob(GlobError),
    /// One of several items.
    OneOf(String, Box<Invalid>),
}
use Invalid::{OneOf, Per, Text, Unit};

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Text(why) => f.write_str(why),
            Unit(unit, known) => write!(f, "the unit {unit:?} is none of {known}"),
            Per(per) => write!(f, "a rate is per second (/s), not per {per:?}"),
            // Only the reason; the whole message shows the position on several lines.
            Invalid::Regex(e) => match &**e {
                regex_syntax::Error::Parse(e) => e.kind().fmt(f),
                regex_syntax::Error::Translate(e) => e.kind().fmt(f),
                _ => f.write_str("it is not a regular expression"),
            },
            Invalid::Glob(kind) => kind.fmt(f),
            OneOf(one, why) => write!(f, "{one:?}: {why}"),
        }
    }
}

/// A bootstrap broker: a name or an address, and a port.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BrokerAddress {
    /// Without brackets, also for IPv6.
    pub host: String,
    pub port: u16,
}

impl BrokerAddress {
    /// This machine, known without a name server.
    pub fn is_loopback(&self) -> bool {
        let address = self.host.split('%').next().and_then(|host| host.parse::<IpAddr>().ok());
        address.map_or_else(
            || self.host.eq_ignore_ascii_case("localhost"),
            |address| address.to_canonical().is_loopback(),
        )
    }
}

impl fmt::Display for BrokerAddress {
    /// In the form used by the `kafka` crate and `ToSocketAddrs`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// `name:port`, `IPv4:port` or `[IPv6]:port`.
pub fn broker(s: &str) -> Result<BrokerAddress, Invalid> {
    if s.contains("://") {
        return Err(Text("a broker is written without a scheme"));
    }
    if s.contains(',') {
        return Err(Text("it contains a comma"));
    }
    let (host, port) = match s.strip_prefix('[') {
        Some(rest) => {
            let (host, port) =
                rest.split_once("]:").ok_or(Text("after [IPv6] a colon and the port must follow"))?;
            let bare = host.split('%').next().unwrap_or(host);
            bare.parse::<std::net::Ipv6Addr>()
                .map_err(|_| Text("there is no IPv6 address in the brackets"))?;
            (host, port)
        }
        None => {
            let (host, port) = s.rsplit_once(':').ok_or(Text("the port is missing"))?;
            if host.contains(':') {
                let ipv6 =
                    |s: &str| s.split('%').next().is_some_and(|s| s.parse::<std::net::Ipv6Addr>().is_ok());
                return Err(Text(match ipv6(host) || ipv6(s) {
                    true => "an IPv6 address goes in brackets",
                    false => "it has more than one colon",
                }));
            }
            (host, port)
        }
    };
    let named = |c: char| c.is_alphanumeric() || "-._:%".contains(c);
    if host.is_empty() || host.len() > 253 || !host.chars().all(named) {
        return Err(Text("the host is neither a name nor an address"));
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(BrokerAddress { host: host.into(), port }),
        _ => Err(Text("the port is not a number from 1 to 65535")),
    }
}

/// `http://` or `socks5h://`, a user name with `@` if there is one, `host:port`, and at most one `/`.
pub fn proxy(s: &str) -> Result<ProxyUrl, Invalid> {
    let (scheme, rest) = s.split_once("://").ok_or(Text("it does not begin with http:// or socks5h://"))?;
    let kind = match scheme {
        "http" => ProxyKind::Http,
        "socks5h" => ProxyKind::Socks5,
        "socks5" => return Err(Text("write socks5h://, because the proxy resolves the brokers' names")),
        _ => return Err(Text("a proxy URL begins with http:// or socks5h://")),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (user, address) = match rest.rsplit_once('@') {
        Some((user, address)) => (Some(unescaped(user)?), address),
        None => (None, rest),
    };
    let address = broker(address)?.to_string();
    Ok(ProxyUrl { kind, address, user })
}

/// Whether a URL contains a password, even if it is otherwise invalid.
pub fn has_password(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
}

/// The user name of a URL (RFC 3986, 2.1), of 1 to 255 bytes (RFC 1929) and without colons (RFC 7617).
fn unescaped(user: &str) -> Result<String, Invalid> {
    let mut bytes = Vec::with_capacity(user.len());
    let mut rest = user.bytes();
    while let Some(b) = rest.next() {
        let hex = |b: Option<u8>| (b? as char).to_digit(16);
        bytes.push(match b {
            b'%' => match (hex(rest.next()), hex(rest.next())) {
                (Some(high), Some(low)) => (high * 16 + low) as u8,
                _ => return Err(Text("in the user name, two hexadecimal digits must follow %")),
            },
            b => b,
        });
    }
    let user = String::from_utf8(bytes).map_err(|_| Text("the user name is not UTF-8"))?;
    match user.len() {
        1..=255 if !user.contains(|c: char| c == ':' || c.is_control()) => Ok(user),
        _ => Err(Text("a user name has 1 to 255 bytes, and no colon")),
    }
}

/// A comma-separated list, as on the command line.
pub fn brokers(s: &str) -> Result<Vec<BrokerAddress>, Invalid> {
    s.split(',').map(|one| broker(one.trim()).map_err(|why| OneOf(one.into(), Box::new(why)))).collect()
}

/// Bytes: a plain number, or one with `B`, `KiB`, `MiB`, `GiB`, `TiB` (1024) or `kB`, `MB`, `GB`, `TB` (1000).
pub fn size(s: &str) -> Result<u64, Invalid> {
    let (number, unit) = split(s)?;
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(Unit(unit.into(), "B, KiB, MiB, GiB, TiB, kB, MB, GB, TB")),
    };
    number.checked_mul(factor).ok_or(Text("it is too large"))
}

/// Bytes per second: a size, a slash and `s`; a plain number is bytes per second too. Never 0.
pub fn rate(s: &str) -> Result<u64, Invalid> {
    let amount = match s.split_once('/') {
        Some((amount, per)) if matches!(per.trim(), "s" | "sec") => amount.trim_end(),
        Some((_, per)) => return Err(Per(per.into())),
        None if s.bytes().all(|b| b.is_ascii_digit()) => s,
        None => return Err(Text("a rate ends in /s")),
    };
    match size(amount)? {
        0 => Err(Text("a rate of zero would never send a line")),
        n => Ok(n),
    }
}

/// Bytes per period: a size, a slash and `min`, `hour`, `day`, `week` or `month` (30 days).
pub fn data_budget(s: &str) -> Result<DataBudget, Invalid> {
    let (amount, per) = s.split_once('/').ok_or(Text("a budget ends in /day, /hour, /week or /month"))?;
    let period = PERIODS.iter().find(|(name, _)| *name == per.trim());
    let (_, seconds) = period.ok_or(Text("a budget is per min, hour, day, week or month"))?;
    match size(amount.trim_end())? {
        bytes @ 102_400.. => Ok(DataBudget { bytes, period: Duration::from_secs(*seconds) }),
        _ => Err(Text("a budget below 100KiB would be used up by connections alone")),
    }
}

/// A whole number and `ms`, `s`, `m` (or `min`), `h`, `d`; several may follow one another, as in `1h30m`.
pub fn duration(s: &str) -> Result<Duration, Invalid> {
    let mut total: u64 = 0;
    let mut rest = s.trim();
    if rest.is_empty() {
        return Err(Text("there is no number"));
    }
    while !rest.is_empty() {
        let (number, unit) = split(rest)?;
        let end = unit.find(|c: char| !c.is_alphabetic()).unwrap_or(unit.len());
        let millis: u64 = match &unit[..end] {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" => return Err(Text("the unit is missing: ms, s, m, h or d")),
            other => return Err(Unit(other.into(), "ms, s, m, h, d")),
        };
        let part = number.checked_mul(millis).ok_or(Text("it is too long"))?;
        total = total.checked_add(part).ok_or(Text("it is too long"))?;
        rest = unit[end..].trim_start();
    }
    Ok(Duration::from_millis(total))
}

/// The leading whole number (with underscores as in TOML), and the rest.
fn split(s: &str) -> Result<(u64, &str), Invalid> {
    let s = s.trim();
    let end = s.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(s.len());
    let (digits, rest) = (s[..end].replace('_', ""), &s[end..]);
    if digits.is_empty() {
        return Err(Text("it does not begin with a whole number"));
    }
    if rest.starts_with(['.', ',']) {
        return Err(Text("its number is not a whole one"));
    }
    Ok((digits.parse().map_err(|_| Text("it is too large"))?, rest.trim_start()))
}

/// The client id, which brokers log. The protocol allows 32,767 bytes and sends it with every request.
pub fn client_id(s: &str) -> Result<String, Invalid> {
    match s.len() {
        1..=255 => Ok(s.to_owned()),
        _ => Err(Text("it must have 1 to 255 bytes")),
    }
}

/// The topic names that Kafka accepts (`org.apache.kafka.common.internals.Topic`).
pub fn topic(s: &str) -> Result<String, Invalid> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if s.is_empty() || s.len() > 249 || s == "." || s == ".." || !s.chars().all(legal) {
        return Err(Text("Kafka accepts 1 to 249 of the characters a-z A-Z 0-9 . _ -"));
    }
    Ok(s.to_owned())
}

/// A regular expression over bytes, with limits that keep program and cache small, because there is one cache per
/// searching thread.
pub fn regex(s: &str) -> Result<LineRegex, Invalid> {
    let built = regex::bytes::RegexBuilder::new(s).size_limit(1 << 20).dfa_size_limit(256 << 10).build();
    built.map(LineRegex::from).map_err(|e| {
        match (e, regex_syntax::ParserBuilder::new().utf8(false).build().parse(s)) {
            // `regex` has its parser's error only as text.
            (_, Err(e)) => Invalid::Regex(Box::new(e)),
            (regex::Error::CompiledTooBig(_), _) => Text("its compiled form is larger than 1 MiB"),
            _ => Text("it cannot be compiled"),
        }
    })
}

pub fn glob(s: &str) -> Result<Glob, Invalid> {
    Glob::new(s).map_err(Invalid::Glob)
}

/// A glob for paths, walked folder by folder: each component between two `/` is its own glob, or `**`.
pub fn path_glob(s: &str) -> Result<Pattern, Invalid> {
    glob(s)?;
    if s.split('/').any(|piece| glob(piece).is_err()) {
        return Err(Text("a / within {…} or […] is not supported; write one path for each"));
    }
    Pattern::glob(s).map_err(Invalid::Glob)
}

/// Whether `s` contains characters with a special meaning in globs.
pub fn has_glob(s: &str) -> bool {
    s.contains(['*', '?', '[', '{', '\\'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        let good = [
            ("0", 0),
            ("8MiB", 8 << 20),
            ("512KiB", 512 << 10),
            ("512 KiB", 512 << 10),
            ("1_000_000", 1_000_000),
            ("1GB", 1_000_000_000),
            ("2TiB", 2 << 40),
        ];
        for (text, bytes) in good {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        // `8M` means 1000 to some tools and 1024 to others, so it is rejected.
        for text in ["", "MiB", "8M", "8mib", "-1", "1.5MiB", "18446744073709551616", "99999999TiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        let good =
            [("0ms", 0), ("30s", 30_000), ("7d", 604_800_000), ("1h30m", 5_400_000), ("2 min", 120_000)];
        for (text, ms) in good {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", " ", "s", "30", "-1s", "1.5s", "1w", "1h30", "99999999999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!(rate("1MiB/s"), Ok(1 << 20));
        assert_eq!(rate("1 MiB / s"), Ok(1 << 20));
        assert_eq!(rate("1000"), Ok(1000));
        for text in ["1MiB", "1MiB/min", "0/s", "0", "/s", ""] {
            assert!(rate(text).is_err(), "{text}");
        }
        let day = DataBudget { bytes: 200 << 20, period: Duration::from_secs(86_400) };
        assert_eq!(data_budget("200MiB/day"), Ok(day));
        assert_eq!(data_budget("1 MB / min").map(|b| (b.bytes, b.period.as_secs())), Ok((1_000_000, 60)));
        for text in ["200MiB", "200MiB/s", "/day", "1KiB/day", "x/day"] {
            assert!(data_budget(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses() {
        let good = ["kafka:9092", "10.0.0.5:9092", "[::1]:9092", "[fe80::1%eth0]:9092", "a_b-c.example:1"];
        for text in good {
            assert_eq!(broker(text).unwrap().to_string(), text);
        }
        assert_eq!(broker("[::1]:9092").unwrap().host, "::1");
        for text in [
            "kafka",
            "kafka:",
            "kafka:0",
            "kafka:65536",
            "kafka:+1x",
            ":9092",
            "::1:9092",
            "[::1]",
            "[x]:1",
            "http://kafka:9092",
            "a b:9092",
            "a/b:9092",
            "",
        ] {
            assert!(broker(text).is_err(), "{text}");
        }
        assert_eq!(brokers("a:1, b:2").unwrap().len(), 2);
        assert!(brokers("a:1,,b:2").is_err());
    }

    /// Fails when a part of the URL gets lost, or a password is shown because the URL is otherwise invalid.
    #[test]
    fn proxies() {
        for (text, kind, address, user) in [
            ("http://proxy:3128", ProxyKind::Http, "proxy:3128", None),
            ("http://proxy:3128/", ProxyKind::Http, "proxy:3128", None),
            ("socks5h://me@[::1]:1080", ProxyKind::Socks5, "[::1]:1080", Some("me")),
            ("http://me%40there@proxy:1", ProxyKind::Http, "proxy:1", Some("me@there")),
            ("http://me@there@proxy:1", ProxyKind::Http, "proxy:1", Some("me@there")),
        ] {
            let want = ProxyUrl { kind, address: address.into(), user: user.map(Into::into) };
            assert_eq!(proxy(text), Ok(want), "{text}");
            assert!(!has_password(text), "{text}");
        }
        for text in [
            "proxy:3128",
            "http://proxy",
            "https://proxy:1",
            "socks5://proxy:1",
            "http://@proxy:1",
            "http://a%4@proxy:1",
            "http://a%3Ab@proxy:1",
            "http://a%0ab@proxy:1",
            "http://proxy:1/x",
        ] {
            assert!(proxy(text).is_err(), "{text}");
        }
        for text in ["http://me:secret@proxy:1", "me:secret@proxy", "http://me:se@cret@proxy:1"] {
            assert!(has_password(text), "{text}");
        }
    }

    /// Fails when the reason is wrong or spans several lines.
    #[test]
    fn regular_expressions() {
        assert!(regex("id=(\\d+)").is_ok() && regex("(?-u)\\xff").is_ok());
        for (text, why) in [
            ("[", "unclosed character class"),
            ("(a", "unclosed group"),
            ("\\p{Nope}", "Unicode property not found"),
            ("(?:a{1000}){1000}", "its compiled form is larger than 1 MiB"),
        ] {
            assert_eq!(regex(text).unwrap_err().to_string(), why, "{text}");
        }
    }

    #[test]
    fn topics() {
        for good in ["web_log", "a.b-C", &"x".repeat(249)] {
            assert!(topic(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a b", "ä", "a/b", &"x".repeat(250)] {
            assert!(topic(bad).is_err(), "{bad}");
        }
    }

    /// Fails when `literal_separator` is off: `/var/log/*.log` would then follow files of other folders.
    #[test]
    fn a_star_stops_at_a_slash() {
        let m = glob("/var/log/*.log").unwrap();
        assert!(m.matches(b"/var/log/a.log") && !m.matches(b"/var/log/b/a.log"));
        assert!(glob("/var/log/[a").is_err());
        assert!(path_glob("/var/{a,b}/**/[xy].log").is_ok());
        assert!(path_glob("/var/{a,b/c}/x").is_err() && path_glob("/var/[").is_err());
    }

    proptest! {
        /// No text makes a parser panic (slices at character borders, sums that overflow).
        #[test]
        fn never_panics(s in "[0-9_ ./:a-zµ\\[\\]%KMGTBis日-]{0,24}") {
            let _ = (size(&s), duration(&s), rate(&s), broker(&s), brokers(&s));
            let _ = proxy(&format!("http://{s}@proxy:1"));
        }

        #[test]
        fn a_size_is_its_number_times_its_unit(n in 0u64..1 << 20) {
            prop_assert_eq!(size(&format!("{n}KiB")), Ok(n << 10));
            prop_assert_eq!(duration(&format!("{n}s")), Ok(Duration::from_secs(n)));
        }
    }
}
