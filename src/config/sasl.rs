//! Reads [kafka.sasl]: which of its keys go together, and what they make.

use super::keys::KafkaSasl;
use super::mistake::{Conflict, Mistake};
use super::table::{Described, Value, Walk};
use super::units::{self, Invalid};
use super::values::{nested, parsed, texts};
use super::{Mechanism, Sasl};
use crate::kafka::net::oauth::url::{self, TokenUrl};
use crate::kafka::net::oauth::{OauthOptions, TokenEndpoint, TokenSource};
use crate::kafka::net::sasl::PasswordLogin;
use crate::kafka::net::scram::Hash;

/// The keys of [kafka.sasl] for the mechanisms with a password, and those for OAUTHBEARER.
const OF_PASSWORDS: [&str; 3] = ["username", "password_file", "plain_without_tls"];
const OF_FILES: [&str; 1] = ["token_file"];
const OF_ENDPOINTS: [&str; 6] =
    ["token_url", "client_id", "client_secret_file", "scope", "token_ca", "token_url_without_tls"];

pub fn sasl(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Sasl> {
    let found: KafkaSasl = nested(walk, key, v)?;
    let id = (KafkaSasl::TABLE.name, walk.source);
    walk.problems.place_of(id, "mechanism")?; // a missing or wrong one is reported
    let has = |walk: &Walk<'_>, key| walk.problems.has(id, key);
    // Which keys go with the mechanism, and which of them are missing.
    let (others, with): (Vec<&[&'static str]>, _) = match found.mechanism {
        Mechanism::OauthBearer if has(walk, "token_file") => {
            (vec![&OF_PASSWORDS, &OF_ENDPOINTS], "token_file")
        }
        Mechanism::OauthBearer => (vec![&OF_PASSWORDS], "OAUTHBEARER"),
        _ => (vec![&OF_FILES, &OF_ENDPOINTS, &["extensions"]], "a mechanism that has a password"),
    };
    for key in others.concat() {
        walk.problems.add_at(id, key, Conflict::UnusedSaslKey(key, with));
    }
    let required: &[&'static str] = match found.mechanism {
        Mechanism::OauthBearer if has(walk, "token_url") => &["client_id", "client_secret_file"],
        Mechanism::OauthBearer => &["token_file"],
        _ => &["username", "password_file"],
    };
    let place = walk.problems.header_of(id)?;
    for key in required {
        if has(walk, key) {
            continue;
        }
        let mistake = Mistake::MissingKey(KafkaSasl::TABLE.key(key), KafkaSasl::TABLE.name);
        walk.problems.add_missing(place, mistake);
    }
    let login = || {
        let (username, password_file) = (found.username.clone()?, found.password_file.clone()?);
        Some(PasswordLogin { username, password_file })
    };
    let without_tls = found.plain_without_tls;
    match found.mechanism {
        Mechanism::Plain => Some(Sasl::Plain { login: login()?, without_tls }),
        Mechanism::ScramSha256 => Some(Sasl::Scram(Hash::Sha256, login()?)),
        Mechanism::ScramSha512 => Some(Sasl::Scram(Hash::Sha512, login()?)),
        Mechanism::OauthBearer => {
            let extensions = found.extensions.clone();
            Some(Sasl::OauthBearer(OauthOptions::new(token_source(walk, found)?, extensions)))
        }
    }
}

fn token_source(walk: &mut Walk<'_>, found: KafkaSasl) -> Option<TokenSource> {
    if let Some(path) = found.token_file {
        return Some(TokenSource::File(path));
    }
    let url = found.token_url?;
    let is_loopback = units::broker(&url.address).is_ok_and(|b| b.is_loopback());
    if !url.is_tls && !is_loopback && !found.token_url_without_tls {
        let id = (KafkaSasl::TABLE.name, walk.source);
        walk.problems.add_at(id, "token_url", Conflict::TokenUrlWithoutTls);
    }
    Some(TokenSource::Endpoint(Box::new(TokenEndpoint {
        url,
        client_id: found.client_id?,
        client_secret_file: found.client_secret_file?,
        scope: found.scope,
        ca: found.token_ca,
        without_tls: found.token_url_without_tls,
    })))
}

pub fn token_url(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<TokenUrl> {
    parsed(walk, key, v, ("a URL", "\"https://login.example/oauth2/token\""), |s| {
        let url = url::parse(s).map_err(Invalid::Text)?;
        units::broker(&url.address).map(|_| url)
    })
}

/// As RFC 7628, 3.1 allows them.
pub fn extensions(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Vec<(String, String)>> {
    let all = texts(walk, key, v)?;
    let is_name = |s: &str| s.bytes().all(|b| b.is_ascii_alphabetic()) && s != "auth";
    let is_value = |s: &str| !s.is_empty() && s.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
    match all.iter().find(|(name, value)| !is_name(name) || !is_value(value)) {
        Some((name, _)) => walk.refuse(v, Mistake::Extension(name.clone())),
        None => Some(all),
    }
}
