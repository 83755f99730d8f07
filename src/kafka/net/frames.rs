//! Splits a connection's bytes into length-prefixed frames. Every length is checked against the cap before use.

use crate::error::Reason;
use crate::kafka::net::trouble::Trouble;

/// Bytes read but not yet consumed as frames. Holds at most one frame's cap and the bytes read after it.
#[derive(Debug)]
pub struct Input {
    buf: Vec<u8>,
    from: usize,
    to: usize,
    cap: usize,
}

impl Input {
    const FIRST: usize = 4096;

    /// `cap`: maximum frame size.
    pub fn new(cap: usize) -> Self {
        Input { buf: Vec::new(), from: 0, to: 0, cap }
    }

    /// No bytes of another frame have arrived.
    pub fn is_between(&self) -> bool {
        self.from == self.to
    }

    /// Marks bytes of [`Input::room`] as filled.
    pub fn took(&mut self, n: usize) {
        self.to += n;
    }

    /// The bytes of a frame, or a part of them, valid until the next call of [`Input::room`].
    pub fn bytes(&self, range: std::ops::Range<usize>) -> &[u8] {
        &self.buf[range]
    }

    /// The next whole frame without its length; `None`: incomplete.
    pub fn frame(&mut self) -> Result<Option<std::ops::Range<usize>>, Trouble> {
        let have = &self.buf[self.from..self.to];
        let Some((head, _)) = have.split_first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_be_bytes(*head) as usize;
        if len < 4 || len > self.cap {
            return Err(Trouble::Lost(foreign(*head, self.cap)));
        }
        if have.len() < 4 + len {
            return Ok(None);
        }
        let start = self.from + 4;
        self.from = start + len;
        Ok(Some(start..self.from))
    }

    /// The length of the next frame, including its length word, without consuming it; `None`: not here yet. For a
    /// frame that is read in parts, so it has its own `cap`.
    pub fn head(&self, cap: usize) -> Result<Option<usize>, Trouble> {
        let Some((head, _)) = self.buf[self.from..self.to].split_first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_be_bytes(*head) as usize;
        if len < 4 || len > cap {
            return Err(Trouble::Lost(foreign(*head, cap)));
        }
        Ok(Some(4 + len))
    }

    /// The available bytes, of one frame or several.
    pub fn here(&self) -> &[u8] {
        &self.buf[self.from..self.to]
    }

    /// Consumes bytes.
    pub fn skip(&mut self, n: usize) {
        self.from += n;
    }

    /// Room for more, growing only as bytes arrive: a peer that announces much and sends little costs little.
    pub fn room(&mut self) -> &mut [u8] {
        if self.from == self.to {
            (self.from, self.to) = (0, 0);
            if self.buf.len() > 1 << 16 {
                self.buf = Vec::new();
            }
        } else if self.from > 0 && self.to == self.buf.len() {
            self.buf.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        if self.to == self.buf.len() {
            let more = (self.buf.len() * 2).clamp(Self::FIRST, self.cap + 2 * Self::FIRST);
            self.buf.resize(more, 0);
        }
        &mut self.buf[self.to..]
    }
}

/// Guesses the protocol of a peer that does not speak Kafka.
fn foreign(head: [u8; 4], cap: usize) -> Reason {
    match &head {
        b"HTTP" => Reason::new("it speaks HTTP and is not Kafka", "use Kafka's port"),
        [0x15, 3, ..] => Reason::new("it speaks TLS", "set [kafka.tls], or use the port without TLS"),
        b"SSH-" => Reason::new("it speaks SSH and is not Kafka", "use Kafka's port"),
        _ => format!(
            "an answer of {} bytes, which must be from 4 to {cap}: not Kafka, or damaged on the way",
            u32::from_be_bytes(head)
        )
        .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds bytes in pieces of these sizes; returns the frames, and the largest buffer size.
    fn feed(bytes: &[u8], pieces: &[usize], cap: usize) -> (Vec<Vec<u8>>, usize, Result<(), Trouble>) {
        let mut input = Input::new(cap);
        let (mut frames, mut most, mut at, mut turn) = (Vec::new(), 0, 0, 0);
        while at < bytes.len() {
            let room = input.room();
            let n = room.len().min(pieces[turn % pieces.len()]).min(bytes.len() - at);
            room[..n].copy_from_slice(&bytes[at..at + n]);
            (at, turn) = (at + n, turn + 1);
            input.took(n);
            most = most.max(input.buf.len());
            loop {
                match input.frame() {
                    Ok(Some(range)) => frames.push(input.bytes(range).to_vec()),
                    Ok(None) => break,
                    Err(t) => return (frames, most, Err(t)),
                }
            }
        }
        (frames, most, Ok(()))
    }

    proptest! {
        /// Fails when a frame that arrives in pieces differs from what was sent, or the buffer outgrows the cap.
        #[test]
        fn frames_come_out_however_they_are_cut(
            lengths in proptest::collection::vec(4usize..20_000, 1..8),
            pieces in proptest::collection::vec(1usize..9000, 1..5),
        ) {
            let sent: Vec<Vec<u8>> = lengths.iter().enumerate().map(|(i, n)| vec![i as u8; *n]).collect();
            let wire: Vec<u8> =
                sent.iter().flat_map(|f| [&(f.len() as u32).to_be_bytes()[..], f].concat()).collect();
            let (frames, most, done) = feed(&wire, &pieces, 20_000);
            prop_assert_eq!(done, Ok(()));
            prop_assert_eq!(frames, sent);
            prop_assert!(most <= 20_000 + 2 * Input::FIRST, "{} bytes of room", most);
        }

        /// Fails when noise panics or fills memory.
        #[test]
        fn noise_costs_no_memory(
            noise in proptest::collection::vec(any::<u8>(), 1..4000),
            pieces in proptest::collection::vec(1usize..900, 1..5),
        ) {
            let (_, most, _) = feed(&noise, &pieces, 1000);
            prop_assert!(most <= 1000 + 2 * Input::FIRST, "{} bytes of room", most);
        }
    }

    /// Fails when a foreign protocol is not named.
    #[test]
    fn foreign_protocols_are_named() {
        for (head, said) in [
            (b"HTTP", "HTTP"),
            (b"\x15\x03\x03\0", "[kafka.tls]"),
            (b"SSH-", "SSH"),
            (&[0xff; 4], "4294967295"),
        ] {
            let (_, _, done) = feed(&[&head[..], &[0; 16]].concat(), &[7], 1000);
            assert!(done.unwrap_err().to_string().contains(said));
        }
    }
}
