//! What the agent can be asked to do, one file each. Each stands alone; only `run` knows all stages.

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
