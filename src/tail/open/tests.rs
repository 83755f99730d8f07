//! Tests of disk errors and of the count of unread bytes.

use super::*;
use crate::budget::Budget;
use crate::record::StreamId;
use crate::stop;
use crate::tail::identity;

fn origin() -> Arc<Origin> {
    Arc::new(Origin {
        stream: StreamId(1),
        topic: "t".into(),
        path: "/f".into(),
        shape: Arc::default(),
        progress: Arc::default(),
    })
}

fn reading() -> Reading {
    Reading { rules: Rules::default(), share: Arc::new(Budget::new(1 << 20)).share(), chunk: 1024 }
}

/// The file is truncated and written again between its opening and its first read. Fails when the new bytes count as those
/// that were there, or when what a writer may still change counts as new bytes.
#[test]
fn other_bytes_at_the_first_read() {
    let long = "x".repeat(300);
    for (first, then, same) in [
        ("one\n", "two\n", false),
        ("one\n", "two\nthree\n", false),
        (&*long, "two\n", false),
        ("one\n", "one\ntwo\n", true),
        ("one", "two\n", true),
        ("one\n\0\0\0\0", "one\ntwo\n", true),
        ("", "two\n", true),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, first).unwrap();
        let opened = File::open(&file).unwrap();
        let look = identity::look(&opened).unwrap();
        let bytes = Bytes::Plain(opened.into());
        let open = Open::new(bytes, &look, origin(), Point::default(), Vec::new(), Instant::now());
        let mut open = open.unwrap().expect("there is nothing before offset 0");
        std::fs::write(&file, then).unwrap();
        assert_eq!(open.unchanged().unwrap(), same, "{first:?} {then:?}");
        let look = open.look().unwrap().unwrap();
        open.saw(&look, Instant::now());
        let (_handle, stop) = stop::pair();
        let got = open.read(&reading(), Rest::Waits, &stop).unwrap();
        assert_eq!(matches!(got, Got::Chunk(..)), same, "{first:?} {then:?}: {got:?}");
    }
}

/// Continues after a range from an earlier run with an unreadable descriptor. Fails when the bytes before that position then
/// count as empty (`unwrap_or_default` in `pass_over`): the file would look truncated and be sent again.
#[test]
fn a_range_is_passed_over_when_it_can_be_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "first\nsecond\n").unwrap();
    let unreadable = File::options().write(true).open(file.path()).unwrap();
    let look = identity::look(&unreadable).unwrap();
    let behind = Point { offset: 6, mark: Mark::of(b"first\n"), then: Then::Line };
    let bytes = Bytes::Plain(File::open(&file).unwrap().into());
    let opened = Open::new(bytes, &look, origin(), Point::default(), vec![(0..6, behind)], Instant::now());
    let mut open = opened.unwrap().expect("there is nothing before offset 0");
    open.bytes = Bytes::Plain(unreadable.into());
    let (how, (_handle, stop)) = (reading(), stop::pair());
    let failed = open.read(&how, Rest::Waits, &stop).unwrap_err();
    assert_eq!(failed.raw_os_error(), Some(libc::EBADF));
    assert_eq!((open.at, open.beyond.len()), (Point::default(), 1));

    open.bytes = Bytes::Plain(File::open(&file).unwrap().into());
    let Got::Chunk(chunk, _) = open.read(&how, Rest::Waits, &stop).unwrap() else {
        panic!("it is readable now")
    };
    assert_eq!((chunk.range.clone(), chunk.line(0)), (6..13, &b"second"[..]));
}

/// Fails when bytes acknowledged beyond the position count as unread, or ranges outside the file reduce the count.
#[test]
fn acknowledged_ranges_are_not_unread() {
    let range = |r: Range| (r.clone(), Point { offset: r.end, ..Point::default() });
    let beyond = [range(5..10), range(22..30), range(90..200)];
    assert_eq!(unread(110, 11, &beyond), 110 - 11 - 8 - 20);
    assert_eq!(unread(110, 11, &[]), 99);
    assert_eq!(unread(10, 11, &beyond), 0);
}
