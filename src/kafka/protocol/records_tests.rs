//! Tests the encoder against `kafka-protocol`'s decoder, and measures its cost.

use super::*;
use crate::kafka::protocol::codec::tests::{ALL, decompress};
use crate::producer::batch::{Numbers, Pick};
use crate::producer::testing::{STAMP, batch, chunk, origin, plain};
use crate::record::{RecordHead, Shape};
use bytes::{Buf, Bytes};
use kafka_protocol::records::{Compression, RecordBatchDecoder, RecordSet, TimestampType};
use proptest::prelude::*;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

fn decode(bytes: &[u8]) -> RecordSet {
    let unpressed = |b: &mut Bytes, c: Compression| Ok(Bytes::from(decompress(ALL[c as usize], b.chunk())));
    let mut all = Bytes::copy_from_slice(bytes);
    let set = RecordBatchDecoder::decode_with_custom_compression(&mut all, Some(unpressed)).unwrap();
    assert!(!all.has_remaining(), "bytes after the batch");
    set
}

fn encode(encoder: &mut Encoder, b: &Batch, codec: Codec) -> Vec<u8> {
    let mut out = Writer::default();
    encoder.batch(&mut out, b, codec);
    out.filled().to_vec()
}

/// Fails when a record's own time or key is another line's, or the batch does not name its newest time: consumers that look
/// records up by time would miss it.
#[test]
fn records_with_heads() {
    let heads = [(None, STAMP - 40_000_000_000), (Some(&b"unit"[..]), STAMP + 5), (Some(b""), STAMP)];
    let headed = |heads: &[(Option<&[u8]>, i64)]| {
        let shape = Shape { key: Key::Head, format: Format::Headed, ..Shape::default() };
        let mut c = chunk(&origin(1, "t", "/journal", shape), 0, &[]);
        for (key, stamp_ms) in heads {
            RecordHead { key: *key, stamp_ms: *stamp_ms }.put(&mut c.bytes);
            c.lines.push(Line { at: c.bytes.len() as u32, len: 4 });
            c.bytes.extend_from_slice(b"line");
        }
        c
    };
    for codec in [Codec::None, Codec::Gzip] {
        let mut b = batch(1, vec![chunk(&plain(2), 0, &[b"line"]), headed(&heads)]);
        let bytes = encode(&mut Encoder::default(), &b, codec);
        assert_eq!(bytes[35..43], (STAMP + 5).to_be_bytes(), "the newest");
        let got: Vec<_> = decode(&bytes).records.into_iter().map(|r| (r.key, r.value, r.timestamp)).collect();
        let line = || Some(Bytes::from_static(b"line"));
        let mut want = vec![(None, line(), STAMP)];
        want.extend(heads.map(|(key, stamp)| (key.map(Bytes::copy_from_slice), line(), stamp)));
        assert_eq!(got, want);
        b.restamped = Some(-1);
        let set = decode(&encode(&mut Encoder::default(), &b, codec));
        assert!(set.records.iter().all(|r| r.timestamp == -1));
    }
}

/// Chunks of lines of all lengths around the copy's block, the varints' edges, and empty ones.
fn lines() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let len = prop_oneof![
        0usize..200,
        Just(63),
        Just(64),
        Just(65),
        Just(127),
        Just(8191),
        Just(8192),
        0usize..20_000
    ];
    let line = (len, any::<u8>()).prop_map(|(n, b)| (0..n).map(|i| b.wrapping_add(i as u8)).collect());
    proptest::collection::vec(line, 1..80)
}

