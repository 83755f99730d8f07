//! Sizes, durations, rates and broker addresses, from what a person writes. Knows no files and no places: an error is
//! the reason alone, and the caller says where.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// A broker to begin with: a name or an address, and a port.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Broker {
    /// Without brackets, also for IPv6.
    pub host: String,
    pub port: u16,
}

impl Broker {
    /// This machine, without a name server's word for it.
    pub fn is_loopback(&self) -> bool {
        let address = self.host.split('%').next().and_then(|host| host.parse::<IpAddr>().ok());
        address.map_or_else(
            || self.host.eq_ignore_ascii_case("localhost"),
            |address| address.to_canonical().is_loopback(),
        )
    }
}

impl fmt::Display for Broker {
    /// As the `kafka` crate and `ToSocketAddrs` take it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// `name:port`, `IPv4:port` or `[IPv6]:port`.
pub fn broker(s: &str) -> Result<Broker, String> {
    if s.contains("://") {
        return Err("a broker is given without a scheme".into());
    }
    let (host, port) = match s.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once("]:").ok_or("after [IPv6] a colon and the port are wanted")?;
            let bare = host.split('%').next().unwrap_or(host);
            bare.parse::<std::net::Ipv6Addr>().map_err(|_| "no IPv6 address stands in the brackets")?;
            (host, port)
        }
        None => {
            let (host, port) = s.rsplit_once(':').ok_or("the port is missing")?;
            if host.contains(':') {
                return Err("an IPv6 address goes in brackets".into());
            }
            (host, port)
        }
    };
    let named = |c: char| c.is_alphanumeric() || "-._:%".contains(c);
    if host.is_empty() || host.len() > 253 || !host.chars().all(named) {
        return Err("the host is no name and no address".into());
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(Broker { host: host.into(), port }),
        _ => Err("the port is no number from 1 to 65535".into()),
    }
}

/// Several of them with commas between, as on the command line.
pub fn brokers(s: &str) -> Result<Vec<Broker>, String> {
    s.split(',').map(|one| broker(one.trim()).map_err(|why| format!("{one:?}: {why}"))).collect()
}

/// Bytes: a plain number, or one with `B`, `KiB`, `MiB`, `GiB`, `TiB` (1024) or `kB`, `MB`, `GB`, `TB` (1000).
pub fn size(s: &str) -> Result<u64, String> {
    let (number, unit) = split(s);
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
        _ => return Err(format!("the unit {unit:?} is none of B, KiB, MiB, GiB, TiB, kB, MB, GB, TB")),
    };
    whole(number)?.checked_mul(factor).ok_or_else(|| "it is too large".into())
}

/// Bytes per second: a size, a slash and `s`; a plain number is bytes per second too. Never 0.
pub fn rate(s: &str) -> Result<u64, String> {
    let amount = match s.split_once('/') {
        Some((amount, per)) if matches!(per.trim(), "s" | "sec") => amount.trim_end(),
        Some((_, per)) => return Err(format!("a rate is per second (/s), not per {per:?}")),
        None if s.bytes().all(|b| b.is_ascii_digit()) => s,
        None => return Err("a rate ends in /s".into()),
    };
    match size(amount)? {
        0 => Err("a rate of nothing would never send a line".into()),
        n => Ok(n),
    }
}

/// A whole number and `ms`, `s`, `m` (or `min`), `h`, `d`; several may follow one another, as in `1h30m`.
pub fn duration(s: &str) -> Result<Duration, String> {
    let mut total: u64 = 0;
    let mut rest = s.trim();
    if rest.is_empty() {
        return Err("no number stands there".into());
    }
    while !rest.is_empty() {
        let (number, unit) = split(rest);
        if number.is_empty() {
            return Err("no whole number stands first".into());
        }
        let end = unit.find(|c: char| !c.is_alphabetic()).unwrap_or(unit.len());
        let millis: u64 = match &unit[..end] {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" => return Err("the unit is missing: ms, s, m, h or d".into()),
            other => return Err(format!("the unit {other:?} is none of ms, s, m, h, d")),
        };
        let part = whole(number)?.checked_mul(millis).ok_or("it is too long")?;
        total = total.checked_add(part).ok_or("it is too long")?;
        rest = unit[end..].trim_start();
    }
    Ok(Duration::from_millis(total))
}

/// The digits at the start (underscores between them as in TOML), and what follows.
fn split(s: &str) -> (&str, &str) {
    let s = s.trim();
    let end = s.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(s.len());
    (&s[..end], s[end..].trim_start())
}

fn whole(digits: &str) -> Result<u64, String> {
    let digits = digits.replace('_', "");
    if digits.is_empty() {
        return Err("no whole number stands first".into());
    }
    digits.parse().map_err(|_| "it is too large".into())
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
        // `8M` means 1000 to some tools and 1024 to others, so it is asked back.
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

    proptest! {
        /// No text makes a parser panic (slices at character borders, sums that overflow).
        #[test]
        fn never_panics(s in "[0-9_ ./:a-zµ\\[\\]%KMGTBis日-]{0,24}") {
            let _ = (size(&s), duration(&s), rate(&s), broker(&s), brokers(&s));
        }

        #[test]
        fn a_size_is_its_number_times_its_unit(n in 0u64..1 << 20) {
            prop_assert_eq!(size(&format!("{n}KiB")), Ok(n << 10));
            prop_assert_eq!(duration(&format!("{n}s")), Ok(Duration::from_secs(n)));
        }
    }
}
