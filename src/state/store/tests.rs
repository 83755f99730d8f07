//! Crash images: a good file exists after every step of a save, whatever a power loss does to unsynced data.

use super::*;
use crate::error::ExitCode;
use crate::streams::SavedTotals;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// A saved state that contains its number.
fn state(number: u64) -> Vec<u8> {
    let totals = SavedTotals { read_lines: 7 * number, ..SavedTotals::default() };
    let mut bytes = Vec::new();
    // Of different lengths, so that a truncated one cannot pass for another.
    let sources = vec![b"x".to_vec(); (number % 5) as usize];
    format::write(&mut bytes, &Saved { clock: number, totals, sources, ..Saved::default() });
    bytes
}

/// What a power loss does to unsynced data.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Kept,
    Empty,
    Half,
    Zeros,
    /// Another file's old bytes, as after a stale journal.
    Garbage,
}

/// Model of the folder on disk: data that may be lost, and renames that may not have happened. Renames reach the disk
/// in order, as with every journal; data does not.
#[derive(Clone, Debug, Default)]
struct Model {
    files: Vec<(Vec<u8>, bool)>,
    durable: BTreeMap<&'static str, usize>,
    pending: Vec<(&'static str, Option<&'static str>, usize)>,
}

impl Model {
    fn names(&self, upto: usize) -> BTreeMap<&'static str, usize> {
        let mut names = self.durable.clone();
        for (to, from, file) in &self.pending[..upto] {
            if let Some(from) = from {
                names.remove(from);
            }
            names.insert(to, *file);
        }
        names
    }

    fn now(&self) -> BTreeMap<&'static str, usize> {
        self.names(self.pending.len())
    }

    fn step(&mut self, step: SaveStep, bytes: &[u8]) {
        let now = self.now();
        match step {
            SaveStep::WriteTmp => match now.get(TMP) {
                Some(file) => self.files[*file] = (bytes.to_vec(), false),
                None => {
                    self.files.push((bytes.to_vec(), false));
                    self.pending.push((TMP, None, self.files.len() - 1));
                }
            },
            SaveStep::SyncTmp => self.files[now[TMP]].1 = true,
            SaveStep::SyncOffsets => self.files[now[OFFSETS]].1 = true,
            SaveStep::KeepPrevious => self.pending.push((PREVIOUS, Some(OFFSETS), now[OFFSETS])),
            SaveStep::Replace => self.pending.push((OFFSETS, Some(TMP), now[TMP])),
            SaveStep::SyncFolder => {
                self.durable = now;
                self.pending.clear();
            }
        }
    }

    /// After a power loss: the first `upto` renames happened.
    fn lose_power(&self, upto: usize, damage: Damage) -> Model {
        let hit = |(bytes, synced): &(Vec<u8>, bool)| match damage {
            _ if *synced => (bytes.clone(), true),
            Damage::Kept => (bytes.clone(), true),
            Damage::Empty => (Vec::new(), true),
            Damage::Half => (bytes[..bytes.len() / 2].to_vec(), true),
            Damage::Zeros => (vec![0; bytes.len()], true),
            Damage::Garbage => ([&bytes[..bytes.len() / 2], b"\x00\xff old bytes\n"].concat(), true),
        };
        Model { files: self.files.iter().map(hit).collect(), durable: self.names(upto), pending: Vec::new() }
    }

    fn lay_out(&self, folder: &Path) {
        let names = self.now();
        for name in [OFFSETS, PREVIOUS, TMP] {
            match names.get(name) {
                Some(file) => fs::write(folder.join(name), &self.files[*file].0).unwrap(),
                None => drop(fs::remove_file(folder.join(name))),
            }
        }
    }
}

/// The real folder, the model of it, and which states may be found in it.
struct Bench {
    dir: tempfile::TempDir,
    model: Model,
    store: Option<PositionsFile>,
    last: u64,
    /// The newest synced state: nothing older may be found.
    durable: u64,
}

impl Bench {
    fn new() -> Bench {
        let mut bench = Bench {
            // In memory if possible: syncing is simulated by the model.
            dir: tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap(),
            model: Model::default(),
            store: None,
            last: 0,
            durable: 0,
        };
        bench.open(0);
        bench
    }

    fn open(&mut self, least: u64) {
        drop(self.store.take());
        if is_cut_short(self.dir.path()).unwrap() {
            self.model.step(SaveStep::Replace, &[]);
        }
        let (store, saved, _) =
            PositionsFile::open(self.dir.path(), Damaged::Refuse).expect("there must always be a good state");
        assert!((least..=self.last).contains(&saved.clock), "{} not in {least}..={}", saved.clock, self.last);
        // States that were not found never existed, as far as the next run knows.
        (self.last, self.durable) = (saved.clock, self.durable.min(saved.clock));
        self.store = Some(store);
    }

