//! What the program does before anything else, libc's start and its own relocation included.
//!
//! A command that starts a container executes the program twice, the second time from a sealed
//! copy of its file (see [`crate::seal`]). What the first one does until then is lost: relocating
//! 200 KiB of pointers costs as much as some ten mounts, most of it in page faults. So the seal is
//! put on here, at the very first instruction; and the second time the pages that are about to be
//! relocated are asked for at once.
//!
//! Nothing here may need a relocation: no static, no call of libc or of the standard library, no
//! panic. So there is only arithmetic on addresses, and memory is read by [`word`] and [`byte`],
//! which the compiler can't make a `memcmp` or `strlen` of. Where anything fails nothing is done:
//! [`crate::seal::ensure`] comes later, knows more ways, and has words.

use std::arch::{asm, global_asm};
use std::ffi::{CStr, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

// The kernel starts a program with its stack pointer on argc, aligned to 16 bytes, and everything
// else is up to _start, which wants rdx or x0 as they are.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl ultari_entry",
    "ultari_entry:",
    "mov rdi, rsp",
    "push rdx",
    "sub rsp, 8",
    "call {early}",
    "add rsp, 8",
    "pop rdx",
    "jmp _start",
    early = sym early,
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".globl ultari_entry",
    "ultari_entry:",
    "mov x19, x0",
    "mov x0, sp",
    "bl {early}",
    "mov x0, x19",
    "b _start",
    early = sym early,
);

/// Five are enough for all system calls here.
///
/// # Safety
/// As the call demands.
unsafe fn syscall(number: libc::c_long, args: [usize; 5]) -> isize {
    let result: isize;
    let [a, b, c, d, e] = args;
    // SAFETY: the kernel's calling convention; the caller answers for the arguments.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!(
            "svc 0",
            inlateout("x0") a as isize => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x8") number,
        );
    }
    result
}

/// # Safety
/// `address` must be that of a word.
#[cfg_attr(not(debug_assertions), inline(always))]
unsafe fn word(address: usize) -> usize {
    let value;
    // SAFETY: the caller's promise.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("mov {}, [{}]", out(reg) value, in(reg) address);
    }
    // SAFETY: the caller's promise.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("ldr {}, [{}]", out(reg) value, in(reg) address);
    }
    value
}

/// # Safety
/// `address` must be that of a byte.
#[cfg_attr(not(debug_assertions), inline(always))]
unsafe fn byte(address: usize) -> u32 {
    let value: u32;
    // SAFETY: the caller's promise.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("movzx {:e}, byte ptr [{}]", out(reg) value, in(reg) address);
    }
    // SAFETY: the caller's promise.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("ldrb {:w}, [{}]", out(reg) value, in(reg) address);
    }
    value
}

const WORD: usize = size_of::<usize>();
/// The bits of an address within its page.
const PAGE: usize = 4095;
/// From linux/mman.h, since Linux 5.14; before that the call does nothing.
const MADV_POPULATE_WRITE: usize = 23;
const STACK: usize = 64 << 10;

/// `stack`: argc, argv, null, environment, null, auxiliary vector (the psABI's "Process
/// Initialization").
extern "C" fn early(stack: usize) {
    // SAFETY: the kernel made that stack; argc counts what follows it, and the other two lists end
    // as said above.
    unsafe {
        let argc = word(stack);
        let argv = stack + WORD;
        let envp = argv + (argc + 1) * WORD;
        let mut at = envp;
        while word(at) != 0 {
            at += WORD;
        }
        at += WORD;
        let (mut headers, mut count, mut name) = (0, 0, 0);
        while word(at) != libc::AT_NULL as usize {
            let value = word(at + WORD);
            match word(at) as libc::c_ulong {
                libc::AT_PHDR => headers = value,
                libc::AT_PHNUM => count = value,
                libc::AT_EXECFN => name = value,
                _ => {}
            }
            at += 2 * WORD;
        }
        // That is what the kernel calls a program that is executed by descriptor.
        let sealed = name != 0 && starts_with(name, address(b"/dev/fd/"), 8);
        if !sealed && is_wanted(argc, argv) {
            seal(argv, envp);
        }
        // What clap and serde use of the stack; the kernel has made room for 128 KiB.
        syscall(libc::SYS_madvise, [(stack & !PAGE) - STACK, STACK, MADV_POPULATE_WRITE, 0, 0]);
        populate(headers, count);
    }
}

fn address<const N: usize>(bytes: &'static [u8; N]) -> usize {
    (&raw const *bytes) as usize
}

/// As [`crate::seal::wanted`].
///
/// # Safety
/// `argv` must have `argc` pointers to strings.
unsafe fn is_wanted(argc: usize, argv: usize) -> bool {
    let mut at = 1;
    while at < argc {
        // SAFETY: the caller's promise.
        unsafe {
            let arg = word(argv + at * WORD);
            // With the zero at the end: the whole argument.
            if starts_with(arg, address(b"run\0"), 4)
                || starts_with(arg, address(b"create\0"), 7)
                || starts_with(arg, address(b"exec\0"), 5)
                || starts_with(arg, address(b"restore\0"), 8)
            {
                return true;
            }
        }
        at += 1;
    }
    false
}

/// # Safety
/// `text` must end with a zero, and `start` have `length` bytes.
unsafe fn starts_with(text: usize, start: usize, length: usize) -> bool {
    let mut at = 0;
    while at < length {
        // SAFETY: in `start`, and not beyond the text's zero, which no byte before it is equal to.
        if unsafe { byte(text + at) != byte(start + at) } {
            return false;
        }
        at += 1;
    }
    true
}

