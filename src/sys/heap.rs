//! The global allocator. Small blocks come from the system allocator, large ones from mmap(2), and some of those are
//! cached when freed: musl maps and unmaps every block of 128 KiB and more, which costs a page fault for every page
//! of every chunk and frame.
//!
//! An absurd size only reserves address space. The `kafka` crate trusts a count from the wire and requests 100 GB
//! before it reads on; a failed allocation would end the process. This way the crate reaches the end of the answer
//! and rejects it.

use crate::lock::lock;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::{copy_nonoverlapping, null_mut, with_exposed_provenance_mut};
use std::sync::{Mutex, MutexGuard};

pub struct Heap;

/// Smaller blocks come from the system allocator.
const LARGE: usize = 4 << 10;
/// Larger blocks are not cached, because nothing needed repeatedly is that large.
const LARGEST_KEPT: usize = 2 << 20;
/// Maximum number of cached bytes, as mapped: what a busy file frees at once when several requests are answered.
pub const KEPT: usize = 6 << 20;
const KEPT_BLOCKS: usize = 32;
/// Alignment of a mapping.
const PAGE: usize = 4096;

/// The size mapped for a block: a power of two, so that a block serves many sizes and a growing one seldom moves.
/// Untouched pages cost nothing.
fn mapped(size: usize) -> usize {
    if size <= LARGEST_KEPT { size.next_power_of_two() } else { size.next_multiple_of(PAGE) }
}

fn is_ours(layout: &Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= PAGE && layout.size() <= isize::MAX as usize - PAGE
}

/// Cached blocks: address and size, the last freed last.
struct Free {
    blocks: [(usize, usize); KEPT_BLOCKS],
    count: usize,
    bytes: usize,
}

static FREE: Mutex<Free> = Mutex::new(Free { blocks: [(0, 0); KEPT_BLOCKS], count: 0, bytes: 0 });

/// No code allocates or panics while it is held.
fn free() -> MutexGuard<'static, Free> {
    lock(&FREE)
}

impl Free {
    fn take(&mut self, size: usize) -> Option<usize> {
        let at = self.blocks[..self.count].iter().rposition(|b| b.1 == size)?;
        let place = self.blocks[at].0;
        self.blocks.copy_within(at + 1..self.count, at);
        self.count -= 1;
        self.bytes -= size;
        Some(place)
    }

    /// `false`: there is no room for it.
    fn put(&mut self, place: usize, size: usize) -> bool {
        let fits = size <= LARGEST_KEPT && self.count < self.blocks.len() && self.bytes + size <= KEPT;
        if fits {
            self.blocks[self.count] = (place, size);
            self.count += 1;
            self.bytes += size;
        }
        fits
    }
}

/// Returns the cached blocks to the system while the agent is idle.
pub fn trim() {
    let (blocks, count) = {
        let mut free = free();
        free.bytes = 0;
        (free.blocks, std::mem::take(&mut free.count))
    };
    for (place, size) in &blocks[..count] {
        // SAFETY: it was mapped with this size, and has no other owner since it was taken off the list.
        let _ = unsafe { munmap(with_exposed_provenance_mut(*place), *size) };
    }
}

fn map(size: usize) -> *mut u8 {
    let (access, kind) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
    // SAFETY: a new mapping at an address of the kernel's choice.
    unsafe { mmap_anonymous(null_mut(), size, access, kind) }.map_or(null_mut(), |p| p.cast())
}

// SAFETY: the size and alignment alone decide whether a layout is the system's or ours, so a block is freed where it
// was allocated. Our blocks are page-aligned mappings of `mapped(size)` bytes with one owner: the caller or the list.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_ours(&layout) {
            // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
            return unsafe { System.alloc(layout) };
        }
        let size = mapped(layout.size());
        let kept = free().take(size);
        kept.map_or_else(|| map(size), with_exposed_provenance_mut)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !is_ours(&layout) {
            // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc_zeroed`.
            return unsafe { System.alloc_zeroed(layout) };
        }
        map(mapped(layout.size())) // a new mapping is zero already
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        if !is_ours(&layout) {
            // SAFETY: it came from `System` with this layout.
            return unsafe { System.dealloc(place, layout) };
        }
        let size = mapped(layout.size());
        let kept = free().put(place.expose_provenance(), size);
        if !kept {
            // SAFETY: it was mapped with this size and is no longer used.
            let _ = unsafe { munmap(place.cast(), size) };
        }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Ok(new) = Layout::from_size_align(size, layout.align()) else { return null_mut() };
        match (is_ours(&layout), is_ours(&new)) {
            // SAFETY: it came from `System` with this layout, and the new one is `System`'s too.
            (false, false) => unsafe { System.realloc(place, layout, size) },
            (true, true) if mapped(layout.size()) == mapped(size) => place,
            // SAFETY: both are valid for the smaller of the two sizes, and do not overlap.
            _ => unsafe {
                let to = self.alloc(new);
                if !to.is_null() {
                    copy_nonoverlapping(place, to, layout.size().min(size));
                    self.dealloc(place, layout);
                }
                to
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when absurd sizes go to the system allocator: it refuses this one, and a failed allocation ends the
    /// process.
    #[test]
    fn absurd_amounts_are_address_space_only() {
        let mut v: Vec<u8> = Vec::with_capacity(100 << 30);
        v.extend_from_slice(b"a page");
        assert_eq!(v, b"a page");
        let mut w: Vec<u8> = Vec::with_capacity(LARGEST_KEPT);
        w.resize(LARGEST_KEPT, 7);
        w.reserve_exact(10 << 30); // across the threshold, and back
        w.shrink_to_fit();
        assert!(w.iter().all(|b| *b == 7));
    }

    /// Fails when a freed block is not reused, when a block of the wrong size is returned, or when more is cached
    /// than allowed.
    #[test]
    fn freed_blocks_are_used_again() {
        let mut free = Free { blocks: [(0, 0); KEPT_BLOCKS], count: 0, bytes: 0 };
        assert!(free.put(0x10_0000, 1 << 20) && free.put(0x20_0000, 1 << 19) && free.put(0x30_0000, 1 << 20));
        assert_eq!(
            (free.take(1 << 20), free.take(1 << 20), free.take(1 << 20)),
            (Some(0x30_0000), Some(0x10_0000), None)
        );
        assert_eq!((free.take(1 << 19), free.count, free.bytes), (Some(0x20_0000), 0, 0));
        assert!(!free.put(0x40_0000, KEPT));
        assert_eq!((0..100).filter(|i| free.put(i << 20, LARGE)).count(), KEPT_BLOCKS);
        free.count = 0;
        free.bytes = 0;
        assert_eq!((0..100).filter(|i| free.put(i << 20, 1 << 20)).count(), KEPT >> 20);
    }

    /// Fails when growing within the mapping moves the block, or when a zeroed block is a used one.
    #[test]
    fn blocks_grow_in_place_and_zeroed_ones_are_zero() {
        let mut v: Vec<u8> = Vec::with_capacity((512 << 10) + 1);
        v.resize(600 << 10, 1);
        let place = v.as_ptr();
        v.reserve_exact((1 << 20) - v.len());
        assert_eq!(v.as_ptr(), place);
        drop(v);
        assert!(vec![0u8; 1 << 20].iter().all(|b| *b == 0));
        trim();
    }
}