    /// Saves, but dies after `steps` steps. True if the save was complete.
    fn save(&mut self, sync: bool, most: usize) -> bool {
        self.last += 1;
        let bytes = state(self.last);
        let store = self.store.as_mut().unwrap();
        let all = steps(store.current, store.previous, sync);
        for step in all.iter().take(most) {
            store.step(*step, &bytes).unwrap();
            self.model.step(*step, &bytes);
        }
        let whole = most >= all.len();
        if whole && all.contains(&SaveStep::SyncFolder) {
            self.durable = self.last;
        }
        whole
    }

    fn sync(&mut self) {
        let store = self.store.as_mut().unwrap();
        if matches!(store.current, CurrentFile::FoundPositions | CurrentFile::Unsynced) {
            store.sync().unwrap();
            self.model.step(SaveStep::SyncOffsets, &[]);
            self.model.step(SaveStep::SyncFolder, &[]);
            self.durable = self.last;
        }
    }

    fn lose_power(&mut self, upto: usize, damage: Damage) {
        self.model = self.model.lose_power(upto.min(self.model.pending.len()), damage);
        self.model.lay_out(self.dir.path());
        self.open(self.durable);
    }
}

const DAMAGES: [Damage; 5] = [Damage::Kept, Damage::Empty, Damage::Half, Damage::Zeros, Damage::Garbage];

/// Every crash point of four saves with every choice of syncs. Fails when `steps` never syncs the first save, keeps
/// an unsynced file as the previous one, or renames before it syncs.
#[test]
fn after_every_step_and_every_loss_there_is_a_good_file() {
    let mut images = 0;
    for syncs in 0..16u32 {
        for (dies_in, most, damage) in
            (0..4).flat_map(|n| (0..6).flat_map(move |m| DAMAGES.map(|d| (n, m, d))))
        {
            for upto in 0..4 {
                let mut bench = Bench::new();
                for n in 0..=dies_in {
                    let most = if n == dies_in { most } else { 9 };
                    bench.save(syncs & (1 << n) != 0, most);
                }
                bench.lose_power(upto, damage);
                // The next run can continue from there.
                assert!(bench.save(false, 9));
                bench.lose_power(9, Damage::Zeros);
                images += 1;
            }
        }
    }
    assert_eq!(images, 16 * 4 * 6 * 5 * 4);
}

#[derive(Clone, Debug)]
enum Event {
    Save {
        sync: bool,
    },
    Sync,
    /// A kill during a save: the page cache stays.
    Kill {
        sync: bool,
        steps: usize,
    },
    PowerLoss {
        sync: bool,
        steps: usize,
        upto: usize,
        damage: usize,
    },
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => any::<bool>().prop_map(|sync| Event::Save { sync }),
        1 => Just(Event::Sync),
        1 => (any::<bool>(), 0..6usize).prop_map(|(sync, steps)| Event::Kill { sync, steps }),
        2 => (any::<bool>(), 0..6usize, 0..12usize, 0..DAMAGES.len())
            .prop_map(|(sync, steps, upto, damage)| Event::PowerLoss { sync, steps, upto, damage }),
    ]
}

proptest! {
    /// The same over long histories with several crashes. Fails when a kill loses a complete save, or a power loss
    /// loses more than the unsynced data.
    #[test]
    fn over_many_crashes(history in proptest::collection::vec(events(), 1..30)) {
        let mut bench = Bench::new();
        for event in history {
            match event {
                Event::Save { sync } => assert!(bench.save(sync, 9)),
                Event::Sync => bench.sync(),
                Event::Kill { sync, steps } => {
                    let whole = bench.save(sync, steps);
                    let last = bench.last;
                    // Between the two renames, `offsets.previous` holds the previous, synced state.
                    bench.open(if whole { last } else { bench.durable.max(last.saturating_sub(1)) });
                }
                Event::PowerLoss { sync, steps, upto, damage } => {
                    bench.save(sync, steps);
                    bench.lose_power(upto, DAMAGES[damage]);
                }
            }
        }
    }
}

fn damaged_with(offsets: &[u8], previous: Option<&[u8]>, policy: Damaged) -> Result<(Saved, bool), Error> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(OFFSETS), offsets).unwrap();
    if let Some(previous) = previous {
        fs::write(dir.path().join(PREVIOUS), previous).unwrap();
    }
    PositionsFile::open(dir.path(), policy).map(|(_, saved, fell_back)| (saved, fell_back))
}

