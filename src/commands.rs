//! The commands, one file each, and what only they share. `run` alone knows all stages.

pub mod check;
pub mod drivers;
pub mod inherited;
pub mod options;
pub mod recover;
pub mod reload;
pub mod run;
pub mod send;
pub mod status;
pub mod supervisor;
pub mod tail;
pub mod threads;
mod watchdog;
