//! What the agent can be asked to do, one file each. Each stands alone; only `run` knows all stages.

pub mod check;
pub mod crew;
pub mod drivers;
pub mod inherited;
pub mod journals;
pub mod plan;
mod recover;
pub mod reload;
pub mod run;
pub mod send;
pub mod status;
pub mod tail;
pub mod threads;
mod watchdog;
