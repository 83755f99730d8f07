//! Produce v0, the `kafka` crate's version, which `kafka-protocol` does not know: one partition of an uncompressed
//! message set of magic 0, stored or refused as an [`Act`] says.

use super::{Asked, World};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

/// What to do with a Produce request.
#[derive(Clone, Debug)]
pub enum Act {
    Store,
    /// Answer with this error code; store nothing.
    Code(i16),
    Close,
    Mute,
    /// Send these bytes instead of an answer.
    Raw(Vec<u8>),
    /// Store and answer after this delay.
    Late(Duration),
    /// Store and answer, then answer again with another request's correlation id.
    Twice,
    /// Store, answer, then close.
    StoreAndClose,
}

/// Key and value.
pub type Record = (Option<Vec<u8>>, Option<Vec<u8>>);

pub fn perform(act: &Act, asked: &Asked, world: &Mutex<World>) {
    let mut body = asked.body.clone();
    let acks = body.get_i16();
    let (_timeout, _topics) = (body.get_i32(), body.get_i32());
    let topic = bytes(body.get_i16().into(), &mut body).unwrap();
    let (_partitions, partition, _size) = (body.get_i32(), body.get_i32(), body.get_i32());
    let offset = {
        let stored = &mut world.lock().unwrap().stored;
        let offset = stored.len() as i64 + 100;
        if matches!(act, Act::Store | Act::Late(_) | Act::Twice | Act::StoreAndClose) {
            stored.extend(records(body));
        }
        offset
    };
    let answer = |correlation, code| {
        if acks == 0 {
            return;
        }
        let mut answer = BytesMut::new();
        answer.put_i32(4 + 4 + 2 + topic.len() as i32 + 4 + 4 + 2 + 8);
        answer.put_i32(correlation);
        answer.put_i32(1);
        answer.put_i16(topic.len() as i16);
        answer.put_slice(&topic);
        answer.put_i32(1);
        answer.put_i32(partition);
        answer.put_i16(code);
        answer.put_i64(offset);
        asked.write(&answer);
    };
    match act {
        Act::Store => answer(asked.correlation, 0),
        Act::Code(code) => answer(asked.correlation, *code),
        Act::Close => asked.close(),
        Act::Mute => {}
        Act::Raw(bytes) => asked.write(bytes),
        Act::Late(time) => {
            thread::park_timeout(*time);
            answer(asked.correlation, 0);
        }
        Act::Twice => {
            answer(asked.correlation, 0);
            answer(!asked.correlation, 0);
        }
        Act::StoreAndClose => {
            answer(asked.correlation, 0);
            asked.close();
        }
    }
}

fn records(mut set: Bytes) -> Vec<Record> {
    let mut all = vec![];
    while set.has_remaining() {
        // Offset, size, checksum, magic and attributes.
        set.advance(8 + 4 + 4 + 2);
        let mut next = || bytes(set.get_i32(), &mut set).map(|bytes| bytes.to_vec());
        all.push((next(), next()));
    }
    all
}

/// That many bytes; none for a negative length, which is a null.
fn bytes(length: i32, from: &mut Bytes) -> Option<Bytes> {
    (length >= 0).then(|| from.split_to(length as usize))
}
