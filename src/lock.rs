//! Locking a mutex. No lock is ever found poisoned: a panic ends the process, except inside the `kafka` crate, which holds
//! none of ours.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
