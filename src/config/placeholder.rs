//! Fills placeholders in texts of the config: `${host}`, `${env:NAME}` and `${env:NAME:-default}`, in the OpenTelemetry
//! collector's syntax, so that one file serves a fleet.

/// What can be wrong with a placeholder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WrongPlaceholder {
    /// Neither `host` nor `env:NAME`.
    Unknown,
    /// The environment does not have this name, and there is no default.
    Missing(String),
    /// Its name suggests a secret.
    Secret(String),
}

/// `env` looks up an environment variable.
pub fn fill(
    text: &str,
    host: &str,
    env: impl Fn(&str) -> Option<String>,
) -> Result<String, WrongPlaceholder> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("${") {
        let (inner, behind) = behind.split_once('}').ok_or(WrongPlaceholder::Unknown)?;
        // In a default, it would stay as it is.
        if inner.contains("${") {
            return Err(WrongPlaceholder::Unknown);
        }
        filled.push_str(before);
        match inner.strip_prefix("env:") {
            None if inner == "host" => filled.push_str(host),
            None => return Err(WrongPlaceholder::Unknown),
            Some(variable) => filled.push_str(&from_environment(variable, &env)?),
        }
        rest = behind;
    }
    filled.push_str(rest);
    Ok(filled)
}

fn from_environment(
    variable: &str,
    env: impl Fn(&str) -> Option<String>,
) -> Result<String, WrongPlaceholder> {
    let (name, default) = variable.split_once(":-").map_or((variable, None), |(n, d)| (n, Some(d)));
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.bytes().all(plain) {
        return Err(WrongPlaceholder::Unknown);
    }
    if is_secret(name) {
        return Err(WrongPlaceholder::Secret(name.into()));
    }
    // As in a shell, `:-` also replaces an empty value.
    let found = env(name).filter(|v| default.is_none() || !v.is_empty());
    found.or(default.map(str::to_owned)).ok_or_else(|| WrongPlaceholder::Missing(name.into()))
}

/// Anyone who may inspect the process or its children can read its environment. The path of a file is not a secret.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let is_path = ["_FILE", "_PATH", "_DIR"].iter().any(|end| name.ends_with(end));
    !is_path && ["PASSWORD", "PASSWD", "SECRET", "TOKEN", "CREDENTIAL"].iter().any(|s| name.contains(s))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> Result<String, WrongPlaceholder> {
        let env = |name: &str| match name {
            "SITE" => Some("north".into()),
            "EMPTY" => Some(String::new()),
            "LOOP" => Some("${host}".into()),
            _ => None,
        };
        fill(text, "box7", env)
    }

    /// Fails when a placeholder is left, a value is filled in again, or a default counts although the variable is set.
    #[test]
    fn placeholders_are_filled() {
        for (text, want) in [
            ("plain $ {x}", "plain $ {x}"),
            ("a-${host}-${host}", "a-box7-box7"),
            ("${env:SITE}.${host}", "north.box7"),
            ("${env:SITE:-south}", "north"),
            ("${env:NO:-south:-x}", "south:-x"),
            ("${env:NO:-}", ""),
            ("${env:EMPTY:-full}", "full"),
            ("[${env:EMPTY}]", "[]"),
            ("${env:LOOP}", "${host}"),
            ("${env:TOKEN_FILE:-/t}", "/t"),
        ] {
            assert_eq!(filled(text), Ok(want.into()), "{text}");
        }
    }

    /// Fails when a placeholder that cannot be filled silently stays in a value, or a secret is accepted.
    #[test]
    fn an_unknown_placeholder_is_a_mistake() {
        use WrongPlaceholder::*;
        for text in [
            "${hots}",
            "${host",
            "${}",
            "${env:}",
            "${env:A-B}",
            "${env:1A}",
            "${ host }",
            "${env:NO:-${host}}",
        ] {
            assert_eq!(filled(text), Err(Unknown), "{text}");
        }
        assert_eq!(filled("x${env:NO}"), Err(Missing("NO".into())));
        for name in ["KAFKA_PASSWORD", "my_secret", "TOKEN", "PATH_TOKEN"] {
            assert_eq!(filled(&format!("${{env:{name}:-x}}")), Err(Secret(name.into())));
        }
    }
}
