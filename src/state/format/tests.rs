//! Tests the text of `offsets`: round trips, damage, and the exact form of version 1.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn points() -> impl Strategy<Value = Point> {
    (any::<u64>(), any::<u16>(), any::<u64>(), any::<bool>()).prop_map(|(offset, len, hash, skip)| Point {
        offset,
        mark: Mark { len, hash },
        then: if skip { Then::SkipToNewline } else { Then::Line },
    })
}

/// Ranges after `at`, in order and not adjacent.
fn placed(at: &mut Point, steps: Vec<(u32, u32, Point)>) -> Vec<(std::ops::Range<u64>, Point)> {
    at.offset >>= 1;
    let mut from = at.offset;
    let mut put = |(gap, len, mut end): (u32, u32, Point)| {
        let start = from + 1 + u64::from(gap);
        from = start + 1 + u64::from(len);
        end.offset = from;
        (start..from, end)
    };
    steps.into_iter().map(&mut put).collect()
}

fn streams() -> impl Strategy<Value = SavedStream> {
    let born = proptest::option::of((any::<i64>(), 0..1_000_000_000u32));
    let path = vec(any::<u8>(), 0..40);
    let numbers = any::<(u64, u64, u64, u64, bool)>();
    let beyond = vec((any::<u32>(), any::<u32>(), points()), 0..4);
    (points(), born, path, numbers, beyond, any::<u64>()).prop_map(
        |(mut at, born, path, (id, dev, ino, size, finished), beyond, seen)| SavedStream {
            stream: StreamId(id),
            path: PathBuf::from(OsString::from_vec(path)).into(),
            identity: Identity { dev, ino, born },
            beyond: placed(&mut at, beyond),
            at,
            size,
            finished,
            seen,
        },
    )
}

fn contents() -> impl Strategy<Value = Saved> {
    let totals = any::<[u64; 14]>().prop_map(|t| SavedTotals {
        flights_resent: t[10] | 1,
        flights_found: t[11],
        lost_entries: t[12],
        damaged_entries: t[13],
        read_lines: t[0],
        acked_lines: t[1],
        dead_lettered: t[2],
        again: t[3],
        resent: t[4],
        uncertain: t[5],
        lost_bytes: t[6],
        cut_lines: t[7],
        retries: t[8],
        state_bytes: t[9],
    });
    let sources = vec(vec(any::<u8>(), 0..30), 0..4);
    let loss = |(path, entries, upto)| (OsString::from_vec(path).into(), NumberGap { entries, upto });
    let losses = vec((vec(any::<u8>(), 0..30), any::<u64>(), any::<u64>()).prop_map(loss), 0..3);
    (vec(streams(), 0..5), any::<(u64, u64, u32, bool)>(), sources, losses, totals).prop_map(
        |(streams, (next_stream, clock, wall, from_beginning), sources, losses, totals)| Saved {
            losses,
            written: None,
            streams,
            next_stream,
            sources,
            clock,
            wall_ms: wall.into(),
            totals,
            from_beginning,
        },
    )
}

fn text(saved: &Saved) -> Vec<u8> {
    let mut out = b"what was there before".to_vec();
    write(&mut out, saved);
    out
}

proptest! {
    /// Fails when a byte of a path is not escaped (newline, space, backslash, 0xff) or a field is left out.
    #[test]
    fn what_is_written_is_read(saved in contents()) {
        let bytes = text(&saved);
        prop_assert!(bytes.is_ascii());
        prop_assert_eq!(read(&bytes), Ok(saved));
    }

    /// Fails when the checksum is not compared, or does not have to be the last line.
    #[test]
    fn any_damage_is_seen(saved in contents(), at in any::<prop::sample::Index>(), bit in 0..8u8, tail in vec(any::<u8>(), 1..50)) {
        let good = text(&saved);
        let at = at.index(good.len());
        prop_assert!(read(&good[..at]).is_err());
        let mut flipped = good.clone();
        flipped[at] ^= 1 << bit;
        prop_assert!(read(&flipped).is_err());
        let mut zeroed = good.clone();
        zeroed[at..].fill(0);
        prop_assert!(read(&zeroed).is_err());
        prop_assert!(read(&[&good[..], &tail].concat()).is_err());
    }

    #[test]
    fn noise_is_refused(noise in vec(any::<u8>(), 0..500)) {
        prop_assert!(read(&noise).is_err());
    }
}

