//! Counts a program's allocator calls: a library loaded before glibc (`LD_PRELOAD`) that writes the count to the file
//! named by `COUNT_INTO` when the program exits. Part of neither the agent nor the test crate: `effort.rs` builds it
//! with `rustc`.

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
    // SAFETY: arguments are forwarded unchanged; so in all of these.
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
    // SAFETY: POSIX requires the caller's pointer to be valid for one write.
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
