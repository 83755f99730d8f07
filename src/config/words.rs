//! Named values, and suggestions for mistyped words.

/// A type whose values have names, identical in the config and on the command line.
pub trait Named: Clone + 'static {
    const NAMES: &'static [(&'static str, Self)];
}

pub fn names<T: Named>() -> Vec<&'static str> {
    T::NAMES.iter().map(|(name, _)| *name).collect()
}

pub fn by_name<T: Named>(s: &str) -> Result<T, String> {
    let found = T::NAMES.iter().find(|(name, _)| *name == s);
    found.map(|(_, value)| value.clone()).ok_or_else(|| unknown(s, &names::<T>()))
}

fn unknown(s: &str, names: &[&'static str]) -> String {
    let hint = nearest(s, names).map(|near| format!("; did you mean {near:?}?"));
    format!("{s:?} is none of {}{}", names.join(", "), hint.unwrap_or_default())
}

/// The most similar of `names`, if close enough. Case and `-` versus `_` do not count.
pub fn nearest<'n>(typed: &str, names: &[&'n str]) -> Option<&'n str> {
    let plain = |s: &str| s.to_ascii_lowercase().replace('-', "_");
    let typed = plain(typed);
    // Every single character is near every other, and `acks = "-1"` means "all", not "1".
    let near = names
        .iter()
        .copied()
        .filter(|n| n.len() > 1)
        .map(|n| (distance(&typed, &plain(n)), n))
        .min_by_key(|(d, _)| *d)?;
    (near.0 <= (typed.chars().count() / 3).clamp(1, 3)).then_some(near.1)
}

/// Edit distance with adjacent swaps (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = match (i, j) {
                (0, n) | (n, 0) => n,
                _ => {
                    let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let edited = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                    let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                    if swapped { edited.min(rows[i - 2][j - 2] + 1) } else { edited }
                }
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions() {
        let keys = ["brokers", "topic", "acks", "max_line", "drop", "1"];
        for (typed, meant) in [
            ("broker", Some("brokers")),
            ("tpoic", Some("topic")),
            ("max-line", Some("max_line")),
            ("MaxLine", Some("max_line")),
            ("Topic", Some("topic")),
            ("ack", Some("acks")),
            ("zebra", None),
            ("", None),
            ("2", None),
            ("-1", None),
        ] {
            assert_eq!(nearest(typed, &keys), meant, "{typed}");
        }
    }
}
