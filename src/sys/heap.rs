//! The heap of the program `ultari`: dlmalloc's, whatever the C library, whose own may ask the
//! kernel for each bit of memory (musl's does), and whose own needs come from here, too, if it lets
//! itself be told so.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dlmalloc::Dlmalloc;

use super::entry::PAGE;

/// What the kernel is asked for at once: the most that starting a container uses, as a rule.
const GRANULARITY: usize = 256 << 10;

static MEMORY: Mutex<Dlmalloc> = Mutex::new({
    let mut memory = Dlmalloc::new();
    assert!(memory.set_granularity(GRANULARITY));
    memory
});

/// The heap itself, until it is let go of.
pub fn memory() -> MutexGuard<'static, Dlmalloc> {
    MEMORY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The allocator, one copy of it: inlined at each place that allocates, it would make up a tenth of
/// the program.
#[derive(Debug)]
pub struct Heap;

// SAFETY: passed on as it is to one that keeps the contract.
unsafe impl GlobalAlloc for Heap {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise; also below.
        unsafe { memory().malloc(layout.size(), layout.align()) }
    }

    #[inline(never)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { memory().free(block, layout.size(), layout.align()) }
    }

    #[inline(never)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { memory().calloc(layout.size(), layout.align()) }
    }

    #[inline(never)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        unsafe { memory().realloc(block, layout.size(), layout.align(), size) }
    }
}

/// C's `malloc` and its kin, which a static program with musl may bring itself.
#[macro_export]
macro_rules! c_heap {
    () => {
        // SAFETY: the C library calls these four as malloc(3) has it, and nothing else gives or
        // takes memory of this kind.
        #[cfg(target_env = "musl")]
        #[allow(unsafe_code)]
        mod c_heap {
            use std::ffi::c_void;
            use $crate::sys::heap::{allocated, memory};

            // SAFETY: as above.
            #[unsafe(no_mangle)]
            extern "C" fn malloc(size: usize) -> *mut c_void {
                allocated(unsafe { memory().c_malloc(size) })
            }

            // SAFETY: as above.
            #[unsafe(no_mangle)]
            extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
                let size = count.checked_mul(size).unwrap_or(usize::MAX);
                allocated(unsafe { memory().calloc(size, 1) })
            }

            // SAFETY: as above; without a block it is malloc.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
                allocated(unsafe { memory().c_realloc(block.cast(), size) })
            }

            // SAFETY: as above; without a block it does nothing.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn free(block: *mut c_void) {
                unsafe { memory().c_free(block.cast()) };
            }
        }
    };
}

/// What C's functions return: null with an `errno`, if there is no memory.
pub fn allocated(block: *mut u8) -> *mut std::ffi::c_void {
    if block.is_null() {
        nix::errno::Errno::ENOMEM.set();
    }
    block.cast()
}

/// Address of the heap's first page; 0 if the program has another heap.
static FIRST: AtomicUsize = AtomicUsize::new(0);

/// As much of the heap, in bytes, as a command uses that makes a container, until it does.
const USED: usize = 64 << 10;

/// Has the kernel make the first pages of the heap in one call, instead of one page fault each.
pub fn populate() {
    // What is added to the heap later lies behind that.
    let first = Vec::<u8>::with_capacity(2 * USED);
    FIRST.store(first.as_ptr() as usize & !PAGE, Ordering::Relaxed);
    populate_part(0, USED);
}

/// The same for the first `size` bytes in a child, which shares them with its parent until one of the
/// two writes to them.
pub fn populate_again(size: usize) {
    populate_part(0, size);
}

/// The same for as much again, before something that uses more than most.
pub fn populate_more() {
    populate_part(USED, USED);
}

fn populate_part(offset: usize, size: usize) {
    let first = FIRST.load(Ordering::Relaxed);
    if first != 0 {
        // SAFETY: pages of the heap, which keep what they hold.
        unsafe { libc::madvise((first + offset) as *mut _, size, libc::MADV_POPULATE_WRITE) };
    }
}

/// Gives back to the kernel what is free at the end of the heap.
pub fn trim() {
    let mut memory = memory();
    // In this unit it is given back.
    memory.set_granularity(PAGE + 1);
    // SAFETY: the kernel's memory, which nobody else changes.
    unsafe { memory.trim(0) };
    memory.set_granularity(GRANULARITY);
}
