//! The five commands, each one stage standing alone but `run`, which alone knows all of them.

pub mod check;
