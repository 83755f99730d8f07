//! Feeds damaged input to parsers of foreign bytes for a bounded time: no parser may panic, loop, or keep more than it
//! should. Each parser's tests call [`damaged`] from a test named `fuzz_…`; `LOGAGENT_FUZZ=60` gives each a minute.

#[path = "../tests/it/harness/dice.rs"]
mod dice;

pub use dice::Dice;
use std::time::{Duration, Instant};

/// Passes damaged copies of `samples` to `parse`, which returns how much it keeps; that must not exceed `most`. Also
/// fails when a call takes a second.
pub fn damaged(samples: &[Vec<u8>], most: impl Fn(&[u8]) -> usize, mut parse: impl FnMut(&[u8]) -> usize) {
    let long = std::env::var("LOGAGENT_FUZZ").ok().map(|s| s.parse().expect("LOGAGENT_FUZZ is seconds"));
    let until = Instant::now() + long.map_or(Duration::from_millis(300), Duration::from_secs);
    let seed = if long.is_some() { std::process::id().into() } else { 7 };
    let mut dice = Dice(seed);
    let mut rounds = 0u64;
    while Instant::now() < until {
        let mut bytes = dice.of(&samples.iter().collect::<Vec<_>>()).clone();
        damage(&mut bytes, samples, &mut dice);
        let shown = Shown(&bytes);
        let began = Instant::now();
        let kept = parse(&bytes);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        assert!(kept <= most(&bytes), "{kept} kept, at most {}", most(&bytes));
        std::mem::forget(shown);
        rounds += 1;
    }
    println!("{rounds} rounds");
}

/// Shows the bytes when the parser fails.
struct Shown<'a>(&'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        eprintln!("the parser was given {} bytes: {}", self.0.len(), self.0.escape_ascii());
    }
}

/// The damage done by bit rot, truncation or an editor; or a splice of another sample.
fn damage(bytes: &mut Vec<u8>, samples: &[Vec<u8>], dice: &mut Dice) {
    for _ in 0..=dice.below(4) {
        if bytes.is_empty() {
            bytes.push(dice.next() as u8);
        }
        let at = dice.below(bytes.len() as u64) as usize;
        let to = (at + 1 + dice.below(16) as usize).min(bytes.len());
        match dice.below(9) {
            0 => bytes[at] = dice.of(&[0xff, 0x7f, 0x80, 0, 1, 0xfe, b'\n', b' ', b'9']),
            1 => bytes[at] ^= 1 << dice.below(8),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, dice.next() as u8),
            4 => bytes.extend_from_within(at..to),
            5 => drop(bytes.drain(at..to)),
            6 => {
                let lie = dice.of(&[i64::MAX, i64::MIN, -1, 1 << 16, i32::MAX.into(), i32::MIN.into()]);
                let lie = if dice.below(2) == 0 { lie.to_be_bytes() } else { lie.to_le_bytes() };
                let width = dice.of(&[2, 4, 8]).min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&lie[..width]);
            }
            7 => {
                let lie = dice.of(&["18446744073709551616", "-1", "1e99", "\\x00", "[[", "\u{202e}", "\0"]);
                drop(bytes.splice(at..to, lie.bytes()));
            }
            _ => {
                let other = &samples[dice.below(samples.len() as u64) as usize];
                let from = dice.below(other.len().max(1) as u64) as usize;
                let piece = &other[from.min(other.len())..];
                let piece = &piece[..piece.len().min(1 + dice.below(64) as usize)];
                drop(bytes.splice(at..to, piece.iter().copied()));
            }
        }
    }
}
