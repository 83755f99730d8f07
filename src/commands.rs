//! What the agent can be asked to do, one file each. Each stands alone; only `run` knows all stages.

pub mod check;
pub mod crew;
pub mod plan;
pub mod tail;