/// Fails when damage leads to an empty start, or is not detected.
#[test]
fn damage_leads_to_the_previous_state_and_then_to_the_policy() {
    let good = state(5);
    let newer = {
        let body = "logagent offsets 2\nclock 9\n";
        format!("{body}crc32c {:08x}\n", crc32c::crc32c(body.as_bytes())).into_bytes()
    };
    let bad: [&[u8]; 6] =
        [b"", &[0; 300], &good[..20], &[&good[..], b"tail"].concat(), b"\x8f\x00\xffrandom\n", &newer];
    for bytes in bad {
        if bytes == newer {
            for previous in [Some(&state(4)[..]), None] {
                let refused = damaged_with(bytes, previous, Damaged::Beginning).unwrap_err();
                assert_eq!(refused.code, ExitCode::Config);
                assert!(refused.to_string().contains("newer logagent"), "{refused}");
            }
            continue;
        }
        let (saved, fell_back) = damaged_with(bytes, Some(&state(4)), Damaged::Refuse).unwrap();
        assert_eq!((saved.clock, fell_back), (4, true));
        let refused = damaged_with(bytes, None, Damaged::Refuse).unwrap_err();
        assert_eq!(refused.code, ExitCode::Config);
        let refused = damaged_with(bytes, Some(b"\0\0"), Damaged::Refuse).unwrap_err().to_string();
        assert!(!refused.contains('\n') && refused.contains("damaged"), "{refused}");
        assert!(damaged_with(bytes, Some(b"\0\0"), Damaged::Beginning).unwrap().0.from_beginning);
    }
    assert_eq!(damaged_with(&good, Some(b"\0"), Damaged::Refuse).unwrap().0.clock, 5);
}

/// A kill after any step of a save, then another start. Fails when that start mistakes what it finds for a state
/// older than the last save, or starts over from a discarded state.
#[test]
fn a_kill_within_a_save_is_no_damage() {
    for step in 0..=steps(CurrentFile::Synced, true, false).len() {
        let mut bench = Bench::new();
        bench.save(true, usize::MAX);
        bench.save(false, step);
        bench.store.take();
        let (_, saved, fell_back) = PositionsFile::open(bench.dir.path(), Damaged::Refuse).unwrap();
        assert!(
            !fell_back && (1..=2).contains(&saved.clock),
            "after {step} steps: {} {fell_back}",
            saved.clock
        );
        fs::remove_file(bench.dir.path().join(OFFSETS)).unwrap();
        let _ = fs::remove_file(bench.dir.path().join(PREVIOUS));
        let (_, saved, fell_back) = PositionsFile::open(bench.dir.path(), Damaged::Refuse).unwrap();
        assert_eq!((saved.clock, fell_back), (0, false), "both are removed to start over");
    }
}

/// After damage the good previous file must outlive the next saves. Fails when a damaged `offsets` becomes the previous.
#[test]
fn a_damaged_file_is_never_kept() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(OFFSETS), b"\0\0\0").unwrap();
    fs::write(dir.path().join(PREVIOUS), state(4)).unwrap();
    let (mut store, ..) = PositionsFile::open(dir.path(), Damaged::Refuse).unwrap();
    store.save(&state(5), false).unwrap();
    assert_eq!(fs::read(dir.path().join(PREVIOUS)).unwrap(), state(4));
    store.save(&state(6), true).unwrap();
    store.save(&state(7), false).unwrap();
    assert_eq!(fs::read(dir.path().join(PREVIOUS)).unwrap(), state(6));
}

/// Fails without the lock, or when the message does not name the other process.
#[test]
fn a_second_agent_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("a/state");
    let first = PositionsFile::open(&folder, Damaged::Refuse).unwrap();
    let refused = PositionsFile::open(&folder, Damaged::Refuse).unwrap_err();
    assert_eq!(refused.code, ExitCode::Failed);
    assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
    drop(first);
    PositionsFile::open(&folder, Damaged::Refuse).unwrap();
}

/// Fails when other users may read which logs are followed.
#[test]
fn only_the_owner_may_look() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("state");
    let (mut store, ..) = PositionsFile::open(&folder, Damaged::Refuse).unwrap();
    store.save(&state(1), true).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    for name in [OFFSETS, LOCK] {
        assert_eq!(mode(&folder.join(name)), 0o600, "{name}");
    }
}

/// Fails when an error during a save leaves the store unable to ever save again.
#[test]
fn an_error_leaves_the_old_state_and_is_overcome() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, ..) = PositionsFile::open(dir.path(), Damaged::Refuse).unwrap();
    store.save(&state(1), true).unwrap();
    fs::create_dir(dir.path().join(TMP)).unwrap();
    assert!(store.save(&state(2), false).is_err());
    let FoundPositions::Good(saved) = look(dir.path()).unwrap() else { panic!() };
    assert_eq!(saved.clock, 1);
    fs::remove_dir(dir.path().join(TMP)).unwrap();
    store.save(&state(3), false).unwrap();
    let FoundPositions::Good(saved) = look(dir.path()).unwrap() else { panic!() };
    assert_eq!(saved.clock, 3);
}

/// Fails when no save succeeds any more after the folder was removed and created again, or the first one is not synced.
#[test]
fn a_folder_that_is_removed_and_created_again() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("state");
    let (mut store, ..) = PositionsFile::open(&folder, Damaged::Refuse).unwrap();
    store.save(&state(1), false).unwrap();
    assert_eq!(store.current, CurrentFile::Synced);
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(store.save(&state(2), false).unwrap_err().kind(), ErrorKind::NotFound);
    fs::create_dir(&folder).unwrap();
    store.save(&state(3), false).unwrap();
    assert_eq!(store.current, CurrentFile::Synced);
    assert_eq!(fs::read(folder.join(OFFSETS)).unwrap(), state(3));
}
