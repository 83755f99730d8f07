//! Tests of disk errors and of the count of unread bytes.

use super::*;
use crate::budget::Budget;
use crate::record::StreamId;
use crate::stop;
use crate::tail::identity;

/// Continues after a range from an earlier run with an unreadable descriptor. Fails when the bytes before that position then
/// count as empty (`unwrap_or_default` in `pass_over`): the file would look truncated and be sent again.
#[test]
fn a_range_is_passed_over_when_it_can_be_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "first\nsecond\n").unwrap();
    let unreadable = File::options().write(true).open(file.path()).unwrap();
    let look = identity::look(&unreadable).unwrap();
    let origin = Arc::new(Origin {
        stream: StreamId(1),
        topic: "t".into(),
        path: file.path().into(),
        shape: Arc::default(),
        progress: Arc::default(),
    });
    let behind = Point { offset: 6, mark: Mark::of(b"first\n"), then: Then::Line };
    let bytes = Bytes::Plain(unreadable.into());
    let opened = Open::new(bytes, &look, origin, Point::default(), vec![(0..6, behind)], Instant::now());
    let mut open = opened.unwrap().expect("there is nothing before offset 0");
    let how = Reading { rules: Rules::default(), share: Arc::new(Budget::new(1 << 20)).share(), chunk: 1024 };
    let (_handle, stop) = stop::pair();
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
