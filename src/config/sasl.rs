//! [kafka.sasl]: its keys, and which of them go together.

use super::mistake::{Conflict, Mistake};
use super::spec::*;
use super::table::*;
use super::units::{self, Invalid};
use super::values::*;
use super::{Mechanism, Sasl};
use crate::kafka::net::oauth::url::{self, TokenUrl};
use crate::kafka::net::oauth::{OauthOptions, TokenEndpoint, TokenSource};
use crate::kafka::net::sasl::PasswordLogin;
use crate::kafka::net::scram::Hash;
use std::path::PathBuf;

table! {
    pub struct KafkaSasl "[kafka.sasl]" optional:
        "\"PLAIN\" (over TLS), \"SCRAM-SHA-256\" and \"SCRAM-SHA-512\" with username and password_file; \"OAUTHBEARER\" (over \
         TLS) with token_file or token_url instead. Each secret has a file of its own: see LoadCredential= in the unit." {
        mechanism: Mechanism = word(words::<Mechanism>()), Required("\"SCRAM-SHA-512\""), Reconnects, "";
        username: Option<String> = text("text"), Example("\"logagent\""), Reconnects, "",
            "Required by PLAIN and SCRAM.";
        password_file: Option<PathBuf> = path("path"),
            Example("\"/run/credentials/logagent.service/kafka-password\""), Reconnects, "",
            "Required by PLAIN and SCRAM. Read at each connect.";
        plain_without_tls: bool = flag("true or false"), Default("false"), Reconnects,
            "PLAIN to other machines without [kafka.tls]: anyone on the network path can read the password.",
            "Without this, PLAIN needs TLS, except to a loopback address or localhost.";
        token_file: Option<PathBuf> = path("path"), Example("\"/run/secrets/kafka-token\""), Reconnects,
            "For OAUTHBEARER: a file with a token (JWT or opaque) that another program renews. Read at each connect.",
            "A JWT that expires within 30 s is not used: the file is read again until it contains a newer one.";
        token_url: Option<TokenUrl> = token_url("URL"), Example("\"https://login.example/oauth2/token\""), Reconnects,
            "Or the token endpoint, used with client_id, client_secret_file and scope (client credentials, RFC 6749 4.4).",
            "One token is used for all brokers, for 80 % of its lifetime; lines wait while none can be fetched. \
             Reached through `proxy`, if that is set.";
        client_id: Option<String> = text("text"), Example("\"logagent\""), Reconnects, "",
            "Required by token_url.";
        client_secret_file: Option<PathBuf> = path("path"),
            Example("\"/run/credentials/logagent.service/client-secret\""), Reconnects, "",
            "Required by token_url. Read for each token request.";
        scope: Option<String> = text("text"), Example("\"kafka\""), Reconnects, "",
            "The scope to request; separate several with spaces.";
        token_ca: Option<PathBuf> = path("path"), Example("\"/etc/ssl/certs/login-ca.pem\""), Reconnects, "",
            "The CA that signed the certificate of token_url, PEM; by default the system's roots.";
        token_url_without_tls: bool = flag("true or false"), Default("false"), Reconnects, "",
            "Allow http:// to other machines: anyone on the network path can read the client's secret and the token. Without \
             this, http:// works only with a loopback address or localhost, and without a proxy.";
        extensions: Vec<(String, String)> = extensions("table of texts"),
            Instance("{}", "{ logicalCluster = \"lkc-1\", identityPoolId = \"pool-1\" }"), Reconnects,
            "SASL extensions, which some services require.";
    }
}

/// The keys of [kafka.sasl] that go with OAUTHBEARER.
pub const OF_TOKENS: [&[&str]; 3] = [&OF_FILES, &OF_ENDPOINTS, &["extensions"]];
/// Those that go with the other mechanisms.
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
        _ => (OF_TOKENS.to_vec(), "a mechanism that uses a password"),
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
            Some(Sasl::OauthBearer(OauthOptions::new(token_source(found)?, extensions)))
        }
    }
}

