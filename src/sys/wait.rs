//! Waiting in little memory.
//!
//! The first process of a created container waits for its start, perhaps beside many others, with
//! all that it has touched on its way there. So it gives back what it can do without meanwhile, or
//! can have again: what is free of heap and stack, the program's code and constants, and (with musl)
//! the pointers that were relocated at its start.

use nix::errno::Errno;
use nix::poll::PollFd;

use super::entry::{MADV_POPULATE_WRITE, PAGE, WORD, advise, base, set_word, syscall, word};
use super::heap;

const DONTNEED: usize = libc::MADV_DONTNEED as usize;

/// poll(2) without an end, and in little memory.
///
/// # Errors
/// Those of poll(2).
pub fn poll(fds: &mut [PollFd]) -> nix::Result<()> {
    heap::trim();
    // SAFETY: trimming the heap touches free memory only. The kernel's vector has the program's own
    // headers.
    let result = unsafe {
        #[cfg(target_env = "gnu")]
        libc::malloc_trim(0);
        drop_old_stack(libc::getauxval(libc::AT_EXECFN) as usize);
        let headers = libc::getauxval(libc::AT_PHDR) as usize;
        let count = libc::getauxval(libc::AT_PHNUM) as usize;
        let pointers = Pointers::find(headers, count);
        doze(fds, headers, count, pointers.as_ref())
    };
    match result {
        0.. => Ok(()),
        errno => Err(Errno::from_raw(-errno as i32)),
    }
}

/// Gives back what calls that have returned have used of the stack that ends with `top`.
///
/// # Safety
/// `top` must be an address in the last pages of the process's first stack.
// As part of a caller, whose variables may take more than a page, it would drop some of these.
#[inline(never)]
unsafe fn drop_old_stack(top: usize) {
    // The kernel keeps all other mappings 1 MiB away from it (stack_guard_gap).
    const MOST: usize = 512 << 10;
    let here = 0_u8;
    let here = (&raw const here) as usize;
    // Not on a thread's stack, which has neighbours.
    if top.wrapping_sub(here) < MOST {
        // The rest of this function's own may be one page below.
        let end = (here & !PAGE) - (PAGE + 1);
        // SAFETY: nobody has anything there.
        unsafe { syscall(libc::SYS_madvise, &[end - MOST, MOST, DONTNEED, 0, 0, 0]) };
    }
}

/// Between the first line and the last nothing may need a relocation, as in [`super::entry`].
///
/// # Safety
/// `headers` must be the address of the `count` program headers of this program.
#[inline(never)]
unsafe fn doze(
    fds: &mut [PollFd],
    headers: usize,
    count: usize,
    pointers: Option<&Pointers>,
) -> isize {
    // SAFETY: code and constants are mapped from the program's file, so what is dropped is read
    // again; what else is in that file's mapping is put there again. A PollFd is a struct pollfd.
    unsafe {
        let pointers = pointers.filter(|pointers| pointers.advise(DONTNEED));
        advise(headers, count, false, DONTNEED);
        let result = syscall(libc::SYS_ppoll, &[fds.as_mut_ptr() as usize, fds.len(), 0, 0, 8, 0]);
        if let Some(pointers) = pointers {
            pointers.restore();
        }
        result
    }
}

/// The pages of data that the program never changes once it has relocated the pointers in them
/// (`PT_GNU_RELRO`).
struct Pointers {
    /// How far from its own addresses the program was loaded.
    base: usize,
    /// The first page's address.
    start: usize,
    /// That of the first page behind.
    end: usize,
    /// Address of what tells where pointers are (`DT_RELR`, generic ABI).
    table: usize,
    /// Its end.
    table_end: usize,
}

impl Pointers {
    /// None, where they can't be relocated once more.
    ///
    /// # Safety
    /// `headers` must be the address of the `count` program headers of this program.
    unsafe fn find(headers: usize, count: usize) -> Option<Self> {
        // Other libraries write more than relocations there, and protect it then.
        if cfg!(not(target_env = "musl")) {
            return None;
        }
        let all = headers as *const libc::Elf64_Phdr;
        // SAFETY: the caller's promise.
        let all = unsafe { std::slice::from_raw_parts(all, count) };
        let of = |kind| all.iter().find(|header| header.p_type == kind);
        let base = base(headers, of(libc::PT_LOAD)?.p_vaddr as usize);
        let constant = of(libc::PT_GNU_RELRO)?;
        // Nothing else may be in their first page.
        all.iter()
            .find(|header| header.p_type == libc::PT_LOAD && header.p_vaddr == constant.p_vaddr)?;
        let start = base + constant.p_vaddr as usize;
        let (start, end) = (start & !PAGE, (start + constant.p_memsz as usize) & !PAGE);
        let dynamic = base + of(libc::PT_DYNAMIC)?.p_vaddr as usize;
        let value = |tag: usize| {
            let mut at = dynamic;
            // SAFETY: the program's dynamic section, pairs of words that end with a zero.
            unsafe {
                while word(at) != 0 && word(at) != tag {
                    at += 2 * WORD;
                }
                (word(at) == tag).then(|| word(at + WORD))
            }
        };
        const RELASZ: usize = 8;
        const JMPREL: usize = 23;
        const RELRSZ: usize = 35;
        const RELR: usize = 36;
        // Any other kind of relocation is not known here.
        if value(RELASZ).unwrap_or(0) != 0 || value(JMPREL).is_some() {
            return None;
        }
        let table = base + value(RELR)?;
        let found = Self { base, start, end, table, table_end: table + value(RELRSZ)? };
        // SAFETY: the pages keep what they hold. This fails if they may not be written.
        unsafe { found.advise(MADV_POPULATE_WRITE) }.then_some(found)
    }

    /// Calls madvise(2) for the pages; returns whether that worked.
    ///
    /// # Safety
    /// When they are dropped nobody may need a pointer until [`Self::restore`].
    #[inline(always)]
    unsafe fn advise(&self, advice: usize) -> bool {
        let args = [self.start, self.end - self.start, advice, 0, 0, 0];
        // SAFETY: the caller's promise.
        unsafe { syscall(libc::SYS_madvise, &args) == 0 }
    }

    /// Relocates them as the C library did.
    ///
    /// # Safety
    /// They must be as they are in the program's file.
    #[inline(always)]
    unsafe fn restore(&self) {
        let add = |at: usize| {
            if at >= self.start && at < self.end {
                // SAFETY: the table has addresses of words, and this is one of those that were
                // dropped.
                unsafe { set_word(at, word(at).wrapping_add(self.base)) };
            }
        };
        let mut entry = self.table;
        let mut next = 0;
        while entry < self.table_end {
            // SAFETY: in the table.
            let value = unsafe { word(entry) };
            if value & 1 == 0 {
                // An address.
                add(self.base + value);
                next = self.base + value + WORD;
            } else {
                // Or which of the words that follow have a pointer.
                let mut bits = value >> 1;
                let mut at = next;
                while bits != 0 {
                    if bits & 1 != 0 {
                        add(at);
                    }
                    bits >>= 1;
                    at += WORD;
                }
                next += (8 * WORD - 1) * WORD;
            }
            entry += WORD;
        }
    }
}
