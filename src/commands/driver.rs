//! From the config's `[kafka]` table to a driver's channel ends: the one place where config and the drivers' options meet.
//! Connects to nothing itself.

use crate::config::{Acks, Broker, Compression, Delivery, Driver, Kafka};
use crate::error::Error;
use crate::report::Board;
use crate::ship::classic::{self, Unfit};
use crate::ship::driver::{self, Ends};
use crate::ship::{auto, modern, probe};
use std::sync::Arc;

pub fn start(kafka: &Kafka, delivery: Delivery, headers: bool, board: &Arc<Board>) -> Result<Ends, Error> {
    let started = match (kafka.driver, asks_modern(kafka, delivery, headers)) {
        (Driver::Classic, None) => classic::start(classic_options(kafka, Unfit::Wait), board),
        (Driver::Classic, Some(what)) => {
            let why = format!("the kafka crate cannot do {what}");
            return Err(Error::config("driver = \"classic\"", why, "set driver = \"auto\" or \"modern\""));
        }
        (Driver::Modern, _) | (Driver::Auto, Some(_)) => modern::start(modern_options(kafka, false), board),
        (Driver::Auto, None) => auto::start(auto_options(kafka), board),
    };
    started.map_err(|e| Error::failed("start a thread", e, "raise the limit of threads (ulimit -u, TasksMax)"))
}
