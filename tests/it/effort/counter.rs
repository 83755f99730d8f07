//! Counts what a program asks of the allocator: a library that is loaded before glibc's own (`LD_PRELOAD`) and, when the
//! program ends, writes the number of calls into the file that `COUNT_INTO` names. No part of the agent, nor of the tests'
//! crate: `effort.rs` has `rustc` build it.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

static CALLS: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    fn __libc_malloc(size: usize) -> *mut c_void;
    fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
    fn __libc_realloc(old: *mut c_void, size: usize) -> *mut c_void;
    fn __libc_memalign(align: usize, size: usize) -> *mut c_void;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn malloc(size: usize) -> *mut c_void {
    CALLS.fetch_add(1, Relaxed);
    // SAFETY: passed on as it came; so in all of these.
    unsafe { __libc_malloc(size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    CALLS.fetch_add(1, Relaxed);
    // SAFETY: as above.
    unsafe { __libc_calloc(count, size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn realloc(old: *mut c_void, size: usize) -> *mut c_void {
    CALLS.fetch_add(1, Relaxed);
    // SAFETY: as above.
    unsafe { __libc_realloc(old, size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn posix_memalign(into: *mut *mut c_void, align: usize, size: usize) -> c_int {
    CALLS.fetch_add(1, Relaxed);
    // SAFETY: the caller's pointer is good for one write; it must be.
    unsafe { *into = __libc_memalign(align, size) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    CALLS.fetch_add(1, Relaxed);
    // SAFETY: as above.
    unsafe { __libc_memalign(align, size) }
}

#[used]
#[unsafe(link_section = ".fini_array")]
static AT_END: extern "C" fn() = write_down;

extern "C" fn write_down() {
    let calls = CALLS.load(Relaxed);
    if let Some(path) = std::env::var_os("COUNT_INTO") {
        let _ = std::fs::write(path, calls.to_string());
    }
}