fn shapes() -> impl Strategy<Value = Shape> {
    let key = prop_oneof![
        3 => Just(0u8),
        1 => Just(1),
        1 => Just(2),
    ];
    (
        key,
        any::<bool>(),
        proptest::collection::btree_map("[a-z]{1,9}", proptest::collection::vec(any::<u8>(), 0..90), 0..3),
    )
        .prop_map(|(key, json, headers)| Shape {
            key: match key {
                0 => Key::None,
                1 => Key::Constant(vec![7; 100]),
                _ => Key::Path,
            },
            format: if json {
                Format::Json { host: "h".into(), fields: vec![("a".into(), "b".into())] }
            } else {
                Format::Raw
            },
            headers: headers.into_iter().collect(),
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// Fails when any length, delta, header field or checksum is wrong, a record is missing, a copy takes neighboring
    /// bytes, or picks are taken from another chunk.
    #[test]
    fn a_batch_reads_back(
        chunks in proptest::collection::vec((lines(), shapes()), 1..4),
        picks: Option<Vec<proptest::sample::Index>>,
        numbers: Option<(i64, i16, i32)>,
        restamped: Option<i64>,
    ) {
        let made: Vec<Chunk> = chunks
            .into_iter()
            .map(|(lines, shape)| {
                let lines: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
                chunk(&origin(1, "t", "/log", shape), 0, &lines)
            })
            .collect();
        let mut b = batch(1, made);
        b.numbers = numbers.map(|(pid, epoch, base)| Numbers { pid, epoch, base: base & i32::MAX });
        b.restamped = restamped;
        if let Some(picks) = picks.filter(|p| !p.is_empty()) {
            let all: Vec<Pick> = b.picks().collect();
            let some: Arc<[Pick]> = picks.iter().map(|i| *i.get(&all)).collect();
            b.count = some.len() as u32;
            b.records = Records::Picked(some);
        }
        let mut want = Vec::new();
        RecordEncoder::default().each(&b, |r| {
            want.push((r.key.as_deref().map(<[u8]>::to_vec), r.value.to_vec(), r.headers.to_vec()));
        });
        let mut encoder = Encoder::default();
        for codec in ALL {
            let set = decode(&encode(&mut encoder, &b, codec));
            prop_assert_eq!(set.compression as u8, codec as u8);
            prop_assert_eq!(set.records.len(), want.len());
            for (i, (got, (key, value, headers))) in set.records.iter().zip(&want).enumerate() {
                prop_assert_eq!(got.offset, i as i64);
                prop_assert_eq!(got.timestamp, restamped.unwrap_or(STAMP));
                prop_assert_eq!(got.timestamp_type, TimestampType::Creation);
                prop_assert_eq!(&got.key.as_deref().map(<[u8]>::to_vec), key);
                prop_assert_eq!(got.value.as_deref(), Some(&value[..]));
                let sent: Vec<_> = headers.iter().map(|(k, v)| (k.as_bytes(), &v[..])).collect();
                let read: Vec<_> = got.headers.iter().map(|(k, v)| (k.as_bytes(), v.as_deref().unwrap())).collect();
                prop_assert_eq!(read, sent);
                let n = b.numbers.map_or((-1, -1), |n| (n.pid, n.epoch));
                prop_assert_eq!((got.producer_id, got.producer_epoch, got.partition_leader_epoch), (n.0, n.1, -1));
            }
        }
    }
}

/// Fails when the base sequence, the last delta or the count is written at the wrong offset: the decoder above does
/// not check all of them.
#[test]
fn header_fields_are_at_their_offsets() {
    let mut b = batch(1, vec![chunk(&plain(1), 0, &[b"a", b"b", b"c"])]);
    b.numbers = Some(Numbers { pid: 0x0102, epoch: 3, base: 0x0405_0607 });
    let bytes = encode(&mut Encoder::default(), &b, Codec::None);
    assert_eq!(bytes.len(), HEADER + 3 * 8);
    assert_eq!(bytes[8..12], (bytes.len() as u32 - 12).to_be_bytes());
    assert_eq!(bytes[23..27], 2u32.to_be_bytes());
    assert_eq!(bytes[27..35], STAMP.to_be_bytes());
    assert_eq!(bytes[35..43], STAMP.to_be_bytes());
    assert_eq!(bytes[43..61], [0, 0, 0, 0, 0, 0, 1, 2, 0, 3, 4, 5, 6, 7, 0, 0, 0, 3]);
    assert_eq!(bytes[61..69], [14, 0, 0, 0, 1, 2, b'a', 0]);
}

/// Fails when a buffer keeps bytes of its previous content.
#[test]
fn a_used_buffer_gives_the_same_bytes() {
    let long = batch(1, vec![chunk(&plain(1), 0, &[&[b'x'; 5000], b"y"])]);
    let short = batch(1, vec![chunk(&plain(1), 0, &[b"", b"ab"])]);
    let (mut encoder, mut out) = (Encoder::default(), Writer::default());
    for codec in ALL {
        let fresh = encode(&mut Encoder::default(), &short, codec);
        encoder.batch(&mut out, &long, codec);
        out.clear();
        encoder.batch(&mut out, &short, codec);
        assert_eq!(out.filled(), fresh, "{codec:?}");
        out.clear();
    }
}

/// One request with two topics and three partitions, read by `kafka-protocol` as a broker would. Fails when a topic's
/// name, a count, a length (including one whose varint size was guessed wrong) or a tag is misplaced.
#[test]
fn a_request_reads_back_in_every_version() {
    use kafka_protocol::messages::{ProduceRequest, RequestHeader};
    use kafka_protocol::protocol::Decodable;
    let make = |topic: &str, partition, size| {
        let o =
            origin(1, topic, "/log", Shape { headers: vec![("h".into(), vec![1; 300])], ..Shape::default() });
        let mut b = batch(1, vec![chunk(&o, 0, &[&vec![b'x'; size]])]);
        b.partition = partition;
        let group = Arc::get_mut(&mut b.group).unwrap();
        group.topic = topic.into();
        b
    };
    for version in 3..=12 {
        for size in [0, 10, 60, 16_000, 16_384 - 200] {
            for codec in ALL {
                let all = [make("one", 0, size), make("one", 7, 1), make("two", 0, 3)];
                let envelope =
                    Envelope { version, correlation: 77, client: "c", acks: Acks::All, timeout_ms: 9, codec };
                let (mut encoder, mut out) = (Encoder::default(), Writer::default());
                assert_eq!(encoder.request(&mut out, &envelope, &all, usize::MAX), 3);
                let mut bytes = Bytes::copy_from_slice(out.filled());
                assert_eq!(bytes.get_u32() as usize, bytes.remaining());
                let header = RequestHeader::decode(&mut bytes, if version >= 9 { 2 } else { 1 }).unwrap();
                assert_eq!((header.request_api_key, header.request_api_version), (0, version));
                assert_eq!((header.correlation_id, header.client_id.as_deref()), (77, Some("c")));
                let body = ProduceRequest::decode(&mut bytes, version).unwrap();
                assert!(!bytes.has_remaining() && body.transactional_id.is_none());
                assert_eq!((body.acks, body.timeout_ms), (-1, 9));
                let read: Vec<(&str, i32, usize)> = body
                    .topic_data
                    .iter()
                    .flat_map(|t| t.partition_data.iter().map(|p| (&**t.name, p)))
                    .map(|(t, p)| {
                        (
                            t,
                            p.index,
                            decode(p.records.as_ref().unwrap()).records[0].value.as_ref().unwrap().len(),
                        )
                    })
                    .collect();
                assert_eq!(read, [("one", 0, size), ("one", 7, 1), ("two", 0, 3)], "version {version}");
            }
        }
    }
}

/// The cost per line: `cargo test --release cost_per_line -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost_per_line() {
    let line: Vec<u8> = (0..200).map(|i| b'a' + (i * 7 % 26) as u8).collect();
    let log: Vec<Vec<u8>> = (0..2600u32)
        .map(|i| {
            let mut l = format!(
                "10.0.{}.{} - - [22/Nov/2025:18:{:02}:{:02} +0000] \"GET /a/{}?id={} HTTP/1.1\" 200 ",
                i % 256,
                i * 7 % 256,
                i % 60,
                i * 3 % 60,
                i * 31 % 997,
                i.wrapping_mul(2_654_435_761)
            )
            .into_bytes();
            let more = 200 - l.len().min(200);
            l.extend_from_slice(&line[..more]);
            l.truncate(200);
            l
        })
        .collect();
    let lines: Vec<&[u8]> = log.iter().map(Vec::as_slice).collect();
    let keyed = Shape { key: Key::Path, ..Shape::default() };
    for (name, o) in [("plain", plain(1)), ("keyed", origin(1, "t", "/var/log/app.log", keyed))] {
        let batches: Vec<Batch> = (0..16)
            .map(|i| batch(i, vec![chunk(&o, 0, &lines[..1300]), chunk(&o, 0, &lines[1300..])]))
            .collect();
        for codec in ALL {
            let (mut encoder, mut out) = (Encoder::default(), Writer::default());
            let mut best = f64::MAX;
            let mut size = 0;
            for _ in 0..7 {
                let start = Instant::now();
                for b in &batches {
                    out.clear();
                    encoder.batch(&mut out, b, codec);
                    size = black_box(&out).filled().len();
                }
                best = best.min(start.elapsed().as_nanos() as f64 / (16.0 * 2600.0));
            }
            let raw = 2600.0 * 200.0 / size as f64;
            println!("{name:6} {codec:?}: {best:6.1} ns per line, {:7.0} MB/s, x{raw:.2}", 200e3 / best);
        }
    }
}

/// Fails when a request exceeds its limit by one byte, has room left for the next batch, or states a wrong number of
/// topics or partitions, including when the count first written took more bytes.
#[test]
fn a_request_ends_before_its_limit() {
    use kafka_protocol::messages::{ProduceRequest, RequestHeader};
    use kafka_protocol::protocol::Decodable;
    let make = |topic: &str, partition| {
        let mut b = batch(1, vec![chunk(&origin(1, topic, "/log", Shape::default()), 0, &[&[b'x'; 100]])]);
        b.partition = partition;
        b
    };
    let all: Vec<Batch> = (0..140).map(|p| make("one", p)).chain((0..200).map(|p| make("two", p))).collect();
    let (mut encoder, mut out) = (Encoder::default(), Writer::default());
    for version in [3, 12] {
        let codec = Codec::None;
        let envelope =
            Envelope { version, correlation: 7, client: "c", acks: Acks::All, timeout_ms: 9, codec };
        encoder.request(&mut out, &envelope, &all, usize::MAX);
        let whole = out.filled().len();
        for most in (1..whole + 300).step_by(89) {
            let fitted = encoder.request(&mut out, &envelope, &all, most);
            assert!(fitted == 1 || out.filled().len() <= most, "version {version}, limit {most}");
            assert!(
                fitted == all.len() || out.filled().len() + 220 > most,
                "version {version}, limit {most}"
            );
            let mut bytes = Bytes::copy_from_slice(out.filled());
            assert_eq!(bytes.get_u32() as usize, bytes.remaining());
            RequestHeader::decode(&mut bytes, if version >= 9 { 2 } else { 1 }).unwrap();
            let body = ProduceRequest::decode(&mut bytes, version).unwrap();
            assert!(!bytes.has_remaining());
            let read: Vec<(String, i32)> = body
                .topic_data
                .iter()
                .flat_map(|t| t.partition_data.iter().map(|p| (t.name.to_string(), p.index)))
                .collect();
            let want: Vec<(String, i32)> =
                all[..fitted].iter().map(|b| (b.group.topic.to_string(), b.partition)).collect();
            assert_eq!(read, want);
        }
    }
}
