//! The heap of the program `ultari`: dlmalloc's, whatever the C library, whose own may ask the
//! kernel for each bit of memory (musl's does).

use std::alloc::{GlobalAlloc, Layout};

use dlmalloc::GlobalDlmalloc;

/// The allocator, one copy of it: inlined at each place that allocates, it would make up a tenth of
/// the program.
#[derive(Debug)]
pub struct Heap;

// SAFETY: passed on as it is to one that keeps the contract.
unsafe impl GlobalAlloc for Heap {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise; also below.
        unsafe { GlobalDlmalloc.alloc(layout) }
    }

    #[inline(never)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { GlobalDlmalloc.dealloc(block, layout) }
    }

    #[inline(never)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { GlobalDlmalloc.alloc_zeroed(layout) }
    }

    #[inline(never)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        unsafe { GlobalDlmalloc.realloc(block, layout, size) }
    }
}

/// Has the kernel make the first pages of the heap in one call, instead of one page fault each: what
/// each command uses in any case.
pub fn populate() {
    const USED: usize = 132 << 10;
    let first = Vec::<u8>::with_capacity(USED);
    let start = first.as_ptr() as usize & !4095;
    // SAFETY: pages of the heap, which keep what they hold.
    unsafe { libc::madvise(start as *mut _, USED, libc::MADV_POPULATE_WRITE) };
}
