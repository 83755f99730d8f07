//! STAGE 2: chunks in, acks out. The synchronous producer thread, its flights, and the drivers that carry them.

pub mod driver;
pub mod flight;
