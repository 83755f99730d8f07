//! The thread that waits for the disk, so that nobody else does. It is detached: one that is inside a slow or dead flash
//! cannot be joined. Decides nothing: each order is answered by one report.

use super::presence::{self, Asked, Presence};
use super::store::Store;
use crate::air::Air;
use crate::chunk::StreamId;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::io;
use std::sync::Arc;
use std::thread;

pub enum Order {
    /// Write this as the new `offsets`.
    Save { bytes: Vec<u8>, sync: bool },
    /// Force the last save to the disk.
    Sync,
    /// Do these files still exist?
    Look(Vec<Asked>),
    /// The run ends and all is saved: the next start need not doubt anything.
    End,
}

pub enum Report {
    /// The bytes come back to be used again.
    Saved {
        bytes: Vec<u8>,
        sync: bool,
        done: io::Result<u64>,
    },
    Synced(io::Result<()>),
    Looked(Vec<(StreamId, Presence)>),
    Done,
}

/// The other side. At most one order is under way.
pub struct Saver {
    pub orders: Sender<Order>,
    pub reports: Receiver<Report>,
}

pub fn start(store: Store, air: Arc<Air>) -> io::Result<Saver> {
    let (orders, inbox) = bounded(1);
    let (outbox, reports) = bounded(1);
    thread::Builder::new()
        .name("saver".into())
        .stack_size(128 << 10)
        .spawn(move || serve(store, &air, &inbox, &outbox))?;
    Ok(Saver { orders, reports })
}

fn serve(mut store: Store, air: &Air, inbox: &Receiver<Order>, outbox: &Sender<Report>) {
    for order in inbox {
        let report = match order {
            Order::Save { bytes, sync } => {
                let done = store.save(&bytes, sync);
                Report::Saved { bytes, sync, done }
            }
            Order::Sync => Report::Synced(store.sync()),
            Order::Look(asked) => Report::Looked(presence::look(&asked)),
            Order::End => {
                air.end();
                drop(store); // the lock
                let _ = outbox.send(Report::Done);
                return;
            }
        };
        if outbox.send(report).is_err() {
            return;
        }
    }
}
