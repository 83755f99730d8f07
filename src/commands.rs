//! What the agent can be asked to do, one file each.

pub mod crew;
pub mod plan;

pub mod tail;
