//! Black-box tests of the whole program: the real binary, real brokers, one file per hazard. `tests/run` installs the
//! tools they need; a missing one fails a test, never skips it. Unit tests are in `src`.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

#[allow(dead_code, reason = "a harness function may be temporarily unused")]
#[allow(unused_imports)]
mod harness;

mod basics;
mod blind;
mod busy;
mod check;
mod cli;
mod config_page;
mod copytruncate;
mod deletion;
mod delivery;
mod discovery;
mod disk;
mod drivers;
mod effort;
mod exactly_once;
mod fallback;
mod faults;
mod fdstore;
mod fleet;
mod floods;
mod folders;
mod framing;
mod hostile;
mod journal;
mod leaders;
mod limits;
mod logrotate;
mod long;
mod manual;
mod moves;
mod network;
mod oauth;
mod oracle;
mod own_rotations;
mod package;
mod proxies;

mod readme;
mod reload;
mod restart;
mod rotation;
mod scale;
mod security;
mod services;
mod soak;
mod state;
mod stop;
mod symlinks;
mod threads;
mod transient;
mod tree;
mod unit;
mod untrusted;
mod versions;
mod watchdog;
