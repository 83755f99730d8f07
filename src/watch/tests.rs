//! Tests discovery and wakes on real folders.

use super::*;
use crossbeam_channel::bounded;
use std::io::Write;
use std::thread;

/// Fails when the queue is bounded: the main thread would wait here for a walk that waits for the main thread.
#[test]
fn ending_a_tail_never_blocks() {
    let (handle, inbox) = channel().unwrap();
    let (done, reported) = bounded(1);
    thread::spawn(move || {
        (0..10_000).for_each(|i| handle.ended(Path::new(&i.to_string())));
        let _ = done.send(());
    });
    reported.recv_timeout(Duration::from_secs(20)).unwrap();
    drop(inbox);
}

#[track_caller]
fn woken(found: &Found) {
    assert!(found.slot.wait(Duration::from_secs(5)).any(), "not woken");
}

/// Fails when files are not watched, or when a new file needs the next regular walk to be found.
#[test]
fn files_are_reported_and_their_tails_woken() {
    let dir = tempfile::tempdir().unwrap();
    let glob = format!("{}/sub/*.log", dir.path().display());
    let watched = Watched {
        patterns: vec![Pattern::glob(&glob).unwrap()],
        exclude: Exclude::default(),
        poll: false,
        linger: Duration::ZERO,
    };
    let heartbeat = crate::heartbeat::Heartbeats::default().register("watch");
    let options = Options {
        sources: vec![watched],
        expected: vec![],
        own: vec![],
        once: false,
        heartbeat,
        longest: WALK,
    };
    let (tx, watch_events) = bounded(16);
    let (handle, inbox) = channel().unwrap();
    let t = thread::spawn(move || run(options, &inbox, &tx));
    let soon = Duration::from_secs(5);
    assert!(
        matches!(watch_events.recv_timeout(soon), Ok(WatchEvent::Walked { missing }) if missing.is_empty())
    );
    fs::create_dir(dir.path().join("sub")).unwrap();
    let path = dir.path().join("sub/a.log");
    let mut file = fs::File::create(&path).unwrap();
    let Ok(WatchEvent::Found(found)) = watch_events.recv_timeout(soon) else { panic!("not found") };
    assert_eq!(found.path, path);
    found.slot.wait(Duration::ZERO);
    file.write_all(b"x").unwrap();
    woken(&found);
    // A new file at the path is watched too. Fails when watches cannot be added while events are read.
    fs::remove_file(&path).unwrap();
    woken(&found);
    let mut file = fs::File::create(&path).unwrap();
    woken(&found);
    assert!(found.slot.hints.load(Relaxed));
    while found.slot.wait(Duration::from_millis(200)).any() {}
    file.write_all(b"x").unwrap();
    woken(&found);
    fs::remove_file(&path).unwrap();
    woken(&found);
    handle.ended(&path);
    fs::write(&path, "again").unwrap();
    assert!(matches!(watch_events.recv_timeout(soon), Ok(WatchEvent::Found(_))));
    // New sources. Fails when a followed path is reported again, or a new one is not.
    let other = dir.path().join("other.txt");
    fs::write(&other, "x").unwrap();
    let patterns = [glob.clone(), format!("{}/*.txt", dir.path().display())];
    let patterns = patterns.iter().map(|p| Pattern::glob(p).unwrap()).collect();
    handle.sources(
        vec![Watched { patterns, exclude: Exclude::default(), poll: true, linger: Duration::ZERO }],
        vec![],
        vec![],
    );
    assert!(matches!(watch_events.recv_timeout(soon), Ok(WatchEvent::Found(f)) if f.path == other));
    assert!(matches!(watch_events.recv_timeout(soon), Ok(WatchEvent::Walked { .. })));
    drop(handle);
    t.join().unwrap();
}
