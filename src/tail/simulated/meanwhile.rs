//! Actions of other processes in the middle of a step: writes, rotations, and gzip(1) in two parts, each just before one of
//! the step's looks.

use super::World;
use super::world::{Packing, rotate};
use crate::tail::identity::MEANWHILE;
use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::rc::Rc;

impl World {
    /// Schedules such actions until [`World::afterwards`].
    pub fn meanwhile(&mut self) {
        MEANWHILE.take();
        self.meddled = true;
        if self.half.is_some() {
            return; // the second half would go to another file
        }
        for _ in 0..1 + self.dice.below(2) {
            if self.dice.below(2) == 0 {
                self.lines_soon();
            }
            let dir = self.dir.path().to_owned();
            self.soon(move || {
                if dir.join("app.log").exists() {
                    rotate(&dir);
                }
            });
            if self.dice.below(4) > 0 {
                self.pack_soon();
            }
            if self.dice.below(2) == 0 {
                self.lines_soon();
            }
        }
    }

    /// Runs the actions that have not happened yet.
    pub fn afterwards(&mut self) {
        MEANWHILE.take().into_iter().for_each(|(_, deed)| deed());
        if self.half.is_none() {
            self.reopen(false);
        }
    }

    /// After this many looks, the file is copied, truncated and rewritten.
    pub fn copytruncate_after(&mut self, looks: u64) {
        let (path, copy, bytes) = (self.path("app.log"), self.path("app.log-20250099"), self.lines());
        let (then, now) = (self.tick(), self.tick());
        MEANWHILE.with_borrow_mut(|deeds| {
            let deed = move || {
                fs::copy(&path, &copy).unwrap();
                File::open(copy).unwrap().set_modified(then).unwrap();
                fs::write(&path, bytes).unwrap();
                File::open(path).unwrap().set_modified(now).unwrap();
            };
            deeds.push_back((looks, Box::new(deed)));
        });
    }

    /// After this many looks, the log is rotated and compressed, and an empty one takes its place.
    pub fn rotate_and_pack_after(&mut self, looks: u64) {
        let (dir, time) = (self.dir.path().to_owned(), self.tick());
        let deed = move || {
            rotate(&dir);
            File::create(dir.join("app.log")).unwrap().set_modified(time).unwrap();
            Packing::begin(dir.join("app.log.1"), 0).complete();
        };
        MEANWHILE.with_borrow_mut(|deeds| deeds.push_back((looks, Box::new(deed))));
    }

    fn soon(&mut self, deed: impl FnOnce() + 'static) {
        let looks = self.dice.below(8);
        MEANWHILE.with_borrow_mut(|deeds| deeds.push_back((looks, Box::new(deed))));
    }

    /// The writer opens its file for each write.
    fn lines_soon(&mut self) {
        let (path, bytes, time) = (self.path("app.log"), self.lines(), self.tick());
        self.soon(move || {
            let mut log = OpenOptions::new().create(true).append(true).open(path).unwrap();
            log.write_all(&bytes).unwrap();
            log.set_modified(time).unwrap();
        });
    }

    fn pack_soon(&mut self) {
        let (plain, percent) = (self.path("app.log.1"), self.dice.below(100));
        let packing = Rc::new(RefCell::new(None));
        let begun = packing.clone();
        self.soon(move || {
            if plain.exists() {
                *begun.borrow_mut() = Some(Packing::begin(plain, percent));
            }
        });
        self.soon(move || packing.take().into_iter().for_each(Packing::complete));
    }
}