fn sealed(body: &str) -> Vec<u8> {
    format!("{body}crc32c {:08x}\n", crc32c::crc32c(body.as_bytes())).into_bytes()
}

/// Fails when unknown lines are skipped: facts written by a newer program would be silently dropped.
#[test]
fn a_newer_version_and_unknown_lines_are_refused() {
    assert_eq!(read(&sealed("logagent offsets 2\nnumbers 4 0 17\n")), Err(Bad::Newer(2)));
    assert_eq!(read(&sealed("logagent offsets 1\n")), Ok(Saved::default()));
    for line in ["numbers 4 0 17", "stream 1", "beyond 3 4:0:0:line", "clock -1", "", "clock", "start end"] {
        let bytes = sealed(&format!("logagent offsets 1\n{line}\n"));
        assert_eq!(read(&bytes), Err(Bad::Damaged("line 2 is not understood".into())), "{line}");
    }
    assert!(matches!(read(&sealed("")), Err(Bad::Damaged(_))));
}

/// Every later program must read files of this version, so the text must not change.
#[test]
fn the_text_is_as_documented() {
    let stream = SavedStream {
        stream: StreamId(17),
        path: std::path::Path::new("/var/log/a b.log").into(),
        identity: Identity { dev: 64769, ino: 131, born: Some((1_700_000_000, 23)) },
        at: Point { offset: 1234, mark: Mark::of(b"a"), then: Then::Line },
        beyond: vec![(
            1300..1400,
            Point { offset: 1400, mark: Mark { len: 256, hash: 1 }, then: Then::SkipToNewline },
        )],
        size: 2000,
        finished: false,
        seen: 86399,
    };
    let saved = Saved {
        streams: vec![stream],
        next_stream: 18,
        sources: vec![b"/var/log/*.log".to_vec()],
        clock: 86400,
        from_beginning: true,
        losses: vec![("/var/log/journal/a b".into(), NumberGap { entries: 3, upto: 4711 })],
        ..Saved::default()
    };
    let expected = "logagent offsets 1\nclock 86400\nnext 18\n\
        totals read=0 acked=0 dead_lettered=0 again=0 resent=0 uncertain=0 lost_bytes=0 cut=0 retries=0 state_bytes=0\n\
        gap 3 4711 /var/log/journal/a\\x20b\nstart beginning\nsource /var/log/*.log\n\
        stream 17 at=1234:1:af63dc4c8601ec8c:line dev=64769 ino=131 born=1700000000.000000023 size=2000 \
        seen=86399 open path=/var/log/a\\x20b.log\n\
        beyond 1300 1400:256:0000000000000001:skip\n";
    assert_eq!(String::from_utf8(text(&saved)).unwrap(), String::from_utf8(sealed(expected)).unwrap());
}

/// Fails when damage makes the reader panic, or when an accepted text does not survive a round trip. The checksum is
/// corrected so that the whole parser is reached.
#[test]
fn fuzz_positions() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let sample = |saved: Saved| {
        let mut out = Vec::new();
        write(&mut out, &saved);
        out.truncate(out.len() - 16); // the last line, with the checksum
        out
    };
    let samples: Vec<Vec<u8>> =
        (0..20).map(|_| sample(contents().new_tree(&mut runner).unwrap().current())).collect();
    crate::fuzz::damaged(&samples, <[u8]>::len, |bytes| {
        let whole = [bytes, format!("crc32c {:08x}\n", crc32c::crc32c(bytes)).as_bytes()].concat();
        let _ = read(bytes);
        let Ok(saved) = read(&whole) else { return 0 };
        let mut again = Vec::new();
        write(&mut again, &saved);
        let again = read(&again).unwrap();
        assert_eq!((&again.streams, &again.sources), (&saved.streams, &saved.sources));
        saved.streams.len()
    });
}
