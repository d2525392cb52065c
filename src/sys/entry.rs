//! What the program does before anything else, libc's start and its own relocation included.
//!
//! A command that starts a container runs from a sealed copy of the program's file (see
//! [`crate::seal`]). As long as nothing has been written into its data, the program can exchange the
//! one for the other under itself: so that is done here, at the very first instruction. Without the
//! right to that it is executed once more, before it has relocated 200 KiB of pointers in vain. Then
//! the pages that are about to be relocated are asked for at once.
//!
//! Nothing here may need a relocation: no static, no call of libc or of the standard library, no
//! panic. So there is only arithmetic on addresses, and memory is read by [`word`] and [`byte`],
//! which the compiler can't make a `memcmp` or `strlen` of. Where anything fails nothing is done:
//! [`crate::seal::ensure`] comes later, knows more ways, and has words.

use std::arch::{asm, global_asm};
use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicUsize, Ordering};

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

/// # Safety
/// As the call demands.
pub(super) unsafe fn syscall(number: libc::c_long, args: &[usize; 6]) -> isize {
    let result: isize;
    let &[a, b, c, d, e, f] = args;
    // SAFETY: the kernel's calling convention; the caller answers for the arguments.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!(
            "svc 0",
            inlateout("x0") a as isize => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f, in("x8") number,
        );
    }
    result
}

/// # Safety
/// `address` must be that of a word.
#[cfg_attr(not(debug_assertions), inline(always))]
pub(super) unsafe fn word(address: usize) -> usize {
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

/// # Safety
/// `address` must be that of a word that may be written.
#[cfg_attr(not(debug_assertions), inline(always))]
pub(super) unsafe fn set_word(address: usize, value: usize) {
    // SAFETY: the caller's promise.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("mov [{}], {}", in(reg) address, in(reg) value);
    }
    // SAFETY: the caller's promise.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("str {1}, [{0}]", in(reg) address, in(reg) value);
    }
}

/// # Safety
/// `address` must be that of a byte that may be written.
#[cfg_attr(not(debug_assertions), inline(always))]
unsafe fn clear(address: usize) {
    // SAFETY: the caller's promise.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("mov byte ptr [{}], 0", in(reg) address);
    }
    // SAFETY: the caller's promise.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("strb wzr, [{}]", in(reg) address);
    }
}

/// The descriptor of the mount that the program was sealed by, 0 if it wasn't.
static MOUNT: AtomicUsize = AtomicUsize::new(0);

/// Whether the program was sealed at its first instruction and [`take_mount`] not called since.
pub fn has_mount() -> bool {
    MOUNT.load(Ordering::Relaxed) != 0
}

/// The mount that the program was sealed by at its first instruction, for who asks first.
pub fn take_mount() -> Option<OwnedFd> {
    match MOUNT.swap(0, Ordering::Relaxed) {
        0 => None,
        // SAFETY: open since then, and nobody else has been told of it.
        mount => Some(unsafe { OwnedFd::from_raw_fd(mount as RawFd) }),
    }
}

pub(super) const WORD: usize = size_of::<usize>();
/// The bits of an address within its page.
pub(super) const PAGE: usize = 4095;
/// From linux/mman.h, since Linux 5.14; before that the call does nothing.
pub(super) const MADV_POPULATE_WRITE: usize = 23;
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
        let sealed = name == 0 || starts_with(name, address(b"/dev/fd/"), 8);
        let mount = match !sealed && is_wanted(argc, argv) {
            true => seal(&Start { argv, envp, name, headers, count }),
            false => 0,
        };
        // What clap and serde use of the stack; the kernel has made room for 128 KiB.
        syscall(libc::SYS_madvise, &[(stack & !PAGE) - STACK, STACK, MADV_POPULATE_WRITE, 0, 0, 0]);
        populate(headers, count);
        set_word((&raw const MOUNT) as usize, mount);
    }
}

