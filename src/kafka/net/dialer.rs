//! Opens a connection in a short-lived thread, with ordinary blocking code and deadlines: name resolution, connect,
//! TLS, ApiVersions and SASL.

use crate::heartbeat::Heartbeat;
use crate::kafka::KafkaOptions;
use crate::kafka::net::connection::Connection;
use crate::kafka::net::trouble::Trouble;
use crate::producer::driver::{Context, STACK};
use crate::waker::Waking;
use crossbeam_channel::{Receiver, TryRecvError, bounded};
use std::sync::Arc;
use std::thread;

/// A connection attempt. Dropping it abandons the thread, which ends at its next deadline.
#[derive(Debug)]
pub struct Dial {
    done: Receiver<Result<Connection, Trouble>>,
    /// Kept here instead of in the thread: an abandoned attempt that hangs in the resolver must not trip the watchdog.
    _heartbeat: Arc<Heartbeat>,
}

impl Dial {
    /// `cap`: maximum answer size on this connection.
    pub fn start(address: &str, options: &Arc<KafkaOptions>, cap: usize, context: &Context) -> Dial {
        let (tell, done) = bounded(1);
        let heartbeat = context.board.heartbeats.register("dial");
        heartbeat.within(Heartbeat::SLOW);
        let bytes = context.board.traffic.broker(address);
        let (address, options) = (address.to_owned(), options.clone());
        let dial = {
            let tell = Waking::new(tell.clone(), &context.waker);
            move || {
                let opened = Connection::open(&address, &options, cap, &bytes);
                match &opened {
                    Ok(_) => log::debug!("connected to {address}"),
                    Err(t) => log::debug!("no connection to {address}: {t}"),
                }
                drop(tell.get().try_send(opened));
            }
        };
        let spawned = thread::Builder::new().name("dial".into()).stack_size(STACK).spawn(dial);
        if let Err(e) = spawned {
            let _ = tell.try_send(Err(Trouble::Lost(format!("cannot start a thread: {e}").into())));
            context.waker.wake();
        }
        Dial { done, _heartbeat: heartbeat }
    }

    /// `None`: not finished yet.
    pub fn result(&self) -> Option<Result<Connection, Trouble>> {
        match self.done.try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(Trouble::Lost("connecting failed".into()))),
        }
    }
}
