//! The end of a topic, queried over one connection that stays open (ListOffsets v1): cheap enough to query every 5 ms
//! during a measurement. Knows no other request.

use crate::harness::{
    Topic, pause, secs,
    wire::{Out, Reader, read_frame},
};
use std::{
    io::{self, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

const LIST_OFFSETS: i16 = 2;
const LATEST: i64 = -1;

pub struct Offsets {
    address: String,
    request: Vec<u8>,
    stream: Option<TcpStream>,
}

impl Offsets {
    pub fn of(topic: &Topic) -> Offsets {
        let mut out = Out::default();
        out.i16(LIST_OFFSETS);
        out.i16(1);
        out.i32(1); // correlation id
        out.string(Some("bench"));
        out.i32(-1); // no replica
        out.list([&topic.name], |out, name| {
            out.string(Some(name));
            out.list(0..topic.partitions as usize, |out, partition| {
                out.i32(partition as i32);
                out.i64(LATEST);
            });
        });
        let request = [&(out.bytes.len() as i32).to_be_bytes()[..], &out.bytes].concat();
        Offsets { address: topic.address.clone(), request, stream: None }
    }

    /// The sum over all partitions; `None` while the broker is away or a partition has no leader.
    pub fn now(&mut self) -> Option<u64> {
        let answer = self.ask();
        if answer.is_err() {
            self.stream = None;
        }
        sum(&answer.ok()?)
    }

    fn ask(&mut self) -> io::Result<Vec<u8>> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let address = self.address.parse().map_err(io::Error::other)?;
                let stream = TcpStream::connect_timeout(&address, secs(1))?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(secs(5)))?;
                none.insert(stream)
            }
        };
        stream.write_all(&self.request)?;
        read_frame(stream)
    }

    /// Checks every `step` until there are `n` records: the end for programs that follow forever. `None` when `limit`
    /// has passed or `give_up` says that no more will arrive.
    pub fn wait(
        &mut self,
        n: u64,
        step: Duration,
        limit: Duration,
        mut give_up: impl FnMut() -> bool,
    ) -> Option<Instant> {
        let end = Instant::now() + limit;
        loop {
            let last = give_up() || Instant::now() >= end;
            if self.now().is_some_and(|seen| seen >= n) {
                return Some(Instant::now());
            }
            if last {
                return None;
            }
            pause(step);
        }
    }
}

fn sum(body: &[u8]) -> Option<u64> {
    let mut r = Reader::new(body);
    let (_size, _correlation) = (r.i32()?, r.i32()?);
    let topics = r.list(|r| {
        r.string()?;
        r.list(|r| {
            let (_partition, error, _time, offset) = (r.i32()?, r.i16()?, r.i64()?, r.i64()?);
            (error == 0).then_some(offset as u64)
        })?
    })??;
    Some(topics.into_iter().flatten().sum())
}