/// What the kernel gives a program.
struct Start {
    /// Address of the arguments, a list that ends with null; the first is there.
    argv: usize,
    /// Address of the environment, likewise.
    envp: usize,
    /// Address of the path by which the program was executed (`AT_EXECFN`).
    name: usize,
    /// Address of the program's headers.
    headers: usize,
    /// Their number.
    count: usize,
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

/// Puts the seal on: all that the kernel knows of this process to be from its file comes from a
/// detached read-only mount of that file then. Returns the mount's descriptor, 0 if that can't be
/// done; or not at all, if the program had to be executed anew for it.
///
/// # Safety
/// Nothing may have been written into the program's data.
unsafe fn seal(start: &Start) -> usize {
    // From linux/mount.h.
    const OPEN_TREE_CLONE: usize = 1;
    let attr = [crate::spec::mount::ATTR_RDONLY, 0, 0, 0];
    let empty = address(b"\0");
    let here = libc::AT_EMPTY_PATH as usize;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as usize;
    let own = address(b"/proc/self/exe\0");
    // SAFETY: all paths end with a zero, `attr` is a struct mount_attr (four u64), and the lists
    // are as execveat(2) wants them.
    unsafe {
        let cwd = libc::AT_FDCWD as usize;
        let mount = syscall(libc::SYS_open_tree, &[cwd, own, flags, 0, 0, 0]);
        if mount < 0 {
            return 0;
        }
        let mount = mount as usize;
        let attr = (&raw const attr) as usize;
        if syscall(libc::SYS_mount_setattr, &[mount, empty, here, attr, 32, 0]) == 0 {
            if exchange(mount, start) {
                return mount;
            }
            syscall(libc::SYS_execveat, &[mount, empty, start.argv, start.envp, here, 0]);
        }
        syscall(libc::SYS_close, &[mount, 0, 0, 0, 0, 0]);
    }
    0
}

/// Maps the program from the file that `mount` is, in the place of where it is mapped from, and makes
/// that its `/proc/self/exe` (PR_SET_MM(2const)). The kernel allows this to who has
/// `CAP_CHECKPOINT_RESTORE` in their user namespace, once nothing of the old file is mapped.
///
/// # Safety
/// `mount` must be a mount of the program's own file, in whose data nothing has been written yet.
unsafe fn exchange(mount: usize, start: &Start) -> bool {
    const WORDS: usize = 13;
    const PATH: [u64; 2] = [u64::from_le_bytes(*b"/proc/se"), u64::from_le_bytes(*b"lf/fd/0\0")];
    let digits = match mount {
        // Standard streams that are closed are to stay so until the program looks.
        0..=2 => return false,
        3..=9 => mount,
        // The second digit is in the place of a zero.
        10..=99 => mount / 10 + ((b'0' as usize + mount % 10) << 8),
        _ => return false,
    };
    let path = [PATH[0], PATH[1] + ((digits as u64) << 48), 0];
    let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as usize;
    // SAFETY: the path ends with a zero. The same pages of the same file appear at the same
    // addresses, in one step for each segment.
    unsafe {
        let cwd = libc::AT_FDCWD as usize;
        let path = (&raw const path) as usize;
        let file = syscall(libc::SYS_openat, &[cwd, path, flags, 0, 0, 0]);
        if file < 0 {
            return false;
        }
        let file = file as usize;
        let (mut code, mut code_end, mut data, mut data_end) = (0, 0, 0, 0);
        let mapped = for_each_segment(start.headers, start.count, |segment| {
            if segment.flags & libc::PF_X != 0 {
                (code, code_end) = (segment.start, segment.start + segment.in_file);
            } else if segment.flags & libc::PF_W != 0 {
                (data, data_end) = (segment.start, segment.start + segment.in_file);
            }
            map(segment, file)
        });
        // The kernel wants to hear all that it knows of this process's memory once more; its strings
        // follow one another.
        let brk = syscall(libc::SYS_brk, &[0, 0, 0, 0, 0, 0]) as usize;
        let args = word(start.argv);
        let env = match word(start.envp) {
            0 => start.name,
            first => first,
        };
        let stack = start.argv - WORD;
        // struct prctl_mm_map; the last words are an auxiliary vector, none, and the file.
        let map: [usize; WORDS] = [
            code,
            code_end,
            data,
            data_end,
            brk,
            brk,
            stack,
            args,
            env,
            env,
            start.name,
            0,
            file << 32,
        ];
        let (what, how) = (libc::PR_SET_MM as usize, libc::PR_SET_MM_MAP as usize);
        let set = [what, how, (&raw const map) as usize, WORDS * WORD, 0, 0];
        let exchanged = mapped && syscall(libc::SYS_prctl, &set) == 0;
        syscall(libc::SYS_close, &[file, 0, 0, 0, 0, 0]);
        exchanged
    }
}

/// # Safety
/// `segment` must be one of this program, `file` the program's, and nothing written in the segment.
unsafe fn map(segment: &Segment, file: usize) -> bool {
    let bit = |flag: u32, protection: i32| match segment.flags & flag {
        0 => 0,
        _ => protection as usize,
    };
    let protection = bit(libc::PF_R, libc::PROT_READ)
        | bit(libc::PF_W, libc::PROT_WRITE)
        | bit(libc::PF_X, libc::PROT_EXEC);
    let start = segment.start & !PAGE;
    let end = segment.start + segment.in_file;
    let flags = (libc::MAP_PRIVATE | libc::MAP_FIXED) as usize;
    let args = [start, end - start, protection, flags, file, segment.offset & !PAGE];
    // SAFETY: the caller's promise.
    if unsafe { syscall(libc::SYS_mmap, &args) } != start as isize {
        return false;
    }
    // What lies behind the data in its last page is to be zero (elf(5), "PT_LOAD").
    if segment.in_file < segment.size {
        let mut at = end;
        while at & PAGE != 0 {
            // SAFETY: in the segment's last page, which is writable if the segment goes on.
            unsafe { clear(at) };
            at += 1;
        }
    }
    true
}

/// Has the kernel make private copies of all pages that hold relocated data, in one call instead
/// of one page fault each.
///
/// # Safety
/// `headers` must be the address of the `count` program headers of this program.
unsafe fn populate(headers: usize, count: usize) {
    // SAFETY: the caller's promise, and the pages keep what they hold.
    unsafe { advise(headers, count, true, MADV_POPULATE_WRITE) };
}

/// Calls madvise(2) with `advice` for the segments that are writable, or for those that are not.
///
/// # Safety
/// As for [`populate`]; and the advice must not take away what the pages hold.
pub(super) unsafe fn advise(headers: usize, count: usize, writable: bool, advice: usize) {
    let one = |segment: &Segment| {
        if (segment.flags & libc::PF_W != 0) == writable {
            let first = segment.start & !PAGE;
            let pages = ((segment.start + segment.size + PAGE) & !PAGE) - first;
            // SAFETY: pages of this program, and the caller's promise.
            unsafe { syscall(libc::SYS_madvise, &[first, pages, advice, 0, 0, 0]) };
        }
        true
    };
    // SAFETY: the caller's promise.
    unsafe { for_each_segment(headers, count, one) };
}

/// How far from its own addresses the program was loaded. Its first segment, which has the address
/// `first` in the file, begins with the page in which its headers are.
pub(super) fn base(headers: usize, first: usize) -> usize {
    (headers & !PAGE).wrapping_sub(first & !PAGE)
}

/// A part of the program in memory (`PT_LOAD`, elf(5)).
struct Segment {
    /// `PF_*`.
    flags: u32,
    /// Its address.
    start: usize,
    /// Bytes that it has in memory.
    size: usize,
    /// Bytes of these that come from the file.
    in_file: usize,
    /// Where in the file.
    offset: usize,
}

/// Calls `one` for each segment of the program, as long as that returns true, which it returns, too.
///
/// # Safety
/// `headers` must be the address of the `count` program headers of this program.
unsafe fn for_each_segment(
    headers: usize,
    count: usize,
    mut one: impl FnMut(&Segment) -> bool,
) -> bool {
    // SAFETY: all callers read one of the `count`.
    let read = |header: usize, field: usize| unsafe { word(header + field) };
    // Type and flags share the first word.
    let is_loaded = |header: usize| read(header, 0) as u32 == libc::PT_LOAD;
    let address = |header| read(header, std::mem::offset_of!(libc::Elf64_Phdr, p_vaddr));
    let end = headers + count * size_of::<libc::Elf64_Phdr>();
    let mut header = headers;
    while header < end && !is_loaded(header) {
        header += size_of::<libc::Elf64_Phdr>();
    }
    if header == end {
        return false;
    }
    let base = base(headers, address(header));
    // Backwards: the segment in which the headers are comes last, and is not needed again.
    let mut header = end;
    while header > headers {
        header -= size_of::<libc::Elf64_Phdr>();
        if is_loaded(header) {
            let segment = Segment {
                flags: (read(header, 0) >> 32) as u32,
                start: base + address(header),
                size: read(header, std::mem::offset_of!(libc::Elf64_Phdr, p_memsz)),
                in_file: read(header, std::mem::offset_of!(libc::Elf64_Phdr, p_filesz)),
                offset: read(header, std::mem::offset_of!(libc::Elf64_Phdr, p_offset)),
            };
            if !one(&segment) {
                return false;
            }
        }
    }
    true
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
