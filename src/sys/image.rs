//! The program's own code and constants in memory. Linux maps 16 pages around each one that is touched
//! (`fault_around_bytes`), and takes none of them back while memory is plenty: most of what an idle agent would seem to need
//! is what it needed once, at its start.

use rustix::mm::{Advice, madvise};
use std::ffi::{c_int, c_void};
use std::ptr::{null_mut, with_exposed_provenance_mut};

/// Unmaps code and constants: nothing is under way. What runs next is mapped again from the page cache, in about 1 µs for
/// each 64 KiB; so not to be called while there is work.
pub fn release() {
    // SAFETY: `of_program` is called with a valid description of each object, and does not unwind.
    unsafe { libc::dl_iterate_phdr(Some(of_program), null_mut()) };
}

/// The first object is the program; others (a libc that is not linked in) are shared with all the machine.
unsafe extern "C" fn of_program(info: *mut libc::dl_phdr_info, _size: usize, _data: *mut c_void) -> c_int {
    // SAFETY: valid by dl_iterate_phdr(3), as are its headers, until this returns.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr as usize, std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
    };
    for segment in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0) {
        let (from, to) = pages(base + segment.p_vaddr as usize, segment.p_memsz as usize);
        // SAFETY: a segment that was never writable is as it is in the file, so dropping its pages changes no byte of it
        // (madvise(2): a file mapping is populated again from the file).
        let _ = unsafe { madvise(with_exposed_provenance_mut(from), to - from, Advice::LinuxDontNeed) };
    }
    1 // no further object
}

/// A multiple of every page size.
const PAGES: usize = 64 << 10;

/// The whole pages within: those at the borders may be another segment's too.
fn pages(from: usize, len: usize) -> (usize, usize) {
    let first = from.next_multiple_of(PAGES);
    (first, ((from + len) / PAGES * PAGES).max(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KiB of the program's code that are mapped.
    fn resident() -> u64 {
        let (maps, name) =
            (std::fs::read_to_string("/proc/self/smaps").unwrap(), std::env::current_exe().unwrap());
        let mut code =
            maps.lines().skip_while(|l| !(l.contains(" r-xp ") && l.ends_with(name.to_str().unwrap())));
        let rss = code.find_map(|l| l.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Fails when nothing is let go of, or something that is not as it is in the file: then what comes after crashes.
    #[test]
    fn code_is_mapped_again_when_it_runs() {
        let before = resident();
        release();
        let after = resident();
        assert!(after < before / 2, "{after} of {before} KiB");
    }

    #[test]
    fn whole_pages_only() {
        assert_eq!(pages(PAGES, 2 * PAGES), (PAGES, 3 * PAGES));
        assert_eq!(pages(PAGES + 1, 2 * PAGES), (2 * PAGES, 3 * PAGES));
        assert_eq!(pages(PAGES + 1, 7), (2 * PAGES, 2 * PAGES));
    }
}