/// Executes the program anew from a detached read-only mount of its file, the descriptor of which it
/// leaves open: see [`crate::seal::let_go`].
///
/// # Safety
/// Both lists must end with null.
unsafe fn seal(argv: usize, envp: usize) {
    // From linux/mount.h.
    const OPEN_TREE_CLONE: usize = 1;
    let attr = [crate::spec::mount::ATTR_RDONLY, 0, 0, 0];
    let empty = address(b"\0");
    let here = libc::AT_EMPTY_PATH as usize;
    let own = address(b"/proc/self/exe\0");
    // SAFETY: all paths end with a zero, `attr` is a struct mount_attr (four u64), and the lists
    // are as execveat(2) wants them.
    unsafe {
        let cwd = libc::AT_FDCWD as usize;
        let file = syscall(libc::SYS_open_tree, [cwd, own, OPEN_TREE_CLONE, 0, 0]);
        if file < 0 {
            return;
        }
        let file = file as usize;
        if file <= libc::STDERR_FILENO as usize {
            // The program is to find that its standard streams are closed.
            let (set, closed) = (libc::F_SETFD as usize, libc::FD_CLOEXEC as usize);
            syscall(libc::SYS_fcntl, [file, set, closed, 0, 0]);
        }
        let attr = (&raw const attr) as usize;
        if syscall(libc::SYS_mount_setattr, [file, empty, here, attr, 32]) == 0 {
            syscall(libc::SYS_execveat, [file, empty, argv, envp, here]);
        }
        syscall(libc::SYS_close, [file, 0, 0, 0, 0]);
    }
}

/// Has the kernel make private copies of all pages that hold relocated data, in one call instead
/// of one page fault each.
///
/// # Safety
/// `headers` must be the address of the `count` program headers of this program.
unsafe fn populate(headers: usize, count: usize) {
    // SAFETY: the caller's promise, and the pages keep what they hold.
    unsafe { for_each_segment(headers, count, true, MADV_POPULATE_WRITE) };
}

/// Calls madvise(2) with `advice` for the segments that are writable, or for those that are not.
///
/// # Safety
/// As for [`populate`]; and the advice must not take away what the pages hold.
unsafe fn for_each_segment(headers: usize, count: usize, writable: bool, advice: usize) {
    // SAFETY: one of the `count`; type and flags share the first word.
    let read = |header: usize| unsafe {
        let start = word(header + std::mem::offset_of!(libc::Elf64_Phdr, p_vaddr));
        (word(header), start, word(header + std::mem::offset_of!(libc::Elf64_Phdr, p_memsz)))
    };
    let end = headers + count * size_of::<libc::Elf64_Phdr>();
    // The first segment begins with the page in which these headers are: so far from its own
    // addresses the program was loaded.
    let mut header = headers;
    while header < end && read(header).0 as u32 != libc::PT_LOAD {
        header += size_of::<libc::Elf64_Phdr>();
    }
    if header == end {
        return;
    }
    let base = (headers & !PAGE).wrapping_sub(read(header).1 & !PAGE);
    // Backwards: the segment in which the headers are comes last, and is not needed again.
    let mut header = end;
    while header > headers {
        header -= size_of::<libc::Elf64_Phdr>();
        let (kind, start, size) = read(header);
        let wanted = (kind >> 32 & libc::PF_W as usize != 0) == writable;
        if kind as u32 == libc::PT_LOAD && wanted {
            let first = (base + start) & !PAGE;
            let pages = ((base + start + size + PAGE) & !PAGE) - first;
            // SAFETY: pages of this program, and the caller's promise.
            unsafe { syscall(libc::SYS_madvise, [first, pages, advice, 0, 0]) };
        }
    }
}

/// Lets go of the memory that a process which waits doesn't need: the program's code, which comes
/// back page by page, and what is free of the heap.
pub fn shrink() {
    // SAFETY: the kernel's vector has the program's own headers; code and constants are mapped from
    // its file, so what is dropped is read again; trimming the heap touches free memory only.
    unsafe {
        #[cfg(target_env = "gnu")]
        libc::malloc_trim(0);
        let headers = libc::getauxval(libc::AT_PHDR) as usize;
        let count = libc::getauxval(libc::AT_PHNUM) as usize;
        // Last of all: whatever is executed from here on comes back.
        for_each_segment(headers, count, false, libc::MADV_DONTNEED as usize);
    }
}

/// The command line, as C's `main` gets it.
///
/// # Safety
/// `argv` must have `argc` pointers to strings.
pub unsafe fn arguments(argc: i32, argv: *const *const libc::c_char) -> Vec<OsString> {
    let at = |index| {
        // SAFETY: the caller's promise.
        let arg = unsafe { CStr::from_ptr(*argv.add(index)) };
        OsStr::from_bytes(arg.to_bytes()).to_owned()
    };
    (0..argc as usize).map(at).collect()
}

/// Makes `run` the program's `main`, without what the standard library does before: its guard page
/// against stack overflow has nothing to catch here, and it all has its price in system calls. Of
/// the rest [`crate::sys::process::tidy_up`] does what is needed. `run` gets the command line, which
/// [`std::env::args_os`] has only with some C libraries then.
#[macro_export]
macro_rules! entry {
    ($run:path) => {
        // SAFETY: a program has one `main`, and this is it; C's start calls it as below.
        #[allow(unsafe_code)]
        #[unsafe(no_mangle)]
        extern "C" fn main(argc: i32, argv: *const *const std::ffi::c_char) -> i32 {
            let args = unsafe { $crate::sys::entry::arguments(argc, argv) };
            // Not returned: only this writes out what standard output has buffered.
            std::process::exit($run(args))
        }
    };
}