fn token_source(found: KafkaSasl) -> Option<TokenSource> {
    if let Some(path) = found.token_file {
        return Some(TokenSource::File(path));
    }
    let url = found.token_url?;
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

/// Checks names and values against RFC 7628, 3.1.
pub fn extensions(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Vec<(String, String)>> {
    let all = texts(walk, key, v)?;
    let is_name = |s: &str| s.bytes().all(|b| b.is_ascii_alphabetic()) && s != "auth";
    let is_value = |s: &str| !s.is_empty() && s.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
    match all.iter().find(|(name, value)| !is_name(name) || !is_value(value)) {
        Some((name, _)) => walk.refuse(v, Mistake::Extension(name.clone())),
        None => Some(all),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{good, problems};
    use super::super::{Kafka, Output};

    fn text(sasl: &str) -> String {
        format!(
            "[kafka]\nbrokers = [\"k:9\"]\ntopic = \"t\"\n[kafka.tls]\n[kafka.sasl]\nmechanism = {sasl}\n\
             [[files]]\npaths = \"/x\""
        )
    }

    fn kafka(sasl: &str) -> Kafka {
        let Output::Kafka(kafka) = good(&text(sasl)).output else { panic!("no Kafka") };
        kafka
    }

    const ENDPOINT: &str = "\"OAUTHBEARER\"\nclient_id = \"c\"\nclient_secret_file = \"/s\"\ntoken_url = ";

    /// Fails when a key does not reach the options.
    #[test]
    fn tokens() {
        let found = kafka("\"OAUTHBEARER\"\ntoken_file = \"/t\"\nextensions = { a = \"1 2\", B = \"c\" }");
        assert_eq!(
            format!("{:?}", found.sasl.unwrap()),
            "OauthBearer(File(\"/t\") [(\"B\", \"c\"), (\"a\", \"1 2\")])"
        );
        let found = kafka(&format!("{ENDPOINT}\"https://i:1/t\"\nscope = \"a b\"\ntoken_ca = \"/ca\""));
        let shown = format!("{:?}", found.sasl.unwrap());
        for part in [
            "address: \"i:1\"",
            "client_id: \"c\"",
            "\"/s\"",
            "Some(\"a b\")",
            "Some(\"/ca\")",
            "without_tls: false",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        for loopback in
            ["\"http://localhost/t\"", "\"http://[::1]:1/t\"", "\"http://i/t\"\ntoken_url_without_tls = true"]
        {
            good(&text(&format!("{ENDPOINT}{loopback}")));
        }
    }

    /// Fails when conflicting keys are accepted, a missing one is not named, or a secret may be sent unencrypted.
    #[test]
    fn mistakes() {
        let endpoint = |rest: &str| format!("{ENDPOINT}{rest}");
        for (sasl, said) in [
            (
                "\"OAUTHBEARER\"".into(),
                "`token_file` is missing in [kafka.sasl]; write token_file = \"/run/secrets/kafka-token\", or token_url",
            ),
            (
                "\"OAUTHBEARER\"\ntoken_url = \"https://i/t\"\nclient_id = \"c\"".into(),
                "`client_secret_file` is missing",
            ),
            (
                "\"OAUTHBEARER\"\ntoken_file = \"/t\"\nusername = \"u\"".into(),
                "`username` cannot be used with token_file; remove",
            ),
            (
                "\"OAUTHBEARER\"\ntoken_file = \"/t\"\nscope = \"s\"".into(),
                "`scope` cannot be used with token_file; remove",
            ),
            (
                "\"PLAIN\"\nusername = \"u\"\npassword_file = \"/p\"\ntoken_file = \"/t\"".into(),
                "`token_file` cannot be used with a mechanism that",
            ),
            ("\"PLAIN\"\nusername = \"u\"".into(), "`password_file` is missing"),
            ("\"OAUTH\"\ntoken_file = \"/t\"".into(), "cannot be \"OAUTH\""),
            (endpoint("\"http://i/t\""), "would send the client's secret in the clear; use"),
            (endpoint("\"http://10.0.0.1/t\""), "would send the client's secret in the clear; use"),
            (endpoint("\"i.example/t\""), "does not begin with https://"),
            (endpoint("\"https://i:x/t\""), "not a number from 1 to 65535"),
            (endpoint("\"https://i/t\"\nextensions = { auth = \"x\" }"), "is not a valid SASL extension"),
            (endpoint("\"https://i/t\"\nextensions = { a1 = \"x\" }"), "is not a valid SASL extension"),
            (
                endpoint("\"https://i/t\"\nextensions = { a = \"x\\u0001y\" }"),
                "is not a valid SASL extension",
            ),
        ] {
            let found = problems(&text(&sasl));
            assert_eq!(found.len(), 1, "{sasl}: {found:#?}");
            assert!(found[0].contains(said) && found[0].contains("; "), "{sasl}: {found:?}");
        }
        let local = text(&endpoint("\"http://localhost/t\""));
        let found = problems(&local.replace("topic", "proxy = \"http://localhost:1\"\ntopic"));
        assert!(found.len() == 1 && found[0].contains("secret in the clear; use"), "{found:?}");
        let open = text("\"OAUTHBEARER\"\ntoken_file = \"/t\"").replace("[kafka.tls]\n", "");
        let found = problems(&open);
        assert!(
            found.len() == 1 && found[0].contains("would send the token in the clear to k:9"),
            "{found:?}"
        );
        good(&open.replace("k:9", "localhost:9"));
        let found =
            problems(&open.replace("topic", "driver = \"classic\"\ntopic").replace("k:9", "localhost:9"));
        assert!(found.len() == 1 && found[0].contains("does not support SASL"), "{found:?}");
    }
}
